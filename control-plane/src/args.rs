//! The command line: every flag also as an environment variable, every mistake told at once.
//!
//! clap stops at the first value it cannot parse, so it is given texts only; [`Args::settings`] parses them
//! and collects what is wrong, each with the name of its flag.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use clap::Parser;
use outrigger_certs::{TrustDomain, authority::Files};
use tracing_subscriber::filter::Targets;

use crate::{ca::Source, duration};

/// Shortest and longest life of a workload's certificate.
const LEAF_LIFE: std::ops::RangeInclusive<Duration> =
    Duration::from_secs(10)..=Duration::from_secs(90 * 24 * 3600);

/// Below that there is no history worth the name.
const HISTORY: std::ops::RangeInclusive<u64> = 1 << 20..=1 << 40;

/// Outrigger's control plane: certificate authority, discovery and policy for the proxies of a mesh.
#[derive(Debug, Parser)]
#[command(name = "outrigger-control-plane", version)]
pub struct Args {
    /// Directory of *.yaml files to read and watch
    #[arg(long, env = "OUTRIGGER_CONFIG_DIR", value_name = "DIR")]
    config_dir: Option<PathBuf>,
    /// Directory for the authority (ca/), known workloads, used tokens, events and the history of traffic; made if it is
    /// not there
    #[arg(long, env = "OUTRIGGER_STATE_DIR", value_name = "DIR")]
    state_dir: Option<PathBuf>,
    /// Trust domain of the mesh
    #[arg(long, env = "OUTRIGGER_TRUST_DOMAIN", value_name = "NAME", default_value = "mesh.local")]
    trust_domain: String,
    /// Where proxies connect (gRPC over TLS)
    #[arg(long, env = "OUTRIGGER_LISTEN", value_name = "ADDR:PORT", default_value = "[::]:15012")]
    listen: String,
    /// Where /healthz, /readyz, /metrics, /status, /stat and /events are answered
    #[arg(long, env = "OUTRIGGER_STATUS_LISTEN", value_name = "ADDR:PORT", default_value = "[::]:15014")]
    status_listen: String,
    /// Life of a workload's certificate; proxies renew at half of it
    #[arg(long, env = "OUTRIGGER_LEAF_LIFE", value_name = "DURATION", default_value = "24h")]
    leaf_life: String,
    /// Issuing certificate and its chain up to the root (PEM), instead of the authority in the state
    /// directory
    #[arg(long, env = "OUTRIGGER_CA_CERT", value_name = "FILE")]
    ca_cert: Option<PathBuf>,
    /// Private key of the issuing certificate (PEM)
    #[arg(long, env = "OUTRIGGER_CA_KEY", value_name = "FILE")]
    ca_key: Option<PathBuf>,
    /// Further roots to trust (PEM)
    #[arg(long, env = "OUTRIGGER_TRUST_ROOTS", value_name = "FILE")]
    trust_roots: Option<PathBuf>,
    /// Memory that the history of traffic may take: 10 s kept for 6 h, as far as there is room
    #[arg(long, env = "OUTRIGGER_HISTORY_MEMORY", value_name = "SIZE", default_value = "64MiB")]
    history_memory: String,
    /// Room that it may take on disk, to come back after a restart
    #[arg(long, env = "OUTRIGGER_HISTORY_DISK", value_name = "SIZE", default_value = "256MiB")]
    history_disk: String,
    /// What to log: error, warn, info, debug or trace, also by module (info,outrigger_control_plane=debug)
    #[arg(long, env = "OUTRIGGER_LOG", value_name = "FILTER", default_value = "info")]
    log: String,
    /// Print a JSON schema of the configuration kinds and exit
    #[arg(long)]
    print_schema: bool,
}

/// What the command line means.
pub struct Settings {
    pub config_dir: PathBuf,
    pub state_dir: PathBuf,
    pub trust_domain: TrustDomain,
    pub listen: SocketAddr,
    pub status_listen: SocketAddr,
    pub leaf_life: Duration,
    pub ca: Source,
    /// In bytes.
    pub history_memory: usize,
    pub history_disk: u64,
    pub log: Targets,
}

