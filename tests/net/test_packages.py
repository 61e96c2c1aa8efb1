# SPDX-License-Identifier: MIT
"""pip, npm and cargo fetch packages from a registry that the policy allows, through the proxy that their
environment names, and from no other.

AGENTD_RUN names the program."""

import base64
import hashlib
import io
import json
import os
import shutil
import tarfile
import tempfile
import zipfile

import servers
import tap
from servers import ALLOWED, OTHER

AGENTD_RUN = os.environ["AGENTD_RUN"]
for program in ("node", "npm", "cargo", "git"):
    tap.need(program)
base = tempfile.mkdtemp(prefix="agentd-test-packages-")
os.chmod(base, 0o755)
work, www = os.path.join(base, "work"), os.path.join(base, "www")
os.mkdir(work)
os.mkdir(www)
registry, other = servers.HTTP(www, ALLOWED), servers.HTTP(www, OTHER)
GOOD, BAD = (f"http://{address}:{server.port}" for address, server in
             ((ALLOWED, registry), (OTHER, other)))


def put(path, data):
    path = os.path.join(www, path)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "wb") as file:
        file.write(data)


def run(*script):
    result = os.path.join(base, "result")
    done = tap.run([AGENTD_RUN, "--quiet", "--timeout-ms", "200000", "--workdir", work, "--result",
                    result, "--allow-host", ALLOWED, "--", "\n".join(script)])
    with open(result, encoding="utf-8") as file:
        done.result = json.load(file)
    return done


def check(name, done, last, denied):
    lines = done.stdout.split("\n")
    tap.check(lines[-2:-1] == [last] and done.result["denied_count"] >= denied
              and (denied or not done.result["denied_count"]),
              name, [str(done.result), *lines[-20:], *done.stderr.split("\n")[-20:]])


# ---- Python

wheel = io.BytesIO()
with zipfile.ZipFile(wheel, "w") as archive:
    archive.writestr("agentd_sample.py", "print('a module from there')\n")
    archive.writestr("agentd_sample-1.0.dist-info/METADATA",
                     "Metadata-Version: 2.1\nName: agentd-sample\nVersion: 1.0\n")
    archive.writestr("agentd_sample-1.0.dist-info/WHEEL",
                     "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\n"
                     "Tag: py3-none-any\n")
    archive.writestr("agentd_sample-1.0.dist-info/RECORD", "")
NAME = "agentd_sample-1.0-py3-none-any.whl"
put(f"simple/agentd-sample/{NAME}", wheel.getvalue())
put("simple/agentd-sample/index.html", f'<html><body><a href="{NAME}">{NAME}</a></body></html>'
    .encode())


def pip(index):
    return (f"v/bin/pip install -q --disable-pip-version-check --retries 0 --trusted-host {ALLOWED} "
            f"--trusted-host {OTHER} --index-url {index}/simple/ agentd-sample")


check("pip installs from a registry that is allowed, not from another",
      run("python3 -m venv v || exit 3", f"{pip(BAD)} 2>&1 && echo no", pip(GOOD),
          "v/bin/python -c 'import agentd_sample'"),
      "a module from there", 1)
tap.check(not other.seen, "the other one was never reached", [str(other.seen)])

# ---- Node.js

packed = io.BytesIO()
with tarfile.open(fileobj=packed, mode="w:gz") as archive:
    for name, text in (("package.json", json.dumps({"name": "agentd-sample", "version": "1.0.0",
                                                    "main": "index.js"})),
                       ("index.js", "console.log('a package from there')\n")):
        info = tarfile.TarInfo(f"package/{name}")
        info.size = len(text)
        archive.addfile(info, io.BytesIO(text.encode()))
