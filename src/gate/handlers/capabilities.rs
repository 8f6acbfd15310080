//! What can be done with the backups of a VM: the capability of its adapter.

use crate::gate::conditional;
use crate::gate::handlers::read::conditional_response;
use crate::gate::refusal::Code;
use crate::gate::refusal::Refusal;
use crate::gate::request_body::IncomingBody;
use crate::gate::request_context::AuthorizedRequest;
use crate::gate::response_draft::ResponseDraft;
use crate::gate::services::Services;
use crate::gate::wire;
use crate::model::VmId;

pub(in crate::gate) async fn read_capabilities(
    services: &Services,
    authorized: &AuthorizedRequest<'_>,
    vm: &VmId,
    body: &mut IncomingBody<'_>,
) -> Result<ResponseDraft, Refusal> {
    let request = authorized.request;
    let media = request.media_type()?;
    body.skip().await?;
    let operations = &services.operations;
    let capability = operations.capability(authorized.backend);
    let capability = capability.ok_or_else(|| Refusal::from(Code::NoSuchVm))?;
    // Only of a VM that exists, as every resource below a VM.
    let deadline = services.read_deadline();
    operations.vm(authorized.backend, vm, deadline).await?;
    let bytes = wire::capabilities(&capability);
    let tag = conditional::entity_tag(&bytes);
    conditional_response(request.headers(), media, bytes, &tag)
}
