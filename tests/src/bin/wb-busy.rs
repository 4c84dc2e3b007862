//! Load for scenarios in guests, which proves at its end that nothing acknowledged is missing.
//!
//! `wb-busy file PATH MIB direct|buffered STOP`: writes blocks of a file, never syncs, until the file STOP exists; then reads
//! everything back, past the page cache, and compares. Says the longest pause that it met.
//!
//! `wb-busy model DEVICE SECONDS SEED`: reads, writes, discards and zeroes ranges of a block device by sectors and compares
//! every read with a model of it.

use anyhow::{Context as _, bail, ensure};
use nix::fcntl::{FallocateFlags, fallocate};
use std::fs::File;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::time::{Duration, Instant};
use wb_core::io::Buf;

const BLOCK: usize = 4096;
const SECTOR: usize = 512;

/// xorshift64 (public domain, G. Marsaglia).
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}

/// Fills a piece with what only this write of this place has.
fn stamp(bytes: &mut [u8], place: u64, generation: u64) {
    for (index, word) in bytes.chunks_exact_mut(8).enumerate() {
        let value = place << 40 ^ generation << 8 ^ index as u64;
        word.copy_from_slice(&value.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes());
    }
}

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["file", path, mib, mode, stop] => file(path, mib.parse()?, mode == "direct", stop.as_ref()),
        ["model", path, seconds, seed] => model(path, Duration::from_secs(seconds.parse()?), seed.parse()?),
        _ => bail!("usage: see the source"),
    }
}

fn file(path: &str, mib: u64, direct: bool, stop: &Path) -> anyhow::Result<()> {
    let blocks = mib << 20 >> 12;
    let flags = if direct { libc::O_DIRECT } else { 0 };
    let file = File::options().read(true).write(true).create(true).truncate(true).custom_flags(flags).open(path)?;
    let mut generations = vec![0u64; blocks as usize];
    let (mut random, mut buf) = (Random(blocks | 1), Buf::unpooled(BLOCK));
    let (mut writes, mut longest) = (0u64, Duration::ZERO);
    while !stop.exists() || writes < blocks {
        // Every block once, then any.
        let block = if writes < blocks { writes } else { random.below(blocks) };
        writes += 1;
        stamp(&mut buf, block, writes);
        let begun = Instant::now();
        file.write_all_at(&buf, block * BLOCK as u64).with_context(|| format!("write {writes} of {path}"))?;
        longest = longest.max(begun.elapsed());
        generations[block as usize] = writes;
    }
    // What is clean in the page cache goes; it was acknowledged and must be on the device.
    std::fs::write("/proc/sys/vm/drop_caches", "1").context("the page cache cannot be dropped")?;
    let mut wanted = vec![0; BLOCK];
    for (block, generation) in generations.iter().enumerate() {
        file.read_exact_at(&mut buf, (block * BLOCK) as u64).with_context(|| format!("block {block} of {path}"))?;
        stamp(&mut wanted, block as u64, *generation);
        ensure!(buf[..] == wanted[..], "{path}: block {block} is not what write {generation} of {writes} left there");
    }
    println!("{path}: {writes} writes, all there; the longest took {} ms", longest.as_millis());
    Ok(())
}

/// What a sector may hold.
#[derive(Clone, Copy, PartialEq)]
enum Known {
    Zeroes,
    Written(u64),
    /// Discarded.
    Anything,
}

fn model(path: &str, limit: Duration, seed: u64) -> anyhow::Result<()> {
    // A part of the device, so that operations meet each other.
    const SECTORS: u64 = 16 << 20 >> 9;
    let device = File::options().read(true).write(true).custom_flags(libc::O_DIRECT).open(path)?;
    let mut model = vec![Known::Zeroes; SECTORS as usize];
    fallocate(
        &device,
        FallocateFlags::FALLOC_FL_ZERO_RANGE | FallocateFlags::FALLOC_FL_KEEP_SIZE,
        0,
        (SECTORS << 9) as i64,
    )?;
    let mut random = Random(seed | 1);
    let (begun, mut counts) = (Instant::now(), [0u64; 5]);
    while begun.elapsed() < limit {
        let first = random.below(SECTORS);
        let most = if random.below(4) == 0 { 512 } else { 24 };
        let count = (1 + random.below(most)).min(SECTORS - first);
        let (offset, bytes) = (first << 9, (count << 9) as usize);
        let range = first as usize..(first + count) as usize;
        let action = [0, 0, 0, 1, 1, 1, 2, 3, 4][random.below(9) as usize];
        counts[action] += 1;
        let generation: u64 = counts.iter().sum();
        match action {
            0 => {
                let mut buf = Buf::unpooled(bytes);
                for (index, sector) in buf.chunks_exact_mut(SECTOR).enumerate() {
                    stamp(sector, first + index as u64, generation);
                }
                device.write_all_at(&buf, offset)?;
                model[range].fill(Known::Written(generation));
            }
            1 => check(&device, &model, range)?,
            2 => {
                fallocate(
                    &device,
                    FallocateFlags::FALLOC_FL_ZERO_RANGE | FallocateFlags::FALLOC_FL_KEEP_SIZE,
                    offset as i64,
                    bytes as i64,
                )?;
                model[range].fill(Known::Zeroes);
            }
            3 => {
                discard(&device, offset, bytes as u64)?;
                model[range].fill(Known::Anything);
            }
            _ => device.sync_data()?,
        }
    }
    check(&device, &model, 0..SECTORS as usize)?;
    println!("{path}: {counts:?} writes, reads, zeroings, discards, flushes as in the model");
    Ok(())
}

/// BLKDISCARD, by the program for it: an ioctl would need unsafe code here.
fn discard(_device: &File, offset: u64, bytes: u64) -> anyhow::Result<()> {
    let device = std::env::args().nth(2).context("a device")?;
    let mut command = std::process::Command::new("blkdiscard");
    let done = command.args(["-o", &offset.to_string(), "-l", &bytes.to_string(), &device]).status()?;
    ensure!(done.success(), "blkdiscard failed at {offset} + {bytes}");
    Ok(())
}

fn check(device: &File, model: &[Known], range: std::ops::Range<usize>) -> anyhow::Result<()> {
    let mut buf = Buf::unpooled(range.len() * SECTOR);
    device.read_exact_at(&mut buf, (range.start * SECTOR) as u64)?;
    let mut wanted = [0; SECTOR];
    for (sector, bytes) in range.zip(buf.chunks_exact(SECTOR)) {
        match model[sector] {
            Known::Zeroes => wanted.fill(0),
            Known::Written(generation) => stamp(&mut wanted, sector as u64, generation),
            Known::Anything => continue,
        }
        ensure!(bytes == wanted, "sector {sector} is wrong: it begins with {:x?}", &bytes[..16]);
    }
    Ok(())
}
