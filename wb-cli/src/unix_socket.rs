//! Unix sockets for their owner alone.

use crate::error::NextStep;
use anyhow::{Context as _, bail};
use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, listen, socket};
use nix::sys::stat::{Mode, fchmod};
use std::fs;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

/// A listening Unix socket at a path, with mode 0600. The path is removed when this is dropped, unless another process
/// has put its own socket there meanwhile.
#[derive(Debug)]
pub struct OwnerSocket {
    listener: UnixListener,
    path: PathBuf,
    inode: (u64, u64),
}

impl OwnerSocket {
    /// Binds and listens at `path`; a missing parent directory of that name alone is created (mode 0755).
    ///
    /// A socket file that a killed process left behind is replaced; a socket that somebody listens on, or anything
    /// else of that name, is an error.
    pub fn bind(path: &Path) -> anyhow::Result<OwnerSocket> {
        let doing = || format!("cannot listen on {}", path.display());
        let address = UnixAddr::new(path)
            .with_context(doing)
            .next_step("use a shorter path: a socket's path has at most 107 bytes")?;
        create_parent(path).with_context(doing)?;
        remove_stale(path).with_context(doing)?;
        let fd = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).with_context(doing)?;
        // The socket file gets the mode that the socket has when it is bound (unix_bind in the kernel's
        // net/unix/af_unix.c), so there is no moment at which others could connect.
        fchmod(&fd, Mode::S_IRUSR | Mode::S_IWUSR).with_context(doing)?;
        bind(fd.as_raw_fd(), &address).with_context(doing)?;
        listen(&fd, Backlog::new(128)?).with_context(doing)?;
        let meta = fs::symlink_metadata(path).with_context(doing)?;
        let listener = UnixListener::from(fd);
        Ok(OwnerSocket { listener, path: path.to_path_buf(), inode: (meta.dev(), meta.ino()) })
    }

    /// The listening socket.
    pub fn listener(&self) -> &UnixListener {
        &self.listener
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for OwnerSocket {
    fn drop(&mut self) {
        let ours = fs::symlink_metadata(&self.path).is_ok_and(|meta| (meta.dev(), meta.ino()) == self.inode);
        if ours {
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn create_parent(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(dir) if !dir.as_os_str().is_empty() && !dir.exists() => {
            match fs::DirBuilder::new().mode(0o755).create(dir) {
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(()),
                other => other,
            }
        }
        _ => Ok(()),
    }
}

/// Removes a socket file that nobody listens on.
fn remove_stale(path: &Path) -> anyhow::Result<()> {
    let meta = match fs::symlink_metadata(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other?,
    };
    if !meta.file_type().is_socket() {
        bail!("there is something else of that name, which is no socket");
    }
    match UnixStream::connect(path) {
        Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => Ok(fs::remove_file(path)?),
        Err(e) => Err(e.into()),
        Ok(_) => Err(anyhow::anyhow!("another process listens there")).next_step("stop it, or name another path"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::describe;

    #[test]
    fn the_socket_is_for_its_owner_and_goes_with_its_owner() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("new").join("x.sock");
        let socket = OwnerSocket::bind(&path).unwrap();
        assert_eq!(fs::symlink_metadata(&path).unwrap().mode() & 0o777, 0o600);
        UnixStream::connect(&path).unwrap();
        socket.listener().accept().unwrap();
        drop(socket);
        assert!(!path.exists());
    }

    #[test]
    fn a_left_over_socket_is_replaced_and_a_live_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.sock");
        drop(UnixListener::bind(&path).unwrap());
        assert!(path.exists(), "std leaves the file behind");
        let _live = OwnerSocket::bind(&path).unwrap();
        let err = describe(&OwnerSocket::bind(&path).unwrap_err());
        assert!(err.contains("another process listens") && err.contains("x.sock"), "{err}");
    }

    #[test]
    fn other_files_and_long_paths_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        fs::write(&path, "precious").unwrap();
        assert!(describe(&OwnerSocket::bind(&path).unwrap_err()).contains("no socket"));
        assert_eq!(fs::read(&path).unwrap(), b"precious");
        let long = dir.path().join("x".repeat(120));
        assert!(describe(&OwnerSocket::bind(&long).unwrap_err()).contains("shorter path"));
    }

    #[test]
    fn a_successors_socket_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.sock");
        let old = OwnerSocket::bind(&path).unwrap();
        fs::remove_file(&path).unwrap();
        // Keeps the inode number from being used again at once.
        fs::write(dir.path().join("filler"), "x").unwrap();
        let _new = UnixListener::bind(&path).unwrap();
        drop(old);
        assert!(path.exists());
    }
}
