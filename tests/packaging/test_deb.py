# SPDX-License-Identifier: MIT
"""The Debian packages are built, are as they should be, and work where they are installed.

Argument: the project's version.

"Installed" is an overlay over /usr in a mount namespace of its own: the machine stays as it is.
"""

import os
import shutil
import sys
import tempfile

import tap

VERSION = sys.argv[1]
PACKAGES = ["agentd-tools", "libagentd-dev", "libagentd0", "python3-agentd"]
CONSUMER = os.path.join(tap.ROOT, "tests", "install", "consumer.c")
# A mount namespace, as root or as whoever it is; no capability is left after the mount.
ENTER = ["unshare", "--mount"] if os.getuid() == 0 else \
        ["unshare", "--mount", "--map-current-user", "--keep-caps"]
MOUNT = """mount -t overlay agentd -o "ro,lowerdir=$0/usr:/usr" /usr || exit 99
[ "$(id -u)" = 0 ] && exec "$@"
exec setpriv --ambient-caps=-all --inh-caps=-all "$@\""""

for program in ("dpkg-buildpackage", "dh", "dh_python3", "lintian", "fakeroot"):
    tap.need(program)


def said(done):
    return [f"status {done.returncode}", *(done.stdout + done.stderr).splitlines()[-40:]]


def expect(done, status, stdout, name):
    tap.check(done.returncode == status and done.stdout == stdout, name, said(done))


with tempfile.TemporaryDirectory(prefix="agentd-packaging-") as scratch:
    os.chmod(scratch, 0o755)
    os.umask(0o022)
    env = {k: v for k, v in os.environ.items()
           if not k.startswith(("MESON", "AGENTD_", "DESTDIR", "LD_", "PYTHON", "DEB_"))
           and k not in ("CC", "CFLAGS", "LDFLAGS")}
    env["HOME"] = scratch  # where login shells find no profile
    env["LC_ALL"] = "C.UTF-8"

    # ---- the packages

    debs = os.path.join(scratch, "debs")
    built = tap.run([os.path.join(tap.ROOT, "scripts", "build-deb"), "--out", debs], env=env)
    if not tap.check(built.returncode == 0, "scripts/build-deb", said(built)):
        tap.finish()
    names = sorted(n for n in os.listdir(debs) if n.endswith(".deb") and "-dbgsym_" not in n)
    tap.check([n.split("_")[0] for n in names] == PACKAGES
              and all(n.split("_")[1] == f"{VERSION}-1" for n in names),
              "the packages, of the project's version", names)
    changes = [os.path.join(debs, n) for n in os.listdir(debs) if n.endswith(".changes")]
    # They are not for Debian's archive, where a first upload closes a bug.
    judged = tap.run(["lintian", "--allow-root", "--fail-on", "error,warning", "--suppress-tags",
                      "initial-upload-closes-no-bugs", *changes], env=env)
    tap.check(judged.returncode == 0, "lintian has no error and no warning", said(judged))

    # ---- installed

    def root(name, *packages):
        """A root directory with those packages."""
        top = os.path.join(scratch, name)
        for package in packages:
            deb = next(n for n in names if n.startswith(package + "_"))
            done = tap.run(["dpkg", "-x", os.path.join(debs, deb), top])
            tap.check(done.returncode == 0, f"{package} unpacks", said(done))
        tap.check(sorted(os.listdir(top)) == ["usr"], f"{', '.join(packages)}: all is in /usr")
        return top

    def inside(top, *argv):
        return tap.run([*ENTER, "sh", "-c", MOUNT, top, *argv], env=env, cwd=work)

    work = os.path.join(scratch, "work")
    os.mkdir(work)
    os.chmod(work, 0o777)
    python = root("python", "libagentd0", "python3-agentd")
    trial = inside(python, "true")
    if trial.returncode == 99:
        print(f"SKIP-CANNOT: no overlay on /usr: {trial.stderr.strip()}", file=sys.stderr)
        tap.finish()

    # The library and Python without the tools.
    hello = ("/usr/bin/python3", "-c", "import agentd; print(agentd.run('echo hi').stdout.decode(), end='')")
    expect(inside(python, *hello), 0, "hi\n", "Python: a command runs in a sandbox")

    everything = root("everything", *PACKAGES)
    expect(inside(everything, "agentd-run", "--quiet", "echo hi; ls /etc/shadow 2>/dev/null || echo sandboxed"),
           0, "hi\nsandboxed\n", "agentd-run: a command runs in a sandbox")
    # Without the helper nothing runs: no other one was found.
    bare = os.path.join(scratch, "bare")
    shutil.copytree(everything, bare, symlinks=True)
    triplet = tap.run(["dpkg-architecture", "-qDEB_HOST_MULTIARCH"]).stdout.strip()
    programs = f"/usr/lib/{triplet}/libagentd0/agentd"
    os.remove(f"{bare}{programs}/agentd-helper")
    for argv in (hello, ("agentd-run", "echo hi")):
        failed = inside(bare, *argv)
        tap.check(failed.returncode != 0 and not failed.stdout
                  and f"{programs}/agentd-helper" in failed.stderr,
                  f"{os.path.basename(argv[0])}: no helper, and its place is named", said(failed))
    judged = inside(everything, "agentd-conformance", "--backend", "sandbox", "--only", "ends")
    tap.check(judged.returncode == 0 and judged.stdout.count("\nok ") == 8,
              "agentd-conformance judges the installed library", said(judged))
    for page in ("agentd.7", "agentd-run.1", "agentd-conformance.1", "agentd_policy.5"):
        tap.check(os.path.isfile(f"{everything}/usr/share/man/man{page[-1]}/{page}.gz"), f"{page}")
    # The program that carries the working directory is found beside the helper.
    image = os.environ.get("AGENTD_TEST_IMAGE", "/var/cache/agentd")
    if os.path.exists("/usr/bin/qemu-system-x86_64") and os.path.exists(f"{image}/image.json"):
        expect(inside(everything, "agentd-run", "--quiet", "--image", image, "--backend", "microvm", "echo hi"),
               0, "hi\n", "agentd-run: a command runs in a virtual machine")
    else:
        print(f"SKIP-CANNOT: no qemu-system-x86 or no {image}/image.json", file=sys.stderr)

    # ---- a program in C

    for kind, flag, static in (("shared", "", ""), ("static", "-static", "--static")):
        program = os.path.join(work, f"consumer-{kind}")
        build = f"cc {flag} {CONSUMER} -o {program} $(pkg-config {static} --cflags --libs agentd)"
        done = inside(everything, "sh", "-ec", build)
        if tap.check(done.returncode == 0, f"a C program builds, {kind}", said(done)):
            expect(inside(everything, program), 0, "hi\nok exited 0 host\n", f"and runs, {kind}")
tap.finish()
