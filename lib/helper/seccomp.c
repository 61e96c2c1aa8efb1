/* SPDX-License-Identifier: MIT */
/* System call filters. */
#include "helper/seccomp.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/personality.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <linux/filter.h>
#include <linux/keyctl.h>
#include <linux/netlink.h>
#include <linux/seccomp.h>
#include <netinet/in.h>
#include <seccomp.h>

#include "util/util.h"

/* Those that libseccomp or the kernel's headers may be too old for: libseccomp would
 * not compile, or take a call to be one of other machines and leave it out. From 424 on
 * a call has the same number on every architecture. */
#undef __SNR_process_madvise
#define __SNR_process_madvise 440
#undef __SNR_epoll_pwait2
#define __SNR_epoll_pwait2 441
#undef __SNR_mount_setattr
#define __SNR_mount_setattr 442
#undef __SNR_quotactl_fd
#define __SNR_quotactl_fd 443
#undef __SNR_landlock_create_ruleset
#define __SNR_landlock_create_ruleset 444
#undef __SNR_landlock_add_rule
#define __SNR_landlock_add_rule 445
#undef __SNR_landlock_restrict_self
#define __SNR_landlock_restrict_self 446
#undef __SNR_memfd_secret
#define __SNR_memfd_secret 447
#undef __SNR_process_mrelease
#define __SNR_process_mrelease 448
#undef __SNR_futex_waitv
#define __SNR_futex_waitv 449
#undef __SNR_set_mempolicy_home_node
#define __SNR_set_mempolicy_home_node 450
#undef __SNR_cachestat
#define __SNR_cachestat 451
#undef __SNR_fchmodat2
#define __SNR_fchmodat2 452
#undef __SNR_map_shadow_stack
#define __SNR_map_shadow_stack 453
#undef __SNR_futex_wake
#define __SNR_futex_wake 454
#undef __SNR_futex_wait
#define __SNR_futex_wait 455
#undef __SNR_futex_requeue
#define __SNR_futex_requeue 456
#undef __SNR_statmount
#define __SNR_statmount 457
#undef __SNR_listmount
#define __SNR_listmount 458
#undef __SNR_lsm_get_self_attr
#define __SNR_lsm_get_self_attr 459
#undef __SNR_lsm_set_self_attr
#define __SNR_lsm_set_self_attr 460
#undef __SNR_lsm_list_modules
#define __SNR_lsm_list_modules 461
#undef __SNR_mseal
#define __SNR_mseal 462
#undef __SNR_setxattrat
#define __SNR_setxattrat 463
#undef __SNR_getxattrat
#define __SNR_getxattrat 464
#undef __SNR_listxattrat
#define __SNR_listxattrat 465
#undef __SNR_removexattrat
#define __SNR_removexattrat 466
#undef __SNR_open_tree_attr
#define __SNR_open_tree_attr 467

enum treatment { ALLOW, CHECK, DENY, ABSENT, SETUP, OPAQUE, REPORT };

/* A name libseccomp does not know would not compile; one that this architecture does
 * not have is negative. */
static const struct {
	const char *name;
	int nr;
	enum treatment treatment;
} calls[] = {
#define CALL(call, how) { #call, SCMP_SYS(call), how },
#define ALLOW(call) CALL(call, ALLOW)
#define CHECK(call, why) CALL(call, CHECK)
#define DENY(call, why) CALL(call, DENY)
#define ABSENT(call, why) CALL(call, ABSENT)
#define SETUP(call, why) CALL(call, SETUP)
#define OPAQUE(call, why) CALL(call, OPAQUE)
#define REPORT(call, why) CALL(call, REPORT)
#include "helper/syscalls.h"
#undef CALL
#undef ALLOW
#undef CHECK
#undef DENY
#undef ABSENT
#undef SETUP
#undef OPAQUE
#undef REPORT
};

/* Filters see registers; for an int the kernel looks at the lower half only, and what
 * is in the upper one must not decide. */
