//! Who uses the device: it must not go away below a filesystem, nor below a program.

use nix::sys::stat::{SFlag, stat};
use std::collections::BTreeSet;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use wb_core::rt::{self, Usage};

/// In words, each user of /dev/ublkbN or of one of its partitions: mounts, swap, other block devices, processes.
///
/// Opens the device, so it must be served, by another thread than the one that waits for this.
pub(super) fn users(id: u32) -> Vec<String> {
    let path = format!("/dev/ublkb{id}");
    let mut users: Vec<String> = rt::in_use(Path::new(&path)).unwrap_or_default().into_iter().map(in_words).collect();
    users.extend(openers(id));
    // A claim of which nothing is seen here: a mount in another namespace, or a use that is not listed above. Whoever
    // mounts a partition claims the whole disk, too.
    if users.is_empty() {
        let claim = std::fs::File::options().read(true).custom_flags(libc::O_EXCL).open(&path);
        if claim.is_err_and(|error| error.raw_os_error() == Some(libc::EBUSY)) {
            users.push("claimed by the kernel or in another mount namespace".into());
        }
    }
    users
}

fn in_words(usage: Usage) -> String {
    match usage {
        Usage::Mounted { device, at } => format!("{device} is mounted at {}", at.display()),
        Usage::Swap => "it is swap space".into(),
        Usage::Holder { device, by } => format!("{device} is part of {by}"),
        other => format!("{other:?}"),
    }
}

/// Device numbers of the disk and its partitions.
fn numbers(id: u32) -> BTreeSet<u64> {
    let dir = format!("/sys/block/ublkb{id}");
    let number = |path: &Path| {
        let text = std::fs::read_to_string(path.join("dev")).ok()?;
        let (major, minor) = text.trim().split_once(':')?;
        Some(nix::sys::stat::makedev(major.parse().ok()?, minor.parse().ok()?))
    };
    let parts = std::fs::read_dir(&dir).into_iter().flatten().flatten().map(|entry| entry.path());
    let parts = parts.filter(|path| path.join("partition").exists());
    parts.filter_map(|path| number(&path)).chain(number(Path::new(&dir))).collect()
}

/// Processes that have it open.
fn openers(id: u32) -> Vec<String> {
    let numbers = numbers(id);
    let is_ours = |path: &Path| {
        stat(path).is_ok_and(|stat| {
            SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT == SFlag::S_IFBLK && numbers.contains(&stat.st_rdev)
        })
    };
    let mut found = Vec::new();
    for process in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let name = process.file_name().to_string_lossy().into_owned();
        let Ok(pid) = name.parse::<u32>() else { continue };
        let fds = std::fs::read_dir(process.path().join("fd")).into_iter().flatten().flatten();
        if pid != std::process::id() && fds.map(|fd| fd.path()).any(|fd| is_ours(&fd)) {
            let program = std::fs::read_to_string(process.path().join("comm")).unwrap_or_default();
            found.push(format!("{} (process {pid}) has it open", program.trim()));
        }
    }
    found
}
