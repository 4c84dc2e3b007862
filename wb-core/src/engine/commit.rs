//! Group commit: making records durable, many flushes with one device FLUSH.
//!
//! Invariants: at most one round runs. A round closes the open record if somebody wants it durable, waits until everything
//! wanted is written, flushes the device once and only then raises D to what had been written before that flush was
//! submitted. FUA replaces the flush only when everything before the record is durable already, for FUA says nothing about
//! earlier writes. Record buffers are kept until D has passed them: when they run short, a round is wanted for what is
//! written, whether or not a user asks.

use super::Inner;
use super::counters::count;
use crate::env::{Env, PlantedBug};
use crate::io::Disk;
use crate::log::head::Submit;
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
        let written = self.head.written();
        count(&self.counters.cache_flushes, 1);
        match self.cache.flush().await {
            Ok(()) => {
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
        for submit in submits {
            let this = self.clone();
            self.env.spawn(async move { this.write_out(submit).await });
        }
    }

    async fn write_out(self: &Arc<Self>, submit: Submit) {
        match submit {
            Submit::Record { record, payload_blocks, fua } => {
                let offset = self.geometry.block_offset(record.segment, record.offset_blocks);
                let bytes = record.bytes(payload_blocks);
                count(&self.counters.cache_writes, 1);
                count(&self.counters.cache_write_bytes, bytes.len() as u64);
                let result = self.cache.write(offset.0, vec![bytes], fua).await;
                if let Err(error) = result {
                    return self.fail(format!("writing record {} at offset {offset} failed: {error}", record.seq));
                }
                let wanted = self.head.record_written(record.seq, fua);
                drop(record);
                if let Some(wanted) = wanted {
                    self.want_round(wanted);
                }
                self.commit.event.notify_all();
                self.space.notify_all();
            }
            Submit::Summary { segment, bytes } => {
                count(&self.counters.cache_writes, 1);
                count(&self.counters.cache_write_bytes, bytes.len() as u64);
                let offset = self.geometry.summary_offset(segment);
                // Headers say the same; a summary only saves reading them.
                if let Err(error) = self.cache.write(offset.0, vec![bytes.freeze()], false).await {
                    tracing::warn!("writing the summary of segment {segment} failed: {error}");
                }
                self.head.summary_done(segment);
                self.writeback.event.notify_all();
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
