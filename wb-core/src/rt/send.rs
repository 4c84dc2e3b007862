//! Sending of many pieces with few calls.

use super::net::{NetError, SocketPayload, Stream, is_retry};
use super::op::submit_with;
use crate::io::Slice;
use crate::service::ReadData;
use io_uring::{opcode, types};
use std::ops::Range;
use std::os::fd::AsRawFd;

/// Pieces per system call; the kernel's UIO_MAXIOV.
const IOV_MAX: usize = 1024;

enum Part {
    /// A range of `SendQueue::small`.
    Small(Range<usize>),
    Slice(Slice),
}

/// What is to be sent next: small pieces by value (headers), large ones by reference. A queue is reused, so that
/// sending allocates nothing in the long run.
pub struct SendQueue {
    small: Vec<u8>,
    parts: Vec<Part>,
    /// Where the parts lie; filled when sending begins.
    vectors: Vec<libc::iovec>,
    /// Describes the vectors to the kernel. In a box, because the queue moves while the kernel looks at it.
    header: Box<libc::msghdr>,
    len: usize,
}

impl Default for SendQueue {
    fn default() -> SendQueue {
        SendQueue::new()
    }
}

impl SendQueue {
    /// An empty queue.
    pub fn new() -> SendQueue {
        // SAFETY: a header of zeroes is valid: no address, no vectors, no control data.
        let header = Box::new(unsafe { std::mem::zeroed::<libc::msghdr>() });
        SendQueue { small: Vec::new(), parts: Vec::new(), vectors: Vec::new(), header, len: 0 }
    }

    /// Appends a copy of these bytes.
    pub fn push_bytes(&mut self, bytes: &[u8]) {
        let start = self.small.len();
        self.small.extend_from_slice(bytes);
        self.len += bytes.len();
        match self.parts.last_mut() {
            Some(Part::Small(range)) if range.end == start => range.end += bytes.len(),
            _ => self.parts.push(Part::Small(start..start + bytes.len())),
        }
    }

    /// Appends a slice, without copying.
    pub fn push_slice(&mut self, slice: Slice) {
        self.len += slice.len();
        self.parts.push(Part::Slice(slice));
    }

    /// Appends what was read, without copying.
    pub fn push_read(&mut self, data: ReadData) {
        let (buf, start, len) = data.into_parts();
        self.push_slice(buf.freeze().slice(start..start + len));
    }

    /// Bytes in the queue.
    pub fn len(&self) -> usize {
        self.len
    }

    /// True if there is nothing to send.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Forgets everything; memory for headers is kept.
    pub fn clear(&mut self) {
        self.small.clear();
        self.parts.clear();
        self.vectors.clear();
        self.len = 0;
    }

    fn build_vectors(&mut self) {
        self.vectors.clear();
        for part in &self.parts {
            let bytes: &[u8] = match part {
                Part::Small(range) => &self.small[range.clone()],
                Part::Slice(slice) => slice,
            };
            if !bytes.is_empty() {
                self.vectors.push(libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() });
            }
        }
    }

    /// Points the header at the vectors from `first` on.
    fn aim(&mut self, first: usize) {
        let rest = &mut self.vectors[first..];
        self.header.msg_iovlen = rest.len().min(IOV_MAX);
        self.header.msg_iov = rest.as_mut_ptr();
    }

    /// Takes `sent` bytes off the vectors from `first` on; the new first.
    fn advance(&mut self, mut first: usize, mut sent: usize) -> usize {
        while sent > 0 {
            let vector = &mut self.vectors[first];
            let step = sent.min(vector.iov_len);
            // SAFETY: `step` is at most the length of the piece.
            vector.iov_base = unsafe { vector.iov_base.cast::<u8>().add(step) }.cast();
            vector.iov_len -= step;
            sent -= step;
            first += usize::from(vector.iov_len == 0);
        }
        first
    }
}

/// Sends what the socket takes at once. `None` if it takes nothing now.
///
/// A plain call and not the ring: the reply leaves before anything else runs on this thread, and the sleep of the ring
/// that follows is not cut short by the completion of the send.
fn send_now(stream: &Stream, queue: &SendQueue) -> Option<i32> {
    let flags = libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT;
    // SAFETY: the header describes vectors of the queue, which describe pieces of the queue; all are only read.
    let sent = unsafe { libc::sendmsg(stream.fd.as_raw_fd(), &raw const *queue.header, flags) };
    if sent >= 0 {
        // A call moves less than 2 GiB.
        return Some(sent as i32);
    }
    let errno = std::io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO);
    (!is_retry(-errno)).then_some(-errno)
}

pub(super) async fn send(stream: &Stream, mut queue: SendQueue) -> (Result<(), NetError>, SendQueue) {
    queue.build_vectors();
    let mut first = 0;
    let mut result = Ok(());
    if !queue.vectors.is_empty() {
        queue.aim(0);
        match send_now(stream, &queue) {
            Some(sent @ 0..) => first = queue.advance(0, sent as usize),
            Some(code) => {
                queue.clear();
                return (Err(NetError::from_result("send", code)), queue);
            }
            None => {}
        }
    }
    // The ring waits for room, and keeps a fast receiver of much data from holding this thread.
    while first < queue.vectors.len() {
        queue.aim(first);
        let fd = types::Fd(stream.fd.as_raw_fd());
        // WAITALL: the kernel itself goes on after a short send.
        let flags = (libc::MSG_NOSIGNAL | libc::MSG_WAITALL) as u32;
        let entry = opcode::SendMsg::new(fd, &raw const *queue.header).flags(flags).build();
        let payload = SocketPayload { _socket: stream.fd.clone(), data: queue };
        // SAFETY: header, vectors and small pieces lie on the heap and belong to the queue, the slices keep their chunks;
        // nothing of it changes while the queue is in the payload. The payload keeps the descriptor open.
        let done = unsafe { submit_with(entry, payload) }.await;
        queue = done.payload.data;
        match done.result {
            sent @ 0.. => first = queue.advance(first, sent as usize),
            code if is_retry(code) => {}
            code => {
                result = Err(NetError::from_result("send", code));
                break;
            }
        }
    }
    queue.clear();
    (result, queue)
}
