//! The decisions of the configuration stream, without a socket: which control plane is the active one, what it is told,
//! what becomes of its updates.
//!
//! One entry per control plane in the list:
//!
//! ```text
//!              on_connected, another is active             on_lost
//!          ┌─────────────────────────────────▶ Presence ───────────┐
//!          │                                      │                ▼
//!        Down                      the active one │               Down
//!          │                             was lost ▼                ▲
//!          └─────────────────────────────────▶ Active ─────────────┘
//!              on_connected, none is active                on_lost: the first Presence in the list becomes Active
//! ```
//!
//! The active one stays active for as long as its stream lives, also when an earlier one in the list comes back: moving
//! would gain nothing, and a control plane that comes and goes would drag every proxy along.
//!
//! Updates are taken whole or refused whole. Several that have arrived meanwhile are taken in one step, so that under a
//! storm of pushes the newest wins and the workers see few snapshots; if the step as a whole is refused, they are tried
//! one by one to find the culprit, and the last good state stays.
//!
//! Call contract as in `outrigger_core`: after every call, [`Session::poll_event`] until `None`, and do each event in
//! order. It knows neither tonic nor TLS nor the disk.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
    time::Instant,
};

use outrigger_certs::{TrustBundle, TrustDomain, TrustError};
use outrigger_core::snapshot::Snapshot;
use outrigger_proto::{
    convert, pb,
    spec::{Body, DestinationKey, FieldError, Held, Key, Resource, State, Update},
};

use super::{
    discovery::{MAX_DESTINATIONS, Uses},
    interest::Interest,
};

pub(super) struct Session {
    trust_domain: TrustDomain,
    snapshot: Arc<Snapshot>,
    interest: Interest,
    state: State,
    links: Vec<Phase>,
    events: VecDeque<Event>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    Down,
    Presence,
    Active,
}

/// What is to be done.
#[derive(Debug)]
pub(super) enum Event {
    /// Begin a stream on this link, in place of the one it has.
    Open {
        link: usize,
        open: Open,
    },
    Send {
        link: usize,
        message: Message,
    },
    /// From now on whoever misses one of these asks again.
    Forget(Vec<DestinationKey>),
    Trust(TrustBundle),
    Publish(Arc<Snapshot>),
}

/// The first words on a stream.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Open {
    pub(super) presence_only: bool,
    pub(super) state: State,
    pub(super) held: Vec<Held>,
    pub(super) subscribe: Vec<Key>,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Message {
    Subscribe(Vec<Key>),
    Unsubscribe(Vec<Key>),
    Ack(u64),
    Nack(u64, Vec<FieldError>),
    State(State),
}

impl Session {
    /// `snapshot` is what was on disk, or empty. Its destinations are followed as if they had just been used.
    pub(super) fn new(
        trust_domain: TrustDomain,
        snapshot: Arc<Snapshot>,
        pinned: impl IntoIterator<Item = DestinationKey>,
        state: State,
        links: usize,
        now: Instant,
    ) -> Self {
        let mut interest = Interest::new(now);
        for (key, _) in snapshot.destinations() {
            interest.follow(key.clone(), now);
        }
        for key in pinned {
            interest.pin(key, now);
        }
        let links = vec![Phase::Down; links];
        Self { trust_domain, snapshot, interest, state, links, events: VecDeque::new() }
    }

    pub(super) fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    pub(super) fn active(&self) -> Option<usize> {
        self.links.iter().position(|phase| *phase == Phase::Active)
    }

    pub(super) fn phase(&self, link: usize) -> Phase {
        self.links[link]
    }

    /// Whether there is a policy and a trust bundle: without them nothing may be let in.
    pub(super) fn is_configured(&self) -> bool {
        self.snapshot.inbound().is_some() && self.snapshot.trust().is_some()
    }

    pub(super) fn state(&self) -> State {
        self.state
    }

    // === streams ===

