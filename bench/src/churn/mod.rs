//! `churn`: recall of the vector index while vectors come and go, and how long searches take beside inserts.
//!
//! Invariant: after each round the live vectors are the very ones that were there before it, so that one truth holds for every
//! recall; a hit that is dead, or a problem that the index's audit finds, ends the run. The same seed gives the same rounds and,
//! but for the times, the same figures up to the inserts beside searches. Must not know how a graph is built.

mod latency;
mod plan;
mod result;
mod show;
mod subject;

use std::path::{Path, PathBuf};
use std::time::Duration;

use flashbulb_engine::index::{GRAPH_FROM, Layout};
use flashbulb_engine::sync::MAX_ITEMS;
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

use crate::ann::dataset::{Dataset, Source};
use crate::machine::{self, Machine};
use crate::{Failure, ann, setup};
use result::{Churn, Measured, SCHEMA, Scenario, State};
use subject::Subject;

/// Options of `churn`.
#[derive(Debug, clap::Args)]
pub struct Options {
    #[command(flatten)]
    source: Source,
    /// Rounds of deletes and inserts
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u16).range(1..=1000))]
    rounds: u16,
    /// The part of the vectors that each round deletes and inserts again, above 0 and at most 1
    #[arg(long, default_value_t = 0.3)]
    share: f64,
    /// Candidates that a search keeps (ef); latency is measured at the middle one
    #[arg(long, value_delimiter = ',', default_values_t = [32, 64, 128], value_parser = clap::value_parser!(u32).range(1..=100_000))]
    widths: Vec<u32>,
    /// Threads that build an index at once; what comes in rounds is built by one
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..=256))]
    threads: u16,
    /// Measure the lean layout
    #[arg(long)]
    lean: bool,
    /// Seconds of each measurement of latency
    #[arg(long, default_value_t = 5.0)]
    seconds: f64,
    /// Write churn.json and churn.md into this folder
    #[arg(long)]
    out: Option<PathBuf>,
}

/// What is to be done with the vectors, checked.
#[derive(Debug)]
struct Wanted {
    rounds: usize,
    share: f64,
    /// From the narrowest on.
    widths: Vec<usize>,
    k: usize,
    layout: Layout,
    threads: usize,
    time: Duration,
    seed: u64,
}

impl Options {
    fn wanted(&self) -> Result<Wanted, Failure> {
        if !(self.share > 0.0 && self.share <= 1.0) {
            return Err(
                format!("--share is {}, it must be above 0 and at most 1", self.share).into()
            );
        }
        let time = Duration::try_from_secs_f64(self.seconds).ok().filter(|t| !t.is_zero());
        let time = time.filter(|t| *t <= Duration::from_secs(24 * 60 * 60)).ok_or_else(|| {
            format!("--seconds is {}, it must be above 0 and at most a day", self.seconds)
        })?;
        let mut widths: Vec<usize> = self.widths.iter().map(|width| *width as usize).collect();
        widths.sort_unstable();
        if let Some(twice) = widths.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(format!("--widths names {} twice", twice[0]).into());
        }
        Ok(Wanted {
            rounds: self.rounds.into(),
            share: self.share,
            widths,
            k: self.source.k.into(),
            layout: if self.lean { Layout::Lean } else { Layout::Full },
            threads: self.threads.into(),
            time,
            seed: self.source.common.seed,
        })
    }
}

/// Runs `churn`.
///
/// # Errors
/// What the files or the model say, or that the index is not what it must be.
pub fn run(options: &Options) -> Result<(), Failure> {
    let wanted = options.wanted()?;
    let begun_at = jiff::Timestamp::now();
    let machine = Machine::read();
    println!("{}\n", machine.line());
    if let Some(out) = &options.out {
        std::fs::create_dir_all(out).map_err(|e| format!("cannot make {}: {e}", out.display()))?;
    }
    let source = &options.source;
    let environment = source.needs_python().then(|| ann::environment(source)).transpose()?;
    let python = environment.as_ref().map_or(Path::new(""), |e| e.python.as_path());
    let folder = tempfile::Builder::new().prefix("fbc").tempdir()?;
    let data = Dataset::read(source, python, folder.path())?;
    let measured = wanted.measure(&data)?;
    let (commit, dirty) = machine::commit();
    let churn = Churn {
        schema: SCHEMA,
        begun_at: begun_at.to_string(),
        command: setup::command(),
        seed: wanted.seed,
        commit,
        dirty,
        scenario: wanted.scenario(&data),
        shortfalls: measured.shortfalls(),
        notes: measured.notes(machine.cores),
        machine,
        measured,
    };
    show::print(&churn);
    options.out.as_deref().map_or(Ok(()), |out| show::write(&churn, out))
}

