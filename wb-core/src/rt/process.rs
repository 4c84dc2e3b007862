//! What the process tells the kernel about itself, and asks it.

use std::io;

/// `PR_SET_IO_FLUSHER` of the kernel's uapi/linux/prctl.h (5.6).
const PR_SET_IO_FLUSHER: libc::c_int = 57;

/// The kernel's id of this boot; zeroes if it cannot be read.
pub fn boot_id() -> [u8; 16] {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    uuid::Uuid::try_parse(text.trim()).map_or([0; 16], uuid::Uuid::into_bytes)
}

/// This process is in the way of memory write-out: the kernel must not make it wait for that when it allocates. Needs
/// CAP_SYS_RESOURCE.
pub fn set_io_flusher() -> io::Result<()> {
    // SAFETY: a system call without pointers.
    match unsafe { libc::prctl(PR_SET_IO_FLUSHER, 1, 0, 0, 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
