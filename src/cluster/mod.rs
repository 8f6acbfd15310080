//! Several gateways on one store: which of them is active, and for how long it may act.
//!
//! | to | use |
//! |---|---|
//! | become the active gateway | [`Election::win`] |
//! | stay it | [`Leadership::hold`] |
//! | know who is | [`Election::view`] |

mod config;
mod election;
mod leader;

pub use config::Config;
pub use election::ClusterView;
pub use election::Election;
pub use election::Leadership;
pub use election::Lost;
pub use leader::Leader;
