//! Recent representations of backups: one that has not changed is neither serialised nor hashed again.

use std::num::NonZeroUsize;

use bytes::Bytes;
use lru::LruCache;
use parking_lot::Mutex;

use crate::gate::conditional;
use crate::gate::wire;
use crate::model::Backup;
use crate::model::Target;
use crate::model::limits;

/// The representations for one public URL. The VM manager is still asked every time: only a backup that equals the cached one in
/// every part gets the cached text.
#[derive(Debug)]
pub(super) struct ResponseCache {
    base: String,
    kept: Option<Mutex<LruCache<Target, CacheEntry>>>,
}

#[derive(Debug)]
struct CacheEntry {
    of: Backup,
    reply: CachedResponse,
}

/// The text of a backup and its tag.
#[derive(Clone, Debug)]
pub(super) struct CachedResponse {
    pub(super) body: Bytes,
    /// Quotes included.
    pub(super) tag: String,
}

impl ResponseCache {
    /// An empty cache. `base` is the public URL.
    pub(super) fn new(base: &str) -> Self {
        let most = NonZeroUsize::new(limits::REPLIES_KEPT_MAX);
        Self {
            base: base.to_owned(),
            kept: most.map(|most| Mutex::new(LruCache::new(most))),
        }
    }

    /// The representation of the backup at this target, cached or new.
    pub(super) fn response_for(&self, target: &Target, backup: Backup) -> CachedResponse {
        if let Some(found) = self.find(target, &backup) {
            return found;
        }
        let body = wire::backup(&self.base, &target.vm, &backup);
        let tag = conditional::entity_tag(&body);
        let reply = CachedResponse { body, tag };
        if let Some(kept) = &self.kept
            && reply.body.len() <= limits::REPLY_KEPT_BYTES_MAX
        {
            let new = CacheEntry {
                of: backup,
                reply: reply.clone(),
            };
            let mut kept = kept.lock();
            kept.put(target.clone(), new);
        }
        reply
    }

    fn find(&self, target: &Target, backup: &Backup) -> Option<CachedResponse> {
        let kept = self.kept.as_ref()?;
        let mut kept = kept.lock();
        let found = kept.get(target)?;
        (found.of == *backup).then(|| found.reply.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::BackupId;
    use crate::model::BackupName;
    use crate::model::BackupState;
    use crate::model::Description;
    use crate::model::Identity;
    use crate::model::Tag;
    use crate::model::Timestamp;
    use crate::model::VmId;

    fn backup() -> Backup {
        Backup {
            id: BackupId::new("456").unwrap(),
            identity: Identity::new("1".to_owned()),
            name: BackupName::new("before").unwrap(),
            description: None,
            kind: None,
            created: Timestamp::default(),
            tags: Vec::new(),
            state: BackupState::Available,
            size: Some(7),
            protected: false,
        }
    }

    fn target(vm: &str) -> Target {
        Target {
            vm: VmId::new(vm).unwrap(),
            backup: BackupId::new("456").unwrap(),
        }
    }

    /// Each in one part other than the one before: none may be answered with the text of another.
    #[test]
    fn whatever_changed_is_written_anew() {
        let all = ResponseCache::new("http://h");
        let mut backups = vec![backup()];
        let mut change = |change: fn(&mut Backup)| {
            let mut next = backups.last().cloned().unwrap();
            change(&mut next);
            backups.push(next);
        };
        change(|backup| backup.name = BackupName::new("after").unwrap());
        change(|backup| backup.description = Some(Description::new("what").unwrap()));
        change(|backup| backup.created = Timestamp::from_millis(1000));
        change(|backup| backup.tags = vec![Tag::new("a").unwrap()]);
        change(|backup| backup.state = BackupState::Deleting);
        change(|backup| backup.size = None);
        change(|backup| backup.protected = true);
        for backup in &backups {
            for round in 0..2 {
                let reply = all.response_for(&target("1"), backup.clone());
                let expected = wire::backup("http://h", &target("1").vm, backup);
                assert_eq!(reply.body, expected, "{backup:?}, round {round}");
                assert_eq!(reply.tag, conditional::entity_tag(&expected), "{backup:?}");
            }
        }
    }

    #[test]
    fn few_are_kept_and_none_that_is_large() {
        let all = ResponseCache::new("http://h");
        for vm in 0..=limits::REPLIES_KEPT_MAX {
            all.response_for(&target(&vm.to_string()), backup());
        }
        let len = || all.kept.as_ref().unwrap().lock().len();
        assert_eq!(len(), limits::REPLIES_KEPT_MAX, "so many");
        assert!(
            all.find(&target("0"), &backup()).is_none(),
            "the oldest gave way"
        );
        let found = all.find(&target("1"), &backup());
        assert!(found.is_some(), "the next is still there");
        let mut large = backup();
        large.description =
            Some(Description::new(&"x".repeat(limits::REPLY_KEPT_BYTES_MAX)).unwrap());
        let reply = all.response_for(&target("large"), large.clone());
        assert!(reply.body.len() > limits::REPLY_KEPT_BYTES_MAX, "whole");
        assert!(all.find(&target("large"), &large).is_none(), "and not kept");
    }
}
