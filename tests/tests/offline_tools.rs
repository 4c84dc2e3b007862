//! wb-format, wb-check and wb-dump on caches with content, whole and damaged: messages, exit codes, documents, and that
//! nothing is written where nothing was asked for.

use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use tempfile::TempDir;
use wb_core::check::build::{Builder, Op, VOLUME_BYTES, write};
use wb_core::check::damage::Damage;
use wb_core::format::EntryKind;
use wb_core::rt::{Access, open_blocking};
use wb_core::types::*;
use wb_tests::tool::{Ran, run, tool};

struct Place {
    dir: TempDir,
}

impl Place {
    fn new() -> Place {
        Place { dir: tempfile::tempdir().unwrap() }
    }
    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }
    /// The cache as a file.
    fn image(&self, cache: &Builder) -> PathBuf {
        let path = self.path("cache.img");
        fs::write(&path, cache.disk.content()).unwrap();
        path
    }
}

/// Closed and open segments, overwritten and partial blocks, ranges, an epoch change, a clean part; all durable.
fn sample() -> Builder {
    let mut cache = Builder::new();
    cache.record(&[write(1, 0x11), write(2, 0x12)]);
    cache.write_back();
    for round in 0..10u64 {
        cache.record(&[write(round + 2, 0x20 + round as u8), Op::Write(50 + round, 7, SectorMask(0x0f))]);
        cache.record(&[write(3, 0x40 + round as u8)]);
    }
    cache.record(&[Op::Range(EntryKind::Zeroes, 100, 10), write(104, 0x77)]);
    cache.new_epoch();
    cache.record(&[write(200, 1)]);
    cache.record(&[write(201, 2)]);
    cache.new_epoch();
    cache
}

fn json(ran: &Ran) -> Value {
    serde_json::from_str(&ran.stdout).unwrap_or_else(|error| panic!("{error}: {ran:?}"))
}

fn check(args: &[&str], cache: &Path) -> Ran {
    run(tool("wb-check").args(args).arg(cache))
}

fn dump(cache: &Path, args: &[&str]) -> Value {
    let ran = run(tool("wb-dump").arg("--json").arg("--cache").arg(cache).args(args));
    assert_eq!(ran.code, 0, "{args:?}: {ran:?}");
    let text = run(tool("wb-dump").arg("--cache").arg(cache).args(args));
    assert_eq!((text.code, text.stdout.is_empty()), (0, false), "{args:?}: {text:?}");
    json(&ran)
}

#[track_caller]
fn refused(ran: &Ran, code: i32, parts: &[&str]) {
    assert_eq!(ran.code, code, "{ran:?}");
    for part in parts {
        assert!(ran.stderr.contains(part), "{part:?} is not said: {ran:?}");
    }
    assert!(!ran.stderr.contains("panicked"), "{ran:?}");
}

#[test]
fn a_whole_cache_is_clean_and_every_dump_shows_it() {
    let place = Place::new();
    let image = place.image(&sample());
    let before = fs::read(&image).unwrap();
    let report = json(&check(&["--json", "--verify-data"], &image));
    assert_eq!((&report["verdict"], &report["findings"]), (&"clean".into(), &Value::Array(vec![])));
    let summary = dump(&image, &["summary"]);
    assert_eq!(summary["dirty_blocks"], report["dirty_blocks"]);
    assert_eq!(summary["records"], report["records_valid"]);
    assert_eq!((&summary["head_seq"], &summary["clean_shutdown"]), (&24.into(), &false.into()));
    assert_eq!(dump(&image, &["superblock"])["volumes"][0]["size_bytes"], VOLUME_BYTES);
    assert_eq!(dump(&image, &["anchor"])["anchors"].as_array().unwrap().len(), 2);
    assert_eq!(dump(&image, &["log"])["records"].as_array().unwrap().len(), 24);
    assert_eq!(dump(&image, &["log", "--from", "20", "--count", "2"])["records"][1]["seq"], 21);
    assert!(before == fs::read(&image).unwrap(), "reading wrote something");
}

