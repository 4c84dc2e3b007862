//! The entry points of randomness, and later [`crate::env::Env`] itself.

/// A random number of the kernel.
#[expect(clippy::disallowed_methods, reason = "this is where Env's randomness comes from")]
pub fn random_u64() -> u64 {
    let mut bytes = [0u8; 8];
    loop {
        // SAFETY: the pointer and the length describe `bytes`.
        let got = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) };
        // Requests of up to 256 bytes are answered in full once the pool is initialised; a signal may come before.
        if got == bytes.len() as isize {
            return u64::from_ne_bytes(bytes);
        }
    }
}
