//! The parts of `wb-bench --compare` that need no guest: modelled devices in real time, and reports of recorded results.

use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use wb_tests::nbd_client::NbdClient;
use wb_tests::tool::bin;

/// A `wb-bench model-disk` that runs; killed when dropped.
struct ModelDisk {
    child: Child,
    socket: PathBuf,
    stats: PathBuf,
    _dir: tempfile::TempDir,
}

impl ModelDisk {
    fn start(model: &str, dilation: f64) -> ModelDisk {
        let dir = tempfile::tempdir().expect("a folder");
        let (socket, stats) = (dir.path().join("nbd"), dir.path().join("stats.json"));
        let mut command = Command::new(bin("wb-bench"));
        command.args(["model-disk", "--model", model, "--size", "256MiB", "--dilation", &dilation.to_string()]);
        command.arg("--socket").arg(&socket).arg("--stats").arg(&stats).stdout(Stdio::null());
        let child = command.spawn().expect("wb-bench starts");
        let disk = ModelDisk { child, socket, stats, _dir: dir };
        disk.wait("its socket", || disk.socket.exists());
        disk
    }

    fn wait(&self, what: &str, condition: impl Fn() -> bool) {
        let begin = Instant::now();
        while !condition() {
            assert!(begin.elapsed() < Duration::from_secs(20), "waited in vain for {what}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn connect(&self) -> NbdClient {
        NbdClient::connect_unix(&self.socket).expect("a connection")
    }

    fn signal(&self, signal: &str) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args(["-s", signal, &pid]).status().expect("kill").success());
    }

    /// The counters, as SIGUSR1 writes them.
    fn counts(&self) -> Value {
        // From an earlier time.
        let _ = std::fs::remove_file(&self.stats);
        self.signal("USR1");
        self.wait("its counters", || self.stats.exists());
        serde_json::from_str(&std::fs::read_to_string(&self.stats).expect("the file")).expect("JSON")
    }
}

