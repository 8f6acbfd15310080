//! Which grant allows a request, or why none does: asks the same routes and rights as the walk.

use std::fmt;

use http::HeaderMap;
use http::Method;
use http::header::HOST;

use crate::gate::authz::RequiredAccess;
use crate::gate::authz::Rights;
use crate::gate::authz::need;
use crate::gate::config::ApiToken;
use crate::gate::config::Config;
use crate::gate::passthrough::PassThroughAccess;
use crate::gate::passthrough::PassThroughRoute;
use crate::gate::passthrough::PassThroughRoutes;
use crate::gate::pipeline;
use crate::gate::placement::Placements;
use crate::gate::refusal::Code;
use crate::gate::refusal::Refusal;
use crate::gate::request::RequestHead;
use crate::gate::route;
use crate::gate::route::Place;
use crate::model::Action;
use crate::model::BackupId;
use crate::model::Principal;
use crate::model::VmId;

/// Who would send the request.
#[derive(Clone, Debug)]
pub struct AssumedCaller<'a> {
    /// The name, and the groups, sorted.
    pub principal: Principal,
    /// The token with which it would be sent, if it is one.
    pub token: Option<&'a ApiToken>,
}

/// What would become of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explanation {
    /// Whether nothing that grants decide stands in its way.
    pub is_allowed: bool,
    /// Why, for the operator, line by line.
    pub lines: Vec<String>,
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.lines.iter().try_for_each(|line| writeln!(f, "{line}"))
    }
}

/// Tells what would become of the request `method target` of that caller, and which grants decide it. `file` names the
/// configuration file in what is told.
#[must_use]
pub fn explain(
    config: &Config,
    file: &str,
    caller: &AssumedCaller<'_>,
    method: &Method,
    target: &str,
) -> Explanation {
    let rights = Rights::for_principal(&caller.principal, &config.grants);
    let mut told = Telling {
        config,
        file,
        caller,
        rights: match caller.token {
            Some(token) => rights.narrowed_to(&token.scope),
            None => rights,
        },
        lines: Vec::new(),
    };
    let verdict = told.request(method, target);
    told.lines.push(match &verdict {
        Ok(()) => "allowed".to_owned(),
        Err(refusal) => {
            let (code, text) = (refusal.code(), &refusal.text);
            let status = code.status().as_u16();
            format!("denied: {status} {}: {text}", code.as_str())
        }
    });
    Explanation {
        is_allowed: verdict.is_ok(),
        lines: told.lines,
    }
}

struct Telling<'a> {
    config: &'a Config,
    file: &'a str,
    caller: &'a AssumedCaller<'a>,
    rights: Rights,
    lines: Vec<String>,
}

