use super::*;
use crate::sim::SimRng;

const SALT: u64 = 99;

/// A volume of 16 sectors, served by hand.
struct Hand {
    model: Model,
}

impl Hand {
    fn new() -> Hand {
        Hand { model: Model::new(16, SALT, Initial::Zeroes) }
    }
    fn write(&mut self, sectors: Range<u64>) -> u64 {
        let op = self.model.begin_write(sectors, false);
        self.model.end(op, true);
        op
    }
    fn fua(&mut self, sectors: Range<u64>) -> u64 {
        let op = self.model.begin_write(sectors, true);
        self.model.end(op, true);
        op
    }
    fn flush(&mut self) {
        let op = self.model.begin_flush();
        self.model.end(op, true);
    }
    /// A read of one sector that returns `version`; 0 is zeroes.
    fn sees(&mut self, sector: u64, version: u64) -> Option<ViolationKind> {
        let op = self.model.begin_read(sector..sector + 1);
        self.ends(op, sector, version)
    }
    fn ends(&mut self, op: u64, sector: u64, version: u64) -> Option<ViolationKind> {
        let mut data = [0; 512];
        if version > 0 {
            self.model.fill(version, sector, &mut data);
        }
        self.model.end_read(op, &data).first().map(|violation| violation.kind)
    }
    fn prefix(&self) -> Vec<ViolationKind> {
        self.model.check_prefix().iter().map(|violation| violation.kind).collect()
    }
}

#[test]
fn reads_see_the_last_completed_write() {
    let mut hand = Hand::new();
    assert_eq!(hand.sees(3, 0), None);
    let first = hand.write(0..8);
    let second = hand.write(2..4);
    assert_eq!((hand.sees(1, first), hand.sees(2, second), hand.sees(8, 0)), (None, None, None));
    assert_eq!(hand.sees(2, first), Some(ViolationKind::Stale));
    assert_eq!(hand.sees(2, 0), Some(ViolationKind::UnexpectedZeroes));
    assert_eq!(hand.sees(8, 77), Some(ViolationKind::Alien));
}

#[test]
fn misdirected_torn_and_foreign_data_are_told_apart() {
    let mut hand = Hand::new();
    let op = hand.write(0..2);
    let mut data = [0; 512];
    hand.model.fill(op, 1, &mut data);
    let mut check = |data: &[u8]| {
        let read = hand.model.begin_read(0..1);
        hand.model.end_read(read, data).first().map(|violation| violation.kind)
    };
    assert_eq!(check(&data), Some(ViolationKind::Misdirected));
    data.fill(0);
    stamp_sectors(SALT, op, 0, &mut data);
    data[300] ^= 4;
    assert_eq!(check(&data), Some(ViolationKind::Corrupt));
    assert_eq!(check(&[0xaa; 512]), Some(ViolationKind::Corrupt));
}

#[test]
fn overlapping_writes_have_no_order_until_a_read_shows_it() {
    let mut hand = Hand::new();
    let first = hand.model.begin_write(0..1, false);
    let second = hand.model.begin_write(0..1, false);
    // While both are in flight a read may see the old value or either of them, but time does not run backwards.
    assert_eq!((hand.sees(0, 0), hand.sees(0, second)), (None, None));
    assert_eq!(hand.sees(0, 0), Some(ViolationKind::UnexpectedZeroes));
    hand.model.end(first, true);
    hand.model.end(second, true);
    assert_eq!(hand.sees(0, first), None, "second, then first");
    assert_eq!(hand.sees(0, second), Some(ViolationKind::Stale), "and no way back");
}

#[test]
fn a_read_that_began_earlier_may_return_the_older_value() {
    let mut hand = Hand::new();
    let first = hand.write(0..1);
    let slow = hand.model.begin_read(0..1);
    let second = hand.fua(0..1);
    hand.flush();
    assert_eq!(hand.sees(0, second), None);
    assert_eq!(hand.ends(slow, 0, first), None);
    assert_eq!(hand.sees(0, first), Some(ViolationKind::Stale));
}

#[test]
fn a_write_may_end_after_it_was_seen_and_replaced() {
    let mut hand = Hand::new();
    let slow = hand.model.begin_write(0..1, false);
    assert_eq!(hand.sees(0, slow), None);
    let second = hand.fua(0..1);
    hand.model.end(slow, true);
    assert_eq!(hand.sees(0, second), None);
    assert_eq!(hand.sees(0, slow), Some(ViolationKind::Stale));
}

