//! Figures of all rounds, and the table made of them.
//!
//! Figures are medians over the rounds. The ratio is the median of the ratios within a round, where both sides ran
//! one right after the other, so that a machine that gets slower halfway does not decide it.

use std::{collections::BTreeMap, fmt::Write};

use crate::{
    row::{Figures, Goal, Metric, Row},
    subject::Kind,
};

/// What was measured of one row: figures by metric, in the order in which they first came.
#[derive(Default)]
pub(crate) struct RowResult {
    metrics: Vec<(Metric, Values)>,
    errors: Vec<String>,
}

/// By subject and round.
type Values = BTreeMap<Kind, BTreeMap<usize, f64>>;

#[derive(Default)]
pub(crate) struct Results {
    rows: BTreeMap<Row, RowResult>,
}

/// One line of the table.
struct Line<'a> {
    metric: &'a Metric,
    values: [Option<f64>; Kind::ALL.len()],
    ratio: Option<f64>,
}

impl Results {
    pub(crate) fn add(&mut self, row: Row, kind: Kind, round: usize, figures: Figures) {
        let result = self.rows.entry(row).or_default();
        for (metric, value) in figures {
            let at =
                result.metrics.iter().position(|(known, _)| known.name == metric.name).unwrap_or_else(|| {
                    result.metrics.push((metric, BTreeMap::new()));
                    result.metrics.len() - 1
                });
            result.metrics[at].1.entry(kind).or_default().insert(round, value);
        }
    }

    pub(crate) fn add_error(&mut self, row: Row, kind: Kind, error: &anyhow::Error) {
        self.rows.entry(row).or_default().errors.push(format!("{}: {error:#}", kind.name()));
    }

    pub(crate) fn has_errors(&self) -> bool {
        self.rows.values().any(|row| !row.errors.is_empty())
    }

    /// The table in Markdown, which is readable on a terminal too.
    pub(crate) fn table(&self) -> String {
        let mut text = String::new();
        for (row, result) in &self.rows {
            // Writing to a String cannot fail.
            let _ = writeln!(text, "### {}: {}\n", row.name(), row.title());
            let _ = writeln!(text, "{}", heading());
            for line in result.lines() {
                let _ = writeln!(text, "{}", line.markdown());
            }
            for error in &result.errors {
                let _ = writeln!(text, "\nnot measured: {error}");
            }
            text.push('\n');
        }
        text
    }

    /// Goals reached and all goals that could be judged.
    pub(crate) fn goals(&self) -> (usize, usize) {
        let verdicts: Vec<_> =
            self.rows.values().flat_map(RowResult::lines).filter_map(|line| line.reached()).collect();
        (verdicts.iter().filter(|reached| **reached).count(), verdicts.len())
    }
}

impl RowResult {
    fn lines(&self) -> Vec<Line<'_>> {
        self.metrics
            .iter()
            .map(|(metric, by_kind)| {
                let values = Kind::ALL
                    .map(|kind| by_kind.get(&kind).and_then(|rounds| median(rounds.values().copied())));
                let ratio =
                    by_kind.get(&Kind::Envoy).zip(by_kind.get(&Kind::Outrigger)).and_then(|(envoy, ours)| {
                        let paired = ours.iter().filter_map(|(round, ours)| Some((ours, envoy.get(round)?)));
                        median(paired.filter(|(_, envoy)| **envoy > 0.0).map(|(ours, envoy)| ours / envoy))
                    });
                Line { metric, values, ratio }
            })
            .collect()
    }
}

