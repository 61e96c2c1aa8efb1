# SPDX-License-Identifier: MIT
"""Acts of the attack tool, by group: all of a group are tried in one run.

In the words of an act:
    {O} {W}      the directories outside and of the command
    {victim}     pid of a process of the host; {address} of its secret; {key} {queue}
    {first}      in the sandbox pid 1, which is the sandbox's own; else the victim's
    {ro}         a read-only mount: /usr in the sandbox
    {mounted}    a mount to take away: /tmp in the sandbox
    {abstract}, {tcp4} ... the host's listeners
"""

# Why an act cannot succeed even without a sandbox.
NO_ROOT = "needs root without a sandbox, too"


class Act:
    def __init__(self, case, words, root=False, cannot=None, inside=None, ends=False, abi=0):
        self.case = case
        self.words = words
        self.root = root  # the control needs it
        self.cannot = cannot  # where it cannot be had, why: the control may hold
        self.inside = inside or words  # what is tried in the sandbox
        self.ends = ends  # it ends the command: in the sandbox a scenario of its own
        self.abi = abi  # of Landlock, that nothing but it prevents this


class Group:
    """before: shell words that make the control harmless, run as root."""

    def __init__(self, name, acts, before="", setup=""):
        self.name = name
        self.acts = acts
        self.before = before
        self.setup = setup


def _set_id():
    names = (
        "suid-chmod sgid-chmod suid-fchmod suid-fchmodat suid-fchmodat2 suid-open suid-openat "
        "suid-openat2 suid-creat suid-mknod suid-mknodat suid-tmpfile suid-high-bits"
    )
    cannot = {"suid-fchmodat2": "needs Linux 6.6"}
    return [
        Act("X10", f"{name} made-{number}", cannot=cannot.get(name))
        for number, name in enumerate(names.split())
    ]


KERNEL = Group(
    "kernel",
    [
        Act("P16", "bpf-program", root=True),
        Act("P16", "bpf-map", root=True),
        Act("P17", "perf", cannot="needs kernel.perf_event_paranoid below 3"),
        Act("P17", "perf-all", root=True),
        Act("P18", "userfaultfd", root=True),
        Act("P18", "userfaultfd-user"),
        Act("P19", "x32", cannot="needs a kernel with the x32 ABI"),
        Act("P20", "iopl", cannot="needs CAP_SYS_RAWIO and a kernel with port access"),
        Act("P20", "ioperm", cannot="needs CAP_SYS_RAWIO and a kernel with port access"),
        Act("P25", "kernel-log", cannot="needs kernel.dmesg_restrict=0 or root"),
        Act("P26", "kernel-symbols", root=True, cannot="needs kernel.kptr_restrict below 2"),
        Act("P26", "kernel-memory", root=True, cannot="needs a kernel without lockdown"),
        Act("P27", "nice", root=True),
        Act("P27", "fifo", root=True, cannot="needs real-time group scheduling to allow it"),
        Act("P27", "ioprio", root=True),
        Act("P28", "settime", root=True),
        Act("P28", "settimeofday", root=True),
        Act("P28", "adjtime", root=True),
        Act("P29", "reboot", root=True, ends=True),
        Act("P30", "acct", root=True, ends=True, cannot="needs a kernel with process accounting"),
        Act("P31", "init-module", root=True, ends=True, cannot="needs a kernel with modules"),
        Act("P31", "finit-module", root=True, ends=True, cannot="needs a kernel with modules"),
        Act("P31", "delete-module", root=True, ends=True, cannot="needs a kernel with modules"),
        Act("P32", "kexec", root=True, ends=True, cannot="needs a kernel with kexec"),
        Act("P34", "rlimit", root=True, cannot="needs CAP_SYS_RESOURCE"),
        Act("P35", "oom-adj self", root=True, cannot="needs CAP_SYS_RESOURCE"),
        Act("X01", "io-uring", cannot="needs kernel.io_uring_disabled=0"),
        Act("X01", "swapon", root=True, ends=True, cannot="needs a kernel with swap"),
        Act("X01", "quotactl", root=True, cannot="needs a kernel with quotas"),
        Act("X01", "ptrace-child"),
        Act("X01", "open-handle", root=True),
        Act("X01", "fanotify {W}", root=True),
        Act("X02", "int80", cannot="needs a kernel with the 32-bit ABI"),
        Act("X03", "add-key"),
        Act("X03", "keyctl"),
        Act("X04", "setuid-root", root=True),
        Act("X04", "setgroups", root=True),
        Act("X04", "capset", root=True),
        Act("X04", "ambient", root=True, cannot="needs an inheritable capability"),
        Act("X04", "securebits", root=True),
        Act("X04", "bounding"),
        Act("X05", "hostname", root=True),
        Act("X05", "domainname", root=True),
    ],
)

