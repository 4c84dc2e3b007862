//! The oracle: which values each 512-byte sector of a volume may have, from what its users did and were told.
//!
//! It knows nothing of the simulator and can watch a real daemon as well: clients report when an operation starts, and
//! when it ends and how. Starts and ends get *ticks*, numbers in order of being reported.
//!
//! **While running** ([`Model::end_read`]). A sector is a register. One write certainly precedes another if it had ended
//! (or a read had seen it) before the other began; overlapping writes have no order until a read shows one. A read may
//! return any version that began before the read ended and was not certainly replaced before the read began. A read that
//! saw a version proves that everything that had settled before the read precedes it.
//!
//! **After a crash** ([`Model::crash`]). A power cut leaves any version, except those that certainly precede a durable
//! one: a FUA write that completed, or a write that completed before a flush was *submitted* that succeeded. A kill of
//! the process leaves what a read could have returned (and, if power fails too before anybody has looked, what a power cut
//! would have left). Requests in flight count either way. What is read first after a
//! crash is what recovery chose, and stays (a later crash may not take it back). A discarded sector may have any value
//! until it is rewritten.
//!
//! **Prefix** ([`Model::check_prefix`]), stricter than any disk promises: what survives is a prefix of the log. If a
//! version survived, or was made durable, every write that had completed before that version began must be there or
//! certainly replaced. And of one write the sectors of one 4 KiB block survive together.
//!
//! The oracle never raises a false alarm; with many overlapping writes to one sector it may miss a violation.

use super::stamp::{Seen, recognise, stamp_sectors};
use crate::types::{SECTOR_BYTES, SECTORS_PER_BLOCK};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::ops::Range;

/// "Not yet."
const NEVER: u64 = u64::MAX;
/// Violations reported by one check; more would only repeat them.
const VIOLATIONS_MAX: usize = 8;

/// What a volume holds before its first write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Initial {
    /// Zeroes.
    Zeroes,
    /// Stamps of version 0 (see [`Model::fill_initial`]).
    Stamps,
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Crash {
    /// Power failed: what was not durable may be gone.
    PowerCut,
    /// The process died, the machine lives: everything acknowledged must be there.
    Kill,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Value {
    Zeroes,
    Stamp,
    /// Discarded.
    Any,
    /// Lost by name: whatever the sector once held, zeroes only if they were among it.
    Once {
        zeroes: bool,
    },
}

/// One version that a sector has or may have.
#[derive(Debug, Clone)]
struct Version {
    /// Tick at which the write began; names the version.
    start: u64,
    value: Value,
    /// Tick of a successful end.
    end: u64,
    /// Tick by which the write certainly took effect, or never will.
    settled: u64,
    /// Reads that begin later cannot see it.
    hidden: u64,
    /// Nothing older may be found after a crash.
    durable: bool,
    /// May not be found after a crash.
    lost: bool,
    /// From before the last crash.
    base: bool,
    /// Versions that reads have shown to be younger.
    before: Vec<u64>,
}

impl Version {
    fn new(start: u64, value: Value) -> Version {
        Version {
            start,
            value,
            end: NEVER,
            settled: NEVER,
            hidden: NEVER,
            durable: false,
            lost: false,
            base: false,
            before: Vec::new(),
        }
    }

    fn initial(initial: Initial) -> Version {
        let value = if initial == Initial::Zeroes { Value::Zeroes } else { Value::Stamp };
        Version { end: 0, settled: 0, durable: true, ..Version::new(0, value) }
    }

    fn certainly_before(&self, other: &Version) -> bool {
        self.settled < other.start || self.before.contains(&other.start)
    }

    fn matches(&self, seen: Seen, sector: u64) -> bool {
        match self.value {
            Value::Any => true,
            Value::Once { zeroes } => match seen {
                Seen::Zeroes => zeroes,
                Seen::Stamp { version, sector: own } => own == sector && version < self.start,
                _ => false,
            },
            Value::Zeroes => seen == Seen::Zeroes,
            Value::Stamp => seen == Seen::Stamp { version: self.start, sector },
        }
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.value {
            Value::Zeroes => write!(f, "zeroes#{}", self.start)?,
            Value::Stamp => write!(f, "v{}", self.start)?,
            Value::Any => write!(f, "discarded#{}", self.start)?,
            Value::Once { .. } => write!(f, "lost#{}", self.start)?,
        }
        let flags = [(self.durable, "durable"), (self.lost, "dropped by a flush"), (self.base, "before the crash")];
        let mut notes: Vec<String> = flags.iter().filter(|(on, _)| *on).map(|(_, what)| (*what).into()).collect();
        match self.end {
            NEVER if self.base => {}
            NEVER => notes.push("not completed".into()),
            end => notes.push(format!("completed {end}")),
        }
        if self.hidden != NEVER {
            notes.push(format!("replaced {}", self.hidden));
        }
        write!(f, " ({})", notes.join(", "))
    }
}

/// What is wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ViolationKind {
    /// A version that the sector once had and may not have any more.
    Stale,
    /// A version that was never written: data of another run.
    Alien,
    /// Data of another sector.
    Misdirected,
    /// A stamp that is torn or rotten, or no data of ours at all.
    Corrupt,
    /// Zeroes where none may be.
    UnexpectedZeroes,
    /// After a crash: a younger write survived and this one did not.
    Hole,
    /// After a crash: a write survived in some sectors of a 4 KiB block only.
    TornBlock,
}

