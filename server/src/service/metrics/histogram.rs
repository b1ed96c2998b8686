//! A histogram of durations that any thread may add to.
//!
//! Invariant: adding is two atomic additions: no lock and no allocation, so a thread at idle priority that the kernel stops
//! in the middle of it holds up nobody (each is one instruction on x86-64 and on ARM with LSE, and lock-free on any processor).
//! A duration is counted in exactly the bucket whose edges hold it, and
//! the edges are exact: a request of 10 ms is never counted as slower. It must not know what is measured.
//!
//! Buckets are decimal and log-linear: the upper edges are 1.0, 1.1, 1.2 … 9.9 times a power of ten, from one
//! microsecond to 100 seconds, each edge belonging to the bucket below it. A percentile read from them is at most a
//! tenth above the true one. Binary buckets, as HdrHistogram has them, have no edge at 10 ms.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// What edges are whole multiples of.
const UNIT_NS: u64 = 100;

/// Buckets of a decade: the edges 1.1, 1.2 … 10.0.
const DECADE: usize = 90;

/// From 1 µs to 100 s.
const DECADES: u32 = 8;

/// Everything up to 1 µs, the decades, and what is longer than 100 s.
pub const BUCKETS: usize = 1 + DECADE * DECADES as usize + 1;

/// The largest edge, in units.
const LARGEST: u64 = 10 * 10_u64.pow(DECADES);

/// Counts of durations.
///
/// Writers: any thread, with relaxed additions. Readers: whoever answers `admin.metrics`, with relaxed loads. Nothing
/// else is published through these numbers, so no order between them is needed: a reading may hold a duration in
/// the sum and not yet in its bucket, or the other way round, and the next reading has both. The count of a reading is
/// the sum of its buckets, so the two always fit.
pub struct Histogram {
    buckets: Box<[AtomicU64]>,
    sum_ns: AtomicU64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self {
            buckets: (0..BUCKETS).map(|_| AtomicU64::new(0)).collect(),
            sum_ns: AtomicU64::new(0),
        }
    }
}

impl Histogram {
    /// Counts a duration.
    pub fn record(&self, span: Duration) {
        self.record_many(span, 1);
    }

    /// Counts a duration several times.
    pub fn record_many(&self, span: Duration, times: u64) {
        // 584 years fit.
        let ns = u64::try_from(span.as_nanos()).unwrap_or(u64::MAX);
        self.buckets[bucket_of(ns)].fetch_add(times, Ordering::Relaxed);
        self.sum_ns.fetch_add(ns.saturating_mul(times), Ordering::Relaxed);
    }

    /// What was counted so far.
    #[must_use]
    pub fn read(&self) -> Reading {
        Reading {
            buckets: self.buckets.iter().map(|count| count.load(Ordering::Relaxed)).collect(),
            sum_ns: self.sum_ns.load(Ordering::Relaxed),
        }
    }
}

/// A reading of a [`Histogram`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reading {
    buckets: Vec<u64>,
    sum_ns: u64,
}

impl Reading {
    /// How many durations were counted.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }

    /// All of them together, in nanoseconds.
    #[must_use]
    pub fn sum_ns(&self) -> u64 {
        self.sum_ns
    }

    /// The buckets with something in them: the upper edge in microseconds, itself included, and the count; the edge is
    /// `None` for what was longer than 100 s.
    pub fn filled(&self) -> impl Iterator<Item = (Option<f64>, u64)> + '_ {
        let filled = self.buckets.iter().enumerate().filter(|&(_, &count)| count > 0);
        filled.map(|(bucket, &count)| {
            (edge_of(bucket).map(|units| units as f64 * UNIT_NS as f64 / 1e3), count)
        })
    }

    /// Counts between given edges, exact where each of them is the edge of a bucket; the last count is of what is above.
    #[must_use]
    pub fn coarse(&self, edges_us: &[u64]) -> Vec<u64> {
        let mut counts = vec![0; edges_us.len() + 1];
        for (bucket, &count) in self.buckets.iter().enumerate() {
            let edge_ns = edge_of(bucket).map_or(u64::MAX, |units| units * UNIT_NS);
            counts[edges_us.partition_point(|&edge| edge * 1_000 < edge_ns)] += count;
        }
        counts
    }
}

