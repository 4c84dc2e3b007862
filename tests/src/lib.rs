//! Helpers for tests of whole programs.
