//! Which destination reaches whom: virtual and pod addresses of both families, oneself, strangers, loops, plain machines.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use outrigger_lab::{Binaries, Lab, Mesh, Pod, wait_for};

use crate::support::{
    Need, SOON, Test,
    origin::Origin,
    raw,
    shop::{OUTSIDE, Shop, VIRTUAL6},
    yaml::{Service, policy},
};

pub(crate) fn tests() -> Vec<Test> {
    let ipv6: &'static [Need] = &[Need::Ipv6];
    vec![
        Test::in_shop("a_virtual_address_reaches_the_service", virtual_address),
        Test::in_shop("a_virtual_ipv6_address_reaches_the_service", virtual_ipv6_address).needs(ipv6),
        Test::in_shop("a_pod_address_reaches_that_pod_in_mutual_tls", pod_address),
        Test::in_shop("a_pod_ipv6_address_reaches_that_pod_in_mutual_tls", pod_ipv6_address).needs(ipv6),
        Test::in_shop("a_workload_can_call_itself_by_every_address", self_call),
        Test::in_shop("a_destination_outside_the_mesh_is_reached_where_egress_allows", unknown_destination),
        Test::in_shop("a_destination_that_nobody_has_fails_soon_with_a_reason", nobody_there),
        Test::in_shop("a_service_port_that_does_not_exist_is_not_dialled_in_plaintext", unknown_port),
        Test::in_shop("calls_to_the_proxy_ports_themselves_are_refused_as_loops", loops),
        Test::new("registered_only_egress_refuses_strangers_with_a_reason", registered_only),
        Test::new("plain_machines_take_part_with_forward_and_serve", forward_and_serve),
        Test::new("redirect_rules_are_idempotent_checkable_and_removable", redirect_rules),
    ]
}

/// What `target` answers to a request for `path` from `pod`.
fn get(pod: &Pod, target: SocketAddr, path: &str) -> Result<String> {
    let request = format!("GET {path} HTTP/1.1\r\nhost: {target}\r\nconnection: close\r\n\r\n");
    raw::exchange(pod, target, request.as_bytes()).with_context(|| format!("{} to {target}", pod.name()))
}

/// Answered by the instance `name`, called by `caller` with an identity (so: through both sidecars).
fn expect_meshed(pod: &Pod, target: SocketAddr, name: &str, caller: &str) -> Result<()> {
    let answer = get(pod, target, "/id")?;
    ensure!(answer.starts_with("HTTP/1.1 200") && answer.ends_with(name), "{target}: {answer}");
    let headers = get(pod, target, "/headers")?;
    let identity = format!("URI=spiffe://mesh.local/ns/shop/sa/{caller}");
    ensure!(headers.contains(&identity), "{target}: no {identity} in {headers}");
    Ok(())
}

fn virtual_address(shop: &Shop) -> Result<()> {
    expect_meshed(&shop.web.pod, shop.store(80), "store", "web")
}

fn virtual_ipv6_address(shop: &Shop) -> Result<()> {
    expect_meshed(&shop.web.pod, SocketAddr::new(VIRTUAL6.parse()?, 80), "store", "web")
}

fn pod_address(shop: &Shop) -> Result<()> {
    expect_meshed(&shop.web.pod, SocketAddr::new(shop.store.pod.ipv4().into(), 8080), "store", "web")
}

fn pod_ipv6_address(shop: &Shop) -> Result<()> {
    expect_meshed(&shop.web.pod, SocketAddr::new(shop.store.pod.ipv6().into(), 8080), "store", "web")
}

