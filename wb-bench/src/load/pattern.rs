//! Where operations go: random, sequential, or by Zipf's law; and which of them read.

/// A small fast generator (xorshift64*, Vigna 2016): the load must not cost more than what it measures.
#[derive(Debug, Clone)]
pub struct Rng(u64);

impl Rng {
    /// Begins with any number.
    pub fn new(seed: u64) -> Rng {
        Rng(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }
    /// 64 random bits.
    #[inline]
    pub fn draw(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }
    /// A number below `n`.
    #[inline]
    pub fn below(&mut self, n: u64) -> u64 {
        ((u128::from(self.draw()) * u128::from(n)) >> 64) as u64
    }
    /// A number in [0, 1).
    pub fn unit(&mut self) -> f64 {
        (self.draw() >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// Exponent of the skewed load, as in YCSB.
pub const ZIPF_THETA: f64 = 0.99;

/// Zipf-distributed ranks below `n` (Gray et al.: Quickly generating billion-record synthetic databases, 1994).
#[derive(Debug, Clone)]
pub struct Zipf {
    n: u64,
    zeta: f64,
    alpha: f64,
    eta: f64,
    half: f64,
}

impl Zipf {
    /// Takes time in proportion to `n`, once.
    pub fn new(n: u64) -> Zipf {
        let zeta_of = |n: u64| (1..=n).map(|rank| (rank as f64).powf(-ZIPF_THETA)).sum::<f64>();
        let (zeta, zeta_two) = (zeta_of(n), zeta_of(2.min(n)));
        let eta = (1.0 - (2.0 / n as f64).powf(1.0 - ZIPF_THETA)) / (1.0 - zeta_two / zeta);
        Zipf { n, zeta, alpha: 1.0 / (1.0 - ZIPF_THETA), eta, half: 0.5f64.powf(ZIPF_THETA) }
    }

    /// A rank, 0 the most frequent.
    pub fn rank(&self, rng: &mut Rng) -> u64 {
        let u = rng.unit();
        let uz = u * self.zeta;
        if uz < 1.0 || self.n < 2 {
            return 0;
        }
        if uz < 1.0 + self.half {
            return 1;
        }
        let rank = self.n as f64 * (self.eta * u - self.eta + 1.0).powf(self.alpha);
        (rank as u64).min(self.n - 1)
    }
}

/// How places are chosen.
#[derive(Debug, Clone)]
pub enum Access {
    /// Every place equally often.
    Random,
    /// One after the other. Jobs begin at different places.
    Sequential,
    /// Some more often than others; which ones is spread over the working set.
    Zipf(Zipf),
}

/// The places of one job.
#[derive(Debug, Clone)]
pub struct Places {
    access: Access,
    /// Places in the working set.
    count: u64,
    next: u64,
    rng: Rng,
}

impl Places {
    /// Places `0..count` for job number `job` of `jobs`.
    pub fn new(access: Access, count: u64, job: u64, jobs: u64, seed: u64) -> Places {
        assert!(count > 0, "a working set of at least one operation");
        Places { access, count, next: count * job / jobs, rng: Rng::new(seed ^ (job + 1) << 40) }
    }

    /// The next one.
    #[inline]
    pub fn draw(&mut self) -> u64 {
        match &self.access {
            Access::Random => self.rng.below(self.count),
            Access::Sequential => {
                let at = self.next;
                self.next = if at + 1 == self.count { 0 } else { at + 1 };
                at
            }
            // A multiplication by a number without common factor is a permutation: neighbours in rank lie apart.
            Access::Zipf(zipf) => (zipf.rank(&mut self.rng).wrapping_mul(0x9e37_79b1)) % self.count,
        }
    }

    /// True with this probability in percent.
    #[inline]
    pub fn chance(&mut self, percent: u8) -> bool {
        match percent {
            0 => false,
            100.. => true,
            _ => self.rng.below(100) < u64::from(percent),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sequential_jobs_visit_every_place_and_begin_apart() {
        let mut first = Places::new(Access::Sequential, 10, 0, 2, 1);
        let mut second = Places::new(Access::Sequential, 10, 1, 2, 1);
        assert_eq!((0..11).map(|_| first.draw()).collect::<Vec<_>>(), [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0]);
        assert_eq!(second.draw(), 5);
    }

    #[test]
    fn random_places_are_even_and_within_the_working_set() {
        let mut places = Places::new(Access::Random, 100, 0, 1, 7);
        let mut hits = [0u32; 100];
        (0..100_000).for_each(|_| hits[places.draw() as usize] += 1);
        assert!(hits.iter().all(|&hits| (800..1200).contains(&hits)), "{hits:?}");
    }

    #[test]
    fn zipf_ranks_follow_the_law() {
        let (zipf, mut rng) = (Zipf::new(1000), Rng::new(3));
        let mut hits = vec![0u32; 1000];
        (0..1_000_000).for_each(|_| hits[zipf.rank(&mut rng) as usize] += 1);
        let share = |rank: usize| f64::from(hits[rank]) / 1e6;
        let expected = |rank: f64| rank.powf(-ZIPF_THETA) / zipf.zeta;
        assert!((share(0) / expected(1.0) - 1.0).abs() < 0.02, "{}", share(0));
        // The method approximates all but the first two; tails are within some percent.
        let tail: u32 = hits[100..].iter().sum();
        let expected_tail: f64 = (101..=1000).map(|rank| expected(f64::from(rank))).sum();
        assert!((f64::from(tail) / 1e6 / expected_tail - 1.0).abs() < 0.1);
    }

    #[test]
    fn shares_of_reads_are_as_asked() {
        let mut places = Places::new(Access::Random, 10, 0, 1, 9);
        let reads = (0..100_000).filter(|_| places.chance(30)).count();
        assert!((29_000..31_000).contains(&reads));
        assert!(!places.chance(0) && places.chance(100));
    }
}
