#!/usr/bin/env bash
# Counts the instructions of the kernels and of searches with valgrind, and fails where they exceed scripts/instructions.toml.
# Needs valgrind, a processor with AVX2 and Python 3.11; installs gungraun's runner, of the version of Cargo.lock, beside what is
# compiled, if it is not there. docs/benchmarks.md says what is counted.
#
#   scripts/instructions.sh [--renew]
#
# --renew: writes what is counted into scripts/instructions.toml instead. Say in the commit why it changed.
set -euo pipefail
cd "$(dirname "$0")/.."
renew=()
case ${1:-} in
"") ;;
--renew) renew=(--renew) ;;
*)
    sed -n 2,8p "$0" >&2
    exit 2
    ;;
esac
command -v valgrind >/dev/null ||
    { echo "valgrind is not installed; on Debian and Ubuntu: apt-get install valgrind" >&2; exit 1; }

# The runner looks for a relative one in the package's folder.
CARGO_TARGET_DIR=$(realpath -m "${CARGO_TARGET_DIR:-target}")
export CARGO_TARGET_DIR
version=$(sed -n '/^name = "gungraun-runner"$/{n;s/^version = "\(.*\)"$/\1/p}' Cargo.lock)
tools=$CARGO_TARGET_DIR/gungraun-runner-$version
if [ ! -x "$tools/bin/gungraun-runner" ]; then
    # It starts valgrind and reads files; optimising it would take longer than it ever runs.
    CARGO_PROFILE_DEV_DEBUG=0 CARGO_TARGET_DIR=$tools/build cargo install --debug --locked --quiet --root "$tools" \
        --version "=$version" gungraun-runner
    rm -rf "$tools/build"
fi

counted=$(mktemp)
trap 'rm -f "$counted"' EXIT
PATH=$tools/bin:$PATH cargo bench --locked -p flashbulb-kernels -p flashbulb-engine --bench instructions -- \
    --output-format=json >"$counted"
python3 scripts/instructions_check.py "${renew[@]}" "$counted" "$(rustc --version | cut -d " " -f 2-)" \
    "$(valgrind --version | cut -d - -f 2-)"
