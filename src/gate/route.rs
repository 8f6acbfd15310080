//! The routes of the API: one table that says of every method on every path what a request needs, sends and receives.
//! Requests are dispatched, authorized, negotiated and explained by this table alone.
//!
//! Deviation D12: besides the paths of the source there are a list of backups, POST on it, both spellings of
//! `back_up`, and lists of Statuses.

use std::borrow::Cow;

use http::Method;
use percent_encoding::percent_decode_str;

use crate::gate::negotiate;
use crate::gate::negotiate::BodyEntity;
use crate::gate::negotiate::Representation;
use crate::gate::refusal::Code;
use crate::gate::refusal::Refusal;
use crate::gate::request_target::query_parameter;
use crate::model::Action;
use crate::model::BackupId;
use crate::model::Target;
use crate::model::Verb;
use crate::model::VmId;

/// The kinds of resources.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RouteKind {
    /// One backup.
    Backup,
    /// The restore of a VM from a backup.
    Restore,
    /// What a restore or a delete would do.
    Plan,
    /// The backups of a VM.
    Backups,
    /// Creating a backup, at the path that the source gives.
    BackUp,
    /// The VMs of all backends.
    Vms,
    /// One VM.
    Vm,
    /// What can be done with the backups of a VM.
    Capabilities,
    /// What the caller may do.
    Permissions,
    /// Statuses.
    Statuses,
    /// The versions of specification and implementation.
    Versions,
    /// The description of the API.
    Document,
    /// The page for people who have only the address.
    Root,
}

/// One route: a path and what each method does there.
#[derive(Clone, Copy, Debug)]
pub struct RouteSpec {
    /// A bounded word for metrics and logs.
    pub name: &'static str,
    /// The path, with `{vm}` and `{b}` for identifiers.
    pub template: &'static str,
    /// The value of `Allow`.
    pub allow: &'static str,
    /// The kind of resource.
    pub kind: RouteKind,
    endpoints: &'static [Endpoint],
}

impl RouteSpec {
    /// The methods besides HEAD, which is allowed wherever GET is, and OPTIONS.
    pub fn methods(&self) -> impl Iterator<Item = &'static str> {
        self.endpoints.iter().map(|endpoint| endpoint.method)
    }

    /// What a method does here; `None` when it is not allowed. HEAD does what GET does.
    pub(super) fn endpoint(&self, method: &Method) -> Option<&'static Endpoint> {
        let method = if *method == Method::HEAD {
            "GET"
        } else {
            method.as_str()
        };
        let mut endpoints = self.endpoints.iter();
        endpoints.find(|endpoint| endpoint.method == method)
    }

    /// Whether it is one of the Backup routes, whose requests name a specification version.
    #[must_use]
    pub const fn is_versioned(&self) -> bool {
        match self.kind {
            RouteKind::Backup
            | RouteKind::Restore
            | RouteKind::Plan
            | RouteKind::Backups
            | RouteKind::BackUp
            | RouteKind::Vms
            | RouteKind::Vm
            | RouteKind::Capabilities => true,
            RouteKind::Permissions
            | RouteKind::Statuses
            | RouteKind::Versions
            | RouteKind::Document
            | RouteKind::Root => false,
        }
    }

    /// Whether a pass-through route may have this path. Routes that came with the second edition leave paths to pass-through
    /// routes that had them before.
    pub(super) const fn reservation(&self) -> Reservation {
        match self.kind {
            RouteKind::Backup
            | RouteKind::Restore
            | RouteKind::Backups
            | RouteKind::BackUp
            | RouteKind::Vm
            | RouteKind::Statuses
            | RouteKind::Versions => Reservation::Always,
            RouteKind::Plan | RouteKind::Vms | RouteKind::Capabilities => Reservation::Requests,
            RouteKind::Permissions | RouteKind::Document | RouteKind::Root => Reservation::None,
        }
    }
}

/// How far the path of a route is kept from pass-through routes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reservation {
    /// Neither prefixes nor requests.
    Always,
    /// Requests for it are never passed through; a prefix that begins with it is allowed for what is below it.
    Requests,
    /// A pass-through route with that path gets its requests.
    None,
}

/// One method on one route: everything that the stages of the pipeline need to know about it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Endpoint {
    pub(super) method: &'static str,
    pub(super) purpose: Purpose,
    pub(super) access: RequiredAccess,
    pub(super) body: ExpectedBody,
    pub(super) response: Representation,
}

