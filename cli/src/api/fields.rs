//! Fields of a JSON answer, each error naming the field: `rows[3].rate is missing`, `rows[3].rate is "x", not a
//! number`. Fields that nobody asks for do not matter.

use serde_json::{Map, Value};

#[derive(Clone, Copy)]
pub(crate) struct Object<'a>(&'a Map<String, Value>);

impl<'a> Object<'a> {
    /// An answer as a whole.
    pub(crate) fn of(value: &'a Value) -> Result<Self, String> {
        value.as_object().map(Self).ok_or_else(|| format!("it is {}, not an object", brief(value)))
    }

    pub(crate) fn text(self, name: &str) -> Result<String, String> {
        self.read(name, "a string", Value::as_str).map(str::to_owned)
    }

    pub(crate) fn whole(self, name: &str) -> Result<u64, String> {
        self.read(name, "a whole number", Value::as_u64)
    }

    pub(crate) fn millis(self, name: &str) -> Result<i64, String> {
        self.read(name, "a whole number", Value::as_i64)
    }

    pub(crate) fn number(self, name: &str) -> Result<f64, String> {
        self.read(name, "a number", Value::as_f64)
    }

    pub(crate) fn flag(self, name: &str) -> Result<bool, String> {
        self.read(name, "true or false", Value::as_bool)
    }

    /// `null` is nothing, but a field that is not there is an error.
    pub(crate) fn text_or_null(self, name: &str) -> Result<Option<String>, String> {
        Ok(self.or_null(name, "a string", Value::as_str)?.map(str::to_owned))
    }

    pub(crate) fn whole_or_null(self, name: &str) -> Result<Option<u64>, String> {
        self.or_null(name, "a whole number", Value::as_u64)
    }

    pub(crate) fn number_or_null(self, name: &str) -> Result<Option<f64>, String> {
        self.or_null(name, "a number", Value::as_f64)
    }

    pub(crate) fn texts(self, name: &str) -> Result<Vec<String>, String> {
        let items = self.read(name, "a list", Value::as_array)?;
        let items = items.iter().enumerate().map(|(index, item)| {
            let text = item.as_str().map(str::to_owned);
            text.ok_or_else(|| format!("{name}[{index}] is {}, not a string", brief(item)))
        });
        items.collect()
    }

    pub(crate) fn json(self) -> Value {
        Value::Object(self.0.clone())
    }

    pub(crate) fn map(self, name: &str) -> Result<&'a Map<String, Value>, String> {
        self.read(name, "an object", Value::as_object)
    }

    pub(crate) fn list<T>(
        self,
        name: &str,
        read: impl Fn(Self) -> Result<T, String>,
    ) -> Result<Vec<T>, String> {
        let items = self.read(name, "a list", Value::as_array)?;
        let items = items.iter().enumerate().map(|(index, item)| match item.as_object() {
            Some(object) => read(Object(object)).map_err(|error| format!("{name}[{index}].{error}")),
            None => Err(format!("{name}[{index}] is {}, not an object", brief(item))),
        });
        items.collect()
    }

    fn or_null<T>(
        self,
        name: &str,
        want: &str,
        read: impl FnOnce(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, String> {
        match self.0.get(name) {
            Some(Value::Null) => Ok(None),
            Some(_) | None => self.read(name, want, read).map(Some),
        }
    }

    fn read<T>(self, name: &str, want: &str, read: impl FnOnce(&'a Value) -> Option<T>) -> Result<T, String> {
        let value = self.0.get(name).ok_or_else(|| format!("{name} is missing"))?;
        read(value).ok_or_else(|| format!("{name} is {}, not {want}", brief(value)))
    }
}

/// A value as errors tell it: short, and nothing that a terminal obeys (JSON escapes control characters).
fn brief(value: &Value) -> String {
    match value {
        Value::Array(_) => "a list".to_owned(),
        Value::Object(_) => "an object".to_owned(),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {
            crate::figures::clean(&crate::figures::shorten(&value.to_string(), 40))
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn errors_name_the_field() {
        let json =
            json!({"a": "x", "n": 1.5, "null": null, "rows": [{"n": 1}, {"n": "\u{1b}[2J"}], "mixed": [3]});
        let object = Object::of(&json).unwrap();
        for (told, expected) in [
            (object.whole("b").unwrap_err(), "b is missing"),
            (object.whole_or_null("b").unwrap_err(), "b is missing"),
            (object.whole("a").unwrap_err(), r#"a is "x", not a whole number"#),
            (object.whole("n").unwrap_err(), "n is 1.5, not a whole number"),
            (object.number("null").unwrap_err(), "null is null, not a number"),
            (object.text("rows").unwrap_err(), "rows is a list, not a string"),
            (
                object.list("rows", |row| row.whole("n")).unwrap_err(),
                r#"rows[1].n is "\u001b[2J", not a whole number"#,
            ),
            (object.list("rows", |row| row.list("x", |_| Ok(()))).unwrap_err(), "rows[0].x is missing"),
            (object.list("mixed", |_| Ok(())).unwrap_err(), "mixed[0] is 3, not an object"),
            (object.texts("mixed").unwrap_err(), "mixed[0] is 3, not a string"),
            (Object::of(&json!([])).err().unwrap(), "it is a list, not an object"),
        ] {
            assert_eq!(told, expected);
        }
        assert_eq!(object.number_or_null("null"), Ok(None));
        assert_eq!(object.number_or_null("n"), Ok(Some(1.5)));
    }
}
