//! Flags and variables become typed values; mistakes are collected, not thrown.
//!
//! A [`Settings`] is asked for each value once. Whatever is wrong is remembered under the name by which the user gave it
//! (the flag or the variable) with the offending text and what would have been legal; [`Settings::finish`] then reports
//! all of it together. The variables come in as a map, so nothing here reads the environment.

use std::{collections::BTreeMap, fmt, time::Duration};

/// Variables of the process whose names begin with [`PREFIX`], and OpenTelemetry's.
pub type Variables = BTreeMap<String, String>;

pub const PREFIX: &str = "OUTRIGGER_";

pub struct Settings<'a> {
    variables: &'a Variables,
    problems: Vec<Problem>,
}

/// One mistake, as a line for the user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem(pub String);

/// All mistakes of a command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problems(pub Vec<Problem>);

/// A text and where it came from.
struct Given {
    text: String,
    from: String,
}

impl<'a> Settings<'a> {
    pub fn new(variables: &'a Variables) -> Self {
        Self { variables, problems: Vec::new() }
    }

    pub fn problem(&mut self, text: impl Into<String>) {
        self.problems.push(Problem(text.into()));
    }

    /// The value of `flag`, or `None` if it was not given or is wrong. `legal` completes "want …".
    pub fn value<T>(
        &mut self,
        flag: &str,
        given: Option<String>,
        legal: &str,
        read: impl FnOnce(&str) -> Option<T>,
    ) -> Option<T> {
        let given = self.given(flag, given)?;
        let value = read(given.text.trim());
        if value.is_none() {
            self.problem(format!("{} {:?}: want {legal}", given.from, given.text));
        }
        value
    }

    /// Like [`Settings::value`], for what can be wrong in many ways: `read` says what is.
    pub fn explained<T>(
        &mut self,
        flag: &str,
        given: Option<String>,
        read: impl FnOnce(&str) -> Result<T, String>,
    ) -> Option<T> {
        let given = self.given(flag, given)?;
        match read(given.text.trim()) {
            Ok(value) => Some(value),
            Err(what) => {
                self.problem(format!("{} {:?}: {what}", given.from, given.text));
                None
            }
        }
    }

    /// Like [`Settings::value`], for texts that must not be repeated on a screen or in a log.
    pub fn secret(&mut self, flag: &str, given: Option<String>) -> Option<String> {
        self.given(flag, given).map(|given| given.text.trim().to_owned())
    }

    /// A repeatable flag; its variable holds a list, separated by commas.
    pub fn list<T>(
        &mut self,
        flag: &str,
        given: Vec<String>,
        legal: &str,
        read: impl Fn(&str) -> Option<T>,
    ) -> Vec<T> {
        let (from, texts) = match (given.is_empty(), self.variable(flag)) {
            (true, Some((name, text))) => (name, vec![text]),
            (true, None) => return Vec::new(),
            (false, _) => (format!("--{flag}"), given),
        };
        let mut values = Vec::new();
        for text in
            texts.iter().flat_map(|text| text.split(',')).map(str::trim).filter(|text| !text.is_empty())
        {
            match read(text) {
                Some(value) => values.push(value),
                None => self.problem(format!("{from} {text:?}: want {legal}")),
            }
        }
        values
    }

    /// A flag without a value; its variable says `true` or `false`.
    pub fn switch(&mut self, flag: &str, given: bool) -> bool {
        if given {
            return true;
        }
        let Some((name, text)) = self.variable(flag) else { return false };
        match text.trim() {
            "true" | "1" | "yes" => true,
            "false" | "0" | "no" | "" => false,
            other => {
                self.problem(format!("{name} {other:?}: want true or false"));
                false
            }
        }
    }

    /// Whether `flag` was given and wrong, so that its absence need not be mentioned too.
    pub fn has_problem_with(&self, flag: &str) -> bool {
        let names = [format!("--{flag} "), format!("{} ", variable_of(flag))];
        self.problems.iter().any(|problem| names.iter().any(|name| problem.0.starts_with(name)))
    }

    /// The values read so far are only good if this is `Ok`.
    pub fn finish(self) -> Result<(), Problems> {
        if self.problems.is_empty() { Ok(()) } else { Err(Problems(self.problems)) }
    }

    fn given(&self, flag: &str, given: Option<String>) -> Option<Given> {
        match given {
            Some(text) => Some(Given { text, from: format!("--{flag}") }),
            None => self.variable(flag).map(|(from, text)| Given { text, from }),
        }
    }

    /// An empty variable counts as not given: that is how compose files and manifests unset one.
    fn variable(&self, flag: &str) -> Option<(String, String)> {
        let name = variable_of(flag);
        let text = self.variables.get(&name).filter(|text| !text.is_empty())?.clone();
        Some((name, text))
    }
}

/// `drain-grace` becomes `OUTRIGGER_DRAIN_GRACE`.
pub fn variable_of(flag: &str) -> String {
    format!("{PREFIX}{}", flag.replace('-', "_").to_ascii_uppercase())
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lines = self.0.iter().map(|problem| problem.0.trim_end());
        lines.enumerate().try_for_each(|(index, line)| {
            let separator = if index == 0 { "" } else { "\n" };
            write!(f, "{separator}  {line}")
        })
    }
}

// ---- readers of common kinds ----------------------------------------------------------------------------------------

/// `250ms`, `30s`, `5m`, `1h`: a whole number and a unit.
pub fn duration(text: &str) -> Option<Duration> {
    let digits = text.find(|c: char| !c.is_ascii_digit())?;
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().ok()?;
    let millis = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return None,
    };
    number.checked_mul(millis).map(Duration::from_millis)
}

/// Decimal, or hexadecimal with `0x`.
pub fn number(text: &str) -> Option<u32> {
    let (digits, radix) = text.strip_prefix("0x").map_or((text, 10), |hex| (hex, 16));
    // `from_str_radix` would take a sign.
    let legal = digits.chars().all(|digit| digit.is_digit(radix));
    legal.then(|| u32::from_str_radix(digits, radix).ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_need_a_unit() {
        for (text, millis) in
            [("250ms", Some(250)), ("30s", Some(30_000)), ("5m", Some(300_000)), ("1h", Some(3_600_000))]
                .into_iter()
                .chain(
                    ["", "30", "s", "-1s", "1.5s", "1 s", "1d", "18446744073709551615h"]
                        .map(|text| (text, None)),
                )
        {
            assert_eq!(duration(text), millis.map(Duration::from_millis), "{text:?}");
        }
    }

    #[test]
    fn numbers_are_decimal_or_hexadecimal() {
        for (text, value) in [
            ("0", Some(0)),
            ("28530", Some(0x6f72)),
            ("0x6f72", Some(0x6f72)),
            ("4294967295", Some(u32::MAX)),
        ]
        .into_iter()
        .chain(["", "-1", "+1", "0x", "0x+1", "6f72", "4294967296"].map(|text| (text, None)))
        {
            assert_eq!(number(text), value, "{text:?}");
        }
    }
}
