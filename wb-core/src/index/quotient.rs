//! How a block address and its entry fit into 64 bits: quotienting.
//!
//! A block address of A bits (volume on top of block number, A <= 49) is permuted by a secret bijection
//! (`permute.rs`) to p. Its low bits choose the shard; the rest, q, is split by the number n of buckets of a shard,
//! which is any number: **home bucket** `q mod n`, **remainder** `q div n`. Bucket and remainder together are the
//! address: nothing is hashed away, there are no false hits, and an entry can be turned back into its address.
//!
//! An entry may lie in its home bucket (choice 0) or in its alternate one (choice 1), `home + f(remainder) mod n` with
//! `0 < f < n`, near by: at most 1024 buckets. One bit says which, so bucket, remainder and choice give the home bucket back.
//!
//! | bits of an entry, from below | |
//! |---|---|
//! | 8 | valid-sector mask; 0 = empty, and then the whole word is 0 |
//! | 1 | dirty |
//! | bits(slots - 1) | slot |
//! | 1 | choice |
//! | the rest | remainder |
//!
//! **Why this fits.** With k = 2^i shards of n buckets of 8 entries, sized for at most 10/11 full, `k n 8 >= 1.1 entries`;
//! and at least half of the slots can hold payload, `entries >= slots / 2`. Let s = bits(slots - 1); with two slots or more
//! `slots > 2^(s-1)`. The remainder is below `2^A / (k n) < 2^A * 8 * 2 / (1.1 * 2^(s-1)) < 2^(A-s+5)`. So slot and
//! remainder need at most A + 5 bits for any number of slots, the entry 10 more: 64 at A = 49.

use crate::types::{SectorMask, Slot};

use super::Entry;

/// Most bits of a block address.
pub const ADDRESS_BITS_MAX: u32 = 49;
/// Entries of a bucket: 64 bytes, a cache line.
pub const BUCKET_ENTRIES: usize = 8;
/// How far, in buckets, the alternate bucket of an entry is from its home at most: both lie within 64 KiB, so that a search
/// that looks at both takes one translation of an address, and a start can fill a table piece by piece. So many buckets
/// balance each other: of the 8192 entries of such a stretch, at the 10/11 that are used at most, nine standard deviations
/// more would have to fall to it.
const DISTANCE_MAX: u64 = 1024;
/// Fewest slots per shard, unless there is only one: the fewer, the more slack each needs.
const SHARD_SLOTS_MIN: u64 = 4096;

const DIRTY: u64 = 1 << 8;
const SLOT_SHIFT: u32 = 9;

/// Bits needed to write `max`.
pub fn bits(max: u64) -> u32 {
    u64::BITS - max.leading_zeros()
}

/// Division by a constant that is known at run time only, as a multiplication.
///
/// With `m = ceil(2^k / n)`, `x * m / 2^k` rounds down to `x / n` for every `x < 2^N` if `n <= 2^(k-N)` (Granlund,
/// Montgomery: Division by invariant integers using multiplication, 1994). N is 49 and k at least 64, for a cheap
/// shift; m has at most 64 bits.
#[derive(Debug, Clone, Copy)]
struct Divisor {
    n: u64,
    multiplier: u64,
    /// k - 64.
    shift: u32,
}

impl Divisor {
    fn new(n: u64) -> Divisor {
        assert!((2..1 << 48).contains(&n), "divisor in range");
        let k = (ADDRESS_BITS_MAX + bits(n - 1)).max(64);
        let multiplier = (1u128 << k).div_ceil(u128::from(n));
        Divisor { n, multiplier: u64::try_from(multiplier).expect("n is 2 or more"), shift: k - 64 }
    }

    #[inline]
    fn div_rem(&self, x: u64) -> (u64, u64) {
        debug_assert!(x >> ADDRESS_BITS_MAX == 0);
        let high = ((u128::from(x) * u128::from(self.multiplier)) >> 64) as u64;
        // Wrapping means unchecked here: the shift is below 64, and quotient x n is at most x.
        let quotient = high.wrapping_shr(self.shift);
        (quotient, x.wrapping_sub(quotient.wrapping_mul(self.n)))
    }
}

/// What a search for an address needs: everything but its shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Home {
    /// Home bucket.
    pub bucket: usize,
    /// The remainder, shifted to its place in an entry, with choice 0.
    pub key: u64,
}

/// Sizes and bit positions of a table. All shifts are below 64, by construction; the hot functions shift without
/// checking that again.
#[derive(Debug, Clone)]
pub struct Geometry {
    shard_bits: u32,
    shard_mask: u64,
    buckets: Divisor,
    /// Values that the distance of the alternate bucket may have.
    distances: u64,
    slot_mask: u64,
    /// The bit of the choice; everything above is the remainder.
    choice: u64,
    remainder_shift: u32,
}

