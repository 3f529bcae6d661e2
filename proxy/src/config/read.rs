//! From the flags and variables of `run` to a [`Config`], or to everything that is wrong with them.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    num::{NonZeroU16, NonZeroU32, NonZeroUsize},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use outrigger_proto::spec::{Authority, DestinationKey};
use tracing_subscriber::filter::Targets;

use super::{
    AccessLog, Capture, Config, Forward, HostPort, RunArgs, Serve, Token, otel,
    settings::{self, Problems, Settings, Variables},
};
use crate::{
    access_log,
    metrics::{self, merge},
};

pub const DEFAULT_OUTBOUND_PORT: NonZeroU16 = NonZeroU16::new(15001).unwrap();
pub const DEFAULT_INBOUND_PORT: NonZeroU16 = NonZeroU16::new(15006).unwrap();
pub const DEFAULT_ADMIN_PORT: NonZeroU16 = NonZeroU16::new(15000).unwrap();
pub const DEFAULT_STATUS: SocketAddr = SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), 15020);
pub const DEFAULT_MARK: NonZeroU32 = NonZeroU32::new(0x6f72).unwrap();
const DEFAULT_GRACE: Duration = Duration::from_secs(30);
const LONGEST_GRACE: Duration = Duration::from_secs(3600);
const MOST_WORKERS: usize = 256;
/// What a scrape of a hundred proxies a second would be too much of.
const MOST_SERIES: usize = 100_000;
const LONGEST_METRICS_IDLE: Duration = Duration::from_secs(24 * 3600);
/// More threads than this help few workloads and cost memory in all.
const DEFAULT_MOST_WORKERS: usize = 4;

pub const A_PORT: &str = "a port from 1 to 65535";

impl Config {
    /// Reads `run`'s settings. `cpus` is what the machine (or its cgroup) offers.
    pub fn read(
        args: RunArgs,
        variables: &Variables,
        known: &[String],
        cpus: usize,
    ) -> Result<Self, Problems> {
        let mut settings = Settings::new(variables);
        super::variables::check(&mut settings, variables, known);
        let config = read(&mut settings, args, variables, cpus);
        settings.finish()?;
        Ok(config)
    }
}

fn default_workers(cpus: usize) -> NonZeroUsize {
    NonZeroUsize::new(cpus.min(DEFAULT_MOST_WORKERS)).unwrap_or(NonZeroUsize::MIN)
}