#[test]
fn dump_tells_the_state_of_every_entry() {
    let place = Place::new();
    let cache = sample();
    let image = place.image(&cache);
    let segment = dump(&image, &["segment", "0"]);
    let records = segment["records"].as_array().unwrap();
    assert_eq!(records[0]["entries"][0]["state"], "clean", "written back");
    assert_eq!(records[0]["entries"][1]["state"], "overwritten");
    assert_eq!(records[0]["offset_bytes"], cache.header_offset(Seq(1)));
    assert!(records.iter().all(|record| record["valid"] == true));
    assert!(records.iter().all(|record| record["entries"].as_array().unwrap().iter().all(|e| e["crc_ok"] == true)));
    let versions = dump(&image, &["block", "3"])["versions"].as_array().unwrap().clone();
    assert_eq!(versions.len(), 11, "ten and one");
    assert_eq!(versions[0]["entry"]["state"], "dirty");
    assert!(versions[1..].iter().all(|version| version["entry"]["state"] == "overwritten"));
    assert_eq!(dump(&image, &["block", "104"])["versions"][0]["entry"]["kind"], "dirty");
    assert_eq!(dump(&image, &["block", "105"])["versions"][0]["entry"]["kind"], "zeroes");
    assert_eq!(dump(&image, &["record", "23"])["record"]["entries"][0]["block"], 200);
    refused(&run(tool("wb-dump").arg("--cache").arg(&image).args(["record", "999"])), 1, &["999", "1 to 24"]);
    refused(&run(tool("wb-dump").arg("--cache").arg(&image).args(["segment", "99"])), 1, &["0 to"]);
}

#[test]
fn a_corrupt_record_in_the_middle_is_found_repaired_and_clean_afterwards() {
    let place = Place::new();
    let cache = sample();
    Damage::Payload(Seq(24), 0).inflict(&cache, 7);
    Damage::Header(Seq(23)).inflict(&cache, 99);
    Damage::Summary(cache.places[&Seq(23)].0).inflict(&cache, 99);
    Damage::Header(Seq(4)).inflict(&cache, 99);
    let image = place.image(&cache);
    let before = fs::read(&image).unwrap();
    let ran = check(&["--verify-data"], &image);
    assert_eq!(ran.code, 4, "{ran:?}");
    for part in ["record 23", "record 4", "volume 1 block 201", "cache.img: errors are left"] {
        assert!(ran.stdout.contains(part), "{part}: {ran:?}");
    }
    let not_asked = check(&["--repair"], &image);
    refused(&not_asked, 16, &["--yes"]);
    assert!(before == fs::read(&image).unwrap(), "nothing was asked for");
    let backup = place.path("saved");
    let ran = check(&["--repair", "--yes", "--verify-data", "--json", "--backup", backup.to_str().unwrap()], &image);
    let report = json(&ran);
    assert_eq!((ran.code, &report["verdict"]), (1, &"corrected".into()), "{report}");
    assert_eq!(report["lost_records"], Value::from(vec![23]));
    assert_eq!(report["lost_blocks"][0]["block"], 201);
    assert!(!report["suspect_blocks"].as_array().unwrap().is_empty());
    assert_eq!(report["poisoned_blocks"], 1);
    assert!(fs::read(&backup).unwrap().starts_with(b"writeboost backup 1 "));
    let again = check(&["--json", "--verify-data"], &image);
    assert_eq!((again.code, &json(&again)["verdict"]), (0, &"clean".into()), "{again:?}");
    assert_eq!(dump(&image, &["block", "201"])["versions"][0]["entry"]["state"], "live");
}

#[test]
fn a_torn_tail_is_no_error() {
    let place = Place::new();
    let mut cache = sample();
    let torn = cache.record(&[write(300, 3)]);
    Damage::Payload(torn, 0).inflict(&cache, 1);
    let ran = check(&["--json", "--verify-data"], &place.image(&cache));
    let report = json(&ran);
    assert_eq!((ran.code, &report["findings"][0]["severity"]), (0, &"note".into()), "{report}");
}

