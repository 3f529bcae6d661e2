//! The play: what is shown, act by act, while visitors keep coming.
//!
//! Each act ends in a [`Fact`] that holds or does not. One that goes wrong does not keep the others from being shown;
//! only Ctrl-C ends the play early.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::{
    interrupt::{Interrupt, Interrupted},
    load::{CARD, Counts, Load, RECEIPT},
    screen::{Fact, Screen, millis, thousands},
    split::{self, Change, Version},
    stage::{self, CAST, PAYMENTS_ROLE, POLICIES_FILE, Recorded, SPLIT_FILE, Stage, VICTIM},
    stranger::{self, Knock},
    traces,
};

/// Requests per second that visitors ask for; sidecars could carry far more.
const RATE: u32 = 500;
/// For everything that has to come true by itself.
const DEADLINE: Duration = Duration::from_secs(10);

pub(crate) struct Play<'a> {
    stage: &'a mut dyn Stage,
    screen: &'a mut Screen,
    interrupt: &'a Interrupt,
    load: Load,
    facts: Vec<Fact>,
}

type Act<'a> = fn(&mut Play<'a>) -> Result<String>;

impl<'a> Play<'a> {
    /// Opens the shop: visitors come from now on.
    pub(crate) fn open(
        stage: &'a mut dyn Stage,
        screen: &'a mut Screen,
        interrupt: &'a Interrupt,
    ) -> Result<Self> {
        let (place, shop) = stage.shopfront();
        wait_open(&place, shop, interrupt)?;
        let load = Load::start(&place, shop, RATE)?;
        Ok(Self { stage, screen, interrupt, load, facts: Vec::new() })
    }

    /// All acts. True when everything held.
    pub(crate) fn perform(&mut self) -> Result<bool> {
        let mut acts: Vec<(&'static str, Act<'a>)> = vec![
            ("identities", Self::identities),
            ("plaintext on the wire", Self::search_the_wire),
            ("strangers", Self::strangers),
            ("traffic split", Self::move_the_split),
            ("instance killed", Self::kill_an_instance),
            ("control plane killed", Self::kill_the_control_plane),
            ("check of the search", Self::check_the_search),
        ];
        if self.stage.backend().is_some() {
            acts.insert(1, ("traces", Self::trace_a_purchase));
        }
        let start = Instant::now();
        for (title, act) in acts {
            let fact = match act(self) {
                Ok(text) => Fact { holds: true, title, text },
                Err(error) if error.is::<Interrupted>() => return Err(error),
                Err(error) => Fact { holds: false, title, text: format!("{error:#}") },
            };
            let mark = if fact.holds { "" } else { "FAILED: " };
            self.screen.step(format_args!("{title}: {mark}{}", fact.text.lines().next().unwrap_or_default()));
            self.facts.push(fact);
        }
        let requests = self.requests(start.elapsed());
        self.facts.insert(1, requests);
        self.screen.summary(&self.facts);
        Ok(self.facts.iter().all(|fact| fact.holds))
    }

    /// Goes on with a few visitors until the user ends it, and says what can be tried meanwhile.
    pub(crate) fn stay(&mut self) {
        let config = self.stage.directory().join("config");
        self.screen.say(format_args!("The shop stays open. Edit {}/{SPLIT_FILE}, or try:", config.display()));
        for (what, command) in self.stage.invitations() {
            self.screen.say(format_args!("  # {what}\n  {command}"));
        }
        self.load.set_rate(20);
        while self.interrupt.sleep(Duration::from_millis(250)).is_ok() {
            let recent = versions(&self.load.answers_since(Instant::now() - Duration::from_secs(5)));
            let share = 100.0 * split::share(&recent);
            self.screen.tick(&self.load, &format!("open (Ctrl-C ends it), {share:.0} % to orders v2"));
        }
    }

    // --- the acts ---

    fn identities(&mut self) -> Result<String> {
        let mut serials = BTreeSet::new();
        let mut identities = BTreeSet::new();
        for role in 0..CAST.len() {
            let certs: Value = serde_json::from_str(&self.stage.sidecar(role, "/certs")?)?;
            let serial = certs["chain"][0]["serial"].as_str().context("no certificate")?;
            let identity = certs["identity"].as_str().context("no identity")?;
            ensure!(serials.insert(serial.to_owned()), "certificate {serial} is used twice");
            identities.insert(identity.to_owned());
        }
        let all: Vec<_> = identities.into_iter().collect();
        Ok(format!("{} certificates issued for {}", serials.len(), all.join(", ")))
    }

