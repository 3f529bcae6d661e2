//! From a located tree into a Rust type, noting every mistake that can be noted without guessing.
//!
//! Serde's derived code gives up at the first error, so this deserializer answers for the mistakes that need
//! not end the reading: an unknown field is noted and skipped, a scalar of the wrong type and an unknown
//! variant are noted and replaced by a stand-in. A stand-in never escapes: whenever something was noted,
//! [`decode`] returns nothing.

use std::cell::RefCell;

use serde::{
    de::{self, DeserializeOwned, DeserializeSeed, IntoDeserializer, MapAccess, SeqAccess, Visitor, value},
    forward_to_deserialize_any,
};

use super::{Entry, Node, Path, Place, Problem, Value};

/// Reads a `T`, or says everything that is wrong with it.
pub fn decode<T: DeserializeOwned>(node: &Node) -> Result<T, Vec<Problem>> {
    let notes = RefCell::new(Vec::new());
    let reader = Reader { node, trail: &Trail::Root, notes: &notes };
    let result = T::deserialize(reader);
    if let Err(refusal) = &result {
        refusal.note(node.place, &Trail::Root, &notes);
    }
    match (result, notes.into_inner()) {
        (Ok(value), notes) if notes.is_empty() => Ok(value),
        (_, notes) => Err(notes),
    }
}

/// The way from the root to a node, on the stack.
enum Trail<'a> {
    Root,
    Key(&'a Self, &'a str),
    Index(&'a Self, usize),
}

#[derive(Clone, Copy)]
struct Reader<'a> {
    node: &'a Node,
    trail: &'a Trail<'a>,
    notes: &'a RefCell<Vec<Problem>>,
}

/// Why reading cannot go on.
#[derive(Debug, thiserror::Error)]
enum Refusal {
    #[error("refused")]
    Noted,
    /// Made by a `Deserialize` impl, which does not know where it is; noted by the nearest container, which
    /// does.
    #[error("{0}")]
    Here(String),
    #[error("{0} is required")]
    Missing(&'static str),
}

impl Refusal {
    fn note(&self, place: Place, trail: &Trail<'_>, notes: &RefCell<Vec<Problem>>) {
        let problem = match self {
            Self::Noted => return,
            Self::Here(reason) => Problem { place, path: trail.path(), reason: reason.clone() },
            Self::Missing(field) => {
                // Misspelled, and told as that already.
                let misspelled = suggestion(field);
                if notes.borrow().iter().any(|note| note.place >= place && note.reason.ends_with(&misspelled))
                {
                    return;
                }
                Problem { place, path: trail.path().key(field), reason: "is required".to_owned() }
            }
        };
        notes.borrow_mut().push(problem);
    }
}

impl de::Error for Refusal {
    fn custom<T: std::fmt::Display>(message: T) -> Self {
        Self::Here(message.to_string())
    }

    fn missing_field(field: &'static str) -> Self {
        Self::Missing(field)
    }
}

impl Trail<'_> {
    fn path(&self) -> Path {
        match self {
            Self::Root => Path::default(),
            Self::Key(parent, key) => parent.path().key(key),
            Self::Index(parent, index) => parent.path().index(*index),
        }
    }
}

impl<'a> Reader<'a> {
    fn note(&self, reason: String) {
        self.note_at(self.node.place, self.trail.path(), reason);
    }

    fn note_at(&self, place: Place, path: Path, reason: String) {
        self.notes.borrow_mut().push(Problem { place, path, reason });
    }

    fn wants(&self, what: &str) -> String {
        let unquoted = matches!(self.node.value, Value::Bool(_) | Value::Integer(_) | Value::Float(_));
        let hint = if what == "text" && unquoted { " (put it in quotes)" } else { "" };
        format!("wants {what}, not {}{hint}", self.node.describe())
    }

    fn refuse(&self, what: &str) -> Refusal {
        self.note(self.wants(what));
        Refusal::Noted
    }

    /// An integer within bounds; a stand-in where there is none.
    fn integer(&self, min: i64, max: i64) -> i64 {
        let Value::Integer(value) = self.node.value else {
            self.note(self.wants("a whole number"));
            return 1;
        };
        if !(min..=max).contains(&value) {
            self.note(format!("{value} is not between {min} and {max}"));
            return 1;
        }
        value
    }

    fn entries(&self) -> Result<&'a [Entry], Refusal> {
        let Value::Map(entries) = &self.node.value else { return Err(self.refuse("a map")) };
        Ok(entries)
    }
}

macro_rules! integers {
    ($($method:ident, $visit:ident, $type:ty;)*) => {$(
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Refusal> {
            let max = i64::try_from(<$type>::MAX).unwrap_or(i64::MAX);
            let min = i64::try_from(<$type>::MIN).unwrap_or(0);
            visitor.$visit(self.integer(min, max) as $type)
        }
    )*};
}

