//! `/metrics`: one answer to a scraper, in the format and encoding that it wants, with the application's own lines.
//!
//! So many scrapes may be under way at once, from the question to the last byte that the scraper has read; beyond them
//! there are words instead of numbers. The proxy's own numbers take about a millisecond of the control runtime. Merging
//! and compressing may take longer, so they happen on a thread beside it.

use std::{io::Write as _, sync::Arc, time::Duration};

use flate2::{Compression, write::GzEncoder};
use http::{HeaderMap, StatusCode};
use tokio::{sync::Semaphore, task};

use super::{Admin, Answer, negotiate};
use crate::metrics::{Format, merge, observe, text};

/// Scrapes under way at once.
pub const MOST: usize = 8;
/// What Prometheus says about its own patience.
const TIMEOUT: &str = "x-prometheus-scrape-timeout-seconds";

/// Places for scrapes.
pub struct Scrapes {
    places: Arc<Semaphore>,
    /// Merging takes memory, so one at a time does, also when those who asked are gone.
    merging: Arc<Semaphore>,
}

impl Default for Scrapes {
    fn default() -> Self {
        Self { places: Arc::new(Semaphore::new(MOST)), merging: Arc::new(Semaphore::new(1)) }
    }
}

impl Scrapes {
    pub(super) fn under_way(&self) -> usize {
        MOST - self.places.available_permits()
    }
}

impl Admin {
    pub(super) async fn metrics(&self, headers: &HeaderMap) -> Answer {
        let Ok(place) = Arc::clone(&self.scrapes.places).try_acquire_owned() else {
            let words =
                format!("{MOST} scrapes are under way, and no more are answered at once: try again.\n");
            return Answer::text(StatusCode::SERVICE_UNAVAILABLE, &words);
        };
        let format = negotiate::format(headers);
        let merged = self.merged(format, patience(headers)).await;
        let observed = observe(&self.ctx, &self.workers).await;
        let mut page = text::encode(&self.ctx.telemetry.metrics.families(&observed), format);
        page.push_str(&merged);
        if format.is_open_metrics() {
            page.push_str(text::END);
        }
        let mut answer = Answer::bytes(format.content_type(), page.into_bytes());
        if negotiate::takes_gzip(headers) {
            answer = compressed(answer).await;
        }
        answer.varies = true;
        answer.place = Some(place);
        answer
    }

    /// The application's lines; nothing if there is no application to ask.
    async fn merged(&self, format: Format, patience: Duration) -> String {
        let merges = Arc::clone(&self.ctx.merges);
        if merges.is_empty() {
            return String::new();
        }
        let answered = merges.fetch(format, patience).await;
        // Never closed.
        let turn = Arc::clone(&self.scrapes.merging).acquire_owned().await;
        let merge = move || {
            let _turn = turn;
            merges.merge(&answered, format)
        };
        // A fault in there costs the application's lines.
        task::spawn_blocking(merge).await.unwrap_or_default()
    }
}

/// How long the application may take: the scraper wants an answer within its own time.
fn patience(headers: &HeaderMap) -> Duration {
    let timeout = headers.get(TIMEOUT).and_then(|value| value.to_str().ok()?.trim().parse::<f64>().ok());
    let timeout = timeout.filter(|seconds| *seconds > 0.0).map(|seconds| seconds / 2.0);
    let timeout = timeout.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    timeout.map_or(merge::LONGEST, |half| half.min(merge::LONGEST))
}

/// The same if it cannot be done.
async fn compressed(answer: Answer) -> Answer {
    let body = answer.body.clone();
    let gzip = move || {
        // The fastest: a scrape is repetitive and gets a tenth as large anyway.
        let mut encoder = GzEncoder::new(Vec::with_capacity(body.len() / 8), Compression::fast());
        encoder.write_all(&body)?;
        encoder.finish()
    };
    match task::spawn_blocking(gzip).await {
        Ok(Ok(body)) => Answer { body: body.into(), encoding: Some("gzip"), ..answer },
        Ok(Err(_)) | Err(_) => answer,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_of_the_scrapers_time_and_never_more_than_ours() {
        for (text, millis) in [
            ("1", 500),
            ("0.5", 250),
            ("10", 2_000),
            ("0", 2_000),
            ("-1", 2_000),
            ("nan", 2_000),
            ("1e300", 2_000),
            ("soon", 2_000),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(TIMEOUT, text.parse().unwrap());
            assert_eq!(patience(&headers), Duration::from_millis(millis), "{text}");
        }
        assert_eq!(patience(&HeaderMap::new()), merge::LONGEST);
    }
}
