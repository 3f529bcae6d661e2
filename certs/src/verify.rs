//! Who is on the other side: the checks a peer's certificate must pass, for both sides of a handshake.
//!
//! In this order, the first failure being the answer:
//! 1. the chain leads to a root of the trust bundle, every certificate on it is within its dates, CAs are CAs and the leaf
//!    is none (webpki; the root's own dates are ours to check);
//! 2. the leaf may sign handshakes (key usage) and act in this role (extended key usage, which must be there);
//! 3. it has exactly one URI name, that name is a [`SpiffeId`], and its trust domain is ours;
//! 4. on the client's side: it is the identity that was dialled, not merely one of the mesh.
//!
//! DNS names, IP addresses and common names are never looked at. There are no revocation lists: leaves live for a day,
//! and a root is withdrawn by taking it out of the bundle. Bytes are read by x509-parser only after step 1, so only an
//! authority of ours can feed it.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aws_lc_rs::digest;
use rustls::pki_types::{CertificateDer, UnixTime};
use webpki::EndEntityCert;
use x509_parser::prelude::{FromDer as _, GeneralName, X509Certificate};

use crate::{SpiffeError, SpiffeId, TrustBundle, TrustDomain, Validity, tls};

mod verifiers;

pub(crate) use verifiers::{ClientVerifier, ServerVerifier, TrustFrom};

/// Which side of the handshake the peer is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    Client,
    Server,
}

/// Why a peer's certificate is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum VerifyError {
    #[error("there is no certificate")]
    NoCertificate,
    #[error("cannot be read: {0}")]
    Malformed(String),
    #[error("expired at {}", rfc3339(*.at))]
    Expired { at: SystemTime },
    #[error("is not valid before {}", rfc3339(*.from))]
    NotYetValid { from: SystemTime },
    #[error("is not signed by a trusted root")]
    UnknownAuthority,
    #[error("comes with no authority of the pinned fingerprint {pinned}")]
    PinnedRootMissing { pinned: String },
    #[error("does not chain up: {0}")]
    Chain(String),
    #[error("is a certificate authority's (CA:TRUE), not a workload's")]
    IsAuthority,
    #[error("does not allow {0}")]
    Usage(&'static str),
    #[error("has no URI name, so no SPIFFE identity")]
    NoUri,
    #[error("has {count} URI names where SPIFFE allows one")]
    ManyUris { count: usize },
    #[error("names {uri:?}, which {reason}")]
    NotSpiffe { uri: String, reason: SpiffeError },
    #[error("is from trust domain {got}, expected {expected}")]
    TrustDomain { expected: String, got: String },
    #[error("is for the wrong identity: expected {expected}, got {got}")]
    Identity { expected: SpiffeId, got: SpiffeId },
}

/// Steps 1 to 3 for a whole chain, leaf first.
pub fn verify(
    chain: &[CertificateDer<'_>],
    trust: &TrustBundle,
    role: Role,
    now: UnixTime,
) -> Result<SpiffeId, VerifyError> {
    let (leaf, intermediates) = chain.split_first().ok_or(VerifyError::NoCertificate)?;
    verify_split(leaf, intermediates, trust, role, now)
}

/// The identity in a leaf whose chain was verified during the handshake; `chain` is leaf first.
pub fn peer_identity(chain: &[CertificateDer<'_>]) -> Result<SpiffeId, VerifyError> {
    let leaf = chain.first().ok_or(VerifyError::NoCertificate)?;
    identity(&parse(leaf)?)
}

/// SHA-256 over the DER.
pub fn fingerprint(certificate: &[u8]) -> [u8; 32] {
    let mut out = [0; 32];
    out.copy_from_slice(digest::digest(&digest::SHA256, certificate).as_ref());
    out
}

fn verify_split(
    leaf: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
    trust: &TrustBundle,
    role: Role,
    now: UnixTime,
) -> Result<SpiffeId, VerifyError> {
    let end_entity = EndEntityCert::try_from(leaf).map_err(|e| VerifyError::Malformed(e.to_string()))?;
    end_entity
        .verify_for_usage(
            tls::provider().signature_verification_algorithms.all,
            trust.anchors(),
            intermediates,
            now,
            // Its presence on the leaf is asked for below; webpki would ask it of intermediates, too.
            match role {
                Role::Client => webpki::KeyUsage::client_auth(),
                Role::Server => webpki::KeyUsage::server_auth(),
            },
            None,
            Some(&|path| trust.check_anchor(path.anchor(), now)),
        )
        .map_err(|e| chain_error(e, role))?;
    let leaf = parse(leaf)?;
    check_usage(&leaf, role)?;
    let identity = identity(&leaf)?;
    check_trust_domain(&identity, trust.trust_domain())?;
    Ok(identity)
}

fn chain_error(error: webpki::Error, role: Role) -> VerifyError {
    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "foreign and non-exhaustive; the rest is told in its own words"
    )]
    match error {
        webpki::Error::CertExpired { not_after, .. } => VerifyError::Expired { at: wall(not_after) },
        webpki::Error::CertNotValidYet { not_before, .. } => {
            VerifyError::NotYetValid { from: wall(not_before) }
        }
        // A root of the same name with another key: to whoever reads the message, that is not one of ours either.
        webpki::Error::UnknownIssuer | webpki::Error::InvalidSignatureForPublicKey => {
            VerifyError::UnknownAuthority
        }
        webpki::Error::CaUsedAsEndEntity => VerifyError::IsAuthority,
        webpki::Error::RequiredEkuNotFoundContext(_) => usage_error(role),
        other => VerifyError::Chain(other.to_string()),
    }
}

