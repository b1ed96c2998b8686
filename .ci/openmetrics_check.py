"""Reads the daemon's OpenMetrics text with the Prometheus project's own Python client, which Flashbulb did not write.

Usage: openmetrics_check.py PROGRAM, with the package `prometheus-client` to be imported. A daemon is started on temporary
folders, asked a few things, and its text must parse and count exactly what was asked.
"""

import json
import os
import socket
import subprocess
import sys
import tempfile
import time

from prometheus_client.openmetrics.parser import text_string_to_metric_families

START_LIMIT_S = 120
SEARCHES = 7
SPACE = "space-whose-name-is-nobodys-business"


def connect(path):
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(path)
    return connection.makefile("rw", encoding="utf-8", newline="\n")


def call(stream, method, params):
    stream.write(json.dumps({"jsonrpc": "2.0", "id": 1, "method": method, "params": params}) + "\n")
    stream.flush()
    answer = json.loads(stream.readline())
    if "error" in answer:
        sys.exit(f"{method}: {answer['error']}")
    return answer["result"]


def wait_for(path, daemon):
    end = time.monotonic() + START_LIMIT_S
    while time.monotonic() < end and daemon.poll() is None:
        try:
            return connect(path)
        except OSError:
            time.sleep(0.05)
    sys.exit("the daemon did not start")


def check(text):
    assert text.endswith("# EOF\n"), "the text must end with # EOF"
    assert SPACE not in text, "a space's name is in the text"
    families = {family.name: family for family in text_string_to_metric_families(text)}
    samples = [sample for family in families.values() for sample in family.samples]

    def value(name, **labels):
        found = [s.value for s in samples if s.name == name and s.labels == labels]
        assert len(found) == 1, f"{name}{labels}: {found}"
        return found[0]

    search = {"method": "memory.search"}
    duration, stage = (f"flashbulb_{what}_duration_seconds" for what in ("request", "stage"))
    for name, kind in [
        (duration, "histogram"),
        (stage, "histogram"),
        ("flashbulb_requests", "counter"),
        ("flashbulb_pending_memories", "gauge"),
    ]:
        assert families[name].type == kind, f"{name} is a {families[name].type}"
    assert value("flashbulb_requests_total", **search, outcome="ok") == SEARCHES
    assert value(f"{duration}_count", **search) == SEARCHES
    assert value(f"{duration}_bucket", **search, le="+Inf") == SEARCHES
    assert value("flashbulb_query_cache_hits_total") == 1
    assert value("flashbulb_query_cache_misses_total") == SEARCHES - 1
    parts = ["queue", "tokenise", "embed", "dense", "fetch"]
    for part, count in zip(parts + ["write"], [SEARCHES, SEARCHES - 1] + [SEARCHES] * 4):
        assert value(f"{stage}_count", **search, stage=part) == count, part
    whole = value(f"{duration}_sum", **search)
    inside = sum(value(f"{stage}_sum", **search, stage=part) for part in parts)
    assert 0 < inside <= whole, f"stages of {inside} s in requests of {whole} s"
    print(f"{len(families)} families and {len(samples)} samples read; every count is right")


def main():
    program = sys.argv[1]
    with tempfile.TemporaryDirectory(prefix="flashbulb-metrics-") as folder:
        path = os.path.join(folder, "run", "s.sock")
        command = [program, "serve", "--store", os.path.join(folder, "store"), "--socket", path]
        with open(os.path.join(folder, "log"), "w", encoding="utf-8") as log:
            daemon = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            stream = wait_for(path, daemon)
            item = {"text": "The ferry to the island leaves at noon"}
            call(stream, "memory.add", {"space": SPACE, "items": [item], "wait": "searchable"})
            for number in range(SEARCHES - 1):
                call(stream, "memory.search", {"space": SPACE, "query": f"question {number}"})
            call(stream, "memory.search", {"space": SPACE, "query": "question 0"})
            command = [program, "metrics", "--socket", path]
            check(subprocess.run(command, check=True, capture_output=True, encoding="utf-8").stdout)
        finally:
            daemon.terminate()
            daemon.wait()


main()
