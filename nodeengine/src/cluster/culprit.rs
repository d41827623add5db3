//! Which field of a message makes it unreadable.

use serde::de::DeserializeOwned;
use serde_json::{Value, json};

/// The top-level field that makes the message readable when it is left out, or has another value. `None` where the
/// error itself says what is missing, where more than one is wrong, and where the message is no object.
pub(super) fn culprit<M: DeserializeOwned>(payload: &[u8]) -> Option<String> {
    let message: Value = serde_json::from_slice(payload).ok()?;
    let fields = message.as_object()?;
    if serde_json::from_slice::<M>(payload).is_ok() {
        return None;
    }
    // One for each type that a field may have.
    let others = [
        json!(""),
        json!(0),
        json!([]),
        json!({}),
        json!(false),
        json!("a.b.c.d"),
    ];
    let reads =
        |fields: serde_json::Map<String, Value>| serde_json::from_value::<M>(Value::Object(fields)).is_ok();
    fields
        .keys()
        .find(|field| {
            let mut without = fields.clone();
            without.remove(*field);
            reads(without)
                || others.iter().any(|other| {
                    let mut changed = fields.clone();
                    changed.insert((*field).clone(), other.clone());
                    reads(changed)
                })
        })
        .cloned()
}

#[cfg(test)]
mod tests {
    use protocol::job::Placement;
    use serde_json::json;

    use super::*;

    #[test]
    fn the_field_is_named() {
        let good = json!({
            "microserviceID": "65f0", "job_name": "a.b.c.d", "image": "x", "virtualization": "docker",
            "instance_number": 0, "memory": 100, "environment": []
        });
        let cases = [
            ("memory", json!("much"), Some("memory")),
            ("image", json!(5), Some("image")),
            ("environment", json!("A=b"), Some("environment")),
            ("instance_ip", json!("10.30.0.300"), Some("instance_ip")),
            ("job_name", json!("a.b"), Some("job_name")),
            ("instance_number", json!(-1), Some("instance_number")),
            ("memory", json!(1), None),
        ];
        for (field, value, expected) in cases {
            let mut message = good.clone();
            message[field] = value;
            let found = culprit::<Placement>(message.to_string().as_bytes());
            assert_eq!(found.as_deref(), expected, "{message}");
        }
        for text in ["", "{", "[]", "5"] {
            assert_eq!(culprit::<Placement>(text.as_bytes()), None, "{text}");
        }
    }
}
