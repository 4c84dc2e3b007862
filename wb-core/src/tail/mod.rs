//! The RAM tail: the records beyond D, kept where they survive the process.
//!
//! A completed write is in a record buffer; until that record is written and D has passed it, the device does not have
//! it. The record buffers therefore lie in a file in shared memory, which outlives the daemon, and beside each of them
//! lies a control block that says which record it is. After SIGKILL, a crash or an upgrade the next daemon finds there
//! everything that was acknowledged, flushed or not. After a power cut the file is gone, and the log on the device is what
//! counts. The layout is in `docs/FORMAT.md`, section 7.
//!
//! **Invariants.**
//! * A write is acknowledged only after its entries are published: payload, then the entry's first word, then (release)
//!   its second word, straight into the record buffer. A second word of zero is a void entry, so what was reserved and
//!   not published is void without further ado. A reserved range, which owns no payload block, is marked as such before
//!   anything is reserved behind it.
//! * Every record with a number > D of the durable cell is in a buffer: a buffer is taken again only after a cell that
//!   covers its record has been stored. The numbers from there to the newest record are without a gap.
//! * Records are sealed in order, in place. A record whose header is sealed may be on its way to the device, so its bytes
//!   never change again. Of one that is not sealed no byte has ever been sent.
//! * A tail belongs to one instance of one cache in one boot. The anchor names it; only a tail that is complete and whose
//!   id the newest anchor names, in the boot that the anchor names, is believed.
//!
//! **Recovery** ([`examine`]; the engine does the rest): each record > D is taken as sealed, or sealed now, void where
//! unfinished. A header sealed in recovery is stored beside the buffer before a byte of it is sent, so that a recovery
//! that dies half-way sends the same bytes the next time. All of them are written to where they belong, the device is
//! flushed, and then the ordinary recovery must find every one of them. The old tail is removed when both anchors name
//! the new one; what is in neither is removed, too. So recovery may be cut off anywhere and repeated.
//!
//! The dead process cannot write any more: the claim on the cache device lasts until its threads are gone and its
//! requests in flight have ended.

mod examine;
mod layout;

pub use examine::{Examined, FoundRecord, Seal, examine};
pub use layout::{
    DurableCell, TAIL_VERSION, TailControl, TailHeaderRaw, TailIdentity, TailLayout, UNFINISHED_RANGE_KIND,
};

use crate::io::{Buf, BufPool, PoolClass, Region};
use crate::types::*;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use uuid::Uuid;

/// Names a tail: the cache and a number drawn for each tail.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct TailName {
    /// The cache.
    pub cache: Uuid,
    /// Drawn when it is made; never zero.
    pub id: Uuid,
}

impl std::fmt::Display for TailName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.cache, self.id)
    }
}

/// Why a tail cannot be made, opened or believed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TailError {
    /// The place where tails are kept.
    #[error("{what}: {error}. {next_step}")]
    Store {
        /// What was attempted, and on what.
        what: String,
        /// The kernel's answer.
        error: String,
        /// What to do about it.
        next_step: &'static str,
    },
    /// Of a version that this program does not know.
    #[error(
        "the RAM tail {name} has version {found}, this program knows version {TAIL_VERSION}: start the program that made it"
    )]
    Version {
        /// The tail.
        name: TailName,
        /// Its version.
        found: u32,
    },
    /// It contradicts itself.
    #[error("the RAM tail {name} is damaged: {reason}")]
    Damaged {
        /// The tail.
        name: TailName,
        /// How it shows.
        reason: String,
    },
}

/// Where tails are kept: memory that outlives the process and not the boot. The caller of every method has claimed the
/// cache device.
pub trait TailStore: Send + Sync + 'static {
    /// Makes a new one of `bytes` zeroes, all of it allocated.
    fn create(&self, name: TailName, bytes: usize) -> Result<Arc<Region>, TailError>;
    /// An existing one, or `None` if there is none.
    fn open(&self, name: TailName) -> Result<Option<Arc<Region>>, TailError>;
    /// Removes it; one that is not there counts as removed.
    fn remove(&self, name: TailName) -> Result<(), TailError>;
    /// Removes it unless somebody uses it. False if so.
    fn remove_unused(&self, name: TailName) -> Result<bool, TailError> {
        self.remove(name).map(|()| true)
    }
    /// All tails of a cache.
    fn list(&self, cache: Uuid) -> Result<Vec<TailName>, TailError>;
    /// Where a tail lies, for people.
    fn describe(&self, name: TailName) -> String;
}

