//! The `snapgate` program: everything it does is in the library.

use std::process::ExitCode;

/// See `docs/decisions/0014-jemalloc.md`.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    snapgate::cli::main()
}
