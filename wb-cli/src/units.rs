//! Sizes and durations: what people type, and how they are shown.
//!
//! Typed: bytes, or a number with a unit. `K M G T P E` and `KiB ... EiB` are powers of 1024, `kB ... EB` powers of
//! 1000 (as coreutils have it); upper and lower case are the same. Shown: sizes in powers of 1024 with their unit spelt
//! out (`512 MiB`), rates in powers of 1000 (`1.2 GB/s`), as disks and fio state them.

use serde::de::{self, Deserializer, Visitor};
use serde::{Deserialize, Serialize, Serializer};
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// A number of bytes that was typed with or without unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct ByteSize(pub u64);

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&size(self.0))
    }
}

impl FromStr for ByteSize {
    type Err = String;
    fn from_str(text: &str) -> Result<ByteSize, String> {
        let (number, unit) = split_number(text)?;
        let factor = size_unit(unit).ok_or_else(|| {
            format!("unknown unit {unit:?} (use bytes, or K, M, G, T, KiB, MiB, GiB, TiB, kB, MB, GB, TB)")
        })?;
        scale(number, factor).map(ByteSize)
    }
}

/// Splits `1.5 GiB` into its number and unit.
fn split_number(text: &str) -> Result<(&str, &str), String> {
    let text = text.trim();
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    if end == 0 {
        return Err("a number is missing".into());
    }
    Ok((&text[..end], text[end..].trim_start()))
}

/// Bytes per unit.
fn size_unit(unit: &str) -> Option<u64> {
    let unit = unit.to_ascii_lowercase();
    if unit.is_empty() || unit == "b" {
        return Some(1);
    }
    let power = "kmgtpe".find(unit.chars().next()?)? as u32 + 1;
    match &unit[1..] {
        "" | "ib" | "i" => Some(1024u64.pow(power)),
        "b" => Some(1000u64.pow(power)),
        _ => None,
    }
}

/// `number` (digits with at most one point) times `factor`, exact.
fn scale(number: &str, factor: u64) -> Result<u64, String> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if fraction.contains('.') || (whole.is_empty() && fraction.is_empty()) {
        return Err(format!("{number:?} is not a number"));
    }
    if fraction.len() > 18 {
        return Err("too many digits after the point".into());
    }
    let digits = |d: &str| if d.is_empty() { Ok(0u64) } else { d.parse::<u64>().map_err(|_| "too large".to_string()) };
    let whole = u128::from(digits(whole)?) * u128::from(factor);
    let tens = 10u128.pow(fraction.len() as u32);
    let part = u128::from(digits(fraction)?) * u128::from(factor);
    if part % tens != 0 {
        return Err("not a whole number of the smallest unit".into());
    }
    u64::try_from(whole + part / tens).map_err(|_| "too large".to_string())
}

impl<'de> Deserialize<'de> for ByteSize {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<ByteSize, D::Error> {
        struct SizeVisitor;
        impl Visitor<'_> for SizeVisitor {
            type Value = ByteSize;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a size: bytes, or a text like \"512MiB\" or \"2G\"")
            }
            fn visit_i64<E: de::Error>(self, v: i64) -> Result<ByteSize, E> {
                u64::try_from(v).map(ByteSize).map_err(|_| E::custom("a size cannot be negative"))
            }
            fn visit_u64<E: de::Error>(self, v: u64) -> Result<ByteSize, E> {
                Ok(ByteSize(v))
            }
            fn visit_str<E: de::Error>(self, v: &str) -> Result<ByteSize, E> {
                v.parse().map_err(|e| E::custom(format!("size {v:?}: {e}")))
            }
        }
        d.deserialize_any(SizeVisitor)
    }
}

impl Serialize for ByteSize {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_u64(self.0)
    }
}

/// A duration that was typed with its unit: `250ms`, `90s`, `5min`, `2h`, `1d`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct TypedDuration(pub Duration);

impl FromStr for TypedDuration {
    type Err = String;
    fn from_str(text: &str) -> Result<TypedDuration, String> {
        let (number, unit) = split_number(text)?;
        let factor: u64 = match unit {
            "us" => 1_000,
            "ms" => 1_000_000,
            "s" => 1_000_000_000,
            "m" | "min" => 60_000_000_000,
            "h" => 3_600_000_000_000,
            "d" => 86_400_000_000_000,
            "" => return Err("the unit is missing (use us, ms, s, min, h or d)".into()),
            _ => return Err(format!("unknown unit {unit:?} (use us, ms, s, min, h or d)")),
        };
        scale(number, factor).map(|ns| TypedDuration(Duration::from_nanos(ns)))
    }
}

impl fmt::Display for TypedDuration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&duration(self.0))
    }
}

impl<'de> Deserialize<'de> for TypedDuration {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<TypedDuration, D::Error> {
        let text = String::deserialize(d)?;
        text.parse().map_err(|e| de::Error::custom(format!("duration {text:?}: {e}")))
    }
}

/// Three significant digits, no trailing zeroes: 1.2, 12.5, 512.
fn three_digits(value: f64) -> String {
    let decimals = if value >= 99.95 {
        0
    } else if value >= 9.995 {
        1
    } else {
        2
    };
    let text = format!("{value:.decimals$}");
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_string() } else { text }
}

/// `value` in the largest of `units`, `base` apart, that leaves at least 1.
fn with_unit(value: f64, base: f64, units: &[&str]) -> String {
    let mut value = value;
    let mut at = 0;
    // A value that rounds to the next unit is shown in it: 1 MiB, not 1024 KiB.
    while at + 1 < units.len() && value >= base - 0.5 {
        value /= base;
        at += 1;
    }
    format!("{} {}", three_digits(value), units[at])
}

