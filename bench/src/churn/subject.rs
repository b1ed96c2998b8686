//! The index that is measured, and which vector of the data set each of its numbers is of.
//!
//! Invariant: what a search finds is held against this book, not against the index's own: a number that was deleted, or never given
//! out, ends the run. Must not know what a figure is compared with.

use std::time::Instant;

use flashbulb_engine::index::{
    Accept, Layout, RowSource, Scratch, SearchParams, SearchPath, SearchResult, VectorIndex,
    VectorNo,
};
use flashbulb_kernels::Kernels;

use super::plan::Step;
use super::result::{Point, State};
use crate::Failure;
use crate::ann::dataset::Dataset;

/// Operations after which the index's own work is done to its end.
pub const BETWEEN: usize = 64;
/// No neighbour, as the data set has it.
const NONE: u32 = u32::MAX;

/// An index of vectors of the data set.
pub struct Subject<'a> {
    data: &'a Dataset,
    index: VectorIndex,
    rows: Rows<'a>,
    /// The number that each vector lives under; none while it is deleted.
    numbers: Vec<Option<VectorNo>>,
}

/// The f32 rows, in memory.
struct Rows<'a> {
    dim: usize,
    base: &'a [f32],
    /// The vector that each number is of.
    owners: Vec<u32>,
    /// Rows of the numbers that come after those, which are not of the data set.
    held: Vec<f32>,
}

impl Rows<'_> {
    fn of(&self, vector: u32) -> &[f32] {
        &self.base[vector as usize * self.dim..][..self.dim]
    }

    fn row(&self, number: VectorNo) -> Option<&[f32]> {
        let number = number.0 as usize;
        match self.owners.get(number) {
            Some(vector) => Some(self.of(*vector)),
            None => self.held.chunks_exact(self.dim).nth(number - self.owners.len()),
        }
    }
}

impl RowSource for Rows<'_> {
    type Error = Failure;

    fn copy_row(&self, number: VectorNo, out: &mut [f32]) -> Result<(), Failure> {
        let row = self.row(number);
        out.copy_from_slice(row.ok_or_else(|| format!("the index asks for {number:?}"))?);
        Ok(())
    }

    fn prefetch(&self, number: VectorNo) {
        self.row(number).into_iter().for_each(flashbulb_kernels::prefetch);
    }
}

impl<'a> Subject<'a> {
    /// An index of all vectors, pushed in this order and built at once; beside it the seconds that took.
    ///
    /// # Errors
    /// If the index numbers them otherwise than by their pushes.
    pub fn build(
        data: &'a Dataset,
        order: impl Iterator<Item = u32>,
        layout: Layout,
        threads: usize,
    ) -> Result<(Subject<'a>, f64), Failure> {
        let rows = Rows { dim: data.dim, base: &data.base, owners: Vec::new(), held: Vec::new() };
        let (metric, kernels) = (data.metric.of_index(), Kernels::detect());
        let index = VectorIndex::with_layout(data.dim, metric, layout, kernels);
        let mut subject = Subject { data, index, rows, numbers: vec![None; data.len()] };
        let begun = Instant::now();
        for vector in order {
            subject.insert(vector)?;
        }
        subject.index.build(threads);
        Ok((subject, begun.elapsed().as_secs_f64()))
    }

    fn insert(&mut self, vector: u32) -> Result<(), Failure> {
        let number = self.index.push(self.rows.of(vector));
        expect(number, self.rows.owners.len())?;
        self.rows.owners.push(vector);
        self.numbers[vector as usize] = Some(number);
        Ok(())
    }

    fn delete(&mut self, vector: u32) -> Result<(), Failure> {
        let number = self.numbers[vector as usize].take();
        let number = number.ok_or_else(|| format!("vector {vector} was deleted before"))?;
        if self.index.kill(number) {
            return Ok(());
        }
        Err(format!("the index says that {number:?} of vector {vector} was dead before").into())
    }

