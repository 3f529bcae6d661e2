use std::cell::RefCell;

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
    runtime::Builder,
};

use super::*;
use crate::metrics::text::Version;

const OPEN_METRICS: Format = Format::OpenMetrics(Version::V1_0_0);

/// What becomes of pages in a format, and of their lines.
fn merged(pages: &[(&str, bool)], format: Format) -> (String, Vec<read::Outcome>) {
    let mut all = read::Pages::default();
    let outcomes =
        pages.iter().map(|(page, open_metrics)| all.read(page.as_bytes(), *open_metrics)).collect();
    (write::encode(&all, format), outcomes)
}

const TEXT: &str = r#"# HELP http_requests_total The "total".
# TYPE http_requests_total counter
http_requests_total{method="post",code="200"} 1027 1395066363000
http_requests_total{method="a\\b\"c\nd"} 3
# A remark.
# TYPE queue gauge
queue 1.5e3
# TYPE rpc summary
rpc{quantile="0.5"} 4773
rpc_sum 1.7560473e+07
rpc_count 2693
# TYPE latency histogram
latency_bucket{le="0.1"} 1
latency_bucket{le="+Inf"} 2
latency_sum 3
latency_count 2
# TYPE odd counter
odd 7
bare NaN
"#;

#[test]
fn text_stays_as_it_is() {
    let (page, outcomes) = merged(&[(TEXT, false)], Format::Text);
    assert_eq!(outcomes[0].dropped, [0; 5]);
    assert_eq!(outcomes[0].lines, 12);
    let expected = TEXT.replace("# A remark.\n", "").replace("bare NaN", "# TYPE bare untyped\nbare NaN");
    assert_eq!(page, expected);
}

#[test]
fn text_becomes_open_metrics() {
    let (page, _) = merged(&[(TEXT, false)], OPEN_METRICS);
    assert_eq!(
        page,
        r#"# HELP http_requests The \"total\".
# TYPE http_requests counter
http_requests_total{method="post",code="200"} 1027 1395066363.000
http_requests_total{method="a\\b\"c\nd"} 3
# TYPE queue gauge
queue 1.5e3
# TYPE rpc summary
rpc{quantile="0.5"} 4773
rpc_sum 1.7560473e+07
rpc_count 2693
# TYPE latency histogram
latency_bucket{le="0.1"} 1
latency_bucket{le="+Inf"} 2
latency_sum 3
latency_count 2
# TYPE odd unknown
odd 7
# TYPE bare unknown
bare NaN
"#
    );
}

const OPEN: &str = r#"# HELP foo_seconds Of \"time\".
# TYPE foo_seconds counter
# UNIT foo_seconds seconds
foo_seconds_total{a="b"} 1.5 1520879607.789 # {trace_id="abc"} 0.5 1520879607.789
foo_seconds_created{a="b"} 1520430000.123
# TYPE build info
build_info{version="1"} 1
# TYPE state stateset
state{state="on"} 1
# TYPE sizes gaugehistogram
sizes_bucket{le="1.0"} 1
sizes_bucket{le="+Inf"} 2
sizes_gcount 2
sizes_gsum 3
# TYPE thing unknown
thing 1
# EOF
"#;

#[test]
fn open_metrics_stays_as_it_is_but_for_its_end() {
    let (page, outcomes) = merged(&[(OPEN, true)], OPEN_METRICS);
    assert_eq!(page, OPEN.replace("# EOF\n", ""));
    assert_eq!((outcomes[0].dropped, outcomes[0].cut_short), ([0; 5], false));
}

#[test]
fn open_metrics_becomes_text() {
    let (page, _) = merged(&[(OPEN, true)], Format::Text);
    assert_eq!(
        page,
        r#"# HELP foo_seconds_total Of "time".
# TYPE foo_seconds_total counter
foo_seconds_total{a="b"} 1.5 1520879607789
# HELP foo_seconds_created Of "time".
# TYPE foo_seconds_created gauge
foo_seconds_created{a="b"} 1520430000.123
# TYPE build_info gauge
build_info{version="1"} 1
# TYPE state gauge
state{state="on"} 1
# TYPE sizes_bucket untyped
sizes_bucket{le="1.0"} 1
sizes_bucket{le="+Inf"} 2
# TYPE sizes_gcount untyped
sizes_gcount 2
# TYPE sizes_gsum untyped
sizes_gsum 3
# TYPE thing untyped
thing 1
"#
    );
}

