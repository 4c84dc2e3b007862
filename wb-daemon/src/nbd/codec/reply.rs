//! Replies of the transmission phase. Data of reads is not copied here: only what stands before it is encoded.

use super::wire::{self, NbdError, chunk};

/// Longest header that this module encodes, in bytes.
pub const HEADER_BYTES_MAX: usize = 128;

/// A reply, or one chunk of a structured one, without its data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reply {
    /// Simple reply; the data of a successful read follows.
    Simple {
        /// What went wrong, if anything.
        error: Option<NbdError>,
    },
    /// Content chunk; `len` bytes of data follow.
    Data {
        /// Position in the export.
        offset: u64,
        /// Bytes of data, at least one.
        len: u32,
        /// Last chunk of its reply.
        done: bool,
    },
    /// Success without data, last chunk.
    None,
    /// Error of the whole request, last chunk.
    Error {
        /// What went wrong.
        error: NbdError,
    },
    /// Error at one place of the request's range, last chunk.
    ErrorAt {
        /// What went wrong.
        error: NbdError,
        /// Where, within the range of the request.
        offset: u64,
    },
}

impl Reply {
    /// Appends the reply's header to `output`: at most [`HEADER_BYTES_MAX`] bytes.
    pub fn encode(&self, cookie: u64, output: &mut Vec<u8>) {
        match *self {
            Reply::Simple { error } => {
                output.extend_from_slice(&wire::SIMPLE_REPLY_MAGIC.to_be_bytes());
                output.extend_from_slice(&error.map_or(0, NbdError::code).to_be_bytes());
                output.extend_from_slice(&cookie.to_be_bytes());
            }
            Reply::Data { offset, len, done } => {
                let flags = if done { chunk::FLAG_DONE } else { 0 };
                let payload = len.checked_add(8).expect("chunks are bounded by the maximum payload");
                put_chunk(output, flags, chunk::OFFSET_DATA, cookie, payload);
                output.extend_from_slice(&offset.to_be_bytes());
            }
            Reply::None => put_chunk(output, chunk::FLAG_DONE, chunk::NONE, cookie, 0),
            Reply::Error { error } => put_error(output, chunk::ERROR, cookie, error, &[]),
            Reply::ErrorAt { error, offset } => {
                put_error(output, chunk::ERROR_OFFSET, cookie, error, &offset.to_be_bytes());
            }
        }
    }
}

fn put_chunk(output: &mut Vec<u8>, flags: u16, kind: u16, cookie: u64, payload: u32) {
    output.extend_from_slice(&wire::STRUCTURED_REPLY_MAGIC.to_be_bytes());
    output.extend_from_slice(&flags.to_be_bytes());
    output.extend_from_slice(&kind.to_be_bytes());
    output.extend_from_slice(&cookie.to_be_bytes());
    output.extend_from_slice(&payload.to_be_bytes());
}

fn put_error(output: &mut Vec<u8>, kind: u16, cookie: u64, error: NbdError, tail: &[u8]) {
    let message = error.message().as_bytes();
    let message_len = u16::try_from(message.len()).expect("messages are short");
    let payload = u32::try_from(6 + message.len() + tail.len()).expect("messages are short");
    put_chunk(output, chunk::FLAG_DONE, kind, cookie, payload);
    output.extend_from_slice(&error.code().to_be_bytes());
    output.extend_from_slice(&message_len.to_be_bytes());
    output.extend_from_slice(message);
    output.extend_from_slice(tail);
}

#[cfg(test)]
mod tests {
    use super::*;

    const ERRORS: [NbdError; 6] =
        [NbdError::Perm, NbdError::Io, NbdError::Inval, NbdError::NoSpc, NbdError::Overflow, NbdError::Shutdown];

    #[test]
    fn headers_fit_their_bound_and_declare_their_length() {
        let mut replies = vec![Reply::None, Reply::Data { offset: 4096, len: 512, done: true }];
        for error in ERRORS {
            replies.push(Reply::Error { error });
            replies.push(Reply::ErrorAt { error, offset: u64::MAX });
        }
        for reply in replies {
            let mut out = Vec::new();
            reply.encode(7, &mut out);
            assert!(out.len() <= HEADER_BYTES_MAX, "{reply:?} takes {} bytes", out.len());
            let declared = u32::from_be_bytes(out[16..20].try_into().expect("four bytes")) as usize;
            let data = if matches!(reply, Reply::Data { .. }) { 512 } else { 0 };
            assert_eq!(20 + declared, out.len() + data, "{reply:?}");
        }
    }

    #[test]
    fn bytes_of_the_protocol_document() {
        let mut out = Vec::new();
        Reply::Simple { error: Some(NbdError::NoSpc) }.encode(0x0102_0304_0506_0708, &mut out);
        assert_eq!(out, [0x67, 0x44, 0x66, 0x98, 0, 0, 0, 28, 1, 2, 3, 4, 5, 6, 7, 8]);
        out.clear();
        Reply::Data { offset: 0x1000, len: 0x200, done: true }.encode(1, &mut out);
        let head = [0x66, 0x8e, 0x33, 0xef, 0, 1, 0, 1, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 2, 8];
        assert_eq!(out[..20], head);
        assert_eq!(out[20..], [0, 0, 0, 0, 0, 0, 0x10, 0]);
        out.clear();
        Reply::ErrorAt { error: NbdError::Io, offset: 9 }.encode(1, &mut out);
        assert_eq!(out[4..8], [0, 1, 0x80, 2], "flag DONE, type ERROR_OFFSET");
        assert_eq!(out[20..26], [0, 0, 0, 5, 0, 9], "EIO and the length of 'I/O error'");
    }
}
