//! A bounded box that many threads put letters into and one empties.
//!
//! A letter is a node of a list whose head is swapped (Treiber, "Systems Programming: Coping with Parallelism", 1986);
//! who empties takes the whole list at once, so no node is ever reached by two threads and the ABA problem cannot arise.
//! A thread that the kernel stops while it puts a letter in keeps no other from doing so.
//!
//! Invariant: each letter comes out once, whole, letters of one thread in their order. Must not know: what a letter says.

use super::publication::{Publication, ReleaseAcquire};
use super::shim::{AtomicPtr, AtomicU32, Ordering};
use std::fmt;
use std::marker::PhantomData;
use std::ptr;

struct Letter<T> {
    item: T,
    next: *mut Letter<T>,
}

/// The box.
pub struct Mailbox<T, P = ReleaseAcquire> {
    /// The newest letter. Swapped in by who puts one in (`P::STORE`), taken with the whole list by who empties (`P::LOAD`).
    /// Models: `mailbox_delivers_each_letter_once`, `mailbox_wakes_its_owner`.
    newest: AtomicPtr<Letter<T>>,
    /// Letters inside or about to be. Raised before a letter is put in, lowered after it was taken out, so Relaxed: it
    /// bounds the box and orders nothing. Model: `mailbox_is_bounded`.
    len: AtomicU32,
    places: u32,
    marker: PhantomData<(Box<Letter<T>>, P)>,
}

// SAFETY: letters are moved in from any thread and out to any (`T: Send`); nobody reaches a letter that is inside.
unsafe impl<T: Send, P> Sync for Mailbox<T, P> {}
// SAFETY: it owns its letters.
unsafe impl<T: Send, P> Send for Mailbox<T, P> {}

impl<T> Mailbox<T> {
    /// An empty box with room for `places` letters.
    pub fn new(places: u32) -> Mailbox<T> {
        Mailbox::with_publication(places)
    }
}

impl<T, P: Publication> Mailbox<T, P> {
    /// As [`Mailbox::new`], published as `P` says.
    pub fn with_publication(places: u32) -> Mailbox<T, P> {
        Mailbox {
            newest: AtomicPtr::new(ptr::null_mut()),
            len: AtomicU32::new(0),
            places,
            marker: PhantomData,
        }
    }

    /// Puts a letter in.
    ///
    /// # Errors
    /// The letter, if the box is full.
    pub fn put(&self, item: T) -> Result<(), T> {
        let room = |len: u32| (len < self.places).then_some(len + 1);
        if self.len.fetch_update(Ordering::Relaxed, Ordering::Relaxed, room).is_err() {
            return Err(item);
        }
        let letter = Box::into_raw(Box::new(Letter { item, next: ptr::null_mut() }));
        let mut newest = self.newest.load(Ordering::Relaxed);
        loop {
            // SAFETY: the letter is not in the box yet, so this thread alone knows it.
            unsafe { (*letter).next = newest };
            match self.newest.compare_exchange(newest, letter, P::STORE, Ordering::Relaxed) {
                Ok(_) => return Ok(()),
                Err(now) => newest = now,
            }
        }
    }

    /// Takes all letters out, in the order in which they were put in.
    pub fn empty(&self) -> Vec<T> {
        let mut items = Vec::new();
        let mut at = self.newest.swap(ptr::null_mut(), P::LOAD);
        while !at.is_null() {
            // SAFETY: the swap took the whole list from the box, so each of its letters, made by `Box::into_raw`, is this
            // thread's alone; what their writers wrote came before the exchanges that the swap has acquired.
            let letter = unsafe { Box::from_raw(at) };
            at = letter.next;
            items.push(letter.item);
        }
        items.reverse();
        self.len.fetch_sub(items.len() as u32, Ordering::Relaxed);
        items
    }

    /// Letters inside, about.
    pub fn len(&self) -> usize {
        self.len.load(Ordering::Relaxed) as usize
    }

    /// Whether no letter is inside, about.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl<T, P> Drop for Mailbox<T, P> {
    fn drop(&mut self) {
        let mut at = self.newest.swap(ptr::null_mut(), Ordering::Acquire);
        while !at.is_null() {
            // SAFETY: nobody else has the box any more; the letters were made by `Box::into_raw`.
            at = unsafe { Box::from_raw(at) }.next;
        }
    }
}

impl<T, P> fmt::Debug for Mailbox<T, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mailbox").field("places", &self.places).finish_non_exhaustive()
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::thread;

    #[test]
    fn letters_come_out_in_order_and_a_full_box_gives_back() {
        let mailbox = Mailbox::new(3);
        assert!(mailbox.is_empty() && mailbox.empty().is_empty());
        for item in 1..=3 {
            assert_eq!(mailbox.put(item), Ok(()));
        }
        assert_eq!(mailbox.put(4), Err(4));
        assert_eq!(mailbox.empty(), [1, 2, 3]);
        assert_eq!(mailbox.put(4), Ok(()));
        assert_eq!(mailbox.len(), 1);
    }

    #[test]
    fn what_is_inside_is_dropped_once() {
        let counted = Arc::new(());
        let mailbox = Mailbox::new(4);
        for _ in 0..2 {
            assert!(mailbox.put(Arc::clone(&counted)).is_ok());
        }
        drop(mailbox);
        assert_eq!(Arc::strong_count(&counted), 1);
    }

    #[test]
    fn many_threads_lose_nothing() {
        const EACH: usize = 50_000;
        let mailbox = Mailbox::new(64);
        let mut seen = vec![Vec::new(); 3];
        thread::scope(|scope| {
            for thread in 0..3 {
                let mailbox = &mailbox;
                scope.spawn(move || {
                    for number in 0..EACH {
                        while mailbox.put((thread, number)).is_err() {
                            thread::yield_now();
                        }
                    }
                });
            }
            while seen.iter().map(Vec::len).sum::<usize>() < 3 * EACH {
                mailbox.empty().into_iter().for_each(|(thread, number): (usize, usize)| {
                    seen[thread].push(number);
                });
            }
        });
        for numbers in seen {
            assert!(numbers.into_iter().eq(0..EACH));
        }
    }
}
