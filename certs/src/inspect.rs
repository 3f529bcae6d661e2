//! A certificate as people want to see it: for `/certs`, `outrigger certs show` and error messages.
//!
//! For display only. Nothing is verified, and no decision may hang on what is read here.

use std::time::SystemTime;

use rustls::pki_types::{CertificateDer, pem::PemObject as _};
use serde::{Deserialize, Serialize};
use x509_parser::{
    prelude::{FromDer as _, GeneralName, X509Certificate},
    public_key::PublicKey,
};

use crate::verify;

/// What a certificate says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Summary {
    pub subject: String,
    /// With their kinds, e.g. `URI:spiffe://mesh.local/ns/shop/sa/orders`.
    pub alternative_names: Vec<String>,
    pub issuer: String,
    /// Hexadecimal.
    pub serial: String,
    /// RFC 3339, UTC.
    pub not_before: String,
    pub not_after: String,
    /// Seconds since 1970.
    pub not_after_unix: i64,
    pub key: String,
    pub signature: String,
    pub is_ca: bool,
    /// Of the whole certificate, DER; hexadecimal.
    pub sha256: String,
}

/// Why nothing can be shown.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InspectError {
    #[error("not a certificate: {0}")]
    Der(String),
    #[error("not PEM: {0}")]
    Pem(String),
    #[error("no certificate in the PEM text")]
    Empty,
}

pub fn describe(der: &[u8]) -> Result<Summary, InspectError> {
    let (_, certificate) = X509Certificate::from_der(der).map_err(|e| InspectError::Der(e.to_string()))?;
    let names = certificate.subject_alternative_name().map_err(|e| InspectError::Der(e.to_string()))?;
    let names = names.map_or(&[][..], |names| names.value.general_names.as_slice());
    let dates = certificate.validity();
    Ok(Summary {
        subject: certificate.subject().to_string(),
        alternative_names: names.iter().map(alternative_name).collect(),
        issuer: certificate.issuer().to_string(),
        serial: hex(certificate.raw_serial()),
        not_before: date(dates.not_before.timestamp()),
        not_after: date(dates.not_after.timestamp()),
        not_after_unix: dates.not_after.timestamp(),
        key: key(&certificate),
        signature: signature(&certificate),
        is_ca: certificate.is_ca(),
        sha256: hex(&verify::fingerprint(der)),
    })
}

/// Every certificate of a PEM text, in its order; keys in it are passed over.
pub fn describe_pem(pem: &[u8]) -> Result<Vec<Summary>, InspectError> {
    let mut summaries = Vec::new();
    for certificate in CertificateDer::pem_slice_iter(pem) {
        summaries.push(describe(&certificate.map_err(|e| InspectError::Pem(e.to_string()))?)?);
    }
    if summaries.is_empty() { Err(InspectError::Empty) } else { Ok(summaries) }
}

/// Lower-case hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digit = |nibble: u8| char::from(DIGITS[usize::from(nibble & 0xf)]);
    bytes.iter().flat_map(|byte| [digit(byte >> 4), digit(*byte)]).collect()
}

fn alternative_name(name: &GeneralName<'_>) -> String {
    match name {
        GeneralName::URI(uri) => format!("URI:{uri}"),
        GeneralName::DNSName(name) => format!("DNS:{name}"),
        GeneralName::RFC822Name(name) => format!("email:{name}"),
        GeneralName::IPAddress(bytes) => match <[u8; 4]>::try_from(*bytes) {
            Ok(v4) => format!("IP:{}", std::net::Ipv4Addr::from(v4)),
            Err(_) => match <[u8; 16]>::try_from(*bytes) {
                Ok(v6) => format!("IP:{}", std::net::Ipv6Addr::from(v6)),
                Err(_) => format!("IP:{}", hex(bytes)),
            },
        },
        GeneralName::DirectoryName(name) => format!("directory:{name}"),
        GeneralName::OtherName(..)
        | GeneralName::X400Address(_)
        | GeneralName::EDIPartyName(_)
        | GeneralName::RegisteredID(_)
        | GeneralName::Invalid(..) => format!("other:{name:?}"),
    }
}

fn key(certificate: &X509Certificate<'_>) -> String {
    match certificate.public_key().parsed() {
        Ok(PublicKey::EC(point)) => match point.key_size() {
            256 => "ECDSA P-256".to_owned(),
            bits => format!("ECDSA, {bits} bits"),
        },
        Ok(PublicKey::RSA(key)) => format!("RSA, {} bits", key.key_size()),
        Ok(
            PublicKey::DSA(_)
            | PublicKey::GostR3410(_)
            | PublicKey::GostR3410_2012(_)
            | PublicKey::Unknown(_),
        )
        | Err(_) => format!("algorithm {}", certificate.public_key().algorithm.algorithm),
    }
}

fn signature(certificate: &X509Certificate<'_>) -> String {
    match certificate.signature_algorithm.algorithm.to_id_string().as_str() {
        "1.2.840.10045.4.3.2" => "ECDSA with SHA-256".to_owned(),
        "1.2.840.10045.4.3.3" => "ECDSA with SHA-384".to_owned(),
        "1.2.840.113549.1.1.11" => "RSA with SHA-256".to_owned(),
        "1.3.101.112" => "Ed25519".to_owned(),
        oid => format!("algorithm {oid}"),
    }
}

fn date(seconds: i64) -> String {
    let since_1970 = std::time::Duration::from_secs(u64::try_from(seconds).unwrap_or(0));
    verify::rfc3339(SystemTime::UNIX_EPOCH + since_1970)
}
