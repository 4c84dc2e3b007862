//! A blocking NBD client, written against the protocol document and not against our server: its numbers are its own.
//!
//! [`NbdClient`] does single commands, pipelined ones (send many, collect replies as they come) and raw bytes for
//! malformed frames. Source: `doc/proto.md` of the Network Block Device project.

mod raw;

pub use raw::RawClient;
use raw::{bad, be16, be32, be64};
use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Error numbers of the protocol.
pub mod errno {
    /// Operation not permitted.
    pub const EPERM: u32 = 1;
    /// Input/output error.
    pub const EIO: u32 = 5;
    /// Invalid argument.
    pub const EINVAL: u32 = 22;
    /// No space left on device.
    pub const ENOSPC: u32 = 28;
    /// Value too large.
    pub const EOVERFLOW: u32 = 75;
    /// Server is in the process of being shut down.
    pub const ESHUTDOWN: u32 = 108;
}

/// Command flags.
pub mod flag {
    /// Durable when answered.
    pub const FUA: u16 = 1;
    /// Zeroes that keep their space.
    pub const NO_HOLE: u16 = 2;
    /// Answer a read in one chunk.
    pub const DF: u16 = 4;
}

/// Where a server listens.
#[derive(Debug, Clone)]
pub enum Address {
    /// A Unix socket.
    Unix(PathBuf),
    /// A TCP socket.
    Tcp(SocketAddr),
}

impl From<&Path> for Address {
    fn from(path: &Path) -> Address {
        Address::Unix(path.to_owned())
    }
}

/// Which handshake to make.
#[derive(Debug, Clone)]
pub struct ConnectOptions {
    /// Name of the export; empty for the default one.
    pub export: String,
    /// Ask for structured replies.
    pub structured: bool,
    /// Use the old NBD_OPT_EXPORT_NAME instead of NBD_OPT_GO.
    pub export_name: bool,
    /// Longest wait for bytes of the server; then operations fail with `WouldBlock`.
    pub timeout: Option<Duration>,
}

impl Default for ConnectOptions {
    fn default() -> ConnectOptions {
        let timeout = Some(Duration::from_secs(30));
        ConnectOptions { export: String::new(), structured: true, export_name: false, timeout }
    }
}

/// Why a command failed.
#[derive(Debug)]
pub enum Failure {
    /// The server's answer was this error, see [`errno`]; the connection lives on.
    Refused(u32),
    /// The connection broke, or the server said something that the protocol forbids.
    Connection(io::Error),
}

impl Failure {
    /// The server's error number, if it answered.
    pub fn code(&self) -> Option<u32> {
        match self {
            Failure::Refused(code) => Some(*code),
            Failure::Connection(_) => None,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::Refused(code) => write!(f, "the server answered with error {code}"),
            Failure::Connection(error) => write!(f, "connection to the server: {error}"),
        }
    }
}

impl std::error::Error for Failure {}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Failure {
        Failure::Connection(error)
    }
}

/// A command.
#[derive(Debug, Clone, Copy)]
#[repr(u16)]
pub enum Command {
    /// Read.
    Read = 0,
    /// Write; the payload follows the header.
    Write = 1,
    /// Finish and close; never answered.
    Disconnect = 2,
    /// Make answered writes durable.
    Flush = 3,
    /// The range is not needed.
    Trim = 4,
    /// Make the range read as zeroes.
    WriteZeroes = 6,
}

/// A complete reply, all chunks of it.
#[derive(Debug)]
pub struct Reply {
    /// As returned by the sending call.
    pub cookie: u64,
    /// Data of a read (empty for other commands), or the server's error number.
    pub result: Result<Vec<u8>, u32>,
    /// Content chunks it came in (structured replies).
    pub chunks: usize,
    /// Place of the error, if the server named it (structured replies).
    pub error_offset: Option<u64>,
}

/// What the server said about the export.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ExportInfo {
    /// Bytes of the export.
    pub size_bytes: u64,
    /// Transmission flags.
    pub flags: u16,
    /// Minimum, preferred block size and maximum payload, if the server told.
    pub block_sizes: Option<(u32, u32, u32)>,
    /// The export's own name, if the server told.
    pub name: Option<String>,
    /// Words for people, if the server told.
    pub description: Option<String>,
}

/// A connection in the transmission phase.
pub struct NbdClient {
    raw: RawClient,
    info: ExportInfo,
    structured: bool,
    next_cookie: u64,
    /// Start and length of the data that each reply will bring.
    in_flight: BTreeMap<u64, (u64, u32)>,
    /// Structured replies of which chunks have come.
    partial: BTreeMap<u64, Reply>,
}

impl NbdClient {
    /// Connects to the default export of a Unix socket, with structured replies.
    pub fn connect_unix(path: &Path) -> io::Result<NbdClient> {
        NbdClient::connect(&path.into(), &ConnectOptions::default())
    }

