//! What a handler gets besides its parameters, and the guard around every call.
//!
//! Invariant: each request is counted, admitted or turned away, and cannot take the daemon down by a panic. It must not
//! know what a method does.

use crate::rpc::{ErrorCode, Method, RpcError};
use crate::service::Service;
use crate::service::counters::count;
use crate::service::gate::Permit;
use crate::service::lifecycle::Cause;
use std::cell::{Cell, RefCell};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// When to try again after `Busy` for requests in flight.
const BUSY_RETRY_MS: u64 = 50;

/// Requests slower than this are logged, unless they wait on their client's wish.
const SLOW: Duration = Duration::from_secs(1);

/// One connection's view of the service.
pub struct Context {
    /// The service.
    pub service: Arc<Service>,
    arrived: Cell<Instant>,
    permit: RefCell<Option<Permit>>,
    /// Says whether the client has gone for good.
    gone: Box<dyn Fn() -> bool>,
    /// The request at hand waits for something on its client's wish.
    waits: Cell<bool>,
}

impl Context {
    /// A view for one thread, whose client never goes.
    #[must_use]
    pub fn new(service: Arc<Service>) -> Self {
        Self::with_client(service, || false)
    }

    /// A view for one thread; `gone` says whether nobody will read an answer any more.
    #[must_use]
    pub fn with_client(service: Arc<Service>, gone: impl Fn() -> bool + 'static) -> Self {
        Self {
            service,
            arrived: Cell::new(Instant::now()),
            permit: RefCell::new(None),
            gone: Box::new(gone),
            waits: Cell::new(false),
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
        let begun = Instant::now();
        self.waits.set(false);
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
        let took = begun.elapsed();
        if took > SLOW && !self.waits.get() {
            tracing::warn!(method = method.name, took_ms = took.as_millis(), "slow request");
        }
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
