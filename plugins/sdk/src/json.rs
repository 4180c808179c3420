//! JSON text to a tree (RFC 8259). Own code, because it is a hundred lines that every guest
//! carries: a general parser with its floating point tables is larger than a policy. Numbers
//! stay text until somebody asks for one.

/// Deeper settings than this are refused: the parser recurses, and a guest's stack is small.
const MAX_DEPTH: usize = 32;

/// A JSON value.
#[derive(Debug, PartialEq)]
pub(crate) enum Value {
    Null,
    Bool(bool),
    /// As written.
    Number(String),
    Text(String),
    List(Vec<Value>),
    /// In the order written.
    Table(Vec<(String, Value)>),
}

/// The value that is all of `text`, or what is wrong with it and where.
pub(crate) fn parse(text: &str) -> Result<Value, String> {
    let mut parser = Parser { text, at: 0 };
    let value = parser.value(0).and_then(|value| {
        parser.space();
        if parser.at == text.len() { Ok(value) } else { Err("more after the end") }
    });
    value.map_err(|what| format!("not JSON: {what}, at byte {}", parser.at))
}

struct Parser<'a> {
    text: &'a str,
    at: usize,
}

type Parsed<T> = Result<T, &'static str>;

impl Parser<'_> {
    fn value(&mut self, depth: usize) -> Parsed<Value> {
        if depth > MAX_DEPTH {
            return Err("too deep");
        }
        self.space();
        match self.peek() {
            Some(b'{') => self.table(depth),
            Some(b'[') => self.list(depth),
            Some(b'"') => Ok(Value::Text(self.string()?)),
            Some(b't') => self.word("true", Value::Bool(true)),
            Some(b'f') => self.word("false", Value::Bool(false)),
            Some(b'n') => self.word("null", Value::Null),
            _ => self.number(),
        }
    }

    fn table(&mut self, depth: usize) -> Parsed<Value> {
        let mut entries: Vec<(String, Value)> = Vec::new();
        self.at += 1;
        if self.eat(b'}') {
            return Ok(Value::Table(entries));
        }
        loop {
            self.space();
            let key = self.string()?;
            if entries.iter().any(|(earlier, _)| *earlier == key) {
                return Err("a key twice");
            }
            if !self.eat(b':') {
                return Err("a colon is missing");
            }
            let value = self.value(depth + 1)?;
            entries.push((key, value));
            if self.eat(b'}') {
                return Ok(Value::Table(entries));
            }
            if !self.eat(b',') {
                return Err("a comma or brace is missing");
            }
        }
    }

    fn list(&mut self, depth: usize) -> Parsed<Value> {
        let mut items = Vec::new();
        self.at += 1;
        if self.eat(b']') {
            return Ok(Value::List(items));
        }
        loop {
            items.push(self.value(depth + 1)?);
            if self.eat(b']') {
                return Ok(Value::List(items));
            }
            if !self.eat(b',') {
                return Err("a comma or bracket is missing");
            }
        }
    }

    fn string(&mut self) -> Parsed<String> {
        if !self.eat_here(b'"') {
            return Err("a string is missing");
        }
        let mut out = String::new();
        loop {
            let rest = &self.text[self.at..];
            let plain = rest
                .find(|c: char| c == '"' || c == '\\' || c < ' ')
                .ok_or("a string without an end")?;
            out.push_str(&rest[..plain]);
            self.at += plain;
            match self.peek() {
                Some(b'"') => {
                    self.at += 1;
                    return Ok(out);
                }
                Some(b'\\') => {
                    self.at += 1;
                    out.push(self.escape()?);
                }
                _ => return Err("a control character in a string"),
            }
        }
    }

    fn escape(&mut self) -> Parsed<char> {
        let escaped = self.peek();
        self.at += usize::from(escaped.is_some_and(|byte| byte.is_ascii()));
        Ok(match escaped {
            Some(byte @ (b'"' | b'\\' | b'/')) => char::from(byte),
            Some(b'b') => '\u{8}',
            Some(b'f') => '\u{c}',
            Some(b'n') => '\n',
            Some(b'r') => '\r',
            Some(b't') => '\t',
            Some(b'u') => {
                let mut unit = self.hex()?;
                // A pair of surrogates is one character (RFC 8259 7).
                if (0xd800..0xdc00).contains(&unit) && self.text[self.at..].starts_with("\\u") {
                    self.at += 2;
                    let low = self.hex()?;
                    if !(0xdc00..0xe000).contains(&low) {
                        return Err("half a surrogate pair");
                    }
                    unit = 0x10000 + ((unit - 0xd800) << 10) + (low - 0xdc00);
                }
                char::from_u32(unit).ok_or("half a surrogate pair")?
            }
            _ => return Err("an escape that is none"),
        })
    }

    fn hex(&mut self) -> Parsed<u32> {
        let digits = self.text.get(self.at..self.at + 4).ok_or("four hex digits are missing")?;
        if !digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err("four hex digits are missing");
        }
        self.at += 4;
        u32::from_str_radix(digits, 16).map_err(|_| "four hex digits are missing")
    }

    fn number(&mut self) -> Parsed<Value> {
        let start = self.at;
        self.eat_here(b'-');
        let leading_zero = self.peek() == Some(b'0');
        match self.digits() {
            0 => return Err("a value is missing"),
            1 => {}
            _ if leading_zero => return Err("a number with a leading zero"),
            _ => {}
        }
        if self.eat_here(b'.') && self.digits() == 0 {
            return Err("a number without digits");
        }
        if self.eat_here(b'e') || self.eat_here(b'E') {
            let _sign = self.eat_here(b'+') || self.eat_here(b'-');
            if self.digits() == 0 {
                return Err("a number without digits");
            }
        }
        Ok(Value::Number(self.text[start..self.at].to_owned()))
    }

    fn digits(&mut self) -> usize {
        let start = self.at;
        while self.peek().is_some_and(|byte| byte.is_ascii_digit()) {
            self.at += 1;
        }
        self.at - start
    }

    fn word(&mut self, word: &str, value: Value) -> Parsed<Value> {
        if !self.text[self.at..].starts_with(word) {
            return Err("a value is missing");
        }
        self.at += word.len();
        Ok(value)
    }

    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    fn eat_here(&mut self, byte: u8) -> bool {
        let found = self.peek() == Some(byte);
        self.at += usize::from(found);
        found
    }

    fn eat(&mut self, byte: u8) -> bool {
        self.space();
        self.eat_here(byte)
    }

    fn space(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\t' | b'\n' | b'\r')) {
            self.at += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn as_reference(value: &Value) -> serde_json::Value {
        match value {
            Value::Null => serde_json::Value::Null,
            Value::Bool(value) => (*value).into(),
            Value::Number(text) => serde_json::from_str(text).unwrap(),
            Value::Text(text) => text.as_str().into(),
            Value::List(items) => items.iter().map(as_reference).collect(),
            Value::Table(entries) => {
                entries.iter().map(|(key, value)| (key.clone(), as_reference(value))).collect()
            }
        }
    }

    const GOOD: &[&str] = &[
        "null",
        " [ ] ",
        "{ }",
        r#"{"a":[1,-2,3.5,0,-0.25,1e3,2E-2],"b":{"c":true,"d":false,"e":null}}"#,
        r#""\"\\\/\b\f\n\r\té€😀 raw: é😀""#,
        "[[[[[[[[1]]]]]]]]",
        "\t{\n\"k\" :\r\"v\" , \"l\": [ 1 , 2 ] }",
    ];

    const BAD: &[&str] = &[
        "",
        "nul",
        "01",
        "-",
        "1.",
        "1e",
        "+1",
        ".5",
        "[1,]",
        "[1 2]",
        "{\"a\"}",
        "{\"a\":}",
        "{\"a\":1,}",
        "{a:1}",
        "\"",
        "\"\\\"",
        "\"\\x\"",
        "\"\\u12\"",
        "\"\\u12é4\"",
        "\"\\\u{e9}\"",
        "\"\\ud800\"",
        "\"\\ud800\\u0041\"",
        "\"\\udc00\"",
        "\"\u{1}\"",
        "[",
        "{",
        "1 2",
        "truex",
        "\u{feff}1",
        "NaN",
    ];

    #[test]
    fn reads_what_the_reference_reads() {
        for text in GOOD {
            let expected: serde_json::Value = serde_json::from_str(text).unwrap();
            assert_eq!(as_reference(&parse(text).unwrap()), expected, "{text}");
        }
    }

    #[test]
    fn refuses_what_the_reference_refuses() {
        for text in BAD {
            assert!(serde_json::from_str::<serde_json::Value>(text).is_err(), "{text}");
            assert!(parse(text).is_err(), "{text}");
        }
    }

    /// Every text that is one edit away from a good one: both read the same or both refuse.
    #[test]
    fn agrees_with_the_reference_one_edit_away() {
        let edits =
            ['"', '\\', '{', '}', '[', ']', ',', ':', '0', '9', 'e', '.', '-', 'u', 'é', ' '];
        for text in GOOD {
            for (at, old) in text.char_indices() {
                let (before, after) = (&text[..at], &text[at + old.len_utf8()..]);
                let removed = std::iter::once(format!("{before}{after}"));
                let replaced = edits.iter().map(|new| format!("{before}{new}{after}"));
                let inserted = edits.iter().map(|new| format!("{before}{new}{old}{after}"));
                for edited in removed.chain(replaced).chain(inserted) {
                    let reference = serde_json::from_str::<serde_json::Value>(&edited).ok();
                    let ours = parse(&edited);
                    // Ours is stricter in one thing only: a key given twice.
                    if ours.as_ref().is_err_and(|message| message.contains("a key twice")) {
                        continue;
                    }
                    // The reference cannot hold 1e309; we do not convert.
                    if ours.is_ok() && reference.is_none() && edited.contains(['e', 'E']) {
                        continue;
                    }
                    assert_eq!(ours.as_ref().ok().map(as_reference), reference, "{edited}");
                }
            }
        }
    }

    #[test]
    fn deep_text_is_refused_and_does_not_recurse_further() {
        let nested = |depth: usize| "[".repeat(depth) + &"]".repeat(depth);
        assert!(parse(&nested(MAX_DEPTH + 1)).is_ok());
        assert!(parse(&nested(MAX_DEPTH + 2)).is_err());
        assert!(parse(&"[".repeat(1_000_000)).is_err());
    }

    #[test]
    fn a_key_twice_is_refused() {
        assert!(parse(r#"{"a":1,"b":2,"a":3}"#).unwrap_err().contains("a key twice"));
    }
}
