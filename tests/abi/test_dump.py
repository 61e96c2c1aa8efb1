# SPDX-License-Identifier: MIT
"""The built library has the ABI of libagentd-0.abi.xml. Argument: the shared library."""

import platform
import sys
import tempfile

import abi
import dump
import tap

LIBRARY = sys.argv[1]
tap.need("abidiff")
if platform.machine() != "x86_64":
    tap.skip("SKIP-CANNOT: the dump is of x86_64")

with tempfile.TemporaryDirectory(prefix="agentd-abi-") as scratch:
    if tap.check(
        dump.has_debug_info(LIBRARY),
        "the library has debug information",
        ["abidw reads nothing else; the default build type, debugoptimized, makes it"],
    ):
        built = dump.dump(LIBRARY, scratch)
        verdict, report = dump.compare(dump.BASELINE, built)
        tap.check(verdict != "breaking", "it does not break programs compiled before", report)
        tap.check(
            verdict != "adding",
            "it has nothing that the dump does not have",
            [*report, "if this is meant to be public: scripts/abi-baseline --update"],
        )
        known = [line for line in abi.read_baseline(abi.BASELINE) if line.startswith("constant ")]
        tap.check(
            len(dump.constants(built)) == len(known),
            f"debug information has all {len(known)} constants",
            [f"it has {len(dump.constants(built))}"],
        )
tap.finish()
