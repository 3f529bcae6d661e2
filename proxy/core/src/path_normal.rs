//! One spelling of a path, used for matching *and* forwarding.

use std::borrow::Cow;

use http::Uri;

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    #[error("path does not begin with /")]
    NotAbsolute,
    #[error("path has an encoded slash, backslash or NUL")]
    Escaped,
    #[error("path has a character that must be encoded")]
    Illegal,
    #[error("path has a broken % sequence")]
    BadEscape,
    #[error("path has a dot segment with parameters")]
    DotParameters,
}

/// The normal form of a path (without query); borrowed when it already is normal, which is the usual case.
pub fn normalise(_path: &str) -> Result<Cow<'_, str>, PathError> {
    unimplemented!()
}

/// Brings the target of a request into normal form in place; `true` if that changed it. `*` and authority-form pass.
pub fn normalise_uri(_uri: &mut Uri) -> Result<bool, PathError> {
    unimplemented!()
}
