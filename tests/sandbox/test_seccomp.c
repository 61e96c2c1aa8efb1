/* SPDX-License-Identifier: MIT */
/* The system call filters. What they decide is read from the programs, for every number
 * and many arguments, by an interpreter of our own; that the kernel sees the same is
 * shown with calls that are harmless when they are let through. Never is EFAULT taken
 * for a refusal, and each call refused is made without the filters as well. */
#include "harness.h"

#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/personality.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/keyctl.h>
#include <linux/netlink.h>
#include <linux/seccomp.h>

#include "helper/seccomp.h"

#if defined(__x86_64__)
static const uint32_t native = AUDIT_ARCH_X86_64, foreign = AUDIT_ARCH_I386;
#elif defined(__aarch64__)
static const uint32_t native = AUDIT_ARCH_AARCH64, foreign = AUDIT_ARCH_ARM;
#endif

enum {
	NUMBERS = 1024,
	X32 = 0x40000000,
	NR_FCHMODAT2 = 452,
	MPTCP = 262,
	SETID = S_ISUID | S_ISGID,
};
#define EPERM_RET (SECCOMP_RET_ERRNO | EPERM)
#define ENOSYS_RET (SECCOMP_RET_ERRNO | ENOSYS)
/* Not a return value of a filter: it depends on the arguments. */
#define ARGS_RET 1U

static struct seccomp_filters filters;

/* ---- what a program decides */

/* The instructions there are in filters for seccomp; anything else fails the test. */
static uint32_t interpret(const struct sock_fprog *program, const struct seccomp_data *data,
			  bool *ret_args)
{
	uint32_t accu = 0;

	for (size_t pc = 0; pc < program->len; pc++) {
		const struct sock_filter *insn = &program->filter[pc];
		bool taken;

		switch (insn->code) {
		case BPF_LD | BPF_W | BPF_ABS:
			T_CHECK(insn->k % 4 == 0 && insn->k < sizeof(*data), "load of %u", insn->k);
			memcpy(&accu, (const char *)data + insn->k, sizeof(accu));
			if (insn->k >= offsetof(struct seccomp_data, instruction_pointer))
				*ret_args = true;
			continue;
		case BPF_ALU | BPF_AND | BPF_K:
			accu &= insn->k;
			continue;
		case BPF_RET | BPF_K:
			return insn->k;
		case BPF_JMP | BPF_JA:
			pc += insn->k;
			continue;
		case BPF_JMP | BPF_JEQ | BPF_K:
			taken = accu == insn->k;
			break;
		case BPF_JMP | BPF_JGT | BPF_K:
			taken = accu > insn->k;
			break;
		case BPF_JMP | BPF_JGE | BPF_K:
			taken = accu >= insn->k;
			break;
		case BPF_JMP | BPF_JSET | BPF_K:
			taken = accu & insn->k;
			break;
		default:
			ck_abort_msg("unexpected instruction %#x at %zu", insn->code, pc);
		}
		pc += taken ? insn->jt : insn->jf;
	}
	ck_abort_msg("ran off the end");
}

/* As the kernel does with two filters: the inner one first, and what is stricter. */
static uint32_t stricter(uint32_t inner, uint32_t outer)
{
	int32_t a = (int32_t)(inner & SECCOMP_RET_ACTION_FULL);
	int32_t b = (int32_t)(outer & SECCOMP_RET_ACTION_FULL);

	return b < a ? outer : inner;
}

static uint32_t decide_setup(const struct seccomp_data *data, bool *ret_args)
{
	return interpret(&filters.outer, data, ret_args);
}

static uint32_t decide_command(const struct seccomp_data *data, bool *ret_args)
{
	return stricter(interpret(&filters.inner, data, ret_args), decide_setup(data, ret_args));
}

/* Whatever the arguments are, or ARGS_RET. */
static uint32_t decide_number(uint32_t (*decide)(const struct seccomp_data *, bool *),
			      uint32_t arch, uint32_t nr)
{
	struct seccomp_data data = { .nr = (int)nr, .arch = arch };
	bool args = false;
	uint32_t action = decide(&data, &args);

	return args ? ARGS_RET : action;
}

static uint32_t decide_args(long nr, const uint64_t args[6])
{
	struct seccomp_data data = { .nr = (int)nr, .arch = native };
	bool ignored = false;

	memcpy(data.args, args, sizeof(data.args));
	return decide_command(&data, &ignored);
}

