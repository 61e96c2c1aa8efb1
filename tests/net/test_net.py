# SPDX-License-Identifier: MIT
"""Commands that may reach some hosts and no others, with the programs that people use.

AGENTD_RUN names the program. Every refusal has its control: the same thing where it is
allowed, or outside of the sandbox."""

import json
import os
import resource
import shutil
import socket
import tempfile
import textwrap

import servers
import tap
from servers import ALLOWED, OTHER

AGENTD_RUN = os.environ["AGENTD_RUN"]
for program in ("curl", "git", "openssl"):
    tap.need(program)

base = tempfile.mkdtemp(prefix="agentd-test-net-")
os.environ["HOME"] = base  # where login shells find no profile
os.chmod(base, 0o755)
work, www, tls = (os.path.join(base, name) for name in ("work", "www", "tls"))
for folder in (work, www, tls):
    os.mkdir(folder)
with open(os.path.join(www, "hello"), "w", encoding="utf-8") as file:
    file.write("hello from there\n")

web = servers.HTTP(www, ALLOWED)
other = servers.HTTP(www, OTHER)
echo = servers.Echo(ALLOWED)
web.away = f"http://{OTHER}:{other.port}/hello"
names = servers.Names({
    "ok.test": [ALLOWED],
    "inside.test": [OTHER],
    "both.test": [OTHER, ALLOWED],
    "turns.test": [[ALLOWED], [OTHER]],
    "empty.test": [],
})
ca, cert, key = servers.make_certificates(tls, tap.run)
secure = servers.https(www, ALLOWED, cert, key)
shutil.copy(ca, work)
HELLO = f"http://{ALLOWED}:{web.port}/hello"
DEFAULT = ["--allow-host", ALLOWED, "--resolver", names.address]


def more_files():
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def run(script, *options, **kwargs):
    """A script; .result is what agentd-run says of it, .denied the targets refused."""
    result, events = os.path.join(base, "result"), os.path.join(base, "events")
    done = tap.run([AGENTD_RUN, "--quiet", "--timeout-ms", "60000", "--workdir", work, "--result",
                    result, "--events", events, *(options or DEFAULT), "--",
                    textwrap.dedent(script)], **kwargs)
    with open(result, encoding="utf-8") as file:
        done.result = json.load(file)
    with open(events, encoding="utf-8") as file:
        done.denied = [e for e in map(json.loads, file) if e.get("event") == "denied"]
    return done


def details(done):
    return [f"exit {done.returncode}", *done.stdout.splitlines()[:20], *done.stderr.splitlines()[:20],
            str(done.denied)]


def expect(what, done, out, denied=0):
    tap.check(done.stdout == out and done.result["denied_count"] == denied == len(done.denied),
              what, details(done))


def has(what, done, *texts, denied=0):
    said = done.stdout + done.stderr
    tap.check(all(t in said for t in texts) and done.result["denied_count"] == denied, what,
              details(done))


def inside(code):
    """A python script for the sandbox."""
    return "python3 - <<'END'\n" + textwrap.dedent(code) + "\nEND\n"


PROXY = """
import os, socket
def proxy(timeout=20):
    return socket.create_connection(("127.0.0.1", 911), timeout=timeout)
def connect(host, port):
    sock = proxy()
    sock.sendall(f"CONNECT {host}:{port} HTTP/1.1\\r\\n\\r\\n".encode())
    head = b""
    while b"\\r\\n\\r\\n" not in head:
        data = sock.recv(1)
        if not data:
            break
        head += data
    return sock, head.split(b"\\r\\n")[0].decode()
"""

# ---- programs

expect("curl", run(f"curl -sS {HELLO}"), "hello from there\n")
expect("curl, through a tunnel", run(f"curl -sSp {HELLO}"), "hello from there\n")
expect("curl, SOCKS5 and a name", run(
    f"curl -sS --proxy socks5h://127.0.0.1:911 http://ok.test:{web.port}/hello",
    "--allow-host", "ok.test", *DEFAULT), "hello from there\n")
