//! What is done with an authenticated request, by kind of resource.

mod cancel;
mod events;
mod mutate;
mod read;
mod statuses;