static const char *action_name(uint32_t action)
{
	static char other[32];

	switch (action) {
	case SECCOMP_RET_ALLOW:
		return "allow";
	case SECCOMP_RET_USER_NOTIF:
		return "notify";
	case SECCOMP_RET_KILL_PROCESS:
		return "kill";
	case EPERM_RET:
		return "EPERM";
	case ENOSYS_RET:
		return "ENOSYS";
	case ARGS_RET:
		return "args";
	default:
		snprintf(other, sizeof(other), "%#x", action);
		return other;
	}
}

/* That this is what becomes of a call, also with anything in the upper halves of its
 * arguments: the kernel does not look at those. */
static void expect(long nr, const uint64_t args[6], uint32_t action)
{
	static const uint64_t junk[] = { 0, UINT64_C(0x100000000), UINT64_C(0xffffffff00000000),
					 UINT64_C(0xdeadbeef00000000) };

	for (size_t i = 0; i < T_COUNT(junk); i++) {
		uint64_t all[6];
		uint32_t is;

		for (size_t j = 0; j < T_COUNT(all); j++)
			all[j] = (uint32_t)args[j] | junk[i];
		is = decide_args(nr, all);
		T_CHECK(is == action, "call %ld(%#llx, %#llx, %#llx, %#llx): %#x, not %#x", nr,
			(unsigned long long)all[0], (unsigned long long)all[1],
			(unsigned long long)all[2], (unsigned long long)all[3], is, action);
	}
}

#define EXPECT(action, nr, ...) expect(nr, (const uint64_t[6]){ __VA_ARGS__ }, action)

/* ---- every number */

#ifdef __x86_64__
struct expected {
	char name[32], setup[16], command[16];
};

static void read_table(struct expected table[NUMBERS])
{
	FILE *file = fopen(AD_TEST_SYSCALLS, "re");
	char line[256];

	ck_assert_msg(file, "%s: %s", AD_TEST_SYSCALLS, strerror(errno));
	while (fgets(line, sizeof(line), file)) {
		struct expected row;
		unsigned int first, last;

		if (line[0] == '#' || line[0] == '\n')
			continue;
		if (sscanf(line, "%u-%u %31s %15s %15s", &first, &last, row.name, row.setup,
			   row.command) != 5) {
			ck_assert_msg(sscanf(line, "%u %31s %15s %15s", &first, row.name, row.setup,
					     row.command) == 4,
				      "not a row: %s", line);
			last = first;
		}
		ck_assert_msg(first <= last && last < NUMBERS, "not a row: %s", line);
		for (unsigned int nr = first; nr <= last; nr++) {
			ck_assert_msg(!table[nr].name[0], "%u: there twice", nr);
			table[nr] = row;
		}
	}
	fclose(file);
}

START_TEST(numbers)
{
	static struct expected table[NUMBERS];
	unsigned int wrong = 0;

	read_table(table);
	for (unsigned int nr = 0; nr < NUMBERS; nr++) {
		const char *setup, *command;
		char is[2][32], name[32];

		setup = action_name(decide_number(decide_setup, native, nr));
		snprintf(is[0], sizeof(is[0]), "%s", setup);
		command = action_name(decide_number(decide_command, native, nr));
		snprintf(is[1], sizeof(is[1]), "%s", command);
		seccomp_name((int)nr, name, sizeof(name));
		if (!name[0])
			snprintf(name, sizeof(name), "-");
		if (strcmp(is[0], table[nr].setup) != 0 || strcmp(is[1], table[nr].command) != 0 ||
		    (strcmp(table[nr].name, "-") != 0 && strcmp(name, table[nr].name) != 0)) {
			fprintf(stderr, "is   %u %s %s %s\nnot  %u %s %s %s\n", nr, name, is[0],
				is[1], nr, table[nr].name, table[nr].setup, table[nr].command);
			wrong++;
		}
	}
	ck_assert_uint_eq(wrong, 0);
}
END_TEST
#endif

START_TEST(other_abis)
{
	const struct sock_fprog *programs[] = { &filters.outer, &filters.inner };

	for (size_t i = 0; i < T_COUNT(programs); i++) {
		for (unsigned int nr = 0; nr < NUMBERS; nr++) {
			struct seccomp_data data = { .nr = (int)nr, .arch = foreign };
			bool ignored;

			T_CHECK(interpret(programs[i], &data, &ignored) == SECCOMP_RET_KILL_PROCESS,
				"program %zu, foreign %u", i, nr);
#ifdef __x86_64__
			data = (struct seccomp_data){ .nr = X32 | (int)nr, .arch = native };
			T_CHECK(interpret(programs[i], &data, &ignored) == SECCOMP_RET_KILL_PROCESS,
				"program %zu, x32 %u", i, nr);
#endif
		}
	}
}
END_TEST

