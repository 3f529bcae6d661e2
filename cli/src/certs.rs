//! `outrigger certs`: read certificates, from a PEM file or from a running proxy.

use std::{fs, io::stdout, path::PathBuf, process::ExitCode, time::SystemTime};

use anyhow::{Context as _, ensure};
use outrigger_certs::inspect::{self, Summary};
use serde::Deserialize;

use crate::{
    figures::clean,
    http,
    output::{self, Output, relative},
};

#[derive(clap::Subcommand)]
pub(crate) enum Command {
    /// Show the certificates in a PEM file, or those that a proxy uses
    Show(Show),
}

#[derive(clap::Args)]
pub(crate) struct Show {
    #[command(flatten)]
    source: Source,
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
}

#[derive(clap::Args)]
#[group(required = true, multiple = false)]
struct Source {
    /// A PEM file, e.g. ca/ca.pem in the control plane's state directory
    #[arg(long, value_name = "PEM")]
    file: Option<PathBuf>,
    /// A proxy's admin port
    #[arg(long, value_name = "URL", num_args = 0..=1, default_missing_value = "http://127.0.0.1:15000")]
    proxy: Option<String>,
}

/// What a proxy says of its certificates.
#[derive(Deserialize)]
struct Held {
    #[serde(default)]
    chain: Vec<Summary>,
    #[serde(default)]
    roots: Vec<Summary>,
}

pub(crate) fn run(command: Command) -> anyhow::Result<ExitCode> {
    let Command::Show(Show { source, output }) = command;
    let (json, sections) = match source {
        Source { file: Some(file), .. } => {
            let pem = fs::read(&file).with_context(|| file.display().to_string())?;
            let summaries = inspect::describe_pem(&pem).with_context(|| file.display().to_string())?;
            (serde_json::to_value(&summaries)?, vec![(None, summaries)])
        }
        Source { proxy, .. } => {
            let base = proxy.unwrap_or_default();
            let answer = http::get("the proxy", &base, "/certs")?;
            ensure!(answer.status.is_success(), "the proxy at {base} answers {}", answer.status);
            let json: serde_json::Value = serde_json::from_slice(&answer.body)
                .with_context(|| format!("what {base} says is not JSON"))?;
            let held = Held::deserialize(output::clean_all(json.clone()))
                .with_context(|| format!("what {base} says"))?;
            (json, vec![(Some("its certificate"), held.chain), (Some("trusted roots"), held.roots)])
        }
    };
    let mut text = String::new();
    match output {
        Output::Json => text = output::json(&json),
        Output::Table => {
            let now = SystemTime::now();
            for (title, summaries) in sections {
                if let Some(title) = title {
                    let none = if summaries.is_empty() { ": none" } else { "" };
                    text += &format!("{}{none}\n", title.to_uppercase());
                }
                text.extend(summaries.iter().map(|summary| describe(summary, now) + "\n"));
            }
        }
    }
    output::say(&mut stdout(), text.trim_end())?;
    Ok(ExitCode::SUCCESS)
}

fn describe(summary: &Summary, now: SystemTime) -> String {
    let Summary {
        subject,
        alternative_names,
        issuer,
        serial,
        not_before,
        not_after,
        not_after_unix,
        key,
        signature,
        is_ca,
        sha256,
    } = summary;
    let rows = [
        ("subject", subject.clone()),
        ("names", alternative_names.join(", ")),
        ("issuer", issuer.clone()),
        ("serial", serial.clone()),
        ("valid", format!("{not_before} to {not_after} (ends {})", relative(*not_after_unix, now))),
        ("key", key.clone()),
        ("signature", signature.clone()),
        ("authority", if *is_ca { "yes" } else { "no" }.to_owned()),
        ("sha256", sha256.clone()),
    ];
    let lines = rows
        .iter()
        .filter(|(_, value)| !value.is_empty())
        .map(|(name, value)| format!("  {name:<10} {}\n", clean(value)));
    lines.collect()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use outrigger_certs::{Authority, TrustDomain};

    use super::*;

    #[test]
    fn a_root_is_told_with_its_names_and_end() {
        let dir = tempfile::tempdir().unwrap();
        let domain = TrustDomain::parse("mesh.local").unwrap();
        let now = SystemTime::now();
        Authority::load_or_create(dir.path(), &domain, now).unwrap();
        let pem = fs::read(dir.path().join("ca.pem")).unwrap();
        let summaries = inspect::describe_pem(&pem).unwrap();
        let told = describe(&summaries[0], now + Duration::from_secs(1));
        for part in
            ["names      URI:spiffe://mesh.local", "authority  yes", "(ends in 36", &summaries[0].sha256]
        {
            assert!(told.contains(part), "no {part:?} in\n{told}");
        }
    }
}
