//! `make install`: files where a distribution expects them, a unit that systemd understands, and `make uninstall`.

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use wb_tests::tool::bin_dir;

const TOOLS: [&str; 5] = ["wb-bench", "wb-check", "wb-daemon", "wb-dump", "wb-format"];

fn make(target: &str, variables: &[String]) {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut command = Command::new("make");
    // Not the variables of a make that runs this test.
    command.env_remove("MAKEFLAGS").env_remove("MAKELEVEL").current_dir(workspace).arg("-s").arg(target);
    // The programs of this build in place of those of a release.
    let output = command.arg(format!("RELEASE={}", bin_dir().display())).args(variables).output().expect("make runs");
    assert!(output.status.success(), "make {target}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Files below a directory, with their permissions.
fn files(root: &Path) -> BTreeSet<(String, u32)> {
    let mut found = BTreeSet::new();
    let mut dirs = vec![PathBuf::from(root)];
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(dir).expect("readable").flatten() {
            let metadata = entry.metadata().expect("there");
            if metadata.is_dir() {
                dirs.push(entry.path());
            } else {
                let path = entry.path().strip_prefix(root).expect("below").to_string_lossy().into_owned();
                found.insert((path, metadata.permissions().mode() & 0o7777));
            }
        }
    }
    found
}

/// What is installed for a prefix without its leading slash, with the directories for unit and rule.
fn expected(prefix: &str, rules: &str) -> BTreeSet<(String, u32)> {
    let mut all = BTreeSet::new();
    for tool in TOOLS {
        all.insert((format!("{prefix}/bin/{tool}"), 0o755));
        let section = if tool == "wb-bench" { 1 } else { 8 };
        all.insert((format!("{prefix}/share/man/man{section}/{tool}.{section}"), 0o644));
        all.insert((format!("{prefix}/share/bash-completion/completions/{tool}"), 0o644));
        all.insert((format!("{prefix}/share/zsh/site-functions/_{tool}"), 0o644));
        all.insert((format!("{prefix}/share/fish/vendor_completions.d/{tool}.fish"), 0o644));
    }
    for file in ["writeboost.toml.example", "LICENSE-MIT", "LICENSE-APACHE"] {
        all.insert((format!("{prefix}/share/doc/writeboost/{file}"), 0o644));
    }
    all.insert((format!("{prefix}/share/man/man5/writeboost.toml.5"), 0o644));
    all.insert((format!("{prefix}/lib/systemd/system/writeboost@.service"), 0o644));
    all.insert((format!("{rules}/60-writeboost.rules"), 0o644));
    all
}

#[test]
fn files_are_installed_where_a_distribution_expects_them_and_all_of_them_are_removed() {
    // As for a package, and as for an administrator.
    for (prefix, rules) in [("/usr", "usr/lib/udev/rules.d"), ("/usr/local", "etc/udev/rules.d")] {
        let root = tempfile::tempdir().expect("a directory");
        let variables = [format!("DESTDIR={}", root.path().display()), format!("PREFIX={prefix}")];
        make("install", &variables);
        assert_eq!(files(root.path()), expected(&prefix[1..], rules));
        // For where it will be, not for where it is put together.
        let unit = root.path().join(&prefix[1..]).join("lib/systemd/system/writeboost@.service");
        let unit = std::fs::read_to_string(unit).expect("installed");
        assert!(unit.contains(&format!("ExecStart={prefix}/bin/wb-daemon run ")) && !unit.contains("@BINDIR@"));
        let version = Command::new(root.path().join(&prefix[1..]).join("bin/wb-daemon")).arg("--version").output();
        let version = version.expect("it runs").stdout;
        assert_eq!(String::from_utf8_lossy(&version).trim(), format!("wb-daemon {}", env!("CARGO_PKG_VERSION")));
        make("uninstall", &variables);
        assert_eq!(files(root.path()), BTreeSet::new());
    }
}

#[test]
fn systemd_understands_the_unit_and_has_nothing_to_say_against_it() {
    let root = tempfile::tempdir().expect("a directory");
    let path = root.path().display();
    make("install", &[format!("PREFIX={path}"), format!("RULEDIR={path}/rules")]);
    let units = root.path().join("lib/systemd/system");
    let instance = units.join("writeboost@data.service");
    std::fs::copy(units.join("writeboost@.service"), &instance).expect("copied");
    let verify = |unit: &Path| {
        let mut command = Command::new("systemd-analyze");
        let output = command.args(["verify", "--man=no", "--recursive-errors=no"]).arg(unit).output();
        let output = output.expect("systemd-analyze (package systemd) runs");
        (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    assert_eq!(verify(&instance), (true, String::new()));
    // It would say so.
    let text = std::fs::read_to_string(&instance).expect("readable");
    std::fs::write(&instance, text.replace("KillMode=mixed", "KillMood=mixed")).expect("written");
    assert!(verify(&instance).1.contains("KillMood"), "{}", verify(&instance).1);
}
