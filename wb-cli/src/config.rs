//! The config file: one `[[cache]]` section per cache. `docs/writeboost.toml.example` documents every key; a test
//! holds it against this file.

use crate::config_error;
use crate::error::{NextStep, UsageError};
use crate::paths;
use crate::units::{ByteSize, TypedDuration};
use serde::{Deserialize, Deserializer, Serialize, de};
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use wb_core::engine::{EngineConfig, Quiet, WritebackPolicy};

/// The whole file.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The caches, in the file's order; names and devices are unique.
    #[serde(default, rename = "cache")]
    pub caches: Vec<CacheConfig>,
}

/// One `[[cache]]` section.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CacheConfig {
    /// The cache's name: names sockets and the NBD export. Default: file name of the backing device.
    #[serde(default, deserialize_with = "name")]
    pub name: String,
    /// The cache device or file.
    pub device: PathBuf,
    /// The backing device or file.
    pub backing: PathBuf,
    /// Name of the NBD export; the empty name always reaches it, too. Default: `name`.
    #[serde(default)]
    pub export: Option<String>,
    /// Where NBD listens. Default, unless `ublk` is set: a Unix socket NAME.nbd in the run directory.
    #[serde(default)]
    pub nbd: Option<Vec<ListenAddr>>,
    /// Offer a block device /dev/ublkbN: true (any number), or the number.
    #[serde(default)]
    pub ublk: Ublk,
    /// Path of the control socket. Default: NAME.sock in the run directory.
    #[serde(default)]
    pub control: Option<PathBuf>,
    /// Refuse writes of clients.
    #[serde(default)]
    pub read_only: bool,
    /// Verify the checksum of every block read from the cache device; costs 4 bytes of RAM per cached block.
    #[serde(default = "yes")]
    pub verify_reads: bool,
    /// Reactor threads. Default: one.
    #[serde(default = "one")]
    pub threads: u16,
    /// Upper limit for all memory the daemon reserves at start. Default: what it needs.
    #[serde(default)]
    pub memory: Option<ByteSize>,
    /// How long a clean stop may take before the daemon stops unclean and exits with 1. Default: no limit.
    #[serde(default)]
    pub stop_timeout: Option<TypedDuration>,
    /// Directory of the RAM tail, on a tmpfs. Default: /dev/shm/writeboost.
    #[serde(default)]
    pub tail_dir: Option<PathBuf>,
    /// When and how dirty data goes back.
    #[serde(default)]
    pub writeback: WritebackConfig,
}

/// `[cache.writeback]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct WritebackConfig {
    /// Write-back begins when this share of the cache, in percent, is dirty.
    pub start_percent: u8,
    /// ... and goes on until no more than this share is dirty.
    pub stop_percent: u8,
    /// Below the start watermark, write back gently: above the stop watermark at once, below it after `idle_seconds`.
    pub idle: bool,
    /// So long nobody has asked anything of the volume.
    pub idle_seconds: u32,
    /// 99th percentile of read misses that gentle write-back keeps to, in ms; 0: twice what it is without.
    pub read_latency_ms: u32,
    /// Not 0: instead of the watermarks hold dirty data until this share of the cache is dirty, then write all of it.
    pub quiet_percent: u8,
    /// With `quiet_percent`: hold it no longer than so many minutes; 0: without limit.
    pub quiet_age_minutes: u32,
    /// With `quiet_percent`: write everything back once a day between these times, UTC.
    pub quiet_window: DayWindow,
    /// RAM for the data on its way from the cache to the backing device, twice.
    pub window: ByteSize,
    /// RAM for the list of the blocks of one sweep over the device, or a part of it.
    pub memory: ByteSize,
    /// When space is short, the oldest part of the log is logged anew if less than this share of it, in percent, is still
    /// to be written back; 0: never.
    pub compact_percent: u8,
}

