# SPDX-License-Identifier: MIT
"""The ABI that debug information tells of: libagentd-0.abi.xml, and what abidiff says.

The dump is of a stub with the public functions of the headers and nothing in them, so
that it changes when the interface does and not when a source file moves. The library
as it is built must have that ABI, or one that has grown.
"""

import os
import re
import subprocess
import xml.etree.ElementTree as ElementTree

import abi

BASELINE = os.path.join(abi.HERE, "libagentd-0.abi.xml")

# --drop-private-types of abidw 2.2 goes by the names of header files without their
# folders, and lib/backend/backend.h is not agentd/backend.h. With its label a rule of
# ours does the same by path: what is defined elsewhere is an opaque type.
PRIVATE = """[suppress_type]
label = Artificial private types suppression specification
source_location_not_regexp = include/agentd/[a-z]+\\.h$
drop = yes
"""
# All types: no function mentions the enumerations.
FLAGS = [
    "--load-all-types",
    "--no-comp-dir-path",
    "--no-corpus-path",
    "--no-elf-needed",
    "--no-parameter-names",
    "--no-show-locs",
    "--no-write-default-sizes",
    "--drop-undefined-syms",
]

# Lines of abidiff's report of leaf changes that only tell of what was added. A line that
# is not known is a break.
ADDITION = re.compile(
    r"(Leaf changes summary|Changed leaf types summary|Removed/Changed/Added \w+ summary): .*"
    r"|\d+ Added functions?:"
    r"|  \[A\] 'function .*"
    r"|'struct \w+( at \S+)?' changed:"
    r"|  \d+ data member insertions?:"
)
SIZE = re.compile(r"  type size changed from (\d+) to (\d+) \(in bits\)")
MEMBER = re.compile(r"    '.*', at offset (\d+) \(in bits\)( at \S+)?")


def run(*argv):
    return subprocess.run(argv, text=True, capture_output=True, check=False)


def stub(include, map_path, scratch):
    """Path of a library with the functions of these headers, exported as the map says;
    those that it does not name are in a node after its last."""
    prototypes = abi.prototypes(include)
    mapped = abi.map_symbols(map_path)
    with open(map_path, encoding="utf-8") as file:
        script = file.read()
    added = sorted({name for name, _ in prototypes} - {name for name, _ in mapped})
    if added:
        script += f"AGENTD_ADDED {{ global: {'; '.join(added)}; }} {mapped[-1][1]};\n"
    version_script = os.path.join(scratch, "stub.map")
    with open(version_script, "w", encoding="utf-8") as file:
        file.write(script)
    library = os.path.join(scratch, "stub.so")
    abi.cc(
        ["-x", "c", "-std=gnu17", "-g", "-fno-eliminate-unused-debug-types", "-shared", "-fPIC"]
        + ["-I", include, f"-Wl,--version-script={version_script}", "-Wl,-soname,libagentd.so.0"]
        + ["-o", library, "-"],
        abi.umbrella(include)
        + "".join(f"{text}\n{{\n\t__builtin_trap();\n}}\n" for _, text in prototypes),
    )
    return library


def has_debug_info(library):
    return ".debug_info" in run("readelf", "-SW", library).stdout


def dump(library, scratch):
    """Path of what abidw says of a library with debug information."""
    rules = os.path.join(scratch, "private.suppr")
    with open(rules, "w", encoding="utf-8") as file:
        file.write(PRIVATE)
    path = os.path.join(scratch, os.path.basename(library) + ".abi.xml")
    done = run("abidw", *FLAGS, "--suppressions", rules, "--out-file", path, library)
    if done.returncode != 0:
        raise RuntimeError(f"abidw of {library} failed:\n{done.stdout}{done.stderr}")
    return path


def constants(path):
    """{name: value} of the public enumerators in a dump."""
    return {
        e.get("name"): int(e.get("value"))
        for e in ElementTree.parse(path).iter("enumerator")
        if e.get("name").startswith("AGENTD_")
    }


def judge(report):
    """The lines of a report that are more than an addition."""
    breaks, end = [], None
    for line in filter(None, report.splitlines()):
        size, member = SIZE.fullmatch(line), MEMBER.fullmatch(line)
        if size:
            end = int(size[1])
        elif not (member and end is not None and int(member[1]) >= end):
            if not ADDITION.fullmatch(line):
                breaks.append(line)
    return breaks


def compare(old, new):
    """("same", "adding" or "breaking", lines of a report) of two dumps.

    abidiff compares all that functions reach. It knows an anonymous enumeration by its
    number only, so that constants are compared here, by their names.
    """
    done = run("abidiff", "--leaf-changes-only", "--redundant", "--no-show-locs", old, new)
    # Bits of its status: 1 error, 2 usage, 4 change, 8 break.
    if done.returncode < 0 or done.returncode & 3:
        raise RuntimeError(f"abidiff failed ({done.returncode}):\n{done.stdout}{done.stderr}")
    report = done.stdout.splitlines() if done.returncode else []
    breaks = judge(done.stdout) if done.returncode else []
    if done.returncode & 8:
        breaks.append("abidiff: incompatible")
    before, after = constants(old), constants(new)
    for name, value in sorted(before.items()):
        if after.get(name) != value:
            breaks.append(f"{name} was {value} and is {after.get(name, 'gone')}")
    added = [f"{name} = {after[name]} is new" for name in sorted(set(after) - set(before))]
    verdict = "breaking" if breaks else "adding" if report or added else "same"
    return verdict, report + added + [f"break: {line.strip()}" for line in breaks]


def write_baseline(path, made):
    with open(made, encoding="utf-8") as file:
        root, rest = file.read().split("\n", 1)
    with open(path, "w", encoding="utf-8") as file:
        # abidiff knows a dump by its first bytes.
        file.write(f"{root}\n<!-- SPDX-License-Identifier: MIT -->\n{rest}")
