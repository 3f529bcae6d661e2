//! Who speaks first on a port that nobody declared: the client's bytes, the server's, or nobody yet.
//!
//! Server-first protocols (MySQL, SMTP, FTP, SSH) must not wait for bytes that the client will not send. So an
//! undeclared port is dialled as opaque soon, and whoever speaks first decides. A short head start keeps HTTP clients,
//! who speak at once, from costing a connection that is thrown away; what a port turned out to be is remembered.
//!
//! ```text
//!               client bytes decide ─────────────────────────────────▶ Decided(Http1 | Http2 | Tls | Opaque)
//! ┌───────────┐ head start over  ┌─────────┐ server bytes ──────────▶ Decided(ServerFirst)
//! │ listening │ ───── Dial ────▶ │ dialled │ client bytes decide ───▶ Decided(…), the dialled one goes if it is HTTP
//! └───────────┘                  └─────────┘
//!   in both: client bytes that do not decide start a deadline ───────▶ Decided(Opaque)
//!            the client's end without bytes ─────────────────────────▶ Decided(Opaque)
//! ```
//!
//! While both sides are silent there is no deadline: an idle connection may still become anything, and how long it may
//! idle is the shell's business.

use std::time::{Duration, Instant};

use crate::detect::{Detection, detect};

/// How long a client may speak before the server is dialled, on a port of which nothing is known. Under what people
/// and clients notice, over what an HTTP client on the same machine needs.
pub const HEAD_START: Duration = Duration::from_millis(20);
/// The same on a port where clients spoke first before.
pub const LEARNED_HEAD_START: Duration = Duration::from_secs(1);

/// What earlier connections to the same port taught; kept by the shell, from [`Winner::learned`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Learned {
    #[default]
    Unknown,
    ClientFirst,
    /// Dial at once.
    ServerFirst,
}

/// What to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    Wait,
    /// Dial the upstream for opaque bytes now, and go on listening to both sides. Said at most once.
    Dial,
    /// The race is over; the machine is asked nothing afterwards.
    Decided(Winner),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Winner {
    Http1,
    Http2,
    /// The application's own TLS: opaque, and routable by server name.
    Tls,
    /// Opaque by the client's bytes, or by their staying undecided.
    Opaque,
    /// Opaque because the server spoke first.
    ServerFirst,
}

/// The race of one connection.
#[derive(Debug)]
pub struct Race {
    /// When to dial; `None`: dialled already.
    dial_at: Option<Instant>,
    /// How long undecided client bytes are waited on.
    patience: Duration,
    /// Set by the first client bytes.
    deadline: Option<Instant>,
}

impl Race {
    /// `patience`: how long a client may take to finish the bytes that decide ([`crate::limits::DETECT_TIMEOUT`]).
    pub fn new(learned: Learned, patience: Duration, now: Instant) -> (Self, Step) {
        let (head_start, step) = match learned {
            Learned::Unknown => (Some(HEAD_START), Step::Wait),
            Learned::ClientFirst => (Some(LEARNED_HEAD_START), Step::Wait),
            Learned::ServerFirst => (None, Step::Dial),
        };
        (Self { dial_at: head_start.map(|head_start| now + head_start), patience, deadline: None }, step)
    }

    /// More came from the client; `prefix` is everything so far.
    pub fn on_client_bytes(&mut self, prefix: &[u8], now: Instant) -> Step {
        let winner = match detect(prefix) {
            Detection::NeedMore => {
                if !prefix.is_empty() {
                    self.deadline.get_or_insert(now + self.patience);
                }
                return Step::Wait;
            }
            Detection::Tls => Winner::Tls,
            Detection::Http1 => Winner::Http1,
            Detection::Http2 => Winner::Http2,
            Detection::Opaque => Winner::Opaque,
        };
        Step::Decided(winner)
    }

    /// The client will send nothing more, and what it sent did not decide.
    pub fn on_client_eof(&mut self) -> Step {
        Step::Decided(Winner::Opaque)
    }

