//! In which formats a trace is told, as `OTEL_PROPAGATORS` names them.

use std::{fmt, str::FromStr};

/// What a trace is told in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Format {
    /// `traceparent` and `tracestate`.
    W3c,
    /// One field, `b3`.
    B3,
    /// Several fields, `x-b3-…`.
    B3Multi,
}

/// A set of formats.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Formats(u8);

/// The formats that are read and written, without repetition; where several came, the first of these counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Propagators([Option<Format>; Format::ALL.len()]);

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PropagatorsError {
    #[error("`{0}` is none of tracecontext, b3, b3multi, baggage, none")]
    Unknown(String),
    #[error("`none` stands beside others")]
    NoneAndOthers,
}

impl Format {
    pub const ALL: [Self; 3] = [Self::W3c, Self::B3, Self::B3Multi];

    /// As `OTEL_PROPAGATORS` has it.
    pub fn name(self) -> &'static str {
        match self {
            Self::W3c => "tracecontext",
            Self::B3 => "b3",
            Self::B3Multi => "b3multi",
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl Formats {
    pub fn has(self, format: Format) -> bool {
        self.0 & 1 << format as u8 != 0
    }

    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    pub(super) fn insert(&mut self, format: Format) {
        self.0 |= 1 << format as u8;
    }
}

impl Propagators {
    pub fn iter(self) -> impl Iterator<Item = Format> {
        self.0.into_iter().flatten()
    }

    pub fn formats(self) -> Formats {
        let mut formats = Formats::default();
        self.iter().for_each(|format| formats.insert(format));
        formats
    }
}

impl Default for Propagators {
    /// As the SDKs have it: W3C.
    fn default() -> Self {
        Self([Some(Format::W3c), None, None])
    }
}

/// A list separated by commas. `baggage` is legal and changes nothing: it is passed on whatever is said here. A name that
/// is there twice counts once, and an empty text as not being there, as OpenTelemetry specifies.
impl FromStr for Propagators {
    type Err = PropagatorsError;

    fn from_str(text: &str) -> Result<Self, PropagatorsError> {
        if text.trim().is_empty() {
            return Ok(Self::default());
        }
        let names = || text.split(',').map(str::trim);
        if names().any(|name| name == "none") {
            return match names().all(|name| name == "none") {
                true => Ok(Self([None; 3])),
                false => Err(PropagatorsError::NoneAndOthers),
            };
        }
        let mut formats: [Option<Format>; 3] = [None; 3];
        for name in names().filter(|name| *name != "baggage") {
            let format = Format::ALL.into_iter().find(|format| format.name() == name);
            let format = format.ok_or_else(|| PropagatorsError::Unknown(name.into()))?;
            if !formats.contains(&Some(format))
                && let Some(free) = formats.iter_mut().find(|slot| slot.is_none())
            {
                *free = Some(format);
            }
        }
        Ok(Self(formats))
    }
}

impl fmt::Display for Propagators {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut separator = "";
        for format in self.iter() {
            write!(f, "{separator}{format}")?;
            separator = ",";
        }
        if separator.is_empty() { f.write_str("none") } else { Ok(()) }
    }
}
