//! The clock of a modelled device, and the commands that wait for its model.

use super::counts::Counts;
use std::collections::BTreeMap;
use wb_core::model::{Command, CostModel};

/// Model time against real time: real = model × dilation. It never goes back, also when the dilation is changed.
#[derive(Debug, Clone, Copy)]
struct Clock {
    dilation: f64,
    real_ns: u64,
    model_ns: u64,
}

impl Clock {
    fn model_at(&self, real_ns: u64) -> u64 {
        let elapsed = real_ns.saturating_sub(self.real_ns) as f64;
        self.model_ns + (elapsed / self.dilation) as u64
    }

    fn real_at(&self, model_ns: u64) -> u64 {
        let ahead = model_ns.saturating_sub(self.model_ns) as f64;
        // Rounded up, so that at that moment the model's time has come.
        self.real_ns + (ahead * self.dilation).ceil() as u64 + 1
    }
}

/// A command's way through the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    InDevice { since_ns: u64 },
    Done,
}

/// The model with its clock. All times that come in are real ones.
pub struct Timing {
    model: Box<dyn CostModel>,
    clock: Clock,
    /// False: nothing takes any time.
    slow: bool,
    next_tag: u64,
    commands: BTreeMap<u64, State>,
    in_device: usize,
    busy_since_ns: u64,
    end_of_last: u64,
    counts: Counts,
}

impl Timing {
    /// An idle device at real time `now_ns`.
    pub fn new(model: Box<dyn CostModel>, dilation: f64, now_ns: u64) -> Timing {
        let clock = Clock { dilation: 1.0, real_ns: now_ns, model_ns: 0 };
        let mut timing = Timing {
            model,
            clock,
            slow: true,
            next_tag: 0,
            commands: BTreeMap::new(),
            in_device: 0,
            busy_since_ns: 0,
            end_of_last: 0,
            counts: Counts::default(),
        };
        timing.dilate(dilation, now_ns);
        timing
    }

    /// Changes the dilation from now on; 0: commands that come now take no time.
    pub fn dilate(&mut self, dilation: f64, now_ns: u64) {
        self.poll(now_ns);
        self.slow = dilation > 0.0;
        let model_ns = self.clock.model_at(now_ns);
        self.clock = Clock { dilation: if self.slow { dilation } else { 1.0 }, real_ns: now_ns, model_ns };
    }

    /// A command arrives; its tag, and whether others were found done.
    pub fn submit(&mut self, command: Command, now_ns: u64) -> (u64, bool) {
        self.count(command);
        let any = self.poll(now_ns);
        self.next_tag += 1;
        let tag = self.next_tag;
        if !self.slow {
            self.commands.insert(tag, State::Done);
            return (tag, any);
        }
        let model_ns = self.clock.model_at(now_ns);
        if self.in_device == 0 {
            self.busy_since_ns = model_ns;
        }
        self.in_device += 1;
        self.commands.insert(tag, State::InDevice { since_ns: model_ns });
        self.model.submit(model_ns, tag, command);
        (tag, any)
    }

    fn count(&mut self, command: Command) {
        let counts = &mut self.counts;
        let mut extent = None;
        match command {
            Command::Read { offset, len } => {
                (counts.reads, counts.read_bytes) = (counts.reads + 1, counts.read_bytes + len);
                extent = Some((offset, len));
            }
            Command::Write { offset, len, fua } => {
                (counts.writes, counts.write_bytes) = (counts.writes + 1, counts.write_bytes + len);
                counts.fua_writes += u64::from(fua);
                extent = Some((offset, len));
            }
            Command::Flush => counts.flushes += 1,
            Command::Discard => counts.discards += 1,
        }
        if let Some((offset, len)) = extent {
            counts.jumps += u64::from(offset != self.end_of_last);
            self.end_of_last = offset + len;
        }
    }

