/* SPDX-License-Identifier: MIT */
/* The acts that a sandbox is there to refuse, tried. The probe runs this program as a
 * command, once without a sandbox and once inside of one:
 *
 *	try acts DIR PID START PORT    everything below; DIR, PID, START (when it began) and
 *	                               PORT are the host program's
 *	try processes N MS             have N alive at once, for this long
 *	try memory MIB MS              have as much in use at once, for this long
 *
 * Each act is a line "act<TAB>NAME<TAB>R", where R is 0 when it was possible, an errno,
 * or the negative of the signal that ended it; "fact<TAB>NAME<TAB>N" is a number; "end"
 * is the last line. Nothing that an act does outlives it or changes the machine. */
#include "helper/acts.h"

#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <linux/bpf.h>
#include <linux/io_uring.h>
#include <linux/keyctl.h>
#include <linux/perf_event.h>

#include "helper/sandbox.h"

enum { ACT_SECONDS = 5 }; /* one that hangs was not possible */

/* The host program's. */
struct place {
	const char *dir;
	pid_t pid;
	uint64_t start; /* in clock ticks after boot */
	uint16_t port;
};

static int done(long result)
{
	return result < 0 ? errno : 0;
}

/* ---- files */

static int try_open(const struct place *place, const char *name, int flags)
{
	char path[4096];

	snprintf(path, sizeof(path), "%s/%s", place->dir, name);
	return done(open(path, flags | O_CLOEXEC));
}

static int read_file(const struct place *place)
{
	return try_open(place, "secret", O_RDONLY);
}

static int write_file(const struct place *place)
{
	return try_open(place, "shared", O_WRONLY);
}

static int write_system(const struct place *place)
{
	(void)place;
	return done(open("/usr", O_TMPFILE | O_WRONLY | O_CLOEXEC, 0600));
}

static int make_file(mode_t mode)
{
	char name[] = "probe.XXXXXX";
	int fd = mkostemp(name, O_CLOEXEC), error = done(fd);

	if (error)
		return error;
	error = mode ? done(fchmod(fd, mode)) : 0;
	unlink(name);
	return error;
}

static int make_setuid(const struct place *place)
{
	(void)place;
	return make_file(04755);
}

/* ---- the host program */

/* A number may be somebody else's in here. */
static int see_process(const struct place *place)
{
	uint64_t start;
	int r = ad_sys_start_time(place->pid, &start);

	if (r < 0)
		return -r;
	return start == place->start ? 0 : ESRCH;
}

static int signal_process(const struct place *place)
{
	int seen = see_process(place);

	return seen ? seen : done(kill(place->pid, 0));
}

/* ---- the network */

static int connect_port(const struct place *place)
{
	struct sockaddr_in address = { .sin_family = AF_INET,
				       .sin_port = htons(place->port),
				       .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

	return fd < 0 ? errno : done(connect(fd, (struct sockaddr *)&address, sizeof(address)));
}

static int connect_abstract(const struct place *place)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	size_t len = strnlen(place->dir, sizeof(address.sun_path) - 1);
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	memcpy(address.sun_path + 1, place->dir, len);
	len += offsetof(struct sockaddr_un, sun_path) + 1;
	return fd < 0 ? errno : done(connect(fd, (struct sockaddr *)&address, (socklen_t)len));
}

/* ---- the kernel */

static int make_userns(const struct place *place)
{
	(void)place;
	return done(syscall(SYS_unshare, CLONE_NEWUSER));
}

static int make_filesystem(const struct place *place)
{
	(void)place;
	return done(syscall(SYS_fsopen, "tmpfs", 0));
}

static int change_root(const struct place *place)
{
	(void)place;
	return done(chroot("."));
}

static int set_hostname(const struct place *place)
{
	char name[256] = "";

	(void)place;
	return gethostname(name, sizeof(name) - 1) < 0 ? errno :
							 done(sethostname(name, strlen(name)));
}

static int trace(const struct place *place)
{
	(void)place;
	return done(syscall(SYS_ptrace, 0L /* PTRACE_TRACEME */, 0L, 0L, 0L));
}

static int use_io_uring(const struct place *place)
{
	struct io_uring_params params = { 0 };

	(void)place;
	return done(syscall(SYS_io_uring_setup, 1, &params));
}

static int use_bpf(const struct place *place)
{
	union bpf_attr attr = { 0 };

	(void)place;
	attr.map_type = BPF_MAP_TYPE_ARRAY;
	attr.key_size = 4;
	attr.value_size = 4;
	attr.max_entries = 1;
	return done(syscall(SYS_bpf, BPF_MAP_CREATE, &attr, sizeof(attr)));
}

static int use_perf(const struct place *place)
{
	struct perf_event_attr attr = { .type = PERF_TYPE_SOFTWARE,
					.size = sizeof(attr),
					.config = PERF_COUNT_SW_TASK_CLOCK,
					.exclude_kernel = 1,
					.disabled = 1 };

	(void)place;
	return done(syscall(SYS_perf_event_open, &attr, 0, -1, -1, 0));
}

