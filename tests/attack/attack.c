/* SPDX-License-Identifier: MIT */
/* The acts that a command in a sandbox must not be able to do, one function each.
 *
 *     attack NAME [ARGUMENT...] [, NAME [ARGUMENT...]]...
 *     attack --list
 *
 * Each act is tried in a child of its own, so that one that is killed for it leaves
 * the others. For each a line says how it went:
 *
 *     BREACH name arguments: what has happened
 *     held name arguments: errno, or what stopped it
 *
 * The exit status is 0 when all held, 1 when one did not, 2 for a wrong usage. It is
 * static and needs nothing of where it runs. Acts leave the machine as it was where
 * they can (the clock is set to what it is), for they are also tried outside. */
#include <errno.h>
#include <fcntl.h>
#include <dirent.h>
#include <mqueue.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>

#include <sys/fanotify.h>
#include <sys/inotify.h>
#include <sys/ioctl.h>
#include <sys/klog.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/quota.h>
#include <sys/resource.h>
#include <sys/shm.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/swap.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/time.h>
#include <sys/timex.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <sys/xattr.h>

#include <linux/bpf.h>
#include <linux/capability.h>
#include <linux/io_uring.h>
#include <linux/kcmp.h>
#include <linux/keyctl.h>
#include <linux/openat2.h>
#include <linux/perf_event.h>
#include <linux/rtnetlink.h>
#include <linux/securebits.h>
#include <linux/userfaultfd.h>
#include <linux/vm_sockets.h>

#ifndef SYS_fchmodat2
#define SYS_fchmodat2 452
#endif
#ifndef CLONE_NEWTIME
#define CLONE_NEWTIME 0x80
#endif
#ifndef UFFD_USER_MODE_ONLY
#define UFFD_USER_MODE_ONLY 1
#endif

enum {
	ACT_SECONDS = 20, /* an act that hangs is ended, and has held */
	ARGUMENTS_MAX = 64,
	NOT_SEEN = ENODATA, /* it was allowed, and what was looked for is not there */
};

/* What an act returns for what a call returned. */
static int done(long result)
{
	return result < 0 ? -errno : 0;
}

static int number(const char *text)
{
	return (int)strtol(text, NULL, 0);
}

static int is_true(bool seen)
{
	return seen ? 0 : -NOT_SEEN;
}

/* Show what could be read: the test looks for a secret in it. */
static int show(int fd)
{
	char buf[4096];
	ssize_t n, total = 0;

	while (total < (1 << 20) && (n = read(fd, buf, sizeof(buf))) > 0) {
		if (write(STDOUT_FILENO, buf, (size_t)n) < 0)
			break;
		total += n;
	}
	if (total == 0)
		return n < 0 ? -errno : -NOT_SEEN;
	return done(write(STDOUT_FILENO, "\n", 1));
}

static int show_path(const char *path)
{
	int fd = open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC), r;

	if (fd < 0)
		return -errno;
	r = show(fd);
	close(fd);
	return r;
}

static int open_proc(const char *pid, const char *name, int flags)
{
	char path[512];

	snprintf(path, sizeof(path), "/proc/%s/%s", pid, name);
	return open(path, flags | O_CLOEXEC);
}

/* ---- files */

static int act_read(char **arg)
{
	return show_path(arg[0]);
}

static int act_open_write(char **arg)
{
	return done(open(arg[0], O_WRONLY | O_NONBLOCK | O_CLOEXEC));
}

static int act_write(char **arg)
{
	int fd = open(arg[0], O_WRONLY | O_NONBLOCK | O_APPEND | O_CLOEXEC);

	return fd < 0 ? -errno : done(write(fd, arg[1], strlen(arg[1])));
}

static int act_create(char **arg)
{
	return done(open(arg[0], O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666));
}

static int act_exists(char **arg)
{
	struct stat st;

	return done(lstat(arg[0], &st));
}

static int act_list(char **arg)
{
	DIR *dir = opendir(arg[0]);
	struct dirent *entry;

	if (!dir)
		return -errno;
	while ((entry = readdir(dir)))
		puts(entry->d_name);
	closedir(dir);
	return 0;
}

static int act_truncate(char **arg)
{
	return done(truncate(arg[0], 0));
}

static int act_unlink(char **arg)
{
	return done(unlink(arg[0]));
}

static int act_rmdir(char **arg)
{
	return done(rmdir(arg[0]));
}

static int act_mkdir(char **arg)
{
	return done(mkdir(arg[0], 0777));
}

static int act_link(char **arg)
{
	return done(link(arg[0], arg[1]));
}

static int act_link_fd(char **arg)
{
	int fd = open(arg[0], O_PATH | O_CLOEXEC);
	char path[64];

	if (fd < 0)
		return -errno;
	if (linkat(fd, "", AT_FDCWD, arg[1], AT_EMPTY_PATH) == 0)
		return 0;
	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	return done(linkat(AT_FDCWD, path, AT_FDCWD, arg[1], AT_SYMLINK_FOLLOW));
}

static int act_symlink(char **arg)
{
	return done(symlink(arg[0], arg[1]));
}

static int act_rename(char **arg)
{
	return done(rename(arg[0], arg[1]));
}

static int act_exchange(char **arg)
{
	return done(syscall(SYS_renameat2, AT_FDCWD, arg[0], AT_FDCWD, arg[1], 2));
}

static int act_chmod(char **arg)
{
	struct stat st;

	if (stat(arg[0], &st) < 0)
		return -errno;
	return done(chmod(arg[0], (st.st_mode & 0777) ^ 0001));
}

static int act_chmod_stdin(char **arg)
{
	struct stat st;

	(void)arg;
	if (fstat(STDIN_FILENO, &st) < 0)
		return -errno;
	return done(fchmod(STDIN_FILENO, st.st_mode & 0777));
}

static int act_chown(char **arg)
{
	return done(lchown(arg[0], (uid_t)number(arg[1]), (gid_t)number(arg[1])));
}

static int act_utime(char **arg)
{
	struct timespec times[2] = { { .tv_sec = 1 }, { .tv_sec = 1 } };

	return done(utimensat(AT_FDCWD, arg[0], times, 0));
}

static int act_xattr(char **arg)
{
	return done(setxattr(arg[0], "user.attack", "x", 1, 0));
}

static int act_file_capability(char **arg)
{
	struct vfs_cap_data data = { .magic_etc = VFS_CAP_REVISION_2 | VFS_CAP_FLAGS_EFFECTIVE,
				     .data = { { .permitted = ~0U } } };

	return done(setxattr(arg[0], "security.capability", &data, sizeof(data), 0));
}

static int act_inotify(char **arg)
{
	int fd = inotify_init1(IN_CLOEXEC);

	return fd < 0 ? -errno : done(inotify_add_watch(fd, arg[0], IN_ALL_EVENTS));
}

static int act_fanotify(char **arg)
{
	int fd = fanotify_init(FAN_CLASS_NOTIF | FAN_CLOEXEC, O_RDONLY);

	if (fd < 0)
		return -errno;
	return done(fanotify_mark(fd, FAN_MARK_ADD | FAN_MARK_MOUNT, FAN_OPEN, AT_FDCWD, arg[0]));
}

/* By its handle a file is opened past every directory above it. */
static int act_open_handle(char **arg)
{
	union {
		struct file_handle handle;
		char bytes[sizeof(struct file_handle) + MAX_HANDLE_SZ];
	} u = { .handle.handle_bytes = MAX_HANDLE_SZ };
	int dir = open(".", O_RDONLY | O_DIRECTORY | O_CLOEXEC), mount_id;

	(void)arg;
	if (dir < 0 || name_to_handle_at(AT_FDCWD, ".", &u.handle, &mount_id, 0) < 0)
		return -errno;
	return done(open_by_handle_at(dir, &u.handle, O_RDONLY));
}

/* Run a program; its exit status 0 says that it ran. */
static int act_exec(char **arg)
{
	pid_t pid = fork();
	int status;

	if (pid < 0)
		return -errno;
	if (pid == 0) {
		execv(arg[0], arg);
		_exit(errno);
	}
	if (waitpid(pid, &status, 0) < 0)
		return -errno;
	return WIFEXITED(status) ? -WEXITSTATUS(status) : -EINTR;
}

