//! Bytes, objects, variants, and which entry makes room.

use outrigger_proto::spec;

use super::{Rig, word};
use crate::cache::{MAX_VARIANTS, store::ENTRY_BYTES};

const FRESH: &str = "cache-control: max-age=60";

fn of(max_bytes: u64) -> spec::Cache {
    spec::Cache { max_bytes, ..Default::default() }
}

/// What a small entry takes.
fn one() -> u64 {
    let mut rig = Rig::new();
    assert!(rig.fetch("/0", "", 200, FRESH));
    let bytes = rig.cache.usage().bytes;
    assert!(bytes > ENTRY_BYTES + "orders/0".len() as u64 + "cache-controlmax-age=60".len() as u64 + 4);
    bytes
}

#[test]
fn the_least_recently_used_makes_room() {
    let mut rig = Rig::with(&of(3 * one()));
    for path in ["/0", "/1", "/2"] {
        assert!(rig.fetch(path, "", 200, FRESH));
    }
    assert_eq!(word(&rig.get("/0", "")), "fresh");
    assert!(rig.fetch("/3", "", 200, FRESH));
    for (path, expected) in [("/0", "fresh"), ("/1", "miss"), ("/2", "fresh"), ("/3", "fresh")] {
        assert_eq!(word(&rig.get(path, "")), expected, "{path}");
    }
    let usage = rig.cache.usage();
    assert_eq!((usage.entries, usage.bytes, usage.evicted), (3, 3 * one(), 1));
}

#[test]
fn a_changed_policy_keeps_what_fits() {
    let mut rig = Rig::new();
    for path in ["/0", "/1", "/2"] {
        assert!(rig.fetch(path, "", 200, FRESH));
    }
    rig.cache.set_policy(&of(2 * one()));
    assert_eq!(word(&rig.get("/0", "")), "miss");
    assert_eq!(word(&rig.get("/2", "")), "fresh");
    rig.cache.set_policy(&of(1 << 20));
    assert_eq!(rig.cache.usage().entries, 2);
}

#[test]
fn larger_than_the_cache_is_not_stored() {
    let mut rig = Rig::with(&of(one() - 1));
    assert!(!rig.fetch("/0", "", 200, FRESH));
    assert_eq!((rig.cache.usage().entries, rig.cache.usage().bytes), (0, 0));
}

#[test]
fn variants_of_a_url_are_few() {
    let mut rig = Rig::new();
    let head = format!("{FRESH}\nvary: accept");
    for variant in 0..MAX_VARIANTS {
        assert!(rig.fetch("/", &format!("accept: {variant}"), 200, &head));
    }
    assert_eq!(word(&rig.get("/", "accept: 0")), "fresh");
    assert!(rig.fetch("/", "accept: more", 200, &head));
    assert_eq!(rig.cache.usage().entries, MAX_VARIANTS);
    assert_eq!(word(&rig.get("/", "accept: 0")), "fresh");
    assert_eq!(word(&rig.get("/", "accept: 1")), "miss");
    let names: Vec<_> = (0..17).map(|name| format!("x-{name}")).collect();
    assert!(!rig.fetch("/many", "", 200, &format!("{FRESH}\nvary: {}", names.join(", "))));
}
