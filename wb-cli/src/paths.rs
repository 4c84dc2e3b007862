//! Where sockets lie, and how things are named.

use std::path::{Path, PathBuf};

/// Directory of control and NBD sockets of daemons that run as root.
pub const RUN_DIR: &str = "/run/writeboost";

/// Directory for sockets: [`RUN_DIR`] for root; for others `$XDG_RUNTIME_DIR/writeboost` if that is set.
pub fn run_dir() -> PathBuf {
    if !nix::unistd::geteuid().is_root()
        && let Some(dir) = std::env::var_os("XDG_RUNTIME_DIR").filter(|d| !d.is_empty())
    {
        return PathBuf::from(dir).join("writeboost");
    }
    PathBuf::from(RUN_DIR)
}

/// Default path of the control socket of the daemon `name`.
pub fn control_socket(name: &str) -> PathBuf {
    run_dir().join(format!("{name}.sock"))
}

/// Default path of the NBD socket of the daemon `name`.
pub fn nbd_socket(name: &str) -> PathBuf {
    run_dir().join(format!("{name}.nbd"))
}

/// Directory of RAM tails: memory that outlives the daemon and not the boot.
pub fn tail_dir() -> PathBuf {
    let user = nix::unistd::geteuid();
    if user.is_root() { PathBuf::from("/dev/shm/writeboost") } else { format!("/dev/shm/writeboost-{user}").into() }
}

/// The name a cache gets if none is given: the file name of its backing device, with `-` for what a name may not hold.
pub fn name_for(backing: &Path) -> String {
    let name: String = backing
        .file_name()
        .map(|n| n.to_string_lossy().into_owned())
        .unwrap_or_default()
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '-' })
        .collect();
    let name: String = name.trim_start_matches('.').chars().take(NAME_BYTES_MAX).collect();
    if name.is_empty() { "cache".into() } else { name }
}

/// Longest name, so that a socket path made of it fits sun_path (108 bytes, unix(7)).
pub const NAME_BYTES_MAX: usize = 48;

/// Checks a name: 1 to 48 ASCII letters, digits, `.`, `_`, `-`, not beginning with a dot. It becomes part of paths.
pub fn check_name(name: &str) -> Result<(), String> {
    let fits = (1..=NAME_BYTES_MAX).contains(&name.len());
    let clean = name.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c));
    if fits && clean && !name.starts_with('.') {
        return Ok(());
    }
    Err(format!(
        "{name:?} is no name: use 1 to {NAME_BYTES_MAX} letters, digits, '.', '_', '-', not beginning with '.'"
    ))
}

/// [`check_name`] as clap wants it.
pub fn parse_name(name: &str) -> Result<String, String> {
    check_name(name).map(|()| name.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_made_from_paths_are_names() {
        for (path, name) in [
            ("/dev/sdb", "sdb"),
            ("disk.img", "disk.img"),
            ("/a b/ü?.img", "--.img"),
            ("/", "cache"),
            ("/x/.hid", "hid"),
        ] {
            assert_eq!(name_for(Path::new(path)), name);
            check_name(name).unwrap();
        }
        for bad in ["", "../x", ".x", "a/b", "a b", &"x".repeat(49)] {
            assert!(check_name(bad).is_err(), "{bad}");
        }
    }
}
