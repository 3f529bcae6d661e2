//! Step on both sides: may this be asked for once more? Decided in `core::rate_limit`, counted by
//! [`crate::shared_limits`].
//!
//! All rules of a policy must admit. One that does not takes back what those before it have counted, because the request
//! does not happen. A rule with `dryRun` only says what it would have done.

use std::{
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use http::{HeaderMap, HeaderValue, request::Parts};
use outrigger_certs::SpiffeId;
use outrigger_core::rate_limit::{Key, Verdict, fields};
use outrigger_proto::spec::RateKey;
use smallvec::SmallVec;

use crate::{
    error::Error,
    http::exchange::Notes,
    metrics::Event,
    shared_limits::{Rule, Rules},
    telemetry::Shard,
    worker::now,
};

/// Who asks for what, as far as limits are kept by it.
pub struct Asking<'a> {
    /// `None`: unknown.
    pub identity: Option<&'a SpiffeId>,
    pub address: IpAddr,
    /// A connection that is carried as bytes has none.
    pub path: Option<&'a str>,
    pub fields: Option<&'a HeaderMap>,
}

/// A request, or connection, that was refused.
#[derive(Debug)]
pub struct Refusal {
    /// Of the rule that refused.
    pub name: Arc<str>,
    pub retry_after: Duration,
    /// For `RateLimit` and `RateLimit-Policy`: all rules that were asked.
    pub state: Option<HeaderValue>,
    pub policy: Option<HeaderValue>,
}

impl<'a> Asking<'a> {
    pub fn request(identity: Option<&'a SpiffeId>, address: IpAddr, head: &'a Parts) -> Self {
        Self { identity, address, path: Some(head.uri.path()), fields: Some(&head.headers) }
    }

    pub fn connection(identity: Option<&'a SpiffeId>, address: IpAddr) -> Self {
        Self { identity, address, path: None, fields: None }
    }
}

/// Counts a request, or refuses it. `notes`: of the request, if it is one.
pub fn check(
    rules: &Rules,
    asking: &Asking<'_>,
    telemetry: &Shard,
    notes: Option<&Notes>,
) -> Result<(), Error> {
    if rules.is_empty() {
        return Ok(());
    }
    let now = now();
    let mut asked: SmallVec<[(&Rule, Key, Verdict); 4]> = SmallVec::new();
    for rule in rules.iter() {
        let (key, verdict) = rule.ask(asking, now);
        asked.push((rule, key, verdict));
        if verdict.admitted {
            continue;
        }
        let name = &rule.policy.name;
        if rule.policy.dry_run {
            telemetry.event(Event::RateLimited, name, ["true", ""]);
            tracing::debug!(limit = &**name, caller = %asking.address, "would have been refused (dryRun)");
            if let Some(notes) = notes {
                notes.limit.replace(Some(Arc::clone(name)));
            }
            continue;
        }
        for (rule, key, verdict) in &asked {
            if verdict.admitted {
                rule.limiter.undo(*key, now);
            }
        }
        telemetry.event(Event::RateLimited, name, ["false", ""]);
        return Err(Error::RateLimited(Arc::new(refusal(rule, &verdict, &asked))));
    }
    Ok(())
}

fn refusal(by: &Rule, verdict: &Verdict, asked: &[(&Rule, Key, Verdict)]) -> Refusal {
    // Callers are not told of what is only being tried out.
    let told = || asked.iter().filter(|(rule, ..)| !rule.policy.dry_run);
    Refusal {
        name: Arc::clone(&by.policy.name),
        retry_after: verdict.retry_after.unwrap_or(verdict.reset),
        state: fields::state(told().map(|(rule, _, verdict)| (&*rule.policy.name, verdict))),
        policy: fields::policy(told().map(|(rule, ..)| &rule.policy)),
    }
}

impl Rule {
    fn ask(&self, asking: &Asking<'_>, now: Instant) -> (Key, Verdict) {
        // Held here, because what it lends must outlive the values.
        let octets = match asking.address {
            IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
            IpAddr::V6(v6) => v6.octets(),
        };
        let values = self.policy.key.iter().map(|key| match key {
            RateKey::CallerIdentity => asking.identity.map(|identity| identity.as_str().as_bytes()),
            RateKey::ClientAddress => Some(&octets[..]),
            RateKey::Path => asking.path.map(str::as_bytes),
            RateKey::Header(name) => asking.fields?.get(name).map(HeaderValue::as_bytes),
        });
        self.limiter.check(values, now)
    }
}

#[cfg(test)]
pub(crate) mod testing {
    use std::{
        num::{NonZeroU32, NonZeroU64},
        time::Duration,
    };

    use outrigger_proto::spec::{RateAlgorithm, RateKey, RateLimit, Scope};

    /// So many at once, and no more for a long time.
    pub(crate) fn limit(name: &str, requests: u64, key: Vec<RateKey>) -> RateLimit {
        RateLimit {
            name: name.into(),
            algorithm: RateAlgorithm::TokenBucket,
            requests: NonZeroU64::new(requests).unwrap(),
            per: Duration::from_secs(1000),
            burst: NonZeroU64::new(requests).unwrap(),
            key,
            scope: Scope::Local,
            dry_run: false,
            max_keys: NonZeroU32::new(100).unwrap(),
        }
    }
}

