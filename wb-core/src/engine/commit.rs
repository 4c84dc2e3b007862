//! Group commit: making records durable, many flushes with one device FLUSH.
//!
//! Invariants: at most one round runs. A round closes the open record if somebody wants it durable, waits until everything
//! wanted is written, flushes the device once and only then raises D to what had been written before that flush was
//! submitted. FUA replaces the flush only when everything before the record is durable already, for FUA says nothing about
//! earlier writes. A flush counts only if none that ran beside it failed: of a device that drops what a failed flush should
//! have made durable, a later one says nothing [FLUSH of an anchor fails and drops a record; that of the round succeeds, and
//! the user is told that the record is durable]. Record buffers are kept until D has passed them: when they run short, a
//! round is wanted for what is written, whether or not a user asks.

use super::Inner;
use super::counters::count;
use super::replay::{WRITE_RETRY_DELAY_NS, WRITE_TRIES, is_of_the_place};
use crate::env::{Env, PlantedBug};
use crate::format::Geometry;
use crate::io::{Buf, Disk, IoError, Slice};
use crate::log::head::Submit;
use crate::log::record::Record;
use crate::service::ServiceError;
use crate::sync::WaitQueue;
use crate::types::*;
use std::sync::{Arc, Mutex};

#[derive(Default)]
struct Round {
    running: bool,
    wanted: Seq,
}

pub(super) struct CommitState {
    round: Mutex<Round>,
    /// Notified when a record was written, D rose, or the cache device failed.
    pub event: WaitQueue,
    anchor_timer: Mutex<AnchorTimer>,
}

#[derive(Default)]
struct AnchorTimer {
    running: bool,
    last_commit_ns: u64,
}

impl CommitState {
    pub fn new() -> CommitState {
        CommitState { round: Mutex::default(), event: WaitQueue::new(), anchor_timer: Mutex::default() }
    }
}

/// Blocks between the last record of a segment and its summary that are written with zeroes, so that both go out as one
/// write.
const GAP_BLOCKS_MAX: u64 = 16;

/// What goes out as one device write: neighbours on the device.
struct Group {
    offset: u64,
    /// Byte behind it.
    end: u64,
    data: Vec<Slice>,
    records: Vec<Arc<Record>>,
    fua: bool,
    summary: Option<SegmentNo>,
}

impl Group {
    fn new(submit: Submit, geometry: &Geometry) -> Group {
        let offset = start_of(&submit, geometry);
        let fua = matches!(submit, Submit::Record { fua: true, .. });
        let mut group = Group { offset, end: offset, data: Vec::new(), records: Vec::new(), fua, summary: None };
        group.add(submit, geometry);
        group
    }

    /// True if `submit` may go out in the same write. What is written through goes alone: it has to be short.
    fn takes(&self, submit: &Submit, geometry: &Geometry) -> bool {
        let start = start_of(submit, geometry);
        let alone = self.fua || self.summary.is_some();
        match submit {
            Submit::Record { fua, .. } => !alone && !fua && start == self.end,
            Submit::Summary { .. } => {
                !alone && (self.end..=self.end + GAP_BLOCKS_MAX * BLOCK_BYTES_U64).contains(&start)
            }
        }
    }

    fn add(&mut self, submit: Submit, geometry: &Geometry) {
        let start = start_of(&submit, geometry);
        if start > self.end {
            self.data.push(Buf::unpooled((start - self.end) as usize).freeze());
        }
        let bytes = match submit {
            Submit::Record { record, payload_blocks, .. } => {
                let bytes = record.bytes(payload_blocks);
                self.records.push(record);
                bytes
            }
            Submit::Summary { segment, bytes } => {
                self.summary = Some(segment);
                bytes.freeze()
            }
        };
        self.end = start + bytes.len() as u64;
        self.data.push(bytes);
    }
}

/// Where a write begins on the device.
fn start_of(submit: &Submit, geometry: &Geometry) -> u64 {
    match submit {
        Submit::Record { record, .. } => geometry.block_offset(record.segment, record.offset_blocks).0,
        Submit::Summary { segment, .. } => geometry.summary_offset(*segment).0,
    }
}

impl<E: Env> Inner<E> {
    /// Makes everything up to `target` durable.
    pub(super) async fn commit_to(self: &Arc<Self>, target: Seq) -> Result<(), ServiceError> {
        self.env.yield_point().await;
        if self.head.durable().0 >= target {
            return Ok(());
        }
        if self.is_failed() {
            return Err(ServiceError::Io);
        }
        self.want_round(target);
        if self.config.has_bug(PlantedBug::AckFlushEarly) {
            return Ok(());
        }
        self.commit
            .event
            .wait_until(|| {
                if self.head.durable().0 >= target {
                    return Some(Ok(()));
                }
                self.is_failed().then_some(Err(ServiceError::Io))
            })
            .await
    }

    fn want_round(self: &Arc<Self>, target: Seq) {
        let start = {
            let mut round = self.commit.round.lock().expect("not poisoned");
            round.wanted = round.wanted.max(target);
            !std::mem::replace(&mut round.running, true)
        };
        if start {
            let this = self.clone();
            self.env.spawn(async move { this.run_rounds().await });
        }
    }

