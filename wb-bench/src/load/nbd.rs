//! A small NBD client that keeps many requests in flight on one connection (fixed newstyle handshake, simple replies;
//! <https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md>).

use anyhow::{Context as _, bail, ensure};
use slab::Slab;
use std::cell::RefCell;
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::rc::Rc;
use std::task::{Poll, Waker};
use wb_core::io::{Buf, Slice};
use wb_core::rt::{self, SendQueue, Shutdown, Stream};

const MAGIC: u64 = 0x4e42_444d_4147_4943;
const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
const REQUEST_MAGIC: u32 = 0x2560_9513;
const REPLY_MAGIC: u32 = 0x6744_6698;
/// FIXED_NEWSTYLE and NO_ZEROES, of the server and of the client.
const HANDSHAKE_FLAGS: u32 = 3;
const OPTION_GO: u32 = 7;
const REPLY_ACK: u32 = 1;
const REPLY_INFO: u32 = 3;
const INFO_EXPORT: u16 = 0;
const COMMAND_READ: u16 = 0;
const COMMAND_WRITE: u16 = 1;
const COMMAND_DISCONNECT: u16 = 2;
const COMMAND_FLUSH: u16 = 3;
const REPLY_BYTES: usize = 16;
/// Bytes received at once.
const RECEIVE_BYTES: usize = 256 << 10;

/// Where a server is, from its URI (<https://github.com/NetworkBlockDevice/nbd/blob/master/doc/uri.md>).
#[derive(Debug, Clone, PartialEq, Eq)]
struct Address {
    place: Place,
    export: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Place {
    Unix(String),
    Tcp(String),
}

impl Address {
    fn parse(uri: &str) -> anyhow::Result<Address> {
        let (scheme, rest) = uri.split_once("://").context("a URI begins with nbd:// or nbd+unix://")?;
        let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (host, export) = path.split_once('/').unwrap_or((path, ""));
        let export = unescape(export);
        let place = match scheme {
            "nbd+unix" => {
                let socket = query.split('&').find_map(|pair| pair.strip_prefix("socket="));
                Place::Unix(unescape(socket.context("nbd+unix:// needs ?socket=PATH")?))
            }
            "nbd" if host.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok()) => {
                Place::Tcp(host.into())
            }
            "nbd" => Place::Tcp(format!("{host}:10809")),
            _ => bail!("{scheme}:// is not supported; use nbd:// or nbd+unix://"),
        };
        Ok(Address { place, export })
    }
}

