//! Ranges of status codes, as policies list them.

use serde::{Serialize, Serializer};

/// Both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct StatusRange {
    pub first: u16,
    pub last: u16,
}

impl StatusRange {
    pub const fn new(first: u16, last: u16) -> Self {
        Self { first, last }
    }

    pub const fn contains(self, status: u16) -> bool {
        self.first <= status && status <= self.last
    }
}

impl Serialize for StatusRange {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self { first, last } if first == last => serializer.serialize_str(&first.to_string()),
            Self { first, last } => serializer.serialize_str(&format!("{first}-{last}")),
        }
    }
}
