//! What the key of the active gateway holds.

use serde::Deserialize;
use serde::Serialize;

use crate::model::GatewayName;

/// The gateway that is active, as others find it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Leader {
    /// Its name.
    pub name: GatewayName,
    /// Host and port at which it takes requests of other gateways; `None` when it takes none.
    #[serde(default)]
    pub address: Option<String>,
    /// Drawn for each attempt, so that an attempt whose answer was lost is recognised.
    pub attempt: String,
}

impl Leader {
    /// A new attempt of this gateway.
    ///
    /// # Errors
    /// When the system has no randomness.
    pub(super) fn attempt(
        name: &GatewayName,
        address: Option<&str>,
    ) -> Result<Self, getrandom::Error> {
        Ok(Self {
            name: name.clone(),
            address: address.map(str::to_owned),
            attempt: format!("{:016x}", getrandom::u64()?),
        })
    }

    pub(super) fn to_text(&self) -> String {
        // A structure of two strings is always written.
        serde_json::to_string(self).unwrap_or_default()
    }

    /// `None` when another version, or another program, wrote it.
    pub(super) fn from_text(text: &[u8]) -> Option<Self> {
        serde_json::from_slice(text).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_and_attempts_differ() {
        let name = GatewayName::new("a").unwrap();
        let (one, two) = (
            Leader::attempt(&name, Some("a:1")).unwrap(),
            Leader::attempt(&name, None).unwrap(),
        );
        assert_ne!(one, two, "two attempts");
        let text = one.to_text();
        assert_eq!(Leader::from_text(text.as_bytes()), Some(one), "as written");
        let newer = br#"{"name":"b","attempt":"1","more":true}"#;
        let found = Leader::from_text(newer).map(|leader| leader.name);
        assert_eq!(found.unwrap().as_str(), "b", "members of later versions");
        assert_eq!(Leader::from_text(b"x"), None, "something else");
    }
}