static int use_userfaultfd(const struct place *place)
{
	(void)place;
	return done(syscall(SYS_userfaultfd, 1 /* UFFD_USER_MODE_ONLY */ | O_CLOEXEC));
}

static int use_keys(const struct place *place)
{
	(void)place;
	return done(syscall(SYS_keyctl, KEYCTL_GET_KEYRING_ID, KEY_SPEC_PROCESS_KEYRING, 1));
}

static int use_crypto_socket(const struct place *place)
{
	(void)place;
	return done(socket(AF_ALG, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
}

#if defined(__x86_64__)
static int use_foreign_abi(const struct place *place)
{
	long result;

	(void)place;
	__asm__ volatile("int $0x80" : "=a"(result) : "a"(20L /* getpid */) : "memory");
	return result < 0 ? (int)-result : 0;
}
#endif

static const struct {
	const char *name;
	int (*fn)(const struct place *place);
} acts[] = {
	{ "read a file outside of the policy", read_file },
	{ "write to a file outside of the policy", write_file },
	{ "make a file in /usr", write_system },
	{ "make a set-user-id file", make_setuid },
	{ "see the host program's process", see_process },
	{ "signal the host program", signal_process },
	{ "connect to a loopback port of the host", connect_port },
	{ "connect to an abstract socket of the host", connect_abstract },
	{ "make a user namespace", make_userns },
	{ "make a file system", make_filesystem },
	{ "change the root directory", change_root },
	{ "set the host name", set_hostname },
	{ "trace a process", trace },
	{ "use io_uring", use_io_uring },
	{ "use bpf", use_bpf },
	{ "use perf events", use_perf },
	{ "use userfaultfd", use_userfaultfd },
	{ "use kernel keyrings", use_keys },
	{ "use kernel crypto sockets", use_crypto_socket },
#if defined(__x86_64__)
	{ "call the kernel by its 32-bit interface", use_foreign_abi },
#endif
};

/* In a process of its own: it may be killed for it, and what it got goes with it. */
static int try_act(int (*fn)(const struct place *place), const struct place *place)
{
	int status;
	pid_t pid = fork();

	if (pid < 0)
		return errno;
	if (pid == 0) {
		alarm(ACT_SECONDS);
		_exit(fn(place));
	}
	while (waitpid(pid, &status, 0) < 0) {
		if (errno != EINTR)
			return errno;
	}
	return WIFSIGNALED(status) ? -WTERMSIG(status) : WEXITSTATUS(status);
}

static void run_acts(char **argv)
{
	struct place place = { .dir = argv[0],
			       .pid = (pid_t)strtol(argv[1], NULL, 10),
			       .start = strtoull(argv[2], NULL, 10),
			       .port = (uint16_t)strtoul(argv[3], NULL, 10) };

	for (size_t i = 0; i < AD_COUNT(acts); i++) {
		printf("act\t%s\t%d\n", acts[i].name, try_act(acts[i].fn, &place));
		fflush(stdout);
	}
	printf("fact\tworkdir\t%d\n", make_file(0));
	/* In a sandbox of the same user: it takes Landlock to refuse this. */
	printf("fact\tsignal-init\t%d\n", done(kill(1, 0)));
	printf("fact\tlandlock\t%d\n", landlock_abi());
	printf("fact\tseccomp\t%u\n", seccomp_level());
}

/* ---- limits */

static int have_processes(unsigned long count, int hold_ms)
{
	int alive[2], error = 0;
	char byte;

	if (pipe2(alive, O_CLOEXEC) < 0)
		return errno;
	for (unsigned long i = 0; i < count && !error; i++) {
		pid_t pid = fork();

		if (pid < 0)
			error = errno;
		if (pid != 0)
			continue;
		close(alive[1]);
		while (read(alive[0], &byte, 1) < 0 && errno == EINTR)
			;
		_exit(0);
	}
	if (!error)
		poll(NULL, 0, hold_ms);
	close(alive[1]);
	while (waitpid(-1, NULL, 0) > 0)
		;
	return error;
}

static int have_memory(unsigned long mib, int hold_ms)
{
	size_t size = mib << 20;
	char *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (memory == MAP_FAILED)
		return errno;
	memset(memory, 1, size);
	poll(NULL, 0, hold_ms);
	return 0;
}

static void try_limit(const char *act, int (*fn)(unsigned long amount, int hold_ms), char **argv)
{
	int error = fn(strtoul(argv[0], NULL, 10), (int)strtol(argv[1], NULL, 10));

	printf("act\t%s\t%d\n", act, error);
}

_Noreturn void acts_run(int argc, char **argv)
{
	if (argc == 5 && strcmp(argv[0], "acts") == 0)
		run_acts(argv + 1);
	else if (argc == 3 && strcmp(argv[0], "processes") == 0)
		try_limit("exceed the limit on processes", have_processes, argv + 1);
	else if (argc == 3 && strcmp(argv[0], "memory") == 0)
		try_limit("exceed the limit on memory", have_memory, argv + 1);
	else
		_exit(2);
	puts("end");
	/* Not through exit(3): a sanitizer's check for leaks takes what is refused here. */
	_exit(fflush(stdout) == 0 ? 0 : 1);
}
