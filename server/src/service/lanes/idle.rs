//! Idle priority, and low priority, for the calling thread.
//!
//! Invariant: what is reported was read back from the system, never assumed. Only threads made for background work may be
//! lowered: without a privilege there is no way back (sched(7)). It must not know what the thread does.

use thread_priority::{
    NormalThreadSchedulePolicy, ThreadPriority, ThreadSchedulePolicy,
    set_thread_priority_and_policy, thread_native_id, thread_schedule_policy,
};

/// Lowers the calling thread to `SCHED_IDLE` and says what it runs at now.
///
/// # Errors
/// What the system refused, or what it reports instead.
pub fn lower_this_thread() -> Result<&'static str, String> {
    let idle = ThreadSchedulePolicy::Normal(NormalThreadSchedulePolicy::Idle);
    // The policy is set first and the niceness after it; a refusal of the second alone changes nothing that matters.
    let attempt = set_thread_priority_and_policy(thread_native_id(), ThreadPriority::Min, idle);
    match (thread_schedule_policy(), attempt) {
        (Ok(policy), _) if policy == idle => Ok("SCHED_IDLE"),
        (_, Err(error)) => Err(format!("SCHED_IDLE was refused: {error:?}")),
        (Ok(policy), Ok(())) => Err(format!("the system kept {policy:?} instead of SCHED_IDLE")),
        (Err(error), Ok(())) => Err(format!("the policy could not be read back: {error:?}")),
    }
}

/// How nice a thread is that must not be stopped for long, but shall not stop a query: a tenth of the ordinary weight.
#[cfg(target_os = "linux")]
const NICE: i32 = 10;

/// Lowers the calling thread below the ordinary, so that it no longer stops a thread that is at work when it wakes.
///
/// # Errors
/// What the system refused.
pub fn lower_this_thread_a_little() -> Result<(), String> {
    // For Linux alone: elsewhere niceness is the process's.
    #[cfg(target_os = "linux")]
    {
        use rustix::process::{getpriority_process, setpriority_process};
        let nice = getpriority_process(None).map_err(|error| error.to_string())?;
        // Who runs the daemon nicer than that wants it so.
        setpriority_process(None, nice.max(NICE)).map_err(|error| error.to_string())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(target_os = "linux")]
    fn the_policy_is_read_back_and_other_threads_keep_theirs() {
        let before = thread_schedule_policy().expect("readable");
        let lowered = std::thread::spawn(lower_this_thread).join().expect("does not panic");
        assert_eq!(lowered, Ok("SCHED_IDLE"));
        assert_eq!(thread_schedule_policy().expect("readable"), before);
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn a_little_lower_is_for_one_thread_too() {
        let niceness = || rustix::process::getpriority_process(None).expect("readable");
        let before = niceness();
        let lowered = std::thread::spawn(move || {
            lower_this_thread_a_little().expect("no privilege is needed to be nicer");
            niceness()
        });
        assert_eq!(lowered.join().expect("does not panic"), NICE.max(before));
        assert_eq!(niceness(), before);
    }
}
