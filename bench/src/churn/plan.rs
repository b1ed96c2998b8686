//! What one round does: which vectors are deleted and inserted again, in one random order.
//!
//! Invariant: each chosen vector is deleted once and, later, inserted once; the same random numbers give the same round. Must not
//! know the index.

use rand::Rng;
use rand::seq::SliceRandom;

/// One operation on a vector of the data set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    Delete(u32),
    /// Of one that was deleted in the same round; it gets another number in the index.
    Insert(u32),
}

/// Deletes and inserts of `chosen` of the vectors, every order in which a vector is deleted first as likely as any other.
pub fn round(vectors: u32, chosen: usize, rng: &mut impl Rng) -> Vec<Step> {
    let mut all: Vec<u32> = (0..vectors).collect();
    let (chosen, _) = all.partial_shuffle(rng, chosen);
    let mut order = [&*chosen, &*chosen].concat();
    order.shuffle(rng);
    let mut deleted = vec![false; vectors as usize];
    let step = |vector: u32| match std::mem::replace(&mut deleted[vector as usize], true) {
        false => Step::Delete(vector),
        true => Step::Insert(vector),
    };
    order.into_iter().map(step).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;
    use std::collections::HashSet;

    #[test]
    fn each_chosen_vector_is_deleted_and_then_inserted_once() {
        for chosen in [1, 30, 100] {
            let plan = round(100, chosen, &mut ChaCha8Rng::seed_from_u64(7));
            assert_eq!(plan.len(), 2 * chosen);
            let (mut deleted, mut inserted) = (HashSet::new(), HashSet::new());
            for step in &plan {
                match step {
                    Step::Delete(vector) => assert!(deleted.insert(*vector) && *vector < 100),
                    Step::Insert(vector) => {
                        assert!(deleted.contains(vector) && inserted.insert(*vector));
                    }
                }
            }
            assert_eq!((deleted.len(), &deleted), (chosen, &inserted));
        }
    }

    #[test]
    fn the_same_seed_gives_the_same_rounds_and_they_differ() {
        let two = |seed| {
            let mut rng = ChaCha8Rng::seed_from_u64(seed);
            [round(1000, 300, &mut rng), round(1000, 300, &mut rng)]
        };
        let [first, second] = two(1);
        assert_eq!(two(1), [first.clone(), second.clone()]);
        assert_ne!(first, second);
        assert_ne!(two(2)[0], first);
        let turns = first.windows(2).filter(|w| {
            matches!(w, [Step::Delete(_), Step::Insert(_)] | [Step::Insert(_), Step::Delete(_)])
        });
        assert!(turns.count() > 150, "deletes and inserts take turns");
    }
}
