//! Replies on their way out: whatever is ready when the socket is free goes out with one call.

use super::budget::Charge;
use super::codec::reply::Reply;
use super::pressure::Pace;
use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::task::{Poll, Waker};
use wb_core::rt::{SendQueue, Shutdown, Stream};
use wb_core::service::ReadData;

/// Replies that are sent together, and what is given back once they are gone.
#[derive(Default)]
struct Batch {
    queue: SendQueue,
    requests: usize,
    charges: Vec<Charge>,
}

/// The sending side of a connection. Only its own thread touches it, and nothing is borrowed across an await.
#[derive(Default)]
pub(super) struct Outbox {
    filling: RefCell<Batch>,
    scratch: RefCell<Vec<u8>>,
    /// The writer, if it waits for replies.
    writer: Cell<Option<Waker>>,
    /// The reader, if it waits for a free place.
    reader: Cell<Option<Waker>>,
    /// Whoever waits for [`Outbox::idle`].
    idle: Cell<Option<Waker>>,
    /// Requests whose last reply has not been sent.
    unanswered: Cell<usize>,
    /// Nobody listens any more: replies are dropped.
    broken: Cell<bool>,
    /// No more requests: the writer ends with the last reply.
    closing: Cell<bool>,
}

fn wake(waker: &Cell<Option<Waker>>) {
    if let Some(waker) = waker.take() {
        waker.wake();
    }
}

impl Outbox {
    /// Waits until fewer than `limit` requests are unanswered.
    pub(super) async fn room(&self, limit: usize) {
        poll_fn(|cx| {
            if self.unanswered.get() < limit {
                return Poll::Ready(());
            }
            self.reader.set(Some(cx.waker().clone()));
            Poll::Pending
        })
        .await;
    }

    /// Counts a request: it has come with all that belongs to it, and will be answered.
    pub(super) fn begin(&self) {
        self.unanswered.set(self.unanswered.get() + 1);
    }

    /// Queues a reply without data; it ends a request that was begun.
    pub(super) fn push(&self, cookie: u64, reply: Reply) {
        self.push_data(cookie, reply, [], None, true);
    }

    /// Queues a reply with data, or one chunk of it; `last` ends a request that was begun. The charge is given
    /// back when the data has been sent.
    pub(super) fn push_data(
        &self,
        cookie: u64,
        reply: Reply,
        data: impl IntoIterator<Item = ReadData>,
        charge: Option<Charge>,
        last: bool,
    ) {
        if self.broken.get() {
            if last {
                self.answered(1);
            }
            return;
        }
        let mut scratch = self.scratch.borrow_mut();
        scratch.clear();
        reply.encode(cookie, &mut scratch);
        let mut batch = self.filling.borrow_mut();
        batch.queue.push_bytes(&scratch);
        data.into_iter().for_each(|data| batch.queue.push_read(data));
        batch.charges.extend(charge);
        batch.requests += usize::from(last);
        wake(&self.writer);
    }

    fn answered(&self, requests: usize) {
        self.unanswered.set(self.unanswered.get() - requests);
        wake(&self.reader);
        if self.unanswered.get() == 0 {
            wake(&self.idle);
            wake(&self.writer);
        }
    }

    /// No more requests will come.
    pub(super) fn close(&self) {
        self.closing.set(true);
        wake(&self.writer);
    }

    /// Waits until every request that was begun is answered and its reply taken by the kernel.
    pub(super) async fn idle(&self) {
        poll_fn(|cx| {
            if self.unanswered.get() == 0 {
                return Poll::Ready(());
            }
            self.idle.set(Some(cx.waker().clone()));
            Poll::Pending
        })
        .await;
    }

    /// Sends what is pushed, until the outbox is closed and every request that was begun is answered. If sending fails, both
    /// directions are shut down, so that the reader ends too.
    pub(super) async fn send_all(&self, stream: &Stream, pace: &Pace) {
        let mut empty = Batch::default();
        while let Some(Batch { queue, requests, mut charges }) = self.next(empty).await {
            pace.sending(queue.len());
            let (result, queue) = stream.send(queue).await;
            pace.sent();
            if result.is_err() {
                self.broken.set(true);
                // Fails only if the connection is gone already.
                let _ = stream.shutdown(Shutdown::Both);
            }
            charges.clear();
            self.answered(requests);
            empty = Batch { queue, requests: 0, charges };
        }
    }

    /// Waits for something to send and puts the empty batch in its place. `None` at the end.
    async fn next(&self, empty: Batch) -> Option<Batch> {
        let mut empty = Some(empty);
        poll_fn(|cx| {
            let mut filling = self.filling.borrow_mut();
            if !filling.queue.is_empty() {
                let empty = empty.take().expect("polled until ready");
                return Poll::Ready(Some(std::mem::replace(&mut *filling, empty)));
            }
            if self.closing.get() && self.unanswered.get() == 0 {
                return Poll::Ready(None);
            }
            self.writer.set(Some(cx.waker().clone()));
            Poll::Pending
        })
        .await
    }
}
