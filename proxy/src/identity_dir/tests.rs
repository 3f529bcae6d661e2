use std::{os::unix::fs::PermissionsExt as _, time::Duration};

use outrigger_certs::{Authority, KeyRequest, SpiffeId, TrustDomain};

use super::*;

struct Fixture {
    _temporary: tempfile::TempDir,
    path: PathBuf,
    authority: Authority,
}

impl Fixture {
    fn new() -> Self {
        let temporary = tempfile::tempdir().unwrap();
        let trust_domain = TrustDomain::parse("mesh.local").unwrap();
        let authority =
            Authority::load_or_create(&temporary.path().join("ca"), &trust_domain, SystemTime::now())
                .unwrap();
        Self { path: temporary.path().join("identity"), _temporary: temporary, authority }
    }

    fn credential(&self) -> Credential {
        let request = KeyRequest::generate().unwrap();
        let identity = SpiffeId::parse("spiffe://mesh.local/ns/shop/sa/web").unwrap();
        let csr = request.csr_der().unwrap();
        let life = Duration::from_secs(3600);
        request
            .into_credential(self.authority.sign(&csr, &identity, life, SystemTime::now()).unwrap())
            .unwrap()
    }

    fn save(&self, directory: &IdentityDir) -> Credential {
        let credential = self.credential();
        let roots = self.authority.roots_der().iter().map(Vec::as_slice);
        directory.save(&credential, "orr1.some.thing", roots).unwrap();
        credential
    }
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

#[test]
fn what_was_saved_is_loaded() {
    let fixture = Fixture::new();
    let directory = IdentityDir::open(&fixture.path).unwrap();
    assert!(directory.load(SystemTime::now()).unwrap().is_none(), "nothing there yet");
    let credential = fixture.save(&directory);
    let kept = directory.load(SystemTime::now()).unwrap().unwrap();
    assert_eq!(kept.credential.chain(), credential.chain());
    assert_eq!(kept.registration, "orr1.some.thing");
    assert_eq!(kept.roots, fixture.authority.roots_der());
    assert_eq!(fs::metadata(directory.file()).unwrap().mode() & 0o7777, 0o600);
    assert_eq!(
        fs::metadata(&fixture.path).unwrap().mode() & 0o7777,
        0o700,
        "the directory was made for it alone"
    );
}

#[test]
fn a_directory_that_is_open_to_others_is_refused() {
    let fixture = Fixture::new();
    fs::create_dir(&fixture.path).unwrap();
    for mode in [0o755, 0o701, 0o777, 0o1777] {
        set_mode(&fixture.path, mode);
        let error = IdentityDir::open(&fixture.path).err().unwrap();
        assert!(matches!(error, OpenError::OpenToOthers { mode: found, .. } if found == mode), "{error}");
        assert!(error.to_string().contains("chmod 700"), "{error}");
    }
    set_mode(&fixture.path, 0o700);
    IdentityDir::open(&fixture.path).unwrap();
    // A group is what memory-backed volumes are shared by, if their owner says so.
    set_mode(&fixture.path, 0o770);
    IdentityDir::open(&fixture.path).unwrap();
}

#[test]
fn a_path_that_is_no_directory_is_refused() {
    let fixture = Fixture::new();
    fs::write(&fixture.path, b"").unwrap();
    assert!(matches!(IdentityDir::open(&fixture.path), Err(OpenError::NotADirectory { .. })));
    let below = fixture.path.join("below");
    assert!(matches!(IdentityDir::open(&below), Err(OpenError::Io { .. })));
}

#[test]
fn a_file_that_is_not_as_it_was_written_is_not_used() {
    let fixture = Fixture::new();
    let directory = IdentityDir::open(&fixture.path).unwrap();
    fixture.save(&directory);
    let good = fs::read_to_string(directory.file()).unwrap();
    let other = fixture.credential().to_pem().unwrap();
    let other_certificate = &other[other.find("-----BEGIN CERTIFICATE").unwrap()..];
    let certificate_at = good.find("-----BEGIN CERTIFICATE").unwrap();
    let without = |line: &str| good.lines().filter(|l| !l.starts_with(line)).collect::<Vec<_>>().join("\n");

    let check = |text: &str, wanted: &str| {
        fs::write(directory.file(), text).unwrap();
        let error = directory.load(SystemTime::now()).err().expect(wanted).to_string();
        assert!(error.contains(wanted), "{error} (wanted {wanted})");
    };
    check("", "it has no key");
    check(&without(REGISTRATION), "it has no registration");
    check(&without(ROOT), "it has no root");
    check(&format!("else: x\n{good}"), "line 1 is neither");
    check(&good.replace(ROOT, "root: ***"), "line 2 is neither");
    check(&good[..certificate_at], "there is no certificate");
    check(&format!("{}{other_certificate}", &good[..certificate_at]), "belongs to another key");
    fs::write(directory.file(), good).unwrap();
    assert!(directory.load(SystemTime::now()).unwrap().is_some(), "the good one is still good");
}

#[test]
fn an_ended_certificate_and_a_readable_key_are_not_used() {
    let fixture = Fixture::new();
    let directory = IdentityDir::open(&fixture.path).unwrap();
    fixture.save(&directory);
    let later = SystemTime::now() + Duration::from_secs(3700);
    assert!(matches!(directory.load(later), Err(LoadError::NotValidNow)));
    set_mode(&directory.file(), 0o640);
    assert!(matches!(directory.load(SystemTime::now()), Err(LoadError::OpenToOthers { mode: 0o640 })));
}
