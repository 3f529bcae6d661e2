//! What a histogram of durations promises: HdrHistogram's library is asked what it would have done.

use hdrhistogram::Histogram;
use proptest::{collection::vec, prelude::*};

use super::*;

fn micros() -> impl Strategy<Value = u64> {
    // All powers of ten alike.
    (0u32..10, 1..1_000u64).prop_map(|(power, digits)| digits * 10u64.pow(power) / 100)
}

fn recorded(all: &[u64]) -> Durations {
    let mut durations = Durations::new();
    all.iter().for_each(|micros| durations.record(Duration::from_micros(*micros)));
    durations
}

/// Within 1 %.
fn is_near(told: Duration, exact: u64) -> bool {
    let exact = exact.clamp(Durations::LEAST_US, Durations::MOST_US) as f64;
    let told = told.as_micros() as f64;
    (told - exact).abs() < (exact / 100.0).max(1.0)
}

fn library(all: &[u64]) -> Histogram<u64> {
    let mut histogram = Histogram::new_with_bounds(1, 600_000_000, 2).unwrap();
    all.iter().for_each(|micros| histogram.record((*micros).clamp(10, 600_000_000)).unwrap());
    histogram
}

proptest! {
    #[test]
    fn it_is_hdr_histogram(all in vec(micros(), 1..200), quantiles in vec(0.0001..=1.0f64, 1..20)) {
        let (durations, library) = (recorded(&all), library(&all));
        let theirs = library.iter_recorded().map(|it| (it.value_iterated_to(), it.count_at_value()));
        let ours = durations.buckets().map(|(bucket, count)| (Durations::micros_of(bucket), count));
        prop_assert_eq!(ours.collect::<Vec<_>>(), theirs.collect::<Vec<_>>());
        for quantile in quantiles {
            let told = durations.quantile(quantile).unwrap().as_micros();
            prop_assert_eq!(told, u128::from(library.value_at_quantile(quantile)), "{}", quantile);
        }
        prop_assert_eq!(durations.max().unwrap().as_micros(), u128::from(library.max()));
    }

    #[test]
    fn quantiles_and_the_longest_are_near_the_exact_ones(mut all in vec(micros(), 1..200), quantile in 0.0..=1.0f64) {
        let durations = recorded(&all);
        all.sort_unstable();
        let rank = ((quantile * all.len() as f64).ceil() as usize).clamp(1, all.len());
        prop_assert!(is_near(durations.quantile(quantile).unwrap(), all[rank - 1]));
        prop_assert!(is_near(durations.max().unwrap(), all[all.len() - 1]));
        prop_assert_eq!(durations.count(), all.len() as u64);
    }

    /// However they are grouped, and whichever of the two has the longer ones.
    #[test]
    fn adding_up_is_recording_all_in_one(one in vec(micros(), 0..50), other in vec(micros(), 0..50)) {
        let mut sum = recorded(&one);
        sum.add(&recorded(&other));
        let mut by_bucket = recorded(&other);
        recorded(&one).buckets().for_each(|(bucket, count)| by_bucket.add_bucket(bucket, count));
        let all = recorded(&[one, other].concat());
        prop_assert_eq!(&sum, &all);
        // As they arrive: lists, until something is added.
        let list = |durations: &Durations| Durations::of_list(durations.buckets().collect());
        let mut listed = list(&recorded(&[]));
        for other in [&sum, &by_bucket] {
            let other = list(other);
            prop_assert_eq!((&other, other.count(), other.max()), (&all, all.count(), all.max()));
            prop_assert_eq!(other.quantile(0.5), all.quantile(0.5));
            listed.add(&other);
            let mut twice = other.clone();
            twice.add(&other);
            prop_assert_eq!(twice.count(), 2 * all.count());
            twice.reset();
            prop_assert_eq!(twice, Durations::new());
        }
        prop_assert_eq!(listed.count(), 2 * all.count());
        prop_assert_eq!(&by_bucket, &all);
        prop_assert_eq!((sum.count(), sum.max()), (all.count(), all.max()));
    }
}

#[test]
fn each_duration_has_one_bucket() {
    let mut before = 0;
    for micros in (0..5_000).chain((1..=1_000).map(|n| n * 600_000)).chain([u64::MAX]) {
        let bucket = Durations::bucket_of(micros);
        assert!(bucket >= before && usize::from(bucket) < Durations::BUCKETS, "{micros}");
        assert!(Durations::micros_of(bucket) >= micros.min(Durations::MOST_US), "{micros}");
        before = bucket;
    }
    for bucket in 0..Durations::BUCKETS as u16 {
        assert_eq!(Durations::bucket_of(Durations::micros_of(bucket)), bucket);
    }
}

#[test]
fn an_empty_one_is_nothing() {
    let empty = Durations::new();
    assert_eq!((empty.count(), empty.max(), empty.quantile(0.5)), (0, None, None));
    assert_eq!(empty.buckets().count(), 0);
    let mut reset = recorded(&[5, 1_000_000]);
    reset.reset();
    assert_eq!((reset.count(), reset.max(), reset.quantile(1.0)), (0, None, None));
    assert_eq!(reset, empty);
    reset.add_bucket(50, 0);
    assert_eq!(reset.max(), None);
    // What it had before does not come back.
    reset.add(&recorded(&[100]));
    assert_eq!(reset, recorded(&[100]));
}

#[test]
fn what_is_outside_counts_at_the_ends() {
    let durations = recorded(&[0, 1, u64::MAX]);
    assert_eq!(durations.count(), 3);
    assert!(is_near(durations.quantile(0.5).unwrap(), Durations::LEAST_US));
    assert!(is_near(durations.max().unwrap(), Durations::MOST_US));
}

#[test]
fn room_grows_with_the_longest() {
    let room = |all: &[u64]| recorded(all).counts.capacity() * 8;
    assert_eq!(room(&[255]), 2 << 10);
    assert_eq!(room(&[4_000]), 6 << 10);
    assert_eq!(room(&[600_000_000]), 24 << 10);
}
