//! Text to windows of token ids.
//!
//! Invariants: every token of a text is in at least one window; no window is longer than the model's limit, special
//! tokens included; one call costs time linear in the text. It must not know sessions.

use std::borrow::Cow;

use tokenizers::{Encoding, PostProcessor, Token, Tokenizer};

use super::EmbedError;
use crate::model::ModelSpec;

/// Neighbouring windows share this part of a window, so that a thought cut by one is whole in the next.
const OVERLAP_DIVISOR: usize = 8;
/// A text longer than the model's window is cut into windows of this part of it. A vector of a whole window says too
/// little of any one sentence: of 11 places of one sentence in a text of 3,300 tokens, MiniLM ranked none above an
/// unrelated note with windows of 254 tokens, 10 with 127 and all 11 with 64.
const SPLIT_DIVISOR: usize = 4;
/// Longer texts are tokenised in pieces of this many bytes, cut at white space: it bounds memory, and tokenizers
/// whose models are worse than linear in a piece stay fast.
const PIECE_BYTES: usize = 16 * 1024;

/// The ids of one window, special tokens included.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tokens {
    pub(super) ids: Vec<u32>,
}

impl Tokens {
    /// How many ids there are.
    pub fn len(&self) -> usize {
        self.ids.len()
    }

    /// Whether there are none; a window from an [`Embedder`](super::Embedder) always has some.
    pub fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }

    /// The ids, special tokens included.
    pub fn ids(&self) -> &[u32] {
        &self.ids
    }
}

/// A model's tokenizer with its limit.
pub struct Splitter {
    tokenizer: Tokenizer,
    max_tokens: usize,
    special: usize,
    lower_case: bool,
}

impl Splitter {
    /// Loads the tokenizer of `spec`.
    ///
    /// # Errors
    /// The file is no tokenizer, or its special tokens leave no room.
    pub fn open(spec: &ModelSpec) -> Result<Self, EmbedError> {
        let fail = |what: String| EmbedError::Tokenizer { path: spec.tokenizer.clone(), what };
        let mut tokenizer =
            Tokenizer::from_file(&spec.tokenizer).map_err(|error| fail(error.to_string()))?;
        // Files carry limits of their own (MiniLM's says 128); windows are cut here, where nothing is lost.
        tokenizer.with_truncation(None).map_err(|error| fail(error.to_string()))?;
        tokenizer.with_padding(None);
        let special = tokenizer.get_post_processor().map_or(0, |post| post.added_tokens(false));
        if spec.max_tokens <= special {
            return Err(fail(format!(
                "a window of {} tokens leaves no room for text",
                spec.max_tokens
            )));
        }
        Ok(Self { tokenizer, max_tokens: spec.max_tokens, special, lower_case: spec.lower_case })
    }

    /// The windows of `prefix` + `text`. The prefix opens every window.
    ///
    /// # Errors
    /// The text is empty or white space, or the tokenizer fails.
    pub fn windows(&self, prefix: &str, text: &str) -> Result<Vec<Tokens>, EmbedError> {
        if text.trim().is_empty() {
            return Err(EmbedError::EmptyText);
        }
        let text = self.cased(text);
        let limit = self.max_tokens - self.special;
        if text.len() <= PIECE_BYTES {
            // The common case, and the only one that joins prefix and text as the model was trained to see them.
            let whole = self.encode(&format!("{}{text}", self.cased(prefix)))?;
            if whole.get_ids().len() <= limit {
                return Ok(vec![self.window(whole.get_ids())?]);
            }
        }
        let prefix_ids = match prefix.is_empty() {
            true => Vec::new(),
            false => self.encode(&self.cased(prefix))?.get_ids().to_vec(),
        };
        let mut ids = Vec::new();
        for piece in pieces(&text, PIECE_BYTES) {
            ids.extend_from_slice(self.encode(piece)?.get_ids());
        }
        // A prefix must leave room for a part of the text; where it would not, the text matters more.
        let prefix_ids =
            if prefix_ids.len() + limit / SPLIT_DIVISOR > limit { &[][..] } else { &prefix_ids };
        spans(ids.len(), (limit / SPLIT_DIVISOR).max(1))
            .into_iter()
            .map(|(from, to)| self.window(&[prefix_ids, &ids[from..to]].concat()))
            .collect()
    }

    fn cased<'t>(&self, text: &'t str) -> Cow<'t, str> {
        match self.lower_case {
            true => text.to_lowercase().into(),
            false => text.into(),
        }
    }

    fn encode(&self, text: &str) -> Result<Encoding, EmbedError> {
        self.tokenizer.encode_fast(text, false).map_err(EmbedError::run)
    }

    /// Adds the special tokens as the tokenizer's own post-processor does.
    fn window(&self, ids: &[u32]) -> Result<Tokens, EmbedError> {
        let tokens = ids.iter().map(|&id| Token::new(id, String::new(), (0, 0))).collect();
        let bare = Encoding::from_tokens(tokens, 0);
        let whole = self.tokenizer.post_process(bare, None, true).map_err(EmbedError::run)?;
        let ids = whole.get_ids().to_vec();
        if ids.is_empty() {
            return Err(EmbedError::EmptyText);
        }
        Ok(Tokens { ids })
    }
}

/// The ranges of windows of `limit` over `total` items: each overlaps the one before, the last ends at `total`.
fn spans(total: usize, limit: usize) -> Vec<(usize, usize)> {
    let step = (limit - limit / OVERLAP_DIVISOR).max(1);
    let mut spans = Vec::new();
    let mut from = 0;
    loop {
        let to = (from + limit).min(total);
        spans.push((from, to));
        if to == total {
            return spans;
        }
        from += step;
    }
}

/// `text` in pieces of about `size` bytes, cut before white space where there is some, else between characters.
fn pieces(text: &str, size: usize) -> impl Iterator<Item = &str> {
    let mut rest = text;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        if rest.len() <= size {
            return Some(std::mem::take(&mut rest));
        }
        let end = rest.floor_char_boundary(size);
        let cut = rest[..end].rfind(char::is_whitespace).filter(|&at| at > 0).unwrap_or(end);
        let (piece, after) = rest.split_at(cut);
        rest = after;
        Some(piece)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_cover_everything_and_overlap() {
        for total in [1, 7, 8, 9, 100, 1000] {
            for limit in [1, 2, 8, 254] {
                let spans = spans(total, limit);
                assert_eq!(spans[0].0, 0);
                assert_eq!(spans[spans.len() - 1].1, total);
                for pair in spans.windows(2) {
                    assert!(pair[1].0 <= pair[0].1, "a gap at {limit} of {total}: {pair:?}");
                    assert!(pair[1].0 > pair[0].0 && pair[1].1 > pair[0].1, "{pair:?}");
                    assert_eq!(pair[0].1 - pair[1].0, limit / 8, "{limit} of {total}: {pair:?}");
                }
                assert!(spans.iter().all(|(from, to)| to - from <= limit));
            }
        }
    }

    #[test]
    fn pieces_join_to_the_text_and_cut_no_word() {
        let text = "zwölf Boxkämpfer jagen Viktor ".repeat(50);
        let cut: Vec<&str> = pieces(&text, 64).collect();
        assert_eq!(cut.concat(), text);
        assert!(cut.iter().all(|piece| piece.len() <= 64));
        assert!(cut[1..].iter().all(|piece| piece.starts_with(' ')));
        let solid = "ü".repeat(100);
        assert_eq!(pieces(&solid, 33).collect::<String>(), solid);
    }
}
