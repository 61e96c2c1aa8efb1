#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""agentd-run on a machine that lacks something: file systems of the kernel's (F26), and
room on a disk (F28). Either the command runs as ever, or it is said why it cannot.

AGENTD_RUN names the program."""

import json
import os
import shutil
import subprocess
import tempfile

import tap

PROGRAM = os.environ["AGENTD_RUN"]
NOBODY = 65534
HIDE = "mount -t tmpfs none "
WORKS = "echo made >marker && echo works"


class Place:
    """A directory that anybody may write to, and a HOME without a profile."""

    def __enter__(self):
        self.dir = os.path.realpath(tempfile.mkdtemp(prefix="agentd-run-"))
        os.chmod(self.dir, 0o777)
        return self

    def __exit__(self, *_):
        shutil.rmtree(self.dir)

    def path(self, name):
        return os.path.join(self.dir, name)

    def run(self, mounts, *args, user=0):
        """agentd-run in a mount namespace of its own, after the shell's commands `mounts`."""
        return subprocess.run(
            ["unshare", "--mount", "sh", "-ec", f"{mounts}\ncd \"$HOME\"\nexec \"$@\"", "sh",
             "setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups",
             PROGRAM, "--quiet", *args],
            env=dict(os.environ, HOME=self.dir, XDG_CACHE_HOME=self.dir), cwd=self.dir, text=True,
            stdin=subprocess.DEVNULL, capture_output=True, timeout=120, check=False)


def story(run):
    return [f"exit {run.returncode}", run.stdout, run.stderr]


def works(place, mounts, name, *args, user=0):
    run = place.run(mounts, *args, WORKS, user=user)
    tap.check(run.returncode == 0 and run.stdout == "works\n" and
              os.path.exists(place.path("marker")), f"{name}: works", story(run))


def refused(place, mounts, name, why, *args, user=0):
    run = place.run(mounts, *args, WORKS, user=user)
    tap.check(run.returncode in (125, 126) and why in run.stderr and
              not os.path.exists(place.path("marker")), f"{name}: nothing runs", story(run))


HOST = ["--backend", "host", "--min-isolation", "none"]
SANDBOX = ["--backend", "sandbox"]


# Who leaves the session and does not mind SIGTERM.
STAYS = "setsid sh -c 'trap : TERM; while :; do sleep 987.6; done' & sleep 987.6"


def ends(place, mounts, name, *args, user=0):
    run = place.run(mounts, "--timeout-ms", "500", "--env", f"TAG={place.dir}", *args, STAYS,
                    user=user)
    left = [pid for pid in filter(str.isdigit, os.listdir("/proc")) if has_tag(pid, place.dir)]
    tap.check(run.returncode == 124 and not left, f"{name}: a timeout leaves nobody",
              story(run) + left)


def has_tag(pid, tag):
    try:
        with open(f"/proc/{pid}/environ", encoding="utf-8", errors="replace") as environ:
            return f"TAG={tag}" in environ.read()
    except OSError:
        return False


def file_systems():
    for user in (0, NOBODY):
        for lacks in (":", HIDE + "/sys", HIDE + "/sys/fs/cgroup", HIDE + "/dev/shm",
                      "mount -t proc -o hidepid=invisible none /proc"):
            for backend in (HOST, SANDBOX):
                with Place() as place:
                    works(place, lacks, f"user {user}, {backend[1]}, {lacks}", *backend,
                          user=user)
            with Place() as place:
                ends(place, lacks, f"user {user}, host, {lacks}", *HOST, user=user)
        with Place() as place:
            works(place, HIDE + "/proc", f"user {user}, host, no /proc", *HOST, user=user)
        with Place() as place:
            ends(place, f"{HIDE}/proc; {HIDE}/sys", f"user {user}, host, neither", *HOST,
                 user=user)
        with Place() as place:
            refused(place, HIDE + "/proc", f"user {user}, sandbox, no /proc",
                    "/proc/self/fd" if user == 0 else "uid_map", *SANDBOX, user=user)


# Nothing more can be written to $HOME/full.
FULL = ("mkdir full; mount -t tmpfs -o size=64k,mode=777 none full\n"
        "mkdir -m 777 full/work; cat /dev/zero >full/all 2>/dev/null || :")
CRAMPED = "echo hello >file || echo refused"


def disk():
    for backend in (HOST, SANDBOX):
        with Place() as place:
            run = place.run(FULL, *backend, "--workdir", "full/work", CRAMPED)
            tap.check(run.returncode == 0 and run.stdout == "refused\n" and
                      "No space left" in run.stderr,
                      f"{backend[1]}: a command on a full disk is told so", story(run))
    with Place() as place:
        run = place.run(FULL, "--result", "full/result", WORKS)
        tap.check(run.returncode == 125 and run.stdout == "works\n" and
                  "--result: No space left" in run.stderr,
                  "a result that cannot be written is an error", story(run))
    with Place() as place:
        with open(place.path("pool"), "w", encoding="utf-8") as pool:
            json.dump({"enabled": True, "backend": "sandbox", "fallback": False,
                       "volume_root": place.path("full/sessions")}, pool)
        run = place.run(FULL, "--pool", "pool", "--session",
                        "aaaaaaaa-0000-4000-8000-000000000000", CRAMPED)
        tap.check(run.returncode == 0 and run.stdout == "refused\n" and
                  "No space left" in run.stderr, "so is one in a session", story(run))
    with Place() as place:
        run = place.run(FULL + "\nexport XDG_CACHE_HOME=$HOME/full", "--probe")
        tap.check(run.returncode == 0, "what is found out need not be kept", story(run))


if os.geteuid() != 0:
    tap.skip("SKIP-CANNOT: mounting takes root")
file_systems()
disk()
tap.finish()
