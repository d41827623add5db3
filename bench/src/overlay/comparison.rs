//! What is compared with what, in which figures, and which bars there are.

use serde::{Serialize, Serializer};

/// A path that packets take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route {
    /// Endpoints on two hosts, connected by nothing but veths, routes and the wire.
    Routing,
    /// Endpoints on two hosts, the client behind one NetManager and two replicas behind another.
    Overlay,
    /// Endpoints on one host: two veths and a route between them.
    OneHost,
    /// Endpoints on one host, client and replicas behind the same NetManager.
    OverlayOneHost,
    /// The namespaces of two hosts, without endpoints.
    Nodes,
}

impl Route {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Routing => "routing",
            Self::Overlay => "overlay",
            Self::OneHost => "two veths and a route",
            Self::OverlayOneHost => "overlay on one host",
            Self::Nodes => "node to node",
        }
    }
}

impl Serialize for Route {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

/// Two paths that are measured back to back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Comparison {
    pub measured: Route,
    pub baseline: Route,
}

impl Comparison {
    pub const ALL: [Self; 4] = [
        Self {
            measured: Route::Routing,
            baseline: Route::Routing,
        },
        Self {
            measured: Route::Overlay,
            baseline: Route::Routing,
        },
        Self {
            measured: Route::OverlayOneHost,
            baseline: Route::OneHost,
        },
        Self {
            measured: Route::Nodes,
            baseline: Route::Routing,
        },
    ];

    /// Whether both are the same path (A/A), so that the true ratio is 1 and the measured one tells how well this
    /// machine measures.
    pub fn is_control(self) -> bool {
        self.measured == self.baseline
    }

    /// The bar for a figure of this comparison, if there is one.
    pub const fn bar(self, metric: Metric) -> Option<Bar> {
        match (self.measured, metric) {
            (Route::Overlay, Metric::Throughput | Metric::Connections) => Some(Bar::AtLeast(0.9)),
            (Route::Overlay, Metric::Exchange) => Some(Bar::AtMost(1.15)),
            (Route::OverlayOneHost, Metric::Throughput) => Some(Bar::AtLeast(0.95)),
            (Route::Overlay | Route::OverlayOneHost, _)
            | (Route::Routing | Route::OneHost | Route::Nodes, _) => None,
        }
    }
}

/// A figure of a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Metric {
    /// Of one TCP stream.
    Throughput,
    /// Work of the whole machine per payload of that stream.
    Cost,
    /// The median time of a one-byte request and its response.
    Exchange,
    /// New connections, one after the other.
    Connections,
}

impl Metric {
    pub const ALL: [Self; 4] = [Self::Throughput, Self::Cost, Self::Exchange, Self::Connections];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Throughput => "TCP one stream",
            Self::Cost => "CPU seconds per gigabyte",
            Self::Exchange => "1-byte p50",
            Self::Connections => "new connections",
        }
    }

    pub const fn unit(self) -> &'static str {
        match self {
            Self::Throughput => "Gbit/s",
            Self::Cost => "s/GB",
            Self::Exchange => "µs",
            Self::Connections => "1/s",
        }
    }

    /// Digits after the point that mean something.
    pub const fn digits(self) -> usize {
        match self {
            Self::Throughput => 2,
            Self::Cost => 3,
            Self::Exchange => 1,
            Self::Connections => 0,
        }
    }
}

impl Serialize for Metric {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

/// What a ratio is to be.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Bar {
    AtLeast(f64),
    AtMost(f64),
}
