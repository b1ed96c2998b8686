"""Holds the instructions that were counted against those of scripts/instructions.toml, or writes them there.

Invariant: a benchmark without a limit and a limit without a benchmark fail too. It must not know how instructions are counted.
"""

import argparse
import json
import pathlib
import sys
import tomllib

LIMITS = pathlib.Path("scripts/instructions.toml")
# Where the limits do not say otherwise. Counts of one program do not differ, those of one source by 0.05 % between folders.
TOLERANCE_PERCENT = 2.0
HEAD = """\
# Instructions of each benchmark, as valgrind counts them. Written by `scripts/instructions.sh --renew`; `scripts/instructions.sh`,
# and so CI, fails where one takes more than this and the tolerance.
"""


def counted(path):
    """By crate and benchmark, from gungraun's JSON: one object a line."""
    counts = {}
    for line in path.read_text().splitlines():
        run = json.loads(line)
        (profile,) = run["profiles"]
        name = f"{run['function_name']}::{run['id']}"
        counts.setdefault(run["package_dir"], {})[name] = profile["data"]["total"]["metrics"]["Ir"]["values"]["new"]
    return counts


def written(tools, tolerance, counts):
    lines = [HEAD] + [f'{tool} = "{version}"\n' for tool, version in tools.items()]
    lines.append(f"tolerance_percent = {tolerance}\n")
    for crate in sorted(counts):
        lines.append(f"\n[counts.{crate}]\n")
        lines += [f'"{name}" = {count}\n' for name, count in counts[crate].items()]
    return "".join(lines)


def flat(counts):
    return {f"{crate}::{name}": count for crate in sorted(counts) for name, count in counts[crate].items()}


def compared(limits, now, tolerance):
    """Prints a table; what must fail and what is only to be told, as sentences."""
    above, below = [], []
    print(f"{'benchmark':44} {'limit':>12} {'now':>12} {'difference':>11}")
    for name in [*limits, *(name for name in now if name not in limits)]:
        limit, count = limits.get(name), now.get(name)
        if limit is None or count is None:
            print(f"{name:44} {limit if limit is not None else '-':>12} {count if count is not None else '-':>12}")
            above.append(f"{name} has no limit" if limit is None else f"{name} has a limit and was not counted")
            continue
        percent = 100 * (count - limit) / limit
        print(f"{name:44} {limit:>12} {count:>12} {percent:>+9.2f} %")
        if percent > tolerance:
            above.append(f"{name} takes {count} instructions, {percent:.2f} % more than its limit of {limit}")
        elif percent < -tolerance:
            below.append(f"{name} takes {count} instructions, {-percent:.2f} % fewer than its limit of {limit}")
    return above, below


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--renew", action="store_true")
    parser.add_argument("counted", type=pathlib.Path)
    parser.add_argument("rustc")
    parser.add_argument("valgrind")
    arguments = parser.parse_args()
    tools = {"rustc": arguments.rustc, "valgrind": arguments.valgrind}
    now = counted(arguments.counted)
    kept = tomllib.loads(LIMITS.read_text()) if LIMITS.exists() else {}
    tolerance = kept.get("tolerance_percent", TOLERANCE_PERCENT)
    above, below = compared(flat(kept.get("counts", {})), flat(now), tolerance)
    if arguments.renew:
        LIMITS.write_text(written(tools, tolerance, now))
        print(f"\n{LIMITS} has these counts now")
        return 0
    others = [f"{tool} was {kept.get(tool)}, is {version}" for tool, version in tools.items() if kept.get(tool) != version]
    if others and (above or below):
        print("\nThe limits were taken with other tools, and counts depend on them: " + "; ".join(others), file=sys.stderr)
    if below:
        print("\nStale limits, which would hide a loss:\n  " + "\n  ".join(below), file=sys.stderr)
    if above:
        print(f"\nNot within the limits ({tolerance} % more are allowed):\n  " + "\n  ".join(above), file=sys.stderr)
    if above or below:
        print("\nIf they are meant to change: scripts/instructions.sh --renew", file=sys.stderr)
    return 1 if above else 0


sys.exit(main())
