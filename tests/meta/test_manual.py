# SPDX-License-Identifier: MIT
"""The manual is clean and complete, says what the headers say, and its examples compile;
those that are programs also run. Argument: the shared library."""

import os
import re
import sys
import tempfile

import tap
from pycparser import c_ast

sys.path.insert(0, os.path.join(tap.ROOT, "tests", "abi"))
import abi  # noqa: E402 pylint: disable=wrong-import-position

LIBRARY = os.path.abspath(sys.argv[1])
MANDOC = tap.need("mandoc")
MAN = os.path.join(tap.ROOT, "man")
WARNINGS = ["-std=c99", "-Wall", "-Wextra", "-Wpedantic", "-Werror"]


def squeeze(text):
    """Without white space that has no meaning."""
    return re.sub(r"\s*([*(),;{}])\s*", r"\1", re.sub(r"\s+", " ", text)).strip()


class Page:
    def __init__(self, file):
        self.file = file
        with open(os.path.join(MAN, file), encoding="utf-8") as source:
            self.text = source.read()
        self.names = re.findall(r"^\.Nm (\S+)", self.section("NAME"), re.M)

    def section(self, title):
        found = re.search(rf"^\.Sh {title}\n(.*?)(?=^\.Sh |\Z)", self.text, re.M | re.S)
        return found[1] if found else ""

    def literals(self, title):
        """Its literal blocks as they are read: without the escapes of roff."""
        blocks = re.findall(r"^\.Bd -literal.*?\n(.*?)^\.Ed$", self.section(title), re.M | re.S)
        return [b.replace("\\e", "\\").replace("\\(aq", "'").replace("\\&", "") for b in blocks]

    def prototypes(self):
        """{name: prototype} of the functions in SYNOPSIS."""
        found = re.findall(
            r"^\.Ft (.*)\n\.Fo (\w+)\n((?:\.Fa .*\n)*)\.Fc$", self.section("SYNOPSIS"), re.M
        )
        return {
            name: squeeze(f"{kind} {name}({','.join(re.findall(r'^.Fa (.*)$', args, re.M))})".replace('"', ""))
            for kind, name, args in found
        }


pages = [Page(name) for name in sorted(os.listdir(MAN)) if name[-1].isdigit()]
functions = [page for page in pages if page.file.endswith(".3")]
declared = {name: squeeze(text) for name, text in abi.prototypes(abi.INCLUDE)}
exported = {name for name, _ in abi.map_symbols(abi.MAP)}
everything = "\n".join(page.text for page in functions)

# ---- form

done = tap.run([MANDOC, "-Tlint", "-Wwarning", *(os.path.join(MAN, p.file) for p in pages)])
tap.check(done.returncode == 0 and not done.stdout, "mandoc has nothing to say", done.stdout.splitlines())
with tempfile.TemporaryDirectory(prefix="agentd-manual-") as scratch:
    broken = os.path.join(scratch, "broken.3")
    with open(broken, "w", encoding="utf-8") as file:
        file.write(functions[0].text.replace(".Sh DESCRIPTION", ".Sh DESCRIPTION\n.Bogus"))
    done = tap.run([MANDOC, "-Tlint", "-Wwarning", broken])
    tap.check(done.returncode != 0, "but has of a page with a macro that there is not")
tap.check_empty(
    [f"{p.file}: {line}" for p in pages for line in re.findall(r"^\.(?:Pq )?Qq \S+ [.,;] Q[ql] .*$", p.text, re.M)],
    "no quotation is inside of another",
)
wanted = ["NAME", "SYNOPSIS", "DESCRIPTION", "THREADS", "EXAMPLES", "SEE ALSO"]
tap.check_empty(
    [f"{p.file}: no {title}" for p in functions for title in wanted if not p.section(title)]
    + [f"{p.file}: an int is returned, and no RETURN VALUES"
       for p in functions
       if ".Ft int\n" in p.text and not p.section("RETURN VALUES")],
    "every page has its sections",
)

# ---- functions

named = [name for page in functions for name in page.names]
tap.check(len(exported) > 100, f"{len(exported)} functions are exported")
tap.check_empty(sorted(set(named) ^ exported), "each of them has a page, and nothing else has")
tap.check_empty([n for n in set(named) if named.count(n) > 1], "and it has one")
tap.check_empty([p.file for p in functions if p.file != f"{p.names[0]}.3"], "pages are called after their first")
wrong = []
for page in functions:
    synopsis = page.prototypes()
    wrong += [f"{page.file}: {n} is not in both NAME and SYNOPSIS" for n in set(page.names) ^ set(synopsis)]
    wrong += [
        f"{page.file}: {text} is {declared.get(name, 'not declared')}"
        for name, text in synopsis.items()
        if declared.get(name) != text
    ]
tap.check_empty(wrong, "prototypes are those of the headers")
with open(os.path.join(abi.INCLUDE, "agentd", "backend.h"), encoding="utf-8") as file:
    of_backends = set(re.findall(r"^AGENTD_API .*?\b(agentd_\w+)\(", file.read(), re.M)) & exported
