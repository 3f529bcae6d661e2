//! SPIFFE identities: parsed once at the edge, then compared as values.
//!
//! A [`SpiffeId`] can only be made by [`SpiffeId::parse`] (or from parts that obey the same rules), so code that holds
//! one never validates again. The grammar is that of the SPIFFE ID specification, section 2, narrowed to the shape this
//! mesh issues: `spiffe://TRUST_DOMAIN/ns/NAMESPACE/sa/SERVICE_ACCOUNT`.
//!
//! It does not read certificates (that is `verify.rs`) and knows no federation: one trust domain per mesh.

use std::{fmt, str::FromStr, sync::Arc};

/// Longest URI accepted, in bytes (SPIFFE ID specification, section 2.3).
pub const MAX_ID_BYTES: usize = 2048;
/// Longest trust domain name accepted, in bytes (SPIFFE ID specification, section 2.3).
pub const MAX_TRUST_DOMAIN_BYTES: usize = 255;
/// Longest namespace or service-account name accepted, in bytes (a DNS subdomain name in Kubernetes).
pub const MAX_NAME_BYTES: usize = 253;

/// The name of a trust domain: lower-case letters, digits, `.`, `-` and `_`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TrustDomain(Arc<str>);

/// Who a workload is: `spiffe://TRUST_DOMAIN/ns/NAMESPACE/sa/SERVICE_ACCOUNT`.
///
/// Cheap to clone; compared by its text, which is canonical because parsing admits a single spelling.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SpiffeId {
    uri: Arc<str>,
    // Ends of the parts inside `uri`, so that accessors are slices and never allocate.
    trust_domain_end: u16,
    namespace_end: u16,
}

/// Why a text is not an identity of this mesh.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SpiffeError {
    #[error("does not begin with \"spiffe://\"")]
    Scheme,
    #[error("is longer than {MAX_ID_BYTES} bytes")]
    TooLong,
    #[error(
        "trust domain is empty, longer than {MAX_TRUST_DOMAIN_BYTES} bytes, or has a character outside a-z 0-9 . - _"
    )]
    TrustDomain,
    #[error("path is not /ns/NAMESPACE/sa/SERVICE_ACCOUNT")]
    Path,
    #[error("namespace is empty, longer than {MAX_NAME_BYTES} bytes, or has a character outside a-z 0-9 . -")]
    Namespace,
    #[error(
        "service account is empty, longer than {MAX_NAME_BYTES} bytes, or has a character outside a-z 0-9 . -"
    )]
    ServiceAccount,
}

const SCHEME: &str = "spiffe://";

// === impl TrustDomain ===

impl TrustDomain {
    pub fn parse(name: &str) -> Result<Self, SpiffeError> {
        let legal = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'-' | b'_');
        if name.is_empty() || name.len() > MAX_TRUST_DOMAIN_BYTES || !name.bytes().all(legal) {
            return Err(SpiffeError::TrustDomain);
        }
        Ok(Self(name.into()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for TrustDomain {
    type Err = SpiffeError;

    fn from_str(name: &str) -> Result<Self, SpiffeError> {
        Self::parse(name)
    }
}

// === impl SpiffeId ===

impl SpiffeId {
    pub fn parse(uri: &str) -> Result<Self, SpiffeError> {
        if uri.len() > MAX_ID_BYTES {
            return Err(SpiffeError::TooLong);
        }
        let rest = uri.strip_prefix(SCHEME).ok_or(SpiffeError::Scheme)?;
        let (trust_domain, path) = rest.split_once('/').ok_or(SpiffeError::Path)?;
        let mut segments = path.split('/');
        let (Some("ns"), Some(namespace), Some("sa"), Some(service_account), None) =
            (segments.next(), segments.next(), segments.next(), segments.next(), segments.next())
        else {
            return Err(SpiffeError::Path);
        };
        Self::new(&TrustDomain::parse(trust_domain)?, namespace, service_account)
    }

    /// Builds the identity of a service account.
    pub fn new(
        trust_domain: &TrustDomain,
        namespace: &str,
        service_account: &str,
    ) -> Result<Self, SpiffeError> {
        if !is_name(namespace) {
            return Err(SpiffeError::Namespace);
        }
        if !is_name(service_account) {
            return Err(SpiffeError::ServiceAccount);
        }
        let uri: Arc<str> = format!("{SCHEME}{trust_domain}/ns/{namespace}/sa/{service_account}").into();
        let trust_domain_end = SCHEME.len() + trust_domain.as_str().len();
        let namespace_end = trust_domain_end + "/ns/".len() + namespace.len();
        // The parts are at most 255 + 253 bytes, so both ends fit.
        Ok(Self { uri, trust_domain_end: trust_domain_end as u16, namespace_end: namespace_end as u16 })
    }

    pub fn as_str(&self) -> &str {
        &self.uri
    }

    pub fn trust_domain(&self) -> &str {
        &self.uri[SCHEME.len()..usize::from(self.trust_domain_end)]
    }

    pub fn namespace(&self) -> &str {
        &self.uri[usize::from(self.trust_domain_end) + "/ns/".len()..usize::from(self.namespace_end)]
    }

    pub fn service_account(&self) -> &str {
        &self.uri[usize::from(self.namespace_end) + "/sa/".len()..]
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.uri)
    }
}

impl fmt::Debug for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.uri, f)
    }
}

