//! Which rows, and in which order.

use std::cmp::Reverse;

use clap::ValueEnum;

use crate::{
    api::{By, Row},
    figures,
};

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Sort {
    /// What hurts: most failures first, then the slowest
    Hurt,
    Name,
    Rps,
    /// The least first
    Success,
    P50,
    P99,
    Max,
}

impl Sort {
    const ALL: [Self; 7] =
        [Self::Hurt, Self::Rps, Self::Success, Self::P50, Self::P99, Self::Max, Self::Name];

    pub(crate) fn next(self) -> Self {
        let at = Self::ALL.iter().position(|sort| *sort == self).unwrap_or_default();
        Self::ALL[(at + 1) % Self::ALL.len()]
    }

    pub(crate) fn title(self) -> &'static str {
        match self {
            Self::Hurt => "what hurts",
            Self::Name => "name",
            Self::Rps => "rps",
            Self::Success => "success",
            Self::P50 => "p50",
            Self::P99 => "p99",
            Self::Max => "max",
        }
    }
}

pub(crate) fn sort(rows: &mut [Row], by: Sort) {
    sort_by(rows, by, |row| row);
}

/// Rows that are alike in it stand by name, so that they do not jump.
pub(crate) fn sort_by<T>(rows: &mut [T], by: Sort, row: impl Fn(&T) -> &Row) {
    rows.sort_by_cached_key(|one| name(row(one)));
    let micros = |row: &Row| match by {
        Sort::P50 => row.p50_us,
        Sort::Max => row.max_us,
        Sort::Hurt | Sort::Name | Sort::Rps | Sort::Success | Sort::P99 => row.p99_us,
    };
    match by {
        Sort::Name => {}
        Sort::Hurt => rows.sort_by_key(|one| Reverse((row(one).failed(), row(one).p99_us))),
        Sort::Rps => rows.sort_by(|a, b| row(b).rate.total_cmp(&row(a).rate)),
        Sort::Success => {
            // Nothing is known of what nobody asked: after all others.
            let share = |one: &T| row(one).success.unwrap_or(2.0);
            rows.sort_by(|a, b| share(a).total_cmp(&share(b)));
        }
        Sort::P50 | Sort::P99 | Sort::Max => rows.sort_by_key(|one| Reverse(micros(row(one)))),
    }
}

/// What tells a row from others of its answer.
pub(crate) type Name = (String, String, String, String, String);

pub(crate) fn name(row: &Row) -> Name {
    let or_none = |id: &Option<String>| id.clone().unwrap_or_default();
    (row.service.clone(), row.route.clone(), or_none(&row.source), or_none(&row.target), row.side.clone())
}

/// Whether a user may have meant it.
pub(crate) fn is_called(row: &Row, by: By, name: &str) -> bool {
    let id = |id: &Option<String>| {
        id.as_deref()
            .is_some_and(|id| id == name || is(&figures::identity(id, figures::trust_domain([id])), name))
    };
    is(&row.service, name)
        || match by {
            By::Service => false,
            By::Route => is(&row.route, name),
            By::Edge => is(&row.route, name) || id(&row.source) || id(&row.target),
        }
}

/// `shop/orders:80` is called so, `shop/orders`, `orders:80` and `orders`.
fn is(full: &str, name: &str) -> bool {
    let local = full.split_once('/').map_or(full, |(_, local)| local);
    let without_port = |text: &str| text.rsplit_once(':').map_or(text, |(name, _)| name).to_owned();
    !name.is_empty()
        && (full == name || local == name || without_port(full) == name || without_port(local) == name)
}
