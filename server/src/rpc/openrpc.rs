//! The OpenRPC document that `rpc.discover` answers with.
//!
//! Invariant: it is made from the table of methods alone. It must not know any method by name. Source: the OpenRPC
//! specification 1.3.2, whose schemas are JSON Schema draft 7.

use crate::rpc::error::ErrorCode;
use crate::rpc::limits::Limits;
use crate::rpc::table::Method;
use schemars::SchemaGenerator;
use schemars::generate::SchemaSettings;
use serde_json::{Map, Value, json};

const DEFINITIONS: &str = "/components/schemas";

/// Codes that any method can answer with.
const COMMON: &[ErrorCode] =
    &[ErrorCode::InvalidParams, ErrorCode::InternalError, ErrorCode::Busy, ErrorCode::ShuttingDown];

/// Makes the document.
#[must_use]
pub fn document<C>(methods: &'static [Method<C>], limits: &Limits) -> Value {
    let settings = || {
        SchemaSettings::draft07().with(|settings| {
            settings.definitions_path = DEFINITIONS.into();
            settings.meta_schema = None;
        })
    };
    let mut input = settings().for_deserialize().into_generator();
    let mut output = settings().for_serialize().into_generator();
    let parameter_refs: Vec<String> = methods
        .iter()
        .map(|method| definition_name(&(method.params)(&mut input).to_value()))
        .collect();
    let results: Vec<Value> =
        methods.iter().map(|method| (method.result)(&mut output).to_value()).collect();
    let mut schemas = take_definitions(&mut input);
    let mut described = Vec::with_capacity(methods.len());
    for ((method, name), result) in methods.iter().zip(&parameter_refs).zip(results) {
        let parameters = schemas.get(name).cloned().unwrap_or_else(|| json!({}));
        described.push(describe(method, &parameters, result));
    }
    // Parameters are spelt out one by one above; nothing refers to the objects that held them.
    for name in &parameter_refs {
        schemas.remove(name);
    }
    schemas.extend(take_definitions(&mut output));
    json!({
        "openrpc": "1.3.2",
        "info": {
            "title": "Flashbulb",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "A memory service for AI agents, over newline-delimited JSON-RPC 2.0 on a Unix socket.",
            "license": { "name": env!("CARGO_PKG_LICENSE") },
        },
        "methods": described,
        "components": { "schemas": schemas },
        "x-limits": limits,
    })
}

fn take_definitions(generator: &mut SchemaGenerator) -> Map<String, Value> {
    generator.take_definitions(true)
}

fn definition_name(reference: &Value) -> String {
    reference["$ref"]
        .as_str()
        .and_then(|path| path.rsplit('/').next())
        .unwrap_or_default()
        .to_owned()
}

fn describe<C>(method: &Method<C>, parameters: &Value, result: Value) -> Value {
    let required: Vec<&str> = parameters["required"]
        .as_array()
        .map(|names| names.iter().filter_map(Value::as_str).collect())
        .unwrap_or_default();
    let empty = Map::new();
    let properties = parameters["properties"].as_object().unwrap_or(&empty);
    let mut params: Vec<Value> = properties
        .iter()
        .map(|(name, schema)| {
            json!({ "name": name, "required": required.contains(&name.as_str()), "schema": schema })
        })
        .collect();
    // The specification wants required parameters first.
    params.sort_by_key(|param| param["required"] != true);
    let errors: Vec<Value> = COMMON
        .iter()
        .chain(method.errors)
        .map(|error| json!({ "code": error.code(), "message": error.title() }))
        .collect();
    json!({
        "name": method.name,
        "summary": method.summary,
        "paramStructure": "by-name",
        "params": params,
        "result": { "name": "result", "schema": result },
        "errors": errors,
    })
}
