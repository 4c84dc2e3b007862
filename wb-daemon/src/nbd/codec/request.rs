//! Commands of the transmission phase: parsed, then judged against the export.

use super::wire::{self, NbdError, command, command_flag};
use super::{Export, take_u16, take_u32, take_u64};

/// The header of a command as it came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request {
    /// Flags, see [`command_flag`].
    pub flags: u16,
    /// Kind, see [`command`].
    pub kind: u16,
    /// The client's name for this request, to be repeated in the reply.
    pub cookie: u64,
    /// First byte of the range.
    pub offset: u64,
    /// Bytes of the range.
    pub len: u32,
}

/// Not a command: the stream is out of step and cannot be continued.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("command with bad magic {0:#010x}")]
pub struct BadMagic(pub u32);

impl Request {
    /// Parses a header. `None`: less than [`wire::REQUEST_BYTES`] bytes and nothing wrong with them so far.
    pub fn parse(mut input: &[u8]) -> Result<Option<Request>, BadMagic> {
        let Some(magic) = take_u32(&mut input) else { return Ok(None) };
        if magic != wire::REQUEST_MAGIC {
            return Err(BadMagic(magic));
        }
        let mut parse = || {
            let (flags, kind) = (take_u16(&mut input)?, take_u16(&mut input)?);
            let (cookie, offset) = (take_u64(&mut input)?, take_u64(&mut input)?);
            Some(Request { flags, kind, cookie, offset, len: take_u32(&mut input)? })
        };
        Ok(parse())
    }

    /// Bytes that follow the header, whether the command is valid or not.
    pub fn payload_bytes(&self) -> u32 {
        if self.kind == command::WRITE { self.len } else { 0 }
    }

    /// What to do about this command.
    pub fn judge(&self, export: &Export, structured: bool) -> Verdict {
        match self.kind {
            command::DISC => Verdict::Disconnect,
            kind => match self.check(export, structured) {
                Err(error) => Verdict::Refuse(error),
                Ok(()) => Verdict::Serve(match kind {
                    command::READ => Command::Read { fragment: self.flags & command_flag::DF == 0 },
                    command::WRITE => Command::Write { fua: self.fua() },
                    command::FLUSH => Command::Flush,
                    command::TRIM => Command::Trim { fua: self.fua() },
                    _ => Command::WriteZeroes { fua: self.fua() },
                }),
            },
        }
    }

    fn fua(&self) -> bool {
        self.flags & command_flag::FUA != 0
    }

    fn check(&self, export: &Export, structured: bool) -> Result<(), NbdError> {
        // FUA is accepted on every command, also where it means nothing (section "Command flags").
        let extra_flags = match self.kind {
            command::READ if structured => command_flag::DF,
            command::READ | command::WRITE | command::FLUSH | command::TRIM => 0,
            command::WRITE_ZEROES => command_flag::NO_HOLE,
            _ => return Err(NbdError::Inval),
        };
        if self.flags & !(command_flag::FUA | extra_flags) != 0 {
            return Err(NbdError::Inval);
        }
        if self.kind == command::FLUSH {
            let clean = self.offset == 0 && self.len == 0;
            return if clean { Ok(()) } else { Err(NbdError::Inval) };
        }
        if export.read_only && self.kind != command::READ {
            return Err(NbdError::Perm);
        }
        self.check_range(export, structured)
    }

    fn check_range(&self, export: &Export, structured: bool) -> Result<(), NbdError> {
        let end = self.offset.checked_add(u64::from(self.len));
        if end.is_none_or(|end| end > export.size_bytes) {
            let grows = matches!(self.kind, command::WRITE | command::WRITE_ZEROES);
            return Err(if grows { NbdError::NoSpc } else { NbdError::Inval });
        }
        let sector = u64::from(export.sector_bytes);
        if !self.offset.is_multiple_of(sector) || !u64::from(self.len).is_multiple_of(sector) {
            return Err(NbdError::Inval);
        }
        if self.len > wire::PAYLOAD_BYTES_MAX {
            match self.kind {
                // EOVERFLOW is only known to clients that agreed on structured replies (section "Error values").
                command::READ if structured => return Err(NbdError::Overflow),
                command::READ | command::WRITE => return Err(NbdError::Inval),
                _ => {}
            }
        }
        Ok(())
    }
}

/// What to do about a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Do it; its range is valid.
    Serve(Command),
    /// Skip its payload, if it has one, and answer with this error.
    Refuse(NbdError),
    /// Finish what is outstanding and close; no reply.
    Disconnect,
}

/// A valid command; its range is in the [`Request`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Command {
    /// Read; the reply may come in several chunks.
    Read {
        /// False: the client asked for one chunk.
        fragment: bool,
    },
    /// Write the payload.
    Write {
        /// Durable when answered.
        fua: bool,
    },
    /// Make completed writes durable.
    Flush,
    /// The range is not needed.
    Trim {
        /// Durable when answered.
        fua: bool,
    },
    /// The range shall read as zeroes. The service reserves log space for every write, so NO_HOLE asks for nothing more.
    WriteZeroes {
        /// Durable when answered.
        fua: bool,
    },
}

#[cfg(test)]
#[path = "request_tests.rs"]
mod tests;
