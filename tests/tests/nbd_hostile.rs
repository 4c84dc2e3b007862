//! Clients that are broken, slow, greedy or malicious: the others go on, memory stays bounded, nothing half is applied.

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use proptest::prelude::*;
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};
use wb_core::rt::{Config, Runtime};
use wb_daemon::nbd::{Limits, ListenAddress, NbdServer};
use wb_tests::mem_service::MemService;
use wb_tests::nbd_client::{Command, ExportInfo, NbdClient, RawClient, errno};
use wb_tests::nbd_server::TestServer;

fn server() -> TestServer<MemService> {
    TestServer::start(MemService::new(128 << 20, 512))
}

fn frame(kind: u16, flags: u16, cookie: u64, offset: u64, len: u32) -> Vec<u8> {
    let mut out = 0x2560_9513_u32.to_be_bytes().to_vec();
    out.extend_from_slice(&flags.to_be_bytes());
    out.extend_from_slice(&kind.to_be_bytes());
    out.extend_from_slice(&cookie.to_be_bytes());
    out.extend_from_slice(&offset.to_be_bytes());
    out.extend_from_slice(&len.to_be_bytes());
    out
}

/// A well-behaved client gets its work done.
#[track_caller]
fn others_go_on(server: &TestServer<MemService>) {
    let mut honest = server.connect();
    honest.write(0, &[0x11; 4096], 0).expect("others are served");
    assert_eq!(honest.read(0, 4096).expect("others are served"), [0x11; 4096]);
    honest.flush().expect("others are served");
}

#[test]
fn a_connection_cut_mid_payload_is_not_applied() {
    let server = server();
    for (len, sent) in [(4096, 4095), (64 << 10, 30_000), (4 << 20, (4 << 20) - 1), (32 << 20, 20 << 20)] {
        let mut client = server.connect();
        let frame = [frame(1, 0, 1, 8192, len), vec![0xee; sent]].concat();
        client.raw().send(&frame).expect("sent");
        drop(client);
        server.wait_until("the connection is gone", |server| server.server.connections() == 0);
        assert_eq!(server.service.changes(), 0, "{sent} of {len} bytes are no write");
        assert_eq!(server.server.bytes_in_flight(), 0);
    }
    for cut in [1, 4, 27] {
        server.connect().raw().send(&frame(1, 0, 1, 0, 512)[..cut]).expect("sent");
    }
    others_go_on(&server);
}

#[test]
fn garbage_ends_the_connection_and_nothing_else() {
    let server = server();
    let mut client = server.connect();
    client.raw().send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").expect("sent");
    assert!(client.raw().recv_to_end().expect("closed").is_empty());
    let mut greeting = RawClient::connect(&server.address()).expect("a connection");
    greeting.greet(0xffff_ffff).expect("sent");
    assert!(greeting.recv_to_end().expect("closed").is_empty());
    others_go_on(&server);
}

#[test]
fn options_too_long_to_read_are_answered_or_end_the_connection() {
    let server = server();
    let mut client = RawClient::connect(&server.address()).expect("a connection");
    client.greet(3).expect("greeting");
    client.send_option(7, &vec![0; 500_000]).expect("sent");
    assert_eq!(client.recv_option_reply(7).expect("an answer").0, 1 << 31 | 9, "ERR_TOO_BIG");
    client.send_option(0x1234, b"abc").expect("sent");
    assert_eq!(client.recv_option_reply(0x1234).expect("an answer").0, 1 << 31 | 1, "ERR_UNSUP");
    client.send(b"IHAVEOPT\0\0\0\x07\xff\xff\xff\xff").expect("sent");
    assert_eq!(client.recv_option_reply(7).expect("an answer").0, 1 << 31 | 9, "ERR_TOO_BIG");
    assert!(client.recv_to_end().expect("closed").is_empty());
}

