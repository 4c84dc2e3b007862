//! What the measuring side and the side that watches it say to each other: two threads of one process on this host, or
//! the guest and the host, line by line in JSON over a virtio serial port.

use super::result::{Cell, SystemConfig};
use super::systems::Transport;
use super::workload::{Sizes, Workload};
use crate::model_disk::Counts;
use anyhow::{Context as _, bail};
use serde::{Deserialize, Serialize};
use std::io::{BufRead, BufReader, Read, Write};

/// What to measure in one boot.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Job {
    /// Name of the system.
    pub system: String,
    /// How our own cache becomes a block device.
    pub transport: Transport,
    /// The workloads, in order.
    pub workloads: Vec<Workload>,
    /// Which repetition.
    pub round: u32,
    /// Sizes of the devices.
    pub sizes: Sizes,
    /// True after a power cut: attach what is there and tell how long that took.
    pub recover: bool,
}

/// From the measuring side. Each is answered before it goes on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Said {
    /// It is there; answered with [`Answer::Job`].
    Hello,
    /// What is being done now.
    Progress(String),
    /// A fact about the place.
    Fact(String, String),
    /// From now on the devices are to be slowed down by this share of the dilation.
    Dilate(f64),
    /// Answered with [`Answer::Counts`].
    Counts,
    /// How the system is set up.
    Config(SystemConfig),
    /// Something is measured.
    Cell(Box<Cell>),
    /// The power is to be cut now.
    PowerCut,
    /// Everything is measured.
    Done,
    /// It cannot go on.
    Failed(String),
}

/// From the watching side.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Answer {
    /// Go on.
    Ok,
    /// Do this.
    Job(Box<Job>),
    /// What the devices' models have counted, SSD and disk; absent for real devices.
    Counts(Option<Box<[Counts; 2]>>),
    /// Stop.
    Stop,
}

/// The measuring side's end.
pub trait Link {
    /// Says something and waits for the answer.
    fn ask(&mut self, said: Said) -> anyhow::Result<Answer>;

    /// Says something that is answered by [`Answer::Ok`].
    fn tell(&mut self, said: Said) -> anyhow::Result<()> {
        match self.ask(said)? {
            Answer::Ok => Ok(()),
            Answer::Stop => bail!("told to stop"),
            other => bail!("an answer out of place: {other:?}"),
        }
    }

    /// Counters of the devices' models.
    fn counts(&mut self) -> anyhow::Result<Option<[Counts; 2]>> {
        match self.ask(Said::Counts)? {
            Answer::Counts(counts) => Ok(counts.map(|counts| *counts)),
            Answer::Stop => bail!("told to stop"),
            other => bail!("an answer out of place: {other:?}"),
        }
    }
}

/// Lines of JSON over anything that can be read and written.
pub struct Lines<R, W> {
    reader: BufReader<R>,
    writer: W,
}

impl<R: Read, W: Write> Lines<R, W> {
    /// Over these two.
    pub fn new(reader: R, writer: W) -> Lines<R, W> {
        Lines { reader: BufReader::new(reader), writer }
    }

    /// Sends one message.
    pub fn send<T: Serialize>(&mut self, message: &T) -> anyhow::Result<()> {
        let mut line = serde_json::to_vec(message)?;
        line.push(b'\n');
        self.writer.write_all(&line).context("the other side is gone")?;
        self.writer.flush().context("the other side is gone")
    }

    /// Receives one message, appending to `line` what has come so far: a time limit of the reader ends the call with
    /// [`std::io::ErrorKind::WouldBlock`] as its cause and loses nothing. `None`: the other side has closed.
    pub fn receive<T: for<'a> Deserialize<'a>>(&mut self, line: &mut String) -> anyhow::Result<Option<T>> {
        if self.reader.read_line(line)? == 0 {
            return Ok(None);
        }
        let message = serde_json::from_str(line).with_context(|| format!("not understood: {}", line.trim()))?;
        line.clear();
        Ok(Some(message))
    }
}

impl<R: Read, W: Write> Link for Lines<R, W> {
    fn ask(&mut self, said: Said) -> anyhow::Result<Answer> {
        self.send(&said)?;
        self.receive(&mut String::new())?.context("the other side is gone")
    }
}
