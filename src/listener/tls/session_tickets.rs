//! Session tickets, by which returning clients resume a TLS session without a full handshake.
//!
//! The server keeps nothing for a ticket: it holds the session, encrypted, and so any number of clients can resume. By default the keys
//! are made at random, replaced every six hours and never leave the memory of the process. Gateways behind one address share
//! theirs in a file, or a client that reaches another one pays for a full handshake.
//!
//! A ticket proves no identity: the certificate that it carries on is validated again for every request
//! ([`crate::listener::tls::PresentedCertificate`]).

use std::fmt;
use std::sync::Arc;

use data_encoding::HEXLOWER_PERMISSIVE;
use ring::aead;
use ring::aead::Aad;
use ring::aead::LessSafeKey;
use ring::aead::Nonce;
use ring::aead::UnboundKey;
use ring::rand::SecureRandom;
use ring::rand::SystemRandom;
use rustls::crypto::ring::Ticketer;
use rustls::server::ProducesTickets;

use crate::model::Secret;
use crate::model::limits;

/// Bytes of a key.
const KEY_BYTES: usize = 32;
/// Bytes that name the key of a ticket.
const NAME_BYTES: usize = 16;
const NONCE_BYTES: usize = aead::NONCE_LEN;

/// What makes and reads tickets.
pub(super) type SessionTickets = Arc<dyn ProducesTickets>;

/// Tickets with keys of this process.
pub(super) fn private_tickets() -> Result<SessionTickets, rustls::Error> {
    Ticketer::new()
}

/// Why a file of keys cannot be used: a lower-case sentence for the operator.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TicketKeysError {
    /// No line has a key.
    #[error("the file contains no key")]
    NoKey,
    /// A line, counted from 1, is not a key.
    #[error("line {0} is not a key of 64 hexadecimal digits")]
    NotAKey(usize),
    /// A line, counted from 1, repeats an earlier key.
    #[error("line {0} repeats an earlier key")]
    Repeated(usize),
    /// More keys than a ticket may be compared with.
    #[error("the file contains more than {} keys", limits::TICKET_KEYS_MAX)]
    TooMany,
}

/// The keys of tickets that several gateways share. The first one encrypts, all of them decrypt.
pub struct SharedTicketKeys {
    keys: Vec<TicketKey>,
}

struct TicketKey {
    name: [u8; NAME_BYTES],
    key: LessSafeKey,
}

impl SharedTicketKeys {
    /// Reads the text of a file: one key of 64 hexadecimal digits per line; empty lines and those that begin with `#` are skipped.
    ///
    /// # Errors
    /// [`TicketKeysError`]. It never contains a part of a key.
    pub fn parse(text: &Secret) -> Result<Self, TicketKeysError> {
        let mut keys: Vec<TicketKey> = Vec::new();
        for (index, line) in text.reveal().lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let number = index.saturating_add(1);
            let key = TicketKey::parse(line).ok_or(TicketKeysError::NotAKey(number))?;
            if keys.iter().any(|known| known.name == key.name) {
                return Err(TicketKeysError::Repeated(number));
            }
            if keys.len() >= limits::TICKET_KEYS_MAX {
                return Err(TicketKeysError::TooMany);
            }
            keys.push(key);
        }
        if keys.is_empty() {
            return Err(TicketKeysError::NoKey);
        }
        Ok(Self { keys })
    }
}

impl TicketKey {
    fn parse(line: &str) -> Option<Self> {
        let mut bytes = zeroize::Zeroizing::new([0; KEY_BYTES]);
        // Decoding panics if the lengths do not fit.
        if line.len() != KEY_BYTES.saturating_mul(2) {
            return None;
        }
        HEXLOWER_PERMISSIVE
            .decode_mut(line.as_bytes(), &mut *bytes)
            .ok()?;
        let hash = blake3::derive_key("snapgate 2026-11-30 name of a ticket key", &*bytes);
        let key = UnboundKey::new(&aead::CHACHA20_POLY1305, &*bytes).ok()?;
        Some(Self {
            name: *hash.first_chunk()?,
            key: LessSafeKey::new(key),
        })
    }

    fn encrypt(&self, session: &[u8]) -> Option<Vec<u8>> {
        let mut nonce = [0; NONCE_BYTES];
        // A counter would show how many tickets there were, and two gateways would use the same numbers.
        SystemRandom::new().fill(&mut nonce).ok()?;
        let mut sealed = session.to_vec();
        let (nonce, prefix) = (Nonce::assume_unique_for_key(nonce), nonce);
        self.key
            .seal_in_place_append_tag(nonce, Aad::from(self.name), &mut sealed)
            .ok()?;
        Some([&self.name[..], &prefix[..], &sealed[..]].concat())
    }

