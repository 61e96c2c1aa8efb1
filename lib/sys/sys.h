/* SPDX-License-Identifier: MIT */
/* Linux calls with the sharp edges taken off. No policy, no state, no allocation
 * but where said. Failure is a negative errno; errno itself is not preserved. */
#ifndef AD_SYS_H
#define AD_SYS_H

#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

/* ---- time */

uint64_t ad_sys_now_ns(void); /* CLOCK_MONOTONIC */

/* ---- descriptors */

/* Takes fd. If it is 0, 1 or 2 (the host closed its own) it is moved to 3 or
 * above, close-on-exec. The descriptor to use, or a negative errno with fd closed. */
int ad_sys_high_fd(int fd);
/* Connected SOCK_SEQPACKET pair, close-on-exec, blocking, both >= 3. */
int ad_sys_pair(int ret[2]);
/* Messages that sock receives carry the sender's ids; only those sent from now on. */
int ad_sys_pass_creds(int sock);
/* A descriptor for the calling process or another one, close-on-exec, >= 3. */
int ad_sys_pidfd(pid_t pid);
int ad_sys_pidfd_signal(int pidfd, int signo);
/* futex(2), between processes. Returns when somebody woke us, when *word is not expected, after
 * timeout_ns, or for nothing. */
void ad_sys_futex_wait(const _Atomic uint32_t *word, uint32_t expected, uint64_t timeout_ns);
void ad_sys_futex_wake(const _Atomic uint32_t *word);
int ad_sys_close_range(unsigned int first, unsigned int last);
int ad_sys_set_nonblock(int fd);
/* Memory file of exactly len bytes (a copy of data), sealed against every change. */
int ad_sys_memfd_sealed(const char *name, const void *data, size_t len);
/* Size of a memory file that can neither shrink nor be written to any more, or
 * -EPERM if it could: mapping it is safe from SIGBUS and from changes. */
ssize_t ad_sys_memfd_size(int fd);
/* Writing never sends the process the signal of who is gone (SIGPIPE) or of a file that is too
 * large for its RLIMIT_FSIZE (SIGXFSZ), whatever their dispositions: such calls go in between.
 * error: why the one that failed did, or 0. Signals that were pending stay so. */
struct ad_sys_signals {
	sigset_t old, pending;
};
void ad_sys_signals_hold(struct ad_sys_signals *held);
void ad_sys_signals_release(const struct ad_sys_signals *held, int error);
/* write(2) like that. */
ssize_t ad_sys_write_nosignal(int fd, const void *data, size_t len);
int ad_sys_truncate_nosignal(int fd, off_t len); /* ftruncate(2) */

/* ---- messages with descriptors */

enum { AD_SYS_FDS_MAX = 10 };

struct ad_sys_msg {
	void *data;
	size_t cap; /* in: room at data */
	size_t len;
	int fds[AD_SYS_FDS_MAX];
	size_t fd_count;
	bool fds_lost; /* descriptors were sent that could not be taken (EMFILE) */
	bool has_creds;
	pid_t pid; /* the sender's, real ids, when has_creds (SO_PASSCRED is on) */
	uid_t uid;
	gid_t gid;
};

/* One whole message; never raises SIGPIPE. flags: MSG_DONTWAIT or 0, then it waits for
 * room, of which memory is a part: for that a second at most. -EAGAIN: there is no room.
 * -ETOOMANYREFS: the user has as many descriptors on their way as it may have open. */
int ad_sys_send(int sock, const void *data, size_t len, const int *fds, size_t fd_count, int flags);
/* One message: 1, or 0 at end of file. Descriptors come close-on-exec and >= 3,
 * to be closed by the caller. -EMSGSIZE for a message that is larger than cap,
 * with its descriptors closed. */
int ad_sys_recv(int sock, struct ad_sys_msg *msg, int flags);
void ad_sys_msg_close(struct ad_sys_msg *msg);

/* ---- signals */

/* All signals, also those the C library keeps to itself. */
void ad_sys_block_signals(uint64_t *ret_old);
void ad_sys_restore_signals(const uint64_t *old);
/* Every disposition to the default. Async-signal-safe. */
void ad_sys_default_signals(void);

/* ---- processes */

/* When a process began, in clock ticks after boot; with its pid that names it. 0: the
 * calling process, whatever number it has in the /proc that is mounted. */
int ad_sys_start_time(pid_t pid, uint64_t *ret);

/* Run fn(arg) in a new process that shares our memory (CLONE_VM) until its execve or
 * _exit, on a stack of its own; its exit status is what fn returns. With cgroup_fd >= 0
 * it is born in that cgroup2 (-ENOSYS where this cannot be done). flags: further CLONE_*
 * flags; exit_signal 0 or SIGCHLD. Returns the pid. fn must be async-signal-safe. It has
 * our errno as well: one of us must stand still, we by CLONE_VFORK, or it until it is
 * told to go on. */
pid_t ad_sys_clone_vm(int (*fn)(void *arg), void *arg, void *stack, size_t stack_size,
		      uint64_t flags, int exit_signal, int cgroup_fd);

/* As execvp(3), with the PATH of the new environment; no shell for what is no
 * program. Returns the error. Async-signal-safe. */
int ad_sys_exec(const char *const *argv, const char *const *env);
/* Hard and soft limit, of which neither is raised. Async-signal-safe. -1: errno says why. */
int ad_sys_lower_limit(int resource, uint64_t value);

/* Functions that run in a process that shares memory must not touch the shadow
 * state of sanitizers. */
#define AD_SYS_NO_SANITIZE                                                                         \
	__attribute__((__no_sanitize__("address", "thread", "undefined"), __noinline__))

#endif
