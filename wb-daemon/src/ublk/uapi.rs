//! The kernel's interface: include/uapi/linux/ublk_cmd.h and Documentation/block/ublk.rst (Linux 6.12).

use zerocopy::{FromBytes, Immutable, IntoBytes};

/// Path of the driver's control device.
pub const CONTROL_PATH: &str = "/dev/ublk-control";

const IOC_WRITE: u32 = 1;
const IOC_READ: u32 = 2;

/// `_IOC` of asm-generic/ioctl.h, type 'u'.
const fn ioc(direction: u32, number: u32, size: usize) -> u32 {
    direction << 30 | (size as u32) << 16 | (b'u' as u32) << 8 | number
}

const fn control_command(direction: u32, number: u32) -> u32 {
    ioc(direction, number, size_of::<ControlCommand>())
}

const fn queue_command(number: u32) -> u32 {
    ioc(IOC_READ | IOC_WRITE, number, size_of::<QueueCommand>())
}

pub const CMD_GET_DEV_INFO: u32 = control_command(IOC_READ, 0x02);
pub const CMD_ADD_DEV: u32 = control_command(IOC_READ | IOC_WRITE, 0x04);
pub const CMD_DEL_DEV: u32 = control_command(IOC_READ | IOC_WRITE, 0x05);
pub const CMD_START_DEV: u32 = control_command(IOC_READ | IOC_WRITE, 0x06);
pub const CMD_STOP_DEV: u32 = control_command(IOC_READ | IOC_WRITE, 0x07);
pub const CMD_SET_PARAMS: u32 = control_command(IOC_READ | IOC_WRITE, 0x08);
pub const CMD_GET_PARAMS: u32 = control_command(IOC_READ, 0x09);
pub const CMD_START_USER_RECOVERY: u32 = control_command(IOC_READ | IOC_WRITE, 0x10);
pub const CMD_END_USER_RECOVERY: u32 = control_command(IOC_READ | IOC_WRITE, 0x11);
pub const CMD_GET_FEATURES: u32 = control_command(IOC_READ, 0x13);
/// Since Linux 6.9.
pub const CMD_DEL_DEV_ASYNC: u32 = control_command(IOC_READ, 0x14);

pub const IO_FETCH_REQ: u32 = queue_command(0x20);
pub const IO_COMMIT_AND_FETCH_REQ: u32 = queue_command(0x21);

/// Answer to a fetch: there is a request. Everything else ends the tag; `-ENODEV` when the device goes.
pub const IO_RES_OK: i32 = 0;

pub const F_USER_RECOVERY: u64 = 1 << 3;
pub const F_USER_RECOVERY_REISSUE: u64 = 1 << 4;
pub const F_CMD_IOCTL_ENCODE: u64 = 1 << 6;
pub const F_USER_COPY: u64 = 1 << 7;

/// What we ask for, with the names that errors use.
pub const FEATURES: [(u64, &str); 4] = [
    (F_USER_RECOVERY, "USER_RECOVERY"),
    (F_USER_RECOVERY_REISSUE, "USER_RECOVERY_REISSUE"),
    (F_CMD_IOCTL_ENCODE, "CMD_IOCTL_ENCODE"),
    (F_USER_COPY, "USER_COPY"),
];

/// Added, not started, or stopped. The others: 1 live, 2 quiesced.
pub const STATE_DEAD: u16 = 0;

/// `struct ublksrv_ctrl_cmd`: in the command area of a 128-byte entry.
#[derive(Debug, Clone, Copy, IntoBytes, FromBytes, Immutable)]
#[repr(C)]
pub struct ControlCommand {
    pub dev_id: u32,
    /// `u16::MAX` unless the command is about one queue.
    pub queue_id: u16,
    /// Bytes at `addr`.
    pub len: u16,
    /// Structure that the command reads or fills.
    pub addr: u64,
    pub data: u64,
    pub dev_path_len: u16,
    pub pad: u16,
    pub reserved: u32,
}

/// `struct ublksrv_ctrl_dev_info`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, IntoBytes, FromBytes, Immutable)]
#[repr(C)]
pub struct DevInfo {
    pub nr_hw_queues: u16,
    pub queue_depth: u16,
    pub state: u16,
    pub pad0: u16,
    pub max_io_buf_bytes: u32,
    pub dev_id: u32,
    pub ublksrv_pid: i32,
    pub pad1: u32,
    pub flags: u64,
    /// Ours; the driver only keeps it.
    pub ublksrv_flags: u64,
    pub owner_uid: u32,
    pub owner_gid: u32,
    pub reserved1: u64,
    pub reserved2: u64,
}

