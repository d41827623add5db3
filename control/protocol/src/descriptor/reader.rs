//! Reading an object of a document, with the place of whatever is wrong.

use serde_json::{Map, Value};

use super::Finding;

/// Most characters of a name.
const LONGEST_NAME: usize = 30;
/// Largest number anywhere in a descriptor; MiB and cores stay far below.
const LARGEST_NUMBER: u64 = 1 << 40;

/// An object of the document and where it stands.
pub(super) struct Reader<'document> {
    object: &'document Map<String, Value>,
    path: String,
}

/// What kind of value stands where another one belongs.
fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

impl<'document> Reader<'document> {
    /// The whole document.
    pub(super) fn root(document: &'document Value) -> Result<Self, Finding> {
        Self::at(document, String::new())
    }

    fn at(value: &'document Value, path: String) -> Result<Self, Finding> {
        match value.as_object() {
            Some(object) => Ok(Self { object, path }),
            None => Err(Finding {
                message: format!("is {}, an object belongs here", kind(value)),
                path,
            }),
        }
    }

    /// Where the object stands.
    pub(super) fn path(&self) -> &str {
        &self.path
    }

    /// Every key as it was given.
    pub(super) fn whole(&self) -> &Map<String, Value> {
        self.object
    }

    /// Every key but these.
    pub(super) fn all_but(&self, keys: &[&str]) -> Map<String, Value> {
        let other = |(key, _): &(&String, &Value)| !keys.contains(&key.as_str());
        let pairs = self.object.iter().filter(other);
        pairs.map(|(key, value)| (key.clone(), value.clone())).collect()
    }

    /// The place of one of the object's keys.
    pub(super) fn place(&self, key: &str) -> String {
        if self.path.is_empty() {
            key.to_owned()
        } else {
            format!("{}.{key}", self.path)
        }
    }

    /// That something is wrong with a key.
    pub(super) fn wrong(&self, key: &str, message: impl Into<String>) -> Finding {
        Finding {
            message: format!("{key} {}", message.into()),
            path: self.place(key),
        }
    }

    /// Whether the key is there and not null.
    pub(super) fn has(&self, key: &str) -> bool {
        self.get(key).is_some()
    }

    fn get(&self, key: &str) -> Option<&'document Value> {
        self.object.get(key).filter(|value| !value.is_null())
    }

    fn mismatch(&self, key: &str, value: &Value, wanted: &str) -> Finding {
        self.wrong(key, format!("is {}, {wanted} belongs here", kind(value)))
    }

    /// A text.
    pub(super) fn text(&self, key: &str) -> Result<Option<&'document str>, Finding> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(self.mismatch(key, other, "a text")),
        }
    }

    /// A text that has to be there. It may be empty.
    pub(super) fn required_text(&self, key: &str) -> Result<&'document str, Finding> {
        match self.text(key)? {
            Some(text) => Ok(text),
            None => Err(self.wrong(key, "is missing")),
        }
    }

    /// A whole number from 0; 0 when absent.
    pub(super) fn number(&self, key: &str) -> Result<u64, Finding> {
        let Some(value) = self.get(key) else {
            return Ok(0);
        };
        let Value::Number(number) = value else {
            return Err(self.mismatch(key, value, "a whole number"));
        };
        if number.as_f64().is_some_and(|number| number < 0.0) {
            return Err(self.wrong(key, format!("is {number}, which is negative")));
        }
        let whole = number.as_u64().or_else(|| {
            let float = number.as_f64()?;
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "checked to be whole, positive and small"
            )]
            let whole = (float.fract() == 0.0 && float <= LARGEST_NUMBER as f64).then_some(float as u64);
            whole
        });
        match whole {
            Some(whole) if whole <= LARGEST_NUMBER => Ok(whole),
            Some(_) => Err(self.wrong(key, format!("is {number}, which is more than {LARGEST_NUMBER}"))),
            None => Err(self.wrong(key, format!("is {number}, a whole number belongs here"))),
        }
    }

    /// Whether a number of any kind stands there, or nothing.
    pub(super) fn check_number(&self, key: &str) -> Result<(), Finding> {
        match self.get(key) {
            None | Some(Value::Number(_)) => Ok(()),
            Some(other) => Err(self.mismatch(key, other, "a number")),
        }
    }

    /// A truth value; false when absent.
    pub(super) fn boolean(&self, key: &str) -> Result<bool, Finding> {
        match self.get(key) {
            None => Ok(false),
            Some(Value::Bool(value)) => Ok(*value),
            Some(other) => Err(self.mismatch(key, other, "true or false")),
        }
    }

    fn list(&self, key: &str) -> Result<&'document [Value], Finding> {
        match self.get(key) {
            None => Ok(&[]),
            Some(Value::Array(list)) => Ok(list),
            Some(other) => Err(self.mismatch(key, other, "a list")),
        }
    }

    /// A list of texts; empty when absent.
    pub(super) fn texts(&self, key: &str) -> Result<Vec<String>, Finding> {
        let mut texts = Vec::new();
        for (index, value) in self.list(key)?.iter().enumerate() {
            match value.as_str() {
                Some(text) => texts.push(text.to_owned()),
                None => {
                    return Err(Finding {
                        message: format!("{key}[{index}] is {}, a text belongs here", kind(value)),
                        path: format!("{}[{index}]", self.place(key)),
                    });
                }
            }
        }
        Ok(texts)
    }

    /// A list of objects; empty when absent.
    pub(super) fn objects(&self, key: &str) -> Result<Vec<Self>, Finding> {
        let list = self.list(key)?.iter().enumerate();
        list.map(|(index, value)| Self::at(value, format!("{}[{index}]", self.place(key))))
            .collect()
    }

    /// An object.
    pub(super) fn object(&self, key: &str) -> Result<Option<Self>, Finding> {
        self.get(key)
            .map(|value| Self::at(value, self.place(key)))
            .transpose()
    }
}

/// A name: 1 to 30 ASCII letters and digits.
pub(super) fn identifier(reader: &Reader<'_>, key: &str) -> Result<String, Finding> {
    let name = reader.required_text(key)?;
    let allowed = name.bytes().all(|byte| byte.is_ascii_alphanumeric());
    if name.is_empty() || name.len() > LONGEST_NAME || !allowed {
        return Err(reader.wrong(
            key,
            format!("is {name:?}; it has 1 to {LONGEST_NAME} letters a-z, A-Z and digits"),
        ));
    }
    Ok(name.to_owned())
}