/// What a request is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    /// To read.
    Read,
    /// To learn what a change would do. Nothing is changed.
    Plan,
    /// To change something, durably.
    Change(Verb),
    /// To stop an operation.
    Cancel,
}

/// What a request needs to be permitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RequiredAccess {
    /// Nothing, not even credentials.
    Nothing,
    /// Only to be known: what is answered depends on what the caller may read.
    Caller,
    /// This action on the VM as such.
    Vm(Action),
    /// At least one of these on the backup; the body decides which.
    Backup(&'static [Action]),
    /// To own the operation, or an action on its backup. Decided once the operation is found.
    Operation,
}

/// The body that a request sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ExpectedBody {
    /// None; one that is sent is read and ignored.
    Ignored,
    /// This is required.
    Required(BodyEntity),
    /// This may be left out.
    Optional(BodyEntity),
}

const READ: Endpoint = Endpoint {
    method: "GET",
    purpose: Purpose::Read,
    access: RequiredAccess::Nothing,
    body: ExpectedBody::Ignored,
    response: Representation::Status,
};

const CREATE: Endpoint = Endpoint {
    method: "POST",
    purpose: Purpose::Change(Verb::Create),
    access: RequiredAccess::Vm(Action::Create),
    body: ExpectedBody::Required(BodyEntity::Backup),
    response: Representation::Change,
};

const BACKUP: &[Endpoint] = &[
    Endpoint {
        access: RequiredAccess::Backup(&[Action::Read]),
        response: Representation::Backup,
        ..READ
    },
    Endpoint {
        method: "PUT",
        purpose: Purpose::Change(Verb::Update),
        access: RequiredAccess::Backup(&[Action::Update, Action::Protect]),
        ..CREATE
    },
    Endpoint {
        method: "DELETE",
        purpose: Purpose::Change(Verb::Delete),
        access: RequiredAccess::Backup(&[Action::Delete]),
        body: ExpectedBody::Ignored,
        ..CREATE
    },
];

const RESTORE: &[Endpoint] = &[Endpoint {
    purpose: Purpose::Change(Verb::Restore),
    access: RequiredAccess::Backup(&[Action::Restore]),
    body: ExpectedBody::Optional(BodyEntity::Pairs),
    ..CREATE
}];

// The body says which of the two it is about, and that one is checked then.
const PLAN: &[Endpoint] = &[Endpoint {
    purpose: Purpose::Plan,
    access: RequiredAccess::Backup(&[Action::Restore, Action::Delete]),
    body: ExpectedBody::Required(BodyEntity::Pairs),
    response: Representation::Own(negotiate::PLAN),
    ..CREATE
}];

const BACKUPS: &[Endpoint] = &[
    Endpoint {
        access: RequiredAccess::Vm(Action::Read),
        response: Representation::Own(negotiate::BACKUPS),
        ..READ
    },
    CREATE,
];

const BACK_UP: &[Endpoint] = &[CREATE];

const VM: &[Endpoint] = &[Endpoint {
    access: RequiredAccess::Vm(Action::Read),
    response: Representation::Own(negotiate::VM),
    ..READ
}];

const VMS: &[Endpoint] = &[Endpoint {
    access: RequiredAccess::Caller,
    response: Representation::Own(negotiate::VMS),
    ..READ
}];

const CAPABILITIES: &[Endpoint] = &[Endpoint {
    access: RequiredAccess::Vm(Action::Read),
    response: Representation::Own(negotiate::CAPABILITIES),
    ..READ
}];

const PERMISSIONS: &[Endpoint] = &[Endpoint {
    access: RequiredAccess::Caller,
    response: Representation::Own(negotiate::PERMISSIONS),
    ..READ
}];

const DOCUMENT: &[Endpoint] = &[Endpoint {
    response: Representation::Own(negotiate::JSON),
    ..READ
}];

const ROOT: &[Endpoint] = &[Endpoint {
    response: Representation::Page,
    ..READ
}];

const STATUSES: &[Endpoint] = &[
    // A list where the query names no single Status: its type is chosen by the handler.
    Endpoint {
        access: RequiredAccess::Operation,
        ..READ
    },
    Endpoint {
        method: "DELETE",
        purpose: Purpose::Cancel,
        access: RequiredAccess::Operation,
        response: Representation::Own(negotiate::STATUS),
        ..READ
    },
];

