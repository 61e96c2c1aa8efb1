#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""The sandbox from outside, through agentd-run: that nothing runs when a layer of it
cannot be put up, what each layer does, and protected names. The rest of the attacks is
in tests/attack.

usage: test_sandbox.py [--only REGEX]"""

import concurrent.futures
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile

import tap

AGENTD_RUN = os.environ["AGENTD_RUN"]
ROOT = os.getuid() == 0
NAMESPACES = ("user", "mnt", "pid", "net", "ipc", "uts", "cgroup")

# What a command sees of its own sandbox, a word or more per line.
LOOK = r"""
for n in user mnt pid net ipc uts cgroup; do echo "$n $(readlink /proc/self/ns/$n)"; done
grep -E '^(NoNewPrivs|Seccomp|Seccomp_filters|CapEff|CapPrm|CapBnd|CapAmb):' /proc/self/status |
	sed 's/:[[:space:]]*/ /'
echo "uid $(id -u)"
echo "core $(ulimit -Hc)"
echo "root $(touch /made 2>/dev/null && echo writable || echo read-only)"
kill -0 1 2>/dev/null && echo signals all || echo signals own
echo "interfaces $(tail -n +3 /proc/net/dev | sed 's/:.*//' | xargs)"
echo "hostname $(cat /proc/sys/kernel/hostname)"
"""


class Place:
    """Directories for one case, removed at its end."""

    def __init__(self):
        self.base = tempfile.mkdtemp(prefix="agentd-sandbox-")
        os.chmod(self.base, 0o755)
        self.work = self.make_dir("work")

    def make_dir(self, *names):
        path = os.path.join(self.base, *names)
        os.makedirs(path, exist_ok=True)
        return path

    def path(self, *names):
        return os.path.join(self.work, *names)

    def write(self, name, text):
        path = os.path.join(self.work, name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "w", encoding="utf-8") as file:
            file.write(text)
        return path

    def read(self, name):
        with open(os.path.join(self.work, name), encoding="utf-8") as file:
            return file.read()

    def run(self, command, *options, before=(), events=True):
        result = os.path.join(self.base, "result")
        event_file = os.path.join(self.base, "events")
        words = [*before, AGENTD_RUN, "--quiet", "--workdir", self.work, "--result", result]
        # A leak check cannot be made beneath strace; elsewhere it is.
        env = dict(os.environ)
        if before:
            env["ASAN_OPTIONS"] = env.get("ASAN_OPTIONS", "") + ":detect_leaks=0"
        if events:
            words += ["--events", event_file]
        done = subprocess.run(
            [*words, *options, "--", command],
            env=env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        done.result, done.denials, done.denied = {}, [], []
        try:
            with open(result, encoding="utf-8") as file:
                done.result = json.load(file)
            os.unlink(result)
            if events:
                with open(event_file, encoding="utf-8") as file:
                    said = [json.loads(line) for line in file]
                done.denials = [e for e in said if e.get("event") == "denied"]
                done.denied = [e["target"] for e in done.denials]
        except (FileNotFoundError, json.JSONDecodeError):
            pass
        return done

    def __enter__(self):
        return self

    def __exit__(self, *_):
        shutil.rmtree(self.base)


def look(output):
    return dict(line.split(" ", 1) for line in output.splitlines() if " " in line)


def layers(done):
    return {
        layer["layer"]: layer["state"]
        for layer in done.result.get("receipt", {}).get("layers", [])
    }


def outside():
    return {name: os.readlink(f"/proc/self/ns/{name}") for name in NAMESPACES}


def holes(seen, off=()):
    """What of the sandbox is missing, by what the command saw."""
    found = []
    host = outside()
    for name in NAMESPACES:
        if name not in off and seen.get(name, host[name]) == host[name]:
            found.append(f"namespace {name} is the host's")
    wanted = {
        "NoNewPrivs": "1",
        "CapEff": "0" * 16,
        "CapPrm": "0" * 16,
        "CapBnd": "0" * 16,
        "CapAmb": "0" * 16,
        "uid": "1000",
        "core": "0",
        "root": "read-only",
    }
    if "seccomp" not in off:
        wanted.update(Seccomp="2", Seccomp_filters="2")
    if "landlock" not in off:
        wanted["signals"] = "own"
    if "net" not in off:
        wanted["interfaces"] = "lo"
    if "uts" not in off:
        wanted["hostname"] = "sandbox"
    for key, value in wanted.items():
        if seen.get(key) != value:
            found.append(f"{key} is {seen.get(key)}, not {value}")
    return found


# ---- fail closed

# Everything a sandbox is put up with. Each fails once in each place where it is called.
CALLS = (
    "unshare setns mount mount_setattr open_tree move_mount fsopen fsconfig fsmount "
    "pivot_root umount2 setresuid setresgid setgroups sethostname seccomp keyctl chroot "
    "landlock_create_ruleset landlock_add_rule landlock_restrict_self prctl capset "
    "signalfd4 setsid mkdir chmod symlinkat mkdirat openat2 getrandom umask close_range "
    "prlimit64 socketpair memfd_create"
).split()
# Where there are many, they are alike: one for each path of the view.
TIMES = (1, 2, 3, 4, 5, 6, 7, 9, 12, 16, 22, 30)


def injected(place, call, error, number, log):
    return place.run(
        LOOK + "echo ran > marker",
        "--timeout-ms",
        "60000",
        before=[
            "strace",
            "-f",
            "-qq",
            "-o",
            log,
            "-e",
            f"trace={call}",
            "-e",
            f"inject={call}:error={error}:when={number}",
        ],
    )


def fails_closed(call, error):
    """A call fails for the first time a process makes it, then for the second ... The
    name of the check, what is wrong, and how often nothing ran."""
    problems, refused, harmless = [], 0, 0
    with Place() as place:
        log = os.path.join(place.base, "strace")
        for number in TIMES:
            done = injected(place, call, error, number, log)
            with open(log, encoding="utf-8", errors="replace") as file:
                if "(INJECTED)" not in file.read():
                    break
            ran = os.path.exists(place.path("marker"))
            if ran:
                os.unlink(place.path("marker"))
                missing = holes(look(done.stdout))
                problems += [f"{call} no. {number}: {hole}" for hole in missing]
                harmless += 1
            elif done.returncode not in (125, 126) or not done.stderr.strip():
                problems.append(
                    f"{call} no. {number}: exit {done.returncode}: {done.stderr.strip()[-300:]}"
                )
            else:
                refused += 1
    name = f"{call} fails: {refused} times nothing ran, {harmless} times all of the sandbox was there"
    return name, problems, refused


def fail_closed():
    tap.need("strace")
    with Place() as place:
        probe = place.run("true", before=["strace", "-f", "-qq", "-o", "/dev/null", "-e", "trace=prctl"])
        if probe.returncode != 0:
            tap.skip("SKIP-CANNOT: strace does not work here")
        done = injected(place, "reboot", "EPERM", 1, os.path.join(place.base, "strace"))
        tap.check(os.path.exists(place.path("marker")), "without a fault the command runs",
                  [done.stderr])
        tap.check_empty(holes(look(done.stdout)), "and the sandbox is whole")
    total = 0
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        for name, problems, refused in pool.map(fails_closed, CALLS, ["EPERM"] * len(CALLS)):
            tap.check_empty(problems, name)
            total += refused
    tap.check(total >= 60, f"{total} faults were refused")


# ---- layers


def whole():
    with Place() as place:
        done = place.run(LOOK)
        tap.check_empty(holes(look(done.stdout)), "the sandbox is whole")
        wrong = [f"{k}: {v}" for k, v in layers(done).items() if v != "enforced"]
        if not ROOT:  # no cgroups, and files are the user's own
            wrong = [w for w in wrong if w.split(":")[0] not in
                     ("memory", "pids", "cgroup", "idmap")]
        tap.check_empty(wrong, "the receipt says so")


def switched_off():
    """A layer that is off is off, which is also the control of the others."""
    cases = {
        "netns": ("net", lambda s: "eth" in s["interfaces"] or s["net"] == outside()["net"]),
        "ipcns": ("ipc", lambda s: s["ipc"] == outside()["ipc"]),
        "utsns": ("uts", lambda s: s["uts"] == outside()["uts"]),
        "cgroupns": ("cgroup", lambda s: s["cgroup"] == outside()["cgroup"]),
        "landlock": ("landlock", lambda s: s["signals"] == "all"),
        "seccomp": ("seccomp", lambda s: s["Seccomp_filters"] != "2"),
    }
    for layer, (word, is_off) in cases.items():
        with Place() as place:
            done = place.run(LOOK, "--layer", f"{layer}=off")
            seen = look(done.stdout)
            tap.check(seen and is_off(seen), f"{layer} can be switched off",
                      [done.stdout, done.stderr])
            tap.check(layers(done).get(layer) == "absent", f"{layer} is absent in the receipt",
                      [str(layers(done))])
            tap.check_empty(holes(seen, {word}), f"without {layer} the rest is there")
    for layer in ("userns", "mountns", "pidns"):
        with Place() as place:
            done = place.run(LOOK, "--layer", f"{layer}=off")
            tap.check_empty(holes(look(done.stdout)), f"{layer} cannot be switched off")


def degraded():
    """What cannot be had is degraded where the policy allows it, and nothing runs else."""
    for layer, call in (("keyring", "keyctl"), ("landlock", "landlock_create_ruleset"),
                        ("utsns", "sethostname")):
        before = ["strace", "-f", "-qq", "-o", "/dev/null", "-e", f"trace={call}", "-e",
                  f"inject={call}:error=EPERM"]
        with Place() as place:
            done = place.run("echo ran > marker", before=before)
            tap.check(done.returncode == 126 and layer in done.stderr and
                      not os.path.exists(place.path("marker")),
                      f"{layer} cannot be had: nothing runs, and it is named", [done.stderr])
            done = place.run("echo ran > marker", "--layer", f"{layer}=degradable", before=before)
            tap.check(os.path.exists(place.path("marker")), f"{layer} is degradable: it runs",
                      [done.stderr])
            tap.check(layers(done).get(layer) == "degraded", f"{layer} is called degraded",
                      [str(layers(done))])


# ---- protected names

# What there is before, what is done, and what is told and left.
PROTECTED = [
    ("a start-up file is changed", {".bashrc": "mine\n"}, "echo evil >> .bashrc"),
    ("it is removed", {".bashrc": "mine\n"}, "rm -f .bashrc"),
    ("it is renamed", {".bashrc": "mine\n"}, "mv .bashrc x"),
    ("it is replaced", {".bashrc": "mine\n"}, "echo evil > x; mv -f x .bashrc"),
    ("it is exchanged for a link", {".bashrc": "mine\n"}, "ln -sf /etc/passwd .bashrc"),
    ("a hook is written", {".git/hooks/a": "mine\n"}, "echo evil > .git/hooks/b"),
    ("the hooks are renamed", {".git/hooks/a": "mine\n"}, "mv .git/hooks .git/h"),
    ("the repository is renamed", {".git/hooks/a": "mine\n"}, "mv .git .g; mkdir -p .git/hooks"),
    ("a worktree's link is changed", {".git": "gitdir: x\n"}, "echo gitdir: evil > .git"),
    ("a worktree's link is replaced", {".git": "gitdir: x\n"}, "rm -f .git; mkdir .git"),
]


def tree(place):
    found = {}
    for folder, dirs, names in os.walk(place.work):
        for name in names + dirs:
            path = os.path.join(folder, name)
            short = os.path.relpath(path, place.work)
            if os.path.islink(path):
                found[short] = "-> " + os.readlink(path)
            elif os.path.isfile(path):
                found[short] = open(path, encoding="utf-8").read()  # pylint: disable=consider-using-with
            else:
                found[short] = "directory"
    return found


def protected():
    for title, files, command in PROTECTED:
        changed = {}
        for option in ([], ["--no-protect"]):
            with Place() as place:
                for name, text in files.items():
                    place.write(name, text)
                before = tree(place)
                done = place.run(f"{command}; echo alive", *option)
                now = tree(place)
                lost = [n for n in before if now.get(n) != before[n]]
                new = [n for n in now if n not in before and n.startswith((".git/", ".bash"))]
                changed[bool(option)] = lost + new
                if "alive" not in done.stdout:
                    changed[False] = [f"it did not run: {done.stderr}"]
        tap.check_empty(changed[False], f"protected: {title}")
        tap.check(changed[True], f"protected: {title}: succeeds without protection")


def appeared():
    """What is not there cannot be mounted on."""
    with Place() as place:
        os.makedirs(place.path(".git", "objects"))
        done = place.run("mkdir .git/hooks; echo evil > .git/hooks/a; echo evil > .profile;"
                         " echo x > y; rm -f .zshrc; echo alive")
        now = tree(place)
        tap.check("alive" in done.stdout and ".profile" not in now and ".git/hooks" not in now,
                  "what has appeared is gone", [str(now)])
        aside = [n for n in now if ".agentd-denied-" in n and "/a" not in n]
        tap.check(len(aside) == 2, "it is moved aside", [str(now)])
        tap.check(sorted(os.path.relpath(d, place.work) for d in done.denied) ==
                  [".git/hooks", ".profile"], "it is told", [str(done.denied)])
        tap.check(done.result.get("denied_count") == 2, "and counted", [str(done.result)])
        tap.check(now.get("y") == "x\n", "the rest is left")
    with Place() as place:
        done = place.run("echo evil > .profile", "--no-protect")
        tap.check(os.path.exists(place.path(".profile")) and not done.denied,
                  "without protection it stays")


def own_repository():
    """What the command makes as a whole is its own."""
    with Place() as place:
        origin = place.make_dir("origin")
        for words in (["init", "-q"], ["-c", "user.name=x", "-c", "user.email=x@y", "commit", "-q",
                                       "--allow-empty", "-m", "x"]):
            subprocess.run(["git", "-C", origin, *words], check=True)
        # As those of another user it is not trusted.
        done = place.run(
            "git config --global --add safe.directory '*'; git init -q here &&"
            f" git clone -q {origin} copy && git -C copy log --format=%s && cd here && echo a > a &&"
            " git add a && git -c user.name=x -c user.email=x@y commit -qm one &&"
            " git log --format=%s",
            "--read",
            origin,
        )
        tap.check(done.stdout.split() == ["x", "one"] and not done.denied,
                  "git init and git clone work", [done.stdout, done.stderr, str(done.denied)])
        tap.check(os.path.isfile(place.path("here", ".git", "config")) and
                  os.path.isdir(place.path("copy", ".git", "hooks")),
                  "their repositories are left whole")
        here = place.path("here")
        done = place.run("cd here && echo b > b && git add b &&"
                         " git -c user.name=x -c user.email=x@y commit -qm two && git gc -q &&"
                         " git checkout -q -b other && git log --format=%s;"
                         " git config x.y z || echo kept", "--write", here)
        tap.check(done.stdout.split() == ["two", "one", "kept"], "a later command can work in them",
                  [done.stdout, done.stderr])


def links():
    with Place() as place:
        place.write("dot/bashrc", "mine\n")
        os.symlink("dot/bashrc", place.path(".bashrc"))
        place.run("echo evil >> dot/bashrc; mv dot d; rm .bashrc; echo evil > .bashrc")
        tap.check(os.path.islink(place.path(".bashrc")) and place.read("dot/bashrc") == "mine\n",
                  "a protected link is as it was, and what it leads to", [str(tree(place))])
    with Place() as place:
        other = place.make_dir("other", "hooks")
        os.symlink(os.path.dirname(other), place.path(".git"))
        with open(os.path.join(other, "mine"), "w", encoding="utf-8") as file:
            file.write("mine\n")
        done = place.run("echo evil > .git/hooks/x; rm -f .git; mkdir .git .git/hooks;"
                         " echo evil > .git/hooks/x")
        tap.check(os.readlink(place.path(".git")) == os.path.dirname(other) and
                  os.listdir(other) == ["mine"],
                  "a link out is put back, and nothing happens outside", [str(tree(place))])
        tap.check(len(done.denied) == 1, "it is told once", [str(done.denied)])


def nested():
    """Names lead to the same things afterwards."""
    with Place() as place:
        inner = place.make_dir("work", "sub", "deep")
        place.write("sub/deep/.profile", "mine\n")
        place.write("sub/deny/secret", "secret\n")
        options = ["--write", inner, "--deny", place.path("sub", "deny")]
        done = place.run("cat sub/deny/secret; mv sub other; echo evil > sub/deep/.profile;"
                         " rmdir sub/deny; echo alive", *options)
        tap.check(done.stdout == "alive\n", "what is denied is not read", [done.stdout])
        tap.check(place.read("sub/deep/.profile") == "mine\n" and
                  place.read("sub/deny/secret") == "secret\n",
                  "parents of what is mounted stay in their place", [str(tree(place))])
        done = place.run("mv sub other && cat other/deny/secret", "--no-protect")
        tap.check(done.stdout == "secret\n", "without all that they can be moved", [done.stderr])


# What there is before (a text that begins with "->" is a link, None a directory), what is done,
# and what is told and moved aside. All of it is as it was then.
LINKS = [
    ("what a link leads to appears", {".bashrc": "-> dot/bashrc", "dot": None},
     "echo evil > dot/bashrc", ["dot/bashrc"]),
    ("it appears with its directory", {".bashrc": "-> dot/bashrc"},
     "mkdir dot; echo evil > dot/bashrc", ["dot"]),
    ("what a link out and back leads to appears", {".bashrc": "-> {work}/dot/../dot/bashrc", "dot": None},
     "echo evil > dot/bashrc", ["dot/bashrc"]),
    ("hooks appear in a repository behind a link", {".git": "-> gitreal", "gitreal": None},
     "mkdir gitreal/hooks; echo evil > gitreal/hooks/pre-commit", ["gitreal/hooks"]),
    ("a link in a chain is replaced", {".bashrc": "-> a", "a": "-> real/b", "real/b": "mine\n"},
     "rm a; echo evil > a", ["a"]),
    ("a link in a chain is removed", {".bashrc": "-> a", "a": "-> b", "b": "-> c"},
     "rm b", ["b"]),
    ("a directory that is a link is replaced",
     {".profile": "-> cfg/profile", "cfg": "-> dots", "dots/profile": "mine\n"},
     "rm cfg; mkdir cfg; echo evil > cfg/profile", ["cfg"]),
    ("the end of a chain is changed", {".bashrc": "-> a", "a": "-> real/b", "real/b": "mine\n"},
     "echo evil >> real/b; mv real r; rm real/b", []),
    ("a loop of links is broken", {".bashrc": "-> a", "a": "-> .bashrc"},
     "rm a; echo evil > a", ["a"]),
    ("a name beside one that a link goes through", {".bashrc": "-> .git/hooks/x", ".git/hooks/x": "a\n"},
     "echo evil > .git/hooks/y", []),
]


def links_on_the_way():
    for title, files, command, told in LINKS:
        for options in [], ["--no-protect"]:
            with Place() as place:
                for name, text in files.items():
                    if text is None:
                        place.make_dir("work", name)
                    elif text.startswith("-> "):
                        os.symlink(text[3:].format(work=place.work), place.path(name))
                    else:
                        place.write(name, text)
                before = tree(place)
                done = place.run(f"{command}; echo alive", *options)
                now = {name: text for name, text in tree(place).items()
                       if ".agentd-denied-" not in name}
                story = [str(now), str(done.denied), done.stdout, done.stderr]
                if options:
                    tap.check(now != before, f"links: {title}: succeeds without protection", story)
                    continue
                tap.check("alive" in done.stdout and now == before, f"links: {title}", story)
                tap.check(sorted(os.path.relpath(d, place.work) for d in done.denied) == told,
                          f"links: {title}: it is told", story)


# Ways to have the host's git run a program, by files that name others.
REDIRECTS = {
    "commondir": "echo ../evil > .git/commondir",
    "another commondir": "rm -f .git/commondir; cp -r evil .git/e; echo e > .git/commondir",
    "a worktree's own configuration": "cp evil/config .git/config.worktree",
    "a submodule's configuration": "cat evil/config >> .git/modules/sub/config",
    "a submodule's configuration is replaced": "cp evil/config x; mv -f x .git/modules/sub/config",
    "a submodule's commondir": "echo ../../../evil > .git/modules/sub/commondir",
    "a submodule is renamed": "mv .git/modules/sub .git/modules/s; cp -r .git/modules/s"
    " .git/modules/sub; cat evil/config >> .git/modules/sub/config",
    "a submodule's hooks": "mkdir -p .git/modules/sub/hooks; cp evil/config .git/modules/sub/hooks/evil",
    "a submodule with a name of two parts": "cat evil/config >> .git/modules/lib/foo/config",
    "all submodules are renamed": "mv .git/modules .git/m; cp -r .git/m .git/modules;"
    " cat evil/config >> .git/modules/lib/foo/config",
    "a worktree's commondir": "echo ../../../evil > .git/worktrees/tree/commondir",
    "the configuration of a worktree": "cp evil/config .git/worktrees/tree/config.worktree",
}


def host_git(place, *words):
    env = {"PATH": os.environ["PATH"], "HOME": place.base, "GIT_CONFIG_NOSYSTEM": "1"}
    return subprocess.run(["git", "-c", "protocol.file.allow=always", "-c", "user.name=x", "-c",
                           "user.email=x@y", *words], cwd=place.work, env=env, check=False,
                          capture_output=True, text=True)


def make_repository(place):
    """With submodules, a worktree, and a file that the host is to be made to look at."""
    origin = os.path.join(place.base, "origin")
    for words in (
        ["init", "-q", origin],
        ["-C", origin, "commit", "-q", "--allow-empty", "-m", "x"],
        ["init", "-q", "."],
        ["config", "extensions.worktreeConfig", "true"],
        ["submodule", "--quiet", "add", origin, "sub"],
        ["submodule", "--quiet", "add", origin, "lib/foo"],
        ["commit", "-q", "-m", "x"],
        ["worktree", "add", "-q", "tree"],
    ):
        done = host_git(place, *words)
        if done.returncode:
            raise RuntimeError(done.stderr)
    pwned = os.path.join(place.base, "pwned")
    place.write("evil/config", "[core]\n\trepositoryformatversion = 0\n"
                f"\tfsmonitor = \"touch {pwned}; false\"\n")
    for name in ("objects", "refs"):
        place.make_dir("work", "evil", name)
    return pwned


def redirects():
    for title, command in REDIRECTS.items():
        for options in [], ["--no-protect"]:
            with Place() as place:
                pwned = make_repository(place)
                done = place.run(f"{command}; echo alive", *options)
                for where in ".", "sub", "lib/foo", "tree":
                    host_git(place, "-C", where, "status")
                runs = os.path.exists(pwned) or os.path.exists(
                    place.path(".git", "modules", "sub", "hooks", "evil"))
                story = [str(done.denied), done.stdout, done.stderr]
                if options:
                    tap.check(runs, f"git: {title}: succeeds without protection", story)
                else:
                    tap.check("alive" in done.stdout and not runs, f"git: {title}", story)


def git_works():
    """With all of that protected, in a submodule and a worktree as well."""
    with Place() as place:
        make_repository(place)
        place.write(".git/modules/sub/rebase-merge/head-name", "x\n")
        done = place.run("rm -r .git/modules/sub/rebase-merge && echo removed")
        tap.check(done.stdout == "removed\n" and not done.denied,
                  "git can remove what it made in a submodule", [done.stderr, str(done.denied)])
        done = place.run(
            "git config --global user.name x; git config --global user.email x@y;"
            "git config --global --add safe.directory '*';"
            "for d in . sub lib/foo tree; do (cd $d && echo $d > file && git add file &&"
            " git commit -qm two && git log --format=%s | head -1 && git branch other && git gc -q); done")
        tap.check(done.stdout.split() == ["two"] * 4 and not done.denied,
                  "git works in submodules and worktrees", [done.stdout, done.stderr, str(done.denied)])
        done = place.run(
            "git config --global user.name x; git config --global user.email x@y;"
            "git config --global --add safe.directory '*'; git worktree add -q more &&"
            " cd more && git commit -q --allow-empty -m three && git log --format=%s | head -1")
        tap.check(done.stdout.split() == ["three"] and not done.denied and
                  os.path.exists(place.path(".git", "worktrees", "more", "commondir")),
                  "a worktree can be added", [done.stdout, done.stderr, str(done.denied)])


def patterns():
    with Place() as place:
        place.write("a/.git/config", "mine\n")
        place.write("*/.git/config", "mine\n")
        place.write("file", "mine\n")
        place.write("top/x", "mine\n")
        place.make_dir("work", "b", ".git")
        # A link may be a command's, and lead anywhere.
        os.symlink("../outside", place.path("l"))
        place.write("elsewhere/.git/config", "mine\n")
        command = ("for d in a b '*' l elsewhere new; do mkdir -p \"$d/.git\";"
                   " echo evil > \"$d/.git/config\"; done; echo evil > file; echo evil > top/x;"
                   " echo evil > top/y; rm l; echo alive")
        names = "a/.git/config", "*/.git/config", "elsewhere/.git/config", "top/x"
        done = place.run(command, "--protect", "*/.git/config", "--protect", "top/*")
        now = tree(place)
        story = [str(now), str(done.denied), done.stderr]
        tap.check("alive" in done.stdout and all(now[name] == "mine\n" for name in names),
                  "a part * stands for all there is", story)
        tap.check("b/.git/config" not in now and
                  [os.path.relpath(d, place.work) for d in done.denied] == ["b/.git/config"],
                  "what appears there is moved aside", story)
        tap.check(now["file"] == now["top/y"] == now["new/.git/config"] == "evil\n",
                  "all the rest is the command's", story)
        done = place.run(command, "--no-protect")
        tap.check(all(tree(place)[name] == "evil\n" for name in names),
                  "patterns: succeeds without protection", [str(tree(place)), done.stderr])


SESSION = "01234567-89ab-4cde-8fab-0123456789ab"
HINDER = "echo evil > .bashrc; prlimit --pid $PPID --nofile=0:0; echo $?"


def hindered():
    """A command does not set the limits of who looks after it. Where that is hindered
    nevertheless, it says so."""
    for in_session in False, True:
        for hinders in False, True:
            with Place() as place:
                options = ["--layer", "seccomp=off"] if hinders else []
                where = ""
                if in_session:
                    pool = place.write("pool.json", json.dumps(
                        {"enabled": True, "backend": "sandbox", "volume_root": place.path("s")}))
                    options += ["--pool", pool, "--session", SESSION]
                    where = os.path.join("s", SESSION, "volume")
                done = place.run(HINDER, *options)
                left = os.listdir(place.path(where))
                told = [d["remedy"] for d in done.denials if d["target"].endswith("/.bashrc")]
                story = [done.stdout, done.stderr, str(left), str(done.denials)]
            title = "in a session: " if in_session else ""
            if hinders:
                # A session's first process has limits of its own, and moves it when all is over.
                tap.check(done.stdout == "0\n" and (in_session or ".bashrc" in left),
                          f"{title}without the filter it is not", story)
                tap.check(told and "could not" in told[0] and
                          (in_session or not any("was moved" in remedy for remedy in told)),
                          f"{title}that is told as it is", story)
            else:
                tap.check(done.stdout == "1\n" and ".bashrc" not in left,
                          f"{title}what has appeared is moved aside", story)
                tap.check(len(done.denials) == len(told) == 1 and "was moved" in told[0],
                          f"{title}that is told", story)


CASES = [whole, switched_off, degraded, protected, appeared, own_repository, links, nested,
         links_on_the_way, redirects,
         git_works, patterns, hindered, fail_closed]


def main():
    only = re.compile(sys.argv[2] if sys.argv[1:2] == ["--only"] else "")
    for case in CASES:
        if only.search(case.__name__):
            case()
    tap.finish()


if __name__ == "__main__":
    main()