    fn trace_a_purchase(&mut self) -> Result<String> {
        let (place, shop) = self.stage.shopfront();
        let id = traces::buy(&place, shop, &purchase())?;
        let backend = self.stage.backend().context("no backend")?;
        let interrupt = self.interrupt;
        match backend.tree(&id, || interrupt.sleep(Duration::from_millis(100))) {
            Ok(tree) => {
                let count = backend.count("web")?;
                let page = &backend.page;
                Ok(format!(
                    "{tree}\n{page}/trace/{id} (JSON: {page}/api/traces/{id}); {count} traces of web so far"
                ))
            }
            // Whoever sends spans somewhere need not have this query API there.
            Err(error) if !backend.ours && !error.is::<Interrupted>() => Ok(format!(
                "purchase {id} was sent, but cannot be shown: {error:#} (--traces-query names Jaeger's query API)"
            )),
            Err(error) => Err(error),
        }
    }

    fn search_the_wire(&mut self) -> Result<String> {
        let before = self.load.counts();
        let recording = self.stage.record()?;
        self.watch(Duration::from_secs(3), "the wire is recorded")?;
        let recorded = recording.stop()?;
        let counts = self.load.counts() - before;
        let found = searched(&recorded)?;
        ensure!(counts.bought > 0, "nobody bought anything while the wire was recorded");
        let what = format!(
            "{} {} ({:.1} MB) during {} purchases searched for card number and receipt: {found} found",
            thousands(recorded.pieces()),
            self.stage.wire(),
            recorded.bytes() as f64 / 1e6,
            thousands(counts.bought),
        );
        ensure!(found == 0, "{what}");
        Ok(what)
    }

    fn strangers(&mut self) -> Result<String> {
        let mut told = Vec::new();
        for (who, knock) in self.knock_both_ways()? {
            match knock {
                Knock::Refused(how) => told.push(format!("{who}: refused, {how}")),
                Knock::LetIn(answer) => bail!("{who}: let in, answered {answer}"),
            }
        }
        let log = self.stage.app_log(PAYMENTS_ROLE);
        ensure!(!log.contains(stranger::PATH), "a stranger's request reached the application");
        told.push("nothing reached the application".to_owned());
        Ok(told.join("\n"))
    }

    fn move_the_split(&mut self) -> Result<String> {
        self.watch(Duration::from_secs(1), "90 % to orders v1")?;
        let before = self.share_during(Duration::from_secs(1), "90 % to orders v1")?;
        let followed = self.follow(10, Change { from: 0.1, to: 0.9 })?;
        let after = self.share_during(Duration::from_secs(1), "10 % to orders v1")?;
        ensure!(
            before < 0.3 && after > 0.7,
            "orders v2 got {:.0} %, then {:.0} %",
            before * 100.0,
            after * 100.0
        );
        ensure!(followed < Duration::from_secs(1), "followed only after {}", millis(followed));
        Ok(format!(
            "90/10 -> 10/90 by editing {SPLIT_FILE}: the first request followed after {} (v2 got {:.0} %, then {:.0} %)",
            millis(followed),
            before * 100.0,
            after * 100.0,
        ))
    }

    fn kill_an_instance(&mut self) -> Result<String> {
        // Half and half, so that the instance that dies has work in hand.
        self.follow(50, Change { from: 0.9, to: 0.5 })?;
        // A purchase that was sent may have been made: the mesh never sends one twice, so a crash would fail it.
        self.load.set_buying(false);
        let before = self.load.counts();
        self.watch(Duration::from_millis(500), "two instances of orders v1")?;
        self.stage.kill(VICTIM)?;
        let watched = self.watch(Duration::from_secs(3), "one instance of orders v1 is dead");
        let counts = self.load.counts() - before;
        self.load.set_buying(true);
        watched?;
        self.no_failures(counts)?;
        Ok(format!(
            "{} (program and sidecar) by SIGKILL under load: {} requests, 0 failed",
            CAST[VICTIM].name,
            thousands(counts.done)
        ))
    }

    fn kill_the_control_plane(&mut self) -> Result<String> {
        let before = self.load.counts();
        self.stage.kill_control_plane()?;
        self.watch(Duration::from_secs(3), "without a control plane")?;
        self.stage.start_control_plane()?;
        let back = Instant::now();
        // Proxies come back within their back-off; the split tells when it steers again.
        self.follow(90, Change { from: 0.5, to: 0.1 })?;
        let steers = back.elapsed();
        let counts = self.load.counts() - before;
        self.no_failures(counts)?;
        Ok(format!(
            "SIGKILL, 3 s without it, restarted: {} requests, 0 failed; it steered again {} after it was back",
            thousands(counts.done),
            millis(steers)
        ))
    }

    fn check_the_search(&mut self) -> Result<String> {
        self.stage.configure(POLICIES_FILE, stage::permissive())?;
        let recording = self.stage.record()?;
        let opened = self.wait_for("plaintext to be let in", |play| {
            Ok(matches!(play.knock_in_plaintext("/buy")?, Knock::LetIn(answer) if answer.status == 200))
        });
        let recorded = recording.stop()?;
        // Whatever happened, the door is closed again.
        self.stage.configure(POLICIES_FILE, stage::strict())?;
        opened?;
        let found = searched(&recorded)?;
        self.wait_for("plaintext to be refused again", |play| {
            Ok(matches!(play.knock_in_plaintext("/buy")?, Knock::Refused(_)))
        })?;
        ensure!(found > 0, "a plain purchase was not found on the wire: the search is worth nothing");
        Ok(format!(
            "with payments permissive and a plain client the same search finds the bytes ({found} times); strict again"
        ))
    }

