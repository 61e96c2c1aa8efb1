# SPDX-License-Identifier: MIT
"""How the shared library is linked. Argument: the shared library."""

import re
import sys

import tap

LIBRARY = sys.argv[1]
READELF = tap.need("readelf")


def readelf(*flags):
    done = tap.run([READELF, "-W", *flags, LIBRARY])
    tap.check(done.returncode == 0, f"readelf {' '.join(flags)}", done.stderr.splitlines())
    return done.stdout


dynamic = readelf("-d")
segments = readelf("-l")
symbols = readelf("--dyn-syms")

soname = re.findall(r"\(SONAME\).*\[(.*)\]", dynamic)
tap.check(soname == ["libagentd.so.0"], "soname is libagentd.so.0", soname)
needed = sorted(re.findall(r"\(NEEDED\).*\[(.*)\]", dynamic))
allowed = r"libc\.so\.6|ld-linux.*|libevent_core-2\.1\.so\.7|libjson-c\.so\.\d+|libcares\.so\.2"
tap.check_empty([n for n in needed if not re.fullmatch(allowed, n)], "needs only known libraries")
tap.check(any(n.startswith("libevent_core-") for n in needed), "shares libevent's core", needed)
tap.check(not re.search(r"\((RPATH|RUNPATH)\)", dynamic), "no run path")
tap.check("BIND_NOW" in dynamic or re.search(r"FLAGS_1\).*NOW", dynamic), "binds at start (now)")
tap.check("GNU_RELRO" in segments, "relocations become read-only (relro)")
tap.check("(TEXTREL)" not in dynamic and not re.search(r"\(FLAGS\).*TEXTREL", dynamic), "no text relocations")
stack = re.findall(r"^\s*GNU_STACK\s+.*$", segments, re.M)
tap.check(len(stack) == 1 and re.search(r"\sRW\s", stack[0]), "the stack is not executable", stack)
writable_code = [s for s in segments.splitlines() if re.match(r"\s*LOAD\s", s) and "RWE" in s.replace(" ", "")]
tap.check_empty(writable_code, "no segment is writable and executable")

# Every undefined symbol that is not weak has a version, that is, a known owner;
# those of libevent, json-c and c-ares are looked up in what the library says it needs.
undefined = re.findall(r"\sGLOBAL\s+DEFAULT\s+UND\s+(\S+)", symbols)
strangers = [
    s for s in undefined if "@" not in s and not re.match(r"(event|evutil|evthread|evtimer|json|ares)_", s)
]
tap.check(len(undefined) > 20, f"{len(undefined)} symbols are taken from other libraries")
tap.check_empty(strangers, "no symbol without an owner")
tap.finish()
