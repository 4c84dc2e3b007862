//! A guest that runs.

use crate::outcome::{Outcome, unpack};
use anyhow::{Context as _, bail};
use std::io::{BufRead, BufReader, Read};
use std::process::Child;
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// The console as far as it has come.
#[derive(Default)]
struct Console {
    lines: Mutex<(Vec<String>, bool)>,
    changed: Condvar,
}

impl Console {
    fn push(&self, line: String) {
        self.lines.lock().expect("console").0.push(line);
        self.changed.notify_all();
    }

    fn close(&self) {
        self.lines.lock().expect("console").1 = true;
        self.changed.notify_all();
    }
}

/// A guest that runs. Dropped, it is killed.
pub struct Running {
    child: Child,
    work: Option<TempDir>,
    console: Arc<Console>,
    readers: Vec<JoinHandle<()>>,
    deadline: Instant,
    /// Lines of the console that [`Running::wait_line`] has seen.
    seen: usize,
}

fn read_lines(
    stream: impl Read + Send + 'static,
    console: Arc<Console>,
    prefix: &'static str,
    echo: bool,
) -> JoinHandle<()> {
    std::thread::spawn(move || {
        let mut reader = BufReader::new(stream);
        let mut line = Vec::new();
        while reader.read_until(b'\n', &mut line).is_ok_and(|bytes| bytes > 0) {
            let text = format!("{prefix}{}", String::from_utf8_lossy(&line).replace('\r', "").trim_end());
            if echo {
                eprintln!("| {text}");
            }
            console.push(text);
            line.clear();
        }
        if prefix.is_empty() {
            console.close();
        }
    })
}

impl Running {
    pub(crate) fn new(mut child: Child, work: TempDir, limit: Duration, echo: bool) -> Running {
        let console = Arc::new(Console::default());
        let mut readers = Vec::new();
        if let Some(stderr) = child.stderr.take() {
            readers.push(read_lines(stderr, console.clone(), "qemu: ", echo));
        }
        if let Some(stdout) = child.stdout.take() {
            readers.push(read_lines(stdout, console.clone(), "", echo));
        }
        Running { child, work: Some(work), console, readers, deadline: Instant::now() + limit, seen: 0 }
    }

    /// Waits for the next line of the console that holds `text`, and returns it.
    pub fn wait_line(&mut self, text: &str) -> anyhow::Result<String> {
        let mut lines = self.console.lines.lock().expect("console");
        loop {
            while let Some(line) = lines.0.get(self.seen) {
                self.seen += 1;
                if line.contains(text) {
                    return Ok(line.clone());
                }
            }
            let left = self.deadline.saturating_duration_since(Instant::now());
            if lines.1 || left.is_zero() {
                let tail = lines.0[lines.0.len().saturating_sub(40)..].join("\n");
                bail!("the guest has not said {text:?}; its console ends with:\n{tail}");
            }
            lines = self.console.changed.wait_timeout(lines, left).expect("console").0;
        }
    }

    /// Waits for the end of the guest, at most until its limit.
    pub fn wait(mut self) -> anyhow::Result<Outcome> {
        let mut timed_out = false;
        while self.child.try_wait().context("QEMU is gone")?.is_none() {
            if Instant::now() > self.deadline {
                timed_out = true;
                self.child.kill().context("QEMU cannot be killed")?;
                self.child.wait().context("QEMU is gone")?;
                break;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        self.finish(timed_out)
    }

    /// A power cut: QEMU is killed, now.
    pub fn kill(mut self) -> anyhow::Result<Outcome> {
        self.child.kill().context("QEMU cannot be killed")?;
        self.child.wait().context("QEMU is gone")?;
        self.finish(false)
    }

    fn finish(&mut self, timed_out: bool) -> anyhow::Result<Outcome> {
        for reader in self.readers.drain(..) {
            reader.join().ok().context("a reader of the console has panicked")?;
        }
        let console = self.console.lines.lock().expect("console").0.join("\n");
        let work = self.work.take().context("a guest ends once")?;
        let out = work.path().join("out");
        unpack(&work.path().join("out.tar"), &out)?;
        let exit = std::fs::read_to_string(out.join(".exit")).ok().and_then(|text| text.trim().parse().ok());
        Ok(Outcome { exit, console, timed_out, work })
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Both fail only if it has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