/// The tail of the running instance.
#[derive(Clone)]
pub struct Tail {
    region: Arc<Region>,
    layout: TailLayout,
    buffers: BufPool,
}

/// The control block of one record buffer.
pub struct Control {
    region: Arc<Region>,
    offset: usize,
}

impl Tail {
    /// A tail in `region`, which is all zeroes: complete, and empty up to `durable`.
    pub fn create(
        region: Arc<Region>,
        layout: TailLayout,
        identity: &TailIdentity,
        durable: Seq,
        chain_crc: u32,
    ) -> Tail {
        assert_eq!(region.len(), layout.bytes(), "a region of this layout");
        let tail = Tail::over(region, layout);
        tail.set_durable(durable, chain_crc);
        // Last: before this nothing is a tail.
        tail.region.copy_in(0, &identity.encode(&layout));
        tail
    }

    /// A tail in memory of this process alone: its death takes what a power cut may take.
    pub fn private(layout: TailLayout) -> std::io::Result<Tail> {
        Ok(Tail::over(Arc::new(Region::anonymous(layout.bytes())?), layout))
    }

    fn over(region: Arc<Region>, layout: TailLayout) -> Tail {
        let class = PoolClass { bytes: layout.buffer_bytes, count: layout.buffers };
        let buffers = BufPool::within(&region, layout.buffers_offset(), class);
        Tail { region, layout, buffers }
    }

    /// The record buffers.
    pub fn buffers(&self) -> &BufPool {
        &self.buffers
    }

    /// Bytes of the tail.
    pub fn bytes(&self) -> u64 {
        self.region.len() as u64
    }

    /// A buffer becomes that of a new, empty record.
    pub(crate) fn open_record(&self, buf: &mut Buf, seq: Seq, segment: SegmentNo, offset_blocks: u32) -> Control {
        let number = (self.region.offset_of(buf.as_ptr()) - self.layout.buffers_offset()) / self.layout.buffer_bytes;
        let offset = self.layout.control_offset(number);
        let word = |at: usize| self.region.word(offset + at);
        // Not that of the record before any more, then nothing of it left, then that of the new one.
        word(TailControl::SEQ).store(0, Ordering::Release);
        buf[..BLOCK_BYTES].fill(0);
        word(TailControl::SEALED_IN_RECOVERY).store(0, Ordering::Relaxed);
        word(TailControl::PLACE).store(TailControl::place(segment, offset_blocks), Ordering::Relaxed);
        word(TailControl::RESERVED).store(0, Ordering::Relaxed);
        word(TailControl::SEQ).store(seq.0, Ordering::Release);
        Control { region: self.region.clone(), offset }
    }

    /// Everything up to `durable`, whose chain value is `chain_crc`, is on stable media. Only after this its buffers may
    /// be taken again. One caller at a time.
    pub(crate) fn set_durable(&self, durable: Seq, chain_crc: u32) {
        let cells = [0, 1].map(|number| self.layout.cell_offset(number));
        let seq = |cell: usize| self.region.word(cell).load(Ordering::Relaxed);
        // The older one is overwritten; a half-written cell does not check, and the other one still holds.
        let cell = if seq(cells[0]) <= seq(cells[1]) { cells[0] } else { cells[1] };
        self.region.word(cell + 8).store(0, Ordering::Release);
        self.region.word(cell).store(durable.0, Ordering::Release);
        self.region.word(cell + 8).store(DurableCell { seq: durable, chain_crc }.check_word(), Ordering::Release);
    }
}

impl Control {
    /// So many entries and payload blocks are reserved. Under the head lock.
    pub(crate) fn set_reserved(&self, entries: usize, payload: usize) {
        self.region
            .word(self.offset + TailControl::RESERVED)
            .store(TailControl::reserved(entries, payload), Ordering::Release);
    }
}
