# SPDX-License-Identifier: MIT
"""The Rust crate is of these headers, in its layout, and nothing complains of it. Its own
tests run with what tests/install installs.

usage: test_rust.py BUILD
"""

import os
import shutil
import sys
import tempfile

import tap

BUILD = sys.argv[1]
# The distribution's, whatever else the user has.
PATH = "/usr/bin:/bin"
BINDGEN = "bindgen 0.60."


def good(name, argv, **kwargs):
    done = tap.run(argv, **kwargs)
    return tap.check(done.returncode == 0, name, (done.stdout + done.stderr).splitlines()[-40:])


for program in ("bindgen", "cargo", "cargo-clippy", "pkg-config", "rustdoc", "rustfmt"):
    if shutil.which(program, path=PATH) is None:
        tap.skip(f"{program} is not installed")

with tempfile.TemporaryDirectory(prefix="agentd-rust-") as scratch:
    env = {
        **os.environ,
        "PATH": PATH,
        "CARGO_HOME": os.path.join(scratch, "home"),
        "CARGO_TARGET_DIR": os.path.join(scratch, "target"),
        "PKG_CONFIG_PATH": os.path.join(BUILD, "pkgconfig"),
        "RUSTDOCFLAGS": "-D warnings",
    }
    script = os.path.join("scripts", "rust-bindings")
    version = tap.run(["bindgen", "--version"], env=env).stdout.strip()
    if version.startswith(BINDGEN):
        check = [script, "--check"]
        good("the declarations are those of the headers", check, env=env, cwd=tap.ROOT)
        tree = os.path.join(scratch, "tree")
        for name in ("include", "scripts", os.path.join("examples", "rust")):
            shutil.copytree(os.path.join(tap.ROOT, name), os.path.join(tree, name))
        with open(os.path.join(tree, "include", "agentd", "loop.h"), "r+", encoding="utf-8") as file:
            text = file.read().replace("int64_t timeout_ms", "int32_t timeout_ms")
            file.seek(0)
            file.write(text)
        changed = tap.run(check, env=env, cwd=tree)
        tap.check(
            changed.returncode != 0 and "+        timeout_ms: i32," in changed.stdout,
            "other headers have other declarations",
            (changed.stdout + changed.stderr).splitlines(),
        )
    else:
        print(f"SKIP-CANNOT: {version} writes other declarations than {BINDGEN}x", file=sys.stderr)

    # cargo writes beside the sources.
    crate = os.path.join(scratch, "crate")
    shutil.copytree(
        os.path.join(tap.ROOT, "examples", "rust"), crate, ignore=shutil.ignore_patterns("target")
    )
    sources = [
        os.path.join(folder, name)
        for top in (crate, os.path.join(tap.ROOT, "tests", "bench"))
        for folder, _, names in os.walk(top)
        for name in names
        if name.endswith(".rs")
    ]
    config = os.path.join(crate, "rustfmt.toml")
    good("rustfmt", ["rustfmt", "--check", "--edition", "2021", "--config-path", config, *sources], env=env)
    offline = ["--offline", "--quiet"]
    good(
        "clippy",
        ["cargo", "clippy", *offline, "--all-targets", "--", "-D", "warnings"],
        cwd=crate,
        env=env,
    )
    good("rustdoc", ["cargo", "doc", *offline, "--no-deps"], cwd=crate, env=env)
tap.finish()