fn self_call(shop: &Shop) -> Result<()> {
    let pod = &shop.store.pod;
    expect_meshed(pod, shop.store(80), "store", "store")?;
    expect_meshed(pod, SocketAddr::new(pod.ipv4().into(), 8080), "store", "store")?;
    if shop.lab().has_ipv6() {
        expect_meshed(pod, SocketAddr::new(VIRTUAL6.parse()?, 80), "store", "store")?;
        expect_meshed(pod, SocketAddr::new(pod.ipv6().into(), 8080), "store", "store")?;
    }
    // Loopback is the program's own business.
    let answer = get(pod, SocketAddr::from((Ipv4Addr::LOCALHOST, 8080)), "/headers")?;
    ensure!(answer.starts_with("HTTP/1.1 200") && !answer.contains("x-forwarded-client-cert"), "{answer}");
    Ok(())
}

fn unknown_destination(shop: &Shop) -> Result<()> {
    for address in [IpAddr::V4(OUTSIDE), shop.outside.ipv4().into()] {
        let answer = get(&shop.web.pod, SocketAddr::new(address, 8080), "/id")?;
        ensure!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("outside"), "{address}: {answer}");
    }
    ensure!(shop.outside_origin.requests() >= 2);
    Ok(())
}

fn nobody_there(shop: &Shop) -> Result<()> {
    let answer = get(&shop.web.pod, SocketAddr::from(([192, 0, 2, 99], 80)), "/id")?;
    let refused = answer.starts_with("HTTP/1.1 502") || answer.starts_with("HTTP/1.1 503");
    ensure!(answer.is_empty() || (refused && answer.contains("outrigger-reason: ")), "{answer}");
    Ok(())
}

fn unknown_port(shop: &Shop) -> Result<()> {
    // Nobody listens on 8099 of the store; were it dialled in plaintext, its strict proxy would see it.
    let answer = get(&shop.web.pod, SocketAddr::new(shop.store.pod.ipv4().into(), 8099), "/id")?;
    ensure!(answer.is_empty() || !answer.contains("mtls-required"), "{answer}");
    ensure!(!answer.starts_with("HTTP/1.1 200"), "{answer}");
    Ok(())
}

fn loops(shop: &Shop) -> Result<()> {
    let own = &shop.web.pod;
    let mut addresses: Vec<IpAddr> =
        vec![Ipv4Addr::LOCALHOST.into(), own.ipv4().into(), shop.store.pod.ipv4().into()];
    if shop.lab().has_ipv6() {
        addresses.extend([IpAddr::V6(own.ipv6()), shop.store.pod.ipv6().into()]);
    }
    for address in addresses {
        for port in [15001, 15006] {
            let target = SocketAddr::new(address, port);
            // Refused at the connection, closed without an answer, or told why: all of them soon.
            let Ok(mut stream) = raw::connect(own, target) else { continue };
            use std::io::Write;
            drop(stream.write_all(b"GET /id HTTP/1.1\r\nhost: loop\r\nconnection: close\r\n\r\n"));
            let answer = raw::read_to_end(&mut stream).with_context(|| format!("{target}"))?;
            ensure!(!answer.starts_with("HTTP/1.1 200"), "{target}: {answer}");
        }
    }
    let answer = get(own, SocketAddr::new(own.ipv4().into(), 15001), "/id");
    ensure!(
        answer.as_ref().map_or(true, |answer| answer.is_empty() || answer.contains("loop")),
        "{answer:?}"
    );
    // And nothing keeps turning.
    for workload in [&shop.web, &shop.store] {
        let before = workload.proxy.cpu_time()?;
        std::thread::sleep(Duration::from_millis(200));
        let used = workload.proxy.cpu_time()? - before;
        ensure!(used < Duration::from_millis(190), "{} used {used:?} of 200ms", workload.name());
    }
    expect_meshed(own, shop.store(80), "store", "web")
}

