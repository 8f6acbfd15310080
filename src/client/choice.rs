//! Which VM and which backup is meant: an id, a unique name, or the latest backup.

use crate::client::ClientError;
use crate::client::gateway::Gateway;
use crate::client::observer::Observer;
use crate::client::wire::Backup;
use crate::client::wire::Vm;

/// Stands for the newest backup that can be used.
pub const LATEST: &str = "@latest";
/// Entries that are looked at for a name: more than any name has, unless everything has that name.
const NAMESAKES_MAX: usize = 1000;
/// Backups that are looked at for the newest, where the server sorts.
const NEWEST_MAX: usize = 1000;
/// Most ids that an error lists.
const SHOWN_MAX: usize = 20;

/// A VM that was found.
#[derive(Clone, Debug)]
pub struct ChosenVm {
    /// The id, as in paths.
    pub id: String,
    /// What the gateway says about it; `None` where only its id is known.
    pub vm: Option<Vm>,
}

impl ChosenVm {
    /// The name, or the id where there is none.
    #[must_use]
    pub fn name(&self) -> &str {
        self.vm.as_ref().map_or(&self.id, |vm| &vm.name)
    }
}

impl Gateway {
    /// The VM with this id, else the one with this name.
    ///
    /// # Errors
    /// [`ClientError::Refused`] when there is none, [`ClientError::Usage`] when several have the name.
    pub async fn choose_vm(
        &self,
        text: &str,
        observer: &mut dyn Observer,
    ) -> Result<ChosenVm, ClientError> {
        let error = match self.read_vm(text, observer).await {
            Ok(vm) => {
                let (id, vm) = (text.to_owned(), Some(vm));
                return Ok(ChosenVm { id, vm });
            }
            // An old server has no resource for the VM itself.
            Err(error) if error.has_code(&["NoSuchVm", "NoSuchRoute"]) => error,
            // Who may restore may not always read. The change itself will be judged.
            Err(error) if error.has_code(&["NotPermitted"]) => {
                let (id, vm) = (text.to_owned(), None);
                return Ok(ChosenVm { id, vm });
            }
            Err(error) => return Err(error),
        };
        let filter = name_filter(text);
        let Ok(list) = self.list_vms(&filter, NAMESAKES_MAX, observer).await else {
            // The list is an extra of this server; without it the id decides.
            return Err(error);
        };
        let named: Vec<_> = list.vms.iter().filter(|vm| vm.name == text).collect();
        match named.as_slice() {
            [] => Err(error),
            [one] => {
                let vm = self.read_vm(&one.id, observer).await?;
                let id = one.id.clone();
                Ok(ChosenVm { id, vm: Some(vm) })
            }
            several => {
                let ids = several.iter().map(|vm| vm.id.as_str());
                Err(ambiguous("VMs", text, ids))
            }
        }
    }

    /// The backup with this id, else the one with this name; the newest that can be used for [`LATEST`].
    ///
    /// # Errors
    /// [`ClientError::Refused`] when there is none, [`ClientError::Usage`] when several have the name, or none is the latest.
    pub async fn choose_backup(
        &self,
        vm: &str,
        text: &str,
        observer: &mut dyn Observer,
    ) -> Result<Backup, ClientError> {
        if text == LATEST {
            return self.latest_backup(vm, observer).await;
        }
        let error = match self.read_backup(vm, text, observer).await {
            Ok(backup) => return Ok(backup),
            Err(error) if error.has_code(&["NoSuchBackup"]) => error,
            Err(error) if error.has_code(&["NotPermitted"]) => {
                return Ok(Backup {
                    id: text.to_owned(),
                    name: text.to_owned(),
                    ..Backup::default()
                });
            }
            Err(error) => return Err(error),
        };
        let filter = name_filter(text);
        let listed = self.list_backups(vm, &filter, NAMESAKES_MAX, observer);
        let Ok(listed) = listed.await else {
            // Who may read single backups only has to name them by their ids.
            return Err(error);
        };
        let mut named: Vec<Backup> = listed;
        named.retain(|backup| backup.name == text);
        if named.len() > 1 {
            let ids = named.iter().map(|backup| backup.id.as_str());
            return Err(ambiguous("backups", text, ids));
        }
        named.pop().ok_or(error)
    }

    async fn latest_backup(
        &self,
        vm: &str,
        observer: &mut dyn Observer,
    ) -> Result<Backup, ClientError> {
        let filter = [("state", "AVAILABLE"), ("sort", "-created")];
        let listed = self.list_backups(vm, &filter, NEWEST_MAX, observer).await?;
        newest(listed).ok_or_else(|| {
            ClientError::Usage(format!(
                "{LATEST}: the VM {vm:?} has no backup that can be used"
            ))
        })
    }
}

/// The newest backup that can be used. A server that does not sort or filter is sorted and filtered after.
fn newest(mut listed: Vec<Backup>) -> Option<Backup> {
    // A server of the 2009 page says no state.
    listed.retain(|backup| {
        backup
            .state
            .as_deref()
            .is_none_or(|state| state == "AVAILABLE")
    });
    // Times of one server have one form, so that their text sorts as they do. Of two at once the greater id is the later one.
    listed.sort_by(|one, other| (&one.created, &one.id).cmp(&(&other.created, &other.id)));
    listed.pop()
}

/// Narrows a list to a name. One with `*` at its end would be a beginning: then all are looked at.
fn name_filter(name: &str) -> Vec<(&str, &str)> {
    if name.ends_with('*') {
        Vec::new()
    } else {
        vec![("name", name)]
    }
}

fn ambiguous<'a>(what: &str, name: &str, ids: impl Iterator<Item = &'a str>) -> ClientError {
    let ids: Vec<&str> = ids.collect();
    let shown: Vec<String> = ids
        .iter()
        .take(SHOWN_MAX)
        .map(|id| format!("{id:?}"))
        .collect();
    let more = if ids.len() > SHOWN_MAX { ", ..." } else { "" };
    ClientError::Usage(format!(
        "{} {what} are named {name:?}; use one of their ids: {}{more}",
        ids.len(),
        shown.join(", ")
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn backup(id: &str, created: &str, state: Option<&str>) -> Backup {
        Backup {
            id: id.to_owned(),
            created: Some(created.to_owned()),
            state: state.map(str::to_owned),
            ..Backup::default()
        }
    }

    #[test]
    fn the_latest_backup_is_the_newest_that_can_be_used() {
        let available = Some("AVAILABLE");
        let listed = vec![
            backup("a", "2026-01-02T00:00:00Z", available),
            backup("b", "2026-01-03T00:00:00Z", available),
            backup("c", "2026-01-04T00:00:00Z", Some("CREATING")),
            backup("d", "2026-01-01T00:00:00Z", None),
        ];
        assert_eq!(newest(listed).unwrap().id, "b", "not the one in the making");
        assert!(newest(Vec::new()).is_none(), "none");
    }

    #[test]
    fn names_are_looked_up_as_they_are() {
        assert_eq!(name_filter("a"), [("name", "a")], "exact");
        assert!(name_filter("a*").is_empty(), "no beginning");
        let error = ambiguous("backups", "n", ["1", "2"].into_iter());
        let text = error.to_string();
        assert_eq!(
            text, "2 backups are named \"n\"; use one of their ids: \"1\", \"2\"",
            "lists the ids"
        );
    }
}
