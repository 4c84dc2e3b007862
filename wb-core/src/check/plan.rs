//! What a repair would do, before it does it.

use super::block_name;
use super::examine::Examination;
use crate::format::EntryKind;
use crate::types::*;

/// What a repair does, in this order. Empty: nothing to do.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// Write both superblocks again.
    pub superblocks: bool,
    /// Write both volume tables again.
    pub volumes: bool,
    /// Write the bad-segment bitmap again.
    pub bad_segments: bool,
    /// Write both anchors again.
    pub anchors: bool,
    /// Outdated summaries to clear; everything else is judged again afterwards.
    pub outdated: usize,
    /// Headers to restore from summaries.
    pub headers: usize,
    /// Lost records to bridge.
    pub bridged: u64,
    /// Clean copies that may be stale are dropped.
    pub drop_clean: bool,
    /// Blocks to mark as lost.
    pub poison: Vec<BlockAddr>,
    /// Blocks to be read from the backing device from now on.
    pub invalidate: Vec<BlockAddr>,
}

/// What a repair of what was seen would do.
pub fn plan(found: &Examination) -> Plan {
    let rotten = |dirty: bool| {
        let mut blocks: Vec<_> =
            found.rot.iter().filter(|rot| rot.live && rot.dirty == dirty).map(|rot| rot.addr).collect();
        blocks.sort();
        blocks.dedup();
        blocks
    };
    let meta = &found.meta;
    // Nothing in the log can be judged without an anchor.
    let log = found.no_anchor.is_none();
    let bridged = found.log.gaps.iter().filter(|gap| !gap.bridges.is_empty());
    Plan {
        superblocks: meta.superblocks.iter().any(Result::is_err),
        volumes: meta.volumes.iter().any(Result::is_err) && (found.volumes.is_some() || found.is_unused()),
        bad_segments: meta.bad_segments.iter().flatten().any(Result::is_err) || !found.log.skipped.is_empty(),
        anchors: log && (meta.anchors.iter().any(Result::is_err) || found.rebuilt_anchor.is_some() || found.misleads()),
        outdated: if log { found.outdated.len() } else { 0 },
        headers: if log { found.headers.len() } else { 0 },
        bridged: bridged.filter(|_| log).fold(0u64, |sum, gap| sum.saturating_add(gap.len())),
        drop_clean: log && found.stale_below.is_some(),
        poison: if log { rotten(true) } else { Vec::new() },
        invalidate: if log { rotten(false) } else { Vec::new() },
    }
}

impl Plan {
    /// True if nothing is to be done.
    pub fn is_empty(&self) -> bool {
        *self == Plan::default()
    }

    /// The plan for people, one line per step.
    pub fn lines(&self) -> Vec<String> {
        let mut lines = Vec::new();
        let mut add = |wanted: bool, text: String| {
            if wanted {
                lines.push(text);
            }
        };
        add(self.superblocks, "write both superblocks again from the copy that is left".into());
        add(self.volumes, "write both volume tables again".into());
        add(self.bad_segments, "write the bad-segment bitmap again".into());
        add(self.anchors, "write both anchors again".into());
        add(self.outdated > 0, format!("clear {} outdated segment summaries, then look again", self.outdated));
        add(self.headers > 0, format!("restore {} record headers from segment summaries", self.headers));
        add(
            self.bridged > 0,
            format!("bridge {} lost records, so that everything after them counts again", self.bridged),
        );
        add(
            self.drop_clean,
            "drop clean copies older than the lost records (the backing device has their data)".into(),
        );
        let names = |blocks: &[BlockAddr]| {
            let shown: Vec<_> = blocks.iter().take(8).map(|addr| block_name(*addr)).collect();
            let more = if blocks.len() > 8 { ", ..." } else { "" };
            format!("{}{more}", shown.join(", "))
        };
        let (lost, kept) = (&self.poison, &self.invalidate);
        add(!lost.is_empty(), format!("mark {} blocks as lost: {}", lost.len(), names(lost)));
        add(!kept.is_empty(), format!("read {} blocks from the backing device again: {}", kept.len(), names(kept)));
        lines
    }
}

impl Examination {
    /// True if the log holds nothing that belongs to a volume.
    pub(super) fn is_unused(&self) -> bool {
        self.log.live.cached_blocks() == 0 && self.log.live.ranges().all(|(_, piece)| piece.kind == EntryKind::Void)
    }
}
