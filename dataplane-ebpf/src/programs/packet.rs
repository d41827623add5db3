//! Access to the bytes of a frame: the only pointer arithmetic in the programs.

use aya_ebpf::programs::TcContext;
use dataplane_ebpf::verdict::DropReason;

/// A pointer to a `T` at `offset` in the linear part of the frame, if it lies there whole.
///
/// It is invalid after any helper that may move the frame; callers copy what they need, or write, and let go
/// of it before the next helper.
#[inline(always)]
pub fn at<T>(ctx: &TcContext, offset: usize) -> Option<*mut T> {
    // Volatile: kept between two accesses, the compiler would turn a bound into a number that the verifier no
    // longer takes for the end of the frame.
    // SAFETY: the kernel hands a valid context to the program.
    let (start, end) = unsafe {
        let skb = ctx.skb.skb;
        (
            core::ptr::read_volatile(&raw const (*skb).data) as usize,
            core::ptr::read_volatile(&raw const (*skb).data_end) as usize,
        )
    };
    if start + offset + size_of::<T>() > end {
        return None;
    }
    Some((start + offset) as *mut T)
}

/// Copies a `T` out of the frame, made linear that far if need be; `None` when the frame ends before it does.
/// `T` consists of integers and byte arrays only.
#[inline(always)]
pub fn read<T: Copy>(ctx: &TcContext, offset: usize) -> Option<T> {
    let end = offset + size_of::<T>();
    let header = match at::<T>(ctx, offset) {
        Some(header) => header,
        None if length(ctx) >= end && ctx.pull_data(end as u32).is_ok() => at::<T>(ctx, offset)?,
        None => return None,
    };
    // SAFETY: `at` has checked the bounds, any bytes are a valid header, and the CPU loads words at any
    // address; where one does not, the verifier refuses the program.
    Some(unsafe { *header })
}

/// As [`read`], wherever the bytes lie and whatever is known of `offset`: the kernel's helper copies them.
#[inline(always)]
pub fn load<T: Copy>(ctx: &TcContext, offset: usize) -> Option<T> {
    ctx.load(offset).ok()
}

/// Length of the frame in bytes, with what lies outside the linear part.
#[inline(always)]
pub fn length(ctx: &TcContext) -> usize {
    ctx.len() as usize
}

/// Index of the interface at which the program runs.
#[inline(always)]
pub fn interface(ctx: &TcContext) -> u32 {
    // SAFETY: the kernel hands a valid context to the program.
    unsafe { (*ctx.skb.skb).ifindex }
}

/// Index of the interface at which the frame came into this network namespace; zero for the node's own.
#[inline(always)]
pub fn ingress_interface(ctx: &TcContext) -> u32 {
    // SAFETY: as above.
    unsafe { (*ctx.skb.skb).ingress_ifindex }
}

/// The frame's VLAN, where it has a tag: the kernel takes tags out of a frame before programs see it.
#[inline(always)]
pub fn vlan(ctx: &TcContext) -> Option<u32> {
    // SAFETY: as above.
    unsafe { ((*ctx.skb.skb).vlan_present != 0).then(|| (*ctx.skb.skb).vlan_tci & 0x0fff) }
}

/// Payload of each segment of a superframe, in bytes; zero for an ordinary frame.
#[inline(always)]
pub fn segment_size(ctx: &TcContext) -> usize {
    // SAFETY: the kernel hands a valid context to the program.
    unsafe { (*ctx.skb.skb).gso_size as usize }
}

/// Turns a helper's return code into a drop reason.
#[inline(always)]
pub fn accepted(code: i64) -> Result<(), DropReason> {
    if code == 0 {
        Ok(())
    } else {
        Err(DropReason::KernelRefused)
    }
}
