//! What is checked and changed in every message that passes, whichever side of the mesh this is.
//!
//! The rules are the core's (`headers`, `authority`, `path_normal`); here is their order. What concerns one connection
//! only is taken out and what the next one needs is put in. Nothing is copied except for the few requests that may have
//! to be sent again ([`Copy`]).

use std::{rc::Rc, sync::Arc, time::Duration};

use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri, Version, header,
    request::Parts, response,
};
use hyper::{body::Incoming, ext::Protocol, upgrade::OnUpgrade};
use outrigger_core::{
    authority,
    headers::{self, HeaderError},
    limits, path_normal,
    verdict::Reason,
};

use super::{
    body::{Gate, RequestBody, grpc_status},
    exchange::{Caller, Exchange},
    replay::Replay,
};
use crate::error::Error;

/// How long a body waits for the upstream's `100 Continue` before it is sent all the same (RFC 9110, section 10.1.1).
const CONTINUE_WAIT: Duration = Duration::from_secs(1);

const TRAILERS: HeaderValue = HeaderValue::from_static("trailers");
const CHUNKED: HeaderValue = HeaderValue::from_static("chunked");
const UPGRADE: HeaderValue = HeaderValue::from_static("upgrade");
const HTTP2_SETTINGS: HeaderName = HeaderName::from_static("http2-settings");

/// Enough of a request without a body to send it again.
pub struct Copy {
    method: Method,
    uri: Uri,
    version: Version,
    fields: Vec<(HeaderName, HeaderValue)>,
    /// `None`: it has none.
    body: Option<Rc<Replay>>,
}

/// Checks a request as it came in, and makes it what goes on. Gives back the caller's half if it asks for the connection
/// to become something else.
pub fn prepare(head: &mut Parts, caller: &Caller) -> Result<Option<OnUpgrade>, Error> {
    let http2 = caller.http2;
    let upgrade = head.extensions.remove::<OnUpgrade>();
    let websocket = head.extensions.get::<Protocol>().is_some();
    let seen = headers::inspect_request(head, caller.sender())?;
    if head.uri.path_and_query().is_some_and(|target| target.as_str().len() > limits::MAX_URI_BYTES) {
        return Err(Error::TargetTooLong);
    }
    authority::settle(head)?;
    if head.method == Method::CONNECT && !websocket {
        return Err(Error::Unsupported("CONNECT"));
    }
    let hop = headers::remove_hop_by_hop(&mut head.headers, seen)?;
    headers::remove_spoofed(&mut head.headers, seen);
    path_normal::normalise_uri(&mut head.uri)?;
    if http2 {
        head.version = Version::HTTP_2;
    } else {
        head.version = Version::HTTP_11;
        if hop.chunked {
            // Without it hyper's client takes a GET of unknown length for one without a body, and drops the body.
            head.headers.insert(header::TRANSFER_ENCODING, CHUNKED);
        }
    }
    if hop.te_trailers {
        head.headers.insert(header::TE, TRAILERS);
    }
    let mut granted = websocket;
    if let Some(protocol) = hop.upgrade {
        // HTTP/2 is agreed on per hop by ALPN or prior knowledge; asking for it in the middle is never passed on.
        if protocol.as_bytes().eq_ignore_ascii_case(b"h2c") {
            head.headers.remove(HTTP2_SETTINGS);
        } else {
            head.headers.insert(header::CONNECTION, UPGRADE);
            head.headers.insert(header::UPGRADE, protocol);
            granted = true;
        }
    }
    let upgrade = upgrade.filter(|_| granted);
    if upgrade.is_some() && !http2 {
        caller.vitals.ask();
    }
    Ok(upgrade)
}

/// The body that goes upstream. It waits for the upstream's word if the caller does.
pub fn body(head: &mut Parts, body: Incoming, exchange: &Rc<Exchange>) -> RequestBody {
    let expects = !exchange.is_request_over() && head.headers.contains_key(header::EXPECT);
    let mut body = RequestBody::new(body, Rc::clone(exchange));
    if expects && !exchange.caller.http2 {
        let gate = Arc::new(Gate::default());
        body.wait_for(Arc::clone(&gate));
        let waiting = Arc::downgrade(&gate);
        tokio::task::spawn_local(async move {
            tokio::time::sleep(CONTINUE_WAIT).await;
            if let Some(gate) = waiting.upgrade() {
                gate.open();
            }
        });
        head.extensions.insert(gate);
    }
    body
}

