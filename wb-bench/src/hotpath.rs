//! Instructions per operation of the hot path, counted by callgrind.
//!
//! `wb-bench hotpath` runs itself under callgrind, once with few and once with many operations of a kind; the difference
//! is free of start and end. Devices are null disks and the executor is a plain queue, so nothing depends on time, and the
//! same program gives the same counts on a busy machine. The counts are kept in a file of the repository; a count that has
//! grown by more than 5 % fails the check.

use crate::engine::{Measured, Setup};
use crate::env::{BenchDisk, BenchEnv};
use crate::load::pattern::Rng;
use anyhow::{Context as _, ensure};
use std::collections::BTreeMap;
use std::hint::black_box;
use std::path::Path;
use std::process::{Command, Stdio};
use wb_cli::bench_args::HotpathPlan;
use wb_cli::exit::Exit;
use wb_cli::output::{number, table};
use wb_cli::{Context, NextStep};
use wb_core::format::crc32c;
use wb_core::index::{AddressWidths, Index, IndexConfig};
use wb_core::rt::BlockingEnv;
use wb_core::service::BlockService;
use wb_core::types::{BLOCK_BYTES, BLOCK_BYTES_U64, BlockAddr, SectorMask, Slot, VolumeId};
use wb_daemon::nbd::codec::Export;
use wb_daemon::nbd::codec::request::Request;

/// Growth that fails the check, in percent.
const GROWTH_MAX_PERCENT: f64 = 5.0;
/// Operations of the short and of the long run.
const OPERATIONS: [u64; 2] = [1000, 5000];

/// What is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// A write of 4 KiB at a random place, acknowledged; its share of sealing and submitting records included.
    Write4k,
    /// A read of 4 KiB from a record in memory.
    ReadRam,
    /// A read of 4 KiB from the cache device, checked; the null disk's copy of 4 KiB included.
    ReadDevice,
    /// A lookup of a block that the index has.
    IndexLookup,
    /// An insertion of a block that it has not.
    IndexInsert,
    /// A removal.
    IndexRemove,
    /// CRC-32C of 4 KiB, as the processor that callgrind models can do it.
    Crc4k,
    /// Parsing and judging of an NBD write request.
    NbdParse,
}

impl Operation {
    const ALL: [Operation; 8] = [
        Operation::Write4k,
        Operation::ReadRam,
        Operation::ReadDevice,
        Operation::IndexLookup,
        Operation::IndexInsert,
        Operation::IndexRemove,
        Operation::Crc4k,
        Operation::NbdParse,
    ];

    fn name(self) -> &'static str {
        match self {
            Operation::Write4k => "write_4k",
            Operation::ReadRam => "read_ram_4k",
            Operation::ReadDevice => "read_device_4k",
            Operation::IndexLookup => "index_lookup",
            Operation::IndexInsert => "index_insert",
            Operation::IndexRemove => "index_remove",
            Operation::Crc4k => "crc_4k",
            Operation::NbdParse => "nbd_parse",
        }
    }
}

/// Does what `wb-bench hotpath` was asked for.
pub fn run(plan: &HotpathPlan, ctx: &mut Context) -> anyhow::Result<Exit> {
    if let Some((name, operations)) = &plan.child {
        let operation = Operation::ALL.into_iter().find(|operation| operation.name() == name);
        operate(operation.context("no such operation")?, *operations);
        return Ok(Exit::Done);
    }
    let compiler = compiler();
    let mut counts = BTreeMap::new();
    for operation in Operation::ALL {
        counts.insert(operation.name().to_string(), count(operation)?.round());
    }
    let kept = plan.counts.as_deref().map(read).transpose()?.flatten();
    if plan.update {
        let path = plan.counts.as_deref().context("--update needs --counts FILE")?;
        let text = serde_json::to_string_pretty(&Kept { compiler, counts: counts.clone() })? + "\n";
        std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))?;
        print(&counts, kept.as_ref(), ctx)?;
        return Ok(Exit::Done);
    }
    print(&counts, kept.as_ref(), ctx)?;
    let Some(kept) = kept else { return Ok(Exit::Done) };
    if kept.compiler != compiler {
        eprintln!(
            "counted with {compiler}, kept from {}: not comparable; write them anew with --update",
            kept.compiler
        );
        return Ok(Exit::Done);
    }
    let grown: Vec<String> = grown(&kept.counts, &counts);
    if grown.is_empty() {
        return Ok(Exit::Done);
    }
    Err(anyhow::anyhow!("more instructions than before: {}", grown.join(", ")))
        .next_step("find out why; if it is worth it, keep the new counts with --update and say why in the commit")
}

