# SPDX-License-Identifier: MIT
"""Runs what it is asked for and answers how many us that took: the start of the interpreter
is not what is measured.

usage: peer_python.py subprocess|asyncio
       peer_python.py agentd|agentd-asyncio BACKEND WORKDIR POLICY

A request is a line with the arguments separated by tabs; an empty one is the last.
"""

import asyncio
import json
import subprocess
import sys
import time


def by_subprocess(argv):
    subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, check=True)


async def in_asyncio(argv):
    null, pipe = asyncio.subprocess.DEVNULL, asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*argv, stdin=null, stdout=pipe, stderr=pipe)
    await process.communicate()
    assert process.returncode == 0


class Agentd:
    """With a context for each command, as agentd.run() does."""

    def __init__(self, backend, workdir, policy):
        import agentd

        policy = agentd.Policy(json.loads(policy))
        self.runner = agentd.Runner(policy)
        self.context = lambda: agentd.Context(policy=policy, backend=backend, workdir=workdir)

    def run(self, argv):
        assert self.runner.run(argv, context=self.context()).ok

    async def run_async(self, argv):
        assert (await self.runner.run_async(argv, context=self.context())).ok


def main():
    how, *about = sys.argv[1:]
    if how.startswith("agentd"):
        ours = Agentd(*about)
    with asyncio.Runner() as runner:
        run = {
            "subprocess": lambda argv: by_subprocess(argv),
            "asyncio": lambda argv: runner.run(in_asyncio(argv)),
            "agentd": lambda argv: ours.run(argv),
            "agentd-asyncio": lambda argv: runner.run(ours.run_async(argv)),
        }[how]
        for line in sys.stdin:
            if line == "\n":
                break
            argv = line.rstrip("\n").split("\t")
            begin = time.monotonic_ns()
            run(argv)
            print((time.monotonic_ns() - begin) / 1e3, flush=True)


main()