impl Wanted {
    /// Vectors that each round deletes and inserts again.
    fn moved(&self, vectors: usize) -> usize {
        (vectors as f64 * self.share).round() as usize
    }

    /// The number of vectors, where they are enough.
    fn check(&self, data: &Dataset) -> Result<u32, Failure> {
        let vectors = data.len();
        if vectors < GRAPH_FROM as usize {
            return Err(format!("{} has {vectors} vectors; below {GRAPH_FROM} the index has no graph, and there is nothing to measure", data.source).into());
        }
        if self.moved(vectors) == 0 {
            return Err(format!("--share {} of {vectors} vectors is none", self.share).into());
        }
        // Every insert takes a new number.
        let pushed = vectors + self.rounds * self.moved(vectors);
        let pushed = pushed + latency::count(data.dim, self.time);
        if pushed > MAX_ITEMS as usize {
            return Err(format!("{} rounds would give out {pushed} numbers, an index has {MAX_ITEMS}; take fewer --rounds", self.rounds).into());
        }
        Ok(u32::try_from(vectors)?)
    }

    fn measure(&self, data: &Dataset) -> Result<Measured, Failure> {
        let vectors = self.check(data)?;
        eprintln!("building the index of {vectors} vectors");
        let (mut subject, seconds) = Subject::build(data, 0..vectors, self.layout, self.threads)?;
        let built = self.state(&subject, seconds, "built")?;
        let mut rng = ChaCha8Rng::seed_from_u64(self.seed);
        let mut rounds = Vec::with_capacity(self.rounds);
        for number in 1..=self.rounds {
            let steps = plan::round(vectors, self.moved(data.len()), &mut rng);
            let seconds = subject.round(&steps)?;
            rounds.push(self.state(
                &subject,
                seconds,
                &format!("round {number} of {}", self.rounds),
            )?);
        }
        let mut order: Vec<u32> = (0..vectors).collect();
        order.shuffle(&mut ChaCha8Rng::seed_from_u64(self.seed ^ 0xf4e5));
        let (fresh, seconds) = Subject::build(data, order.into_iter(), self.layout, self.threads)?;
        let fresh = self.state(&fresh, seconds, "a fresh index")?;
        eprintln!("measuring latency, 3 times {} s", self.time.as_secs_f64());
        subject.hold(latency::held(data, self.time, self.seed)?);
        let middle = self.widths[self.widths.len() / 2];
        let latency = latency::measure(&subject, (middle, self.k), self.time)?;
        Ok(Measured { built, rounds, fresh, latency })
    }

    /// What an index is now; says so, as the next state may be minutes away.
    fn state(&self, subject: &Subject<'_>, seconds: f64, name: &str) -> Result<State, Failure> {
        let state = subject.state(seconds, &self.widths, self.k);
        let state = state.map_err(|e| format!("{name}: {e}"))?;
        let recalls: Vec<String> =
            state.points.iter().map(|p| format!("{:.4} at {}", p.recall, p.width)).collect();
        let (recalls, lost) = (recalls.join(", "), state.unreachable);
        eprintln!("{name}: {seconds:.1} s, recall {recalls}, {lost} unreachable");
        Ok(state)
    }