/* What no kernel has is for libc to find missing. */
START_TEST(beyond)
{
	static const uint32_t absent[] = { 1024, 4096, 65535, 0x3fffffff, UINT32_MAX };

	for (size_t i = 0; i < T_COUNT(absent); i++)
		ck_assert_uint_eq(decide_number(decide_command, native, absent[i]), ENOSYS_RET);
}
END_TEST

/* ---- arguments */

static uint32_t expected_socket(int family, int type, int protocol)
{
	switch (family) {
	case AF_UNIX:
		return SECCOMP_RET_ALLOW;
	case AF_NETLINK:
		if (protocol == NETLINK_ROUTE)
			return SECCOMP_RET_ALLOW;
		/* 32 and more are not protocols of any kernel. */
		return protocol & 31 ? SECCOMP_RET_ERRNO | EPROTONOSUPPORT : ENOSYS_RET;
	case AF_INET:
	case AF_INET6:
		if ((type & 0xf) != SOCK_STREAM && (type & 0xf) != SOCK_DGRAM)
			return EPERM_RET;
		switch (protocol) {
		case 0:
		case IPPROTO_TCP:
		case IPPROTO_UDP:
		case IPPROTO_ICMP:
		case IPPROTO_ICMPV6:
			return SECCOMP_RET_ALLOW;
		case MPTCP:
			return SECCOMP_RET_ERRNO | EPROTONOSUPPORT;
		default:
			return ENOSYS_RET;
		}
	default:
		return family < 64 ? SECCOMP_RET_ERRNO | EAFNOSUPPORT : ENOSYS_RET;
	}
}

START_TEST(sockets)
{
	static const int flags[] = { 0, SOCK_CLOEXEC, SOCK_CLOEXEC | SOCK_NONBLOCK, 0x10 };

	for (int family = 0; family <= 64; family++) {
		EXPECT(family == AF_UNIX ? SECCOMP_RET_ALLOW :
		       family < 64       ? SECCOMP_RET_ERRNO | EAFNOSUPPORT :
					   ENOSYS_RET,
		       SYS_socketpair, (uint64_t)family, SOCK_STREAM);
		for (int type = 0; type < 16; type++)
			for (int protocol = 0; protocol < 300; protocol++)
				EXPECT(expected_socket(family, type, protocol), SYS_socket,
				       (uint64_t)family, (uint64_t)(type | flags[protocol % 4]),
				       (uint64_t)protocol);
	}
	for (unsigned int bit = 6; bit < 32; bit++)
		EXPECT(ENOSYS_RET, SYS_socket, AF_INET | UINT64_C(1) << bit, SOCK_STREAM);
	for (unsigned int bit = 9; bit < 32; bit++)
		EXPECT(ENOSYS_RET, SYS_socket, AF_INET, SOCK_STREAM,
		       IPPROTO_TCP | UINT64_C(1) << bit);
}
END_TEST

START_TEST(terminals)
{
	static const uint32_t refused[] = { TIOCSTI, TIOCLINUX, TIOCSETD };

	for (uint32_t request = 0; request < 0x10000; request++) {
		bool bad = false;

		for (size_t i = 0; i < T_COUNT(refused); i++)
			bad = bad || request == refused[i];
		EXPECT(bad ? EPERM_RET : SECCOMP_RET_ALLOW, SYS_ioctl, 0, request);
	}
	/* Only the lower half is the request. */
	EXPECT(SECCOMP_RET_ALLOW, SYS_ioctl, 0, 0x80000000 | TIOCSTI);
	EXPECT(SECCOMP_RET_ALLOW, SYS_ioctl, TIOCSTI, TIOCGWINSZ, TIOCSTI);
}
END_TEST

START_TEST(namespaces)
{
	/* That bit is of the exit signal here, and unshare and clone3 are refused. */
	static const uint64_t refused = CLONE_NEWNS | CLONE_NEWCGROUP | CLONE_NEWUTS |
					CLONE_NEWIPC | CLONE_NEWUSER | CLONE_NEWPID | CLONE_NEWNET;
	static const uint64_t thread = CLONE_VM | CLONE_FS | CLONE_FILES | CLONE_SIGHAND |
				       CLONE_THREAD | CLONE_SYSVSEM | CLONE_SETTLS |
				       CLONE_PARENT_SETTID | CLONE_CHILD_CLEARTID;

	for (unsigned int bit = 0; bit < 32; bit++) {
		uint32_t action = refused >> bit & 1 ? EPERM_RET : SECCOMP_RET_ALLOW;

		EXPECT(action, SYS_clone, UINT64_C(1) << bit);
		EXPECT(action, SYS_clone, UINT64_C(1) << bit | SIGCHLD);
		EXPECT(action, SYS_clone, UINT64_C(1) << bit | CLONE_VM | CLONE_VFORK | SIGCHLD);
		EXPECT(action, SYS_clone, UINT64_C(1) << bit | thread);
	}
	EXPECT(SECCOMP_RET_ALLOW, SYS_clone, thread);
	EXPECT(SECCOMP_RET_ALLOW, SYS_clone, ~refused);
	EXPECT(EPERM_RET, SYS_clone, ~UINT64_C(0));
}
END_TEST

