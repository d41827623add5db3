//! The cluster orchestrator: takes what the root hands it, places it on its nodes, and answers where things are.
//!
//! [`Core`](core::Core) decides. [`Service`](service::Service) carries out: first to the store, then to the nodes over
//! the broker and to the root over the session. Whatever is lost on the way is said again, so the process may end at
//! any moment.

mod bounds;
mod broker;
mod core;
mod http;
mod records;
mod rights;
mod secret;
mod service;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use protocol::cluster::{Hello, PATH, VERSION};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use self::broker::{Accounts, Broker, Share, Tapped};
use self::core::Core;
pub use self::core::{NodeView, Patience};
use self::records::Identity;
use self::service::Service;
use crate::session::Timing;
use crate::session::client::{Client, WebSocketConnect};
use crate::store::Embedded;

/// Port of a root, where none is named.
const ROOT_PORT: u16 = 10000;
/// How long requests that are being answered may take when the cluster ends.
const FAREWELL: Duration = Duration::from_secs(2);

/// How a cluster is set up.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Folder of the state.
    pub folder: PathBuf,
    /// Where nodes register.
    pub listen: SocketAddr,
    /// Where the broker listens.
    pub broker_listen: SocketAddr,
    /// Where the root takes connections, `ws://…`.
    pub root_url: String,
    pub name: String,
    pub location: String,
    pub patience: Patience,
    pub timing: Timing,
    /// How often deadlines are looked at.
    pub tick: Duration,
}

/// A cluster that listens.
pub struct Cluster {
    service: Arc<Service>,
    tapped: mpsc::Receiver<(Tapped, Share)>,
    client: Client,
    listener: TcpListener,
    settings: Settings,
}

impl Cluster {
    /// Opens the store and all ports.
    pub async fn start(settings: Settings) -> anyhow::Result<Self> {
        let folder = settings.folder.clone();
        let store = tokio::task::spawn_blocking(move || Embedded::open(&folder)).await??;
        let identity = Identity::load(&store).await?;
        let now = std::time::Instant::now();
        let core = Core::restore(&settings.name, settings.patience.clone(), &store, now).await?;
        let accounts = Accounts::default();
        for (node, passwords) in core.accounts() {
            accounts.set(node, passwords);
        }
        let listener = TcpListener::bind(settings.listen)
            .await
            .with_context(|| format!("listen on {}", settings.listen))?;
        let (listen, granted) = (settings.broker_listen, accounts.clone());
        let (broker, tapped) = tokio::task::spawn_blocking(move || Broker::start(listen, granted))
            .await?
            .with_context(|| format!("listen on {} for nodes", settings.broker_listen))?;
        let hello = Hello {
            version: VERSION,
            cluster_name: settings.name.clone(),
            cluster_location: settings.location.clone(),
            cluster_key: identity.key,
            port: listener.local_addr()?.port(),
            session: None,
            received: 0,
        };
        let client = Client::new(hello, settings.timing.clone());
        let service = Service::new(
            core,
            Arc::new(store),
            broker,
            accounts,
            client.outbox(),
            &settings,
        );
        Ok(Self {
            service: Arc::new(service),
            tapped,
            client,
            listener,
            settings,
        })
    }

    /// Where nodes register.
    pub fn address(&self) -> std::io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Where the broker listens.
    pub fn broker_address(&self) -> SocketAddr {
        self.service.broker_address()
    }

