//! The cache to be shown: opened read-only beside whoever uses it, its log walked as far as it goes.

use anyhow::Context as _;
use std::path::Path;
use wb_cli::json::dump::Damage;
use wb_core::check::segment::SegmentImage;
use wb_core::check::{Examination, LogView, Severity, survey};
use wb_core::format::Superblock;
use wb_core::meta::{MetaView, read_view};
use wb_core::rt::{Access, BlockingDisk, block_on_ready, open_blocking};
use wb_core::types::SegmentNo;

/// A daemon may move the log on while it is walked; a walk that failed is tried again so many times.
const TRIES: usize = 4;

/// An open cache.
pub struct Cache {
    /// Its device.
    pub disk: BlockingDisk,
    /// Every copy of its metadata.
    pub meta: MetaView,
    /// The superblock that counts.
    pub superblock: Superblock,
}

/// A cache with its log.
pub struct Walked {
    /// What was seen; `None` if the log cannot be walked at all.
    pub found: Option<Examination>,
    /// What is wrong.
    pub damage: Vec<Damage>,
}

/// One line of damage.
pub fn damage(place: impl Into<String>, what: impl Into<String>) -> Damage {
    Damage { place: place.into(), what: what.into() }
}

impl Cache {
    /// Opens the device. Fails if there is no superblock to go by.
    pub fn open(path: &Path) -> anyhow::Result<Cache> {
        let disk = open_blocking(path, Access::INSPECT)?.disk;
        let meta = block_on_ready(read_view(&disk));
        let superblock = match meta.superblock() {
            Some(superblock) => superblock.clone(),
            None => {
                let problem = meta.usable_superblock().map(|_| ()).err();
                let problem = problem.map_or_else(|| "no superblock".to_owned(), |problem| problem.to_string());
                return Err(anyhow::Error::msg(problem)).with_context(|| path.display().to_string());
            }
        };
        Ok(Cache { disk, meta, superblock })
    }

    /// Damaged copies of the metadata.
    pub fn metadata_damage(&self) -> Vec<Damage> {
        let mut found: Vec<Damage> = self
            .meta
            .notes()
            .into_iter()
            .map(|note| match note.split_once(": ") {
                Some((place, what)) => damage(place, what),
                None => damage("metadata", note),
            })
            .collect();
        if let Err(problem) = self.meta.usable_superblock() {
            found.push(damage("device", problem.to_string()));
        }
        found
    }

    /// Walks the log.
    pub fn walk(&self) -> Walked {
        let mut last = None;
        for _ in 0..TRIES {
            match block_on_ready(survey(&self.disk, &mut |_| {})) {
                Ok(found) if found.log.refusal.is_none() => return Walked::new(found, self),
                Ok(found) => last = Some(Ok(found)),
                Err(problem) => last = Some(Err(problem)),
            }
        }
        match last.expect("at least one try") {
            Ok(found) => Walked::new(found, self),
            Err(problem) => {
                let mut list = self.metadata_damage();
                if list.is_empty() {
                    list.push(damage("log", problem.to_string()));
                }
                Walked { found: None, damage: list }
            }
        }
    }

    /// Reads a segment.
    pub fn segment(&self, segment: SegmentNo) -> anyhow::Result<SegmentImage> {
        block_on_ready(SegmentImage::read(&self.disk, &self.superblock, segment))
            .with_context(|| format!("reading segment {segment} failed"))
    }
}

impl Walked {
    fn new(found: Examination, cache: &Cache) -> Walked {
        let mut list = cache.metadata_damage();
        let worse = found.findings().into_iter().filter(|finding| finding.severity > Severity::Note);
        for finding in worse {
            if !list.iter().any(|known| known.place == finding.place) {
                list.push(damage(finding.place, finding.what));
            }
        }
        Walked { found: Some(found), damage: list }
    }

    /// The log, if it can be walked.
    pub fn log(&self) -> Option<&LogView> {
        self.found.as_ref().map(|found| &found.log)
    }
}
