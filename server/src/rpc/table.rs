//! The table of methods: what dispatches a request is what describes it.
//!
//! Invariant: a [`Method`] holds its parameters' type, its result's type and its handler together, so that the dispatcher
//! and the OpenRPC document are two readings of one table. It must not know which methods there are.

use crate::rpc::error::{ErrorCode, RpcError};
use crate::rpc::frame::{self, Frame, Refused, Request};
use crate::rpc::limits::Limits;
use schemars::{Schema, SchemaGenerator};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::json;

/// One method; `C` is what handlers get besides their parameters. Made by [`crate::methods`].
pub struct Method<C: 'static> {
    /// Its name on the wire.
    pub name: &'static str,
    /// One sentence.
    pub summary: &'static str,
    /// Whether it counts against the limit of requests in flight.
    pub counted: bool,
    /// Own codes that it can answer with, besides those that any method can.
    pub errors: &'static [ErrorCode],
    /// The schema of its parameters.
    pub params: fn(&mut SchemaGenerator) -> Schema,
    /// The schema of its result.
    pub result: fn(&mut SchemaGenerator) -> Schema,
    /// Parses the parameters and does nothing with them.
    pub check: fn(Option<&str>) -> Result<(), RpcError>,
    /// Parses the parameters, runs the handler and appends the result as JSON.
    pub call: Call<C>,
}

/// Parses `params` (as written, if any), runs a handler and appends its result to the buffer.
pub type Call<C> = fn(&C, Option<&str>, &mut Vec<u8>) -> Result<(), RpcError>;

