//! The socket's bytes: framing, JSON-RPC, parameters and their checks, against naive ones (see `wire`).
#![no_main]

use flashbulb_fuzz::{raw_or_choices, wire};
use libfuzzer_sys::fuzz_target;

/// What requests are made of, so that choices get past the outer layers. A choice beyond the last is the byte itself.
const PIECES: &[&str] = &[
    "{",
    "}",
    "[",
    "]",
    ",",
    ":",
    "\n",
    "null",
    "true",
    "1",
    "-1.5e3",
    "\"a\"",
    "\"\"",
    "\"\\ud83d\\ude00\"",
    "{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":",
    "{\"jsonrpc\":\"2.0\",\"method\":",
    ",\"params\":{",
    "}}",
    ",\"params\":",
    "\"jsonrpc\":\"2.0\"",
    "\"id\":",
    "\"method\":",
    "\"params\":",
    "\"memory.add\"",
    "\"memory.search\"",
    "\"memory.get\"",
    "\"memory.list\"",
    "\"memory.update\"",
    "\"memory.delete\"",
    "\"memory.import\"",
    "\"space.list\"",
    "\"space.drop\"",
    "\"admin.metrics\"",
    "\"admin.snapshot\"",
    "\"rpc.discover\"",
    "\"no.such\"",
    "\"space\":\"s\"",
    "\"items\":[{\"text\":\"t\"",
    "\"id\":\"i\"",
    "\"ts\":\"2024-05-06T07:08:09Z\"",
    "\"ts\":1",
    "\"meta\":{\"a\":[{\"b\":1}]}",
    "\"meta\":",
    "\"vector\":[1,0.5]",
    "\"query\":\"q\"",
    "\"k\":3",
    "\"filter\":{\"role\":{\"eq\":\"user\"}}",
    "\"filter\":{\"not\":",
    "\"time\":{\"from\":1,\"to\":2}",
    "\"ids\":[\"a\"]",
    "\"patch\":{\"role\":null}",
    "\"limit\":5",
    "\"cursor\":\"5\"",
    "\"deadline_ms\":7",
    "\"min_seq\":1",
    "\"path\":\"/tmp/x\"",
    "\"format\":\"json\"",
    "\"on_conflict\":\"skip\"",
    "\"wait\":\"searchable\"",
    "\"idempotency_key\":\"k\"",
    "\"admin.sync\"",
    "\"neighbors\":{\"before\":1}",
    "[[[[[[[[[[[[[[[[",
    "]]]]]]]]]]]]]]]]",
    "{\"a\":{\"a\":{\"a\":{\"a\":{\"a\":{\"a\":",
    "1}}}}}}",
];

fuzz_target!(|input: &[u8]| {
    let Some((raw, rest)) = raw_or_choices(input) else { return };
    // How reads cut the stream, and how long a frame may be.
    let Some((head, rest)) = rest.split_first_chunk::<4>() else { return };
    if raw {
        return wire::check(rest, head, limit(rest, head));
    }
    let mut bytes = Vec::new();
    for choice in rest {
        match PIECES.get(usize::from(*choice)) {
            Some(piece) => bytes.extend_from_slice(piece.as_bytes()),
            None => bytes.push(*choice),
        }
    }
    wire::check(&bytes, head, limit(&bytes, head));
});

/// A power of two, or about the length of one of the lines.
fn limit(bytes: &[u8], head: &[u8; 4]) -> usize {
    if head[0] % 2 == 0 {
        return 1 << (head[0] % 13 + 3);
    }
    let line = bytes.split(|b| *b == b'\n').nth(usize::from(head[1] % 4)).map_or(0, <[u8]>::len);
    (line + usize::from(head[2] % 3)).saturating_sub(1)
}
