//! Early step: what a connection speaks, told from its first bytes.
//!
//! Where the port is declared, only the client's bytes count. Where it is not, the upstream is dialled at the same time
//! and whoever speaks first settles it, so protocols in which the server begins work without a stall; the core's race
//! machine decides, this file reads and dials for it.

use std::{future::Future, pin::Pin, time::Duration};

use outrigger_core::{
    client_hello::{self, ClientHello, Parsed},
    detect::{Detection, detect},
    limits,
    race::{Learned, Race, Step, Winner},
};
use tokio::time::{Instant, sleep_until, timeout};

use super::upstream::Opaque;
use crate::{error::Error, tcp::Sniffed, worker::now};

/// Reads until the first bytes say what they are. `patience`: for the very first one; then there is a fixed time.
pub async fn first_bytes(io: &mut Sniffed, patience: Duration) -> Result<Detection, Error> {
    if io.seen().is_empty() {
        match timeout(patience, io.look_further()).await {
            Ok(Ok(0)) => return Err(Error::NoFirstBytes),
            Err(_) => return Err(Error::Silent(patience)),
            Ok(Ok(_)) => {}
            Ok(Err(error)) => return Err(Error::CallerGone(error.to_string().into())),
        }
    }
    let decided = async {
        loop {
            match detect(io.seen()) {
                Detection::NeedMore => match io.look_further().await {
                    // What there is will not become clearer.
                    Ok(0) => return Ok(Detection::Opaque),
                    Ok(_) => {}
                    Err(error) => return Err(Error::CallerGone(error.to_string().into())),
                },
                decided @ (Detection::Tls | Detection::Http1 | Detection::Http2 | Detection::Opaque) => {
                    return Ok(decided);
                }
            }
        }
    };
    timeout(limits::DETECT_TIMEOUT, decided).await.unwrap_or(Ok(Detection::Opaque))
}

/// Reads the rest of a ClientHello. `None`: it is none that can be read.
pub async fn client_hello(io: &mut Sniffed) -> Option<ClientHello> {
    let read = async {
        loop {
            match client_hello::parse(io.seen()) {
                Parsed::Hello(hello) => return Some(hello),
                Parsed::Malformed(_) => return None,
                Parsed::NeedMore => match io.look_further().await {
                    Ok(n) if n > 0 => {}
                    Ok(_) | Err(_) => return None,
                },
            }
        }
    };
    timeout(limits::DETECT_TIMEOUT, read).await.ok().flatten()
}

/// Lets the caller and the upstream race for the first word. `dial` makes the opaque connection to the upstream. What
/// came of it is returned; `None`: it is not finished, or was not begun, and may be waited for still.
pub async fn race<F>(
    io: &mut Sniffed,
    learned: Learned,
    mut dial: Pin<&mut F>,
) -> Result<(Winner, Option<Result<Opaque, Error>>), Error>
where
    F: Future<Output = Result<Opaque, Error>>,
{
    let (mut race, mut step) = Race::new(learned, limits::DETECT_TIMEOUT, now());
    let mut dialling = false;
    let mut upstream: Option<Result<Opaque, Error>> = None;
    let mut caller_ended = false;
    loop {
        match step {
            Step::Decided(winner) => return Ok((winner, upstream)),
            Step::Dial => dialling = true,
            Step::Wait => {}
        }
        let due =
            race.poll_timeout().map_or_else(|| Instant::now() + limits::DETECT_TIMEOUT, Instant::from_std);
        step = tokio::select! {
            biased;
            read = io.look_further(), if !caller_ended => match read {
                Ok(0) => {
                    caller_ended = true;
                    race.on_client_eof()
                }
                Ok(_) => race.on_client_bytes(io.seen(), now()),
                Err(error) => return Err(Error::CallerGone(error.to_string().into())),
            },
            connected = &mut dial, if dialling => {
                dialling = false;
                upstream = Some(connected);
                Step::Wait
            }
            () = spoken(&mut upstream) => race.on_server_bytes(),
            () = sleep_until(due) => race.handle_timeout(now()),
        };
    }
}

/// What the winner of a race means for the bytes.
pub fn detection(winner: Winner) -> Detection {
    match winner {
        Winner::Http1 => Detection::Http1,
        Winner::Http2 => Detection::Http2,
        Winner::Tls => Detection::Tls,
        Winner::Opaque | Winner::ServerFirst => Detection::Opaque,
    }
}

/// Waits until the upstream has said something, or has closed, which says as much.
async fn spoken(upstream: &mut Option<Result<Opaque, Error>>) {
    match upstream {
        Some(Ok(opaque)) => {
            let _ = opaque.io.look_further().await;
        }
        Some(Err(_)) | None => std::future::pending().await,
    }
}
