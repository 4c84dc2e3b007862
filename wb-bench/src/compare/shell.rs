//! Runs programs and writes sysfs files on behalf of a comparison: each with a limit of time, each recorded, so that the
//! report shows word by word how a system was set up.

use anyhow::{Context as _, anyhow, bail};
use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Limit of programs that only set something up.
pub const SETUP_LIMIT: Duration = Duration::from_secs(60);

/// Runs and records.
#[derive(Debug, Default)]
pub struct Shell {
    recorded: Vec<String>,
    recording: bool,
}

impl Shell {
    /// What follows is part of the set-up and is shown in the report.
    pub fn start_recording(&mut self) {
        self.recorded.clear();
        self.recording = true;
    }

    /// Ends the recording and gives it.
    pub fn take_recorded(&mut self) -> Vec<String> {
        self.recording = false;
        std::mem::take(&mut self.recorded)
    }

    /// Adds a line to the recording.
    pub fn record(&mut self, line: impl Into<String>) {
        if self.recording {
            self.recorded.push(line.into());
        }
    }

    /// Runs a program and gives its stdout; anything but exit code 0 is an error that shows what it said.
    pub fn run(&mut self, program: &str, args: &[&str]) -> anyhow::Result<String> {
        self.run_for(program, args, SETUP_LIMIT)
    }

    /// The same with another limit of time.
    pub fn run_for(&mut self, program: &str, args: &[&str], limit: Duration) -> anyhow::Result<String> {
        self.record(command_line(program, args));
        run(program, args, limit)
    }

    /// Writes a sysfs file.
    pub fn write(&mut self, path: impl AsRef<Path>, value: &str) -> anyhow::Result<()> {
        let path = path.as_ref();
        self.record(format!("echo {value} > {}", path.display()));
        std::fs::write(path, value).with_context(|| format!("cannot write '{value}' to {}", path.display()))
    }
}

/// Reads a file of /sys or /proc without the newline at its end.
pub fn read(path: impl AsRef<Path>) -> anyhow::Result<String> {
    let path = path.as_ref();
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    Ok(text.trim_end().to_string())
}

/// Runs a program unrecorded.
pub fn run(program: &str, args: &[&str], limit: Duration) -> anyhow::Result<String> {
    let mut command = Command::new(program);
    command.args(args);
    run_command(command, limit).with_context(|| format!("`{}` failed", command_line(program, args)))
}

/// Runs a command whose output is kept in files, so that no pipe can fill up and no orphan can hold it open.
pub fn run_command(mut command: Command, limit: Duration) -> anyhow::Result<String> {
    let (mut out, mut err) = (scratch()?, scratch()?);
    let (out_fd, err_fd) = (out.try_clone()?, err.try_clone()?);
    let name = command.get_program().to_string_lossy().into_owned();
    let child = command.stdin(Stdio::null()).stdout(out_fd).stderr(err_fd).spawn();
    let mut child = child.with_context(|| format!("cannot start {name}"))?;
    let ended = wait(&mut child, limit)?;
    let (stdout, stderr) = (text_of(&mut out)?, text_of(&mut err)?);
    match ended {
        Some(status) if status.success() => Ok(stdout),
        Some(status) => bail!("{name} ended with {status}: {}", last_lines(&format!("{stdout}\n{stderr}"))),
        None => bail!("{name} did not end within {limit:?}: {}", last_lines(&format!("{stdout}\n{stderr}"))),
    }
}

/// Waits for a child; past `limit` it is killed and `None` is given. A child that even that does not end (stuck in the
/// kernel) is left behind.
pub fn wait(child: &mut Child, limit: Duration) -> anyhow::Result<Option<std::process::ExitStatus>> {
    let begin = Instant::now();
    let mut pause = Duration::from_millis(1);
    while begin.elapsed() < limit {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(20));
    }
    child.kill()?;
    for _ in 0..50 {
        if child.try_wait()?.is_some() {
            break;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(None)
}

/// Calls `condition` until it holds; an error after `limit`.
pub fn wait_until(what: &str, limit: Duration, mut condition: impl FnMut() -> bool) -> anyhow::Result<Duration> {
    let begin = Instant::now();
    while !condition() {
        if begin.elapsed() > limit {
            return Err(anyhow!("waited {limit:?} in vain: {what}"));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(begin.elapsed())
}

fn scratch() -> anyhow::Result<File> {
    tempfile::tempfile().context("cannot make a temporary file")
}

fn text_of(file: &mut File) -> anyhow::Result<String> {
    use std::io::Seek;
    let mut bytes = Vec::new();
    file.rewind()?;
    file.read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn last_lines(text: &str) -> String {
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    lines[lines.len().saturating_sub(6)..].join(" | ")
}

/// A command line as one would type it.
pub fn command_line(program: &str, args: &[&str]) -> String {
    let quote = |arg: &&str| {
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:,+%@".contains(c);
        if !arg.is_empty() && arg.chars().all(plain) { arg.to_string() } else { format!("'{arg}'") }
    };
    let words = std::iter::once(program.to_string()).chain(args.iter().map(quote));
    words.collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_run_is_recorded_as_one_would_type_it() {
        let mut shell = Shell::default();
        shell.run("true", &["before"]).expect("true");
        shell.start_recording();
        shell.run("echo", &["a b", "c=d"]).expect("echo");
        assert_eq!(shell.take_recorded(), ["echo 'a b' c=d"]);
    }

    #[test]
    fn a_failing_and_a_hanging_program_are_errors_that_say_why() {
        let failed = run("sh", &["-c", "echo the reason >&2; exit 3"], SETUP_LIMIT).expect_err("exit code 3");
        assert!(format!("{failed:#}").contains("the reason"), "{failed:#}");
        let begin = Instant::now();
        let hung = run("sleep", &["60"], Duration::from_millis(50)).expect_err("a limit");
        assert!(format!("{hung:#}").contains("did not end"), "{hung:#}");
        assert!(begin.elapsed() < Duration::from_secs(30));
        assert!(run("no-such-program-here", &[], SETUP_LIMIT).is_err());
    }
}