#[test]
fn either_superblock_may_be_destroyed() {
    for copy in 0..2 {
        let place = Place::new();
        let cache = sample();
        Damage::Superblock(copy).inflict(&cache, 800);
        let image = place.image(&cache);
        assert_eq!(check(&[], &image).code, 4);
        let shown = dump(&image, &["superblock"]);
        assert_eq!(shown["copies"][copy]["valid"], false);
        assert_eq!(shown["damage"].as_array().unwrap().len(), 1);
        assert_eq!(check(&["--repair", "--yes"], &image).code, 1);
        assert_eq!(check(&[], &image).code, 0);
        assert!(place.path("cache.img.backup").exists());
    }
}

#[test]
fn both_superblocks_destroyed_is_refused_with_a_reason() {
    let place = Place::new();
    let cache = sample();
    (0..2).for_each(|copy| Damage::Superblock(copy).inflict(&cache, 800));
    let image = place.image(&cache);
    for args in [&[][..], &["--repair", "--yes"]] {
        refused(&check(args, &image), 8, &["cache.img", "both superblocks are damaged", "backup"]);
    }
    let format = run(tool("wb-format").args(["--segment-size", "128KiB"]).arg(&image));
    refused(&format, 1, &["damaged superblocks", "--force"]);
}

#[test]
fn both_anchors_destroyed_are_rebuilt() {
    let place = Place::new();
    let cache = sample();
    (0..2).for_each(|slot| Damage::Anchor(slot).inflict(&cache, 800));
    let image = place.image(&cache);
    assert_eq!(check(&[], &image).code, 4);
    let summary = dump(&image, &["summary"]);
    assert!(!summary["damage"].as_array().unwrap().is_empty());
    assert_eq!(check(&["--repair", "--yes"], &image).code, 1);
    assert_eq!((check(&[], &image).code, &dump(&image, &["summary"])["head_seq"]), (0, &24.into()));
}

#[test]
fn a_truncated_image_is_refused_with_both_sizes() {
    let place = Place::new();
    let cache = sample();
    let image = place.image(&cache);
    let size = fs::metadata(&image).unwrap().len();
    fs::OpenOptions::new().write(true).open(&image).unwrap().set_len(size - 65536).unwrap();
    let before = fs::read(&image).unwrap();
    let sizes = [size.to_string(), (size - 65536).to_string()];
    for args in [&[][..], &["--repair", "--yes"]] {
        refused(&check(args, &image), 8, &["cache.img", &sizes[0], &sizes[1]]);
    }
    let shown = dump(&image, &["superblock"]);
    assert!(shown["damage"].as_array().unwrap().iter().any(|d| d["where"] == "device"), "{shown}");
    let records = dump(&image, &["segment", "0"])["records"].as_array().unwrap().len();
    assert!(records > 0, "what is there is shown");
    assert!(before == fs::read(&image).unwrap());
}

#[test]
fn format_spares_dirty_data_until_its_uuid_is_named() {
    let place = Place::new();
    let image = place.image(&sample());
    let before = fs::read(&image).unwrap();
    let uuid = dump(&image, &["superblock"])["uuid"].as_str().unwrap().to_owned();
    let format = |args: &[&str]| run(tool("wb-format").args(["--segment-size", "128KiB"]).args(args).arg(&image));
    for args in [&[][..], &["--force"]] {
        refused(&format(args), 1, &["cache.img", &uuid, "--replay", "--discard-dirty"]);
    }
    let wrong = "00000000-0000-4000-8000-000000000000";
    refused(&format(&["--discard-dirty", wrong]), 1, &[&uuid, wrong]);
    assert!(before == fs::read(&image).unwrap(), "a refusal wrote something");
    assert_eq!(format(&["--discard-dirty", &uuid]).code, 0);
    assert_ne!(dump(&image, &["superblock"])["uuid"], uuid);
    assert_eq!(dump(&image, &["summary"])["records"], 0);
}

