//! Several gateways on one store: which of them is active, and for how long it may act.
//!
//! | to | use |
//! |---|---|
//! | become the active gateway | [`Election::win`] |
//! | stay it | [`Leadership::hold`] |
//! | know who is | [`Election::view`] |
//! | share API tokens | [`SharedTokens`] |

mod config;
mod election;
mod leader;
mod shared_tokens;

pub use config::Config;
pub use election::ClusterView;
pub use election::Election;
pub use election::Leadership;
pub use election::Lost;
pub use leader::Leader;
pub use shared_tokens::SharedTokens;
pub use shared_tokens::TokenSnapshot;
pub use shared_tokens::TokenUse;
