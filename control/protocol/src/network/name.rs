//! The name of a service.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Number of dot-separated parts of a service name.
const PARTS: usize = 4;
/// Longest part of a service name, in characters.
const LONGEST_PART: usize = 30;

/// The name of a service, `application.namespace.service.namespace`: four parts of 1 to 30 ASCII letters and
/// digits each. Because nothing else is allowed in it, a name is safe inside topics, paths and file names.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ServiceName(String);

/// Why a text is not a service name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ServiceNameError {
    /// The text has another number of dot-separated parts than four.
    #[error("service name {name:?} has {found} dot-separated parts, 4 are needed")]
    Parts { name: String, found: usize },
    /// One part is empty, too long or holds something else than ASCII letters and digits.
    #[error("part {part:?} of service name {name:?} is not 1 to 30 ASCII letters and digits")]
    Part { name: String, part: String },
}

impl ServiceName {
    /// The whole name.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The name as it stands.
    pub fn into_string(self) -> String {
        self.0
    }
}

impl FromStr for ServiceName {
    type Err = ServiceNameError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::try_from(text.to_owned())
    }
}

impl TryFrom<String> for ServiceName {
    type Error = ServiceNameError;

    fn try_from(name: String) -> Result<Self, Self::Error> {
        let found = name.split('.').count();
        if found != PARTS {
            return Err(ServiceNameError::Parts { name, found });
        }
        let wrong = |part: &&str| {
            part.is_empty()
                || part.len() > LONGEST_PART
                || !part.bytes().all(|byte| byte.is_ascii_alphanumeric())
        };
        if let Some(part) = name.split('.').find(wrong) {
            return Err(ServiceNameError::Part {
                part: part.to_owned(),
                name,
            });
        }
        Ok(Self(name))
    }
}

impl From<ServiceName> for String {
    fn from(name: ServiceName) -> Self {
        name.0
    }
}

impl AsRef<str> for ServiceName {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ServiceName {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn four_alphanumeric_parts_are_a_name() {
        let longest = format!("a.b.c.{}", "x".repeat(30));
        for text in [
            "app.ns.service.ns",
            "1.2.3.4",
            "clientserver.test.nginx.test",
            &longest,
        ] {
            let name: ServiceName = text.parse().expect(text);
            assert_eq!(name.as_str(), text);
            assert_eq!(serde_json::to_string(&name).expect(text), format!("{text:?}"));
        }
    }

    #[test]
    fn everything_else_is_refused_with_the_part_that_is_wrong() {
        let too_long = format!("a.b.c.{}", "x".repeat(31));
        let cases = [
            ("", "has 1 dot-separated parts"),
            ("a.b.c", "has 3 dot-separated parts"),
            ("a.b.c.d.instance.0", "has 6 dot-separated parts"),
            ("a.b..d", "part \"\""),
            ("a.b.c-1.d", "part \"c-1\""),
            ("a.#.c.d", "part \"#\""),
            ("a/b.b.c.d", "part \"a/b\""),
            ("a.b.\u{e4}.d", "part \"\u{e4}\""),
            (too_long.as_str(), "is not 1 to 30"),
        ];
        for (text, expected) in cases {
            let error = text.parse::<ServiceName>().expect_err(text).to_string();
            assert!(error.contains(expected), "{text}: {error}");
            assert!(
                serde_json::from_value::<ServiceName>(text.into()).is_err(),
                "{text}"
            );
        }
    }
}
