//! What can be changed: create, update, delete and restore, up to the durable acceptance.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use http::header;

use crate::gate::authn::AuthenticatedCaller;
use crate::gate::authz;
use crate::gate::conditional;
use crate::gate::conditional::RequiredState;
use crate::gate::framing;
use crate::gate::handlers::statuses::may_see;
use crate::gate::links;
use crate::gate::negotiate;
use crate::gate::negotiate::BodyEncoding;
use crate::gate::negotiate::BodyEntity;
use crate::gate::pipeline::Call;
use crate::gate::pipeline::Gate;
use crate::gate::refusal::Code;
use crate::gate::refusal::Refusal;
use crate::gate::reply::PREFERENCE_APPLIED;
use crate::gate::reply::Reply;
use crate::gate::request::AuditEntry;
use crate::gate::request::AuditOutcome;
use crate::gate::request::Body;
use crate::gate::request_bodies;
use crate::gate::wire;
use crate::model::Action;
use crate::model::ActionSet;
use crate::model::BackendName;
use crate::model::Backup;
use crate::model::BackupId;
use crate::model::BackupName;
use crate::model::BackupPatch;
use crate::model::BackupState;
use crate::model::Change;
use crate::model::FaultKind;
use crate::model::Fingerprint;
use crate::model::Idempotency;
use crate::model::IdempotencyKey;
use crate::model::IgnoredMembers;
use crate::model::Intent;
use crate::model::KeyScope;
use crate::model::Note;
use crate::model::Operation;
use crate::model::OperationSeq;
use crate::model::Page;
use crate::model::Permit;
use crate::model::Precondition;
use crate::model::Target;
use crate::model::Verb;
use crate::model::Version;
use crate::model::VmId;
use crate::model::limits;
use crate::operations::AcceptError;
use crate::operations::Accepted;
use crate::operations::Capability;
use crate::operations::KnownChanges;
use crate::operations::ListQuery;
use crate::operations::Origin;
use crate::operations::Replay;
use crate::operations::Selector;
use crate::operations::Submission;
use crate::operations::WaitFor;
use crate::telemetry;

/// What `Idempotency-Key` led to.
enum Key {
    /// The request is not known; the key, if any, is to be kept with it.
    Fresh(Option<Idempotency>),
    /// The request was accepted before.
    Known(Arc<Operation>),
}

/// The conditions of a request, which hold now.
#[derive(Default)]
struct Conditions {
    preconditions: Vec<Precondition>,
    /// Which changes were known before they were judged.
    seen: KnownChanges,
}

/// An intent with the proof that it is permitted and what is kept beside it.
struct Wish {
    permit: Permit,
    intent: Intent,
    seq: Option<OperationSeq>,
    conditions: Conditions,
    note: Option<Note>,
    idempotency: Option<Idempotency>,
    ignored: IgnoredMembers,
}

/// What the VM is busy with is told to those who may see it.
fn busy(caller: &AuthenticatedCaller, other: &Operation) -> Refusal {
    let refusal = Refusal::from(Code::Busy);
    if may_see(caller, other) {
        refusal.with(header::LOCATION, &links::status(other))
    } else {
        refusal
    }
}

/// Until it is made a backup has no identity that a change could name: what is there later under its id may be another one.
fn check_made(before: &Backup) -> Result<(), Refusal> {
    if before.state == BackupState::Creating {
        return Err(Refusal::from(Code::NotReady));
    }
    Ok(())
}