expect("curl, SOCKS5 and an address", run(f"curl -sS --proxy socks5://127.0.0.1:911 {HELLO}"),
       "hello from there\n")
expect("curl, a name and TLS", run(
    f"curl -sS --cacert ca.pem https://ok.test:{secure.port}/hello", "--allow-host", "ok.test",
    *DEFAULT), "hello from there\n")
has("TLS is the client's: another CA is refused", run(
    f"curl -sS https://ok.test:{secure.port}/hello", "--allow-host", "ok.test", *DEFAULT),
    "certificate")
expect("curl sends a body", run(
    f"head -c 300000 /dev/zero | curl -sS --data-binary @- http://{ALLOWED}:{web.port}/"),
    "got 300000\n")
done = run(f"""
    head -c 40000 /dev/zero | curl -sS --data-binary @- http://{ALLOWED}:{web.port}/
    head -c 300000 /dev/zero | curl -sS --data-binary @- http://{ALLOWED}:{web.port}/ || echo cut
    curl -sS {HELLO}; echo on""", "--net-bytes", "100K", *DEFAULT)
moved = done.result["metrics"]["net_sent_bytes"] + done.result["metrics"]["net_received_bytes"]
tap.check(done.stdout.startswith("got 40000\ncut\n") and "net_bytes" in done.stdout
          and done.stdout.endswith("on\n") and done.result["limit"] == "net_bytes"
          and done.result["status"] == "ok" and [d["rule"] for d in done.denied] == ["net_bytes"]
          and 40000 < moved <= 100 << 10,
          "no more bytes than the limit says, and the command goes on",
          [*details(done), str(done.result)])
expect("python3 urllib", run(inside(f"""
    import urllib.request
    print(urllib.request.urlopen("{HELLO}").read().decode(), end="")
    """)), "hello from there\n")
with open(os.path.join(base, "gitconfig"), "w", encoding="utf-8") as file:
    file.write("[user]\nname = n\nemail = e@test\n[init]\ndefaultBranch = main\n")
git_env = {**os.environ, "GIT_CONFIG_GLOBAL": os.path.join(base, "gitconfig"), "GIT_CONFIG_SYSTEM":
           "/dev/null"}
for argv in (["init", "-q", base + "/repo"], ["-C", base + "/repo", "commit", "-q", "--allow-empty",
                                              "-m", "a first commit"],
             ["clone", "-q", "--bare", base + "/repo", www + "/repo.git"],
             ["-C", www + "/repo.git", "update-server-info"]):
    tap.check(tap.run(["git", *argv], env=git_env).returncode == 0, "git " + " ".join(argv[:1]))
expect("git clones over http", run(
    f"git clone -q http://{ALLOWED}:{web.port}/repo.git got && git -C got log --format=%s"),
    "a first commit\n")
node = shutil.which("node", path="/usr/local/bin:/usr/bin:/bin")
version = tap.run([node, "--version"]).stdout if node else ""
if node and int(version.lstrip("v").split(".")[0]) >= 24:
    expect("node fetch", run(
        f"""node -e 'fetch("{HELLO}").then(r => r.text()).then(t => process.stdout.write(t))'"""),
        "hello from there\n")
else:
    # Its fetch() knows of proxies from version 22.21 and 24 on.
    print(f"# node is {version.strip() or 'not installed'}: its fetch() uses no proxy")
has("a server inside is reached directly", run(inside("""
    import http.server, threading, urllib.request
    s = http.server.HTTPServer(("127.0.0.1", 8123), http.server.SimpleHTTPRequestHandler)
    threading.Thread(target=s.serve_forever, daemon=True).start()
    print(urllib.request.urlopen("http://localhost:8123/").status)
    """)), "200")
there = servers.HTTP(www, "127.0.0.1")
URL = f"http://127.0.0.1:{there.port}/hello"
expect("one outside is reached by the address that a rule names", run(
    f"curl -sS {URL}", "--allow-host", f"127.0.0.1:{there.port}"), "hello from there\n")
has("and by no other", run(f"curl -sS {URL}", "--allow-host", ALLOWED), "connect to")

