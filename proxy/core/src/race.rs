//! Who speaks first on a port that nobody declared: the client's bytes, the server's, or nobody.

use std::time::{Duration, Instant};

use crate::detect::Detection;

/// What earlier connections to the same port taught. Kept by the shell per destination, fed by [`Winner::learned`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Learned {
    #[default]
    Unknown,
    /// The client spoke first: wait longer before dialling for nothing.
    ClientFirst,
    /// The server spoke first: dial at once.
    ServerFirst,
}

/// What to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    Wait,
    /// Dial the upstream as an opaque connection now, and go on reading both sides. Said at most once.
    Dial,
    /// The race is over. Said once; nothing is asked of the machine afterwards.
    Decided(Winner),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Winner {
    /// The client's first bytes say HTTP/1.
    Http1,
    Http2,
    /// The application's own TLS: opaque, but routable by SNI.
    Tls,
    /// Opaque because of the client's bytes.
    Opaque,
    /// The server spoke first: opaque.
    ServerFirst,
    /// Nobody said anything that decides in time: opaque.
    Silent,
}

/// The race of one connection.
#[derive(Debug)]
pub struct Race {
    head_start_ends: Option<Instant>,
    deadline: Instant,
}

impl Race {
    pub fn new(_learned: Learned, _timeout: Duration, _now: Instant) -> (Self, Step) {
        unimplemented!()
    }
    /// `prefix`: all bytes from the client so far.
    pub fn on_client_bytes(&mut self, _prefix: &[u8]) -> Step {
        unimplemented!()
    }
    /// The client will send nothing more.
    pub fn on_client_eof(&mut self) -> Step {
        unimplemented!()
    }
    /// The dialled server sent something.
    pub fn on_server_bytes(&mut self) -> Step {
        unimplemented!()
    }
    pub fn handle_timeout(&mut self, _now: Instant) -> Step {
        unimplemented!()
    }
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.head_start_ends.or(Some(self.deadline))
    }
}

impl Winner {
    pub fn detection(self) -> Detection {
        unimplemented!()
    }
    pub fn learned(self) -> Learned {
        unimplemented!()
    }
}
