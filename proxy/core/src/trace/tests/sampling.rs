//! Ratios, parents, the cap, and what is kept for its end.

use std::time::{Duration, Instant};

use rand::{RngExt, SeedableRng, rngs::SmallRng};

use super::*;

const SECOND: Duration = Duration::from_secs(1);

fn config(name: &str, ratio: &str) -> Config {
    let name = (!name.is_empty()).then(|| name.parse().unwrap());
    let ratio = (!ratio.is_empty()).then(|| ratio.parse().unwrap());
    let (million, one) = (NonZeroU32::new(1_000_000).unwrap(), NonZeroU32::MIN);
    Config { policy: Policy::new(name, ratio), keep: Keep::default(), max_per_second: million, workers: one }
}

pub(super) fn takes(ratio: &str, trace: TraceId) -> bool {
    let now = crate::testing::start();
    let mut sampler = Sampler::new(config("traceidratio", ratio), now);
    sampler.decide(&Origin::default(), trace, now) == Decision::Record
}

fn told(sampled: Option<bool>) -> Origin {
    let parent = Context { sampled, ..context(None) };
    Origin { parent: Some(parent), sampled, ..Origin::default() }
}

#[test]
fn samplers_are_those_of_opentelemetry() {
    let now = crate::testing::start();
    // Ratios of 0 and 1 alone, so that the id does not matter.
    for (name, ratio, [fresh, yes, no, deferred]) in [
        ("always_on", "", [true; 4]),
        ("always_off", "", [false; 4]),
        ("traceidratio", "1", [true; 4]),
        ("traceidratio", "", [true; 4]),
        ("traceidratio", "0", [false; 4]),
        ("parentbased_always_on", "", [true, true, false, true]),
        ("parentbased_always_off", "", [false, true, false, false]),
        ("parentbased_traceidratio", "1", [true, true, false, true]),
        ("parentbased_traceidratio", "", [true, true, false, true]),
        ("parentbased_traceidratio", "0", [false, true, false, false]),
        ("", "1", [true, true, false, true]),
        ("", "0", [false, true, false, false]),
    ] {
        let mut sampler = Sampler::new(config(name, ratio), now);
        for (what, origin, recorded) in [
            ("fresh", Origin::default(), fresh),
            ("yes", told(Some(true)), yes),
            ("no", told(Some(false)), no),
            ("deferred", told(None), deferred),
        ] {
            let expected = if recorded { Decision::Record } else { Decision::Drop };
            assert_eq!(sampler.decide(&origin, trace(TRACE), now), expected, "{name} {ratio}: {what}");
        }
    }
}

#[test]
fn what_cannot_be_is_named() {
    assert_eq!(
        "sometimes".parse::<Name>().unwrap_err().to_string(),
        "`sometimes` is none of always_on, always_off, traceidratio, parentbased_always_on, \
         parentbased_always_off, parentbased_traceidratio"
    );
    for text in ["", "Always_On", "always-on", "xray", "parentbased_jaeger_remote"] {
        assert!(text.parse::<Name>().is_err(), "{text:?}");
    }
    for text in ["", "-0.1", "1.1", "nan", "inf", "1%", "0,5", "half"] {
        let error = text.parse::<Ratio>().unwrap_err().to_string();
        assert_eq!(error, format!("`{text}` is not a number from 0 to 1"));
    }
    for (text, shown) in [
        ("0", "0"),
        ("1", "1"),
        ("1.0", "1"),
        (" 0.01 ", "0.01"),
        ("1e-3", "0.001"),
        (".25", "0.25"),
        ("0.123456789", "0.123456789"),
    ] {
        assert_eq!(text.parse::<Ratio>().unwrap().to_string(), shown, "{text:?}");
    }
    for (name, ratio, shown) in [
        ("", "", "parentbased_traceidratio 0.01"),
        ("", "0.5", "parentbased_traceidratio 0.5"),
        ("always_off", "0.5", "always_off"),
        ("traceidratio", "", "traceidratio 1"),
    ] {
        assert_eq!(config(name, ratio).policy.to_string(), shown);
    }
    assert_eq!(config("", "").policy, Policy::default());
    assert_eq!(config("", "").policy, config("", "0.01").policy, "1 % is what 0.01 is");
}

