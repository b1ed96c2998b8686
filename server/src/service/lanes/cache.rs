//! The vectors of the latest queries, so that a query asked again is not embedded again.
//!
//! Invariant: what is found is, bit for bit, what embedding would give: a process has one model, and a text's vector
//! depends on nothing else. A space finds only what was asked in it: a quick answer must not tell what others ask. It
//! must not know sessions.

use flashbulb_engine::SpaceName;
use lru::LruCache;
use parking_lot::Mutex;
use std::num::NonZeroUsize;

/// Queries that are kept, the latest used of all spaces: about 4 MiB with the default model.
const ENTRIES: NonZeroUsize = NonZeroUsize::new(2048).expect("not zero");

/// Queries longer than this are not kept.
pub const TEXT_BYTES: usize = 512;

/// The cache; connection threads share it.
pub struct QueryCache {
    /// By space and text, with a byte between them that no space's name has.
    entries: Mutex<LruCache<String, Vec<f32>>>,
}

impl Default for QueryCache {
    fn default() -> Self {
        Self { entries: Mutex::new(LruCache::new(ENTRIES)) }
    }
}

impl QueryCache {
    /// The vector of a query that was asked in this space before.
    #[must_use]
    pub fn find(&self, space: &SpaceName, text: &str) -> Option<Vec<f32>> {
        let key = key(space, text)?;
        self.entries.lock().get(&key).cloned()
    }

    /// Keeps the vectors of a query, if it is one short window.
    pub fn keep(&self, space: &SpaceName, text: &str, vectors: &[Vec<f32>]) {
        if let ([vector], Some(key)) = (vectors, key(space, text)) {
            let replaced = self.entries.lock().push(key, vector.clone());
            // Freed outside of the lock.
            drop(replaced);
        }
    }

    /// Most queries that are kept.
    #[must_use]
    pub fn limit(&self) -> usize {
        ENTRIES.get()
    }

    /// Queries that are kept now.
    #[must_use]
    pub fn kept(&self) -> usize {
        self.entries.lock().len()
    }
}

fn key(space: &SpaceName, text: &str) -> Option<String> {
    (text.len() <= TEXT_BYTES).then(|| format!("{}\0{text}", space.as_str()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn space(name: &str) -> SpaceName {
        SpaceName::parse(name).unwrap()
    }

    #[test]
    fn a_query_is_found_in_its_own_space_only() {
        let cache = QueryCache::default();
        let [one, other] = [space("one"), space("other")];
        assert_eq!(cache.find(&one, "food"), None);
        cache.keep(&one, "food", &[vec![1.0, 0.0]]);
        assert_eq!(cache.find(&one, "food"), Some(vec![1.0, 0.0]));
        assert_eq!((cache.find(&other, "food"), cache.find(&one, "food ")), (None, None));
    }

    #[test]
    fn long_queries_are_not_kept_and_the_oldest_go_first() {
        let cache = QueryCache::default();
        let me = space("me");
        let edge = "x".repeat(TEXT_BYTES);
        cache.keep(&me, &edge, &[vec![1.0]]);
        cache.keep(&me, &format!("{edge}x"), &[vec![1.0]]);
        cache.keep(&me, "two windows", &[vec![1.0], vec![2.0]]);
        assert_eq!(cache.kept(), 1);
        for i in 0..ENTRIES.get() {
            assert!(cache.find(&me, &edge).is_some(), "used just now, so not the oldest");
            cache.keep(&me, &i.to_string(), &[vec![i as f32]]);
        }
        assert_eq!((cache.kept(), cache.find(&me, "0")), (ENTRIES.get(), None));
        assert_eq!(cache.find(&me, "1"), Some(vec![1.0]));
    }
}