pub const ATTR_READ_ONLY: u32 = 1 << 0;
pub const ATTR_VOLATILE_CACHE: u32 = 1 << 2;
pub const ATTR_FUA: u32 = 1 << 3;

pub const PARAM_BASIC: u32 = 1 << 0;
pub const PARAM_DISCARD: u32 = 1 << 1;

/// `struct ublk_params` with its first two parts, `ublk_param_basic` and `ublk_param_discard`; the driver is told the
/// length, and knows the later parts to be absent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, IntoBytes, FromBytes, Immutable)]
#[repr(C)]
pub struct Params {
    pub len: u32,
    pub types: u32,

    pub attrs: u32,
    pub logical_bs_shift: u8,
    pub physical_bs_shift: u8,
    pub io_opt_shift: u8,
    pub io_min_shift: u8,
    pub max_sectors: u32,
    pub chunk_sectors: u32,
    pub dev_sectors: u64,
    pub virt_boundary_mask: u64,

    pub discard_alignment: u32,
    pub discard_granularity: u32,
    pub max_discard_sectors: u32,
    pub max_write_zeroes_sectors: u32,
    pub max_discard_segments: u16,
    pub reserved0: u16,
    /// Start of the next part, `ublk_param_devt`: zero, and of a type that we do not set.
    pub next: u32,
}

/// `struct ublksrv_io_cmd`: in the command area of a 64-byte entry.
#[derive(Debug, Clone, Copy, IntoBytes, FromBytes, Immutable)]
#[repr(C)]
pub struct QueueCommand {
    pub q_id: u16,
    pub tag: u16,
    /// Bytes done or a negated errno; for commits.
    pub result: i32,
    /// Unused with `USER_COPY`.
    pub addr: u64,
}

/// `struct ublksrv_io_desc`: a request, in memory that the driver writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, IntoBytes, FromBytes, Immutable)]
#[repr(C)]
pub struct IoDesc {
    /// Operation in the lowest 8 bits, flags above.
    pub op_flags: u32,
    pub nr_sectors: u32,
    pub start_sector: u64,
    pub addr: u64,
}

const _: () = assert!(size_of::<ControlCommand>() == 32);
const _: () = assert!(size_of::<DevInfo>() == 64);
const _: () = assert!(size_of::<Params>() == 64);
const _: () = assert!(size_of::<QueueCommand>() == 16);
const _: () = assert!(size_of::<IoDesc>() == 24);
// As the header's macros give them on every architecture that has no `_IOC` of its own.
const _: () = assert!(CMD_ADD_DEV == 0xc020_7504 && CMD_GET_FEATURES == 0x8020_7513 && IO_FETCH_REQ == 0xc010_7520);

pub const OP_READ: u32 = 0;
pub const OP_WRITE: u32 = 1;
pub const OP_FLUSH: u32 = 2;
pub const OP_DISCARD: u32 = 3;
pub const OP_WRITE_ZEROES: u32 = 5;

pub const IO_F_FUA: u32 = 1 << 13;

/// Sector of descriptors and parameters, whatever the logical block is.
pub const UBLK_SECTOR_BYTES: u64 = 512;

/// Most requests of a queue; the stride of the queues' descriptors follows from it.
const QUEUE_DEPTH_MAX: u64 = 4096;

const fn pages(bytes: u64) -> u64 {
    bytes.next_multiple_of(4096)
}

/// Where the descriptors of a queue lie in the character device, for mmap.
pub fn descriptors_offset(queue: u16) -> u64 {
    u64::from(queue) * pages(QUEUE_DEPTH_MAX * size_of::<IoDesc>() as u64)
}

/// Bytes of the mapping.
pub fn descriptors_bytes(depth: u16) -> usize {
    pages(u64::from(depth) * size_of::<IoDesc>() as u64) as usize
}

/// Where the payload of a request lies in the character device, for pread and pwrite (`USER_COPY`).
pub fn payload_offset(queue: u16, tag: u16) -> u64 {
    const BASE: u64 = 0x8000_0000;
    BASE + (u64::from(queue) << 41) + (u64::from(tag) << 25)
}