impl Default for WritebackConfig {
    fn default() -> WritebackConfig {
        // The engine's own, so that there is one truth.
        let engine = EngineConfig::default();
        let share = |percent: u32| u8::try_from(percent).expect("a share of 100");
        WritebackConfig {
            start_percent: share(engine.policy.start_percent),
            stop_percent: share(engine.policy.stop_percent),
            idle: engine.policy.idle_after_ns.is_some(),
            idle_seconds: engine.policy.idle_after_ns.map_or(0, |ns| (ns / 1_000_000_000) as u32),
            read_latency_ms: 0,
            quiet_percent: 0,
            quiet_age_minutes: 0,
            quiet_window: DayWindow::default(),
            window: ByteSize(engine.window_bytes as u64),
            memory: ByteSize(engine.writeback_bytes as u64),
            compact_percent: share(engine.compact_percent),
        }
    }
}

impl WritebackConfig {
    /// Checks that the watermarks are shares and in order, and the window holds at least a record.
    pub fn check(&self) -> Result<(), String> {
        if self.start_percent > 100 || self.stop_percent > self.start_percent {
            return Err(format!(
                "writeback: stop_percent = {} and start_percent = {}: they must be shares of 100, stop not above start",
                self.stop_percent, self.start_percent
            ));
        }
        if self.window.0 < 1 << 20 {
            return Err(format!("writeback: window = {}: at least 1 MiB is needed", self.window));
        }
        if self.quiet_percent > 90 {
            return Err(format!("writeback: quiet_percent = {}: 90 at most", self.quiet_percent));
        }
        if self.compact_percent > 90 {
            return Err(format!("writeback: compact_percent = {}: 90 at most", self.compact_percent));
        }
        Ok(())
    }
}

impl WritebackConfig {
    /// As the engine wants it.
    pub fn policy(&self) -> WritebackPolicy {
        let some = |value: u32, unit_ns: u64| (value > 0).then(|| u64::from(value) * unit_ns);
        WritebackPolicy {
            start_percent: self.start_percent.into(),
            stop_percent: self.stop_percent.into(),
            idle_after_ns: self.idle.then(|| u64::from(self.idle_seconds) * 1_000_000_000),
            read_latency_ns: some(self.read_latency_ms, 1_000_000),
            quiet: (self.quiet_percent > 0).then(|| Quiet {
                percent: self.quiet_percent.into(),
                age_ns: some(self.quiet_age_minutes, 60_000_000_000),
                window: self.quiet_window.0,
            }),
        }
    }
}

/// Times of a day, as `02:00-04:30`; empty: none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct DayWindow(pub Option<(u32, u32)>);

impl FromStr for DayWindow {
    type Err = String;
    fn from_str(text: &str) -> Result<DayWindow, String> {
        if text.is_empty() {
            return Ok(DayWindow(None));
        }
        let minutes = |time: &str| {
            let (hours, minutes) = time.trim().split_once(':')?;
            let (hours, minutes): (u32, u32) = (hours.parse().ok()?, minutes.parse().ok()?);
            (hours < 24 && minutes < 60).then_some(hours * 60 + minutes)
        };
        let times = text.split_once('-').and_then(|(from, to)| Some((minutes(from)?, minutes(to)?)));
        match times {
            Some((from, to)) if from != to => Ok(DayWindow(Some((from, to)))),
            _ => Err(format!("{text:?} are no times of a day, as 02:00-04:30")),
        }
    }
}

impl fmt::Display for DayWindow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some((from, to)) = self.0 else { return Ok(()) };
        write!(f, "{:02}:{:02}-{:02}:{:02}", from / 60, from % 60, to / 60, to % 60)
    }
}

impl Serialize for DayWindow {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for DayWindow {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<DayWindow, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

fn yes() -> bool {
    true
}

fn one() -> u16 {
    1
}

fn name<'de, D: Deserializer<'de>>(d: D) -> Result<String, D::Error> {
    let name = String::deserialize(d)?;
    paths::check_name(&name).map_err(de::Error::custom)?;
    Ok(name)
}

/// Whether to offer a ublk block device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Ublk {
    /// No.
    #[default]
    Off,
    /// With any free number.
    Any,
    /// /dev/ublkbN with this N.
    Id(u32),
}

impl<'de> Deserialize<'de> for Ublk {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Ublk, D::Error> {
        struct UblkVisitor;
        impl de::Visitor<'_> for UblkVisitor {
            type Value = Ublk;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("true, false, or the number N of /dev/ublkbN")
            }
            fn visit_bool<E: de::Error>(self, on: bool) -> Result<Ublk, E> {
                Ok(if on { Ublk::Any } else { Ublk::Off })
            }
            fn visit_i64<E: de::Error>(self, id: i64) -> Result<Ublk, E> {
                u32::try_from(id).map(Ublk::Id).map_err(|_| E::custom("the number of /dev/ublkbN is not in range"))
            }
        }
        d.deserialize_any(UblkVisitor)
    }
}

