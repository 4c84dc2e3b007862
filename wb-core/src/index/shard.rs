//! One separately locked part of the index: buckets, displacement, stash, sweep.
//!
//! **Scheme.** Bucketised cuckoo hashing: every entry lies in one of two buckets of eight entries (a cache line
//! each; see [`super::quotient`]). A new entry goes to its home bucket if there is room, else to its alternate one,
//! so most lookups of present blocks touch one line. If both are full, a breadth-first search over the entries'
//! other buckets finds the shortest chain of moves that makes room. At the 10/11 the table is filled at most, such
//! chains are one or two moves long; two choices of eight work up to 99 %.
//!
//! **Overflow.** If the search ends without result after 256 buckets, the entry goes to the shard's
//! *stash*, a sorted map looked at after both buckets; removals bring its entries back into the table. It stays
//! empty in practice (a test fills tables completely and asserts it), and all stashes together hold at most as many
//! entries as there are slots: beyond that the insertion is refused as [`IndexError::Full`], which takes slots that
//! were reused with their entries left in place.
//!
//! **Locking.** Buckets are atomic words, so that `Shard::prefetch` may touch them without the lock; they are read
//! for their value and written under the shard's mutex only, hence relaxed.

mod load;

pub(super) use load::AtHome;

use super::memory::{NoMemory, zeroed};
use super::quotient::{BUCKET_ENTRIES, Geometry, Home};
use super::{Entry, Index, IndexError};
use crate::io::buf::prefetch;
use crate::sync::lock;
use crate::types::BlockAddr;
use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Most buckets that a search for room looks at.
const SEARCH_NODES_MAX: usize = 256;

/// What to do with an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Leave it, or its absence, as it is.
    Keep,
    /// Clear its dirty flag. Nothing if there is no entry.
    SetClean,
    /// Insert or replace it.
    Set(Entry),
    /// Remove it. Nothing if there is no entry.
    Remove,
}

#[derive(Default, zerocopy::FromZeros)]
#[cfg_attr(not(feature = "sim"), repr(align(64)))] // only untouched zeroes of a small alignment cost nothing
struct Bucket([AtomicU64; BUCKET_ENTRIES]);

impl Bucket {
    fn get(&self, at: usize) -> u64 {
        self.0[at].load(Relaxed)
    }

    fn set(&self, at: usize, word: u64) {
        self.0[at].store(word, Relaxed);
    }

    fn position(&self, mut is: impl FnMut(u64) -> bool) -> Option<usize> {
        self.0.iter().position(|word| is(word.load(Relaxed)))
    }

    fn free(&self) -> Option<usize> {
        self.position(|word| word == 0)
    }
}

/// See the module. Aligned so that the locks of neighbours do not share cache lines.
#[repr(align(128))]
pub(super) struct Shard {
    buckets: Vec<Bucket>,
    /// Counters, changed under the lock, readable without.
    len: AtomicU64,
    dirty: AtomicU64,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Entries without a place in the table, by q; their words have the home key.
    stash: BTreeMap<u64, u64>,
    /// A sweep is going on and has visited the buckets below this.
    swept: Option<usize>,
    /// Buckets that a search visits; kept for its memory.
    search: Vec<Node>,
}

/// A full bucket that a search for room came to.
struct Node {
    bucket: usize,
    /// How it came here: entry `from` of the bucket of node `parent` could move here. The first two are where the new
    /// entry may go, and have no parent.
    parent: usize,
    from: usize,
}

/// Where an entry is.
enum Place {
    Table { bucket: usize, at: usize, word: u64 },
    Stash { word: u64 },
}

impl Shard {
    pub fn new(geometry: &Geometry) -> Result<Shard, NoMemory> {
        let buckets = zeroed(geometry.buckets())?;
        let mut search = Vec::new();
        search.try_reserve_exact(SEARCH_NODES_MAX).map_err(|_| NoMemory)?;
        let state = Mutex::new(State { search, ..State::default() });
        Ok(Shard { buckets, len: AtomicU64::new(0), dirty: AtomicU64::new(0), state })
    }

    pub fn len(&self) -> u64 {
        self.len.load(Relaxed)
    }

    pub fn dirty_len(&self) -> u64 {
        self.dirty.load(Relaxed)
    }

    pub fn prefetch(&self, geometry: &Geometry, quotient: u64) {
        let home = geometry.home(quotient);
        prefetch(&self.buckets[home.bucket]);
        prefetch(&self.buckets[geometry.other_bucket(home.bucket, home.key)]);
    }

    #[inline]
    pub fn lookup_with<R>(&self, geometry: &Geometry, quotient: u64, read: impl FnOnce(Option<Entry>) -> R) -> R {
        let home = geometry.home(quotient);
        let state = lock(&self.state);
        let place = self.find(geometry, &state, quotient, home);
        let result = read(place.map(|place| geometry.unpack(place.word())));
        drop(state);
        result
    }

