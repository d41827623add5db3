//! A socket to the kernel's links, addresses, routes and neighbours, with errors that say what was asked and
//! about which object.

use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use rtnetlink::packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REPLACE, NLM_F_REQUEST, NetlinkMessage,
    NetlinkPayload,
};
use rtnetlink::packet_route::address::{AddressAttribute, AddressMessage, AddressScope};
use rtnetlink::packet_route::link::{
    InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkLayerType, LinkMessage, State,
};
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};
use rtnetlink::{AddressMessageBuilder, Handle, LinkMessageBuilder, LinkUnspec};

use super::{Error, Result};

/// The kernel answers at once; only an answer that could not be decoded never comes.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);

/// A routing socket. It belongs to the network namespace in which it was opened, whichever thread uses it.
/// Clones share the socket; it closes with the last of them.
#[derive(Clone, Debug)]
pub struct Netlink {
    handle: Handle,
    /// Held by whoever lists something.
    listing: Arc<tokio::sync::Mutex<()>>,
}

/// A network interface as NetManager looks at it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    pub index: u32,
    pub name: String,
    /// What somebody noted about the link, such as whose it is.
    pub alias: Option<String>,
    /// The Ethernet address; none for interfaces that are no Ethernet.
    pub mac: Option<[u8; 6]>,
    /// Largest packet in bytes.
    pub mtu: u32,
    pub up: bool,
    /// Whether the kernel sends through it: it is up, the other end is too, and its queue is in place.
    pub operational: bool,
    pub loopback: bool,
    pub veth: bool,
    /// Index of the other end, in the namespace of the other end.
    pub peer: Option<u32>,
    /// What the kernel calls the namespace of the other end; none for the same namespace.
    pub peer_namespace: Option<i32>,
}

/// An IPv4 address on an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InterfaceAddress {
    pub interface: u32,
    pub address: Ipv4Addr,
    pub prefix_length: u8,
    pub host_scope: bool,
}

impl Netlink {
    /// Opens a socket in the network namespace of the calling thread. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// The kernel refuses the socket.
    pub fn open() -> Result<Self> {
        // Strict checking makes the kernel filter dumps by the fields of the request.
        let (connection, handle, _unsolicited) = rtnetlink::new_connection_with_strict_check()
            .map_err(|error| Error::kernel("open", "routing socket", error))?;
        tokio::spawn(connection);
        let listing = Arc::default();
        Ok(Self { handle, listing })
    }

    /// Asks for something to be done.
    pub(crate) async fn change(
        &self,
        operation: &'static str,
        object: &str,
        message: RouteNetlinkMessage,
        flags: u16,
    ) -> Result<()> {
        let mut request = NetlinkMessage::from(message);
        request.header.flags = NLM_F_REQUEST | NLM_F_ACK | flags;
        self.exchange(operation, object, request).await?;
        Ok(())
    }

    /// Asks for all objects of a kind.
    pub(crate) async fn dump(
        &self,
        operation: &'static str,
        object: &str,
        message: RouteNetlinkMessage,
    ) -> Result<Vec<RouteNetlinkMessage>> {
        let mut request = NetlinkMessage::from(message);
        request.header.flags = NLM_F_REQUEST | NLM_F_DUMP;
        // The kernel carries out one listing at a time on a socket and refuses a second one with EBUSY.
        let _turn = self.listing.lock().await;
        self.exchange(operation, object, request).await
    }

    /// Asks for one object.
    pub(crate) async fn ask(
        &self,
        operation: &'static str,
        object: &str,
        message: RouteNetlinkMessage,
    ) -> Result<Option<RouteNetlinkMessage>> {
        let mut request = NetlinkMessage::from(message);
        request.header.flags = NLM_F_REQUEST;
        Ok(self.exchange(operation, object, request).await?.pop())
    }

    async fn exchange(
        &self,
        operation: &'static str,
        object: &str,
        request: NetlinkMessage<RouteNetlinkMessage>,
    ) -> Result<Vec<RouteNetlinkMessage>> {
        let failed = |source| Error::kernel(operation, object, source);
        let mut handle = self.handle.clone();
        let mut answers = handle
            .request(request)
            .map_err(|error| failed(io::Error::new(io::ErrorKind::BrokenPipe, error.to_string())))?;
        let collecting = async {
            let mut collected = Vec::new();
            while let Some(answer) = answers.next().await {
                if let NetlinkPayload::InnerMessage(message) = answer.payload {
                    collected.push(message);
                } else if let NetlinkPayload::Error(error) = answer.payload {
                    return Err(failed(error.to_io()));
                }
            }
            Ok(collected)
        };
        tokio::time::timeout(ANSWER_WITHIN, collecting)
            .await
            .map_err(|elapsed| failed(io::Error::new(io::ErrorKind::TimedOut, elapsed)))?
    }

