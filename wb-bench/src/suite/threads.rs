//! Rows 12 and 13: instructions per write, and what a second thread gains.

use super::{Lab, load_4k, ratios};
use crate::engine::{Measured, Setup};
use crate::hotpath;
use crate::load::stats::median;
use crate::load::{self, Load};
use std::time::{Duration, Instant};
use wb_core::format::crc32c;

/// Null disks of this size; half of the cache may be written per pass.
const CACHE_BYTES: u64 = 8 << 30;

/// Counted by callgrind: exact, and the same on every run.
pub fn instructions(lab: &mut Lab) -> anyhow::Result<()> {
    let count = hotpath::count(hotpath::Operation::Write4k)?;
    lab.at_most(12, "instructions per 4 KiB write in the engine (callgrind)", 4000.0, vec![count], String::new());
    Ok(())
}

/// Bytes per second of copying a block and computing its CRC, on so many threads: what memory and processor allow.
fn plain(threads: usize, runtime: Duration) -> f64 {
    const BLOCK: usize = 4096;
    /// As many blocks as the engine's records hold, so that caches help neither side more.
    const BLOCKS: usize = 32 * 248;
    let begin = Instant::now();
    let work = || {
        let (from, mut to) = (vec![1u8; 4 << 20], vec![0u8; BLOCKS * BLOCK]);
        let (mut bytes, mut at) = (0u64, 0usize);
        while begin.elapsed() < runtime {
            for _ in 0..64 {
                at = (at + 1) % BLOCKS;
                let out = &mut to[at * BLOCK..][..BLOCK];
                out.copy_from_slice(&from[at % 1024 * BLOCK..][..BLOCK]);
                std::hint::black_box(crc32c(out));
                bytes += BLOCK as u64;
            }
        }
        bytes
    };
    let bytes: u64 = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        threads.into_iter().map(|thread| thread.join().expect("nothing there panics")).sum()
    });
    bytes as f64 / begin.elapsed().as_secs_f64()
}

async fn engine(threads: u32, runtime: Duration, round: u64) -> anyhow::Result<f64> {
    let measured = Measured::on_null(CACHE_BYTES, CACHE_BYTES, Setup { verify_reads: true, threads }).await?;
    let load = Load { threads, write_bytes_max: CACHE_BYTES / 2, ..load_4k(64, threads, CACHE_BYTES, runtime, round) };
    let pass = load::run(&measured.volume(), &load).await?;
    measured.stop().await?;
    Ok(pass.bytes_per_s())
}

/// Two threads on null disks, against what two threads of bare work gain.
pub async fn two_against_one(lab: &mut Lab) -> anyhow::Result<()> {
    let runtime = lab.plan.runtime;
    let (mut gains, mut plain_gains, mut rates) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..lab.rounds() {
        let (plain_one, plain_two) = (plain(1, runtime / 2), plain(2, runtime / 2));
        let (one, two) = (engine(1, runtime, round).await?, engine(2, runtime, round).await?);
        if round > 0 {
            gains.push(two / one);
            plain_gains.push(plain_two / plain_one);
            rates.push(one);
        }
    }
    let of = |values: &[f64]| median(values.iter().copied());
    let of = format!("{:.2} / {:.2}, one thread {:.2} GB/s", of(&gains), of(&plain_gains), of(&rates) / 1e9);
    lab.at_least(
        13,
        "gain by a second thread on null disks / that of CRC + memcpy",
        0.9,
        ratios(&gains, &plain_gains),
        of,
    );
    Ok(())
}
