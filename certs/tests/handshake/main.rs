//! Real handshakes in memory: each good and each bad combination of two sides, with what either side then says.
//!
//! One side is always ours, made by `tls`; the misbehaving one is plain rustls that skips every check of ours.

#![allow(
    clippy::unwrap_used,
    reason = "tests; clippy.toml allows it in test functions, not in their helpers"
)]

mod pair;
mod pki;

use std::{sync::Arc, time::Duration};

use outrigger_certs::{
    Credentials, HandshakeError, OwnError, SpiffeId, TrustBundle, TrustDomain, VerifyError, alpn,
    tls::{self, Peer},
    verify::fingerprint,
};
use pair::{Pair, raw_client, raw_server};
use pki::{Clock, Leaf, Root, at, mesh};
use rustls::{HandshakeKind, NamedGroup};

const DAY: Duration = Duration::from_secs(24 * 3600);

fn orders() -> SpiffeId {
    SpiffeId::parse("spiffe://mesh.local/ns/shop/sa/orders").unwrap()
}

fn web() -> SpiffeId {
    SpiffeId::parse("spiffe://mesh.local/ns/shop/sa/web").unwrap()
}

/// A workload of ours: credentials of `id` by `root`, at noon of the test's day.
fn workload(root: &Root, id: &SpiffeId) -> (Arc<Credentials>, Arc<Clock>) {
    let clock = Clock::noon();
    let credentials = Arc::new(Credentials::with_clock(mesh(), clock.clone()));
    credentials.set_credential(root.credential(id)).unwrap();
    credentials.set_trust(root.bundle()).unwrap();
    (credentials, clock)
}

#[test]
fn two_workloads_know_each_other_by_identity() {
    let root = Root::new("root");
    let (server, _) = workload(&root, &orders());
    let (client, _) = workload(&root, &web());
    let server_config = tls::server_config(&server, alpn::MESH);
    let client_config = tls::client_config(&client, orders(), &[alpn::H2]);
    for _ in 0..2 {
        let mut pair = Pair::new(&client_config, &server_config);
        pair.shake();
        let leaf = |of: &Credentials| fingerprint(&of.current().unwrap().chain()[0]);
        assert_eq!(pair.client_peer(&client), Ok(Peer { identity: orders(), leaf_sha256: leaf(&server) }));
        assert_eq!(pair.server_peer(&server), Ok(Peer { identity: web(), leaf_sha256: leaf(&client) }));
        assert_eq!(pair.client.alpn_protocol(), Some(alpn::H2));
        assert_eq!(pair.server.alpn_protocol(), Some(alpn::H2));
        assert_eq!(pair.client.protocol_version(), Some(rustls::ProtocolVersion::TLSv1_3));
        assert_eq!(pair.client.negotiated_key_exchange_group().unwrap().name(), NamedGroup::X25519MLKEM768);
        // The second round would be a resumption, were there any.
        assert_eq!(pair.client.handshake_kind(), Some(HandshakeKind::Full));
        assert_eq!(pair.server.handshake_kind(), Some(HandshakeKind::Full));
        assert_eq!(pair.client.tls13_tickets_received(), 0);
        assert_eq!(pair.delivered_to_server(b"hello"), b"hello");
    }
}

#[test]
fn peers_without_the_hybrid_group_are_served_with_the_next_best() {
    use rustls::crypto::aws_lc_rs::kx_group::{SECP256R1, X25519, X25519MLKEM768};
    let root = Root::new("root");
    let (server, _) = workload(&root, &orders());
    let server_config = tls::server_config(&server, alpn::MESH);
    for (offered, chosen) in [
        (vec![X25519], NamedGroup::X25519),
        (vec![SECP256R1], NamedGroup::secp256r1),
        (vec![X25519MLKEM768, SECP256R1], NamedGroup::X25519MLKEM768),
    ] {
        let config = raw_client(Some(root.issue(&Leaf::of(&web()))), &[alpn::H1], offered);
        let mut pair = Pair::new(&config, &server_config);
        pair.shake();
        pair.server_peer(&server).unwrap();
        assert_eq!(pair.server.negotiated_key_exchange_group().unwrap().name(), chosen);
    }
}

