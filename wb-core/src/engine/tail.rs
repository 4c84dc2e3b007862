//! The RAM tail at start and at the end: what a dead instance left in memory goes to the device before the log is walked,
//! and this instance gets a tail of its own. [`crate::tail`] has the invariants.
//!
//! Replaying ([`super::replay`]) writes what the dead instance would have written itself, and the tail stays until both
//! anchors name the next one: it may be cut off anywhere, also by a start that is refused afterwards, and is repeated.

use super::Inner;
use super::recovery::{OpenError, OpenOptions};
use super::replay;
use crate::env::{Env, PlantedBug};
use crate::log::head::HeadStart;
use crate::meta::CacheMeta;
use crate::tail::{Examined, Seal, Tail, TailError, TailIdentity, TailLayout, TailName, TailStore, examine};
use crate::types::*;
use std::sync::Arc;
use uuid::Uuid;

/// What the tail of a dead instance gave.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TailReport {
    /// Records beyond D that were in it, all of them on the device now.
    pub records: u64,
    /// Those of them that the instance had not even begun to write.
    pub unsealed: u64,
    /// Slots that it had reserved and not filled: requests it was working on.
    pub unfinished: u64,
    /// Records that went to another place, because theirs could not be written.
    pub moved: u64,
}

/// What the instance before left.
pub(super) enum Before {
    /// It needs no tail: it stopped clean, or power failed since.
    NoTail,
    /// All of its tail is on the device and durable.
    Replayed {
        /// The newest record.
        head: Seq,
        /// What there was.
        report: TailReport,
    },
    /// It died in this boot, its tail cannot be had or cannot be put on the device, and the user accepts that.
    LossAccepted {
        /// The newest record of the tail, if it can be read.
        head: Option<Seq>,
    },
}

/// Where this instance keeps its tail.
pub(super) struct OwnTail {
    pub store: Arc<dyn TailStore>,
    pub name: TailName,
}

/// Puts on the device what the instance before left in memory.
pub(super) async fn replay<E: Env>(
    env: &E,
    options: &OpenOptions<E::Disk>,
    meta: &mut CacheMeta,
) -> Result<Before, OpenError> {
    let anchor = &meta.anchor;
    if anchor.ram_tail_id == [0; 16] || anchor.boot_id != options.boot_id {
        return Ok(Before::NoTail);
    }
    let name = TailName { cache: meta.superblock.uuid, id: Uuid::from_bytes(anchor.ram_tail_id) };
    let found = match find(env, options, meta, name) {
        Ok(found) => found,
        Err(error @ (OpenError::Tail(TailError::Store { .. }) | OpenError::TailLost { .. }))
            if !options.accept_loss =>
        {
            return Err(error);
        }
        Err(error) if options.accept_loss => {
            tracing::warn!("{error}. This loss is accepted: the log goes on with what the cache device holds");
            return Ok(Before::LossAccepted { head: None });
        }
        Err(error) => return Err(error),
    };
    let moved = match replay::write_all(env, &*options.cache, meta, &found).await {
        Ok(moved) => moved,
        // As after a power cut: some of them are on the device, and the walk ends before the first that is not.
        Err(error) if options.accept_loss => {
            tracing::warn!(
                "{error}. The RAM tail is given up, as accepted: the log goes on with what the cache device holds"
            );
            return Ok(Before::LossAccepted { head: Some(found.head()) });
        }
        Err(error) => return Err(error),
    };
    let records = found.records.len() as u64;
    let report = TailReport { records, unsealed: found.sealed_now, unfinished: found.unfinished, moved };
    if report.records > 0 {
        tracing::info!(
            "RAM tail: {} records that the last instance had acknowledged and not flushed are on the cache device",
            report.records
        );
    }
    Ok(Before::Replayed { head: found.head(), report })
}

