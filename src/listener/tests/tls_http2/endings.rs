//! How connections end while clients use them, frame by frame.

use super::*;

/// Types of frames (RFC 9113 section 6).
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const END_STREAM: u8 = 1;
const ACK: u8 = 1;
const END_HEADERS: u8 = 4;
const LARGEST_STREAM: u32 = 0x7fff_ffff;

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut bytes = length[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend_from_slice(payload);
    bytes
}

/// A GET. Fields are literals without an index, or one of the static table (RFC 7541).
fn get(stream: u32, path: &str) -> Vec<u8> {
    let length = |text: &str| u8::try_from(text.len()).unwrap();
    let mut block = vec![0x82, 0x87, 0x01, length("localhost")];
    block.extend(b"localhost");
    block.extend([0x04, length(path)]);
    block.extend(path.bytes());
    frame(HEADERS, END_STREAM | END_HEADERS, stream, &block)
}

struct Frame {
    kind: u8,
    flags: u8,
    stream: u32,
    payload: Vec<u8>,
}

impl Frame {
    /// The last stream in a GOAWAY.
    fn last_stream(&self) -> u32 {
        assert_eq!(self.kind, GOAWAY, "a GOAWAY");
        u32::from_be_bytes(self.payload[..4].try_into().unwrap())
    }
}

/// A client that sends exactly what the test says, besides acknowledgements of settings.
struct Frames {
    stream: TlsStream<TcpStream>,
    unread: Vec<u8>,
}

impl Frames {
    async fn begin(gateway: &Gateway, made: &Made) -> Self {
        let client = client(&made.chain, "h2", None);
        let mut frames = Self {
            stream: gateway.secure(&client, "localhost").await.unwrap(),
            unread: Vec::new(),
        };
        frames.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await;
        frames.send(&frame(SETTINGS, 0, 0, &[])).await;
        frames
    }

    async fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).await.unwrap();
        self.stream.flush().await.unwrap();
    }

    /// The next frame; `None` at the end of the connection.
    async fn next(&mut self) -> Option<Frame> {
        loop {
            if let Some(head) = self.unread.get(..9) {
                let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
                let end = usize::try_from(length).unwrap().saturating_add(9);
                if self.unread.len() >= end {
                    let bytes: Vec<u8> = self.unread.drain(..end).collect();
                    return Some(Frame {
                        kind: bytes[3],
                        flags: bytes[4],
                        stream: u32::from_be_bytes(bytes[5..9].try_into().unwrap()),
                        payload: bytes[9..].to_vec(),
                    });
                }
            }
            let mut piece = [0; 4096];
            let count = in_time("a frame", self.stream.read(&mut piece)).await;
            match count.unwrap() {
                0 => return None,
                count => self.unread.extend_from_slice(&piece[..count]),
            }
        }
    }

    /// Skips frames up to one of this type.
    async fn until(&mut self, kind: u8) -> Frame {
        loop {
            let found = self.next().await;
            let found = found.unwrap_or_else(|| panic!("the end instead of type {kind}"));
            if found.kind == kind {
                return found;
            }
        }
    }

    /// Skips frames up to the end of the response on this stream.
    async fn answer(&mut self, stream: u32) {
        loop {
            let found = self.until(DATA).await;
            assert_eq!(found.stream, stream, "the response that is waited for");
            if found.flags & END_STREAM != 0 {
                return;
            }
        }
    }

    /// Acknowledges every PING that arrives in a short time, as clients do before they send what is queued.
    async fn acknowledge_pings(&mut self) {
        while let Ok(found) = tokio::time::timeout(Duration::from_millis(100), self.next()).await {
            let found = found.expect("the connection goes on");
            if found.kind == PING && found.flags & ACK == 0 {
                self.send(&frame(PING, ACK, 0, &found.payload)).await;
            }
        }
    }
}

