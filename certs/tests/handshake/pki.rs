//! An authority that makes whatever certificate a test asks for, and a clock that stands where it is put.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use outrigger_certs::{Credential, SpiffeId, TrustBundle, TrustDomain};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, SanType,
};
use rustls::{
    pki_types::{CertificateDer, UnixTime},
    time_provider::TimeProvider,
};

/// This hour of the test's day, which is 2027-01-15; it is noon unless a test says otherwise.
pub(crate) fn at(hour: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(1_799_971_200 + hour * 3600)
}

pub(crate) fn mesh() -> TrustDomain {
    TrustDomain::parse("mesh.local").unwrap()
}

#[derive(Debug)]
pub(crate) struct Clock(AtomicU64);

impl Clock {
    pub(crate) fn noon() -> Arc<Self> {
        let clock = Arc::new(Self(AtomicU64::new(0)));
        clock.set(at(12));
        clock
    }

    pub(crate) fn set(&self, time: SystemTime) {
        self.0.store(time.duration_since(UNIX_EPOCH).unwrap().as_secs(), Ordering::SeqCst);
    }
}

impl TimeProvider for Clock {
    fn current_time(&self) -> Option<UnixTime> {
        Some(UnixTime::since_unix_epoch(Duration::from_secs(self.0.load(Ordering::SeqCst))))
    }
}

/// What a leaf is to say. Good from [`Leaf::of`] on; a test spoils what it is about.
pub(crate) struct Leaf {
    pub(crate) uris: Vec<String>,
    pub(crate) dns: Vec<String>,
    pub(crate) common_name: Option<String>,
    pub(crate) dates: (SystemTime, SystemTime),
    pub(crate) is_ca: bool,
    pub(crate) signs_handshakes: bool,
    pub(crate) usage: Usage,
}

pub(crate) enum Usage {
    Both,
    Client,
    Server,
    Neither,
}

/// A chain, leaf first, with the leaf's key.
pub(crate) struct Issued {
    pub(crate) chain: Vec<CertificateDer<'static>>,
    pub(crate) key: KeyPair,
}

pub(crate) struct Root {
    params: CertificateParams,
    key: KeyPair,
    der: CertificateDer<'static>,
}

impl Leaf {
    pub(crate) fn of(id: &SpiffeId) -> Self {
        Self {
            uris: vec![id.to_string()],
            dns: Vec::new(),
            common_name: None,
            dates: (at(0), at(24)),
            is_ca: false,
            signs_handshakes: true,
            usage: Usage::Both,
        }
    }

    pub(crate) fn dated(self, from: SystemTime, to: SystemTime) -> Self {
        Self { dates: (from, to), ..self }
    }

    fn params(&self) -> CertificateParams {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        if let Some(name) = &self.common_name {
            params.distinguished_name.push(DnType::CommonName, name);
        }
        params.subject_alt_names =
            self.uris.iter().map(|uri| SanType::URI(uri.as_str().try_into().unwrap())).collect();
        params
            .subject_alt_names
            .extend(self.dns.iter().map(|name| SanType::DnsName(name.as_str().try_into().unwrap())));
        (params.not_before, params.not_after) = (self.dates.0.into(), self.dates.1.into());
        params.is_ca =
            if self.is_ca { IsCa::Ca(BasicConstraints::Unconstrained) } else { IsCa::ExplicitNoCa };
        let usage = if self.signs_handshakes {
            KeyUsagePurpose::DigitalSignature
        } else {
            KeyUsagePurpose::KeyAgreement
        };
        params.key_usages = vec![usage];
        params.extended_key_usages = match self.usage {
            Usage::Both => vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth],
            Usage::Client => vec![ExtendedKeyUsagePurpose::ClientAuth],
            Usage::Server => vec![ExtendedKeyUsagePurpose::ServerAuth],
            Usage::Neither => Vec::new(),
        };
        params
    }
}

impl Root {
    pub(crate) fn new(name: &str) -> Self {
        Self::until(name, at(1000))
    }

    pub(crate) fn until(name: &str, end: SystemTime) -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        (params.not_before, params.not_after) = (at(0).into(), end.into());
        let key = KeyPair::generate().unwrap();
        let der = params.self_signed(&key).unwrap().der().clone();
        Self { params, key, der }
    }

    pub(crate) fn der(&self) -> Vec<u8> {
        self.der.to_vec()
    }

    pub(crate) fn bundle(&self) -> TrustBundle {
        TrustBundle::from_der(&mesh(), &[self.der()]).unwrap()
    }

    pub(crate) fn issue(&self, leaf: &Leaf) -> Issued {
        let key = KeyPair::generate().unwrap();
        let certificate =
            leaf.params().signed_by(&key, &Issuer::from_params(&self.params, &self.key)).unwrap();
        Issued { chain: vec![certificate.der().clone()], key }
    }

    /// A good one, in the form our own configurations take.
    pub(crate) fn credential(&self, id: &SpiffeId) -> Credential {
        let Issued { chain, key } = self.issue(&Leaf::of(id));
        let pem = |label: &str, der: &[u8]| {
            use base64::Engine as _;
            let text = base64::prelude::BASE64_STANDARD.encode(der);
            format!("-----BEGIN {label}-----\n{text}\n-----END {label}-----\n")
        };
        let text = pem("PRIVATE KEY", key.serialized_der()) + &pem("CERTIFICATE", &chain[0]);
        Credential::from_pem(&text).unwrap()
    }
}

pub(crate) fn self_signed(leaf: &Leaf) -> Issued {
    let key = KeyPair::generate().unwrap();
    let certificate = leaf.params().self_signed(&key).unwrap();
    Issued { chain: vec![certificate.der().clone()], key }
}
