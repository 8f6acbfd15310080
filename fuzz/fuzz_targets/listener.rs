//! Fuzzes `listener`: see `inputs/mod.rs`.
#![no_main]

#[path = "../inputs/mod.rs"]
mod inputs;

libfuzzer_sys::fuzz_target!(
    init: {
        // Rust's own `main` would ignore it: a write to a connection that its peer closed must not end the process.
        let pipe = signal_hook::consts::SIGPIPE;
        signal_hook::flag::register(pipe, std::sync::Arc::default()).unwrap();
    },
    |data: &[u8]| inputs::feed("listener", data)
);

libfuzzer_sys::fuzz_mutator!(|data: &mut [u8], size: usize, max: usize, seed: u32| {
    inputs::mutation::requests(data, size, max, seed, libfuzzer_sys::fuzzer_mutate)
});