#define IS(arg, value) SCMP_CMP64(arg, SCMP_CMP_MASKED_EQ, UINT32_MAX, (uint32_t)(value))
#define BITS(arg, mask, value)                                                                     \
	SCMP_CMP64(arg, SCMP_CMP_MASKED_EQ, (uint32_t)(mask), (uint32_t)(value))

/* Any but 0, of all 64 bits; 1 is one, for expect(). */
#define NOT_NULL(arg) SCMP_CMP64(arg, SCMP_CMP_NE, 0, 1)

struct build {
	scmp_filter_ctx ctx;
	const struct sock_fprog *made; /* then the rules are not added, but looked for in it */
	int error;                     /* the first one */
};

/* What the kernel would answer; UINT32_MAX, which is no answer, if the program is none
 * that libseccomp writes. */
static uint32_t evaluate(const struct sock_fprog *program, const struct seccomp_data *data)
{
	uint32_t a = 0;

	for (size_t pc = 0; pc < program->len; pc++) {
		const struct sock_filter *at = &program->filter[pc];
		bool jump;

		switch (at->code) {
		case BPF_LD | BPF_W | BPF_ABS:
			if (at->k > sizeof(*data) - sizeof(a))
				return UINT32_MAX;
			memcpy(&a, (const uint8_t *)data + at->k, sizeof(a));
			continue;
		case BPF_ALU | BPF_AND | BPF_K:
			a &= at->k;
			continue;
		case BPF_JMP | BPF_JA:
			pc += at->k;
			continue;
		case BPF_JMP | BPF_JEQ | BPF_K:
			jump = a == at->k;
			break;
		case BPF_JMP | BPF_JGT | BPF_K:
			jump = a > at->k;
			break;
		case BPF_JMP | BPF_JGE | BPF_K:
			jump = a >= at->k;
			break;
		case BPF_RET | BPF_K:
			return at->k;
		default:
			return UINT32_MAX;
		}
		pc += jump ? at->jt : at->jf;
	}
	return UINT32_MAX;
}

/* libseccomp's actions are the kernel's. */
static void expect(struct build *build, uint32_t action, int nr, unsigned int count,
		   const struct scmp_arg_cmp *args)
{
	struct seccomp_data data = { .nr = nr, .arch = seccomp_arch_native() };

	for (unsigned int i = 0; i < count; i++)
		data.args[args[i].arg] = args[i].datum_b;
	if (evaluate(build->made, &data) != action)
		build->error = -ENOMEM;
}

static void rule(struct build *build, uint32_t action, int nr, unsigned int count,
		 const struct scmp_arg_cmp *args)
{
	if (nr < 0 || build->error)
		return;
	if (build->made) {
		expect(build, action, nr, count, args);
		return;
	}
	build->error = seccomp_rule_add_array(build->ctx, action, nr, count, args);
}

#define RULE(build, action, nr, ...)                                                               \
	rule(build, action, nr,                                                                    \
	     sizeof((struct scmp_arg_cmp[]){ __VA_ARGS__ }) / sizeof(struct scmp_arg_cmp),         \
	     (const struct scmp_arg_cmp[]){ __VA_ARGS__ })

#define FAIL(error) SCMP_ACT_ERRNO((uint32_t)(error))

/*
 * Where a call is allowed for some arguments only, what fits no rule falls to the
 * default, ENOSYS; rules with another errno are there for what programs do try. No two
 * rules that differ in their action may fit the same call: libseccomp does not say
 * which would win.
 */

static const mode_t setid_bits[] = { S_ISUID, S_ISGID };

static void rules_setid(struct build *build, int nr, unsigned int mode)
{
	RULE(build, SCMP_ACT_ALLOW, nr, BITS(mode, S_ISUID | S_ISGID, 0));
	for (size_t i = 0; i < AD_COUNT(setid_bits); i++)
		RULE(build, FAIL(EPERM), nr, BITS(mode, setid_bits[i], setid_bits[i]));
}

