//! The NBD protocol, server side, as pure functions over byte slices: no sockets, no clock, no tasks.
//!
//! [`handshake`] takes a client from the greeting to the transmission phase, [`request`] parses and judges commands,
//! [`reply`] encodes answers, [`wire`] holds the numbers. Source of every rule: the protocol document of the
//! Network Block Device project, `doc/proto.md`; quoted rules are named by its headings.

pub mod handshake;
pub mod reply;
pub mod request;
pub mod wire;

/// Reads big-endian integers off the front of a slice.
macro_rules! take_be {
    ($name:ident, $int:ty) => {
        pub(crate) fn $name(input: &mut &[u8]) -> Option<$int> {
            let (head, tail) = input.split_first_chunk()?;
            *input = tail;
            Some(<$int>::from_be_bytes(*head))
        }
    };
}
take_be!(take_u16, u16);
take_be!(take_u32, u32);
take_be!(take_u64, u64);

/// What is offered to clients under one name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Export {
    /// Name that clients ask for; they also reach it by the empty name. At most [`wire::STRING_BYTES_MAX`] bytes.
    pub name: String,
    /// One line for people; may be empty. At most [`wire::STRING_BYTES_MAX`] bytes.
    pub description: String,
    /// Bytes of the export.
    pub size_bytes: u64,
    /// Logical sector: the advertised minimum block size. A power of two.
    pub sector_bytes: u32,
    /// Writes are refused.
    pub read_only: bool,
}

impl Export {
    /// Transmission flags: what a client may use. FAST_ZERO is not among them, because the service does not say
    /// beforehand whether zeroing will be faster than writing.
    pub fn transmission_flags(&self, structured: bool) -> u16 {
        use wire::transmission_flag as flag;
        let mut flags = flag::HAS_FLAGS | flag::SEND_FLUSH | flag::SEND_FUA | flag::CAN_MULTI_CONN;
        flags |= if self.read_only { flag::READ_ONLY } else { flag::SEND_TRIM | flag::SEND_WRITE_ZEROES };
        if structured {
            flags |= flag::SEND_DF;
        }
        flags
    }
}
