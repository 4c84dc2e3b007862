//! By how much modelled devices are slowed down in a guest. Its processor is emulated, 10 to 20 times slower than a real one;
//! devices that were not slowed down with it would wait for it, and the emulation would be what is measured. So the factor
//! is such that a ublk device with nothing behind it does at least three times what the modelled SSD does.

use super::fio::FioJob;
use super::link::Job;
use super::systems::{NULL, Transport};
use super::workload::{Kind, Sizes, Workload};
use anyhow::bail;
use wb_core::model::DeviceParams;

/// Least factor that is chosen: with it a quiet machine of two cores is fast enough, and its runs can be compared.
pub const LEAST: f64 = 60.0;
/// Above this the place is too slow, or too busy, to tell anything within a sensible time.
const MOST: f64 = 300.0;
/// The factor is a multiple of this, so that small differences do not change it from run to run.
const STEP: f64 = 20.0;
/// How many times as much as the SSD the null device does at least.
const MARGIN: f64 = 3.0;
/// Name of what was found in the result.
pub const FACT: &str = "null ublk device";

/// What the SSD takes at most, in writes of 4 KiB per second: as commands of their own, or packed into long ones.
fn most_per_s(ssd: Option<&DeviceParams>) -> f64 {
    match ssd {
        Some(DeviceParams::Ssd(p)) => (1e9 / p.write_command_ns as f64).max(p.write_bytes_per_s as f64 / 4096.0),
        Some(DeviceParams::Net(p)) => p.bytes_per_s as f64 / 4096.0,
        Some(DeviceParams::Disk(p)) => p.outer_bytes_per_s as f64 / 4096.0,
        None => 0.0,
    }
}

/// Random writes of 4 KiB, 32 at a time, on the null device.
pub fn job(sizes: Sizes) -> Job {
    let mut load = FioJob::new("randwrite", sizes.ssd, 4);
    (load.iodepth, load.ramp_s) = (32, 1);
    let mut workload = Workload::new("null", "What can this place do at most?", Kind::Fio(load));
    workload.dilation_share = 0.0;
    let (system, transport) = (NULL.to_string(), Transport::Ublk);
    Job { system, transport, workloads: vec![workload], round: 0, sizes, recover: false }
}

/// The factor, if a null device does so many writes per second.
pub fn factor(ssd: Option<&DeviceParams>, null_per_s: f64) -> anyhow::Result<f64> {
    let needed = (MARGIN * most_per_s(ssd) / null_per_s / STEP).ceil() * STEP;
    if needed > MOST {
        bail!(
            "this machine is too slow or too busy: a ublk device with nothing behind it does {null_per_s:.0} writes per second"
        );
    }
    Ok(needed.max(LEAST))
}

/// The same in words.
pub fn words(ssd: Option<&DeviceParams>, null_per_s: f64, factor: f64) -> String {
    let most = most_per_s(ssd);
    format!(
        "{null_per_s:.0} writes of 4 KiB per second; the modelled SSD takes at most {most:.0}, slowed down {factor} times \
         {:.0}: {:.1} times as many",
        most / factor,
        null_per_s * factor / most
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use wb_core::model::params;

    #[test]
    fn the_null_device_does_three_times_what_the_slowed_ssd_does() {
        let ssd = DeviceParams::Ssd(params::sata_ssd());
        // 530 MB/s are 129 000 blocks per second.
        for (null_per_s, wanted) in [(10_000.0, LEAST), (6_000.0, 80.0), (5_000.0, 80.0), (2_000.0, 200.0)] {
            let factor = factor(Some(&ssd), null_per_s).expect("fast enough");
            assert_eq!(factor, wanted);
            assert!(null_per_s * factor / most_per_s(Some(&ssd)) >= MARGIN);
        }
        assert!(factor(Some(&ssd), 1_000.0).is_err(), "too slow");
        assert!(words(Some(&ssd), 10_000.0, 40.0).contains("3.1 times"), "{}", words(Some(&ssd), 10_000.0, 40.0));
    }
}
