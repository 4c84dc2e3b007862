//! The real daemon under SIGKILL, watched by the oracle of the simulator over NBD.
//!
//! The oracle knows for every sector of 512 bytes which versions it may hold. Each round writes, zeroes, trims, reads and
//! flushes at random (overlapping, 512 bytes to 1 MiB, some with FUA) until the daemon is killed in the middle of it; then
//! `wb-check` must call the cache clean, and the restarted daemon's whole volume must be one that the oracle allows:
//! nothing acknowledged lost, flushed or not, nothing older brought back. At the end the backing file itself, drained, must
//! hold the same.
//!
//! `WB_KILLS` kills in all (default 200), `WB_KILL_SEED` the seed of the requests. When a kill hits is up to the clock, so
//! a seed repeats the requests and not the failure.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::collections::BTreeMap;
use std::os::unix::fs::FileExt;
use std::thread;
use std::time::Duration;
use wb_core::sim::{Crash, Initial, Model, SimRng, Violation};
use wb_tests::daemon::{Daemon, Place};
use wb_tests::nbd_client::{Command, NbdClient, flag};

/// Small, so that the ring wraps every few rounds and write-back runs under the kills.
const CACHE_BYTES: u64 = 16 << 20;
const SEGMENT_BYTES: u64 = 256 << 10;
const VOLUME_BYTES: u64 = 24 << 20;
/// Half of all requests meet here.
const HOT_BYTES: u64 = 2 << 20;

const SECTOR: u64 = 512;
const REQUEST_SECTORS_MAX: u64 = (1 << 20) / SECTOR;
const READ_BYTES: usize = 1 << 20;

fn number(name: &str, default: u64) -> u64 {
    let Ok(text) = std::env::var(name) else { return default };
    text.parse().unwrap_or_else(|_| panic!("{name}={text:?} is no number"))
}

/// A connection and what it waits for.
struct Client {
    nbd: NbdClient,
    /// Cookie -> number of the operation in the model.
    in_flight: BTreeMap<u64, u64>,
}

struct Test {
    place: Place,
    model: Model,
    rng: SimRng,
    depth: usize,
    /// What has happened, for messages and for the proof that something has.
    rounds: u64,
    requests: u64,
    flushes: u64,
}

/// Why a round of requests ended.
struct Killed;

impl Test {
    fn new(depth: usize) -> Test {
        let seed = number("WB_KILL_SEED", u64::from(std::process::id())) ^ (depth as u64) << 32;
        println!("WB_KILL_SEED={}", seed & 0xffff_ffff);
        let place = Place::new(CACHE_BYTES, SEGMENT_BYTES, VOLUME_BYTES);
        let model = Model::new(VOLUME_BYTES / SECTOR, seed, Initial::Stamps);
        let mut content = vec![0; VOLUME_BYTES as usize];
        model.fill_initial(0, &mut content);
        std::fs::write(&place.backing, content).expect("written");
        Test { place, model, rng: SimRng::new(seed), depth, rounds: 0, requests: 0, flushes: 0 }
    }

    #[track_caller]
    fn judge(&self, what: &str, violations: Vec<Violation>) {
        if !violations.is_empty() {
            let list: Vec<String> = violations.iter().map(Violation::to_string).collect();
            panic!("after kill {}, {what}:\n{}", self.rounds, list.join("\n"));
        }
    }

    /// Reads the whole volume after a restart.
    fn survey(&mut self, daemon: &Daemon) {
        let mut nbd = daemon.connect();
        for offset in (0..VOLUME_BYTES).step_by(READ_BYTES) {
            let op = self.model.begin_read(offset / SECTOR..(offset + READ_BYTES as u64) / SECTOR);
            let data = nbd.read(offset, READ_BYTES as u32).expect("the volume can be read");
            let wrong = self.model.end_read(op, &data);
            self.judge("the volume has", wrong);
        }
        let wrong = self.model.check_prefix();
        self.judge("the survivors are no prefix", wrong);
        nbd.disconnect().expect("a goodbye");
    }

