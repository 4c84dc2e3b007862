//! The subcommands of wb-daemon that talk to a running daemon.

use crate::control::{Client, Reply, Request, WorkProgress};
use crate::error::NextStep;
use crate::exit::Exit;
use crate::harness::Context;
use crate::json::status::{State, Status, VolumeStatus};
use crate::output::{number, table};
use crate::progress::{Progress, ProgressUnit};
use crate::units;
use serde::Serialize;
use std::io::{self, Write};
use std::path::Path;
use std::time::{Duration, Instant};

/// What `drain`, `detach`, `stop` and `set` print with `--json`.
#[derive(Debug, Serialize)]
struct DoneDocument {
    /// What was done, for people.
    message: String,
}

/// Sends `requests` to the daemon at `control`, shows progress and prints its last answer.
pub fn run(control: &Path, requests: &[Request], ctx: &mut Context) -> anyhow::Result<Exit> {
    let mut client = Client::connect(control)?;
    let mut messages = Vec::new();
    for request in requests {
        let mut view = ProgressView::new();
        let reply = client.call(request, |progress| view.show(progress))?;
        drop(view);
        match reply {
            Reply::Status(status) if ctx.json => ctx.out.json(&status)?,
            Reply::Status(status) => show_status(&status, &mut ctx.out)?,
            Reply::Done(_) if matches!(request, Request::Upgrade { .. }) => messages.push(wait_for_successor(control)?),
            Reply::Done(message) => messages.push(message),
        }
    }
    if messages.is_empty() {
        return Ok(Exit::Done);
    }
    if ctx.json {
        ctx.out.json(&DoneDocument { message: messages.join("; ") })?;
    } else {
        for message in messages {
            writeln!(ctx.out, "{message}")?;
        }
    }
    Ok(Exit::Done)
}

/// After the old program has said that it stops: waits until the new one serves.
fn wait_for_successor(control: &Path) -> anyhow::Result<String> {
    const LIMIT: Duration = Duration::from_secs(120);
    let begun = Instant::now();
    loop {
        std::thread::sleep(Duration::from_millis(20));
        // The old one may still answer, and says then that it is stopping.
        let reply = Client::connect(control).and_then(|mut client| client.call(&Request::Status, |_| ()));
        match reply {
            Ok(Reply::Status(status)) if status.state != State::Stopping => {
                let pause = units::duration(begun.elapsed());
                return Ok(format!("wb-daemon {} has taken over after {pause}", status.version));
            }
            Err(error) if begun.elapsed() > LIMIT => {
                return Err(error.context("the old daemon has stopped, and the new one does not answer"))
                    .next_step("see its log (journalctl), then start it again: it recovers by itself");
            }
            _ => {}
        }
    }
}

/// Progress of the daemon's work: a bar on a terminal, a line every ten seconds elsewhere.
struct ProgressView {
    bar: Option<Progress>,
    last_line: Option<Instant>,
}

impl ProgressView {
    const LINE_EVERY: Duration = Duration::from_secs(10);

    fn new() -> ProgressView {
        ProgressView { bar: None, last_line: None }
    }

    fn show(&mut self, p: &WorkProgress) {
        if Progress::is_visible() {
            let bar = self.bar.get_or_insert_with(|| {
                let bar = Progress::new(&p.doing, p.total_bytes, ProgressUnit::Bytes);
                bar.note("interrupting this (^C) ends the waiting, not the work");
                bar
            });
            bar.set_message(&p.doing);
            bar.set_total(p.total_bytes);
            bar.set(p.done_bytes);
        } else if self.last_line.is_none_or(|at| at.elapsed() >= ProgressView::LINE_EVERY) {
            self.last_line = Some(Instant::now());
            let _ = writeln!(io::stderr(), "{}", progress_line(p));
        }
    }
}

fn progress_line(p: &WorkProgress) -> String {
    if p.total_bytes == 0 {
        return p.doing.clone();
    }
    let mut line = format!(
        "{}: {} of {}, {}",
        p.doing,
        units::size(p.done_bytes),
        units::size(p.total_bytes),
        units::rate(p.bytes_per_s)
    );
    if let Some(eta) = p.eta_s.and_then(seconds) {
        line.push_str(&format!(", {} left", units::duration(eta)));
    }
    if p.errors > 0 {
        line.push_str(&format!(", {} errors", p.errors));
    }
    line
}

