//! RAM tails as files in shared memory: a directory that only its owner can enter, on a filesystem that lives in memory.

use crate::io::Region;
use crate::tail::{TailError, TailName, TailStore};
use nix::errno::Errno;
use nix::fcntl::{OFlag, open, openat};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, mmap_anonymous, munmap};
use nix::sys::stat::{Mode, SFlag, fstat, mkdirat};
use nix::unistd::{UnlinkatFlags, geteuid, unlinkat};
use std::num::NonZeroUsize;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::ptr::NonNull;
use std::sync::Arc;
use uuid::Uuid;

/// Ends the names of tails, `CACHE.ID.tail`.
const SUFFIX: &str = ".tail";
/// `TMPFS_MAGIC` and `RAMFS_MAGIC` of the kernel's uapi/linux/magic.h: what is there is gone after a power cut.
const IN_MEMORY: [i64; 2] = [0x0102_1994, 0x8584_58f6];

/// A huge page where it has the usual size. Elsewhere the kernel refuses the advice, and pages are small.
const HUGE_BYTES: usize = 2 << 20;

/// The tails in a directory.
#[derive(Debug, Clone)]
pub struct ShmTails {
    dir: PathBuf,
}

fn failed(what: String, errno: Errno, next_step: &'static str) -> TailError {
    TailError::Store { what, error: errno.desc().to_string(), next_step }
}

impl ShmTails {
    /// Tails in `dir`, which is made, owner-only, when the first tail is.
    pub fn new(dir: &Path) -> ShmTails {
        ShmTails { dir: dir.into() }
    }

    fn path(&self, name: TailName) -> PathBuf {
        self.dir.join(file_name(name))
    }

    fn open_dir(&self) -> nix::Result<OwnedFd> {
        open(&self.dir, OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC, Mode::empty())
    }

    /// The directory, if it is there and nobody else's.
    fn dir(&self) -> Result<Option<OwnedFd>, TailError> {
        let path = self.dir.display();
        let fd = match self.open_dir() {
            Ok(fd) => fd,
            Err(Errno::ENOENT) => return Ok(None),
            Err(errno) => {
                return Err(failed(format!("opening the directory {path} of RAM tails failed"), errno, NAME_DIR));
            }
        };
        let status = fstat(&fd).map_err(|errno| failed(format!("looking at {path} failed"), errno, NAME_DIR))?;
        // Whoever could write there could put other data into the volume.
        let private = status.st_uid == geteuid().as_raw() && status.st_mode & 0o077 == 0;
        if !private {
            return Err(TailError::Store {
                what: format!("{path} holds RAM tails and is open to others"),
                error: format!("owner {}, mode {:o}", status.st_uid, status.st_mode & 0o7777),
                next_step: "It must belong to the user of the daemon, with mode 0700",
            });
        }
        Ok(Some(fd))
    }

    fn dir_or_make(&self) -> Result<OwnedFd, TailError> {
        if let Some(fd) = self.dir()? {
            return Ok(fd);
        }
        let path = self.dir.display();
        let parent = self.dir.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let made = open(parent, OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty()).and_then(|parent| {
            let name = self.dir.file_name().ok_or(Errno::EINVAL)?;
            match mkdirat(&parent, name, Mode::S_IRWXU) {
                Ok(()) | Err(Errno::EEXIST) => Ok(()),
                Err(errno) => Err(errno),
            }
        });
        made.map_err(|errno| failed(format!("making the directory {path} for the RAM tail failed"), errno, NAME_DIR))?;
        self.dir()?.ok_or_else(|| failed(format!("{path} vanished"), Errno::ENOENT, NAME_DIR))
    }

    fn map(&self, name: TailName, fd: OwnedFd, bytes: usize) -> Result<Region, TailError> {
        let path = self.path(name);
        let what = || format!("mapping the RAM tail {} failed", path.display());
        // SAFETY: no pointers. The claim on the cache device keeps others away already; this is a second bolt, and it
        // lives and dies with the descriptor, which the region keeps.
        Errno::result(unsafe { libc::flock(fd.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) }).map_err(|errno| {
            failed(format!("locking the RAM tail {} failed", path.display()), errno, "Stop who holds it")
        })?;
        // The file has its memory already; populated, the first write to each page costs no fault.
        let ptr = map_aligned(&fd, bytes, MapFlags::MAP_POPULATE).map_err(|errno| failed(what(), errno, NAME_DIR))?;
        // SAFETY: just mapped and known to nobody; the file is allocated in full, in a directory that nobody else may
        // enter, and nothing here makes it shorter.
        Ok(unsafe { Region::from_mapping(ptr, bytes, Box::new(fd)) })
    }
}

