//! What this proxy sees of others' health, told and heard: circuits, shared rate limits, what a fleet thinks.
//!
//! - [`events`]: transitions of circuits, from the workers to whoever wants to know.
//! - [`bulletin`]: what the workers are told, and what they call.
//! - [`stream`]: to and from the active control plane.

pub mod bulletin;
pub mod events;
pub mod stream;

pub use bulletin::Bulletin;
pub use events::Events;