impl Args {
    pub fn wants_schema(&self) -> bool {
        self.print_schema
    }

    /// The settings, or everything that is wrong, a line each.
    pub fn settings(self) -> Result<Settings, Vec<String>> {
        let Self {
            config_dir,
            state_dir,
            trust_domain,
            listen,
            status_listen,
            leaf_life,
            ca_cert,
            ca_key,
            trust_roots,
            history_memory,
            history_disk,
            log,
            print_schema: _,
        } = self;
        let mut wrong = Vec::new();
        let mut note = |flag: &str, reason: String| {
            let variable = flag.to_uppercase().replace('-', "_");
            wrong.push(format!("--{flag} (OUTRIGGER_{variable}): {reason}"));
        };
        let config_dir = required("config-dir", config_dir, &mut note);
        let state_dir = required("state-dir", state_dir, &mut note);
        let trust_domain = TrustDomain::parse(&trust_domain)
            .map_err(|error| note("trust-domain", format!("{trust_domain:?} is not one: {error}")))
            .ok();
        let mut address = |flag: &str, text: &str| {
            let parsed = text.parse::<SocketAddr>();
            parsed.map_err(|_| note(flag, format!("{text:?} is not of the form ADDRESS:PORT"))).ok()
        };
        let listen = address("listen", &listen);
        let status_listen = address("status-listen", &status_listen);
        let leaf_life = match duration::parse(&leaf_life) {
            Some(life) if LEAF_LIFE.contains(&life) => Some(life),
            Some(_) => {
                note("leaf-life", format!("{leaf_life:?} is not between 10s and 2160h (90 days)"));
                None
            }
            None => {
                note("leaf-life", format!("{leaf_life:?} is not a duration such as 24h or 90m"));
                None
            }
        };
        let mut size = |flag: &str, text: &str| {
            let size = size(text).filter(|size| HISTORY.contains(size));
            size.or_else(|| {
                note(flag, format!("{text:?} is not a size such as 64MiB, between 1MiB and 1024GiB"));
                None
            })
        };
        let history_memory = size("history-memory", &history_memory);
        let history_disk = size("history-disk", &history_disk);
        let own = state_dir.as_deref().unwrap_or_else(|| Path::new("")).join("ca");
        let ca = match (ca_cert, ca_key) {
            (Some(chain), Some(key)) => Source::Given(Files { chain, key, trust: trust_roots }),
            (None, None) => {
                if trust_roots.is_some() {
                    note(
                        "trust-roots",
                        format!(
                            "goes with --ca-cert and --ca-key; here edit {}",
                            own.join("trust.pem").display()
                        ),
                    );
                }
                Source::Own(own)
            }
            (Some(_), None) => {
                note("ca-key", "is required with --ca-cert".to_owned());
                Source::Own(own)
            }
            (None, Some(_)) => {
                note("ca-cert", "is required with --ca-key".to_owned());
                Source::Own(own)
            }
        };
        let log = log_filter(&log).map_err(|wanted| note("log", format!("{log:?}: {wanted}"))).ok();
        let history = history_memory.and_then(|memory| usize::try_from(memory).ok()).zip(history_disk);
        match (config_dir, state_dir, trust_domain, listen, status_listen, leaf_life, history, log) {
            (
                Some(config_dir),
                Some(state_dir),
                Some(trust_domain),
                Some(listen),
                Some(status_listen),
                Some(leaf_life),
                Some((history_memory, history_disk)),
                Some(log),
            ) if wrong.is_empty() => Ok(Settings {
                config_dir,
                state_dir,
                trust_domain,
                listen,
                status_listen,
                leaf_life,
                ca,
                history_memory,
                history_disk,
                log,
            }),
            _ => Err(wrong),
        }
    }
}

/// A bare word that is no level would be taken for a module by the parser and silence everything else.
fn log_filter(text: &str) -> Result<Targets, &'static str> {
    const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];
    let is_level = |part: &str| LEVELS.contains(&part.to_ascii_lowercase().as_str());
    // What the parser takes for a module but none can be called would match nothing, without a word.
    let is_module = |part: &str| {
        !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_:".contains(&byte))
    };
    let parts_are_legal = text.split(',').all(|part| match part.rsplit_once('=') {
        Some((module, level)) => is_module(module) && is_level(level),
        None => is_level(part),
    });
    let filter = text.parse().ok().filter(|_| parts_are_legal);
    filter.ok_or("want off, error, warn, info, debug, trace, or a list such as info,MODULE=debug")
}

