//! Reading what an application exposes: Prometheus' text format or OpenMetrics, line by line, into one model.
//!
//! The model is that of OpenMetrics (a counter's family is named without `_total`). A line is taken as it is or left out
//! and counted; nothing is repaired. Slices of the page are kept, so reading copies nothing but the places of things.

use std::hash::BuildHasher as _;

use hashbrown::{HashMap, HashSet};
use smallvec::SmallVec;

/// Values of all sources together: ten times what the proxy itself has by default.
pub(super) const MOST_LINES: u64 = 20_000;

/// Labels of one line: four times what Mimir takes unless told otherwise. Each is compared with those before it.
const MOST_LABELS: usize = 120;

/// Names that are the proxy's own.
const RESERVED: [&str; 2] = ["outrigger_", "process_"];

/// Why a line was left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Cause {
    /// It breaks the format, is not UTF-8, or has more than [`MOST_LABELS`].
    Malformed,
    /// Its name begins as those of the proxy do.
    Reserved,
    /// The same series was there already.
    Duplicate,
    /// Its family was said to be of another kind, which has no such lines.
    Conflict,
    /// There are [`MOST_LINES`] already.
    TooMany,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Counter,
    Gauge,
    Histogram,
    GaugeHistogram,
    Summary,
    StateSet,
    Info,
    Unknown,
}

/// All sources' families, each once.
#[derive(Default)]
pub(super) struct Pages<'a> {
    pub(super) families: Vec<Family<'a>>,
    index: HashMap<&'a str, usize>,
    lines: u64,
    /// By hash: whoever finds two series with the same one loses a line, and nothing else happens.
    seen: HashSet<u64>,
    hasher: foldhash::quality::RandomState,
}

pub(super) struct Family<'a> {
    /// As OpenMetrics has it.
    pub(super) name: &'a str,
    pub(super) kind: Kind,
    /// A counter whose lines do not end in `_total`, which OpenMetrics does not know.
    pub(super) bare: bool,
    /// Escaped as its page has it.
    pub(super) help: Option<&'a str>,
    pub(super) unit: Option<&'a str>,
    pub(super) open_metrics: bool,
    pub(super) samples: Vec<Sample<'a>>,
    /// It came with a `# TYPE`.
    declared: bool,
}

pub(super) struct Sample<'a> {
    pub(super) name: &'a str,
    /// Values are escaped, in the same way in both formats.
    pub(super) labels: SmallVec<[(&'a str, &'a str); 4]>,
    pub(super) value: &'a str,
    /// Milliseconds since the epoch.
    pub(super) at: Option<i64>,
    /// From its brace on.
    pub(super) exemplar: Option<&'a str>,
}

/// What became of one page.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Outcome {
    pub(super) lines: u64,
    /// By [`Cause`].
    pub(super) dropped: [u64; 5],
    /// OpenMetrics without its end.
    pub(super) cut_short: bool,
}

// === impl Cause ===

impl Cause {
    pub const ALL: [Self; 5] =
        [Self::Malformed, Self::Reserved, Self::Duplicate, Self::Conflict, Self::TooMany];

    pub fn name(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::Reserved => "reserved-name",
            Self::Duplicate => "duplicate",
            Self::Conflict => "conflict",
            Self::TooMany => "too-many",
        }
    }
}

// === impl Kind ===

impl Kind {
    fn parse(text: &str, open_metrics: bool) -> Option<Self> {
        Some(match (text, open_metrics) {
            ("counter", _) => Self::Counter,
            ("gauge", _) => Self::Gauge,
            ("histogram", _) => Self::Histogram,
            ("summary", _) => Self::Summary,
            ("untyped", false) | ("unknown", true) => Self::Unknown,
            ("gaugehistogram", true) => Self::GaugeHistogram,
            ("stateset", true) => Self::StateSet,
            ("info", true) => Self::Info,
            _ => return None,
        })
    }

    /// What lines of its families may have after the name.
    fn suffixes(self) -> &'static [&'static str] {
        match self {
            Self::Counter => &["_total", "_created"],
            Self::Gauge | Self::StateSet | Self::Unknown => &[""],
            Self::Histogram => &["_bucket", "_sum", "_count", "_created"],
            Self::GaugeHistogram => &["_bucket", "_gsum", "_gcount"],
            Self::Summary => &["", "_sum", "_count", "_created"],
            Self::Info => &["_info"],
        }
    }
}

// === impl Pages ===