/// A promise that was broken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// What is wrong.
    pub kind: ViolationKind,
    /// Where.
    pub sector: u64,
    /// What was seen, what was allowed, and why.
    pub detail: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} data in sector {}: {}", self.kind, self.sector, self.detail)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum OpKind {
    Write { fua: bool },
    Read,
    Flush,
}

#[derive(Debug, Clone)]
struct Op {
    kind: OpKind,
    sectors: Range<u64>,
}

/// What a crash left open and first reads settle, for the prefix check.
#[derive(Debug, Clone, Default)]
struct Survey {
    versions: BTreeMap<u64, Vec<Version>>,
    observed: BTreeMap<u64, u64>,
    durable_to: u64,
}

/// See the head of the module. Cheap to clone as long as few sectors were touched.
#[derive(Debug, Clone)]
pub struct Model {
    salt: u64,
    sector_count: u64,
    initial: Initial,
    tick: u64,
    sectors: BTreeMap<u64, Vec<Version>>,
    /// Sectors that were zeroed or discarded at some time.
    zeroed: BTreeSet<u64>,
    discarded: BTreeSet<u64>,
    /// Sectors with more than one version, or one that is not durable.
    open: BTreeSet<u64>,
    ops: BTreeMap<u64, Op>,
    /// Everything that completed before this tick is durable.
    flushed_to: u64,
    /// Latest start of a FUA write that completed.
    fua_start: u64,
    survey: Survey,
}

impl Model {
    /// A volume of `sector_count` sectors of 512 bytes. `salt` marks the data of this run.
    pub fn new(sector_count: u64, salt: u64, initial: Initial) -> Model {
        Model {
            salt,
            sector_count,
            initial,
            tick: 0,
            sectors: BTreeMap::new(),
            zeroed: BTreeSet::new(),
            discarded: BTreeSet::new(),
            open: BTreeSet::new(),
            ops: BTreeMap::new(),
            flushed_to: 0,
            fua_start: 0,
            survey: Survey::default(),
        }
    }

    /// Number of sectors.
    pub fn sector_count(&self) -> u64 {
        self.sector_count
    }

    /// Sectors whose content is not certain or not durable.
    pub fn open_sectors(&self) -> usize {
        self.open.len()
    }

    /// The content of the volume before the first write.
    pub fn fill_initial(&self, first_sector: u64, out: &mut [u8]) {
        match self.initial {
            Initial::Zeroes => out.fill(0),
            Initial::Stamps => stamp_sectors(self.salt, 0, first_sector, out),
        }
    }

    /// The payload of write `op` for the sectors from `first_sector` on.
    pub fn fill(&self, op: u64, first_sector: u64, out: &mut [u8]) {
        stamp_sectors(self.salt, op, first_sector, out);
    }

    fn next_tick(&mut self) -> u64 {
        self.tick += 1;
        self.tick
    }

