//! The line to one control plane: connects, carries one stream at a time, reports, and tries again for ever.
//!
//! It decides nothing but when to try again. What is said on a stream comes from the driver as [`Command`]s, what arrives
//! goes to it as [`Report`]s. Updates that arrive while the driver is busy are handed over together.

use std::{num::NonZeroU32, sync::Arc, time::Duration};

use futures_util::FutureExt as _;
use outrigger_certs::Credentials;
use outrigger_core::backoff::Backoff;
use outrigger_proto::{
    limits::MAX_MESSAGE_BYTES,
    pb::{self, configure_request::Kind, mesh_client::MeshClient},
};
use rand::{RngExt as _, SeedableRng as _, rngs::SmallRng};
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, sleep, timeout},
};
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::transport::Channel;

use super::connect::{self, connect};
use crate::config::HostPort;

/// Between attempts. The longest is well below the time that a restarted control plane waits for its proxies.
const FIRST_WAIT: Duration = Duration::from_millis(100);
const LONGEST_WAIT: Duration = Duration::from_secs(5);
/// A stream that lived this long was a success: the next wait is short again.
const SETTLED: Duration = Duration::from_secs(5);
/// Until a control plane has answered the first words on a stream.
const ANSWER: Duration = Duration::from_secs(3);
/// A control plane that will not have us says so within this time after its answer.
const REFUSAL: Duration = Duration::from_millis(200);
/// The list of control planes is in the order of preference: later ones are first tried this much later each.
const STAGGER: Duration = Duration::from_millis(200);
/// Updates handed over at once.
const BATCH: usize = 256;

pub(super) enum Command {
    /// Begin a stream with these words, in place of the one there is.
    Open(Vec<Kind>),
    Send(Kind),
}

pub(super) enum Report {
    /// There is a connection, for whoever else has something to say there; waiting for [`Command::Open`].
    Connected(Channel),
    /// The stream is there and was not refused.
    Opened,
    Updates(Vec<pb::ConfigureResponse>),
    /// The connection is gone, or never came about; being tried again.
    Lost(String),
}

pub(super) struct Link {
    pub(super) index: usize,
    pub(super) target: HostPort,
    pub(super) tls: Arc<rustls::ClientConfig>,
    pub(super) credentials: Arc<Credentials>,
    pub(super) mark: Option<NonZeroU32>,
    /// Something once there is a certificate to connect with.
    pub(super) registration: watch::Receiver<Option<Arc<str>>>,
    pub(super) commands: mpsc::UnboundedReceiver<Command>,
    /// Bounded: a driver that cannot keep up slows the control plane down.
    pub(super) reports: mpsc::Sender<(usize, Report)>,
}

/// Why a stream ended.
enum Ended {
    Replaced(Vec<Kind>),
    Lost(String),
    /// The driver is gone.
    Over,
}

impl Link {
    /// Ends with the driver.
    pub(super) async fn run(mut self) {
        let mut rng = SmallRng::from_rng(&mut rand::rng());
        let mut backoff = Backoff::new(FIRST_WAIT, LONGEST_WAIT);
        let mut stagger = STAGGER * u32::try_from(self.index).unwrap_or(u32::MAX);
        loop {
            if self.registration.wait_for(Option::is_some).await.is_err() {
                return;
            }
            sleep(std::mem::take(&mut stagger)).await;
            let began = Instant::now();
            let credentials = Some(&*self.credentials);
            let ended = match connect(&self.target, Arc::clone(&self.tls), credentials, self.mark).await {
                Ok(channel) => self.carry(channel).await,
                Err(error) => Ended::Lost(error.to_string()),
            };
            let Ended::Lost(why) = ended else { return };
            if !self.report(Report::Lost(why)).await {
                return;
            }
            if began.elapsed() >= SETTLED {
                backoff.on_success();
            }
            // Spread over a third of it: a whole mesh has lost the same control plane at the same moment.
            sleep(backoff.on_failure(&mut rng).mul_f64(rng.random_range(0.67..=1.0))).await;
        }
    }

    /// One connection: stream after stream, until it is lost.
    async fn carry(&mut self, channel: Channel) -> Ended {
        // What was meant for the connection before this one.
        while self.commands.try_recv().is_ok() {}
        if !self.report(Report::Connected(channel.clone())).await {
            return Ended::Over;
        }
        let mut client = MeshClient::new(channel).max_decoding_message_size(MAX_MESSAGE_BYTES);
        let mut first = loop {
            match self.commands.recv().await {
                Some(Command::Open(first)) => break first,
                Some(Command::Send(_)) => {}
                None => return Ended::Over,
            }
        };
        loop {
            match self.stream(&mut client, first).await {
                Ended::Replaced(next) => first = next,
                ended @ (Ended::Lost(_) | Ended::Over) => return ended,
            }
        }
    }

    async fn stream(&mut self, client: &mut MeshClient<Channel>, first: Vec<Kind>) -> Ended {
        let (say, said) = mpsc::unbounded_channel();
        let request = |kind| pb::ConfigureRequest { kind: Some(kind) };
        for kind in first {
            let _ = say.send(request(kind)); // its receiver is in the next line
        }
        let opened = client.configure(UnboundedReceiverStream::new(said));
        let mut incoming = match timeout(ANSWER, opened).await {
            Ok(Ok(response)) => response.into_inner(),
            Ok(Err(status)) => return Ended::Lost(format!("refused: {}", connect::explain(&status))),
            Err(_) => return Ended::Lost(format!("no answer within {} s", ANSWER.as_secs())),
        };
        let accepted = sleep(REFUSAL);
        tokio::pin!(accepted);
        let mut opened = false;
        loop {
            tokio::select! {
                biased;
                () = &mut accepted, if !opened => {
                    opened = true;
                    if !self.report(Report::Opened).await {
                        return Ended::Over;
                    }
                }
                command = self.commands.recv() => match command {
                    Some(Command::Send(kind)) => {
                        // If the stream has ended, that is what the other arm is about to find out.
                        let _ = say.send(request(kind));
                    }
                    Some(Command::Open(next)) => return Ended::Replaced(next),
                    None => return Ended::Over,
                },
                message = incoming.message() => {
                    let mut updates = Vec::new();
                    let mut next = Some(message);
                    let ended = loop {
                        match next {
                            Some(Ok(Some(update))) => updates.push(update),
                            Some(Ok(None)) => break Some("the control plane ended the stream".to_owned()),
                            Some(Err(status)) => break Some(connect::explain(&status)),
                            None => break None,
                        }
                        next = if updates.len() < BATCH { incoming.message().now_or_never() } else { None };
                    };
                    if !updates.is_empty() {
                        if !std::mem::replace(&mut opened, true) && !self.report(Report::Opened).await {
                            return Ended::Over;
                        }
                        if !self.report(Report::Updates(updates)).await {
                            return Ended::Over;
                        }
                    }
                    if let Some(why) = ended {
                        return Ended::Lost(why);
                    }
                }
            }
        }
    }

    /// Whether anybody listens.
    async fn report(&self, report: Report) -> bool {
        self.reports.send((self.index, report)).await.is_ok()
    }
}
