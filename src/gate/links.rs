//! The links in replies: paths with encoded identifiers, and the URIs of Statuses.
//!
//! Deviation D19: links of a Backup are absolute, those of a Status are absolute paths, as in the source's examples.

use percent_encoding::AsciiSet;
use percent_encoding::NON_ALPHANUMERIC;
use percent_encoding::PercentEncode;
use percent_encoding::utf8_percent_encode;

use crate::model::BackupId;
use crate::model::Operation;
use crate::model::Verb;
use crate::model::VmId;

/// Most links are shorter.
const LINK_BYTES: usize = 128;

const RESERVED: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');

pub(super) fn encoded(text: &str) -> PercentEncode<'_> {
    utf8_percent_encode(text, RESERVED)
}

/// `base` is the public URL, or empty for an absolute path.
pub(super) fn vm(base: &str, vm: &VmId) -> String {
    let mut link = String::with_capacity(LINK_BYTES);
    link.push_str(base);
    link.push_str("/vms/");
    link.extend(encoded(vm.as_str()));
    link
}

/// Likewise.
pub(super) fn backup(base: &str, vm: &VmId, backup: &BackupId) -> String {
    let mut link = self::vm(base, vm);
    link.push_str("/backups/");
    link.extend(encoded(backup.as_str()));
    link
}

/// The `status_uri`. Deviation D6: it always carries `seq`, and always enough to be found without.
pub(super) fn status(operation: &Operation) -> String {
    let target = operation.target();
    let (vm, b) = (encoded(target.vm.as_str()), encoded(target.backup.as_str()));
    let seq = operation.seq;
    match operation.verb() {
        Verb::Update => format!("/statuses?op=update-backup&seq={seq}"),
        Verb::Delete => format!("/statuses?op=delete-Backup&backup={b}&seq={seq}"),
        Verb::Restore => format!("/statuses?op=restore-Backup&vm={vm}&b={b}&seq={seq}"),
        Verb::Create => format!("/statuses?op=back_up&vm={vm}&b={b}&seq={seq}"),
    }
}

/// The word for a verb in a Status.
pub(super) const fn op(verb: Verb) -> &'static str {
    match verb {
        Verb::Create => "back_up",
        Verb::Update => "update-Backup",
        Verb::Delete => "delete-Backup",
        Verb::Restore => "restore-Backup",
    }
}
