//! What requests a load consists of.
//!
//! Invariant: the same seed gives the same requests; no query and no added text comes twice; what is added or imported goes
//! to a space that is not searched.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};

use crate::Failure;
use crate::space::write_lines;

/// The space that a mix writes to.
pub const ADDS: &str = "adds";
/// Texts of one import of a mix.
const IMPORT_LINES: usize = 50;

/// A method of a mix.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Method {
    Search,
    /// One memory, answered when it is durable or when it can be found.
    Add,
    /// A file of 50 texts, answered when they are durable.
    Import,
}

impl Method {
    const ALL: [Method; 3] = [Method::Search, Method::Add, Method::Import];

    /// On the wire.
    pub fn name(self) -> &'static str {
        match self {
            Method::Search => "memory.search",
            Method::Add => "memory.add",
            Method::Import => "memory.import",
        }
    }

    /// In a mix.
    pub fn short(self) -> &'static str {
        self.name().trim_start_matches("memory.")
    }
}

/// One request.
#[derive(Debug, Clone)]
pub struct Request {
    pub method: Method,
    pub params: Value,
}

/// Shares of methods, such as `search=0.9,add=0.1`.
#[derive(Debug, Clone, PartialEq)]
pub struct Mix(BTreeMap<Method, f64>);

impl Mix {
    /// By short name, for the report.
    pub fn shares(&self) -> BTreeMap<String, f64> {
        self.0.iter().map(|(m, share)| (m.short().to_owned(), *share)).collect()
    }

    /// Whether a method is part of it.
    pub fn has(&self, method: Method) -> bool {
        self.0.get(&method).is_some_and(|share| *share > 0.0)
    }

    fn draw(&self, rng: &mut ChaCha8Rng) -> Method {
        let mut at: f64 = rng.random();
        for (method, share) in &self.0 {
            at -= share;
            if at < 0.0 {
                return *method;
            }
        }
        Method::Search
    }
}

impl FromStr for Mix {
    type Err = String;

    fn from_str(text: &str) -> Result<Mix, String> {
        let mut shares = BTreeMap::new();
        for part in text.split(',') {
            let (name, share) = part.split_once('=').ok_or_else(|| {
                format!("`{part}` is no share; write METHOD=SHARE, such as search=0.9,add=0.1")
            })?;
            let method = Method::ALL.into_iter().find(|m| m.short() == name).ok_or_else(|| {
                format!("`{name}` is none of the methods of a mix: search, add, import")
            })?;
            let share: f64 = share.parse().map_err(|_| format!("`{share}` is no number"))?;
            if !(0.0..=1.0).contains(&share) || shares.insert(method, share).is_some() {
                return Err(format!("`{part}`: shares lie between 0 and 1, one for each method"));
            }
        }
        let sum: f64 = shares.values().sum();
        if (sum - 1.0).abs() > 1e-6 {
            return Err(format!("the shares add up to {sum}, not to 1"));
        }
        if shares.get(&Method::Search).is_none_or(|share| *share <= 0.0) {
            return Err("a mix without searches has no latency to report".to_owned());
        }
        Ok(Mix(shares))
    }
}

/// When an add of a mix is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum AddWait {
    /// When it is on the disk.
    Durable,
    /// When it can be found.
    Searchable,
}

impl AddWait {
    /// On the wire.
    pub fn name(self) -> &'static str {
        match self {
            AddWait::Durable => "durable",
            AddWait::Searchable => "searchable",
        }
    }
}

/// Makes the requests of loads.
pub struct Maker<'a> {
    pub mix: &'a Mix,
    pub spaces: &'a [String],
    pub k: usize,
    pub deadline_ms: Option<u64>,
    pub add_wait: AddWait,
    /// Texts to add, over and over.
    pub texts: &'a [String],
    /// Where files to import are written.
    pub dir: PathBuf,
    /// Texts that were added.
    added: usize,
    files: usize,
    rng: ChaCha8Rng,
}

