//! The workloads: each answers one question, which is why it is there.

use super::fio::FioJob;
use super::memory;
use super::result::WorkloadInfo;
use serde::{Deserialize, Serialize};

/// Bytes of the devices that workloads are sized by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sizes {
    /// The SSD that the caches get.
    pub ssd: u64,
    /// The disk behind them.
    pub disk: u64,
}

/// Which set is run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Scale {
    /// Short runs of the workloads that tell most.
    Quick,
    /// Everything, long enough to reach steady states.
    Full,
}

/// What a workload starts from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Preparation {
    /// The cache made anew, empty.
    Fresh,
    /// The cache made anew, then this load, which is not measured.
    After(FioJob),
    /// The state that the workload of this name has left.
    Continue(String),
}

/// What is measured.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Kind {
    /// A load of fio's.
    Fio(FioJob),
    /// How fast dirty data goes to the disk when the cache is taken away, watched for at most so many seconds.
    Drain {
        /// Limit.
        seconds: u64,
    },
    /// Transactions of sqlite with sync on, on ext4.
    Sqlite {
        /// Time of measuring.
        seconds: u64,
    },
    /// Unpacking a source tree and building from it, on ext4.
    Tree {
        /// Number of source files.
        files: u32,
    },
    /// Power cut under this load, then time from the start of the cache to the first I/O.
    Recovery(FioJob),
    /// Memory that is held once this load has filled the cache; measured with SSDs of two sizes.
    Memory(FioJob),
}

/// A workload.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Workload {
    /// Short name.
    pub name: String,
    /// Its question.
    pub question: String,
    /// What it starts from.
    pub preparation: Preparation,
    /// What is measured.
    pub kind: Kind,
    /// By how much modelled devices are slowed down, as a share of what the run says: 1 where the processor is the
    /// tighter limit, less where the devices are so slow that emulation keeps up anyway.
    pub dilation_share: f64,
    /// True if it is repeated in every round, false if it is run in the first one only.
    pub repeated: bool,
    /// True if it means something on a bare device.
    pub on_raw: bool,
}

impl Workload {
    /// One that starts from a new cache and is repeated, on bare devices too; the rest is set by the caller.
    pub fn new(name: &str, question: &str, kind: Kind) -> Workload {
        Workload {
            name: name.to_string(),
            question: question.to_string(),
            preparation: Preparation::Fresh,
            kind,
            dilation_share: 1.0,
            repeated: true,
            on_raw: true,
        }
    }

    /// Unit of the compared figure.
    pub fn unit(&self) -> &'static str {
        match &self.kind {
            Kind::Fio(job) if job.in_mib() => "MiB/s",
            Kind::Fio(_) => "IOPS",
            Kind::Drain { .. } => "MiB/s",
            Kind::Sqlite { .. } => "commits/s",
            Kind::Tree { .. } => "s",
            Kind::Recovery(_) => "s",
            Kind::Memory(_) => "MiB/GiB",
        }
    }

    /// True if a larger figure is the better one.
    pub fn more_is_better(&self) -> bool {
        !matches!(self.kind, Kind::Tree { .. } | Kind::Recovery(_) | Kind::Memory(_))
    }

    /// Where on the device the first byte lies that it accesses.
    pub fn begins_at(&self) -> u64 {
        match &self.kind {
            Kind::Fio(job) | Kind::Recovery(job) | Kind::Memory(job) => job.offset,
            Kind::Drain { .. } | Kind::Sqlite { .. } | Kind::Tree { .. } => 0,
        }
    }

    /// What the report says about it.
    pub fn info(&self) -> WorkloadInfo {
        let file = |job: &FioJob| job.file("DEVICE", "LOG");
        let preparation = match &self.preparation {
            Preparation::Fresh => "cache made anew".to_string(),
            Preparation::After(job) => format!("cache made anew, then:\n{}", file(job)),
            Preparation::Continue(before) => format!("the state that '{before}' has left"),
        };
        let job = match &self.kind {
            Kind::Fio(job) => file(job),
            Kind::Drain { seconds } => {
                format!("the system's own way to write everything back, watched for at most {seconds} s")
            }
            Kind::Sqlite { seconds } => format!(
                "ext4; sqlite3, journal_mode=WAL, synchronous=FULL; one INSERT of 200 bytes per transaction, for {seconds} s"
            ),
            Kind::Tree { files } => format!(
                "ext4; unpack {files} source files (2 to 32 KiB, seeded), sync; read each and write an object of \
                 the same size, renamed into place; link them into one file; sync"
            ),
            Kind::Recovery(job) => format!("power cut at the end of:\n{}", file(job)),
            Kind::Memory(job) => format!("what is held with SSDs of two sizes, each filled by:\n{}", file(job)),
        };
        WorkloadInfo {
            name: self.name.clone(),
            question: self.question.clone(),
            preparation,
            job,
            unit: self.unit().to_string(),
            more_is_better: self.more_is_better(),
            dilation_share: self.dilation_share,
        }
    }
}

