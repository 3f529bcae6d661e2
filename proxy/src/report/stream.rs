//! The streams of reports: one to each control plane that there is a connection to, with a cursor of its own.
//!
//! ```text
//!            connected            acknowledged, news: what comes next
//!   Waiting ───────────▶ Telling ─────────────────────────────────────┐
//!      ▲                   │ ▲                                        │
//!      │ lost: back-off    │ └────────────────────────────────────────┘
//!      │ UNIMPLEMENTED: a minute, or until there is another connection
//!      └───────────────────┘
//! ```
//!
//! A stream begins with the oldest report there is: the control plane tells by its number whether it has it. At most
//! [`UNACKNOWLEDGED`] are on their way, so a control plane that is slow costs a few messages and its configuration
//! stream, which is on the same connection, nothing.
//!
//! A report that a control plane refuses is told in an acknowledgement and left out; the stream goes on. One that it cannot
//! even read ends the stream without a number: then reports are sent one by one, until that one is found and left out.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use outrigger_core::backoff::Backoff;
use outrigger_proto::{
    limits::MAX_MESSAGE_BYTES,
    pb::{self, mesh_client::MeshClient},
};
use rand::{SeedableRng as _, rngs::SmallRng};
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, sleep, sleep_until, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, transport::Channel};
use tracing::{debug, warn};

use super::Reports;
use crate::sync::{Connection, connect};

const FIRST_WAIT: Duration = Duration::from_millis(500);
const LONGEST_WAIT: Duration = Duration::from_secs(30);
/// A stream that lived this long was a success: the next wait is short again.
const SETTLED: Duration = Duration::from_secs(5);
const ANSWER: Duration = Duration::from_secs(5);
/// Until a control plane without reports is asked whether it has them now.
const UNABLE: Duration = Duration::from_secs(60);
/// Reports that are on their way: a control plane that writes them down once a second keeps up with two minutes of them
/// in eight.
const UNACKNOWLEDGED: usize = 16;
/// A control plane that acknowledges nothing for so long is stuck; it writes once a second.
const STUCK: Duration = Duration::from_secs(30);

/// Between two lines of the log about reports that are refused one by one.
const WARN_EVERY: Duration = Duration::from_secs(60);

/// The `plane`th of the control planes. Runs for as long as the process lives.
pub async fn run(reports: Arc<Reports>, plane: usize, mut connections: watch::Receiver<Option<Connection>>) {
    let mut rng = SmallRng::from_rng(&mut rand::rng());
    let mut backoff = Backoff::new(FIRST_WAIT, LONGEST_WAIT);
    let mut window = UNACKNOWLEDGED;
    loop {
        let Ok(now) = connections.wait_for(Option::is_some).await.map(|now| now.clone()) else { return };
        let Some(now) = now else { continue };
        let began = Instant::now();
        let mut stream = Stream {
            reports: &reports,
            plane,
            window,
            cursor: 0,
            on_the_way: VecDeque::new(),
            newest: reports.newest.subscribe(),
            warned: None,
        };
        let ended = tokio::select! {
            ended = stream.carry(now.channel) => Some(ended),
            () = replaced(&mut connections, now.number) => None,
        };
        let sent = stream.on_the_way.pop_front();
        match ended {
            Some(Ended::Unable) => {
                debug!(plane, "the control plane takes no reports");
                reports.on_unable(plane);
                tokio::select! {
                    () = sleep(UNABLE) => {}
                    () = replaced(&mut connections, now.number) => {}
                }
                continue;
            }
            Some(Ended::Refused(why)) => match (window, sent) {
                (1, Some((sequence, _))) => {
                    warn!(plane, sequence, "the control plane refuses a report: {why}");
                    reports.on_refused(plane, sequence);
                    window = UNACKNOWLEDGED;
                    // Those behind it are not to wait for longer with every one that is found.
                    backoff.on_success();
                }
                _ => window = 1,
            },
            Some(Ended::Lost(why)) => {
                debug!(plane, "stream of reports: {why}");
                if began.elapsed() >= SETTLED {
                    backoff.on_success();
                    window = UNACKNOWLEDGED;
                }
            }
            None => backoff.on_success(),
        }
        reports.on_lost(plane);
        if ended_by_itself(&connections, now.number) {
            sleep(backoff.on_failure(&mut rng)).await;
        }
    }
}

