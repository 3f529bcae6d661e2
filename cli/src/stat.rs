//! `outrigger stat`: rate, success and percentiles of services, routes and edges, once or each second; and
//! `outrigger edges`: who talks to whom.
//!
//! The figures are exact over all proxies: the control plane merges histograms, not percentiles.

pub(crate) mod order;
pub(crate) mod table;
mod watch;

use std::{
    convert::Infallible,
    io::{IsTerminal as _, stderr, stdout},
    process::ExitCode,
    time::Duration,
};

use anyhow::{bail, ensure};
use clap::ValueEnum as _;

use self::{
    order::Sort,
    watch::{Paper, Watch},
};
use crate::{
    api::{Answer, By, ControlPlane, Query, Row, Side, Span, Stat},
    figures::{self, now_ms},
    output::{Output, json, say},
    when::{self, When},
};

#[derive(Clone, clap::Args)]
pub(crate) struct Args {
    /// What the rows are; anything else is the name of a service
    #[arg(value_name = "services|routes|edges", value_parser = What::parse, default_value = "services")]
    what: What,
    /// Only these: a service, route or identity, with or without its namespace and port
    name: Option<String>,
    #[command(flatten)]
    which: Which,
}

#[derive(Clone)]
enum What {
    By(By),
    Service(String),
}

#[derive(Clone, clap::Args)]
pub(crate) struct EdgesArgs {
    /// Only those from or to these: a service, route or identity, with or without its namespace and port
    name: Option<String>,
    #[command(flatten)]
    which: Which,
}

#[derive(Clone, clap::Args)]
struct Which {
    /// Only services of this namespace
    #[arg(long, value_name = "NAME")]
    namespace: Option<String>,
    /// Whose measurement: the caller's proxy's (outbound) or the called one's; by default the caller's, and of
    /// edges also those that only the called one knows
    #[arg(long, value_enum)]
    side: Option<Side>,
    /// The time up to now that the figures are of
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = when::window)]
    window: Duration,
    /// Figures from this time on, e.g. -10m, 2026-11-21T20:00:00Z, 1795291200
    #[arg(long, value_name = "TIME", value_parser = When::parse, allow_hyphen_values = true, conflicts_with_all = ["window", "watch"])]
    from: Option<When>,
    /// … until this one; by default now
    #[arg(long, value_name = "TIME", value_parser = When::parse, allow_hyphen_values = true, requires = "from")]
    to: Option<When>,
    /// Which rows stand first
    #[arg(long, value_enum, default_value = "name")]
    sort: Sort,
    /// Again each second, with the change
    #[arg(long)]
    watch: bool,
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
    #[command(flatten)]
    control_plane: ControlPlane,
}

/// What is asked, again and again perhaps.
#[derive(Clone)]
pub(crate) struct Ask {
    pub(crate) control_plane: ControlPlane,
    pub(crate) query: Query,
    pub(crate) name: Option<String>,
    pub(crate) sort: Sort,
    pub(crate) output: Output,
    /// As a table of security, not of percentiles.
    pub(crate) security: bool,
}

pub(crate) fn run(args: Args) -> anyhow::Result<ExitCode> {
    let Args { what, name, which } = args;
    let (by, name) = what.with(name)?;
    which.run(by, name, false)
}

pub(crate) fn edges(args: EdgesArgs) -> anyhow::Result<ExitCode> {
    let EdgesArgs { name, which } = args;
    which.run(By::Edge, name, true)
}

impl What {
    fn parse(text: &str) -> Result<Self, Infallible> {
        Ok(By::from_str(text, false).map_or_else(|_| Self::Service(text.to_owned()), Self::By))
    }

    fn with(self, name: Option<String>) -> anyhow::Result<(By, Option<String>)> {
        match (self, name) {
            (Self::By(by), name) => Ok((by, name)),
            (Self::Service(service), None) => Ok((By::Service, Some(service))),
            (Self::Service(what), Some(name)) => {
                bail!("want services, routes or edges before {name:?}, not {what:?}")
            }
        }
    }
}

