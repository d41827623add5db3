//! IPv4 packets, read from bytes and written back changed.

use super::{Address, Key, Name};

pub const ICMP: u8 = 1;
pub const TCP: u8 = 6;
pub const UDP: u8 = 17;

pub const FIN: u8 = 0x01;
pub const SYN: u8 = 0x02;
pub const RST: u8 = 0x04;
pub const ACK: u8 = 0x10;

/// Length of an Ethernet header.
pub const ETHERNET: usize = 14;

/// An IPv4 header.
#[derive(Clone, Copy, Debug)]
pub struct Header {
    pub length: usize,
    pub total: usize,
    pub type_of_service: u8,
    pub identification: u16,
    pub more_fragments: bool,
    /// In units of eight bytes.
    pub offset: u16,
    pub protocol: u8,
    pub source: Address,
    pub destination: Address,
}

impl Header {
    pub fn is_fragment(&self) -> bool {
        self.more_fragments || self.offset != 0
    }
}

/// What a transport header says about the flow.
#[derive(Clone, Copy, Debug)]
pub struct Transport {
    pub source_port: u16,
    pub destination_port: u16,
    pub flags: u8,
    /// Whether it may begin a flow to a service.
    pub begins: bool,
}

/// Why a header cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unreadable {
    Short,
    Malformed,
    Unsupported(Name),
}

impl Unreadable {
    /// The reason, by where the header stands.
    pub fn name(self, short: Name, malformed: Name) -> Name {
        match self {
            Self::Short => short,
            Self::Malformed => malformed,
            Self::Unsupported(name) => name,
        }
    }
}

pub fn word(bytes: &[u8], at: usize) -> Option<u16> {
    let bytes = bytes.get(at..at + 2)?;
    Some(u16::from_be_bytes([bytes[0], bytes[1]]))
}

fn address(bytes: &[u8], at: usize) -> Address {
    [bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]
}

/// Whether a frame says that it carries IPv4.
pub fn carries_ipv4(frame: &[u8]) -> bool {
    word(frame, 12) == Some(0x0800)
}

/// The header of a packet that has at least the bytes it says it has.
pub fn header(packet: &[u8]) -> Result<Header, Unreadable> {
    if packet.len() < 20 {
        return Err(Unreadable::Short);
    }
    let header = fields(packet);
    if packet[0] >> 4 != 4 || header.length < 20 || header.total < header.length {
        return Err(Unreadable::Malformed);
    }
    if header.total > packet.len() {
        return Err(Unreadable::Short);
    }
    Ok(header)
}

/// The fields of a header of which there are at least 20 bytes, whatever they say.
pub fn fields(packet: &[u8]) -> Header {
    let fragment = u16::from_be_bytes([packet[6], packet[7]]);
    Header {
        length: usize::from(packet[0] & 0x0f) * 4,
        total: usize::from(u16::from_be_bytes([packet[2], packet[3]])),
        type_of_service: packet[1],
        identification: u16::from_be_bytes([packet[4], packet[5]]),
        more_fragments: fragment & 0x2000 != 0,
        offset: fragment & 0x1fff,
        protocol: packet[9],
        source: address(packet, 12),
        destination: address(packet, 16),
    }
}

/// Looks through the options of a header (RFC 791): no source routes, and none that is longer than there is room.
pub fn check_options(packet: &[u8], header: &Header) -> Result<(), Unreadable> {
    let mut options = &packet[20..header.length];
    while let Some(kind) = options.first() {
        let length = match kind {
            0 => return Ok(()),
            1 => 1,
            131 | 137 => return Err(Unreadable::Unsupported("IP_OPTIONS")),
            _ => match options.get(1) {
                Some(length) if *length >= 2 => usize::from(*length),
                _ => return Err(Unreadable::Malformed),
            },
        };
        options = options.get(length..).ok_or(Unreadable::Malformed)?;
    }
    Ok(())
}

