use std::time::Duration;

use super::{
    cli::{Instead, Wanted, read},
    settings::Variables,
    *,
};
use crate::{
    access_log,
    init::options::{Action, InitOptions},
};

const LEAST: &str = "run --control-plane cp:15012 --token-file /token";

fn parse(line: &str, variables: &[(&str, &str)]) -> Result<Wanted, String> {
    let arguments =
        ["outrigger-proxy"].into_iter().chain(line.split_ascii_whitespace()).map(Into::into).collect();
    let variables: Variables =
        variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    read(arguments, variables, 8).map_err(|instead| match instead {
        Instead::Said(text) | Instead::Wrong(text) => text,
    })
}

fn run(line: &str, variables: &[(&str, &str)]) -> Config {
    match parse(line, variables) {
        Ok(Wanted::Run(config)) => *config,
        other => panic!("{line}: {other:?}"),
    }
}

fn init(line: &str) -> InitOptions {
    match parse(line, &[]) {
        Ok(Wanted::Init(options)) => *options,
        other => panic!("{line}: {other:?}"),
    }
}

#[test]
fn the_least_that_runs() {
    let config = run(LEAST, &[]);
    assert_eq!(config.control_planes, [HostPort { host: "cp".into(), port: 15012.try_into().unwrap() }]);
    assert_eq!(config.token, Token::File("/token".into()));
    let capture = config.capture.unwrap();
    assert_eq!((capture.outbound_port.get(), capture.inbound_port.get()), (15001, 15006));
    assert_eq!(config.mark.unwrap().get(), 28530);
    assert_eq!(config.status_address, "[::]:15020".parse().unwrap());
    assert_eq!((config.admin_port.get(), config.workers.get()), (15000, 4), "of 8 CPUs");
    assert_eq!((config.drain_grace, config.access_log), (Duration::from_secs(30), AccessLog::Stdout));
    assert_eq!((config.state_dir, config.identity_dir), (None, None));
}

#[test]
fn every_value_is_read() {
    let config = run(
        "run --control-plane cp-a:15012,[fd00::2]:15013 --control-plane 10.0.0.9:1 --token or1.x.y --outbound-port 1001 \
         --inbound-port 1006 --admin-port 1000 --status-address 127.0.0.1:1020 --mark 0x10 \
         --forward 127.0.0.1:9001=Orders.shop:80 --forward [::1]:9002=10.96.0.10:443 \
         --serve 0.0.0.0:9443=127.0.0.1:8080 --address ::ffff:10.0.0.5 --address fd00::5 --zone eu/a --state-dir /s \
         --identity-dir /i --workers 3 --drain-grace 500ms --access-log /log --log warn,outrigger_proxy::sync=debug",
        &[],
    );
    let planes: Vec<String> = config.control_planes.iter().map(ToString::to_string).collect();
    assert_eq!(planes, ["cp-a:15012", "[fd00::2]:15013", "10.0.0.9:1"]);
    assert_eq!(config.token, Token::Text("or1.x.y".into()));
    let forwards: Vec<String> =
        config.forwards.iter().map(|f| format!("{} {}", f.local, f.destination)).collect();
    assert_eq!(forwards, ["127.0.0.1:9001 authority/orders.shop:80", "[::1]:9002 address/10.96.0.10:443"]);
    assert_eq!(config.serves[0].application, "127.0.0.1:8080".parse().unwrap());
    assert_eq!(config.addresses, ["10.0.0.5".parse::<IpAddr>().unwrap(), "fd00::5".parse().unwrap()]);
    assert_eq!((config.mark.unwrap().get(), config.workers.get()), (16, 3));
    assert_eq!((&*config.zone, config.drain_grace), ("eu/a", Duration::from_millis(500)));
    assert_eq!(config.access_log, AccessLog::File("/log".into()));
    assert_eq!((config.access_log_format, config.access_log_only), (None, access_log::Only::default()));
}