impl Gate {
    pub(in crate::gate) async fn update(
        &self,
        call: &mut Call<'_>,
        caller: &AuthenticatedCaller,
        target: Target,
        body: &mut dyn Body,
    ) -> Result<Reply, Refusal> {
        caller.rights.check_backup(&target, authz::UPDATE)?;
        let backend = self.place(call, &target.vm)?;
        check_length(call, BodyEntity::Backup, body)?;
        let media = change_type(call)?;
        let bytes = self.read_body(call, body).await?;
        let (patch, ignored) = request_bodies::parse_update(&bytes, call.strict)?;
        let needed = actions_of(&patch);
        let permit = caller
            .rights
            .permit(&caller.principal, needed, backend, &target)?;
        let scope = scope_of(Verb::Update, &target);
        let idempotency = match self.key(call, caller, &scope, &bytes).await? {
            Key::Known(operation) => return self.joined(call, media, operation).await,
            Key::Fresh(idempotency) => idempotency,
        };
        let (before, conditions) = self.present(call, backend, &target).await?;
        check_made(&before)?;
        if let Some(name) = patch.name.as_ref().filter(|name| **name != before.name) {
            self.check_name(backend, &target.vm, name, Some(&target.backup))
                .await?;
        }
        self.able(backend, Verb::Update)?;
        let intent = Intent {
            target,
            identity: Some(before.identity),
            change: Change::Update(patch),
        };
        let wish = Wish {
            permit,
            intent,
            seq: None,
            conditions,
            note: None,
            idempotency,
            ignored,
        };
        self.submit(call, caller, media, wish).await
    }

    pub(in crate::gate) async fn delete(
        &self,
        call: &mut Call<'_>,
        caller: &AuthenticatedCaller,
        target: Target,
        body: &mut dyn Body,
    ) -> Result<Reply, Refusal> {
        caller.rights.check_backup(&target, authz::DELETE)?;
        let backend = self.place(call, &target.vm)?;
        let needed = ActionSet::NONE.with(Action::Delete);
        let permit = caller
            .rights
            .permit(&caller.principal, needed, backend, &target)?;
        let media = change_type(call)?;
        self.skip_body(call, body).await?;
        let scope = scope_of(Verb::Delete, &target);
        let idempotency = match self.key(call, caller, &scope, &[]).await? {
            Key::Known(operation) => return self.joined(call, media, operation).await,
            Key::Fresh(idempotency) => idempotency,
        };
        // Deviation D16: a repeated delete is answered with the Status of the first, whatever has become of the backup.
        let running = self.running_delete(&target).await?;
        if let Some(operation) = running {
            // A condition is judged all the same: the first delete changed what is shown.
            if conditional::is_conditional(call.head.headers) {
                let (_, conditions) = self.present(call, backend, &target).await?;
                // The first one may not be shown yet. No tag fits beside it all the same.
                let mut conditions = conditions.preconditions.iter();
                if !conditions.all(|condition| *condition == Precondition::BackupPresent) {
                    return Err(Refusal::from(Code::PreconditionFailed));
                }
            }
            return self.joined(call, media, operation).await;
        }
        let (before, conditions) = self.present(call, backend, &target).await?;
        check_made(&before)?;
        if before.protected && before.state != BackupState::Deleting {
            return Err(Refusal::from(Code::BackupProtected));
        }
        self.able(backend, Verb::Delete)?;
        let intent = Intent {
            target,
            identity: Some(before.identity),
            change: Change::Delete,
        };
        let wish = Wish {
            permit,
            intent,
            seq: None,
            conditions,
            note: None,
            idempotency,
            ignored: IgnoredMembers::default(),
        };
        self.submit(call, caller, media, wish).await
    }