static int act_exec_memfd(char **arg)
{
	int in = open(arg[0], O_RDONLY | O_CLOEXEC);
	int out = memfd_create("attack", MFD_CLOEXEC), status;
	char buf[65536];
	ssize_t n;
	pid_t pid;

	if (in < 0 || out < 0)
		return -errno;
	while ((n = read(in, buf, sizeof(buf))) > 0) {
		if (write(out, buf, (size_t)n) != n)
			return -errno;
	}
	pid = fork();
	if (pid == 0) {
		fexecve(out, arg, environ);
		_exit(errno);
	}
	if (pid < 0 || waitpid(pid, &status, 0) < 0)
		return -errno;
	return WIFEXITED(status) ? -WEXITSTATUS(status) : -EINTR;
}

/* ---- set-user-ID files and devices */

static int made_set_id(long result, const char *path)
{
	struct stat st;

	if (result < 0)
		return -errno;
	if (lstat(path, &st) < 0)
		return -errno;
	return is_true(st.st_mode & (S_ISUID | S_ISGID));
}

static void make_plain(const char *path)
{
	int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0755);

	if (fd >= 0)
		close(fd);
}

static int act_suid_chmod(char **arg)
{
	make_plain(arg[0]);
	return made_set_id(syscall(SYS_chmod, arg[0], 04755), arg[0]);
}

static int act_sgid_chmod(char **arg)
{
	make_plain(arg[0]);
	return made_set_id(syscall(SYS_chmod, arg[0], 02755), arg[0]);
}

static int act_suid_fchmod(char **arg)
{
	int fd = open(arg[0], O_RDWR | O_CREAT | O_CLOEXEC, 0755);

	return made_set_id(fd < 0 ? -1 : fchmod(fd, 04755), arg[0]);
}

static int act_suid_fchmodat(char **arg)
{
	make_plain(arg[0]);
	return made_set_id(syscall(SYS_fchmodat, AT_FDCWD, arg[0], 04755), arg[0]);
}

static int act_suid_fchmodat2(char **arg)
{
	make_plain(arg[0]);
	return made_set_id(syscall(SYS_fchmodat2, AT_FDCWD, arg[0], 04755, 0), arg[0]);
}

static int act_suid_open(char **arg)
{
	return made_set_id(syscall(SYS_open, arg[0], O_RDWR | O_CREAT, 04755), arg[0]);
}

static int act_suid_openat(char **arg)
{
	return made_set_id(syscall(SYS_openat, AT_FDCWD, arg[0], O_RDWR | O_CREAT, 04755), arg[0]);
}

static int act_suid_openat2(char **arg)
{
	struct open_how how = { .flags = O_RDWR | O_CREAT, .mode = 04755 };

	return made_set_id(syscall(SYS_openat2, AT_FDCWD, arg[0], &how, sizeof(how)), arg[0]);
}

static int act_suid_creat(char **arg)
{
	return made_set_id(syscall(SYS_creat, arg[0], 04755), arg[0]);
}

static int act_suid_mknod(char **arg)
{
	return made_set_id(syscall(SYS_mknod, arg[0], S_IFREG | 04755, 0), arg[0]);
}

static int act_suid_mknodat(char **arg)
{
	return made_set_id(syscall(SYS_mknodat, AT_FDCWD, arg[0], S_IFREG | 04755, 0), arg[0]);
}

/* A file without a name, and then a name for it. */
static int act_suid_tmpfile(char **arg)
{
	int fd = open(".", O_RDWR | O_TMPFILE | O_CLOEXEC, 04755);
	char path[64];

	if (fd < 0)
		return -errno;
	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	return made_set_id(linkat(AT_FDCWD, path, AT_FDCWD, arg[0], AT_SYMLINK_FOLLOW), arg[0]);
}

/* Upper bits of the mode are ignored by the kernel; a filter must ignore them too. */
static int act_suid_high_bits(char **arg)
{
	make_plain(arg[0]);
	return made_set_id(syscall(SYS_chmod, arg[0], 0x100000000 | 04755), arg[0]);
}

static int act_mknod_char(char **arg)
{
	return done(mknod(arg[0], S_IFCHR | 0666, makedev(1, 1)));
}

static int act_mknod_block(char **arg)
{
	return done(mknod(arg[0], S_IFBLK | 0666, makedev(254, 0)));
}

/* ---- privileges */

static int act_seteuid(char **arg)
{
	(void)arg;
	/* The one it is already is nothing gained. */
	if (syscall(SYS_setresuid, 0, 0, 0) < 0)
		return -errno;
	return is_true(getuid() == 0);
}

static int act_setgroups(char **arg)
{
	gid_t group = 0;

	(void)arg;
	return done(syscall(SYS_setgroups, 1, &group));
}

static int act_capset(char **arg)
{
	struct __user_cap_header_struct header = { .version = _LINUX_CAPABILITY_VERSION_3 };
	struct __user_cap_data_struct data[2] = { 0 };

	(void)arg;
	if (syscall(SYS_capget, &header, data) < 0)
		return -errno;
	data[0].effective = data[0].permitted = data[0].inheritable = 1U << CAP_DAC_OVERRIDE;
	return done(syscall(SYS_capset, &header, data));
}

static int act_ambient(char **arg)
{
	(void)arg;
	return done(prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, CAP_NET_RAW, 0, 0));
}

static int act_securebits(char **arg)
{
	(void)arg;
	return done(prctl(PR_SET_SECUREBITS, SECBIT_KEEP_CAPS));
}

static int act_bounding(char **arg)
{
	(void)arg;
	for (int cap = 0; prctl(PR_CAPBSET_READ, cap) >= 0; cap++) {
		if (prctl(PR_CAPBSET_READ, cap) == 1) {
			printf("capability %d is in the bounding set\n", cap);
			return 0;
		}
	}
	return -NOT_SEEN;
}

/* For a set-user-ID copy of this program. */
static int act_is_root(char **arg)
{
	(void)arg;
	return geteuid() == 0 ? 0 : -EPERM;
}

static int act_nice(char **arg)
{
	(void)arg;
	return done(setpriority(PRIO_PROCESS, 0, -10));
}

static int act_fifo(char **arg)
{
	struct sched_param param = { .sched_priority = 10 };

	(void)arg;
	return done(sched_setscheduler(0, SCHED_FIFO, &param));
}

static int act_ioprio(char **arg)
{
	(void)arg;
	return done(syscall(SYS_ioprio_set, 1, 0, 1 << 13 | 0)); /* real-time class */
}

static int act_rlimit(char **arg)
{
	struct rlimit limit;

	(void)arg;
	if (getrlimit(RLIMIT_NOFILE, &limit) < 0)
		return -errno;
	limit.rlim_cur = limit.rlim_max += 1000;
	return done(setrlimit(RLIMIT_NOFILE, &limit));
}

static int act_oom_adj(char **arg)
{
	int fd = open_proc(arg[0], "oom_score_adj", O_WRONLY);

	return fd < 0 ? -errno : done(write(fd, "-900", 4));
}

/* ---- namespaces and mounts */

static unsigned long clone_flags(const char *names)
{
	static const struct {
		const char *name;
		unsigned long flag;
	} flags[] = {
		{ "user", CLONE_NEWUSER }, { "mnt", CLONE_NEWNS },   { "net", CLONE_NEWNET },
		{ "pid", CLONE_NEWPID },   { "ipc", CLONE_NEWIPC },  { "uts", CLONE_NEWUTS },
		{ "time", CLONE_NEWTIME }, { "cgroup", 0x02000000 },
	};
	unsigned long all = 0;

	for (size_t i = 0; i < sizeof(flags) / sizeof(flags[0]); i++) {
		if (strstr(names, flags[i].name))
			all |= flags[i].flag;
	}
	return all;
}

static int act_unshare(char **arg)
{
	return done(unshare((int)clone_flags(arg[0])));
}

static int child_is(long pid)
{
	if (pid < 0)
		return -errno;
	if (pid == 0)
		_exit(0);
	return done(waitpid((pid_t)pid, NULL, __WALL));
}

static int act_clone(char **arg)
{
	return child_is(syscall(SYS_clone, clone_flags(arg[0]) | SIGCHLD, 0, 0, 0, 0));
}