#[test]
fn neither_side_resumes_with_a_peer_that_would() {
    let root = Root::new("root");
    let (ours, _) = workload(&root, &orders());
    let twice = |client: &_, server: &_| {
        for _ in 0..2 {
            let mut pair = Pair::new(client, server);
            pair.shake();
            assert_eq!(pair.server.handshake_kind(), Some(HandshakeKind::Full));
            assert_eq!(pair.client.handshake_kind(), Some(HandshakeKind::Full));
        }
    };
    let eager_client = raw_client(Some(root.issue(&Leaf::of(&web()))), &[alpn::H1], pair::any_group());
    let eager_server = raw_server(root.issue(&Leaf::of(&orders())), &[alpn::H1]);
    twice(&eager_client, &tls::server_config(&ours, alpn::MESH));
    twice(&tls::client_config(&ours, orders(), &[alpn::H1]), &eager_server);

    // Between the two of them it works, so the above says something.
    Pair::new(&eager_client, &eager_server).shake();
    let mut pair = Pair::new(&eager_client, &eager_server);
    pair.shake();
    assert_eq!(pair.server.handshake_kind(), Some(HandshakeKind::Resumed));
}

/// What is wrong with a certificate, made by the right root unless said otherwise.
fn bad_leaves(root: &Root, other: &Root) -> Vec<(pki::Issued, VerifyError, &'static str)> {
    let leaf = || Leaf::of(&web());
    let uris = |uris: &[&str]| Leaf { uris: uris.iter().map(|uri| (*uri).to_owned()).collect(), ..leaf() };
    let not_spiffe = |uri: &str, reason| VerifyError::NotSpiffe { uri: uri.to_owned(), reason };
    vec![
        (root.issue(&leaf().dated(at(0), at(1))), VerifyError::Expired { at: at(1) }, "CertificateExpired"),
        (
            root.issue(&leaf().dated(at(13), at(14))),
            VerifyError::NotYetValid { from: at(13) },
            "CertificateExpired",
        ),
        (other.issue(&leaf()), VerifyError::UnknownAuthority, "UnknownCA"),
        (Root::new("root").issue(&leaf()), VerifyError::UnknownAuthority, "UnknownCA"), // same name, other key
        (pki::self_signed(&leaf()), VerifyError::UnknownAuthority, "UnknownCA"),
        (root.issue(&Leaf { is_ca: true, ..leaf() }), VerifyError::IsAuthority, "CertificateUnknown"),
        (root.issue(&uris(&[])), VerifyError::NoUri, "CertificateUnknown"),
        (
            root.issue(&Leaf { dns: vec!["orders.shop".to_owned()], ..uris(&[]) }),
            VerifyError::NoUri,
            "CertificateUnknown",
        ),
        (
            root.issue(&Leaf { common_name: Some(web().to_string()), ..uris(&[]) }),
            VerifyError::NoUri,
            "CertificateUnknown",
        ),
        (
            root.issue(&uris(&[web().as_str(), orders().as_str()])),
            VerifyError::ManyUris { count: 2 },
            "CertificateUnknown",
        ),
        (
            root.issue(&uris(&[web().as_str(), "https://x"])),
            VerifyError::ManyUris { count: 2 },
            "CertificateUnknown",
        ),
        (
            root.issue(&uris(&["spiffe://other.mesh/ns/shop/sa/web"])),
            VerifyError::TrustDomain { expected: "mesh.local".to_owned(), got: "other.mesh".to_owned() },
            "CertificateUnknown",
        ),
        (
            root.issue(&uris(&["spiffe://MESH.local/ns/shop/sa/web"])),
            not_spiffe("spiffe://MESH.local/ns/shop/sa/web", outrigger_certs::SpiffeError::TrustDomain),
            "CertificateUnknown",
        ),
        (
            root.issue(&uris(&["spiffe://mesh.local/ns/shop/sa/web/"])),
            not_spiffe("spiffe://mesh.local/ns/shop/sa/web/", outrigger_certs::SpiffeError::Path),
            "CertificateUnknown",
        ),
        (
            root.issue(&Leaf { signs_handshakes: false, ..leaf() }),
            VerifyError::Usage("signing handshakes (key usage digitalSignature)"),
            "CertificateUnknown",
        ),
    ]
}

