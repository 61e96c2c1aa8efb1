# SPDX-License-Identifier: MIT
"""Attacks that take more than one act, or are judged from outside.

A scenario gets an arena and attacks in its mode. What breaches isolation lands in
arena.breaches: by arena.breach(), by a line "BREACH" or the secret in the output, or
because something outside has changed. Without a sandbox there must be such a thing."""

import json
import os
import re
import secrets
import shutil
import signal
import socket
import stat
import subprocess
import time
import tty

import arena as arenas
from arena import Cannot, Inconclusive

ALL = []


class Scenario:
    def __init__(self, function, case, title, root, control, alone, arena):
        self.function = function
        self.case = case
        self.title = title
        self.root = root
        self.control = control
        self.alone = alone
        self.arena = arena


def scenario(case, title, root=False, control=True, alone=False, **arena):
    """root: the control needs it. control: True, or why there is none; None for what
    is no attack but has to go on working. alone: nothing else runs meanwhile."""

    def add(function):
        ALL.append(Scenario(function, case, title, root, control, alone, arena))
        return function

    return add


def works(case, title, **kwargs):
    return scenario(case, title, control=None, **kwargs)


def expect(arena, condition, text):
    if not condition:
        arena.breach(text)


# ---- what the command is given


@scenario("P01", "standard input is not the host's")
def standard_input(arena):
    path = arena.write(os.path.join(arena.own, "input"), arena.token)
    with open(path, "rb") as file:
        arena.run("timeout 2 head -c 200", stdin=file, plain=True)


@scenario("P04", "no new privileges")
def no_new_privileges(arena):
    arena.run("grep -q 'NoNewPrivs:.1' /proc/self/status || echo BREACH", plain=True)


@scenario("P04", "a set-user-ID program in the work directory gives nothing", root=True)
def set_user_id_program(arena):
    if not arenas.ROOT:
        raise Cannot("only root can make a program that sets its user to root")
    os.chmod(arena.copy_tool(arena.make_dir("bin", 0o755)), 0o4755)
    before = [] if arena.sandbox else ["setpriv", "--reuid=65534", "--clear-groups"]
    arena.run("bin/attack is-root", before=before, plain=True)


@scenario("P05", "a system call filter is in force")
def filtered(arena):
    arena.run("grep -q 'Seccomp:.2' /proc/self/status || echo BREACH", plain=True)


@scenario("P06", "no capability in any set", root=True)
def no_capabilities(arena):
    arena.run("grep '^Cap' /proc/self/status | grep -v ':.0000000000000000' && echo BREACH; :")


@scenario("P41", "nothing of the host's environment")
def environment(arena):
    names = "LD_LIBRARY_PATH BASH_ENV ENV PYTHONPATH PERL5LIB GIT_DIR NODE_OPTIONS SSH_AUTH_SOCK"
    env = {name: "/nonexistent" for name in names.split()}
    env["AN_API_KEY"] = arena.token
    arena.run(
        "env; tr '\\0' '\\n' < /proc/self/environ\n"
        f"env | grep -E '^({'|'.join(names.split())})=' && echo BREACH; :",
        env=env,
        plain=True,
    )


@scenario("X20", "no descriptor but 0, 1 and 2")
def descriptors(arena):
    directory = os.open(arena.outside, os.O_RDONLY | os.O_DIRECTORY)
    secret = os.open(arena.secret, os.O_RDWR)
    arena.cleanup(os.close, directory)
    arena.cleanup(os.close, secret)
    outcome = arena.run(
        f"cat <&{secret}; cat /proc/self/fd/{directory}/secret\n"
        "echo OPEN; ls /proc/self/fd",
        pass_fds=(directory, secret),
        plain=True,
    )
    listed = outcome.out.split(b"OPEN\n")[1].split()
    expect(arena, listed == [b"0", b"1", b"2", b"3"], f"open: {listed}")


@scenario("X20", "no terminal, and no input pushed into the host's")
def terminal(arena):
    master, slave = os.openpty()
    arena.cleanup(os.close, master)
    arena.cleanup(os.close, slave)
    tty.setraw(slave)
    arena.run(
        arena.acts("tty", "push-tty"),
        stdin=slave,
        before=["setsid", "--ctty", "--wait"],
        plain=True,
    )
    os.set_blocking(slave, False)
    try:
        expect(arena, not os.read(slave, 100), "the host's terminal has input")
    except BlockingIOError:
        pass


@scenario("X03", "the host's session keyring cannot be searched")
def session_keyring(arena):
    arena.run(
        arena.acts(f"search-key {arena.tag}", f"request-key {arena.tag}")
        + f"; grep -q {arena.tag} /proc/keys && echo BREACH the key is listed; :",
        before=[arenas.VICTIM, "--keyring", arena.tag, arena.token],
    )


@scenario("P42", "only harmless devices")
def devices(arena):
    harmless = "null zero full random urandom tty ptmx pts shm fd stdin stdout stderr mqueue core"
    names = sorted(set(os.listdir("/dev")) - set(harmless.split()))
    names = [name for name in names if re.fullmatch(r"[\w.-]+", name)][:200]
    paths = [f"/dev/{name}" for name in names] + ["/dev/net/tun"]
    for i in range(0, len(paths), 50):
        arena.run(arena.acts(*(f"exists {path}" for path in paths[i : i + 50])))


@scenario("X09", "only what the policy names is there")
def visible(arena):
    harmless = (
        "bin dev etc home lib lib32 lib64 libx32 opt proc run sbin sys tmp usr var"
    ).split() + [arena.base.split("/")[1]]
    outcome = arena.run(
        f"echo ROOT; ls -A /; echo PARENT; ls -A {arena.base}; echo ETC; ls -A /etc; echo END"
    )
    words = outcome.out.decode().split()
    root, parent, etc = (
        words[words.index(a) + 1 : words.index(b)]
        for a, b in (("ROOT", "PARENT"), ("PARENT", "ETC"), ("ETC", "END"))
    )
    strange = sorted(set(root) - set(harmless))
    expect(arena, not strange, f"in /: {strange}")
    expect(arena, parent == ["work"], f"beside the work directory: {parent}")
    expect(arena, len(etc) < 40, f"{len(etc)} entries in /etc")


@scenario("X21", "the command is not root outside", root=True)
def user_outside(arena):
    command = arena.start(f"id -u; exec -a {arena.tag} sleep {5 * arenas.STRETCH}",
                          "--timeout-ms", round(3000 * arenas.STRETCH))
    command.wait_for("\n")
    end = time.monotonic() + 5 * arenas.STRETCH
    found = []
    while not found and time.monotonic() < end:
        time.sleep(0.05)
        for pid in arena.alive():
            with open(f"/proc/{pid}/comm", encoding="ascii") as file:
                if file.read().strip() in ("sleep", arena.tag[:15]):
                    found.append(pid)
    if not found:
        raise Inconclusive("there is no such process")
    with open(f"/proc/{found[0]}/status", encoding="ascii") as file:
        ids = re.findall(r"^[UG]id:\s+(.*)", file.read(), re.M)
    expect(arena, not any("0" in line.split() for line in ids), f"its ids are {ids}")
    expect(arena, arenas.ROOT or arena.sandbox, "it is the host's own user")


