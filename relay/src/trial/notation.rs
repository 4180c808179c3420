//! Values as a case of that notation has them, in one line. Floor 4.

use serde_json::Value;

use super::case::Notation;

/// A value as it would stand in a case.
pub(super) fn shown(value: &Value, notation: Notation) -> String {
    match notation {
        Notation::Json => value.to_string(),
        Notation::Toml => toml(value),
    }
}

fn toml(value: &Value) -> String {
    match value {
        // TOML has no such value, and nothing that is shown has one.
        Value::Null => "{}".to_owned(),
        Value::Bool(yes) => yes.to_string(),
        Value::Number(number) => number.to_string(),
        Value::String(text) => quoted(text),
        Value::Array(list) => {
            format!("[{}]", list.iter().map(toml).collect::<Vec<_>>().join(", "))
        }
        Value::Object(members) if members.is_empty() => "{}".to_owned(),
        Value::Object(members) => {
            let members =
                members.iter().map(|(key, value)| format!("{} = {}", bare(key), toml(value)));
            format!("{{ {} }}", members.collect::<Vec<_>>().join(", "))
        }
    }
}

fn quoted(text: &str) -> String {
    toml::Value::from(text).to_string()
}

/// A key, in quotes where it needs them.
fn bare(key: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    match !key.is_empty() && key.bytes().all(plain) {
        true => key.to_owned(),
        false => quoted(key),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn what_is_shown_can_be_read_again() {
        let json = r#"{"split":[{"recipients":[0,2],"target":{"upstream":"a\"b\\\n\u0007"}}],
            "a b":{},"":[],"é":true,"n":-1.5,"long":"'''\"\"\""}"#;
        let value: Value = serde_json::from_str(json).unwrap();
        assert_eq!(serde_json::from_str::<Value>(&shown(&value, Notation::Json)).unwrap(), value);
        let line = shown(&value, Notation::Toml);
        assert!(!line.contains('\u{7}'), "{line}");
        let table: toml::Table = toml::from_str(&format!("x = {line}")).unwrap();
        assert_eq!(serde_json::to_value(&table["x"]).unwrap(), value, "{line}");
    }
}
