//! The control socket of a daemon: what goes over it, and the client's side.
//!
//! A Unix stream socket, owner-only. The client sends one [`RequestLine`] as a line of JSON; the daemon answers with
//! any number of [`Response::Progress`] lines and one last line of another kind. Then the client may send the next
//! request. Closing the connection ends the waiting for a drain or detach, not the work.

use crate::config::{DayWindow, WritebackConfig};
use crate::config_error::nearest;
use crate::error::NextStep;
use crate::json::status::Status;
use anyhow::{Context as _, bail};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

/// Version of this protocol. A daemon refuses requests of another version and names its own.
pub const PROTOCOL: u32 = 1;

/// Longest line in either direction, in bytes.
pub const LINE_BYTES_MAX: usize = 1 << 20;

/// What a client asks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case")]
pub enum Request {
    /// Answered with [`Response::Status`].
    Status,
    /// Write all dirty data back. With `wait`: progress until it is done; without: done when it has begun.
    Drain {
        /// Answer only when the work is done.
        wait: bool,
    },
    /// Drain, stop serving, forget the backing device, end.
    Detach {
        /// Answer only when the work is done.
        wait: bool,
    },
    /// Stop cleanly. Answered before the process ends, after everything is durable.
    Stop {
        /// Drain first.
        drain: bool,
        /// Past this the daemon stops unclean and exits with 1.
        timeout_ms: Option<u64>,
        /// Take the block device away from whoever uses it; without, that is a reason to refuse.
        #[serde(default)]
        force: bool,
    },
    /// Stop cleanly and let another program take over, in the same process and with the same arguments. A block device
    /// stays; its I/O waits meanwhile. Answered before the change.
    Upgrade {
        /// The program; without, what now lies where the daemon's own was started from.
        program: Option<PathBuf>,
    },
    /// Change a setting.
    Set(Setting),
}

/// A request as it is sent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RequestLine {
    /// [`PROTOCOL`].
    pub protocol: u32,
    /// The request.
    #[serde(flatten)]
    pub request: Request,
}

/// What the daemon answers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Response {
    /// State and counters.
    Status(Box<Status>),
    /// The work goes on; at least one per second, another line follows.
    Progress(WorkProgress),
    /// The request is done; with a sentence for people.
    Done {
        /// What was done ("drained 1.2 GiB in 35 s").
        message: String,
    },
    /// The request failed or is refused.
    Error {
        /// What happened.
        message: String,
        /// What the user can do.
        next_step: Option<String>,
    },
}

/// How far a drain, detach or stop is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct WorkProgress {
    /// What is being done now ("writing back", "waiting for clients to close").
    pub doing: String,
    /// Bytes done since the request.
    pub done_bytes: u64,
    /// Bytes in all, as known now; it grows if clients write meanwhile. 0: not known.
    pub total_bytes: u64,
    /// Rate of the last seconds.
    pub bytes_per_s: f64,
    /// Expected time left, in seconds; absent if not known.
    pub eta_s: Option<f64>,
    /// Errors met so far (blocks that could not be written back).
    pub errors: u64,
}

/// A setting that can be changed while the daemon runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "key", content = "value")]
pub enum Setting {
    /// See [`crate::config::WritebackConfig::start_percent`].
    #[serde(rename = "writeback.start_percent")]
    WritebackStartPercent(u8),
    /// See [`crate::config::WritebackConfig::stop_percent`].
    #[serde(rename = "writeback.stop_percent")]
    WritebackStopPercent(u8),
    /// See [`crate::config::WritebackConfig::idle`].
    #[serde(rename = "writeback.idle")]
    WritebackIdle(bool),
    /// See [`crate::config::WritebackConfig::idle_seconds`].
    #[serde(rename = "writeback.idle_seconds")]
    WritebackIdleSeconds(u32),
    /// See [`crate::config::WritebackConfig::read_latency_ms`].
    #[serde(rename = "writeback.read_latency_ms")]
    WritebackReadLatencyMs(u32),
    /// See [`crate::config::WritebackConfig::quiet_percent`].
    #[serde(rename = "writeback.quiet_percent")]
    WritebackQuietPercent(u8),
    /// See [`crate::config::WritebackConfig::quiet_age_minutes`].
    #[serde(rename = "writeback.quiet_age_minutes")]
    WritebackQuietAgeMinutes(u32),
    /// See [`crate::config::WritebackConfig::quiet_window`].
    #[serde(rename = "writeback.quiet_window")]
    WritebackQuietWindow(DayWindow),
}

