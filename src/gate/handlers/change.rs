//! Changes: create, update, delete and restore, by one pipeline up to the durable acceptance.
//!
//! body and media types -> the change that the body describes -> its permit -> idempotency key -> conditions and current
//! state -> capability of the backend -> acceptance. Nothing has changed until the last step.

use std::sync::Arc;

use bytes::Bytes;
use http::header;

use crate::gate::audit_entry::AuditOutcome;
use crate::gate::authn::AuthenticatedCaller;
use crate::gate::conditional;
use crate::gate::framing;
use crate::gate::handlers::accepted::respond_accepted;
use crate::gate::handlers::accepted::respond_joined;
use crate::gate::handlers::current_state::Conditions;
use crate::gate::handlers::current_state::check_list_conditions;
use crate::gate::handlers::current_state::check_name_is_free;
use crate::gate::handlers::current_state::check_plan;
use crate::gate::handlers::current_state::read_current_backup;
use crate::gate::handlers::idempotency::KeyLookup;
use crate::gate::handlers::idempotency::look_up_key;
use crate::gate::handlers::operation_access::may_see;
use crate::gate::links;
use crate::gate::negotiate;
use crate::gate::negotiate::BodyEncoding;
use crate::gate::refusal::Code;
use crate::gate::refusal::Refusal;
use crate::gate::request_bodies;
use crate::gate::request_body::IncomingBody;
use crate::gate::request_context::AuthenticatedRequest;
use crate::gate::request_context::AuthorizedRequest;
use crate::gate::request_report::RequestReport;
use crate::gate::response_draft::ResponseDraft;
use crate::gate::route::ExpectedBody;
use crate::gate::route::Route;
use crate::gate::services::Services;
use crate::model::Action;
use crate::model::ActionSet;
use crate::model::Backup;
use crate::model::BackupPatch;
use crate::model::BackupState;
use crate::model::Change;
use crate::model::FaultKind;
use crate::model::Idempotency;
use crate::model::IgnoredMembers;
use crate::model::Intent;
use crate::model::KeyScope;
use crate::model::NewBackup;
use crate::model::Note;
use crate::model::Operation;
use crate::model::OperationSeq;
use crate::model::Permit;
use crate::model::Precondition;
use crate::model::Target;
use crate::model::Verb;
use crate::model::VmId;
use crate::operations::AcceptError;
use crate::operations::Accepted;
use crate::operations::Capability;
use crate::operations::Origin;
use crate::operations::Submission;
use crate::public_text;

/// A change as the request describes it: validated, but not yet judged against the state of the VM.
struct ChangeRequest {
    change: Change,
    /// What the caller must be allowed to do on the backup.
    needed: ActionSet,
    note: Option<Note>,
    ignored: IgnoredMembers,
}

/// What a change is about.
enum Subject {
    /// A backup that exists, and the proof that the caller may change it.
    Existing(Target, Permit),
    /// A new backup of this VM. Its permit for these actions follows once its id is known.
    New(VmId, ActionSet),
}

/// A backup that exists, the proof that the caller may change it, and the plan that must still be right.
struct ExistingBackup<'a> {
    target: Target,
    permit: Permit,
    plan: Option<&'a str>,
}

/// A change that the current state allows.
struct JudgedChange {
    permit: Permit,
    seq: OperationSeq,
    intent: Intent,
    conditions: Conditions,
}

/// What follows from judging a change.
enum Verdict {
    Submit(Box<JudgedChange>),
    /// The same delete is under way already.
    Join(Arc<Operation>),
}

