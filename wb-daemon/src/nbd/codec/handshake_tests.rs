use super::*;
use proptest::prelude::*;

fn export() -> Export {
    Export {
        name: "vol".into(),
        description: "a volume".into(),
        size_bytes: 1 << 30,
        sector_bytes: 512,
        read_only: false,
    }
}

fn opt(option: u32, data: &[u8]) -> Vec<u8> {
    let mut out = wire::OPTION_MAGIC.to_be_bytes().to_vec();
    out.extend_from_slice(&option.to_be_bytes());
    out.extend_from_slice(&be_len(data));
    out.extend_from_slice(data);
    out
}

fn info_data(name: &str, kinds: &[u16]) -> Vec<u8> {
    let mut data = be_len(name.as_bytes()).to_vec();
    data.extend_from_slice(name.as_bytes());
    data.extend_from_slice(&u16::try_from(kinds.len()).expect("few").to_be_bytes());
    kinds.iter().for_each(|kind| data.extend_from_slice(&kind.to_be_bytes()));
    data
}

/// Feeds `input` as a connection would, in pieces of the given sizes (then all the rest).
fn run(export: &Export, input: &[u8], pieces: &[usize]) -> (Vec<u8>, Progress, Vec<u8>) {
    let mut handshake = Handshake::new(export);
    let (mut output, mut held, mut sent) = (Vec::new(), Vec::new(), Vec::new());
    let mut cuts = pieces.iter().copied();
    let mut rest = input;
    loop {
        let (consumed, progress) = handshake.advance(&held, &mut output);
        held.drain(..consumed);
        sent.append(&mut output);
        match progress {
            Progress::Pause => {}
            Progress::NeedMore if rest.is_empty() => return (sent, Progress::NeedMore, held),
            Progress::NeedMore => {
                let piece = cuts.next().unwrap_or(usize::MAX).clamp(1, rest.len());
                held.extend_from_slice(&rest[..piece]);
                rest = &rest[piece..];
            }
            end => {
                held.extend_from_slice(rest);
                return (sent, end, held);
            }
        }
    }
}

/// Replies to options as (option, type, data).
fn replies(mut output: &[u8]) -> Vec<(u32, u32, Vec<u8>)> {
    let mut out = Vec::new();
    while !output.is_empty() {
        assert_eq!(take_u64(&mut output), Some(wire::OPTION_REPLY_MAGIC));
        let option = take_u32(&mut output).expect("option");
        let kind = take_u32(&mut output).expect("type");
        let len = take_u32(&mut output).expect("length") as usize;
        out.push((option, kind, output[..len].to_vec()));
        output = &output[len..];
    }
    out
}

fn after_flags(messages: &[Vec<u8>]) -> Vec<u8> {
    let mut input = 3u32.to_be_bytes().to_vec();
    messages.iter().for_each(|message| input.extend_from_slice(message));
    input
}

#[test]
fn go_sends_what_was_asked_for_and_leaves_the_rest() {
    let kinds = [info::NAME, info::DESCRIPTION, info::BLOCK_SIZE, 99];
    let mut input = after_flags(&[opt(option::STRUCTURED_REPLY, b""), opt(option::GO, &info_data("vol", &kinds))]);
    input.extend_from_slice(b"next");
    let (output, end, rest) = run(&export(), &input, &[]);
    assert_eq!((end, &rest[..]), (Progress::Transmission(Session { structured: true }), &b"next"[..]));
    let replies = replies(&output);
    let types: Vec<u32> = replies.iter().map(|reply| reply.1).collect();
    let info = option_reply::INFO;
    assert_eq!(types, [option_reply::ACK, info, info, info, info, option_reply::ACK]);
    let flags = export().transmission_flags(true);
    assert_eq!(replies[1].2, [&[0, 0][..], &(1u64 << 30).to_be_bytes(), &flags.to_be_bytes()].concat());
    assert_eq!(replies[2].2, b"\0\x01vol");
    assert_eq!(replies[3].2, b"\0\x02a volume");
    assert_eq!(replies[4].2, [0, 3, 0, 0, 2, 0, 0, 0, 0x10, 0, 2, 0, 0, 0]);
}

#[test]
fn info_does_not_start_transmission_and_unasked_items_stay_out() {
    let (output, end, _) = run(&export(), &after_flags(&[opt(option::INFO, &info_data("", &[]))]), &[]);
    assert_eq!(end, Progress::NeedMore);
    assert_eq!(replies(&output).len(), 2);
}

#[test]
fn export_name_ends_with_or_without_zeroes() {
    for (flags, zeroes) in [(3u32, 0), (1, 124), (0, 124)] {
        let input = [&flags.to_be_bytes()[..], &opt(option::EXPORT_NAME, b"vol")].concat();
        let (output, end, _) = run(&export(), &input, &[]);
        assert_eq!(end, Progress::Transmission(Session { structured: false }));
        assert_eq!(output.len(), 10 + zeroes);
        let sent_flags = u16::from_be_bytes([output[8], output[9]]);
        assert_eq!(sent_flags & wire::transmission_flag::SEND_DF, 0, "DF only with structured replies");
    }
}

#[test]
fn unknown_names_are_refused() {
    let other = after_flags(&[opt(option::GO, &info_data("other", &[])), opt(option::EXPORT_NAME, b"other")]);
    let (output, end, _) = run(&export(), &other, &[]);
    assert_eq!(replies(&output)[0].1, option_reply::ERR_UNKNOWN);
    assert_eq!(end, Progress::Close(CloseReason::UnknownExport));
    let long = after_flags(&[opt(option::EXPORT_NAME, &[b'x'; 7000])]);
    assert_eq!(run(&export(), &long, &[]).1, Progress::Close(CloseReason::UnknownExport));
}