#[test]
fn a_failed_write_may_be_there_or_not_but_does_not_flicker() {
    let mut hand = Hand::new();
    let failed = hand.model.begin_write(0..2, false);
    hand.model.end(failed, false);
    assert_eq!((hand.sees(0, failed), hand.sees(1, 0)), (None, None));
    assert_eq!(hand.sees(0, 0), Some(ViolationKind::UnexpectedZeroes));
    assert_eq!(hand.sees(1, failed), Some(ViolationKind::Stale));
}

#[test]
fn discarded_sectors_have_any_value_until_rewritten() {
    let mut hand = Hand::new();
    let first = hand.write(0..2);
    let op = hand.model.begin_discard(0..2);
    hand.model.end(op, true);
    assert_eq!((hand.sees(0, first), hand.sees(0, 0), hand.sees(0, 12345)), (None, None, None));
    let second = hand.write(0..1);
    assert_eq!(hand.sees(0, first), Some(ViolationKind::Stale));
    assert_eq!((hand.sees(0, second), hand.sees(1, 4711)), (None, None));
}

#[test]
fn zeroes_are_a_value() {
    let mut hand = Hand::new();
    let first = hand.write(0..2);
    let op = hand.model.begin_zeroes(0..1, false);
    hand.model.end(op, true);
    assert_eq!((hand.sees(0, 0), hand.sees(1, first)), (None, None));
    assert_eq!(hand.sees(0, first), Some(ViolationKind::Stale));
    assert_eq!(hand.sees(1, 0), Some(ViolationKind::UnexpectedZeroes));
}

#[test]
fn a_power_cut_takes_what_was_not_flushed_and_nothing_else() {
    for (kept, verdict) in
        [(0, Some(ViolationKind::UnexpectedZeroes)), (1, Some(ViolationKind::Stale)), (2, None), (3, None)]
    {
        let mut hand = Hand::new();
        let versions = [0, hand.write(0..1), hand.write(0..1)];
        hand.flush();
        let last = hand.write(0..1);
        hand.model.crash(Crash::PowerCut);
        let version = versions.get(kept).copied().unwrap_or(last);
        assert_eq!(hand.sees(0, version), verdict, "version {kept}");
    }
}

#[test]
fn a_flush_covers_what_had_completed_when_it_was_submitted() {
    let mut hand = Hand::new();
    let first = hand.write(0..1);
    let flush = hand.model.begin_flush();
    hand.write(0..1);
    hand.model.end(flush, true);
    hand.model.crash(Crash::PowerCut);
    assert_eq!(hand.model.clone().open_sectors(), 1);
    assert_eq!(hand.sees(0, first), None, "the second write was not covered");

    let mut hand = Hand::new();
    hand.write(0..1);
    let failed = hand.model.begin_flush();
    hand.model.end(failed, false);
    hand.model.crash(Crash::PowerCut);
    assert_eq!(hand.sees(0, 0), None, "a failed flush promises nothing");
}

#[test]
fn fua_promises_its_own_range_and_no_other() {
    let mut hand = Hand::new();
    let first = hand.write(0..1);
    let second = hand.fua(1..2);
    hand.model.crash(Crash::PowerCut);
    assert_eq!((hand.sees(0, 0), hand.sees(1, second)), (None, None));
    assert_eq!(hand.prefix(), [ViolationKind::Hole], "legal for a disk, not for a log: v{first} came before");

    let mut hand = Hand::new();
    hand.fua(1..2);
    hand.model.crash(Crash::PowerCut);
    assert_eq!(hand.sees(1, 0), Some(ViolationKind::UnexpectedZeroes));
}

#[test]
fn what_recovery_showed_stays() {
    let mut hand = Hand::new();
    let first = hand.write(0..1);
    let second = hand.write(0..1);
    hand.model.crash(Crash::PowerCut);
    assert_eq!(hand.sees(0, first), None);
    assert_eq!(hand.sees(0, second), Some(ViolationKind::Stale), "not in the same life");
    hand.model.crash(Crash::PowerCut);
    assert_eq!(hand.sees(0, 0), Some(ViolationKind::UnexpectedZeroes), "and not after the next power cut");
    assert_eq!(hand.sees(0, first), None);
}

#[test]
fn unread_sectors_stay_open_over_several_crashes() {
    let mut hand = Hand::new();
    let first = hand.write(0..1);
    hand.model.crash(Crash::PowerCut);
    let second = hand.write(0..1);
    hand.model.crash(Crash::PowerCut);
    for version in [0, first, second] {
        let mut hand = Hand { model: hand.model.clone() };
        assert_eq!(hand.sees(0, version), None);
    }
    // A flush in the new life says nothing about which of the old versions recovery chose.
    hand.flush();
    hand.model.crash(Crash::PowerCut);
    assert_eq!(hand.sees(0, 0), None);
}