/// Why a stream ended.
enum Ended {
    Lost(String),
    /// It cannot read something of what was sent, nor could it the next time.
    Refused(String),
    /// It does not know what a report is.
    Unable,
}

struct Stream<'a> {
    reports: &'a Reports,
    plane: usize,
    /// So many may be on their way.
    window: usize,
    /// The last that was sent.
    cursor: u64,
    on_the_way: VecDeque<(u64, Instant)>,
    newest: watch::Receiver<u64>,
    /// That a report was refused, the last time.
    warned: Option<Instant>,
}

impl Stream<'_> {
    async fn carry(&mut self, channel: Channel) -> Ended {
        let (say, said) = mpsc::channel(self.window);
        let mut client = MeshClient::new(channel).max_decoding_message_size(MAX_MESSAGE_BYTES);
        let mut incoming = match timeout(ANSWER, client.report(ReceiverStream::new(said))).await {
            Ok(Ok(response)) => response.into_inner(),
            Ok(Err(status)) => return Ended::by(&status),
            Err(_) => return Ended::Lost("no answer".to_owned()),
        };
        self.reports.on_connected(self.plane);
        loop {
            self.newest.mark_unchanged();
            while self.on_the_way.len() < self.window
                && let Some(report) = self.reports.after(self.plane, self.cursor)
            {
                self.cursor = report.sequence;
                self.on_the_way.push_back((report.sequence, Instant::now()));
                if say.try_send(report).is_err() {
                    return Ended::Lost("the control plane does not take what it is told".to_owned());
                }
            }
            let stuck = self.on_the_way.front().map(|(_, since)| *since + STUCK);
            tokio::select! {
                message = incoming.message() => match message {
                    Ok(Some(ack)) => self.on_ack(ack),
                    Ok(None) => return Ended::Lost("the control plane ended it".to_owned()),
                    Err(status) => return Ended::by(&status),
                },
                // The sender is where the reports are.
                _ = self.newest.changed() => {}
                () = sleep_until(stuck.unwrap_or_else(Instant::now)), if stuck.is_some() => {
                    return Ended::Lost("nothing is acknowledged".to_owned());
                }
            }
        }
    }

    fn on_ack(&mut self, ack: pb::ReportAck) {
        // It cannot have what it was not sent.
        let sequence = ack.sequence.min(self.cursor);
        for pb::RefusedReport { sequence: refused, why } in ack.refused {
            if refused <= sequence && self.on_the_way.iter().any(|(sent, _)| *sent == refused) {
                self.reports.on_refused(self.plane, refused);
                if self.warned.is_none_or(|warned| warned.elapsed() >= WARN_EVERY) {
                    self.warned = Some(Instant::now());
                    warn!(
                        self.plane,
                        refused, why, "the control plane refuses a report; others are only counted"
                    );
                }
            }
        }
        while self.on_the_way.pop_front_if(|(sent, _)| *sent <= sequence).is_some() {}
        if sequence > 0 {
            self.reports.on_ack(self.plane, sequence);
        }
    }
}

impl Ended {
    fn by(status: &Status) -> Self {
        let why = connect::explain(status);
        if status.code() == Code::Unimplemented {
            Self::Unable
        } else if status.code() == Code::InvalidArgument {
            Self::Refused(why)
        } else {
            Self::Lost(why)
        }
    }
}

async fn replaced(connections: &mut watch::Receiver<Option<Connection>>, number: u64) {
    let other = |now: &Option<Connection>| now.as_ref().is_none_or(|now| now.number != number);
    // Gone for good: the process is ending.
    let _ = connections.wait_for(other).await;
}

/// The connection is still there.
fn ended_by_itself(connections: &watch::Receiver<Option<Connection>>, number: u64) -> bool {
    connections.borrow().as_ref().is_some_and(|now| now.number == number)
}

#[cfg(test)]
mod tests;
