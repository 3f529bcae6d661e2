//! An authority that makes every bad certificate, and good ones to compare with.
//!
//! [`Pki::load`] takes the CA of a running mesh, so that a certificate is bad in exactly one way.

use std::{
    fs,
    path::Path,
    time::{Duration, SystemTime},
};

use anyhow::{Context, Result};
use outrigger_certs::{Credential, SpiffeId, TrustBundle, TrustDomain};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, SanType,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};

const HOUR: Duration = Duration::from_secs(3600);

/// A root that signs whatever it is told to.
pub struct Pki {
    trust_domain: TrustDomain,
    issuer: Issuer<'static, KeyPair>,
    root: CertificateDer<'static>,
    root_pem: String,
}

/// A chain, leaf first, and the leaf's key.
pub struct Issued {
    pub chain: Vec<CertificateDer<'static>>,
    pub key: PrivateKeyDer<'static>,
    /// The same as text, key first.
    pub pem: String,
}

/// What is wrong with a certificate. The wrong identity is no flaw: ask for another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flaw {
    Expired,
    NotYetValid,
    /// Made by another root, of another name.
    OtherRoot,
    SelfSigned,
    /// The identity asked for and a second one.
    TwoUris,
    /// No name at all.
    NoUri,
    /// The identity in the common name and as a DNS name, where it does not count.
    NamesElsewhere,
    /// CA:TRUE.
    Authority,
    /// The identity's path under another trust domain.
    OtherTrustDomain,
    /// A SPIFFE URI that no parser should take: a trailing slash.
    MalformedUri,
    /// Neither clientAuth nor serverAuth.
    NoUsage,
}

impl Flaw {
    pub const ALL: [Self; 11] = [
        Self::Expired,
        Self::NotYetValid,
        Self::OtherRoot,
        Self::SelfSigned,
        Self::TwoUris,
        Self::NoUri,
        Self::NamesElsewhere,
        Self::Authority,
        Self::OtherTrustDomain,
        Self::MalformedUri,
        Self::NoUsage,
    ];
}

// === impl Pki ===

impl Pki {
    /// A new root of this common name.
    pub fn new(trust_domain: &TrustDomain, name: &str) -> Result<Self> {
        let mut params = CertificateParams::default();
        params.distinguished_name = named(name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let now = SystemTime::now();
        (params.not_before, params.not_after) = ((now - HOUR).into(), (now + 24 * HOUR).into());
        let key = KeyPair::generate()?;
        let certificate = params.self_signed(&key)?;
        let (root, root_pem) = (certificate.der().clone(), certificate.pem());
        Ok(Self { trust_domain: trust_domain.clone(), issuer: Issuer::new(params, key), root, root_pem })
    }

    /// The CA that a control plane keeps in `STATE_DIR/ca`, where its root signs itself.
    pub fn load(ca_dir: &Path, trust_domain: &TrustDomain) -> Result<Self> {
        let read = |name: &str| {
            let path = ca_dir.join(name);
            fs::read_to_string(&path).with_context(|| path.display().to_string())
        };
        let (root_pem, key) = (read("ca.pem")?, KeyPair::from_pem(&read("ca.key")?)?);
        let root = CertificateDer::from_pem_slice(root_pem.as_bytes()).context("ca.pem")?;
        let issuer = Issuer::from_ca_cert_der(&root, key)?;
        Ok(Self { trust_domain: trust_domain.clone(), issuer, root, root_pem })
    }

    pub fn root(&self) -> &CertificateDer<'static> {
        &self.root
    }

    pub fn root_pem(&self) -> &str {
        &self.root_pem
    }

    /// What a control plane would be given as `ca.key`.
    pub fn key_pem(&self) -> String {
        self.issuer.key().serialize_pem()
    }

    pub fn bundle(&self) -> Result<TrustBundle> {
        Ok(TrustBundle::from_der(&self.trust_domain, &[self.root.to_vec()])?)
    }

    /// A good certificate, valid for an hour around now.
    pub fn issue(&self, identity: &SpiffeId) -> Result<Issued> {
        self.sign(&params(&[identity.to_string()])?)
    }

