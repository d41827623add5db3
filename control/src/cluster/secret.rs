//! Secrets that machines made: long and random, so that one round of a hash is enough to store them.

use std::fmt::Write as _;

use rand::Rng as _;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

/// What is kept of a secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Digest(String);

impl Digest {
    pub fn of(secret: impl AsRef<[u8]>) -> Self {
        Self(hexadecimal(&Sha256::digest(secret)))
    }

    /// 64 hexadecimal digits.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// A new secret of 256 bits.
pub fn secret() -> String {
    hexadecimal(&rand::rng().random::<[u8; 32]>())
}

/// A new id, 24 hexadecimal digits.
pub fn id() -> String {
    hexadecimal(&rand::rng().random::<[u8; 12]>())
}

/// Whether a text could have been made by [`id`].
pub fn is_id(text: &str) -> bool {
    text.len() == 24 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a text cannot fail.
        write!(text, "{byte:02x}").unwrap_or_default();
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_and_ids_are_made_once() {
        assert_ne!(secret(), secret());
        assert!(is_id(&id()) && id() != id());
        assert_eq!(Digest::of("a"), Digest::of(b"a"));
        assert_ne!(Digest::of("a"), Digest::of("b"));
        for text in [
            "",
            "0123456789abcdef0123456",
            "0123456789ABCDEF01234567",
            "0123456789abcdef0123456/",
        ] {
            assert!(!is_id(text), "{text}");
        }
    }
}
