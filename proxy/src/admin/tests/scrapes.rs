//! Scraping over real sockets: formats, encodings, the application's lines, and scrapers that do not behave.

use std::{cell::Cell, io::Read as _, net::SocketAddr, rc::Rc};

use flate2::read::GzDecoder;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpSocket, TcpStream},
    runtime::Builder,
    task,
    time::{Instant, sleep, timeout},
};

use super::*;
use crate::{
    admin::{scrape::MOST, serve},
    telemetry::{Direction, Handled, Protocol, RequestRecord},
};

/// Longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(30);

struct Got {
    head: String,
    body: Vec<u8>,
}

impl Got {
    fn has(&self, line: &str) -> bool {
        self.head.lines().any(|one| one == line)
    }

    fn text(&self) -> String {
        String::from_utf8(self.body.clone()).unwrap()
    }
}

fn run(test: impl AsyncFnOnce()) {
    let runtime = Builder::new_current_thread().enable_all().build_local(Default::default()).unwrap();
    runtime.block_on(async { timeout(2 * PATIENCE, test()).await.expect("the test hangs") });
}

async fn door(more: &str) -> (SocketAddr, Arc<Admin>, Made) {
    let (admin, made) = admin_with(more);
    let admin = Arc::new(admin);
    // What the kernel holds for a reader that does not read is less than a page.
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_send_buffer_size(4096).unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let listener = socket.listen(64).unwrap();
    let address = listener.local_addr().unwrap();
    task::spawn_local(serve::tcp(Arc::clone(&admin), Door::Loopback, listener));
    (address, admin, made)
}

async fn ask_with(address: SocketAddr, method: &str, path: &str, fields: &str) -> Got {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = format!("{method} {path} HTTP/1.1\r\nhost: localhost\r\n{fields}\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    let end = answer.windows(4).position(|four| four == b"\r\n\r\n").unwrap();
    let head = String::from_utf8(answer[..end].to_vec()).unwrap();
    Got { head, body: answer[end + 4..].to_vec() }
}

async fn scrape(address: SocketAddr, fields: &str) -> Got {
    ask_with(address, "GET", "/metrics", fields).await
}

/// Requests to so many services with long names.
fn count_much(made: &Made, services: u32) {
    let shard = made.ctx.telemetry.shard();
    for n in 0..services {
        let service = format!("{}/s{n}:80", "namespace".repeat(10));
        shard.request(&RequestRecord {
            direction: Direction::Outbound,
            protocol: Protocol::Http1,
            method: "GET",
            authority: "",
            path: "/",
            status: 200,
            grpc_status: None,
            reason: None,
            detail: "",
            peer: None,
            caller: ([10, 0, 0, 1], 1).into(),
            service: &service,
            route: "",
            endpoint: None,
            received: 0,
            sent: 0,
            first_byte: Duration::ZERO,
            duration: Duration::from_millis(1),
            attempts: 1,
            tries: &[],
            security: "",
            trace: None,
            handled: Handled::default(),
            id: 0,
        });
    }
}

#[test]
fn formats_and_encodings_are_negotiated() {
    run(async || {
        let (address, _admin, _made) = door("").await;
        let plain = scrape(address, "").await;
        assert!(plain.has("content-type: text/plain; version=0.0.4; charset=utf-8"), "{}", plain.head);
        assert!(plain.has("vary: accept, accept-encoding") && plain.has("cache-control: no-store"));
        assert!(!plain.head.contains("content-encoding"));
        assert!(plain.text().contains("# TYPE outrigger_config_updates_total counter"));
        assert!(!plain.text().contains("# EOF"));

        let open = scrape(address, "accept: application/openmetrics-text;version=1.0.0\r\n").await;
        assert!(open.has("content-type: application/openmetrics-text; version=1.0.0; charset=utf-8"));
        let text = open.text();
        assert!(text.contains("# TYPE outrigger_config_updates counter"));
        assert!(text.ends_with("# EOF\n") && text.matches("# EOF").count() == 1, "{text}");

        let fields = "accept-encoding: gzip, br\r\naccept: application/openmetrics-text\r\n";
        let packed = scrape(address, fields).await;
        assert!(packed.has("content-encoding: gzip"), "{}", packed.head);
        let mut text = String::new();
        GzDecoder::new(&*packed.body).read_to_string(&mut text).unwrap();
        assert!(text.ends_with("# EOF\n"));
        assert!(packed.body.len() * 3 < text.len(), "{} of {}", packed.body.len(), text.len());

        let head = ask_with(address, "HEAD", "/metrics", "").await;
        assert!(head.has("content-type: text/plain; version=0.0.4; charset=utf-8"));
        assert!(head.head.starts_with("HTTP/1.1 200") && head.body.is_empty());
    });
}

#[test]
fn a_scraper_that_never_reads_is_cut_and_no_more_than_eight_scrape_at_once() {
    run(async || {
        let (address, admin, made) = door("").await;
        count_much(&made, 1_000);
        let began = Instant::now();
        let mut idle = Vec::new();
        for _ in 0..MOST {
            let socket = TcpSocket::new_v4().unwrap();
            socket.set_recv_buffer_size(4096).unwrap();
            let mut stream = socket.connect(address).await.unwrap();
            stream.write_all(b"GET /metrics HTTP/1.1\r\nhost: localhost\r\n\r\n").await.unwrap();
            idle.push(stream);
        }
        while admin.scrapes.under_way() < MOST {
            sleep(Duration::from_millis(5)).await;
        }
        let refused = scrape(address, "").await;
        assert!(refused.head.starts_with("HTTP/1.1 503"), "{}", refused.head);
        assert!(refused.text().contains("8 scrapes are under way"), "{}", refused.text());
        // Nobody else is kept out.
        assert!(ask_with(address, "GET", "/live", "").await.head.starts_with("HTTP/1.1 200"));
        while admin.scrapes.under_way() > 0 {
            assert!(began.elapsed() < PATIENCE, "{} are still there", admin.scrapes.under_way());
            sleep(Duration::from_millis(20)).await;
        }
        assert!(scrape(address, "").await.head.starts_with("HTTP/1.1 200"));
        // They were given their time.
        assert!(began.elapsed() > Duration::from_secs(9));
        drop(idle);
    });
}

/// An application with this page, and how often it was asked.
async fn application(content_type: &str, page: &str) -> (SocketAddr, Rc<Cell<u32>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let asked = Rc::<Cell<u32>>::default();
    let asking = Rc::clone(&asked);
    let answer = format!(
        "HTTP/1.1 200 OK\r\ncontent-type: {content_type}\r\ncontent-length: {}\r\n\r\n{page}",
        page.len()
    );
    task::spawn_local(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            asking.set(asking.get() + 1);
            let mut request = [0; 4096];
            let _ = stream.read(&mut request).await;
            let _ = stream.write_all(answer.as_bytes()).await;
        }
    });
    (address, asked)
}

