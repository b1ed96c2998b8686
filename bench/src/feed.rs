//! An import that never ends, for what is measured beside it.
//!
//! Invariant: while it runs the service always has texts to embed, and its log is written to again and again; each text
//! is new to its space, so none is skipped or reused. Its end leaves nothing behind.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::Failure;
use crate::caller::{Caller, Target};
use crate::run::Miss;
use crate::space;

/// The space that is fed; searches go to others.
pub const SPACE: &str = "feed";
/// Texts of one import.
const BATCH: usize = 2_000;
/// With fewer waiting for their vectors, the next import begins.
const LOW: u64 = 4_000;
/// Longest wait for the first text to be embedded.
const START_LIMIT: Duration = Duration::from_secs(60);

/// A feeding thread; ends when dropped.
pub struct Feed {
    caller: Caller,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<(), String>>>,
}

/// How far the embedding was, and when.
pub struct Mark {
    searchable: u64,
    at: Instant,
}

impl Feed {
    /// Starts to import `texts`, over and over, and waits until the service embeds them.
    ///
    /// # Errors
    /// If the service cannot be reached or embeds nothing.
    pub fn start(target: &Target, dir: &Path, texts: Arc<Vec<String>>) -> Result<Feed, Failure> {
        if texts.is_empty() {
            return Err("there are no texts to import beside the load".into());
        }
        let mut caller = target.connect()?;
        space::drop_if_there(&mut caller, SPACE)?;
        let stop = Arc::new(AtomicBool::new(false));
        let feeder = Feeder {
            caller: target.connect()?,
            file: dir.join("feed.txt"),
            texts,
            stop: Arc::clone(&stop),
        };
        let thread = std::thread::spawn(move || feeder.run().map_err(|e| e.to_string()));
        let mut feed = Feed { caller, stop, thread: Some(thread) };
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
    /// What the service says, or why the feeding ended.
    pub fn mark(&mut self) -> Result<Mark, Failure> {
        if self.thread.as_ref().is_some_and(JoinHandle::is_finished) {
            let ended = self.thread.take().and_then(|thread| thread.join().ok());
            return Err(format!("the import beside the load ended: {ended:?}").into());
        }
        let stats = space::stats(&mut self.caller, SPACE)?;
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

    /// Texts embedded a second during the next `seconds`.
    ///
    /// # Errors
    /// As [`Self::mark`].
    pub fn rate_for(&mut self, seconds: f64) -> Result<f64, Failure> {
        let mark = self.mark()?;
        std::thread::sleep(Duration::from_secs_f64(seconds));
        self.rate_since(&mark)
    }

    /// Ends it, removes what it imported and waits until the service has nothing more to embed.
    ///
    /// # Errors
    /// What the service says.
    pub fn finish(mut self) -> Result<(), Failure> {
        self.end();
        space::drop_if_there(&mut self.caller, SPACE)?;
        space::wait_embedded(&mut self.caller)
    }

    fn end(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // What it met was told by `mark`, or comes of the service's end.
            let _ = thread.join();
        }
    }
}

impl Drop for Feed {
    fn drop(&mut self) {
        self.end();
    }
}

struct Feeder {
    caller: Caller,
    file: PathBuf,
    texts: Arc<Vec<String>>,
    stop: Arc<AtomicBool>,
}

impl Feeder {
    fn run(mut self) -> Result<(), Failure> {
        let mut next = 0;
        while !self.stop.load(Ordering::Relaxed) {
            if next > 0 && space::stats(&mut self.caller, SPACE)?["pending"].as_u64() > Some(LOW) {
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
            match space::import(&mut self.caller, SPACE, &self.file) {
                Ok(()) => next += BATCH,
                // Importing the same again adds nothing twice.
                Err(e) if e.miss == Miss::Refused => {
                    std::thread::sleep(Duration::from_millis(100));
                }
                Err(e) => return Err(e.into()),
            }
        }
        Ok(())
    }
}
