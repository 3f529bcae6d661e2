//! One request for a certificate, to one control plane.

use std::{error::Error as _, num::NonZeroU32, sync::Arc, time::Duration};

use outrigger_certs::{
    Credential, CredentialError, Credentials, JoinToken, KeyRequest, SpiffeId, TrustBundle, TrustDomain,
    TrustError, VerifyError, alpn, tls,
    verify::{self, Role},
};
use outrigger_proto::pb::{SignRequest, SignResponse, identity_client::IdentityClient};
use rustls::pki_types::UnixTime;
use tokio::time::timeout;
use tonic::{Request, metadata::MetadataValue};

use super::BadToken;
use crate::{
    config::HostPort,
    sync::connect::{self, ConnectError, connect},
};

/// From the request to the answer: signing takes a millisecond, a loaded control plane takes its time.
const ANSWER: Duration = Duration::from_secs(10);

/// What the control plane is shown.
#[derive(Clone, Copy)]
pub(super) enum Proof<'a> {
    Token { text: &'a str, token: &'a JoinToken },
    Certificate { credentials: &'a Arc<Credentials>, registration: &'a str },
}

/// What was answered, not yet looked at.
pub(super) struct Answer(SignResponse);

/// A certificate, and what came with it.
pub(super) struct Asked {
    pub(super) credential: Credential,
    pub(super) trust: TrustBundle,
    pub(super) registration: String,
}

#[derive(Debug, thiserror::Error)]
pub(super) enum AskError {
    #[error("{0}")]
    Token(BadToken),
    #[error("no request can be made: {0}")]
    Request(#[from] CredentialError),
    #[error("unreachable: {0}")]
    Unreachable(ConnectError),
    #[error("not the control plane this workload may talk to: {0}")]
    Untrusted(ConnectError),
    #[error("unreachable: {0}")]
    Broken(String),
    #[error("refused: {0}")]
    Refused(String),
    #[error("no answer within {} s", ANSWER.as_secs())]
    Silent,
    #[error("the answer is of no use: {0}")]
    Useless(Useless),
}

/// What is wrong with an answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum Useless {
    #[error("{0}")]
    Trust(#[from] TrustError),
    #[error("{0}")]
    Credential(#[from] CredentialError),
    #[error("the certificate {0}")]
    Chain(#[from] VerifyError),
    #[error("the certificate is for {got}, this workload is {expected}")]
    Identity { expected: SpiffeId, got: SpiffeId },
    #[error("it has no registration")]
    NoRegistration,
}

pub(super) async fn ask(
    target: &HostPort,
    proof: Proof<'_>,
    csr_der: Vec<u8>,
    mark: Option<NonZeroU32>,
) -> Result<Answer, AskError> {
    let (tls, credentials, registration, bearer) = match proof {
        Proof::Token { text, token } => {
            let expected = connect::control_plane_identity(&token.trust_domain());
            (tls::pinned_client_config(token.root_sha256, expected), None, String::new(), Some(text))
        }
        Proof::Certificate { credentials, registration } => {
            let expected = connect::control_plane_identity(credentials.trust_domain());
            let tls = tls::client_config(credentials, expected, &[alpn::GRPC]);
            (tls, Some(&**credentials), registration.to_owned(), None)
        }
    };
    let channel = connect(target, tls, credentials, mark).await.map_err(|error| match error {
        ConnectError::Resolve { .. } | ConnectError::Dial { .. } | ConnectError::Grpc(_) => {
            AskError::Unreachable(error)
        }
        ConnectError::Tls(_) => AskError::Untrusted(error),
    })?;
    let mut request = Request::new(SignRequest { csr_der, registration });
    if let Some(text) = bearer {
        // It parsed as a token, so it is ASCII.
        let value = MetadataValue::try_from(format!("Bearer {text}"));
        let mut value = value.map_err(|_| AskError::Refused("the token is no header value".to_owned()))?;
        value.set_sensitive(true);
        request.metadata_mut().insert("authorization", value);
    }
    match timeout(ANSWER, IdentityClient::new(channel).sign(request)).await {
        Ok(Ok(response)) => Ok(Answer(response.into_inner())),
        // A status that was made here, for a connection that broke, is no verdict on what was shown.
        Ok(Err(status)) if status.source().is_some() => Err(AskError::Broken(connect::explain(&status))),
        Ok(Err(status)) => Err(AskError::Refused(connect::explain(&status))),
        Err(_) => Err(AskError::Silent),
    }
}

impl Answer {
    /// Joins the answer with the key that was asked for, and sees that peers will take the result.
    pub(super) fn check(
        self,
        key: KeyRequest,
        identity: &SpiffeId,
        trust_domain: &TrustDomain,
    ) -> Result<Asked, AskError> {
        self.join(key, identity, trust_domain).map_err(AskError::Useless)
    }

    fn join(
        self,
        key: KeyRequest,
        identity: &SpiffeId,
        trust_domain: &TrustDomain,
    ) -> Result<Asked, Useless> {
        let SignResponse { chain_der, roots_der, registration } = self.0;
        let credential = key.into_credential(chain_der)?;
        if credential.identity() != identity {
            return Err(Useless::Identity { expected: identity.clone(), got: credential.identity().clone() });
        }
        let trust = TrustBundle::from_der(trust_domain, &roots_der)?;
        verify::verify(credential.chain(), &trust, Role::Client, UnixTime::now())?;
        if registration.is_empty() {
            return Err(Useless::NoRegistration);
        }
        Ok(Asked { credential, trust, registration })
    }
}

impl AskError {
    /// Whether nobody was there: then showing something else would not help. A connection that broke is no such sign:
    /// in TLS 1.3 a server refuses a certificate after the client has finished its handshake.
    pub(super) fn is_unreachable(&self) -> bool {
        matches!(self, Self::Unreachable(_) | Self::Silent)
    }
}