impl Setting {
    /// Every key.
    pub const KEYS: &'static [&'static str] = &[
        "writeback.start_percent",
        "writeback.stop_percent",
        "writeback.idle",
        "writeback.idle_seconds",
        "writeback.read_latency_ms",
        "writeback.quiet_percent",
        "writeback.quiet_age_minutes",
        "writeback.quiet_window",
    ];

    /// The settings with this one changed, if they fit together.
    pub fn apply(self, mut config: WritebackConfig) -> Result<WritebackConfig, String> {
        match self {
            Setting::WritebackStartPercent(value) => config.start_percent = value,
            Setting::WritebackStopPercent(value) => config.stop_percent = value,
            Setting::WritebackIdle(value) => config.idle = value,
            Setting::WritebackIdleSeconds(value) => config.idle_seconds = value,
            Setting::WritebackReadLatencyMs(value) => config.read_latency_ms = value,
            Setting::WritebackQuietPercent(value) => config.quiet_percent = value,
            Setting::WritebackQuietAgeMinutes(value) => config.quiet_age_minutes = value,
            Setting::WritebackQuietWindow(value) => config.quiet_window = value,
        }
        config.check()?;
        Ok(config)
    }
}

impl FromStr for Setting {
    type Err = String;
    fn from_str(text: &str) -> Result<Setting, String> {
        let (key, value) = text.split_once('=').ok_or("use KEY=VALUE")?;
        let (key, value) = (key.trim(), value.trim());
        let share = || match value.trim_end_matches('%').trim_end().parse::<u8>() {
            Ok(share @ 0..=100) => Ok(share),
            _ => Err(format!("{key}: {value:?} is no share from 0 to 100")),
        };
        let number = || value.parse::<u32>().map_err(|_| format!("{key}: {value:?} is no whole number"));
        match key {
            "writeback.start_percent" => share().map(Setting::WritebackStartPercent),
            "writeback.stop_percent" => share().map(Setting::WritebackStopPercent),
            "writeback.idle" => match value {
                "true" | "yes" | "on" => Ok(Setting::WritebackIdle(true)),
                "false" | "no" | "off" => Ok(Setting::WritebackIdle(false)),
                _ => Err(format!("{key}: {value:?} is neither true nor false")),
            },
            "writeback.idle_seconds" => number().map(Setting::WritebackIdleSeconds),
            "writeback.read_latency_ms" => number().map(Setting::WritebackReadLatencyMs),
            "writeback.quiet_percent" => share().map(Setting::WritebackQuietPercent),
            "writeback.quiet_age_minutes" => number().map(Setting::WritebackQuietAgeMinutes),
            "writeback.quiet_window" => value.parse().map(Setting::WritebackQuietWindow),
            _ => Err(match nearest(key, Setting::KEYS) {
                Some(near) => format!("unknown key {key:?}: did you mean {near}?"),
                None => format!("unknown key {key:?}: the keys are {}", Setting::KEYS.join(", ")),
            }),
        }
    }
}

impl fmt::Display for Setting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Setting::WritebackStartPercent(v) => write!(f, "writeback.start_percent={v}"),
            Setting::WritebackStopPercent(v) => write!(f, "writeback.stop_percent={v}"),
            Setting::WritebackIdle(v) => write!(f, "writeback.idle={v}"),
            Setting::WritebackIdleSeconds(v) => write!(f, "writeback.idle_seconds={v}"),
            Setting::WritebackReadLatencyMs(v) => write!(f, "writeback.read_latency_ms={v}"),
            Setting::WritebackQuietPercent(v) => write!(f, "writeback.quiet_percent={v}"),
            Setting::WritebackQuietAgeMinutes(v) => write!(f, "writeback.quiet_age_minutes={v}"),
            Setting::WritebackQuietWindow(v) => write!(f, "writeback.quiet_window={v}"),
        }
    }
}

/// Reads a request as the daemon gets it. The error is the response that refuses it.
pub fn parse_request(line: &str) -> Result<Request, Response> {
    /// Enough of a request of any version to know whose it is.
    #[derive(Deserialize)]
    struct AnyVersion {
        protocol: u32,
    }
    let refuse = |message: String, step: &str| Response::Error { message, next_step: Some(step.into()) };
    let version: AnyVersion = serde_json::from_str(line)
        .map_err(|e| refuse(format!("not a request: {e}"), "send a line of JSON with protocol and op"))?;
    if version.protocol != PROTOCOL {
        let message = format!("this daemon speaks control protocol {PROTOCOL}, the client {}", version.protocol);
        return Err(refuse(message, "use the wb-daemon of the same version, or restart the daemon"));
    }
    serde_json::from_str::<RequestLine>(line)
        .map(|line| line.request)
        .map_err(|e| refuse(format!("not a request: {e}"), "use the wb-daemon of the same version"))
}

