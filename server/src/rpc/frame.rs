//! From the bytes of one frame to requests, and from outcomes to the bytes of one answer.
//!
//! Invariant: every frame ends in exactly one of: no answer (notifications only), one answer object, one array of answer
//! objects; an id is sent back byte for byte. Parsing is iterative wherever a client decides the depth, so nesting costs
//! no stack. It must not know any method. Source: JSON-RPC 2.0 specification, sections 4 to 6.

use crate::rpc::error::{ErrorCode, RpcError};
use crate::rpc::limits::Limits;
use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::json;
use serde_json::value::RawValue;

/// Longest `id` that is sent back, in bytes as written.
const ID_BYTES: usize = 1024;

/// One request object that is well formed; its parameters are not looked at yet.
#[derive(Debug)]
pub struct Request<'a> {
    /// The id as written; `None` for a notification.
    pub id: Option<&'a str>,
    /// The method's name, which may be unknown.
    pub method: String,
    /// `params` as written.
    pub params: Option<&'a str>,
}

/// A request object that is not well formed.
#[derive(Debug)]
pub struct Refused<'a> {
    /// The id as written, where one could be read.
    pub id: Option<&'a str>,
    /// −32600 with the reason.
    pub error: RpcError,
}

/// The content of one frame.
#[derive(Debug)]
pub enum Frame<'a> {
    /// One request.
    One(Result<Request<'a>, Refused<'a>>),
    /// A batch of at least one.
    Batch(Vec<Result<Request<'a>, Refused<'a>>>),
    /// Nothing that could be worked on.
    Refused(RpcError),
}

/// Reads one frame, the newline not included.
#[must_use]
pub fn parse<'a>(frame: &'a [u8], limits: &Limits) -> Frame<'a> {
    let text = match std::str::from_utf8(frame) {
        Ok(text) => text,
        Err(error) => {
            return Frame::Refused(parse_error(&format!(
                "the frame is not UTF-8 (byte {})",
                error.valid_up_to()
            )));
        }
    };
    match text.trim_ascii_start().as_bytes().first() {
        None => Frame::Refused(parse_error("the frame is empty")),
        Some(b'[') => parse_batch(text, limits),
        Some(b'{') => match serde_json::from_str::<Envelope<'a>>(text) {
            Ok(envelope) => Frame::One(envelope.check()),
            Err(error) => refuse_whole(text, &error),
        },
        Some(_) => match serde_json::from_str::<IgnoredAny>(text) {
            Ok(_) => Frame::Refused(invalid_request("a request is a JSON object")),
            Err(error) => Frame::Refused(parse_error(&error.to_string())),
        },
    }
}

fn parse_batch<'a>(text: &'a str, limits: &Limits) -> Frame<'a> {
    let mut deserializer = serde_json::Deserializer::from_str(text);
    let batch = deserializer
        .deserialize_seq(BatchVisitor { most: limits.batch_requests })
        .and_then(|batch| deserializer.end().map(|()| batch));
    let (requests, count) = match batch {
        Ok(batch) => batch,
        Err(error) => return refuse_whole(text, &error),
    };
    if count == 0 {
        return Frame::Refused(invalid_request("a batch holds at least one request"));
    }
    if count > limits.batch_requests {
        return Frame::Refused(
            RpcError::new(
                ErrorCode::LimitExceeded,
                format!(
                    "a batch of {count} requests, at most {} are allowed; none was done",
                    limits.batch_requests
                ),
            )
            .with_data(json!({ "what": "batch", "limit": limits.batch_requests, "got": count })),
        );
    }
    Frame::Batch(requests.into_iter().map(parse_one).collect())
}

fn parse_one(raw: &RawValue) -> Result<Request<'_>, Refused<'_>> {
    match serde_json::from_str::<Envelope<'_>>(raw.get()) {
        Ok(envelope) => envelope.check(),
        Err(error) => Err(Refused { id: None, error: invalid_request(&without_place(&error)) }),
    }
}

/// A shape error in valid JSON is −32600, anything else −32700; only failures pay for telling them apart.
fn refuse_whole<'a>(text: &str, error: &serde_json::Error) -> Frame<'a> {
    Frame::Refused(match serde_json::from_str::<IgnoredAny>(text) {
        Ok(_) => invalid_request(&without_place(error)),
        Err(syntax) => parse_error(&syntax.to_string()),
    })
}

fn parse_error(reason: &str) -> RpcError {
    RpcError::new(ErrorCode::ParseError, format!("a frame is one JSON text on one line: {reason}"))
}

fn invalid_request(reason: &str) -> RpcError {
    RpcError::new(ErrorCode::InvalidRequest, format!("not a JSON-RPC 2.0 request: {reason}"))
}

