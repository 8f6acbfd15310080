//! The keys of the store.
//!
//! Below the prefix of the configuration and `/store/`:
//!
//! | key | value |
//! |---|---|
//! | `format` | the format of the keys, a number |
//! | `copying` | nothing; while a copy into the store is not finished |
//! | `state` | the last write: see `state.rs` |
//! | `op/SEQ` | what is stored beside the record, a line break, the record |
//! | `created/POS`, `verb/V/POS`, `vm/V/POS`, `backup/B/POS`, `principal/P/POS` | principal, verb, VM and backup |
//! | `live/POS`, `unfinished/SEQ` | the same, while the operation is unfinished |
//! | `outcome/PHASE/POS` | the same, once it has ended |
//! | `changed/NUMBER` | nothing; of the last write of each finished operation |
//! | `expires/POS` | nothing; the time is that of expiry |
//! | `unknown/SEQ` | nothing; unknown outcomes that are not acknowledged |
//! | `key/PRINCIPAL/VERB/VM/BACKUP/KEY` | the number and the fingerprint of the operation with this idempotency key |
//! | `annotation/BACKEND/VM/BACKUP` | the metadata of a backup |
//! | `beat/GATEWAY` | when this gateway was last running, in milliseconds |
//! | `run/NUMBER` | an opening of the store |
//!
//! SEQ is a sequence number in 16 hexadecimal digits, POS a time in milliseconds and a sequence number, 16 digits each, so that
//! the order of the keys is that of lists.

use percent_encoding::AsciiSet;
use percent_encoding::NON_ALPHANUMERIC;
use percent_encoding::utf8_percent_encode;

use crate::model::BackendName;
use crate::model::KeyScope;
use crate::model::Target;
use crate::model::Verb;
use crate::model::VmId;
use crate::operations::store::list_index::ListIndex;
use crate::operations::store::row::RowHeader;

/// The format of the keys that this version writes. A newer one is refused.
pub(super) const FORMAT: i64 = 1;

/// What stands in a key as it is; everything else is percent-encoded.
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');

/// Makes the keys of one store.
#[derive(Clone, Debug)]
pub(super) struct Keys(String);

fn encoded(text: &str) -> String {
    utf8_percent_encode(text, ENCODED).to_string()
}

impl Keys {
    /// The keys below the prefix of the configuration.
    pub(super) fn new(prefix: &str) -> Self {
        Self(format!("{prefix}/store/"))
    }

    /// What all keys begin with.
    pub(super) fn all(&self) -> &str {
        &self.0
    }

    pub(super) fn format(&self) -> String {
        format!("{}format", self.0)
    }

    /// There while a copy into the store is not finished.
    pub(super) fn copying(&self) -> String {
        format!("{}copying", self.0)
    }

    pub(super) fn state(&self) -> String {
        format!("{}state", self.0)
    }

    pub(super) fn operations(&self) -> String {
        format!("{}op/", self.0)
    }

    pub(super) fn operation(&self, seq: u64) -> String {
        format!("{}op/{seq:016x}", self.0)
    }

    /// What the keys of an index begin with; a position follows.
    pub(super) fn index(&self, index: &ListIndex) -> String {
        let all = &self.0;
        match index {
            ListIndex::Backup(id) => format!("{all}backup/{}/", encoded(id)),
            ListIndex::Unfinished => format!("{all}live/"),
            ListIndex::Vm(id) => format!("{all}vm/{}/", encoded(id)),
            ListIndex::Principal(name) => format!("{all}principal/{}/", encoded(name)),
            ListIndex::Outcome(outcome) => format!("{all}outcome/{}/", encoded(outcome)),
            ListIndex::Verb(verb) => format!("{all}verb/{}/", encoded(verb)),
            ListIndex::Created => format!("{all}created/"),
        }
    }

    /// The keys by which a record is found for as long as it exists.
    pub(super) fn lasting(&self, seq: u64, header: &RowHeader) -> [String; 5] {
        let position = position(header.created, seq);
        let all = &self.0;
        [
            format!("{all}created/{position}"),
            format!("{all}verb/{}/{position}", encoded(&header.verb)),
            format!("{all}vm/{}/{position}", encoded(&header.vm)),
            format!("{all}backup/{}/{position}", encoded(&header.backup)),
            format!("{all}principal/{}/{position}", encoded(&header.principal)),
        ]
    }

    pub(super) fn live(&self, seq: u64, header: &RowHeader) -> String {
        format!("{}live/{}", self.0, position(header.created, seq))
    }

    pub(super) fn all_unfinished(&self) -> String {
        format!("{}unfinished/", self.0)
    }

    pub(super) fn unfinished(&self, seq: u64) -> String {
        format!("{}unfinished/{seq:016x}", self.0)
    }

