//! Pingora with nothing on top: what it costs to answer, and to pass on, before a gateway does anything of its own.
//!
//! Command: `bare PORT UPSTREAM BODY`. One thread. Paths below `/passed` go to that port of the loopback interface; everything
//! else is answered with that text. `benches/peers/run` starts it beside the gateway.
#![expect(
    clippy::unwrap_used,
    reason = "a program that measures, and has nothing to save when something is wrong"
)]

use async_trait::async_trait;
use bytes::Bytes;
use pingora::http::ResponseHeader;
use pingora::proxy::ProxyHttp;
use pingora::proxy::Session;
use pingora::proxy::http_proxy_service;
use pingora::server::Server;
use pingora::server::configuration::ServerConf;
use pingora::upstreams::peer::HttpPeer;

/// That of the gateway.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Answers everything with one text.
struct Bare {
    upstream: String,
    body: Bytes,
}

#[async_trait]
impl ProxyHttp for Bare {
    type CTX = ();

    fn new_ctx(&self) {}

    async fn request_filter(&self, session: &mut Session, (): &mut ()) -> pingora::Result<bool> {
        if session.req_header().uri.path().starts_with("/passed") {
            return Ok(false);
        }
        let mut header = ResponseHeader::build(200, Some(4))?;
        header.insert_header("content-type", "application/json")?;
        header.insert_header("content-length", self.body.len())?;
        let header = Box::new(header);
        session.write_response_header(header, false).await?;
        let body = Some(self.body.clone());
        session.write_response_body(body, true).await?;
        Ok(true)
    }

    async fn upstream_peer(&self, _: &mut Session, (): &mut ()) -> pingora::Result<Box<HttpPeer>> {
        let peer = HttpPeer::new(self.upstream.as_str(), false, String::new());
        Ok(Box::new(peer))
    }
}

fn main() {
    let mut arguments = std::env::args()
        .skip(1)
        .filter(|arg| !arg.starts_with("--"));
    // Without arguments cargo runs every benchmark: there is nothing to measure alone.
    let (Some(port), Some(upstream), Some(body)) =
        (arguments.next(), arguments.next(), arguments.next())
    else {
        return;
    };
    let conf = ServerConf {
        threads: 1,
        ..ServerConf::default()
    };
    let mut server = Server::new_with_opt_and_conf(None, conf);
    server.bootstrap();
    let bare = Bare {
        upstream: format!("127.0.0.1:{upstream}"),
        body: Bytes::from(body),
    };
    let mut service = http_proxy_service(&server.configuration, bare);
    service.add_tcp(&format!("127.0.0.1:{}", port.parse::<u16>().unwrap()));
    server.add_service(service);
    server.run_forever();
}
