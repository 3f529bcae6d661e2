use std::collections::{HashMap, HashSet};

use proptest::prelude::*;

use super::*;

const IDLE: Duration = Duration::from_secs(60);

fn config(streams: u32) -> Config {
    Config { streams, max_connections: 4, max_idle: 2, max_waiting: 6, idle_timeout: IDLE }
}

fn events(pool: &mut Pool) -> Vec<Event> {
    std::iter::from_fn(|| pool.poll_event()).collect()
}

fn dialled(pool: &mut Pool) -> DialId {
    match events(pool)[..] {
        [Event::Dial(dial)] => dial,
        ref other => panic!("expected one dial, got {other:?}"),
    }
}

fn wait(pool: &mut Pool, now: Instant) -> Ticket {
    let checkout = pool.checkout(now);
    let Checkout::Wait(ticket) = checkout else { panic!("expected to wait, got {checkout:?}") };
    ticket
}

/// A pool with one idle connection.
fn warm(streams: u32, now: Instant) -> (Pool, ConnId) {
    let mut pool = Pool::new(config(streams));
    let ticket = wait(&mut pool, now);
    let dial = dialled(&mut pool);
    let id = pool.on_connected(dial, streams, now).unwrap();
    assert_eq!(events(&mut pool), [Event::Ready { ticket, id }]);
    pool.release(id, Reuse::Keep, now);
    assert_eq!(events(&mut pool), []);
    (pool, id)
}

#[test]
fn an_idle_connection_is_used_again_and_ends_after_its_time() {
    let now = crate::testing::start();
    let (mut pool, id) = warm(1, now);
    assert_eq!(pool.checkout(now), Checkout::Use(id));
    pool.release(id, Reuse::Keep, now);
    assert_eq!(pool.poll_timeout(), Some(now + IDLE));
    pool.handle_timeout(now + IDLE - Duration::from_millis(1));
    assert_eq!(events(&mut pool), []);
    pool.handle_timeout(now + IDLE);
    assert_eq!(events(&mut pool), [Event::Close(id)]);
    assert!(pool.is_unused() && pool.poll_timeout().is_none());
}

#[test]
fn checkout_does_not_hand_out_what_the_timer_has_not_reached_yet() {
    let now = crate::testing::start();
    let (mut pool, id) = warm(1, now);
    wait(&mut pool, now + IDLE);
    assert!(matches!(events(&mut pool)[..], [Event::Close(closed), Event::Dial(_)] if closed == id));
}

#[test]
fn the_newest_idle_connection_is_used_and_the_oldest_closed_when_there_are_too_many() {
    let now = crate::testing::start();
    let mut pool = Pool::new(config(1));
    let ids: Vec<_> = (0..3)
        .map(|_| {
            wait(&mut pool, now);
            let dial = dialled(&mut pool);
            let id = pool.on_connected(dial, 1, now).unwrap();
            events(&mut pool);
            id
        })
        .collect();
    for id in &ids {
        pool.release(*id, Reuse::Keep, now);
    }
    assert_eq!(events(&mut pool), [Event::Close(ids[0])], "max_idle is 2");
    assert_eq!(pool.checkout(now), Checkout::Use(ids[2]));
}

#[test]
fn a_released_connection_goes_to_whoever_waits_longest_and_the_dial_is_kept() {
    let now = crate::testing::start();
    let (mut pool, id) = warm(1, now);
    assert_eq!(pool.checkout(now), Checkout::Use(id));
    let first = wait(&mut pool, now);
    let dial = dialled(&mut pool);
    pool.release(id, Reuse::Keep, now);
    assert_eq!(events(&mut pool), [Event::Ready { ticket: first, id }]);
    let new = pool.on_connected(dial, 1, now).unwrap();
    assert_eq!(events(&mut pool), []);
    assert_eq!(pool.checkout(now), Checkout::Use(new));
}

