/* SPDX-License-Identifier: MIT */
/* Under emulation the agent's first fork and its first control group in a clone take long,
 * for QEMU translates what the kernel runs for them: a seventh of the time from a clone's
 * start to the end of its first command. So the template makes them. */
#include "guest/guest.h"

#include <signal.h>
#include <sys/wait.h>

#define NONE                                                                                       \
	{                                                                                          \
		.group.dir = -1, .pipes = { { -1, -1, -1, -1, -1 }, { -1, -1, -1, -1, -1 } },      \
	}
_Static_assert(COMMAND_PIPES == 5, "none of them");

static const struct standby none = NONE;
static struct standby waiting = NONE;

static void end(struct standby *standby)
{
	if (standby->pid > 0) {
		kill(standby->pid, SIGKILL);
		waitpid(standby->pid, NULL, 0);
	}
	command_pipes_close(&standby->pipes);
	if (standby->group.dir >= 0)
		cgroup_remove(&standby->group);
	*standby = none;
}

void standby_drop(void)
{
	end(&waiting);
}

void standby_make(void)
{
	struct standby made = none;

	if (cgroup_new(&made.group) == 0 && command_pipes_open(&made.pipes, true) == 0)
		made.pid = command_start(made.group.dir, &made.pipes, NULL);
	if (made.pid > 0)
		waiting = made;
	else
		end(&made);
}

void standby_reap(pid_t pid)
{
	if (pid != waiting.pid)
		return;
	waiting.pid = 0;
	end(&waiting);
}

struct standby standby_take(const struct command *command)
{
	struct standby standby = waiting;
	siginfo_t info = { 0 };

	if (standby.pid == 0 || !command_fits(command))
		return none;
	waiting = none;
	/* Memory may have been short. */
	if (waitid(P_PID, (id_t)standby.pid, &info, WEXITED | WNOHANG | WNOWAIT) < 0 || info.si_pid)
		end(&standby);
	return standby;
}
