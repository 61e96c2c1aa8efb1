# SPDX-License-Identifier: MIT
"""What is installed, and that a program needs nothing else.

Arguments: meson, the build directory, its prefix and libdir, and whether it installs
agentd-conformance ("true" or "false").
"""

import importlib.util
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import urllib.request

import tap

MESON, BUILD, PREFIX, LIBDIR, HAS_CONFORMANCE = sys.argv[1:6]
if importlib.util.find_spec("pytest") is None:
    tap.skip("python3-pytest is not installed")
# The distribution's, whatever else the user has.
CARGO_PATH = "/usr/bin:/bin"
if shutil.which("cargo", path=CARGO_PATH) is None:
    tap.skip("cargo is not installed")
SOURCE = os.path.join(tap.ROOT, "tests", "install", "consumer.c")
HTTP = os.path.join(tap.ROOT, "examples", "http.c")
BWRAP = os.path.join(tap.ROOT, "examples", "bwrap")

with open(os.path.join(tap.ROOT, "lib", "agentd.map"), encoding="utf-8") as symbols:
    MAP = symbols.read()
EXECUTABLE = ["bin/agentd-conformance", "bin/agentd-run", "libexec/agentd/agentd-backup", "libexec/agentd/agentd-guest",
              "libexec/agentd/agentd-helper"]
EXPECTED = sorted(
    EXECUTABLE
    + [f"include/agentd/{name}" for name in os.listdir(os.path.join(tap.ROOT, "include", "agentd"))]
    + [
        f"{LIBDIR}/libagentd.a",
        f"{LIBDIR}/libagentd.so",
        f"{LIBDIR}/libagentd.so.0",
        f"{LIBDIR}/pkgconfig/agentd.pc",
        "share/doc/agentd/probe.schema.json",
        "share/doc/agentd/result.schema.json",
    ]
    + [
        f"share/man/man{name[-1]}/{name}"
        for name in os.listdir(os.path.join(tap.ROOT, "man"))
        if name[-1].isdigit() and name[-1] != "3"
    ]
    # A page or a link for each function.
    + [f"share/man/man3/{name}.3" for name in re.findall(r"^\s+(agentd_\w+);$", MAP, re.M)]
)
CONSUMERS = [("C99", ["cc", "-std=c99", "-x", "c"]), ("C++17", ["c++", "-std=c++17", "-x", "c++"])]
WARNINGS = ["-Wall", "-Wextra", "-Wpedantic", "-Werror"]


def good(name, argv, **kwargs):
    done = tap.run(argv, **kwargs)
    text = (done.stdout + done.stderr).splitlines()
    tap.check(done.returncode == 0, name, [" ".join(argv), *text[-30:]])
    return done


def installed(top):
    return sorted(
        os.path.relpath(os.path.join(folder, name), top)
        for folder, _, names in os.walk(top)
        for name in names
    )


def check_files(top, what, conformance=True):
    found = installed(top)
    expected = [n for n in EXPECTED if conformance or "agentd-conformance" not in n]
    tap.check_empty(
        [f"missing: {n}" for n in expected if n not in found]
        + [f"not expected: {n}" for n in found if n not in expected],
        f"{what}: the files are those of the list",
    )
    wrong = []
    for name in found:
        mode = os.stat(os.path.join(top, name)).st_mode
        wanted = 0o755 if name in EXECUTABLE or ".so" in name else 0o644
        if stat.S_IMODE(mode) != wanted:
            wrong.append(f"{name}: {stat.S_IMODE(mode):o}")
    tap.check_empty(wrong, f"{what}: modes")
    link = os.path.join(top, LIBDIR, "libagentd.so")
    tap.check(
        os.path.islink(link) and os.readlink(link) == "libagentd.so.0",
        f"{what}: libagentd.so is a link to libagentd.so.0",
    )


def pkg_config(env, *args, packages=("agentd",)):
    done = good(f"pkg-config {' '.join([*args, *packages])}", ["pkg-config", *args, *packages], env=env)
    return done.stdout.split()


def ask_http(program, env):
    """One command by HTTP, and the end of the server."""
    with tempfile.TemporaryDirectory(prefix="agentd-install-") as workdir:
        os.chmod(workdir, 0o777)
        with subprocess.Popen([program], stdout=subprocess.PIPE, text=True, env=env, cwd=workdir) as server:
            try:
                port = re.search(r":(\d+)$", server.stdout.readline())[1]
                url = f"http://127.0.0.1:{port}/run"
                with urllib.request.urlopen(url, data=b"echo hi; ls /root", timeout=60) as reply:
                    text = reply.read().decode()
                server.send_signal(signal.SIGTERM)
                status = server.wait(60)
            finally:
                server.kill()
    return text.startswith("hi\nls: ") and text.endswith("[error 2]\n") and status == 0, [text, str(status)]