impl Telling<'_> {
    fn request(&mut self, method: &Method, target: &str) -> Result<(), Refusal> {
        let parts = route::parts(target.as_bytes())?;
        if let Some(found) = self.passed(method, parts.path)? {
            return self.passing(method, &found);
        }
        let found = route::find(parts.path)?;
        if !found.spec.methods.contains(&method.as_str()) {
            return Err(Refusal::from(Code::MethodNotAllowed));
        }
        let place = match (need(found.spec.kind, method), found.place) {
            (RequiredAccess::Vm(_), Place::None) => Place::Vm(pipeline::vm_parameter(parts.query)?),
            (_, place) => place,
        };
        match (need(found.spec.kind, method), place) {
            (RequiredAccess::Nothing, _) => {
                self.lines.push("nobody has to say who they are".to_owned());
                Ok(())
            }
            (RequiredAccess::Operation, _) => {
                self.lines.push(
                    "whoever began an operation may read its Status and stop it; others read it with observe on its \
                     backup, and stop it with the action that it is"
                        .to_owned(),
                );
                Ok(())
            }
            (RequiredAccess::Vm(action), Place::Vm(vm)) => {
                self.action(action, &vm, None);
                if action == Action::Create {
                    self.lines.push(
                        "the id of the new backup must fit backups of the same grants; protect is needed as well for \
                         one that is protected from the start"
                            .to_owned(),
                    );
                }
                self.rights.check_vm(&vm, action)?;
                self.placed(&vm)
            }
            (RequiredAccess::Backup(any), Place::Backup(target)) => {
                for action in any {
                    self.action(*action, &target.vm, Some(&target.backup));
                }
                self.rights.check_backup(&target, any)?;
                self.placed(&target.vm)
            }
            // The table of routes says that nothing else can be.
            (
                RequiredAccess::Vm(_) | RequiredAccess::Backup(_),
                Place::None | Place::Vm(_) | Place::Backup(_),
            ) => Err(Refusal::from(Code::NoSuchRoute)),
        }
    }

    /// One line for each grant that allows the action, and what each of them says of this place.
    fn action(&mut self, action: Action, vm: &VmId, backup: Option<&BackupId>) {
        let word = action.as_str();
        let mut told = Vec::new();
        let mut granted = false;
        for it in self.rights.grant_matches(vm, backup, action) {
            let line = self.config.grants.get(it.grant).map_or(0, |it| it.line);
            let place = format!("grant[{}] ({}:{line})", it.grant, self.file);
            let (vm, bears) = (vm.as_str(), it.covers_vm && it.covers_backup);
            granted |= bears;
            told.push(match (bears, it.covers_vm) {
                (true, _) => format!("{word}: {place} allows it"),
                (false, true) => format!("{word}: {place} is not for this backup of {vm:?}"),
                (false, false) => format!("{word}: {place} is not for VM {vm:?}"),
            });
        }
        if told.is_empty() {
            let name = &self.caller.principal.name;
            told.push(format!(
                "{word}: no grant gives it to {name} or to a group of {name}"
            ));
        }
        if granted
            && let Some(token) = self.caller.token
            && !self.rights.scope_actions(vm, backup).contains(action)
        {
            told.push(format!(
                "{word}: the scope of the token {} leaves it out",
                token.name
            ));
        }
        self.lines.extend(told);
    }

    fn placed(&mut self, vm: &VmId) -> Result<(), Refusal> {
        match Placements::new(&self.config.placements).find(vm) {
            Some(backend) => {
                self.lines.push(format!("the VM is on backend {backend}"));
                Ok(())
            }
            None => {
                self.lines
                    .push("no backend has the VM: see vms of [[backend]]".to_owned());
                Err(Refusal::from(Code::NoSuchVm))
            }
        }
    }

    /// The route by which it is passed through, as the walk finds it for the host of `server.public_url`.
    fn passed(
        &self,
        method: &Method,
        path: &str,
    ) -> Result<Option<std::sync::Arc<PassThroughRoute>>, Refusal> {
        let mut headers = HeaderMap::new();
        let url: Option<http::Uri> = self.config.public_url.as_str().parse().ok();
        let host = url.and_then(|url| url.authority()?.as_str().parse().ok());
        headers.extend(host.map(|host| (HOST, host)));
        let head = RequestHead {
            method,
            target: path.as_bytes(),
            version: http::Version::HTTP_11,
            headers: &headers,
            peer: None,
            certificate: &[],
        };
        PassThroughRoutes::new(&self.config.passthrough).find(&head, path)
    }

    fn passing(&mut self, method: &Method, route: &PassThroughRoute) -> Result<(), Refusal> {
        let name = &route.name;
        self.lines
            .push(format!("it is passed through by the route {name}"));
        route.check_method(method)?;
        if route.access != PassThroughAccess::Open && !self.rights.is_unrestricted() {
            self.lines.push(
                "a token with a scope is not taken on routes that are passed through".to_owned(),
            );
            return Err(Refusal::from(Code::NotPermitted));
        }
        route.check_caller(Some(&self.caller.principal))
    }
}