static int act_clone3(char **arg)
{
	struct clone_args {
		uint64_t flags, pidfd, child_tid, parent_tid, exit_signal, stack, stack_size, tls;
	} args = { .flags = clone_flags(arg[0]), .exit_signal = SIGCHLD };

	return child_is(syscall(SYS_clone3, &args, sizeof(args)));
}

static int act_setns(char **arg)
{
	char name[32];
	int fd;

	snprintf(name, sizeof(name), "ns/%.20s", arg[1]);
	fd = open_proc(arg[0], name, O_RDONLY);
	return fd < 0 ? -errno : done(setns(fd, 0));
}

static int act_setns_pidfd(char **arg)
{
	int fd = (int)syscall(SYS_pidfd_open, number(arg[0]), 0);

	return fd < 0 ? -errno : done(setns(fd, CLONE_NEWNS | CLONE_NEWNET | CLONE_NEWUTS));
}

static int act_mount_tmpfs(char **arg)
{
	return done(mount("tmpfs", arg[0], "tmpfs", 0, NULL));
}

static int act_mount_proc(char **arg)
{
	return done(mount("proc", arg[0], "proc", 0, NULL));
}

static int act_mount_bind(char **arg)
{
	return done(mount("/", arg[0], NULL, MS_BIND | MS_REC, NULL));
}

static int act_mount_cgroup(char **arg)
{
	return done(mount("cgroup2", arg[0], "cgroup2", 0, NULL));
}

static int act_mount_propagation(char **arg)
{
	(void)arg;
	return done(mount(NULL, "/", NULL, MS_SHARED | MS_REC, NULL));
}

static int act_remount(char **arg)
{
	return done(mount(NULL, arg[0], NULL, MS_REMOUNT | MS_BIND, NULL));
}

static int act_umount(char **arg)
{
	return done(umount2(arg[0], MNT_DETACH));
}

static int act_mount_setattr(char **arg)
{
	struct mount_attr attr = { .attr_clr = MOUNT_ATTR_RDONLY };

	return done(syscall(SYS_mount_setattr, AT_FDCWD, arg[0], 0, &attr, sizeof(attr)));
}

static int act_open_tree(char **arg)
{
	return done(syscall(SYS_open_tree, AT_FDCWD, arg[0], 1 /* OPEN_TREE_CLONE */));
}

static int act_move_mount(char **arg)
{
	return done(syscall(SYS_move_mount, AT_FDCWD, arg[0], AT_FDCWD, arg[1], 0));
}

static int act_fsopen(char **arg)
{
	return done(syscall(SYS_fsopen, arg[0], 0));
}

static int act_fspick(char **arg)
{
	return done(syscall(SYS_fspick, AT_FDCWD, arg[0], 0));
}

static int act_pivot_root(char **arg)
{
	return done(syscall(SYS_pivot_root, arg[0], arg[0]));
}

