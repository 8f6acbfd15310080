//! What a client reads: VMs, backups, Statuses, plans and permissions.

use http::Method;
use serde_json::Value;
use serde_json::json;

use crate::client::ClientError;
use crate::client::gateway::Gateway;
use crate::client::gateway_url::TargetError;
use crate::client::gateway_url::path_of;
use crate::client::gateway_url::with_query;
use crate::client::observer::Observer;
use crate::client::request::Answer;
use crate::client::request::Request;
use crate::client::wire::Backup;
use crate::client::wire::ListedVm;
use crate::client::wire::Permission;
use crate::client::wire::Plan;
use crate::client::wire::Status;
use crate::client::wire::Vm;
use crate::client::wire::parse_json;

/// Entries of one page: the most that a gateway gives.
const PAGE: usize = 1000;
/// Most pages of one list: bounds what a server that goes on for ever can cost.
const PAGES_MAX: usize = 1000;
/// What a server without plans answers to a request for one.
const NO_PLANS: [u16; 3] = [404, 405, 501];

/// The VMs that the caller may read.
#[derive(Clone, Debug, Default)]
pub struct VmList {
    /// In order of their ids.
    pub vms: Vec<ListedVm>,
    /// Why some may be missing; `None` when the list is complete.
    pub incomplete: Option<String>,
}

/// Narrows a list: names and values of the query.
pub type Filter<'a> = [(&'a str, &'a str)];

impl From<TargetError> for ClientError {
    fn from(error: TargetError) -> Self {
        Self::Usage(error.to_string())
    }
}

impl Gateway {
    /// The VMs, at most so many.
    ///
    /// # Errors
    /// [`ClientError`] when there is no answer, or no such list.
    pub async fn list_vms(
        &self,
        filter: &Filter<'_>,
        most: usize,
        observer: &mut dyn Observer,
    ) -> Result<VmList, ClientError> {
        let mut list = VmList::default();
        let path = path_of(&["vms"])?;
        let pages = self.read_pages(path, filter, "vms", most, observer).await?;
        for page in pages {
            if page.rest.get("complete") == Some(&Value::Bool(false)) {
                let message = page.rest.get("message").and_then(Value::as_str);
                let text = message.unwrap_or("Some VM managers did not answer.");
                list.incomplete = Some(text.to_owned());
            }
            for vm in page.entries {
                list.vms.push(ListedVm::from_json(vm)?);
            }
        }
        Ok(list)
    }

    /// One VM.
    ///
    /// # Errors
    /// [`ClientError`] when there is no answer, or no such VM.
    pub async fn read_vm(&self, vm: &str, observer: &mut dyn Observer) -> Result<Vm, ClientError> {
        // Only the VM itself: its backups are another list.
        let path = with_query(path_of(&["vms", vm])?, &[("limit", "1")]);
        Vm::from_json(self.read_json(path, observer).await?)
    }

    /// The backups of a VM, at most so many.
    ///
    /// # Errors
    /// [`ClientError`] when there is no answer, or no such VM.
    pub async fn list_backups(
        &self,
        vm: &str,
        filter: &Filter<'_>,
        most: usize,
        observer: &mut dyn Observer,
    ) -> Result<Vec<Backup>, ClientError> {
        let path = path_of(&["vms", vm, "backups"])?;
        let pages = self.read_pages(path, filter, "backups", most, observer);
        let entries = pages.await?.into_iter().flat_map(|page| page.entries);
        entries.map(Backup::from_json).collect()
    }

    /// One backup.
    ///
    /// # Errors
    /// [`ClientError`] when there is no answer, or no such backup.
    pub async fn read_backup(
        &self,
        vm: &str,
        backup: &str,
        observer: &mut dyn Observer,
    ) -> Result<Backup, ClientError> {
        let path = path_of(&["vms", vm, "backups", backup])?;
        Backup::from_json(self.read_json(path, observer).await?)
    }