#[test]
fn a_ratio_takes_its_share() {
    let now = crate::testing::start();
    let mut rng = SmallRng::seed_from_u64(1);
    for (text, ratio) in [("0.5", 0.5), ("0.1", 0.1), ("0.01", 0.01)] {
        let mut sampler = Sampler::new(config("traceidratio", text), now);
        let count = 200_000;
        let taken = (0..count).filter(|_| {
            let trace = TraceId::from_random(rng.random(), rng.random());
            sampler.decide(&Origin::default(), trace, now) == Decision::Record
        });
        let (taken, expected) = (taken.count() as f64, f64::from(count) * ratio);
        // Five standard deviations: of a seed that is fixed, so it holds always or never.
        let spread = 5.0 * (expected * (1.0 - ratio)).sqrt();
        assert!((taken - expected).abs() < spread, "{text}: {taken} of {count}, not {expected}");
    }
}

#[test]
fn the_threshold_is_opentelemetrys() {
    // Of a ratio of 1/4, the rejection threshold is 0xc0 0000 0000 0000: what is not below it is taken.
    for (low, taken) in [
        (0x00c0_0000_0000_0000, true),
        (0x00bf_ffff_ffff_ffff, false),
        (0x00ff_ffff_ffff_ffff, true),
        (0xffbf_ffff_ffff_ffff, false),
        (1, false),
    ] {
        assert_eq!(takes("0.25", TraceId::from_random(7, low)), taken, "{low:#x}");
    }
    let [most, least] = [u64::MAX, 1].map(|low| TraceId::from_random(7, low));
    assert!(takes("1e-30", most) && !takes("0", most), "little is not nothing");
    assert!(takes("1", least) && !takes("0.999999", least));
}

#[test]
fn the_cap_is_on_what_is_decided_here() {
    let now = crate::testing::start();
    let (ten, two) = (NonZeroU32::new(10).unwrap(), NonZeroU32::new(2).unwrap());
    let capped = Config { max_per_second: ten, ..config("parentbased_always_on", "") };
    let recorded = |sampler: &mut Sampler, origin: Origin, at: Instant| {
        (0..100).filter(|_| sampler.decide(&origin, trace(TRACE), at) == Decision::Record).count()
    };
    let mut sampler = Sampler::new(capped, now);
    assert_eq!(recorded(&mut sampler, Origin::default(), now), 10, "a second's worth at once");
    assert_eq!(sampler.capped(), 90);
    assert_eq!(recorded(&mut sampler, told(Some(true)), now), 100, "decided elsewhere, counted there");
    assert_eq!(recorded(&mut sampler, told(Some(false)), now), 0);
    assert_eq!(sampler.capped(), 90);
    assert_eq!(recorded(&mut sampler, told(None), now), 0, "left to us");
    assert_eq!(recorded(&mut sampler, Origin::default(), now + SECOND / 2), 5);
    assert_eq!(
        recorded(&mut sampler, Origin::default(), now + SECOND / 4),
        0,
        "time that goes back stands still"
    );
    assert_eq!(
        recorded(&mut sampler, Origin::default(), now + 100 * SECOND),
        10,
        "and no more after a pause"
    );

    let mut sampler = Sampler::new(Config { workers: two, ..capped }, now);
    assert_eq!(recorded(&mut sampler, Origin::default(), now), 5, "one of two workers");
    // One of two that share one per second: every other second.
    let one = Config { max_per_second: NonZeroU32::MIN, workers: two, ..capped };
    let mut sampler = Sampler::new(one, now);
    let seconds = (0..10).map(|second| recorded(&mut sampler, Origin::default(), now + second * SECOND));
    assert_eq!(seconds.sum::<usize>(), 5);
}