    pub(in crate::gate) async fn restore(
        &self,
        call: &mut Call<'_>,
        caller: &AuthenticatedCaller,
        target: Target,
        body: &mut dyn Body,
    ) -> Result<Reply, Refusal> {
        caller.rights.check_backup(&target, authz::RESTORE)?;
        let backend = self.place(call, &target.vm)?;
        let needed = ActionSet::NONE.with(Action::Restore);
        let permit = caller
            .rights
            .permit(&caller.principal, needed, backend, &target)?;
        let encoding = negotiate::body_encoding(call.head.headers, BodyEntity::Pairs, call.strict)?;
        let untyped = encoding.is_none() && framing::announces_content(call.head.headers);
        if untyped {
            return Err(negotiate::unsupported_media_type(
                BodyEntity::Pairs,
                call.strict,
            ));
        }
        let media = change_type(call)?;
        let bytes = if body.is_present() {
            self.read_body(call, body).await?
        } else {
            Bytes::new()
        };
        // A chunked body shows only now whether it is empty.
        if encoding.is_none() && !bytes.is_empty() {
            return Err(negotiate::unsupported_media_type(
                BodyEntity::Pairs,
                call.strict,
            ));
        }
        let capability = self.service.capability(backend);
        let known = capability.as_ref().map_or(&[][..], |it| it.restore_options);
        let encoding = encoding.unwrap_or(BodyEncoding::Json);
        let wanted = request_bodies::parse_restore(&bytes, encoding, known, call.strict)?;
        call.note(|call| call.note.clone_from(&wanted.note));
        let scope = scope_of(Verb::Restore, &target);
        let idempotency = match self.key(call, caller, &scope, &bytes).await? {
            Key::Known(operation) => return self.joined(call, media, operation).await,
            Key::Fresh(idempotency) => idempotency,
        };
        let (before, conditions) = self.present(call, backend, &target).await?;
        if matches!(before.state, BackupState::Creating | BackupState::Error) {
            return Err(Refusal::from(Code::NotReady));
        }
        self.able(backend, Verb::Restore)?;
        let intent = Intent {
            target,
            identity: Some(before.identity),
            change: Change::Restore(wanted.options),
        };
        let wish = Wish {
            permit,
            intent,
            seq: None,
            conditions,
            note: wanted.note,
            idempotency,
            ignored: wanted.ignored,
        };
        self.submit(call, caller, media, wish).await
    }

    pub(in crate::gate) async fn create(
        &self,
        call: &mut Call<'_>,
        caller: &AuthenticatedCaller,
        vm: VmId,
        body: &mut dyn Body,
    ) -> Result<Reply, Refusal> {
        caller.rights.check_vm(&vm, Action::Create)?;
        let backend = self.place(call, &vm)?;
        check_length(call, BodyEntity::Backup, body)?;
        let media = change_type(call)?;
        let bytes = self.read_body(call, body).await?;
        let (new, ignored) = request_bodies::parse_create(&bytes, call.strict)?;
        let mut needed = ActionSet::NONE.with(Action::Create);
        if new.protected {
            caller.rights.check_vm(&vm, Action::Protect)?;
            needed = needed.with(Action::Protect);
        }
        let scope = KeyScope {
            verb: Verb::Create,
            vm: vm.clone(),
            backup: None,
        };
        let idempotency = match self.key(call, caller, &scope, &bytes).await? {
            Key::Known(operation) => return self.joined(call, media, operation).await,
            Key::Fresh(idempotency) => idempotency,
        };
        let conditions = self.list_conditions(call, caller, backend, &vm).await?;
        self.check_name(backend, &vm, &new.name, None).await?;
        let capability = self.able(backend, Verb::Create)?;
        if new
            .kind
            .is_some_and(|kind| !capability.kinds.contains(&kind))
        {
            return Err(Refusal::says(
                Code::Unsupported,
                "The VM manager of this VM makes no backups of this type.",
            )
            .on("type"));
        }
        let seq = self.service.reserve();
        let backup = self.service.mint_backup_id(backend, &new, seq)?;
        call.note(|call| call.backup = Some(backup.clone()));
        let target = Target { vm, backup };
        // Only now is the id known that the patterns of the grants speak of.
        let permit = caller
            .rights
            .permit(&caller.principal, needed, backend, &target)?;
        let intent = Intent {
            target,
            identity: None,
            change: Change::Create(new),
        };
        let wish = Wish {
            permit,
            intent,
            seq: Some(seq),
            conditions,
            note: None,
            idempotency,
            ignored,
        };
        self.submit(call, caller, media, wish).await
    }

