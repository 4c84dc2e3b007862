//! What was typed -> what it means, for every tool, with and without config file.

use std::path::{Path, PathBuf};
use wb_cli::bench_args::{BenchArgs, BenchPlan, Peer, Place, Target};
use wb_cli::check_args::{CheckAction, CheckArgs};
use wb_cli::config::{ListenAddr, Ublk};
use wb_cli::control::{Request, Setting};
use wb_cli::daemon_args::{DaemonArgs, DaemonPlan, RunPlan};
use wb_cli::dump_args::{DumpArgs, DumpWhat};
use wb_cli::format_args::FormatArgs;
use wb_cli::{Tool, error};

const ONE: &str = "[[cache]]\nname = \"fast\"\ndevice = \"/dev/c1\"\nbacking = \"/dev/b1\"\nexport = \"disk\"\n";
const TWO: &str = "[[cache]]\nname = \"fast\"\ndevice = \"/dev/c1\"\nbacking = \"/dev/b1\"\nread_only = true\n\
    [[cache]]\nname = \"big\"\ndevice = \"/dev/c2\"\nbacking = \"/dev/b2\"\ncontrol = \"/run/big\"\n";

/// A config file that exists as long as this.
struct ConfigFile(tempfile::TempDir);

impl ConfigFile {
    fn new(text: &str) -> ConfigFile {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("wb.toml"), text).unwrap();
        ConfigFile(dir)
    }
    fn path(&self) -> String {
        self.0.path().join("wb.toml").to_str().unwrap().to_string()
    }
}

fn resolve<T: Tool>(config: &ConfigFile, args: &str) -> anyhow::Result<T::Plan> {
    let path = config.path();
    let line = ["tool"].into_iter().chain(args.split_whitespace()).chain(["--config", &path]);
    T::try_parse_from(line)?.resolve()
}

/// The message of a usage error.
fn usage_error<T: Tool>(config: &ConfigFile, args: &str) -> String
where
    T::Plan: std::fmt::Debug,
{
    let err = resolve::<T>(config, args).unwrap_err();
    let text = error::describe(&err);
    assert!(error::is_usage(&err) || err.is::<clap::Error>(), "{text}");
    text
}

fn serve(config: &ConfigFile, args: &str) -> RunPlan {
    match resolve::<DaemonArgs>(config, args).unwrap() {
        DaemonPlan::Run(plan) => *plan,
        other => panic!("{other:?}"),
    }
}

