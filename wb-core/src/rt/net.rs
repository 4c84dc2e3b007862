//! Stream sockets on the ring.

use super::op::{Payload, submit_with};
use super::send::SendQueue;
use crate::io::Buf;
use io_uring::{opcode, types};
use nix::fcntl::{Flock, FlockArg};
use nix::sys::socket::{self, AddressFamily, Backlog, SockFlag, SockType, UnixAddr, sockopt};
use std::fs::{File, Permissions};
use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::ops::Range;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Silence of a TCP peer after which it is asked whether it is still there, in seconds.
const KEEPALIVE_IDLE_S: u32 = 60;
/// Time between such questions, in seconds.
const KEEPALIVE_INTERVAL_S: u32 = 10;
/// Unanswered questions after which the peer is gone.
const KEEPALIVE_PROBES: u32 = 6;

/// Tries to lock a directory, and the pause between two.
const LOCK_TRIES: u32 = 100;
const LOCK_PAUSE_NS: u64 = 10_000_000;

/// Why a connection is of no use any more, or could not be made.
#[derive(Debug, thiserror::Error)]
pub enum NetError {
    /// The peer is gone: an end of file or a reset.
    #[error("the peer closed the connection{}", if *.received > 0 { " in the middle of a message" } else { "" })]
    Closed {
        /// Bytes of the message that had arrived.
        received: usize,
    },
    /// Another program serves this socket.
    #[error("{} is in use by another program; stop that one or choose another path", .0.display())]
    InUse(PathBuf),
    /// A file is in the way that is no socket.
    #[error("{} exists and is no socket; remove it or choose another path", .0.display())]
    NotASocket(PathBuf),
    /// Anything else.
    #[error("cannot {what}: {error}")]
    Os {
        /// What was attempted, with the address.
        what: String,
        /// The kernel's answer.
        error: io::Error,
    },
}

impl NetError {
    fn os(what: impl Into<String>, error: impl Into<io::Error>) -> NetError {
        NetError::Os { what: what.into(), error: error.into() }
    }

    pub(super) fn from_result(what: &'static str, result: i32) -> NetError {
        match -result {
            libc::ECONNRESET | libc::EPIPE | libc::ENOTCONN | libc::ESHUTDOWN => NetError::Closed { received: 0 },
            errno => NetError::os(what, io::Error::from_raw_os_error(errno)),
        }
    }
}

/// Which direction of a connection ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shutdown {
    /// Nothing more is received; a pending receive ends with what it has.
    Receive,
    /// Nothing more is sent; the peer sees the end of the stream.
    Send,
    /// Both.
    Both,
}

/// True for results after which the same call is simply made again.
pub(super) fn is_retry(result: i32) -> bool {
    -result == libc::EINTR || -result == libc::EAGAIN
}

struct AcceptPayload {
    _listener: Arc<OwnedFd>,
}

impl Payload for AcceptPayload {
    const CANCEL_ON_DROP: bool = true;
    fn abandoned(self, result: i32) {
        if result >= 0 {
            // SAFETY: the kernel has just made this descriptor for us, and nobody else knows it.
            drop(unsafe { OwnedFd::from_raw_fd(result) });
        }
    }
}

