//! State of which each thread has a part of its own, so that counting moves no cache line between threads.

use std::cell::Cell;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Parts; threads beyond this number share.
const STRIPES: usize = 16;

thread_local! {
    static STRIPE: Cell<usize> = const { Cell::new(usize::MAX) };
}

/// The calling thread's part. Which one it is decides nothing but speed.
#[inline]
fn stripe() -> usize {
    let known = STRIPE.get();
    if known < STRIPES { known } else { first_use() }
}

#[cold]
fn first_use() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    let stripe = NEXT.fetch_add(1, Ordering::Relaxed) % STRIPES;
    STRIPE.set(stripe);
    stripe
}

/// Two cache lines: processors fetch them in pairs.
#[repr(align(128))]
#[derive(Default)]
struct Padded<T>(T);

/// A `T` per thread.
pub struct Striped<T> {
    stripes: Box<[Padded<T>]>,
}

impl<T: Default> Default for Striped<T> {
    fn default() -> Striped<T> {
        Striped { stripes: (0..STRIPES).map(|_| Padded::default()).collect() }
    }
}

impl<T> Striped<T> {
    /// The calling thread's part.
    #[inline]
    pub fn mine(&self) -> &T {
        &self.stripes[stripe()].0
    }

    /// All parts, one after the other: a sum over them is not of one moment.
    pub fn all(&self) -> impl Iterator<Item = &T> {
        self.stripes.iter().map(|padded| &padded.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicU64;

    #[test]
    #[expect(clippy::disallowed_methods, reason = "the subject is threads")]
    fn threads_count_apart_and_add_up() {
        let striped = Striped::<AtomicU64>::default();
        std::thread::scope(|scope| {
            for _ in 0..20 {
                scope.spawn(|| (0..1000).for_each(|_| _ = striped.mine().fetch_add(1, Ordering::Relaxed)));
            }
        });
        assert_eq!(striped.all().map(|part| part.load(Ordering::Relaxed)).sum::<u64>(), 20_000);
        assert!(striped.all().filter(|part| part.load(Ordering::Relaxed) > 0).count() > 1);
    }
}
