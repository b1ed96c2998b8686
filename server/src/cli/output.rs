//! What is printed: results on stdout, everything else on stderr.
//!
//! Keeps: with `--json` stdout holds one JSON document and nothing else; text of memories cannot move the cursor or
//! colour the terminal. Must not know any command.

use std::io::{self, Write};

use anstyle::{AnsiColor, Style};
use serde::Serialize;
use serde_json::Value;

use super::args::{ColorArg, Global};

/// For names and numbers that lead a line.
pub const STRONG: Style = Style::new().bold();
/// For what is there but rarely read.
pub const FAINT: Style = Style::new().dimmed();
/// For what is well.
pub const GOOD: Style = AnsiColor::Green.on_default();
/// For what needs attention.
pub const WARN: Style = AnsiColor::Yellow.on_default();
/// For what is wrong.
pub const BAD: Style = AnsiColor::Red.on_default().bold();

/// Where a command prints.
#[derive(Debug, Clone, Copy)]
pub struct Output {
    /// One JSON document is wanted.
    pub json: bool,
}

impl Output {
    /// Sets colours for the whole process.
    pub fn new(global: &Global) -> Self {
        let choice = match global.color {
            ColorArg::Auto => anstream::ColorChoice::Auto,
            ColorArg::Always => anstream::ColorChoice::Always,
            ColorArg::Never => anstream::ColorChoice::Never,
        };
        choice.write_global();
        Output { json: global.json }
    }

    /// Prints the JSON document, or what `for_people` writes.
    pub fn print(
        self,
        document: &impl Serialize,
        for_people: impl FnOnce(&mut dyn Write) -> io::Result<()>,
    ) -> io::Result<()> {
        if self.json {
            return self.document(document);
        }
        let mut out = anstream::stdout().lock();
        for_people(&mut out)?;
        out.flush()
    }

    /// Prints the JSON document.
    pub fn document(self, document: &impl Serialize) -> io::Result<()> {
        let mut out = io::stdout().lock();
        serde_json::to_writer(&mut out, document)?;
        out.write_all(b"\n")?;
        out.flush()
    }

    /// Says something to the person, on stderr. A closed stderr is nobody's problem.
    pub fn note(self, text: impl std::fmt::Display) {
        let _ = writeln!(anstream::stderr(), "{text}");
    }
}

/// A text without control characters, so that a memory cannot drive the terminal.
pub fn safe(text: &str) -> String {
    text.chars()
        .map(|c| match c {
            '\n' | '\t' => c,
            c if c.is_control() || is_bidi_override(c) => '\u{fffd}',
            c => c,
        })
        .collect()
}

/// Characters that reorder what follows them, and so can make a line read as something else.
fn is_bidi_override(c: char) -> bool {
    matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// A text on one line of at most `width` characters.
pub fn one_line(text: &str, width: usize) -> String {
    let line = safe(text).split_whitespace().collect::<Vec<_>>().join(" ");
    if line.chars().count() <= width {
        return line;
    }
    let mut cut: String = line.chars().take(width.saturating_sub(1)).collect();
    cut.push('…');
    cut
}

/// A time as people read it, in UTC.
pub fn time(ms: i64) -> String {
    jiff::Timestamp::from_millisecond(ms)
        .map_or_else(|_| ms.to_string(), |time| time.strftime("%Y-%m-%d %H:%M:%S").to_string())
}

/// Microseconds as people read them.
pub fn micros(us: u64) -> String {
    match us {
        0..1_000 => format!("{us} µs"),
        1_000..1_000_000 => format!("{:.2} ms", us as f64 / 1e3),
        _ => format!("{:.2} s", us as f64 / 1e6),
    }
}

/// A table for people: as wide as the terminal, without a limit where there is none.
pub fn table(header: &[&str], rows: Vec<Vec<String>>) -> String {
    let mut table = comfy_table::Table::new();
    table
        .load_style(comfy_table::presets::NOTHING)
        .set_content_arrangement(comfy_table::ContentArrangement::Dynamic)
        .set_header(header.to_vec());
    for row in rows {
        table.add_row(row);
    }
    table.trim_fmt()
}

/// A report of the service as `name  value` lines; inner objects become `outer.inner`.
pub fn report(value: &Value) -> Vec<(String, String)> {
    let mut lines = Vec::new();
    flatten("", value, &mut lines);
    lines
}

fn flatten(name: &str, value: &Value, lines: &mut Vec<(String, String)>) {
    let inner = |key: &str| match name {
        "" => key.to_owned(),
        name => format!("{name}.{key}"),
    };
    match value {
        Value::Object(object) if !object.is_empty() => {
            for (key, value) in object {
                flatten(&inner(key), value, lines);
            }
        }
        Value::Array(list) if list.iter().any(|value| value.is_object() || value.is_array()) => {
            for (index, value) in list.iter().enumerate() {
                flatten(&inner(&index.to_string()), value, lines);
            }
        }
        Value::Array(list) => {
            let words: Vec<String> = list.iter().map(word).collect();
            lines.push((name.to_owned(), words.join(", ")));
        }
        value => lines.push((name.to_owned(), word(value))),
    }
}

fn word(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => safe(text),
        value => value.to_string(),
    }
}

/// Writes a report.
pub fn write_report(out: &mut dyn Write, value: &Value) -> io::Result<()> {
    let lines = report(value);
    let width = lines.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    for (name, value) in lines {
        writeln!(out, "{FAINT}{name:width$}{FAINT:#}  {value}")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn text_cannot_drive_the_terminal() {
        assert_eq!(
            safe("a\x1b[31mb\r\x07\n\tc\u{202e}d"),
            "a\u{fffd}[31mb\u{fffd}\u{fffd}\n\tc\u{fffd}d"
        );
        assert_eq!(one_line("  a\n b\t c ", 10), "a b c");
        assert_eq!(one_line("日本の首都は東京です", 5), "日本の首…");
    }

    #[test]
    fn numbers_and_times_for_people() {
        assert_eq!(micros(999), "999 µs");
        assert_eq!(micros(2_500), "2.50 ms");
        assert_eq!(micros(3_000_000), "3.00 s");
        assert_eq!(time(1_714_979_289_000), "2024-05-06 07:08:09");
        assert_eq!(time(i64::MAX), i64::MAX.to_string());
    }

    #[test]
    fn reports_are_flattened() {
        let value = json!({"a": {"b": 1, "c": null}, "d": ["x", 2], "e": [{"f": true}], "g": {}});
        let got = report(&value);
        let got: Vec<(&str, &str)> =
            got.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        assert_eq!(
            got,
            [("a.b", "1"), ("a.c", "-"), ("d", "x, 2"), ("e.0.f", "true"), ("g", "{}")]
        );
    }
}
