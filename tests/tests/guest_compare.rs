//! `wb-bench --compare` in guests: small runs from end to end, and what an interrupted one leaves behind.

use serde_json::Value;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use wb_tests::tool::bin;

/// The smallest devices that every peer takes.
const SMALL: [&str; 4] = ["--ssd-size", "128MiB", "--disk-size", "512MiB"];

/// A folder for temporary files, on a disk.
fn folder() -> tempfile::TempDir {
    tempfile::Builder::new().prefix("wb-compare-test-").tempdir_in("/var/tmp").expect("a folder")
}

fn compare(dir: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(bin("wb-bench"));
    command.args(["--compare", "bcache", "--rounds", "1"]).args(SMALL).args(args).env("TMPDIR", dir);
    command
}

#[test]
fn a_comparison_in_guests_measures_every_system_and_counts_its_devices_work() {
    let dir = folder();
    let (saved, page) = (dir.path().join("result.json"), dir.path().join("report.html"));
    let mut command = compare(dir.path(), &["--only", "fsync-1", "--dilation", "5"]);
    let output = command.arg("--save").arg(&saved).arg("--html").arg(&page).output().expect("wb-bench runs");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{said}");
    let result: Value = serde_json::from_str(&std::fs::read_to_string(&saved).expect("saved")).expect("JSON");
    assert_eq!(result["complete"], true);
    let cell = |system: &str| {
        let cells = result["cells"].as_array().expect("cells");
        let cell = cells.iter().find(|cell| cell["system"] == system).unwrap_or_else(|| panic!("{system}: {said}"));
        cell["outcome"]["measured"].clone()
    };
    for system in ["writeboost", "bcache", "raw-ssd", "raw-disk"] {
        assert!(cell(system)["value"].as_f64().is_some_and(|value| value > 0.0), "{system}: {said}");
    }
    // What the table of device work is there for: our flush ends on the SSD, bcache's goes on to the disk.
    let flushes = |system: &str, device: &str| cell(system)[device]["flushes"].as_u64().expect("a number");
    let user = |system: &str| cell(system)["user_flushes"].as_u64().expect("a number");
    assert!(user("writeboost") > 0 && flushes("writeboost", "disk") == 0);
    assert!(flushes("writeboost", "ssd") <= user("writeboost") + user("writeboost") / 4 + 2);
    assert!(flushes("bcache", "disk") >= user("bcache") / 2);
    // How each was set up is in it, word by word.
    let ours = result["systems"].as_array().expect("systems").iter().find(|s| s["name"] == "writeboost").expect("ours");
    assert!(ours["commands"].to_string().contains("--ublk"), "{ours}");
    assert!(std::fs::read_to_string(&page).expect("the page").contains("<svg"));
}

/// Processes whose command line or environment names this folder.
fn processes_of(dir: &Path) -> Vec<String> {
    let name = dir.display().to_string();
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").expect("/proc").flatten() {
        let read = |file: &str| std::fs::read(entry.path().join(file)).unwrap_or_default();
        let text = [read("cmdline"), read("environ")].concat();
        if String::from_utf8_lossy(&text).contains(&name) {
            found.push(String::from_utf8_lossy(&read("cmdline")).replace('\0', " "));
        }
    }
    found
}

#[test]
fn an_interrupted_comparison_leaves_nothing_running() {
    let dir = folder();
    let mut command = compare(dir.path(), &["--only", "fsync-1", "--dilation", "5"]);
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("wb-bench starts");
    let mut lines = BufReader::new(child.stderr.take().expect("stderr")).lines();
    // In the middle: a guest runs, the load has begun.
    let begun = lines.find(|line| line.as_ref().is_ok_and(|line| line.contains("writeboost: fsync-1")));
    assert!(begun.is_some(), "the load begins");
    assert!(processes_of(dir.path()).iter().any(|command| command.contains("qemu-system")), "a guest runs");
    let pid = child.id().to_string();
    assert!(Command::new("kill").args(["-s", "INT", &pid]).status().expect("kill").success());
    let asked = Instant::now();
    let rest: Vec<String> = lines.map_while(Result::ok).collect();
    let status = child.wait().expect("it ends");
    assert!(asked.elapsed() < Duration::from_secs(30), "it ends soon");
    assert!(!status.success() && rest.join("\n").contains("interrupted"), "{status}: {rest:?}");
    assert_eq!(processes_of(dir.path()), Vec::<String>::new(), "nothing is left running");
    let left: Vec<_> = std::fs::read_dir(dir.path()).expect("the folder").flatten().map(|e| e.path()).collect();
    assert!(left.is_empty(), "no files are left: {left:?}");
}