/// A size for people: `0 B`, `512 MiB`, `1.5 TiB`.
pub fn size(bytes: u64) -> String {
    with_unit(bytes as f64, 1024.0, &["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"])
}

/// A size for people with the exact figure behind it: `512 MiB (536870912 bytes)`.
pub fn size_exact(bytes: u64) -> String {
    if bytes < 1024 { format!("{bytes} bytes") } else { format!("{} ({bytes} bytes)", size(bytes)) }
}

/// A rate for people, powers of 1000: `1.2 GB/s`.
pub fn rate(bytes_per_s: f64) -> String {
    with_unit(bytes_per_s.max(0.0), 1000.0, &["B/s", "kB/s", "MB/s", "GB/s", "TB/s"])
}

/// A number of events for people: `950`, `65.2 k`, `1.3 M`.
pub fn count(n: u64) -> String {
    if n < 10_000 {
        return n.to_string();
    }
    with_unit(n as f64, 1000.0, &["", "k", "M", "G", "T"])
}

/// A duration for people: `350 ns`, `1.2 ms`, `8.1 s`, `3 min 20 s`, `2 h 5 min`, `3 d 4 h`.
pub fn duration(d: Duration) -> String {
    let ns = d.as_nanos() as f64;
    let s = d.as_secs();
    if ns < 59.95e9 {
        return with_unit(ns, 1000.0, &["ns", "us", "ms", "s"]);
    }
    let (big, big_unit, small, small_unit) = match s.max(60) {
        s @ 0..3600 => (s / 60, "min", s % 60, "s"),
        s @ 3600..86400 => (s / 3600, "h", s % 3600 / 60, "min"),
        s => (s / 86400, "d", s % 86400 / 3600, "h"),
    };
    if small == 0 { format!("{big} {big_unit}") } else { format!("{big} {big_unit} {small} {small_unit}") }
}

/// A share for people: `0 %`, `12.5 %`, `100 %`; `-` of nothing.
pub fn percent(part: u64, whole: u64) -> String {
    if whole == 0 { "-".into() } else { format!("{} %", three_digits(part as f64 * 100.0 / whole as f64)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_with_both_kinds_of_units() {
        for (text, bytes) in [
            ("0", 0),
            ("4096", 4096),
            ("512MiB", 512 << 20),
            ("2G", 2 << 30),
            ("2g", 2 << 30),
            ("2 GiB", 2 << 30),
            ("2GB", 2_000_000_000),
            ("1.5T", 3 << 39),
            ("10kB", 10_000),
            ("10K", 10_240),
            ("7B", 7),
            ("16EiB", 0),
        ] {
            let parsed = text.parse::<ByteSize>();
            if text == "16EiB" {
                assert_eq!(parsed.unwrap_err(), "too large");
            } else {
                assert_eq!(parsed.unwrap(), ByteSize(bytes), "{text}");
            }
        }
    }

    #[test]
    fn what_is_no_size_is_refused_with_a_reason() {
        for (text, reason) in [
            ("", "missing"),
            ("GiB", "missing"),
            ("-5", "missing"),
            ("5 parsecs", "unknown unit"),
            ("1.2.3M", "not a number"),
            (".", "not a number"),
            ("0.3", "whole"),
            ("5KX", "unknown unit"),
            ("99999999999999999999", "too large"),
            ("1é", "unknown unit"),
        ] {
            let err = text.parse::<ByteSize>().unwrap_err();
            assert!(err.contains(reason), "{text}: {err}");
        }
    }

    #[test]
    fn shown_sizes_are_read_back_within_a_percent() {
        for bytes in [0, 1, 1023, 1024, 4096, 1 << 20, (1 << 20) - 1, 5_000_000, 1 << 40, u64::MAX / 3] {
            let back = size(bytes).parse::<ByteSize>().map(|b| b.0);
            // A shown fraction need not be whole bytes; then its digits are still right, checked below.
            if let Ok(back) = back {
                assert!(back.abs_diff(bytes) as f64 <= bytes as f64 * 0.01, "{bytes} -> {back}");
            }
        }
        assert_eq!(size(512 << 20), "512 MiB");
        assert_eq!(size((1 << 20) - 1), "1 MiB");
        assert_eq!(size(1536 << 30), "1.5 TiB");
        assert_eq!(size_exact(4096), "4 KiB (4096 bytes)");
    }

    #[test]
    fn rates_durations_counts_and_shares() {
        assert_eq!(rate(1.2e9), "1.2 GB/s");
        assert_eq!(rate(0.0), "0 B/s");
        assert_eq!(duration(Duration::from_nanos(350)), "350 ns");
        assert_eq!(duration(Duration::from_micros(1200)), "1.2 ms");
        assert_eq!(duration(Duration::from_millis(59_990)), "1 min");
        assert_eq!(duration(Duration::from_secs(200)), "3 min 20 s");
        assert_eq!(duration(Duration::from_secs(7500)), "2 h 5 min");
        assert_eq!(duration(Duration::from_secs(3 * 86400 + 4 * 3600)), "3 d 4 h");
        assert_eq!(count(65_234), "65.2 k");
        assert_eq!(percent(1, 8), "12.5 %");
        assert_eq!(percent(0, 0), "-");
    }

    #[test]
    fn durations_need_a_unit() {
        assert_eq!("1.5s".parse::<TypedDuration>().unwrap().0, Duration::from_millis(1500));
        assert_eq!("5min".parse::<TypedDuration>().unwrap().0, Duration::from_secs(300));
        assert!("90".parse::<TypedDuration>().unwrap_err().contains("unit is missing"));
    }
}