    /// The link of this name, if there is one.
    ///
    /// # Errors
    /// The kernel refuses the question.
    pub async fn link_by_name(&self, name: &str) -> Result<Option<Link>> {
        let message = LinkUnspec::new_with_name(name).build();
        self.one_link(name, message).await
    }

    /// The link of this index, if there is one.
    ///
    /// # Errors
    /// The kernel refuses the question.
    pub async fn link_by_index(&self, index: u32) -> Result<Option<Link>> {
        let message = LinkUnspec::new_with_index(index).build();
        self.one_link(&format!("index {index}"), message).await
    }

    async fn one_link(&self, object: &str, message: LinkMessage) -> Result<Option<Link>> {
        let answer = self
            .ask("look up link", object, RouteNetlinkMessage::GetLink(message))
            .await;
        let answer = absent_is_none(answer, libc::ENODEV)?;
        Ok(answer.flatten().and_then(link_of))
    }

    /// All links of the namespace.
    ///
    /// # Errors
    /// The kernel refuses the question.
    pub async fn links(&self) -> Result<Vec<Link>> {
        let message = RouteNetlinkMessage::GetLink(LinkMessage::default());
        let answers = self.dump("list", "links", message).await?;
        Ok(answers.into_iter().filter_map(link_of).collect())
    }

    /// Makes a link.
    ///
    /// # Errors
    /// `EEXIST` when the name is taken, or whatever the kernel refuses.
    pub(crate) async fn add_link(&self, name: &str, message: LinkMessage) -> Result<()> {
        self.change(
            "create link",
            name,
            RouteNetlinkMessage::NewLink(message),
            NLM_F_CREATE | NLM_F_EXCL,
        )
        .await
    }

    /// Changes a link that exists.
    pub(crate) async fn set_link(
        &self,
        operation: &'static str,
        name: &str,
        message: LinkMessage,
    ) -> Result<()> {
        self.change(operation, name, RouteNetlinkMessage::NewLink(message), 0)
            .await
    }

    /// Switches a link up or down.
    pub(crate) async fn set_link_up(&self, name: &str, index: u32, up: bool) -> Result<()> {
        let link = LinkUnspec::new_with_index(index);
        let (operation, link): (_, LinkMessageBuilder<LinkUnspec>) = if up {
            ("set up", link.up())
        } else {
            ("set down", link.down())
        };
        self.set_link(operation, name, link.build()).await
    }

    /// Removes a link; whether there was one to remove.
    ///
    /// # Errors
    /// The kernel refuses for another reason than that it is gone.
    pub(crate) async fn delete_link(&self, name: &str, index: u32) -> Result<bool> {
        let message = LinkUnspec::new_with_index(index).build();
        let outcome = self
            .change("delete link", name, RouteNetlinkMessage::DelLink(message), 0)
            .await;
        Ok(absent_is_none(outcome, libc::ENODEV)?.is_some())
    }

    /// Puts an IPv4 address on a link; whether it was not there before.
    pub(crate) async fn ensure_address(
        &self,
        link: &str,
        index: u32,
        address: Ipv4Addr,
        prefix_length: u8,
    ) -> Result<bool> {
        let message = AddressMessageBuilder::<Ipv4Addr>::new()
            .index(index)
            .address(address, prefix_length)
            .build();
        let object = format!("{address}/{prefix_length} on {link}");
        let message = RouteNetlinkMessage::NewAddress(message);
        let outcome = self
            .change("add address", &object, message, NLM_F_CREATE | NLM_F_EXCL)
            .await;
        Ok(absent_is_none(outcome, libc::EEXIST)?.is_some())
    }

    /// Takes an IPv4 address from a link; whether it was there.
    pub(crate) async fn remove_address(&self, address: &InterfaceAddress) -> Result<bool> {
        let InterfaceAddress {
            interface,
            address,
            prefix_length,
            ..
        } = *address;
        let message = AddressMessageBuilder::<Ipv4Addr>::new()
            .index(interface)
            .address(address, prefix_length)
            .build();
        let object = format!("{address}/{prefix_length} on index {interface}");
        let message = RouteNetlinkMessage::DelAddress(message);
        let outcome = self.change("delete address", &object, message, 0).await;
        Ok(absent_is_none(outcome, libc::EADDRNOTAVAIL)?.is_some())
    }

