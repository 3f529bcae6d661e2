//! A program in a pod that speaks HTTP/1.1 and HTTP/2 with prior knowledge on one port.
//!
//! It accepts, looks which of the two a connection is, and stops. What is answered is its owner's business.

use std::{error::Error, net::TcpListener, thread::JoinHandle};

use anyhow::Result;
use bytes::Bytes;
use http::{Request, Response};
use hyper::{
    body::{Body, Incoming},
    server::conn::{http1, http2},
    service::Service,
};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use outrigger_lab::Pod;
use tokio::{net::TcpStream, sync::oneshot};

/// Ends when dropped, and resets its connections then, as a killed program would.
pub(crate) struct Server {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// `service` makes what answers on one connection. `half_close`: a caller that has finished sending still gets its
    /// answer; without it, such a caller has given up.
    pub(crate) fn start<S, B>(
        pod: &Pod,
        listener: TcpListener,
        half_close: bool,
        service: impl Fn() -> S + Send + 'static,
    ) -> Result<Self>
    where
        S: Service<Request<Incoming>, Response = Response<B>, Future: Send, Error: Into<Failure>>,
        S: Send + 'static,
        B: Body<Data = Bytes, Error: Into<Failure>> + Send + 'static,
    {
        listener.set_nonblocking(true)?;
        let (stop, stopped) = oneshot::channel();
        let thread = pod.background(move || {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
            runtime.block_on(async {
                tokio::select! {
                    _ = stopped => {}
                    () = accept(listener, half_close, service) => {}
                }
            });
            // Who answers on a thread of its own, and blocks there, is left alone.
            runtime.shutdown_background();
        })?;
        Ok(Self { stop: Some(stop), thread: Some(thread) })
    }
}

type Failure = Box<dyn Error + Send + Sync>;

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

async fn accept<S, B>(listener: TcpListener, half_close: bool, service: impl Fn() -> S)
where
    S: Service<Request<Incoming>, Response = Response<B>, Future: Send, Error: Into<Failure>>,
    S: Send + 'static,
    B: Body<Data = Bytes, Error: Into<Failure>> + Send + 'static,
{
    let listener = tokio::net::TcpListener::from_std(listener).expect("listener");
    loop {
        let Ok((stream, _)) = listener.accept().await else { continue };
        tokio::spawn(serve(stream, half_close, service()));
    }
}

async fn serve<S, B>(stream: TcpStream, half_close: bool, service: S)
where
    S: Service<Request<Incoming>, Response = Response<B>, Future: Send, Error: Into<Failure>>,
    S: Send + 'static,
    B: Body<Data = Bytes, Error: Into<Failure>> + Send + 'static,
{
    drop(stream.set_nodelay(true));
    let mut first = [0; 3];
    let http2 = stream.peek(&mut first).await.is_ok_and(|_| &first == b"PRI");
    let io = TokioIo::new(stream);
    // How a connection ends is the caller's to judge.
    if http2 {
        let server = http2::Builder::new(TokioExecutor::new());
        drop(server.serve_connection(io, service).await);
    } else {
        let mut server = http1::Builder::new();
        server.timer(TokioTimer::new()).half_close(half_close);
        drop(server.serve_connection(io, service).await);
    }
}
