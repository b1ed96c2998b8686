//! The store that a run searches: made, or found and checked.
//!
//! Invariant: a store is used only if its marker names exactly what is wanted; the marker is written last, so an interrupted
//! fill is never taken for a whole one.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use flashbulb::embed::Embedder;
use flashbulb_engine::{NewMemory, OnConflict, SpaceName, Store, StoreOptions};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, Normal};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::Failure;
use crate::daemon::{Daemon, Start};
use crate::data::Corpus;
use crate::run::Fill;
use crate::space;
use crate::vectors::Vectors;

/// The file that says what a store holds.
const MARKER: &str = "flashbulb-bench-store.json";
/// Memories of one write.
const BATCH: usize = 1_000;
/// Directions that generated vectors lie around.
const CENTRES: usize = 4_096;

/// What a store is to hold.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Wanted {
    /// In each space.
    pub memories: usize,
    pub spaces: usize,
    pub data_sha256: String,
    pub model: String,
    /// `import`, `vectors` or `generated`.
    pub way: String,
    /// Of the vectors of made-up memories or of generated vectors, and the seed they are made with.
    pub noise: Option<(f64, u64)>,
}

/// Where the store is.
pub struct Place {
    /// The store itself, as `serve` takes it.
    pub store: PathBuf,
    marker: PathBuf,
    /// Removed with the run, if nobody named a folder.
    _own: Option<tempfile::TempDir>,
}

impl Place {
    /// In `dir`, or in a folder of its own.
    ///
    /// # Errors
    /// If the folder cannot be made.
    pub fn new(dir: Option<&Path>) -> Result<Place, Failure> {
        let own = if dir.is_none() { Some(tempfile::tempdir()?) } else { None };
        let root = dir.or(own.as_ref().map(|d| d.path())).ok_or("no folder")?.to_owned();
        std::fs::create_dir_all(&root)
            .map_err(|e| format!("cannot make {}: {e}", root.display()))?;
        Ok(Place { store: root.join("store"), marker: root.join(MARKER), _own: own })
    }

    /// Whether the wanted store is there.
    ///
    /// # Errors
    /// If another one is, or half of one.
    pub fn holds(&self, wanted: &Wanted) -> Result<bool, Failure> {
        if !self.marker.exists() {
            if self.store.exists() {
                return Err(format!(
                    "{} has no marker beside it, its filling was interrupted or it is not of this program; remove it or name another folder with --store",
                    self.store.display()
                )
                .into());
            }
            return Ok(false);
        }
        let found: Wanted = serde_json::from_slice(&std::fs::read(&self.marker)?)
            .map_err(|e| format!("{} is damaged: {e}", self.marker.display()))?;
        if found != *wanted {
            return Err(format!(
                "{} holds another store; name another folder with --store\n  it has {found:?}\n  wanted {wanted:?}",
                self.marker.display()
            )
            .into());
        }
        Ok(true)
    }

    fn mark(&self, wanted: &Wanted) -> Result<(), Failure> {
        Ok(std::fs::write(&self.marker, serde_json::to_vec_pretty(wanted)?)?)
    }
}

/// The names of the spaces that are searched.
pub fn space_names(spaces: usize) -> Vec<String> {
    match spaces {
        1 => vec!["bench".to_owned()],
        n => (0..n).map(|i| format!("bench-{i:04}")).collect(),
    }
}

/// The store, found or filled through the daemon.
///
/// # Errors
/// What the daemon or the store say.
pub fn through_daemon(
    place: &Place,
    wanted: &Wanted,
    corpus: &Corpus,
    program: &Path,
    arguments: &[String],
) -> Result<Fill, Failure> {
    let mut fill = Fill { way: wanted.way.clone(), ..Fill::default() };
    fill.reused = place.holds(wanted)?;
    if fill.reused {
        return Ok(fill);
    }
    let first = ("admin.status", &json!({}));
    let daemon = Daemon::launch(&Start { program, store: &place.store, arguments, first })?;
    let mut caller = daemon.caller()?;
    let (mut seconds, mut indexed) = (0.0, 0.0);
    for (s, name) in space_names(wanted.spaces).iter().enumerate() {
        let texts = (0..wanted.memories).map(|i| corpus.text(s * wanted.memories + i));
        let filled = space::fill(&mut caller, name, daemon.scratch(), texts)?;
        seconds += filled.seconds;
        indexed += filled.indexed_after_s;
    }
    (fill.seconds, fill.indexed_after_s) = (Some(seconds), Some(indexed));
    drop(caller);
    daemon.stop()?;
    place.mark(wanted)?;
    Ok(fill)
}

/// The store, found or filled with vectors from a file, which is made first if need be.
///
/// # Errors
/// What the store or the model say.
pub fn with_vectors(
    place: &Place,
    wanted: &Wanted,
    corpus: &Corpus,
    embedder: &Embedder,
    cache: &Path,
) -> Result<Fill, Failure> {
    if place.holds(wanted)? {
        return Ok(Fill { way: wanted.way.clone(), reused: true, ..Fill::default() });
    }
    let vectors = Vectors::ensure(cache, corpus.base(), &corpus.sha256, embedder)?;
    let (sigma, seed) = wanted.noise.unwrap_or_default();
    let mut noise = Noise { by: Normal::new(0.0, sigma)?, rng: ChaCha8Rng::seed_from_u64(seed) };
    filled(place, wanted, corpus, (embedder.dim(), &embedder.fingerprint()), |memory| {
        let mut row = vectors.of(memory % corpus.real());
        if memory >= corpus.real() {
            noise.blur(&mut row);
        }
        row
    })
}

