#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""The small examples do what their comments say. EXAMPLE_RUN, EXAMPLE_STREAM,
EXAMPLE_SESSION, EXAMPLE_SERVER, EXAMPLE_HTTP and EXAMPLE_GLIB name the programs."""

import http.client
import os
import re
import signal
import socket
import subprocess
import tempfile
import threading
import time
import unittest

# Login shells read no profile from an empty HOME.
home = tempfile.TemporaryDirectory(prefix="agentd-run-")
os.environ["HOME"] = home.name
unittest.addModuleCleanup(home.cleanup)


class Run(unittest.TestCase):
    program = os.environ["EXAMPLE_RUN"]

    def run_it(self, *args):
        return subprocess.run([self.program, *args], stdout=subprocess.PIPE, text=True,
                              timeout=60)

    def test_default(self):
        done = self.run_it()
        self.assertEqual((done.returncode, done.stdout), (0, "hello\nok, exit code 0\n"))

    def test_command(self):
        done = self.run_it("pwd; exit 42")
        self.assertEqual((done.returncode, done.stdout), (1, "/tmp\nerror, exit code 42\n"))


class Stream(unittest.TestCase):
    def test_slow_consumer_paces_the_command(self):
        done = subprocess.run([os.environ["EXAMPLE_STREAM"]], stdout=subprocess.PIPE, text=True,
                              timeout=60)
        self.assertEqual(done.returncode, 0, done.stdout)
        lines = re.findall(r"^(\w+) consumer: (\d+) bytes, paused (\d+) times, "
                           r"the command took ([\d.]+) s$", done.stdout, re.M)
        self.assertEqual([line[:2] for line in lines],
                         [("fast", str(8 << 20)), ("slow", str(8 << 20))])
        self.assertEqual(lines[0][2], "0")
        # 8 MiB in pieces of at most 256 KiB with 20 ms after each, but for what a
        # pipe of at most 1 MiB and one piece in flight still hold at the exit.
        self.assertGreaterEqual(int(lines[1][2]), 32)
        self.assertGreater(float(lines[1][3]), 0.5)


@unittest.skipUnless(os.environ["EXAMPLE_GLIB"], "libglib2.0-dev is not installed")
class GLib(unittest.TestCase):
    def test_the_main_loop_goes_on(self):
        done = subprocess.run(
            [os.environ["EXAMPLE_GLIB"], "echo out; sleep 0.5; echo err >&2; echo more"],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, timeout=60, cwd=home.name)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertEqual(done.stderr, "err\n")
        said = re.fullmatch(r"out\nmore\nok, and the timer came (\d+) times\n", done.stdout)
        self.assertTrue(said, done.stdout)
        # Every 10 ms, if nobody else wants the machine.
        self.assertGreater(int(said[1]), 5)

    def test_an_interrupt_cancels(self):
        process = subprocess.Popen([os.environ["EXAMPLE_GLIB"], "echo begun; exec sleep 60"],
                                   stdout=subprocess.PIPE, text=True, cwd=home.name)
        self.assertEqual(process.stdout.readline(), "begun\n")
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=30)
        self.assertEqual(process.returncode, 1)
        self.assertRegex(out, r"^killed, and the timer came \d+ times$")


class Session(unittest.TestCase):
    def test_files_and_processes(self):
        with tempfile.TemporaryDirectory(prefix="agentd-run-") as dir:
            pool = os.path.join(dir, "pool.json")
            with open(pool, "w", encoding="utf-8") as file:
                file.write('{"enabled": true, "backend": "sandbox", "volume_root": "%s/v"}' % dir)
            done = subprocess.run([os.environ["EXAMPLE_SESSION"], pool,
                                   "123e4567-e89b-12d3-a456-426614174000"],
                                  stdout=subprocess.PIPE, text=True, timeout=60)
        self.assertEqual(done.stdout, "[ok, session kept]\nhello\nstill running\n"
                         "[ok, session kept]\nhello\nit ended with the session\n"
                         "[ok, session kept]\n")
        self.assertEqual(done.returncode, 0)


class Listening(unittest.TestCase):
    """A program that says which port it listens on, and ends with its test."""

    def start(self, program, **kwargs):
        self.process = subprocess.Popen([program], stdout=subprocess.PIPE, text=True, **kwargs)
        self.addCleanup(self.stop)
        line = self.process.stdout.readline()
        self.port = int(re.fullmatch(r"listening on 127\.0\.0\.1:(\d+)\n", line).group(1))

    def stop(self):
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()


class Server(Listening):
    def setUp(self):
        self.start(os.environ["EXAMPLE_SERVER"])

    def end(self):
        self.process.send_signal(signal.SIGINT)
        out, _ = self.process.communicate(timeout=60)
        self.assertEqual(self.process.returncode, 0)
        match = re.fullmatch(r"(\d+) commands, up to (\d+) at once; (\d+) ticks, "
                             r"worst ([\d.]+) ms late\n", out)
        return [float(group) for group in match.groups()]

    def ask(self, data, half_close=True):
        with socket.create_connection(("127.0.0.1", self.port), timeout=60) as conn:
            conn.sendall(data)
            if half_close:
                conn.shutdown(socket.SHUT_WR)
            parts = []
            while part := conn.recv(65536):
                parts.append(part)
            return b"".join(parts)

    def test_commands_in_a_row(self):
        self.assertEqual(self.ask(b"echo a\nexit 4\n\nkill -9 $$\n"),
                         b"a\n[ok 0]\n[error 4]\n"
                         b"[refused: Shell command must not be empty]\n[error -1]\n")
        self.assertEqual(self.end()[0], 3)

    def test_many_at_once_beside_the_ticker(self):
        answers = [None] * 100

        def client(i):
            answers[i] = self.ask(f"sleep 2; echo {i}\n".encode())

        threads = [threading.Thread(target=client, args=(i,)) for i in range(len(answers))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertEqual(answers, [f"{i}\n[ok 0]\n".encode() for i in range(len(answers))])
        commands, most, ticks, _ = self.end()
        self.assertEqual(commands, len(answers))
        self.assertGreater(most, 20)
        self.assertGreater(ticks, 100)

    def test_slow_reader_gets_everything(self):
        with socket.create_connection(("127.0.0.1", self.port), timeout=60) as conn:
            conn.sendall(b"head -c 20000000 /dev/zero\n")
            conn.shutdown(socket.SHUT_WR)
            time.sleep(1)
            total, tail = 0, b""
            while part := conn.recv(1 << 20):
                total += len(part)
                tail = (tail + part)[-7:]
        self.assertEqual((total, tail), (20000007, b"[ok 0]\n"))

    def test_client_that_leaves_ends_its_command(self):
        conn = socket.create_connection(("127.0.0.1", self.port), timeout=60)
        conn.sendall(b"echo $$; yes\n")
        pid = int(conn.makefile().readline())
        conn.close()
        deadline = time.monotonic() + 10
        while os.path.exists(f"/proc/{pid}") and time.monotonic() < deadline:
            time.sleep(0.02)
        self.assertFalse(os.path.exists(f"/proc/{pid}"))

    def test_stop_with_commands_running(self):
        conn = socket.create_connection(("127.0.0.1", self.port), timeout=60)
        self.addCleanup(conn.close)
        conn.sendall(b"echo $$; trap '' TERM; sleep 300\n")
        reader = conn.makefile()
        self.addCleanup(reader.close)
        pid = int(reader.readline())
        self.end()
        self.assertFalse(os.path.exists(f"/proc/{pid}"))


class Http(Listening):
    def setUp(self):
        dir = tempfile.TemporaryDirectory(prefix="agentd-run-")
        self.addCleanup(dir.cleanup)
        self.dir = dir.name
        os.chmod(self.dir, 0o777)
        self.start(os.environ["EXAMPLE_HTTP"], cwd=self.dir)

    def connect(self):
        conn = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        self.addCleanup(conn.close)
        return conn

    def ask(self, body, method="POST", path="/run", conn=None):
        conn = conn or self.connect()
        conn.request(method, path, body)
        reply = conn.getresponse()
        return reply.status, reply.read()

    def test_commands_on_one_connection(self):
        conn = self.connect()
        self.assertEqual(self.ask("echo a; echo b >&2", conn=conn), (200, b"a\nb\n[ok 0]\n"))
        self.assertEqual(self.ask("exit 4", conn=conn), (200, b"[error 4]\n"))

    def test_in_a_sandbox(self):
        status, body = self.ask("pwd; echo > made && ls; ls /home /root; ls -A /sys/class/net")
        self.assertEqual(status, 200)
        self.assertTrue(body.startswith(f"{self.dir}\nmade\n".encode()), body)
        self.assertIn(b"cannot access '/root'", body)
        self.assertTrue(os.path.exists(os.path.join(self.dir, "made")))

    def test_many_at_once(self):
        answers = [None] * 20

        def client(i):
            answers[i] = self.ask(f"sleep 1; echo {i}")

        threads = [threading.Thread(target=client, args=(i,)) for i in range(len(answers))]
        begin = time.monotonic()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertEqual(answers, [(200, f"{i}\n[ok 0]\n".encode()) for i in range(len(answers))])
        self.assertLess(time.monotonic() - begin, len(answers))

    def test_what_is_refused(self):
        self.assertEqual(self.ask("")[0], 400)
        self.assertEqual(self.ask(b"echo \0")[0], 400)
        self.assertEqual(self.ask("x" * 100000)[0], 413)
        self.assertEqual(self.ask(None, method="GET")[0], 501)
        self.assertEqual(self.ask("echo", path="/other")[0], 404)
        self.assertEqual(self.ask("echo")[0], 200)

    def test_slow_reader_gets_everything(self):
        conn = self.connect()
        conn.request("POST", "/run", "head -c 20000000 /dev/zero")
        reply = conn.getresponse()
        time.sleep(1)
        body = reply.read()
        self.assertEqual((len(body), body[-7:]), (20000007, b"[ok 0]\n"))

    def test_client_that_leaves_ends_its_command(self):
        beat = os.path.join(self.dir, "beat")
        conn = self.connect()
        conn.request("POST", "/run", "echo go; while :; do echo >> beat; sleep 0.05; done")
        self.assertEqual(conn.getresponse().read(3), b"go\n")
        self.wait_for(lambda: os.path.exists(beat) and os.path.getsize(beat) > 2)
        conn.close()

        def still():
            size = os.path.getsize(beat)
            time.sleep(1)
            return os.path.getsize(beat) == size

        self.wait_for(still)

    def wait_for(self, condition):
        deadline = time.monotonic() + 10
        while not condition():
            self.assertLess(time.monotonic(), deadline)
            time.sleep(0.02)

    def test_stop_with_a_command_running(self):
        conn = self.connect()
        conn.request("POST", "/run", "echo go; trap '' TERM; sleep 300")
        self.assertEqual(conn.getresponse().read(3), b"go\n")
        self.process.send_signal(signal.SIGTERM)
        self.process.communicate(timeout=60)
        self.assertEqual(self.process.returncode, 0)


if __name__ == "__main__":
    unittest.main(verbosity=1)
