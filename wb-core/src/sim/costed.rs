//! Devices that cost what real ones cost, in virtual time: [`crate::model`] behind the trait [`Disk`].
//!
//! For measuring, not for crashes: there are no faults here. Content is kept by what it says of itself: a block that is
//! a *stamp* (version and address, the rest zeroes) takes eight bytes, so that a disk of 64 GiB fits a test; every other
//! block is kept as it is.

use super::env::SimEnv;
use crate::env::Env;
use crate::io::{Buf, Disk, DiskGeometry, IoError, Slice};
use crate::model::{self, Activity, Command, CostModel, DeviceParams};
use crate::types::{BLOCK_BYTES, BLOCK_BYTES_U64};
use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

/// The simulator's world with costed devices.
#[derive(Clone)]
pub struct CostedEnv(pub SimEnv);

impl Env for CostedEnv {
    type Disk = CostedDisk;
    fn now_ns(&self) -> u64 {
        self.0.now_ns()
    }
    fn wall_ns(&self) -> u64 {
        self.0.wall_ns()
    }
    fn random_u64(&self) -> u64 {
        self.0.random_u64()
    }
    #[track_caller]
    fn spawn(&self, task: impl Future<Output = ()> + 'static) {
        self.0.spawn(task);
    }
    fn sleep(&self, duration_ns: u64) -> impl Future<Output = ()> {
        self.0.sleep(duration_ns)
    }
    fn yield_now(&self) -> impl Future<Output = ()> {
        self.0.yield_now()
    }
    fn yield_point(&self) -> impl Future<Output = ()> {
        self.0.yield_point()
    }
}

const STAMP_MAGIC: u64 = 0x5742_7374_616d_7032;
const STAMP_BITS: u32 = 34;
const RAW: u64 = 1;
static ZEROES: [u8; BLOCK_BYTES] = [0; BLOCK_BYTES];

/// The payload of a block that says which block and version it is. Block numbers below 2^28, versions below 2^34.
pub fn stamp_block(block: u64, version: u64, out: &mut [u8]) {
    assert!(block < 1 << 28 && version < 1 << STAMP_BITS, "what a stamp can say");
    out.fill(0);
    out[..8].copy_from_slice(&STAMP_MAGIC.to_le_bytes());
    out[8..16].copy_from_slice(&block.to_le_bytes());
    out[16..24].copy_from_slice(&version.to_le_bytes());
}

/// Content of a device, eight bytes per block and more for those that are no stamps.
struct Content {
    /// 0: zeroes. [`RAW`]: in `raw`. Else a stamp.
    blocks: Vec<u64>,
    raw: BTreeMap<u64, Box<[u8; BLOCK_BYTES]>>,
}

impl Content {
    fn put(&mut self, at: u64, bytes: &[u8]) {
        let word = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"));
        let stamp = word(0) == STAMP_MAGIC && bytes[24..] == ZEROES[24..];
        let code = if stamp { 1 << 63 | word(8) << STAMP_BITS | word(16) } else { RAW };
        self.blocks[at as usize] = code;
        if stamp {
            self.raw.remove(&at);
        } else {
            self.raw.insert(at, Box::new(bytes.try_into().expect("a block")));
        }
    }
    fn get(&self, at: u64, out: &mut [u8]) {
        match self.blocks[at as usize] {
            0 => out.fill(0),
            RAW => out.copy_from_slice(&self.raw[&at][..]),
            code => stamp_block(code << 1 >> 1 >> STAMP_BITS, code & ((1 << STAMP_BITS) - 1), out),
        }
    }
}

/// Whether a command is done, and who waits for it.
type Slot = Arc<Mutex<(bool, Option<Waker>)>>;

struct State {
    model: Box<dyn CostModel>,
    content: Content,
    next_tag: u64,
    waiting: BTreeMap<u64, Slot>,
    armed_ns: Option<u64>,
    /// Write commands by their size, as (bytes, bytes in commands of at least 64 KiB).
    written: (u64, u64),
}

/// A device: model and content. Clones are handles to the same.
#[derive(Clone)]
pub struct CostedDisk {
    env: SimEnv,
    size_bytes: u64,
    state: Arc<Mutex<State>>,
}

