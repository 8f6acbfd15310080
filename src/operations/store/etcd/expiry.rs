//! Removes records that have expired, with everything by which they are found.

use futures_util::future::join_all;

use crate::etcd::GetOptions;
use crate::model::Timestamp;
use crate::operations::store::error::StoreError;
use crate::operations::store::etcd::batch::Write;
use crate::operations::store::etcd::errors::unavailable;
use crate::operations::store::etcd::keys::position;
use crate::operations::store::etcd::keys::seq_at_end;
use crate::operations::store::etcd::open_keys::OpenKeys;

impl OpenKeys {
    /// Removes at most `max` records that have expired. Returns how many.
    pub(super) async fn remove_expired(
        &self,
        now: Timestamp,
        max: u16,
    ) -> Result<usize, StoreError> {
        let all = self.reader.keys.all_expires();
        let end = position(now.as_millis().saturating_add(1), 0);
        let options = GetOptions::new()
            .with_range(format!("{all}{end}"))
            .with_limit(max.into())
            .with_keys_only();
        let found = self.reader.connection.read(all, Some(options)).await;
        let mut found = found.map_err(|error| unavailable(&error))?;
        let seqs: Vec<u64> = found
            .take_kvs()
            .iter()
            .filter_map(|key| seq_at_end(key.key()))
            .collect();
        let rows = self.reader.rows(&seqs).await?;
        let removals = rows
            .into_iter()
            // The record decides: it may have been changed since the index was read.
            .filter(|stored| {
                let header = &stored.row.header;
                let is_due = header.expires.is_some_and(|at| at <= now.as_millis());
                is_due && !header.live
            })
            .map(|stored| self.write(|answer| Write::Remove(stored, answer)));
        let mut removed = 0_usize;
        for result in join_all(removals).await {
            removed = removed.saturating_add(usize::from(result?));
        }
        Ok(removed)
    }
}