impl<'a> Pages<'a> {
    pub(super) fn read(&mut self, page: &'a [u8], open_metrics: bool) -> Outcome {
        let mut outcome = Outcome { cut_short: open_metrics, ..Outcome::default() };
        for line in page.split(|byte| *byte == b'\n') {
            let taken = match std::str::from_utf8(line) {
                _ if open_metrics && !outcome.cut_short && line.is_empty() => Ok(false),
                // After the end.
                _ if open_metrics && !outcome.cut_short => Err(Cause::Malformed),
                Ok("# EOF") if open_metrics => {
                    outcome.cut_short = false;
                    Ok(false)
                }
                Ok(line) => self.line(line.trim_matches(['\r', ' ', '\t']), open_metrics),
                Err(_) => Err(Cause::Malformed),
            };
            match taken {
                Ok(true) => outcome.lines += 1,
                Ok(false) => {}
                Err(cause) => outcome.dropped[cause as usize] += 1,
            }
        }
        outcome
    }

    /// `true`: it was a value.
    fn line(&mut self, line: &'a str, open_metrics: bool) -> Result<bool, Cause> {
        if line.is_empty() {
            return Ok(false);
        }
        if let Some(comment) = line.strip_prefix('#') {
            return self.comment(comment, open_metrics).map(|()| false);
        }
        let sample = sample(line, open_metrics).ok_or(Cause::Malformed)?;
        if is_reserved(sample.name) {
            return Err(Cause::Reserved);
        }
        if self.is_full() {
            return Err(Cause::TooMany);
        }
        let family = self.family_of(sample.name, open_metrics);
        if !self.families[family].has(sample.name) {
            return Err(Cause::Conflict);
        }
        if !self.seen.insert(self.hasher.hash_one((sample.name, &sample.labels))) {
            return Err(Cause::Duplicate);
        }
        self.families[family].samples.push(sample);
        self.lines += 1;
        Ok(true)
    }

    /// `HELP`, `TYPE` and `UNIT` are kept; what is neither is a remark, and nobody misses it.
    fn comment(&mut self, comment: &'a str, open_metrics: bool) -> Result<(), Cause> {
        let (word, rest) = word(comment.trim_start());
        let told = matches!(word, "HELP" | "TYPE") || (word == "UNIT" && open_metrics);
        if !told {
            return Ok(());
        }
        let (name, rest) = self::word(rest);
        let rest = rest.trim_start_matches([' ', '\t']);
        if !is_name(name) {
            return Err(Cause::Malformed);
        }
        if is_reserved(name) {
            return Err(Cause::Reserved);
        }
        if self.is_full() {
            return Err(Cause::TooMany);
        }
        match word {
            "TYPE" => {
                let kind = Kind::parse(rest, open_metrics).ok_or(Cause::Malformed)?;
                self.declare(name, kind, open_metrics)
            }
            "HELP" => {
                let family = self.family_of(name, open_metrics);
                self.families[family].help.get_or_insert(rest);
                Ok(())
            }
            _ => {
                let family = self.family_of(name, open_metrics);
                // OpenMetrics wants a name to end with its unit.
                let fits = rest.is_empty()
                    || name.strip_suffix(rest).is_some_and(|start| start.ends_with('_') && start.len() > 1);
                if !fits {
                    return Err(Cause::Malformed);
                }
                self.families[family].unit = (!rest.is_empty()).then_some(rest);
                Ok(())
            }
        }
    }

    fn declare(&mut self, name: &'a str, kind: Kind, open_metrics: bool) -> Result<(), Cause> {
        let counter = kind == Kind::Counter && !open_metrics;
        let base = if counter { name.strip_suffix("_total").unwrap_or(name) } else { name };
        let bare = counter && base == name;
        // The help may have come first, under the name of the lines.
        let renamed = self.index.get(name).copied().filter(|at| base != name && !self.families[*at].declared);
        let free = !self.index.contains_key(base);
        let at = match renamed {
            Some(at) if free => {
                self.index.remove(name);
                self.index.insert(base, at);
                self.families[at].name = base;
                at
            }
            Some(_) | None => self.family(base, open_metrics),
        };
        let family = &mut self.families[at];
        if family.declared || !family.samples.is_empty() {
            let same = family.kind == kind && family.bare == bare;
            return if same { Ok(()) } else { Err(Cause::Conflict) };
        }
        (family.kind, family.bare, family.declared) = (kind, bare, true);
        Ok(())
    }

    /// Where a line (or its help) belongs: to the family whose kind has such lines, or to one of its own.
    fn family_of(&mut self, name: &'a str, open_metrics: bool) -> usize {
        const SUFFIXES: [&str; 8] =
            ["_total", "_created", "_bucket", "_sum", "_count", "_gsum", "_gcount", "_info"];
        for suffix in SUFFIXES {
            let Some(at) = name.strip_suffix(suffix).and_then(|base| self.index.get(base)) else { continue };
            let family = &self.families[*at];
            if family.declared && family.kind.suffixes().contains(&suffix) && !family.bare {
                return *at;
            }
        }
        self.family(name, open_metrics)
    }

    fn is_full(&self) -> bool {
        self.lines.max(self.families.len() as u64) >= MOST_LINES
    }

