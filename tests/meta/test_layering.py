# SPDX-License-Identifier: MIT
"""Folders of lib/ include only downwards, and each foreign library has one user."""

import os
import re

import tap

# What each folder may include of the others; itself always.
UTIL = {"util"}
SYS = UTIL | {"sys"}
BASE = SYS | {"json", "loop", "proto"}
LAUNCH = BASE | {"policy", "sink"}
ALLOWED = {
    "util": UTIL,
    "sys": SYS,
    "json": SYS,
    "cache": SYS | {"json"},
    "loop": SYS,
    "proto": SYS,
    "policy": BASE,
    "sink": BASE,
    "egress": BASE | {"policy"},
    "launch": LAUNCH,
    "backend": LAUNCH | {"launch", "cache"},
    "pool": LAUNCH | {"launch", "backend"},
    "core": LAUNCH | {"launch", "backend", "egress", "pool"},
    "probe": LAUNCH | {"launch", "cache"},
    # Programs of their own, static, and a part of one: they share only what needs no
    # library.
    "archive": SYS | {"proto"},
    "guest": SYS | {"proto", "archive"},
    "helper": SYS | {"proto"},
    "backup": set(),
}
FOREIGN = {
    ("json",): r"json(-c/.*|_.*)?\.h|json\.h",
    ("loop",): r"event2/.*|event\.h|evutil\.h",
    ("egress",): r"ares(_.*)?\.h",
    ("archive", "backup"): r"archive\.h|archive_entry\.h",
    ("helper",): r"seccomp\.h",
}
STANDARD = {"stddef.h", "stdint.h"}

INCLUDE = re.compile(r'^[ \t]*#[ \t]*include[ \t]*([<"])([^>"]+)[>"]', re.M)


def includes(path):
    with open(path, encoding="utf-8") as file:
        return INCLUDE.findall(file.read())


def sources(top):
    for folder, _, names in sorted(os.walk(os.path.join(tap.ROOT, top))):
        for name in sorted(names):
            if name.endswith((".c", ".h")):
                yield os.path.relpath(os.path.join(folder, name), tap.ROOT)


upwards, private, foreign, unknown, quoted = [], [], [], [], []
count = 0
for path in sources("lib"):
    count += 1
    folder = path.split("/")[1]
    if folder not in ALLOWED:
        unknown.append(path)
        continue
    for kind, name in includes(os.path.join(tap.ROOT, path)):
        what = f"{path}: {name}"
        if kind == "<":
            for owners, pattern in FOREIGN.items():
                if folder not in owners and re.fullmatch(pattern, name):
                    foreign.append(what)
            continue
        target = name.split("/")[0]
        if "/" not in name or target not in ALLOWED:
            # Every include is written from lib/, so that this test sees it.
            quoted.append(what)
        elif target != folder and target not in ALLOWED[folder]:
            upwards.append(what)
        elif target != folder and name.split("/")[-1] != name.split("/")[-2] + ".h":
            # proto has a header per protocol.
            if target != "proto":
                private.append(what)

tap.check(count > 20, f"{count} files looked at")
tap.check_empty(unknown, "every folder of lib/ has its place in the order")
tap.check_empty(quoted, 'internal includes are written "folder/file.h"')
tap.check_empty(upwards, "includes go only downwards")
tap.check_empty(private, "of other folders only <folder>.h is included")
tap.check_empty(foreign, "json-c is included only by json/, libevent by loop/, c-ares by egress/, libarchive by archive/ and backup/, libseccomp by helper/")

bad = []
for path in sources("include"):
    for kind, name in includes(os.path.join(tap.ROOT, path)):
        if kind != "<" or not (name in STANDARD or name.startswith("agentd/")):
            bad.append(f"{path}: {name}")
tap.check_empty(bad, "public headers include only agentd/, stddef.h and stdint.h")

bad = []
for path in sources("examples"):
    beside = os.listdir(os.path.join(tap.ROOT, os.path.dirname(path)))
    for kind, name in includes(os.path.join(tap.ROOT, path)):
        if (kind == '"' and name not in beside) or os.path.exists(os.path.join(tap.ROOT, "lib", name)):
            bad.append(f"{path}: {name}")
tap.check_empty(bad, "examples use nothing internal")

# A source that nobody builds is not tested either.
bad = []
for top in ("lib", "tests", "examples"):
    for path in sources(top):
        folder, name = os.path.split(path)
        builds = os.path.join(tap.ROOT, folder, "meson.build")
        text = ""
        if os.path.exists(builds):
            with open(builds, encoding="utf-8") as file:
                text = file.read()
        stem = os.path.splitext(name)[0]
        words = rf"'({re.escape(name)}|{re.escape(stem)}|{re.escape(stem.removeprefix('test_').removeprefix('fuzz_'))})'"
        if name.endswith(".c") and path != "tests/install/consumer.c" and not re.search(words, text):
            bad.append(path)
tap.check_empty(bad, "every C file is named by the meson.build beside it")
tap.finish()
