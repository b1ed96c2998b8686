#!/usr/bin/env bash
# Proves the CUDA path on a machine with an NVIDIA GPU and writes what was seen to a report. Needs no network, no Cargo
# and no test data; docs/gpu.md says what to bring. Ends with 1 at the first thing that is not as it should be.
#
#   scripts/gpu-check.sh PROGRAM RUNTIME MODEL [REPORT]
#
# PROGRAM: the flashbulb binary; RUNTIME: libonnxruntime.so.* of onnxruntime-gpu, its provider libraries beside it;
# MODEL: the model's folder; REPORT: docs/reports/gpu.md when left out. EXPECT=cpu tries the script itself on a machine
# without a GPU: the model then runs in f32 on the processor and the steps that need a GPU are left out.
set -euo pipefail
[ $# -ge 3 ] || { sed -n 2,10p "$0" >&2; exit 2; }
program=$(realpath "$1") runtime=$(realpath "$2") model=$(realpath "$3")
report=${4:-docs/reports/gpu.md}
expect=${EXPECT:-cuda}
work=$(mktemp -d)
chmod 700 "$work"
daemon=
finish() {
    if [ -n "$daemon" ]; then kill "$daemon" 2>/dev/null || true; wait "$daemon" 2>/dev/null || true; fi
    rm -rf "$work"
}
trap finish EXIT
fail() { echo "gpu-check: $*" >&2; exit 1; }

export XDG_DATA_HOME=$work/data XDG_STATE_HOME=$work/state
places=(--store "$work/store" --socket "$work/run/s.sock" --runtime "$runtime" --model "$model" --offline)
if [ "$expect" = cpu ]; then wanted=(--device cpu --precision f32); else wanted=(--device required); fi
mkdir -p "$(dirname "$report")"
raw=${report%.md}.jsonl
: > "$raw"

# $1: the device's name, then what else serve takes; answers when it is ready.
start() {
    "$program" serve "${places[@]}" "$@" 2> "$work/log" &
    daemon=$!
    for _ in $(seq 600); do
        [ -S "$work/run/s.sock" ] && return
        kill -0 "$daemon" 2>/dev/null || { cat "$work/log" >&2; daemon=; fail "serve $* ended"; }
        sleep 0.1
    done
    fail "serve $* did not listen within 60 s"
}
stop() { kill "$daemon"; wait "$daemon" || fail "the daemon ended with $?"; daemon=; }
# Must end with 8 and name $1; the rest are arguments of serve.
refused() {
    local word=$1 status=0
    shift
    timeout 120 "$program" serve "${places[@]}" "$@" 2> "$work/refused" || status=$?
    [ "$status" = 8 ] || { cat "$work/refused" >&2; fail "serve $* ended with $status, not 8"; }
    grep -q "$word" "$work/refused" || { cat "$work/refused" >&2; fail "the refusal does not name $word"; }
}
ask() { python3 "$work/ask.py" "$work/run/s.sock" "$raw" "$@"; }

cat > "$work/ask.py" <<'PY'
import json, random, socket, sys, time

path, raw, step, expect = sys.argv[1:5]
stream = socket.socket(socket.AF_UNIX)
stream.connect(path)
lines = stream.makefile("rwb")

def call(method, **params):
    lines.write(json.dumps({"jsonrpc": "2.0", "id": 1, "method": method, "params": params}).encode() + b"\n")
    lines.flush()
    answer = json.loads(lines.readline())
    if "error" in answer:
        sys.exit(f"{method}: {answer['error']}")
    return answer["result"]

def keep(**what):
    with open(raw, "a") as file:
        file.write(json.dumps({"step": step, **what}) + "\n")

def holds(condition, what):
    if not condition:
        sys.exit(f"{step}: {what}")

WORDS = """harbour boat winter letter garden bread station river music window market doctor copper village lantern
ticket orchard invoice backup server commit summer train coffee bridge paper teacher engine shadow kitchen""".split()
rng = random.Random(7)
def text(least, most):
    return " ".join(rng.choice(WORDS) for _ in range(rng.randint(least, most)))

health = call("admin.health")
status = call("admin.status")["embedder"]
keep(health=health, embedder=status)
embed = health["ran"]["embed"]
if step == "fallback":
    holds(embed["device"] == "cpu" and embed["precision"] == "f32", embed)
    holds(any(d.startswith("device_unavailable: ") for d in health["degraded"]), health["degraded"])
    found = call("memory.search", space="gpu", query="a boat in the harbour in winter", k=10)
    before = [json.loads(line) for line in open(raw) if '"hits"' in line][0]["hits"]
    after = [[hit["id"], hit["score"]] for hit in found["hits"]]
    keep(after=after)
    apart = max(abs(a[1] - b[1]) for a, b in zip(before, after))
    holds(apart < 1e-3, f"scores of one store on two devices differ by {apart}")
    print(f"| scores of the same store and query on the processor differ by at most | {apart:.2e} |")
    sys.exit()
holds(embed["device"] == expect and status["device"]["used"] == expect, embed)
holds(embed["heavy_nodes"] > 0 and embed["heavy_nodes"] == embed["heavy_nodes_on_device"], embed)
holds(not any(d.startswith("device_unavailable") for d in health["degraded"]), health["degraded"])
print(f"| runtime | {embed['runtime']} |")
print(f"| device, provider, precision | {embed['device']}, {embed['provider']}, {embed['precision']} |")
print(f"| heavy nodes that ran on it | {embed['heavy_nodes_on_device']} of {embed['heavy_nodes']} |")
print(f"| nodes by provider as run, as placed | {embed['nodes_by_provider']}, {embed['nodes_placed']} |")
print(f"| copies between devices in a run | {embed['memcpy_nodes']} |")
for (least, most, label) in [(5, 20, "5 to 20 words"), (150, 200, "150 to 200 words")]:
    items = [{"text": text(least, most)} for _ in range(2000 if most < 50 else 400)]
    begun, seq = time.monotonic(), 0
    for at in range(0, len(items), 200):
        seq = call("memory.add", space="gpu", items=items[at:at + 200])["seq"]
    found = call("memory.search", space="gpu", query="boat", min_seq=seq, deadline_ms=60000)
    rate = len(items) / (time.monotonic() - begun)
    keep(texts=len(items), words=label, texts_per_s=rate)
    print(f"| texts of {label}, added and searchable, a second | {rate:.0f} |")
took = []
for at in range(300):
    found = call("memory.search", space="gpu", query=text(5, 16) + f" {at}", k=10)
    holds(found["ran"]["embed"]["device"] == expect and len(found["hits"]) == 10, found["ran"])
    took.append(found["took_us"])
    time.sleep(0.02)
for stage in ["embed", "total"]:
    us = sorted(t[stage] for t in took[20:])
    keep(stage=stage, us=us)
    print(f"| {stage} of a query of 5 to 16 words, p50 and p99 of {len(us)} at 50 a second | "
          f"{us[len(us) // 2] / 1000:.2f} ms, {us[len(us) * 99 // 100] / 1000:.2f} ms |")
found = call("memory.search", space="gpu", query="a boat in the harbour in winter", k=10)
keep(hits=[[hit["id"], hit["score"]] for hit in found["hits"]])
PY

{
    echo "# The model on a device, $(date -u +%Y-%m-%d)"
    echo
    echo "By \`scripts/gpu-check.sh\`; raw data in $(basename "$raw"). $("$program" --version), $(uname -srm)."
    echo
    echo "| what | seen |"
    echo "|---|---|"
    if command -v nvidia-smi > /dev/null; then
        echo "| GPU, driver, memory | $(nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader | head -n 1) |"
    fi
} > "$work/report"
start "${wanted[@]}"
ask on-device "$expect" >> "$work/report"
stop
"$program" doctor "${places[@]}" "${wanted[@]}" --json > "$work/doctor" || { cat "$work/doctor" >&2; fail "doctor"; }
if [ "$expect" != cpu ]; then
    # A driver that shows no GPU: the demanded device is missing, and the start must say so.
    CUDA_VISIBLE_DEVICES= refused CUDA --device required
    echo "| start with \`CUDA_VISIBLE_DEVICES=\` and --device required | refused: $(tail -n 1 "$work/refused" | cut -c1-200) |" >> "$work/report"
    refused int8 --device required --precision int8
    echo "| start with int8 and --device required | refused |" >> "$work/report"
    CUDA_VISIBLE_DEVICES= start --device preferred
    ask fallback cpu >> "$work/report"
    stop
    # The same load on the processor, to compare.
    rm -rf "$work/store"
    start --device cpu --precision f32
    echo "| **the same on the processor** | |" >> "$work/report"
    ask on-processor cpu >> "$work/report"
    stop
fi
cp "$work/report" "$report"
cat "$report"
