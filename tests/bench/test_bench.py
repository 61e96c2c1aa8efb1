# SPDX-License-Identifier: MIT
"""scripts/bench runs from end to end, and every row is there with a number that is one, or
with a reason why there is none. Never how large it is.

usage: test_bench.py BUILD
"""

import json
import math
import os
import sys
import tempfile
import xml.etree.ElementTree

import tap

SIZES = ("64 MiB of memory", "200 descriptors")
AGENTD = ("agentd, host", "agentd, sandbox")
# These may be missing where they are not installed, or are not let do their work.
PEERS = {"libuv", "GLib", "Python subprocess", "unshare", "bwrap", "crun", "minijail0", "nsjail"}
BINDINGS = {"agentd, Python", "agentd, Python asyncio", "agentd, Rust"}
LANGUAGES = {"Python subprocess", "Python asyncio", "Rust std::process"}
MORE = "more than C"
PROXY = "agentd, CONNECT"
MACHINE = "running machine"
INSIDE = "the machine's own shell"
LIBRARY = "agentd, microvm"
SESSION = "agentd, machine session"
MEMORY = ("memory of the host program, each", "memory of helper and supervisors, each")


def expected():
    """(bench, case, subject, metric) of every row."""
    plain = ("posix_spawn", "posix_spawn, output read", "vfork + exec", "fork + exec")
    for case in ("static true", "/bin/true"):
        for subject in (*plain, *PEERS, *AGENTD, "agentd, sandbox fresh",
                        "agentd, sandbox session"):
            yield "latency", case, subject, "start to finish"
    for case in SIZES:
        for subject in ("posix_spawn", "fork + exec", *AGENTD):
            yield "latency", case, subject, "start to finish"
    for case in ("static true, host", "bash -lc true, sandbox"):
        for subject in ("agentd, C", *BINDINGS, *LANGUAGES):
            yield "bindings", case, subject, "start to finish"
        for subject in BINDINGS:
            yield "bindings", case, subject, MORE
    for case in ("as it is", *SIZES):
        for subject in ("posix_spawn", "fork + exec"):
            yield "blocked", case, subject, "start"
        for subject in AGENTD:
            for metric in ("agentd_exec_start", "start", "answer"):
                yield "blocked", case, subject, metric
    for case in ("128 KiB writes", "4 KiB writes"):
        for subject in ("read loop", "libevent bufferevent", "libuv", "GLib", *AGENTD):
            yield "output", case, subject, "throughput"
        for subject in ("nothing", "libevent bufferevent", *AGENTD):
            yield "timer", case, subject, "lateness"
    for case in ("1 at once", "50 at once"):
        for subject in ("posix_spawn", *AGENTD):
            for metric in ("launch, each", "end, each"):
                yield "many", case, subject, metric
    for subject in ("splice relay", PROXY):
        yield "net", "one connection", subject, "throughput"
    for metric in ("memory of the host program, each, idle",
                   "memory of the host program, each, stuck", "lateness of a timer, all busy"):
        yield "net", "500 tunnels", PROXY, metric
    for subject in ("agentd, sandbox", "agentd, sandbox, allowed hosts"):
        yield "net", "static true", subject, "start to finish"
    yield "vm", "boot", "machine", "start to ready"
    for subject in ("machine", LIBRARY):
        yield "vm", "boot", subject, "start to first byte"
    for case in ("output, 128 KiB writes", "output, 8 KiB writes"):
        for subject in (MACHINE, INSIDE, LIBRARY):
            yield "vm", case, subject, "throughput"
    yield "vm", "nothing", MACHINE, "round trip"
    yield "vm", "idle", MACHINE, "memory of the monitor"
    for case in ("/bin/true", "bash -c :"):
        for subject in ("posix_spawn", MACHINE, INSIDE):
            yield "vm", case, subject, "start to finish"
    for case, metric in (
        ("first of all", "start to finish"),
        ("one more", "start to finish"),
        ("one more", "stop"),
        ("in one that runs", "start to finish"),
        ("10 at once", "all ready"),
        ("idle", "memory of the monitor"),
        ("idle", "share of a processor"),
    ):
        yield "sessions", case, SESSION, metric
    yield "sessions", "one more", f"{SESSION}, spare", "start to finish"
    for subject in AGENTD:
        for metric in MEMORY:
            yield "many", "50 at once", subject, metric


def bad_number(row, member):
    value = row.get(member)
    least = -1e12 if row["metric"] == MORE else 0
    return not (
        isinstance(value, (int, float)) and math.isfinite(value) and least < value < 1e12
    ) and f"{row}: {member} is {value}"


def problem(key, row):
    """What is wrong with a row, or None."""
    if row is None:
        return f"{key}: missing"
    if "cannot" in row:
        excused = (
            row["subject"] in PEERS | BINDINGS | LANGUAGES
            or (row["metric"] == MEMORY[1] and os.geteuid() != 0)
            # Where there is no monitor or no image.
            or (row["bench"] in ("vm", "sessions") and row["cannot"].startswith("there is no "))
        )
        return None if excused and row["cannot"] else f"{row}: must run everywhere"
    for member in ("n", "median", "p99"):
        bad = bad_number(row, member)
        if bad:
            return bad
    # What it is compared with is measured everywhere.
    compared = row["metric"] not in (*MEMORY, MORE)
    if row["bench"] == "blocked" and row["metric"] != "start":
        compared = False
    if row["bench"] == "vm" and row["metric"] != "start to finish":
        compared = False
    if row["bench"] == "sessions":
        compared = False
    if row["bench"] == "net" and row["metric"] != "throughput":
        compared = False
    return bad_number(row, "ratio") or None if compared else None


def main():
    build = sys.argv[1]
    with tempfile.TemporaryDirectory(prefix="agentd-bench-") as out:
        script = os.path.join(tap.ROOT, "scripts", "bench")
        done = tap.run([script, "--quick", "--build", build, "--out", out])
        tap.check(done.returncode == 0, "scripts/bench --quick", done.stderr.splitlines()[-5:])
        if done.returncode != 0:
            tap.finish()
        with open(os.path.join(out, "bench.json"), encoding="utf-8") as file:
            report = json.load(file)
        rows = {
            (row["bench"], row["case"], row["subject"], row["metric"]): row
            for row in report["rows"]
        }
        wanted = set(expected())
        tap.check_empty(sorted(set(rows) - wanted), "no row that is not known here")
        problems = (problem(key, rows.get(key)) for key in sorted(wanted))
        tap.check_empty([p for p in problems if p], f"{len(wanted)} rows, each with its numbers")
        tap.check(len(report["rows"]) == len(rows), "no row twice")
        machine = report["machine"]
        missing = [name for name in ("kernel", "cpu", "cores", "date") if not machine.get(name)]
        tap.check_empty(missing, "the machine is described")
        with open(os.path.join(out, "bench.md"), encoding="utf-8") as file:
            tables = file.read()
        subjects = {key[2] for key in wanted}
        missing = [name for name in sorted(subjects) if f"| {name} |" not in tables]
        tap.check_empty(missing, "every subject has its line in the tables")
        chart = xml.etree.ElementTree.parse(os.path.join(out, "bench.svg"))
        words = "".join(chart.getroot().itertext())
        tap.check("agentd, sandbox" in words and "posix_spawn" in words, "the chart is one")
        left = [name for name in os.listdir(out) if not name.startswith("bench.")]
        tap.check_empty(left, "nothing else is left behind")
    tap.finish()


main()