/// Accepts a change, or answers with the operation that the same request led to before.
pub(in crate::gate) async fn change(
    services: &Services,
    authorized: &AuthorizedRequest<'_>,
    route: Route,
    verb: Verb,
    body: &mut IncomingBody<'_>,
    report: &mut RequestReport,
) -> Result<ResponseDraft, Refusal> {
    let request = authorized.request;
    let encoding = check_body_headers(request, body)?;
    let media = request.media_type()?;
    let bytes = read_expected_body(request, encoding, body).await?;
    let capability = services.operations.capability(authorized.backend);
    let described = describe_change(request, verb, capability.as_deref(), encoding, &bytes)?;
    report.note(|entry| entry.note.clone_from(&described.note));
    let plan = required_plan(request, verb)?;
    let subject = find_subject(authorized, route, described.needed)?;
    let scope = || key_scope(verb, &subject);
    let idempotency = match look_up_key(services, request, scope, &bytes).await? {
        KeyLookup::New(idempotency) => idempotency,
        KeyLookup::Replayed(operation) => {
            return Ok(respond_joined(services, request, media, operation, report).await);
        }
    };
    let capability = capability.as_deref();
    let verdict = match (subject, described.change) {
        (Subject::New(vm, needed), Change::Create(new)) => {
            judge_create(services, authorized, capability, (vm, needed), new, report).await?
        }
        (Subject::Existing(target, permit), change) => {
            let existing = ExistingBackup {
                target,
                permit,
                plan,
            };
            judge_existing(services, authorized, capability, existing, change).await?
        }
        // The table of routes has only creates on lists.
        (Subject::New(..), Change::Update(_) | Change::Delete | Change::Restore(_)) => {
            return Err(Refusal::from(Code::NoSuchRoute));
        }
    };
    let judged = match verdict {
        Verdict::Submit(judged) => judged,
        Verdict::Join(operation) => {
            return Ok(respond_joined(services, request, media, operation, report).await);
        }
    };
    let kept = KeptBeside {
        note: described.note,
        idempotency,
        ignored: described.ignored,
    };
    submit(services, request, media, judged, kept, report).await
}

/// Checks the type and the presence of the body by its headers.
pub(super) fn check_body_headers(
    request: &AuthenticatedRequest<'_>,
    body: &IncomingBody<'_>,
) -> Result<Option<BodyEncoding>, Refusal> {
    let headers = request.headers();
    let is_strict = request.received.is_strict;
    match request.endpoint.body {
        ExpectedBody::Ignored => Ok(None),
        ExpectedBody::Required(entity) => {
            let encoding = negotiate::body_encoding(headers, entity, is_strict)?;
            if !body.is_present() && !framing::has_body_framing(headers) {
                return Err(Refusal::from(Code::LengthRequired));
            }
            if encoding.is_none() && body.is_present() {
                return Err(negotiate::unsupported_media_type(entity, is_strict));
            }
            Ok(encoding)
        }
        ExpectedBody::Optional(entity) => {
            let encoding = negotiate::body_encoding(headers, entity, is_strict)?;
            if encoding.is_none() && framing::announces_content(headers) {
                return Err(negotiate::unsupported_media_type(entity, is_strict));
            }
            Ok(encoding)
        }
    }
}

/// The body, as far as the request is expected to have one.
pub(super) async fn read_expected_body(
    request: &AuthenticatedRequest<'_>,
    encoding: Option<BodyEncoding>,
    body: &mut IncomingBody<'_>,
) -> Result<Bytes, Refusal> {
    let bytes = body.read().await?;
    match request.endpoint.body {
        // What is ignored is no part of the request: two deletes with different bodies are the same.
        ExpectedBody::Ignored => Ok(Bytes::new()),
        // Only now is it known whether a chunked body is empty.
        ExpectedBody::Optional(entity) if encoding.is_none() && !bytes.is_empty() => {
            let is_strict = request.received.is_strict;
            Err(negotiate::unsupported_media_type(entity, is_strict))
        }
        ExpectedBody::Required(_) | ExpectedBody::Optional(_) => Ok(bytes),
    }
}

