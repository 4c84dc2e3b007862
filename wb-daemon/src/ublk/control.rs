//! Commands to the driver: on a ring of their own, because their entries have 128 bytes.

use super::error::{UblkError, kernel_release};
use super::uapi::*;
use io_uring::{IoUring, cqueue, opcode, squeue, types};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use wb_core::rt::{self, PollFd};
use zerocopy::{FromBytes, IntoBytes};

/// Commands that only touch memory.
const SHORT_NS: u64 = 10_000_000_000;
/// Commands that wait for requests.
const LONG_NS: u64 = 60_000_000_000;

/// An open control device. One command at a time.
pub struct Control {
    /// `None` after a command that never returned: its memory and ring belong to the kernel for ever.
    inner: Option<Box<Inner>>,
}

/// The driver does not know the command: what it answers then differs from version to version (524 is ENOTSUPP).
fn is_unknown(error: &UblkError) -> bool {
    matches!(error.errno(), Some(libc::EINVAL | libc::EOPNOTSUPP | 524))
}

/// Keeps what the kernel may still use when the wait for a command is given up: it is never freed then.
struct InFlight(Option<Box<Inner>>);

impl Drop for InFlight {
    fn drop(&mut self) {
        std::mem::forget(self.0.take());
    }
}

struct Inner {
    file: File,
    /// Makes the entry for a command: for the driver, except in tests.
    entry: fn(types::Fd, u32, &ControlCommand) -> squeue::Entry128,
    ring: IoUring<squeue::Entry128, cqueue::Entry>,
    ready: PollFd,
    /// What the command in flight reads or fills.
    memory: [u64; 8],
}

/// A command and its limit.
struct Command {
    name: &'static str,
    op: u32,
    limit_ns: u64,
}

