//! `outrigger token`: the one string that a new workload needs.
//!
//! Tokens are signed here, with the key in the control plane's state directory: no control plane need be
//! running, and whoever can read that directory may let workloads in. A token is a secret until it has
//! expired, so it goes to standard output alone; what it is for is told on standard error.

use std::{
    fs,
    io::{Read as _, stdout},
    path::{Path, PathBuf},
    process::ExitCode,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, anyhow, bail, ensure};
use outrigger_certs::{
    Authority, JoinToken, SpiffeId, TrustDomain,
    authority::Files,
    inspect::{self, hex},
    token::Labels,
};

use crate::{
    figures::clean,
    output::{self, Output, or_dash, relative, say},
};

const DEFAULT_TRUST_DOMAIN: &str = "mesh.local";
const LONGEST: Duration = Duration::from_secs(366 * 24 * 3600);

#[derive(clap::Subcommand)]
pub(crate) enum Command {
    /// Make a join token, signed by the authority in the control plane's state directory
    Create(Create),
    /// Show what a token says
    Inspect(Inspect),
}

#[derive(clap::Args)]
pub(crate) struct Create {
    #[command(flatten)]
    authority: AuthorityArgs,
    /// Namespace of the workload
    #[arg(long, value_name = "NAME")]
    namespace: String,
    /// Service account of the workload
    #[arg(long, value_name = "NAME")]
    service_account: String,
    /// How long the token can be used, e.g. 30m, 1h, 7d
    #[arg(long, value_name = "DURATION", default_value = "1h", value_parser = parse_ttl)]
    ttl: Duration,
    /// A label of the workload, for selectors (may be repeated)
    #[arg(long, value_name = "KEY=VALUE", value_parser = parse_label)]
    label: Vec<(String, String)>,
    /// Let only the first key that comes with the token have a certificate
    #[arg(long)]
    single_use: bool,
}

#[derive(clap::Args)]
pub(crate) struct Inspect {
    /// The token; `-` or nothing: from standard input
    token: Option<String>,
    /// Check the signature with the authority in this directory
    #[arg(long, env = "OUTRIGGER_STATE_DIR", value_name = "DIR")]
    state_dir: Option<PathBuf>,
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
}

#[derive(clap::Args)]
struct AuthorityArgs {
    /// The control plane's state directory
    #[arg(long, env = "OUTRIGGER_STATE_DIR", value_name = "DIR", required_unless_present = "ca_cert")]
    state_dir: Option<PathBuf>,
    /// Issuing certificate and chain, if the control plane is given one
    #[arg(long, env = "OUTRIGGER_CA_CERT", value_name = "FILE", requires = "ca_key")]
    ca_cert: Option<PathBuf>,
    /// Private key of the issuing certificate
    #[arg(long, env = "OUTRIGGER_CA_KEY", value_name = "FILE", requires = "ca_cert")]
    ca_key: Option<PathBuf>,
    /// Further roots, if the chain has none
    #[arg(long, env = "OUTRIGGER_TRUST_ROOTS", value_name = "FILE", requires = "ca_cert")]
    trust_roots: Option<PathBuf>,
    /// Trust domain; by default what the authority's certificate names, else mesh.local
    #[arg(long, env = "OUTRIGGER_TRUST_DOMAIN", value_name = "NAME")]
    trust_domain: Option<String>,
}

pub(crate) fn run(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Create(args) => create(args),
        Command::Inspect(args) => inspect(args),
    }
}

fn create(args: Create) -> anyhow::Result<ExitCode> {
    let Create { authority, namespace, service_account, ttl, label, single_use } = args;
    let authority = authority.load()?;
    let identity =
        SpiffeId::new(authority.trust_domain(), &namespace, &service_account).map_err(|error| {
            anyhow!("--namespace {namespace:?} --service-account {service_account:?}: {error}")
        })?;
    ensure!(
        (namespace.as_str(), service_account.as_str()) != ("outrigger", "control-plane"),
        "{identity} is the control plane's own identity"
    );
    let mut labels = Labels::new();
    for (key, value) in label {
        if let Some(before) = labels.insert(key.clone(), value) {
            bail!("--label {key}=… is given twice (with {before:?} before)");
        }
    }
    let now = SystemTime::now();
    let token = JoinToken::new(&authority, identity, labels, ttl, single_use, now)?;
    let text = token.sign(&authority)?;
    eprintln!("{}", describe(&token, now));
    say(&mut stdout(), &text)?;
    Ok(ExitCode::SUCCESS)
}

fn inspect(args: Inspect) -> anyhow::Result<ExitCode> {
    let Inspect { token, state_dir, output } = args;
    let text = match token {
        Some(token) if token != "-" => token,
        Some(_) | None => {
            let mut text = String::new();
            std::io::stdin().read_to_string(&mut text).context("standard input")?;
            text
        }
    };
    let token = JoinToken::read(text.trim())?;
    let now = SystemTime::now();
    let verdict = match &state_dir {
        Some(dir) => {
            let authority = load(&Files::in_dir(&dir.join("ca")), &token.trust_domain())?;
            Some(JoinToken::verify(text.trim(), &authority, now).map(drop))
        }
        None => None,
    };
    let good = verdict.as_ref().is_none_or(Result::is_ok) && token.expires > now;
    match output {
        Output::Json => {
            let expires = token.expires.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
            let json = serde_json::json!({
                "identity": token.identity.as_str(),
                "labels": token.labels,
                "expires": jiff::Timestamp::try_from(token.expires)?.to_string(),
                "expires_unix": expires,
                "expired": token.expires <= now,
                "single_use": token.single_use,
                "root_sha256": hex(&token.root_sha256),
                "verified": verdict.as_ref().map(Result::is_ok),
                "reason": verdict.as_ref().and_then(|verdict| verdict.as_ref().err()).map(ToString::to_string),
            });
            say(&mut stdout(), &output::json(&json))?;
        }
        Output::Table => {
            let signature = match verdict {
                Some(Ok(())) => "signature: good".to_owned(),
                Some(Err(error)) => format!("refused: {error}"),
                None => "signature: not checked (give --state-dir)".to_owned(),
            };
            say(&mut stdout(), &format!("{}\n{signature}", describe(&token, now)))?;
        }
    }
    Ok(ExitCode::from(u8::from(!good)))
}

