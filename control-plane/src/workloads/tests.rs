use outrigger_certs::{SpiffeId, TrustDomain};
use proptest::prelude::*;

use super::*;

const READY: State = State { ready: true, draining: false, ready_since: None };
const STARTING: State = State { ready: false, draining: false, ready_since: None };
const DRAINING: State = State { ready: true, draining: true, ready_since: None };

fn presence(name: &str, instance: &str, address: &str) -> Presence {
    let identity = SpiffeId::new(&TrustDomain::parse("mesh.local").unwrap(), "shop", name).unwrap();
    Presence {
        id: WorkloadId { identity, instance: instance.into() },
        labels: BTreeMap::new(),
        addresses: vec![address.parse().unwrap()],
        zone: "".into(),
        serves: Vec::new(),
        version: "1".into(),
    }
}

fn describe(effects: &[Effect]) -> Vec<String> {
    let describe = |effect: &Effect| match effect {
        Effect::Changed(workload) => {
            format!("{}{}", workload.id.instance, if workload.serving { " serves" } else { " waits" })
        }
        Effect::Gone(id) => format!("{} gone", id.instance),
        Effect::Replaced(stream) => format!("stream {} replaced", stream.0),
    };
    effects.iter().map(describe).collect()
}

#[test]
fn a_life_from_hello_to_drain() {
    let now = Instant::now();
    let mut machine = Workloads::default();
    assert_eq!(
        describe(&machine.on_hello(StreamId(1), presence("orders", "a", "10.0.0.1"), STARTING)),
        ["a waits"]
    );
    assert_eq!(describe(&machine.on_state(StreamId(1), READY)), ["a serves"]);
    assert_eq!(machine.poll_timeout(), None);
    assert_eq!(describe(&machine.on_state(StreamId(1), DRAINING)), ["a waits"], "withdrawn at once");
    assert_eq!(
        describe(&machine.on_disconnected(StreamId(1), now)),
        ["a gone"],
        "no lease for who said goodbye"
    );
    assert_eq!(machine.entries().count(), 0);
}

#[test]
fn a_lost_stream_keeps_its_place_for_the_lease() {
    let now = Instant::now();
    let mut machine = Workloads::default();
    machine.on_hello(StreamId(1), presence("orders", "a", "10.0.0.1"), READY);
    assert_eq!(machine.on_disconnected(StreamId(1), now), []);
    assert_eq!(machine.poll_timeout(), Some(now + LEASE));
    assert_eq!(machine.handle_timeout(now + LEASE - Duration::from_millis(1)), []);
    assert_eq!(describe(&machine.handle_timeout(now + LEASE)), ["a gone"]);
    assert_eq!(machine.poll_timeout(), None);
}

#[test]
fn a_reconnect_within_the_lease_changes_nothing_for_others() {
    let now = Instant::now();
    let mut machine = Workloads::default();
    machine.on_hello(StreamId(1), presence("orders", "a", "10.0.0.1"), READY);
    machine.on_disconnected(StreamId(1), now);
    assert_eq!(
        describe(&machine.on_hello(StreamId(2), presence("orders", "a", "10.0.0.1"), READY)),
        ["a serves"]
    );
    assert_eq!(machine.handle_timeout(now + LEASE), []);
}

#[test]
fn a_second_stream_of_a_process_replaces_the_first() {
    let now = Instant::now();
    let mut machine = Workloads::default();
    machine.on_hello(StreamId(1), presence("orders", "a", "10.0.0.1"), READY);
    let effects = machine.on_hello(StreamId(2), presence("orders", "a", "10.0.0.1"), READY);
    assert_eq!(describe(&effects), ["stream 1 replaced", "a serves"]);
    // The end of the old one, whenever it comes, means nothing any more.
    assert_eq!(machine.on_disconnected(StreamId(1), now), []);
    assert_eq!(machine.on_state(StreamId(1), DRAINING), []);
    assert_eq!(machine.poll_timeout(), None);
}

