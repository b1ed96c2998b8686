//! Queries a second at equal recall, out of points that were measured.
//!
//! Invariant: only points that no other beats in both count; between two of them the logarithm of the rate is taken to be linear in
//! the recall; beyond them nothing is said. Must not know where points come from.

/// Recall and queries a second of one setting.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Point {
    pub recall: f64,
    pub qps: f64,
}

/// Those that no other beats, by recall.
pub fn frontier(points: &[Point]) -> Vec<Point> {
    let mut sorted = points.to_vec();
    sorted.sort_by(|a, b| b.recall.total_cmp(&a.recall).then(b.qps.total_cmp(&a.qps)));
    let mut best = f64::NEG_INFINITY;
    sorted.retain(|point| {
        let kept = point.qps > best;
        best = best.max(point.qps);
        kept
    });
    sorted.reverse();
    sorted
}

/// The rate at a recall; none where no setting reached it, or all were above.
pub fn at(points: &[Point], recall: f64) -> Option<f64> {
    let frontier = frontier(points);
    let above = frontier.iter().position(|point| point.recall >= recall)?;
    let high = frontier[above];
    let Some(low) = above.checked_sub(1).map(|below| frontier[below]) else {
        return (high.recall <= recall).then_some(high.qps);
    };
    let part = (recall - low.recall) / (high.recall - low.recall);
    Some((low.qps.ln() + part * (high.qps.ln() - low.qps.ln())).exp())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn point(recall: f64, qps: f64) -> Point {
        Point { recall, qps }
    }

    #[test]
    fn the_rate_at_a_recall_is_between_the_nearest_settings() {
        let points = [point(0.9, 1000.0), point(0.99, 100.0), point(0.95, 90.0)];
        assert_eq!(frontier(&points), [point(0.9, 1000.0), point(0.99, 100.0)]);
        let near = |recall, qps: f64| {
            let found = at(&points, recall);
            assert!(found.is_some_and(|v| (v / qps - 1.0).abs() < 1e-9), "{found:?}");
        };
        near(0.9, 1000.0);
        near(0.99, 100.0);
        near(0.945, 1000f64.sqrt() * 10.0);
        assert_eq!(at(&points, 0.995), None, "nothing reached it");
        assert_eq!(at(&points, 0.8), None, "nothing is known below");
        assert_eq!(at(&[], 0.9), None);
    }
}
