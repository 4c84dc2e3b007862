//! Programs of others as witnesses. One that is missing fails the test and names its package.

use std::io::Read;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// What a program said before it ended.
#[derive(Debug)]
pub struct Output {
    /// Exit status 0.
    pub success: bool,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

/// Runs a program of a Debian package, for a minute at most.
///
/// Panics if it is not installed or does not end; whether it succeeded is for the caller to see.
#[track_caller]
pub fn run(package: &str, program: &str, args: &[&str]) -> Output {
    // The system's Python before any other: it is the one with the system's modules (libnbd).
    let path = format!("/usr/bin:{}", std::env::var("PATH").unwrap_or_default());
    let mut command = Command::new(program);
    command.args(args).env("PATH", path).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = match command.spawn() {
        Ok(child) => child,
        Err(error) => panic!("cannot run {program}: {error}; install the package {package}"),
    };
    let (stdout, stderr) = (collect(child.stdout.take()), collect(child.stderr.take()));
    let success = wait(&mut child, program);
    let text = |reader: std::thread::JoinHandle<String>| reader.join().expect("the reader does not panic");
    Output { success, stdout: text(stdout), stderr: text(stderr) }
}

/// [`run`] for programs that must succeed; their standard output.
#[track_caller]
pub fn check(package: &str, program: &str, args: &[&str]) -> String {
    let output = run(package, program, args);
    assert!(output.success, "{program} {args:?} failed\n{}\n{}", output.stdout, output.stderr);
    output.stdout
}

fn collect(pipe: Option<impl Read + Send + 'static>) -> std::thread::JoinHandle<String> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut pipe) = pipe {
            // What came before an error is still worth showing.
            let _ = pipe.read_to_end(&mut bytes);
        }
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

#[track_caller]
fn wait(child: &mut Child, program: &str) -> bool {
    let begin = Instant::now();
    loop {
        if let Some(status) = child.try_wait().expect("our own child") {
            return status.success();
        }
        if begin.elapsed() > Duration::from_secs(60) {
            child.kill().expect("our own child");
            panic!("{program} did not end within a minute");
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}