#[test]
fn streams_are_shared_up_to_what_the_peer_takes() {
    let now = crate::testing::start();
    let mut pool = Pool::new(config(3));
    let tickets: Vec<_> = (0..4).map(|_| wait(&mut pool, now)).collect();
    let dials = events(&mut pool);
    assert_eq!(dials.len(), 2, "three fit the first dial, the fourth needs another: {dials:?}");
    let Event::Dial(dial) = dials[0] else { panic!("{dials:?}") };
    let id = pool.on_connected(dial, 2, now).unwrap();
    assert_eq!(
        events(&mut pool),
        [Event::Ready { ticket: tickets[0], id }, Event::Ready { ticket: tickets[1], id }],
        "the peer takes two only"
    );
    pool.on_streams(id, 4, now);
    assert_eq!(
        events(&mut pool),
        [Event::Ready { ticket: tickets[2], id }, Event::Ready { ticket: tickets[3], id }]
    );
    assert_eq!(pool.leases(), 4);
}

#[test]
fn a_failed_dial_fails_whom_it_would_have_served_and_all_when_nothing_is_left() {
    let now = crate::testing::start();
    let mut pool = Pool::new(Config { max_connections: 2, ..config(1) });
    let tickets: Vec<_> = (0..4).map(|_| wait(&mut pool, now)).collect();
    let dials = events(&mut pool);
    let [Event::Dial(one), Event::Dial(two)] = dials[..] else { panic!("{dials:?}") };
    pool.on_connect_failed(one, now);
    assert_eq!(events(&mut pool), [Event::Failed(tickets[0])]);
    pool.on_connect_failed(two, now);
    let rest: Vec<_> = tickets[1..].iter().map(|ticket| Event::Failed(*ticket)).collect();
    assert_eq!(events(&mut pool), rest);
    pool.on_connect_failed(two, now);
    assert_eq!(events(&mut pool), [], "a dial ends once");
}

#[test]
fn goaway_lets_leases_end_and_closes_then() {
    let now = crate::testing::start();
    let (mut pool, id) = warm(8, now);
    assert_eq!(pool.checkout(now), Checkout::Use(id));
    assert_eq!(pool.checkout(now), Checkout::Use(id));
    pool.on_goaway(id, now);
    pool.release(id, Reuse::Keep, now);
    assert_eq!(events(&mut pool), []);
    wait(&mut pool, now);
    dialled(&mut pool);
    pool.release(id, Reuse::Keep, now);
    assert_eq!(events(&mut pool), [Event::Close(id)]);
    let (mut pool, id) = warm(8, now);
    pool.on_goaway(id, now);
    assert_eq!(events(&mut pool), [Event::Close(id)], "idle: at once");
}

#[test]
fn a_closed_connection_is_replaced_for_those_that_wait() {
    let now = crate::testing::start();
    let mut pool = Pool::new(Config { max_connections: 1, ..config(1) });
    wait(&mut pool, now);
    let dial = dialled(&mut pool);
    let id = pool.on_connected(dial, 1, now).unwrap();
    events(&mut pool);
    wait(&mut pool, now);
    assert_eq!(events(&mut pool), [], "the cap is reached");
    pool.on_closed(id, now);
    dialled(&mut pool);
    pool.release(id, Reuse::Keep, now);
    assert_eq!((pool.leases(), pool.open()), (0, 0), "the lease went with the connection");
}

#[test]
fn full_when_too_many_wait_and_cancelling_makes_room() {
    let now = crate::testing::start();
    let mut pool = Pool::new(config(1));
    let tickets: Vec<_> = (0..6).map(|_| wait(&mut pool, now)).collect();
    assert_eq!(pool.checkout(now), Checkout::Full);
    assert!(pool.cancel(tickets[3]) && !pool.cancel(tickets[3]));
    wait(&mut pool, now);
}

#[test]
fn retiring_sends_waiters_elsewhere_and_lets_leases_end() {
    let now = crate::testing::start();
    let (mut pool, id) = warm(1, now);
    assert_eq!(pool.checkout(now), Checkout::Use(id));
    let ticket = wait(&mut pool, now);
    let dial = dialled(&mut pool);
    pool.retire(now);
    assert_eq!(events(&mut pool), [Event::Failed(ticket)]);
    assert_eq!(pool.checkout(now), Checkout::Full);
    assert_eq!(pool.on_connected(dial, 1, now), None);
    pool.release(id, Reuse::Keep, now);
    assert_eq!(events(&mut pool), [Event::Close(id)]);
    assert!(pool.is_unused());
}

