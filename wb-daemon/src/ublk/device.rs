//! The life of the block device.

use super::control::Control;
use super::error::UblkError;
use super::queue::{self, Shared};
use super::{runtime_file, uapi, users};
use crate::ublk::uapi::{DevInfo, Params};
use futures_util::future::{Either, select};
use std::os::fd::OwnedFd;
use std::pin::pin;
use std::sync::Arc;
use tracing::{info, warn};
use uuid::Uuid;
use wb_core::rt::{self, Remote};
use wb_core::service::{BlockService, SERVICE_CHUNK_BYTES_MAX, ServiceInfo};

/// Requests that the kernel may hand to us at once, per queue.
const QUEUE_DEPTH: u16 = 128;
/// How long the requests of a killed predecessor may take to end.
const TAKE_OVER_NS: u64 = 60_000_000_000;
/// How long a device that goes may take to give up its tags.
const END_NS: u64 = 10_000_000_000;
/// How long a removed device is waited for until nobody has it open.
const CLOSED_NS: u64 = 1_000_000_000;
/// Steps in which these waits look again.
const POLL_NS: u64 = 5_000_000;

/// What device to make.
#[derive(Debug, Clone)]
pub struct Request {
    /// Number N of /dev/ublkbN; `None`: any.
    pub id: Option<u32>,
    /// Name of the cache, for /dev/writeboost/NAME.
    pub name: String,
    /// UUID of the cache, by which a device is known again.
    pub uuid: Uuid,
}

/// A block device that is being served.
pub struct UblkDevice<S> {
    control: Control,
    shared: Arc<Shared<S>>,
    id: u32,
}

/// What the driver keeps for us in `ublksrv_flags`, so that a successor finds its device: half of the cache's UUID.
fn mark(uuid: Uuid) -> u64 {
    let (high, low) = uuid.as_u64_pair();
    // Zero is what other servers leave there.
    (high ^ low).max(1)
}

/// The device's properties, as they truly are.
fn params(info: &ServiceInfo) -> Params {
    let logical = info.sector_bytes.trailing_zeros() as u8;
    let attrs = uapi::ATTR_VOLATILE_CACHE | uapi::ATTR_FUA | if info.read_only { uapi::ATTR_READ_ONLY } else { 0 };
    // A range is one entry of the log whatever its length; a bio has at most 4 GiB.
    let range_sectors = (u32::MAX >> 9) & !7;
    let range_sectors = if info.read_only { 0 } else { range_sectors };
    Params {
        len: size_of::<Params>() as u32,
        types: uapi::PARAM_BASIC | uapi::PARAM_DISCARD,
        attrs,
        logical_bs_shift: logical,
        // The block of the log: writes of parts of it are merged.
        physical_bs_shift: 12,
        io_min_shift: 12,
        // What one record of the log takes, to the power of two below.
        io_opt_shift: 19,
        max_sectors: (SERVICE_CHUNK_BYTES_MAX as u64 / uapi::UBLK_SECTOR_BYTES) as u32,
        dev_sectors: info.size_bytes / uapi::UBLK_SECTOR_BYTES,
        discard_granularity: 4096,
        max_discard_sectors: range_sectors,
        max_write_zeroes_sectors: range_sectors,
        max_discard_segments: 1,
        ..Params::default()
    }
}

/// Refuses a device that was made for another volume, or for the same one with other properties.
fn compare(id: u32, found: &Params, wanted: &Params) -> Result<(), UblkError> {
    let changed = |what: String| Err(UblkError::Changed { id, what });
    if found.dev_sectors != wanted.dev_sectors {
        return changed(format!("{} sectors, the volume {}", found.dev_sectors, wanted.dev_sectors));
    }
    if found.logical_bs_shift != wanted.logical_bs_shift {
        let bytes = |shift: u8| 1u64 << shift;
        let (found, wanted) = (bytes(found.logical_bs_shift), bytes(wanted.logical_bs_shift));
        return changed(format!("logical blocks of {found} bytes, the volume {wanted}"));
    }
    if found.attrs != wanted.attrs {
        return changed(format!("attributes {:#x}, now it would have {:#x} (read-only?)", found.attrs, wanted.attrs));
    }
    Ok(())
}

/// Numbers of all ublk devices.
fn all_ids() -> Vec<u32> {
    let entries = std::fs::read_dir("/sys/class/ublk-char").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_string_lossy().strip_prefix("ublkc")?.parse().ok()).collect()
}

async fn find_own(control: &mut Control, uuid: Uuid) -> Result<Option<DevInfo>, UblkError> {
    for id in all_ids() {
        if let Some(info) = control.info(id).await?
            && info.ublksrv_flags == mark(uuid)
        {
            return Ok(Some(info));
        }
    }
    Ok(None)
}

