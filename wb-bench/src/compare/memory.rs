//! Memory per GiB of cache: what a system holds with an SSD of one size and with one of another, both filled. The slope
//! tells what grows with the cache; buffers of a fixed size are not in it.

use super::diskstats;
use super::fio::FioJob;
use super::result::{Cell, Comparison, Measurement, Outcome};
use super::workload::{Kind, Workload};
use anyhow::Context as _;
use std::path::Path;
use std::time::Duration;

/// Name of the workload.
pub const NAME: &str = "memory";
/// The two sizes. Our own write-back window stops growing at the smaller one.
pub const SSD_BYTES: [u64; 2] = [512 << 20, 1024 << 20];
/// What the SSD's size is called among the further figures.
const SSD_MIB: &str = "ssd_mib";
const MIB: f64 = 1048576.0;

/// The load for an SSD of this size: three quarters of it in blocks of 4 KiB, each once, in random order.
pub fn fill(ssd: u64) -> FioJob {
    let mut job = FioJob::new("randwrite", ssd / 4 * 3, 300);
    (job.iodepth, job.io_size, job.each_once) = (32, Some(ssd / 4 * 3), true);
    job
}

/// The workload for this size.
pub fn sized(workload: &Workload, ssd: u64) -> Workload {
    Workload { kind: Kind::Memory(fill(ssd)), ..workload.clone() }
}

/// Fills, and tells what is held then beyond `held_before`.
pub fn measure(job: &FioJob, target: &Path, ssd: u64, held_before: u64) -> anyhow::Result<Measurement> {
    let mut measured = job.run(target)?;
    // What is on its way ends, and what nobody needs goes.
    std::thread::sleep(Duration::from_secs(2));
    std::fs::write("/proc/sys/vm/drop_caches", "3").context("cannot drop the page cache")?;
    let held = diskstats::memory_held_bytes()?.saturating_sub(held_before) as f64 / MIB;
    measured.value = held;
    measured.more.insert(SSD_MIB.into(), ssd as f64 / MIB);
    Ok(measured)
}

/// The two measurements of a system become one, whose value is the slope.
pub fn merge(result: &mut Comparison) {
    let (mut found, rest): (Vec<Cell>, Vec<Cell>) =
        std::mem::take(&mut result.cells).into_iter().partition(|cell| cell.workload == NAME);
    result.cells = rest;
    while let Some(first) = found.first().cloned() {
        let (of_system, others) = found.into_iter().partition(|cell| cell.system == first.system);
        found = others;
        result.cells.push(Cell { outcome: slope(of_system), ..first });
    }
}

fn slope(cells: Vec<Cell>) -> Outcome {
    let mut points = Vec::new();
    for cell in cells {
        match cell.outcome {
            Outcome::Measured(m) => points.push((m.more.get(SSD_MIB).copied().unwrap_or_default(), m)),
            other => return other,
        }
    }
    points.sort_by(|a, b| a.0.total_cmp(&b.0));
    let [(small, at_small), (large, at_large)] = &points[..] else {
        return Outcome::Failed("one of the two sizes was not measured".into());
    };
    let mut merged = (**at_large).clone();
    merged.value = (at_large.value - at_small.value) / (large - small) * 1024.0;
    merged.more.clear();
    merged.more.insert(format!("held_with_{small}_mib_of_ssd_mib"), at_small.value);
    merged.more.insert(format!("held_with_{large}_mib_of_ssd_mib"), at_large.value);
    // Of the filling, which is no result.
    (merged.latency, merged.series) = (None, Vec::new());
    Outcome::Measured(Box::new(merged))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cell(system: &str, ssd_mib: f64, held: f64) -> Cell {
        let more = [(SSD_MIB.to_string(), ssd_mib)].into_iter().collect();
        let measured = Measurement { value: held, more, ..Measurement::default() };
        let outcome = Outcome::Measured(Box::new(measured));
        Cell { system: system.into(), workload: NAME.into(), round: 0, outcome }
    }

    #[test]
    fn a_fixed_part_is_not_in_the_slope() {
        let mut result = Comparison {
            cells: vec![cell("a", 1024.0, 112.0), cell("b", 512.0, 50.0), cell("a", 512.0, 106.0)],
            ..Comparison::default()
        };
        merge(&mut result);
        assert_eq!(result.cells.len(), 2);
        let Outcome::Measured(a) = &result.cells[0].outcome else { panic!("a slope") };
        assert_eq!((a.value, a.more["held_with_512_mib_of_ssd_mib"]), (12.0, 106.0));
        assert!(matches!(result.cells[1].outcome, Outcome::Failed(_)), "one size alone has no slope");
    }
}
