//! The list of VMs of a VM manager that only lists all of them at once, kept for a moment in order of the ids.
//!
//! Pages of one list then cost one such call in [`AGE`] together, and not one call each. A VM that was created or removed shows
//! after that time at the latest. Pages do not depend on the kept list being the same one: each continues after an id.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;
use std::time::Instant;

use tokio::sync::Mutex;

use crate::adapters::adapter::AdapterError;
use crate::model::FaultKind;
use crate::model::VmId;
use crate::model::limits;
use crate::public_text;

/// How long a list is used: long enough for a client that reads page after page, too short for a person to notice.
const AGE: Duration = Duration::from_secs(1);

/// One VM of such a list, as the adapter needs it to describe the VM.
pub(crate) trait VmListEntry {
    /// The id under which callers know the VM.
    fn id(&self) -> &VmId;
}

impl VmListEntry for VmId {
    fn id(&self) -> &VmId {
        self
    }
}

/// The last list.
#[derive(Debug)]
pub(crate) struct VmListCache<T>(Mutex<Option<(Instant, Arc<[T]>)>>);

impl<T> Default for VmListCache<T> {
    fn default() -> Self {
        Self(Mutex::new(None))
    }
}

impl<T: VmListEntry> VmListCache<T> {
    /// The list, in order of the ids, each id once; read anew when it is older than [`AGE`]. A failure is never kept.
    ///
    /// Requests that come while the list is being read wait for it, so that many of them cost the VM manager one call.
    pub(crate) async fn entries<F>(
        &self,
        now: Instant,
        read: impl FnOnce() -> F + Send,
    ) -> Result<Arc<[T]>, AdapterError>
    where
        F: Future<Output = Result<Vec<T>, AdapterError>> + Send,
    {
        let mut kept = self.0.lock().await;
        if let Some((read_at, entries)) = kept.as_ref()
            && now.saturating_duration_since(*read_at) < AGE
        {
            return Ok(Arc::clone(entries));
        }
        let mut entries = read().await?;
        if entries.len() > limits::VMS_LISTED_MAX {
            // Cutting it off would hide VMs without a word.
            let most = limits::VMS_LISTED_MAX;
            let text = public_text!(
                "The VM manager has more than {most} VMs, which are not listed. Read VMs by their ids."
            );
            return Err(AdapterError::refused(FaultKind::Unsupported, text));
        }
        entries.sort_by(|one, other| one.id().cmp(other.id()));
        entries.dedup_by(|one, other| one.id() == other.id());
        let entries: Arc<[T]> = entries.into();
        *kept = Some((now, Arc::clone(&entries)));
        Ok(entries)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;
    use std::sync::atomic::Ordering;

    use super::*;
    use crate::runtime::Clock as _;

    #[tokio::test]
    async fn a_list_is_read_once_in_its_age_and_failures_are_not_kept() {
        let (cache, calls) = (VmListCache::<VmId>::default(), AtomicUsize::new(0));
        let start = crate::runtime::SystemClock.instant();
        let ids = |names: &[&str]| -> Vec<VmId> {
            names.iter().map(|name| VmId::new(name).unwrap()).collect()
        };
        let read = |at: Duration, names: Option<&'static [&'static str]>| {
            let (cache, calls) = (&cache, &calls);
            async move {
                let found = cache.entries(start.checked_add(at).unwrap(), || async move {
                    calls.fetch_add(1, Ordering::Relaxed);
                    names
                        .map(ids)
                        .ok_or_else(|| AdapterError::unavailable(public_text!("Down.")))
                });
                found.await.ok().map(|entries| entries.to_vec())
            }
        };
        let first = read(Duration::ZERO, Some(&["b", "a", "b"])).await;
        assert_eq!(first, Some(ids(&["a", "b"])), "in order, each once");
        let again = read(Duration::from_millis(500), Some(&["c"])).await;
        assert_eq!(again, first, "kept");
        assert_eq!(calls.load(Ordering::Relaxed), 1, "one call for both");
        assert_eq!(read(AGE, None).await, None, "a failure is an error");
        let after = read(AGE, Some(&["c"])).await;
        assert_eq!(after, Some(ids(&["c"])), "and is not kept");
    }
}