/// Maps a file, shared, at an address that lets huge pages of it be mapped as such. The kernel chooses such addresses by
/// itself only where huge pages are switched on for shared memory.
fn map_aligned(fd: &OwnedFd, bytes: usize, flags: MapFlags) -> nix::Result<NonNull<u8>> {
    let len = NonZeroUsize::new(bytes.next_multiple_of(crate::types::BLOCK_BYTES)).ok_or(Errno::EINVAL)?;
    let room = len.checked_add(HUGE_BYTES).ok_or(Errno::ENOMEM)?;
    // SAFETY: a new mapping touches no memory that anybody has.
    let reserved = unsafe { mmap_anonymous(None, room, ProtFlags::PROT_NONE, MapFlags::MAP_PRIVATE) }?;
    let before = reserved.addr().get().next_multiple_of(HUGE_BYTES) - reserved.addr().get();
    let after = HUGE_BYTES - before;
    // SAFETY: all three are parts of what was just reserved, and nobody knows of it.
    unsafe {
        let place = reserved.byte_add(before);
        let access = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        let mapped = mmap(Some(place.addr()), len, access, MapFlags::MAP_SHARED | MapFlags::MAP_FIXED | flags, fd, 0);
        if mapped.is_err() {
            munmap(reserved, room.get())?;
            return mapped.map(NonNull::cast);
        }
        for (part, bytes) in [(reserved, before), (place.byte_add(len.get()), after)] {
            if bytes > 0 {
                munmap(part, bytes)?;
            }
        }
        mapped.map(NonNull::cast)
    }
}

/// Gives a file that is still empty huge pages, as far as the kernel has some at hand, whatever its settings for shared
/// memory say: a record that lies in one piece is handed to the device as one, not as 249 pages. Without them all is the
/// same, and slower. One page of each huge one must be there before; these are the only ones that the kernel has to copy.
fn collapse_into_huge_pages(fd: &OwnedFd, bytes: usize) -> nix::Result<()> {
    let bytes = bytes - bytes % HUGE_BYTES;
    if bytes == 0 {
        return Ok(());
    }
    nix::unistd::ftruncate(fd, bytes as i64)?;
    for offset in (0..bytes).step_by(HUGE_BYTES) {
        nix::sys::uio::pwrite(fd, &[0], offset as i64)?;
    }
    let ptr = map_aligned(fd, bytes, MapFlags::empty())?.cast();
    // SAFETY: mapped here, unmapped here; the advice changes no content.
    unsafe {
        let advised = Errno::result(libc::madvise(ptr.as_ptr(), bytes, libc::MADV_COLLAPSE)).map(drop);
        munmap(ptr, bytes)?;
        advised
    }
}

const NAME_DIR: &str = "Name a directory on a tmpfs with tail_dir in the config file (usual is /dev/shm/writeboost)";

fn file_name(name: TailName) -> String {
    format!("{name}{SUFFIX}")
}

fn parse(file: &str) -> Option<TailName> {
    let (cache, id) = file.strip_suffix(SUFFIX)?.split_once('.')?;
    Some(TailName { cache: Uuid::try_parse(cache).ok()?, id: Uuid::try_parse(id).ok()? })
}

impl TailStore for ShmTails {
    fn create(&self, name: TailName, bytes: usize) -> Result<Arc<Region>, TailError> {
        let dir = self.dir_or_make()?;
        let path = self.path(name);
        let fail = |what: &str, errno| failed(format!("{what} {} failed", path.display()), errno, NAME_DIR);
        // SAFETY: an all-zero statfs is a valid value, and the call fills it.
        let filesystem = unsafe {
            let mut filesystem: libc::statfs = std::mem::zeroed();
            Errno::result(libc::fstatfs(dir.as_raw_fd(), &raw mut filesystem)).map(|_| filesystem)
        };
        match filesystem {
            Ok(filesystem) if IN_MEMORY.contains(&filesystem.f_type) => {}
            Ok(_) => {
                tracing::warn!("{} is not in memory: every write to the volume may wait for it", self.dir.display())
            }
            Err(errno) => return Err(fail("looking at the filesystem of", errno)),
        }
        let flags = OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let fd = openat(&dir, file_name(name).as_str(), flags, Mode::S_IRUSR | Mode::S_IWUSR)
            .map_err(|errno| fail("making the RAM tail", errno))?;
        // Before it is known that there is room, nothing is allocated page by page.
        let available = filesystem.map_or(0, |it| it.f_bavail.saturating_mul(it.f_bsize.unsigned_abs()));
        let collapsed = match bytes as u64 <= available {
            true => collapse_into_huge_pages(&fd, bytes),
            false => Err(Errno::ENOSPC),
        };
        if let Err(errno) = collapsed {
            tracing::debug!("no huge pages for the RAM tail {}: {}", path.display(), errno.desc());
        }
        // All of it now: a page that cannot be had later would be a SIGBUS in the middle of a write.
        let allocated = nix::fcntl::fallocate(&fd, nix::fcntl::FallocateFlags::empty(), 0, bytes as i64);
        let mapped = allocated
            .map_err(|errno| {
                let what = format!("allocating {bytes} bytes for the RAM tail {} failed", path.display());
                failed(what, errno, "Make room there, or name another tmpfs with tail_dir in the config file")
            })
            .and_then(|()| self.map(name, fd, bytes));
        if mapped.is_err() {
            let _ = self.remove(name); // it was never named by an anchor
        }
        mapped.map(Arc::new)
    }

