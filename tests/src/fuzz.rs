//! Fuzz targets: what each does with the bytes it is given. `fuzz/` runs them under libFuzzer, `tests/fuzz_corpus.rs`
//! runs the checked-in corpus through them. A target must end without a panic, whatever the bytes are.

use std::io::Write as _;
use std::os::fd::AsRawFd as _;
use std::sync::OnceLock;
use uuid::Uuid;
use wb_cli::dump_args::{BlockAddress, DumpPlan, DumpWhat};
use wb_core::check::build::{Builder, Op, run, write};
use wb_core::check::damage::reseal;
use wb_core::check::{CheckOptions, RepairOptions, ReplayOptions, Severity, Verdict, examine, repair, replay};
use wb_core::format::*;
use wb_core::io::mem::MemDisk;
use wb_core::types::*;
use wb_daemon::nbd::codec::Export;
use wb_daemon::nbd::codec::handshake::{Handshake, Progress};
use wb_daemon::nbd::codec::request::Request;
use wb_daemon::nbd::codec::wire;

/// A target: its name, which is that of its corpus, and what it does.
pub type Target = (&'static str, fn(&[u8]));

/// All targets.
pub const TARGETS: [Target; 7] = [
    ("superblock", superblock),
    ("anchor", anchor),
    ("record", record),
    ("image_check", image_check),
    ("image_dump", image_dump),
    ("nbd_handshake", nbd_handshake),
    ("nbd_transmission", nbd_transmission),
];

const VERIFY: CheckOptions = CheckOptions { verify_data: true };

/// The cache that images are made of: several closed segments, two epochs, ranges, partial blocks.
fn sample() -> &'static Builder {
    static SAMPLE: OnceLock<Builder> = OnceLock::new();
    SAMPLE.get_or_init(|| {
        let mut cache = Builder::new();
        for round in 0..9u64 {
            cache.record(&[write(round, round as u8 + 1), write(round + 100, 0x80)]);
            cache.record(&[Op::Write(round + 200, 7, SectorMask(0x0f)), write(round % 3, 0x40 + round as u8)]);
            if round == 4 {
                cache.record(&[Op::Range(EntryKind::Zeroes, 300, 20), Op::Range(EntryKind::Discard, 3, 2)]);
                cache.new_epoch();
            }
        }
        cache.flush();
        cache.record(&[write(400, 9)]);
        cache
    })
}

/// `data` as a block of `len` bytes with the magic number and the checksum of what stands at `offset` of the sample.
fn dressed(data: &[u8], offset: u64, len: usize, seed: u32) -> Vec<u8> {
    let mut block = sample().disk.peek(offset, len);
    // The beginning is what is looked at most: it is laid over the fields behind the checksum.
    let count = data.len().min(len - 12);
    block[12..12 + count].copy_from_slice(&data[..count]);
    reseal(&mut block, seed);
    block
}

/// Superblock: any bytes, and any fields under a valid checksum.
pub fn superblock(data: &[u8]) {
    let mut plain = [0; BLOCK_BYTES];
    let count = data.len().min(BLOCK_BYTES);
    plain[..count].copy_from_slice(&data[..count]);
    let dressed = dressed(data, 0, BLOCK_BYTES, 0);
    for block in [&plain, dressed.as_slice().try_into().expect("a block")] {
        if let Ok(superblock) = Superblock::unpack(block).and_then(Unchecked::check) {
            let again = superblock.encode();
            let found =
                Superblock::unpack(&again).and_then(Unchecked::check).expect("what was accepted can be written");
            assert_eq!(found.geometry, superblock.geometry);
        }
    }
}

/// Anchor and volume table under a valid checksum.
pub fn anchor(data: &[u8]) {
    let cache = sample();
    let (superblock, geometry) = (&cache.superblock, &cache.superblock.geometry);
    let block = dressed(data, geometry.anchor_offset(0).0, BLOCK_BYTES, superblock.secret);
    let block: &[u8; BLOCK_BYTES] = block.as_slice().try_into().expect("a block");
    let _ = Anchor::decode(block, geometry, superblock.uuid, superblock.secret);
    let block = dressed(data, geometry.volumes_offset(0).0, BLOCK_BYTES, superblock.secret);
    let block: &[u8; BLOCK_BYTES] = block.as_slice().try_into().expect("a block");
    let _ = VolumeTable::decode(block, superblock.uuid, superblock.secret);
}

