//! `docs/proxy.md`, `docs/metrics.md` and `docs/tracing.md` promise codes, names, flags and variables; this holds them to
//! the code.

use std::collections::BTreeSet;

use outrigger_core::verdict::Reason;
use outrigger_proxy::{
    config::cli::{Instead, Wanted, read},
    metrics::{Observed, Registry, SERIES_BUDGET},
};

const PAGE: &str = include_str!("../../docs/proxy.md");
const METRICS: &str = include_str!("../../docs/metrics.md");
const TRACING: &str = include_str!("../../docs/tracing.md");
/// Where the standard variables are read.
const OTEL: &str = include_str!("../src/config/otel.rs");
/// Of variables that are about one signal or all.
const OTLP: &str = "OTEL_EXPORTER_OTLP_";

#[test]
fn every_reason_is_explained_with_its_status() {
    for reason in Reason::ALL {
        let row = format!("| `{}` | {} | ", reason.as_str(), reason.http_status().as_u16());
        assert_eq!(PAGE.matches(&row).count(), 1, "{row}");
    }
    let rows = PAGE
        .lines()
        .skip_while(|line| !line.starts_with("## Reasons"))
        .filter(|line| line.starts_with("| `"));
    assert_eq!(rows.count(), Reason::ALL.len(), "no reason that does not exist");
}

#[test]
fn every_metric_is_listed() {
    let observed = Observed { capture_holds: Some(true), ..Observed::default() };
    let page = Registry::new(SERIES_BUDGET).render(&observed);
    let families = page.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next());
    let families: Vec<_> =
        families.map(|family| family.strip_prefix("outrigger_").unwrap_or(family)).collect();
    for family in &families {
        assert!(METRICS.contains(&format!("`{family}`")), "{family} is not in docs/metrics.md");
    }
    // Only the first cell of a row names metrics.
    let rows = METRICS.split("## Who chooses").next().unwrap_or_default().lines();
    let named = rows.filter_map(|row| row.strip_prefix("| `")?.split(" |").next());
    for name in named.flat_map(|cell| cell.split([',', '`', ' '])).filter(|name| name.contains('_')) {
        assert!(name.starts_with("OTEL_") || families.contains(&name), "{name} does not exist");
    }
}

fn start(more: &str, variables: &[(&str, &str)]) -> Result<Wanted, Instead> {
    let line = format!("outrigger-proxy run --control-plane cp:1 --token-file /token {more}");
    let variables = variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    read(line.split_whitespace().map(Into::into).collect(), variables.collect(), 1)
}

/// `--like-this`, in a text.
fn flags(text: &str) -> BTreeSet<&str> {
    let words = text.split(|c: char| !(c.is_ascii_lowercase() || c == '-'));
    words.filter(|word| word.starts_with("--") && word.len() > 4 && !word.ends_with('-')).collect()
}

#[test]
fn every_flag_is_explained() {
    let Err(Instead::Said(help)) = start("--help", &[]) else { panic!("no help") };
    let given = help.lines().map(str::trim_start).filter(|line| line.starts_with('-'));
    let given: BTreeSet<_> = given.filter_map(|line| flags(line).into_iter().next()).collect();
    let told = flags(PAGE);
    for flag in given.iter().filter(|flag| !["--help", "--version"].contains(flag)) {
        assert!(told.contains(flag), "{flag} is not in docs/proxy.md");
        assert!(
            !flag.starts_with("--trace-") || flags(TRACING).contains(flag),
            "{flag} is not in docs/tracing.md"
        );
    }
    // Those of curl and cargo.
    let others = ["--unix-socket", "--bench"];
    for flag in flags(TRACING).into_iter().chain(told).filter(|flag| !others.contains(flag)) {
        assert!(given.contains(flag), "{flag} does not exist");
    }
}

/// Names of variables in the first cells of the tables, the prefix of the first table left out.
fn variables() -> BTreeSet<&'static str> {
    let cells = TRACING.lines().filter_map(|line| line.strip_prefix("| `")?.split(" |").next());
    let words = cells.flat_map(|cell| cell.split([',', ' ', '`'])).filter(|word| !word.is_empty());
    words.filter(|word| word.len() > 2 && word.chars().all(|c| c.is_ascii_uppercase() || c == '_')).collect()
}

#[test]
fn every_variable_of_opentelemetry_is_explained() {
    let quoted = OTEL.split('"').filter(|text| text.len() > 2);
    let names = quoted.filter(|text| text.bytes().all(|byte| byte.is_ascii_uppercase() || byte == b'_'));
    // Signals, and the beginning of all.
    for name in names.filter(|name| !["TRACES", "METRICS", "OTEL_"].contains(name)) {
        let name = name.strip_prefix(OTLP).unwrap_or(name);
        assert!(variables().contains(name), "{name} is not in docs/tracing.md");
    }
    let endpoint = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:4317");
    for name in variables() {
        let own = if name.starts_with("OTEL_") { name.to_owned() } else { format!("{OTLP}{name}") };
        // Of these every text is a name: of files that are looked for later, or of the service.
        let (value, said) = match name {
            "CERTIFICATE" | "OTEL_SERVICE_NAME" => continue,
            "CLIENT_CERTIFICATE" | "CLIENT_KEY" => ("alone", own.as_str()),
            _ => ("no?such value", own.as_str()),
        };
        let set: Vec<_> =
            [endpoint, (&*own, value)].into_iter().skip(usize::from(name == "ENDPOINT")).collect();
        match start("", &set) {
            Err(Instead::Wrong(text)) => assert!(text.contains(said), "{own}: {text}"),
            other => panic!("{own} is not read: {other:?}"),
        }
    }
}