#[test]
fn format_needs_force_for_what_it_recognises() {
    let place = Place::new();
    let image = place.path("fs.img");
    fs::File::create(&image).unwrap().set_len(32 << 20).unwrap();
    let Ok(made) = Command::new("mkfs.ext4").args(["-q", "-F"]).arg(&image).output() else {
        eprintln!("mkfs.ext4 is not installed: left out");
        return;
    };
    assert!(made.status.success());
    let before = fs::read(&image).unwrap();
    refused(&run(tool("wb-format").arg(&image)), 1, &["fs.img", "ext4", "--force"]);
    assert!(before == fs::read(&image).unwrap());
    assert_eq!(run(tool("wb-format").arg("--force").arg(&image)).code, 0);
    refused(&run(tool("wb-format").arg(&image)), 1, &["Writeboost cache", "--force"]);
    assert_eq!(check(&[], &image).code, 0);
}

#[test]
fn format_writes_files_out_and_leaves_none_behind_when_it_fails() {
    use std::os::unix::fs::MetadataExt;
    let place = Place::new();
    let image = place.path("new.img");
    assert_eq!(run(tool("wb-format").args(["--size", "32MiB", "--label", "x"]).arg(&image)).code, 0);
    let meta = fs::metadata(&image).unwrap();
    assert!(meta.len() == 32 << 20 && meta.blocks() * 512 >= 32 << 20, "no holes");
    let small = place.path("small.img");
    refused(&run(tool("wb-format").args(["--size", "1MiB"]).arg(&small)), 1, &["small.img", "too small"]);
    assert!(!small.exists());
}

#[test]
fn tools_refuse_a_cache_in_use_and_dump_does_not() {
    let place = Place::new();
    let image = place.image(&sample());
    let held = open_blocking(&image, Access::exclusive(0)).expect("claimed");
    for args in [&[][..], &["--repair", "--yes"]] {
        refused(&check(args, &image), 8, &["cache.img", "in use"]);
    }
    refused(&run(tool("wb-format").arg("--force").arg(&image)), 1, &["cache.img", "in use"]);
    assert_eq!(dump(&image, &["summary"])["head_seq"], 24);
    drop(held);
    assert_eq!(check(&[], &image).code, 0);
}

#[test]
fn replay_writes_everything_and_refuses_what_is_wrong() {
    let place = Place::new();
    let cache = sample();
    let image = place.image(&cache);
    let backing = place.path("disk.img");
    let replay = |to: &Path| run(tool("wb-check").arg("--json").arg("--replay").arg("--backing").arg(to).arg(&image));
    refused(&replay(&image), 16, &["cache.img"]);
    fs::write(&backing, vec![0xee; VOLUME_BYTES as usize - 512]).unwrap();
    let before = (fs::read(&image).unwrap(), fs::read(&backing).unwrap());
    refused(&replay(&backing), 8, &["disk.img", &VOLUME_BYTES.to_string()]);
    assert!(before == (fs::read(&image).unwrap(), fs::read(&backing).unwrap()), "a refusal wrote something");
    fs::write(&backing, vec![0xee; VOLUME_BYTES as usize]).unwrap();
    let ran = replay(&backing);
    let report = json(&ran);
    assert_eq!((ran.code, &report["verdict"], &report["dirty_blocks"]), (0, &"clean".into(), &0.into()), "{ran:?}");
    let disk = fs::read(&backing).unwrap();
    for (block, sectors) in &cache.model {
        // Blocks 1 and 2 had been written back before, to a disk that this one stands for only in part.
        for (at, fill) in sectors.iter().enumerate().filter(|_| *block > 2) {
            let offset = *block as usize * BLOCK_BYTES + at * SECTOR_BYTES;
            let expected = fill.unwrap_or(0xee);
            assert!(disk[offset..offset + SECTOR_BYTES].iter().all(|byte| *byte == expected), "block {block}");
        }
    }
    assert_eq!(json(&replay(&backing))["replayed_blocks"], 0);
}
