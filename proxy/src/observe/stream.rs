//! The stream to the active control plane: what is seen goes there, what all others see comes back.
//!
//! ```text
//!   workers ── events, calling ──▶ ┌────────┐ ── Observations ──▶ active control plane
//!   shared limits ── demands ────▶ │ stream │
//!   workers ◀── fleets ─────────── └────────┘ ◀── Guidance ──────
//!   shared limits ◀── shares
//! ```
//!
//! It runs on the connection that carries the configuration and follows it: another control plane becomes active, another
//! stream begins, and tells the whole state first. Nothing depends on it; without it each proxy goes by what it sees, and
//! a share of a limit runs out.

use std::{sync::Arc, time::Duration};

use outrigger_core::backoff::Backoff;
use outrigger_proto::{
    convert,
    limits::{MAX_FLEETS, MAX_MESSAGE_BYTES, MAX_OBSERVATIONS},
    pb::{self, mesh_client::MeshClient},
    spec::{BackendKey, Observations, Transition},
};
use rand::{SeedableRng as _, rngs::SmallRng};
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, MissedTickBehavior, interval, sleep, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;

use super::bulletin::{Changes, Heard};
use crate::{
    context::Ctx,
    sync::{Connection, connect},
};

/// How often demands for shared limits are told.
const DEMANDS: Duration = Duration::from_millis(250);
/// How often what the configuration does not have any more is forgotten.
const PRUNE: Duration = Duration::from_secs(5);
const FIRST_WAIT: Duration = Duration::from_millis(500);
const LONGEST_WAIT: Duration = Duration::from_secs(30);
/// A stream that lived this long was a success: the next wait is short again.
const SETTLED: Duration = Duration::from_secs(5);
const ANSWER: Duration = Duration::from_secs(5);
/// Messages that the control plane has not taken; with more, it is stuck.
const UNSENT: usize = 32;

/// Runs for as long as the process lives.
pub async fn run(ctx: Arc<Ctx>, mut active: watch::Receiver<Option<Connection>>) {
    let mut rng = SmallRng::from_rng(&mut rand::rng());
    let mut backoff = Backoff::new(FIRST_WAIT, LONGEST_WAIT);
    loop {
        let Ok(now) = active.wait_for(Option::is_some).await.map(|active| active.clone()) else { return };
        let Some(now) = now else { continue };
        let began = Instant::now();
        let mut stream = Stream { ctx: &ctx, calling: ctx.bulletin.calling(), demanding: false };
        tokio::select! {
            why = stream.carry(now.channel) => tracing::debug!("observation stream: {why}"),
            () = replaced(&mut active, now.number) => {
                backoff.on_success();
                continue;
            }
        }
        if began.elapsed() >= SETTLED {
            backoff.on_success();
        }
        sleep(backoff.on_failure(&mut rng)).await;
    }
}

/// Keeps what is shared in step with the configuration: begins with new limits at once, and forgets what is not there any
/// more as time goes by.
pub async fn keep(ctx: Arc<Ctx>) {
    let mut changes = ctx.snapshot.changes();
    let mut prune = interval(PRUNE);
    prune.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ctx.limits.adopt(&ctx.snapshot.load());
        tokio::select! {
            () = changes.changed() => {}
            _ = prune.tick() => {
                let snapshot = ctx.snapshot.load();
                ctx.events.prune(&snapshot);
                ctx.limits.prune(&snapshot);
            }
        }
    }
}

async fn replaced(active: &mut watch::Receiver<Option<Connection>>, number: u64) {
    let other = |active: &Option<Connection>| active.as_ref().is_none_or(|now| now.number != number);
    // Gone for good: the process is ending.
    let _ = active.wait_for(other).await;
}

struct Stream<'a> {
    ctx: &'a Ctx,
    calling: Changes,
    /// The last message told of demands. One that tells of none goes after it, or the share would stay taken.
    demanding: bool,
}

impl Stream<'_> {
    /// Why it ended.
    async fn carry(&mut self, channel: Channel) -> String {
        let (say, said) = mpsc::channel(UNSENT);
        if !self.say(&say, self.ctx.events.take_whole()) {
            return "cannot begin".to_owned();
        }
        let mut client = MeshClient::new(channel).max_decoding_message_size(MAX_MESSAGE_BYTES);
        let mut incoming = match timeout(ANSWER, client.observe(ReceiverStream::new(said))).await {
            Ok(Ok(response)) => response.into_inner(),
            Ok(Err(status)) => return connect::explain(&status),
            Err(_) => return "no answer".to_owned(),
        };
        let mut demands = interval(DEMANDS);
        demands.set_missed_tick_behavior(MissedTickBehavior::Skip);
        loop {
            let taken = tokio::select! {
                message = incoming.message() => match message {
                    Ok(Some(guidance)) => match self.obey(guidance) {
                        Ok(()) => true,
                        Err(why) => return why,
                    },
                    Ok(None) => return "the control plane ended it".to_owned(),
                    Err(status) => return connect::explain(&status),
                },
                () = self.ctx.events.has_news() => self.say(&say, self.ctx.events.take()),
                () = self.calling.changed() => self.say(&say, Vec::new()),
                _ = demands.tick() => {
                    let idle = !self.demanding && self.ctx.limits.demands().is_empty();
                    idle || self.say(&say, Vec::new())
                }
            };
            if !taken {
                // What was not told is told whole on the next stream.
                return "the control plane does not take what it is told".to_owned();
            }
        }
    }

    /// Every message says all but the transitions, because nothing in it is acknowledged.
    fn say(&mut self, say: &mpsc::Sender<pb::Observations>, transitions: Vec<Transition>) -> bool {
        let mut demands = self.ctx.limits.demands();
        demands.truncate(MAX_OBSERVATIONS);
        self.demanding = !demands.is_empty();
        let calling: Vec<BackendKey> = self.calling.current().iter().take(MAX_FLEETS).cloned().collect();
        let mut observed = Observations { transitions, demands, calling };
        loop {
            let rest = observed.transitions.split_off(observed.transitions.len().min(MAX_OBSERVATIONS));
            if say.try_send(convert::observations_to_pb(&observed)).is_err() {
                return false;
            }
            if rest.is_empty() {
                return true;
            }
            observed.transitions = rest;
        }
    }

    fn obey(&self, guidance: pb::Guidance) -> Result<(), String> {
        let guidance = convert::guidance(guidance).map_err(|error| error.to_string())?;
        for share in &guidance.shares {
            self.ctx.limits.take_share(share);
        }
        for fleet in guidance.fleets {
            self.ctx.bulletin.tell(Heard::Fleet(Arc::new(fleet)));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
