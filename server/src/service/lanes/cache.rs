//! The vectors of the latest queries, so that a query asked again, or by several at once, is not embedded again.
//!
//! Invariant: what is found is, bit for bit, what embedding would give: a process has one model, and a text's vector
//! depends on nothing else. A space finds only what was asked in it: a quick answer must not tell what others ask. Who
//! waits for another's embedding is woken however that ends. It must not know sessions.

use flashbulb_engine::SpaceName;
use lru::LruCache;
use parking_lot::{Condvar, Mutex};
use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Instant;

/// Queries that are kept, the latest used of all spaces: about 4 MiB with the default model.
const ENTRIES: NonZeroUsize = NonZeroUsize::new(2048).expect("not zero");

/// Queries longer than this are not kept.
pub const TEXT_BYTES: usize = 512;

/// The cache; connection threads share it.
pub struct QueryCache {
    state: Mutex<State>,
}

/// By space and text, with a byte between them that no space's name has.
struct State {
    kept: LruCache<String, Vec<f32>>,
    under_way: HashMap<String, Arc<UnderWay>>,
}

/// A query that somebody is embedding.
#[derive(Default)]
struct UnderWay {
    /// Set once: the vector, or nothing where embedding it failed.
    outcome: Mutex<Option<Option<Vec<f32>>>>,
    ended: Condvar,
}

/// What there is of a query.
pub enum Asked<'c> {
    /// Its vector.
    Kept(Vec<f32>),
    /// Nothing: the caller embeds it, and others may wait for that.
    First(Embedding<'c>),
    /// Another was embedding it when the deadline came.
    Late,
}

/// The duty to embed a query; dropped without a result, it lets another try.
pub struct Embedding<'c> {
    cache: &'c QueryCache,
    /// Absent where the query is too long to be kept.
    key: Option<String>,
}

impl Default for QueryCache {
    fn default() -> Self {
        let state = State { kept: LruCache::new(ENTRIES), under_way: HashMap::new() };
        Self { state: Mutex::new(state) }
    }
}

impl QueryCache {
    /// Looks for a query that was asked in this space before, or is being embedded at this moment.
    pub fn ask(&self, space: &SpaceName, text: &str, deadline: Instant) -> Asked<'_> {
        let Some(key) = key(space, text) else {
            return Asked::First(Embedding { cache: self, key: None });
        };
        loop {
            let under_way = {
                let mut state = self.state.lock();
                if let Some(vector) = state.kept.get(&key) {
                    return Asked::Kept(vector.clone());
                }
                match state.under_way.get(&key) {
                    Some(under_way) => Arc::clone(under_way),
                    None => {
                        state.under_way.insert(key.clone(), Arc::default());
                        return Asked::First(Embedding { cache: self, key: Some(key) });
                    }
                }
            };
            let mut outcome = under_way.outcome.lock();
            while outcome.is_none() {
                if under_way.ended.wait_until(&mut outcome, deadline).timed_out() {
                    return Asked::Late;
                }
            }
            if let Some(Some(vector)) = &*outcome {
                return Asked::Kept(vector.clone());
            }
            // It failed for whoever had it; now one of those who waited tries.
        }
    }

    /// Queries that are kept now.
    #[must_use]
    pub fn kept(&self) -> usize {
        self.state.lock().kept.len()
    }

    /// Most queries that are kept.
    #[must_use]
    pub fn limit(&self) -> usize {
        ENTRIES.get()
    }

    fn end(&self, key: &str, vector: Option<Vec<f32>>) {
        let mut replaced = None;
        let under_way = {
            let mut state = self.state.lock();
            if let Some(vector) = &vector {
                replaced = state.kept.push(key.to_owned(), vector.clone());
            }
            state.under_way.remove(key)
        };
        // Freed outside of the lock.
        drop(replaced);
        if let Some(under_way) = under_way {
            *under_way.outcome.lock() = Some(vector);
            under_way.ended.notify_all();
        }
    }
}