/* A second root, and out of it by a directory that was open before. */
static int act_chroot(char **arg)
{
	int dir = open(".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);

	mkdir("attack-root", 0755);
	if (dir < 0 || chroot("attack-root") < 0 || fchdir(dir) < 0)
		return -errno;
	for (int i = 0; i < 64 && chdir("..") == 0; i++)
		;
	if (chroot(".") < 0)
		return -errno;
	return show_path(arg[0]);
}

static int act_hostname(char **arg)
{
	char name[65];

	(void)arg;
	if (gethostname(name, sizeof(name)) < 0)
		return -errno;
	return done(sethostname(name, strlen(name)));
}

static int act_domainname(char **arg)
{
	char name[65];

	(void)arg;
	if (getdomainname(name, sizeof(name)) < 0)
		return -errno;
	return done(setdomainname(name, strlen(name)));
}

/* ---- other processes */

/* Any process whose command line or environment holds a text. It is given backwards:
 * whatever started the act has that in its own arguments. */
static int act_see(char **arg)
{
	static char buf[1 << 16];
	static const char *const names[] = { "cmdline", "environ" };
	DIR *proc = opendir("/proc");
	size_t len = strlen(arg[0]);
	char *text = strdup(arg[0]);
	struct dirent *entry;
	bool found = false;

	if (!proc || !text)
		return -errno;
	for (size_t i = 0; i < len; i++)
		text[i] = arg[0][len - 1 - i];
	while ((entry = readdir(proc))) {
		if (number(entry->d_name) <= 0)
			continue;
		for (size_t i = 0; i < 2; i++) {
			int fd = open_proc(entry->d_name, names[i], O_RDONLY);
			ssize_t n = fd < 0 ? -1 : read(fd, buf, sizeof(buf));

			if (n > 0 && memmem(buf, (size_t)n, text, len)) {
				printf("/proc/%s/%s\n", entry->d_name, names[i]);
				found = true;
			}
			if (fd >= 0)
				close(fd);
		}
	}
	closedir(proc);
	free(text);
	return is_true(found);
}

static int act_proc_read(char **arg)
{
	int fd = open_proc(arg[0], arg[1], O_RDONLY | O_NONBLOCK);

	return fd < 0 ? -errno : show(fd);
}

static int act_proc_write(char **arg)
{
	return done(open_proc(arg[0], arg[1], O_WRONLY));
}

static int act_proc_link(char **arg)
{
	char path[128], target[4096];

	snprintf(path, sizeof(path), "/proc/%s/%s", arg[0], arg[1]);
	return done(readlink(path, target, sizeof(target)));
}

static int act_proc_list(char **arg)
{
	int fd = open_proc(arg[0], arg[1], O_RDONLY | O_DIRECTORY);
	DIR *dir = fd < 0 ? NULL : fdopendir(fd);
	struct dirent *entry;
	int count = 0;

	if (!dir)
		return -errno;
	while ((entry = readdir(dir)))
		count += entry->d_name[0] != '.';
	return is_true(count > 0);
}

static int act_proc_mem(char **arg)
{
	off_t at = (off_t)strtoull(arg[1], NULL, 16);
	int fd = open_proc(arg[0], "mem", O_RDWR);
	char buf[64];
	ssize_t n;

	if (fd < 0)
		return -errno;
	n = pread(fd, buf, sizeof(buf), at);
	if (n > 0)
		printf("%.*s\n", (int)n, buf);
	return 0;
}

static int act_vm_read(char **arg)
{
	char buf[64];
	struct iovec local = { .iov_base = buf, .iov_len = sizeof(buf) };
	struct iovec remote = { .iov_base = (void *)(uintptr_t)strtoull(arg[1], NULL, 16),
				.iov_len = sizeof(buf) };
	ssize_t n = process_vm_readv(number(arg[0]), &local, 1, &remote, 1, 0);

	if (n < 0)
		return -errno;
	printf("%.*s\n", (int)n, buf);
	return 0;
}

static int act_vm_write(char **arg)
{
	char buf[1] = { 'T' };
	struct iovec local = { .iov_base = buf, .iov_len = sizeof(buf) };
	struct iovec remote = { .iov_base = (void *)(uintptr_t)strtoull(arg[1], NULL, 16),
				.iov_len = sizeof(buf) };

	return done(process_vm_writev(number(arg[0]), &local, 1, &remote, 1, 0));
}

static int act_ptrace(char **arg)
{
	if (ptrace(PTRACE_SEIZE, number(arg[0]), NULL, NULL) < 0)
		return -errno;
	/* It goes on when this process ends. */
	return 0;
}

static int act_ptrace_attach(char **arg)
{
	int pid = number(arg[0]);

	if (ptrace(PTRACE_ATTACH, pid, NULL, NULL) < 0)
		return -errno;
	waitpid(pid, NULL, __WALL);
	ptrace(PTRACE_DETACH, pid, NULL, NULL);
	return 0;
}

static int act_kill(char **arg)
{
	return done(kill(number(arg[0]), number(arg[1])));
}

static int act_signal_pidfd(char **arg)
{
	int fd = (int)syscall(SYS_pidfd_open, number(arg[0]), 0);

	return fd < 0 ? -errno : done(syscall(SYS_pidfd_send_signal, fd, number(arg[1]), NULL, 0));
}

/* Every signal in every way; the test sees whether what it was sent to goes on. */
static int act_all_signals(char **arg)
{
	pid_t pid = number(arg[0]);
	int fd = (int)syscall(SYS_pidfd_open, pid, 0), owner[2];
	int sent = 0;

	for (int signo = 1; signo <= 64; signo++) {
		siginfo_t info = { .si_signo = signo, .si_code = SI_QUEUE };

		sent += kill(pid, signo) == 0;
		sent += syscall(SYS_tgkill, pid, pid, signo) == 0;
		sent += syscall(SYS_tkill, pid, signo) == 0;
		sent += syscall(SYS_rt_sigqueueinfo, pid, signo, &info) == 0;
		sent += syscall(SYS_rt_tgsigqueueinfo, pid, pid, signo, &info) == 0;
		if (fd >= 0)
			sent += syscall(SYS_pidfd_send_signal, fd, signo, NULL, 0) == 0;
		/* By a descriptor that signals its owner. */
		if (socketpair(AF_UNIX, SOCK_STREAM, 0, owner) == 0) {
			fcntl(owner[0], F_SETOWN, pid);
			fcntl(owner[0], F_SETSIG, signo);
			fcntl(owner[0], F_SETFL, O_ASYNC);
			(void)!write(owner[1], "x", 1);
			close(owner[0]);
			close(owner[1]);
		}
	}
	printf("%d signals went out\n", sent);
	return is_true(sent > 0);
}

static int act_getfd(char **arg)
{
	int fd = (int)syscall(SYS_pidfd_open, number(arg[0]), 0);

	if (fd < 0)
		return -errno;
	fd = (int)syscall(SYS_pidfd_getfd, fd, number(arg[1]), 0);
	if (fd < 0)
		return -errno;
	/* A pipe would make us wait. */
	if (lseek(fd, 0, SEEK_SET) == 0)
		show(fd);
	return 0;
}

static int act_prlimit(char **arg)
{
	struct rlimit limit;

	if (prlimit(number(arg[0]), RLIMIT_CORE, NULL, &limit) < 0)
		return -errno;
	return done(prlimit(number(arg[0]), RLIMIT_CORE, &limit, NULL));
}

static int act_affinity(char **arg)
{
	cpu_set_t set;

	if (sched_getaffinity(number(arg[0]), sizeof(set), &set) < 0)
		return -errno;
	return done(sched_setaffinity(number(arg[0]), sizeof(set), &set));
}

static int act_renice(char **arg)
{
	return done(setpriority(PRIO_PROCESS, (id_t)number(arg[0]), 19));
}

static int act_kcmp(char **arg)
{
	return done(syscall(SYS_kcmp, number(arg[0]), getpid(), KCMP_VM, 0, 0));
}

static int act_madvise(char **arg)
{
	int fd = (int)syscall(SYS_pidfd_open, number(arg[0]), 0);
	struct iovec where = { .iov_base = (void *)(uintptr_t)strtoull(arg[1], NULL, 16),
			       .iov_len = 4096 };

	where.iov_base = (void *)((uintptr_t)where.iov_base & ~(uintptr_t)4095);
	return fd < 0 ? -errno : done(syscall(SYS_process_madvise, fd, &where, 1, MADV_COLD, 0));
}

static int act_ptrace_child(char **arg)
{
	pid_t pid = fork();
	int r;

	(void)arg;
	if (pid < 0)
		return -errno;
	if (pid == 0) {
		pause();
		_exit(0);
	}
	r = done(ptrace(PTRACE_SEIZE, pid, NULL, NULL));
	kill(pid, SIGKILL);
	waitpid(pid, NULL, 0);
	return r;
}

static int act_shm(char **arg)
{
	int id = shmget((key_t)number(arg[0]), 0, 0);
	char *at;

	if (id < 0)
		return -errno;
	at = shmat(id, NULL, SHM_RDONLY);
	if (at == (void *)-1)
		return -errno;
	printf("%.64s\n", at);
	return 0;
}

static int act_queue(char **arg)
{
	mqd_t queue = mq_open(arg[0], O_RDONLY | O_NONBLOCK);

	return done(queue);
}

/* ---- sockets */

static int act_socket(char **arg)
{
	return done(socket(number(arg[0]), number(arg[1]), number(arg[2])));
}

/* Every family there may be, but for those a command may have. */
static int act_families(char **arg)
{
	static const int types[] = { SOCK_STREAM, SOCK_DGRAM, SOCK_RAW, SOCK_SEQPACKET, SOCK_RDM };
	bool found = false;

	(void)arg;
	for (int family = 0; family < 64; family++) {
		if (family == AF_UNIX || family == AF_INET || family == AF_INET6 ||
		    family == AF_NETLINK)
			continue;
		for (size_t i = 0; i < sizeof(types) / sizeof(types[0]); i++) {
			int fd = socket(family, types[i], 0);

			if (fd < 0)
				continue;
			printf("socket family %d type %d\n", family, types[i]);
			found = true;
			close(fd);
		}
	}
	return is_true(found);
}

static int act_netlink(char **arg)
{
	bool found = false;

	(void)arg;
	for (int protocol = 0; protocol < 32; protocol++) {
		int fd = protocol == NETLINK_ROUTE ? -1 : socket(AF_NETLINK, SOCK_RAW, protocol);

		if (fd < 0)
			continue;
		printf("netlink protocol %d\n", protocol);
		found = true;
		close(fd);
	}
	return is_true(found);
}

static int connect_unix(const char *name, bool abstract)
{
	struct sockaddr_un addr = { .sun_family = AF_UNIX };
	size_t len = strlen(name);
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	if (fd < 0)
		return -errno;
	if (len >= sizeof(addr.sun_path))
		return -ENAMETOOLONG;
	memcpy(addr.sun_path + abstract, name, len);
	return done(connect(fd, (const struct sockaddr *)&addr,
			    (socklen_t)(offsetof(struct sockaddr_un, sun_path) + abstract + len)));
}

static int act_connect_abstract(char **arg)
{
	return connect_unix(arg[0], true);
}

static int act_connect_path(char **arg)
{
	return connect_unix(arg[0], false);
}

static int send_unix(const char *name, bool abstract)
{
	struct sockaddr_un addr = { .sun_family = AF_UNIX };
	size_t len = strlen(name);
	int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);

	if (fd < 0)
		return -errno;
	memcpy(addr.sun_path + abstract, name, len);
	return done(sendto(fd, "x", 1, MSG_DONTWAIT, (const struct sockaddr *)&addr,
			   (socklen_t)(offsetof(struct sockaddr_un, sun_path) + abstract + len)));
}

static int act_send_abstract(char **arg)
{
	return send_unix(arg[0], true);
}

static socklen_t internet_address(const char *host, const char *port, struct sockaddr_storage *ret)
{
	struct sockaddr_in *v4 = (struct sockaddr_in *)ret;
	struct sockaddr_in6 *v6 = (struct sockaddr_in6 *)ret;

	memset(ret, 0, sizeof(*ret));
	if (inet_pton(AF_INET, host, &v4->sin_addr) == 1) {
		v4->sin_family = AF_INET;
		v4->sin_port = htons((uint16_t)number(port));
		return sizeof(*v4);
	}
	inet_pton(AF_INET6, host, &v6->sin6_addr);
	v6->sin6_family = AF_INET6;
	v6->sin6_port = htons((uint16_t)number(port));
	return sizeof(*v6);
}

static int connect_internet(char **arg, int protocol)
{
	struct sockaddr_storage addr;
	socklen_t len = internet_address(arg[0], arg[1], &addr);
	int fd = socket(addr.ss_family, SOCK_STREAM | SOCK_CLOEXEC, protocol);
	struct timeval patience = { .tv_sec = 2 };

	if (fd < 0)
		return -errno;
	setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof(patience));
	return done(connect(fd, (const struct sockaddr *)&addr, len));
}

static int act_connect(char **arg)
{
	return connect_internet(arg, 0);
}

static int act_connect_mptcp(char **arg)
{
	return connect_internet(arg, 262);
}

