//! What all callers of a service make of its endpoints: who calls it, and who of them has opened which circuit. Sans-IO.
//!
//! One caller of many that sees a bad endpoint has a bad path; when many see it, the endpoint is bad. Each caller hears
//! how many there are of either kind and decides for itself what to make of it.
//!
//! Call contract: `on_*` take what a caller says; [`Fleet::take_changed`] then names the backends of which the opinion is
//! another than before. A caller that is lost leaves its opinions with it. It ejects nobody and keeps nothing on disk.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    net::SocketAddr,
};

use outrigger_proto::spec::{self, BackendKey, Circuit, Transition};

/// Transitions kept for people who ask later.
const MAX_HISTORY: usize = 200;

/// `C` names a caller.
#[derive(Debug)]
pub struct Fleet<C> {
    backends: BTreeMap<BackendKey, Opinions<C>>,
    changed: BTreeSet<BackendKey>,
    history: VecDeque<(C, Transition)>,
}

#[derive(Debug)]
struct Opinions<C> {
    callers: BTreeSet<C>,
    /// Circuits that are not closed, and the last transition of each.
    circuits: BTreeMap<SocketAddr, BTreeMap<C, Transition>>,
}

impl<C: Ord + Clone> Fleet<C> {
    pub fn new() -> Self {
        Self { backends: BTreeMap::new(), changed: BTreeSet::new(), history: VecDeque::new() }
    }

    /// All that the caller calls now.
    pub fn on_calling(&mut self, caller: &C, calling: &[BackendKey]) {
        let calling: BTreeSet<_> = calling.iter().collect();
        for (key, opinions) in &mut self.backends {
            if !calling.contains(key) && opinions.forget(caller) {
                self.changed.insert(key.clone());
            }
        }
        for key in calling {
            let opinions = self.backends.entry(key.clone()).or_default();
            if opinions.callers.insert(caller.clone()) {
                self.changed.insert(key.clone());
            }
        }
        self.backends.retain(|_, opinions| !opinions.callers.is_empty());
    }

    /// Counts only for what the caller calls: what it has let go of, it has no opinion of.
    pub fn on_transition(&mut self, caller: &C, transition: Transition) {
        if let Some(opinions) = self.backends.get_mut(&transition.backend)
            && opinions.callers.contains(caller)
        {
            let circuits = opinions.circuits.entry(transition.endpoint).or_default();
            if transition.to == Circuit::Closed {
                circuits.remove(caller);
            } else {
                circuits.insert(caller.clone(), transition.clone());
            }
            opinions.circuits.retain(|_, callers| !callers.is_empty());
            self.changed.insert(transition.backend.clone());
        }
        self.history.truncate(MAX_HISTORY - 1);
        self.history.push_front((caller.clone(), transition));
    }

    pub fn on_lost(&mut self, caller: &C) {
        self.on_calling(caller, &[]);
    }

    /// Backends of which something is new, with who is to hear of it.
    pub fn take_changed(&mut self) -> Vec<(spec::Fleet, Vec<C>)> {
        let changed = std::mem::take(&mut self.changed);
        changed
            .into_iter()
            .filter_map(|key| {
                let opinions = self.backends.get(&key)?;
                let ejected =
                    opinions.circuits.iter().map(|(endpoint, callers)| (*endpoint, count(callers.len())));
                let fleet = spec::Fleet {
                    callers: count(opinions.callers.len()),
                    ejected: ejected.collect(),
                    backend: key,
                };
                Some((fleet, opinions.callers.iter().cloned().collect()))
            })
            .collect()
    }

    /// How many call a backend.
    pub fn callers(&self, key: &BackendKey) -> usize {
        self.backends.get(key).map_or(0, |opinions| opinions.callers.len())
    }

    /// Its circuits that are not closed: the endpoint, and each caller's last transition of it.
    pub fn circuits(
        &self,
        key: &BackendKey,
    ) -> impl Iterator<Item = (SocketAddr, impl Iterator<Item = (&C, &Transition)>)> {
        let opinions = self.backends.get(key).into_iter();
        opinions
            .flat_map(|opinions| &opinions.circuits)
            .map(|(endpoint, callers)| (*endpoint, callers.iter()))
    }

    /// Circuits that are not closed, all backends and callers together.
    pub fn open(&self) -> usize {
        let circuits = self.backends.values().flat_map(|opinions| opinions.circuits.values());
        circuits.map(BTreeMap::len).sum()
    }

