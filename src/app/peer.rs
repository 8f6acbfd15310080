//! The peer port of a cluster: takes requests that other gateways hand on.

use std::net::IpAddr;
use std::sync::Arc;

use async_trait::async_trait;
use http::HeaderValue;

use crate::app::envelope::ENVELOPE;
use crate::app::envelope::Envelope;
use crate::app::envelope::NOT_ACTIVE;
use crate::app::handler::GatewayHandler;
use crate::gate::Body;
use crate::gate::Code;
use crate::gate::GateDecision;
use crate::gate::HandledRequest;
use crate::gate::PassThrough;
use crate::gate::RequestHead;
use crate::listener::Handler;
use crate::listener::SentResponse;
use crate::listener::UpstreamResult;

/// Hands requests of other gateways to the gate. The port demands a certificate of the cluster, so whoever is here is a gateway.
#[derive(Debug)]
pub(crate) struct PeerHandler(Arc<GatewayHandler>);

impl PeerHandler {
    pub(crate) const fn new(handler: Arc<GatewayHandler>) -> Self {
        Self(handler)
    }
}

#[async_trait]
impl Handler for PeerHandler {
    async fn handle(&self, head: RequestHead<'_>, body: &mut dyn Body) -> GateDecision {
        let Some(envelope) = Envelope::open(head.headers) else {
            return GateDecision::Answer(self.refuse_unreadable(head.peer));
        };
        let mut headers = head.headers.clone();
        headers.remove(ENVELOPE);
        let sent = RequestHead {
            method: head.method,
            target: &envelope.target,
            version: envelope.version,
            headers: &headers,
            peer: envelope.peer,
            certificate: &envelope.certificate,
        };
        let decision = self.0.handle_relayed(sent, body, &envelope.relayed).await;
        match decision {
            GateDecision::Answer(mut exchange) => {
                if exchange.refusal == Some(Code::Standby.as_str()) {
                    let headers = exchange.response.headers_mut();
                    headers.insert(NOT_ACTIVE, HeaderValue::from_static("1"));
                }
                GateDecision::Answer(exchange)
            }
            // Gateways with other routes: each passes requests through itself.
            GateDecision::PassThrough(_) => GateDecision::Answer(self.refuse_unreadable(head.peer)),
        }
    }

    fn done(&self, exchange: Option<&HandledRequest>, access: &SentResponse<'_>) {
        self.0.done(exchange, access);
    }

    fn refuse_unreadable(&self, peer: Option<IpAddr>) -> HandledRequest {
        self.0.refuse_unreadable(peer)
    }

    fn failed(&self, pass: &PassThrough, code: Code) -> HandledRequest {
        self.0.failed(pass, code)
    }

    // All clients of a gateway come from its one address.
    fn is_shared(&self, _peer: IpAddr) -> bool {
        true
    }

    fn passed(&self, pass: &PassThrough, result: &UpstreamResult<'_>, access: &SentResponse<'_>) {
        self.0.passed(pass, result, access);
    }
}