    /// Connects and does the handshake.
    pub fn connect(address: &Address, options: &ConnectOptions) -> io::Result<NbdClient> {
        let mut raw = RawClient::connect(address)?;
        raw.set_timeout(options.timeout)?;
        raw.greet(3)?;
        let mut structured = false;
        if options.structured {
            raw.send_option(8, b"")?;
            structured = raw.recv_option_reply(8)?.0 == 1;
        }
        let mut info = ExportInfo::default();
        if options.export_name {
            raw.send_option(1, options.export.as_bytes())?;
            let reply = raw.recv(10)?;
            (info.size_bytes, info.flags) = (be64(&reply), be16(&reply[8..]));
        } else {
            info = go(&mut raw, &options.export)?;
        }
        Ok(NbdClient::from_raw(raw, info, structured))
    }

    /// Goes on with a connection whose handshake was made by hand.
    pub fn from_raw(raw: RawClient, info: ExportInfo, structured: bool) -> NbdClient {
        NbdClient { raw, info, structured, next_cookie: 1, in_flight: BTreeMap::new(), partial: BTreeMap::new() }
    }

    /// What the server said about the export.
    pub fn info(&self) -> &ExportInfo {
        &self.info
    }

    /// The bare connection, for malformed frames.
    pub fn raw(&mut self) -> &mut RawClient {
        &mut self.raw
    }

    /// Cookies of the commands that have not been answered.
    pub fn in_flight(&self) -> impl Iterator<Item = u64> {
        self.in_flight.keys().copied()
    }

    /// Sends a command and returns its cookie, without waiting for the reply. `payload` is for writes and stands as it
    /// is behind the header, whatever `len` says. Both sides block when their socket buffers are full: keep what is
    /// unanswered below about 100 KiB, or collect replies from another thread.
    pub fn send(&mut self, command: Command, flags: u16, offset: u64, len: u32, payload: &[u8]) -> io::Result<u64> {
        self.send_numbered(command as u16, flags, offset, len, payload)
    }

    /// [`NbdClient::send`] with any number for the command.
    pub fn send_numbered(&mut self, kind: u16, flags: u16, offset: u64, len: u32, payload: &[u8]) -> io::Result<u64> {
        let cookie = self.next_cookie;
        self.next_cookie += 1;
        let mut frame = Vec::with_capacity(28 + payload.len());
        frame.extend_from_slice(&0x2560_9513_u32.to_be_bytes());
        frame.extend_from_slice(&flags.to_be_bytes());
        frame.extend_from_slice(&kind.to_be_bytes());
        frame.extend_from_slice(&cookie.to_be_bytes());
        frame.extend_from_slice(&offset.to_be_bytes());
        frame.extend_from_slice(&len.to_be_bytes());
        frame.extend_from_slice(payload);
        self.raw.send(&frame)?;
        if kind != Command::Disconnect as u16 {
            self.in_flight.insert(cookie, (offset, if kind == Command::Read as u16 { len } else { 0 }));
        }
        Ok(cookie)
    }

    /// Waits for the next complete reply, to whichever command it is.
    pub fn recv(&mut self) -> io::Result<Reply> {
        loop {
            let magic = be32(&self.raw.recv(4)?);
            let done = match magic {
                0x6744_6698 => Some(self.recv_simple()?),
                0x668e_33ef if self.structured => self.recv_chunk()?,
                other => return Err(bad(format!("reply with magic {other:#x}"))),
            };
            if let Some(reply) = done {
                self.in_flight.remove(&reply.cookie);
                return Ok(reply);
            }
        }
    }

    fn range_of(&self, cookie: u64) -> io::Result<(u64, u32)> {
        self.in_flight.get(&cookie).copied().ok_or_else(|| bad(format!("reply to unknown cookie {cookie}")))
    }

    fn recv_simple(&mut self) -> io::Result<Reply> {
        let head = self.raw.recv(12)?;
        let (error, cookie) = (be32(&head), be64(&head[4..]));
        let (_, len) = self.range_of(cookie)?;
        if self.structured && len > 0 {
            return Err(bad("simple reply to a read after structured replies were agreed on"));
        }
        let result = if error == 0 { Ok(self.raw.recv(len as usize)?) } else { Err(error) };
        Ok(Reply { cookie, result, chunks: 0, error_offset: None })
    }

