#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""A network of allowed hosts in a virtual machine. What the proxy makes of requests is tested
with the sandbox; here is what the way between guest and host makes of what passes it.

AGENTD_RUN names the program, AGENTD_TEST_IMAGE what machines boot from. A machine takes
seconds to boot, so that each has a script of many checks, which says what it found as JSON."""

import atexit
import hashlib
import json
import os
import shutil
import signal
import socketserver
import subprocess
import tempfile
import textwrap
import time

import servers
import tap
from servers import ALLOWED, OTHER

AGENTD_RUN = os.environ["AGENTD_RUN"]
IMAGE = os.environ.get("AGENTD_TEST_IMAGE", "/var/cache/agentd")
MONITOR = "/usr/bin/qemu-system-x86_64"
if not os.access(MONITOR, os.X_OK):
    tap.skip(f"SKIP-CANNOT: there is no {MONITOR} (Debian: qemu-system-x86)")
if not os.access(os.path.join(IMAGE, "image.json"), os.R_OK):
    tap.skip(f"SKIP-CANNOT: there is no image in {IMAGE}: scripts/build-image makes it")

SIZE = 10_000_000
# As many connections of a command as are carried at once.
MOST = 128


class Digest(socketserver.ThreadingTCPServer):
    """Says what it got, when it has got all of it: it needs both directions of an end."""

    daemon_threads = True

    def __init__(self, address):
        super().__init__((address, 0), None)
        self.port = self.server_address[1]
        servers.in_background(self)

    def finish_request(self, request, client_address):
        got = hashlib.sha256()
        while data := request.recv(1 << 16):
            got.update(data)
        request.sendall(got.hexdigest().encode())


base = tempfile.mkdtemp(prefix="agentd-test-net-vm-")
atexit.register(shutil.rmtree, base)
os.chmod(base, 0o755)
work, www = (os.path.join(base, name) for name in ("work", "www"))
os.mkdir(work)
os.mkdir(www)
random = os.urandom(SIZE)
with open(os.path.join(www, "random"), "wb") as file:
    file.write(random)
with open(os.path.join(www, "hello"), "w", encoding="utf-8") as file:
    file.write("hello from there\n")
web = servers.HTTP(www, ALLOWED)
other = servers.HTTP(www, OTHER)
echo = servers.Echo(ALLOWED)
digest = Digest(ALLOWED)
names = servers.Names({"ok.test": [ALLOWED], "inside.test": [OTHER]})
HELLO = f"http://{ALLOWED}:{web.port}/hello"
ALLOW = ["--allow-host", ALLOWED, "--allow-host", "ok.test", "--resolver", names.address]

# What scripts in the guest begin with.
COMMON = f"""
import hashlib, json, os, socket, sys, time, urllib.error, urllib.request
ALLOWED, OTHER, SIZE, MOST = {ALLOWED!r}, {OTHER!r}, {SIZE}, {MOST}
WEB, THERE, ECHO, DIGEST = {web.port}, {other.port}, {echo.port}, {digest.port}
found = {{}}

def fetch(url):
    try:
        return urllib.request.urlopen(url, timeout=60).read().decode()
    except urllib.error.HTTPError as error:
        return f"{{error.code}} {{error.read().decode()}}"

def proxy(timeout=60):
    return socket.create_connection(("127.0.0.1", 911), timeout=timeout)

def ask(sock, host, port):
    sock.sendall(f"CONNECT {{host}}:{{port}} HTTP/1.1\\r\\n\\r\\n".encode())

def answered(sock):
    head = b""
    while b"\\r\\n\\r\\n" not in head:
        data = sock.recv(1)
        if not data:
            break
        head += data
    return head.split(b"\\r\\n")[0].decode()

def connect(host, port):
    sock = proxy()
    ask(sock, host, port)
    return sock, answered(sock)

def all_of(sock):
    parts = []
    while data := sock.recv(1 << 16):
        parts.append(data)
    return b"".join(parts)
