//! One caller of the service, over its socket or in this process.
//!
//! Invariant: both ways carry the same request as JSON and read the same answer, so their times differ by the socket
//! alone; a failure is one of the kinds of misses. Must not know when requests are due.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use flashbulb::client::{Client, ClientError};
use flashbulb::rpc::ErrorCode;
use flashbulb::rpc::table::answer_frame;
use flashbulb::service::methods::METHODS;
use flashbulb::service::{Context, Service};
use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

use crate::run::{Boundary, Miss};

/// Where requests go.
#[derive(Clone)]
pub enum Target {
    /// A daemon's socket.
    Socket(PathBuf),
    /// A service in this process.
    InProcess(Arc<Service>),
}

/// Why a call has no result.
#[derive(Debug)]
pub struct Failed {
    pub miss: Miss,
    pub message: String,
}

impl std::fmt::Display for Failed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Failed {}

impl From<ClientError> for Failed {
    fn from(error: ClientError) -> Failed {
        let miss = match &error {
            ClientError::Rpc(e) => miss_of(e.code),
            ClientError::Timeout { .. } => Miss::Timeout,
            ClientError::Protocol { .. } => Miss::Error,
            _ => Miss::Connection,
        };
        Failed { miss, message: error.to_string() }
    }
}

fn miss_of(code: i64) -> Miss {
    match code {
        c if c == i64::from(ErrorCode::Busy.code()) => Miss::Refused,
        c if c == i64::from(ErrorCode::DeadlineExceeded.code()) => Miss::Deadline,
        _ => Miss::Error,
    }
}

impl Target {
    /// A caller of its own.
    ///
    /// # Errors
    /// If the daemon cannot be reached.
    pub fn connect(&self) -> Result<Caller, Failed> {
        Ok(match self {
            Target::Socket(path) => Caller::Socket(Client::connect(path)?),
            Target::InProcess(service) => {
                let context = Box::new(Context::new(Arc::clone(service)));
                Caller::InProcess { context, out: Vec::new() }
            }
        })
    }

    /// Between what its time is taken.
    pub fn boundary(&self) -> Boundary {
        match self {
            Target::Socket(_) => Boundary::Socket,
            Target::InProcess(_) => Boundary::InProcess,
        }
    }
}

/// One connection, or one thread's view of the service.
pub enum Caller {
    /// A connection.
    Socket(Client),
    /// A view; requests are answered on the thread that sends them.
    InProcess { context: Box<Context>, out: Vec<u8> },
}

#[derive(Deserialize)]
struct Answer {
    result: Option<Box<RawValue>>,
    error: Option<AnsweredError>,
}

#[derive(Deserialize)]
struct AnsweredError {
    code: i64,
    message: String,
}

impl Caller {
    /// Calls a method; the result as it was written.
    ///
    /// # Errors
    /// The service's error, a broken connection, or no answer in `timeout` (which only a socket can tell).
    pub fn call_raw(
        &mut self,
        method: &str,
        params: &Value,
        timeout: Duration,
    ) -> Result<Box<RawValue>, Failed> {
        match self {
            Caller::Socket(client) => Ok(client.call_raw(method, params, timeout)?),
            Caller::InProcess { context, out } => in_process(context, out, method, params),
        }
    }

    /// Calls a method.
    ///
    /// # Errors
    /// As [`Self::call_raw`].
    pub fn call(
        &mut self,
        method: &str,
        params: &Value,
        timeout: Duration,
    ) -> Result<Value, Failed> {
        let raw = self.call_raw(method, params, timeout)?;
        serde_json::from_str(raw.get()).map_err(not_json)
    }
}

fn not_json(e: serde_json::Error) -> Failed {
    Failed { miss: Miss::Error, message: e.to_string() }
}

fn in_process(
    context: &Context,
    out: &mut Vec<u8>,
    method: &str,
    params: &Value,
) -> Result<Box<RawValue>, Failed> {
    let request =
        serde_json::json!({"jsonrpc": "2.0", "id": 1, "method": method, "params": params});
    let frame = serde_json::to_vec(&request).map_err(not_json)?;
    out.clear();
    context.set_arrived(Instant::now());
    let limits = context.service.limits();
    answer_frame(METHODS, &frame, limits, out, &mut |method, params, out| {
        context.invoke(method, params, out)
    });
    let answer: Answer = serde_json::from_slice(out).map_err(not_json)?;
    match (answer.result, answer.error) {
        (Some(result), None) => Ok(result),
        (_, Some(e)) => Err(Failed { miss: miss_of(e.code), message: e.message }),
        (None, None) => {
            Err(Failed { miss: Miss::Error, message: "neither a result nor an error".to_owned() })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_of_the_protocol_are_told_apart() {
        let told = [1006, 1007, 1001, -32603].map(miss_of);
        assert_eq!(told, [Miss::Refused, Miss::Deadline, Miss::Error, Miss::Error]);
    }
}