    /// The backup that a change is about, as it is now, and the conditions of the request, which it meets.
    async fn present(
        &self,
        call: &Call<'_>,
        backend: &BackendName,
        target: &Target,
    ) -> Result<(Backup, Conditions), Refusal> {
        let headers = call.head.headers;
        let seen = self.service.known_changes(backend, &target.vm);
        let by = self.clock.deadline(limits::READ_DEADLINE);
        let found = self.service.backup(backend, target, by).await;
        let before = found.map_err(|fault| {
            let is_absent = fault.kind == FaultKind::NoSuchBackup;
            let refusal = Refusal::from(fault);
            if is_absent {
                conditional::missing_backup(headers, refusal)
            } else {
                refusal
            }
        })?;
        let tag = || conditional::entity_tag(&wire::backup(self.base(), &target.vm, &before));
        let preconditions = match conditional::check_preconditions(headers, tag)? {
            RequiredState::Any => Vec::new(),
            RequiredState::Presence => vec![Precondition::BackupPresent],
            RequiredState::Unchanged => {
                vec![Precondition::BackupUnchanged(Version::of_backup(&before))]
            }
        };
        Ok((
            before,
            Conditions {
                preconditions,
                seen,
            },
        ))
    }

    /// The conditions of a create: they are about the list of the VM's backups, as it is read without parameters.
    async fn list_conditions(
        &self,
        call: &Call<'_>,
        caller: &AuthenticatedCaller,
        backend: &BackendName,
        vm: &VmId,
    ) -> Result<Conditions, Refusal> {
        let headers = call.head.headers;
        if !conditional::is_conditional(headers) {
            return Ok(Conditions::default());
        }
        let seen = self.service.known_changes(backend, vm);
        let page = Page {
            after: None,
            limit: limits::PAGE,
        };
        let tag = self.list_tag(caller, backend, vm, page).await?;
        let preconditions = match conditional::check_preconditions(headers, || tag)? {
            // There always is a list.
            RequiredState::Any | RequiredState::Presence => Vec::new(),
            RequiredState::Unchanged => {
                let all = self.all_backups(backend, vm).await?;
                vec![Precondition::ListUnchanged(Version::of_backups(&all))]
            }
        };
        Ok(Conditions {
            preconditions,
            seen,
        })
    }

    /// Refuses a name that another backup of the VM has.
    async fn check_name(
        &self,
        backend: &BackendName,
        vm: &VmId,
        name: &BackupName,
        own: Option<&BackupId>,
    ) -> Result<(), Refusal> {
        let all = self.all_backups(backend, vm).await?;
        let is_taken = |it: &Backup| it.name == *name && Some(&it.id) != own;
        if all.iter().any(is_taken) {
            return Err(Refusal::from(Code::NameTaken).on("name"));
        }
        Ok(())
    }

    async fn all_backups(&self, backend: &BackendName, vm: &VmId) -> Result<Vec<Backup>, Refusal> {
        let by = self.clock.deadline(limits::READ_DEADLINE);
        let mut page = Page {
            after: None,
            limit: limits::PAGE_MAX,
        };
        let mut all = Vec::new();
        loop {
            let found = self.service.backups(backend, vm, &page, by).await?;
            page.after = found.backups.last().map(|backup| backup.id.clone());
            all.extend(found.backups);
            if !found.more || page.after.is_none() {
                return Ok(all);
            }
        }
    }

    /// Refuses what the backend cannot do, and everything while nothing can be made durable.
    fn able(&self, backend: &BackendName, verb: Verb) -> Result<Arc<Capability>, Refusal> {
        let capability = self.service.capability(backend);
        let capability = capability.ok_or_else(|| Refusal::from(Code::NoSuchVm))?;
        if capability.verb(verb).is_none() {
            return Err(Refusal::from(Code::of_fault(FaultKind::Unsupported)));
        }
        if !self.service.is_ready() {
            return Err(Refusal::from(Code::StoreUnavailable));
        }
        Ok(capability)
    }

