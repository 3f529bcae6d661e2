//! Spans: one per request on each side of the mesh, made of the same facts as its line in the access log.
//!
//! ```text
//!  head ─▶ begin: what its fields say ─▶ whose child it is ─▶ recorded, perhaps, or not ─▶ told to whoever is called
//!                                                │  a Place, in the exchange: nothing is allocated for it
//!  end ──▶ request: recorded? or, perhaps, did it end in a way that is kept? ─▶ span ─▶ bounded queue ─▶ otlp
//! ```
//!
//! The proxy in front of a caller makes the client's span, the one in front of a server the server's; all tries at
//! endpoints belong to one span, as its events. What cannot be queued is dropped and counted; nothing waits for a backend.
//! Without a backend no span is made and no field is changed; the trace that a caller names is then only logged.
//!
//! It does not decide which traces are recorded, nor read or write the fields: that is the core's. It sends nothing: that
//! is [`crate::otlp`].

use std::{
    cell::RefCell,
    num::NonZeroU32,
    sync::Arc,
    time::{Duration, Instant},
};

use http::{HeaderMap, HeaderName};
use opentelemetry::InstrumentationScope;
use opentelemetry_sdk::trace::SpanData;
use outrigger_certs::Credential;
use outrigger_core::trace::{
    self, Context, Decision, Extracted, Mint, Origin, Propagators, Sampler, SpanId, TraceId,
};

use crate::{
    config::{Config, otel},
    http::exchange::Exchange,
    telemetry::{ConnectionRecord, Direction, Protocol, RequestRecord, Traced},
    worker::{Worker, now},
};

mod counters;
mod queue;
mod span;

#[cfg(test)]
mod tests;

pub use counters::{Counters, Lost, Numbers, Signal};
pub use queue::Queue;

const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

/// Of the process.
#[derive(Debug, Default)]
pub struct Tracing {
    pub counters: Counters,
    on: Option<On>,
}

/// How spans are made, and where they go.
#[derive(Debug)]
pub struct On {
    pub settings: otel::Traces,
    pub spans: Queue<SpanData>,
    scope: InstrumentationScope,
    workers: NonZeroU32,
}

/// Of a worker.
pub struct Tracer {
    tracing: Arc<Tracing>,
    hand: Option<Hand>,
}

struct Hand {
    sampler: RefCell<Sampler>,
    mint: RefCell<Mint>,
}

/// Where a request is in its trace.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    /// Of this proxy's span; with tracing off, what the caller said.
    context: Context,
    /// `None`: tracing is off.
    own: Option<Own>,
}

#[derive(Clone, Copy, Debug)]
struct Own {
    decision: Decision,
    parent: Option<SpanId>,
    link: Option<Context>,
}

/// What a span has that a record does not.
pub struct Extra<'a> {
    pub http2: bool,
    /// Which policy let the caller in.
    pub policy: Option<&'a str>,
    /// Endpoints that were ejected when one was picked.
    pub ejected: u32,
}

/// Gives a request its place in a trace, and tells it to whoever is called next.
pub fn begin(exchange: &Exchange, fields: &mut HeaderMap) {
    let caller = &*exchange.caller;
    let worker = &*caller.worker;
    let inside = caller.direction == Direction::Outbound || caller.identity.is_some();
    let random = || worker.next_id();
    exchange.place.set(worker.tracer.enter(fields, inside, exchange.id, random, exchange.started));
}

/// A request is over, at `now`. Makes its span if it is to have one, and says in the record which trace it belongs to.
pub fn request(
    worker: &Worker,
    place: &Place,
    record: &mut RequestRecord<'_>,
    extra: &Extra<'_>,
    now: Instant,
) {
    worker.tracer.request(|| worker.ctx.credentials.current(), place, record, extra, now);
}

/// The same for a connection that carried no requests; nobody has told it a trace, so each begins one.
pub fn connection(worker: &Worker, record: &mut ConnectionRecord<'_>) {
    let own = || worker.ctx.credentials.current();
    worker.tracer.connection(own, || worker.next_id(), record, now());
}

// === impl Tracing ===

impl Tracing {
    pub fn new(config: &Config) -> Arc<Self> {
        let on = config.otel.traces.clone().map(|settings| On {
            spans: Queue::new(settings.queue, settings.batch),
            settings,
            scope: InstrumentationScope::builder("outrigger-proxy")
                .with_version(env!("CARGO_PKG_VERSION"))
                .build(),
            workers: u32::try_from(config.workers.get())
                .ok()
                .and_then(NonZeroU32::new)
                .unwrap_or(NonZeroU32::MIN),
        });
        Arc::new(Self { counters: Counters::default(), on })
    }

    /// `None`: no spans are made.
    pub fn on(&self) -> Option<&On> {
        self.on.as_ref()
    }

    pub fn numbers(&self) -> Numbers {
        self.counters.read(self.on.as_ref().map_or(0, |on| on.spans.waiting()))
    }
}

// === impl Tracer ===

