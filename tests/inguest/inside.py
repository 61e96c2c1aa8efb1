# SPDX-License-Identifier: MIT
"""What test_inguest.py does in its machine, as root and the only program there.

usage: inside.py PART...

    limits        each limit as root and as a user to whom control groups are delegated
    conformance   agentd-conformance
    programs      tests of other folders that are about the helper
    attack-root   the attacks on the sandbox
    attack-user
"""

import contextlib
import json
import os
import re
import resource
import signal
import subprocess
import sys
import threading
import time

TOP = "/srv/agentd"
sys.path.insert(0, TOP + "/tests/support")
import tap  # noqa: E402, pylint: disable=import-error, wrong-import-position

RUN = TOP + "/examples/agentd-run"
CGROUPS = "/sys/fs/cgroup"
SCRATCH = "/scratch"
NOBODY = 65534
# How much longer things may take than on the machine that runs this one.
STRETCH = 10
ENV = {
    "PATH": "/usr/bin:/bin",
    "HOME": "/root",
    "LANG": "C.UTF-8",
    "TMPDIR": SCRATCH,
    "AGENTD_HELPER": TOP + "/lib/helper/agentd-helper",
    "AGENTD_TEST_HELPER": TOP + "/lib/helper/agentd-helper",
    "AGENTD_TEST_BACKUP": TOP + "/lib/backup/agentd-backup",
    "AGENTD_TEST_STRETCH": str(STRETCH),
    "AGENTD_TEST_SMALL": "1",
}


def put(path, text):
    with open(path, "w", encoding="ascii") as file:
        file.write(text)


class Place:
    """A control group with a user in it, and where control groups may be made from there."""

    def __init__(self, name, uid, path, delegated=None):
        self.name, self.uid, self.path = name, uid, path
        above = CGROUPS
        # Controllers as far as systemd would hand them on.
        for part in path.split("/")[:-1] if path else ():
            put(above + "/cgroup.subtree_control", "+memory +pids +cpu +io")
            above += "/" + part
            os.makedirs(above, exist_ok=True)
        os.makedirs(f"{CGROUPS}/{path}", exist_ok=True)
        if delegated is None:
            return
        top = f"{CGROUPS}/{delegated}"
        os.setxattr(top, "trusted.delegate", b"1")
        os.setxattr(top, "user.delegate", b"1")
        below = [folder for folder, _, _ in os.walk(top)]
        for folder in below:
            for file in ("", "cgroup.procs", "cgroup.threads", "cgroup.subtree_control"):
                os.chown(f"{folder}/{file}", uid, uid)

    def enter(self):
        put(f"{CGROUPS}/{self.path}/cgroup.procs", "0")
        if self.uid:
            os.setgroups([])
            os.setresgid(self.uid, self.uid, self.uid)
            os.setresuid(self.uid, self.uid, self.uid)

    def run(self, argv, timeout=600, **env):
        try:
            # There are no threads here.
            return subprocess.run(argv, preexec_fn=self.enter, env={**ENV, **env}, cwd=SCRATCH,
                                  stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                  stderr=subprocess.PIPE, text=True, errors="replace",
                                  timeout=timeout, check=False)
        except subprocess.TimeoutExpired as expired:
            out = (expired.stdout or b"").decode(errors="replace")
            return subprocess.CompletedProcess(argv, None, out, f"no end after {timeout} s")


def places():
    """As root without systemd; as a user's session of systemd; as its services, of which one
    may make control groups but is itself where it would have to."""
    session = f"user.slice/user@{NOBODY}.service"
    return {
        place.name: place
        for place in (
            Place("root", 0, ""),
            Place("user", NOBODY, session + "/app.slice/test.scope", session),
            Place("service", 0, "system.slice/plain.service"),
            Place("delegated", NOBODY, "system.slice/own.service", "system.slice/own.service"),
        )
    }