impl Geometry {
    /// A table for `entries` entries whose slots are below `slots`, with addresses of `address_bits` bits, in about
    /// `shards` parts. Panics if the address is too wide.
    pub fn new(address_bits: u32, slots: u64, entries: u64, shards: usize) -> Geometry {
        assert!((1..=ADDRESS_BITS_MAX).contains(&address_bits) && entries > 0, "checked by the caller");
        let shards_max = (entries / SHARD_SLOTS_MIN).max(1).min(1 << (address_bits - 1));
        let shard_bits = (shards as u64).clamp(1, 1 << 20).next_power_of_two().min(shards_max).ilog2();
        let buckets = Divisor::new(buckets_per_shard(entries, shard_bits));
        let slot_bits = bits(slots - 1);
        let (remainder_max, _) = buckets.div_rem((1 << (address_bits - shard_bits)) - 1);
        let used_bits = SLOT_SHIFT + slot_bits + 1 + bits(remainder_max);
        assert!(used_bits <= u64::BITS, "an entry needs {used_bits} bits");
        Geometry {
            shard_bits,
            shard_mask: (1 << shard_bits) - 1,
            distances: (buckets.n - 1).min(DISTANCE_MAX),
            buckets,
            slot_mask: (1 << slot_bits) - 1,
            choice: 1 << (SLOT_SHIFT + slot_bits),
            remainder_shift: SLOT_SHIFT + slot_bits + 1,
        }
    }

    /// Log2 of the number of shards.
    pub fn shard_bits(&self) -> u32 {
        self.shard_bits
    }

    /// Buckets of each shard, at least 2.
    pub fn buckets(&self) -> usize {
        self.buckets.n as usize
    }

    /// Bytes of the buckets of all shards.
    pub fn table_bytes(&self) -> u64 {
        (self.buckets.n * (BUCKET_ENTRIES * size_of::<u64>()) as u64) << self.shard_bits
    }

    /// Shard and q of a permuted address.
    #[inline]
    pub fn split_shard(&self, permuted: u64) -> (usize, u64) {
        ((permuted & self.shard_mask) as usize, permuted.wrapping_shr(self.shard_bits))
    }

    /// The permuted address of a shard and q.
    pub fn join_shard(&self, shard: usize, quotient: u64) -> u64 {
        quotient << self.shard_bits | shard as u64
    }

    /// Where the entry of q lies at home, and what it looks like there.
    #[inline]
    pub fn home(&self, quotient: u64) -> Home {
        let (remainder, bucket) = self.buckets.div_rem(quotient);
        Home { bucket: bucket as usize, key: remainder.wrapping_shl(self.remainder_shift) }
    }

    /// How far the alternate bucket of a remainder is from its home, in `1..buckets`, at most [`DISTANCE_MAX`].
    #[inline]
    fn distance(&self, word: u64) -> u64 {
        // The remainder is a part of a permuted address; a multiplicative hash spreads those that are small.
        let remainder = word.wrapping_shr(self.remainder_shift);
        let mixed = remainder.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        ((u128::from(mixed) * u128::from(self.distances)) >> 64) as u64 + 1
    }

    /// The other bucket in which the entry `word` (or key) of `bucket` may lie. There its choice bit is flipped.
    #[inline]
    pub fn other_bucket(&self, bucket: usize, word: u64) -> usize {
        let (bucket, distance, n) = (bucket as u64, self.distance(word), self.buckets.n);
        let forward = if word & self.choice == 0 { distance } else { n.wrapping_sub(distance) };
        let other = bucket.wrapping_add(forward);
        (if other >= n { other.wrapping_sub(n) } else { other }) as usize
    }

    /// The q of an entry that lies in `bucket`.
    pub fn quotient_of(&self, bucket: usize, word: u64) -> u64 {
        let home = if word & self.choice == 0 { bucket } else { self.other_bucket(bucket, word) };
        (word >> self.remainder_shift) * self.buckets.n + home as u64
    }

    /// The entry or key with the other choice.
    #[inline]
    pub fn flip_choice(&self, word: u64) -> u64 {
        word ^ self.choice
    }

    /// Whether `word` is the entry with this key (remainder and choice).
    #[inline]
    pub fn matches(&self, word: u64, key: u64) -> bool {
        // Equal from the choice bit up, and not equal as a whole: a key is empty below the choice bit, an entry is not. So an
        // empty word, which looks like remainder 0 and choice 0, is no entry of the key 0.
        (word ^ key).wrapping_sub(1) < self.choice.wrapping_sub(1)
    }

    /// Packs an entry under a key.
    #[inline]
    pub fn pack(&self, key: u64, entry: Entry) -> u64 {
        debug_assert!(entry.slot.0 <= self.slot_mask && !entry.mask.is_empty());
        key | entry.slot.0 << SLOT_SHIFT | if entry.dirty { DIRTY } else { 0 } | u64::from(entry.mask.0)
    }

