//! What every measurement needs before it begins: model, texts and a filled store.
//!
//! Invariant: what is found is checked against what is wanted, and all of it stands in the report.

use std::path::{Path, PathBuf};

use flashbulb::embed::Embedder;
use flashbulb::provision::{self, Drawn};

use crate::data::Corpus;
use crate::fill::{self, Place, Wanted};
use crate::run::{Data, Fill, Model, Program};
use crate::{Common, Failure, bare, machine};

/// Which store is searched.
#[derive(Debug, Clone, clap::Args)]
pub struct StoreArgs {
    /// Memories in each space that is searched
    #[arg(long, default_value_t = 10_000)]
    pub memories: usize,
    /// Spaces; each search goes to one of them by chance
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=10_000))]
    pub spaces: u16,
    /// Keep the filled store in this folder, and use the one that is there; a temporary one if left out
    #[arg(long)]
    pub store: Option<PathBuf>,
    /// Fill the store with vectors from this file, which is made if need be, instead of importing texts through the daemon
    #[arg(long)]
    pub vectors_cache: Option<PathBuf>,
    /// With --vectors-cache and more memories than texts: standard deviation of the noise on each component of a vector
    #[arg(long, default_value_t = 0.02)]
    pub noise: f64,
}

impl StoreArgs {
    fn wanted(&self, corpus: &Corpus, embedder: &Embedder, seed: u64) -> Wanted {
        let made_up = corpus.len() > corpus.real() && self.vectors_cache.is_some();
        Wanted {
            memories: self.memories,
            spaces: self.spaces.into(),
            data_sha256: corpus.sha256.clone(),
            model: embedder.fingerprint(),
            way: if self.vectors_cache.is_some() { "vectors" } else { "import" }.to_owned(),
            noise: made_up.then_some((self.noise, seed)),
        }
    }
}

/// All of it.
pub struct Setup {
    pub embedder: Embedder,
    pub corpus: Corpus,
    pub place: Place,
    pub fill: Fill,
    pub wanted: Wanted,
}

impl Setup {
    /// Reads the texts, opens the model, and fills the store or finds it; `arguments` are those of `serve`.
    ///
    /// # Errors
    /// What the data, the model, the daemon or the store say.
    pub fn prepare(
        common: &Common,
        args: &StoreArgs,
        program: &Path,
        arguments: &[String],
    ) -> Result<Setup, Failure> {
        if args.memories == 0 {
            return Err("--memories must be at least 1".into());
        }
        let embedder = bare::embedder(common.precision)?;
        let all = args.memories * usize::from(args.spaces);
        let corpus = Corpus::read(common.data.as_deref(), all, common.seed)?;
        let place = Place::new(args.store.as_deref())?;
        let wanted = args.wanted(&corpus, &embedder, common.seed);
        let cache = args.vectors_cache.as_deref();
        let fill = match cache {
            Some(cache) => fill::with_vectors(&place, &wanted, &corpus, &embedder, cache)?,
            None => fill::through_daemon(&place, &wanted, &corpus, program, arguments)?,
        };
        Ok(Setup { embedder, corpus, place, fill, wanted })
    }

    /// The texts, for the report.
    pub fn data(&self, queries_real: usize, queries_made: usize) -> Data {
        let corpus = &self.corpus;
        Data {
            source: corpus.source.clone(),
            sha256: corpus.sha256.clone(),
            lines: corpus.lines(),
            held_out: corpus.held_out().len(),
            memories_real: corpus.real(),
            memories_made: corpus.len() - corpus.real(),
            noise: self.wanted.noise.map(|(sigma, _)| sigma),
            queries_real,
            queries_made,
        }
    }

    /// The model, for the report.
    pub fn model(&self) -> Model {
        let ran = self.embedder.ran();
        let weights = provision::ensure(&provision::Wanted::default(), &Drawn::default())
            .ok()
            .map(|p| p.model_dir.join("model.safetensors"));
        Model {
            name: ran.model,
            precision: ran.precision,
            runtime: ran.runtime,
            provider: ran.provider,
            sha256: weights.and_then(|w| provision::sha256(&w).ok()).map(|(sum, _)| sum),
            fingerprint: self.embedder.fingerprint(),
        }
    }
}

/// The program, for the report.
///
/// # Errors
/// If it cannot be read.
pub fn describe(program: &Path, arguments: &[String]) -> Result<Program, Failure> {
    let shown = program.display();
    let sha256 = provision::sha256(program).map_err(|e| format!("cannot read {shown}: {e}"))?.0;
    let (commit, dirty) = machine::commit();
    let version = machine::output(program, &["--version"]);
    Ok(Program { version, sha256, commit, dirty, arguments: arguments.to_vec() })
}

/// The command line of this program; of absolute paths only the last part, which is all that another machine can share.
pub fn command() -> String {
    let mut words = std::env::args();
    let program = words.next().unwrap_or_default();
    let shown = words.map(|word| quoted(&without_folder(&word)));
    std::iter::once(last_part(&program)).chain(shown).collect::<Vec<_>>().join(" ")
}

fn last_part(path: &str) -> String {
    Path::new(path).file_name().map_or_else(String::new, |n| n.to_string_lossy().into_owned())
}

fn without_folder(word: &str) -> String {
    match word.split_once('=') {
        _ if word.starts_with('/') => last_part(word),
        Some((option, value)) if option.starts_with("--") && value.starts_with('/') => {
            format!("{option}={}", last_part(value))
        }
        _ => word.to_owned(),
    }
}

fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=,:+@%".contains(c);
    if !word.is_empty() && word.chars().all(plain) { word.to_owned() } else { format!("'{word}'") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_names_no_folder_of_this_machine() {
        let shown = |word| quoted(&without_folder(word));
        assert_eq!(shown("/home/me/turns.txt.gz"), "turns.txt.gz");
        assert_eq!(shown("--data=/home/me/my turns.gz"), "'--data=my turns.gz'");
        assert_eq!(shown("docs/reports/x"), "docs/reports/x");
        assert_eq!(shown("--mix=search=0.9,add=0.1"), "--mix=search=0.9,add=0.1");
    }
}
