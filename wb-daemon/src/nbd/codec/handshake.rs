//! The handshake (fixed newstyle) as a state machine: bytes of the client in, bytes for the client out.

use super::wire::{self, handshake_flag, info, option, option_reply};
use super::{Export, take_u16, take_u32, take_u64};
use std::fmt;

/// Longest option that is read as a whole: a name of the longest length, and more information requests than exist.
pub const OPTION_DATA_BYTES_MAX: u32 = 6144;
/// Longer options up to this length are skipped and answered; beyond it the connection is closed.
pub const OPTION_SKIP_BYTES_MAX: u32 = 1 << 20;
/// Input that [`Handshake::advance`] may need in one piece.
pub const INPUT_BYTES_MAX: usize = wire::OPTION_HEADER_BYTES + OPTION_DATA_BYTES_MAX as usize;
/// Output after which [`Handshake::advance`] pauses, so that a client that never reads cannot make it grow.
const OUTPUT_PAUSE_BYTES: usize = 16 << 10;

/// What was agreed on for the transmission phase.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Session {
    /// Reads are answered by structured replies.
    pub structured: bool,
}

/// Where the handshake stands after [`Handshake::advance`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Progress {
    /// All that was complete is consumed: send the output, then come back with more input.
    NeedMore,
    /// There is enough output for now: send it, then come back with the input that is left.
    Pause,
    /// Send the output; what is not consumed belongs to the transmission phase.
    Transmission(Session),
    /// Send the output, then close the connection.
    Close(CloseReason),
}

/// Why the server ends a handshake.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CloseReason {
    /// The client asked for it (NBD_OPT_ABORT).
    Aborted,
    /// Client flags that the protocol does not know; the server must close.
    UnknownClientFlags(u32),
    /// An option that does not begin with its magic number.
    BadMagic(u64),
    /// An option too long to be skipped.
    OptionTooLong(u32),
    /// NBD_OPT_EXPORT_NAME with a name that is not served; this option cannot be answered by an error.
    UnknownExport,
}

impl fmt::Display for CloseReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CloseReason::Aborted => write!(f, "the client aborted the handshake"),
            CloseReason::UnknownClientFlags(flags) => write!(f, "unknown client flags {flags:#x}"),
            CloseReason::BadMagic(magic) => write!(f, "option with bad magic {magic:#018x}"),
            CloseReason::OptionTooLong(len) => write!(f, "option of {len} bytes"),
            CloseReason::UnknownExport => write!(f, "the client asked for an export that is not served"),
        }
    }
}

enum State {
    ClientFlags,
    Option,
    /// Data of an option that is too long to be looked at, and what the answer will be.
    Skip {
        left: u32,
        option: u32,
        reply: u32,
    },
    Done,
}

/// The server's side of one handshake.
pub struct Handshake<'a> {
    export: &'a Export,
    state: State,
    no_zeroes: bool,
    structured: bool,
}

/// The first bytes of a connection, sent by the server.
pub fn greeting() -> [u8; 18] {
    let mut bytes = [0; 18];
    bytes[..8].copy_from_slice(&wire::GREETING_MAGIC.to_be_bytes());
    bytes[8..16].copy_from_slice(&wire::OPTION_MAGIC.to_be_bytes());
    bytes[16..].copy_from_slice(&(handshake_flag::FIXED_NEWSTYLE | handshake_flag::NO_ZEROES).to_be_bytes());
    bytes
}

