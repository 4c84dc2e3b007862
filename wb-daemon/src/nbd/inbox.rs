//! What arrives on a connection: a buffer that is read ahead into, and payloads taken out of it without copying.

use super::budget::{Account, Charge};
use super::codec::request::{BadMagic, Request};
use super::codec::wire::REQUEST_BYTES;
use super::limits::{AHEAD_BYTES, AHEAD_BYTES_BUSY, PIECE_BYTES, Pools};
use super::payload::Payload;
use super::pressure::{Pace, Pressure};
use std::rc::Rc;
use std::sync::Arc;
use wb_core::io::{Buf, Slice};
use wb_core::rt::{NetError, Stream};

/// Free bytes below which a receive is not worth its call: a header and 4 KiB of payload.
const ROOM_BYTES_MIN: usize = REQUEST_BYTES + 4096;
/// A longer rest of a payload goes into buffers of its own, not through the read-ahead buffer.
const AHEAD_PAYLOAD_BYTES_MAX: usize = 16 << 10;

/// Why nothing more is taken from a connection.
#[derive(Debug, thiserror::Error)]
pub(super) enum InboxError {
    #[error(transparent)]
    Net(#[from] NetError),
    #[error(transparent)]
    Protocol(#[from] BadMagic),
}

/// The receiving side of a connection.
pub(super) struct Inbox {
    stream: Stream,
    pools: Pools,
    pace: Arc<Pace>,
    /// `start..end` is what has come and was not taken yet, `end..` is free. `None` while the kernel has it.
    chunk: Option<Buf>,
    start: usize,
    end: usize,
    /// The last receive filled all that was free: more is waiting.
    busy: bool,
}

impl Inbox {
    pub(super) fn new(stream: Stream, pools: Pools, pace: Arc<Pace>) -> Inbox {
        Inbox { stream, pools, pace, chunk: None, start: 0, end: 0, busy: false }
    }

    /// Bytes that have come and were not taken yet.
    pub(super) fn bytes(&self) -> &[u8] {
        self.chunk.as_ref().map_or(&[], |chunk| &chunk[self.start..self.end])
    }

    /// Takes bytes off the front.
    pub(super) fn consume(&mut self, count: usize) {
        assert!(count <= self.end - self.start, "bytes that have come");
        self.start += count;
    }

    /// Receives more. At the end of the stream [`NetError::Closed`], with the number of bytes left over.
    pub(super) async fn fill(&mut self) -> Result<(), NetError> {
        self.fill_for(usize::MAX).await
    }

    /// Receives more, of which `enough` bytes are known to be needed: if they fit, the buffer is not changed. So the
    /// rest of a payload never needs a third buffer, see `Pools::ahead`.
    async fn fill_for(&mut self, enough: usize) -> Result<(), NetError> {
        let chunk = self.make_room(enough).await;
        let room = chunk.len() - self.end;
        let (result, chunk) = self.stream.recv(chunk, self.end..self.end + room).await;
        self.chunk = Some(chunk);
        match result? {
            0 => Err(NetError::Closed { received: self.end - self.start }),
            count => {
                self.end += count;
                self.busy = count == room;
                Ok(())
            }
        }
    }

    /// The buffer with room at its end: the old one, or a new one that takes over what is left.
    async fn make_room(&mut self, enough: usize) -> Buf {
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        }
        let wanted = if self.busy { AHEAD_BYTES_BUSY / 2 } else { ROOM_BYTES_MIN };
        match self.chunk.take() {
            Some(chunk) if chunk.len() - self.end >= wanted.min(enough) => chunk,
            // Nothing larger is free: go on with what there is.
            Some(chunk) => match self.larger_chunk(&chunk).await {
                Some(mut new) => {
                    let left = self.end - self.start;
                    new[..left].copy_from_slice(&chunk[self.start..self.end]);
                    (self.start, self.end) = (0, left);
                    new
                }
                None => chunk,
            },
            None => self.pools.ahead.alloc(AHEAD_BYTES).await,
        }
    }

    async fn larger_chunk(&self, old: &Buf) -> Option<Buf> {
        let busy = if self.busy { self.pools.ahead.try_alloc(AHEAD_BYTES_BUSY) } else { None };
        match busy {
            Some(chunk) => Some(chunk),
            None if old.len() - self.end >= ROOM_BYTES_MIN => None,
            None => Some(self.pools.ahead.alloc(AHEAD_BYTES).await),
        }
    }

    /// The next command, or `None` at the end of the stream.
    pub(super) async fn request(&mut self) -> Result<Option<Request>, InboxError> {
        loop {
            if let Some(request) = Request::parse(self.bytes())? {
                self.consume(REQUEST_BYTES);
                return Ok(Some(request));
            }
            match self.fill().await {
                Err(NetError::Closed { received: 0 }) => return Ok(None),
                result => result?,
            }
        }
    }

    /// The payload of a write, complete, and what it holds of the budget.
    pub(super) async fn payload(
        &mut self,
        len: usize,
        account: &Rc<Account>,
        pressure: &Pressure,
    ) -> Result<(Payload, Option<Charge>), NetError> {
        let mut payload = Payload::default();
        loop {
            let now = (len - payload.len()).min(self.end - self.start);
            if now > 0 {
                payload.push(self.take_slice(now));
            }
            match len - payload.len() {
                0 => return Ok((payload, None)),
                left if left > AHEAD_PAYLOAD_BYTES_MAX => {
                    // Charged as a whole before the first byte is taken: see `Pools::pieces`.
                    let bytes = (left.div_ceil(PIECE_BYTES) * PIECE_BYTES) as u64;
                    let charge = pressure.charge(account, bytes).await;
                    self.pace.receiving(left);
                    self.receive_pieces(left, &mut payload).await?;
                    self.pace.received();
                    return Ok((payload, Some(charge)));
                }
                left => self.fill_for(left).await?,
            }
        }
    }

    async fn receive_pieces(&mut self, mut left: usize, payload: &mut Payload) -> Result<(), NetError> {
        while left > 0 {
            let piece = self.pools.pieces.alloc(PIECE_BYTES).await;
            let now = left.min(PIECE_BYTES);
            let (result, piece) = self.stream.recv_exact(piece, 0..now).await;
            result?;
            payload.push(piece.freeze().slice(0..now));
            left -= now;
        }
        Ok(())
    }

    /// Takes bytes out of the buffer as a slice of it; the buffer goes on behind them.
    fn take_slice(&mut self, count: usize) -> Slice {
        let mut head = self.chunk.take().expect("bytes that have come lie in it");
        let cut = self.start + count;
        self.chunk = Some(head.split_off(cut));
        let slice = head.freeze().slice(self.start..cut);
        (self.start, self.end) = (0, self.end - cut);
        slice
    }

    /// Skips the payload of a refused write, however long, without keeping it.
    pub(super) async fn skip(&mut self, count: u32) -> Result<(), NetError> {
        let mut left = count as usize;
        loop {
            let now = left.min(self.end - self.start);
            self.consume(now);
            left -= now;
            if left == 0 {
                return Ok(());
            }
            self.fill().await?;
        }
    }
}