fn ask(config: &ConfigFile, args: &str) -> (PathBuf, Vec<Request>) {
    match resolve::<DaemonArgs>(config, args).unwrap() {
        DaemonPlan::Client { control, requests } => (control, requests),
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_owners_commands_mean_what_they_say() {
    let config = ConfigFile::new(ONE);
    let plan = resolve::<FormatArgs>(&config, "/dev/x").unwrap();
    assert_eq!((plan.cache.as_path(), plan.segment_bytes, plan.force), (Path::new("/dev/x"), 2 << 20, false));
    let plan = resolve::<CheckArgs>(&config, "--repair").unwrap();
    assert_eq!(plan.cache, Path::new("/dev/c1"));
    assert_eq!(plan.action, CheckAction::Repair { yes: false, backup: None });
    let plan = resolve::<DumpArgs>(&config, "segment 42").unwrap();
    assert_eq!((plan.cache.as_path(), plan.what), (Path::new("/dev/c1"), DumpWhat::Segment { segment: 42 }));
    let BenchPlan::Compare(plan) = resolve::<BenchArgs>(&config, "--compare bcache,dm-cache").unwrap() else {
        panic!()
    };
    assert_eq!((plan.peers, plan.place), (vec![Peer::Bcache, Peer::DmCache], Place::Guest));
}

#[test]
fn wb_format_needs_its_device_named_whatever_the_config_says() {
    let err = usage_error::<FormatArgs>(&ConfigFile::new(ONE), "");
    assert!(err.contains("<CACHE>"), "{err}");
}

#[test]
fn wb_format_checks_sizes_and_label() {
    let config = ConfigFile::new("");
    for (args, part) in [
        ("x --segment-size 3MiB", "power of two"),
        ("x --segment-size 1K", "power of two"),
        ("x --size 5000", "multiple of 4096"),
        ("x --size lots", "number is missing"),
        ("x --discard-dirty no-uuid", "UUID"),
    ] {
        let err = usage_error::<FormatArgs>(&config, args);
        assert!(err.contains(part), "{args}: {err}");
    }
    let long = format!("x --label {}", "l".repeat(65));
    assert!(usage_error::<FormatArgs>(&config, &long).contains("64 bytes"));
    assert_eq!(resolve::<FormatArgs>(&config, "x --size 1GiB").unwrap().size_bytes, Some(1 << 30));
}

#[test]
fn with_none_or_several_caches_the_error_says_what_to_name() {
    let none = usage_error::<DumpArgs>(&ConfigFile::new(""), "summary");
    assert!(none.contains("has no [[cache]]") && none.contains("--cache CACHE"), "{none}");
    let several = usage_error::<CheckArgs>(&ConfigFile::new(TWO), "");
    assert!(several.contains("/dev/c1 (fast), /dev/c2 (big)"), "{several}");
    let missing = usage_error::<CheckArgs>(&ConfigFile(tempfile::tempdir().unwrap()), "");
    assert!(missing.contains("wb.toml") && missing.contains("--config FILE"), "{missing}");
}

#[test]
fn replay_finds_the_backing_device_of_a_configured_cache() {
    let two = ConfigFile::new(TWO);
    let plan = resolve::<CheckArgs>(&two, "--replay /dev/c2").unwrap();
    assert_eq!(plan.action, CheckAction::Replay { backing: "/dev/b2".into() });
    assert!(usage_error::<CheckArgs>(&two, "--replay /dev/other").contains("--backing DEV"));
    assert!(usage_error::<CheckArgs>(&two, "--replay --backing /dev/x /dev/x").contains("as cache and as backing"));
    assert!(usage_error::<CheckArgs>(&two, "--replay --repair /dev/c2").contains("cannot be used with"));
    assert!(usage_error::<CheckArgs>(&two, "--yes /dev/c2").contains("--repair"));
}

#[test]
fn run_takes_everything_from_the_options() {
    let plan =
        serve(&ConfigFile::new(""), "run --cache c --backing /x/b.img --nbd unix:/s --nbd 127.0.0.1:1 --accept-loss");
    assert!(plan.accept_loss);
    assert_eq!(plan.cache.name, "b.img");
    let addresses = plan.cache.nbd_addresses();
    assert_eq!(addresses, [ListenAddr::Unix("/s".into()), ListenAddr::Tcp { host: "127.0.0.1".into(), port: 1 }]);
}

#[test]
fn run_takes_a_section_and_options_override_it() {
    let (one, two) = (ConfigFile::new(ONE), ConfigFile::new(TWO));
    let plan = serve(&one, "run");
    assert_eq!((plan.cache.device.to_str(), plan.cache.export_name()), (Some("/dev/c1"), "disk"));
    for args in ["run --name fast", "run --cache /dev/c1", "run --backing /dev/b1"] {
        let plan = serve(&two, args);
        assert!(plan.cache.name == "fast" && plan.cache.read_only, "{args}");
    }
    let plan = serve(&two, "run --name big --ublk 3 --control /c --read-only");
    assert_eq!((plan.cache.ublk, plan.cache.read_only), (Ublk::Id(3), true));
    assert_eq!(plan.cache.control_path(), Path::new("/c"));
    assert!(plan.cache.nbd_addresses().is_empty(), "ublk alone when nothing else is named");
    assert_eq!(serve(&two, "run --name big --ublk").cache.ublk, Ublk::Any);
}

#[test]
fn run_says_what_to_name() {
    let (none, two) = (ConfigFile::new(""), ConfigFile::new(TWO));
    for (config, args, part) in [
        (&two, "run", "--name: fast, big"),
        (&two, "run --name other", "fits the options"),
        (&two, "run --cache /dev/c1 --backing /dev/c1", "needs two"),
        (&two, "run --name ../x", "is no name"),
        (&none, "run --cache /dev/c1", "--backing"),
        (&none, "run --cache c --backing b --nbd nowhere", "HOST:PORT"),
    ] {
        let err = usage_error::<DaemonArgs>(config, args);
        assert!(err.contains(part), "{args}: {err}");
    }
}

#[test]
fn clients_find_the_socket() {
    let (one, two) = (ConfigFile::new(ONE), ConfigFile::new(TWO));
    assert!(ask(&one, "status").0.ends_with("writeboost/fast.sock"));
    assert_eq!(ask(&two, "status --name big").0, Path::new("/run/big"));
    assert!(ask(&two, "status --name unknown").0.ends_with("writeboost/unknown.sock"));
    assert_eq!(ask(&two, "status --control /c").0, Path::new("/c"));
    assert!(usage_error::<DaemonArgs>(&two, "status").contains("--name: fast, big"));
}

#[test]
fn clients_ask_for_what_was_typed() {
    let one = ConfigFile::new(ONE);
    assert_eq!(ask(&one, "drain").1, [Request::Drain { wait: true }]);
    assert_eq!(ask(&one, "detach --no-wait").1, [Request::Detach { wait: false }]);
    assert_eq!(
        ask(&one, "stop --timeout 90s").1,
        [Request::Stop { drain: false, timeout_ms: Some(90_000), force: false }]
    );
    let settings = [Setting::WritebackStartPercent(50), Setting::WritebackStopPercent(5)];
    let requests = ask(&one, "set writeback.start_percent=50 writeback.stop_percent=5").1;
    assert_eq!(requests, settings.map(Request::Set));
    assert!(usage_error::<DaemonArgs>(&one, "set writeback.start=50").contains("did you mean"));
}

#[test]
fn bench_needs_exactly_one_target() {
    let config = ConfigFile::new("");
    let BenchPlan::Run(plan) = resolve::<BenchArgs>(&config, "run sync --cache c --backing b").unwrap() else {
        panic!()
    };
    assert_eq!(plan.target, Target::Engine { cache: "c".into(), backing: "b".into() });
    assert_eq!((plan.flush_every, plan.block_bytes), (Some(1), 4096));
    for (args, part) in [
        ("", "run WORKLOAD"),
        ("run sync", "--nbd-uri"),
        ("run sync --cache c", "--backing"),
        ("run sync --device d --nbd-uri u", "cannot be used with"),
        ("run sync --device d --bs 100", "multiple of 512"),
        ("run swim --device d", "possible values"),
        ("--compare nothing", "possible values"),
        ("--full", "--compare"),
        ("--compare bcache --cache-device a", "--backing-device"),
        ("--compare bcache --cache-device a --backing-device a", "as cache and as backing"),
        ("--compare bcache --ssd-size 1MiB", "at least 128MiB"),
        ("--compare bcache --disk-size 512MiB", "four times"),
        ("--compare bcache --dilation 0", "--dilation"),
        ("--compare bcache --cache-device a --backing-device b --dilation 2", "cannot be used with"),
        ("--only burst", "--compare"),
        ("model-disk --model hdd --size 1GiB", "--socket"),
        ("model-disk --model hdd --size 1000 --socket s", "multiple of 4096"),
        ("model-disk --model hdd --size 1GiB --socket s --sector 4000", "512 or 4096"),
        ("report", "RESULT"),
    ] {
        let err = usage_error::<BenchArgs>(&config, args);
        assert!(err.contains(part), "{args}: {err}");
    }
}
