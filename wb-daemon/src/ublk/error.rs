//! Why there is no device. Messages name the cause and the next step; NBD is the way out that always works.

use std::io;

/// Why a ublk command, and with it the device, failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum UblkError {
    /// No control device.
    #[error(
        "no block device can be served: /dev/ublk-control does not exist, so the kernel module ublk_drv is not loaded or \
         this kernel ({release}) has none; try `modprobe ublk_drv` (Linux 6.5 or later), or serve NBD: --nbd unix:PATH"
    )]
    NoModule {
        /// As `uname -r`.
        release: String,
    },
    /// Not allowed.
    #[error(
        "no block device can be served: {what} is not permitted; run as root (CAP_SYS_ADMIN), or serve NBD: --nbd unix:PATH"
    )]
    NoRights {
        /// What was attempted.
        what: &'static str,
    },
    /// The driver is too old.
    #[error(
        "no block device can be served: the ublk driver of this kernel ({release}) lacks {missing}; Linux 6.5 or later is \
         needed, or serve NBD: --nbd unix:PATH"
    )]
    TooOld {
        /// As `uname -r`.
        release: String,
        /// Names of features.
        missing: String,
    },
    /// The number is taken.
    #[error(
        "/dev/ublkb{id} exists already and belongs to something else, or was removed while somebody had it open and still \
         has; use another number, or --ublk without one"
    )]
    Taken {
        /// The number.
        id: u32,
    },
    /// The device of this cache has another number.
    #[error(
        "the device of this cache is /dev/ublkb{found}, left by its last daemon, not /dev/ublkb{wanted}; start once with \
         --ublk {found} or without a number, and stop it, before it gets another one"
    )]
    OtherId {
        /// The device there is.
        found: u32,
        /// The one that was asked for.
        wanted: u32,
    },
    /// The device that a predecessor left has other properties than the volume.
    #[error(
        "/dev/ublkb{id}, which the last daemon of this cache left, has {what}; unmount it, then stop and start this daemon, \
         so that it is made anew"
    )]
    Changed {
        /// The device.
        id: u32,
        /// The difference.
        what: String,
    },
    /// A command did not return.
    #[error(
        "the ublk driver did not answer {what} within {seconds} s{}; see `dmesg`, or serve NBD: --nbd unix:PATH",
        if *.what == "ADD_DEV" {
            " (Linux 6.18.4, 6.18.5 and some 6.17 kernels have a bug there: use another kernel, and reboot)"
        } else {
            ""
        }
    )]
    TimedOut {
        /// The command.
        what: &'static str,
        /// The limit.
        seconds: u64,
    },
    /// A command failed.
    #[error("the ublk driver refuses {what}: {error}; serve NBD instead: --nbd unix:PATH")]
    Refused {
        /// The command.
        what: &'static str,
        /// The driver's answer.
        error: io::Error,
    },
    /// Something around the driver failed.
    #[error("{what}: {error}")]
    Other {
        /// What was attempted.
        what: String,
        /// The cause.
        error: io::Error,
    },
}

impl UblkError {
    pub(super) fn other(what: impl Into<String>, error: impl Into<io::Error>) -> UblkError {
        UblkError::Other { what: what.into(), error: error.into() }
    }

    /// The errno of a refused command.
    pub(super) fn errno(&self) -> Option<i32> {
        match self {
            UblkError::Refused { error, .. } => error.raw_os_error(),
            _ => None,
        }
    }
}

/// As `uname -r` says it.
pub(super) fn kernel_release() -> String {
    std::fs::read_to_string("/proc/sys/kernel/osrelease").map_or("of unknown version".into(), |text| text.trim().into())
}
