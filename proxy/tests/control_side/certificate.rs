//! The certificate: joining, renewing, refusals, and the trust bundle.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use outrigger_certs::SpiffeId;
use outrigger_proto::pb::configure_request::Kind;
use outrigger_proxy::credentials::Certificates;
use tonic::Status;

use crate::{
    control_plane::{Ca, ControlPlane, web},
    harness::{Setup, until},
};

/// The public point of a CSR: what a single-use token is bound to.
fn public_key(csr_der: &[u8]) -> &[u8] {
    // BIT STRING of 66 bytes, no unused bits, uncompressed point.
    let at = csr_der.windows(4).position(|bytes| bytes == [0x03, 0x42, 0x00, 0x04]).expect("a P-256 key");
    &csr_der[at + 4..at + 68]
}

async fn pass(time: Duration) {
    tokio::time::pause();
    tokio::time::advance(time).await;
    tokio::time::resume();
}

#[tokio::test]
async fn it_joins_with_the_token_and_renews_with_the_certificate() {
    let ca = Ca::new();
    let mut control_plane = ControlPlane::start(&ca);
    let setup = Setup::new(&[control_plane.address], &ca.token());
    let proxy = setup.start();
    let _stream = control_plane.configured().await;
    let first = proxy.credentials.current().unwrap();
    assert_eq!(*first.identity(), web());

    pass(Duration::from_secs(15 * 3600)).await;
    let second = until(|| {
        let current = proxy.credentials.current().unwrap();
        if Arc::ptr_eq(&first, &current) { Err("not renewed") } else { Ok(current) }
    })
    .await;
    assert_ne!(first.chain()[0], second.chain()[0]);
    let signed = control_plane.script().signed.lock().unwrap().clone();
    assert_eq!(signed.len(), 2);
    assert!(signed[0].with_token && signed[0].peer.is_none());
    assert!(!signed[1].with_token && signed[1].peer == Some(web()));
    assert_ne!(public_key(&signed[0].csr_der), public_key(&signed[1].csr_der), "a new key each time");
    assert!(proxy.readiness.is_ready());
}

#[tokio::test]
async fn the_same_key_tries_again_and_the_next_control_plane_is_asked() {
    let ca = Ca::new();
    let (first, mut second) = (ControlPlane::start(&ca), ControlPlane::start(&ca));
    first.script().refusals.lock().unwrap().push_back(Status::internal("the disk is full"));
    let setup = Setup::new(&[first.address, second.address], &ca.token());
    let proxy = setup.start();
    until(|| proxy.credentials.usable()).await;
    let at_first = first.script().signed.lock().unwrap()[0].csr_der.clone();
    let at_second = second.script().signed.lock().unwrap()[0].csr_der.clone();
    assert_eq!(public_key(&at_first), public_key(&at_second), "a single-use token is bound to it");
    drop(first);
    second.configured().await;
    proxy.ready().await;
}

#[tokio::test]
async fn each_token_that_is_no_good_is_told_apart() {
    let ca = Ca::new();
    let control_plane = ControlPlane::start(&ca);
    let hour = Duration::from_secs(3600);
    let expired = ca.token_with(hour, SystemTime::now() - 2 * hour);
    let good = ca.token();
    let (payload, signature) = good.rsplit_once('.').unwrap();
    let flipped = if signature.starts_with('A') { "B" } else { "A" };
    let tampered = format!("{payload}.{flipped}{}", &signature[1..]);
    let foreign = Ca::new().token();
    for (token, words) in [
        (expired, "expired at"),
        (tampered, "not signed by this mesh's authority"),
        // Its authority is another one: this control plane is not even talked to.
        (foreign, "not the control plane this workload may talk to"),
    ] {
        let setup = Setup::new(&[control_plane.address], &token);
        let proxy = setup.start();
        proxy.missing(words).await;
        assert!(proxy.credentials.usable().is_err() && !proxy.readiness.is_ready());
    }
    // A text that is no token at all is a mistake of the command line.
    let setup = Setup::new(&[control_plane.address], "or1.nonsense");
    let error = Certificates::new(&setup.config()).err().unwrap().to_string();
    assert!(error.starts_with("--token: the join token is malformed"), "{error}");
}

#[tokio::test]
async fn a_control_plane_with_another_identity_is_not_asked() {
    let ca = Ca::new();
    let impostor = SpiffeId::parse("spiffe://mesh.local/ns/shop/sa/orders").unwrap();
    let control_plane = ControlPlane::start_as(&ca, "127.0.0.1:0".parse().unwrap(), &impostor);
    let setup = Setup::new(&[control_plane.address], &ca.token());
    let proxy = setup.start();
    proxy.missing("is for the wrong identity").await;
    assert!(control_plane.script().signed.lock().unwrap().is_empty(), "it has not seen the token");
}

#[tokio::test]
async fn a_certificate_for_somebody_else_is_not_used() {
    let ca = Ca::new();
    let control_plane = ControlPlane::start(&ca);
    let other = SpiffeId::parse("spiffe://mesh.local/ns/shop/sa/orders").unwrap();
    *control_plane.script().impostor.lock().unwrap() = Some(other);
    let setup = Setup::new(&[control_plane.address], &ca.token());
    let proxy = setup.start();
    proxy.missing("the certificate is for spiffe://mesh.local/ns/shop/sa/orders").await;
    assert!(proxy.credentials.current().is_none());
    *control_plane.script().impostor.lock().unwrap() = None;
    until(|| proxy.credentials.usable()).await;
}