    /// The IPv4 addresses of one interface, or of all.
    ///
    /// # Errors
    /// The kernel refuses the question.
    pub async fn addresses(&self, interface: Option<u32>) -> Result<Vec<InterfaceAddress>> {
        let mut message = AddressMessage::default();
        message.header.family = AddressFamily::Inet;
        message.header.index = interface.unwrap_or_default();
        let message = RouteNetlinkMessage::GetAddress(message);
        let outcome = self.dump("list", "addresses", message).await;
        let answers = absent_is_none(outcome, libc::ENODEV)?.unwrap_or_default();
        Ok(answers.into_iter().filter_map(address_of).collect())
    }

    /// Makes a permanent neighbour entry, or makes it right.
    pub(crate) async fn ensure_neighbour(
        &self,
        link: &str,
        index: u32,
        address: Ipv4Addr,
        mac: [u8; 6],
    ) -> Result<()> {
        let mut request = self
            .handle
            .neighbours()
            .add(index, IpAddr::V4(address))
            .link_layer_address(&mac);
        let message = RouteNetlinkMessage::NewNeighbour(request.message_mut().clone());
        let object = format!("{address} on {link}");
        self.change("add neighbour", &object, message, NLM_F_CREATE | NLM_F_REPLACE)
            .await
    }
}

/// Turns the refusal that only says "already as wanted" into `None`.
pub(crate) fn absent_is_none<T>(outcome: Result<T>, errno: i32) -> Result<Option<T>> {
    match outcome {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.errno() == Some(errno) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Runs `work` on a thread of its own, within the current tokio runtime, and waits for it without blocking.
/// For work that changes what the thread is, such as its network namespace.
pub(crate) async fn on_own_thread<T, F>(operation: &'static str, object: &str, work: F) -> Result<T>
where
    T: Send + 'static,
    F: FnOnce() -> Result<T> + Send + 'static,
{
    let failed = |source| Error::kernel(operation, object, source);
    let runtime = tokio::runtime::Handle::current();
    let (sender, receiver) = tokio::sync::oneshot::channel();
    std::thread::Builder::new()
        .name("namespace".to_owned())
        .spawn(move || {
            let _within = runtime.enter();
            // The receiver is gone only when the caller was cancelled: nobody wants the result any more.
            drop(sender.send(work()));
        })
        .map_err(failed)?;
    receiver
        .await
        .map_err(|closed| failed(io::Error::other(closed)))?
}

fn link_of(message: RouteNetlinkMessage) -> Option<Link> {
    let RouteNetlinkMessage::NewLink(message) = message else {
        return None;
    };
    let flags = message.header.flags;
    let ethernet = message.header.link_layer_type == LinkLayerType::Ether;
    let mut link = Link {
        index: message.header.index,
        name: String::new(),
        alias: None,
        mac: None,
        mtu: 0,
        up: flags.contains(LinkFlags::Up),
        operational: false,
        loopback: flags.contains(LinkFlags::Loopback),
        veth: false,
        peer: None,
        peer_namespace: None,
    };
    for attribute in message.attributes {
        if let LinkAttribute::IfName(name) = attribute {
            link.name = name;
        } else if let LinkAttribute::IfAlias(alias) = attribute {
            link.alias = Some(alias);
        } else if let LinkAttribute::Address(mac) = attribute {
            link.mac = mac.try_into().ok().filter(|_| ethernet);
        } else if let LinkAttribute::Mtu(mtu) = attribute {
            link.mtu = mtu;
        } else if let LinkAttribute::Link(peer) = attribute {
            link.peer = Some(peer);
        } else if let LinkAttribute::LinkNetNsId(namespace) = attribute {
            link.peer_namespace = Some(namespace);
        } else if let LinkAttribute::OperState(state) = attribute {
            link.operational = state == State::Up;
        } else if let LinkAttribute::LinkInfo(info) = attribute {
            link.veth = info.contains(&LinkInfo::Kind(InfoKind::Veth));
        }
    }
    Some(link)
}

fn address_of(message: RouteNetlinkMessage) -> Option<InterfaceAddress> {
    let RouteNetlinkMessage::NewAddress(message) = message else {
        return None;
    };
    // IFA_LOCAL is the own address; on a point-to-point link IFA_ADDRESS is the other end's.
    let address = message.attributes.iter().find_map(|attribute| {
        if let AddressAttribute::Local(IpAddr::V4(address)) = attribute {
            Some(*address)
        } else {
            None
        }
    })?;
    Some(InterfaceAddress {
        interface: message.header.index,
        address,
        prefix_length: message.header.prefix_len,
        host_scope: message.header.scope == AddressScope::Host,
    })
}
