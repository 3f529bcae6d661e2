//! A blocking HTTP/1.1 client, as plain as can be: what the demo's visitors and strangers use.

use std::{
    fmt,
    io::{self, Read, Write},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

/// Nobody waits longer for an answer.
const PATIENCE: Duration = Duration::from_secs(10);
const LONGEST_ANSWER: usize = 64 * 1024;

pub(crate) struct Answer {
    pub(crate) status: u16,
    /// Why the mesh made this answer itself, where it did.
    pub(crate) reason: Option<String>,
    pub(crate) body: String,
}

/// A connection to one server, made anew when it is lost.
pub(crate) struct Client {
    target: SocketAddr,
    stream: Option<TcpStream>,
}

impl Client {
    pub(crate) fn new(target: SocketAddr) -> Self {
        Self { target, stream: None }
    }

    /// A request with a body is a POST. Any error ends the connection.
    pub(crate) fn ask(&mut self, path: &str, body: Option<&str>) -> io::Result<Answer> {
        let stream = match &mut self.stream {
            Some(stream) => stream,
            None => self.stream.insert(connect(self.target)?),
        };
        let answer = exchange(stream, &request(self.target, path, body));
        if answer.is_err() {
            self.stream = None;
        }
        answer
    }
}

pub(crate) fn connect(target: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&target, PATIENCE)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    Ok(stream)
}

pub(crate) fn request(target: SocketAddr, path: &str, body: Option<&str>) -> String {
    match body {
        Some(body) => {
            format!("POST {path} HTTP/1.1\r\nHost: {target}\r\nContent-Length: {}\r\n\r\n{body}", body.len())
        }
        None => format!("GET {path} HTTP/1.1\r\nHost: {target}\r\n\r\n"),
    }
}

/// Sends a request and reads an answer that says its length.
pub(crate) fn exchange(stream: &mut (impl Read + Write), request: &str) -> io::Result<Answer> {
    stream.write_all(request.as_bytes())?;
    stream.flush()?;
    let mut answer = Vec::new();
    let mut chunk = [0; 4096];
    loop {
        let read = stream.read(&mut chunk)?;
        if read == 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "closed without an answer"));
        }
        answer.extend_from_slice(&chunk[..read]);
        if let Some(answer) = parse(&answer) {
            return Ok(answer);
        }
        if answer.len() > LONGEST_ANSWER {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "answer too long"));
        }
    }
}

/// The answer, once all of it is there.
fn parse(bytes: &[u8]) -> Option<Answer> {
    let head_end = bytes.windows(4).position(|window| window == b"\r\n\r\n")? + 4;
    let head = String::from_utf8_lossy(&bytes[..head_end]);
    let field = |wanted: &str| {
        let mut fields = head.lines().skip(1).filter_map(|line| line.split_once(':'));
        fields.find(|(name, _)| name.eq_ignore_ascii_case(wanted)).map(|(_, value)| value.trim().to_owned())
    };
    let length: usize = field("content-length")?.parse().ok()?;
    let body = bytes.get(head_end..head_end.checked_add(length)?)?;
    Some(Answer {
        status: head.split(' ').nth(1)?.parse().ok()?,
        reason: field("outrigger-reason"),
        body: String::from_utf8_lossy(body).into_owned(),
    })
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.status)?;
        if let Some(reason) = &self.reason {
            write!(f, " ({reason})")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_read_to_its_end() {
        let whole =
            b"HTTP/1.1 403 Forbidden\r\nOutrigger-Reason: mtls-required\r\ncontent-length: 3\r\n\r\nno\n";
        for length in 0..whole.len() {
            assert!(parse(&whole[..length]).is_none(), "{length}");
        }
        let answer = parse(whole).unwrap();
        assert_eq!((answer.status, answer.body.as_str()), (403, "no\n"));
        assert_eq!(answer.to_string(), "403 (mtls-required)");
    }
}