impl<'a> Maker<'a> {
    /// With requests for `spaces`; each search goes to one of them by chance.
    pub fn new(
        mix: &'a Mix,
        spaces: &'a [String],
        texts: &'a [String],
        dir: &Path,
        seed: u64,
    ) -> Maker<'a> {
        let rng = ChaCha8Rng::seed_from_u64(seed ^ 0x00c0_ffee);
        let dir = dir.to_owned();
        let (k, deadline_ms, add_wait) = (10, None, AddWait::Durable);
        Maker { mix, spaces, k, deadline_ms, add_wait, texts, dir, added: 0, files: 0, rng }
    }

    /// `count` requests; `query` gives the next query.
    ///
    /// # Errors
    /// What `query` says; if a file cannot be written.
    pub fn make(
        &mut self,
        count: usize,
        mut query: impl FnMut() -> Result<String, Failure>,
    ) -> Result<Vec<Request>, Failure> {
        let mut out = Vec::with_capacity(count);
        for _ in 0..count {
            let method = self.mix.draw(&mut self.rng);
            let params = match method {
                Method::Search => self.search(&query()?),
                Method::Add => {
                    let items = json!([{"text": self.text()}]);
                    json!({"space": ADDS, "items": items, "wait": self.add_wait.name()})
                }
                Method::Import => self.import()?,
            };
            out.push(Request { method, params });
        }
        Ok(out)
    }

    fn search(&mut self, query: &str) -> Value {
        let space = &self.spaces[self.rng.random_range(0..self.spaces.len())];
        let mut params = json!({"space": space, "query": query, "k": self.k, "mode": "dense"});
        if let Some(ms) = self.deadline_ms {
            params["deadline_ms"] = ms.into();
        }
        params
    }

    /// A number makes a text new again.
    fn text(&mut self) -> String {
        self.added += 1;
        let at = self.added - 1;
        format!("{} {}", self.texts[at % self.texts.len()], at)
    }

    fn import(&mut self) -> Result<Value, Failure> {
        let lines: Vec<String> = (0..IMPORT_LINES).map(|_| self.text()).collect();
        self.files += 1;
        let path = self.dir.join(format!("mix-{}.txt", self.files));
        write_lines(&path, lines.into_iter())?;
        Ok(json!({"space": ADDS, "format": "text", "path": path}))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_mix_is_read_and_drawn_as_written() {
        let mix: Mix = "search=0.7,add=0.2,import=0.1".parse().unwrap();
        let spaces = ["a".to_owned(), "b".to_owned()];
        let texts = ["t".to_owned()];
        let dir = tempfile::tempdir().unwrap();
        let mut maker = Maker::new(&mix, &spaces, &texts, dir.path(), 3);
        let made = maker.make(2000, || Ok("q".to_owned())).unwrap();
        let count = |m| made.iter().filter(|r| r.method == m).count();
        assert!(count(Method::Search).abs_diff(1400) < 100, "{}", count(Method::Search));
        assert!(count(Method::Add).abs_diff(400) < 80, "{}", count(Method::Add));
        let to_a = made.iter().filter(|r| r.params["space"] == "a").count();
        assert!(to_a.abs_diff(count(Method::Search) / 2) < 100);
        let added: std::collections::HashSet<&str> =
            made.iter().filter_map(|r| r.params["items"][0]["text"].as_str()).collect();
        assert_eq!(added.len(), count(Method::Add));
    }

    #[test]
    fn what_is_no_mix_is_refused_by_its_fault() {
        for (text, part) in [
            ("search", "no share"),
            ("search=0.5", "add up to 0.5"),
            ("search=0.5,get=0.5", "none of the methods"),
            ("search=x", "no number"),
            ("search=0.5,search=0.5", "one for each"),
            ("add=1", "without searches"),
        ] {
            let error = text.parse::<Mix>().unwrap_err();
            assert!(error.contains(part), "{text}: {error}");
        }
    }
}
