//! The documents as text.

use crate::records::bytes;
use crate::time::utc;
use comfy_table::Table;
use std::io::Write;
use wb_cli::json::dump::*;
use wb_cli::output::{number, table};
use wb_cli::{Out, units};

/// What is damaged, before everything else.
fn damage(out: &mut Out, damage: &[Damage]) -> anyhow::Result<()> {
    for found in damage {
        writeln!(out, "damaged: {}: {}", found.place, found.what)?;
    }
    Ok(())
}

fn lines(out: &mut Out, rows: &[(&str, String)]) -> anyhow::Result<()> {
    let width = rows.iter().map(|row| row.0.len()).max().unwrap_or(0);
    for (name, value) in rows.iter().filter(|row| !row.1.is_empty()) {
        writeln!(out, "{name:width$}  {value}")?;
    }
    Ok(())
}

/// `wb-dump superblock`.
pub fn superblock(out: &mut Out, dump: &SuperblockDump) -> anyhow::Result<()> {
    damage(out, &dump.damage)?;
    let copies = dump.copies.iter().map(|copy| {
        let state = if copy.valid { "valid" } else { "damaged" };
        format!("{state} at {}", copy.offset_bytes)
    });
    let features = [&dump.features.compat, &dump.features.ro_compat, &dump.features.incompat];
    let bad: Vec<_> = dump.bad_segments.iter().map(u64::to_string).collect();
    lines(
        out,
        &[
            ("UUID", dump.uuid.clone()),
            ("label", dump.label.clone()),
            ("version", dump.version.to_string()),
            ("generation", dump.generation.to_string()),
            ("device", units::size_exact(dump.device_bytes)),
            ("segments", format!("{} of {}", units::count(dump.segments), units::size(dump.segment_bytes))),
            ("features", format!("compat {}, ro_compat {}, incompat {}", features[0], features[1], features[2])),
            ("copies", copies.collect::<Vec<_>>().join(", ")),
            ("bad segments", bad.join(", ")),
        ],
    )?;
    if dump.volumes.is_empty() {
        writeln!(out, "no volumes")?;
        return Ok(());
    }
    let mut volumes = table(["volume", "name", "size", "sector", "UUID", "identity"]);
    for volume in &dump.volumes {
        volumes.add_row(vec![
            number(volume.id),
            volume.name.as_str().into(),
            number(units::size(volume.size_bytes)),
            number(volume.sector_bytes),
            volume.uuid.as_str().into(),
            volume.identity.as_str().into(),
        ]);
    }
    out.table(&volumes)?;
    Ok(())
}

/// `wb-dump anchor`.
pub fn anchors(out: &mut Out, dump: &AnchorsDump) -> anyhow::Result<()> {
    damage(out, &dump.damage)?;
    for anchor in &dump.anchors {
        let current = if anchor.current { ", current" } else { "" };
        writeln!(out, "slot {} at {}{current}", anchor.slot, anchor.offset_bytes)?;
        if !anchor.valid {
            writeln!(out, "  damaged")?;
            continue;
        }
        let clean = anchor.clean_head_seq.map_or("no".into(), |head| format!("yes, at record {head}"));
        lines(
            out,
            &[
                ("  generation", anchor.generation.to_string()),
                ("  epoch", format!("{}, from record {}", anchor.epoch, anchor.epoch_start_seq)),
                ("  log tail", anchor.log_tail_seq.to_string()),
                ("  dirty tail", anchor.dirty_tail_seq.to_string()),
                ("  durable", anchor.durable_seq.to_string()),
                ("  clean stop", clean),
                ("  boot", anchor.boot_id.clone().unwrap_or_default()),
                ("  written", utc(anchor.written_unix_ns.unwrap_or(0))),
            ],
        )?;
    }
    Ok(())
}

fn sectors(mask: u8) -> String {
    match mask {
        0xff => "all".into(),
        _ => (0..8).map(|at| if mask >> at & 1 == 1 { '#' } else { '.' }).collect(),
    }
}

fn entry_table() -> Table {
    table(["record", "volume", "block", "blocks", "kind", "sectors", "checksum", "state"])
}

fn add_entry(to: &mut Table, record: String, entry: &EntryDump) {
    let checksum = match entry.crc_ok {
        None => "-",
        Some(true) => "ok",
        Some(false) => "WRONG",
    };
    to.add_row(vec![
        number(record),
        number(entry.volume),
        number(entry.block),
        number(entry.blocks),
        entry.kind.as_str().into(),
        sectors(entry.sectors).into(),
        checksum.into(),
        entry.state.as_str().into(),
    ]);
}

