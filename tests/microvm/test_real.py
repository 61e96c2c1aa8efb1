#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Real virtual machines, through agentd-run: what of a working directory goes in and comes
back, what a command can do to its machine, what the machine is for the host, and that
nothing of it stays. What the backend makes of a monitor or an agent that misbehaves needs
no machine, and is tested without one.

AGENTD_RUN names the program, AGENTD_TEST_IMAGE what machines boot from.

usage: test_real.py [--only REGEX]"""

import json
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time

import tap

AGENTD_RUN = os.environ["AGENTD_RUN"]
IMAGE = os.environ.get("AGENTD_TEST_IMAGE", "/var/cache/agentd")
MONITOR = "/usr/bin/qemu-system-x86_64"
ROOT = os.getuid() == 0
MONITOR_UID = 65531 if ROOT else os.getuid()
MIB = 1 << 20
# A boot takes 2 s, and 30 where twenty others want the processor.
PATIENCE_S = 180
# Of a descriptor of the monitor's: what was handed over to it, and what it makes itself.
OWN_FD = re.compile(r"socket:|pipe:|anon_inode:|/dev/null$|/memfd:|/vmlinux$|/initramfs.cpio$"
                    r"|/root.erofs$")


class Place:
    """A working directory for one case, removed at its end."""

    def __init__(self):
        self.base = tempfile.mkdtemp(prefix="agentd-microvm-")
        os.chmod(self.base, 0o755)
        self.work = os.path.join(self.base, "work")
        os.mkdir(self.work)
        self.count = 0
        # The initramfs is this place's own: by that its monitors are known.
        self.image = os.path.join(self.base, "image")
        os.mkdir(self.image)
        for name in ("image.json", "vmlinux", "root.erofs"):
            os.symlink(os.path.join(IMAGE, name), os.path.join(self.image, name))
        shutil.copy(os.path.join(IMAGE, "initramfs.cpio"), self.image)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        shutil.rmtree(self.base)

    def path(self, *names):
        return os.path.join(self.work, *names)

    def write(self, name, text, mode=0o644):
        path = self.path(name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "w", encoding="utf-8") as file:
            file.write(text)
        os.chmod(path, mode)

    def read(self, name):
        try:
            with open(self.path(name), encoding="utf-8") as file:
                return file.read()
        except OSError as error:
            return error

    def start(self, command, *options, **kwargs):
        self.count += 1
        out = os.path.join(self.base, str(self.count))
        words = [AGENTD_RUN, "--backend", "microvm", "--image", self.image, "--quiet",
                 "--workdir", self.work, "--result", out + ".result", "--events", out + ".events",
                 "--timeout-ms", "60000", *options, "--", command]
        kwargs.setdefault("stdin", subprocess.DEVNULL)
        return Run(out, subprocess.Popen(words, text=True, stdout=subprocess.PIPE,
                                         stderr=subprocess.PIPE, **kwargs))

    def run(self, command, *options):
        run = self.start(command, *options)
        run.wait()
        return run

    def monitors(self):
        """The pids of its virtual machines' monitors."""
        mine = os.path.join(self.image, "initramfs.cpio")
        return [pid for pid in processes() if mine in descriptors_of(pid) and
                status_of(pid).get("Name", "").startswith("qemu")]

    def monitor(self):
        return next(iter(self.monitors()), None)


