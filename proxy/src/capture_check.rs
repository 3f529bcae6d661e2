//! Whether the redirect rules still hold: found out by a connection of our own, twice a minute.
//!
//! ```text
//!  unmarked socket ── dials a port of our own on which nobody listens ──▶ rules ──▶ outbound port: accept asks
//!                                                                           │       [`CaptureCheck::arrived`]
//!                                                                           └─ no rules: refused at once
//! ```
//!
//! Nothing leaves the machine, with or without rules. The connection has to arrive with the destination that was dialled.
//!
//! | seen                    | becomes                                                             |
//! |-------------------------|---------------------------------------------------------------------|
//! | it never arrived        | nothing: own sockets may be exempt by uid, or the address is skipped |
//! | it arrived              | proven: from now on its absence means something                     |
//! | absent, again after 1 s | an event, `outrigger_capture_ok 0`                                  |
//! | it arrives again        | an event, `outrigger_capture_ok 1`                                  |
//!
//! Rules are neither read (that needs rights and programs that a sidecar does not have) nor repaired: whoever removed them
//! may have meant it. Only the outgoing direction can be proved from inside; both are installed and lost together.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU8, AtomicU16, Ordering},
    },
    time::Duration,
};

use outrigger_proto::spec::ProxyEventKind;
use rand::{RngExt as _, SeedableRng as _, rngs::SmallRng};
use tokio::{
    net::TcpSocket,
    sync::oneshot,
    time::{sleep, timeout},
};
use tracing::{debug, info, warn};

use crate::{context::Ctx, drain::Phase, init::rules::Family, path::accept::Target};

/// At most, and at least four fifths of it: a loss is noticed within half a minute.
const EVERY: Duration = Duration::from_secs(30);
/// While it is lost: whoever repairs it wants to see that it is.
const EVERY_LOST: Duration = Duration::from_secs(5);
/// Before what is missing for the first time counts as lost.
const AGAIN: Duration = Duration::from_secs(1);
/// A redirected connection takes microseconds; a worker takes it up between two others.
const PATIENCE: Duration = Duration::from_secs(2);

/// Where the check and the workers meet.
#[derive(Default)]
pub struct CaptureCheck {
    /// The port that the connection under way comes from; 0: there is none.
    from: AtomicU16,
    awaited: Mutex<Option<Awaited>>,
    state: AtomicU8,
}

struct Awaited {
    from: SocketAddr,
    arrived: oneshot::Sender<Target>,
}

const UNPROVEN: u8 = 0;
const HOLDS: u8 = 1;
const BROKEN: u8 = 2;

#[derive(Debug, PartialEq, Eq)]
enum Finding {
    Captured,
    NotCaptured(String),
    /// Nothing can be said now.
    Unclear(String),
}

/// What is known about one family.
struct Watch {
    family: Family,
    own: IpAddr,
    proven: bool,
    broken: bool,
    missing: bool,
}

#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Nothing,
    LookAgain,
    Lost(String),
    Restored,
}

/// Runs until the proxy drains.
pub async fn run(ctx: Arc<Ctx>) {
    let leaving = ctx.drain.reached(Phase::Leaving);
    tokio::select! {
        () = leaving => {}
        () = watch(&ctx) => {}
    }
}