    fn open(&self, name: TailName) -> Result<Option<Arc<Region>>, TailError> {
        let Some(dir) = self.dir()? else { return Ok(None) };
        let path = self.path(name);
        let fail = |what: &str, errno| failed(format!("{what} {} failed", path.display()), errno, NAME_DIR);
        let flags = OFlag::O_RDWR | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let fd = match openat(&dir, file_name(name).as_str(), flags, Mode::empty()) {
            Ok(fd) => fd,
            Err(Errno::ENOENT) => return Ok(None),
            Err(errno) => return Err(fail("opening the RAM tail", errno)),
        };
        let status = fstat(&fd).map_err(|errno| fail("looking at the RAM tail", errno))?;
        let is_file = SFlag::from_bits_truncate(status.st_mode) & SFlag::S_IFMT == SFlag::S_IFREG;
        // A hole is memory that may not be there when it is needed.
        let whole = status.st_blocks.saturating_mul(512) >= status.st_size;
        if !is_file || status.st_size <= 0 || !whole {
            return Err(TailError::Damaged {
                name,
                reason: format!("{} is no file that is allocated in full", path.display()),
            });
        }
        self.map(name, fd, status.st_size as usize).map(|region| Some(Arc::new(region)))
    }

    fn remove(&self, name: TailName) -> Result<(), TailError> {
        let Some(dir) = self.dir()? else { return Ok(()) };
        match unlinkat(&dir, file_name(name).as_str(), UnlinkatFlags::NoRemoveDir) {
            Ok(()) | Err(Errno::ENOENT) => Ok(()),
            Err(errno) => Err(failed(
                format!("removing the RAM tail {} failed", self.path(name).display()),
                errno,
                "Remove the file by hand when no daemon uses this cache",
            )),
        }
    }

    /// A copy of a cache image has the name of the original, which may be running.
    fn remove_unused(&self, name: TailName) -> Result<bool, TailError> {
        let Some(dir) = self.dir()? else { return Ok(true) };
        let flags = OFlag::O_RDWR | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let Ok(fd) = openat(&dir, file_name(name).as_str(), flags, Mode::empty()) else {
            return self.remove(name).map(|()| true);
        };
        // SAFETY: no pointers.
        match Errno::result(unsafe { libc::flock(fd.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) }) {
            Err(Errno::EWOULDBLOCK) => Ok(false),
            _ => self.remove(name).map(|()| true),
        }
    }

