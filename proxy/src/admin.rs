//! What operators and probes can ask, on three doors with different rights.
//!
//! | door | who reaches it | what it answers |
//! |---|---|---|
//! | `--status-address` (15020) | anybody, probes, Prometheus | `/live` `/ready` `/metrics` |
//! | `--admin-port` (15000) | loopback, so also the application | reading: `/config_dump` `/stats` `/clusters` `/limits` `/certs` |
//! | `STATE_DIR/admin.sock` | the proxy's own user and root | the same, and `POST /drain`, `POST /log?level=…` |
//!
//! Loopback is shared with an application that a stranger may talk into making requests, so nothing there changes state
//! and nothing anywhere prints a key or a token. [`serve`] has the listeners, [`dump`] the documents, [`scrape`] the metrics.

use std::sync::Arc;

use bytes::Bytes;
use http::{Method, Request, StatusCode, header::HOST};
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};
use tracing_subscriber::{Registry, filter::Targets, reload};

use crate::{context::Ctx, worker::Ask};

pub(crate) mod dump;
mod negotiate;
pub mod scrape;
pub mod serve;

#[cfg(test)]
mod tests;

/// What the doors have in common.
pub struct Admin {
    pub ctx: Arc<Ctx>,
    /// One per worker.
    pub workers: Vec<mpsc::Sender<Ask>>,
    pub log: reload::Handle<Targets, Registry>,
    pub scrapes: scrape::Scrapes,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Door {
    Status,
    Loopback,
    Socket,
}

/// An answer of ours; always small enough to be held as a whole.
#[derive(Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub content_type: &'static str,
    pub body: Bytes,
    /// `Content-Encoding`.
    pub encoding: Option<&'static str>,
    /// Another one gets another one, by what it accepts.
    pub varies: bool,
    /// Given back when the connection has ended.
    pub place: Option<OwnedSemaphorePermit>,
}

const TEXT: &str = "text/plain; charset=utf-8";
const JSON: &str = "application/json";

impl Admin {
    /// Answers one request. Bodies of requests are never read.
    pub async fn answer<B>(&self, door: Door, request: &Request<B>) -> Answer {
        if door == Door::Loopback && !names_loopback(request) {
            // A page in a browser on this machine, whose name was made to resolve to loopback.
            return Answer::text(StatusCode::FORBIDDEN, "Ask for 127.0.0.1, [::1] or localhost.\n");
        }
        let path = request.uri().path();
        let known = PAGES.iter().filter(|page| page.path == path && page.doors.contains(&door));
        let Some(page) =
            known.clone().find(|page| page.method == *request.method() || is_head_of(page, request))
        else {
            return match known.count() {
                0 => Answer::text(StatusCode::NOT_FOUND, &help(door)),
                _ => Answer::text(StatusCode::METHOD_NOT_ALLOWED, &help(door)),
            };
        };
        match page.show {
            Show::Live => Answer::text(StatusCode::OK, "live\n"),
            Show::Ready => self.ready(),
            Show::Metrics => self.metrics(request.headers()).await,
            Show::Stats => Answer::json(&dump::stats(&self.ctx, self.scrapes.under_way())),
            Show::Config => Answer::json(&dump::config(&self.ctx)),
            Show::Clusters => Answer::json(&dump::clusters(&self.ctx, &self.ask_workers().await)),
            Show::Limits => Answer::json(&dump::limits(&self.ctx)),
            Show::Certs => Answer::json(&dump::certs(&self.ctx)),
            Show::Help => Answer::text(StatusCode::OK, &help(door)),
            Show::Drain => {
                self.ctx.drain.begin();
                Answer::text(StatusCode::ACCEPTED, "draining\n")
            }
            Show::Log => self.set_log(request.uri().query().unwrap_or_default()),
        }
    }

    fn ready(&self) -> Answer {
        let missing = self.ctx.readiness.missing();
        match missing.is_empty() {
            true => Answer::text(StatusCode::OK, "ready\n"),
            false => {
                Answer::text(StatusCode::SERVICE_UNAVAILABLE, &format!("not ready\n{}\n", missing.join("\n")))
            }
        }
    }

    /// What each worker says of its upstreams; a worker that has ended says nothing.
    async fn ask_workers(&self) -> Vec<serde_json::Value> {
        let mut answers = Vec::with_capacity(self.workers.len());
        for worker in &self.workers {
            let (ask, answer) = oneshot::channel();
            if worker.send(Ask::Clusters(ask)).await.is_ok()
                && let Ok(answer) = answer.await
            {
                answers.push(answer);
            }
        }
        answers
    }