/// Puts head and body together, with an ear for the upstream's `100 Continue`.
///
/// Boxed, because it passes through several futures, which would all be larger by it.
pub fn assemble(mut head: Parts, body: RequestBody) -> Box<Request<RequestBody>> {
    let gate = head.extensions.remove::<Arc<Gate>>();
    let mut request = Box::new(Request::from_parts(head, body));
    if let Some(gate) = gate {
        hyper::ext::on_informational(&mut *request, move |informational| {
            if informational.status() == StatusCode::CONTINUE {
                gate.open();
            }
        });
    }
    request
}

/// Checks the answer of an upstream, `from`, and makes it what goes to the caller. `upgraded`: the answer switches
/// protocols, and was asked to.
pub fn prepare_answer(
    head: &mut response::Parts,
    exchange: &Exchange,
    from: limits::Sender,
    upgraded: bool,
) -> Result<(), HeaderError> {
    let seen = headers::inspect_response(head, from)?;
    let hop = headers::remove_hop_by_hop(&mut head.headers, seen)?;
    if upgraded
        && head.status == StatusCode::SWITCHING_PROTOCOLS
        && let Some(protocol) = hop.upgrade
    {
        head.headers.insert(header::CONNECTION, UPGRADE);
        head.headers.insert(header::UPGRADE, protocol);
    }
    head.version = if exchange.caller.http2 { Version::HTTP_2 } else { Version::HTTP_11 };
    if exchange.grpc {
        exchange.set_grpc_status(grpc_status(&head.headers));
    }
    Ok(())
}

/// Whether an answer turns the connection into something else.
pub fn switches<B>(response: &Response<B>, exchange: &Exchange) -> bool {
    match response.status() {
        StatusCode::SWITCHING_PROTOCOLS => true,
        status => exchange.method == Method::CONNECT && status.is_success(),
    }
}

/// What another proxy on the way says about its own answer.
pub fn told_reason(fields: &HeaderMap) -> Option<Reason> {
    Reason::from_code(fields.get(headers::REASON)?.to_str().ok()?)
}

// === impl Copy ===

impl Copy {
    /// `None`: this request is never sent twice.
    pub fn of(head: &Parts, bodyless: bool) -> Option<Self> {
        if !(bodyless && head.method.is_idempotent()) {
            return None;
        }
        Some(Self::new(head, None))
    }

    /// The same for a request that may be sent again by policy. `body`: as much of it as is kept.
    pub fn new(head: &Parts, body: Option<Rc<Replay>>) -> Self {
        Self {
            method: head.method.clone(),
            uri: head.uri.clone(),
            version: head.version,
            fields: head.headers.iter().map(|(name, value)| (name.clone(), value.clone())).collect(),
            body,
        }
    }

    /// Whether all of it can be sent again.
    pub fn is_whole(&self) -> bool {
        self.body.as_ref().is_none_or(|body| body.is_whole())
    }

    /// Whether all of it is here.
    pub fn is_complete(&self) -> bool {
        self.body.as_ref().is_none_or(|body| body.is_complete())
    }

    pub fn request(&self, exchange: &Rc<Exchange>) -> Box<Request<RequestBody>> {
        let body = match &self.body {
            None => RequestBody::empty(Rc::clone(exchange)),
            Some(body) => RequestBody::kept(body.cursor(), Rc::clone(exchange)),
        };
        let mut request = Box::new(Request::new(body));
        *request.method_mut() = self.method.clone();
        *request.uri_mut() = self.uri.clone();
        *request.version_mut() = self.version;
        request.headers_mut().reserve(self.fields.len());
        for (name, value) in &self.fields {
            request.headers_mut().append(name.clone(), value.clone());
        }
        request
    }
}
