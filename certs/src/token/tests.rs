use std::time::{Duration, SystemTime};

use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use proptest::prelude::*;

use super::*;
use crate::Authority;

const HOUR: Duration = Duration::from_secs(3600);

fn now() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000)
}

fn authority(trust_domain: &str) -> Authority {
    let dir = tempfile::tempdir().unwrap();
    Authority::load_or_create(dir.path(), &TrustDomain::parse(trust_domain).unwrap(), now()).unwrap()
}

fn orders() -> SpiffeId {
    SpiffeId::parse("spiffe://mesh.local/ns/shop/sa/orders").unwrap()
}

fn labels() -> Labels {
    Labels::from([("app".to_owned(), "orders".to_owned())])
}

fn token(authority: &Authority) -> (JoinToken, String) {
    let token = JoinToken::new(authority, orders(), labels(), HOUR, true, now()).unwrap();
    let text = token.sign(authority).unwrap();
    (token, text)
}

fn registration(authority: &Authority) -> String {
    Registration { identity: orders(), labels: labels(), expires: now() + HOUR }.sign(authority).unwrap()
}

/// Replaces the payload and keeps the signature.
fn with_payload(text: &str, edit: impl FnOnce(String) -> String) -> String {
    let [prefix, payload, signature] = text.split('.').collect::<Vec<_>>().try_into().unwrap();
    let json = String::from_utf8(BASE64_URL_SAFE_NO_PAD.decode(payload).unwrap()).unwrap();
    format!("{prefix}.{}.{signature}", BASE64_URL_SAFE_NO_PAD.encode(edit(json)))
}

#[test]
fn a_token_says_what_was_signed_and_its_holder_can_read_it() {
    let authority = authority("mesh.local");
    let (token, text) = token(&authority);
    assert_eq!(JoinToken::verify(&text, &authority, now()).unwrap(), token);
    assert_eq!(
        JoinToken::verify(&format!("{text}\n"), &authority, now()).unwrap(),
        token,
        "as read from a file"
    );
    assert_eq!(JoinToken::read(&text).unwrap(), token);
    assert_eq!(token.root_sha256, authority.root_fingerprint());
    assert!(text.len() < 700, "one line that can be pasted: {}", text.len());
    let again = JoinToken::new(&authority, orders(), labels(), HOUR, true, now()).unwrap();
    assert_ne!(again.id, token.id);
}

#[test]
fn a_registration_says_what_was_signed() {
    let authority = authority("mesh.local");
    let read = Registration::verify(&registration(&authority), &authority, now()).unwrap();
    assert_eq!((read.identity, read.labels, read.expires), (orders(), labels(), now() + HOUR));
}

#[test]
fn every_bad_token_gets_its_own_reason() {
    let kind = Kind::JoinToken;
    let ours = authority("mesh.local");
    let (_, good) = token(&ours);
    let check = |text: &str, at: SystemTime| JoinToken::verify(text, &ours, at).map(|_| ()).unwrap_err();

    assert_eq!(check(&good, now() + HOUR), TokenError::Expired { kind, at: now() + HOUR });
    assert_eq!(check(&token(&authority("mesh.local")).1, now()), TokenError::Signature { kind });
    assert_eq!(
        check(&with_payload(&good, |json| json.replace("orders", "admin")), now()),
        TokenError::Signature { kind }
    );
    assert_eq!(
        check(&with_payload(&good, |json| json.replace("1800003600", "1900003600")), now()),
        TokenError::Signature { kind }
    );
    assert_eq!(
        check(&with_payload(&good, |json| json.replace("mesh.local", "other.mesh")), now()),
        TokenError::TrustDomain { kind, expected: "mesh.local".to_owned(), got: "other.mesh".to_owned() }
    );
    assert_eq!(
        check(&with_payload(&good, |json| json.replace("\"shop\"", "\"\"")), now()),
        TokenError::Identity { kind, reason: SpiffeError::Namespace }
    );
    assert_eq!(
        check(&registration(&ours), now()),
        TokenError::OtherKind { expected: kind, got: Kind::Registration }
    );
    assert_eq!(
        check(&"x".repeat(MAX_TOKEN_BYTES + 1), now()),
        TokenError::TooLarge { kind, bytes: MAX_TOKEN_BYTES + 1 }
    );
    for (text, what) in [
        ("", "it is not of the form or1.PAYLOAD.SIGNATURE"),
        ("or1.e30", "it is not of the form or1.PAYLOAD.SIGNATURE"),
        ("or1.e30.e30.e30", "it is not of the form or1.PAYLOAD.SIGNATURE"),
        ("or2.e30.e30", "its prefix is unknown: made by another version?"),
        ("or1.%%%.e30", "its payload is not base64url"),
        ("or1.e30.%%%", "its signature is not base64url"),
        ("or1.e30.e30", "its payload is not the JSON expected"),
    ] {
        assert_eq!(check(text, now()), TokenError::Malformed { kind, what }, "{text:?}");
    }
}

