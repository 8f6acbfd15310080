//! The room as a whole, over a real store and a scripted adapter.