    /// One chunk; the reply if it was the last one.
    fn recv_chunk(&mut self) -> io::Result<Option<Reply>> {
        let head = self.raw.recv(16)?;
        let (flags, kind, cookie) = (be16(&head), be16(&head[2..]), be64(&head[4..]));
        let payload = self.raw.recv(be32(&head[12..]) as usize)?;
        let (start, len) = self.range_of(cookie)?;
        let empty = || Reply { cookie, result: Ok(vec![0; len as usize]), chunks: 0, error_offset: None };
        let mut reply = self.partial.remove(&cookie).unwrap_or_else(empty);
        match kind {
            0 if payload.is_empty() => {}
            1 if payload.len() > 8 => {
                reply.chunks += 1;
                let at = be64(&payload).checked_sub(start).and_then(|at| usize::try_from(at).ok());
                let data = &payload[8..];
                if let Ok(whole) = &mut reply.result {
                    let range = at.and_then(|at| whole.get_mut(at..at.checked_add(data.len())?));
                    range.ok_or_else(|| bad("chunk outside the request"))?.copy_from_slice(data);
                }
            }
            0x8001 if payload.len() >= 6 => reply.result = Err(be32(&payload)),
            0x8002 if payload.len() >= 14 => {
                reply.result = Err(be32(&payload));
                reply.error_offset = Some(be64(&payload[payload.len() - 8..]));
            }
            other => return Err(bad(format!("chunk of type {other:#x} with {} bytes", payload.len()))),
        }
        if flags & 1 == 0 {
            self.partial.insert(cookie, reply);
            return Ok(None);
        }
        Ok(Some(reply))
    }

    /// Sends a command and waits for its reply. No other command may be in flight.
    pub fn call(
        &mut self,
        command: Command,
        flags: u16,
        offset: u64,
        len: u32,
        payload: &[u8],
    ) -> Result<Reply, Failure> {
        let cookie = self.send(command, flags, offset, len, payload)?;
        let reply = self.recv()?;
        if reply.cookie != cookie {
            return Err(bad("reply to another command").into());
        }
        Ok(reply)
    }

    fn simple(
        &mut self,
        command: Command,
        flags: u16,
        offset: u64,
        len: u32,
        payload: &[u8],
    ) -> Result<Vec<u8>, Failure> {
        self.call(command, flags, offset, len, payload)?.result.map_err(Failure::Refused)
    }

    /// Reads.
    pub fn read(&mut self, offset: u64, len: u32) -> Result<Vec<u8>, Failure> {
        self.simple(Command::Read, 0, offset, len, &[])
    }
    /// Writes; `flags` may hold [`flag::FUA`].
    pub fn write(&mut self, offset: u64, data: &[u8], flags: u16) -> Result<(), Failure> {
        let len = u32::try_from(data.len()).map_err(|_| bad("payload too long"))?;
        self.simple(Command::Write, flags, offset, len, data).map(drop)
    }
    /// Makes answered writes durable.
    pub fn flush(&mut self) -> Result<(), Failure> {
        self.simple(Command::Flush, 0, 0, 0, &[]).map(drop)
    }
    /// Trims.
    pub fn trim(&mut self, offset: u64, len: u32, flags: u16) -> Result<(), Failure> {
        self.simple(Command::Trim, flags, offset, len, &[]).map(drop)
    }
    /// Zeroes.
    pub fn write_zeroes(&mut self, offset: u64, len: u32, flags: u16) -> Result<(), Failure> {
        self.simple(Command::WriteZeroes, flags, offset, len, &[]).map(drop)
    }
    /// Says goodbye and waits until the server has closed; what was still unanswered comes back.
    pub fn disconnect(mut self) -> Result<Vec<Reply>, Failure> {
        self.send(Command::Disconnect, 0, 0, 0, &[])?;
        let mut replies = Vec::new();
        while !self.in_flight.is_empty() {
            replies.push(self.recv()?);
        }
        match self.raw.recv_to_end()?.len() {
            0 => Ok(replies),
            more => Err(bad(format!("{more} bytes after the last reply")).into()),
        }
    }
}

/// NBD_OPT_GO with all information requests.
fn go(raw: &mut RawClient, export: &str) -> io::Result<ExportInfo> {
    let name_len = u32::try_from(export.len()).map_err(|_| bad("name too long"))?;
    raw.send_option(7, &[&name_len.to_be_bytes()[..], export.as_bytes(), &[0, 3, 0, 1, 0, 2, 0, 3]].concat())?;
    let mut info = ExportInfo::default();
    loop {
        let (kind, data) = raw.recv_option_reply(7)?;
        let text = || String::from_utf8_lossy(&data[2..]).into_owned();
        match (kind, data.len()) {
            (1, _) => return Ok(info),
            (3, 2..) => match (be16(&data), data.len()) {
                (0, 12) => (info.size_bytes, info.flags) = (be64(&data[2..]), be16(&data[10..])),
                (1, _) => info.name = Some(text()),
                (2, _) => info.description = Some(text()),
                (3, 14) => info.block_sizes = Some((be32(&data[2..]), be32(&data[6..]), be32(&data[10..]))),
                (other, len) => return Err(bad(format!("information {other} of {len} bytes"))),
            },
            (error, _) => {
                return Err(io::Error::other(format!("GO refused ({error:#x}): {}", String::from_utf8_lossy(&data))));
            }
        }
    }
}
