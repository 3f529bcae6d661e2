//! `outrigger-bench`: Outrigger and Envoy side by side, the same work in the same run.
//!
//! ```text
//!   wrk, h2load, own load ─▶ client's sidecar ═mTLS═▶ server's sidecar ─▶ nginx
//!   └────── pod ─────────────────────────┘           └──────── pod ───────────┘
//! ```
//!
//! Each subject (no sidecars, Envoy, Outrigger) has two pods with real redirect rules. Rounds alternate between the
//! subjects, figures are medians, processor time is what the scheduler charged to the sidecars. Every ratio is of one
//! run; absolute figures are of one machine and are never asserted. Releases are found beside this program.

use std::{
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use clap::{Parser, ValueEnum};
use outrigger_lab::{Binaries, Entered, enter};

use crate::{
    report::Results,
    row::Row,
    subject::{Kind, Subject},
};

mod closed_loop;
mod envoy_config;
mod load;
mod machine;
mod open_loop;
mod origin;
mod pki;
mod report;
mod row;
mod stream;
mod subject;

/// Outrigger and Envoy side by side
#[derive(Parser)]
#[command(name = "outrigger-bench", version)]
struct Args {
    /// Three short rounds: a first impression in two minutes
    #[arg(long)]
    quick: bool,
    /// Only this row; may be repeated
    #[arg(long, value_enum, value_name = "ROW")]
    only: Vec<Row>,
    /// Only this subject; may be repeated
    #[arg(long, value_enum, value_name = "SUBJECT")]
    subject: Vec<Kind>,
    #[arg(long)]
    rounds: Option<usize>,
    /// Seconds of each measurement
    #[arg(long)]
    seconds: Option<u64>,
    /// Envoy 1.40, as bench/setup.sh installs it
    #[arg(long, value_name = "PATH")]
    envoy: Option<PathBuf>,
    /// Where to write the report; bench/RESULTS.md after a full run
    #[arg(long, value_name = "PATH")]
    out: Option<PathBuf>,
}

struct Plan {
    rows: Vec<Row>,
    kinds: Vec<Kind>,
    rounds: usize,
    duration: Duration,
    envoy: PathBuf,
    out: Option<PathBuf>,
}

fn main() -> ExitCode {
    let args = Args::parse();
    match enter::reexec_or_enter() {
        Ok(Entered::Inside(_)) => {}
        Ok(Entered::Finished(code)) => return code,
        Err(refusal) => {
            eprintln!("outrigger-bench: {refusal}");
            return ExitCode::FAILURE;
        }
    }
    match args.plan().and_then(|plan| run(&plan)) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("outrigger-bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

impl Args {
    fn plan(self) -> Result<Plan> {
        let whole = !self.quick && self.only.is_empty() && self.subject.is_empty();
        let envoy = match self.envoy {
            Some(path) => path,
            None => installed_envoy()?,
        };
        let (rounds, seconds) = if self.quick { (3, 1) } else { (5, 4) };
        let or_all = |rows: Vec<Row>| if rows.is_empty() { Row::value_variants().to_vec() } else { rows };
        Ok(Plan {
            rows: or_all(self.only),
            kinds: if self.subject.is_empty() { Kind::ALL.to_vec() } else { self.subject },
            rounds: self.rounds.unwrap_or(rounds),
            duration: Duration::from_secs(self.seconds.unwrap_or(seconds).max(1)),
            envoy,
            // A partial run must not replace the full report unasked.
            out: self.out.or_else(|| whole.then(|| PathBuf::from("bench/RESULTS.md"))),
        })
    }
}

/// `TARGET/envoy/bin/envoy` beside `TARGET/release/outrigger-bench`.
fn installed_envoy() -> Result<PathBuf> {
    let program = std::env::current_exe()?;
    let target = program.parent().and_then(Path::parent).context("own directory")?;
    let envoy = target.join("envoy/bin/envoy");
    ensure!(envoy.is_file(), "no Envoy at {}: run bench/setup.sh, or name one with --envoy", envoy.display());
    Ok(envoy)
}

/// True when everything could be measured, whether or not it reached its goal.
fn run(plan: &Plan) -> Result<bool> {
    let start = Instant::now();
    let load_before = machine::load_average();
    let mut results = Results::default();
    let mut tls = None;
    let (of_pairs, others): (Vec<Row>, Vec<Row>) = plan.rows.iter().partition(|row| row.is_of_pairs());
    let (lasting, fresh): (Vec<Row>, Vec<Row>) = others.into_iter().partition(|row| *row != Row::Memory);
    if !fresh.is_empty() {
        measure_fresh(plan, &mut results);
    }
    if !of_pairs.is_empty() {
        measure_pairs(plan, &of_pairs, &mut results)?;
    }
    if !lasting.is_empty() {
        let mut subjects =
            plan.kinds.iter().map(|kind| Subject::start(*kind, &plan.envoy)).collect::<Result<Vec<_>>>()?;
        for row in lasting {
            measure_row(plan, row, &mut subjects, &mut results);
        }
        for subject in &subjects {
            tls = tls.or(subject.envoy_tls()?);
        }
    }
    let table = results.table();
    println!("\n{table}");
    let (reached, goals) = results.goals();
    println!("{reached} of {goals} goals reached, {:.0} s", start.elapsed().as_secs_f64());
    if let Some(out) = &plan.out {
        fs::write(out, document(plan, &table, &load_before, tls.as_deref())?)
            .with_context(|| out.display().to_string())?;
        println!("written to {}", out.display());
    }
    Ok(!results.has_errors())
}

/// All rounds of one row; who begins alternates too.
fn measure_row(plan: &Plan, row: Row, subjects: &mut [Subject], results: &mut Results) {
    for round in 0..plan.rounds {
        for subject in subjects.iter_mut() {
            eprint!(
                "\r\x1b[K{}: round {} of {}, {}",
                row.name(),
                round + 1,
                plan.rounds,
                subject.kind.name()
            );
            match row.measure(subject, plan.duration).and_then(|figures| subject.check().map(|()| figures)) {
                Ok(figures) => results.add(row, subject.kind, round, figures),
                Err(error) => results.add_error(row, subject.kind, &error),
            }
        }
        subjects.reverse();
    }
    subjects.sort_by_key(|subject| subject.kind);
    eprint!("\r\x1b[K");
}

/// Memory is that of processes that have just been started, so each round makes new ones.
fn measure_fresh(plan: &Plan, results: &mut Results) {
    for round in 0..plan.rounds.min(3) {
        for kind in plan.kinds.iter().filter(|kind| **kind != Kind::Direct) {
            eprint!("\r\x1b[K{}: round {}, {}", Row::Memory.name(), round + 1, kind.name());
            let measured = Subject::start(*kind, &plan.envoy)
                .and_then(|subject| Row::Memory.measure(&subject, plan.duration));
            match measured {
                Ok(figures) => results.add(Row::Memory, *kind, round, figures),
                Err(error) => results.add_error(Row::Memory, *kind, &error),
            }
        }
    }
    eprint!("\r\x1b[K");
}

/// What a subject's own telemetry costs is found by two of it, which take turns.
fn measure_pairs(plan: &Plan, rows: &[Row], results: &mut Results) -> Result<()> {
    let kinds = plan.kinds.iter().filter(|kind| **kind != Kind::Direct);
    let mut pairs = kinds.map(|kind| Subject::start_pair(*kind, &plan.envoy)).collect::<Result<Vec<_>>>()?;
    for row in rows {
        for round in 0..plan.rounds {
            for pair in &mut pairs {
                let kind = pair[0].kind;
                eprint!("\r\x1b[K{}: round {} of {}, {}", row.name(), round + 1, plan.rounds, kind.name());
                let measured = row.measure_pair(pair, round % 2 == 1, plan.duration);
                match measured
                    .and_then(|figures| pair.iter_mut().try_for_each(Subject::check).map(|()| figures))
                {
                    Ok(figures) => results.add(*row, kind, round, figures),
                    Err(error) => results.add_error(*row, kind, &error),
                }
            }
            pairs.reverse();
        }
    }
    eprint!("\r\x1b[K");
    Ok(())
}

fn document(plan: &Plan, table: &str, load_before: &str, tls: Option<&str>) -> Result<String> {
    let proxy = Binaries::find()?.proxy();
    let machine = machine::describe(&plan.envoy, &proxy, load_before, tls);
    Ok(format!(
        "# Outrigger beside Envoy\n\n\
         Written by `make bench` (`outrigger-bench`); do not edit. Ratios hold from machine to machine, absolute figures do not.\n\n\
         {machine}\n\
         client program -> sidecar -> mutual TLS 1.3 with SPIFFE identities -> sidecar -> nginx (1 KiB answers), two network\n\
         namespaces per subject, redirect rules, one worker per sidecar, JSON access log to a file and metrics on in both.\n\
         {rounds} alternating rounds of {seconds} s per row; medians; CPU is the scheduler's count for the sidecar's threads.\n\n\
         Commands, inside the client's pod: `wrk -t1 -cN -dT http://10.96.0.10:8080/1k` (h1 rows; `connect` adds\n\
         `-H 'Connection: close'`; `large` asks for `/1m` on 8 connections), `h2load -t1 -cN -mM -DT http://10.96.0.10:8081/1k`\n\
         (h2 rows), `wrk -t1 -c64 -dT http://10.96.0.10:8082/1k` (`policies`, each time right after the same load without),\n\
         the same on port 8080 of two pairs that differ in what they tell (`telemetry`: Envoy without access log, statistics and\n\
         tracing against all three, 1 % traced by OTLP over HTTP; ours likewise, but that its metrics have no switch),\n\
         `outrigger-bench`'s own generators (`rate`, `handshake`, `tcp`, `memory`: `bench/src/open_loop.rs`,\n\
         `stream.rs`). Envoy runs as `envoy -c FILE --concurrency 1` with the configuration of `bench/src/envoy_config.rs`.\n\n\
         {table}",
        rounds = plan.rounds,
        seconds = plan.duration.as_secs(),
    ))
}