# ---- rules

has("what is not allowed is refused, with a reason",
    run(f"curl -sS http://{OTHER}:{other.port}/hello"), f"{OTHER}:{other.port} is not allowed",
    "--allow-host", denied=1)
done = run(f"curl -sS http://{OTHER}:{other.port}/hello")
tap.check(len(done.denied) == 1 and done.denied[0]["kind"] == "net" and
          done.denied[0]["target"] == f"{OTHER}:{other.port}" and
          "loopback" in done.denied[0]["rule"], "and is told to the host", details(done))
expect("it is reached where it is allowed", run(
    f"curl -sS http://{OTHER}:{other.port}/hello", "--allow-host", f"{OTHER}:{other.port}"),
    "hello from there\n")
has("another port is not", run(
    f"curl -sS http://{OTHER}:{other.port}/hello", "--allow-host", f"{OTHER}:1"),
    "is not allowed", denied=1)
has("a block allows", run(f"curl -sS {HELLO}", "--allow-host", "127.0.0.0/8"), "hello from there")
has("and what is denied in it stays so", run(
    f"curl -sS {HELLO}", "--allow-host", "127.0.0.0/8", "--deny-host", ALLOWED),
    f"net.deny has \"{ALLOWED}\"", denied=1)
for spelling in ("0x7f.3", "2130706435", "0177.0.0.3", "127.3"):
    has(f"{spelling} is {OTHER}", run(inside(PROXY + f"""
sock, said = connect("{spelling}", {other.port})
print(said, sock.recv(4096))
""")), "403", f"{OTHER}:{other.port}", denied=1)
has("a redirect meets the policy again", run(f"curl -sSL http://{ALLOWED}:{web.port}/away"),
    f"{OTHER}:{other.port} is not allowed", denied=1)
has("a name that is not allowed is not looked up", run(
    f"curl -sS http://inside.test:{other.port}/"), "not in the allow-list", denied=1)
tap.check(("inside.test", 1) not in names.asked, "indeed", [str(names.asked)])
has("a name that leads inside is refused", run(
    f"curl -sS http://inside.test:{other.port}/", "--allow-host", "*.test", *DEFAULT),
    f"({OTHER}) is not allowed", f"--allow-host '{OTHER}:{other.port}'", denied=1)
before = len(other.seen)
expect("of a name's addresses only those that may be are tried", run(
    f"curl -sS http://both.test:{web.port}/hello", "--allow-host", "*.test", *DEFAULT),
    "hello from there\n")
expect("the address that was checked is the one connected to", run(
    f"curl -sS http://turns.test:{web.port}/hello", "--allow-host", "turns.test", *DEFAULT),
    "hello from there\n")
tap.check(names.asked.count(("turns.test", 1)) == 1 and len(other.seen) == before,
          "after one lookup", [str(names.asked), str(other.seen)])
has("and the next lookup is checked again", run(
    f"curl -sS http://turns.test:{web.port}/hello", "--allow-host", "turns.test", *DEFAULT),
    f"({OTHER}) is not allowed", denied=1)
for name in ("nobody.test", "empty.test"):
    has(f"{name} has no address", run(f"curl -sS http://{name}/", "--allow-host", "*.test",
                                      *DEFAULT), "cannot be reached")
has("nobody listens there", run(f"curl -sS http://{ALLOWED}:9/"), "Connection refused")
has("the Host field is the target's", run(
    f"curl -sS -H 'Host: evil.test' -o /dev/null -w '%{{http_code}}' {HELLO}"), "200")
tap.check(web.seen[-1] == ("/hello", f"{ALLOWED}:{web.port}"), "whatever the client says",
          [str(web.seen[-1])])

# ---- nothing else

