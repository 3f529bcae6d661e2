use std::{
    io::{ErrorKind, Read as _, Write as _},
    net::{Ipv4Addr, TcpStream},
};

use super::*;

const ANY: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

/// Sends a request; what comes back, and how it ends.
fn ask(server: &RawServer, request: &[u8]) -> (Vec<u8>, Option<ErrorKind>) {
    let mut stream = TcpStream::connect(server.address()).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    // A reset that comes before the request is told here, and only here.
    let unsent = stream.write_all(request).err().map(|error| error.kind());
    let mut answer = Vec::new();
    let mut buffer = [0; 64];
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => return (answer, unsent),
            Ok(read) => answer.extend_from_slice(&buffer[..read]),
            Err(error) => return (answer, Some(error.kind())),
        }
    }
}

#[test]
fn scripts_are_followed_one_per_connection_and_the_last_for_the_rest() {
    let first =
        vec![Step::Read(2), Step::Write(b"1".to_vec()), Step::ReadUntil(b"\n"), Step::Write(b"2".to_vec())];
    let rest = vec![Step::Write(b"half an ans".to_vec()), Step::Close, Step::Write(b"never".to_vec())];
    let server = RawServer::start(ANY, vec![first, rest]).unwrap();
    assert_eq!(ask(&server, b"abcd\n"), (b"12".to_vec(), None));
    for _ in 0..2 {
        assert_eq!(ask(&server, b""), (b"half an ans".to_vec(), None));
    }
    assert_eq!(server.connections(), 3);
    assert_eq!(server.received(), [b"abcd\n".to_vec(), Vec::new(), Vec::new()]);
}

#[test]
fn a_connection_is_reset_at_every_stage() {
    let head = "HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\n";
    for stage in Stage::ALL {
        let server = RawServer::start(ANY, vec![stage.reset()]).unwrap();
        let (answer, end) = ask(&server, b"GET / HTTP/1.1\r\nhost: x\r\n\r\n");
        assert_eq!(end, Some(ErrorKind::ConnectionReset), "{stage:?}");
        let expected = match stage {
            Stage::Accepted | Stage::MidRequestHead | Stage::AfterRequestHead => String::new(),
            Stage::MidResponseHead => head[..20].to_owned(),
            Stage::AfterResponseHead => head.to_owned(),
            Stage::MidResponseBody => head.to_owned() + "01234",
            Stage::AfterResponse => head.to_owned() + "0123456789",
        };
        assert_eq!(String::from_utf8(answer).unwrap(), expected, "{stage:?}");
    }
}

#[test]
fn a_half_closed_connection_still_reads_and_a_held_one_says_nothing() {
    let server = RawServer::start(ANY, vec![vec![Step::HalfClose, Step::Hold], vec![Step::Hold]]).unwrap();
    let mut half = TcpStream::connect(server.address()).unwrap();
    assert_eq!(half.read(&mut [0; 1]).unwrap(), 0);
    half.write_all(b"late").unwrap();
    crate::wait::until(Duration::from_secs(10), "the late bytes", || server.received()[0] == b"late")
        .unwrap();

    let mut held = TcpStream::connect(server.address()).unwrap();
    held.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    assert_eq!(held.read(&mut [0; 1]).unwrap_err().kind(), ErrorKind::WouldBlock);
}