MOUNTS = Group(
    "mounts",
    [
        Act("P12", "chroot {O}/secret", root=True),
        Act("P13", "mount-tmpfs point", root=True),
        Act("P13", "mount-proc point", root=True),
        Act("P13", "mount-bind point", root=True),
        Act("P13", "mount-cgroup point", root=True),
        Act("P13", "fsopen tmpfs", root=True),
        Act("P13", "fspick {ro}", root=True),
        Act("P13", "open-tree .", root=True),
        Act("P13", "move-mount {ro} point", root=True, inside="move-mount /tmp point"),
        Act("P13", "umount point", root=True, inside="umount /tmp"),
        Act("P13", "umount tree2", root=True, inside="umount {W}"),
        Act("P13", "umount tree", root=True, inside="umount /proc"),
        Act("P14", "remount ro2", root=True, inside="remount /usr"),
        Act("P14", "mount-setattr ro3", root=True, inside="mount-setattr /usr"),
        Act("P15", "setns {victim} mnt", root=True),
        Act("P15", "setns {victim} net", root=True),
        Act("P15", "setns {victim} pid", root=True),
        Act("P15", "setns {victim} uts", root=True),
        Act("P15", "setns {victim} ipc", root=True),
        Act("P15", "setns {victim} cgroup", root=True),
        Act("P15", "setns {first} mnt", root=True),
        Act("P15", "setns {first} net", root=True),
        Act("P15", "setns {first} pid", root=True),
        Act("P15", "setns-pidfd {first}", root=True),
        Act("X06", "unshare user", cannot="needs unprivileged user namespaces"),
        Act("X06", "unshare user+mnt", cannot="needs unprivileged user namespaces"),
        Act("X06", "unshare user+net", cannot="needs unprivileged user namespaces"),
        Act("X06", "unshare mnt", root=True),
        Act("X06", "unshare net", root=True),
        Act("X06", "unshare pid", root=True),
        Act("X06", "unshare ipc", root=True),
        Act("X06", "unshare uts", root=True),
        Act("X06", "unshare cgroup", root=True),
        Act("X06", "unshare time", root=True),
        Act("X06", "clone user", cannot="needs unprivileged user namespaces"),
        Act("X06", "clone user+net+mnt+pid", cannot="needs unprivileged user namespaces"),
        Act("X06", "clone net", root=True),
        Act("X06", "clone3 user", cannot="needs unprivileged user namespaces"),
        Act("X06", "clone3 user+net+mnt+pid", cannot="needs unprivileged user namespaces"),
        Act("P13", "pivot-root ro2", root=True, inside="pivot-root {W}"),
        Act("P13", "mount-propagation", root=True),
    ],
    before="unshare --mount --propagation private",
    setup="""mkdir point ro ro2 ro3 tree tree2
if [ "$1" = control ] && [ $(id -u) = 0 ]; then
    for point in ro ro2 ro3 tree tree2; do mount --bind -o ro /usr $point; done
fi""",
)