"""


def start(script, *options):
    """agentd-run in a machine, as it runs."""
    with open(os.path.join(work, "script.py"), "w", encoding="utf-8") as out:
        out.write(COMMON + textwrap.dedent(script))
    return subprocess.Popen(
        [AGENTD_RUN, "--quiet", "--backend", "microvm", "--image", IMAGE, "--workdir", work,
         "--timeout-ms", "120000", "--result", os.path.join(base, "result"), "--events",
         os.path.join(base, "events"), *options, "--", "exec python3 script.py"],
        text=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def run(script, *options):
    """The same when it is over: .found is what the script printed last."""
    process = start(script, *options)
    return over(process)


def over(process, said=""):
    out, err = process.communicate(timeout=240)
    with open(os.path.join(base, "result"), encoding="utf-8") as text:
        process.result = json.load(text)
    with open(os.path.join(base, "events"), encoding="utf-8") as text:
        process.denied = [e["target"] for e in map(json.loads, text)
                          if e.get("event") == "denied"]
    process.said, process.story = said + out, [*out.splitlines()[-10:], *err.splitlines()[-20:],
                                               str(process.result)]
    try:
        process.found = json.loads(out.splitlines()[-1])
    except (IndexError, json.JSONDecodeError):
        process.found = {}
    return process


def found(done, what, name, good):
    tap.check(name in done.found and good(done.found[name]), what,
              [f"{name}: {str(done.found.get(name))[:1000]}", *done.story])


# ---- what a command reaches

done = run("""
    found["hello"] = fetch(f"http://{ALLOWED}:{WEB}/hello")
    found["denied"] = fetch(f"http://{OTHER}:{THERE}/hello")
    found["name"] = fetch(f"http://ok.test:{WEB}/hello")
    found["other name"] = fetch(f"http://inside.test:{THERE}/hello")

    sock = proxy()
    sock.sendall(b"\\5\\1\\0")
    method = sock.recv(2)
    sock.sendall(b"\\5\\1\\0\\3\\7ok.test" + WEB.to_bytes(2, "big"))
    code = sock.recv(10)[1]
    sock.sendall(b"GET /hello HTTP/1.0\\r\\n\\r\\n")
    found["socks"] = [method.hex(), code, all_of(sock).decode()]

    begin = time.monotonic()
    got = urllib.request.urlopen(f"http://{ALLOWED}:{WEB}/random", timeout=60).read()
    found["down"] = [len(got), hashlib.sha256(got).hexdigest(), time.monotonic() - begin]

    sock, _ = connect(ALLOWED, DIGEST)
    begin = time.monotonic()
    sock.sendall(got)
    sock.shutdown(socket.SHUT_WR)
    found["up"] = [all_of(sock).decode(), time.monotonic() - begin]

    # Without the proxy there is nothing.
    def directly():
        try:
            socket.create_connection((ALLOWED, WEB), timeout=5)
            return "connected"
        except OSError as error:
            return error.strerror
    found["directly"] = directly()
    def elsewhere():
        try:
            socket.create_connection(("192.0.2.1", 80), timeout=5)
            return "connected"
        except OSError as error:
            return error.strerror
    found["elsewhere"] = elsewhere()
    found["devices"] = sorted(os.listdir("/sys/class/net"))
    def take_port():
        try:
            sock = socket.socket()
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(("127.0.0.1", 911))
            return "taken"
        except OSError as error:
            return error.strerror
    found["port"] = take_port()
    print(json.dumps(found))