# ---- files


@scenario("P40", "a link exchanged while it is followed")
def race(arena):
    arena.run(arena.acts(f"race {arena.outside} secret raced"))


READ_ONLY = [
    "open-write {O}/public",
    "write {O}/public more",
    "truncate {O}/public",
    "open-write {O}/fifo",
    "link {O}/public linked",
    "link-fd {O}/public linked-by-fd",
    "rename {O}/public renamed",
    "exchange {O}/public2 attack2",
    "chmod {O}/public2",
    "utime {O}/public2",
    "create {O}/new",
    "mkdir {O}/new-dir",
    "symlink x {O}/new-link",
    "unlink {O}/public2",
    "suid-chmod {O}/public2",
]


def _read_only(words):
    # Not below /tmp, which is the command's own: there only mounts tell the two apart.
    @scenario(
        "X17",
        f"what may be read is only read: {words.format(O='DIR')}",
        prefix="/var/tmp/agentd-attack-",
    )
    def attack(arena):
        outside = arena.make_dir(os.path.join(arena.base, "readable"), 0o777)
        for name in ("public", "public2"):
            arena.write(os.path.join(outside, name), "public\n", 0o666)
        arena.write("attack2", "mine")
        os.mkfifo(os.path.join(outside, "fifo"), 0o666)
        reader = os.open(os.path.join(outside, "fifo"), os.O_RDWR | os.O_NONBLOCK)
        arena.cleanup(os.close, reader)
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(os.path.join(outside, "socket"))
            listener.listen()
            os.chmod(os.path.join(outside, "socket"), 0o777)
            arena.run(
                f"grep -q public {outside}/public || exit 9\n"
                + arena.acts(words.format(O=outside)),
                "--read",
                outside,
            )


for _words in READ_ONLY:
    _read_only(_words)


@scenario("X17", "no device in what may be read", root=True)
def device_to_read(arena):
    if not arenas.ROOT:
        raise Cannot("only root can make a device")
    outside = arena.make_dir(os.path.join(arena.base, "readable"), 0o777)
    for path in (os.path.join(outside, "zero"), arena.path("zero")):
        os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 5))
        os.chmod(path, 0o666)
    arena.run(
        f"for zero in zero {outside}/zero; do head -c 4 $zero > out 2>/dev/null &&"
        " [ $(stat -c %s out) = 4 ] && echo BREACH $zero; done; :",
        "--read",
        outside,
    )


@scenario("X22", "a file cannot be run where the policy does not say so")
def not_executable(arena):
    policy = _policy(arena, execute=[])
    arena.run(
        "cp /bin/true run && chmod 755 run && ./run && echo BREACH ./run\n"
        "/lib64/ld-linux-x86-64.so.2 ./run && echo BREACH by the loader\n:",
        "--policy",
        policy,
    )


def _policy(arena, execute, **members):
    system = [f"/{name}" for name in "usr bin sbin lib lib32 lib64 libx32".split()]
    system = [path for path in system if os.path.exists(path)]
    paths = {"read": system + [arena.work], "write": [arena.work], "exec": system + execute}
    policy = {
        "min_isolation": "sandbox" if arena.sandbox else "none",
        "paths": paths,
        **members,
    }
    return arena.write(os.path.join(arena.own, "policy.json"), json.dumps(policy))


DENIED = {
    "directly": "cat {D}/sub/hidden/secret",
    "by /proc/self/root": "cat /proc/self/root{D}/sub/hidden/secret",
    "by a relative path": "cd {D}; cat sub/hidden/secret sub/../sub/hidden/secret",
    "after its parent was renamed": "mv {D}/sub {D}/other; cat {D}/other/hidden/secret",
    "after its parent was exchanged": "mkdir {D}/e; ./attack exchange {D}/sub {D}/e >&2;"
    " cat {D}/e/hidden/secret",
    "after it was renamed": "mv {D}/sub/hidden {D}/shown; cat {D}/shown/secret",
    "by a second name": "ln {D}/sub/hidden/secret {D}/shown; cat {D}/shown",
    "by a symbolic link": "ln -s sub/hidden {D}/link; cat {D}/link/secret",
    "by a copy": "cp -r {D}/sub {D}/copy; cat {D}/copy/hidden/secret",
    "by an open directory": "exec 5<{D}/sub; cat /proc/self/fd/5/hidden/secret",
    "by another mount": "./attack mount-bind {D}/sub >/dev/null; cat {D}/sub{D}/sub/hidden/secret",
}


def _denied(how, command):
    @scenario("X23", f"a denied path is hidden: {how}", control=how != "by another mount" or
              "a bound root would stay")
    def attack(arena):
        shared = arena.make_dir(os.path.join(arena.base, "shared"), 0o777)
        arena.make_dir(os.path.join(shared, "sub"), 0o777)
        hidden = arena.make_dir(os.path.join(shared, "sub/hidden"), 0o777)
        arena.write(os.path.join(hidden, "secret"), arena.token, 0o666)
        arena.run(
            f"echo x > {shared}/may-write || exit 9\n" + command.format(D=shared),
            "--write",
            shared,
            "--read",
            shared,
            "--deny",
            hidden,
        )
        if not arena.sandbox:
            return
        path = os.path.join(hidden, "secret")
        expect(arena, os.path.exists(path), "what is denied was moved")
        expect(arena, os.path.exists(os.path.join(shared, "may-write")), "it may not write")


for _how, _command in DENIED.items():
    _denied(_how, _command)


@scenario("X23", "a denied file and directory in the work directory")
def denied_in_workdir(arena):
    arena.write("private.txt", arena.token, 0o666)
    arena.write(os.path.join(arena.make_dir("private"), "secret"), arena.token)
    arena.run(
        "cat private.txt private/secret; mv private.txt shown; cat shown;"
        " mv private other; cat other/secret; ./attack link private.txt shown2 >/dev/null;"
        " cat shown2; echo x > private.txt",
        "--deny",
        arena.path("private.txt"),
        "--deny",
        arena.path("private"),
    )
    expect(arena, arena.read("private.txt") == arena.token, "a denied file was changed")


@scenario("X23", "a denied directory below a system directory")
def denied_system(arena):
    arena.run(
        "[ -n \"$(ls -A /usr/share/doc 2>/dev/null)\" ] && echo BREACH; :",
        "--deny",
        "/usr/share/doc",
    )


@scenario("L08", "the work directory is replaced by a link while the command runs")
def workdir_replaced(arena):
    command = arena.start(
        f"echo begun; sleep 0.8; echo x > {arena.work}/planted; cat {arena.work}/secret; echo over"
    )
    command.wait_for("begun")
    os.rename(arena.work, arena.work + "-away")
    os.symlink(arena.outside, arena.work)
    outcome = command.finish()
    expect(arena, b"over" in outcome.out, f"the command was lost: {outcome}")