    #[inline]
    fn find(&self, geometry: &Geometry, state: &State, quotient: u64, home: Home) -> Option<Place> {
        let in_bucket = |bucket: usize, key: u64| {
            let entries = &self.buckets[bucket];
            let at = entries.position(|word| geometry.matches(word, key))?;
            Some(Place::Table { bucket, at, word: entries.get(at) })
        };
        in_bucket(home.bucket, home.key)
            .or_else(|| in_bucket(geometry.other_bucket(home.bucket, home.key), geometry.flip_choice(home.key)))
            .or_else(|| {
                if state.stash.is_empty() {
                    return None;
                }
                state.stash.get(&quotient).map(|&word| Place::Stash { word })
            })
    }

    #[cfg(test)]
    pub fn is_at_home(&self, geometry: &Geometry, quotient: u64) -> bool {
        let home = geometry.home(quotient);
        self.buckets[home.bucket].position(|word| geometry.matches(word, home.key)).is_some()
    }

    /// Changes the entry of `quotient`. `stashed` counts the entries in all stashes, `stash_max` bounds it.
    pub fn modify(
        &self,
        geometry: &Geometry,
        quotient: u64,
        stashed: &AtomicU64,
        stash_max: u64,
        change: impl FnOnce(Option<Entry>) -> Result<Action, IndexError>,
    ) -> Result<Option<Entry>, IndexError> {
        let home = geometry.home(quotient);
        let mut state = lock(&self.state);
        let place = self.find(geometry, &state, quotient, home);
        let before = place.as_ref().map(|place| geometry.unpack(place.word()));
        match (change(before)?, place) {
            (Action::Keep, _) | (Action::SetClean | Action::Remove, None) => {}
            (Action::SetClean, Some(place)) => {
                self.write(geometry, &mut state, quotient, place, |entry| entry.dirty = false)
            }
            (Action::Set(new), Some(place)) => self.write(geometry, &mut state, quotient, place, |entry| *entry = new),
            (Action::Set(new), None) => {
                let word = geometry.pack(home.key, new);
                if !self.insert(geometry, &mut state, home, word) {
                    // Relaxed is enough: the count alone matters.
                    let room = |count| (count < stash_max).then_some(count + 1);
                    stashed.fetch_update(Relaxed, Relaxed, room).map_err(|_| IndexError::Full)?;
                    state.stash.insert(quotient, word);
                }
                self.count(1, i64::from(new.dirty));
            }
            (Action::Remove, Some(place)) => {
                let entry = geometry.unpack(place.word());
                self.remove(&mut state, quotient, place, stashed);
                self.unstash(geometry, &mut state, stashed);
                self.count(-1, -i64::from(entry.dirty));
            }
        }
        Ok(before)
    }

    /// Keeps the counters. Under the lock, so load and store need not be one step.
    #[inline]
    fn count(&self, entries: i64, dirty: i64) {
        self.len.store(self.len.load(Relaxed).wrapping_add_signed(entries), Relaxed);
        self.dirty.store(self.dirty.load(Relaxed).wrapping_add_signed(dirty), Relaxed);
    }

    /// Changes an entry where it is.
    #[inline]
    fn write(
        &self,
        geometry: &Geometry,
        state: &mut State,
        quotient: u64,
        place: Place,
        change: impl FnOnce(&mut Entry),
    ) {
        let before = geometry.unpack(place.word());
        let mut after = before;
        change(&mut after);
        let word = geometry.pack(geometry.key_of(place.word()), after);
        match place {
            Place::Table { bucket, at, .. } => self.buckets[bucket].set(at, word),
            Place::Stash { .. } => _ = state.stash.insert(quotient, word),
        }
        self.count(0, i64::from(after.dirty) - i64::from(before.dirty));
    }

    fn remove(&self, state: &mut State, quotient: u64, place: Place, stashed: &AtomicU64) {
        match place {
            Place::Table { bucket, at, .. } => self.buckets[bucket].set(at, 0),
            Place::Stash { .. } => {
                state.stash.remove(&quotient).expect("found there");
                stashed.fetch_sub(1, Relaxed);
            }
        }
    }

    /// After a removal: tries to bring an entry of the stash back. Not during a sweep, which visits the stash last.
    fn unstash(&self, geometry: &Geometry, state: &mut State, stashed: &AtomicU64) {
        if state.stash.is_empty() || state.swept.is_some() {
            return;
        }
        let (quotient, word) = state.stash.pop_first().expect("not empty");
        if self.insert(geometry, state, geometry.home(quotient), word) {
            stashed.fetch_sub(1, Relaxed);
        } else {
            state.stash.insert(quotient, word);
        }
    }

    /// Puts a new entry, packed with its home key, into the table. False if there is no room.
    fn insert(&self, geometry: &Geometry, state: &mut State, home: Home, word: u64) -> bool {
        let other = geometry.other_bucket(home.bucket, word);
        for (bucket, word) in [(home.bucket, word), (other, geometry.flip_choice(word))] {
            if let Some(at) = self.buckets[bucket].free() {
                self.buckets[bucket].set(at, word);
                return true;
            }
        }
        match self.make_room(geometry, state, [home.bucket, other]) {
            Some((bucket, at)) => {
                let word = if bucket == home.bucket { word } else { geometry.flip_choice(word) };
                self.buckets[bucket].set(at, word);
                true
            }
            None => false,
        }
    }

