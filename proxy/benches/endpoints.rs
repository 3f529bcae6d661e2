//! What endpoints cost a proxy: memory of 100,000 of them, and the time from the bytes of an update to a worker that uses
//! it. The least of several rounds, by the wall clock: the scheduler's count of CPU time moves in steps of milliseconds.
//!
//! `cargo bench -p outrigger-proxy --bench endpoints`. The goals: 150 MiB, and 5 ms for one changed endpoint.

use std::{
    fs,
    hint::black_box,
    num::NonZeroU32,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use outrigger_certs::SpiffeId;
use outrigger_core::{
    balance::{Load, Member, Picker},
    outlier::Breakers,
    snapshot::Snapshot,
};
use outrigger_proto::{
    convert, pb,
    spec::{Backend, BackendKey, Body, Endpoint, Resource, Traffic, Update},
};
use rand::{SeedableRng as _, rngs::SmallRng};

const ENDPOINTS: u32 = 100_000;
const ROUNDS: usize = 20;

fn main() {
    for backends in [100, 10, 2] {
        measure(backends);
    }
}

/// As many backends with an equal part of all endpoints each.
fn measure(backends: u32) {
    let each = ENDPOINTS / backends;
    let mut rng = SmallRng::seed_from_u64(7);
    let now = Instant::now();
    let before = resident();
    let mut snapshot = Snapshot::default();
    let mut workers = Vec::new();
    for number in 0..backends {
        let update = decode(&encode(number, each, NonZeroU32::MIN));
        snapshot = snapshot.apply(update).expect("a legal update");
        let backend = snapshot.backend(&key(number)).expect("it was just applied");
        workers.push(link(backend, now, &mut rng));
    }
    let memory = resident().saturating_sub(before) as f64 / f64::from(1 << 20);
    let two = NonZeroU32::MIN.saturating_add(1);
    let changed = [encode(0, each, two), encode(0, each, NonZeroU32::MIN)];
    let mut least = Duration::MAX;
    for round in 0..ROUNDS {
        let start = Instant::now();
        let next = snapshot.apply(decode(&changed[round % 2])).expect("a legal update");
        let backend = next.backend(&key(0)).expect("it was just applied");
        let stays: Vec<_> = (0..each as usize).map(Some).collect();
        workers[0].1.relink(&stays, now);
        workers[0].0 = picker(backend, now, &mut rng);
        black_box(&workers);
        least = least.min(start.elapsed());
        snapshot = next;
    }
    println!(
        "{ENDPOINTS} endpoints in {backends} backends: {memory:.0} MiB; one of {each} changes: {:.2} ms",
        least.as_secs_f64() * 1e3
    );
}

/// What a worker has of a backend.
type Linked = (Picker, Breakers, Vec<Load>);

fn link(backend: &Backend, now: Instant, rng: &mut SmallRng) -> Linked {
    let endpoints = backend.endpoints.len();
    let breakers = Breakers::new(&backend.traffic.outlier_ejection, endpoints, now);
    (picker(backend, now, rng), breakers, vec![Load::new(now); endpoints])
}

fn picker(backend: &Backend, now: Instant, rng: &mut SmallRng) -> Picker {
    let today = SystemTime::UNIX_EPOCH;
    let members: Vec<_> =
        backend.endpoints.iter().map(|endpoint| Member::new(endpoint, now, today)).collect();
    Picker::new(&backend.traffic.load_balancer, &members, "", rng, now)
}

fn key(number: u32) -> BackendKey {
    format!("shop/service-{number}:80").parse().expect("a legal key")
}

/// One endpoint has this weight, the others 1.
fn encode(number: u32, endpoints: u32, weight: NonZeroU32) -> Vec<u8> {
    let identity =
        SpiffeId::parse(&format!("spiffe://mesh.local/ns/shop/sa/service-{number}")).expect("legal");
    let zone: Arc<str> = "zone-a".into();
    let endpoint = |index: u32| Endpoint {
        address: ((10 << 24 | number << 16 | index).to_be_bytes(), 8080).into(),
        identity: identity.clone(),
        zone: Arc::clone(&zone),
        weight: if index == 0 { weight } else { NonZeroU32::MIN },
        subset: "".into(),
        ready_since: None,
    };
    let backend =
        Backend { endpoints: (0..endpoints).map(endpoint).collect(), traffic: Arc::new(Traffic::default()) };
    let body = Body::Backend(key(number), Arc::new(backend));
    let resource = Resource { version: weight.to_string().into(), body };
    let update = Update { nonce: 1, resources: vec![resource], removed: Vec::new() };
    prost::Message::encode_to_vec(&convert::response(&update))
}

fn decode(bytes: &[u8]) -> Update {
    let response: pb::ConfigureResponse = prost::Message::decode(bytes).expect("what was just encoded");
    convert::update(response).expect("a legal update")
}

/// Resident bytes of this process.
fn resident() -> u64 {
    let text = fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages: u64 = text.split(' ').nth(1).and_then(|number| number.parse().ok()).unwrap_or(0);
    pages * 4096
}
