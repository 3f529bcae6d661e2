//! What is recorded although the ratio says no, because of how it ended.

use std::time::Duration;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Keep {
    /// What failed.
    pub errors: bool,
    /// What took longer.
    pub slower: Option<Duration>,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeepError {
    #[error("`{0}` is neither `errors` nor `slower=DURATION` (such as slower=500ms)")]
    Unknown(String),
    #[error("`{0}` is not a duration such as 500ms or 2s")]
    Duration(String),
    #[error("`{0}` is there twice")]
    Twice(&'static str),
}

impl Keep {
    /// `errors`, `slower=500ms`, or both with a comma between. `duration` reads the latter's value.
    pub fn parse(text: &str, duration: impl Fn(&str) -> Option<Duration>) -> Result<Self, KeepError> {
        let mut keep = Self::default();
        for word in text.split(',').map(str::trim) {
            match word.split_once('=') {
                None if word == "errors" => {
                    if std::mem::replace(&mut keep.errors, true) {
                        return Err(KeepError::Twice("errors"));
                    }
                }
                Some(("slower", value)) => {
                    let slower = duration(value).ok_or_else(|| KeepError::Duration(value.into()))?;
                    if keep.slower.replace(slower).is_some() {
                        return Err(KeepError::Twice("slower"));
                    }
                }
                _ => return Err(KeepError::Unknown(word.into())),
            }
        }
        Ok(keep)
    }

    pub fn is_nothing(&self) -> bool {
        *self == Self::default()
    }

    pub fn keeps(&self, failed: bool, duration: Duration) -> bool {
        self.errors && failed || self.slower.is_some_and(|slower| duration > slower)
    }
}
