//! What a comparison needs: programs, kernel modules, rights. Named exactly, so that nobody has to guess.

use nix::sys::utsname::uname;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use wb_cli::bench_args::{BlockDevice, ComparePlan, Peer, Place};

/// One thing that is needed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Need {
    /// A program in PATH or in a folder for administration, and the Debian package that brings it.
    Program(&'static str, &'static str),
    /// A module of the running kernel.
    Module(&'static str),
    /// Root's rights.
    Root,
}

impl fmt::Display for Need {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Need::Program(name, package) => write!(f, "the program {name} (package {package})"),
            Need::Module(name) => write!(f, "the kernel module {name}"),
            Need::Root => f.write_str("root's rights"),
        }
    }
}

/// Everything that `plan` needs, each once.
pub fn of(plan: &ComparePlan) -> Vec<Need> {
    let mut needs = vec![Need::Program("fio", "fio")];
    match plan.place {
        Place::Guest => {
            needs.extend(GUEST);
            needs.extend(plan.peers.iter().flat_map(|peer| of_peer(*peer)).filter(|n| matches!(n, Need::Program(..))));
        }
        Place::Host { .. } => {
            needs.push(Need::Root);
            match plan.tuning.transport {
                BlockDevice::Ublk => needs.push(Need::Module("ublk_drv")),
                BlockDevice::Nbd => needs.extend([Need::Module("nbd"), Need::Program("nbd-client", "nbd-client")]),
            }
            needs.extend(plan.peers.iter().flat_map(|peer| of_peer(*peer)));
        }
    }
    needs.sort();
    needs.dedup();
    needs
}

/// What a guest is made of. Its kernel is looked for, and fetched, when it is needed.
const GUEST: [Need; 8] = [
    Need::Program("qemu-system-x86_64", "qemu-system-x86"),
    Need::Program("busybox", "busybox-static"),
    Need::Program("xz", "xz-utils"),
    Need::Program("tar", "tar"),
    Need::Program("setpriv", "util-linux"),
    Need::Program("nbd-client", "nbd-client"),
    Need::Program("mkfs.ext4", "e2fsprogs"),
    Need::Program("sqlite3", "sqlite3"),
];

fn of_peer(peer: Peer) -> &'static [Need] {
    const DMSETUP: Need = Need::Program("dmsetup", "dmsetup");
    match peer {
        Peer::Bcache => &[Need::Module("bcache"), Need::Program("make-bcache", "bcache-tools")],
        Peer::DmCache => &[Need::Module("dm_cache"), Need::Module("dm_cache_smq"), DMSETUP],
        Peer::DmWritecache => &[Need::Module("dm_writecache"), DMSETUP],
        Peer::DmWriteboost => &[Need::Module("dm_writeboost"), DMSETUP],
        Peer::RawSsd | Peer::RawDisk => &[],
    }
}

/// Those of `needs` that this host does not have.
pub fn missing(needs: &[Need]) -> Vec<Need> {
    needs.iter().copied().filter(|need| !is_there(*need)).collect()
}

fn is_there(need: Need) -> bool {
    match need {
        Need::Program(name, _) => program(name),
        Need::Module(name) => module(name),
        Need::Root => nix::unistd::geteuid().is_root(),
    }
}

fn program(name: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let admin = ["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from);
    std::env::split_paths(&path).chain(admin).any(|dir| dir.join(name).is_file())
}

/// True if the module is loaded, built in, or can be loaded into the running kernel.
fn module(name: &str) -> bool {
    if Path::new("/sys/module").join(name).exists() {
        return true;
    }
    let Ok(kernel) = uname() else { return false };
    let dir = Path::new("/lib/modules").join(kernel.release());
    ["modules.dep", "modules.builtin"].iter().any(|list| {
        fs::read_to_string(dir.join(list)).is_ok_and(|text| text.lines().any(|line| names_module(line, name)))
    })
}

/// True if a line of modules.dep ("kernel/drivers/md/dm-cache.ko.xz: ...") or modules.builtin is about module `name`.
/// In file names `-` and `_` are the same (modules.dep(5)).
fn names_module(line: &str, name: &str) -> bool {
    let path = line.split(':').next().unwrap_or_default();
    let file = path.rsplit('/').next().unwrap_or_default();
    file.split('.').next().is_some_and(|stem| stem.replace('-', "_") == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_are_found_by_their_file_names() {
        assert!(names_module("kernel/drivers/md/dm-cache.ko.xz: kernel/drivers/md/dm-mod.ko.xz", "dm_cache"));
        assert!(names_module("kernel/drivers/md/bcache/bcache.ko", "bcache"));
        assert!(!names_module("kernel/drivers/md/dm-cache-smq.ko: kernel/drivers/md/dm-cache.ko", "dm_cache"));
        assert!(!names_module("", "dm_cache"));
    }

    #[test]
    fn a_guest_needs_no_rights_and_a_host_names_each_thing_once() {
        let mut plan = ComparePlan {
            peers: vec![Peer::DmCache, Peer::DmWritecache],
            place: Place::Guest,
            full: false,
            html: None,
            tuning: wb_cli::bench_args::CompareTuning::default().resolve().expect("defaults"),
        };
        assert!(!of(&plan).contains(&Need::Root));
        plan.place = Place::Host { cache_device: "/dev/a".into(), backing_device: "/dev/b".into(), yes: false };
        let needs = of(&plan);
        assert_eq!(needs.iter().filter(|n| matches!(n, Need::Program("dmsetup", _))).count(), 1);
        assert!(needs.contains(&Need::Module("dm_writecache")) && needs.contains(&Need::Root));
        assert!(needs.contains(&Need::Module("ublk_drv")), "our own block device");
    }

    #[test]
    fn what_is_not_there_is_missing() {
        let absent = Need::Program("no-such-program-here", "none");
        assert_eq!(missing(&[Need::Program("sh", "dash"), absent]), [absent]);
        assert_eq!(missing(&[Need::Module("no_such_module")]), [Need::Module("no_such_module")]);
    }
}
