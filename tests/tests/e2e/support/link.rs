//! An application in the middle of a chain: it asks the next one what it was asked itself, in the same protocol, with
//! the headers of tracing as they came. That is all that the mesh wants of an application.

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
};

use anyhow::{Context, Result};
use http::{HeaderMap, Request, Response, Version, request};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo};
use outrigger_lab::Pod;
use tokio::net::TcpStream;

use super::server::Server;

/// Ends when dropped.
pub(crate) struct Link {
    _server: Server,
}

type Next = Arc<dyn Fn(&str) -> SocketAddr + Send + Sync>;

/// What an application has to pass on: docs/propagation.md.
const PASSED_ON: [&str; 9] = [
    "traceparent",
    "tracestate",
    "baggage",
    "b3",
    "x-b3-traceid",
    "x-b3-spanid",
    "x-b3-parentspanid",
    "x-b3-sampled",
    "x-b3-flags",
];
/// And what makes a request the same request again.
const OF_THE_REQUEST: [&str; 2] = ["content-type", "te"];
const OF_THE_ANSWER: [&str; 3] = ["content-type", "grpc-status", "grpc-message"];

impl Link {
    /// On every IPv4 address of the pod. `next` says who is asked, by the path.
    pub(crate) fn start(
        pod: &Pod,
        port: u16,
        next: impl Fn(&str) -> SocketAddr + Send + Sync + 'static,
    ) -> Result<Self> {
        let address = SocketAddr::from((Ipv4Addr::UNSPECIFIED, port));
        let listener = pod.enter(|| std::net::TcpListener::bind(address))?.context("bind the link")?;
        let next: Next = Arc::new(next);
        let server = Server::start(pod, listener, true, move || {
            let next = Arc::clone(&next);
            service_fn(move |request| pass_on(request, Arc::clone(&next)))
        })?;
        Ok(Self { _server: server })
    }
}

async fn pass_on(request: Request<Incoming>, next: Next) -> Result<Response<Incoming>> {
    let (head, body) = request.into_parts();
    let stream = TcpStream::connect(next(head.uri.path())).await.context("connect to the next one")?;
    stream.set_nodelay(true)?;
    let io = TokioIo::new(stream);
    let answer = if head.version == Version::HTTP_2 {
        let uri = format!("http://next.shop{}", head.uri);
        let uri = if head.uri.scheme().is_some() { head.uri.to_string() } else { uri };
        let onward = onward(&head, &uri).body(body)?;
        let (mut sender, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await?;
        tokio::spawn(connection);
        sender.send_request(onward).await?
    } else {
        let path = head.uri.path_and_query().map_or("/", |path| path.as_str());
        let onward = onward(&head, path).header("host", "next.shop").body(body)?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await?;
        tokio::spawn(connection);
        sender.send_request(onward).await?
    };
    let (head, body) = answer.into_parts();
    let mut response = Response::new(body);
    *response.status_mut() = head.status;
    copy(&head.headers, &OF_THE_ANSWER, |name, value| {
        response.headers_mut().append(name, value);
    });
    Ok(response)
}

fn onward(head: &request::Parts, uri: &str) -> request::Builder {
    let mut onward = Request::builder().method(head.method.clone()).uri(uri);
    if let Some(fields) = onward.headers_mut() {
        for names in [&PASSED_ON[..], &OF_THE_REQUEST[..]] {
            copy(&head.headers, names, |name, value| {
                fields.append(name, value);
            });
        }
    }
    onward
}

fn copy(from: &HeaderMap, names: &[&'static str], mut add: impl FnMut(&'static str, http::HeaderValue)) {
    for name in names {
        for value in from.get_all(*name) {
            add(name, value.clone());
        }
    }
}
