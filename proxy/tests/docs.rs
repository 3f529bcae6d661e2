//! `docs/proxy.md` promises codes and names; this holds it to the code.

use outrigger_core::verdict::Reason;
use outrigger_proxy::metrics::{Observed, Registry, SERIES_BUDGET};

const PAGE: &str = include_str!("../../docs/proxy.md");

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
    let page = Registry::new(SERIES_BUDGET).render(&Observed::default());
    let families = page.lines().filter_map(|line| line.strip_prefix("# TYPE outrigger_")?.split(' ').next());
    for family in families {
        assert!(PAGE.contains(&format!("`{family}`")), "{family} is not in docs/proxy.md");
    }
}