    /// Works until `stop`, or until something happens that only a restart can mend.
    pub async fn run(self, stop: CancellationToken) -> anyhow::Result<()> {
        let Self {
            service,
            mut tapped,
            client,
            listener,
            settings,
        } = self;
        // All ends together, also when it was not asked to.
        let ending = stop.child_token();
        let failed = service.failed();

        let session = {
            let (service, ending) = (Arc::clone(&service), ending.clone());
            let connect = WebSocketConnect {
                url: settings.root_url.clone(),
            };
            tokio::spawn(async move {
                let welcomed = |welcome: &protocol::cluster::Welcome| service.welcomed(&welcome.cluster_id);
                client.run(&connect, service.as_ref(), &welcomed, &ending).await;
            })
        };
        let serving = {
            let routes =
                http::router(Arc::clone(&service)).into_make_service_with_connect_info::<SocketAddr>();
            let server =
                axum::serve(listener, routes).with_graceful_shutdown(ending.clone().cancelled_owned());
            tokio::spawn(async move { server.await })
        };

        let mut ticks = interval(settings.tick);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let result = loop {
            tokio::select! {
                () = stop.cancelled() => break Ok(()),
                () = failed.cancelled() => break Err(anyhow::anyhow!("the state cannot be stored")),
                message = tapped.recv() => match message {
                    Some((message, share)) => {
                        service.tapped(message).await;
                        drop(share);
                    }
                    None => break Err(anyhow::anyhow!("the broker has ended")),
                },
                _ = ticks.tick() => service.tick().await,
            }
        };
        ending.cancel();
        if timeout(FAREWELL, session).await.is_err() {
            warn!("the session with the root does not end in time");
        }
        if timeout(FAREWELL, serving).await.is_err() {
            warn!("requests are cut off");
        }
        info!("ended");
        result
    }
}

/// The address at which a cluster finds its root, out of what a person wrote: a host, with or without port, or a URL.
///
/// # Errors
/// A sentence that says what is wrong.
pub fn root_url(text: &str) -> Result<String, String> {
    let trimmed = text.trim().trim_end_matches('/');
    let authority = match trimmed.split_once("://") {
        Some(("http" | "ws", rest)) => rest,
        Some((scheme, _)) => return Err(format!("{text:?}: {scheme}:// is not supported, http:// is")),
        None => trimmed,
    };
    let authority = authority.split('/').next().unwrap_or_default();
    if authority.is_empty() || authority.contains(char::is_whitespace) {
        return Err(format!("{text:?} names no host"));
    }
    if let Ok(address) = authority.parse::<std::net::Ipv6Addr>() {
        return Ok(format!("ws://[{address}]:{ROOT_PORT}{PATH}"));
    }
    let has_port = authority
        .rsplit_once(':')
        .is_some_and(|(_, port)| !port.ends_with(']'));
    if !has_port {
        return Ok(format!("ws://{authority}:{ROOT_PORT}{PATH}"));
    }
    let port = authority.rsplit_once(':').map_or("", |(_, port)| port);
    match port.parse::<u16>() {
        Ok(port) if port > 0 => Ok(format!("ws://{authority}{PATH}")),
        Ok(_) | Err(_) => Err(format!("{text:?}: {port:?} is not a port from 1 to 65535")),
    }
}

#[cfg(test)]
mod tests {
    use super::root_url;

    #[test]
    fn roots_are_found_as_people_write_them() {
        let cases = [
            ("192.0.2.1", "ws://192.0.2.1:10000/api/clusters/connect"),
            ("192.0.2.1:7", "ws://192.0.2.1:7/api/clusters/connect"),
            ("root.example", "ws://root.example:10000/api/clusters/connect"),
            (
                "http://root.example:10000/",
                "ws://root.example:10000/api/clusters/connect",
            ),
            (
                "http://root.example/api",
                "ws://root.example:10000/api/clusters/connect",
            ),
            ("2001:db8::1", "ws://[2001:db8::1]:10000/api/clusters/connect"),
            ("[2001:db8::1]", "ws://[2001:db8::1]:10000/api/clusters/connect"),
            ("[2001:db8::1]:7", "ws://[2001:db8::1]:7/api/clusters/connect"),
        ];
        for (text, expected) in cases {
            assert_eq!(root_url(text).as_deref(), Ok(expected), "{text}");
        }
        for text in [
            "",
            "https://root",
            "http://",
            "root:port",
            "root:0",
            "root:70000",
            "a b",
        ] {
            assert!(root_url(text).is_err(), "{text}");
        }
    }
}
