# SPDX-License-Identifier: MIT
"""The carrier as a program: what it packs, says and applies; by itself, and in the
sandbox, which is where it works.

usage: test_carrier.py AGENTD-GUEST, with agentd-run in AGENTD_RUN"""

import io
import os
import shutil
import stat
import subprocess
import sys
import tarfile
import tempfile
import threading

import tap

CARRIER = os.path.realpath(sys.argv[1])
RUN = os.environ["AGENTD_RUN"]
ROOT = os.geteuid() == 0
OWNER = 4321
MAX = str(1 << 30)


class Place:
    """A working directory, and one beside it that nothing may happen to."""

    def __enter__(self):
        self.top = os.path.realpath(tempfile.mkdtemp(prefix="agentd-carrier-"))
        os.chmod(self.top, 0o755)
        self.work = os.path.join(self.top, "work")
        os.mkdir(self.work)
        return self

    def __exit__(self, *_):
        shutil.rmtree(self.top)

    def write(self, name, text="old", mode=0o644):
        path = os.path.join(self.work, name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "w", encoding="utf-8") as file:
            file.write(text)
        os.chmod(path, mode)

    def read(self, name):
        try:
            with open(os.path.join(self.work, name), encoding="utf-8") as file:
                return file.read()
        except FileNotFoundError:
            return None

    def give_away(self):
        """To a user of its own, as a root host program's directories are."""
        for folder, dirs, files in os.walk(self.work):
            for name in [".", *dirs, *files]:
                os.chown(os.path.join(folder, name), OWNER, OWNER, follow_symlinks=False)


def entry(name, kind=tarfile.REGTYPE, mode=0o644, text="new", link=""):
    info = tarfile.TarInfo(name)
    info.type, info.mode, info.linkname = kind, mode, link
    data = text.encode() if kind == tarfile.REGTYPE else b""
    info.size = len(data)
    return info, data


def deletion(name):
    return entry(name, tarfile.CHRTYPE, 0)


def archive(*entries, end=True):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for info, data in [*entries, *([entry(".", tarfile.DIRTYPE)] if end else [])]:
            tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