impl Tracer {
    pub fn new(tracing: &Arc<Tracing>, now: Instant) -> Self {
        let hand = tracing.on.as_ref().map(|on| {
            let config = trace::Config {
                policy: on.settings.policy,
                keep: on.settings.keep,
                max_per_second: on.settings.max_per_second,
                workers: on.workers,
            };
            Hand { sampler: RefCell::new(Sampler::new(config, now)), mint: RefCell::new(Mint::new()) }
        });
        Self { tracing: Arc::clone(tracing), hand }
    }

    /// `inside`: the fields are those of a member of the mesh, or of the own application. `id`: what the request is called in
    /// answers and in the log, its span is called too.
    pub fn enter(
        &self,
        fields: &mut HeaderMap,
        inside: bool,
        id: u64,
        random: impl FnMut() -> u64,
        now: Instant,
    ) -> Option<Place> {
        let (Some(on), Some(hand)) = (&self.tracing.on, &self.hand) else {
            if !fields.contains_key(TRACEPARENT) {
                return None;
            }
            let context = Extracted::of(fields, Propagators::default()).context?;
            return Some(Place { context, own: None });
        };
        let extracted = Extracted::of(fields, on.settings.propagators);
        extracted.discarded().for_each(|what| self.tracing.counters.discarded(what));
        let origin = extracted.origin(inside || on.settings.trust_outside);
        let place = self.place(hand, &origin, id, random, now);
        hand.mint.borrow_mut().inject(&place.context, &extracted, fields);
        Some(place)
    }

    /// `own`: who this proxy is, asked only for what is recorded.
    pub fn request(
        &self,
        own: impl FnOnce() -> Option<Arc<Credential>>,
        place: &Place,
        record: &mut RequestRecord<'_>,
        extra: &Extra<'_>,
        now: Instant,
    ) {
        let recorded = place.own.as_ref().is_some_and(|of| {
            let failed = || span::has_failed(record);
            self.records(of.decision, failed, record.duration, now)
                && self.send(|on| span::request(on, own(), place, record, extra))
        });
        record.trace = Some(place.traced(recorded));
    }

    pub fn connection(
        &self,
        own: impl FnOnce() -> Option<Arc<Credential>>,
        random: impl FnMut() -> u64,
        record: &mut ConnectionRecord<'_>,
        now: Instant,
    ) {
        let (Some(on), Some(hand)) = (&self.tracing.on, &self.hand) else { return };
        if !on.settings.tcp || !matches!(record.protocol, Protocol::Tcp | Protocol::Tls) {
            return;
        }
        let place = self.place(hand, &Origin::default(), record.id, random, now);
        let decision = place.own.map_or(Decision::Drop, |own| own.decision);
        let recorded = self.records(decision, || record.reason.is_some(), record.duration, now)
            && self.send(|on| span::connection(on, own(), &place, record));
        record.trace = Some(place.traced(recorded));
    }

    fn place(
        &self,
        hand: &Hand,
        origin: &Origin,
        id: u64,
        mut random: impl FnMut() -> u64,
        now: Instant,
    ) -> Place {
        let begins = || TraceId::from_random(random(), random());
        let trace = origin.parent.map_or_else(begins, |parent| parent.trace);
        let decision = self.ask(hand, |sampler| sampler.decide(origin, trace, now));
        let parent = origin.parent.map(|parent| parent.span);
        Place {
            context: origin.child(trace, SpanId::from_random(id), decision),
            own: Some(Own { decision, parent, link: origin.link }),
        }
    }

    fn records(
        &self,
        decision: Decision,
        failed: impl FnOnce() -> bool,
        duration: Duration,
        now: Instant,
    ) -> bool {
        match (decision, &self.hand) {
            (Decision::Record, _) => true,
            (Decision::Drop, _) | (Decision::Candidate, None) => false,
            (Decision::Candidate, Some(hand)) => {
                self.ask(hand, |sampler| sampler.keeps(failed(), duration, now))
            }
        }
    }

    /// Whether there was room for it.
    fn send(&self, make: impl FnOnce(&On) -> SpanData) -> bool {
        let Some(on) = &self.tracing.on else { return false };
        let sent = on.spans.push(make(on));
        if !sent {
            self.tracing.counters.lost(Lost::Queue, 1);
        }
        sent
    }

    /// What the cap has taken is counted.
    fn ask<R>(&self, hand: &Hand, question: impl FnOnce(&mut Sampler) -> R) -> R {
        let mut sampler = hand.sampler.borrow_mut();
        let before = sampler.capped();
        let answer = question(&mut sampler);
        let capped = sampler.capped() - before;
        if capped > 0 {
            self.tracing.counters.lost(Lost::Rate, capped);
        }
        answer
    }
}

// === impl Place ===

impl Place {
    /// It has a span, or may still have one.
    pub fn is_recorded(&self) -> bool {
        self.own.is_some_and(|own| own.decision != Decision::Drop)
    }

    fn traced(&self, recorded: bool) -> Traced {
        let sampled = match self.own {
            Some(_) => recorded,
            None => self.context.sampled.unwrap_or(false),
        };
        Traced { trace: self.context.trace, span: self.context.span, sampled }
    }
}
