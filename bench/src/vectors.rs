//! A file that keeps the vectors of a data set's lines, so that a large store is filled without embedding again.
//!
//! Invariant: a file belongs to one model and one data set, by their sums; it grows by whole lines only, so an interrupted
//! run is continued; a line's vectors are those that the service would store.
//! Layout: one line of text that names model and data, then for each line of the data its windows u32 and so many rows of
//! f32, little-endian.

use std::fs::File;
use std::io::{BufRead, BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use flashbulb::embed::Embedder;

use crate::Failure;

/// Lines embedded between two writes.
const CHUNK: usize = 2_000;
/// Windows that a line may have, against nonsense in a damaged file.
const WINDOWS_MAX: u32 = 10_000;

/// The vectors of the first lines of a data set.
pub struct Vectors {
    dim: usize,
    /// Row where each line begins, and one more.
    starts: Vec<usize>,
    rows: Vec<f32>,
}

impl Vectors {
    /// The vectors of a line, one for each of its windows.
    pub fn of(&self, line: usize) -> Vec<Vec<f32>> {
        let rows = self.starts[line] * self.dim..self.starts[line + 1] * self.dim;
        self.rows[rows].chunks_exact(self.dim).map(<[f32]>::to_vec).collect()
    }

    /// Lines that there are.
    fn len(&self) -> usize {
        self.starts.len() - 1
    }

    fn push(&mut self, vectors: &[Vec<f32>]) {
        for row in vectors {
            self.rows.extend(row);
        }
        self.starts.push(self.rows.len() / self.dim);
    }

    /// Reads the vectors of `lines` from a file and embeds those that it lacks, in all cores, writing them to it.
    ///
    /// # Errors
    /// If the file belongs to another model or data set, or what the model and the file system say.
    pub fn ensure(
        path: &Path,
        lines: &[String],
        data_sha256: &str,
        embedder: &Embedder,
    ) -> Result<Vectors, Failure> {
        let head = head(embedder.dim(), &embedder.fingerprint(), data_sha256);
        let (mut file, mut vectors) = open(path, &head, embedder.dim(), lines.len())?;
        let missing = lines.len().saturating_sub(vectors.len());
        if missing > 0 {
            eprintln!("embedding {missing} of {} texts into {}", lines.len(), path.display());
        }
        let (begun, mut told) = (Instant::now(), Instant::now());
        while vectors.len() < lines.len() {
            let from = vectors.len();
            let chunk = &lines[from..lines.len().min(from + CHUNK)];
            let mut out = Vec::new();
            for made in embed(chunk, embedder)? {
                out.extend_from_slice(&u32::try_from(made.len())?.to_le_bytes());
                made.iter().flatten().for_each(|v| out.extend_from_slice(&v.to_le_bytes()));
                vectors.push(&made);
            }
            file.write_all(&out)?;
            if told.elapsed() > Duration::from_secs(10) {
                told = Instant::now();
                let done = vectors.len() + missing - lines.len();
                let per_s = done as f64 / begun.elapsed().as_secs_f64();
                eprintln!("  {} of {}, {per_s:.0} a second", vectors.len(), lines.len());
            }
        }
        file.flush()?;
        Ok(vectors)
    }
}

fn head(dim: usize, fingerprint: &str, data_sha256: &str) -> String {
    format!("flashbulb-bench vectors 1 dim {dim} model {fingerprint} data {data_sha256}\n")
}

/// Opens the file for writing behind its last whole line, and reads what it has of the first `wanted` lines.
fn open(
    path: &Path,
    head: &str,
    dim: usize,
    wanted: usize,
) -> Result<(BufWriter<File>, Vectors), Failure> {
    let shown = path.display();
    let mut file = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)
        .map_err(|e| format!("cannot open {shown}: {e}"))?;
    let mut vectors = Vectors { dim, starts: vec![0], rows: Vec::new() };
    if file.metadata()?.len() == 0 {
        file.write_all(head.as_bytes())?;
        return Ok((BufWriter::new(file), vectors));
    }
    let mut reader = BufReader::with_capacity(1 << 20, &mut file);
    let mut found = Vec::new();
    reader.by_ref().take(4096).read_until(b'\n', &mut found)?;
    if found != head.as_bytes() {
        return Err(format!(
            "{shown} is of another model or data set; name another file with --vectors-cache\n  it says {}\n  wanted  {}",
            String::from_utf8_lossy(&found).trim_end(),
            head.trim_end()
        )
        .into());
    }
    let mut whole = found.len() as u64;
    while vectors.len() < wanted {
        let Some(made) = read_line(&mut reader, dim)? else { break };
        whole += 4 + (made.len() * dim * 4) as u64;
        vectors.push(&made);
    }
    drop(reader);
    if vectors.len() < wanted {
        // The tail of an interrupted run.
        file.set_len(whole)?;
    }
    file.seek(SeekFrom::End(0))?;
    Ok((BufWriter::new(file), vectors))
}

