//! `Identity.Sign`: a certificate for whom the caller is attested to be.
//!
//! Two things attest: a join token, for the first certificate, and the certificate of this very connection
//! together with its registration, for every later one. The identity comes from there and nowhere else; of
//! the CSR only the key is used.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant, SystemTime},
};

use outrigger_certs::{JoinToken, Registration, SignError, SpiffeId, inspect, token::Labels, verify};
use outrigger_proto::pb::{self, identity_server::Identity};
use tonic::{Request, Response, Status, metadata::MetadataMap};
use x509_parser::{certification_request::X509CertificationRequest, prelude::FromDer as _};

use super::{Peer, Shared, limit::SignLimit};
use crate::used_tokens::UseError;

/// A registration outlives its certificate by this much: where clocks differ, the certificate decides.
const REGISTRATION_MARGIN: Duration = Duration::from_secs(300);

pub(super) struct Service {
    shared: Arc<Shared>,
    limit: Mutex<SignLimit>,
}

/// Who the caller is, and how we know.
struct Attested {
    identity: SpiffeId,
    labels: Labels,
    token: Option<JoinToken>,
}

impl Service {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared, limit: Mutex::default() }
    }

    /// Who asks, by token or by certificate.
    fn attest(
        &self,
        metadata: &MetadataMap,
        peer: &Peer,
        registration: &str,
        now: SystemTime,
    ) -> Result<Attested, Status> {
        let authority = self.shared.ca.authority();
        if let Some(token) = bearer(metadata)? {
            let token = JoinToken::verify(token, &authority, now).map_err(unauthenticated)?;
            let (identity, labels) = (token.identity.clone(), token.labels.clone());
            return Ok(Attested { identity, labels, token: Some(token) });
        }
        let Some(identity) = peer.identity.clone() else {
            return Err(unauthenticated(
                "neither a join token (authorization: Bearer …) nor a client certificate",
            ));
        };
        let registration = Registration::verify(registration, &authority, now).map_err(unauthenticated)?;
        if registration.identity != identity {
            let reason =
                format!("the registration is of {}, the certificate of {identity}", registration.identity);
            return Err(Status::permission_denied(reason));
        }
        Ok(Attested { identity, labels: registration.labels, token: None })
    }
}

impl Attested {
    fn sign(&self, shared: &Shared, csr_der: &[u8], now: SystemTime) -> Result<pb::SignResponse, Status> {
        let Shared { ca, used_tokens, .. } = shared;
        if self.identity == *ca.identity() {
            return Err(Status::permission_denied("this identity is the control plane's own"));
        }
        let authority = ca.authority();
        let chain_der = authority.sign(csr_der, &self.identity, ca.leaf_life(), now).map_err(|error| {
            let text = error.to_string();
            match error {
                SignError::TooLarge { .. }
                | SignError::Malformed(_)
                | SignError::KeyType
                | SignError::Signature => Status::invalid_argument(text),
                SignError::TrustDomain { .. } => Status::permission_denied(text),
                SignError::IssuerExpired { .. } | SignError::Failed(_) | SignError::Credential(_) => {
                    Status::internal(text)
                }
            }
        })?;
        if let Some(token) = &self.token {
            let key = key_of(csr_der)?;
            used_tokens.take(token, &key, now).map_err(|error| match error {
                UseError::AnotherKey => Status::permission_denied(error.to_string()),
                UseError::Record(_) => Status::unavailable(error.to_string()),
            })?;
        }
        let registration = Registration {
            identity: self.identity.clone(),
            labels: self.labels.clone(),
            expires: now + ca.leaf_life() + REGISTRATION_MARGIN,
        };
        let registration =
            registration.sign(&authority).map_err(|error| Status::internal(error.to_string()))?;
        Ok(pb::SignResponse { chain_der, roots_der: authority.roots_der().to_vec(), registration })
    }
}

impl Service {
    async fn answer(&self, request: Request<pb::SignRequest>) -> Result<pb::SignResponse, Status> {
        let now = SystemTime::now();
        let peer = super::peer(&request)?;
        let (metadata, _, pb::SignRequest { csr_der, registration }) = request.into_parts();
        let attested = self.attest(&metadata, &peer, &registration, now)?;
        let admitted = {
            let mut limit = self.limit.lock().unwrap_or_else(PoisonError::into_inner);
            limit.admit(&attested.identity, Instant::now())
        };
        if let Err(wait) = admitted {
            let reason = format!("{} asks for too many certificates; wait {wait:?}", attested.identity);
            return Err(Status::resource_exhausted(reason));
        }
        let by = if attested.token.is_some() { "token" } else { "certificate" };
        let identity = attested.identity.clone();
        // Off the tasks that carry streams: it computes, and may write to the disk.
        let shared = self.shared.clone();
        let signed = tokio::task::spawn_blocking(move || attested.sign(&shared, &csr_der, now)).await;
        let response = signed.map_err(|error| Status::internal(error.to_string()))??;
        let metrics = &self.shared.metrics;
        if by == "token" { &metrics.signed_by_token } else { &metrics.signed_by_certificate }.add_one();
        tracing::info!(%identity, by, address = %peer.address, "certificate issued");
        Ok(response)
    }
}

#[tonic::async_trait]
impl Identity for Service {
    async fn sign(&self, request: Request<pb::SignRequest>) -> Result<Response<pb::SignResponse>, Status> {
        let address = super::peer(&request)?.address;
        self.answer(request).await.map(Response::new).inspect_err(|status| {
            self.shared.metrics.signing_refused.add_one();
            tracing::warn!(%address, reason = status.message(), "no certificate issued");
        })
    }
}

fn bearer(metadata: &MetadataMap) -> Result<Option<&str>, Status> {
    let Some(value) = metadata.get("authorization") else { return Ok(None) };
    let text = value.to_str().ok().and_then(|text| text.split_once(' '));
    match text {
        Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer") => Ok(Some(token)),
        Some(_) | None => Err(unauthenticated("authorization is not of the form Bearer TOKEN")),
    }
}

/// What a single-use token is bound to: SHA-256 of the public key, whatever else a CSR says around it.
fn key_of(csr_der: &[u8]) -> Result<String, Status> {
    let (_, csr) = X509CertificationRequest::from_der(csr_der)
        .map_err(|error| Status::invalid_argument(format!("the CSR cannot be read: {error}")))?;
    Ok(inspect::hex(&verify::fingerprint(csr.certification_request_info.subject_pki.raw)))
}

fn unauthenticated(reason: impl ToString) -> Status {
    Status::unauthenticated(reason.to_string())
}
