//! The daemon's side of the control socket.

use crate::devices;
use crate::serve::{Daemon, Ending};
use crate::ublk;
use anyhow::Context as _;
use clap::CommandFactory as _;
use std::path::PathBuf;
use std::process::Stdio;
use std::rc::Rc;
use tracing::{debug, warn};
use wb_cli::config::DayWindow;
use wb_cli::control::{LINE_BYTES_MAX, Request, Response, Setting, WorkProgress, parse_request, to_line};
use wb_cli::daemon_args::DaemonArgs;
use wb_cli::json::status::{Counters, RamTail, State, Status, VolumeStatus};
use wb_core::engine::Why;
use wb_core::format;
use wb_core::io::Buf;
use wb_core::rt::{self, JoinHandle, Listener, Stream};
use wb_core::types::BLOCK_BYTES;

/// Progress lines come this often.
const PROGRESS_NS: u64 = 500_000_000;
/// Pause between signs of life while the service ends.
const ENDING_NS: u64 = 5_000_000_000;
/// Connections to the control socket at the same time.
const CONNECTIONS_MAX: usize = 64;

/// Listens on the control socket.
pub fn listen(daemon: &Rc<Daemon>) -> anyhow::Result<JoinHandle<()>> {
    let path = daemon.config.control_path();
    devices::make_parent(&path)?;
    let listener = Listener::unix(&path, 0o600).with_context(|| format!("cannot listen on {}", path.display()))?;
    let daemon = daemon.clone();
    Ok(rt::spawn(async move {
        let open = Rc::new(());
        loop {
            match listener.accept().await {
                Ok(_) if Rc::strong_count(&open) > CONNECTIONS_MAX => {
                    warn!("control connection closed: {CONNECTIONS_MAX} are open");
                }
                Ok(stream) => {
                    let (daemon, open) = (daemon.clone(), open.clone());
                    drop(rt::spawn(async move {
                        converse(&daemon, &stream).await;
                        drop(open);
                    }));
                }
                Err(error) => {
                    warn!("a control connection could not be accepted: {error}");
                    rt::sleep(100_000_000).await;
                }
            }
        }
    }))
}

/// Answers the requests of a connection, one after the other, until it closes.
async fn converse(daemon: &Rc<Daemon>, stream: &Stream) {
    let mut line = Vec::new();
    let mut buf = Buf::unpooled(4096);
    loop {
        let (result, back) = stream.recv(buf, 0..4096).await;
        buf = back;
        match result {
            Ok(0) | Err(_) => return,
            Ok(count) => line.extend_from_slice(&buf[..count]),
        }
        while let Some(end) = line.iter().position(|byte| *byte == b'\n') {
            let request: Vec<u8> = line.drain(..=end).collect();
            let text = String::from_utf8_lossy(&request);
            let last = match parse_request(text.trim_end()) {
                Ok(request) => answer(daemon, stream, request).await,
                Err(refusal) => Some(refusal),
            };
            let Some(last) = last else { return };
            if stream.send_bytes(&to_line(&last)).await.is_err() {
                return;
            }
        }
        if line.len() > LINE_BYTES_MAX {
            return debug!("a control request is too long");
        }
    }
}

/// Does what is asked. `None` if the client went away meanwhile.
async fn answer(daemon: &Rc<Daemon>, stream: &Stream, request: Request) -> Option<Response> {
    debug!("control request: {request:?}");
    match request {
        Request::Status => Some(Response::Status(Box::new(status(daemon)))),
        Request::Set(setting) => Some(set(daemon, setting)),
        Request::Drain { wait } => drain(daemon, stream, wait, "drained").await,
        Request::Stop { drain: first, timeout_ms, force } => {
            if !force && let Some(refusal) = in_use(daemon, "--force takes it away from its users").await {
                return Some(refusal);
            }
            // Who stops waiting for it stops nothing but the waiting: the drain goes on, the service, too.
            if first && let failed @ Response::Error { .. } = drain(daemon, stream, true, "").await? {
                return Some(failed);
            }
            daemon.end(Ending::Stop { force }, timeout_ms.map(|ms| ms.saturating_mul(1_000_000)));
            ended(daemon, stream).await
        }
        Request::Detach { wait } => {
            if let Some(refusal) = in_use(daemon, "unmount or close it first").await.or_else(|| has_clients(daemon)) {
                return Some(refusal);
            }
            if !wait {
                let later = daemon.clone();
                rt::spawn(async move { detach_later(&later).await });
                let bytes = daemon.engine.status().dirty_bytes;
                return Some(Response::Done { message: format!("draining {bytes} bytes, then detaching") });
            }
            let drained = drain(daemon, stream, true, "").await?;
            if let Response::Error { .. } = drained {
                return Some(drained);
            }
            if let Some(refusal) = not_detachable(daemon).await {
                return Some(refusal);
            }
            daemon.end(Ending::Detach, None);
            ended(daemon, stream).await
        }
        Request::Upgrade { program } => upgrade(daemon, stream, program).await,
    }
}