#[test]
fn a_read_before_the_power_cut_decides_the_order_of_overlapping_writes() {
    let mut hand = Hand::new();
    let first = hand.model.begin_write(0..1, false);
    let second = hand.model.begin_write(0..1, false);
    hand.model.end(first, true);
    hand.model.end(second, true);
    hand.flush();
    assert_eq!(hand.sees(0, second), None);
    hand.model.crash(Crash::PowerCut);
    assert_eq!(hand.sees(0, first), Some(ViolationKind::Stale));
    assert_eq!(hand.sees(0, second), None);
}

#[test]
fn a_kill_takes_nothing_that_was_acknowledged() {
    let mut hand = Hand::new();
    let first = hand.write(0..1);
    let in_flight = hand.model.begin_write(1..2, false);
    hand.model.crash(Crash::Kill);
    assert_eq!(hand.sees(0, 0), Some(ViolationKind::UnexpectedZeroes));
    assert_eq!((hand.sees(0, first), hand.sees(1, in_flight)), (None, None));
    hand.model.crash(Crash::PowerCut);
    assert_eq!((hand.sees(0, first), hand.sees(1, in_flight)), (None, None));
    assert_eq!(hand.sees(1, 0), Some(ViolationKind::UnexpectedZeroes), "it was seen after the kill");
}

#[test]
fn survivors_form_a_prefix() {
    let run = |seen: [usize; 3]| {
        let mut hand = Hand::new();
        let ops = [0, hand.write(0..1), hand.write(1..2), hand.write(0..1), hand.model.begin_write(2..3, false)];
        hand.model.crash(Crash::PowerCut);
        for (sector, version) in seen.into_iter().enumerate() {
            assert_eq!(hand.sees(sector as u64, ops[version]), None, "legal for a disk");
        }
        hand.prefix().is_empty()
    };
    let legal = [[0, 0, 0], [1, 0, 0], [1, 2, 0], [3, 2, 0], [3, 2, 4]];
    for first in [0, 1, 3] {
        for second in [0, 2] {
            for third in [0, 4] {
                let seen = [first, second, third];
                assert_eq!(run(seen), legal.contains(&seen), "{seen:?}");
            }
        }
    }
}

#[test]
fn a_block_survives_whole_and_a_long_write_need_not() {
    let run = |sectors: Range<u64>, seen: u64| {
        let mut hand = Hand::new();
        let op = hand.write(sectors.clone());
        hand.model.crash(Crash::PowerCut);
        for sector in sectors.clone() {
            assert_eq!(hand.sees(sector, if sector < seen { op } else { 0 }), None);
        }
        hand.prefix()
    };
    assert_eq!(run(0..8, 4)[0], ViolationKind::TornBlock);
    assert_eq!(run(0..8, 8), []);
    assert_eq!(run(0..16, 8), [], "the cut may fall between two blocks of a write");
    assert_eq!(run(0..16, 9)[0], ViolationKind::TornBlock);
}

/// What the reference log does wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Bug {
    None,
    AckFlushEarly,
    AckFuaEarly,
    StaleRead,
    Hole,
    NotSticky,
    LostOnKill,
    TornBlock,
    Misdirect,
}

/// A log in memory with overlapping operations: writes enter it somewhere between their start and their end.
struct Reference {
    model: Model,
    rng: SimRng,
    bug: Bug,
    log: Vec<(u64, Range<u64>, bool)>,
    durable: usize,
    running: Vec<Running>,
}

struct Running {
    op: u64,
    sectors: Range<u64>,
    kind: u8,
    /// Position in the log for writes, length of it for flushes.
    at: Option<usize>,
    data: Vec<u8>,
}

impl Reference {
    const SECTORS: u64 = 24;

    fn new(seed: u64, bug: Bug) -> Reference {
        let model = Model::new(Self::SECTORS, SALT, Initial::Zeroes);
        Reference { model, rng: SimRng::new(seed), bug, log: Vec::new(), durable: 0, running: Vec::new() }
    }

    fn content(&self, sectors: Range<u64>, upto: usize) -> Vec<u8> {
        let mut data = vec![0; (sectors.end - sectors.start) as usize * 512];
        for (sector, out) in sectors.zip(data.chunks_mut(512)) {
            let covers = |entry: &&(u64, Range<u64>, bool)| entry.1.contains(&sector);
            if let Some((op, _, zeroes)) = self.log[..upto].iter().rev().find(covers)
                && !zeroes
            {
                self.model.fill(*op, sector, out);
            }
        }
        data
    }