put("tarballs/agentd-sample-1.0.0.tgz", packed.getvalue())
put("agentd-sample", json.dumps({
    "name": "agentd-sample",
    "dist-tags": {"latest": "1.0.0"},
    "versions": {"1.0.0": {
        "name": "agentd-sample",
        "version": "1.0.0",
        "dist": {
            "tarball": f"{GOOD}/tarballs/agentd-sample-1.0.0.tgz",
            "integrity": "sha512-"
                         + base64.b64encode(hashlib.sha512(packed.getvalue()).digest()).decode(),
        },
    }},
}).encode())


def npm(url):
    return (f"npm install --no-audit --no-fund --loglevel=error --fetch-retries=0 --registry {url}/ "
            "agentd-sample")


check("npm installs from a registry that is allowed, not from another",
      run("echo '{}' >package.json", f"{npm(BAD)} 2>npm.log && echo no", npm(GOOD) + " || exit 3",
          "node -e 'require(\"agentd-sample\")'"),
      "a package from there", 1)
with open(os.path.join(work, "npm.log"), encoding="utf-8") as file:
    tap.check("403" in file.read(), "and says that it was refused")
tap.check(not other.seen, "the other one was never reached", [str(other.seen)])

# ---- Rust: an index in git, and crates

crate = io.BytesIO()
with tarfile.open(fileobj=crate, mode="w:gz") as archive:
    for name, text in (("Cargo.toml", '[package]\nname = "agentd-sample"\nversion = "1.0.0"\n'),
                       ("src/lib.rs", 'pub fn say() { println!("a crate from there") }\n')):
        info = tarfile.TarInfo(f"agentd-sample-1.0.0/{name}")
        info.size = len(text)
        archive.addfile(info, io.BytesIO(text.encode()))
put("crates/agentd-sample/1.0.0/download", crate.getvalue())


def make_index(name, url):
    top = os.path.join(base, name)
    entry = {"name": "agentd-sample", "vers": "1.0.0", "deps": [], "features": {}, "yanked": False,
             "cksum": hashlib.sha256(crate.getvalue()).hexdigest()}
    os.makedirs(os.path.join(top, "ag", "en"))
    with open(os.path.join(top, "ag", "en", "agentd-sample"), "w", encoding="utf-8") as file:
        file.write(json.dumps(entry) + "\n")
    with open(os.path.join(top, "config.json"), "w", encoding="utf-8") as file:
        json.dump({"dl": f"{url}/crates"}, file)
    env = {**os.environ, "GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_SYSTEM": "/dev/null"}
    bare = os.path.join(www, name + ".git")
    for argv in (["init", "-q", top], ["-C", top, "add", "."],
                 ["-C", top, "-c", "user.name=n", "-c", "user.email=e@test", "commit", "-qm", "index"],
                 ["clone", "-q", "--bare", top, bare], ["-C", bare, "update-server-info"]):
        tap.check(tap.run(["git", *argv], env=env).returncode == 0, f"{name}: git {argv[0]}")


# The index of both is where it may be had; the crates of one are not.
make_index("index", GOOD)
make_index("index-bad", BAD)


def cargo(name):
    return (f"rm -rf {name} && mkdir -p {name}/src && cd {name} && "
            "echo 'fn main() { agentd_sample::say() }' >src/main.rs && "
            "printf '[package]\\nname = \"program\"\\nversion = \"0.1.0\"\\n[dependencies]\\n"
            "agentd-sample = { version = \"1\", registry = \"there\" }\\n' >Cargo.toml && "
            "CARGO_HOME=$PWD/home CARGO_NET_GIT_FETCH_WITH_CLI=true CARGO_NET_RETRY=0 "
            f"CARGO_REGISTRIES_THERE_INDEX={GOOD}/{name}.git cargo run -q")


check("cargo fetches crates from a registry that is allowed, not from another",
      run(f"({cargo('index-bad')}) 2>cargo.log && echo no", cargo("index")),
      "a crate from there", 1)
with open(os.path.join(work, "cargo.log"), encoding="utf-8") as file:
    tap.check("403" in file.read(), "and says that it was refused")
tap.check(not other.seen, "the other one was never reached", [str(other.seen)])

shutil.rmtree(base)
tap.finish()
