//! The listeners of the three doors, on the control runtime.
//!
//! A connection answers one request and is closed; it has a few seconds in all, and when there are too many, the oldest
//! makes room: nobody can hold a door shut by keeping connections open. When the process is out of file descriptors, a
//! spare one is given up for the moment of an answer: health is told also then.

use std::{
    cell::RefCell,
    collections::VecDeque,
    convert::Infallible,
    fs::{self, File},
    io,
    os::unix::{fs::PermissionsExt as _, net::UnixStream as StdUnixStream},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use http::{
    HeaderValue, Request, Response,
    header::{CACHE_CONTROL, CONTENT_ENCODING, CONTENT_TYPE, VARY},
};
use http_body_util::Full;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use nix::{libc, unistd::geteuid};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, UnixListener},
    task::{self, AbortHandle},
    time,
};

use super::{Admin, Answer, Door};

const CONNECTIONS: usize = 64;
/// From accept to close.
const LIFE: Duration = Duration::from_secs(10);
const HEADER_TIME: Duration = Duration::from_secs(5);
/// From accept to close on the spare descriptor, while nobody else is served.
const HURRY: Duration = Duration::from_millis(500);
const HEADER_BYTES: usize = 16 * 1024;
const HEADERS: usize = 64;

/// Serves a TCP door until the process ends.
pub async fn tcp(admin: Arc<Admin>, door: Door, listener: TcpListener) {
    let mut spare = Spare::new();
    let mut connections = Connections::default();
    loop {
        match listener.accept().await {
            Ok((stream, _)) => connections.begin(&admin, door, stream),
            Err(error) => {
                if is_out_of_descriptors(&error) && spare.give_up() {
                    // The answer is small and the peer is waiting for it: serve it here and now.
                    if let Ok(Ok((stream, _))) =
                        time::timeout(Duration::from_millis(10), listener.accept()).await
                    {
                        let _ = time::timeout(HURRY, serve(&admin, door, stream)).await;
                    }
                } else {
                    time::sleep(Duration::from_millis(50)).await;
                }
                spare.refill();
            }
        }
    }
}

/// Serves the admin socket until the process ends.
pub async fn socket(admin: Arc<Admin>, listener: UnixListener) {
    let mut connections = Connections::default();
    loop {
        match listener.accept().await {
            // The mode of the file says the same; this holds also where a file system ignores it.
            Ok((stream, _)) if stream.peer_cred().is_ok_and(|peer| is_owner(peer.uid())) => {
                connections.begin(&admin, Door::Socket, stream);
            }
            Ok(_) => {}
            Err(_) => time::sleep(Duration::from_millis(50)).await,
        }
    }
}

fn is_owner(uid: u32) -> bool {
    uid == 0 || uid == geteuid().as_raw()
}

fn is_out_of_descriptors(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE))
}

/// The connections of one door, the oldest first.
#[derive(Default)]
struct Connections(VecDeque<AbortHandle>);

impl Connections {
    fn begin(
        &mut self,
        admin: &Arc<Admin>,
        door: Door,
        stream: impl AsyncRead + AsyncWrite + Unpin + 'static,
    ) {
        self.0.retain(|connection| !connection.is_finished());
        if self.0.len() >= CONNECTIONS
            && let Some(oldest) = self.0.pop_front()
        {
            oldest.abort();
        }
        let admin = Arc::clone(admin);
        let connection = task::spawn_local(async move { serve(&admin, door, stream).await });
        self.0.push_back(connection.abort_handle());
    }
}

async fn serve(admin: &Admin, door: Door, stream: impl AsyncRead + AsyncWrite + Unpin + 'static) {
    // Until the connection has ended: what the scraper has not read yet is still ours to keep.
    let place = RefCell::new(None);
    let service = service_fn(|request: Request<Incoming>| {
        let place = &place;
        async move {
            let mut answer = admin.answer(door, &request).await;
            place.replace(answer.place.take());
            Ok::<_, Infallible>(response(answer))
        }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIME)
        .max_buf_size(HEADER_BYTES)
        .max_headers(HEADERS)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service);
    // Whether the peer heard the answer is its own affair.
    let _ = time::timeout(LIFE, connection).await;
}

fn response(answer: Answer) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(answer.body));
    *response.status_mut() = answer.status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(answer.content_type));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    if let Some(encoding) = answer.encoding {
        headers.insert(CONTENT_ENCODING, HeaderValue::from_static(encoding));
    }
    if answer.varies {
        headers.insert(VARY, HeaderValue::from_static("accept, accept-encoding"));
    }
    response
}

/// A descriptor in reserve.
struct Spare(Option<File>);

impl Spare {
    fn new() -> Self {
        Self(File::open("/dev/null").ok())
    }

    fn refill(&mut self) {
        if self.0.is_none() {
            *self = Self::new();
        }
    }

    /// Whether there is room for one now.
    fn give_up(&mut self) -> bool {
        self.0.take().is_some()
    }
}

/// The admin socket; its file goes when this is dropped.
pub struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        // Nothing depends on its absence: the next start replaces a dead socket.
        let _ = fs::remove_file(&self.0);
    }
}

/// Opens `admin.sock` in the state directory, mode 0600, in the place of a dead one.
pub fn open_socket(state_dir: &Path) -> io::Result<(std::os::unix::net::UnixListener, SocketFile)> {
    let path = state_dir.join("admin.sock");
    if StdUnixStream::connect(&path).is_ok() {
        let text = "another proxy is using this directory (its admin.sock answers)";
        return Err(io::Error::new(io::ErrorKind::AddrInUse, text));
    }
    // Bound under another name, so that the socket has its mode before anybody can find it under its own.
    let beside = state_dir.join(".admin.sock.new");
    match fs::remove_file(&beside) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    let listener = std::os::unix::net::UnixListener::bind(&beside)?;
    fs::set_permissions(&beside, fs::Permissions::from_mode(0o600))?;
    fs::rename(&beside, &path)?;
    listener.set_nonblocking(true)?;
    Ok((listener, SocketFile(path)))
}
