//! The engine's memories as they stand on the wire.
//!
//! Invariant: meta goes out as it came in, to the byte; one answer holds a bounded number of bytes. It must not know any
//! method.

use crate::rpc::results::MemoryOut;
use crate::rpc::time::TsMs;
use crate::rpc::{ErrorCode, Limits, RpcError};
use flashbulb_engine::Memory;
use serde_json::json;
use serde_json::value::RawValue;

/// Memories fetched at a time, so that an answer that would be too large is noticed early.
pub(crate) const CHUNK: usize = 16;

/// One memory for an answer.
///
/// # Errors
/// `Corrupt` where the stored meta is not JSON any more.
pub(crate) fn memory(memory: Memory) -> Result<MemoryOut, RpcError> {
    let meta = match memory.meta {
        Some(meta) => Some(RawValue::from_string(meta).map_err(|error| {
            RpcError::new(
                ErrorCode::Corrupt,
                format!("the meta of memory `{}` is not JSON: {error}", memory.id),
            )
            .with_data(json!({ "what": memory.id }))
        })?),
        None => None,
    };
    Ok(MemoryOut {
        id: memory.id,
        text: memory.text,
        role: memory.role,
        session: memory.session,
        ts: TsMs(memory.ts_ms),
        seq: memory.seq.0,
        meta,
    })
}

/// A span of time on the wire.
pub(crate) fn micros(span: std::time::Duration) -> u64 {
    u64::try_from(span.as_micros()).unwrap_or(u64::MAX)
}

/// Bytes that an answer may still hold.
pub(crate) struct Room {
    left: usize,
    limit: usize,
}

impl Room {
    pub(crate) fn new(limits: &Limits) -> Self {
        Self { left: limits.answer_bytes, limit: limits.answer_bytes }
    }

    /// Whether nothing is left; a list is cut here.
    pub(crate) fn is_full(&self) -> bool {
        self.left == 0
    }

    /// Takes the room that a memory needs; the one that passes the limit is still let in.
    pub(crate) fn take(&mut self, memory: &Memory) {
        let meta = memory.meta.as_ref().map_or(0, String::len);
        self.left = self.left.saturating_sub(memory.text.len() + meta + 256);
    }

    /// `LimitExceeded` for answers that cannot be cut.
    ///
    /// # Errors
    /// When nothing is left.
    pub(crate) fn check(&self, ask_for_fewer: &str) -> Result<(), RpcError> {
        if !self.is_full() {
            return Ok(());
        }
        Err(RpcError::new(
            ErrorCode::LimitExceeded,
            format!(
                "the answer would pass {} bytes; ask for fewer with `{ask_for_fewer}`",
                self.limit
            ),
        )
        .with_data(json!({ "what": "answer", "limit": self.limit })))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use flashbulb_engine::Seq;

    fn stored(meta: Option<&str>) -> Memory {
        Memory {
            id: "i".into(),
            text: "t".into(),
            role: None,
            session: None,
            ts_ms: -1,
            seq: Seq(7),
            meta: meta.map(str::to_owned),
            searchable: true,
        }
    }

    #[test]
    fn absent_members_are_null_and_meta_keeps_its_bytes() {
        let out = memory(stored(None)).unwrap();
        assert_eq!(
            serde_json::to_string(&out).unwrap(),
            r#"{"id":"i","text":"t","role":null,"session":null,"ts":-1,"seq":7,"meta":null}"#
        );
        let raw = r#"{"b" : 1.0,"a":1e2}"#;
        let json = serde_json::to_string(&memory(stored(Some(raw))).unwrap()).unwrap();
        assert!(json.ends_with(&format!("\"meta\":{raw}}}")), "{json}");
    }

    #[test]
    fn damaged_meta_is_an_error() {
        assert!(memory(stored(Some("{"))).unwrap_err().is(ErrorCode::Corrupt));
    }

    #[test]
    fn room_runs_out() {
        let limits = Limits { answer_bytes: 300, ..Limits::default() };
        let mut room = Room::new(&limits);
        room.take(&stored(None));
        assert!(room.check("k").is_ok());
        room.take(&stored(None));
        assert!(room.check("k").unwrap_err().is(ErrorCode::LimitExceeded));
    }
}
