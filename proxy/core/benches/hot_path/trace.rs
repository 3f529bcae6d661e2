//! Traces that are not recorded, as nearly all are not.

use std::{
    hint::black_box,
    num::NonZeroU32,
    time::{Duration, Instant},
};

use http::{HeaderMap, HeaderName, HeaderValue, request};
use outrigger_core::trace::{
    Config, Decision, Extracted, Keep, Mint, Policy, Propagators, Sampler, SpanId, TraceId,
};

use super::Bench;

const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
const UNSAMPLED: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-02";

/// What a worker has.
struct Tracer {
    propagators: Propagators,
    sampler: Sampler,
    mint: Mint,
    random: u64,
}

impl Tracer {
    fn new(propagators: &str, now: Instant) -> Self {
        let policy = Policy::default();
        let keep = Keep { errors: true, slower: Some(Duration::from_millis(500)) };
        let hundred = NonZeroU32::MIN.saturating_add(99);
        let config = Config { policy, keep, max_per_second: hundred, workers: NonZeroU32::MIN };
        Self {
            propagators: propagators.parse().unwrap_or_default(),
            sampler: Sampler::new(config, now),
            mint: Mint::new(),
            random: 0,
        }
    }

    fn random(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        self.random
    }

    /// All that core does for a request.
    fn pass(&mut self, fields: &mut HeaderMap, trusted: bool, now: Instant) -> Decision {
        let extracted = Extracted::of(fields, self.propagators);
        let origin = extracted.origin(trusted);
        let trace = match origin.parent {
            Some(parent) => parent.trace,
            None => TraceId::from_random(self.random(), self.random()),
        };
        let decision = self.sampler.decide(&origin, trace, now);
        let own = origin.child(trace, SpanId::from_random(self.random()), decision);
        self.mint.inject(&own, &extracted, fields);
        decision
    }
}

pub(super) fn rows(bench: &Bench, request: &request::Parts, now: Instant) {
    let mut fields = request.headers.clone();
    fields.insert(TRACEPARENT, HeaderValue::from_static(UNSAMPLED));
    let mut tracer = Tracer::new("tracecontext", now);
    bench.row("trace: extract a traceparent", || {
        black_box(Extracted::of(black_box(&fields), tracer.propagators));
    });
    bench.row("trace: a child, unsampled", || {
        black_box(tracer.pass(black_box(&mut fields), true, now));
    });
    bench.row("trace: a stranger's, begun anew", || {
        black_box(tracer.pass(black_box(&mut fields), false, now));
    });
    bench.row("trace: none came, begun anew", || {
        fields.remove(TRACEPARENT);
        black_box(tracer.pass(black_box(&mut fields), true, now));
    });
    fields.insert("tracestate", HeaderValue::from_static("congo=t61rcWkgMzE,rojo=00f067aa0ba902b7"));
    fields.insert("baggage", HeaderValue::from_static("userId=alice,serverNode=DF%2028,isProduction=false"));
    bench.row("trace: a child, with tracestate and baggage", || {
        black_box(tracer.pass(black_box(&mut fields), true, now));
    });
    for name in ["b3", "b3multi", "tracecontext,b3,b3multi"] {
        let mut fields = request.headers.clone();
        fields.remove(TRACEPARENT);
        let mut tracer = Tracer::new(name, now);
        tracer.pass(&mut fields, true, now);
        bench.row(&format!("trace: a child, in {name}"), || {
            black_box(tracer.pass(black_box(&mut fields), true, now));
        });
    }
}
