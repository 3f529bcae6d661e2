//! A misspelt variable would silently do nothing, so every `OUTRIGGER_*` variable must be one that we know.
//!
//! Exempt are those that Kubernetes sets by itself for a Service whose name begins with "outrigger"
//! (`OUTRIGGER_CONTROL_PLANE_SERVICE_HOST`, `OUTRIGGER_CONTROL_PLANE_PORT=tcp://…`).

use super::settings::{PREFIX, Settings, Variables};

/// Reports every variable that is neither known nor set by Kubernetes. `known` are the names of all subcommands, since
/// they may run in the same environment.
pub(crate) fn check(settings: &mut Settings<'_>, variables: &Variables, known: &[String]) {
    for (name, value) in variables {
        if !name.starts_with(PREFIX) || known.contains(name) || is_service_link(name, value) {
            continue;
        }
        settings.problem(match nearest(name, known) {
            Some(near) => format!("{name}: there is no such variable; did you mean {near}?"),
            None => format!("{name}: there is no such variable"),
        });
    }
}

/// Removes what Kubernetes set under one of *our* names: `OUTRIGGER_OUTBOUND_PORT=tcp://…` is not a port.
pub(crate) fn without_service_links(variables: Variables) -> Variables {
    variables.into_iter().filter(|(name, value)| !is_service_link(name, value)).collect()
}

fn is_service_link(name: &str, value: &str) -> bool {
    let address = ["tcp://", "udp://", "sctp://"].iter().any(|scheme| value.starts_with(scheme));
    // NAME_PORT, NAME_PORT_80_TCP
    if name.contains("_PORT") && address {
        return true;
    }
    if name.ends_with("_SERVICE_HOST") || name.ends_with("_SERVICE_PORT") || name.contains("_SERVICE_PORT_") {
        return true;
    }
    // NAME_PORT_80_TCP_ADDR, …_PORT, …_PROTO
    let Some((_, rest)) = name.split_once("_PORT_") else { return false };
    let mut parts = rest.split('_');
    let number =
        parts.next().is_some_and(|part| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit()));
    let protocol = parts.next().is_some_and(|part| matches!(part, "TCP" | "UDP" | "SCTP"));
    number && protocol && matches!(parts.next(), Some("ADDR" | "PORT" | "PROTO")) && parts.next().is_none()
}

/// The known name with the fewest edits, if it is near enough to be meant.
fn nearest<'a>(name: &str, known: &'a [String]) -> Option<&'a str> {
    let near = known.iter().map(|candidate| (edits(name, candidate), candidate)).min()?;
    (near.0 <= 4).then_some(near.1.as_str())
}

/// Levenshtein's distance, by rows.
pub(crate) fn edits(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, to) in b.iter().enumerate() {
            let substituted = diagonal + usize::from(from != *to);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_distance_counts_edits() {
        for (a, b, distance) in
            [("", "", 0), ("abc", "abc", 0), ("abc", "ac", 1), ("kitten", "sitting", 3), ("", "xy", 2)]
        {
            assert_eq!((edits(a, b), edits(b, a)), (distance, distance), "{a} {b}");
        }
    }

    #[test]
    fn what_kubernetes_sets_is_not_ours() {
        for (name, value, link) in [
            ("OUTRIGGER_CONTROL_PLANE_SERVICE_HOST", "10.0.0.1", true),
            ("OUTRIGGER_CONTROL_PLANE_SERVICE_PORT", "15012", true),
            ("OUTRIGGER_CONTROL_PLANE_SERVICE_PORT_GRPC", "15012", true),
            ("OUTRIGGER_CONTROL_PLANE_PORT", "tcp://10.0.0.1:15012", true),
            ("OUTRIGGER_CONTROL_PLANE_PORT_15012_TCP", "tcp://10.0.0.1:15012", true),
            ("OUTRIGGER_CONTROL_PLANE_PORT_15012_TCP_ADDR", "10.0.0.1", true),
            ("OUTRIGGER_OUTBOUND_PORT", "tcp://10.0.0.1:80", true),
            ("OUTRIGGER_OUTBOUND_PORT", "15001", false),
            ("OUTRIGGER_WORKERS", "2", false),
            ("OUTRIGGER_PORT_X", "2", false),
        ] {
            assert_eq!(is_service_link(name, value), link, "{name}={value}");
        }
    }
}
