# SPDX-License-Identifier: MIT
"""Every public header compiles alone and twice, in every language, without padding."""

import os
import re
import shutil
import tempfile
from concurrent.futures import ThreadPoolExecutor

import abi
import tap

INCLUDE = os.path.join(tap.ROOT, "include")
COMPILERS = {
    "c": [tap.need("gcc"), tap.need("clang")],
    "c++": [tap.need("g++"), tap.need("clang++")],
}
STANDARDS = [("c", "c99"), ("c", "c11"), ("c", "c17"), ("c++", "c++11"), ("c++", "c++17")]
FLAGS = ["-Wall", "-Wextra", "-Wpedantic", "-Wpadded", "-Werror"]


def compile_one(job):
    header, language, standard, compiler = job
    flags = FLAGS + (["-Wstrict-prototypes"] if language == "c" else [])
    done = tap.run(
        [compiler, f"-std={standard}", *flags, "-I", INCLUDE, "-x", language, "-fsyntax-only", "-"],
        stdin=None,
        input=f"#include <{header}>\n#include <{header}>\n",
    )
    name = f"{header} as {standard} with {os.path.basename(compiler)}"
    return done.returncode == 0, name, done.stderr.splitlines()


jobs = [
    (header, language, standard, compiler)
    for header in abi.headers(INCLUDE)
    for language, standard in STANDARDS
    for compiler in COMPILERS[language]
]
with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
    for result in pool.map(compile_one, jobs):
        tap.check(*result)

# That the flags find a gap: the same headers without a member that fills one. clang lays
# out only what is used, so it is gcc that finds it.
with tempfile.TemporaryDirectory(prefix="agentd-abi-") as scratch:
    shutil.copytree(INCLUDE, os.path.join(scratch, "include"))
    gap = os.path.join(scratch, "include", "agentd", "exec.h")
    with open(gap, encoding="utf-8") as file:
        text = file.read()
    with open(gap, "w", encoding="utf-8") as file:
        file.write(re.sub(r"\tuint32_t reserved0;.*\n", "", text))
    for language, (compiler, _) in COMPILERS.items():
        done = tap.run(
            [compiler, *FLAGS, "-I", os.path.join(scratch, "include"), "-x", language, "-fsyntax-only", "-"],
            stdin=None,
            input="#include <agentd/exec.h>\n",
        )
        tap.check(
            done.returncode != 0 and "padded]" in done.stderr,
            f"a struct with a gap is refused with {os.path.basename(compiler)}",
            done.stderr.splitlines(),
        )

# The umbrella has everything but what only implementers of backends need.
with open(os.path.join(INCLUDE, "agentd", "agentd.h"), encoding="utf-8") as file:
    text = file.read()
missing = [
    header
    for header in abi.headers(INCLUDE)
    if header not in ("agentd/agentd.h", "agentd/backend.h") and f"#include <{header}>" not in text
]
tap.check_empty(missing, "agentd.h includes every other header")
tap.check("backend.h>" not in text, "agentd.h does not include backend.h")
tap.finish()