    fn begin(&mut self, kind: OpKind, sectors: Range<u64>) -> u64 {
        assert!(sectors.start <= sectors.end && sectors.end <= self.sector_count, "a range within the volume");
        let tick = self.next_tick();
        self.ops.insert(tick, Op { kind, sectors });
        tick
    }

    fn begin_change(&mut self, sectors: Range<u64>, fua: bool, value: Value) -> u64 {
        let tick = self.begin(OpKind::Write { fua }, sectors.clone());
        for sector in sectors {
            let initial = self.initial;
            let versions = self.sectors.entry(sector).or_insert_with(|| vec![Version::initial(initial)]);
            versions.push(Version::new(tick, value));
            self.open.insert(sector);
        }
        tick
    }

    /// A write is submitted; its payload is what [`Model::fill`] gives for the number returned.
    pub fn begin_write(&mut self, sectors: Range<u64>, fua: bool) -> u64 {
        self.begin_change(sectors, fua, Value::Stamp)
    }

    /// A write of zeroes is submitted.
    pub fn begin_zeroes(&mut self, sectors: Range<u64>, fua: bool) -> u64 {
        self.zeroed.extend(sectors.clone());
        self.begin_change(sectors, fua, Value::Zeroes)
    }

    /// A discard is submitted.
    pub fn begin_discard(&mut self, sectors: Range<u64>) -> u64 {
        self.discarded.extend(sectors.clone());
        self.begin_change(sectors, false, Value::Any)
    }

    /// A flush is submitted.
    pub fn begin_flush(&mut self) -> u64 {
        self.begin(OpKind::Flush, 0..0)
    }

    /// A read is submitted.
    pub fn begin_read(&mut self, sectors: Range<u64>) -> u64 {
        self.begin(OpKind::Read, sectors)
    }

    /// An operation ended: acknowledged, or with an error. For a read that succeeded see [`Model::end_read`].
    pub fn end(&mut self, op: u64, acknowledged: bool) {
        let Op { kind, sectors } = self.ops.remove(&op).expect("the operation was begun and has not ended");
        let tick = self.next_tick();
        match kind {
            OpKind::Write { fua } => self.end_change(op, sectors, fua, acknowledged, tick),
            OpKind::Flush if acknowledged => {
                self.flushed_to = self.flushed_to.max(op);
                for sector in std::mem::take(&mut self.open) {
                    self.prune(sector);
                }
            }
            OpKind::Flush | OpKind::Read => {}
        }
    }

    fn end_change(&mut self, op: u64, sectors: Range<u64>, fua: bool, acknowledged: bool, tick: u64) {
        if acknowledged && fua {
            self.fua_start = self.fua_start.max(op);
        }
        for sector in sectors {
            let versions = self.sectors.get_mut(&sector).expect("begun on this sector");
            // Absent if a read saw it and a durable version has replaced it since.
            let Some(at) = versions.iter().position(|version| version.start == op) else { continue };
            versions[at].settled = versions[at].settled.min(tick);
            if acknowledged {
                versions[at].end = tick;
                versions[at].durable = fua;
                let this = versions[at].clone();
                for older in versions.iter_mut().filter(|older| older.certainly_before(&this)) {
                    older.hidden = older.hidden.min(tick);
                }
            }
            self.prune(sector);
        }
    }

    /// Marks what a durable version has replaced, and forgets what no read in flight may see either.
    fn prune(&mut self, sector: u64) {
        let flushed_to = self.flushed_to;
        let oldest_read = self.ops.iter().find(|(_, op)| op.kind == OpKind::Read).map_or(NEVER, |(tick, _)| *tick);
        let versions = self.sectors.get_mut(&sector).expect("a sector with versions");
        let is_durable = |version: &Version| version.durable || version.end < flushed_to;
        for at in 0..versions.len() {
            let lost = {
                let this = &versions[at];
                versions.iter().any(|other| is_durable(other) && this.certainly_before(other))
            };
            versions[at].lost |= lost;
        }
        versions.retain(|version| !(version.lost && version.hidden < oldest_read));
        if versions.len() > 1 || !is_durable(&versions[0]) && !versions[0].base {
            self.open.insert(sector);
        } else {
            self.open.remove(&sector);
        }
    }