    pub(super) fn on_connected(&mut self, link: usize) {
        if self.active().is_some() {
            self.links[link] = Phase::Presence;
            let open = Open { presence_only: true, state: self.state, held: vec![], subscribe: vec![] };
            self.events.push_back(Event::Open { link, open });
        } else {
            self.activate(link);
        }
    }

    pub(super) fn on_lost(&mut self, link: usize) {
        self.links[link] = Phase::Down;
        if self.active().is_none()
            && let Some(next) = self.links.iter().position(|phase| *phase == Phase::Presence)
        {
            self.activate(next);
        }
    }

    fn activate(&mut self, link: usize) {
        self.links[link] = Phase::Active;
        let mut subscribe = vec![Key::Inbound, Key::Trust];
        subscribe.extend(self.interest.keys().cloned().map(Key::Destination));
        let open = Open { presence_only: false, state: self.state, held: self.snapshot.held(), subscribe };
        self.events.push_back(Event::Open { link, open });
    }

    pub(super) fn on_state(&mut self, state: State) {
        if state == self.state {
            return;
        }
        self.state = state;
        for link in 0..self.links.len() {
            if self.links[link] != Phase::Down {
                self.send(link, Message::State(state));
            }
        }
    }

    fn send(&mut self, link: usize, message: Message) {
        self.events.push_back(Event::Send { link, message });
    }

    // === destinations ===

    pub(super) fn on_wanted(&mut self, keys: Vec<DestinationKey>, now: Instant) {
        let new: Vec<_> = keys.into_iter().filter(|key| self.interest.follow(key.clone(), now)).collect();
        // Without a stream they wait in the table: the next one begins with all of it.
        if let (Some(link), false) = (self.active(), new.is_empty()) {
            self.send(link, Message::Subscribe(new.into_iter().map(Key::Destination).collect()));
        }
    }

    /// Somebody was turned away because too much is followed.
    pub(super) fn on_full(&mut self, uses: &Uses, now: Instant) {
        self.interest.on_uses(|key| uses.contains(key), now);
        // What is known is worth more than what nobody could answer now.
        if self.active().is_some() {
            let given_up = self.interest.make_room(MAX_DESTINATIONS / 8);
            self.give_up(given_up);
        }
    }

    pub(super) fn poll_timeout(&self) -> Instant {
        self.interest.poll_timeout()
    }

    pub(super) fn handle_timeout(&mut self, uses: &Uses, now: Instant) {
        self.interest.on_uses(|key| uses.contains(key), now);
        // While no control plane is there nothing is given up: it could not be had again.
        if self.active().is_some() {
            let given_up = self.interest.sweep(now);
            self.give_up(given_up);
        } else {
            self.interest.postpone(now);
        }
    }

    fn give_up(&mut self, keys: Vec<DestinationKey>) {
        let Some(link) = self.active() else { return };
        if keys.is_empty() {
            return;
        }
        self.events.push_back(Event::Forget(keys.clone()));
        // Their backends stay until the control plane withdraws them: it may be sending another destination that uses
        // one, and counts on our having it.
        self.publish(self.snapshot.without(&keys));
        self.send(link, Message::Unsubscribe(keys.into_iter().map(Key::Destination).collect()));
    }

    // === updates ===

