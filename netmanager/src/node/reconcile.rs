//! What the node has set on its host, kept that way whoever changes it.

use std::time::Duration;

use tokio::time::Instant;

use super::{Kept, Node, host_address, lock};
use crate::host::oak0::Oak0Options;
use crate::host::{Route, RouteTarget, firewall};

/// How often the firewall is looked through at most while links and routes change all the time.
const FIREWALL_EVERY: Duration = Duration::from_secs(1);

impl Node {
    /// Puts back what others have taken away: of `oak0`, the routes to endpoints, and settings of the kernel. One that
    /// fails does not keep the others from it. What is as it should be is not written, so that this causes no
    /// changes to follow.
    pub(super) async fn reconcile_host(&self) {
        let options = oak0_options(self);
        if let Err(error) = self.oak0.reconcile(&self.netlink, &options).await {
            tracing::error!(%error, "oak0 is not as it should be");
        }
        let mut kept = self.kept.lock().await;
        self.restore_endpoint_routes(&kept).await;
        self.settle_fewer_ports(&mut kept).await;
        let before = kept.state.sysctls.clone();
        if let Err(error) = kept.state.sysctls.set_required() {
            tracing::error!(%error, "a setting is not what the overlay needs");
        }
        if kept.state.sysctls != before
            && let Err(error) = kept.save()
        {
            tracing::error!(%error, "cannot note a changed setting");
        }
    }

    async fn restore_endpoint_routes(&self, kept: &Kept) {
        let present = match self.netlink.own_routes().await {
            Ok(present) => present,
            Err(error) => return tracing::error!(%error, "cannot look at the routes to endpoints"),
        };
        for endpoint in kept.state.endpoints.values() {
            let Some(attached) = &endpoint.attached else {
                continue;
            };
            let target = RouteTarget::Link {
                interface: attached.interface,
            };
            let route = Route {
                destination: endpoint.namespace_address,
                prefix_length: 32,
                target,
            };
            if present.contains(&route) {
                continue;
            }
            match self.netlink.ensure_route(&route).await {
                Ok(_) => tracing::info!(%route, "put back the route to an endpoint"),
                // Its container may just have ended.
                Err(error) => tracing::warn!(%error, "no route to an endpoint"),
            }
        }
    }

    /// Lets the firewall guard the tunnels that there are; `whole` looks at the rest of it too.
    pub(super) async fn guard_tunnels(&self, whole: bool) -> anyhow::Result<()> {
        let last = *lock(&self.firewall_applied);
        if whole && last.is_none_or(|last| last.elapsed() >= FIREWALL_EVERY) {
            *lock(&self.firewall_applied) = Some(Instant::now());
            return self.apply_firewall().await;
        }
        let wanted = self.wanted_tunnels();
        if *lock(&self.tunnels) == wanted {
            return Ok(());
        }
        match firewall::set_tunnels(&self.registration.node_id, &wanted).await {
            Ok(_changed) => {
                *lock(&self.tunnels) = wanted;
                Ok(())
            }
            Err(error) => {
                tracing::warn!(%error, "the firewall is not as it was left: set up again");
                self.apply_firewall().await
            }
        }
    }
}

fn oak0_options(node: &Node) -> Oak0Options {
    Oak0Options {
        address: host_address(&node.registration),
        mtu: u32::from(node.config.mtu),
    }
}
