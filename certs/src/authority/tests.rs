use std::{fs, os::unix::fs::PermissionsExt as _, path::Path};

use rcgen::{KeyPair, PKCS_ECDSA_P384_SHA384};
use x509_parser::prelude::{GeneralName, X509Certificate};

use super::{load::CertificateFault, *};

const DAY: Duration = Duration::from_secs(24 * 3600);

fn now() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000)
}

fn mesh() -> TrustDomain {
    TrustDomain::parse("mesh.local").unwrap()
}

fn orders() -> SpiffeId {
    SpiffeId::parse("spiffe://mesh.local/ns/shop/sa/orders").unwrap()
}

fn csr() -> Vec<u8> {
    KeyRequest::generate().unwrap().csr_der().unwrap()
}

/// A CA certificate of a user's, with its key.
struct Made {
    params: CertificateParams,
    key: KeyPair,
    pem: String,
}

fn ca(name: &str, edit: impl FnOnce(&mut CertificateParams), issuer: Option<&Made>) -> Made {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params.not_before = (now() - DAY).into();
    params.not_after = (now() + 365 * DAY).into();
    edit(&mut params);
    let key = KeyPair::generate().unwrap();
    let certificate = match issuer {
        Some(issuer) => params.signed_by(&key, &Issuer::from_params(&issuer.params, &issuer.key)),
        None => params.self_signed(&key),
    };
    let pem = certificate.unwrap().pem();
    Made { params, key, pem }
}

fn parse(der: &[u8]) -> X509Certificate<'_> {
    X509Certificate::from_der(der).unwrap().1
}

#[test]
fn first_start_makes_a_root_and_the_next_start_finds_it() {
    let dir = tempfile::tempdir().unwrap();
    let made = Authority::load_or_create(&dir.path().join("ca"), &mesh(), now()).unwrap();
    let key = dir.path().join("ca/ca.key");
    assert_eq!(fs::metadata(&key).unwrap().permissions().mode() & 0o777, 0o600);
    let found = Authority::load_or_create(&dir.path().join("ca"), &mesh(), now()).unwrap();
    assert_eq!(found.root_fingerprint(), made.root_fingerprint());
    assert_eq!(found.roots_der(), made.roots_der());
    assert_eq!(made.expires(), now() + ROOT_LIFE);
    let names: Vec<_> =
        fs::read_dir(dir.path().join("ca")).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(names.len(), 3, "no temporary file is left: {names:?}");
}

#[test]
fn several_processes_may_start_on_one_directory_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let roots: Vec<_> = std::thread::scope(|scope| {
        let start = || Authority::load_or_create(dir.path(), &mesh(), now()).unwrap().root_fingerprint();
        #[expect(
            clippy::needless_collect,
            reason = "lazily, each would start after the one before has ended"
        )]
        let threads: Vec<_> = (0..8).map(|_| scope.spawn(start)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert!(roots.iter().all(|root| *root == roots[0]));
}

#[test]
fn a_crash_between_key_and_certificate_is_healed_and_a_lost_key_is_named() {
    let dir = tempfile::tempdir().unwrap();
    Authority::load_or_create(dir.path(), &mesh(), now()).unwrap();
    let key = fs::read(dir.path().join("ca.key")).unwrap();
    fs::remove_file(dir.path().join("ca.pem")).unwrap();
    fs::remove_file(dir.path().join("trust.pem")).unwrap();
    Authority::load_or_create(dir.path(), &mesh(), now()).unwrap();
    assert_eq!(fs::read(dir.path().join("ca.key")).unwrap(), key, "the key is never overwritten");

    fs::remove_file(dir.path().join("ca.key")).unwrap();
    let error = Authority::load_or_create(dir.path(), &mesh(), now()).err().unwrap();
    assert_eq!(error.file, dir.path().join("ca.key").display().to_string());
    assert!(matches!(error.cause, AuthorityCause::Missing { .. }), "{error}");
}

#[test]
fn a_leaf_says_what_was_attested_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::load_or_create(dir.path(), &mesh(), now()).unwrap();
    let chain = authority.sign(&csr(), &orders(), DAY, now()).unwrap();
    assert_eq!(chain.len(), 1, "the root is not part of a workload's chain");
    let leaf = parse(&chain[0]);
    let san = leaf.subject_alternative_name().unwrap().unwrap();
    assert!(san.critical);
    assert_eq!(san.value.general_names, [GeneralName::URI(orders().as_str())]);
    assert_eq!(leaf.subject().iter().count(), 0);
    assert!(!leaf.is_ca());
    assert!(leaf.key_usage().unwrap().unwrap().value.digital_signature());
    let usage = leaf.extended_key_usage().unwrap().unwrap().value;
    assert!(usage.client_auth && usage.server_auth);
    assert_eq!(leaf.raw_serial().len(), 16);
    let unix = |time: SystemTime| i64::try_from(verify::unix(time).as_secs()).unwrap();
    assert_eq!(leaf.validity().not_before.timestamp(), unix(now() - BACKDATED));
    assert_eq!(leaf.validity().not_after.timestamp(), unix(now() + DAY));
    let again = authority.sign(&csr(), &orders(), DAY, now()).unwrap();
    assert_ne!(parse(&again[0]).raw_serial(), leaf.raw_serial());
}