/// The refusal to end while the block device is in use.
async fn in_use(daemon: &Rc<Daemon>, step: &str) -> Option<Response> {
    let id = daemon.ublk.get()?;
    let users = ublk::users_of(id).await;
    (!users.is_empty()).then(|| Response::Error {
        message: format!("/dev/ublkb{id} is in use: {}", users.join(", ")),
        next_step: Some(format!(
            "unmount or close it; `wb-daemon upgrade` and SIGTERM leave it to the next daemon; {step}"
        )),
    })
}

/// The refusal to detach while NBD clients are connected: what they write would stay in the cache.
fn has_clients(daemon: &Rc<Daemon>) -> Option<Response> {
    let clients = daemon.server.as_ref().map_or(0, |server| server.connections());
    (clients > 0).then(|| Response::Error {
        message: format!("{clients} NBD clients are connected"),
        next_step: Some("disconnect them first; `wb-daemon drain` works beside them".into()),
    })
}

/// The refusal to detach what was drained. After it the service goes on as before.
async fn not_detachable(daemon: &Rc<Daemon>) -> Option<Response> {
    if let Some(refusal) = in_use(daemon, "unmount or close it first").await.or_else(|| has_clients(daemon)) {
        return Some(refusal);
    }
    let now = daemon.engine.status();
    (now.dirty_tail <= now.head).then(|| Response::Error {
        message: match (now.refused_blocks, now.poisoned_blocks) {
            (0, 0) => "the cache holds dirty data again".into(),
            (0, lost) => {
                format!("{lost} blocks are lost: the cache alone knows that they are not to be read from the disk")
            }
            (refused, _) => format!("the backing device refuses {refused} blocks"),
        },
        next_step: Some("overwrite or discard what is lost, or drain once more".into()),
    })
}

/// Drains, then detaches, while nobody waits; what is in the way is in the log.
async fn detach_later(daemon: &Rc<Daemon>) {
    let refusal = match daemon.engine.drain().await {
        Err(error) => Some(Response::Error { message: format!("the drain failed: {error}"), next_step: None }),
        Ok(()) => not_detachable(daemon).await,
    };
    if daemon.ending().is_some() {
        return;
    }
    match refusal {
        Some(Response::Error { message, .. }) => tracing::error!("not detached: {message}"),
        _ => daemon.end(Ending::Detach, None),
    }
}

/// Ends the service and lets another program, of the same arguments, take its place in this process.
async fn upgrade(daemon: &Rc<Daemon>, stream: &Stream, program: Option<PathBuf>) -> Option<Response> {
    let refuse = |message: String, step: &str| Some(Response::Error { message, next_step: Some(step.into()) });
    let program = match program.map_or_else(own_program, Ok) {
        Ok(program) => program,
        Err(error) => return refuse(format!("cannot find my own program: {error}"), "name one with --program PATH"),
    };
    // A program that does not run here must not end the service.
    let mut command = std::process::Command::new(&program);
    command.arg("--version").stdin(Stdio::null());
    let trial = std::thread::spawn(move || command.output());
    while !trial.is_finished() {
        rt::sleep(5_000_000).await;
    }
    let step = "nothing was changed; name a wb-daemon that runs here with --program PATH";
    match trial.join() {
        Ok(Ok(output)) if output.status.success() && output.stdout.starts_with(b"wb-daemon ") => {}
        Ok(Err(error)) => return refuse(format!("{} does not run: {error}", program.display()), step),
        _ => return refuse(format!("{} is no wb-daemon", program.display()), step),
    }
    *daemon.successor.borrow_mut() = Some(program);
    daemon.end(Ending::Upgrade, None);
    ended(daemon, stream).await
}

