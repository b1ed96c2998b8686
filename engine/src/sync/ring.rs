//! A bounded ring from one thread to another.
//!
//! The one producer and the one consumer each own an end, so neither ever waits for the other, not even where the kernel
//! stops one of them in the middle of an operation: what is shared between priorities must be like that. Algorithm:
//! Lamport, "Specifying Concurrent Program Modules" (TOPLAS 1983), with the orderings of the C11 memory model.
//!
//! Invariant: items come out once each, in the order in which they went in, whole; what is inside when an end goes away is
//! dropped once. Must not know: what an item is.

use super::publication::{Publication, ReleaseAcquire};
use super::shim::{Arc, AtomicU32, Ordering, UnsafeCell};
use std::fmt;
use std::marker::PhantomData;
use std::mem::MaybeUninit;

/// Why an item was not taken in; it comes back with the reason.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PushError<T> {
    /// All places are taken: the consumer is behind.
    Full(T),
    /// The consumer has gone, or closed the ring.
    Closed(T),
}

impl<T> PushError<T> {
    /// The item.
    pub fn into_item(self) -> T {
        match self {
            PushError::Full(item) | PushError::Closed(item) => item,
        }
    }
}

/// What both ends share.
struct Shared<T, P> {
    /// Items ever taken in. Written by the producer with `P::STORE` after the item, read by the consumer with `P::LOAD`
    /// before it takes one. Models: `ring_hands_over_whole_items`, `ring_closes_behind_the_last_item`.
    tail: AtomicU32,
    /// Items ever taken out. Written by the consumer with `P::STORE` after it took the item, read by the producer with
    /// `P::LOAD` before it uses the place again. Model: `ring_reuses_places` (it wraps).
    head: AtomicU32,
    /// 1 when no more is taken in. Set by either end with `P::STORE`, after the producer's last item; read by the consumer
    /// with `P::LOAD` before it looks a last time. Model: `ring_closes_behind_the_last_item`.
    closed: AtomicU32,
    places: Box<[UnsafeCell<MaybeUninit<T>>]>,
    marker: PhantomData<P>,
}

// SAFETY: items go from the producer's thread to the consumer's (`T: Send`); each place is touched by one end at a time, as
// `head` and `tail` say, and each end is owned by one thread (`&mut self`).
unsafe impl<T: Send, P> Sync for Shared<T, P> {}
// SAFETY: as above.
unsafe impl<T: Send, P> Send for Shared<T, P> {}

impl<T, P> Shared<T, P> {
    fn place(&self, number: u32) -> &UnsafeCell<MaybeUninit<T>> {
        // A power of two, so numbers may wrap.
        &self.places[number as usize & (self.places.len() - 1)]
    }
}

impl<T, P> Drop for Shared<T, P> {
    fn drop(&mut self) {
        let (mut head, tail) =
            (self.head.load(Ordering::Relaxed), self.tail.load(Ordering::Relaxed));
        while head != tail {
            // SAFETY: both ends have gone, and the places from `head` to `tail` hold items that nobody took.
            self.place(head).with_mut(|place| unsafe { (*place).assume_init_drop() });
            head = head.wrapping_add(1);
        }
    }
}

/// The end that takes items in.
pub struct Producer<T, P: Publication = ReleaseAcquire> {
    shared: Arc<Shared<T, P>>,
    /// As in `shared`; here, because a thread need not load what it alone writes.
    tail: u32,
}

/// The end that gives items out.
pub struct Consumer<T, P: Publication = ReleaseAcquire> {
    shared: Arc<Shared<T, P>>,
    head: u32,
}

/// A ring with room for `places` items.
///
/// # Panics
/// If `places` is not a power of two below 2³¹.
pub fn ring<T, P: Publication>(places: usize) -> (Producer<T, P>, Consumer<T, P>) {
    assert!(places.is_power_of_two() && places < 1 << 31, "{places} places");
    let shared = Arc::new(Shared {
        tail: AtomicU32::new(0),
        head: AtomicU32::new(0),
        closed: AtomicU32::new(0),
        places: (0..places).map(|_| UnsafeCell::new(MaybeUninit::uninit())).collect(),
        marker: PhantomData,
    });
    (Producer { shared: Arc::clone(&shared), tail: 0 }, Consumer { shared, head: 0 })
}

impl<T, P: Publication> Producer<T, P> {
    /// Takes an item in.
    ///
    /// # Errors
    /// The item, if all places are taken or nobody will take it out.
    pub fn push(&mut self, item: T) -> Result<(), PushError<T>> {
        let shared = &*self.shared;
        if shared.closed.load(Ordering::Relaxed) == 1 {
            return Err(PushError::Closed(item));
        }
        if self.tail.wrapping_sub(shared.head.load(P::LOAD)) as usize == shared.places.len() {
            return Err(PushError::Full(item));
        }
        // SAFETY: the place is free: the consumer took its former item out before it raised `head`, which was loaded
        // with acquire; and this is the only producer.
        shared.place(self.tail).with_mut(|place| unsafe { (*place).write(item) });
        self.tail = self.tail.wrapping_add(1);
        shared.tail.store(self.tail, P::STORE);
        Ok(())
    }

    /// Items inside, as far as this end knows: never less than there are.
    pub fn len(&self) -> usize {
        self.tail.wrapping_sub(self.shared.head.load(Ordering::Relaxed)) as usize
    }