fn describe(token: &JoinToken, now: SystemTime) -> String {
    let labels: Vec<_> = token.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
    let expires = token.expires.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let when = jiff::Timestamp::try_from(token.expires).map_or_else(|_| String::new(), |at| at.to_string());
    format!(
        "join token for {}\n  labels   {}\n  expires  {when} ({})\n  use      {}\n  pins     root sha256 {}",
        token.identity,
        or_dash(clean(&labels.join(", "))),
        relative(i64::try_from(expires).unwrap_or(i64::MAX), now),
        if token.single_use { "one key only" } else { "any number of times until it expires" },
        hex(&token.root_sha256),
    )
}

impl AuthorityArgs {
    fn load(self) -> anyhow::Result<Authority> {
        let Self { state_dir, ca_cert, ca_key, trust_roots, trust_domain } = self;
        let files = match (ca_cert, ca_key) {
            (Some(chain), Some(key)) => Files { chain, key, trust: trust_roots },
            _ => {
                let dir = state_dir.unwrap_or_default().join("ca");
                let files = Files::in_dir(&dir);
                ensure!(
                    files.chain.exists() || files.key.exists(),
                    "there is no authority in {}: start the control plane with this --state-dir first",
                    dir.display()
                );
                files
            }
        };
        let trust_domain = match trust_domain {
            Some(name) => name,
            None => named_by(&files.chain)?.unwrap_or_else(|| DEFAULT_TRUST_DOMAIN.to_owned()),
        };
        let trust_domain = TrustDomain::parse(&trust_domain)
            .map_err(|error| anyhow!("trust domain {trust_domain:?}: {error}"))?;
        load(&files, &trust_domain)
    }
}

fn load(files: &Files, trust_domain: &TrustDomain) -> anyhow::Result<Authority> {
    Ok(Authority::load(files, trust_domain, SystemTime::now())?)
}

/// The trust domain that the authority's own certificates carry.
fn named_by(chain: &Path) -> anyhow::Result<Option<String>> {
    let pem = fs::read(chain).with_context(|| chain.display().to_string())?;
    let summaries = inspect::describe_pem(&pem).with_context(|| chain.display().to_string())?;
    let names = summaries.iter().flat_map(|summary| &summary.alternative_names);
    let mut uris = names.filter_map(|name| name.strip_prefix("URI:spiffe://"));
    Ok(uris.next().map(str::to_owned))
}

fn parse_ttl(text: &str) -> Result<Duration, String> {
    let parsed: jiff::Span = text.parse().map_err(|_| "want a duration such as 30m, 1h or 7d".to_owned())?;
    let duration = parsed.to_duration(jiff::SpanRelativeTo::days_are_24_hours());
    let duration = duration.ok().and_then(|duration| Duration::try_from(duration).ok());
    duration
        .filter(|duration| (Duration::from_secs(1)..=LONGEST).contains(duration))
        .ok_or_else(|| "want 1s to 366d".to_owned())
}

fn parse_label(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        Some(_) | None => Err("want KEY=VALUE".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lives_are_read_and_bounded() {
        for (text, seconds) in [("30m", 1800), ("1h", 3600), ("7d", 604_800), ("1h30m", 5400), ("1s", 1)] {
            assert_eq!(parse_ttl(text), Ok(Duration::from_secs(seconds)), "{text}");
        }
        for text in ["0s", "-1h", "500ms", "367d", "soon", "", "1"] {
            assert!(parse_ttl(text).is_err(), "{text}");
        }
    }

    fn args(state_dir: &Path) -> AuthorityArgs {
        let state_dir = Some(state_dir.to_owned());
        AuthorityArgs { state_dir, ca_cert: None, ca_key: None, trust_roots: None, trust_domain: None }
    }

    #[test]
    fn the_trust_domain_is_the_authoritys() {
        let dir = tempfile::tempdir().unwrap();
        let domain = TrustDomain::parse("elsewhere.example").unwrap();
        let missing = args(dir.path()).load().err().unwrap().to_string();
        assert!(missing.contains("start the control plane"), "{missing}");
        Authority::load_or_create(&dir.path().join("ca"), &domain, SystemTime::now()).unwrap();
        let authority = args(dir.path()).load().unwrap();
        assert_eq!(authority.trust_domain(), &domain);

        let now = SystemTime::now();
        let identity = SpiffeId::new(&domain, "shop", "orders").unwrap();
        let labels: Labels = [("app".to_owned(), "orders".to_owned())].into();
        let token = JoinToken::new(&authority, identity, labels, Duration::from_secs(90), true, now).unwrap();
        let told = describe(&token, now);
        for part in
            ["spiffe://elsewhere.example/ns/shop/sa/orders", "app=orders", "(in 90 s)", "one key only"]
        {
            assert!(told.contains(part), "no {part:?} in\n{told}");
        }
        assert!(!told.contains(&token.id), "the id is the secret part");
    }
}