    /// What has arrived since the last time, in order.
    pub(super) fn on_updates(&mut self, link: usize, responses: Vec<pb::ConfigureResponse>) {
        if self.links[link] != Phase::Active {
            return; // said on a stream that was to say nothing
        }
        let mut answers: Vec<(u64, Option<Vec<FieldError>>)> = Vec::with_capacity(responses.len());
        let mut updates = Vec::with_capacity(responses.len());
        for response in responses {
            let nonce = response.nonce;
            let checked = convert::update(response).map_err(|error| error.0);
            match checked.and_then(|update| Ok((self.trust_in(&update)?, update))) {
                Ok((trust, update)) => {
                    updates.push((answers.len(), trust, update));
                    answers.push((nonce, None));
                }
                Err(errors) => answers.push((nonce, Some(errors))),
            }
        }
        let all = match updates.as_slice() {
            [(_, _, only)] => only.clone(), // as it is: its errors name its fields
            several => merge(several.iter().map(|(_, _, update)| update)),
        };
        match self.snapshot.apply(all.clone()) {
            Ok(snapshot) => {
                let trust = updates.into_iter().rev().find_map(|(_, trust, _)| trust);
                self.take(trust, &all, snapshot);
            }
            Err(_) if updates.len() > 1 => {
                for (answer, trust, update) in updates {
                    match self.snapshot.apply(update.clone()) {
                        Ok(snapshot) => self.take(trust, &update, snapshot),
                        Err(errors) => answers[answer].1 = Some(errors),
                    }
                }
            }
            Err(errors) => {
                for (answer, _, _) in updates {
                    answers[answer].1 = Some(errors.clone());
                }
            }
        }
        for (nonce, refused) in answers {
            let message = refused.map_or(Message::Ack(nonce), |errors| Message::Nack(nonce, errors));
            self.send(link, message);
        }
    }

    /// The trust bundle of an update, if it has one and it is one.
    fn trust_in(&self, update: &Update) -> Result<Option<TrustBundle>, Vec<FieldError>> {
        for (index, resource) in update.resources.iter().enumerate() {
            let Body::Trust(trust) = &resource.body else { continue };
            let refused = |error: TrustError| {
                let part = match &error {
                    TrustError::TrustDomain { .. } => "trust_domain".to_owned(),
                    TrustError::Empty => "roots_der".to_owned(),
                    TrustError::Malformed { index, .. } | TrustError::NotAuthority { index } => {
                        format!("roots_der[{index}]")
                    }
                };
                vec![FieldError {
                    field: format!("resources[{index}].trust.{part}"),
                    reason: error.to_string(),
                }]
            };
            if trust.trust_domain != self.trust_domain {
                return Err(refused(TrustError::TrustDomain {
                    expected: self.trust_domain.to_string(),
                    got: trust.trust_domain.to_string(),
                }));
            }
            return TrustBundle::from_der(&self.trust_domain, &trust.roots).map(Some).map_err(refused);
        }
        Ok(None)
    }

    fn take(&mut self, trust: Option<TrustBundle>, update: &Update, snapshot: Snapshot) {
        if update.resources.is_empty() && update.removed.is_empty() {
            return;
        }
        // Whom to believe first, then where to go: with the snapshot come endpoints that hang from new roots.
        self.events.extend(trust.map(Event::Trust));
        let destinations = update.resources.iter().filter_map(|resource| match &resource.body {
            Body::Destination(key, _) => Some(key),
            Body::Inbound(_) | Body::Trust(_) | Body::Backend(..) => None,
        });
        let given_up: Vec<_> = destinations.filter(|key| !self.interest.contains(key)).cloned().collect();
        self.publish(snapshot);
        if !given_up.is_empty() {
            // On their way when we unsubscribed.
            self.publish(self.snapshot.without(&given_up));
        }
    }

    fn publish(&mut self, snapshot: Snapshot) {
        self.snapshot = Arc::new(snapshot);
        // Only the last of several in a row is worth seeing.
        if let Some(Event::Publish(waiting)) = self.events.back_mut() {
            waiting.clone_from(&self.snapshot);
        } else {
            self.events.push_back(Event::Publish(Arc::clone(&self.snapshot)));
        }
    }
}

/// One update with the effect of all, one after the other.
fn merge<'a>(updates: impl Iterator<Item = &'a Update>) -> Update {
    let mut latest: HashMap<Key, Option<&Resource>> = HashMap::new();
    for update in updates {
        for key in &update.removed {
            latest.insert(key.clone(), None);
        }
        for resource in &update.resources {
            latest.insert(resource.body.key(), Some(resource));
        }
    }
    let mut merged = Update { nonce: 0, resources: Vec::new(), removed: Vec::new() };
    for (key, resource) in latest {
        match resource {
            Some(resource) => merged.resources.push(resource.clone()),
            None => merged.removed.push(key),
        }
    }
    merged
}

#[cfg(test)]
mod tests;
