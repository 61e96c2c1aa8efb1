# SPDX-License-Identifier: MIT
"""scripts/build-image, with a kernel and a root directory that are made here, offline.
Arguments: the agent, a program that is linked dynamically."""

import gzip
import json
import os
import shutil
import stat
import struct
import subprocess
import sys
import tempfile

import tap

AGENT, DYNAMIC = sys.argv[1:3]
SCRIPTS = os.path.join(tap.ROOT, "scripts")
RELEASE = "1.2.3-test"
for tool in ("mkfs.erofs", "fsck.erofs", "mmdebstrap", "dpkg-deb", "lz4", "strip"):
    if not shutil.which(tool):
        tap.skip(f"SKIP-CANNOT: there is no {tool}")

work = tempfile.mkdtemp(prefix="agentd-image.")
os.chmod(work, 0o755)


def path(*names):
    return os.path.join(work, *names)


def put(name, data):
    os.makedirs(os.path.dirname(path(name)), exist_ok=True)
    with open(path(name), "wb") as file:
        file.write(data)


def build(*options, out="image"):
    return subprocess.run(
        [os.path.join(SCRIPTS, "build-image"), "--out", path(out), *options],
        capture_output=True,
        text=True,
        check=False,
    )


def manifest(image="image"):
    with open(path(image, "image.json"), encoding="utf-8") as file:
        return json.load(file)


# ---- a kernel

# Any ELF file will do, if it is large enough to be cut.
with open(AGENT, "rb") as agent:
    KERNEL = agent.read()
DEPENDS = {
    "virtio_ring": "",
    "virtio": "virtio_ring",
    "virtio_mmio": "virtio,virtio_ring",
    "virtio_console": "virtio",
    "virtio_blk": "virtio",
    "libcrc32c": "crc32c",
    "erofs": "libcrc32c",
    "overlay": "",
}


def bzimage(kernel):
    packed = gzip.compress(kernel, mtime=0) + struct.pack("<I", len(kernel))
    header = bytearray(1024)
    header[0x1F1] = 1
    header[0x202:0x206] = b"HdrS"
    struct.pack_into("<II", header, 0x248, 0, len(packed))
    return bytes(header) + packed


def module(name):
    source = f'__attribute__((section(".modinfo"), used)) static char d[] = "depends={DEPENDS[name]}";'
    put("module.c", source.encode())
    subprocess.run(
        [*os.environ["CC"].split(), "-c", "-o", path("module.o"), path("module.c")], check=True
    )
    with open(path("module.o"), "rb") as file:
        return file.read()


