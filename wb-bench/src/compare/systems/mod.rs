//! The systems that are compared, each set up as its own users would set it up for this load.

mod bcache;
mod dm;
mod dm_cache;
mod dm_writeboost;
mod dm_writecache;
mod null;
mod raw;
mod writeboost;

use super::shell::Shell;
use anyhow::Context as _;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use wb_cli::bench_args::{BlockDevice, Peer};

/// Name of our own cache in tables and results.
pub const OURS: &str = "writeboost";
/// Our own cache on the kernel of dm-writeboost, as its partner: over NBD, since that kernel has no ublk.
pub const OURS_OLD: &str = "writeboost-6.1";
/// A ublk device with nothing behind it: what the place can do at most.
pub const NULL: &str = "null-ublk";

/// Series of the guest's kernel.
pub const KERNEL: &str = "6.12";
/// The newest series for which the module of dm-writeboost builds.
pub const KERNEL_OLD: &str = "6.1";

/// The devices that a system is made of. Their content is lost.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Devices {
    /// The fast one.
    pub ssd: PathBuf,
    /// The slow one.
    pub disk: PathBuf,
}

/// A cache, or a bare device as a bound.
pub trait System {
    /// Why it is set up like this, with sources.
    fn reasons(&self) -> &'static [&'static str];

    /// Makes the cache anew, empty, and attaches it. Gives the block device that the load runs on.
    fn create(&mut self, shell: &mut Shell, devices: &Devices) -> anyhow::Result<PathBuf>;

    /// Attaches the cache as a power cut has left it.
    fn reattach(&mut self, shell: &mut Shell, devices: &Devices) -> anyhow::Result<PathBuf>;

    /// What the system says of itself; an error if that is not what is to be measured.
    fn check(&self, devices: &Devices) -> anyhow::Result<Vec<String>>;

    /// Bytes that are in the cache and not on the disk.
    fn dirty_bytes(&self) -> anyhow::Result<u64>;

    /// Begins to write everything back, as before the cache is taken away. Does not wait.
    fn start_drain(&mut self, shell: &mut Shell, devices: &Devices) -> anyhow::Result<()>;

    /// Takes it apart without writing anything back. The devices are free afterwards.
    fn destroy(&mut self, shell: &mut Shell, devices: &Devices) -> anyhow::Result<()>;
}

/// How our own cache becomes a block device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum Transport {
    /// A ublk device.
    Ublk,
    /// The kernel's NBD client on the daemon's Unix socket.
    Nbd,
}

impl From<BlockDevice> for Transport {
    fn from(kind: BlockDevice) -> Transport {
        match kind {
            BlockDevice::Ublk => Transport::Ublk,
            BlockDevice::Nbd => Transport::Nbd,
        }
    }
}

/// How a system becomes a block device: `asked`, where its kernel can.
pub fn transport_of(name: &str, asked: Transport) -> Transport {
    if name == OURS_OLD { Transport::Nbd } else { asked }
}

/// Series of the kernel that a system's guest runs.
pub fn kernel_of(name: &str) -> &'static str {
    if matches!(name, OURS_OLD | "dm-writeboost") { KERNEL_OLD } else { KERNEL }
}

/// True for our own cache, on whatever kernel.
pub fn is_ours(name: &str) -> bool {
    matches!(name, OURS | OURS_OLD)
}

/// The system of this name.
pub fn by_name(name: &str, transport: Transport) -> Option<Box<dyn System>> {
    Some(match name {
        OURS | OURS_OLD => Box::new(writeboost::Writeboost::new(transport)),
        NULL => Box::new(null::Null::default()),
        "bcache" => Box::new(bcache::Bcache::default()),
        "dm-cache" => Box::new(dm_cache::DmCache),
        "dm-writecache" => Box::new(dm_writecache::DmWritecache),
        "dm-writeboost" => Box::new(dm_writeboost::DmWriteboost),
        "raw-ssd" => Box::new(raw::Raw::Ssd),
        "raw-disk" => Box::new(raw::Raw::Disk),
        _ => return None,
    })
}

/// Name of a peer in tables and results.
pub fn name_of(peer: Peer) -> &'static str {
    match peer {
        Peer::Bcache => "bcache",
        Peer::DmCache => "dm-cache",
        Peer::DmWritecache => "dm-writecache",
        Peer::DmWriteboost => "dm-writeboost",
        Peer::RawSsd => "raw-ssd",
        Peer::RawDisk => "raw-disk",
    }
}

/// True for a bare device.
pub fn is_raw(name: &str) -> bool {
    name.starts_with("raw-")
}

/// Modules of the guest's kernel that a system needs.
pub fn modules_of(name: &str, transport: Transport) -> &'static [&'static str] {
    match (name, transport) {
        (OURS | OURS_OLD, Transport::Ublk) | (NULL, _) => &["ublk_drv"],
        (OURS | OURS_OLD, Transport::Nbd) => &["nbd"],
        ("bcache", _) => &["bcache"],
        ("dm-cache", _) => &["dm_mod", "dm_cache", "dm_cache_smq"],
        ("dm-writecache", _) => &["dm_mod", "dm_writecache"],
        ("dm-writeboost", _) => &["dm_mod", "dm_writeboost"],
        _ => &[],
    }
}

/// Overwrites the first bytes of a device, where superblocks are.
fn wipe(shell: &mut Shell, device: &Path, bytes: u64) -> anyhow::Result<()> {
    shell.record(format!("dd if=/dev/zero of={} bs={bytes} count=1", device.display()));
    let open = std::fs::File::options().write(true).open(device);
    let file = open.with_context(|| format!("cannot open {}", device.display()))?;
    file.write_all_at(&vec![0; bytes as usize], 0).with_context(|| format!("cannot write {}", device.display()))?;
    file.sync_all().with_context(|| format!("cannot flush {}", device.display()))
}

/// Overwrites the last bytes of a device, where some keep a copy.
fn wipe_end(device: &Path, bytes: u64) -> anyhow::Result<()> {
    let start = super::diskstats::size_bytes(device)?.saturating_sub(bytes);
    let open = std::fs::File::options().write(true).open(device);
    let file = open.with_context(|| format!("cannot open {}", device.display()))?;
    file.write_all_at(&vec![0; bytes as usize], start)?;
    file.sync_all().with_context(|| format!("cannot flush {}", device.display()))
}

/// The path as an argument.
fn text(path: &Path) -> &str {
    path.to_str().expect("paths of devices are text")
}