    /// Frees an entry of one of two full buckets by moving others to their other buckets. The search visits no
    /// bucket twice, so no entry is moved twice.
    fn make_room(&self, geometry: &Geometry, state: &mut State, roots: [usize; 2]) -> Option<(usize, usize)> {
        // What a sweep has not seen must not move to where it has been already.
        let swept = state.swept.unwrap_or(0);
        let nodes = &mut state.search;
        nodes.clear();
        nodes.extend(roots.map(|bucket| Node { bucket, parent: usize::MAX, from: 0 }));
        let mut next = 0;
        while next < nodes.len() {
            let bucket = nodes[next].bucket;
            for at in 0..BUCKET_ENTRIES {
                let other = geometry.other_bucket(bucket, self.buckets[bucket].get(at));
                if bucket >= swept && other < swept {
                    continue;
                }
                if let Some(free) = self.buckets[other].free() {
                    return Some(self.shift(geometry, nodes, next, at, (other, free)));
                }
                if nodes.len() < SEARCH_NODES_MAX && nodes.iter().all(|node| node.bucket != other) {
                    nodes.push(Node { bucket: other, parent: next, from: at });
                }
            }
            next += 1;
        }
        None
    }

    /// Moves entry `at` of the bucket of node `node` into `hole`, and so on back to a root; returns the hole there.
    fn shift(
        &self,
        geometry: &Geometry,
        nodes: &[Node],
        mut node: usize,
        mut at: usize,
        mut hole: (usize, usize),
    ) -> (usize, usize) {
        loop {
            let Node { bucket, parent, from } = nodes[node];
            let word = self.buckets[bucket].get(at);
            debug_assert_eq!(geometry.other_bucket(bucket, word), hole.0);
            self.buckets[hole.0].set(hole.1, geometry.flip_choice(word));
            self.buckets[bucket].set(at, 0);
            hole = (bucket, at);
            if parent == usize::MAX {
                return hole;
            }
            (node, at) = (parent, from);
        }
    }
}

impl Place {
    fn word(&self) -> u64 {
        match *self {
            Place::Table { word, .. } | Place::Stash { word } => word,
        }
    }
}

/// What a sweep does with an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SweepAction {
    /// Leave it.
    Keep,
    /// Remove it.
    Remove,
}

/// A visit to all entries of one shard, some buckets at a time, so that the shard's lock is never held for long.
///
/// Every block that has an entry from beginning to end of the sweep is visited at least once, whatever happens to
/// other blocks: meanwhile the shard moves no entry from the part still to be visited to the part already visited.
/// Blocks whose entry appears or disappears meanwhile are visited or not.
pub struct Sweep<'a> {
    index: &'a Index,
    shard: usize,
}

impl<'a> Sweep<'a> {
    pub(super) fn begin(index: &'a Index, shard: usize) -> Option<Sweep<'a>> {
        let mut state = lock(&index.shards[shard].state);
        if state.swept.is_some() {
            return None;
        }
        state.swept = Some(0);
        Some(Sweep { index, shard })
    }

    /// Visits up to `buckets` buckets of eight entries, then gives the lock back. False when all has been visited;
    /// the last step visits the stash too. `visit` must not use the index.
    pub fn step(&mut self, buckets: usize, mut visit: impl FnMut(BlockAddr, Entry) -> SweepAction) -> bool {
        let Index { geometry, permutation, widths, stashed, .. } = self.index;
        let shard = &self.index.shards[self.shard];
        let mut removed = |quotient: u64, word: u64| {
            let addr = widths.unpack(permutation.invert(geometry.join_shard(self.shard, quotient)));
            let entry = geometry.unpack(word);
            let remove = visit(addr, entry) == SweepAction::Remove;
            if remove {
                shard.count(-1, -i64::from(entry.dirty));
            }
            remove
        };
        let mut state = lock(&shard.state);
        let first = state.swept.expect("set until this is dropped");
        let end = first.saturating_add(buckets).min(shard.buckets.len());
        for bucket in first..end {
            for at in 0..BUCKET_ENTRIES {
                let word = shard.buckets[bucket].get(at);
                if word != 0 && removed(geometry.quotient_of(bucket, word), word) {
                    shard.buckets[bucket].set(at, 0);
                }
            }
        }
        state.swept = Some(end);
        if end < shard.buckets.len() {
            return true;
        }
        state.stash.retain(|&quotient, word| {
            let remove = removed(quotient, *word);
            stashed.fetch_sub(u64::from(remove), Relaxed);
            !remove
        });
        false
    }
}

impl Drop for Sweep<'_> {
    fn drop(&mut self) {
        // `visit` may have panicked under the lock: then nobody can use the shard any more.
        if let Ok(mut state) = self.index.shards[self.shard].state.lock() {
            state.swept = None;
        }
    }
}
