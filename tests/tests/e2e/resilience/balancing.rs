//! Which endpoint gets a request.

use std::{collections::BTreeSet, io::Read, net::Ipv4Addr, time::Duration};

use anyhow::{Result, ensure};
use outrigger_lab::{Lab, Mesh, wait_for};

use crate::support::{
    SOON, Test,
    app::{App, Asked, Say},
    call::{Call, Line, Told},
    farm::{Builder, Farm, HOSTS, Stand, hold, with_and_without, with_and_without_of, zone},
    raw,
    yaml::policy,
};

pub(crate) fn tests() -> Vec<Test> {
    vec![
        Test::in_farm("balancing_round_robin_takes_turns_by_weight", round_robin),
        Test::in_farm("balancing_least_request_looks_at_what_is_under_way", least_request),
        Test::in_farm("balancing_random_looks_at_nothing", random),
        Test::in_farm("balancing_peak_ewma_avoids_the_slow", peak_ewma),
        Test::in_farm("balancing_by_a_key_stays_with_an_endpoint", keys),
        Test::in_farm("balancing_by_a_cookie_sets_it_where_there_is_none", cookie),
        Test::in_farm("balancing_by_a_key_moves_only_the_keys_of_who_is_gone", keys_move),
        Test::in_farm("balancing_prefers_the_own_zone_and_overflows", zones),
        Test::in_farm("balancing_panics_below_a_share", panic),
        Test::in_farm("balancing_of_a_subset_goes_by_a_header", subset),
        Test::in_farm("balancing_is_biased_by_refusals", refusals),
        Test::in_farm("balancing_of_opaque_bytes_goes_by_connection", opaque),
        Test::new("balancing_starts_a_new_endpoint_slowly", slow_start),
    ]
}

const ALL: [usize; HOSTS] = [0, 1, 2, 3, 4];

fn alone<'f>(farm: &'f Farm, hosts: &[usize], lines: &str) -> Builder<'f> {
    let alone = "  outlierEjection: {enabled: false}\n  retries: {attempts: 0}\n";
    farm.stand(hosts).policy(&format!("{alone}{lines}"))
}

fn place(place: usize, _: &Asked) -> Say {
    Say::ok(place.to_string())
}

/// The places that answered, in turn.
fn places(told: &[Told]) -> Vec<usize> {
    told.iter().map(|told| told.body.parse().unwrap_or(usize::MAX)).collect()
}

fn ask(stand: &Stand<'_>, call: &Call, count: usize) -> Result<Vec<usize>> {
    let told = call.in_turn(stand.web(), count)?;
    ensure!(told.iter().all(|told| told.status == 200), "{told:?}");
    Ok(places(&told))
}

fn round_robin(farm: &Farm) -> Result<()> {
    let turns = "  loadBalancer: {algorithm: round-robin}\n";
    with_and_without(
        turns,
        "",
        |lines| alone(farm, &[0, 1, 2, 3], lines).apps(place),
        |stand| {
            let order = ask(stand, &stand.get("/"), 40)?;
            hold!(stand.counts() == [10; 4], "{:?}", stand.counts());
            hold!(order.windows(4).all(|four| four.iter().collect::<BTreeSet<_>>().len() == 4), "{order:?}");
            Ok(Ok(()))
        },
    )?;
    let heavy = |host: usize| if host == 0 { ", weight: 3".to_owned() } else { String::new() };
    with_and_without_of(
        &[&true, &false],
        |weighted| {
            let builder = alone(farm, &[0, 1], turns);
            if *weighted { builder.endpoints(heavy) } else { builder }.apps(place)
        },
        |stand| {
            ask(stand, &stand.get("/"), 40)?;
            hold!(stand.counts() == [30, 10], "{:?}", stand.counts());
            Ok(Ok(()))
        },
    )
}

/// Good, and slower than the others ever are on a busy machine: a peak is remembered.
fn last_is_slow(hosts: usize) -> impl Fn(usize, &Asked) -> Say + Clone + Send + Sync {
    move |place, _| {
        let say = Say::ok(place.to_string());
        if place + 1 == hosts { say.after(Duration::from_millis(150)) } else { say }
    }
}

