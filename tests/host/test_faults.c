/* SPDX-License-Identifier: MIT */
/* Somebody of the three dies: helper, supervisor, host program. The whole tree goes
 * with it, the result says so, and the next runner works. */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "harness.h"

static const char tree[] =
	"trap '' TERM HUP; (setsid sh -c 'trap \"\" TERM; sleep 60; sleep 60' &); "
	"sleep 60 & echo ready; sleep 60";

static void wait_ready(struct t_run *run)
{
	uint64_t deadline = t_now() + T_MS(t_slack(10000));

	while (run->total[AGENTD_STDOUT] < 6 && t_now() < deadline)
		t_world_loop(run->world, 10, NULL);
	ck_assert_uint_eq(run->total[AGENTD_STDOUT], 6);
	t_world_loop(run->world, 50, NULL); /* for the one in its own session */
}

static void expect_works(void)
{
	struct t_world *world = t_world_new(NULL);
	struct t_run run;

	t_run(&run, world, "echo works", 0);
	t_expect_out(&run, AGENTD_STDOUT, "works\n");
	t_run_free(&run);
	t_world_free(world);
}

static void expect_lost(struct t_run *run)
{
	const agentd_error *err = agentd_result_error(run->result);

	t_expect_status(run, AGENTD_STATUS_ERROR);
	t_expect_cause(run, AGENTD_CAUSE_BACKEND_LOST);
	t_expect_exit(run, -1);
	ck_assert_ptr_nonnull(err);
	ck_assert_int_eq(agentd_error_code(err), AGENTD_ERR_BACKEND);
	ck_assert_str_ne(agentd_error_message(err), "");
	/* what it had said is not lost with it */
	t_expect_out(run, AGENTD_STDOUT, "ready\n");
}

/* F21 */
START_TEST(helper_killed)
{
	struct t_world *world = t_world_new(NULL);
	struct t_run runs[3], next;
	uint64_t at;

	for (size_t i = 0; i < T_COUNT(runs); i++) {
		t_run_init(&runs[i], world);
		ck_assert_int_eq(t_run_start(&runs[i], tree, 0), 0);
	}
	for (size_t i = 0; i < T_COUNT(runs); i++)
		wait_ready(&runs[i]);
	at = t_now();
	ck_assert_int_eq(kill(t_world_helper(world), SIGKILL), 0);
	for (size_t i = 0; i < T_COUNT(runs); i++) {
		t_run_wait(&runs[i]);
		expect_lost(&runs[i]);
		ck_assert_uint_lt(runs[i].end_ns - at, T_MS(t_slack(2000)));
		t_run_free(&runs[i]);
	}
	t_world_expect_dead(world, 1000);
	/* this runner is of no more use, and says so in a result or at once */
	t_run_init(&next, world);
	if (t_run_start(&next, "echo never", 0) == 0) {
		t_run_wait(&next);
		ck_assert_int_ne(agentd_result_status(next.result), AGENTD_STATUS_OK);
		ck_assert_ptr_nonnull(agentd_result_error(next.result));
		ck_assert_int_eq(next.started, 0);
		t_run_free(&next);
	}
	expect_works();
	/* its control groups were left by the dead one: the next removed them */
	t_world_free(world);
}
END_TEST

START_TEST(helper_killed_at_once)
{
	for (int i = 0; i < 10; i++) {
		struct t_world *world = t_world_new(NULL);
		struct t_run run;

		t_run_init(&run, world);
		ck_assert_int_eq(t_run_start(&run, tree, 0), 0);
		t_world_loop(world, (uint64_t)i, NULL);
		ck_assert_int_eq(kill(t_world_helper(world), SIGKILL), 0);
		t_run_wait(&run);
		t_expect_status(&run, AGENTD_STATUS_ERROR);
		ck_assert_ptr_nonnull(agentd_result_error(run.result));
		t_world_expect_dead(world, 1000);
		t_run_free(&run);
		if (i == 9)
			expect_works();
		t_world_shutdown(world);
		agentd_context_unref(world->ctx);
		world->ctx = NULL;
		world->helper_count = 0;
		t_world_free(world);
	}
}
END_TEST

