//! Reports for people and for programs.

use std::io::Write;
use std::path::Path;
use wb_cli::exit::{CheckBit, CheckExit};
use wb_cli::json::check::{BlockRef, CheckReport, Finding, Severity, Verdict};
use wb_cli::{Context, units};
use wb_core::BlockAddr;
use wb_core::check::{self, Report};

/// Most blocks or records that are listed for people; JSON has all.
const LISTED_MAX: usize = 20;

/// The document of `--json`.
pub fn document(device: &Path, report: &Report) -> CheckReport {
    let blocks = |blocks: &[BlockAddr]| {
        blocks.iter().map(|addr| BlockRef { volume: addr.volume().0, block: addr.block() }).collect()
    };
    CheckReport {
        device: device.display().to_string(),
        uuid: Some(report.uuid.to_string()),
        verdict: match report.verdict() {
            check::Verdict::Clean => Verdict::Clean,
            check::Verdict::Corrected => Verdict::Corrected,
            check::Verdict::Errors => Verdict::Errors,
        },
        findings: report.findings.iter().map(finding).collect(),
        records_valid: report.records_valid,
        records_dropped: report.records_dropped,
        torn_tail_records: report.torn_tail_records,
        dirty_blocks: report.dirty_blocks,
        poisoned_blocks: report.poisoned_blocks,
        lost_blocks: blocks(&report.lost_blocks),
        lost_records: report.lost_records.iter().map(|seq| seq.0).collect(),
        suspect_blocks: blocks(&report.suspect_blocks),
        verified_blocks: report.verified_blocks,
        replayed_blocks: 0,
        backup: None,
    }
}

fn finding(found: &check::Finding) -> Finding {
    Finding {
        severity: match found.severity {
            check::Severity::Note => Severity::Note,
            check::Severity::Warning => Severity::Warning,
            check::Severity::Error => Severity::Error,
        },
        place: found.place.clone(),
        what: found.what.clone(),
        corrected: found.corrected,
    }
}

/// The exit code: the sum of what applies.
pub fn exit(report: &Report) -> CheckExit {
    let any = |corrected: bool| {
        report.findings.iter().any(|found| found.severity > check::Severity::Note && found.corrected == corrected)
    };
    let add = |exit: CheckExit, bit, applies| if applies { exit.with(bit) } else { exit };
    add(add(CheckExit::CLEAN, CheckBit::Corrected, any(true)), CheckBit::ErrorsLeft, any(false))
}

/// One line per finding.
pub fn show_findings(report: &Report, ctx: &mut Context) -> anyhow::Result<()> {
    for found in &report.findings {
        let severity = match (found.severity, found.corrected) {
            (check::Severity::Note, _) => "note",
            (_, true) => "corrected",
            (check::Severity::Warning, false) => "warning",
            (check::Severity::Error, false) => "error",
        };
        writeln!(ctx.out, "{severity}: {}: {}", found.place, found.what)?;
    }
    Ok(())
}

/// What was found, then the verdict.
pub fn show(document: &CheckReport, report: &Report, ctx: &mut Context) -> anyhow::Result<()> {
    show_findings(report, ctx)?;
    list(ctx, "lost blocks", &names(&document.lost_blocks), document.lost_blocks.len())?;
    let records: Vec<_> = document.lost_records.iter().take(LISTED_MAX).map(u64::to_string).collect();
    list(ctx, "lost records", &records, document.lost_records.len())?;
    list(ctx, "suspect blocks", &names(&document.suspect_blocks), document.suspect_blocks.len())?;
    if !document.suspect_blocks.is_empty() {
        writeln!(ctx.out, "  (a lost record may have had newer data for these, and for blocks that no record names)")?;
    }
    let count = units::count;
    writeln!(
        ctx.out,
        "{} records, {} dirty blocks ({}), {} poisoned blocks",
        count(document.records_valid),
        count(document.dirty_blocks),
        units::size(document.dirty_blocks * wb_core::BLOCK_BYTES_U64),
        count(document.poisoned_blocks)
    )?;
    if document.verified_blocks > 0 {
        writeln!(ctx.out, "{} blocks of payload compared with their checksums", count(document.verified_blocks))?;
    }
    if document.replayed_blocks > 0 {
        writeln!(ctx.out, "{} blocks written to the backing device", count(document.replayed_blocks))?;
    }
    if let Some(backup) = &document.backup {
        writeln!(ctx.out, "what was replaced is saved in {backup}")?;
    }
    let verdict = match document.verdict {
        Verdict::Clean => "clean",
        Verdict::Corrected => "errors were found and corrected",
        Verdict::Errors => "errors are left",
    };
    writeln!(ctx.out, "{}: {verdict}", document.device)?;
    Ok(())
}

fn names(blocks: &[BlockRef]) -> Vec<String> {
    blocks.iter().take(LISTED_MAX).map(|block| format!("{}:{}", block.volume, block.block)).collect()
}

fn list(ctx: &mut Context, what: &str, shown: &[String], all: usize) -> anyhow::Result<()> {
    if all > 0 {
        let more = if all > shown.len() { ", ... (all of them with --json)" } else { "" };
        writeln!(ctx.out, "{what} ({all}): {}{more}", shown.join(", "))?;
    }
    Ok(())
}