/// A duration out of a number from outside; `None` if it is none.
fn seconds(s: f64) -> Option<Duration> {
    Duration::try_from_secs_f64(s).ok()
}

fn show_status(s: &Status, out: &mut impl Write) -> io::Result<()> {
    let state = serde_json::to_value(s.state).ok().and_then(|v| v.as_str().map(String::from)).unwrap_or_default();
    let reason = s.reason.as_ref().map(|r| format!(" ({r})")).unwrap_or_default();
    writeln!(out, "{state}{reason}: wb-daemon {}, process {}", s.version, s.pid)?;
    writeln!(out, "cache {} on {}", s.uuid, s.device)?;
    writeln!(
        out,
        "up {} (recovery took {}), {} of memory, {} of it index",
        units::duration(Duration::from_millis(s.uptime_ms)),
        units::duration(Duration::from_millis(s.recovery_ms)),
        units::size(s.rss_bytes),
        units::size(s.index_bytes)
    )?;
    writeln!(out, "capacity {}, log space free {}", units::size(s.capacity_bytes), units::size(s.free_bytes))?;
    if let Some(tail) = &s.ram_tail {
        let recovered = match tail.recovered_records {
            0 => String::new(),
            count => format!("; the start recovered {count} from the tail of a daemon that had died"),
        };
        let (size, path) = (units::size(tail.bytes), &tail.path);
        writeln!(out, "RAM tail {path}, {size}, {} records not durable yet{recovered}", tail.records)?;
    }
    for volume in &s.volumes {
        writeln!(out)?;
        show_volume(volume, out)?;
    }
    Ok(())
}