/* Without O_CREAT the mode is not looked at, and may be anything. */
static void rules_open(struct build *build, int nr, unsigned int flags, unsigned int mode)
{
	static const int creating[] = { O_CREAT, O_TMPFILE & ~O_DIRECTORY };

	RULE(build, SCMP_ACT_ALLOW, nr, BITS(flags, creating[0] | creating[1], 0));
	RULE(build, SCMP_ACT_ALLOW, nr, BITS(mode, S_ISUID | S_ISGID, 0));
	for (size_t i = 0; i < AD_COUNT(creating); i++)
		for (size_t j = 0; j < AD_COUNT(setid_bits); j++)
			RULE(build, FAIL(EPERM), nr, BITS(flags, creating[i], creating[i]),
			     BITS(mode, setid_bits[j], setid_bits[j]));
}

static void rules_mknod(struct build *build, int nr, unsigned int mode)
{
	static const mode_t allowed[] = { 0, S_IFREG, S_IFIFO, S_IFSOCK };
	static const mode_t devices[] = { S_IFCHR, S_IFBLK };

	for (size_t i = 0; i < AD_COUNT(allowed); i++)
		RULE(build, SCMP_ACT_ALLOW, nr, BITS(mode, S_IFMT | S_ISUID | S_ISGID, allowed[i]));
	for (size_t i = 0; i < AD_COUNT(devices); i++)
		RULE(build, FAIL(EPERM), nr, BITS(mode, S_IFMT, devices[i]));
	for (size_t i = 0; i < AD_COUNT(setid_bits); i++)
		RULE(build, FAIL(EPERM), nr, BITS(mode, setid_bits[i], setid_bits[i]));
}

static void rules_socket(struct build *build)
{
	/* Beyond these no kernel has families, and no program tries. */
	enum { FAMILIES = 32, MORE_FAMILIES = 32, NETLINKS = 32, TYPE = 0xf, MPTCP = 262 };
	static const int inet[] = { AF_INET, AF_INET6 };
	static const int types[] = { SOCK_STREAM, SOCK_DGRAM };
	/* Ping sockets, whom the host lets have them; no SCTP, DCCP, L2TP, ... */
	static const int protocols[] = { 0, IPPROTO_TCP, IPPROTO_UDP, IPPROTO_ICMP,
					 IPPROTO_ICMPV6 };
	/* 0, and what has a bit that neither stream nor datagram has, or those of both. */
	static const struct {
		int mask, value;
	} other_types[] = { { TYPE, 0 }, { 3, 3 }, { 4, 4 }, { 8, 8 } };
	const int nr = SCMP_SYS(socket), pair = SCMP_SYS(socketpair);

	RULE(build, SCMP_ACT_ALLOW, nr, IS(0, AF_UNIX));
	RULE(build, SCMP_ACT_ALLOW, pair, IS(0, AF_UNIX));
	for (int family = 0; family < FAMILIES; family++) {
		if (family != AF_UNIX)
			RULE(build, FAIL(EAFNOSUPPORT), pair, IS(0, family));
		if (family != AF_UNIX && family != AF_INET && family != AF_INET6 &&
		    family != AF_NETLINK)
			RULE(build, FAIL(EAFNOSUPPORT), nr, IS(0, family));
	}
	RULE(build, FAIL(EAFNOSUPPORT), nr, BITS(0, MORE_FAMILIES, MORE_FAMILIES));
	RULE(build, FAIL(EAFNOSUPPORT), pair, BITS(0, MORE_FAMILIES, MORE_FAMILIES));

	RULE(build, SCMP_ACT_ALLOW, nr, IS(0, AF_NETLINK), IS(2, NETLINK_ROUTE));
	for (int bit = 1; bit < NETLINKS; bit <<= 1)
		RULE(build, FAIL(EPROTONOSUPPORT), nr, IS(0, AF_NETLINK), BITS(2, bit, bit));

	for (size_t i = 0; i < AD_COUNT(inet); i++) {
		for (size_t j = 0; j < AD_COUNT(other_types); j++)
			RULE(build, FAIL(EPERM), nr, IS(0, inet[i]),
			     BITS(1, other_types[j].mask, other_types[j].value));
		for (size_t j = 0; j < AD_COUNT(types); j++) {
			for (size_t k = 0; k < AD_COUNT(protocols); k++)
				RULE(build, SCMP_ACT_ALLOW, nr, IS(0, inet[i]),
				     BITS(1, TYPE, types[j]), IS(2, protocols[k]));
			/* Landlock's rules for TCP do not cover it. Go tries it first. */
			RULE(build, FAIL(EPROTONOSUPPORT), nr, IS(0, inet[i]),
			     BITS(1, TYPE, types[j]), IS(2, MPTCP));
		}
	}
}

