//! What people see of a comparison: tables on the terminal or in Markdown, and one HTML file. Made from the recorded
//! result alone.

mod against;
mod figures;
mod html;
mod overview;
mod svg;
mod table;

use super::result::Comparison;
use anyhow::Context as _;
use std::path::Path;

pub use against::print as print_against;
pub use table::print;

/// Writes the report: one file that needs no other.
pub fn write_html(path: &Path, result: &Comparison) -> anyhow::Result<()> {
    std::fs::write(path, html::page(result)).with_context(|| format!("cannot write {}", path.display()))
}

/// Writes one small picture.
pub fn write_picture(path: &Path, result: &Comparison) -> anyhow::Result<()> {
    std::fs::write(path, overview::picture(result)).with_context(|| format!("cannot write {}", path.display()))
}