    /// A read ended with `data`. Gives what is wrong with it; what is right is learned.
    pub fn end_read(&mut self, op: u64, data: &[u8]) -> Vec<Violation> {
        let Op { kind, sectors } = self.ops.remove(&op).expect("the operation was begun and has not ended");
        assert!(kind == OpKind::Read, "a read");
        assert_eq!((sectors.end - sectors.start) as usize * SECTOR_BYTES, data.len(), "as much as was asked for");
        let tick = self.next_tick();
        let mut violations = Vec::new();
        for (sector, bytes) in sectors.zip(data.chunks(SECTOR_BYTES)) {
            let seen = recognise(self.salt, bytes);
            if let Err(violation) = self.check_sector(sector, seen, op, tick)
                && violations.len() < VIOLATIONS_MAX
            {
                violations.push(violation);
            }
        }
        violations
    }

    fn check_sector(&mut self, sector: u64, seen: Seen, began: u64, tick: u64) -> Result<(), Violation> {
        let Some(versions) = self.sectors.get_mut(&sector) else {
            let initial = Version::initial(self.initial);
            return if initial.matches(seen, sector) {
                Ok(())
            } else {
                Err(violation(sector, seen, tick, std::slice::from_ref(&initial)))
            };
        };
        let fits = |version: &Version| version.hidden > began && version.matches(seen, sector);
        let matched: Vec<usize> = (0..versions.len()).filter(|&at| fits(&versions[at])).collect();
        if matched.is_empty() {
            return Err(violation(sector, seen, tick, versions));
        }
        if matched.iter().any(|&at| matches!(versions[at].value, Value::Any | Value::Once { .. })) {
            return Ok(());
        }
        let only = if let [only] = matched[..] { Some(versions[only].start) } else { None };
        let all_base = matched.iter().all(|&at| versions[at].base);
        if let Some(start) = only {
            let this = &mut versions[matched[0]];
            this.settled = this.settled.min(tick);
            this.durable |= this.base;
            if self.survey.versions.contains_key(&sector) && this.base {
                self.survey.observed.entry(sector).or_insert(start);
            }
        }
        for (at, other) in versions.iter_mut().enumerate() {
            if matched.contains(&at) || other.settled >= began {
                continue;
            }
            other.hidden = other.hidden.min(tick);
            other.lost |= all_base && other.base;
            if let Some(start) = only
                && !other.before.contains(&start)
            {
                other.before.push(start);
            }
        }
        self.prune(sector);
        Ok(())
    }

    /// The process that served the volume died with everything in flight.
    pub fn crash(&mut self, crash: Crash) {
        match crash {
            Crash::PowerCut => self.power_cut(),
            Crash::Kill => self.kill(),
        }
        self.ops.clear();
    }

    fn power_cut(&mut self) {
        let tick = self.next_tick();
        let durable_to = self.flushed_to.max(self.fua_start);
        let mut survey = Survey { durable_to, ..Survey::default() };
        for sector in self.open.clone() {
            let versions = self.sectors.get_mut(&sector).expect("open sectors have versions");
            versions.retain(|version| !version.lost);
            assert!(!versions.is_empty(), "a sector has at least one value");
            survey.versions.insert(sector, versions.clone());
            for version in versions.iter_mut() {
                version.base = true;
                version.end = NEVER;
                version.settled = tick;
                version.hidden = NEVER;
                version.durable = false;
                version.before.clear();
            }
            if versions.len() == 1 {
                self.open.remove(&sector);
            }
        }
        self.fua_start = 0;
        self.survey = survey;
    }

    /// What was in flight has taken effect, or never will; everything else is as it was. What a read could not see before
    /// it cannot see now, and yet it is there: power may fail before what followed it is durable.
    fn kill(&mut self) {
        let tick = self.next_tick();
        // Everything acknowledged survives, in log order or not: only tears inside a block are left to find.
        let mut survey = Survey::default();
        for sector in &self.open {
            let versions = self.sectors.get_mut(sector).expect("open sectors have versions");
            let visible = versions.iter().filter(|version| version.hidden == NEVER);
            let visible: Vec<Version> = visible.map(|version| Version { end: NEVER, ..version.clone() }).collect();
            assert!(!visible.is_empty(), "a sector has at least one value");
            survey.versions.insert(*sector, visible);
            for version in versions.iter_mut() {
                version.base = true;
                version.settled = version.settled.min(tick);
            }
        }
        self.survey = survey;
    }

