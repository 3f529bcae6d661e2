//! Circuits, retries and deadlines on the way out, seen through two proxies.

use std::{cell::Cell, num::NonZeroU32, rc::Rc, time::Duration};

use outrigger_proto::spec::{Cause, Circuit, Ejection, OutlierEjection, Protocol, Traffic};
use tokio::{
    io::AsyncReadExt,
    task,
    time::{Instant, timeout},
};

use crate::rig::{PATIENCE, Reply, Rig, read_rest, run, write};

pub(super) const GET: &str = "GET /a HTTP/1.1\r\nHost: orders.shop\r\n\r\n";
pub(super) const SHORT: Duration = Duration::from_millis(100);

pub(super) fn one() -> Option<NonZeroU32> {
    NonZeroU32::new(1)
}

pub(super) fn status(status: u16, more: &str) -> Reply {
    Reply::Answer(format!("HTTP/1.1 {status} X\r\nContent-Length: 2\r\n{more}\r\nok"))
}

pub(super) fn hang() -> Reply {
    Reply::Hang(String::new())
}

pub(super) fn reason(head: &str) -> &str {
    let at = head.find("outrigger-reason: ").unwrap_or_else(|| panic!("no reason in {head}"));
    head[at + 18..].lines().next().unwrap()
}

/// Sends a request on a connection of its own and gives the whole answer, in lower case.
pub(super) async fn ask(rig: &Rig, request: &str) -> String {
    let mut program = rig.dial();
    let closing = request.replacen("\r\nHost", "\r\nConnection: close\r\nHost", 1);
    write(&mut program, &closing).await;
    read_rest(&mut program).await.0.to_ascii_lowercase()
}

pub(super) async fn get(rig: &Rig) -> String {
    ask(rig, GET).await
}

pub(super) fn begin(rig: &Rig) -> task::JoinHandle<String> {
    let mut program = rig.dial();
    task::spawn_local(async move {
        write(&mut program, &GET.replacen("\r\nHost", "\r\nConnection: close\r\nHost", 1)).await;
        read_rest(&mut program).await.0.to_ascii_lowercase()
    })
}