#[test]
fn over_any_time_the_cap_holds() {
    let now = crate::testing::start();
    let config = Config { max_per_second: NonZeroU32::new(100).unwrap(), ..config("always_on", "") };
    let mut sampler = Sampler::new(config, now);
    let recorded = (0..100_000_u32).filter(|n| {
        sampler.decide(&Origin::default(), trace(TRACE), now + *n * SECOND / 10_000) == Decision::Record
    });
    // Ten seconds, and the second's worth that it begins with.
    assert_eq!(recorded.count(), 1_100 - 1);
}

#[test]
fn what_ends_badly_is_kept() {
    let now = crate::testing::start();
    let keep = Keep { errors: true, slower: Some(SECOND / 2) };
    let ten = NonZeroU32::new(10).unwrap();
    let config = Config { keep, max_per_second: ten, ..config("parentbased_always_off", "") };
    let mut sampler = Sampler::new(config, now);
    for origin in [Origin::default(), told(Some(false)), told(None)] {
        assert_eq!(sampler.decide(&origin, trace(TRACE), now), Decision::Candidate);
    }
    assert_eq!(sampler.decide(&told(Some(true)), trace(TRACE), now), Decision::Record);
    let quick = SECOND / 100;
    assert!(!sampler.keeps(false, quick, now));
    let kept = (0..100).filter(|_| sampler.keeps(true, quick, now)).count();
    assert_eq!((kept, sampler.capped()), (10, 90), "a flood of failures is capped too");
    assert!(sampler.keeps(false, SECOND, now + SECOND));
}

#[test]
fn failures_take_no_place_of_what_the_ratio_takes() {
    let now = crate::testing::start();
    let keep = Keep { errors: true, slower: None };
    let ten = NonZeroU32::new(10).unwrap();
    let mut sampler = Sampler::new(Config { keep, max_per_second: ten, ..config("always_on", "") }, now);
    while sampler.keeps(true, SECOND, now) {}
    assert_eq!(sampler.decide(&Origin::default(), trace(TRACE), now), Decision::Record);
    while sampler.decide(&Origin::default(), trace(TRACE), now) == Decision::Record {}
    let over = sampler.decide(&Origin::default(), trace(TRACE), now);
    assert_eq!(over, Decision::Candidate, "over the cap, but its end may still be worth keeping");
}

#[test]
fn what_to_keep_is_read_from_words() {
    let duration = |text: &str| text.strip_suffix("ms")?.parse().ok().map(Duration::from_millis);
    let slower = Some(SECOND / 2);
    for (text, keep) in [
        ("errors", Ok(Keep { errors: true, slower: None })),
        ("slower=500ms", Ok(Keep { errors: false, slower })),
        ("errors,slower=500ms", Ok(Keep { errors: true, slower })),
        (" slower=500ms , errors ", Ok(Keep { errors: true, slower })),
        ("", Err(KeepError::Unknown("".into()))),
        ("errors,", Err(KeepError::Unknown("".into()))),
        ("error", Err(KeepError::Unknown("error".into()))),
        ("errors=1", Err(KeepError::Unknown("errors=1".into()))),
        ("slower", Err(KeepError::Unknown("slower".into()))),
        ("slower=", Err(KeepError::Duration("".into()))),
        ("slower=fast", Err(KeepError::Duration("fast".into()))),
        ("errors,errors", Err(KeepError::Twice("errors"))),
        ("slower=1ms,slower=2ms", Err(KeepError::Twice("slower"))),
    ] {
        assert_eq!(Keep::parse(text, duration), keep, "{text:?}");
    }
    let keep = Keep { errors: true, slower };
    for (failed, duration, kept) in [
        (false, SECOND / 4, false),
        (false, SECOND / 2, false),
        (false, SECOND, true),
        (true, Duration::ZERO, true),
    ] {
        assert_eq!(keep.keeps(failed, duration), kept, "{failed} {duration:?}");
    }
    assert!(Keep::default().is_nothing() && !keep.is_nothing());
    assert!(!Keep::default().keeps(true, 100 * SECOND));
}
