//! Kernels: Debian packages, unpacked into a cache directory.

use anyhow::{Context as _, bail};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Finds, downloads and unpacks; `make setup` runs the same script.
const FETCH: &str = include_str!("fetch-kernel.sh");

/// A kernel with its modules.
#[derive(Debug, Clone)]
pub struct Kernel {
    /// As `uname -r` says it.
    pub release: String,
    /// The compressed kernel.
    pub image: PathBuf,
    /// Directory of its modules.
    pub modules: PathBuf,
}

/// Where kernels and what was found out about this machine are kept: `$WB_GUEST_DIR`, else
/// `$XDG_CACHE_HOME/writeboost/guest`, else `~/.cache/writeboost/guest`.
pub fn cache_dir() -> PathBuf {
    let var = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    if let Some(dir) = var("WB_GUEST_DIR") {
        return dir;
    }
    let home = || var("HOME").unwrap_or_else(|| "/root".into()).join(".cache");
    var("XDG_CACHE_HOME").unwrap_or_else(home).join("writeboost/guest")
}

impl Kernel {
    /// The newest kernel of a series (`6.12`) that is unpacked in [`cache_dir`].
    pub fn find(series: &str) -> anyhow::Result<Kernel> {
        let dir = cache_dir();
        let prefix = format!("{series}-");
        let complete = |path: &PathBuf| {
            path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(&prefix))
                && path.join("boot").is_dir()
        };
        let entries = std::fs::read_dir(&dir).into_iter().flatten().flatten().map(|entry| entry.path());
        let mut trees: Vec<PathBuf> = entries.filter(complete).collect();
        trees.sort_by_key(|tree| numbers(&tree.to_string_lossy()));
        match trees.last() {
            Some(tree) => Kernel::in_tree(tree),
            None => bail!("no kernel {series} for guests in {}: run `make setup`", dir.display()),
        }
    }

    /// [`Kernel::find`], or downloads it with apt.
    pub fn find_or_download(series: &str) -> anyhow::Result<Kernel> {
        if let Ok(kernel) = Kernel::find(series) {
            return Ok(kernel);
        }
        let mut command = Command::new("sh");
        command.args(["-c", FETCH, "fetch-kernel"]).arg(cache_dir()).arg(series).stdin(Stdio::null());
        crate::output_of(&mut command).with_context(|| format!("no kernel {series} for guests"))?;
        Kernel::find(series)
    }

    /// The kernel that a package unpacked into `tree` (`boot/vmlinuz-*`, `lib/modules/*`).
    pub fn in_tree(tree: &Path) -> anyhow::Result<Kernel> {
        let entries = std::fs::read_dir(tree.join("boot")).with_context(|| format!("no boot in {}", tree.display()))?;
        for entry in entries.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if let Some(release) = name.strip_prefix("vmlinuz-") {
                let lib = [tree.join("usr/lib/modules"), tree.join("lib/modules")].into_iter().find(|dir| dir.is_dir());
                let lib = lib.with_context(|| format!("{} has no modules", tree.display()))?;
                let modules = lib.join(release);
                return Ok(Kernel { release: release.into(), image: entry.path(), modules });
            }
        }
        bail!("{} has no boot/vmlinuz-*", tree.display())
    }
}

/// The numbers in a name, for comparing versions.
fn numbers(text: &str) -> Vec<u64> {
    text.split(|c: char| !c.is_ascii_digit()).filter_map(|digits| digits.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_compare_by_number_not_by_text() {
        assert!(numbers("6.12-linux-image-6.12.117+deb12") > numbers("6.12-linux-image-6.12.99+deb12"));
    }
}