    /// Whether every item was taken out.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether the next push would find no place.
    pub fn is_full(&self) -> bool {
        self.len() == self.shared.places.len()
    }
}

impl<T, P: Publication> Consumer<T, P> {
    /// Takes the oldest item out.
    pub fn pop(&mut self) -> Option<T> {
        let shared = &*self.shared;
        if shared.tail.load(P::LOAD) == self.head {
            return None;
        }
        // SAFETY: the producer wrote the item before it raised `tail`, which was loaded with acquire; and this is the only
        // consumer, which counts the place as free from here on.
        let item = shared.place(self.head).with_mut(|place| unsafe { (*place).assume_init_read() });
        self.head = self.head.wrapping_add(1);
        shared.head.store(self.head, P::STORE);
        Some(item)
    }

    /// Takes items out, oldest first, while the sum of their `cost` stays within `budget`; at least one, if there is one.
    pub fn pop_batch(&mut self, budget: usize, cost: impl Fn(&T) -> usize, into: &mut Vec<T>) {
        let mut spent = 0;
        while let Some(next) = self.peek_cost(&cost) {
            if spent > 0 && spent + next > budget {
                return;
            }
            spent += next.max(1);
            into.extend(self.pop());
        }
    }

    fn peek_cost(&self, cost: impl Fn(&T) -> usize) -> Option<usize> {
        let shared = &*self.shared;
        if shared.tail.load(P::LOAD) == self.head {
            return None;
        }
        // SAFETY: as in `pop`; the item stays where it is.
        Some(shared.place(self.head).with(|place| cost(unsafe { (*place).assume_init_ref() })))
    }

    /// Items inside, as far as this end knows: never more than there are.
    pub fn len(&self) -> usize {
        self.shared.tail.load(Ordering::Relaxed).wrapping_sub(self.head) as usize
    }

    /// Whether nothing is inside, as far as this end knows.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether nothing is inside and nothing will come.
    pub fn is_finished(&self) -> bool {
        // In this order: what came before the closing is seen after it.
        self.shared.closed.load(P::LOAD) == 1 && self.shared.tail.load(P::LOAD) == self.head
    }
}

impl<T, P: Publication> Drop for Producer<T, P> {
    fn drop(&mut self) {
        self.shared.closed.store(1, P::STORE);
    }
}

impl<T, P: Publication> Drop for Consumer<T, P> {
    fn drop(&mut self) {
        self.shared.closed.store(1, P::STORE);
    }
}

impl<T, P: Publication> fmt::Debug for Producer<T, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Producer").field("len", &self.len()).finish_non_exhaustive()
    }
}

impl<T, P: Publication> fmt::Debug for Consumer<T, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Consumer").finish_non_exhaustive()
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use std::thread;

    fn small(places: usize) -> (Producer<usize>, Consumer<usize>) {
        ring(places)
    }

    #[test]
    fn a_full_ring_gives_the_item_back_and_a_closed_one_too() {
        let (mut producer, mut consumer) = small(2);
        assert_eq!(consumer.pop(), None);
        for item in [1, 2] {
            assert_eq!(producer.push(item), Ok(()));
        }
        assert!(producer.is_full());
        assert_eq!(producer.push(3), Err(PushError::Full(3)));
        assert_eq!(consumer.pop(), Some(1));
        assert_eq!(producer.push(3), Ok(()));
        drop(producer);
        assert!(!consumer.is_finished());
        assert_eq!((consumer.pop(), consumer.pop(), consumer.pop()), (Some(2), Some(3), None));
        assert!(consumer.is_finished());
        let (mut producer, consumer) = small(2);
        drop(consumer);
        assert_eq!(producer.push(1), Err(PushError::Closed(1)));
    }

    #[test]
    fn a_batch_keeps_to_its_budget_but_takes_one_at_least() {
        let (mut producer, mut consumer) = small(8);
        for cost in [9, 2, 2, 0, 3, 1] {
            assert_eq!(producer.push(cost), Ok(()));
        }
        let mut take = || {
            let mut batch = Vec::new();
            consumer.pop_batch(5, |cost| *cost, &mut batch);
            batch
        };
        // What costs nothing still counts as one, so that a batch is bounded.
        assert_eq!([take(), take(), take(), take()], [vec![9], vec![2, 2, 0], vec![3, 1], vec![]]);
    }

    #[test]
    fn what_is_inside_is_dropped_once() {
        let counted = Arc::new(());
        let (mut producer, mut consumer) = ring::<_, ReleaseAcquire>(4);
        for _ in 0..3 {
            assert!(producer.push(Arc::clone(&counted)).is_ok());
        }
        drop(consumer.pop());
        assert_eq!(Arc::strong_count(&counted), 3);
        drop(producer);
        drop(consumer);
        assert_eq!(Arc::strong_count(&counted), 1);
    }

    #[test]
    fn many_items_cross_in_order() {
        let (mut producer, mut consumer) = small(16);
        thread::scope(|scope| {
            scope.spawn(move || {
                for item in 0..200_000 {
                    let mut waiting = item;
                    while let Err(back) = producer.push(waiting) {
                        waiting = back.into_item();
                        thread::yield_now();
                    }
                }
            });
            let mut next = 0;
            while !consumer.is_finished() {
                match consumer.pop() {
                    Some(item) => {
                        assert_eq!(item, next);
                        next += 1;
                    }
                    None => thread::yield_now(),
                }
            }
            assert_eq!(next, 200_000);
        });
    }
}
