//! `Mesh.Report`: what traffic one proxy had goes to the recorder, and the number of what is kept comes back.
//!
//! A report is acknowledged when it is kept: within a second. Some may wait for that; then the stream is not read, and a
//! proxy keeps what it has not got rid of. The same number never counts twice, on whatever stream it comes.

use std::{collections::VecDeque, pin::Pin, sync::Arc, time::Duration};

use outrigger_certs::SpiffeId;
use outrigger_proto::{convert, pb};
use tokio::{
    sync::{mpsc, watch},
    time::{sleep, timeout},
};
use tokio_stream::{Stream, wrappers::ReceiverStream};
use tonic::{Request, Response, Status, Streaming};

use super::Shared;
use crate::recorder::Round;

pub(super) type Answers = Pin<Box<dyn Stream<Item = Result<pb::ReportAck, Status>> + Send>>;

/// Reports that wait to be acknowledged, of one stream. A proxy sends one a second; after it was away, 120 at once.
const WAITING: usize = 128;
/// Acknowledgements that it has not read.
const UNREAD: usize = 4;
/// How long the proxy's Configure stream is waited for: both are opened at the same time.
const PATIENCE: Duration = Duration::from_secs(5);
const LOOK: Duration = Duration::from_millis(50);

struct Open {
    shared: Arc<Shared>,
    identity: SpiffeId,
    answers: mpsc::Sender<Result<pb::ReportAck, Status>>,
    /// Numbers, and when they will be kept.
    waiting: VecDeque<(u64, Round)>,
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
    let open = Open { shared: Arc::clone(shared), identity, answers, waiting: VecDeque::new() };
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
                    Ok(Some(message)) => self.take(message)?,
                    Ok(None) | Err(_) => return Ok(()),
                },
            }
        }
    }

    async fn has_stream(&self) {
        while !self.shared.hub.has_stream(&self.identity) {
            sleep(LOOK).await;
        }
    }

    fn take(&mut self, message: pb::TrafficReport) -> Result<(), Status> {
        let report = convert::report(message).map_err(|error| {
            self.shared.metrics.reports_refused.add_one();
            tracing::warn!(identity = %self.identity, %error, "a report is refused");
            Status::invalid_argument(error.to_string())
        })?;
        let (taken, round) = self.shared.recorder.take(&self.identity, &report);
        if taken == crate::history::Taken::New {
            for event in &report.events {
                self.shared.hub.events().tell_of_proxy(&self.identity, event);
            }
        }
        self.waiting.push_back((report.sequence, round));
        Ok(())
    }

    /// Says the last number of what is kept.
    async fn acknowledge(&mut self, last: u64) -> Result<(), Status> {
        let mut sequence = None;
        while let Some((number, _)) = self.waiting.pop_front_if(|(_, round)| round.is_kept(last)) {
            sequence = sequence.max(Some(number));
        }
        let Some(sequence) = sequence else { return Ok(()) };
        let ack = Ok(pb::ReportAck { sequence });
        self.answers.send(ack).await.map_err(|_| Status::cancelled("the proxy has left"))
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.shared.metrics.report_streams.go();
    }
}
