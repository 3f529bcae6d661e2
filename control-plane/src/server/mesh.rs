//! `Mesh.Configure`: one proxy's stream, from greeting to farewell.
//!
//! A stream is one task with three things to wait for: what the proxy says, what changed (the hub wakes it),
//! and the end. What to send is decided by [`Subscription`]; who may speak at all is decided in
//! [`Service::admit`]. A proxy that breaks the rules is told which, in the status that ends its stream, and
//! nobody else notices.

use std::{
    pin::Pin,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use outrigger_certs::Registration;
use outrigger_proto::{
    convert,
    pb::{self, configure_request::Kind, mesh_server::Mesh},
    spec::{FieldError, Hello},
};
use tokio::{
    sync::{mpsc, watch},
    time::{sleep, timeout},
};
use tokio_stream::{Stream, wrappers::ReceiverStream};
use tonic::{Code, Request, Response, Status, Streaming};

use super::{Peer, Shared, observe, report};
use crate::{
    events::{self, Happened},
    hub::Handle,
    index::{Workload, WorkloadId},
    subscription::{Outgoing, Subscription},
    workloads::{Presence, StreamId},
};

/// How long a stream may take to introduce itself.
const GREETING: Duration = Duration::from_secs(5);

pub(super) struct Service {
    shared: Arc<Shared>,
    stop: watch::Receiver<bool>,
}

type Answers = mpsc::Sender<Result<pb::ConfigureResponse, Status>>;

impl Service {
    pub(super) fn new(shared: Arc<Shared>, stop: watch::Receiver<bool>) -> Self {
        Self { shared, stop }
    }
}

#[tonic::async_trait]
impl Mesh for Service {
    type ConfigureStream = Pin<Box<dyn Stream<Item = Result<pb::ConfigureResponse, Status>> + Send>>;
    type ObserveStream = observe::Answers;
    type ReportStream = report::Answers;

    async fn configure(
        &self,
        request: Request<Streaming<pb::ConfigureRequest>>,
    ) -> Result<Response<Self::ConfigureStream>, Status> {
        let peer = super::peer(&request)?;
        if peer.identity.is_none() {
            self.shared.metrics.streams_refused.add_one();
            return Err(Status::unauthenticated(
                "a client certificate is required: ask Identity.Sign for one",
            ));
        }
        // One update is under way at most, and a farewell may follow it.
        let (answers, stream) = mpsc::channel(2);
        let mut task = Task {
            shared: self.shared.clone(),
            stop: self.stop.clone(),
            peer,
            requests: request.into_inner(),
            answers,
        };
        tokio::spawn(async move {
            if let Err(status) = task.run().await {
                // Its place was taken by its own next stream, or it left while we were speaking.
                let in_order = matches!(status.code(), Code::Aborted | Code::Cancelled);
                if in_order {
                    tracing::debug!(address = %task.peer.address, reason = status.message(), "stream ended");
                } else {
                    task.refused(&status);
                }
                // The proxy may be gone by now.
                let _ = task.answers.send(Err(status)).await;
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }

    async fn observe(
        &self,
        request: Request<Streaming<pb::Observations>>,
    ) -> Result<Response<Self::ObserveStream>, Status> {
        observe::observe(&self.shared, self.stop.clone(), request)
    }

    async fn report(
        &self,
        request: Request<Streaming<pb::TrafficReport>>,
    ) -> Result<Response<Self::ReportStream>, Status> {
        report::report(&self.shared, self.stop.clone(), request)
    }
}

struct Task {
    shared: Arc<Shared>,
    stop: watch::Receiver<bool>,
    peer: Peer,
    requests: Streaming<pb::ConfigureRequest>,
    answers: Answers,
}

/// A stream whose proxy has introduced itself. Dropped, the proxy counts as disconnected.
struct Greeted {
    shared: Arc<Shared>,
    id: StreamId,
    handle: Arc<Handle>,
    /// As `compile` sees the proxy.
    subscriber: Workload,
    /// `None` on a stream that only announces presence.
    subscription: Option<Subscription>,
    answers: Answers,
}

impl Task {
    fn refused(&self, status: &Status) {
        self.shared.metrics.streams_refused.add_one();
        let Peer { identity, address } = &self.peer;
        let identity = identity.as_ref().map(tracing::field::display);
        let (code, reason) = (status.code(), status.message());
        tracing::warn!(%address, identity, ?code, reason, "stream ended for misuse");
    }

    /// Until the proxy leaves (`Ok`), or is shown out.
    async fn run(&mut self) -> Result<(), Status> {
        let first = timeout(GREETING, self.requests.message()).await;
        let first = first.map_err(|_| Status::deadline_exceeded("no hello within 5 s"))?;
        let hello = match first.map_err(broken)? {
            Some(pb::ConfigureRequest { kind: Some(Kind::Hello(hello)) }) => hello,
            Some(_) => return Err(Status::invalid_argument("the first message must be a hello")),
            None => return Ok(()),
        };
        let hello = convert::hello(hello).map_err(invalid)?;
        let mut greeted = self.admit(hello)?;
        self.shared.metrics.streams_opened.add_one();
        greeted.push().await?;
        let settles = sleep(self.shared.hub.settles_in(Instant::now()));
        tokio::pin!(settles);
        let mut settled = false;
        loop {
            tokio::select! {
                () = super::stopped(&mut self.stop) => {
                    let _ = self.answers.send(Err(Status::unavailable("this control plane is stopping"))).await;
                    return Ok(());
                }
                message = self.requests.message() => match message {
                    Ok(Some(message)) => greeted.on_message(message)?,
                    // Cut or closed: either way the proxy is away, and its lease runs.
                    Ok(None) | Err(_) => return Ok(()),
                },
                () = greeted.handle.woken() => greeted.on_woken()?,
                () = &mut settles, if !settled => settled = true,
            }
            greeted.push().await?;
        }
    }

    /// Takes a proxy in, if it is who it says.
    fn admit(&self, hello: Hello) -> Result<Greeted, Status> {
        let Some(identity) = self.peer.identity.clone() else {
            return Err(Status::unauthenticated("a client certificate is required"));
        };
        let authority = self.shared.ca.authority();
        let registration = Registration::verify(&hello.registration, &authority, SystemTime::now())
            .map_err(|error| Status::unauthenticated(error.to_string()))?;
        if registration.identity != identity {
            let reason =
                format!("the registration is of {}, the certificate of {identity}", registration.identity);
            return Err(Status::permission_denied(reason));
        }
        let Hello { version, registration: _, instance, addresses, zone, serves, held, state, presence_only } =
            hello;
        let presence = Presence {
            id: WorkloadId { identity, instance: instance.into() },
            labels: registration.labels,
            addresses,
            zone,
            serves,
            version,
        };
        let subscriber = presence.workload();
        let namespace = subscriber.namespace().into();
        let subscription = match presence_only {
            true => None,
            false => Some(Subscription::new(namespace, held).map_err(misuse)?),
        };
        let (id, handle) = self.shared.hub.on_hello(presence, state, presence_only, self.peer.address);
        let (shared, answers) = (self.shared.clone(), self.answers.clone());
        Ok(Greeted { shared, id, handle, subscriber, subscription, answers })
    }
}

impl Greeted {
    fn on_message(&mut self, message: pb::ConfigureRequest) -> Result<(), Status> {
        let Some(kind) = message.kind else {
            return Err(Status::invalid_argument(
                "a message without content, or of a kind this build does not know",
            ));
        };
        match kind {
            Kind::Hello(_) => return Err(Status::failed_precondition("hello comes once, at the beginning")),
            Kind::State(state) => {
                self.shared.hub.on_state(self.id, convert::state(state));
                return Ok(());
            }
            Kind::Subscribe(_) | Kind::Unsubscribe(_) | Kind::Ack(_) | Kind::Nack(_) => {}
        }
        let Some(subscription) = &mut self.subscription else {
            return Err(Status::failed_precondition(
                "this stream announces presence only: it gets no resources",
            ));
        };
        match kind {
            Kind::Subscribe(pb::Subscribe { keys }) => {
                subscription.on_subscribe(convert::keys(keys).map_err(invalid)?).map_err(misuse)?;
            }
            Kind::Unsubscribe(pb::Unsubscribe { keys }) => {
                subscription.on_unsubscribe(convert::keys(keys).map_err(invalid)?).map_err(misuse)?;
            }
            Kind::Ack(pb::Ack { nonce }) => {
                subscription.on_ack(nonce).map_err(misuse)?;
                self.shared.metrics.updates_acked.add_one();
                self.shared.hub.on_answer(self.id, subscription, None);
            }
            Kind::Nack(pb::Nack { nonce, errors }) => {
                let error = |error: pb::FieldError| FieldError { field: error.field, reason: error.reason };
                let errors: Vec<_> = errors.into_iter().map(error).collect();
                let refusals = subscription.on_nack(nonce, &errors).map_err(misuse)?;
                self.shared.metrics.updates_nacked.add_one();
                for refusal in &refusals {
                    let (field, reason) = refusal.errors.first().map_or(("", ""), |e| (&e.field, &e.reason));
                    tracing::warn!(identity = %self.subscriber.id.identity, key = %refusal.key, field, reason,
                        "a proxy refused a resource");
                    let id = &self.subscriber.id;
                    let message = format!("refused {}: {field}: {reason}", refusal.key);
                    let happened = Happened::new(events::Kind::UpdateRefused, id.identity.as_str(), message)
                        .by(&id.identity)
                        .with("instance", &*id.instance)
                        .with("key", refusal.key.to_string())
                        .with("field", field)
                        .with("reason", reason);
                    self.shared.hub.events().tell(happened);
                }
                self.shared.hub.on_answer(self.id, subscription, Some(&refusals));
            }
            Kind::Hello(_) | Kind::State(_) => {}
        }
        Ok(())
    }

    fn on_woken(&mut self) -> Result<(), Status> {
        let pending = self.handle.take();
        if pending.replaced {
            return Err(Status::aborted("another stream of this proxy has taken over"));
        }
        if let Some(subscription) = &mut self.subscription {
            for topics in &pending.topics {
                subscription.on_topics(&**topics);
            }
        }
        Ok(())
    }

    /// Sends the next update, if one is due.
    async fn push(&mut self) -> Result<(), Status> {
        let Some(subscription) = &mut self.subscription else { return Ok(()) };
        let update = self.shared.hub.poll(self.id, &self.subscriber, subscription, Instant::now());
        let Some(Outgoing { nonce, resources, removed }) = update else { return Ok(()) };
        let metrics = &self.shared.metrics;
        metrics.updates_sent.add_one();
        resources.iter().for_each(|_| metrics.resources_sent.add_one());
        let response = pb::ConfigureResponse {
            nonce,
            resources: resources.iter().map(|compiled| compiled.resource.clone()).collect(),
            removed: removed.iter().map(ToString::to_string).collect(),
        };
        self.answers.send(Ok(response)).await.map_err(|_| Status::cancelled("the proxy has left"))
    }
}

impl Drop for Greeted {
    fn drop(&mut self) {
        self.shared.hub.on_disconnected(self.id, Instant::now());
    }
}

fn broken(status: Status) -> Status {
    Status::invalid_argument(format!("the first message cannot be read: {}", status.message()))
}

fn invalid(error: convert::ConvertError) -> Status {
    Status::invalid_argument(error.to_string())
}

fn misuse(misuse: crate::subscription::Misuse) -> Status {
    use crate::subscription::Misuse;
    let text = misuse.to_string();
    match misuse {
        Misuse::TooManyKeys => Status::resource_exhausted(text),
        Misuse::Essential(_) | Misuse::Nonce(_) => Status::invalid_argument(text),
    }
}
