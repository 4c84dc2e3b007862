//! What wb-check does: look; then, if asked to, repair or replay.

use crate::backup::BackupFile;
use crate::report::{document, exit, show, show_findings};
use anyhow::Context as _;
use std::io::Write;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};
use wb_cli::check_args::{CheckAction, CheckPlan};
use wb_cli::error::{NextStep, UsageError};
use wb_cli::exit::CheckExit;
use wb_cli::json::check::{CheckReport, Verdict};
use wb_cli::progress::{Progress, ProgressUnit};
use wb_cli::{Context, output};
use wb_core::check::{self, CheckOptions, Examination, RepairOptions, ReplayOptions, Report};
use wb_core::rt::{Access, BlockingDisk, DeviceKind, Opened, block_on_ready, boot_id, open_blocking, same_device};

/// A killed daemon holds its claim until the kernel has ended its requests, also after its process is gone.
const CLAIM_WAIT_NS: u64 = 5_000_000_000;

/// Does what was asked for.
pub fn run(plan: CheckPlan, ctx: &mut Context) -> anyhow::Result<CheckExit> {
    let options = CheckOptions { verify_data: plan.verify_data };
    let access = match plan.action {
        CheckAction::Verify => Access::exclusive_read_only(CLAIM_WAIT_NS),
        CheckAction::Repair { .. } | CheckAction::Replay { .. } => Access::exclusive(CLAIM_WAIT_NS),
    };
    let cache = open(&plan.cache, access)?;
    let found = examine(&cache.disk, &plan.cache, options, ctx)?;
    match &plan.action {
        CheckAction::Verify => finish(document(&plan.cache, &found.report()), &found.report(), ctx),
        CheckAction::Repair { yes, backup } => {
            let repair = Repair { plan: &plan, cache: &cache, options, yes: *yes, backup: backup.as_deref() };
            repair.run(&found, ctx)
        }
        CheckAction::Replay { backing } => replay(&plan, &cache.disk, backing, &found, ctx),
    }
}

fn open(path: &Path, access: Access) -> anyhow::Result<Opened<BlockingDisk>> {
    open_blocking(path, access)
        .context("cannot check")
        .next_step("stop the daemon that uses it first (wb-daemon stop); wb-dump works beside one")
}

/// Shows how far a long operation is.
struct Bar {
    progress: Option<(&'static str, Progress)>,
    quiet: bool,
}

impl Bar {
    fn new(ctx: &Context) -> Bar {
        Bar { progress: None, quiet: ctx.json }
    }
    fn tell(&mut self, at: check::Progress) {
        if self.quiet {
            return;
        }
        if self.progress.as_ref().is_none_or(|(what, _)| *what != at.what) {
            self.progress = Some((at.what, Progress::new(at.what, at.total, ProgressUnit::Items)));
        }
        if let Some((_, bar)) = &self.progress {
            bar.set(at.done);
        }
    }
}

fn examine(disk: &BlockingDisk, path: &Path, options: CheckOptions, ctx: &Context) -> anyhow::Result<Examination> {
    let mut bar = Bar::new(ctx);
    let found = block_on_ready(check::examine(disk, options, &mut |at| bar.tell(at)));
    found.with_context(|| path.display().to_string())
}

fn finish(document: CheckReport, report: &Report, ctx: &mut Context) -> anyhow::Result<CheckExit> {
    match ctx.json {
        true => ctx.out.json(&document)?,
        false => show(&document, report, ctx)?,
    }
    Ok(exit(report))
}

fn now_unix_ns() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_nanos() as u64)
}

struct Repair<'a> {
    plan: &'a CheckPlan,
    cache: &'a Opened<BlockingDisk>,
    options: CheckOptions,
    yes: bool,
    backup: Option<&'a Path>,
}

impl Repair<'_> {
    fn run(&self, found: &Examination, ctx: &mut Context) -> anyhow::Result<CheckExit> {
        let path = &self.plan.cache;
        let steps = check::plan(found);
        if steps.is_empty() {
            return finish(document(path, &found.report()), &found.report(), ctx);
        }
        if self.backup.is_none() && self.cache.identity.kind == DeviceKind::Block {
            return Err(UsageError::raise(format!(
                "{} is a block device: nowhere to save what is replaced",
                path.display()
            )))
            .next_step("name a file on another device with --backup FILE");
        }
        if !ctx.json {
            show_findings(&found.report(), ctx)?;
            writeln!(ctx.out, "plan:")?;
            for line in steps.lines() {
                writeln!(ctx.out, "  {line}")?;
            }
            ctx.out.flush()?;
        } else if !self.yes {
            // What is asked about must have been seen.
            steps.lines().iter().for_each(|line| eprintln!("plan: {line}"));
        }
        if !self.yes && !output::confirm("Repair?", "add --yes to repair without asking")? {
            return finish(document(path, &found.report()), &found.report(), ctx);
        }
        let mut backup = BackupFile::create(self.backup, path, found.superblock.uuid)?;
        let options = RepairOptions { check: self.options, now_unix_ns: now_unix_ns(), boot_id: boot_id() };
        let mut bar = Bar::new(ctx);
        let done = block_on_ready(check::repair(&self.cache.disk, found, options, &mut backup, &mut |at| bar.tell(at)));
        drop(bar);
        let report = done.with_context(|| format!("repairing {}", path.display()))?;
        let mut document = document(path, &report);
        document.backup = Some(backup.path.display().to_string());
        finish(document, &report, ctx)
    }
}

fn replay(
    plan: &CheckPlan,
    cache: &BlockingDisk,
    backing: &Path,
    found: &Examination,
    ctx: &mut Context,
) -> anyhow::Result<CheckExit> {
    if same_device(&plan.cache, backing).unwrap_or(false) {
        let same = format!("{} and {} are the same device", plan.cache.display(), backing.display());
        return Err(UsageError::raise(same)).next_step("name the backing device with --backing DEV");
    }
    let target = open_blocking(backing, Access::exclusive(CLAIM_WAIT_NS))?;
    let options = ReplayOptions {
        identity: target.identity.serial.clone().unwrap_or_default(),
        now_unix_ns: now_unix_ns(),
        boot_id: boot_id(),
    };
    let mut bar = Bar::new(ctx);
    let done = block_on_ready(check::replay(cache, &target.disk, found, &options, &mut |at| bar.tell(at)));
    drop(bar);
    let replayed =
        done.with_context(|| format!("writing the data of {} to {}", plan.cache.display(), backing.display()))?;
    let after = examine(cache, &plan.cache, CheckOptions::default(), ctx)?;
    let mut report = after.report();
    report.lost_blocks.extend(&replayed.rotten);
    let mut document = document(&plan.cache, &report);
    document.replayed_blocks = replayed.blocks + replayed.range_blocks;
    if !replayed.is_complete() {
        document.verdict = Verdict::Errors;
        for addr in &replayed.rotten {
            report.findings.push(left(format!("{addr:?}"), "its payload is lost; run wb-check --repair --verify-data"));
        }
        for (addr, error) in &replayed.failed {
            report
                .findings
                .push(left(format!("{addr:?}"), &format!("{} does not take it: {error}", backing.display())));
        }
        document.findings = crate::report::document(&plan.cache, &report).findings;
    }
    finish(document, &report, ctx)
}

fn left(block: String, what: &str) -> check::Finding {
    check::Finding {
        severity: check::Severity::Error,
        place: format!("block {block}"),
        what: what.to_owned(),
        corrected: false,
    }
}