static pid_t supervisor_of(struct t_world *world)
{
	pid_t pids[8];
	size_t n = t_world_helper_pids(world, pids, T_COUNT(pids));

	for (size_t i = 0; i < n && i < T_COUNT(pids); i++) {
		if (pids[i] != t_world_helper(world))
			return pids[i];
	}
	ck_abort_msg("no supervisor");
	return 0;
}

START_TEST(supervisor_killed)
{
	struct t_world *world = t_world_new(NULL);
	struct t_run run, other;
	uint64_t at;

	t_run_init(&run, world);
	ck_assert_int_eq(t_run_start(&run, tree, 0), 0);
	wait_ready(&run);
	at = t_now();
	ck_assert_int_eq(kill(supervisor_of(world), SIGKILL), 0);
	t_run_wait(&run);
	expect_lost(&run);
	ck_assert_uint_lt(run.end_ns - at, T_MS(t_slack(1500)));
	t_world_expect_commands_dead(world, 200);
	/* the others do not suffer, nor those that come */
	t_run(&other, world, "echo other", 0);
	t_expect_out(&other, AGENTD_STDOUT, "other\n");
	t_run_free(&other);
	t_run_free(&run);
	t_world_free(world);
}
END_TEST

static void expect_helpers(struct t_world *world, size_t want, pid_t pids[static 3])
{
	uint64_t deadline = t_now() + T_MS(t_slack(5000));
	size_t count;

	while ((count = t_world_helper_pids(world, pids, 3)) != want && t_now() < deadline)
		t_world_loop(world, 10, NULL);
	ck_assert_uint_eq(count, want);
}

/* Those that are there before the next command, a supervisor and a process, are killed: it
 * begins without them. */
START_TEST(waiting_ones_killed)
{
	struct t_world *world = t_world_new(NULL);
	pid_t pids[3];

	for (int kill_supervisor = 0; kill_supervisor < 2; kill_supervisor++) {
		struct t_run run;

		t_run(&run, world, "echo first", 0);
		t_expect_out(&run, AGENTD_STDOUT, "first\n");
		t_run_free(&run);
		/* The last one's may still be there instead of one that is being made. */
		t_world_loop(world, t_slack(200), NULL);
		expect_helpers(world, 3, pids);
		/* The supervisor is older than its process. */
		ck_assert_int_eq(kill(pids[kill_supervisor ? 1 : 2], SIGKILL), 0);
		expect_helpers(world, kill_supervisor ? 1 : 2, pids);
		t_run(&run, world, "cat; echo second; echo too >&2", 0);
		t_expect_out(&run, AGENTD_STDOUT, "second\n");
		t_expect_out(&run, AGENTD_STDERR, "too\n");
		t_run_free(&run);
	}
	t_world_free(world);
}
END_TEST

/* A supervisor that is stopped does not keep its command alive. */
START_TEST(supervisor_stopped)
{
	struct agentd_exec_opts opts = { .size = sizeof(opts), .grace_ms = 100 };
	struct t_world *world = t_world_new(NULL);
	struct t_run run;

	t_run_init(&run, world);
	run.exec_opts = &opts;
	ck_assert_int_eq(t_run_start(&run, tree, 1500), 0);
	wait_ready(&run);
	ck_assert_int_eq(kill(supervisor_of(world), SIGSTOP), 0);
	t_run_wait(&run);
	ck_assert_int_ne(agentd_result_status(run.result), AGENTD_STATUS_OK);
	ck_assert_msg(t_run_wall_ms(&run) < t_slack(6000), "%s", t_run_story(&run));
	t_world_expect_commands_dead(world, 200);
	t_run_free(&run);
	t_world_free(world);
}
END_TEST

/* The same for the helper: `finished` comes, though late. */
START_TEST(helper_stopped)
{
	struct t_world *world = t_world_new(NULL);
	struct t_run run;

	t_run_init(&run, world);
	ck_assert_int_eq(t_run_start(&run, tree, 0), 0);
	wait_ready(&run);
	ck_assert_int_eq(kill(t_world_helper(world), SIGSTOP), 0);
	ck_assert_int_eq(agentd_exec_kill(run.exec), 0);
	t_run_wait(&run);
	ck_assert_int_eq(run.finished, 1);
	ck_assert_int_ne(agentd_result_status(run.result), AGENTD_STATUS_OK);
	(void)kill(t_world_helper(world), SIGCONT);
	t_run_free(&run);
	t_world_free(world);
}
END_TEST

