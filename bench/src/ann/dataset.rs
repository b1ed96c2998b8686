//! What is searched: vectors, queries that are not among them, and the true neighbours of each.
//!
//! Invariant: vectors are of unit length, so that inner product and cosine are one; the truth is computed by brute force in f64,
//! and neighbours of equal score are equally right. Must not know indexes.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use flashbulb::provision::hex;
use flashbulb_engine::Seq;
use sha2::{Digest, Sha256};

use super::files;
use super::worker::{Converted, Request, Worker};
use crate::data::Corpus;
use crate::recall::{self, Rows};
use crate::vectors::Vectors;
use crate::{Common, Failure, bare};

/// Of a vector of unit length, a length this far from 1 is still that.
const UNIT: f64 = 1e-3;
/// Neighbours that came with the data and that brute force must find too.
const LEAST_AGREEMENT: f64 = 0.999;

/// Options that say what is searched.
#[derive(Debug, clap::Args)]
pub struct Source {
    #[command(flatten)]
    pub common: Common,
    /// Vectors to search, as .npy or .fvecs with --query-vectors, or a file of ann-benchmarks (.hdf5) that has both; the texts of
    /// --data are embedded if left out
    #[arg(long)]
    base: Option<PathBuf>,
    /// The queries' vectors, as .npy or .fvecs
    #[arg(long, requires = "base")]
    query_vectors: Option<PathBuf>,
    /// True neighbours that came with the vectors, as .ivecs; brute force must find the same
    #[arg(long, requires = "base")]
    truth: Option<PathBuf>,
    /// With texts: keep their vectors in this file, and use those that are there
    #[arg(long, conflicts_with = "base")]
    vectors_cache: Option<PathBuf>,
    /// At most so many vectors
    #[arg(long, default_value_t = 236_000)]
    vectors: usize,
    /// At most so many queries
    #[arg(long, default_value_t = 1_000)]
    queries: usize,
    /// Neighbours asked for
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub k: u16,
    /// The interpreter that makes the environment of what is written in Python
    #[arg(long, default_value = "python3")]
    pub python: PathBuf,
    /// Keep the Python environment in this folder, and use the one that is there; one in the user's cache if left out
    #[arg(long)]
    pub env: Option<PathBuf>,
}

impl Source {
    /// Whether the vectors are in a file that Python takes apart.
    pub fn needs_python(&self) -> bool {
        self.base.as_deref().is_some_and(is_hdf5)
    }
}

fn is_hdf5(base: &Path) -> bool {
    matches!(files::ending(base), "hdf5" | "h5")
}

/// Vectors, queries and the truth about them.
pub struct Dataset {
    /// For the report.
    pub source: String,
    /// Of all vectors and queries.
    pub sha256: String,
    /// Whether the data's vectors were brought to unit length here.
    pub normalised: bool,
    pub dim: usize,
    pub base: Vec<f32>,
    pub queries: Vec<f32>,
    truth: Vec<HashSet<Seq>>,
}

impl Dataset {
    /// Reads the vectors, or embeds texts, and finds the true neighbours.
    ///
    /// # Errors
    /// What the files, the model or the options say.
    pub fn read(wanted: &Source, python: &Path, folder: &Path) -> Result<Dataset, Failure> {
        let (source, dim, mut base, mut queries) = match &wanted.base {
            Some(base) => from_files(wanted, base, python, folder)?,
            None => from_texts(wanted)?,
        };
        base.truncate(wanted.vectors.saturating_mul(dim).min(base.len()));
        queries.truncate(wanted.queries.saturating_mul(dim).min(queries.len()));
        let data = Dataset::new((source, dim, base, queries), wanted.k)?;
        if let Some(path) = &wanted.truth {
            check(path, &data.truth, wanted.k.into())?;
        }
        Ok(data)
    }

    /// Of vectors and queries as they are, with the true neighbours found.
    ///
    /// # Errors
    /// If there are too few.
    pub fn new((source, dim, mut base, mut queries): Read, k: u16) -> Result<Dataset, Failure> {
        if base.len() / dim <= usize::from(k) || queries.is_empty() {
            return Err(format!(
                "{source} has {} vectors and {} queries; --k {k} needs more vectors, and at least one query",
                base.len() / dim,
                queries.len() / dim,
            )
            .into());
        }
        // Both, whatever comes of the first.
        let normalised = normalise(&mut base, dim) | normalise(&mut queries, dim);
        let mut sum = Sha256::new();
        base.iter().chain(&queries).for_each(|v| sum.update(v.to_le_bytes()));
        let owners = (0..base.len() / dim).map(|at| Seq(at as u64)).collect();
        let rows = Rows::new(dim, base, owners);
        let asked: Vec<Vec<f32>> = queries.chunks_exact(dim).map(<[f32]>::to_vec).collect();
        eprintln!("finding the true neighbours of {} queries", asked.len());
        let truth = rows.nearest(&asked, k.into());
        let base = rows.into_values();
        Ok(Dataset { source, sha256: hex(&sum.finalize()), normalised, dim, base, queries, truth })
    }

    /// Vectors that are searched.
    pub fn len(&self) -> usize {
        self.base.len() / self.dim
    }

    /// Queries.
    pub fn asked(&self) -> usize {
        self.truth.len()
    }

    /// The mean part of the true `k` that is among what was found, `k` numbers a query.
    pub fn recall(&self, found: &[u32], k: usize) -> f64 {
        let (mut hits, mut of) = (0, 0);
        for (truth, found) in self.truth.iter().zip(found.chunks_exact(k)) {
            // One that is named twice counts once.
            let found: HashSet<u32> = found.iter().copied().collect();
            let (right, possible) =
                recall::right(truth, found.into_iter().map(|no| Seq(no.into())), k);
            hits += right;
            of += possible;
        }
        hits as f64 / of.max(1) as f64
    }
}

