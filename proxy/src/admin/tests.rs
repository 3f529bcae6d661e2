use std::{
    num::NonZeroU32,
    time::{Duration, SystemTime},
};

use outrigger_certs::KeyRequest;
use outrigger_core::bulkhead::Config;
use outrigger_proto::spec::{Cause, Circuit, Outcome, Transition};
use tracing_subscriber::filter::LevelFilter;

use super::*;
use crate::{
    context::testing::{Made, context},
    drain::Phase,
    path::rate_limit::testing::limit,
    readiness::Gate,
    shared_limits::Name,
    worker::Worker,
};

mod scrapes;

fn admin() -> (Admin, Made) {
    admin_with("--zone eu")
}

fn admin_with(more: &str) -> (Admin, Made) {
    let made = context(more);
    let (_, log) = reload::Layer::new(Targets::new().with_default(LevelFilter::INFO));
    (Admin { ctx: Arc::clone(&made.ctx), workers: Vec::new(), log, scrapes: Default::default() }, made)
}

fn text(answer: &Answer) -> String {
    String::from_utf8(answer.body.to_vec()).unwrap()
}

async fn ask(admin: &Admin, door: Door, method: &str, target: &str) -> Answer {
    let request =
        Request::builder().method(method).uri(target).header(HOST, "127.0.0.1:15000").body(()).unwrap();
    admin.answer(door, &request).await
}

#[tokio::test]
async fn each_door_opens_to_its_own_pages_only() {
    let (admin, _made) = admin();
    for (method, path, doors) in [
        ("GET", "/live", [200, 200, 200]),
        ("HEAD", "/live", [200, 200, 200]),
        ("GET", "/ready", [503, 503, 503]),
        ("GET", "/metrics", [200, 200, 200]),
        ("GET", "/stats", [404, 200, 200]),
        ("GET", "/config_dump", [404, 200, 200]),
        ("GET", "/clusters", [404, 200, 200]),
        ("GET", "/limits", [404, 200, 200]),
        ("GET", "/certs", [404, 200, 200]),
        ("GET", "/help", [404, 200, 200]),
        ("POST", "/live", [405, 405, 405]),
        ("GET", "/drain", [404, 404, 405]),
        ("GET", "/log?level=debug", [404, 404, 405]),
        ("POST", "/log?level=loud", [404, 404, 400]),
        ("GET", "/", [404, 404, 404]),
        ("GET", "/etc/passwd", [404, 404, 404]),
    ] {
        for (door, status) in [Door::Status, Door::Loopback, Door::Socket].into_iter().zip(doors) {
            assert_eq!(ask(&admin, door, method, path).await.status, status, "{door:?} {method} {path}");
        }
    }
    for door in [Door::Status, Door::Loopback] {
        assert_eq!(ask(&admin, door, "POST", "/drain").await.status, 404);
        assert_eq!(admin.ctx.drain.phase(), Phase::Serving, "{door:?} changes nothing");
    }
    assert_eq!(ask(&admin, Door::Socket, "POST", "/drain").await.status, 202);
    assert_eq!(admin.ctx.drain.phase(), Phase::Leaving);
}

#[tokio::test]
async fn ready_says_what_is_missing_and_why() {
    let (admin, _made) = admin();
    let readiness = &admin.ctx.readiness;
    readiness.waiting(Gate::Certificate, "10.0.0.9:15012: connection refused");
    readiness.met(Gate::Listeners);
    let answer = ask(&admin, Door::Status, "GET", "/ready").await;
    assert_eq!(
        text(&answer),
        "not ready\ncertificate: 10.0.0.9:15012: connection refused\nconfiguration: none has arrived yet\n"
    );
    readiness.met(Gate::Certificate);
    readiness.met(Gate::Configuration);
    assert_eq!(ask(&admin, Door::Status, "GET", "/ready").await.status, 200);
    readiness.draining();
    assert_eq!(ask(&admin, Door::Status, "GET", "/ready").await.status, 503);
}

#[tokio::test]
async fn loopback_answers_only_to_its_own_names() {
    let (admin, _made) = admin();
    for (host, status) in [
        ("127.0.0.1:15000", 200),
        ("127.1.2.3", 200),
        ("localhost:15000", 200),
        ("[::1]:15000", 200),
        ("[::1]", 200),
        ("attacker.example:15000", 403),
        ("localhost.attacker.example", 403),
        ("10.0.0.5:15000", 403),
        ("", 403),
    ] {
        let request = Request::builder().uri("/help").header(HOST, host).body(()).unwrap();
        assert_eq!(admin.answer(Door::Loopback, &request).await.status, status, "{host}");
    }
}