/// Where NBD listens: `unix:PATH` or `HOST:PORT` (`[::1]:10809` for IPv6).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ListenAddr {
    /// A Unix socket, owner-only.
    Unix(PathBuf),
    /// TCP, on exactly this address.
    Tcp {
        /// Host name or address, without brackets.
        host: String,
        /// Port.
        port: u16,
    },
}

impl FromStr for ListenAddr {
    type Err = String;
    fn from_str(text: &str) -> Result<ListenAddr, String> {
        let wrong = || format!("{text:?} is no address: use unix:PATH or HOST:PORT (IPv6: [::1]:10809)");
        if let Some(path) = text.strip_prefix("unix:") {
            return if path.is_empty() { Err(wrong()) } else { Ok(ListenAddr::Unix(path.into())) };
        }
        let (host, port) = text.rsplit_once(':').ok_or_else(wrong)?;
        let port = port.parse().map_err(|_| wrong())?;
        let host = match host.strip_prefix('[') {
            Some(rest) => rest.strip_suffix(']').ok_or_else(wrong)?,
            None if host.contains(':') => return Err(wrong()),
            None => host,
        };
        if host.is_empty() || host.contains('/') {
            return Err(wrong());
        }
        Ok(ListenAddr::Tcp { host: host.to_string(), port })
    }
}

impl fmt::Display for ListenAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ListenAddr::Unix(path) => write!(f, "unix:{}", path.display()),
            ListenAddr::Tcp { host, port } if host.contains(':') => write!(f, "[{host}]:{port}"),
            ListenAddr::Tcp { host, port } => write!(f, "{host}:{port}"),
        }
    }
}

impl<'de> Deserialize<'de> for ListenAddr {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<ListenAddr, D::Error> {
        String::deserialize(d)?.parse().map_err(de::Error::custom)
    }
}

impl Config {
    /// Reads and checks the file. Errors are usage errors that name the file and, where there is one, the line.
    pub fn load(path: &Path) -> anyhow::Result<Config> {
        let text = std::fs::read_to_string(path)
            .map_err(|e| UsageError::raise(format!("cannot read the config file {}: {e}", path.display())))
            .next_step("name another with --config FILE, or correct WB_CONFIG")?;
        Config::parse(&text).map_err(|e| UsageError::raise(format!("{}:{e}", path.display())))
    }

    /// Parses and checks the text of a config file. The error begins with its line number.
    pub fn parse(text: &str) -> Result<Config, String> {
        let mut config: Config = toml::from_str(text).map_err(|e| config_error::describe(text, &e))?;
        for cache in &mut config.caches {
            if cache.name.is_empty() {
                cache.name = paths::name_for(&cache.backing);
            }
        }
        config.check().map_err(|(section, e)| format!("{}: {e}", config_error::line_of_section(text, section)))?;
        Ok(config)
    }

    /// What single keys cannot show. The error comes with the index of its section.
    fn check(&self) -> Result<(), (usize, String)> {
        for (at, cache) in self.caches.iter().enumerate() {
            cache.check().map_err(|e| (at, e))?;
            for earlier in &self.caches[..at] {
                if earlier.name == cache.name {
                    return Err((at, format!("two caches are named {:?}: give each a name of its own", cache.name)));
                }
                if earlier.device == cache.device {
                    return Err((at, format!("{} is the device of two caches", cache.device.display())));
                }
                if earlier.backing == cache.backing {
                    return Err((at, format!("{} is the backing device of two caches", cache.backing.display())));
                }
            }
        }
        Ok(())
    }
}

