//! A table of text, for a terminal and for Markdown.
//!
//! Invariant: every row has as many cells as the head; nothing is cut. Must not know what the cells mean.

/// A table of text.
pub struct Table {
    pub head: Vec<&'static str>,
    pub rows: Vec<Vec<String>>,
}

impl Table {
    /// Columns that line up.
    pub fn plain(&self) -> String {
        plain(&self.head, &self.rows)
    }

    /// As a fragment of Markdown.
    pub fn markdown(&self) -> String {
        let line = |cells: &mut dyn Iterator<Item = &str>| {
            format!("| {} |\n", cells.collect::<Vec<_>>().join(" | "))
        };
        let mut out = line(&mut self.head.iter().copied());
        out += &line(&mut self.head.iter().map(|_| "---"));
        for row in &self.rows {
            out += &line(&mut row.iter().map(String::as_str));
        }
        out
    }
}

/// Columns that line up; every row has as many cells as the head.
pub fn plain(head: &[&str], rows: &[Vec<String>]) -> String {
    let width = |c: usize| {
        let cells = rows.iter().map(|r| r[c].chars().count());
        cells.chain([head[c].chars().count()]).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..head.len()).map(width).collect();
    let line = |cells: &mut dyn Iterator<Item = &str>| {
        let padded: Vec<String> = cells.zip(&widths).map(|(c, w)| format!("{c:<w$}")).collect();
        format!("{}\n", padded.join("  ").trim_end())
    };
    let mut out = line(&mut head.iter().copied());
    for row in rows {
        out += &line(&mut row.iter().map(String::as_str));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_line_up_and_keep_every_cell() {
        let rows =
            vec![vec!["a–b".to_owned(), "1".to_owned()], vec!["c".to_owned(), String::new()]];
        let table = Table { head: vec!["x", "long head"], rows };
        assert_eq!(table.plain(), "x    long head\na–b  1\nc\n");
        assert_eq!(table.markdown(), "| x | long head |\n| --- | --- |\n| a–b | 1 |\n| c |  |\n");
    }
}
