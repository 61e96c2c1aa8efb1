# SPDX-License-Identifier: MIT
"""The headers say what baseline.txt says."""

import re
import struct

import abi
import tap

if struct.calcsize("P") != 8:
    tap.skip("SKIP-CANNOT: the baseline is of machines with 64-bit pointers")

old = abi.read_baseline(abi.BASELINE)
gone, added = abi.compare(old, abi.describe(abi.INCLUDE, abi.MAP))

tap.check(len(old) > 400, f"the baseline has its {len(old)} lines")
tap.check_empty(
    gone and gone + ["changed or removed: this breaks programs compiled before"],
    "nothing of the baseline is gone or changed",
)
tap.check_empty(
    added and added + ["if this is meant to be public: scripts/abi-baseline --update"],
    "nothing was added that the baseline does not have",
)

# What a struct without its size has appended is read from beyond the caller's memory.
structs = {m[1] for m in re.finditer(r"^member (\w+)\.", "\n".join(old), re.M)}
sized = {m[1] for m in re.finditer(r"^member (\w+)\.size at 0: uint32_t size$", "\n".join(old), re.M)}
tap.check_empty(sorted(structs - sized), f"all {len(structs)} structs begin with their size")
tap.finish()