#[test]
fn the_applications_own_metrics_come_with_the_proxys() {
    run(async || {
        let page = "# TYPE jobs_total counter\njobs_total{q=\"a\"} 7\noutrigger_ready 0\n";
        let (text, asked) = application("text/plain; version=0.0.4", page).await;
        let page = "# TYPE orders counter\norders_total 3 # {trace_id=\"abc\"} 1.0\n# EOF\n";
        let (open, _) = application("application/openmetrics-text; version=1.0.0", page).await;
        let broken = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let silent = broken.local_addr().unwrap();
        let flags = format!(
            "--merge-metrics http://{text}/m --merge-metrics http://{open} --merge-metrics http://{silent}/x"
        );
        let (address, _admin, _made) = door(&flags).await;
        let fields = "x-prometheus-scrape-timeout-seconds: 1\r\n";
        let plain = scrape(address, fields).await.text();
        for line in [
            "# TYPE jobs_total counter".to_owned(),
            "jobs_total{q=\"a\"} 7".to_owned(),
            "# TYPE orders_total counter".to_owned(),
            "orders_total 3".to_owned(),
            format!("outrigger_merge_up{{source=\"{text}/m\"}} 1"),
            format!("outrigger_merge_up{{source=\"{open}/metrics\"}} 1"),
            format!("outrigger_merge_up{{source=\"{silent}/x\"}} 0"),
            format!("outrigger_merge_dropped_total{{source=\"{text}/m\",cause=\"reserved-name\"}} 1"),
        ] {
            assert!(plain.lines().any(|one| one == line), "{line} is not in\n{plain}");
        }
        assert_eq!(plain.matches("\noutrigger_ready ").count(), 1);
        let fields = format!("{fields}accept: application/openmetrics-text\r\n");
        let open_metrics = scrape(address, &fields).await.text();
        for line in ["# TYPE jobs counter", "orders_total 3 # {trace_id=\"abc\"} 1.0"] {
            assert!(open_metrics.lines().any(|one| one == line), "{line} is not in\n{open_metrics}");
        }
        assert_eq!(open_metrics.matches("# EOF").count(), 1);
        assert!(open_metrics.ends_with("# EOF\n"));
        assert_eq!(asked.get(), 2, "once for each scrape");
        let stats = ask_with(address, "GET", "/stats", "").await.text();
        let stats: serde_json::Value = serde_json::from_str(&stats).unwrap();
        assert_eq!(stats["merged"][0]["why"], serde_json::Value::Null);
        assert_eq!(stats["merged"][2]["why"], "no whole answer within 500 ms");
        assert_eq!(stats["series"]["budget"], 2000);
        drop(broken);
    });
}

#[tokio::test]
async fn stats_list_what_was_folded() {
    let (admin, made) = admin();
    count_much(&made, 20_000);
    let stats: serde_json::Value =
        serde_json::from_str(&text(&ask(&admin, Door::Loopback, "GET", "/stats").await)).unwrap();
    let series = &stats["series"];
    assert!(series["folded_total"].as_u64().unwrap() > 10_000);
    let folded = series["folded"].as_array().unwrap();
    assert_eq!(folded.len(), 100);
    assert!(folded[0]["labels"].as_str().unwrap().contains("s19999:80"), "{}", folded[0]);
}