async fn watch(ctx: &Ctx) {
    let Some(capture) = ctx.config.capture else { return };
    if ctx.config.mark.is_none() {
        debug!(
            "whether the redirect rules hold cannot be proved: they know the proxy's connections by its uid"
        );
        return;
    }
    let check = &ctx.capture_check;
    let mut rng = SmallRng::from_rng(&mut rand::rng());
    let mut families = families(&ctx.config.addresses);
    let mut told = false;
    loop {
        for family in &mut families {
            loop {
                let finding = check.probe(family.own).await;
                if let (false, Finding::NotCaptured(why) | Finding::Unclear(why)) = (family.proven, &finding)
                    && !std::mem::replace(&mut told, true)
                {
                    debug!("the redirect rules are not proved: {why}; own connections may be exempt by uid");
                }
                let name = family.family.name();
                match family.judge(finding) {
                    Verdict::Nothing => {}
                    Verdict::LookAgain => {
                        sleep(AGAIN).await;
                        continue;
                    }
                    Verdict::Lost(why) => {
                        let message = format!(
                            "outgoing {name} connections do not come to port {} any more, so programs bypass the mesh: \
                             {why}; install the rules again with `outrigger-proxy init`",
                            capture.outbound_port
                        );
                        warn!("{message}");
                        ctx.telemetry.reports.event(ProxyEventKind::CaptureBroken, message);
                    }
                    Verdict::Restored => {
                        let message = format!(
                            "outgoing {name} connections come to port {} again",
                            capture.outbound_port
                        );
                        info!("{message}");
                        ctx.telemetry.reports.event(ProxyEventKind::CaptureRestored, message);
                    }
                }
                break;
            }
        }
        let state = state(&families);
        check.state.store(state, Ordering::Relaxed);
        let every = if state == BROKEN { EVERY_LOST } else { EVERY };
        sleep(every.mul_f64(rng.random_range(0.8..=1.0))).await;
    }
}

/// One of our addresses of each family.
fn families(addresses: &[IpAddr]) -> Vec<Watch> {
    let of = |family| {
        let usable = |own: &IpAddr| Family::of(*own) == family && !own.is_loopback() && !own.is_unspecified();
        let own = addresses.iter().copied().find(usable)?;
        Some(Watch { family, own, proven: false, broken: false, missing: false })
    };
    [Family::V4, Family::V6].into_iter().filter_map(of).collect()
}

fn state(families: &[Watch]) -> u8 {
    if families.iter().any(|family| family.broken) {
        BROKEN
    } else if families.iter().any(|family| family.proven) {
        HOLDS
    } else {
        UNPROVEN
    }
}

// === impl CaptureCheck ===

impl CaptureCheck {
    /// `None`: it was never seen to work, so nothing can be said.
    pub fn holds(&self) -> Option<bool> {
        match self.state.load(Ordering::Relaxed) {
            HOLDS => Some(true),
            BROKEN => Some(false),
            _ => None,
        }
    }

    /// For every connection at the outbound port: whether it is the check's own, which goes nowhere.
    pub fn arrived(&self, peer: SocketAddr, target: &Target) -> bool {
        if self.from.load(Ordering::Acquire) != peer.port() {
            return false;
        }
        let mut awaited = self.awaited.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(Awaited { arrived, .. }) = awaited.take_if(|awaited| awaited.from == peer) else {
            return false;
        };
        // Whoever waits may have given up.
        let _ = arrived.send(target.clone());
        true
    }

    async fn probe(&self, own: IpAddr) -> Finding {
        let done = self.dial(own).await;
        self.expect(None);
        done.unwrap_or_else(|error| Finding::Unclear(format!("no connection of {own} can be made: {error}")))
    }

    /// Deliberately without the mark that all other connections of the proxy have.
    async fn dial(&self, own: IpAddr) -> io::Result<Finding> {
        // As long as it is held and does not listen, connections to it are refused.
        let (_silent, target) = bound(own)?;
        let (caller, from) = bound(own)?;
        let (arrived, arrival) = oneshot::channel();
        self.expect(Some(Awaited { from, arrived }));
        let _connection = match timeout(PATIENCE, caller.connect(target)).await {
            Ok(Ok(connection)) => connection,
            Ok(Err(error)) => {
                return Ok(Finding::NotCaptured(format!("a connection to {target} ended with: {error}")));
            }
            Err(_) => return Ok(Finding::Unclear(format!("a connection to {target} was not answered"))),
        };
        Ok(match timeout(PATIENCE, arrival).await {
            Ok(Ok(Target::Original(dialled))) if dialled == target => Finding::Captured,
            Ok(Ok(other)) => {
                Finding::NotCaptured(format!("a connection to {target} arrived as one to {other:?}"))
            }
            // Nobody else listens there, so it was redirected; but the proxy has too much to do to take it.
            Ok(Err(_)) | Err(_) => Finding::Unclear(format!("a connection to {target} was not taken up")),
        })
    }

    fn expect(&self, awaited: Option<Awaited>) {
        let port = awaited.as_ref().map_or(0, |awaited| awaited.from.port());
        *self.awaited.lock().unwrap_or_else(PoisonError::into_inner) = awaited;
        self.from.store(port, Ordering::Release);
    }
}

