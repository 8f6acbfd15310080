//! What sets a backup apart from another one of the same id, whatever the order in which its disks are configured.
//!
//! A tag that the gateway minted is given once and identifies its backup by itself. Any other tag may be used again, so
//! the identity lists the snapshots of that tag on all disks. Before, the identity was the snapshot on the first disk
//! alone; stored identities of that form are still understood.

use std::collections::BTreeSet;

use crate::adapters::qemu::disk::Disk;
use crate::adapters::qemu::disk::Snapshot;
use crate::adapters::qemu::own_names::OWN_PREFIX;
use crate::model::Identity;

/// Stands between the snapshots of two disks.
const SEPARATOR: char = '+';

/// Whether the gateway made the tag: `snapgate-` and the number of an operation.
pub(super) fn is_minted(tag: &str) -> bool {
    let number = tag.strip_prefix(OWN_PREFIX);
    number.is_some_and(|number| {
        !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit())
    })
}

/// The identity of the backup of that tag.
pub(super) fn identity_of(disks: &[Disk], tag: &str) -> Identity {
    if is_minted(tag) {
        return Identity::new(tag.to_owned());
    }
    let parts: BTreeSet<String> = disks
        .iter()
        .flat_map(|disk| disk.snapshots_tagged(tag))
        .map(Snapshot::identity_part)
        .collect();
    let parts: Vec<String> = parts.into_iter().collect();
    Identity::new(parts.join(&SEPARATOR.to_string()))
}

fn parts(identity: &Identity) -> BTreeSet<&str> {
    identity.as_str().split(SEPARATOR).collect()
}

/// Whether the text is one snapshot: a number, and a time in seconds and nanoseconds.
fn is_one_part(text: &str) -> bool {
    let is_number = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    let time = text.split_once('@').filter(|(number, _)| is_number(number));
    let time = time.and_then(|(_, time)| time.split_once('.'));
    time.is_some_and(|(seconds, nanoseconds)| is_number(seconds) && is_number(nanoseconds))
}

/// Whether it is the identity of the backup of this tag that the gateway minted, in the present form or the older one.
fn is_of_minted(tag: &str, stored: &Identity) -> bool {
    is_minted(tag) && (stored.as_str() == tag || is_one_part(stored.as_str()))
}

/// Whether names and protection that are bound to `stored` belong to the backup that is there `now`.
///
/// One common snapshot suffices: a protected backup that is deleted on some disks by other means stays protected.
pub(super) fn is_bound_to(tag: &str, stored: &Identity, now: &Identity) -> bool {
    is_of_minted(tag, stored) || !parts(stored).is_disjoint(&parts(now))
}

/// Whether the backup that is there `now` is the one that was `meant`, or what is left of it.
pub(super) fn is_remainder_of(tag: &str, meant: &Identity, now: &Identity) -> bool {
    if is_of_minted(tag, meant) {
        return true;
    }
    let is_old_form = is_one_part(meant.as_str());
    let (meant, now) = (parts(meant), parts(now));
    now.is_subset(&meant) || (is_old_form && meant.is_subset(&now))
}

/// Whether the backup that is there `now` is the one that was `meant`, on as many disks.
pub(super) fn is_complete(tag: &str, meant: &Identity, now: &Identity) -> bool {
    is_of_minted(tag, meant)
        || (is_remainder_of(tag, meant, now) && parts(meant).is_subset(&parts(now)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(text: &str) -> Identity {
        Identity::new(text.to_owned())
    }

    #[test]
    fn tags_of_the_gateway_identify_themselves_and_others_by_their_snapshots() {
        // tag, stored, now; belongs to it, is what is left of it, is all of it
        let rows = [
            ("snapgate-12", "1@5.6", "snapgate-12", (true, true, true)),
            (
                "snapgate-12",
                "snapgate-12",
                "snapgate-12",
                (true, true, true),
            ),
            (
                "snapgate-12",
                "another",
                "snapgate-12",
                (false, false, false),
            ),
            ("daily", "1@5.6+2@5.7", "1@5.6+2@5.7", (true, true, true)),
            ("daily", "1@5.6", "1@5.6+2@5.7", (true, true, true)),
            ("daily", "2@5.7", "1@5.6+2@5.7", (true, true, true)),
            ("daily", "1@5.6+2@5.7", "2@5.7", (true, true, false)),
            ("daily", "1@5.6+2@5.7", "1@5.6+2@9.9", (true, false, false)),
            ("daily", "1@5.6+2@5.7", "1@8.8+2@9.9", (false, false, false)),
            ("snapgate-x", "1@5.6", "1@8.8", (false, false, false)),
            ("snapgate-", "1@5.6", "1@8.8", (false, false, false)),
        ];
        for (tag, stored, now, expected) in rows {
            let (stored, now) = (identity(stored), identity(now));
            let found = (
                is_bound_to(tag, &stored, &now),
                is_remainder_of(tag, &stored, &now),
                is_complete(tag, &stored, &now),
            );
            assert_eq!(found, expected, "{tag}: {stored:?} and {now:?}");
        }
    }
}