/* Landlock looks at connect(2), and this is none. */
static int act_fast_open(char **arg)
{
	struct sockaddr_storage addr;
	socklen_t len = internet_address(arg[0], arg[1], &addr);
	int fd = socket(addr.ss_family, SOCK_STREAM | SOCK_CLOEXEC, 0);

	if (fd < 0)
		return -errno;
	return done(sendto(fd, "x", 1, MSG_FASTOPEN, (const struct sockaddr *)&addr, len));
}

/* That it could be sent says nothing; the test looks whether it came. */
static int act_send(char **arg)
{
	struct sockaddr_storage addr;
	socklen_t len = internet_address(arg[0], arg[1], &addr);
	int fd = socket(addr.ss_family, SOCK_DGRAM | SOCK_CLOEXEC, 0);

	if (fd < 0)
		return -errno;
	return done(sendto(fd, arg[2], strlen(arg[2]), 0, (const struct sockaddr *)&addr, len));
}

static int act_listen(char **arg)
{
	struct sockaddr_storage addr;
	socklen_t len = internet_address("0.0.0.0", arg[0], &addr);
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), on = 1;
	struct pollfd poll_fd = { .fd = fd, .events = POLLIN };

	setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
	if (fd < 0 || bind(fd, (const struct sockaddr *)&addr, len) < 0 || listen(fd, 4) < 0)
		return -errno;
	puts("listening");
	fflush(stdout);
	return poll(&poll_fd, 1, number(arg[1])) > 0 ? 0 : -ETIMEDOUT;
}

static int act_listen_abstract(char **arg)
{
	struct sockaddr_un addr = { .sun_family = AF_UNIX };
	size_t len = strlen(arg[0]);
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	struct pollfd poll_fd = { .fd = fd, .events = POLLIN };

	if (len >= sizeof(addr.sun_path))
		return -ENAMETOOLONG;
	memcpy(addr.sun_path + 1, arg[0], len);
	len += offsetof(struct sockaddr_un, sun_path) + 1;
	if (fd < 0 || bind(fd, (const struct sockaddr *)&addr, (socklen_t)len) < 0 ||
	    listen(fd, 4) < 0)
		return -errno;
	return poll(&poll_fd, 1, number(arg[1])) > 0 ? 0 : -ETIMEDOUT;
}

static int act_vsock(char **arg)
{
	struct sockaddr_vm addr = { .svm_family = AF_VSOCK,
				    .svm_cid = VMADDR_CID_HOST,
				    .svm_port = 1 };
	int fd = socket(AF_VSOCK, SOCK_STREAM | SOCK_CLOEXEC, 0);

	(void)arg;
	(void)addr;
	/* Having it is enough: whoever answers is not ours to disturb. */
	return done(fd);
}

static int act_new_interface(char **arg)
{
	struct {
		struct nlmsghdr header;
		struct ifinfomsg info;
		struct rtattr name;
		char name_text[8];
		struct rtattr link_info;
		struct rtattr kind;
		char kind_text[8];
	} request = { .header = { .nlmsg_len = sizeof(request),
				  .nlmsg_type = RTM_NEWLINK,
				  .nlmsg_flags = NLM_F_REQUEST | NLM_F_CREATE | NLM_F_EXCL |
						 NLM_F_ACK },
		      .name = { .rta_len = 12, .rta_type = IFLA_IFNAME },
		      .name_text = "attack0",
		      .link_info = { .rta_len = 16, .rta_type = IFLA_LINKINFO },
		      .kind = { .rta_len = 12, .rta_type = IFLA_INFO_KIND },
		      .kind_text = "dummy\0\0" };
	struct {
		struct nlmsghdr header;
		struct nlmsgerr error;
		char rest[512];
	} answer;
	int fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE);

	(void)arg;
	if (fd < 0 || send(fd, &request, sizeof(request), 0) < 0 ||
	    recv(fd, &answer, sizeof(answer), 0) < 0)
		return -errno;
	return answer.error.error;
}

/* Interfaces other than the loopback. */
static int act_interfaces(char **arg)
{
	char line[256];
	FILE *file = fopen("/proc/net/dev", "re");
	bool found = false;

	(void)arg;
	if (!file)
		return -errno;
	while (fgets(line, sizeof(line), file)) {
		char *colon = strchr(line, ':');

		if (!colon)
			continue;
		*colon = '\0';
		if (strcmp(line + strspn(line, " "), "lo") != 0) {
			printf("interface %s\n", line + strspn(line, " "));
			found = true;
		}
	}
	fclose(file);
	return is_true(found);
}

/* ---- terminals */

static int push_input(int fd, unsigned long request)
{
	return done(syscall(SYS_ioctl, fd, request, "#"));
}

static int act_tty(char **arg)
{
	(void)arg;
	return done(open("/dev/tty", O_RDWR | O_CLOEXEC));
}

/* Into the terminal of whoever started us. */
static int act_push_tty(char **arg)
{
	int fd = open("/dev/tty", O_RDWR | O_CLOEXEC), r;

	(void)arg;
	r = push_input(fd >= 0 ? fd : STDIN_FILENO, TIOCSTI);
	return r;
}

static int own_tty(void)
{
	int master = open("/dev/ptmx", O_RDWR | O_NOCTTY), unlock = 0, n;
	char path[32];

	if (master < 0 || ioctl(master, TIOCSPTLCK, &unlock) < 0 || ioctl(master, TIOCGPTN, &n) < 0)
		return -1;
	snprintf(path, sizeof(path), "/dev/pts/%d", n);
	setsid();
	return open(path, O_RDWR);
}

static int act_push_own(char **arg)
{
	int fd = own_tty();

	(void)arg;
	return fd < 0 ? -errno : push_input(fd, TIOCSTI);
}

/* The kernel looks at 32 bits only; a filter that looks at 64 sees another number. */
static int act_push_own_high(char **arg)
{
	int fd = own_tty();

	(void)arg;
	return fd < 0 ? -errno : push_input(fd, 0x100000000 | TIOCSTI);
}

static int act_ptys(char **arg)
{
	int count = 0, most = number(arg[0]);

	while (count < most && open("/dev/ptmx", O_RDWR | O_NOCTTY) >= 0)
		count++;
	printf("ptys %d\n", count);
	fflush(stdout);
	usleep((useconds_t)number(arg[1]) * 1000);
	return is_true(count == most);
}

/* ---- the kernel */

static int act_bpf_program(char **arg)
{
	struct bpf_insn code[] = { { .code = BPF_ALU64 | BPF_MOV | BPF_K },
				   { .code = BPF_JMP | BPF_EXIT } };
	union bpf_attr attr;

	(void)arg;
	memset(&attr, 0, sizeof(attr));
	attr.prog_type = BPF_PROG_TYPE_SOCKET_FILTER;
	attr.insns = (uintptr_t)code;
	attr.insn_cnt = 2;
	attr.license = (uintptr_t) "MIT";
	return done(syscall(SYS_bpf, BPF_PROG_LOAD, &attr, sizeof(attr)));
}

static int act_bpf_map(char **arg)
{
	union bpf_attr attr;

	(void)arg;
	memset(&attr, 0, sizeof(attr));
	attr.map_type = BPF_MAP_TYPE_ARRAY;
	attr.key_size = attr.value_size = 4;
	attr.max_entries = 1;
	return done(syscall(SYS_bpf, BPF_MAP_CREATE, &attr, sizeof(attr)));
}

static int act_perf(char **arg)
{
	struct perf_event_attr attr = { .type = PERF_TYPE_SOFTWARE,
					.size = sizeof(attr),
					.config = PERF_COUNT_SW_CPU_CLOCK,
					.exclude_kernel = 1 };

	(void)arg;
	return done(syscall(SYS_perf_event_open, &attr, 0, -1, -1, 0));
}

static int act_perf_all(char **arg)
{
	struct perf_event_attr attr = { .type = PERF_TYPE_SOFTWARE,
					.size = sizeof(attr),
					.config = PERF_COUNT_SW_CPU_CLOCK };

	(void)arg;
	return done(syscall(SYS_perf_event_open, &attr, -1, 0, -1, 0));
}

static int act_userfaultfd(char **arg)
{
	(void)arg;
	return done(syscall(SYS_userfaultfd, O_CLOEXEC));
}

static int act_userfaultfd_user(char **arg)
{
	(void)arg;
	return done(syscall(SYS_userfaultfd, O_CLOEXEC | UFFD_USER_MODE_ONLY));
}

