//! writeboost.toml(5), made from the commented example, so that the two cannot drift apart.

use crate::page::entry;
use anyhow::ensure;
use clap_mangen::roff::{Roff, bold, italic, roman};

const EXAMPLE: &str = include_str!("../../docs/writeboost.toml.example");

/// A piece of the example: prose, and the line it stands before.
struct Piece {
    prose: String,
    line: String,
}

/// The page as roff.
pub fn render() -> anyhow::Result<String> {
    let pieces = pieces();
    ensure!(pieces.len() > 10, "the example of the config file was not understood");
    let mut roff = Roff::new();
    let source = format!("Writeboost {}", env!("CARGO_PKG_VERSION"));
    roff.control("TH", ["WRITEBOOST.TOML", "5", "", &source, "Writeboost manual"]);
    roff.control("SH", ["NAME"]);
    roff.text([roman("writeboost.toml - config file of the Writeboost tools")]);
    roff.control("SH", ["DESCRIPTION"]);
    for piece in &pieces {
        match section(&piece.line) {
            Some(name) => {
                if !piece.prose.is_empty() {
                    paragraph(&mut roff, &piece.prose);
                }
                roff.control("SH", [format!("KEYS OF {name}").as_str()]);
            }
            None if piece.line.is_empty() => paragraph(&mut roff, &piece.prose),
            None => entry(&mut roff, bold(&piece.line), &piece.prose),
        }
    }
    roff.control("SH", ["FILES"]);
    entry(
        &mut roff,
        italic("/etc/writeboost.toml"),
        "Read by every tool, unless --config or $WB_CONFIG names another.",
    );
    roff.control("SH", ["EXAMPLES"]);
    roff.text([roman("A cache with everything else left to its default:")]);
    roff.control("PP", []);
    roff.control("nf", []);
    roff.text([roman("[[cache]]\nname = \"data\"\ndevice = \"/dev/disk/by-id/nvme-example-part3\"\nbacking = \"/dev/disk/by-id/ata-example\"")]);
    roff.control("fi", []);
    roff.control("SH", ["SEE ALSO"]);
    roff.text([roman("wb-format(8), wb-daemon(8), wb-check(8), wb-dump(8)")]);
    Ok(roff.to_roff())
}

fn paragraph(roff: &mut Roff, prose: &str) {
    roff.control("PP", []);
    roff.text([roman(prose)]);
}

/// Name of the section that `line` opens, for a heading.
fn section(line: &str) -> Option<&str> {
    line.starts_with('[').then_some(line)
}

fn pieces() -> Vec<Piece> {
    let mut pieces = Vec::new();
    let mut prose = String::new();
    for line in EXAMPLE.lines() {
        let text = line.strip_prefix('#');
        match text {
            // `#key = value` and `#[section]` are commented-out lines, `# text` is prose, `#` ends a paragraph.
            Some(rest) if rest.starts_with(' ') => {
                if !prose.is_empty() {
                    prose.push(' ');
                }
                prose.push_str(rest.trim());
            }
            Some(rest) if !rest.is_empty() => {
                pieces.push(Piece { prose: std::mem::take(&mut prose), line: rest.into() })
            }
            None if !line.is_empty() => pieces.push(Piece { prose: std::mem::take(&mut prose), line: line.into() }),
            _ if !prose.is_empty() => pieces.push(Piece { prose: std::mem::take(&mut prose), line: String::new() }),
            _ => {}
        }
    }
    pieces
}
