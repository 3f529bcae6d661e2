//! Ready means: certificate, first configuration and listeners are there, and no drain has begun.
//!
//! Each owner reports its own gate ([`Readiness::met`], [`Readiness::waiting`] with the reason in plain words); `/ready`
//! shows what is missing and why, and the control plane is told through [`Readiness::states`].
//!
//! It judges nothing: a gate is met when its owner says so. A gate once met may be lost again (the certificate ended).

use std::{
    num::NonZeroU64,
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use outrigger_proto::spec::State;
use tokio::sync::watch;

/// What has to be there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gate {
    Certificate,
    Configuration,
    Listeners,
}

/// A handle; clones share the state.
#[derive(Clone)]
pub struct Readiness {
    gates: watch::Sender<Gates>,
}

#[derive(Clone)]
struct Gates {
    draining: bool,
    /// Since when the gates are met, in milliseconds since 1970.
    met_since: Option<NonZeroU64>,
    // `None`: met. In the order of `Gate::ALL`.
    waiting_for: [Option<Arc<str>>; Gate::ALL.len()],
}

// === impl Gate ===

impl Gate {
    pub const ALL: [Self; 3] = [Self::Certificate, Self::Configuration, Self::Listeners];

    pub fn name(self) -> &'static str {
        match self {
            Self::Certificate => "certificate",
            Self::Configuration => "configuration",
            Self::Listeners => "listeners",
        }
    }
}

// === impl Readiness ===

impl Readiness {
    #[expect(clippy::new_without_default, reason = "one per process, made where the process is built")]
    pub fn new() -> Self {
        let waiting_for =
            ["none was issued yet", "none has arrived yet", "not open yet"].map(|why| Some(why.into()));
        Self { gates: watch::Sender::new(Gates { draining: false, met_since: None, waiting_for }) }
    }

    pub fn met(&self, gate: Gate) {
        self.set(gate, None);
    }

    /// Not there, and the reason as an operator wants to read it (the last error, in plain words).
    pub fn waiting(&self, gate: Gate, why: &str) {
        self.set(gate, Some(why.into()));
    }

    fn set(&self, gate: Gate, why: Option<Arc<str>>) {
        self.gates.send_if_modified(|gates| {
            let slot = &mut gates.waiting_for[gate as usize];
            let changed = *slot != why;
            *slot = why;
            let met = gates.waiting_for.iter().all(Option::is_none);
            gates.met_since = met.then(|| gates.met_since.or_else(now)).flatten();
            changed
        });
    }

    /// From now on not ready, for good.
    pub fn draining(&self) {
        self.gates.send_modify(|gates| gates.draining = true);
    }

    pub fn state(&self) -> State {
        self.gates.borrow().state()
    }

    pub fn is_ready(&self) -> bool {
        self.state().ready
    }

    /// What `/ready` answers when it is not: one line per missing part. Empty when ready.
    pub fn missing(&self) -> Vec<String> {
        let gates = self.gates.borrow();
        let mut lines = Vec::new();
        if gates.draining {
            lines.push("draining: this proxy is on its way out".to_owned());
        }
        for gate in Gate::ALL {
            if let Some(why) = &gates.waiting_for[gate as usize] {
                lines.push(format!("{}: {why}", gate.name()));
            }
        }
        lines
    }

    /// The state now and each time it changes, for the control plane.
    pub fn states(&self) -> States {
        States { gates: self.gates.subscribe() }
    }
}

impl Gates {
    fn state(&self) -> State {
        let ready = !self.draining && self.waiting_for.iter().all(Option::is_none);
        State { ready, draining: self.draining, ready_since: self.met_since.filter(|_| ready) }
    }
}

/// Milliseconds since 1970. `None` with a clock that was never set.
fn now() -> Option<NonZeroU64> {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).ok()?;
    NonZeroU64::new(since.as_millis().try_into().ok()?)
}

/// Changes of [`State`], seen by one listener.
pub struct States {
    gates: watch::Receiver<Gates>,
}

impl States {
    pub fn current(&self) -> State {
        self.gates.borrow().state()
    }

    /// Waits for a state that differs from `known`. Pending for ever once the process has no [`Readiness`] left.
    pub async fn differs_from(&mut self, known: State) -> State {
        // Taken out of its guard before anything is awaited, so that the future may move between threads.
        let differs = self.gates.wait_for(|gates| gates.state() != known).await.map(|gates| gates.state());
        match differs {
            Ok(state) => state,
            Err(_) => std::future::pending().await,
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    #[tokio::test]
    async fn all_gates_make_ready_and_any_one_unmakes_it() {
        let readiness = Readiness::new();
        let mut states = readiness.states();
        let nothing = State::default();
        assert_eq!(readiness.missing().len(), 3);
        for gate in Gate::ALL {
            assert!(!readiness.is_ready());
            readiness.met(gate);
        }
        let ready = states.differs_from(nothing).await;
        assert!(ready.ready && !ready.draining && ready.ready_since.is_some(), "{ready:?}");
        assert!(readiness.missing().is_empty());
        readiness.waiting(Gate::Certificate, "it has ended");
        assert_eq!(states.differs_from(ready).await, nothing);
        assert_eq!(readiness.missing(), ["certificate: it has ended"]);
        readiness.met(Gate::Certificate);
        readiness.draining();
        assert_eq!(states.differs_from(nothing).await, State { draining: true, ..nothing });
    }

    #[tokio::test]
    async fn another_reason_for_the_same_gate_is_no_other_state() {
        let readiness = Readiness::new();
        let mut states = readiness.states();
        readiness.waiting(Gate::Configuration, "refused");
        assert!(states.differs_from(State::default()).now_or_never().is_none());
    }
}