static int act_io_uring(char **arg)
{
	struct io_uring_params params = { 0 };

	(void)arg;
	return done(syscall(SYS_io_uring_setup, 4, &params));
}

static int act_add_key(char **arg)
{
	(void)arg;
	return done(syscall(SYS_add_key, "user", "attack", "x", 1, KEY_SPEC_PROCESS_KEYRING));
}

/* id: what a call for the key returned. */
static int show_key(long id)
{
	char buf[64];
	long n;

	if (id < 0)
		return -errno;
	n = syscall(SYS_keyctl, KEYCTL_READ, id, buf, sizeof(buf));
	if (n > 0)
		printf("%.*s\n", (int)n, buf);
	return 0;
}

static int act_request_key(char **arg)
{
	return show_key(syscall(SYS_request_key, "user", arg[0], NULL, KEY_SPEC_PROCESS_KEYRING));
}

static int act_keyctl(char **arg)
{
	(void)arg;
	return done(syscall(SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, NULL));
}

static int act_search_key(char **arg)
{
	return show_key(
		syscall(SYS_keyctl, KEYCTL_SEARCH, KEY_SPEC_SESSION_KEYRING, "user", arg[0], 0));
}

static int act_settime(char **arg)
{
	struct timespec now;

	(void)arg;
	clock_gettime(CLOCK_REALTIME, &now);
	return done(clock_settime(CLOCK_REALTIME, &now));
}

static int act_settimeofday(char **arg)
{
	struct timeval now;

	(void)arg;
	gettimeofday(&now, NULL);
	return done(syscall(SYS_settimeofday, &now, NULL));
}

static int act_adjtime(char **arg)
{
	struct timex timex = { 0 };

	(void)arg;
	if (syscall(SYS_adjtimex, &timex) < 0)
		return -errno;
	timex.modes = ADJ_FREQUENCY;
	return done(syscall(SYS_adjtimex, &timex));
}

/* What Ctrl-Alt-Del does, set to what it is. */
static int act_reboot(char **arg)
{
	char now = '0';
	int fd = open("/proc/sys/kernel/ctrl-alt-del", O_RDONLY | O_CLOEXEC);

	(void)arg;
	if (fd >= 0) {
		(void)!read(fd, &now, 1);
		close(fd);
	}
	return done(syscall(SYS_reboot, 0xfee1dead, 672274793, now == '1' ? 0x89abcdef : 0, NULL));
}

static int act_acct(char **arg)
{
	(void)arg;
	return done(syscall(SYS_acct, NULL));
}

/* Nothing that could be loaded: what counts is whether the kernel looked at it. */
static int reached(long result)
{
	if (result < 0 && (errno == EPERM || errno == ENOSYS || errno == EACCES))
		return -errno;
	return 0;
}

static int act_init_module(char **arg)
{
	(void)arg;
	return reached(syscall(SYS_init_module, NULL, 0UL, ""));
}

static int act_finit_module(char **arg)
{
	(void)arg;
	return reached(syscall(SYS_finit_module, -1, "", 0));
}

static int act_delete_module(char **arg)
{
	(void)arg;
	return reached(syscall(SYS_delete_module, "attack_no_such_module", O_NONBLOCK));
}

static int act_kexec(char **arg)
{
	(void)arg;
	return reached(syscall(SYS_kexec_load, 0UL, 0UL, NULL, 0UL));
}

static int act_swapon(char **arg)
{
	(void)arg;
	return reached(swapon("/nonexistent", 0));
}

static int act_quotactl(char **arg)
{
	(void)arg;
	return reached(quotactl(QCMD(Q_SYNC, USRQUOTA), NULL, 0, NULL));
}

static int act_kernel_log(char **arg)
{
	static char buf[1 << 16];

	(void)arg;
	return is_true(klogctl(3, buf, sizeof(buf)) > 0);
}

static int act_kernel_symbols(char **arg)
{
	char line[256];
	FILE *file = fopen("/proc/kallsyms", "re");
	bool found = false;

	(void)arg;
	if (!file)
		return -errno;
	while (!found && fgets(line, sizeof(line), file))
		found = strncmp(line, "0000000000000000", 16) != 0;
	fclose(file);
	return is_true(found);
}

static int act_kernel_memory(char **arg)
{
	char buf[4];
	int fd = open("/proc/kcore", O_RDONLY | O_CLOEXEC);

	(void)arg;
	return fd < 0 ? -errno : is_true(read(fd, buf, 4) == 4);
}

#ifdef __x86_64__
static int act_int80(char **arg)
{
	long result = 20; /* getpid in the 32-bit table */

	(void)arg;
	__asm__ volatile("int $0x80"
			 : "+a"(result)
			 :
			 : "memory", "cc", "rbx", "rcx", "rdx", "r8", "r9", "r10", "r11");
	return result < 0 ? (int)result : 0;
}

static int act_x32(char **arg)
{
	(void)arg;
	return done(syscall(0x40000000L | SYS_getpid));
}

static int act_iopl(char **arg)
{
	(void)arg;
	return done(syscall(SYS_iopl, 3));
}

static int act_ioperm(char **arg)
{
	(void)arg;
	return done(syscall(SYS_ioperm, 0x80, 1, 1));
}
#endif

/* ---- races */

struct flipper {
	const char *link, *other;
	atomic_bool stop;
};

static void *flip(void *userdata)
{
	struct flipper *flipper = userdata;

	while (!flipper->stop)
		syscall(SYS_renameat2, AT_FDCWD, flipper->link, AT_FDCWD, flipper->other, 2);
	return NULL;
}

/* A name that is now a directory, now a link to one outside: is there a moment when
 * it leads out? Arguments: directory outside, file to read there, file to make. */
static int act_race(char **arg)
{
	struct flipper flipper = { .link = "race-a", .other = "race-b" };
	char secret[512], made[512];
	bool breached = false;
	pthread_t thread;

	mkdir("race-a", 0777);
	(void)!symlink(arg[0], "race-b");
	snprintf(secret, sizeof(secret), "race-a/%s", arg[1]);
	snprintf(made, sizeof(made), "race-a/%s", arg[2]);
	if (pthread_create(&thread, NULL, flip, &flipper) != 0)
		return -EAGAIN;
	for (int i = 0; i < 20000; i++) {
		int fd = open(secret, O_RDONLY | O_CLOEXEC);

		if (fd >= 0) {
			if (!breached)
				show(fd);
			breached = true;
			close(fd);
		}
		fd = open(made, O_WRONLY | O_CREAT | O_CLOEXEC, 0666);
		if (fd >= 0)
			close(fd);
	}
	flipper.stop = true;
	pthread_join(thread, NULL);
	return is_true(breached);
}

/* ---- resources */

static int act_descriptors(char **arg)
{
	int count = 0, most = number(arg[0]);

	while (count < most && open("/dev/null", O_RDONLY | O_CLOEXEC) >= 0)
		count++;
	printf("descriptors %d\n", count);
	return is_true(count == most);
}

/* One byte far out is a file of that size to every limit. */
static int act_big_file(char **arg)
{
	int fd = open(arg[0], O_WRONLY | O_CREAT | O_CLOEXEC, 0666), r;

	if (fd < 0)
		return -errno;
	signal(SIGXFSZ, SIG_IGN);
	r = done(pwrite(fd, "x", 1, (off_t)number(arg[1]) << 20));
	unlink(arg[0]);
	return r;
}

/* Orphans that nobody but the sandbox's first process can reap. */
static int act_zombies(char **arg)
{
	int cycles = 0;

	for (; cycles < number(arg[0]); cycles++) {
		pid_t pid = fork();

		if (pid < 0)
			break;
		if (pid == 0)
			_exit(fork() < 0);
		waitpid(pid, NULL, 0);
	}
	printf("cycles %d\n", cycles);
	return is_true(cycles < number(arg[0]));
}

static int act_timers(char **arg)
{
	struct sigevent event = { .sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGRTMIN };
	int count = 0, most = number(arg[0]);
	timer_t timer;

	while (count < most && timer_create(CLOCK_MONOTONIC, &event, &timer) == 0)
		count++;
	printf("timers %d\n", count);
	return is_true(count == most);
}

