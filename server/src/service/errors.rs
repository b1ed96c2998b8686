//! Errors of the engine, the embedder and the file system as errors of the protocol.
//!
//! Invariant: every error keeps its cause in its message; none becomes an empty result. It must not decide what to do
//! about an error, with one exception: a poisoned store ends the service.

use crate::rpc::{ErrorCode, RpcError};
use flashbulb_engine::Error;
use serde_json::{Value, json};
use std::path::Path;

/// Translates an error of the engine.
#[must_use]
pub fn of_engine(error: Error) -> RpcError {
    let message = error.to_string();
    let (code, data) = describe(error);
    let answer = RpcError::new(code, message);
    if data.is_null() { answer } else { answer.with_data(data) }
}

fn describe(error: Error) -> (ErrorCode, Value) {
    match error {
        Error::NoSuchSpace { space } => (ErrorCode::NoSuchSpace, json!({ "what": space })),
        Error::NoSuchMemory { id, .. } => (ErrorCode::NoSuchMemory, json!({ "what": id })),
        Error::Conflict { id } => (ErrorCode::Conflict, json!({ "what": id })),
        Error::KeyTaken => (ErrorCode::Conflict, json!({ "what": "idempotency_key" })),
        Error::ExpectCount { expected, found } => (
            ErrorCode::ExpectCount,
            json!({ "what": "expect_count", "expected": expected, "found": found }),
        ),
        Error::SeqMismatch { expected, found } => (
            ErrorCode::SeqMismatch,
            json!({ "what": "if_seq", "expected": expected.0, "found": found.0 }),
        ),
        Error::InvalidName { .. } => (ErrorCode::InvalidParams, json!({ "what": "space" })),
        Error::DuplicateInRequest { .. } => (ErrorCode::InvalidParams, json!({ "what": "items" })),
        Error::Invalid { what, .. } => (ErrorCode::InvalidParams, json!({ "what": what })),
        Error::DimMismatch { expected, got } => (
            ErrorCode::InvalidParams,
            json!({ "what": "vector", "expected": expected, "got": got }),
        ),
        Error::BadVector { .. } => (ErrorCode::InvalidParams, json!({ "what": "vector" })),
        Error::TooLarge { what, size, limit } => {
            (ErrorCode::InvalidParams, json!({ "what": what, "got": size, "limit": limit }))
        }
        Error::Corrupt { file, offset, .. } => {
            (ErrorCode::Corrupt, json!({ "what": file, "offset": offset }))
        }
        Error::VersionTooNew { file, .. } => (ErrorCode::Corrupt, json!({ "what": file })),
        Error::Poisoned { .. } => (ErrorCode::OutcomeUnknown, Value::Null),
        Error::DiskFull { path } => (ErrorCode::DiskFull, json!({ "what": path })),
        Error::Busy { retry_after_ms } => {
            (ErrorCode::Busy, json!({ "what": "log", "retry_after_ms": retry_after_ms }))
        }
        Error::Closed => (ErrorCode::ShuttingDown, Value::Null),
        Error::ReadOnly => (ErrorCode::ReadOnly, Value::Null),
        Error::Io { path, .. } => (ErrorCode::Io, json!({ "what": path })),
        _ => (ErrorCode::InternalError, Value::Null),
    }
}

/// An embedding that failed.
#[must_use]
pub fn of_embedding(cause: &dyn std::fmt::Display) -> RpcError {
    RpcError::new(ErrorCode::Embedding, format!("embedding failed: {cause}"))
}

/// A file operation that failed.
#[must_use]
pub fn of_file(op: &str, path: &Path, error: &std::io::Error) -> RpcError {
    let code = match error.kind() {
        std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => ErrorCode::DiskFull,
        _ => ErrorCode::Io,
    };
    RpcError::new(code, format!("cannot {op} {}: {error}", path.display()))
        .with_data(json!({ "what": path }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use flashbulb_engine::Seq;

    #[test]
    fn engine_errors_keep_their_message_and_get_their_code() {
        for (error, code) in [
            (Error::NoSuchSpace { space: "s".into() }, ErrorCode::NoSuchSpace),
            (Error::Conflict { id: "i".into() }, ErrorCode::Conflict),
            (Error::DuplicateInRequest { id: "i".into() }, ErrorCode::InvalidParams),
            (Error::DimMismatch { expected: 384, got: 2 }, ErrorCode::InvalidParams),
            (Error::ExpectCount { expected: 1, found: 2 }, ErrorCode::ExpectCount),
            (Error::SeqMismatch { expected: Seq(1), found: Seq(2) }, ErrorCode::SeqMismatch),
            (Error::Poisoned { cause: "sync".into() }, ErrorCode::OutcomeUnknown),
            (Error::DiskFull { path: "/x".into() }, ErrorCode::DiskFull),
            (Error::Closed, ErrorCode::ShuttingDown),
            (Error::ReadOnly, ErrorCode::ReadOnly),
        ] {
            let message = error.to_string();
            let answer = of_engine(error);
            assert_eq!(answer.code, code.code(), "{message}");
            assert_eq!(answer.message, message);
        }
    }

    #[test]
    fn a_full_disk_is_told_from_other_file_errors() {
        let full = std::io::Error::from(std::io::ErrorKind::StorageFull);
        assert!(of_file("write", Path::new("/x"), &full).is(ErrorCode::DiskFull));
        let denied = std::io::Error::from(std::io::ErrorKind::PermissionDenied);
        assert!(of_file("write", Path::new("/x"), &denied).is(ErrorCode::Io));
    }
}
