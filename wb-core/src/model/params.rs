//! The parameter file of the model devices: the only place with figures. Fixed before anything was tuned against it.
//!
//! Each figure is published by a maker or marked *chosen*; a test checks that the models reproduce the makers' figures
//! that are not put in (sequential rate, random operations per second at a queue depth).

/// Figures of any device.
#[derive(Debug, Clone, PartialEq)]
pub enum DeviceParams {
    /// Rotating.
    Disk(DiskParams),
    /// Flash.
    Ssd(SsdParams),
    /// Behind a network.
    Net(NetParams),
}

/// A rotating disk.
///
/// The mechanics of a large disk on a capacity that can be simulated: tracks are as long and as fast as the real ones,
/// so there are fewer of them, and a seek over a share of the capacity takes what it takes over that share of the real
/// one. So seeks are never shorter than on the real disk (a part of it would be: "short-stroked").
#[derive(Debug, Clone, PartialEq)]
pub struct DiskParams {
    /// One revolution.
    pub revolution_ns: u64,
    /// Sustained rate at the outer edge, track changes included, in bytes per second.
    pub outer_bytes_per_s: u64,
    /// Sustained rate at the inner edge.
    pub inner_bytes_per_s: u64,
    /// From a track to the next, for reading and writing, settling included.
    pub seek_track_ns: (u64, u64),
    /// The shortest seek beyond the next track: mostly settling.
    pub seek_short_ns: u64,
    /// Mean over all pairs of places, for reading and writing.
    pub seek_mean_ns: (u64, u64),
    /// From edge to edge.
    pub seek_full_ns: u64,
    /// Host link, bytes per second.
    pub link_bytes_per_s: u64,
    /// Work of the controller per command.
    pub command_ns: u64,
    /// Commands that the device accepts at once; later ones wait at the host.
    pub queue_depth: usize,
    /// Volatile write cache.
    pub cache_bytes: u64,
    /// Writes that the cache holds, among which the controller looks for the nearest. One that continues another joins it.
    pub cache_entries: usize,
    /// Reads, oldest first, among which the controller looks for the nearest.
    pub read_horizon: usize,
    /// A command that waited so long comes before nearer ones.
    pub age_max_ns: u64,
    /// Reads ahead of the last read, at most.
    pub read_ahead_bytes: u64,
    /// Stops its motor after this time without a command; `None`: never.
    pub standby_after_ns: Option<u64>,
    /// Start of the motor until ready.
    pub spin_up_ns: u64,
}

/// Flash.
#[derive(Debug, Clone, PartialEq)]
pub struct SsdParams {
    /// Time of a 4 KiB read alone.
    pub read_ns: u64,
    /// Time from a read command to the next.
    pub read_command_ns: u64,
    /// Reads at once.
    pub read_parallel: usize,
    /// Rate of reads.
    pub read_bytes_per_s: u64,
    /// Time of a 4 KiB write into the device's cache alone.
    pub write_ns: u64,
    /// Time from a write command to the next.
    pub write_command_ns: u64,
    /// Writes at once.
    pub write_parallel: usize,
    /// Rate of writes.
    pub write_bytes_per_s: u64,
    /// Rate at which the cache goes to flash.
    pub destage_bytes_per_s: u64,
    /// Bytes of writes that may be volatile; 0: protected by capacitors.
    pub cache_bytes: u64,
    /// FLUSH with an empty cache.
    pub flush_ns: u64,
}

/// A network volume.
#[derive(Debug, Clone, PartialEq)]
pub struct NetParams {
    /// Time of a command alone.
    pub latency_ns: u64,
    /// Commands per second.
    pub commands_per_s: u64,
    /// Bytes per second.
    pub bytes_per_s: u64,
    /// Largest command that counts as one.
    pub command_bytes_max: u64,
    /// Commands at once; later ones wait at the host.
    pub queue_depth: usize,
}