/// A message as the line that is sent, newline included.
pub fn to_line<T: Serialize>(message: &T) -> Vec<u8> {
    // These types have no maps with odd keys and no failing Serialize: encoding them cannot fail.
    let mut line = serde_json::to_vec(message).expect("control messages can be encoded");
    line.push(b'\n');
    line
}

/// A client's connection to a daemon. Blocking.
pub struct Client {
    stream: BufReader<UnixStream>,
    path: String,
}

/// The answer that ends a request.
#[derive(Debug, Clone, PartialEq)]
pub enum Reply {
    /// Answer to [`Request::Status`].
    Status(Box<Status>),
    /// The work is done; a sentence for people.
    Done(String),
}

impl Client {
    /// How long a daemon may be silent before it counts as stuck. While it works it sends progress every second.
    pub const SILENCE_MAX: Duration = Duration::from_secs(60);

    /// Connects to the daemon's control socket.
    pub fn connect(path: &Path) -> anyhow::Result<Client> {
        let stream = UnixStream::connect(path).map_err(|e| unreachable_daemon(path, e))?;
        stream.set_read_timeout(Some(Client::SILENCE_MAX))?;
        stream.set_write_timeout(Some(Client::SILENCE_MAX))?;
        Ok(Client { stream: BufReader::new(stream), path: path.display().to_string() })
    }

    /// Sends `request` and waits for its end; `progress` sees how it goes. A refusal by the daemon is an error with
    /// the daemon's message and next step.
    pub fn call(&mut self, request: &Request, mut progress: impl FnMut(&WorkProgress)) -> anyhow::Result<Reply> {
        let line = to_line(&RequestLine { protocol: PROTOCOL, request: request.clone() });
        self.stream.get_mut().write_all(&line).with_context(|| format!("cannot write to {}", self.path))?;
        loop {
            match self.read_response()? {
                Response::Progress(p) => progress(&p),
                Response::Status(status) => return Ok(Reply::Status(status)),
                Response::Done { message } => return Ok(Reply::Done(message)),
                Response::Error { message, next_step: None } => bail!("{message}"),
                Response::Error { message, next_step: Some(step) } => {
                    return Err(anyhow::anyhow!("{message}")).next_step(step);
                }
            }
        }
    }

    fn read_response(&mut self) -> anyhow::Result<Response> {
        let mut line = Vec::new();
        let limit = LINE_BYTES_MAX as u64;
        match (&mut self.stream).take(limit).read_until(b'\n', &mut line) {
            Ok(_) if line.ends_with(b"\n") => {}
            Ok(n) if n == LINE_BYTES_MAX => bail!("the answer on {} is not a control answer", self.path),
            Ok(_) => {
                return Err(anyhow::anyhow!("the daemon at {} ended before it answered", self.path))
                    .next_step("see its log (journalctl), then start it again: it recovers by itself");
            }
            Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                return Err(anyhow::anyhow!("the daemon at {} gave no sign for a minute", self.path))
                    .next_step("see its log (journalctl); it may wait for a device");
            }
            Err(e) => return Err(e).with_context(|| format!("cannot read from {}", self.path)),
        }
        serde_json::from_slice(&line)
            .with_context(|| format!("the answer on {} cannot be understood", self.path))
            .next_step("use the wb-daemon of the same version as the running one")
    }
}