/// The vectors of the next line; none at the end or where the file was cut.
fn read_line(reader: &mut impl Read, dim: usize) -> Result<Option<Vec<Vec<f32>>>, Failure> {
    let mut word = [0; 4];
    if !read_whole(reader, &mut word)? {
        return Ok(None);
    }
    let windows = u32::from_le_bytes(word);
    if !(1..=WINDOWS_MAX).contains(&windows) {
        return Err(format!("the vectors file is damaged: a line with {windows} windows").into());
    }
    let mut bytes = vec![0; windows as usize * dim * 4];
    if !read_whole(reader, &mut bytes)? {
        return Ok(None);
    }
    let (words, _) = bytes.as_chunks::<4>();
    let values: Vec<f32> = words.iter().map(|w| f32::from_le_bytes(*w)).collect();
    Ok(Some(values.chunks_exact(dim).map(<[f32]>::to_vec).collect()))
}

fn read_whole(reader: &mut impl Read, buffer: &mut [u8]) -> Result<bool, Failure> {
    match reader.read_exact(buffer) {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => Ok(false),
        Err(e) => Err(e.into()),
    }
}

/// Embeds lines in all cores, each window by itself, as the service does.
fn embed(lines: &[String], embedder: &Embedder) -> Result<Vec<Vec<Vec<f32>>>, Failure> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let one = |lines: &[String]| -> Result<Vec<Vec<Vec<f32>>>, Failure> {
        let mut session = embedder.session()?;
        let mut out = Vec::with_capacity(lines.len());
        for line in lines {
            let windows = embedder.document_windows(line)?;
            let rows: Result<_, _> = windows.iter().map(|w| session.embed(w)).collect();
            out.push(rows?);
        }
        Ok(out)
    };
    let parts = lines.chunks(lines.len().div_ceil(threads).max(1));
    let done: Vec<Result<Vec<_>, Failure>> = std::thread::scope(|scope| {
        let handles: Vec<_> = parts.map(|part| scope.spawn(move || one(part))).collect();
        handles
            .into_iter()
            .map(|h| h.join().unwrap_or_else(|_| Err("an embedding thread panicked".into())))
            .collect()
    });
    let mut all = Vec::with_capacity(lines.len());
    for part in done {
        all.extend(part?);
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_cut_file_is_continued_and_another_models_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("v");
        let mine = head(2, "m", "d");
        let (mut file, _) = open(&path, &mine, 2, 9).unwrap();
        for (windows, rows) in [(1u32, vec![1.0f32, 2.0]), (2, vec![3.0, 4.0, 5.0, 6.0])] {
            file.write_all(&windows.to_le_bytes()).unwrap();
            rows.iter().for_each(|v| file.write_all(&v.to_le_bytes()).unwrap());
        }
        file.write_all(&1u32.to_le_bytes()).unwrap();
        file.write_all(&[0; 5]).unwrap();
        drop(file);
        let (mut file, vectors) = open(&path, &mine, 2, 9).unwrap();
        assert_eq!(vectors.len(), 2);
        assert_eq!(vectors.of(1), [[3.0, 4.0], [5.0, 6.0]]);
        file.write_all(&1u32.to_le_bytes()).unwrap();
        [7.0f32, 8.0].iter().for_each(|v| file.write_all(&v.to_le_bytes()).unwrap());
        drop(file);
        let (_, vectors) = open(&path, &mine, 2, 9).unwrap();
        assert_eq!((vectors.len(), vectors.of(2)), (3, vec![vec![7.0, 8.0]]));
        let (_, fewer) = open(&path, &mine, 2, 1).unwrap();
        assert_eq!(fewer.len(), 1);
        assert_eq!(open(&path, &mine, 2, 9).unwrap().1.len(), 3, "reading less cuts nothing off");
        let error = open(&path, &head(2, "other", "d"), 2, 9).err().unwrap().to_string();
        assert!(error.contains("another model or data set"), "{error}");
    }
}