fn show_volume(v: &VolumeStatus, out: &mut impl Write) -> io::Result<()> {
    let access = if v.read_only { ", read-only" } else { "" };
    writeln!(out, "volume {}: {} on {}{access}", v.name, units::size(v.size_bytes), v.backing)?;
    for export in &v.export {
        writeln!(out, "  served as {export}")?;
    }
    writeln!(out, "  clients     {}", v.clients)?;
    let age = v.oldest_dirty_ms.map(|ms| format!(", the oldest for {}", units::duration(Duration::from_millis(ms))));
    writeln!(out, "  dirty       {} are only in the cache{}", units::size(v.dirty_bytes), age.unwrap_or_default())?;
    let unread = match v.unread_bytes {
        0 => String::new(),
        bytes => format!(", {} of the log are still to be read", units::size(bytes)),
    };
    writeln!(out, "  cached      {}{unread}", units::size(v.cached_bytes))?;
    let eta = v.writeback_eta_s.and_then(seconds).map(|eta| format!(", {} left", units::duration(eta)));
    let rate = units::rate(v.writeback_bytes_per_s);
    writeln!(out, "  write-back  {} ({rate}{})", v.writeback, eta.unwrap_or_default())?;
    let (reads, writes) = (units::rate(v.user_read_bytes_per_s), units::rate(v.user_write_bytes_per_s));
    writeln!(out, "  now         {reads} read, {writes} written by users")?;
    let c = &v.counters;
    let hits = units::percent(c.read_hits, c.read_hits + c.read_misses);
    let errors = format!("{} of write-back, {} of checksums", c.writeback_errors, c.checksum_errors);
    writeln!(out, "  read hits   {hits}\n  errors      {errors}")?;
    let mut t = table(["since start", "writes", "bytes", "flushes", "reads", "bytes read"]);
    let count = |n| number(units::count(n));
    let size = |n| number(units::size(n));
    t.add_row(vec![
        "users".into(),
        count(c.user_writes),
        size(c.user_write_bytes),
        count(c.user_flushes),
        count(c.user_reads),
        size(c.user_read_bytes),
    ]);
    t.add_row(vec!["cache device".into(), count(c.cache_writes), size(c.cache_write_bytes), count(c.cache_flushes)]);
    t.add_row(vec![
        "backing device".into(),
        count(c.backing_writes),
        size(c.backing_write_bytes),
        count(c.backing_flushes),
    ]);
    writeln!(out, "{t}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::json::status::{Counters, RamTail, State};

    fn status() -> Status {
        Status {
            state: State::Ready,
            reason: None,
            version: "0.1.0".into(),
            pid: 7,
            uptime_ms: 61_000,
            uuid: "u-u".into(),
            device: "/dev/fast".into(),
            capacity_bytes: 1 << 30,
            free_bytes: 1 << 29,
            volumes: vec![VolumeStatus {
                name: "data".into(),
                backing: "/dev/slow".into(),
                size_bytes: 8 << 30,
                sector_bytes: 512,
                read_only: false,
                dirty_bytes: 4096,
                cached_bytes: 8192,
                unread_bytes: 4 << 20,
                export: vec!["nbd+unix:///data?socket=/run/x".into()],
                clients: 1,
                oldest_dirty_ms: Some(1500),
                writeback: "waiting: 1 % is dirty".into(),
                writeback_bytes_per_s: 0.0,
                writeback_eta_s: Some(f64::INFINITY),
                writeback_why: "below".into(),
                sweep_blocks: None,
                sweep_done_blocks: None,
                writers_paced: false,
                refused_blocks: 0,
                user_read_bytes_per_s: 0.0,
                user_write_bytes_per_s: 1e6,
                counters: Counters { read_hits: 3, read_misses: 1, ..Counters::default() },
            }],
            index_bytes: 1 << 20,
            rss_bytes: 1 << 25,
            recovery_ms: 12,
            ram_tail: Some(RamTail { path: "/dev/shm/t".into(), bytes: 1 << 25, records: 2, recovered_records: 7 }),
            settings: Default::default(),
        }
    }

    #[test]
    fn status_for_people_names_what_matters() {
        let mut text = Vec::new();
        show_status(&status(), &mut text).unwrap();
        let text = String::from_utf8(text).unwrap();
        for part in [
            "ready",
            "/dev/shm/t, 32 MiB, 2 records",
            "recovered 7",
            "/dev/fast",
            "/dev/slow",
            "4 KiB are only in the cache, the oldest for 1.5 s",
            "8 KiB, 4 MiB of the log are still to be read",
            "75 %",
            "nbd+unix",
        ] {
            assert!(text.contains(part), "{part} in:\n{text}");
        }
    }

    #[test]
    fn status_json_has_the_documented_names() {
        let json = serde_json::to_value(status()).unwrap();
        for key in ["state", "uuid", "volumes", "index_bytes", "rss_bytes", "recovery_ms", "ram_tail"] {
            assert!(json.get(key).is_some(), "{key}");
        }
        let volume = &json["volumes"][0];
        for key in [
            "name",
            "size_bytes",
            "dirty_bytes",
            "cached_bytes",
            "export",
            "user_writes",
            "user_write_bytes",
            "user_reads",
            "user_read_bytes",
            "user_flushes",
            "read_hits",
            "cache_writes",
            "cache_write_bytes",
            "cache_flushes",
            "backing_writes",
            "backing_write_bytes",
            "backing_flushes",
            "writeback_errors",
            "checksum_errors",
        ] {
            assert!(volume.get(key).is_some(), "{key}");
        }
        assert_eq!(json["state"], "ready");
    }

    #[test]
    fn a_progress_line_says_how_long() {
        let mut p = WorkProgress {
            doing: "writing back".into(),
            done_bytes: 1 << 20,
            total_bytes: 3 << 20,
            bytes_per_s: 1e6,
            eta_s: Some(2.0),
            errors: 0,
        };
        assert_eq!(progress_line(&p), "writing back: 1 MiB of 3 MiB, 1 MB/s, 2 s left");
        p.eta_s = Some(f64::NAN);
        p.errors = 2;
        assert_eq!(progress_line(&p), "writing back: 1 MiB of 3 MiB, 1 MB/s, 2 errors");
    }
}
