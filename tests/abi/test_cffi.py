# SPDX-License-Identifier: MIT
"""cffi takes the preprocessed headers as they are, and sees the same layout as C."""

import os
import re

import abi
import cffi
import tap

INCLUDE = os.path.join(tap.ROOT, "include")

ffi = cffi.FFI()
try:
    ffi.cdef(abi.preprocess(INCLUDE))
    problem = []
except (cffi.CDefError, cffi.FFIError) as error:
    problem = str(error).splitlines()
if not tap.check_empty(problem, "cffi.cdef accepts cc -E -P -DAGENTD_FFI_CDEF"):
    tap.finish()

members = 0
wrong = []
for line in abi.describe(INCLUDE):
    found = re.match(r"member (\w+)\.(\w+) at (\d+): ", line)
    if found:
        members += 1
        offset = ffi.offsetof(f"struct {found[1]}", found[2])
        if offset != int(found[3]):
            wrong.append(f"{line}: cffi says {offset}")
tap.check(members > 30, f"{members} members compared")
tap.check_empty(wrong, "cffi and the compiler agree on every offset")

# Constants are usable without the library: cffi made them from the enums.
library = ffi.dlopen(None)
tap.check(library.AGENTD_ERR_ABI == -15, "cffi knows the constants")
tap.finish()
