//! A small generator of our own (xoshiro256**, seeded by splitmix64; both public domain, Blackman and Vigna), so that
//! a seed means the same run for ever, whatever a library does.

/// A stream of pseudo-random numbers, fixed by its seed.
#[derive(Clone, Debug)]
pub struct SimRng {
    state: [u64; 4],
}

/// One step of splitmix64: a good mixing of `x`.
pub fn mix(x: u64) -> u64 {
    let x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let x = (x ^ x >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ x >> 31
}

impl SimRng {
    /// The stream of `seed`.
    pub fn new(seed: u64) -> SimRng {
        let mut at = seed;
        let state = std::array::from_fn(|_| {
            at = at.wrapping_add(0x9e37_79b9_7f4a_7c15);
            mix(at)
        });
        SimRng { state }
    }

    /// A stream for one part of a run, independent of the draws of every other part: a change of the workload then
    /// leaves the fault draws of a device alone.
    pub fn derive(seed: u64, part: &str) -> SimRng {
        SimRng::new(part.bytes().fold(mix(seed), |hash, byte| mix(hash ^ u64::from(byte))))
    }

    /// The next number.
    pub fn next_u64(&mut self) -> u64 {
        let [a, b, c, d] = self.state;
        let result = b.wrapping_mul(5).rotate_left(7).wrapping_mul(9);
        let (c, d) = (c ^ a, d ^ b);
        self.state = [a ^ d, b ^ c, c ^ (b << 17), d.rotate_left(45)];
        result
    }

    /// A number below `bound`, which is not zero. (The bias of at most `bound / 2^64` does not matter here.)
    pub fn below(&mut self, bound: u64) -> u64 {
        assert!(bound > 0, "a bound above zero");
        ((u128::from(self.next_u64()) * u128::from(bound)) >> 64) as u64
    }

    /// A number of `low..=high`.
    pub fn range(&mut self, low: u64, high: u64) -> u64 {
        assert!(low <= high, "a range that is not empty");
        low + self.below(high - low + 1)
    }

    /// True in `ppm` of a million draws. Draws nothing for 0, so that a fault that is switched off costs nothing.
    pub fn chance_ppm(&mut self, ppm: u32) -> bool {
        ppm > 0 && self.below(1_000_000) < u64::from(ppm)
    }

    /// One of `choices`, which is not empty.
    pub fn pick<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len() as u64) as usize]
    }

    /// Puts `items` in a random order.
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for at in (1..items.len()).rev() {
            items.swap(at, self.below(at as u64 + 1) as usize);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_are_fixed_and_independent() {
        let draw = |mut rng: SimRng| [rng.next_u64(), rng.next_u64(), rng.next_u64()];
        assert_eq!(draw(SimRng::new(1)), draw(SimRng::new(1)));
        assert_ne!(draw(SimRng::new(1)), draw(SimRng::new(2)));
        assert_ne!(draw(SimRng::derive(1, "disk")), draw(SimRng::derive(1, "tasks")));
        // Reference output of xoshiro256** for state 1, 2, 3, 4 (from its definition).
        let mut rng = SimRng { state: [1, 2, 3, 4] };
        assert_eq!((rng.next_u64(), rng.next_u64(), rng.next_u64()), (11520, 0, 1509978240));
    }

    #[test]
    fn draws_cover_their_range() {
        let mut rng = SimRng::new(7);
        let mut seen = [0u32; 5];
        for _ in 0..5000 {
            seen[rng.range(10, 14) as usize - 10] += 1;
        }
        assert!(seen.iter().all(|count| (800..1200).contains(count)), "{seen:?}");
        let hits = (0..100_000).filter(|_| rng.chance_ppm(100_000)).count();
        assert!((9_000..11_000).contains(&hits), "{hits}");
    }
}