with tempfile.TemporaryDirectory(prefix="agentd-install-") as scratch:
    os.chmod(scratch, 0o755)
    os.umask(0o022)
    env = {k: v for k, v in os.environ.items() if not k.startswith(("MESON", "AGENTD_", "DESTDIR", "LD_"))}
    env["HOME"] = scratch  # where login shells find no profile

    # ---- a staged installation of this build

    stage = os.path.join(scratch, "stage")
    good(
        "meson install with DESTDIR",
        [MESON, "install", "-C", BUILD, "--no-rebuild", "--quiet"],
        env={**env, "DESTDIR": stage},
    )
    check_files(stage + PREFIX, "DESTDIR", HAS_CONFORMANCE == "true")
    tap.check(
        installed(stage) == [os.path.relpath(PREFIX, "/") + "/" + n for n in installed(stage + PREFIX)],
        "DESTDIR: nothing outside of the prefix",
    )
    with open(os.path.join(stage + PREFIX, LIBDIR, "pkgconfig", "agentd.pc"), encoding="utf-8") as file:
        tap.check(scratch not in file.read(), "DESTDIR is not written into agentd.pc")

    # ---- a build of its own, as distributions make it, in a prefix

    prefix = os.path.join(scratch, "prefix")
    build = os.path.join(scratch, "build")
    options = ["--buildtype=release", "-Dwerror=true", "-Dtests=false", "-Dexamples=false"]
    good(
        "meson setup with a prefix",
        [MESON, "setup", build, tap.ROOT, f"--prefix={prefix}", f"--libdir={LIBDIR}", *options],
        env=env,
    )
    if good("a release build", ["ninja", "-C", build], env=env).returncode != 0:
        tap.finish()
    good("meson install", [MESON, "install", "-C", build, "--quiet"], env=env)
    check_files(prefix, "prefix")

    # ---- consumers: pkg-config and nothing else

    env["PKG_CONFIG_PATH"] = os.path.join(prefix, LIBDIR, "pkgconfig")
    cflags = pkg_config(env, "--cflags")
    libs = pkg_config(env, "--libs")
    static = pkg_config(env, "--static", "--libs")
    tap.check(not [f for f in cflags + libs if "json" in f], "json-c is nobody else's business", cflags + libs)
    tap.check("-ljson-c" in static and "-levent_core" in static, "--static names what is linked", static)
    tap.check("-levent_core" in libs, "libevent is shared with the program", libs)

    library_path = {**env, "LD_LIBRARY_PATH": os.path.join(prefix, LIBDIR)}
    for language, compiler in CONSUMERS:
        for kind, flags, run_env in [
            ("dynamic", libs, library_path),
            ("static", ["-static", *static], env),
        ]:
            name = f"{language} consumer, {kind}"
            program = os.path.join(scratch, f"consumer-{compiler[0]}-{kind}")
            made = good(
                f"{name}: builds",
                [*compiler, *WARNINGS, *cflags, SOURCE, "-x", "none", "-o", program, *flags],
                env=env,
            )
            if made.returncode == 0:
                ran = good(f"{name}: runs", [program], env=run_env, cwd="/")
                tap.check(
                    ran.stdout == "hi\nok exited 0 host\n" and ran.stderr == "",
                    f"{name}: prints the output and the result",
                    [repr(ran.stdout), repr(ran.stderr)],
                )
            if kind == "dynamic" and made.returncode == 0:
                needed = tap.run(["readelf", "-d", program]).stdout
                tap.check("[libagentd.so.0]" in needed, f"{name}: needs libagentd.so.0")
                tap.check("json" not in needed, f"{name}: does not need json-c")

    # ---- a host program with an HTTP server on its base

    for kind, args, static_flag, run_env in [
        ("dynamic", [], [], library_path),
        ("static", ["--static"], ["-static"], env),
    ]:
        program = os.path.join(scratch, f"http-{kind}")
        flags = pkg_config(env, *args, "--cflags", "--libs", packages=("libevent_extra", "agentd"))
        made = good(f"HTTP host, {kind}: builds",
                    ["cc", *WARNINGS, *static_flag, HTTP, "-o", program, *flags], env=env)
        if made.returncode == 0:
            worked, told = ask_http(program, run_env)
            tap.check(worked, f"HTTP host, {kind}: runs a command in a sandbox", told)

    # ---- a third party's backend, and whether it keeps the contract

    module, first = os.path.join(scratch, "bwrap.so"), os.path.join(scratch, "first")
    good("bwrap module: builds",
         ["cc", *WARNINGS, "-D_GNU_SOURCE", "-shared", "-fPIC", "-o", module, os.path.join(BWRAP, "module.c"),
          os.path.join(BWRAP, "bwrap.c"), *cflags, *libs], env=env)
    good("bwrap module: its first process builds",
         ["cc", *WARNINGS, "-D_GNU_SOURCE", "-static", "-o", first, os.path.join(BWRAP, "first.c")], env=env)
    conformance = os.path.join(prefix, "bin", "agentd-conformance")
    trial = tap.run(["bwrap", "--unshare-all", "--cap-drop", "ALL", "--proc", "/proc", "--dev", "/dev",
                     "--ro-bind", first, "/dev/first", "/dev/first"])
    if trial.returncode == 0:
        judged = tap.run(
            [conformance, "--backend-module", module, "--features", "tree,reader,refuses"],
            env={**env, "TMPDIR": scratch, "BWRAP_FIRST": first}, cwd=scratch)
        lines = judged.stdout.splitlines()
        tap.check(judged.returncode == 0 and len([n for n in lines if n.startswith("ok ")]) > 40
                  and len([n for n in lines if n.startswith("ok ")]) == len(lines) - 1,
                  "bwrap module: keeps the contract", [*lines, *judged.stderr.splitlines()])
        # What it does not do is found out.
        judged = tap.run(
            [conformance, "--backend-module", module, "--features", "limits", "--only", "limits_accepted"],
            env={**env, "TMPDIR": scratch, "BWRAP_FIRST": first}, cwd=scratch)
        tap.check(judged.returncode == 1 and "not ok 1 - stops limits_accepted\n" in judged.stdout,
                  "bwrap module: limits it does not have", judged.stdout.splitlines())
    else:
        print(f"SKIP-CANNOT: bwrap (Debian: bubblewrap) cannot run here: {trial.stderr.strip()}",
              file=sys.stderr)
    good("agentd-conformance finds the installed helper",
         [conformance, "--backend", "sandbox", "--only", "tree_dies_after_setsid"],
         env={**env, "TMPDIR": scratch}, cwd="/")

    # ---- the Python package, with what is installed

    tests = good(
        "the Python package's tests pass",
        [sys.executable, "-B", "-m", "pytest", "-q", "-rf", "-p", "no:cacheprovider",
         "--basetemp", os.path.join(scratch, "pytest"),
         os.path.join(tap.ROOT, "examples", "python")],
        env={**library_path, "PYTHONPATH": os.path.join(tap.ROOT, "examples", "python"),
             "PYTHONDONTWRITEBYTECODE": "1"},
        cwd=scratch,
    )
    print("# " + "\n# ".join(tests.stdout.splitlines()[-1:]))

    # ---- the Rust crate, the same way; cargo writes beside the sources

    crate = os.path.join(scratch, "rust")
    shutil.copytree(
        os.path.join(tap.ROOT, "examples", "rust"), crate, ignore=shutil.ignore_patterns("target")
    )
    cargo_env = {**library_path, "PATH": CARGO_PATH, "CARGO_HOME": os.path.join(scratch, "cargo"),
                 "CARGO_TARGET_DIR": os.path.join(scratch, "target")}
    tests = good("the Rust crate's tests pass", ["cargo", "test", "--offline"], env=cargo_env, cwd=crate)
    for line in tests.stdout.splitlines():
        if line.startswith("test result:"):
            print("# " + line)
    ran = tap.run(
        ["cargo", "run", "--offline", "--quiet", "--example", "run", "--", "echo hi; echo ho >&2"],
        env=cargo_env,
        cwd=crate,
    )
    if "denied, isolation" in ran.stdout:
        print("SKIP-CANNOT:", ran.stdout.splitlines()[1], file=sys.stderr)
    else:
        tap.check(
            ran.stdout.startswith("hi\nok, exited by the backend sandbox\n")
            and "  landlock: Enforced" in ran.stdout
            and ran.stderr == "ho\n",
            "its example prints the output and the receipt",
            ran.stdout.splitlines(),
        )
    without = tap.run(["cargo", "build", "--offline"], cwd=crate,
                      env={**cargo_env, "PKG_CONFIG_LIBDIR": scratch, "PKG_CONFIG_PATH": scratch})
    tap.check(
        without.returncode != 0 and "libagentd was not found" in without.stderr,
        "without the library the crate says so",
        without.stderr.splitlines(),
    )


def processes_of(folder):
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/cmdline", "rb") as file:
                if folder.encode() in file.read():
                    yield pid
        except OSError:
            continue


tap.check_empty(list(processes_of(scratch)), "nothing of all that is left running")
tap.finish()
