use super::*;
use proptest::prelude::*;

const SIZE: u64 = 1 << 40;

fn export() -> Export {
    Export { name: String::new(), description: String::new(), size_bytes: SIZE, sector_bytes: 512, read_only: false }
}

fn request(kind: u16, flags: u16, offset: u64, len: u32) -> Request {
    Request { flags, kind, cookie: 5, offset, len }
}

fn encode(request: &Request) -> Vec<u8> {
    let mut out = wire::REQUEST_MAGIC.to_be_bytes().to_vec();
    out.extend_from_slice(&request.flags.to_be_bytes());
    out.extend_from_slice(&request.kind.to_be_bytes());
    out.extend_from_slice(&request.cookie.to_be_bytes());
    out.extend_from_slice(&request.offset.to_be_bytes());
    out.extend_from_slice(&request.len.to_be_bytes());
    out
}

#[track_caller]
fn refused(request: Request, structured: bool, error: NbdError) {
    assert_eq!(request.judge(&export(), structured), Verdict::Refuse(error), "{request:?}");
}

#[track_caller]
fn served(request: Request, command: Command) {
    for structured in [false, true] {
        assert_eq!(request.judge(&export(), structured), Verdict::Serve(command), "{request:?}");
    }
}

#[test]
fn fua_is_accepted_on_every_command() {
    served(request(command::READ, 1, 0, 512), Command::Read { fragment: true });
    served(request(command::WRITE, 1, 0, 512), Command::Write { fua: true });
    served(request(command::FLUSH, 1, 0, 0), Command::Flush);
    served(request(command::TRIM, 1, 0, 512), Command::Trim { fua: true });
    served(request(command::WRITE_ZEROES, 3, 0, 512), Command::WriteZeroes { fua: true });
    assert_eq!(request(command::DISC, 1, 0, 0).judge(&export(), false), Verdict::Disconnect);
}

#[test]
fn flags_are_refused_where_they_do_not_belong() {
    for (kind, allowed) in [(0u16, 1u16), (1, 1), (3, 1), (4, 1), (6, 3)] {
        let len = if kind == command::FLUSH { 0 } else { 512 };
        for bit in (0..16).map(|bit| 1 << bit).filter(|bit| bit & allowed == 0) {
            refused(request(kind, bit, 0, len), false, NbdError::Inval);
        }
    }
    let df = request(command::READ, command_flag::DF, 0, 512);
    assert_eq!(df.judge(&export(), true), Verdict::Serve(Command::Read { fragment: false }));
    for kind in [5, 7, 8, 99, u16::MAX] {
        refused(request(kind, 0, 0, 0), true, NbdError::Inval);
    }
}

#[test]
fn ranges_past_the_end_and_overflowing_ones() {
    let past = [(SIZE, 512), (SIZE - 512, 1024), (u64::MAX - 511, 512), (u64::MAX, u32::MAX), (SIZE + 512, 0)];
    for (offset, len) in past {
        refused(request(command::READ, 0, offset, len), true, NbdError::Inval);
        refused(request(command::TRIM, 0, offset, len), true, NbdError::Inval);
        refused(request(command::WRITE, 0, offset, len), true, NbdError::NoSpc);
        refused(request(command::WRITE_ZEROES, 0, offset, len), true, NbdError::NoSpc);
    }
    served(request(command::READ, 0, SIZE - 512, 512), Command::Read { fragment: true });
    served(request(command::READ, 0, SIZE, 0), Command::Read { fragment: true });
}

#[test]
fn unaligned_ranges_and_reserved_fields() {
    for kind in [command::READ, command::WRITE, command::TRIM, command::WRITE_ZEROES] {
        refused(request(kind, 0, 1, 512), false, NbdError::Inval);
        refused(request(kind, 0, 512, 511), false, NbdError::Inval);
        refused(request(kind, 0, 256, 0), false, NbdError::Inval);
    }
    refused(request(command::FLUSH, 0, 512, 0), false, NbdError::Inval);
    refused(request(command::FLUSH, 0, 0, 1), false, NbdError::Inval);
}

#[test]
fn only_payloads_are_limited_in_length() {
    let long = wire::PAYLOAD_BYTES_MAX + 512;
    refused(request(command::READ, 0, 0, long), true, NbdError::Overflow);
    refused(request(command::READ, 0, 0, long), false, NbdError::Inval);
    refused(request(command::WRITE, 0, 0, long), true, NbdError::Inval);
    served(request(command::READ, 0, 0, wire::PAYLOAD_BYTES_MAX), Command::Read { fragment: true });
    served(request(command::WRITE, 0, 0, wire::PAYLOAD_BYTES_MAX), Command::Write { fua: false });
    served(request(command::TRIM, 0, 0, u32::MAX - 511), Command::Trim { fua: false });
    served(request(command::WRITE_ZEROES, 0, 0, u32::MAX - 511), Command::WriteZeroes { fua: false });
}

#[test]
fn read_only_exports_refuse_changes() {
    let export = Export { read_only: true, ..export() };
    for kind in [command::WRITE, command::TRIM, command::WRITE_ZEROES] {
        assert_eq!(request(kind, 0, 0, 512).judge(&export, true), Verdict::Refuse(NbdError::Perm));
    }
    for (kind, len) in [(command::READ, 512), (command::FLUSH, 0)] {
        assert!(matches!(request(kind, 0, 0, len).judge(&export, true), Verdict::Serve(_)));
    }
}

#[test]
fn refused_writes_still_carry_their_payload() {
    assert_eq!(request(command::WRITE, 0xffff, u64::MAX, u32::MAX).payload_bytes(), u32::MAX);
    assert_eq!(request(command::READ, 0, 0, 4096).payload_bytes(), 0);
}

#[test]
fn bad_magic_shows_at_once() {
    assert_eq!(Request::parse(b"GET "), Err(BadMagic(0x4745_5420)));
    assert_eq!(Request::parse(&[]), Ok(None));
}

proptest! {
    #[test]
    fn headers_parse_back_at_every_length(
        kind: u16, flags: u16, cookie: u64, offset: u64, len: u32, tail in proptest::collection::vec(any::<u8>(), 0..9),
    ) {
        let request = Request { flags, kind, cookie, offset, len };
        let bytes = encode(&request);
        for cut in 0..wire::REQUEST_BYTES {
            prop_assert_eq!(Request::parse(&bytes[..cut]), Ok(None));
        }
        prop_assert_eq!(Request::parse(&[bytes, tail].concat()), Ok(Some(request)));
    }

    #[test]
    fn judging_never_panics_and_serves_only_valid_ranges(
        kind in prop_oneof![0u16..9, any::<u16>()], flags in prop_oneof![0u16..4, any::<u16>()],
        offset in prop_oneof![any::<u64>(), (0u64..2048).prop_map(|sector| SIZE - sector * 512)],
        len in prop_oneof![any::<u32>(), (0u32..4096).prop_map(|sector| sector * 512)],
        structured: bool, read_only: bool,
    ) {
        let request = request(kind, flags, offset, len);
        if let Verdict::Serve(command) = request.judge(&Export { read_only, ..export() }, structured) {
            prop_assert!(offset % 512 == 0 && len % 512 == 0);
            prop_assert!(offset.checked_add(u64::from(len)).expect("no overflow") <= SIZE);
            let changes = !matches!(command, Command::Read { .. } | Command::Flush);
            prop_assert!(!(changes && read_only));
        }
    }
}
