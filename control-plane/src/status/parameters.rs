//! Parameters of a question: `by=route&window=5m`. Whatever is unknown, twice or not what is wanted is told, all at once.

use std::{collections::BTreeMap, time::Duration};

use crate::duration;

/// Longer ones are no names of anything.
const MAX_BYTES: usize = 2_048;

pub(super) struct Parameters {
    values: BTreeMap<String, String>,
    wrong: Vec<String>,
}

impl Parameters {
    /// `known`: the names that there are.
    pub(super) fn read(query: &str, known: &[&str]) -> Self {
        let mut this = Self { values: BTreeMap::new(), wrong: Vec::new() };
        if query.len() > MAX_BYTES {
            this.wrong.push(format!("the question has {} bytes, at most {MAX_BYTES} are read", query.len()));
            return this;
        }
        for part in query.split('&').filter(|part| !part.is_empty()) {
            let (name, value) = part.split_once('=').unwrap_or((part, ""));
            let (Some(name), Some(value)) = (decoded(name), decoded(value)) else {
                this.wrong.push(format!("{part:?} is not percent-encoded UTF-8"));
                continue;
            };
            if !known.contains(&name.as_str()) {
                this.wrong.push(format!("{name:?} is not known; known are {}", known.join(", ")));
            } else if this.values.insert(name.clone(), value).is_some() {
                this.wrong.push(format!("{name} is given twice"));
            }
        }
        this
    }

    /// `None`: not given. Empty counts as given.
    pub(super) fn text(&mut self, name: &str) -> Option<String> {
        self.values.remove(name)
    }

    /// One of these, the first of which is the default.
    pub(super) fn choice<T: Copy>(&mut self, name: &str, choices: &[(&str, T)]) -> Option<T> {
        let Some(value) = self.text(name) else { return choices.first().map(|(_, choice)| *choice) };
        let found = choices.iter().find(|(text, _)| *text == value).map(|(_, choice)| *choice);
        if found.is_none() {
            let names: Vec<_> = choices.iter().map(|(text, _)| *text).collect();
            self.refuse(name, &value, &format!("one of {}", names.join(", ")));
        }
        found
    }

    pub(super) fn number(&mut self, name: &str, range: std::ops::RangeInclusive<u64>) -> Option<u64> {
        let value = self.text(name)?;
        let number = value.parse().ok().filter(|number| range.contains(number));
        if number.is_none() {
            self.refuse(name, &value, &format!("a whole number from {} to {}", range.start(), range.end()));
        }
        number
    }

    pub(super) fn duration(
        &mut self,
        name: &str,
        range: std::ops::RangeInclusive<Duration>,
        example: &str,
    ) -> Option<Duration> {
        let value = self.text(name)?;
        let duration = duration::parse(&value).filter(|duration| range.contains(duration));
        if duration.is_none() {
            let (least, most) = (range.start().as_secs(), range.end().as_secs());
            self.refuse(name, &value, &format!("a duration such as {example}, from {least}s to {most}s"));
        }
        duration
    }

    pub(super) fn refuse(&mut self, name: &str, value: &str, wanted: &str) {
        self.wrong.push(format!("{name}: {value:?} is not {wanted}"));
    }

    pub(super) fn note(&mut self, wrong: impl Into<String>) {
        self.wrong.push(wrong.into());
    }

    /// What is wrong, a line each.
    pub(super) fn finish(self) -> Result<(), String> {
        if self.wrong.is_empty() { Ok(()) } else { Err(self.wrong.join("\n") + "\n") }
    }
}

fn decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        rest = after;
        match first {
            b'%' => {
                let (code, after) = rest.split_at_checked(2)?;
                let digit = |byte: u8| char::from(byte).to_digit(16);
                bytes.push(u8::try_from(digit(code[0])? * 16 + digit(code[1])?).ok()?);
                rest = after;
            }
            b'+' => bytes.push(b' '),
            byte => bytes.push(*byte),
        }
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_wrong_is_told_at_once() {
        let mut read = Parameters::read("a=1&a=2&c&b=x&d=%zz&e=5", &["a", "b", "e"]);
        assert_eq!(read.number("b", 0..=9), None);
        assert_eq!(read.choice("e", &[("one", 1), ("two", 2)]), None);
        let told = read.finish().unwrap_err();
        let expected = "a is given twice\n\"c\" is not known; known are a, b, e\n\"d=%zz\" is not percent-encoded UTF-8\n\
            b: \"x\" is not a whole number from 0 to 9\ne: \"5\" is not one of one, two\n";
        assert_eq!(told, expected);
    }

    #[test]
    fn values_are_decoded_and_defaults_taken() {
        let mut read = Parameters::read(
            "name=shop%2Forders%3A80&&plus=a+b&length=1m30s",
            &["name", "plus", "length", "x"],
        );
        assert_eq!(read.text("name").as_deref(), Some("shop/orders:80"));
        assert_eq!(read.text("plus").as_deref(), Some("a b"));
        assert_eq!(read.choice("x", &[("one", 1), ("two", 2)]), Some(1));
        let length = read.duration("length", Duration::ZERO..=Duration::from_secs(90), "30s");
        assert_eq!(length, Some(Duration::from_secs(90)));
        assert!(read.finish().is_ok());
        assert!(Parameters::read(&"a".repeat(3_000), &["a"]).finish().is_err());
    }
}