/// Bytes of `64MiB`, `1GiB`, `512KiB` or a plain number of them.
fn size(text: &str) -> Option<u64> {
    let units = [("GiB", 30), ("MiB", 20), ("KiB", 10), ("", 0)];
    let (digits, power) = units.iter().find_map(|(unit, power)| Some((text.strip_suffix(unit)?, power)))?;
    let plain = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    plain.then(|| digits.parse::<u64>().ok()?.checked_mul(1 << power)).flatten()
}

fn required(flag: &str, value: Option<PathBuf>, note: &mut impl FnMut(&str, String)) -> Option<PathBuf> {
    let value = value.filter(|path| !path.as_os_str().is_empty());
    if value.is_none() {
        note(flag, "is required".to_owned());
    }
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(arguments: &[&str]) -> Result<Settings, Vec<String>> {
        let arguments = ["outrigger-control-plane"].iter().chain(arguments);
        Args::try_parse_from(arguments).unwrap().settings()
    }

    #[test]
    fn all_mistakes_are_told_at_once_each_with_its_flag() {
        let told = settings(&[
            "--trust-domain=Mesh",
            "--listen=here",
            "--status-listen=:80",
            "--leaf-life=never",
            "--ca-cert=x",
            "--history-memory=64MB",
            "--history-disk=1KiB",
            "--log=a=b=c",
        ]);
        let told = told.err().unwrap();
        let flags: Vec<_> = told.iter().map(|line| line.split([' ', '=']).next().unwrap()).collect();
        assert_eq!(
            flags,
            [
                "--config-dir",
                "--state-dir",
                "--trust-domain",
                "--listen",
                "--status-listen",
                "--leaf-life",
                "--history-memory",
                "--history-disk",
                "--ca-key",
                "--log"
            ],
            "{told:#?}"
        );
        assert!(told[0].contains("OUTRIGGER_CONFIG_DIR"));
    }

    #[test]
    fn a_log_filter_has_levels() {
        for text in
            ["off", "info", "WARN,outrigger_control_plane=debug", "outrigger_control_plane::hub=trace"]
        {
            assert!(log_filter(text).is_ok(), "{text}");
        }
        for text in ["", "verbose", "info,hub", "hub=loud", "=info", "3", "info,", "[span]=info"] {
            assert!(log_filter(text).is_err(), "{text}");
        }
    }

    #[test]
    fn defaults_are_those_of_the_documentation() {
        let settings =
            settings(&["--config-dir=c", "--state-dir=s"]).unwrap_or_else(|wrong| panic!("{wrong:?}"));
        assert_eq!(settings.listen.to_string(), "[::]:15012");
        assert_eq!(settings.status_listen.to_string(), "[::]:15014");
        assert_eq!(settings.leaf_life, Duration::from_secs(24 * 3600));
        assert_eq!((settings.history_memory, settings.history_disk), (64 << 20, 256 << 20));
        assert!(matches!(settings.ca, Source::Own(dir) if dir == Path::new("s/ca")));
    }

    #[test]
    fn sizes() {
        for (text, expected) in [
            ("64MiB", Some(64 << 20)),
            ("1GiB", Some(1 << 30)),
            ("512KiB", Some(512 << 10)),
            ("1048576", Some(1 << 20)),
            ("", None),
            ("MiB", None),
            ("64MB", None),
            ("-1", None),
            ("+1MiB", None),
            ("18446744073709551615GiB", None),
        ] {
            assert_eq!(size(text), expected, "{text}");
        }
    }

    #[test]
    fn lives_are_bounded() {
        for (life, legal) in [("10s", true), ("9s", false), ("2160h", true), ("2161h", false), ("0s", false)]
        {
            let told = settings(&["--config-dir=c", "--state-dir=s", &format!("--leaf-life={life}")]);
            assert_eq!(told.is_ok(), legal, "{life}");
        }
    }
}