/// The counts in the repository.
#[derive(Debug, serde::Serialize, serde::Deserialize)]
struct Kept {
    /// What they were compiled with.
    compiler: String,
    /// Instructions per operation.
    counts: BTreeMap<String, f64>,
}

fn read(path: &Path) -> anyhow::Result<Option<Kept>> {
    match std::fs::read_to_string(path) {
        Ok(text) => {
            Ok(Some(serde_json::from_str(&text).with_context(|| format!("{} is no list of counts", path.display()))?))
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
    }
}

/// Those that are too many now, for people.
fn grown(kept: &BTreeMap<String, f64>, now: &BTreeMap<String, f64>) -> Vec<String> {
    let too_many = |(name, &count): (&String, &f64)| {
        let before = *kept.get(name)?;
        (count > before * (1.0 + GROWTH_MAX_PERCENT / 100.0)).then(|| format!("{name} {count}, was {before}"))
    };
    now.iter().filter_map(too_many).collect()
}

fn print(counts: &BTreeMap<String, f64>, kept: Option<&Kept>, ctx: &mut Context) -> anyhow::Result<()> {
    if ctx.json {
        return ctx.out.json(counts);
    }
    let mut rows = table(["operation", "instructions", "kept"]);
    for (name, count) in counts {
        let before = kept.and_then(|kept| kept.counts.get(name)).map_or(String::new(), f64::to_string);
        rows.add_row([comfy_table::Cell::new(name), number(count), number(before)]);
    }
    Ok(ctx.out.table(&rows)?)
}

fn compiler() -> String {
    let output = Command::new("rustc").arg("--version").output();
    output.map_or_else(|_| "unknown".into(), |output| String::from_utf8_lossy(&output.stdout).trim().to_string())
}

/// Instructions of one operation.
pub fn count(operation: Operation) -> anyhow::Result<f64> {
    let [few, many] = OPERATIONS;
    let short = total(operation, few)?;
    let long = total(operation, many)?;
    Ok((long - short) as f64 / (many - few) as f64)
}

/// Instructions of a whole run of this program.
fn total(operation: Operation, operations: u64) -> anyhow::Result<u64> {
    let own = std::env::current_exe().context("cannot find this program")?;
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null", "--"])
        .arg(own)
        .args(["hotpath", "--child", operation.name(), "--operations", &operations.to_string()])
        .stdin(Stdio::null())
        .output()
        .context("cannot start valgrind")
        .next_step("install the package valgrind")?;
    let log = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "valgrind failed: {log}");
    parse(&log).with_context(|| format!("no count in the log of valgrind: {log}"))
}

/// The number behind "Collected : ".
fn parse(log: &str) -> Option<u64> {
    let (_, rest) = log.split_once("Collected :")?;
    rest.split_whitespace().next()?.parse().ok()
}

/// The engine's world here: no ring, no time, no chance.
const SETUP: Setup = Setup { verify_reads: true, threads: 1 };
const CACHE_BYTES: u64 = 64 << 20;

fn operate(operation: Operation, operations: u64) {
    match operation {
        Operation::Write4k | Operation::ReadRam | Operation::ReadDevice => {
            let done = BlockingEnv.block_on(on_engine(operation, operations));
            done.expect("a null disk never fails");
        }
        Operation::IndexLookup | Operation::IndexInsert | Operation::IndexRemove => on_index(operation, operations),
        Operation::Crc4k => {
            let block = [7u8; BLOCK_BYTES];
            (0..operations).for_each(|_| _ = black_box(crc32c(black_box(&block))));
        }
        Operation::NbdParse => parse_requests(operations),
    }
}