def _processes():
    acts = [
        Act("P09", "see {backwards}"),
        Act("P09", "proc-read {victim} environ"),
        Act("P09", "proc-read {victim} cmdline"),
        Act("P09", "proc-read {victim} maps"),
        Act("P09", "proc-link {victim} cwd"),
        Act("P09", "proc-link {victim} exe"),
        Act("P09", "proc-list {victim} root"),
        Act("P09", "proc-list {victim} cwd"),
        Act("P09", "proc-read {victim} cwd/secret"),
        Act("P09", "proc-read {victim} fd/3"),
        Act("P10", "proc-mem {victim} {address}"),
        Act("P10", "vm-read {victim} {address}"),
        Act("P10", "vm-write {victim} {address}"),
        Act("P10", "ptrace {victim}"),
        Act("P10", "ptrace-attach {victim}"),
        Act("P10", "getfd {victim} 3"),
        Act("P11", "kill {victim} 0"),
        Act("P11", "signal-pidfd {victim} 0"),
        Act("X07", "prlimit {victim}"),
        Act("X07", "affinity {victim}"),
        Act("X07", "renice {victim}"),
        Act("X07", "kcmp {victim}"),
        Act("X07", "oom-adj {victim}", root=True, cannot="needs CAP_SYS_RESOURCE"),
        Act("X07", "shm {key}"),
        Act("X07", "queue {queue}", cannot="needs POSIX message queues"),
    ]
    # The sandbox's own first process has the same user and more to lose.
    for name in ("environ", "maps", "auxv"):
        acts.append(Act("X08", f"proc-read {{first}} {name}"))
    for name in ("root", "cwd", "exe", "fd/0", "ns/mnt", "ns/net"):
        acts.append(Act("X08", f"proc-link {{first}} {name}"))
    for name in ("root", "cwd", "fd", "fdinfo", "map_files", "task/{first}/fd"):
        acts.append(
            Act("X08", f"proc-list {{first}} {name}", root=name == "map_files")
        )
    for name in ("mem", "oom_score_adj", "comm", "clear_refs", "coredump_filter", "uid_map"):
        acts.append(
            Act("X08", f"proc-write {{first}} {name}", root=name == "uid_map")
        )
    acts += [
        Act("X08", "proc-mem {first} {address}"),
        Act("X08", "vm-read {first} {address}"),
        Act("X08", "vm-write {first} {address}"),
        Act("X08", "ptrace {first}"),
        Act("X08", "ptrace-attach {first}"),
        Act("X08", "getfd {first} 3"),
        Act("X08", "getfd {first} 0"),
        Act("X08", "kcmp {first}"),
        Act("X08", "prlimit {first}"),
        Act("X08", "affinity {first}"),
        Act("X08", "renice {first}"),
        Act("X08", "madvise {first} {address}", root=True),
        # Who asks is told that it is there; it takes no signal from in there.
        Act("X08", "kill {first} 0", abi=6),
        Act("X08", "signal-pidfd {first} 0", abi=6),
    ]
    return acts


PROCESSES = Group("processes", _processes())


def _files():
    acts = [
        Act("P02", "exists /etc/shadow"),
        Act("P02", "read /etc/shadow", root=True),
        Act("P02", "exists /etc/gshadow"),
        Act("P03", "create /usr/attack-{tag}", root=True),
        Act("P03", "create /usr/local/attack-{tag}", root=True),
        Act("P03", "create /etc/attack-{tag}", root=True),
        Act("P03", "create /root/attack-{tag}", root=True),
        Act("P03", "create /boot/attack-{tag}", root=True),
        Act("P03", "create {O}/attack-{tag}"),
        Act("P03", "open-write /usr/bin/env", root=True, cannot="needs a writable /usr"),
        Act("P33", "inotify {O}/secret"),
        Act("P39", "read link/secret"),
        Act("P39", "write link/secret more"),
        Act("P39", "create link/planted"),
        Act("X09", "exists {O}"),
        Act("X09", "list {O}"),
        Act("X09", "read {O}/secret"),
        Act("X09", "read ../outside/secret"),
        Act("X09", "read {W}/../outside/secret"),
        Act("X09", "read /proc/self/root{O}/secret"),
        Act("X09", "read /proc/self/cwd/../outside/secret"),
        Act("X09", "read /proc/thread-self/root{O}/secret"),
        Act("X09", "open-write {O}/secret"),
        Act("X09", "truncate {O}/scratch"),
        Act("X09", "chmod {O}/scratch"),
        Act("X09", "utime {O}/scratch"),
        Act("X09", "xattr {O}/scratch", cannot="needs a file system with user attributes"),
        Act("X09", "link {O}/scratch linked"),
        Act("X09", "link-fd {O}/scratch linked-by-fd"),
        Act("X09", "symlink secret {O}/symlinked"),
        Act("X09", "mkdir {O}/made"),
        Act("X09", "exchange {O}/scratch mine"),
        Act("X09", "rename {O}/scratch renamed"),
        Act("X09", "unlink {O}/scratch2"),
        Act("X09", "rmdir {O}/dir"),
        Act("X09", "exists /boot"),
        Act("X09", "exists /srv"),
        Act("X09", "exists /var/log"),
        Act("X09", "exists /var/lib"),
        Act("X09", "exists /etc/skel"),
        Act("X09", "list {base}/own"),
        Act("X09", "exists {helper}"),
        Act("X11", "mknod-char made-char", root=True),
        Act("X11", "mknod-block made-block", root=True),
        Act("X11", "file-capability mine2", root=True),
        Act("X11", "chown mine2 0", root=True),
        Act("X11", "chmod-stdin", root=True),
        Act("X12", "open-write /proc/sysrq-trigger", root=True, cannot="needs magic SysRq"),
        Act("X12", "open-write /sys/power/state", root=True, cannot="needs power management"),
        Act("X12", "list /sys/fs/cgroup"),
        Act("X12", "list /sys/class/net"),
        Act("X12", "list /sys/kernel"),
        Act("X12", "open-write /dev/kmsg", root=True),
        Act("X12", "read /proc/kpagecount", root=True),
        Act("X12", "read /proc/slabinfo", root=True, cannot="needs a kernel with slabinfo"),
        Act("X12", "read /proc/timer_list", root=True, cannot="needs a kernel with timer_list"),
        Act("X12", "read /proc/vmallocinfo", root=True, cannot="needs vmallocinfo"),
    ]
    for name in (
        "kernel/core_pattern kernel/modprobe kernel/hostname "
        "kernel/randomize_va_space kernel/dmesg_restrict kernel/pid_max vm/overcommit_memory "
        "vm/drop_caches vm/panic_on_oom fs/file-max fs/protected_symlinks "
        "user/max_user_namespaces net/ipv4/ip_forward net/core/somaxconn dev/tty/legacy_tiocsti"
    ).split():
        acts.append(
            Act("X12", f"open-write /proc/sys/{name}", root=True, cannot="needs that setting")
        )
    return acts


