//! The NBD server under other people's clients.

use serde_json::Value;
use std::path::Path;
use wb_core::service::ServiceInfo;
use wb_daemon::nbd::Limits;
use wb_tests::mem_service::{Call, MemService};
use wb_tests::nbd_server::TestServer;
use wb_tests::programs::{check, run};

const LIBNBD: &str = "libnbd-bin";
const NBDSH: &str = "python3-libnbd";
const QEMU: &str = "qemu-utils";
const FIO: &str = "fio";

const SIZE: u64 = 64 << 20;

fn server() -> TestServer<MemService> {
    TestServer::start_with(MemService::new(SIZE, 512), Limits::default(), 3)
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a path of the test")
}

/// A file of bytes that repeat at no block boundary.
fn random_file(path: &Path, len: u64) -> Vec<u8> {
    let mut state = 88_172_645_463_325_252u64;
    let bytes: Vec<u8> = (0..len)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state as u8
        })
        .collect();
    std::fs::write(path, &bytes).expect("written");
    bytes
}

#[test]
fn nbdinfo_sees_what_is_served() {
    let server = server();
    let json: Value = serde_json::from_str(&check(LIBNBD, "nbdinfo", &["--json", &server.uri()])).expect("JSON");
    let export = &json["exports"][0];
    assert_eq!((&json["protocol"], &json["structured"]), (&"newstyle-fixed".into(), &true.into()));
    assert_eq!((&export["export-size"], &export["description"]), (&SIZE.into(), &"a test volume".into()));
    for able in ["can_df", "can_flush", "can_fua", "can_multi_conn", "can_trim", "can_zero"] {
        assert_eq!(export[able], Value::Bool(true), "{able}");
    }
    for unable in ["can_cache", "can_fast_zero", "is_read_only", "is_rotational"] {
        assert_eq!(export[unable], Value::Bool(false), "{unable}");
    }
    let sizes = [&export["block_size_minimum"], &export["block_size_preferred"], &export["block_size_maximum"]];
    assert_eq!(sizes, [&Value::from(512), &Value::from(4096), &Value::from(32 << 20)]);
    let list: Value =
        serde_json::from_str(&check(LIBNBD, "nbdinfo", &["--list", "--json", &server.uri()])).expect("JSON");
    assert_eq!(list["exports"][0]["export-name"], "vol");
    let missing = server.uri().replace("///", "///missing");
    assert!(!run(LIBNBD, "nbdinfo", &[&missing]).success());
    let info = ServiceInfo { size_bytes: SIZE, sector_bytes: 4096, read_only: true };
    let read_only = TestServer::start(MemService::with_info(info));
    assert!(run(LIBNBD, "nbdinfo", &["--is", "read-only", &read_only.uri()]).success());
}

#[test]
fn nbdcopy_in_and_out() {
    let server = server();
    let dir = tempfile::tempdir().expect("a directory");
    let (source, copy) = (dir.path().join("source"), dir.path().join("copy"));
    let bytes = random_file(&source, SIZE);
    check(LIBNBD, "nbdcopy", &["--flush", text(&source), &server.uri()]);
    assert!(server.service.bytes(0..SIZE as usize) == bytes);
    assert_eq!(server.service.flushed_changes(), server.service.changes(), "its last flush covers all connections");
    check(LIBNBD, "nbdcopy", &["--connections=4", "--requests=64", "--request-size=4096", &server.uri(), text(&copy)]);
    assert!(std::fs::read(&copy).expect("read") == bytes);
}

/// Checks that libnbd's own strictness would not let us make.
const NBDSH_SCRIPT: &str = r#"
import errno
def fails(code, f):
    try:
        f()
    except nbd.Error as error:
        assert error.errnum == code, (error.errnum, code)
    else:
        raise AssertionError("must fail")
assert h.get_structured_replies_negotiated() == structured
h.set_strict_mode(0)
size = h.get_size()
data = bytes(range(256)) * 16
h.pwrite(data, 4096, nbd.CMD_FLAG_FUA)
assert h.pread(4096, 4096) == data
h.zero(1024, 4608, nbd.CMD_FLAG_NO_HOLE | nbd.CMD_FLAG_FUA)
assert h.pread(4096, 4096) == data[:512] + bytes(1024) + data[1536:]
h.trim(4096, 8192, nbd.CMD_FLAG_FUA)
h.flush()
fails(errno.EINVAL, lambda: h.pread(512, size))
fails(errno.ENOSPC, lambda: h.pwrite(data, size))
fails(errno.ENOSPC, lambda: h.zero(512, size))
fails(errno.EINVAL, lambda: h.trim(512, size))
fails(errno.EINVAL, lambda: h.pread(512, 1))
fails(errno.EINVAL, lambda: h.pwrite(data[:100], 0))
fails(errno.EINVAL, lambda: h.cache(512, 0))
fails(errno.EINVAL, lambda: h.zero(512, 0, nbd.CMD_FLAG_FAST_ZERO))
big = bytearray(data) * (32 * 256)
h.pwrite(big, 0)
assert h.pread(len(big), 0) == big
chunks = []
if structured:
    h.pread_structured(4 << 20, 0, lambda d, o, s, e: chunks.append(o), nbd.CMD_FLAG_DF)
    assert chunks == [0], chunks