START_TEST(modes)
{
	static const int flags[] = { O_RDONLY,
				     O_WRONLY | O_TRUNC,
				     O_RDWR | O_CREAT,
				     O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC,
				     O_RDWR | O_TMPFILE,
				     O_RDWR | (O_TMPFILE & ~O_DIRECTORY),
				     O_RDONLY | O_DIRECTORY,
				     O_CREAT | O_TMPFILE };

	for (uint64_t mode = 0; mode < 0x10000; mode++) {
		uint32_t set = mode & SETID ? EPERM_RET : SECCOMP_RET_ALLOW, node = set;

		EXPECT(set, SYS_fchmod, 3, mode);
		EXPECT(set, SYS_fchmodat, 3, 0, mode);
		EXPECT(set, NR_FCHMODAT2, 3, 0, mode);
		for (size_t i = 0; i < T_COUNT(flags); i++) {
			bool creates = flags[i] & (O_CREAT | (O_TMPFILE & ~O_DIRECTORY));
			uint32_t action = creates ? set : SECCOMP_RET_ALLOW;

			EXPECT(action, SYS_openat, 3, 0, (uint64_t)flags[i], mode);
#ifdef SYS_open
			EXPECT(action, SYS_open, 0, (uint64_t)flags[i], mode);
#endif
		}
		switch (mode & S_IFMT) {
		case 0:
		case S_IFREG:
		case S_IFIFO:
		case S_IFSOCK:
			break;
		case S_IFCHR:
		case S_IFBLK:
			node = EPERM_RET;
			break;
		default:
			/* What mknod cannot make. */
			node = mode & SETID ? EPERM_RET : ENOSYS_RET;
			break;
		}
		EXPECT(node, SYS_mknodat, 3, 0, mode);
#ifdef SYS_chmod
		EXPECT(set, SYS_chmod, 0, mode);
		EXPECT(set, SYS_creat, 0, mode);
		EXPECT(node, SYS_mknod, 0, mode);
#endif
	}
}
END_TEST

START_TEST(personalities)
{
	EXPECT(SECCOMP_RET_ALLOW, SYS_personality, UINT32_MAX);
	for (uint64_t low = 0; low < 256; low++)
		EXPECT(low == PER_LINUX || low == PER_LINUX32 ? SECCOMP_RET_ALLOW : ENOSYS_RET,
		       SYS_personality, low);
	for (unsigned int bit = 8; bit < 32; bit++) {
		uint64_t persona = UINT64_C(1) << bit;

		EXPECT(persona == ADDR_NO_RANDOMIZE || persona == UNAME26 ? SECCOMP_RET_ALLOW :
									    ENOSYS_RET,
		       SYS_personality, persona);
	}
}
END_TEST

START_TEST(keyrings)
{
	for (uint64_t operation = 0; operation < 64; operation++) {
		struct seccomp_data data = { .nr = SYS_keyctl,
					     .arch = native,
					     .args = { operation } };
		bool ignored;

		ck_assert_uint_eq(decide_setup(&data, &ignored),
				  operation == KEYCTL_JOIN_SESSION_KEYRING ? SECCOMP_RET_ALLOW :
									     ENOSYS_RET);
		EXPECT(EPERM_RET, SYS_keyctl, operation);
	}
}
END_TEST

/* One's own may be set, and everybody's looked at. A pid is an int, but what has something in the
 * upper half is refused as if it were another's. */
START_TEST(limits)
{
	static const uint64_t junk[] = { 0, UINT64_C(0xffffffff00000000) };

	for (size_t i = 0; i < T_COUNT(junk); i++) {
		for (unsigned int bit = 0; bit < 64; bit++) {
			uint64_t limit = UINT64_C(1) << bit, pid = junk[i] | 1U << bit % 32;

			ck_assert_uint_eq(decide_args(SYS_prlimit64,
						      (const uint64_t[6]){ junk[i], 7, limit }),
					  junk[i] ? EPERM_RET : SECCOMP_RET_ALLOW);
			ck_assert_uint_eq(decide_args(SYS_prlimit64,
						      (const uint64_t[6]){ pid, 7, limit }),
					  EPERM_RET);
			ck_assert_uint_eq(decide_args(SYS_prlimit64,
						      (const uint64_t[6]){ pid, 7, 0, limit }),
					  SECCOMP_RET_ALLOW);
		}
		ck_assert_uint_eq(decide_args(SYS_prlimit64, (const uint64_t[6]){ junk[i] | 12345,
										  7, UINT64_MAX }),
				  EPERM_RET);
	}
}
END_TEST