impl FromStr for SpiffeId {
    type Err = SpiffeError;

    fn from_str(uri: &str) -> Result<Self, SpiffeError> {
        Self::parse(uri)
    }
}

fn is_name(name: &str) -> bool {
    let legal = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'-');
    !name.is_empty() && name.len() <= MAX_NAME_BYTES && name != "." && name != ".." && name.bytes().all(legal)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn parts_are_slices_of_the_uri() {
        let id = SpiffeId::parse("spiffe://mesh.local/ns/shop/sa/orders").unwrap();
        assert_eq!(
            (id.trust_domain(), id.namespace(), id.service_account()),
            ("mesh.local", "shop", "orders")
        );
    }

    #[test]
    fn every_malformed_text_gets_its_own_reason() {
        let long = format!("spiffe://mesh.local/ns/{}/sa/x", "n".repeat(MAX_ID_BYTES));
        for (text, reason) in [
            ("", SpiffeError::Scheme),
            ("https://mesh.local/ns/a/sa/b", SpiffeError::Scheme),
            ("SPIFFE://mesh.local/ns/a/sa/b", SpiffeError::Scheme),
            ("spiffe://mesh.local", SpiffeError::Path),
            ("spiffe://mesh.local/", SpiffeError::Path),
            ("spiffe://mesh.local/ns/a/sa/b/", SpiffeError::Path),
            ("spiffe://mesh.local/ns/a/sb/b", SpiffeError::Path),
            ("spiffe://mesh.local//ns/a/sa/b", SpiffeError::Path),
            ("spiffe:///ns/a/sa/b", SpiffeError::TrustDomain),
            ("spiffe://Mesh.local/ns/a/sa/b", SpiffeError::TrustDomain),
            ("spiffe://mesh.local:443/ns/a/sa/b", SpiffeError::TrustDomain),
            ("spiffe://user@mesh.local/ns/a/sa/b", SpiffeError::TrustDomain),
            ("spiffe://mesh.local/ns//sa/b", SpiffeError::Namespace),
            ("spiffe://mesh.local/ns/%41/sa/b", SpiffeError::Namespace),
            ("spiffe://mesh.local/ns/../sa/b", SpiffeError::Namespace),
            ("spiffe://mesh.local/ns/a/sa/", SpiffeError::ServiceAccount),
            ("spiffe://mesh.local/ns/a/sa/b?x=1", SpiffeError::ServiceAccount),
            ("spiffe://mesh.local/ns/a/sa/b#f", SpiffeError::ServiceAccount),
            (long.as_str(), SpiffeError::TooLong),
        ] {
            assert_eq!(SpiffeId::parse(text), Err(reason), "{text}");
        }
    }

    proptest! {
        #[test]
        fn display_and_parse_are_inverse(td in "[a-z0-9._-]{1,40}", ns in "[a-z0-9][a-z0-9-]{0,40}", sa in "[a-z0-9][a-z0-9.-]{0,40}") {
            let id = SpiffeId::new(&TrustDomain::parse(&td).unwrap(), &ns, &sa).unwrap();
            let again = SpiffeId::parse(id.as_str()).unwrap();
            prop_assert_eq!(again.namespace(), ns.as_str());
            prop_assert_eq!(again.service_account(), sa.as_str());
            prop_assert_eq!(again.trust_domain(), td.as_str());
            prop_assert_eq!(again, id);
        }

        #[test]
        fn no_input_panics(text in ".{0,300}") {
            let _ = SpiffeId::parse(&text);
        }
    }
}
