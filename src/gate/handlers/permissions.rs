//! What the caller may do: the decisions of the checks themselves, asked for every action.

use crate::gate::authz::Rights;
use crate::gate::conditional;
use crate::gate::handlers::read::conditional_response;
use crate::gate::refusal::Code;
use crate::gate::refusal::Refusal;
use crate::gate::request_body::IncomingBody;
use crate::gate::request_context::AuthenticatedRequest;
use crate::gate::request_target::query_parameter;
use crate::gate::response_draft::ResponseDraft;
use crate::gate::services::Services;
use crate::gate::wire;
use crate::model::Action;
use crate::model::BackupId;
use crate::model::PublicText;
use crate::model::Target;
use crate::model::TextError;
use crate::model::VmId;
use crate::public_text;

/// What permissions are asked about.
enum Subject {
    /// Anything at all.
    Anywhere,
    /// A VM, and any of its backups.
    Vm(VmId),
    /// One backup.
    Backup(Target),
}

impl Subject {
    fn parse(query: &str) -> Result<Self, Refusal> {
        let invalid = |field: &'static str| {
            move |error: TextError| Refusal::invalid_text(Code::InvalidParameter, field, &error)
        };
        let vm = query_parameter(query, "vm")?;
        let vm = vm
            .map(|vm| VmId::new(&vm))
            .transpose()
            .map_err(invalid("vm"))?;
        let backup = query_parameter(query, "b")?;
        let backup = backup.map(|backup| BackupId::new(&backup)).transpose();
        match (vm, backup.map_err(invalid("b"))?) {
            (None, None) => Ok(Self::Anywhere),
            (Some(vm), None) => Ok(Self::Vm(vm)),
            (Some(vm), Some(backup)) => Ok(Self::Backup(Target { vm, backup })),
            (None, Some(_)) => Err(Refusal::from(Code::MissingParameter).on("vm")),
        }
    }

    const fn vm(&self) -> Option<&VmId> {
        match self {
            Self::Anywhere => None,
            Self::Vm(vm) => Some(vm),
            Self::Backup(target) => Some(&target.vm),
        }
    }

    /// Whether the action is allowed, as the request itself would be answered.
    fn check(&self, rights: &Rights, action: Action) -> Result<(), Refusal> {
        match self {
            Self::Anywhere if rights.allows_anywhere(action) => Ok(()),
            Self::Anywhere => Err(Refusal::from(Code::NotPermitted)),
            Self::Vm(vm) => rights.check_vm(vm, action),
            Self::Backup(target) => rights.check_backup(target, &[action]),
        }
    }

    /// Refuses what the caller may not know of, with the refusal of what does not exist.
    fn check_known(&self, rights: &Rights) -> Result<(), Refusal> {
        match self {
            Self::Anywhere => Ok(()),
            Self::Vm(vm) if rights.actions_on_vm(vm).is_empty() => {
                Err(Refusal::from(Code::NoSuchVm))
            }
            Self::Vm(_) => Ok(()),
            Self::Backup(target) => rights.check_backup(target, &Action::ALL),
        }
    }

    /// Whether grants allow the action, and only the scope of the token does not.
    fn is_out_of_scope(&self, rights: &Rights, action: Action) -> bool {
        let unscoped = rights.without_scope();
        self.check(&unscoped, action).is_ok()
    }

    /// What to ask an operator for.
    fn reason(&self, rights: &Rights, action: Action) -> PublicText {
        let word = action.as_str();
        if self.is_out_of_scope(rights, action) {
            return public_text!(
                "The API token does not include `{word}` here. Ask for a token whose scope has the action `{word}`."
            );
        }
        match self {
            Self::Anywhere => public_text!(
                "No grant allows `{word}`. Ask an operator for a grant with the action `{word}`."
            ),
            Self::Vm(_) => public_text!(
                "No grant allows `{word}` on this VM. Ask an operator for a grant with the action `{word}` on this VM."
            ),
            Self::Backup(_) => public_text!(
                "No grant allows `{word}` on this backup. Ask an operator for a grant with the action `{word}` on this backup."
            ),
        }
    }
}

pub(in crate::gate) async fn read_permissions(
    services: &Services,
    request: &AuthenticatedRequest<'_>,
    body: &mut IncomingBody<'_>,
) -> Result<ResponseDraft, Refusal> {
    let media = request.media_type()?;
    body.skip().await?;
    let subject = Subject::parse(request.query)?;
    let rights = &request.caller.rights;
    subject.check_known(rights)?;
    // After the check: the other way round a caller could learn which VMs are placed.
    if let Some(vm) = subject.vm()
        && services.placements.find(vm).is_none()
    {
        return Err(Refusal::from(Code::NoSuchVm));
    }
    let decisions = Action::ALL.map(|action| {
        let refused = subject.check(rights, action).err();
        wire::Decision {
            action,
            refused: refused.map(|refusal| (refusal.code(), subject.reason(rights, action))),
        }
    });
    let bytes = wire::permissions(&decisions);
    let tag = conditional::entity_tag(&bytes);
    conditional_response(request.headers(), media, bytes, &tag)
}
