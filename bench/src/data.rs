//! The texts of a measurement: real ones from a file, or generated ones when none is given.
//!
//! Invariant: the same file or seed gives the same texts; queries are never among the texts that are imported, and no query
//! is given out twice. What is made up is counted.

use std::collections::HashSet;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;

use flashbulb::provision::{hex, sha256};
use flate2::read::GzDecoder;
use rand::seq::IndexedRandom;
use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use sha2::{Digest, Sha256};

use crate::Failure;

/// Tokens that a query may have, those that open and close a text included: what the promise is made for.
pub const QUERY_TOKENS: std::ops::RangeInclusive<usize> = 5..=32;
/// Lines that are kept for queries where the memories would take all.
const HELD_OUT: usize = 20_000;
/// Tries at making one new query.
const TRIES: usize = 1_000;

/// Lines to import, and held-out ones.
pub struct Corpus {
    lines: Vec<String>,
    /// Lines that are imported; those behind are held out.
    base: usize,
    /// Memories there are to be.
    memories: usize,
    /// Where they come from, for the report.
    pub source: String,
    /// Of the file, or of the generated lines.
    pub sha256: String,
}

impl Corpus {
    /// Lines for `memories` memories, and others for queries.
    ///
    /// # Errors
    /// If the file cannot be read or is empty.
    pub fn read(data: Option<&Path>, memories: usize, seed: u64) -> Result<Corpus, Failure> {
        Corpus::read_keeping(data, memories, seed, HELD_OUT)
    }

    /// As [`Corpus::read`], with so many lines kept for queries where the memories would take all.
    ///
    /// # Errors
    /// As with [`Corpus::read`].
    pub fn read_keeping(
        data: Option<&Path>,
        memories: usize,
        seed: u64,
        held_out: usize,
    ) -> Result<Corpus, Failure> {
        let (lines, source, sha256) = match data {
            Some(path) => {
                let lines = read_lines(path)?;
                let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
                (lines, name, sha256(path)?.0)
            }
            None => {
                let lines = generated(memories + held_out, seed);
                let sum = hex(&Sha256::digest(lines.join("\n").as_bytes()));
                (lines, format!("generated sentences, seed {seed}"), sum)
            }
        };
        if lines.len() < 20 {
            return Err(format!("{source} has {} lines, that is too few", lines.len()).into());
        }
        let kept = held_out.min(lines.len() / 10);
        let base = memories.min(lines.len() - kept);
        Ok(Corpus { lines, base, memories, source, sha256 })
    }

    /// How many memories there are to be.
    pub fn len(&self) -> usize {
        self.memories
    }

    /// Memories that are lines of the data.
    pub fn real(&self) -> usize {
        self.base
    }

    /// The lines that are imported as they are.
    pub fn base(&self) -> &[String] {
        &self.lines[..self.base]
    }

    /// The lines that are not.
    pub fn held_out(&self) -> &[String] {
        &self.lines[self.base..]
    }

    /// All lines.
    pub fn lines(&self) -> usize {
        self.lines.len()
    }

    /// The text of a memory: a line, or a line with a number behind it where there are no more.
    pub fn text(&self, memory: usize) -> String {
        let line = &self.lines[memory % self.base];
        match memory / self.base {
            0 => line.clone(),
            round => format!("{line} {round}"),
        }
    }
}

/// Gives out queries, none twice: the held-out lines that fit, then halves of two of them joined.
pub struct Queries<'a, T> {
    fitting: Vec<&'a str>,
    given: HashSet<String>,
    next: usize,
    rng: ChaCha8Rng,
    tokens: T,
    pub real: usize,
    pub made: usize,
}

impl<'a, T: Fn(&str) -> Option<usize>> Queries<'a, T> {
    /// Of held-out lines; `tokens` says how many a text has.
    ///
    /// # Errors
    /// If none of them can be a query.
    pub fn new(held_out: &'a [String], seed: u64, tokens: T) -> Result<Self, Failure> {
        let fitting: Vec<&str> =
            held_out.iter().map(String::as_str).filter(|l| fits(&tokens, l)).collect();
        if fitting.is_empty() {
            let n = held_out.len();
            return Err(format!("none of {n} held-out lines has {QUERY_TOKENS:?} tokens").into());
        }
        let rng = ChaCha8Rng::seed_from_u64(seed ^ 0x5eed);
        Ok(Queries { fitting, given: HashSet::new(), next: 0, rng, tokens, real: 0, made: 0 })
    }

    /// The next `count` queries.
    ///
    /// # Errors
    /// If no more new ones can be made.
    pub fn take(&mut self, count: usize) -> Result<Vec<String>, Failure> {
        (0..count).map(|_| self.one()).collect()
    }

    fn one(&mut self) -> Result<String, Failure> {
        while let Some(line) = self.fitting.get(self.next) {
            self.next += 1;
            if self.given.insert((*line).to_owned()) {
                self.real += 1;
                return Ok((*line).to_owned());
            }
        }
        for _ in 0..TRIES {
            let pick = |rng: &mut ChaCha8Rng| self.fitting.choose(rng).copied().unwrap_or_default();
            let (first, second) = (pick(&mut self.rng), pick(&mut self.rng));
            let query = halves(first, second);
            if fits(&self.tokens, &query) && self.given.insert(query.clone()) {
                self.made += 1;
                return Ok(query);
            }
        }
        let given = self.given.len();
        Err(format!("after {given} queries no new one can be made of the held-out lines").into())
    }
}

fn fits(tokens: &impl Fn(&str) -> Option<usize>, line: &str) -> bool {
    tokens(line).is_some_and(|n| QUERY_TOKENS.contains(&n))
}

