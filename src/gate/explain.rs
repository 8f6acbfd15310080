//! Which grant allows a request, or why none does: uses the table of routes and the checks of the gate itself.

use std::fmt;
use std::sync::Arc;

use http::HeaderMap;
use http::Method;
use http::header::HOST;

use crate::gate::authz::Rights;
use crate::gate::config::ApiToken;
use crate::gate::config::Config;
use crate::gate::passthrough::PassThroughAccess;
use crate::gate::passthrough::PassThroughRoute;
use crate::gate::passthrough::PassThroughRoutes;
use crate::gate::placement::Placements;
use crate::gate::refusal::Code;
use crate::gate::refusal::Refusal;
use crate::gate::request::RequestHead;
use crate::gate::request_target::parse_target;
use crate::gate::route::RequiredAccess;
use crate::gate::route::Route;
use crate::gate::route::find_route;
use crate::model::Action;
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

/// Whether a request would be permitted, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explanation {
    /// Whether grants and placement allow it.
    pub is_allowed: bool,
    /// The reasons, for the operator, line by line.
    pub lines: Vec<String>,
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.lines.iter().try_for_each(|line| writeln!(f, "{line}"))
    }
}

/// Explains whether the caller may send the request `method target`, and which grants decide it. `file` names the configuration
/// file in the explanation. Uses the gate's own table of routes and checks, so it cannot differ from them.
#[must_use]
pub fn explain(
    config: &Config,
    file: &str,
    caller: &AssumedCaller<'_>,
    method: &Method,
    target: &str,
) -> Explanation {
    let rights = Rights::for_principal(&caller.principal, &config.grants);
    let mut explainer = Explainer {
        config,
        file,
        caller,
        rights: match caller.token {
            Some(token) => rights.narrowed_to(&token.scope),
            None => rights,
        },
        lines: Vec::new(),
    };
    let verdict = explainer.explain_request(method, target);
    let last = match &verdict {
        Ok(()) => "allowed".to_owned(),
        Err(refusal) => {
            let (code, text) = (refusal.code(), &refusal.text);
            let status = code.status().as_u16();
            format!("denied: {status} {}: {text}", code.as_str())
        }
    };
    explainer.lines.push(last);
    Explanation {
        is_allowed: verdict.is_ok(),
        lines: explainer.lines,
    }
}

struct Explainer<'a> {
    config: &'a Config,
    file: &'a str,
    caller: &'a AssumedCaller<'a>,
    rights: Rights,
    lines: Vec<String>,
}

impl Explainer<'_> {
    fn explain_request(&mut self, method: &Method, target: &str) -> Result<(), Refusal> {
        let parts = parse_target(target.as_bytes())?;
        if let Some(found) = self.find_pass_through(method, parts.path)? {
            return self.explain_pass_through(method, &found);
        }
        let matched = find_route(parts.path)?;
        let endpoint = matched.spec.endpoint(method);
        let endpoint = endpoint.ok_or_else(|| Refusal::from(Code::MethodNotAllowed))?;
        let route = matched.route.resolve(parts.query)?;
        match endpoint.access {
            RequiredAccess::Nothing => self.add("no credentials are required"),
            RequiredAccess::Caller => self.add("every caller may ask; the answer has what its grants allow"),
            RequiredAccess::Operation => self.add(
                "the caller who started an operation may read its Status and cancel it; other callers need observe on \
                 its backup to read it, and the action of the operation to cancel it",
            ),
            RequiredAccess::Vm(action) => {
                self.explain_grants(action, &route);
                if action == Action::Create {
                    self.add(
                        "the id of the new backup must match backups of the same grants; a backup that is created \
                         protected also needs protect",
                    );
                }
            }
            RequiredAccess::Backup(any) => {
                for action in any {
                    self.explain_grants(*action, &route);
                }
            }
        }
        self.rights.check_access(endpoint.access, &route)?;
        route.vm().map_or(Ok(()), |vm| self.explain_placement(vm))
    }

    fn add(&mut self, line: &str) {
        self.lines.push(line.to_owned());
    }

    /// One line for each grant that allows the action, saying whether it covers the resource.
    fn explain_grants(&mut self, action: Action, route: &Route) {
        let Some(vm) = route.vm() else { return };
        let backup = route.backup();
        let word = action.as_str();
        let mut lines = Vec::new();
        let mut is_granted = false;
        for found in self.rights.grant_matches(vm, backup, action) {
            let line = self.config.grants.get(found.grant);
            let line = line.map_or(0, |grant| grant.line);
            let grant = format!("grant[{}] ({}:{line})", found.grant, self.file);
            let vm = vm.as_str();
            lines.push(match (found.covers_vm, found.covers_backup) {
                (true, true) => {
                    is_granted = true;
                    format!("{word}: {grant} allows it")
                }
                (true, false) => format!("{word}: {grant} does not cover this backup of {vm:?}"),
                (false, _) => format!("{word}: {grant} does not cover VM {vm:?}"),
            });
        }
        if lines.is_empty() {
            let name = &self.caller.principal.name;
            lines.push(format!(
                "{word}: no grant allows it to {name} or to a group of {name}"
            ));
        }
        if is_granted
            && let Some(token) = self.caller.token
            && !self.rights.scope_actions(vm, backup).contains(action)
        {
            let name = &token.name;
            lines.push(format!("{word}: the scope of the token {name} excludes it"));
        }
        self.lines.extend(lines);
    }

    fn explain_placement(&mut self, vm: &VmId) -> Result<(), Refusal> {
        match Placements::new(&self.config.placements).find(vm) {
            Some(backend) => {
                self.lines.push(format!("the VM is on backend {backend}"));
                Ok(())
            }
            None => {
                self.add("no backend has the VM: see vms of [[backend]]");
                Err(Refusal::from(Code::NoSuchVm))
            }
        }
    }

    /// The pass-through route of the request, as the gate finds it for the host of `server.public_url`.
    fn find_pass_through(
        &self,
        method: &Method,
        path: &str,
    ) -> Result<Option<Arc<PassThroughRoute>>, Refusal> {
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

    fn explain_pass_through(
        &mut self,
        method: &Method,
        route: &PassThroughRoute,
    ) -> Result<(), Refusal> {
        let name = &route.name;
        self.lines
            .push(format!("the pass-through route {name} matches"));
        route.check_method(method)?;
        if route.access != PassThroughAccess::Open && !self.rights.is_unrestricted() {
            self.add("tokens with a scope are not accepted on pass-through routes");
            return Err(Refusal::from(Code::NotPermitted));
        }
        route.check_caller(Some(&self.caller.principal))
    }
}