@works("L08", "the work directory is removed while the command runs")
def workdir_removed(arena):
    command = arena.start("echo begun; sleep 0.5; echo x > new; echo over")
    command.wait_for("begun")
    subprocess.run(["rm", "-rf", arena.work], check=False)
    outcome = command.finish()
    expect(arena, b"over" in outcome.out and outcome.cause == "exited", str(outcome))


@scenario("L08", "the work directory is unmounted while the command runs", root=True)
def workdir_unmounted(arena):
    if not arenas.ROOT:
        raise Cannot("only root can mount")
    # Not a tmpfs, which cannot map ids before Linux 6.3.
    mounted, other = arena.make_dir("mounted"), arena.make_dir("other")
    words, paths = arena.options(["--workdir", mounted])
    command = (
        f"touch begun; sleep {0.4 * arenas.STRETCH}; echo x > {mounted}/planted; "
        f"cat {mounted}/secret; echo over"
    )
    start = time.monotonic()
    done = subprocess.run(
        ["unshare", "--mount", "--propagation", "private", "bash", "-c",
         f'cp {arena.secret} {mounted}/secret; mount --bind {other} {mounted} && '
         f'{{ (until [ -e {other}/begun ]; do sleep 0.05; done; umount -l {mounted}) & '
         '"$@"; status=$?; kill $! 2>/dev/null; exit $status; }', "-"] + words + ["--", command],
        cwd=arena.base, env=arena.environment(), stdin=subprocess.DEVNULL,
        capture_output=True, timeout=arenas.GUARD_SECONDS, check=False,
    )
    outcome = arena.outcome(done.returncode, done.stdout, done.stderr, paths, start)
    if b"over" not in outcome.out:
        raise Inconclusive(str(outcome))
    expect(arena, not os.path.exists(os.path.join(mounted, "planted")), "it wrote beneath")


@works("L09", "work directories that are none end in an error")
def workdir_bad(arena):
    for path in ("missing", "attack", "attack/below", "loop"):
        if path == "loop":
            os.symlink("loop", arena.path("loop"))
        outcome = arena.run("echo ran", "--workdir", arena.path(path), alive=False)
        expect(arena, b"ran" not in outcome.out and outcome.code in (125, 126), str(outcome))
    if not arenas.ROOT:
        closed = arena.make_dir("closed", 0)
        outcome = arena.run("echo ran > file", "--workdir", closed, alive=False)
        expect(arena, outcome.code != 0, str(outcome))


@scenario("L10", "a work directory that an earlier command made a link")
def workdir_link(arena):
    os.symlink(arena.outside, arena.path("sub"))
    arena.run("cat secret; echo x > planted", "--workdir", arena.path("sub"), alive=False)


@scenario("L10", "a work directory below a link that an earlier command made")
def workdir_below_link(arena):
    below = arena.make_dir(os.path.join(arena.outside, "below"), 0o777)
    arena.write(os.path.join(below, "secret"), arena.token)
    arena.outside_changed()
    os.symlink(arena.outside, arena.path("sub"))
    arena.run("cat secret; echo x > planted", "--workdir", arena.path("sub/below"), alive=False)


@scenario("L11", "a path of the policy that an earlier command made a link")
def policy_link(arena):
    os.symlink(arena.outside, arena.path("data"))
    for option in ("--read", "--write"):
        arena.run(
            f"cat data/secret {arena.outside}/secret; echo x > data/planted",
            option,
            arena.path("data"),
            alive=False,
        )


@works("L10", "a work directory that the operator gave as a link")
def workdir_operator_link(arena):
    link = os.path.join(arena.base, "link")
    os.symlink(arena.work, link)
    outcome = arena.run("echo x > made", "--workdir", link, alive=False)
    if outcome.status == "ok":
        expect(arena, os.path.exists(arena.path("made")), "it worked elsewhere")
    else:
        expect(arena, outcome.code in (125, 126) and outcome.result.get("error"), str(outcome))


@works("X24", "a descriptor of the helper is no work directory")
def workdir_descriptor(arena):
    for fd in range(3, 14):
        for process in ("self", "thread-self"):
            outcome = arena.run(
                "pwd; ls ../../../..", "--workdir", f"/proc/{process}/fd/{fd}", alive=False
            )
            expect(arena, outcome.code in (125, 126), f"descriptor {fd}: {outcome}")


@scenario("X24", "the helper is no interpreter of a script")
def interpreter(arena):
    arena.write("script", "#!/proc/self/exe\n", 0o755)
    # One word would be a script for the shell, and this its interpreter.
    outcome = arena.run("", argv=["./script", "x"], alive=False)
    expect(arena, outcome.cause == "spawn" or outcome.code == 126, f"it was started: {outcome}")


# ---- protected names

CHANGES = {
    "a hook is written": "echo evil > .git/hooks/pre-commit",
    "a hook is changed": "echo evil >> .git/hooks/mine",
    "a hook is removed": "rm -f .git/hooks/mine",
    "a hook is made executable": "chmod 755 .git/hooks/mine",
    "hooks are removed": "rm -rf .git/hooks",
    "hooks are renamed": "mv .git/hooks .git/other; mkdir .git/hooks;"
    " cp evil .git/hooks/pre-commit",
    "the configuration is appended to": "cat evil >> .git/config",
    "the configuration is set": "git config core.fsmonitor evil",
    "the configuration is replaced": "cp evil new; mv -f new .git/config",
    "the configuration is exchanged": "./attack exchange .git/config evil >&2",
    "the configuration has a second name": "ln .git/config alias; cat evil >> alias",
    "the configuration is a link": "ln -sf ../evil .git/config",
    "the repository is renamed": "mv .git .old && cp -r .old .git && cp evil .git/hooks/pre-commit",
    "the repository is exchanged": "mkdir other other/hooks; ./attack exchange .git other >&2",
    "the repository is removed": "rm -rf .git 2>/dev/null; mkdir -p .git/hooks;"
    " cp evil .git/hooks/pre-commit",
    "by another path": 'cd .git/objects; cat ../../evil > ../hooks/pre-commit;'
    ' cat ../../evil >> "/proc/self/cwd/../config"',
    "by the root of the process": 'cp evil "/proc/self/root$PWD/.git/hooks/pre-commit"',
    "by an open directory": "exec 5<.git; cp evil /proc/self/fd/5/hooks/pre-commit",
    "a start-up file is emptied": ": > .bashrc",
    "a start-up file is removed": "rm -f .bashrc",
    "a start-up file is replaced": "mv -f evil .bashrc",
    "a start-up file is a link": "ln -sf evil .bashrc",
    "a start-up file loses its mode": "chmod 000 .bashrc",
    "a start-up file is exchanged": "./attack exchange .bashrc evil >&2",
    "by a shell's history": "HISTFILE=.bashrc bash -ic 'history -s evil; history -w .bashrc'",
}


