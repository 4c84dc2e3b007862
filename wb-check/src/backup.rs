//! The file that keeps what a repair replaces.
//!
//! A line `writeboost backup 1 UUID`, then for each block a line `OFFSET LENGTH` (bytes, decimal) and the block itself,
//! in the order in which they were replaced. To undo a repair, write the blocks back from the last to the first.

use anyhow::Context as _;
use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use uuid::Uuid;
use wb_cli::NextStep;
use wb_core::ByteOffset;
use wb_core::check::Backup;

/// An open backup file.
pub struct BackupFile {
    /// Where it is.
    pub path: PathBuf,
    file: File,
}

impl BackupFile {
    /// Creates the file. An existing one is never overwritten: if no name was given, the next free one beside the image
    /// is taken.
    pub fn create(named: Option<&Path>, cache: &Path, uuid: Uuid) -> anyhow::Result<BackupFile> {
        let (path, mut file) = match named {
            Some(path) => {
                let file = open_new(path)
                    .with_context(|| format!("cannot create the backup file {}", path.display()))
                    .next_step("name a new file with --backup FILE")?;
                (path.to_path_buf(), file)
            }
            None => beside(cache)?,
        };
        // Its name, too, must outlive a power cut.
        let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let begun =
            writeln!(file, "writeboost backup 1 {uuid}").and_then(|()| file.sync_all()).and_then(
                |()| match File::open(directory) {
                    Ok(directory) => directory.sync_all(),
                    // One may write there and not look.
                    Err(error) if error.kind() == ErrorKind::PermissionDenied => Ok(()),
                    Err(error) => Err(error),
                },
            );
        begun.with_context(|| format!("cannot write the backup file {}", path.display()))?;
        Ok(BackupFile { path, file })
    }
}

fn open_new(path: &Path) -> std::io::Result<File> {
    // It holds what the cache holds: for its owner only.
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)
}

fn beside(cache: &Path) -> anyhow::Result<(PathBuf, File)> {
    for number in 0.. {
        let mut name = cache.as_os_str().to_owned();
        name.push(if number == 0 { ".backup".to_owned() } else { format!(".backup.{number}") });
        let path = PathBuf::from(name);
        match open_new(&path) {
            Ok(file) => return Ok((path, file)),
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
            Err(error) => {
                return Err(error)
                    .with_context(|| format!("cannot create the backup file {}", path.display()))
                    .next_step("name another place with --backup FILE");
            }
        }
    }
    unreachable!("some number is free")
}

impl Backup for BackupFile {
    fn save(&mut self, offset: ByteOffset, block: &[u8]) -> Result<(), String> {
        let written = writeln!(self.file, "{offset} {}", block.len())
            .and_then(|()| self.file.write_all(block))
            .and_then(|()| self.file.sync_data());
        written.map_err(|error| format!("{}: {error}", self.path.display()))
    }
}
