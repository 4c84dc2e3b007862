//! Guests with the workspace's own binaries: see the crate `wb-guest`.

use crate::tool::bin;
use std::path::Path;
use std::time::Duration;
pub use wb_guest::{Disk, Guest, Image, Kernel, Outcome, Running};

/// Programs of this machine that scenarios use.
const PROGRAMS: [&str; 10] =
    ["blkdiscard", "blockdev", "dd", "e2fsck", "fio", "lsblk", "mkfs.ext4", "mkfs.xfs", "sfdisk", "xfs_repair"];
/// The series of kernels that everything is tested on.
pub const KERNEL: &str = "6.12";

/// A file of the workspace, as it is when the test runs.
pub fn ours(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn without_debug_info(program: &Path) -> Vec<u8> {
    let dir = tempfile::tempdir().expect("a directory");
    let small = dir.path().join("program");
    let done = std::process::Command::new("strip").arg("--strip-debug").arg("-o").arg(&small).arg(program).status();
    assert!(done.is_ok_and(|status| status.success()), "strip (package binutils) fails for {}", program.display());
    std::fs::read(&small).expect("written")
}

/// A guest with busybox alone.
pub fn bare(script: &str) -> Guest {
    Guest::new(Kernel::find(KERNEL).expect("a kernel"), Image::new().expect("an image"), script)
}

/// A guest that has our tools, the programs that scenarios use, and functions for scenarios (`tests/guest/lib.sh`).
pub fn guest(script: &str) -> Guest {
    let mut guest = with_kernel(tools_image(), script);
    guest.modules(&["ublk_drv", "xfs"]);
    guest
}

fn tools_image() -> Image {
    let mut image = Image::new().expect("an image");
    for name in PROGRAMS {
        image.program(name).unwrap_or_else(|error| panic!("{error:#}: run `make setup`"));
    }
    for name in ["wb-format", "wb-daemon", "wb-check", "wb-dump", "wb-busy"] {
        let program = bin(name);
        image.program_file(&program).expect("one of our tools");
        // The guest unpacks all of it at every boot.
        image.file(&format!("usr/bin/{name}"), 0o755, without_debug_info(&program));
    }
    image.file("lib.sh", 0o644, ours("tests/guest/lib.sh"));
    image
}

fn with_kernel(image: Image, script: &str) -> Guest {
    let kernel = Kernel::find(KERNEL).expect("a kernel");
    let mut guest = Guest::new(kernel, image, &format!(". /lib.sh\n{script}"));
    // On a busy machine the kernel takes QEMU's timer for a broken one.
    guest.kernel_arguments = "no_timer_check".into();
    guest.limit = Duration::from_secs(170);
    guest
}

/// Programs of systemd in /usr/lib/systemd that a guest with it needs.
const SYSTEMD: [&str; 11] = [
    "systemd",
    "systemd-fsck",
    "systemd-journald",
    "systemd-modules-load",
    "systemd-remount-fs",
    "systemd-shutdown",
    "systemd-sulogin-shell",
    "systemd-sysctl",
    "systemd-udevd",
    "systemd-update-utmp",
    "system-generators/systemd-fstab-generator",
];

/// A guest like [`guest`] under systemd and udev, with our unit and rule as `make install` has them for a prefix of /usr. The
/// script runs as a service when the system is up. At its end the guest shuts down as a machine does.
pub fn systemd_guest(script: &str) -> Guest {
    let mut image = tools_image();
    for name in [
        "systemctl",
        "journalctl",
        "udevadm",
        "systemd-tmpfiles",
        "mount",
        "umount",
        "blkid",
        "findmnt",
        "fsck",
        "fsck.ext4",
    ] {
        image.program(name).unwrap_or_else(|error| panic!("{error:#}: run `make setup`"));
    }
    for name in SYSTEMD {
        let path = Path::new("/usr/lib/systemd").join(name);
        image.executable(&path, &path.to_string_lossy()).unwrap_or_else(|error| panic!("{error:#}: run `make setup`"));
    }
    for dir in ["/usr/lib/systemd/system", "/usr/lib/udev/rules.d", "/usr/lib/tmpfiles.d"] {
        image.tree(Path::new(dir), dir).expect("systemd's own units and rules");
    }
    for (name, text) in [
        ("etc/passwd", "root:x:0:0:root:/root:/bin/sh\n".into()),
        ("etc/nsswitch.conf", "passwd: files\ngroup: files\n".into()),
        ("etc/machine-id", "0123456789abcdef0123456789abcdef\n".into()),
        ("etc/os-release", "ID=guest\nNAME=guest\n".into()),
        ("etc/group", ours("tests/guest/group")),
        ("etc/fstab", String::new()),
        ("usr/lib/systemd/system/scenario.service", ours("tests/guest/scenario.service")),
        (
            "usr/lib/systemd/system/writeboost@.service",
            ours("systemd/writeboost@.service").replace("@BINDIR@", "/usr/bin"),
        ),
        ("usr/lib/udev/rules.d/60-writeboost.rules", ours("systemd/60-writeboost.rules")),
    ] {
        image.file(name, 0o644, text);
    }
    image.file("second-init", 0o755, ours("tests/guest/systemd-init.sh"));
    image.file("run-scenario", 0o755, ours("tests/guest/run-scenario.sh"));
    image.merge_programs();
    let mut guest = with_kernel(image, script);
    guest.modules_on_demand(&["ublk_drv"]);
    guest.kernel_arguments +=
        " systemd.unit=scenario.service systemd.mask=systemd-random-seed.service systemd.mask=systemd-sysusers.service";
    guest.limit = Duration::from_secs(400);
    guest
}

/// A sparse file as a disk.
pub struct SparseDisk {
    _dir: tempfile::TempDir,
    path: std::path::PathBuf,
}

impl SparseDisk {
    /// A disk of zeroes.
    pub fn new(bytes: u64) -> SparseDisk {
        // Not in /tmp, which may be memory.
        let parent = std::env::var_os("TMPDIR").unwrap_or_else(|| "/var/tmp".into());
        let dir = tempfile::Builder::new().prefix("wb-disk-").tempdir_in(parent).expect("a directory");
        let path = dir.path().join("disk.img");
        std::fs::File::create(&path).and_then(|file| file.set_len(bytes)).expect("a sparse file");
        SparseDisk { _dir: dir, path }
    }

    /// The image.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// For a guest.
    pub fn disk(&self) -> Disk {
        Disk::file(&self.path)
    }
}