fn unreachable_daemon(path: &Path, err: io::Error) -> anyhow::Error {
    let step = match err.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
            "is it running? start it with `wb-daemon run`, or name its socket with --control PATH"
        }
        io::ErrorKind::PermissionDenied => {
            "the socket is for its owner alone: run this as the daemon's user or as root"
        }
        _ => "name its socket with --control PATH",
    };
    Err::<(), _>(err)
        .with_context(|| format!("no daemon answers at {}", path.display()))
        .next_step(step)
        .expect_err("made from an error")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::describe;
    use std::os::unix::net::UnixListener;

    /// A daemon that answers each line with the next of `answers` and returns the lines it got.
    fn daemon(answers: Vec<Vec<u8>>) -> (tempfile::TempDir, std::path::PathBuf, std::thread::JoinHandle<Vec<String>>) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let server = std::thread::spawn(move || {
            let (stream, _) = listener.accept().unwrap();
            let mut reader = BufReader::new(stream);
            let mut got = Vec::new();
            for answer in answers {
                let mut line = String::new();
                reader.read_line(&mut line).unwrap();
                got.push(line);
                reader.get_mut().write_all(&answer).unwrap();
            }
            got
        });
        (dir, path, server)
    }

    fn progress(done_bytes: u64) -> Response {
        Response::Progress(WorkProgress {
            doing: "writing back".into(),
            done_bytes,
            total_bytes: 10,
            bytes_per_s: 1.0,
            eta_s: None,
            errors: 0,
        })
    }

    #[test]
    fn progress_comes_before_the_answer() {
        let mut answer = to_line(&progress(3));
        answer.extend(to_line(&progress(7)));
        answer.extend(to_line(&Response::Done { message: "drained".into() }));
        let (_dir, path, server) = daemon(vec![answer]);
        let mut seen = Vec::new();
        let mut client = Client::connect(&path).unwrap();
        let reply = client.call(&Request::Drain { wait: true }, |p| seen.push(p.done_bytes)).unwrap();
        assert_eq!((reply, seen), (Reply::Done("drained".into()), vec![3, 7]));
        let got = server.join().unwrap();
        assert_eq!(got[0], "{\"protocol\":1,\"op\":\"drain\",\"wait\":true}\n");
        assert_eq!(parse_request(&got[0]), Ok(Request::Drain { wait: true }));
    }

    #[test]
    fn a_refusal_carries_its_next_step_and_the_connection_lives_on() {
        let refusal = Response::Error { message: "clients are connected".into(), next_step: Some("close them".into()) };
        let done = Response::Done { message: "ok".into() };
        let (_dir, path, server) = daemon(vec![to_line(&refusal), to_line(&done)]);
        let mut client = Client::connect(&path).unwrap();
        let err = client.call(&Request::Detach { wait: true }, |_| ()).unwrap_err();
        assert_eq!(describe(&err), "clients are connected: close them");
        client.call(&Request::Set("writeback.stop_percent=5".parse().unwrap()), |_| ()).unwrap();
        let got = server.join().unwrap();
        assert_eq!(parse_request(&got[1]), Ok(Request::Set(Setting::WritebackStopPercent(5))));
    }

    #[test]
    fn a_daemon_that_ends_or_talks_nonsense_is_named() {
        for (answer, part) in [(b"".to_vec(), "ended before"), (b"{}\n".to_vec(), "cannot be understood")] {
            let (_dir, path, server) = daemon(vec![answer]);
            let err = Client::connect(&path).unwrap().call(&Request::Status, |_| ()).unwrap_err();
            assert!(describe(&err).contains(part), "{}", describe(&err));
            server.join().unwrap();
        }
        let err = Client::connect(Path::new("/nonexistent/x.sock")).err().unwrap();
        assert!(describe(&err).contains("/nonexistent/x.sock") && describe(&err).contains("wb-daemon run"));
    }

    #[test]
    fn requests_of_another_version_and_nonsense_are_refused() {
        for (line, part) in [
            ("{\"protocol\":2,\"op\":\"what\"}", "protocol 1"),
            ("{\"protocol\":1,\"op\":\"what\"}", "not a request"),
            ("hello", "not a request"),
            ("{\"protocol\":1,\"op\":\"set\",\"key\":\"x\",\"value\":1}", "not a request"),
        ] {
            match parse_request(line) {
                Err(Response::Error { message, next_step: Some(_) }) => assert!(message.contains(part), "{message}"),
                other => panic!("{line}: {other:?}"),
            }
        }
    }

    #[test]
    fn settings_are_checked_before_they_are_sent() {
        assert_eq!("writeback.start_percent=50%".parse(), Ok(Setting::WritebackStartPercent(50)));
        for text in ["writeback.idle=false", "writeback.quiet_window=22:30-04:00", "writeback.quiet_window="] {
            assert_eq!(text.parse::<Setting>().unwrap().to_string(), text);
        }
        let crossed = "writeback.stop_percent=50".parse::<Setting>().unwrap().apply(WritebackConfig::default());
        assert!(crossed.unwrap_err().contains("stop not above start"));
        for (text, part) in [
            ("writeback.start_percent", "KEY=VALUE"),
            ("writeback.start_precent=5", "did you mean writeback.start_percent?"),
            ("colour=5", "the keys are"),
            ("writeback.stop_percent=101", "0 to 100"),
            ("writeback.idle=perhaps", "neither"),
            ("writeback.quiet_window=2-4", "no times of a day"),
        ] {
            assert!(text.parse::<Setting>().unwrap_err().contains(part), "{text}");
        }
    }
}