impl Line<'_> {
    fn reached(&self) -> Option<bool> {
        let ours = self.values[Kind::Outrigger as usize];
        match self.metric.goal? {
            Goal::RatioAtMost(most) => self.ratio.map(|ratio| ratio <= most),
            Goal::RatioAtLeast(least) => self.ratio.map(|ratio| ratio >= least),
            Goal::AtMost(most) => ours.map(|ours| ours <= most),
        }
    }

    fn markdown(&self) -> String {
        let name = match self.metric.unit {
            "" => self.metric.name.to_owned(),
            unit => format!("{}, {unit}", self.metric.name),
        };
        let [direct, envoy, ours] = self.values.map(|value| value.map_or_else(|| "-".to_owned(), number));
        let ratio = self.ratio.map_or_else(|| "-".to_owned(), |ratio| format!("{ratio:.2}"));
        let goal = match self.metric.goal {
            None => String::new(),
            Some(Goal::RatioAtMost(most)) => format!("<= {most} x"),
            Some(Goal::RatioAtLeast(least)) => format!(">= {least} x"),
            Some(Goal::AtMost(most)) => format!("<= {most}"),
        };
        let verdict = self.reached().map_or("", |reached| if reached { "yes" } else { "NO" });
        format!(
            "| {name:<40} | {direct:>8} | {envoy:>8} | {ours:>9} | {ratio:>11} | {goal:<9} | {verdict:<7} |"
        )
    }
}

fn heading() -> String {
    format!(
        "| {:<40} | {:>8} | {:>8} | {:>9} | {:>11} | {:<9} | {:<7} |\n|{}|{}:|{}:|{}:|{}:|{}|{}|",
        "",
        "direct",
        "Envoy",
        "Outrigger",
        "ours/Envoy",
        "goal",
        "reached",
        "-".repeat(42),
        "-".repeat(9),
        "-".repeat(9),
        "-".repeat(10),
        "-".repeat(12),
        "-".repeat(11),
        "-".repeat(9),
    )
}

/// Three significant digits, and all those before the point.
fn number(value: f64) -> String {
    match value.abs() {
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

fn median(values: impl Iterator<Item = f64>) -> Option<f64> {
    let mut values: Vec<_> = values.collect();
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => None,
        odd if odd % 2 == 1 => Some(values[middle]),
        _ => Some(f64::midpoint(values[middle - 1], values[middle])),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CPU: Metric = Metric { name: "CPU client", unit: "us/req", goal: Some(Goal::RatioAtMost(0.75)) };

    fn results(rounds: &[(f64, f64)]) -> Results {
        let mut results = Results::default();
        for (round, (envoy, ours)) in rounds.iter().enumerate() {
            results.add(Row::H1, Kind::Envoy, round, vec![(CPU, *envoy)]);
            results.add(Row::H1, Kind::Outrigger, round, vec![(CPU, *ours)]);
        }
        results
    }

    #[test]
    fn the_ratio_pairs_rounds() {
        // The machine halves its speed in the second and third round: the ratio of medians would be 40/30.
        let results = results(&[(30.0, 20.0), (60.0, 40.0), (60.0, 40.0), (30.0, 20.0), (30.0, 40.0)]);
        let lines = results.rows[&Row::H1].lines();
        assert!((lines[0].ratio.unwrap() - 2.0 / 3.0).abs() < 1e-9);
        assert_eq!(results.goals(), (1, 1));
        assert!(results.table().contains("| yes "), "{}", results.table());
    }

    #[test]
    fn a_missed_goal_is_shown() {
        let results = results(&[(30.0, 23.0)]);
        assert_eq!(results.goals(), (0, 1));
        assert!(results.table().contains("| NO "), "{}", results.table());
    }

    #[test]
    fn without_envoy_there_is_no_verdict() {
        let mut results = Results::default();
        results.add(Row::H1, Kind::Outrigger, 0, vec![(CPU, 20.0)]);
        assert_eq!(results.goals(), (0, 0));
    }

    #[test]
    fn medians() {
        for (values, expected) in [
            (&[][..], None),
            (&[3.0], Some(3.0)),
            (&[9.0, 1.0, 2.0], Some(2.0)),
            (&[4.0, 1.0, 2.0, 9.0], Some(3.0)),
        ] {
            assert_eq!(median(values.iter().copied()), expected);
        }
    }
}
