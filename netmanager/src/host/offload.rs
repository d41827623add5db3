//! Offloads of an interface, by the names that `ethtool -k` shows.
//!
//! A UDP superframe that crosses an uplink whole keeps the tunnel's segmentation marks when the peer has
//! taken the tunnel off, and is lost there. With [`UDP_SEGMENTATION`] off it is segmented before it leaves,
//! while TCP stays whole.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

use super::{Error, Result};

/// The feature to switch off on interfaces that lead to peers.
pub const UDP_SEGMENTATION: &str = "tx-udp-segmentation";

const ETHTOOL_GSTRINGS: u32 = 0x1b;
const ETHTOOL_GSSET_INFO: u32 = 0x37;
const ETHTOOL_GFEATURES: u32 = 0x3a;
const ETHTOOL_SFEATURES: u32 = 0x3b;
/// The set of strings that names the features.
const ETH_SS_FEATURES: u32 = 4;
const STRING_LENGTH: usize = 32;
/// Length of `struct ifreq`'s name with its terminating zero.
const NAME_LENGTH: usize = libc::IFNAMSIZ;

/// What setting a feature came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It was the other way round; the previous state is to be restored later.
    Changed,
    /// It was that way already.
    AsWanted,
    /// The driver does not let it be changed, and it is the other way round.
    Fixed,
    /// The kernel knows no such feature.
    Unknown,
}

/// Sets a feature of an interface.
///
/// # Errors
/// There is no such interface (`ENODEV`), it has no features at all (`EOPNOTSUPP`), or the kernel refuses.
pub fn set_feature(interface: &str, feature: &str, wanted: bool) -> Result<Outcome> {
    let failed = |source| Error::kernel("set offload", format!("{feature} of {interface}"), source);
    let device = Device::open(interface).map_err(failed)?;
    let Some((bit, count)) = device.position(feature).map_err(failed)? else {
        return Ok(Outcome::Unknown);
    };
    let state = device.state(bit, count).map_err(failed)?;
    if state.active == wanted {
        return Ok(Outcome::AsWanted);
    }
    if !state.changeable {
        return Ok(Outcome::Fixed);
    }
    device.set(bit, count, wanted).map_err(failed)?;
    // The kernel may take the wish and still not follow it, where another feature forbids it.
    let state = device.state(bit, count).map_err(failed)?;
    Ok(if state.active == wanted {
        Outcome::Changed
    } else {
        Outcome::Fixed
    })
}

/// Whether [`set_feature`] would try to change something: what it was before is to be noted first.
///
/// # Errors
/// As [`set_feature`].
pub fn would_change(interface: &str, feature: &str, wanted: bool) -> Result<bool> {
    let failed = |source| Error::kernel("look at offload", format!("{feature} of {interface}"), source);
    let device = Device::open(interface).map_err(failed)?;
    let Some((bit, count)) = device.position(feature).map_err(failed)? else {
        return Ok(false);
    };
    let state = device.state(bit, count).map_err(failed)?;
    Ok(state.changeable && state.active != wanted)
}

struct Device {
    socket: OwnedFd,
    name: [libc::c_char; NAME_LENGTH],
}

struct State {
    active: bool,
    changeable: bool,
}

impl Device {
    fn open(interface: &str) -> io::Result<Self> {
        let mut name = [0; NAME_LENGTH];
        if interface.len() >= NAME_LENGTH {
            return Err(io::Error::from_raw_os_error(libc::ENODEV));
        }
        for (to, from) in name.iter_mut().zip(interface.bytes()) {
            *to = from.cast_signed();
        }
        let socket = socket(
            AddressFamily::Inet,
            SockType::Datagram,
            SockFlag::SOCK_CLOEXEC,
            None,
        )?;
        Ok(Self { socket, name })
    }

    /// The feature's bit, and how many features there are.
    fn position(&self, feature: &str) -> io::Result<Option<(usize, usize)>> {
        // struct ethtool_sset_info: command, reserved, mask of sets (u64), one length per set.
        let mut info = [ETHTOOL_GSSET_INFO, 0, 0, 0, 0];
        write_u64(&mut info[2..4], 1 << ETH_SS_FEATURES);
        self.control(&mut info)?;
        let count = if read_u64(&info[2..4]) == 0 {
            0
        } else {
            info[4] as usize
        };
        // struct ethtool_gstrings: command, set, number, strings of 32 bytes.
        let mut strings = vec![0_u32; 3 + count * STRING_LENGTH / 4];
        strings[0] = ETHTOOL_GSTRINGS;
        strings[1] = ETH_SS_FEATURES;
        strings[2] = info[4];
        self.control(&mut strings)?;
        let bytes: Vec<u8> = strings[3..].iter().flat_map(|word| word.to_ne_bytes()).collect();
        let bit = bytes
            .chunks_exact(STRING_LENGTH)
            .position(|string| string.split(|byte| *byte == 0).next() == Some(feature.as_bytes()));
        Ok(bit.map(|bit| (bit, count)))
    }

    fn state(&self, bit: usize, count: usize) -> io::Result<State> {
        // struct ethtool_gfeatures: command, number of blocks, per block available, requested, active,
        // never changed.
        let blocks = count.div_ceil(32);
        let mut features = vec![0_u32; 2 + blocks * 4];
        features[0] = ETHTOOL_GFEATURES;
        features[1] = u32::try_from(blocks).map_err(io::Error::other)?;
        self.control(&mut features)?;
        let block = 2 + bit / 32 * 4;
        let is_set = |word: usize| features[block + word] & 1 << (bit % 32) != 0;
        Ok(State {
            active: is_set(2),
            changeable: is_set(0) && !is_set(3),
        })
    }

    fn set(&self, bit: usize, count: usize, wanted: bool) -> io::Result<()> {
        // struct ethtool_sfeatures: command, number of blocks, per block valid, requested.
        let blocks = count.div_ceil(32);
        let mut features = vec![0_u32; 2 + blocks * 2];
        features[0] = ETHTOOL_SFEATURES;
        features[1] = u32::try_from(blocks).map_err(io::Error::other)?;
        let block = 2 + bit / 32 * 2;
        features[block] = 1 << (bit % 32);
        features[block + 1] = u32::from(wanted) << (bit % 32);
        self.control(&mut features)
    }

    /// One ethtool command. `data` begins with its number and is as long as the command's structure says.
    fn control(&self, data: &mut [u32]) -> io::Result<()> {
        let mut request = libc::ifreq {
            ifr_name: self.name,
            ifr_ifru: libc::__c_anonymous_ifr_ifru {
                ifru_data: data.as_mut_ptr().cast(),
            },
        };
        // SAFETY: `request` and the buffer it points to outlive the call. The callers size the buffer by the
        // counts they write into it, beyond which the kernel does not write, and u32 satisfies its alignment:
        // the kernel copies bytes.
        let outcome = unsafe { libc::ioctl(self.socket.as_raw_fd(), libc::SIOCETHTOOL, &raw mut request) };
        if outcome < 0 {
            Err(io::Error::last_os_error())
        } else {
            Ok(())
        }
    }
}

fn write_u64(words: &mut [u32], value: u64) {
    let bytes = value.to_ne_bytes();
    for (word, bytes) in words.iter_mut().zip(bytes.chunks_exact(4)) {
        *word = u32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
    }
}

fn read_u64(words: &[u32]) -> u64 {
    let mut bytes = [0; 8];
    for (to, word) in bytes.chunks_exact_mut(4).zip(words) {
        to.copy_from_slice(&word.to_ne_bytes());
    }
    u64::from_ne_bytes(bytes)
}