fn registered_only(lab: &Lab) -> Result<()> {
    let mesh = Mesh::builder()
        .file("store.yaml", Service::new("store").address("10.96.0.10").port(80, 8080, "http").yaml())
        .file(
            "egress.yaml",
            policy("ServerPolicy", "web", "  selector: {app: web}\n  egress: registered-only\n"),
        )
        .start(lab)?;
    let outside = lab.pod("outside")?;
    outside.add_address(IpAddr::V4(OUTSIDE))?;
    let origin = Origin::start(&outside, 8080, "outside")?;
    let store = mesh.workload("store").start()?;
    let _store_origin = Origin::start(&store.pod, 8080, "store")?;
    let web = mesh.workload("web").start()?;

    let answer = get(&web.pod, SocketAddr::new(OUTSIDE.into(), 8080), "/id")?;
    ensure!(
        answer.contains("outrigger-reason: egress-denied") && answer.contains("outrigger-id: "),
        "{answer}"
    );
    ensure!(origin.connections() == 0, "the stranger was dialled");
    expect_meshed(&web.pod, "10.96.0.10:80".parse()?, "store", "web")?;

    // Opened again, the same destination is reached without a restart.
    mesh.remove("egress.yaml")?;
    wait_for(SOON, "egress to be allowed", || {
        get(&web.pod, SocketAddr::new(OUTSIDE.into(), 8080), "/id")
            .is_ok_and(|answer| answer.ends_with("outside"))
    })
}

fn forward_and_serve(lab: &Lab) -> Result<()> {
    let mesh = Mesh::builder()
        .file("machine.yaml", Service::new("machine").address("10.96.0.20").port(80, 8080, "http").yaml())
        .file("store.yaml", Service::new("store").address("10.96.0.10").port(80, 8080, "http").yaml())
        .start(lab)?;
    let store = mesh.workload("store").start()?;
    let _store_origin = Origin::start(&store.pod, 8080, "store")?;
    let machine_pod = lab.pod("machine")?;
    // Only on loopback: nothing but the proxy can reach it.
    let _machine_origin = Origin::start_at(&machine_pod, "127.0.0.1:8080".parse()?, "machine")?;
    let machine = mesh
        .workload("machine")
        .on(&machine_pod)
        .without_capture()
        .proxy_arg("--serve")
        .proxy_arg("0.0.0.0:9443=127.0.0.1:8080")
        .proxy_arg("--forward")
        .proxy_arg("127.0.0.1:9001=store.shop:80")
        .start()?;

    expect_meshed(&machine.pod, "127.0.0.1:9001".parse()?, "store", "machine")?;
    expect_meshed(&store.pod, "10.96.0.20:80".parse()?, "machine", "store")?;
    // Plaintext to the mesh listener is refused as on any strict port.
    let answer = get(&lab.pod("stranger")?, SocketAddr::new(machine.pod.ipv4().into(), 9443), "/id")?;
    ensure!(answer.contains("403") && answer.contains("outrigger-reason: mtls-required"), "{answer}");
    Ok(())
}

fn redirect_rules(lab: &Lab) -> Result<()> {
    let binaries = Binaries::find()?;
    let pod = lab.pod("bare")?;
    let init = |arguments: &[&str]| pod.run(pod.command(binaries.proxy()).arg("init").args(arguments));
    let rules = || -> Result<String> { pod.run(pod.command("nft").args(["list", "ruleset"]))?.success() };

    let dry = init(&["--dry-run"])?.success()?;
    ensure!(dry.contains("15001") && dry.contains("15006"), "{dry}");
    ensure!(!rules()?.contains("15001"), "a dry run installed rules");
    let unchecked = init(&["--check"])?;
    ensure!(!unchecked.status.success(), "nothing is installed, yet: {unchecked}");
    init(&[])?.success()?;
    let once = rules()?;
    ensure!(once.contains("15001") && once.contains("15006"), "{once}");
    init(&[])?.success()?;
    ensure!(rules()? == once, "the second time changed the rules");
    init(&["--check"])?.success()?;
    init(&["--remove"])?.success()?;
    ensure!(!rules()?.contains("15001"), "rules were left behind: {}", rules()?);
    init(&["--remove"])?.success().context("removing what is not there")?;
    let unknown = init(&["--inbound-prot", "1"])?;
    ensure!(!unknown.status.success() && unknown.stderr.contains("--inbound-port"), "{unknown}");
    Ok(())
}
