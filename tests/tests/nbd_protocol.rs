//! The NBD server over a volume in memory, as its own client sees it: every command, every refusal.

use std::time::Duration;
use wb_core::service::{SERVICE_CHUNK_BYTES_MAX, ServiceInfo};
use wb_daemon::nbd::Limits;
use wb_tests::mem_service::{Call, MemService};
use wb_tests::nbd_client::{Command, ConnectOptions, NbdClient, RawClient, errno, flag};
use wb_tests::nbd_server::TestServer;

const MIB: usize = 1 << 20;
const PAYLOAD_MAX: u32 = 32 << 20;

fn server() -> TestServer<MemService> {
    TestServer::start(MemService::new(128 << 20, 512))
}

/// Bytes that tell where they belong.
fn pattern(offset: u64, len: usize) -> Vec<u8> {
    let at = |index: u64| ((offset + index) / 512).wrapping_mul(0x9e37_79b9).wrapping_add((offset + index) % 251) as u8;
    (0..len as u64).map(at).collect()
}

/// Clients with and without structured replies, on both kinds of socket.
fn clients(server: &TestServer<MemService>) -> Vec<NbdClient> {
    let connect = |address, structured| {
        let options = ConnectOptions { structured, ..ConnectOptions::default() };
        NbdClient::connect(&address, &options).expect("a connection")
    };
    vec![
        connect(server.address(), true),
        connect(server.address(), false),
        connect(server.tcp(), true),
        connect(server.tcp(), false),
    ]
}

#[test]
fn the_handshake_tells_what_the_export_is() {
    let server = server();
    for export in ["", "vol"] {
        let options = ConnectOptions { export: export.into(), ..ConnectOptions::default() };
        let client = NbdClient::connect(&server.address(), &options).expect("a connection");
        let info = client.info();
        assert_eq!((info.size_bytes, info.block_sizes), (128 << 20, Some((512, 4096, PAYLOAD_MAX))));
        assert_eq!((info.name.as_deref(), info.description.as_deref()), (Some("vol"), Some("a test volume")));
        assert_eq!(info.flags, 0b1_1110_1101, "flags, flush, FUA, trim, write-zeroes, DF, multi-conn");
    }
    let old = ConnectOptions { export_name: true, structured: false, ..ConnectOptions::default() };
    let mut client = NbdClient::connect(&server.address(), &old).expect("a connection");
    assert_eq!((client.info().size_bytes, client.info().flags), (128 << 20, 0b1_0110_1101));
    client.write(4096, &[7; 512], 0).expect("written");
    let unknown = ConnectOptions { export: "other".into(), ..ConnectOptions::default() };
    let refused = NbdClient::connect(&server.address(), &unknown).err().expect("no such export").to_string();
    assert!(refused.contains("'vol'"), "names what there is: {refused}");
}

#[test]
fn data_of_every_length_comes_back() {
    let server = server();
    let lengths = [512, 4096, 4608, 16 << 10, 20 << 10, 64 << 10, 100 << 10, MIB, MIB + 512, 3 * MIB + 4096, 32 * MIB];
    for (number, mut client) in clients(&server).into_iter().enumerate() {
        for (round, len) in lengths.into_iter().enumerate() {
            let offset = (number * 512 + round * 4096) as u64;
            let data = pattern(offset + number as u64, len);
            client.write(offset, &data, 0).expect("written");
            assert!(
                server.service.bytes(offset as usize..offset as usize + len) == data,
                "{len} bytes reach the service"
            );
            assert!(client.read(offset, len as u32).expect("read") == data, "{len} bytes come back");
        }
        assert!(client.disconnect().expect("a clean end").is_empty());
    }
}

#[test]
fn requests_that_arrive_in_pieces_of_any_size_are_the_same_requests() {
    let server = server();
    let mut state = 1u64;
    let mut random = |below: u64| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % below
    };
    for (pieces_max, requests) in [(3, 2), (40, 10), (5000, 60), (60_000, 120)] {
        let mut client = server.connect_simple();
        let (mut stream, mut expected) = (Vec::new(), Vec::new());
        for cookie in 0..requests {
            let len = (1 + random(if pieces_max < 100 { 20 } else { 150 })) as usize * 512;
            let data = pattern(cookie * 7, len);
            stream.extend_from_slice(&0x2560_9513_u32.to_be_bytes());
            stream.extend_from_slice(&[0, 0, 0, 1]);
            stream.extend_from_slice(&cookie.to_be_bytes());
            stream.extend_from_slice(&(cookie * (1 << 18)).to_be_bytes());
            stream.extend_from_slice(&(len as u32).to_be_bytes());
            stream.extend_from_slice(&data);
            expected.push((cookie as usize * (1 << 18), data));
        }
        let mut rest = &stream[..];
        while !rest.is_empty() {
            let (piece, more) = rest.split_at((1 + random(pieces_max)).min(rest.len() as u64) as usize);
            client.raw().send(piece).expect("sent");
            std::thread::yield_now();
            rest = more;
        }
        for _ in 0..requests {
            assert_eq!(client.raw().recv(16).expect("an answer")[..8], [0x67, 0x44, 0x66, 0x98, 0, 0, 0, 0]);
        }
        for (offset, data) in expected {
            assert!(server.service.bytes(offset..offset + data.len()) == data, "pieces of up to {pieces_max} bytes");
        }
    }
}

