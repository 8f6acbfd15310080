//! Deviation D33: lists of Statuses: what the caller may see, filtered, in pages, perhaps counted.

use crate::gate::authn::AuthenticatedCaller;
use crate::gate::handlers::operation_access::visibility_for;
use crate::gate::handlers::status_query::StatusQuery;
use crate::gate::links;
use crate::gate::list_query::ListLink;
use crate::gate::list_query::ListParameters;
use crate::gate::list_query::malformed_cursor;
use crate::gate::list_query::parse_time;
use crate::gate::refusal::Code;
use crate::gate::refusal::Refusal;
use crate::gate::request_context::AuthenticatedRequest;
use crate::gate::response_draft::ResponseDraft;
use crate::gate::services::Services;
use crate::gate::wire;
use crate::model::Action;
use crate::model::OperationSeq;
use crate::model::OperationState;
use crate::model::PrincipalName;
use crate::model::Timestamp;
use crate::operations::ListCount;
use crate::operations::ListOrder;
use crate::operations::ListPage;
use crate::operations::ListPosition;
use crate::operations::ListQuery;
use crate::operations::ListStart;
use crate::public_text;

const KNOWN: &[&str] = &[
    "op",
    "vm",
    "b",
    "backup",
    "state",
    "principal",
    "since",
    "before",
    "sort",
    "limit",
    "cursor",
    "count",
];

/// The value of `principal` that stands for the caller.
const CALLER: &str = "me";

/// A query with the link that leads to its other pages.
struct ListedStatuses {
    query: ListQuery,
    link: ListLink,
}

/// The Statuses that match and that the caller may see.
pub(super) async fn list_statuses(
    services: &Services,
    request: &AuthenticatedRequest<'_>,
    query: &StatusQuery,
    media: &'static str,
) -> Result<ResponseDraft, Refusal> {
    let mut listed = parse_list(request, query)?;
    let found = if narrow_to_caller(request.caller, &mut listed.query) {
        services.operations.list(&listed.query).await?
    } else {
        ListPage {
            count: listed.query.count.then_some(ListCount::Exact(0)),
            ..ListPage::default()
        }
    };
    let operations = found.operations.iter().map(|operation| &**operation);
    let mut draft = ResponseDraft::read(media, wire::statuses(operations, found.count));
    if let Some(next) = found.next {
        let ListQuery { limit, count, .. } = listed.query;
        let link = listed.link.next(limit, count, &position_bytes(next));
        draft.set(http::header::LINK, &link);
    }
    Ok(draft)
}

/// Leaves only what the caller may see; `false` when that is nothing.
fn narrow_to_caller(caller: &AuthenticatedCaller, query: &mut ListQuery) -> bool {
    let own = &caller.principal.name;
    // The index by principal serves callers who observe nothing.
    if !caller.rights.allows_anywhere(Action::Observe) {
        if query.principal.as_ref().is_some_and(|name| name != own) {
            return false;
        }
        query.principal = Some(own.clone());
    }
    let is_own = query.principal.as_ref() == Some(own);
    query.visible = visibility_for(caller, is_own);
    true
}

fn parse_list(
    request: &AuthenticatedRequest<'_>,
    query: &StatusQuery,
) -> Result<ListedStatuses, Refusal> {
    let is_strict = request.received.is_strict;
    let parameters = ListParameters::new(request.query, KNOWN, is_strict)?;
    let mut link = ListLink::new("/statuses".to_owned());
    let selector = query.selector()?;
    if let Some(verb) = selector.verb {
        link.push("op", links::op(verb));
    }
    if let Some(vm) = &selector.vm {
        link.push("vm", vm.as_str());
    }
    if let Some(backup) = &selector.backup {
        link.push("b", backup.as_str());
    }
    let states = OperationState::ALL.map(|state| (state.as_str(), state));
    let state = parameters.word("state", &states)?;
    if let Some(state) = state {
        link.push("state", state.as_str());
    }
    let principal = parse_principal(parameters, request.caller)?;
    if let Some(principal) = &principal {
        link.push("principal", principal.as_str());
    }
    let since = parameters.time("since")?;
    if let Some(text) = parameters.text("since")? {
        link.push("since", &text);
    }
    let sorts = [
        ("created", ListOrder::OldestFirst),
        ("-created", ListOrder::NewestFirst),
    ];
    let order = parameters.word("sort", &sorts)?.unwrap_or_default();
    let (before, after_operation) = parse_before(parameters, order, &mut link)?;
    if order == ListOrder::OldestFirst {
        link.push("sort", "created");
    }
    let position = link.position(parameters)?;
    let position = position.map(|bytes| parse_position(&bytes)).transpose()?;
    Ok(ListedStatuses {
        query: ListQuery {
            principal,
            selector,
            state,
            unfinished: None,
            since,
            before,
            visible: None,
            order,
            // The cursor goes on where the old one began.
            start: position.map(ListStart::After).or(after_operation),
            limit: parameters.limit()?,
            count: parameters.flag("count")?.unwrap_or_default(),
        },
        link,
    })
}

fn parse_principal(
    parameters: ListParameters<'_>,
    caller: &AuthenticatedCaller,
) -> Result<Option<PrincipalName>, Refusal> {
    let Some(text) = parameters.text("principal")? else {
        return Ok(None);
    };
    if text == CALLER {
        return Ok(Some(caller.principal.name.clone()));
    }
    PrincipalName::new(&text)
        .map(Some)
        .map_err(|error| Refusal::invalid_text(Code::InvalidParameter, "principal", &error))
}

/// `before` is a time, or the cursor of the first edition: the number of an operation, which the link does not repeat.
fn parse_before(
    parameters: ListParameters<'_>,
    order: ListOrder,
    link: &mut ListLink,
) -> Result<(Option<Timestamp>, Option<ListStart>), Refusal> {
    let Some(text) = parameters.text("before")? else {
        return Ok((None, None));
    };
    let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if !is_number {
        let time = parse_time("before", &text)?;
        link.push("before", &text);
        return Ok((Some(time), None));
    }
    if order == ListOrder::OldestFirst {
        let text = public_text!(
            "An operation number is for lists that begin with the newest. Use a time, or `cursor`."
        );
        return Err(Refusal::says(Code::InvalidParameter, text).on("before"));
    }
    let seq = text.parse().ok().and_then(OperationSeq::new);
    let seq = seq.ok_or_else(|| {
        let text = public_text!("The value is not an operation number.");
        Refusal::says(Code::InvalidParameter, text).on("before")
    })?;
    Ok((None, Some(ListStart::AfterOperation(seq))))
}

fn position_bytes(position: ListPosition) -> Vec<u8> {
    let (created, seq) = (position.created.as_millis(), position.seq.number());
    [created.to_be_bytes(), seq.to_be_bytes()].concat()
}

fn parse_position(bytes: &[u8]) -> Result<ListPosition, Refusal> {
    let parts = bytes.split_first_chunk::<8>();
    let position = parts.and_then(|(created, seq)| {
        let seq = u64::from_be_bytes(seq.try_into().ok()?);
        Some(ListPosition {
            created: Timestamp::from_millis(u64::from_be_bytes(*created)),
            seq: OperationSeq::new(seq)?,
        })
    });
    position.ok_or_else(malformed_cursor)
}
