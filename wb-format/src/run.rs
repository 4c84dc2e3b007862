//! What wb-format does: look, refuse where something would be lost unasked, write.

use crate::signature::{HEAD_BYTES, Sample, TAIL_BYTES, detect};
use crate::target::Target;
use anyhow::Context as _;
use std::fs::File;
use std::io::{Read, Write};
use std::time::{SystemTime, UNIX_EPOCH};
use uuid::Uuid;
use wb_cli::error::{NextStep, UsageError};
use wb_cli::exit::Exit;
use wb_cli::format_args::FormatPlan;
use wb_cli::json::format::Formatted;
use wb_cli::{Context, output, units};
use wb_core::check::{ram_tail_is_alive, survey};
use wb_core::format::{Geometry, Superblock};
use wb_core::io::{Buf, Disk};
use wb_core::meta::{self, FormatOptions};
use wb_core::rt::{BlockingDisk, DeviceKind, block_on_ready, boot_id};

/// Does what was asked for.
pub fn run(plan: FormatPlan, ctx: &mut Context) -> anyhow::Result<Exit> {
    if let Some(size) = plan.size_bytes {
        // Before a file is created or resized.
        Geometry::new(size, plan.segment_bytes)
            .with_context(|| plan.cache.display().to_string())
            .next_step("use a larger --size, or a smaller --segment-size")?;
    }
    let mut target = Target::open(&plan.cache, plan.size_bytes)?;
    let size_bytes = plan.size_bytes.unwrap_or(target.disk().geometry().size_bytes);
    Geometry::new(size_bytes, plan.segment_bytes)
        .with_context(|| plan.cache.display().to_string())
        .next_step("use a larger device, or a smaller --segment-size")?;
    refuse_what_would_be_lost(target.disk(), &plan)?;
    if target.kind == DeviceKind::File {
        block_on_ready(meta::wipe(target.disk())).with_context(|| plan.cache.display().to_string())?;
        target.resize(size_bytes)?;
        target.write_out(ctx.json)?;
    }
    let options = FormatOptions {
        segment_bytes: plan.segment_bytes,
        label: plan.label.clone(),
        uuid: uuid::Builder::from_random_bytes(random()?).into_uuid(),
        secret: u32::from_le_bytes(random()?),
        now_unix_ns: now_unix_ns(),
    };
    let made = block_on_ready(meta::format(target.disk(), options));
    let superblock = made.with_context(|| format!("formatting {} failed", plan.cache.display()))?;
    target.keep();
    say(&plan, &superblock, ctx)?;
    Ok(Exit::Done)
}

fn say(plan: &FormatPlan, superblock: &Superblock, ctx: &mut Context) -> anyhow::Result<()> {
    let geometry = superblock.geometry;
    if ctx.json {
        return ctx.out.json(&Formatted {
            device: plan.cache.display().to_string(),
            uuid: superblock.uuid.to_string(),
            label: superblock.label.clone(),
            device_bytes: geometry.device_bytes,
            segment_bytes: geometry.segment_bytes.into(),
            segments: geometry.segments.into(),
        });
    }
    writeln!(ctx.out, "{} is a cache now.", plan.cache.display())?;
    writeln!(ctx.out, "  UUID      {}", superblock.uuid)?;
    if !superblock.label.is_empty() {
        writeln!(ctx.out, "  label     {}", superblock.label)?;
    }
    writeln!(ctx.out, "  size      {}", units::size_exact(geometry.device_bytes))?;
    let segment = units::size(geometry.segment_bytes.into());
    writeln!(ctx.out, "  segments  {} of {segment}", units::count(geometry.segments.into()))?;
    Ok(())
}

/// Fresh random bytes of the kernel.
fn random<const N: usize>() -> anyhow::Result<[u8; N]> {
    let mut bytes = [0; N];
    let read = File::open("/dev/urandom").and_then(|mut file| file.read_exact(&mut bytes));
    read.context("cannot read /dev/urandom")?;
    Ok(bytes)
}

fn now_unix_ns() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_nanos() as u64)
}

