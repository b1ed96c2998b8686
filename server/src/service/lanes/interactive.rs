//! The interactive lane: a few embedding sessions that connection threads check out and run themselves.
//!
//! Invariant: a session is held for one window of text and given back, also on an error or a panic, so that a long query
//! cannot keep a short one waiting for longer than one window; the last window's may be kept for a short search. Who
//! waits, waits no longer than its deadline, and no more than [`WAITERS`] wait at all. It must not know the bulk lane.

use crate::embed::{EmbedSession, Embedder, Helper, Tokens};
use crate::rpc::{ErrorCode, RpcError};
use crate::service::counters::{Counters, count};
use crate::service::errors;
use crate::service::gate::Gate;
use crate::service::lanes::LaneError;
use parking_lot::{Condvar, Mutex, MutexGuard};
use serde::Serialize;
use serde_json::json;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Most requests that wait for a session.
pub const WAITERS: usize = 64;

/// Sessions, and who waits for one.
pub struct Interactive {
    embedder: Arc<Embedder>,
    sessions: usize,
    /// For the request that finds it free.
    helper: Option<Helper>,
    state: Mutex<State>,
    given_back: Condvar,
    waiting: Arc<Gate>,
    counters: Arc<Counters>,
}

#[derive(Default)]
struct State {
    free: Vec<EmbedSession>,
    /// Who waits, first come first served: a session must not go to a newcomer while others wait for theirs.
    queue: VecDeque<u64>,
    next_ticket: u64,
}

/// What `admin.status` says of the lane.
#[derive(Debug, Serialize)]
pub struct InteractiveStatus {
    /// Sessions there are.
    pub sessions: usize,
    /// Sessions not in use.
    pub free: usize,
    /// Requests that wait for one.
    pub waiting: usize,
    /// Parts of embedding runs that a second thread did; absent where there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub helped: Option<u64>,
}

/// Vectors, one a window, and how long was waited for a session.
pub struct Embedded<'a> {
    /// Unit vectors in the order of the windows.
    pub vectors: Vec<Vec<f32>>,
    /// Time in which no session was free.
    pub waited: Duration,
    /// Time in which the text was cut into tokens and windows.
    pub tokenised: Duration,
    /// The session of the last window, for who is about to use the vectors.
    pub lease: Option<Lease<'a>>,
}

impl Interactive {
    /// Makes the sessions.
    ///
    /// # Errors
    /// When the runtime refuses one, or the system the helper's thread.
    pub fn open(
        embedder: Arc<Embedder>,
        sessions: usize,
        helper: bool,
        counters: Arc<Counters>,
    ) -> Result<Self, LaneError> {
        let free = (0..sessions.max(1)).map(|_| embedder.session()).collect::<Result<Vec<_>, _>>();
        let free = free?;
        let helper = (helper && embedder.shares_rows()).then(Helper::start).transpose()?;
        Ok(Self {
            embedder,
            sessions: free.len(),
            helper,
            state: Mutex::new(State { free, ..State::default() }),
            given_back: Condvar::new(),
            waiting: Gate::new(WAITERS),
            counters,
        })
    }