#[test]
fn long_requests_reach_the_service_in_chunks_and_fua_on_each() {
    let server = server();
    let mut client = server.connect();
    server.service.take_calls();
    let len = 2 * MIB + 4096;
    client.write(512, &vec![1; len], flag::FUA).expect("written");
    let mut calls = server.service.take_calls();
    calls.sort_by_key(|call| matches!(call, Call::Write { offset, .. } if *offset > 512));
    let chunk = SERVICE_CHUNK_BYTES_MAX;
    let write = |start: usize, len| Call::Write { offset: 512 + start as u64, len, fua: true };
    assert_eq!(calls.len(), 3);
    for call in [write(0, chunk), write(chunk, chunk), write(2 * chunk, 4096)] {
        assert!(calls.contains(&call), "{call:?} in {calls:?}");
    }
    client.trim(0, 1 << 26, flag::FUA).expect("trimmed");
    client.write_zeroes(0, 1 << 26, flag::FUA | flag::NO_HOLE).expect("zeroed");
    client.flush().expect("flushed");
    let expected = [
        Call::Discard { offset: 0, len: 1 << 26, fua: true },
        Call::WriteZeroes { offset: 0, len: 1 << 26, fua: true },
        Call::Flush,
    ];
    assert_eq!(server.service.take_calls(), expected, "requests without payload are not split");
}

#[test]
fn zeroes_read_back_as_zeroes_and_neighbours_stay() {
    let server = server();
    let mut client = server.connect();
    let data = pattern(0, 8192);
    client.write(0, &data, 0).expect("written");
    client.write_zeroes(512, 1024, 0).expect("zeroed");
    let expected = [&data[..512], &[0; 1024], &data[1536..]].concat();
    assert!(client.read(0, 8192).expect("read") == expected);
    client.trim(4096, 512, 0).expect("trimmed");
    let after = client.read(0, 8192).expect("read");
    assert!(after[..4096] == expected[..4096] && after[4608..] == expected[4608..]);
}

#[test]
fn refused_requests_have_their_error_and_the_connection_lives_on() {
    let server = server();
    let size = 128u64 << 20;
    let bad: &[(u16, u16, u64, u32, u32)] = &[
        // command, flags, offset, length, error
        (0, 0, size, 512, errno::EINVAL),
        (0, 0, u64::MAX - 511, 512, errno::EINVAL),
        (0, 0, u64::MAX, u32::MAX, errno::EINVAL),
        (0, 0, 1, 512, errno::EINVAL),
        (0, 0, 0, 513, errno::EINVAL),
        (1, 0, size, 512, errno::ENOSPC),
        (1, 0, size - 512, 1024, errno::ENOSPC),
        (1, 0, u64::MAX - 511, 512, errno::ENOSPC),
        (1, 0, 100, 512, errno::EINVAL),
        (1, 0, 0, 100, errno::EINVAL),
        (1, 0x8000, 0, 512, errno::EINVAL),
        (1, 0, 0, PAYLOAD_MAX + 512, errno::EINVAL),
        (3, 0, 512, 0, errno::EINVAL),
        (4, 0, size, 512, errno::EINVAL),
        (4, 0, 0, 100, errno::EINVAL),
        (5, 0, 0, 512, errno::EINVAL),
        (6, 0, size, 512, errno::ENOSPC),
        (6, 0x10, 0, 512, errno::EINVAL),
        (7, 0, 0, 512, errno::EINVAL),
        (99, 0, 0, 0, errno::EINVAL),
    ];
    for mut client in clients(&server) {
        client.write(0, &[0xaa; 4096], 0).expect("written");
        server.service.take_calls();
        for &(kind, flags, offset, len, error) in bad {
            let payload = if kind == 1 { vec![0xbb; len as usize] } else { vec![] };
            let cookie = client.send_numbered(kind, flags, offset, len, &payload).expect("sent");
            let reply = client.recv().expect("an answer");
            assert_eq!((reply.cookie, reply.result), (cookie, Err(error)), "{kind} {flags:#x} {offset:#x} {len}");
        }
        assert_eq!(server.service.take_calls(), [], "nothing of it reached the service");
        assert_eq!(client.read(0, 4096).expect("still served"), [0xaa; 4096]);
        for (kind, len) in [(0, 0), (1, 0), (4, 0), (6, 0)] {
            let cookie = client.send_numbered(kind, flag::FUA, 512, len, &[]).expect("sent");
            let reply = client.recv().expect("an answer");
            assert_eq!((reply.cookie, reply.result), (cookie, Ok(vec![])), "nothing to do is no error");
        }
    }
    let long = PAYLOAD_MAX + 512;
    assert_eq!(server.connect().read(0, long).expect_err("too long").code(), Some(errno::EOVERFLOW));
    assert_eq!(server.connect_simple().read(0, long).expect_err("too long").code(), Some(errno::EINVAL));
}

