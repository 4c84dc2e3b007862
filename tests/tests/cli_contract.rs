//! What every tool promises, whatever it does: help, version, exit codes, messages, JSON, closed pipes, and that nothing
//! is written when something is wrong. One function per promise; the table at the end says which tool makes it.

use std::fs::{self, File, OpenOptions, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use tempfile::TempDir;
use wb_tests::tool::{Ran, bin, neutral, run, run_keeping_stdout, tool};

/// A tool, as the promises need it.
struct Tool {
    name: &'static str,
    /// Exit code for a wrong command line.
    usage: i32,
    /// Exit code for work that cannot be done.
    failed: i32,
    /// A complete command line for the cache at this path; the folder is for whatever else the tool needs.
    on_cache: fn(cache: &str, folder: &str) -> Vec<String>,
}

const FORMAT: Tool = Tool { name: "wb-format", usage: 2, failed: 1, on_cache: |cache, _| words(&[cache]) };
const CHECK: Tool = Tool { name: "wb-check", usage: 16, failed: 8, on_cache: |cache, _| words(&[cache]) };
const DUMP: Tool =
    Tool { name: "wb-dump", usage: 2, failed: 1, on_cache: |cache, _| words(&["--cache", cache, "summary"]) };
const DAEMON: Tool = Tool { name: "wb-daemon", usage: 2, failed: 1, on_cache: daemon_on_cache };
const BENCH: Tool = Tool {
    name: "wb-bench",
    usage: 2,
    failed: 1,
    on_cache: |cache, _| {
        let quick = ["--runtime", "100ms", "--ramp-time", "10ms", "--repeat", "1"];
        words(&[&["run", "randread", "--device", cache], &quick[..]].concat())
    },
};

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|w| w.to_string()).collect()
}

/// Serves the cache over a backing file that is made here.
fn daemon_on_cache(cache: &str, folder: &str) -> Vec<String> {
    let backing = format!("{folder}/backing.img");
    File::create(&backing).unwrap().set_len(16 << 20).unwrap();
    let (nbd, control) = (format!("unix:{folder}/n.sock"), format!("{folder}/c.sock"));
    words(&["run", "--cache", cache, "--backing", &backing, "--nbd", &nbd, "--control", &control])
}

/// A folder that vanishes, and the tool's command lines in it.
struct Place {
    dir: TempDir,
}

impl Place {
    fn new() -> Place {
        let dir = tempfile::tempdir().unwrap();
        // Others may look in, so that a tool can be run as another user.
        fs::set_permissions(dir.path(), Permissions::from_mode(0o755)).unwrap();
        Place { dir }
    }
    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }
    fn file(&self, name: &str, content: &[u8]) -> PathBuf {
        fs::write(self.path(name), content).unwrap();
        self.path(name)
    }
    fn args(&self, t: &Tool, cache: &Path) -> Vec<String> {
        (t.on_cache)(cache.to_str().unwrap(), self.dir.path().to_str().unwrap())
    }
    /// A command line that works: on a new cache, for wb-format on a new file.
    fn good_args(&self, t: &Tool) -> Vec<String> {
        if t.name != "wb-format" {
            return self.args(t, &self.cache());
        }
        let new = self.path(&format!("new-{}.img", names(self.dir.path()).len()));
        words(&["--size", "32MiB", new.to_str().unwrap()])
    }
    /// A cache that wb-format made.
    fn cache(&self) -> PathBuf {
        let path = self.path("cache.img");
        let ran = run(tool("wb-format").args(["--size", "32MiB", "--force"]).arg(&path));
        assert_eq!(ran.code, 0, "{ran:?}");
        path
    }
}

/// The tool failed with `code`, its message begins as it must and names `part`, and nothing is on stdout.
#[track_caller]
fn assert_error(t: &Tool, ran: &Ran, code: i32, part: &str) {
    assert_eq!(ran.code, code, "{ran:?}");
    let line = format!("{}: error: ", t.name);
    assert!(ran.stderr.lines().any(|l| l.starts_with(&line)), "no line begins with {line:?}: {ran:?}");
    assert!(ran.stderr.contains(part), "{part:?} is not named: {ran:?}");
    assert!(!ran.stderr.contains("panicked"), "{ran:?}");
    assert_eq!(ran.stdout, "", "an error leaves stdout empty");
}

