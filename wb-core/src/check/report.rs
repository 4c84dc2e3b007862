//! What a check found, for people and programs.

use crate::types::*;
use uuid::Uuid;

/// How bad a finding is, best first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// Normal, worth knowing: a torn tail after a crash.
    Note,
    /// Nothing is lost, but redundancy is gone: one of two copies destroyed.
    Warning,
    /// Data is lost, or the cache cannot be used as it is.
    Error,
}

/// One thing that was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// Which thing ("superblock copy 1", "record 17", "volume 1 block 4711").
    pub place: String,
    /// What is wrong with it.
    pub what: String,
    /// It was there before a repair and is not there now.
    pub corrected: bool,
}

/// The verdict.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing worse than notes.
    Clean,
    /// Something was wrong, and all of it is corrected.
    Corrected,
    /// Something is wrong.
    Errors,
}

/// What a check found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// The cache.
    pub uuid: Uuid,
    /// Everything found, worst first.
    pub findings: Vec<Finding>,
    /// Records of the live log that proved themselves.
    pub records_valid: u64,
    /// Records behind a cut or gap that a repair dropped or would drop.
    pub records_dropped: u64,
    /// Complete records behind the end of the log: written, never promised durable.
    pub torn_tail_records: u64,
    /// Blocks with payload that is not yet on the backing device.
    pub dirty_blocks: u64,
    /// Blocks marked as lost.
    pub poisoned_blocks: u64,
    /// Blocks whose newest data is lost, in order.
    pub lost_blocks: Vec<BlockAddr>,
    /// Records that are lost, in order.
    pub lost_records: Vec<Seq>,
    /// Blocks that a lost record may have overwritten, in order.
    pub suspect_blocks: Vec<BlockAddr>,
    /// Blocks whose payload was verified.
    pub verified_blocks: u64,
}

impl Report {
    /// The verdict over all findings.
    pub fn verdict(&self) -> Verdict {
        let wrong = |finding: &&Finding| finding.severity > Severity::Note;
        match (
            self.findings.iter().filter(wrong).any(|finding| !finding.corrected),
            self.findings.iter().any(|finding| finding.severity > Severity::Note),
        ) {
            (true, _) => Verdict::Errors,
            (false, true) => Verdict::Corrected,
            (false, false) => Verdict::Clean,
        }
    }

    /// This report, made before a repair, seen with the report made after it: what is gone is corrected, and the numbers
    /// are those of the cache as it is now. What was lost stays listed.
    pub fn after_repair(mut self, after: Report) -> Report {
        for finding in &mut self.findings {
            let still = |other: &&Finding| other.place == finding.place && other.what == finding.what;
            finding.corrected = after.findings.iter().find(still).is_none();
        }
        for finding in after.findings {
            let known = |own: &Finding| own.place == finding.place && own.what == finding.what;
            if !self.findings.iter().any(known) {
                self.findings.push(finding);
            }
        }
        self.findings.sort_by_key(|finding| std::cmp::Reverse(finding.severity));
        Report {
            records_valid: after.records_valid,
            torn_tail_records: after.torn_tail_records,
            dirty_blocks: after.dirty_blocks,
            poisoned_blocks: after.poisoned_blocks,
            ..self
        }
    }
}
