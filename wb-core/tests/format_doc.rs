//! Holds `docs/FORMAT.md` against the structs: every table must give offset and size of every field.

use std::mem::{offset_of, size_of};
use wb_core::format::*;
use wb_core::tail::TailHeaderRaw;

/// Name, offset and size of each field, and the struct's size.
struct Layout {
    name: &'static str,
    fields: Vec<(&'static str, usize, usize)>,
    bytes: usize,
}

fn size_of_field<S, T>(_: fn(&S) -> &T) -> usize {
    size_of::<T>()
}

macro_rules! layout {
    ($name:ident { $($field:ident)* }) => {
        Layout {
            name: stringify!($name),
            fields: vec![$((
                stringify!($field),
                offset_of!($name, $field),
                size_of_field::<$name, _>(|raw| &raw.$field),
            )),*],
            bytes: size_of::<$name>(),
        }
    };
}

fn layouts() -> Vec<Layout> {
    vec![
        layout!(SuperblockRaw {
            magic crc version uuid label generation compat ro_compat incompat device_bytes segment_bytes segments
            first_segment_bytes bad_segment_blocks secret created_unix_ns reserved
        }),
        layout!(VolumeTableHeaderRaw { magic crc flags uuid generation count next_id reserved }),
        layout!(VolumeRaw {
            id flags sector_bytes size_bytes uuid name identity created_unix_ns probe_secret reserved
        }),
        layout!(BadSegmentBlock { magic crc index uuid generation reserved bits }),
        layout!(AnchorRaw {
            magic crc flags uuid generation epoch epoch_start log_tail log_tail_segment clean_segment dirty_tail
            durable clean_head boot_id ram_tail_id wall_unix_ns counters probes dirty_segment_first
            dirty_segment dirty_segment_crc reserved
        }),
        layout!(ProbeSetRaw { volume known reserved crcs }),
        layout!(RecordHeaderRaw {
            magic crc flags uuid epoch epoch_start seq previous_crc segment offset_blocks span log_tail dirty_tail
            durable wall_unix_ns entries payload_blocks chain_crc reserved
        }),
        layout!(EntryRaw { address crc mask kind blocks }),
        layout!(SummaryHeaderRaw {
            magic crc segment uuid first_seq first_epoch first_epoch_start previous_crc records entries log_tail
            dirty_tail durable reserved
        }),
        layout!(RecordDescRaw { chain_crc epoch_delta entries flags }),
        layout!(TailHeaderRaw {
            magic crc version uuid id boot_id epoch epoch_start buffers buffer_bytes created_unix_ns reserved
        }),
    ]
}

fn document() -> String {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/FORMAT.md");
    std::fs::read_to_string(path).expect("docs/FORMAT.md is there")
}

/// Rows of the field table in the section `### name`.
fn rows(document: &str, name: &str) -> Vec<(String, usize, usize)> {
    let heading = format!("### {name}\n");
    let section = document.split_once(&heading).unwrap_or_else(|| panic!("no section {name}")).1;
    let section = section.split("\n#").next().expect("at least one piece");
    let head = "| offset | bytes | field | meaning |\n";
    let table = section.split_once(head).unwrap_or_else(|| panic!("no table of {name}")).1;
    let lines = table.lines().skip(1).take_while(|line| line.starts_with('|'));
    lines
        .map(|line| {
            let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
            let number = |at: usize| cells[at].parse().unwrap_or_else(|_| panic!("{name}: number in {line:?}"));
            assert!(cells.len() == 4 && !cells[3].is_empty(), "{name}: four cells in {line:?}");
            (cells[2].to_owned(), number(0), number(1))
        })
        .collect()
}

#[test]
fn tables_give_every_field_of_every_struct() {
    let document = document();
    for layout in layouts() {
        let mut end = 0;
        for (field, offset, bytes) in &layout.fields {
            assert_eq!(*offset, end, "{}.{field}: this test names every field, in order", layout.name);
            end = offset + bytes;
        }
        assert_eq!(end, layout.bytes, "{}: this test names every field", layout.name);
        let documented = rows(&document, layout.name);
        let expected: Vec<_> =
            layout.fields.iter().map(|(field, offset, bytes)| (field.to_string(), *offset, *bytes)).collect();
        assert_eq!(documented, expected, "docs/FORMAT.md, section {}", layout.name);
    }
}

#[test]
fn kinds_are_numbered_as_documented() {
    let document = document();
    for number in 0..=6u8 {
        let kind = EntryKind::from_u8(number).expect("a kind");
        let payload = if kind.has_payload() { "a block" } else { "none" };
        let row = format!("| {} | {number} | {payload} |", kind.name());
        assert!(document.contains(&row), "docs/FORMAT.md has the row {row:?}");
    }
    assert_eq!(EntryKind::from_u8(7), None, "a new kind is documented, too");
}

#[test]
fn numbers_in_the_text_are_those_of_the_code() {
    let document = document();
    assert!(document.contains(&format!("/ {BAD_SEGMENTS_PER_BLOCK}))")));
    assert!(document.contains(&format!("up to {VOLUMES_MAX} x `VolumeRaw`")));
    assert!(document.contains(&format!("{} x `EntryRaw`", wb_core::RECORD_ENTRIES_MAX)));
    assert_eq!((SEGMENT_BYTES_MIN, SEGMENT_BYTES_MAX, SEGMENT_BYTES_DEFAULT), (64 << 10, 64 << 20, 2 << 20));
    assert_eq!((SEGMENTS_MIN, SUMMARY_HEADER_BYTES, FIXED_HEADER_BYTES), (8, 96, 128));
}