async fn on_engine(operation: Operation, operations: u64) -> anyhow::Result<()> {
    let env = BenchEnv::Quiet(std::sync::Arc::default());
    // Reads are checked, so the device must have what was written; writes need not pay for that.
    let cache = if operation == Operation::ReadDevice { BenchDisk::keeping } else { BenchDisk::null };
    let (cache, backing) = (cache(CACHE_BYTES), BenchDisk::null(CACHE_BYTES));
    let measured = Measured::open(env, cache, backing, SETUP).await?;
    let volume = measured.volume();
    let payload = vec![5u8; BLOCK_BYTES];
    let blocks = CACHE_BYTES / BLOCK_BYTES_U64;
    let mut rng = Rng::new(3);
    const KNOWN: u64 = 500;
    if operation != Operation::Write4k {
        for block in 0..KNOWN {
            volume.write(block * BLOCK_BYTES_U64, BLOCK_BYTES, &payload[..], false).await?;
        }
        if operation == Operation::ReadDevice {
            BlockService::flush(&volume).await?;
        }
    }
    for _ in 0..operations {
        match operation {
            Operation::Write4k => {
                volume.write(rng.below(blocks) * BLOCK_BYTES_U64, BLOCK_BYTES, &payload[..], false).await?;
            }
            // The last record is open: full ones have been written.
            Operation::ReadRam => drop(BlockService::read(&volume, (KNOWN - 1) * BLOCK_BYTES_U64, BLOCK_BYTES).await?),
            _ => drop(BlockService::read(&volume, rng.below(KNOWN) * BLOCK_BYTES_U64, BLOCK_BYTES).await?),
        }
    }
    Ok(())
}

fn on_index(operation: Operation, operations: u64) {
    const SLOTS: u64 = 1 << 15;
    let [_, most] = OPERATIONS;
    let config = IndexConfig {
        slots: SLOTS,
        entries: SLOTS,
        widths: AddressWidths { volume_bits: 1, block_bits: 30 },
        shards: 16,
        seed: 9,
        with_crcs: false,
    };
    let index = Index::new(&config).expect("a small index");
    let addr = |n: u64| BlockAddr::new(VolumeId(1), n * 7919);
    let insert = |n: u64| {
        let done = index.upsert(addr(n), Slot(n), SectorMask::FULL, true, |_| true);
        _ = black_box(done.expect("there is room"));
    };
    // Half full.
    (most..most + SLOTS / 2).for_each(insert);
    match operation {
        Operation::IndexInsert => (0..operations).for_each(insert),
        Operation::IndexLookup => {
            (0..operations).for_each(|n| _ = black_box(index.lookup(black_box(addr(most + n)))));
        }
        _ => (0..operations).for_each(|n| _ = black_box(index.remove_if(addr(most + n), Slot(most + n)))),
    }
}

fn parse_requests(operations: u64) {
    let export = Export {
        name: String::new(),
        description: String::new(),
        size_bytes: 1 << 40,
        sector_bytes: 512,
        read_only: false,
    };
    let mut header = [0u8; 28];
    header[..4].copy_from_slice(&0x2560_9513u32.to_be_bytes());
    header[7] = 1;
    header[26] = 16;
    for n in 0..operations {
        header[14..16].copy_from_slice(&(n as u16).to_be_bytes());
        let request = Request::parse(black_box(&header)).expect("a request").expect("a whole one");
        _ = black_box(request.judge(black_box(&export), false));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_found_in_the_log() {
        assert_eq!(parse("==1== Events    : Ir\n==1== Collected : 123456\n==1== \n"), Some(123_456));
        assert_eq!(parse("==1== nothing"), None);
    }

    #[test]
    fn growth_beyond_five_percent_is_named() {
        let counts = |count: f64| BTreeMap::from([("write_4k".to_string(), count)]);
        assert!(grown(&counts(1000.0), &counts(1050.0)).is_empty());
        assert_eq!(grown(&counts(1000.0), &counts(1051.0)), ["write_4k 1051, was 1000"]);
        assert!(grown(&counts(1000.0), &counts(500.0)).is_empty());
    }

    #[test]
    fn every_operation_runs() {
        Operation::ALL.into_iter().for_each(|operation| operate(operation, 600));
    }
}
