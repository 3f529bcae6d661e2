//! Which policy is a port's, what a port is declared to speak, and what gRPC in another language makes of refusals.

use anyhow::{Context, Result, ensure};
use outrigger_lab::{Lab, Mesh, wait_for};

use super::{LIMITED, admitted};
use crate::support::{
    SOON,
    ask::{Ask, in_turn},
    booth::Booth,
    guarded::Guarded,
    peers, raw,
    yaml::policy,
};

/// Two policies select the workload: field by field, the one that says more of it goes first.
pub(super) fn precedence(lab: &Lab) -> Result<()> {
    let spec = |labels: &str, limits: &str| {
        let selector = format!("  selector: {{app: store{labels}}}\n");
        policy("ServerPolicy", "of-all", &format!("{selector}  ports:\n  - {{port: 8080, {limits}}}\n"))
    };
    let limit = |requests: u32| format!("rateLimit: [{{name: limit, requests: {requests}, per: 1000s}}]");
    let narrow = spec(", version: v2", &limit(2)).replace("of-all", "of-some");
    let mesh = Mesh::builder()
        .file("all.yaml", spec("", &format!("mtls: permissive, {}", limit(5))))
        .file("some.yaml", narrow)
        .file("others.yaml", spec(", version: v3", &limit(1)).replace("of-all", "of-others"))
        .start(lab)?;
    let store = mesh.workload("store").label("version", "v2").start()?;
    let _booth = Booth::start(&store.pod, 8080, "store")?;
    let stranger = lab.pod("stranger")?;
    let ask = Ask::new((store.pod.ipv4(), 8080).into(), "/");
    // Plaintext is taken, as only the wide one says, and twice, as the narrow one says.
    let told = in_turn(&stranger, vec![ask.clone(); 8])?;
    ensure!(admitted(&told, LIMITED, 429)? == 2, "{told:?}");
    let by = |told: &crate::support::ask::Told, name: &str| {
        told.field("ratelimit-policy").is_some_and(|field| field.contains(&format!("/{name}/limit\"")))
    };
    ensure!(by(&told[7], "of-some"), "{told:?}");
    // Without the narrow one the wide one has its say.
    mesh.remove("some.yaml")?;
    let mut last = None;
    wait_for(SOON, "the wide limit", || {
        last = in_turn(&stranger, vec![ask.clone(); 6]).ok();
        last.iter().flatten().any(|told| by(told, "of-all"))
    })
    .with_context(|| format!("{last:?}"))
}

/// Bytes that are no HTTP go through where nothing is declared, and stop at a port that is declared to speak it. The
/// other way round, HTTP is only bytes where a port is declared so.
pub(super) fn protocols(lab: &Lab) -> Result<()> {
    let spec = "  selector: {app: store}\n  ports:\n  - {port: 9000, mtls: permissive}\n  \
                - {port: 9001, mtls: permissive, protocol: http}\n  - {port: 9002, mtls: permissive, protocol: tcp}\n";
    let mesh = Mesh::builder().file("server.yaml", policy("ServerPolicy", "store", spec)).start(lab)?;
    let store = mesh.workload("store").start()?;
    let stranger = lab.pod("stranger")?;
    let at = |port: u16| (store.pod.ipv4(), port).into();
    let start = |port| raw::Sink::start(&store.pod, port);
    let sinks = [start(9000)?, start(9001)?, start(9002)?];
    for ((port, reached), sink) in [(9000, true), (9001, false), (9002, true)].into_iter().zip(&sinks) {
        let mut stream = raw::connect(&stranger, at(port))?;
        std::io::Write::write_all(&mut stream, b"\x00\x01 no HTTP \r\n\r\n")?;
        let told = raw::read_answer(&mut stream);
        let answered = told.as_ref().is_ok_and(|(_, body)| body == b"reached");
        ensure!(
            answered == reached && (sink.bytes() > 0) == reached,
            "port {port}: {told:?}, {}",
            sink.bytes()
        );
    }
    let log = |port: u16, kind: &str| {
        let (service, kind) = (format!("\":{port}\""), format!("\"kind\":\"{kind}\""));
        store.access_log().lines().any(|line| line.contains(&service) && line.contains(&kind))
    };
    for (port, kind, other) in [(9000, "request", ""), (9002, "connection", "request")] {
        let mut stream = raw::connect(&stranger, at(port))?;
        std::io::Write::write_all(&mut stream, b"GET /x HTTP/1.1\r\nhost: store.shop\r\n\r\n")?;
        let (_, body) = raw::read_answer(&mut stream)?;
        ensure!(body == b"reached", "port {port}: {body:?}");
        drop(stream);
        wait_for(SOON, &format!("port {port} in the access log as {kind}"), || log(port, kind))?;
        ensure!(other.is_empty() || !log(port, other), "port {port} was taken for HTTP");
    }
    Ok(())
}

/// Calls and prints the status, whether it was told when to come back, and the reason.
const CALL: &str = "import grpc, sys
call = grpc.insecure_channel(sys.argv[1]).unary_unary('/outrigger.test.Any/' + sys.argv[2])
try:
    call(b'', timeout=float(sys.argv[3]), metadata=[tuple(m.split('=')) for m in sys.argv[4:]])
    print('OK')
except grpc.RpcError as error:
    fields = dict(list(error.initial_metadata() or []) + list(error.trailing_metadata() or []))
    print(error.code().name, fields.get('outrigger-reason'), 'grpc-retry-pushback-ms' in fields)
";

pub(super) fn other_language(lab: &Lab) -> Result<()> {
    let sections = [
        "rateLimit: [{name: one, requests: 1, per: 1000s}]",
        "bulkhead: {total: {maxRequests: 1}}",
        "bulkhead: {total: {maxRequests: 1}, queue: {size: 5, timeout: 200ms}}",
    ];
    let shop = Guarded::open(lab, &["web"], &sections)?;
    let pod = &shop.callers[0].pod;
    let call = |port: usize, arguments: &[&str]| -> Result<String> {
        let python = peers::python().context("python")?;
        let target = format!("10.96.0.10:{}", 80 + port);
        let output = pod.run(pod.command(python).args(["-c", CALL, &target]).args(arguments))?;
        Ok(output.success()?.trim().to_owned())
    };
    for port in [0, 1] {
        let told = call(port, &["Call", "30"])?;
        ensure!(told == "OK", "{told}");
    }
    let told = call(1, &["Call", "30"])?;
    ensure!(told == "RESOURCE_EXHAUSTED rate-limited True", "{told}");
    for (port, reason) in [(2, "bulkhead-full"), (3, "queue-timeout")] {
        let held = crate::support::ask::at_once(pod, vec![shop.ask(port, "/hold")])?;
        shop.wait_inside(port, 1)?;
        let told = call(port, &["Call", "30"])?;
        ensure!(told.starts_with(&format!("RESOURCE_EXHAUSTED {reason}")), "{told}");
        shop.booths[port].let_out(1);
        held.wait()?;
    }
    // What is over before it came is over in its words too.
    let before = shop.booths[0].requests();
    let told = call(0, &["Call", "30", "x-outrigger-deadline=0"])?;
    ensure!(told.starts_with("DEADLINE_EXCEEDED deadline-exceeded"), "{told}");
    ensure!(shop.booths[0].requests() == before, "expired work reached the application");
    Ok(())
}
