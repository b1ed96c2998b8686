//! The line before the embedding sessions: who embeds next, and who is refused instead of kept waiting.
//!
//! Invariant: first come, first served; a session goes from who has it to who is next, and only that one is woken; nobody
//! waits past a deadline, and no more than [`WAITERS`] wait. All who use the line run at ordinary priority, and hold its
//! lock for a few instructions. It must not know what is embedded.
//!
//! Admission: how long a request would have to wait follows from what is ahead of it and from how long the last ones took.
//! A request with a deadline of its own is refused where it could not be answered by then. The others aim at the promise:
//! a short crowd is let in and waits, but where arrivals were too late for a while (`STANDING`), the line stands, and whoever
//! would miss the promise is refused at once, until none had to be for another (`CALM`). (The standing queue as the sign of
//! overload: Nichols and Jacobson, "Controlling Queue Delay", ACM Queue 2012.)

use crate::rpc::{ErrorCode, RpcError};
use parking_lot::{Condvar, Mutex, MutexGuard};
use serde_json::json;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Most requests that wait at one time.
pub const WAITERS: usize = 64;

/// For so long arrivals must have been too late before the line counts as standing.
const STANDING: Duration = Duration::from_millis(100);

/// For so long nobody must have been refused before it no longer does.
const CALM: Duration = Duration::from_secs(1);

/// The part of the promise that waiting and embedding may use. The rest is for reading, searching and writing, and for what
/// the estimate misses: with all of it, searches that were let in at three times the rate that fits had a p99 of 12.7 ms.
const AIM: f64 = 0.7;

/// Longest hint when to try again.
const LONGEST_HINT: Duration = Duration::from_secs(1);

/// When to try again after all places in the line were taken.
const FULL_RETRY_MS: u64 = 50;

/// What a run costs besides its tokens, in tokens; from runs of 5 to 32 tokens, see docs/ARCHITECTURE.md.
const RUN_TOKENS: u64 = 8;

/// What a token is taken to cost before any was embedded.
const FIRST_GUESS_NS: u64 = 100_000;

/// Until when a request is worth answering.
#[derive(Debug, Clone, Copy)]
pub struct Until {
    /// Nobody waits past this.
    pub deadline: Instant,
    /// The request has no deadline of its own and should be answered within this time after it comes to the line.
    pub promise: Option<Duration>,
}

/// Places with something in them, for instance embedding sessions, and who waits for one.
pub struct Line<S> {
    places: usize,
    state: Mutex<State<S>>,
}

struct State<S> {
    free: Vec<S>,
    waiting: VecDeque<Ticket>,
    /// Given to the ticket of that number, which has not taken it yet.
    given: Vec<(u64, S)>,
    next: u64,
    /// Cost of everything that waits or runs, in tokens.
    ahead: u64,
    /// What a token costs, in nanoseconds: a moving mean over about the last 16 runs.
    token_ns: u64,
    /// The first and the last of arrivals that were too late, with none in time between them.
    late: Option<(Instant, Instant)>,
    refusing_until: Option<Instant>,
    refused: u64,
    /// How many were refused lately: each counts for less and less over about a second.
    pressure: f64,
    refused_at: Option<Instant>,
}

struct Ticket {
    number: u64,
    turn: Arc<Condvar>,
}

/// What the line looks like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reading {
    /// Places nobody has.
    pub free: usize,
    /// Requests that wait.
    pub waiting: usize,
    /// How long the next one would wait.
    pub wait: Duration,
    /// Requests that were refused so far.
    pub refused: u64,
}

/// What was taken from the line, and what it costs; to be given back with [`Line::give_back`].
#[derive(Debug)]
pub struct Turn<S> {
    /// The place's content.
    pub session: S,
    cost: u64,
    begun: Instant,
}

impl<S> Line<S> {
    /// A line before `sessions`.
    pub fn new(sessions: Vec<S>) -> Self {
        Self {
            places: sessions.len().max(1),
            state: Mutex::new(State {
                free: sessions,
                waiting: VecDeque::new(),
                given: Vec::new(),
                next: 0,
                ahead: 0,
                token_ns: FIRST_GUESS_NS,
                late: None,
                refusing_until: None,
                refused: 0,
                pressure: 0.0,
                refused_at: None,
            }),
        }
    }

