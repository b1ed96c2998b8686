//! A plain JSON-RPC client over a Unix socket, with a limit on every wait.
//!
//! Invariant: every answer read through `call` is checked to be one well-formed JSON-RPC 2.0 response to the request
//! that was sent. It must not repair or retry anything: what the service sends is what the test sees.

use std::io::{self, BufRead, BufReader, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

/// The longest a test waits for one answer.
pub const ANSWER_LIMIT: Duration = Duration::from_secs(60);

/// The error member of an answer.
#[derive(Debug, Clone)]
pub struct RpcError {
    pub code: i64,
    pub message: String,
    /// `null` where the error has none.
    pub data: Value,
}

impl RpcError {
    /// Codes of the service's own lie outside the range JSON-RPC reserves.
    pub fn is_own(&self) -> bool {
        !(-32768..=-32000).contains(&self.code)
    }

    /// Fails the test unless the code is one of the service's own.
    #[track_caller]
    pub fn assert_own(&self) -> &Self {
        assert!(self.is_own(), "expected a code outside -32768..=-32000: {self:?}");
        self
    }

    /// Fails the test unless this is `invalid params` and its message names `field`.
    #[track_caller]
    pub fn assert_invalid(&self, field: &str) -> &Self {
        assert_eq!(self.code, -32602, "expected invalid params: {self:?}");
        assert!(self.message.contains(field), "the message must name `{field}`: {self:?}");
        self
    }
}

/// One connection.
pub struct Conn {
    writer: UnixStream,
    reader: BufReader<UnixStream>,
    next_id: u64,
}

impl Conn {
    /// Connects, or says why not.
    pub fn try_open(socket: &Path) -> io::Result<Self> {
        let writer = UnixStream::connect(socket)?;
        writer.set_read_timeout(Some(ANSWER_LIMIT))?;
        writer.set_write_timeout(Some(ANSWER_LIMIT))?;
        let reader = BufReader::new(writer.try_clone()?);
        Ok(Self { writer, reader, next_id: 0 })
    }

    /// Sets how long reads and writes may take.
    pub fn limit(&self, wait: Duration) {
        self.writer.set_read_timeout(Some(wait)).unwrap();
        self.writer.set_write_timeout(Some(wait)).unwrap();
    }

    /// Says that nothing more will be sent, and goes on reading.
    pub fn half_close(&self) -> io::Result<()> {
        self.writer.shutdown(Shutdown::Write)
    }

    /// Sends bytes as they are.
    pub fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.writer.write_all(bytes)
    }

    /// Sends one line and the line end.
    #[track_caller]
    pub fn send_line(&mut self, line: &str) {
        self.send(format!("{line}\n").as_bytes()).expect("the service takes the frame");
    }

    /// Reads one whole line; the end of the stream is an error, also in the middle of a line.
    pub fn try_line(&mut self) -> io::Result<String> {
        let mut line = String::new();
        self.reader.read_line(&mut line)?;
        if !line.ends_with('\n') {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "the service closed the connection",
            ));
        }
        Ok(line)
    }

    /// Reads one line as JSON.
    #[track_caller]
    pub fn recv(&mut self) -> Value {
        let line = match self.try_line() {
            Ok(line) => line,
            Err(e) => panic!("no answer: {e}"),
        };
        parse(&line)
    }

    /// Fails the test if the service says anything within `wait`.
    #[track_caller]
    pub fn expect_silence(&mut self, wait: Duration) {
        self.limit(wait);
        if let Ok(line) = self.try_line() {
            panic!("nothing was to be answered, came: {}", clip(&line));
        }
        self.limit(ANSWER_LIMIT);
    }

    /// Sends one line and reads one.
    #[track_caller]
    pub fn exchange(&mut self, line: &str) -> Value {
        self.send_line(line);
        self.recv()
    }

    /// Sends a request without waiting for its answer; returns its id.
    pub fn post(&mut self, method: &str, params: &Value) -> io::Result<u64> {
        self.next_id += 1;
        let request =
            json!({"jsonrpc": "2.0", "id": self.next_id, "method": method, "params": params});
        self.send(format!("{request}\n").as_bytes())?;
        Ok(self.next_id)
    }

    /// Sends a request and returns the raw answer line.
    pub fn try_raw(&mut self, method: &str, params: &Value) -> io::Result<String> {
        self.post(method, params)?;
        self.try_line()
    }

    /// One request and its answer; transport trouble is returned, a malformed answer fails the test.
    #[track_caller]
    pub fn try_call(
        &mut self,
        method: &str,
        params: &Value,
    ) -> io::Result<Result<Value, RpcError>> {
        let line = self.try_raw(method, params)?;
        let answer = parse(&line);
        assert_eq!(
            answer["id"],
            json!(self.next_id),
            "the answer belongs to another request: {}",
            clip(&line)
        );
        Ok(outcome(&answer))
    }

    /// One request and its answer.
    #[track_caller]
    pub fn call(&mut self, method: &str, params: &Value) -> Result<Value, RpcError> {
        match self.try_call(method, params) {
            Ok(outcome) => outcome,
            Err(e) => panic!("{method} {}: {e}", clip(&params.to_string())),
        }
    }

    /// One request that must succeed.
    #[track_caller]
    pub fn ok(&mut self, method: &str, params: Value) -> Value {
        match self.call(method, &params) {
            Ok(result) => result,
            Err(e) => panic!("{method} {} must succeed: {e:?}", clip(&params.to_string())),
        }
    }

    /// One request that must fail.
    #[track_caller]
    pub fn err(&mut self, method: &str, params: Value) -> RpcError {
        match self.call(method, &params) {
            Err(e) => e,
            Ok(r) => panic!(
                "{method} {} must fail, answered {}",
                clip(&params.to_string()),
                clip(&r.to_string())
            ),
        }
    }
}

/// An answer line as JSON; a line that is none fails the test.
#[track_caller]
pub fn parse(line: &str) -> Value {
    match serde_json::from_str(line) {
        Ok(value) => value,
        Err(e) => panic!("not JSON ({e}): {}", clip(line)),
    }
}

/// Checks that a response is well formed and splits it.
#[track_caller]
pub fn outcome(answer: &Value) -> Result<Value, RpcError> {
    let text = || clip(&answer.to_string());
    assert_eq!(answer["jsonrpc"], "2.0", "{}", text());
    let members =
        answer.as_object().unwrap_or_else(|| panic!("an answer is an object: {}", text()));
    assert!(members.contains_key("id"), "an answer has an id: {}", text());
    let (result, error) = (members.get("result"), members.get("error"));
    assert!(result.is_some() != error.is_some(), "exactly one of result and error: {}", text());
    let Some(error) = error else {
        return Ok(result.unwrap().clone());
    };
    let code =
        error["code"].as_i64().unwrap_or_else(|| panic!("an error code is an integer: {}", text()));
    let message =
        error["message"].as_str().unwrap_or_else(|| panic!("an error has a message: {}", text()));
    assert!(message.len() > 10, "an error message says something: {}", text());
    Err(RpcError { code, message: message.to_owned(), data: error["data"].clone() })
}

/// The start of a long text, for messages.
pub fn clip(text: &str) -> String {
    let short: String = text.chars().take(400).collect();
    if short.len() < text.len() { format!("{short}… ({} bytes)", text.len()) } else { short }
}
