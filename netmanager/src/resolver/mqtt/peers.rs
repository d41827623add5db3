//! Which pushes about peers have been installed.

use std::collections::BTreeSet;

/// The versions of the pushes of one cluster.
#[derive(Default)]
pub(super) struct PeerVersions {
    epoch: Option<u64>,
    /// The highest version that was handed out to be installed and did not fail.
    seen: Option<u64>,
    /// The highest version that is installed.
    installed: Option<u64>,
    /// Handed out and not yet installed.
    installing: BTreeSet<u64>,
}

/// What to do with a push.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Push {
    /// Install it, then acknowledge it.
    Install,
    /// Acknowledge it: what it says is known, or replaced by something newer.
    Acknowledge,
    /// Nothing: it is being installed.
    Ignore,
}

impl PeerVersions {
    /// Takes in a push.
    pub(super) fn offer(&mut self, epoch: Option<u64>, version: u64) -> Push {
        if epoch != self.epoch {
            *self = Self {
                epoch,
                ..Self::default()
            };
        }
        if self.installing.contains(&version) {
            return Push::Ignore;
        }
        if self.seen.is_some_and(|seen| version <= seen) {
            return Push::Acknowledge;
        }
        self.seen = Some(version);
        self.installing.insert(version);
        Push::Install
    }

    /// A push has been installed, or not; whether it is to be acknowledged.
    pub(super) fn finished(&mut self, epoch: Option<u64>, version: u64, installed: bool) -> bool {
        if epoch != self.epoch {
            // The cluster counts anew and does not wait for this one.
            return false;
        }
        self.installing.remove(&version);
        if installed {
            self.installed = self.installed.max(Some(version));
        } else if self.seen == Some(version) {
            // So that it is installed when it is sent again.
            self.seen = self.installing.last().copied().max(self.installed);
        }
        installed
    }

    /// Forgets everything: whoever comes back without a memory may count anew.
    pub(super) fn reset(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_version_is_installed_once_and_acknowledged_always() {
        let mut versions = PeerVersions::default();
        assert_eq!(versions.offer(None, 5), Push::Install);
        assert_eq!(versions.offer(None, 5), Push::Ignore);
        assert_eq!(versions.offer(None, 4), Push::Acknowledge);
        assert_eq!(versions.offer(None, 6), Push::Install);
        assert!(versions.finished(None, 6, true));
        assert!(versions.finished(None, 5, true));
        for version in [4, 5, 6] {
            assert_eq!(versions.offer(None, version), Push::Acknowledge, "{version}");
        }
    }

    #[test]
    fn what_was_not_installed_is_installed_when_it_comes_again() {
        let mut versions = PeerVersions::default();
        assert_eq!(versions.offer(None, 1), Push::Install);
        assert!(versions.finished(None, 1, true));
        assert_eq!(versions.offer(None, 2), Push::Install);
        assert!(!versions.finished(None, 2, false));
        assert_eq!(versions.offer(None, 1), Push::Acknowledge);
        assert_eq!(versions.offer(None, 2), Push::Install);
    }

    #[test]
    fn another_epoch_begins_a_new_count() {
        let mut versions = PeerVersions::default();
        assert_eq!(versions.offer(Some(1), 100), Push::Install);
        assert_eq!(versions.offer(Some(2), 1), Push::Install);
        assert!(
            !versions.finished(Some(1), 100, true),
            "nobody waits for it any more"
        );
        assert!(versions.finished(Some(2), 1, true));
        assert_eq!(versions.offer(Some(2), 1), Push::Acknowledge);
        versions.reset();
        assert_eq!(versions.offer(Some(2), 1), Push::Install);
    }
}
