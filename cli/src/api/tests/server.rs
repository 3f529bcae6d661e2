//! A control plane's status port that says what a test wants: one connection at a time, one answer each.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
};

use serde_json::Value;

use crate::api::ControlPlane;

pub(crate) struct Server {
    address: SocketAddr,
    asked: Arc<Mutex<Vec<String>>>,
    ends: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// `answer` gets the path and how many questions there were before, and makes all that is sent.
    pub(crate) fn start(answer: impl Fn(&str, usize) -> Vec<u8> + Send + 'static) -> Self {
        Self::start_at("127.0.0.1:0".parse().unwrap(), answer)
    }

    pub(crate) fn start_at(
        address: SocketAddr,
        answer: impl Fn(&str, usize) -> Vec<u8> + Send + 'static,
    ) -> Self {
        let listener = TcpListener::bind(address).unwrap();
        let address = listener.local_addr().unwrap();
        let asked: Arc<Mutex<Vec<String>>> = Arc::default();
        let ends: Arc<AtomicBool> = Arc::default();
        let (log, end) = (asked.clone(), ends.clone());
        let thread = thread::spawn(move || {
            for socket in listener.incoming() {
                let mut socket = socket.unwrap();
                if end.load(Ordering::SeqCst) {
                    return;
                }
                let Some(path) = path(&mut socket) else { continue };
                let before = log.lock().unwrap().len();
                log.lock().unwrap().push(path.clone());
                // A caller that has gone is no failure of the test.
                let _ = socket.write_all(&answer(&path, before));
            }
        });
        Self { address, asked, ends, thread: Some(thread) }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(crate) fn base(&self) -> String {
        format!("http://{}", self.address)
    }

    pub(crate) fn control_plane(&self) -> ControlPlane {
        ControlPlane { base: self.base() }
    }

    /// The paths, one after the other.
    pub(crate) fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }
}

impl Drop for Server {
    /// The port is free after it.
    fn drop(&mut self) {
        self.ends.store(true, Ordering::SeqCst);
        drop(TcpStream::connect(self.address));
        if let Some(thread) = self.thread.take() {
            let ended = thread.join();
            assert!(ended.is_ok() || thread::panicking(), "the server panicked");
        }
    }
}

fn path(socket: &mut TcpStream) -> Option<String> {
    let mut head = Vec::new();
    let mut buffer = [0; 1024];
    while !head.windows(4).any(|end| end == b"\r\n\r\n") {
        match socket.read(&mut buffer) {
            Ok(0) | Err(_) => return None,
            Ok(read) => head.extend_from_slice(&buffer[..read]),
        }
    }
    let head = String::from_utf8(head).ok()?;
    Some(head.strip_prefix("GET ")?.split_once(' ')?.0.to_owned())
}

pub(crate) fn ok(json: &Value) -> Vec<u8> {
    failed("200 OK", &json.to_string())
}

pub(crate) fn failed(status: &str, body: &str) -> Vec<u8> {
    let length = body.len();
    format!("HTTP/1.1 {status}\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}").into_bytes()
}
