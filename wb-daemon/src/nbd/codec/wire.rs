//! Numbers of the protocol. All integers on the wire are big-endian.

/// First eight bytes of the greeting, "NBDMAGIC".
pub const GREETING_MAGIC: u64 = 0x4e42_444d_4147_4943;
/// Second eight bytes of the greeting and the start of every option, "IHAVEOPT".
pub const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
/// Start of every reply to an option.
pub const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
/// Start of every command.
pub const REQUEST_MAGIC: u32 = 0x2560_9513;
/// Start of a simple reply.
pub const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
/// Start of a chunk of a structured reply.
pub const STRUCTURED_REPLY_MAGIC: u32 = 0x668e_33ef;

/// Bytes of the header of an option.
pub const OPTION_HEADER_BYTES: usize = 16;
/// Bytes of the header of a command.
pub const REQUEST_BYTES: usize = 28;
/// Longest string the protocol allows, in bytes.
pub const STRING_BYTES_MAX: usize = 4096;
/// Payload that every server has to take (section "Size constraints"), and what we advertise as the maximum.
pub const PAYLOAD_BYTES_MAX: u32 = 32 << 20;
/// Advertised preferred block size.
pub const PREFERRED_BLOCK_BYTES: u32 = 4096;

/// Handshake flags of the server; the client answers with the same bits.
pub mod handshake_flag {
    /// Options are answered.
    pub const FIXED_NEWSTYLE: u16 = 1 << 0;
    /// The reply to EXPORT_NAME may go without its 124 zeroes.
    pub const NO_ZEROES: u16 = 1 << 1;
}

/// Options of the handshake, named as in the protocol.
pub mod option {
    pub const EXPORT_NAME: u32 = 1;
    pub const ABORT: u32 = 2;
    pub const LIST: u32 = 3;
    pub const STARTTLS: u32 = 5;
    pub const INFO: u32 = 6;
    pub const GO: u32 = 7;
    pub const STRUCTURED_REPLY: u32 = 8;
    pub const LIST_META_CONTEXT: u32 = 9;
    pub const SET_META_CONTEXT: u32 = 10;
}

/// Types of replies to options, named as in the protocol.
pub mod option_reply {
    pub const ACK: u32 = 1;
    pub const SERVER: u32 = 2;
    pub const INFO: u32 = 3;
    pub const ERR_UNSUP: u32 = 1 << 31 | 1;
    pub const ERR_POLICY: u32 = 1 << 31 | 2;
    pub const ERR_INVALID: u32 = 1 << 31 | 3;
    pub const ERR_UNKNOWN: u32 = 1 << 31 | 6;
    pub const ERR_SHUTDOWN: u32 = 1 << 31 | 7;
    pub const ERR_TOO_BIG: u32 = 1 << 31 | 9;
}

/// Pieces of information about an export, named as in the protocol.
pub mod info {
    pub const EXPORT: u16 = 0;
    pub const NAME: u16 = 1;
    pub const DESCRIPTION: u16 = 2;
    pub const BLOCK_SIZE: u16 = 3;
}

/// What an export can do, named as in the protocol.
pub mod transmission_flag {
    pub const HAS_FLAGS: u16 = 1 << 0;
    pub const READ_ONLY: u16 = 1 << 1;
    pub const SEND_FLUSH: u16 = 1 << 2;
    pub const SEND_FUA: u16 = 1 << 3;
    pub const SEND_TRIM: u16 = 1 << 5;
    pub const SEND_WRITE_ZEROES: u16 = 1 << 6;
    pub const SEND_DF: u16 = 1 << 7;
    pub const CAN_MULTI_CONN: u16 = 1 << 8;
}

/// Commands, named as in the protocol.
pub mod command {
    pub const READ: u16 = 0;
    pub const WRITE: u16 = 1;
    pub const DISC: u16 = 2;
    pub const FLUSH: u16 = 3;
    pub const TRIM: u16 = 4;
    pub const WRITE_ZEROES: u16 = 6;
}

/// Flags of commands, named as in the protocol.
pub mod command_flag {
    pub const FUA: u16 = 1 << 0;
    pub const NO_HOLE: u16 = 1 << 1;
    pub const DF: u16 = 1 << 2;
}

/// Flag and types of chunks of structured replies, named as in the protocol.
pub mod chunk {
    pub const FLAG_DONE: u16 = 1 << 0;
    pub const NONE: u16 = 0;
    pub const OFFSET_DATA: u16 = 1;
    pub const ERROR: u16 = 1 << 15 | 1;
    pub const ERROR_OFFSET: u16 = 1 << 15 | 2;
}

/// Error numbers of the protocol (section "Error values"): fixed, whatever the host's errno values are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum NbdError {
    /// Write to a read-only export.
    Perm = 1,
    /// Data cannot be read or made durable.
    Io = 5,
    /// Bad command, flag, alignment or range.
    Inval = 22,
    /// Write past the end.
    NoSpc = 28,
    /// A read too long to be answered.
    Overflow = 75,
    /// The server is stopping.
    Shutdown = 108,
}

impl NbdError {
    /// The number on the wire.
    pub fn code(self) -> u32 {
        self as u32
    }
    /// Words for people, sent along in structured replies.
    pub fn message(self) -> &'static str {
        match self {
            NbdError::Perm => "the export is read-only",
            NbdError::Io => "I/O error",
            NbdError::Inval => "command, flag, alignment or range is not valid",
            NbdError::NoSpc => "range ends past the end of the export",
            NbdError::Overflow => "request is longer than the advertised maximum payload",
            NbdError::Shutdown => "the server is stopping",
        }
    }
}