/// The file that this process was started from: as it is called now, if it was replaced meanwhile.
fn own_program() -> std::io::Result<PathBuf> {
    let path = std::env::current_exe()?;
    let name = path.to_string_lossy();
    Ok(name.strip_suffix(" (deleted)").map_or_else(|| path.clone(), PathBuf::from))
}

/// How the service ended. A device that hangs may take long: the client hears now and then that somebody is there.
async fn ended(daemon: &Rc<Daemon>, stream: &Stream) -> Option<Response> {
    let outcome = loop {
        match rt::timeout(ENDING_NS, daemon.wait_ended()).await {
            Ok(outcome) => break outcome,
            Err(_) => {
                let progress = WorkProgress {
                    doing: "stopping: what was acknowledged is being made durable".into(),
                    done_bytes: 0,
                    total_bytes: 0,
                    bytes_per_s: 0.0,
                    eta_s: None,
                    errors: 0,
                };
                stream.send_bytes(&to_line(&Response::Progress(progress))).await.ok()?;
            }
        }
    };
    Some(match outcome {
        Ok(message) => Response::Done { message },
        Err(why) => Response::Error {
            message: format!("the stop was not clean: {why}"),
            next_step: Some("the next start recovers the log; see the daemon's log for the cause".into()),
        },
    })
}

/// Writes everything back; with `wait`, answers at the end and tells progress meanwhile.
async fn drain(daemon: &Rc<Daemon>, stream: &Stream, wait: bool, done: &str) -> Option<Response> {
    let total_bytes = daemon.engine.status().dirty_bytes;
    let started_ns = rt::now_ns();
    let engine = daemon.engine.clone();
    let work = rt::spawn(async move { engine.drain().await });
    if !wait {
        // The handle goes, the work stays.
        drop(work);
        return Some(Response::Done { message: format!("draining {total_bytes} bytes") });
    }
    while !work.is_finished() {
        rt::sleep(PROGRESS_NS.min(20_000_000 + (rt::now_ns() - started_ns) / 4)).await;
        let now = daemon.engine.status();
        if let Some(failure) = now.failure {
            return Some(Response::Error { message: failure, next_step: Some("see the daemon's log".into()) });
        }
        let rate = daemon.rates.borrow().now(rt::now_ns(), &now.counters).write_back;
        // What the sweep has written counts, though it is clean only at its end.
        let swept = now.window.map_or(0, |(_, done)| done * BLOCK_BYTES as u64);
        let progress = WorkProgress {
            doing: match &now.writeback_error {
                Some(error) => format!("waiting to try again: {error}"),
                None => "writing back".into(),
            },
            done_bytes: total_bytes.saturating_sub(now.dirty_bytes.saturating_sub(swept)),
            total_bytes,
            bytes_per_s: rate,
            eta_s: now.writeback_left_ns.map(|ns| ns as f64 / 1e9),
            errors: now.counters.writeback_errors,
        };
        stream.send_bytes(&to_line(&Response::Progress(progress))).await.ok()?;
    }
    if let Err(error) = work.await {
        let message = format!("not everything was written back: {error}, or the daemon is being stopped");
        return Some(Response::Error { message, next_step: Some("see the daemon's log, then drain again".into()) });
    }
    let seconds = (rt::now_ns() - started_ns) as f64 / 1e9;
    let refused = daemon.engine.status().refused_blocks;
    if refused > 0 {
        return Some(Response::Error {
            message: format!(
                "the backing device refuses {refused} blocks; everything else was written in {seconds:.1} s"
            ),
            next_step: Some("the daemon's log names them; they stay in the cache and are tried again".into()),
        });
    }
    Some(Response::Done { message: format!("{done} {total_bytes} bytes in {seconds:.1} s") })
}