fn find<E: Env>(
    env: &E,
    options: &OpenOptions<E::Disk>,
    meta: &CacheMeta,
    name: TailName,
) -> Result<Examined, OpenError> {
    let anchor = &meta.anchor;
    let lost = |why: String| OpenError::TailLost { why, durable: anchor.durable };
    let Some(store) = &options.tails else { return Err(lost(format!("nowhere to look for its RAM tail {name}"))) };
    let Some(region) = store.open(name)? else { return Err(lost(format!("{} is gone", store.describe(name)))) };
    let seal = Seal { log_tail: anchor.log_tail, dirty_tail: anchor.dirty_tail, wall_unix_ns: env.wall_ns() };
    let forget = options.config.has_bug(PlantedBug::ForgetUnfinishedSlots);
    let found = examine(region, name, &meta.superblock, seal, forget).map_err(|error| match error {
        TailError::Store { .. } => OpenError::Tail(error),
        TailError::Version { .. } | TailError::Damaged { .. } => lost(error.to_string()),
    })?;
    let fits = found.identity.boot_id == anchor.boot_id
        && (found.identity.epoch, found.identity.epoch_start) == (anchor.epoch, anchor.epoch_start)
        && anchor.durable <= found.head();
    if !fits {
        return Err(lost(format!(
            "{} is of epoch {} and ends at record {}; the cache is at epoch {}, record {}",
            store.describe(name),
            found.identity.epoch,
            found.head(),
            anchor.epoch,
            anchor.durable
        )));
    }
    Ok(found)
}

/// The tail of this instance, complete and not yet named by any anchor.
pub(super) fn create<E: Env>(
    env: &E,
    options: &OpenOptions<E::Disk>,
    meta: &CacheMeta,
    start: &HeadStart,
) -> Result<(Tail, Option<OwnTail>), OpenError> {
    let superblock = &meta.superblock;
    let record_blocks = (1 + RECORD_ENTRIES_MAX).min(superblock.geometry.record_blocks() as usize);
    let layout =
        TailLayout { buffers: options.config.record_buffers.max(3), buffer_bytes: record_blocks * BLOCK_BYTES };
    let Some(store) = options.tails.clone() else {
        let tail = Tail::private(layout).map_err(|error| OpenError::Memory { bytes: layout.bytes() as u64, error })?;
        return Ok((tail, None));
    };
    // What starts that failed have left, each some dozen MiB of memory: no anchor names it, or will.
    let named =
        |name: &TailName| meta.anchor_slots.iter().flatten().any(|slot| slot.ram_tail_id == *name.id.as_bytes());
    remove_tails(&*store, store.list(superblock.uuid).map(|all| all.into_iter().filter(|name| !named(name)).collect()));
    let id = uuid::Builder::from_random_bytes(random_bytes(env)).into_uuid();
    let name = TailName { cache: superblock.uuid, id };
    let identity = TailIdentity {
        name,
        boot_id: options.boot_id,
        epoch: start.epoch,
        epoch_start: start.epoch_start,
        created_unix_ns: env.wall_ns(),
    };
    let region = store.create(name, layout.bytes())?;
    let tail = Tail::create(region, layout, &identity, start.head, start.chain_crc);
    Ok((tail, Some(OwnTail { store, name })))
}

fn random_bytes<E: Env>(env: &E) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&env.random_u64().to_le_bytes());
    bytes[8..].copy_from_slice(&env.random_u64().to_le_bytes());
    bytes
}

/// Removes tails that nobody uses.
fn remove_tails(store: &dyn TailStore, names: Result<Vec<TailName>, TailError>) {
    let names = match names {
        Ok(names) => names,
        Err(error) => return tracing::warn!("{error}"),
    };
    for name in names {
        match store.remove_unused(name) {
            Ok(true) => {}
            Ok(false) => tracing::warn!(
                "{} is in use: another cache has the UUID of this one; a copy must get its own",
                store.describe(name)
            ),
            Err(error) => tracing::warn!("{error}"),
        }
    }
}

impl OwnTail {
    /// Removes what earlier instances of this cache left. Both anchors name this one.
    pub fn remove_others(&self) {
        let all = self.store.list(self.name.cache);
        remove_tails(&*self.store, all.map(|all| all.into_iter().filter(|name| *name != self.name).collect()));
    }
}

impl<E: Env> Inner<E> {
    /// Nothing is in memory only, and both anchors say so: the tail has served.
    pub(super) fn remove_tail(&self) {
        let Some(own) = &self.tail else { return };
        if let Err(error) = own.store.remove(own.name) {
            tracing::warn!("{error}; the next start removes it");
        }
    }
}