#[test]
fn the_sector_of_the_volume_is_the_unit() {
    let server = TestServer::start(MemService::new(1 << 20, 4096));
    let mut client = server.connect();
    assert_eq!(client.info().block_sizes, Some((4096, 4096, PAYLOAD_MAX)));
    assert_eq!(client.write(512, &[1; 512], 0).expect_err("unaligned").code(), Some(errno::EINVAL));
    client.write(4096, &[1; 4096], 0).expect("aligned");
}

#[test]
fn read_only_volumes_refuse_changes() {
    let info = ServiceInfo { size_bytes: 1 << 20, sector_bytes: 512, read_only: true };
    let server = TestServer::start(MemService::with_info(info));
    let mut client = server.connect();
    assert_eq!(client.info().flags & 0b10, 0b10, "READ_ONLY");
    assert_eq!(client.write(0, &[1; 512], 0).expect_err("read-only").code(), Some(errno::EPERM));
    assert_eq!(client.trim(0, 512, 0).expect_err("read-only").code(), Some(errno::EPERM));
    assert_eq!(client.write_zeroes(0, 512, 0).expect_err("read-only").code(), Some(errno::EPERM));
    client.flush().expect("flush changes nothing");
    client.read(0, 512).expect("read");
}

#[test]
fn errors_of_the_service_are_named_with_their_place() {
    let server = server();
    let place = 3 << 20;
    server.service.fail(Some(place + 4096..place + 8192));
    for mut client in clients(&server) {
        let cookie = client.send(Command::Read, 0, 0, 8 << 20, &[]).expect("sent");
        let reply = client.recv().expect("an answer");
        assert_eq!((reply.cookie, reply.result), (cookie, Err(errno::EIO)));
        assert!(reply.error_offset.is_none_or(|at| at == place), "{:?}", reply.error_offset);
        let two_chunks = vec![1; 2 * MIB];
        assert_eq!(client.write(place - 4096, &two_chunks, 0).expect_err("fails").code(), Some(errno::EIO));
        client.read(0, 4096).expect("other places are served");
    }
}

#[test]
fn one_chunk_if_the_client_asks_for_it() {
    let server = server();
    let mut client = server.connect();
    let data = pattern(0, 5 * MIB);
    client.write(0, &data, 0).expect("written");
    let many = client.call(Command::Read, 0, 0, 5 << 20, &[]).expect("read");
    assert!(many.chunks == 5 && many.result == Ok(data.clone()));
    let one = client.call(Command::Read, flag::DF, 0, 5 << 20, &[]).expect("read");
    assert!(one.chunks == 1 && one.result == Ok(data));
}

#[test]
fn requests_overtake_each_other() {
    let server = server();
    let mut client = server.connect();
    server.service.hold();
    let slow = client.send(Command::Write, 0, 0, 512, &[1; 512]).expect("sent");
    server.wait_until("the write is held", |server| server.service.running() == 1);
    let refused = client.send(Command::Read, 0, 1, 512, &[]).expect("sent");
    assert_eq!(client.recv().expect("an answer").cookie, refused, "no head-of-line blocking");
    let also = client.send(Command::Flush, 0, 0, 0, &[]).expect("sent");
    server.wait_until("both run", |server| server.service.running() == 2);
    server.service.release();
    let mut cookies = [client.recv().expect("an answer").cookie, client.recv().expect("an answer").cookie];
    cookies.sort_unstable();
    assert_eq!(cookies, [slow, also]);
}

