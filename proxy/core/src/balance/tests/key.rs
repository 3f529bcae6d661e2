//! Hashes, and what of a request is its key.

use std::net::IpAddr;

use http::{HeaderMap, HeaderName, HeaderValue};
use outrigger_proto::spec::HashOn;

use super::*;
use crate::balance::hash::xxh64;

/// From xxHash's own tests and its bindings'.
#[test]
fn the_hash_is_xxh64() {
    let long: Vec<u8> = (0..=255).collect();
    for (text, seed, want) in [
        (&b""[..], 0, 0xef46_db37_51d8_e999),
        (b"a", 0, 0xd24e_c4f1_a98c_6e5b),
        (b"abc", 0, 0x44bc_2cf5_ad77_0999),
        (b"Nobody inspects the spammish repetition", 0, 0xfbce_a83c_8a37_8bf1),
        (b"xxhash", 20_141_025, 0xb559_b98d_844e_0635),
    ] {
        assert_eq!(xxh64(text, seed), want, "{}", String::from_utf8_lossy(text));
    }
    let all: std::collections::HashSet<_> = (0..=256).map(|end| xxh64(&long[..end], 0)).collect();
    assert_eq!(all.len(), 257);
}

#[test]
fn an_endpoint_is_its_address_and_identity() {
    let key = |address: &str, identity| hash::endpoint(address.parse().unwrap(), identity);
    assert_eq!(key("10.0.0.1:80", "a"), key("[::ffff:10.0.0.1]:80", "a"));
    let others =
        [key("10.0.0.1:80", "a"), key("10.0.0.1:81", "a"), key("10.0.0.2:80", "a"), key("10.0.0.1:80", "b")];
    assert_eq!(others.into_iter().collect::<std::collections::HashSet<_>>().len(), 4);
}

fn headers(lines: &[(&'static str, &'static str)]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in lines {
        headers.append(HeaderName::from_static(name), HeaderValue::from_static(value));
    }
    headers
}

#[test]
fn the_first_that_a_request_has_is_its_key() {
    let user = HashOn::Header(HeaderName::from_static("x-user"));
    let cookie = HashOn::Cookie { name: "sid".into(), ttl: None };
    let query = HashOn::QueryParameter("user".into());
    let empty = headers(&[("x-user", ""), ("cookie", "a=b; sid=; xsid=9")]);
    let full =
        headers(&[("x-user", "ann"), ("cookie", "a=b; si=1"), ("cookie", "xsid=9;  sid = s=1 ; sid=2")]);
    let address: IpAddr = "10.0.0.1".parse().unwrap();
    let facts = Facts {
        headers: Some(&full),
        path: Some("/a"),
        query: Some("x=1&user=bob&user=eve"),
        identity: Some("spiffe://mesh.local/ns/a/sa/b"),
        address: Some(address),
    };
    let text = |text: &str| Key::Hash(xxh64(text.as_bytes(), 0));
    let made = Key::NewCookie { name: "sid", ttl: None };
    let bare = Facts { headers: Some(&empty), query: Some("user&user="), path: Some(""), ..Facts::default() };
    let opaque = Facts { headers: None, path: None, query: None, ..facts };
    for (on, facts, want) in [
        (vec![user.clone()], facts, text("ann")),
        (vec![cookie.clone()], facts, text("s=1")),
        (vec![query.clone()], facts, text("bob")),
        (vec![HashOn::Path], facts, text("/a")),
        (vec![HashOn::SourceIdentity], facts, text("spiffe://mesh.local/ns/a/sa/b")),
        (vec![HashOn::SourceAddress], facts, Key::Hash(hash::address(address))),
        (vec![user.clone(), query.clone()], facts, text("ann")),
        (vec![user.clone(), query.clone()], Facts { headers: Some(&empty), ..facts }, text("bob")),
        (vec![user.clone(), query.clone(), HashOn::Path, HashOn::SourceIdentity], bare, Key::Nothing),
        (vec![user.clone(), cookie.clone(), HashOn::SourceAddress], bare, made),
        (
            vec![user, cookie, query, HashOn::Path, HashOn::SourceAddress],
            opaque,
            Key::Hash(hash::address(address)),
        ),
    ] {
        assert_eq!(key(&on, &facts), want, "{on:?} {facts:?}");
    }
    let two = headers(&[("x-user", "ann"), ("x-user", "bob")]);
    let on = [HashOn::Header(HeaderName::from_static("x-user"))];
    let both = key(&on, &Facts { headers: Some(&two), ..Facts::default() });
    assert!(both != text("ann") && both != text("bob") && both != text("annbob"));
}

#[test]
fn a_cookie_that_comes_back_is_the_same_key() {
    let mut rng = StdRng::seed_from_u64(3);
    for (ttl, age) in [(None, ""), (Some(1500), "; Max-Age=2"), (Some(60_000), "; Max-Age=60")] {
        let cookie = Cookie::new("sid", ttl.map(Duration::from_millis), &mut rng).unwrap();
        let set = cookie.set.to_str().unwrap();
        let pair = set.split_once("; ").unwrap().0;
        assert_eq!(set, format!("{pair}; Path=/; HttpOnly{age}"));
        let back: HeaderMap =
            [(http::header::COOKIE, HeaderValue::from_str(pair).unwrap())].into_iter().collect();
        let on = [HashOn::Cookie { name: "sid".into(), ttl: None }];
        assert_eq!(key(&on, &Facts { headers: Some(&back), ..Facts::default() }), Key::Hash(cookie.hash));
    }
    assert_ne!(Cookie::new("sid", None, &mut rng), Cookie::new("sid", None, &mut rng));
    assert_eq!(Cookie::new("a\nb", None, &mut rng), None);
}