    /// The entry in a word that is not empty.
    #[inline]
    pub fn unpack(&self, word: u64) -> Entry {
        let slot = Slot(word >> SLOT_SHIFT & self.slot_mask);
        Entry { slot, mask: SectorMask(word as u8), dirty: word & DIRTY != 0 }
    }

    /// Remainder and choice of an entry.
    #[inline]
    pub fn key_of(&self, word: u64) -> u64 {
        word & !(self.choice - 1)
    }
}

/// Buckets of a shard so that 2^`shard_bits` of them hold `wanted` entries: 8.8 bytes per entry, and for small shards
/// enough that six standard deviations of the number of entries that fall to one still fill it to 97 % only.
fn buckets_per_shard(wanted: u64, shard_bits: u32) -> u64 {
    let mean = wanted.div_ceil(1 << shard_bits);
    let spread = if shard_bits == 0 { 0 } else { 6 * (mean.isqrt() + 1) };
    let entries = (mean * 11).div_ceil(10).max(((mean + spread) * 100).div_ceil(97));
    entries.div_ceil(BUCKET_ENTRIES as u64).max(2)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_table_takes_at_most_8_8_bytes_per_slot_and_little_more_when_small() {
        for slots in [1 << 18, 1_000_000, 268_435_456, (1 << 28) + 1, 3 << 30] {
            for shards in [1, 4, 16] {
                let bytes = Geometry::new(49, slots, slots, shards).table_bytes();
                // Rounding up to whole buckets is all that may come on top.
                assert!(
                    bytes <= slots * 88 / 10 + 128 * shards as u64,
                    "{slots} slots in {shards} shards: {bytes} bytes"
                );
            }
        }
        for slots in [4096, 10_000, 40_000] {
            assert!(Geometry::new(49, slots, slots, 64).table_bytes() < slots * 95 / 10);
        }
        assert!(Geometry::new(49, 1, 1, 64).table_bytes() == 128);
    }

    #[test]
    fn small_caches_have_few_shards() {
        assert_eq!(Geometry::new(49, 4095, 4095, 64).shard_bits(), 0);
        assert_eq!(Geometry::new(49, 16_384, 16_384, 64).shard_bits(), 2);
        assert_eq!(Geometry::new(49, 1 << 28, 1 << 28, 5).shard_bits(), 3);
        assert_eq!(Geometry::new(1, 1 << 28, 1 << 28, 64).shard_bits(), 0);
    }

    #[test]
    fn every_slot_count_fits_the_widest_address() {
        for exponent in 0..40 {
            for slots in [(1u64 << exponent) - 1, 1 << exponent, (1 << exponent) + 1, 3 << exponent >> 1] {
                for shards in [1, 8, 1024] {
                    Geometry::new(ADDRESS_BITS_MAX, slots.max(1), slots.max(1), shards); // asserts that an entry has 64 bits
                }
            }
        }
    }

    proptest! {
        #![proptest_config(crate::index::tests::fixed(1000))]

        #[test]
        fn division_is_exact(n in prop_oneof![2u64..100, 2u64..1 << 48], x in 0u64..1 << ADDRESS_BITS_MAX, near in 0u64..1 << 20) {
            let divisor = Divisor::new(n);
            let multiple = near.saturating_mul(n).min((1 << ADDRESS_BITS_MAX) - 1);
            for x in [x, multiple, multiple.saturating_sub(1), (1 << ADDRESS_BITS_MAX) - 1, 0] {
                prop_assert_eq!(divisor.div_rem(x), (x / n, x % n));
            }
        }

        #[test]
        fn an_entry_in_either_bucket_gives_its_address_back(
            address_bits in 1u32..=ADDRESS_BITS_MAX, slots in prop_oneof![1u64..100, 1u64..1 << 40], shards in 1usize..2000,
            address: u64, slot: u64, mask in 1u8..=255, dirty: bool,
        ) {
            let geometry = Geometry::new(address_bits, slots, slots, shards);
            let address = address & ((1 << address_bits) - 1);
            let entry = Entry { slot: Slot(slot % slots), mask: SectorMask(mask), dirty };
            let (shard, quotient) = geometry.split_shard(address);
            let home = geometry.home(quotient);
            let word = geometry.pack(home.key, entry);
            let other = geometry.other_bucket(home.bucket, word);
            let moved = geometry.flip_choice(word);
            prop_assert!(home.bucket < geometry.buckets() && other < geometry.buckets() && other != home.bucket);
            prop_assert_eq!(geometry.other_bucket(other, moved), home.bucket);
            for (bucket, word) in [(home.bucket, word), (other, moved)] {
                prop_assert_eq!(geometry.unpack(word), entry);
                prop_assert_eq!(geometry.join_shard(shard, geometry.quotient_of(bucket, word)), address);
            }
            prop_assert!(geometry.matches(word, home.key) && !geometry.matches(moved, home.key));
            prop_assert!(!geometry.matches(0, home.key) && geometry.key_of(word) == home.key);
        }
    }
}