fn read(disk: &BlockingDisk, offset: u64, len: u64) -> anyhow::Result<Vec<u8>> {
    if len == 0 {
        return Ok(Vec::new());
    }
    let (result, buf) = block_on_ready(disk.read(offset, Buf::unpooled(len as usize)));
    result.with_context(|| format!("reading {len} bytes at offset {offset} failed"))?;
    Ok(buf.to_vec())
}

fn refuse_what_would_be_lost(disk: &BlockingDisk, plan: &FormatPlan) -> anyhow::Result<()> {
    let path = plan.cache.display();
    let view = block_on_ready(meta::read_view(disk));
    if view.superblock_magic.iter().any(|magic| *magic) {
        return refuse_cache(disk, plan);
    }
    let size_bytes = disk.geometry().size_bytes;
    let head = read(disk, 0, HEAD_BYTES.min(size_bytes)).with_context(|| path.to_string())?;
    let tail_len = TAIL_BYTES.min(size_bytes);
    let tail = read(disk, (size_bytes - tail_len) / 4096 * 4096, size_bytes - (size_bytes - tail_len) / 4096 * 4096)
        .with_context(|| path.to_string())?;
    let found = detect(&Sample { head: &head, tail: &tail, size_bytes });
    if found.is_empty() || plan.force {
        return Ok(());
    }
    Err(anyhow::anyhow!("{path} holds {}", found.join(" and ")))
        .next_step("name another device, or add --force to overwrite it")
}

/// Another cache is there: `--force` is enough only if nothing dirty is in it.
fn refuse_cache(disk: &BlockingDisk, plan: &FormatPlan) -> anyhow::Result<()> {
    let path = plan.cache.display();
    let view = block_on_ready(meta::read_view(disk));
    let Some(superblock) = view.superblock() else {
        return match plan.force {
            true => Ok(()),
            false => Err(anyhow::anyhow!("{path} holds a Writeboost cache with damaged superblocks"))
                .next_step("restore one from a backup if its data matters, or add --force to overwrite it"),
        };
    };
    let uuid = superblock.uuid;
    let dirty = match block_on_ready(survey(disk, &mut |_| {})) {
        Ok(found) if found.log.refusal.is_some() || found.rebuilt_anchor.is_some() => {
            Some("may hold data that no disk has (its log is damaged)".to_owned())
        }
        Ok(found) if ram_tail_is_alive(&found, boot_id()) => Some(
            "its daemon died and left acknowledged writes in memory, which the next start of wb-daemon would save"
                .to_owned(),
        ),
        Ok(found) => {
            let ranges = found.log.live.ranges().any(|(_, piece)| piece.dirty);
            let blocks = found.log.live.dirty_blocks();
            (blocks > 0 || ranges).then(|| {
                let bytes = units::size(blocks * wb_core::BLOCK_BYTES_U64);
                format!("holds {bytes} of data that its backing device does not have")
            })
        }
        Err(problem) => Some(format!("may hold data that no disk has ({problem})")),
    };
    if plan.discard_dirty == Some(uuid) {
        return Ok(());
    }
    if let Some(other) = plan.discard_dirty {
        return Err(anyhow::anyhow!("{path} is cache {uuid}, not {other}"))
            .next_step("name the UUID of the cache that is to be lost");
    }
    let Some(dirty) = dirty else {
        return match plan.force {
            true => Ok(()),
            false => Err(anyhow::anyhow!("{path} holds Writeboost cache {uuid} (nothing in it is dirty)"))
                .next_step("name another device, or add --force to overwrite it"),
        };
    };
    let refused = format!("{path} is cache {uuid} and {dirty}");
    let step = format!("write it back first with wb-check --replay, or give it up with --discard-dirty {uuid}");
    if !plan.force || !std::io::IsTerminal::is_terminal(&std::io::stdin()) {
        return Err(anyhow::Error::msg(refused)).next_step(step);
    }
    let typed = output::ask(&format!("{refused}. Type its UUID to lose it:"), &step)?;
    match typed.parse::<Uuid>() {
        Ok(typed) if typed == uuid => Ok(()),
        _ => Err(UsageError::raise(format!("{path}: that is not the cache's UUID; nothing was changed"))),
    }
}