FILES = Group(
    "files",
    _files(),
    setup="""ln -s "$O" link; echo mine > mine; echo mine > mine2""",
)

SET_ID = Group("set-user-ID", _set_id())

NETWORK = Group(
    "network",
    [
        Act("P07", "connect-abstract {abstract}"),
        Act("P07", "send-abstract {abstract_dgram}"),
        Act("P08", "connect-path {O}/socket"),
        Act("P08", "connect-path ../outside/socket"),
        Act("P08", "connect-path link/socket"),
        Act("P21", "socket 17 3 768", root=True),
        Act("P21", "socket 17 2 768", root=True),
        Act("P22", "socket 2 3 1", root=True),
        Act("P22", "socket 10 3 58", root=True),
        Act("P22", "socket 2 3 255", root=True),
        Act("P23", "socket 38 5 0", cannot="needs AF_ALG in the kernel"),
        Act("P24", "socket 15 3 2", root=True, cannot="needs AF_KEY in the kernel"),
        Act("P24", "socket 16 3 9", cannot="needs audit in the kernel"),
        Act("X13", "netlink"),
        Act("X13", "families", cannot="needs more families of sockets"),
        Act("X13", "vsock", cannot="needs vsock in the kernel"),
        Act("X13", "new-interface", root=True, cannot="needs dummy interfaces in the kernel"),
        Act("P37", "connect 127.0.0.1 {tcp4}"),
        Act("P37", "connect ::1 {tcp6}", cannot="needs IPv6"),
        Act("P37", "connect ::ffff:127.0.0.1 {tcp4}", cannot="needs IPv6"),
        Act("P37", "connect 0.0.0.0 {tcp4}"),
        Act("P37", "connect-mptcp 127.0.0.1 {mptcp}", cannot="needs MPTCP"),
        Act("P37", "fast-open 127.0.0.1 {tcp4}", cannot="needs net.ipv4.tcp_fastopen"),
        Act("P37", "connect {address4} {tcp4_any}", cannot="needs an address besides loopback"),
        Act("X14", "interfaces", cannot="needs an interface besides loopback"),
    ],
    setup="""ln -s "$O" link""",
)

TERMINALS = Group(
    "terminals",
    [
        Act("X15", "push-own", cannot="needs dev.tty.legacy_tiocsti=1"),
        Act("X15", "push-own-high", cannot="needs dev.tty.legacy_tiocsti=1"),
    ],
)

GROUPS = [KERNEL, MOUNTS, PROCESSES, FILES, SET_ID, NETWORK, TERMINALS]
