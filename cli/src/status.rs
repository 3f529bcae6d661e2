//! `outrigger status`: what the control plane runs, errors first.

mod report;

use std::{
    io::stdout,
    process::ExitCode,
    time::{Duration, SystemTime},
};

use anyhow::Context as _;
use report::{Circuits, Events, History, Proxy, Report, Service, SharedLimit};
use serde::Deserialize as _;

use crate::{
    api::ControlPlane,
    output::{Output, clean_all, json, or_dash, relative, roughly, say, table, write},
};

#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    control_plane: ControlPlane,
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let base = &args.control_plane.base;
    let told = args.control_plane.status()?;
    let whole = if args.output == Output::Json { Some(json(&told)) } else { None };
    let report = Report::deserialize(clean_all(told)).with_context(|| format!("what {base} says"))?;
    match whole {
        Some(whole) => say(&mut stdout(), &whole)?,
        None => write(&mut stdout(), &describe(&report, base, SystemTime::now()))?,
    }
    Ok(ExitCode::from(u8::from(!report.configuration.errors.is_empty())))
}

fn describe(report: &Report, base: &str, now: SystemTime) -> String {
    let sections = [
        Some(control_plane(report, base, now)),
        errors(report),
        refusals(report),
        Some(proxies(&report.proxies)),
        Some(services(&report.services)),
        circuits(&report.circuits, now),
        shared_limits(&report.shared_limits),
        telemetry(report),
    ];
    let sections: Vec<_> = sections.into_iter().flatten().collect();
    sections.join("\n\n") + "\n"
}

fn control_plane(report: &Report, base: &str, now: SystemTime) -> String {
    let Report { version, uptime_seconds, ready, reasons, ca, configuration, .. } = report;
    let up = roughly(Duration::from_secs(*uptime_seconds));
    let mut text =
        format!("CONTROL PLANE {base}\n  version {version}, up {up}, trust domain {}", ca.trust_domain);
    if *ready {
        text += "\n  ready";
    }
    for reason in reasons {
        text += &format!("\n  not ready: {reason}");
    }
    let in_force = match configuration.generation {
        0 => "none".to_owned(),
        generation => format!(
            "generation {generation} ({}), {} files, taken {}",
            configuration.version,
            configuration.files.len(),
            relative(configuration.taken_at, now)
        ),
    };
    text += &format!("\n  configuration in force: {in_force}");
    for (index, root) in ca.roots.iter().enumerate() {
        let role = if index == 0 { "signs" } else { "trusted" };
        text += &format!("\n  root {} {role}, ends {}", root.sha256, relative(root.not_after_unix, now));
    }
    if let Some(error) = &ca.error {
        text += &format!("\n  AUTHORITY'S FILES REFUSED: {error}");
    }
    text
}

fn errors(report: &Report) -> Option<String> {
    let errors = &report.configuration.errors;
    if errors.is_empty() {
        return None;
    }
    let in_force = match report.configuration.generation {
        0 => "nothing is in force".to_owned(),
        generation => format!("generation {generation} stays in force"),
    };
    let lines = errors.iter().map(|error| {
        let what = [&error.object, &error.field].into_iter().filter(|part| !part.is_empty());
        let what: String = what.map(|part| format!("{part}: ")).collect();
        format!("\n  {}:{}:{}: {what}{}", error.file, error.line, error.column, error.reason)
    });
    Some(format!("CONFIGURATION ERRORS ({}); {in_force}{}", errors.len(), lines.collect::<String>()))
}

fn refusals(report: &Report) -> Option<String> {
    let lines: Vec<String> = report
        .proxies
        .iter()
        .flat_map(|proxy| proxy.refused.iter().map(move |refusal| (proxy, refusal)))
        .map(|(proxy, refusal)| {
            let errors = refusal.errors.iter().map(|error| format!("{}: {}", error.field, error.reason));
            let errors: Vec<_> = errors.collect();
            format!("\n  {} ({}): {}: {}", proxy.identity, proxy.instance, refusal.key, errors.join("; "))
        })
        .collect();
    (!lines.is_empty()).then(|| format!("REFUSED BY PROXIES ({}){}", lines.len(), lines.concat()))
}

fn proxies(proxies: &[Proxy]) -> String {
    if proxies.is_empty() {
        return "PROXIES (0)".to_owned();
    }
    let rows = proxies.iter().map(|proxy| {
        let state = match proxy {
            Proxy { draining: true, .. } => "draining",
            Proxy { connected: false, .. } => "away",
            Proxy { ready: false, .. } => "not ready",
            Proxy { .. } => "ready",
        };
        let configuration = match proxy {
            Proxy { connected: false, .. } => "-".to_owned(),
            Proxy { presence_only: true, .. } => "elsewhere".to_owned(),
            Proxy { refused, .. } if !refused.is_empty() => format!("refused {}", refused.len()),
            Proxy { in_sync: true, acked_generation, .. } => format!("generation {acked_generation}"),
            Proxy { acked_generation, .. } => format!("generation {acked_generation}, behind"),
        };
        let labels: Vec<_> = proxy.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
        [
            proxy.identity.clone(),
            proxy.instance.chars().take(8).collect(),
            or_dash(proxy.addresses.join(",")),
            or_dash(proxy.zone.as_str()),
            or_dash(labels.join(",")),
            state.to_owned(),
            configuration,
            proxy.subscriptions.to_string(),
            proxy.version.clone(),
        ]
    });
    let header =
        ["IDENTITY", "INSTANCE", "ADDRESS", "ZONE", "LABELS", "STATE", "CONFIGURATION", "KEYS", "VERSION"];
    format!("PROXIES ({})\n{}", proxies.len(), table(header, rows))
}