    /// The newest content of these sectors is lost, and was said to be: until they are written again they may hold
    /// anything that they ever held, and no garbage. Not while an operation on them is under way.
    pub fn lose(&mut self, sectors: Range<u64>) {
        let tick = self.next_tick();
        for sector in sectors {
            let zeroes = self.initial == Initial::Zeroes || self.zeroed.contains(&sector);
            let value = if self.discarded.contains(&sector) { Value::Any } else { Value::Once { zeroes } };
            let lost = Version { end: 0, settled: tick, durable: true, base: true, ..Version::new(tick, value) };
            self.sectors.insert(sector, vec![lost]);
            self.open.remove(&sector);
            self.survey.versions.remove(&sector);
            self.survey.observed.remove(&sector);
        }
    }

    /// As [`Model::lose`], for every sector that was ever written.
    pub fn lose_all(&mut self) {
        for sector in self.sectors.keys().copied().collect::<Vec<_>>() {
            self.lose(sector..sector + 1);
        }
    }

    /// Sectors that a crash left with several possible values and that were not read since.
    pub fn unread_after_crash(&self) -> impl Iterator<Item = u64> {
        self.survey.versions.keys().copied().filter(|sector| !self.survey.observed.contains_key(sector))
    }

    /// Whether what was read since the last crash is a prefix of the log. Call it when everything was read, before new
    /// writes.
    pub fn check_prefix(&self) -> Vec<Violation> {
        let Survey { versions, observed, durable_to } = &self.survey;
        let of = |sector: &u64, start: u64| versions[sector].iter().find(|version| version.start == start);
        let youngest = observed.values().copied().max().unwrap_or(0);
        let mut violations = Vec::new();
        for (sector, start) in observed {
            let Some(seen) = of(sector, *start) else { continue };
            let evidence = youngest.max(*durable_to);
            let missing = |version: &&Version| version.end < evidence && seen.certainly_before(version);
            if let Some(version) = versions[sector].iter().find(missing) {
                let detail = format!(
                    "{seen} is there, {version} is missing, though {} survived that began after it had completed",
                    if evidence == youngest { format!("v{youngest}") } else { format!("a durable one ({evidence})") }
                );
                violations.push(Violation { kind: ViolationKind::Hole, sector: *sector, detail });
            }
            let block = sector - sector % SECTORS_PER_BLOCK as u64;
            let neighbours = observed.range(block..block + SECTORS_PER_BLOCK as u64);
            for (neighbour, theirs) in neighbours.filter(|(_, theirs)| *theirs != start) {
                if let Some(version) = of(sector, *theirs)
                    && seen.certainly_before(version)
                {
                    let detail = format!("{seen} is there, yet sector {neighbour} of the same block has {version}");
                    violations.push(Violation { kind: ViolationKind::TornBlock, sector: *sector, detail });
                }
            }
        }
        violations.truncate(VIOLATIONS_MAX);
        violations
    }

    /// The versions of a sector, for people.
    pub fn describe(&self, sector: u64) -> String {
        match self.sectors.get(&sector) {
            Some(versions) => list(versions),
            None => list(&[Version::initial(self.initial)]),
        }
    }
}

fn list(versions: &[Version]) -> String {
    versions.iter().map(Version::to_string).collect::<Vec<_>>().join(", ")
}

fn violation(sector: u64, seen: Seen, tick: u64, versions: &[Version]) -> Violation {
    let kind = match seen {
        Seen::Zeroes => ViolationKind::UnexpectedZeroes,
        Seen::Foreign | Seen::Damaged { .. } => ViolationKind::Corrupt,
        Seen::Stamp { sector: other, .. } if other != sector => ViolationKind::Misdirected,
        Seen::Stamp { version, .. } if version < tick => ViolationKind::Stale,
        Seen::Stamp { .. } => ViolationKind::Alien,
    };
    Violation { kind, sector, detail: format!("saw {seen:?}; known are {}", list(versions)) }
}

#[cfg(test)]
#[path = "model_tests.rs"]
mod tests;