class Run:
    """One agentd-run: while it runs, and what was seen of it."""

    def __init__(self, out, process):
        self.out, self.process = out, process
        self.stdout, self.stderr, self.result, self.denied = "", "", {}, {}

    def wait(self):
        rest, self.stderr = self.process.communicate(timeout=PATIENCE_S)
        self.stdout += rest
        self.exit = self.process.returncode
        try:
            with open(self.out + ".result", encoding="utf-8") as file:
                self.result = json.load(file)
            with open(self.out + ".events", encoding="utf-8") as file:
                said = [json.loads(line) for line in file]
            self.denied = {e["target"]: e["rule"] for e in said if e["event"] == "denied"}
        except (FileNotFoundError, json.JSONDecodeError):
            pass

    def read_line(self):
        """The next line of its output, which says that it is there."""
        line = self.process.stdout.readline()
        self.stdout += line
        return line

    def ended(self, status, cause, name, *more):
        """A check of how it ended, and of what else must be true."""
        got = (self.result.get("status"), self.result.get("cause"))
        return tap.check(got == (status, cause) and all(more), name, self.story())

    def story(self):
        return [f"exit {self.exit}, {json.dumps(self.result)[:900]}", f"denied {self.denied}",
                *self.stdout.splitlines()[-15:], *self.stderr.splitlines()[-5:]]

    def denied_as(self, name):
        """Under which rule this was denied, told by its path in the working directory."""
        return next((rule for target, rule in self.denied.items()
                     if target == name or target.endswith("/" + name)), None)


# ---- processes


