//! A listener on a thread of its own: what all servers of this crate are made of.

use std::{
    future::Future,
    net::{SocketAddr, TcpListener},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread::JoinHandle,
};

use anyhow::{Context, Result};
use tokio::{net::TcpStream, sync::oneshot};

/// Ends when dropped; its connections end with it, without a word.
pub(crate) struct Server {
    address: SocketAddr,
    accepted: Arc<AtomicU64>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Listens at `address` (port 0: any) and runs `serve` for each connection, with its number from 0.
    pub(crate) fn start<F, S>(address: SocketAddr, mut serve: S) -> Result<Self>
    where
        S: FnMut(TcpStream, u64) -> F + Send + 'static,
        F: Future<Output = ()> + 'static,
    {
        let listener = TcpListener::bind(address).with_context(|| format!("listen on {address}"))?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let accepted = Arc::new(AtomicU64::new(0));
        let (stop, stopped) = oneshot::channel();
        let count = Arc::clone(&accepted);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let accept = async move {
            let listener = tokio::net::TcpListener::from_std(listener).expect("already non-blocking");
            // A failed accept is the connection's end, not the listener's.
            loop {
                if let Ok((stream, _)) = listener.accept().await {
                    drop(stream.set_nodelay(true)); // fails only on a connection that is gone already
                    let number = count.fetch_add(1, Ordering::SeqCst);
                    tokio::task::spawn_local(serve(stream, number));
                }
            }
        };
        let thread = std::thread::Builder::new().name(format!("server {address}")).spawn(move || {
            let local = tokio::task::LocalSet::new();
            local.block_on(&runtime, async {
                tokio::select! {
                    () = accept => {}
                    _ = stopped => {}
                }
            });
        })?;
        Ok(Self { address, accepted, stop: Some(stop), thread: Some(thread) })
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(crate) fn accepted(&self) -> u64 {
        self.accepted.load(Ordering::SeqCst)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            drop(thread.join()); // a panic in there has been printed already
        }
    }
}
