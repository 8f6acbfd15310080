//! Statuses: one by its number or by the source's forms without one, and lists of the caller's own.

use std::sync::Arc;
use std::time::Duration;

use http::header;

use crate::gate::authn::AuthenticatedCaller;
use crate::gate::conditional;
use crate::gate::handlers::all_statuses;
use crate::gate::handlers::event_stream;
use crate::gate::handlers::events;
use crate::gate::handlers::operation_access::may_see;
use crate::gate::handlers::read::conditional_response;
use crate::gate::handlers::status_query::StatusQuery;
use crate::gate::handlers::status_query::operation_number;
use crate::gate::handlers::waiting::wait_for_operation;
use crate::gate::header_names::PREFERENCE_APPLIED;
use crate::gate::header_names::RETRY_SOON;
use crate::gate::links;
use crate::gate::negotiate;
use crate::gate::negotiate::Representation;
use crate::gate::refusal::Code;
use crate::gate::refusal::Refusal;
use crate::gate::request_body::IncomingBody;
use crate::gate::request_context::AuthenticatedRequest;
use crate::gate::request_report::RequestReport;
use crate::gate::request_target::page_limit;
use crate::gate::response_draft::ResponseDraft;
use crate::gate::services::Services;
use crate::gate::wire;
use crate::model::Action;
use crate::model::Operation;
use crate::model::limits;
use crate::operations::ListQuery;
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
        Representation::Statuses
    };
    let headers = request.headers();
    let is_strict = request.received.is_strict;
    let media = negotiate::choose_media_type(headers, representation, is_strict)?;
    let is_stream = media == negotiate::EVENTS;
    let last_event = if is_stream {
        event_stream::last_event_id(headers)?
    } else {
        None
    };
    // An id is read before anything is looked up: what is wrong with it does not depend on what there is.
    let last_of_one = last_event.filter(|_| query.names_one());
    let last_of_one = last_of_one.map(events::parse_id).transpose()?;
    body.skip().await?;
    if !query.names_one() && is_stream {
        report.route = event_stream::ROUTE_NAME;
        return all_statuses::begin_stream(services, request, &query, last_event);
    }
    if !query.names_one() {
        return list_statuses(services, request, &query, media).await;
    }
    let found = find_operation(services, request.caller, &query).await?;
    report.operation = Some(found.seq);
    if is_stream {
        report.route = event_stream::ROUTE_NAME;
        return events::begin_stream(services, request, found, last_of_one);
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
    // Callers who observe nothing see their own operations only; the store finds those faster.
    let observes = caller.rights.allows_anywhere(Action::Observe);
    let list = ListQuery {
        principal: (!observes).then(|| caller.principal.name.clone()),
        selector: query.selector()?,
        before: None,
        unfinished: None,
        limit: limits::PAGE_MAX,
    };
    let all = services.operations.list(&list).await?;
    let mut visible = all
        .into_iter()
        .filter(|operation| may_see(caller, operation));
    let newest = visible.next();
    let vm = newest.as_ref().map(|newest| newest.target().vm.clone());
    if visible.any(|operation| Some(&operation.target().vm) != vm.as_ref()) {
        return Err(Refusal::from(Code::AmbiguousStatus).on("vm"));
    }
    Ok(newest)
}

/// The caller's own operations, newest first.
async fn list_statuses(
    services: &Services,
    request: &AuthenticatedRequest<'_>,
    query: &StatusQuery,
    media: &'static str,
) -> Result<ResponseDraft, Refusal> {
    let caller = request.caller;
    let limit = page_limit(request.query)?;
    let list = ListQuery {
        principal: Some(caller.principal.name.clone()),
        selector: query.selector()?,
        before: operation_number(request.query, "before")?,
        unfinished: None,
        limit,
    };
    let found = services.operations.list(&list).await?;
    let visible = found.iter().map(|operation| &**operation);
    let visible = visible.filter(|operation| may_see(caller, operation));
    let mut draft = ResponseDraft::read(media, wire::statuses(visible));
    // A full page may be the last one; the next is empty then.
    if let Some(last) = found.last().filter(|_| found.len() >= usize::from(limit)) {
        draft.set(header::LINK, &next_link(&list, last));
    }
    Ok(draft)
}

/// The value of `Link` that leads to the page after `last`.
fn next_link(list: &ListQuery, last: &Operation) -> String {
    let mut next = format!("</statuses?limit={}&before={}", list.limit, last.seq);
    if let Some(verb) = list.selector.verb {
        next.push_str("&op=");
        next.push_str(links::op(verb));
    }
    if let Some(vm) = &list.selector.vm {
        next.push_str("&vm=");
        next.extend(links::encoded(vm.as_str()));
    }
    next.push_str(">; rel=\"next\"");
    next
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