def _repository(arena):
    """A repository with a hook, and a start-up file; what they are, to compare."""
    done = subprocess.run(
        ["git", "init", "-q", arena.work],
        env={"PATH": os.environ["PATH"], "HOME": arena.own, "GIT_CONFIG_NOSYSTEM": "1"},
        check=False,
        capture_output=True,
    )
    if done.returncode != 0:
        raise Cannot(f"git does not work: {done.stderr!r}")
    arena.write(".git/hooks/mine", "#!/bin/sh\n", 0o644)
    arena.write(".bashrc", "# mine\n")
    arena.write("evil", "[core]\n\tfsmonitor = evil\n", 0o755)
    return _protected(arena)


def _protected(arena):
    found = {}
    for name in (".git/hooks", ".git/config", ".bashrc", ".git"):
        path = arena.path(name)
        try:
            info = os.lstat(path)
        except OSError:
            found[name] = None
            continue
        found[name] = (stat.S_IFMT(info.st_mode), info.st_mode & 0o7777, info.st_ino)
        if stat.S_ISREG(info.st_mode) and info.st_mode & 0o400:
            found[name] += (arena.read(name),)
        if name == ".git/hooks" and stat.S_ISDIR(info.st_mode):
            for hook in sorted(os.listdir(path)):
                info = os.lstat(os.path.join(path, hook))
                found[f"hook {hook}"] = (info.st_mode, info.st_size)
    return found


def _protect(title, command):
    @scenario("X25", f"protected names: {title}")
    def attack(arena):
        before = _repository(arena)
        arena.run(command)
        after = _protected(arena)
        for name in sorted(set(before) | set(after)):
            if before.get(name) != after.get(name):
                arena.breach(f"{name} was {before.get(name)}, is {after.get(name)}")


for _title, _command in CHANGES.items():
    _protect(_title, _command)


@scenario("X25", "protected names: below a directory that is writable, too")
def protect_below(arena):
    before = _repository(arena)
    arena.run(
        "echo evil > .git/hooks/pre-commit; cat evil >> .git/config; mv .git .old",
        "--write",
        arena.base,
        "--read",
        arena.base,
        "--deny",
        arena.outside,
        "--deny",
        arena.own,
    )
    expect(arena, _protected(arena) == before, "they have changed")


APPEAR = {
    "a start-up file": (".bashrc", "cp evil .bashrc"),
    "a link": (".profile", "ln -s /etc/passwd .profile"),
    "a directory": (".zshrc", "mkdir -p .zshrc/deep; echo x > .zshrc/deep/file"),
    "a pipe": (".bash_login", "mkfifo .bash_login"),
    "hooks": (".git/hooks", "mkdir .git/hooks; cp evil .git/hooks/pre-commit"),
    "a configuration": (".git/config", "cp evil .git/config"),
    "where nothing may be written": (".bashrc", "cp evil .bashrc; chmod 555 ."),
    "below what may not be entered": (".git/config", "cp evil .git/config; chmod 000 .git"),
    "by a process that stays": (
        ".bashrc",
        "(setsid bash -c 'while :; do cp evil .bashrc; sleep 0.01; done' &) ;"
        f" sleep {0.2 * arenas.STRETCH}",
    ),
    "before a timeout": (".bashrc", "cp evil .bashrc; sleep 30"),
    "before it is killed": (".bashrc", "cp evil .bashrc; kill -9 $$"),
}


def _appear(title, name, command):
    @scenario("X26", f"protected names appear: {title}")
    def attack(arena):
        arena.write("evil", "evil", 0o755)
        for directory in ("objects", "refs"):
            arena.make_dir(os.path.join(".git", directory))
        arena.write(".git/HEAD", "ref: refs/heads/main\n")
        outcome = arena.run(command, "--timeout-ms", round(1500 * arenas.STRETCH))
        for path in (".git", "."):
            os.chmod(arena.path(path), 0o755)
        if os.path.lexists(arena.path(name)):
            arena.breach(f"{name} is there, {len(outcome.denied)} events of denial")
        elif arena.sandbox:
            expect(arena, outcome.denied, f"nothing was reported: {outcome}")
            expect(arena, name in "".join(outcome.denied), f"{name} is not in {outcome.denied}")
            expect(arena, outcome.result.get("denied_count", 0) > 0, "denied_count is 0")


for _title, (_name, _command) in APPEAR.items():
    _appear(_title, _name, _command)


@scenario("X26", "what is moved aside is not outside", control="nothing is moved there")
def aside_outside(arena):
    hooks = arena.make_dir(os.path.join(arena.outside, "hooks"), 0o777)
    arena.write(os.path.join(hooks, "pre-commit"), "the host's")
    arena.write(os.path.join(arena.outside, "config"), "the host's")
    arena.outside_changed()
    arena.run(f"ln -s {arena.outside} .git; ls -la .git/")


@scenario("X26", "a name to move to that is taken", control="nothing is moved there")
def aside_taken(arena):
    arena.write("evil", "evil")
    first = arena.run("cp evil .bashrc")
    names = [name for name in os.listdir(arena.work) if name not in ("attack", "evil")]
    expect(arena, first.denied, f"nothing was moved aside: {first}")
    # The next one finds it there, and what looks like its successors.
    for name in names:
        arena.run(f"rm -rf '{name}'; ln -s {arena.outside}/taken '{name}'; cp evil .bashrc")
        expect(arena, not os.path.lexists(arena.path(".bashrc")), ".bashrc is there")


@works("X27", "git init, commit and clone")
def git_works(arena):
    commit = "git -c user.name=x -c user.email=x@example.org commit -q --allow-empty -m x"
    outcome = arena.run(
        f"set -e; git init -q .; {commit}; git init -q sub; (cd sub; {commit}; {commit});"
        " git clone -q sub copy; git -C copy log --oneline | wc -l; git status -s | wc -l;"
        " git config user.name me; git branch other; git checkout -q other"
    )
    expect(arena, outcome.status == "ok" and outcome.out.startswith(b"2\n"), str(outcome))
    expect(arena, os.path.exists(arena.path("copy/.git/config")), "there is no clone")


@works("X27", "git commit in a repository with protected names")
def git_commit_works(arena):
    before = _repository(arena)
    outcome = arena.run(
        "set -e; git add evil; git -c user.name=x -c user.email=x@example.org commit -q -m x;"
        " git log --oneline | wc -l; git branch other; git checkout -q other; git gc -q"
    )
    expect(arena, outcome.status == "ok" and outcome.out.strip() == b"1", str(outcome))
    after = _protected(arena)
    expect(arena, before == after, f"protected names have changed: {before} {after}")


# ---- work directories that an attacker has prepared

HOSTILE = {
    ".git is a link to outside": (
        lambda arena: os.symlink(arena.outside, arena.path(".git")),
        "cat .git/hooks/secret .git/config",
    ),
    ".git/hooks is a link to outside": (
        lambda arena: (arena.make_dir(".git"), os.symlink(
            os.path.join(arena.outside, "hooks"), arena.path(".git/hooks"))),
        "cat .git/hooks/secret",
    ),
    ".bashrc is a link to outside": (
        lambda arena: os.symlink(arena.secret, arena.path(".bashrc")),
        "cat .bashrc",
    ),
    ".git/config is a link to outside": (
        lambda arena: (arena.make_dir(".git"), os.symlink(
            arena.secret, arena.path(".git/config"))),
        "cat .git/config; git config x.y z",
    ),
}

