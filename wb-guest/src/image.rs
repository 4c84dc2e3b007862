//! What is in the guest: directories, busybox, programs with their libraries, files.

use crate::cpio::Cpio;
use crate::{find_program, output_of};
use anyhow::{Context as _, bail};
use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

const DIRECTORIES: [&str; 16] = [
    "bin",
    "dev",
    "etc",
    "lib",
    "lib/modules",
    "mnt",
    "out",
    "proc",
    "root",
    "run",
    "sbin",
    "sys",
    "tmp",
    "usr",
    "usr/bin",
    "usr/sbin",
];

enum Content {
    Copy(PathBuf),
    Bytes { bytes: Vec<u8>, permissions: u32 },
    Link(String),
}

/// The files of a guest, by their path in it.
pub struct Image {
    files: BTreeMap<String, Content>,
}

impl Image {
    /// busybox with all its applets, and nothing else.
    pub fn new() -> anyhow::Result<Image> {
        crate::check_programs()?;
        let busybox = find_program("busybox").context("busybox is missing: apt-get install busybox-static")?;
        let mut image = Image { files: BTreeMap::new() };
        let applets = String::from_utf8(output_of(Command::new(&busybox).arg("--list"))?)?;
        for applet in applets.lines().filter(|applet| !applet.is_empty() && *applet != "busybox") {
            image.files.insert(format!("bin/{applet}"), Content::Link("/bin/busybox".into()));
        }
        // Dynamic on a system that has it so: then with its libraries.
        image.executable(&busybox, "bin/busybox")?;
        Ok(image)
    }

    /// Adds a program of this machine under /usr/bin, with its libraries.
    pub fn program(&mut self, name: &str) -> anyhow::Result<&mut Image> {
        let path = find_program(name).with_context(|| format!("{name}, which the guest needs, is missing here"))?;
        self.program_file(&path)
    }

    /// [`Image::program`] for a file.
    pub fn program_file(&mut self, path: &Path) -> anyhow::Result<&mut Image> {
        let name = path.file_name().with_context(|| format!("{} is no program", path.display()))?;
        let name = name.to_string_lossy().into_owned();
        // Instead of busybox's own.
        self.files.remove(&format!("bin/{name}"));
        self.executable(path, &format!("usr/bin/{name}"))?;
        Ok(self)
    }

    /// Adds an executable under any path, with its libraries.
    pub fn executable(&mut self, path: &Path, to: &str) -> anyhow::Result<()> {
        if !path.is_file() {
            bail!("{} does not exist", path.display());
        }
        self.files.insert(to.trim_start_matches('/').into(), Content::Copy(path.into()));
        // ldd fails for static programs and scripts, which need no libraries.
        let Ok(libraries) = output_of(Command::new("ldd").arg(path)) else { return Ok(()) };
        for line in String::from_utf8_lossy(&libraries).lines() {
            if line.contains("not found") {
                bail!("{} misses a library here: {}", path.display(), line.trim());
            }
            if let Some(library) = line.split_whitespace().find(|word| word.starts_with('/')) {
                self.files.insert(library.trim_start_matches('/').into(), Content::Copy(library.into()));
            }
        }
        Ok(())
    }

    /// Makes every program in bin, sbin, usr/bin and usr/sbin found in each of them, as where these are one directory.
    pub fn merge_programs(&mut self) -> &mut Image {
        const PLACES: [&str; 4] = ["usr/bin", "usr/sbin", "bin", "sbin"];
        let programs: Vec<String> = self.files.keys().cloned().collect();
        for place in PLACES {
            let names = programs.iter().filter_map(|path| path.strip_prefix(place)?.strip_prefix('/'));
            for name in names.filter(|name| !name.contains('/')) {
                for other in PLACES.iter().filter(|other| **other != place) {
                    let link = || Content::Link(format!("/{place}/{name}"));
                    self.files.entry(format!("{other}/{name}")).or_insert_with(link);
                }
            }
        }
        self
    }

    /// Adds a file of this machine, with its permissions.
    pub fn copy(&mut self, from: &Path, to: &str) -> &mut Image {
        self.files.insert(to.trim_start_matches('/').into(), Content::Copy(from.into()));
        self
    }

    /// Adds a directory of this machine with everything below it. Links stay links.
    pub fn tree(&mut self, from: &Path, to: &str) -> anyhow::Result<&mut Image> {
        let read = || format!("cannot read {}", from.display());
        for entry in std::fs::read_dir(from).with_context(read)? {
            let entry = entry.with_context(read)?;
            let kind = entry.file_type().with_context(read)?;
            let to = format!("{to}/{}", entry.file_name().to_string_lossy());
            if kind.is_dir() {
                self.tree(&entry.path(), &to)?;
            } else if kind.is_symlink() {
                let target = std::fs::read_link(entry.path()).with_context(read)?;
                self.link(&to, &target.to_string_lossy());
            } else {
                self.copy(&entry.path(), &to);
            }
        }
        Ok(self)
    }

    /// Adds a symbolic link.
    pub fn link(&mut self, to: &str, target: &str) -> &mut Image {
        self.files.insert(to.trim_start_matches('/').into(), Content::Link(target.into()));
        self
    }

    /// Adds a file.
    pub fn file(&mut self, to: &str, permissions: u32, bytes: impl Into<Vec<u8>>) -> &mut Image {
        let content = Content::Bytes { bytes: bytes.into(), permissions };
        self.files.insert(to.trim_start_matches('/').into(), content);
        self
    }

    /// The initramfs.
    pub(crate) fn archive(&self) -> anyhow::Result<Vec<u8>> {
        let mut cpio = Cpio::new();
        let mut made: Vec<String> = Vec::new();
        for directory in DIRECTORIES {
            directories(&mut cpio, directory, &mut made);
        }
        for (path, content) in &self.files {
            if let Some((parent, _)) = path.rsplit_once('/') {
                directories(&mut cpio, parent, &mut made);
            }
            match content {
                Content::Link(target) => cpio.symlink(path, target),
                Content::Bytes { bytes, permissions } => cpio.file(path, *permissions, bytes),
                Content::Copy(from) => {
                    let read = || format!("cannot read {}", from.display());
                    let permissions = std::fs::metadata(from).with_context(read)?.permissions().mode() & 0o7777;
                    cpio.file(path, permissions, &std::fs::read(from).with_context(read)?);
                }
            }
        }
        Ok(cpio.finish())
    }
}

/// Makes a directory and those above it, each once.
fn directories(cpio: &mut Cpio, path: &str, made: &mut Vec<String>) {
    let mut end = 0;
    for part in path.split('/') {
        end += part.len() + usize::from(end > 0);
        if !made.iter().any(|known| known == &path[..end]) {
            cpio.directory(&path[..end]);
            made.push(path[..end].into());
        }
    }
}
