//! Caches made by wb-format and served by wb-daemon, for tests that kill, damage, and look from outside.

use crate::nbd_client::{Address, ConnectOptions, NbdClient};
use crate::tool::{Ran, run, tool};
use serde_json::Value;
use std::fs::File;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Longest start, and longest end, of a daemon on the small caches of tests.
const PATIENCE: Duration = Duration::from_secs(60);

/// A directory with a formatted cache file and a sparse backing file.
pub struct Place {
    dir: tempfile::TempDir,
    /// Where its daemons keep their RAM tails.
    memory: tempfile::TempDir,
    /// The cache.
    pub cache: PathBuf,
    /// The backing file.
    pub backing: PathBuf,
}

impl Place {
    /// Formats a cache of `cache_bytes` and makes a backing file of `backing_bytes` zeroes.
    pub fn new(cache_bytes: u64, segment_bytes: u64, backing_bytes: u64) -> Place {
        // Not /tmp, which may be in memory: then the tests would be of another kind of file than users have.
        let parent = std::env::var_os("TMPDIR").unwrap_or_else(|| "/var/tmp".into());
        let dir = tempfile::Builder::new().prefix("wb-test-").tempdir_in(parent).expect("a directory");
        let memory = tempfile::Builder::new().prefix("wb-test-").tempdir_in("/dev/shm").expect("a tmpfs");
        let (cache, backing) = (dir.path().join("cache.img"), dir.path().join("disk.img"));
        File::create(&backing).and_then(|file| file.set_len(backing_bytes)).expect("a sparse file");
        let (size, segment) = (cache_bytes.to_string(), segment_bytes.to_string());
        let mut format = tool("wb-format");
        let made = run(format.args(["--size", &size, "--segment-size", &segment]).arg(&cache));
        assert_eq!(made.code, 0, "wb-format: {}", made.stderr);
        Place { dir, memory, cache, backing }
    }

    /// A path in the directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Socket of the export.
    pub fn socket(&self) -> PathBuf {
        self.path("nbd.sock")
    }

    /// URI of the export.
    pub fn uri(&self) -> String {
        format!("nbd+unix:///?socket={}", self.socket().display())
    }

    /// Starts a daemon and waits until it is ready.
    pub fn start(&self) -> Daemon {
        let mut daemon = self.spawn();
        daemon.wait_ready();
        daemon
    }

    /// As [`Place::start`], with further options.
    pub fn start_with(&self, options: &[&str]) -> Daemon {
        let mut daemon = self.spawn_with(options);
        daemon.wait_ready();
        daemon
    }

    /// Starts a daemon whose writes from this offset on fail, in any file, until [`Daemon::lift_limit`]: a disk with a bad
    /// part. The signal that goes with it is ignored.
    pub fn start_limited(&self, bytes: u64) -> Daemon {
        // prlimit before exec: the limit is the process's, and `trap` stays over exec.
        let script = r#"trap '' XFSZ; prlimit --pid $$ --fsize="$0":unlimited; exec "$@""#;
        let mut command = Command::new("sh");
        let own = self.command();
        command.args(["-c", script, &bytes.to_string()]).arg(own.get_program()).args(own.get_args());
        let mut daemon = self.spawn_command(command);
        daemon.wait_ready();
        daemon
    }

    /// Directory of the RAM tails, made by the first daemon.
    pub fn tail_dir(&self) -> PathBuf {
        self.memory.path().join("tails")
    }

    /// The RAM tails that are there.
    pub fn tails(&self) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(self.tail_dir()).map(Iterator::collect::<Vec<_>>).unwrap_or_default();
        entries.into_iter().map(|entry| entry.expect("a directory entry").path()).collect()
    }

    fn command(&self) -> Command {
        let mut command = tool("wb-daemon");
        command.arg("run").arg("--cache").arg(&self.cache).arg("--backing").arg(&self.backing);
        command.arg("--nbd").arg(format!("unix:{}", self.socket().display()));
        command.arg("--control").arg(self.control()).arg("--tail-dir").arg(self.tail_dir());
        command
    }

    /// Starts a daemon without waiting for it.
    pub fn spawn(&self) -> Daemon {
        self.spawn_with(&[])
    }

    fn spawn_with(&self, options: &[&str]) -> Daemon {
        let mut command = self.command();
        command.args(options);
        self.spawn_command(command)
    }

    fn spawn_command(&self, mut command: Command) -> Daemon {
        let notify = self.path("notify.sock");
        // Of the daemon before.
        let _ = std::fs::remove_file(&notify);
        let ready = UnixDatagram::bind(&notify).expect("a socket");
        ready.set_read_timeout(Some(Duration::from_millis(100))).expect("a timeout");
        let log = self.path("daemon.log");
        let log_file = File::options().create(true).append(true).open(&log).expect("a log file");
        let child = command
            .env("NOTIFY_SOCKET", &notify)
            .stdout(Stdio::null())
            .stderr(log_file)
            .spawn()
            .expect("the daemon starts");
        Daemon { child: Some(child), ready, log, socket: self.socket(), control: self.control() }
    }

    /// A daemon that is expected to refuse: runs it to its end.
    pub fn start_refused(&self) -> Ran {
        run(&mut self.command())
    }

    fn control(&self) -> PathBuf {
        self.path("control.sock")
    }

    /// `wb-check --json` of the cache: exit code and report.
    pub fn check(&self) -> (i32, Value) {
        let ran = run(tool("wb-check").arg("--json").arg(&self.cache));
        let report = serde_json::from_str(&ran.stdout);
        (ran.code, report.unwrap_or_else(|_| panic!("wb-check: no JSON; {}", ran.stderr)))
    }

    /// Fails unless `wb-check` finds the cache clean: notes, such as a torn tail after a crash, are no errors.
    #[track_caller]
    pub fn assert_clean(&self) -> Value {
        let (code, report) = self.check();
        assert!(code == 0 && report["verdict"] == "clean", "wb-check ends with {code}: {report:#}");
        report
    }
}