#[test]
fn a_restarted_process_takes_the_place_of_its_lost_self() {
    let now = Instant::now();
    let mut machine = Workloads::default();
    machine.on_hello(StreamId(1), presence("orders", "a", "10.0.0.1"), READY);
    machine.on_hello(StreamId(2), presence("orders", "b", "10.0.0.2"), READY);
    machine.on_disconnected(StreamId(1), now);
    machine.on_disconnected(StreamId(2), now);
    let effects = machine.on_hello(StreamId(3), presence("orders", "c", "10.0.0.1"), STARTING);
    assert_eq!(describe(&effects), ["c waits", "a gone"], "the replica elsewhere is left alone");
}

#[test]
fn neighbours_with_one_identity_and_address_do_not_disturb_each_other() {
    let mut machine = Workloads::default();
    machine.on_hello(StreamId(1), presence("cli", "a", "127.0.0.1"), READY);
    let effects = machine.on_hello(StreamId(2), presence("cli", "b", "127.0.0.1"), READY);
    assert_eq!(describe(&effects), ["b serves"]);
    assert_eq!(machine.entries().count(), 2);
}

#[test]
fn after_a_restart_of_ours_everybody_has_time_to_come_back() {
    let now = Instant::now();
    let mut machine = Workloads::default();
    let known = [(presence("orders", "a", "10.0.0.1"), READY), (presence("orders", "b", "10.0.0.2"), READY)];
    assert_eq!(describe(&machine.restore(known, now)), ["a serves", "b serves"]);
    machine.on_hello(StreamId(1), presence("orders", "a", "10.0.0.1"), READY);
    assert_eq!(machine.handle_timeout(now + LEASE), []);
    assert_eq!(describe(&machine.handle_timeout(now + RESTART_LEASE)), ["b gone"]);
}

#[derive(Clone, Debug)]
enum Op {
    Hello { process: u8, ready: bool },
    State { stream: u64, ready: bool, draining: bool },
    Disconnect { stream: u64 },
    Wait(u64),
}

fn ops() -> impl Strategy<Value = Op> {
    prop_oneof![
        (0..4u8, any::<bool>()).prop_map(|(process, ready)| Op::Hello { process, ready }),
        (0..8u64, any::<bool>(), any::<bool>()).prop_map(|(stream, ready, draining)| Op::State {
            stream,
            ready,
            draining
        }),
        (0..8u64).prop_map(|stream| Op::Disconnect { stream }),
        (0..7000u64).prop_map(Op::Wait),
    ]
}

proptest! {
    /// What the effects say is what the machine holds; nobody stays without a stream past the lease.
    #[test]
    fn effects_tell_everything(ops in prop::collection::vec(ops(), 1..60)) {
        let mut now = Instant::now();
        let mut machine = Workloads::default();
        let mut told: BTreeMap<WorkloadId, Arc<Workload>> = BTreeMap::new();
        let mut streams = 0;
        for op in ops {
            let effects = match op {
                Op::Hello { process, ready } => {
                    streams += 1;
                    // Two processes share a place, so they may replace each other.
                    let address = if process < 2 { "10.0.0.1" } else { "10.0.0.2" };
                    machine.on_hello(StreamId(streams), presence("orders", &process.to_string(), address), State { ready, draining: false, ready_since: None })
                }
                Op::State { stream, ready, draining } => machine.on_state(StreamId(stream), State { ready, draining, ready_since: None }),
                Op::Disconnect { stream } => machine.on_disconnected(StreamId(stream), now),
                Op::Wait(millis) => {
                    now += Duration::from_millis(millis);
                    machine.handle_timeout(now)
                }
            };
            for effect in effects {
                match effect {
                    Effect::Changed(workload) => drop(told.insert(workload.id.clone(), workload)),
                    Effect::Gone(id) => prop_assert!(told.remove(&id).is_some()),
                    Effect::Replaced(_) => {}
                }
            }
            let held: BTreeMap<_, _> = machine.entries().map(|entry| (entry.presence.id.clone(), entry.workload())).collect();
            prop_assert_eq!(&told, &held);
            for entry in machine.entries() {
                if let Phase::Leased { until } = entry.phase {
                    prop_assert!(until <= now + LEASE && !entry.state.draining);
                }
            }
        }
        let later = machine.handle_timeout(now + LEASE);
        prop_assert!(machine.entries().all(|entry| matches!(entry.phase, Phase::Connected { .. })), "{:?}", later);
    }
}
