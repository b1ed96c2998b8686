//! What a handler gets besides its parameters, and the guard around every call.
//!
//! Invariant: each request is counted, timed, admitted or turned away, and cannot take the daemon down by a panic. A slow
//! one is logged with its stages and never with what a client sent. It must not know what a method does.

use crate::rpc::{ErrorCode, Method, RpcError};
use crate::service::Service;
use crate::service::clock::{Stage, StageClock, Stages};
use crate::service::counters::count;
use crate::service::gate::Permit;
use crate::service::lifecycle::Cause;
use crate::service::metrics::{MethodNo, Outcome};
use crate::service::output::micros;
use std::cell::{Cell, RefCell};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// When to try again after `Busy` for requests in flight.
const BUSY_RETRY_MS: u64 = 50;

/// One connection's view of the service.
pub struct Context {
    /// The service.
    pub service: Arc<Service>,
    /// Where the time of the request at hand goes; handlers mark their stages.
    pub clock: StageClock,
    arrived: Cell<Instant>,
    permit: RefCell<Option<Permit>>,
    /// Says whether the client has gone for good.
    gone: Box<dyn Fn() -> bool + Send>,
    /// The request at hand waits for something on its client's wish.
    waits: Cell<bool>,
    /// The request handled last, until its answer is written.
    last: Cell<Option<Handled>>,
    /// Requests of the frame at hand whose answer is not written yet, by method.
    unwritten: Box<[Cell<u64>]>,
}

/// A request whose answer is ready.
#[derive(Clone, Copy)]
struct Handled {
    method: &'static str,
    /// From its arrival.
    took: Duration,
    /// Without what it stood behind other requests of its connection, which is the client's doing.
    own: Duration,
    stages: Stages,
    waits: bool,
}

impl Context {
    /// A view for one thread, whose client never goes.
    #[must_use]
    pub fn new(service: Arc<Service>) -> Self {
        Self::with_client(service, || false)
    }

    /// A view for one thread; `gone` says whether nobody will read an answer any more.
    #[must_use]
    pub fn with_client(service: Arc<Service>, gone: impl Fn() -> bool + Send + 'static) -> Self {
        let unwritten = (0..service.metrics.methods()).map(|_| Cell::new(0)).collect();
        Self {
            service,
            clock: StageClock::default(),
            arrived: Cell::new(Instant::now()),
            permit: RefCell::new(None),
            gone: Box::new(gone),
            waits: Cell::new(false),
            last: Cell::new(None),
            unwritten,
        }
    }

    /// Whether nobody will read an answer any more.
    #[must_use]
    pub fn is_gone(&self) -> bool {
        (self.gone)()
    }

    /// Sets when the frame at hand had arrived in whole.
    pub fn set_arrived(&self, arrived: Instant) {
        self.arrived.set(arrived);
    }

    /// When the frame at hand had arrived in whole; deadlines and timings count from here.
    #[must_use]
    pub fn arrived(&self) -> Instant {
        self.arrived.get()
    }

    /// Gives up the request's place among those in flight: what only waits must not keep others from working.
    pub fn stop_counting(&self) {
        self.permit.borrow_mut().take();
        self.waits.set(true);
    }

    /// Runs one method on parameters as written.
    ///
    /// # Errors
    /// Whatever the method answers; `Busy` and `ShuttingDown` before it is begun; `InternalError` where it panicked.
    pub fn invoke(
        &self,
        method: &'static Method<Self>,
        params: Option<&str>,
        out: &mut Vec<u8>,
    ) -> Result<(), RpcError> {
        let counters = &self.service.counters;
        count(&counters.requests, 1);
        // In a batch, the answer of the request before is ready; its way into the socket is the whole batch's.
        self.report_last(None);
        let begun = Instant::now();
        self.waits.set(false);
        self.clock.begin(self.arrived());
        let outcome = self.admit(method).and_then(|()| {
            let call = || (method.call)(self, params, out);
            catch_unwind(AssertUnwindSafe(call)).unwrap_or_else(|_| {
                count(&counters.panics, 1);
                Err(RpcError::new(
                    ErrorCode::InternalError,
                    format!("{} panicked; this is a bug, the log says where", method.name),
                ))
            })
        });
        self.handled(method.name, begun, Outcome::of(&outcome));
        self.permit.borrow_mut().take();
        if let Err(error) = &outcome {
            self.failed(method, error);
        }
        outcome
    }

