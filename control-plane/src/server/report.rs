//! `Mesh.Report`: what traffic one proxy had goes to the recorder, and the number of what is kept comes back.
//!
//! A report is acknowledged when it is kept: within a second. Some may wait for that; then the stream is not read, and a
//! proxy keeps what it has not got rid of. The same number never counts twice, on whatever stream it comes.
//!
//! A report that breaks a rule costs that report: it is answered in its turn, as the others are, so that whoever sends
//! nothing else is as slow as they are. Only a message that cannot be read ends the stream: nobody knows its number.

use std::{
    collections::VecDeque,
    error::Error as _,
    pin::Pin,
    sync::Arc,
    time::{Duration, Instant},
};

use outrigger_certs::SpiffeId;
use outrigger_proto::{convert, pb};
use tokio::{
    sync::{mpsc, watch},
    time::{sleep, timeout},
};
use tokio_stream::{Stream, wrappers::ReceiverStream};
use tonic::{Code, Request, Response, Status, Streaming};

use super::Shared;
use crate::{history::Taken, recorder::Round};

pub(super) type Answers = Pin<Box<dyn Stream<Item = Result<pb::ReportAck, Status>> + Send>>;

/// Reports that wait to be acknowledged, of one stream. A proxy sends one a second; after it was away, 120 at once.
const WAITING: usize = 128;
/// Acknowledgements that it has not read.
const UNREAD: usize = 4;
/// How long the proxy's Configure stream is waited for: both are opened at the same time.
const PATIENCE: Duration = Duration::from_secs(5);
const LOOK: Duration = Duration::from_millis(50);

/// Between two lines of the log about refused reports of one stream.
const LOG_EVERY: Duration = Duration::from_secs(60);
/// Of what a proxy is told about one, in bytes.
const LONGEST_WHY: usize = 1_024;

struct Open {
    shared: Arc<Shared>,
    identity: SpiffeId,
    answers: mpsc::Sender<Result<pb::ReportAck, Status>>,
    waiting: VecDeque<Waiting>,
    /// That a report was refused, the last time that the log said so.
    logged: Option<Instant>,
}

/// A report that was not answered yet.
struct Waiting {
    sequence: u64,
    /// When it will be kept.
    round: Round,
    /// Why it will not.
    refused: Option<String>,
}

pub(super) fn report(
    shared: &Arc<Shared>,
    stop: watch::Receiver<bool>,
    request: Request<Streaming<pb::TrafficReport>>,
) -> Result<Response<Answers>, Status> {
    let peer = super::peer(&request)?;
    let Some(identity) = peer.identity else {
        shared.metrics.streams_refused.add_one();
        return Err(Status::unauthenticated("a client certificate is required: ask Identity.Sign for one"));
    };
    let (answers, stream) = mpsc::channel(UNREAD);
    let open = Open { shared: Arc::clone(shared), identity, answers, waiting: VecDeque::new(), logged: None };
    open.shared.metrics.report_streams.come();
    tokio::spawn(open.run(request.into_inner(), stop));
    Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
}

impl Open {
    async fn run(mut self, mut reports: Streaming<pb::TrafficReport>, mut stop: watch::Receiver<bool>) {
        if let Err(status) = self.serve(&mut reports, &mut stop).await {
            // The proxy may be gone by now.
            let _ = self.answers.send(Err(status)).await;
        }
    }

    /// Until the proxy leaves (`Ok`), or is shown out.
    async fn serve(
        &mut self,
        reports: &mut Streaming<pb::TrafficReport>,
        stop: &mut watch::Receiver<bool>,
    ) -> Result<(), Status> {
        if timeout(PATIENCE, self.has_stream()).await.is_err() {
            self.shared.metrics.streams_refused.add_one();
            return Err(Status::failed_precondition("a Configure stream of the same identity is required"));
        }
        // Before that, what counts already is not known.
        self.shared.recorder.loaded().await;
        let mut kept = self.shared.recorder.kept();
        loop {
            tokio::select! {
                () = super::stopped(stop) => {
                    // What was kept at the end is acknowledged yet: it is not sent to the next one of us again.
                    let last = *kept.borrow_and_update();
                    self.acknowledge(last).await?;
                    return Err(Status::unavailable("this control plane is stopping"));
                }
                Ok(()) = kept.changed(), if !self.waiting.is_empty() => {
                    let last = *kept.borrow_and_update();
                    self.acknowledge(last).await?;
                }
                message = reports.message(), if self.waiting.len() < WAITING => match message {
                    Ok(Some(message)) => self.take(message),
                    Ok(None) => return Ok(()),
                    Err(status) => return self.unreadable(&status),
                },
            }
        }
    }

    async fn has_stream(&self) {
        while !self.shared.hub.has_stream(&self.identity) {
            sleep(LOOK).await;
        }
    }

    fn take(&mut self, message: pb::TrafficReport) {
        let sequence = message.sequence;
        let waiting = match convert::report(message) {
            Ok(report) => {
                let (taken, round) = self.shared.recorder.take(&self.identity, &report);
                if taken == Taken::New {
                    for event in &report.events {
                        self.shared.hub.events().tell_of_proxy(&self.identity, event);
                    }
                }
                Waiting { sequence, round, refused: None }
            }
            Err(error) => {
                let mut why = error.to_string();
                self.refused(&why);
                why.truncate(why.floor_char_boundary(LONGEST_WHY));
                Waiting { sequence, round: self.shared.recorder.next(), refused: Some(why) }
            }
        };
        self.waiting.push_back(waiting);
    }

    /// The proxy has left, or has said what is no report at all.
    fn unreadable(&mut self, status: &Status) -> Result<(), Status> {
        // What the connection has to say has a source, what the decoder has to say has none.
        let is_theirs =
            matches!(status.code(), Code::OutOfRange | Code::Internal) && status.source().is_none();
        if !is_theirs {
            return Ok(());
        }
        self.refused(status.message());
        Err(Status::invalid_argument(format!("a report cannot be read: {}", status.message())))
    }

    fn refused(&mut self, why: &str) {
        self.shared.metrics.reports_refused.add_one();
        if self.logged.is_none_or(|logged| logged.elapsed() >= LOG_EVERY) {
            self.logged = Some(Instant::now());
            tracing::warn!(identity = %self.identity, why, "a report is refused; others within a minute are only counted");
        }
    }

    /// Answers up to the last of what is kept.
    async fn acknowledge(&mut self, last: u64) -> Result<(), Status> {
        let mut ack = pb::ReportAck::default();
        let mut is_due = false;
        while let Some(Waiting { sequence, refused, .. }) =
            self.waiting.pop_front_if(|waiting| waiting.round.is_kept(last))
        {
            is_due = true;
            ack.sequence = ack.sequence.max(sequence);
            ack.refused.extend(refused.map(|why| pb::RefusedReport { sequence, why }));
        }
        if !is_due {
            return Ok(());
        }
        self.answers.send(Ok(ack)).await.map_err(|_| Status::cancelled("the proxy has left"))
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.shared.metrics.report_streams.go();
    }
}