fn set(daemon: &Rc<Daemon>, setting: Setting) -> Response {
    match setting.apply(daemon.writeback.get()) {
        Err(message) => Response::Error { message, next_step: Some("change the other one first".into()) },
        Ok(config) => {
            daemon.writeback.set(config);
            daemon.engine.set_policy(config.policy());
            Response::Done { message: format!("{setting} until the daemon ends") }
        }
    }
}

/// State and counters for people and scripts.
pub fn status(daemon: &Rc<Daemon>) -> Status {
    let now = daemon.engine.status();
    let now_ns = rt::now_ns();
    let rates = daemon.rates.borrow().now(now_ns, &now.counters);
    let state = match daemon.ending() {
        Some(Ending::Detach) => State::Detaching,
        Some(Ending::Stop { .. } | Ending::Upgrade) => State::Stopping,
        None if now.failure.is_some() => State::Degraded,
        None if now.draining => State::Draining,
        None => State::Ready,
    };
    let volume = VolumeStatus {
        name: now.volume.name.clone(),
        backing: daemon.config.backing.display().to_string(),
        size_bytes: now.volume.size_bytes,
        sector_bytes: now.volume.sector_bytes,
        read_only: now.read_only,
        dirty_bytes: now.dirty_bytes,
        cached_bytes: now.cached_bytes,
        unread_bytes: if now.reading_back { u64::from(now.unread_segments) * now.segment_bytes } else { 0 },
        export: daemon.exports(),
        clients: daemon.server.as_ref().map_or(0, |server| server.connections() as u64),
        oldest_dirty_ms: now
            .oldest_dirty_unix_ns
            .filter(|_| now.dirty_bytes > 0)
            .map(|then| rt::wall_ns().saturating_sub(then) / 1_000_000),
        writeback: writeback_in_words(&now),
        writeback_bytes_per_s: rates.write_back,
        writeback_eta_s: now.writeback_left_ns.filter(|_| now.why.works()).map(|ns| ns as f64 / 1e9),
        writeback_why: why_in_a_word(now.why).into(),
        sweep_blocks: now.window.map(|(total, _)| total),
        sweep_done_blocks: now.window.map(|(_, done)| done),
        writers_paced: now.writers_paced,
        refused_blocks: now.refused_blocks,
        user_read_bytes_per_s: rates.user_read,
        user_write_bytes_per_s: rates.user_write,
        counters: counters(&since(&now.counters, &daemon.started_with)),
    };
    let set = daemon.writeback.get();
    let settings = [
        ("writeback.start_percent", set.start_percent.into()),
        ("writeback.stop_percent", set.stop_percent.into()),
        ("writeback.idle", set.idle.into()),
        ("writeback.idle_seconds", set.idle_seconds.into()),
        ("writeback.read_latency_ms", set.read_latency_ms.into()),
        ("writeback.quiet_percent", set.quiet_percent.into()),
        ("writeback.quiet_age_minutes", set.quiet_age_minutes.into()),
        ("writeback.quiet_window", set.quiet_window.to_string().into()),
    ]
    .map(|(key, value): (&str, serde_json::Value)| (key.to_owned(), value));
    Status {
        state,
        reason: now.failure.clone().or(now.writeback_error.clone()),
        // What --version says.
        version: DaemonArgs::command().get_version().unwrap_or_default().into(),
        pid: std::process::id(),
        uptime_ms: (now_ns - daemon.started_ns) / 1_000_000,
        uuid: now.uuid.to_string(),
        device: daemon.config.device.display().to_string(),
        capacity_bytes: u64::from(now.free_segments.1) * now.segment_bytes,
        free_bytes: u64::from(now.free_segments.0) * now.segment_bytes,
        volumes: vec![volume],
        index_bytes: now.index_bytes,
        rss_bytes: resident_bytes(),
        recovery_ms: now.recovery.recovery_ns / 1_000_000,
        ram_tail: now.tail.map(|tail| RamTail {
            path: tail.place,
            bytes: tail.bytes,
            records: tail.records,
            recovered_records: now.recovery.tail.map_or(0, |before| before.records),
        }),
        settings: settings.into(),
    }
}

