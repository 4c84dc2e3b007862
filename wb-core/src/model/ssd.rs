//! Flash. Commands run side by side up to a number, share the rate, and never wait for an arm.

use super::params::SsdParams;
use super::{Activity, Command, Completion, CostModel};
use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// Units that work side by side, and the rate that they share.
struct Lane {
    free_ns: Vec<u64>,
    rate_free_ns: u64,
    unit_ns: u64,
    command_ns: u64,
    bytes_per_s: u64,
}

impl Lane {
    fn new(units: usize, unit_ns: u64, command_ns: u64, bytes_per_s: u64) -> Lane {
        Lane { free_ns: vec![0; units.max(1)], rate_free_ns: 0, unit_ns, command_ns, bytes_per_s }
    }
    /// When a command that arrives now is done.
    fn serve(&mut self, now_ns: u64, bytes: u64) -> u64 {
        let transfer_ns = bytes * 1_000_000_000 / self.bytes_per_s;
        self.rate_free_ns = self.rate_free_ns.max(now_ns) + transfer_ns.max(self.command_ns);
        let unit = self.free_ns.iter_mut().min().expect("at least one unit");
        *unit = (*unit).max(now_ns) + self.unit_ns;
        (*unit).max(self.rate_free_ns)
    }
}

/// See the head of this file.
pub struct SsdModel {
    params: SsdParams,
    reads: Lane,
    writes: Lane,
    last_write_ns: u64,
    /// Volatile at `as_of_ns`.
    volatile: u64,
    as_of_ns: u64,
    due: BinaryHeap<Reverse<(u64, u64)>>,
    activity: Activity,
}

impl SsdModel {
    /// An idle device.
    pub fn new(params: SsdParams) -> SsdModel {
        // The time of a command alone contains the transfer of its 4 KiB, which may overlap with others'.
        let SsdParams { read_ns, read_command_ns, write_ns, write_command_ns, .. } = params;
        let reads = Lane::new(params.read_parallel, read_ns, read_command_ns, params.read_bytes_per_s);
        let writes = Lane::new(params.write_parallel, write_ns, write_command_ns, params.write_bytes_per_s);
        SsdModel {
            reads,
            writes,
            last_write_ns: 0,
            volatile: 0,
            as_of_ns: 0,
            due: BinaryHeap::new(),
            activity: Activity::default(),
            params,
        }
    }

    fn drain_cache(&mut self, now_ns: u64) {
        let elapsed = u128::from(now_ns.saturating_sub(self.as_of_ns));
        let drained = elapsed * u128::from(self.params.destage_bytes_per_s) / 1_000_000_000;
        self.volatile = self.volatile.saturating_sub(drained as u64);
        self.as_of_ns = self.as_of_ns.max(now_ns);
    }
}

impl CostModel for SsdModel {
    fn submit(&mut self, now_ns: u64, tag: u64, command: Command) {
        self.drain_cache(now_ns);
        let flushed_ns = |volatile: u64| volatile * 1_000_000_000 / self.params.destage_bytes_per_s;
        let at_ns = match command {
            Command::Read { len, .. } => {
                self.activity.reads += 1;
                self.reads.serve(now_ns, len)
            }
            Command::Write { len, fua, .. } => {
                self.activity.writes += 1;
                self.activity.write_bytes += len;
                let at_ns = self.writes.serve(now_ns, len);
                self.last_write_ns = self.last_write_ns.max(at_ns);
                if self.params.cache_bytes == 0 {
                    at_ns
                } else if fua {
                    at_ns + self.params.flush_ns
                } else {
                    self.volatile = (self.volatile + len).min(self.params.cache_bytes);
                    at_ns
                }
            }
            Command::Flush => {
                self.activity.flushes += 1;
                let at_ns = now_ns.max(self.last_write_ns) + self.params.flush_ns + flushed_ns(self.volatile);
                self.volatile = 0;
                at_ns
            }
            Command::Discard => now_ns + self.params.write_ns,
        };
        self.due.push(Reverse((at_ns, tag)));
    }

    fn next_ns(&self) -> Option<u64> {
        self.due.peek().map(|due| due.0.0)
    }

    fn poll(&mut self, now_ns: u64) -> Vec<Completion> {
        let mut out = Vec::new();
        while let Some(Reverse((at_ns, tag))) = self.due.peek().copied().filter(|due| due.0.0 <= now_ns) {
            self.due.pop();
            out.push(Completion { tag, at_ns });
        }
        out
    }

    fn volatile_bytes(&self) -> u64 {
        self.volatile
    }

    fn activity(&self) -> Activity {
        self.activity
    }
}
