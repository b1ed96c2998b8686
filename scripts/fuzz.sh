#!/usr/bin/env bash
# Runs every fuzz target for some seconds and fails if one finds anything. Needs a nightly toolchain of rustup; installs
# cargo-fuzz if it is not there.
#
#   scripts/fuzz.sh [SECONDS] [TARGET ...]
#
# SECONDS: of each target, 20 when left out; TARGET: only these. It begins with the inputs of fuzz/corpus; what it finds
# besides is kept in fuzz/found, which is not checked in, so that a longer run goes on where the last one ended. An input
# that fails lies in fuzz/artifacts afterwards. MINIMISE=1 makes fuzz/corpus anew from what was found. SEED: what chance begins
# with, so that two runs of the same program try about the same.
set -euo pipefail
cd "$(dirname "$0")/.."
seconds=${1:-20}
[[ $seconds =~ ^[0-9]+$ ]] || { sed -n 2,11p "$0" >&2; exit 2; }
shift $(($# > 0 ? 1 : 0))
targets=("$@")
[ $# -gt 0 ] || targets=(wal segment manifest frame filter operations)

cargo +nightly --version >/dev/null 2>&1 || rustup toolchain install nightly --profile minimal
command -v cargo-fuzz >/dev/null || cargo install cargo-fuzz --locked --quiet

# Longer inputs are slower and find less. None is longer than 1 KiB, so nothing may ask for a block of 8 MiB.
limits=(-max_len=1024 -len_control=0 -malloc_limit_mb=8 -rss_limit_mb=1024 -timeout=20)
cargo +nightly fuzz build --codegen-units 16
programs=fuzz/target/$(rustc +nightly -vV | sed -n 's/^host: //p')/release

# Keeps 20 inputs of one target, of 12 KB at most each. The largest reach the most, but are alike: every eighth is taken.
minimise() {
    local target=$1 smallest=fuzz/found/$1.smallest
    rm -rf "$smallest"
    mkdir -p "$smallest"
    "$programs/$target" "${limits[@]}" -merge=1 "$smallest" "fuzz/found/$target" "fuzz/corpus/$target" 2>/dev/null
    find "fuzz/corpus/$target" -type f ! -name by-hand -delete
    find "$smallest" -type f -size -12k -printf '%s %p\n' | sort -rn | awk 'NR % 8 == 1 && NR < 150 { print $2 }' |
        while read -r input; do cp "$input" "fuzz/corpus/$target/"; done
    rm -rf "$smallest"
}

failed=0
for target in "${targets[@]}"; do
    mkdir -p "fuzz/corpus/$target" "fuzz/found/$target" "fuzz/artifacts/$target"
    log=fuzz/found/$target.log
    # New inputs go into the first folder.
    if ! "$programs/$target" "${limits[@]}" -max_total_time="$seconds" -print_final_stats=1 \
        -seed="${SEED:-0}" -artifact_prefix="fuzz/artifacts/$target/" "fuzz/found/$target" "fuzz/corpus/$target" >"$log" 2>&1; then
        failed=1
        echo "$target: FAILED; the input lies in fuzz/artifacts/$target" >&2
        grep -v '^#[0-9]' "$log" | tail -n 60 >&2
        continue
    fi
    executions=$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")
    reached=$(sed -n 's/.* cov: \([0-9]*\) ft: \([0-9]*\) .*/\1 edges, \2 features/p' "$log" | tail -n 1)
    echo "$target: $executions executions in $seconds s, $reached"
    # A target that stopped at its start would find nothing for ever.
    [ "${executions:-0}" -ge 100 ] || { echo "$target: too few executions to mean anything" >&2; failed=1; }
    [ -z "${MINIMISE:-}" ] || minimise "$target"
done
exit $failed
