//! A laboratory of network namespaces: pods joined by a bridge, processes in them, packets captured between them.
//!
//! It stands in for a small cluster on one machine: every [`Pod`] has its own network stack, addresses and redirect
//! rules, so the demo, the end-to-end tests and the benchmark run the shipped binaries as they are. No root is needed
//! where the kernel permits unprivileged user namespaces; [`enter`] says in one line what is missing otherwise.
//!
//! ```text
//!   enter::reexec_or_enter()       the program again, inside its own user, network, mount and process namespaces
//!     └─ Lab                       one switch: a bridge in a namespace of its own, invisible to other labs
//!          ├─ Pod "orders"         10.77.0.2, fd77::2, default route to the bridge
//!          │    └─ Process …       killed with its handle, output in a log file
//!          ├─ Capture              every packet that crosses the bridge
//!          └─ Mesh                 a control plane and workloads with sidecars, made of pods
//! ```
//!
//! It never touches the host's own network, and knows nothing of the other crates: binaries are found beside the
//! running program ([`Binaries`]) and spoken to as a user would.

pub mod enter;

mod binaries;
mod capture;
mod http;
mod ip;
mod mesh;
mod namespace;
mod pod;
mod process;
mod switch;
mod wait;
mod workload;

pub use binaries::{Binaries, find_program};
pub use capture::{Capture, Captured};
pub use enter::{Entered, Refusal};
pub use http::Answer;
pub use mesh::{Mesh, MeshBuilder};
pub use pod::Pod;
pub use process::{Output, Process};
pub use switch::Lab;
pub use wait::{wait_for, wait_for_some};
pub use workload::{Workload, WorkloadBuilder};
