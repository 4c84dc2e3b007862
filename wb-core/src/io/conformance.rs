//! What every [`Disk`] must do, as tests: one suite for io_uring, plain system calls and the simulator, so that the model
//! cannot drift away from the machine.
//!
//! A test takes a disk of [`SIZE_BYTES`] whose content is arbitrary, and panics if a promise is broken. Disks under test
//! inject no faults. [`crate::disk_conformance`] makes a `#[test]` of each.

use super::{Buf, BufPool, Disk, IoError, PoolClass, Slice};
use futures_util::future::join_all;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;

/// Size that a disk under test has at least.
pub const SIZE_BYTES: u64 = 16 << 20;

/// Operations in flight at once.
const DEPTH: usize = 256;

/// Makes a module `$name` with a test for each promise of [`Disk`]. `$run` is called with a test as a closure from
/// `Arc<impl Disk>` to a future; it makes the disk and runs the future to its end.
#[macro_export]
macro_rules! disk_conformance {
    ($name:ident, $run:path) => {
        mod $name {
            $crate::disk_conformance!(@ $run:
                geometry_is_possible, what_was_written_is_read, neighbours_stay_as_they_were,
                pieces_are_written_in_order, more_pieces_than_one_call_takes, one_slice_in_several_writes,
                deep_queues_do_not_mix_things_up, the_last_write_wins, flush_and_fua_complete,
                flush_beside_writes_in_flight, zeroes_read_as_zeroes, discards_touch_nothing_else,
                a_dropped_write_runs_to_its_end, a_dropped_read_keeps_its_buffer, large_transfers_are_whole,
            );
        }
    };
    (@ $run:path: $($test:ident),* $(,)?) => {
        $(#[test] fn $test() { $run(|disk| $crate::io::conformance::$test(disk)) })*
    };
}

/// Bytes that tell place and version: no two blocks of the suite are alike.
fn pattern(offset: u64, len: usize, version: u64) -> Buf {
    let mut buf = Buf::unpooled(len);
    fill(&mut buf, offset, version);
    buf
}

fn fill(bytes: &mut [u8], offset: u64, version: u64) {
    for (at, word) in bytes.chunks_exact_mut(8).enumerate() {
        let place = offset + at as u64 * 8;
        let value = (place ^ version.rotate_left(40)).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ version;
        word.copy_from_slice(&value.to_le_bytes());
    }
}

async fn write<D: Disk>(disk: &D, offset: u64, len: usize, version: u64, fua: bool) {
    let data = vec![pattern(offset, len, version).freeze()];
    disk.write(offset, data, fua).await.expect("a write succeeds");
}

async fn read<D: Disk>(disk: &D, offset: u64, len: usize) -> Buf {
    let mut buf = Buf::unpooled(len);
    buf.fill(0xa5);
    let (result, buf) = disk.read(offset, buf).await;
    result.expect("a read succeeds");
    assert_eq!(buf.len(), len, "the buffer comes back as it was");
    buf
}

#[track_caller]
fn assert_pattern(buf: &[u8], offset: u64, version: u64) {
    let expected = pattern(offset, buf.len(), version);
    if let Some(at) = (0..buf.len()).find(|at| buf[*at] != expected[*at]) {
        panic!("version {version}: byte {} of the disk differs", offset + at as u64);
    }
}

async fn expect<D: Disk>(disk: &D, offset: u64, len: usize, version: u64) {
    assert_pattern(&read(disk, offset, len).await, offset, version);
}

/// Polls a future once, so that the operation begins, and drops it. True if it was done already.
async fn begin_and_drop(future: impl Future) -> bool {
    let mut future = pin!(future);
    poll_fn(|cx| Poll::Ready(future.as_mut().poll(cx).is_ready())).await
}

fn align<D: Disk>(disk: &D) -> usize {
    disk.geometry().align_bytes as usize
}

/// Size and units agree with each other.
pub async fn geometry_is_possible<D: Disk>(disk: Arc<D>) {
    let geometry = disk.geometry();
    assert!(geometry.size_bytes >= SIZE_BYTES);
    assert!(geometry.sector_bytes == 512 || geometry.sector_bytes == 4096);
    assert!(geometry.size_bytes.is_multiple_of(u64::from(geometry.sector_bytes)));
    assert!(geometry.align_bytes.is_multiple_of(geometry.sector_bytes) && geometry.align_bytes <= 4096);
    assert!(!geometry.read_only);
    assert_eq!(geometry, disk.geometry(), "constant while open");
}

/// A completed write is seen by every later read, at every alignment that the geometry allows.
pub async fn what_was_written_is_read<D: Disk>(disk: Arc<D>) {
    let unit = align(&*disk);
    let end = disk.geometry().size_bytes;
    let mut version = 1;
    for blocks in [1, 2, 3, 7, 8, 9, 64, 257] {
        let len = blocks * unit;
        for offset in [0, unit as u64, 5 * unit as u64, 1 << 20, end - len as u64] {
            write(&*disk, offset, len, version, false).await;
            expect(&*disk, offset, len, version).await;
            version += 1;
        }
    }
}

/// A write changes its own sectors only.
pub async fn neighbours_stay_as_they_were<D: Disk>(disk: Arc<D>) {
    let unit = align(&*disk);
    let at = |n: usize| (n * unit) as u64;
    write(&*disk, 0, 64 * unit, 1, false).await;
    for (first, count) in [(3, 1), (8, 8), (21, 3), (40, 17)] {
        write(&*disk, at(first), count * unit, 2, false).await;
    }
    let all = read(&*disk, 0, 64 * unit).await;
    for n in 0..64 {
        let changed = [3..4, 8..16, 21..24, 40..57].iter().any(|range| range.contains(&n));
        assert_pattern(&all[n * unit..][..unit], at(n), if changed { 2 } else { 1 });
    }
}

/// The pieces of a write follow each other, whatever memory they come from.
pub async fn pieces_are_written_in_order<D: Disk>(disk: Arc<D>) {
    let unit = align(&*disk);
    for count in [2usize, 3, 10] {
        let mut data: Vec<Slice> = Vec::new();
        let mut at = 0;
        for n in 0..count {
            let len = (1 + n % 3) * unit;
            // Every second piece is the middle of a larger buffer.
            let mut buf = Buf::unpooled(len + 2 * 4096);
            fill(&mut buf[4096..][..len], at as u64, count as u64);
            data.push(if n % 2 == 0 {
                buf.freeze().slice(4096..4096 + len)
            } else {
                pattern(at as u64, len, count as u64).freeze()
            });
            at += len;
        }
        disk.write(0, data, false).await.expect("a write succeeds");
        expect(&*disk, 0, at, count as u64).await;
    }
}

/// Any number of pieces makes one write.
pub async fn more_pieces_than_one_call_takes<D: Disk>(disk: Arc<D>) {
    let unit = align(&*disk);
    let count = 2500;
    let whole = pattern(0, count * unit, 3).freeze();
    let data = (0..count).map(|n| whole.slice(n * unit..(n + 1) * unit)).collect();
    disk.write(0, data, false).await.expect("a write succeeds");
    expect(&*disk, 0, count * unit, 3).await;
}

/// A slice may take part in several writes at once.
pub async fn one_slice_in_several_writes<D: Disk>(disk: Arc<D>) {
    let slice = pattern(0, 4096, 4).freeze();
    let writes = (0..16u64).map(|n| disk.write(n * 4096, vec![slice.clone()], false));
    assert!(join_all(writes).await.iter().all(Result::is_ok));
    for n in 0..16 {
        assert_pattern(&read(&*disk, n * 4096, 4096).await, 0, 4);
    }
}

/// Many operations at once each do what they were asked to.
pub async fn deep_queues_do_not_mix_things_up<D: Disk>(disk: Arc<D>) {
    for round in 1..=4u64 {
        let place = |n: usize| ((n * 37) % DEPTH) as u64 * 4096;
        join_all((0..DEPTH).map(|n| write(&*disk, place(n), 4096, round, n % 16 == 0))).await;
        join_all((0..DEPTH).map(|n| expect(&*disk, place(n), 4096, round))).await;
        // Readers of the one half beside writers of the other.
        let mixed = (0..DEPTH).map(|n| {
            let disk = disk.clone();
            async move {
                match n % 2 {
                    0 => expect(&*disk, n as u64 * 4096, 4096, round).await,
                    _ => write(&*disk, n as u64 * 4096, 4096, round + 100, false).await,
                }
            }
        });
        join_all(mixed).await;
        for n in 0..DEPTH {
            expect(&*disk, n as u64 * 4096, 4096, if n % 2 == 0 { round } else { round + 100 }).await;
        }
    }
}

/// Of writes one after the other the last one stays.
pub async fn the_last_write_wins<D: Disk>(disk: Arc<D>) {
    for version in 1..50 {
        write(&*disk, 8192, 4096, version, version % 5 == 0).await;
        if version % 3 == 0 {
            disk.flush().await.expect("a flush succeeds");
        }
        expect(&*disk, 8192, 4096, version).await;
    }
}

/// Durability is asked for in every combination. (Whether it is kept shows only after a power cut: in the simulator.)
pub async fn flush_and_fua_complete<D: Disk>(disk: Arc<D>) {
    disk.flush().await.expect("with nothing written");
    write(&*disk, 0, 4096, 1, false).await;
    write(&*disk, 4096, 8192, 1, true).await;
    disk.flush().await.expect("after writes");
    disk.flush().await.expect("with nothing new");
    let whole = pattern(0, 3 * 4096, 2).freeze();
    let data = (0..3).map(|n| whole.slice(n * 4096..(n + 1) * 4096)).collect();
    disk.write(0, data, true).await.expect("several pieces");
    expect(&*disk, 0, 3 * 4096, 2).await;
    assert!(join_all((0..8).map(|_| disk.flush())).await.iter().all(Result::is_ok));
}

/// Flushes and writes do not wait for each other's end.
pub async fn flush_beside_writes_in_flight<D: Disk>(disk: Arc<D>) {
    let both = (0..64u64).map(|n| {
        let disk = disk.clone();
        async move {
            write(&*disk, n * 65536, 65536, 5, false).await;
            disk.flush().await.expect("a flush succeeds");
        }
    });
    join_all(both).await;
    for n in 0..64 {
        expect(&*disk, n * 65536, 65536, 5).await;
    }
}

/// A zeroed range reads as zeroes, its neighbours do not; what is written there later stays.
pub async fn zeroes_read_as_zeroes<D: Disk>(disk: Arc<D>) {
    let unit = align(&*disk) as u64;
    for (first, count) in [(0, 1), (3, 1), (8, 8), (5, 30), (2, 1000)] {
        let (offset, len) = (first * unit, count * unit);
        let before = 0..offset;
        let after = offset + len..offset + len + 16 * unit;
        write(&*disk, 0, after.end as usize, 6, false).await;
        match disk.write_zeroes(offset, len).await {
            Ok(()) => {}
            Err(IoError::Unsupported) => {
                expect(&*disk, 0, after.end as usize, 6).await;
                continue;
            }
            Err(error) => panic!("zeroing {len} bytes at {offset}: {error}"),
        }
        assert!(read(&*disk, offset, len as usize).await.iter().all(|byte| *byte == 0), "{len} bytes at {offset}");
        if !before.is_empty() {
            expect(&*disk, 0, before.end as usize, 6).await;
        }
        expect(&*disk, after.start, 16 * unit as usize, 6).await;
        write(&*disk, offset, unit as usize, 7, false).await;
        disk.flush().await.expect("a flush succeeds");
        expect(&*disk, offset, unit as usize, 7).await;
    }
}

/// A discard leaves its neighbours alone, and what is written there later stays. It is refused exactly if the geometry
/// says so.
pub async fn discards_touch_nothing_else<D: Disk>(disk: Arc<D>) {
    let unit = align(&*disk) as u64;
    for (first, count) in [(1, 1), (8, 8), (5, 30), (2, 1000)] {
        let (offset, len) = (first * unit, count * unit);
        let end = offset + len + 16 * unit;
        write(&*disk, 0, end as usize, 8, false).await;
        let result = disk.discard(offset, len).await;
        if !disk.geometry().discard {
            assert_eq!(result, Err(IoError::Unsupported));
            expect(&*disk, 0, end as usize, 8).await;
            continue;
        }
        result.expect("a discard succeeds");
        expect(&*disk, 0, offset as usize, 8).await;
        expect(&*disk, offset + len, 16 * unit as usize, 8).await;
        read(&*disk, offset, len as usize).await; // Any content, but no error.
        write(&*disk, offset, unit as usize, 9, false).await;
        expect(&*disk, offset, unit as usize, 9).await;
    }
}

/// Waits until the only buffer of a pool is free again, while other operations go on.
async fn until_free<D: Disk>(disk: &D, pool: &BufPool) -> Buf {
    for _ in 0..100_000 {
        if let Some(buf) = pool.try_alloc(65536) {
            return buf;
        }
        read(disk, 0, 4096).await;
    }
    panic!("the buffer of a dropped operation never came back");
}

/// A write whose future was dropped is carried out, from its own, unchanged buffer.
pub async fn a_dropped_write_runs_to_its_end<D: Disk>(disk: Arc<D>) {
    let pool = BufPool::new(&[PoolClass { bytes: 65536, count: 1 }]);
    for round in 0..50u64 {
        let mut buf = until_free(&*disk, &pool).await;
        fill(&mut buf, 1 << 20, round);
        let done = begin_and_drop(disk.write(1 << 20, vec![buf.freeze()], round % 2 == 0)).await;
        // If the buffer is free already, the operation has ended; then scribbling in it does no harm.
        if let Some(mut early) = pool.try_alloc(65536) {
            early.fill(0xee);
        } else {
            assert!(!done, "an operation that is done gives its buffer back");
        }
        until_free(&*disk, &pool).await.fill(0xdd);
        expect(&*disk, 1 << 20, 65536, round).await;
    }
}

/// A read whose future was dropped writes into no memory that somebody else has.
pub async fn a_dropped_read_keeps_its_buffer<D: Disk>(disk: Arc<D>) {
    write(&*disk, 1 << 20, 65536, 1, false).await;
    let pool = BufPool::new(&[PoolClass { bytes: 65536, count: 1 }]);
    for _ in 0..50 {
        let buf = until_free(&*disk, &pool).await;
        begin_and_drop(disk.read(1 << 20, buf)).await;
        let mut next = until_free(&*disk, &pool).await;
        next.fill(0x77);
        read(&*disk, 0, 4096).await;
        disk.flush().await.expect("a flush succeeds");
        assert!(next.iter().all(|byte| *byte == 0x77), "the old read wrote into the new owner's buffer");
    }
}

/// Large reads and writes are not cut short.
pub async fn large_transfers_are_whole<D: Disk>(disk: Arc<D>) {
    write(&*disk, 0, SIZE_BYTES as usize, 11, false).await;
    expect(&*disk, 0, SIZE_BYTES as usize, 11).await;
    let half = SIZE_BYTES as usize / 2;
    let data = vec![
        pattern(0, half, 12).freeze(),
        pattern(half as u64, 4096, 12).freeze(),
        pattern(half as u64 + 4096, half - 4096, 12).freeze(),
    ];
    disk.write(0, data, true).await.expect("a write succeeds");
    expect(&*disk, 0, SIZE_BYTES as usize, 12).await;
}
