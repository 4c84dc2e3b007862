//! On-disk format, version 1: see docs/FORMAT.md.