/// The transport header of a packet whose header has been read.
pub fn transport(packet: &[u8], header: &Header) -> Result<Transport, Unreadable> {
    let payload = &packet[header.length..header.total];
    let ports = || (word(payload, 0).unwrap_or(0), word(payload, 2).unwrap_or(0));
    match header.protocol {
        TCP => {
            if payload.len() < 20 {
                return Err(Unreadable::Short);
            }
            let length = usize::from(payload[12] >> 4) * 4;
            if length < 20 || length > payload.len() {
                return Err(Unreadable::Malformed);
            }
            let flags = payload[13];
            Ok(Transport {
                source_port: ports().0,
                destination_port: ports().1,
                flags,
                begins: flags & (FIN | SYN | RST | ACK) == SYN,
            })
        }
        UDP => {
            if payload.len() < 8 {
                return Err(Unreadable::Short);
            }
            let length = usize::from(word(payload, 4).unwrap_or(0));
            // A first fragment has only the beginning of what it says.
            if length < 8 || length > payload.len() && !header.is_fragment() {
                return Err(Unreadable::Malformed);
            }
            Ok(Transport {
                source_port: ports().0,
                destination_port: ports().1,
                flags: 0,
                begins: true,
            })
        }
        ICMP => {
            if payload.len() < 8 {
                return Err(Unreadable::Short);
            }
            let identifier = word(payload, 4).unwrap_or(0);
            match (payload[0], payload[1]) {
                (8, 0) => Ok(Transport {
                    source_port: identifier,
                    destination_port: 0,
                    flags: 0,
                    begins: true,
                }),
                (0, 0) => Ok(Transport {
                    source_port: 0,
                    destination_port: identifier,
                    flags: 0,
                    begins: false,
                }),
                (3 | 4 | 5 | 11 | 12, _) => Err(Unreadable::Unsupported("ICMP_ERROR")),
                _ => Err(Unreadable::Unsupported("ICMP_TYPE")),
            }
        }
        _ => Err(Unreadable::Unsupported("PROTOCOL")),
    }
}

/// The flow that a packet belongs to.
pub fn key(header: &Header, transport: &Transport) -> Key {
    Key {
        source: header.source,
        destination: header.destination,
        source_port: transport.source_port,
        destination_port: transport.destination_port,
        protocol: header.protocol,
    }
}

/// Words that leave a checksum, and words that come instead (RFC 1624, equation 3).
fn update(checksum: u16, old: &[u16], new: &[u16]) -> u16 {
    let mut sum = u64::from(!checksum);
    sum += old.iter().map(|word| u64::from(!word)).sum::<u64>();
    sum += new.iter().map(|word| u64::from(*word)).sum::<u64>();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

fn words(address: Address) -> [u16; 2] {
    [
        u16::from_be_bytes([address[0], address[1]]),
        u16::from_be_bytes([address[2], address[3]]),
    ]
}

/// The packet with the addresses and ports of another flow, and the checksums that go with them.
pub fn rewritten(packet: &[u8], old: &Key, new: &Key) -> Vec<u8> {
    let mut packet = packet.to_vec();
    let length = usize::from(packet[0] & 0x0f) * 4;
    let addresses = |key: &Key| [words(key.source), words(key.destination)].concat();
    let ports = |key: &Key| vec![key.source_port, key.destination_port];

    let header_checksum = u16::from_be_bytes([packet[10], packet[11]]);
    let header_checksum = update(header_checksum, &addresses(old), &addresses(new));
    packet[10..12].copy_from_slice(&header_checksum.to_be_bytes());
    packet[12..16].copy_from_slice(&new.source);
    packet[16..20].copy_from_slice(&new.destination);

    if fields(&packet).offset != 0 {
        // Ports and checksum are in the first fragment.
        return packet;
    }

    let checksum_at = length
        + match old.protocol {
            TCP => 16,
            UDP => 6,
            _ => 2,
        };
    let checksum = u16::from_be_bytes([packet[checksum_at], packet[checksum_at + 1]]);
    let (leave, join) = if old.protocol == ICMP {
        (ports(old), ports(new))
    } else {
        (
            [addresses(old), ports(old)].concat(),
            [addresses(new), ports(new)].concat(),
        )
    };
    let mut updated = if leave == join {
        checksum
    } else {
        update(checksum, &leave, &join)
    };
    if old.protocol == UDP {
        // Zero says that there is none, and all ones stand for zero (RFC 768).
        updated = match (checksum, updated) {
            (0, _) => 0,
            (_, 0) => 0xffff,
            (_, updated) => updated,
        };
    }
    packet[checksum_at..checksum_at + 2].copy_from_slice(&updated.to_be_bytes());

    if old.protocol == ICMP {
        let identifier = if new.source_port == 0 {
            new.destination_port
        } else {
            new.source_port
        };
        if (old.source_port, old.destination_port) != (new.source_port, new.destination_port) {
            packet[length + 4..length + 6].copy_from_slice(&identifier.to_be_bytes());
        }
    } else {
        packet[length..length + 2].copy_from_slice(&new.source_port.to_be_bytes());
        packet[length + 2..length + 4].copy_from_slice(&new.destination_port.to_be_bytes());
    }
    packet
}

/// The checksum of these bytes, the field itself being zero (RFC 1071).
pub fn checksum(parts: &[&[u8]]) -> u16 {
    let bytes: Vec<u8> = parts.concat();
    let words: Vec<u16> = bytes
        .chunks(2)
        .map(|word| u16::from_be_bytes([word[0], *word.get(1).unwrap_or(&0)]))
        .collect();
    update(0xffff, &[], &words)
}
