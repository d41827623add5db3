//! Who this node is. Made once and kept.

use std::fmt::Write as _;
use std::path::Path;
use std::{fs, io};

use serde::{Deserialize, Serialize};

use crate::files;

const FILE: &str = "identity.json";

/// The node's id and the secret that proves it.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// 24 hexadecimal digits.
    pub id: String,
    /// 64 hexadecimal digits; only the cluster gets to see it.
    pub node_key: String,
}

/// Without the secret: this ends up in logs.
impl std::fmt::Debug for Identity {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Identity")
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

/// Why there is no identity.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    #[error("{operation} {path}")]
    Io {
        operation: &'static str,
        path: String,
        source: io::Error,
    },
    #[error("{path} is not an identity: {reason}")]
    Content { path: String, reason: String },
}

impl Identity {
    /// The identity in the state folder, if there is one.
    ///
    /// # Errors
    /// When the file is there and cannot be used. It is left as it is.
    pub fn read(folder: &Path) -> Result<Option<Self>, IdentityError> {
        let path = folder.join(FILE);
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => {
                return Err(IdentityError::Io {
                    operation: "reading",
                    path: path.display().to_string(),
                    source,
                });
            }
        };
        let broken = |reason: String| IdentityError::Content {
            path: path.display().to_string(),
            reason,
        };
        let identity: Self = serde_json::from_slice(&text).map_err(|error| broken(error.to_string()))?;
        if !is_id(&identity.id) {
            return Err(broken(format!("{:?} is not 24 hexadecimal digits", identity.id)));
        }
        Ok(Some(identity))
    }

    /// The identity in the state folder, made if there is none.
    ///
    /// # Errors
    /// As [`Self::read`], and when a new one cannot be written.
    pub fn read_or_make(folder: &Path) -> Result<Self, IdentityError> {
        if let Some(identity) = Self::read(folder)? {
            return Ok(identity);
        }
        let identity = Self {
            id: hexadecimal(&rand::random::<[u8; 12]>()),
            node_key: hexadecimal(&rand::random::<[u8; 32]>()),
        };
        identity.write(folder)?;
        Ok(identity)
    }

    /// Keeps this identity.
    ///
    /// # Errors
    /// When the folder cannot be written.
    pub fn write(&self, folder: &Path) -> Result<(), IdentityError> {
        let path = folder.join(FILE);
        let text = serde_json::to_vec_pretty(self).map_err(|error| IdentityError::Content {
            path: path.display().to_string(),
            reason: error.to_string(),
        })?;
        files::replace(&path, &text, 0o600).map_err(|source| IdentityError::Io {
            operation: "writing",
            path: path.display().to_string(),
            source,
        })
    }
}

/// Whether a text is the id of a node. It becomes part of topics, names and labels.
pub fn is_id(text: &str) -> bool {
    text.len() == 24
        && text
            .bytes()
            .all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a String cannot fail.
        let _infallible = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn an_identity_is_made_once_and_is_for_nobody_else() {
        let folder = tempfile::tempdir().expect("folder");
        let first = Identity::read_or_make(folder.path()).expect("first");
        assert!(is_id(&first.id) && first.node_key.len() == 64);
        assert_eq!(Identity::read_or_make(folder.path()).expect("second"), first);
        let mode = fs::metadata(folder.path().join(FILE))
            .expect("file")
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600);
        assert!(!format!("{first:?}").contains(&first.node_key));
    }

    #[test]
    fn a_broken_identity_is_said_and_left_alone() {
        let folder = tempfile::tempdir().expect("folder");
        for text in ["", "{}", r#"{"id":"n1/#","node_key":"x"}"#] {
            fs::write(folder.path().join(FILE), text).expect("write");
            let error = Identity::read_or_make(folder.path()).expect_err(text).to_string();
            assert!(error.contains(FILE), "{error}");
            assert_eq!(fs::read_to_string(folder.path().join(FILE)).expect("read"), text);
        }
    }
}
