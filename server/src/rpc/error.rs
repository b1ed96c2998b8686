//! Error codes and error objects of the protocol.
//!
//! Invariant: the five codes of JSON-RPC 2.0 mean exactly what its specification says; every code of our own lies outside
//! the range it reserves (−32768 to −32000) and never changes its meaning between versions. It must not know where an
//! error came from: other modules translate theirs into these.

use serde::Serialize;
use serde_json::{Value, json};

macro_rules! error_codes {
    ($($(#[doc = $doc:literal])+ $name:ident = $code:literal, $title:literal;)+) => {
        /// Every error code that an answer can carry.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        pub enum ErrorCode {
            $($(#[doc = $doc])+ $name,)+
        }

        impl ErrorCode {
            /// All codes, in the order of the documentation.
            pub const ALL: &'static [ErrorCode] = &[$(ErrorCode::$name,)+];

            /// The number in the answer's `error.code`.
            #[must_use]
            pub const fn code(self) -> i32 {
                match self { $(ErrorCode::$name => $code,)+ }
            }

            /// A short fixed title, as in the OpenRPC document.
            #[must_use]
            pub const fn title(self) -> &'static str {
                match self { $(ErrorCode::$name => $title,)+ }
            }
        }
    };
}

error_codes! {
    /// The frame is not JSON in UTF-8.
    ParseError = -32700, "Parse error";
    /// The JSON is not a request object, or a batch is empty.
    InvalidRequest = -32600, "Invalid request";
    /// No method of that name.
    MethodNotFound = -32601, "Method not found";
    /// A parameter is missing, unknown, of the wrong type, or outside what is allowed.
    InvalidParams = -32602, "Invalid params";
    /// The service itself went wrong; nothing is known to be lost.
    InternalError = -32603, "Internal error";
    /// The space does not exist; spaces come to be with their first `memory.add`.
    NoSuchSpace = 1001, "No such space";
    /// The space has no memory with that id.
    NoSuchMemory = 1002, "No such memory";
    /// A memory with that id is already there.
    Conflict = 1003, "Conflict";
    /// A frame, a batch, an answer or an index would be larger than the service allows.
    LimitExceeded = 1004, "Limit exceeded";
    /// Part of the protocol, and not yet in this version.
    NotYet = 1005, "Not yet in this version";
    /// Too much to do at the moment; `data.retry_after_ms` says when to try again.
    Busy = 1006, "Busy";
    /// The deadline passed before the work was done.
    DeadlineExceeded = 1007, "Deadline exceeded";
    /// `expect_count` differs from the number of memories found; nothing was deleted.
    ExpectCount = 1008, "Count not as expected";
    /// `if_seq` differs from the memory's `seq`; nothing was changed.
    SeqMismatch = 1009, "Sequence number not as expected";
    /// Stored data is damaged; `admin.verify` says where.
    Corrupt = 1010, "Corrupt data";
    /// The disk is full; nothing of the request was stored.
    DiskFull = 1011, "Disk full";
    /// A sync failed: whether the request was stored is unknown until the service has been restarted.
    OutcomeUnknown = 1012, "Outcome unknown";
    /// The service is stopping; nothing of the request was done unless `data.durable` says so.
    ShuttingDown = 1013, "Shutting down";
    /// The text could not be embedded.
    Embedding = 1014, "Embedding failed";
    /// An import or export could not be carried out.
    Transfer = 1015, "Import or export failed";
    /// The peer's user is not the service's user.
    Forbidden = 1016, "Forbidden";
    /// A file operation failed.
    Io = 1017, "Input or output failed";
    /// The service was started for reading only; nothing was changed.
    ReadOnly = 1018, "Read only";
}

impl ErrorCode {
    /// The code with that number, if there is one.
    #[must_use]
    pub fn from_code(code: i32) -> Option<Self> {
        Self::ALL.iter().copied().find(|known| known.code() == code)
    }
}

/// The `error` member of an answer.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RpcError {
    /// One of [`ErrorCode`]'s numbers.
    pub code: i32,
    /// What went wrong, where, and what to do next; for people.
    pub message: String,
    /// The same for programs: at least `what`, where it applies.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub data: Option<Value>,
}

impl std::fmt::Display for RpcError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} (code {})", self.message, self.code)
    }
}

impl std::error::Error for RpcError {}

impl RpcError {
    /// An error with a code and a message.
    #[must_use]
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self { code: code.code(), message: message.into(), data: None }
    }

    /// Adds `data`.
    #[must_use]
    pub fn with_data(mut self, data: Value) -> Self {
        self.data = Some(data);
        self
    }

    /// −32602 for the parameter at `field` (a path such as `items[2].ts`).
    #[must_use]
    pub fn invalid(field: &str, message: impl std::fmt::Display) -> Self {
        Self::new(ErrorCode::InvalidParams, format!("parameter `{field}`: {message}"))
            .with_data(json!({ "what": field }))
    }

    /// −32602 for a parameter that is larger than allowed; `unit` is such as `bytes`.
    #[must_use]
    pub fn over_limit(field: &str, got: usize, limit: usize, unit: &str) -> Self {
        Self::new(
            ErrorCode::InvalidParams,
            format!("parameter `{field}`: {got} {unit}, at most {limit} are allowed"),
        )
        .with_data(json!({ "what": field, "limit": limit, "got": got }))
    }

    /// `Busy` with the time after which a new try makes sense.
    #[must_use]
    pub fn busy(what: &str, limit: usize, retry_after_ms: u64) -> Self {
        Self::new(
            ErrorCode::Busy,
            format!("busy: {what} (limit {limit}); try again in {retry_after_ms} ms"),
        )
        .with_data(json!({ "what": what, "limit": limit, "retry_after_ms": retry_after_ms }))
    }

    /// `NotYet` for a part of the protocol that this version lacks.
    #[must_use]
    pub fn not_yet(what: &str, instead: &str) -> Self {
        Self::new(ErrorCode::NotYet, format!("{what} is not yet in this version; {instead}"))
            .with_data(json!({ "what": what }))
    }

    /// Whether this error carries that code.
    #[must_use]
    pub fn is(&self, code: ErrorCode) -> bool {
        self.code == code.code()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn codes_are_distinct_and_own_codes_lie_outside_the_reserved_range() {
        let mut seen = HashSet::new();
        for code in ErrorCode::ALL {
            assert!(seen.insert(code.code()), "{code:?} is there twice");
            let reserved = (-32768..=-32000).contains(&code.code());
            let standard = [-32700, -32600, -32601, -32602, -32603].contains(&code.code());
            assert_eq!(reserved, standard, "{code:?}");
            assert_eq!(ErrorCode::from_code(code.code()), Some(*code));
        }
        assert_eq!(ErrorCode::from_code(1), None);
    }

    #[test]
    fn data_is_left_out_when_there_is_none() {
        let error = RpcError::new(ErrorCode::Conflict, "there already");
        assert_eq!(
            serde_json::to_string(&error).expect("plain data"),
            r#"{"code":1003,"message":"there already"}"#
        );
    }
}
