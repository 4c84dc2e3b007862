//! CRC-32C, behind one function.

use crc_fast::{CrcAlgorithm, Digest};

/// CRC-32C (Castagnoli, RFC 3720) of `data`.
pub fn crc32c(data: &[u8]) -> u32 {
    crc_fast::crc32_iscsi(data)
}

/// CRC-32C of a block with its own CRC field (bytes 8..12) taken as zero, begun with `seed` as eight leading bytes
/// (seed, then zeroes). User payload can therefore not pose as a block of a cache whose seed it does not know.
pub(crate) fn block_crc(block: &[u8], seed: u32) -> u32 {
    let mut digest = Digest::new(CrcAlgorithm::Crc32Iscsi);
    let mut lead = [0u8; 20];
    lead[..4].copy_from_slice(&seed.to_le_bytes());
    lead[8..16].copy_from_slice(&block[..8]);
    digest.update(&lead);
    digest.update(&block[12..]);
    digest.finalize() as u32
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn known_value() {
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
    }

    proptest! {
        #[test]
        fn agrees_with_a_second_implementation(data in proptest::collection::vec(any::<u8>(), 0..9000)) {
            prop_assert_eq!(crc32c(&data), ::crc32c::crc32c(&data));
        }
    }
}
