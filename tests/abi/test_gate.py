# SPDX-License-Identifier: MIT
"""Both gates themselves: what breaks programs is reported, what only adds is not.

Each trial edits a copy of the headers and compares it with the originals, as text and as
the dump of a library made from them, so it fails when a gate no longer sees that kind of
change.
"""

import os
import re
import shutil
import tempfile

import abi
import dump
import tap

for program in ("abidw", "abidiff"):
    tap.need(program)

# name, file, regular expression, replacement
BREAKING = [
    ("a function is removed", "error.h", r"AGENTD_API int agentd_error_code\([^;]*;", ""),
    ("a return type changes", "version.h", r"uint32_t agentd_version_number", "uint64_t agentd_version_number"),
    ("a parameter's type changes", "exec.h", r"agentd_exec_signal\(agentd_exec \*exec, int32_t signo", "agentd_exec_signal(agentd_exec *exec, int64_t signo"),
    ("a parameter is added", "base.h", r"agentd_free\(void \*ptr\)", "agentd_free(void *ptr, size_t len)"),
    ("a parameter loses const", "error.h", r"agentd_error_code\(const ", "agentd_error_code("),
    ("a member is inserted", "limits.h", r"\tuint64_t timeout_ms;", "\tuint64_t inserted;\n\tuint64_t timeout_ms;"),
    ("a member is removed", "runner.h", r"\tuint32_t reserved0;", ""),
    ("two members are swapped", "limits.h", r"(\tuint64_t mem_bytes;[^\n]*\n)(\tuint64_t io_bytes;[^\n]*\n)", r"\2\1"),
    ("a member's type changes at the same size", "exec.h", r"\tuint32_t grace_ms;", "\tint32_t grace_ms;"),
    ("a member is renamed", "runner.h", r"max_queued;", "most_queued;"),
    ("a callback member's parameter changes", "sink.h", r"\(\*exited\)\(agentd_exec \*exec, int32_t exit_code", "(*exited)(agentd_exec *exec, int64_t exit_code"),
    ("a callback member's result changes", "backend.h", r"int32_t \(\*task_kill\)", "void (*task_kill)"),
    ("a callback member's parameter changes where a member is appended", "sink.h", r"(?s)\(\*exited\)\(agentd_exec \*exec, int32_t exit_code(.*\tagentd_destroy_fn destroy;)", r"(*exited)(agentd_exec *exec, int64_t exit_code\1\n\tvoid (*new_thing)(void *userdata);"),
    ("a callback type's parameter changes", "log.h", r"\(\*agentd_log_fn\)\(const agentd_log_record \*record, void \*userdata\)", "(*agentd_log_fn)(void *userdata, const agentd_log_record *record)"),
    ("an enumerator is renumbered", "result.h", r"AGENTD_CAUSE_PIDS = 7", "AGENTD_CAUSE_PIDS = 70"),
    ("an enumerator is removed", "error.h", r"\tAGENTD_ERR_USER = -16,", ""),
    ("an enumeration without values in the middle moves", "exec.h", r"AGENTD_STATE_QUEUED = 0,", "AGENTD_STATE_NEW = 0, AGENTD_STATE_QUEUED,"),
    ("an enumeration's type changes", "result.h", r"typedef int32_t agentd_status", "typedef int64_t agentd_status"),
    ("a handle is no longer opaque by that name", "base.h", r"typedef struct agentd_exec agentd_exec;", "typedef struct agentd_run agentd_exec;"),
]
ADDING = [
    ("a function is appended", "error.h", r"(AGENTD_API int agentd_error_code)", r"AGENTD_API int agentd_error_new_thing(const agentd_error *err);\n\1"),
    ("an enumerator is appended", "result.h", r"(AGENTD_CAUSE_FILE_SIZE = 17)", r"\1, AGENTD_CAUSE_NEW = 18"),
    ("a member is appended", "limits.h", r"(\tuint64_t net_bytes;)", r"\1\n\tuint64_t appended;"),
    ("a callback member is appended", "backend.h", r"(\t/\* end of 0\.1 \*/)", r"\1\n\tint32_t (*task_new)(void *state);"),
    ("a callback type is appended", "log.h", r"(typedef void \(\*agentd_log_fn\))", r"typedef void (*agentd_new_fn)(void *userdata);\n\1"),
    ("a struct is appended", "exec.h", r"(struct agentd_exec_opts \{)", r"struct agentd_new_opts { uint32_t size; uint32_t flags; };\n\1"),
    ("a handle is appended", "base.h", r"(typedef struct agentd_loop agentd_loop;)", r"\1\ntypedef struct agentd_new agentd_new;"),
    ("a macro is appended", "version.h", r"(#define AGENTD_VERSION_PATCH)", r"#define AGENTD_NEW 1\n\1"),
]
SAME = [
    ("a parameter is renamed", "base.h", r"agentd_free\(void \*ptr\)", "agentd_free(void *memory)"),
    ("a comment changes", "base.h", r"NULL is a no-op", "NULL does nothing"),
    ("the version changes", "version.h", r"AGENTD_VERSION_MINOR 1", "AGENTD_VERSION_MINOR 2"),
]


