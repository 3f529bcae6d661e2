//! `/events`: what happened, from a number on; whoever asks may wait for the next one. Documented in docs/events.md.

use std::time::Duration;

use super::{Answer, Shared, json, parameters::Parameters, text};
use crate::events::{KEPT, Kind, Wanted};

const KNOWN: [&str; 5] = ["after", "limit", "wait", "kind", "since_ms"];
const LIMIT: u64 = 1_000;
const LONGEST: Duration = Duration::from_secs(60);

pub(super) async fn answer(query: &str, shared: &Shared) -> Answer {
    let (wanted, wait) = match ask(query) {
        Ok(asked) => asked,
        Err(wrong) => return text(http::StatusCode::BAD_REQUEST, wrong),
    };
    let events = shared.hub.events();
    // Who waits keeps a connection: others must find one.
    let place = shared.waiting.try_acquire();
    let page = match (wait, place) {
        (Some(wait), Ok(_place)) => events.wait(&wanted, wait).await,
        (_, _) => events.page(&wanted),
    };
    json(&page)
}

fn ask(query: &str) -> Result<(Wanted, Option<Duration>), String> {
    let mut read = Parameters::read(query, &KNOWN);
    let after = read.number("after", 0..=u64::MAX).unwrap_or(0);
    let limit = read.number("limit", 1..=KEPT as u64).unwrap_or(LIMIT);
    let wait = read.duration("wait", Duration::ZERO..=LONGEST, "25s").filter(|wait| !wait.is_zero());
    let since_ms = read.number("since_ms", 0..=u64::MAX).unwrap_or(0);
    let mut kinds = Vec::new();
    for name in read.text("kind").iter().flat_map(|names| names.split(',')) {
        match Kind::parse(name) {
            Some(kind) => kinds.push(kind),
            None => {
                let all: Vec<_> = Kind::ALL.iter().map(|kind| kind.name()).collect();
                read.refuse("kind", name, &format!("some of {}, with commas between them", all.join(", ")));
            }
        }
    }
    read.finish()?;
    let limit = usize::try_from(limit).unwrap_or(KEPT);
    Ok((Wanted { after, limit, kinds, since_ms }, wait))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn questions_are_read_and_mistakes_told() {
        let (wanted, wait) = ask("after=5&limit=10&wait=25s&kind=draining,proxy-left&since_ms=7").unwrap();
        assert_eq!((wanted.after, wanted.limit, wanted.since_ms), (5, 10, 7));
        assert_eq!(wanted.kinds, [Kind::Draining, Kind::ProxyLeft]);
        assert_eq!(wait, Some(Duration::from_secs(25)));
        assert!(ask("wait=0s").unwrap().1.is_none());
        for (query, expected) in [
            ("limit=0", "limit: \"0\" is not a whole number from 1 to 10000\n"),
            ("wait=2m", "wait: \"2m\" is not a duration such as 25s, from 0s to 60s\n"),
            ("kind=", "kind: \"\" is not some of circuit-opened, circuit-half-open"),
            ("since=1", "\"since\" is not known; known are after, limit, wait, kind, since_ms\n"),
        ] {
            let told = ask(query).unwrap_err();
            assert!(told.starts_with(expected), "{query}: {told}");
        }
    }
}