    pub(super) fn outcome(&self, seq: u64, header: &RowHeader) -> String {
        let position = position(header.created, seq);
        format!("{}outcome/{}/{position}", self.0, encoded(header.outcome()))
    }

    pub(super) fn all_changed(&self) -> String {
        format!("{}changed/", self.0)
    }

    pub(super) fn changed(&self, number: u64, seq: u64) -> String {
        format!("{}changed/{}", self.0, position(number, seq))
    }

    pub(super) fn all_expires(&self) -> String {
        format!("{}expires/", self.0)
    }

    pub(super) fn expires(&self, millis: u64, seq: u64) -> String {
        format!("{}expires/{}", self.0, position(millis, seq))
    }

    pub(super) fn all_unknown(&self) -> String {
        format!("{}unknown/", self.0)
    }

    pub(super) fn unknown(&self, seq: u64) -> String {
        format!("{}unknown/{seq:016x}", self.0)
    }

    /// The key of an idempotency key.
    pub(super) fn idempotency(&self, principal: &str, scope: &KeyScope, key: &str) -> String {
        let backup = scope.backup.as_ref().map_or("", |backup| backup.as_str());
        self.idempotency_of_parts(
            principal,
            (scope.verb.as_str(), scope.vm.as_str(), backup),
            key,
        )
    }

    /// The key of the idempotency key of a record, if it has one.
    pub(super) fn idempotency_of(&self, header: &RowHeader) -> Option<String> {
        let key = header.key.as_ref()?;
        // The id of a backup that is to be made is new with every request.
        let is_create = header.verb == Verb::Create.as_str();
        let backup = if is_create { "" } else { &header.backup };
        let scope = (&*header.verb, &*header.vm, backup);
        Some(self.idempotency_of_parts(&header.principal, scope, &key.key))
    }

    fn idempotency_of_parts(
        &self,
        principal: &str,
        (verb, vm, backup): (&str, &str, &str),
        key: &str,
    ) -> String {
        let all = &self.0;
        format!(
            "{all}key/{}/{}/{}/{}/{}",
            encoded(principal),
            encoded(verb),
            encoded(vm),
            encoded(backup),
            encoded(key)
        )
    }

    pub(super) fn all_annotations(&self) -> String {
        format!("{}annotation/", self.0)
    }

    pub(super) fn annotations_of(&self, backend: &BackendName, vm: &VmId) -> String {
        let (backend, vm) = (encoded(backend.as_str()), encoded(vm.as_str()));
        format!("{}annotation/{backend}/{vm}/", self.0)
    }

    pub(super) fn annotation(&self, backend: &BackendName, target: &Target) -> String {
        self.annotation_of(backend.as_str(), target.vm.as_str(), target.backup.as_str())
    }

    pub(super) fn annotation_of(&self, backend: &str, vm: &str, backup: &str) -> String {
        let (backend, vm, backup) = (encoded(backend), encoded(vm), encoded(backup));
        format!("{}annotation/{backend}/{vm}/{backup}", self.0)
    }

    pub(super) fn all_beats(&self) -> String {
        format!("{}beat/", self.0)
    }

    pub(super) fn beat(&self, gateway: &str) -> String {
        format!("{}beat/{}", self.0, encoded(gateway))
    }

    pub(super) fn all_runs(&self) -> String {
        format!("{}run/", self.0)
    }

    pub(super) fn run(&self, number: u64) -> String {
        format!("{}run/{number:016x}", self.0)
    }
}

/// A place in an index.
pub(super) fn position(first: u64, seq: u64) -> String {
    format!("{first:016x}{seq:016x}")
}

/// The last digits of a key as a number; `None` when they are none.
pub(super) fn number_at_end(key: &[u8], digits: usize) -> Option<u128> {
    let start = key.len().checked_sub(digits)?;
    let text = std::str::from_utf8(key.get(start..)?).ok()?;
    u128::from_str_radix(text, 16).ok()
}

/// The sequence number at the end of a key.
pub(super) fn seq_at_end(key: &[u8]) -> Option<u64> {
    number_at_end(key, 16).and_then(|number| u64::try_from(number).ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::operations::store::row::Row;
    use crate::operations::testing::operation;

    #[test]
    fn ids_with_slashes_do_not_reach_into_other_keys() {
        let keys = Keys::new("/p");
        let row = Row::of(&operation(7, "a/b", "c%d")).unwrap();
        let [_, _, vm, backup, _] = keys.lasting(7, &row.header);
        let at = position(row.header.created, 7);
        assert_eq!(vm, format!("/p/store/vm/a%2Fb/{at}"), "slash");
        assert_eq!(backup, format!("/p/store/backup/c%25d/{at}"), "percent");
        assert_eq!(seq_at_end(vm.as_bytes()), Some(7), "the number");
        assert_eq!(seq_at_end(b"short"), None, "no number");
    }
}
