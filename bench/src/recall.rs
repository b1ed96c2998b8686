//! Recall of the index against brute force over the very vectors the store holds.
//!
//! Invariant: the truth is computed here, in f64 and without the index. Runs after the daemon has ended.

use std::path::Path;

use flashbulb_engine::{Query, Seq, SpaceName, Store, StoreOptions};

use crate::Failure;

/// What was compared.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Recall {
    pub k: usize,
    pub queries: usize,
    pub vectors: usize,
    pub recall: f64,
    pub path: String,
}

/// Opens the store in `dir` and compares its searches for `queries` with brute force.
///
/// # Errors
/// If the store cannot be opened or read.
pub fn measure(
    dir: &Path,
    space: &str,
    options: StoreOptions,
    queries: &[Vec<f32>],
    k: usize,
) -> Result<Recall, Failure> {
    let dim = options.dim;
    let store = Store::open(dir, options)?;
    let space = SpaceName::parse(space)?;
    let (rows, owners) = vectors(&store, &space, dim)?;
    let mut found = 0;
    let mut path = String::new();
    for query in queries {
        let truth = nearest(query, &rows, &owners, k);
        let outcome = store.search(&space, &Query::new(query, k))?;
        path = outcome.path.to_string();
        found += truth.iter().filter(|seq| outcome.hits.iter().any(|h| h.seq == **seq)).count();
    }
    let total = queries.len() * k.min(owners.len());
    Ok(Recall {
        k,
        queries: queries.len(),
        vectors: owners.len(),
        recall: found as f64 / total.max(1) as f64,
        path,
    })
}

/// Every vector of the space and whose it is.
fn vectors(store: &Store, space: &SpaceName, dim: usize) -> Result<(Vec<f32>, Vec<Seq>), Failure> {
    let (mut rows, mut owners) = (Vec::new(), Vec::new());
    let mut after = None;
    loop {
        let page = store.list(space, None, None, after, 1000)?;
        for memory in &page.items {
            for row in store.vectors_of_text(space, &memory.text)?.unwrap_or_default() {
                if row.len() != dim {
                    return Err(format!("a vector has {} components, not {dim}", row.len()).into());
                }
                rows.extend(row);
                owners.push(memory.seq);
            }
        }
        after = page.next;
        if after.is_none() {
            return Ok((rows, owners));
        }
    }
}

/// The `k` memories with the largest dot product, computed in f64.
fn nearest(query: &[f32], rows: &[f32], owners: &[Seq], k: usize) -> Vec<Seq> {
    let query: Vec<f64> = query.iter().map(|v| f64::from(*v)).collect();
    let dot = |row: &[f32]| -> f64 { row.iter().zip(&query).map(|(a, b)| f64::from(*a) * b).sum() };
    let mut scored: Vec<(f64, Seq)> =
        rows.chunks_exact(query.len()).map(dot).zip(owners.iter().copied()).collect();
    scored.sort_unstable_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
    let mut best = Vec::with_capacity(k);
    for (_, seq) in scored {
        if !best.contains(&seq) {
            best.push(seq);
            if best.len() == k {
                break;
            }
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn brute_force_finds_the_nearest_owner_once() {
        let rows = [1.0, 0.0, 0.9, 0.1, 0.0, 1.0, 0.95, 0.0];
        let owners = [Seq(1), Seq(2), Seq(3), Seq(1)];
        assert_eq!(nearest(&[1.0, 0.0], &rows, &owners, 2), [Seq(1), Seq(2)]);
    }
}
