//! Requests: one task per tag fetches, executes, and commits with the next fetch.

use super::uapi::*;
use io_uring::{opcode, types};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};
use std::ffi::c_void;
use std::future::pending;
use std::io;
use std::num::NonZeroUsize;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::ptr::NonNull;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicUsize, Ordering};
use tracing::{error, trace};
use wb_core::rt::{self, Payload, submit_with};
use wb_core::service::{BlockService, PayloadSource, SERVICE_CHUNK_BYTES_MAX, ServiceError};
use wb_core::sync::WaitQueue;
use zerocopy::IntoBytes;

/// What all queues of a device share, on all threads.
pub struct Shared<S> {
    service: S,
    /// The character device. As a file, for its pread and pwrite.
    device: std::fs::File,
    depth: u16,
    /// Tags whose task runs.
    live: AtomicUsize,
    /// Nothing is committed any more: what is not, the next daemon gets.
    parked: AtomicBool,
    /// A negated errno with which the driver refused to give requests.
    refused: AtomicI32,
    changed: WaitQueue,
}

impl<S: BlockService> Shared<S> {
    pub fn new(service: S, device: OwnedFd, depth: u16) -> Shared<S> {
        Shared {
            service,
            device: device.into(),
            depth,
            live: AtomicUsize::new(0),
            parked: AtomicBool::new(false),
            refused: AtomicI32::new(0),
            changed: WaitQueue::new(),
        }
    }

    /// From now on requests are taken, but neither executed nor answered.
    pub fn park(&self) {
        self.parked.store(true, Ordering::SeqCst);
    }

    /// Waits until no tag fetches any more: the device is gone.
    pub async fn ended(&self) {
        self.changed.wait_until(|| (self.live.load(Ordering::SeqCst) == 0).then_some(())).await;
    }

    /// Waits until the driver refuses to give requests; its errno.
    pub async fn refused(&self) -> io::Error {
        let errno = self.changed.wait_until(|| match self.refused.load(Ordering::SeqCst) {
            0 => None,
            errno => Some(errno),
        });
        io::Error::from_raw_os_error(-errno.await)
    }

    fn refuse(&self, errno: i32) {
        self.refused.store(errno, Ordering::SeqCst);
        self.changed.notify_all();
    }
}

/// Serves a queue on this thread, for ever: the driver takes its commands from the thread that fetched first.
pub fn serve<S: BlockService>(shared: &Arc<Shared<S>>, number: u16) {
    let queue = match Queue::new(shared, number) {
        Ok(queue) => Rc::new(queue),
        Err(why) => {
            error!("queue {number} of the block device: {why}");
            return shared.refuse(-why.raw_os_error().unwrap_or(libc::EIO));
        }
    };
    shared.live.fetch_add(shared.depth.into(), Ordering::SeqCst);
    for tag in 0..shared.depth {
        let queue = queue.clone();
        drop(rt::spawn(async move {
            queue.serve_tag(tag).await;
            let shared = queue.shared.clone();
            drop(queue);
            if shared.live.fetch_sub(1, Ordering::SeqCst) == 1 {
                shared.changed.notify_all();
            }
        }));
    }
}

/// Descriptors of a queue, which the driver writes.
struct Descriptors {
    start: NonNull<c_void>,
    bytes: NonZeroUsize,
}

impl Drop for Descriptors {
    fn drop(&mut self) {
        // SAFETY: mapped in `Queue::new` with this length; nobody else has the address.
        let unmapped = unsafe { munmap(self.start, self.bytes.get()) };
        assert!(unmapped.is_ok(), "the kernel takes back what it gave");
    }
}

struct Queue<S> {
    shared: Arc<Shared<S>>,
    number: u16,
    descriptors: Descriptors,
}

