//! A seeded bijection on the numbers below 2^A.

/// Permutes numbers of `bits` bits so that whoever does not know the seed cannot tell which of them end up together.
///
/// Each round is invertible by itself: addition and multiplication by an odd number modulo 2^A carry low bits up, a
/// right shift by at least half the width, exclusive-or, carries high bits down (and is its own inverse). Three
/// rounds mix like the finalisers of common 64-bit hashes; nothing here withstands a cryptanalyst who sees results,
/// but nobody sees any.
#[derive(Debug, Clone)]
pub struct Permutation {
    mask: u64,
    /// Below 64; shifted by without a check, as this runs for every block of every request.
    shift: u32,
    rounds: [Round; ROUNDS],
}

const ROUNDS: usize = 3;

#[derive(Debug, Clone, Copy)]
struct Round {
    add: u64,
    /// Odd.
    factor: u64,
    /// `factor * inverse = 1` modulo 2^64, hence modulo 2^A.
    inverse: u64,
}

/// The inverse of an odd number modulo 2^64: Newton's iteration doubles the correct low bits, three at first.
fn inverse_of(odd: u64) -> u64 {
    let mut inverse = odd;
    for _ in 0..5 {
        inverse = inverse.wrapping_mul(2u64.wrapping_sub(odd.wrapping_mul(inverse)));
    }
    inverse
}

impl Permutation {
    /// A permutation of the numbers of `bits` bits. Panics unless `bits` is in 1..=63.
    pub fn new(bits: u32, seed: u64) -> Permutation {
        assert!((1..64).contains(&bits), "1 to 63 bits");
        let mut state = seed;
        // splitmix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators, 2014)
        let mut draw = || {
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let z = (state ^ state >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
            z ^ z >> 31
        };
        let rounds = std::array::from_fn(|_| {
            let (add, factor) = (draw(), draw() | 1);
            Round { add, factor, inverse: inverse_of(factor) }
        });
        Permutation { mask: (1 << bits) - 1, shift: bits.div_ceil(2), rounds }
    }

    /// The image of `x`, which must fit the width.
    #[inline]
    pub fn apply(&self, mut x: u64) -> u64 {
        debug_assert!(x <= self.mask);
        for round in &self.rounds {
            x = x.wrapping_add(round.add).wrapping_mul(round.factor) & self.mask;
            x ^= x.wrapping_shr(self.shift);
        }
        x
    }

    /// The number whose image is `y`.
    #[inline]
    pub fn invert(&self, mut y: u64) -> u64 {
        debug_assert!(y <= self.mask);
        for round in self.rounds.iter().rev() {
            y ^= y.wrapping_shr(self.shift);
            y = y.wrapping_mul(round.inverse).wrapping_sub(round.add) & self.mask;
        }
        y
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn small_widths_are_permuted_completely() {
        for bits in 1..=12 {
            for seed in 0..20 {
                let permutation = Permutation::new(bits, seed);
                let mut images: Vec<_> = (0..1 << bits).map(|x| permutation.apply(x)).collect();
                assert!((0..1 << bits).all(|x| permutation.invert(images[x as usize]) == x));
                images.sort_unstable();
                assert!(images.into_iter().eq(0..1 << bits));
            }
        }
    }

    #[test]
    fn every_input_bit_moves_about_half_of_the_output_bits() {
        for bits in [20, 33, 49] {
            let permutation = Permutation::new(bits, 7);
            for flipped in 0..bits {
                let samples = 500u64;
                let changed: u32 = (0..samples)
                    .map(|i| i.wrapping_mul(0x0123_4567_89ab_cdef) & permutation.mask)
                    .map(|x| (permutation.apply(x) ^ permutation.apply(x ^ 1 << flipped)).count_ones())
                    .sum();
                let share = f64::from(changed) / (samples as f64 * f64::from(bits));
                assert!((0.4..0.6).contains(&share), "bit {flipped} of {bits} moves {share} of all bits");
            }
        }
    }

    proptest! {
        #![proptest_config(crate::index::tests::fixed(1000))]

        #[test]
        fn inversion_undoes_application(bits in 1u32..64, seed: u64, x: u64) {
            let permutation = Permutation::new(bits, seed);
            let x = x & permutation.mask;
            let y = permutation.apply(x);
            prop_assert!(y <= permutation.mask);
            prop_assert_eq!(permutation.invert(y), x);
        }
    }
}