/* ---- a number that is used again */

/* A process of that number, and a group; 0: it is not for us to choose. */
static pid_t stranger_called(pid_t wanted)
{
	for (int i = 0; i < 1000; i++) {
		int fd = open("/proc/sys/kernel/ns_last_pid", O_WRONLY | O_CLOEXEC);
		bool set = fd >= 0 && dprintf(fd, "%d", (int)wanted - 1) > 0;
		pid_t pid;

		if (fd >= 0)
			close(fd);
		if (!set)
			return 0;
		pid = fork();
		if (pid == 0) {
			signal(SIGTERM, SIG_DFL);
			while (getpid() == wanted)
				pause();
			_exit(0);
		}
		if (pid == wanted) {
			ck_assert_int_eq(setpgid(pid, pid), 0);
			return pid;
		}
		ck_assert_int_eq(waitpid(pid, NULL, 0), pid);
	}
	return 0;
}

/* F25: the command is dead, and all that is asked of it is no longer for its number. */
START_TEST(number_is_used_again)
{
	struct agentd_exec_opts opts = { .size = sizeof(opts), .grace_ms = 100 };
	struct t_world *world =
		t_world_new(&(struct t_world_opts){ .backend = "host", .drain_ms = 20000 });
	struct t_run run;
	pid_t stranger;

	t_run_init(&run, world);
	run.exec_opts = &opts;
	ck_assert_int_eq(t_run_start(&run, "echo $$; setsid sleep 60 & exit 0", 0), 0);
	ck_assert(t_world_loop(world, t_slack(10000), &run.exited));
	ck_assert_uint_gt(run.total[AGENTD_STDOUT], 1);
	stranger = stranger_called(atoi((const char *)run.out[AGENTD_STDOUT]));
	if (stranger == 0)
		t_skip("only root chooses the numbers of processes");
	ck_assert_int_eq(run.finished, 0);
	(void)agentd_exec_signal(run.exec, SIGTERM, NULL);
	ck_assert_int_eq(agentd_exec_cancel(run.exec), 0);
	t_run_wait(&run);
	t_world_expect_commands_dead(world, 1000);
	if (stranger != 0) {
		ck_assert_int_eq(waitpid(stranger, NULL, WNOHANG), 0);
		kill(stranger, SIGKILL);
		ck_assert_int_eq(waitpid(stranger, NULL, 0), stranger);
	}
	t_run_free(&run);
	t_world_free(world);
}
END_TEST

/* ---- the host program */

struct host {
	pid_t pid;
	char tag[48], name[16], dir[256];
	pid_t helper;
};

/* A host program of its own, which says what it is when its command runs. */
static void start_host(struct host *host, const char *command, uint64_t live_ms)
{
	int fds[2];
	ssize_t n;

	ck_assert_int_eq(pipe2(fds, O_CLOEXEC), 0);
	host->pid = fork();
	if (host->pid == 0) {
		struct t_world *world = t_world_new(NULL);
		struct host self = { .pid = getpid() };
		struct t_run run;

		snprintf(self.tag, sizeof(self.tag), "%s", world->tag);
		snprintf(self.name, sizeof(self.name), "%s", world->helper_name);
		snprintf(self.dir, sizeof(self.dir), "%s", world->dir);
		self.helper = t_world_helper(world);
		t_run_init(&run, world);
		(void)t_run_start(&run, command, 0);
		if (live_ms == 0)
			wait_ready(&run);
		else
			t_world_loop(world, live_ms - 1, NULL);
		(void)!write(fds[1], &self, sizeof(self));
		for (;;)
			t_world_loop(world, 1000, NULL);
	}
	close(fds[1]);
	ck_assert_int_gt(host->pid, 0);
	do {
		pid_t pid = host->pid;

		n = read(fds[0], host, sizeof(*host));
		host->pid = pid;
	} while (n < 0 && errno == EINTR);
	close(fds[0]);
	ck_assert_int_eq(n, (ssize_t)sizeof(*host));
}

