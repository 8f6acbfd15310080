//! The effects that every part of the program shares, each behind a type that tests can replace or wait for.
//!
//! | to | use |
//! |---|---|
//! | read the time | [`Clock`]; tests use [`ManualClock`] |
//! | spawn a task | [`Tasks`], which its owner waits for |
//! | end tasks | [`stop_pair`]: a [`Stopper`] for the owner, a [`Stop`] for each task |
//! | receive SIGTERM, SIGINT, SIGHUP and SIGUSR2 | [`Signals`] |
//! | start the next version in place of this process | [`Program`] |
//! | notify systemd | [`notify()`] |
//! | count the gateways that forwarded a request | [`hop_count`] |
//! | name the request and operation in log lines | [`work_context`] |
//! | know whether this gateway may still change VMs | [`Lease`] |
//!
//! Nothing else in the program reads the system clock, spawns tasks or handles signals; lints and `tests/it/architecture.rs`
//! hold that.

mod clock;
mod notify;
mod program;
mod signals;
mod stop;
mod tasks;

pub mod hop_count;
pub mod lease;
pub mod work_context;

pub use clock::Clock;
pub use clock::ManualClock;
pub use clock::SystemClock;
pub use lease::Lease;
pub use lease::LeaseEnded;
pub use notify::Notice;
pub use notify::forget_socket;
pub use notify::keep_socket;
pub use notify::notify;
pub use program::Program;
pub use signals::Signal;
pub use signals::Signals;
pub use stop::Stop;
pub use stop::Stopper;
pub use stop::stop_pair;
pub use tasks::TaskToken;
pub use tasks::Tasks;