    async fn running_delete(&self, target: &Target) -> Result<Option<Arc<Operation>>, Refusal> {
        let query = ListQuery {
            principal: None,
            selector: Selector {
                verb: Some(Verb::Delete),
                vm: Some(target.vm.clone()),
                backup: Some(target.backup.clone()),
            },
            before: None,
            unfinished: Some(true),
            limit: 1,
        };
        Ok(self.service.list(&query).await?.into_iter().next())
    }

    async fn key(
        &self,
        call: &Call<'_>,
        caller: &AuthenticatedCaller,
        scope: &KeyScope,
        body: &[u8],
    ) -> Result<Key, Refusal> {
        let malformed = || Refusal::from(Code::MalformedIdempotencyKey).on("Idempotency-Key");
        let mut values = call.head.headers.get_all("idempotency-key").iter();
        let Some(value) = values.next() else {
            return Ok(Key::Fresh(None));
        };
        if values.next().is_some() {
            return Err(malformed());
        }
        let text = value.to_str().map_err(|_not_ascii| malformed())?.trim();
        let quoted = text.strip_prefix('"').map(|rest| rest.strip_suffix('"'));
        let bare = quoted.unwrap_or(Some(text)).ok_or_else(malformed)?;
        let key = IdempotencyKey::new(bare).map_err(|_why| malformed())?;
        let mut hash = blake3::Hasher::new();
        hash.update(call.head.method.as_str().as_bytes())
            .update(b"\0");
        hash.update(call.head.target).update(b"\0").update(body);
        let fingerprint = Fingerprint(*hash.finalize().as_bytes());
        let name = &caller.principal.name;
        match self.service.replay(name, scope, &key, fingerprint).await? {
            Replay::Unused => Ok(Key::Fresh(Some(Idempotency { key, fingerprint }))),
            Replay::Same(operation) => Ok(Key::Known(operation)),
            Replay::Other(_) => Err(Refusal::from(Code::IdempotencyKeyReused)),
        }
    }

    /// Writes what is about to be changed, where changes need the audit trail.
    pub(in crate::gate) fn trail_before(
        &self,
        call: &mut Call<'_>,
        seq: OperationSeq,
    ) -> Result<(), Refusal> {
        let Some(entry) = &call.audit else {
            return Ok(());
        };
        let asked = AuditEntry {
            outcome: AuditOutcome::Asked,
            operation: Some(seq),
            ..entry.clone()
        };
        let written = telemetry::audit_before(&asked.record(self.clock.now()));
        written.map_err(|_not_written| Refusal::from(Code::AuditUnavailable))
    }

    /// Writes what was decided, before the answer waits for anything.
    pub(in crate::gate) fn trail_now(&self, call: &mut Call<'_>) {
        let now = self.clock.now();
        call.note(|entry| {
            if !std::mem::replace(&mut entry.written, true) {
                telemetry::audit(&entry.record(now));
            }
        });
    }

    /// The last step: what comes after it is told by the Status.
    async fn submit(
        &self,
        call: &mut Call<'_>,
        caller: &AuthenticatedCaller,
        media: &'static str,
        wish: Wish,
    ) -> Result<Reply, Refusal> {
        let seq = wish.seq.unwrap_or_else(|| self.service.reserve());
        let submission = Submission {
            seq,
            intent: wish.intent,
            preconditions: wish.conditions.preconditions,
            seen: wish.conditions.seen,
            request: call.id.clone(),
            note: wish.note,
            idempotency: wish.idempotency,
            ignored: wish.ignored,
            origin: Origin {
                token: caller.token.clone(),
                client: call.client.address,
            },
        };
        let accepted = self.service.accept(wish.permit, submission).await;
        let accepted = accepted.map_err(|error| {
            if let AcceptError::Busy(other) = &error {
                busy(caller, other)
            } else {
                Refusal::from(error)
            }
        })?;
        match accepted {
            Accepted::Existing(operation) => self.joined(call, media, operation).await,
            Accepted::New(operation) => {
                // Written where it became durable.
                call.note(|entry| {
                    entry.outcome = AuditOutcome::Accepted;
                    entry.written = true;
                });
                self.answer(call, media, operation).await
            }
        }
    }

