//! NetManager.
