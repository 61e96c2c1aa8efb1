# SPDX-License-Identifier: MIT
"""The backends sandbox and host on another kernel than this machine's: the image's, in a
virtual machine whose control groups are all of version 2.

usage: test_inguest.py BUILD INIT PART...

BUILD is the build directory, INIT its static init of here; inside.py says what the parts
are and does them. Nothing is left of the machine, nor written to the image."""

import importlib.machinery
import importlib.util
import json
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time

import tap

BUILD, INIT, *PARTS = sys.argv[1:]
MONITOR = "/usr/bin/qemu-system-x86_64"
MKE2FS = "/usr/sbin/mke2fs"
HERE = os.path.dirname(os.path.abspath(__file__))
DEFAULT = "/var/cache/agentd" if os.geteuid() == 0 else os.path.expanduser("~/.cache/agentd")
IMAGE = os.path.realpath(os.environ.get("AGENTD_TEST_IMAGE", DEFAULT))
MEMORY = "1536M"
DISK = "1G"
# A machine may be ten times slower than it is by itself.
GUARD_SECONDS = 3000

PROGRAMS = (
    "examples/agentd-run",
    "lib/helper/agentd-helper",
    "tests/conformance/agentd-conformance",
    "tests/sandbox/sandbox-landlock",
    "tests/sandbox/sandbox-seccomp",
    "tests/sandbox/sandbox-life",
    "tests/pool/pool",
    "tests/unit/unit-launch",
    "tests/host/host-limits",
    "tests/attack/attack-attack",
    "tests/attack/attack-victim",
    "tests/attack/attack-crowd",
    "lib/backup/agentd-backup",
)
# With it tests/pool looks into backups; the image has none.
TOOL = "/usr/bin/zstd"
SCRIPTS = ("inguest/inside.py", "support/tap.py", "attack/acts.py", "attack/arena.py",
           "attack/scenarios.py", "attack/test_attack.py")


def image_parts():
    path = os.path.join(tap.ROOT, "scripts", "image-parts")
    loader = importlib.machinery.SourceFileLoader("image_parts", path)
    spec = importlib.util.spec_from_loader("image_parts", loader)
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


def initramfs(path):
    """The image's modules, and our init."""
    parts = image_parts()
    with open(os.path.join(IMAGE, "initramfs.cpio"), "rb") as file:
        modules = [(n, d) for n, d in parts.cpio_files(file.read()) if n.startswith("modules/")]
    with open(INIT, "rb") as file:
        init = file.read()
    entries = [
        ("dev", stat.S_IFDIR | 0o755, 0, b""),
        ("dev/console", stat.S_IFCHR | 0o600, os.makedev(5, 1), b""),
        ("init", stat.S_IFREG | 0o755, 0, init),
        ("modules", stat.S_IFDIR | 0o755, 0, b""),
        *((name, stat.S_IFREG | 0o644, 0, data) for name, data in modules),
    ]
    with open(path, "wb") as file:
        file.write(parts.cpio(entries))


def libraries(program):
    """What the dynamic linker would load, but for what is in the build directory."""
    listed = tap.run(["ldd", program]).stdout
    found = re.findall(r"(?:=> )?(/\S+) \(0x", listed)
    return {path for path in found if not os.path.realpath(path).startswith(BUILD)}


def payload(path):
    """The second disk: root/ goes over the image's root directory, scratch/ and tmp/ are
    for all."""
    top = path + ".tree"
    programs = [os.path.join(BUILD, name) for name in PROGRAMS]
    copies = {program: f"/srv/agentd/{name}" for program, name in zip(programs, PROGRAMS)}
    library = os.path.join(BUILD, "lib", "libagentd.so.0")
    copies[TOOL] = TOOL
    copies[library] = "/srv/agentd/lib/libagentd.so.0"
    for name in SCRIPTS:
        copies[os.path.join(tap.ROOT, "tests", name)] = f"/srv/agentd/tests/{name}"
    # Where the test looks for it.
    syscalls = os.path.join(tap.ROOT, "tests/sandbox/syscalls-x86_64.txt")
    copies[syscalls] = syscalls
    for program in [*programs, library, TOOL]:
        for found in libraries(program):
            folder, name = os.path.split(found)
            # In the image /lib is a link to /usr/lib.
            copies[found] = os.path.join(re.sub("^/(?=lib)", "/usr/", folder), name)
    for source, target in copies.items():
        os.makedirs(os.path.dirname(top + "/root" + target), exist_ok=True)
        shutil.copy(source, top + "/root" + target)
    for name in ("/scratch", "/tmp"):
        os.mkdir(top + name)
        os.chmod(top + name, 0o1777)
    made = tap.run([MKE2FS, "-q", "-F", "-t", "ext4", "-d", top, path, DISK])
    shutil.rmtree(top)
    if made.returncode != 0:
        sys.exit(f"mke2fs: {made.stderr}")