impl<'a> Handshake<'a> {
    /// A handshake whose greeting has been sent.
    pub fn new(export: &'a Export) -> Handshake<'a> {
        Handshake { export, state: State::ClientFlags, no_zeroes: false, structured: false }
    }

    /// Consumes the complete messages at the start of `input` and appends the answers to `output`. Returns how many
    /// bytes it consumed; the rest has to come again, followed by more. It makes progress whenever
    /// [`INPUT_BYTES_MAX`] bytes are there. Must not be called again after `Transmission` or `Close`.
    pub fn advance(&mut self, input: &[u8], output: &mut Vec<u8>) -> (usize, Progress) {
        let mut rest = input;
        let progress = loop {
            if output.len() >= OUTPUT_PAUSE_BYTES {
                break Progress::Pause;
            }
            let before = rest.len();
            match self.step(&mut rest, output) {
                Progress::NeedMore if rest.len() < before => {}
                other => break other,
            }
        };
        if matches!(progress, Progress::Transmission(_) | Progress::Close(_)) {
            self.state = State::Done;
        }
        (input.len() - rest.len(), progress)
    }

    /// One message, or nothing if it is not complete.
    fn step(&mut self, rest: &mut &[u8], output: &mut Vec<u8>) -> Progress {
        match self.state {
            State::ClientFlags => self.client_flags(rest),
            State::Option => self.option(rest, output),
            State::Skip { left, option, reply } => {
                let skipped = left.min(u32::try_from(rest.len()).unwrap_or(u32::MAX));
                *rest = &rest[skipped as usize..];
                self.state = State::Skip { left: left - skipped, option, reply };
                if left == skipped {
                    put_reply(output, option, reply, b"the option is too long");
                    self.state = State::Option;
                }
                Progress::NeedMore
            }
            State::Done => unreachable!("the handshake is over"),
        }
    }

    fn client_flags(&mut self, rest: &mut &[u8]) -> Progress {
        let Some(flags) = take_u32(rest) else { return Progress::NeedMore };
        let known = u32::from(handshake_flag::FIXED_NEWSTYLE | handshake_flag::NO_ZEROES);
        if flags & !known != 0 {
            return Progress::Close(CloseReason::UnknownClientFlags(flags));
        }
        self.no_zeroes = flags & u32::from(handshake_flag::NO_ZEROES) != 0;
        self.state = State::Option;
        Progress::NeedMore
    }

    fn option(&mut self, rest: &mut &[u8], output: &mut Vec<u8>) -> Progress {
        let mut head = *rest;
        let Some(magic) = take_u64(&mut head) else { return Progress::NeedMore };
        if magic != wire::OPTION_MAGIC {
            return Progress::Close(CloseReason::BadMagic(magic));
        }
        let (Some(option), Some(len)) = (take_u32(&mut head), take_u32(&mut head)) else { return Progress::NeedMore };
        if len > OPTION_DATA_BYTES_MAX {
            if option == option::EXPORT_NAME {
                return Progress::Close(CloseReason::UnknownExport);
            }
            if len > OPTION_SKIP_BYTES_MAX {
                put_reply(output, option, option_reply::ERR_TOO_BIG, b"the option is too long; closing");
                return Progress::Close(CloseReason::OptionTooLong(len));
            }
            *rest = head;
            self.state = State::Skip { left: len, option, reply: option_reply::ERR_TOO_BIG };
            return Progress::NeedMore;
        }
        let Some((data, tail)) = head.split_at_checked(len as usize) else { return Progress::NeedMore };
        *rest = tail;
        self.answer(option, data, output)
    }

    fn answer(&mut self, option: u32, data: &[u8], output: &mut Vec<u8>) -> Progress {
        match option {
            option::EXPORT_NAME => return self.export_name(data, output),
            option::ABORT => {
                put_reply(output, option, option_reply::ACK, b"");
                return Progress::Close(CloseReason::Aborted);
            }
            option::INFO | option::GO => return self.info_or_go(option, data, output),
            option::LIST | option::STRUCTURED_REPLY if !data.is_empty() => {
                put_reply(output, option, option_reply::ERR_INVALID, b"this option takes no data");
            }
            option::LIST => {
                let name = self.export.name.as_bytes();
                let mut body = Vec::with_capacity(4 + name.len());
                body.extend_from_slice(&be_len(name));
                body.extend_from_slice(name);
                body.extend_from_slice(self.export.description.as_bytes());
                put_reply(output, option, option_reply::SERVER, &body);
                put_reply(output, option, option_reply::ACK, b"");
            }
            option::STRUCTURED_REPLY => {
                self.structured = true;
                put_reply(output, option, option_reply::ACK, b"");
            }
            // TLS and metadata contexts are known to the protocol but not served here; whatever else is unknown.
            _ => put_reply(output, option, option_reply::ERR_UNSUP, b"option not supported"),
        }
        Progress::NeedMore
    }

    fn is_ours(&self, name: &[u8]) -> bool {
        name.is_empty() || name == self.export.name.as_bytes()
    }

    fn flags(&self) -> u16 {
        self.export.transmission_flags(self.structured)
    }

    fn export_name(&mut self, name: &[u8], output: &mut Vec<u8>) -> Progress {
        if !self.is_ours(name) {
            return Progress::Close(CloseReason::UnknownExport);
        }
        output.extend_from_slice(&self.export.size_bytes.to_be_bytes());
        output.extend_from_slice(&self.flags().to_be_bytes());
        if !self.no_zeroes {
            output.extend_from_slice(&[0; 124]);
        }
        Progress::Transmission(Session { structured: self.structured })
    }

    fn info_or_go(&mut self, option: u32, data: &[u8], output: &mut Vec<u8>) -> Progress {
        let Some(wanted) = InfoRequest::parse(data) else {
            put_reply(output, option, option_reply::ERR_INVALID, b"lengths within the option do not fit");
            return Progress::NeedMore;
        };
        if !self.is_ours(wanted.name) {
            let message = format!("no such export; this server has '{}'", self.export.name);
            put_reply(output, option, option_reply::ERR_UNKNOWN, message.as_bytes());
            return Progress::NeedMore;
        }
        self.put_info(option, &wanted, output);
        put_reply(output, option, option_reply::ACK, b"");
        if option == option::GO {
            Progress::Transmission(Session { structured: self.structured })
        } else {
            Progress::NeedMore
        }
    }

    fn put_info(&self, option: u32, wanted: &InfoRequest<'_>, output: &mut Vec<u8>) {
        let mut put = |kind: u16, parts: &[&[u8]]| {
            let body = [&[&kind.to_be_bytes()[..]], parts].concat().concat();
            put_reply(output, option, option_reply::INFO, &body);
        };
        put(info::EXPORT, &[&self.export.size_bytes.to_be_bytes(), &self.flags().to_be_bytes()]);
        if wanted.has(info::NAME) {
            put(info::NAME, &[self.export.name.as_bytes()]);
        }
        if wanted.has(info::DESCRIPTION) && !self.export.description.is_empty() {
            put(info::DESCRIPTION, &[self.export.description.as_bytes()]);
        }
        if wanted.has(info::BLOCK_SIZE) {
            let preferred = wire::PREFERRED_BLOCK_BYTES.max(self.export.sector_bytes);
            let sizes = [self.export.sector_bytes, preferred, wire::PAYLOAD_BYTES_MAX].map(u32::to_be_bytes);
            put(info::BLOCK_SIZE, &[sizes.as_flattened()]);
        }
    }
}

/// Data of NBD_OPT_INFO and NBD_OPT_GO.
struct InfoRequest<'a> {
    name: &'a [u8],
    /// Big-endian 16-bit numbers, one after the other.
    kinds: &'a [u8],
}

impl<'a> InfoRequest<'a> {
    fn parse(mut data: &'a [u8]) -> Option<InfoRequest<'a>> {
        let name_len = take_u32(&mut data)?;
        let (name, mut data) = data.split_at_checked(usize::try_from(name_len).ok()?)?;
        let count = take_u16(&mut data)?;
        (data.len() == 2 * usize::from(count)).then_some(InfoRequest { name, kinds: data })
    }

    fn has(&self, kind: u16) -> bool {
        self.kinds.chunks_exact(2).any(|bytes| bytes == kind.to_be_bytes())
    }
}

fn be_len(bytes: &[u8]) -> [u8; 4] {
    u32::try_from(bytes.len()).expect("strings are bounded").to_be_bytes()
}

fn put_reply(output: &mut Vec<u8>, option: u32, reply: u32, data: &[u8]) {
    output.extend_from_slice(&wire::OPTION_REPLY_MAGIC.to_be_bytes());
    output.extend_from_slice(&option.to_be_bytes());
    output.extend_from_slice(&reply.to_be_bytes());
    output.extend_from_slice(&be_len(data));
    output.extend_from_slice(data);
}

#[cfg(test)]
#[path = "handshake_tests.rs"]
mod tests;
