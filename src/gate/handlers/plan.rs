//! Plans: what a restore or a delete would do, and everything that would refuse it. Nothing is changed or stored.
//!
//! What would refuse it is found by the same functions that refuse the change itself: those of the gate here, those of the VM
//! manager behind [`crate::operations::OperationsApi::preview`].

use crate::gate::handlers::change::check_body_headers;
use crate::gate::handlers::change::check_capability;
use crate::gate::handlers::change::check_state;
use crate::gate::handlers::change::read_expected_body;
use crate::gate::negotiate::BodyEncoding;
use crate::gate::refusal::Code;
use crate::gate::refusal::Refusal;
use crate::gate::request_bodies;
use crate::gate::request_bodies::PlanRequest;
use crate::gate::request_body::IncomingBody;
use crate::gate::request_context::AuthorizedRequest;
use crate::gate::response_draft::ResponseDraft;
use crate::gate::route::Route;
use crate::gate::services::Services;
use crate::gate::wire_plan;
use crate::gate::wire_plan::Plan;
use crate::model::Action;
use crate::model::ActionSet;
use crate::model::Backup;
use crate::model::BackupState;
use crate::model::Change;
use crate::model::FaultKind;
use crate::model::Intent;
use crate::model::Preview;
use crate::model::PublicText;
use crate::model::Target;
use crate::model::Verb;
use crate::model::limits;
use crate::operations::Forecast;
use crate::public_text;

/// Answers with the plan of the change that the body describes.
pub(in crate::gate) async fn make_plan(
    services: &Services,
    authorized: &AuthorizedRequest<'_>,
    route: &Route,
    body: &mut IncomingBody<'_>,
) -> Result<ResponseDraft, Refusal> {
    let (request, backend) = (authorized.request, authorized.backend);
    let Route::Plan(target) = route else {
        return Err(Refusal::from(Code::NoSuchRoute));
    };
    let encoding = check_body_headers(request, body)?;
    let media = request.media_type()?;
    let bytes = read_expected_body(request, encoding, body).await?;
    let capability = services.operations.capability(backend);
    let capability = capability.as_deref();
    let wanted = request_bodies::parse_plan(
        &bytes,
        encoding.unwrap_or(BodyEncoding::Json),
        capability.map_or(&[], |capability| capability.restore_options),
        request.received.is_strict,
    )?;
    check_permission(authorized, target, wanted.verb)?;
    let deadline = services.read_deadline();
    let current = services
        .operations
        .backup(backend, target, deadline)
        .await?;
    let intent = Intent {
        target: target.clone(),
        identity: Some(current.identity.clone()),
        change: change_of(&wanted),
    };
    let mut refused = Refusals::default();
    refused.add(check_state(&intent.change, &current).err());
    refused.add(check_capability(services, capability, wanted.verb).err());
    let forecast = if current.state == BackupState::Creating {
        // Until it is created there is nothing that a VM manager could be asked about.
        let vm = services
            .operations
            .vm(backend, &target.vm, deadline)
            .await?;
        Forecast {
            preview: Preview::unknown(vm, current),
            pending: Vec::new(),
            refused: None,
            duration: None,
        }
    } else {
        services
            .operations
            .preview(backend, &intent, deadline)
            .await?
    };
    let bytes = write_plan(services, authorized, &intent, &wanted, forecast, refused);
    let mut draft = ResponseDraft::read(media, bytes);
    draft.fix(http::header::CACHE_CONTROL, "no-store");
    Ok(draft)
}

/// A plan needs the right to do what it is about.
fn check_permission(
    authorized: &AuthorizedRequest<'_>,
    target: &Target,
    verb: Verb,
) -> Result<(), Refusal> {
    let action = match verb {
        Verb::Restore => Action::Restore,
        Verb::Delete => Action::Delete,
        Verb::Create | Verb::Update => return Err(Refusal::from(Code::NotPermitted)),
    };
    let caller = authorized.request.caller;
    let needed = ActionSet::NONE.with(action);
    let permit = caller
        .rights
        .issue_permit(&caller.principal, needed, authorized.backend, target);
    permit.map(drop)
}