    /// The latest transitions, the newest first.
    pub fn history(&self) -> impl Iterator<Item = &(C, Transition)> {
        self.history.iter()
    }
}

impl<C: Ord + Clone> Default for Fleet<C> {
    fn default() -> Self {
        Self::new()
    }
}

impl<C> Default for Opinions<C> {
    fn default() -> Self {
        Self { callers: BTreeSet::new(), circuits: BTreeMap::new() }
    }
}

impl<C: Ord> Opinions<C> {
    fn forget(&mut self, caller: &C) -> bool {
        for callers in self.circuits.values_mut() {
            callers.remove(caller);
        }
        self.circuits.retain(|_, callers| !callers.is_empty());
        self.callers.remove(caller)
    }
}

fn count(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use outrigger_proto::spec::Cause;

    use super::*;

    fn key(name: &str) -> BackendKey {
        format!("shop/{name}:80").parse().unwrap()
    }

    fn transition(name: &str, endpoint: u16, to: Circuit) -> Transition {
        Transition {
            backend: key(name),
            endpoint: ([10, 0, 0, 1], endpoint).into(),
            to,
            cause: Cause::ConsecutiveFailures,
            at: 1,
            lasts: None,
            times: 1,
            why: "5 failures in a row (limit 5)".into(),
            evidence: Vec::new(),
        }
    }

    /// The backend's name, callers, per endpoint's port how many have it out, and who is told.
    type Told = (String, u32, Vec<(u16, u32)>, Vec<u8>);

    fn changed(fleet: &mut Fleet<u8>) -> Vec<Told> {
        let told = fleet.take_changed().into_iter().map(|(fleet, to)| {
            let ejected = fleet.ejected.iter().map(|(endpoint, by)| (endpoint.port(), *by)).collect();
            (fleet.backend.name.to_string(), fleet.callers, ejected, to)
        });
        told.collect()
    }

    #[test]
    fn opinions_are_counted_over_callers_and_told_to_all_of_them() {
        let mut fleet = Fleet::new();
        for caller in 1..=3 {
            fleet.on_calling(&caller, &[key("orders")]);
        }
        assert_eq!(changed(&mut fleet), [("orders".to_owned(), 3, vec![], vec![1, 2, 3])]);
        fleet.on_transition(&1, transition("orders", 8080, Circuit::Open));
        fleet.on_transition(&2, transition("orders", 8080, Circuit::Open));
        fleet.on_transition(&2, transition("orders", 8081, Circuit::HalfOpen));
        assert_eq!(fleet.open(), 3);
        let both = vec![(8080, 2), (8081, 1)];
        assert_eq!(changed(&mut fleet), [("orders".to_owned(), 3, both, vec![1, 2, 3])]);
        fleet.on_transition(&1, transition("orders", 8080, Circuit::Closed));
        fleet.on_lost(&2);
        assert_eq!(changed(&mut fleet), [("orders".to_owned(), 2, vec![], vec![1, 3])]);
        assert!(changed(&mut fleet).is_empty(), "nothing is told twice");
        assert_eq!(fleet.history().count(), 4);
    }

    #[test]
    fn what_is_not_called_is_not_judged() {
        let mut fleet = Fleet::new();
        fleet.on_transition(&1, transition("orders", 8080, Circuit::Open));
        assert_eq!((fleet.open(), fleet.callers(&key("orders"))), (0, 0));
        fleet.on_calling(&1, &[key("orders"), key("users")]);
        fleet.on_transition(&1, transition("orders", 8080, Circuit::Open));
        fleet.on_calling(&1, &[key("users")]);
        assert_eq!((fleet.open(), fleet.callers(&key("orders"))), (0, 0));
        assert_eq!(changed(&mut fleet), [("users".to_owned(), 1, vec![], vec![1])]);
    }

    #[test]
    fn history_is_bounded() {
        let mut fleet = Fleet::new();
        for port in 1..=2 * MAX_HISTORY as u16 {
            fleet.on_transition(&1, transition("orders", port, Circuit::Open));
        }
        let ports: Vec<_> = fleet.history().map(|(_, transition)| transition.endpoint.port()).collect();
        assert_eq!((ports.len(), ports[0]), (MAX_HISTORY, 2 * MAX_HISTORY as u16));
    }
}