impl<'de> de::Deserializer<'de> for Reader<'_> {
    type Error = Refusal;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Refusal> {
        match &self.node.value {
            Value::Null => visitor.visit_unit(),
            Value::Bool(value) => visitor.visit_bool(*value),
            Value::Integer(value) => visitor.visit_i64(*value),
            Value::Float(value) => visitor.visit_f64(*value),
            Value::Text(text) => visitor.visit_str(text),
            Value::List(_) => self.deserialize_seq(visitor),
            Value::Map(_) => self.deserialize_map(visitor),
        }
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Refusal> {
        let Value::Bool(value) = self.node.value else {
            self.note(self.wants("true or false"));
            return visitor.visit_bool(false);
        };
        visitor.visit_bool(value)
    }

    integers! {
        deserialize_u8, visit_u8, u8;
        deserialize_u16, visit_u16, u16;
        deserialize_u32, visit_u32, u32;
        deserialize_u64, visit_u64, u64;
        deserialize_i64, visit_i64, i64;
    }

    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Refusal> {
        let Value::Text(text) = &self.node.value else {
            self.note(self.wants("text"));
            return visitor.visit_str("");
        };
        visitor.visit_str(text)
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Refusal> {
        self.deserialize_str(visitor)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Refusal> {
        if self.node.value == Value::Null { visitor.visit_none() } else { visitor.visit_some(self) }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        visitor: V,
    ) -> Result<V::Value, Refusal> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Refusal> {
        let Value::List(items) = &self.node.value else { return Err(self.refuse("a list")) };
        visitor.visit_seq(Items { reader: self, items: items.iter().enumerate() })
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Refusal> {
        visitor.visit_map(Entries {
            reader: self,
            entries: self.entries()?.iter(),
            fields: None,
            current: None,
        })
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Refusal> {
        let entries = self.entries()?.iter();
        visitor.visit_map(Entries { reader: self, entries, fields: Some(fields), current: None })
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Refusal> {
        let given = self.node.as_text();
        let known = given.and_then(|given| variants.iter().find(|variant| **variant == given));
        let chosen = known.or_else(|| variants.first()).copied().unwrap_or_default();
        if known.is_none() {
            let reason = match given {
                Some(given) => unknown(given, variants),
                None => self.wants(&format!("one of {}", variants.join(", "))),
            };
            self.note(reason);
        }
        visitor.visit_enum(IntoDeserializer::<value::Error>::into_deserializer(chosen)).map_err(|error| {
            // Only unit variants occur in our kinds, so this is a mistake in a kind, not in a file.
            de::Error::custom(error)
        })
    }

    forward_to_deserialize_any! {
        i8 i16 i32 i128 u128 f32 f64 char bytes byte_buf unit unit_struct tuple tuple_struct identifier ignored_any
    }
}

struct Items<'a> {
    reader: Reader<'a>,
    items: std::iter::Enumerate<std::slice::Iter<'a, Node>>,
}

impl<'de> SeqAccess<'de> for Items<'_> {
    type Error = Refusal;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Refusal> {
        let Some((index, node)) = self.items.next() else { return Ok(None) };
        let trail = Trail::Index(self.reader.trail, index);
        read(seed, Reader { node, trail: &trail, notes: self.reader.notes }).map(Some)
    }

    fn size_hint(&self) -> Option<usize> {
        Some(self.items.len())
    }
}

struct Entries<'a> {
    reader: Reader<'a>,
    entries: std::slice::Iter<'a, Entry>,
    /// The legal keys, where they are fixed.
    fields: Option<&'static [&'static str]>,
    current: Option<&'a Entry>,
}

impl<'de> MapAccess<'de> for Entries<'_> {
    type Error = Refusal;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Refusal> {
        for entry in self.entries.by_ref() {
            if let Some(fields) = self.fields.filter(|fields| !fields.contains(&entry.key.as_str())) {
                let path = self.reader.trail.path().key(&entry.key);
                self.reader.note_at(
                    entry.place,
                    path,
                    format!("unknown field: {}", unknown(&entry.key, fields)),
                );
                continue;
            }
            self.current = Some(entry);
            return seed.deserialize(entry.key.as_str().into_deserializer()).map(Some);
        }
        Ok(None)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Refusal> {
        let Some(entry) = self.current.take() else { return Err(de::Error::custom("a value without a key")) };
        let trail = Trail::Key(self.reader.trail, &entry.key);
        read(seed, Reader { node: &entry.node, trail: &trail, notes: self.reader.notes })
    }
}

/// Reads a part; what its type complains about is noted here, where the place is known.
fn read<'de, T: DeserializeSeed<'de>>(seed: T, reader: Reader<'_>) -> Result<T::Value, Refusal> {
    seed.deserialize(reader).map_err(|refusal| {
        refusal.note(reader.node.place, reader.trail, reader.notes);
        Refusal::Noted
    })
}

/// Says which names would be right, the likeliest first.
pub(crate) fn unknown(given: &str, known: &[&str]) -> String {
    let given_folded = given.to_ascii_lowercase();
    let nearest = known
        .iter()
        .map(|name| (distance(&given_folded, &name.to_ascii_lowercase()), name))
        .min()
        .filter(|(distance, name)| *distance <= (name.len() / 3).max(1) && *distance < name.len());
    match nearest {
        Some((_, name)) => format!("{given:?} is not known{}", suggestion(name)),
        None => format!("{given:?} is not known; known are {}", known.join(", ")),
    }
}

fn suggestion(name: &str) -> String {
    format!("; did you mean {name:?}?")
}

/// Levenshtein distance, by rows.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, ca) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, cb) in b.iter().enumerate() {
            let substituted = diagonal + usize::from(ca != *cb);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}
