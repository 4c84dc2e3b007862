//! /run/writeboost/ublkbN.env: which device belongs to which cache, for the udev rule and for people.
//!
//! A hint only: that a device is ours is known from the driver, which keeps a mark for us.

use std::path::PathBuf;
use uuid::Uuid;
use wb_cli::paths;

fn path(id: u32) -> PathBuf {
    paths::run_dir().join(format!("ublkb{id}.env"))
}

/// Written before the block device appears, so that udev finds it.
pub fn write(id: u32, name: &str, uuid: Uuid) -> std::io::Result<()> {
    let path = path(id);
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir)?;
    }
    let new = path.with_extension("new");
    std::fs::write(&new, format!("WRITEBOOST_NAME={name}\nWRITEBOOST_UUID={uuid}\n"))?;
    std::fs::rename(&new, &path)
}

/// Removed with the device.
pub fn remove(id: u32) {
    // It may never have been written.
    let _ = std::fs::remove_file(path(id));
}
