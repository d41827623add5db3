//! What this machine offers to the data plane, what it lacks, and what is used instead.
//!
//! Looks at the machine alone: no daemon need run, and nothing is changed but for what a look itself takes (programs
//! that are loaded and let go again).

mod facts;
mod host;
mod kernel;
mod rights;

use serde::{Deserialize, Serialize};

/// Whether something is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// It is there.
    Open,
    /// It is not.
    Missing,
    /// It cannot be told.
    Unknown,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Check {
    pub name: String,
    pub state: State,
    /// Whether NetManager cannot do without it.
    pub needed: bool,
    /// What was seen.
    pub detail: String,
    /// What to do about it; empty where there is nothing to do.
    pub advice: String,
    /// What is used where it is missing; `None` where nothing is.
    pub instead: Option<String>,
}

impl Check {
    fn new(name: &str, state: State, detail: impl Into<String>) -> Self {
        Self {
            name: name.to_owned(),
            state,
            needed: true,
            detail: detail.into(),
            advice: String::new(),
            instead: None,
        }
    }

    fn optional(self) -> Self {
        Self {
            needed: false,
            ..self
        }
    }

    /// What to do where it is not there.
    fn advise(self, advice: &str) -> Self {
        let advice = match self.state {
            State::Open => String::new(),
            State::Missing | State::Unknown => advice.to_owned(),
        };
        Self { advice, ..self }
    }

    /// What is used where it is missing, which makes it dispensable.
    fn instead(self, instead: &str) -> Self {
        let is_missing = self.state == State::Missing;
        Self {
            instead: is_missing.then(|| instead.to_owned()),
            needed: false,
            ..self
        }
    }

    /// Whether NetManager cannot work here for want of it.
    #[must_use]
    pub fn is_fatal(&self) -> bool {
        self.needed && self.state == State::Missing
    }
}

/// Looks at everything.
pub async fn examine() -> Vec<Check> {
    let mut checks = rights::checks();
    checks.extend(kernel::checks());
    checks.extend(host::checks().await);
    checks
}