fn services(services: &[Service]) -> String {
    if services.is_empty() {
        return "SERVICES (0)".to_owned();
    }
    let rows = services.iter().flat_map(|service| {
        service.ports.iter().map(move |port| {
            let endpoints: Vec<_> = port.endpoints.iter().map(|endpoint| endpoint.address.as_str()).collect();
            [
                format!("{}/{}", service.namespace, service.name),
                port.port.to_string(),
                port.protocol.clone(),
                or_dash(service.addresses.join(",")),
                or_dash(port.routes.join(",")),
                or_dash(endpoints.join(",")),
            ]
        })
    });
    let header = ["SERVICE", "PORT", "PROTOCOL", "ADDRESS", "ROUTES", "ENDPOINTS"];
    format!("SERVICES ({})\n{}", services.len(), table(header, rows))
}

/// Nothing where all circuits are closed, as they should be.
fn circuits(circuits: &[Circuits], now: SystemTime) -> Option<String> {
    let rows: Vec<_> = circuits
        .iter()
        .flat_map(|port| port.circuits.iter().map(move |circuit| (port, circuit)))
        .flat_map(|(port, circuit)| circuit.opened_by.iter().map(move |opinion| (port, circuit, opinion)))
        .map(|(port, circuit, opinion)| {
            [
                port.service.clone(),
                circuit.endpoint.clone(),
                opinion.to.clone(),
                format!("{} of {}", circuit.opened_by.len(), circuit.callers),
                opinion.identity.clone(),
                relative(opinion.at / 1000, now),
                opinion.why.clone(),
            ]
        })
        .collect();
    let header = ["SERVICE", "ENDPOINT", "CIRCUIT", "CALLERS", "SEEN BY", "SINCE", "WHY"];
    (!rows.is_empty()).then(|| format!("CIRCUITS NOT CLOSED ({})\n{}", rows.len(), table(header, rows)))
}

fn shared_limits(limits: &[SharedLimit]) -> Option<String> {
    let per_cent = |millionths: u64| format!("{:.1} %", millionths as f64 / 10_000.0);
    let rows: Vec<_> = limits
        .iter()
        .flat_map(|limit| limit.holders.iter().map(move |holder| (limit, holder)))
        .map(|(limit, holder)| {
            [
                limit.limit.clone(),
                holder.identity.clone(),
                holder.address.clone(),
                per_cent(holder.demand),
                per_cent(holder.share),
            ]
        })
        .collect();
    let header = ["SHARED LIMIT", "HELD BY", "AT", "DEMAND", "SHARE"];
    (!rows.is_empty()).then(|| format!("SHARED LIMITS ({})\n{}", limits.len(), table(header, rows)))
}

/// How far back `stat` and `events` can look, and what is wrong with that.
fn telemetry(report: &Report) -> Option<String> {
    let mib = |bytes: u64| format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20));
    let mut lines = Vec::new();
    if let Some(history) = &report.history {
        let History { loaded, bytes, cap_bytes, series, folded, fine_seconds, kept_seconds, disk } = history;
        let back = |seconds: u64| roughly(Duration::from_secs(seconds));
        lines.push(format!(
            "traffic of {}, by the second of {}; {series} series, {} of {} memory, {} of {} disk",
            back(*kept_seconds),
            back(*fine_seconds),
            mib(*bytes),
            mib(*cap_bytes),
            mib(disk.bytes),
            mib(disk.cap_bytes),
        ));
        lines.extend((!loaded).then(|| "what was saved before the start is being read".to_owned()));
        lines.extend((*folded > 0).then(|| format!("NO ROOM for {folded} series: they count as `other`")));
        lines.extend(disk.error.as_ref().map(|error| format!("TRAFFIC NOT ON DISK: {error}")));
    }
    if let Some(Events { last, held, error }) = &report.events {
        lines.push(match held {
            0 => "no events".to_owned(),
            _ => format!("events {}..{last}", last + 1 - held.min(last)),
        });
        lines.extend(error.as_ref().map(|error| format!("EVENTS NOT ON DISK: {error}")));
    }
    (!lines.is_empty()).then(|| format!("TELEMETRY\n  {}", lines.join("\n  ")))
}

#[cfg(test)]
mod tests;
