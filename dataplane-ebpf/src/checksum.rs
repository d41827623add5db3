//! Internet checksums (RFC 1071) and their incremental update (RFC 1624, equation 3).
//!
//! Words are taken as they lie in memory. The one's complement sum does not depend on byte order as long as
//! every word is read the same way, so nothing here swaps bytes.

/// An incremental update of a checksum: words leave, words join, and the difference is folded once at the end.
#[derive(Clone, Copy, Debug, Default)]
pub struct Difference(u64);

impl Difference {
    /// Replaces one address by another.
    #[inline(always)]
    pub const fn address(self, old: [u8; 4], new: [u8; 4]) -> Self {
        Self(self.0 + !u32::from_ne_bytes(old) as u64 + u32::from_ne_bytes(new) as u64)
    }

    /// Replaces one 16-bit word, such as a port, by another.
    #[inline(always)]
    pub const fn word(self, old: [u8; 2], new: [u8; 2]) -> Self {
        Self(self.0 + !u16::from_ne_bytes(old) as u64 + u16::from_ne_bytes(new) as u64)
    }

    /// Both differences.
    #[inline(always)]
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 + other.0)
    }

    /// The difference as the kernel's checksum helpers take it: a 32-bit one's complement sum.
    #[inline(always)]
    pub const fn to_u32(self) -> u32 {
        let folded = (self.0 & 0xffff_ffff) + (self.0 >> 32);
        ((folded & 0xffff_ffff) + (folded >> 32)) as u32
    }

    /// Applies the difference to the checksum field of an IPv4 header.
    #[inline(always)]
    pub const fn apply(self, checksum: [u8; 2]) -> [u8; 2] {
        let sum = !u16::from_ne_bytes(checksum) as u64 + self.to_u32() as u64;
        (!fold(sum)).to_ne_bytes()
    }
}

/// Folds a sum of 16- or 32-bit words into 16 bits, carries added back in.
#[inline(always)]
pub const fn fold(sum: u64) -> u16 {
    let sum = (sum & 0xffff_ffff) + (sum >> 32);
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    sum as u16
}

/// The sum of a header's words. `T` consists of byte arrays, has no padding and a length that is a multiple of
/// two.
#[inline(always)]
pub const fn sum_words<T: Copy>(header: &T) -> u64 {
    let words = (&raw const *header).cast::<[u8; 2]>();
    let mut sum = 0;
    let mut word = 0;
    while word < size_of::<T>() / 2 {
        // SAFETY: within the header, and byte arrays have no alignment.
        sum += u16::from_ne_bytes(unsafe { *words.add(word) }) as u64;
        word += 1;
    }
    sum
}

/// The sum of `bytes` as 16-bit words, not folded; an odd last byte counts as if a zero followed.
pub fn sum(bytes: &[u8]) -> u64 {
    bytes
        .chunks(2)
        .map(|word| u64::from(u16::from_ne_bytes([word[0], word.get(1).copied().unwrap_or(0)])))
        .sum()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ipv4_header(source: [u8; 4], destination: [u8; 4], identification: u16) -> Vec<u8> {
        let mut header = etherparse::Ipv4Header::new(100, 64, etherparse::IpNumber::TCP, source, destination)
            .expect("the payload fits");
        header.identification = identification;
        header.header_checksum = header.calc_header_checksum();
        header.to_bytes().to_vec()
    }

    proptest! {
        /// F-50 for the IPv4 header: updating in place gives what a full recomputation gives.
        #[test]
        fn f50_ipv4_header_update_equals_recomputation(
            old in any::<([u8; 4], [u8; 4])>(), new in any::<([u8; 4], [u8; 4])>(), identification: u16,
        ) {
            let before = ipv4_header(old.0, old.1, identification);
            let after = ipv4_header(new.0, new.1, identification);
            let updated = Difference::default()
                .address(old.0, new.0)
                .address(old.1, new.1)
                .apply([before[10], before[11]]);
            prop_assert_eq!(updated, [after[10], after[11]]);
        }

        /// F-50 for transport checksums: the 32-bit difference, folded into the old sum, gives the new one.
        #[test]
        fn f50_transport_update_equals_recomputation(
            old in any::<([u8; 4], [u8; 4], u16, u16)>(), new in any::<([u8; 4], [u8; 4], u16, u16)>(),
            payload in proptest::collection::vec(any::<u8>(), 0..64),
        ) {
            let checksum = |(source, destination, from, to): ([u8; 4], [u8; 4], u16, u16)| {
                let mut header = etherparse::TcpHeader::new(from, to, 7, 512);
                header.syn = true;
                header.calc_checksum_ipv4_raw(source, destination, &payload).expect("the payload fits")
            };
            let difference = Difference::default()
                .address(old.0, new.0)
                .address(old.1, new.1)
                .word(old.2.to_be_bytes(), new.2.to_be_bytes())
                .word(old.3.to_be_bytes(), new.3.to_be_bytes());
            let updated = u16::from_be_bytes(difference.apply(checksum(old).to_be_bytes()));
            let expected = checksum(new);
            // One's complement has two zeros; both verify.
            prop_assert!(updated == expected || (updated ^ expected) == 0xffff && (updated == 0 || expected == 0));
        }
    }

    #[test]
    fn sum_of_a_valid_header_folds_to_all_ones() {
        assert_eq!(
            fold(sum(&ipv4_header([10, 18, 0, 2], [10, 30, 55, 55], 99))),
            0xffff
        );
    }
}