impl CacheConfig {
    /// A section that holds only what must be named.
    pub fn new(name: String, device: PathBuf, backing: PathBuf) -> CacheConfig {
        CacheConfig {
            name,
            device,
            backing,
            export: None,
            nbd: None,
            ublk: Ublk::Off,
            control: None,
            read_only: false,
            verify_reads: true,
            threads: one(),
            memory: None,
            stop_timeout: None,
            tail_dir: None,
            writeback: WritebackConfig::default(),
        }
    }

    /// Checks what single keys cannot show.
    pub fn check(&self) -> Result<(), String> {
        if self.device == self.backing {
            return Err(format!("{} is both device and backing: a cache needs two", self.device.display()));
        }
        if self.device.as_os_str().is_empty() || self.backing.as_os_str().is_empty() {
            return Err("device and backing cannot be empty".into());
        }
        if !(1..=64).contains(&self.threads) {
            return Err(format!("threads = {}: use 1 to 64", self.threads));
        }
        self.writeback.check()
    }

    /// The NBD export's name.
    pub fn export_name(&self) -> &str {
        self.export.as_deref().unwrap_or(&self.name)
    }

    /// Where NBD listens: what is set; else a Unix socket in the run directory, unless ublk is on.
    pub fn nbd_addresses(&self) -> Vec<ListenAddr> {
        match (&self.nbd, self.ublk) {
            (Some(addresses), _) => addresses.clone(),
            (None, Ublk::Off) => vec![ListenAddr::Unix(paths::nbd_socket(&self.name))],
            (None, _) => Vec::new(),
        }
    }

    /// Directory of the RAM tail.
    pub fn tail_dir(&self) -> PathBuf {
        self.tail_dir.clone().unwrap_or_else(paths::tail_dir)
    }