    async fn run_rounds(self: Arc<Self>) {
        loop {
            if self.run_round().await.is_err() {
                self.commit.round.lock().expect("not poisoned").running = false;
                return;
            }
            self.commit.event.notify_all();
            self.space.notify_all(); // what became durable gave its buffers back
            let durable = self.head.durable().0;
            {
                let mut round = self.commit.round.lock().expect("not poisoned");
                if round.wanted <= durable {
                    round.running = false;
                    break;
                }
            }
            // Those that this round woke get to write again before the next record is closed: they share it.
            self.env.yield_now().await;
        }
        self.arm_anchor_timer();
    }

    async fn run_round(self: &Arc<Self>) -> Result<(), ()> {
        let upto = self.commit.round.lock().expect("not poisoned").wanted;
        let submit = self.head.close_for_flush(upto, self.cache.geometry().fua);
        self.submit(submit);
        let outcome = self
            .commit
            .event
            .wait_until(|| {
                if self.head.written().0 >= upto {
                    return Some(Ok(()));
                }
                self.is_failed().then_some(Err(()))
            })
            .await;
        outcome?;
        self.env.yield_point().await;
        if self.head.durable().0 >= upto {
            return Ok(()); // written through
        }
        if self.is_failed() {
            return Err(());
        }
        let written = self.head.written();
        count(&self.counters.cache_flushes, 1);
        match self.cache.flush().await {
            Ok(()) => {
                // That of an anchor beside it may have failed, and taken with it what this one found nothing left of.
                self.anchors.settled().await;
                if self.is_failed() {
                    return Err(());
                }
                self.head.flushed(written);
                Ok(())
            }
            Err(error) => {
                self.fail(format!("FLUSH failed: {error}"));
                Err(())
            }
        }
    }

    /// Submits what the head wants written.
    #[inline]
    pub(super) fn submit(self: &Arc<Self>, submits: Vec<Submit>) {
        if !submits.is_empty() {
            self.submit_all(submits);
        }
    }

    fn submit_all(self: &Arc<Self>, submits: Vec<Submit>) {
        let mut group: Option<Group> = None;
        for submit in submits {
            if let Some(open) = &mut group
                && open.takes(&submit, &self.geometry)
            {
                open.add(submit, &self.geometry);
            } else if let Some(done) = group.replace(Group::new(submit, &self.geometry)) {
                self.start_write(done);
            }
        }
        group.into_iter().for_each(|group| self.start_write(group));
    }

    fn start_write(self: &Arc<Self>, group: Group) {
        let this = self.clone();
        self.env.spawn(async move { this.write_out(group).await });
    }

    async fn write_out(self: &Arc<Self>, group: Group) {
        let Group { offset, data, records, fua, summary, end: _ } = group;
        count(&self.counters.cache_writes, 1);
        count(&self.counters.cache_write_bytes, data.iter().map(|piece| piece.len() as u64).sum());
        let result = self.write_patiently(offset, data, fua).await;
        if let (Err(error), Some(record)) = (&result, records.first()) {
            return self.fail(format!("writing record {} at offset {offset} failed: {error}", record.seq));
        }
        for record in records {
            let wanted = self.head.record_written(record.seq, fua);
            drop(record);
            if let Some(wanted) = wanted {
                self.want_round(wanted);
            }
        }
        if let Some(segment) = summary {
            // Headers say the same; a summary only saves reading them.
            if let Err(error) = result {
                tracing::warn!("writing the summary of segment {segment} failed: {error}");
            }
            self.head.summary_done(segment);
            self.writeback.event.notify_all();
        }
        self.commit.event.notify_all();
        self.space.notify_all();
    }

    /// The same bytes to the same place, several times if that may help: they stay as they are until D has passed them.
    async fn write_patiently(&self, offset: u64, data: Vec<Slice>, fua: bool) -> Result<(), IoError> {
        let mut attempt = 0;
        loop {
            match self.cache.write(offset, data.clone(), fua).await {
                Err(error) if is_of_the_place(error) && attempt + 1 < WRITE_TRIES && !self.is_failed() => {
                    self.env.sleep(WRITE_RETRY_DELAY_NS << attempt).await;
                    attempt += 1;
                }
                outcome => return outcome,
            }
        }
    }

    /// If no record follows a group commit soon, an anchor tells the device how much is durable: damage to it can then be
    /// told from a torn tail. Nobody waits for it.
    fn arm_anchor_timer(self: &Arc<Self>) {
        let now_ns = self.env.now_ns();
        let start = {
            let mut timer = self.commit.anchor_timer.lock().expect("not poisoned");
            timer.last_commit_ns = now_ns;
            !std::mem::replace(&mut timer.running, true)
        };
        if start {
            let this = self.clone();
            self.env.spawn(async move { this.anchor_when_quiet().await });
        }
    }

    async fn anchor_when_quiet(self: Arc<Self>) {
        loop {
            let due_ns = {
                let timer = self.commit.anchor_timer.lock().expect("not poisoned");
                timer.last_commit_ns + self.config.anchor_delay_ns
            };
            let now_ns = self.env.now_ns();
            if now_ns < due_ns {
                self.env.sleep(due_ns - now_ns).await;
                continue;
            }
            if self.head.told_durable() < self.head.durable().0 && !self.is_failed() {
                self.anchor_durable().await;
            }
            let mut timer = self.commit.anchor_timer.lock().expect("not poisoned");
            if timer.last_commit_ns + self.config.anchor_delay_ns <= self.env.now_ns() {
                timer.running = false;
                return;
            }
        }
    }
}
