//! The services that this node wants to hear of.

use std::collections::BTreeMap;

use protocol::network::ServiceName;

use crate::resolver::ServiceRecord;

/// Services of interest, each with what was last heard of it.
#[derive(Default)]
pub(super) struct Interests(BTreeMap<ServiceName, Interest>);

struct Interest {
    record: ServiceRecord,
    refresh: Refresh,
    /// The cluster said that the service changed, and has not been heard since.
    noticed: bool,
    /// The cluster said that the service does not exist, without having said that it changed.
    doubted: bool,
}

/// Whether somebody is asking for the service at the moment.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Refresh {
    Idle,
    /// Somebody is; `again` when the answer may be older than what is already known to have changed.
    Running {
        again: bool,
    },
}

/// What an answer means for its service.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Learned {
    /// It is heard of for the first time.
    New,
    Changed,
    Unchanged,
}

/// What the answer that there is no such service means.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Absence {
    /// Nobody is interested.
    Unknown,
    /// Nothing said that it would go, so it is asked for once more before it is believed.
    Doubted,
    /// It is gone.
    Believed,
}

/// What whoever asks for a service does when there is an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    Done,
    /// Ask again at once.
    Again,
    /// Ask again after a while.
    Doubt,
}

impl Interests {
    /// Takes in an answer about a service.
    pub(super) fn learn(&mut self, name: &ServiceName, record: &ServiceRecord) -> Learned {
        let Some(interest) = self.0.get_mut(name) else {
            let record = record.clone();
            let interest = Interest {
                record,
                refresh: Refresh::Idle,
                noticed: false,
                doubted: false,
            };
            self.0.insert(name.clone(), interest);
            return Learned::New;
        };
        interest.noticed = false;
        interest.doubted = false;
        if interest.record == *record {
            return Learned::Unchanged;
        }
        interest.record = record.clone();
        Learned::Changed
    }

    /// Takes in the answer that there is no such service.
    pub(super) fn absent(&mut self, name: &ServiceName) -> Absence {
        let Some(interest) = self.0.get_mut(name) else {
            return Absence::Unknown;
        };
        if interest.noticed || interest.doubted {
            self.0.remove(name);
            return Absence::Believed;
        }
        interest.doubted = true;
        Absence::Doubted
    }

    /// Takes in that a service changed. Whether somebody has to begin to ask for it.
    pub(super) fn notice(&mut self, name: &ServiceName) -> bool {
        if let Some(interest) = self.0.get_mut(name) {
            interest.noticed = true;
        }
        self.refresh(name)
    }

    /// Wants an answer that is newer than this moment. Whether somebody has to begin to ask for it.
    pub(super) fn refresh(&mut self, name: &ServiceName) -> bool {
        let Some(interest) = self.0.get_mut(name) else {
            return false;
        };
        match &mut interest.refresh {
            Refresh::Running { again } => {
                *again = true;
                false
            }
            idle @ Refresh::Idle => {
                *idle = Refresh::Running { again: false };
                true
            }
        }
    }

    /// Marks the answer that is being waited for as possibly too old.
    pub(super) fn ask_again(&mut self, name: &ServiceName) {
        if let Some(Interest {
            refresh: Refresh::Running { again },
            ..
        }) = self.0.get_mut(name)
        {
            *again = true;
        }
    }

    /// What whoever asked for a service does after an answer, or after giving up.
    pub(super) fn refreshed(&mut self, name: &ServiceName) -> Next {
        let Some(interest) = self.0.get_mut(name) else {
            return Next::Done;
        };
        let again = matches!(interest.refresh, Refresh::Running { again: true });
        if interest.doubted || again {
            interest.refresh = Refresh::Running { again: false };
            return if interest.doubted {
                Next::Doubt
            } else {
                Next::Again
            };
        }
        interest.refresh = Refresh::Idle;
        Next::Done
    }

    /// Nobody asks for a service any more, whatever the answer was.
    pub(super) fn stop(&mut self, name: &ServiceName) {
        if let Some(interest) = self.0.get_mut(name) {
            interest.refresh = Refresh::Idle;
        }
    }

    /// Ends the interest in a service; whether there was any.
    pub(super) fn remove(&mut self, name: &ServiceName) -> bool {
        self.0.remove(name).is_some()
    }

    /// Whether there is interest in a service.
    pub(super) fn contains(&self, name: &ServiceName) -> bool {
        self.0.contains_key(name)
    }

    /// What was learnt last of a service.
    pub(super) fn record(&self, name: &ServiceName) -> Option<&ServiceRecord> {
        self.0.get(name).map(|interest| &interest.record)
    }

    /// All services of interest.
    pub(super) fn names(&self) -> Vec<ServiceName> {
        self.0.keys().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    #[test]
    fn an_answer_is_new_then_unchanged_then_changed() {
        let mut interests = Interests::default();
        assert_eq!(interests.learn(&name(), &record(1)), Learned::New);
        assert_eq!(interests.learn(&name(), &record(1)), Learned::Unchanged);
        assert_eq!(interests.learn(&name(), &record(2)), Learned::Changed);
        assert_eq!(interests.record(&name()), Some(&record(2)));
        assert!(interests.remove(&name()));
        assert_eq!(interests.learn(&name(), &record(2)), Learned::New);
    }

    #[test]
    fn notices_while_somebody_asks_are_one_more_question() {
        let mut interests = Interests::default();
        assert!(!interests.notice(&name()), "nobody is interested");
        interests.learn(&name(), &record(1));
        assert!(interests.notice(&name()));
        for _ in 0..10 {
            assert!(!interests.notice(&name()));
        }
        assert_eq!(interests.refreshed(&name()), Next::Again);
        assert_eq!(interests.refreshed(&name()), Next::Done);
        assert!(interests.notice(&name()));
        interests.ask_again(&name());
        assert_eq!(interests.refreshed(&name()), Next::Again);
    }

    #[test]
    fn an_announced_absence_is_believed_and_another_one_is_confirmed() {
        let mut interests = Interests::default();
        assert_eq!(interests.absent(&name()), Absence::Unknown);
        interests.learn(&name(), &record(1));
        interests.notice(&name());
        assert_eq!(interests.absent(&name()), Absence::Believed);
        assert!(!interests.contains(&name()));

        interests.learn(&name(), &record(1));
        assert!(interests.refresh(&name()));
        assert_eq!(interests.absent(&name()), Absence::Doubted);
        assert_eq!(interests.refreshed(&name()), Next::Doubt);
        assert_eq!(interests.absent(&name()), Absence::Believed);

        interests.learn(&name(), &record(1));
        assert_eq!(interests.absent(&name()), Absence::Doubted);
        assert_eq!(interests.learn(&name(), &record(1)), Learned::Unchanged);
        assert_eq!(
            interests.absent(&name()),
            Absence::Doubted,
            "an answer ends the doubt"
        );
    }

    fn name() -> ServiceName {
        "a.b.c.d".parse().expect("name")
    }

    fn record(octet: u8) -> ServiceRecord {
        let round_robin = vec![Ipv4Addr::new(10, 30, 0, octet)];
        ServiceRecord {
            name: name().into_string(),
            round_robin,
            closest: Vec::new(),
            instances: Vec::new(),
        }
    }
}