/// The first half of one text's words and the second of another's.
fn halves(first: &str, second: &str) -> String {
    let first: Vec<&str> = first.split_whitespace().collect();
    let second: Vec<&str> = second.split_whitespace().collect();
    let words = first[..first.len().div_ceil(2)].iter().chain(&second[second.len() / 2..]);
    words.copied().collect::<Vec<_>>().join(" ")
}

fn read_lines(path: &Path) -> Result<Vec<String>, Failure> {
    let file = File::open(path).map_err(|e| format!("cannot open {}: {e}", path.display()))?;
    let plain: Box<dyn Read> = if path.extension().is_some_and(|e| e == "gz") {
        Box::new(GzDecoder::new(file))
    } else {
        Box::new(file)
    };
    let lines: Result<Vec<String>, _> = BufReader::new(plain).lines().collect();
    Ok(lines?.into_iter().filter(|l| !l.trim().is_empty()).collect())
}

const WHO: &[&str] = &[
    "Maria",
    "the customer",
    "our supplier",
    "the night shift",
    "her brother",
    "the new intern",
    "the auditor",
    "Tom",
    "a visitor",
    "the landlord",
];
const DID: &[&str] = &[
    "asked about",
    "complained about",
    "finally repaired",
    "forgot",
    "photographed",
    "cancelled",
    "is looking for",
    "recommended",
    "wrote down",
    "wants to move",
];
const WHAT: &[&str] = &[
    "the flight to Lisbon",
    "a table by the window",
    "the broken pump",
    "last month's invoice",
    "a vegan menu",
    "the blue folder",
    "two tickets for Friday",
    "the garden gate",
    "the backup job",
    "an apartment near the station",
];
const WHEN: &[&str] = &[
    "before breakfast",
    "on Tuesday",
    "after the meeting",
    "last winter",
    "in the rain",
    "at half past nine",
    "without telling anyone",
    "for the second time",
    "during the outage",
    "because of the children",
];

fn generated(count: usize, seed: u64) -> Vec<String> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let pick =
        |rng: &mut ChaCha8Rng, from: &[&'static str]| from.choose(rng).copied().unwrap_or_default();
    (0..count)
        .map(|_| {
            let number = rng.random_range(1..100_000);
            format!(
                "{} {} {} {}, note {number}",
                pick(&mut rng, WHO),
                pick(&mut rng, DID),
                pick(&mut rng, WHAT),
                pick(&mut rng, WHEN)
            )
        })
        .collect()
}

/// The gaps of a Poisson process with `rate` arrivals a second, in seconds.
pub fn poisson_gaps(rate: f64, seed: u64) -> impl Iterator<Item = f64> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    std::iter::from_fn(move || {
        let uniform = (rng.next_u64() >> 11) as f64 / (1u64 << 53) as f64;
        Some(-(1.0 - uniform).ln() / rate)
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn words(text: &str) -> Option<usize> {
        Some(text.split_whitespace().count())
    }

    #[test]
    fn queries_are_held_out_repeatable_and_never_given_twice() {
        let corpus = Corpus::read(None, 500, 7).unwrap();
        let again = Corpus::read(None, 500, 7).unwrap();
        assert_eq!((corpus.len(), corpus.real(), &corpus.sha256), (500, 500, &again.sha256));
        let few = &corpus.held_out()[..20];
        let given = |n| Queries::new(few, 1, words).unwrap().take(n);
        let queries = given(200).unwrap();
        assert_eq!(queries, given(200).unwrap());
        let distinct: HashSet<&String> = queries.iter().collect();
        assert_eq!(distinct.len(), 200);
        let memories: HashSet<String> = (0..corpus.len()).map(|i| corpus.text(i)).collect();
        assert!(queries.iter().all(|q| !memories.contains(q)));
        let mut counted = Queries::new(few, 1, words).unwrap();
        counted.take(30).unwrap();
        assert_eq!((counted.real, counted.made), (20, 10));
        assert!(given(100_000).unwrap_err().to_string().contains("no new one can be made"));
    }

    #[test]
    fn more_memories_than_lines_are_lines_with_a_number() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lines.txt");
        let lines: Vec<String> = (0..100).map(|i| format!("line {i} of a small file")).collect();
        std::fs::write(&path, lines.join("\n")).unwrap();
        let corpus = Corpus::read(Some(&path), 200, 1).unwrap();
        assert_eq!((corpus.real(), corpus.held_out().len()), (90, 10));
        assert_eq!(corpus.text(89), lines[89]);
        assert_eq!(corpus.text(91), format!("{} 1", lines[1]));
        let all: HashSet<String> = (0..200).map(|i| corpus.text(i)).collect();
        assert_eq!(all.len(), 200);
        assert!(corpus.held_out().iter().all(|l| !all.contains(l)));
    }

    #[test]
    fn arrivals_have_the_rate_and_spread_of_a_poisson_process() {
        let gaps: Vec<f64> = poisson_gaps(50.0, 3).take(50_000).collect();
        let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
        let var = gaps.iter().map(|g| (g - mean).powi(2)).sum::<f64>() / gaps.len() as f64;
        assert!((mean - 0.02).abs() < 0.0005, "mean {mean}");
        // An exponential distribution has a standard deviation equal to its mean.
        assert!((var.sqrt() / mean - 1.0).abs() < 0.03, "spread {}", var.sqrt() / mean);
    }

    #[test]
    fn a_file_with_too_few_lines_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("few.txt");
        std::fs::write(&path, "one two three four five\n").unwrap();
        assert!(Corpus::read(Some(&path), 10, 0).is_err());
        assert!(Corpus::read(Some(&dir.path().join("absent")), 1, 0).is_err());
        assert!(Queries::new(&["short".to_owned()], 0, words).is_err());
    }
}
