# SPDX-License-Identifier: MIT
"""examples/python sees the structs and functions that the headers declare, and a new member
or function does not change that. Argument: the shared library."""

import ctypes
import os
import re
import sys

import abi
import tap

INCLUDE = os.path.join(tap.ROOT, "include")

# Found by its soname from now on.
ctypes.CDLL(sys.argv[1])
sys.path.insert(0, os.path.join(tap.ROOT, "examples", "python"))
from agentd import _lib  # noqa: E402 pylint: disable=wrong-import-position

lines = abi.describe(INCLUDE)
STRUCTS = {
    "agentd_ask_opts": _lib.AskOpts,
    "agentd_exec_opts": _lib.ExecOpts,
    "agentd_limits": _lib.Limits,
    "agentd_probe_opts": _lib.ProbeOpts,
    "agentd_runner_opts": _lib.RunnerOpts,
    "agentd_sink_ops": _lib.SinkOps,
}
for name, struct in STRUCTS.items():
    declared = re.findall(rf"^member {name}\.(\w+) at (\d+): ", "\n".join(lines), re.M)
    declared.sort(key=lambda member: int(member[1]))
    ours = [(field[0], str(getattr(struct, field[0]).offset)) for field in struct._fields_]
    tap.check(
        len(ours) > 4 and ours == declared[: len(ours)],
        f"struct {name}: the {len(ours)} members of _lib.py are the first ones of the header",
        [str(pair) for pair in zip(ours, declared) if pair[0] != pair[1]],
    )

counts = {}
for line in lines:
    found = re.match(r"function .*?\b(agentd_\w+)\((.*)\)$", line)
    if found:
        counts[found[1]] = 0 if found[2] == "void" else found[2].count(",") + 1
wrong = [
    f"{name}: _lib.py gives {len(takes)} arguments, the header {counts.get(name, 'has none')}"
    for name, (_, *takes) in _lib._PROTOTYPES.items()
    if counts.get(name) != len(takes)
]
tap.check(len(_lib._PROTOTYPES) > 30, f"{len(_lib._PROTOTYPES)} functions compared")
tap.check_empty(wrong, "every function takes as many arguments as the header says")
tap.finish()