    fn admit(&self, method: &'static Method<Self>) -> Result<(), RpcError> {
        if self.service.lifecycle.is_stopping() {
            return Err(RpcError::new(
                ErrorCode::ShuttingDown,
                "the service is stopping; this request was not begun",
            ));
        }
        if method.counted {
            let gate = &self.service.in_flight;
            let permit = gate
                .enter()
                .ok_or_else(|| RpcError::busy("requests in flight", gate.limit(), BUSY_RETRY_MS))?;
            *self.permit.borrow_mut() = Some(permit);
        }
        Ok(())
    }

    /// Counts a request whose answer is ready.
    fn handled(&self, method: &'static str, begun: Instant, outcome: Outcome) {
        let took = self.arrived().elapsed();
        let own = begun.elapsed();
        let stages = self.clock.read();
        if let Some(number) = self.service.metrics.number(method) {
            self.service.metrics.record(number, outcome, took, &stages);
            if let (Some(unwritten), true) =
                (self.unwritten.get(number.0), outcome != Outcome::Busy)
            {
                unwritten.set(unwritten.get() + 1);
            }
        }
        self.last.set(Some(Handled { method, took, own, stages, waits: self.waits.get() }));
    }

    /// Ends the frame at hand: how long its answer took into the socket, `None` where none was due.
    pub fn written(&self, span: Option<Duration>) {
        for (number, unwritten) in self.unwritten.iter().enumerate() {
            let times = unwritten.take();
            if let (Some(span), true) = (span, times > 0) {
                self.service.metrics.record_write(MethodNo(number), span, times);
            }
        }
        self.report_last(span);
    }

    /// Logs the request handled last, if it was slow and did not wait on its client's wish.
    fn report_last(&self, write: Option<Duration>) {
        let Some(mut handled) = self.last.take() else { return };
        if let Some(span) = write {
            handled.stages.add(Stage::Write, span);
            handled.took += span;
            handled.own += span;
        }
        if handled.own > self.service.slow && !handled.waits {
            handled.log();
        }
    }

    fn failed(&self, method: &'static Method<Self>, error: &RpcError) {
        count(&self.service.counters.errors, 1);
        tracing::debug!(method = method.name, %error, "request failed");
        if error.is(ErrorCode::Busy) {
            count(&self.service.counters.busy, 1);
        }
        // Whoever notices first ends the service: a poisoned store must not take another write.
        if error.is(ErrorCode::OutcomeUnknown) {
            self.service.lifecycle.stop(Cause::Poisoned(error.message.clone()));
        }
    }
}

impl Handled {
    /// The stage with the largest share; `other` is what belongs to none, such as reading the parameters.
    fn slowest(&self) -> (&'static str, Duration) {
        let other = ("other", self.took.saturating_sub(self.stages.sum()));
        let stages = self.stages.iter().map(|(stage, span)| (stage.name(), span));
        stages.chain([other]).max_by_key(|&(_, span)| span).unwrap_or(other)
    }

    fn log(&self) {
        let us = |stage| self.stages.micros(stage);
        tracing::warn!(
            method = self.method,
            took_ms = self.took.as_millis(),
            slowest = self.slowest().0,
            queue_us = us(Stage::Queue),
            tokenise_us = us(Stage::Tokenise),
            embed_us = us(Stage::Embed),
            dense_us = us(Stage::Dense),
            lexical_us = us(Stage::Lexical),
            fuse_us = us(Stage::Fuse),
            fetch_us = us(Stage::Fetch),
            store_us = us(Stage::Store),
            write_us = us(Stage::Write),
            other_us = micros(self.took.saturating_sub(self.stages.sum())),
            "slow request"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_slowest_stage_is_named_also_where_it_is_none() {
        let ms = Duration::from_millis;
        let mut handled = Handled {
            method: "a.b",
            took: ms(10),
            own: ms(10),
            stages: Stages::default(),
            waits: false,
        };
        assert_eq!(handled.slowest(), ("other", ms(10)));
        handled.stages.add(Stage::Embed, ms(4));
        handled.stages.add(Stage::Dense, ms(3));
        assert_eq!(handled.slowest(), ("embed", ms(4)));
        handled.stages.add(Stage::Dense, ms(2));
        assert_eq!(handled.slowest(), ("dense", ms(5)));
    }
}
