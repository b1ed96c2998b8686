//! The stage clock: where the time of one request goes.
//!
//! Invariant: stages are disjoint spans between the arrival of a frame and now, so together they are never more than the
//! whole. One thread owns a clock; marking a stage neither allocates nor locks. It must not know methods, nor what
//! becomes of its readings.

use std::cell::Cell;
use std::time::{Duration, Instant};

macro_rules! stages {
    ($($(#[doc = $doc:literal])+ $name:ident = $text:literal,)+) => {
        /// A part of a request's time.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Stage { $($(#[doc = $doc])+ $name,)+ }

        impl Stage {
            /// All of them, in the order of a request.
            pub const ALL: &[Stage] = &[$(Stage::$name,)+];

            /// The name on the wire.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Stage::$name => $text,)+ }
            }
        }
    };
}

stages! {
    /// Waiting: for earlier requests of the connection, for `min_seq`, for an embedding session, for the bulk lane.
    Queue = "queue",
    /// Cutting a text into tokens and windows.
    Tokenise = "tokenise",
    /// The model.
    Embed = "embed",
    /// Search by meaning.
    Dense = "dense",
    /// Search by words.
    Lexical = "lexical",
    /// Fusing the two.
    Fuse = "fuse",
    /// Fetching texts.
    Fetch = "fetch",
    /// The store's log, its sync with it.
    Store = "store",
    /// Writing the answer to the socket; the answer itself cannot tell.
    Write = "write",
}

impl Stage {
    /// How many there are.
    pub const COUNT: usize = Self::ALL.len();
}

/// What a clock showed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stages {
    spans: [Duration; Stage::COUNT],
    marked: [bool; Stage::COUNT],
}

impl Stages {
    /// The time of a stage; `None` where the request had no such stage.
    #[must_use]
    pub fn get(&self, stage: Stage) -> Option<Duration> {
        self.marked[stage as usize].then_some(self.spans[stage as usize])
    }

    /// The stages that the request had.
    pub fn iter(&self) -> impl Iterator<Item = (Stage, Duration)> + '_ {
        Stage::ALL.iter().filter_map(|&stage| Some((stage, self.get(stage)?)))
    }

    /// Whole microseconds of a stage, rounded down; 0 where there was none.
    #[must_use]
    pub fn micros(&self, stage: Stage) -> u64 {
        u64::try_from(self.spans[stage as usize].as_micros()).unwrap_or(u64::MAX)
    }

    /// All stages together.
    #[must_use]
    pub fn sum(&self) -> Duration {
        self.spans.iter().sum()
    }

    /// Adds to a stage.
    pub fn add(&mut self, stage: Stage, span: Duration) {
        self.spans[stage as usize] += span;
        self.marked[stage as usize] = true;
    }
}

/// The clock of the request that a connection's thread is at.
#[derive(Debug)]
pub struct StageClock {
    stages: Cell<Stages>,
    last: Cell<Instant>,
}

impl Default for StageClock {
    fn default() -> Self {
        Self { stages: Cell::default(), last: Cell::new(Instant::now()) }
    }
}

impl StageClock {
    /// Begins a request: what has passed since its frame had arrived was spent in the queue.
    pub fn begin(&self, arrived: Instant) {
        self.stages.set(Stages::default());
        self.last.set(arrived);
        self.mark(Stage::Queue);
    }

    /// What has passed since the last call belongs to no stage.
    pub fn skip(&self) {
        self.last.set(Instant::now());
    }

    /// What has passed since the last call belongs to this stage.
    pub fn mark(&self, stage: Stage) {
        self.mark_with(stage, &[]);
    }

    /// As [`Self::mark`], where it is known of some parts that they belong to other stages.
    pub fn mark_with(&self, stage: Stage, parts: &[(Stage, Duration)]) {
        let now = Instant::now();
        let mut left = now.saturating_duration_since(self.last.get());
        let mut stages = self.stages.get();
        for &(part, span) in parts {
            // A part cannot be longer than the whole, whoever measured it.
            let span = span.min(left);
            left -= span;
            stages.add(part, span);
        }
        stages.add(stage, left);
        self.stages.set(stages);
        self.last.set(now);
    }

    /// What the clock shows.
    #[must_use]
    pub fn read(&self) -> Stages {
        self.stages.get()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn stages_are_disjoint_spans_since_the_arrival() {
        let clock = StageClock::default();
        let arrived = Instant::now();
        std::thread::sleep(2 * MS);
        clock.begin(arrived);
        std::thread::sleep(2 * MS);
        clock.skip();
        std::thread::sleep(3 * MS);
        clock.mark_with(Stage::Embed, &[(Stage::Queue, MS), (Stage::Tokenise, MS)]);
        clock.mark(Stage::Dense);
        clock.mark(Stage::Dense);
        let whole = arrived.elapsed();
        let stages = clock.read();
        assert!(stages.get(Stage::Queue) >= Some(3 * MS), "{stages:?}");
        assert_eq!(stages.get(Stage::Tokenise), Some(MS));
        assert!(stages.get(Stage::Embed) >= Some(MS), "{stages:?}");
        assert!(stages.get(Stage::Dense).is_some());
        assert_eq!((stages.get(Stage::Fetch), stages.micros(Stage::Fetch)), (None, 0));
        // What was skipped is nobody's.
        assert!(stages.sum() <= whole - 2 * MS, "{stages:?} of {whole:?}");
    }

    #[test]
    fn parts_never_make_more_than_the_whole() {
        let clock = StageClock::default();
        let arrived = Instant::now();
        clock.begin(arrived);
        let hour = Duration::from_secs(3600);
        clock.mark_with(Stage::Embed, &[(Stage::Queue, hour), (Stage::Tokenise, hour)]);
        assert!(clock.read().sum() <= arrived.elapsed());
        clock.begin(Instant::now());
        assert_eq!(clock.read().get(Stage::Embed), None, "a new request begins with nothing");
    }

    #[test]
    fn names_are_distinct_and_numbers_are_places() {
        for (number, &stage) in Stage::ALL.iter().enumerate() {
            assert_eq!(stage as usize, number);
            let same = Stage::ALL.iter().filter(|other| other.name() == stage.name()).count();
            assert_eq!(same, 1, "{}", stage.name());
        }
    }
}