impl Which {
    fn run(self, by: By, name: Option<String>, security: bool) -> anyhow::Result<ExitCode> {
        let span = self.span(now_ms())?;
        let Self { namespace, side, sort, watch, output, control_plane, .. } = self;
        let service = name.clone().filter(|_| by == By::Service);
        let query = Query { by, side, namespace, service, span };
        let ask = Ask { control_plane, query, name, sort, output, security };
        if watch { follow(&ask) } else { once(&ask) }
    }

    fn span(&self, now_ms: i64) -> anyhow::Result<Span> {
        let Some(from) = self.from else { return Ok(Span::Window(self.window)) };
        let from_ms = from.unix_ms(now_ms);
        let to_ms = self.to.map_or(now_ms, |to| to.unix_ms(now_ms));
        let told = |ms: i64| figures::clock(ms, None);
        ensure!(from_ms < now_ms, "--from {} is in the future", told(from_ms));
        ensure!(from_ms < to_ms, "--from {} is not before --to {}", told(from_ms), told(to_ms));
        Ok(Span::Between { from_ms, to_ms })
    }
}

fn once(ask: &Ask) -> anyhow::Result<ExitCode> {
    let mut answer = ask.control_plane.stat(&ask.query)?;
    ask.pick(&mut answer);
    match ask.output {
        Output::Json => say(&mut stdout(), &json(&answer.json))?,
        Output::Table => {
            let room = stdout().is_terminal().then(table::room);
            say(&mut stdout(), &table::lines(ask, &answer.read, None, room).join("\n"))?;
        }
    }
    Ok(match &ask.name {
        Some(name) if answer.read.rows.is_empty() => {
            say(&mut stderr(), &format!("outrigger: nothing that is called {name:?} had traffic"))?;
            ExitCode::FAILURE
        }
        Some(_) | None => ExitCode::SUCCESS,
    })
}

/// Each second, until the user has enough or nobody reads any more.
pub(crate) fn follow(ask: &Ask) -> anyhow::Result<ExitCode> {
    let paper = Paper::of(ask.output, &stdout());
    Watch::new(ask, paper, Duration::from_secs(1)).run(&mut stdout(), &mut stderr(), || true)?;
    Ok(ExitCode::SUCCESS)
}

impl Ask {
    /// Leaves what was asked for, in the order that was asked for.
    fn pick(&self, answer: &mut Answer<Stat>) {
        answer.pick(|row| self.wants(row), |rows| order::sort_by(rows, self.sort, |(row, _)| row));
    }

    fn wants(&self, row: &Row) -> bool {
        self.name.as_deref().is_none_or(|name| order::is_called(row, self.query.by, name))
    }

    /// What is asked, for headings.
    fn about(&self) -> String {
        let what = match self.query.by {
            By::Service => "services",
            By::Route => "routes",
            By::Edge => "edges",
        };
        match self.query.span {
            Span::Window(window) => format!("{what}, last {}", crate::output::roughly(window)),
            Span::Between { from_ms, to_ms } => {
                format!("{what}, {} to {}", figures::clock(from_ms, None), figures::clock(to_ms, None))
            }
        }
    }
}

/// What is to be known of the figures as a whole.
pub(crate) fn remarks(stat: &Stat) -> Vec<String> {
    let mut remarks: Vec<_> = stat.incomplete.iter().map(|why| format!("incomplete: {why}")).collect();
    if stat.begins_ms > stat.from_ms {
        let at = figures::clock(stat.begins_ms, Some(stat.to_ms));
        remarks.push(format!("incomplete: nothing is known from before {at}"));
    }
    if stat.rows_cut > 0 {
        remarks.push(format!("incomplete: {} more rows; --namespace asks for fewer", stat.rows_cut));
    }
    remarks
}

#[cfg(test)]
mod tests;
