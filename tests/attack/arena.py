# SPDX-License-Identifier: MIT
"""Where an attack takes place: a fresh work directory, things outside of it that must
stay as they are and unread, and ways to run a command beside them.

AGENTD_RUN, ATTACK, VICTIM and CROWD name the programs. An arena has a mode:

    control   without a sandbox: what is attacked must suffer, or the attack proves
              nothing
    sandbox   in one: nothing may happen

Everything that must not happen is collected in Arena.breaches, whoever sees it: the
attack tool inside, a secret in the output, or what is found outside afterwards.
"""

import ctypes
import json
import os
import secrets
import select
import shutil
import signal
import socket
import stat
import subprocess
import tempfile
import threading
import time

RUN = os.environ["AGENTD_RUN"]
ATTACK = os.environ["ATTACK"]
VICTIM = os.environ["VICTIM"]
CROWD = os.environ["CROWD"]
BACKEND = os.environ.get("ATTACK_BACKEND", "sandbox")
ROOT = os.geteuid() == 0
MIB = 1 << 20
# How much slower than others this machine is.
STRETCH = float(os.environ.get("AGENTD_TEST_STRETCH", "1"))
GUARD_SECONDS = 60 * STRETCH  # no run may take so long
UNANSWERED = b"a path of the policy does not answer"

_libc = ctypes.CDLL(None, use_errno=True)
# landlock_create_ruleset(2) that asks for the version; negative: there is none.
LANDLOCK = _libc.syscall(444, None, 0, 1)


class Inconclusive(Exception):
    """The command did not run as it should have: that nothing happened proves nothing."""


class Cannot(Exception):
    """This machine cannot host the attack, with a sandbox or without."""


class Outcome:
    """What a run of agentd-run brought."""

    def __init__(self, code, out, err, result, events, seconds):
        self.code = code
        self.out = out
        self.err = err
        self.result = result or {}
        self.events = events
        self.seconds = seconds

    @property
    def status(self):
        return self.result.get("status")

    @property
    def cause(self):
        return self.result.get("cause")

    @property
    def denied(self):
        """Texts of the events that report something denied."""
        return [json.dumps(event) for event in self.events if event.get("event") == "denied"]

    def __str__(self):
        error = self.result.get("error") or {}
        return (
            f"exit {self.code}, {self.status} {self.cause} {error.get('message', '')} "
            f"after {self.seconds:.1f} s: {self.out[-300:]!r} {self.err[-300:]!r}"
        )


class Listeners:
    """TCP, UDP and Unix sockets of the host that nobody has a reason to reach."""

    def __init__(self, directory, name):
        self.path = os.path.join(directory, "socket")
        self.abstract = f"attack-{name}"
        self.abstract_dgram = f"attack-dgram-{name}"
        self.sockets = {}
        for name, family, kind, address in (
            ("tcp4", socket.AF_INET, socket.SOCK_STREAM, ("127.0.0.1", 0)),
            ("tcp6", socket.AF_INET6, socket.SOCK_STREAM, ("::1", 0)),
            ("udp4", socket.AF_INET, socket.SOCK_DGRAM, ("127.0.0.1", 0)),
            ("udp6", socket.AF_INET6, socket.SOCK_DGRAM, ("::1", 0)),
            ("tcp4_any", socket.AF_INET, socket.SOCK_STREAM, ("0.0.0.0", 0)),
            ("mptcp", socket.AF_INET, socket.SOCK_STREAM, ("127.0.0.1", 0)),
            ("path", socket.AF_UNIX, socket.SOCK_STREAM, self.path),
            ("abstract", socket.AF_UNIX, socket.SOCK_STREAM, "\0" + self.abstract),
            ("abstract_dgram", socket.AF_UNIX, socket.SOCK_DGRAM, "\0" + self.abstract_dgram),
        ):
            try:
                made = socket.socket(family, kind, 262 if name == "mptcp" else 0)
                made.bind(address)
                if kind == socket.SOCK_STREAM:
                    made.listen(16)
            except OSError:
                continue
            self.sockets[name] = made
        os.chmod(self.path, 0o777)

    def port(self, name):
        return self.sockets[name].getsockname()[1] if name in self.sockets else 1

    @staticmethod
    def address4():
        """An address of this machine other than the loopback's."""
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            try:
                probe.connect(("192.0.2.1", 9))
                return probe.getsockname()[0]
            except OSError:
                return "192.0.2.1"

    def reached(self):
        """Names of those that somebody has connected or sent to."""
        names = {made: name for name, made in self.sockets.items()}
        ready = select.select(list(names), [], [], 0)[0]
        return [names[made] for made in ready]

    def close(self):
        for made in self.sockets.values():
            made.close()


