//! Settings against their JSON Schema. Floor 4.

use boon::{CompileError, Compiler, Draft, SchemaIndex, Schemas, UrlLoader};
use serde_json::Value;

/// What the schema is called; nothing is read by this name.
const NAME: &str = "settings:/schema";
/// Disagreements that are told; the others are like them.
const MAX: usize = 32;

/// A schema stands alone: what a plugin says must not have this machine read its files.
struct Alone;

impl UrlLoader for Alone {
    fn load(&self, url: &str) -> Result<Value, Box<dyn std::error::Error>> {
        Err(format!("it refers to {url}: a schema of settings stands alone").into())
    }
}

/// What is wrong with settings that `configure` takes, or with the schema itself.
pub(super) fn disagreements(schema: &str, settings: &Value) -> Vec<String> {
    let mut schemas = Schemas::new();
    let index = match compiled(schema, &mut schemas) {
        Ok(index) => index,
        Err(wrong) => return vec![format!("the schema of the settings is none: {wrong}")],
    };
    match schemas.validate(settings, index) {
        Ok(()) => Vec::new(),
        Err(error) => {
            // Without the first line, which names the schema.
            let text = error.to_string();
            let lines = text.lines().skip(1).take(MAX);
            let told = |line: &str| {
                let what = line.trim().trim_start_matches("- ");
                format!("the schema refuses what configure takes: {what}")
            };
            lines.map(told).collect()
        }
    }
}

fn compiled(schema: &str, schemas: &mut Schemas) -> Result<SchemaIndex, String> {
    let schema: Value = serde_json::from_str(schema).map_err(|error| error.to_string())?;
    let mut compiler = Compiler::new();
    compiler.set_default_draft(Draft::V2020_12);
    compiler.use_loader(Box::new(Alone));
    compiler.add_resource(NAME, schema).map_err(|error| told(&error))?;
    compiler.compile(NAME, schemas).map_err(|error| told(&error))
}

/// What is wrong; of what is not there to be read, why it is not read.
fn told(error: &CompileError) -> String {
    match error {
        CompileError::LoadUrlError { src, .. } => src.to_string(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const SCHEMA: &str = r#"{ "type": "object", "additionalProperties": false,
        "properties": { "most": { "type": "integer", "minimum": 1 } } }"#;

    #[test]
    fn settings_are_held_against_the_schema() {
        assert_eq!(disagreements(SCHEMA, &json!({ "most": 1 })), Vec::<String>::new());
        for wrong in
            [json!({ "most": 0 }), json!({ "least": 1 }), json!([]), json!({ "most": "1" })]
        {
            let found = disagreements(SCHEMA, &wrong);
            assert!(found[0].starts_with("the schema refuses"), "{found:?}");
        }
        let found = disagreements(SCHEMA, &json!({ "most": 0 }));
        assert!(found[0].contains("/most"), "{found:?}");
    }

    #[test]
    fn a_schema_that_is_none_is_told() {
        for wrong in ["{", "[]", r#"{ "type": "table" }"#, r#"{ "pattern": "(" }"#] {
            let found = disagreements(wrong, &json!({}));
            assert!(found[0].contains("is none"), "{wrong}: {found:?}");
        }
    }

    #[test]
    fn nothing_is_read_for_a_schema() {
        let found = disagreements(r#"{ "$ref": "file:///etc/passwd" }"#, &json!({}));
        assert!(found[0].contains("stands alone"), "{found:?}");
    }
}