    /// Sends a random request. The model hears of it first.
    fn send(&mut self, client: &mut Client) -> Result<(), Killed> {
        let rng = &mut self.rng;
        // Lengths of all magnitudes; half of the requests aligned to blocks, half of them in the same place.
        let len_max = 1 << rng.range(0, REQUEST_SECTORS_MAX.ilog2().into());
        let unit = rng.pick(&[1, 8]);
        let len = rng.range(1, len_max).next_multiple_of(unit).min(REQUEST_SECTORS_MAX);
        let area = rng.pick(&[HOT_BYTES, VOLUME_BYTES]) / SECTOR;
        let first = rng.below(area - len + 1) / unit * unit;
        let sectors = first..first + len;
        let (offset, bytes) = (first * SECTOR, (len * SECTOR) as u32);
        let fua = rng.chance_ppm(100_000);
        let flags = if fua { flag::FUA } else { 0 };
        let model = &mut self.model;
        let (op, sent) = match rng.below(100) {
            0..55 => {
                let op = model.begin_write(sectors, fua);
                let mut data = vec![0; bytes as usize];
                model.fill(op, first, &mut data);
                (op, client.nbd.send(Command::Write, flags, offset, bytes, &data))
            }
            55..64 => {
                let op = model.begin_zeroes(sectors, fua);
                (op, client.nbd.send(Command::WriteZeroes, flags | rng.pick(&[0, flag::NO_HOLE]), offset, bytes, &[]))
            }
            64..72 => (model.begin_discard(sectors), client.nbd.send(Command::Trim, 0, offset, bytes, &[])),
            72..90 => (model.begin_read(sectors), client.nbd.send(Command::Read, 0, offset, bytes, &[])),
            _ => {
                self.flushes += 1;
                (model.begin_flush(), client.nbd.send(Command::Flush, 0, 0, 0, &[]))
            }
        };
        self.requests += 1;
        let cookie = sent.map_err(|_| Killed)?;
        client.in_flight.insert(cookie, op);
        Ok(())
    }

    /// Takes one reply.
    fn receive(&mut self, client: &mut Client) -> Result<(), Killed> {
        let reply = client.nbd.recv().map_err(|_| Killed)?;
        let op = client.in_flight.remove(&reply.cookie).expect("a reply to a request of ours");
        match reply.result {
            Err(error) => panic!("after kill {} a request got error {error}", self.rounds),
            Ok(data) if data.is_empty() => self.model.end(op, true),
            Ok(data) => {
                let wrong = self.model.end_read(op, &data);
                self.judge("a read while others write gives", wrong);
            }
        }
        Ok(())
    }

    /// Requests until the daemon is gone: `depth` in flight, over two connections if that is more than one.
    fn load(&mut self, clients: &mut [Client]) -> Killed {
        loop {
            let waiting: usize = clients.iter().map(|client| client.in_flight.len()).sum();
            let result = if waiting < self.depth {
                let at = self.rng.below(clients.len() as u64) as usize;
                self.send(&mut clients[at])
            } else {
                let busiest = clients.iter_mut().max_by_key(|client| client.in_flight.len());
                self.receive(busiest.expect("at least one connection"))
            };
            if let Err(killed) = result {
                return killed;
            }
        }
    }

    /// A round: start, look, requests, kill, check.
    fn round(&mut self) {
        let daemon = self.place.start();
        self.survey(&daemon);
        if self.rng.chance_ppm(125_000) {
            let ran = daemon.control(&["drain", "--no-wait"]);
            assert_eq!(ran.code, 0, "drain: {}", ran.stderr);
        }
        let connect = || Client { nbd: daemon.connect(), in_flight: BTreeMap::new() };
        let mut clients: Vec<Client> = (0..self.depth.min(2)).map(|_| connect()).collect();
        let (pid, delay_ms) = (daemon.pid(), self.rng.pick(&[2, 10, 30, 100, 200]));
        let delay = Duration::from_micros(self.rng.below(delay_ms * 1000));
        let killer = thread::spawn(move || {
            thread::sleep(delay);
            // Not reaped before this thread is joined, so the number is still its own.
            kill(Pid::from_raw(pid.cast_signed()), Signal::SIGKILL).expect("our own child");
        });
        let Killed = self.load(&mut clients);
        killer.join().expect("the killer does not panic");
        daemon.kill();
        self.rounds += 1;
        // The machine lives: the RAM tail has what was acknowledged and not flushed.
        self.model.crash(Crash::Kill);
        self.place.assert_clean();
    }