    fn scenario(&self, data: &Dataset) -> Scenario {
        Scenario {
            source: data.source.clone(),
            sha256: data.sha256.clone(),
            metric: data.metric,
            normalised: data.normalised,
            vectors: data.len(),
            dim: data.dim,
            queries: data.asked(),
            k: self.k,
            rounds: self.rounds,
            share: self.share,
            moved: self.moved(data.len()),
            between: subject::BETWEEN,
            layout: self.layout.to_string(),
            threads: self.threads,
            seconds: self.time.as_secs_f64(),
            noise: latency::NOISE,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::metric::Metric;
    use clap::Parser;
    use rand::RngExt;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        options: Options,
    }

    fn wanted(line: &str) -> Result<Wanted, Failure> {
        let words = ["churn"].into_iter().chain(line.split_whitespace());
        Line::try_parse_from(words)?.options.wanted()
    }

    /// Vectors about 60 centres, the last 40 of them queries.
    fn clustered(vectors: usize, metric: Metric) -> Dataset {
        const DIM: usize = 16;
        let mut rng = ChaCha8Rng::seed_from_u64(3);
        let mut row = |scale: f32| -> Vec<f32> {
            (0..DIM).map(|_| rng.random_range(-scale..scale)).collect()
        };
        let centres: Vec<Vec<f32>> = (0..60).map(|_| row(1.0)).collect();
        let near = |at: usize| {
            let noise = row(0.4);
            centres[at % 60].iter().zip(noise).map(|(c, n)| c + n).collect::<Vec<f32>>()
        };
        let mut base: Vec<f32> = (0..vectors + 40).flat_map(near).collect();
        let queries = base.split_off(vectors * DIM);
        Dataset::new(("made up".into(), DIM, base, queries), metric, 10).unwrap()
    }

    #[test]
    fn bad_options_are_refused_with_what_is_wrong() {
        for (line, what) in [
            ("--share 0", "--share is 0"),
            ("--share 1.5", "at most 1"),
            ("--share nan", "--share is NaN"),
            ("--rounds 0", "--rounds"),
            ("--seconds 0", "--seconds is 0"),
            ("--seconds inf", "--seconds is inf"),
            ("--widths 64,32,64", "--widths names 64 twice"),
            ("--widths 0", "--widths"),
            ("--threads 0", "--threads"),
        ] {
            let error = wanted(line).unwrap_err().to_string();
            assert!(error.contains(what), "{line}: {error}");
        }
        let good = wanted("--widths 128,32,64 --share 1").unwrap();
        assert_eq!(good.widths, [32, 64, 128]);
    }

    #[test]
    fn too_little_to_measure_is_refused() {
        let data = clustered(4_200, Metric::Cosine);
        let error = wanted("--share 0.0001").unwrap().measure(&data).unwrap_err().to_string();
        assert!(error.contains("--share 0.0001 of 4200 vectors is none"), "{error}");
        let error =
            wanted("").unwrap().check(&clustered(1_000, Metric::Cosine)).unwrap_err().to_string();
        assert!(error.contains("1000 vectors; below 4096"), "{error}");
        let many = wanted("--rounds 1000 --share 1").unwrap();
        assert!(many.check(&data).is_ok());
    }

    #[test]
    fn a_small_run_finds_nothing_dead_and_gives_a_whole_report() {
        [Metric::Cosine, Metric::L2].into_iter().for_each(small_run);
    }

    fn small_run(metric: Metric) {
        let data = clustered(6_000, metric);
        let wanted = wanted("--rounds 2 --widths 16,32,48 --seconds 0.2").unwrap();
        let measured = wanted.measure(&data).unwrap();
        assert_eq!(measured.rounds.len(), 2);
        let states = measured.rounds.iter().chain([&measured.built, &measured.fresh]);
        for state in states.clone() {
            assert_eq!((state.live, state.in_graph, state.points.len()), (6_000, state.vectors, 3));
            assert!(state.points.iter().all(|p| (0.5..=1.0).contains(&p.recall)), "{state:?}");
            assert!(state.points.iter().all(|p| p.walked > 0.99), "{state:?}");
        }
        let vectors: Vec<u32> = states.map(|s| s.vectors).collect();
        assert_eq!(vectors, [7_800, 9_600, 6_000, 6_000]);
        let l = &measured.latency;
        assert!(l.idle_before.samples > 0 && l.under_inserts.samples > 0, "{l:?}");
        assert!(l.inserts.count > 0 && l.inserts.per_s > 0.0, "{l:?}");
        let churn = Churn {
            schema: SCHEMA,
            begun_at: "then".into(),
            command: "churn".into(),
            seed: 1,
            machine: Machine::read(),
            commit: None,
            dirty: None,
            scenario: wanted.scenario(&data),
            shortfalls: measured.shortfalls(),
            notes: measured.notes(2),
            measured,
        };
        show::print(&churn);
        let markdown = show::markdown(&churn).unwrap();
        for what in ["after round 2", "width 48", "beside inserts", "shortfall"] {
            assert!(markdown.contains(what), "{what}: {markdown}");
        }
        let json = serde_json::to_value(&churn).unwrap();
        assert_eq!(json["rounds"][1]["points"][2]["width"], 48);
        assert_eq!(json["scenario"]["normalised"], metric == Metric::Cosine);
    }
}