/// `%41` -> `A`.
fn unescape(text: &str) -> String {
    let (mut bytes, mut rest) = (Vec::new(), text.as_bytes());
    while let [first, tail @ ..] = rest {
        let hex = (*first == b'%').then(|| tail.get(..2)).flatten().and_then(|hex| std::str::from_utf8(hex).ok());
        match hex.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
            Some(byte) => {
                bytes.push(byte);
                rest = &tail[2..];
            }
            None => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// One request on its way.
struct Waiting {
    /// Bytes that follow a good reply.
    read_bytes: usize,
    waker: Option<Waker>,
    /// The error number of the reply.
    outcome: Option<u32>,
}

struct State {
    requests: Slab<Waiting>,
    /// What is to be sent next; a sender is under way if it is not empty.
    outgoing: SendQueue,
    sending: bool,
    /// Why the connection is of no use any more.
    broken: Option<String>,
}

struct Inner {
    stream: Stream,
    state: RefCell<State>,
}

/// A connection, for the tasks of one thread.
pub struct Connection {
    inner: Rc<Inner>,
    /// Bytes of the export.
    pub size_bytes: u64,
}

impl Connection {
    /// Connects and shakes hands.
    pub async fn open(uri: &str) -> anyhow::Result<Rc<Connection>> {
        let address = Address::parse(uri)?;
        let stream = match &address.place {
            Place::Unix(path) => {
                Stream::from(UnixStream::connect(path).with_context(|| format!("cannot connect to {path}"))?)
            }
            Place::Tcp(host) => {
                Stream::from(TcpStream::connect(host).with_context(|| format!("cannot connect to {host}"))?)
            }
        };
        let size_bytes = handshake(&stream, &address.export).await?;
        let state = State { requests: Slab::new(), outgoing: SendQueue::new(), sending: false, broken: None };
        let inner = Rc::new(Inner { stream, state: RefCell::new(state) });
        drop(rt::spawn(receive(inner.clone())));
        Ok(Rc::new(Connection { inner, size_bytes }))
    }

    /// Reads, and drops the data.
    pub async fn read(&self, offset: u64, len: u32) -> anyhow::Result<()> {
        self.request(COMMAND_READ, offset, len, None).await
    }
    /// Writes.
    pub async fn write(&self, offset: u64, data: Slice) -> anyhow::Result<()> {
        self.request(COMMAND_WRITE, offset, data.len() as u32, Some(data)).await
    }
    /// Makes completed writes durable.
    pub async fn flush(&self) -> anyhow::Result<()> {
        self.request(COMMAND_FLUSH, 0, 0, None).await
    }

    async fn request(&self, command: u16, offset: u64, len: u32, data: Option<Slice>) -> anyhow::Result<()> {
        let read_bytes = if command == COMMAND_READ { len as usize } else { 0 };
        let (cookie, start) = {
            let mut state = self.inner.state.borrow_mut();
            if let Some(why) = &state.broken {
                bail!("{why}");
            }
            let cookie = state.requests.insert(Waiting { read_bytes, waker: None, outcome: None });
            push_request(&mut state.outgoing, command, cookie as u64, offset, len);
            data.into_iter().for_each(|data| state.outgoing.push_slice(data));
            (cookie, !std::mem::replace(&mut state.sending, true))
        };
        if start {
            drop(rt::spawn(send(self.inner.clone())));
        }
        let error = std::future::poll_fn(|cx| {
            let mut state = self.inner.state.borrow_mut();
            let broken = state.broken.clone();
            let request = &mut state.requests[cookie];
            match (request.outcome, broken) {
                (Some(error), _) => Poll::Ready(Ok(error)),
                (None, Some(why)) => Poll::Ready(Err(why)),
                (None, None) => {
                    request.waker = Some(cx.waker().clone());
                    Poll::Pending
                }
            }
        })
        .await;
        self.inner.state.borrow_mut().requests.remove(cookie);
        match error {
            Ok(0) => Ok(()),
            Ok(error) => bail!("the server answered {}", std::io::Error::from_raw_os_error(error as i32)),
            Err(why) => bail!("{why}"),
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        let inner = self.inner.clone();
        drop(rt::spawn(async move {
            let mut goodbye = SendQueue::new();
            push_request(&mut goodbye, COMMAND_DISCONNECT, 0, 0, 0);
            // The server may be gone.
            let _ = inner.stream.send(goodbye).await;
            let _ = inner.stream.shutdown(Shutdown::Both);
        }));
    }
}

fn push_request(queue: &mut SendQueue, command: u16, cookie: u64, offset: u64, len: u32) {
    let mut header = [0; 28];
    header[0..4].copy_from_slice(&REQUEST_MAGIC.to_be_bytes());
    header[6..8].copy_from_slice(&command.to_be_bytes());
    header[8..16].copy_from_slice(&cookie.to_be_bytes());
    header[16..24].copy_from_slice(&offset.to_be_bytes());
    header[24..28].copy_from_slice(&len.to_be_bytes());
    queue.push_bytes(&header);
}

/// Sends until there is nothing left; what is pushed while one call runs goes out together with the next.
async fn send(inner: Rc<Inner>) {
    // Whoever else is ready gets to push first.
    rt::yield_now().await;
    let mut spare = SendQueue::new();
    loop {
        {
            let mut state = inner.state.borrow_mut();
            if state.outgoing.is_empty() {
                state.sending = false;
                return;
            }
            std::mem::swap(&mut state.outgoing, &mut spare);
        }
        let (result, queue) = inner.stream.send(spare).await;
        spare = queue;
        if let Err(error) = result {
            return inner.fail(format!("sending failed: {error}"));
        }
    }
}

impl Inner {
    fn fail(&self, why: String) {
        let wakers: Vec<Waker> = {
            let mut state = self.state.borrow_mut();
            state.broken.get_or_insert(why);
            state.requests.iter_mut().filter_map(|(_, request)| request.waker.take()).collect()
        };
        wakers.into_iter().for_each(Waker::wake);
    }

    /// Takes note of a reply; gives the number of data bytes that follow.
    fn replied(&self, header: &[u8]) -> Result<usize, String> {
        let word = |at: usize| u32::from_be_bytes(header[at..at + 4].try_into().expect("four bytes"));
        if word(0) != REPLY_MAGIC {
            return Err("the server sent something that is no reply".into());
        }
        let cookie = u64::from_be_bytes(header[8..16].try_into().expect("eight bytes"));
        let mut state = self.state.borrow_mut();
        let request = state.requests.get_mut(cookie as usize).filter(|request| request.outcome.is_none());
        let Some(request) = request else { return Err("the server answered what nobody asked".into()) };
        request.outcome = Some(word(4));
        let follows = if word(4) == 0 { request.read_bytes } else { 0 };
        let waker = request.waker.take();
        drop(state);
        waker.into_iter().for_each(Waker::wake);
        Ok(follows)
    }
}

/// Receives replies until the connection ends. The data of reads is not looked at.
async fn receive(inner: Rc<Inner>) {
    let mut buf = Buf::unpooled(RECEIVE_BYTES);
    // Bytes at the front of the buffer that are not understood yet; bytes still to come that nobody wants.
    let (mut have, mut skip) = (0, 0usize);
    loop {
        let result;
        (result, buf) = inner.stream.recv(buf, have..RECEIVE_BYTES).await;
        match result {
            Ok(0) => return inner.fail("the server closed the connection".into()),
            Ok(count) => have += count,
            Err(error) => return inner.fail(format!("receiving failed: {error}")),
        }
        let mut at = 0;
        loop {
            let skipped = skip.min(have - at);
            at += skipped;
            skip -= skipped;
            if skip > 0 || have - at < REPLY_BYTES {
                break;
            }
            match inner.replied(&buf[at..at + REPLY_BYTES]) {
                Ok(follows) => skip = follows,
                Err(why) => return inner.fail(why),
            }
            at += REPLY_BYTES;
        }
        buf.copy_within(at..have, 0);
        have -= at;
    }
}

async fn exactly(stream: &Stream, len: usize) -> anyhow::Result<Vec<u8>> {
    if len == 0 {
        return Ok(Vec::new());
    }
    let (result, buf) = stream.recv_exact(Buf::unpooled(len), 0..len).await;
    result?;
    Ok(buf.to_vec())
}

fn number(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0, |number, &byte| number << 8 | u64::from(byte))
}

/// Asks for the export; its size.
async fn handshake(stream: &Stream, export: &str) -> anyhow::Result<u64> {
    let greeting = exactly(stream, 18).await?;
    ensure!(number(&greeting[..8]) == MAGIC, "it is no NBD server");
    ensure!(number(&greeting[8..16]) == OPTION_MAGIC, "it speaks the old NBD handshake only");
    let flags = number(&greeting[16..18]) as u32 & HANDSHAKE_FLAGS;
    let mut hello = flags.to_be_bytes().to_vec();
    hello.extend(OPTION_MAGIC.to_be_bytes());
    hello.extend(OPTION_GO.to_be_bytes());
    hello.extend((export.len() as u32 + 6).to_be_bytes());
    hello.extend((export.len() as u32).to_be_bytes());
    hello.extend(export.as_bytes());
    hello.extend(0u16.to_be_bytes());
    stream.send_bytes(&hello).await?;
    let mut size_bytes = None;
    loop {
        let header = exactly(stream, 20).await?;
        ensure!(number(&header[..8]) == OPTION_REPLY_MAGIC, "it broke the NBD handshake");
        let (kind, len) = (number(&header[12..16]) as u32, number(&header[16..20]) as usize);
        ensure!(len <= 1 << 20, "it answered an option with {len} bytes");
        let data = exactly(stream, len).await?;
        match kind {
            REPLY_INFO if data.len() >= 10 && number(&data[..2]) == u64::from(INFO_EXPORT) => {
                size_bytes = Some(number(&data[2..10]));
            }
            REPLY_INFO => {}
            REPLY_ACK => return size_bytes.context("it did not tell the size of the export"),
            error => bail!("it refused the export {export:?} (reply {error:#x}): {}", String::from_utf8_lossy(&data)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uris_name_a_place_and_an_export() {
        let unix = Address::parse("nbd+unix:///a%20b?socket=/run/x.sock").unwrap();
        assert_eq!(unix, Address { place: Place::Unix("/run/x.sock".into()), export: "a b".into() });
        let tcp = Address::parse("nbd://host:99/e").unwrap();
        assert_eq!(tcp, Address { place: Place::Tcp("host:99".into()), export: "e".into() });
        assert_eq!(Address::parse("nbd://host").unwrap().place, Place::Tcp("host:10809".into()));
        assert!(Address::parse("nbd+unix:///e").is_err() && Address::parse("/dev/nbd0").is_err());
    }
}
