use proptest::prelude::*;

use super::*;

fn vector8(bytes: &[u8]) -> Vec<u8> {
    [&[bytes.len() as u8][..], bytes].concat()
}

fn vector16(bytes: &[u8]) -> Vec<u8> {
    [&(bytes.len() as u16).to_be_bytes()[..], bytes].concat()
}

fn extension(kind: u16, body: &[u8]) -> Vec<u8> {
    [&kind.to_be_bytes()[..], &vector16(body)].concat()
}

fn sni(name: &str) -> Vec<u8> {
    extension(0, &vector16(&[&[0][..], &vector16(name.as_bytes())].concat()))
}

fn alpn_of(protocols: &[&str]) -> Vec<u8> {
    let list: Vec<u8> = protocols.iter().flat_map(|protocol| vector8(protocol.as_bytes())).collect();
    extension(16, &vector16(&list))
}

/// The handshake message with these extensions.
fn handshake(extensions: &[Vec<u8>]) -> Vec<u8> {
    let extensions = vector16(&extensions.concat());
    let body =
        [&[3, 3][..], &[7; 32], &vector8(&[9; 32]), &vector16(&[0x13, 1]), &vector8(&[0]), &extensions]
            .concat();
    [&[1, 0][..], &vector16(&body)].concat()
}

/// Cut into records of at most `size` bytes.
fn records(message: &[u8], size: usize) -> Vec<u8> {
    message.chunks(size).flat_map(|chunk| [&[22, 3, 1][..], &vector16(chunk)].concat()).collect()
}

fn parsed(extensions: &[Vec<u8>]) -> Parsed {
    parse(&records(&handshake(extensions), 1 << 14))
}

fn hello(name: Option<&str>, protocols: &[&str]) -> Parsed {
    Parsed::Hello(ClientHello {
        server_name: name.map(Into::into),
        alpn: protocols.iter().map(|protocol| protocol.as_bytes().into()).collect(),
    })
}

/// What a browser-like client sends: unknown extensions around, a 1,216-byte key share.
fn large() -> Vec<u8> {
    handshake(&[
        extension(0x0a0a, &[]),
        sni("Orders.Shop."),
        extension(51, &[5; 1216]),
        alpn_of(&["h2", "http/1.1"]),
    ])
}

#[test]
fn name_and_protocols_are_found() {
    assert_eq!(parse(&records(&large(), 1 << 14)), hello(Some("orders.shop"), &["h2", "http/1.1"]));
    assert_eq!(parsed(&[]), hello(None, &[]));
    assert_eq!(parsed(&[sni("10.0.0.1")]), hello(Some("10.0.0.1"), &[]));
    let other_kind = extension(0, &vector16(&[&[7][..], &vector16(b"x y")].concat()));
    assert_eq!(parsed(&[other_kind]), hello(None, &[]));
    let mesh = |protocols: &[&str]| {
        let parsed = parsed(&[alpn_of(protocols)]);
        let Parsed::Hello(hello) = parsed else { panic!("{parsed:?}") };
        hello.is_mesh()
    };
    assert!(mesh(&["or-h2"]) && mesh(&["x", "or-tcp"]) && !mesh(&["h2", "http/1.1"]));
}

#[test]
fn every_way_of_cutting_gives_the_same() {
    let whole = hello(Some("orders.shop"), &["h2", "http/1.1"]);
    for size in [50, 100, 517, 1400] {
        assert_eq!(parse(&records(&large(), size)), whole, "records of {size}");
    }
    let bytes = records(&large(), 1000);
    for end in 0..bytes.len() {
        assert_eq!(parse(&bytes[..end]), Parsed::NeedMore, "first {end} bytes");
    }
    let followed = [&bytes[..], b"\x17\x03\x03 early data"].concat();
    assert_eq!(parse(&followed), whole);
}

#[test]
fn a_hello_without_extensions_is_one() {
    let body = [&[3, 3][..], &[7; 32], &vector8(&[]), &vector16(&[0, 5]), &vector8(&[0])].concat();
    let message = [&[1, 0][..], &vector16(&body)].concat();
    assert_eq!(parse(&records(&message, 1 << 14)), hello(None, &[]));
}

#[test]
fn what_could_be_read_in_two_ways_is_refused() {
    let two_names = vector16(&[&[0][..], &vector16(b"a"), &[0], &vector16(b"b")].concat());
    let mut cut = handshake(&[sni("a")]);
    cut[3] -= 1; // the message's own length
    for (bytes, error) in [
        (b"GET / HTTP/1.1".to_vec(), HelloError::Record),
        (b"\x16\x02".to_vec(), HelloError::Record),
        (b"\x16\x03\x01\x00\x00".to_vec(), HelloError::Record),
        (b"\x16\x03\x01\x40\x01".to_vec(), HelloError::Record),
        (b"\x16\x03\x01\x00\x04\x02".to_vec(), HelloError::NotAClientHello),
        (b"\x16\x03\x01\x00\x04\x01\x00\x40\x01".to_vec(), HelloError::TooLong),
        (b"\x16\x03\x01\x00\x01\x01\x17\x03\x03".to_vec(), HelloError::Record),
        (records(&large(), 10), HelloError::TooLong),
        (records(&cut, 1 << 14), HelloError::Lengths),
    ] {
        assert_eq!(parse(&bytes), Parsed::Malformed(error), "{:02x?}", &bytes[..bytes.len().min(16)]);
    }
    for (extensions, error) in [
        (vec![sni("a"), sni("b")], HelloError::Duplicate),
        (vec![alpn_of(&["h2"]), alpn_of(&["h2"])], HelloError::Duplicate),
        (vec![extension(0, &two_names)], HelloError::ServerName),
        (vec![sni("")], HelloError::ServerName),
        (vec![sni(".")], HelloError::ServerName),
        (vec![sni("a..")], HelloError::ServerName),
        (vec![sni("a b")], HelloError::ServerName),
        (vec![sni("a/b")], HelloError::ServerName),
        (vec![sni("caf\u{e9}")], HelloError::ServerName),
        (vec![sni(&"a".repeat(254))], HelloError::ServerName),
        (vec![alpn_of(&[""])], HelloError::Lengths),
        (vec![alpn_of(&[])], HelloError::Lengths),
        (vec![extension(16, &[0, 9, 1, b'x'])], HelloError::Lengths),
        (vec![extension(0, &[0, 0, 9])], HelloError::Lengths),
    ] {
        assert_eq!(parsed(&extensions), Parsed::Malformed(error), "{extensions:02x?}");
    }
}

proptest! {
    #[test]
    fn no_input_panics(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = parse(&bytes);
        let _ = parse(&records(&bytes, 1 << 14));
        let _ = parse(&records(&[&[1, 0][..], &vector16(&bytes)].concat(), 64));
    }

    #[test]
    fn one_flipped_byte_never_panics_nor_waits_for_more_than_the_limit(place: usize, value: u8, size in 20..2000_usize) {
        let mut bytes = records(&large(), size.max(60));
        let place = place % bytes.len();
        bytes[place] = value;
        let padded = [&bytes[..], &[0; 2 * MAX_CLIENT_HELLO_BYTES]].concat();
        prop_assert_ne!(parse(&padded), Parsed::NeedMore);
    }
}
