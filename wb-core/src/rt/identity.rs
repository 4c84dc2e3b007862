//! What tells one device from another.

use super::file::{DeviceFile, DeviceKind};
use super::open::OpenError;
use nix::sys::stat::{fstat, major, minor};
use serde::{Deserialize, Serialize};
use std::fs;
use std::path::{Path, PathBuf};

/// A device as its owner could recognise it again. Path and numbers may differ after the next boot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceIdentity {
    /// Block device or regular file.
    pub kind: DeviceKind,
    /// The path with all symbolic links followed.
    pub path: PathBuf,
    /// Bytes of the device.
    pub size_bytes: u64,
    /// Logical sector size.
    pub sector_bytes: u32,
    /// Alignment of I/O.
    pub align_bytes: u32,
    /// What the hardware or the device mapper calls itself: `wwid:`, `serial:`, `dm:`, `md:`, `partuuid:`, `nguid:` or
    /// `cid:` and the value; of a partition with `-part` and its number. `None` for files and for devices without.
    pub serial: Option<String>,
    /// Maker's name of the device, for people.
    pub model: Option<String>,
    /// Major and minor number of a block device.
    pub device_number: Option<(u32, u32)>,
}

impl DeviceIdentity {
    pub(super) fn of(file: &DeviceFile, path: &Path) -> Result<DeviceIdentity, OpenError> {
        let stat = fstat(&file.fd).map_err(|errno| OpenError::os("look at", path, errno))?;
        let block = file.kind == DeviceKind::Block;
        let directory = block.then(|| sys_dir(stat.st_rdev)).flatten();
        Ok(DeviceIdentity {
            kind: file.kind,
            path: fs::canonicalize(path).unwrap_or_else(|_| path.into()),
            size_bytes: file.geometry.size_bytes,
            sector_bytes: file.geometry.sector_bytes,
            align_bytes: file.geometry.align_bytes,
            serial: directory.as_deref().and_then(serial),
            model: directory.as_deref().and_then(|dir| value(&whole_disk(dir), "device/model")),
            device_number: block.then(|| (major(stat.st_rdev) as u32, minor(stat.st_rdev) as u32)),
        })
    }
}

/// The directory of a block device in sysfs, links followed.
pub(super) fn sys_dir(device: u64) -> Option<PathBuf> {
    fs::canonicalize(format!("/sys/dev/block/{}:{}", major(device), minor(device))).ok()
}

/// The directory of the disk of which `dir` is a partition, or `dir`.
pub(super) fn whole_disk(dir: &Path) -> PathBuf {
    let parent = dir.join("partition").exists().then(|| dir.parent()).flatten();
    parent.unwrap_or(dir).into()
}

/// An attribute, trimmed; `None` if there is none or it is empty.
pub(super) fn value(dir: &Path, name: &str) -> Option<String> {
    // Some serials hold bytes that are no UTF-8.
    let bytes = fs::read(dir.join(name)).ok()?;
    let text = String::from_utf8_lossy(&bytes);
    let text = text.trim_matches(|c: char| c.is_whitespace() || c == '\0');
    (!text.is_empty()).then(|| text.to_owned())
}

/// A queue attribute of the disk of a device.
pub(super) fn sys_queue(device: u64, name: &str) -> Option<String> {
    value(&whole_disk(&sys_dir(device)?), &format!("queue/{name}"))
}

/// Where a name that stays with the device is found, the most trustworthy first.
const SOURCES: [(&str, &str); 9] = [
    ("dm", "dm/uuid"),
    ("md", "md/uuid"),
    ("wwid", "wwid"),
    ("wwid", "device/wwid"),
    ("nguid", "nguid"),
    ("uuid", "uuid"),
    ("serial", "serial"),
    ("serial", "device/serial"),
    ("cid", "device/cid"),
];

fn serial(dir: &Path) -> Option<String> {
    let disk = whole_disk(dir);
    let of_disk = SOURCES.iter().find_map(|(kind, name)| Some(format!("{kind}:{}", value(&disk, name)?)));
    let Some(number) = value(dir, "partition") else { return of_disk };
    of_disk.map(|serial| format!("{serial}-part{number}")).or_else(|| {
        let uevent = value(dir, "uevent")?;
        let uuid = uevent.lines().find_map(|line| line.strip_prefix("PARTUUID="))?;
        Some(format!("partuuid:{uuid}"))
    })
}
