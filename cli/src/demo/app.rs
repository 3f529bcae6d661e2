//! `outrigger demo-app`: one program of the demo's shop, a plain HTTP/1.1 server that knows nothing of a mesh.
//!
//! `GET /` and `POST /buy` are passed on to the next program of the chain, if there is one, over connections that are
//! kept, with the headers of tracing as they came, which is all that tracing wants of a program; the answer tells who
//! took part (`web v1 > orders v2 > payments v1`). Other paths are not found, and are
//! written to standard error: so the demo can prove that a stranger's request never came this far.

use std::{
    convert::Infallible,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
};

use anyhow::{Context, Result};
use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode, header::HOST};
use http_body_util::{BodyExt, Full, Limited};
use hyper::{
    body::Incoming,
    client::conn::http1::{self as client, SendRequest},
    server::conn::http1 as server,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};

#[derive(clap::Args)]
pub(crate) struct Args {
    #[arg(long, value_name = "IP:PORT")]
    listen: SocketAddr,
    /// Who this is, as the answers say
    #[arg(long)]
    name: String,
    /// The next program of the chain
    #[arg(long, value_name = "IP:PORT")]
    next: Option<SocketAddr>,
    /// What the next program is called
    #[arg(long, value_name = "HOST", default_value = "localhost")]
    next_host: String,
}

/// Longest body taken, in bytes.
const LONGEST_BODY: usize = 64 * 1024;
/// See docs/propagation.md.
const PASSED_ON: [&str; 7] =
    ["traceparent", "tracestate", "baggage", "b3", "x-b3-traceid", "x-b3-spanid", "x-b3-sampled"];

struct App {
    args: Args,
    idle: Mutex<Vec<SendRequest<Full<Bytes>>>>,
}

/// Serves until it is killed.
pub(crate) fn run(args: Args) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async move {
        let listener = TcpListener::bind(args.listen).await.with_context(|| args.listen.to_string())?;
        let app = Arc::new(App { args, idle: Mutex::default() });
        loop {
            let (stream, _) = listener.accept().await?;
            stream.set_nodelay(true)?;
            let app = Arc::clone(&app);
            let service = service_fn(move |request| {
                let app = Arc::clone(&app);
                async move { Ok::<_, Infallible>(app.answer(request).await) }
            });
            // How a caller ends its connection is its own affair.
            tokio::spawn(server::Builder::new().serve_connection(TokioIo::new(stream), service));
        }
    })
}

impl App {
    async fn answer(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let (method, path) = (request.method().clone(), request.uri().path().to_owned());
        let known = matches!((&method, path.as_str()), (&Method::GET, "/") | (&Method::POST, "/buy"));
        if !known {
            eprintln!("not found: {method} {path}");
            return response(StatusCode::NOT_FOUND, "not found\n");
        }
        let (head, body) = request.into_parts();
        let Ok(body) = Limited::new(body, LONGEST_BODY).collect().await else {
            return response(StatusCode::BAD_REQUEST, "body too long or cut off\n");
        };
        let Some(next) = self.args.next else {
            return response(StatusCode::OK, &format!("{}\n", self.args.name));
        };
        match self.ask(next, &method, &path, &head.headers, body.to_bytes()).await {
            Ok((StatusCode::OK, rest)) => response(StatusCode::OK, &format!("{} > {rest}", self.args.name)),
            Ok((status, why)) => {
                response(status, &format!("{}: next answered {status}: {why}", self.args.name))
            }
            Err(error) => response(StatusCode::BAD_GATEWAY, &format!("{}: {error:#}\n", self.args.name)),
        }
    }

    async fn ask(
        &self,
        next: SocketAddr,
        method: &Method,
        path: &str,
        headers: &HeaderMap,
        body: Bytes,
    ) -> Result<(StatusCode, String)> {
        let mut connection = self.connection(next).await?;
        let mut request = Request::builder().method(method).uri(path).header(HOST, &self.args.next_host);
        for name in PASSED_ON {
            for value in headers.get_all(name) {
                request = request.header(name, value);
            }
        }
        let request = request.body(Full::new(body))?;
        let answer = connection.send_request(request).await.context("send")?;
        let status = answer.status();
        let body = Limited::new(answer.into_body(), LONGEST_BODY).collect().await;
        let body = body.map_err(anyhow::Error::from_boxed)?.to_bytes();
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(connection);
        Ok((status, String::from_utf8_lossy(&body).into_owned()))
    }

    /// A kept connection that is still good, or a new one.
    async fn connection(&self, next: SocketAddr) -> Result<SendRequest<Full<Bytes>>> {
        loop {
            let kept = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
            let Some(mut kept) = kept else { break };
            if kept.ready().await.is_ok() {
                return Ok(kept);
            }
        }
        let stream = TcpStream::connect(next).await.with_context(|| format!("connect to {next}"))?;
        stream.set_nodelay(true)?;
        let (connection, driver) = client::handshake(TokioIo::new(stream)).await.context("handshake")?;
        // Its errors come out of the requests on it.
        tokio::spawn(driver);
        Ok(connection)
    }
}

fn response(status: StatusCode, text: &str) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(text.to_owned())));
    *response.status_mut() = status;
    response
}
