//! What NetManager does to its host and to containers, in network namespaces of its own. Needs root, `ip`,
//! `nft` and `/dev/net/tun`.

mod endpoint;
mod firewall;
mod namespace;
mod oak0;
mod uplink;