#[tokio::test]
async fn a_renewal_that_is_refused_falls_back_to_the_token_and_keeps_the_present_one() {
    let ca = Ca::new();
    let mut control_plane = ControlPlane::start(&ca);
    let setup = Setup::new(&[control_plane.address], &ca.token());
    let proxy = setup.start();
    let _stream = control_plane.configured().await;
    let first = proxy.credentials.current().unwrap();
    let refusals =
        [Status::permission_denied("registration expired"), Status::permission_denied("token, too")];
    control_plane.script().refusals.lock().unwrap().extend(refusals);
    pass(Duration::from_secs(15 * 3600)).await;
    until(
        || if control_plane.script().signed.lock().unwrap().len() >= 3 { Ok(()) } else { Err("not asked") },
    )
    .await;
    assert!(proxy.readiness.is_ready(), "the present certificate still counts");
    // A second later it tries again.
    until(|| {
        if Arc::ptr_eq(&first, &proxy.credentials.current().unwrap()) { Err("not renewed") } else { Ok(()) }
    })
    .await;
    let with_token: Vec<_> =
        control_plane.script().signed.lock().unwrap().iter().map(|s| s.with_token).collect();
    assert_eq!(with_token, [true, false, true, false]);
}

#[tokio::test]
async fn a_pushed_trust_bundle_is_believed_kept_and_followed_by_a_renewal() {
    let (ca, other) = (Ca::new(), Ca::new());
    let mut control_plane = ControlPlane::start(&ca);
    let setup = Setup::new(&[control_plane.address], &ca.token()).with_identity(true);
    let proxy = setup.start();
    let mut stream = control_plane.configured().await;
    let first = proxy.credentials.current().unwrap();
    assert_eq!(proxy.credentials.trust().unwrap().roots().len(), 1);

    stream.send(vec![ca.trust(&[&other])]).await;
    stream.acknowledged().await;
    assert_eq!(proxy.credentials.trust().unwrap().roots().len(), 2);
    pass(Duration::from_secs(6)).await;
    until(|| {
        if Arc::ptr_eq(&first, &proxy.credentials.current().unwrap()) { Err("not renewed") } else { Ok(()) }
    })
    .await;
    assert_eq!(
        proxy.credentials.trust().unwrap().roots().len(),
        2,
        "what came along with the certificate is not newer than what was pushed"
    );
    let kept = || std::fs::read_to_string(setup.directory.join("identity/identity.pem")).unwrap_or_default();
    until(|| if kept().matches("root: ").count() == 2 { Ok(()) } else { Err(kept()) }).await;

    // A bundle that is none changes nothing.
    let mut bad = ca.trust(&[]);
    let Some(outrigger_proto::pb::resource::Body::Trust(body)) = &mut bad.body else { panic!("trust") };
    body.roots_der.push(b"no certificate".to_vec());
    stream.send(vec![bad]).await;
    let Kind::Nack(nack) = stream.next_but_state().await else { panic!("refuses") };
    assert_eq!(nack.errors[0].field, "resources[0].trust.roots_der[1]");
    assert_eq!(proxy.credentials.trust().unwrap().roots().len(), 2);
}

#[tokio::test]
async fn another_workloads_identity_directory_is_ignored() {
    let ca = Ca::new();
    let mut control_plane = ControlPlane::start(&ca);
    let setup = Setup::new(&[control_plane.address], &ca.token()).with_identity(true);
    let proxy = setup.start();
    control_plane.configured().await;
    proxy.ready().await;
    until(|| std::fs::metadata(setup.directory.join("identity/identity.pem"))).await;
    drop(proxy);

    let other = SpiffeId::parse("spiffe://mesh.local/ns/shop/sa/orders").unwrap();
    let hour = Duration::from_secs(3600);
    let token = outrigger_certs::JoinToken::new(
        &ca.authority,
        other.clone(),
        [].into(),
        hour,
        false,
        SystemTime::now(),
    );
    let mut config = setup.config();
    config.token = outrigger_proxy::config::Token::Text(token.unwrap().sign(&ca.authority).unwrap().into());
    let certificates = Certificates::new(&config).unwrap();
    assert_eq!(*certificates.identity(), other);
    assert!(certificates.handle().credentials().current().is_none());

    // With a token that cannot be read any more, what is kept is enough.
    config.token = outrigger_proxy::config::Token::File(setup.directory.join("gone"));
    let certificates = Certificates::new(&config).unwrap();
    assert_eq!(*certificates.identity(), web());
    assert!(certificates.handle().credentials().usable().is_ok());
}

#[tokio::test]
async fn a_token_file_is_read_again_when_it_is_needed() {
    let ca = Ca::new();
    let control_plane = ControlPlane::start(&ca);
    let hour = Duration::from_secs(3600);
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("token");
    std::fs::write(&file, ca.token_with(hour, SystemTime::now() - 2 * hour)).unwrap();
    let setup = Setup::new(&[control_plane.address], "").with_token_file(&file);
    let proxy = setup.start();
    proxy.missing("expired at").await;
    std::fs::write(&file, format!("{}\n", ca.token())).unwrap();
    until(|| proxy.credentials.usable()).await;
}
