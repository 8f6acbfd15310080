//! Statuses: one by its number or by the source's forms without one, and lists.

use std::sync::Arc;
use std::time::Duration;

use http::header;

use crate::gate::authn::AuthenticatedCaller;
use crate::gate::conditional;
use crate::gate::handlers::events;
use crate::gate::handlers::operation_access::may_see;
use crate::gate::handlers::operation_access::visibility_for;
use crate::gate::handlers::read::conditional_response;
use crate::gate::handlers::status_list::list_statuses;
use crate::gate::handlers::status_query::StatusQuery;
use crate::gate::handlers::waiting::wait_for_operation;
use crate::gate::header_names::PREFERENCE_APPLIED;
use crate::gate::header_names::RETRY_SOON;
use crate::gate::negotiate;
use crate::gate::negotiate::Representation;
use crate::gate::refusal::Code;
use crate::gate::refusal::Refusal;
use crate::gate::request_body::IncomingBody;
use crate::gate::request_context::AuthenticatedRequest;
use crate::gate::request_report::RequestReport;
use crate::gate::response_draft::ResponseDraft;
use crate::gate::services::Services;
use crate::gate::wire;
use crate::model::Action;
use crate::model::Operation;
use crate::model::limits;
use crate::operations::ListQuery;
use crate::operations::ListStart;
use crate::operations::WaitFor;

pub(in crate::gate) async fn read_statuses(
    services: &Services,
    request: &AuthenticatedRequest<'_>,
    body: &mut IncomingBody<'_>,
    report: &mut RequestReport,
) -> Result<ResponseDraft, Refusal> {
    let query = StatusQuery::parse(request.query)?;
    let representation = if query.names_one() {
        request.endpoint.response
    } else {
        Representation::Own(negotiate::STATUSES)
    };
    let headers = request.headers();
    let is_strict = request.received.is_strict;
    let media = negotiate::choose_media_type(headers, representation, is_strict)?;
    let is_stream = media == negotiate::EVENTS;
    let last_event = if is_stream {
        events::last_event_id(headers)?
    } else {
        None
    };
    body.skip().await?;
    if !query.names_one() {
        return list_statuses(services, request, &query, media).await;
    }
    let found = find_operation(services, request.caller, &query).await?;
    report.operation = Some(found.seq);
    if is_stream {
        report.route = events::ROUTE_NAME;
        return events::begin_stream(services, request, found, last_event);
    }
    let (operation, waited) = wait_as_preferred(services, request, found).await?;
    let tag = conditional::status_tag(&operation);
    let mut draft = conditional_response(headers, media, wire::status(&operation), &tag)?;
    if !operation.phase.is_final() {
        draft.headers.insert(header::RETRY_AFTER, RETRY_SOON);
    }
    if let Some(time) = waited {
        draft.set(PREFERENCE_APPLIED, &format!("wait={}", time.as_secs()));
    }
    Ok(draft)
}

/// The one operation that the query means, if the caller may see it.
async fn find_operation(
    services: &Services,
    caller: &AuthenticatedCaller,
    query: &StatusQuery,
) -> Result<Arc<Operation>, Refusal> {
    let found = match query.seq {
        Some(seq) => services.operations.operation(seq).await?,
        None => find_newest(services, caller, query).await?,
    };
    found
        .filter(|operation| may_see(caller, operation) && query.matches(operation))
        .ok_or_else(|| Refusal::from(Code::NoSuchStatus))
}

/// Deviation D7: the newest operation that matches and that the caller may see, if all of these are on one VM.
async fn find_newest(
    services: &Services,
    caller: &AuthenticatedCaller,
    query: &StatusQuery,
) -> Result<Option<Arc<Operation>>, Refusal> {
    let observes = caller.rights.allows_anywhere(Action::Observe);
    let mut list = ListQuery {
        // Callers who observe nothing see their own operations only.
        principal: (!observes).then(|| caller.principal.name.clone()),
        selector: query.selector()?,
        visible: visibility_for(caller, !observes),
        limit: limits::PAGE_MAX,
        ..ListQuery::default()
    };
    let mut newest: Option<Arc<Operation>> = None;
    // Pages may be short or empty where most operations on the backup are not what is looked for.
    for _ in 0..=limits::LIST_SEARCH_MAX / limits::LIST_WORK_MAX {
        let page = services.operations.list(&list).await?;
        let is_full = page.operations.len() >= usize::from(limits::PAGE_MAX);
        for operation in page.operations {
            let first = newest.get_or_insert_with(|| Arc::clone(&operation));
            if first.target().vm != operation.target().vm {
                return Err(Refusal::from(Code::AmbiguousStatus).on("vm"));
            }
        }
        list.start = page.next.map(ListStart::After);
        if is_full || list.start.is_none() {
            break;
        }
    }
    Ok(newest)
}

/// Holds back the answer about an unfinished operation as the caller prefers: without `If-None-Match` until its end, with it
/// until the next change after the state that the caller knows.
async fn wait_as_preferred(
    services: &Services,
    request: &AuthenticatedRequest<'_>,
    operation: Arc<Operation>,
) -> Result<(Arc<Operation>, Option<Duration>), Refusal> {
    let Some(time) = request.received.preferences.wait else {
        return Ok((operation, None));
    };
    let headers = request.headers();
    let until = if headers.contains_key(header::IF_NONE_MATCH) {
        let tag = conditional::status_tag(&operation);
        // The caller knows another state: the current one is news already.
        if !conditional::matches_if_none_match(headers, &tag) {
            return Ok((operation, None));
        }
        WaitFor::ChangeAfter(operation.revision)
    } else {
        WaitFor::End
    };
    if operation.phase.is_final() {
        return Ok((operation, None));
    }
    let time = time.min(services.config.limits.wait);
    wait_for_operation(services, request, operation, until, time).await
}