def package(name, kernel):
    top = f"{name}.tree"
    put(f"{top}/DEBIAN/control", b"Package: linux-test\nVersion: 1-1\nArchitecture: all\n"
        b"Maintainer: nobody <nobody@localhost>\nDescription: test\n")
    put(f"{top}/boot/vmlinuz-{RELEASE}", kernel)
    put(f"{top}/lib/modules/{RELEASE}/modules.builtin", b"kernel/crypto/crc32c.ko\n")
    for module_name in DEPENDS:
        put(f"{top}/lib/modules/{RELEASE}/kernel/{module_name}.ko", module(module_name))
    subprocess.run(
        ["dpkg-deb", "--root-owner-group", "-b", path(top), path(f"{name}.deb")],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    return path(f"{name}.deb")


deb = package("kernel", bzimage(KERNEL))
put("root/etc/os-release", b"ID=test\n")
put("root/bin/tool", b"tool\n")
os.chmod(path("root/bin/tool"), 0o4755)
usual = ("--agent", AGENT, "--kernel", deb, "--from", path("root"))

# ---- what is made

run = build(*usual)
tap.check(run.returncode == 0, "an image is made", run.stderr.splitlines())
made = manifest()
tap.check(
    set(os.listdir(path("image")))
    == {"vmlinux", "initramfs.cpio", "root.erofs", "volume.ext4", "volume-small.ext4", "image.json"},
    "its files, and no others",
)
with open(path("image/vmlinux"), "rb") as file:
    tap.check(file.read() == KERNEL, "the kernel is unpacked")
small = [name for name in made["files"] if name != "volume.ext4"]
sums = subprocess.run(["sha256sum", *small], capture_output=True, text=True, check=True, cwd=path("image"))
tap.check(
    {name: made["files"][name]["sha256"] for name in small}
    == {name: digest for digest, name in map(str.split, sums.stdout.splitlines())},
    "image.json has their SHA-256",
    sums.stdout.splitlines(),
)
tap.check(made["kernel"]["release"] == RELEASE and made["protocol"] == 2, "image.json says what it is")
names = made["kernel"]["modules"]
tap.check(
    sorted(names) == sorted(DEPENDS)
    and all(
        names.index(needed) < names.index(name)
        for name in names
        for needed in DEPENDS[name].split(",")
        if needed in DEPENDS
    ),
    "modules come after what they depend on, what is built in does not",
)
tap.check(
    all(os.stat(path("image", name)).st_mode & stat.S_IROTH for name in os.listdir(path("image"))),
    "another user can read all of it",
)
for name, mib in ("volume.ext4", 1024), ("volume-small.ext4", 64):
    volume = path("image", name)
    tap.check(
        os.stat(volume).st_size == mib << 20 and os.stat(volume).st_blocks * 512 < 1 << 20,
        f"{name} has {mib} MiB, nearly all holes",
    )
    tap.check(
        subprocess.run(["e2fsck", "-fn", volume], capture_output=True, check=False).returncode == 0,
        f"{name} is a sound file system",
    )
    run = subprocess.run(
        ["debugfs", "-R", "ls -p", volume], capture_output=True, text=True, check=False
    )
    tap.check(
        [line.split("/")[3:6] for line in run.stdout.split()]
        == [["1000", "1000", "."], ["1000", "1000", ".."]],
        f"{name} is empty and the command's",
        run.stdout.splitlines(),
    )
subprocess.run(
    ["fsck.erofs", "--preserve-perms", f"--extract={path('extracted')}", path("image/root.erofs")],
    stdout=subprocess.DEVNULL,
    check=True,
)
tap.check(
    stat.S_IMODE(os.stat(path("extracted/bin/tool")).st_mode) == 0o755,
    "no program has another user's rights",
)

if os.environ.get("AGENTD_TEST_SMALL"):
    shutil.rmtree(work)
    tap.finish()

# ---- what is made again

before = {name: os.stat(path("image", name)).st_ino for name in made["files"]}
run = build(*usual)
tap.check(
    run.returncode == 0
    and before == {name: os.stat(path("image", name)).st_ino for name in made["files"]},
    "nothing, if nothing has changed",
    run.stderr.splitlines(),
)
other = path("other-agent")
shutil.copy(AGENT, other)
with open(other, "ab") as file:
    file.write(b"changed")
run = build("--agent", other, *usual[2:])
after = {name: os.stat(path("image", name)).st_ino for name in made["files"]}
tap.check(
    run.returncode == 0
    and {name for name in after if after[name] != before[name]} == {"initramfs.cpio"}
    and manifest()["agent"] != made["agent"],
    "only the initramfs, if the agent has changed",
    run.stderr.splitlines(),
)
put("root/bin/more", b"more\n")
run = build(*usual)
tap.check(
    run.returncode == 0 and manifest()["files"]["root.erofs"] != made["files"]["root.erofs"],
    "the root file system, if that has changed",
    run.stderr.splitlines(),
)
run = build(*usual, "--force", out="again")
tap.check(
    run.returncode == 0
    and all(
        manifest("again")["files"][name] == manifest()["files"][name]
        for name in ("vmlinux", "initramfs.cpio")
    ),
    "the same of the same",
    run.stderr.splitlines(),
)

# ---- what is wrong

tap.check(build("--check").returncode == 0, "--check finds a good image good")
with open(path("image/vmlinux"), "r+b") as file:
    file.seek(4000)
    file.write(b"damage")
run = build("--check")
tap.check(run.returncode == 1 and "vmlinux" in run.stderr, "and names the file that is not")
run = build(*usual)
tap.check(
    run.returncode == 0 and build("--check").returncode == 0, "which is made anew", run.stderr.splitlines()
)
os.unlink(path("image/root.erofs"))
run = build("--check")
tap.check(run.returncode == 1 and "root.erofs" in run.stderr, "one that is missing is named")
run = build("--check", out="nothing")
tap.check(run.returncode == 1 and "there is no image" in run.stderr, "no image at all")


def refused(what, text, *options, **more):
    run = build(*options, **more)
    tap.check(run.returncode != 0 and text in run.stderr, what, run.stderr.splitlines())


refused("an agent that is not there", "no agent at", "--agent", path("none"))
refused("an agent that is none", "is no agentd-guest", "--agent", "/bin/echo")
refused("one that is not static", "not linked statically", "--agent", DYNAMIC, *usual[2:])
bad = package("bad", bzimage(KERNEL)[:-2000])
refused("a kernel that is cut", "vmlinuz", *usual[:2], "--kernel", bad, *usual[4:], out="bad")
bad = package("text", b"this is no kernel")
refused("a kernel that is none", "is no bzImage", *usual[:2], "--kernel", bad, *usual[4:], out="bad")
refused("a root that is not there", "there is no", *usual[:4], "--from", path("none"), out="bad")
refused("a directory of somebody else's", "something else", *usual, out="root")
refused("an option that is none", "unknown argument", "--nothing")
left = [name for name in os.listdir(work) if ".new." in name]
tap.check(not left, "nothing is left behind", left)

shutil.rmtree(work)
tap.finish()