    fn start(&mut self) {
        let start = self.rng.below(Self::SECTORS);
        let sectors = start..self.rng.range(start + 1, Self::SECTORS.min(start + 12));
        let kind = self.rng.pick(&[0, 0, 0, 1, 2, 3, 4, 4, 4]);
        let (op, sectors) = match kind {
            0 => (self.model.begin_write(sectors.clone(), false), sectors),
            1 => (self.model.begin_write(sectors.clone(), true), sectors),
            2 => (self.model.begin_zeroes(sectors.clone(), false), sectors),
            3 => (self.model.begin_flush(), 0..0),
            _ => (self.model.begin_read(sectors.clone()), sectors),
        };
        // A flush covers what had completed; this log has order, so everything in it will do.
        let at = (kind == 3).then_some(self.log.len());
        self.running.push(Running { op, sectors, kind, at, data: Vec::new() });
    }

    /// One step of one operation; true if the oracle complains.
    fn step(&mut self) -> bool {
        let pick = self.rng.below(self.running.len() as u64) as usize;
        let (kind, sectors) = (self.running[pick].kind, self.running[pick].sectors.clone());
        if kind < 3 && self.running[pick].at.is_none() {
            self.running[pick].at = Some(self.log.len());
            self.log.push((self.running[pick].op, sectors, kind == 2));
            return false;
        }
        if kind == 4 && self.running[pick].data.is_empty() {
            let stale = usize::from(self.bug == Bug::StaleRead && self.rng.below(8) == 0);
            let shift = u64::from(self.bug == Bug::Misdirect && self.rng.below(20) == 0 && sectors.end < Self::SECTORS);
            let from = sectors.start + shift..sectors.end + shift;
            self.running[pick].data = self.content(from, self.log.len().saturating_sub(stale));
            return false;
        }
        let running = self.running.swap_remove(pick);
        match kind {
            1 if self.bug != Bug::AckFuaEarly => self.durable = self.durable.max(running.at.expect("in the log") + 1),
            3 if self.bug != Bug::AckFlushEarly => self.durable = self.durable.max(running.at.expect("set")),
            _ => {}
        }
        if kind == 4 {
            return !self.model.end_read(running.op, &running.data).is_empty();
        }
        self.model.end(running.op, true);
        false
    }

    /// Crashes and reads everything; true if the oracle complains.
    fn crash(&mut self) -> bool {
        let mut kill = self.rng.below(4) == 0;
        self.model.crash(if kill { Crash::Kill } else { Crash::PowerCut });
        if kill && self.rng.below(3) == 0 {
            // Again before anything was recovered.
            kill = self.rng.below(2) == 0;
            self.model.crash(if kill { Crash::Kill } else { Crash::PowerCut });
        }
        self.running.clear();
        let mut keep = if kill && self.bug != Bug::LostOnKill {
            self.log.len()
        } else {
            self.rng.range(self.durable as u64, self.log.len() as u64) as usize
        };
        if self.bug == Bug::Hole && keep > self.durable + 1 {
            self.log.remove(self.rng.range(self.durable as u64, keep as u64 - 2) as usize);
            keep -= 1;
        }
        if self.bug == Bug::TornBlock && keep < self.log.len() && self.log[keep].1.end - self.log[keep].1.start > 1 {
            self.log[keep].1.end -= 1;
            keep += 1;
        }
        self.log.truncate(keep);
        if self.bug != Bug::NotSticky {
            self.durable = keep;
        }
        let read = self.model.begin_read(0..Self::SECTORS);
        let data = self.content(0..Self::SECTORS, keep);
        !self.model.end_read(read, &data).is_empty() || !self.model.check_prefix().is_empty()
    }

    fn run(&mut self) -> bool {
        for _ in 0..self.rng.range(1, 4) {
            for _ in 0..self.rng.pick(&[3, 10, 40, 120]) {
                let wants_more = self.running.len() < 4 && self.rng.below(3) == 0;
                let wrong = if self.running.is_empty() || wants_more {
                    self.start();
                    false
                } else {
                    self.step()
                };
                if wrong {
                    return true;
                }
            }
            if self.crash() {
                return true;
            }
        }
        false
    }
}

#[test]
fn never_a_false_alarm() {
    for seed in 0..3000 {
        assert!(!Reference::new(seed, Bug::None).run(), "seed {seed}");
    }
}

#[test]
fn every_planted_violation_is_found() {
    let bugs = [
        (Bug::AckFlushEarly, 30),
        (Bug::AckFuaEarly, 30),
        (Bug::StaleRead, 10),
        (Bug::Hole, 60),
        (Bug::NotSticky, 60),
        (Bug::LostOnKill, 60),
        (Bug::TornBlock, 60),
        (Bug::Misdirect, 10),
    ];
    for (bug, seeds_max) in bugs {
        let found = (0..seeds_max).find(|seed| Reference::new(*seed, bug).run());
        assert!(found.is_some(), "{bug:?} was not found in {seeds_max} seeds");
    }
}
