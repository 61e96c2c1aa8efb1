/* SPDX-License-Identifier: MIT */
/* Private to agentd-helper: the system call filters of the sandbox. What they let
 * through, and why not the rest, is in syscalls.h. */
#ifndef AD_HELPER_SECCOMP_H
#define AD_HELPER_SECCOMP_H

#include <stddef.h>

#include <linux/filter.h>

/* Outer: for the zygote and all its descendants; a list of what is allowed, with
 * what the set-up of a command needs. Inner: for a command, just before execve; takes
 * the set-up back. It ends in SECCOMP_RET_USER_NOTIF for a few calls. Both are for
 * seccomp(SECCOMP_SET_MODE_FILTER), outer first: of two errnos the inner one wins. */
struct seccomp_filters {
	struct sock_fprog outer, inner;
};

/* Build both. 0 or a negative errno. */
int seccomp_build(struct seccomp_filters *ret);
void seccomp_free(struct seccomp_filters *filters);
/* Name of a system call of this machine's ABI, or "". */
void seccomp_name(int nr, char *buf, size_t size);
/* What the kernel can do with filters: libseccomp's API level, see seccomp_api_get(3). */
unsigned int seccomp_level(void);

#endif