def tsc_khz():
    """Without a clock the kernel knows, boots under TCG hang now and then."""
    with open("/proc/cpuinfo", encoding="ascii", errors="replace") as file:
        return round(float(re.search(r"cpu MHz\s*: ([\d.]+)", file.read())[1]) * 1000)


def arguments(work):
    append = (
        "quiet loglevel=1 panic=-1 audit=0 nokaslr cryptomgr.notests random.trust_cpu=on "
        f"console=hvc0 tsc=reliable tsc_early_khz={tsc_khz()} "
        f"rdinit=/init -- /usr/bin/python3 -B /srv/agentd/tests/inguest/inside.py {' '.join(PARTS)}"
    )
    return [
        "setpriv", "--pdeathsig", "KILL", MONITOR, "-nodefaults", "-no-user-config", "-no-reboot", "-display", "none",
        "-M", "microvm,x-option-roms=off,isa-serial=off,pit=off,pic=off,rtc=on",
        "-accel", "tcg,tb-size=128", "-cpu", "max,-erms,-fsrm", "-smp", "1", "-m", MEMORY,
        "-kernel", os.path.join(IMAGE, "vmlinux"),
        "-initrd", os.path.join(work, "initramfs"),
        "-append", append,
        "-chardev", "stdio,id=out,signal=off",
        "-device", "virtio-serial-device,max_ports=2", "-device", "virtconsole,chardev=out",
        "-drive", f"file={work}/payload,if=none,id=payload,format=raw,cache=unsafe",
        "-device", "virtio-blk-device,drive=payload,serial=payload",
        "-drive", f"file={IMAGE}/root.erofs,if=none,id=root,format=raw,readonly=on",
        "-device", "virtio-blk-device,drive=root,serial=root",
    ]


def pass_on(output):
    """What is skipped inside is skipped here. Returns the number of its last plan."""
    plan, failed = None, 0
    for line in output:
        line = line.rstrip()
        failed += line.startswith("not ok ")
        found = re.match(r"1\.\.(\d+)$", line)
        plan = int(found[1]) if found else plan
        print(line, file=sys.stderr if line.startswith("SKIP-CANNOT:") else sys.stdout, flush=True)
    return plan, failed


def main():
    # Who ends us early gets the directory removed as well.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    if os.uname().machine != "x86_64":
        tap.skip("SKIP-CANNOT: the virtual machines' image is of x86_64")
    for needed, why in ((MONITOR, "Debian: qemu-system-x86"), (MKE2FS, "Debian: e2fsprogs"),
                        (TOOL, "Debian: zstd"),
                        (os.path.join(IMAGE, "image.json"), "scripts/build-image makes it")):
        if not os.access(needed, os.R_OK):
            tap.skip(f"SKIP-CANNOT: there is no {needed} ({why})")
    with open(os.path.join(IMAGE, "image.json"), encoding="utf-8") as file:
        print("# kernel", json.load(file)["kernel"]["release"], flush=True)
    with tempfile.TemporaryDirectory(prefix="agentd-inguest-") as work:
        initramfs(os.path.join(work, "initramfs"))
        payload(os.path.join(work, "payload"))
        begin = time.monotonic()
        with subprocess.Popen(arguments(work), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT, text=True, errors="replace") as machine:
            guard = threading.Timer(GUARD_SECONDS, machine.kill)
            guard.start()
            try:
                plan, failed = pass_on(machine.stdout)
            finally:
                guard.cancel()
                machine.kill()
        print(f"# the machine lived {time.monotonic() - begin:.0f} s")
    if plan is None:
        print("not ok - the machine has not done all that it was to do\n1..1")
    sys.exit(1 if failed or not plan else 0)


main()
