//! P-51: whether the checksums in a frame are right, computed from nothing but the frame (RFC 1071).

use dataplane_ebpf::address::TUNNEL_PORT;

use crate::frame::{ETHERNET, IPV4};

/// Checks every checksum in an Ethernet frame: of the IPv4 header, of TCP, UDP and ICMP, and those of the packet
/// inside a tunnel datagram. Frames that carry something else, and fragments, have none to check beyond the
/// IPv4 header's.
///
/// # Errors
/// What is wrong, in words.
pub fn check(frame: &[u8]) -> Result<(), String> {
    match frame.get(12..ETHERNET) {
        Some([0x08, 0x00]) => check_ipv4("", &frame[ETHERNET..]),
        _ => Ok(()),
    }
}

fn check_ipv4(which: &str, packet: &[u8]) -> Result<(), String> {
    let first = *packet.first().ok_or(format!("{which}IPv4 header missing"))?;
    let header_length = usize::from(first & 0x0f) * 4;
    let header = packet
        .get(..header_length)
        .filter(|header| header.len() >= IPV4)
        .ok_or(format!("{which}IPv4 header cut off"))?;
    verify(&format!("{which}IPv4 header"), &[header])?;

    let total = usize::from(u16::from_be_bytes([header[2], header[3]]));
    let payload = packet
        .get(header_length..total)
        .ok_or(format!("{which}IPv4 packet cut off"))?;
    if u16::from_be_bytes([header[6], header[7]]) & 0x3fff != 0 {
        return Ok(());
    }
    let (addresses, protocol) = (&header[12..20], header[9]);
    match protocol {
        1 => verify(&format!("{which}ICMP"), &[payload]),
        6 => verify_transport(&format!("{which}TCP"), addresses, protocol, payload),
        17 => {
            let length = payload.get(4..6).ok_or(format!("{which}UDP header cut off"))?;
            let datagram = payload
                .get(..usize::from(u16::from_be_bytes([length[0], length[1]])))
                .filter(|datagram| datagram.len() >= 8)
                .ok_or(format!("{which}UDP length wrong"))?;
            // Zero: the sender did not compute one (RFC 768).
            if datagram[6..8] != [0, 0] {
                verify_transport(&format!("{which}UDP"), addresses, protocol, datagram)?;
            }
            let is_tunnel = datagram[2..4] == TUNNEL_PORT.to_be_bytes();
            match &datagram[8..] {
                inner @ [version, ..] if is_tunnel && version >> 4 == 4 => check_ipv4("inner ", inner),
                _ => Ok(()),
            }
        }
        _ => Ok(()),
    }
}

fn verify_transport(what: &str, addresses: &[u8], protocol: u8, segment: &[u8]) -> Result<(), String> {
    let length = u16::try_from(segment.len())
        .expect("within an IPv4 packet")
        .to_be_bytes();
    verify(what, &[addresses, &[0, protocol], &length, segment])
}

/// A right checksum makes the words sum up to all ones. Every part but the last has an even length.
fn verify(what: &str, parts: &[&[u8]]) -> Result<(), String> {
    let mut sum: u32 = parts
        .iter()
        .flat_map(|part| part.chunks(2))
        .map(|word| u32::from(u16::from_be_bytes([word[0], *word.get(1).unwrap_or(&0)])))
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    if sum == 0xffff {
        Ok(())
    } else {
        Err(format!("{what} checksum wrong: the words sum up to {sum:#06x}"))
    }
}

mod tests {
    use super::check;
    use crate::frame::{ETHERNET, IPV4, OVERHEAD, Packet, Transport, patched};
    use crate::topology::B_TO_A;

    #[test]
    fn p51_the_oracle_accepts_right_checksums_and_finds_wrong_ones() {
        for (transport, checksum) in [(Transport::Tcp, 16), (Transport::Udp, 6), (Transport::Ping, 2)] {
            let packet = Packet {
                transport,
                payload: b"odd".to_vec(),
                ..Packet::default()
            };
            for (wrapped, offset) in [
                (packet.frame(), ETHERNET),
                (B_TO_A.around(&packet.ip()), ETHERNET + OVERHEAD),
            ] {
                assert_eq!(check(&wrapped), Ok(()), "{transport:?}");
                for (what, field) in [("IPv4", offset + 10), ("transport", offset + IPV4 + checksum)] {
                    let wrong = patched(wrapped.clone(), field, &[wrapped[field] ^ 0x40]);
                    assert!(
                        check(&wrong).is_err(),
                        "{transport:?}: wrong {what} checksum found"
                    );
                }
            }
        }
    }

    #[test]
    fn p51_the_oracle_accepts_a_datagram_without_checksum() {
        let packet = Packet {
            transport: Transport::UncheckedUdp,
            ..Packet::default()
        };
        assert_eq!(check(&packet.frame()), Ok(()));
    }
}
