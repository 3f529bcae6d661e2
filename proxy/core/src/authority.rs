//! One spelling of the host a request is for.

use std::{borrow::Cow, fmt, num::NonZeroU16};

use http::request::Parts;

/// A host as requests name it: lower case, without trailing dot; IPv6 in brackets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host<'a> {
    pub name: Cow<'a, str>,
    pub port: Option<NonZeroU16>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HostError {
    #[error("no Host")]
    Missing,
    #[error("more than one Host")]
    Several,
    #[error("Host and request target name different hosts")]
    Mismatch,
    #[error("Host is not HOST or HOST:PORT")]
    Illegal,
}

impl fmt::Display for Host<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.port {
            Some(port) => write!(f, "{}:{port}", self.name),
            None => f.write_str(&self.name),
        }
    }
}

pub fn parse(_text: &str) -> Result<Host<'_>, HostError> {
    unimplemented!()
}

/// The one host of a request, from its target and its Host fields. HTTP/1.0 may have none.
pub fn of_request(_request: &Parts) -> Result<Option<Host<'_>>, HostError> {
    unimplemented!()
}