    fn family(&mut self, name: &'a str, open_metrics: bool) -> usize {
        *self.index.entry(name).or_insert_with(|| {
            self.families.push(Family {
                name,
                kind: Kind::Unknown,
                bare: false,
                help: None,
                unit: None,
                open_metrics,
                samples: Vec::new(),
                declared: false,
            });
            self.families.len() - 1
        })
    }
}

impl Family<'_> {
    /// Whether this is a line that its kind has.
    fn has(&self, line: &str) -> bool {
        let suffix = line.strip_prefix(self.name);
        (self.bare && suffix == Some(""))
            || suffix.is_some_and(|suffix| self.kind.suffixes().contains(&suffix))
    }
}

// ---- one line -------------------------------------------------------------------------------------------------------

fn sample(line: &str, open_metrics: bool) -> Option<Sample<'_>> {
    let end = line.find(|c: char| !is_name_char(c)).filter(|end| *end > 0)?;
    let (name, rest) = line.split_at(end);
    if !is_name(name) {
        return None;
    }
    let rest = rest.trim_start_matches(BLANK);
    let (labels, rest) = match rest.strip_prefix('{') {
        Some(inside) => labels(inside)?,
        None => (SmallVec::new(), rest),
    };
    let (rest, exemplar) = match rest.find('#') {
        Some(at) if open_metrics => (&rest[..at], Some(exemplar(&rest[at + 1..])?)),
        Some(_) => return None,
        None => (rest, None),
    };
    let (value, rest) = word(rest);
    number(value)?;
    let (at, rest) = word(rest);
    let at = match (at, open_metrics) {
        ("", _) => None,
        (at, true) => Some(milliseconds(at)?),
        (at, false) => Some(at.parse().ok()?),
    };
    rest.trim_matches(BLANK).is_empty().then_some(Sample { name, labels, value, at, exemplar })
}

const BLANK: [char; 2] = [' ', '\t'];

type LabelsOf<'a> = SmallVec<[(&'a str, &'a str); 4]>;

/// What stands between braces, and what comes after them.
fn labels(mut rest: &str) -> Option<(LabelsOf<'_>, &str)> {
    let mut labels = LabelsOf::new();
    loop {
        rest = rest.trim_start_matches(BLANK);
        if let Some(after) = rest.strip_prefix('}') {
            return Some((labels, after));
        }
        let end = rest.find(|c: char| !is_name_char(c) || c == ':')?;
        let (name, after) = rest.split_at(end);
        let legal = is_name(name) && !labels.iter().any(|(other, _)| *other == name);
        let after = after.trim_start_matches(BLANK).strip_prefix('=')?;
        let after = after.trim_start_matches(BLANK).strip_prefix('"')?;
        let end = end_of_value(after)?;
        if !legal || labels.len() == MOST_LABELS {
            return None;
        }
        labels.push((name, &after[..end]));
        rest = after[end + 1..].trim_start_matches(BLANK);
        match rest.strip_prefix(',') {
            Some(after) => rest = after,
            None if rest.starts_with('}') => {}
            None => return None,
        }
    }
}

/// Where the quote is that ends it. Only `\\`, `\"` and `\n` are escapes.
fn end_of_value(text: &str) -> Option<usize> {
    let mut bytes = text.bytes().enumerate();
    while let Some((at, byte)) = bytes.next() {
        match byte {
            b'"' => return Some(at),
            b'\\' if !matches!(bytes.next(), Some((_, b'\\' | b'"' | b'n'))) => return None,
            _ => {}
        }
    }
    None
}

/// `{a="b"} VALUE [TIME]`, at most 128 characters of names and values.
fn exemplar(text: &str) -> Option<&str> {
    let text = text.trim_matches(BLANK);
    let (labels, rest) = labels(text.strip_prefix('{')?)?;
    let (value, rest) = word(rest);
    number(value)?;
    let (at, rest) = word(rest);
    if !at.is_empty() {
        milliseconds(at)?;
    }
    let chars: usize = labels.iter().map(|(name, value)| name.chars().count() + value.chars().count()).sum();
    (chars <= 128 && rest.trim_matches(BLANK).is_empty()).then_some(text)
}

fn milliseconds(seconds: &str) -> Option<i64> {
    let seconds = number(seconds).filter(|seconds| seconds.is_finite())?;
    let millis = (seconds * 1e3).round();
    (millis.abs() < 9e15).then_some(millis as i64)
}

pub(super) fn number(text: &str) -> Option<f64> {
    text.parse().ok()
}

fn word(text: &str) -> (&str, &str) {
    let text = text.trim_start_matches(BLANK);
    text.split_at(text.find(BLANK).unwrap_or(text.len()))
}

fn is_name_char(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '_' | ':')
}

fn is_name(name: &str) -> bool {
    !name.is_empty() && !name.starts_with(|c: char| c.is_ascii_digit()) && name.chars().all(is_name_char)
}

fn is_reserved(name: &str) -> bool {
    RESERVED.iter().any(|reserved| name.starts_with(reserved))
}
