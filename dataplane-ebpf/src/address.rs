//! The address plan of the overlay. All addresses are in network byte order.

/// Length of the prefix of the whole overlay, 10.16.0.0/12.
pub const OVERLAY_PREFIX_LENGTH: u8 = 12;
/// First address of the whole overlay: service, instance and namespace addresses lie in it.
pub const OVERLAY: [u8; 4] = [10, 16, 0, 0];
/// First address of the range of service and instance addresses.
pub const SERVICES: [u8; 4] = [10, 30, 0, 0];
/// Length of the prefix of the range of service and instance addresses.
pub const SERVICES_PREFIX_LENGTH: u8 = 16;
/// The default gateway that every endpoint is given; the data plane, not a host, is behind it.
pub const GATEWAY: [u8; 4] = [169, 254, 1, 1];
/// Ethernet address of [`GATEWAY`], and so of the host's end of every endpoint's link: a link has two ends only, so
/// that all of them may have the same. Locally administered.
pub const GATEWAY_MAC: [u8; 6] = [0x02, 0x6f, 0x61, 0x6b, 0x00, 0x01];
/// UDP port of the tunnel unless configured otherwise.
pub const TUNNEL_PORT: u16 = 50103;

/// Whether `address` lies in 10.16.0.0/12, so that nobody but the data plane may route it.
#[inline(always)]
pub const fn in_overlay(address: [u8; 4]) -> bool {
    address[0] == OVERLAY[0] && address[1] & 0xf0 == OVERLAY[1]
}

/// Whether `address` lies in 10.30.0.0/16: a service or an instance.
#[inline(always)]
pub const fn is_service_or_instance(address: [u8; 4]) -> bool {
    address[0] == SERVICES[0] && address[1] == SERVICES[1]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_end_where_the_plan_says() {
        let cases = [
            ([10, 15, 255, 255], false, false),
            ([10, 16, 0, 0], true, false),
            ([10, 29, 255, 255], true, false),
            ([10, 30, 0, 0], true, true),
            ([10, 30, 255, 255], true, true),
            ([10, 31, 255, 255], true, false),
            ([10, 32, 0, 0], false, false),
            ([11, 30, 0, 0], false, false),
        ];
        for (address, overlay, service) in cases {
            assert_eq!(in_overlay(address), overlay, "{address:?}");
            assert_eq!(is_service_or_instance(address), service, "{address:?}");
        }
    }
}
