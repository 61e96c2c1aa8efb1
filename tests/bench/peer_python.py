# SPDX-License-Identifier: MIT
"""Runs what it is asked for and answers how many us that took: the start of the interpreter
is not what is measured.

A request is a line with the arguments separated by tabs; an empty one is the last.
"""

import subprocess
import sys
import time

for line in sys.stdin:
    if line == "\n":
        break
    argv = line.rstrip("\n").split("\t")
    begin = time.monotonic_ns()
    subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, check=True)
    print((time.monotonic_ns() - begin) / 1e3, flush=True)
