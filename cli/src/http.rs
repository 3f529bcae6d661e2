//! One GET at a time, over plain HTTP/1.1: what the subcommands ask status and admin ports with.

use std::time::Duration;

use anyhow::{Context as _, anyhow, bail, ensure};
use bytes::Bytes;
use http::{Request, StatusCode, Uri, header};
use http_body_util::{BodyExt as _, Empty, LengthLimitError, Limited};
use hyper_util::rt::TokioIo;
use tokio::{net::TcpStream, time::timeout};

/// What an answer may take before it counts as none.
#[derive(Clone, Copy)]
pub(crate) struct Bounds {
    pub(crate) patience: Duration,
    pub(crate) body: usize,
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            patience: Duration::from_secs(10),
            // Far above what a mesh of thousands of workloads says of itself.
            body: 256 << 20,
        }
    }
}

pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    /// Where else to ask, says a redirect; nobody goes there.
    pub(crate) location: Option<String>,
    pub(crate) body: Bytes,
}

/// Asks `path` of the server at `base`, which errors call `who`.
pub(crate) fn get(who: &str, base: &str, path: &str) -> anyhow::Result<Answer> {
    get_within(Bounds::default(), who, base, path)
}

pub(crate) fn get_within(bounds: Bounds, who: &str, base: &str, path: &str) -> anyhow::Result<Answer> {
    let Bounds { patience, body } = bounds;
    let uri: Uri =
        base.parse().map_err(|_| anyhow!("{base:?} is not a URL such as http://127.0.0.1:15014"))?;
    ensure!(uri.scheme_str() == Some("http"), "{base:?}: want a URL that begins with http://");
    let authority = uri.authority().with_context(|| format!("{base:?} names no host"))?;
    ensure!(uri.query().is_none(), "{base:?}: want a URL without a query");
    // Behind a gateway it may be a part of another server.
    let path = format!("{}{path}", uri.path().trim_end_matches('/'));
    let address = (authority.host().trim_matches(['[', ']']), authority.port_u16().unwrap_or(80));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let answer = runtime.block_on(async {
        let exchange = exchange(address, authority.as_str(), &path, body);
        match timeout(patience, exchange).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => match error.downcast_ref::<std::io::Error>().map(std::io::Error::kind) {
                Some(std::io::ErrorKind::ConnectionRefused) => {
                    bail!("cannot reach {who} at {base}: {}; is it running?", plain(&error))
                }
                Some(_) => bail!("cannot reach {who} at {base}: {}", plain(&error)),
                None => bail!("no answer from {who} at {base}: {}", plain(&error)),
            },
            Err(_) => bail!("{who} at {base} does not answer within {} s", patience.as_secs_f64()),
        }
    });
    // A resolver that is still looking for the name is not waited for.
    runtime.shutdown_background();
    answer
}

async fn exchange(address: (&str, u16), host: &str, path: &str, most: usize) -> anyhow::Result<Answer> {
    let socket = TcpStream::connect(address).await?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(socket)).await?;
    let driver = tokio::spawn(connection);
    let request = Request::get(path).header(header::HOST, host).body(Empty::<Bytes>::new())?;
    let response = sender.send_request(request).await?;
    let status = response.status();
    let location = response.headers().get(header::LOCATION);
    let location = location.map(|location| String::from_utf8_lossy(location.as_bytes()).into_owned());
    let body = Limited::new(response.into_body(), most).collect().await;
    driver.abort();
    let body = body.map_err(|error| match error.is::<LengthLimitError>() {
        true => anyhow!("the answer is longer than {} MiB", most >> 20),
        false => anyhow!("the answer broke off: {error}"),
    })?;
    let body = body.to_bytes();
    Ok(Answer { status, location, body })
}

/// An error without its number: "Connection refused (os error 111)" says nothing more to anybody.
fn plain(error: &anyhow::Error) -> String {
    let text = format!("{error:#}");
    let text = text.split(" (os error").next().unwrap_or_default();
    let mut chars = text.chars();
    chars.next().map(|first| first.to_lowercase().chain(chars).collect()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read as _, Write as _},
        net::TcpListener,
        thread,
    };

    use super::*;

    fn told(base: &str) -> String {
        format!("{:#}", get("the control plane", base, "/status").err().unwrap())
    }

    #[test]
    fn what_goes_wrong_is_told_in_words() {
        let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        assert_eq!(
            told(&format!("http://{free}")),
            format!("cannot reach the control plane at http://{free}: connection refused; is it running?")
        );
        assert!(told("https://127.0.0.1:1").contains("begins with http://"));
        assert!(told("nonsense").contains("http://"));
        assert!(told("http://127.0.0.1:1/?cluster=a").contains("without a query"));
        assert!(told("http://no.such.host.invalid:1").starts_with("cannot reach the control plane at"));
    }

    #[test]
    fn an_answer_comes_whole() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let server = thread::spawn(move || {
            let (mut socket, _) = listener.accept().unwrap();
            let mut head = [0; 1024];
            let read = socket.read(&mut head).unwrap();
            socket.write_all(b"HTTP/1.1 503 No\r\ncontent-length: 3\r\n\r\nyes").unwrap();
            String::from_utf8_lossy(&head[..read]).into_owned()
        });
        let answer = get("it", &format!("http://{address}/mesh/"), "/readyz").unwrap();
        assert_eq!((answer.status, &*answer.body), (StatusCode::SERVICE_UNAVAILABLE, &b"yes"[..]));
        let head = server.join().unwrap();
        assert!(
            head.starts_with("GET /mesh/readyz HTTP/1.1\r\n") && head.contains(&address.to_string()),
            "{head}"
        );
    }

    /// What a server that says this is told as, with little patience and room.
    fn judged(answer: &'static [u8], endless: bool) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let base = format!("http://{}", listener.local_addr().unwrap());
        let server = thread::spawn(move || {
            let (mut socket, _) = listener.accept().unwrap();
            let _ = socket.read(&mut [0; 1024]).unwrap();
            socket.write_all(answer).unwrap();
            // Until the caller has had enough.
            while endless && socket.write_all(&[b'x'; 4096]).is_ok() {}
            let _ = socket.read(&mut [0; 1024]);
        });
        let bounds = Bounds { patience: Duration::from_millis(200), body: 1 << 20 };
        // Endless ones are to end by their length.
        let bounds = if endless { Bounds { patience: Duration::from_secs(60), ..bounds } } else { bounds };
        let told = format!("{:#}", get_within(bounds, "it", &base, "/").err().unwrap());
        server.join().unwrap();
        told.replace(&base, "BASE")
    }

    #[test]
    fn whatever_a_server_does_it_ends() {
        let silent = judged(b"", false);
        assert_eq!(silent, "it at BASE does not answer within 0.2 s");
        assert_eq!(judged(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n{", false), silent);
        let endless = judged(b"HTTP/1.1 200 OK\r\n\r\n", true);
        assert_eq!(endless, "no answer from it at BASE: the answer is longer than 1 MiB");
        let head = judged(b"HTTP/1.1 200 OK\r\nx: ", true);
        assert!(head.starts_with("no answer from it at BASE: "), "{head}");
    }
}
