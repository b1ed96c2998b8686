//! An import that never ends, for what is measured beside it.
//!
//! Invariant: while it runs the daemon always has texts to embed, and its log is written to again and again; each text
//! is new to its space, so none is skipped or reused.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use flashbulb::client::Client;

use crate::Failure;
use crate::space;

/// The space that is fed; searches go to another.
const SPACE: &str = "feed";
/// Texts of one import.
const BATCH: usize = 2_000;
/// With fewer waiting for their vectors, the next import begins.
const LOW: u64 = 4_000;
/// Longest wait for the first text to be embedded.
const START_LIMIT: Duration = Duration::from_secs(60);

/// A feeding thread; ends when dropped.
pub struct Feed {
    client: Client,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<(), String>>>,
}

/// How far the embedding was, and when.
pub struct Mark {
    searchable: u64,
    at: Instant,
}

impl Feed {
    /// Starts to import `texts`, over and over, and waits until the daemon embeds them.
    ///
    /// # Errors
    /// If the daemon cannot be reached or embeds nothing.
    pub fn start(socket: &Path, dir: &Path, texts: Vec<String>) -> Result<Feed, Failure> {
        let stop = Arc::new(AtomicBool::new(false));
        let feeder = Feeder {
            client: Client::connect(socket)?,
            file: dir.join("feed.txt"),
            texts,
            stop: Arc::clone(&stop),
        };
        let thread = std::thread::spawn(move || feeder.run().map_err(|e| e.to_string()));
        let mut feed = Feed { client: Client::connect(socket)?, stop, thread: Some(thread) };
        let begun = Instant::now();
        loop {
            match feed.mark() {
                Ok(mark) if mark.searchable > 0 => return Ok(feed),
                Err(error) if feed.thread.is_none() => return Err(error),
                // The space comes to be with the first import.
                Ok(_) | Err(_) => {}
            }
            if begun.elapsed() > START_LIMIT {
                return Err("the import beside the load embeds nothing".into());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Where it is now.
    ///
    /// # Errors
    /// What the daemon says, or why the feeding ended.
    pub fn mark(&mut self) -> Result<Mark, Failure> {
        if self.thread.as_ref().is_some_and(JoinHandle::is_finished) {
            let ended = self.thread.take().and_then(|thread| thread.join().ok());
            return Err(format!("the import beside the load ended: {ended:?}").into());
        }
        let stats = space::stats(&mut self.client, SPACE)?;
        let searchable = stats["searchable"].as_u64().unwrap_or(0);
        Ok(Mark { searchable, at: Instant::now() })
    }

    /// Texts embedded a second since `mark`.
    ///
    /// # Errors
    /// As [`Self::mark`].
    pub fn rate_since(&mut self, mark: &Mark) -> Result<f64, Failure> {
        let now = self.mark()?;
        let embedded = now.searchable.saturating_sub(mark.searchable);
        Ok(embedded as f64 / now.at.duration_since(mark.at).as_secs_f64())
    }
}

impl Drop for Feed {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // What it met was told by `mark`, or comes of the daemon's end.
            let _ = thread.join();
        }
    }
}

struct Feeder {
    client: Client,
    file: PathBuf,
    texts: Vec<String>,
    stop: Arc<AtomicBool>,
}

impl Feeder {
    fn run(mut self) -> Result<(), Failure> {
        let mut next = 0;
        while !self.stop.load(Ordering::Relaxed) {
            if next > 0 && space::stats(&mut self.client, SPACE)?["pending"].as_u64() > Some(LOW) {
                std::thread::sleep(Duration::from_millis(50));
                continue;
            }
            // A number makes a text new again, and a token longer.
            let lines = (next..next + BATCH).map(|at| {
                let text = &self.texts[at % self.texts.len()];
                match at / self.texts.len() {
                    0 => text.clone(),
                    round => format!("{text} {round}"),
                }
            });
            space::write_lines(&self.file, lines)?;
            space::import(&mut self.client, SPACE, &self.file)?;
            next += BATCH;
        }
        Ok(())
    }
}