    /// Whether a request of `tokens` may come in at all; to be asked once a request, before its first turn.
    ///
    /// # Errors
    /// `Busy`, with when to try again.
    pub fn admit(&self, tokens: usize, until: &Until, now: Instant) -> Result<(), RpcError> {
        let mut state = self.state.lock();
        if !state.free.is_empty() && state.waiting.is_empty() {
            state.late = None;
            return Ok(());
        }
        let wait = self.wait_of(&state);
        let own = state.time(cost(tokens));
        let answered_in = wait + own;
        match until.promise {
            None if now + answered_in <= until.deadline => Ok(()),
            None => {
                let late = (now + answered_in).saturating_duration_since(until.deadline);
                let limit = until.deadline.saturating_duration_since(now);
                Err(state.refuse(late, own, limit, now))
            }
            // Who takes long by itself cannot be answered within the promise in any case, and may wait as long as it takes.
            Some(promise) if answered_in <= promise.mul_f64(AIM).max(own * 2) => {
                state.late = None;
                Ok(())
            }
            Some(promise) => {
                let stands = state.stands(now);
                if !stands && state.refusing_until.is_none_or(|until| now >= until) {
                    return Ok(());
                }
                state.refusing_until = Some(now + CALM);
                Err(state.refuse(answered_in - promise.mul_f64(AIM), own, promise, now))
            }
        }
    }

    /// Waits for a turn to run `tokens`.
    ///
    /// # Errors
    /// `Busy` where too many wait, `DeadlineExceeded` where the deadline came first.
    pub fn turn(&self, tokens: usize, deadline: Instant) -> Result<Turn<S>, RpcError> {
        let cost = cost(tokens);
        let mut state = self.state.lock();
        if state.waiting.is_empty()
            && let Some(session) = state.free.pop()
        {
            state.ahead += cost;
            return Ok(Turn { session, cost, begun: Instant::now() });
        }
        if state.waiting.len() >= WAITERS {
            state.refused += 1;
            return Err(RpcError::busy("embedding sessions", WAITERS, FULL_RETRY_MS));
        }
        state.ahead += cost;
        match wait(&mut state, deadline) {
            Some(session) => Ok(Turn { session, cost, begun: Instant::now() }),
            None => {
                state.ahead -= cost;
                Err(past_deadline("an embedding session was free"))
            }
        }
    }

    /// Ends a turn. `ran` says whether the session was used, so that its time tells what a token costs.
    pub fn give_back(&self, turn: Turn<S>, ran: bool) {
        let took = u64::try_from(turn.begun.elapsed().as_nanos()).unwrap_or(u64::MAX);
        let mut state = self.state.lock();
        state.ahead = state.ahead.saturating_sub(turn.cost);
        if ran {
            let token_ns = took / turn.cost.max(1);
            state.token_ns = (state.token_ns * 15 + token_ns) / 16;
        }
        match state.waiting.pop_front() {
            Some(ticket) => {
                state.given.push((ticket.number, turn.session));
                drop(state);
                ticket.turn.notify_one();
            }
            None => state.free.push(turn.session),
        }
    }

    /// What the line looks like now.
    pub fn read(&self) -> Reading {
        let state = self.state.lock();
        let wait = if state.free.is_empty() { self.wait_of(&state) } else { Duration::ZERO };
        Reading {
            free: state.free.len(),
            waiting: state.waiting.len(),
            wait,
            refused: state.refused,
        }
    }

    fn wait_of(&self, state: &State<S>) -> Duration {
        state.time(state.ahead) / u32::try_from(self.places).unwrap_or(u32::MAX)
    }
}

impl<S> State<S> {
    fn time(&self, cost: u64) -> Duration {
        Duration::from_nanos(self.token_ns.saturating_mul(cost))
    }

    /// Notes an arrival that is too late, and says whether the line has been standing.
    fn stands(&mut self, now: Instant) -> bool {
        let crowd = self.late.filter(|(_, last)| now.saturating_duration_since(*last) <= STANDING);
        let first = crowd.map_or(now, |(first, _)| first);
        self.late = Some((first, now));
        now.saturating_duration_since(first) >= STANDING
    }

