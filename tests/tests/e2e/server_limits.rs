//! What a ServerPolicy limits at the application's side: bulkheads, rate limits, deadlines.
//!
//! Every observation is made twice: on a port with the section, and on a port that lacks it (or the field in question).
//! Both results are asserted, so that a test fails when the feature is taken out.

use anyhow::{Result, ensure};

use crate::support::{Need, Test, ask::Told};

mod bulkheads;
mod changes;
mod deadlines;
mod ports;
mod rates;

pub(crate) fn tests() -> Vec<Test> {
    vec![
        Test::new("server_fairness_keeps_a_callers_p99_beside_a_flood", bulkheads::fairness).quiet(),
        Test::new("server_adaptive_limit_follows_latency_within_its_range", bulkheads::adaptive),
        Test::new("server_rate_limit_max_keys_bounds_what_is_kept", rates::max_keys),
        Test::new("server_limits_change_hot_and_forget_nothing", changes::hot_changes),
        Test::new("server_deadlines_are_kept_passed_on_and_shrink", deadlines::deadlines),
        Test::new("server_bulkhead_admits_as_many_requests_as_it_says", bulkheads::most_requests),
        Test::new("server_bulkhead_admits_as_many_connections_as_it_says", bulkheads::most_connections),
        Test::new("server_bulkhead_per_caller_leaves_room_for_others", bulkheads::per_caller),
        Test::new("server_bulkhead_queue_has_a_size_and_a_time", bulkheads::queue),
        Test::new("server_bulkhead_queue_serves_callers_in_turn", bulkheads::turns),
        Test::new("server_rate_limit_token_bucket_answers_429_with_its_fields", rates::token_bucket),
        Test::new("server_rate_limit_sliding_window_never_admits_more_in_a_window", rates::sliding_window),
        Test::new("server_rate_limit_keys_count_apart", rates::keys),
        Test::new("server_rate_limit_dry_run_counts_and_refuses_nobody", rates::dry_run),
        Test::new("server_rate_limit_counts_opaque_connections", rates::opaque),
        Test::new("server_policy_with_more_labels_goes_first_field_by_field", ports::precedence),
        Test::new("server_policy_declares_what_a_port_speaks", ports::protocols),
        Test::new("server_refusals_are_grpc_statuses_in_another_language", ports::other_language)
            .needs(&[Need::Python]),
    ]
}

const FULL: &str = "bulkhead-full";
const LIMITED: &str = "rate-limited";

/// How many were admitted, and that all others were refused for this reason with this status, or its gRPC equivalent.
fn admitted(told: &[Told], reason: &str, status: u16) -> Result<usize> {
    let good = told.iter().filter(|told| told.is_good()).count();
    let says = |told: &&Told| told.status == status || told.field("grpc-status") == Some("8");
    let refused = told.iter().filter(|told| told.reason() == reason).filter(says).count();
    ensure!(good + refused == told.len(), "wanted good answers or {status} {reason}: {told:?}");
    Ok(good)
}