    /// Embeds a query; more than one window where it is longer than the model's.
    ///
    /// # Errors
    /// `Busy`, `DeadlineExceeded`, or `Embedding` with the runtime's reason.
    pub fn embed_query(&self, text: &str, deadline: Instant) -> Result<Embedded<'_>, RpcError> {
        let begun = Instant::now();
        let windows = self.embedder.query_windows(text);
        let tokenised = begun.elapsed();
        let windows = windows.map_err(|error| errors::of_embedding(&error))?;
        Ok(Embedded { tokenised, ..self.embed(&windows, deadline)? })
    }

    /// Embeds a memory's text.
    ///
    /// # Errors
    /// As [`Self::embed_query`].
    pub fn embed_document(&self, text: &str, deadline: Instant) -> Result<Embedded<'_>, RpcError> {
        let begun = Instant::now();
        let windows = self.embedder.document_windows(text);
        let tokenised = begun.elapsed();
        let windows = windows.map_err(|error| errors::of_embedding(&error))?;
        Ok(Embedded { tokenised, ..self.embed(&windows, deadline)? })
    }

    fn embed(&self, windows: &[Tokens], deadline: Instant) -> Result<Embedded<'_>, RpcError> {
        if windows.is_empty() {
            return Err(errors::of_embedding(&"the text has no tokens"));
        }
        let mut embedded = Embedded {
            vectors: Vec::with_capacity(windows.len()),
            waited: Duration::ZERO,
            tokenised: Duration::ZERO,
            lease: None,
        };
        for tokens in windows {
            // Given back first: others have waited for longer.
            embedded.lease = None;
            let asked = Instant::now();
            let mut lease = self.checkout(deadline)?;
            embedded.waited += asked.elapsed();
            // Borrowed only now: who waits for a session must not keep the helper from who has one.
            let _help = self.helper.as_ref().map(Helper::borrow);
            let vector = lease.session().embed(tokens).map_err(|error| {
                count(&self.counters.embed_failures, 1);
                errors::of_embedding(&error)
            })?;
            count(&self.counters.windows_interactive, 1);
            embedded.vectors.push(vector);
            embedded.lease = Some(lease);
        }
        Ok(embedded)
    }

    fn checkout(&self, deadline: Instant) -> Result<Lease<'_>, RpcError> {
        if Instant::now() >= deadline {
            return Err(past_deadline("embedding"));
        }
        let mut state = self.state.lock();
        if !state.queue.is_empty() || state.free.is_empty() {
            let Some(_waiting) = self.waiting.enter() else {
                return Err(RpcError::busy("embedding sessions", WAITERS, 50));
            };
            self.wait(&mut state, deadline)?;
        }
        Ok(Lease { lane: self, session: state.free.pop() })
    }

    /// Waits until it is this thread's turn and a session is free.
    fn wait(&self, state: &mut MutexGuard<'_, State>, deadline: Instant) -> Result<(), RpcError> {
        let ticket = state.next_ticket;
        state.next_ticket += 1;
        state.queue.push_back(ticket);
        loop {
            if !state.free.is_empty() && state.queue.front() == Some(&ticket) {
                state.queue.pop_front();
                if state.free.len() > 1 {
                    // One is left for the next, who was woken with this one and went back to sleep.
                    self.given_back.notify_all();
                }
                return Ok(());
            }
            if self.given_back.wait_until(state, deadline).timed_out() {
                state.queue.retain(|&waiting| waiting != ticket);
                // The next in the queue may have been waiting for this one only.
                self.given_back.notify_all();
                return Err(past_deadline("an embedding session was free"));
            }
        }
    }

    /// What the lane is doing.
    #[must_use]
    pub fn status(&self) -> InteractiveStatus {
        InteractiveStatus {
            sessions: self.sessions,
            free: self.state.lock().free.len(),
            waiting: self.waiting.taken(),
            helped: self.helper.as_ref().map(Helper::helped),
        }
    }
}

/// `DeadlineExceeded`, with what was waited for.
pub(crate) fn past_deadline(what: &str) -> RpcError {
    RpcError::new(
        ErrorCode::DeadlineExceeded,
        format!("the deadline passed before {what}; raise `deadline_ms` or try again"),
    )
    .with_data(json!({ "what": what }))
}

/// One session, given back when dropped.
pub struct Lease<'a> {
    lane: &'a Interactive,
    session: Option<EmbedSession>,
}

impl Lease<'_> {
    fn session(&mut self) -> &mut EmbedSession {
        self.session.as_mut().expect("a lease holds its session until it is dropped")
    }
}

impl Drop for Lease<'_> {
    fn drop(&mut self) {
        if let Some(session) = self.session.take() {
            self.lane.state.lock().free.push(session);
            self.lane.given_back.notify_all();
        }
    }
}
