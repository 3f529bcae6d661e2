//! `docs/proxy.md` and `docs/metrics.md` promise codes and names; this holds them to the code.

use outrigger_core::verdict::Reason;
use outrigger_proxy::metrics::{Observed, Registry, SERIES_BUDGET};

const PAGE: &str = include_str!("../../docs/proxy.md");
const METRICS: &str = include_str!("../../docs/metrics.md");

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
