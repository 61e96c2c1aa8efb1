# SPDX-License-Identifier: MIT
"""The headers say what baseline.txt says."""

import os
import struct

import abi
import tap

if struct.calcsize("P") != 8:
    tap.skip("SKIP-CANNOT: the baseline is of machines with 64-bit pointers")

INCLUDE = os.path.join(tap.ROOT, "include")
MAP = os.path.join(tap.ROOT, "lib", "agentd.map")

old = abi.read_baseline(os.path.join(abi.HERE, "baseline.txt"))
gone, added = abi.compare(old, abi.describe(INCLUDE, MAP))

tap.check(len(old) > 400, f"the baseline has its {len(old)} lines")
tap.check_empty(
    gone and gone + ["changed or removed: this breaks programs compiled before"],
    "nothing of the baseline is gone or changed",
)
tap.check_empty(
    added and added + ["if this is meant to be public: scripts/abi-baseline --update"],
    "nothing was added that the baseline does not have",
)
tap.finish()