// === sequences of operations ===

#[derive(Clone, Debug)]
enum Op {
    Checkout,
    Cancel(usize),
    Connected(usize, u32),
    ConnectFailed(usize),
    Release(usize, bool),
    Streams(usize, u32),
    Goaway(usize),
    Closed(usize),
    Advance(u64),
    Retire,
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        8 => Just(Op::Checkout),
        2 => any::<usize>().prop_map(Op::Cancel),
        5 => (any::<usize>(), 0..5_u32).prop_map(|(n, streams)| Op::Connected(n, streams)),
        2 => any::<usize>().prop_map(Op::ConnectFailed),
        8 => (any::<usize>(), prop::bool::weighted(0.8)).prop_map(|(n, keep)| Op::Release(n, keep)),
        1 => (any::<usize>(), 0..5_u32).prop_map(|(n, streams)| Op::Streams(n, streams)),
        1 => any::<usize>().prop_map(Op::Goaway),
        1 => any::<usize>().prop_map(Op::Closed),
        2 => (0..40_u64).prop_map(Op::Advance),
        1 => prop::bool::weighted(0.05).prop_map(|retire| if retire { Op::Retire } else { Op::Checkout }),
    ]
}

/// What the shell knows: the machine must agree with it at every step.
struct Model {
    pool: Pool,
    now: Instant,
    config: Config,
    waiting: Vec<Ticket>,
    answered: HashSet<Ticket>,
    dials: Vec<DialId>,
    /// Streams allowed, and whether new leases are.
    open: HashMap<ConnId, (u32, bool)>,
    leases: Vec<ConnId>,
    ever: HashSet<ConnId>,
}

impl Model {
    fn leases_of(&self, id: ConnId) -> usize {
        self.leases.iter().filter(|lease| **lease == id).count()
    }

    fn take_lease(&mut self, id: ConnId) {
        let (streams, accepting) = self.open[&id];
        assert!(accepting, "lease on a closing connection");
        assert!(self.leases_of(id) < streams as usize, "more streams than the peer takes");
        self.leases.push(id);
    }

    fn answer(&mut self, ticket: Ticket) {
        assert!(self.answered.insert(ticket), "answered twice");
        let place =
            self.waiting.iter().position(|waiting| *waiting == ticket).expect("answered without waiting");
        assert_eq!(place, 0, "out of order");
        self.waiting.remove(place);
    }

    fn drain(&mut self) {
        while let Some(event) = self.pool.poll_event() {
            match event {
                Event::Dial(dial) => self.dials.push(dial),
                Event::Ready { ticket, id } => {
                    self.answer(ticket);
                    self.take_lease(id);
                }
                Event::Failed(ticket) => self.answer(ticket),
                Event::Close(id) => {
                    assert!(self.open.remove(&id).is_some(), "closed what was not open");
                    assert_eq!(self.leases_of(id), 0, "closed under a lease");
                }
            }
        }
    }

