//! Conversions: what survives the round trip, and what is refused under which field.

mod broken;
mod broken_observe;
mod broken_traffic;
mod policies;
mod reports;
mod strategies;

use std::{num::NonZeroU32, sync::Arc, time::Duration};

use proptest::{collection::vec, prelude::*};

use self::{
    broken::{BACKEND, backend_of, good, good_service},
    policies::{guidance_strategy, observations_strategy, traffic},
    strategies::{body, hello_strategy, update_strategy},
};
use super::{destination, traffic as convert_traffic, *};
use crate::spec::*;

proptest! {
    #[test]
    fn updates_survive_the_round_trip(original in update_strategy()) {
        // Through bytes, as on the wire.
        let bytes = prost::Message::encode_to_vec(&response(&original));
        let arrived = prost::Message::decode(bytes.as_slice()).unwrap();
        prop_assert_eq!(update(arrived).unwrap(), original);
    }

    #[test]
    fn hellos_survive_the_round_trip(original in hello_strategy()) {
        let bytes = prost::Message::encode_to_vec(&hello_to_pb(&original));
        let arrived = prost::Message::decode(bytes.as_slice()).unwrap();
        prop_assert_eq!(hello(arrived).unwrap(), original);
    }

    #[test]
    fn observations_survive_the_round_trip(original in observations_strategy()) {
        let bytes = prost::Message::encode_to_vec(&observations_to_pb(&original));
        let arrived = prost::Message::decode(bytes.as_slice()).unwrap();
        prop_assert_eq!(observations(arrived).unwrap(), original);
    }

    #[test]
    fn guidance_survives_the_round_trip(original in guidance_strategy()) {
        let bytes = prost::Message::encode_to_vec(&guidance_to_pb(&original));
        let arrived = prost::Message::decode(bytes.as_slice()).unwrap();
        prop_assert_eq!(guidance(arrived).unwrap(), original);
    }

    /// Sections that are left out mean the default, whatever the others say.
    #[test]
    fn absent_sections_mean_the_default(original in traffic()) {
        let mut from = convert_traffic::to_pb(&original);
        (from.load_balancer, from.timeouts, from.bulkhead) = (None, None, None);
        (from.outlier_ejection, from.retries) = (None, None);
        let mut fields = Fields::new();
        let arrived = convert_traffic::from_pb(&mut fields, from);
        let expected = Traffic {
            load_balancer: LoadBalancer::default(),
            timeouts: Timeouts::default(),
            bulkhead: Bulkhead::default(),
            outlier_ejection: Ejection::default(),
            retries: Retries::default(),
            ..original
        };
        prop_assert_eq!(fields.finish(arrived).unwrap(), expected);
    }

    #[test]
    fn versions_agree_with_content(one in body(), other in body()) {
        prop_assert_eq!(resource(&one), resource(&one));
        if body_to_pb(&one) != body_to_pb(&other) {
            prop_assert_ne!(resource(&one).version, resource(&other).version);
        }
    }

    #[test]
    fn no_bytes_panic(bytes in vec(any::<u8>(), 0..300)) {
        if let Ok(arrived) = <pb::ConfigureResponse as prost::Message>::decode(bytes.as_slice()) {
            let _ = update(arrived);
        }
        if let Ok(arrived) = <pb::Observations as prost::Message>::decode(bytes.as_slice()) {
            let _ = observations(arrived);
        }
        if let Ok(arrived) = <pb::Guidance as prost::Message>::decode(bytes.as_slice()) {
            let _ = guidance(arrived);
        }
        if let Ok(arrived) = <pb::TrafficReport as prost::Message>::decode(bytes.as_slice()) {
            let _ = report(arrived);
        }
    }
}

#[test]
fn versions_are_the_same_everywhere() {
    // Changing these texts makes every proxy of a running mesh fetch everything again: do it knowingly.
    let body = Body::Inbound(Arc::new(Inbound::default()));
    assert_eq!(resource(&body).version, "68b1415224acc0ed3af7254f1de675bd");
    let body =
        Body::Destination("address/10.0.0.1:80".parse().map(key).unwrap(), Arc::new(Destination::External));
    assert_eq!(resource(&body).version, "3c0328ad7e6050e5b9dab0acf1ef8f55");
}

fn key(key: Key) -> DestinationKey {
    let Key::Destination(key) = key else { panic!("{key} is not a destination") };
    key
}

#[test]
fn a_tiny_timeout_does_not_become_none() {
    let route = Route {
        name: "shop/r/0".into(),
        matches: vec![],
        backends: vec![WeightedBackend {
            backend: "shop/orders:80".parse().unwrap(),
            weight: NonZeroU32::MIN,
        }],
        request_timeout: Some(Duration::from_nanos(1)),
    };
    let mut service = good_service();
    service.routes = vec![Arc::new(route)];
    let pb = destination::to_pb(&Destination::Service(service));
    let Some(pb::destination::Kind::Service(service)) = pb.kind else { panic!("a service") };
    assert_eq!(service.routes[0].request_timeout_ms, 1);
}

#[test]
fn endpoints_are_put_in_order_and_addresses_in_one_spelling() {
    let mut from = good();
    let endpoints = &mut backend_of(&mut from).endpoints;
    endpoints.push(pb::Endpoint { address: "[::ffff:10.0.0.1]:1".into(), ..endpoints[0].clone() });
    let update = update(from).unwrap();
    let Body::Backend(_, backend) = &update.resources[BACKEND].body else { panic!("a backend") };
    let addresses: Vec<_> = backend.endpoints.iter().map(|endpoint| endpoint.address.to_string()).collect();
    assert_eq!(addresses, ["10.0.0.1:1", "10.77.0.3:8080"]);
}

#[test]
fn no_tiny_time_becomes_none() {
    let tiny = Duration::from_nanos(1);
    let mut original = Traffic {
        hedging: Some(Hedging { delay: HedgeDelay::After(tiny), budget_percent: 5 }),
        ..Traffic::default()
    };
    original.retries.backoff.base = tiny;
    original.timeouts.per_try = Some(tiny);
    original.load_balancer.slow_start = Some(tiny);
    let mut fields = Fields::new();
    let arrived = convert_traffic::from_pb(&mut fields, convert_traffic::to_pb(&original));
    let arrived = fields.finish(arrived).unwrap();
    let millisecond = Duration::from_millis(1);
    assert_eq!(arrived.hedging.unwrap().delay, HedgeDelay::After(millisecond));
    assert_eq!(arrived.retries.backoff.base, millisecond);
    assert_eq!(arrived.timeouts.per_try, Some(millisecond));
    assert_eq!(arrived.load_balancer.slow_start, Some(millisecond));
}

#[test]
fn an_empty_backend_has_the_default_traffic() {
    let mut from = good();
    backend_of(&mut from).traffic = None;
    let update = update(from).unwrap();
    let Body::Backend(_, backend) = &update.resources[BACKEND].body else { panic!("a backend") };
    assert_eq!(*backend.traffic, Traffic::default());
}

#[test]
fn only_a_ready_workload_is_ready_since() {
    let since = |ready| state(pb::State { ready, draining: false, ready_since_ms: 5 }).ready_since;
    assert_eq!((since(true), since(false)), (std::num::NonZeroU64::new(5), None));
}
