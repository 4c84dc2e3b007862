//! The models against their makers' figures.

use super::*;

const GIB: u64 = 1 << 30;
const SECOND: u64 = 1_000_000_000;

/// Keeps `depth` commands in the device for a time, then gives commands per second and their latencies, sorted.
fn closed_loop(
    model: &mut dyn CostModel,
    depth: usize,
    seconds: u64,
    mut next: impl FnMut() -> Command,
) -> (f64, Vec<u64>) {
    let (mut tag, mut started, mut latencies) = (0, std::collections::BTreeMap::new(), Vec::new());
    for _ in 0..depth {
        tag += 1;
        started.insert(tag, 0);
        model.submit(0, tag, next());
    }
    let warm_ns = seconds * SECOND / 4;
    while let Some(now_ns) = model.next_ns().filter(|at| *at < seconds * SECOND) {
        for done in model.poll(now_ns) {
            let since = started.remove(&done.tag).expect("completed once");
            if done.at_ns >= warm_ns {
                latencies.push(done.at_ns - since);
            }
            tag += 1;
            started.insert(tag, now_ns);
            model.submit(now_ns, tag, next());
        }
    }
    latencies.sort_unstable();
    (latencies.len() as f64 * 4.0 / (3 * seconds) as f64, latencies)
}

fn random_4k(size: u64, write: bool) -> impl FnMut() -> Command {
    let mut state = 1u64;
    move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let offset = (state >> 20) % (size / 4096) * 4096;
        match write {
            true => Command::Write { offset, len: 4096, fua: false },
            false => Command::Read { offset, len: 4096 },
        }
    }
}

fn sequential(start: u64, len: u64, write: bool) -> impl FnMut() -> Command {
    let mut at = start;
    move || {
        let offset = at;
        at += len;
        if write { Command::Write { offset, len, fua: false } } else { Command::Read { offset, len } }
    }
}

fn disk(size: u64) -> DiskModel {
    DiskModel::new(params::disk_7200(), size)
}

#[track_caller]
fn near(what: &str, got: f64, published: f64, tolerance: f64) {
    println!("{what}: {got:.0}, published {published:.0}");
    assert!((got / published - 1.0).abs() <= tolerance, "{what}: {got:.1} instead of {published:.1}");
}

#[test]
fn the_disk_has_its_makers_sequential_rate() {
    for write in [false, true] {
        let (rate, _) = closed_loop(&mut disk(64 * GIB), 4, 10, sequential(0, 1 << 20, write));
        near("MB/s at the outer edge", rate * 1.048576, 255.0, 0.03);
        let (rate, _) = closed_loop(&mut disk(64 * GIB), 4, 10, sequential(61 * GIB, 1 << 20, write));
        near("MB/s at the inner edge", rate * 1.048576, 122.0, 0.03);
    }
    // One at a time, small: read-ahead and the write cache make up for the pauses.
    for write in [false, true] {
        let (rate, _) = closed_loop(&mut disk(64 * GIB), 1, 10, sequential(0, 64 << 10, write));
        near("MB/s in 64 KiB at depth 1", rate * 0.065536, 255.0, 0.1);
    }
}

#[test]
fn the_disk_has_its_makers_random_rates() {
    let size = 64 * GIB;
    let (rate, latencies) = closed_loop(&mut disk(size), 1, 200, random_4k(size, false));
    // Mean seek, half a revolution, controller.
    near("4 KiB random reads per second, depth 1", rate, 1000.0 / (7.4 + 4.17 + 0.03), 0.03);
    assert!(latencies[latencies.len() - 1] < 30_000_000, "full stroke and a revolution at most");
    let (rate, _) = closed_loop(&mut disk(size), 16, 200, random_4k(size, false));
    near("4 KiB random reads per second, depth 16", rate, 170.0, 0.1);
    let (rate, _) = closed_loop(&mut disk(size), 16, 400, random_4k(size, true));
    near("4 KiB random writes per second, depth 16, cache on", rate, 440.0, 0.1);
}