    /// Refuses a request that would be `late`. When to try again: not before the line is shorter, and so late that those
    /// who were refused lately, should all of them come again, find the time that they need.
    fn refuse(&mut self, late: Duration, own: Duration, limit: Duration, now: Instant) -> RpcError {
        self.refused += 1;
        let since =
            self.refused_at.replace(now).map_or(CALM, |at| now.saturating_duration_since(at));
        self.pressure = self.pressure * (-since.as_secs_f64()).exp() + 1.0;
        let hint = (late + own.mul_f64(self.pressure)).min(LONGEST_HINT);
        let ms = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        let (retry_after_ms, limit_ms) = (ms(hint).max(1), ms(limit));
        RpcError::new(
            ErrorCode::Busy,
            format!(
                "busy: by the line before the model this could not be answered in {limit_ms} ms; try again in \
                 {retry_after_ms} ms, or allow more time with `deadline_ms`"
            ),
        )
        .with_data(json!({
            "what": "embedding line", "limit_ms": limit_ms, "retry_after_ms": retry_after_ms
        }))
    }

    fn take_given(&mut self, number: u64) -> Option<S> {
        let at = self.given.iter().position(|(to, _)| *to == number)?;
        Some(self.given.swap_remove(at).1)
    }
}

/// Waits in the line until it is this thread's turn; `None` when the deadline came first.
fn wait<S>(state: &mut MutexGuard<'_, State<S>>, deadline: Instant) -> Option<S> {
    let number = state.next;
    state.next += 1;
    let turn = Arc::new(Condvar::new());
    state.waiting.push_back(Ticket { number, turn: Arc::clone(&turn) });
    loop {
        let in_time = !turn.wait_until(state, deadline).timed_out();
        // One that was given in the last moment is taken all the same: whoever has it finds out that it is late.
        if let Some(session) = state.take_given(number) {
            return Some(session);
        }
        if !in_time {
            state.waiting.retain(|ticket| ticket.number != number);
            return None;
        }
    }
}

fn cost(tokens: usize) -> u64 {
    tokens as u64 + RUN_TOKENS
}

