//! Runs scenarios in a guest: QEMU, a Debian kernel that is unpacked but never installed, and an initramfs with busybox,
//! the programs that the scenario names (with the libraries that `ldd` names) and the modules that it needs.
//!
//! A crate of its own, because both the tests and the installed `wb-bench` use it.
//!
//! ```no_run
//! # fn main() -> anyhow::Result<()> {
//! let kernel = wb_guest::Kernel::find_or_download("6.12")?;
//! let mut image = wb_guest::Image::new()?;
//! image.program("lsblk")?;
//! let mut guest = wb_guest::Guest::new(kernel, image, "lsblk; echo hello > /out/greeting");
//! guest.modules(&["ublk_drv"]);
//! let outcome = guest.run()?;
//! outcome.check()?;
//! println!("{}", outcome.artefact("greeting")?);
//! # Ok(())
//! # }
//! ```
//!
//! The scenario is a shell script (`sh -eu`). Its output goes to the console and is collected; what it puts into `/out`
//! comes back as artefacts; its exit code is that of the guest. The guest ends with the scenario, or is killed at its
//! limit, with the process that started it, or by [`Running::kill`], which is a power cut for the guest.

mod cpio;
mod disk;
mod image;
mod kernel;
mod modules;
mod outcome;
mod qemu;
mod running;

pub use disk::Disk;
pub use image::Image;
pub use kernel::{Kernel, cache_dir};
pub use outcome::Outcome;
pub use qemu::{Accelerator, Guest};
pub use running::Running;

use anyhow::{Context as _, bail};
use std::path::PathBuf;
use std::process::Command;

/// The path of a program, looked up like a shell does and in the places of administration tools.
pub fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let usual = ["/usr/local/sbin", "/usr/sbin", "/sbin", "/usr/bin", "/bin"].map(PathBuf::from);
    std::env::split_paths(&path).chain(usual).map(|dir| dir.join(name)).find(|path| path.is_file())
}

/// What guests need and this machine lacks, as (program, Debian package). Kernels are looked for by [`Kernel::find`].
pub fn missing_programs() -> Vec<(&'static str, &'static str)> {
    let needed = [
        ("qemu-system-x86_64", "qemu-system-x86"),
        ("busybox", "busybox-static"),
        ("xz", "xz-utils"),
        ("ldd", "libc-bin"),
        ("tar", "tar"),
        ("setpriv", "util-linux"),
    ];
    needed.into_iter().filter(|(program, _)| find_program(program).is_none()).collect()
}

/// Fails with the packages to install unless guests can run here.
pub fn check_programs() -> anyhow::Result<()> {
    let missing = missing_programs();
    if missing.is_empty() {
        return Ok(());
    }
    let names: Vec<_> = missing.iter().map(|(program, _)| *program).collect();
    let packages: Vec<_> = missing.iter().map(|(_, package)| *package).collect();
    bail!("a guest needs {}: apt-get install {}", names.join(", "), packages.join(" "))
}

/// Runs a program to its end; its standard output if it succeeded.
fn output_of(command: &mut Command) -> anyhow::Result<Vec<u8>> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command.output().with_context(|| format!("cannot run {name}"))?;
    if !output.status.success() {
        bail!("{name} ended with {}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(output.stdout)
}
