//! Walks a message and collects what is wrong with it, each error under the path of its field.

use std::{
    fmt,
    fmt::Write as _,
    num::{NonZeroU16, NonZeroU32},
    ops::RangeInclusive,
    str::FromStr,
    sync::Arc,
    time::Duration,
};

use super::ConvertError;
use crate::{
    limits::{MAX_ERRORS, MAX_NAME_BYTES, MAX_TEXT_BYTES, MAX_TIMEOUT},
    spec::FieldError,
};

/// Where we are in the message, and what was wrong on the way.
pub(super) struct Fields {
    path: String,
    errors: Vec<FieldError>,
    /// Errors above [`MAX_ERRORS`], only counted.
    more: usize,
}

impl Fields {
    pub(super) fn new() -> Self {
        Self { path: String::new(), errors: Vec::new(), more: 0 }
    }

    /// The value if nothing was refused, else everything that was.
    pub(super) fn finish<T>(mut self, value: T) -> Result<T, ConvertError> {
        if self.more > 0 {
            let reason = format!("and {} more errors", self.more);
            self.errors.push(FieldError { field: String::new(), reason });
        }
        if self.errors.is_empty() { Ok(value) } else { Err(ConvertError(self.errors)) }
    }

    /// Refuses the field we are at.
    pub(super) fn refuse(&mut self, reason: impl Into<String>) {
        if self.errors.len() < MAX_ERRORS {
            self.errors.push(FieldError { field: self.path.clone(), reason: reason.into() });
        } else {
            self.more += 1;
        }
    }

    /// Refuses the field `name` of where we are.
    pub(super) fn refuse_at(&mut self, name: &str, reason: impl Into<String>) {
        self.at(name, |fields| fields.refuse(reason));
    }

    /// Goes into the field `name` for as long as `look` runs.
    pub(super) fn at<T>(&mut self, name: &str, look: impl FnOnce(&mut Self) -> T) -> T {
        let before = self.path.len();
        if before > 0 {
            self.path.push('.');
        }
        self.path.push_str(name);
        let value = look(self);
        self.path.truncate(before);
        value
    }

    /// Goes into each element of the list `name`. Elements that `look` gives up are left out (it has refused them).
    ///
    /// A list longer than `max` is refused without looking into it.
    pub(super) fn list<T, U, C: Default + Extend<U>>(
        &mut self,
        name: &str,
        list: Vec<T>,
        max: usize,
        mut look: impl FnMut(&mut Self, T) -> Option<U>,
    ) -> C {
        let mut values = C::default();
        if list.len() > max {
            self.at(name, |fields| {
                fields.refuse(format!("has {} elements, at most {max} are taken", list.len()));
            });
            return values;
        }
        self.at(name, |fields| {
            let before = fields.path.len();
            for (index, element) in list.into_iter().enumerate() {
                // Writing to a String cannot fail.
                let _ = write!(fields.path, "[{index}]");
                values.extend(look(fields, element));
                fields.path.truncate(before);
            }
        });
        values
    }

    pub(super) fn parse<T: FromStr<Err: fmt::Display>>(&mut self, text: &str) -> Option<T> {
        if text.len() > MAX_TEXT_BYTES {
            self.refuse_length(text.len());
            return None;
        }
        text.parse().map_err(|error| self.refuse(format!("{error}"))).ok()
    }

    /// Any text within the common limit.
    pub(super) fn text(&mut self, text: &str) -> Arc<str> {
        if text.len() > MAX_TEXT_BYTES {
            self.refuse_length(text.len());
            return Arc::default();
        }
        text.into()
    }

    /// Text that names something in logs and answers: neither empty nor able to break a line.
    pub(super) fn label(&mut self, text: &str) -> Arc<str> {
        if text.is_empty() {
            self.refuse("is empty");
        } else if text.chars().any(char::is_control) {
            self.refuse("has a control character");
        }
        self.text(text)
    }

    /// One part of the name of a service.
    pub(super) fn name(&mut self, text: &str) -> Arc<str> {
        if text.is_empty() || text.len() > MAX_NAME_BYTES || text.contains(['/', ':']) {
            self.refuse(format!("is not a name: want 1 to {MAX_NAME_BYTES} characters without / and :"));
            return Arc::default();
        }
        self.label(text)
    }

    pub(super) fn bytes(&mut self, bytes: &[u8]) {
        if bytes.is_empty() {
            self.refuse("is empty");
        } else if bytes.len() > MAX_TEXT_BYTES {
            self.refuse_length(bytes.len());
        }
    }

    pub(super) fn port(&mut self, port: u32) -> Option<NonZeroU16> {
        let legal = u16::try_from(port).ok().and_then(NonZeroU16::new);
        if legal.is_none() {
            self.refuse(format!("{port} is not a port: want 1 to 65535"));
        }
        legal
    }

    /// An enumeration: neither left out nor unknown to this build.
    pub(super) fn kind<P: TryFrom<i32>, T>(
        &mut self,
        number: i32,
        meaning: impl FnOnce(P) -> Option<T>,
    ) -> Option<T> {
        let Ok(wire) = P::try_from(number) else {
            self.refuse(format!("value {number} is unknown to this build"));
            return None;
        };
        let value = meaning(wire);
        if value.is_none() {
            self.refuse("is missing");
        }
        value
    }

    /// 0 means none.
    pub(super) fn timeout(&mut self, milliseconds: u64) -> Option<Duration> {
        let time = Duration::from_millis(milliseconds);
        if time > MAX_TIMEOUT {
            self.refuse(format!("{milliseconds} ms is longer than {} days", MAX_TIMEOUT.as_secs() / 86_400));
            return None;
        }
        (!time.is_zero()).then_some(time)
    }

    /// A time that has to be there.
    pub(super) fn time(&mut self, milliseconds: u64) -> Option<Duration> {
        if milliseconds == 0 {
            self.refuse("is 0");
        }
        self.timeout(milliseconds)
    }

    /// A number that has to be there.
    pub(super) fn number(&mut self, number: u32) -> Option<NonZeroU32> {
        let legal = NonZeroU32::new(number);
        if legal.is_none() {
            self.refuse("is 0");
        }
        legal
    }

    /// The number as it is; refused outside of `range`.
    pub(super) fn within<T: Copy + PartialOrd + fmt::Display>(
        &mut self,
        number: T,
        range: RangeInclusive<T>,
    ) -> T {
        if !range.contains(&number) {
            self.refuse(format!("{number} is not within {} to {}", range.start(), range.end()));
        }
        number
    }

    /// A whole share of a hundred.
    pub(super) fn percent(&mut self, percent: u32, least: u8) -> u8 {
        self.within(percent, u32::from(least)..=100).try_into().unwrap_or(100)
    }

    /// Text within a limit of its own.
    pub(super) fn short_text(&mut self, text: &str, most: usize) -> Arc<str> {
        if text.len() > most {
            self.refuse(format!("has {} bytes, at most {most} are taken", text.len()));
            return Arc::default();
        }
        text.into()
    }

    fn refuse_length(&mut self, length: usize) {
        self.refuse(format!("has {length} bytes, at most {MAX_TEXT_BYTES} are taken"));
    }
}

/// A timeout in milliseconds, rounded up so that a tiny one does not become 0, which would mean none.
pub(super) fn milliseconds(time: Option<Duration>) -> u64 {
    time.map_or(0, |time| u64::try_from(time.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX))
}
