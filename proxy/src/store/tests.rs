use std::os::unix::fs::PermissionsExt as _;

use outrigger_proto::spec::{Body, Destination, DestinationKey, Inbound};
use tokio::time::Instant;

use super::*;

fn identity(account: &str) -> SpiffeId {
    SpiffeId::parse(&format!("spiffe://mesh.local/ns/shop/sa/{account}")).unwrap()
}

fn key() -> DestinationKey {
    DestinationKey::address(([10, 0, 0, 1], 80).into())
}

fn snapshot() -> Snapshot {
    let bodies = [
        Body::Inbound(Arc::new(Inbound::default())),
        Body::Destination(key(), Arc::new(Destination::External)),
    ];
    let resources =
        bodies.into_iter().map(|body| Resource { version: convert::resource(&body).version.into(), body });
    Snapshot::default().apply(Update { nonce: 1, resources: resources.collect(), removed: vec![] }).unwrap()
}

/// Waits for a condition instead of for luck.
async fn until(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(600);
    while !condition() {
        assert!(Instant::now() < deadline, "{what}");
        sleep(Duration::from_millis(5)).await;
    }
}

#[test]
fn what_was_saved_is_loaded_with_its_versions() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::new(directory.path(), identity("web"));
    assert!(store.load().held().is_empty(), "nothing there yet");
    store.save(&snapshot()).unwrap();
    let loaded = store.load();
    assert_eq!(loaded.held(), snapshot().held());
    assert!(loaded.inbound().is_some() && loaded.destination(&key()).is_some());
    let mode = fs::metadata(directory.path().join(FILE)).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
fn the_file_reads_as_an_update() {
    let directory = tempfile::tempdir().unwrap();
    Store::new(directory.path(), identity("web")).save(&snapshot()).unwrap();
    let bytes = fs::read(directory.path().join(FILE)).unwrap();
    let response = pb::ConfigureResponse::decode(bytes.as_slice()).unwrap();
    assert_eq!(convert::update(response).unwrap().resources, snapshot().resources());
}

#[test]
fn a_broken_or_foreign_file_is_told_from_a_good_one() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::new(directory.path(), identity("web"));
    store.save(&snapshot()).unwrap();
    let path = directory.path().join(FILE);
    let good = fs::read(&path).unwrap();
    assert!(store.read(&path).unwrap().is_some());

    let check = |bytes: &[u8], wanted: &str| {
        fs::write(&path, bytes).unwrap();
        let error = store.read(&path).unwrap_err().to_string();
        assert!(error.contains(wanted), "{error}");
        assert!(store.load().held().is_empty(), "and the start goes on without it");
    };
    check(&good[..good.len() - 1], "it is no snapshot");
    check(b"\xff\xff\xff\xff not protobuf", "it is no snapshot");
    check(b"", "it belongs to \"\"");
    let mut saved = pb::Saved::decode(good.as_slice()).unwrap();
    saved.identity = identity("other").to_string();
    check(&saved.encode_to_vec(), "it belongs to \"spiffe://mesh.local/ns/shop/sa/other\"");
    let mut saved = pb::Saved::decode(good.as_slice()).unwrap();
    saved.resources[0].key = "nonsense".into();
    check(&saved.encode_to_vec(), "resources[0].key");
}

#[test]
fn content_that_is_not_what_its_version_says_is_asked_for_again() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::new(directory.path(), identity("web"));
    store.save(&snapshot()).unwrap();
    let path = directory.path().join(FILE);
    let mut saved = pb::Saved::decode(fs::read(&path).unwrap().as_slice()).unwrap();
    let changed = saved.resources.iter_mut().find(|resource| resource.key == "self").unwrap();
    changed.version = "0123456789abcdef0123456789abcdef".into();
    fs::write(&path, saved.encode_to_vec()).unwrap();
    let held = store.load().held();
    let version =
        |key: &str| held.iter().find(|held| held.key.to_string() == key).unwrap().version.to_string();
    assert_eq!(version("self"), UNVERIFIED);
    assert_ne!(version("address/10.0.0.1:80"), UNVERIFIED);
}

#[tokio::test]
async fn publications_reach_the_disk() {
    let directory = tempfile::tempdir().unwrap();
    // Made on the way.
    let store = Arc::new(Store::new(&directory.path().join("state"), identity("web")));
    let shared = Shared::new(Snapshot::default());
    let keeper = tokio::spawn(Arc::clone(&store).keep(shared.clone()));
    tokio::task::yield_now().await;
    shared.publish(snapshot());
    until("the snapshot is on disk", || store.load().held() == snapshot().held()).await;
    keeper.abort();
}

#[tokio::test]
async fn a_disk_that_fails_is_reported_and_tried_again() {
    let directory = tempfile::tempdir().unwrap();
    let state = directory.path().join("state");
    // A file where the directory should be: fails for root, too.
    fs::write(&state, b"").unwrap();
    let store = Arc::new(Store::new(&state, identity("web")));
    let shared = Shared::new(Snapshot::default());
    let keeper = tokio::spawn(Arc::clone(&store).keep(shared.clone()));
    tokio::task::yield_now().await;
    shared.publish(snapshot());
    until("the failure is seen", || store.is_failing()).await;
    fs::remove_file(&state).unwrap();
    // Nothing changes any more: the store itself has to try again, a minute later.
    tokio::time::pause();
    until("it is written in the end", || !store.is_failing()).await;
    assert_eq!(store.load().held(), snapshot().held());
    keeper.abort();
}
