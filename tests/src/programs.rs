//! Programs of others as witnesses. One that is missing fails the test and names its package.

use crate::tool::{self, Ran};
use std::process::{Command, Stdio};

/// Runs a program of a Debian package, for a minute at most.
///
/// Panics if it is not installed or does not end; whether it succeeded is for the caller to see.
#[track_caller]
pub fn run(package: &str, program: &str, args: &[&str]) -> Ran {
    // The system's Python before any other: it is the one with the system's modules (libnbd).
    // Behind all others, where cargo installs programs.
    let var = |name| std::env::var(name).unwrap_or_default();
    let cargo = if var("CARGO_HOME").is_empty() { format!("{}/.cargo", var("HOME")) } else { var("CARGO_HOME") };
    let path = format!("/usr/bin:{}:{cargo}/bin", var("PATH"));
    let mut command = Command::new(program);
    command.args(args).env("PATH", path).stdin(Stdio::null());
    match tool::try_run(&mut command) {
        Ok(ran) => ran,
        Err(error) => panic!("cannot run {program}: {error}; install the package {package}"),
    }
}

/// [`run`] for programs that must succeed; their standard output.
#[track_caller]
pub fn check(package: &str, program: &str, args: &[&str]) -> String {
    let ran = run(package, program, args);
    assert!(ran.success(), "{program} {args:?} failed\n{}\n{}", ran.stdout, ran.stderr);
    ran.stdout
}