def processes():
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def read_proc(pid, name):
    try:
        with open(f"/proc/{pid}/{name}", encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""


def status_of(pid):
    return dict(line.split(":\t", 1) for line in read_proc(pid, "status").splitlines()
                if ":\t" in line)


def descriptors_of(pid):
    try:
        return {os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")}
    except OSError:
        return set()


def wait_gone(pid, seconds):
    """How long it took a process to go; None: it is there still."""
    begin = time.monotonic()
    while time.monotonic() - begin < seconds:
        if status_of(pid).get("State", "Z")[0] in "ZX":
            return time.monotonic() - begin
        time.sleep(0.01)
    return None


# ---- the working directory

CHANGES = r"""
test "$(cat same.txt)" = same && test -x tool.sh && test "$(readlink link)" = same.txt &&
	echo carried in
echo new > changed.txt; rm gone.txt; mv moved.txt there.txt; rm -r folder
mkdir -p deep/er; echo made > deep/er/made.txt; ln -s same.txt link2; ln -sfn gone link
chmod 600 private.txt; printf '#!/bin/sh\n' > new.sh; chmod 755 new.sh
echo machine > raced.txt; rm raced-gone.txt
cp /bin/true su; chmod 6755 su; mkfifo pipe; ln -s /etc outside
echo ready; read -r line; echo "over $line"
"""


def round_trip():
    with Place() as place:
        for name in ("same", "gone", "moved", "changed", "private", "raced", "raced-gone"):
            place.write(name + ".txt", name)
        place.write("folder/inner.txt", "inner")
        place.write("tool.sh", "#!/bin/sh\n", 0o755)
        os.symlink("same.txt", place.path("link"))
        before = os.stat(place.path("same.txt"))
        run = place.start(CHANGES, "--stdin", stdin=subprocess.PIPE)
        while run.read_line() not in ("ready\n", ""):
            pass
        for name in ("raced.txt", "raced-gone.txt", "appeared.txt"):
            place.write(name, "of the host")
        run.process.stdin.write("and out\n")
        run.process.stdin.flush()
        run.wait()
        run.ended("ok", "exited", "a command in a machine of its own",
                  run.stdout == "carried in\nready\nover and out\n")
        wrong = [f"{name}: {place.read(name)!r}" for name, text in {
            "changed.txt": "new\n", "there.txt": "moved", "deep/er/made.txt": "made\n",
            "same.txt": "same", "private.txt": "private"}.items() if place.read(name) != text]
        wrong += [f"{name} is there still" for name in ("gone.txt", "moved.txt", "folder")
                  if os.path.lexists(place.path(name))]
        wrong += [f"{name} -> {target}" for name, target in {
            "link": "gone", "link2": "same.txt", "outside": "/etc"}.items()
            if not os.path.islink(place.path(name)) or os.readlink(place.path(name)) != target]
        tap.check_empty(wrong, "files, directories and links come back")
        modes = {name: oct(stat.S_IMODE(os.lstat(place.path(name)).st_mode)) for name in
                 ("private.txt", "new.sh", "tool.sh") if os.path.lexists(place.path(name))}
        tap.check(modes == {"private.txt": "0o600", "new.sh": "0o755", "tool.sh": "0o755"},
                  "and their modes", [str(modes)])
        after = os.stat(place.path("same.txt"))
        tap.check((before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns),
                  "what did not change is not touched")
        owners = {os.lstat(place.path(name)).st_uid for name in os.listdir(place.work)}
        tap.check(owners == {os.getuid()}, "what came belongs to who owns the directory",
                  [str(owners)])
        tap.check(place.read("raced.txt") == "of the host" and
                  place.read("raced-gone.txt") == "of the host" and
                  run.denied_as("raced.txt") == run.denied_as("raced-gone.txt") == "conflict",
                  "what the host has changed meanwhile stays, and is told", run.story())
        tap.check(place.read("appeared.txt") == "of the host",
                  "what the host has made meanwhile stays")
        mode = os.lstat(place.path("su")).st_mode if os.path.lexists(place.path("su")) else 0
        tap.check(not mode & (stat.S_ISUID | stat.S_ISGID) and run.denied_as("su") == "workdir",
                  "nothing comes back set-id, and that is told", [oct(mode), *run.story()])
        tap.check(not os.path.lexists(place.path("pipe")), "a FIFO does not come back")


def protected_names():
    with Place() as place:
        place.write(".git/HEAD", "ref: refs/heads/main\n")
        place.write(".git/config", "[core]\n")
        place.write(".git/hooks/old", "#!/bin/sh\n", 0o755)
        run = place.run("echo evil >> .git/config; echo evil > .git/hooks/post-commit; "
                        "echo evil > .git/hooks/old; echo evil > .bashrc; "
                        "echo fine > .git/description; echo done")
        run.ended("ok", "exited", "a command writes to protected names in its machine",
                  run.stdout == "done\n")
        tap.check(place.read(".git/description") == "fine\n", "what is not protected comes back",
                  run.story())
        tap.check(place.read(".git/config") == "[core]\n" and
                  place.read(".git/hooks/old") == "#!/bin/sh\n",
                  "protected files are as before", run.story())
        left = [name for name in (".git/hooks/post-commit", ".bashrc")
                if os.path.lexists(place.path(name))]
        tap.check_empty(left, "and none has appeared")
        untold = [name for name in (".git/config", ".git/hooks/post-commit", ".bashrc")
                  if not any(name in target for target in run.denied)]
        tap.check(not untold, "each is told", [f"untold: {untold}", *run.story()])


def read_only():
    with Place() as place:
        place.write("given.txt", "given")
        readable = [path for path in ("/usr", "/bin", "/lib", "/lib64") if os.path.exists(path)]
        policy = {"paths": {"read": [*readable, place.work], "exec": readable}}
        file = os.path.join(place.base, "policy.json")
        with open(file, "w", encoding="utf-8") as out:
            json.dump(policy, out)
        run = place.run("cat given.txt; echo mine > given.txt; echo more > made; cat given.txt",
                        "--policy", file)
        run.ended("ok", "exited", "a working directory that may only be read is a copy",
                  run.stdout.startswith("given"))
        tap.check(place.read("given.txt") == "given" and os.listdir(place.work) == ["given.txt"],
                  "of which nothing comes back", [str(os.listdir(place.work)), *run.story()])


def too_large():
    with Place() as place:
        run = place.run("echo small > small; head -c 270000000 /dev/zero > big && echo written")
        run.ended("ok", "exited", "a command makes more than is carried",
                  run.stdout == "written\n")
        layers = {x["layer"]: x for x in run.result["receipt"]["layers"]}
        tap.check(layers.get("workdir", {}).get("state") == "absent" and
                  run.denied.get(place.work) == "workdir",
                  "it is told that not all came back", run.story())
        tap.check(not os.path.exists(place.path("big")), "what did not fit is not there by half",
                  [str(os.listdir(place.work))])
    with Place() as place:
        with open(place.path("big"), "wb") as file:
            for _ in range(260):
                file.write(os.urandom(MIB))
        run = place.run("echo ran")
        run.ended("error", "spawn", "more than is carried does not go in, and nothing runs",
                  run.stdout == "", "limit" in json.dumps(run.result["error"]))


def partial_work():
    with Place() as place:
        run = place.run("echo work > part; echo said; sleep 60", "--timeout-ms", "2000")
        run.ended("timeout", "timeout", "a command that takes too long",
                  run.exit == 124, run.stdout == "said\n")
        tap.check(place.read("part") == "work\n", "leaves what it has done", run.story())
    with Place() as place:
        place.write("part", "given\n", 0o666)
        file = os.path.join(place.base, "policy.json")
        with open(file, "w", encoding="utf-8") as out:
            # With sanitizers what carries the directory is linked dynamically.
            programs = ["/usr", "/lib", "/lib64"]
            json.dump({"discard_unfinished": True,
                       "paths": {"read": programs, "exec": programs}}, out)
        run = place.run("echo work > part; echo said; sleep 60", "--timeout-ms", "4000",
                        "--policy", file)
        run.ended("timeout", "timeout", "one whose unfinished work is not wanted",
                  run.exit == 124, run.stdout == "said\n")
        tap.check(place.read("part") == "given\n" and "discarded" in json.dumps(run.result["receipt"]),
                  "leaves nothing, and the receipt says so", run.story())
        run = place.run("echo work > part", "--policy", file)
        run.ended("ok", "exited", "one that ends by itself", run.exit == 0)
        tap.check(place.read("part") == "work\n", "leaves what it has done all the same",
                  run.story())


# ---- the machine, from inside

TRIES = r"""
try() { name=$1; shift; if "$@" 2>/dev/null; then echo "$name yes"; else echo "$name no"; fi; }
no_kernel() { python3 -c '
import ctypes, sys
sys.exit(ctypes.CDLL(None).reboot(int(sys.argv[1], 0)) != 0)' "$1"; }
dial() { python3 -c '
import socket, sys
family, target = eval(sys.argv[1])
socket.socket(getattr(socket, family)).connect(target)' "$1"; }
python3 -c '
import socket, time
with socket.create_server(("127.0.0.1", 4321)) as server:
    open("listening", "w").close()
    server.accept()' &
while [ ! -e listening ]; do sleep 0.1; done
try control.kill kill -0 $$
try control.dial dial '"AF_INET", ("127.0.0.1", 4321)'
try control.write sh -c 'echo > /dev/null'
try panic sh -c 'echo c > /proc/sysrq-trigger'
try reboot no_kernel 0x1234567
try poweroff no_kernel 0x4321fedc
try kill.init kill -9 1
try mount mount -t tmpfs none /mnt
try mknod mknod disk b 254 0
try disk sh -c 'head -c 1 /dev/vda || head -c 1 /dev/disk/by-id/*'
try port sh -c 'echo > /dev/vport0p1 || echo > /dev/vport1p1 || echo > /dev/hvc0'
try kmsg sh -c 'echo > /dev/kmsg'
try cgroup sh -c 'echo max > /sys/fs/cgroup/tasks/memory.max'
try agent.memory sh -c 'head -c 1 /proc/1/mem || ls -l /proc/1/fd | grep .'
try su su -c true
try host.vsock dial '"AF_VSOCK", (2, 1)'
try host.gateway dial '"AF_INET", ("10.0.2.2", 22)'
try interfaces sh -c 'tail -n +3 /proc/net/dev | grep -v " lo:"'
echo survived
"""


def inside():
    with Place() as place:
        run = place.run(TRIES, "--env", "PATH=/usr/sbin:/usr/bin:/sbin:/bin")
        run.ended("ok", "exited", "a machine outlives what its command tries",
                  run.stdout.endswith("survived\n"))
        found = dict(line.split() for line in run.stdout.splitlines() if " " in line)
        tap.check({k for k, v in found.items() if v == "yes"} ==
                  {"control.kill", "control.dial", "control.write"} and len(found) == 18,
                  "nothing of the machine or the host can be had", run.story())


# A kernel that counts ticks knows nothing shorter than 4 ms, however long it waits.
NAPS = r"""
cat /sys/devices/system/clocksource/clocksource0/current_clocksource
cat /proc/sys/kernel/randomize_va_space
python3 -c '
import time
def nap():
    begin = time.monotonic_ns()
    time.sleep(0.0001)
    return time.monotonic_ns() - begin
print(min(nap() for _ in range(50)))'
"""


def kernel_settings():
    with Place() as place:
        run = place.run(NAPS)
        run.ended("ok", "exited", "a command looks at its machine's clock and addresses")
        name, random, shortest = run.stdout.split()
        accel = {x["layer"]: x["reason"] for x in run.result["receipt"]["layers"]}["accel"]
        tap.check(random == ("0" if accel == "tcg" else "2"),
                  "addresses are random where that costs nothing", run.story())
        # Which of the first two it is in the first second is chance: they are one counter.
        tap.check(name in ("tsc", "tsc-early", "kvm-clock"), "the clock is a counter", run.story())
        tap.check(int(shortest) < 3000000, f"a nap takes less than a tick ({shortest} ns)")


# So many MiB, one by one: all at once would be refused, not ended.
BOAST = ("import sys; blocks = [bytearray(1 << 20) for _ in range(int(sys.argv[1]))]; "
         "print(len(blocks), flush=True)")


HOG = f"echo kept > kept; python3 -c '{BOAST}' 8; python3 -c '{BOAST}' %d; echo on"


# All memory but for 15 MiB, and files that do not fit there read for longer than it takes to
# find out who thrashes.
REREADS = """
import os, time

with open("/sys/fs/cgroup/tasks/memory.max") as file:
    blocks = [bytearray(1 << 20) for _ in range((int(file.read()) >> 20) - 15)]
end = time.monotonic() + 9
while time.monotonic() < end:
    for path in ("/usr/bin/git", "/usr/bin/python3.11", "/usr/bin/perl"):
        with open(path, "rb", buffering=0) as file:
            while file.read(1 << 17):
                pass
with open("/sys/fs/cgroup/tasks/memory.stat") as file:
    print(dict(line.split() for line in file)["workingset_refault_file"])
"""


def memory():
    with Place() as place:
        run = place.run(HOG % 300, "--mem", str(64 * MIB))
        run.ended("killed", "memory", "more memory than the limit ends a command",
                  run.stdout == "8\n", run.result.get("limit") == "mem_bytes", run.exit == 137)
        # The kernel by itself may let it thrash for minutes.
        run = place.run(HOG % 2000, "--timeout-ms", "60000")
        run.ended("killed", "memory", "more memory than the machine's ends a command",
                  run.stdout == "8\n", run.result.get("limit") == "mem_bytes")
        tap.check(place.read("kept") == "kept\n", "and not the agent: its work comes back",
                  run.story())
        place.write("rereads.py", REREADS)
        run = place.run("python3 rereads.py")
        run.ended("ok", "exited", "who has little memory left, but enough, is left alone")
        refaults = run.stdout.strip()
        tap.check(refaults.isdecimal() and int(refaults) > 10000,
                  f"though it reads its files again and again ({refaults} pages)", run.story())


# ---- the machine, from outside

IDENTITY = ("cat /proc/sys/kernel/random/boot_id; head -c 16 /dev/urandom | sha256sum; "
            "echo ready; read -r line; echo $line")


def look_at_monitor(pid):
    """What is wrong with a monitor's process."""
    status = status_of(pid)
    want = {"NoNewPrivs": "1", "Seccomp": "2", **{f"Cap{which}": "0" * 16 for which in
                                                 ("Inh", "Prm", "Eff", "Amb")}}
    if ROOT:
        want["CapBnd"] = "0" * 16
    wrong = [f"{key}: {status.get(key)}" for key, value in want.items()
             if status.get(key) != value]
    wrong += [f"{key}: {status.get(key)}" for key in ("Uid", "Gid")
              if ROOT and set(status.get(key, "").split()) != {str(MONITOR_UID)}]
    wrong += [f"descriptor {name}" for name in descriptors_of(pid) if not OWN_FD.search(name)]
    return wrong


def two_at_once():
    with Place() as one, Place() as two:
        runs = [place.start(IDENTITY, "--stdin", stdin=subprocess.PIPE) for place in (one, two)]
        said = [[run.read_line() for _ in range(3)] for run in runs]
        monitors = [place.monitor() for place in (one, two)]
        tap.check(all(monitors) and monitors[0] != monitors[1] and
                  said[0][2] == said[1][2] == "ready\n", "two machines at once",
                  [str(monitors), str(said)])
        tap.check(said[0][0] != said[1][0] and said[0][1] != said[1][1],
                  "which do not share their randomness", [str(said)])
        for pid in filter(None, monitors):
            tap.check(len(descriptors_of(pid)) > 4, "what a monitor has open can be seen")
            tap.check_empty(look_at_monitor(pid), "a monitor has no rights")
        for run in runs:
            run.process.stdin.write("end\n")
            run.process.stdin.flush()
            run.wait()
            run.ended("ok", "exited", "each ends for itself", run.stdout.endswith("end\n"))
        tap.check(not any(one.monitors() + two.monitors()), "and no monitor stays")


def host_killed():
    with Place() as place:
        run = place.start("echo ready; sleep 60")
        run.read_line()
        pid = place.monitor()
        tap.check(pid and run.stdout == "ready\n", "a machine runs")
        run.process.kill()
        took = wait_gone(pid, 10) if pid else None
        run.wait()
        # Promised is a second; the machine that tests this may be slow.
        tap.check(took is not None and took < 3, f"it goes with its host program ({took} s)")


def canceled():
    with Place() as place:
        run = place.start("echo part > part; echo ready; sleep 60")
        run.read_line()
        run.process.send_signal(signal.SIGINT)
        run.wait()
        run.ended("killed", "canceled", "an interrupted command")
        tap.check(place.read("part") == "part\n", "leaves what it has done", run.story())
        tap.check(not place.monitors(), "and no monitor")


def required_kvm():
    with Place() as place:
        run = place.run("echo ran", "--require-kvm")
        layers = {x["layer"]: x["reason"] for x in run.result["receipt"]["layers"]}
        if run.stdout == "ran\n":
            tap.check(layers.get("accel") == "kvm", "where KVM is required it is used", run.story())
        else:
            run.ended("denied", "isolation", "where KVM is required and missing nothing runs",
                      run.exit == 126, "kvm" in json.dumps(run.result["error"]).lower())
        run = place.run("echo ran")
        layers = {x["layer"]: x["reason"] for x in run.result["receipt"]["layers"]}
        run.ended("ok", "exited", "where it is not, the receipt says what was used",
                  layers.get("accel") in ("kvm", "tcg"))


def boots_under_load():
    """40 machines, one after the other, while something else wants every processor."""
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"])
            for _ in range(os.cpu_count())]
    took = []
    try:
        with Place() as place:
            for i in range(40):
                run = place.run("echo $((6 * 7))")
                if run.ended("ok", "exited", f"boot {i + 1}", run.stdout == "42\n"):
                    reason = run.result["receipt"]["layers"][0]["reason"]
                    took.append(int(re.search(r"booted in (\d+) ms", reason)[1]))
            tap.check(not place.monitors(), "and no monitor stays")
    finally:
        for process in busy:
            process.kill()
            process.wait()
    if took:
        print(f"# ms to the first byte: median {sorted(took)[len(took) // 2]}, "
              f"most {max(took)}", flush=True)


CASES = [round_trip, protected_names, read_only, too_large, partial_work, inside,
         kernel_settings, memory, two_at_once, host_killed, canceled, required_kvm,
         boots_under_load]


def main():
    if not os.access(MONITOR, os.X_OK):
        tap.skip(f"SKIP-CANNOT: there is no {MONITOR} (Debian: qemu-system-x86)")
    if not os.access(os.path.join(IMAGE, "image.json"), os.R_OK):
        tap.skip(f"SKIP-CANNOT: there is no image in {IMAGE}: scripts/build-image makes it")
    only = re.compile(sys.argv[2] if sys.argv[1:2] == ["--only"] else "")
    for case in CASES:
        if only.search(case.__name__):
            case()
    tap.finish()


if __name__ == "__main__":
    main()
