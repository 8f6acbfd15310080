//! Fuzzes `listener`: see `inputs/mod.rs`.
#![no_main]

#[path = "../inputs/mod.rs"]
mod inputs;

libfuzzer_sys::fuzz_target!(|data: &[u8]| inputs::feed("listener", data));