/* ---- the kernel */

static int install(const struct sock_fprog *program, unsigned int flags)
{
	return (int)syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, flags, program);
}

static bool confine(void)
{
	return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 && install(&filters.outer, 0) == 0 &&
	       install(&filters.inner, 0) == 0;
}

struct outcome {
	long ret;
	int error;  /* of the call; -1: the filters could not be installed */
	int status; /* of the child */
};

/* Make a call in a child. */
static struct outcome make_call(bool confined, void (*call)(struct outcome *, const void *),
				const void *arg)
{
	struct outcome *shared = mmap(NULL, sizeof(*shared), PROT_READ | PROT_WRITE,
				      MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	struct outcome outcome;
	pid_t pid;

	ck_assert_ptr_ne(shared, MAP_FAILED);
	pid = fork();
	ck_assert_int_ge(pid, 0);
	if (pid == 0) {
		const struct rlimit no_core = { 0, 0 };

		setrlimit(RLIMIT_CORE, &no_core);
		if (confined && !confine()) {
			shared->error = -1;
			_exit(1);
		}
		call(shared, arg);
		_exit(0);
	}
	ck_assert_int_eq(waitpid(pid, &shared->status, 0), pid);
	outcome = *shared;
	munmap(shared, sizeof(*shared));
	ck_assert_int_ne(outcome.error, -1);
	return outcome;
}

struct sample {
	const char *what;
	long nr;
	int error; /* under the filters; 0: let through */
	uint64_t args[6];
};

static void sample_call(struct outcome *ret, const void *arg)
{
	const struct sample *sample = arg;
	const uint64_t *args = sample->args;

	errno = 0;
	ret->ret = syscall(sample->nr, args[0], args[1], args[2], args[3], args[4], args[5]);
	ret->error = errno;
}

#define BAD_FD ((uint64_t)-1)
#define EMPTY ((uint64_t)(uintptr_t) "")
#define HIGH (UINT64_C(0xdeadbeef) << 32)

/* None of it does anything when it is let through, for root or anybody, and what the
 * kernel then says is something else than the filters. */
static const struct sample samples[] = {
	{ "ptrace", SYS_ptrace, EPERM, { PTRACE_CONT, 0 } },
	{ "process_vm_readv", SYS_process_vm_readv, EPERM, { 0, 0, 0, 0, 0, 1 } },
	{ "process_madvise", SYS_process_madvise, EPERM, { BAD_FD } },
	{ "pidfd_getfd", SYS_pidfd_getfd, EPERM, { BAD_FD, BAD_FD } },
	{ "kcmp", SYS_kcmp, EPERM, { 0, 0, 99 } },
	{ "add_key", SYS_add_key, EPERM, { 0 } },
	{ "keyctl", SYS_keyctl, EPERM, { 9999 } },
	{ "io_uring_enter", SYS_io_uring_enter, EPERM, { BAD_FD } },
	{ "adjtimex", SYS_adjtimex, EPERM, { 1 } },
	{ "clock_settime", SYS_clock_settime, EPERM, { 99, 1 } },
	{ "unshare", SYS_unshare, EPERM, { 0 } },
	{ "setns", SYS_setns, EPERM, { BAD_FD } },
	{ "chroot", SYS_chroot, EPERM, { EMPTY } },
	{ "mount", SYS_mount, EPERM, { EMPTY, EMPTY } },
	{ "umount2", SYS_umount2, EPERM, { EMPTY, 0x40000000 } },
	{ "open_tree", SYS_open_tree, EPERM, { BAD_FD, EMPTY, 0x40000000 } },
	{ "clone, new namespace", SYS_clone, EPERM, { CLONE_NEWNS | CLONE_FS } },
	{ "clone, new namespace, high bits", SYS_clone, EPERM, { HIGH | CLONE_NEWNS | CLONE_FS } },
	{ "clone, otherwise bad", SYS_clone, 0, { CLONE_THREAD } },
	{ "clone3", SYS_clone3, ENOSYS, { 0 } },
	{ "openat2", SYS_openat2, ENOSYS, { BAD_FD } },
	{ "get_mempolicy", SYS_get_mempolicy, ENOSYS, { 0, 0, 0, 0, 0x8000 } },
	{ "prlimit64, another's", SYS_prlimit64, EPERM, { INT32_MAX, RLIMIT_CORE, EMPTY } },
	{ "prlimit64, another's, high bits",
	  SYS_prlimit64,
	  EPERM,
	  { HIGH | INT32_MAX, RLIMIT_CORE, EMPTY } },
	{ "prlimit64, asking", SYS_prlimit64, 0, { INT32_MAX, RLIMIT_CORE, 0 } },
	{ "prlimit64, one's own", SYS_prlimit64, 0, { 0, 99, EMPTY } },
	{ "prlimit64, one's own, high bits", SYS_prlimit64, EPERM, { HIGH, 99, EMPTY } },
	{ "personality, old code", SYS_personality, ENOSYS, { READ_IMPLIES_EXEC } },
	{ "personality, asking", SYS_personality, 0, { UINT32_MAX } },
	{ "TIOCSTI", SYS_ioctl, EPERM, { BAD_FD, TIOCSTI } },
	{ "TIOCSTI, high bits", SYS_ioctl, EPERM, { BAD_FD, HIGH | TIOCSTI } },
	{ "TIOCLINUX", SYS_ioctl, EPERM, { BAD_FD, TIOCLINUX } },
	{ "TIOCSETD", SYS_ioctl, EPERM, { BAD_FD, TIOCSETD } },
	{ "TIOCGWINSZ", SYS_ioctl, 0, { BAD_FD, TIOCGWINSZ } },
	{ "socket, local", SYS_socket, 0, { AF_UNIX, SOCK_STREAM } },
	{ "socket, TCP", SYS_socket, 0, { AF_INET, SOCK_STREAM | SOCK_CLOEXEC } },
	{ "socket, TCP, high bits", SYS_socket, 0, { HIGH | AF_INET, HIGH | SOCK_STREAM, HIGH } },
	{ "socket, strange type", SYS_socket, EPERM, { AF_INET, SOCK_SEQPACKET } },
	{ "socket, routes", SYS_socket, 0, { AF_NETLINK, SOCK_RAW, NETLINK_ROUTE } },
	{ "socket, uevents",
	  SYS_socket,
	  EPROTONOSUPPORT,
	  { AF_NETLINK, SOCK_RAW, NETLINK_KOBJECT_UEVENT } },
	{ "socketpair", SYS_socketpair, EAFNOSUPPORT, { AF_INET, SOCK_STREAM } },
	{ "fchmod 4755", SYS_fchmod, EPERM, { BAD_FD, 04755 } },
	{ "fchmod 2755, high bits", SYS_fchmod, EPERM, { BAD_FD, HIGH | 02755 } },
	{ "fchmod 1777", SYS_fchmod, 0, { BAD_FD, 01777 } },
	{ "fchmodat 4755", SYS_fchmodat, EPERM, { BAD_FD, EMPTY, 04755 } },
	{ "openat 4600", SYS_openat, EPERM, { BAD_FD, EMPTY, O_CREAT, 04600 } },
	{ "openat 600", SYS_openat, 0, { BAD_FD, EMPTY, O_CREAT, 0600 } },
	{ "openat, junk for mode", SYS_openat, 0, { BAD_FD, EMPTY, 0, 07777 } },
	{ "mknodat, device", SYS_mknodat, EPERM, { BAD_FD, EMPTY, S_IFCHR | 0600 } },
	{ "mknodat, FIFO", SYS_mknodat, 0, { BAD_FD, EMPTY, S_IFIFO | 0600 } },
	{ "landlock", SYS_landlock_create_ruleset, 0, { 0, 0, 1 } },
	{ "seccomp", SYS_seccomp, 0, { SECCOMP_GET_ACTION_AVAIL, 0, 0 } },
	{ "getpgid", SYS_getpgid, 0, { 0 } },
};

START_TEST(really)
{
	const struct sample *sample = &samples[_i];
	struct outcome free = make_call(false, sample_call, sample);
	struct outcome confined = make_call(true, sample_call, sample);

	ck_assert_int_eq(free.status, 0);
	ck_assert_int_eq(confined.status, 0);
	ck_assert_uint_eq(decide_args(sample->nr, sample->args),
			  sample->error ? SECCOMP_RET_ERRNO | (uint32_t)sample->error :
					  SECCOMP_RET_ALLOW);
	if (sample->error) {
		ck_assert_msg(free.error != sample->error, "%s: %s without filters as well",
			      sample->what, strerror(free.error));
		ck_assert_msg(confined.ret == -1 && confined.error == sample->error, "%s: %s",
			      sample->what, strerror(confined.error));
	} else {
		ck_assert_msg(free.error == confined.error && (free.ret < 0) == (confined.ret < 0),
			      "%s: %s, not %s", sample->what, strerror(confined.error),
			      strerror(free.error));
	}
}
END_TEST

#ifdef __x86_64__
static void call_i386(struct outcome *ret, const void *arg)
{
	(void)arg;
	ret->ret = 20; /* getpid */
	__asm__ volatile("int $0x80" : "+a"(ret->ret) : : "memory", "r8", "r9", "r10", "r11");
}

static void call_x32(struct outcome *ret, const void *arg)
{
	(void)arg;
	errno = 0;
	ret->ret = syscall(X32 | SYS_getpid);
	ret->error = errno;
}

static void expect_killed(void (*call)(struct outcome *, const void *))
{
	struct outcome outcome = make_call(true, call, NULL);

	ck_assert_msg(WIFSIGNALED(outcome.status) && WTERMSIG(outcome.status) == SIGSYS,
		      "status %#x", outcome.status);
}

/* A virtual machine may fault on int 0x80, before there is a call to filter. */
START_TEST(i386_really)
{
	struct outcome outcome = make_call(false, call_i386, NULL);

	if (outcome.status == 0 && outcome.ret > 0)
		expect_killed(call_i386);
	else
		t_skip("int 0x80 does not work here");
}
END_TEST

START_TEST(x32_really)
{
	struct outcome outcome = make_call(false, call_x32, NULL);

	ck_assert_int_eq(outcome.status, 0);
	expect_killed(call_x32);
}
END_TEST
#endif

/* What is reported: whoever holds the listener sees which call it is before anything
 * happens. The arguments would do nothing either. */
static const struct sample reported[] = {
	{ "acct", SYS_acct, 0, { EMPTY } },
	{ "delete_module", SYS_delete_module, 0, { 0 } },
	{ "finit_module", SYS_finit_module, 0, { BAD_FD, 0, 0x8000 } },
	{ "init_module", SYS_init_module, 0, { 0 } },
	{ "kexec_load", SYS_kexec_load, 0, { 0, 0, 0, 0x8000 } },
	{ "kexec_file_load", SYS_kexec_file_load, 0, { BAD_FD, BAD_FD, 0, 0, 0x8000 } },
	{ "reboot", SYS_reboot, 0, { 0 } },
	{ "swapoff", SYS_swapoff, 0, { EMPTY } },
	{ "swapon", SYS_swapon, 0, { EMPTY, 0x40000000 } },
};

static void call_reported(struct outcome *ret, const void *arg)
{
	const struct sample *sample = arg;
	struct seccomp_notif note = { 0 };
	struct seccomp_notif_resp answer = { .error = -EXDEV };
	struct pollfd poll_fd = { .events = POLLIN };
	pid_t pid;

	ret->error = -1;
	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0 || install(&filters.outer, 0) < 0)
		return;
	poll_fd.fd = install(&filters.inner, SECCOMP_FILTER_FLAG_NEW_LISTENER);
	if (poll_fd.fd < 0)
		return;
	ret->error = ENOMSG;
	pid = fork();
	if (pid == 0) {
		struct outcome outcome = { 0 };

		sample_call(&outcome, sample);
		_exit(outcome.ret == -1 && outcome.error == EXDEV ? 7 : 8);
	}
	if (poll(&poll_fd, 1, (int)t_slack(5000)) == 1 &&
	    ioctl(poll_fd.fd, SECCOMP_IOCTL_NOTIF_RECV, &note) == 0) {
		answer.id = note.id;
		ret->error = note.data.nr == sample->nr && note.pid == (uint32_t)pid ? 0 : EBADMSG;
		if (ioctl(poll_fd.fd, SECCOMP_IOCTL_NOTIF_SEND, &answer) < 0)
			ret->error = errno;
	} else {
		kill(pid, SIGKILL);
	}
	waitpid(pid, &ret->status, 0);
	ret->ret = WIFEXITED(ret->status) ? WEXITSTATUS(ret->status) : -1;
}