/// What a fetch in flight keeps: the character device, by its queue.
struct InFlight<S>(#[expect(dead_code, reason = "kept, not used")] Rc<Queue<S>>);

impl<S: 'static> Payload for InFlight<S> {}

impl<S: BlockService> Queue<S> {
    fn new(shared: &Arc<Shared<S>>, number: u16) -> io::Result<Queue<S>> {
        let bytes = NonZeroUsize::new(descriptors_bytes(shared.depth)).expect("a depth of at least one");
        let offset = descriptors_offset(number) as libc::off_t;
        let flags = MapFlags::MAP_SHARED | MapFlags::MAP_POPULATE;
        // SAFETY: a new mapping touches no memory that anybody has.
        let start = unsafe { mmap(None, bytes, ProtFlags::PROT_READ, flags, &shared.device, offset) }?;
        Ok(Queue { shared: shared.clone(), number, descriptors: Descriptors { start, bytes } })
    }

    /// Waits for requests of a tag and executes them one after the other, until the device goes.
    async fn serve_tag(self: &Rc<Self>, tag: u16) {
        let (mut command, mut result) = (IO_FETCH_REQ, 0);
        loop {
            match self.command(command, tag, result).await {
                IO_RES_OK => {}
                errno if errno == -libc::ENODEV => return,
                errno => {
                    let error = io::Error::from_raw_os_error(-errno);
                    error!("the block device's driver refuses tag {tag} of queue {}: {error}", self.number);
                    return self.shared.refuse(errno);
                }
            }
            if self.shared.parked.load(Ordering::SeqCst) {
                return pending().await;
            }
            result = match self.execute(tag, self.descriptor(tag)).await {
                Ok(bytes) => bytes,
                Err(ServiceError::Io | ServiceError::ReadOnly) => -libc::EIO,
                Err(ServiceError::Invalid) => -libc::EINVAL,
                // Never answered: the next daemon gets it.
                Err(ServiceError::ShuttingDown) => return pending().await,
            };
            command = IO_COMMIT_AND_FETCH_REQ;
        }
    }

    async fn command(self: &Rc<Self>, command: u32, tag: u16, result: i32) -> i32 {
        let area = QueueCommand { q_id: self.number, tag, result, addr: 0 };
        let area: [u8; 16] = area.as_bytes().try_into().expect("16 bytes, as asserted");
        let fd = types::Fd(self.shared.device.as_raw_fd());
        let entry = opcode::UringCmd16::new(fd, command).cmd(area).build();
        // SAFETY: the entry points to no memory; the payload keeps the descriptor open, and the descriptors mapped.
        unsafe { submit_with(entry, InFlight(self.clone())) }.await.result
    }

    /// The request that a completed fetch announced.
    fn descriptor(&self, tag: u16) -> IoDesc {
        assert!(tag < self.shared.depth, "tags lie below the depth");
        // SAFETY: within the mapping, which has `depth` descriptors and is aligned to a page; any bytes are a valid
        // `IoDesc`. The driver writes it before it completes the fetch, and not again before the commit.
        unsafe { self.descriptors.start.cast::<IoDesc>().add(tag.into()).read_volatile() }
    }

    /// Bytes done.
    async fn execute(&self, tag: u16, desc: IoDesc) -> Result<i32, ServiceError> {
        let fua = desc.op_flags & IO_F_FUA != 0;
        let (op, sector, sectors) = (desc.op_flags & 0xff, desc.start_sector, desc.nr_sectors);
        trace!("request op={op} sector={sector} sectors={sectors} fua={fua}");
        let service = &self.shared.service;
        // A flush has no range; its descriptor says sector -1.
        if desc.op_flags & 0xff == OP_FLUSH {
            return service.flush().await.map(|()| 0);
        }
        let offset = desc.start_sector.checked_mul(UBLK_SECTOR_BYTES).ok_or(ServiceError::Invalid)?;
        let len = u64::from(desc.nr_sectors) * UBLK_SECTOR_BYTES;
        match desc.op_flags & 0xff {
            OP_READ => self.read(tag, offset, len as usize).await,
            OP_WRITE => self.write(tag, offset, len as usize, fua).await,
            OP_DISCARD => service.discard(offset, len, fua).await.map(|()| 0),
            OP_WRITE_ZEROES => service.write_zeroes(offset, len, fua).await.map(|()| 0),
            _ => Err(ServiceError::Invalid),
        }
    }

    fn payload(&self, tag: u16) -> RequestPayload<'_> {
        RequestPayload { device: &self.shared.device, start: payload_offset(self.number, tag) }
    }

    async fn read(&self, tag: u16, offset: u64, len: usize) -> Result<i32, ServiceError> {
        for (start, part) in chunks(len) {
            let data = self.shared.service.read(offset + start as u64, part).await?;
            self.payload(tag).fill(start, &data)?;
        }
        Ok(len as i32)
    }

    async fn write(&self, tag: u16, offset: u64, len: usize, fua: bool) -> Result<i32, ServiceError> {
        for (start, part) in chunks(len) {
            let mut payload = self.payload(tag);
            payload.start += start as u64;
            self.shared.service.write(offset + start as u64, part, &payload, fua).await?;
        }
        Ok(len as i32)
    }
}

/// A request in parts that the service takes at once. One part, unless the device comes from another version of us.
fn chunks(len: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..len).step_by(SERVICE_CHUNK_BYTES_MAX).map(move |start| (start, SERVICE_CHUNK_BYTES_MAX.min(len - start)))
}

/// The pages of a request. The driver copies between them and our memory within the system call, without waiting: they
/// are in memory as long as the request is not committed.
struct RequestPayload<'a> {
    device: &'a std::fs::File,
    start: u64,
}

impl RequestPayload<'_> {
    /// Gives the requester what was read.
    fn fill(&self, offset: usize, data: &[u8]) -> Result<(), ServiceError> {
        self.device.write_all_at(data, self.start + offset as u64).map_err(|_| ServiceError::Io)
    }
}

impl PayloadSource for RequestPayload<'_> {
    fn copy_to(&self, offset: usize, dst: &mut [u8]) -> Result<(), ServiceError> {
        self.device.read_exact_at(dst, self.start + offset as u64).map_err(|_| ServiceError::Io)
    }
}