fn usage_error(role: Role) -> VerifyError {
    VerifyError::Usage(match role {
        Role::Client => "acting as a client (extended key usage clientAuth)",
        Role::Server => "acting as a server (extended key usage serverAuth)",
    })
}

// --- reading a certificate -------------------------------------------------------------------------------------------

fn parse<'a>(der: &'a CertificateDer<'_>) -> Result<X509Certificate<'a>, VerifyError> {
    let (rest, certificate) =
        X509Certificate::from_der(der.as_ref()).map_err(|e| VerifyError::Malformed(e.to_string()))?;
    if !rest.is_empty() {
        return Err(VerifyError::Malformed("bytes follow the certificate".to_owned()));
    }
    Ok(certificate)
}

fn check_usage(leaf: &X509Certificate<'_>, role: Role) -> Result<(), VerifyError> {
    let malformed = |e: x509_parser::error::X509Error| VerifyError::Malformed(e.to_string());
    if let Some(usage) = leaf.key_usage().map_err(malformed)?
        && !usage.value.digital_signature()
    {
        return Err(VerifyError::Usage("signing handshakes (key usage digitalSignature)"));
    }
    let usage = leaf.extended_key_usage().map_err(malformed)?.ok_or_else(|| usage_error(role))?;
    let allowed = match role {
        Role::Client => usage.value.client_auth,
        Role::Server => usage.value.server_auth,
    };
    if allowed { Ok(()) } else { Err(usage_error(role)) }
}

fn identity(leaf: &X509Certificate<'_>) -> Result<SpiffeId, VerifyError> {
    const URI_TAG: u32 = 6; // GeneralName, RFC 5280 section 4.2.1.6
    let names = leaf.subject_alternative_name().map_err(|e| VerifyError::Malformed(e.to_string()))?;
    let names = names.map_or(&[][..], |names| names.value.general_names.as_slice());
    let (mut count, mut found) = (0, None);
    for name in names {
        match name {
            GeneralName::URI(uri) => (count, found) = (count + 1, Some(*uri)),
            // A URI that is not even text counts: it must not hide beside a good one.
            GeneralName::Invalid(tag, _) if tag.0 == URI_TAG => count += 1,
            GeneralName::Invalid(..)
            | GeneralName::OtherName(..)
            | GeneralName::RFC822Name(_)
            | GeneralName::DNSName(_)
            | GeneralName::X400Address(_)
            | GeneralName::DirectoryName(_)
            | GeneralName::EDIPartyName(_)
            | GeneralName::IPAddress(_)
            | GeneralName::RegisteredID(_) => {}
        }
    }
    match (count, found) {
        (0, _) => Err(VerifyError::NoUri),
        (1, Some(uri)) => SpiffeId::parse(uri)
            .map_err(|reason| VerifyError::NotSpiffe { uri: uri.chars().take(200).collect(), reason }),
        (1, None) => Err(VerifyError::Malformed("its URI name is not text".to_owned())),
        (count, _) => Err(VerifyError::ManyUris { count }),
    }
}

fn check_trust_domain(identity: &SpiffeId, expected: &TrustDomain) -> Result<(), VerifyError> {
    if identity.trust_domain() == expected.as_str() {
        return Ok(());
    }
    Err(VerifyError::TrustDomain { expected: expected.to_string(), got: identity.trust_domain().to_owned() })
}

/// Identity and dates of a leaf of our own.
pub(crate) fn read_leaf(der: &CertificateDer<'_>) -> Result<(SpiffeId, Validity), VerifyError> {
    let leaf = parse(der)?;
    Ok((identity(&leaf)?, validity(&leaf)))
}

/// Whether a certificate may issue others, and its dates.
pub(crate) fn read_authority(der: &CertificateDer<'_>) -> Result<(bool, Validity), VerifyError> {
    let certificate = parse(der)?;
    Ok((certificate.is_ca(), validity(&certificate)))
}

fn validity(certificate: &X509Certificate<'_>) -> Validity {
    let at = |time: x509_parser::time::ASN1Time| {
        // Before 1970 counts as 1970: long past is long past.
        UNIX_EPOCH + Duration::from_secs(u64::try_from(time.timestamp()).unwrap_or(0))
    };
    let dates = certificate.validity();
    Validity { not_before: at(dates.not_before), not_after: at(dates.not_after) }
}

// --- time ------------------------------------------------------------------------------------------------------------

/// 9999-12-31T23:59:59Z, the last moment X.509 can name.
pub(crate) const END_OF_TIME: UnixTime = UnixTime::since_unix_epoch(Duration::from_secs(253_402_300_799));

pub(crate) fn wall(time: UnixTime) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(time.as_secs())
}

pub(crate) fn unix(time: SystemTime) -> UnixTime {
    UnixTime::since_unix_epoch(time.duration_since(UNIX_EPOCH).unwrap_or_default())
}

/// A time as it stands in certificates, in UTC.
pub fn rfc3339(time: SystemTime) -> String {
    use time::{OffsetDateTime, format_description::well_known::Rfc3339};
    let seconds = i64::try_from(unix(time).as_secs()).unwrap_or(i64::MAX);
    OffsetDateTime::from_unix_timestamp(seconds)
        .ok()
        .and_then(|time| time.format(&Rfc3339).ok())
        .unwrap_or_else(|| format!("{seconds} s after 1970"))
}