OUT = f"""
import socket, sys
def attempt(name, kind, address, family=socket.AF_INET, protocol=0, data=b"x", flags=0):
    try:
        sock = socket.socket(family, kind, protocol)
        sock.settimeout(1)
        if flags:
            sock.sendto(data, flags, address)
        elif kind == socket.SOCK_STREAM:
            sock.connect(address)
        else:
            sock.sendto(data, address)
            sock.recv(512)
        print(name, "got out")
    except OSError as error:
        print(name, "failed", error.errno)
question = b"\\x12\\x34\\x01\\0\\0\\1\\0\\0\\0\\0\\0\\0\\2ok\\4test\\0\\0\\1\\0\\1"
attempt("tcp", socket.SOCK_STREAM, ("{ALLOWED}", {web.port}))
attempt("udp", socket.SOCK_DGRAM, ("127.0.0.1", {names.server_address[1]}), data=question)
attempt("mptcp", socket.SOCK_STREAM, ("{ALLOWED}", {web.port}), protocol=262)
attempt("fastopen", socket.SOCK_STREAM, ("{ALLOWED}", {web.port}), flags=0x20000000)
attempt("abstract", socket.SOCK_STREAM, "\\0agentd-test-net-{os.getpid()}", family=socket.AF_UNIX)
attempt("path", socket.SOCK_STREAM, "{base}/socket", family=socket.AF_UNIX)
"""
listeners = []
for name in (f"\0agentd-test-net-{os.getpid()}", base + "/socket"):
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(name)
    listener.listen(16)
    listeners.append(listener)
os.chmod(base + "/socket", 0o777)
control = tap.run(["python3", "-c", OUT]).stdout.splitlines()
caught = run(inside(OUT)).stdout.splitlines()
tap.check(len(control) == len(caught) == 6, "six ways out", [*control, *caught])
for free, held in zip(control, caught):
    name = free.split()[0]
    if free.endswith("got out"):
        tap.check(held.startswith(name + " failed"), f"{name} gets out only outside", [free, held])
    else:
        tap.check(name in ("mptcp", "fastopen"), f"{name} is not to be had outside either", [free])
        tap.check(held.startswith(name + " failed"), f"nor is it inside", [held])
raw = run(inside("""
    import socket
    for name, family, kind, protocol in (("raw", socket.AF_INET, socket.SOCK_RAW, 1),
                                         ("packet", 17, socket.SOCK_RAW, 0),
                                         ("vsock", 40, socket.SOCK_STREAM, 0),
                                         ("audit", socket.AF_NETLINK, socket.SOCK_RAW, 9)):
        try:
            socket.socket(family, kind, protocol)
            print(name, "got out")
        except OSError as error:
            print(name, "failed")
    """)).stdout
tap.check(raw == "raw failed\npacket failed\nvsock failed\naudit failed\n", "no other sockets",
          [raw])
has("the proxy's port cannot be taken", run(inside("""
    import socket
    try:
        socket.create_server(("127.0.0.1", 911), reuse_port=True)
        print("taken")
    except OSError as error:
        print("kept", error.errno)
    """)), "kept 13")
expect("without a network there is no proxy", run(inside("""
    import socket
    try:
        socket.create_connection(("127.0.0.1", 911))
        print("there")
    except OSError as error:
        print("none", error.errno)
    """), "--net", "none"), "none 111\n")

# ---- clients that mean no good, and much of everything

expect("malformed requests are answered", run(inside(PROXY + """
for text in (b"\\0" * 100, b"GET / HTTP/1.1\\r\\n\\r\\n", b"a" * 40000, b"CONNECT x HTTP/1.1\\r\\n\\r\\n",
             b"\\x05\\x01\\x02", b"\\x05\\x01\\0\\x05\\x02\\0\\x01\\x7f\\0\\0\\x01\\0\\x50"):
    sock = proxy()
    sock.sendall(text)
    data = b""
    while True:
        got = sock.recv(4096)
        if not got:
            break
        data += got
    print(data[:12])
""")), "b'HTTP/1.1 400'\nb'HTTP/1.1 400'\nb'HTTP/1.1 431'\nb'HTTP/1.1 400'\nb'\\x05\\xff'\n"
       "b'\\x05\\x00\\x05\\x07\\x00\\x01\\x00\\x00\\x00\\x00\\x00\\x00'\n")