class Ended:
    def __init__(self, place, backend, options, command, timeout):
        result = f"{SCRATCH}/result-{place.uid}"
        work = f"{SCRATCH}/work-{place.uid}"
        os.makedirs(work, exist_ok=True)
        os.chown(work, place.uid, place.uid)
        isolation = ["--min-isolation", "none"] if backend == "host" else []
        self.took = time.monotonic()
        self.done = place.run([RUN, "--quiet", "--backend", backend, *isolation, "--workdir", work,
                               "--result", result, *options, "--", command], timeout)
        self.took = time.monotonic() - self.took
        self.result = {}
        try:
            with open(result, encoding="utf-8") as file:
                self.result = json.load(file)
            os.unlink(result)
        except (OSError, ValueError):
            pass
        layers = (self.result.get("receipt") or {}).get("layers", [])
        self.layers = {layer["layer"]: f"{layer['state']} {layer['reason']}" for layer in layers}
        self.metrics = self.result.get("metrics") or {}

    def told(self):
        brief = {k: self.result.get(k) for k in ("status", "cause", "limit", "exit_code", "error")}
        return [json.dumps(brief), json.dumps(self.metrics), json.dumps(self.layers),
                f"exit {self.done.returncode} after {self.took:.1f} s",
                *self.done.stdout.splitlines()[-10:], *self.done.stderr.splitlines()[-10:]]


