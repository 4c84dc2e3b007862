//! Who uses a device: mounts, swap, device mapper and RAID, loop devices. And whether two paths lead to the same one.

use super::identity::{sys_dir, value, whole_disk};
use nix::sys::stat::{SFlag, stat};
use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::{fs, io};

/// A use of a device by the kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Usage {
    /// A filesystem on it, or on one of its partitions, is mounted.
    Mounted {
        /// Name of the device or partition.
        device: String,
        /// Where.
        at: PathBuf,
    },
    /// It, or one of its partitions, is swap space.
    Swap,
    /// It, or one of its partitions, is part of another block device (device mapper, RAID, bcache).
    Holder {
        /// Name of the device or partition.
        device: String,
        /// Name of the other one.
        by: String,
    },
    /// The file is shown as a block device.
    Loop {
        /// Path of the loop device.
        device: String,
    },
}

/// What a path leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Node {
    Block(u64),
    File { device: u64, inode: u64 },
}

fn node(path: &Path) -> io::Result<Option<Node>> {
    let stat = stat(path)?;
    Ok(match SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT {
        SFlag::S_IFBLK => Some(Node::Block(stat.st_rdev)),
        SFlag::S_IFREG => Some(Node::File { device: stat.st_dev, inode: stat.st_ino }),
        _ => None,
    })
}

/// All uses of a block device or file that the kernel tells of in /proc and /sys, as seen from this mount namespace.
/// Other processes that merely have it open are not among them; a claim (`open_device`) is what keeps those out.
pub fn in_use(path: &Path) -> io::Result<Vec<Usage>> {
    match node(path)? {
        Some(Node::Block(device)) => block_usage(device),
        Some(file @ Node::File { .. }) => file_usage(file),
        None => Ok(Vec::new()),
    }
}

fn block_usage(device: u64) -> io::Result<Vec<Usage>> {
    let Some(dir) = sys_dir(device) else { return Ok(Vec::new()) };
    // A partition's disk is not affected by what its other partitions are used for, so only downwards.
    let mut parts = vec![dir.clone()];
    parts
        .extend(fs::read_dir(&dir)?.flatten().map(|entry| entry.path()).filter(|path| path.join("partition").exists()));
    let mounts = fs::read("/proc/self/mountinfo")?;
    let mut users = Vec::new();
    for part in parts {
        let name = part.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if let Some(number) = value(&part, "dev") {
            users.extend(mounts_of(&mounts, &number).map(|at| Usage::Mounted { device: name.clone(), at }));
            if swaps()?.into_iter().any(|swap| device_number(swap).as_deref() == Some(&number)) {
                users.push(Usage::Swap);
            }
        }
        for holder in fs::read_dir(part.join("holders")).into_iter().flatten().flatten() {
            let by = holder.file_name().to_string_lossy().into_owned();
            users.push(Usage::Holder { device: name.clone(), by });
        }
    }
    Ok(users)
}

fn file_usage(file: Node) -> io::Result<Vec<Usage>> {
    let mut users: Vec<Usage> = loop_devices()
        .filter(|(_, backing)| node(backing).ok().flatten() == Some(file))
        .map(|(name, _)| Usage::Loop { device: format!("/dev/{name}") })
        .collect();
    if swaps()?.contains(&file) {
        users.push(Usage::Swap);
    }
    Ok(users)
}

/// Names of the loop devices in use and the files they show.
fn loop_devices() -> impl Iterator<Item = (String, PathBuf)> {
    let entries = fs::read_dir("/sys/block").into_iter().flatten().flatten();
    entries.filter_map(|entry| {
        // Not `value`: a path may be any bytes.
        let mut backing = fs::read(entry.path().join("loop/backing_file")).ok()?;
        if backing.last() == Some(&b'\n') {
            backing.pop();
        }
        Some((entry.file_name().to_string_lossy().into_owned(), OsString::from_vec(backing).into()))
    })
}

