use std::time::{Duration, SystemTime};

use outrigger_certs::{JoinToken, KeyRequest, SpiffeId, TrustBundle, TrustDomain, token::Labels};
use tonic::Code;

use super::rig::{Joined, Rig};

const MINUTE: Duration = Duration::from_secs(60);

#[tokio::test]
async fn a_token_gives_a_certificate_and_that_gives_the_next() {
    let rig = Rig::start(&[]).await;
    let joined = rig.join("orders").await;
    let first = joined.credentials.current().unwrap();
    assert_eq!(first.identity(), &rig.identity("orders"));

    // No token any more: the connection says who it is, the registration what else was attested.
    let channel = rig.connect_as(&joined.credentials).await;
    let key = KeyRequest::generate().unwrap();
    let renewed = rig.sign(channel, None, &joined.registration, &key).await.unwrap();
    let renewed = Joined::new(&rig.trust_domain, key, renewed);
    let second = renewed.credentials.current().unwrap();
    assert_eq!(second.identity(), first.identity());
    assert_ne!(second.chain()[0], first.chain()[0]);
    let registration =
        outrigger_certs::Registration::verify(&renewed.registration, &rig.authority(), SystemTime::now());
    assert_eq!(registration.unwrap().labels["app"], "orders");
}

async fn refused(rig: &Rig, token: Option<&str>, key: &KeyRequest) -> (Code, String) {
    let channel = rig.connect_pinned().await.unwrap();
    let status = rig.sign(channel, token, "", key).await.expect_err("must be refused");
    (status.code(), status.message().to_owned())
}

#[tokio::test]
async fn every_bad_token_is_refused_with_its_reason() {
    let rig = Rig::start(&[]).await;
    let now = SystemTime::now();
    let key = KeyRequest::generate().unwrap();
    let good = rig.token("orders", false, MINUTE, now);
    let expired = rig.token("orders", false, MINUTE, now - 2 * MINUTE);
    let parts: Vec<_> = good.split('.').collect();
    let admin = rig.token("admin", false, MINUTE, now);
    let tampered = [parts[0], admin.split('.').nth(1).unwrap(), parts[2]].join(".");

    let dir = tempfile::tempdir().unwrap();
    let other = outrigger_certs::Authority::load_or_create(dir.path(), &rig.trust_domain, now).unwrap();
    let foreign = JoinToken::new(&other, rig.identity("orders"), Labels::new(), MINUTE, false, now).unwrap();
    let foreign = foreign.sign(&other).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let elsewhere = TrustDomain::parse("elsewhere.example").unwrap();
    let authority = outrigger_certs::Authority::load_or_create(dir.path(), &elsewhere, now).unwrap();
    let identity = SpiffeId::new(&elsewhere, "shop", "orders").unwrap();
    let other_domain = JoinToken::new(&authority, identity, Labels::new(), MINUTE, false, now).unwrap();
    let other_domain = other_domain.sign(&authority).unwrap();
    let joined = rig.join("orders").await;

    for (token, reason) in [
        (None, "neither a join token"),
        (Some(expired.as_str()), "expired"),
        (Some(&tampered), "not signed by this mesh's authority"),
        (Some(&foreign), "not signed by this mesh's authority"),
        (Some(&other_domain), "elsewhere.example"),
        (Some("nonsense"), "malformed"),
        (Some(&joined.registration), "this is a registration, not a join token"),
    ] {
        let (code, message) = refused(&rig, token, &key).await;
        assert_eq!(code, Code::Unauthenticated, "{message}");
        assert!(message.contains(reason), "{message:?} does not say {reason:?}");
    }
    let metrics = rig.get("/metrics").await.1;
    assert!(metrics.contains("outrigger_control_plane_signing_refused_total 7\n"), "{metrics}");
}