/// A running `wb-daemon run`. Dropped, it is killed.
pub struct Daemon {
    child: Option<Child>,
    ready: UnixDatagram,
    log: PathBuf,
    socket: PathBuf,
    control: PathBuf,
}

impl Daemon {
    /// Waits for `READY=1`. Panics with the daemon's log if it ends instead, or takes longer than a minute.
    #[track_caller]
    pub fn wait_ready(&mut self) {
        let begun = Instant::now();
        let mut buf = [0; 4096];
        while begun.elapsed() < PATIENCE {
            if let Ok(len) = self.ready.recv(&mut buf)
                && buf[..len].split(|byte| *byte == b'\n').any(|line| line == b"READY=1")
            {
                return;
            }
            if let Some(status) = self.child().try_wait().expect("our own child") {
                panic!("the daemon ended with {status} instead of being ready:\n{}", self.log());
            }
        }
        panic!("the daemon is not ready after {PATIENCE:?}:\n{}", self.log());
    }

    fn child(&mut self) -> &mut Child {
        self.child.as_mut().expect("a daemon that runs")
    }

    /// Process id.
    pub fn pid(&self) -> u32 {
        self.child.as_ref().expect("a daemon that runs").id()
    }

    /// What it, and its predecessors on the same cache, have logged.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// SIGKILL, now; true if it was still running.
    pub fn kill(mut self) -> bool {
        let mut child = self.child.take().expect("a daemon that runs");
        let alive = child.try_wait().expect("our own child").is_none();
        child.kill().expect("our own child");
        child.wait().expect("our own child");
        alive
    }

    /// A client of its own.
    pub fn connect(&self) -> NbdClient {
        let options = ConnectOptions { timeout: Some(PATIENCE), ..ConnectOptions::default() };
        NbdClient::connect(&Address::Unix(self.socket.clone()), &options).expect("a connection")
    }

    /// One of the commands of wb-daemon that talk to it.
    pub fn control(&self, args: &[&str]) -> Ran {
        run(tool("wb-daemon").args(args).arg("--control").arg(&self.control))
    }

    /// `status --json`.
    #[track_caller]
    pub fn status(&self) -> Value {
        let ran = self.control(&["status", "--json"]);
        assert_eq!(ran.code, 0, "status: {}", ran.stderr);
        serde_json::from_str(&ran.stdout).expect("JSON")
    }

    /// Takes the limit of [`Place::start_limited`] away.
    #[track_caller]
    pub fn lift_limit(&self) {
        let ran = run(Command::new("prlimit").args(["--pid", &self.pid().to_string(), "--fsize=unlimited"]));
        assert_eq!(ran.code, 0, "prlimit: {}", ran.stderr);
    }

    /// Writes everything back.
    #[track_caller]
    pub fn drain(&self) {
        let ran = self.control(&["drain"]);
        assert_eq!(ran.code, 0, "drain: {}\n{}", ran.stderr, self.log());
    }

    /// `wb-daemon stop`, and waits for the end of the process, which must be a good one.
    #[track_caller]
    pub fn stop(self) {
        let ran = self.control(&["stop"]);
        assert_eq!(ran.code, 0, "stop: {}\n{}", ran.stderr, self.log());
        self.ended();
    }

    /// Waits for the end of the process, which must be a good one.
    #[track_caller]
    pub fn ended(mut self) {
        let mut child = self.child.take().expect("a daemon that runs");
        let begun = Instant::now();
        loop {
            if let Some(status) = child.try_wait().expect("our own child") {
                assert!(status.success(), "the daemon ended with {status}:\n{}", self.log());
                return;
            }
            if begun.elapsed() > PATIENCE {
                child.kill().expect("our own child");
                child.wait().expect("our own child");
                panic!("the daemon does not end:\n{}", self.log());
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
        if std::thread::panicking() {
            eprintln!("log of the daemon:\n{}", self.log());
        }
    }
}

/// A text for a command line.
pub fn text(path: &Path) -> &str {
    path.to_str().expect("a path of the test")
}

/// Bytes that repeat at no block boundary, different for each seed.
pub fn random_bytes(seed: u64, len: usize) -> Vec<u8> {
    // xorshift64 (public domain, G. Marsaglia).
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let mut bytes: Vec<u8> = std::iter::repeat_with(|| next().to_le_bytes()).take(len.div_ceil(8)).flatten().collect();
    bytes.truncate(len);
    bytes
}
