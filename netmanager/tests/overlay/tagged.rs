//! Frames with a VLAN tag: the kernel takes the tag out before programs see the frame, so that only a real link shows
//! what becomes of it.

use std::os::fd::AsRawFd;

use etherparse::PacketBuilder;
use lab::Namespace;
use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, socket};

use crate::fixture::{DEADLINE, FAR_SERVICE, Overlay, bind};

/// A priority tag, which the stack takes for none at all, and a tag of some VLAN.
const TAGS: [u16; 2] = [0, 77];

#[test]
fn an_endpoint_sends_no_frames_with_a_tag() {
    let overlay = Overlay::new("tagged");
    overlay
        .client
        .ping(FAR_SERVICE, DEADLINE)
        .expect("the way is known");
    let server = bind(&overlay.far_servers[0], 53);
    let own = overlay.client_instance.namespace_address.octets();
    let mut sent = 0;
    for tag in TAGS {
        // To the overlay, and past it with a false source.
        for (source, destination) in [
            (own, overlay.far_instances[0].address.octets()),
            ([203, 0, 113, 7], [192, 0, 2, 2]),
        ] {
            let builder = PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2])
                .single_vlan(etherparse::VlanId::try_new(tag).expect("twelve bits"))
                .ipv4(source, destination, 64)
                .udp(4_000, 53);
            let mut frame = Vec::with_capacity(builder.size(7));
            builder.write(&mut frame, b"hostile").expect("written to memory");
            send_frame(&overlay.client, &frame);
            sent += 1;
        }
    }
    lab::wait_for("every frame to be counted", DEADLINE, || {
        Ok(overlay.near.counter("from_endpoint", "VLAN_TAGGED")? == sent)
    })
    .expect("counted");
    let client = bind(&overlay.client, 0);
    client
        .send_to(b"honest", (overlay.far_instances[0].address, 53))
        .expect("sent");
    let mut buffer = [0; 64];
    let (length, _) = server.recv_from(&mut buffer).expect("received");
    assert_eq!(&buffer[..length], b"honest");
}

/// Sends a frame as it is out of `eth0`.
fn send_frame(namespace: &Namespace, frame: &[u8]) {
    let outcome = namespace.enter(|| -> std::io::Result<()> {
        let socket = socket(
            AddressFamily::Packet,
            SockType::Raw,
            SockFlag::empty(),
            SockProtocol::EthAll,
        )?;
        let index = nix::net::if_::if_nametoindex("eth0")?;
        // SAFETY: a structure of integers, for which all zeros are a value.
        let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_ifindex = i32::try_from(index).map_err(std::io::Error::other)?;
        // SAFETY: frame and address are valid for their lengths.
        let sent = unsafe {
            libc::sendto(
                socket.as_raw_fd(),
                frame.as_ptr().cast(),
                frame.len(),
                0,
                (&raw const address).cast(),
                size_of::<libc::sockaddr_ll>() as libc::socklen_t,
            )
        };
        if sent < 0 {
            Err(std::io::Error::last_os_error())
        } else {
            Ok(())
        }
    });
    outcome.expect("entered").expect("sent");
}