#[cfg(test)]
mod tests {
    use http::Request;
    use outrigger_core::verdict::Reason;
    use outrigger_proto::spec::{RateLimit, Scope, Share};

    use super::{testing::limit, *};
    use crate::{access_log::AccessLog, rig::identity, shared_limits::SharedLimits, telemetry::Telemetry};

    struct Caller {
        telemetry: Telemetry,
        shard: Shard,
        limits: SharedLimits,
    }

    impl Caller {
        fn new() -> Self {
            let telemetry = Telemetry::new(AccessLog::off());
            Self { shard: telemetry.shard(), telemetry, limits: SharedLimits::default() }
        }

        fn ask(
            &self,
            policies: &[RateLimit],
            name: &str,
            address: &str,
            request: http::request::Builder,
        ) -> Result<(), Error> {
            let (head, ()) = request.body(()).unwrap().into_parts();
            let identity = identity(name);
            let asking = Asking::request(Some(&identity), address.parse().unwrap(), &head);
            check(&self.limits.rules(policies), &asking, &self.shard, None)
        }
    }

    #[tokio::test(start_paused = true)]
    async fn each_combination_of_values_has_a_count_of_its_own() {
        let user = || RateKey::Header("x-user".parse().unwrap());
        let get = |path: &str, user: &str| Request::get(path.to_owned()).header("x-user", user);
        for (key, other) in [
            (vec![], None),
            (vec![RateKey::CallerIdentity], Some(("b", "10.0.0.1", get("/", "u")))),
            (vec![RateKey::ClientAddress], Some(("a", "10.0.0.2", get("/", "u")))),
            (vec![RateKey::Path], Some(("a", "10.0.0.1", get("/other", "u")))),
            (vec![user()], Some(("a", "10.0.0.1", get("/", "v")))),
            (vec![user()], Some(("a", "10.0.0.1", Request::get("/")))),
            (vec![RateKey::Path, user()], Some(("a", "10.0.0.1", get("/", "v")))),
        ] {
            let caller = Caller::new();
            let policies = [limit("T/shop/orders/r", 2, key)];
            for _ in 0..2 {
                caller.ask(&policies, "a", "10.0.0.1", get("/?q=1", "u")).unwrap();
            }
            let error = caller.ask(&policies, "a", "10.0.0.1", get("/?q=2", "u")).unwrap_err();
            assert_eq!(error.reason(), Reason::RateLimited);
            if let Some((name, address, request)) = other {
                caller.ask(&policies, name, address, request).unwrap();
            } else {
                caller.ask(&policies, "b", "10.0.0.2", get("/other", "v")).unwrap_err();
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_refused_request_counts_nowhere() {
        let caller = Caller::new();
        let (wide, narrow) = (limit("wide", 3, vec![]), limit("narrow", 1, vec![RateKey::Path]));
        let both = [wide, narrow];
        caller.ask(&both, "a", "10.0.0.1", Request::get("/one")).unwrap();
        for _ in 0..5 {
            let error = caller.ask(&both, "a", "10.0.0.1", Request::get("/one")).unwrap_err();
            let Error::RateLimited(refusal) = error else { panic!("{error}") };
            assert_eq!(&*refusal.name, "narrow");
            let state = refusal.state.as_ref().unwrap().to_str().unwrap();
            assert!(state.starts_with("\"wide\";r=") && state.contains("\"narrow\";r=0;t="), "{state}");
            assert_eq!(refusal.policy.as_ref().unwrap(), "\"wide\";q=3;w=1000, \"narrow\";q=1;w=1000");
        }
        for path in ["/two", "/three"] {
            caller.ask(&both, "a", "10.0.0.1", Request::get(path)).unwrap();
        }
        assert!(caller.ask(&both, "a", "10.0.0.1", Request::get("/four")).is_err(), "three in all");
    }

    #[tokio::test(start_paused = true)]
    async fn a_dry_run_only_counts() {
        let caller = Caller::new();
        let policies = [RateLimit { dry_run: true, ..limit("T/a/b/c", 1, vec![]) }];
        for _ in 0..3 {
            caller.ask(&policies, "a", "10.0.0.1", Request::get("/")).unwrap();
        }
        let page = caller.telemetry.metrics.render(&Default::default());
        assert!(
            page.contains("outrigger_rate_limited_total{limit=\"T/a/b/c\",dry_run=\"true\"} 2"),
            "{page}"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn shares_reach_the_limits_they_are_for() {
        let caller = Caller::new();
        let shared = RateLimit { scope: Scope::Shared, ..limit("shared", 10, vec![]) };
        let policies = [limit("local", 1000, vec![]), shared];
        caller.ask(&policies, "a", "10.0.0.1", Request::get("/")).unwrap();
        tokio::time::advance(Duration::from_millis(500)).await;
        let demands = caller.limits.demands();
        assert_eq!(demands.iter().map(|demand| &*demand.limit).collect::<Vec<_>>(), ["shared"]);
        assert!(demands[0].thousandths_per_second > 0);
        let (limit, valid_for) = ("shared".into(), Duration::from_secs(3));
        caller.limits.take_share(&Share { limit, parts_per_million: 200_000, holders: 5, valid_for });
        let admitted = (0..10).filter(|_| caller.ask(&policies, "a", "10.0.0.1", Request::get("/")).is_ok());
        assert!(admitted.count() <= 2, "a fifth of ten, and one is spent");
    }
}