#[test]
fn a_csr_gets_nothing_of_what_it_asks_for() {
    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::load_or_create(dir.path(), &mesh(), now()).unwrap();
    let mut wishes = CertificateParams::new(vec!["admin.example".to_owned()]).unwrap();
    wishes.subject_alt_names.push(SanType::URI("spiffe://mesh.local/ns/shop/sa/admin".try_into().unwrap()));
    wishes.distinguished_name.push(DnType::CommonName, "admin");
    wishes.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let greedy = wishes.serialize_request(&KeyPair::generate().unwrap()).unwrap();
    let chain = authority.sign(greedy.der(), &orders(), DAY, now()).unwrap();
    let leaf = parse(&chain[0]);
    let names = &leaf.subject_alternative_name().unwrap().unwrap().value.general_names;
    assert_eq!(names, &[GeneralName::URI(orders().as_str())]);
    assert_eq!(leaf.subject().iter().count(), 0);
    assert!(!leaf.is_ca() && !leaf.key_usage().unwrap().unwrap().value.key_cert_sign());
}

#[test]
fn every_bad_csr_gets_its_own_reason() {
    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::load_or_create(dir.path(), &mesh(), now()).unwrap();
    let sign = |csr: &[u8]| authority.sign(csr, &orders(), DAY, now()).unwrap_err();
    assert!(matches!(sign(b"garbage"), SignError::Malformed(_)));
    assert_eq!(sign(&[0; MAX_CSR_BYTES + 1]), SignError::TooLarge { bytes: MAX_CSR_BYTES + 1 });
    let p384 = KeyPair::generate_for(&PKCS_ECDSA_P384_SHA384).unwrap();
    let other_curve = CertificateParams::default().serialize_request(&p384).unwrap();
    assert_eq!(sign(other_curve.der()), SignError::KeyType);
    let mut tampered = csr();
    *tampered.last_mut().unwrap() ^= 1;
    assert_eq!(sign(&tampered), SignError::Signature);
    let mut trailing = csr();
    trailing.push(0);
    assert!(matches!(sign(&trailing), SignError::Malformed(_)));
    let elsewhere = SpiffeId::parse("spiffe://other.mesh/ns/shop/sa/orders").unwrap();
    assert!(matches!(authority.sign(&csr(), &elsewhere, DAY, now()), Err(SignError::TrustDomain { .. })));
    let late = now() + ROOT_LIFE;
    assert_eq!(authority.sign(&csr(), &orders(), DAY, late), Err(SignError::IssuerExpired { at: late }));
}

#[test]
fn an_intermediate_signs_the_chain_is_served_whole_and_no_leaf_outlives_it() {
    let root = ca("root", |_| {}, None);
    let short = |params: &mut CertificateParams| params.not_after = (now() + DAY / 2).into();
    let middle = ca("middle", short, Some(&root));
    let chain = format!("{}{}", middle.pem, root.pem);
    let authority = Authority::from_pem(&mesh(), &chain, &middle.key.serialize_pem(), "", now()).unwrap();
    assert_eq!(authority.expires(), now() + DAY / 2);
    let chain = authority.sign(&csr(), &orders(), DAY, now()).unwrap();
    assert_eq!(chain.len(), 2);
    assert_eq!(parse(&chain[0]).validity().not_after, parse(&chain[1]).validity().not_after);
    let chain: Vec<_> = chain.into_iter().map(CertificateDer::from).collect();
    let id = verify::verify(&chain, &authority.trust_bundle(), Role::Client, verify::unix(now()));
    assert_eq!(id, Ok(orders()));
    let served = authority.serving_credential(&orders(), DAY, now()).unwrap();
    assert_eq!(verify::fingerprint(served.chain().last().unwrap()), authority.root_fingerprint());

    // The root may also come with the trusted ones.
    let key = middle.key.serialize_pem();
    let found = Authority::from_pem(&mesh(), &middle.pem, &key, &root.pem, now()).unwrap();
    assert_eq!(found.root_fingerprint(), authority.root_fingerprint());
}

