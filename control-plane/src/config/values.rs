//! Numbers, times and codes of the resilience policies: parsed, or noted under the path of their field.
//!
//! Where a value is refused a stand-in is given back, so that the rest of the document is still looked at. It never
//! escapes: an object of which anything was noted has no value.

use std::{num::NonZeroU32, time::Duration};

use http::HeaderName;
use outrigger_proto::{
    limits::{MAX_GRPC_CODES, MAX_STATUS_RANGES, MAX_WINDOW, MIN_WINDOW},
    spec::StatusRange,
};

use super::notes::Notes;
use crate::yaml::{self, Path};

/// The names of gRPC's codes; each has its place as its number.
const GRPC_CODES: [&str; 17] = [
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
];

impl Notes<'_> {
    /// A number within bounds that its type holds; the default where none is written.
    pub(super) fn number<T: TryFrom<i64>>(
        &mut self,
        path: &Path,
        written: Option<i64>,
        default: T,
        (min, max): (i64, i64),
    ) -> T {
        let Some(number) = written else { return default };
        if !(min..=max).contains(&number) {
            self.note(path, format!("{number} is not within {min} to {max}"));
            return default;
        }
        T::try_from(number).unwrap_or(default)
    }

    /// One and up.
    pub(super) fn count(&mut self, path: &Path, written: Option<i64>, default: NonZeroU32) -> NonZeroU32 {
        let number = self.number(path, written, default.get(), (1, u32::MAX.into()));
        NonZeroU32::new(number).unwrap_or(default)
    }

    /// One and up, or no limit.
    pub(super) fn limit(&mut self, path: &Path, written: Option<i64>) -> Option<NonZeroU32> {
        Some(self.count(path, Some(written?), NonZeroU32::MIN))
    }

    /// 0 to 100, or from `least`.
    pub(super) fn percent(&mut self, path: &Path, written: Option<i64>, default: u8, least: i64) -> u8 {
        self.number(path, written, default, (least, 100))
    }

    /// A time that is one: not 0.
    pub(super) fn time(&mut self, path: &Path, written: Option<&str>, default: Duration) -> Duration {
        let Some(duration) = written.and_then(|text| self.duration(path, text)) else { return default };
        if duration.is_zero() {
            self.note(path, "cannot be 0s");
            return default;
        }
        duration
    }

    /// `0s`: none.
    pub(super) fn optional_time(&mut self, path: &Path, written: Option<&str>) -> Option<Duration> {
        written.and_then(|text| self.duration(path, text)).filter(|duration| !duration.is_zero())
    }

    /// A time over which something is watched.
    pub(super) fn window(&mut self, path: &Path, written: Option<&str>, default: Duration) -> Duration {
        let window = self.time(path, written, default);
        if !(MIN_WINDOW..=MAX_WINDOW).contains(&window) {
            self.note(
                path,
                format!("is not within {}ms to {}s", MIN_WINDOW.as_millis(), MAX_WINDOW.as_secs()),
            );
        }
        window
    }

    pub(super) fn header(&mut self, path: &Path, text: &str) -> Option<HeaderName> {
        let name = text.parse();
        if name.is_err() {
            self.note(path, format!("{text:?} is not the name of a header"));
        }
        name.ok()
    }

    /// `503`, `500-599`.
    pub(super) fn statuses(&mut self, path: &Path, written: Vec<String>) -> Vec<StatusRange> {
        self.at_most(path, written.len(), MAX_STATUS_RANGES);
        let mut ranges = Vec::new();
        for (index, text) in written.iter().enumerate() {
            match status_range(text) {
                Ok(range) => ranges.push(range),
                Err(reason) => self.note(&path.index(index), reason),
            }
        }
        ranges
    }

    pub(super) fn grpc_codes(&mut self, path: &Path, written: Vec<String>) -> Vec<u8> {
        self.at_most(path, written.len(), MAX_GRPC_CODES);
        let mut codes = Vec::new();
        for (index, name) in written.iter().enumerate() {
            let path = path.index(index);
            let known = GRPC_CODES.iter().position(|known| known == name);
            match known.and_then(|number| u8::try_from(number).ok()) {
                None => self.note(&path, yaml::unknown(name, &GRPC_CODES[1..])),
                Some(0) => self.note(&path, "OK is no failure"),
                Some(code) if codes.contains(&code) => self.note(&path, format!("{name} is listed twice")),
                Some(code) => codes.push(code),
            }
        }
        codes
    }

    /// Of several fields of which one is to be there: the names of those that are.
    pub(super) fn exactly_one(&mut self, path: &Path, fields: &[(&str, bool)]) -> bool {
        let given: Vec<_> = fields.iter().filter(|(_, given)| *given).map(|(name, _)| *name).collect();
        let known: Vec<_> = fields.iter().map(|(name, _)| *name).collect();
        match &given[..] {
            [_] => return true,
            [] => self.note(path, format!("wants one of {}", known.join(", "))),
            [_, second, ..] => {
                self.note(&path.key(second), format!("cannot stand beside {}: want one of them", given[0]));
            }
        }
        false
    }
}

pub(super) fn status_range(text: &str) -> Result<StatusRange, String> {
    let number = |text: &str| text.parse::<u16>().ok().filter(|status| (100..=599).contains(status));
    let ends = match text.split_once('-') {
        Some((first, last)) => number(first).zip(number(last)),
        None => number(text).map(|status| (status, status)),
    };
    match ends {
        None => Err(format!(
            "{text:?} is not a status or a range of them: want for example \"503\" or \"500-599\""
        )),
        Some((first, last)) if first > last => Err(format!("{first} is above {last}")),
        Some((first, last)) => Ok(StatusRange::new(first, last)),
    }
}
