//! HTTP/2 written and read byte by byte, by a client that keeps no rule.

use std::collections::VecDeque;
use std::io::ErrorKind;
use std::io::Read;
use std::io::Write;
use std::net::SocketAddr;
use std::net::TcpStream;
use std::sync::Arc;
use std::time::Duration;
use std::time::Instant;

use tokio_rustls::rustls;
use tokio_rustls::rustls::pki_types::CertificateDer;

use crate::harness::PATIENCE;

pub(super) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Kinds of frames (RFC 9113 section 6).
pub(super) const DATA: u8 = 0;
pub(super) const HEADERS: u8 = 1;
pub(super) const PRIORITY: u8 = 2;
pub(super) const RST_STREAM: u8 = 3;
pub(super) const SETTINGS: u8 = 4;
pub(super) const PUSH_PROMISE: u8 = 5;
pub(super) const PING: u8 = 6;
pub(super) const GOAWAY: u8 = 7;
pub(super) const WINDOW_UPDATE: u8 = 8;
pub(super) const CONTINUATION: u8 = 9;

/// Flags.
pub(super) const ACK: u8 = 1;
pub(super) const END_STREAM: u8 = 1;
pub(super) const END_HEADERS: u8 = 4;
pub(super) const PADDED: u8 = 8;

/// One frame, with the length it really has.
pub(super) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut bytes = length[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend_from_slice(payload);
    bytes
}

/// One setting.
pub(super) fn setting(id: u16, value: u32) -> Vec<u8> {
    let mut payload = id.to_be_bytes().to_vec();
    payload.extend(value.to_be_bytes());
    frame(SETTINGS, 0, 0, &payload)
}

/// Fields in the plainest form of HPACK: literal, not indexed, not compressed (RFC 7541 section 6.2.2).
pub(super) fn fields<N: AsRef<[u8]>, V: AsRef<[u8]>>(all: &[(N, V)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (name, value) in all {
        bytes.push(0);
        for text in [name.as_ref(), value.as_ref()] {
            length(text.len(), &mut bytes);
            bytes.extend_from_slice(text);
        }
    }
    bytes
}

/// A length with a prefix of seven bits (RFC 7541 section 5.1).
fn length(mut left: usize, bytes: &mut Vec<u8>) {
    if left < 127 {
        bytes.push(u8::try_from(left).unwrap());
        return;
    }
    bytes.push(127);
    left -= 127;
    while left >= 128 {
        bytes.push(u8::try_from(left % 128).unwrap() | 128);
        left /= 128;
    }
    bytes.push(u8::try_from(left).unwrap());
}

/// How a conversation went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reaction {
    /// The stream was reset with this error.
    Reset(u32, u32),
    /// The stream was answered with this status.
    Status(u32, u16),
    /// The connection is given up with this error.
    GoAway(u32),
    /// It is closed, and nothing was said about why.
    Closed,
}

/// One encrypted connection.
pub(super) struct Raw {
    stream: rustls::StreamOwned<rustls::ClientConnection, TcpStream>,
    unread: Vec<u8>,
    settled: bool,
    /// Reactions that came while a ping was waited for.
    early: VecDeque<Reaction>,
}

impl Raw {
    pub(super) fn connect(address: SocketAddr, certificate: CertificateDer<'static>) -> Self {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(certificate).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = vec![b"h2".to_vec()];
        let name = "localhost".try_into().unwrap();
        let session = rustls::ClientConnection::new(Arc::new(config), name).unwrap();
        let socket = TcpStream::connect(address).unwrap();
        socket.set_nodelay(true).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket.set_write_timeout(Some(PATIENCE)).unwrap();
        Self {
            stream: rustls::StreamOwned::new(session, socket),
            unread: Vec::new(),
            settled: false,
            early: VecDeque::new(),
        }
    }

    /// Whether all of it could be sent: the gateway may have enough of it before.
    pub(super) fn send(&mut self, bytes: &[u8]) -> bool {
        self.stream.write_all(bytes).is_ok() && self.stream.flush().is_ok()
    }

    /// Waits until the gateway has read all that was sent: it has answered a ping.
    pub(super) fn settle(&mut self) {
        assert!(self.send(&frame(PING, 0, 0, b"settled?")), "a ping");
        let until = Instant::now() + PATIENCE;
        while !self.settled {
            assert!(Instant::now() < until, "a ping is answered in time");
            let reactions = self.read(Duration::from_millis(1));
            self.early.extend(reactions);
        }
        self.settled = false;
    }