/// A socket's file, removed with its listener unless something else has taken its place.
#[derive(Debug)]
struct SocketFile {
    path: PathBuf,
    device_inode: (u64, u64),
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let ours = |meta: std::fs::Metadata| (meta.dev(), meta.ino()) == self.device_inode;
        if std::fs::symlink_metadata(&self.path).is_ok_and(ours) {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// A socket that waits for connections.
#[derive(Debug)]
pub struct Listener {
    fd: Arc<OwnedFd>,
    file: Option<SocketFile>,
    address: Option<SocketAddr>,
}

impl Listener {
    /// Listens on a Unix socket whose file has the permissions `mode` (0o600: its owner only) from the first moment at
    /// which somebody could connect. The file of a server that is gone is replaced; it is removed with the listener.
    pub fn unix(path: &Path, mode: u32) -> Result<Listener, NetError> {
        let what = || format!("listen on {}", path.display());
        // One at a time: a socket that another process has bound and not yet made listen looks like a stale one.
        let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        // A directory that cannot be read cannot be locked either; the rest works without. Nor is there any wait for who holds
        // it for long: others may be able to open that directory.
        let mut directory = File::open(directory).ok();
        let mut _one = None;
        for _ in 0..LOCK_TRIES {
            let Some(dir) = directory.take() else { break };
            match Flock::lock(dir, FlockArg::LockExclusiveNonblock) {
                Ok(lock) => _one = Some(lock),
                Err((dir, nix::errno::Errno::EWOULDBLOCK)) => {
                    directory = Some(dir);
                    super::thread::pause_ns(LOCK_PAUSE_NS);
                }
                Err(_) => {}
            }
        }
        remove_stale(path)?;
        let flags = SockFlag::SOCK_CLOEXEC;
        let fd = socket::socket(AddressFamily::Unix, SockType::Stream, flags, None)
            .map_err(|errno| NetError::os(what(), errno))?;
        let address = UnixAddr::new(path).map_err(|errno| NetError::os(what(), errno))?;
        match socket::bind(fd.as_raw_fd(), &address) {
            Ok(()) => {}
            Err(nix::errno::Errno::EADDRINUSE) => return Err(NetError::InUse(path.into())),
            Err(errno) => return Err(NetError::os(what(), errno)),
        }
        let meta = std::fs::symlink_metadata(path).map_err(|error| NetError::os(what(), error))?;
        let file = SocketFile { path: path.into(), device_inode: (meta.dev(), meta.ino()) };
        // Nobody can connect before `listen`, so nobody slips in before the permissions are set.
        std::fs::set_permissions(path, Permissions::from_mode(mode)).map_err(|error| NetError::os(what(), error))?;
        let backlog = Backlog::new(128).expect("a backlog that the kernel accepts");
        socket::listen(&fd, backlog).map_err(|errno| NetError::os(what(), errno))?;
        Ok(Listener { fd: Arc::new(fd), file: Some(file), address: None })
    }

    /// Listens on a TCP address; port 0 lets the kernel choose one.
    pub fn tcp(address: SocketAddr) -> Result<Listener, NetError> {
        let what = |error| NetError::os(format!("listen on {address}"), error);
        let listener = TcpListener::bind(address).map_err(what)?;
        let address = listener.local_addr().map_err(what)?;
        Ok(Listener { fd: Arc::new(OwnedFd::from(listener)), file: None, address: Some(address) })
    }

    /// The address in use, for TCP.
    pub fn address(&self) -> Option<SocketAddr> {
        self.address
    }

    /// The socket's file, for Unix.
    pub fn path(&self) -> Option<&Path> {
        self.file.as_ref().map(|file| file.path.as_path())
    }

    /// The next connection. Errors for lack of resources (descriptors, memory) pass; try again after a pause.
    pub async fn accept(&self) -> Result<Stream, NetError> {
        loop {
            let fd = types::Fd(self.fd.as_raw_fd());
            let entry = opcode::Accept::new(fd, std::ptr::null_mut(), std::ptr::null_mut()).flags(libc::SOCK_CLOEXEC);
            let payload = AcceptPayload { _listener: self.fd.clone() };
            // SAFETY: no addresses are asked for; the payload keeps the descriptor open.
            let result = unsafe { submit_with(entry.build(), payload) }.await.result;
            if result >= 0 {
                // SAFETY: the kernel has just made this descriptor for us.
                let stream = Stream::from(unsafe { OwnedFd::from_raw_fd(result) });
                if self.address.is_some() {
                    stream.tune_tcp();
                }
                return Ok(stream);
            }
            // A connection that broke before it was accepted is nobody's concern.
            if !is_retry(result) && -result != libc::ECONNABORTED {
                return Err(NetError::from_result("accept a connection", result));
            }
        }
    }
}

/// Removes the socket of a server that is gone.
fn remove_stale(path: &Path) -> Result<(), NetError> {
    let what = |error| NetError::os(format!("look at {}", path.display()), error);
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(what(error)),
        Ok(meta) if !meta.file_type().is_socket() => return Err(NetError::NotASocket(path.into())),
        Ok(_) => {}
    }
    match UnixStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => std::fs::remove_file(path).map_err(what),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        _ => Err(NetError::InUse(path.into())),
    }
}

pub(super) struct SocketPayload<T> {
    pub(super) _socket: Arc<OwnedFd>,
    pub(super) data: T,
}

impl<T: 'static> Payload for SocketPayload<T> {
    const CANCEL_ON_DROP: bool = true;
}

/// A connection. Clones are the same connection: one task may receive while another sends.
#[derive(Debug, Clone)]
pub struct Stream {
    pub(super) fd: Arc<OwnedFd>,
}

impl From<OwnedFd> for Stream {
    /// Takes over a connected stream socket.
    fn from(fd: OwnedFd) -> Stream {
        Stream { fd: Arc::new(fd) }
    }
}

impl From<UnixStream> for Stream {
    fn from(stream: UnixStream) -> Stream {
        Stream::from(OwnedFd::from(stream))
    }
}

impl From<TcpStream> for Stream {
    fn from(stream: TcpStream) -> Stream {
        let stream = Stream::from(OwnedFd::from(stream));
        stream.tune_tcp();
        stream
    }
}