fn least_request(farm: &Farm) -> Result<()> {
    // What is slow does not matter, one after the other ...
    with_and_without(
        "  loadBalancer: {algorithm: least-request}\n",
        "",
        |lines| alone(farm, &[0, 1], lines).apps(last_is_slow(2)),
        |stand| {
            ask(stand, &stand.get("/"), 40)?;
            let slow = stand.counts()[1];
            // Half of them on average; less than a quarter would be four deviations away.
            hold!(slow >= 8, "the slow one got {slow} of 40");
            Ok(Ok(()))
        },
    )?;
    // ... but who is busy does.
    with_and_without(
        "  loadBalancer: {algorithm: least-request}\n",
        "  loadBalancer: {algorithm: random}\n",
        |lines| {
            alone(farm, &[0, 1], lines).apps(|place, asked| {
                let say = Say::ok(place.to_string());
                if asked.path == "/busy" { say.after(Duration::from_secs(2)) } else { say }
            })
        },
        |stand| {
            let (busy, others) = std::thread::scope(|scope| {
                let busy = scope.spawn(|| ask(stand, &stand.get("/busy"), 1));
                let begun = wait_for(SOON, "the call", || stand.total() == 1);
                let others = begun.and_then(|()| ask(stand, &stand.get("/"), 16));
                (busy.join().expect("busy"), others)
            });
            let (busy, others) = (busy?, others?);
            hold!(!others.contains(&busy[0]), "busy: {busy:?}, {others:?}");
            Ok(Ok(()))
        },
    )
}

fn random(farm: &Farm) -> Result<()> {
    let check = |stand: &Stand<'_>| {
        let order = ask(stand, &stand.get("/"), 60)?;
        let slow = stand.counts()[2];
        // A third on average, with a deviation of under 4.
        hold!((6..=34).contains(&slow), "the slow one got {slow} of 60");
        hold!(order.windows(2).any(|two| two[0] == two[1]), "in turn: {order:?}");
        Ok(Ok(()))
    };
    let stand = |lines: &str| alone(farm, &[0, 1, 2], lines).apps(last_is_slow(3));
    with_and_without("  loadBalancer: {algorithm: random}\n", "", stand, check)?;
    with_and_without(
        "  loadBalancer: {algorithm: random}\n",
        "  loadBalancer: {algorithm: round-robin}\n",
        stand,
        check,
    )
}

fn peak_ewma(farm: &Farm) -> Result<()> {
    // The default, so it is compared with another.
    with_and_without(
        "  loadBalancer: {algorithm: peak-ewma}\n",
        "  loadBalancer: {algorithm: round-robin}\n",
        |lines| alone(farm, &[0, 1, 2], lines).apps(last_is_slow(3)),
        |stand| {
            ask(stand, &stand.get("/"), 60)?;
            hold!(stand.counts()[2] <= 6, "the slow one got {:?} of 60", stand.counts());
            Ok(Ok(()))
        },
    )
}

