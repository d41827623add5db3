//! What makes an idle client speak: a segment that its stack answers, whatever the connection's numbers are.
//!
//! A client that waits for an instance that is gone does not send anything by itself, and only a segment of its own shows
//! the data plane the numbers that a reset has to have. So it gets two empty segments of its connection, half of the
//! sequence space apart: at least one of them is outside its window, which a stack answers with an acknowledgement (RFC
//! 9293, section 3.10.7.4). That one finds its flow ended, and is answered with the reset.

use dataplane_ebpf::checksum::fold;
use dataplane_ebpf::header::{
    ETHERNET_LENGTH, ETHERTYPE_IPV4, IPV4_DONT_FRAGMENT, IPV4_LENGTH, PROTOCOL_TCP, TCP_ACK, TCP_LENGTH,
};
use dataplane_ebpf::tables::FlowKey;

/// Bytes of the header before a frame of the tap: all zeros say that nothing is left to be done for the frame.
const VIRTIO_HEADER: usize = 10;
/// Bytes of a reminder as it is written to the tap.
pub const LENGTH: usize = VIRTIO_HEADER + ETHERNET_LENGTH + IPV4_LENGTH + TCP_LENGTH;

/// Sequence numbers of the two segments: no window reaches from one to the other.
const SEQUENCES: [u32; 2] = [0, 1 << 31];

/// Both segments to the client of a connection, to be written to `oak0`; `forward` is the key of its forward entry.
pub fn frames(forward: &FlowKey) -> [[u8; LENGTH]; 2] {
    SEQUENCES.map(|sequence| frame(&forward.reversed(), sequence))
}

fn frame(key: &FlowKey, sequence: u32) -> [u8; LENGTH] {
    let mut tcp = [0; TCP_LENGTH];
    tcp[0..2].copy_from_slice(&key.source_port);
    tcp[2..4].copy_from_slice(&key.destination_port);
    tcp[4..8].copy_from_slice(&sequence.to_be_bytes());
    tcp[12] = ((TCP_LENGTH / 4) << 4) as u8;
    tcp[13] = TCP_ACK;
    let [length_high, length_low] = (TCP_LENGTH as u16).to_be_bytes();
    let pseudo_header = [0, PROTOCOL_TCP, length_high, length_low];
    let sum = sum(&key.source) + sum(&key.destination) + sum(&pseudo_header) + sum(&tcp);
    tcp[16..18].copy_from_slice(&(!fold(sum)).to_ne_bytes());

    let mut ip = [0; IPV4_LENGTH];
    ip[0] = 0x45;
    ip[2..4].copy_from_slice(&((IPV4_LENGTH + TCP_LENGTH) as u16).to_be_bytes());
    ip[6..8].copy_from_slice(&IPV4_DONT_FRAGMENT.to_be_bytes());
    ip[8] = 64;
    ip[9] = PROTOCOL_TCP;
    ip[12..16].copy_from_slice(&key.source);
    ip[16..20].copy_from_slice(&key.destination);
    let checksum = !fold(self::sum(&ip));
    ip[10..12].copy_from_slice(&checksum.to_ne_bytes());

    // Addresses of the link mean nothing to the data plane.
    const ETHERTYPE: usize = VIRTIO_HEADER + ETHERNET_LENGTH - 2;
    const IP: usize = ETHERTYPE + 2;
    let mut frame = [0; LENGTH];
    frame[ETHERTYPE..IP].copy_from_slice(&ETHERTYPE_IPV4);
    frame[IP..IP + IPV4_LENGTH].copy_from_slice(&ip);
    frame[IP + IPV4_LENGTH..].copy_from_slice(&tcp);
    frame
}

/// The sum of words as they lie in memory; the number of bytes is even.
fn sum(bytes: &[u8]) -> u64 {
    let words = bytes.chunks_exact(2).filter_map(|word| word.try_into().ok());
    words.map(|word| u64::from(u16::from_ne_bytes(word))).sum()
}

#[cfg(test)]
mod tests {
    use etherparse::{SlicedPacket, TcpHeaderSlice};

    use super::*;

    #[test]
    fn both_segments_are_whole_and_belong_to_the_connection() {
        let forward = FlowKey {
            source: [10, 18, 0, 2],
            destination: [10, 30, 55, 55],
            source_port: 40_000_u16.to_be_bytes(),
            destination_port: 80_u16.to_be_bytes(),
            protocol: PROTOCOL_TCP,
            zero: [0; 3],
        };
        let numbers = frames(&forward).map(|frame| {
            let (virtio, frame) = frame.split_at(VIRTIO_HEADER);
            assert_eq!(virtio, [0; VIRTIO_HEADER]);
            let packet = SlicedPacket::from_ethernet(frame).expect("a frame");
            let Some(etherparse::NetSlice::Ipv4(ip)) = packet.net else {
                panic!("not IPv4")
            };
            let ip = ip.header().to_header();
            assert_eq!((ip.source, ip.destination), (forward.destination, forward.source));
            assert_eq!(ip.header_checksum, ip.calc_header_checksum());
            let tcp = TcpHeaderSlice::from_slice(&frame[ETHERNET_LENGTH + IPV4_LENGTH..]).expect("a segment");
            assert_eq!((tcp.source_port(), tcp.destination_port()), (80, 40_000));
            let checksum = tcp.calc_checksum_ipv4_raw(ip.source, ip.destination, &[]);
            assert_eq!(checksum, Ok(tcp.checksum()));
            assert!(tcp.ack() && !tcp.syn() && !tcp.rst() && !tcp.fin());
            tcp.sequence_number()
        });
        assert_eq!(numbers[1].wrapping_sub(numbers[0]), 1 << 31, "half of the space");
    }
}
