//! The root orchestrator.
