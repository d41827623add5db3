//! The file behind a persistent TAP interface: frames with a 10-byte virtio header, read and written as they
//! are.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;

use tokio::io::unix::AsyncFd;

use super::{Error, Result};

const DEVICE: &str = "/dev/net/tun";

/// Size of `struct virtio_net_hdr` in bytes, which stands before each frame.
pub(crate) const HEADER_LENGTH: libc::c_int = 10;

/// The offloads the file's reader can do without: checksums, segmentation of TCP and of UDP (`TUN_F_*`).
const OFFLOADS: libc::c_uint = libc::TUN_F_CSUM | TUN_F_TSO | libc::TUN_F_USO4 | libc::TUN_F_USO6;
/// The same without segmentation of UDP, which the kernel has since 6.2.
const OFFLOADS_WITHOUT_UDP: libc::c_uint = libc::TUN_F_CSUM | TUN_F_TSO;
const TUN_F_TSO: libc::c_uint = libc::TUN_F_TSO4 | libc::TUN_F_TSO6;

/// A TAP interface that only this process reads.
#[derive(Debug)]
pub(crate) struct Tap {
    file: AsyncFd<File>,
    name: &'static str,
    udp_segmentation: bool,
}

impl Tap {
    /// Opens the interface, or makes it; until [`Self::persist`] a new one is gone with the file.
    pub fn open(name: &'static str) -> Result<Self> {
        let failed = |operation| move |error| Error::kernel(operation, name, error);
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
            .open(DEVICE)
            .map_err(|error| Error::kernel("open", DEVICE, error))?;
        attach(&file, name).map_err(|error| match error.raw_os_error() {
            Some(libc::EBUSY) => Error::AlreadyRunning(name),
            // Another kind of link, or a TUN.
            Some(libc::EINVAL) => Error::ForeignLink(name.to_owned()),
            _ => Error::kernel("attach to", name, error),
        })?;
        let header_length = HEADER_LENGTH;
        // SAFETY: the argument is a pointer to an int, which outlives the call.
        unsafe {
            control(
                &file,
                libc::TUNSETVNETHDRSZ,
                &raw const header_length as libc::c_ulong,
            )
        }
        .map_err(failed("set header size of"))?;
        let udp_segmentation = set_offloads(&file).map_err(failed("set offloads of"))?;
        if !udp_segmentation {
            tracing::info!(interface = name, "this kernel segments UDP before the tap");
        }
        // SAFETY: the file owns its descriptor and keeps it until it is dropped.
        let file = unsafe { AsyncFd::register(file) }.map_err(|error| failed("watch")(error.into()))?;
        Ok(Self {
            file,
            name,
            udp_segmentation,
        })
    }

    pub fn udp_segmentation(&self) -> bool {
        self.udp_segmentation
    }

    /// Whether the interface outlives the file.
    pub fn persist(&self, persist: bool) -> Result<()> {
        // SAFETY: the argument is a number, not a pointer.
        unsafe { control(self.file.get_ref(), libc::TUNSETPERSIST, persist.into()) }
            .map_err(|error| Error::kernel("set persistence of", self.name, error))
    }

    pub async fn receive(&self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let mut ready = self.file.readable().await?;
            if let Ok(outcome) = ready.try_io(|file| file.get_ref().read(buffer)) {
                return outcome;
            }
        }
    }

    pub async fn send(&self, frame: &[u8]) -> io::Result<()> {
        loop {
            let mut ready = self.file.writable().await?;
            if let Ok(outcome) = ready.try_io(|file| file.get_ref().write(frame)) {
                // The kernel takes a frame whole or not at all.
                return outcome.map(drop);
            }
        }
    }
}

fn attach(file: &File, name: &str) -> io::Result<()> {
    // SAFETY: all bytes zero is a valid `ifreq`: it consists of integers and a union of plain data.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from.cast_signed();
    }
    // Without IFF_MULTI_QUEUE a second process is refused with EBUSY.
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    request.ifr_ifru.ifru_flags = flags.try_into().map_err(io::Error::other)?;
    // SAFETY: the argument is a pointer to an `ifreq`, which outlives the call.
    unsafe { control(file, libc::TUNSETIFF, &raw mut request as libc::c_ulong) }
}

/// Whether segmentation of UDP is among them.
fn set_offloads(file: &File) -> io::Result<bool> {
    // SAFETY: the argument is a number, not a pointer.
    match unsafe { control(file, libc::TUNSETOFFLOAD, OFFLOADS.into()) } {
        Ok(()) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
            // SAFETY: the argument is a number, not a pointer.
            unsafe { control(file, libc::TUNSETOFFLOAD, OFFLOADS_WITHOUT_UDP.into()) }?;
            Ok(false)
        }
        Err(error) => Err(error),
    }
}

/// # Safety
/// `argument` must be what `request` expects; a pointer must be valid for the call.
unsafe fn control(file: &File, request: libc::Ioctl, argument: libc::c_ulong) -> io::Result<()> {
    // SAFETY: the descriptor is open, and the caller vouches for the argument.
    let outcome = unsafe { libc::ioctl(file.as_raw_fd(), request, argument) };
    if outcome < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}
