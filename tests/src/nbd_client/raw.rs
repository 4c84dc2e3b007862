//! The bare connection: bytes, the greeting, options.

use super::Address;
use std::io::{self, BufReader, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::unix::net::UnixStream;
use std::time::Duration;

trait Socket: Read + Write + Send {
    fn set_timeout(&self, timeout: Option<Duration>) -> io::Result<()>;
    fn shutdown_send(&self) -> io::Result<()>;
}

impl Socket for UnixStream {
    fn set_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        self.set_read_timeout(timeout)
    }
    fn shutdown_send(&self) -> io::Result<()> {
        self.shutdown(Shutdown::Write)
    }
}

impl Socket for TcpStream {
    fn set_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        self.set_read_timeout(timeout)
    }
    fn shutdown_send(&self) -> io::Result<()> {
        self.shutdown(Shutdown::Write)
    }
}

/// The server broke the protocol.
pub(super) fn bad(what: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.into())
}

fn dial(address: &Address) -> io::Result<Box<dyn Socket>> {
    Ok(match address {
        Address::Unix(path) => Box::new(UnixStream::connect(path)?),
        Address::Tcp(address) => {
            let stream = TcpStream::connect(address)?;
            stream.set_nodelay(true)?;
            Box::new(stream)
        }
    })
}

/// A connection on which nothing has been said yet: for handshakes of every kind, valid or not.
pub struct RawClient {
    socket: BufReader<Box<dyn Socket>>,
}

impl From<UnixStream> for RawClient {
    fn from(stream: UnixStream) -> RawClient {
        RawClient { socket: BufReader::new(Box::new(stream)) }
    }
}

impl RawClient {
    /// Connects, and says nothing.
    pub fn connect(address: &Address) -> io::Result<RawClient> {
        let socket = dial(address)?;
        socket.set_timeout(Some(Duration::from_secs(30)))?;
        Ok(RawClient { socket: BufReader::new(socket) })
    }
    /// Sends bytes as they are.
    pub fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.socket.get_mut().write_all(bytes)
    }
    /// Receives exactly `len` bytes.
    pub fn recv(&mut self, len: usize) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; len];
        self.socket.read_exact(&mut bytes)?;
        Ok(bytes)
    }
    /// Receives until the server closes; an error if it does not do so in time.
    pub fn recv_to_end(&mut self) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        match self.socket.read_to_end(&mut bytes) {
            Err(error) if error.kind() != io::ErrorKind::ConnectionReset => Err(error),
            _ => Ok(bytes),
        }
    }
    /// Says that nothing more will be sent; receiving goes on.
    pub fn shutdown_send(&mut self) -> io::Result<()> {
        self.socket.get_ref().shutdown_send()
    }
    /// Changes the longest wait for bytes of the server.
    pub fn set_timeout(&mut self, timeout: Option<Duration>) -> io::Result<()> {
        self.socket.get_ref().set_timeout(timeout)
    }
    /// Takes the server's greeting and answers with `client_flags`.
    pub fn greet(&mut self, client_flags: u32) -> io::Result<()> {
        if self.recv(18)? != *b"NBDMAGICIHAVEOPT\0\x03" {
            return Err(bad("not the greeting of a fixed newstyle server"));
        }
        self.send(&client_flags.to_be_bytes())
    }
    /// Sends an option.
    pub fn send_option(&mut self, option: u32, data: &[u8]) -> io::Result<()> {
        let len = u32::try_from(data.len()).map_err(|_| bad("option data too long"))?;
        self.send(&[&b"IHAVEOPT"[..], &option.to_be_bytes(), &len.to_be_bytes(), data].concat())
    }
    /// Receives one reply to an option: its type and data.
    pub fn recv_option_reply(&mut self, option: u32) -> io::Result<(u32, Vec<u8>)> {
        let head = self.recv(20)?;
        if head[..8] != 0x0003_e889_0455_65a9_u64.to_be_bytes() || head[8..12] != option.to_be_bytes() {
            return Err(bad("not a reply to this option"));
        }
        let data = self.recv(be32(&head[16..]) as usize)?;
        Ok((be32(&head[12..]), data))
    }
}

pub(super) fn be16(bytes: &[u8]) -> u16 {
    u16::from_be_bytes([bytes[0], bytes[1]])
}
pub(super) fn be32(bytes: &[u8]) -> u32 {
    u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
}
pub(super) fn be64(bytes: &[u8]) -> u64 {
    u64::from(be32(bytes)) << 32 | u64::from(be32(&bytes[4..]))
}