    /// A kill before the daemon is ready, most of the time while it recovers.
    fn kill_at_start(&mut self) {
        let daemon = self.place.spawn();
        thread::sleep(Duration::from_millis(self.rng.below(400)));
        daemon.kill();
        self.rounds += 1;
        self.place.assert_clean();
    }

    /// What was written back at the end, with the daemon out of the way.
    fn compare_backing(&mut self) {
        let daemon = self.place.start();
        self.survey(&daemon);
        daemon.drain();
        daemon.stop();
        self.place.assert_clean();
        let file = std::fs::File::open(&self.place.backing).expect("the backing file");
        let mut data = vec![0; READ_BYTES];
        for offset in (0..VOLUME_BYTES).step_by(READ_BYTES) {
            let op = self.model.begin_read(offset / SECTOR..(offset + READ_BYTES as u64) / SECTOR);
            file.read_exact_at(&mut data, offset).expect("read");
            let wrong = self.model.end_read(op, &data);
            self.judge("the drained backing file has", wrong);
        }
    }

    fn run(mut self, kills: u64) {
        while self.rounds < kills {
            if self.rng.chance_ppm(125_000) {
                self.kill_at_start();
            } else {
                self.round();
            }
        }
        self.compare_backing();
        println!("{} kills, {} requests, {} flushes", self.rounds, self.requests, self.flushes);
        assert!(self.requests > 10 * kills && self.flushes > kills / 2, "enough was asked of it to prove something");
    }
}

#[test]
fn killed_at_depth_1() {
    Test::new(1).run(number("WB_KILLS", 200) * 2 / 5);
}

#[test]
fn killed_at_depth_16() {
    let kills = number("WB_KILLS", 200);
    Test::new(16).run(kills - kills * 2 / 5);
}

/// The rig itself: a cache that forgets what was flushed, here because an older copy of it is put back, must not pass.
#[test]
#[should_panic(expected = "the volume has")]
fn a_cache_that_forgets_a_flush_is_seen() {
    let mut test = Test::new(1);
    let mut old = Vec::new();
    for _ in 0..2 {
        old = std::fs::read(&test.place.cache).expect("read");
        let daemon = test.place.start();
        test.survey(&daemon);
        let mut nbd = daemon.connect();
        let op = test.model.begin_write(8..16, false);
        let mut data = vec![0; 4096];
        test.model.fill(op, 8, &mut data);
        nbd.write(8 * SECTOR, &data, 0).expect("written");
        test.model.end(op, true);
        let op = test.model.begin_flush();
        nbd.flush().expect("flushed");
        test.model.end(op, true);
        daemon.kill();
        test.model.crash(Crash::PowerCut);
        test.place.assert_clean();
    }
    std::fs::write(&test.place.cache, old).expect("written");
    // The older copy names a RAM tail that is gone, which alone would be refused.
    let daemon = test.place.start_with(&["--accept-loss"]);
    test.survey(&daemon);
}

/// As above, for what was acknowledged and never flushed.
#[test]
#[should_panic(expected = "the volume has")]
fn a_cache_that_forgets_what_was_only_acknowledged_is_seen() {
    let mut test = Test::new(1);
    let daemon = test.place.start();
    let mut nbd = daemon.connect();
    let op = test.model.begin_write(8..16, false);
    let mut data = vec![0; 4096];
    test.model.fill(op, 8, &mut data);
    nbd.write(8 * SECTOR, &data, 0).expect("written");
    test.model.end(op, true);
    daemon.kill();
    test.model.crash(Crash::Kill);
    test.place.tails().iter().for_each(|tail| std::fs::remove_file(tail).expect("removed"));
    let daemon = test.place.start_with(&["--accept-loss"]);
    test.survey(&daemon);
}