    fn list(&self, cache: Uuid) -> Result<Vec<TailName>, TailError> {
        let entries = match std::fs::read_dir(&self.dir) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => {
                let what = format!("reading the directory {} of RAM tails failed", self.dir.display());
                return Err(TailError::Store { what, error: error.to_string(), next_step: NAME_DIR });
            }
        };
        let names = entries.flatten().filter_map(|entry| parse(entry.file_name().to_str()?));
        Ok(names.filter(|name| name.cache == cache).collect())
    }

    fn describe(&self, name: TailName) -> String {
        self.path(name).display().to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;
    use std::sync::atomic::Ordering;

    fn name(id: u128) -> TailName {
        TailName { cache: Uuid::from_u128(7), id: Uuid::from_u128(id) }
    }

    #[test]
    fn tails_outlive_their_mapping_and_are_owner_only() {
        let place = tempfile::tempdir_in("/dev/shm").expect("a tmpfs");
        let tails = ShmTails::new(&place.path().join("tails"));
        assert_eq!(tails.list(name(1).cache), Ok(Vec::new()), "no directory yet");
        assert!(tails.open(name(1)).expect("no error").is_none());
        let region = tails.create(name(1), 16 << 10).expect("made");
        region.word(8).store(5, Ordering::Release);
        let mode = |path: &Path| std::fs::metadata(path).expect("there").permissions().mode() & 0o777;
        assert_eq!((mode(&tails.dir), mode(&tails.path(name(1)))), (0o700, 0o600));
        assert!(tails.open(name(1)).is_err(), "in use");
        assert!(tails.create(name(1), 16 << 10).is_err(), "never overwritten");
        drop(region);
        let region = tails.open(name(1)).expect("opens").expect("is there");
        assert_eq!((region.word(8).load(Ordering::Acquire), region.len()), (5, 16 << 10));
        tails.create(name(2), 8 << 10).expect("made");
        let mut all = tails.list(name(1).cache).expect("a list");
        all.sort();
        assert_eq!(all, [name(1), name(2)]);
        assert_eq!(tails.list(Uuid::nil()), Ok(Vec::new()), "of another cache");
        assert_eq!(tails.remove_unused(name(1)), Ok(false), "in use");
        tails.remove(name(1)).expect("removed");
        tails.remove(name(1)).expect("again");
        assert_eq!(tails.list(name(1).cache), Ok(vec![name(2)]));
        assert_eq!((tails.remove_unused(name(2)), tails.remove_unused(name(2))), (Ok(true), Ok(true)));
        assert_eq!(tails.list(name(1).cache), Ok(Vec::new()));
    }

    /// `ShmemPmdMapped` of the mapping, as the kernel tells it.
    fn mapped_as_huge_bytes(path: &Path) -> usize {
        let maps = std::fs::read_to_string("/proc/self/smaps").expect("readable");
        let own = maps.split_once(path.to_str().expect("a path")).expect("it is mapped").1;
        let line = own.lines().find_map(|line| line.strip_prefix("ShmemPmdMapped:")).expect("a field");
        let kib = line.trim().trim_end_matches("kB").trim().parse::<usize>().expect("a number");
        kib << 10
    }

    /// The kernel of the tests may have none to give, so what must hold is that nothing else changes: the size, what is
    /// allocated, and that another process (here: another mapping) sees the same.
    #[test]
    fn huge_pages_change_neither_size_nor_content() {
        let place = tempfile::tempdir_in("/dev/shm").expect("a tmpfs");
        let tails = ShmTails::new(&place.path().join("tails"));
        for (id, bytes) in [(1, 5 << 20), (2, HUGE_BYTES), (3, HUGE_BYTES - 4096)] {
            let region = tails.create(name(id), bytes).expect("made");
            let path = tails.path(name(id));
            assert_eq!(region.len(), bytes);
            let status = std::os::unix::fs::MetadataExt::blocks(&std::fs::metadata(&path).expect("there"));
            assert!(status * 512 >= bytes as u64, "allocated in full");
            eprintln!("{} of {bytes} bytes are mapped as huge pages", mapped_as_huge_bytes(&path));
            let content = std::fs::read(&path).expect("read");
            assert!(content.len() == bytes && content.iter().all(|byte| *byte == 0));
            region.word(bytes - 8).store(7, Ordering::Release);
            drop(region);
            let region = tails.open(name(id)).expect("opens").expect("is there");
            assert_eq!((region.word(bytes - 8).load(Ordering::Acquire), region.len()), (7, bytes));
        }
    }

    #[test]
    fn a_directory_that_others_may_enter_is_refused() {
        let place = tempfile::tempdir_in("/dev/shm").expect("a tmpfs");
        std::fs::set_permissions(place.path(), PermissionsExt::from_mode(0o755)).expect("changed");
        let error = ShmTails::new(place.path()).create(name(1), 4096).err().expect("refused").to_string();
        assert!(error.contains("open to others") && error.contains("0700"), "{error}");
    }

    #[test]
    fn a_tail_with_holes_is_no_tail() {
        let place = tempfile::tempdir_in("/dev/shm").expect("a tmpfs");
        let tails = ShmTails::new(&place.path().join("tails"));
        tails.create(name(2), 4096).expect("makes the directory");
        std::fs::File::create(tails.path(name(1))).and_then(|file| file.set_len(8192)).expect("a sparse file");
        assert!(matches!(tails.open(name(1)), Err(TailError::Damaged { .. })));
    }

    #[test]
    fn a_full_tmpfs_is_a_refusal_that_names_the_next_step() {
        let place = tempfile::tempdir_in("/dev/shm").expect("a tmpfs");
        let tails = ShmTails::new(&place.path().join("tails"));
        let error = tails.create(name(1), 1 << 46).err().expect("no machine has 64 TiB").to_string();
        assert!(error.contains("tail_dir"), "{error}");
        assert_eq!(tails.list(name(1).cache), Ok(Vec::new()), "nothing is left behind");
    }
}