impl Stream {
    /// Small replies go out at once; a peer that vanished without a word is noticed within two minutes.
    fn tune_tcp(&self) {
        // Without these the connection works too.
        let _ = socket::setsockopt(&*self.fd, sockopt::TcpNoDelay, &true);
        let _ = socket::setsockopt(&*self.fd, sockopt::KeepAlive, &true);
        let _ = socket::setsockopt(&*self.fd, sockopt::TcpKeepIdle, &KEEPALIVE_IDLE_S);
        let _ = socket::setsockopt(&*self.fd, sockopt::TcpKeepInterval, &KEEPALIVE_INTERVAL_S);
        let _ = socket::setsockopt(&*self.fd, sockopt::TcpKeepCount, &KEEPALIVE_PROBES);
    }

    /// Who is at the other end, for logs: address and port, or the process of a Unix socket.
    pub fn peer(&self) -> String {
        if let Ok(credentials) = socket::getsockopt(&*self.fd, sockopt::PeerCredentials)
            && credentials.pid() != 0
        {
            return format!("process {} of user {}", credentials.pid(), credentials.uid());
        }
        match socket::getpeername::<socket::SockaddrStorage>(self.fd.as_raw_fd()) {
            Ok(address) => address.to_string(),
            Err(_) => "an unknown peer".into(),
        }
    }

    /// Receives at least one byte, at most `range.len()`, into this part of the buffer; 0 at the end of the stream.
    ///
    /// Dropping the future cancels the call at the end of the turn; bytes that arrive until then are lost.
    pub async fn recv(&self, buf: Buf, range: Range<usize>) -> (Result<usize, NetError>, Buf) {
        self.recv_flags(buf, range, 0).await
    }

    /// Fills this part of the buffer. [`NetError::Closed`] tells how much had come when the stream ended.
    pub async fn recv_exact(&self, mut buf: Buf, range: Range<usize>) -> (Result<(), NetError>, Buf) {
        let mut at = range.start;
        while at < range.end {
            let result;
            (result, buf) = self.recv_flags(buf, at..range.end, libc::MSG_WAITALL).await;
            match result {
                Ok(0) | Err(NetError::Closed { .. }) => {
                    return (Err(NetError::Closed { received: at - range.start }), buf);
                }
                Ok(count) => at += count,
                Err(error) => return (Err(error), buf),
            }
        }
        (Ok(()), buf)
    }

    async fn recv_flags(&self, mut buf: Buf, range: Range<usize>, flags: i32) -> (Result<usize, NetError>, Buf) {
        assert!(range.start < range.end && range.end <= buf.len(), "a part of the buffer, not empty");
        let len = u32::try_from(range.len()).unwrap_or(u32::MAX);
        loop {
            // SAFETY: the start of the range is within the buffer.
            let start = unsafe { buf.as_mut_ptr().add(range.start) };
            let entry = opcode::Recv::new(types::Fd(self.fd.as_raw_fd()), start, len).flags(flags).build();
            let payload = SocketPayload { _socket: self.fd.clone(), data: buf };
            // SAFETY: the payload owns the memory, exclusively, and keeps the descriptor open; a `Buf` points to the heap.
            let done = unsafe { submit_with(entry, payload) }.await;
            buf = done.payload.data;
            match done.result {
                0.. => return (Ok(done.result as usize), buf),
                result if is_retry(result) => {}
                result => return (Err(NetError::from_result("receive", result)), buf),
            }
        }
    }

    /// Sends everything in the queue, in order, and gives the queue back empty.
    ///
    /// After an error, or if the future was dropped, an unknown part has been sent: the connection is of no use.
    pub async fn send(&self, queue: SendQueue) -> (Result<(), NetError>, SendQueue) {
        super::send::send(self, queue).await
    }

    /// Sends these bytes.
    pub async fn send_bytes(&self, bytes: &[u8]) -> Result<(), NetError> {
        let mut queue = SendQueue::new();
        queue.push_bytes(bytes);
        self.send(queue).await.0
    }

    /// Ends one or both directions for all clones.
    pub fn shutdown(&self, how: Shutdown) -> Result<(), NetError> {
        let how = match how {
            Shutdown::Receive => socket::Shutdown::Read,
            Shutdown::Send => socket::Shutdown::Write,
            Shutdown::Both => socket::Shutdown::Both,
        };
        match socket::shutdown(self.fd.as_raw_fd(), how) {
            Ok(()) | Err(nix::errno::Errno::ENOTCONN) => Ok(()),
            Err(errno) => Err(NetError::os("shut a connection down", errno)),
        }
    }
}