#[test]
fn a_registration_with_a_tokens_prefix_is_no_token_and_the_other_way_round() {
    let authority = authority("mesh.local");
    // Even where the payload would do as the other kind, the signature is over another domain.
    let full = Payload {
        trust_domain: "mesh.local".to_owned(),
        namespace: "shop".to_owned(),
        service_account: "orders".to_owned(),
        labels: labels(),
        expires: 1_800_003_600,
        id: Some("1".to_owned()),
        single_use: Some(false),
        root_sha256: Some(hex(&authority.root_fingerprint())),
    };
    let signed = BASE64_URL_SAFE_NO_PAD.encode(serde_json::to_vec(&full).unwrap());
    let as_registration =
        authority.sign_text(format!("outrigger registration v1\0{signed}").as_bytes()).unwrap();
    let text =
        |prefix: &str| format!("{prefix}.{signed}.{}", BASE64_URL_SAFE_NO_PAD.encode(&as_registration));
    assert!(Registration::verify(&text("orr1"), &authority, now()).is_ok());
    assert_eq!(
        JoinToken::verify(&text("or1"), &authority, now()).unwrap_err(),
        TokenError::Signature { kind: Kind::JoinToken }
    );
}

#[test]
fn an_authority_signs_no_token_of_another_trust_domain_and_none_too_large() {
    let ours = authority("mesh.local");
    let elsewhere = SpiffeId::parse("spiffe://other.mesh/ns/shop/sa/orders").unwrap();
    let token = JoinToken::new(&ours, elsewhere, labels(), HOUR, false, now()).unwrap();
    assert!(matches!(token.sign(&ours), Err(TokenError::Unmakable { .. })));

    let many: Labels = (0..=MAX_LABELS).map(|n| (n.to_string(), String::new())).collect();
    let token = JoinToken::new(&ours, orders(), many, HOUR, false, now()).unwrap();
    assert!(matches!(token.sign(&ours), Err(TokenError::Unmakable { .. })));

    let long: Labels = (0..MAX_LABELS).map(|n| (n.to_string(), "v".repeat(MAX_LABEL_BYTES))).collect();
    let token = JoinToken::new(&ours, orders(), long, HOUR, false, now()).unwrap();
    assert!(matches!(token.sign(&ours), Err(TokenError::TooLarge { .. })));
}

#[test]
fn debug_does_not_show_the_id() {
    let (token, _) = token(&authority("mesh.local"));
    assert!(!format!("{token:?}").contains(&token.id));
}

proptest! {
    #[test]
    fn no_text_panics(text in ".{0,200}", payload in ".{0,200}") {
        let _ = JoinToken::read(&text);
        let _ = JoinToken::read(&format!("or1.{}.e30", BASE64_URL_SAFE_NO_PAD.encode(payload)));
    }

    #[test]
    fn one_changed_character_is_never_taken(position: prop::sample::Index, to in "[A-Za-z0-9_-]") {
        static MADE: std::sync::OnceLock<(Authority, String)> = std::sync::OnceLock::new();
        let (authority, text) = MADE.get_or_init(|| {
            let authority = authority("mesh.local");
            let text = token(&authority).1;
            (authority, text)
        });
        let at = position.index(text.len());
        let mut changed = text.clone();
        changed.replace_range(at..=at, &to);
        prop_assume!(changed != *text);
        prop_assert!(JoinToken::verify(&changed, authority, now()).is_err());
    }
}