#[test]
fn every_bad_client_is_refused_with_its_reason_and_nothing_it_sent_arrives() {
    let (root, other) = (Root::new("root"), Root::new("other"));
    let (server, _) = workload(&root, &orders());
    let server_config = tls::server_config(&server, alpn::MESH);
    let mut cases = bad_leaves(&root, &other);
    for usage in [pki::Usage::Neither, pki::Usage::Server] {
        let what = "acting as a client (extended key usage clientAuth)";
        let leaf = root.issue(&Leaf { usage, ..Leaf::of(&web()) });
        cases.push((leaf, VerifyError::Usage(what), "CertificateUnknown"));
    }
    for (issued, reason, alert) in cases {
        let mut pair = Pair::new(&raw_client(Some(issued), &[alpn::TCP], pair::any_group()), &server_config);
        pair.shake();
        assert_eq!(pair.server_peer(&server), Err(HandshakeError::Peer(reason.clone())));
        assert_eq!(pair.delivered_to_server(b"secret"), b"", "{reason}");
        assert_eq!(pair.client_error(), Some(HandshakeError::Refused(alert.to_owned())), "{reason}");
    }
    let mut pair = Pair::new(&raw_client(None, &[alpn::TCP], pair::any_group()), &server_config);
    pair.shake();
    assert_eq!(pair.server_peer(&server), Err(HandshakeError::NoPeerCertificate));
    assert_eq!(pair.delivered_to_server(b"secret"), b"");
}

#[test]
fn every_bad_server_is_refused_with_its_reason_before_it_learns_who_calls() {
    let (root, other) = (Root::new("root"), Root::new("other"));
    let (client, _) = workload(&root, &web());
    let mut cases = bad_leaves(&root, &other);
    for usage in [pki::Usage::Neither, pki::Usage::Client] {
        let what = "acting as a server (extended key usage serverAuth)";
        let leaf = root.issue(&Leaf { usage, ..Leaf::of(&orders()) });
        cases.push((leaf, VerifyError::Usage(what), "CertificateUnknown"));
    }
    let wrong = VerifyError::Identity { expected: orders(), got: web() };
    cases.push((root.issue(&Leaf::of(&web())), wrong, "CertificateUnknown"));
    for (issued, reason, alert) in cases {
        let client_config = tls::client_config(&client, orders(), &[alpn::H2]);
        let mut pair = Pair::new(&client_config, &raw_server(issued, &[alpn::H2]));
        pair.shake();
        assert_eq!(pair.client_peer(&client), Err(HandshakeError::Peer(reason.clone())));
        assert_eq!(pair.server_error(), Some(HandshakeError::Refused(alert.to_owned())), "{reason}");
        assert!(pair.server.peer_certificates().is_none(), "{reason}: our certificate went out");
    }
}

#[test]
fn other_names_beside_the_one_uri_do_no_harm_and_no_good() {
    let root = Root::new("root");
    let (server, _) = workload(&root, &orders());
    let server_config = tls::server_config(&server, alpn::MESH);
    let leaf = Leaf { dns: vec!["*".to_owned()], common_name: Some("admin".to_owned()), ..Leaf::of(&web()) };
    let mut pair =
        Pair::new(&raw_client(Some(root.issue(&leaf)), &[alpn::H1], pair::any_group()), &server_config);
    pair.shake();
    assert_eq!(pair.server_peer(&server).unwrap().identity, web());
}

#[test]
fn tls_1_2_is_refused_in_both_directions() {
    let root = Root::new("root");
    let (server, _) = workload(&root, &orders());
    let mut connection = rustls::ServerConnection::new(tls::server_config(&server, alpn::MESH)).unwrap();
    connection.read_tls(&mut pair::client_hello_tls_1_2().as_slice()).unwrap();
    let error = connection.process_new_packets().unwrap_err();
    assert_eq!(HandshakeError::explain(&error, Some(&server)), HandshakeError::Version, "{error}");

    let (client, _) = workload(&root, &web());
    let config = tls::client_config(&client, orders(), &[alpn::H2]);
    let mut connection = rustls::ClientConnection::new(config, tls::server_name()).unwrap();
    connection.write_tls(&mut Vec::new()).unwrap();
    connection.read_tls(&mut pair::server_hello_tls_1_2().as_slice()).unwrap();
    let error = connection.process_new_packets().unwrap_err();
    assert_eq!(HandshakeError::explain(&error, Some(&client)), HandshakeError::Version, "{error}");
}

