//! What the kernel counted: /proc/diskstats and /proc/meminfo.

use super::result::DiskWork;
use crate::model_disk::Counts;
use anyhow::{Context as _, anyhow, bail};
use std::os::unix::fs::FileTypeExt;
use std::path::Path;

/// Bytes of a sector in /proc/diskstats, whatever the device's own.
const SECTOR_BYTES: u64 = 512;

/// Counters of a block device since it exists (Documentation/admin-guide/iostats.rst; flushes since Linux 5.5).
pub fn of(device: &Path) -> anyhow::Result<DiskWork> {
    let name = kernel_name(device)?;
    let text = std::fs::read_to_string("/proc/diskstats").context("cannot read /proc/diskstats")?;
    parse(&text, &name).ok_or_else(|| anyhow!("/proc/diskstats has no line with flushes for {name}"))
}

fn parse(text: &str, name: &str) -> Option<DiskWork> {
    let line = text.lines().find(|line| line.split_whitespace().nth(2) == Some(name))?;
    let fields: Vec<u64> = line.split_whitespace().skip(3).map_while(|f| f.parse().ok()).collect();
    Some(DiskWork {
        reads: *fields.first()?,
        read_bytes: fields.get(2)? * SECTOR_BYTES,
        writes: *fields.get(4)?,
        write_bytes: fields.get(6)? * SECTOR_BYTES,
        discards: *fields.get(11)?,
        flushes: *fields.get(15)?,
    })
}

impl From<&Counts> for DiskWork {
    fn from(counts: &Counts) -> DiskWork {
        let Counts { reads, read_bytes, writes, write_bytes, flushes, discards, .. } = *counts;
        DiskWork { reads, read_bytes, writes, write_bytes, flushes, discards }
    }
}

/// The name in /sys/block and /proc/diskstats of a device, links and device-mapper names followed.
pub fn kernel_name(device: &Path) -> anyhow::Result<String> {
    let real = std::fs::canonicalize(device).with_context(|| format!("{} is not there", device.display()))?;
    require_block_device(&real)?;
    let name = real.file_name().with_context(|| format!("{} has no name", real.display()))?;
    let name = name.to_string_lossy().into_owned();
    if Path::new("/sys/class/block").join(&name).exists() {
        return Ok(name);
    }
    // A node of its own, as dmsetup makes without udev: found by its number.
    use std::os::unix::fs::MetadataExt;
    let number = std::fs::metadata(&real)?.rdev();
    let number = format!("{}:{}", nix::sys::stat::major(number), nix::sys::stat::minor(number));
    let target = std::fs::read_link(Path::new("/sys/dev/block").join(&number))
        .with_context(|| format!("{} is device {number}, which the kernel does not have", real.display()))?;
    let name = target.file_name().with_context(|| format!("device {number} has no name"))?;
    Ok(name.to_string_lossy().into_owned())
}

/// A benchmark on what is no block device measures the page cache: refuse it.
pub fn require_block_device(path: &Path) -> anyhow::Result<()> {
    let meta = std::fs::metadata(path).with_context(|| format!("{} is not there", path.display()))?;
    if !meta.file_type().is_block_device() {
        bail!("{} is not a block device: what ran on it would measure memory, not a cache", path.display());
    }
    Ok(())
}

/// Bytes of a block device.
pub fn size_bytes(device: &Path) -> anyhow::Result<u64> {
    let sectors = super::shell::read(Path::new("/sys/class/block").join(kernel_name(device)?).join("size"))?;
    Ok(sectors.parse::<u64>().context("the kernel's size of a device is a number")? * SECTOR_BYTES)
}

/// Bytes of memory that are neither free nor page cache: what programs and kernel hold.
pub fn memory_held_bytes() -> anyhow::Result<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").context("cannot read /proc/meminfo")?;
    let field = |name: &str| {
        let line = text.lines().find(|line| line.split(':').next() == Some(name))?;
        line.split_whitespace().nth(1)?.parse::<u64>().ok().map(|kib| kib << 10)
    };
    let get = |name| field(name).ok_or_else(|| anyhow!("/proc/meminfo has no {name}"));
    // Shmem is counted in Cached, but somebody holds it.
    Ok((get("MemTotal")? + get("Shmem")?).saturating_sub(get("MemFree")? + get("Buffers")? + get("Cached")?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_found_by_their_position() {
        let text =
            " 254 0 vda 1 2 16 4 5 6 56 8 9 10 11 12 13 14 15 17 18\n 254 1 vda1 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0\n";
        let work = parse(text, "vda").expect("the line");
        let wanted = DiskWork { reads: 1, read_bytes: 8192, writes: 5, write_bytes: 28672, discards: 12, flushes: 17 };
        assert_eq!(work, wanted);
        assert_eq!(parse(" 8 0 sda 1 2 3 4 5 6 7 8 9 10 11\n", "sda"), None, "a kernel without flush counters");
        assert_eq!(parse(text, "vdb"), None);
    }

    #[test]
    fn a_plain_file_is_refused() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        let refused = kernel_name(file.path()).expect_err("no device");
        assert!(refused.to_string().contains("not a block device"), "{refused}");
        assert!(memory_held_bytes().expect("meminfo") > 0);
    }
}