const VERSIONS: &[Endpoint] = &[Endpoint {
    response: Representation::Own(negotiate::VERSION),
    ..READ
}];

const READ_ALLOW: &str = "GET, HEAD, OPTIONS";
const POST_ALLOW: &str = "POST, OPTIONS";

/// Every route.
pub const ROUTES: &[RouteSpec] = &[
    RouteSpec {
        name: "backup",
        template: "/vms/{vm}/backups/{b}",
        allow: "GET, HEAD, PUT, DELETE, OPTIONS",
        kind: RouteKind::Backup,
        endpoints: BACKUP,
    },
    RouteSpec {
        name: "restore",
        template: "/vms/{vm}/backups/{b}/restore",
        allow: POST_ALLOW,
        kind: RouteKind::Restore,
        endpoints: RESTORE,
    },
    RouteSpec {
        name: "plan",
        template: "/vms/{vm}/backups/{b}/plan",
        allow: POST_ALLOW,
        kind: RouteKind::Plan,
        endpoints: PLAN,
    },
    RouteSpec {
        name: "backups",
        template: "/vms/{vm}/backups",
        allow: "GET, HEAD, POST, OPTIONS",
        kind: RouteKind::Backups,
        endpoints: BACKUPS,
    },
    RouteSpec {
        name: "back_up",
        template: "/back_up",
        allow: POST_ALLOW,
        kind: RouteKind::BackUp,
        endpoints: BACK_UP,
    },
    RouteSpec {
        name: "back_up",
        template: "/back-up",
        allow: POST_ALLOW,
        kind: RouteKind::BackUp,
        endpoints: BACK_UP,
    },
    RouteSpec {
        name: "vms",
        template: "/vms",
        allow: READ_ALLOW,
        kind: RouteKind::Vms,
        endpoints: VMS,
    },
    RouteSpec {
        name: "capabilities",
        template: "/vms/{vm}/capabilities",
        allow: READ_ALLOW,
        kind: RouteKind::Capabilities,
        endpoints: CAPABILITIES,
    },
    RouteSpec {
        name: "permissions",
        template: "/permissions",
        allow: READ_ALLOW,
        kind: RouteKind::Permissions,
        endpoints: PERMISSIONS,
    },
    RouteSpec {
        name: "document",
        template: "/openapi.json",
        allow: READ_ALLOW,
        kind: RouteKind::Document,
        endpoints: DOCUMENT,
    },
    RouteSpec {
        name: "root",
        template: "/",
        allow: READ_ALLOW,
        kind: RouteKind::Root,
        endpoints: ROOT,
    },
    RouteSpec {
        name: "vm",
        template: "/vms/{vm}",
        allow: READ_ALLOW,
        kind: RouteKind::Vm,
        endpoints: VM,
    },
    RouteSpec {
        name: "statuses",
        template: "/statuses",
        allow: "GET, HEAD, DELETE, OPTIONS",
        kind: RouteKind::Statuses,
        endpoints: STATUSES,
    },
    RouteSpec {
        name: "versions",
        template: "/versions",
        allow: READ_ALLOW,
        kind: RouteKind::Versions,
        endpoints: VERSIONS,
    },
    RouteSpec {
        name: "versions",
        template: "/version",
        allow: READ_ALLOW,
        kind: RouteKind::Versions,
        endpoints: VERSIONS,
    },
];

/// The resource that a request names, with the identifiers in its path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Route {
    Backup(Target),
    Restore(Target),
    Plan(Target),
    Backups(VmId),
    /// The VM is named by the query: see [`Route::resolve`].
    BackUp,
    Vms,
    Vm(VmId),
    Capabilities(VmId),
    Permissions,
    Statuses,
    Versions,
    Document,
    Root,
}

/// A route and its row of the table.
#[derive(Clone, Debug)]
pub(super) struct MatchedRoute {
    pub(super) spec: &'static RouteSpec,
    pub(super) route: Route,
}

/// Finds the route of a path.
pub(super) fn find_route(path: &str) -> Result<MatchedRoute, Refusal> {
    for spec in ROUTES {
        if let Some(ids) = capture(spec.template, path) {
            let route = Route::new(spec.kind, ids)?;
            return Ok(MatchedRoute { spec, route });
        }
    }
    Err(Refusal::from(Code::NoSuchRoute))
}