# What debug information does not tell, or abidiff calls harmless: the text's alone.
TEXT_ONLY = ["a parameter loses const", "a member is renamed"]


def trial(scratch, file, pattern, replacement):
    """A copy of the headers with one edit, or None if there was nothing to edit."""
    copy = os.path.join(scratch, "include")
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(abi.INCLUDE, copy)
    path = os.path.join(copy, "agentd", file)
    with open(path, encoding="utf-8") as source:
        text = source.read()
    edited, count = re.subn(pattern, replacement, text, count=1)
    if count == 0 or edited == text:
        return None
    with open(path, "w", encoding="utf-8") as target:
        target.write(edited)
    return copy


def check_text(name, expected, old, new):
    gone, added = abi.compare(old, new)
    got = "breaking" if gone else "adding" if added else "same"
    tap.check(got == expected, f"{name}: {expected}", [f"reported as {got}", *gone, *added])


def check_dump(name, expected, include, map_path, scratch):
    got, report = dump.compare(original_dump, dump.dump(dump.stub(include, map_path, scratch), scratch))
    # A macro, or a type that no function takes, is not in the library.
    good = [expected] if expected == "breaking" and name not in TEXT_ONLY else ["adding", "same"]
    tap.check(got in good, f"{name}: the dump's gate says {got}", report)


with tempfile.TemporaryDirectory(prefix="agentd-abi-") as scratch:
    original = abi.describe(abi.INCLUDE)
    original_dump = os.path.join(scratch, "original.abi.xml")
    os.rename(dump.dump(dump.stub(abi.INCLUDE, abi.MAP, scratch), scratch), original_dump)

    for expected, trials in (("breaking", BREAKING), ("adding", ADDING), ("same", SAME)):
        for name, file, pattern, replacement in trials:
            include = trial(scratch, file, pattern, replacement)
            if include is None:
                tap.check(False, f"{name}: {expected}", [f"{file} has nothing that matches {pattern}"])
                continue
            check_text(name, expected, original, abi.describe(include))
            check_dump(name, expected, include, abi.MAP, scratch)

    # Symbol versions: a name that leaves its node is a break, a new node is not.
    with open(abi.MAP, encoding="utf-8") as source:
        text = source.read()
    first = abi.map_symbols(abi.MAP)[0][0]
    newer = "AGENTD_0.2 {\nglobal:\n\t%s;\n} AGENTD_0.1;\n"
    mapped = abi.describe(abi.INCLUDE, abi.MAP)
    for name, expected, edited in [
        ("a symbol moves to another node", "breaking", text.replace(f"\t{first};\n", "") + newer % first),
        ("a symbol is removed from the map", "breaking", text.replace(f"\t{first};\n", "")),
        ("a node is appended", "adding", text + newer % "agentd_new_thing"),
    ]:
        path = os.path.join(scratch, "edited.map")
        with open(path, "w", encoding="utf-8") as target:
            target.write(edited)
        check_text(name, expected, mapped, abi.describe(abi.INCLUDE, path))
        check_dump(name, expected, abi.INCLUDE, path, scratch)
tap.finish()
