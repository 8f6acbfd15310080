//! Tests against real directories.