#[tokio::test]
async fn no_page_shows_a_key_or_a_token() {
    let (admin, made) = admin();
    let key = KeyRequest::generate().unwrap();
    let csr = key.csr_der().unwrap();
    let chain =
        made.authority.sign(&csr, &made.identity, Duration::from_secs(3600), SystemTime::now()).unwrap();
    let credential = key.into_credential(chain).unwrap();
    let pem = credential.to_pem().unwrap();
    let secret = pem.lines().nth(1).unwrap().to_owned();
    admin.ctx.credentials.set_credential(credential).unwrap();
    admin.ctx.credentials.set_trust(made.authority.trust_bundle()).unwrap();
    let token = made.token.rsplit('.').next().unwrap();
    for page in PAGES.iter().filter(|page| page.method == Method::GET) {
        let body = text(&ask(&admin, Door::Socket, "GET", page.path).await);
        assert!(
            !body.contains(&secret) && !body.contains("PRIVATE") && !body.contains(token),
            "{}",
            page.path
        );
    }
    let certs: serde_json::Value =
        serde_json::from_str(&text(&ask(&admin, Door::Socket, "GET", "/certs").await)).unwrap();
    assert_eq!(certs["identity"], made.identity.as_str());
    assert_eq!((certs["chain"].as_array().unwrap().len(), certs["roots"].as_array().unwrap().len()), (1, 1));
    assert_eq!(certs["chain"][0]["alternative_names"][0], format!("URI:{}", made.identity));
    let dump: serde_json::Value =
        serde_json::from_str(&text(&ask(&admin, Door::Socket, "GET", "/config_dump").await)).unwrap();
    assert_eq!(
        (&dump["settings"]["zone"], &dump["settings"]["token"]),
        (&"eu".into(), &"given as text".into())
    );
}

#[tokio::test]
async fn the_log_filter_is_changed() {
    let made = context("");
    let (layer, log) = reload::Layer::new(Targets::new().with_default(LevelFilter::INFO));
    let admin = Admin { ctx: Arc::clone(&made.ctx), workers: Vec::new(), log, scrapes: Default::default() };
    for (level, status) in
        [("debug", 200), ("warn,outrigger_proxy::sync%3Ddebug", 200), ("", 400), ("loud", 400)]
    {
        assert_eq!(
            ask(&admin, Door::Socket, "POST", &format!("/log?level={level}")).await.status,
            status,
            "{level}"
        );
    }
    assert_eq!(admin.log.with_current(ToString::to_string).unwrap(), "outrigger_proxy::sync=debug,warn");
    drop(layer);
}

#[tokio::test]
async fn circuits_come_with_their_evidence_and_limits_with_their_numbers() {
    let (admin, made) = admin();
    let worker = Worker::new(Arc::clone(&made.ctx), 0);
    let outcome = Outcome {
        ago: Duration::from_millis(5),
        what: "503".into(),
        failed: true,
        latency: Duration::from_millis(2),
    };
    made.ctx.events.tell(
        &worker,
        Transition {
            backend: "shop/orders:80".parse().unwrap(),
            endpoint: "10.0.0.1:80".parse().unwrap(),
            to: Circuit::Open,
            cause: Cause::ConsecutiveFailures,
            at: 1,
            lasts: Some(Duration::from_secs(30)),
            times: 1,
            why: "5 failures in a row (limit 5)".into(),
            evidence: vec![outcome],
        },
    );
    let page = text(&ask(&admin, Door::Loopback, "GET", "/clusters").await);
    let page: serde_json::Value = serde_json::from_str(&page).unwrap();
    for list in ["not_closed", "transitions"] {
        let circuit = &page["circuits"][list][0];
        assert_eq!(circuit["to"], "open");
        assert_eq!(circuit["endpoint"], "10.0.0.1:80");
        assert_eq!(circuit["why"], "5 failures in a row (limit 5)");
        assert_eq!(circuit["evidence"][0]["what"], "503");
    }
    made.ctx.bulletin.set_calling(0, vec!["shop/cart:80".parse().unwrap()]);
    let metrics = text(&ask(&admin, Door::Status, "GET", "/metrics").await);
    assert!(metrics.contains("outrigger_endpoints_ejected{service=\"shop/cart:80\"} 0"), "{metrics}");
    let transitions = "outrigger_circuit_transitions_total{service=\"shop/orders:80\",to=\"open\",\
                       cause=\"consecutive-failures\"} 1";
    assert!(metrics.contains(transitions), "{metrics}");
    assert!(metrics.contains("outrigger_endpoints_ejected{service=\"shop/orders:80\"} 1"), "{metrics}");

    let config = Config { total: NonZeroU32::new(7), ..Config::default() };
    let _permit = made.ctx.limits.hall(Name::Port(8080), config).try_admit(&None).unwrap();
    let rules = [limit("ServerPolicy/shop/orders/all", 5, vec![])];
    let _rules = made.ctx.limits.rules(&rules);
    let page = text(&ask(&admin, Door::Loopback, "GET", "/limits").await);
    let page: serde_json::Value = serde_json::from_str(&page).unwrap();
    let hall = &page["bulkheads"][0];
    assert_eq!(
        (&hall["name"], &hall["in_flight"], &hall["limit"]),
        (&"port/8080".into(), &1.into(), &7.into())
    );
    assert_eq!(page["rate_limits"][0]["policy"]["name"], "ServerPolicy/shop/orders/all");
}