    /// What an operation would do; `None` where the server makes no plans.
    ///
    /// # Errors
    /// [`ClientError`] when there is no answer, or the caller may not do what is planned.
    pub async fn read_plan(
        &self,
        (vm, backup): (&str, &str),
        op: &str,
        pairs: &[(String, Value)],
        observer: &mut dyn Observer,
    ) -> Result<Option<Plan>, ClientError> {
        let path = path_of(&["vms", vm, "backups", backup, "plan"])?;
        let mut body = json!({ "op": op });
        for (name, value) in pairs {
            if let Some(members) = body.as_object_mut() {
                members
                    .entry(name.as_str())
                    .or_insert_with(|| value.clone());
            }
        }
        let request = Request::new(Method::POST, path).json(&body);
        match self.send(&request, observer).await {
            Ok(answer) => Plan::from_json(parse_json(&answer.body)?).map(Some),
            Err(error) if says_no_plans(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The operations that the caller may see, newest first, at most so many.
    ///
    /// # Errors
    /// [`ClientError`] when there is no answer.
    pub async fn list_statuses(
        &self,
        filter: &Filter<'_>,
        most: usize,
        observer: &mut dyn Observer,
    ) -> Result<Vec<Status>, ClientError> {
        let path = path_of(&["statuses"])?;
        let pages = self.read_pages(path, filter, "statuses", most, observer);
        let entries = pages.await?.into_iter().flat_map(|page| page.entries);
        entries.map(Status::from_json).collect()
    }

    /// One Status, by its path and query.
    ///
    /// # Errors
    /// [`ClientError`] when there is no answer, or no such Status.
    pub async fn read_status(
        &self,
        target: &str,
        observer: &mut dyn Observer,
    ) -> Result<Status, ClientError> {
        Status::from_json(self.read_json(target.to_owned(), observer).await?)
    }

    /// What the caller may do with a VM, or with a backup of it.
    ///
    /// # Errors
    /// [`ClientError`] when there is no answer, or the server does not say.
    pub async fn read_permissions(
        &self,
        vm: Option<&str>,
        backup: Option<&str>,
        observer: &mut dyn Observer,
    ) -> Result<Vec<Permission>, ClientError> {
        let mut query: Vec<(&str, &str)> = Vec::new();
        query.extend(vm.map(|vm| ("vm", vm)));
        query.extend(backup.map(|backup| ("b", backup)));
        let path = with_query(path_of(&["permissions"])?, &query);
        let mut json = self.read_json(path, observer).await?;
        let actions = json.get_mut("actions").map(Value::take);
        serde_json::from_value(actions.unwrap_or_default())
            .map_err(|error| ClientError::Invalid(error.to_string()))
    }

    async fn read_json(
        &self,
        target: String,
        observer: &mut dyn Observer,
    ) -> Result<Value, ClientError> {
        let request = Request::new(Method::GET, target);
        parse_json(&self.send(&request, observer).await?.body)
    }

    async fn read_pages(
        &self,
        path: String,
        filter: &Filter<'_>,
        member: &str,
        most: usize,
        observer: &mut dyn Observer,
    ) -> Result<Vec<ListPage>, ClientError> {
        let mut pages: Vec<ListPage> = Vec::new();
        let mut left = most;
        let mut cursor: Option<String> = None;
        for _ in 0..PAGES_MAX {
            let limit = left.min(PAGE).to_string();
            let mut query = filter.to_vec();
            query.push(("limit", &limit));
            query.extend(cursor.as_ref().map(|cursor| ("cursor", cursor.as_str())));
            let target = with_query(path.clone(), &query);
            let request = Request::new(Method::GET, target);
            let answer = self.send(&request, observer).await?;
            let mut page = ListPage::parse(&answer, member)?;
            // A server that knows no limit gives all at once.
            page.entries.truncate(left);
            left = left.saturating_sub(page.entries.len());
            pages.push(page);
            cursor = answer.next_cursor();
            if cursor.is_none() || left == 0 {
                return Ok(pages);
            }
        }
        let text = format!("a list has more than {PAGES_MAX} pages");
        Err(ClientError::Invalid(text))
    }
}

struct ListPage {
    entries: Vec<Value>,
    rest: Value,
}

impl ListPage {
    fn parse(answer: &Answer, member: &str) -> Result<Self, ClientError> {
        let mut rest = parse_json(&answer.body)?;
        let entries = rest.get_mut(member).map(Value::take);
        let Some(Value::Array(entries)) = entries else {
            let text = format!("a list has no member {member:?}");
            return Err(ClientError::Invalid(text));
        };
        Ok(Self { entries, rest })
    }
}

/// Whether it is the refusal of a server that has no plans, rather than of one that knows no such backup.
fn says_no_plans(error: &ClientError) -> bool {
    error.refusal().is_some_and(|refusal| {
        let is_other = ["NoSuchVm", "NoSuchBackup"].contains(&refusal.code.as_str());
        NO_PLANS.contains(&refusal.status) && !is_other
    })
}
