# SPDX-License-Identifier: MIT
"""Exported = mapped = declared = documented. Argument: the shared library."""

import os
import re
import sys

import abi
import tap

LIBRARY = sys.argv[1]


def difference(a, b):
    return sorted(set(a) ^ set(b))


declared = [name for name, _ in abi.prototypes(abi.INCLUDE)]
mapped = abi.map_symbols(abi.MAP)
listed = tap.run([tap.need("nm"), "-D", "--defined-only", "--with-symbol-versions", LIBRARY])
tap.check(listed.returncode == 0, "nm reads the library", listed.stderr.splitlines())
exported = []
for line in listed.stdout.splitlines():
    kind, symbol = line.split()[1:3]
    if kind != "A":  # the version nodes themselves
        exported.append((kind, *symbol.replace("@@", "@").split("@")))

tap.check(len(declared) > 100, f"{len(declared)} functions are declared")
tap.check_empty(
    [n for n in declared if declared.count(n) > 1], "every function is declared once"
)
tap.check_empty(
    [n for n, _ in mapped if "*" in n or not n.startswith("agentd_")],
    "the map lists agentd_ names, and no patterns",
)
tap.check_empty(
    [n for n, _ in mapped if [m for m, _ in mapped].count(n) > 1], "every symbol is mapped once"
)
tap.check_empty(difference(declared, [n for n, _ in mapped]), "declared = mapped")
tap.check_empty(
    [f"{k} {n}" for k, n, *_ in exported if k != "T"], "only functions are exported, no data"
)
tap.check_empty(
    difference([(e[1], e[2] if len(e) > 2 else "") for e in exported], mapped),
    "exported = mapped, in the same version nodes",
)

# ---- documented: a doc comment directly before each declaration

DECLARATION = re.compile(
    r"^(?:AGENTD_API\b[^;]*?\b(?P<function>agentd_\w+)\s*\("
    r"|typedef\s[^;]*?\(\*(?P<callback>agentd_\w+)\)"
    r"|struct\s+(?P<struct>agentd_\w+)\s*\{"
    r"|typedef\s+[\w ]+?\b(?P<type>agentd_\w+);)",
    re.M,
)
documented, bare = [], []
for header in abi.headers(abi.INCLUDE):
    with open(os.path.join(abi.INCLUDE, header), encoding="utf-8") as file:
        text = file.read()
    # Same length without comments, so that a name in a comment is no declaration.
    code = re.sub(r"/\*.*?\*/", lambda m: re.sub(r"[^\n]", " ", m[0]), text, flags=re.S)
    for found in DECLARATION.finditer(code):
        kind, name = next((k, v) for k, v in found.groupdict().items() if v)
        before = text[: found.start()].rstrip(" \t")
        comment = before[before.rfind("/*") :] if before.endswith("*/\n") else ""
        after = text[found.end() :].split("\n", 1)[0].strip()
        if re.match(r"/\*\*[^<@]", comment) or (kind == "type" and after.startswith("/**<")):
            documented.append(name)
        else:
            bare.append(f"{header}: {kind} {name}")
tap.check_empty(bare, "every function, callback, struct and type is documented")
tap.check_empty(
    difference(declared, [n for n in documented if n in declared]), "documented = declared"
)
tap.finish()
