# SPDX-License-Identifier: MIT
"""The HTML reference is made without a warning and has every function. Argument: Doxyfile."""

import os
import re
import shutil
import sys
import tempfile
import xml.etree.ElementTree as ElementTree

import tap

DOXYGEN = tap.need("doxygen")
with open(sys.argv[1], encoding="utf-8") as file:
    CONFIGURATION = file.read()
with open(os.path.join(tap.ROOT, "lib", "agentd.map"), encoding="utf-8") as file:
    EXPORTED = set(re.findall(r"^\s+(agentd_\w+);$", file.read(), re.M))


def make(scratch, include=os.path.join(tap.ROOT, "include")):
    """The reference in scratch, of other headers if told so."""
    return tap.run(
        [DOXYGEN, "-"],
        stdin=None,
        input=CONFIGURATION.replace(os.path.join(tap.ROOT, "include"), include)
        + f"OUTPUT_DIRECTORY = {scratch}\nGENERATE_TAGFILE = {scratch}/tags\n",
    )


with tempfile.TemporaryDirectory(prefix="agentd-reference-") as scratch:
    done = make(scratch)
    tap.check(done.returncode == 0 and not done.stderr, "no warnings", done.stderr.splitlines())
    found = {
        member.findtext("name")
        for member in ElementTree.parse(os.path.join(scratch, "tags")).iter("member")
        if member.get("kind") == "function"
    }
    tap.check(len(EXPORTED) > 100, f"{len(EXPORTED)} functions are exported")
    tap.check_empty(sorted(EXPORTED ^ found), "the reference has these functions")
    tap.check(
        os.path.exists(os.path.join(scratch, "reference", "index.html")), "it has a first page"
    )

    # That something undocumented is found.
    copy = os.path.join(scratch, "include")
    shutil.copytree(os.path.join(tap.ROOT, "include"), copy)
    with open(os.path.join(copy, "agentd", "version.h"), "r+", encoding="utf-8") as file:
        text = file.read()
        file.seek(0)
        file.write(text.replace("#ifdef __cplusplus\n}", "AGENTD_API void agentd_new(void);\n#ifdef __cplusplus\n}"))
    done = make(os.path.join(scratch), copy)
    tap.check(
        done.returncode != 0 and "agentd_new" in done.stderr,
        "a function without documentation is an error",
        done.stderr.splitlines(),
    )
tap.finish()
