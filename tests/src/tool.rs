//! Runs the workspace's own binaries as their users do.

use std::io::Read;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// No tool may take longer on the small caches of these tests.
const TIME_LIMIT: Duration = Duration::from_secs(60);

/// Folder of the binaries: `$WB_BIN_DIR`, or where cargo put them beside this test.
pub fn bin_dir() -> PathBuf {
    if let Some(dir) = std::env::var_os("WB_BIN_DIR") {
        return dir.into();
    }
    let test = std::env::current_exe().expect("a test knows its own path");
    // target/debug/deps/this-test
    test.ancestors().nth(2).expect("tests are in target/PROFILE/deps").to_path_buf()
}

/// Path of one binary. Panics if it is not built: cargo builds binaries of other packages only when asked to.
pub fn bin(name: &str) -> PathBuf {
    let path = bin_dir().join(name);
    assert!(path.exists(), "{} is not built: run `make e2e`, or `cargo build --workspace` before", path.display());
    path
}

/// A command that runs `name` in a neutral environment.
pub fn tool(name: &str) -> Command {
    let mut command = Command::new(bin(name));
    neutral(&mut command);
    command
}

/// Removes from the command's environment what would change a tool's behaviour, and gives it no input.
pub fn neutral(command: &mut Command) {
    for name in ["WB_CONFIG", "WB_LOG", "NOTIFY_SOCKET", "JOURNAL_STREAM", "RUST_BACKTRACE"] {
        command.env_remove(name);
    }
    command.stdin(Stdio::null());
}

/// How a command ended.
#[derive(Debug, Clone)]
pub struct Ran {
    /// Exit code; -1 if a signal ended it.
    pub code: i32,
    /// What it wrote to stdout.
    pub stdout: String,
    /// What it wrote to stderr.
    pub stderr: String,
}

impl Ran {
    /// True for exit code 0.
    pub fn success(&self) -> bool {
        self.code == 0
    }
}

/// Runs the command to its end and collects what it wrote. Panics if it takes longer than a minute.
pub fn run(command: &mut Command) -> Ran {
    try_run(command).expect("the command starts")
}

/// As [`run`]; an error if the command cannot be started.
pub fn try_run(command: &mut Command) -> std::io::Result<Ran> {
    finish(command.stdout(Stdio::piped()))
}

/// As [`run`], with the stdout that the command already has; [`Ran::stdout`] is empty if that is no pipe of ours.
pub fn run_keeping_stdout(command: &mut Command) -> Ran {
    finish(command).expect("the command starts")
}

fn finish(command: &mut Command) -> std::io::Result<Ran> {
    let mut child = command.stderr(Stdio::piped()).spawn()?;
    let stdout = child.stdout.take().map(collect);
    let stderr = child.stderr.take().map(collect);
    let code = wait(&mut child, command);
    let text =
        |reader: Option<thread::JoinHandle<String>>| reader.map(|r| r.join().expect("reader")).unwrap_or_default();
    Ok(Ran { code, stdout: text(stdout), stderr: text(stderr) })
}

fn wait(child: &mut Child, command: &Command) -> i32 {
    let begun = Instant::now();
    loop {
        if let Some(status) = child.try_wait().expect("our own child") {
            return status.code().unwrap_or(-1);
        }
        if begun.elapsed() > TIME_LIMIT {
            let _ = child.kill();
            let _ = child.wait();
            panic!("{command:?} did not end within {TIME_LIMIT:?}");
        }
        thread::sleep(Duration::from_millis(5));
    }
}

fn collect(mut pipe: impl Read + Send + 'static) -> thread::JoinHandle<String> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        let _ = pipe.read_to_end(&mut bytes);
        String::from_utf8_lossy(&bytes).into_owned()
    })
}