fn describe_change(
    request: &AuthenticatedRequest<'_>,
    verb: Verb,
    capability: Option<&Capability>,
    encoding: Option<BodyEncoding>,
    body: &[u8],
) -> Result<ChangeRequest, Refusal> {
    let is_strict = request.received.is_strict;
    let described = |change, needed, ignored| ChangeRequest {
        change,
        needed,
        note: None,
        ignored,
    };
    Ok(match verb {
        Verb::Create => {
            let (new, ignored) = request_bodies::parse_create(body, is_strict)?;
            let mut needed = ActionSet::NONE.with(Action::Create);
            if new.protected {
                needed = needed.with(Action::Protect);
            }
            described(Change::Create(new), needed, ignored)
        }
        Verb::Update => {
            let (patch, ignored) = request_bodies::parse_update(body, is_strict)?;
            let needed = actions_of_patch(&patch);
            described(Change::Update(patch), needed, ignored)
        }
        Verb::Delete => {
            let needed = ActionSet::NONE.with(Action::Delete);
            described(Change::Delete, needed, IgnoredMembers::default())
        }
        Verb::Restore => {
            let options = capability.map_or(&[][..], |capability| capability.restore_options);
            let encoding = encoding.unwrap_or(BodyEncoding::Json);
            let restore = request_bodies::parse_restore(body, encoding, options, is_strict)?;
            ChangeRequest {
                change: Change::Restore(restore.options),
                needed: ActionSet::NONE.with(Action::Restore),
                note: restore.note,
                ignored: restore.ignored,
            }
        }
    })
}

/// `protected` alone needs `protect`, everything else `update`.
fn actions_of_patch(patch: &BackupPatch) -> ActionSet {
    let BackupPatch {
        name,
        description,
        tags,
        protected,
    } = patch;
    let mut needed = ActionSet::NONE;
    if name.is_some() || !description.is_keep() || !tags.is_keep() {
        needed = needed.with(Action::Update);
    }
    if !protected.is_keep() {
        needed = needed.with(Action::Protect);
    }
    needed
}

fn find_subject(
    authorized: &AuthorizedRequest<'_>,
    route: Route,
    needed: ActionSet,
) -> Result<Subject, Refusal> {
    let caller = authorized.request.caller;
    match route {
        Route::Backup(target) | Route::Restore(target) => {
            let permit = caller.rights.issue_permit(
                &caller.principal,
                needed,
                authorized.backend,
                &target,
            )?;
            Ok(Subject::Existing(target, permit))
        }
        Route::Backups(vm) => {
            // The permit follows with the id; until then `protect` on some backup of the VM is all that can be checked.
            if needed.contains(Action::Protect) {
                caller.rights.check_vm(&vm, Action::Protect)?;
            }
            Ok(Subject::New(vm, needed))
        }
        Route::Plan(_)
        | Route::BackUp
        | Route::Vms
        | Route::Vm(_)
        | Route::Capabilities(_)
        | Route::Permissions
        | Route::Statuses
        | Route::Versions
        | Route::Document
        | Route::Root => Err(Refusal::from(Code::NoSuchRoute)),
    }
}

fn key_scope(verb: Verb, subject: &Subject) -> KeyScope {
    let (vm, backup) = match subject {
        Subject::Existing(target, _) => (&target.vm, Some(&target.backup)),
        Subject::New(vm, _) => (vm, None),
    };
    KeyScope {
        verb,
        vm: vm.clone(),
        backup: backup.cloned(),
    }
}

/// Judges an update, a delete or a restore.
async fn judge_existing(
    services: &Services,
    authorized: &AuthorizedRequest<'_>,
    capability: Option<&Capability>,
    existing: ExistingBackup<'_>,
    change: Change,
) -> Result<Verdict, Refusal> {
    let target = existing.target;
    if matches!(change, Change::Delete)
        // Deviation D16: a repeated delete is answered with the Status of the first, whatever has become of the backup.
        && let Some(running) = services
            .operations
            .find_running_delete(authorized.backend, &target)
    {
        check_repeated_delete(services, authorized, &target, existing.plan).await?;
        return Ok(Verdict::Join(running));
    }
    let (current, mut conditions) = read_current_backup(services, authorized, &target).await?;
    let intent = Intent {
        target,
        identity: Some(current.identity.clone()),
        change,
    };
    if let Some(plan) = existing.plan {
        let unchanged = check_plan(services, authorized, &intent, plan).await?;
        conditions.preconditions.push(unchanged);
    }
    check_state(&intent.change, &current)?;
    if let Change::Update(patch) = &intent.change
        && let Some(name) = patch.name.as_ref().filter(|name| **name != current.name)
    {
        let (backend, own) = (authorized.backend, Some(&intent.target.backup));
        check_name_is_free(services, backend, &intent.target.vm, name, own).await?;
    }
    check_capability(services, capability, intent.verb())?;
    Ok(Verdict::Submit(Box::new(JudgedChange {
        permit: existing.permit,
        seq: services.operations.reserve(),
        intent,
        conditions,
    })))
}

