#!/usr/bin/env bash
# Runs the engine's tests under tools that watch memory and threads, and fails at what they find.
#
#   scripts/sanitize.sh asan|memcheck|helgrind|miri|tsan [TEST-FILTER ...]
#
# asan      AddressSanitizer and LeakSanitizer, all unit tests (nightly toolchain)
# memcheck  valgrind, the tests of what is lock-free, of the log and of the store
# helgrind  valgrind; tells nothing here, and is not part of CI: it knows the locks of pthreads alone, so it takes each atomic of
#           the standard library and each of its locks for a race (152 reports for sync::commit, the first in the test harness)
# miri      the lock-free types and the parsers (needs the component miri; not run yet: no toolchain at hand has it)
# tsan      ThreadSanitizer, all unit tests (needs the component rust-src; not run yet, as above)
#
# TEST-FILTER: other tests than these.
set -euo pipefail
cd "$(dirname "$0")/.."
tool=${1:-}
[ -n "$tool" ] || { sed -n 4,14p "$0" >&2; exit 2; }
shift
host=$(rustc -vV | sed -n 's/^host: //p')
# The sweeps check what is written, not how: a part of them is enough here.
export FLASHBULB_CRASH_STATES=${FLASHBULB_CRASH_STATES:-300} FLASHBULB_SALVAGES=${FLASHBULB_SALVAGES:-50}

# The engine's unit tests as a program, built as the arguments say.
tests() {
    cargo "$@" --no-run --message-format=json -p flashbulb-engine --lib |
        python3 -c 'import json, sys
for line in sys.stdin:
    made = json.loads(line)
    if made.get("executable"): print(made["executable"])' | tail -n 1
}

memcheck=(sync:: wal:: store:: segment::)
helgrind=(sync::commit)
miri=(sync:: codec:: record:: op:: wal::format)
case $tool in
asan)
    export RUSTFLAGS="-Zsanitizer=address" ASAN_OPTIONS=detect_leaks=1
    program=$(tests +nightly test --target "$host" --target-dir target/asan)
    # What is slow by its number of cases and not by its kind.
    "$program" "${@:-}" --skip every_short_workload --skip a_second_cut --skip levels_that_promise \
        --skip an_operation_that_fails --skip a_store_that_goes_on --skip a_flipped_byte \
        --skip goes_astray
    ;;
memcheck | helgrind)
    command -v valgrind >/dev/null || { echo "valgrind is not installed" >&2; exit 1; }
    program=$(tests test --target-dir target/valgrind)
    filters=("$@")
    if [ $# = 0 ]; then
        declare -n these=$tool
        filters=("${these[@]}")
    fi
    # It runs one thread at a time, fairly where told to. Tests that hand over 100,000 things with threads that spin take hours.
    options=(--error-exitcode=9 --quiet --fair-sched=yes)
    filters+=(--skip many_threads --skip many_items --skip many_writers --skip many_times)
    [ "$tool" = helgrind ] || options+=(--leak-check=full --show-leak-kinds=definite --errors-for-leak-kinds=definite)
    valgrind --tool="$tool" "${options[@]}" "$program" "${filters[@]}" --test-threads 1
    ;;
miri)
    cargo +nightly miri test -p flashbulb-engine --lib -- "${@:-${miri[@]}}"
    ;;
tsan)
    RUSTFLAGS="-Zsanitizer=thread" cargo +nightly test -Zbuild-std --target "$host" --target-dir target/tsan \
        -p flashbulb-engine --lib -- "$@"
    ;;
*)
    sed -n 4,14p "$0" >&2
    exit 2
    ;;
esac
