//! A volume as a block device of this machine, /dev/ublkbN: the kernel's ublk driver hands us its requests.
//!
//! * `uapi`: the kernel's constants and structures. * `control`: commands to the driver. * `device`: its life: added or
//!   taken over from a daemon that died, started, removed. * `queue`: requests. * `users`: who has it open.
//!
//! What holds:
//! * A request is committed only with its true result; one that a stopping engine refuses is not committed at all. The
//!   kernel gives it to the next daemon (`USER_RECOVERY_REISSUE`). To run a request twice is harmless in a log.
//! * The device outlives this process unless it was removed on purpose, which nothing but [`UblkDevice::remove`] does: no
//!   `Drop`, no signal handler.
//! * The payload is copied once, by the driver, straight into the record (`USER_COPY`).

mod control;
mod device;
mod error;
mod queue;
mod runtime_file;
mod uapi;
mod users;

pub use device::{Request, UblkDevice, left_behind, users_of};
pub use error::UblkError;
