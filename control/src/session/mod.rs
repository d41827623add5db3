//! The numbered and acknowledged wire between a cluster and its root.