/// The device that the last daemon of a cache left, if there is one and it can be asked for.
pub async fn left_behind(uuid: Uuid) -> Option<u32> {
    if all_ids().is_empty() {
        return None;
    }
    // Without the driver or the right to ask it, this daemon serves no block device, as it was told.
    let mut control = Control::open().await.ok()?;
    find_own(&mut control, uuid).await.ok()?.filter(|found| found.state != uapi::STATE_DEAD).map(|found| found.dev_id)
}

/// Opens the character device; the kernel may take a moment to make its node.
async fn open_character_device(id: u32) -> Result<OwnedFd, UblkError> {
    let path = format!("/dev/ublkc{id}");
    let deadline_ns = rt::now_ns() + END_NS;
    loop {
        match std::fs::File::options().read(true).write(true).open(&path) {
            Ok(file) => return Ok(file.into()),
            Err(error) if rt::now_ns() > deadline_ns => {
                return Err(UblkError::other(format!("cannot open {path}"), error));
            }
            Err(_) => rt::sleep(POLL_NS).await,
        }
    }
}

impl<S: BlockService> UblkDevice<S> {
    /// Makes the block device, or takes over the one that the cache's last daemon left. Its requests are served by
    /// `threads`, with a queue for each of them.
    pub async fn start(service: S, request: &Request, threads: &[Remote]) -> Result<UblkDevice<S>, UblkError> {
        let mut control = Control::open().await?;
        let params = params(&service.info());
        loop {
            let Some(found) = find_own(&mut control, request.uuid).await? else {
                return UblkDevice::make(control, service, request, &params, threads).await;
            };
            if let Some(wanted) = request.id.filter(|wanted| *wanted != found.dev_id) {
                return Err(UblkError::OtherId { found: found.dev_id, wanted });
            }
            if found.state == uapi::STATE_DEAD {
                // Never started: nobody can have it open.
                control.delete(found.dev_id).await?;
                continue;
            }
            return UblkDevice::take_over(control, service, request, &params, found, threads).await;
        }
    }

    async fn make(
        mut control: Control,
        service: S,
        request: &Request,
        params: &Params,
        threads: &[Remote],
    ) -> Result<UblkDevice<S>, UblkError> {
        let wanted = DevInfo {
            nr_hw_queues: threads.len() as u16,
            queue_depth: QUEUE_DEPTH,
            max_io_buf_bytes: SERVICE_CHUNK_BYTES_MAX as u32,
            dev_id: request.id.unwrap_or(u32::MAX),
            flags: uapi::FEATURES.iter().map(|(bit, _)| bit).sum(),
            ublksrv_flags: mark(request.uuid),
            ..DevInfo::default()
        };
        let info = control.add(&wanted).await?;
        let id = info.dev_id;
        if let Err(error) = control.set_params(id, params).await {
            // The device was never seen by anybody; the first error is the one that matters.
            let _ = control.delete(id).await;
            return Err(error);
        }
        let mut device = UblkDevice::serve(control, service, &info, threads).await?;
        device.announce(request);
        let shared = device.shared.clone();
        let started = first_error(device.control.start(id), &shared, "FETCH_REQ").await;
        drop(shared);
        if let Err(error) = started {
            // As above.
            let _ = device.remove().await;
            return Err(error);
        }
        info!("/dev/ublkb{id}: {} queues of {} requests", info.nr_hw_queues, info.queue_depth);
        Ok(device)
    }

    async fn take_over(
        mut control: Control,
        service: S,
        request: &Request,
        params: &Params,
        found: DevInfo,
        threads: &[Remote],
    ) -> Result<UblkDevice<S>, UblkError> {
        let (id, began_ns) = (found.dev_id, rt::now_ns());
        compare(id, &control.params(id).await?, params)?;
        // The predecessor must be gone completely, and the driver must have taken its requests back.
        loop {
            match control.start_recovery(id).await {
                Ok(()) => break,
                Err(error) if error.errno() != Some(libc::EBUSY) || rt::now_ns() - began_ns > TAKE_OVER_NS => {
                    return Err(error);
                }
                Err(_) => rt::sleep(POLL_NS).await,
            }
        }
        let mut device = UblkDevice::serve(control, service, &found, threads).await?;
        device.announce(request);
        let shared = device.shared.clone();
        first_error(device.control.end_recovery(id), &shared, "FETCH_REQ").await?;
        info!("/dev/ublkb{id}: taken over in {} ms", (rt::now_ns() - began_ns) / 1_000_000);
        Ok(device)
    }

    /// Opens the character device and fetches on every queue.
    async fn serve(
        control: Control,
        service: S,
        info: &DevInfo,
        threads: &[Remote],
    ) -> Result<UblkDevice<S>, UblkError> {
        let device = open_character_device(info.dev_id).await?;
        let shared = Arc::new(Shared::new(service, device, info.queue_depth));
        for number in 0..info.nr_hw_queues {
            let shared = shared.clone();
            let thread = &threads[usize::from(number) % threads.len()];
            thread.run(move || queue::serve(&shared, number)).expect("the threads run until the service ends");
        }
        Ok(UblkDevice { control, shared, id: info.dev_id })
    }