#[test]
fn a_thousand_requests_are_all_answered_once() {
    // Replies that nobody reads fill the socket (each costs the kernel almost 1 KiB of its buffer) until the server
    // stops reading requests, as it must. A client that sends without ever reading would then wait for itself.
    const IN_FLIGHT_MAX: usize = 150;
    let server = TestServer::start_with(MemService::new(64 << 20, 512), Limits::default(), 2);
    for mut client in clients(&server) {
        let mut open = std::collections::BTreeMap::new();
        let settle = |client: &mut NbdClient, open: &mut std::collections::BTreeMap<u64, u64>| {
            let reply = client.recv().expect("an answer");
            assert_eq!(reply.result, Ok(vec![]));
            assert!(open.remove(&reply.cookie).is_some(), "answered once");
        };
        for number in 0..1000u64 {
            if open.len() == IN_FLIGHT_MAX {
                settle(&mut client, &mut open);
            }
            let offset = number * 4096;
            let (command, len) = if number % 4 == 3 { (Command::Flush, 0) } else { (Command::Write, 512) };
            let payload = if len > 0 { pattern(offset, 512) } else { vec![] };
            let at = if len > 0 { offset } else { 0 };
            open.insert(client.send(command, 0, at, len, &payload).expect("sent"), number);
        }
        while !open.is_empty() {
            settle(&mut client, &mut open);
        }
        assert!(client.read(4096, 512).expect("read") == pattern(4096, 512));
    }
}

#[test]
fn a_flush_on_one_connection_covers_and_shows_what_the_others_completed() {
    let server = TestServer::start_with(MemService::new(1 << 20, 512), Limits::default(), 3);
    let (mut one, mut two) = (server.connect(), server.connect_simple());
    for round in 1..=50u64 {
        one.write(4096, &pattern(round, 4096), 0).expect("written");
        two.flush().expect("flushed");
        assert_eq!(server.service.flushed_changes(), round);
        assert!(two.read(4096, 4096).expect("read") == pattern(round, 4096));
    }
}

#[test]
fn disconnect_finishes_what_is_outstanding_first() {
    let server = server();
    let mut client = server.connect();
    server.service.hold();
    for number in 0..10u64 {
        client.send(Command::Write, 0, number * 512, 512, &[number as u8; 512]).expect("sent");
    }
    server.wait_until("all run", |server| server.service.running() == 10);
    let service = server.service.clone();
    let releaser = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(50));
        service.release();
    });
    let replies = client.disconnect().expect("a clean end");
    releaser.join().expect("released");
    assert!(replies.len() == 10 && replies.iter().all(|reply| reply.result.is_ok()));
    assert_eq!(server.service.bytes(9 * 512..10 * 512), [9; 512]);
}

#[test]
fn a_client_that_only_stops_sending_still_gets_its_replies() {
    let server = server();
    let mut client = server.connect_simple();
    server.service.hold();
    client.send(Command::Write, 0, 0, 512, &[5; 512]).expect("sent");
    client.send(Command::Flush, 0, 0, 0, &[]).expect("sent");
    client.raw().shutdown_send().expect("half closed");
    server.wait_until("both run", |server| server.service.running() == 2);
    server.service.release();
    assert!(client.recv().expect("an answer").result.is_ok());
    assert!(client.recv().expect("an answer").result.is_ok());
}

#[test]
fn stopping_finishes_work_answers_late_requests_and_closes_idle_connections() {
    let server = server();
    let mut idle = RawClient::connect(&server.address()).expect("a connection");
    let mut client = server.connect();
    let mut quiet = server.connect();
    server.service.hold();
    let slow = client.send(Command::Write, flag::FUA, 0, 512, &[5; 512]).expect("sent");
    server.wait_until("the write runs", |server| server.service.running() == 1);
    server.begin_stop(Duration::from_secs(20));
    assert_eq!(idle.recv_to_end().expect("closed").len(), 18, "the greeting, and then the end");
    assert!(quiet.raw().recv_to_end().expect("closed").is_empty());
    let late = client.send(Command::Write, 0, 0, 4096, &[6; 4096]).expect("sent");
    let reply = client.recv().expect("an answer");
    assert_eq!((reply.cookie, reply.result), (late, Err(errno::ESHUTDOWN)));
    server.service.release();
    let reply = client.recv().expect("an answer");
    assert_eq!((reply.cookie, reply.result), (slow, Ok(vec![])));
    assert!(client.raw().recv_to_end().expect("closed").is_empty());
    assert!(NbdClient::connect_unix(server.path()).is_err(), "nobody listens");
    assert!(!server.path().exists(), "the socket's file is removed");
    assert_eq!(server.service.bytes(0..512), [5; 512]);
    assert_eq!(server.stop(Duration::from_secs(1)), 0);
}

#[test]
fn stopping_has_a_limit() {
    let server = server();
    let mut client = server.connect();
    server.service.hold();
    client.send(Command::Flush, 0, 0, 0, &[]).expect("sent");
    server.wait_until("the flush runs", |server| server.service.running() == 1);
    let service = server.service.clone();
    let begin = std::time::Instant::now();
    let left = server.stop(Duration::from_millis(200));
    assert!(begin.elapsed() < Duration::from_secs(5));
    assert_eq!(left, 1, "the request hangs in the service, and that is said");
    assert!(client.recv().is_err(), "cut");
    service.release();
}
