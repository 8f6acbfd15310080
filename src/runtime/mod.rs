//! The effects everything shares: the clock, tracked tasks, the signal to stop, and what the system tells and is told.

mod clock;
mod notify;
mod signals;
mod stop;
mod tasks;

pub mod hop_count;

pub use clock::Clock;
pub use clock::ManualClock;
pub use clock::SystemClock;
pub use notify::Notice;
pub use notify::notify;
pub use signals::Signal;
pub use signals::Signals;
pub use stop::Stop;
pub use stop::Stopper;
pub use stop::stop_pair;
pub use tasks::Tasks;