impl Control {
    /// Opens the control device and asks for the features that we need.
    pub async fn open() -> Result<Control, UblkError> {
        let file = File::options().read(true).write(true).open(CONTROL_PATH).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => UblkError::NoModule { release: kernel_release() },
            io::ErrorKind::PermissionDenied => UblkError::NoRights { what: "opening /dev/ublk-control" },
            _ => UblkError::other(format!("cannot open {CONTROL_PATH}"), error),
        })?;
        let mut control = Control::over(file, driver_entry)?;
        control.check_features().await?;
        Ok(control)
    }

    fn over(file: File, entry: fn(types::Fd, u32, &ControlCommand) -> squeue::Entry128) -> Result<Control, UblkError> {
        let ring = IoUring::builder()
            .dontfork()
            .build(4)
            .map_err(|error| UblkError::other("no io_uring with long entries", error))?;
        // SAFETY: the ring is open, and the borrow ends with this statement.
        let ready = unsafe { BorrowedFd::borrow_raw(ring.as_raw_fd()) }.try_clone_to_owned();
        let ready = PollFd::new(ready.map_err(|error| UblkError::other("cannot duplicate a descriptor", error))?);
        Ok(Control { inner: Some(Box::new(Inner { file, entry, ring, ready, memory: [0; 8] })) })
    }

    async fn check_features(&mut self) -> Result<(), UblkError> {
        let command = Command { name: "GET_FEATURES", op: CMD_GET_FEATURES, limit_ns: SHORT_NS };
        let too_old = |missing: String| UblkError::TooOld { release: kernel_release(), missing };
        let answer = self.call(command, 0, 0, &0u64.to_ne_bytes()).await;
        let features = match answer {
            Ok(memory) => memory[0],
            Err(error) => match error.errno() {
                Some(libc::EPERM | libc::EACCES) => return Err(UblkError::NoRights { what: "GET_FEATURES" }),
                // Before 6.5 the command is unknown.
                _ if is_unknown(&error) => return Err(too_old("GET_FEATURES".into())),
                _ => return Err(error),
            },
        };
        let missing: Vec<_> = FEATURES.iter().filter(|(bit, _)| features & bit == 0).map(|(_, name)| *name).collect();
        if missing.is_empty() { Ok(()) } else { Err(too_old(missing.join(", "))) }
    }

    /// Runs a command with `payload` as the structure that it is given, and returns that structure afterwards.
    async fn call(&mut self, command: Command, dev_id: u32, data: u64, payload: &[u8]) -> Result<[u64; 8], UblkError> {
        let Command { name, op, limit_ns } = command;
        let timed_out = UblkError::TimedOut { what: name, seconds: limit_ns / 1_000_000_000 };
        let mut flight = InFlight(self.inner.take());
        let Some(inner) = &mut flight.0 else { return Err(timed_out) };
        inner.push(op, dev_id, data, payload);
        let result = match rt::timeout(limit_ns, inner.completion()).await {
            Ok(Ok(result)) => result,
            Ok(Err(error)) => return Err(UblkError::other(format!("waiting for {name}"), error)),
            Err(_) => return Err(timed_out),
        };
        let memory = inner.memory;
        self.inner = flight.0.take();
        if result < 0 {
            return Err(UblkError::Refused { what: name, error: io::Error::from_raw_os_error(-result) });
        }
        Ok(memory)
    }

    async fn simple(
        &mut self,
        name: &'static str,
        op: u32,
        dev_id: u32,
        data: u64,
        limit_ns: u64,
    ) -> Result<(), UblkError> {
        self.call(Command { name, op, limit_ns }, dev_id, data, &[]).await.map(|_| ())
    }

    /// Adds a device as `info` describes it (`dev_id` `u32::MAX`: any number); the driver's view of it.
    pub async fn add(&mut self, info: &DevInfo) -> Result<DevInfo, UblkError> {
        let command = Command { name: "ADD_DEV", op: CMD_ADD_DEV, limit_ns: SHORT_NS };
        let memory =
            self.call(command, info.dev_id, 0, info.as_bytes()).await.map_err(|error| match error.errno() {
                Some(libc::EEXIST) => UblkError::Taken { id: info.dev_id },
                Some(libc::EPERM | libc::EACCES) => UblkError::NoRights { what: "ADD_DEV" },
                _ => error,
            })?;
        Ok(DevInfo::read_from_bytes(memory.as_bytes()).expect("of the same size"))
    }

    /// The driver's view of a device; `None` if there is none of this number.
    pub async fn info(&mut self, id: u32) -> Result<Option<DevInfo>, UblkError> {
        let command = Command { name: "GET_DEV_INFO", op: CMD_GET_DEV_INFO, limit_ns: SHORT_NS };
        match self.call(command, id, 0, DevInfo::default().as_bytes()).await {
            Ok(memory) => Ok(Some(DevInfo::read_from_bytes(memory.as_bytes()).expect("of the same size"))),
            Err(error) if matches!(error.errno(), Some(libc::ENODEV | libc::EINVAL)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    pub async fn set_params(&mut self, id: u32, params: &Params) -> Result<(), UblkError> {
        let command = Command { name: "SET_PARAMS", op: CMD_SET_PARAMS, limit_ns: SHORT_NS };
        self.call(command, id, 0, params.as_bytes()).await.map(|_| ())
    }

    pub async fn params(&mut self, id: u32) -> Result<Params, UblkError> {
        let command = Command { name: "GET_PARAMS", op: CMD_GET_PARAMS, limit_ns: SHORT_NS };
        let ask = Params { len: size_of::<Params>() as u32, ..Params::default() };
        let memory = self.call(command, id, 0, ask.as_bytes()).await?;
        Ok(Params::read_from_bytes(memory.as_bytes()).expect("of the same size"))
    }

    /// Makes the block device appear; returns after the kernel has looked for partitions, so requests must be served.
    pub async fn start(&mut self, id: u32) -> Result<(), UblkError> {
        self.simple("START_DEV", CMD_START_DEV, id, std::process::id().into(), LONG_NS).await
    }

    /// Makes it disappear. Requests are still to be served until this returns; then all fetches end.
    pub async fn stop(&mut self, id: u32) -> Result<(), UblkError> {
        self.simple("STOP_DEV", CMD_STOP_DEV, id, 0, LONG_NS).await
    }

    /// Forgets a stopped device. Its nodes are gone then; its number is free when nobody has it open any more, which
    /// the driver waits for before Linux 6.9: there this ends with [`UblkError::TimedOut`] if somebody keeps it open.
    pub async fn delete(&mut self, id: u32) -> Result<(), UblkError> {
        match self.simple("DEL_DEV_ASYNC", CMD_DEL_DEV_ASYNC, id, 0, SHORT_NS).await {
            Err(error) if is_unknown(&error) => self.simple("DEL_DEV", CMD_DEL_DEV, id, 0, SHORT_NS).await,
            outcome => outcome,
        }
    }

    /// Begins to take over a quiesced device; EBUSY as long as its last server is not gone completely.
    pub async fn start_recovery(&mut self, id: u32) -> Result<(), UblkError> {
        self.simple("START_USER_RECOVERY", CMD_START_USER_RECOVERY, id, 0, SHORT_NS).await
    }

    /// Ends it; requests must be fetched by then.
    pub async fn end_recovery(&mut self, id: u32) -> Result<(), UblkError> {
        self.simple("END_USER_RECOVERY", CMD_END_USER_RECOVERY, id, std::process::id().into(), LONG_NS).await
    }
}

/// The driver's command.
fn driver_entry(fd: types::Fd, op: u32, command: &ControlCommand) -> squeue::Entry128 {
    let mut area = [0; 80];
    area[..size_of::<ControlCommand>()].copy_from_slice(command.as_bytes());
    opcode::UringCmd80::new(fd, op).cmd(area).build()
}

impl Inner {
    fn push(&mut self, op: u32, dev_id: u32, data: u64, payload: &[u8]) {
        self.memory = [0; 8];
        self.memory.as_mut_bytes()[..payload.len()].copy_from_slice(payload);
        let addr = if payload.is_empty() { 0 } else { self.memory.as_ptr().addr() as u64 };
        let command = ControlCommand {
            dev_id,
            queue_id: u16::MAX,
            len: payload.len() as u16,
            addr,
            data,
            dev_path_len: 0,
            pad: 0,
            reserved: 0,
        };
        let entry = (self.entry)(types::Fd(self.file.as_raw_fd()), op, &command);
        // SAFETY: the entry points to `memory`, which lies in the box that the caller keeps until the completion, or for
        // ever (`InFlight`); so does the descriptor.
        unsafe { self.ring.submission().push(&entry) }.expect("one command at a time");
    }

    /// The command is run by a worker of the kernel: this thread serves on meanwhile.
    async fn completion(&mut self) -> io::Result<i32> {
        self.ring.submit()?;
        loop {
            if let Some(entry) = self.ring.completion().next() {
                return Ok(entry.result());
            }
            self.ready.readable().await?;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, Instant};
    use wb_core::rt::{Config, Runtime};

    /// A driver that answers no command: a wait for a pipe into which nobody writes.
    fn deaf() -> (Control, File) {
        let (reader, writer) = nix::unistd::pipe().expect("a pipe");
        let entry = |fd, _, _: &ControlCommand| opcode::PollAdd::new(fd, libc::POLLIN as u32).build().into();
        (Control::over(reader.into(), entry).expect("a ring"), writer.into())
    }

    #[test]
    fn a_driver_that_never_answers_add_dev_is_given_up_and_the_kernels_with_that_bug_are_named() {
        Runtime::new(Config::default()).expect("a runtime").block_on(async {
            let (mut control, _silent) = deaf();
            let begun = Instant::now();
            let error = control.add(&DevInfo::default()).await.expect_err("nobody answers");
            let limit = Duration::from_nanos(SHORT_NS);
            assert!((limit..limit + Duration::from_secs(5)).contains(&begun.elapsed()), "{:?}", begun.elapsed());
            let text = error.to_string();
            assert!(text.contains("ADD_DEV within 10 s (Linux 6.18.4, 6.18.5") && text.contains("--nbd"), "{text}");
            // What the kernel may still write to is kept, and nothing more is asked of it.
            let error = control.info(0).await.expect_err("given up");
            assert!(matches!(error, UblkError::TimedOut { what: "GET_DEV_INFO", .. }), "{error}");
        });
    }

    #[test]
    fn an_answer_within_the_limit_is_taken_and_the_next_command_goes_out() {
        use std::io::Write;
        Runtime::new(Config::default()).expect("a runtime").block_on(async {
            let (mut control, mut writer) = deaf();
            writer.write_all(b"x").expect("written");
            // A poll answers with what is ready; a positive number is success.
            control.set_params(0, &Params::default()).await.expect("answered");
            control.set_params(0, &Params::default()).await.expect("answered again");
        });
    }
}