#[test]
fn metrics_have_limits_of_their_own() {
    let config = run(LEAST, &[]);
    assert_eq!((config.metrics_series, config.metrics_idle), (2_000, Some(Duration::from_secs(600))));
    assert!(config.merge_metrics.is_empty());
    let config = run(
        &format!("{LEAST} --metrics-series 500 --metrics-idle 0s"),
        &[("OUTRIGGER_MERGE_METRICS", "http://127.0.0.1:8080/metrics, http://[::1]:9/m")],
    );
    assert_eq!((config.metrics_series, config.metrics_idle), (500, None));
    let sources: Vec<String> = config.merge_metrics.iter().map(merge::Source::name).collect();
    assert_eq!(sources, ["127.0.0.1:8080/metrics", "[::1]:9/m"]);
    assert_eq!(merge::check(&config).count(), 0);
    for (more, problem) in [
        ("http://10.0.0.6:80/", "want an address of this workload"),
        ("http://127.0.0.1:15020/metrics", "that is this proxy's own page"),
        ("http://10.0.0.5:15000/stats", "that is this proxy's own page"),
        (
            "http://127.0.0.1:1,http://127.0.0.1:2,http://127.0.0.1:3,http://127.0.0.1:4,http://127.0.0.1:5",
            "5 are given: want at most 4",
        ),
    ] {
        let config = run(&format!("{LEAST} --address 10.0.0.5 --merge-metrics {more}"), &[]);
        let problems: Vec<String> = merge::check(&config).map(|problem| problem.0).collect();
        assert!(problems.len() == 1 && problems[0].contains(problem), "{more}: {problems:?}");
    }
}

#[test]
fn a_flag_wins_over_its_variable() {
    let variables = [
        ("OUTRIGGER_WORKERS", "2"),
        ("OUTRIGGER_CONTROL_PLANE", "a:1,b:2"),
        ("OUTRIGGER_TOKEN_FILE", "/t"),
        ("OUTRIGGER_NO_CAPTURE", "true"),
        ("OUTRIGGER_FORWARD", "127.0.0.1:1=a:80, 127.0.0.1:2=b:80"),
        ("OUTRIGGER_ZONE", ""),
        // Of the other subcommand, and of Kubernetes.
        ("OUTRIGGER_PROXY_UID", "7"),
        ("OUTRIGGER_CONTROL_PLANE_SERVICE_HOST", "10.0.0.1"),
        ("OUTRIGGER_CONTROL_PLANE_PORT", "tcp://10.0.0.1:15012"),
        ("OUTRIGGER_ADMIN_PORT", "tcp://10.0.0.1:15012"),
    ];
    let config = run("run --workers 5", &variables);
    assert_eq!(config.workers.get(), 5);
    assert_eq!((config.control_planes.len(), config.forwards.len()), (2, 2));
    assert_eq!((config.capture, config.mark), (None, None), "no mark without capture");
}

#[test]
fn everything_that_is_wrong_is_said_at_once() {
    let report = parse(
        "run --control-plane cp --workers 0 --wrokers 4 --status-address :15020 --serve 0.0.0.0:1=0.0.0.0:1 --bogus=x",
        &[("OUTRIGGER_MARK", "-1"), ("OUTRIGGER_DRAIN_GRACE", "30"), ("OUTRIGGER_WORKRES", "4"), ("OUTRIGGER_NO_CAPTURE", "maybe")],
    )
    .unwrap_err();
    for part in [
        "--control-plane \"cp\": want HOST:PORT",
        "--workers \"0\": want a number from 1 to 256",
        "--wrokers: there is no such flag; did you mean --workers?",
        "--bogus: there is no such flag",
        "--status-address \":15020\": want IP:PORT",
        "--serve \"0.0.0.0:1=0.0.0.0:1\": want MESH_ADDR=APP_ADDR",
        "OUTRIGGER_MARK \"-1\": want a number",
        "OUTRIGGER_DRAIN_GRACE \"30\": want a time",
        "OUTRIGGER_NO_CAPTURE \"maybe\": want true or false",
        "OUTRIGGER_WORKRES: there is no such variable; did you mean OUTRIGGER_WORKERS?",
        "--token-file (or --token) is missing",
    ] {
        assert!(report.contains(part), "{part:?} is not in\n{report}");
    }
    assert!(report.starts_with("outrigger-proxy run: 11 settings are wrong:\n"), "{report}");
    assert!(!report.contains("--control-plane is missing"), "{report}");
}

#[test]
fn single_mistakes() {
    for (more, problem) in [
        ("--token x", "--token and --token-file are both given"),
        ("--no-capture", "--no-capture leaves nothing to do"),
        ("--outbound-port 15006", "--inbound-port: port 15006 is already taken by --outbound-port"),
        ("--forward 127.0.0.1:15020=a:80", "--forward: port 15020 is already taken by --status-address"),
        (
            "--serve 127.0.0.1:81=127.0.0.1:80 --serve 0.0.0.0:81=127.0.0.1:80",
            "--serve: port 81 is already taken",
        ),
        ("--forward 127.0.0.1:0=a:80", "--forward"),
        ("--forward 127.0.0.1:1=a", "--forward"),
        ("--metrics-series 499", "--metrics-series \"499\": want a number from 500 to 100000"),
        ("--metrics-series 1e4", "--metrics-series \"1e4\": want"),
        ("--metrics-idle 10", "--metrics-idle \"10\": want 0s, or a time"),
        ("--metrics-idle 999ms", "--metrics-idle"),
        ("--metrics-idle 25h", "--metrics-idle"),
        (
            "--merge-metrics https://127.0.0.1:80/",
            "--merge-metrics \"https://127.0.0.1:80/\": want http://IP:PORT/PATH",
        ),
        ("--address 0.0.0.0", "--address \"0.0.0.0\": want"),
        ("--zone a!", "--zone \"a!\": want"),
        ("--log loud", "--log \"loud\": want"),
        ("--log [span]=info", "--log \"[span]=info\": want"),
        ("--log =info", "--log"),
        ("--drain-grace 2h", "--drain-grace \"2h\": want"),
        ("--admin-port +80", "--admin-port \"+80\": want a port"),
        ("--admin-port 65536", "--admin-port"),
    ] {
        let report = parse(&format!("{LEAST} {more}"), &[]).unwrap_err();
        assert!(report.contains(problem) && report.contains("1 setting is wrong"), "{more}:\n{report}");
    }
}