impl Route {
    fn new(kind: RouteKind, ids: [Option<&str>; 2]) -> Result<Self, Refusal> {
        Ok(match (kind, ids) {
            (RouteKind::Backup, [Some(vm), Some(backup)]) => Self::Backup(target(vm, backup)?),
            (RouteKind::Restore, [Some(vm), Some(backup)]) => Self::Restore(target(vm, backup)?),
            (RouteKind::Plan, [Some(vm), Some(backup)]) => Self::Plan(target(vm, backup)?),
            (RouteKind::Backups, [Some(vm), None]) => Self::Backups(vm_id(vm)?),
            (RouteKind::Vm, [Some(vm), None]) => Self::Vm(vm_id(vm)?),
            (RouteKind::Capabilities, [Some(vm), None]) => Self::Capabilities(vm_id(vm)?),
            (RouteKind::Vms, [None, None]) => Self::Vms,
            (RouteKind::Permissions, [None, None]) => Self::Permissions,
            (RouteKind::Document, [None, None]) => Self::Document,
            (RouteKind::Root, [None, None]) => Self::Root,
            (RouteKind::BackUp, [None, None]) => Self::BackUp,
            (RouteKind::Statuses, [None, None]) => Self::Statuses,
            (RouteKind::Versions, [None, None]) => Self::Versions,
            // A template whose identifiers do not fit its kind; a test walks the table.
            (
                RouteKind::Backup
                | RouteKind::Restore
                | RouteKind::Plan
                | RouteKind::Backups
                | RouteKind::Vm
                | RouteKind::BackUp
                | RouteKind::Vms
                | RouteKind::Capabilities
                | RouteKind::Permissions
                | RouteKind::Statuses
                | RouteKind::Versions
                | RouteKind::Document
                | RouteKind::Root,
                [_, _],
            ) => return Err(Refusal::from(Code::NoSuchRoute)),
        })
    }

    /// The VM that is named.
    pub(super) const fn vm(&self) -> Option<&VmId> {
        match self {
            Self::Backup(target) | Self::Restore(target) | Self::Plan(target) => Some(&target.vm),
            Self::Backups(vm) | Self::Vm(vm) | Self::Capabilities(vm) => Some(vm),
            Self::BackUp
            | Self::Vms
            | Self::Permissions
            | Self::Statuses
            | Self::Versions
            | Self::Document
            | Self::Root => None,
        }
    }

    /// The backup that is named.
    pub(super) const fn backup(&self) -> Option<&BackupId> {
        match self {
            Self::Backup(target) | Self::Restore(target) | Self::Plan(target) => {
                Some(&target.backup)
            }
            Self::Backups(_)
            | Self::Vms
            | Self::Vm(_)
            | Self::Capabilities(_)
            | Self::Permissions
            | Self::BackUp
            | Self::Statuses
            | Self::Versions
            | Self::Document
            | Self::Root => None,
        }
    }

    /// The same route with all its identifiers in the path: `/back_up?vm=1` is POST on the backups of VM 1.
    ///
    /// # Errors
    /// When the query does not name one VM.
    pub(super) fn resolve(self, query: &str) -> Result<Self, Refusal> {
        if self != Self::BackUp {
            return Ok(self);
        }
        let text = query_parameter(query, "vm")?;
        let text = text.ok_or_else(|| Refusal::from(Code::MissingParameter).on("vm"))?;
        let vm = VmId::new(&text)
            .map_err(|error| Refusal::invalid_text(Code::InvalidParameter, "vm", &error))?;
        Ok(Self::Backups(vm))
    }
}

fn vm_id(segment: &str) -> Result<VmId, Refusal> {
    VmId::new(&decode(segment)?).map_err(|_not_an_id| Refusal::from(Code::NoSuchRoute))
}

fn target(vm: &str, backup: &str) -> Result<Target, Refusal> {
    let vm = vm_id(vm)?;
    let backup = BackupId::new(&decode(backup)?);
    let backup = backup.map_err(|_not_an_id| Refusal::from(Code::NoSuchRoute))?;
    Ok(Target { vm, backup })
}

fn decode(segment: &str) -> Result<Cow<'_, str>, Refusal> {
    percent_decode_str(segment)
        .decode_utf8()
        .map_err(|_not_utf_8| Refusal::from(Code::MalformedTarget))
}

