# SPDX-License-Identifier: MIT
"""The soak notices what is wrong: it passes as it is, and each mistake that it makes on
purpose is reported as what it is, a wrong command with the way to repeat it.

SOAK names the program."""

import os
import re

import tap

SOAK = os.environ["SOAK"]
COMMANDS = ["--commands", "24"]
AGAIN = re.compile(r"again: soak --seed (\d+) --only (\d+) --backend (\w+)")
SAYS = {
    "outcome": r"another outcome: .*\n.*again: ",
    "bytes": r"\d+ bytes on stream 1, not \d+",
    "fd": r"soak: descriptors: \d+, not \d+",
    "heap": r"soak: heap: \d+, at most \d+ wanted",
    "process": r"soak: processes of commands: \d+, not 0",
    "file": r"soak: files: \d+, not \d+",
}


def soak(*words):
    return tap.run([SOAK, *words], timeout=250)


def main():
    done = soak(*COMMANDS)
    tap.check(done.returncode == 0 and done.stderr == "", "control: nothing is wrong",
              [done.stdout, done.stderr])
    for mistake, says in SAYS.items():
        if mistake == "heap" and os.environ.get("AGENTD_TEST_SANITIZED"):
            continue  # whose heap is not the one that is counted
        done = soak(*COMMANDS, "--mistake", mistake)
        tap.check(done.returncode == 1 and re.search(says, done.stderr),
                  f"noticed: {mistake}", [done.stdout, done.stderr])
        if mistake == "outcome":
            again = AGAIN.search(done.stderr)
            tap.check(again, "it says how to repeat it", [done.stderr])
            only = ["--seed", again[1], "--only", again[2], "--backend", again[3]]
            tap.check(soak(*only, "--mistake", mistake).returncode == 1, "repeated, it is wrong")
            tap.check(soak(*only).returncode == 0, "repeated without the mistake, it is not")
    for words in (["--seconds"], ["--seconds", "-1"], ["--backend", "none"], ["--mistake", "x"],
                  ["--concurrency", "0"], ["more"]):
        done = soak(*words)
        tap.check(done.returncode == 2 and "usage: " in done.stderr and not done.stdout,
                  f"refused: {' '.join(words)}", [done.stdout, done.stderr])
    tap.finish()


main()