fn change_of(wanted: &PlanRequest) -> Change {
    match wanted.verb {
        Verb::Restore => Change::Restore(wanted.options.clone()),
        Verb::Create | Verb::Update | Verb::Delete => Change::Delete,
    }
}

/// What would refuse the change, each code once: several checks may find the same.
#[derive(Default)]
struct Refusals(Vec<(Code, PublicText)>);

impl Refusals {
    fn add(&mut self, refusal: Option<Refusal>) {
        if let Some(refusal) = refusal
            && self.0.iter().all(|(code, _)| *code != refusal.code())
        {
            self.0.push((refusal.code(), refusal.text));
        }
    }

    /// Several reasons of the VM manager may have one code: two disks in use, for instance.
    fn add_every(&mut self, found: impl IntoIterator<Item = (Code, PublicText)>) {
        let before: Vec<Code> = self.0.iter().map(|(code, _)| *code).collect();
        let others = found.into_iter();
        self.0
            .extend(others.filter(|(code, _)| !before.contains(code)));
    }
}

/// Puts together what the VM manager and the gateway say.
fn write_plan(
    services: &Services,
    authorized: &AuthorizedRequest<'_>,
    intent: &Intent,
    wanted: &PlanRequest,
    forecast: Forecast,
    mut refused: Refusals,
) -> bytes::Bytes {
    let fingerprint = forecast.preview.fingerprint(&intent.change).to_string();
    let is_queued = !forecast.pending.is_empty() && forecast.refused.is_none();
    refused.add(forecast.refused.map(Refusal::from));
    let mut preview = forecast.preview;
    let mut warnings = std::mem::take(&mut preview.warnings);
    if is_queued {
        let count = forecast.pending.len();
        warnings.push(public_text!(
            "The VM has {count} unfinished operations, and this one would wait for them. What they change is not in this plan."
        ));
    }
    let faults = std::mem::take(&mut preview.refused);
    // A VM that is busy with those operations refuses nothing: it is asked when their turn is over.
    let faults = faults
        .into_iter()
        .filter(|fault| !is_queued || fault.kind != FaultKind::Busy);
    refused.add_every(faults.map(|fault| (Code::of_fault(fault.kind), fault.text)));
    let (shown, hidden) = visible_losses(authorized, &intent.target, &preview.loses);
    if hidden > 0 {
        warnings.push(public_text!(
            "{hidden} more backups of the VM, which this caller may not see, are removed with it."
        ));
    }
    wire_plan::plan(&Plan {
        verb: wanted.verb,
        target: &intent.target,
        vm: &preview.vm,
        backup: &preview.backup,
        overwrites: preview
            .overwrites
            .iter()
            .map(|disk| (disk.disk.as_str(), disk.size))
            .collect(),
        loses: shown,
        leaves: &preview.leaves,
        after: preview.after,
        needs: preview.needs.map(|needs| (needs.bytes, needs.free)),
        duration: forecast.duration,
        refused: refused
            .0
            .iter()
            .map(|(code, text)| (code.as_str(), text))
            .collect(),
        warnings: &warnings,
        unknown: &preview.unknown,
        ignored: &wanted.ignored,
        fingerprint,
        expires: services.clock.now().plus(limits::PLAN_LIFETIME),
    })
}

/// The backups that go with it, as far as the caller may know of them, and how many others there are.
fn visible_losses<'a>(
    authorized: &AuthorizedRequest<'_>,
    target: &Target,
    loses: &'a [Backup],
) -> (Vec<&'a Backup>, usize) {
    let rights = &authorized.request.caller.rights;
    let (shown, hidden): (Vec<_>, Vec<_>) = loses
        .iter()
        .partition(|lost| !rights.actions_on_backup(&target.vm, &lost.id).is_empty());
    (shown, hidden.len())
}
