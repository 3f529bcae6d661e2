//! A changed number applies to the next request, and nothing that was learned is lost.

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Result, ensure};
use outrigger_lab::{Lab, Pod};

use super::{FULL, LIMITED, admitted};
use crate::support::{
    ask::{Loops, at_once, in_turn, reasons},
    booth::Booth,
    guarded::Guarded,
};

pub(super) fn hot_changes(lab: &Lab) -> Result<()> {
    let with = |burst: u64, places: u64, under_load: u64| {
        [
            format!("rateLimit: [{{name: hot, requests: 1, per: 1000s, burst: {burst}}}]"),
            format!("bulkhead: {{total: {{maxRequests: {places}}}, queue: {{size: 20, timeout: 60s}}}}"),
            format!("bulkhead: {{total: {{maxRequests: {under_load}}}}}"),
        ]
    };
    let borrowed = |sections: &[String; 3]| sections.each_ref().map(|section| section.as_str().to_owned());
    let begin = with(10, 2, 4);
    let booth = |pod: &Pod, port| Booth::with_work(pod, port, "store", 100, Duration::from_millis(10));
    let refs: Vec<_> = begin.iter().map(String::as_str).collect();
    let shop = Guarded::with_booths(lab, &["web"], &refs, booth)?;
    let pod = &shop.callers[0].pod;
    let change = |burst, places, under_load| {
        let sections = borrowed(&with(burst, places, under_load));
        shop.change(&sections.each_ref().map(String::as_str))
    };
    let draw = |number| {
        let told = in_turn(pod, vec![shop.ask(1, "/"); number])?;
        admitted(&told, LIMITED, 429)
    };

    // All of what follows is under the load of somebody else, whom changes must not cost an answer.
    let load = Loops::new(shop.ask(3, "/"), 8).start(pod)?;
    load.wait_for_more(100)?;
    let sample = "outrigger_bulkhead_shed_total{name=\"port/8083\",reason=\"bulkhead-full\"}";
    let shed = shop.metric(sample)?;
    ensure!(shed > 0, "nothing is refused");

    // Six of ten are gone; others want a place and wait.
    ensure!(draw(6)? == 6);
    let held = at_once(pod, vec![shop.ask(2, "/hold"); 6])?;
    shop.wait_inside(2, 2)?;
    shop.wait_queued(2, 4)?;
    // A higher limit admits who waits, and brings no tokens along.
    change(20, 5, 2)?;
    shop.wait_inside(2, 5)?;
    shop.wait_queued(2, 1)?;
    let drawn = draw(1)?;
    ensure!(drawn == 1, "four were left");
    // A lower one cuts nobody off, and holds for the next.
    change(2, 1, 6)?;
    let told = draw(5)?;
    ensure!(told == 2, "{told} of the two that the new burst leaves of three");
    ensure!(shop.booths[2].inside() == 5 && held.answered() == 0);
    shop.booths[2].let_out(4);
    shop.wait_inside(2, 1)?;
    held.wait_answered(4)?;
    shop.wait_queued(2, 1)?;
    shop.booths[2].take_most();
    shop.booths[2].let_out(2);
    for told in held.wait()? {
        ensure!(told.is_good(), "{told:?}");
    }
    ensure!(shop.booths[2].take_most() == 1);
    // Back up: no tokens but those that are left.
    change(50, 3, 3)?;
    ensure!(draw(3)? == 0, "a new burst is no new bucket");

    // The number in force holds for the load, nothing else befell it, and its counts went on.
    load.wait_for_more(20)?;
    shop.booths[3].take_most();
    load.wait_for_more(100)?;
    let most = shop.booths[3].take_most();
    ensure!(most <= 3, "{most} at once where three may be");
    let outcome = load.stop()?;
    outcome.expect_only(&[FULL])?;
    let seen: BTreeMap<_, _> = reasons(&outcome.told);
    let after = shop.metric(sample)?;
    ensure!(after > shed && after == seen[FULL] as u64, "{shed}, then {after}, and callers saw {seen:?}");
    Ok(())
}