#[test]
fn every_bad_authority_is_refused_with_its_file_and_reason() {
    let root = ca("root", |_| {}, None);
    let other = ca("other", |_| {}, None);
    let middle = ca("middle", |_| {}, Some(&root));
    let leaf = ca("leaf", |params| params.is_ca = IsCa::ExplicitNoCa, None);
    let unsigning =
        ca("unsigning", |params| params.key_usages = vec![KeyUsagePurpose::DigitalSignature], None);
    let ended = ca("ended", |params| params.not_after = (now() - Duration::from_secs(1)).into(), None);
    let future = ca("future", |params| params.not_before = (now() + DAY).into(), None);
    let foreign = |params: &mut CertificateParams| {
        params.subject_alt_names = vec![SanType::URI("spiffe://other.mesh".try_into().unwrap())];
    };
    let foreign = ca("foreign", foreign, None);
    // Good for servers only: everything it signs would be refused as a client.
    let half = |params: &mut CertificateParams| {
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    };
    let half = ca("half", half, Some(&root));
    let p384 = KeyPair::generate_for(&PKCS_ECDSA_P384_SHA384).unwrap();

    let key = |made: &Made| made.key.serialize_pem();
    let (chain_file, key_file, roots_file) = ("the CA certificate", "the CA key", "the trusted roots");
    for (chain, key, roots, file, reason) in [
        (String::new(), key(&root), String::new(), chain_file, "has no certificate in it"),
        ("-----BEGIN CERTIFICATE-----\n".to_owned(), key(&root), String::new(), chain_file, "is not PEM"),
        (root.pem.clone(), String::new(), String::new(), key_file, "has no private key in it"),
        (root.pem.clone(), p384.serialize_pem(), String::new(), key_file, "is not a P-256 private key"),
        (root.pem.clone(), key(&other), String::new(), key_file, "is not the key of the first certificate"),
        (leaf.pem.clone(), key(&leaf), String::new(), chain_file, "is no certificate authority"),
        (unsigning.pem.clone(), key(&unsigning), String::new(), chain_file, "may not sign certificates"),
        (
            ended.pem.clone(),
            key(&ended),
            String::new(),
            chain_file,
            "(\"CN=ended\") expired at 2027-01-15T07:59:59Z",
        ),
        (
            future.pem.clone(),
            key(&future),
            String::new(),
            chain_file,
            "(\"CN=future\") is not valid before 2027-01-16T08:00:00Z",
        ),
        (foreign.pem.clone(), key(&foreign), String::new(), chain_file, "is for trust domain other.mesh"),
        (middle.pem.clone(), key(&middle), String::new(), chain_file, "its root is neither here nor"),
        (
            middle.pem.clone() + &other.pem,
            key(&middle),
            String::new(),
            chain_file,
            "not signed by the certificate after",
        ),
        (
            root.pem.clone() + &middle.pem,
            key(&root),
            root.pem.clone(),
            chain_file,
            "not signed by the certificate after",
        ),
        (half.pem.clone() + &root.pem, key(&half), String::new(), chain_file, "cannot be used"),
        (root.pem.clone(), key(&root), leaf.pem.clone(), roots_file, "is no certificate authority"),
    ] {
        let error = Authority::from_pem(&mesh(), &chain, &key, &roots, now()).err().expect(reason);
        assert_eq!(error.file, file, "{error}");
        assert!(error.to_string().contains(reason), "{error} instead of {reason}");
    }
    let fault = Authority::from_pem(&mesh(), &leaf.pem, &key(&leaf), "", now()).err().unwrap().cause;
    assert!(matches!(fault, AuthorityCause::Certificate { what: CertificateFault::NotAuthority, .. }));
}

#[test]
fn a_root_is_replaced_by_changing_the_files() {
    let dir = tempfile::tempdir().unwrap();
    let old = Authority::load_or_create(dir.path(), &mesh(), now()).unwrap();
    let new = ca("new", |_| {}, None);
    fs::write(dir.path().join("ca.pem"), &new.pem).unwrap();
    fs::write(dir.path().join("ca.key"), new.key.serialize_pem()).unwrap();
    let both = Authority::load(&Files::in_dir(dir.path()), &mesh(), now()).unwrap();
    assert_eq!(both.roots_der(), [both.chain()[0].to_vec(), old.roots_der()[0].clone()]);
    // What the old one signed still counts, tokens included, until it is taken out of trust.pem.
    let registration =
        crate::Registration { identity: orders(), labels: Default::default(), expires: now() + DAY };
    let text = registration.sign(&old).unwrap();
    assert!(crate::Registration::verify(&text, &both, now()).is_ok());
    fs::write(dir.path().join("trust.pem"), &new.pem).unwrap();
    let only_new = Authority::load(&Files::in_dir(dir.path()), &mesh(), now()).unwrap();
    assert_eq!(only_new.roots_der().len(), 1);
    assert!(crate::Registration::verify(&text, &only_new, now()).is_err());
}

#[test]
fn files_that_cannot_be_read_are_named() {
    let gone = Path::new("/nonexistent/ca.pem");
    let files = Files { chain: gone.to_owned(), key: "/nonexistent/ca.key".into(), trust: None };
    let error = Authority::load(&files, &mesh(), now()).err().unwrap();
    assert_eq!(error.file, "/nonexistent/ca.pem");
    assert!(matches!(error.cause, AuthorityCause::Io(_)), "{error}");
}