/// The store, found or filled with what `vectors` gives for each memory, in their order.
fn filled(
    place: &Place,
    wanted: &Wanted,
    corpus: &Corpus,
    (dim, fingerprint): (usize, &str),
    mut vectors: impl FnMut(usize) -> Vec<Vec<f32>>,
) -> Result<Fill, Failure> {
    let mut fill = Fill { way: wanted.way.clone(), ..Fill::default() };
    fill.reused = place.holds(wanted)?;
    if fill.reused {
        return Ok(fill);
    }
    private_dir(&place.store)?;
    let store = Store::open(&place.store, StoreOptions::new(dim, fingerprint))?;
    let (begun, mut told) = (Instant::now(), Instant::now());
    for (s, name) in space_names(wanted.spaces).iter().enumerate() {
        let space = SpaceName::parse(name)?;
        let mut from = 0;
        while from < wanted.memories {
            let until = wanted.memories.min(from + BATCH);
            let first = s * wanted.memories;
            add(&store, &space, corpus, first + from..first + until, &mut vectors)?;
            store.maintain(Duration::from_millis(5))?;
            from = until;
            if told.elapsed() > Duration::from_secs(10) {
                told = Instant::now();
                eprintln!("filled {} of {}", first + from, corpus.len());
            }
        }
    }
    fill.seconds = Some(begun.elapsed().as_secs_f64());
    eprintln!("building the graph");
    while store.maintain(Duration::from_secs(1))? {}
    fill.indexed_after_s = Some(begun.elapsed().as_secs_f64());
    store.close()?;
    place.mark(wanted)?;
    Ok(fill)
}

/// The store, found or filled with vectors that no model made: around so many directions as there are [`CENTRES`], so that a
/// graph of them is no harder to build or walk than one of texts.
///
/// # Errors
/// What the store says.
pub fn with_generated(
    place: &Place,
    wanted: &Wanted,
    corpus: &Corpus,
    (dim, fingerprint): (usize, &str),
) -> Result<Fill, Failure> {
    let (sigma, seed) = wanted.noise.ok_or("generated vectors need noise")?;
    let mut noise = Noise { by: Normal::new(0.0, sigma)?, rng: ChaCha8Rng::seed_from_u64(seed) };
    let whole = Normal::new(0.0, 1.0 / (dim as f64).sqrt())?;
    let mut rng = ChaCha8Rng::seed_from_u64(seed ^ 0x4ea7);
    let centres: Vec<Vec<f32>> =
        (0..CENTRES).map(|_| (0..dim).map(|_| whole.sample(&mut rng) as f32).collect()).collect();
    filled(place, wanted, corpus, (dim, fingerprint), |memory| {
        let mut row = vec![centres[memory % CENTRES].clone()];
        noise.blur(&mut row);
        row
    })
}

/// Noise for the vectors of made-up memories.
struct Noise {
    by: Normal<f64>,
    rng: ChaCha8Rng,
}

impl Noise {
    /// The store makes them of unit length again.
    fn blur(&mut self, rows: &mut [Vec<f32>]) {
        for v in rows.iter_mut().flatten() {
            *v += self.by.sample(&mut self.rng) as f32;
        }
    }
}

/// Adds memories as the service does: the texts first, the vectors of the model behind them.
fn add(
    store: &Store,
    space: &SpaceName,
    corpus: &Corpus,
    memories: std::ops::Range<usize>,
    vectors: &mut impl FnMut(usize) -> Vec<Vec<f32>>,
) -> Result<(), Failure> {
    let items = memories
        .clone()
        .map(|i| NewMemory {
            id: format!("m{i}"),
            text: corpus.text(i),
            ts_ms: i64::try_from(i).unwrap_or(i64::MAX),
            ..NewMemory::default()
        })
        .collect();
    let added = store.add(space, items, OnConflict::Error)?;
    let mut rows = Vec::with_capacity(memories.len());
    for (i, item) in memories.zip(&added.items) {
        rows.push((item.seq, vectors(i)));
    }
    let wanted = rows.len();
    let given = store.set_vectors(space, rows)?;
    if given != wanted {
        return Err(format!("only {given} of {wanted} memories took their vectors").into());
    }
    Ok(())
}

/// Makes a folder that only its owner may enter: a daemon takes no other for its store.
fn private_dir(path: &Path) -> Result<(), Failure> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(|e| format!("cannot make {}: {e}", path.display()).into())
}

/// Copies a store that no process has open.
///
/// # Errors
/// If a file cannot be read or written.
pub fn copy(from: &Path, to: &Path) -> Result<(), Failure> {
    private_dir(to)?;
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy(&entry.path(), &target)?;
        } else {
            std::fs::copy(entry.path(), &target)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_store_is_used_only_if_its_marker_fits() {
        let dir = tempfile::tempdir().unwrap();
        let place = Place::new(Some(dir.path())).unwrap();
        let wanted = Wanted {
            memories: 10,
            spaces: 1,
            data_sha256: "d".into(),
            model: "m".into(),
            way: "import".into(),
            noise: None,
        };
        assert!(!place.holds(&wanted).unwrap());
        std::fs::create_dir(&place.store).unwrap();
        assert!(place.holds(&wanted).unwrap_err().to_string().contains("no marker"));
        place.mark(&wanted).unwrap();
        assert!(place.holds(&wanted).unwrap());
        let other = Wanted { memories: 11, ..wanted };
        assert!(place.holds(&other).unwrap_err().to_string().contains("another store"));
    }

    #[test]
    fn spaces_have_names_of_their_own() {
        assert_eq!(space_names(1), ["bench"]);
        assert_eq!(space_names(3), ["bench-0000", "bench-0001", "bench-0002"]);
        assert!(space_names(1000).iter().all(|n| SpaceName::parse(n).is_ok()));
    }
}
