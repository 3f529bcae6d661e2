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
use tracing_subscriber::EnvFilter;

use crate::{ca::Source, duration};

/// Shortest and longest life of a workload's certificate.
const LEAF_LIFE: std::ops::RangeInclusive<Duration> =
    Duration::from_secs(10)..=Duration::from_secs(90 * 24 * 3600);

/// Outrigger's control plane: certificate authority, discovery and policy for the proxies of a mesh.
#[derive(Debug, Parser)]
#[command(name = "outrigger-control-plane", version)]
pub struct Args {
    /// Directory of *.yaml files to read and watch
    #[arg(long, env = "OUTRIGGER_CONFIG_DIR", value_name = "DIR")]
    config_dir: Option<PathBuf>,
    /// Directory for the authority (ca/), known workloads and used tokens; made if it is not there
    #[arg(long, env = "OUTRIGGER_STATE_DIR", value_name = "DIR")]
    state_dir: Option<PathBuf>,
    /// Trust domain of the mesh
    #[arg(long, env = "OUTRIGGER_TRUST_DOMAIN", value_name = "NAME", default_value = "mesh.local")]
    trust_domain: String,
    /// Where proxies connect (gRPC over TLS)
    #[arg(long, env = "OUTRIGGER_LISTEN", value_name = "ADDR:PORT", default_value = "[::]:15012")]
    listen: String,
    /// Where /healthz, /readyz, /metrics and /status are answered
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
    pub log: EnvFilter,
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
        let filter = EnvFilter::builder().parse(&log);
        let log = filter.map_err(|error| note("log", format!("{log:?} is not a filter: {error}"))).ok();
        match (config_dir, state_dir, trust_domain, listen, status_listen, leaf_life, log) {
            (
                Some(config_dir),
                Some(state_dir),
                Some(trust_domain),
                Some(listen),
                Some(status_listen),
                Some(leaf_life),
                Some(log),
            ) if wrong.is_empty() => Ok(Settings {
                config_dir,
                state_dir,
                trust_domain,
                listen,
                status_listen,
                leaf_life,
                ca,
                log,
            }),
            _ => Err(wrong),
        }
    }
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
                "--ca-key",
                "--log"
            ],
            "{told:#?}"
        );
        assert!(told[0].contains("OUTRIGGER_CONFIG_DIR"));
    }

    #[test]
    fn defaults_are_those_of_the_documentation() {
        let settings =
            settings(&["--config-dir=c", "--state-dir=s"]).unwrap_or_else(|wrong| panic!("{wrong:?}"));
        assert_eq!(settings.listen.to_string(), "[::]:15012");
        assert_eq!(settings.status_listen.to_string(), "[::]:15014");
        assert_eq!(settings.leaf_life, Duration::from_secs(24 * 3600));
        assert!(matches!(settings.ca, Source::Own(dir) if dir == Path::new("s/ca")));
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
