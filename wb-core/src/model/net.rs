//! A network volume: a latency, and limits of commands and bytes per second. What is acknowledged is stable.

use super::params::NetParams;
use super::{Activity, Command, Completion, CostModel};
use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};

/// See the head of this file.
pub struct NetModel {
    params: NetParams,
    commands_free_ns: u64,
    bytes_free_ns: u64,
    in_device: usize,
    waiting: VecDeque<(u64, Command)>,
    due: BinaryHeap<Reverse<(u64, u64)>>,
    out: Vec<Completion>,
    activity: Activity,
}

impl NetModel {
    /// An idle volume.
    pub fn new(params: NetParams) -> NetModel {
        NetModel {
            params,
            commands_free_ns: 0,
            bytes_free_ns: 0,
            in_device: 0,
            waiting: VecDeque::new(),
            due: BinaryHeap::new(),
            out: Vec::new(),
            activity: Activity::default(),
        }
    }

    fn admit(&mut self, now_ns: u64) {
        while self.in_device < self.params.queue_depth
            && let Some((tag, command)) = self.waiting.pop_front()
        {
            self.in_device += 1;
            let bytes = match command {
                Command::Read { len, .. } | Command::Write { len, .. } => len,
                Command::Flush | Command::Discard => 0,
            };
            let commands = bytes.div_ceil(self.params.command_bytes_max).max(1);
            self.commands_free_ns =
                self.commands_free_ns.max(now_ns) + commands * 1_000_000_000 / self.params.commands_per_s;
            self.bytes_free_ns = self.bytes_free_ns.max(now_ns) + bytes * 1_000_000_000 / self.params.bytes_per_s;
            let at_ns = (now_ns + self.params.latency_ns).max(self.commands_free_ns).max(self.bytes_free_ns);
            self.due.push(Reverse((at_ns, tag)));
        }
    }

    fn advance(&mut self, now_ns: u64) {
        while let Some(Reverse((at_ns, tag))) = self.due.peek().copied().filter(|due| due.0.0 <= now_ns) {
            self.due.pop();
            self.in_device -= 1;
            self.out.push(Completion { tag, at_ns });
            self.admit(at_ns);
        }
    }
}

impl CostModel for NetModel {
    fn submit(&mut self, now_ns: u64, tag: u64, command: Command) {
        self.advance(now_ns);
        match command {
            Command::Read { .. } => self.activity.reads += 1,
            Command::Write { len, .. } => {
                self.activity.writes += 1;
                self.activity.write_bytes += len;
            }
            Command::Flush => self.activity.flushes += 1,
            Command::Discard => {}
        }
        self.waiting.push_back((tag, command));
        self.admit(now_ns);
    }

    fn next_ns(&self) -> Option<u64> {
        self.due.peek().map(|due| due.0.0)
    }

    fn poll(&mut self, now_ns: u64) -> Vec<Completion> {
        self.advance(now_ns);
        std::mem::take(&mut self.out)
    }

    fn volatile_bytes(&self) -> u64 {
        0
    }

    fn activity(&self) -> Activity {
        self.activity
    }
}
