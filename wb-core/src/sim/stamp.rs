//! Sector contents that say what they are: version, own address, and a pattern over the whole sector, so that stale,
//! misdirected and torn data are told apart without any log.

use super::rng::mix;
use crate::types::SECTOR_BYTES;

const WORDS: usize = SECTOR_BYTES / 8;
const MAGIC: u64 = 0x5742_7374_616d_7031;

/// What a sector holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seen {
    /// Zeroes.
    Zeroes,
    /// A stamp, intact.
    Stamp {
        /// The version, which is the number of the write.
        version: u64,
        /// The sector it was written for.
        sector: u64,
    },
    /// A stamp whose pattern does not hold to the end: torn within the sector, or rotten.
    Damaged {
        /// What its head says.
        version: u64,
        /// What its head says.
        sector: u64,
    },
    /// Nothing of ours.
    Foreign,
}

fn pattern(salt: u64, version: u64, sector: u64) -> u64 {
    mix(salt ^ mix(version) ^ sector.rotate_left(40))
}

/// Fills one sector of 512 bytes.
fn stamp(salt: u64, version: u64, sector: u64, out: &mut [u8]) {
    let (words, rest) = out.as_chunks_mut::<8>();
    assert!(words.len() == WORDS && rest.is_empty(), "a sector of 512 bytes");
    words[0] = (MAGIC ^ salt).to_le_bytes();
    words[1] = version.to_le_bytes();
    words[2] = sector.to_le_bytes();
    let mut word = pattern(salt, version, sector);
    for out in &mut words[3..] {
        word = word.wrapping_add(0x9e37_79b9_7f4a_7c15).rotate_left(7);
        *out = word.to_le_bytes();
    }
}

/// Stamps every sector of `out`, the first being `first_sector`. `salt` tells runs apart.
pub fn stamp_sectors(salt: u64, version: u64, first_sector: u64, out: &mut [u8]) {
    for (sector, bytes) in (first_sector..).zip(out.chunks_mut(SECTOR_BYTES)) {
        stamp(salt, version, sector, bytes);
    }
}

/// Recognises the content of one sector.
pub fn recognise(salt: u64, bytes: &[u8]) -> Seen {
    let (words, _) = bytes.as_chunks::<8>();
    assert!(words.len() == WORDS, "a sector of 512 bytes");
    let word = |at: usize| u64::from_le_bytes(words[at]);
    if word(0) != MAGIC ^ salt {
        return if words.iter().all(|word| *word == [0; 8]) { Seen::Zeroes } else { Seen::Foreign };
    }
    let (version, sector) = (word(1), word(2));
    let mut expected = pattern(salt, version, sector);
    for at in 3..WORDS {
        expected = expected.wrapping_add(0x9e37_79b9_7f4a_7c15).rotate_left(7);
        if word(at) != expected {
            return Seen::Damaged { version, sector };
        }
    }
    Seen::Stamp { version, sector }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stamps_are_recognised_and_every_damage_is_seen() {
        let mut bytes = [0; 1024];
        stamp_sectors(5, 77, 1000, &mut bytes);
        assert_eq!(recognise(5, &bytes[..512]), Seen::Stamp { version: 77, sector: 1000 });
        assert_eq!(recognise(5, &bytes[512..]), Seen::Stamp { version: 77, sector: 1001 });
        assert_eq!(recognise(6, &bytes[512..]), Seen::Foreign);
        assert_eq!(recognise(5, &[0; 512]), Seen::Zeroes);
        let mut torn = bytes[..512].to_vec();
        torn[256..].fill(0);
        assert_eq!(recognise(5, &torn), Seen::Damaged { version: 77, sector: 1000 });
        for at in 0..512 {
            let mut rotten = bytes[..512].to_vec();
            rotten[at] ^= 1;
            assert_ne!(recognise(5, &rotten), Seen::Stamp { version: 77, sector: 1000 }, "byte {at}");
        }
    }
}
