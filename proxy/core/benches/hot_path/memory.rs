//! Answers from memory: the cache, coalescing.

use std::{
    hint::black_box,
    time::{Duration, Instant, UNIX_EPOCH},
};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use outrigger_core::{
    cache::{Cache, Lookup, Now, RequestView},
    coalesce::{Coalescer, Key, Role},
};
use outrigger_proto::spec;

use super::Bench;

pub(super) fn rows(bench: &Bench, request: &http::request::Parts, now: Instant) {
    let now = Now { instant: now, wall: UNIX_EPOCH + Duration::from_secs(1_800_000_000) };
    let mut authorized = request.headers.clone();
    authorized
        .insert(header::AUTHORIZATION, HeaderValue::from_static("Bearer 0af7651916cd43dd8448eb211c80319c"));
    let mut answer = HeaderMap::new();
    answer.insert(header::CACHE_CONTROL, HeaderValue::from_static("public, max-age=600, stale-if-error=60"));
    answer.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    answer.insert(header::ETAG, HeaderValue::from_static("\"7f3a\""));
    answer.insert(header::VARY, HeaderValue::from_static("accept-encoding"));
    let body = Bytes::from(vec![b'.'; 1000]);

    let mut cache = Cache::new(&spec::Cache::default());
    let paths: Vec<_> = (0..10_000).map(|n| format!("/api/v1/orders/{n}?limit=10")).collect();
    let ask_and_store = |cache: &mut Cache, path: &str, headers: &HeaderMap| {
        let Lookup::Miss(pending) = cache.lookup(&view(path, headers), now) else { return };
        let Some(mut recorder) = cache.begin_store(pending, StatusCode::OK, &answer, now) else { return };
        if recorder.push(&body)
            && let Some(complete) = recorder.finish()
        {
            cache.store(complete);
        }
    };
    for path in &paths {
        ask_and_store(&mut cache, path, &request.headers);
        ask_and_store(&mut cache, path, &authorized);
    }
    let mut next = 0;
    // Those used last, so that each is there.
    let recent: Vec<_> = paths.iter().rev().take(1000).collect();
    for (name, headers) in
        [("cache: a hit and its head", &request.headers), ("cache: the same, authorized", &authorized)]
    {
        bench.row(name, || {
            next = (next + 617) % recent.len();
            let Lookup::Fresh(hit) = cache.lookup(&view(recent[next], headers), now) else { return };
            black_box(hit.headers());
        });
    }
    let none = request.headers.clone();
    bench.row("cache: a miss", || {
        black_box(cache.lookup(&view("/api/v1/orders/none", &none), now));
    });
    bench.row("cache: miss, store 1 kB, evict", || {
        next = (next + 617) % paths.len();
        ask_and_store(&mut cache, &paths[next], &none);
    });

    let mut flights = Coalescer::new();
    bench.row("coalesce: lead and end, nobody follows", || {
        let Some(key) = Key::of(&view(&paths[0], &none)) else { return };
        if let Role::Leader(flight) = flights.join(key) {
            black_box(flights.on_head(flight, true, now.instant));
        }
    });
}

fn view<'a>(path: &'a str, headers: &'a HeaderMap) -> RequestView<'a> {
    RequestView { method: &Method::GET, authority: "orders.shop", path, headers, has_body: false }
}