/// Mount points of the device with this `major:minor`. Format: proc_pid_mountinfo(5).
fn mounts_of<'a>(mountinfo: &'a [u8], number: &'a str) -> impl Iterator<Item = PathBuf> + 'a {
    let lines = mountinfo.split(|byte| *byte == b'\n');
    lines.filter_map(move |line| {
        let mut fields = line.split(|byte| *byte == b' ');
        (fields.nth(2)? == number.as_bytes()).then(|| unescape(fields.nth(1).unwrap_or_default()))
    })
}

/// Space, tab, newline and backslash are octal there.
fn unescape(field: &[u8]) -> PathBuf {
    let mut path = Vec::with_capacity(field.len());
    let mut rest = field;
    while let [first, tail @ ..] = rest {
        let octal = tail.get(..3).filter(|_| *first == b'\\');
        match octal.and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok()) {
            Some(byte) => {
                path.push(byte);
                rest = &tail[3..];
            }
            None => {
                path.push(*first);
                rest = tail;
            }
        }
    }
    PathBuf::from(std::ffi::OsStr::from_bytes(&path))
}

fn swaps() -> io::Result<Vec<Node>> {
    let text = match fs::read("/proc/swaps") {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()), // A kernel without swap.
        other => other?,
    };
    let lines = text.split(|byte| *byte == b'\n').skip(1);
    let paths = lines.filter_map(|line| line.split(|byte| byte.is_ascii_whitespace()).next());
    Ok(paths.filter(|path| !path.is_empty()).filter_map(|path| node(&unescape(path)).ok().flatten()).collect())
}

fn device_number(node: Node) -> Option<String> {
    match node {
        Node::Block(device) => Some(format!("{}:{}", nix::sys::stat::major(device), nix::sys::stat::minor(device))),
        Node::File { .. } => None,
    }
}

/// What lies below a path in the end, for comparing: a loop device stands for its file, and a disk for its partitions.
struct Ground {
    node: Node,
    /// Directory in sysfs of a block device.
    dir: Option<PathBuf>,
}

fn ground(path: &Path) -> io::Result<Option<Ground>> {
    let Some(found) = node(path)? else { return Ok(None) };
    let dir = match found {
        Node::Block(device) => sys_dir(device),
        Node::File { .. } => None,
    };
    if let Some(dir) = &dir {
        let disk = whole_disk(dir);
        let name = disk.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if let Some((_, backing)) = loop_devices().find(|(device, _)| *device == name)
            && let Ok(Some(file @ Node::File { .. })) = node(&backing)
        {
            return Ok(Some(Ground { node: file, dir: None }));
        }
    }
    Ok(Some(Ground { node: found, dir }))
}

/// Whether two paths lead to the same device or file, or one to a part of the other: the same node under another name,
/// a partition and its disk, a loop device and its file. Layers of the device mapper are not looked through.
pub fn same_device(a: &Path, b: &Path) -> io::Result<bool> {
    let (Some(a), Some(b)) = (ground(a)?, ground(b)?) else { return Ok(false) };
    if a.node == b.node {
        return Ok(true);
    }
    let (Some(a), Some(b)) = (a.dir, b.dir) else { return Ok(false) };
    Ok(whole_disk(&a) == b || whole_disk(&b) == a)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mountinfo_is_read_with_its_escapes() {
        let text = b"36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw\n\
                     37 35 98:1 / /a\\040b\\134c rw - ext4 /dev/x rw\n38 35 98:1 / /twice rw - ext4 /dev/x rw\n";
        let found: Vec<_> = mounts_of(text, "98:1").collect();
        assert_eq!(found, [PathBuf::from("/a b\\c"), PathBuf::from("/twice")]);
        assert_eq!(mounts_of(text, "98:2").count(), 0);
        assert_eq!(mounts_of(b"\nbad\n1 2\n1 2 98:1\n", "98:1").collect::<Vec<_>>(), [PathBuf::new()]);
    }
}
