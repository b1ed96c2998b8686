//! The server's framing and dispatch on bytes from a socket, beside naive ones.
//!
//! Invariant: the sources are the server's own, see `service`. What is checked here: frames are lines within the limit however
//! reads cut them, every frame is answered by one line of JSON or none, and each request as the specification says.

use std::collections::VecDeque;
use std::io::{self, Read};
use std::time::Duration;

use serde_json::Value;

use crate::naive_rpc::{Due, FrameDue, due};
use crate::rpc::{ErrorCode, Limits, depth, table};
use crate::service::methods::METHODS;
use crate::service::{Context, Service};
use framing::{FrameReader, Next, TimedRead};

#[allow(dead_code, reason = "nothing is discarded here")]
#[path = "../../server/src/daemon/framing.rs"]
mod framing;

/// A stream that gives its bytes in parts of these sizes.
struct Parts<'a> {
    bytes: &'a [u8],
    sizes: VecDeque<u8>,
}

impl Read for Parts<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let size = self.sizes.pop_front().map_or(usize::MAX, |size| usize::from(size) + 1);
        let size = size.min(out.len());
        self.bytes.read(&mut out[..size])
    }
}

impl TimedRead for Parts<'_> {
    fn set_read_timeout(&mut self, _: Option<Duration>) -> io::Result<()> {
        Ok(())
    }
}

/// Cuts `bytes`, which come in parts of `sizes`, into frames and answers each.
///
/// # Panics
/// When something is not as it must be.
pub fn check(bytes: &[u8], sizes: &[u8], frame_bytes: usize) {
    let mut lines = bytes.split(|b| *b == b'\n');
    let unfinished = lines.next_back().unwrap_or_default();
    let parts = Parts { bytes, sizes: sizes.iter().copied().collect() };
    let mut reader = FrameReader::new(parts, frame_bytes, Duration::from_secs(3600));
    for line in lines {
        match reader.next().expect("memory has no errors") {
            Next::Frame(frame, _) => {
                assert!(line.len() <= frame_bytes, "a frame beyond the limit");
                assert_eq!(frame, line);
            }
            other => {
                assert!(
                    other == Next::TooLong && line.len() > frame_bytes,
                    "{other:?} for {line:?}"
                );
                return;
            }
        }
        answer(line);
    }
    let end = reader.next().expect("memory has no errors");
    assert_eq!(end, if unfinished.len() > frame_bytes { Next::TooLong } else { Next::Closed });
}

/// Answers one frame and compares the answer with what is due.
fn answer(frame: &[u8]) {
    let mut limits = Limits::default();
    limits.batch_requests = 8;
    limits.answer_bytes = 2048;
    limits.items = 4;
    limits.meta_depth = 6;
    let context = Context { service: Service { limits: limits.clone() } };
    let mut out = Vec::new();
    table::answer_frame(METHODS, frame, &limits, &mut out, &mut |method, params, out| {
        if let Some(value) = params.and_then(|params| serde_json::from_str::<Value>(params).ok()) {
            // Of a member that stands twice `Value` keeps one.
            assert!(depth(params.unwrap_or_default().as_bytes()) >= naive_depth(&value));
            assert_eq!(depth(value.to_string().as_bytes()), naive_depth(&value));
        }
        (method.call)(&context, params, out)
    });
    let line = String::from_utf8(out).expect("an answer is UTF-8");
    let answer = (!line.is_empty()).then(|| {
        let text = line.strip_suffix('\n').expect("an answer ends its line");
        assert!(!text.contains('\n'), "an answer is one line");
        serde_json::from_str::<Value>(text).expect("an answer is JSON")
    });
    let answers: Vec<&Value> = match &answer {
        None => Vec::new(),
        Some(Value::Array(all)) => {
            assert!(!all.is_empty());
            all.iter().collect()
        }
        Some(one) => vec![one],
    };
    answers.iter().for_each(|answer| shape(answer));
    // Of a member that stands twice `Value` keeps the last, and the protocol refuses the request.
    if line.contains("duplicate field") {
        return;
    }
    // `jsonrpc` must be written as it is; `Value` no longer tells how it was.
    let Some(due) = due(frame, limits.batch_requests).filter(|_| !frame.contains(&b'\\')) else {
        return;
    };
    let dues = match &due {
        FrameDue::One(one) => vec![one],
        FrameDue::Batch(all) => all.iter().collect(),
    };
    assert_eq!(
        matches!(answer, Some(Value::Array(_))),
        matches!(due, FrameDue::Batch(_)) && answer.is_some()
    );
    let dues: Vec<&Due> = dues.into_iter().filter(|due| **due != Due::Nothing).collect();
    assert_eq!(dues.len(), answers.len(), "{} for {}", line, String::from_utf8_lossy(frame));
    dues.iter().zip(answers).for_each(|(due, answer)| same(due, answer));
}

fn naive_depth(value: &Value) -> usize {
    match value {
        Value::Array(all) => 1 + all.iter().map(naive_depth).max().unwrap_or(0),
        Value::Object(all) => 1 + all.values().map(naive_depth).max().unwrap_or(0),
        _ => 0,
    }
}

/// The members of every answer.
fn shape(answer: &Value) {
    let members = answer.as_object().expect("an answer is an object");
    assert_eq!(members.len(), 3, "{answer}");
    assert_eq!(members["jsonrpc"], "2.0");
    assert!(members.contains_key("id"));
    if let Some(error) = members.get("error") {
        let code = error["code"].as_i64().and_then(|code| i32::try_from(code).ok());
        assert!(code.and_then(ErrorCode::from_code).is_some(), "{answer}");
        assert!(error["message"].is_string());
    } else {
        assert!(members.contains_key("result"));
    }
}

fn same(due: &Due, answer: &Value) {
    let code = answer.pointer("/error/code").and_then(Value::as_i64);
    match due {
        Due::Nothing => {}
        Due::Error { id, code: wanted } => {
            assert_eq!((&answer["id"], code), (id, Some(*wanted)), "{answer}")
        }
        Due::Answer { id, method } => {
            assert_eq!(&answer["id"], id);
            let known = METHODS.iter().any(|m| m.name == method);
            // Behind answers that were too many already, nothing is done.
            let too_much = code == Some(ErrorCode::LimitExceeded.code().into());
            assert!(too_much || (code == Some(-32601)) != known, "{answer}");
            assert!(
                code != Some(-32600) && code != Some(-32700) && code != Some(-32603),
                "{answer}"
            );
        }
    }
}