static long fill(int fd, long most)
{
	static char buf[1 << 16];
	long total = 0;

	memset(buf, 'x', sizeof(buf));
	while (total < most) {
		ssize_t n = write(fd, buf, sizeof(buf));

		if (n <= 0)
			break;
		total += n;
	}
	return total;
}

/* MIB DIRECTORY...: memory that belongs to no process, until there is that much. */
static int act_fill(char **arg)
{
	long most = (long)number(arg[0]) << 20, total = 0, before;

	for (int i = 1; arg[i]; i++) {
		char path[512];
		int fd;

		snprintf(path, sizeof(path), "%s/attack-fill", arg[i]);
		fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0666);
		before = total;
		if (fd >= 0)
			total += fill(fd, most - total);
		printf("%s took %ld MiB\n", arg[i], (total - before) >> 20);
		fflush(stdout);
	}
	before = total;
	total += fill(memfd_create("attack", MFD_CLOEXEC), most - total);
	printf("a memfd took %ld MiB\n", (total - before) >> 20);
	return is_true(total >= most);
}

static int act_spin(char **arg)
{
	struct timespec start, now;

	for (int i = 1; i < number(arg[0]); i++) {
		if (fork() == 0)
			break;
	}
	clock_gettime(CLOCK_MONOTONIC, &start);
	do {
		clock_gettime(CLOCK_MONOTONIC, &now);
	} while ((now.tv_sec - start.tv_sec) * 1000 + (now.tv_nsec - start.tv_nsec) / 1000000 <
		 number(arg[1]));
	return 0;
}

/* A tree deeper than any path can name. */
static int act_deep(char **arg)
{
	int depth = 0;

	if (chdir(arg[0]) < 0)
		return -errno;
	while (depth < number(arg[1]) && mkdir("deep", 0777) == 0 && chdir("deep") == 0)
		depth++;
	printf("depth %d\n", depth);
	return is_true(depth == number(arg[1]));
}

/* ---- the table */

static const struct act {
	const char *name;
	int (*try)(char **arg);
	int arguments;     /* at least */
	const char *means; /* what it means when it worked */
} acts[] = {
	/* files */
	{ "read", act_read, 1, "read a file" },
	{ "write", act_write, 2, "wrote to a file" },
	{ "open-write", act_open_write, 1, "opened a file to write" },
	{ "create", act_create, 1, "made a file" },
	{ "exists", act_exists, 1, "saw that it is there" },
	{ "list", act_list, 1, "listed a directory" },
	{ "truncate", act_truncate, 1, "emptied a file" },
	{ "unlink", act_unlink, 1, "removed a file" },
	{ "rmdir", act_rmdir, 1, "removed a directory" },
	{ "mkdir", act_mkdir, 1, "made a directory" },
	{ "link", act_link, 2, "gave a file a second name" },
	{ "link-fd", act_link_fd, 2, "gave a file a second name by its descriptor" },
	{ "symlink", act_symlink, 2, "made a symbolic link" },
	{ "rename", act_rename, 2, "renamed" },
	{ "exchange", act_exchange, 2, "exchanged two names" },
	{ "chmod", act_chmod, 1, "changed a mode" },
	{ "chmod-stdin", act_chmod_stdin, 0, "changed the mode of what stdin is" },
	{ "chown", act_chown, 2, "gave a file to another user" },
	{ "utime", act_utime, 1, "changed a file's times" },
	{ "xattr", act_xattr, 1, "set an extended attribute" },
	{ "file-capability", act_file_capability, 1, "gave a file capabilities" },
	{ "inotify", act_inotify, 1, "watches a file" },
	{ "fanotify", act_fanotify, 1, "watches a mount" },
	{ "open-handle", act_open_handle, 0, "opened a file by its handle" },
	{ "exec", act_exec, 1, "ran a program" },
	{ "exec-memfd", act_exec_memfd, 1, "ran a program from memory" },
	/* set-user-ID files and devices */
	{ "suid-chmod", act_suid_chmod, 1, "made a set-user-ID file" },
	{ "sgid-chmod", act_sgid_chmod, 1, "made a set-group-ID file" },
	{ "suid-fchmod", act_suid_fchmod, 1, "made a set-user-ID file" },
	{ "suid-fchmodat", act_suid_fchmodat, 1, "made a set-user-ID file" },
	{ "suid-fchmodat2", act_suid_fchmodat2, 1, "made a set-user-ID file" },
	{ "suid-open", act_suid_open, 1, "made a set-user-ID file" },
	{ "suid-openat", act_suid_openat, 1, "made a set-user-ID file" },
	{ "suid-openat2", act_suid_openat2, 1, "made a set-user-ID file" },
	{ "suid-creat", act_suid_creat, 1, "made a set-user-ID file" },
	{ "suid-mknod", act_suid_mknod, 1, "made a set-user-ID file" },
	{ "suid-mknodat", act_suid_mknodat, 1, "made a set-user-ID file" },
	{ "suid-tmpfile", act_suid_tmpfile, 1, "made a set-user-ID file" },
	{ "suid-high-bits", act_suid_high_bits, 1, "made a set-user-ID file" },
	{ "mknod-char", act_mknod_char, 1, "made a character device" },
	{ "mknod-block", act_mknod_block, 1, "made a block device" },
	/* privileges */
	{ "is-root", act_is_root, 0, "is root" },
	{ "setuid-root", act_seteuid, 0, "became root" },
	{ "setgroups", act_setgroups, 0, "took on a group" },
	{ "capset", act_capset, 0, "took on a capability" },
	{ "ambient", act_ambient, 0, "raised an ambient capability" },
	{ "securebits", act_securebits, 0, "changed the secure bits" },
	{ "bounding", act_bounding, 0, "has a bounding set" },
	{ "nice", act_nice, 0, "took a better priority" },
	{ "fifo", act_fifo, 0, "took a real-time policy" },
	{ "ioprio", act_ioprio, 0, "took a real-time I/O class" },
	{ "rlimit", act_rlimit, 0, "raised a hard limit" },
	{ "oom-adj", act_oom_adj, 1, "is protected from the out-of-memory killer" },
	/* namespaces and mounts */
	{ "unshare", act_unshare, 1, "has a new namespace" },
	{ "clone", act_clone, 1, "has a child in a new namespace" },
	{ "clone3", act_clone3, 1, "has a child in a new namespace" },
	{ "setns", act_setns, 2, "entered another's namespace" },
	{ "setns-pidfd", act_setns_pidfd, 1, "entered another's namespaces" },
	{ "mount-tmpfs", act_mount_tmpfs, 1, "mounted a tmpfs" },
	{ "mount-proc", act_mount_proc, 1, "mounted a proc" },
	{ "mount-bind", act_mount_bind, 1, "bound a directory" },
	{ "mount-cgroup", act_mount_cgroup, 1, "mounted the control groups" },
	{ "mount-propagation", act_mount_propagation, 0, "changed the propagation of mounts" },
	{ "remount", act_remount, 1, "remounted without read-only" },
	{ "umount", act_umount, 1, "unmounted" },
	{ "mount-setattr", act_mount_setattr, 1, "took read-only off a mount" },
	{ "open-tree", act_open_tree, 1, "has a copy of a mount" },
	{ "move-mount", act_move_mount, 2, "moved a mount" },
	{ "fsopen", act_fsopen, 1, "has a file system context" },
	{ "fspick", act_fspick, 1, "has a mount's file system context" },
	{ "pivot-root", act_pivot_root, 1, "changed the root" },
	{ "chroot", act_chroot, 1, "left by a root of its own" },
	{ "hostname", act_hostname, 0, "set the host name" },
	{ "domainname", act_domainname, 0, "set the domain name" },
	/* other processes */
	{ "see", act_see, 1, "saw a process" },
	{ "proc-read", act_proc_read, 2, "read of another process" },
	{ "proc-write", act_proc_write, 2, "may write what is another process's" },
	{ "proc-link", act_proc_link, 2, "followed a link of another process" },
	{ "proc-list", act_proc_list, 2, "listed what another process has" },
	{ "proc-mem", act_proc_mem, 2, "opened another process's memory" },
	{ "vm-read", act_vm_read, 2, "read another process's memory" },
	{ "vm-write", act_vm_write, 2, "wrote another process's memory" },
	{ "ptrace", act_ptrace, 1, "traces another process" },
	{ "ptrace-attach", act_ptrace_attach, 1, "attached to another process" },
	{ "ptrace-child", act_ptrace_child, 0, "traces a child" },
	{ "kill", act_kill, 2, "signalled another process" },
	{ "signal-pidfd", act_signal_pidfd, 2, "signalled another process" },
	{ "all-signals", act_all_signals, 1, "signalled another process" },
	{ "getfd", act_getfd, 2, "took another process's descriptor" },
	{ "prlimit", act_prlimit, 1, "may set another process's limits" },
	{ "affinity", act_affinity, 1, "may set another process's processors" },
	{ "renice", act_renice, 1, "may set another process's priority" },
	{ "kcmp", act_kcmp, 1, "compared itself with another process" },
	{ "madvise", act_madvise, 2, "advised on another process's memory" },
	{ "shm", act_shm, 1, "attached another's shared memory" },
	{ "queue", act_queue, 1, "opened another's message queue" },
	/* sockets */
	{ "socket", act_socket, 3, "has a socket" },
	{ "families", act_families, 0, "has a socket of a strange family" },
	{ "netlink", act_netlink, 0, "has a netlink socket other than for routes" },
	{ "connect-abstract", act_connect_abstract, 1, "connected to an abstract socket" },
	{ "send-abstract", act_send_abstract, 1, "sent to an abstract socket" },
	{ "connect-path", act_connect_path, 1, "connected to a socket" },
	{ "connect", act_connect, 2, "connected" },
	{ "connect-mptcp", act_connect_mptcp, 2, "connected by MPTCP" },
	{ "fast-open", act_fast_open, 2, "connected by TCP fast open" },
	{ "send", act_send, 3, "sent a datagram" },
	{ "listen", act_listen, 2, "was reached from outside" },
	{ "listen-abstract", act_listen_abstract, 2, "was reached from outside" },
	{ "vsock", act_vsock, 0, "has a socket to the hypervisor" },
	{ "new-interface", act_new_interface, 0, "made a network interface" },
	{ "interfaces", act_interfaces, 0, "sees network interfaces" },
	/* terminals */
	{ "tty", act_tty, 0, "has a controlling terminal" },
	{ "push-tty", act_push_tty, 0, "pushed input into a terminal" },
	{ "push-own", act_push_own, 0, "pushed input into a terminal of its own" },
	{ "push-own-high", act_push_own_high, 0, "pushed input past a filter" },
	{ "ptys", act_ptys, 2, "took that many terminals" },
	/* the kernel */
	{ "bpf-program", act_bpf_program, 0, "loaded a BPF program" },
	{ "bpf-map", act_bpf_map, 0, "made a BPF map" },
	{ "perf", act_perf, 0, "counts events of its own" },
	{ "perf-all", act_perf_all, 0, "counts events of a processor" },
	{ "userfaultfd", act_userfaultfd, 0, "handles page faults of the kernel" },
	{ "userfaultfd-user", act_userfaultfd_user, 0, "handles page faults" },
	{ "io-uring", act_io_uring, 0, "has an io_uring" },
	{ "add-key", act_add_key, 0, "added a key" },
	{ "request-key", act_request_key, 1, "requested a key" },
	{ "search-key", act_search_key, 1, "found a key in its session's keyring" },
	{ "keyctl", act_keyctl, 0, "has a new session keyring" },
	{ "settime", act_settime, 0, "set the clock" },
	{ "settimeofday", act_settimeofday, 0, "set the clock" },
	{ "adjtime", act_adjtime, 0, "adjusted the clock" },
	{ "reboot", act_reboot, 0, "set what Ctrl-Alt-Del does" },
	{ "acct", act_acct, 0, "turned process accounting off" },
	{ "init-module", act_init_module, 0, "reached the module loader" },
	{ "finit-module", act_finit_module, 0, "reached the module loader" },
	{ "delete-module", act_delete_module, 0, "reached the module loader" },
	{ "kexec", act_kexec, 0, "reached kexec" },
	{ "swapon", act_swapon, 0, "reached swapon" },
	{ "quotactl", act_quotactl, 0, "reached quotactl" },
	{ "kernel-log", act_kernel_log, 0, "read the kernel log" },
	{ "kernel-symbols", act_kernel_symbols, 0, "read the kernel's addresses" },
	{ "kernel-memory", act_kernel_memory, 0, "read the kernel's memory" },
#ifdef __x86_64__
	{ "int80", act_int80, 0, "called by the 32-bit ABI" },
	{ "x32", act_x32, 0, "called by the x32 ABI" },
	{ "iopl", act_iopl, 0, "may use I/O ports" },
	{ "ioperm", act_ioperm, 0, "may use I/O ports" },
#endif
	/* races and resources */
	{ "race", act_race, 3, "won the race and read what is outside" },
	{ "descriptors", act_descriptors, 1, "opened that many descriptors" },
	{ "big-file", act_big_file, 2, "made a file of that many MiB" },
	{ "zombies", act_zombies, 1, "orphans are not reaped" },
	{ "timers", act_timers, 1, "made that many timers" },
	{ "fill", act_fill, 1, "took that many MiB" },
	{ "spin", act_spin, 2, "kept the processors busy" },
	{ "deep", act_deep, 2, "made so deep a tree" },
};