cookies = [h.aio_pwrite(nbd.Buffer.from_bytearray(bytearray([i]) * 512), i * 512) for i in range(200)]
while cookies:
    h.poll(-1)
    cookies = [c for c in cookies if not h.aio_command_completed(c)]
assert all(h.pread(512, i * 512) == bytes([i]) * 512 for i in range(200))
h.shutdown()
"#;

#[test]
fn nbdsh_with_and_without_structured_replies() {
    let server = server();
    for structured in ["True", "False"] {
        let connect = format!("h.set_request_structured_replies({structured})\nh.connect_uri('{}')", server.uri());
        check(NBDSH, "nbdsh", &["-c", &format!("structured = {structured}"), "-c", &connect, "-c", NBDSH_SCRIPT]);
    }
}

#[test]
fn qemu_io_patterns_fua_zeroes_and_discards() {
    let server = server();
    let commands = [
        "write -P 0x5a 0 1M",
        "write -f -P 0x5b 64k 4k",
        "write -z 128k 64k",
        "aio_write -P 0x5c 512k 256k",
        "aio_flush",
        "discard 2M 1M",
        "flush",
        "read -P 0x5a 0 64k",
        "read -P 0x5b 64k 4k",
        "read -P 0 128k 64k",
        "read -P 0x5c 512k 256k",
        "read -P 0x5a 1023k 1k",
    ];
    let uri = server.uri();
    let mut args = vec!["-f", "raw"];
    commands.iter().for_each(|command| args.extend(["-c", command]));
    args.push(&uri);
    check(QEMU, "qemu-io", &args);
    let calls = server.service.take_calls();
    assert!(calls.contains(&Call::Write { offset: 64 << 10, len: 4096, fua: true }), "FUA arrives as FUA");
    assert!(calls.iter().any(|call| matches!(call, Call::Discard { .. })));
    assert!(calls.iter().any(|call| matches!(call, Call::WriteZeroes { .. })));
    assert!(!run(QEMU, "qemu-io", &["-f", "raw", "-c", "read -P 1 0 64k", &uri]).success(), "the check bites");
}

#[test]
fn qemu_img_convert_compare_and_bench() {
    let server = server();
    let dir = tempfile::tempdir().expect("a directory");
    let source = dir.path().join("source");
    random_file(&source, SIZE);
    let uri = server.uri();
    check(QEMU, "qemu-img", &["convert", "-n", "-f", "raw", "-O", "raw", text(&source), &uri]);
    check(QEMU, "qemu-img", &["compare", "-f", "raw", "-F", "raw", text(&source), &uri]);
    let info: Value = serde_json::from_str(&check(QEMU, "qemu-img", &["info", "--output=json", &uri])).expect("JSON");
    assert_eq!(info["virtual-size"], SIZE);
    let flags = ["-w", "-c", "5000", "-d", "16", "--flush-interval=16", "-f", "raw"];
    check(QEMU, "qemu-img", &[&["bench"], &flags[..], &[&uri]].concat());
}

#[test]
fn fio_verifies_what_it_wrote() {
    let server = server();
    let uri = format!("--uri={}", server.uri());
    let common = ["--ioengine=nbd", &uri, "--size=64m", "--iodepth=32", "--thread", "--verify_state_save=0"];
    let run = |job: &[&str]| check(FIO, "fio", &[&common[..], job].concat());
    // Two generations, the second over the first: a lost overwrite shows.
    for generation in ["0x11111111%o", "0x22222222%o"] {
        let pattern = format!("--verify_pattern={generation}");
        run(&["--name=pattern", "--rw=randwrite", "--bs=4k", "--verify=pattern", &pattern, "--do_verify=1"]);
    }
    run(&["--name=sizes", "--rw=write", "--bsrange=512-1m", "--blockalign=512", "--verify=crc32c", "--do_verify=1"]);
    run(&["--name=mixed", "--rw=randrw", "--bs=64k", "--numjobs=2", "--fsync=16", "--io_size=64m"]);
    run(&["--name=trim", "--rw=randtrim", "--bs=64k"]);
    assert!(server.service.flushed_changes() > 0);
}