#[test]
fn a_write_of_four_gibibytes_is_drained_without_being_stored() {
    let server = server();
    let mut client = server.connect();
    client.raw().send(&frame(1, 0, 1, 0, u32::MAX)).expect("sent");
    let piece = vec![0xee; 1 << 20];
    let mut left = u32::MAX as usize;
    let begin = Instant::now();
    // The whole payload at memory speed takes a few seconds; a part of it shows the same.
    while left > 0 && begin.elapsed() < Duration::from_secs(1) {
        let now = left.min(piece.len());
        client.raw().send(&piece[..now]).expect("sent");
        left -= now;
        assert_eq!(server.server.bytes_in_flight(), 0, "nothing is stored");
    }
    others_go_on(&server);
    let mut client = server.connect();
    let long = (32 << 20) + 512;
    let cookie = client.send(Command::Write, 0, 0, long, &vec![0xee; long as usize]).expect("sent");
    assert_eq!(client.recv().expect("an answer").result, Err(errno::EINVAL));
    let after = client.send(Command::Flush, 0, 0, 0, &[]).expect("sent");
    assert_eq!(client.recv().expect("the connection lives on").cookie, after);
    assert!(after > cookie);
}

#[test]
fn slow_and_silent_handshakes_end_at_the_time_out() {
    let limits = Limits { handshake_ns: 300_000_000, ..Limits::default() };
    let server = TestServer::start_with(MemService::new(1 << 20, 512), limits, 1);
    let begin = Instant::now();
    let mut silent = RawClient::connect(&server.address()).expect("a connection");
    let mut dribbling = RawClient::connect(&server.tcp()).expect("a connection");
    dribbling.greet(3).expect("greeting");
    for byte in b"IHAVEOPT\0\0\0\x03\0\0\0\0IHAVEOPT\0\0\0\x03\0\0\0\0".iter().cycle() {
        if dribbling.send(&[*byte]).is_err() || begin.elapsed() > Duration::from_secs(5) {
            break;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(begin.elapsed() < Duration::from_secs(3), "a byte now and then does not extend the time");
    assert_eq!(silent.recv_to_end().expect("closed").len(), 18);
    // One that asks and never reads: its replies do not fit the socket's buffers.
    let mut deaf = RawClient::connect(&server.address()).expect("a connection");
    deaf.greet(3).expect("greeting");
    let lists = b"IHAVEOPT\0\0\0\x03\0\0\0\0".repeat(4096);
    while deaf.send(&lists).is_ok() {
        assert!(begin.elapsed() < Duration::from_secs(5), "its handshake ends too");
    }
    let mut served = server.connect();
    std::thread::sleep(Duration::from_millis(400));
    served.flush().expect("the time-out is for handshakes only");
}

#[test]
fn a_client_that_never_reads_stalls_only_itself() {
    let server = server();
    let mut deaf: Vec<NbdClient> = (0..4).map(|_| server.connect()).collect();
    for client in &mut deaf {
        // In one message: of many small ones the socket's buffer holds fewer, and the server does not take all of them.
        client.raw().send(&frame(0, 0, 1, 0, 1 << 20).repeat(500)).expect("sent");
    }
    server.wait_until("they hold what they can", |server| server.server.bytes_in_flight() > 32 << 20);
    std::thread::sleep(Duration::from_millis(100));
    let (held, buffers) = (server.server.bytes_in_flight(), Limits::default().read_buffers[2]);
    assert!(held < (buffers.bytes * buffers.count) as u64 / 16 * 15, "{held} bytes are held, and some are free");
    let begin = Instant::now();
    for _ in 0..20 {
        others_go_on(&server);
        server.connect().read(0, 1 << 20).expect("long reads, too");
    }
    assert!(begin.elapsed() < Duration::from_secs(3), "others are served as if there was nothing");
    drop(deaf);
    server.wait_until("everything is given back", |server| server.server.bytes_in_flight() == 0);
}

#[test]
fn small_reads_that_nobody_takes_leave_small_buffers_free() {
    let server = server();
    let mut deaf: Vec<NbdClient> = (0..60).map(|_| server.connect_simple()).collect();
    for client in &mut deaf {
        client.raw().send(&frame(0, 0, 1, 0, 4096).repeat(500)).expect("sent");
    }
    let small = Limits::default().read_buffers[0];
    let most = (small.bytes * small.count) as u64 / 2;
    server.wait_until("they hold what they can", |server| server.server.bytes_in_flight() > most);
    std::thread::sleep(Duration::from_millis(100));
    let held = server.server.bytes_in_flight();
    assert!(held <= (small.bytes * small.count) as u64 / 8 * 7, "{held} bytes: an eighth is the service's own");
    others_go_on(&server);
}

#[test]
fn clients_that_hold_everything_and_stand_still_are_cut_when_others_wait() {
    let limits = Limits { stall_ns: 300_000_000, ..Limits::default() };
    let server = TestServer::start_with(MemService::new(128 << 20, 512), limits, 1);
    let mut idle = server.connect();
    let mut deaf: Vec<NbdClient> = (0..15).map(|_| server.connect()).collect();
    for client in &mut deaf {
        client.raw().send(&frame(0, 0, 1, 0, 4 << 20)).expect("sent");
        client.raw().send(&frame(0, 0, 1, 0, 1 << 20).repeat(100)).expect("sent");
    }
    let mut half: Vec<NbdClient> = (0..15).map(|_| server.connect()).collect();
    for client in &mut half {
        client.raw().send(&[frame(1, 0, 1, 0, 4 << 20), vec![0; 50_000]].concat()).expect("sent");
    }
    let begin = Instant::now();
    let mut honest = server.connect();
    for _ in 0..2 {
        honest.write(0, &vec![0x33; 20 << 20], 0).expect("others are served");
        assert_eq!(honest.read(0, 20 << 20).expect("others are served").len(), 20 << 20);
    }
    assert!(begin.elapsed() < Duration::from_secs(20), "{:?}", begin.elapsed());
    idle.flush().expect("who holds nothing is left alone");
    assert!(server.server.connections() < 32, "some were cut");
}

#[test]
fn requests_without_data_are_bounded_too() {
    let server = server();
    let mut client = server.connect();
    server.service.hold();
    let flushes = frame(3, 0, 1, 0, 0).repeat(1000);
    client.raw().send(&flushes).expect("sent");
    server.wait_until("some run", |server| server.service.running() == 128);
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(server.service.running(), 128, "one connection has at most so many requests in work");
    server.service.release();
}

#[test]
fn half_written_payloads_of_many_clients_do_not_block_the_others() {
    let server = server();
    let mut stalled: Vec<NbdClient> = (0..40).map(|_| server.connect()).collect();
    for client in &mut stalled {
        client.raw().send(&[frame(1, 0, 1, 0, 32 << 20), vec![0; 100_000]].concat()).expect("sent");
    }
    server.wait_until("memory is charged", |server| server.server.bytes_in_flight() > 31 << 20);
    let mut honest = server.connect();
    for len in [4096, 100 << 10, 1 << 20] {
        honest.write(0, &vec![0x22; len], 0).expect("others are served");
    }
    others_go_on(&server);
    drop(stalled);
    server.wait_until("everything is given back", |server| server.server.bytes_in_flight() == 0);
    assert_eq!(honest.read(0, 4096).expect("read"), [0x11; 4096], "half a payload was never applied");
}

#[test]
fn a_thousand_connections_and_no_more_than_the_limit() {
    // Both ends of each connection are in this process.
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("a limit");
    setrlimit(Resource::RLIMIT_NOFILE, hard.min(4096), hard).expect("below the hard limit");
    let limits = Limits { connections: 1000, ..Limits::default() };
    let server = TestServer::start_with(MemService::new(8 << 20, 512), limits, 3);
    let mut clients: Vec<NbdClient> = (0..1000).map(|_| server.connect()).collect();
    assert_eq!(server.server.connections(), 1000);
    let mut refused = RawClient::connect(&server.address()).expect("a connection");
    assert!(refused.recv_to_end().expect("closed at once").is_empty());
    for (number, client) in clients.iter_mut().enumerate() {
        client.send(Command::Write, 0, number as u64 * 512, 512, &[number as u8; 512]).expect("sent");
    }
    for client in &mut clients {
        assert_eq!(client.recv().expect("an answer").result, Ok(vec![]));
    }
    assert_eq!(server.service.bytes(999 * 512..1000 * 512), [(999 % 256) as u8; 512]);
    clients.truncate(10);
    server.wait_until("the others are gone", |server| server.server.connections() == 10);
    others_go_on(&server);
}

#[test]
fn sockets_of_dead_servers_are_replaced_and_live_ones_refused() {
    let server = server();
    let mode = std::fs::metadata(server.path()).expect("a socket").permissions().mode();
    assert_eq!(mode & 0o777, 0o600, "for its owner only");
    let address = ListenAddress::Unix(server.path().to_owned());
    let in_use = address.open().expect_err("in use").to_string();
    assert!(in_use.contains("in use") && in_use.contains("nbd.sock"), "{in_use}");
    others_go_on(&server);
    let dir = tempfile::tempdir().expect("a directory");
    let stale = dir.path().join("stale");
    drop(std::os::unix::net::UnixListener::bind(&stale).expect("bound"));
    assert!(stale.exists());
    let listeners = ListenAddress::Unix(stale.clone()).open().expect("replaced");
    drop(listeners);
    assert!(!stale.exists());
    std::fs::write(&stale, "precious").expect("written");
    assert!(ListenAddress::Unix(stale.clone()).open().is_err());
    assert_eq!(std::fs::read(&stale).expect("still there"), b"precious");
}

#[test]
fn of_several_servers_that_start_together_one_gets_the_socket() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("nbd.sock");
    for _ in 0..50 {
        drop(std::os::unix::net::UnixListener::bind(&path).expect("a stale socket"));
        let address = ListenAddress::Unix(path.clone());
        let start = std::sync::Barrier::new(8);
        let opened: Vec<_> = std::thread::scope(|scope| {
            let open = || {
                start.wait();
                address.open()
            };
            let threads: Vec<_> = (0..8).map(|_| scope.spawn(open)).collect();
            threads.into_iter().map(|thread| thread.join().expect("no panic")).collect()
        });
        assert_eq!(opened.iter().filter(|result| result.is_ok()).count(), 1);
        assert!(std::os::unix::net::UnixStream::connect(&path).is_ok(), "and it is the one at the path");
        drop(opened);
        assert!(!path.exists());
    }
}

#[test]
fn a_connection_given_by_hand_is_served_on_the_callers_runtime() {
    let runtime = Runtime::new(Config::default()).expect("a runtime");
    let service = MemService::new(1 << 20, 512);
    let server = NbdServer::new(service, "", "", Limits::default()).expect("valid limits");
    let (ours, theirs) = std::os::unix::net::UnixStream::pair().expect("a pair");
    let client = std::thread::spawn(move || {
        let mut raw = RawClient::from(ours);
        raw.greet(3).expect("greeting");
        raw.send_option(1, b"").expect("sent");
        let head = raw.recv(10).expect("an answer");
        assert_eq!(head[..8], (1u64 << 20).to_be_bytes());
        let mut client = NbdClient::from_raw(raw, ExportInfo::default(), false);
        client.write(0, &[3; 512], 0).expect("written");
        client.disconnect().expect("a clean end");
    });
    runtime.block_on(async { server.serve_connection(theirs.into()).await });
    client.join().expect("no panic");
    assert_eq!(server.connections(), 0);
}

/// Frames that are mostly valid: what a confused client would send.
fn frames() -> impl Strategy<Value = Vec<u8>> {
    let small = || prop_oneof![4 => (0u32..9).prop_map(|sector| sector * 512), 1 => 0u32..5000];
    let one = (
        prop_oneof![0u16..9, any::<u16>()],
        prop_oneof![3 => 0u16..4, 1 => any::<u16>()],
        small(),
        small(),
        any::<bool>(),
    )
        .prop_map(|(kind, flags, offset, len, short)| {
            let payload = if kind == 1 { len as usize - usize::from(short && len > 0) } else { 0 };
            [frame(kind, flags, 7, u64::from(offset), len), vec![0x5a; payload]].concat()
        });
    let noise = proptest::collection::vec(any::<u8>(), 0..40);
    proptest::collection::vec(prop_oneof![12 => one, 1 => noise], 1..30).prop_map(|frames| frames.concat())
}

#[test]
fn random_sessions_never_harm_the_server() {
    let server = server();
    let config = ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() };
    let sessions = (frames(), proptest::collection::vec(any::<u8>(), 0..60), any::<bool>());
    let mut runner = proptest::test_runner::TestRunner::new(config);
    let run = runner.run(&sessions, |(bytes, handshake, shaken)| {
        if shaken {
            let mut client = server.connect();
            // The server may have closed meanwhile.
            let _ = client.raw().send(&bytes);
            let _ = client.raw().shutdown_send();
            prop_assert!(client.raw().recv_to_end().is_ok(), "every session ends");
        } else {
            let mut client = RawClient::connect(&server.address()).expect("a connection");
            let _ = client.send(&[&[0, 0, 0, 3][..], &handshake].concat());
            let _ = client.shutdown_send();
            prop_assert!(client.recv_to_end().is_ok(), "every handshake ends");
        }
        Ok(())
    });
    run.expect("no session does harm");
    server.wait_until("all are gone", |server| server.server.connections() == 0);
    assert_eq!((server.server.bytes_in_flight(), server.service.running()), (0, 0));
    others_go_on(&server);
}