/// Judges a create, whose backup gets its id here.
async fn judge_create(
    services: &Services,
    authorized: &AuthorizedRequest<'_>,
    capability: Option<&Capability>,
    (vm, needed): (VmId, ActionSet),
    new: NewBackup,
    report: &mut RequestReport,
) -> Result<Verdict, Refusal> {
    let backend = authorized.backend;
    let caller = authorized.request.caller;
    let conditions = check_list_conditions(services, authorized, &vm).await?;
    check_name_is_free(services, backend, &vm, &new.name, None).await?;
    let capability = check_capability(services, capability, Verb::Create)?;
    if new
        .kind
        .is_some_and(|kind| !capability.kinds.contains(&kind))
    {
        let text = public_text!("The VM manager of this VM does not support backups of this type.");
        return Err(Refusal::says(Code::Unsupported, text).on("type"));
    }
    let seq = services.operations.reserve();
    let backup = services.operations.mint_backup_id(backend, &new, seq)?;
    report.note(|entry| entry.backup = Some(backup.clone()));
    let target = Target { vm, backup };
    // Grants name backups by patterns of their ids, so only now can it be decided whether they allow this one.
    let permit = caller
        .rights
        .issue_permit(&caller.principal, needed, backend, &target)?;
    Ok(Verdict::Submit(Box::new(JudgedChange {
        permit,
        seq,
        intent: Intent {
            target,
            identity: None,
            change: Change::Create(new),
        },
        conditions,
    })))
}

/// Whether the state of the backup allows the change.
pub(super) fn check_state(change: &Change, current: &Backup) -> Result<(), Refusal> {
    let is_creating = current.state == BackupState::Creating;
    match change {
        Change::Create(_) => Ok(()),
        // Until it is created a backup has no identity that a change could name: what has its id later may be another one.
        Change::Update(_) | Change::Delete if is_creating => Err(Refusal::from(Code::NotReady)),
        Change::Update(_) => Ok(()),
        Change::Delete => {
            // One that is being deleted is past its protection.
            if current.protected && current.state != BackupState::Deleting {
                return Err(Refusal::from(Code::BackupProtected));
            }
            Ok(())
        }
        Change::Restore(_) => {
            if is_creating || current.state == BackupState::Error {
                return Err(Refusal::from(Code::NotReady));
            }
            Ok(())
        }
    }
}

/// Refuses what the backend cannot do, and every change while nothing can be made durable.
pub(super) fn check_capability<'a>(
    services: &Services,
    capability: Option<&'a Capability>,
    verb: Verb,
) -> Result<&'a Capability, Refusal> {
    let capability = capability.ok_or_else(|| Refusal::from(Code::NoSuchVm))?;
    if capability.verb(verb).is_none() {
        return Err(Refusal::from(Code::of_fault(FaultKind::Unsupported)));
    }
    if !services.operations.is_ready() {
        return Err(Refusal::from(Code::StoreUnavailable));
    }
    Ok(capability)
}

/// Checks the conditions of a repeated delete. The first one changed the backup, so no tag can match any more: not even the
/// one of what is still read while the backend has not shown the delete yet.
async fn check_repeated_delete(
    services: &Services,
    authorized: &AuthorizedRequest<'_>,
    target: &Target,
    plan: Option<&str>,
) -> Result<(), Refusal> {
    // A plan was made before the first delete, which changed what it was about.
    if plan.is_some() {
        return Err(Refusal::from(Code::PlanStale));
    }
    if !conditional::is_conditional(authorized.request.headers()) {
        return Ok(());
    }
    let (_, conditions) = read_current_backup(services, authorized, target).await?;
    let mut conditions = conditions.preconditions.iter();
    if conditions.all(|condition| *condition == Precondition::BackupPresent) {
        Ok(())
    } else {
        Err(Refusal::from(Code::PreconditionFailed))
    }
}