    /// Lets the device go on. True if a command was done.
    pub fn poll(&mut self, now_ns: u64) -> bool {
        let done = self.model.poll(self.clock.model_at(now_ns));
        for completion in &done {
            if let Some(state) = self.commands.get_mut(&completion.tag)
                && let State::InDevice { since_ns } = *state
            {
                *state = State::Done;
                self.in_device -= 1;
                self.counts.command_s += seconds(completion.at_ns.saturating_sub(since_ns));
                if self.in_device == 0 {
                    self.counts.busy_s += seconds(completion.at_ns.saturating_sub(self.busy_since_ns));
                }
            }
        }
        !done.is_empty()
    }

    /// When something will happen next, in real time.
    pub fn next_ns(&self) -> Option<u64> {
        self.model.next_ns().map(|model_ns| self.clock.real_at(model_ns))
    }

    /// True once for a command that is done.
    pub fn take_done(&mut self, tag: u64) -> bool {
        let done = self.commands.get(&tag) == Some(&State::Done);
        if done {
            self.commands.remove(&tag);
        }
        done
    }

    /// Everything in the device is done now: the server ends, and nobody is to wait for it.
    pub fn release(&mut self) {
        self.slow = false;
        self.commands.values_mut().for_each(|state| *state = State::Done);
        self.in_device = 0;
    }

    /// Forgets a command that nobody waits for any more; the device goes on with it.
    pub fn forget(&mut self, tag: u64) {
        if let Some(State::InDevice { .. }) = self.commands.remove(&tag) {
            self.in_device -= 1;
        }
    }

    /// Counters, and the present state of the cache.
    pub fn counts(&self) -> Counts {
        Counts { volatile_bytes: self.model.volatile_bytes(), ..self.counts }
    }
}

fn seconds(ns: u64) -> f64 {
    ns as f64 / 1e9
}

#[cfg(test)]
mod tests {
    use super::*;
    use wb_core::model::{DeviceParams, build, params};

    fn ssd(dilation: f64) -> Timing {
        Timing::new(build(&DeviceParams::Ssd(params::sata_ssd()), 1 << 30), dilation, 1_000)
    }

    fn write() -> Command {
        Command::Write { offset: 4096, len: 4096, fua: false }
    }

    #[test]
    fn a_dilated_device_takes_so_many_times_as_long() {
        let took = |dilation: f64| {
            let mut timing = ssd(dilation);
            let (tag, _) = timing.submit(write(), 5_000);
            let at_ns = timing.next_ns().expect("something happens");
            assert!(!timing.take_done(tag));
            assert!(timing.poll(at_ns) && timing.take_done(tag) && !timing.take_done(tag));
            at_ns - 5_000
        };
        let (one, forty) = (took(1.0), took(40.0));
        assert!((forty as f64 / one as f64 - 40.0).abs() < 0.1, "{one} ns and {forty} ns");
    }

    #[test]
    fn a_change_of_the_dilation_keeps_what_is_in_the_device() {
        let mut timing = ssd(1000.0);
        let (slow, _) = timing.submit(write(), 5_000);
        timing.dilate(0.0, 6_000);
        let (quick, _) = timing.submit(write(), 6_000);
        assert!(timing.take_done(quick), "nothing takes any time now");
        assert!(!timing.take_done(slow), "but what had begun goes on");
        let at_ns = timing.next_ns().expect("something happens");
        assert!(at_ns > 6_000);
        timing.poll(at_ns);
        assert!(timing.take_done(slow));
        let counts = timing.counts();
        assert_eq!((counts.writes, counts.write_bytes, counts.jumps), (2, 8192, 2));
    }

    #[test]
    fn sequential_commands_do_not_jump_and_a_busy_device_is_counted_once() {
        let mut timing = ssd(1.0);
        for at in 0..4u64 {
            timing.submit(Command::Read { offset: at * 4096, len: 4096 }, 1_000);
        }
        while let Some(at_ns) = timing.next_ns() {
            timing.poll(at_ns);
        }
        let counts = timing.counts();
        assert_eq!((counts.reads, counts.jumps), (4, 0));
        assert!(counts.command_s >= counts.busy_s && counts.busy_s > 0.0, "{counts:?}");
    }
}