/// The bucket that a duration belongs to.
fn bucket_of(ns: u64) -> usize {
    // An edge is a whole number of units, so what is between two units belongs to the upper one.
    let units = ns.div_ceil(UNIT_NS);
    if units <= 10 {
        return 0;
    }
    if units > LARGEST {
        return BUCKETS - 1;
    }
    // Two digits, 11 to 100, rounded up: an edge ends its decade and does not begin the next.
    let decade = (units - 1).ilog10() - 1;
    let digits = units.div_ceil(10_u64.pow(decade));
    1 + DECADE * decade as usize + (digits as usize - 11)
}

/// The upper edge of a bucket in units; `None` for the last.
fn edge_of(bucket: usize) -> Option<u64> {
    match bucket {
        0 => Some(10),
        bucket if bucket == BUCKETS - 1 => None,
        bucket => {
            let (decade, digit) = ((bucket - 1) / DECADE, (bucket - 1) % DECADE);
            Some((digit as u64 + 11) * 10_u64.pow(decade as u32))
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    fn edge_ns(bucket: usize) -> u64 {
        edge_of(bucket).map_or(u64::MAX, |units| units * UNIT_NS)
    }

    #[test]
    fn edges_rise_and_are_exact() {
        for bucket in 0..BUCKETS - 1 {
            let edge = edge_ns(bucket);
            assert!(edge < edge_ns(bucket + 1), "{bucket}");
            assert_eq!(bucket_of(edge), bucket, "an edge belongs to the bucket below it: {edge}");
            assert_eq!(bucket_of(edge + 1), bucket + 1, "{edge}");
            if bucket > 0 {
                let width = edge - edge_ns(bucket - 1);
                assert!(width * 10 <= edge_ns(bucket - 1), "{bucket} is wider than a tenth");
            }
        }
        let edges: Vec<u64> = (0..BUCKETS - 1).map(edge_ns).collect();
        for us in [1, 2, 5, 10, 20, 50, 1_000, 2_000, 5_000, 9_900, 10_000, 11_000, 100_000_000] {
            assert!(edges.contains(&(us * 1_000)), "no edge at {us} us");
        }
        assert_eq!((bucket_of(0), bucket_of(u64::MAX)), (0, BUCKETS - 1));
    }

    proptest! {
        #[test]
        fn every_duration_is_in_the_bucket_whose_edges_hold_it(
            magnitude in 0_u32..20, fraction in 0_u64..u64::MAX,
        ) {
            let ns = fraction % 10_u64.pow(magnitude.min(19)).max(1);
            let bucket = bucket_of(ns);
            prop_assert!(ns <= edge_ns(bucket));
            prop_assert!(bucket == 0 || ns > edge_ns(bucket - 1));
        }
    }

    #[test]
    fn what_was_recorded_is_read_and_the_count_fits() {
        let histogram = Histogram::default();
        histogram.record(Duration::from_millis(10));
        histogram.record(Duration::from_millis(10) + Duration::from_nanos(1));
        histogram.record_many(Duration::from_nanos(1_050), 3);
        histogram.record(Duration::from_secs(1_000));
        let reading = histogram.read();
        let filled: Vec<_> = reading.filled().collect();
        assert_eq!(filled, [(Some(1.1), 3), (Some(10_000.0), 1), (Some(11_000.0), 1), (None, 1)]);
        assert_eq!(reading.count(), 6);
        assert_eq!(reading.sum_ns(), 20_000_001 + 3 * 1_050 + 1_000_000_000_000);
        assert_eq!(reading.coarse(&[2, 10_000, 20_000]), [3, 1, 1, 1]);
    }

    #[test]
    fn nothing_is_lost_when_all_record_at_once() {
        // Long enough that the threads really run at the same time, also on a busy machine.
        let end = std::time::Instant::now() + Duration::from_millis(300);
        let histogram = Histogram::default();
        let record = || {
            let mut recorded = 0_u64;
            while !recorded.is_multiple_of(1_000) || std::time::Instant::now() < end {
                histogram.record(Duration::from_micros(1 + recorded % 4));
                recorded += 1;
            }
            recorded
        };
        let recorded: Vec<u64> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(record)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        let reading = histogram.read();
        assert_eq!(reading.count(), recorded.iter().sum::<u64>());
        // Whole thousands, so whole rounds of 1, 2, 3 and 4 us.
        let us: u64 = recorded.iter().map(|&recorded| recorded / 4 * 10).sum();
        assert_eq!(reading.sum_ns(), us * 1_000);
    }
}