/// `DeadlineExceeded`, with what was waited for.
pub(crate) fn past_deadline(what: &str) -> RpcError {
    RpcError::new(
        ErrorCode::DeadlineExceeded,
        format!("the deadline passed before {what}; raise `deadline_ms` or try again"),
    )
    .with_data(json!({ "what": what }))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::thread;

    const LONG: Duration = Duration::from_secs(60);

    fn promise(ms: u64) -> Until {
        let promise = Some(Duration::from_millis(ms));
        Until { deadline: Instant::now() + LONG, promise }
    }

    /// A line of one session whose tokens cost a millisecond, with one run of 32 tokens under way.
    fn busy_line() -> (Line<()>, Turn<()>) {
        let line = Line::new(vec![()]);
        let turn = line.turn(32, Instant::now() + LONG).unwrap();
        line.state.lock().token_ns = 1_000_000;
        (line, turn)
    }

    #[test]
    fn turns_come_in_order_and_wake_who_is_next() {
        let line = Line::new(vec![0]);
        let order = Mutex::new(Vec::new());
        let first = line.turn(1, Instant::now() + LONG).unwrap();
        thread::scope(|scope| {
            for number in 0..5 {
                while line.read().waiting < number {
                    thread::yield_now();
                }
                let (line, order) = (&line, &order);
                scope.spawn(move || {
                    let turn = line.turn(1, Instant::now() + LONG).unwrap();
                    order.lock().push(number);
                    line.give_back(turn, true);
                });
            }
            while line.read().waiting < 5 {
                thread::yield_now();
            }
            line.give_back(first, true);
        });
        assert_eq!(*order.lock(), [0, 1, 2, 3, 4]);
        let reading = line.read();
        assert_eq!((reading.free, reading.waiting, line.state.lock().ahead), (1, 0, 0));
    }

    #[test]
    fn who_waits_past_the_deadline_leaves_no_trace() {
        let (line, turn) = busy_line();
        let late = line.turn(4, Instant::now() + Duration::from_millis(20)).unwrap_err();
        assert!(late.is(ErrorCode::DeadlineExceeded));
        assert_eq!(line.state.lock().ahead, cost(32));
        line.give_back(turn, true);
        assert_eq!(line.read().free, 1);
    }

    #[test]
    fn a_deadline_that_cannot_be_met_is_refused_at_once_and_one_that_can_is_not() {
        let (line, _turn) = busy_line();
        let now = Instant::now();
        // 40 ms ahead and 16 of its own.
        let within = |ms| Until { deadline: now + Duration::from_millis(ms), promise: None };
        let refused = line.admit(8, &within(50), now).unwrap_err();
        assert!(refused.is(ErrorCode::Busy));
        // 6 too many, and 16 for itself.
        assert_eq!(refused.data.unwrap()["retry_after_ms"], 22);
        assert!(line.admit(8, &within(60), now).is_ok());
        assert_eq!(line.read().refused, 1);
    }

    #[test]
    fn a_crowd_is_let_in_and_a_standing_line_is_not_until_it_is_calm() {
        let (line, turn) = busy_line();
        let begun = Instant::now();
        let ask = |ms: u64, promise_ms| {
            line.admit(8, &promise(promise_ms), begun + Duration::from_millis(ms)).is_ok()
        };
        // 56 ms would be needed, of 80 that are 0.7 of the promise.
        assert!(ask(0, 10) && ask(99, 10), "a crowd");
        assert!(!ask(100, 10), "standing");
        assert!(!ask(101, 79), "it could be answered in time, but not for sure");
        assert!(ask(101, 81), "who can be answered in time is let in");
        assert!(!ask(102, 10), "it stands though one came in between");
        assert!(!ask(1_101, 10), "a second has not passed since the last refusal");
        assert!(ask(2_102, 10), "calm");
        line.give_back(turn, false);
        assert!(ask(2_103, 1), "who finds a session free is never refused");
    }

    #[test]
    fn the_hint_grows_with_those_who_were_refused_and_fades() {
        let (line, _turn) = busy_line();
        let begun = Instant::now();
        let hint = |ms: u64| {
            let now = begun + Duration::from_millis(ms);
            let until = Until { deadline: now + Duration::from_millis(50), promise: None };
            let refused = line.admit(8, &until, now).unwrap_err();
            refused.data.unwrap()["retry_after_ms"].as_u64().unwrap()
        };
        assert_eq!((hint(0), hint(0), hint(0)), (22, 38, 54));
        for _ in 0..100 {
            hint(0);
        }
        assert_eq!(hint(0), 1000);
        assert_eq!(hint(20_000), 22);
    }

    #[test]
    fn who_takes_long_by_itself_may_wait_for_as_long() {
        let (line, _turn) = busy_line();
        let begun = Instant::now();
        // 40 ms ahead: 108 of its own in all, which is more than the wait.
        for ms in [0, 200] {
            assert!(line.admit(100, &promise(10), begun + Duration::from_millis(ms)).is_ok());
        }
    }

    #[test]
    fn no_more_than_the_limit_wait() {
        let (line, turn) = busy_line();
        thread::scope(|scope| {
            for _ in 0..WAITERS {
                scope.spawn(|| {
                    let turn = line.turn(1, Instant::now() + LONG).unwrap();
                    line.give_back(turn, false);
                });
            }
            while line.read().waiting < WAITERS {
                thread::yield_now();
            }
            assert!(line.turn(1, Instant::now() + LONG).unwrap_err().is(ErrorCode::Busy));
            line.give_back(turn, false);
        });
        assert_eq!(line.read().free, 1);
    }

    #[test]
    fn what_a_token_costs_is_learnt() {
        let line = Line::new(vec![()]);
        line.state.lock().token_ns = 50_000_000;
        for _ in 0..100 {
            let turn = line.turn(8, Instant::now() + LONG).unwrap();
            line.give_back(turn, true);
        }
        assert!(line.state.lock().token_ns < 1_000_000);
    }
}
