//! `Mesh.Observe`: what one proxy sees goes to the observatory, and what it should know comes back.
//!
//! A stream that ends is no event: its proxy goes on by what it sees itself, and comes back.

use std::{pin::Pin, sync::Arc};

use outrigger_certs::SpiffeId;
use outrigger_proto::{convert, pb, spec::Guidance};
use tokio::sync::{mpsc, watch};
use tokio_stream::{Stream, wrappers::ReceiverStream};
use tonic::{Request, Response, Status, Streaming};

use super::Shared;
use crate::observatory::Observer;

pub(super) type Answers = Pin<Box<dyn Stream<Item = Result<pb::Guidance, Status>> + Send>>;

/// An open stream. Dropped, its proxy is gone from the observatory.
struct Open {
    shared: Arc<Shared>,
    observer: Observer,
    identity: SpiffeId,
}

pub(super) fn observe(
    shared: &Arc<Shared>,
    stop: watch::Receiver<bool>,
    request: Request<Streaming<pb::Observations>>,
) -> Result<Response<Answers>, Status> {
    let peer = super::peer(&request)?;
    let Some(identity) = peer.identity else {
        shared.metrics.streams_refused.add_one();
        return Err(Status::unauthenticated("a client certificate is required: ask Identity.Sign for one"));
    };
    let (observer, guidance) = shared.observatory.on_open(identity.clone(), peer.address);
    let open = Open { shared: Arc::clone(shared), observer, identity };
    let (answers, stream) = mpsc::channel(1);
    tokio::spawn(open.run(request.into_inner(), guidance, answers, stop));
    Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
}

impl Open {
    async fn run(
        self,
        mut requests: Streaming<pb::Observations>,
        mut guidance: mpsc::Receiver<Guidance>,
        answers: mpsc::Sender<Result<pb::Guidance, Status>>,
        mut stop: watch::Receiver<bool>,
    ) {
        loop {
            tokio::select! {
                () = super::stopped(&mut stop) => {
                    let _ = answers.send(Err(Status::unavailable("this control plane is stopping"))).await;
                    return;
                }
                message = requests.message() => {
                    let Ok(Some(message)) = message else { return };
                    match convert::observations(message) {
                        Ok(seen) => {
                            for transition in &seen.transitions {
                                self.shared.hub.events().tell_transition(&self.identity, transition);
                            }
                            let limit = |name: &str| self.shared.hub.shared_limit(name);
                            self.shared.observatory.on_observations(self.observer, seen, limit);
                        }
                        Err(error) => {
                            self.shared.metrics.streams_refused.add_one();
                            let _ = answers.send(Err(Status::invalid_argument(error.to_string()))).await;
                            return;
                        }
                    }
                }
                Some(guidance) = guidance.recv() => {
                    // Waits for a proxy that does not read; what comes meanwhile is dropped by the observatory.
                    if answers.send(Ok(convert::guidance_to_pb(&guidance))).await.is_err() {
                        return;
                    }
                }
            }
        }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.shared.observatory.on_closed(self.observer);
    }
}