    /// Path of the control socket.
    pub fn control_path(&self) -> PathBuf {
        self.control.clone().unwrap_or_else(|| paths::control_socket(&self.name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TWO_LINES: &str = "[[cache]]\ndevice = \"/dev/a\"\n";

    #[test]
    fn the_example_is_valid_and_names_every_key() {
        let text = include_str!("../../docs/writeboost.toml.example");
        let live = Config::parse(text).unwrap();
        assert_eq!(live.caches.len(), 1, "one live section, the rest commented out");
        // Uncommented it must be valid, too: `#key = value` is a default or a choice, `# text` is prose.
        let full: String = text
            .lines()
            .map(|line| match line.strip_prefix('#') {
                Some(rest) if rest.starts_with(|c: char| c.is_ascii_lowercase() || c == '[') => rest,
                _ => line,
            })
            .map(|line| format!("{line}\n"))
            .collect();
        Config::parse(&full).unwrap_or_else(|e| panic!("example, uncommented, line {e}"));
        for key in [
            "name",
            "device",
            "backing",
            "export",
            "nbd",
            "ublk",
            "control",
            "read_only",
            "verify_reads",
            "threads",
            "memory",
            "stop_timeout",
            "tail_dir",
            "start_percent",
            "stop_percent",
            "window",
        ] {
            assert!(full.lines().any(|l| l.starts_with(&format!("{key} = "))), "{key} is not in the example");
        }
    }

    #[test]
    fn the_example_shows_the_defaults() {
        let text = include_str!("../../docs/writeboost.toml.example");
        let d = WritebackConfig::default();
        for line in [
            format!("#start_percent = {}", d.start_percent),
            format!("#stop_percent = {}", d.stop_percent),
            "#window = \"64MiB\"".to_string(),
            "#memory = \"64MiB\"".to_string(),
            format!("#compact_percent = {}", d.compact_percent),
            format!("#idle = {}", d.idle),
            format!("#idle_seconds = {}", d.idle_seconds),
            format!("#read_latency_ms = {}", d.read_latency_ms),
            format!("#quiet_percent = {}", d.quiet_percent),
            format!("#quiet_age_minutes = {}", d.quiet_age_minutes),
            format!("#quiet_window = {:?}", d.quiet_window.to_string()),
            "#threads = 1".to_string(),
            "#verify_reads = true".to_string(),
            "#read_only = false".to_string(),
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is not in the example");
        }
        assert_eq!(d.window, ByteSize(64 << 20));
    }

    #[test]
    fn a_misspelt_key_names_its_line_and_the_nearest_key() {
        let err = Config::parse("# caches\n[[cache]]\ndevcie = \"/dev/a\"\nbacking = \"/dev/b\"\n").unwrap_err();
        assert!(err.starts_with("3: "), "{err}");
        assert!(err.contains("`devcie`") && err.contains("did you mean `device`?"), "{err}");
        let err =
            Config::parse(&format!("{TWO_LINES}backing = \"/b\"\n[cache.writeback]\nstart_precent = 5\n")).unwrap_err();
        assert!(err.starts_with("5: ") && err.contains("did you mean `start_percent`?"), "{err}");
        let err = Config::parse("[cach]\n").unwrap_err();
        assert!(err.starts_with("1: ") && err.contains("did you mean `cache`?"), "{err}");
    }

    #[test]
    fn a_missing_or_wrong_value_names_its_line() {
        for (text, line, part) in [
            ("[[cache]]\nbacking = \"/b\"\n", 1, "`device`"),
            ("[[cache]]\ndevice = 5\nbacking = \"/b\"\n", 2, "string"),
            ("[[cache]]\ndevice = \"/a\"\nbacking = \"/b\"\nmemory = \"5 parsecs\"\n", 4, "unknown unit"),
            ("[[cache]]\ndevice = \"/a\"\nbacking = \"/b\"\nnbd = [\"nowhere\"]\n", 4, "HOST:PORT"),
            ("[[cache]]\ndevice = \"/a\"\nbacking = \"/a\"\n", 1, "both device and backing"),
            (
                "[[cache]]\ndevice = \"/a\"\nbacking = \"/b\"\n[[cache]]\ndevice = \"/c\"\nbacking = \"/x/b\"\n",
                4,
                "two caches are named",
            ),
            ("[[cache]]\ndevice = \"/a\"\nbacking = \"/b\"\nname = \"../x\"\n", 4, "is no name"),
            (
                "[[cache]]\ndevice = \"/a\"\nbacking = \"/b\"\nwriteback = { start_percent = 5 }\n",
                1,
                "stop not above start",
            ),
            ("[[cache]]\ndevice = \"/a\n", 2, ""),
        ] {
            let err = Config::parse(text).unwrap_err();
            assert!(err.starts_with(&format!("{line}: ")) && err.contains(part), "{text}\n{err}");
            assert!(!err.contains('\n'), "one line: {err}");
        }
    }

    #[test]
    fn defaults_follow_from_the_name() {
        let config = Config::parse("[[cache]]\ndevice = \"/dev/a\"\nbacking = \"/dev/b\"\n").unwrap();
        let cache = &config.caches[0];
        assert_eq!((cache.name.as_str(), cache.export_name()), ("b", "b"));
        assert!(cache.control_path().ends_with("writeboost/b.sock"));
        assert!(matches!(&cache.nbd_addresses()[..], [ListenAddr::Unix(p)] if p.ends_with("writeboost/b.nbd")));
        assert_eq!(*cache, CacheConfig::new("b".into(), "/dev/a".into(), "/dev/b".into()));
    }

    #[test]
    fn ublk_and_addresses_are_read_in_each_form() {
        for (value, ublk) in [("true", Ublk::Any), ("false", Ublk::Off), ("3", Ublk::Id(3))] {
            let text = format!("{TWO_LINES}backing = \"/b\"\nublk = {value}\n");
            assert_eq!(Config::parse(&text).unwrap().caches[0].ublk, ublk);
        }
        for text in ["unix:/run/x", "127.0.0.1:10809", "[::1]:10809", "localhost:1"] {
            assert_eq!(text.parse::<ListenAddr>().unwrap().to_string(), text);
        }
        for text in ["", "unix:", "::1:5", ":5", "host", "host:port", "/run/x:5", "host:70000"] {
            assert!(text.parse::<ListenAddr>().is_err(), "{text}");
        }
    }
}