impl Embedding<'_> {
    /// Keeps the vectors of the query, if it is one short window, and gives them to who waits.
    pub fn done(mut self, vectors: &[Vec<f32>]) {
        if let [vector] = vectors
            && let Some(key) = self.key.take()
        {
            self.cache.end(&key, Some(vector.clone()));
        }
    }
}

impl Drop for Embedding<'_> {
    fn drop(&mut self) {
        if let Some(key) = &self.key {
            self.cache.end(key, None);
        }
    }
}

fn key(space: &SpaceName, text: &str) -> Option<String> {
    (text.len() <= TEXT_BYTES).then(|| format!("{}\0{text}", space.as_str()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    fn space(name: &str) -> SpaceName {
        SpaceName::parse(name).unwrap()
    }

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(10)
    }

    fn find(cache: &QueryCache, space: &SpaceName, text: &str) -> Option<Vec<f32>> {
        match cache.ask(space, text, soon()) {
            Asked::Kept(vector) => Some(vector),
            Asked::First(_) | Asked::Late => None,
        }
    }

    fn keep(cache: &QueryCache, space: &SpaceName, text: &str, vectors: &[Vec<f32>]) {
        match cache.ask(space, text, soon()) {
            Asked::First(embedding) => embedding.done(vectors),
            Asked::Kept(_) | Asked::Late => panic!("it was there already"),
        }
    }

    #[test]
    fn a_query_is_found_in_its_own_space_only() {
        let cache = QueryCache::default();
        let [one, other] = [space("one"), space("other")];
        assert_eq!(find(&cache, &one, "food"), None);
        keep(&cache, &one, "food", &[vec![1.0, 0.0]]);
        assert_eq!(find(&cache, &one, "food"), Some(vec![1.0, 0.0]));
        assert_eq!((find(&cache, &other, "food"), find(&cache, &one, "food ")), (None, None));
    }

    #[test]
    fn long_queries_are_not_kept_and_the_oldest_go_first() {
        let cache = QueryCache::default();
        let me = space("me");
        let edge = "x".repeat(TEXT_BYTES);
        keep(&cache, &me, &edge, &[vec![1.0]]);
        keep(&cache, &me, &format!("{edge}x"), &[vec![1.0]]);
        keep(&cache, &me, "two windows", &[vec![1.0], vec![2.0]]);
        assert_eq!(cache.kept(), 1);
        for i in 0..ENTRIES.get() {
            assert!(find(&cache, &me, &edge).is_some(), "used just now, so not the oldest");
            keep(&cache, &me, &i.to_string(), &[vec![i as f32]]);
        }
        assert_eq!((cache.kept(), find(&cache, &me, "0")), (ENTRIES.get(), None));
        assert_eq!(find(&cache, &me, "1"), Some(vec![1.0]));
    }

    #[test]
    fn several_who_ask_at_once_wait_for_one_and_try_themselves_where_it_fails() {
        let cache = QueryCache::default();
        let me = space("me");
        for fails in [false, true] {
            let text = format!("fails: {fails}");
            let Asked::First(first) = cache.ask(&me, &text, soon()) else {
                panic!("nobody asked before");
            };
            let at_once = Instant::now() + Duration::from_millis(20);
            assert!(matches!(cache.ask(&me, &text, at_once), Asked::Late));
            let embedded = AtomicUsize::new(0);
            std::thread::scope(|scope| {
                for _ in 0..4 {
                    scope.spawn(|| match cache.ask(&me, &text, soon()) {
                        Asked::Kept(vector) => assert_eq!(vector, [1.0]),
                        Asked::First(again) => {
                            embedded.fetch_add(1, Ordering::Relaxed);
                            again.done(&[vec![1.0]]);
                        }
                        Asked::Late => panic!("woken too late"),
                    });
                }
                std::thread::sleep(Duration::from_millis(20));
                if fails {
                    drop(first);
                } else {
                    first.done(&[vec![1.0]]);
                }
            });
            assert_eq!(embedded.into_inner(), usize::from(fails));
            assert!(cache.state.lock().under_way.is_empty());
        }
    }
}