/* Those that make old code run or addresses predictable, for the command itself. */
static void rules_personality(struct build *build)
{
	static const uint32_t allowed[] = { PER_LINUX,         PER_LINUX32,
					    UNAME26,           UNAME26 | PER_LINUX32,
					    ADDR_NO_RANDOMIZE, UINT32_MAX /* asks */ };

	for (size_t i = 0; i < AD_COUNT(allowed); i++)
		RULE(build, SCMP_ACT_ALLOW, SCMP_SYS(personality), IS(0, allowed[i]));
}

static void build_outer(struct build *build)
{
	for (size_t i = 0; i < AD_COUNT(calls); i++) {
		switch (calls[i].treatment) {
		case CHECK:
		case ABSENT: /* the default */
			break;
		case DENY:
			rule(build, FAIL(EPERM), calls[i].nr, 0, NULL);
			break;
		case ALLOW:
		case SETUP:
		case OPAQUE:
		case REPORT:
			rule(build, SCMP_ACT_ALLOW, calls[i].nr, 0, NULL);
			break;
		}
	}
	rules_setid(build, SCMP_SYS(chmod), 1);
	rules_setid(build, SCMP_SYS(creat), 1);
	rules_setid(build, SCMP_SYS(fchmod), 1);
	rules_setid(build, SCMP_SYS(fchmodat), 2);
	rules_setid(build, SCMP_SYS(fchmodat2), 2);
	rules_open(build, SCMP_SYS(open), 1, 2);
	rules_open(build, SCMP_SYS(openat), 2, 3);
	rules_mknod(build, SCMP_SYS(mknod), 1);
	rules_mknod(build, SCMP_SYS(mknodat), 2);
	rules_socket(build);
	rules_personality(build);
	RULE(build, SCMP_ACT_ALLOW, SCMP_SYS(keyctl), IS(0, KEYCTL_JOIN_SESSION_KEYRING));
	/* Here single arguments are refused: by the inner one, which allows the rest. */
	rule(build, SCMP_ACT_ALLOW, SCMP_SYS(ioctl), 0, NULL);
	rule(build, SCMP_ACT_ALLOW, SCMP_SYS(clone), 0, NULL);
}

static void build_inner(struct build *build)
{
	/* Typing, copying and pasting on the terminal of whoever is in front of it;
	 * line disciplines, which are modules that load on demand. */
	static const uint32_t requests[] = { TIOCSTI, TIOCLINUX, TIOCSETD };
	/* Not CLONE_NEWTIME: in clone(2) that bit is of the exit signal. */
	static const uint32_t namespaces[] = { CLONE_NEWNS,  CLONE_NEWCGROUP, CLONE_NEWUTS,
					       CLONE_NEWIPC, CLONE_NEWUSER,   CLONE_NEWPID,
					       CLONE_NEWNET };
	for (size_t i = 0; i < AD_COUNT(calls); i++) {
		switch (calls[i].treatment) {
		case ALLOW:
		case CHECK:
		case DENY:
		case ABSENT:
			break;
		case SETUP:
			rule(build, FAIL(EPERM), calls[i].nr, 0, NULL);
			break;
		case OPAQUE:
			rule(build, FAIL(ENOSYS), calls[i].nr, 0, NULL);
			break;
		case REPORT:
			rule(build, SCMP_ACT_NOTIFY, calls[i].nr, 0, NULL);
			break;
		}
	}
	rule(build, FAIL(EPERM), SCMP_SYS(keyctl), 0, NULL);
	/* Who looks after the command is of the same user, and so are a session's other commands.
	 * Their priority is kept by capabilities, their limits are not: those of another process,
	 * of any pid but 0, are only looked at. The upper half is compared as well: who leaves
	 * something in it is refused, and a rule for each bit would take longer than the rest. */
	RULE(build, FAIL(EPERM), SCMP_SYS(prlimit64), NOT_NULL(0), NOT_NULL(2));
	for (size_t i = 0; i < AD_COUNT(requests); i++)
		RULE(build, FAIL(EPERM), SCMP_SYS(ioctl), IS(1, requests[i]));
	for (size_t i = 0; i < AD_COUNT(namespaces); i++)
		RULE(build, FAIL(EPERM), SCMP_SYS(clone), BITS(0, namespaces[i], namespaces[i]));
}