def processes(words):
    """Those with that in their command line."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/cmdline", "rb") as file:
                if words in file.read():
                    found.append(int(pid))
        except OSError:
            pass
    return found


def left_behind():
    """Control groups of helpers, helpers, and commands."""
    groups = [folder for folder, _, _ in os.walk(CGROUPS) if "/agentd-" in folder]
    return groups + [str(pid) for pid in processes(b"31415") + processes(b"agentd-helper")]


def check_nothing_left(name):
    end = time.monotonic() + 20
    while left_behind() and time.monotonic() < end:
        time.sleep(0.2)
    tap.check_empty(left_behind(), f"{name}: nothing is left behind")


CGROUP = {
    "memory": "enforced cgroup v2 memory.max",
    "pids": "enforced cgroup v2 pids.max",
    "cpu": "enforced cgroup v2 cpu.max",
    "tree-kill": "enforced cgroup.kill, child subreaper and /proc",
}


def probe(place, name, sandbox, *layers):
    """What --probe says of the sandbox, and lines it has besides."""
    done = place.run([RUN, "--probe", "--no-cache"])
    # Columns are as wide as they need to be.
    lines = [" ".join(line.split()) for line in done.stdout.splitlines()]
    wanted = [f"sandbox {sandbox}", "landlock 2", *layers]
    missing = [text for text in wanted if not any(line.startswith(text) for line in lines)]
    tap.check(not missing, f"{place.name}: --probe {name}",
              [*missing, *lines, *done.stderr.splitlines()])


def part_limits(every):
    version2 = ("memory enforced cgroup v2 memory.max", "pids enforced cgroup v2 pids.max")
    subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=1777", "none", "/tmp"], check=True)
    # A tmpfs cannot map ids before Linux 6.3; a user needs no map.
    probe(every["root"], "where ids cannot be mapped", "0 the layer \"idmap\"", "idmap degraded",
          "landlock enforced", "seccomp enforced", "userns enforced")
    probe(every["user"], "where ids cannot be mapped", "1", "idmap 0", *version2)
    subprocess.run(["umount", "/tmp"], check=True)
    probe(every["root"], "where they can", "1", "idmap 1", *version2)
    for name in ("root", "user"):
        place = every[name]
        for backend in ("sandbox", "host"):
            limits(place, backend)
            helper_dies(place, backend)
    for name in ("service", "delegated"):
        fallbacks(every[name])


def limits(place, backend):
    name = f"{place.name}, {backend}"

    def run(what, options, command, good, timeout=300):
        ended = Ended(place, backend, options, command, timeout)
        tap.check(good(ended), f"{name}: {what}", ended.told())
        return ended

    limited = ["--mem", "64M", "--pids", "20", "--cpu-ms-per-100ms", "50"]
    expected = {k: v for k, v in CGROUP.items() if k != "tree-kill" or backend == "host"}
    run("version 2 enforces the limits", limited, "echo hi",
        lambda e: e.done.stdout == "hi\n" and e.result.get("status") == "ok"
        and all(e.layers.get(k) == v for k, v in expected.items()))
    run("less memory than allowed", ["--mem", "64M"], "head -c 20M /dev/zero | tail -c 20M | wc -c",
        lambda e: e.done.stdout == "20971520\n"
        and 20 << 20 <= e.metrics["memory_peak_bytes"] <= 64 << 20)
    run("more memory than allowed", ["--mem", "48M"], "exec tail /dev/zero",
        lambda e: e.result.get("limit") == "mem_bytes")
    run("more memory, in another process", ["--mem", "48M"], "tail /dev/zero; echo after",
        lambda e: e.done.stdout == "after\n" and e.result.get("limit") == "mem_bytes")
    run("files in memory count", ["--mem", "32M"],
        "head -c 200M /dev/zero >/dev/shm/31415; s=$?; rm -f /dev/shm/31415; exit $s",
        lambda e: e.result.get("exit_code") != 0)
    run("more processes than allowed", ["--pids", "12"],
        "seq 30 | xargs -P 30 -I{} sleep 2", lambda e: e.result.get("limit") == "pids_max")
    run("as many as allowed", ["--pids", "12"], "seq 6 | xargs -P 6 -I{} sleep 2",
        lambda e: e.result.get("status") == "ok" and e.result.get("limit") is None)
    run("a share of processor time", ["--cpu-ms-per-100ms", "20", "--timeout-ms", "8000"],
        "while :; do :; done",
        lambda e: e.result.get("status") == "timeout"
        and 0.1 < e.metrics["cpu_ns"] / e.metrics["wall_ns"] < 0.3)
    run("all of it without a limit", ["--timeout-ms", "8000"], "while :; do :; done",
        lambda e: e.result.get("status") == "timeout"
        and e.metrics["cpu_ns"] / e.metrics["wall_ns"] > 0.6)
    run("processor time of a tree", ["--cpu-time-ms", "3000", "--timeout-ms", "60000"],
        "(while :; do :; done) & while :; do :; done",
        lambda e: e.result.get("limit") == "cpu_time_ms")
    run("input and output", ["--io-bytes", "4M", "--timeout-ms", "60000"],
        "dd if=/dev/zero of=big bs=1M count=300 conv=fsync; sleep 50",
        lambda e: e.result.get("limit") == "io_bytes")
    run("a timeout ends who has left", ["--timeout-ms", "4000"],
        "for i in 1 2 3; do setsid -f sleep 31415; done; (trap '' TERM; sleep 31415; sleep 31415) &"
        " setsid bash -c 'trap \"\" TERM HUP; while :; do sleep 31415; done' & sleep 31415",
        lambda e: e.result.get("status") == "timeout" and e.took < 60)
    check_nothing_left(name)


def helper_dies(place, backend):
    """Nobody removes its control groups then but the next one."""
    name = f"{place.name}, {backend}"
    isolation = ["--min-isolation", "none"] if backend == "host" else []
    argv = [RUN, "--quiet", "--backend", backend, *isolation, "--mem", "64M", "--", "sleep 31415"]
    with subprocess.Popen(argv, preexec_fn=place.enter, env=ENV, cwd=SCRATCH,
                          stdin=subprocess.DEVNULL) as process:
        end = time.monotonic() + 60
        while not processes(b"sleep\x0031415") and time.monotonic() < end:
            time.sleep(0.1)
        began = processes(b"sleep\x0031415")
        for pid in processes(b"agentd-helper"):
            # Who waits for the next command ends by itself with the first of them.
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        status = process.wait(60)
    end = time.monotonic() + 20
    while processes(b"31415") and time.monotonic() < end:
        time.sleep(0.1)
    tap.check(began and status == 125 and not processes(b"31415"),
              f"{name}: its helper is killed, and the command with it", [f"exit {status}"])
    ended = Ended(place, backend, ["--mem", "64M"], "echo hi", 300)
    tap.check(ended.done.stdout == "hi\n", f"{name}: another helper", ended.told())
    check_nothing_left(f"{name}, another helper")


def fallbacks(place):
    """Nothing is to be had from control groups but cgroup.kill: limits are watched, and what
    only they can enforce is refused."""
    for backend in ("sandbox", "host"):
        name = f"{place.name}, {backend}"
        ended = Ended(place, backend, ["--mem", "64M", "--pids", "20", "--layer", "cgroup=degradable"],
                      "echo hi", 300)
        tap.check(ended.done.stdout == "hi\n" and ended.layers.get("memory", "").startswith("degraded")
                  and "cgroup v2" not in ended.layers["memory"] + ended.layers["pids"],
                  f"{name}: limits are watched", ended.told())
        if backend == "host":
            tap.check(ended.layers.get("tree-kill") == CGROUP["tree-kill"], f"{name}: cgroup.kill",
                      ended.told())
        ended = Ended(place, backend, ["--cpu-ms-per-100ms", "50", "--layer", "cgroup=required"],
                      "echo hi", 300)
        tap.check(ended.result.get("status") == "denied" and ended.done.stdout == "",
                  f"{name}: a share of processor time is refused", ended.told())
        check_nothing_left(name)


def relay(name, place, argv, timeout, **env):
    """The checks of a program's TAP as ours, as they come."""
    checks, last, rest = 0, None, []

    def pass_on():
        if last:
            tap.check(last[1] == "ok", f"{name}: {last[2]}", rest)

    with subprocess.Popen(argv, preexec_fn=place.enter, env={**ENV, **env}, cwd=SCRATCH,
                          stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, text=True, errors="replace") as process:
        guard = threading.Timer(timeout, process.kill)
        guard.start()
        for line in map(str.rstrip, process.stdout):
            found = re.match(r"(not ok|ok) \d+ - (.*)", line)
            if line.startswith("SKIP-CANNOT:"):
                print(f"SKIP-CANNOT: {name}: {line.split(': ', 1)[1]}", flush=True)
            elif found:
                pass_on()
                checks, last, rest = checks + 1, found, []
            else:
                rest = [*rest[-40:], line.lstrip("# ")]
        pass_on()
        status = process.wait()
        guard.cancel()
    tap.check(checks and status in (0, 1), f"{name}: ends", [f"status {status}", *rest])