wrong = []
for page in functions:
    needed = {"agentd/backend.h" if n in of_backends else "agentd/agentd.h" for n in page.names}
    if needed != set(re.findall(r"^\.In (\S+)$", page.section("SYNOPSIS"), re.M)):
        wrong.append(f"{page.file}: {sorted(needed)} declare what it has")
tap.check_empty(wrong, "and the headers to include are those that declare them")

# ---- structs, callbacks, constants

structs, callbacks, constants = {}, {}, set()
for decl in abi.parse(abi.INCLUDE):
    text = squeeze(abi.text_of(decl))
    if isinstance(decl, c_ast.Typedef) and "(*" in text:
        callbacks[decl.name] = f"{text};"
    elif isinstance(decl, c_ast.Decl) and isinstance(decl.type, c_ast.Struct) and decl.type.decls:
        structs[decl.type.name] = f"{text};"
    elif isinstance(decl, c_ast.Decl) and isinstance(decl.type, c_ast.Enum):
        constants.update(value.name for value in decl.type.values.enumerators)

shown, unexplained = [], []
for page in functions:
    shown += [squeeze(block) for block in page.literals("SYNOPSIS")]
    for struct in re.findall(r"^struct (\w+) \{", page.section("SYNOPSIS"), re.M):
        unexplained += [
            f"{page.file}: {struct}.{member}"
            for member in re.findall(r"(\w+)(?:\)\([^;]*\))?;", structs.get(struct, ""))
            if not re.search(rf"^\.It Va .*\b{member}\b", page.section("DESCRIPTION"), re.M)
        ]
tap.check(len(structs) > 5 and len(callbacks) > 5, f"{len(structs)} structs, {len(callbacks)} callbacks")
tap.check_empty(
    sorted({*structs.values(), *callbacks.values()} ^ set(shown)), "each of them is shown as it is"
)
tap.check_empty(unexplained, "each member is explained")
tap.check(len(constants) > 50, f"{len(constants)} constants")
tap.check_empty(
    sorted(name for name in constants if not re.search(rf"\b{name}\b", everything)),
    "each of them is mentioned",
)

# ---- nothing that does not exist

macros = {f"AGENTD_VERSION_{part}" for part in ("MAJOR", "MINOR", "PATCH")}
handles = {n for text in declared.values() for n in re.findall(r"\bagentd_\w+", text)}
titles = {f"{name} {page.file[-1]}" for page in pages for name in page.names}
# What a module of agentd-conformance(1) has.
modules = {"agentd_conformance_add_backend"}
names = exported | handles | modules | {*structs, *callbacks} | {page.names[0] for page in pages}
wrong = []
for page in pages:
    text = re.sub(r"^\.(?:Dt|Ev|It Ev|Bl) .*$", "", page.text, flags=re.M)
    wrong += [
        f"{page.file}: there is no {name}({section})"
        for name, section in re.findall(r"^\.(?:It )?Xr (agentd[\w-]*) (\d)", text, re.M)
        if f"{name} {section}" not in titles
    ]
    # "agentd_task_*" is no name.
    mentioned = re.findall(r"\b(?:agentd_\w*|AGENTD_\w*)[A-Za-z0-9]\b", text)
    wrong += [
        f"{page.file}: there is no {name}"
        for name in sorted(set(mentioned) - names - constants - macros)
    ]
tap.check_empty(wrong, "no page speaks of what does not exist")
overview = next(page for page in pages if page.file == "agentd.7").section("FUNCTIONS")
tap.check_empty(
    sorted({p.names[0] for p in functions} ^ set(re.findall(r"^\.It Xr (\w+) 3$", overview, re.M))),
    "agentd(7) lists the pages",
)

# ---- examples

compiler = os.environ.get("CC", "cc").split()
programs = 0
with tempfile.TemporaryDirectory(prefix="agentd-manual-") as scratch:
    environment = {**os.environ, "LD_LIBRARY_PATH": os.path.dirname(LIBRARY)}
    for page in functions:
        for number, code in enumerate(page.literals("EXAMPLES")):
            is_program = "int main(" in code
            output = os.path.join(scratch, f"{page.file}-{number}")
            done = tap.run(
                [*compiler, *WARNINGS, "-I", abi.INCLUDE, "-x", "c", "-", "-o", output]
                + (["-x", "none", LIBRARY] if is_program else ["-c"]),
                stdin=None,
                input=code,
            )
            good = tap.check(done.returncode == 0, f"{page.file}: the example compiles", done.stderr.splitlines())
            if good and is_program:
                programs += 1
                done = tap.run([output], env=environment, cwd=scratch)
                tap.check(
                    done.returncode == 0 and done.stdout and not done.stderr,
                    f"{page.file}: and runs",
                    (done.stdout + done.stderr).splitlines(),
                )
    tap.check(programs > 5, f"{programs} of them are programs")
tap.finish()
