//! What a caller gets when the upstream has nothing good to say.

use anyhow::Result;

use crate::support::{
    Test,
    app::{Asked, Say},
    farm::{Builder, Farm, Stand, hold, with_and_without},
};

pub(crate) fn tests() -> Vec<Test> {
    vec![
        Test::in_farm("fallback_answers_itself_for_each_cause", causes),
        Test::in_farm("fallback_asks_a_backup_service", backup),
        Test::in_farm("fallback_leaves_alone_what_refuses_the_caller", never),
    ]
}

const ANSWER: &str =
    "answer: {status: 203, headers: {content-type: application/json, x-by: fallback}, body: \"[]\"}";

fn alone<'f>(farm: &'f Farm, hosts: &[usize], lines: &str) -> Builder<'f> {
    farm.stand(hosts).policy(&format!("  retries: {{attempts: 0}}\n{lines}"))
}

/// A cause, a policy that brings it about, and what the application does.
struct Case {
    on: &'static str,
    lines: &'static str,
    hosts: &'static [usize],
    /// What the caller is told when nothing stands in.
    reason: &'static str,
    say: fn() -> Say,
}

const CASES: &[Case] = &[
    Case {
        on: "breaker",
        lines: "  outlierEjection: {consecutiveFailures: 1, minReady: 0, maxEjectedPercent: 100}\n",
        hosts: &[0],
        reason: "all-ejected",
        say: || Say::status(500),
    },
    Case { on: "no-endpoints", lines: "", hosts: &[], reason: "no-endpoints", say: || Say::ok("good") },
    Case {
        on: "timeout",
        lines: "  timeouts: {request: 200ms}\n",
        hosts: &[0],
        reason: "request-timeout",
        say: Say::nothing,
    },
    Case { on: "failure", lines: "", hosts: &[0], reason: "upstream-reset", say: Say::reset },
    Case { on: "\"500-503\"", lines: "", hosts: &[0], reason: "", say: || Say::status(502) },
];

fn causes(farm: &Farm) -> Result<()> {
    let all = ["breaker", "no-endpoints", "timeout", "failure", "\"500-503\""];
    for Case { on, lines, hosts, reason, say } in CASES {
        let others: Vec<_> = all.into_iter().filter(|other| other != on).collect();
        let policy = |on: &str| format!("{lines}  fallback: {{on: [{on}], {ANSWER}}}\n");
        let (with, without) = (policy(on), policy(&others.join(", ")));
        with_and_without(
            &with,
            &without,
            |lines| alone(farm, hosts, lines).apps(|_, _| say()),
            |stand| {
                if *on == "breaker" {
                    // This one opens the circuit; 500 is among the statuses of `without`.
                    stand.send(&stand.get("/"))?;
                    stand.wait_for_circuit(0, "open")?;
                }
                let told = stand.send(&stand.get("/"))?;
                hold!(told.status == 203 && told.body == "[]", "{on}: {told:?}");
                hold!(told.field("content-type") == Some("application/json"), "{on}: {told:?}");
                hold!(told.field("x-by") == Some("fallback"), "{on}: {told:?}");
                let cause = if reason.is_empty() { "502" } else { reason };
                let said = format!("answer;cause={cause}");
                hold!(told.field("outrigger-fallback") == Some(&said), "{on}: {told:?}");
                Ok(Ok(()))
            },
        )?;
        // Without any, the caller is told what there was.
        let stand = alone(farm, hosts, lines).apps(|_, _| say())?;
        if *on == "breaker" {
            stand.send(&stand.get("/"))?;
            stand.wait_for_circuit(0, "open")?;
        }
        let told = stand.send(&stand.get("/"))?;
        anyhow::ensure!(told.status >= 500 && told.reason() == *reason, "{on}: {told:?}");
    }
    // A bulkhead that sheds is the breaker's cause, too.
    with_and_without(
        &format!("  bulkhead: {{upstream: {{maxRequests: 1}}}}\n  fallback: {{on: [breaker], {ANSWER}}}\n"),
        "  bulkhead: {upstream: {maxRequests: 1}}\n",
        |lines| {
            let slow = |_: usize, _: &Asked| Say::ok("good").after(std::time::Duration::from_secs(1));
            alone(farm, &[0], lines).apps(slow)
        },
        |stand| {
            let told = stand.get("/").at_once(stand.web(), 2)?;
            let mut statuses: Vec<_> = told.iter().map(|told| told.status).collect();
            statuses.sort_unstable();
            hold!(statuses == [200, 203], "{told:?}");
            Ok(Ok(()))
        },
    )
}

fn backup(farm: &Farm) -> Result<()> {
    let bodies = |asked: &Asked| Say::ok(format!("backup {} {}", asked.method, asked.body.len()));
    let backup = farm.stand(&[1]).apps(move |_, asked| bodies(asked))?;
    let named = format!("backend: {{name: {}, port: 80}}", backup.name);
    with_and_without(
        &format!("  fallback: {{on: [failure, \"503\"], {named}}}\n"),
        "",
        |lines| {
            alone(farm, &[0], lines)
                .apps(|_, asked| if asked.path == "/" { Say::status(503) } else { Say::reset() })
        },
        |stand| {
            // The request goes there as it came, its body too.
            for (path, body) in [("/", "order"), ("/reset", "orders")] {
                let put = crate::support::call::Call::new("PUT", stand.target, path);
                let told = stand.send(&put.body(body))?;
                hold!(told.status == 200, "{told:?}");
                hold!(told.body == format!("backup PUT {}", body.len()), "{told:?}");
                let cause = if path == "/" { "503" } else { "upstream-reset" };
                let said = format!("backend;cause={cause}");
                hold!(told.field("outrigger-fallback") == Some(&said), "{told:?}");
            }
            Ok(Ok(()))
        },
    )
}

fn never(farm: &Farm) -> Result<()> {
    let fallback = format!("  fallback: {{on: [breaker, no-endpoints, timeout, failure], {ANSWER}}}\n");
    let limited = format!("{fallback}  rateLimit: [{{name: few, requests: 1, per: 1m}}]\n");
    let stand: Stand<'_> = alone(farm, &[0], &limited).apps(|_, _| Say::ok("good"))?;
    let told = stand.get("/").in_turn(stand.web(), 2)?;
    anyhow::ensure!(told[0].status == 200 && told[1].status == 429, "{told:?}");
    let stand = alone(farm, &[0], &fallback).apps(|_, _| Say::ok("good"))?;
    let told = stand.send(&stand.get("/").field("x-outrigger-deadline", 0))?;
    anyhow::ensure!(told.status == 504 && told.reason() == "deadline-exceeded", "{told:?}");
    Ok(())
}