#[test]
fn what_breaks_the_format_is_left_out() {
    use Cause::{Conflict, Duplicate, Malformed, Reserved};
    for (line, cause) in [
        ("good 1", None),
        ("good{a=\"b\",} 1 5", None),
        (" good { a = \"b\" } +Inf", None),
        ("good{a=\"\\\\\\\"\\n\"} -1e9", None),
        ("# just a remark", None),
        ("", None),
        ("1bad 1", Some(Malformed)),
        ("b-d 1", Some(Malformed)),
        ("bad", Some(Malformed)),
        ("bad one", Some(Malformed)),
        ("bad 1 1.5", Some(Malformed)),
        ("bad 1 2 3", Some(Malformed)),
        ("bad{a=\"b\" 1", Some(Malformed)),
        ("bad{a=\"b\"c=\"d\"} 1", Some(Malformed)),
        ("bad{a=b} 1", Some(Malformed)),
        ("bad{a=\"\\x\"} 1", Some(Malformed)),
        ("bad{a=\"b\",a=\"c\"} 1", Some(Malformed)),
        ("bad{a:b=\"c\"} 1", Some(Malformed)),
        ("{\"utf.8\",a=\"b\"} 1", Some(Malformed)),
        ("bad 1 # {a=\"b\"} 1", Some(Malformed)),
        ("# TYPE bad curve", Some(Malformed)),
        ("# HELP b-d text", Some(Malformed)),
        ("outrigger_requests_total 1", Some(Reserved)),
        ("process_open_fds 1", Some(Reserved)),
        ("# TYPE outrigger_ready gauge", Some(Reserved)),
        ("there 2", Some(Duplicate)),
        ("# TYPE there counter", Some(Conflict)),
        ("hist 2", Some(Conflict)),
    ] {
        let page = format!("there 1\n# TYPE hist histogram\n{line}\n");
        let (_, outcomes) = merged(&[(&page, false)], Format::Text);
        let mut dropped = [0; 5];
        if let Some(cause) = cause {
            dropped[cause as usize] = 1;
        }
        assert_eq!(outcomes[0].dropped, dropped, "{line:?}");
    }
}

/// Comparing each with all before it is what a page of one endless line would be made for.
#[test]
fn a_line_has_so_many_labels_at_most() {
    let line = |labels: usize| {
        let labels: Vec<_> = (0..labels).map(|n| format!("l{n}=\"\"")).collect();
        format!("x{{{}}} 1\n", labels.join(","))
    };
    let (page, outcomes) = merged(&[(&line(120), false), (&line(121), false)], Format::Text);
    assert_eq!(outcomes.iter().map(|outcome| outcome.lines).collect::<Vec<_>>(), [1, 0]);
    assert_eq!(outcomes[1].dropped[Cause::Malformed as usize], 1);
    assert!(page.contains("l119=") && !page.contains("l120="), "{page}");
}

#[test]
fn no_byte_that_is_no_text_gets_through() {
    let mut pages = read::Pages::default();
    let outcome = pages.read(b"a{x=\"\xff\xfe\"} 1\nb 2\r\n\xf0\n", false);
    assert_eq!((outcome.lines, outcome.dropped[Cause::Malformed as usize]), (1, 2));
    assert_eq!(write::encode(&pages, Format::Text), "# TYPE b untyped\nb 2\n");
}

#[test]
fn open_metrics_without_its_end_is_not_whole() {
    let (_, outcomes) =
        merged(&[("a 1\n", true), ("b 1\n# EOF\nc 1\n", true), ("# EOF", true)], OPEN_METRICS);
    assert_eq!(outcomes.iter().map(|one| one.cut_short).collect::<Vec<_>>(), [true, false, false]);
    assert_eq!(outcomes[1].dropped[Cause::Malformed as usize], 1, "nothing comes after the end");
}

#[test]
fn families_of_several_sources_are_one() {
    let one = "# TYPE jobs_total counter\njobs_total{w=\"1\"} 1\n# TYPE up gauge\nup 1\n";
    let two = "# TYPE jobs counter\njobs_total{w=\"2\"} 2\njobs_total{w=\"1\"} 9\n# TYPE up counter\nup_total 1\n# EOF\n";
    let (page, outcomes) = merged(&[(one, false), (two, true)], OPEN_METRICS);
    assert_eq!(
        page,
        "# TYPE jobs counter\njobs_total{w=\"1\"} 1\njobs_total{w=\"2\"} 2\n# TYPE up gauge\nup 1\n\
         # TYPE up_total unknown\nup_total 1\n"
    );
    assert_eq!(outcomes[1].dropped[Cause::Duplicate as usize], 1);
    assert_eq!(outcomes[1].dropped[Cause::Conflict as usize], 1, "`up` is a gauge");
}