impl Drop for ModelDisk {
    fn drop(&mut self) {
        // Both fail only if it has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The least time of several: other work on the machine makes a request take longer, never shorter.
fn least(times: u32, mut run: impl FnMut()) -> f64 {
    let one = |_| {
        let begin = Instant::now();
        run();
        begin.elapsed().as_secs_f64()
    };
    (0..times).map(one).fold(f64::INFINITY, f64::min)
}

#[test]
fn a_modelled_device_takes_the_time_of_its_parameters() {
    // Samsung 870 EVO, as wb_core::model::params has it: 27 us a write alone, 77 us a read, 0.9 ms a FLUSH; slowed down so
    // much that what the test's own machine adds is small.
    let dilation = 400.0;
    let disk = ModelDisk::start("sata-ssd", dilation);
    let mut client = disk.connect();
    let block = vec![7u8; 4096];
    let write = least(12, || client.write(4096, &block, 0).expect("a write"));
    client.flush().expect("a flush");
    let flush = least(4, || client.flush().expect("a flush"));
    let read = least(12, || assert_eq!(client.read(4096, 4096).expect("a read"), block));
    for (what, took, published_us) in [("write", write, 27.0), ("read", read, 77.0), ("FLUSH", flush, 900.0)] {
        let ratio = took / (published_us * dilation / 1e6);
        println!("{what}: {:.1} ms, {ratio:.3} of its parameter", took * 1000.0);
        assert!((0.95..1.5).contains(&ratio), "a {what} took {ratio:.2} times as long as its parameter says");
    }
    let counts = disk.counts();
    assert_eq!((&counts["writes"], &counts["reads"], &counts["flushes"]), (&12.into(), &12.into(), &5.into()));
    assert_eq!(counts["write_bytes"], 12 * 4096);
}

#[test]
fn a_modelled_disk_pays_for_distance_and_for_a_flush_of_what_is_dirty() {
    let disk = ModelDisk::start("hdd", 4.0);
    let mut client = disk.connect();
    let far = |n: u64| (n * 97 % 61) << 22;
    let begin = Instant::now();
    (0..20).for_each(|n| drop(client.read(far(n), 4096).expect("a read")));
    // 7.4 ms to seek and half a revolution, on the average; anything else on the machine makes it longer.
    let random_ms = begin.elapsed().as_secs_f64() * 1000.0 / 4.0 / 20.0;
    assert!((6.0..60.0).contains(&random_ms), "a random read took {random_ms:.1} ms of the disk's time");
    let near_ms = least(10, || drop(client.read(64 << 20, 4096).expect("a read"))) * 1000.0 / 4.0;
    assert!(near_ms < 5.0, "the same block again comes from the disk's buffer: {near_ms:.2} ms");

    let empty = least(3, || client.flush().expect("a flush"));
    (0..40).for_each(|n| client.write(far(n), &[1; 4096], 0).expect("a write"));
    let full = least(1, || client.flush().expect("a flush"));
    assert!(full > 10.0 * empty && full > 0.1, "a flush of 40 scattered blocks: {full:.3} s, of none: {empty:.5} s");
    let counts = disk.counts();
    assert!(counts["jumps"].as_u64().expect("a number") > 50, "{counts}");
    assert_eq!(counts["volatile_bytes"], 0);
}

#[test]
fn a_modelled_device_keeps_its_data_and_ends_when_told() {
    let mut disk = ModelDisk::start("none", 1.0);
    let mut client = disk.connect();
    client.write(1 << 20, &[9; 8192], 0).expect("a write");
    client.trim(1 << 20, 4096, 0).expect("a trim");
    assert_eq!(client.read(1 << 20, 8192).expect("a read"), [vec![0; 4096], vec![9; 4096]].concat());
    disk.signal("TERM");
    assert!(disk.child.wait().expect("it ends").success());
    assert!(!disk.socket.exists(), "the socket is gone with it");
    let counts: Value = serde_json::from_str(&std::fs::read_to_string(&disk.stats).expect("counters")).expect("JSON");
    assert_eq!((&counts["writes"], &counts["discards"]), (&1.into(), &1.into()));
}

fn recorded() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/compare.json")
}

fn wb_bench(args: &[&str]) -> std::process::Output {
    Command::new(bin("wb-bench")).args(args).output().expect("wb-bench runs")
}

#[test]
fn a_recorded_comparison_becomes_tables_and_one_page_that_needs_nothing_else() {
    let dir = tempfile::tempdir().expect("a folder");
    let page = dir.path().join("report.html");
    let recorded = recorded();
    let recorded = recorded.to_str().expect("text");
    let output = wb_bench(&["report", recorded, "--html", page.to_str().expect("text")]);
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    for part in ["fsync-1", "bcache", "raw-disk", "ours / best peer", "SSD writes / user write"] {
        assert!(text.contains(part), "{part} in {text}");
    }
    let html = std::fs::read_to_string(&page).expect("the page");
    for part in ["<svg", "polyline", "prefers-color-scheme: dark", "make-bcache", "wb-format", "rw=randwrite"] {
        assert!(html.contains(part), "{part} is missing in the page");
    }
    for foreign in ["http://", "https://", "<script", "@import", "url("] {
        assert!(!html.contains(foreign), "the page needs nothing else, but has {foreign}");
    }
    // Every element is closed.
    for element in ["table", "details", "figure", "svg", "pre", "ul", "tr", "p"] {
        let count = |what: &str| html.matches(what).count();
        let open = count(&format!("<{element}>")) + count(&format!("<{element} "));
        assert_eq!(open, count(&format!("</{element}>")), "{element}");
    }
    let picture = dir.path().join("picture.svg");
    let drawn = wb_bench(&["report", recorded, "--picture", picture.to_str().expect("text")]);
    let svg = std::fs::read_to_string(&picture).expect("the picture");
    assert!(drawn.status.success() && svg.contains("fsync-1") && svg.contains("prefers-color-scheme"), "{svg}");
    assert!(svg.matches("<rect").count() > 4 && !svg.contains("raw-disk"), "bars of the caches: {svg}");
    let markdown = wb_bench(&["report", recorded, "--markdown"]);
    assert!(String::from_utf8_lossy(&markdown.stdout).contains("| fsync-1"), "a Markdown table");
    let json = wb_bench(&["report", recorded, "--json"]);
    let again: Value = serde_json::from_slice(&json.stdout).expect("JSON");
    let first: Value = serde_json::from_str(&std::fs::read_to_string(recorded).expect("the file")).expect("JSON");
    assert_eq!(again["cells"], first["cells"], "nothing is lost");
}

/// The documents show the run that is recorded beside them: `tests/benchmarks.sh` has been run after it was replaced.
#[test]
fn the_documents_show_the_recorded_run() {
    let top = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace");
    let dir = tempfile::tempdir().expect("a folder");
    let picture = dir.path().join("picture.svg");
    let result = top.join("docs/benchmarks.json");
    let [result, drawn] = [&result, &picture].map(|path| path.to_str().expect("text"));
    let output = wb_bench(&["report", result, "--markdown", "--picture", drawn]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let tables = String::from_utf8(output.stdout).expect("UTF-8");
    let read = |name: &str| std::fs::read_to_string(top.join(name)).expect(name);
    let stale = "run tests/benchmarks.sh docs/benchmarks.json";
    assert!(read("docs/BENCHMARKS.md").contains(tables.trim()), "docs/BENCHMARKS.md: {stale}");
    let table = tables.lines().skip_while(|line| !line.starts_with('|')).take_while(|line| line.starts_with('|'));
    let table: Vec<&str> = table.collect();
    assert!(table.len() > 2 && read("README.md").contains(&table.join("\n")), "README.md: {stale}");
    assert_eq!(read("docs/benchmarks.svg"), std::fs::read_to_string(&picture).expect("drawn"), "{stale}");
}

#[test]
fn wrong_requests_end_before_anything_is_touched() {
    let no_result = wb_bench(&["report", "/proc/self/cmdline"]);
    let text = String::from_utf8_lossy(&no_result.stderr).into_owned();
    assert!(no_result.status.code() == Some(1) && text.contains("no result of wb-bench"), "{text}");

    let file = tempfile::NamedTempFile::new().expect("a file");
    file.as_file().set_len(1 << 20).expect("a size");
    let path = file.path().to_str().expect("text");
    let on_file = wb_bench(&["--compare", "raw-ssd", "--cache-device", path, "--backing-device", "/dev/null", "--yes"]);
    let text = String::from_utf8_lossy(&on_file.stderr).into_owned();
    let lacks = text.contains("this host lacks");
    assert!(on_file.status.code() == Some(1) && (lacks || text.contains("not a block device")), "{text}");

    let unknown = wb_bench(&["model-disk", "--model", "punched-cards", "--size", "1MiB", "--socket", "/nonexistent/s"]);
    let text = String::from_utf8_lossy(&unknown.stderr).into_owned();
    assert!(unknown.status.code() == Some(1) && text.contains("sata-ssd"), "the models that there are: {text}");
}