/// Share of the dilation for random loads that the disk bounds: next to none with the usual factor. A rotating disk does some
/// hundred of them per second, which an emulated processor keeps up with many times over.
const DISK_BOUND: f64 = 0.025;
/// The same for sequential ones.
const SEQUENTIAL: f64 = 0.15;
/// The same for loads that only prepare something.
pub const PREPARING: f64 = 0.25;

/// The workloads of a set, sized for these devices. They run in this order; one that continues another follows it.
pub fn list(scale: Scale, sizes: Sizes) -> Vec<Workload> {
    let full = scale == Scale::Full;
    let s = |quick: u64, long: u64| if full { long } else { quick };
    let (ssd, disk) = (sizes.ssd, sizes.disk);
    let mut list = Vec::new();

    let mut job = FioJob::new("randwrite", ssd, s(8, 60));
    (job.iodepth, job.io_size) = (32, Some(ssd / 4));
    let question = "How fast does a burst of random 4 KiB writes go, as large as a quarter of the cache, with one flush at its end?";
    list.push(Workload::new("burst", question, Kind::Fio(job)));

    let question = "How fast does dirty data reach the disk when the cache is to be taken away after that burst?";
    list.push(Workload {
        preparation: Preparation::Continue("burst".into()),
        dilation_share: DISK_BOUND,
        repeated: full,
        on_raw: false,
        ..Workload::new("drain", question, Kind::Drain { seconds: s(15, 600) })
    });

    let mut job = FioJob::new("randwrite", ssd / 2, s(5, 30));
    job.fdatasync = true;
    let question = "How many 4 KiB writes per second can one program make durable, each by itself?";
    list.push(Workload::new("fsync-1", question, Kind::Fio(job.clone())));

    job.numjobs = 16;
    let question = "How many can sixteen programs make durable side by side?";
    list.push(Workload::new("fsync-16", question, Kind::Fio(job)));

    let mut job = FioJob::new("randwrite", ssd * 2, s(6, 60));
    (job.iodepth, job.zipf) = (32, Some(0.99));
    let question = "How fast are few hot blocks overwritten again and again (zipfian, theta 0.99)?";
    list.push(Workload { repeated: full, ..Workload::new("zipf-overwrite", question, Kind::Fio(job)) });

    let mut warm = FioJob::new("write", ssd / 4, s(45, 120));
    (warm.bs, warm.iodepth, warm.io_size) = (128 << 10, 8, Some(ssd / 4));
    let mut job = FioJob::new("randrw", ssd / 4, s(5, 60));
    (job.iodepth, job.zipf, job.rwmixread, job.ramp_s) = (16, Some(0.99), 70, s(1, 30));
    let question = "How does a working set that was written before and fits the cache serve 70 % reads, 30 % writes?";
    list.push(Workload {
        preparation: Preparation::After(warm),
        repeated: full,
        ..Workload::new("mixed-warm", question, Kind::Fio(job))
    });

    let mut job = FioJob::new("randread", disk / 2, s(4, 60));
    (job.iodepth, job.offset) = (16, disk / 2);
    let question = "What does the cache cost random reads of what it does not have?";
    list.push(Workload {
        preparation: Preparation::Continue("mixed-warm".into()),
        dilation_share: DISK_BOUND,
        repeated: full,
        ..Workload::new("cold-read", question, Kind::Fio(job))
    });

    let mut job = FioJob::new("read", disk / 2, s(4, 60));
    (job.bs, job.iodepth, job.offset) = (256 << 10, 8, disk / 2);
    let question = "What does it cost sequential reads?";
    list.push(Workload {
        preparation: Preparation::Continue("cold-read".into()),
        dilation_share: SEQUENTIAL,
        repeated: full,
        ..Workload::new("seq-read", question, Kind::Fio(job))
    });

    let question = "How many transactions per second does sqlite commit, with sync on, on ext4?";
    list.push(Workload { repeated: full, ..Workload::new("sqlite", question, Kind::Sqlite { seconds: s(6, 60) }) });

    if full {
        let question = "How much memory does a GiB of cache in blocks of 4 KiB take?";
        list.push(Workload {
            dilation_share: 0.0,
            repeated: false,
            on_raw: false,
            ..Workload::new(memory::NAME, question, Kind::Memory(memory::fill(memory::SSD_BYTES[0])))
        });

        let question = "How long does it take to unpack a source tree on ext4 and to build from it?";
        list.push(Workload::new("source-tree", question, Kind::Tree { files: 1500 }));
    }

    let mut fill = FioJob::new("randwrite", disk, s(45, 300));
    (fill.iodepth, fill.io_size, fill.seed) = (32, Some(ssd), fill.seed + 1);
    let mut job = FioJob::new("randwrite", disk, s(15, 180));
    job.iodepth = 32;
    let question = "What is left of random 4 KiB writes over the whole disk once the cache is full?";
    list.push(Workload {
        preparation: Preparation::After(fill),
        dilation_share: DISK_BOUND,
        repeated: full,
        ..Workload::new("sustained", question, Kind::Fio(job))
    });

    let stream = |offset: u64, size: u64, runtime_s: u64| {
        let job = FioJob::new("write", size, runtime_s);
        FioJob { bs: 256 << 10, iodepth: 8, offset, ..job }
    };
    let question =
        "And how fast is a sequential write right after that, when the cache is full of dirty random blocks?";
    list.push(Workload {
        preparation: Preparation::Continue("sustained".into()),
        dilation_share: SEQUENTIAL,
        repeated: full,
        ..Workload::new("seq-on-random", question, Kind::Fio(stream(0, disk, s(10, 120))))
    });

    let fill = FioJob { io_size: Some(ssd / 4 * 5), ..stream(0, disk / 2, s(60, 300)) };
    let question = "How fast does a sequential write go on that has filled the cache before?";
    list.push(Workload {
        preparation: Preparation::After(fill),
        dilation_share: SEQUENTIAL,
        repeated: full,
        ..Workload::new("seq-write-full", question, Kind::Fio(stream(disk / 2, disk / 2, s(10, 120))))
    });

    let mut job = FioJob::new("randwrite", ssd, s(5, 60));
    (job.iodepth, job.io_size) = (32, Some(ssd / 4));
    let question = "How long after a power cut is the first request answered?";
    list.push(Workload { repeated: full, on_raw: false, ..Workload::new("recovery", question, Kind::Recovery(job)) });
    list
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_workload_has_a_question_and_follows_what_it_continues() {
        let sizes = Sizes { ssd: 256 << 20, disk: 2 << 30 };
        for scale in [Scale::Quick, Scale::Full] {
            let list = list(scale, sizes);
            for (at, workload) in list.iter().enumerate() {
                assert!(workload.question.ends_with('?'), "{}", workload.name);
                assert_eq!(list.iter().filter(|w| w.name == workload.name).count(), 1);
                if let Preparation::Continue(before) = &workload.preparation {
                    assert_eq!(&list[at - 1].name, before, "{} continues what ran before it", workload.name);
                }
                if let Kind::Fio(job) = &workload.kind {
                    assert!(job.offset + job.size <= sizes.disk, "{} stays on the disk", workload.name);
                }
                // A power cut ends the boot, so nothing can follow it.
                assert!(!matches!(workload.kind, Kind::Recovery(_)) || at == list.len() - 1);
            }
        }
        assert!(super::list(Scale::Full, sizes).len() > super::list(Scale::Quick, sizes).len());
    }
}