    /// Tells udev and people whose device this is.
    fn announce(&self, request: &Request) {
        if let Err(error) = runtime_file::write(self.id, &request.name, request.uuid) {
            warn!("/dev/writeboost/{} cannot be named: {error}", request.name);
        }
    }

    /// Its number N.
    pub fn id(&self) -> u32 {
        self.id
    }

    /// No request is answered from now on: what comes waits for the next daemon. For an end of this process that leaves
    /// the device behind.
    pub fn park(&self) {
        self.shared.park();
    }

    /// Removes the device. Whoever still has it open gets errors. The service must still answer.
    pub async fn remove(self) -> Result<(), UblkError> {
        let UblkDevice { mut control, shared, id } = self;
        control.stop(id).await?;
        if rt::timeout(END_NS, shared.ended()).await.is_err() {
            return Err(UblkError::TimedOut { what: "the end of all requests", seconds: END_NS / 1_000_000_000 });
        }
        // The character device closes with the last task that had it.
        drop(shared);
        let deleted = control.delete(id).await;
        if !matches!(deleted, Err(UblkError::TimedOut { .. })) {
            deleted?;
        }
        runtime_file::remove(id);
        // Whoever opens it for a moment, as udev does, is waited for, so that the number can be used again at once.
        let deadline_ns = rt::now_ns() + CLOSED_NS;
        while still_open(&mut control, id).await {
            if rt::now_ns() > deadline_ns {
                warn!(
                    "/dev/ublkb{id} is removed, but somebody has it open still: its number is taken until they close it"
                );
                return Ok(());
            }
            rt::sleep(POLL_NS).await;
        }
        info!("/dev/ublkb{id} is removed");
        Ok(())
    }
}

/// Whether the driver keeps a deleted device for those who have it open.
async fn still_open(control: &mut Control, id: u32) -> bool {
    match control.info(id).await {
        Ok(info) => info.is_some(),
        // The command to delete it has not returned yet.
        Err(UblkError::TimedOut { .. }) => true,
        Err(_) => false,
    }
}

/// In words, who uses the device with this number. The requests that this makes are served meanwhile.
pub async fn users_of(id: u32) -> Vec<String> {
    let asking = std::thread::spawn(move || users::users(id));
    while !asking.is_finished() {
        rt::sleep(POLL_NS).await;
    }
    asking.join().unwrap_or_else(|_| vec!["unknown: looking for users failed".into()])
}

/// The command's outcome, or why it will never come: the driver gives us no requests.
async fn first_error<S: BlockService>(
    command: impl Future<Output = Result<(), UblkError>>,
    shared: &Shared<S>,
    what: &'static str,
) -> Result<(), UblkError> {
    match select(pin!(command), pin!(shared.refused())).await {
        Either::Left((outcome, _)) => outcome,
        Either::Right((error, _)) => Err(UblkError::Refused { what, error }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INFO: ServiceInfo = ServiceInfo { size_bytes: 1 << 30, sector_bytes: 512, read_only: false };

    #[test]
    fn what_the_device_claims_about_itself_is_true() {
        let p = params(&INFO);
        // Without these two the kernel sends no FLUSH at all.
        assert_eq!(p.attrs, uapi::ATTR_VOLATILE_CACHE | uapi::ATTR_FUA);
        assert_eq!((p.logical_bs_shift, p.physical_bs_shift, p.dev_sectors), (9, 12, 2 << 20));
        assert_eq!(u64::from(p.max_sectors) * 512, SERVICE_CHUNK_BYTES_MAX as u64);
        assert!(p.max_discard_sectors.is_multiple_of(8) && p.max_discard_sectors > 1 << 22);
        let four = params(&ServiceInfo { sector_bytes: 4096, read_only: true, ..INFO });
        assert_eq!((four.logical_bs_shift, four.attrs & uapi::ATTR_READ_ONLY, four.max_discard_sectors), (12, 1, 0));
    }

    #[test]
    fn a_device_made_for_something_else_is_not_taken_over() {
        let p = params(&INFO);
        compare(0, &p, &p).expect("the same");
        // Limits may differ from version to version.
        compare(0, &Params { max_discard_sectors: 8, io_opt_shift: 12, ..p }, &p).expect("nearly the same");
        for other in [
            params(&ServiceInfo { size_bytes: 1 << 29, ..INFO }),
            params(&ServiceInfo { sector_bytes: 4096, ..INFO }),
            params(&ServiceInfo { read_only: true, ..INFO }),
        ] {
            let why = compare(7, &other, &p).expect_err("another").to_string();
            assert!(why.contains("/dev/ublkb7"), "{why}");
        }
    }
}