/// What is returned is only good if no problem was noted.
fn read(settings: &mut Settings<'_>, mut args: RunArgs, variables: &Variables, cpus: usize) -> Config {
    let flags = otel::Flags::take(&mut args);
    let control_planes = settings.list("control-plane", args.control_plane, "HOST:PORT", host_port);
    if control_planes.is_empty() && !settings.has_problem_with("control-plane") {
        settings.problem("--control-plane is missing: want HOST:PORT of at least one control plane");
    }
    let token = token(settings, args.token, args.token_file);
    let capture = capture(settings, args.no_capture, args.outbound_port, args.inbound_port);
    let a_mark = "a number from 0 to 4294967295, decimal or 0x…";
    let mark = match settings.value("mark", args.mark, a_mark, settings::number) {
        Some(mark) => NonZeroU32::new(mark),
        None => capture.map(|_| DEFAULT_MARK),
    };
    let workers = format!("a number from 1 to {MOST_WORKERS}");
    let workers = settings.value("workers", args.workers, &workers, |text| {
        text.parse().ok().filter(|workers: &NonZeroUsize| workers.get() <= MOST_WORKERS)
    });
    let grace = "a time of at most 1h with its unit, such as 30s";
    let grace = settings.value("drain-grace", args.drain_grace, grace, |text| {
        settings::duration(text).filter(|grace| *grace <= LONGEST_GRACE)
    });
    let a_zone = "a name of at most 63 letters, digits, and . - _ /";
    let config = Config {
        control_planes,
        token,
        capture,
        mark,
        admin_port: settings.value("admin-port", args.admin_port, A_PORT, port).unwrap_or(DEFAULT_ADMIN_PORT),
        status_address: settings
            .value("status-address", args.status_address, "IP:PORT with a port above 0", socket_address)
            .unwrap_or(DEFAULT_STATUS),
        forwards: settings.list(
            "forward",
            args.forward,
            "LOCAL_ADDR=HOST:PORT, such as 127.0.0.1:9001=orders.shop:80",
            forward,
        ),
        serves: settings.list(
            "serve",
            args.serve,
            "MESH_ADDR=APP_ADDR, two different addresses such as 0.0.0.0:9443=127.0.0.1:8080",
            serve,
        ),
        addresses: settings.list("address", args.address, "an IP address that others can dial", own_address),
        zone: settings.value("zone", args.zone, a_zone, zone).unwrap_or_default(),
        state_dir: settings.value("state-dir", args.state_dir, "a directory", path),
        identity_dir: settings.value("identity-dir", args.identity_dir, "a directory", path),
        workers: workers.unwrap_or_else(|| default_workers(cpus)),
        drain_grace: grace.unwrap_or(DEFAULT_GRACE),
        access_log: settings
            .value("access-log", args.access_log, "off, stdout or the path of a file", access_log)
            .unwrap_or(AccessLog::Stdout),
        access_log_format: settings
            .explained("access-log-format", args.access_log_format, access_log_format)
            .flatten(),
        access_log_only: settings
            .explained("access-log-only", args.access_log_only, access_log::Only::parse)
            .unwrap_or_default(),
        metrics_series: metrics_series(settings, args.metrics_series),
        metrics_idle: metrics_idle(settings, args.metrics_idle),
        merge_metrics: settings.list(
            "merge-metrics",
            args.merge_metrics,
            "http://IP:PORT/PATH without a name or a password, such as http://127.0.0.1:8080/metrics",
            merge::Source::parse,
        ),
        otel: otel::read(settings, variables, flags),
        log: settings
            .value(
                "log",
                args.log,
                "a level (error, warn, info, debug, trace) or a list of TARGET=LEVEL",
                log,
            )
            .unwrap_or_else(|| "info".to_owned()),
    };
    if config.capture.is_none() && config.forwards.is_empty() && config.serves.is_empty() {
        settings.problem("--no-capture leaves nothing to do: want at least one --forward or --serve with it");
    }
    distinct_ports(settings, &config);
    config
}

fn token(settings: &mut Settings<'_>, text: Option<String>, file: Option<String>) -> Token {
    let text = settings.secret("token", text);
    let file = settings.value("token-file", file, "the path of a file", path);
    match (text, file) {
        (Some(text), None) => return Token::Text(text.into()),
        (None, Some(file)) => return Token::File(file),
        (Some(_), Some(_)) => settings.problem("--token and --token-file are both given: want one of them"),
        (None, None) => settings.problem(
            "--token-file (or --token) is missing: make a token with `outrigger token create` where the control plane runs",
        ),
    }
    Token::Text("".into())
}

fn metrics_series(settings: &mut Settings<'_>, given: Option<String>) -> usize {
    let legal = format!("a number from {} to {MOST_SERIES}", metrics::LEAST_SERIES);
    let series = settings.value("metrics-series", given, &legal, |text| {
        let series = settings::number(text).map(|series| series as usize);
        series.filter(|series| (metrics::LEAST_SERIES..=MOST_SERIES).contains(series))
    });
    series.unwrap_or(metrics::SERIES_BUDGET)
}

fn metrics_idle(settings: &mut Settings<'_>, given: Option<String>) -> Option<Duration> {
    let legal = "0s, or a time from 1s to 24h with its unit, such as 10m";
    let idle = settings.value("metrics-idle", given, legal, |text| {
        settings::duration(text)
            .filter(|idle| idle.is_zero() || (Duration::from_secs(1)..=LONGEST_METRICS_IDLE).contains(idle))
    });
    Some(idle.unwrap_or(metrics::IDLE)).filter(|idle| !idle.is_zero())
}

fn capture(
    settings: &mut Settings<'_>,
    off: bool,
    outbound_port: Option<String>,
    inbound_port: Option<String>,
) -> Option<Capture> {
    let capture = Capture {
        outbound_port: settings
            .value("outbound-port", outbound_port, A_PORT, port)
            .unwrap_or(DEFAULT_OUTBOUND_PORT),
        inbound_port: settings
            .value("inbound-port", inbound_port, A_PORT, port)
            .unwrap_or(DEFAULT_INBOUND_PORT),
    };
    (!settings.switch("no-capture", off)).then_some(capture)
}