START_TEST(reports)
{
	const struct sample *sample = &reported[_i];
	struct outcome outcome = make_call(false, call_reported, sample);
	char name[32];

	ck_assert_msg(outcome.error == 0 && outcome.ret == 7, "%s: %s, %ld", sample->what,
		      strerror(outcome.error), outcome.ret);
	seccomp_name((int)sample->nr, name, sizeof(name));
	ck_assert_str_eq(name, sample->what);
}
END_TEST

/* ---- what is to work */

static const char *const scripts[] = {
	"set -e; echo hello >a; cat a | tr a-z A-Z | grep -q HELLO; ln -s a b; test -L b;"
	"mkfifo f; (echo x >f &) ; read x <f; (sleep 0.01) & wait; chmod 755 a; touch -d yesterday a;"
	"mkdir d; mv a d; cp -a d e; tar cf t.tar d; rm -r d; tar xf t.tar; cmp d/a e/a; df . >/dev/null",
	"set -e; git init -q r; cd r; echo x >f; git add f;"
	"git -c user.name=n -c user.email=e commit -q -m m; git gc -q; git clone -q . ../c; cd ../c;"
	"test \"$(cat f)\" = x; git fsck --no-progress",
	"set -e; echo 'int main(void) { return 7; }' >p.c; cc -O2 -o p p.c; r=0; ./p || r=$?;"
	"test $r = 7",
	"python3 -c 'import subprocess,threading,tempfile,socket,select,mmap,asyncio,sys\n"
	"async def main():\n"
	"    server = await asyncio.start_server(lambda r, w: w.close(), \"127.0.0.1\", 0)\n"
	"    port = server.sockets[0].getsockname()[1]\n"
	"    reader, writer = await asyncio.open_connection(\"127.0.0.1\", port)\n"
	"    assert await reader.read() == b\"\"\n"
	"    writer.close()\n"
	"    process = await asyncio.create_subprocess_exec(\"true\")\n"
	"    assert await process.wait() == 0\n"
	"asyncio.run(main())\n"
	"import multiprocessing\n"
	"with multiprocessing.get_context(\"fork\").Pool(2) as pool:\n"
	"    assert pool.map(abs, [-1, 2]) == [1, 2]\n"
	"thread = threading.Thread(target=tempfile.TemporaryFile)\n"
	"thread.start()\n"
	"thread.join()\n"
	"'",
};