/// Where they come from, components of a vector, vectors, and queries.
pub type Read = (String, usize, Vec<f32>, Vec<f32>);

fn from_files(wanted: &Source, base: &Path, python: &Path, folder: &Path) -> Result<Read, Failure> {
    let source = base.file_name().unwrap_or_default().to_string_lossy().into_owned();
    if is_hdf5(base) {
        let mut worker = Worker::peer("convert", python, folder)?;
        let request = Request::Convert { file: base.to_owned(), into: folder.to_owned() };
        let Converted { distance, dim } = worker.ask(&request)?;
        match distance.as_deref() {
            Some("angular" | "ip" | "cosine" | "normalized") => {}
            other => {
                let other = other.unwrap_or("no distance");
                return Err(
                    format!("{source} is for {other}; indexes are compared by the cosine").into()
                );
            }
        }
        let rows = |name| files::raw(&folder.join(name), dim);
        return Ok((source, dim, rows("train")?, rows("test")?));
    }
    let queries = wanted.query_vectors.as_deref();
    let queries =
        queries.ok_or("--base needs --query-vectors, or is a file of ann-benchmarks (.hdf5)")?;
    let (base, queries) = (files::read(base)?, files::read(queries)?);
    if base.dim != queries.dim {
        return Err(format!("vectors have {} components, queries {}", base.dim, queries.dim).into());
    }
    Ok((source, base.dim, base.values, queries.values))
}

/// Lines of the data and their vectors; of a long line the first window alone.
fn from_texts(wanted: &Source) -> Result<Read, Failure> {
    let common = &wanted.common;
    let corpus =
        Corpus::read_keeping(common.data.as_deref(), wanted.vectors, common.seed, wanted.queries)?;
    let lines: Vec<String> = corpus
        .base()
        .iter()
        .chain(corpus.held_out())
        .take(corpus.real() + wanted.queries)
        .cloned()
        .collect();
    let embedder = bare::embedder(common.precision)?;
    let scratch = tempfile::tempdir()?;
    let path: PathBuf =
        wanted.vectors_cache.clone().unwrap_or_else(|| scratch.path().join("vectors"));
    let vectors = Vectors::ensure(&path, &lines, &corpus.sha256, &embedder)?;
    let first = |line: usize| vectors.of(line).into_iter().next().unwrap_or_default();
    let base: Vec<f32> = (0..corpus.real()).flat_map(first).collect();
    let queries: Vec<f32> = (corpus.real()..lines.len()).flat_map(first).collect();
    let source = format!("{}, embedded by {}", corpus.source, embedder.fingerprint());
    Ok((source, embedder.dim(), base, queries))
}

/// Brings rows to unit length; whether any was not. A row of zeros stays one.
pub fn normalise(rows: &mut [f32], dim: usize) -> bool {
    let mut changed = false;
    for row in rows.chunks_exact_mut(dim) {
        let norm = row.iter().map(|v| f64::from(*v) * f64::from(*v)).sum::<f64>().sqrt();
        if norm > 0.0 && (norm - 1.0).abs() > UNIT {
            row.iter_mut().for_each(|v| *v = (f64::from(*v) / norm) as f32);
            changed = true;
        }
    }
    changed
}

/// Holds brute force against the neighbours that came with the data.
fn check(path: &Path, truth: &[HashSet<Seq>], k: usize) -> Result<(), Failure> {
    let (each, given) = files::neighbours(path)?;
    if each < k {
        return Err(format!("{} has {each} neighbours a query, --k is {k}", path.display()).into());
    }
    let (mut same, mut of) = (0, 0);
    for (truth, given) in truth.iter().zip(given.chunks_exact(each)) {
        same += given[..k].iter().filter(|no| truth.contains(&Seq(u64::from(**no)))).count();
        of += k;
    }
    let agreement = same as f64 / of.max(1) as f64;
    if agreement < LEAST_AGREEMENT {
        let shown = path.display();
        return Err(format!("brute force finds {agreement:.4} of the neighbours in {shown}: they are of other vectors, or of another distance").into());
    }
    eprintln!("brute force finds {agreement:.5} of the neighbours that came with the data");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dataset(truth: &[&[u64]]) -> Dataset {
        let truth = truth.iter().map(|t| t.iter().map(|no| Seq(*no)).collect()).collect();
        let (source, sha256) = (String::new(), String::new());
        Dataset { source, sha256, normalised: false, dim: 1, base: vec![], queries: vec![], truth }
    }

    #[test]
    fn recall_counts_each_true_neighbour_once() {
        let data = dataset(&[&[1, 2], &[3, 4]]);
        assert!((data.recall(&[1, 2, 4, 3], 2) - 1.0).abs() < 1e-9);
        assert!((data.recall(&[1, 1, 3, 9], 2) - 0.5).abs() < 1e-9);
        assert!(data.recall(&[u32::MAX; 4], 2).abs() < 1e-9);
    }

    #[test]
    fn rows_come_to_unit_length_and_zeros_stay() {
        let mut rows = [3.0, 4.0, 0.0, 0.0, 1.0, 0.0];
        assert!(normalise(&mut rows, 2));
        assert_eq!(rows, [0.6, 0.8, 0.0, 0.0, 1.0, 0.0]);
        assert!(!normalise(&mut rows, 2));
    }
}
