//! Statuses: one by its number or by the source's forms without one, and lists of the caller's own.

use std::sync::Arc;
use std::time::Duration;

use http::header;

use crate::gate::authn::AuthenticatedCaller;
use crate::gate::conditional;
use crate::gate::handlers::events;
use crate::gate::handlers::read;
use crate::gate::limiter::AdmittedRequest;
use crate::gate::links;
use crate::gate::negotiate;
use crate::gate::pipeline::Call;
use crate::gate::pipeline::Gate;
use crate::gate::refusal::Code;
use crate::gate::refusal::Refusal;
use crate::gate::reply::LOOK_AGAIN;
use crate::gate::reply::PREFERENCE_APPLIED;
use crate::gate::reply::Reply;
use crate::gate::request::Body;
use crate::gate::route;
use crate::gate::wire;
use crate::model::Action;
use crate::model::BackupId;
use crate::model::Operation;
use crate::model::OperationSeq;
use crate::model::Verb;
use crate::model::VmId;
use crate::model::limits;
use crate::operations::ListQuery;
use crate::operations::Selector;
use crate::operations::WaitFor;

/// The parameters of a look-up.
pub(in crate::gate) struct Wanted {
    pub(in crate::gate) seq: Option<OperationSeq>,
    /// `Some(None)` for a word that is no operation.
    verb: Option<Option<Verb>>,
    vm: Option<VmId>,
    backup: Option<BackupId>,
}

impl Wanted {
    pub(in crate::gate) fn of(query: &str) -> Result<Self, Refusal> {
        let invalid = |field, error: &_| Refusal::text(Code::InvalidParameter, field, error);
        let vm = route::parameter(query, "vm")?.map(|parameter| VmId::new(&parameter));
        let (name, backup) = match route::parameter(query, "backup")? {
            Some(text) => ("backup", Some(text)),
            None => ("b", route::parameter(query, "b")?),
        };
        let backup = backup.map(|backup| BackupId::new(&backup)).transpose();
        Ok(Self {
            seq: number(query, "seq")?,
            verb: route::parameter(query, "op")?.map(|parameter| verb(&parameter)),
            vm: vm.transpose().map_err(|error| invalid("vm", &error))?,
            backup: backup.map_err(|error| invalid(name, &error))?,
        })
    }

    pub(in crate::gate) fn agrees(&self, operation: &Operation) -> bool {
        let target = operation.target();
        self.verb.is_none_or(|verb| verb == Some(operation.verb()))
            && self.vm.as_ref().is_none_or(|vm| *vm == target.vm)
            && self
                .backup
                .as_ref()
                .is_none_or(|backup| *backup == target.backup)
    }

    fn selector(&self) -> Result<Selector, Refusal> {
        let unknown =
            || Refusal::says(Code::InvalidParameter, "The value names no operation.").on("op");
        Ok(Selector {
            verb: self.verb.map(|verb| verb.ok_or_else(unknown)).transpose()?,
            vm: self.vm.clone(),
            backup: self.backup.clone(),
        })
    }
}

/// The verb of an `op` parameter, in capitals or not.
fn verb(op: &str) -> Option<Verb> {
    Verb::ALL
        .into_iter()
        .find(|it| links::op(*it).eq_ignore_ascii_case(op))
}

fn number(query: &str, name: &'static str) -> Result<Option<OperationSeq>, Refusal> {
    let Some(text) = route::parameter(query, name)? else {
        return Ok(None);
    };
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse()
        .ok()
        .filter(|_| digits)
        .and_then(OperationSeq::new)
        .map(Some)
        .ok_or_else(|| {
            Refusal::says(
                Code::InvalidParameter,
                "The value is not a number of an operation.",
            )
            .on(name)
        })
}

pub(in crate::gate) fn may_see(caller: &AuthenticatedCaller, operation: &Operation) -> bool {
    let target = operation.target();
    let is_own = operation.principal == caller.principal.name;
    (is_own && caller.rights.covers_target(target))
        || caller
            .rights
            .actions_on_backup(&target.vm, &target.backup)
            .contains(Action::Observe)
}