    fn apply(&mut self, op: Op) {
        let pick = |n: usize, len: usize| (len > 0).then(|| n % len);
        match op {
            Op::Checkout => match self.pool.checkout(self.now) {
                Checkout::Use(id) => {
                    assert!(self.waiting.is_empty(), "overtook those that wait");
                    self.take_lease(id);
                }
                Checkout::Wait(ticket) => self.waiting.push(ticket),
                Checkout::Full => {}
            },
            Op::Cancel(n) => {
                if let Some(n) = pick(n, self.waiting.len()) {
                    let ticket = self.waiting.remove(n);
                    assert!(self.pool.cancel(ticket));
                    assert!(!self.pool.cancel(ticket));
                }
            }
            Op::Connected(n, streams) => {
                if let Some(n) = pick(n, self.dials.len()) {
                    let dial = self.dials.swap_remove(n);
                    if let Some(id) = self.pool.on_connected(dial, streams, self.now) {
                        assert!(self.ever.insert(id), "an id came back");
                        self.open.insert(id, (streams.max(1), true));
                    }
                }
            }
            Op::ConnectFailed(n) => {
                if let Some(n) = pick(n, self.dials.len()) {
                    let dial = self.dials.swap_remove(n);
                    self.pool.on_connect_failed(dial, self.now);
                }
            }
            Op::Release(n, keep) => {
                if let Some(n) = pick(n, self.leases.len()) {
                    let id = self.leases.swap_remove(n);
                    if !keep && let Some(open) = self.open.get_mut(&id) {
                        open.1 = false;
                    }
                    self.pool.release(id, if keep { Reuse::Keep } else { Reuse::Close }, self.now);
                }
            }
            Op::Streams(n, streams) => {
                let ids: Vec<_> = self.open.keys().copied().collect();
                // Fewer than are leased is legal: what runs goes on.
                if let Some(n) = pick(n, ids.len()) {
                    self.open.get_mut(&ids[n]).unwrap().0 = streams.max(1);
                    self.pool.on_streams(ids[n], streams, self.now);
                }
            }
            Op::Goaway(n) => {
                let ids: Vec<_> = self.open.keys().copied().collect();
                if let Some(n) = pick(n, ids.len()) {
                    self.open.get_mut(&ids[n]).unwrap().1 = false;
                    self.pool.on_goaway(ids[n], self.now);
                }
            }
            Op::Closed(n) => {
                let ids: Vec<_> = self.open.keys().copied().collect();
                if let Some(n) = pick(n, ids.len()) {
                    self.open.remove(&ids[n]);
                    self.pool.on_closed(ids[n], self.now);
                }
            }
            Op::Advance(seconds) => {
                self.now += Duration::from_secs(seconds);
                while self.pool.poll_timeout().is_some_and(|at| at <= self.now) {
                    self.pool.handle_timeout(self.now);
                }
            }
            Op::Retire => {
                for open in self.open.values_mut() {
                    open.1 = false;
                }
                self.pool.retire(self.now);
            }
        }
        self.drain();
        self.check();
    }

    fn check(&self) {
        let pool = &self.pool;
        let live = self.leases.iter().filter(|id| self.open.contains_key(id)).count();
        assert_eq!(pool.leases(), live);
        assert_eq!(pool.open(), self.open.len());
        assert_eq!(pool.waiting(), self.waiting.len());
        assert_eq!(pool.connecting(), self.dials.len());
        let idle =
            self.open.iter().filter(|(id, (_, accepting))| *accepting && self.leases_of(**id) == 0).count();
        assert_eq!(pool.idle(), idle);
        assert!(idle <= self.config.max_idle);
        assert!(self.open.len() + self.dials.len() <= self.config.max_connections);
        assert!(self.waiting.len() <= self.config.max_waiting);
        if !self.waiting.is_empty() {
            let room =
                self.open.iter().any(|(id, (streams, ok))| *ok && self.leases_of(*id) < *streams as usize);
            assert!(!room, "someone waits beside a connection with room");
            let hope = !self.dials.is_empty()
                || self.open.values().any(|(_, accepting)| *accepting)
                || self.open.len() >= self.config.max_connections;
            assert!(hope, "someone waits for nothing");
        }
    }
}

fn run(streams: u32, ops: Vec<Op>) {
    let config = config(streams);
    let mut model = Model {
        pool: Pool::new(config),
        now: crate::testing::start(),
        config,
        waiting: Vec::new(),
        answered: HashSet::new(),
        dials: Vec::new(),
        open: HashMap::new(),
        leases: Vec::new(),
        ever: HashSet::new(),
    };
    for op in ops {
        model.apply(op);
    }
    // The world ends: everything is answered, everything closes.
    while !model.leases.is_empty() {
        model.apply(Op::Release(0, true));
    }
    while !model.dials.is_empty() {
        model.apply(Op::ConnectFailed(0));
    }
    while !model.leases.is_empty() {
        model.apply(Op::Release(0, true));
    }
    assert!(model.waiting.is_empty(), "still waiting at the end");
    model.apply(Op::Advance(3600));
    assert!(model.pool.is_unused());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn exclusive_connections_keep_their_promises(ops in prop::collection::vec(op(), 0..80)) {
        run(1, ops);
    }

    #[test]
    fn shared_connections_keep_their_promises(ops in prop::collection::vec(op(), 0..80)) {
        run(3, ops);
    }
}