fn writeback_in_words(now: &wb_core::engine::Status) -> String {
    let policy = now.policy;
    let mut text = match now.why {
        Why::Clean => "nothing to write back".into(),
        Why::Failed => "stopped: the cache device has failed".into(),
        Why::Waiting => match &now.writeback_error {
            Some(error) => format!("waiting to try again: {error}"),
            None => "waiting to try again".into(),
        },
        Why::Refused if now.refused_blocks == 0 => "waiting: all that is left is lost, until it is overwritten".into(),
        Why::Refused => format!("waiting: the backing device refuses {} blocks, all that is left", now.refused_blocks),
        Why::Space => "writing back: the cache is nearly full".into(),
        Why::Drain => "writing everything back, as asked for".into(),
        Why::Watermark => format!("writing back until no more than {} % of the cache is dirty", policy.stop_percent),
        Why::Between => "writing back gently, between the watermarks".into(),
        Why::Idle => "writing back gently, while nobody asks anything of the volume".into(),
        Why::Burst => "writing everything back, then holding again".into(),
        Why::Quiet => policy.quiet.map_or_else(String::new, |quiet| {
            let age = quiet.age_ns.map(|ns| format!(", or the oldest data is {} min old", ns / 60_000_000_000));
            let hours = quiet.window.map(|window| format!(", or it is {} UTC", DayWindow(Some(window))));
            let (age, hours) = (age.unwrap_or_default(), hours.unwrap_or_default());
            format!("holding until {} % of the cache is dirty{age}{hours}", quiet.percent)
        }),
        Why::Below => {
            let idle =
                policy.idle_after_ns.map(|ns| format!(", or nobody has asked anything for {} s", ns / 1_000_000_000));
            let (start, idle) = (policy.start_percent, idle.unwrap_or_default());
            format!("holding until {start} % of the cache is dirty{idle} or its space is needed")
        }
    };
    if let Some((total, done)) = now.window.filter(|(total, _)| now.why.works() && *total > 0) {
        text += &format!("; {} % of a sweep of {total} blocks", done.min(total) * 100 / total);
    }
    if now.writers_paced {
        text += "; writers are slowed down to that";
    }
    text
}

/// One word for scripts.
fn why_in_a_word(why: Why) -> &'static str {
    match why {
        Why::Clean => "clean",
        Why::Failed => "failed",
        Why::Waiting => "waiting",
        Why::Refused => "refused",
        Why::Space => "space",
        Why::Drain => "drain",
        Why::Watermark => "watermark",
        Why::Between => "between",
        Why::Idle => "idle",
        Why::Burst => "burst",
        Why::Quiet => "quiet",
        Why::Below => "below",
    }
}

/// Lifetime counters without what was counted before.
fn since(now: &format::Counters, then: &format::Counters) -> format::Counters {
    let (now, then) = (now.to_array(), then.to_array());
    format::Counters::from_array(std::array::from_fn(|at| now[at].saturating_sub(then[at])))
}

fn counters(now: &format::Counters) -> Counters {
    Counters {
        user_writes: now.user_writes,
        user_write_bytes: now.user_write_bytes,
        user_reads: now.user_reads,
        user_read_bytes: now.user_read_bytes,
        user_flushes: now.user_flushes,
        read_hits: now.read_hits,
        read_misses: now.read_misses,
        cache_writes: now.cache_writes,
        cache_write_bytes: now.cache_write_bytes,
        cache_flushes: now.cache_flushes,
        backing_writes: now.backing_writes,
        backing_write_bytes: now.backing_write_bytes,
        backing_flushes: now.backing_flushes,
        writeback_errors: now.writeback_errors,
        checksum_errors: now.checksum_errors,
    }
}

fn resident_bytes() -> u64 {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages: u64 = text.split_whitespace().nth(1).and_then(|pages| pages.parse().ok()).unwrap_or(0);
    pages * nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE).ok().flatten().unwrap_or(4096) as u64
}