#[tokio::test]
async fn a_request_that_was_queued_when_goaway_arrived_is_answered() {
    let made = made();
    let gateway = gateway_over(&limits(), Some(&made.tls));
    let mut client = Frames::begin(&gateway, &made).await;
    client.send(&get(1, "/one")).await;
    client.answer(1).await;
    gateway.port.ask_clients_to_leave();
    let first = client.until(GOAWAY).await;
    assert_eq!(first.last_stream(), LARGEST_STREAM, "without a limit");
    client.acknowledge_pings().await;
    client.send(&get(3, "/three")).await;
    client.answer(3).await;
    let ping = client.until(PING).await;
    client.send(&frame(PING, ACK, 0, &ping.payload)).await;
    let last = client.until(GOAWAY).await;
    assert_eq!(last.last_stream(), 3, "all that were sent");
    assert!(client.next().await.is_none(), "then the connection ends");
    // The gateway still reads: a socket that is reset could lose a response that is on its way.
    for _ in 0..2 {
        let credit = frame(WINDOW_UPDATE, 0, 0, &100_u32.to_be_bytes());
        client.send(&credit).await;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    drop(client);
    assert_eq!(gateway.port.drain(PATIENCE).await.cut, 0, "nothing is cut");
}

#[tokio::test]
async fn a_client_that_connects_while_the_port_stops_is_answered_once() {
    let made = made();
    let gateway = gateway_over(&limits(), Some(&made.tls));
    let mut client = Frames::begin(&gateway, &made).await;
    drop(client.until(SETTINGS).await);
    let address = gateway.port.address();
    let (drained, ()) = tokio::join!(gateway.port.drain(PATIENCE), async {
        while TcpStream::connect(address).await.is_ok() {
            tokio::task::yield_now().await;
        }
        client.send(&get(1, "/one")).await;
        client.answer(1).await;
        let first = client.until(GOAWAY).await;
        assert_eq!(first.last_stream(), LARGEST_STREAM, "after the response");
    });
    assert_eq!(drained.cut, 0, "nothing is cut");
}

/// A connection on which nothing is read until it is let go.
struct Held {
    socket: TcpStream,
    go: tokio::sync::oneshot::Receiver<()>,
    may_read: bool,
}

impl AsyncRead for Held {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        if !self.may_read {
            std::task::ready!(Pin::new(&mut self.go).poll(context)).unwrap();
            self.may_read = true;
        }
        Pin::new(&mut self.socket).poll_read(context, buffer)
    }
}

impl AsyncWrite for Held {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.socket).poll_write(context, bytes)
    }

    fn poll_flush(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(context)
    }

    fn poll_shutdown(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(context)
    }
}

#[tokio::test]
async fn a_handshake_that_has_begun_is_finished_while_the_port_stops() {
    let made = made();
    let gateway = gateway_over(&limits(), Some(&made.tls));
    let address = gateway.port.address();
    let (let_go, go) = tokio::sync::oneshot::channel();
    let held = Held {
        socket: gateway.connect().await,
        go,
        may_read: false,
    };
    let silent = gateway.connect().await;
    until("both accepted", || gateway.port.connections() == 2).await;
    let connector = client(&made.chain, "http/1.1", None);
    let name = ServerName::try_from("localhost").unwrap();
    let port = gateway.port;
    let (drained, (), ()) = tokio::join!(
        port.drain(PATIENCE),
        async {
            let mut stream = connector.connect(name, held).await.unwrap();
            stream
                .write_all(b"GET /a HTTP/1.1\r\nHost: localhost\r\n\r\n")
                .await
                .unwrap();
            let mut bytes = Vec::new();
            let read = in_time("an answer", stream.read_to_end(&mut bytes)).await;
            read.unwrap();
            let text = String::from_utf8(bytes).unwrap();
            assert!(text.ends_with("\r\n\r\n/a"), "{text}");
            assert!(closes(&text), "and the last: {text}");
        },
        async {
            while TcpStream::connect(address).await.is_ok() {
                tokio::task::yield_now().await;
            }
            // A client that has sent nothing is not waited for.
            let mut silent = silent;
            let mut byte = [0];
            let read = in_time("the silent one", silent.read(&mut byte)).await;
            assert!(!matches!(read, Ok(1..)), "the silent one is closed");
            let_go.send(()).unwrap();
        }
    );
    assert_eq!(drained.cut, 0, "nothing is cut");
}
