# SPDX-License-Identifier: MIT
"""agentd-run --probe: a table for people, JSON for programs, and no word too many where
a layer is missing or does nothing.

AGENTD_RUN names the program, PROBE_SCHEMA the schema of its JSON; AGENTD_TEST_SANITIZED is
set when sanitizers are built in."""

import errno
import json
import os
import subprocess
import sys
import tempfile

import schema
import tap

PROGRAM = os.environ["AGENTD_RUN"]
with open(os.environ["PROBE_SCHEMA"], encoding="utf-8") as schema_file:
    SCHEMA = json.load(schema_file)
USERS = [None, 65534] if os.geteuid() == 0 else [None]
if os.environ.get("AGENTD_TEST_SANITIZED") and len(USERS) > 1:
    USERS.pop()
    # Without cgroups a limit on memory is one on address space as well.
    print("SKIP-CANNOT: the address sanitizer's shadow exceeds an unprivileged user's limit",
          file=sys.stderr)


def run(*words, user=None, before=(), stdout=subprocess.PIPE):
    how = {} if user is None else {"user": user, "group": user, "extra_groups": []}
    env = dict(os.environ)
    if before:
        # A leak check cannot be made beneath strace; elsewhere it is.
        env["ASAN_OPTIONS"] = env.get("ASAN_OPTIONS", "") + ":detect_leaks=0"
    return subprocess.run([*before, PROGRAM, *words], env=env, stdin=subprocess.DEVNULL, text=True,
                          stdout=stdout, stderr=subprocess.PIPE, check=False, timeout=120, **how)


def probe(user=None, before=()):
    """The run, and what it wrote: it tries, whatever is known."""
    with tempfile.TemporaryDirectory(prefix="agentd-test-") as place:
        os.chmod(place, 0o777)
        path = os.path.join(place, "probe")
        done = run("--probe", "--no-cache", "--result", path, user=user, before=before)
        done.probe = {}
        if os.path.exists(path):
            with open(path, encoding="utf-8") as file:
                done.probe = json.load(file)
    return done


def level(done, name):
    return done.probe.get("capabilities", {}).get(name, {}).get("level")


def reason(done, name):
    return done.probe.get("capabilities", {}).get(name, {}).get("reason", "")


def here():
    for user in USERS:
        who = "an unprivileged user" if user else "the caller"
        done = probe(user)
        tap.check(done.returncode == 0, f"the sandbox can be had by {who}",
                  [done.stdout, done.stderr])
        tap.check_empty(list(schema.errors(done.probe, SCHEMA)), f"JSON as its schema says ({who})")
        acts = done.probe.get("acts", [])
        tap.check(len(acts) > 18 and all(act["inside"] == "refused" for act in acts),
                  f"every act is refused ({who})", [str(acts)])
        possible = sum(act["outside"] == "possible" for act in acts)
        tap.check(possible > 9, f"{possible} of {len(acts)} are possible without it ({who})")
        rows = done.stdout.splitlines()
        for act in acts:
            row = [r for r in rows if r.startswith(act["act"] + " ")]
            if len(row) != 1 or act["outside"] not in row[0] or act["how"] not in row[0]:
                tap.check(False, f"a row for the act \"{act['act']}\"", row)
        tap.check("CAPABILITY" in done.stdout and "LAYER" in done.stdout, f"the table is whole ({who})")


def usage():
    for words, text in (
            (["--probe", "true"], "it runs no command"),
            (["--probe", "--net", "full"], "--net has no effect"),
            (["--no-cache", "true"], "--no-cache needs --probe"),
            (["--probe", "--result", "/no/such/place"], "/no/such/place"),
    ):
        done = run(*words)
        tap.check(done.returncode == 125 and text in done.stderr and done.stdout == "",
                  f"refused: {' '.join(words)}", [done.stdout, done.stderr])
    done = run("--probe", "--quiet")
    tap.check((done.returncode, done.stdout, done.stderr) == (0, "", ""), "quiet: the status alone")
    with open("/dev/full", "w", encoding="utf-8") as full:
        done = run("--probe", stdout=full)
    tap.check(done.returncode == 125 and "standard output" in done.stderr,
              "a table that cannot be written is a failure", [done.stderr])


def inject(call, how):
    return ["strace", "-f", "-qq", "-o", "/dev/null", "-e", f"trace={call}", "-e",
            f"inject={call}:{how}"]


def faults():
    """The same machine without one thing."""
    if run("--version", before=["strace", "-f", "-qq", "-o", "/dev/null"]).returncode != 0:
        print("SKIP-CANNOT: strace does not work here", file=sys.stderr)
        return
    done = probe(before=inject("reboot", "error=EPERM"))
    tap.check(done.returncode == 0 and level(done, "sandbox") == 1,
              "control: being traced takes nothing away", [done.stdout, done.stderr])

    done = probe(before=inject("seccomp", "error=EINVAL"))
    tap.check(done.returncode == 126 and level(done, "sandbox") == 0,
              "without filters there is no sandbox", [done.stdout, done.stderr])
    tap.check('"seccomp"' in reason(done, "sandbox") and "CONFIG_SECCOMP" in reason(done, "sandbox"),
              "it names the layer and the remedy", [reason(done, "sandbox")])
    tap.check(level(done, "seccomp") == 0 and level(done, "landlock") > 0,
              "the layer is absent, the others are not", [str(done.probe.get("capabilities"))])
    tap.check(all(act["inside"] == "unknown" for act in done.probe.get("acts", [{}])),
              "nothing is said of what was not tried", [str(done.probe.get("acts"))])
    tap.check_empty(list(schema.errors(done.probe, SCHEMA)), "that too is as the schema says")

    done = probe(before=inject("landlock_restrict_self", "retval=0"))
    tap.check(done.returncode == 126 and level(done, "landlock") == 0 and
              "refuses nothing" in reason(done, "sandbox"),
              "a Landlock that says yes and does nothing is found out", [done.stdout, done.stderr])

    done = probe(before=inject("unshare", "error=EPERM"))
    tap.check(done.returncode == 126 and level(done, "user-namespace") == 0 and
              "userns" in reason(done, "user-namespace"),
              "without namespaces there is nothing", [done.stdout, done.stderr])


tap.need("strace")
here()
usage()
faults()
# What was found with faults is not to be believed by anybody.
if os.geteuid() == 0:
    os.unlink("/run/agentd/probe.json")
    try:
        os.rmdir("/run/agentd")
    except OSError as why:
        tap.check(why.errno == errno.ENOTEMPTY, "nothing is left", [str(why)])
tap.finish()