/// 7200 rpm disk with SATA.
///
/// Rotation, seeks and rates: Western Digital, Ultrastar DC HC310 OEM specification (6 TB SATA): 8.33 ms per revolution;
/// single-track seek 0.23/0.32 ms and average seek 7.4/8.2 ms read/write (typical, settling included); sustained 255
/// MB/s at the outer edge; 256 MB buffer; SATA 600 MB/s; NCQ of 32. Full stroke 20 ms: Hitachi 7K320 specification, the
/// figure of the newer one is not published. Inner rate: 0.48 of the outer, the ratio of Deskstar 7K500 (31.0/64.8 MB/s).
/// Chosen: 64 MiB of the buffer for writes, the horizon and age, 20 us of controller per command, 1 MiB of read-ahead.
/// Horizon and age were chosen so that 4 KiB operations at depth 16 come near what Seagate states for Exos X16 (170
/// reads, 440 writes per second with the write cache on), before any write-back was measured.
pub fn disk_7200() -> DiskParams {
    DiskParams {
        revolution_ns: 8_333_333,
        outer_bytes_per_s: 255_000_000,
        inner_bytes_per_s: 122_000_000,
        seek_track_ns: (230_000, 320_000),
        seek_short_ns: 1_000_000,
        seek_mean_ns: (7_400_000, 8_200_000),
        seek_full_ns: 20_000_000,
        link_bytes_per_s: 600_000_000,
        command_ns: 20_000,
        queue_depth: 32,
        cache_bytes: 64 << 20,
        cache_entries: 256,
        read_horizon: 6,
        age_max_ns: 1_000_000_000,
        read_ahead_bytes: 1 << 20,
        standby_after_ns: None,
        spin_up_ns: 15_000_000_000,
    }
}

/// Consumer SATA SSD.
///
/// Samsung 870 EVO data sheet (1 TB): sequential 560/530 MB/s; 4 KiB random 98 000/88 000 per second at depth 32, 13 000
/// reads and 36 000 writes at depth 1. FLUSH: 0.9 ms measured on a consumer drive without capacitors (smalldatum, 2026,
/// fsync after 16 KiB). Chosen: 8 MiB volatile; sustained flash rate as the sequential rate.
pub fn sata_ssd() -> SsdParams {
    SsdParams {
        read_ns: 77_000,
        read_command_ns: 10_204,
        read_parallel: 16,
        read_bytes_per_s: 560_000_000,
        write_ns: 27_000,
        write_command_ns: 11_363,
        write_parallel: 8,
        write_bytes_per_s: 530_000_000,
        destage_bytes_per_s: 530_000_000,
        cache_bytes: 8 << 20,
        flush_ns: 900_000,
    }
}

/// NVMe SSD with capacitors.
///
/// Samsung PM9A3 data sheet (1.92 TB): sequential 6 800/2 700 MB/s, 4 KiB random 850 000/130 000 per second, latency
/// 80/25 us. FLUSH 20 us: measured on drives with capacitors 12 to 58 us (smalldatum, 2026).
pub fn nvme_plp() -> SsdParams {
    SsdParams {
        read_ns: 80_000,
        read_command_ns: 1_176,
        read_parallel: 128,
        read_bytes_per_s: 6_800_000_000,
        write_ns: 25_000,
        write_command_ns: 7_692,
        write_parallel: 16,
        write_bytes_per_s: 2_700_000_000,
        destage_bytes_per_s: 2_700_000_000,
        cache_bytes: 0,
        flush_ns: 20_000,
    }
}

/// Network volume.
///
/// Amazon EBS gp3, baseline: 3 000 operations and 125 MB/s per second, operations up to 256 KiB count once, latency
/// "single-digit milliseconds" (1 ms chosen).
pub fn network_volume() -> NetParams {
    NetParams {
        latency_ns: 1_000_000,
        commands_per_s: 3_000,
        bytes_per_s: 125_000_000,
        command_bytes_max: 256 << 10,
        queue_depth: 64,
    }
}

/// The devices by name, for options and reports.
pub fn by_name(name: &str) -> Option<DeviceParams> {
    match name {
        "hdd" => Some(DeviceParams::Disk(disk_7200())),
        "sata-ssd" => Some(DeviceParams::Ssd(sata_ssd())),
        "nvme-plp" => Some(DeviceParams::Ssd(nvme_plp())),
        "network" => Some(DeviceParams::Net(network_volume())),
        _ => None,
    }
}

/// Names that [`by_name`] knows.
pub const NAMES: &[&str] = &["hdd", "sata-ssd", "nvme-plp", "network"];
