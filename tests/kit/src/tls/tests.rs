use std::net::Ipv4Addr;

use outrigger_certs::{Credentials, TrustDomain, alpn, tls};

use super::*;
use crate::{
    pki::{Flaw, Pki},
    wait,
};

const ANY: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

fn mesh() -> (Pki, SpiffeId) {
    let trust_domain = TrustDomain::parse("mesh.local").unwrap();
    let orders = SpiffeId::new(&trust_domain, "shop", "orders").unwrap();
    (Pki::new(&trust_domain, "root").unwrap(), orders)
}

/// Well-behaved credentials, as a proxy has them.
fn credentials(pki: &Pki, identity: &SpiffeId) -> Arc<Credentials> {
    let credentials = Credentials::new(TrustDomain::parse(identity.trust_domain()).unwrap());
    credentials.set_credential(pki.issue(identity).unwrap().credential().unwrap()).unwrap();
    credentials.set_trust(pki.bundle().unwrap()).unwrap();
    Arc::new(credentials)
}

/// A well-behaved server that answers "hello" to whoever it lets in.
fn strict_server(pki: &Pki, identity: &SpiffeId) -> Server {
    let acceptor = TlsAcceptor::from(tls::server_config(&credentials(pki, identity), alpn::MESH));
    Server::start(ANY, move |tcp, _| {
        let acceptor = acceptor.clone();
        async move {
            if let Ok(mut stream) = acceptor.accept(tcp).await {
                stream.write_all(b"hello").await.unwrap();
                stream.shutdown().await.unwrap();
            }
        }
    })
    .unwrap()
}

#[test]
fn a_client_is_let_in_with_a_good_certificate_and_hears_the_alert_with_a_bad_one() {
    let (pki, orders) = mesh();
    let server = strict_server(&pki, &orders);
    let attempt =
        |issued: Option<&Issued>, alpn: &[&[u8]]| attempt(server.address(), issued, alpn, b"x").unwrap();
    let good = pki.issue(&orders).unwrap();
    assert_eq!(attempt(Some(&good), &[alpn::TCP]), Answer { bytes: b"hello".to_vec(), end: End::Closed });
    for flaw in Flaw::ALL {
        let answer = attempt(Some(&pki.issue_flawed(&orders, flaw).unwrap()), &[alpn::TCP]);
        assert_eq!(answer.bytes, b"", "{flaw:?}");
        assert!(matches!(answer.end, End::Refused(_) | End::Reset), "{flaw:?}: {answer:?}");
    }
    assert_eq!(attempt(None, &[alpn::TCP]).end, End::Refused("CertificateRequired".to_owned()));
    assert_eq!(attempt(Some(&good), &[b"http/1.1"]).end, End::Refused("NoApplicationProtocol".to_owned()));
    assert_eq!(attempt_tls_1_2(server.address()).unwrap().end, End::Refused("ProtocolVersion".to_owned()));
}

#[test]
fn a_client_says_whom_it_reached_and_by_which_protocol() {
    let (pki, orders) = mesh();
    let server = strict_server(&pki, &orders);
    let mut client =
        MeshClient::connect(server.address(), Some(&pki.issue(&orders).unwrap()), alpn::MESH).unwrap();
    assert_eq!(client.identity().unwrap(), orders);
    assert_eq!(client.alpn(), Some(alpn::H2));
    assert_eq!(client.exchange(b"").bytes, b"hello");
    assert!(client.stream().conn.negotiated_cipher_suite().is_some());
}

#[test]
fn a_server_records_who_came_and_who_refused_it() {
    let (pki, orders) = mesh();
    let careful = Arc::new(credentials(&pki, &orders));
    let call = |server: &MeshServer| -> Result<Vec<u8>> {
        let config = tls::client_config(&careful, orders.clone(), &[alpn::TCP]);
        let mut connection = ClientConnection::new(config, server_name())?;
        let mut tcp = dial(server.address())?;
        while connection.is_handshaking() {
            connection.complete_io(&mut tcp)?;
        }
        let mut stream = StreamOwned::new(connection, tcp);
        stream.write_all(b"ping")?;
        let mut echo = [0; 4];
        std::io::Read::read_exact(&mut stream, &mut echo)?;
        Ok(echo.to_vec())
    };
    let good = MeshServer::start(ANY, &pki.issue(&orders).unwrap(), &[alpn::TCP]).unwrap();
    assert_eq!(call(&good).unwrap(), b"ping");
    let expected = Seen { handshakes: 1, refusals: Vec::new(), clients: vec![orders.clone()], bytes: 4 };
    assert_eq!(good.seen(), expected);

    let other_root = pki.issue_flawed(&orders, Flaw::OtherRoot).unwrap();
    let bad = MeshServer::start(ANY, &other_root, &[alpn::TCP]).unwrap();
    assert!(call(&bad).is_err());
    wait::until(PATIENCE, "the refusal", || !bad.seen().refusals.is_empty()).unwrap();
    let seen = bad.seen();
    assert!(seen.refusals[0].contains("UnknownCA") && seen.bytes == 0 && seen.clients.is_empty(), "{seen:?}");
}