def part_conformance(every):
    for name in ("root", "user"):
        for backend in ("sandbox", "host"):
            relay(f"{name}, {backend}", every[name],
                  [TOP + "/tests/conformance/agentd-conformance", "--backend", backend], 1500)
        check_nothing_left(name)


# What the system call filter decides is the same on each kernel, what comes of it is not.
PROGRAMS = ("sandbox/sandbox-landlock", "CK_RUN_CASE=kernel sandbox/sandbox-seccomp",
            "sandbox/sandbox-life", "CK_RUN_CASE=bare unit/unit-launch", "host/host-limits",
            "CK_RUN_CASE=sessions pool/pool sandbox",
            "CK_RUN_CASE=maintenance pool/pool sandbox")


def part_programs(every):
    for name in ("root", "user"):
        for words in PROGRAMS:
            done = every[name].run(["env", "--chdir", TOP + "/tests", *words.split()], 1200)
            text = (done.stdout + done.stderr).splitlines()
            for line in text:
                if line.startswith("SKIP-CANNOT:"):
                    print(f"SKIP-CANNOT: {name}, {words}: {line.split(': ', 1)[1]}")
            counted = next((line for line in text if re.match(r"\d+%: Checks:", line)), "")
            tap.check(done.returncode in (0, 77), f"{name}: {words} ({counted})", text[-60:])
        check_nothing_left(name)


def attack(place):
    tests = TOP + "/tests/attack"
    programs = {name.upper(): f"{tests}/attack-{name}" for name in ("attack", "victim", "crowd")}
    relay(place.name, place, ["/usr/bin/python3", "-B", tests + "/test_attack.py"], 2700,
          AGENTD_RUN=RUN, PYTHONPATH=TOP + "/tests/support", **programs)
    check_nothing_left(place.name)


def part_attack_root(every):
    attack(every["root"])


def part_attack_user(every):
    attack(every["user"])


def main():
    put("/proc/sys/kernel/printk", "1")
    # What the tests want more of than they are to get.
    for limit in (resource.RLIMIT_NOFILE, resource.RLIMIT_SIGPENDING):
        resource.setrlimit(limit, (1 << 16, 1 << 16))
    with open("/proc/version", encoding="utf-8") as file:
        print("#", file.read().strip(), flush=True)
    every = places()
    for part in sys.argv[1:]:
        print(f"# part {part} at {time.monotonic():.0f} s", flush=True)
        globals()["part_" + part.replace("-", "_")](every)
    tap.finish()


main()
