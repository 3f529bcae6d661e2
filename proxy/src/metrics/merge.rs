//! The application's own metrics in the same scrape (`--merge-metrics`).
//!
//! They are fetched when somebody scrapes, within a deadline, read as the format that they say they are, and written in
//! the one that the scraper gets. A source that is slow, broken or talks nonsense costs its own lines and nothing else:
//! `outrigger_merge_up` is 0 then, and `/stats` says why.
//!
//! It asks only what the configuration names, follows no redirect, and takes nothing that could be taken for the proxy's.

use std::{
    cell::Cell,
    num::NonZeroU32,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use futures_util::future::join_all;
use http::{
    Request, Response, StatusCode,
    header::{ACCEPT, ACCEPT_ENCODING, CONNECTION, CONTENT_ENCODING, CONTENT_TYPE, HOST, USER_AGENT},
};
use http_body_util::{BodyExt as _, Empty};
use hyper::{body::Incoming, client::conn::http1};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use tokio::{task, time};

use super::text::Format;
use crate::path::dial;

mod read;
mod source;
mod write;

#[cfg(test)]
mod tests;

pub use read::Cause;
pub use source::{MOST_SOURCES, Source, check};

/// Bytes that all sources together may answer to one scrape.
pub const MOST_BYTES: usize = 8 << 20;
/// How long they may take, unless the scraper has less time itself.
pub const LONGEST: Duration = Duration::from_secs(2);
/// Of an answer's head.
const HEAD_BYTES: usize = 64 << 10;

/// What the configuration names, and how the last attempts went.
#[derive(Default)]
pub struct Merges {
    sources: Vec<Source>,
    mark: Option<NonZeroU32>,
    standing: Mutex<Vec<Standing>>,
}

/// One source as `/stats` shows it.
#[derive(Clone, Debug, Serialize)]
pub struct Standing {
    pub source: String,
    /// Why the last attempt failed; `None`: it did not.
    pub why: Option<String>,
    /// Lines of the last answer that were taken.
    pub lines: u64,
    /// Lines left out so far, by cause.
    pub dropped: Vec<(&'static str, u64)>,
}

/// What a source has answered.
pub struct Answered {
    source: usize,
    body: Vec<u8>,
    open_metrics: bool,
}

// === impl Merges ===

impl Merges {
    /// `mark`: what exempts our connections from the redirect rules.
    pub fn new(sources: &[Source], mark: Option<NonZeroU32>) -> Self {
        let standing = sources.iter().map(|source| Standing {
            source: source.name(),
            why: Some("nobody has scraped this proxy yet".to_owned()),
            lines: 0,
            dropped: Cause::ALL.map(|cause| (cause.name(), 0)).to_vec(),
        });
        Self { sources: sources.to_vec(), mark, standing: Mutex::new(standing.collect()) }
    }

    pub fn is_empty(&self) -> bool {
        self.sources.is_empty()
    }

    pub fn standing(&self) -> Vec<Standing> {
        self.lock().clone()
    }

    /// Asks all sources at once. Those that fail are noted and left out.
    pub async fn fetch(&self, format: Format, within: Duration) -> Vec<Answered> {
        let left = Cell::new(MOST_BYTES);
        let asked = self.sources.iter().map(|source| {
            let left = &left;
            async move {
                match time::timeout(within, ask(source, self.mark, format, left)).await {
                    Ok(answer) => answer,
                    Err(_) => Err(format!("no whole answer within {} ms", within.as_millis())),
                }
            }
        });
        let answers = join_all(asked).await;
        let mut answered = Vec::new();
        let mut standing = self.lock();
        for (index, (answer, standing)) in answers.into_iter().zip(standing.iter_mut()).enumerate() {
            standing.lines = 0;
            standing.why = match answer {
                Ok((body, open_metrics)) => {
                    answered.push(Answered { source: index, body, open_metrics });
                    None
                }
                Err(why) => Some(why),
            };
        }
        answered
    }

    /// The lines of all of them in this format, without the end of OpenMetrics. Takes time: not for a runtime.
    pub fn merge(&self, answered: &[Answered], format: Format) -> String {
        let mut pages = read::Pages::default();
        for answer in answered {
            let outcome = pages.read(&answer.body, answer.open_metrics);
            if let Some(standing) = self.lock().get_mut(answer.source) {
                standing.note(&outcome);
            }
        }
        write::encode(&pages, format)
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Standing>> {
        self.standing.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl Standing ===

impl Standing {
    fn note(&mut self, outcome: &read::Outcome) {
        self.lines = outcome.lines;
        if outcome.cut_short {
            self.why = Some("the answer has no `# EOF` at its end, so it is not whole".to_owned());
        }
        for (count, more) in self.dropped.iter_mut().zip(outcome.dropped) {
            count.1 += more;
        }
    }
}

// ---- asking ---------------------------------------------------------------------------------------------------------

/// The body, and whether it says to be OpenMetrics.
async fn ask(
    source: &Source,
    mark: Option<NonZeroU32>,
    format: Format,
    left: &Cell<usize>,
) -> Result<(Vec<u8>, bool), String> {
    let stream = dial::dial_from_reserve(source.address, mark).await.map_err(|error| error.to_string())?;
    let mut client = http1::Builder::new();
    client.max_buf_size(HEAD_BYTES);
    let handshake = client.handshake::<_, Empty<Bytes>>(TokioIo::new(stream));
    let (mut sender, connection) = handshake.await.map_err(|error| error.to_string())?;
    // Ends with the connection, which ends with the sender.
    let driver = Aborted(task::spawn_local(async move { drop(connection.await) }));
    let request = request(source, format).map_err(|error| error.to_string())?;
    let response = sender.send_request(request).await.map_err(|error| error.to_string())?;
    let open_metrics = judge(&response)?;
    let body = collect(response.into_body(), left).await?;
    drop(driver);
    Ok((body, open_metrics))
}

/// A task that is not needed when its owner is gone.
struct Aborted(task::JoinHandle<()>);

impl Drop for Aborted {
    fn drop(&mut self) {
        self.0.abort();
    }
}

fn request(source: &Source, format: Format) -> http::Result<Request<Empty<Bytes>>> {
    let accept = match format {
        Format::Text => "text/plain;version=0.0.4,*/*;q=0.1",
        Format::OpenMetrics(_) => {
            "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,\
             text/plain;version=0.0.4;q=0.5,*/*;q=0.1"
        }
    };
    Request::get(&source.target)
        .header(HOST, source.address.to_string())
        .header(ACCEPT, accept)
        .header(ACCEPT_ENCODING, "identity")
        .header(CONNECTION, "close")
        .header(USER_AGENT, concat!("outrigger-proxy/", env!("CARGO_PKG_VERSION")))
        .body(Empty::new())
}

/// Whether the answer is one that can be merged, and whether it is OpenMetrics.
fn judge(response: &Response<Incoming>) -> Result<bool, String> {
    if response.status() != StatusCode::OK {
        return Err(format!("answered {}, want 200", response.status().as_u16()));
    }
    let field = |name| response.headers().get(name).map(|value| value.to_str().unwrap_or("?"));
    if let Some(encoding) = field(CONTENT_ENCODING).filter(|encoding| *encoding != "identity") {
        return Err(format!("answered with the encoding {encoding:?} although none was accepted"));
    }
    let content_type = field(CONTENT_TYPE).unwrap_or("text/plain");
    let kind = content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    match &*kind {
        "application/openmetrics-text" => Ok(true),
        "text/plain" => Ok(false),
        _ => Err(format!("answered {content_type:?}, want text/plain or application/openmetrics-text")),
    }
}

async fn collect(mut body: Incoming, left: &Cell<usize>) -> Result<Vec<u8>, String> {
    let mut all = Vec::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| format!("the answer broke off: {error}"))?;
        let Ok(data) = frame.into_data() else { continue };
        let Some(rest) = left.get().checked_sub(data.len()) else {
            return Err(format!("more than {} MiB (of all sources together)", MOST_BYTES >> 20));
        };
        left.set(rest);
        all.extend_from_slice(&data);
    }
    Ok(all)
}
