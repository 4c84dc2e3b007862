//! Results on stdout: text, tables, JSON. A closed pipe is no error.

use crate::error::{NextStep, UsageError};
use comfy_table::presets::UTF8_FULL_CONDENSED;
use comfy_table::{Cell, CellAlignment, ContentArrangement, Table};
use serde::Serialize;
use std::io::{self, BufRead, IsTerminal, Write};

/// Where results go. Once the reader has closed the pipe (`| head`), everything further is silently dropped, so that
/// work that must be completed (a repair) is completed; loops that only print can ask [`Out::is_closed`] and end.
/// Any other write error (a full disk) is an error.
pub struct Out {
    sink: Box<dyn Write>,
    terminal: bool,
    closed: bool,
}

impl Out {
    /// The process's stdout: line by line on a terminal, in large pieces elsewhere.
    pub fn stdout() -> Out {
        let stdout = io::stdout();
        let terminal = stdout.is_terminal();
        if terminal {
            Out { sink: Box::new(stdout), terminal, closed: false }
        } else {
            // std's Stdout flushes at every newline, hence the buffer before it.
            Out { sink: Box::new(io::BufWriter::with_capacity(64 << 10, stdout)), terminal, closed: false }
        }
    }

    /// Another place, for tests.
    pub fn to(sink: Box<dyn Write>) -> Out {
        Out { sink, terminal: false, closed: false }
    }

    /// True if a person reads along.
    pub fn is_terminal(&self) -> bool {
        self.terminal
    }

    /// True if nobody reads any more.
    pub fn is_closed(&self) -> bool {
        self.closed
    }

    /// Prints `document` as JSON. Call it once per run: stdout carries exactly one document.
    pub fn json<T: Serialize>(&mut self, document: &T) -> anyhow::Result<()> {
        let text = serde_json::to_string_pretty(document)?;
        writeln!(self, "{text}")?;
        Ok(())
    }

    /// Prints a table.
    pub fn table(&mut self, table: &Table) -> io::Result<()> {
        writeln!(self, "{table}")
    }

    /// Writes out what is still buffered.
    pub fn finish(&mut self) -> anyhow::Result<()> {
        self.flush().map_err(|e| anyhow::Error::new(e).context("cannot write to stdout"))
    }

    fn absorb<T>(&mut self, result: io::Result<T>, when_closed: T) -> io::Result<T> {
        match result {
            Err(e) if e.kind() == io::ErrorKind::BrokenPipe => {
                self.closed = true;
                Ok(when_closed)
            }
            other => other,
        }
    }
}

impl Write for Out {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        if self.closed {
            return Ok(buf.len());
        }
        let result = self.sink.write(buf);
        self.absorb(result, buf.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        if self.closed {
            return Ok(());
        }
        let result = self.sink.flush();
        self.absorb(result, ())
    }
}

impl Drop for Out {
    fn drop(&mut self) {
        // After an error what was written before it is still shown; BufWriter ignores errors in its own drop, too.
        let _ = self.flush();
    }
}

/// An empty table in the tools' style with these column heads.
pub fn table<const N: usize>(heads: [&str; N]) -> Table {
    let mut table = Table::new();
    table.load_style(UTF8_FULL_CONDENSED).set_content_arrangement(ContentArrangement::Dynamic).set_header(heads);
    // A serial console says that it has no columns.
    if table.width().is_some_and(|width| width < 20) {
        table.set_content_arrangement(ContentArrangement::Disabled);
    }
    table
}

/// A right-aligned cell, for numbers.
pub fn number(text: impl ToString) -> Cell {
    Cell::new(text).set_alignment(CellAlignment::Right)
}

/// Asks on the terminal and gives the answer's line without surrounding blanks. Without a terminal on stdin it is a
/// usage error: `instead` says which option answers in place of a person.
pub fn ask(question: &str, instead: &str) -> anyhow::Result<String> {
    let stdin = io::stdin();
    if !stdin.is_terminal() {
        return Err(UsageError::raise("confirmation needed, but stdin is not a terminal")).next_step(instead);
    }
    let mut err = io::stderr();
    write!(err, "{question} ")?;
    err.flush()?;
    let mut answer = String::new();
    stdin.lock().read_line(&mut answer)?;
    Ok(answer.trim().to_string())
}

/// Asks a yes/no question as [`ask`] does; only `y` and `yes` mean yes.
pub fn confirm(question: &str, instead: &str) -> anyhow::Result<bool> {
    let answer = ask(&format!("{question} [y/N]"), instead)?;
    Ok(matches!(answer.to_ascii_lowercase().as_str(), "y" | "yes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    struct ClosedAfter(usize);
    impl Write for ClosedAfter {
        fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
            if self.0 == 0 {
                return Err(io::ErrorKind::BrokenPipe.into());
            }
            let n = buf.len().min(self.0);
            self.0 -= n;
            Ok(n)
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_closed_pipe_swallows_the_rest() {
        let mut out = Out::to(Box::new(ClosedAfter(3)));
        write!(out, "abc").unwrap();
        assert!(!out.is_closed());
        writeln!(out, "def").unwrap();
        assert!(out.is_closed());
        writeln!(out, "ghi").unwrap();
        out.finish().unwrap();
    }

    #[test]
    fn a_full_disk_is_an_error() {
        let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
        let mut out = Out::to(Box::new(io::BufWriter::new(full)));
        writeln!(out, "x").unwrap();
        assert!(out.finish().is_err());
    }
}
