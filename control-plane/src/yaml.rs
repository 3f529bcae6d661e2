//! YAML documents that remember where everything stands.
//!
//! Serde alone loses the line of a field once the value is in a struct, and stops at the first mistake. So a
//! file is read in two steps: into a tree of [`Node`]s, each with its [`Place`]; and from the tree into a
//! kind's Rust type by [`decode`], which notes every unknown field, unknown variant and wrong scalar instead
//! of stopping at the first. Checks that run later (references, conflicts) look a [`Path`] up in the same
//! tree, so that their complaints name line and column too.
//!
//! It does not know any kind; what fields mean is the business of `kinds/` and `config/`.

mod decode;

use std::fmt;

use serde::{
    Deserialize, Deserializer, Serialize,
    de::{MapAccess, SeqAccess, Visitor},
};
use serde_saphyr::Spanned;

pub use decode::decode;
pub(crate) use decode::unknown;

/// Where something stands in a file; both count from 1, columns in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Place {
    pub line: u64,
    pub column: u64,
}

/// A value and its place.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    pub place: Place,
    pub value: Value,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    Null,
    Bool(bool),
    Integer(i64),
    Float(f64),
    Text(String),
    List(Vec<Node>),
    Map(Vec<Entry>),
}

#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    pub key: String,
    pub place: Place,
    pub node: Node,
}

/// The way to a field: `spec.ports[0].port`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Path(Vec<Segment>);

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Segment {
    Key(String),
    Index(usize),
}

/// Something wrong with a field.
#[derive(Clone, Debug, PartialEq)]
pub struct Problem {
    pub place: Place,
    pub path: Path,
    pub reason: String,
}

/// Reads all documents of a file. Empty documents are left out.
///
/// A file with broken syntax yields nothing but the place and the reason: the parser cannot tell where the
/// next document would begin.
pub fn parse(text: &str) -> Result<Vec<Node>, (Place, String)> {
    // `yes` and `no` are text, as in YAML 1.2: a zone named `no` must not become false.
    let options = serde_saphyr::options! { with_snippet: false, strict_booleans: true };
    serde_saphyr::from_multiple_with_options(text, options).map_err(|error| {
        let place = error.location().map_or(Place::START, Place::from);
        (place, error.render_with_formatter(&serde_saphyr::UserMessageFormatter))
    })
}

// === impl Place ===

impl Place {
    pub const START: Self = Self { line: 1, column: 1 };
}

impl From<serde_saphyr::Location> for Place {
    fn from(location: serde_saphyr::Location) -> Self {
        Self { line: location.line().max(1), column: location.column().max(1) }
    }
}

// === impl Node ===

impl Node {
    /// The value under a key, if this is a map that has it.
    pub fn get(&self, key: &str) -> Option<&Self> {
        let Value::Map(entries) = &self.value else { return None };
        entries.iter().find(|entry| entry.key == key).map(|entry| &entry.node)
    }

    pub fn as_text(&self) -> Option<&str> {
        if let Value::Text(text) = &self.value { Some(text) } else { None }
    }

    /// The place of the field at `path`, or of the nearest thing above it that exists (a missing field has no
    /// place of its own).
    pub fn place_of(&self, path: &Path) -> Place {
        let mut node = self;
        for segment in &path.0 {
            let Some(next) = node.step(segment) else { break };
            node = next;
        }
        node.place
    }

    /// Whether something was written at `path`.
    pub fn has(&self, path: &Path) -> bool {
        let node = path.0.iter().try_fold(self, |node, segment| node.step(segment));
        node.is_some_and(|node| node.value != Value::Null)
    }

    fn step(&self, segment: &Segment) -> Option<&Self> {
        match (segment, &self.value) {
            (Segment::Key(key), _) => self.get(key),
            (Segment::Index(index), Value::List(items)) => items.get(*index),
            (Segment::Index(_), _) => None,
        }
    }

    /// How error messages call the value.
    fn describe(&self) -> String {
        match &self.value {
            Value::Null => "nothing".to_owned(),
            Value::Bool(value) => format!("the boolean {value}"),
            Value::Integer(value) => format!("the number {value}"),
            Value::Float(value) => format!("the number {value}"),
            Value::Text(text) => format!("the text {text:?}"),
            Value::List(_) => "a list".to_owned(),
            Value::Map(_) => "a map".to_owned(),
        }
    }
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let Spanned { value, referenced, .. } = Spanned::<Value>::deserialize(deserializer)?;
        Ok(Self { place: referenced.into(), value })
    }
}

// === impl Value ===

struct ValueVisitor;

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ValueVisitor)
    }
}

impl<'de> Visitor<'de> for ValueVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a YAML value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_none<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Integer(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        // No field of ours goes anywhere near 2^63: such a number is refused as a float where an integer is
        // wanted.
        Ok(i64::try_from(value).map_or(Value::Float(value as f64), Value::Integer))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(Value::Float(value))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::Text(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(Value::Text(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = seq.next_element()? {
            items.push(item);
        }
        Ok(Value::List(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut entries = Vec::new();
        while let Some(Spanned { value: key, referenced, .. }) = map.next_key::<Spanned<String>>()? {
            entries.push(Entry { key, place: referenced.into(), node: map.next_value()? });
        }
        Ok(Value::Map(entries))
    }
}

// === impl Path ===

impl Path {
    pub fn of(key: &str) -> Self {
        Self::default().key(key)
    }

    #[must_use]
    pub fn key(&self, key: &str) -> Self {
        let mut segments = self.0.clone();
        segments.push(Segment::Key(key.to_owned()));
        Self(segments)
    }

    #[must_use]
    pub fn index(&self, index: usize) -> Self {
        let mut segments = self.0.clone();
        segments.push(Segment::Index(index));
        Self(segments)
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, segment) in self.0.iter().enumerate() {
            match segment {
                Segment::Index(index) => write!(f, "[{index}]")?,
                // Label names may have dots, which would read as levels.
                Segment::Key(key) if key.contains(['.', '[']) => write!(f, "[{key:?}]")?,
                Segment::Key(key) if n == 0 => f.write_str(key)?,
                Segment::Key(key) => write!(f, ".{key}")?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
