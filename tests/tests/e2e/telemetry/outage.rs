//! The tracing backend away, and answering what no backend should: traffic does not notice, memory stays, and what could
//! not be told is counted.

use std::{
    net::SocketAddr,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use outrigger_lab::{Lab, Mesh, Workload, wait_for};

use super::a_while;
use crate::support::{
    Need, SOON, Test,
    collector::{Collector, Mood},
    figure,
    jaeger::{GRPC_PORT, HTTP_PORT, Jaeger},
    load::{Kind, Load, Plan},
    origin::Origin,
    prometheus::samples,
    yaml::Service,
};

pub(crate) fn tests() -> Vec<Test> {
    vec![
        Test::new("a_tracing_backend_that_stops_costs_no_request_and_no_memory_over_grpc", |lab| {
            stops(lab, GRPC_PORT)
        })
        .needs(&[Need::Jaeger]),
        Test::new("a_tracing_backend_that_errs_costs_no_request_and_no_memory_over_http", errs),
    ]
}

const STORE: ([u8; 4], u16) = ([10, 96, 0, 10], 80);
/// What a proxy may grow by while its backend is away, once its queues are full.
const GROWTH: u64 = 1024 * 1024;

struct Scene {
    _origin: Origin,
    workloads: [Workload; 2],
    _mesh: Mesh,
}

/// `web` calls `store`; every request is sampled, and a batch is due every 200 ms.
fn scene(lab: &Lab, endpoint: &str, protocol: &str) -> Result<Scene> {
    let service = Service::new("store").address("10.96.0.10").port(80, 8080, "http");
    let mesh = Mesh::builder().file("store.yaml", service.yaml()).start(lab)?;
    let workload = |name: &str| {
        mesh.workload(name)
            .proxy_env("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint)
            .proxy_env("OTEL_EXPORTER_OTLP_PROTOCOL", protocol)
            .proxy_env("OTEL_EXPORTER_OTLP_TIMEOUT", "1000")
            .proxy_env("OTEL_TRACES_SAMPLER", "always_on")
            .proxy_env("OTEL_BSP_SCHEDULE_DELAY", "200")
            // Full within a second or two.
            .proxy_env("OTEL_BSP_MAX_QUEUE_SIZE", "256")
            .proxy_env("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "128")
            .proxy_env("OTEL_BSP_EXPORT_TIMEOUT", "5000")
            // As many as there can be: the queue has to be full.
            .proxy_arg("--trace-max-per-second")
            .proxy_arg("1000000")
            .start()
    };
    let store = workload("store")?;
    let origin = Origin::start(&store.pod, 8080, "store")?;
    let web = workload("web")?;
    Ok(Scene { _origin: origin, workloads: [web, store], _mesh: mesh })
}

impl Scene {
    fn load(&self) -> Result<Load> {
        Plan::new(Kind::Http1, SocketAddr::from(STORE), "store.shop")
            .loops(4, Duration::from_millis(2))
            .start(&self.workloads[0].pod)
    }

    fn resident(&self) -> Result<[u64; 2]> {
        Ok([self.workloads[0].proxy.resident_bytes()?, self.workloads[1].proxy.resident_bytes()?])
    }

    /// Spans that were not delivered, by each proxy; for one cause, or for any.
    fn dropped(&self, cause: &str) -> Result<[u64; 2]> {
        let of = |workload: &Workload| -> Result<u64> {
            let all = samples(&workload.status("/metrics")?.body)?;
            let all = all.iter().filter(|one| one.name == "outrigger_spans_dropped_total");
            let all = all.filter(|one| {
                cause.is_empty() || one.labels.get("cause").is_some_and(|label| label == cause)
            });
            Ok(all.map(|one| one.value).sum::<f64>() as u64)
        };
        Ok([of(&self.workloads[0])?, of(&self.workloads[1])?])
    }

    /// Waits until each proxy has dropped more than these.
    fn wait_dropped(&self, cause: &str, before: [u64; 2], what: &str) -> Result<()> {
        let mut last = before;
        wait_for(SOON, &format!("more spans dropped ({cause}) by both proxies: {what}"), || {
            last = self.dropped(cause).unwrap_or(last);
            last[0] > before[0] && last[1] > before[1]
        })
        .with_context(|| format!("{before:?} became {last:?}"))
    }

    /// Under load, from here to where the time is over: nothing grows and drops are counted.
    fn bear(&self, what: &str, load: &Load) -> Result<()> {
        // Everything that fills up does so now; only then is there something to compare with.
        self.wait_dropped("queue", self.dropped("queue")?, what)?;
        load.wait_for_more(1000, SOON)?;
        let began = Instant::now();
        let (before, resident) = (self.dropped("")?, self.resident()?);
        thread::sleep(a_while());
        load.wait_for_more(1, SOON)?;
        let (after, now) = (self.dropped("")?, self.resident()?);
        figure(&format!(
            "{what}, {:?}: spans dropped {before:?} -> {after:?}, resident {resident:?} -> {now:?}",
            began.elapsed()
        ));
        ensure!(
            after[0] > before[0] && after[1] > before[1],
            "{what}: nothing is counted as dropped any more"
        );
        for (workload, (before, now)) in self.workloads.iter().zip(resident.into_iter().zip(now)) {
            ensure!(now <= before + GROWTH, "{what}: {} grew from {before} to {now} bytes", workload.name());
        }
        Ok(())
    }
}

fn stops(lab: &Lab, port: u16) -> Result<()> {
    let jaeger = Jaeger::start(lab)?;
    let scene = scene(lab, &jaeger.endpoint(port), "grpc")?;
    let load = scene.load()?;
    let any = || {
        let services = jaeger.get("/api/services").ok();
        services.is_some_and(|told| told["data"].as_array().is_some_and(|all| !all.is_empty()))
    };
    wait_for(SOON, "the first spans in the backend", any)?;
    jaeger.stop();
    scene.bear("backend stopped", &load)?;
    // Back, with nothing in its memory: what comes now has been tried again.
    jaeger.run()?;
    wait_for(SOON, "spans in the backend that is back", any)?;
    load.stop()?.expect_none_failed(2000)
}

fn errs(lab: &Lab) -> Result<()> {
    let pod = lab.pod("backend")?;
    let collector = Collector::start(&pod, HTTP_PORT, Mood::Good)?;
    let scene = scene(lab, &format!("http://{}:{HTTP_PORT}", pod.ipv4()), "http/protobuf")?;
    let load = scene.load()?;
    wait_for(SOON, "the first spans", || collector.spans().is_ok_and(|spans| spans > 0))?;
    collector.set(Mood::Errors);
    scene.bear("backend answers errors", &load)?;
    // It is asked less and less often, not for each request.
    for mood in [Mood::Redirects, Mood::Garbage, Mood::Silence] {
        collector.set(mood);
        let (requests, dropped) = (collector.requests(), scene.dropped("")?);
        wait_for(SOON, &format!("a try at a backend that answers {mood:?}"), || {
            collector.requests() > requests
        })?;
        scene.wait_dropped("", dropped, &format!("a backend that answers {mood:?}"))?;
    }
    let spans = collector.spans()?;
    collector.set(Mood::Good);
    wait_for(SOON, "spans again", || collector.spans().is_ok_and(|now| now > spans))?;
    load.stop()?.expect_none_failed(2000)
}