    fn decrypt(&self, nonce: [u8; NONCE_BYTES], sealed: &[u8]) -> Option<Vec<u8>> {
        let mut session = sealed.to_vec();
        let nonce = Nonce::assume_unique_for_key(nonce);
        let opened = self
            .key
            .open_in_place(nonce, Aad::from(self.name), &mut session)
            .ok()?;
        let length = opened.len();
        session.truncate(length);
        Some(session)
    }
}

impl ProducesTickets for SharedTicketKeys {
    fn enabled(&self) -> bool {
        true
    }

    fn lifetime(&self) -> u32 {
        limits::TICKET_SECONDS
    }

    fn encrypt(&self, session: &[u8]) -> Option<Vec<u8>> {
        self.keys.first()?.encrypt(session)
    }

    fn decrypt(&self, ticket: &[u8]) -> Option<Vec<u8>> {
        let (name, rest) = ticket.split_first_chunk::<NAME_BYTES>()?;
        let (nonce, sealed) = rest.split_first_chunk::<NONCE_BYTES>()?;
        // The name is no secret: it is sent in clear.
        let key = self.keys.iter().find(|key| key.name == *name)?;
        key.decrypt(*nonce, sealed)
    }
}

impl fmt::Debug for SharedTicketKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SharedTicketKeys")
            .field("keys", &self.keys.len())
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(digit: char) -> String {
        digit.to_string().repeat(64)
    }

    fn keys(lines: &[String]) -> SharedTicketKeys {
        SharedTicketKeys::parse(&Secret::new(lines.join("\n"))).unwrap()
    }

    #[test]
    fn files_of_ticket_keys_are_read_or_refused_by_line() {
        let many: Vec<String> = (0..=limits::TICKET_KEYS_MAX)
            .map(|number| format!("{number:064x}"))
            .collect();
        let rows = [
            (String::new(), Some(TicketKeysError::NoKey)),
            ("# none\n\n".to_owned(), Some(TicketKeysError::NoKey)),
            (line('a'), None),
            (
                format!("# new\r\n{}\r\n\r\n{}\r\n", line('a'), line('B')),
                None,
            ),
            (
                format!("{}\nabc", line('a')),
                Some(TicketKeysError::NotAKey(2)),
            ),
            (
                format!("{}g", "0".repeat(63)),
                Some(TicketKeysError::NotAKey(1)),
            ),
            ("+1".repeat(32), Some(TicketKeysError::NotAKey(1))),
            ("\u{e9}".repeat(32), Some(TicketKeysError::NotAKey(1))),
            (
                format!("{}\n{}", line('a'), line('A')),
                Some(TicketKeysError::Repeated(2)),
            ),
            (many.join("\n"), Some(TicketKeysError::TooMany)),
        ];
        for (text, expected) in rows {
            let found = SharedTicketKeys::parse(&Secret::new(text.clone()));
            assert_eq!(found.err(), expected, "{text:?}");
        }
    }

    #[test]
    fn a_ticket_is_read_with_its_key_alone() {
        let (one, two) = (line('1'), line('2'));
        let first = keys(std::slice::from_ref(&one));
        let ticket = first.encrypt(b"session").unwrap();
        let again = first.encrypt(b"session").unwrap();
        assert_ne!(ticket, again, "each has a nonce of its own");
        let rotated = keys(&[two.clone(), one]);
        for (name, reader, expected) in [
            ("the same gateway", &first, Some(&b"session"[..])),
            ("after a rotation", &rotated, Some(&b"session"[..])),
            ("without the key", &keys(&[two]), None),
        ] {
            let found = reader.decrypt(&ticket);
            assert_eq!(found.as_deref(), expected, "{name}");
        }
        let later = rotated.encrypt(b"session").unwrap();
        assert_eq!(first.decrypt(&later), None, "the first key encrypts");
        for index in 0..ticket.len() {
            let mut changed = ticket.clone();
            changed[index] ^= 1;
            assert_eq!(first.decrypt(&changed), None, "byte {index} is protected");
        }
        for length in 0..ticket.len() {
            assert_eq!(
                first.decrypt(&ticket[..length]),
                None,
                "cut off at {length}"
            );
        }
        let shown = format!("{first:?}");
        assert_eq!(shown, "SharedTicketKeys { keys: 1 }", "no part of a key");
    }
}
