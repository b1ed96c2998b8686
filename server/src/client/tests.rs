//! Framing tests against a socket whose other end the test writes byte by byte.
#![allow(clippy::unwrap_used)]

use serde_json::{Value, json};

use super::*;

const SOON: Duration = Duration::from_secs(5);

/// What a client makes of these pieces, sent one after the other as the answer to its first call.
fn call_with(pieces: &[&[u8]], keep_open: bool, timeout: Duration) -> Result<Value, ClientError> {
    let (near, mut far) = UnixStream::pair().unwrap();
    let pieces: Vec<Vec<u8>> = pieces.iter().map(|piece| piece.to_vec()).collect();
    let other_end = std::thread::spawn(move || {
        let mut request = Vec::new();
        let mut byte = [0];
        while far.read(&mut byte).unwrap() == 1 && byte[0] != b'\n' {
            request.push(byte[0]);
        }
        for piece in pieces {
            far.write_all(&piece).unwrap();
            std::thread::sleep(Duration::from_millis(5));
        }
        (request, keep_open.then_some(far))
    });
    let mut client = Client::over(near, Path::new("/test"));
    let answer = client.call("a.method", json!({"x": "line\nbreak"}), timeout);
    let (request, _far) = other_end.join().unwrap();
    let request: Value = serde_json::from_slice(&request).unwrap();
    assert_eq!(
        request,
        json!({"jsonrpc": "2.0", "id": 1, "method": "a.method", "params": {"x": "line\nbreak"}})
    );
    answer
}

fn check(pieces: &[&[u8]], want: Result<Value, &str>) {
    match (call_with(pieces, false, SOON), want) {
        (Ok(got), Ok(want)) => assert_eq!(got, want),
        (Err(error), Err(want)) => assert!(error.to_string().contains(want), "{error}"),
        (got, want) => panic!("{got:?} instead of {want:?}"),
    }
}

#[test]
fn answers_arrive_in_any_pieces() {
    check(&[b"{\"jsonrpc\":\"2.0\",\"id\":1,\"result\":7}\n"], Ok(json!(7)));
    check(&[b"{\"id\":1,", b"\"result\":[1", b",2]}", b"\n"], Ok(json!([1, 2])));
    check(
        &[b"{\"id\":0,\"result\":\"late\"}\n{\"id\":1,\"result\":null}\n"],
        Err("neither a result"),
    );
    check(
        &[b"{\"id\":0,\"result\":\"late\"}\n{\"id\":1,\"result\":\"mine\"}\n"],
        Ok(json!("mine")),
    );
    let big = "x".repeat(3 << 20);
    let answer = format!("{{\"id\":1,\"result\":\"{big}\"}}\n");
    let pieces: Vec<&[u8]> = answer.as_bytes().chunks(1 << 20).collect();
    check(&pieces, Ok(json!(big)));
}

#[test]
fn what_is_no_answer_is_an_error() {
    check(&[], Err("closed"));
    check(&[b"{\"id\":1,\"resu"], Err("closed"));
    check(&[b"HTTP/1.1 400 Bad Request\r\n"], Err("makes no sense"));
    check(&[b"{\"id\":1}\n"], Err("neither a result nor an error"));
    check(&[b"\xff\n"], Err("makes no sense"));
    check(
        &[b"{\"id\":null,\"error\":{\"code\":-32700,\"message\":\"not JSON\"}}\n"],
        Err("not JSON"),
    );
}

#[test]
fn errors_keep_their_code_and_data() {
    let answer = b"{\"id\":1,\"error\":{\"code\":1006,\"message\":\"busy\",\"data\":{\"retry_after_ms\":40}}}\n";
    match call_with(&[answer], false, SOON) {
        Err(ClientError::Rpc(error)) => {
            assert_eq!((error.code, error.retry_after()), (1006, Some(Duration::from_millis(40))));
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn silence_ends_at_the_timeout() {
    let error = call_with(&[b"{\"id\":1,"], true, Duration::from_millis(50)).unwrap_err();
    assert!(
        matches!(&error, ClientError::Timeout { method, .. } if method == "a.method"),
        "{error:?}"
    );
}

#[test]
fn requests_sent_ahead_are_answered_in_order() {
    let (near, mut far) = UnixStream::pair().unwrap();
    let mut client = Client::over(near, Path::new("/test"));
    let first = client.send("a", ()).unwrap();
    let second = client.send("b", ()).unwrap();
    far.write_all(
        b"{\"id\":1,\"result\":1}\n{\"id\":2,\"error\":{\"code\":1,\"message\":\"no\"}}\n",
    )
    .unwrap();
    let (id, answer) = client.receive(SOON).unwrap();
    assert_eq!((id, answer.unwrap().get()), (first, "1"));
    let (id, answer) = client.receive(SOON).unwrap();
    assert_eq!((id, answer.unwrap_err().code), (second, 1));
}

#[test]
fn paths_that_cannot_be_a_socket_are_named() {
    let long = PathBuf::from(format!("/tmp/{}", "x".repeat(120)));
    let error = Client::connect(&long).unwrap_err().to_string();
    assert!(error.contains("125 bytes") && error.contains("--socket"), "{error}");
    let error = Client::connect(Path::new("/nowhere/s")).unwrap_err();
    assert!(matches!(error, ClientError::NoDaemon { .. }), "{error:?}");
}