#[tokio::test]
async fn a_single_use_token_belongs_to_its_first_key_even_after_a_restart() {
    let rig = Rig::start(&[]).await;
    let token = rig.token("orders", true, MINUTE, SystemTime::now());
    let (first, second) = (KeyRequest::generate().unwrap(), KeyRequest::generate().unwrap());
    for _ in 0..2 {
        rig.sign(rig.connect_pinned().await.unwrap(), Some(&token), "", &first).await.unwrap();
    }
    let (code, message) = refused(&rig, Some(&token), &second).await;
    assert_eq!(code, Code::PermissionDenied);
    assert!(message.contains("used by another key"), "{message}");

    let rig = rig.restart().await;
    assert_eq!(refused(&rig, Some(&token), &second).await.0, Code::PermissionDenied);
    rig.sign(rig.connect_pinned().await.unwrap(), Some(&token), "", &first).await.unwrap();
}

#[tokio::test]
async fn of_a_csr_nothing_is_taken_but_the_key() {
    let rig = Rig::start(&[]).await;
    let token = rig.token("orders", false, MINUTE, SystemTime::now());
    let ask = async |csr_der: Vec<u8>| {
        use outrigger_proto::pb::{SignRequest, identity_client::IdentityClient};
        let mut request = tonic::Request::new(SignRequest { csr_der, registration: String::new() });
        request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
        IdentityClient::new(rig.connect_pinned().await.unwrap()).sign(request).await
    };
    // Wants to be somebody else, with more names, and an authority at that.
    let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
    let mut params = rcgen::CertificateParams::new(vec!["admin.example".to_owned()]).unwrap();
    let admin = "spiffe://mesh.local/ns/shop/sa/admin".try_into().unwrap();
    params.subject_alt_names.push(rcgen::SanType::URI(admin));
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let csr = params.serialize_request(&key).unwrap();
    let response = ask(csr.der().to_vec()).await.unwrap().into_inner();
    let leaf = outrigger_certs::inspect::describe(&response.chain_der[0]).unwrap();
    assert_eq!(leaf.alternative_names, ["URI:spiffe://mesh.local/ns/shop/sa/orders"]);
    assert!(!leaf.is_ca);

    for (csr, reason) in [
        (b"garbage".to_vec(), "cannot be read"),
        (vec![0; 20_000], "16384 are allowed"),
        (
            {
                let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
                rcgen::CertificateParams::default().serialize_request(&key).unwrap().der().to_vec()
            },
            "P-256",
        ),
    ] {
        let status = ask(csr).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{status}");
        assert!(status.message().contains(reason), "{status}");
    }
}

#[tokio::test]
async fn a_renewal_needs_a_registration_of_the_same_identity() {
    let rig = Rig::start(&[]).await;
    let (orders, web) = (rig.join("orders").await, rig.join("web").await);
    let key = KeyRequest::generate().unwrap();
    for (registration, code) in [
        (web.registration.as_str(), Code::PermissionDenied),
        ("", Code::Unauthenticated),
        ("orr1.x.y", Code::Unauthenticated),
    ] {
        let channel = rig.connect_as(&orders.credentials).await;
        let status = rig.sign(channel, None, registration, &key).await.unwrap_err();
        assert_eq!(status.code(), code, "{registration}: {status}");
    }
}

#[tokio::test]
async fn nobody_becomes_the_control_plane() {
    let rig = Rig::start(&[]).await;
    let authority = rig.authority();
    let identity = SpiffeId::new(&rig.trust_domain, "outrigger", "control-plane").unwrap();
    let token =
        JoinToken::new(&authority, identity, Labels::new(), MINUTE, false, SystemTime::now()).unwrap();
    let (code, _) =
        refused(&rig, Some(&token.sign(&authority).unwrap()), &KeyRequest::generate().unwrap()).await;
    assert_eq!(code, Code::PermissionDenied);
}

