# SPDX-License-Identifier: MIT
"""Every file says its licence; the documents name no place of one machine."""

import os
import re

import tap

FILES = tap.tracked_files()
tap.check(len(FILES) > 50, f"{len(FILES)} files looked at")


def read(path):
    with open(os.path.join(tap.ROOT, path), encoding="utf-8", errors="replace") as file:
        return file.read()


# ---- licence: in each file that can hold a comment and is ours

# What tests feed to the library is as it is, down to the last byte.
DATA = re.compile(r"tests/json/|.*/(corpus|data)/")
NO_COMMENT = re.compile(r"LICENSE$|.*\.(json|md)$")
bare = []
for path in FILES:
    if DATA.match(path) or NO_COMMENT.match(path):
        continue
    if "SPDX-License-Identifier: MIT" not in "\n".join(read(path).splitlines()[:3]):
        bare.append(path)
tap.check_empty(bare, "every file has its SPDX line")

# ---- paths: only places that every Linux system has

SYSTEM = (
    "bin boot dev etc home lib lib64 media mnt opt proc root run sbin srv sys tmp usr var".split()
)
# Made-up places of examples, and what JSON pointers begin with.
OTHERS = "path project prefix image data repo limits policy net mounts ask".split()
PATH = re.compile(r"(?<![\w.~/)}\]>*:$@%+-])/([A-Za-z_.][\w.+-]*)(?=[/\s`'\"),;:.\]]|$)(/[\w.+-]+)+")
strange = []
for path in FILES:
    # Tests feed strange paths on purpose.
    # In a virtual machine all places are of one machine.
    if path.startswith(("tests/", "lib/guest/")):
        continue
    for number, line in enumerate(read(path).splitlines(), 1):
        for found in PATH.finditer(line):
            if found[1] not in SYSTEM + OTHERS:
                strange.append(f"{path}:{number}: {found[0]}")
            elif found[1] in ("home", "root"):
                strange.append(f"{path}:{number}: {found[0]}")
tap.check_empty(strange, "no path of one machine in documents, sources and scripts")

# ---- hygiene

untidy = []
for path in FILES:
    text = read(path)
    if DATA.match(path):
        continue
    if re.search(r"[ \t]+$", text, re.M):
        untidy.append(f"{path}: white space at the end of a line")
    if text and not text.endswith("\n"):
        untidy.append(f"{path}: no newline at the end")
    if "\r" in text:
        untidy.append(f"{path}: carriage return")
tap.check_empty(untidy, "no trailing white space, a newline at the end of each file")
tap.finish()