impl Gate {
    pub(in crate::gate) async fn statuses(
        &self,
        call: &mut Call<'_>,
        caller: &AuthenticatedCaller,
        body: &mut dyn Body,
    ) -> Result<Reply, Refusal> {
        let wanted = Wanted::of(call.query)?;
        let is_one = wanted.seq.is_some() || wanted.backup.is_some();
        let asked = if is_one {
            negotiate::Representation::Status
        } else {
            negotiate::Representation::Own(negotiate::STATUSES)
        };
        let media = negotiate::choose_media_type(call.head.headers, asked, call.strict)?;
        let is_stream = media == negotiate::EVENTS;
        let last = if is_stream {
            events::last_id(call.head.headers)?
        } else {
            None
        };
        self.skip_body(call, body).await?;
        if !is_one {
            return self.own_statuses(call, caller, &wanted, media).await;
        }
        let found = match wanted.seq {
            Some(seq) => self.service.operation(seq).await?,
            None => self.newest(caller, &wanted).await?,
        };
        let found = found
            .filter(|it| may_see(caller, it) && wanted.agrees(it))
            .ok_or_else(|| Refusal::from(Code::NoSuchStatus))?;
        call.operation = Some(found.seq);
        if is_stream {
            call.route = events::ROUTE_NAME;
            return self.events(call, found, last);
        }
        let (operation, waited) = self.poll(call, found).await?;
        let tag = conditional::status_tag(&operation);
        conditional::check_if_match(call.head.headers, &tag)?;
        let is_known = conditional::matches_if_none_match(call.head.headers, &tag);
        let mut reply = Reply::read(media, wire::status(&operation)).tagged(&tag, is_known);
        if !operation.phase.is_final() {
            reply.headers.insert(header::RETRY_AFTER, LOOK_AGAIN);
        }
        if let Some(time) = waited {
            reply.set(PREFERENCE_APPLIED, &format!("wait={}", time.as_secs()));
        }
        Ok(reply)
    }

    /// Deviation D7: the newest that fits and may be seen, if all that do are of one VM.
    async fn newest(
        &self,
        caller: &AuthenticatedCaller,
        wanted: &Wanted,
    ) -> Result<Option<Arc<Operation>>, Refusal> {
        let observes = caller.rights.allows_anywhere(Action::Observe);
        let query = ListQuery {
            principal: (!observes).then(|| caller.principal.name.clone()),
            selector: wanted.selector()?,
            before: None,
            unfinished: None,
            limit: limits::PAGE_MAX,
        };
        let all = self.service.list(&query).await?;
        let mut seen = all.into_iter().filter(|it| may_see(caller, it));
        let newest = seen.next();
        let vm = newest.as_ref().map(|newest| newest.target().vm.clone());
        if seen.any(|it| Some(&it.target().vm) != vm.as_ref()) {
            return Err(Refusal::from(Code::AmbiguousStatus).on("vm"));
        }
        Ok(newest)
    }

    async fn own_statuses(
        &self,
        call: &Call<'_>,
        caller: &AuthenticatedCaller,
        wanted: &Wanted,
        media: &'static str,
    ) -> Result<Reply, Refusal> {
        let limit = read::limit(call.query)?;
        let query = ListQuery {
            principal: Some(caller.principal.name.clone()),
            selector: wanted.selector()?,
            before: number(call.query, "before")?,
            unfinished: None,
            limit,
        };
        let found = self.service.list(&query).await?;
        let seen = found.iter().map(|it| &**it);
        let seen = seen.filter(|it| may_see(caller, it));
        let bytes = wire::statuses(seen);
        let mut reply = Reply::read(media, bytes);
        // A full page may be the last one; the next is empty then.
        if let Some(last) = found.last().filter(|_| found.len() >= usize::from(limit)) {
            let mut next = format!("</statuses?limit={limit}&before={}", last.seq);
            if let Some(verb) = query.selector.verb {
                next.push_str("&op=");
                next.push_str(links::op(verb));
            }
            if let Some(vm) = &query.selector.vm {
                next.push_str("&vm=");
                next.extend(links::encoded(vm.as_str()));
            }
            next.push_str(">; rel=\"next\"");
            reply.set(header::LINK, &next);
        }
        Ok(reply)
    }

    /// Holds the answer of an unfinished operation as the caller prefers: without `If-None-Match` until its end, with it
    /// until the next change after the state that the caller knows. Every way to ask for one Status comes through here.
    async fn poll(
        &self,
        call: &Call<'_>,
        operation: Arc<Operation>,
    ) -> Result<(Arc<Operation>, Option<Duration>), Refusal> {
        let Some(time) = call.prefer.wait else {
            return Ok((operation, None));
        };
        let headers = call.head.headers;
        let until = if headers.contains_key(header::IF_NONE_MATCH) {
            let tag = conditional::status_tag(&operation);
            // The caller knows another state: this one is news already.
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
        self.wait(call, operation, until, time.min(self.config.limits.wait))
            .await
    }

    /// Waits, if a place among those who wait is free; says how long it was ready to.
    pub(in crate::gate) async fn wait(
        &self,
        call: &Call<'_>,
        operation: Arc<Operation>,
        until: WaitFor,
        time: Duration,
    ) -> Result<(Arc<Operation>, Option<Duration>), Refusal> {
        let place = if time.is_zero() {
            None
        } else {
            self.acquire_waiter(call)
        };
        let Some(_place) = place else {
            return Ok((operation, None));
        };
        // Who waits is counted among the waiters alone.
        let _paused = call.admitted.as_ref().map(AdmittedRequest::pause);
        let by = self.clock.deadline(time);
        let found = tokio::select! {
            biased;
            found = self.service.wait(operation.seq, until, by) => found?,
            () = self.shared.waiters_released.given() => self.service.operation(operation.seq).await?,
        };
        Ok((found.unwrap_or(operation), Some(time)))
    }
}
