//! How deeply a JSON text nests, without parsing it.
//!
//! Invariant: constant memory, whatever the depth. The text need not be JSON; then the answer means nothing.

/// Levels of nesting of a valid JSON text, without recursion.
#[must_use]
pub fn depth(json: &[u8]) -> usize {
    let (mut depth, mut deepest, mut in_string, mut escaped) = (0usize, 0, false, false);
    for &byte in json {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => in_string = !in_string,
            b'{' | b'[' if !in_string => {
                depth += 1;
                deepest = deepest.max(depth);
            }
            b'}' | b']' if !in_string => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    deepest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn depth_ignores_brackets_in_strings() {
        for (json, want) in [
            ("{}", 1),
            (r#"{"a":"[[[[","b":[1]}"#, 2),
            (r#"{"a":"\"[[","b":{"c":[[]]}}"#, 4),
            (r#"{"a\\":[]}"#, 2),
        ] {
            assert_eq!(depth(json.as_bytes()), want, "{json}");
        }
    }
}
