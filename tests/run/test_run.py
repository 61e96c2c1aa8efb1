#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""agentd-run as its users see it: options, exit statuses, signals, reports.

AGENTD_RUN names the program, RESULT_SCHEMA the schema of its result."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import unittest
import uuid

import schema

PROGRAM = os.environ["AGENTD_RUN"]
with open(os.environ["RESULT_SCHEMA"], encoding="utf-8") as schema_file:
    SCHEMA = json.load(schema_file)
HOST = ["--backend", "host", "--min-isolation", "none"]
NOBODY = 65534
MIB = 1 << 20


def alive(tag):
    """Processes, zombies left out, whose command line holds tag."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/cmdline", "rb") as file:
                if tag.encode() in file.read():
                    found.append(int(pid))
        except OSError:
            pass
    return found


class Case(unittest.TestCase):
    user = None

    def setUp(self):
        self.dir = os.path.realpath(tempfile.mkdtemp(prefix="agentd-run-"))
        os.chmod(self.dir, 0o777)
        self.addCleanup(shutil.rmtree, self.dir, ignore_errors=True)

    def path(self, name):
        return os.path.join(self.dir, name)

    def write(self, name, data):
        path = self.path(name)
        with open(path, "w", encoding="utf-8") as file:
            file.write(data if isinstance(data, str) else json.dumps(data))
        os.chmod(path, 0o666)
        return path

    def process(self):
        """How to run agentd-run: as whom, where, and with a HOME without a profile."""
        how = {"cwd": self.dir, "env": dict(os.environ, HOME=self.dir)}
        if self.user is not None:
            how.update(user=self.user, group=self.user, extra_groups=[])
        return how

    def run_raw(self, *args, **kwargs):
        """agentd-run with these arguments and nothing else."""
        kwargs.setdefault("stdin", subprocess.DEVNULL)
        if "input" in kwargs:
            del kwargs["stdin"]
        kwargs.setdefault("stdout", subprocess.PIPE)
        kwargs.setdefault("stderr", subprocess.PIPE)
        return subprocess.run([PROGRAM, *args], timeout=120, **dict(self.process(), **kwargs))

    def run_host(self, *args, **kwargs):
        return self.run_raw(*HOST, *args, **kwargs)

    def popen(self, *args, **kwargs):
        kwargs.setdefault("stdin", subprocess.DEVNULL)
        kwargs.setdefault("stdout", subprocess.PIPE)
        kwargs.setdefault("stderr", subprocess.PIPE)
        process = subprocess.Popen([PROGRAM, *HOST, *args], **self.process(), **kwargs)

        def end():
            if process.poll() is None:
                process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout, process.stderr):
                if pipe:
                    pipe.close()

        self.addCleanup(end)
        return process

    def result(self, *args, **kwargs):
        """Run on the host backend: (completed process, checked result)."""
        path = self.path("result.json")
        if os.path.exists(path):
            os.remove(path)
        done = self.run_host("--result", path, *args, **kwargs)
        return done, self.read_result(path)

    def read_result(self, path):
        with open(path, encoding="utf-8") as file:
            text = file.read()
        self.assertTrue(text.endswith("}\n"))
        result = json.loads(text)
        self.assertEqual(list(schema.errors(result, SCHEMA)), [])
        return result

    def layer(self, result, name):
        layers = {layer["layer"]: layer for layer in result["receipt"]["layers"]}
        return layers.get(name)

    def assert_gone(self, tag):
        deadline = time.monotonic() + 2
        while alive(tag) and time.monotonic() < deadline:
            time.sleep(0.01)
        self.assertEqual(alive(tag), [])

    def assert_usage(self, done, *words):
        text = done.stderr.decode()
        self.assertEqual(done.returncode, 125, text)
        self.assertEqual(done.stdout, b"")
        self.assertTrue(text.startswith("agentd-run: ") or text.startswith(PROGRAM), text)
        for word in words:
            self.assertIn(word, text)


class Basics(Case):
    def test_output_and_success(self):
        done = self.run_host("echo hello")
        self.assertEqual((done.returncode, done.stdout), (0, b"hello\n"))

    def test_backend_by_policy(self):
        path = self.path("result.json")
        done = self.run_raw("--result", path, "echo x")
        self.assertEqual((done.returncode, done.stdout), (0, b"x\n"), done.stderr)
        result = self.read_result(path)
        self.assertEqual(result["backend"], "sandbox")
        self.assertIsNone(result["receipt"]["requested"]["backend"])

    def test_exit_code_is_the_commands(self):
        for code in (0, 1, 42, 124, 255):
            self.assertEqual(self.run_host(f"exit {code}").returncode, code)

    def test_one_word_is_a_script(self):
        done = self.run_host("--", 'x=3; for i in 1 2; do printf "%s " "$i$x"; done')
        self.assertEqual(done.stdout, b"13 23 ")

    def test_several_words_need_no_shell(self):
        done = self.run_host("--", "printf", "%s|", "a b", "$HOME", "*", "")
        self.assertEqual(done.stdout, b"a b|$HOME|*||")

    def test_what_follows_the_command_is_not_an_option(self):
        self.assertEqual(self.run_host("echo", "--quiet", "--", "-x").stdout,
                         b"--quiet -- -x\n")

    def test_program_that_is_not_there(self):
        done, result = self.result("--", "/nonexistent/program", "x")
        self.assertEqual(done.returncode, 125)
        self.assertEqual((result["status"], result["cause"]), ("error", "spawn"))
        self.assertIsNone(result["exit_code"])
        self.assertIn("No such file or directory", done.stderr.decode())
        self.assertEqual(result["error"]["os_errno"], 2)

    def test_shells_own_failures(self):
        self.assertEqual(self.run_host("no_such_cmd_xyz").returncode, 127)
        self.assertEqual(self.run_host("if then").returncode, 2)

    def test_death_by_signal(self):
        for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGUSR1):
            done, result = self.result(f"kill -{number:d} $$")
            self.assertEqual(done.returncode, 128 + number)
            self.assertEqual((result["status"], result["cause"], result["signal"],
                              result["exit_code"]), ("error", "signaled", number, None))

    def test_timeout(self):
        before = time.monotonic()
        done, result = self.result("--timeout-ms", "300",
                                   "echo part; echo perr >&2; exec sleep 10")
        self.assertEqual(done.returncode, 124)
        self.assertLess(time.monotonic() - before, 2.5)
        self.assertEqual(done.stdout, b"part\n")
        self.assertEqual((result["status"], result["cause"]), ("timeout", "timeout"))
        self.assertEqual((result["metrics"]["stdout_bytes"],
                          result["metrics"]["stderr_bytes"]), (5, 5))
        self.assertIn("Shell command timed out", done.stderr.decode())

    def test_timeout_zero_is_the_shortest(self):
        self.assertEqual(self.run_host("--timeout-ms", "0", "sleep 10").returncode, 124)

    def test_timeout_huge(self):
        self.assertEqual(self.run_host("--timeout-ms", "18446744073709551614",
                                       "true").returncode, 0)

    def test_timeout_kills_what_escaped(self):
        tag = f"agentd-test-{uuid.uuid4()}"
        before = time.monotonic()
        done = self.run_host("--timeout-ms", "300",
                             f"(setsid bash -c 'trap \"\" TERM; exec -a {tag} sleep 300' &) ;"
                             f" exec -a {tag} sleep 300")
        self.assertEqual(done.returncode, 124)
        self.assertLess(time.monotonic() - before, 4)
        self.assert_gone(tag)

    def test_background_child_does_not_delay(self):
        tag = f"agentd-test-{uuid.uuid4()}"
        before = time.monotonic()
        done = self.run_host(f"(exec -a {tag} sleep 300) & echo hi; exit 7")
        self.assertEqual((done.returncode, done.stdout), (7, b"hi\n"))
        self.assertLess(time.monotonic() - before, 3)
        self.assert_gone(tag)

    def test_only_standard_descriptors_are_inherited(self):
        reader, writer = os.pipe()
        self.addCleanup(os.close, reader)
        self.addCleanup(os.close, writer)
        done = self.run_host("--", "ls", "/proc/self/fd", pass_fds=(reader, writer))
        # The fourth is the directory that ls has open.
        self.assertEqual(done.stdout.split(), [b"0", b"1", b"2", b"3"])

    def test_help_and_version(self):
        done = self.run_raw("--help")
        self.assertEqual((done.returncode, done.stderr), (0, b""))
        for word in (b"Usage: agentd-run", b"--kill-on-output", b"126 denied"):
            self.assertIn(word, done.stdout)
        done = self.run_raw("--version")
        self.assertEqual((done.returncode, done.stderr), (0, b""))
        self.assertRegex(done.stdout, rb"^agentd-run \d+\.\d+\.\d+ \(libevent 2\.")
        with open("/dev/full", "wb") as full:
            for option in ("--help", "--version"):
                done = self.run_raw(option, stdout=full)
                self.assertEqual(done.returncode, 125)
                self.assertIn(b"standard output", done.stderr)
        for option in ("--help", "--version"):
            done = subprocess.run(["sh", "-c", 'exec "$@" >&-', "sh", PROGRAM, option],
                                  stderr=subprocess.PIPE, timeout=60, **self.process())
            self.assertEqual(done.returncode, 125)
            self.assertIn(b"standard output", done.stderr)


class Refusals(Case):
    def test_default_policy_does_not_accept_the_host_backend(self):
        for args in (["--backend", "host"], ["--min-isolation", "vm"], ["--backend", "host", "--min-isolation", "vm"]):
            path = self.path("result.json")
            # There may be an image on this machine.
            done = self.run_raw("--result", path, "--image", "/nowhere", *args, "touch ran")
            self.assertEqual(done.returncode, 126, done.stderr)
            result = self.read_result(path)
            self.assertEqual((result["status"], result["cause"]), ("denied", "isolation"))
            self.assertNotEqual(result["error"]["message"], "")
            self.assertIn(result["error"]["message"], done.stderr.decode())
            self.assertFalse(os.path.exists(self.path("ran")))

    def test_unknown_backend(self):
        done = self.run_raw("--backend", "nosuch", "--min-isolation", "none", "touch ran")
        self.assert_usage(done, "nosuch")
        self.assertFalse(os.path.exists(self.path("ran")))

    def test_backend_alias(self):
        done, result = self.result("--backend", " Host_Direct ", "echo x")
        self.assertEqual((done.returncode, result["backend"]), (0, "host"))

    def test_empty_command(self):
        for command in ("", "  \t\n ", "\u2003\u00a0"):
            self.assert_usage(self.run_host("--", command), "empty")

    def test_no_command(self):
        self.assert_usage(self.run_host(), "no command")
        self.assert_usage(self.run_host("--"), "no command")

    def test_unknown_options(self):
        for option in ("--probe", "--nosuch", "-x"):
            self.assert_usage(self.run_host(option, "touch ran"), option.lstrip("-"))
        self.assertEqual(os.listdir(self.dir), [])

    def test_abbreviations_are_not_options(self):
        for args in (["--qui"], ["--time", "5"], ["--time=5"], ["--backen=host"]):
            self.assert_usage(self.run_host(*args, "touch ran"), args[0].split("=")[0])
        self.assertEqual(os.listdir(self.dir), [])

    def test_missing_argument(self):
        self.assert_usage(self.run_host("--timeout-ms"), "timeout-ms")

    def test_bad_numbers_name_option_and_value(self):
        numbers = ("timeout-ms", "pids", "cpu-ms-per-100ms", "idle-timeout-ms", "cpu-time-ms",
                   "open-files")
        sizes = ("mem", "output-bytes", "io-bytes", "file-bytes")
        wrong = ["", "x", "-1", "+1", " 1", "1 ", "1.5", "1e3", "0x10", "1K2",
                 "18446744073709551615", "18446744073709551616", "99999999999999999999999"]
        for option in numbers + sizes:
            for value in wrong:
                self.assert_usage(self.run_host(f"--{option}", value, "touch ran"),
                                  f"--{option}", f"'{value}'")
        for option in numbers:
            self.assert_usage(self.run_host(f"--{option}", "1K", "touch ran"), f"--{option}",
                              "'1K'")
        for option in numbers[1:] + sizes:
            self.assert_usage(self.run_host(f"--{option}", "0", "touch ran"), f"--{option}",
                              "'0'", "out of range")
        for option in ("pids", "cpu-ms-per-100ms", "open-files"):
            self.assert_usage(self.run_host(f"--{option}", "4294967295", "touch ran"),
                              f"--{option}", "out of range")
        for option in sizes:
            for value in ("1KB", "1k", "1P", "K", "16777216T", "17179869184G"):
                self.assert_usage(self.run_host(f"--{option}", value, "touch ran"),
                                  f"--{option}", f"'{value}'")
        self.assertEqual(os.listdir(self.dir), [])

    def test_bad_words(self):
        for option, value in (("min-isolation", "some"), ("min-isolation", "NONE"),
                              ("net", "allowlist"), ("net", "")):
            self.assert_usage(self.run_host(f"--{option}", value, "touch ran"), f"--{option}",
                              f"'{value}'", "none")
        self.assertEqual(os.listdir(self.dir), [])

    def test_bad_env(self):
        for value in ("", "NAME", "=value"):
            self.assert_usage(self.run_host("--env", value, "touch ran"), "--env", f"'{value}'")
        self.assertEqual(os.listdir(self.dir), [])

    def test_bad_hosts(self):
        for value in ("", "*", "[::1", "[::1]x", "host:", "host:0", "host:65536", "host:http",
                      "host:1-", "host:2-1", "host:1-2-3", "[::1]:", "a b", "10.0.0.0/33"):
            self.assert_usage(self.run_host("--allow-host", value, "touch ran"), "--allow-host")
        self.assert_usage(self.run_host("--allow-host", "example.org", "--net", "full", "true"),
                          "--allow-host needs --net allow")
        for value in ("example.org:80", "[::1]:80"):
            self.assert_usage(self.run_host("--deny-host", value, "touch ran"),
                              f"--deny-host: a denied host is denied on every port: '{value}'")
        self.assertEqual(os.listdir(self.dir), [])

    def test_bad_paths(self):
        for option in ("read", "write", "exec", "deny", "workdir"):
            self.assert_usage(self.run_host(f"--{option}", "", "touch ran"), f"--{option}")
            self.assert_usage(self.run_host(f"--{option}", "../nonexistent/..", "touch ran"),
                              f"--{option}", "../nonexistent/..")
        for option in ("read", "deny"):
            self.assert_usage(self.run_host(f"--{option}", "/" + "x/" * 3000, "touch ran"),
                              f"--{option}")
        self.assertEqual(os.listdir(self.dir), [])

    def test_files_that_cannot_be_read(self):
        for option in ("policy", "context", "params"):
            command = [] if option == "params" else ["touch ran"]
            self.assert_usage(self.run_host(f"--{option}", self.path("missing/file"), *command),
                              f"--{option}: {self.path('missing/file')}: No such file or directory")
            self.assert_usage(self.run_host(f"--{option}", self.dir, *command),
                              f"--{option}: {self.dir}: Is a directory")
        self.assertEqual(os.listdir(self.dir), [])

    def test_reports_that_cannot_be_written(self):
        for option in ("result", "events"):
            self.assert_usage(self.run_host(f"--{option}", self.path("missing/file"), "touch ran"),
                              f"--{option}", self.path("missing/file"))
            self.assertFalse(os.path.exists(self.path("ran")))
            done = self.run_host(f"--{option}", "/dev/full", "echo x")
            self.assertEqual(done.returncode, 125)
            self.assertIn(f"--{option}: No space left on device", done.stderr.decode())
        for events in (self.path("report"), "report"):
            self.assert_usage(self.run_host("--result", self.path("report"), "--events", events,
                                            "touch ran"), "--result and --events")
        self.assertFalse(os.path.exists(self.path("ran")))
        self.assertEqual(self.run_host("--result", "/dev/null", "--events", "/dev/null",
                                       "echo x").returncode, 0)

    @unittest.skipIf(os.environ.get("AGENTD_TEST_SANITIZED"), "the sanitizer wants some, too")
    def test_without_descriptors(self):
        for count in range(4, 12):
            done = subprocess.run(["sh", "-c", f'ulimit -n {count}; exec "$@"', "sh", PROGRAM,
                                   *HOST, "touch ran"], stderr=subprocess.PIPE, timeout=60,
                                  **self.process())
            self.assertEqual(done.returncode, 125, (count, done.stderr))
            self.assertIn(b"Too many open files", done.stderr)
        self.assertEqual(os.listdir(self.dir), [])

    def test_where_an_error_is(self):
        paths = {"paths": {"read": ["/usr", "/nonesuch"]}}
        policy = self.write("policy.json", paths)
        context = self.write("context.json", {"policy": paths})
        mounts = self.write("mounts.json", {"mounts": [
            {"source": "/usr/nonesuch", "target": "/data", "access": ["read"]}]})
        for option, file, pointer in (("--policy", policy, "/paths/read/1"),
                                      ("--context", context, "/policy/paths/read/1"),
                                      ("--context", mounts, "/mounts/0")):
            done = self.run_raw(option, file, "touch ran")
            self.assertEqual(done.returncode, 125)
            self.assertIn(f"(at {pointer} in {file})", done.stderr.decode())
        self.assert_usage(self.run_raw("--backend", "nonesuch", "touch ran"), "(at /backend)")

    def test_no_path_shows_the_program(self):
        policy = self.write("policy.json", {"paths": {"read": ["/etc"]}})
        done = self.run_raw("--policy", policy, "echo x")
        self.assertEqual(done.returncode, 125)
        self.assertIn(b"(program bash); no path of the policy shows it", done.stderr)
        done = self.run_raw("--policy", policy, "--", "/usr/bin/env", "x")
        self.assertIn(b"(program /usr/bin/env); no path of the policy shows it", done.stderr)
        # It may be in a directory that is shown, or somewhere else.
        done = self.run_raw("--policy", policy, "--env", "PATH=/etc:/usr/bin", "echo x")
        self.assertIn(b"(program bash)\n", done.stderr)
        done = self.run_raw("--", "nonesuch", "x")
        self.assertIn(b"(program nonesuch)\n", done.stderr)

    def test_no_result_of_what_is_not_begun(self):
        path = self.path("result.json")
        refused = ("--backend", "nonesuch", "--result", path, "touch ran")
        self.assert_usage(self.run_raw(*refused), "no backend is called")
        self.assertEqual(os.listdir(self.dir), [])
        self.write("result.json", "older and longer than any result " * 1000)
        self.assert_usage(self.run_raw(*refused), "no backend is called")
        with open(path, encoding="utf-8") as file:
            self.assertEqual(file.read(), "older and longer than any result " * 1000)
        self.assertEqual(self.run_host("--result", path, "echo x").returncode, 0)
        self.assertEqual(self.read_result(path)["status"], "ok")


class Where(Case):
    def test_workdir_is_the_current_directory(self):
        self.assertEqual(self.run_host("pwd").stdout.decode().strip(), self.dir)

    def test_workdir(self):
        os.mkdir(self.path("sub"))
        os.chmod(self.path("sub"), 0o777)
        for value in (self.path("sub"), "sub", "./sub/", "sub/../sub", self.dir + "//./sub"):
            done = self.run_host("--workdir", value, "--", "pwd")
            self.assertEqual(done.stdout.decode().strip(), self.path("sub"), value)

    def test_workdir_that_is_none(self):
        done, result = self.result("--workdir", "nowhere", "touch ran")
        self.assertEqual(done.returncode, 125)
        self.assertEqual((result["status"], result["cause"]), ("error", "spawn"))
        self.assertIn("No such file or directory (os error 2)", done.stderr.decode())
        self.write("file", "")
        done, result = self.result("--workdir", "file", "touch ran")
        self.assertEqual(done.returncode, 125)
        self.assertIn("Not a directory (os error 20)", done.stderr.decode())
        self.assertFalse(os.path.exists(self.path("ran")))

    def test_environment_is_built_from_nothing(self):
        env = dict(os.environ, HOME=self.dir, AGENTD_TEST_SECRET="x")
        done = self.run_host("--env", "A=1", "--env", "B==x y", "--env", "EMPTY=",
                             "--", "env", env=env)
        lines = done.stdout.decode().splitlines()
        self.assertIn("A=1", lines)
        self.assertIn("B==x y", lines)
        self.assertIn("EMPTY=", lines)
        self.assertFalse([line for line in lines if line.startswith("AGENTD_TEST_SECRET")])

    def test_policy_file(self):
        policy = self.write("policy.json", {"min_isolation": "none"})
        done = self.run_raw("--policy", policy, "--backend", "host", "echo x")
        self.assertEqual((done.returncode, done.stdout), (0, b"x\n"))
        policy = self.write("policy.json", {"min_isolation": "none",
                                            "limits": {"timeout_ms": 200}})
        done = self.run_raw("--policy", policy, "--backend", "host", "--timeout-ms", "20000",
                            "sleep 10")
        self.assertEqual(done.returncode, 124)

    def test_bad_policy_file(self):
        for text, word in (('{"min_isolation": "some"}', "/min_isolation"),
                           ('{"nosuch": 1}', "nosuch"), ("[]", "policy.json"),
                           ('{"net": "none", "net": "none"}', "net"), ("{", "policy.json"),
                           ('{"limits": {"mem_bytes": -1}}', "/limits/mem_bytes")):
            policy = self.write("policy.json", text)
            self.assert_usage(self.run_host("--policy", policy, "true"), "--policy", policy, word)

    def test_context_file(self):
        context = self.write("context.json", {"trace_id": "test-trace-123",
                                              "labels": {"agent": "a1"}})
        done, result = self.result("--context", context, "echo $SMITH_TRACE_ID")
        self.assertEqual((done.returncode, done.stdout), (0, b"test-trace-123\n"))
        self.assertEqual(result["trace_id"], "test-trace-123")
        self.assertEqual(result["labels"], {"agent": "a1"})

    def test_context_file_with_workdir_and_backend(self):
        os.mkdir(self.path("sub"))
        os.chmod(self.path("sub"), 0o777)
        context = self.write("context.json", {"workdir": self.path("sub"), "backend": "host"})
        done = self.run_raw("--min-isolation", "none", "--context", context, "--", "pwd")
        self.assertEqual(done.stdout.decode().strip(), self.path("sub"))
        done = self.run_raw("--min-isolation", "none", "--context", context, "--workdir",
                            self.dir, "--", "pwd")
        self.assertEqual(done.stdout.decode().strip(), self.dir)

    def test_context_file_with_a_policy_of_its_own(self):
        own = {"backend": "host", "policy": {"min_isolation": "none"}, "workdir": self.dir,
               "labels": {"policy": "{\"a\": [1", "x\\\"": "y"}}
        context = self.write("context.json", own)
        done = self.run_raw("--context", context, "echo x")
        self.assertEqual((done.returncode, done.stdout), (0, b"x\n"), done.stderr)
        # The command line can only narrow it.
        done = self.run_raw("--context", context, "--min-isolation", "sandbox", "echo x")
        self.assertEqual((done.returncode, done.stdout), (126, b""))
        own["policy"]["min_isolation"] = "sandbox"
        context = self.write("context.json", own)
        done = self.run_host("--context", context, "echo x")
        self.assertEqual((done.returncode, done.stdout), (126, b""))
        for option, value in (("read", "/tmp"), ("write", "/tmp"), ("exec", "/tmp"),
                              ("allow-host", "example.org")):
            self.assert_usage(self.run_host("--context", context, f"--{option}", value, "true"),
                              f"--{option}", context)

    def test_layers(self):
        self.assert_usage(self.run_host("--layer", "landlock", "true"), "--layer", "landlock")
        self.assert_usage(self.run_host("--layer", "landlock=maybe", "true"), "maybe", "degradable")
        self.assert_usage(self.run_host("--layer", "moat=off", "true"), "moat")
        done = self.run_host("--layer", "landlock=degradable", "--layer", "keyring=off", "true")
        self.assertEqual(done.returncode, 0, done.stderr)

    def test_protected_names(self):
        self.assert_usage(self.run_host("--protect", "/etc", "true"), "--protect", "/etc")
        self.assertEqual(self.run_host("--no-protect", "--protect", "a/b", "true").returncode, 0)
        policy = self.write("policy.json", {"min_isolation": "none"})
        self.assert_usage(self.run_host("--policy", policy, "--no-protect", "true"),
                          "--no-protect")

    def test_token_file(self):
        token = self.write("token", "s3cret\n")
        # Refused, not forgotten: the host backend has no private files.
        done, result = self.result("--token-file", token, "touch ran")
        self.assertEqual((done.returncode, result["cause"]), (126, "isolation"))
        self.assertIn("credentials", result["error"]["message"])
        self.assertNotIn(b"s3cret", done.stderr)
        self.assertFalse(os.path.exists(self.path("ran")))
        self.assert_usage(self.run_host("--token-file", self.path("none"), "true"), "--token-file")
        self.assert_usage(self.run_host("--token-file", self.write("token", "a\0b"), "true"),
                          "byte 0")
        done = self.run_host("--token-file", self.write("token", ""), "true")
        self.assertEqual(done.returncode, 125)

    def test_bad_context_file(self):
        for text, word in (('{"nosuch": 1}', "nosuch"), ('{"workdir": "relative"}', "/workdir"),
                           ('{"workdir": 5}', "/workdir"), ("", "context.json"),
                           ('{"policy": {"nosuch": 1}}', "/policy")):
            context = self.write("context.json", text)
            self.assert_usage(self.run_host("--context", context, "true"), "--context", context,
                              word)

    def test_params_file(self):
        params = self.write("params.json", {"command": "echo from file; exit 3", "other": 1})
        done = self.run_host("--params", params)
        self.assertEqual((done.returncode, done.stdout), (3, b"from file\n"))
        params = self.write("params.json", {"command": "sleep 10", "timeout_ms": 200})
        self.assertEqual(self.run_host("--params", params).returncode, 124)
        # --timeout-ms lowers what the file says.
        params = self.write("params.json", {"command": "sleep 10", "timeout_ms": 9000})
        self.assertEqual(self.run_host("--params", params, "--timeout-ms", "200").returncode, 124)

    def test_bad_params_file(self):
        for text, word in (("{}", "missing field `command`"),
                           ('{"command": 5}', "expected a string"),
                           ('{"command": "x", "timeout_ms": -1}', "expected u64"),
                           ('{"command": " "}', "empty"),
                           ('{"command": "x", "command": "y"}', "command"),
                           ('{"command": "' + "x" * (1 << 20) + '"}', "params")):
            params = self.write("params.json", text)
            self.assert_usage(self.run_host("--params", params), params, word)

    def test_params_and_command(self):
        params = self.write("params.json", {"command": "echo x"})
        self.assert_usage(self.run_host("--params", params, "echo y"), "--params")

    def test_rules_the_host_backend_does_not_enforce_are_accepted(self):
        self.assertEqual(self.run_host("--net", "allow", "true").returncode, 126)
        done = self.run_host("--layer", "netns=degradable",
                             "--read", "/etc", "--write", ".", "--exec", "/usr", "--deny",
                             "/etc/shadow", "--allow-host", "example.org:443", "--allow-host",
                             "*.example.org", "--allow-host", "[2001:db8::1]:80",
                             "--allow-host", "example.net:8000-8100",
                             "--allow-host", "2001:db8::/32", "--allow-host", "192.0.2.0/24",
                             "echo x")
        self.assertEqual((done.returncode, done.stdout), (0, b"x\n"), done.stderr)
        for net in ("none", "allow", "full"):
            done = self.run_host("--layer", "netns=degradable", "--net", net, "true")
            self.assertEqual(done.returncode, 0)


class Output(Case):
    def test_streams_stay_apart_and_binary(self):
        done = self.run_host("--quiet", r"printf '\377\000x'; printf 'e\001' >&2")
        self.assertEqual((done.stdout, done.stderr), (b"\xff\0x", b"e\x01"))

    def test_it_streams(self):
        process = self.popen("--quiet", "echo one; sleep 2; echo two")
        before = time.monotonic()
        self.assertEqual(process.stdout.readline(), b"one\n")
        self.assertEqual(process.stdout.readline(), b"two\n")
        self.assertGreater(time.monotonic() - before, 1)

    def test_100_mb_through_wc(self):
        command = ["sh", "-c", '"$@" | wc -c', "sh", PROGRAM, *HOST, "--output-bytes", "1G",
                   "head -c 100M /dev/zero"]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                              timeout=120, check=True, **self.process())
        self.assertEqual(int(done.stdout), 100 * MIB)

    def test_content_survives(self):
        data = self.path("data")
        with open(data, "wb") as file:
            file.write(os.urandom(20 * MIB))
        os.chmod(data, 0o644)
        done, result = self.result("--quiet", "cat data; cat data >&2")
        with open(data, "rb") as file:
            digest = hashlib.sha256(file.read()).digest()
        self.assertEqual(hashlib.sha256(done.stdout).digest(), digest)
        self.assertEqual(hashlib.sha256(done.stderr).digest(), digest)
        self.assertEqual(result["metrics"]["stdout_bytes"], 20 * MIB)
        self.assertEqual(result["metrics"]["stderr_bytes"], 20 * MIB)
        self.assertEqual(result["metrics"]["dropped_bytes"], 0)

    def test_closed_pipe_ends_the_command(self):
        tag = f"agentd-test-{uuid.uuid4()}"
        process = self.popen("--timeout-ms", "20000", f"exec -a {tag} yes")
        self.assertEqual(process.stdout.read(2), b"y\n")
        before = time.monotonic()
        process.stdout.close()
        stderr = process.stderr.read().decode()
        self.assertEqual(process.wait(timeout=30), 125, stderr)
        self.assertLess(time.monotonic() - before, 5)
        self.assertIn("agentd-run: standard output: Broken pipe", stderr)
        self.assert_gone(tag)

    def test_slow_reader_gets_everything(self):
        process = self.popen("--quiet", "head -c 1M /dev/zero")
        time.sleep(1)
        self.assertEqual(len(process.stdout.read()), MIB)
        self.assertEqual(process.wait(timeout=30), 0)

    def test_reader_that_leaves_before_the_end(self):
        process = self.popen("--quiet", "--result", self.path("result.json"),
                             "head -c 200000 /dev/zero")
        time.sleep(1)
        process.stdout.close()
        self.assertEqual(process.wait(timeout=30), 125)
        self.assertIn(b"agentd-run: standard output: Broken pipe", process.stderr.read())
        self.assertTrue(self.read_result(self.path("result.json"))["truncated"])

    def test_reader_that_never_reads_does_not_stop_the_clock(self):
        process = self.popen("--quiet", "--timeout-ms", "500", "yes")
        self.assertEqual(process.wait(timeout=10), 124)

    def test_full_device(self):
        with open("/dev/full", "wb") as full:
            done = self.run_host("echo x", stdout=full)
            self.assertEqual(done.returncode, 125)
            self.assertIn(b"agentd-run: standard output or error: ", done.stderr)
            # Nothing is written, nothing is wrong.
            self.assertEqual(self.run_host("exit 3", stdout=full).returncode, 3)

    def test_closed_standard_descriptors(self):
        script = self.path("result.json")
        for closed, code in (("<&-", 0), (">&-", 125), ("2>&-", 0), ("<&- >&- 2>&-", 125)):
            done = subprocess.run(["sh", "-c", f'exec "$@" {closed}', "sh", PROGRAM, *HOST,
                                   "--result", script, "--quiet", "echo x"],
                                  stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                  stdin=subprocess.DEVNULL, timeout=60, **self.process())
            self.assertEqual(done.returncode, code, (closed, done.stderr))
            self.assertEqual(self.read_result(script)["cause"], "exited" if code == 0 else "sink")

    def test_quiet(self):
        self.assertEqual(self.run_host("--quiet", "echo e >&2").stderr, b"e\n")
        text = self.run_host("echo e >&2").stderr.decode()
        self.assertIn("agentd: Executing shell command: echo e >&2\n", text)
        self.assertEqual(text.count("\nagentd: warn: e\n"), 1)

    def test_no_stderr_log(self):
        done = self.run_host("--no-stderr-log", "echo e >&2")
        self.assertEqual(done.stderr,
                         b"agentd: Executing shell command: echo e >&2\ne\n")


class Stdin(Case):
    def test_default_is_dev_null(self):
        done = self.run_host("cat; echo end", input=b"data")
        self.assertEqual((done.returncode, done.stdout), (0, b"end\n"))

    def test_pipe(self):
        data = os.urandom(8 * MIB)
        done = self.run_host("--stdin", "--quiet", "cat", input=data)
        self.assertEqual(done.returncode, 0)
        self.assertEqual(hashlib.sha256(done.stdout).digest(), hashlib.sha256(data).digest())

    def test_empty_pipe(self):
        done = self.run_host("--stdin", "wc -c", input=b"")
        self.assertEqual((done.returncode, done.stdout.strip()), (0, b"0"))

    def test_file(self):
        data = os.urandom(3 * MIB + 17)
        with open(self.path("data"), "wb") as file:
            file.write(data)
        with open(self.path("data"), "rb") as file:
            done = self.run_host("--stdin", "--quiet", "cat", stdin=file)
        self.assertEqual(hashlib.sha256(done.stdout).digest(), hashlib.sha256(data).digest())

    def test_endless_device(self):
        with open("/dev/zero", "rb") as zero:
            done = self.run_host("--stdin", "head -c 1000000 | wc -c", stdin=zero)
        self.assertEqual((done.returncode, done.stdout.strip()), (0, b"1000000"))

    def test_reader_goes_away(self):
        done = self.run_host("--stdin", "head -c 1; exit 5", input=b"x" * MIB)
        self.assertEqual((done.returncode, done.stdout), (5, b"x"))

    def test_interactive(self):
        process = self.popen("--stdin", "--quiet",
                             "while read -r line; do echo \"<$line>\"; done",
                             stdin=subprocess.PIPE)
        for word in (b"a", b"b"):
            process.stdin.write(word + b"\n")
            process.stdin.flush()
            self.assertEqual(process.stdout.readline(), b"<" + word + b">\n")
        process.stdin.close()
        self.assertEqual(process.wait(timeout=30), 0)

    def test_unreadable(self):
        fd = os.open(self.dir, os.O_RDONLY)
        self.addCleanup(os.close, fd)
        done = self.run_host("--stdin", "cat", stdin=fd)
        self.assertEqual(done.returncode, 125)
        self.assertIn(b"standard input: Is a directory", done.stderr)
        done = subprocess.run(["sh", "-c", 'exec "$@" <&-', "sh", PROGRAM, *HOST, "--stdin",
                               "cat"], stderr=subprocess.PIPE, timeout=60, **self.process())
        self.assertEqual(done.returncode, 125)
        self.assertIn(b"standard input", done.stderr)


class Sessions(Case):
    ID = "123e4567-e89b-12d3-a456-426614174000"

    def pool(self, config):
        file = self.path("pool.json")
        with open(file, "w", encoding="utf-8") as out:
            json.dump(config, out)
        return "--pool", file

    def run_in(self, pool, *args):
        path = self.path("result.json")
        done = self.run_raw(*self.pool(pool), "--result", path, *args)
        return done, self.read_result(path)

    def test_files_stay(self):
        pool = {"enabled": True, "backend": "sandbox", "volume_root": self.path("sessions")}
        done, result = self.run_in(pool, "--session", self.ID, "pwd; echo 'hello vm' >state.txt")
        self.assertEqual(done.stdout.decode(),
                         self.path("sessions") + f"/{self.ID}/volume\n", done.stderr)
        self.assertEqual(self.layer(result, "session")["state"], "enforced")
        done, result = self.run_in(pool, "--session", self.ID.upper(), "cat state.txt")
        self.assertEqual((done.returncode, done.stdout), (0, b"hello vm\n"), done.stderr)
        done, result = self.run_in(pool, "cat state.txt")
        self.assertEqual(done.returncode, 1)
        self.assertIsNone(self.layer(result, "session"))

    def test_fallback_is_seen_and_refused(self):
        done, result = self.run_in({"enabled": False}, "--session", self.ID, "echo here")
        self.assertEqual((done.returncode, done.stdout), (0, b"here\n"))
        self.assertIn(b"falling back to ephemeral sandbox: VM pool is disabled", done.stderr)
        self.assertEqual(self.layer(result, "session")["state"], "absent")
        self.assertIn("VM pool is disabled", self.layer(result, "session")["reason"])
        done, result = self.run_in({"enabled": False, "fallback": False}, "--session", self.ID,
                                   "echo here")
        self.assertEqual((done.returncode, done.stdout), (126, b""))
        self.assertEqual((result["status"], result["cause"]), ("denied", "isolation"))

    def test_usage(self):
        self.assert_usage(self.run_raw("--session", "7", "true"), "UUID")
        for option in ("--session", "--pool"):
            self.assert_usage(self.run_raw(option), option.lstrip("-"))
        path = self.path("result.json")
        self.assert_usage(self.run_raw(*self.pool({"enabled": True}), "--session", self.ID,
                                       "--result", path, "true"),
                          "--pool", "volume_root")
        self.assertFalse(os.path.exists(path))


class Limits(Case):
    def test_output_is_cut_exactly(self):
        done, result = self.result("--output-bytes", "100K", "head -c 1000000 /dev/zero; exit 4")
        self.assertEqual((done.returncode, len(done.stdout)), (4, 102400))
        self.assertTrue(result["truncated"])
        self.assertEqual(result["metrics"]["stdout_bytes"], 1000000)
        self.assertEqual(result["metrics"]["dropped_bytes"], 1000000 - 102400)
        self.assertEqual(result["limit"], "output_bytes")

    def test_kill_on_output(self):
        done, result = self.result("--output-bytes", "1000", "--kill-on-output", "yes")
        self.assertEqual((done.returncode, len(done.stdout)), (137, 1000))
        self.assertEqual((result["status"], result["cause"], result["limit"]),
                         ("killed", "output", "output_bytes"))

    def test_byte_suffixes(self):
        for value, size in (("2000", 2000), ("1K", 1024), ("1KiB", 1024), ("1M", MIB),
                            ("1MiB", MIB)):
            done = self.run_host("--output-bytes", value, "head -c 3M /dev/zero")
            self.assertEqual(len(done.stdout), size, value)
        for value in ("1G", "1GiB", "1T", "1TiB"):
            self.assertEqual(self.run_host("--output-bytes", value, "true").returncode, 0)

    def test_idle_timeout(self):
        done, result = self.result("--idle-timeout-ms", "300", "echo x; sleep 20")
        self.assertEqual((done.returncode, done.stdout), (124, b"x\n"))
        self.assertEqual((result["status"], result["cause"], result["limit"]),
                         ("timeout", "idle_timeout", "idle_timeout_ms"))
        done = self.run_host("--idle-timeout-ms", "600",
                             "for i in 1 2 3 4 5 6; do echo $i; sleep 0.2; done")
        self.assertEqual(done.returncode, 0)

    def test_cpu_time(self):
        done, result = self.result("--cpu-time-ms", "300", "while :; do :; done")
        self.assertEqual(done.returncode, 137)
        self.assertEqual((result["status"], result["cause"], result["limit"]),
                         ("killed", "cpu_time", "cpu_time_ms"))

    def test_file_size(self):
        done, result = self.result("--file-bytes", "64K", "exec head -c 1M /dev/zero >big")
        self.assertEqual(done.returncode, 137)
        self.assertEqual((result["status"], result["cause"], result["limit"]),
                         ("killed", "file_size", "file_bytes"))
        self.assertEqual(os.path.getsize(self.path("big")), 65536)

    def test_io(self):
        done, result = self.result("--io-bytes", "5M",
                                   "while dd if=/dev/zero of=big bs=1M count=20 conv=fsync;"
                                   " do :; done")
        self.assertEqual(done.returncode, 137, (done.stderr, result))
        self.assertEqual((result["status"], result["cause"], result["limit"]),
                         ("killed", "io", "io_bytes"))

    def test_open_files(self):
        self.assertEqual(self.run_host("--open-files", "37", "ulimit -n").stdout, b"37\n")

    def test_memory(self):
        done, result = self.result("--mem", "200M", "--", "python3", "-c",
                                   "x = b'x' * (600 << 20); print(len(x))")
        self.assertNotEqual(done.returncode, 0)
        self.assertEqual(done.stdout, b"")
        layer = self.layer(result, "memory")
        if layer["state"] == "enforced" and layer["reason"].startswith("cgroup"):
            self.assertEqual((done.returncode, result["status"], result["cause"],
                              result["limit"]), (137, "killed", "memory", "mem_bytes"))
        self.assertEqual(self.run_host("--mem", "2G", "--", "python3", "-c",
                                       "x = b'x' * (100 << 20)").returncode, 0)

    def test_pids(self):
        done, result = self.result("--pids", "8",
                                   "for i in 1 2 3 4 5 6 7 8 9 10 11 12; do sleep 1 & done;"
                                   " wait; echo end")
        self.assertEqual(result["limit"], "pids_max", (done, result))

    def test_bandwidth_is_enforced_or_refused(self):
        done, result = self.result("--cpu-ms-per-100ms", "20", "--timeout-ms", "20000",
                                   "--", "python3", "-c",
                                   "import time\nend = time.process_time() + 0.4\n"
                                   "while time.process_time() < end: pass")
        if result["status"] == "denied":
            self.assertEqual((done.returncode, result["cause"]), (126, "isolation"))
        else:
            self.assertEqual(done.returncode, 0)
            self.assertGreater(result["metrics"]["wall_ns"], 1.2e9)


class Signals(Case):
    def start(self, script, *options):
        process = self.popen("--quiet", "--result", self.path("result.json"), *options, script)
        self.assertEqual(process.stdout.readline(), b"ready\n")
        return process

    def test_first_asks(self):
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            process = self.start("trap 'echo asked; exit 9' TERM; echo ready;"
                                 " while :; do sleep 0.05; done")
            before = time.monotonic()
            process.send_signal(number)
            self.assertEqual(process.stdout.read(), b"asked\n")
            self.assertEqual(process.wait(timeout=30), 128 + number)
            self.assertLess(time.monotonic() - before, 1.8)
            result = self.read_result(self.path("result.json"))
            self.assertEqual((result["status"], result["cause"]), ("killed", "canceled"))

    def test_grace_ends_what_does_not_listen(self):
        tag = f"agentd-test-{uuid.uuid4()}"
        process = self.start(f"trap '' TERM; (setsid bash -c 'exec -a {tag} sleep 300' &);"
                             f" echo ready; exec -a {tag} sleep 300")
        before = time.monotonic()
        process.send_signal(signal.SIGINT)
        self.assertEqual(process.wait(timeout=30), 130)
        self.assertGreater(time.monotonic() - before, 1.5)
        self.assertLess(time.monotonic() - before, 4)
        self.assert_gone(tag)

    def test_second_kills_at_once(self):
        for second in (signal.SIGINT, signal.SIGTERM):
            tag = f"agentd-test-{uuid.uuid4()}"
            process = self.start(f"trap '' TERM; (setsid bash -c 'exec -a {tag} sleep 300' &);"
                                 f" echo ready; exec -a {tag} sleep 300")
            before = time.monotonic()
            process.send_signal(signal.SIGINT)
            time.sleep(0.2)
            process.send_signal(second)
            self.assertEqual(process.wait(timeout=30), 130)
            self.assertLess(time.monotonic() - before, 1.5)
            self.assert_gone(tag)

    def test_killed_program_leaves_nothing(self):
        tag = f"agentd-test-{uuid.uuid4()}"
        process = self.start(f"trap '' TERM HUP; (setsid bash -c 'exec -a {tag} sleep 300' &);"
                             f" echo ready; exec -a {tag} sleep 300")
        process.kill()
        process.wait(timeout=30)
        self.assert_gone(tag)

    def test_while_a_report_waits_for_its_reader(self):
        for option in ("--result", "--events"):
            for number in (signal.SIGINT, signal.SIGTERM):
                os.mkfifo(self.path("pipe"))
                os.chmod(self.path("pipe"), 0o666)
                process = self.popen("--quiet", option, self.path("pipe"), "echo hello")
                with self.assertRaises(subprocess.TimeoutExpired):
                    process.wait(timeout=0.5)
                process.send_signal(number)
                self.assertEqual(process.wait(timeout=10), -number)
                # The control: one that is read.
                process = self.popen("--quiet", option, self.path("pipe"), "echo hello")
                with open(self.path("pipe"), encoding="utf-8") as pipe:
                    self.assertIn('"cause":"exited"', pipe.read())
                self.assertEqual(process.wait(timeout=30), 0)
                os.remove(self.path("pipe"))

    def test_nohup(self):
        process = self.popen("--quiet", "echo ready; sleep 1; echo done",
                             preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN))
        self.assertEqual(process.stdout.readline(), b"ready\n")
        process.send_signal(signal.SIGHUP)
        self.assertEqual(process.stdout.read(), b"done\n")
        self.assertEqual(process.wait(timeout=30), 0)


class Reports(Case):
    def events(self, *args, **kwargs):
        path = self.path("events")
        done = self.run_host("--events", path, *args, **kwargs)
        with open(path, encoding="utf-8") as file:
            lines = file.read().splitlines()
        events = [json.loads(line) for line in lines]
        times = [event["ms"] for event in events]
        self.assertEqual(times, sorted(times))
        self.assertGreaterEqual(times[0], 0)
        for event in events:
            if event["event"] in ("log", "runner_log"):
                self.assertIn(event["level"], ("error", "warn", "info", "debug"))
                self.assertIsInstance(event["fields"], dict)
        return done, events

    def assert_order(self, events):
        """log* started? (output | log | denied | stdin_drained)* exited?
        (output | log | denied)* finished"""
        names = "".join({"log": "l", "started": "s", "output": "o", "denied": "d",
                         "stdin_drained": "i", "exited": "e", "finished": "f"}[event["event"]]
                        for event in events if event["event"] != "runner_log")
        self.assertRegex(names, r"^l*s?[oldi]*e?[old]*f$")
        return names

    def test_events(self):
        done, events = self.events("echo out; echo err >&2; exit 3")
        self.assertEqual(done.returncode, 3)
        names = self.assert_order(events)
        self.assertTrue(names.startswith("ls"), names)
        self.assertEqual(names.count("e"), 1)
        by_name = {event["event"]: event for event in events}
        self.assertEqual((by_name["exited"]["exit_code"], by_name["exited"]["signal"]), (3, None))
        self.assertEqual((by_name["finished"]["status"], by_name["finished"]["cause"]),
                         ("error", "exited"))
        taken = {"stdout": 0, "stderr": 0}
        for event in events:
            if event["event"] == "output":
                taken[event["stream"]] += event["bytes"]
        self.assertEqual(taken, {"stdout": 4, "stderr": 4})
        self.assertEqual(events[[event["event"] for event in events].index("log")]["message"],
                         "Executing shell command: echo out; echo err >&2; exit 3")
        self.assertIn("Shell command spawned", [event.get("message") for event in events
                                                if event["event"] == "runner_log"])

    def test_events_of_a_timeout(self):
        _, events = self.events("--timeout-ms", "200", "echo x; sleep 10")
        self.assert_order(events)
        self.assertEqual((events[-1]["event"], events[-1]["status"]), ("finished", "timeout"))
        self.assertIn(("error", "Shell command timed out"),
                      [(event["level"], event["message"]) for event in events
                       if event["event"] == "log"])

    def test_events_of_a_refusal(self):
        path = self.path("events")
        done = self.run_raw("--backend", "host", "--events", path, "touch ran")
        self.assertEqual(done.returncode, 126)
        with open(path, encoding="utf-8") as file:
            events = [json.loads(line) for line in file]
        self.assertNotIn("s", self.assert_order(events))
        self.assertEqual(events[-1]["status"], "denied")

    def test_events_hold_any_text(self):
        command = "echo '\"\\' \u00e9\u20ac\U0001f600 \x01\x7f\t' >&2; printf '\\303\\050' >&2"
        _, events = self.events(command)
        self.assertEqual(next(event for event in events if event["event"] == "log")["message"],
                         "Executing shell command: " + command)

    def test_event_times_are_of_the_events(self):
        _, events = self.events("echo a; sleep 0.5; echo b")
        outputs = [event["ms"] for event in events if event["event"] == "output"]
        self.assertEqual(len(outputs), 2)
        self.assertGreater(outputs[1] - outputs[0], 400)
        self.assertLess(outputs[1] - outputs[0], 2000)

    def test_result_to_stderr(self):
        done = self.run_host("--quiet", "--result", "-", "echo x")
        self.assertEqual(done.stdout, b"x\n")
        self.assertEqual(list(schema.errors(json.loads(done.stderr), SCHEMA)), [])

    def test_result_of_success(self):
        done, result = self.result("echo hello; echo error >&2")
        self.assertEqual(done.returncode, 0)
        self.assertEqual((result["status"], result["cause"], result["backend"],
                          result["exit_code"], result["signal"], result["limit"],
                          result["truncated"], result["error"], result["trace_id"],
                          result["labels"]),
                         ("ok", "exited", "host", 0, None, None, False, None, None, {}))
        metrics = result["metrics"]
        self.assertEqual((metrics["stdout_bytes"], metrics["stderr_bytes"],
                          metrics["dropped_bytes"]), (6, 6, 0))
        for name in ("wall_ns", "cpu_ns", "memory_peak_bytes", "startup_ns"):
            self.assertGreater(metrics[name], 0, name)
        self.assertEqual(result["receipt"]["requested"],
                         {"backend": "host", "min_isolation": "none"})
        self.assertGreater(len(result["receipt"]["layers"]), 0)

    def test_result_counts_cpu_and_memory(self):
        _, result = self.result("--", "python3", "-c",
                                "import time\nx = b'x' * (64 << 20)\n"
                                "while time.process_time() < 0.5: pass")
        self.assertGreater(result["metrics"]["cpu_ns"], 400e6)
        self.assertLess(result["metrics"]["cpu_ns"], 5e9)
        self.assertGreater(result["metrics"]["memory_peak_bytes"], 64 * MIB)

    def test_a_result_that_is_wrong_is_noticed(self):
        _, result = self.result("true")
        for change in ({"schema": 2}, {"status": "fine"}, {"exit_code": "0"}, {"exit_code": 256},
                       {"extra": 1}, {"truncated": 0}, {"metrics": {"wall_ns": -1}},
                       {"receipt": {"requested": {}, "layers": []}}, {"labels": {"a": 1}}):
            self.assertNotEqual(list(schema.errors(dict(result, **change), SCHEMA)), [], change)
        del result["trace_id"]
        self.assertNotEqual(list(schema.errors(result, SCHEMA)), [])


def as_nobody(case):
    return type(case.__name__ + "AsNobody", (case,), {"user": NOBODY})


def nobody_can_run():
    try:
        subprocess.run([PROGRAM, "--version"], user=NOBODY, group=NOBODY, extra_groups=[],
                       stdout=subprocess.DEVNULL, check=True)
    except (OSError, subprocess.CalledProcessError) as why:
        print(f"SKIP-CANNOT: uid {NOBODY} cannot run {PROGRAM}: {why}", file=sys.stderr)
        return False
    return True


if os.geteuid() == 0 and nobody_can_run():
    BasicsAsNobody = as_nobody(Basics)
    WhereAsNobody = as_nobody(Where)
    OutputAsNobody = as_nobody(Output)
    StdinAsNobody = as_nobody(Stdin)
    LimitsAsNobody = as_nobody(Limits)
    SignalsAsNobody = as_nobody(Signals)
    ReportsAsNobody = as_nobody(Reports)


if __name__ == "__main__":
    # Whoever runs us under nohup ignores it.
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    unittest.main(verbosity=1)
