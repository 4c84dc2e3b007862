//! Execution of valid requests, one future each.

use super::budget::Charge;
use super::codec::reply::Reply;
use super::codec::request::Request;
use super::codec::wire::NbdError;
use super::conn::Conn;
use super::limits::read_split;
use super::payload::Payload;
use futures_util::future::join_all;
use futures_util::stream::{self, Stream, StreamExt};
use wb_core::service::{BlockService, ReadData, SERVICE_CHUNK_BYTES_MAX, ServiceError};

/// Chunks of a long read that are read at the same time.
const READS_AT_ONCE: usize = 4;

/// A valid request and all that it needs.
pub(super) struct Job {
    pub(super) request: Request,
    pub(super) work: Work,
}

/// What is to be done.
pub(super) enum Work {
    Read { fragment: bool, charge: Charge },
    Write { payload: Payload, charge: Option<Charge>, fua: bool },
    Flush,
    Trim { fua: bool },
    WriteZeroes { fua: bool },
}

/// What the sender of a request is told. The range was checked before, so `Invalid` is what the service knows better.
fn nbd_error(error: ServiceError) -> NbdError {
    match error {
        ServiceError::Io => NbdError::Io,
        ServiceError::Invalid => NbdError::Inval,
        ServiceError::ReadOnly => NbdError::Perm,
        ServiceError::ShuttingDown => NbdError::Shutdown,
    }
}

/// The parts of a write that the service takes at once, as (start within the range, length).
fn chunks(len: u32) -> impl Iterator<Item = (usize, usize)> {
    let len = len as usize;
    (0..len).step_by(SERVICE_CHUNK_BYTES_MAX).map(move |start| (start, SERVICE_CHUNK_BYTES_MAX.min(len - start)))
}

impl<S: BlockService> Conn<S> {
    pub(super) async fn execute(&self, Job { request, work }: Job) {
        let (offset, len) = (request.offset, u64::from(request.len));
        let service = &self.shared.service;
        let result = match work {
            Work::Read { fragment, charge } => return self.read(&request, fragment, charge).await,
            Work::Write { payload, charge, fua } => {
                let result = self.write(&request, &payload, fua).await;
                drop((payload, charge));
                result
            }
            Work::Trim { .. } | Work::WriteZeroes { .. } if len == 0 => Ok(()),
            Work::Trim { fua } => service.discard(offset, len, fua).await,
            Work::WriteZeroes { fua } => service.write_zeroes(offset, len, fua).await,
            Work::Flush => service.flush().await,
        };
        let reply = match result {
            Ok(()) => Reply::Simple { error: None },
            Err(error) => self.error(&request, nbd_error(error)),
        };
        self.outbox.push(request.cookie, reply);
    }

    /// Writes all chunks at once. With FUA each is durable when it completes, so the whole is when all have.
    async fn write(&self, request: &Request, payload: &Payload, fua: bool) -> Result<(), ServiceError> {
        let write = |(start, len): (usize, usize)| async move {
            self.shared.service.write(request.offset + start as u64, len, &payload.starting_at(start), fua).await
        };
        match request.len as usize {
            0 => Ok(()),
            len if len <= SERVICE_CHUNK_BYTES_MAX => write((0, len)).await,
            _ => join_all(chunks(request.len).map(write)).await.into_iter().collect(),
        }
    }

    async fn read(&self, request: &Request, fragment: bool, charge: Charge) {
        let structured = self.session.structured;
        let (first_len, count) = read_split(request.len);
        if request.len == 0 {
            let reply = if structured { Reply::None } else { Reply::Simple { error: None } };
            return self.outbox.push(request.cookie, reply);
        }
        if count > 1 && structured && fragment {
            return self.read_in_chunks(request, charge).await;
        }
        // One reply for everything: its first byte says that there was no error, so all data comes first.
        let (first, more) = match self.read_chunk(request, 0, first_len.min(request.len)).await {
            Ok(first) if count > 1 => (Ok(first), self.read_rest(request).await),
            other => (other, Ok(Vec::new())),
        };
        match (first, more) {
            (Ok(first), Ok(more)) => {
                let whole = Reply::Data { offset: request.offset, len: request.len, done: true };
                let reply = if structured { whole } else { Reply::Simple { error: None } };
                let data = std::iter::once(first).chain(more);
                self.outbox.push_data(request.cookie, reply, data, Some(charge), true);
            }
            (Err((error, at)), _) | (_, Err((error, at))) => self.push_read_error(request, error, at),
        }
    }

    /// All of a long read but its first chunk.
    async fn read_rest(&self, request: &Request) -> Result<Vec<ReadData>, (ServiceError, u32)> {
        let mut chunks = std::pin::pin!(self.chunks_from(request, 1));
        let mut data = Vec::with_capacity(read_split(request.len).1 as usize);
        while let Some(chunk) = chunks.next().await {
            data.push(chunk?);
        }
        Ok(data)
    }

    /// Sends each chunk as soon as it and those before it are there.
    async fn read_in_chunks(&self, request: &Request, mut charge: Charge) {
        let mut chunks = std::pin::pin!(self.chunks_from(request, 0));
        let buffer_bytes = charge.bytes() / u64::from(read_split(request.len).1);
        let mut sent = 0;
        while let Some(chunk) = chunks.next().await {
            match chunk {
                Ok(data) => {
                    let offset = request.offset + u64::from(sent);
                    let len = u32::try_from(data.len()).expect("chunks are short");
                    sent += len;
                    let done = sent == request.len;
                    let part = charge.split(buffer_bytes);
                    self.outbox.push_data(request.cookie, Reply::Data { offset, len, done }, [data], Some(part), done);
                }
                Err((error, at)) => return self.push_read_error(request, error, at),
            }
        }
    }

    /// Reads the chunks of a long read from the `first` on, some at a time, and yields them in order.
    fn chunks_from(&self, request: &Request, first: u32) -> impl Stream<Item = Result<ReadData, (ServiceError, u32)>> {
        let request = *request;
        let (chunk, count) = read_split(request.len);
        let reads = (first..count).map(move |number| async move {
            let start = number * chunk;
            self.read_chunk(&request, start, chunk.min(request.len - start)).await
        });
        stream::iter(reads).buffered(READS_AT_ONCE)
    }

    async fn read_chunk(&self, request: &Request, start: u32, len: u32) -> Result<ReadData, (ServiceError, u32)> {
        let offset = request.offset + u64::from(start);
        let data = self.shared.service.read(offset, len as usize).await.map_err(|error| (error, start))?;
        assert!(data.len() == len as usize, "the service returns all that it was asked for, or an error");
        Ok(data)
    }

    fn push_read_error(&self, request: &Request, error: ServiceError, start: u32) {
        let error = nbd_error(error);
        let plain = self.error(request, error);
        let at = Reply::ErrorAt { error, offset: request.offset + u64::from(start) };
        self.outbox.push(request.cookie, if self.session.structured { at } else { plain });
    }
}