#[test]
fn a_flush_costs_what_is_in_the_cache() {
    let mut disk = disk(64 * GIB);
    let mut next = random_4k(64 * GIB, true);
    let flush_after = |disk: &mut DiskModel, start_ns: u64, writes: u64, next: &mut dyn FnMut() -> Command| {
        for tag in 0..writes {
            disk.submit(start_ns, tag, next());
        }
        disk.submit(start_ns, 1 << 40, Command::Flush);
        disk.submit(start_ns, 1 << 41, Command::Read { offset: 0, len: 4096 });
        let (mut flush_ns, mut read_ns) = (0, 0);
        while let Some(now_ns) = disk.next_ns() {
            for done in disk.poll(now_ns) {
                match done.tag {
                    tag if tag == 1 << 40 => flush_ns = done.at_ns - start_ns,
                    tag if tag == 1 << 41 => read_ns = done.at_ns - start_ns,
                    _ => {}
                }
            }
        }
        assert_eq!(disk.volatile_bytes(), 0);
        assert!(read_ns > flush_ns, "a read behind a FLUSH waits for it");
        flush_ns
    };
    let none = flush_after(&mut disk, SECOND, 0, &mut next);
    let some = flush_after(&mut disk, 10 * SECOND, 100, &mut next);
    let many = flush_after(&mut disk, 20 * SECOND, 1000, &mut next);
    println!("FLUSH: {none} ns, with 100 writes {some} ns, with 1000 {many} ns");
    assert!(none < 1_000_000 && some > 150_000_000 && many > 5 * some);
}

#[test]
fn sorted_writes_are_faster_the_closer_they_are() {
    // Every n-th block of an outer stretch: rotation alone, as long as every track has one.
    let mut rates = Vec::new();
    for step in [2u64, 16, 128] {
        let (rate, _) = closed_loop(&mut disk(64 * GIB), 32, 20, {
            let mut at = 0;
            move || {
                at += step * 4096;
                Command::Write { offset: at, len: 4096, fua: false }
            }
        });
        let sweep = rate * (step * 4096) as f64 / 1e6;
        println!("every {step}th block: {rate:.0} writes/s, {sweep:.0} MB/s of stretch");
        rates.push(sweep);
    }
    assert!(rates.iter().all(|sweep| *sweep > 200.0), "the arm passes at the sequential rate: {rates:?}");
}

#[test]
fn a_disk_that_sleeps_counts_its_starts() {
    let params = DiskParams { standby_after_ns: Some(600 * SECOND), ..params::disk_7200() };
    let mut disk = DiskModel::new(params, GIB);
    for (at, starts) in [(1, 0), (500, 0), (1200, 1), (1210, 1), (5000, 2)] {
        disk.submit(at * SECOND, at, Command::Read { offset: at * 4096, len: 4096 });
        while let Some(now_ns) = disk.next_ns() {
            for done in disk.poll(now_ns) {
                let took = done.at_ns - at * SECOND;
                assert_eq!(took > 10 * SECOND, [1200, 5000].contains(&at), "only a start takes long: {took}");
            }
        }
        assert_eq!(disk.activity().spin_ups, starts);
    }
}

#[test]
fn flash_has_its_makers_figures() {
    let size = 64 * GIB;
    let check = |params: &SsdParams, what: &str, depth, write, published| {
        let mut model = SsdModel::new(params.clone());
        let (rate, _) = closed_loop(&mut model, depth, 2, random_4k(size, write));
        near(what, rate, published, 0.05);
    };
    let sata = params::sata_ssd();
    check(&sata, "SATA 4 KiB reads, depth 1", 1, false, 13_000.0);
    check(&sata, "SATA 4 KiB reads, depth 32", 32, false, 98_000.0);
    check(&sata, "SATA 4 KiB writes, depth 1", 1, true, 36_000.0);
    check(&sata, "SATA 4 KiB writes, depth 32", 32, true, 88_000.0);
    let nvme = params::nvme_plp();
    check(&nvme, "NVMe 4 KiB reads, depth 256", 256, false, 850_000.0);
    check(&nvme, "NVMe 4 KiB writes, depth 32", 32, true, 130_000.0);
    let (rate, _) = closed_loop(&mut SsdModel::new(sata), 8, 2, sequential(0, 1 << 20, true));
    near("SATA MB/s", rate * 1.048576, 530.0, 0.05);
}

#[test]
fn a_network_volume_has_both_limits() {
    let (rate, _) = closed_loop(&mut NetModel::new(params::network_volume()), 32, 10, random_4k(GIB, true));
    near("operations per second", rate, 3000.0, 0.02);
    let (rate, _) = closed_loop(&mut NetModel::new(params::network_volume()), 32, 10, sequential(0, 256 << 10, true));
    near("MB/s", rate * 0.262144, 125.0, 0.02);
}