static void expect_host_left_nothing(struct host *host)
{
	uint64_t deadline = t_now() + T_MS(t_slack(1000));
	pid_t pid = 0;
	char *left;

	while (t_count_processes(host->tag, host->name, &pid, 1) > 0) {
		ck_assert_msg(t_now() < deadline, "process %d outlived the host by a second",
			      (int)pid);
		t_sleep_ms(10);
	}
	ck_assert_msg(!t_find_cgroups(&host->helper, 1, &left), "left: %s", left);
	t_remove_tree(host->dir);
}

/* F22 */
START_TEST(host_killed)
{
	struct host host;

	start_host(&host, tree, 0);
	ck_assert_uint_ge(t_count_processes(host.tag, host.name, NULL, 0), 4);
	ck_assert_int_eq(kill(host.pid, SIGKILL), 0);
	ck_assert_int_eq(waitpid(host.pid, NULL, 0), host.pid);
	expect_host_left_nothing(&host);
}
END_TEST

/* At any time around the start of a command. */
START_TEST(host_killed_early)
{
	struct host host;

	for (uint64_t i = 0; i < 12; i++) {
		start_host(&host, tree, 1 + i / 2);
		t_sleep_ms(i % 3);
		ck_assert_int_eq(kill(host.pid, SIGKILL), 0);
		ck_assert_int_eq(waitpid(host.pid, NULL, 0), host.pid);
		expect_host_left_nothing(&host);
	}
}
END_TEST

/* It only exits, without a word to the library. */
START_TEST(host_exits)
{
	struct host host;

	start_host(&host, tree, 0);
	ck_assert_int_eq(kill(host.pid, SIGHUP), 0);
	ck_assert_int_eq(waitpid(host.pid, NULL, 0), host.pid);
	expect_host_left_nothing(&host);
}
END_TEST

/* Killed while a child of it, which holds copies of all descriptors, lives on. */
START_TEST(host_killed_child_lives)
{
	struct host host = { .pid = 0 };
	int fds[2];
	pid_t middle;

	ck_assert_int_eq(pipe2(fds, O_CLOEXEC), 0);
	middle = fork();
	if (middle == 0) {
		struct t_world *world = t_world_new(NULL);
		struct host self = { .pid = getpid() };
		struct t_run run;
		pid_t child;

		snprintf(self.tag, sizeof(self.tag), "%s", world->tag);
		snprintf(self.name, sizeof(self.name), "%s", world->helper_name);
		snprintf(self.dir, sizeof(self.dir), "%s", world->dir);
		t_run_init(&run, world);
		(void)t_run_start(&run, tree, 0);
		wait_ready(&run);
		child = fork();
		if (child == 0) {
			close(fds[1]);
			t_sleep_ms(8000);
			_exit(0);
		}
		self.pid = child;
		(void)!write(fds[1], &self, sizeof(self));
		for (;;)
			t_world_loop(world, 1000, NULL);
	}
	close(fds[1]);
	ck_assert_int_eq(read(fds[0], &host, sizeof(host)), (ssize_t)sizeof(host));
	close(fds[0]);
	ck_assert_int_eq(kill(middle, SIGKILL), 0);
	ck_assert_int_eq(waitpid(middle, NULL, 0), middle);
	expect_host_left_nothing(&host);
	kill(host.pid, SIGKILL);
}
END_TEST

int main(void)
{
	TCase *helper = t_case("helper", 60), *host = t_case("host", 90);
	TCase *const cases[] = { helper, host };

	tcase_add_test(helper, helper_killed);
	tcase_add_test(helper, helper_killed_at_once);
	tcase_add_test(helper, supervisor_killed);
	tcase_add_test(helper, waiting_ones_killed);
	tcase_add_test(helper, supervisor_stopped);
	tcase_add_test(helper, helper_stopped);
	tcase_add_test(helper, number_is_used_again);
	tcase_add_test(host, host_killed);
	tcase_add_test(host, host_killed_early);
	tcase_add_test(host, host_exits);
	tcase_add_test(host, host_killed_child_lives);
	return t_main("faults", cases, T_COUNT(cases));
}