/// Content, size and times of a file.
fn state(path: &Path) -> (Vec<u8>, i64, i64, u32) {
    let meta = fs::metadata(path).unwrap();
    (fs::read(path).unwrap(), meta.mtime(), meta.mtime_nsec(), meta.mode())
}

/// Runs the tool on a file that is no cache: it fails, names the file, and leaves it and the folder alone.
#[track_caller]
fn refuses_untouched(t: &Tool, name: &str, content: &[u8]) {
    let place = Place::new();
    let file = place.file(name, content);
    let args = place.args(t, &file);
    let before = state(&file);
    let listing = names(place.dir.path());
    let ran = run(tool(t.name).args(args));
    assert_error(t, &ran, t.failed, file.to_str().unwrap());
    assert!(state(&file) == before, "{} was written to", file.display());
    assert_eq!(names(place.dir.path()), listing, "something was left behind");
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

/// Bytes without pattern, the same each time.
fn noise(len: usize) -> Vec<u8> {
    let mut x = 0x9e37_79b9_7f4a_7c15u64;
    std::iter::repeat_with(|| {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        x.to_le_bytes()
    })
    .flatten()
    .take(len)
    .collect()
}

// The promises.

fn help_has_examples_and_exit_status(t: &Tool) {
    let long = run(tool(t.name).arg("--help"));
    assert_eq!((long.code, long.stderr.as_str()), (0, ""));
    for part in ["Usage:", "Examples:", "Exit status:", "--json", "--config", t.name] {
        assert!(long.stdout.contains(part), "{part} is not in the help");
    }
    let short = run(tool(t.name).arg("-h"));
    assert_eq!(short.code, 0);
    assert!(short.stdout.lines().count() < long.stdout.lines().count());
    assert!(long.stdout.lines().all(|line| line.chars().count() <= 100), "help fits 100 columns");
}

fn version_is_one_line(t: &Tool) {
    let ran = run(tool(t.name).arg("--version"));
    let mut words = ran.stdout.split_whitespace();
    assert_eq!((ran.code, words.next(), ran.stdout.lines().count()), (0, Some(t.name), 1));
    assert!(words.next().is_some_and(|v| v.split('.').count() == 3 && v.starts_with(|c: char| c.is_ascii_digit())));
}

fn unknown_option_touches_nothing(t: &Tool) {
    let place = Place::new();
    let file = place.file("file", &[0; 8192]);
    let mut args = place.args(t, &file);
    args.push("--no-such-option".into());
    let (before, listing) = (state(&file), names(place.dir.path()));
    assert_error(t, &run(tool(t.name).args(args)), t.usage, "--no-such-option");
    assert!(state(&file) == before);
    assert_eq!(names(place.dir.path()), listing);
}

fn misspelt_config_key_is_named(t: &Tool) {
    let place = Place::new();
    let config = place.file("wb.toml", b"[[cache]]\ndevcie = \"/dev/null\"\n");
    for by_option in [true, false] {
        let mut command = tool(t.name);
        if by_option {
            command.arg("--config").arg(&config)
        } else {
            command.env("WB_CONFIG", &config)
        };
        match t.name {
            "wb-dump" => command.arg("summary"),
            "wb-daemon" => command.arg("run"),
            _ => &mut command,
        };
        let ran = run(&mut command);
        assert_error(t, &ran, t.usage, "wb.toml:2: unknown key `devcie`");
        assert!(ran.stderr.contains("did you mean `device`?"), "{ran:?}");
    }
}

fn wrong_log_filter_is_a_usage_error(t: &Tool) {
    let place = Place::new();
    let args = place.args(t, &place.path("absent"));
    assert_error(t, &run(tool(t.name).env("WB_LOG", "a=b=c=d").args(args)), t.usage, "WB_LOG");
}

fn help_into_a_closed_pipe_is_no_error(t: &Tool) {
    let ran = with_closed_stdout(tool(t.name).arg("--help"));
    assert_eq!((ran.code, ran.stderr.as_str()), (0, ""));
}

fn missing_file_is_named(t: &Tool) {
    let place = Place::new();
    let path = place.path("absent.img");
    let args = place.args(t, &path);
    assert_error(t, &run(tool(t.name).args(args)), t.failed, "absent.img");
    assert!(!path.exists(), "a tool must not create what it was to read");
}

fn directory_is_refused(t: &Tool) {
    let place = Place::new();
    let path = place.path("folder");
    fs::create_dir(&path).unwrap();
    let args = place.args(t, &path);
    assert_error(t, &run(tool(t.name).args(args)), t.failed, "folder");
    assert!(names(&path).is_empty());
}

fn character_device_is_refused(t: &Tool) {
    let place = Place::new();
    let args = place.args(t, Path::new("/dev/zero"));
    assert_error(t, &run(tool(t.name).args(args)), t.failed, "/dev/zero");
}

fn empty_file_is_refused(t: &Tool) {
    refuses_untouched(t, "empty.img", b"");
}

fn tiny_file_is_refused(t: &Tool) {
    refuses_untouched(t, "tiny.img", b"not a cache");
    refuses_untouched(t, "block.img", &[0; 4096]);
}

fn zeroes_are_no_cache(t: &Tool) {
    refuses_untouched(t, "zero.img", &vec![0; 16 << 20]);
}

fn random_bytes_are_no_cache(t: &Tool) {
    refuses_untouched(t, "noise.img", &noise(16 << 20));
    refuses_untouched(t, "odd.img", &noise((1 << 20) + 777));
}

fn unreadable_file_is_named(t: &Tool) {
    let place = Place::new();
    let file = place.file("secret.img", &[0; 1 << 20]);
    fs::set_permissions(&file, Permissions::from_mode(0o000)).unwrap();
    let args = place.args(t, &file);
    let mut command = if nix::unistd::geteuid().is_root() {
        // Nothing is unreadable to root, so somebody else runs a copy that he can reach.
        let copy = place.path(t.name);
        fs::copy(bin(t.name), &copy).unwrap();
        let mut command = Command::new(copy);
        command.uid(65534).gid(65534);
        neutral(&mut command);
        command
    } else {
        tool(t.name)
    };
    assert_error(t, &run(command.args(args)), t.failed, "secret.img");
}

fn json_is_one_document(t: &Tool) {
    let place = Place::new();
    let ran = run(tool(t.name).args(place.good_args(t)).arg("--json"));
    assert_eq!(ran.code, 0, "{ran:?}");
    let document: serde_json::Value = serde_json::from_str(&ran.stdout).expect("one document and nothing else");
    assert!(document.is_object());
}

fn json_errors_leave_stdout_empty(t: &Tool) {
    let place = Place::new();
    let args = place.args(t, &place.path("absent.img"));
    assert_error(t, &run(tool(t.name).arg("--json").args(args)), t.failed, "absent.img");
}

fn output_into_a_closed_pipe_is_no_error(t: &Tool) {
    let place = Place::new();
    for json in [false, true] {
        let mut command = tool(t.name);
        command.args(place.good_args(t));
        if json {
            command.arg("--json");
        }
        let ran = with_closed_stdout(&mut command);
        assert_eq!((ran.code, ran.stderr.as_str()), (0, ""), "json: {json}");
    }
}

fn output_to_a_full_disk_is_an_error(t: &Tool) {
    let place = Place::new();
    let args = place.good_args(t);
    let full = OpenOptions::new().write(true).open("/dev/full").unwrap();
    let ran = run_keeping_stdout(tool(t.name).args(args).stdout(Stdio::from(full)));
    assert_error(t, &ran, t.failed, "stdout");
}

fn reading_writes_nothing(t: &Tool) {
    let place = Place::new();
    let cache = place.cache();
    let before = state(&cache);
    let ran = run(tool(t.name).args(place.args(t, &cache)));
    assert_eq!(ran.code, 0, "{ran:?}");
    assert!(!ran.stdout.is_empty());
    assert!(state(&cache) == before, "the cache was written to");
}

fn a_cache_without_write_permission_can_be_read(t: &Tool) {
    let place = Place::new();
    let cache = place.cache();
    fs::set_permissions(&cache, Permissions::from_mode(0o444)).unwrap();
    assert_eq!(run(tool(t.name).args(place.args(t, &cache))).code, 0);
}

/// Runs the command with a stdout that nobody reads.
fn with_closed_stdout(command: &mut Command) -> Ran {
    let (reader, writer) = nix::unistd::pipe().unwrap();
    drop(reader);
    run_keeping_stdout(command.stdout(Stdio::from(writer)))
}

/// The tests of one tool: a module with one test per promise.
macro_rules! contract {
    ($module:ident, $tool:ident, [$($promise:ident),* $(,)?]) => {
        mod $module {
            $(#[test] fn $promise() { super::$promise(&super::$tool); })*
        }
    };
}

contract!(
    wb_format,
    FORMAT,
    [
        help_has_examples_and_exit_status,
        version_is_one_line,
        unknown_option_touches_nothing,
        wrong_log_filter_is_a_usage_error,
        help_into_a_closed_pipe_is_no_error,
        missing_file_is_named,
        directory_is_refused,
        character_device_is_refused,
        empty_file_is_refused,
        tiny_file_is_refused,
        unreadable_file_is_named,
        json_is_one_document,
        json_errors_leave_stdout_empty,
        output_into_a_closed_pipe_is_no_error,
        output_to_a_full_disk_is_an_error,
    ]
);

contract!(
    wb_check,
    CHECK,
    [
        help_has_examples_and_exit_status,
        version_is_one_line,
        unknown_option_touches_nothing,
        misspelt_config_key_is_named,
        wrong_log_filter_is_a_usage_error,
        help_into_a_closed_pipe_is_no_error,
        missing_file_is_named,
        directory_is_refused,
        character_device_is_refused,
        empty_file_is_refused,
        tiny_file_is_refused,
        zeroes_are_no_cache,
        random_bytes_are_no_cache,
        unreadable_file_is_named,
        json_is_one_document,
        json_errors_leave_stdout_empty,
        output_into_a_closed_pipe_is_no_error,
        output_to_a_full_disk_is_an_error,
        reading_writes_nothing,
        a_cache_without_write_permission_can_be_read,
    ]
);

contract!(
    wb_dump,
    DUMP,
    [
        help_has_examples_and_exit_status,
        version_is_one_line,
        unknown_option_touches_nothing,
        misspelt_config_key_is_named,
        wrong_log_filter_is_a_usage_error,
        help_into_a_closed_pipe_is_no_error,
        missing_file_is_named,
        directory_is_refused,
        character_device_is_refused,
        empty_file_is_refused,
        tiny_file_is_refused,
        zeroes_are_no_cache,
        random_bytes_are_no_cache,
        unreadable_file_is_named,
        json_is_one_document,
        json_errors_leave_stdout_empty,
        output_into_a_closed_pipe_is_no_error,
        output_to_a_full_disk_is_an_error,
        reading_writes_nothing,
        a_cache_without_write_permission_can_be_read,
    ]
);

contract!(
    wb_daemon,
    DAEMON,
    [
        help_has_examples_and_exit_status,
        version_is_one_line,
        unknown_option_touches_nothing,
        misspelt_config_key_is_named,
        wrong_log_filter_is_a_usage_error,
        help_into_a_closed_pipe_is_no_error,
        missing_file_is_named,
        directory_is_refused,
        character_device_is_refused,
        empty_file_is_refused,
        tiny_file_is_refused,
        zeroes_are_no_cache,
        random_bytes_are_no_cache,
        unreadable_file_is_named,
        json_errors_leave_stdout_empty,
    ]
);

contract!(
    wb_bench,
    BENCH,
    [
        help_has_examples_and_exit_status,
        version_is_one_line,
        unknown_option_touches_nothing,
        wrong_log_filter_is_a_usage_error,
        help_into_a_closed_pipe_is_no_error,
        missing_file_is_named,
        directory_is_refused,
        empty_file_is_refused,
        tiny_file_is_refused,
        json_errors_leave_stdout_empty,
    ]
);