/* libseccomp 2.5 writes programs to files only. */
static int export_program(scmp_filter_ctx ctx, struct sock_fprog *ret)
{
	int fd = memfd_create("filter", MFD_CLOEXEC);
	struct sock_filter *filter = NULL;
	off_t size;
	int r;

	if (fd < 0)
		return -errno;
	r = seccomp_export_bpf(ctx, fd);
	if (r < 0)
		goto out;
	r = -EIO;
	size = lseek(fd, 0, SEEK_END);
	if (size <= 0 || (size_t)size > BPF_MAXINSNS * sizeof(*filter))
		goto out;
	filter = malloc((size_t)size);
	if (!filter) {
		r = -ENOMEM;
		goto out;
	}
	if (pread(fd, filter, (size_t)size, 0) != size) {
		free(filter);
		goto out;
	}
	ret->len = (unsigned short)((size_t)size / sizeof(*filter));
	ret->filter = filter;
	r = 0;
out:
	close(fd);
	return r;
}

/* libseccomp 2.5 passes over allocations that fail, and writes a program that lets
 * through what it should not, or nothing. */
static int check_program(uint32_t otherwise, void (*rules)(struct build *build),
			 const struct sock_fprog *program)
{
	enum { NO_CALL = 0x0fffffff };
	struct build build = { .made = program };

	rules(&build);
	if (!build.error)
		expect(&build, otherwise, NO_CALL, 0, NULL);
	return build.error;
}

static int build_program(uint32_t otherwise, void (*rules)(struct build *build),
			 struct sock_fprog *ret)
{
	struct build build = { .ctx = seccomp_init(otherwise) };

	if (!build.ctx)
		return -ENOSYS;
	build.error = seccomp_attr_set(build.ctx, SCMP_FLTATR_ACT_BADARCH, SCMP_ACT_KILL_PROCESS);
	/* A tree, not a chain: the kernel walks the program once for every call there
	 * is when it is installed, and later for those that depend on arguments. */
	if (!build.error)
		build.error = seccomp_attr_set(build.ctx, SCMP_FLTATR_CTL_OPTIMIZE, 2);
	rules(&build);
	if (!build.error)
		build.error = export_program(build.ctx, ret);
	seccomp_release(build.ctx);
	if (!build.error)
		build.error = check_program(otherwise, rules, ret);
	return build.error;
}

int seccomp_build(struct seccomp_filters *ret)
{
	int r;

	*ret = (struct seccomp_filters){ 0 };
	r = build_program(FAIL(ENOSYS), build_outer, &ret->outer);
	if (r == 0)
		r = build_program(SCMP_ACT_ALLOW, build_inner, &ret->inner);
	if (r < 0)
		seccomp_free(ret);
	return r;
}

void seccomp_free(struct seccomp_filters *filters)
{
	free(filters->outer.filter);
	free(filters->inner.filter);
	*filters = (struct seccomp_filters){ 0 };
}

void seccomp_name(int nr, char *buf, size_t size)
{
	char *known = NULL;
	const char *name = NULL;

	for (size_t i = 0; i < AD_COUNT(calls) && nr >= 0; i++)
		if (calls[i].nr == nr)
			name = calls[i].name;
	if (!name && nr >= 0)
		name = known = seccomp_syscall_resolve_num_arch(SCMP_ARCH_NATIVE, nr);
	snprintf(buf, size, "%s", name ? name : "");
	free(known);
}

unsigned int seccomp_level(void)
{
	return seccomp_api_get();
}
