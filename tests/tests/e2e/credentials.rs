//! Peers whose certificate is wrong: none of the application's bytes get past them, in either direction.

use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};
use outrigger_certs::{SpiffeId, TrustDomain, alpn};
use outrigger_lab::{Lab, Mesh, Pod, wait_for};
use outrigger_testkit::{
    pki::{Flaw, Issued, Pki},
    tls::{self, End, MeshClient, MeshServer},
};

use crate::support::{
    SOON, Test, bind_again, raw,
    yaml::{Service, document},
};

pub(crate) fn tests() -> Vec<Test> {
    vec![
        Test::new("callers_with_a_bad_certificate_deliver_no_byte", bad_callers),
        Test::new("servers_with_a_bad_certificate_receive_no_byte", bad_servers),
        Test::new("a_strict_port_takes_neither_plaintext_nor_tls_1_2", strict_port),
        Test::new("the_server_asks_for_post_quantum_key_agreement_first", key_agreement),
    ]
}

const WORDS: &[u8] = b"GET / HTTP/1.1\r\nhost: store.shop\r\nconnection: close\r\n\r\n";

fn trust_domain() -> TrustDomain {
    TrustDomain::parse("mesh.local").expect("a literal")
}

fn identity(account: &str) -> SpiffeId {
    SpiffeId::new(&trust_domain(), "shop", account).expect("a literal")
}

/// The mesh's own authority, so that certificates are bad in exactly one way.
fn authority(mesh: &Mesh) -> Result<Pki> {
    Pki::load(&mesh.state_dir().join("ca"), &trust_domain())
}

struct Scene {
    mesh: Mesh,
    store: outrigger_lab::Workload,
    sink: raw::Sink,
    /// In no mesh.
    stranger: Pod,
}

fn scene(lab: &Lab) -> Result<Scene> {
    let service = Service::new("store").address("10.96.0.10").port(80, 8080, "http").port(86, 8086, "tcp");
    let mesh = Mesh::builder().file("store.yaml", service.yaml()).start(lab)?;
    let store = mesh.workload("store").start()?;
    let sink = raw::Sink::start(&store.pod, 8080)?;
    let stranger = lab.pod("stranger")?;
    Ok(Scene { mesh, store, sink, stranger })
}

impl Scene {
    fn direct(&self) -> SocketAddr {
        SocketAddr::new(self.store.pod.ipv4().into(), 8080)
    }

    /// What comes back when the words are sent with this certificate.
    fn attempt(&self, certificate: Option<&Issued>, alpn: &[u8]) -> Result<tls::Answer> {
        self.stranger.enter(|| tls::attempt(self.direct(), certificate, &[alpn], WORDS))?
    }
}

fn bad_callers(lab: &Lab) -> Result<()> {
    let scene = scene(lab)?;
    let authority = authority(&scene.mesh)?;
    let web = identity("web");
    // First that the very same way is open to a good one: else the refusals below would prove nothing.
    let good = scene.attempt(Some(&authority.issue(&web)?), alpn::H1)?;
    ensure!(String::from_utf8_lossy(&good.bytes).contains("reached"), "{good:?}");
    let (bytes, connections) = (scene.sink.bytes(), scene.sink.connections());
    ensure!(bytes > 0 && connections > 0);

    let mut callers = vec![("no certificate".to_owned(), None)];
    for flaw in Flaw::ALL {
        callers.push((format!("{flaw:?}"), Some(authority.issue_flawed(&web, flaw)?)));
    }
    for protocol in [alpn::H1, alpn::H2, alpn::TCP] {
        for (name, certificate) in &callers {
            let answer = scene.attempt(certificate.as_ref(), protocol)?;
            ensure!(matches!(answer.end, End::Refused(_) | End::Reset), "{name}: {answer:?}");
            ensure!(answer.bytes.is_empty(), "{name}: {answer:?}");
        }
    }
    ensure!(scene.sink.bytes() == bytes, "{} bytes of refused callers arrived", scene.sink.bytes() - bytes);
    ensure!(scene.sink.connections() == connections, "a refused caller made a connection to the program");
    // Each refusal is logged with its reason.
    let log = scene.store.access_log();
    for reason in ["no certificate", "expired", "not valid before", "not signed by a trusted root", "URI"] {
        let told = log.lines().any(|line| line.contains("handshake-failed") && line.contains(reason));
        ensure!(told, "no refusal in the access log says {reason:?}: {log}");
    }
    // And none of it spoilt the way for good ones.
    let good = scene.attempt(Some(&authority.issue(&web)?), alpn::H1)?;
    ensure!(String::from_utf8_lossy(&good.bytes).contains("reached"), "{good:?}");
    Ok(())
}

