//! The interactive lane: a few embedding sessions that connection threads check out and run themselves.
//!
//! Invariant: a session is held for one window of text and given back, also on an error or a panic, so that a long query
//! cannot keep a short one waiting for longer than one window; the last window's may be kept for a short search. What is
//! no longer wanted, because its deadline has passed or its client has gone, is not embedded. It must not know the bulk
//! lane, nor who may wait for how long: that is the [`Line`]'s.

use crate::embed::{EmbedSession, Embedder, Helper, Tokens};
use crate::rpc::{ErrorCode, RpcError};
use crate::service::counters::{Counters, count};
use crate::service::errors;
use crate::service::lanes::LaneError;
use crate::service::lanes::line::{Line, Turn, Until, past_deadline};
use serde::Serialize;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// Sessions, and who waits for one.
pub struct Interactive {
    embedder: Arc<Embedder>,
    sessions: usize,
    line: Line<EmbedSession>,
    /// Windows being embedded at this moment, so that background work can give way. Counted by who has a session, read by the
    /// background's thread; Relaxed: a hint. No model.
    at_work: Arc<AtomicUsize>,
    /// For the request that finds it free.
    helper: Option<Helper>,
    counters: Arc<Counters>,
}

/// What somebody wants embedded, and for how long they want it.
pub struct Wanted<'a> {
    /// Until when.
    pub until: Until,
    /// Whether the client has gone; asked before each window.
    pub gone: &'a dyn Fn() -> bool,
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
    /// Microseconds that the next request would wait, by what is ahead of it.
    pub standing_wait_us: u64,
    /// Requests that were refused because they could not be answered in time.
    pub refused: u64,
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
        let made = (0..sessions.max(1)).map(|_| embedder.session()).collect::<Result<Vec<_>, _>>();
        let made = made?;
        let helper = (helper && embedder.shares_rows()).then(Helper::start).transpose()?;
        Ok(Self {
            embedder,
            sessions: made.len(),
            line: Line::new(made),
            at_work: Arc::default(),
            helper,
            counters,
        })
    }

    /// How many windows are being embedded, at each moment.
    #[must_use]
    pub fn at_work(&self) -> Arc<AtomicUsize> {
        Arc::clone(&self.at_work)
    }

    /// Embeds a query; more than one window where it is longer than the model's.
    ///
    /// # Errors
    /// `Busy`, `DeadlineExceeded`, or `Embedding` with the runtime's reason.
    pub fn embed_query(&self, text: &str, wanted: &Wanted<'_>) -> Result<Embedded<'_>, RpcError> {
        let begun = Instant::now();
        let windows = self.embedder.query_windows(text);
        let tokenised = begun.elapsed();
        let windows = windows.map_err(|error| errors::of_embedding(&error))?;
        Ok(Embedded { tokenised, ..self.embed(&windows, wanted)? })
    }

    /// Embeds a memory's text.
    ///
    /// # Errors
    /// As [`Self::embed_query`].
    pub fn embed_document(
        &self,
        text: &str,
        wanted: &Wanted<'_>,
    ) -> Result<Embedded<'_>, RpcError> {
        let begun = Instant::now();
        let windows = self.embedder.document_windows(text);
        let tokenised = begun.elapsed();
        let windows = windows.map_err(|error| errors::of_embedding(&error))?;
        Ok(Embedded { tokenised, ..self.embed(&windows, wanted)? })
    }

    fn embed(&self, windows: &[Tokens], wanted: &Wanted<'_>) -> Result<Embedded<'_>, RpcError> {
        if windows.is_empty() {
            return Err(errors::of_embedding(&"the text has no tokens"));
        }
        self.check(wanted)?;
        let tokens = windows.iter().map(Tokens::len).sum();
        self.line.admit(tokens, &wanted.until, Instant::now())?;
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
            let turn = self.line.turn(tokens.len(), wanted.until.deadline);
            let turn = turn.inspect_err(|error| self.note(error))?;
            self.at_work.fetch_add(1, Ordering::Relaxed);
            let mut lease = Lease { lane: self, turn: Some(turn), ran: false };
            embedded.waited += asked.elapsed();
            self.check(wanted)?;
            // Borrowed only now: who waits for a session must not keep the helper from who has one.
            let _help = self.helper.as_ref().map(Helper::borrow);
            let vector = lease.session().embed(tokens).map_err(|error| {
                count(&self.counters.embed_failures, 1);
                errors::of_embedding(&error)
            })?;
            lease.ran = true;
            count(&self.counters.windows_interactive, 1);
            embedded.vectors.push(vector);
            embedded.lease = Some(lease);
        }
        Ok(embedded)
    }

    /// Whether it is still wanted.
    fn check(&self, wanted: &Wanted<'_>) -> Result<(), RpcError> {
        if Instant::now() >= wanted.until.deadline {
            let error = past_deadline("embedding");
            self.note(&error);
            return Err(error);
        }
        if (wanted.gone)() {
            count(&self.counters.cancelled_gone, 1);
            // Nobody reads this.
            return Err(RpcError::new(ErrorCode::DeadlineExceeded, "the client has gone"));
        }
        Ok(())
    }

    fn note(&self, error: &RpcError) {
        if error.is(ErrorCode::DeadlineExceeded) {
            count(&self.counters.cancelled_deadline, 1);
        }
    }

    /// What the lane is doing.
    #[must_use]
    pub fn status(&self) -> InteractiveStatus {
        let reading = self.line.read();
        InteractiveStatus {
            sessions: self.sessions,
            free: reading.free,
            waiting: reading.waiting,
            standing_wait_us: u64::try_from(reading.wait.as_micros()).unwrap_or(u64::MAX),
            refused: reading.refused,
            helped: self.helper.as_ref().map(Helper::helped),
        }
    }
}

/// One session, given back when dropped.
pub struct Lease<'a> {
    lane: &'a Interactive,
    turn: Option<Turn<EmbedSession>>,
    /// Whether the session was used.
    ran: bool,
}

impl Lease<'_> {
    fn session(&mut self) -> &mut EmbedSession {
        &mut self.turn.as_mut().expect("a lease holds its session until it is dropped").session
    }
}

impl Drop for Lease<'_> {
    fn drop(&mut self) {
        if let Some(turn) = self.turn.take() {
            self.lane.at_work.fetch_sub(1, Ordering::Relaxed);
            self.lane.line.give_back(turn, self.ran);
        }
    }
}
