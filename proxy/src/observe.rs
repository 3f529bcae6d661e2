//! What this proxy sees of others' health, told and heard: circuits, shared rate limits, what a fleet thinks.
//!
//! - [`events`]: transitions of circuits, from the workers to whoever wants to know.

pub mod events;

pub use events::Events;