static void call_script(struct outcome *ret, const void *arg)
{
	execl("/bin/sh", "sh", "-c", (const char *)arg, (char *)NULL);
	ret->error = errno;
	_exit(126);
}

START_TEST(tools)
{
	char dir[] = "/tmp/agentd-seccomp-XXXXXX";
	struct outcome outcome;

	ck_assert_ptr_nonnull(mkdtemp(dir));
	ck_assert_int_eq(chdir(dir), 0);
	ck_assert_int_eq(setenv("HOME", dir, 1), 0);
	outcome = make_call(true, call_script, scripts[_i]);
	ck_assert_int_eq(chdir("/"), 0);
	t_remove_tree(dir);
	ck_assert_msg(outcome.status == 0, "status %#x of: %s", outcome.status, scripts[_i]);
}
END_TEST

START_TEST(names)
{
	char name[32], small[4];

	seccomp_name(SYS_openat2, name, sizeof(name));
	ck_assert_str_eq(name, "openat2");
	seccomp_name(SYS_openat2, small, sizeof(small));
	ck_assert_str_eq(small, "ope");
	seccomp_name(NR_FCHMODAT2, name, sizeof(name));
	ck_assert_str_eq(name, "fchmodat2");
	seccomp_name(1023, name, sizeof(name));
	ck_assert_str_eq(name, "");
	seccomp_name(-1, name, sizeof(name));
	ck_assert_str_eq(name, "");
}
END_TEST

