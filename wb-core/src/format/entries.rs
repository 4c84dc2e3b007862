//! The entries of a record, as a part of a list that all records of a segment share.

use super::record::Entry;
use std::ops::{Deref, Range};
use std::sync::Arc;

/// Entries of a record. Those of the records of one segment lie in one list: taking a summary apart costs one allocation,
/// and not one for each of up to 255 records.
#[derive(Clone)]
pub struct Entries {
    all: Arc<Vec<Entry>>,
    range: Range<u32>,
}

impl Entries {
    /// A list, to be shared by records.
    pub(super) fn share(all: Vec<Entry>) -> Entries {
        let range = 0..u32::try_from(all.len()).expect("entries of a segment");
        Entries { all: Arc::new(all), range }
    }

    /// The next `count` of these, which are taken off.
    pub(super) fn split_to(&mut self, count: usize) -> Option<Entries> {
        let end = self.range.start + u32::try_from(count).ok()?;
        if end > self.range.end {
            return None;
        }
        let own = self.range.start..end;
        self.range.start = end;
        Some(Entries { all: self.all.clone(), range: own })
    }
}

impl Deref for Entries {
    type Target = [Entry];
    fn deref(&self) -> &[Entry] {
        &self.all[self.range.start as usize..self.range.end as usize]
    }
}

impl Default for Entries {
    fn default() -> Entries {
        Entries::share(Vec::new())
    }
}

impl From<Vec<Entry>> for Entries {
    fn from(entries: Vec<Entry>) -> Entries {
        Entries::share(entries)
    }
}

impl FromIterator<Entry> for Entries {
    fn from_iter<I: IntoIterator<Item = Entry>>(entries: I) -> Entries {
        Entries::share(entries.into_iter().collect())
    }
}

impl<'a> IntoIterator for &'a Entries {
    type Item = &'a Entry;
    type IntoIter = std::slice::Iter<'a, Entry>;
    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl std::fmt::Debug for Entries {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        (**self).fmt(f)
    }
}

impl PartialEq for Entries {
    fn eq(&self, other: &Entries) -> bool {
        **self == **other
    }
}

impl Eq for Entries {}

impl PartialEq<Vec<Entry>> for Entries {
    fn eq(&self, other: &Vec<Entry>) -> bool {
        **self == **other
    }
}
