# SPDX-License-Identifier: MIT
"""One version everywhere. Arguments: the shared library, the project's version."""

import ctypes
import os
import re
import sys

import tap

LIBRARY, VERSION = sys.argv[1:3]


def read(path):
    with open(os.path.join(tap.ROOT, path), encoding="utf-8") as file:
        return file.read()


parts = [
    int(re.search(rf"^#define AGENTD_VERSION_{part} (\d+)$", read("include/agentd/version.h"), re.M)[1])
    for part in ("MAJOR", "MINOR", "PATCH")
]
tap.check(".".join(map(str, parts)) == VERSION, f"version.h says {VERSION}", [str(parts)])

library = ctypes.CDLL(LIBRARY)
library.agentd_version_string.restype = ctypes.c_char_p
library.agentd_version_number.restype = ctypes.c_uint32
text = library.agentd_version_string().decode()
number = library.agentd_version_number()
tap.check(text == VERSION, f"agentd_version_string() says {VERSION}", [text])
tap.check(
    number == parts[0] << 16 | parts[1] << 8 | parts[2],
    "agentd_version_number() says so too",
    [hex(number)],
)
newest = re.search(r"^## (\S+)", read("CHANGELOG.md"), re.M)
tap.check(newest and newest[1] == VERSION, f"CHANGELOG.md begins with {VERSION}", [str(newest)])
nodes = re.findall(r"^(AGENTD_[\d.]+) \{", read("lib/agentd.map"), re.M)
known = [tuple(map(int, n.removeprefix("AGENTD_").split("."))) for n in nodes]
tap.check(bool(known) and max(known) <= tuple(parts[:2]), "the map has no node of the future", nodes)
tap.finish()
