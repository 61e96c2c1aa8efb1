# SPDX-License-Identifier: MIT
"""The public headers as text: one line per fact that a compiled program relies on.

Every prototype, struct member (offset and type), constant, type and symbol version
is a line of baseline.txt; lines may be added, never changed or removed. Parameter
names are left out: a caller does not see them. dump.py asks the same of the built
library.
"""

import os
import re
import subprocess
import tempfile

from pycparser import c_ast, c_generator, c_parser

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
INCLUDE = os.path.join(ROOT, "include")
MAP = os.path.join(ROOT, "lib", "agentd.map")
BASELINE = os.path.join(HERE, "baseline.txt")

# What <stddef.h> and <stdint.h> give; only so that the parser knows type names.
STANDARD = "".join(
    f"typedef {c} {name};\n"
    for c, name in [
        ("unsigned long", "size_t"),
        ("signed char", "int8_t"),
        ("unsigned char", "uint8_t"),
        ("short", "int16_t"),
        ("unsigned short", "uint16_t"),
        ("int", "int32_t"),
        ("unsigned int", "uint32_t"),
        ("long", "int64_t"),
        ("unsigned long", "uint64_t"),
    ]
)


def headers(include):
    """Names of the public headers as a consumer writes them, "agentd/base.h"."""
    folder = os.path.join(include, "agentd")
    return [f"agentd/{n}" for n in sorted(os.listdir(folder)) if n.endswith(".h")]


def umbrella(include):
    return "".join(f"#include <{name}>\n" for name in headers(include))


def cc(argv, text):
    compiler = os.environ.get("CC", "cc").split()
    done = subprocess.run(
        compiler + argv, input=text, text=True, capture_output=True, check=False
    )
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(compiler + argv)} failed:\n{done.stderr}")
    return done.stdout


def preprocess(include):
    """What a binding generator gets."""
    return cc(
        ["-E", "-P", "-x", "c", "-DAGENTD_FFI_CDEF", "-I", include, "-"], umbrella(include)
    )


class _DropNames(c_ast.NodeVisitor):
    """Remove the names of parameters, also of nested function pointers."""

    def visit_ParamList(self, node):
        for param in node.params:
            if isinstance(param, c_ast.Decl):
                param.name = None
                inner = param.type
                while not isinstance(inner, c_ast.TypeDecl):
                    inner = inner.type
                inner.declname = None
        self.generic_visit(node)


def parse(include):
    tree = c_parser.CParser().parse(STANDARD + preprocess(include))
    return tree.ext[STANDARD.count("\n") :]


def text_of(node):
    """A declaration on one line."""
    return re.sub(r"\s+", " ", c_generator.CGenerator().visit(node)).strip()


def prototypes(include):
    """[(name, prototype with the names of its parameters)] of all declarations."""
    return [
        (d.name, text_of(d))
        for d in parse(include)
        if isinstance(d, c_ast.Decl) and isinstance(d.type, c_ast.FuncDecl)
    ]


def map_symbols(path):
    """[(symbol, node)] of a version script that lists every name."""
    with open(path, encoding="utf-8") as file:
        text = re.sub(r"/\*.*?\*/", "", file.read(), flags=re.S)
    symbols = []
    for node, body in re.findall(r"(\w[\w.]*)\s*\{(.*?)\}[^;]*;", text, re.S):
        scope = "global"
        for word in re.findall(r"[^\s;]+", body):
            if word in ("global:", "local:"):
                scope = word[:-1]
            elif scope == "global":
                symbols.append((word, node))
    return symbols


def describe(include, map_path=None):
    """The lines of the baseline, sorted by kind."""
    lines, probes = [], []
    declarations = parse(include)
    defined = {d.type.name for d in declarations if isinstance(d.type, c_ast.Struct) and d.type.decls}
    for decl in declarations:
        _DropNames().visit(decl)
        kind = decl.type
        if isinstance(decl, c_ast.Typedef):
            lines.append(f"type {text_of(decl).removeprefix('typedef ')}")
        elif isinstance(kind, c_ast.FuncDecl):
            lines.append(f"function {text_of(decl)}")
        elif isinstance(kind, c_ast.Enum):
            for value in kind.values.enumerators:
                probes.append(f'printf("constant {value.name} = %lld\\n", (long long){value.name});')
        elif isinstance(kind, c_ast.Struct) and kind.decls:
            for member in kind.decls:
                text = text_of(member).replace("\\", "\\\\").replace('"', '\\"')
                probes.append(
                    f'printf("member {kind.name}.{member.name} at %zu: {text}\\n", '
                    f"offsetof(struct {kind.name}, {member.name}));"
                )
        elif isinstance(kind, c_ast.Struct):
            if kind.name not in defined:
                lines.append(f"opaque struct {kind.name}")
        else:
            raise RuntimeError(f"declaration of a kind the baseline does not know: {text_of(decl)}")
    macros = cc(["-E", "-dM", "-x", "c", "-I", include, "-"], umbrella(include))
    for name, value in re.findall(r"^#define (AGENTD_\w+) (.+)$", macros, re.M):
        # The version changes with every release, the rest are attributes.
        if not re.match(r"AGENTD_(VERSION_|API$|NODISCARD$)", name):
            lines.append(f"macro {name} = {value}")
    with tempfile.TemporaryDirectory() as scratch:
        program = os.path.join(scratch, "probe")
        cc(
            ["-x", "c", "-I", include, "-o", program, "-"],
            "#include <stdio.h>\n"
            + umbrella(include)
            + "int main(void)\n{\n"
            + "\n".join(probes)
            + "\nreturn 0;\n}\n",
        )
        lines += subprocess.run(
            [program], text=True, capture_output=True, check=True
        ).stdout.splitlines()
    if map_path is not None:
        lines += [f"symbol {name}@{node}" for name, node in map_symbols(map_path)]
    return sorted(set(lines))


def compare(old, new):
    """(lines gone or changed, lines added)."""
    return sorted(set(old) - set(new)), sorted(set(new) - set(old))


def read_baseline(path):
    with open(path, encoding="utf-8") as file:
        return [line for line in file.read().splitlines() if line and not line.startswith("#")]


def write_baseline(path, lines):
    with open(path, "w", encoding="utf-8") as file:
        file.write(
            "# SPDX-License-Identifier: MIT\n"
            "# Written by scripts/abi-baseline --update. From the first release on lines are\n"
            "# only added here: a line that changes or goes breaks compiled programs.\n"
        )
        file.writelines(line + "\n" for line in lines)