    /// Does all steps, and the index's work in between and after them; how many seconds that took.
    ///
    /// # Errors
    /// If the index contradicts the book.
    pub fn round(&mut self, steps: &[Step]) -> Result<f64, Failure> {
        let begun = Instant::now();
        for steps in steps.chunks(BETWEEN) {
            for step in steps {
                match step {
                    Step::Delete(vector) => self.delete(*vector)?,
                    Step::Insert(vector) => self.insert(*vector)?,
                }
            }
            while self.work(&mut || true) {}
        }
        Ok(begun.elapsed().as_secs_f64())
    }

    /// The index's own work, as long as `go_on` says; whether there is more.
    pub fn work(&self, go_on: &mut dyn FnMut() -> bool) -> bool {
        self.index.build_step(go_on)
    }

    /// Gives vectors that are not of the data set, for [`Subject::insert_held`].
    pub fn hold(&mut self, rows: Vec<f32>) {
        self.rows.held = rows;
    }

    /// How many vectors are held.
    pub fn held(&self) -> usize {
        self.rows.held.len() / self.rows.dim
    }

    /// Pushes one of them: 0, 1, 2, … in this order.
    ///
    /// # Errors
    /// If there is none, or the index numbers it otherwise.
    pub fn insert_held(&self, at: usize) -> Result<(), Failure> {
        let row = self.rows.held.chunks_exact(self.rows.dim).nth(at);
        let row = row.ok_or_else(|| format!("no vector {at} is held"))?;
        expect(self.index.push(row), self.rows.owners.len() + at)
    }

    /// The data set's queries.
    pub fn queries(&self) -> impl Iterator<Item = &'a [f32]> + Clone {
        self.data.queries.chunks_exact(self.data.dim)
    }

    /// One search of the index.
    ///
    /// # Errors
    /// If it asks for a row that there is not.
    pub fn search(
        &self,
        query: &[f32],
        params: &SearchParams,
        scratch: &mut Scratch,
    ) -> Result<SearchResult, Failure> {
        self.index.search(query, params, &self.rows, Accept::All, scratch)
    }

    /// The vector that a found number is of; none for a held one.
    ///
    /// # Errors
    /// If the number is of a vector that was deleted under it.
    pub fn vector(&self, number: VectorNo) -> Result<Option<u32>, Failure> {
        let Some(vector) = self.rows.owners.get(number.0 as usize) else { return Ok(None) };
        let lives = self.numbers[*vector as usize];
        if lives == Some(number) {
            return Ok(Some(*vector));
        }
        let lives = lives.map_or_else(|| "deleted".to_owned(), |no| format!("now {no:?}"));
        Err(format!("a search found {number:?} of vector {vector}, which is {lives}").into())
    }

    /// What the index is now: recall at each width against all vectors of the data set, and what an audit says.
    ///
    /// # Errors
    /// If not all of them live, the audit finds a problem, or a search finds what is dead.
    pub fn state(&self, seconds: f64, widths: &[usize], k: usize) -> Result<State, Failure> {
        let live = self.index.live();
        let known = self.numbers.iter().flatten().count();
        if live as usize != known || known != self.data.len() {
            let all = self.data.len();
            return Err(format!(
                "the index has {live} live vectors, the book {known}, the data set {all}"
            )
            .into());
        }
        let audit = self.index.audit();
        if audit.problem_count > 0 {
            let (count, first) = (audit.problem_count, audit.problems.join("; "));
            return Err(format!("the index's audit found {count} problem(s): {first}").into());
        }
        let points = widths.iter().map(|width| self.point(*width, k));
        Ok(State {
            seconds,
            vectors: self.index.len(),
            live,
            in_graph: self.index.graph_len(),
            links: audit.links,
            unreachable: audit.unreachable,
            points: points.collect::<Result<_, _>>()?,
        })
    }

    fn point(&self, width: usize, k: usize) -> Result<Point, Failure> {
        let params = SearchParams { ef: width.max(k), ..SearchParams::new(k) };
        let (mut scratch, mut found) = (Scratch::new(), Vec::new());
        let (mut walked, mut visited, mut asked) = (0, 0, 0);
        for query in self.queries() {
            let result = self.search(query, &params, &mut scratch)?;
            let from = found.len();
            for (number, _) in &result.hits {
                found.push(self.vector(*number)?.unwrap_or(NONE));
            }
            found.resize(from + k, NONE);
            asked += 1;
            visited += result.visited;
            let by_graph = matches!(result.path, SearchPath::Graph | SearchPath::GraphAndScan);
            walked += u64::from(by_graph);
        }
        let mean = |sum: u64| sum as f64 / f64::from(asked.max(1));
        let recall = self.data.recall(&found, k);
        Ok(Point { width, recall, walked: mean(walked), visited: mean(visited) })
    }
}