    /// The dialled server sent something.
    pub fn on_server_bytes(&mut self) -> Step {
        Step::Decided(Winner::ServerFirst)
    }

    pub fn handle_timeout(&mut self, now: Instant) -> Step {
        if self.deadline.is_some_and(|deadline| now >= deadline) {
            return Step::Decided(Winner::Opaque);
        }
        if self.dial_at.is_some_and(|dial_at| now >= dial_at) {
            self.dial_at = None;
            return Step::Dial;
        }
        Step::Wait
    }

    pub fn poll_timeout(&self) -> Option<Instant> {
        match (self.dial_at, self.deadline) {
            (Some(dial_at), Some(deadline)) => Some(dial_at.min(deadline)),
            (one, other) => one.or(other),
        }
    }
}

impl Winner {
    /// What to remember of the port.
    pub fn learned(self) -> Learned {
        match self {
            Self::ServerFirst => Learned::ServerFirst,
            Self::Http1 | Self::Http2 | Self::Tls | Self::Opaque => Learned::ClientFirst,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(5);

    #[test]
    fn a_client_that_speaks_at_once_costs_no_dial() {
        let now = crate::testing::start();
        for (bytes, winner) in [
            (&b"GET / HTTP/1.1\r\n"[..], Winner::Http1),
            (crate::detect::HTTP2_PREFACE, Winner::Http2),
            (b"\x16\x03\x01\x02\x00\x01", Winner::Tls),
            (b"*1\r\n", Winner::Opaque),
        ] {
            let (mut race, step) = Race::new(Learned::Unknown, PATIENCE, now);
            assert_eq!(step, Step::Wait);
            assert_eq!(race.on_client_bytes(bytes, now), Step::Decided(winner));
            assert_eq!(winner.learned(), Learned::ClientFirst);
        }
    }

    #[test]
    fn a_silent_client_gets_its_server_dialled_once_and_then_waits_for_ever() {
        let now = crate::testing::start();
        let (mut race, _) = Race::new(Learned::Unknown, PATIENCE, now);
        assert_eq!(race.poll_timeout(), Some(now + HEAD_START));
        assert_eq!(race.handle_timeout(now), Step::Wait);
        assert_eq!(race.handle_timeout(now + HEAD_START), Step::Dial);
        assert_eq!(race.poll_timeout(), None);
        assert_eq!(race.handle_timeout(now + 100 * PATIENCE), Step::Wait);
        assert_eq!(race.on_server_bytes(), Step::Decided(Winner::ServerFirst));
        assert_eq!(Winner::ServerFirst.learned(), Learned::ServerFirst);
    }

    #[test]
    fn after_the_dial_the_client_may_still_win() {
        let now = crate::testing::start();
        let (mut race, step) = Race::new(Learned::ServerFirst, PATIENCE, now);
        assert_eq!((step, race.poll_timeout()), (Step::Dial, None));
        assert_eq!(race.on_client_bytes(b"GET / HTTP/1.1\r\n", now), Step::Decided(Winner::Http1));
    }

    #[test]
    fn half_a_request_line_is_waited_on_from_its_first_byte_and_not_extended() {
        let now = crate::testing::start();
        let (mut race, _) = Race::new(Learned::ClientFirst, PATIENCE, now);
        assert_eq!(race.poll_timeout(), Some(now + LEARNED_HEAD_START));
        assert_eq!(race.on_client_bytes(b"G", now), Step::Wait);
        assert_eq!(race.on_client_bytes(b"GE", now + PATIENCE / 2), Step::Wait);
        assert_eq!(race.handle_timeout(now + LEARNED_HEAD_START), Step::Dial);
        assert_eq!(race.poll_timeout(), Some(now + PATIENCE));
        assert_eq!(race.handle_timeout(now + PATIENCE), Step::Decided(Winner::Opaque));
    }

    #[test]
    fn the_end_of_the_client_is_carried_as_it_is() {
        let (mut race, _) = Race::new(Learned::Unknown, PATIENCE, crate::testing::start());
        assert_eq!(race.on_client_eof(), Step::Decided(Winner::Opaque));
    }
}