ODD = {
    ".bashrc is a pipe": lambda arena: os.mkfifo(arena.path(".bashrc")),
    ".git/config is a pipe": lambda arena: (
        arena.make_dir(".git"), os.mkfifo(arena.path(".git/config"))),
    ".git is a file": lambda arena: arena.write(".git", "gitdir: /nonexistent\n"),
    ".git/hooks is a file": lambda arena: (
        arena.make_dir(".git"), arena.write(".git/hooks", "x")),
    ".git cannot be entered": lambda arena: (
        arena.make_dir(".git/hooks"), arena.make_dir(".git", 0)),
    ".bashrc is a directory": lambda arena: arena.make_dir(".bashrc/x"),
    ".bashrc is a loop of links": lambda arena: os.symlink(".bashrc", arena.path(".bashrc")),
    ".bashrc is a socket": lambda arena: socket.socket(socket.AF_UNIX).bind(
        arena.path(".bashrc")),
}


def _hostile(title, prepare, command):
    @scenario("X28", f"hostile work directory: {title}")
    def attack(arena):
        hooks = arena.make_dir(os.path.join(arena.outside, "hooks"), 0o777)
        arena.write(os.path.join(hooks, "secret"), arena.token)
        arena.write(os.path.join(arena.outside, "config"), arena.token)
        arena.outside_changed()
        prepare(arena)
        outcome = arena.run(command, alive=False)
        expect(arena, outcome.seconds < 5 * arenas.STRETCH, f"it took {outcome.seconds:.1f} s")


def _odd(title, prepare):
    @works("X28", f"odd work directory: {title}")
    def attack(arena):
        prepare(arena)
        outcome = arena.run("echo alive", alive=False)
        expect(arena, outcome.seconds < 5 * arenas.STRETCH, f"it took {outcome.seconds:.1f} s")
        if b"alive" not in outcome.out:
            expect(arena, outcome.code in (125, 126) and outcome.result.get("error"), str(outcome))


for _title, (_prepare, _command) in HOSTILE.items():
    _hostile(_title, _prepare, _command)
for _title, _prepare in ODD.items():
    _odd(_title, _prepare)


@works("X28", "work directories with strange names")
def strange_names(arena):
    for name in ("a b", "new\nline", "tab\t\\040back", "-dash", "ünïcode", "colon:comma,", "%s%n",
                 "x" * 200, "/".join(["deep" * 10] * 60)):
        path = arena.make_dir(name)
        outcome = arena.run("echo x > made; pwd > where", "--workdir", path)
        expect(arena, os.path.exists(os.path.join(path, "made")), f"{name!r}: {outcome}")


@works("X29", "what is made belongs to the work directory's owner")
def ownership(arena):
    _ownership(arena)


@works("X29", "what is made belongs to the work directory's owner, another user",
       workdir_owner=1234 if arenas.ROOT else None)
def ownership_of_other(arena):
    _ownership(arena)


def _ownership(arena):
    owner = os.stat(arena.work).st_uid
    arena.write("given", "x", 0o600)
    os.chown(arena.path("given"), owner, owner)
    outcome = arena.run(
        "set -e; id -u; stat -c %u . given; cat given; echo y > given; echo x > made; mkdir dir;"
        " echo x > dir/below; ln made second; ln -s made link; mv made moved; rm second"
    )
    expect(arena, outcome.status == "ok", str(outcome))
    uids = set(outcome.out.split()[:3])
    expect(arena, not arena.sandbox or uids == {b"1000"}, f"inside the users are {uids}")
    for name in ("given", "moved", "dir", "dir/below", "link"):
        path = arena.path(name)
        if not os.path.lexists(path):
            arena.breach(f"{name} is not there")
        elif arena.sandbox and os.lstat(path).st_uid != owner:
            arena.breach(f"{name} belongs to {os.lstat(path).st_uid}, not {owner}")


# ---- processes


@scenario("P11", "the launcher is killed or stopped")
def kill_launcher(arena):
    outcome = arena.run(
        "kill -9 $PPID 2>/dev/null; kill -STOP $PPID 2>/dev/null; kill -9 1; sleep 0.3; echo END"
        if arena.sandbox
        # Not before it has told of the start.
        else "sleep 0.3; kill -9 $PPID; sleep 0.3; echo END"
    )
    expect(arena, b"END" in outcome.out and outcome.cause == "exited", f"lost: {outcome}")


@scenario("X08", "every signal to the sandbox's first process")
def all_signals(arena):
    target = 1 if arena.sandbox else arena.victim.pid
    outcome = arena.run(f"./attack all-signals {target} >&2; sleep 0.2; echo END; exit 7")
    expect(arena, outcome.code == 7 and b"END" in outcome.out, f"it was ended: {outcome}")
    # What is not allowed to do so is said by the tool; that nothing came of it counts.
    if arena.sandbox:
        arena.breaches[:] = [text for text in arena.breaches if "all-signals" not in text]


@scenario("X16", "everything that can be signalled is killed", control="it would be the host")
def kill_all(arena):
    pid = arena.victim.pid
    outcome = arena.run("kill -9 -1; kill -9 $$")
    expect(arena, outcome.cause in ("exited", "signaled"), f"not true: {outcome}")
    expect(arena, arena.victim.pid == pid and arena.victim.poll() is None, "the victim is dead")


@scenario("X16", "everything that can be signalled is stopped", control="it would be the host")
def stop_all(arena):
    arena.victim  # pylint: disable=pointless-statement
    outcome = arena.run("(sleep 50 &); kill -STOP -1; kill -STOP $$",
                        "--timeout-ms", round(800 * arenas.STRETCH))
    expect(arena, outcome.status == "timeout" and outcome.seconds < 5 * arenas.STRETCH, str(outcome))


@scenario("X08", "limits and priority of the sandbox's first process", control="see the acts")
def slow_init(arena):
    outcome = arena.run(
        "prlimit --pid 1 --nofile=0 --cpu=1 --as=1 2>/dev/null; renice -n 19 -p 1;"
        " chrt -i -p 0 1; taskset -p 1 1; (setsid sleep 50 &); echo END; exit 5"
    )
    expect(arena, outcome.code == 5 and outcome.seconds < 5 * arenas.STRETCH, str(outcome))


@scenario("X30", "the launcher dies, and so does everything")
def launcher_dies(arena):
    text = (
        f"(setsid bash -c 'trap \"\" TERM HUP; exec -a {arena.tag} sleep 60' >/dev/null 2>&1 &);"
        " echo begun; sleep 30"
    )
    if arena.sandbox:
        process = arena.start(text)
        process.wait_for("begun")
    else:
        process = subprocess.Popen(["bash", "-c", text], stdout=subprocess.PIPE)
        process.stdout.readline()
        arena.cleanup(process.stdout.close)
    time.sleep(0.2)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    expect(arena, arena.gone(within=2), "a process has survived the launcher")


