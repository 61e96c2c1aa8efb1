# SPDX-License-Identifier: MIT
"""What the library's code must not call or contain. Argument: the internal archive.

Looked up in the object files, so that a comment is no finding and a macro is.
The helper is a program of its own and not part of the archive.
"""

import re
import sys

import tap

ARCHIVE = sys.argv[1]

# The host program's process is not ours to end, print to or change.
FORBIDDEN = {
    "ends the process": "exit quick_exit abort err errx verr verrx error error_at_line",
    "prints": "printf vprintf puts putchar perror psignal psiginfo warn warnx vwarn vwarnx "
    "stdout stderr stdin syslog vsyslog openlog",
    "starts a program behind our back": "system popen wordexp dlopen dlmopen posix_spawn "
    "posix_spawnp fork vfork daemon",
    "starts or cancels threads": "pthread_create thrd_create pthread_cancel pthread_kill",
    "changes the process": "setenv putenv unsetenv clearenv chdir fchdir chroot umask setlocale "
    "uselocale nice setpriority setpgid atexit on_exit pthread_atfork srand srandom "
    "mallopt mlockall setuid setgid seteuid setegid setreuid setregid setresuid setresgid "
    "setgroups initgroups",
    "installs a signal handler": "signal sigset bsd_signal sysv_signal sigaltstack siginterrupt "
    "alarm setitimer timer_create ualarm",
    "trusts the environment": "getenv",
    "is unbounded": "gets strcpy strcat stpcpy sprintf vsprintf",
    "parses without seeing errors": "atoi atol atoll atof sscanf vsscanf fscanf strtok",
    "has static state": "strtok_r rand random localtime gmtime ctime asctime getpwnam getpwuid "
    "getgrnam getgrgid gethostbyname inet_ntoa ttyname readdir_r tmpnam tempnam mktemp getlogin",
}
# Needed in one folder only: there is no other way to have a child nobody sees.
ONLY = {
    "_exit": {"launch"},
    "_Exit": {"launch"},
    "clone": {"launch", "sys"},
    "setsid": {"launch"},
    "execve": {"launch", "sys"},
    "execveat": {"launch", "sys"},
    "sigaction": {"launch"},
    "sigprocmask": {"launch", "sys"},
    # A write to a pipe nobody reads must not raise SIGPIPE in the host program.
    "pthread_sigmask": {"launch", "sys", "sink"},
    "setrlimit": {"launch", "sys"},
    "prctl": {"launch", "sys"},
    "wait": set(),
    "wait3": set(),
    "wait4": {"launch", "sys"},
    "waitpid": {"launch", "sys"},
    "waitid": {"launch", "sys"},
    "kill": {"launch", "sys"},
}


def plain(symbol):
    """The function's name without what glibc makes of it."""
    symbol = symbol.split("@")[0]
    symbol = re.sub(r"^__(.*)_chk$", r"\1", symbol)
    return re.sub(r"^__isoc(99|23)_", "", symbol)


def members():
    """{object file: [undefined symbols]}"""
    listed = tap.run([tap.need("nm"), "-A", "--undefined-only", ARCHIVE])
    tap.check(listed.returncode == 0, "nm reads the archive", listed.stderr.splitlines())
    found = {}
    for line in listed.stdout.splitlines():
        # "libagentd-internal.a:util_buf.c.o:    U malloc", or the object's own
        # path when the archive is a thin one.
        place, symbol = re.fullmatch(r"(.*?):\s*[UwvW]\s+(\S+)", line).groups()
        name = re.split(r"[:/]", place)[-1]
        found.setdefault(name, []).append(plain(symbol))
    return found


found = members()
tap.check(len(found) > 20, f"{len(found)} object files looked at")
tap.check(
    any("malloc" in s for s in found.values()) and any("read" in s for s in found.values()),
    "the lists have what must be there",
)
for why, names in FORBIDDEN.items():
    forbidden = set(names.split())
    bad = [f"{o}: {s}" for o, symbols in found.items() for s in symbols if s in forbidden]
    tap.check_empty(bad, f"nothing that {why}")
bad = [
    f"{o}: {s} (only {', '.join(sorted(ONLY[s])) or 'nowhere'})"
    for o, symbols in found.items()
    for s in symbols
    if s in ONLY and o.split("_")[0] not in ONLY[s]
]
tap.check_empty(bad, "process and signal calls only where children are made")

# ---- state and constructors

listed = tap.run([tap.need("objdump"), "-t", "-h", ARCHIVE])
tap.check(listed.returncode == 0, "objdump reads the archive", listed.stderr.splitlines())
name, state, constructors, objects = "", [], [], 0
for line in listed.stdout.splitlines():
    member = re.match(r"(\S+\.o):\s+file format", line)
    if member:
        name = member[1]
        continue
    # "0000000000000000 l     O .bss   0000000000000004 counter"
    symbol = re.match(r"[0-9a-f]+ .{7} (\S+)\s+[0-9a-f]+\s+(?:\.hidden )?(\S+)$", line)
    if symbol and line[23:24] == "O":
        objects += 1
        if re.match(r"\.t?(data|bss)(?!\.rel\.ro)|\*COM\*", symbol[1]):
            state.append(f"{name}: {symbol[2]} in {symbol[1]}")
    if re.match(r"\s*\d+ \.(init_array|fini_array|ctors|dtors)", line):
        constructors.append(f"{name}: {line.split()[1]}")
tap.check(objects > 10, f"{objects} objects looked at")
tap.check_empty(constructors, "no constructors and destructors")
# Reference count of the error that reports that memory is gone; see util/error.c.
allowed = re.compile(r".*: (nomem|out_of_memory|oom)\w* in .*")
tap.check_empty([s for s in state if not allowed.match(s)], "no mutable state of the process")
tap.finish()
