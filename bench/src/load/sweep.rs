//! The search for the knee: the highest rate at which enough requests are answered in time.
//!
//! Invariant: a step decides by every request it sent; a step that failed while its generator was late is asked once more
//! before it decides. Must not know how a load is offered.

use crate::Failure;
use crate::run::{Beside, Knee};

/// How to search.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    /// The first rate, a second.
    pub start: f64,
    /// Each rate by the one before, above 1.
    pub factor: f64,
    /// Halvings of the last stride.
    pub bisections: u32,
    /// Rates tried on the way up, at most.
    pub steps: usize,
    pub promise_ms: f64,
    /// Of the searches that must be answered in time.
    pub share: f64,
}

/// What a step said.
#[derive(Debug, Clone, Copy)]
pub struct Step {
    /// Share of the searches that were answered in time.
    pub in_time: f64,
    pub void: bool,
}

/// Goes up from the first rate, by the factor, until a step fails, then halves the stride; down instead if the first fails.
///
/// # Errors
/// What a step says.
pub fn knee(
    plan: &Plan,
    beside: Beside,
    mut step: impl FnMut(f64) -> Result<Step, Failure>,
) -> Result<Knee, Failure> {
    let mut void = false;
    let mut holds = |rate: f64| -> Result<bool, Failure> {
        let mut said = step(rate)?;
        // Lateness of the generator only adds to the times, so a step that holds stands as it is.
        if said.void && said.in_time < plan.share {
            said = step(rate)?;
            void |= said.void && said.in_time < plan.share;
        }
        Ok(said.in_time >= plan.share)
    };
    let (mut good, mut bad) = (None, None);
    let mut rate = plan.start;
    for _ in 0..plan.steps {
        if holds(rate)? {
            good = Some(rate);
            if bad.is_some() {
                break;
            }
            rate *= plan.factor;
        } else {
            bad = Some(rate);
            if good.is_some() {
                break;
            }
            rate /= plan.factor;
        }
    }
    if let (Some(mut low), Some(mut high)) = (good, bad) {
        for _ in 0..plan.bisections {
            let middle = (low + high) / 2.0;
            if holds(middle)? { low = middle } else { high = middle }
        }
        (good, bad) = (Some(low), Some(high));
    }
    Ok(Knee {
        beside,
        promise_ms: plan.promise_ms,
        share: plan.share,
        per_s: good,
        fails_at_per_s: bad,
        void,
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::data::poisson_gaps;

    const PLAN: Plan =
        Plan { start: 50.0, factor: 1.25, bisections: 2, steps: 20, promise_ms: 10.0, share: 0.99 };

    /// The share of arrivals that a single server with a constant service time answers within the promise, in simulated
    /// time.
    fn simulated(rate: f64, service_s: f64, seconds: f64) -> f64 {
        let (mut at, mut free, mut good, mut all) = (0.0, 0.0f64, 0u32, 0u32);
        for gap in poisson_gaps(rate, 11) {
            at += gap;
            if at > seconds {
                return f64::from(good) / f64::from(all);
            }
            free = free.max(at) + service_s;
            all += 1;
            good += u32::from(free - at <= PLAN.promise_ms / 1000.0);
        }
        0.0
    }

    /// With a service time of 2 ms, `P(wait <= 8 ms) = 0.99` at 280.4 a second: Erlang's formula for M/D/1, solved by
    /// another program.
    #[test]
    fn the_knee_of_a_simulated_server_is_found() {
        let mut rates = Vec::new();
        let found = knee(&PLAN, Beside::Nothing, |rate| {
            rates.push(rate);
            Ok(Step { in_time: simulated(rate, 0.002, 3000.0), void: false })
        })
        .unwrap();
        let (low, high) = (found.per_s.unwrap(), found.fails_at_per_s.unwrap());
        assert!(low < KNEE * 1.01 && high > KNEE * 0.99, "{low} to {high}, not {KNEE}");
        assert!(high - low < 0.25 / 4.0 * KNEE * 1.2, "{low} to {high}");
        assert_eq!(rates[..3], [50.0, 62.5, 78.125]);
    }
    const KNEE: f64 = 280.4;

    #[test]
    fn a_server_that_is_slower_than_the_start_is_searched_downwards() {
        let below = |limit: f64| {
            move |rate: f64| {
                let in_time = if rate <= limit { 1.0 } else { 0.5 };
                Ok(Step { in_time, void: false })
            }
        };
        let found = knee(&PLAN, Beside::Nothing, below(21.0)).unwrap();
        let (low, high) = (found.per_s.unwrap(), found.fails_at_per_s.unwrap());
        assert!(low <= 21.0 && high > 21.0 && high / low < 1.1, "{low} {high}");
        let found = knee(&PLAN, Beside::Nothing, below(0.1)).unwrap();
        assert_eq!(found.per_s, None);
        let found = knee(&PLAN, Beside::Nothing, below(1e9)).unwrap();
        assert_eq!(found.fails_at_per_s, None);
    }

    #[test]
    fn a_void_step_is_asked_again_before_it_fails() {
        let mut asked = Vec::new();
        let found = knee(&PLAN, Beside::Nothing, |rate| {
            let again = asked.contains(&rate);
            asked.push(rate);
            let in_time = if rate <= 100.0 && (again || rate < 70.0) { 1.0 } else { 0.0 };
            Ok(Step { in_time, void: !again })
        })
        .unwrap();
        assert!(found.per_s.unwrap() > 90.0 && !found.void);
        let always = |_| Ok(Step { in_time: 0.0, void: true });
        assert!(knee(&PLAN, Beside::Nothing, always).unwrap().void);
    }
}