#[tokio::test]
async fn a_certificate_of_another_root_does_not_get_in() {
    let rig = Rig::start(&[]).await;
    let orders = rig.join("orders").await;
    let dir = tempfile::tempdir().unwrap();
    let other =
        outrigger_certs::Authority::load_or_create(dir.path(), &rig.trust_domain, SystemTime::now()).unwrap();
    let key = KeyRequest::generate().unwrap();
    let chain =
        other.sign(&key.csr_der().unwrap(), &rig.identity("orders"), MINUTE, SystemTime::now()).unwrap();
    orders.credentials.set_credential(key.into_credential(chain).unwrap()).unwrap();
    // TLS 1.3 clients learn of the refusal with their first answer.
    let channel = rig.connect_as(&orders.credentials).await;
    let key = KeyRequest::generate().unwrap();
    assert!(rig.sign(channel, None, &orders.registration, &key).await.is_err());
    let metrics = rig.get("/metrics").await.1;
    assert!(metrics.contains("outrigger_control_plane_handshakes_failed_total 1\n"), "{metrics}");
}

#[tokio::test]
async fn a_root_is_replaced_live() {
    let rig = Rig::start(&[]).await;
    let joined = rig.join("orders").await;
    let mut stream = super::rig::Stream::greeted(&rig, &joined, &joined.hello("10.0.0.1")).await;
    let roots = |update: &outrigger_proto::pb::ConfigureResponse| {
        use outrigger_proto::pb::resource::Body;
        update.resources.iter().find_map(|resource| match &resource.body {
            Some(Body::Trust(trust)) => Some(trust.roots_der.clone()),
            _ => None,
        })
    };
    let first = stream.take_until(|update| roots(update).is_some()).await;
    let old_root = roots(&first).unwrap()[0].clone();

    let dir = tempfile::tempdir().unwrap();
    let next =
        outrigger_certs::Authority::load_or_create(dir.path(), &rig.trust_domain, SystemTime::now()).unwrap();
    let new_root = next.roots_der()[0].clone();
    let replace = |name: &str, text: String| {
        let draft = rig.ca_dir().join("draft");
        std::fs::write(&draft, text).unwrap();
        std::fs::rename(draft, rig.ca_dir().join(name)).unwrap();
    };
    let read = |path: std::path::PathBuf| std::fs::read_to_string(path).unwrap();
    let (old_pem, new_pem) = (read(rig.ca_dir().join("ca.pem")), read(dir.path().join("ca.pem")));

    replace("trust.pem", format!("{old_pem}{new_pem}"));
    let both = stream.take_until(|update| roots(update).is_some()).await;
    assert_eq!(roots(&both).unwrap(), [old_root.clone(), new_root.clone()]);

    // Key and certificate do not fit together in between: the old authority goes on.
    replace("ca.key", read(dir.path().join("ca.key")));
    rig.wait_for("the half-way state", |report| report["ca"]["error"].is_string()).await;
    rig.join_with_old_root(&old_root).await;
    replace("ca.pem", new_pem.clone());
    let switched = stream.take_until(|update| roots(update).is_some()).await;
    assert_eq!(
        roots(&switched).unwrap(),
        [new_root.clone(), old_root.clone()],
        "the issuing root comes first"
    );

    // What the old one attested is still worth a certificate of the new one.
    joined
        .credentials
        .set_trust(TrustBundle::from_der(&rig.trust_domain, &[old_root, new_root.clone()]).unwrap())
        .unwrap();
    let key = KeyRequest::generate().unwrap();
    let channel = rig.connect_as(&joined.credentials).await;
    let renewed = rig.sign(channel, None, &joined.registration, &key).await.unwrap();
    let renewed = Joined::new(&rig.trust_domain, key, renewed);

    replace("trust.pem", new_pem);
    let last = stream.take_until(|update| roots(update).is_some()).await;
    assert_eq!(roots(&last).unwrap(), [new_root]);
    // The stream itself was never closed; a new one opens with the new certificate.
    let mut again = super::rig::Stream::greeted(&rig, &renewed, &renewed.hello("10.0.0.2")).await;
    again.next().await;
}
