//! The checked-in man pages and completions are what the tools' definitions give, and wb-man notices if not.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

fn wb_man(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_wb-man")).args(args).output().unwrap()
}

#[test]
fn what_is_checked_in_is_up_to_date() {
    let out = wb_man(&["--check", "--dir", env!("CARGO_MANIFEST_DIR")]);
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
}

#[test]
fn check_notices_old_missing_and_stray_files() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().to_str().unwrap();
    let complains = |part: &str| {
        let out = wb_man(&["--check", "--dir", path]);
        let err = String::from_utf8_lossy(&out.stderr).into_owned();
        assert!(!out.status.success() && err.contains(part), "{part}: {err}");
    };
    complains("pages/wb-check.8");
    assert!(wb_man(&["--dir", path]).status.success());
    assert!(wb_man(&["--check", "--dir", path]).status.success());
    fs::write(dir.path().join("pages/wb-old.8"), "x").unwrap();
    complains("pages/wb-old.8 belongs to nothing");
    fs::remove_file(dir.path().join("pages/wb-old.8")).unwrap();
    fs::remove_file(dir.path().join("completions/zsh/_wb-dump")).unwrap();
    complains("completions/zsh/_wb-dump");
    assert!(wb_man(&["--dir", path]).status.success());
    fs::write(dir.path().join("pages/wb-dump.8"), "x").unwrap();
    complains("pages/wb-dump.8 is out of date");
}

#[test]
fn the_output_does_not_depend_on_environment_or_place() {
    let [a, b] = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    for (dir, columns, config) in [(&a, "40", "/x/y.toml"), (&b, "200", "")] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_wb-man"));
        command.env("COLUMNS", columns).env("TZ", "Asia/Tokyo").env_remove("WB_CONFIG");
        if !config.is_empty() {
            command.env("WB_CONFIG", config);
        }
        assert!(command.arg("--dir").arg(dir.path()).status().unwrap().success());
    }
    for page in fs::read_dir(a.path().join("pages")).unwrap() {
        let page = page.unwrap();
        let other = b.path().join("pages").join(page.file_name());
        assert_eq!(fs::read(page.path()).unwrap(), fs::read(other).unwrap());
    }
}

#[test]
fn every_page_has_examples_and_every_tool_its_exit_status() {
    let pages = Path::new(env!("CARGO_MANIFEST_DIR")).join("pages");
    for page in ["wb-format.8", "wb-daemon.8", "wb-check.8", "wb-dump.8", "wb-bench.1"] {
        let text = fs::read_to_string(pages.join(page)).unwrap();
        for section in [".SH NAME", ".SH SYNOPSIS", ".SH OPTIONS", ".SH EXAMPLES", ".SH \"EXIT STATUS\""] {
            assert!(text.lines().any(|line| line == section), "{page}: {section}");
        }
    }
    let text = fs::read_to_string(pages.join("writeboost.toml.5")).unwrap();
    assert!(text.contains(".SH EXAMPLES") && text.contains("read_only"));
}
