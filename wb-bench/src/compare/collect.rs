//! The watching side: collects what the measuring side says, and shows how far it is.

use super::link::{Answer, Said};
use super::result::{Cell, Comparison, Outcome};
use crate::model_disk::ModelServer;
use std::io::{IsTerminal, Write};
use std::time::Instant;
use wb_cli::progress::{Progress, ProgressUnit};

/// Modelled devices of a guest, and by how much they are slowed down at most.
pub struct Models {
    /// The SSD.
    pub ssd: ModelServer,
    /// The disk.
    pub disk: ModelServer,
    /// The dilation of which workloads take a share.
    pub dilation: f64,
}

/// Collects.
pub struct Collector {
    /// What there is so far.
    pub result: Comparison,
    /// Cells that will come.
    expected: usize,
    began: Instant,
    bar: Progress,
}

impl Collector {
    /// Expects this many cells.
    pub fn new(result: Comparison, expected: usize) -> Collector {
        let bar = Progress::new("comparing", expected as u64, ProgressUnit::Items);
        Collector { result, expected, began: Instant::now(), bar }
    }

    /// What is being done now.
    pub fn progress(&self, what: &str) {
        self.bar.set_message(what);
        if !std::io::stderr().is_terminal() {
            let (done, seconds) = (self.result.cells.len(), self.began.elapsed().as_secs());
            // Nobody reads it if that fails.
            let _ = writeln!(std::io::stderr(), "[{done}/{} {seconds:>4} s] {what}", self.expected);
        }
    }

    fn cell(&mut self, cell: Cell) {
        if let Outcome::Failed(why) = &cell.outcome {
            let line = format!("{}: {} has failed: {why}", cell.system, cell.workload);
            self.bar.note(&line);
            if !std::io::stderr().is_terminal() {
                let _ = writeln!(std::io::stderr(), "{line}");
            }
        }
        self.result.cells.push(cell);
        self.bar.set(self.result.cells.len() as u64);
    }

    /// Answers what says nothing about the course of things; the rest is for the caller.
    pub fn answer(&mut self, said: Said, models: Option<&Models>) -> Result<Answer, Said> {
        match said {
            Said::Progress(what) => self.progress(&what),
            Said::Fact(name, value) => drop(self.result.setup.facts.insert(name, value)),
            Said::Config(config) => {
                if !self.result.systems.iter().any(|known| known.name == config.name) {
                    self.result.systems.push(config);
                }
            }
            Said::Cell(cell) => self.cell(*cell),
            Said::Dilate(share) => {
                if let Some(models) = models {
                    models.ssd.dilate(models.dilation * share);
                    models.disk.dilate(models.dilation * share);
                }
            }
            Said::Counts => {
                let counts = models.map(|models| Box::new([models.ssd.counts(), models.disk.counts()]));
                return Ok(Answer::Counts(counts));
            }
            Said::Hello | Said::PowerCut | Said::Done | Said::Failed(_) => return Err(said),
        }
        Ok(Answer::Ok)
    }
}
