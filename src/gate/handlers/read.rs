//! Reads: a backup, the backups of a VM, a VM.

use bytes::Bytes;
use http::HeaderMap;
use http::header;

use crate::gate::conditional;
use crate::gate::handlers::backup_list::visible_backups;
use crate::gate::handlers::backup_query::ListedBackups;
use crate::gate::refusal::Refusal;
use crate::gate::request_body::IncomingBody;
use crate::gate::request_context::AuthorizedRequest;
use crate::gate::response_draft::ResponseDraft;
use crate::gate::services::Services;
use crate::gate::wire;
use crate::model::BackupQuery;
use crate::model::Target;
use crate::model::VmId;

pub(in crate::gate) async fn read_backup(
    services: &Services,
    authorized: &AuthorizedRequest<'_>,
    target: &Target,
    body: &mut IncomingBody<'_>,
) -> Result<ResponseDraft, Refusal> {
    let request = authorized.request;
    let media = request.media_type()?;
    body.skip().await?;
    let deadline = services.read_deadline();
    let backup = services
        .operations
        .backup(authorized.backend, target, deadline)
        .await?;
    let cached = services.response_cache.response_for(target, backup);
    conditional_response(request.headers(), media, cached.body, &cached.tag)
}

pub(in crate::gate) async fn list_backups(
    services: &Services,
    authorized: &AuthorizedRequest<'_>,
    vm: &VmId,
    body: &mut IncomingBody<'_>,
) -> Result<ResponseDraft, Refusal> {
    let request = authorized.request;
    let media = request.media_type()?;
    body.skip().await?;
    let listed = ListedBackups::parse(request.query, vm, request.received.is_strict)?;
    let query = listed.query.clone();
    let found = visible_backups(services, request.caller, authorized.backend, vm, query).await?;
    let bytes = wire::backups(services.public_url(), vm, &found.backups, found.count);
    let tag = conditional::entity_tag(&bytes);
    let mut draft = conditional_response(request.headers(), media, bytes, &tag)?;
    if let Some(last) = found.backups.last().filter(|_| found.more) {
        draft.set(header::LINK, &listed.next_link(last));
    }
    Ok(draft)
}

pub(in crate::gate) async fn read_vm(
    services: &Services,
    authorized: &AuthorizedRequest<'_>,
    vm: &VmId,
    body: &mut IncomingBody<'_>,
) -> Result<ResponseDraft, Refusal> {
    let request = authorized.request;
    let backend = authorized.backend;
    let media = request.media_type()?;
    body.skip().await?;
    let deadline = services.read_deadline();
    let found = services.operations.vm(backend, vm, deadline).await?;
    let visible = visible_backups(
        services,
        request.caller,
        backend,
        vm,
        BackupQuery::default(),
    )
    .await?;
    let bytes = wire::vm(services.public_url(), &found, &visible.backups);
    let tag = conditional::entity_tag(&bytes);
    conditional_response(request.headers(), media, bytes, &tag)
}

/// A representation with its tag, under the conditions of the request.
pub(super) fn conditional_response(
    headers: &HeaderMap,
    media: &'static str,
    body: Bytes,
    tag: &str,
) -> Result<ResponseDraft, Refusal> {
    conditional::check_if_match(headers, tag)?;
    let is_known = conditional::matches_if_none_match(headers, tag);
    Ok(ResponseDraft::read(media, body).tagged(tag, is_known))
}
