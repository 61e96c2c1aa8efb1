/* SPDX-License-Identifier: MIT */
/* User namespaces for mapped mounts, and the process that holds one until it is open: it
 * must not outlive whom it is for. */
#include "harness.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "helper/sandbox.h"

enum { NO_NAMESPACE = 3, KILLED_THERE = 4, LIVED_ON = 5 };

static bool dies_instead;

int __real_kill(pid_t pid, int signo);
int __wrap_kill(pid_t pid, int signo);

/* A zygote that is killed where it would have killed. */
int __wrap_kill(pid_t pid, int signo)
{
	if (dies_instead)
		_exit(KILLED_THERE);
	return __real_kill(pid, signo);
}

static _Noreturn void make_one(bool die)
{
	int fd;

	dies_instead = die;
	fd = userns_new(&(struct id_map){ .uid_inside = 1000,
					  .uid_outside = geteuid(),
					  .gid_inside = 1000,
					  .gid_outside = getegid() });
	_exit(fd < 0 ? NO_NAMESPACE : LIVED_ON);
}

/* The exit code of one in a process of its own. */
static int code_of(bool die)
{
	pid_t pid = fork();
	int status;

	if (pid == 0)
		make_one(die);
	ck_assert_int_eq(waitpid(pid, &status, 0), pid);
	ck_assert(WIFEXITED(status));
	return WEXITSTATUS(status);
}

static bool no_child_within(uint64_t ms)
{
	uint64_t until = t_now() + T_MS(ms);
	pid_t pid;

	do {
		pid = waitpid(-1, NULL, WNOHANG);
		if (pid == 0)
			t_sleep_ms(5);
	} while (pid >= 0 && t_now() < until);
	return pid < 0 && errno == ECHILD;
}

START_TEST(made)
{
	int code = code_of(false);

	if (code == NO_NAMESPACE) {
		t_skip("no user namespaces");
		return;
	}
	ck_assert_int_eq(code, LIVED_ON);
	ck_assert(no_child_within(t_slack(5000)));
}
END_TEST

START_TEST(maker_is_killed)
{
	/* What it leaves comes to us. */
	ck_assert_int_eq(prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0), 0);
	/* Also where there are no user namespaces its child is to be killed. */
	ck_assert_int_eq(code_of(true), KILLED_THERE);
	ck_assert_msg(no_child_within(t_slack(5000)), "who held the namespace is alive");
}
END_TEST

int main(void)
{
	TCase *tcase = t_case("userns", 30);
	TCase *const cases[] = { tcase };

	tcase_add_test(tcase, made);
	tcase_add_test(tcase, maker_is_killed);
	return t_main("userns", cases, T_COUNT(cases));
}