# ---- other sandboxes


@scenario("X31", "commands of one runner do not see each other")
def neighbours(arena):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    name = f"attack-{arena.tag}"
    arena.cleanup(_remove, f"/tmp/{name}", f"/dev/shm/{name}")
    shutil.copy(arenas.VICTIM, arena.path("victim"))
    key, queue = 1 + secrets.randbelow(1 << 30), f"/attack-{name}"
    one = (
        f"for d in /tmp /dev/shm $HOME; do echo BREACH > $d/{name}; done;"
        f" ./attack listen {port} 2500 & ./attack listen-abstract {name} 2500 &"
        f" sleep 2 | KEY={arena.token} ./victim {arena.token} attack {key} {queue} &"
        " sleep 0.4; touch ready; sleep 2; wait"
    )
    # What it looks for is in its own arguments, too, but for the text that is backwards.
    other = (
        "for i in $(seq 100); do [ -e ready ] && break; sleep 0.05; done;"
        f" cat /tmp/{name} /dev/shm/{name} $HOME/{name} | head -c 6; "
        + arena.acts(
            f"connect 127.0.0.1 {port}",
            f"connect-abstract {name}",
            f"shm {key}",
            f"queue {queue}",
            f"see {arena.token[::-1]}",
        )
    )
    arena.crowd([one, other])


def _remove(*paths):
    for path in paths:
        try:
            os.unlink(path)
        except OSError:
            pass


@scenario("X31", "a command finds nothing of the one before")
def successors(arena):
    name = f"attack-{arena.tag}"
    arena.cleanup(_remove, f"/tmp/{name}", f"/dev/shm/{name}", f"/var/tmp/{name}")
    arena.crowd(
        [
            f"for d in /tmp /dev/shm /var/tmp $HOME; do echo BREACH > $d/{name}; done;"
            " (setsid sleep 2 >/dev/null 2>&1 &)",
            f"for d in /tmp /dev/shm /var/tmp $HOME; do cat $d/{name}; done;"
            " pgrep -x sleep >/dev/null && echo BREACH a process",
        ],
        one_by_one=True,
    )


@scenario("X31", "two launchers, two sandboxes")
def two_launchers(arena):
    name = f"attack-{arena.tag}"
    arena.cleanup(_remove, f"/tmp/{name}", f"/dev/shm/{name}")
    other_work = arena.make_dir(os.path.join(arena.base, "other"), 0o777)
    arena.write(os.path.join(other_work, "file"), arena.token)
    one = arena.start(
        f"for d in /tmp /dev/shm $HOME; do cat file > $d/{name}; done; echo begun;"
        f" exec -a {arena.token} sleep 2",
        "--workdir",
        other_work,
    )
    one.wait_for("begun")
    arena.run(
        f"cat /tmp/{name} /dev/shm/{name} {other_work}/file; ./attack see {arena.token[::-1]}"
    )
    one.finish()


# ---- network


@scenario("P36", "the host's sockets are not listed")
def sockets_listed(arena):
    listeners = arena.listeners
    outcome = arena.run("cat /proc/net/tcp /proc/net/udp /proc/net/unix; ls /proc/net/netlink")
    text = outcome.out.decode(errors="replace")
    for name in ("tcp4", "udp4"):
        expect(arena, f":{listeners.port(name):04X} " not in text, f"{name} is listed")
    expect(arena, listeners.abstract not in text, "an abstract socket is listed")


@scenario("P37", "datagrams to the host")
def datagrams(arena):
    listeners = arena.listeners
    arena.run(
        arena.acts(
            f"send 127.0.0.1 {listeners.port('udp4')} x", f"send ::1 {listeners.port('udp6')} x"
        )
        + " >/dev/null"
    )


@scenario("P38", "a port opened inside is not reached from the host")
def port_inside(arena):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = arena.start(arena.acts(f"listen {port} 1500"))
    try:
        command.wait_for("listening")
    except Inconclusive:
        if not arena.sandbox:
            raise
    with socket.socket() as client:
        client.settimeout(1)
        try:
            client.connect(("127.0.0.1", port))
            client.send(b"x")
        except OSError:
            pass
        command.finish()


def _full_network(arena, *acts):
    outcome = arena.run(arena.acts(*acts), "--net", "full", alive=False)
    if arena.live.encode() not in outcome.out and outcome.status == "denied":
        return  # this network is not to be had: nothing was run
    expect(arena, outcome.cause == "exited", str(outcome))


@scenario("X32", "with all of the network, still no raw socket")
def full_network_raw(arena):
    _full_network(arena, "socket 16 3 9", "netlink", "families", f"kill {arena.victim.pid} 0")


@scenario("X32", "with all of the network, still no abstract socket")
def full_network_abstract(arena):
    if arenas.LANDLOCK < 6:
        raise Cannot("needs version 6 of Landlock")
    listeners = arena.listeners
    _full_network(arena, f"connect-abstract {listeners.abstract}",
                  f"send-abstract {listeners.abstract_dgram}")


# ---- resources


@scenario("P43", "no more descriptors than the limit", root=False)
def descriptor_storm(arena):
    options = ["--open-files", "256"] if arena.sandbox else []
    arena.run(arena.acts("descriptors 2000"), *options)


@scenario("P44", "no larger file than the limit")
def large_file(arena):
    options = ["--file-bytes", "64M"] if arena.sandbox else []
    arena.run(arena.acts("big-file big 128"), *options)


@scenario("P44", "a file of 3 GiB with no limit given")
def huge_file(arena):
    arena.run(arena.acts("big-file big 3072"))


@scenario("R01", "a storm of processes", alone=True)
def fork_storm(arena):
    options = ["--pids", "64"] if arena.sandbox else ["--pids", "2000"]
    command = arena.start(
        f"for i in $(seq 200); do (exec -a {arena.tag} sleep {9 * arenas.STRETCH}) & "
        "done 2>/dev/null; wait",
        "--timeout-ms",
        round(4000 * arenas.STRETCH),
        *options,
    )
    most = 0
    while command.poll() is None:
        most = max(most, len(arena.alive()))
        time.sleep(0.1)
    outcome = command.finish()
    # Without a cgroup a limit of the user's holds off the most, which grows when another
    # process of that user ends, and the tree is counted every now and then: what
    # got past it is ended.
    expect(arena, most <= 64 + 8 or outcome.cause == "pids", f"{most} processes, {outcome}")
    expect(arena, outcome.seconds < 9 * arenas.STRETCH, f"it took {outcome.seconds:.1f} s")
    if arena.sandbox:
        expect(arena, outcome.result, "there is no result")


@scenario("R01", "a bomb of processes ends with its time", control="it would be the host",
          alone=True)