    fn set_log(&self, query: &str) -> Answer {
        let level = query.split('&').find_map(|pair| pair.strip_prefix("level=")).unwrap_or_default();
        // `=` and `,` may come encoded; nothing else in a filter needs it.
        let level = level.replace("%3D", "=").replace("%3d", "=").replace("%2C", ",").replace("%2c", ",");
        let filter = crate::config::read::log(&level).and_then(|level| level.parse::<Targets>().ok());
        match filter.map(|filter| self.log.reload(filter)) {
            Some(Ok(())) => Answer::text(StatusCode::OK, &format!("log: {level}\n")),
            Some(Err(error)) => Answer::text(StatusCode::INTERNAL_SERVER_ERROR, &format!("{error}\n")),
            None => Answer::text(
                StatusCode::BAD_REQUEST,
                "level: want error, warn, info, debug, trace, or a list such as warn,outrigger_proxy::sync=debug\n",
            ),
        }
    }
}

// ---- the pages ------------------------------------------------------------------------------------------------------

struct Page {
    path: &'static str,
    method: Method,
    doors: &'static [Door],
    show: Show,
    about: &'static str,
}

#[derive(Clone, Copy)]
enum Show {
    Live,
    Ready,
    Metrics,
    Stats,
    Config,
    Clusters,
    Limits,
    Certs,
    Help,
    Drain,
    Log,
}

const ALL: &[Door] = &[Door::Status, Door::Loopback, Door::Socket];
const READERS: &[Door] = &[Door::Loopback, Door::Socket];
const OWNER: &[Door] = &[Door::Socket];

const PAGES: &[Page] = &[
    Page {
        path: "/live",
        method: Method::GET,
        doors: ALL,
        show: Show::Live,
        about: "200 while the process runs",
    },
    Page {
        path: "/ready",
        method: Method::GET,
        doors: ALL,
        show: Show::Ready,
        about: "200, or 503 and what is missing",
    },
    Page {
        path: "/metrics",
        method: Method::GET,
        doors: ALL,
        show: Show::Metrics,
        about: "Prometheus text format or OpenMetrics, by Accept",
    },
    Page {
        path: "/stats",
        method: Method::GET,
        doors: READERS,
        show: Show::Stats,
        about: "metrics about metrics: series and their budget, what was folded, merged sources",
    },
    Page {
        path: "/config_dump",
        method: Method::GET,
        doors: READERS,
        show: Show::Config,
        about: "settings, control planes and the configuration in force",
    },
    Page {
        path: "/clusters",
        method: Method::GET,
        doors: READERS,
        show: Show::Clusters,
        about: "backends with their endpoints, as each worker sees them; circuits with evidence",
    },
    Page {
        path: "/limits",
        method: Method::GET,
        doors: READERS,
        show: Show::Limits,
        about: "bulkheads and rate limits: what is under way, waits, and is asked for",
    },
    Page {
        path: "/certs",
        method: Method::GET,
        doors: READERS,
        show: Show::Certs,
        about: "own certificate chain and trusted roots",
    },
    Page { path: "/help", method: Method::GET, doors: READERS, show: Show::Help, about: "this list" },
    Page {
        path: "/drain",
        method: Method::POST,
        doors: OWNER,
        show: Show::Drain,
        about: "drain and exit, as SIGTERM does",
    },
    Page {
        path: "/log",
        method: Method::POST,
        doors: OWNER,
        show: Show::Log,
        about: "?level=… changes the log filter",
    },
];

fn is_head_of<B>(page: &Page, request: &Request<B>) -> bool {
    page.method == Method::GET && request.method() == Method::HEAD
}

fn help(door: Door) -> String {
    let pages = PAGES.iter().filter(|page| page.doors.contains(&door));
    pages.fold(String::new(), |text, page| {
        format!("{text}{:4} {:13} {}\n", page.method, page.path, page.about)
    })
}

/// Whether the request was addressed to loopback by a name that only loopback has.
fn names_loopback<B>(request: &Request<B>) -> bool {
    let Some(host) = request.headers().get(HOST).and_then(|host| host.to_str().ok()) else { return false };
    let host = match host.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|b| b.is_ascii_digit()) => host,
        _ => host,
    };
    host.eq_ignore_ascii_case("localhost")
        || host == "[::1]"
        || host.parse().is_ok_and(|ip: std::net::Ipv4Addr| ip.is_loopback())
}

// === impl Answer ===

impl Answer {
    fn text(status: StatusCode, body: &str) -> Self {
        Self { status, ..Self::bytes(TEXT, body.as_bytes().to_vec()) }
    }

    fn json(value: &serde_json::Value) -> Self {
        Self::bytes(JSON, format!("{value:#}\n").into_bytes())
    }

    fn bytes(content_type: &'static str, body: Vec<u8>) -> Self {
        let body = body.into();
        Self { status: StatusCode::OK, content_type, body, encoding: None, varies: false, place: None }
    }
}
