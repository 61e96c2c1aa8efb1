/* SPDX-License-Identifier: MIT */
/* Stands in for the helper, and becomes it: with somebody at its side who has its system
 * calls fail as the file beside this program says. The process stays the same, and
 * who traces is no child of it. */
#include <sys/wait.h>
#include <unistd.h>

#include "trace.h"

static void trace(struct fault *fault, pid_t pid, int ready)
{
	if (setsid() < 0 || !trace_attach(pid, true))
		_exit(1);
	(void)!write(ready, "", 1);
	/* Nobody must wait for the end of the helper's socket because of us. */
	for (int fd = 0; fd < 16; fd++)
		close(fd);
	trace_run(fault, pid);
	_exit(0);
}

int main(int argc, char **argv)
{
	struct fault *fault = fault_inherit();
	pid_t self = getpid(), middle;
	int fds[2];
	char byte;

	(void)argc;
	if (!fault || pipe(fds) < 0)
		return 1;
	fault->pid = self;
	middle = fork();
	if (middle == 0) {
		if (fork() == 0)
			trace(fault, self, fds[1]);
		_exit(0);
	}
	close(fds[1]);
	if (waitpid(middle, NULL, 0) != middle || read(fds[0], &byte, 1) != 1)
		return 1;
	close(fds[0]);
	execv(fault->program, argv);
	return 1;
}
