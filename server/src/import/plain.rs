//! Plain text, one memory a line. The id is a hash of the line. Knows nothing of sessions, roles or times.

use super::ids::IdMaker;
use super::source::Parser;
use super::{Entry, Item, SkipReason};

#[derive(Default)]
pub(super) struct Plain {
    ids: IdMaker,
}

impl Parser for Plain {
    fn record(&mut self, record: &str, out: &mut Vec<Entry>) {
        let text = record.trim();
        if text.is_empty() {
            out.push(Entry::Skip(SkipReason::Empty));
            return;
        }
        out.push(Entry::Item(Item {
            id: self.ids.id(&["text", text]),
            text: text.to_owned(),
            role: None,
            session: None,
            ts_ms: None,
            meta: None,
        }));
    }
}