/// The message of a JSON error without " at line 1 column N": frames have one line.
pub(crate) fn without_place(error: &serde_json::Error) -> String {
    let message = error.to_string();
    match message.rfind(" at line ") {
        Some(place) => message[..place].to_owned(),
        None => message,
    }
}

/// The members of a request object, none checked yet.
#[derive(Default)]
struct Envelope<'a> {
    jsonrpc: Option<&'a RawValue>,
    id: Option<&'a RawValue>,
    method: Option<&'a RawValue>,
    params: Option<&'a RawValue>,
}

impl<'a> Envelope<'a> {
    fn check(self) -> Result<Request<'a>, Refused<'a>> {
        let (id, bad_id) = match self.id.map(RawValue::get) {
            None => (None, None),
            Some(raw) if raw.len() > ID_BYTES => (None, Some("`id` is too long")),
            Some(raw) => match raw.as_bytes().first() {
                Some(b'"' | b'-' | b'0'..=b'9' | b'n') => (Some(raw), None),
                _ => (None, Some("`id` is a string, a number or null")),
            },
        };
        let refuse = |reason: &str| Refused { id, error: invalid_request(reason) };
        if let Some(reason) = bad_id {
            return Err(refuse(reason));
        }
        if self.jsonrpc.map(RawValue::get) != Some("\"2.0\"") {
            return Err(refuse("`jsonrpc` must be \"2.0\""));
        }
        let Some(method) = self.method else {
            return Err(refuse("`method` is missing"));
        };
        match serde_json::from_str::<String>(method.get()) {
            Ok(method) => Ok(Request { id, method, params: self.params.map(RawValue::get) }),
            Err(_) => Err(refuse("`method` must be a string")),
        }
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Envelope<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(EnvelopeVisitor)
    }
}

#[derive(Deserialize)]
#[serde(field_identifier, rename_all = "lowercase")]
enum Member {
    Jsonrpc,
    Id,
    Method,
    Params,
    #[serde(other)]
    Other,
}

struct EnvelopeVisitor;

impl<'de> Visitor<'de> for EnvelopeVisitor {
    type Value = Envelope<'de>;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a request object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        use serde::de::Error;
        let mut envelope = Envelope::default();
        while let Some(member) = map.next_key::<Member>()? {
            let (slot, name) = match member {
                Member::Jsonrpc => (&mut envelope.jsonrpc, "jsonrpc"),
                Member::Id => (&mut envelope.id, "id"),
                Member::Method => (&mut envelope.method, "method"),
                Member::Params => (&mut envelope.params, "params"),
                Member::Other => {
                    map.next_value::<IgnoredAny>()?;
                    continue;
                }
            };
            if slot.replace(map.next_value()?).is_some() {
                return Err(A::Error::duplicate_field(name));
            }
        }
        Ok(envelope)
    }
}

/// Takes at most `most` elements and counts the rest, so that a batch of a million costs no memory.
struct BatchVisitor {
    most: usize,
}

impl<'de> Visitor<'de> for BatchVisitor {
    type Value = (Vec<&'de RawValue>, usize);

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a batch")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
        let mut requests = Vec::new();
        let mut count = 0;
        while count < self.most {
            match seq.next_element()? {
                Some(request) => requests.push(request),
                None => return Ok((requests, count)),
            }
            count += 1;
        }
        while seq.next_element::<IgnoredAny>()?.is_some() {
            count += 1;
        }
        Ok((requests, count))
    }
}

/// Appends one answer; `result` writes the result's JSON or gives the error to answer with instead.
pub fn write_answer(
    out: &mut Vec<u8>,
    id: Option<&str>,
    result: impl FnOnce(&mut Vec<u8>) -> Result<(), RpcError>,
) {
    let start = out.len();
    begin(out, id);
    out.extend_from_slice(b"\"result\":");
    match result(out) {
        Ok(()) => out.push(b'}'),
        Err(error) => {
            out.truncate(start);
            write_error(out, id, &error);
        }
    }
}

/// Appends one error answer; without an id it carries `null`, as the specification asks.
pub fn write_error(out: &mut Vec<u8>, id: Option<&str>, error: &RpcError) {
    begin(out, id);
    out.extend_from_slice(b"\"error\":");
    let start = out.len();
    if serde_json::to_writer(&mut *out, error).is_err() {
        // An error object is plain data, so this is not reached; an answer stays JSON all the same.
        out.truncate(start);
        out.extend_from_slice(b"{\"code\":-32603,\"message\":\"the error could not be written\"}");
    }
    out.push(b'}');
}

