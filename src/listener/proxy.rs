//! Lets Pingora forward the requests that the gateway has decided to pass through and does not forward itself.

use std::cell::Cell;
use std::os::fd::RawFd;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use pingora::Error;
use pingora::ErrorSource;
use pingora::ErrorType;
use pingora::http::RequestHeader;
use pingora::http::ResponseHeader;
use pingora::modules::http::HttpModules;
use pingora::protocols::Digest;
use pingora::proxy::FailToProxy;
use pingora::proxy::ProxyHttp;
use pingora::proxy::Session;
use pingora::upstreams::peer::HttpPeer;

use crate::listener::connection_phase;
use crate::listener::request_service::RequestContext;
use crate::listener::request_service::RequestService;
use crate::listener::request_service::tls_peer_of;

tokio::task_local! {
    /// The state of the request that Pingora forwards in this task.
    pub(super) static HANDED_OVER: Cell<Option<RequestContext>>;
}

/// The Pingora application of the API port. Only requests in [`HANDED_OVER`] reach it.
#[derive(Debug)]
pub(super) struct ApiProxy(pub(super) Arc<RequestService>);

#[async_trait]
impl ProxyHttp for ApiProxy {
    type CTX = RequestContext;

    /// None: nothing is compressed, and the default modules cost time even when they do nothing.
    fn init_downstream_modules(&self, _: &mut HttpModules) {}

    fn new_ctx(&self) -> RequestContext {
        let context = HANDED_OVER.try_with(Cell::take).ok().flatten();
        context.unwrap_or_else(|| self.0.begin_request())
    }

    async fn early_request_filter(
        &self,
        session: &mut Session,
        _: &mut RequestContext,
    ) -> pingora::Result<()> {
        self.0.limit_session(session.as_downstream_mut());
        Ok(())
    }

    async fn request_filter(
        &self,
        session: &mut Session,
        context: &mut RequestContext,
    ) -> pingora::Result<bool> {
        let session = session.as_downstream_mut();
        let Some(forwarded) = &context.forwarded else {
            let error = Error::explain(ErrorType::InternalError, "not a forwarded request");
            return Err(error.into_in());
        };
        if forwarded.pass.upgrade {
            connection_phase::stop_checking();
        }
        session.set_read_timeout(Some(forwarded.read_timeout(&self.0.upstreams)));
        if session.is_http2()
            && !session.is_body_empty()
            && let Some(peer) = tls_peer_of(session)
        {
            peer.phases.note_upload();
        }
        Ok(false)
    }

    async fn upstream_peer(
        &self,
        _: &mut Session,
        context: &mut RequestContext,
    ) -> pingora::Result<Box<HttpPeer>> {
        let now = self.0.clock.instant();
        match &mut context.forwarded {
            Some(forwarded) => {
                forwarded.choose_upstream(&self.0.upstreams, now)?;
                Ok(Box::new(forwarded.build_peer()?))
            }
            None => Error::e_explain(ErrorType::HTTPStatus(404), "not a forwarded request"),
        }
    }

    async fn connected_to_upstream(
        &self,
        _: &mut Session,
        _: bool,
        _: &HttpPeer,
        _: RawFd,
        digest: Option<&Digest>,
        context: &mut RequestContext,
    ) -> pingora::Result<()> {
        context.forwarded.as_ref().map_or(Ok(()), |forwarded| {
            forwarded.check_connection(digest.and_then(|digest| digest.ssl_digest.as_deref()))
        })
    }

    async fn upstream_request_filter(
        &self,
        session: &mut Session,
        request: &mut RequestHeader,
        context: &mut RequestContext,
    ) -> pingora::Result<()> {
        context.forwarded.as_ref().map_or(Ok(()), |forwarded| {
            forwarded.rewrite_head(session.as_downstream(), request)
        })
    }

    async fn request_body_filter(
        &self,
        session: &mut Session,
        body: &mut Option<Bytes>,
        end: bool,
        context: &mut RequestContext,
    ) -> pingora::Result<()> {
        let now = self.0.clock.instant();
        let upgraded = session.was_upgraded();
        context.forwarded.as_mut().map_or(Ok(()), |forwarded| {
            forwarded.count_body(body, end, upgraded, now)
        })
    }

    async fn response_filter(
        &self,
        session: &mut Session,
        response: &mut ResponseHeader,
        context: &mut RequestContext,
    ) -> pingora::Result<()> {
        if self.0.is_last() {
            session.set_keepalive(None);
        }
        let now = self.0.clock.instant();
        context.forwarded.as_mut().map_or(Ok(()), |forwarded| {
            forwarded.rewrite_response(session.as_downstream_mut(), response, now)
        })
    }

    fn fail_to_connect(
        &self,
        session: &mut Session,
        _: &HttpPeer,
        context: &mut RequestContext,
        error: Box<Error>,
    ) -> Box<Error> {
        match &mut context.forwarded {
            Some(forwarded) => forwarded.handle_failure(session.as_downstream(), error),
            None => error,
        }
    }

    fn error_while_proxy(
        &self,
        _: &HttpPeer,
        session: &mut Session,
        error: Box<Error>,
        context: &mut RequestContext,
        _: bool,
    ) -> Box<Error> {
        match &mut context.forwarded {
            Some(forwarded) => forwarded.handle_failure(session.as_downstream(), error),
            None => error,
        }
    }

    async fn fail_to_proxy(
        &self,
        session: &mut Session,
        error: &Error,
        context: &mut RequestContext,
    ) -> FailToProxy {
        let session = session.as_downstream_mut();
        FailToProxy {
            error_code: self.0.fail(session, context, error).await,
            can_reuse_downstream: false,
        }
    }

    /// Errors of clients are not logged as errors of the gateway.
    fn suppress_error_log(&self, _: &Session, _: &RequestContext, error: &Error) -> bool {
        *error.esource() == ErrorSource::Downstream
    }

    async fn logging(
        &self,
        session: &mut Session,
        error: Option<&Error>,
        context: &mut RequestContext,
    ) {
        self.0
            .report(session.as_downstream(), context, error.is_none());
        connection_phase::mark_request_ended();
    }
}
