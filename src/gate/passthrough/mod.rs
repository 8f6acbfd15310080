//! Pass-through to a VM manager's own interface, decided without a socket: which requests are passed through, and how they leave.
//!
//! The routes of this API come first and are never passed through, however their paths are spelled (see [`paths`]).

mod field_rule;
mod header_edit;
mod paths;
mod prepared;
mod route;
mod route_table;

#[cfg(test)]
mod tests;

pub use field_rule::FieldError;
pub use field_rule::FieldRule;
pub use header_edit::HeaderEdit;
pub use header_edit::extended_via;
pub use paths::PathPrefix;
pub use prepared::PassThrough;
pub use prepared::pass_through_failure;
pub use route::AuthorizationRule;
pub use route::BodyRule;
pub use route::HostRule;
pub use route::PASS_THROUGH_METHODS;
pub use route::PassThroughAccess;
pub use route::PassThroughRoute;
pub use route::PoolId;

pub(super) use prepared::PassThroughOrigin;
pub(super) use prepared::ROUTE_NAME;
pub(super) use prepared::asks_for_websocket;
pub(super) use route_table::PassThroughRoutes;
