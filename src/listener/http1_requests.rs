//! Serves the requests of an HTTP/1 connection, one after another.
//!
//! Most connections are idle most of the time. Between two requests nothing is held but the connection: Pingora's session, its buffers
//! and the future that handles a request are made when the first bytes of the request have arrived.

use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Context;
use std::task::Poll;

use bytes::BytesMut;
use pingora::apps::HttpPersistentSettings;
use pingora::apps::HttpServerApp;
use pingora::apps::ReusedHttpStream;
use pingora::protocols::Stream;
use pingora::protocols::http::ServerSession;
use tokio::io::AsyncRead;
use tokio::io::ReadBuf;
use tokio::sync::watch;

use crate::listener::connection_phase;

/// Bytes of the first read of a request: more than most heads have.
const FIRST_READ_BYTES: usize = 4096;
/// Seconds for which Pingora keeps a connection whose application does not set a limit.
const KEEPALIVE_SECONDS: u64 = 60;

/// Serves requests until the connection ends.
pub(super) async fn serve_http1<A>(app: &Arc<A>, stream: Stream, shutdown: &watch::Receiver<bool>)
where
    A: HttpServerApp + Send + Sync + 'static,
{
    let mut next = Some((stream, None));
    while let Some((mut stream, settings)) = next {
        let first = std::future::poll_fn(|context| poll_first_bytes(&mut stream, context)).await;
        let first = match first {
            Ok(first) if !first.is_empty() => first,
            // The client has disconnected between two requests.
            Ok(_) | Err(_) => return,
        };
        next = handle_request(app, (stream, settings), first, shutdown)
            .await
            .map(ReusedHttpStream::consume);
        if next.is_some() {
            // The connection waits for its next request, whether or not the application has marked that.
            connection_phase::mark_request_ended();
        }
    }
}

/// A request that is being handled; the connection if it can be used again.
type HandlingRequest<'a> = Pin<Box<dyn Future<Output = Option<ReusedHttpStream>> + Send + 'a>>;

/// Handles one request of which the first bytes were read. Not `async`, so that the task of the connection has no room for a session.
fn handle_request<'a, A>(
    app: &'a Arc<A>,
    (stream, settings): (Stream, Option<HttpPersistentSettings>),
    first: BytesMut,
    shutdown: &'a watch::Receiver<bool>,
) -> HandlingRequest<'a>
where
    A: HttpServerApp + Send + Sync + 'static,
{
    let mut session = ServerSession::new_http1(stream);
    if let Some(settings) = settings {
        settings.apply_to_session(&mut session);
    } else {
        let keepalive = (!*shutdown.borrow()).then_some(KEEPALIVE_SECONDS);
        session.set_keepalive(keepalive);
        let options = app.server_options();
        let reuses = options.and_then(|options| options.keepalive_request_limit);
        session.set_keepalive_reuses_remaining(reuses);
    }
    session.set_pipelined_prefix(first);
    app.process_new_http(session, shutdown)
}

/// Reads the first bytes of a request; none at the end of the connection. The space is on the stack until something has arrived.
fn poll_first_bytes(stream: &mut Stream, context: &mut Context<'_>) -> Poll<io::Result<BytesMut>> {
    let mut space = [MaybeUninit::uninit(); FIRST_READ_BYTES];
    let mut read = ReadBuf::uninit(&mut space);
    std::task::ready!(Pin::new(stream).poll_read(context, &mut read))?;
    // As large as Pingora's own buffer, which this becomes.
    let mut first = BytesMut::with_capacity(FIRST_READ_BYTES);
    first.extend_from_slice(read.filled());
    Poll::Ready(Ok(first))
}

#[cfg(test)]
mod tests {
    use async_trait::async_trait;
    use pingora::protocols::l4::stream::Stream as Socket;
    use tokio::io::AsyncReadExt;
    use tokio::io::AsyncWriteExt;
    use tokio::net::TcpListener;
    use tokio::net::TcpStream;

    use super::*;

    /// Answers each request with its target.
    struct Echo;

    #[async_trait]
    impl HttpServerApp for Echo {
        async fn process_new_http(
            self: &Arc<Self>,
            mut session: ServerSession,
            _: &watch::Receiver<bool>,
        ) -> Option<ReusedHttpStream> {
            assert!(session.read_request().await.unwrap(), "a whole head");
            let target = session.req_header().uri.path().to_owned();
            let mut head = pingora::http::ResponseHeader::build(200, None).unwrap();
            head.insert_header("Content-Length", target.len()).unwrap();
            session.write_response_header(Box::new(head)).await.unwrap();
            let body = target.into_bytes().into();
            session.write_response_body(body, true).await.unwrap();
            let settings = HttpPersistentSettings::for_session(&session);
            let reusable = session.finish().await.unwrap()?;
            Some(ReusedHttpStream::from_reusable_stream(reusable, settings))
        }
    }

    #[tokio::test]
    async fn requests_in_any_pieces_are_served_in_a_small_task() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap());
        let (client, served) = tokio::join!(client, listener.accept());
        let mut client = client.unwrap();
        let stream: Stream = Box::new(Socket::from(served.unwrap().0));
        let (app, (_stop, stopped)) = (Arc::new(Echo), watch::channel(false));
        let serving = serve_http1(&app, stream, &stopped);
        let size = size_of_val(&serving);
        assert!(
            size < 1024,
            "room for a session in every idle connection: {size}"
        );
        let asking = async move {
            for (number, text) in ["GET /a HTTP/1.1\r\nHost: x\r\n\r\n", "G"]
                .iter()
                .enumerate()
            {
                client.write_all(text.as_bytes()).await.unwrap();
                if number == 1 {
                    tokio::task::yield_now().await;
                    let rest = b"ET /b HTTP/1.1\r\nHost: x\r\n\r\n";
                    client.write_all(rest).await.unwrap();
                }
                let expected = ["/a", "/b"][number];
                let mut reply = String::new();
                while !reply.ends_with(expected) {
                    let mut bytes = [0; 1024];
                    let count = client.read(&mut bytes).await.unwrap();
                    assert_ne!(count, 0, "{number}: {reply:?}");
                    reply.push_str(&String::from_utf8_lossy(&bytes[..count]));
                }
            }
            // The end between two requests ends the serving.
            drop(client);
        };
        tokio::join!(serving, asking);
    }
}
