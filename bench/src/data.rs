//! The texts of a measurement: real ones from a file, or generated ones when none is given.
//!
//! Invariant: the same file or seed gives the same texts; queries are never among the texts that are imported.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;

use flate2::read::GzDecoder;
use rand::seq::IndexedRandom;
use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::Failure;

/// Texts to import, and held-out queries.
pub struct Texts {
    pub memories: Vec<String>,
    pub queries: Vec<String>,
    /// Where they come from, for the report.
    pub source: String,
}

/// Tokens that a query may have, those that open and close a text included: what the promise is made for.
pub const QUERY_TOKENS: std::ops::RangeInclusive<usize> = 5..=32;

/// `memories` texts and `queries` held-out queries, whose length in tokens `tokens` says.
///
/// # Errors
/// If the file cannot be read or has too few lines.
pub fn texts(
    data: Option<&Path>,
    memories: usize,
    queries: usize,
    seed: u64,
    tokens: impl Fn(&str) -> Option<usize>,
) -> Result<Texts, Failure> {
    let (lines, source) = match data {
        Some(path) => (
            read_lines(path)?,
            path.file_name().map_or_else(String::new, |n| n.to_string_lossy().into_owned()),
        ),
        None => (generated(memories + queries * 4, seed), "generated sentences".to_owned()),
    };
    if lines.len() < memories {
        return Err(
            format!("{source} has {} lines, {memories} memories are wanted", lines.len()).into()
        );
    }
    let fits = |l: &&String| tokens(l).is_some_and(|tokens| QUERY_TOKENS.contains(&tokens));
    // Held out: from behind those that are imported.
    let held_out: Vec<String> =
        lines[memories..].iter().filter(fits).take(queries).cloned().collect();
    if held_out.len() < queries {
        return Err(format!(
            "only {} held-out lines of {source} can be queries, {queries} are wanted",
            held_out.len()
        )
        .into());
    }
    let mut memories_lines = lines;
    memories_lines.truncate(memories);
    Ok(Texts { memories: memories_lines, queries: held_out, source })
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
    fn queries_are_held_out_and_repeatable() {
        let a = texts(None, 500, 50, 7, words).unwrap();
        let b = texts(None, 500, 50, 7, words).unwrap();
        assert_eq!(a.memories, b.memories);
        assert_eq!((a.memories.len(), a.queries.len()), (500, 50));
        assert!(a.queries.iter().all(|q| !a.memories.contains(q)));
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
        assert!(texts(Some(&path), 10, 1, 0, words).is_err());
        assert!(texts(Some(&dir.path().join("absent")), 1, 1, 0, words).is_err());
    }
}