fn begin(out: &mut Vec<u8>, id: Option<&str>) {
    out.extend_from_slice(b"{\"jsonrpc\":\"2.0\",\"id\":");
    out.extend_from_slice(id.unwrap_or("null").as_bytes());
    out.push(b',');
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn code_of(frame: &[u8]) -> i32 {
        match parse(frame, &Limits::default()) {
            Frame::One(Ok(_)) | Frame::Batch(_) => 0,
            Frame::One(Err(refused)) => refused.error.code,
            Frame::Refused(error) => error.code,
        }
    }

    #[test]
    fn frames_are_told_apart_as_the_specification_says() {
        let deep_meta = format!(
            r#"{{"jsonrpc":"2.0","id":1,"method":"m","params":{{"a":{}1{}}}}}"#,
            "[".repeat(200_000),
            "]".repeat(200_000)
        );
        let cut_nesting = format!(r#"{{"jsonrpc":"2.0","params":{}"#, "[".repeat(100_000));
        let cases: &[(&[u8], i32)] = &[
            (br#"{"jsonrpc":"2.0","id":1,"method":"m"}"#, 0),
            (br#" {"jsonrpc":"2.0","method":"m","id":null} "#, 0),
            (br#"{"jsonrpc":"2.0","id":"\ud800","method":"m"}"#, 0),
            (br#"{"jsonrpc":"2.0","id":1,"method":"m","extra":[1,2]}"#, 0),
            (deep_meta.as_bytes(), 0),
            (b"{nonsense", -32700),
            (b"", -32700),
            (b"   ", -32700),
            (b"\xff\xfe", -32700),
            (br#"{"jsonrpc":"2.0","id":1,"method":"m"} x"#, -32700),
            (br#"{"jsonrpc":"2.0","jsonrpc":"2.0","x"#, -32700),
            (cut_nesting.as_bytes(), -32700),
            (br#"[{"jsonrpc":"2.0","id":1,"method":"m"},"#, -32700),
            (b"[]", -32600),
            (b"1", -32600),
            (b"null", -32600),
            (b"\"text\"", -32600),
            (b"{}", -32600),
            (br#"{"jsonrpc":"1.0","id":1,"method":"m"}"#, -32600),
            (br#"{"jsonrpc":"2.0","id":1}"#, -32600),
            (br#"{"jsonrpc":"2.0","id":1,"method":5}"#, -32600),
            (br#"{"jsonrpc":"2.0","id":{},"method":"m"}"#, -32600),
            (br#"{"jsonrpc":"2.0","id":true,"method":"m"}"#, -32600),
            (br#"{"jsonrpc":"2.0","id":1,"id":2,"method":"m"}"#, -32600),
        ];
        for (frame, want) in cases {
            let shown = String::from_utf8_lossy(&frame[..frame.len().min(80)]).into_owned();
            assert_eq!(code_of(frame), *want, "{shown}");
        }
    }

    #[test]
    fn null_id_is_a_request_and_a_missing_id_a_notification() {
        let limits = Limits::default();
        for (frame, want) in [
            (r#"{"jsonrpc":"2.0","id":null,"method":"m"}"#, Some("null")),
            (r#"{"jsonrpc":"2.0","method":"m"}"#, None),
            (r#"{"jsonrpc":"2.0","id":-1.5e3,"method":"m"}"#, Some("-1.5e3")),
            (r#"{"jsonrpc":"2.0","id":"a\"b","method":"m"}"#, Some(r#""a\"b""#)),
        ] {
            let Frame::One(Ok(request)) = parse(frame.as_bytes(), &limits) else {
                panic!("{frame} is a request");
            };
            assert_eq!(request.id, want);
        }
    }

    #[test]
    fn a_batch_is_bounded_and_its_elements_fail_singly() {
        let limits = Limits { batch_requests: 3, ..Limits::default() };
        let one = r#"{"jsonrpc":"2.0","id":1,"method":"m"}"#;
        let frame = format!("[{one},3,{one}]");
        let Frame::Batch(batch) = parse(frame.as_bytes(), &limits) else {
            panic!("a batch");
        };
        let ok: Vec<bool> = batch.iter().map(Result::is_ok).collect();
        assert_eq!(ok, [true, false, true]);
        let frame = format!("[{}3]", "3,".repeat(1_000_000));
        let Frame::Refused(error) = parse(frame.as_bytes(), &limits) else {
            panic!("refused");
        };
        assert!(error.is(ErrorCode::LimitExceeded));
        assert_eq!(error.data.unwrap()["got"], 1_000_001);
    }

    #[test]
    fn a_failing_result_leaves_only_the_error() {
        let mut out = Vec::new();
        write_answer(&mut out, Some("7"), |out| {
            out.extend_from_slice(b"{\"half\":");
            Err(RpcError::new(ErrorCode::Conflict, "no"))
        });
        assert_eq!(
            String::from_utf8(out).unwrap(),
            r#"{"jsonrpc":"2.0","id":7,"error":{"code":1003,"message":"no"}}"#
        );
    }
}