static const struct act *find(const char *name)
{
	for (size_t i = 0; i < sizeof(acts) / sizeof(acts[0]); i++) {
		if (strcmp(acts[i].name, name) == 0)
			return &acts[i];
	}
	return NULL;
}

static void say(const char *how, char **words, const char *detail)
{
	printf("%s", how);
	for (; *words; words++)
		printf(" %s", *words);
	printf(": %s\n", detail);
	fflush(stdout);
}

static const char *error_name(int error)
{
	const char *name = strerrorname_np(error);

	return name ? name : "failed";
}

/* True when it held. */
static bool run(const struct act *act, char **words)
{
	char detail[64];
	int status;
	pid_t pid;

	fflush(stdout);
	pid = fork();
	if (pid < 0) {
		say("held", words, "fork failed");
		return true;
	}
	if (pid == 0) {
		int r;

		alarm(ACT_SECONDS);
		r = act->try(words + 1);
		fflush(stdout);
		_exit(r == 0 ? 0 : r > -255 && r < 0 ? -r : 255);
	}
	while (waitpid(pid, &status, 0) < 0) {
		if (errno != EINTR)
			return true;
	}
	if (WIFEXITED(status) && WEXITSTATUS(status) == 0) {
		say("BREACH", words, act->means);
		return false;
	}
	if (WIFSIGNALED(status))
		snprintf(detail, sizeof(detail), "killed by signal %d", WTERMSIG(status));
	else
		snprintf(detail, sizeof(detail), "%s",
			 WEXITSTATUS(status) == NOT_SEEN ? "nothing there" :
							   error_name(WEXITSTATUS(status)));
	say("held", words, detail);
	return true;
}

static int usage(const char *why)
{
	fprintf(stderr, "attack: %s\nusage: attack NAME [ARGUMENT...] [, NAME [ARGUMENT...]]...\n",
		why);
	return 2;
}

int main(int argc, char **argv)
{
	bool all_held = true;

	if (argc == 2 && strcmp(argv[1], "--list") == 0) {
		for (size_t i = 0; i < sizeof(acts) / sizeof(acts[0]); i++)
			printf("%s\t%d\t%s\n", acts[i].name, acts[i].arguments, acts[i].means);
		return 0;
	}
	if (argc < 2)
		return usage("what is to be tried?");
	for (int i = 1; i < argc; i++) {
		char *words[ARGUMENTS_MAX + 1] = { NULL };
		int count = 0;
		const struct act *act;

		for (; i < argc && strcmp(argv[i], ",") != 0; i++) {
			if (count == ARGUMENTS_MAX)
				return usage("too many arguments");
			words[count++] = argv[i];
		}
		act = count ? find(words[0]) : NULL;
		if (!act || count - 1 < act->arguments)
			return usage(count ? words[0] : "a name is missing");
		all_held &= run(act, words);
	}
	return all_held ? 0 : 1;
}