def fork_bomb(arena):
    outcome = arena.run("f() { f | f & }; f; sleep 30", "--pids", 64,
                        "--timeout-ms", round(1000 * arenas.STRETCH))
    expect(arena, outcome.status != "ok" and outcome.seconds < 6 * arenas.STRETCH, str(outcome))


@scenario("R02", "memory", alone=True)
def memory(arena):
    options = ["--mem", "128M"] if arena.sandbox else []
    outcome = arena.run(
        "/usr/bin/python3 -c 'x = b\"x\" * (300 << 20); print(\"BREACH\", len(x) >> 20, \"MiB\")'",
        *options,
    )
    if arena.sandbox:
        expect(arena, outcome.cause == "memory" or outcome.code not in (0, None), str(outcome))


@scenario("R02", "memory that belongs to no process", alone=True)
def unowned_memory(arena):
    if not arena.sandbox:
        arena.run(arena.acts("fill 300"))
        return
    outcome = arena.run(
        arena.acts("fill 300 /tmp /dev/shm $HOME /var/tmp /run /home / /etc /dev /var"),
        "--mem",
        "128M",
    )
    expect(arena, outcome.result, "there is no result")
    if any(
        layer["layer"] == "memory" and layer["state"] == "degraded"
        for layer in outcome.result["receipt"]["layers"]
    ):
        raise Cannot("without a cgroup memory files are counted by nobody, and the receipt says so")


@scenario("R03", "a flood of output", alone=True)
def flood(arena):
    options = ["--output-bytes", "8M"] if arena.sandbox else []
    outcome = arena.run("head -c 100M /dev/zero", *options, plain=True)
    expect(arena, len(outcome.out) <= 9 << 20, f"{len(outcome.out)} bytes came")
    if arena.sandbox:
        expect(arena, outcome.result.get("truncated") is True, "it is not called truncated")


@works("R06", "orphans are reaped")
def zombies(arena):
    cycles = max(100, round(400 / arenas.STRETCH))
    outcome = arena.run(arena.acts(f"zombies {cycles}"), "--pids", 64)
    expect(arena, f"cycles {cycles}".encode() in outcome.out, str(outcome))


@scenario("R07", "a process of its own session does not survive")
def escapee(arena):
    outcome = arena.run(
        f"(setsid bash -c 'trap \"\" TERM; exec -a {arena.tag} sleep 60' >/dev/null 2>&1 &);"
        " sleep 0.2; echo x",
        plain=True,
    )
    expect(arena, outcome.seconds < 3 * arenas.STRETCH, f"it took {outcome.seconds:.1f} s")


@works("R08", "signals that are ignored", alone=True)
def ignored_signals(arena):
    outcome = arena.run("trap '' TERM INT HUP; sleep 100; sleep 100",
                        "--timeout-ms", round(500 * arenas.STRETCH))
    expect(arena, outcome.status == "timeout" and outcome.seconds < 4.5 * arenas.STRETCH, str(outcome))


@works("R09", "a command that stops itself")
def stopped(arena):
    outcome = arena.run("sleep 100 & kill -STOP $!; kill -STOP $$",
                        "--timeout-ms", round(500 * arenas.STRETCH))
    expect(arena, outcome.status == "timeout" and outcome.seconds < 4.5 * arenas.STRETCH, str(outcome))


@scenario("R10", "a share of the processor", alone=True)
def processor(arena):
    options = ["--cpu-ms-per-100ms", "30"] if arena.sandbox else []
    # Others may have the processors for a while, also those of other machines.
    for _ in range(1 if arena.sandbox else 5):
        outcome = arena.run("./attack spin 8 1500 >/dev/null; wait", *options, alive=False)
        if outcome.status == "denied" or outcome.code == 125:
            reason = (outcome.result.get("error") or {}).get("message")
            raise Cannot(f"no such limit here: {reason}")
        metrics = outcome.result["metrics"]
        share = metrics["cpu_ns"] / max(metrics["wall_ns"], 1)
        if share > 0.45:
            break
    layers = {layer["layer"]: layer["state"] for layer in outcome.result["receipt"]["layers"]}
    if arena.sandbox and share > 0.45 and layers.get("cgroup", layers.get("cpu")) != "enforced":
        raise Cannot("there are no usable control groups, and the receipt says so")
    expect(arena, share <= 0.45, f"{share:.2f} processors")


@scenario("R11", "/tmp, /dev/shm and HOME are not the host's")
def temporary_files(arena):
    names = [f"{place}/attack-{arena.tag}" for place in ("/tmp", "/dev/shm", "/var/tmp")]
    arena.cleanup(_remove, *names)
    arena.run(f"for f in {' '.join(names)} $HOME/attack-x; do head -c 1M /dev/zero > $f; done")
    for name in names:
        expect(arena, not os.path.exists(name), f"{name} is there")


@works("R14", "trees too deep to name")
def deep_trees(arena):
    outcome = arena.run(
        f"./attack deep /tmp 3000 , deep $HOME 3000 , deep {arena.work} 3000 >/dev/null; echo END"
    )
    expect(arena, b"END" in outcome.out and outcome.seconds < 10 * arenas.STRETCH, str(outcome))


@scenario("R15", "bytes written to storage", alone=True)
def written_bytes(arena):
    options = ["--io-bytes", "8M"] if arena.sandbox else []
    outcome = arena.run(
        "dd if=/dev/zero of=x bs=1M count=8 conv=fsync 2>/dev/null; sleep 1; rm x;"
        " dd if=/dev/zero of=y bs=1M count=64 oflag=dsync 2>/dev/null",
        *options,
    )
    size = sum(os.stat(arena.path(n)).st_size for n in "xy" if os.path.exists(arena.path(n)))
    expect(arena, size < 64 << 20, f"{size >> 20} MiB were written")
    if arena.sandbox:
        expect(arena, outcome.cause == "io", str(outcome))


@scenario("R16", "terminals of its own", alone=True)
def terminals(arena):
    before = len(os.listdir("/dev/pts"))
    command = arena.start(arena.acts("ptys 200 1500") + " >&2; echo END", stderr=subprocess.STDOUT)
    command.wait_for("ptys ")
    taken = len(os.listdir("/dev/pts")) - before
    master, slave = os.openpty()  # the host still can
    os.close(master)
    os.close(slave)
    command.finish()
    arena.breaches[:] = [text for text in arena.breaches if "ptys" not in text]
    expect(arena, taken < 100, f"{taken} terminals of the host were taken")


@works("R18", "bytes come as they are")
def bytes_unchanged(arena):
    outcome = arena.run(r"printf '\000\377\033]0;x\007\r\n'")
    expect(arena, outcome.out == b"\0\xff\x1b]0;x\x07\r\n", repr(outcome.out))


@works("R19", "output is not mixed")
def not_mixed(arena):
    said = arena.crowd([f"yes TAG{i:02} | head -c 200000" for i in range(12)])
    for i, part in enumerate(re.split(r"== \d+ ok 0 0\n", said)[1:]):
        words = set(part.split())
        expect(arena, len(part) == 200000 and {w[:3] for w in words} <= {"TAG", "TA", "T"} and
               f"TAG{i:02}" in words and len(words) <= 2, f"{i}: {sorted(words)[:5]}")


