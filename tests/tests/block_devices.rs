//! Caches on real block devices (loop devices) with every pair of sector sizes; needs root, as loop devices do.
//!
//! The names end in `_mounted` since the devices belong to the whole machine: such tests run one at a time.

use std::path::{Path, PathBuf};
use wb_tests::daemon::{Place, random_bytes, text};
use wb_tests::nbd_client::flag;
use wb_tests::programs::check;
use wb_tests::tool::{run, tool};

const CACHE_BYTES: u64 = 32 << 20;
const VOLUME_BYTES: u64 = 64 << 20;

/// A loop device over a file, with this logical sector size.
struct Loop(String);

impl Loop {
    fn attach(file: &Path, sector_bytes: u32) -> Loop {
        let sector = sector_bytes.to_string();
        let args = ["--find", "--show", "--direct-io=on", "--sector-size", &sector, text(file)];
        Loop(check("util-linux", "losetup", &args).trim().to_owned())
    }

    fn path(&self) -> PathBuf {
        (&self.0).into()
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = std::process::Command::new("losetup").args(["-d", &self.0]).status();
    }
}

/// Formats, serves, overwrites, kills, recovers and drains with these sector sizes; the device says what was written.
fn serve(cache_sector: u32, backing_sector: u32) {
    let mut place = Place::new(CACHE_BYTES, 512 << 10, VOLUME_BYTES);
    let file = place.backing.clone();
    let (cache, backing) = (Loop::attach(&place.cache, cache_sector), Loop::attach(&file, backing_sector));
    (place.cache, place.backing) = (cache.path(), backing.path());
    // The file holds a cache already, and the device has its bytes.
    let format = |args: &[&str]| run(tool("wb-format").args(args).arg(&place.cache));
    let refused = format(&[]);
    assert!(refused.code == 1 && refused.stderr.contains("--force"), "{}", refused.stderr);
    assert_eq!(format(&["--force", "--segment-size", "524288"]).code, 0);

    let daemon = place.start();
    let mut client = daemon.connect();
    let (minimum, ..) = client.info().block_sizes.expect("the server tells its block sizes");
    assert_eq!(minimum, backing_sector, "the volume has the sectors of its backing device");
    let in_use = format(&["--force"]);
    assert!(in_use.code == 1 && in_use.stderr.contains("in use"), "{}", in_use.stderr);

    // More than the cache holds, and parts of blocks where the sectors allow it.
    let mut model = vec![0; VOLUME_BYTES as usize];
    let unit = u64::from(backing_sector);
    for turn in 0..600_u64 {
        let random = random_bytes(turn, 16);
        let number = u64::from_le_bytes(random[..8].try_into().expect("eight bytes"));
        let len = (1 + number % 128) * unit;
        let offset = (number >> 8) % (VOLUME_BYTES / unit) * unit;
        let len = len.min(VOLUME_BYTES - offset);
        let data = random_bytes(turn | 1 << 40, len as usize);
        client.write(offset, &data, 0).expect("written");
        model[offset as usize..][..len as usize].copy_from_slice(&data);
    }
    if backing_sector == 4096 {
        assert!(client.write(512, &[1; 512], 0).is_err(), "less than a sector of this volume");
    }
    client.write(0, &model[..65536], flag::FUA).expect("written");
    client.flush().expect("flushed");
    drop(client);
    assert!(daemon.kill());
    place.assert_clean();

    let daemon = place.start();
    let mut client = daemon.connect();
    for (index, piece) in model.chunks(1 << 20).enumerate() {
        assert!(client.read((index as u64) << 20, 1 << 20).expect("read") == piece, "MiB {index} after the kill");
    }
    drop(client);
    daemon.drain();
    daemon.stop();
    assert_eq!(place.assert_clean()["dirty_blocks"], 0);
    assert!(std::fs::read(&file).expect("read") == model, "the backing device itself");
}

#[test]
fn cache_and_volume_of_512_byte_sectors_mounted() {
    serve(512, 512);
}

#[test]
fn cache_of_4_kib_sectors_volume_of_512_mounted() {
    serve(4096, 512);
}

#[test]
fn cache_of_512_byte_sectors_volume_of_4_kib_mounted() {
    serve(512, 4096);
}

#[test]
fn cache_and_volume_of_4_kib_sectors_mounted() {
    serve(4096, 4096);
}