fn keys(farm: &Farm) -> Result<()> {
    let by_header = |stand: &Stand<'_>, key: usize| stand.get("/").field("x-user", format!("user {key}"));
    let by_cookie =
        |stand: &Stand<'_>, key: usize| stand.get("/").field("cookie", format!("a=b; sid=s{key}"));
    let by_path = |stand: &Stand<'_>, key: usize| stand.get(&format!("/{key}?now={key}"));
    let by_query = |stand: &Stand<'_>, key: usize| stand.get(&format!("/?now=1&user={key}"));
    let by_source = |stand: &Stand<'_>, _: usize| stand.get("/");
    type Keyed = fn(&Stand<'_>, usize) -> Call;
    let cases: [(&str, Keyed, bool); 6] = [
        ("{header: x-user}", by_header, true),
        ("{cookie: {name: sid}}", by_cookie, true),
        ("{path: {}}", by_path, true),
        ("{query: user}", by_query, true),
        // One caller, one key.
        ("{source: identity}", by_source, false),
        ("{source: address}", by_source, false),
    ];
    for algorithm in ["maglev", "ring-hash"] {
        for (on, call, many) in cases {
            with_and_without(
                &format!("  loadBalancer: {{algorithm: {algorithm}, hashOn: [{on}]}}\n"),
                "",
                |lines| alone(farm, &ALL, lines).apps(place),
                |stand| {
                    let mut used = BTreeSet::new();
                    for key in 0..if many { 16 } else { 1 } {
                        let places = ask(stand, &call(stand, key), 6)?;
                        let first = places[0];
                        hold!(places.iter().all(|place| *place == first), "{on} {algorithm}: {places:?}");
                        used.insert(first);
                    }
                    hold!(!many || used.len() >= 3, "{on} {algorithm}: all keys went to {used:?}");
                    Ok(Ok(()))
                },
            )?;
        }
    }
    // The first entry that a request has is its key.
    let both = "  loadBalancer: {algorithm: maglev, hashOn: [{header: x-user}, {query: user}]}\n";
    let stand = alone(farm, &ALL, both).apps(place)?;
    let used: BTreeSet<_> = (0..16)
        .map(|key| ask(&stand, &stand.get(&format!("/?user={key}")).field("x-user", "same"), 1))
        .collect::<Result<_>>()?;
    ensure!(used.len() == 1, "the header comes first: {used:?}");
    Ok(())
}

fn cookie(farm: &Farm) -> Result<()> {
    with_and_without(
        "  loadBalancer: {algorithm: maglev, hashOn: [{cookie: {name: sid, ttl: 1h}}]}\n",
        "",
        |lines| alone(farm, &ALL, lines).apps(place),
        |stand| {
            let mut used = BTreeSet::new();
            for _ in 0..8 {
                let first = stand.send(&stand.get("/"))?;
                let set = first.field("set-cookie").unwrap_or_default().to_owned();
                let whole =
                    set.starts_with("sid=") && set.contains("Max-Age=3600") && set.contains("HttpOnly");
                hold!(whole, "{first:?}");
                let value = set.split(';').next().unwrap_or_default();
                let told = stand.get("/").field("cookie", value).in_turn(stand.web(), 5)?;
                hold!(told.iter().all(|told| told.body == first.body), "{first:?} {told:?}");
                hold!(told.iter().all(|told| told.field("set-cookie").is_none()), "set again: {told:?}");
                used.insert(first.body);
            }
            hold!(used.len() >= 2, "all went to {used:?}");
            Ok(Ok(()))
        },
    )
}

fn keys_move(farm: &Farm) -> Result<()> {
    const KEYS: usize = 30;
    // Where each key goes, before and after one endpoint has begun to fail and is ejected.
    with_and_without(
        "  loadBalancer: {algorithm: maglev, hashOn: [{header: x-user}]}\n",
        "",
        |lines| {
            let ejects =
                "  outlierEjection: {consecutiveFailures: 2, baseEjection: 5m}\n  retries: {attempts: 0}\n";
            farm.stand(&[0, 1, 2, 3]).policy(&format!("{ejects}{lines}")).apps(|place, asked| {
                if place == 0 && asked.headers.contains_key("x-fail") {
                    Say::status(500)
                } else {
                    Say::ok(place.to_string())
                }
            })
        },
        |stand| {
            let call = |key: usize| stand.get("/").field("x-user", key);
            let all = || (0..KEYS).map(|key| Ok(ask(stand, &call(key), 1)?[0])).collect::<Result<Vec<_>>>();
            let before = all()?;
            for key in 0..KEYS {
                for _ in 0..2 {
                    stand.send(&call(key).field("x-fail", 1))?;
                }
            }
            hold!(stand.not_closed()? == [0], "{:?}", stand.transitions()?);
            let after = all()?;
            let moved = |key: &usize| before[*key] != 0 && before[*key] != after[*key];
            let moved = (0..KEYS).filter(moved).count();
            hold!(moved == 0, "{moved} keys of others moved: {before:?} {after:?}");
            hold!(before.contains(&0) && !after.contains(&0), "{before:?} {after:?}");
            Ok(Ok(()))
        },
    )
}

fn zones(farm: &Farm) -> Result<()> {
    let in_zones = |host: usize| format!(", zone: {}", zone(host));
    // web and the hosts 0, 2 and 4 are in zone a.
    with_and_without(
        "  loadBalancer: {algorithm: random, zone: {minHealthyPercent: 70}}\n",
        "  loadBalancer: {algorithm: random}\n",
        |lines| alone(farm, &ALL, lines).endpoints(in_zones).apps(place),
        |stand| {
            let places = ask(stand, &stand.get("/"), 40)?;
            hold!(places.iter().all(|place| zone(*place) == "a"), "{places:?}");
            Ok(Ok(()))
        },
    )?;
    // One of the three fails: two thirds are left, so the zone keeps all if that is enough, and else a part.
    let policy = |least: u8| {
        let balancer =
            format!("  loadBalancer: {{algorithm: random, zone: {{minHealthyPercent: {least}}}}}\n");
        format!(
            "{balancer}  retries: {{attempts: 0}}\n  outlierEjection: {{consecutiveFailures: 1, baseEjection: 5m}}\n"
        )
    };
    with_and_without(
        &policy(100),
        &policy(60),
        |lines| {
            let fails = |host: usize, _: &Asked| {
                if host == 0 { Say::status(500) } else { Say::ok(host.to_string()) }
            };
            farm.stand(&ALL).policy(lines).endpoints(in_zones).apps(fails)
        },
        |stand| {
            let get = stand.get("/");
            let mut line = Line::open(stand.web(), stand.target)?;
            wait_for(SOON, "its ejection", || {
                drop(line.send(&get));
                stand.not_closed().is_ok_and(|out| out == [0])
            })?;
            let places = ask(stand, &get, 120)?;
            let home = places.iter().filter(|place| zone(**place) == "a").count();
            // 80 of 120 on average, with a deviation of 5.
            hold!((50..=110).contains(&home), "{home} of 120 in the own zone");
            Ok(Ok(()))
        },
    )
}

fn panic(farm: &Farm) -> Result<()> {
    with_and_without(
        "panicPercent: 50, ",
        "",
        |panic| {
            let lines = format!(
                "  loadBalancer: {{{panic}algorithm: round-robin}}\n  retries: {{attempts: 0}}\n  outlierEjection: \
                 {{consecutiveFailures: 1, baseEjection: 5m, maxEjectedPercent: 100}}\n"
            );
            let fails = |place: usize, asked: &Asked| {
                if place > 0 && asked.path == "/fail" { Say::status(500) } else { Say::ok("good") }
            };
            farm.stand(&[0, 1, 2, 3]).policy(&lines).apps(fails)
        },
        |stand| {
            stand.get("/fail").in_turn(stand.web(), 24)?;
            hold!(stand.not_closed()? == [1, 2, 3], "{:?}", stand.not_closed()?);
            // One of four is left, so everybody is asked as if nothing had happened.
            let before = stand.counts();
            ask(stand, &stand.get("/"), 12).or_else(|_| Ok::<_, anyhow::Error>(Vec::new()))?;
            let after = stand.counts();
            let got: Vec<_> = after.iter().zip(before).map(|(after, before)| after - before).collect();
            hold!(got == [3; 4], "{got:?}");
            Ok(Ok(()))
        },
    )
}

fn subset(farm: &Farm) -> Result<()> {
    let version = |host: usize| format!(", labels: {{version: v{}}}", host % 2);
    let stand = |lines: &str| alone(farm, &[0, 1, 2, 3], lines).endpoints(version).apps(place);
    with_and_without(
        "  loadBalancer: {subset: {label: version, header: x-version}}\n",
        "",
        stand,
        |stand| {
            for version in 0..2 {
                let call = stand.get("/").field("x-version", format!("v{version}"));
                let places = ask(stand, &call, 12)?;
                hold!(places.iter().all(|place| place % 2 == version), "v{version}: {places:?}");
            }
            // Without the header, or with one that nobody has, any will do.
            let any = ask(stand, &stand.get("/"), 24)?;
            let unknown = ask(stand, &stand.get("/").field("x-version", "v9"), 24)?;
            for places in [any, unknown] {
                let versions: BTreeSet<_> = places.iter().map(|place| place % 2).collect();
                hold!(versions.len() == 2, "{places:?}");
            }
            Ok(Ok(()))
        },
    )?;
    with_and_without(
        "  loadBalancer: {subset: {label: version, header: x-version, otherwise: none}}\n",
        "  loadBalancer: {subset: {label: version, header: x-version}}\n",
        stand,
        |stand| {
            let told = stand.send(&stand.get("/").field("x-version", "v9"))?;
            hold!(told.status == 503 && told.reason() == "no-endpoints", "{told:?}");
            Ok(Ok(()))
        },
    )
}

fn refusals(farm: &Farm) -> Result<()> {
    // The quickest one refuses everything. A fast failure of another kind attracts requests, as it must not.
    with_and_without_of(
        &[&429, &404],
        |status| {
            let status = *status;
            let lines = "  loadBalancer: {algorithm: least-request}\n";
            alone(farm, &[0, 1, 2], lines).apps(move |place, _| {
                if place == 0 { Say::status(status).field("retry-after", 60) } else { Say::ok("good") }
            })
        },
        |stand| {
            stand.get("/").in_turn(stand.web(), 40)?;
            hold!(stand.counts()[0] <= 3, "{:?}", stand.counts());
            Ok(Ok(()))
        },
    )
}

fn opaque(farm: &Farm) -> Result<()> {
    with_and_without(
        "  loadBalancer: {algorithm: round-robin}\n",
        "  loadBalancer: {algorithm: maglev, hashOn: [{source: identity}]}\n",
        |lines| {
            let policy = format!("  outlierEjection: {{enabled: false}}\n{lines}");
            let builder = farm.stand(&[0, 1]).policy(&policy).protocol("tcp");
            let port = builder.port();
            for host in [0, 1] {
                let address = std::net::SocketAddr::from(([0, 0, 0, 0], port));
                let greet = vec![outrigger_testkit::raw::Step::Write(host.to_string().into())];
                let server = || outrigger_testkit::raw::RawServer::start(address, vec![greet]);
                std::mem::forget(farm.hosts[host].pod.enter(server)??);
            }
            builder.empty()
        },
        |stand| {
            let mut counts = [0; 2];
            for _ in 0..10 {
                let mut stream = raw::connect(stand.web(), stand.target)?;
                let mut who = [0];
                stream.read_exact(&mut who)?;
                counts[usize::from(who[0] - b'0')] += 1;
            }
            hold!(counts == [5, 5], "{counts:?}");
            Ok(Ok(()))
        },
    )
}

fn slow_start(lab: &Lab) -> Result<()> {
    // One endpoint has an address that no workload has told, so it has always been there for all that is known; the other
    // one has just become ready. Both services have both.
    let old = lab.pod("old")?;
    let known = Ipv4Addr::new(192, 0, 2, 9);
    old.add_address(known.into())?;
    let service = |name: &str, address: &str| {
        format!(
            "apiVersion: outrigger.dev/v1alpha1\nkind: MeshService\nmetadata: {{name: {name}, namespace: shop}}\nspec:\n  \
             addresses: [{address}]\n  ports: [{{port: 80, targetPort: 8080, appProtocol: http}}]\n  endpoints:\n  - \
             {{address: {known}, identity: \"spiffe://mesh.local/ns/shop/sa/store\"}}\n  selector: {{app: store}}\n"
        )
    };
    let balancer = |name: &str, more: &str| {
        let target = format!("  targetRef: {{kind: Service, name: {name}}}\n");
        policy("TrafficPolicy", name, &format!("{target}  loadBalancer: {{algorithm: random{more}}}\n"))
    };
    let mesh = Mesh::builder()
        .file(
            "with.yaml",
            format!("{}---\n{}", service("with", "10.96.0.10"), balancer("with", ", slowStart: 10m")),
        )
        .file("without.yaml", format!("{}---\n{}", service("without", "10.96.0.11"), balancer("without", "")))
        .start(lab)?;
    let _old = mesh
        .workload("old")
        .on(&old)
        .service_account("store")
        .label("app", "old")
        .proxy_arg("--address")
        .proxy_arg(old.ipv4().to_string())
        .start()?;
    let web = mesh.workload("web").start()?;
    let old_app = App::start(&old, 8080, |_| Say::ok("old"))?;
    let new = mesh.workload("new").service_account("store").label("app", "store").start()?;
    let new_app = App::start(&new.pod, 8080, |_| Say::ok("new"))?;
    let mut shares = Vec::new();
    for address in [[10, 96, 0, 10], [10, 96, 0, 11]] {
        let get = Call::get((address, 80).into(), "/");
        wait_for(SOON, "both endpoints", || {
            let before = new_app.count();
            drop(get.in_turn(&web.pod, 20));
            new_app.count() > before
        })?;
        let (old, new) = (old_app.count(), new_app.count());
        let told = get.in_turn(&web.pod, 200)?;
        ensure!(told.iter().all(|told| told.status == 200), "{told:?}");
        let (old, new) = (old_app.count() - old, new_app.count() - new);
        ensure!(old + new == 200, "{old} and {new}");
        shares.push(new);
    }
    let [slow, full] = shares[..] else { anyhow::bail!("{shares:?}") };
    // A tenth and a half on average, with deviations of 4 and 7.
    ensure!((1..=45).contains(&slow), "a new endpoint got {slow} of 200");
    ensure!((65..=135).contains(&full), "the check cannot fail: without slow start it got {full} of 200");
    Ok(())
}