#[test]
fn the_form_of_the_access_log() {
    let format = "%{time} \"%{method} %{path}\" %{status} %{reason|none}";
    let variables = [
        ("OUTRIGGER_ACCESS_LOG_FORMAT", format),
        ("OUTRIGGER_ACCESS_LOG_ONLY", "errors, slower=100ms,sample=0.01"),
    ];
    let config = run(LEAST, &variables);
    assert_eq!(config.access_log_format.unwrap().to_string(), format);
    assert_eq!(config.access_log_only.to_string(), "errors,slower=100ms,sample=0.01");
    assert_eq!(run(&format!("{LEAST} --access-log-format json"), &variables).access_log_format, None);
    for (more, problem) in [
        (
            "--access-log-format %{stauts}",
            "--access-log-format \"%{stauts}\": character 1: there is no field \"stauts\"; did you mean status?",
        ),
        ("--access-log-format text", "--access-log-format \"text\": it names no field: want json, or text"),
        ("--access-log-only error", "--access-log-only \"error\": \"error\": want errors, slower=TIME"),
    ] {
        let report = parse(&format!("{LEAST} {more}"), &[]).unwrap_err();
        assert!(report.contains(problem) && report.contains("1 setting is wrong"), "{more}:\n{report}");
    }
}

#[test]
fn no_report_repeats_a_token() {
    let report = parse("run --token or1.secret.part --workers x", &[]).unwrap_err();
    assert!(!report.contains("secret"), "{report}");
    assert!(!format!("{:?}", Token::Text("or1.secret".into())).contains("secret"));
}

#[test]
fn help_names_the_variable_and_the_default_of_every_flag() {
    for sub in ["run", "init"] {
        let help = parse(&format!("{sub} --help"), &[]).unwrap_err();
        let flags = help.lines().filter_map(|line| line.trim_start().strip_prefix("--"));
        let flags: Vec<&str> = flags.filter_map(|line| line.split([' ', '\n']).next()).collect();
        assert!(flags.len() > 10, "{help}");
        for flag in flags {
            let variable = format!("[env: {}]", settings::variable_of(flag));
            assert!(help.contains(&variable), "{sub} --{flag}: {variable} is not in the help");
        }
    }
    assert!(parse("--version", &[]).unwrap_err().contains(env!("CARGO_PKG_VERSION")));
}

#[test]
fn actions_of_init() {
    assert_eq!(init("init"), InitOptions::default());
    for (flag, action) in
        [("--dry-run", Action::Print), ("--remove", Action::Remove), ("--check", Action::Check)]
    {
        assert_eq!(init(&format!("init {flag}")).action, action);
    }
    let report =
        parse("init --remove --check --inbound-port 15001 --backend ipfw --skip-uids root", &[]).unwrap_err();
    for part in
        ["exclude each other", "are the same", "--backend \"ipfw\": want auto", "--skip-uids \"root\": want"]
    {
        assert!(report.contains(part), "{part:?} is not in\n{report}");
    }
}

#[test]
fn lists_of_init() {
    let options = init(
        "init --skip-inbound-ports 22,15020,80-90 --skip-outbound-ports 3306 --skip-outbound-networks 10.1.0.0/16,10.0.0.0/8,fd00::/8 \
         --skip-uids 7 --proxy-mark 0 --proxy-uid 1000",
    );
    assert_eq!(options.skip_inbound_ports, [22..=22, 80..=90, 15020..=15020]);
    assert_eq!(options.skip_outbound_networks, ["10.0.0.0/8", "fd00::/8"].map(|n| n.parse().unwrap()));
    assert_eq!((options.skip_uids, options.proxy_mark, options.proxy_uid), (vec![7], None, 1000));
}
