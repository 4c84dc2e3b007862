//! The documents that `--json` prints: field names that scripts may rely on.
//!
//! Fields may be added; none is renamed or removed without a new major version. Sizes are in bytes, times in the unit
//! of the field's name. Where a value is not known the field is `null`.

pub mod bench;
pub mod check;
pub mod dump;
pub mod format;
pub mod status;