/// Two listeners on one address cannot both open; better to hear it now and by the names of the flags.
fn distinct_ports(settings: &mut Settings<'_>, config: &Config) {
    let loopback = |port: NonZeroU16| SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port.get());
    let everywhere = |port: NonZeroU16| SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), port.get());
    let mut listeners =
        vec![("--admin-port", loopback(config.admin_port)), ("--status-address", config.status_address)];
    if let Some(capture) = config.capture {
        listeners.push(("--outbound-port", loopback(capture.outbound_port)));
        listeners.push(("--inbound-port", everywhere(capture.inbound_port)));
    }
    listeners.extend(config.forwards.iter().map(|forward| ("--forward", forward.local)));
    listeners.extend(config.serves.iter().map(|serve| ("--serve", serve.mesh)));
    let mut by_port: BTreeMap<u16, Vec<(&str, SocketAddr)>> = BTreeMap::new();
    for (flag, address) in listeners {
        let taken = by_port.entry(address.port()).or_default();
        let clash = taken.iter().find(|(_, other)| {
            other.ip() == address.ip() || other.ip().is_unspecified() || address.ip().is_unspecified()
        });
        match clash {
            Some((first, _)) => settings.problem(format!(
                "{flag}: port {} is already taken by {first}: want a port of its own",
                address.port()
            )),
            None => taken.push((flag, address)),
        }
    }
}

// ---- readers of single values ---------------------------------------------------------------------------------------

pub fn port(text: &str) -> Option<NonZeroU16> {
    // `parse` would take a sign.
    text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}

fn socket_address(text: &str) -> Option<SocketAddr> {
    text.parse().ok().filter(|address: &SocketAddr| address.port() != 0)
}

fn host_port(text: &str) -> Option<HostPort> {
    if let Some(address) = socket_address(text) {
        let port = NonZeroU16::new(address.port())?;
        return Some(HostPort { host: address.ip().to_string().into(), port });
    }
    let authority: Authority = text.parse().ok()?;
    Some(HostPort { host: authority.host().into(), port: authority.port() })
}

fn forward(text: &str) -> Option<Forward> {
    let (local, destination) = text.split_once('=')?;
    let destination = match socket_address(destination) {
        Some(address) => DestinationKey::address(address),
        None => DestinationKey::Authority(destination.parse().ok()?),
    };
    Some(Forward { local: socket_address(local)?, destination })
}

fn serve(text: &str) -> Option<Serve> {
    let (mesh, application) = text.split_once('=')?;
    let serve = Serve { mesh: socket_address(mesh)?, application: socket_address(application)? };
    (serve.mesh != serve.application && !serve.application.ip().is_unspecified()).then_some(serve)
}

fn own_address(text: &str) -> Option<IpAddr> {
    let address: IpAddr = text.parse().ok()?;
    (!address.is_unspecified() && !address.is_multicast()).then(|| address.to_canonical())
}

fn zone(text: &str) -> Option<Arc<str>> {
    let legal = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_' | b'/');
    (text.len() <= 63 && text.bytes().all(legal)).then(|| text.into())
}

fn path(text: &str) -> Option<PathBuf> {
    (!text.is_empty()).then(|| text.into())
}

fn access_log(text: &str) -> Option<AccessLog> {
    match text {
        "" => None,
        "off" => Some(AccessLog::Off),
        "stdout" => Some(AccessLog::Stdout),
        file => Some(AccessLog::File(file.into())),
    }
}

fn access_log_format(text: &str) -> Result<Option<access_log::Format>, String> {
    if text == "json" { Ok(None) } else { access_log::Format::parse(text).map(Some) }
}

/// A bare word that is no level would be taken for a target by the parser and silence everything else.
pub fn log(text: &str) -> Option<String> {
    const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];
    let is_level = |part: &str| LEVELS.contains(&part.to_ascii_lowercase().as_str());
    // What the parser takes for a module but none can be called would match nothing, without a word.
    let is_module = |part: &str| {
        !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_:".contains(&byte))
    };
    let parts_are_legal = text.split(',').all(|part| match part.rsplit_once('=') {
        Some((target, level)) => is_module(target) && is_level(level),
        None => is_level(part),
    });
    (parts_are_legal && text.parse::<Targets>().is_ok()).then(|| text.to_owned())
}
