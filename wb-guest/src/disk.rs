//! Disks of a guest.

use std::path::{Path, PathBuf};

#[derive(Debug, Clone)]
enum Source {
    File { path: PathBuf, cache: &'static str },
    Nbd { socket: PathBuf },
}

/// A virtio disk: /dev/vda, /dev/vdb... in the order in which they are given to the guest.
#[derive(Debug, Clone)]
pub struct Disk {
    source: Source,
    serial: Option<String>,
    sector_bytes: u32,
    drive_options: String,
}

impl Disk {
    fn new(source: Source) -> Disk {
        Disk { source, serial: None, sector_bytes: 512, drive_options: String::new() }
    }

    /// A raw image on this machine, through its page cache. What a killed guest wrote stays, flushed or not.
    pub fn file(path: impl AsRef<Path>) -> Disk {
        Disk::new(Source::File { path: path.as_ref().into(), cache: "writeback" })
    }

    /// A raw image past the page cache of this machine: for measurements.
    pub fn direct_file(path: impl AsRef<Path>) -> Disk {
        Disk::new(Source::File { path: path.as_ref().into(), cache: "none" })
    }

    /// An NBD server on a Unix socket, with whatever behaviour it models.
    pub fn nbd(socket: impl AsRef<Path>) -> Disk {
        Disk::new(Source::Nbd { socket: socket.as_ref().into() })
    }

    /// What the guest sees as the disk's serial number; at most 20 characters.
    pub fn serial(mut self, serial: &str) -> Disk {
        self.serial = Some(serial.into());
        self
    }

    /// Logical and physical sector.
    pub fn sector_bytes(mut self, bytes: u32) -> Disk {
        self.sector_bytes = bytes;
        self
    }

    /// More options of QEMU's `-drive`, such as `throttling.iops-total=200`.
    pub fn drive_options(mut self, options: &str) -> Disk {
        self.drive_options = options.into();
        self
    }

    /// Arguments of QEMU for the disk with this number.
    pub(crate) fn arguments(&self, number: usize) -> [String; 4] {
        let comma = |path: &Path| path.display().to_string().replace(',', ",,");
        let mut drive = match &self.source {
            Source::File { path, cache } => {
                let aio = if *cache == "none" { "io_uring" } else { "threads" };
                format!("file={},format=raw,cache={cache},aio={aio},discard=unmap", comma(path))
            }
            Source::Nbd { socket } => {
                format!(
                    "file.driver=nbd,file.server.type=unix,file.server.path={},format=raw,cache=none,discard=unmap",
                    comma(socket)
                )
            }
        };
        drive += &format!(",if=none,id=disk{number}");
        if !self.drive_options.is_empty() {
            drive += &format!(",{}", self.drive_options);
        }
        let mut device = format!(
            "virtio-blk-pci,drive=disk{number},request-merging=off,logical_block_size={0},physical_block_size={0}",
            self.sector_bytes
        );
        if let Some(serial) = &self.serial {
            device += &format!(",serial={serial}");
        }
        ["-drive".into(), drive, "-device".into(), device]
    }
}
