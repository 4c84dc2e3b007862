//! Figures as they are shown. Modelled devices run slower than their originals by the workload's dilation; what was
//! measured is shown in the devices' own time: rates times the dilation, times divided by it.

use crate::compare::result::{Comparison, Measurement, Spread, WorkloadInfo};
use crate::compare::systems::{OURS, is_ours, is_raw};

/// A derived figure of one measurement.
pub type Ratio = fn(&Measurement) -> Option<f64>;

/// What the devices had to do per operation of the user: title, and how it is derived.
pub const DEVICE_WORK: [(&str, Ratio); 6] = [
    ("SSD writes / user write", |m| per(m.ssd.writes, m.user_writes)),
    ("SSD bytes / user byte written", |m| per(m.ssd.write_bytes, m.user_write_bytes)),
    ("SSD flushes / user flush or commit", |m| per(m.ssd.flushes, m.user_flushes)),
    ("disk writes / user write", |m| per(m.disk.writes, m.user_writes)),
    ("disk reads / user read", |m| per(m.disk.reads, m.user_reads)),
    ("disk flushes / user flush or commit", |m| per(m.disk.flushes, m.user_flushes)),
];

fn per(part: u64, whole: u64) -> Option<f64> {
    (whole > 0).then(|| part as f64 / whole as f64)
}

/// By how much the devices were slowed down in this workload.
pub fn dilation(result: &Comparison, workload: &WorkloadInfo) -> f64 {
    let dilation = result.setup.dilation * workload.dilation_share;
    if dilation > 0.0 { dilation } else { 1.0 }
}

/// The factor from what was measured to what is shown.
pub fn factor(result: &Comparison, workload: &WorkloadInfo) -> f64 {
    let dilation = dilation(result, workload);
    match workload.unit.as_str() {
        "s" => 1.0 / dilation,
        "MiB/GiB" => 1.0,
        _ => dilation,
    }
}

/// Median and spread as they are shown.
pub fn shown(result: &Comparison, system: &str, workload: &WorkloadInfo) -> Option<Spread> {
    let factor = factor(result, workload);
    let spread = result.spread(system, &workload.name)?;
    Some(Spread { median: spread.median * factor, min: spread.min * factor, max: spread.max * factor, ..spread })
}

/// Further figures of a workload as they are shown: title, and the median of each system.
pub fn further(result: &Comparison, workload: &WorkloadInfo) -> Vec<(String, Vec<Option<f64>>)> {
    let systems = systems(result);
    let dilation = dilation(result, workload);
    let measured = |name: &&str| result.measured(name, &workload.name);
    let mut keys: Vec<&String> = systems.iter().flat_map(measured).flat_map(|m| m.more.keys()).collect();
    keys.sort();
    keys.dedup();
    // Held by the whole place at that moment: too coarse for a table.
    keys.retain(|key| *key != "memory_mib");
    let row = |key: &String| {
        let (factor, unit) = match key.rsplit('_').next() {
            Some("s") => (1.0 / dilation, "s"),
            Some("iops") => (dilation, "IOPS"),
            Some("mib") => (1.0, "MiB"),
            _ => (1.0, ""),
        };
        let name = key.strip_suffix(&format!("_{}", unit.to_lowercase())).unwrap_or(key).replace('_', " ");
        let of = |system: &&str| {
            let spread = result.spread_by(system, &workload.name, |m| m.more.get(key).copied())?;
            Some(spread.median * factor)
        };
        (if unit.is_empty() { name } else { format!("{name}, {unit}") }, systems.iter().map(of).collect())
    };
    keys.into_iter().map(row).collect()
}

/// Names of the systems that have been measured, in order.
pub fn systems(result: &Comparison) -> Vec<&str> {
    result.systems.iter().map(|system| system.name.as_str()).collect()
}

/// The best peer, by median, and its figure.
pub fn best_peer<'a>(result: &'a Comparison, workload: &WorkloadInfo) -> Option<(&'a str, f64)> {
    let peers = systems(result).into_iter().filter(|name| !is_ours(name) && !is_raw(name));
    let figures = peers.filter_map(|name| Some((name, result.spread(name, &workload.name)?.median)));
    let better = |a: &f64, b: &f64| if workload.more_is_better { a.total_cmp(b) } else { b.total_cmp(a) };
    figures.max_by(|a, b| better(&a.1, &b.1))
}

/// How many times as good as the best peer we are.
pub fn advantage(result: &Comparison, workload: &WorkloadInfo) -> Option<f64> {
    let ours = result.spread(OURS, &workload.name)?.median;
    let (_, best) = best_peer(result, workload)?;
    let (better, worse) = if workload.more_is_better { (ours, best) } else { (best, ours) };
    (worse > 0.0).then(|| better / worse)
}

/// A number with three digits that count.
pub fn number(value: f64) -> String {
    let magnitude = value.abs();
    if magnitude == 0.0 {
        "0".into()
    } else if magnitude >= 1000.0 {
        let digits = 10f64.powi(magnitude.log10().floor() as i32 - 2);
        thousands((value / digits).round() * digits)
    } else if magnitude >= 100.0 {
        format!("{value:.0}")
    } else if magnitude >= 10.0 {
        format!("{value:.1}")
    } else if magnitude >= 0.995 {
        format!("{value:.2}")
    } else if magnitude >= 0.0005 {
        let places = (2 - magnitude.log10().floor() as i32).clamp(2, 4) as usize;
        format!("{value:.places$}")
    } else {
        format!("{value:.1e}")
    }
}

/// A whole number in groups of three digits.
fn thousands(value: f64) -> String {
    let digits = format!("{:.0}", value.abs());
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(' ');
        }
        text.push(digit);
    }
    if value < 0.0 { format!("-{text}") } else { text }
}

/// Median, and the extremes where there is more than one measurement.
pub fn with_spread(spread: &Spread) -> String {
    if spread.count < 2 {
        return number(spread.median);
    }
    let half = (spread.max - spread.min) / 2.0;
    let percent = if spread.median == 0.0 { 0.0 } else { half / spread.median * 100.0 };
    format!("{} ±{percent:.0}%", number(spread.median))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_three_digits_that_count() {
        let cases = [
            (0.0, "0"),
            (0.00812, "0.0081"),
            (0.25, "0.250"),
            (1.0, "1.00"),
            (12.34, "12.3"),
            (999.4, "999"),
            (1234.0, "1 230"),
            (1_234_567.0, "1 230 000"),
        ];
        for (value, text) in cases {
            assert_eq!(number(value), text);
        }
    }

    #[test]
    fn one_measurement_has_no_spread() {
        let one = Spread { median: 5.0, min: 5.0, max: 5.0, count: 1 };
        assert_eq!(with_spread(&one), "5.00");
        assert_eq!(with_spread(&Spread { min: 4.0, max: 6.0, count: 2, ..one }), "5.00 ±20%");
    }
}
