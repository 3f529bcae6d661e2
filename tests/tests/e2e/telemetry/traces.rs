//! One request through a chain of three services, as a tracing backend shows it: a client span and a server span for each
//! hop, six in all, made by proxies of which none knows more than its own part.
//!
//! ```text
//!   shopper ═▶ web ═▶ orders ═▶ stock-a, stock-b       /plain      all is well
//!                         ├───▶ stock :81 (denied)     /flaky      the first answer is 503 or UNAVAILABLE
//!                         └───▶ ghost                  /denied/    the proxy of stock refuses
//!                                                      /nobody/    a service without endpoints
//! ```

use std::{
    collections::BTreeSet,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use anyhow::{Context, Result, ensure};
use http::HeaderMap;
use outrigger_lab::{Lab, Mesh, Workload, wait_for};
use serde_json::Value;

use crate::support::{
    Need, SOON, Test,
    app::{App, Asked, Say},
    ask::{Ask, Told},
    jaeger::{GRPC_PORT, HTTP_PORT, Jaeger, Span, children, root},
    link::Link,
    yaml::{Service, document, policy, split},
};

pub(crate) fn tests() -> Vec<Test> {
    vec![
        Test::new("traces_of_a_chain_are_whole_in_a_real_backend_over_grpc", over_grpc)
            .needs(&[Need::Jaeger]),
        Test::new("traces_of_a_chain_are_whole_in_a_real_backend_over_http", over_http)
            .needs(&[Need::Jaeger]),
    ]
}

const WEB: [u8; 4] = [10, 96, 0, 10];
const ORDERS: [u8; 4] = [10, 96, 0, 11];
const STOCK: [u8; 4] = [10, 96, 0, 12];
const GHOST: [u8; 4] = [10, 96, 0, 13];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Spoken {
    Http1,
    Http2,
    Grpc,
}

struct Chain {
    // Dropped in this order: programs before the pods' network.
    stocks: Vec<App>,
    _links: Vec<Link>,
    shopper: Workload,
    _workloads: Vec<Workload>,
    jaeger: Jaeger,
    _mesh: Mesh,
}

fn once(service: &str) -> String {
    format!("  targetRef: {{kind: Service, name: {service}}}\n  retries: {{attempts: 0}}\n")
}

fn at(address: [u8; 4], port: u16) -> SocketAddr {
    SocketAddr::from((address, port))
}

impl Chain {
    fn start(lab: &Lab, port: u16, variables: &[(&str, &str)]) -> Result<Self> {
        let jaeger = Jaeger::start(lab)?;
        let service = |name: &str, address: [u8; 4]| {
            Service::new(name).address(&std::net::Ipv4Addr::from(address).to_string()).port(80, 8080, "http")
        };
        let deny = "  selector: {app: stock}\n  action: deny\n  rules: [{to: {ports: [8081]}}]\n";
        let ghost = document("outrigger.dev/v1alpha1", "MeshService", "ghost")
            + "  addresses: [10.96.0.13]\n  ports: [{port: 80, appProtocol: http}]\n";
        // What the trace has to show is one more try, not how long one waits for it.
        let retries = "  targetRef: {kind: Service, name: stock}\n  retries: {attempts: 1, unsafeMethods: true}\n  \
                       loadBalancer: {algorithm: round-robin}\n";
        let mesh = Mesh::builder()
            .file("web.yaml", service("web", WEB).yaml())
            .file("orders.yaml", service("orders", ORDERS).yaml())
            .file("stock.yaml", service("stock", STOCK).port(81, 8081, "http").yaml())
            .file("ghost.yaml", ghost)
            .file("route.yaml", split("orders", "orders", 80, &[("orders", 1)]))
            .file("retries.yaml", policy("TrafficPolicy", "stock", retries))
            // What orders fails at is not tried again by those before it.
            .file("web-once.yaml", policy("TrafficPolicy", "web", &once("web")))
            .file("orders-once.yaml", policy("TrafficPolicy", "orders", &once("orders")))
            .file("deny.yaml", policy("AuthorizationPolicy", "no-second-door", deny))
            .start(lab)?;
        let endpoint = jaeger.endpoint(port);
        let workload = |name: &str, account: &str| {
            let mut workload = mesh
                .workload(name)
                .service_account(account)
                .label("app", account)
                .proxy_env("OTEL_EXPORTER_OTLP_ENDPOINT", &endpoint)
                .proxy_env("OTEL_SERVICE_NAME", name)
                .proxy_env("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=lab")
                .proxy_env("OTEL_TRACES_SAMPLER", "parentbased_always_on")
                .proxy_env("OTEL_BSP_SCHEDULE_DELAY", "200");
            for (name, value) in variables {
                workload = workload.proxy_env(name, *value);
            }
            workload.start()
        };
        let mut workloads = Vec::new();
        let (mut stocks, mut links) = (Vec::new(), Vec::new());
        let flaky = Arc::new(AtomicU64::new(0));
        for name in ["stock-a", "stock-b"] {
            let stock = workload(name, "stock")?;
            for port in [8080, 8081] {
                let flaky = Arc::clone(&flaky);
                stocks.push(App::start(&stock.pod, port, move |asked| of_stock(asked, &flaky))?);
            }
            workloads.push(stock);
        }
        let orders = workload("orders", "orders")?;
        links.push(Link::start(&orders.pod, 8080, |path| {
            if path.starts_with("/denied/") {
                at(STOCK, 81)
            } else if path.starts_with("/nobody/") {
                at(GHOST, 80)
            } else {
                at(STOCK, 80)
            }
        })?);
        let web = workload("web", "web")?;
        links.push(Link::start(&web.pod, 8080, |_| at(ORDERS, 80))?);
        workloads.extend([orders, web]);
        let shopper = workload("shopper", "shopper")?;
        let chain = Self { stocks, _links: links, shopper, _workloads: workloads, jaeger, _mesh: mesh };
        wait_for(SOON, "an answer through the whole chain", || {
            chain.ask(Spoken::Http1, "/warm", &[]).is_ok_and(|told| told.is_good())
        })?;
        Ok(chain)
    }

    fn ask(&self, spoken: Spoken, path: &str, fields: &[(&'static str, &str)]) -> Result<Told> {
        let ask =
            fields.iter().fold(Ask::new(at(WEB, 80), path), |ask, (name, value)| ask.field(name, value));
        let ask = match spoken {
            Spoken::Http1 => ask,
            Spoken::Http2 => ask.http2(),
            Spoken::Grpc => ask.grpc(),
        };
        ask.once(&self.shopper.pod)
    }

    /// The fields of the last request with this path that came to stock.
    fn arrived(&self, path: &str) -> Result<HeaderMap> {
        let mut all: Vec<_> =
            self.stocks.iter().flat_map(App::asked).filter(|asked| asked.path.starts_with(path)).collect();
        all.sort_by_key(|asked| asked.at);
        Ok(all.pop().with_context(|| format!("{path} did not arrive"))?.headers)
    }
}

fn of_stock(asked: &Asked, flaky: &AtomicU64) -> Say {
    if !asked.path.starts_with("/flaky") || flaky.fetch_add(1, Ordering::SeqCst) % 2 == 1 {
        return Say::ok("here");
    }
    let kind = asked.headers.get("content-type");
    if kind.is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc")) {
        Say::grpc(14)
    } else {
        Say::status(503)
    }
}

/// The trace id in the `traceparent` of a request.
fn w3c_id(fields: &HeaderMap) -> Result<String> {
    let value = fields.get("traceparent").context("no traceparent")?.to_str()?;
    let parts: Vec<_> = value.split('-').collect();
    ensure!(parts.len() == 4 && parts[0] == "00" && parts[1].len() == 32, "{value}");
    // Sampled, and where the mesh made up the id, random.
    ensure!(["01", "03"].contains(&parts[3]), "{value}");
    Ok(parts[1].to_owned())
}

fn over_grpc(lab: &Lab) -> Result<()> {
    let chain = Chain::start(lab, GRPC_PORT, &[])?;
    for spoken in [Spoken::Http1, Spoken::Http2, Spoken::Grpc] {
        whole(&chain, spoken).with_context(|| format!("{spoken:?}"))?;
    }
    carried_on(&chain)?;
    itself(&chain)
}

fn over_http(lab: &Lab) -> Result<()> {
    let variables = [("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf"), ("OTEL_PROPAGATORS", "b3multi")];
    let chain = Chain::start(lab, HTTP_PORT, &variables)?;
    let given = "463ac35c9f6413ad48485a3953bb6124";
    let fields = [("x-b3-traceid", given), ("x-b3-spanid", "a2fb4a1d1a96d312"), ("x-b3-sampled", "1")];
    let told = chain.ask(Spoken::Http1, "/b3", &fields)?;
    ensure!(told.is_good(), "{told:?}");
    let arrived = chain.arrived("/b3")?;
    ensure!(arrived.get("x-b3-traceid").is_some_and(|id| id == given), "{arrived:?}");
    ensure!(!arrived.contains_key("traceparent"), "a header that nobody asked for: {arrived:?}");
    let spans = chain.jaeger.trace(given, 6)?;
    let hops = hops(&spans)?;
    ensure!(hops.len() == 6 && hops[0].parent.as_deref() == Some("a2fb4a1d1a96d312"), "{spans:#?}");
    // What the application of stock was told is a child of the last server span.
    let last = arrived.get("x-b3-spanid").context("x-b3-spanid")?.to_str()?;
    ensure!(hops[5].id == last, "stock was told of span {last}, the last is {:#?}", hops[5]);
    itself(&chain)
}

/// Spans from the first to the last where each has one child at most.
fn hops(spans: &[Span]) -> Result<Vec<&Span>> {
    let mut hops = vec![root(spans)?];
    while let Some(last) = hops.last() {
        match children(spans, last)[..] {
            [] => break,
            [next] => hops.push(next),
            _ => anyhow::bail!("{} has several children in {spans:#?}", last.name),
        }
    }
    Ok(hops)
}

/// All that one protocol has to show.
fn whole(chain: &Chain, spoken: Spoken) -> Result<()> {
    let word = format!("{spoken:?}").to_lowercase();
    let path = |what: &str| format!("/{what}/{word}");

    // All is well.
    let plain = path("plain");
    let told = chain.ask(spoken, &format!("{plain}?card=4000123456789010"), &[])?;
    ensure!(told.is_good(), "{told:?}");
    let spans = chain.jaeger.trace(&w3c_id(&chain.arrived(&plain)?)?, 6)?;
    let hops_of = hops(&spans)?;
    ensure!(hops_of.len() == 6 && spans.len() == 6, "{spans:#?}");
    ensure!(hops_of[0].parent.is_none(), "nobody was before the first: {:#?}", hops_of[0]);
    let who = [
        ("shopper", "client"),
        ("web", "server"),
        ("web", "client"),
        ("orders", "server"),
        ("orders", "client"),
    ];
    for (span, (service, kind)) in hops_of.iter().zip(who) {
        ensure!(
            span.service == service && span.kind() == kind,
            "wanted the {kind} span of {service}: {span:#?}"
        );
    }
    ensure!(hops_of[5].service.starts_with("stock-") && hops_of[5].kind() == "server", "{:#?}", hops_of[5]);
    for (number, span) in hops_of.iter().enumerate() {
        described(span, spoken, &plain).with_context(|| format!("span {number}: {span:#?}"))?;
        ensure!(!span.is_error(), "{span:#?}");
    }
    ensure!(!format!("{spans:?}").contains("4000123456789010"), "a query string is in the trace");
    for (number, (caller, called)) in
        [("shopper", "web"), ("web", "orders"), ("orders", "stock")].into_iter().enumerate()
    {
        let identity = |name: &str| format!("spiffe://mesh.local/ns/shop/sa/{name}");
        for span in [hops_of[2 * number], hops_of[2 * number + 1]] {
            let told = (span.text("outrigger.source"), span.text("outrigger.destination"));
            ensure!(told == (&identity(caller), &identity(called)), "{told:?} in {span:#?}");
        }
        let client = hops_of[2 * number];
        ensure!(client.text("outrigger.service") == format!("shop/{called}:80"), "{client:#?}");
        ensure!(client.number("outrigger.attempts").is_none_or(|attempts| attempts == 1), "{client:#?}");
        // What a caller waits for contains what it waits for, give or take the clock's grain.
        ensure!(client.duration + 1000 >= hops_of[2 * number + 1].duration, "{client:#?}");
    }

    // One more try: the second is a child of the same span, and told as its event.
    let flaky = path("flaky");
    let told = chain.ask(spoken, &flaky, &[])?;
    ensure!(told.is_good(), "{told:?}");
    let spans = chain.jaeger.trace(&w3c_id(&chain.arrived(&flaky)?)?, 7)?;
    let caller = spans.iter().find(|span| span.service == "orders" && span.kind() == "client");
    let caller = caller.with_context(|| format!("{spans:#?}"))?;
    let tries = children(&spans, caller);
    ensure!(tries.len() == 2 && tries.iter().all(|one| one.kind() == "server"), "{spans:#?}");
    ensure!(tries[0].service != tries[1].service, "both tries went to {}", tries[0].service);
    let status = |span: &Span| match spoken {
        Spoken::Grpc => span.number("rpc.grpc.status_code"),
        Spoken::Http1 | Spoken::Http2 => span.number("http.response.status_code"),
    };
    let (bad, good) = if spoken == Spoken::Grpc { (14, 0) } else { (503, 200) };
    ensure!(status(tries[0]) == Some(bad) && tries[0].is_error(), "{:#?}", tries[0]);
    ensure!(status(tries[1]) == Some(good) && !tries[1].is_error(), "{:#?}", tries[1]);
    ensure!(status(caller) == Some(good) && !caller.is_error(), "the retry was worth it: {caller:#?}");
    ensure!(caller.number("http.request.resend_count") == Some(1), "{caller:#?}");
    ensure!(caller.number("outrigger.attempts") == Some(2), "{caller:#?}");
    for (name, place, outcome) in [("attempt", 1, bad), ("retry", 2, good)] {
        let event = caller.event(name).with_context(|| format!("no event {name}: {caller:#?}"))?;
        ensure!(event.fields["outrigger.attempt"] == place, "{event:?}");
        let told = event.fields["outrigger.outcome"].as_str().unwrap_or_default();
        ensure!(spoken == Spoken::Grpc || told == outcome.to_string(), "{event:?}");
    }

    // An answer that a proxy made: by policy at the called one, for want of endpoints at the caller's.
    let cases = [("denied", "denied", 403, 7, 6, "server"), ("nobody", "no-endpoints", 503, 14, 5, "client")];
    for (what, reason, http, grpc, number, kind) in cases {
        let given = format!("{:032x}", 0xabc0_0000_u64 + number as u64 * 16 + spoken as u64);
        let parent = format!("00-{given}-00000000000000aa-01");
        let told = chain.ask(spoken, &path(what), &[("traceparent", &parent)])?;
        ensure!(!told.is_good(), "{told:?}");
        let spans = chain.jaeger.trace(&given, number)?;
        let made = spans.iter().find(|span| span.text("outrigger.reason") == reason && span.kind() == kind);
        let made = made.with_context(|| format!("no {kind} span says {reason}: {spans:#?}"))?;
        // A server that refuses has done its work well.
        ensure!(made.is_error() == (kind == "client"), "{made:#?}");
        ensure!(status(made) == Some(if spoken == Spoken::Grpc { grpc } else { http }), "{made:#?}");
        ensure!(!made.is_error() || !made.text("error.type").is_empty(), "{made:#?}");
        ensure!(!made.text("outrigger.id").is_empty(), "an answer of ours has an id: {made:#?}");
        let verdict = made.event("verdict").with_context(|| format!("no verdict: {made:#?}"))?;
        ensure!(verdict.fields["outrigger.reason"] == reason, "{verdict:?}");
        if reason == "denied" {
            ensure!(made.text("outrigger.policy").contains("no-second-door"), "{made:#?}");
            ensure!(chain.arrived(&path(what)).is_err(), "it reached the application");
        }
        ensure!(root(&spans)?.parent.as_deref() == Some("00000000000000aa"), "{spans:#?}");
    }
    Ok(())
}

/// Name and attributes by the conventions.
fn described(span: &Span, spoken: Spoken, path: &str) -> Result<()> {
    let is = |key: &str, value: &str| ensure_eq(span.text(key), value, key);
    let address = if span.kind() == "client" { "server.address" } else { "client.address" };
    ensure!(!span.text(address).is_empty(), "no {address}");
    ensure!(span.tags.contains_key("network.peer.address"), "no network.peer.address");
    if spoken == Spoken::Grpc {
        let (service, method) = path.trim_start_matches('/').split_once('/').context("a gRPC path")?;
        ensure_eq(&span.name, path.trim_start_matches('/'), "name")?;
        is("rpc.system", "grpc")?;
        is("rpc.service", service)?;
        is("rpc.method", method)?;
        ensure!(span.number("rpc.grpc.status_code") == Some(0), "rpc.grpc.status_code");
        return Ok(());
    }
    let route = span.text("outrigger.route");
    let routed = span.text("outrigger.service") == "shop/orders:80" && span.kind() == "client";
    ensure!(route.starts_with("shop/orders/") == routed, "route {route:?}");
    ensure_eq(&span.name, format!("GET {route}").trim_end(), "name")?;
    is("http.request.method", "GET")?;
    is("url.path", path)?;
    is("url.scheme", "http")?;
    let version = if spoken == Spoken::Http1 { ["1.1", "1.1"] } else { ["2", "2.0"] };
    ensure!(version.contains(&span.text("network.protocol.version")), "network.protocol.version");
    ensure!(span.number("http.response.status_code") == Some(200), "http.response.status_code");
    Ok(())
}

fn ensure_eq(got: &str, wanted: &str, what: &str) -> Result<()> {
    ensure!(got == wanted, "{what} is {got:?}, wanted {wanted:?}");
    Ok(())
}

/// A trace that somebody has begun goes on, with what others have written into it.
fn carried_on(chain: &Chain) -> Result<()> {
    let given = "4bf92f3577b34da6a3ce929d0e0e4736";
    let fields = [
        ("traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"),
        ("tracestate", "vendor=t61rcWkgMzE,other=1"),
        ("baggage", "user=7"),
    ];
    let told = chain.ask(Spoken::Http1, "/given", &fields)?;
    ensure!(told.is_good(), "{told:?}");
    let spans = chain.jaeger.trace(given, 6)?;
    let hops_of = hops(&spans)?;
    ensure!(hops_of[0].parent.as_deref() == Some("00f067aa0ba902b7"), "{:#?}", hops_of[0]);
    let arrived = chain.arrived("/given")?;
    let told = |name: &str| arrived.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    ensure!(told("traceparent") == format!("00-{given}-{}-01", hops_of[5].id), "{arrived:?}");
    ensure!(told("tracestate") == "vendor=t61rcWkgMzE,other=1" && told("baggage") == "user=7", "{arrived:?}");
    // Whoever says that it is not sampled is believed: nothing of it comes here.
    let quiet = "4bf92f3577b34da6a3ce929d0e0e4737";
    let parent = format!("00-{quiet}-00f067aa0ba902b7-00");
    ensure!(chain.ask(Spoken::Http1, "/quiet", &[("traceparent", &parent)])?.is_good());
    let arrived = chain.arrived("/quiet")?;
    let told = arrived.get("traceparent").context("traceparent")?.to_str()?;
    ensure!(told.starts_with(&format!("00-{quiet}-")) && told.ends_with("-00"), "{told}");
    // A proxy sends its spans in order, batch after batch. So when a later one of each proxy has come, and then one more,
    // whatever there was of this trace has come before them.
    for _ in 0..2 {
        let mut stocks = BTreeSet::from(["stock-a", "stock-b"]);
        for number in 0..20 {
            let path = format!("/after/{number}");
            ensure!(chain.ask(Spoken::Http1, &path, &[])?.is_good());
            let spans = chain.jaeger.trace(&w3c_id(&chain.arrived(&path)?)?, 6)?;
            stocks.retain(|stock| spans.iter().all(|span| span.service != *stock));
            if stocks.is_empty() {
                break;
            }
        }
        ensure!(stocks.is_empty(), "nothing comes from {stocks:?}");
    }
    ensure!(!chain.jaeger.has(quiet)?, "what was not sampled is in the backend");
    Ok(())
}

/// What the mesh sends to the backend is no traffic of its own: it would be a trace of traces.
fn itself(chain: &Chain) -> Result<()> {
    let everybody = ["shopper", "web", "orders", "stock-a", "stock-b"];
    let mut last = Value::Null;
    wait_for(SOON, "spans of everybody", || {
        // Until now one of the two instances of stock may not have been asked.
        let asked = chain.ask(Spoken::Http1, "/again", &[]).is_ok_and(|told| told.is_good());
        last = chain.jaeger.get("/api/services").unwrap_or_default();
        let known = |name: &&str| last["data"].as_array().into_iter().flatten().any(|known| known == name);
        asked && everybody.iter().all(known)
    })
    .with_context(|| format!("the backend knows {last}"))?;
    for name in everybody {
        for span in chain.jaeger.traces_of(name)?.into_iter().flatten() {
            let told = format!("{span:?}");
            ensure!(!told.contains(":4317") && !told.contains(":4318"), "{told}");
            ensure!(!span.name.contains("opentelemetry"), "{told}");
        }
    }
    Ok(())
}
