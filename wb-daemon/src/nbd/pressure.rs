//! What happens when memory is short because clients hold it: those that stand still are cut, and nobody else.
//!
//! [`super::budget`] leaves something free as long as it can, but what was granted is not taken back: enough clients
//! that never take their replies use up everything in the end. While somebody waits for memory, and only then, a
//! connection is cut whose client has neither taken a reply nor sent its payload in the time that a slow line would need.

use super::budget::{Account, Charge};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use tracing::warn;
use wb_core::rt::{self, Shutdown, Stream, now_ns};

/// A line slower than this many bytes a second is taken for a client that stands still.
const SLOWEST_BYTES_PER_S: u64 = 4 << 20;
/// No deadline.
const NEVER: u64 = u64::MAX;

/// When a connection must have got on, at the latest. Read by other threads, and only when memory is short.
pub(super) struct Pace {
    stall_ns: u64,
    send_by_ns: AtomicU64,
    receive_by_ns: AtomicU64,
}

impl Pace {
    fn deadline(&self, bytes: usize) -> u64 {
        now_ns() + self.stall_ns + bytes as u64 * 1_000_000_000 / SLOWEST_BYTES_PER_S
    }
    /// The client has to take so many bytes.
    pub(super) fn sending(&self, bytes: usize) {
        self.send_by_ns.store(self.deadline(bytes), Ordering::Relaxed);
    }
    /// It has.
    pub(super) fn sent(&self) {
        self.send_by_ns.store(NEVER, Ordering::Relaxed);
    }
    /// The client has to send so many bytes.
    pub(super) fn receiving(&self, bytes: usize) {
        self.receive_by_ns.store(self.deadline(bytes), Ordering::Relaxed);
    }
    /// It has, or it need not now.
    pub(super) fn received(&self) {
        self.receive_by_ns.store(NEVER, Ordering::Relaxed);
    }

    fn overdue(&self, now_ns: u64) -> bool {
        self.send_by_ns.load(Ordering::Relaxed).min(self.receive_by_ns.load(Ordering::Relaxed)) < now_ns
    }
}

/// All connections of a server, for the case that memory gets short.
pub(super) struct Pressure {
    stall_ns: u64,
    next_key: AtomicU64,
    watched: Mutex<BTreeMap<u64, (Arc<Pace>, Stream)>>,
}

impl Pressure {
    pub(super) fn new(stall_ns: u64) -> Pressure {
        Pressure { stall_ns, next_key: AtomicU64::new(0), watched: Mutex::default() }
    }

    /// Watches a connection until the result is dropped.
    pub(super) fn watch(&self, stream: &Stream) -> Watch<'_> {
        let key = self.next_key.fetch_add(1, Ordering::Relaxed);
        let never = || AtomicU64::new(NEVER);
        let pace = Arc::new(Pace { stall_ns: self.stall_ns, send_by_ns: never(), receive_by_ns: never() });
        self.watched.lock().expect("nothing panics under it").insert(key, (pace.clone(), stream.clone()));
        Watch { pressure: self, key, pace }
    }

    /// Charges `bytes`, and makes room for them if that takes too long.
    pub(super) async fn charge(&self, account: &Rc<Account>, bytes: u64) -> Charge {
        if let Some(charge) = account.try_charge(bytes) {
            return charge;
        }
        let pause_ns = (self.stall_ns / 4).clamp(10_000_000, 1_000_000_000);
        loop {
            match rt::timeout(pause_ns, account.charge(bytes)).await {
                Ok(charge) => return charge,
                Err(_) => self.cut_stalled(),
            }
        }
    }

    fn cut_stalled(&self) {
        let now = now_ns();
        let watched = self.watched.lock().expect("nothing panics under it");
        for (pace, stream) in watched.values().filter(|(pace, _)| pace.overdue(now)) {
            // Once is enough, for the connection and for the log.
            pace.sent();
            pace.received();
            warn!("NBD connection from {} cut: it holds memory that others wait for, and stands still", stream.peer());
            // Fails only if the connection is gone already.
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

/// Registration of a connection.
pub(super) struct Watch<'a> {
    pressure: &'a Pressure,
    key: u64,
    pub(super) pace: Arc<Pace>,
}

impl Drop for Watch<'_> {
    fn drop(&mut self) {
        let entry = self.pressure.watched.lock().expect("nothing panics under it").remove(&self.key);
        drop(entry);
    }
}