@scenario("R21", "no core files")
def core_files(arena):
    arena.run("ulimit -c unlimited; bash -c 'kill -SEGV $$'; :", plain=True)
    cores = [name for name in os.listdir(arena.work) if name.startswith("core")]
    if not arena.sandbox and not cores:
        raise Cannot("the host makes none in the work directory, or its limit is 0")
    expect(arena, not cores, f"there is {cores}")


CALLS = "reboot acct init-module finit-module delete-module kexec swapon"


@scenario("X33", "a call that only an attacker makes ends the command", control="see the acts")
def reported(arena):
    for words in CALLS.split():
        outcome = arena.run(f"{arena.acts(words)}; echo THE-END")
        expect(arena, b"THE-END" not in outcome.out, f"{words}: it lives on")
        expect(arena, outcome.status == "killed", f"{words}: {outcome}")
        expect(arena, outcome.result["limit"] == "seccomp", f"{words}: {outcome.result}")
        expect(arena, len(outcome.denied) == 1, f"{words}: {outcome.denied}")
        expect(arena, outcome.code == 128 + signal.SIGSYS, f"{words}: exit status {outcome.code}")


@scenario("R22", "timers")
def timers(arena):
    arena.run(arena.acts("timers 50000"), plain=True)


@scenario("X35", "even what may read everything does not see the host's processes")
def read_everything(arena):
    victim = arena.victim
    arena.run(
        arena.acts(
            f"proc-read {victim.pid} environ",
            f"proc-mem {victim.pid} {victim.address}",
            f"vm-read {victim.pid} {victim.address}",
            f"proc-list {victim.pid} root",
            f"kill {victim.pid} 0",
            f"see {arena.token[::-1]}",
            f"open-write {arena.secret}",
            f"create {arena.outside}/made",
            f"shm {victim.key}",
            "open-write /dev/kmsg",
            "exists /dev/mem",
            "push-own",
        ),
        "--read",
        "/",
    )


@works("R23", "the end of output is not the end", alone=True)
def end_of_output(arena):
    outcome = arena.run("exec 1>&- 2>&-; exec sleep 100",
                        "--timeout-ms", round(700 * arenas.STRETCH))
    expect(arena, outcome.status == "timeout" and 0.6 < outcome.seconds < 3 * arenas.STRETCH, str(outcome))


# ---- what must stay true


@works("L12", "10,000 arguments, and too many")
def arguments(arena):
    argv = ["/bin/sh", "-c", "echo $#", "sh"] + ["x"] * 10000
    outcome = arena.run("", argv=argv)
    expect(arena, outcome.out == b"10000\n", str(outcome))
    params = {"command": "echo " + "x" * 200000}
    path = arena.write(os.path.join(arena.own, "params.json"), json.dumps(params))
    words, paths = arena.options(["--params", path])
    start = time.monotonic()
    done = subprocess.run(
        words, cwd=arena.work, env=arena.environment(), stdin=subprocess.DEVNULL,
        capture_output=True, timeout=arenas.GUARD_SECONDS, check=False,
    )
    outcome = arena.outcome(done.returncode, done.stdout, done.stderr, paths, start)
    whole = outcome.status == "ok" and len(outcome.out) == 200001
    refused = outcome.code == 125 and not outcome.out
    expect(arena, whole or refused, str(outcome)[:500])


@works("L13", "a shell that is not there")
def no_shell(arena):
    context = arena.write(
        os.path.join(arena.own, "context.json"), json.dumps({"shell": ["no-such-shell", "-c"]})
    )
    outcome = arena.run("echo ran", "--context", context, alive=False)
    expect(arena, outcome.code == 125 and outcome.cause == "spawn", str(outcome))
    outcome = arena.run("no-such-command", alive=True)
    expect(arena, outcome.code == 127 and outcome.cause == "exited", str(outcome))


@works("L14", "exit codes and signals", alone=True)
def exits(arena):
    for first in range(0, 256, 64):
        said = arena.crowd([f"exit {code}" for code in range(first, first + 64)])
        for i in range(64):
            status = "ok" if first + i == 0 else "error"
            expect(arena, f"== {i} {status} {first + i} 0\n" in said, f"exit {first + i}")
    numbers = [n for n in range(1, 65) if n not in (17, 18, 19, 20, 21, 22, 23, 28, 32, 33)]
    if arena.sandbox:
        numbers.remove(25)  # there is a limit on the size of files, and it means that
    said = arena.crowd([f"ulimit -c 0; exec sh -c 'kill -{n} $$; sleep 1'" for n in numbers])
    found = dict(re.findall(r"^== (\d+) error -?\d+ (\d+)$", said, re.M))
    for i, number in enumerate(numbers):
        expect(arena, found.get(str(i)) == str(number), f"signal {number}: {found.get(str(i))}")


@works("X33", "the receipt names each layer as in force")
def receipt(arena):
    outcome = arena.run("echo x")
    layers = {layer["layer"]: layer for layer in outcome.result["receipt"]["layers"]}
    if not arena.sandbox:
        return
    expect(arena, outcome.result["backend"] == arenas.BACKEND, "another backend")
    for name in ("userns mountns pidns netns ipcns utsns landlock seccomp capabilities").split():
        state = layers.get(name, {}).get("state")
        expect(arena, state == "enforced", f"{name} is {state}: {layers.get(name)}")


@works("X33", "without a name the sandbox is chosen")
def chosen(arena):
    if not arena.sandbox:
        return
    words, paths = arena.options([], backend=False)
    words = [word for word in words if word not in ("--backend", "host", "--min-isolation", "none")]
    start = time.monotonic()
    done = subprocess.run(words + ["--", "echo x"], cwd=arena.work, env=arena.environment(),
                          stdin=subprocess.DEVNULL, capture_output=True, timeout=arenas.GUARD_SECONDS, check=False)
    outcome = arena.outcome(done.returncode, done.stdout, done.stderr, paths, start)
    expect(arena, outcome.result.get("backend") == "sandbox" and outcome.code == 0, str(outcome))


@works("X34", "no control group is left")
def control_groups(arena):
    command = arena.start(f"echo begun; exec -a {arena.tag} sleep {0.7 * arenas.STRETCH}")
    command.wait_for("begun")
    time.sleep(0.2 * arenas.STRETCH)
    groups = set()
    for pid in arena.alive():
        try:
            with open(f"/proc/{pid}/cgroup", encoding="ascii") as file:
                groups |= set(re.findall(r"/(agentd-\d+-\d+)", file.read()))
        except OSError:
            pass
    command.finish()
    if not groups:
        raise Cannot("there are no usable control groups")
    end, left = time.monotonic() + 3 * arenas.STRETCH, []
    while time.monotonic() < end:
        left = [path for path, dirs, _ in os.walk("/sys/fs/cgroup") if groups & set(dirs)]
        if not left:
            return
        time.sleep(0.1)
    arena.breach(f"{groups} in {left}")