/// What is kept with an operation beside its intent.
struct KeptBeside {
    note: Option<Note>,
    idempotency: Option<Idempotency>,
    ignored: IgnoredMembers,
}

/// Makes the change durable. Whatever happens afterwards is reported by the Status.
async fn submit(
    services: &Services,
    request: &AuthenticatedRequest<'_>,
    media: &'static str,
    judged: Box<JudgedChange>,
    kept: KeptBeside,
    report: &mut RequestReport,
) -> Result<ResponseDraft, Refusal> {
    let caller = request.caller;
    let submission = Submission {
        seq: judged.seq,
        intent: judged.intent,
        preconditions: judged.conditions.preconditions,
        known_changes: judged.conditions.known_changes,
        request: request.received.id.clone(),
        note: kept.note,
        idempotency: kept.idempotency,
        ignored: kept.ignored,
        origin: Origin {
            token: caller.token.clone(),
            client: request.received.client.address,
        },
    };
    let stale = stale_code(&submission.preconditions);
    let accepted = services.operations.accept(judged.permit, submission).await;
    let accepted = accepted.map_err(|error| match &error {
        AcceptError::Busy(other) => busy(caller, other),
        AcceptError::PreconditionFailed => Refusal::from(stale),
        AcceptError::NotPermitted
        | AcceptError::NoSuchBackend
        | AcceptError::KeyReused(_)
        | AcceptError::VmQueueFull
        | AcceptError::QueueFull
        | AcceptError::Backend(_)
        | AcceptError::Stopping
        | AcceptError::NotRecorded
        | AcceptError::Store(_) => Refusal::from(error),
    })?;
    Ok(match accepted {
        Accepted::Existing(operation) => {
            respond_joined(services, request, media, operation, report).await
        }
        Accepted::New(operation) => {
            // The operations room wrote the line of the audit trail together with the operation.
            report.note(|entry| {
                entry.outcome = AuditOutcome::Accepted;
                entry.written = true;
            });
            respond_accepted(services, request, media, operation, report).await
        }
    })
}

/// The plan that the caller looked at. It is of a restore or a delete: a condition that nothing checks must not seem to hold.
fn required_plan<'a>(
    request: &'a AuthenticatedRequest<'_>,
    verb: Verb,
) -> Result<Option<&'a str>, Refusal> {
    let plan = conditional::required_plan(request.headers())?;
    match verb {
        Verb::Create | Verb::Update if plan.is_some() => {
            let text = public_text!(
                "The If-Plan header applies to restores and deletes only; nothing was changed."
            );
            Err(Refusal::says(Code::InvalidParameter, text).on("If-Plan"))
        }
        Verb::Create | Verb::Update | Verb::Delete | Verb::Restore => Ok(plan),
    }
}

/// The code when another change came between the check of these and the acceptance.
fn stale_code(preconditions: &[Precondition]) -> Code {
    let is_plan = |precondition: &Precondition| match precondition {
        Precondition::PlanUnchanged(_) => true,
        Precondition::BackupUnchanged(_)
        | Precondition::BackupPresent
        | Precondition::ListUnchanged(_) => false,
    };
    if preconditions.iter().all(is_plan) {
        Code::PlanStale
    } else {
        Code::PreconditionFailed
    }
}

/// Names the operation that the VM is busy with to those who may see it.
fn busy(caller: &AuthenticatedCaller, other: &Operation) -> Refusal {
    let refusal = Refusal::from(Code::Busy);
    if may_see(caller, other) {
        refusal.with(header::LOCATION, &links::status(other))
    } else {
        refusal
    }
}
