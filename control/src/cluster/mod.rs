//! The cluster orchestrator.