/// Record header and segment summary under a valid checksum.
pub fn record(data: &[u8]) {
    let cache = sample();
    let (superblock, geometry) = (&cache.superblock, &cache.superblock.geometry);
    let (uuid, secret): (Uuid, u32) = (superblock.uuid, superblock.secret);
    let block = dressed(data, cache.header_offset(Seq(1)), BLOCK_BYTES, secret);
    if let Ok(header) = RecordHeader::decode(&block, geometry, SegmentNo(0), 0, uuid, secret) {
        assert!(header.entries.len() <= RECORD_ENTRIES_MAX && header.blocks() <= geometry.record_blocks());
    }
    let len = geometry.summary_blocks() as usize * BLOCK_BYTES;
    let bytes = dressed(data, geometry.summary_offset(SegmentNo(0)).0, len, secret);
    if let Ok(summary) = SegmentSummary::decode(&bytes, geometry, SegmentNo(0), uuid, secret) {
        assert!(!summary.records.is_empty() && summary.first_seq() <= summary.last_seq());
    }
}

/// The sample with the damage that `data` tells: an instruction byte for all (bit 0: checksums are made right again),
/// then pieces of place, offset, length and bytes. Says whether checksums were made right.
fn image(data: &[u8]) -> (MemDisk, bool) {
    let cache = sample();
    let (superblock, geometry) = (&cache.superblock, &cache.superblock.geometry);
    let disk = cache.fork().disk;
    let summary_len = geometry.summary_blocks() as usize * BLOCK_BYTES;
    let mut places: Vec<(u64, usize, u32)> = Vec::new();
    for copy in 0..2 {
        places.push((geometry.superblock_offset(copy).0, BLOCK_BYTES, 0));
        places.push((geometry.volumes_offset(copy).0, BLOCK_BYTES, superblock.secret));
        places.push((geometry.anchor_offset(copy).0, BLOCK_BYTES, superblock.secret));
        places.push((geometry.bad_segments_offset(copy, 0).0, BLOCK_BYTES, superblock.secret));
    }
    let headers = cache.places.keys().map(|seq| cache.header_offset(*seq));
    places.extend(headers.map(|offset| (offset, BLOCK_BYTES, superblock.secret)));
    let summaries = (0..4).map(|segment| geometry.summary_offset(SegmentNo(segment)).0);
    places.extend(summaries.map(|offset| (offset, summary_len, superblock.secret)));
    let Some((how, mut rest)) = data.split_first() else { return (disk, false) };
    let sealed = how & 1 == 1;
    while let [place, low, high, len, behind @ ..] = rest {
        let (offset, unit, seed) = places[usize::from(*place) % places.len()];
        let mut bytes = disk.peek(offset, unit);
        let at = (usize::from(*low) | usize::from(*high) << 8) % unit;
        let count = usize::from(*len % 32).min(behind.len()).min(unit - at);
        bytes[at..at + count].copy_from_slice(&behind[..count]);
        if sealed {
            reseal(&mut bytes, seed);
        }
        disk.poke(offset, &bytes);
        rest = &behind[count..];
    }
    (disk, sealed)
}

/// A whole small image through check, repair, check and replay. Of an image that is damaged, not forged, a repair that
/// says it corrected everything leaves one that is clean.
pub fn image_check(data: &[u8]) {
    let (disk, forged) = image(data);
    let Ok(found) = run(examine(&disk, VERIFY, &mut |_| {})) else { return };
    let options = RepairOptions { check: VERIFY, now_unix_ns: 1, boot_id: [0; 16] };
    let repaired = run(repair(&disk, &found, options, &mut Vec::new(), &mut |_| {}));
    let Ok(found) = run(examine(&disk, VERIFY, &mut |_| {})) else { return };
    // Without any volume table nobody knows what the log belongs to: that is said again, and nothing else is left.
    let no_table = (0..2).all(|copy| {
        let table = format!("volume table copy {copy}");
        found.report().findings.iter().any(|finding| finding.place == table && finding.severity >= Severity::Error)
    });
    // Both anchors and the record with which the log begins are lost: nothing says what counts, and the repair refuses.
    let no_anchor = found.report().findings.iter().any(|finding| finding.what.starts_with("cannot be rebuilt"));
    if let Ok(report) = &repaired
        && !forged
        && !no_table
        && !no_anchor
    {
        assert_ne!(report.verdict(), Verdict::Errors, "damage was left: {:?}", report.findings);
        assert_eq!(found.report().verdict(), Verdict::Clean, "{:?}", found.report().findings);
    }
    let backing = MemDisk::new(wb_core::check::build::VOLUME_BYTES);
    let _ = run(replay(&disk, &backing, &found, &ReplayOptions::default(), &mut |_| {}));
}