fn expect(number: VectorNo, at: usize) -> Result<(), Failure> {
    if number.0 as usize == at {
        return Ok(());
    }
    Err(format!("push {at} of the index got {number:?}").into())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::metric::Metric;

    /// Four vectors along the axes, and a query that is nearest to the last.
    fn axes() -> Dataset {
        let mut base = vec![0.0; 16 * 4];
        (0..4).for_each(|at| base[at * 16 + at] = 1.0);
        let mut query = vec![0.1; 16];
        query[3] = 1.0;
        Dataset::new(("axes".into(), 16, base, query), Metric::Cosine, 1).unwrap()
    }

    fn best(subject: &Subject<'_>) -> Result<Option<u32>, Failure> {
        let query = subject.queries().next().unwrap();
        let found = subject.search(query, &SearchParams::new(1), &mut Scratch::new())?;
        subject.vector(found.hits[0].0)
    }

    #[test]
    fn a_number_is_mapped_to_the_vector_it_was_given_to() {
        let data = axes();
        let (mut subject, _) =
            Subject::build(&data, [2, 3, 0, 1].into_iter(), Layout::Full, 1).unwrap();
        assert_eq!(subject.vector(VectorNo(0)).unwrap(), Some(2));
        assert_eq!(best(&subject).unwrap(), Some(3));
        subject.round(&[Step::Delete(3), Step::Delete(2), Step::Insert(3)]).unwrap();
        assert_eq!(subject.vector(VectorNo(4)).unwrap(), Some(3));
        assert_eq!(best(&subject).unwrap(), Some(3));
        let error = subject.vector(VectorNo(1)).unwrap_err().to_string();
        assert!(error.contains("VectorNo(1) of vector 3, which is now VectorNo(4)"), "{error}");
        let error = subject.vector(VectorNo(0)).unwrap_err().to_string();
        assert!(error.contains("which is deleted"), "{error}");
        let error = subject.state(0.0, &[16], 1).unwrap_err().to_string();
        assert!(error.contains("3 live vectors, the book 3, the data set 4"), "{error}");
        assert!(subject.round(&[Step::Delete(2)]).is_err(), "it is deleted already");
        subject.round(&[Step::Insert(2)]).unwrap();
        let state = subject.state(0.0, &[16], 1).unwrap();
        assert_eq!((state.vectors, state.live, state.unreachable), (6, 4, 0));
        assert!((state.points[0].recall - 1.0).abs() < 1e-9);
    }

    #[test]
    fn held_vectors_come_after_those_of_the_data_set() {
        let data = axes();
        let (mut subject, _) = Subject::build(&data, 0..4, Layout::Lean, 1).unwrap();
        let held = data.queries.clone();
        subject.hold(held.clone());
        assert_eq!(subject.held(), 1);
        subject.insert_held(0).unwrap();
        assert_eq!(best(&subject).unwrap(), None, "the held one is the nearest");
        let mut row = vec![0.0; 16];
        subject.rows.copy_row(VectorNo(4), &mut row).unwrap();
        assert_eq!(row, held);
        assert!(subject.rows.copy_row(VectorNo(5), &mut row).is_err());
        assert!(subject.insert_held(1).is_err());
    }
}
