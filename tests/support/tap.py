# SPDX-License-Identifier: MIT
"""What the Python tests share: checks counted as TAP lines, and skipping.

scripts/test counts the "ok" and "not ok" lines. A skip whose reason begins with
"SKIP-CANNOT:" says that this machine cannot host the test; any other skip
counts as a failure there.
"""

import os
import shutil
import subprocess
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

_checks = 0
_failed = 0


def check(good, name, details=()):
    """One check; details are lines that explain a failure."""
    global _checks, _failed
    _checks += 1
    if good:
        print(f"ok {_checks} - {name}")
    else:
        _failed += 1
        print(f"not ok {_checks} - {name}")
        for line in details:
            print(f"#   {line}")
    sys.stdout.flush()
    return good


def check_empty(problems, name):
    """A check that found nothing wrong."""
    return check(not problems, name, problems)


def finish():
    """End the test; no checks at all is a failure too."""
    if _checks == 0:
        print("not ok 1 - the test checked nothing")
    print(f"1..{max(_checks, 1)}")
    sys.exit(1 if _failed or _checks == 0 else 0)


def skip(reason):
    print(reason, file=sys.stderr)
    sys.exit(77)


def run(argv, **kwargs):
    """Run a program; returns the CompletedProcess with text output."""
    kwargs.setdefault("stdin", subprocess.DEVNULL)
    return subprocess.run(argv, text=True, capture_output=True, check=False, **kwargs)


def need(program):
    """Path of a program that scripts/test installs; without it the test is skipped."""
    path = shutil.which(program)
    if path is None:
        skip(f"{program} is not installed")
    return path


def tracked_files():
    """Files of the project, relative to ROOT: what git knows, or all in a tarball."""
    listed = run(
        ["git", "-c", "safe.directory=*", "ls-files", "-z", "-co", "--exclude-standard"],
        cwd=ROOT,
    )
    if listed.returncode == 0 and os.path.exists(os.path.join(ROOT, ".git")):
        names = {n for n in listed.stdout.split("\0") if n}
        return sorted(n for n in names if os.path.isfile(os.path.join(ROOT, n)))
    found = []
    for folder, dirs, names in os.walk(ROOT):
        dirs[:] = [
            d
            for d in dirs
            if d not in (".git", "__pycache__")
            and not os.path.isdir(os.path.join(folder, d, "meson-private"))
        ]
        for name in names:
            path = os.path.join(folder, name)
            if os.path.isfile(path):
                found.append(os.path.relpath(path, ROOT))
    return sorted(found)