#[test]
fn every_other_option_is_answered_and_the_next_one_parsed() {
    let unsup = [4, option::STARTTLS, option::LIST_META_CONTEXT, option::SET_META_CONTEXT, 11, 0, u32::MAX];
    let mut messages: Vec<Vec<u8>> = unsup.iter().map(|&number| opt(number, b"data")).collect();
    messages.push(opt(option::LIST, b"x"));
    messages.push(opt(option::STRUCTURED_REPLY, b"x"));
    messages.push(opt(77, &[0; 100_000]));
    messages.push(opt(option::LIST, b""));
    messages.push(opt(option::ABORT, b"ignored"));
    let (output, end, _) = run(&export(), &after_flags(&messages), &[]);
    assert_eq!(end, Progress::Close(CloseReason::Aborted));
    let replies = replies(&output);
    assert!(replies[..7].iter().zip(unsup).all(|(got, asked)| (got.0, got.1) == (asked, option_reply::ERR_UNSUP)));
    let rest: Vec<u32> = replies[7..].iter().map(|reply| reply.1).collect();
    let invalid = option_reply::ERR_INVALID;
    let expected = [invalid, invalid, option_reply::ERR_TOO_BIG, option_reply::SERVER, option_reply::ACK, 1];
    assert_eq!(rest, expected);
    assert_eq!(replies[10].2, b"\0\0\0\x03vola volume");
}

#[test]
fn lying_lengths_inside_go_are_invalid() {
    let mut long_name = info_data("vol", &[]);
    long_name[3] = 200;
    let mut many_kinds = info_data("vol", &[1]);
    many_kinds[8] = 9;
    let mut huge = info_data("vol", &[]);
    huge[..4].fill(0xff);
    for data in [long_name, many_kinds, huge, vec![], vec![0; 3], [info_data("", &[]), vec![0]].concat()] {
        let (output, end, _) = run(&export(), &after_flags(&[opt(option::GO, &data)]), &[]);
        assert_eq!((replies(&output)[0].1, end), (option_reply::ERR_INVALID, Progress::NeedMore), "{data:?}");
    }
}

#[test]
fn what_the_protocol_forbids_closes() {
    assert_eq!(run(&export(), &[0, 0, 0, 7], &[]).1, Progress::Close(CloseReason::UnknownClientFlags(7)));
    let garbage = after_flags(&[vec![b'x'; 8]]);
    assert!(matches!(run(&export(), &garbage, &[]).1, Progress::Close(CloseReason::BadMagic(_))));
    let huge = after_flags(&[opt(77, b"")[..12].to_vec(), vec![0xff; 4]]);
    let (output, end, _) = run(&export(), &huge, &[]);
    assert_eq!(end, Progress::Close(CloseReason::OptionTooLong(u32::MAX)));
    assert_eq!(replies(&output)[0].1, option_reply::ERR_TOO_BIG);
}

#[test]
fn output_pauses_before_it_grows() {
    let input = after_flags(&vec![opt(option::LIST, b""); 1000]);
    let export = export();
    let (mut handshake, mut output) = (Handshake::new(&export), Vec::new());
    let (consumed, progress) = handshake.advance(&input, &mut output);
    assert_eq!(progress, Progress::Pause);
    assert!(consumed < input.len() && output.len() < OUTPUT_PAUSE_BYTES + 8192);
    assert_eq!(replies(&run(&export, &input, &[]).0).len(), 2000, "nothing is lost by pausing");
}

#[test]
fn the_longest_option_fits_the_stated_input() {
    let input = after_flags(&[opt(77, &vec![0; OPTION_DATA_BYTES_MAX as usize])]);
    assert_eq!(input.len(), 4 + INPUT_BYTES_MAX);
}

fn message() -> impl Strategy<Value = Vec<u8>> {
    let numbers = prop_oneof![0u32..12, any::<u32>()];
    let data = prop_oneof![
        Just(vec![]),
        proptest::collection::vec(any::<u8>(), 0..40),
        (prop_oneof![Just("vol"), Just(""), Just("no")], proptest::collection::vec(0u16..5, 0..5))
            .prop_map(|(name, kinds)| info_data(name, &kinds)),
        (6000usize..9000).prop_map(|len| vec![0; len]),
    ];
    prop_oneof![
        8 => (numbers, data).prop_map(|(number, data)| opt(number, &data)),
        1 => proptest::collection::vec(any::<u8>(), 0..64),
    ]
}

proptest! {
    #[test]
    fn splits_at_any_boundary_give_the_same_result(
        messages in proptest::collection::vec(message(), 0..12),
        pieces in proptest::collection::vec(1usize..200, 0..400),
    ) {
        let input = after_flags(&messages);
        let whole = run(&export(), &input, &[]);
        prop_assert_eq!(&run(&export(), &input, &pieces), &whole);
        prop_assert_eq!(&run(&export(), &input, &vec![1; input.len().min(3000)]), &whole);
    }

    #[test]
    fn arbitrary_bytes_never_panic(input in proptest::collection::vec(any::<u8>(), 0..300), good_flags: bool) {
        let prefix: &[u8] = if good_flags { &[0, 0, 0, 3] } else { &[] };
        let _ = run(&export(), &[prefix, &input].concat(), &[]);
    }
}