def carry(place, changes, before_changes=None, sandbox=False, limit=MAX):
    """Returns the exit status, the archive, and the records as lists of words."""
    argv = [CARRIER, "carry", place.work, "--max-bytes", limit]
    if sandbox:
        argv = [RUN, "--stdin", "--quiet", "--workdir", place.work, "--exec", CARRIER, "--", *argv]
    packed, records = [], []
    with subprocess.Popen(
        argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        reader = threading.Thread(target=lambda: packed.append(process.stdout.read()))
        reader.start()
        for line in process.stderr:
            records.append(line.decode("ascii").rstrip("\n").split(" "))
            if records[-1][0] == "packed":
                break
        if before_changes:
            before_changes()
        try:
            process.stdin.write(changes)
            process.stdin.close()
        except BrokenPipeError:
            pass
        said = process.stderr.read().decode("ascii")
        records += [line.split(" ") for line in said.splitlines()]
        reader.join()
        status = process.wait()
    return status, packed[0], records


def names(packed):
    with tarfile.open(fileobj=io.BytesIO(packed)) as tar:
        return sorted(tar.getnames())


def notes(records):
    return [r for r in records if r[0] not in ("packed", "applied")]


for sandbox in (False, True):
    how = "in the sandbox" if sandbox else "by itself"
    with Place() as place:
        place.write("kept")
        place.write("changed")
        place.write("removed")
        place.write("dir/inside", mode=0o755)
        place.write("hosts")
        os.symlink("/etc", os.path.join(place.work, "link"))
        os.mkfifo(os.path.join(place.work, "odd name"))
        if ROOT:
            place.give_away()
        status, packed, records = carry(
            place,
            archive(
                deletion("removed"),
                entry("changed"),
                entry("hosts"),
                entry("dir/new"),
                entry("link/hostname"),
                entry("../beside"),
                entry("more", tarfile.DIRTYPE, 0o750),
                entry("more/setid", mode=0o4755),
            ),
            before_changes=lambda: place.write("hosts", "changed meanwhile"),
            sandbox=sandbox,
        )
        tap.check(status == 0, f"a directory is carried {how}", records)
        tap.check(
            names(packed) == sorted([".", "kept", "changed", "removed", "dir", "dir/inside", "hosts", "link"]),
            f"all of it is packed {how}",
            names(packed),
        )
        tap.check(
            records
            == [
                ["skipped", "special", "0", "odd%20name"],
                ["packed", "7", "15", "0"],
                ["conflict", "changed", "0", "hosts"],
                ["denied", "parent", "0", "link/hostname"],
                ["denied", "name", "0", "../beside"],
                ["denied", "set_id", "0", "more/setid"],
                ["applied", "5", "9", "0"],
            ],
            f"it says what happened {how}",
            [" ".join(r) for r in records],
        )
        tap.check(
            [place.read(n) for n in ("kept", "changed", "removed", "hosts", "dir/new", "more/setid")]
            == ["old", "new", None, "changed meanwhile", "new", "new"],
            f"the changes are applied {how}",
        )
        tap.check(os.listdir(place.top) == ["work"], f"nothing appears beside it {how}")
        made = os.stat(os.path.join(place.work, "more/setid"))
        tap.check(
            stat.S_IMODE(made.st_mode) == 0o755
            and made.st_uid == (OWNER if ROOT and sandbox else os.geteuid()),
            f"what is made belongs to whom the directory does {how}",
            [f"{made.st_mode:o} {made.st_uid}"],
        )

# What the sandbox protects from commands is protected from what a machine sends, too.
with Place() as place:
    place.write(".git/hooks/pre-commit")
    place.write(".git/index")
    if ROOT:
        place.give_away()
    status, packed, records = carry(
        place,
        archive(entry(".git/hooks/pre-commit"), deletion(".git/hooks/pre-commit"), entry(".git/index")),
        sandbox=True,
    )
    tap.check(
        status == 0
        and [r[:2] + r[3:] for r in notes(records)] == [["error", "system", ".git/hooks/pre-commit"]] * 2
        and place.read(".git/hooks/pre-commit") == "old"
        and place.read(".git/index") == "new",
        "protected names stay as they are",
        [" ".join(r) for r in records],
    )

with Place() as place:
    for i in range(1100):
        os.mkfifo(os.path.join(place.work, str(i)))
    status, packed, records = carry(place, b"")
    tap.check(
        status == 0
        and len(notes(records)) == 1000
        and records[1000:] == [["packed", "0", "0", "100"], ["applied", "0", "0", "0"]],
        "it says no more than is read, and how much it has not said",
        records[1000:],
    )

with Place() as place:
    place.write("f", "12345")
    status, packed, records = carry(place, b"")
    tap.check(
        status == 0 and records == [["packed", "1", "5", "0"], ["applied", "0", "0", "0"]],
        "no archive changes nothing",
        records,
    )
    status, packed, records = carry(place, b"", limit="4")
    tap.check(
        status == 1 and records == [["failed", "bytes", "0", "f"]], "the limit names the file", records
    )
    whole = archive(entry("f"))
    status, packed, records = carry(place, archive(entry("f"), end=False))
    tap.check(
        status == 1 and records[-1] == ["failed", "cut", "0", "."],
        "an archive without its end is not taken for one",
        records,
    )
    status, packed, records = carry(place, whole[:700])
    tap.check(status == 1 and records[-1][0] == "failed", "neither is one that is cut", records)
    status, packed, records = carry(place, b"junk" * 1000)
    tap.check(
        status == 1 and records[-1] == ["failed", "format", "0", "."], "nor what is none", records
    )
    for argv in ([], [place.work], [place.work, "--max-bytes", "-1"], [place.work, "--max-bytes", "1x"],
                 [place.work, "--max-bytes", "1" * 30], [place.work, "--max", "1"]):
        bad = tap.run([CARRIER, "carry", *argv])
        tap.check(
            bad.returncode == 1 and bad.stderr == "failed usage 0 .\n" and bad.stdout == "",
            f"wrong arguments: {argv[1:]}",
            [bad.stderr],
        )
    bad = tap.run([CARRIER, "carry", os.path.join(place.top, "none"), "--max-bytes", MAX])
    tap.check(bad.stderr == "failed system 2 .\n", "a directory that is not there", [bad.stderr])

tap.finish()