""", *ALLOW)
tap.check(done.result["status"] == "ok", "a command with a network ends well", done.story)
found(done, "an allowed address", "hello", lambda x: x == "hello from there\n")
found(done, "a refused one: 403, and why", "denied",
      lambda x: x.startswith("403 ") and "is not allowed" in x and "--allow-host" in x)
found(done, "an allowed name", "name", lambda x: x == "hello from there\n")
found(done, "a refused name", "other name", lambda x: x.startswith("403 "))
tap.check(done.denied == [f"{OTHER}:{other.port}", f"inside.test:{other.port}"] and
          done.result["denied_count"] == 2, "what was refused is told, and counted", done.story)
tap.check(("inside.test", 1) not in names.asked, "and not looked up", [str(names.asked)])
found(done, "SOCKS5 and a name", "socks",
      lambda x: x[:2] == ["0500", 0] and x[2].endswith("hello from there\n"))
found(done, f"{SIZE} bytes from a server arrive", "down",
      lambda x: x[:2] == [SIZE, hashlib.sha256(random).hexdigest()])
found(done, f"{SIZE} bytes to a server arrive, and its answer after their end", "up",
      lambda x: x[0] == hashlib.sha256(random).hexdigest())
found(done, "there is no way but the proxy", "directly", lambda x: "refused" in x)
found(done, "nor to elsewhere", "elsewhere", lambda x: "unreachable" in x)
found(done, "for there is no device", "devices", lambda x: x == ["lo"])
found(done, "no command can take the proxy's port", "port",
      lambda x: x in ("Permission denied", "Address already in use"))
metrics = done.result["metrics"]
tap.check(metrics["net_connections"] == 5 and metrics["net_sent_bytes"] >= SIZE <=
          metrics["net_received_bytes"], "connections and bytes are counted", done.story)
if "down" in done.found and "up" in done.found:
    print(f"# {SIZE / done.found['down'][2] / 1e6:.0f} MB/s down, "
          f"{SIZE / done.found['up'][1] / 1e6:.0f} MB/s up", flush=True)
layer = {x["layer"]: x for x in done.result["receipt"]["layers"]}.get("network", {})
tap.check(layer.get("state") == "enforced" and "policy's hosts" in layer.get("reason", ""),
          "the receipt says what network there was", done.story)

# ---- many, and slow ones

done = run("""
    socks = [proxy() for _ in range(100)]
    for sock in socks:
        ask(sock, ALLOWED, ECHO)
    heads = [answered(sock) for sock in socks]
    found["tunnels"] = sum(" 200 " in head for head in heads)
    for i, sock in enumerate(socks):
        sock.sendall(f"I am {i}".encode() * 1000)
    right = 0
    for i, sock in enumerate(socks):
        want, got = f"I am {i}".encode() * 1000, b""
        while len(got) < len(want):
            got += sock.recv(65536)
        right += got == want
    found["right"] = right

    # All that there may be, and some more, which have to wait.
    socks += [proxy() for _ in range(MOST - len(socks))]
    waiting = [proxy(2) for _ in range(10)]
    for sock in waiting:
        ask(sock, ALLOWED, ECHO)
    try:
        found["too many"] = answered(waiting[0])
    except TimeoutError:
        found["too many"] = "waits"
    for sock in socks:
        sock.close()
    for sock in waiting:
        sock.settimeout(60)
    found["later"] = sum(" 200 " in answered(sock) for sock in waiting)
    # As many again: numbers are used anew.
    for i in range(3):
        for sock in waiting:
            sock.close()
        waiting = [proxy() for _ in range(60)]
        for sock in waiting:
            ask(sock, ALLOWED, ECHO)
        found[f"again {i}"] = sum(" 200 " in answered(sock) for sock in waiting)

    # It reads nothing of what it asked for; nobody else has to wait for it.
    slow = proxy()
    slow.sendall(f"GET http://{ALLOWED}:{WEB}/zeros/200000000 HTTP/1.0\\r\\n\\r\\n".encode())
    time.sleep(0.5)
    found["beside"] = fetch(f"http://{ALLOWED}:{WEB}/hello")
    for _ in range(200):
        sys.stdout.write("x" * 9999 + "\\n")
    print(json.dumps(found))
""", *ALLOW)
tap.check(done.result["status"] == "ok", "a crowd of connections ends well", done.story)
found(done, "100 tunnels at once", "tunnels", lambda x: x == 100)
found(done, "each gets its own answer", "right", lambda x: x == 100)
found(done, "more than there may be wait", "too many", lambda x: x == "waits")
found(done, "until others are over", "later", lambda x: x == 10)
for i in range(3):
    found(done, "numbers are used again", f"again {i}", lambda x: x == 60)
found(done, "one that does not read holds up no other", "beside",
      lambda x: x == "hello from there\n")
tap.check(done.result["metrics"]["stdout_bytes"] > 2_000_000, "nor the output", done.story)
tap.check(done.result["metrics"]["net_received_bytes"] < 20_000_000,
          "and what it does not read is not fetched", done.story)

# ---- the end

process = start("""
    socks = []
    for _ in range(20):
        sock = proxy()
        sock.sendall(f"GET http://{ALLOWED}:{WEB}/zeros/200000000 HTTP/1.0\\r\\n\\r\\n".encode())
        socks.append(sock)
    time.sleep(0.5)
    print("ready", flush=True)
    time.sleep(100)
""", *ALLOW)
line = process.stdout.readline()
begin = time.monotonic()
process.send_signal(signal.SIGINT)
done = over(process, line)
took = time.monotonic() - begin
tap.check(done.said == "ready\n" and (done.result["status"], done.result["cause"]) ==
          ("killed", "canceled"), "a cancel ends a command and its tunnels", done.story)
tap.check(took < 20, "without waiting for who does not read", [f"{took} s"])

done = run(f"""
    try:
        found["hello"] = fetch("{HELLO}")
    except OSError as error:
        found["hello"] = str(error)
    found["proxy"] = os.environ.get("HTTP_PROXY")
    try:
        proxy()
        found["port"] = "open"
    except OSError as error:
        found["port"] = error.strerror
    print(json.dumps(found))
""", "--net", "none")
found(done, "without a network there is no proxy", "port", lambda x: "refused" in x)
found(done, "nobody is told of one", "proxy", lambda x: x is None)

done = run("print('{}')", "--net", "full")
tap.check(done.returncode == 126 and "does not give the host's network" in
          json.dumps(done.result["error"]), "the host's network is refused", done.story)
tap.finish()