done = run(inside(PROXY + f"""
import time
slow = [proxy(60) for _ in range(20)]
start, sent = time.monotonic(), 0
while slow and time.monotonic() - start < 40:
    for sock in list(slow):
        try:
            sock.sendall(b"C" if sent == 0 else b"x")
        except OSError:
            slow.remove(sock)
    sent += 1
    if sent == 3:
        print(connect("{ALLOWED}", {echo.port})[1])
    time.sleep(0.5)
print(len(slow), 15 < time.monotonic() - start < 35)
"""))
has("who sends a request slowly holds up nobody, and is cut off", done, "200", "0 True")
size = 2 << 30
has("a body of 2 GiB", run(
    f"curl -sS -o /dev/null -w '%{{size_download}}' http://{ALLOWED}:{web.port}/zeros/{size}"),
    str(size))
has("and one there", run(
    f"head -c {size >> 2} /dev/zero | curl -sS -T - -X POST -H 'Transfer-Encoding:' "
    f"-H 'Content-Length: {size >> 2}' http://{ALLOWED}:{web.port}/"), f"got {size >> 2}")
done = run(f"""
    curl -sS --limit-rate 100k -o /dev/null \
        http://{ALLOWED}:{web.port}/zeros/{size} & sleep 2; kill $!
    """)
tap.check(done.result["metrics"]["net_received_bytes"] < 64 << 20,
          "who reads slowly is sent little: the rest waits", [str(done.result["metrics"])])
done = run(inside(PROXY + f"""
import resource
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 4096), hard))
tunnels = [connect("{ALLOWED}", {echo.port}) for _ in range(500)]
print(sum("200" in said for _, said in tunnels))
for i, (sock, _) in enumerate(tunnels):
    sock.sendall(b"%d" % i * 1000)
good = 0
for i, (sock, _) in enumerate(tunnels):
    data, want = b"", b"%d" % i * 1000
    while len(data) < len(want):
        data += sock.recv(65536)
    good += data == want
print(good)
"""), *DEFAULT, preexec_fn=more_files)
expect("500 tunnels at once", done, "500\n500\n")
tap.check(done.result["metrics"]["net_connections"] == 500, "are counted",
          [str(done.result["metrics"])])
accepted = echo.accepted
done = run(inside(PROXY + f"""
import os
for _ in range(30):
    connect("{ALLOWED}", {echo.port})
waiting = [proxy() for _ in range(30)]
if os.fork() == 0:
    os.setsid()
    os.system("sleep 300")
print("over")
"""), "--timeout-ms", "20000", *DEFAULT)
has("a command that ends with tunnels open", done, "over")
tap.check(done.result["status"] == "ok" and echo.accepted == accepted + 30 and
          done.result["duration_ms"] < 15000, "ends, and they with it", details(done))

# ---- backends and policies

bare = [AGENTD_RUN, "--quiet", "--workdir", work, "--backend", "host", "--min-isolation", "none",
        "--allow-host", "a.test"]
done = tap.run([*bare, "--", "echo ran"])
tap.check(done.returncode == 126 and "ran" not in done.stdout and "allowed hosts" in done.stderr,
          "the host backend refuses what it cannot enforce", [str(done)])
result = os.path.join(base, "result")
done = tap.run([*bare, "--layer", "netns=degradable", "--result", result, "--", "echo ran"])
if tap.check(done.stdout == "ran\n", "and runs where the policy says so", [str(done)]):
    with open(result, encoding="utf-8") as file:
        layers = {l["layer"]: l for l in json.load(file)["receipt"]["layers"]}
    tap.check(layers["network"]["state"] == "absent" and
              "not enforced" in layers["network"]["reason"], "which the receipt tells",
              [str(layers["network"])])
layers = {l["layer"]: l for l in run("true").result["receipt"]["layers"]}
tap.check(layers["network"]["state"] == "enforced" and "proxy" in layers["network"]["reason"],
          "the sandbox's receipt", [str(layers["network"])])

for listener in listeners:
    listener.close()
shutil.rmtree(base)
tap.finish()