fn bad_servers(lab: &Lab) -> Result<()> {
    // An endpoint that is listed with its identity; what really listens there is a program with any certificate.
    let impostor_pod = lab.pod("impostor")?;
    let mut bank = document("outrigger.dev/v1alpha1", "MeshService", "bank");
    bank.push_str(&format!(
        "  addresses: [10.96.0.40]\n  ports: [{{port: 80, targetPort: 8080, appProtocol: http}}]\n  endpoints:\n  \
         - {{address: {}, identity: \"spiffe://mesh.local/ns/shop/sa/bank\"}}\n",
        impostor_pod.ipv4()
    ));
    let mesh = Mesh::builder().file("bank.yaml", bank).start(lab)?;
    let authority = authority(&mesh)?;
    let web = mesh.workload("web").start()?;
    let target: SocketAddr = "10.96.0.40:80".parse()?;
    let bank = identity("bank");
    let address = SocketAddr::from(([0, 0, 0, 0], 8080));
    let serve = |certificate: &Issued, protocols: &[&[u8]]| {
        bind_again(|| impostor_pod.enter(|| MeshServer::start(address, certificate, protocols))?)
    };

    {
        let server = serve(&authority.issue(&bank)?, alpn::MESH)?;
        // It echoes, which is no HTTP, but that it saw bytes shows that the way is open.
        drop(raw::exchange(&web.pod, target, WORDS)?);
        ensure!(server.seen().bytes > 0, "the good one got nothing: {:?}", server.seen());
        ensure!(server.seen().clients.contains(&identity("web")), "{:?}", server.seen());
    }
    let mut servers = vec![("wrong identity".to_owned(), authority.issue(&identity("thief"))?, alpn::MESH)];
    for flaw in Flaw::ALL {
        servers.push((format!("{flaw:?}"), authority.issue_flawed(&bank, flaw)?, alpn::MESH));
    }
    servers.push(("no ALPN".to_owned(), authority.issue(&bank)?, &[]));
    for (name, certificate, protocols) in servers {
        let server = serve(&certificate, protocols)?;
        let answer = raw::exchange(&web.pod, target, WORDS)?;
        ensure!(
            answer.starts_with("HTTP/1.1 50") && answer.contains("outrigger-reason: "),
            "{name}: {answer}"
        );
        wait_for(SOON, &format!("{name} to be tried"), || {
            server.seen().handshakes > 0 || !server.seen().refusals.is_empty()
        })
        .with_context(|| answer.clone())?;
        ensure!(server.seen().bytes == 0, "{name}: {:?} got bytes", server.seen());
    }
    Ok(())
}

fn strict_port(lab: &Lab) -> Result<()> {
    let scene = scene(lab)?;
    let plain = raw::exchange(&scene.stranger, scene.direct(), WORDS)?;
    ensure!(
        plain.starts_with("HTTP/1.1 403") && plain.contains("outrigger-reason: mtls-required"),
        "{plain}"
    );
    for (name, words) in
        [("opaque bytes", &b"\x00\x01\x02 no protocol"[..]), ("HTTP/2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")]
    {
        let answer = raw::exchange(&scene.stranger, scene.direct(), words)?;
        ensure!(!answer.contains("reached"), "{name}: {answer}");
    }
    let old = scene.stranger.enter(|| tls::attempt_tls_1_2(scene.direct()))??;
    ensure!(old.bytes.is_empty() && old.end != End::Silent, "TLS 1.2: {old:?}");
    // TLS without our protocol inside is the application's own, and as good as plaintext here.
    let authority = authority(&scene.mesh)?;
    let own = scene.stranger.enter(|| {
        tls::attempt(scene.direct(), Some(&authority.issue(&identity("web"))?), &[b"http/1.1"], WORDS)
    })??;
    ensure!(own.bytes.is_empty(), "another ALPN: {own:?}");
    ensure!(scene.sink.bytes() == 0, "{} bytes arrived", scene.sink.bytes());
    ensure!(scene.sink.connections() == 0);
    Ok(())
}

fn key_agreement(lab: &Lab) -> Result<()> {
    let scene = scene(lab)?;
    let certificate = authority(&scene.mesh)?.issue(&identity("web"))?;
    let (group, server) = scene.stranger.enter(|| -> Result<_> {
        let mut client = MeshClient::connect(scene.direct(), Some(&certificate), &[alpn::H1])?;
        let identity = client.identity()?;
        let group = client.stream().conn.negotiated_key_exchange_group().context("no group")?.name();
        Ok((group, identity))
    })??;
    ensure!(group == rustls::NamedGroup::X25519MLKEM768, "{group:?}");
    ensure!(server == identity("store"), "{server}");
    Ok(())
}