impl CostedDisk {
    /// A device of zeroes.
    pub fn new(env: &SimEnv, params: &DeviceParams, size_bytes: u64) -> CostedDisk {
        let blocks = vec![0; (size_bytes / BLOCK_BYTES_U64) as usize];
        let state = State {
            model: model::build(params, size_bytes),
            content: Content { blocks, raw: BTreeMap::new() },
            next_tag: 0,
            waiting: BTreeMap::new(),
            armed_ns: None,
            written: (0, 0),
        };
        CostedDisk { env: env.clone(), size_bytes, state: Arc::new(Mutex::new(state)) }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the device did.
    pub fn activity(&self) -> Activity {
        self.lock().model.activity()
    }

    /// Bytes written, and those of them in commands of at least 64 KiB.
    pub fn written_bytes(&self) -> (u64, u64) {
        self.lock().written
    }

    /// Block and version of the stamp in a block; `None` if there is none.
    pub fn stamp_at(&self, at: u64) -> Option<(u64, u64)> {
        let code = self.lock().content.blocks[at as usize];
        (code >> 63 == 1).then_some((code << 1 >> 1 >> STAMP_BITS, code & ((1 << STAMP_BITS) - 1)))
    }

    /// Sets a timer for the next thing that the device does.
    fn arm(&self, state: &mut State) {
        let Some(next_ns) = state.model.next_ns() else { return };
        if state.armed_ns.is_some_and(|armed_ns| armed_ns <= next_ns) {
            return;
        }
        state.armed_ns = Some(next_ns);
        let disk = self.clone();
        let delay_ns = next_ns.saturating_sub(self.env.now_ns());
        self.env.core().after(delay_ns, move || disk.fire(next_ns));
    }

    fn fire(&self, at_ns: u64) {
        let mut state = self.lock();
        if state.armed_ns == Some(at_ns) {
            state.armed_ns = None;
        }
        let mut wakers = Vec::new();
        for done in state.model.poll(self.env.now_ns()) {
            let slot = state.waiting.remove(&done.tag).expect("each tag is submitted once");
            let mut slot = slot.lock().unwrap_or_else(PoisonError::into_inner);
            slot.0 = true;
            wakers.extend(slot.1.take());
        }
        self.arm(&mut state);
        drop(state);
        wakers.into_iter().for_each(Waker::wake);
    }

    fn submit(&self, command: Command) -> Done {
        let mut state = self.lock();
        state.next_tag += 1;
        let tag = state.next_tag;
        let slot = Arc::new(Mutex::new((false, None)));
        state.waiting.insert(tag, slot.clone());
        state.model.submit(self.env.now_ns(), tag, command);
        self.arm(&mut state);
        Done(slot)
    }
}

struct Done(Slot);

impl Future for Done {
    type Output = ();
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let mut slot = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if slot.0 {
            return Poll::Ready(());
        }
        slot.1 = Some(cx.waker().clone());
        Poll::Pending
    }
}

impl Disk for CostedDisk {
    fn geometry(&self) -> DiskGeometry {
        let size_bytes = self.size_bytes;
        DiskGeometry { size_bytes, sector_bytes: 4096, align_bytes: 4096, discard: false, fua: true, read_only: false }
    }

    async fn read(&self, offset: u64, mut buf: Buf) -> (Result<(), IoError>, Buf) {
        self.submit(Command::Read { offset, len: buf.len() as u64 }).await;
        let state = self.lock();
        for (at, block) in buf.chunks_mut(BLOCK_BYTES).enumerate() {
            state.content.get(offset / BLOCK_BYTES_U64 + at as u64, block);
        }
        drop(state);
        (Ok(()), buf)
    }

    async fn write(&self, offset: u64, data: Vec<Slice>, fua: bool) -> Result<(), IoError> {
        let len: u64 = data.iter().map(|slice| slice.len() as u64).sum();
        assert!(offset + len <= self.size_bytes, "within the device");
        self.submit(Command::Write { offset, len, fua }).await;
        let mut state = self.lock();
        state.written.0 += len;
        state.written.1 += if len >= 64 << 10 { len } else { 0 };
        let blocks = data.iter().flat_map(|slice| slice.chunks(BLOCK_BYTES));
        for (at, block) in blocks.enumerate() {
            state.content.put(offset / BLOCK_BYTES_U64 + at as u64, block);
        }
        Ok(())
    }

    async fn flush(&self) -> Result<(), IoError> {
        self.submit(Command::Flush).await;
        Ok(())
    }

    async fn discard(&self, _offset: u64, _len: u64) -> Result<(), IoError> {
        Err(IoError::Unsupported)
    }

    async fn write_zeroes(&self, _offset: u64, _len: u64) -> Result<(), IoError> {
        Err(IoError::Unsupported)
    }
}