/// Runs a method on parameters as written: where a caller of [`answer_frame`] counts, limits and guards.
pub type Invoke<'a, C> =
    dyn FnMut(&'static Method<C>, Option<&str>, &mut Vec<u8>) -> Result<(), RpcError> + 'a;

/// Makes a table of [`Method`]s from lines of
/// `"name" => handler, Params -> Result, counted, [errors], "summary";`.
#[macro_export]
macro_rules! methods {
    ($context:ty; $($name:literal => $handler:path, $params:ty => $result:ty, $counted:literal, [$($error:ident),*], $summary:literal;)+) => {
        &[$($crate::rpc::Method::<$context> {
            name: $name,
            summary: $summary,
            counted: $counted,
            errors: &[$($crate::rpc::ErrorCode::$error),*],
            params: |generator| generator.subschema_for::<$params>(),
            result: |generator| generator.subschema_for::<$result>(),
            check: |params| $crate::rpc::table::parse_params::<$params>(params).map(|_| ()),
            call: |context, params, out| {
                $crate::rpc::table::run::<$context, $params, $result>($handler, context, params, out)
            },
        }),+]
    };
}

/// What a line of [`crate::methods`] does with a request.
///
/// # Errors
/// −32602 for parameters that do not fit; whatever the handler answers.
pub fn run<C, P: DeserializeOwned, R: Serialize>(
    handler: fn(&C, P) -> Result<R, RpcError>,
    context: &C,
    params: Option<&str>,
    out: &mut Vec<u8>,
) -> Result<(), RpcError> {
    let result = handler(context, parse_params(params)?)?;
    serde_json::to_writer(out, &result).map_err(|error| {
        RpcError::new(
            ErrorCode::InternalError,
            format!("the result could not be written as JSON: {error}"),
        )
    })
}

/// Reads named parameters.
///
/// # Errors
/// −32602 that names the field, what is wrong with it and what is allowed.
pub fn parse_params<P: DeserializeOwned>(params: Option<&str>) -> Result<P, RpcError> {
    let text = params.unwrap_or("{}");
    match text.as_bytes().first() {
        Some(b'{') => {}
        Some(b'[') => {
            return Err(RpcError::invalid(
                "params",
                "positional parameters are not taken; send an object with named parameters",
            ));
        }
        _ => {
            return Err(RpcError::invalid(
                "params",
                "must be an object with named parameters, or be left out",
            ));
        }
    }
    let mut json = serde_json::Deserializer::from_str(text);
    serde_path_to_error::deserialize(&mut json).map_err(|error| {
        let path = error.path().to_string();
        let field = if path == "." { "params" } else { path.as_str() };
        RpcError::invalid(field, frame::without_place(error.inner()))
    })
}

/// Answers one frame: appends one line to `out`, or nothing where no answer is due. `invoke` runs a method of the table
/// on parameters as written; it is where a caller counts, limits and guards.
pub fn answer_frame<C>(
    methods: &'static [Method<C>],
    frame: &[u8],
    limits: &Limits,
    out: &mut Vec<u8>,
    invoke: &mut Invoke<'_, C>,
) {
    let start = out.len();
    match frame::parse(frame, limits) {
        Frame::Refused(error) => frame::write_error(out, None, &error),
        Frame::One(request) => {
            answer_one(methods, request, out, invoke);
        }
        Frame::Batch(requests) => {
            out.push(b'[');
            let mut first = true;
            for request in requests {
                let before = out.len();
                if !first {
                    out.push(b',');
                }
                let answered = if before - start > limits.answer_bytes {
                    refuse_rest(request, limits, out)
                } else {
                    answer_one(methods, request, out, invoke)
                };
                if answered {
                    first = false;
                } else {
                    out.truncate(before);
                }
            }
            if first {
                out.truncate(start);
            } else {
                out.push(b']');
            }
        }
    }
    if out.len() > start {
        out.push(b'\n');
    }
}

/// Answers one request; false where it was a notification.
fn answer_one<C>(
    methods: &'static [Method<C>],
    request: Result<Request<'_>, Refused<'_>>,
    out: &mut Vec<u8>,
    invoke: &mut Invoke<'_, C>,
) -> bool {
    let request = match request {
        Ok(request) => request,
        Err(refused) => {
            frame::write_error(out, refused.id, &refused.error);
            return true;
        }
    };
    let start = out.len();
    frame::write_answer(out, request.id, |out| {
        match methods.iter().find(|known| known.name == request.method) {
            Some(method) => invoke(method, request.params, out),
            None => Err(RpcError::new(
                ErrorCode::MethodNotFound,
                format!(
                    "no method `{}`; `rpc.discover` lists them",
                    crate::rpc::time::shorten(&request.method)
                ),
            )),
        }
    });
    if request.id.is_none() {
        out.truncate(start);
    }
    request.id.is_some()
}

/// A batch whose answers have grown past the limit is not worked on further: doing the rest and dropping its answers
/// would hide what was done.
fn refuse_rest(
    request: Result<Request<'_>, Refused<'_>>,
    limits: &Limits,
    out: &mut Vec<u8>,
) -> bool {
    let error = RpcError::new(
        ErrorCode::LimitExceeded,
        format!(
            "the answers to this batch passed {} bytes; this request was not done, send it again",
            limits.answer_bytes
        ),
    )
    .with_data(json!({ "what": "answer", "limit": limits.answer_bytes }));
    match request {
        Ok(request) if request.id.is_none() => false,
        Ok(request) => {
            frame::write_error(out, request.id, &error);
            true
        }
        Err(refused) => {
            frame::write_error(out, refused.id, &refused.error);
            true
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use schemars::JsonSchema;
    use serde::Deserialize;
    use serde_json::Value;
    use std::cell::Cell;

    #[derive(Deserialize, JsonSchema)]
    #[serde(deny_unknown_fields)]
    struct Double {
        items: Vec<Item>,
    }
    #[derive(Deserialize, JsonSchema)]
    #[serde(deny_unknown_fields)]
    struct Item {
        n: i32,
    }

    fn double(calls: &Cell<u32>, params: Double) -> Result<Vec<i32>, RpcError> {
        calls.set(calls.get() + 1);
        Ok(params.items.iter().map(|item| item.n * 2).collect())
    }

    static METHODS: &[Method<Cell<u32>>] = methods! { Cell<u32>;
        "double" => double, Double => Vec<i32>, true, [Busy], "Doubles.";
    };

    fn answer(frame: &str, limits: &Limits) -> (String, u32) {
        let calls = Cell::new(0);
        let mut out = Vec::new();
        answer_frame(METHODS, frame.as_bytes(), limits, &mut out, &mut |method, params, out| {
            (method.call)(&calls, params, out)
        });
        (String::from_utf8(out).unwrap(), calls.get())
    }

    #[test]
    fn answers_follow_the_specification() {
        let ok = r#"{"jsonrpc":"2.0","id":"a","method":"double","params":{"items":[{"n":4}]}}"#;
        let note = r#"{"jsonrpc":"2.0","method":"double","params":{"items":[]}}"#;
        let limits = Limits::default();
        let answered = r#"{"jsonrpc":"2.0","id":"a","result":[8]}"#;
        assert_eq!(answer(ok, &limits), (format!("{answered}\n"), 1));
        assert_eq!(answer(note, &limits), (String::new(), 1));
        assert_eq!(answer(&format!("[{note},{note}]"), &limits), (String::new(), 2));
        assert_eq!(
            answer(&format!("[{note},{ok},{note},{ok}]"), &limits),
            (format!("[{answered},{answered}]\n"), 4)
        );
        let unknown_note = r#"{"jsonrpc":"2.0","method":"no.such"}"#;
        assert_eq!(answer(unknown_note, &limits), (String::new(), 0));
        let (unknown, _) = answer(r#"{"jsonrpc":"2.0","id":2,"method":"no.such"}"#, &limits);
        assert!(unknown.contains("-32601") && unknown.contains("\"id\":2"), "{unknown}");
    }

    #[test]
    fn parameter_errors_name_the_field() {
        for (params, field, part) in [
            ("{}", "params", "missing field `items`"),
            (r#"{"items":[{"n":1},{"n":"x"}]}"#, "items[1].n", "expected i32"),
            (r#"{"items":[{}]}"#, "items[0]", "missing field `n`"),
            (r#"{"items":[],"q":1}"#, "q", "unknown field `q`, expected `items`"),
            (r#"{"items":[],"items":[]}"#, "params", "duplicate field `items`"),
            (r#"[1]"#, "params", "positional"),
            ("5", "params", "object"),
            ("null", "params", "object"),
        ] {
            let frame =
                format!(r#"{{"jsonrpc":"2.0","id":1,"method":"double","params":{params}}}"#);
            let (line, calls) = answer(&frame, &Limits::default());
            let error = serde_json::from_str::<Value>(&line).unwrap()["error"].clone();
            assert_eq!(error["code"], -32602, "{params}: {line}");
            assert_eq!(error["data"]["what"], field, "{params}: {line}");
            assert!(error["message"].as_str().unwrap().contains(part), "{params}: {line}");
            assert_eq!(calls, 0);
        }
    }

    #[test]
    fn a_batch_stops_working_once_its_answers_are_too_large() {
        let limits = Limits { answer_bytes: 50, ..Limits::default() };
        let ok = r#"{"jsonrpc":"2.0","id":1,"method":"double","params":{"items":[{"n":4}]}}"#;
        let (line, calls) = answer(&format!("[{ok},{ok},{ok}]"), &limits);
        assert_eq!(calls, 2, "{line}");
        let answers: Vec<Value> = serde_json::from_str(&line).unwrap();
        assert_eq!(answers[2]["error"]["code"], ErrorCode::LimitExceeded.code());
    }
}