int main(void)
{
	TCase *decisions = t_case("decisions", 60), *kernel = t_case("kernel", 30),
	      *developers = t_case("tools", 30);
	int r = seccomp_build(&filters);

	if (r < 0) {
		fprintf(stderr, "seccomp_build: %s\n", strerror(-r));
		return 1;
	}
#ifdef __x86_64__
	tcase_add_test(decisions, numbers);
	tcase_add_test(kernel, i386_really);
	tcase_add_test(kernel, x32_really);
#else
	t_skip("no reviewed table of this architecture's numbers");
#endif
	tcase_add_test(decisions, other_abis);
	tcase_add_test(decisions, beyond);
	tcase_add_test(decisions, sockets);
	tcase_add_test(decisions, terminals);
	tcase_add_test(decisions, namespaces);
	tcase_add_test(decisions, modes);
	tcase_add_test(decisions, personalities);
	tcase_add_test(decisions, keyrings);
	tcase_add_test(decisions, limits);
	tcase_add_test(decisions, names);
	tcase_add_loop_test(kernel, really, 0, T_COUNT(samples));
	tcase_add_loop_test(kernel, reports, 0, T_COUNT(reported));
	tcase_add_loop_test(developers, tools, 0, T_COUNT(scripts));
	r = t_main("seccomp", (TCase *const[]){ decisions, kernel, developers }, 3);
	seccomp_free(&filters);
	return r;
}