/// A whole small image through every subcommand of wb-dump.
pub fn image_dump(data: &[u8]) {
    let (disk, _) = image(data);
    let mut file = tempfile::tempfile_in("/dev/shm").expect("memory for an image");
    file.write_all(&disk.content()).expect("memory for an image");
    let cache = std::path::PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
    let address = BlockAddress { volume: 1, block: 1 };
    let subcommands = [
        DumpWhat::Superblock,
        DumpWhat::Anchor,
        DumpWhat::Segment { segment: 0 },
        DumpWhat::Record { seq: 3 },
        DumpWhat::Block { address },
        DumpWhat::Log { from: None, count: None },
        DumpWhat::Summary,
    ];
    for (number, what) in subcommands.into_iter().enumerate() {
        let json = number % 2 == usize::from(data.first().is_some_and(|how| how & 2 == 0));
        let mut ctx = wb_cli::Context { out: wb_cli::Out::to(Box::new(std::io::sink())), json, verbose: 0 };
        let _ = wb_dump::run::run(DumpPlan { cache: cache.clone(), what }, &mut ctx);
    }
}

fn export() -> Export {
    Export {
        name: "disk".into(),
        description: "a disk".into(),
        size_bytes: 1 << 30,
        sector_bytes: 512,
        read_only: false,
    }
}

/// A client's side of the handshake, in pieces whose lengths the first byte tells.
pub fn nbd_handshake(data: &[u8]) {
    let Some((first, stream)) = data.split_first() else { return };
    let step = usize::from(*first).max(1);
    let export = export();
    let (mut handshake, mut input) = (Handshake::new(&export), Vec::new());
    for piece in stream.chunks(step) {
        input.extend_from_slice(piece);
        loop {
            let mut output = Vec::new();
            let (consumed, progress) = handshake.advance(&input, &mut output);
            assert!(output.len() < 64 << 10, "the answers to one piece are bounded");
            input.drain(..consumed);
            match progress {
                Progress::Pause => {}
                Progress::NeedMore => break,
                Progress::Transmission(_) | Progress::Close(_) => return,
            }
        }
        let max = wb_daemon::nbd::codec::handshake::INPUT_BYTES_MAX;
        assert!(input.len() < max, "{} bytes wait, {max} must be enough to go on", input.len());
    }
}

/// A client's side of the transmission phase: every command judged, the answer encoded.
pub fn nbd_transmission(data: &[u8]) {
    let export = export();
    let mut rest = data;
    let mut header = [0; wire::REQUEST_BYTES];
    while rest.len() >= wire::REQUEST_BYTES {
        header.copy_from_slice(&rest[..wire::REQUEST_BYTES]);
        if header[0] & 1 == 0 {
            // Most commands are to come as far as being judged.
            header[..4].copy_from_slice(&wire::REQUEST_MAGIC.to_be_bytes());
        }
        let Ok(Some(request)) = Request::parse(&header) else { return };
        for structured in [false, true] {
            for read_only in [false, true] {
                let export = Export { read_only, ..export.clone() };
                if let wb_daemon::nbd::codec::request::Verdict::Serve(_) = request.judge(&export, structured) {
                    let end = request.offset + u64::from(request.len);
                    assert!(end <= export.size_bytes, "what is served lies within the export");
                }
            }
        }
        rest = &rest[wire::REQUEST_BYTES..];
        rest = &rest[(request.payload_bytes() as usize).min(rest.len())..];
    }
}
