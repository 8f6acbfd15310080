//! A record and what is stored beside it: the parts by which it is found even by versions that cannot decode it.

use data_encoding::HEXLOWER;
use data_encoding::HEXLOWER_PERMISSIVE;
use serde::Deserialize;
use serde::Serialize;

use crate::model::BackupId;
use crate::model::Operation;
use crate::model::OperationSeq;
use crate::model::Phase;
use crate::model::PrincipalName;
use crate::model::Target;
use crate::model::Timestamp;
use crate::model::Verb;
use crate::model::VmId;
use crate::operations::change_feed::ChangeNumber;
use crate::operations::list_query::ListPosition;
use crate::operations::list_query::ListQuery;
use crate::operations::list_query::ListedOperation;
use crate::operations::store::record;
use crate::operations::store::record::RecordError;

/// What is stored beside a record. Texts are as they were written, by this version or another.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::operations) struct RowHeader {
    pub(in crate::operations) revision: u64,
    pub(in crate::operations) verb: String,
    pub(in crate::operations) backend: String,
    pub(in crate::operations) vm: String,
    pub(in crate::operations) backup: String,
    pub(in crate::operations) principal: String,
    pub(in crate::operations) phase: String,
    /// Whether it is unfinished.
    pub(in crate::operations) live: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(in crate::operations) key: Option<RowKey>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(in crate::operations) expires: Option<u64>,
    pub(in crate::operations) created: u64,
    /// The number of the last write.
    pub(in crate::operations) changed: ChangeNumber,
}

/// The idempotency key of a record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::operations) struct RowKey {
    pub(in crate::operations) key: String,
    /// Lower-case hexadecimal.
    pub(in crate::operations) fingerprint: String,
}

/// A record as it is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::operations) struct Row {
    pub(in crate::operations) seq: u64,
    pub(in crate::operations) header: RowHeader,
    pub(in crate::operations) record: String,
}

impl Row {
    /// The row of an operation.
    ///
    /// # Errors
    /// When it cannot be encoded: a defect.
    pub(in crate::operations) fn of(operation: &Operation) -> Result<Self, RecordError> {
        let target = operation.target();
        let key = operation.idempotency.as_ref();
        Ok(Self {
            seq: operation.seq.number(),
            header: RowHeader {
                revision: operation.revision.0,
                verb: operation.verb().as_str().to_owned(),
                backend: operation.backend.as_str().to_owned(),
                vm: target.vm.as_str().to_owned(),
                backup: target.backup.as_str().to_owned(),
                principal: operation.principal.as_str().to_owned(),
                phase: operation.phase.as_str().to_owned(),
                live: !operation.phase.is_final(),
                key: key.map(|key| RowKey {
                    key: key.key.as_str().to_owned(),
                    fingerprint: HEXLOWER.encode(&key.fingerprint.0),
                }),
                expires: operation.expires.map(Timestamp::as_millis),
                created: operation.created.as_millis(),
                changed: 0,
            },
            record: record::encode(operation)?,
        })
    }

    /// The operation.
    ///
    /// # Errors
    /// [`RecordError`]: the record must be left alone.
    pub(in crate::operations) fn decode(&self) -> Result<Operation, RecordError> {
        record::decode(&self.record)
    }
}

impl RowHeader {
    /// Whether it may have been waiting for an operator since it ended: an unknown outcome that is not acknowledged.
    pub(super) fn needs_operator(&self) -> bool {
        self.phase == Phase::Unknown.as_str() && self.expires.is_none()
    }

    /// The word of the index of outcomes.
    pub(super) fn outcome(&self) -> &str {
        if self.phase == Phase::NotExecuted.as_str() {
            Phase::Failed.as_str()
        } else {
            &self.phase
        }
    }
}

/// What filters look at; `None` in place of a row with what no version writes.
pub(super) struct ListedParts {
    pub(super) position: ListPosition,
    principal: PrincipalName,
    verb: Verb,
    target: Target,
    phase: Phase,
}

/// What filters look at, as it is stored.
pub(super) struct StoredParts<'a> {
    pub(in crate::operations) seq: u64,
    pub(in crate::operations) created: u64,
    pub(in crate::operations) principal: &'a str,
    pub(in crate::operations) verb: &'a str,
    pub(in crate::operations) vm: &'a str,
    pub(in crate::operations) backup: &'a str,
    pub(in crate::operations) phase: &'a str,
}

impl ListedParts {
    pub(super) fn parse(stored: &StoredParts<'_>) -> Option<Self> {
        let verb = Verb::ALL
            .into_iter()
            .find(|known| known.as_str() == stored.verb)?;
        let phase = Phase::ALL
            .into_iter()
            .find(|known| known.as_str() == stored.phase)?;
        Some(Self {
            position: ListPosition {
                created: Timestamp::from_millis(stored.created),
                seq: OperationSeq::new(stored.seq)?,
            },
            principal: PrincipalName::new(stored.principal).ok()?,
            verb,
            target: Target {
                vm: VmId::new(stored.vm).ok()?,
                backup: BackupId::new(stored.backup).ok()?,
            },
            phase,
        })
    }

    /// Whether the query lists it.
    pub(super) fn is_listed(&self, query: &ListQuery) -> bool {
        query.matches_listed(&ListedOperation {
            principal: &self.principal,
            verb: self.verb,
            target: &self.target,
            phase: self.phase,
            created: self.position.created,
        })
    }
}

/// The bytes of hexadecimal digits; none for any other text.
pub(super) fn bytes_of(digits: &str) -> Vec<u8> {
    HEXLOWER_PERMISSIVE
        .decode(digits.as_bytes())
        .unwrap_or_default()
}