/// The encoded identifiers of a path that fits the template.
fn capture<'a>(template: &str, path: &'a str) -> Option<[Option<&'a str>; 2]> {
    let mut ids = [None; 2];
    let mut free = ids.iter_mut();
    let mut rest = path;
    for wanted in template.split('/').skip(1) {
        let after = rest.strip_prefix('/')?;
        let end = after.bytes().position(|byte| byte == b'/');
        let (segment, left) = after.split_at_checked(end.unwrap_or(after.len()))?;
        rest = left;
        if wanted.starts_with('{') {
            if let Some(slot) = free.next() {
                *slot = Some(segment);
            }
        } else if wanted != segment {
            return None;
        }
    }
    rest.is_empty().then_some(ids)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gate::request_target::parse_target;

    fn find(target: &str) -> Result<(&'static str, Route), Code> {
        let parts = parse_target(target.as_bytes()).map_err(|error| error.code())?;
        let found = find_route(parts.path).map_err(|error| error.code())?;
        Ok((found.spec.name, found.route))
    }

    fn target_of(vm: &str, id: &str) -> Target {
        Target {
            vm: VmId::new(vm).unwrap(),
            backup: BackupId::new(id).unwrap(),
        }
    }

    fn backup(vm: &str, id: &str) -> Route {
        Route::Backup(target_of(vm, id))
    }

    #[expect(clippy::too_many_lines, reason = "a table")]
    #[test]
    fn targets_become_routes_or_refusals() {
        let vm = |id: &str| Route::Vm(VmId::new(id).unwrap());
        let long = format!("/vms/{}", "x".repeat(256));
        let rows = [
            (
                "/vms/33333/backups/456",
                Ok(("backup", backup("33333", "456"))),
            ),
            (
                "/vms/a%2Fb/backups/%C3%A9",
                Ok(("backup", backup("a/b", "\u{e9}"))),
            ),
            (
                "/vms/a%252Fb/backups/1",
                Ok(("backup", backup("a%2Fb", "1"))),
            ),
            ("http://h:1/vms/1?x=%20", Ok(("vm", vm("1")))),
            ("HTTPS://h/back-up?vm=1", Ok(("back_up", Route::BackUp))),
            (
                "/vms/1/backups/2/restore",
                Ok(("restore", Route::Restore(target_of("1", "2")))),
            ),
            (
                "/vms/1/backups/2/plan",
                Ok(("plan", Route::Plan(target_of("1", "2")))),
            ),
            ("/vms/1/backups/2/plans", Err(Code::NoSuchRoute)),
            ("/statuses?seq=1", Ok(("statuses", Route::Statuses))),
            ("/", Ok(("root", Route::Root))),
            ("http://h", Ok(("root", Route::Root))),
            ("/vms/1/", Err(Code::NoSuchRoute)),
            ("//vms/1", Err(Code::NoSuchRoute)),
            ("/vms//backups", Err(Code::NoSuchRoute)),
            ("/vms/../backups", Err(Code::NoSuchRoute)),
            ("/vms/%2e%2E/backups/1", Err(Code::NoSuchRoute)),
            ("/vms/./backups/1", Err(Code::NoSuchRoute)),
            ("/vms/a%00b", Err(Code::NoSuchRoute)),
            ("/VMS/1", Err(Code::NoSuchRoute)),
            ("/vms/1/backups/2/restore/3", Err(Code::NoSuchRoute)),
            (long.as_str(), Err(Code::NoSuchRoute)),
            ("/vms/%ff", Err(Code::MalformedTarget)),
            ("/vms/%4", Err(Code::MalformedTarget)),
            ("/vms/%zz", Err(Code::MalformedTarget)),
            ("/vms/\u{e9}", Err(Code::MalformedTarget)),
            ("/vms/1#x", Err(Code::MalformedTarget)),
            ("/vms/1?#", Err(Code::MalformedTarget)),
            ("http://h#x", Err(Code::MalformedTarget)),
            ("http://h/#", Err(Code::MalformedTarget)),
            ("/vms\\1", Err(Code::MalformedTarget)),
            ("/vms/\"1\"", Err(Code::MalformedTarget)),
            ("/vms/<1>", Err(Code::MalformedTarget)),
            ("/vms/1^", Err(Code::MalformedTarget)),
            ("/vms/`1", Err(Code::MalformedTarget)),
            ("/vms/{1}", Err(Code::MalformedTarget)),
            ("/vms/1|2", Err(Code::MalformedTarget)),
            ("/vms/[1]", Err(Code::MalformedTarget)),
            // Only pass-through routes take such a query.
            ("/vms/1?a={}", Ok(("vm", vm("1")))),
            ("/vms/1?a=<>", Err(Code::MalformedTarget)),
            ("/vms/1?a=\\", Err(Code::MalformedTarget)),
            ("/vms/1?a[]=1", Ok(("vm", vm("1")))),
            ("http://[::1]/vms/1", Ok(("vm", vm("1")))),
            ("http://[::1/vms/1", Err(Code::MalformedTarget)),
            ("*x", Err(Code::MalformedTarget)),
            ("h:443", Err(Code::MalformedTarget)),
            ("/vms/1 2", Err(Code::MalformedTarget)),
            ("vms/1", Err(Code::MalformedTarget)),
            ("ftp://h/vms/1", Err(Code::MalformedTarget)),
            ("http://u@h/vms/1", Err(Code::MalformedTarget)),
            ("http:///vms/1", Err(Code::MalformedTarget)),
            ("", Err(Code::MalformedTarget)),
        ];
        for (target, expected) in rows {
            assert_eq!(find(target), expected, "{target}");
        }
    }

    #[test]
    fn lists_and_pages_are_found_by_their_exact_paths() {
        let vm = Route::Capabilities(VmId::new("a/b").unwrap());
        let rows = [
            ("/vms", Ok(("vms", Route::Vms))),
            ("/vms?name=a", Ok(("vms", Route::Vms))),
            ("/vms/", Err(Code::NoSuchRoute)),
            ("/vms/a%2Fb/capabilities", Ok(("capabilities", vm))),
            ("/vms/a/capabilities/b", Err(Code::NoSuchRoute)),
            ("/permissions?vm=1", Ok(("permissions", Route::Permissions))),
            ("/openapi.json", Ok(("document", Route::Document))),
            ("/openapi.json/", Err(Code::NoSuchRoute)),
            ("/?x", Ok(("root", Route::Root))),
            ("//", Err(Code::NoSuchRoute)),
        ];
        for (target, expected) in rows {
            assert_eq!(find(target), expected, "{target}");
        }
    }

    #[test]
    fn parameters_are_decoded_once_and_given_once() {
        let rows: [(&str, Result<Option<&str>, Code>); 6] = [
            ("vm=1", Ok(Some("1"))),
            ("a=b&vm=x%26y+z", Ok(Some("x&y z"))),
            ("vms=1", Ok(None)),
            ("vm", Ok(Some(""))),
            ("vm=1&vm=1", Err(Code::InvalidParameter)),
            ("vm=%ff", Err(Code::InvalidParameter)),
        ];
        for (query, expected) in rows {
            let found = query_parameter(query, "vm").map_err(|error| error.code());
            assert_eq!(
                found.as_ref().map(Option::as_deref),
                expected.as_ref().copied(),
                "{query}"
            );
        }
    }

    #[test]
    fn the_allow_header_lists_the_methods_of_the_endpoints() {
        for spec in ROUTES {
            let methods = spec.methods().map(|method| match method {
                "GET" => "GET, HEAD",
                other => other,
            });
            let expected = format!("{}, OPTIONS", methods.collect::<Vec<_>>().join(", "));
            assert_eq!(spec.allow, expected, "{}", spec.template);
        }
    }

    #[test]
    fn every_template_names_the_identifiers_of_its_kind() {
        for spec in ROUTES {
            let path = spec.template.replace("{vm}", "1").replace("{b}", "2");
            let found = find_route(&path).unwrap();
            assert_eq!(found.spec.template, spec.template, "its own template");
            let route = found.route.resolve("vm=1").unwrap();
            for endpoint in spec.endpoints {
                let is_named = match endpoint.access {
                    RequiredAccess::Vm(_) => route.vm().is_some() && route.backup().is_none(),
                    RequiredAccess::Backup(_) => route.backup().is_some(),
                    RequiredAccess::Nothing
                    | RequiredAccess::Caller
                    | RequiredAccess::Operation => route.vm().is_none(),
                };
                assert!(is_named, "{} {}", endpoint.method, spec.template);
            }
        }
    }
}