#[test]
fn no_page_is_too_large_for_the_memory() {
    let page: String = (0..3 * read::MOST_LINES).map(|n| format!("n{n} 1\n# HELP h{n} x\n")).collect();
    let (page, outcomes) = merged(&[(&page, false)], Format::Text);
    assert!(outcomes[0].lines <= read::MOST_LINES);
    assert!(outcomes[0].dropped[Cause::TooMany as usize] > 3 * read::MOST_LINES);
    assert!(page.lines().count() as u64 <= 2 * read::MOST_LINES);
}

// ---- asking ---------------------------------------------------------------------------------------------------------

/// An application that answers each connection with these bytes, and then keeps it open.
async fn application(answer: Vec<u8>) -> (Source, std::rc::Rc<RefCell<String>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let asked = std::rc::Rc::<RefCell<String>>::default();
    let asking = std::rc::Rc::clone(&asked);
    task::spawn_local(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut request = vec![0; 4096];
            let read = stream.read(&mut request).await.unwrap();
            asking.replace(String::from_utf8_lossy(&request[..read]).into_owned());
            let answer = answer.clone();
            task::spawn_local(async move {
                // Who has heard enough goes away.
                let _ = stream.write_all(&answer).await;
                let _ = stream.read(&mut [0]).await;
            });
        }
    });
    (Source { address, target: "/m?x=1".to_owned() }, asked)
}

fn answer(head: &str, body: &str) -> Vec<u8> {
    format!("HTTP/1.1 {head}\r\ncontent-length: {}\r\n\r\n{body}", body.len()).into_bytes()
}

fn run(test: impl AsyncFnOnce()) {
    Builder::new_current_thread().enable_all().build_local(Default::default()).unwrap().block_on(test());
}

#[test]
fn a_source_is_asked_for_what_the_scraper_gets() {
    run(async || {
        let page = answer("200 OK\r\ncontent-type: text/plain; version=0.0.4", "a 1\nbad\n");
        let (source, asked) = application(page).await;
        let merges = Merges::new(&[source], None);
        assert!(merges.standing()[0].why.is_some(), "nobody has asked yet");
        for (format, accept) in [
            (Format::Text, "accept: text/plain;version=0.0.4,*/*;q=0.1\r\n"),
            (OPEN_METRICS, "accept: application/openmetrics-text;version=1.0.0,"),
        ] {
            let answered = merges.fetch(format, LONGEST).await;
            let page = merges.merge(&answered, format);
            assert!(page.ends_with("\na 1\n"), "{page}");
            let asked = asked.borrow();
            assert!(asked.starts_with("GET /m?x=1 HTTP/1.1\r\nhost: 127.0.0.1:"), "{asked}");
            assert!(asked.contains(accept), "{asked}");
        }
        let standing = &merges.standing()[0];
        assert_eq!((&standing.why, standing.lines, standing.dropped[0]), (&None, 1, ("malformed", 2)));
    });
}

#[test]
fn a_bad_source_costs_its_own_lines_and_says_why() {
    run(async || {
        let endless =
            format!("HTTP/1.1 200 OK\r\ncontent-length: 99999999\r\n\r\n{}", "a 1\n".repeat(3 << 20));
        for (bytes, why) in [
            (Vec::new(), "no whole answer within 300 ms"),
            (b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\na 1".to_vec(), "no whole answer within 300 ms"),
            (endless.into_bytes(), "more than 8 MiB"),
            (answer("500 Oops", ""), "answered 500, want 200"),
            (answer("302 Found\r\nlocation: http://10.0.0.1/", ""), "answered 302, want 200"),
            (answer("200 OK\r\ncontent-type: text/html", ""), "answered \"text/html\", want text/plain"),
            (answer("200 OK\r\ncontent-encoding: gzip", ""), "the encoding \"gzip\" although"),
            (b"hello\r\n\r\n".to_vec(), "invalid HTTP version"),
        ] {
            let (source, _) = application(bytes).await;
            let (good, _) = application(answer("200 OK", "good 1\n")).await;
            let merges = Merges::new(&[source, good], None);
            let within = if why.contains("MiB") { LONGEST } else { Duration::from_millis(300) };
            let answered = merges.fetch(Format::Text, within).await;
            assert_eq!(merges.merge(&answered, Format::Text), "# TYPE good untyped\ngood 1\n", "{why}");
            let standing = merges.standing();
            let told = standing[0].why.as_deref().unwrap();
            assert!(told.contains(why), "{told:?}, want {why:?}");
            assert_eq!(standing[1].why, None);
        }
        let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        let merges = Merges::new(&[Source { address: closed, target: "/".to_owned() }], None);
        assert!(merges.fetch(Format::Text, LONGEST).await.is_empty());
        assert!(merges.standing()[0].why.as_deref().unwrap().contains("refused"));
    });
}