fn record_line(record: &RecordDump) -> String {
    let invalid = match (&record.invalid_because, record.valid) {
        (Some(why), false) => format!(", not in the log: {why}"),
        (Some(why), true) => format!(", {why}"),
        (None, _) => String::new(),
    };
    let flush = if record.closes_group { ", closes a flush group" } else { "" };
    format!(
        "record {}, epoch {}, segment {}, at {}, {} entries, durable {}, {}{flush}{invalid}",
        record.seq,
        record.epoch,
        record.segment,
        record.offset_bytes,
        record.entry_count,
        record.durable_seq,
        utc(record.written_unix_ns)
    )
}

/// `wb-dump segment N`.
pub fn segment(out: &mut Out, dump: &SegmentDump) -> anyhow::Result<()> {
    damage(out, &dump.damage)?;
    let closed = if dump.closed { "closed" } else { "no summary" };
    writeln!(out, "segment {} at {}, {closed}, {} records", dump.segment, dump.offset_bytes, dump.records.len())?;
    for record in &dump.records {
        writeln!(out, "{}", record_line(record))?;
    }
    let mut entries = entry_table();
    for record in &dump.records {
        for entry in &record.entries {
            add_entry(&mut entries, record.seq.to_string(), entry);
        }
    }
    if !entries.is_empty() {
        out.table(&entries)?;
    }
    Ok(())
}

/// `wb-dump record SEQ`.
pub fn record(out: &mut Out, dump: &OneRecordDump) -> anyhow::Result<()> {
    damage(out, &dump.damage)?;
    writeln!(out, "{}", record_line(&dump.record))?;
    let mut entries = entry_table();
    for entry in &dump.record.entries {
        add_entry(&mut entries, dump.record.seq.to_string(), entry);
    }
    if !entries.is_empty() {
        out.table(&entries)?;
    }
    Ok(())
}

/// `wb-dump log`.
pub fn log(out: &mut Out, dump: &LogDump) -> anyhow::Result<()> {
    damage(out, &dump.damage)?;
    for record in &dump.records {
        if out.is_closed() {
            break;
        }
        writeln!(out, "{}", record_line(record))?;
    }
    if dump.records.is_empty() {
        writeln!(out, "no records")?;
    }
    Ok(())
}

/// `wb-dump block ADDR`.
pub fn block(out: &mut Out, dump: &BlockDump) -> anyhow::Result<()> {
    damage(out, &dump.damage)?;
    let count = dump.versions.len();
    writeln!(
        out,
        "volume {} block {} (byte {}): {count} versions in the log",
        dump.volume,
        dump.block,
        bytes(dump.block)
    )?;
    if dump.versions.is_empty() {
        return Ok(());
    }
    let mut versions = table(["record", "epoch", "segment", "written", "kind", "sectors", "checksum", "state"]);
    for version in &dump.versions {
        let checksum = match version.entry.crc_ok {
            None => "-",
            Some(true) => "ok",
            Some(false) => "WRONG",
        };
        versions.add_row(vec![
            number(version.seq),
            number(version.epoch),
            number(version.segment),
            utc(version.written_unix_ns).into(),
            version.entry.kind.as_str().into(),
            sectors(version.entry.sectors).into(),
            checksum.into(),
            version.entry.state.as_str().into(),
        ]);
    }
    out.table(&versions)?;
    Ok(())
}

/// `wb-dump summary`.
pub fn summary(out: &mut Out, dump: &SummaryDump) -> anyhow::Result<()> {
    damage(out, &dump.damage)?;
    let blocks = |blocks: u64| format!("{} blocks ({})", units::count(blocks), units::size(bytes(blocks)));
    let clean = if dump.clean_shutdown { "yes" } else { "no" };
    let torn = match dump.torn_tail_records {
        0 => String::new(),
        records => format!("{records} complete records behind the end do not count"),
    };
    lines(
        out,
        &[
            ("UUID", dump.uuid.clone()),
            ("dirty", blocks(dump.dirty_blocks)),
            ("cached", blocks(dump.cached_blocks)),
            ("poisoned", blocks(dump.poisoned_blocks)),
            ("records", units::count(dump.records)),
            ("head", dump.head_seq.to_string()),
            ("durable", dump.durable_seq.to_string()),
            ("dirty tail", dump.dirty_tail_seq.to_string()),
            ("log tail", dump.log_tail_seq.to_string()),
            ("epoch", dump.epoch.to_string()),
            ("clean stop", clean.into()),
            ("torn tail", torn),
            ("oldest dirty", dump.oldest_dirty_unix_ns.map(utc).unwrap_or_default()),
        ],
    )
}
