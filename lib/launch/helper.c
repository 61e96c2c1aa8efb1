/* SPDX-License-Identifier: MIT */
/* Starting the helper. An intermediate process that never execs clones it and
 * exits, so that it is nobody's child: the host's wait(2) never sees either, whatever
 * it does about SIGCHLD. Both share our memory while we wait, which is quick however
 * large the host is, and lets errors come back; so they call nothing but system
 * calls, and those that the thread sanitizer would note (dup2) not by their names. */
#include "launch/private.h"

#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "sys/sys.h"

enum {
	STACK_SIZE = 64 * 1024,
	HELPER_SOCKET = 3, /* what the helper expects there */
	HELPER_HOST_PIDFD = 4
};

struct start {
	const char *path;
	int sock, pidfd;
	char *stack;
	pid_t helper;
	int error;
};

AD_SYS_NO_SANITIZE static int start_helper(void *arg)
{
	static char *const argv[] = { (char *)(uintptr_t) "agentd-helper", NULL };
	static char *const env[] = { NULL };
	struct start *start = arg;
	/* Out of the way first: either may have the number of the other. */
	int sock = fcntl(start->sock, F_DUPFD, HELPER_HOST_PIDFD + 1);
	int pidfd = start->pidfd < 0 ? -1 : fcntl(start->pidfd, F_DUPFD, HELPER_HOST_PIDFD + 1);
	unsigned int first = pidfd < 0 ? HELPER_HOST_PIDFD : HELPER_HOST_PIDFD + 1;

	ad_sys_default_signals();
	if (sock < 0 || syscall(SYS_dup3, sock, HELPER_SOCKET, 0) < 0 ||
	    (pidfd >= 0 && syscall(SYS_dup3, pidfd, HELPER_HOST_PIDFD, 0) < 0) ||
	    ad_sys_close_range(first, ~0u) < 0 || setsid() < 0) {
		start->error = errno;
		return 1;
	}
	syscall(SYS_execve, start->path, argv, env);
	start->error = errno;
	return 1;
}

AD_SYS_NO_SANITIZE static int start_intermediate(void *arg)
{
	struct start *start = arg;
	pid_t pid = ad_sys_clone_vm(start_helper, start, start->stack + STACK_SIZE, STACK_SIZE,
				    CLONE_VFORK, SIGCHLD, -1);

	if (pid < 0)
		start->error = -pid;
	else if (start->error == 0)
		start->helper = pid;
	return 0;
}

static int start_failed(const struct start *start, agentd_error **reterr)
{
	const char *reason = strerrordesc_np(start->error);

	if (start->error != ENOENT && start->error != ENOTDIR)
		return ad_fail_errno(reterr, start->error, "the helper \"%s\" could not be started",
				     start->path);
	return ad_fail(reterr, AGENTD_ERR_NOTFOUND, NULL,
		       "the helper \"%s\" could not be started: %s (os error %d); install agentd "
		       "or set agentd_runner_opts.helper_path",
		       start->path, reason ? reason : "", start->error);
}

int ad_launch_helper(const char *path, int sock, pid_t *ret_pid, agentd_error **reterr)
{
	struct start start = { .path = path, .sock = sock };
	pid_t intermediate;
	uint64_t old;

	start.stack = mmap(NULL, (size_t)STACK_SIZE * 2, PROT_READ | PROT_WRITE,
			   MAP_PRIVATE | MAP_ANONYMOUS | MAP_STACK, -1, 0);
	if (start.stack == MAP_FAILED)
		return ad_fail_errno(reterr, errno, "no stack to start the helper on");
	/* Of us, taken while we are sure to be alive: no number that could be another's.
	 * Kernels without it leave the helper its socket to see us go by. */
	start.pidfd = ad_sys_pidfd(getpid());
	/* No handler of the host may run in processes that share its memory. */
	ad_sys_block_signals(&old);
	intermediate = ad_sys_clone_vm(start_intermediate, &start, start.stack, STACK_SIZE,
				       CLONE_VFORK, 0, -1);
	ad_sys_restore_signals(&old);
	if (intermediate < 0) {
		start.error = -intermediate;
	} else {
		/* Not the library function: that is a cancellation point. ECHILD: a host
		 * that waits for __WALL was faster. */
		while (syscall(SYS_wait4, intermediate, NULL, __WALL, NULL) < 0 && errno == EINTR)
			;
	}
	if (start.pidfd >= 0)
		close(start.pidfd);
	munmap(start.stack, (size_t)STACK_SIZE * 2);
	if (start.error)
		return start_failed(&start, reterr);
	*ret_pid = start.helper;
	return 0;
}

/* ---- finding it */

static char *join_if_executable(const char *dir, const char *name)
{
	ad_autobuf struct ad_buf path = { 0 };

	if (!ad_buf_printf(&path, "%s/%s", dir, name) ||
	    faccessat(AT_FDCWD, path.data, X_OK, AT_EACCESS) < 0)
		return NULL;
	return ad_buf_steal(&path);
}

/* Installed they are in one directory, built in one of each their own. */
char *ad_launch_program_path(const char *helper_path, const char *name)
{
	ad_autofree char *helper = helper_path ? strdup(helper_path) : ad_launch_default_path();
	ad_autobuf struct ad_buf beside = { 0 }, built = { 0 };
	char *slash = helper ? strrchr(helper, '/') : NULL, *found;

	if (slash)
		*slash = '\0';
	ad_buf_printf(&built, "../%s/agentd-%s", name, name);
	if (!helper || built.failed)
		return NULL;
	found = join_if_executable(slash ? helper : ".", built.data);
	if (found) {
		char *plain = realpath(found, NULL);

		free(found);
		return plain;
	}
	ad_buf_printf(&beside, "%s/agentd-%s", slash ? helper : ".", name);
	return ad_buf_steal(&beside);
}

char *ad_launch_default_path(void)
{
	ad_autofree char *library = NULL, *libdir = realpath(AGENTD_LIBDIR, NULL);
	char *slash, *found;
	Dl_info info;

	if (dladdr((void *)(uintptr_t)&ad_launch_default_path, &info) != 0 && info.dli_fname)
		library = realpath(info.dli_fname, NULL);
	slash = library ? strrchr(library, '/') : NULL;
	if (!slash)
		return strdup(AGENTD_HELPER_PATH);
	*slash = '\0';
	if (libdir && strcmp(library, libdir) == 0)
		return strdup(AGENTD_HELPER_PATH);
	found = join_if_executable(library, "helper/agentd-helper");
	if (!found)
		found = join_if_executable(library, "agentd-helper");
	return found ? found : strdup(AGENTD_HELPER_PATH);
}