    /// The account of all visitors.
    fn requests(&self, time: Duration) -> Fact {
        let counts = self.load.counts();
        let latency = self.load.latency();
        let mut text = format!(
            "{} in {:.0} s, {:.0} per second, p50 {}, p99 {}, {} failed",
            thousands(counts.done),
            time.as_secs_f64(),
            counts.done as f64 / time.as_secs_f64(),
            millis(latency.p50),
            millis(latency.p99),
            counts.failed
        );
        for failure in self.load.failures() {
            text.push('\n');
            text.push_str(&failure);
        }
        Fact { holds: counts.failed == 0 && counts.done > 0, title: "requests", text }
    }

    // --- what acts are made of ---

    fn watch(&mut self, time: Duration, what: &str) -> Result<()> {
        let end = Instant::now() + time;
        while Instant::now() < end {
            self.interrupt
                .sleep(Duration::from_millis(50).min(end.saturating_duration_since(Instant::now())))?;
            self.screen.tick(&self.load, what);
        }
        Ok(())
    }

    fn wait_for(&mut self, what: &str, mut holds: impl FnMut(&Self) -> Result<bool>) -> Result<()> {
        let end = Instant::now() + DEADLINE;
        loop {
            if holds(self)? {
                return Ok(());
            }
            ensure!(Instant::now() < end, "waited {} s in vain for {what}", DEADLINE.as_secs());
            self.watch(Duration::from_millis(50), what)?;
        }
    }

    /// Edits the split; the time until the first request that followed it.
    fn follow(&mut self, v1: u32, change: Change) -> Result<Duration> {
        /// So many answers after the change make sure that it is one.
        const ENOUGH: usize = 50;
        let edited = Instant::now();
        self.stage.configure(SPLIT_FILE, &stage::split(v1))?;
        let mut first = None;
        self.wait_for("the new split", |play| {
            let answers = play.load.answers_since(edited);
            let versions = versions(&answers);
            let Some(index) = split::first_after(&versions, change) else { return Ok(false) };
            first = Some(answers[index].0);
            Ok(versions.len() - index >= ENOUGH)
        })?;
        Ok(first.context("no request followed")?.saturating_duration_since(edited))
    }

    fn share_during(&mut self, time: Duration, what: &str) -> Result<f64> {
        let start = Instant::now();
        self.watch(time, what)?;
        let answers = self.load.answers_since(start);
        ensure!(answers.len() >= 50, "only {} answers in {}", answers.len(), millis(time));
        Ok(split::share(&versions(&answers)))
    }

    fn knock_in_plaintext(&self, path: &str) -> Result<Knock> {
        let (place, door) = self.stage.outside();
        place.enter(|| stranger::in_plaintext(door, path, &purchase()))?
    }

    fn knock_both_ways(&self) -> Result<[(&'static str, Knock); 2]> {
        let (place, door) = self.stage.outside();
        let tls = place.enter(|| stranger::without_certificate(door, stranger::PATH, &purchase()))??;
        let plain = self.knock_in_plaintext(stranger::PATH)?;
        Ok([("TLS without a certificate", tls), ("plaintext", plain)])
    }

    fn no_failures(&self, counts: Counts) -> Result<()> {
        if counts.failed > 0 {
            bail!(
                "{} of {} failed: {}",
                counts.failed,
                counts.done + counts.failed,
                self.load.failures().join("; ")
            );
        }
        ensure!(counts.done > 0, "no requests");
        Ok(())
    }
}

/// Waits until a visitor is served.
fn wait_open(place: &stage::Place, shop: std::net::SocketAddr, interrupt: &Interrupt) -> Result<()> {
    let end = Instant::now() + 2 * DEADLINE;
    loop {
        let answer = place.enter(|| super::client::Client::new(shop).ask("/", None))?;
        match answer {
            Ok(answer) if answer.status == 200 => return Ok(()),
            Ok(answer) if Instant::now() > end => {
                bail!("the shop does not open: {answer}: {}", answer.body.trim())
            }
            Err(error) if Instant::now() > end => return Err(error).context("the shop does not open"),
            Ok(_) | Err(_) => interrupt.sleep(Duration::from_millis(50))?,
        }
    }
}

/// How often what must not be readable was seen.
fn searched(recorded: &Recorded) -> Result<usize> {
    ensure!(recorded.pieces() > 0, "nothing was recorded");
    ensure!(recorded.unsearched() == 0, "{} packets were too many to be searched", recorded.unsearched());
    Ok(recorded.count(CARD) + recorded.count(RECEIPT))
}

fn purchase() -> String {
    format!("item=canoe&card={CARD}")
}

fn versions(answers: &[(Instant, Version)]) -> Vec<Version> {
    answers.iter().map(|(_, version)| *version).collect()
}