/// A socket with a port of its own.
fn bound(own: IpAddr) -> io::Result<(TcpSocket, SocketAddr)> {
    let socket = if own.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.bind(SocketAddr::new(own, 0))?;
    let address = socket.local_addr()?;
    Ok((socket, address))
}

// === impl Watch ===

impl Watch {
    fn judge(&mut self, finding: Finding) -> Verdict {
        match finding {
            Finding::Captured => {
                self.proven = true;
                self.missing = false;
                if std::mem::replace(&mut self.broken, false) { Verdict::Restored } else { Verdict::Nothing }
            }
            Finding::NotCaptured(why) if self.proven && !self.broken => {
                if !std::mem::replace(&mut self.missing, true) {
                    return Verdict::LookAgain;
                }
                self.broken = true;
                Verdict::Lost(why)
            }
            Finding::NotCaptured(_) | Finding::Unclear(_) => Verdict::Nothing,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use tokio::net::TcpListener;

    use super::*;

    const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

    fn watch() -> Watch {
        families(&["::1".parse().unwrap(), "10.0.0.1".parse().unwrap()]).remove(0)
    }

    #[test]
    fn only_what_was_proven_can_be_lost() {
        let absent = || Finding::NotCaptured("refused".to_owned());
        let unclear = || Finding::Unclear("busy".to_owned());
        let mut family = watch();
        for (finding, verdict, holds) in [
            (absent(), Verdict::Nothing, UNPROVEN),
            (absent(), Verdict::Nothing, UNPROVEN),
            (Finding::Captured, Verdict::Nothing, HOLDS),
            (absent(), Verdict::LookAgain, HOLDS),
            (Finding::Captured, Verdict::Nothing, HOLDS),
            (absent(), Verdict::LookAgain, HOLDS),
            (unclear(), Verdict::Nothing, HOLDS),
            (absent(), Verdict::Lost("refused".to_owned()), BROKEN),
            (absent(), Verdict::Nothing, BROKEN),
            (unclear(), Verdict::Nothing, BROKEN),
            (Finding::Captured, Verdict::Restored, HOLDS),
            (absent(), Verdict::LookAgain, HOLDS),
            (absent(), Verdict::Lost("refused".to_owned()), BROKEN),
        ] {
            let told = format!("{finding:?}");
            assert_eq!(family.judge(finding), verdict, "{told}");
            assert_eq!(state(std::slice::from_ref(&family)), holds, "{told}");
        }
    }

    #[test]
    fn loopback_is_never_captured_so_it_is_not_looked_at() {
        let families = families(&["127.0.0.1".parse().unwrap(), "fd00::1".parse().unwrap()]);
        let own: Vec<_> = families.iter().map(|family| (family.family, family.own)).collect();
        assert_eq!(own, [(Family::V6, "fd00::1".parse().unwrap())]);
    }

    #[tokio::test]
    async fn without_rules_a_connection_is_refused() {
        let check = CaptureCheck::default();
        let Finding::NotCaptured(why) = check.probe(LOOPBACK).await else { panic!("nothing captures it") };
        assert!(why.contains("refused"), "{why}");
        assert_eq!(check.from.load(Ordering::Relaxed), 0);
        assert!(check.awaited.lock().unwrap().is_none());
    }

    #[tokio::test]
    async fn only_the_own_connection_is_taken() {
        let check = CaptureCheck::default();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let target = Target::Original(listener.local_addr().unwrap());
        let peer: SocketAddr = "127.0.0.1:4000".parse().unwrap();
        assert!(!check.arrived(peer, &target));
        let (arrived, arrival) = oneshot::channel();
        check.expect(Some(Awaited { from: peer, arrived }));
        assert!(!check.arrived("127.0.0.1:4001".parse().unwrap(), &target));
        assert!(!check.arrived("127.0.0.2:4000".parse().unwrap(), &target), "the port alone is not enough");
        assert!(check.arrived(peer, &target));
        assert_eq!(arrival.await.unwrap(), target);
        assert!(!check.arrived(peer, &target), "once");
    }
}