    async fn joined(
        &self,
        call: &mut Call<'_>,
        media: &'static str,
        operation: Arc<Operation>,
    ) -> Result<Reply, Refusal> {
        call.note(|call| call.outcome = AuditOutcome::Joined);
        self.answer(call, media, operation).await
    }

    /// The 202. It is not lost to anything that goes wrong while waiting.
    async fn answer(
        &self,
        call: &mut Call<'_>,
        media: &'static str,
        operation: Arc<Operation>,
    ) -> Result<Reply, Refusal> {
        call.operation = Some(operation.seq);
        call.note(|call| {
            call.operation = Some(operation.seq);
            call.backup = Some(operation.target().backup.clone());
        });
        self.trail_now(call);
        let usual = match operation.verb() {
            Verb::Update => limits::UPDATE_WAIT,
            Verb::Create | Verb::Delete | Verb::Restore => Duration::ZERO,
        };
        Ok(self.accepted(call, media, operation, usual).await)
    }

    /// The 202, held as the caller prefers; for `usual` where it says nothing. Whatever goes wrong while waiting, the
    /// operation is accepted.
    pub(in crate::gate) async fn accepted(
        &self,
        call: &Call<'_>,
        media: &'static str,
        operation: Arc<Operation>,
        usual: Duration,
    ) -> Reply {
        let time = call.prefer.hold_time(usual, self.config.limits.wait);
        let (operation, waited) = if operation.phase.is_final() {
            (operation, None)
        } else {
            let present = Arc::clone(&operation);
            let found = self.wait(call, operation, WaitFor::End, time).await;
            found.unwrap_or((present, None))
        };
        let status_uri = links::status(&operation);
        let mut reply = Reply::accepted(media, &operation, &status_uri);
        let waited = waited.filter(|_| call.prefer.wait.is_some());
        if let Some(applied) = call.prefer.applied_field(waited) {
            reply.set(PREFERENCE_APPLIED, &applied);
        }
        reply
    }
}

fn scope_of(verb: Verb, target: &Target) -> KeyScope {
    KeyScope {
        verb,
        vm: target.vm.clone(),
        backup: Some(target.backup.clone()),
    }
}

fn change_type(call: &Call<'_>) -> Result<&'static str, Refusal> {
    negotiate::choose_media_type(
        call.head.headers,
        negotiate::Representation::Change,
        call.strict,
    )
}

/// The type and the presence of a body that is required.
fn check_length(call: &Call<'_>, entity: BodyEntity, body: &dyn Body) -> Result<(), Refusal> {
    let headers = call.head.headers;
    let encoding = negotiate::body_encoding(headers, entity, call.strict)?;
    if !body.is_present() && !framing::has_body_framing(headers) {
        return Err(Refusal::from(Code::LengthRequired));
    }
    if encoding.is_none() && body.is_present() {
        return Err(negotiate::unsupported_media_type(entity, call.strict));
    }
    Ok(())
}

/// `protected` alone needs `protect`, everything else `update`.
fn actions_of(patch: &BackupPatch) -> ActionSet {
    let rest = BackupPatch {
        protected: crate::model::Patch::Keep,
        ..patch.clone()
    };
    let mut needed = ActionSet::NONE;
    if !rest.is_empty() {
        needed = needed.with(Action::Update);
    }
    if !patch.protected.is_keep() {
        needed = needed.with(Action::Protect);
    }
    needed
}
