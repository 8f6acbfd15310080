//! Password hashes: argon2id in PHC form and bcrypt in crypt form.

use argon2::Argon2;
use argon2::Params;
use argon2::PasswordVerifier;
use argon2::password_hash::phc;

/// Most memory of an argon2id hash in KiB: four checks at once must fit a small machine.
const ARGON2_KIB_MAX: u32 = 256 * 1024;
/// Most passes of an argon2id hash.
const ARGON2_PASSES_MAX: u32 = 32;
/// Most lanes of an argon2id hash.
const ARGON2_LANES_MAX: u32 = 16;
/// Cost of a bcrypt hash: each step doubles the time; 15 is some seconds.
const BCRYPT_COST: std::ops::RangeInclusive<u32> = 4..=15;
/// Bytes of a password that bcrypt looks at.
const BCRYPT_BYTES: usize = 72;

/// Says why a hash cannot be used; `Ok` when it can.
pub(super) fn check(hash: &str) -> Result<(), &'static str> {
    if hash.starts_with("$argon2id$") {
        let parsed =
            phc::PasswordHash::new(hash).map_err(|_why| "is not a well-formed PHC hash")?;
        let params =
            Params::try_from(&parsed).map_err(|_why| "has argon2 parameters out of range")?;
        let is_whole = parsed.salt.is_some() && parsed.hash.is_some();
        let is_bearable = params.m_cost() <= ARGON2_KIB_MAX
            && params.t_cost() <= ARGON2_PASSES_MAX
            && params.p_cost() <= ARGON2_LANES_MAX;
        return match (is_whole, is_bearable) {
            (false, _) => Err("has no salt or no hash"),
            (true, false) => Err("costs more than 256 MiB, 32 passes or 16 lanes"),
            (true, true) => Ok(()),
        };
    }
    if ["$2a$", "$2b$", "$2y$"]
        .iter()
        .any(|prefix| hash.starts_with(prefix))
    {
        let parts: bcrypt::HashParts = hash
            .parse()
            .map_err(|_why: bcrypt::BcryptError| "is not a well-formed bcrypt hash")?;
        return if BCRYPT_COST.contains(&parts.get_cost()) {
            Ok(())
        } else {
            Err("has a bcrypt cost outside 4 to 15")
        };
    }
    Err("is not an argon2id or bcrypt hash")
}

/// Whether the password fits the hash. Takes as long when it does not. Blocks.
pub(super) fn verify(hash: &str, password: &[u8]) -> bool {
    if hash.starts_with("$argon2id$") {
        phc::PasswordHash::new(hash)
            .is_ok_and(|parsed| Argon2::default().verify_password(password, &parsed).is_ok())
    } else {
        // Bcrypt would silently ignore what follows byte 72: such a password is refused, in the usual time.
        let looked_at = password.get(..BCRYPT_BYTES).unwrap_or(password);
        let fits = bcrypt::verify(looked_at, hash).unwrap_or(false);
        fits && password.len() <= BCRYPT_BYTES
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ARGON2: &str = "$argon2id$v=19$m=8,t=1,p=1$c29tZXNhbHRzb21lc2FsdA$";

    fn argon2id(password: &str) -> String {
        use argon2::PasswordHasher;
        let params = Params::new(8, 1, 1, None).unwrap();
        let hasher = Argon2::new(argon2::Algorithm::Argon2id, argon2::Version::V0x13, params);
        hasher
            .hash_password(password.as_bytes())
            .unwrap()
            .to_string()
    }

    #[test]
    fn both_kinds_verify() {
        let long = "x".repeat(73);
        let argon = argon2id("secret");
        let argon_long = argon2id(&long);
        let crypt = bcrypt::hash("secret", 4).unwrap();
        let crypt_72 = bcrypt::hash("x".repeat(72), 4).unwrap();
        let rows = [
            ("argon2id", &argon, "secret", true),
            ("argon2id wrong", &argon, "Secret", false),
            ("argon2id long", &argon_long, long.as_str(), true),
            ("bcrypt", &crypt, "secret", true),
            ("bcrypt wrong", &crypt, "secre", false),
            ("bcrypt empty", &crypt, "", false),
            (
                "bcrypt 72",
                &crypt_72,
                long.get(..72).unwrap_or_default(),
                true,
            ),
            ("bcrypt 73 is not cut", &crypt_72, long.as_str(), false),
        ];
        for (name, hash, password, expected) in rows {
            assert_eq!(verify(hash, password.as_bytes()), expected, "{name}");
            assert_eq!(check(hash), Ok(()), "{name} is usable");
        }
    }

    #[test]
    fn unusable_hashes_are_refused() {
        let dear = argon2id("x").replace("m=8,", "m=4194304,");
        let rows = [
            "",
            "plain",
            "$1$abc",
            "$argon2id$",
            ARGON2,
            &dear,
            "$2b$31$short",
            "$2b$04$x",
        ];
        for hash in rows {
            assert!(check(hash).is_err(), "{hash}");
        }
    }
}
