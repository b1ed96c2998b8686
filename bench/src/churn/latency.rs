//! How long single searches take on one thread, alone and while another thread inserts as fast as it can.
//!
//! Invariant: a time covers the call of the index and nothing else; the searches alone come before and after the others, on the
//! same index, so that what drifts is seen. Must not know how recall is measured.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use flashbulb_engine::index::{Scratch, SearchParams};
use hdrhistogram::Histogram;

use super::result::{Inserts, Latencies, Latency, ratio};
use super::subject::{BETWEEN, Subject};
use crate::Failure;
use crate::ann::dataset::{self, Dataset};
use crate::metric::Metric;

/// Length of the noise on a vector, in parts of its own: the cosine to the one it was made of is about 0.995.
pub const NOISE: f64 = 0.1;
/// The inserting thread's turn at the index's work, before it lets others run.
const QUANTUM: Duration = Duration::from_millis(5);
/// Vectors that are held for each second of inserts: more than a thread brings into a graph of this kind.
const HELD_A_SECOND: f64 = 20_000.0;
/// Bytes that they may take.
const HELD_BYTES: usize = 512 << 20;
/// Longest time that is told apart, in nanoseconds.
const LONGEST_NS: u64 = 60_000_000_000;

/// How many vectors are held for inserts of so long.
pub fn count(dim: usize, time: Duration) -> usize {
    let count = (time.as_secs_f64() * HELD_A_SECOND).ceil() as usize;
    count.min(HELD_BYTES / size_of::<f32>() / dim).max(BETWEEN)
}

/// Vectors of the data set with a little noise, for inserts of so long.
///
/// # Errors
/// Never with this noise.
pub fn held(data: &Dataset, time: Duration, seed: u64) -> Result<Vec<f32>, Failure> {
    let (dim, count) = (data.dim, count(data.dim, time));
    let mut rows = dataset::noisy(&data.base, dim, count, NOISE, seed ^ 0x4e1d)?;
    if data.metric == Metric::Cosine {
        dataset::normalise(&mut rows, dim);
    }
    Ok(rows)
}

/// All three, each for so long.
///
/// # Errors
/// If a search finds what is dead, or the index numbers an insert otherwise than by its push.
pub fn measure(
    subject: &Subject<'_>,
    (width, k): (usize, usize),
    time: Duration,
) -> Result<Latencies, Failure> {
    let params = SearchParams { ef: width.max(k), ..SearchParams::new(k) };
    let idle = || {
        // Once through, uncounted: whoever worked before has filled the caches with something else.
        let mut left = subject.queries().count();
        searches(subject, &params, || {
            left -= 1;
            left > 0
        })?;
        let until = Instant::now() + time;
        Ok::<_, Failure>(Latency::of(&searches(subject, &params, || Instant::now() < until)?))
    };
    let idle_before = idle()?;
    let (under_inserts, inserts) = under_inserts(subject, &params, time)?;
    while subject.work(&mut || true) {}
    let idle_after = idle()?;
    let p99_ratio = ratio(&idle_before, &under_inserts, &idle_after);
    Ok(Latencies { width, idle_before, under_inserts, idle_after, inserts, p99_ratio })
}

fn under_inserts(
    subject: &Subject<'_>,
    params: &SearchParams,
    time: Duration,
) -> Result<(Latency, Inserts), Failure> {
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let inserter = scope.spawn(|| insert(subject, &stop));
        let until = Instant::now() + time;
        let found = searches(subject, params, || Instant::now() < until && !inserter.is_finished());
        stop.store(true, Ordering::Relaxed);
        let inserts = inserter.join().map_err(|_| "the inserting thread panicked")??;
        Ok((Latency::of(&found?), inserts))
    })
}

/// Inserts held vectors and does the index's work, until it is stopped or there are no more.
fn insert(subject: &Subject<'_>, stop: &AtomicBool) -> Result<Inserts, Failure> {
    let stopped = || stop.load(Ordering::Relaxed);
    let (begun, mut count) = (Instant::now(), 0);
    while count < subject.held() && !stopped() {
        let to = subject.held().min(count + BETWEEN);
        while count < to && !stopped() {
            subject.insert_held(count)?;
            count += 1;
        }
        let mut more = true;
        while more && !stopped() {
            let until = Instant::now() + QUANTUM;
            more = subject.work(&mut || Instant::now() < until && !stopped());
            std::thread::yield_now();
        }
    }
    let seconds = begun.elapsed().as_secs_f64();
    let per_s = count as f64 / seconds;
    Ok(Inserts { count, seconds, per_s, used_up: count == subject.held() && !stopped() })
}

/// All queries in turns, one search at a time, at least one and as long as `go_on` says; the times in nanoseconds.
fn searches(
    subject: &Subject<'_>,
    params: &SearchParams,
    mut go_on: impl FnMut() -> bool,
) -> Result<Histogram<u64>, Failure> {
    let mut times = Histogram::new_with_bounds(1, LONGEST_NS, 3)?;
    let mut scratch = Scratch::new();
    for query in subject.queries().cycle() {
        let asked = Instant::now();
        let found = subject.search(query, params, &mut scratch)?;
        let took = asked.elapsed();
        times.saturating_record(u64::try_from(took.as_nanos()).unwrap_or(u64::MAX).max(1));
        for (number, _) in &found.hits {
            subject.vector(*number)?;
        }
        if !go_on() {
            break;
        }
    }
    Ok(times)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn held_vectors_are_of_unit_length_and_near_one_of_the_data_set() {
        let mut base = vec![0.0; 32 * 20];
        (0..20).for_each(|at| base[at * 32 + at] = 1.0);
        let query = base[..32].to_vec();
        let data = Dataset::new(("axes".into(), 32, base, query), Metric::Cosine, 1).unwrap();
        let time = Duration::from_millis(10);
        let rows = held(&data, time, 1).unwrap();
        assert_eq!(rows.len(), 200 * 32);
        for row in rows.chunks_exact(32) {
            let length = row.iter().map(|v| v * v).sum::<f32>().sqrt();
            let nearest = row.iter().copied().fold(0.0, f32::max);
            assert!((length - 1.0).abs() < 2e-3, "{length}");
            assert!(nearest > 0.97 && nearest < 0.9999, "{nearest}");
        }
        assert_eq!(rows, held(&data, time, 1).unwrap());
        assert_ne!(rows, held(&data, time, 2).unwrap());
    }

    #[test]
    fn held_vectors_are_as_long_as_those_of_the_data_set_where_lengths_count() {
        let mut base = vec![0.0; 32 * 20];
        (0..20).for_each(|at| base[at * 32 + at] = 500.0);
        let query = base[..32].to_vec();
        let data = Dataset::new(("axes".into(), 32, base, query), Metric::L2, 1).unwrap();
        for row in held(&data, Duration::from_millis(10), 1).unwrap().chunks_exact(32) {
            let nearest = row.iter().copied().fold(0.0, f32::max);
            let noise = row.iter().filter(|v| **v != nearest).map(|v| v * v).sum::<f32>().sqrt();
            assert!((400.0..600.0).contains(&nearest) && (25.0..100.0).contains(&noise), "{row:?}");
        }
    }
}
