//! `/stat`: rates, outcomes and percentiles of a window. Documented in docs/history.md.

use std::time::{Duration, Instant};

use outrigger_certs::SpiffeId;
use outrigger_proto::spec::Side;
use serde::Serialize;

use super::{Answer, Shared, json, parameters::Parameters, text};
use crate::{
    history::{KEPT, query::By},
    recorder::{Ask, Span, Stat},
};

const KNOWN: [&str; 7] = ["by", "side", "window", "from", "to", "namespace", "service"];
const WINDOW: Duration = Duration::from_secs(30);

#[derive(Serialize)]
struct Told {
    #[serde(flatten)]
    stat: Stat,
    /// Proxies that have a stream here now, whether they have anything to report or not.
    connected: usize,
}

pub(super) async fn answer(query: &str, shared: &Shared) -> Answer {
    let ask = match ask(query) {
        Ok(ask) => ask,
        Err(wrong) => return text(http::StatusCode::BAD_REQUEST, wrong),
    };
    let hub = shared.hub.clone();
    let stat = shared.recorder.ask(ask, move || {
        let names = hub.names();
        move |workload: &SpiffeId, port: &str| names.name(workload, port)
    });
    let connected = shared.hub.totals(Instant::now()).connected;
    match stat.await {
        Ok(stat) => json(&Told { connected, stat }),
        Err(error) => text(http::StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
    }
}

fn ask(query: &str) -> Result<Ask, String> {
    let mut read = Parameters::read(query, &KNOWN);
    let by = read.choice("by", &[("service", By::Service), ("route", By::Route), ("edge", By::Edge)]);
    let side = read.choice("side", &[("outbound", Side::Outbound), ("inbound", Side::Inbound)]);
    let window = read.duration("window", Duration::from_secs(1)..=Duration::from_secs(KEPT), "30s");
    // Whatever a clock may say, and arithmetic with it stays far from overflow.
    let times = 0..=u64::from(u32::MAX) * 1000;
    let (from, to) = (read.number("from", times.clone()), read.number("to", times));
    let span = match (from, to) {
        (Some(from), Some(to)) if from < to => {
            if window.is_some() {
                read.note("window: not beside from and to");
            }
            Span::Between { from, to }
        }
        (Some(_), Some(_)) => {
            read.note("from: is not before to");
            Span::Last(WINDOW)
        }
        (None, None) => Span::Last(window.unwrap_or(WINDOW)),
        (Some(_), None) | (None, Some(_)) => {
            read.note("from, to: one does not go without the other (milliseconds since 1970)");
            Span::Last(WINDOW)
        }
    };
    let (namespace, service) = (read.text("namespace"), read.text("service"));
    read.finish()?;
    let (Some(by), Some(side)) = (by, side) else { return Err(String::new()) };
    Ok(Ask { by, side, span, namespace, service })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn questions_are_read() {
        let asked =
            ask("by=edge&side=inbound&from=1000&to=2000&namespace=shop&service=shop%2Forders").unwrap();
        let expected = Ask {
            by: By::Edge,
            side: Side::Inbound,
            span: Span::Between { from: 1000, to: 2000 },
            namespace: Some("shop".into()),
            service: Some("shop/orders".into()),
        };
        assert_eq!(asked, expected);
        let asked = ask("").unwrap();
        assert_eq!((asked.by, asked.side, asked.span), (By::Service, Side::Outbound, Span::Last(WINDOW)));
        assert_eq!(ask("window=5m").unwrap().span, Span::Last(Duration::from_secs(300)));
    }

    #[test]
    fn what_is_wrong_names_the_field_and_what_is_wanted() {
        for (query, expected) in [
            ("by=pod", "by: \"pod\" is not one of service, route, edge\n"),
            ("side=", "side: \"\" is not one of outbound, inbound\n"),
            ("window=7h", "window: \"7h\" is not a duration such as 30s, from 1s to 21600s\n"),
            ("window=0s", "window: \"0s\" is not a duration such as 30s, from 1s to 21600s\n"),
            ("from=5", "from, to: one does not go without the other (milliseconds since 1970)\n"),
            ("from=5&to=5", "from: is not before to\n"),
            ("from=5&to=6&window=30s", "window: not beside from and to\n"),
            (
                "from=-1&to=x",
                "from: \"-1\" is not a whole number from 0 to 4294967295000\nto: \"x\" is not a whole number from 0 to 4294967295000\n",
            ),
            (
                "windw=30s",
                "\"windw\" is not known; known are by, side, window, from, to, namespace, service\n",
            ),
        ] {
            assert_eq!(ask(query).unwrap_err(), expected, "{query}");
        }
    }
}
