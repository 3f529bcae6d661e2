//! Requests that turn a connection into something else: WebSocket and whatever else says `Upgrade`, and its HTTP/2 form,
//! the extended CONNECT of RFC 8441.
//!
//! Only after the upstream has agreed are bytes carried, in both directions and unread. Bytes that the caller sent ahead
//! wait in hyper until then; if the upstream declines, they are the next request, with all its checks.

use std::{future::Future, rc::Rc, time::Duration};

use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use tokio::task;

use super::{exchange::Exchange, watched::Watched};
use crate::{
    error::Error,
    path::upstream::Guarded,
    tcp::{Counts, CutShort, copy},
};

/// Joins both halves once hyper hands them out. `until`: what ends the tunnel from outside.
pub fn join(
    exchange: Rc<Exchange>,
    caller: OnUpgrade,
    upstream: OnUpgrade,
    idle: Option<Duration>,
    until: impl Future<Output = Error> + 'static,
) {
    if !exchange.caller.http2 {
        exchange.caller.vitals.upgrade();
    }
    task::spawn_local(async move {
        let (caller, upstream) = match tokio::try_join!(caller, upstream) {
            Ok(both) => both,
            Err(error) => {
                let error = Error::CallerGone(error.to_string().into());
                exchange.blame(error.reason(), error.to_string());
                return;
            }
        };
        let (mut caller, mut upstream) = (TokioIo::new(caller), TokioIo::new(upstream));
        let counts = Counts::default();
        let ended = tokio::select! {
            biased;
            error = until => Err(error),
            copied = copy(&mut caller, &mut upstream, &counts, idle) => Ok(copied),
        };
        exchange.add_bytes(counts.forth.get(), counts.back.get());
        match ended {
            Ok(Ok(()) | Err(CutShort::Idle(_))) => {}
            Ok(Err(CutShort::First(_) | CutShort::Second(_))) => {
                reset(caller.into_inner(), upstream.into_inner());
            }
            Err(error) => {
                exchange.blame(error.reason(), error.to_string());
                reset(caller.into_inner(), upstream.into_inner());
            }
        }
    });
}

/// A cut must not look like an end. On HTTP/2 hyper resets the stream by itself.
fn reset(caller: Upgraded, upstream: Upgraded) {
    if let Ok(parts) = caller.downcast::<TokioIo<Watched>>() {
        parts.io.into_inner().into_io().reset_on_drop();
    }
    if let Ok(parts) = upstream.downcast::<TokioIo<Guarded>>() {
        parts.io.into_inner().into_io().reset_on_drop();
    }
}
