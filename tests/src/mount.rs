//! A volume as a mounted filesystem, for tests that run as root. They end in `_mounted`.

use crate::daemon::text;
use crate::programs::check;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// The volume as a mounted filesystem: nbdfuse makes a file of it, losetup a block device. Dropped, all of it goes.
pub struct Mount {
    /// Where it is mounted.
    pub dir: PathBuf,
    export: PathBuf,
    fuse: Child,
    device: Option<String>,
    mounted: bool,
    /// The fuse mount of nbdfuse stays behind when nbdfuse dies, as it does with its server.
    exported: bool,
}

impl Mount {
    /// Attaches an export, with directories for it below `place`.
    pub fn attach(place: &Path, uri: &str) -> Mount {
        let (dir, export) = (place.join("mnt"), place.join("export"));
        std::fs::create_dir_all(&dir).and_then(|()| std::fs::create_dir_all(&export)).expect("directories");
        let file = export.join("disk");
        let mut command = Command::new("nbdfuse");
        command.arg(&file).arg(uri).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let fuse = command.spawn().unwrap_or_else(|error| {
            panic!("cannot run nbdfuse: {error}; install the package nbdfuse, or libnbd-bin before Debian 13")
        });
        let mut mount = Mount { dir, export, fuse, device: None, mounted: false, exported: true };
        let begun = Instant::now();
        while !file.exists() {
            let ended = mount.fuse.try_wait().expect("our own child");
            assert!(ended.is_none(), "nbdfuse ended: is /dev/fuse there, and fuse3 installed?");
            assert!(begun.elapsed() < Duration::from_secs(20), "nbdfuse shows no file");
            sleep(Duration::from_millis(20));
        }
        let device = check("util-linux", "losetup", &["--find", "--show", text(&file)]);
        mount.device = Some(device.trim().to_owned());
        mount
    }

    /// The loop device.
    pub fn device(&self) -> &str {
        self.device.as_deref().expect("attached")
    }

    /// Mounts it.
    pub fn mount(&mut self) {
        check("util-linux", "mount", &[self.device(), text(&self.dir)]);
        self.mounted = true;
    }

    /// Unmounts it.
    pub fn unmount(&mut self) {
        check("util-linux", "umount", &[text(&self.dir)]);
        self.mounted = false;
    }

    /// Everything undone, and every step of it good.
    pub fn detach(mut self) {
        if self.mounted {
            self.unmount();
        }
        check("util-linux", "losetup", &["-d", self.device()]);
        self.device = None;
        check("fuse3", "fusermount3", &["-u", text(&self.export)]);
        self.exported = false;
        self.fuse.wait().expect("our own child");
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        // A filesystem without its disk says so on the way out; its kernel thread still ends with a plain unmount.
        let quiet = |program: &str, args: &[&str]| {
            let output = Command::new(program).args(args).output();
            output.is_ok_and(|output| output.status.success())
        };
        if self.mounted && !quiet("umount", &[text(&self.dir)]) {
            quiet("umount", &["-l", text(&self.dir)]);
        }
        if let Some(device) = &self.device {
            quiet("losetup", &["-d", device]);
        }
        if self.exported {
            quiet("fusermount3", &["-uz", text(&self.export)]);
            let _ = self.fuse.kill();
            let _ = self.fuse.wait();
        }
    }
}
