//! Client sockets, all alike.

use std::ffi::OsString;
use std::net::{Ipv4Addr, SocketAddrV4, TcpStream};
use std::os::fd::{AsFd, AsRawFd as _};

use anyhow::{Context as _, Result, bail};
use nix::errno::Errno;
use nix::sys::socket::sockopt::{Linger, ReceiveTimeout, SendTimeout, TcpCongestion, TcpNoDelay};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrIn, connect, setsockopt, socket};
use nix::sys::time::TimeVal;

use super::PATIENCE;

/// The same on every path, whatever the machine's default is.
pub const CONGESTION_CONTROL: &str = "cubic";

/// Connects from the namespace of this thread; no call on the socket takes longer than [`PATIENCE`].
///
/// Closing it resets the connection. So neither side keeps a port for a minute (TIME_WAIT), whichever path the
/// connection takes: a client that makes ten thousand connections a second would run out of its 28,000 ports in
/// three, and a server that closes first would be handed ports that it still holds, which costs it more the longer
/// the measurement lasts. A reset ends a flow of the overlay just as a FIN does.
pub fn connected(address: Ipv4Addr, port: u16) -> Result<TcpStream> {
    let target = SocketAddrV4::new(address, port);
    let failed = || format!("cannot connect to {target}");
    let socket = socket(
        AddressFamily::Inet,
        SockType::Stream,
        SockFlag::SOCK_CLOEXEC,
        None,
    )
    .with_context(failed)?;
    use_congestion_control(&socket).with_context(failed)?;
    let patience = TimeVal::new(PATIENCE.as_secs().cast_signed(), 0);
    setsockopt(&socket, SendTimeout, &patience).with_context(failed)?;
    setsockopt(&socket, ReceiveTimeout, &patience).with_context(failed)?;
    setsockopt(&socket, TcpNoDelay, &true).with_context(failed)?;
    let at_once = libc::linger {
        l_onoff: 1,
        l_linger: 0,
    };
    setsockopt(&socket, Linger, &at_once).with_context(failed)?;
    match connect(socket.as_raw_fd(), &SockaddrIn::from(target)) {
        Ok(()) => Ok(TcpStream::from(socket)),
        Err(Errno::EINPROGRESS) => bail!("no connection to {target} within {PATIENCE:?}"),
        Err(errno) => Err(errno).with_context(failed),
    }
}

/// Makes a socket, and those that are accepted from it, use [`CONGESTION_CONTROL`]. Socket by socket, because the
/// kernel lets a namespace have no other default than those that the root namespace allows to everybody.
pub fn use_congestion_control(socket: &impl AsFd) -> Result<()> {
    setsockopt(socket, TcpCongestion, &OsString::from(CONGESTION_CONTROL))
        .with_context(|| format!("cannot use the congestion control {CONGESTION_CONTROL}"))
}