    /// How long a read or a write may take.
    pub(super) fn patience(&self, time: Duration) {
        self.stream.sock.set_read_timeout(Some(time)).unwrap();
        self.stream.sock.set_write_timeout(Some(time)).unwrap();
    }

    /// The next reaction, if one comes within that time.
    pub(super) fn next_reaction(&mut self, within: Duration) -> Option<Reaction> {
        let early = self.early.pop_front();
        early.or_else(|| self.read(within))
    }

    fn read(&mut self, within: Duration) -> Option<Reaction> {
        let until = Instant::now() + within;
        loop {
            while let Some((kind, flags, stream, payload)) = self.whole() {
                let number = |bytes: &[u8]| u32::from_be_bytes(bytes.try_into().unwrap());
                match kind {
                    // The end of an answer to a body that was not waited for.
                    RST_STREAM if number(&payload) == 0 => {}
                    RST_STREAM => return Some(Reaction::Reset(stream, number(&payload))),
                    HEADERS => return Some(Reaction::Status(stream, status(&payload))),
                    GOAWAY => return Some(Reaction::GoAway(number(&payload[4..8]))),
                    SETTINGS if flags & ACK == 0 => drop(self.send(&frame(SETTINGS, ACK, 0, &[]))),
                    PING if flags & ACK != 0 => self.settled = true,
                    _ => {}
                }
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return None;
            }
            self.stream.sock.set_read_timeout(Some(left)).unwrap();
            let mut part = [0; 16_384];
            match self.stream.read(&mut part) {
                Ok(0) => return Some(Reaction::Closed),
                Ok(count) => self.unread.extend_from_slice(&part[..count]),
                Err(error)
                    if error.kind() == ErrorKind::WouldBlock
                        || error.kind() == ErrorKind::TimedOut => {}
                Err(_reset_or_cut) => return Some(Reaction::Closed),
            }
        }
    }

    /// One frame of what was read.
    fn whole(&mut self) -> Option<(u8, u8, u32, Vec<u8>)> {
        let head = self.unread.get(..9)?;
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let (kind, flags) = (head[3], head[4]);
        let stream = u32::from_be_bytes(head[5..9].try_into().unwrap());
        let end = 9 + usize::try_from(length).unwrap();
        let payload = self.unread.get(9..end)?.to_vec();
        self.unread.drain(..end);
        Some((kind, flags, stream, payload))
    }
}

/// The status, which is the first field of an answer: from the static table, or as a text of digits (RFC 7541).
fn status(block: &[u8]) -> u16 {
    const INDEXED: [(u8, u16); 7] = [
        (0x88, 200),
        (0x89, 204),
        (0x8a, 206),
        (0x8b, 304),
        (0x8c, 400),
        (0x8d, 404),
        (0x8e, 500),
    ];
    // An update of the table size may come first.
    let skipped = block
        .iter()
        .take_while(|byte| **byte & 0xe0 == 0x20)
        .count();
    let block = &block[skipped..];
    if let Some((_, status)) = INDEXED.iter().find(|(index, _)| *index == block[0]) {
        return *status;
    }
    assert!(
        matches!(block[0], 0x48 | 0x08 | 0x18),
        "a literal status: {block:02x?}"
    );
    let length = usize::from(block[1] & 0x7f);
    let text = &block[2..2 + length];
    let digits = if block[1] & 0x80 == 0 {
        String::from_utf8(text.to_vec()).unwrap()
    } else {
        digits(text)
    };
    digits.parse().unwrap()
}

/// Digits in the code of RFC 7541 appendix B: five bits for 0, 1 and 2, six for the others.
fn digits(bytes: &[u8]) -> String {
    let bits: Vec<u32> = bytes
        .iter()
        .flat_map(|byte| (0..8).rev().map(move |bit| u32::from(byte >> bit & 1)))
        .collect();
    let value = |bits: &[u32]| bits.iter().fold(0, |all, bit| all << 1 | bit);
    let (mut text, mut at) = (String::new(), 0);
    while text.len() < 3 {
        let short = value(&bits[at..at + 5]);
        let (digit, length) = if short <= 2 {
            (short, 5)
        } else {
            // 3 is 011001, and the others follow it.
            (value(&bits[at..at + 6]) - 0b01_1001 + 3, 6)
        };
        text.push(char::from_digit(digit, 10).unwrap());
        at += length;
    }
    text
}
