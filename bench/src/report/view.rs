//! What a report consists of, and its two forms.
//!
//! Invariant: both forms show the same tables and texts; what comes from outside is escaped. Must not know what the
//! figures mean.

use minijinja::syntax::SyntaxConfig;
use minijinja::value::Serde;
use minijinja::{AutoEscape, Environment, context};
use serde::Serialize;

use crate::Failure;

/// A cell of a table.
#[derive(Debug, Clone, Serialize)]
pub struct Cell {
    pub text: String,
    /// A figure of a row that does not count.
    pub void: bool,
}

impl Cell {
    /// A word or a number that stands by itself.
    pub fn plain(text: impl Into<String>) -> Cell {
        Cell { text: text.into(), void: false }
    }

    /// A figure of a row; a dash is none.
    pub fn figure(text: impl Into<String>, void: bool) -> Cell {
        let text = text.into();
        Cell { void: void && text != "–", text }
    }
}

/// A table.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Table {
    pub head: Vec<String>,
    pub rows: Vec<Vec<Cell>>,
}

impl Table {
    /// With these columns.
    pub fn new(head: &[&str]) -> Table {
        Table { head: head.iter().map(|h| (*h).to_owned()).collect(), rows: Vec::new() }
    }
}

/// A picture.
#[derive(Debug, Clone, Serialize)]
pub struct Picture {
    /// What it shows, for those who cannot see it too.
    pub title: String,
    pub svg: String,
}

/// A part of a report.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Section {
    pub title: String,
    /// 2 or 3.
    pub level: u8,
    pub texts: Vec<String>,
    /// Commands and the like, kept as they are.
    pub code: Vec<String>,
    pub tables: Vec<Table>,
    pub pictures: Vec<Picture>,
}

/// All of it.
#[derive(Debug, Clone, Serialize)]
pub struct Page {
    pub title: String,
    pub lead: Vec<String>,
    pub sections: Vec<Section>,
}

/// As one HTML page.
///
/// # Errors
/// If the template fails.
pub fn html(page: &Page) -> Result<String, Failure> {
    render("report.html", include_str!("report.html.j2"), page)
}

/// As Markdown, without the pictures.
///
/// # Errors
/// If the template fails.
pub fn markdown(page: &Page) -> Result<String, Failure> {
    render("report.md", include_str!("report.md.j2"), page)
}

fn render(name: &str, template: &str, page: &Page) -> Result<String, Failure> {
    let mut env = Environment::new();
    env.set_syntax(SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?);
    env.set_auto_escape_callback(|name| match name {
        "report.html" => AutoEscape::Html,
        _ => AutoEscape::None,
    });
    env.add_filter("md", escape_markdown);
    env.add_template(name, template)?;
    Ok(env.get_template(name)?.render(context! { page => Serde(page) })?)
}

/// Keeps a text on one line of a table and free of markup.
fn escape_markdown(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\n' | '\r' => out.push(' '),
            '|' | '<' | '`' | '*' | '_' | '[' | ']' | '\\' => out.extend(['\\', c]),
            _ => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn both_forms_escape_and_mark_what_is_void() {
        let mut table = Table::new(&["row", "p99, ms"]);
        table.rows.push(vec![Cell::plain("a|<b>"), Cell::figure("9.13", true)]);
        table.rows.push(vec![Cell::plain("c"), Cell::figure("8.20", false)]);
        let section = Section {
            title: "S & T".into(),
            level: 2,
            texts: vec!["<script>alert(1)</script>".into()],
            code: vec!["bench --data 'a b'".into()],
            tables: vec![table],
            pictures: vec![Picture {
                title: "a <curve>".into(),
                svg: "<svg id=\"x\"></svg>".into(),
            }],
        };
        let page = Page { title: "A report".into(), lead: vec![], sections: vec![section] };
        let html = html(&page).unwrap();
        assert!(html.contains("S &amp; T") && html.contains("&lt;script&gt;"), "{html}");
        assert!(!html.contains("<script") && html.contains("<svg id=\"x\"></svg>"), "{html}");
        assert!(html.contains("9.13 <b>void</b>") && !html.contains("8.20 <b>void"), "{html}");
        let markdown = markdown(&page).unwrap();
        assert!(markdown.contains("| a\\|\\<b> | 9.13 **void** |"), "{markdown}");
        assert!(markdown.contains("| c | 8.20 |") && !markdown.contains("<svg"), "{markdown}");
    }
}
