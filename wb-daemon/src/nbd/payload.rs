//! Payload of a write as it arrived: slices of receive buffers, never copied until the service takes it.

use wb_core::io::Slice;
use wb_core::service::{PayloadSource, ServiceError};

/// The bytes of one write request, complete.
#[derive(Default)]
pub(super) struct Payload {
    /// Most payloads lie in one piece.
    first: Option<Slice>,
    more: Vec<Slice>,
    len: usize,
}

impl Payload {
    /// Appends the next bytes.
    pub(super) fn push(&mut self, slice: Slice) {
        self.len += slice.len();
        match self.first {
            None => self.first = Some(slice),
            Some(_) => self.more.push(slice),
        }
    }

    /// Bytes so far.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// The payload from byte `base` on.
    pub(super) fn starting_at(&self, base: usize) -> PayloadFrom<'_> {
        PayloadFrom { payload: self, base }
    }
}

/// A payload whose first bytes were given to other calls.
pub(super) struct PayloadFrom<'a> {
    payload: &'a Payload,
    base: usize,
}

impl PayloadSource for PayloadFrom<'_> {
    fn copy_to(&self, offset: usize, mut dst: &mut [u8]) -> Result<(), ServiceError> {
        let mut skip = self.base + offset;
        assert!(skip + dst.len() <= self.payload.len, "a range within the payload");
        for part in self.payload.first.iter().chain(&self.payload.more) {
            if dst.is_empty() {
                break;
            }
            if let Some(bytes) = part.get(skip..).filter(|bytes| !bytes.is_empty()) {
                let (now, later) = dst.split_at_mut(bytes.len().min(dst.len()));
                now.copy_from_slice(&bytes[..now.len()]);
                (dst, skip) = (later, 0);
            } else {
                skip -= part.len();
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use wb_core::io::Buf;

    fn slice(bytes: &[u8]) -> Slice {
        let mut buf = Buf::unpooled(bytes.len().max(1));
        buf[..bytes.len()].copy_from_slice(bytes);
        buf.freeze().slice(0..bytes.len())
    }

    proptest! {
        #[test]
        fn any_range_of_any_pieces(
            bytes in proptest::collection::vec(any::<u8>(), 1..200),
            cuts in proptest::collection::vec(0usize..60, 0..8),
            base: prop::sample::Index, offset: prop::sample::Index, len: prop::sample::Index,
        ) {
            let (mut payload, mut rest) = (Payload::default(), &bytes[..]);
            for cut in cuts {
                let (head, tail) = rest.split_at(cut.min(rest.len()));
                payload.push(slice(head));
                rest = tail;
            }
            payload.push(slice(rest));
            prop_assert_eq!(payload.len(), bytes.len());
            let base = base.index(bytes.len());
            let offset = offset.index(bytes.len() - base);
            let mut got = vec![0; len.index(bytes.len() - base - offset + 1)];
            payload.starting_at(base).copy_to(offset, &mut got).expect("within");
            prop_assert_eq!(&got[..], &bytes[base + offset..][..got.len()]);
        }
    }
}