class Arena:
    def __init__(self, mode, workdir_owner=None, prefix="agentd-attack-"):
        self.mode = mode
        self.sandbox = mode == "sandbox"
        self.breaches = []
        self.live = "LIVE" + secrets.token_hex(8)
        self.token = "SECRET" + secrets.token_hex(8)
        self.tag = "tag" + secrets.token_hex(8)
        self.base = os.path.realpath(tempfile.mkdtemp(prefix=prefix))
        os.chmod(self.base, 0o755)
        self.work, self.outside, self.own = (
            os.path.join(self.base, name) for name in ("work", "outside", "own")
        )
        for path in (self.work, self.outside, self.own):
            os.mkdir(path, 0o755)
        os.chmod(self.outside, 0o777)
        self.secret = os.path.join(self.outside, "secret")
        self.write(self.secret, self.token + "\n", 0o666)
        self.tool = self.copy_tool(self.work)
        if workdir_owner is not None:
            for path in (self.work, self.tool):
                os.chown(path, workdir_owner, workdir_owner)
        self.was_outside = self._look_outside()
        self._listeners = None
        self._victim = None
        self._processes = []
        self._cleanups = []
        self._runs = 0
        self._lock = threading.Lock()

    # ---- things to have

    def copy_tool(self, directory):
        """The build directory is not there inside, so the tool comes along."""
        return shutil.copy(ATTACK, os.path.join(directory, "attack"))

    def write(self, path, text="", mode=0o644):
        path = os.path.join(self.work, path)
        with open(path, "w", encoding="utf-8") as file:
            file.write(text)
        os.chmod(path, mode)
        return path

    def make_dir(self, path, mode=0o755):
        path = os.path.join(self.work, path)
        os.makedirs(path, exist_ok=True)
        os.chmod(path, mode)
        return path

    def read(self, path):
        with open(os.path.join(self.work, path), "rb") as file:
            return file.read().decode(errors="replace")

    def path(self, *names):
        return os.path.join(self.work, *names)

    @property
    def listeners(self):
        if not self._listeners:
            self._listeners = Listeners(self.outside, self.tag)
            self.was_outside = self._look_outside()
        return self._listeners

    @property
    def victim(self):
        """A process of the host, with .pid, .address and .key."""
        if not self._victim:
            key = secrets.randbelow(1 << 30) + 1
            queue = "/attack-" + secrets.token_hex(8)
            process = subprocess.Popen(
                [VICTIM, self.token, self.secret, str(key), queue],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                cwd=self.outside,
                env={"VICTIM_SECRET": self.token},
            )
            words = process.stdout.readline().split()
            if words[:1] != ["ready"]:
                raise Inconclusive("there is no victim")
            process.address, process.key, process.queue = words[2], key, queue
            self._victim = process
        return self._victim

    def cleanup(self, function, *args):
        self._cleanups.append((function, args))

    # ---- running

    def breach(self, text):
        with self._lock:
            self.breaches.append(text)

    def environment(self, extra=None):
        env = dict(os.environ, HOME=self.own, **(extra or {}))
        for name in ("BASH_ENV", "ENV", "AGENTD_RUN", "ATTACK", "VICTIM", "CROWD"):
            env.pop(name, None)
        return env

    def options(self, options, backend=True):
        """Of agentd-run for this mode, with files to report to."""
        self._runs += 1
        paths = [os.path.join(self.own, f"{name}-{self._runs}") for name in ("result", "events")]
        argv = [RUN, "--quiet", "--result", paths[0], "--events", paths[1]]
        if backend and self.sandbox:
            argv += ["--backend", BACKEND]
        elif not self.sandbox:
            argv += ["--backend", "host", "--min-isolation", "none"]
        argv += ["--timeout-ms", round(30000 * STRETCH)]
        return [str(word) for word in (*argv, *options)], paths

    def outcome(self, code, out, err, paths, start):
        result, events = None, []
        try:
            with open(paths[0], encoding="utf-8") as file:
                result = json.load(file)
        except (OSError, ValueError):
            pass
        try:
            with open(paths[1], encoding="utf-8") as file:
                events = [json.loads(line) for line in file]
        except (OSError, ValueError):
            pass
        self.judge(out + err)
        return Outcome(code, out, err, result, events, time.monotonic() - start)

    def judge(self, output):
        for line in output.decode(errors="replace").splitlines():
            if line.startswith("BREACH"):
                self.breach(line)
        if self.token.encode() in output:
            self.breach("the secret was read")

    def run(self, command, *options, alive=True, argv=None, plain=False, **kwargs):
        """Run a shell command and wait. alive: it must have got to where it says so.

        plain: in control mode without agentd-run at all."""
        script = f"echo {self.live}\n{command}"
        start = time.monotonic()
        kwargs.setdefault("stdin", subprocess.DEVNULL)
        extra = kwargs.pop("env", None)
        kwargs.update(cwd=kwargs.get("cwd", self.work), env=self.environment(extra))
        timeout = kwargs.pop("guard", GUARD_SECONDS)
        before = kwargs.pop("before", [])
        if plain and not self.sandbox:
            words, paths = ["bash", "-c", script], ["", ""]
        else:
            words, paths = self.options(options)
            words += ["--"] + (argv or [script])
        kwargs.setdefault("stdout", subprocess.PIPE)
        kwargs.setdefault("stderr", subprocess.PIPE)
        try:
            done = subprocess.run(before + words, timeout=timeout, check=False, **kwargs)
            # Nothing has run: a machine that is slower may be slower than the helper's patience.
            if STRETCH > 1 and UNANSWERED in (done.stderr or b""):
                done = subprocess.run(before + words, timeout=timeout, check=False, **kwargs)
        except subprocess.TimeoutExpired as expired:
            self.breach(f"agentd-run has not ended after {timeout} s")
            return self.outcome(None, expired.stdout or b"", expired.stderr or b"", paths, start)
        out, err = done.stdout or b"", done.stderr or b""
        outcome = self.outcome(done.returncode, out, err, paths, start)
        if alive and not argv and self.live.encode() not in outcome.out:
            raise Inconclusive(f"the command did not start: {outcome}")
        outcome.out = outcome.out.replace(self.live.encode() + b"\n", b"", 1)
        return outcome

    def start(self, command, *options, **kwargs):
        """Run in the background: a Popen with .finish() -> Outcome."""
        script = f"echo {self.live}\n{command}"
        words, paths = self.options(options)
        kwargs.setdefault("stdin", subprocess.DEVNULL)
        kwargs.setdefault("stdout", subprocess.PIPE)
        kwargs.setdefault("stderr", subprocess.PIPE)
        kwargs.setdefault("cwd", self.work)
        kwargs["env"] = self.environment(kwargs.pop("env", None))
        process = subprocess.Popen(words + ["--", script], **kwargs)
        self._processes.append(process)
        start = time.monotonic()

        def finish(timeout=GUARD_SECONDS):
            out, err = process.communicate(timeout=timeout)
            outcome = self.outcome(process.returncode, out or b"", err or b"", paths, start)
            outcome.out = outcome.out.replace(self.live.encode() + b"\n", b"", 1)
            return outcome

        def wait_for(text, timeout=20 * STRETCH):
            """Until the output has a line with this; what came so far."""
            got, end = b"", time.monotonic() + timeout
            while text.encode() not in got:
                left = end - time.monotonic()
                if left <= 0 or not select.select([process.stdout], [], [], left)[0]:
                    raise Inconclusive(f"no {text} in {got!r}")
                piece = os.read(process.stdout.fileno(), 65536)
                if not piece:
                    raise Inconclusive(f"no {text} in {got!r}, and it has ended")
                got += piece
            self.judge(got)
            return got.decode(errors="replace")

        process.finish, process.wait_for, process.paths = finish, wait_for, paths
        return process

    def acts(self, *acts):
        """The command that tries these with the tool."""
        return "./attack " + " , ".join(acts)

    def crowd(self, commands, one_by_one=False, context=None):
        """Commands on one runner: what crowd printed."""
        context = dict(context or {})
        paths = ["/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32"]
        paths = [path for path in paths if os.path.exists(path)]
        context.setdefault("workdir", self.work)
        context["backend"] = BACKEND if self.sandbox else "host"
        policy = {
            "min_isolation": "sandbox" if self.sandbox else "none",
            "paths": {
                "read": paths + [self.work],
                "write": [self.work],
                "exec": paths + [self.work],
            },
        }
        argv = [CROWD] + (["--one-by-one"] if one_by_one else [])
        for name, value in (("context", context), ("policy", policy)):
            argv.append(self.write(os.path.join(self.own, name + ".json"), json.dumps(value)))
        done = subprocess.run(
            argv + [f"echo {self.live}\n{command}" for command in commands],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            cwd=self.work,
            env=self.environment(),
            timeout=GUARD_SECONDS,
            check=False,
        )
        if done.returncode != 0 or done.stdout.count(self.live.encode()) != len(commands):
            raise Inconclusive(f"crowd: {done.returncode} {done.stdout!r} {done.stderr!r}")
        self.judge(done.stdout + done.stderr)
        return done.stdout.decode(errors="replace").replace(self.live + "\n", "")

    # ---- looking

    def _look_outside(self):
        found = {}
        for folder, dirs, names in os.walk(self.outside):
            for name in dirs + names:
                path = os.path.join(folder, name)
                info = os.lstat(path)
                content = b""
                if stat.S_ISREG(info.st_mode):
                    with open(path, "rb") as file:
                        content = file.read()
                found[path] = (info.st_mode, info.st_uid, info.st_nlink, content)
        return found

    def outside_changed(self):
        """Call after the test itself has changed something there."""
        self.was_outside = self._look_outside()

    def alive(self, tag=None):
        """Processes that have our tag in their command line."""
        found = []
        for pid in filter(str.isdigit, os.listdir("/proc")):
            try:
                with open(f"/proc/{pid}/cmdline", "rb") as file:
                    if (tag or self.tag).encode() in file.read():
                        found.append(int(pid))
            except OSError:
                pass
        return found

    def gone(self, tag=None, within=2):
        """Seen twice: during execve a process has no command line."""
        end, misses = time.monotonic() + within * STRETCH, 0
        while misses < 2:
            misses = 0 if self.alive(tag) else misses + 1
            if misses == 0 and time.monotonic() > end:
                return False
            time.sleep(0.01)
        return True

    def _check_outside(self):
        now = self._look_outside()
        for path in sorted(set(now) | set(self.was_outside)):
            if now.get(path) != self.was_outside.get(path):
                self.breach(f"{path} outside was made, changed or removed")
        if self._listeners:
            for name in self._listeners.reached():
                self.breach(f"the host's {name} socket was reached")
        if self._victim:
            if self._victim.poll() is not None:
                self.breach("the victim was killed")
            else:
                with open(f"/proc/{self._victim.pid}/stat", encoding="ascii") as file:
                    state = file.read().rsplit(")", 1)[1].split()[0]
                if state in "Tt":
                    self.breach("the victim was stopped")
                    os.kill(self._victim.pid, signal.SIGCONT)

    def close(self):
        """Judge what is outside, and take everything away."""
        try:
            for process in self._processes:
                if process.poll() is None:
                    process.kill()
                process.communicate()
            self._check_outside()
            if not self.gone():
                self.breach("processes were left behind")
                for pid in self.alive():
                    os.kill(pid, signal.SIGKILL)
            with open("/proc/self/mountinfo", encoding="utf-8", errors="replace") as file:
                if self.base in file.read():
                    self.breach("mounts were left behind")
        finally:
            for function, args in reversed(self._cleanups):
                function(*args)
            if self._victim:
                key = self._victim.key
                self._victim.stdin.close()
                try:
                    self._victim.wait(5)
                except subprocess.TimeoutExpired:
                    self._victim.kill()
                    self._victim.wait()
                self._victim.stdout.close()
                # The victim may have been killed.
                _libc.mq_unlink(self._victim.queue.encode())
                segment = _libc.shmget(key, 0, 0)
                if segment >= 0:
                    _libc.shmctl(segment, 0, None)
            if self._listeners:
                self._listeners.close()
            # Deeper than Python would go.
            subprocess.run(["chmod", "-R", "u+rwx", self.base], check=False, capture_output=True)
            subprocess.run(["rm", "-rf", "--one-file-system", self.base], check=False)