#[test]
fn bytes_that_are_not_tls_are_told_as_that() {
    let root = Root::new("root");
    let (server, _) = workload(&root, &orders());
    let mut connection = rustls::ServerConnection::new(tls::server_config(&server, alpn::MESH)).unwrap();
    connection.read_tls(&mut &b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"[..]).unwrap();
    let error = connection.process_new_packets().unwrap_err();
    let told = HandshakeError::explain(&error, Some(&server));
    assert!(matches!(told, HandshakeError::Garbage(_)), "{told}");
}

#[test]
fn without_a_common_protocol_there_is_no_connection() {
    let root = Root::new("root");
    let (server, _) = workload(&root, &orders());
    let server_config = tls::server_config(&server, alpn::MESH);
    for offered in [&[][..], &[&b"h2"[..], b"http/1.1"], &[b"OR-H1"]] {
        let config = raw_client(Some(root.issue(&Leaf::of(&web()))), offered, pair::any_group());
        let mut pair = Pair::new(&config, &server_config);
        pair.shake();
        assert_eq!(pair.server_peer(&server), Err(HandshakeError::NoProtocol), "{offered:?}");
        assert_eq!(pair.delivered_to_server(b"secret"), b"");
        assert!(pair.client.peer_certificates().is_none(), "{offered:?}: our certificate went out");
    }
    let (client, _) = workload(&root, &web());
    let client_config = tls::client_config(&client, orders(), &[alpn::H2]);
    for spoken in [&[][..], &[&b"http/1.1"[..]], &[alpn::H1]] {
        let mut pair = Pair::new(&client_config, &raw_server(root.issue(&Leaf::of(&orders())), spoken));
        pair.shake();
        assert_eq!(pair.client_peer(&client), Err(HandshakeError::NoProtocol), "{spoken:?}");
    }
}

#[test]
fn a_root_is_replaced_live_with_both_trusted_in_between() {
    let (old, new) = (Root::new("old"), Root::new("new"));
    let both = || TrustBundle::from_der(&mesh(), &[old.der(), new.der()]).unwrap();
    let (server, _) = workload(&old, &orders());
    let (client, _) = workload(&old, &web());
    let server_config = tls::server_config(&server, alpn::MESH);
    let client_config = tls::client_config(&client, orders(), &[alpn::H2]);
    let shake = || {
        let mut pair = Pair::new(&client_config, &server_config);
        pair.shake();
        (
            pair.client_peer(&client).map(|peer| peer.identity),
            pair.server_peer(&server).map(|peer| peer.identity),
        )
    };
    let fine = (Ok(orders()), Ok(web()));
    assert_eq!(shake(), fine, "only the old root");
    assert_eq!(server.set_trust(both()), Ok(true));
    assert_eq!(shake(), fine, "one side trusts both already");
    assert_eq!(client.set_trust(both()), Ok(true));
    assert_eq!(client.set_trust(both()), Ok(false), "nothing new");
    let mut other_first = both().roots().iter().map(|root| root.to_vec()).collect::<Vec<_>>();
    other_first.reverse();
    let other_first = TrustBundle::from_der(client.trust_domain(), &other_first).unwrap();
    assert_eq!(client.set_trust(other_first), Ok(true), "another root signs");
    server.set_credential(new.credential(&orders())).unwrap();
    assert_eq!(shake(), fine, "one side has a certificate of the new root");
    client.set_credential(new.credential(&web())).unwrap();
    assert_eq!(shake(), fine, "both have");
    server.set_trust(new.bundle()).unwrap();
    client.set_trust(new.bundle()).unwrap();
    assert_eq!(shake(), fine, "only the new root");

    client.set_credential(old.credential(&web())).unwrap();
    assert_eq!(shake().1, Err(HandshakeError::Peer(VerifyError::UnknownAuthority)), "the old root is gone");
}

#[test]
fn a_root_past_its_end_vouches_for_nobody() {
    let root = Root::until("root", at(11)); // ended an hour ago; its leaf has not
    let (server, _) = workload(&root, &orders());
    let config = raw_client(Some(root.issue(&Leaf::of(&web()))), &[alpn::H1], pair::any_group());
    let mut pair = Pair::new(&config, &tls::server_config(&server, alpn::MESH));
    pair.shake();
    assert_eq!(pair.server_peer(&server), Err(HandshakeError::Peer(VerifyError::Expired { at: at(11) })));
}

#[test]
fn an_own_certificate_that_ended_is_not_presented_but_told() {
    let root = Root::new("root");
    let (server, server_clock) = workload(&root, &orders());
    let (client, client_clock) = workload(&root, &web());
    let server_config = tls::server_config(&server, alpn::MESH);
    let client_config = tls::client_config(&client, orders(), &[alpn::H2]);
    let shake = || {
        let mut pair = Pair::new(&client_config, &server_config);
        pair.shake();
        pair
    };
    let expired = OwnError::Expired { at: at(24) };
    client_clock.set(at(25));
    assert_eq!(client.usable().unwrap_err(), expired);
    let mut pair = shake();
    assert_eq!(pair.client_peer(&client), Err(HandshakeError::Own(expired)));
    assert!(pair.server.peer_certificates().is_none());

    client_clock.set(at(12));
    server_clock.set(at(25));
    let mut pair = shake();
    assert_eq!(pair.server_peer(&server), Err(HandshakeError::Own(expired)));
    assert!(pair.client.peer_certificates().is_none());

    server_clock.set(at(12));
    assert!(shake().client_peer(&client).is_ok(), "the clocks are right again");
}

#[test]
fn a_workload_without_certificate_or_bundle_says_so() {
    let root = Root::new("root");
    let (server, _) = workload(&root, &orders());
    let bare = Arc::new(Credentials::new(mesh()));
    let client_config = tls::client_config(&bare, orders(), &[alpn::H2]);
    let mut pair = Pair::new(&client_config, &tls::server_config(&server, alpn::MESH));
    pair.shake();
    assert_eq!(pair.client_peer(&bare), Err(HandshakeError::Own(OwnError::NoCertificate)));

    let (client, _) = workload(&root, &web());
    let untrusting = Arc::new(Credentials::with_clock(mesh(), Clock::noon()));
    untrusting.set_credential(root.credential(&orders())).unwrap();
    let client_config = tls::client_config(&client, orders(), &[alpn::H2]);
    let mut pair = Pair::new(&client_config, &tls::server_config(&untrusting, alpn::MESH));
    pair.shake();
    assert_eq!(pair.server_peer(&untrusting), Err(HandshakeError::Own(OwnError::NoTrust)));
}

#[test]
fn credentials_of_another_trust_domain_are_not_taken() {
    let root = Root::new("root");
    let elsewhere = TrustDomain::parse("other.mesh").unwrap();
    let credentials = Credentials::new(elsewhere.clone());
    assert!(credentials.set_credential(root.credential(&web())).is_err());
    assert!(credentials.set_trust(root.bundle()).is_err());
    assert!(TrustBundle::from_der(&elsewhere, &[]).is_err());
    assert!(TrustBundle::from_der(&mesh(), &[b"garbage".to_vec()]).is_err());
    let leaf = root.issue(&Leaf::of(&web())).chain[0].to_vec();
    assert!(TrustBundle::from_der(&mesh(), &[root.der(), leaf]).is_err(), "a leaf is no root");
}

#[test]
fn the_control_plane_takes_callers_without_certificate_but_none_with_a_bad_one() {
    let (root, other) = (Root::new("root"), Root::new("other"));
    let (server, _) = workload(&root, &orders());
    let server_config = tls::server_config_optional(&server, &[alpn::GRPC]);
    let shake = |issued| {
        let mut pair = Pair::new(&raw_client(issued, &[alpn::GRPC], pair::any_group()), &server_config);
        pair.shake();
        pair.server_peer_if_any(&server).map(|peer| peer.map(|peer| peer.identity))
    };
    assert_eq!(shake(None), Ok(None));
    assert_eq!(shake(Some(root.issue(&Leaf::of(&web())))), Ok(Some(web())));
    let refused = shake(Some(other.issue(&Leaf::of(&web()))));
    assert_eq!(refused, Err(HandshakeError::Peer(VerifyError::UnknownAuthority)));
}

#[test]
fn a_pinned_root_is_enough_to_know_the_control_plane_and_nobody_else() {
    let dir = tempfile::tempdir().unwrap();
    let now = std::time::SystemTime::now();
    let authority = outrigger_certs::Authority::load_or_create(dir.path(), &mesh(), now).unwrap();
    let control_plane = SpiffeId::parse("spiffe://mesh.local/ns/outrigger/sa/control-plane").unwrap();
    let shake = |pin: [u8; 32], credential: outrigger_certs::Credential| {
        let server = Arc::new(Credentials::new(mesh()));
        server.set_credential(credential).unwrap();
        server.set_trust(authority.trust_bundle()).unwrap();
        let client_config = tls::pinned_client_config(pin, control_plane.clone());
        let mut pair = Pair::new(&client_config, &tls::server_config_optional(&server, &[alpn::GRPC]));
        pair.shake();
        pair.client_peer(&server).map(|peer| peer.identity)
    };
    let pin = authority.root_fingerprint();
    let serving = |id: &SpiffeId| authority.serving_credential(id, DAY, now).unwrap();
    assert_eq!(shake(pin, serving(&control_plane)), Ok(control_plane.clone()));

    let workload = VerifyError::Identity { expected: control_plane.clone(), got: web() };
    assert_eq!(shake(pin, serving(&web())), Err(HandshakeError::Peer(workload)));

    let missing = |pin: [u8; 32]| {
        let pinned = outrigger_certs::inspect::hex(&pin);
        Err(HandshakeError::Peer(VerifyError::PinnedRootMissing { pinned }))
    };
    assert_eq!(shake([7; 32], serving(&control_plane)), missing([7; 32]));
    let request = outrigger_certs::KeyRequest::generate().unwrap();
    let chain = authority.sign(&request.csr_der().unwrap(), &control_plane, DAY, now).unwrap();
    assert_eq!(shake(pin, request.into_credential(chain).unwrap()), missing(pin), "the root was not sent");

    // Whoever merely sends the pinned root along, as anyone can, is not vouched for by it.
    let impostor = Root::new("impostor");
    let mut chain = impostor.issue(&Leaf::of(&control_plane).dated(now - DAY, now + DAY));
    chain.chain.push(authority.chain()[0].clone());
    let client_config = tls::pinned_client_config(pin, control_plane.clone());
    let mut pair = Pair::new(&client_config, &raw_server(chain, &[alpn::GRPC]));
    pair.shake();
    let nobody = Credentials::new(mesh());
    assert_eq!(pair.client_peer(&nobody), Err(HandshakeError::Peer(VerifyError::UnknownAuthority)));
}

#[test]
fn a_credential_survives_its_file_and_its_debug_shows_no_key() {
    let root = Root::new("root");
    let credential = root.credential(&web());
    let pem = credential.to_pem().unwrap();
    let read = outrigger_certs::Credential::from_pem(&pem).unwrap();
    assert_eq!((read.identity(), read.validity()), (credential.identity(), credential.validity()));
    assert_eq!(read.chain(), credential.chain());
    assert_eq!(*read.to_pem().unwrap(), *pem);
    let key: String = pem.lines().skip(1).take_while(|line| !line.starts_with('-')).collect();
    let debug = format!("{credential:?} {:?}", Arc::new(Credentials::new(mesh())));
    assert!(key.len() > 100 && !debug.contains(&key[..20]));

    // A certificate of another key, and no certificate at all.
    let others = root.credential(&web()).to_pem().unwrap();
    let certificate = &others[others.find("-----BEGIN CERTIFICATE").unwrap()..];
    let key = &pem[..pem.find("-----BEGIN CERTIFICATE").unwrap()];
    let error = |pem: &str| outrigger_certs::Credential::from_pem(pem).unwrap_err();
    assert_eq!(error(&format!("{key}{certificate}")), outrigger_certs::CredentialError::OtherKey);
    assert_eq!(error(key), outrigger_certs::CredentialError::NoChain);
}

#[test]
fn a_certificate_is_described_as_it_is() {
    let root = Root::new("root");
    let issued = root.issue(&Leaf { dns: vec!["orders.shop".to_owned()], ..Leaf::of(&orders()) });
    let summary = outrigger_certs::inspect::describe(&issued.chain[0]).unwrap();
    assert_eq!(summary.alternative_names, ["URI:spiffe://mesh.local/ns/shop/sa/orders", "DNS:orders.shop"]);
    assert_eq!(summary.issuer, "CN=root");
    assert_eq!((summary.key.as_str(), summary.signature.as_str()), ("ECDSA P-256", "ECDSA with SHA-256"));
    assert_eq!(summary.not_after, "2027-01-16T00:00:00Z");
    assert!(!summary.is_ca);
    assert_eq!(summary.sha256, outrigger_certs::inspect::hex(&fingerprint(&issued.chain[0])));
    assert!(outrigger_certs::inspect::describe(&root.der()).unwrap().is_ca);
    assert!(outrigger_certs::inspect::describe(b"garbage").is_err());
    let pem = root.credential(&web()).to_pem().unwrap();
    assert_eq!(outrigger_certs::inspect::describe_pem(pem.as_bytes()).unwrap().len(), 1);
    assert!(outrigger_certs::inspect::describe_pem(b"no PEM at all").is_err());
}
