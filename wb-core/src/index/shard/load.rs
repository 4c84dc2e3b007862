//! Filling a table from which nothing was ever removed.
//!
//! Invariant of such a table: a bucket that was full stays full, so an address whose home bucket has room is nowhere else.
//! The positions of a bucket are taken from below, so the first empty one ends the search. One cache line decides about
//! nearly every entry.

use super::*;

/// What came of an entry.
pub(in crate::index) enum AtHome {
    /// It is in, or what is there is newer.
    Done,
    /// The home bucket is full of others.
    Full,
}

impl Shard {
    /// Enters `word`, packed with its home key, if its home bucket decides about it. `newer` tells whether it is newer
    /// than the entry that is there.
    #[inline]
    pub(in crate::index) fn load_at_home(
        &self,
        geometry: &Geometry,
        bucket: usize,
        word: u64,
        newer: impl FnOnce(Entry) -> bool,
    ) -> AtHome {
        let key = geometry.key_of(word);
        let entries = &self.buckets[bucket];
        for at in 0..BUCKET_ENTRIES {
            let before = entries.get(at);
            if before == 0 {
                entries.set(at, word);
                self.count(1, i64::from(geometry.unpack(word).dirty));
                return AtHome::Done;
            }
            if geometry.matches(before, key) {
                let old = geometry.unpack(before);
                if newer(old) {
                    entries.set(at, word);
                    self.count(0, i64::from(geometry.unpack(word).dirty) - i64::from(old.dirty));
                }
                return AtHome::Done;
            }
        }
        AtHome::Full
    }

    /// Starts loading a bucket's cache line.
    #[inline]
    pub(in crate::index) fn prefetch_bucket(&self, bucket: usize) {
        prefetch(&self.buckets[bucket]);
    }
}
