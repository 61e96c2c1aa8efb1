# SPDX-License-Identifier: MIT
"""agentd-conformance does what agentd-conformance(1) says.

Arguments: the program and the module of test_module.c.
"""

import os
import sys
import tempfile

import tap

PROGRAM, MODULE = sys.argv[1:3]
FEATURES = ["--features", "host-fs,reader"]


def run(*args, **kwargs):
    return tap.run([PROGRAM, *args], timeout=120, **kwargs)


def module(function, *args, **kwargs):
    return run("--backend-module", f"{MODULE}:module_{function}", *FEATURES, *args, **kwargs)


def check(done, status, stdout, stderr, name):
    """stdout as a whole; stderr a part of it, nothing at all when it is empty."""
    good = done.returncode == status and done.stdout == stdout
    good = good and (stderr in done.stderr if stderr else not done.stderr)
    tap.check(good, name, [f"status {done.returncode}", *done.stdout.splitlines(), *done.stderr.splitlines()])


# ---- what is asked

listed = run("--backend", "sandbox", "--list")
cases = [line.split(" ") for line in listed.stdout.splitlines()]
tap.check(listed.returncode == 0 and len(cases) > 40 and all(len(c) == 2 for c in cases),
          "--list has a part and a case on each line", listed.stdout.splitlines())
tap.check(len({case for _, case in cases}) == len(cases), "no case twice")
brief = run("--backend", "sandbox", "--features", "tree,brief", "--list").stdout.splitlines()
tap.check(0 < len(brief) < len(cases) and set(brief) < set(listed.stdout.splitlines()),
          "brief asks less")
part = run("--backend", "sandbox", "--only", "stdin", "--list").stdout.splitlines()
tap.check(part == [" ".join(c) for c in cases if c[0] == "stdin"] and part, "--only takes a part")
tree = run("--backend", "sandbox", "--features", "limits", "--list").stdout.splitlines()
tap.check(set(listed.stdout.splitlines()) - set(tree) == {"stops tree_dies_after_setsid"},
          "what a backend cannot do is not asked")

# ---- passing and failing

with tempfile.TemporaryDirectory(prefix="agentd-conformance-test-") as scratch:
    os.chmod(scratch, 0o755)
    env = {**os.environ, "TMPDIR": scratch}
    check(module("attach", "--only", "stdin_written_before_start", env=env), 0,
          "1..1\nok 1 - stdin stdin_written_before_start\n", "", "a backend that keeps the contract passes")
    done = module("liar", "--only", "stdin_written_before_start", env=env)
    lines = done.stdout.splitlines()
    tap.check(done.returncode == 1 and lines[:2] == ["1..1", "not ok 1 - stdin stdin_written_before_start"]
              and len(lines) > 2 and all(line.startswith("# ") for line in lines[2:]),
              "one that loses stdin does not, and it is said why", lines)
    check(module("liar", "--only", "stdin_closed_at_once", env=env), 0,
          "1..1\nok 1 - stdin stdin_closed_at_once\n", "", "in what it does well it passes")
    tap.check(os.listdir(scratch) == [], "nothing is left in TMPDIR", os.listdir(scratch))
    check(module("attach", "--only", "output_binary", env={**env, "TMPDIR": scratch + "/none"}), 2,
          "", scratch + "/none", "a TMPDIR that is not there")

# ---- modules that are wrong

check(run("--backend-module", "./no-such.so"), 2, "", "./no-such.so", "no such file")
check(run("--backend-module", __file__), 2, "", __file__, "no shared object")
check(run("--backend-module", MODULE), 2, "",
      f"{MODULE} has no function agentd_conformance_add_backend", "no default function")
check(module("missing"), 2, "", "has no function module_missing", "no such function")
check(run("--backend-module", MODULE + ":"), 2, "", f"'{MODULE}:'", "no function named")
check(module("nameless"), 2, "", "did not say what its backend is called", "no name")
check(module("broken"), 2, "", "did not add its backend: out of memory", "not added")
check(module("unable"), 77, "1..0 # SKIP no paper in this house\n", "no paper in this house",
      "a backend that cannot run here")

# ---- usage

check(run(), 2, "", "one of --backend and --backend-module", "no backend")
check(run("--backend", "host", "--backend-module", MODULE), 2, "", "one of", "two of them")
check(run("--backend", "paper"), 2, "", "'paper' is not built in", "no such backend")
check(run("--backend", "host", "--only", "paper"), 2, "", "called 'paper'", "no such case")
check(run("--backend", "host", "--features", "tree,paper"), 2, "", "'paper' is no feature",
      "no such feature")
check(run("--backend", "host", "paper"), 2, "", "'paper' is no option", "an operand")
check(run("--back", "host"), 2, "", "--back", "an abbreviation that is ambiguous")
check(run("--feat=tree", "--backend", "host"), 2, "", "'--feat'", "an abbreviation")
help_text = run("--help")
tap.check(help_text.returncode == 0 and help_text.stdout.startswith("usage: "), "--help")
version = run("--version")
tap.check(version.returncode == 0 and version.stdout.startswith("agentd-conformance "), "--version")
tap.finish()
