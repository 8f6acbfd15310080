//! What can be read: a backup, the backups of a VM, a VM.

use http::header;

use crate::gate::authn::AuthenticatedCaller;
use crate::gate::authz;
use crate::gate::conditional;
use crate::gate::links;
use crate::gate::negotiate;
use crate::gate::pipeline::Call;
use crate::gate::pipeline::Gate;
use crate::gate::refusal::Code;
use crate::gate::refusal::Refusal;
use crate::gate::reply::Reply;
use crate::gate::request::Body;
use crate::gate::route;
use crate::gate::wire;
use crate::model::Action;
use crate::model::BackendName;
use crate::model::Backup;
use crate::model::BackupId;
use crate::model::Page;
use crate::model::Target;
use crate::model::VmId;
use crate::model::limits;

/// Backups a caller may see, and whether there are more of these.
struct Visible {
    backups: Vec<Backup>,
    more: bool,
}

impl Gate {
    pub(in crate::gate) async fn read_backup(
        &self,
        call: &mut Call<'_>,
        caller: &AuthenticatedCaller,
        target: &Target,
        body: &mut dyn Body,
    ) -> Result<Reply, Refusal> {
        caller.rights.check_backup(target, authz::READ)?;
        let backend = self.place(call, &target.vm)?;
        let headers = call.head.headers;
        let media =
            negotiate::choose_media_type(headers, negotiate::Representation::Backup, call.strict)?;
        self.skip_body(call, body).await?;
        let by = self.clock.deadline(limits::READ_DEADLINE);
        let backup = self.service.backup(backend, target, by).await?;
        let written = self.written.response_for(target, backup);
        conditional::check_if_match(headers, &written.tag)?;
        let is_known = conditional::matches_if_none_match(headers, &written.tag);
        Ok(Reply::read(media, written.body).tagged(&written.tag, is_known))
    }

    pub(in crate::gate) async fn list_backups(
        &self,
        call: &mut Call<'_>,
        caller: &AuthenticatedCaller,
        vm: &VmId,
        body: &mut dyn Body,
    ) -> Result<Reply, Refusal> {
        caller.rights.check_vm(vm, Action::Read)?;
        let backend = self.place(call, vm)?;
        let media = self.own_type(call, negotiate::BACKUPS)?;
        self.skip_body(call, body).await?;
        let limit = limit(call.query)?;
        let after = route::parameter(call.query, "after")?;
        let after = after.map(|it| BackupId::new(&it)).transpose();
        let after =
            after.map_err(|error| Refusal::text(Code::InvalidParameter, "after", &error))?;
        let page = Page { after, limit };
        let found = self.visible(caller, backend, vm, page).await?;
        let bytes = wire::backups(self.base(), vm, &found.backups);
        let tag = conditional::entity_tag(&bytes);
        conditional::check_if_match(call.head.headers, &tag)?;
        let is_known = conditional::matches_if_none_match(call.head.headers, &tag);
        let mut reply = Reply::read(media, bytes).tagged(&tag, is_known);
        if let Some(last) = found.backups.last().filter(|_| found.more) {
            let path = links::vm("", vm);
            let after = links::encoded(last.id.as_str());
            let next = format!("<{path}/backups?limit={limit}&after={after}>; rel=\"next\"");
            reply.set(header::LINK, &next);
        }
        Ok(reply)
    }

    pub(in crate::gate) async fn read_vm(
        &self,
        call: &mut Call<'_>,
        caller: &AuthenticatedCaller,
        vm: &VmId,
        body: &mut dyn Body,
    ) -> Result<Reply, Refusal> {
        caller.rights.check_vm(vm, Action::Read)?;
        let backend = self.place(call, vm)?;
        let media = self.own_type(call, negotiate::VM)?;
        self.skip_body(call, body).await?;
        let by = self.clock.deadline(limits::READ_DEADLINE);
        let found = self.service.vm(backend, vm, by).await?;
        let page = Page {
            after: None,
            limit: limits::PAGE,
        };
        let backups = self.visible(caller, backend, vm, page).await?.backups;
        let bytes = wire::vm(self.base(), &found, &backups);
        let tag = conditional::entity_tag(&bytes);
        conditional::check_if_match(call.head.headers, &tag)?;
        let is_known = conditional::matches_if_none_match(call.head.headers, &tag);
        Ok(Reply::read(media, bytes).tagged(&tag, is_known))
    }

    /// The entity tag of the list of backups that this caller is shown.
    pub(in crate::gate) async fn list_tag(
        &self,
        caller: &AuthenticatedCaller,
        backend: &BackendName,
        vm: &VmId,
        page: Page,
    ) -> Result<String, Refusal> {
        let found = self.visible(caller, backend, vm, page).await?;
        let bytes = wire::backups(self.base(), vm, &found.backups);
        Ok(conditional::entity_tag(&bytes))
    }

    pub(in crate::gate) fn base(&self) -> &str {
        self.config.public_url.as_str()
    }

    /// One page of what the caller may see. Neither its length nor its cursor tells of anything else.
    async fn visible(
        &self,
        caller: &AuthenticatedCaller,
        backend: &BackendName,
        vm: &VmId,
        mut page: Page,
    ) -> Result<Visible, Refusal> {
        let by = self.clock.deadline(limits::READ_DEADLINE);
        let wanted = usize::from(page.limit);
        let mut backups = Vec::new();
        loop {
            let found = self.service.backups(backend, vm, &page, by).await?;
            page.after = found.backups.last().map(|backup| backup.id.clone());
            for backup in found.backups {
                let held = caller.rights.actions_on_backup(vm, &backup.id);
                if !held.contains(Action::Read) {
                    continue;
                }
                if backups.len() == wanted {
                    return Ok(Visible {
                        backups,
                        more: true,
                    });
                }
                backups.push(backup);
            }
            if !found.more || page.after.is_none() {
                return Ok(Visible {
                    backups,
                    more: false,
                });
            }
        }
    }
}

/// The `limit` parameter.
pub(in crate::gate) fn limit(query: &str) -> Result<u16, Refusal> {
    let Some(text) = route::parameter(query, "limit")? else {
        return Ok(limits::PAGE);
    };
    text.parse()
        .ok()
        .filter(|value| (1..=limits::PAGE_MAX).contains(value))
        .ok_or_else(|| {
            Refusal::says(Code::InvalidParameter, "The value must be 1 to 1000.").on("limit")
        })
}