pub(super) async fn until(what: &str, mut is: impl FnMut() -> bool) {
    let waiting = async {
        while !is() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    timeout(PATIENCE, waiting).await.unwrap_or_else(|_| panic!("never: {what}"));
}

pub(super) fn no_retries(traffic: &mut Traffic) {
    traffic.retries.attempts = 0;
}

pub(super) fn ejection(change: impl FnOnce(&mut OutlierEjection)) -> Ejection {
    let mut policy = OutlierEjection::default();
    change(&mut policy);
    Ejection(Some(policy))
}

// === circuits ===

#[test]
fn who_fails_is_ejected_with_evidence_and_comes_back() {
    run(|| async {
        let mut rig = Rig::new(Protocol::Http, 2).await;
        rig.set_traffic(|traffic| {
            no_retries(traffic);
            traffic.outlier_ejection = ejection(|policy| policy.base_ejection = Duration::from_secs(3));
        });
        let bad = Rc::new(Cell::new(true));
        let fails = Rc::clone(&bad);
        let failing = rig.servers[0].serve(move |_, _| status(if fails.get() { 500 } else { 200 }, ""));
        rig.servers[1].serve(|_, _| status(200, ""));
        let mut failures = 0;
        while rig.transitions().is_empty() {
            failures += u32::from(get(&rig).await.starts_with("http/1.1 500"));
        }
        assert_eq!(failures, 5, "five in a row");
        let opened = &rig.transitions()[0];
        assert_eq!((opened.to, opened.cause), (Circuit::Open, Cause::ConsecutiveFailures));
        assert_eq!(opened.endpoint, rig.servers[0].mesh);
        assert_eq!(opened.evidence.iter().filter(|outcome| &*outcome.what == "500").count(), 5);
        // Neither requests nor a new configuration bring it back.
        let before = failing.get();
        for _ in 0..10 {
            assert!(get(&rig).await.starts_with("http/1.1 200"));
        }
        rig.set_traffic(|traffic| traffic.timeouts.stream_idle = None);
        rig.add_server("orders").await;
        rig.servers[2].serve(|_, _| status(200, ""));
        rig.configure();
        for _ in 0..10 {
            assert!(get(&rig).await.starts_with("http/1.1 200"));
        }
        assert_eq!(failing.get(), before);
        // Its time is served, and single requests show that it is good again.
        bad.set(false);
        let deadline = Instant::now() + PATIENCE;
        while rig.transitions().last().unwrap().to != Circuit::Closed {
            assert!(Instant::now() < deadline, "it never comes back");
            get(&rig).await;
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let told: Vec<_> = rig.transitions().iter().map(|transition| transition.to).collect();
        assert_eq!(told, [Circuit::Open, Circuit::HalfOpen, Circuit::Closed]);
        assert_eq!(failing.get(), before + 3, "three probes");
    });
}

#[test]
fn the_last_one_is_never_refused_unless_policy_says_so() {
    run(|| async {
        let mut rig = Rig::new(Protocol::Http, 1).await;
        rig.set_traffic(no_retries);
        rig.servers[0].serve(|_, _| status(500, ""));
        for _ in 0..20 {
            assert!(get(&rig).await.starts_with("http/1.1 500"));
        }
        assert!(rig.transitions().is_empty());
        rig.set_traffic(|traffic| {
            traffic.outlier_ejection = ejection(|policy| {
                policy.min_ready = 0;
                policy.max_ejected_percent = 100;
            });
        });
        while rig.transitions().is_empty() {
            get(&rig).await;
        }
        let refused = get(&rig).await;
        assert!(refused.starts_with("http/1.1 503"), "{refused}");
        assert_eq!(reason(&refused), "all-ejected");
        assert!(refused.contains("retry-after: "), "{refused}");
    });
}

#[test]
fn an_answer_that_breaks_off_is_a_failure_and_a_callers_leave_is_none() {
    run(|| async {
        let mut rig = Rig::new(Protocol::Http, 2).await;
        rig.set_traffic(|traffic| {
            no_retries(traffic);
            traffic.outlier_ejection = ejection(|policy| policy.consecutive_failures = one());
        });
        let half = || Reply::Last("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf".into());
        rig.servers[0].serve(move |_, _| half());
        rig.servers[1].serve(|_, _| hang());
        // The caller leaves: nobody's fault.
        for _ in 0..10 {
            let mut program = rig.dial();
            write(&mut program, GET).await;
            let _ = timeout(Duration::from_millis(50), program.read_to_end(&mut Vec::new())).await;
            if rig.transitions().iter().any(|transition| transition.endpoint == rig.servers[0].mesh) {
                break;
            }
        }
        until("the half answer is judged", || !rig.transitions().is_empty()).await;
        let told = rig.transitions();
        assert_eq!(told.len(), 1, "{told:?}");
        let last = told[0].evidence.last().unwrap();
        assert_eq!((told[0].endpoint, &*last.what), (rig.servers[0].mesh, "reset"));
    });
}

#[test]
fn who_refuses_for_load_is_passed_over() {
    run(|| async {
        let mut rig = Rig::new(Protocol::Http, 2).await;
        rig.set_traffic(no_retries);
        let busy = rig.servers[0].serve(|_, _| status(429, "Retry-After: 60\r\n"));
        rig.servers[1].serve(|_, _| status(200, ""));
        for _ in 0..40 {
            get(&rig).await;
        }
        assert!((1..=2).contains(&busy.get()), "{}", busy.get());
    });
}

// === retries ===

#[test]
fn a_bad_answer_is_asked_for_elsewhere() {
    run(|| async {
        let post = "PUT /a HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nbody";
        for request in [GET, post] {
            let rig = Rig::new(Protocol::Http, 2).await;
            let heads: Rc<std::cell::RefCell<Vec<String>>> = Rc::default();
            for (server, code) in rig.servers.iter().zip([503, 200]) {
                let seen = Rc::clone(&heads);
                server.serve(move |_, head| {
                    seen.borrow_mut().push(head.to_owned());
                    status(code, "")
                });
            }
            let deadline = Instant::now() + PATIENCE;
            loop {
                assert!(Instant::now() < deadline, "the bad one is never asked first");
                heads.borrow_mut().clear();
                assert!(ask(&rig, request).await.starts_with("http/1.1 200"), "{request}");
                let heads = heads.borrow();
                if let [first, second] = &heads[..] {
                    assert!(first.contains("x-outrigger-attempt: 1"), "{first}");
                    assert!(second.contains("x-outrigger-attempt: 2"), "{second}");
                    assert_eq!(second.ends_with("body"), request == post, "{second}");
                    break;
                }
            }
        }
    });
}

#[test]
fn what_must_not_be_repeated_is_not() {
    run(|| async {
        let rig = Rig::new(Protocol::Http, 2).await;
        let counts: Vec<_> = rig.servers.iter().map(|server| server.serve(|_, _| status(503, ""))).collect();
        let count = || counts.iter().map(|count| count.get()).sum::<u32>();
        let large =
            format!("PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 70000\r\n\r\n{}", "x".repeat(70_000));
        for (request, expected) in [
            (GET, 3),
            ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\nx", 1),
            ("POST / HTTP/1.1\r\nHost: a\r\nIdempotency-Key: \"1\"\r\nContent-Length: 1\r\n\r\nx", 3),
            // A layer before this one retries.
            ("GET / HTTP/1.1\r\nHost: a\r\nX-Outrigger-Attempt: 2\r\n\r\n", 1),
            (&large, 1),
        ] {
            let before = count();
            let answer = ask(&rig, request).await;
            assert!(answer.starts_with("http/1.1 503"), "{answer}");
            assert_eq!(count() - before, expected, "{}", &request[..request.len().min(80)]);
        }
    });
}

#[test]
fn an_attempt_that_takes_too_long_is_made_elsewhere() {
    run(|| async {
        let mut rig = Rig::new(Protocol::Http, 2).await;
        rig.set_traffic(|traffic| traffic.timeouts.per_try = Some(SHORT));
        let hanging = rig.servers[0].serve(|_, _| hang());
        rig.servers[1].serve(|_, _| status(200, ""));
        while hanging.get() == 0 {
            assert!(get(&rig).await.starts_with("http/1.1 200"));
        }
        rig.backend.endpoints.retain(|endpoint| endpoint.address == rig.servers[0].mesh);
        rig.set_traffic(|traffic| {
            no_retries(traffic);
            traffic.timeouts.per_try = None;
            traffic.timeouts.response_header = Some(SHORT);
        });
        let answer = get(&rig).await;
        assert!(answer.starts_with("http/1.1 504"), "{answer}");
        assert_eq!(reason(&answer), "response-timeout");
    });
}

// === deadlines ===

#[test]
fn deadlines_shrink_on_the_way_and_end_work() {
    run(|| async {
        let rig = Rig::new(Protocol::Http, 1).await;
        let heads: Rc<std::cell::RefCell<Vec<String>>> = Rc::default();
        let seen = Rc::clone(&heads);
        let count = rig.servers[0].serve(move |_, head| {
            seen.borrow_mut().push(head.to_owned());
            status(200, "")
        });
        let left = |head: &str| -> u64 {
            head.split("x-outrigger-deadline: ").nth(1).unwrap().lines().next().unwrap().parse().unwrap()
        };
        get(&rig).await;
        assert!((25_000..=30_000).contains(&left(&heads.borrow()[0])), "{heads:?}");
        ask(&rig, "GET / HTTP/1.1\r\nHost: a\r\nX-Outrigger-Deadline: 4000\r\n\r\n").await;
        assert!((1_000..4_000).contains(&left(&heads.borrow()[1])), "{heads:?}");
        let late = ask(&rig, "GET / HTTP/1.1\r\nHost: a\r\nX-Outrigger-Deadline: 0\r\n\r\n").await;
        assert!(late.starts_with("http/1.1 504"), "{late}");
        assert_eq!(reason(&late), "deadline-exceeded");
        assert_eq!(count.get(), 2, "expired work reached the application");
    });
}

#[test]
fn an_answer_in_which_nothing_moves_is_cut() {
    run(|| async {
        let mut rig = Rig::new(Protocol::Http, 1).await;
        rig.set_traffic(|traffic| traffic.timeouts.stream_idle = Some(SHORT));
        rig.servers[0].serve(|_, _| Reply::Hang("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc".into()));
        let mut program = rig.dial();
        write(&mut program, GET).await;
        let (answer, _) = read_rest(&mut program).await;
        assert!(answer.ends_with("\r\n\r\nabc"), "{answer}");
    });
}

#[test]
fn a_callers_own_deadline_is_no_fault_of_the_endpoints() {
    run(|| async {
        let mut rig = Rig::new(Protocol::Http, 1).await;
        rig.set_traffic(|traffic| {
            traffic.timeouts.request = Some(Duration::from_millis(200));
            traffic.outlier_ejection = ejection(|policy| {
                policy.consecutive_failures = one();
                policy.min_ready = 0;
                policy.max_ejected_percent = 100;
            });
        });
        rig.servers[0].serve(|_, _| hang());
        let impatient = ask(&rig, "GET / HTTP/1.1\r\nHost: a\r\nX-Outrigger-Deadline: 50\r\n\r\n").await;
        assert_eq!(reason(&impatient), "deadline-exceeded");
        assert!(rig.transitions().is_empty());
        assert_eq!(reason(&get(&rig).await), "request-timeout");
        assert_eq!(&*rig.transitions()[0].evidence[0].what, "timeout");
    });
}