    /// A certificate that is good but for one thing.
    pub fn issue_flawed(&self, identity: &SpiffeId, flaw: Flaw) -> Result<Issued> {
        let now = SystemTime::now();
        let uri = identity.to_string();
        let mut params = params(std::slice::from_ref(&uri))?;
        let with_uris = |uris: &[String]| self.sign(&self::params(uris)?);
        match flaw {
            Flaw::Expired => {
                (params.not_before, params.not_after) = ((now - 2 * HOUR).into(), (now - HOUR).into());
                self.sign(&params)
            }
            Flaw::NotYetValid => {
                (params.not_before, params.not_after) = ((now + HOUR).into(), (now + 2 * HOUR).into());
                self.sign(&params)
            }
            Flaw::OtherRoot => Self::new(&self.trust_domain, "another root")?.sign(&params),
            Flaw::SelfSigned => {
                let key = KeyPair::generate()?;
                Ok(issued(&params.self_signed(&key)?, &key))
            }
            Flaw::TwoUris => with_uris(&[uri, format!("spiffe://{}/ns/other/sa/other", self.trust_domain)]),
            Flaw::NoUri => with_uris(&[]),
            Flaw::NamesElsewhere => {
                let mut params = self::params(&[])?;
                params.distinguished_name = named(&uri);
                params.subject_alt_names = vec![SanType::DnsName(identity.service_account().try_into()?)];
                self.sign(&params)
            }
            Flaw::Authority => {
                params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
                params.key_usages.push(KeyUsagePurpose::KeyCertSign);
                self.sign(&params)
            }
            Flaw::OtherTrustDomain => {
                let (namespace, account) = (identity.namespace(), identity.service_account());
                with_uris(&[format!("spiffe://elsewhere.example/ns/{namespace}/sa/{account}")])
            }
            Flaw::MalformedUri => with_uris(&[format!("{uri}/")]),
            Flaw::NoUsage => {
                params.extended_key_usages = Vec::new();
                self.sign(&params)
            }
        }
    }

    fn sign(&self, params: &CertificateParams) -> Result<Issued> {
        let key = KeyPair::generate()?;
        Ok(issued(&params.signed_by(&key, &self.issuer)?, &key))
    }
}

impl Issued {
    /// In the form our own configurations take; refused for a leaf that names no single identity.
    pub fn credential(&self) -> Result<Credential> {
        Ok(Credential::from_pem(&self.pem)?)
    }
}

impl Clone for Issued {
    fn clone(&self) -> Self {
        Self { chain: self.chain.clone(), key: self.key.clone_key(), pem: self.pem.clone() }
    }
}

fn params(uris: &[String]) -> Result<CertificateParams> {
    let now = SystemTime::now();
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    for uri in uris {
        params.subject_alt_names.push(SanType::URI(uri.as_str().try_into()?));
    }
    (params.not_before, params.not_after) = ((now - HOUR).into(), (now + HOUR).into());
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
    Ok(params)
}

fn named(name: &str) -> DistinguishedName {
    let mut distinguished = DistinguishedName::new();
    distinguished.push(DnType::CommonName, name);
    distinguished
}

fn issued(certificate: &rcgen::Certificate, key: &KeyPair) -> Issued {
    Issued {
        chain: vec![certificate.der().clone()],
        key: PrivateKeyDer::Pkcs8(key.serialized_der().to_vec().into()),
        pem: key.serialize_pem() + &certificate.pem(),
    }
}

#[cfg(test)]
mod tests {
    use outrigger_certs::verify::{Role, verify};
    use rustls::pki_types::UnixTime;

    use super::*;

    #[test]
    fn what_is_good_passes_and_every_flaw_is_found() {
        let trust_domain = TrustDomain::parse("mesh.local").unwrap();
        let pki = Pki::new(&trust_domain, "root").unwrap();
        let identity = SpiffeId::new(&trust_domain, "shop", "orders").unwrap();
        let bundle = pki.bundle().unwrap();
        let check = |issued: &Issued| verify(&issued.chain, &bundle, Role::Client, UnixTime::now());
        let good = pki.issue(&identity).unwrap();
        assert_eq!(check(&good), Ok(identity.clone()));
        assert_eq!(good.credential().unwrap().identity(), &identity);
        let mut reasons: Vec<String> = Vec::new();
        for flaw in Flaw::ALL {
            let refused = check(&pki.issue_flawed(&identity, flaw).unwrap()).unwrap_err();
            reasons.push(refused.to_string());
        }
        // Only these pairs look alike to a verifier: unknown roots, and no URI name.
        reasons.sort();
        reasons.dedup();
        assert_eq!(reasons.len(), Flaw::ALL.len() - 2, "{reasons:#?}");
    }

    #[test]
    fn it_signs_with_the_authority_of_a_state_directory() {
        let dir = tempfile::tempdir().unwrap();
        let trust_domain = TrustDomain::parse("mesh.local").unwrap();
        let now = SystemTime::now();
        let authority = outrigger_certs::Authority::load_or_create(dir.path(), &trust_domain, now).unwrap();
        let pki = Pki::load(dir.path(), &trust_domain).unwrap();
        let identity = SpiffeId::new(&trust_domain, "shop", "orders").unwrap();
        let issued = pki.issue(&identity).unwrap();
        let verified = verify(&issued.chain, &authority.trust_bundle(), Role::Server, UnixTime::now());
        assert_eq!(verified, Ok(identity));
        assert_eq!(pki.root(), &authority.chain()[0]);
        // And the other way round: a control plane could be started with this one.
        outrigger_certs::Authority::from_pem(&trust_domain, pki.root_pem(), &pki.key_pem(), "", now).unwrap();
    }
}
