//! The effects everything shares: the clock, tracked tasks and the signal to stop.

mod clock;
mod stop;
mod tasks;

pub use clock::Clock;
pub use clock::ManualClock;
pub use clock::SystemClock;
pub use stop::Stop;
pub use stop::Stopper;
pub use stop::stop_pair;
pub use tasks::Tasks;
