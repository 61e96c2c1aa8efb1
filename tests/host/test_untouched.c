/* SPDX-License-Identifier: MIT */
/* The host program: whatever state it is in the library works, and leaves it in
 * that state. Every test runs in a process of its own. */
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <pthread.h>
#include <signal.h>
#include <spawn.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "harness.h"

enum { SOMEBODY = 61234 }; /* a user id that runs nothing else */

/* ---- what must not change */

struct state {
	char *status; /* the lines of /proc/self/status that matter */
	char *limits, cwd[4096];
	char *environment;
	struct sigaction actions[65];
	struct t_fds fds;
	int dumpable, subreaper, death_signal;
};

static char *status_lines(void)
{
	static const char *const keys[] = {
		"Umask:",  "Uid:",    "Gid:",    "Groups:", "Threads:", "SigBlk:",     "ShdPnd:",
		"SigIgn:", "SigCgt:", "CapEff:", "CapPrm:", "CapBnd:",  "NoNewPrivs:", "Seccomp:"
	};
	char *all = t_read_file("/proc/self/status", NULL), *text = NULL, *save = NULL;
	size_t size = 0;
	FILE *out = open_memstream(&text, &size);

	for (char *line = strtok_r(all, "\n", &save); line; line = strtok_r(NULL, "\n", &save)) {
		for (size_t i = 0; i < T_COUNT(keys); i++) {
			if (strncmp(line, keys[i], strlen(keys[i])) == 0)
				fprintf(out, "%s\n", line);
		}
	}
	fclose(out);
	free(all);
	return text;
}

static char *environment_text(void)
{
	char *text = NULL;
	size_t size = 0;
	FILE *out = open_memstream(&text, &size);

	for (char **var = environ; var && *var; var++)
		fprintf(out, "%s\n", *var);
	fclose(out);
	return text;
}

static void state_take(struct state *state)
{
	memset(state, 0, sizeof(*state));
	state->status = status_lines();
	state->limits = t_read_file("/proc/self/limits", NULL);
	if (readlink("/proc/self/cwd", state->cwd, sizeof(state->cwd) - 1) < 0)
		state->cwd[0] = '\0';
	state->environment = environment_text();
	for (int i = 1; i <= 64; i++)
		(void)sigaction(i, NULL, &state->actions[i]);
	state->dumpable = prctl(PR_GET_DUMPABLE);
	prctl(PR_GET_CHILD_SUBREAPER, &state->subreaper);
	prctl(PR_GET_PDEATHSIG, &state->death_signal);
	t_fds_take(&state->fds);
}

static void state_free(struct state *state)
{
	free(state->status);
	free(state->limits);
	free(state->environment);
	t_fds_free(&state->fds);
}

/* fds: whether descriptors are compared too (not while a runner lives). */
static void state_expect_same(const struct state *before, bool fds, const char *when)
{
	struct state now;

	state_take(&now);
	ck_assert_msg(strcmp(before->status, now.status) == 0, "%s: status was\n%snow\n%s", when,
		      before->status, now.status);
	ck_assert_msg(strcmp(before->limits, now.limits) == 0, "%s: limits were\n%snow\n%s", when,
		      before->limits, now.limits);
	ck_assert_msg(strcmp(before->cwd, now.cwd) == 0, "%s: cwd", when);
	ck_assert_msg(strcmp(before->environment, now.environment) == 0, "%s: environment", when);
	for (int i = 1; i <= 64; i++)
		ck_assert_msg(before->actions[i].sa_handler == now.actions[i].sa_handler &&
				      before->actions[i].sa_flags == now.actions[i].sa_flags,
			      "%s: the action of signal %d", when, i);
	ck_assert_int_eq(before->dumpable, now.dumpable);
	ck_assert_int_eq(before->subreaper, now.subreaper);
	ck_assert_int_eq(before->death_signal, now.death_signal);
	state_free(&now);
	if (fds)
		t_fds_expect_same(&before->fds, when);
}

/* ---- a bit of everything */

static void exercise(struct t_world *world)
{
	static const struct {
		const char *command;
		uint64_t timeout_ms;
		agentd_status status;
		int32_t exit_code, signo;
		const char *out;
	} rows[] = {
		{ "echo hello; echo err >&2", 20000, AGENTD_STATUS_OK, 0, 0, "hello\n" },
		{ "exit 3", 20000, AGENTD_STATUS_ERROR, 3, 0, "" },
		{ "kill -KILL $$", 20000, AGENTD_STATUS_ERROR, -1, SIGKILL, "" },
		{ "echo a; exec sleep 20", 150, AGENTD_STATUS_TIMEOUT, -1, SIGTERM, NULL },
		{ "(setsid sleep 30 &) ; echo x", 20000, AGENTD_STATUS_OK, 0, 0, "x\n" },
	};
	struct t_run run;

	for (size_t i = 0; i < T_COUNT(rows); i++) {
		t_run(&run, world, rows[i].command, rows[i].timeout_ms);
		t_expect_status(&run, rows[i].status);
		t_expect_exit(&run, rows[i].exit_code);
		ck_assert_int_eq(agentd_result_signal(run.result), rows[i].signo);
		if (rows[i].out)
			t_expect_out(&run, AGENTD_STDOUT, rows[i].out);
		t_run_free(&run);
	}
}

/* The state is what it was: with a runner, after its commands, without it. */
static void whole_life(const struct t_world_opts *opts)
{
	struct t_world *world = t_world_new_bare(opts);
	struct state state;

	world->base = event_base_new();
	world->owns_base = true;
	ck_assert_ptr_nonnull(world->base);
	state_take(&state);
	t_world_start(world);
	state_expect_same(&state, false, "after agentd_runner_new()");
	exercise(world);
	state_expect_same(&state, false, "after some commands");
	t_world_shutdown(world);
	agentd_context_unref(world->ctx);
	world->ctx = NULL;
	state_expect_same(&state, true, "at the end");
	state_free(&state);
	t_world_free(world);
}

START_TEST(plain)
{
	whole_life(NULL);
}
END_TEST

/* ---- signals */

static _Atomic int stolen;

static void steal_children(int signo)
{
	int saved = errno, status;
	pid_t pid;

	(void)signo;
	while ((pid = waitpid(-1, &status, WNOHANG)) > 0)
		stolen++;
	errno = saved;
}

static void set_action(int signo, void (*handler)(int), int flags)
{
	struct sigaction action = { .sa_handler = handler, .sa_flags = flags };

	sigemptyset(&action.sa_mask);
	ck_assert_int_eq(sigaction(signo, &action, NULL), 0);
}

/* F10: a handler that reaps whatever it can find finds none of ours. */
START_TEST(sigchld_handler)
{
	set_action(SIGCHLD, steal_children, SA_RESTART);
	whole_life(NULL);
	ck_assert_int_eq(stolen, 0);
}
END_TEST

/* F11, F12 */
START_TEST(sigchld_ignored)
{
	set_action(SIGCHLD, SIG_IGN, 0);
	whole_life(NULL);
}
END_TEST

START_TEST(sigchld_nocldwait)
{
	set_action(SIGCHLD, SIG_DFL, SA_NOCLDWAIT);
	whole_life(NULL);
}
END_TEST

/* A thread that waits for any child, for ever. */
static void *wait_for_any(void *arg)
{
	_Atomic int *stop = arg;
	siginfo_t info;

	while (!*stop) {
		info.si_pid = 0;
		if (waitid(P_ALL, 0, &info, WEXITED | WNOHANG) == 0 && info.si_pid)
			stolen++;
	}
	return NULL;
}

START_TEST(waiting_thread)
{
	struct t_world *world = t_world_new_bare(NULL);
	_Atomic int stop = 0;
	pthread_t thread;

	ck_assert_int_eq(pthread_create(&thread, NULL, wait_for_any, (void *)&stop), 0);
	t_world_start(world);
	exercise(world);
	t_world_shutdown(world);
	stop = 1;
	pthread_join(thread, NULL);
	ck_assert_int_eq(stolen, 0);
	t_world_free(world);
}
END_TEST

/* F13: everything is blocked, much is ignored, here; nothing is in the command. */
START_TEST(signals_blocked)
{
	struct t_world *world;
	struct t_run run;
	sigset_t all;

	sigfillset(&all);
	ck_assert_int_eq(sigprocmask(SIG_BLOCK, &all, NULL), 0);
	set_action(SIGPIPE, SIG_IGN, 0);
	set_action(SIGINT, SIG_IGN, 0);
	set_action(SIGUSR1, SIG_IGN, 0);
	set_action(SIGCHLD, SIG_IGN, 0);
	whole_life(NULL);
	world = t_world_new(NULL);
	t_run(&run, world, "exec grep -E '^Sig(Blk|Ign)' /proc/self/status", 0);
	t_expect_out(&run, AGENTD_STDOUT, "SigBlk:\t0000000000000000\nSigIgn:\t0000000000000000\n");
	t_run_free(&run);
	t_world_free(world);
}
END_TEST

static _Atomic int alarms;

static void count_alarm(int signo)
{
	(void)signo;
	alarms++;
}

/* F08: interrupted a thousand times a second. */
START_TEST(interrupted)
{
	struct itimerval timer = { { 0, 1000 }, { 0, 1000 } }, off = { { 0, 0 }, { 0, 0 } };
	struct t_world *world = t_world_new_bare(NULL);
	struct agentd_exec_opts opts = { .size = sizeof(opts), .flags = AGENTD_EXEC_STDIN_OPEN };

	set_action(SIGALRM, count_alarm, 0);
	ck_assert_int_eq(setitimer(ITIMER_REAL, &timer, NULL), 0);
	for (int i = 0; i < (t_is_small() ? 3 : 10); i++) {
		agentd_runner *runner = NULL;
		struct agentd_runner_opts ropts = { .size = sizeof(ropts),
						    .helper_path = world->helper };

		if (!world->base) {
			world->base = event_base_new();
			world->owns_base = true;
		}
		ropts.event_base = world->base;
		ck_assert_int_eq(agentd_runner_new(&ropts, &runner, NULL), 0);
		agentd_runner_unref(runner);
	}
	t_world_start(world);
	exercise(world);
	{
		struct t_run run;
		size_t taken = 0;

		t_run_init(&run, world);
		run.exec_opts = &opts;
		ck_assert_int_eq(t_run_start(&run, "cat; yes | head -c 3000000", 0), 0);
		while (taken == 0)
			if (agentd_exec_write(run.exec, (const uint8_t *)"in", 2, &taken) < 0)
				t_world_loop(world, 1, NULL);
		ck_assert_int_eq(agentd_exec_close_stdin(run.exec), 0);
		t_run_wait(&run);
		ck_assert_uint_eq(run.total[1], 3000002);
		t_run_free(&run);
	}
	ck_assert_int_eq(setitimer(ITIMER_REAL, &off, NULL), 0);
	ck_assert_int_gt(alarms, 100);
	t_world_free(world);
}
END_TEST

/* ---- the command's side */

START_TEST(child_side)
{
	struct t_world *world;
	struct t_run run;
	char *want;
	int fds[8];

	/* inheritable descriptors here, and a limit on cores that is none */
	for (size_t i = 0; i < T_COUNT(fds); i++)
		fds[i] = open("/dev/null", O_RDONLY);
	world = t_world_new(NULL);
	t_run(&run, world, "exec ls /proc/self/fd", 0);
	t_expect_out(&run, AGENTD_STDOUT, "0\n1\n2\n3\n");
	t_run_free(&run);
	t_run(&run, world, "ulimit -Hc; ulimit -Sc", 0);
	t_expect_out(&run, AGENTD_STDOUT, "0\n0\n");
	t_run_free(&run);
	/* its own session and group, no terminal */
	t_run(&run, world,
	      "set -- $(cut -d' ' -f1,5,6,7 /proc/$$/stat); "
	      "[ $1 = $2 ] && [ $1 = $3 ] && echo tty $4",
	      0);
	t_expect_out(&run, AGENTD_STDOUT, "tty 0\n");
	t_run_free(&run);
	/* stdin is /dev/null, stdout and stderr are pipes of its own */
	t_run(&run, world,
	      "readlink /proc/self/fd/0; readlink /proc/self/fd/1 | cut -c1-5; "
	      "stat -L -c %F /proc/self/fd/2",
	      0);
	t_expect_out(&run, AGENTD_STDOUT, "/dev/null\npipe:\nfifo\n");
	t_run_free(&run);
	/* blocking ones: a program that writes much must not see EAGAIN */
	t_run(&run, world, "cat /proc/self/fdinfo/1 | grep flags", 0);
	ck_assert_ptr_null(strstr((char *)run.out[1], "4001"));
	t_run_free(&run);
	/* who it is: as the host program */
	want = t_format("%u %u\n", getuid(), getgid());
	t_run(&run, world, "echo $(id -u) $(id -g)", 0);
	t_expect_out(&run, AGENTD_STDOUT, want);
	t_run_free(&run);
	free(want);
	t_world_free(world);
	for (size_t i = 0; i < T_COUNT(fds); i++)
		close(fds[i]);
}
END_TEST

START_TEST(child_environment)
{
	struct t_world *world;
	struct t_run run;
	char *want;

	ck_assert_int_eq(setenv("LD_LIBRARY_PATH", "/nonexistent", 1), 0);
	ck_assert_int_eq(setenv("USER", "somebody", 1), 0);
	ck_assert_int_eq(setenv("LOGNAME", "somebody", 1), 0);
	world = t_world_new(NULL);
	want = t_format("AGENTD_TEST_TAG=%s\nHOME=%s\nLANG=C.UTF-8\nLOGNAME=somebody\n"
			"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\n"
			"SHELL=/bin/bash\nSMITH_TRACE_ID=test-trace-123\nTMPDIR=/tmp\n"
			"USER=somebody\n",
			world->tag, world->home);
	t_run(&run, world, "exec env -u PWD -u OLDPWD -u SHLVL -u _ | LC_ALL=C sort", 0);
	t_expect_out(&run, AGENTD_STDOUT, want);
	t_run_free(&run);
	free(want);
	t_world_free(world);
}
END_TEST

/* ---- places and limits of the host program */

START_TEST(stdio_closed)
{
	struct t_world *world = t_world_new_bare(NULL);
	struct t_fds now;

	world->base = event_base_new();
	world->owns_base = true;
	t_fds_free(&world->fds_before);
	for (int i = 0; i < 3; i++)
		close(i);
	t_fds_take(&now);
	t_world_start(world);
	for (int i = 0; i < 3; i++)
		ck_assert_int_lt(fcntl(i, F_GETFD), 0);
	exercise(world);
	{
		struct t_run run;

		/* while one runs, its pipes are not there either */
		t_run_init(&run, world);
		ck_assert_int_eq(t_run_start(&run, "echo a; sleep 0.2; ls /proc/self/fd", 0), 0);
		ck_assert(t_world_loop(world, t_slack(5000), &run.started));
		for (int i = 0; i < 3; i++)
			ck_assert_int_lt(fcntl(i, F_GETFD), 0);
		t_run_wait(&run);
		t_expect_out(&run, AGENTD_STDOUT, "a\n0\n1\n2\n3\n");
		t_run_free(&run);
	}
	t_world_shutdown(world);
	t_fds_expect_same(&now, "at the end");
	t_fds_free(&now);
	agentd_context_unref(world->ctx);
	world->ctx = NULL;
	event_base_free(world->base);
	world->base = NULL;
	t_fds_take(&world->fds_before);
	t_world_free(world);
}
END_TEST

START_TEST(umask_of_everything)
{
	struct t_world *world = t_world_new_bare(NULL);
	mode_t old = umask(0777);
	struct state state;

	world->base = event_base_new();
	world->owns_base = true;
	state_take(&state);
	t_world_start(world);
	exercise(world);
	state_expect_same(&state, false, "with a umask of 0777");
	t_world_shutdown(world);
	ck_assert_int_eq(umask(old), 0777);
	state_free(&state);
	t_world_free(world);
}
END_TEST

START_TEST(cwd_deleted)
{
	struct t_world *world = t_world_new_bare(NULL);
	char *cwd = t_format("%s/cwd", world->dir);
	struct t_run run;
	struct state state;

	ck_assert_int_eq(mkdir(cwd, 0755), 0);
	ck_assert_int_eq(chdir(cwd), 0);
	ck_assert_int_eq(rmdir(cwd), 0);
	state_take(&state);
	t_world_start(world);
	exercise(world);
	state_expect_same(&state, false, "without a cwd");
	t_run(&run, world, "pwd", 0);
	ck_assert_int_eq(strncmp((char *)run.out[1], world->workdir, strlen(world->workdir)), 0);
	t_run_free(&run);
	state_free(&state);
	free(cwd);
	t_world_free(world);
}
END_TEST

START_TEST(environment_empty)
{
	struct t_world *world;
	struct t_run run;

	clearenv();
	world = t_world_new(&(struct t_world_opts){ .login_shell = true });
	exercise(world);
	t_run(&run, world, "echo \"$PATH\"", 0);
	ck_assert_ptr_nonnull(strstr((char *)run.out[1], "/usr/bin"));
	t_run_free(&run);
	t_world_free(world);
	ck_assert(!environ || !*environ);
}
END_TEST

/* F18: many descriptors; numbers beyond FD_SETSIZE, and no time lost on them. */
START_TEST(many_descriptors)
{
	enum { MANY = 16000 };
	struct rlimit limit;
	struct t_world *world;
	struct t_run run;
	uint64_t at, worst = 0;
	int count = 0;

	ck_assert_int_eq(getrlimit(RLIMIT_NOFILE, &limit), 0);
	limit.rlim_cur = limit.rlim_max;
	ck_assert_int_eq(setrlimit(RLIMIT_NOFILE, &limit), 0);
	if (limit.rlim_max < MANY + 100) {
		t_skip("%d descriptors: RLIMIT_NOFILE is %llu", MANY,
		       (unsigned long long)limit.rlim_max);
		return;
	}
	for (; count < MANY; count++)
		ck_assert_int_ge(open("/dev/null", O_RDONLY), 0);
	at = t_now();
	world = t_world_new(NULL);
	fprintf(stderr, "world with %d descriptors: %.1f ms\n", MANY, (double)(t_now() - at) / 1e6);
	for (int i = 0; i < 20; i++) {
		t_run_init(&run, world);
		at = t_now();
		ck_assert_int_eq(t_run_start(&run, "true", 0), 0);
		if (t_now() - at > worst)
			worst = t_now() - at;
		t_run_wait(&run);
		t_expect_status(&run, AGENTD_STATUS_OK);
		t_run_free(&run);
	}
	ck_assert_msg(worst < T_MS(t_slack(50)), "a start took %.1f ms", (double)worst / 1e6);
	exercise(world);
	t_run(&run, world, "exec ls /proc/self/fd", 0);
	t_expect_out(&run, AGENTD_STDOUT, "0\n1\n2\n3\n");
	t_run_free(&run);
	t_world_free(world);
}
END_TEST

/* The best of a few, since others use the machine, too. */
enum { TRIES = 7 };

static uint64_t best_runner_start(void)
{
	uint64_t best = UINT64_MAX;

	for (int i = 0; i < TRIES; i++) {
		struct t_world *world = t_world_new_bare(NULL);
		uint64_t at = t_now(), took;

		t_world_start(world);
		took = t_now() - at;
		if (took < best)
			best = took;
		t_world_free(world);
	}
	return best;
}

/* What it costs to copy the page tables. */
static uint64_t best_fork(void)
{
	uint64_t best = UINT64_MAX;

	for (int i = 0; i < TRIES; i++) {
		uint64_t at = t_now(), took;
		pid_t pid = fork();

		if (pid == 0)
			_exit(0);
		took = t_now() - at;
		ck_assert_int_gt(pid, 0);
		ck_assert_int_eq(waitpid(pid, NULL, 0), pid);
		if (took < best)
			best = took;
	}
	return best;
}

START_TEST(much_memory)
{
	const size_t size = (size_t)4 << 30, page = 4096;
	uint64_t without, with, forked, at, start = UINT64_MAX;
	struct t_world *world;
	struct t_run run;
	char *memory;

	/* Touched once, by whoever has not to share the machine's memory with it. */
	if (t_is_small())
		return;
	if (t_meminfo_bytes("MemAvailable") < (uint64_t)6 << 30) {
		t_skip("4 GiB of touched memory: %llu MiB are available",
		       (unsigned long long)t_meminfo_bytes("MemAvailable") >> 20);
		return;
	}
	without = best_runner_start();
	memory = mmap(NULL, size, PROT_READ | PROT_WRITE,
		      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	ck_assert_ptr_ne(memory, MAP_FAILED);
	/* With huge pages there would be next to nothing to copy. */
	madvise(memory, size, MADV_NOHUGEPAGE);
	for (size_t i = 0; i < size; i += page)
		memory[i] = 1;
	if (t_rss_bytes() < size) {
		t_skip("4 GiB of touched memory: only %llu MiB stayed",
		       (unsigned long long)t_rss_bytes() >> 20);
		return;
	}
	with = best_runner_start();
	forked = best_fork();
	world = t_world_new(NULL);
	for (int i = 0; i < 20; i++) {
		t_run_init(&run, world);
		at = t_now();
		ck_assert_int_eq(t_run_start(&run, "true", 0), 0);
		if (t_now() - at < start)
			start = t_now() - at;
		t_run_wait(&run);
		t_expect_status(&run, AGENTD_STATUS_OK);
		t_run_free(&run);
	}
	fprintf(stderr, "4 GiB: fork %.1f ms, runner %.1f ms, %.1f ms without, start %.3f ms\n",
		(double)forked / 1e6, (double)with / 1e6, (double)without / 1e6,
		(double)start / 1e6);
	/* Whoever copies page tables pays for it each time. */
	ck_assert_uint_lt(with, without + forked / 2);
	ck_assert_uint_lt(start, forked / 2);
	t_world_free(world);
	munmap(memory, size);
}
END_TEST

/* ---- threads of the host program */

struct busy {
	_Atomic int stop, rounds;
	int (*work)(void);
};

static void *be_busy(void *arg)
{
	struct busy *busy = arg;

	while (!busy->stop) {
		busy->work();
		busy->rounds++;
	}
	return NULL;
}

static int allocate(void)
{
	char *text = malloc((size_t)(rand() % 5000) + 1);
	FILE *null = fopen("/dev/null", "we");

	if (text)
		text[0] = 1;
	if (null) {
		fprintf(null, "%s %d\n", "text", 1);
		fclose(null);
	}
	free(text);
	return 0;
}

static int spawn_true(void)
{
	char *const argv[] = { (char *)(uintptr_t) "true", NULL };
	pid_t pid;

	if (posix_spawn(&pid, "/bin/true", NULL, NULL, argv, environ) == 0)
		waitpid(pid, NULL, 0);
	return 0;
}

/* Lives on for a while, with whatever it was given by mistake. */
static int spawn_lasting(void)
{
	char *const argv[] = { (char *)(uintptr_t) "sleep", (char *)(uintptr_t) "0.3", NULL };
	pid_t pid;

	if (posix_spawn(&pid, "/bin/sleep", NULL, NULL, argv, environ) == 0)
		waitpid(pid, NULL, 0);
	return 0;
}

static void run_among(int (*work)(void), size_t threads, int count)
{
	struct t_world *world = t_world_new_bare(NULL);
	struct busy busy = { .work = work };
	pthread_t ids[8];
	struct t_run run;
	uint64_t worst = 0;

	for (size_t i = 0; i < threads; i++)
		ck_assert_int_eq(pthread_create(&ids[i], NULL, be_busy, &busy), 0);
	t_world_start(world);
	for (int i = 0; i < count; i++) {
		t_run(&run, world, "echo $$; echo e >&2", 0);
		t_expect_status(&run, AGENTD_STATUS_OK);
		ck_assert_uint_gt(run.total[1], 1);
		if (t_run_wall_ms(&run) > worst)
			worst = t_run_wall_ms(&run);
		t_run_free(&run);
	}
	t_world_shutdown(world);
	busy.stop = 1;
	for (size_t i = 0; i < threads; i++)
		pthread_join(ids[i], NULL);
	ck_assert_int_gt(busy.rounds, 0);
	/* an end of a pipe held by somebody else would cost the drain, 250 ms, each time */
	fprintf(stderr, "%d runs among %zu threads: worst %llu ms, %d rounds\n", count, threads,
		(unsigned long long)worst, busy.rounds);
	t_world_free(world);
}

/* F15 */
START_TEST(busy_threads)
{
	run_among(allocate, 4, t_is_small() ? 20 : 200);
}
END_TEST

/* F16 */
START_TEST(forking_threads)
{
	run_among(spawn_true, 2, t_is_small() ? 20 : 100);
}
END_TEST

START_TEST(pipes_do_not_leak)
{
	struct t_world *world = t_world_new(NULL);
	struct busy busy = { .work = spawn_lasting };
	pthread_t ids[6];
	struct t_run run;
	int late = 0;

	for (size_t i = 0; i < T_COUNT(ids); i++) {
		ck_assert_int_eq(pthread_create(&ids[i], NULL, be_busy, &busy), 0);
		t_sleep_ms(50);
	}
	for (int i = 0; i < 60; i++) {
		t_run(&run, world, "echo a", 0);
		late += t_run_wall_ms(&run) >= t_slack(240);
		t_run_free(&run);
	}
	busy.stop = 1;
	for (size_t i = 0; i < T_COUNT(ids); i++)
		pthread_join(ids[i], NULL);
	ck_assert_msg(late < 5, "%d of 60 ended only with the drain", late);
	t_world_free(world);
}
END_TEST

/* ---- forks */

/* F17: a child that the host forked and that lives on holds copies of everything;
 * that keeps neither commands nor helper alive. */
static void with_forked_child(bool unref)
{
	struct t_world *world = t_world_new(NULL);
	struct t_run run;
	pid_t child;

	t_run_init(&run, world);
	ck_assert_int_eq(t_run_start(&run, "exec sleep 30", 0), 0);
	ck_assert(t_world_loop(world, t_slack(5000), &run.started));
	child = fork();
	if (child == 0) {
		t_sleep_ms(20000);
		_exit(0);
	}
	if (unref) {
		agentd_runner_unref(world->runner);
		world->runner = NULL;
		t_run_wait(&run);
		t_world_loop(world, 100, NULL);
	} else {
		t_world_shutdown(world);
	}
	ck_assert_int_eq(run.finished, 1);
	t_expect_cause(&run, AGENTD_CAUSE_CANCELED);
	t_run_free(&run);
	t_world_expect_dead(world, 1000);
	kill(child, SIGKILL);
	ck_assert_int_eq(waitpid(child, NULL, 0), child);
	t_world_free(world);
}

START_TEST(forked_child_and_shutdown)
{
	with_forked_child(false);
}
END_TEST

START_TEST(forked_child_and_unref)
{
	with_forked_child(true);
}
END_TEST

/* A child that was forked while a runner lived, and exits in the usual way, does
 * no harm to it. */
START_TEST(forked_child_exits)
{
	struct t_world *world = t_world_new(NULL);
	struct t_run run;
	pid_t child;

	t_run_init(&run, world);
	ck_assert_int_eq(t_run_start(&run, "sleep 0.5; echo ok", 0), 0);
	ck_assert(t_world_loop(world, t_slack(5000), &run.started));
	child = fork();
	if (child == 0)
		_exit(0);
	ck_assert_int_eq(waitpid(child, NULL, 0), child);
	t_run_wait(&run);
	t_expect_out(&run, AGENTD_STDOUT, "ok\n");
	t_run_free(&run);
	exercise(world);
	t_world_free(world);
}
END_TEST

/* The host is a subreaper, as in a container: it inherits the helper, and must
 * still not be left with a child. */
START_TEST(host_is_subreaper)
{
	ck_assert_int_eq(prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0), 0);
	whole_life(NULL);
}
END_TEST

/* F24: stopped for a while and continued: no storm, and the limit still holds. */
START_TEST(host_is_stopped)
{
	struct t_world *world = t_world_new(&(struct t_world_opts){ .heartbeat_ms = 50 });
	struct t_run slow, late;
	pid_t puppeteer, self = getpid();
	size_t beats;

	t_run_init(&slow, world);
	t_run_init(&late, world);
	ck_assert_int_eq(t_run_start(&slow, "sleep 2.5; echo ok", 20000), 0);
	ck_assert_int_eq(t_run_start(&late, "exec sleep 20", 1000), 0);
	ck_assert(t_world_loop(world, t_slack(5000), &slow.started));
	puppeteer = fork();
	if (puppeteer == 0) {
		kill(self, SIGSTOP);
		t_sleep_ms(1800);
		kill(self, SIGCONT);
		_exit(0);
	}
	t_run_wait(&late);
	t_expect_status(&late, AGENTD_STATUS_TIMEOUT);
	ck_assert_msg(t_run_wall_ms(&late) < t_slack(4000), "%s", t_run_story(&late));
	t_run_wait(&slow);
	t_expect_out(&slow, AGENTD_STDOUT, "ok\n");
	beats = t_logs_count(&world->logs, "Shell command still running");
	ck_assert_msg(beats < 60, "%zu heartbeats", beats);
	ck_assert_int_eq(waitpid(puppeteer, NULL, 0), puppeteer);
	t_run_free(&slow);
	t_run_free(&late);
	t_world_free(world);
}
END_TEST

static void be_slow(evutil_socket_t fd, short what, void *userdata)
{
	(void)fd;
	(void)what;
	(void)userdata;
	t_sleep_ms(400);
}

/* F30: a base that is busy with other things most of the time. */
START_TEST(busy_base)
{
	struct t_world *world = t_world_new(NULL);
	struct timeval tv = { 0, 450000 };
	struct event *event = event_new(world->base, -1, EV_PERSIST, be_slow, NULL);
	struct t_run run;

	ck_assert_ptr_nonnull(event);
	event_add(event, &tv);
	t_run(&run, world, "head -c 3000000 /dev/zero; exec sleep 20", 1000);
	t_expect_status(&run, AGENTD_STATUS_TIMEOUT);
	ck_assert_uint_eq(run.total[1] + t_run_metric(&run, AGENTD_METRIC_DROPPED_BYTES),
			  t_run_metric(&run, AGENTD_METRIC_STDOUT_BYTES));
	ck_assert_msg(t_run_wall_ms(&run) < t_slack(3000), "%s", t_run_story(&run));
	t_run_free(&run);
	/* an end that the loop only hears of after the limit is still in time; where the machine
	 * was so slow that it was not, there is another one */
	t_run(&run, world, "sleep 0.5; echo done", 600);
	for (int i = 0; i < 9 && t_run_metric(&run, AGENTD_METRIC_WALL_NS) > 600000000; i++) {
		t_run_free(&run);
		t_run(&run, world, "sleep 0.5; echo done", 600);
	}
	t_expect_status(&run, AGENTD_STATUS_OK);
	t_expect_out(&run, AGENTD_STDOUT, "done\n");
	t_run_free(&run);
	event_free(event);
	t_world_free(world);
}
END_TEST

/* ---- the wall clock */

static int64_t jump_s;

/* These take the place of libc's, for the library and libevent too. */
int clock_gettime(clockid_t clock, struct timespec *ret)
{
	int r = (int)syscall(SYS_clock_gettime, clock, ret);

	if (r == 0 && clock == CLOCK_REALTIME)
		ret->tv_sec += jump_s;
	return r;
}

int gettimeofday(struct timeval *restrict ret, void *restrict zone)
{
	int r = (int)syscall(SYS_gettimeofday, ret, zone);

	if (r == 0)
		ret->tv_sec += jump_s;
	return r;
}

static void expect_jump_is_not_noticed(struct t_world *world, int64_t days)
{
	struct t_run run;

	t_run_init(&run, world);
	ck_assert_int_eq(t_run_start(&run, "echo a; exec sleep 60", 600), 0);
	while (run.total[1] == 0)
		t_world_loop(world, 1, NULL);
	jump_s = days * 24 * 3600;
	t_run_wait(&run);
	t_expect_status(&run, AGENTD_STATUS_TIMEOUT);
	ck_assert_uint_ge(t_run_wall_ms(&run), 600);
	ck_assert_uint_lt(t_run_wall_ms(&run), t_slack(3000));
	t_run_free(&run);
	exercise(world);
	jump_s = 0;
}

/* F23 */
START_TEST(wall_clock_jumps)
{
	struct t_world *world = t_world_new(NULL);

	expect_jump_is_not_noticed(world, 1);
	expect_jump_is_not_noticed(world, -1);
	t_world_free(world);
}
END_TEST

/* The one thing that it is for. */
START_TEST(credentials_end_by_the_wall_clock)
{
	struct t_world *world =
		t_world_new(&(struct t_world_opts){ .backend = "sandbox", .paths = true });
	uint64_t soon = ((uint64_t)time(NULL) + 3600) * 1000;
	struct t_run run;

	ck_assert_int_eq(agentd_context_set_credentials(world->ctx, "s3cret", soon, NULL), 0);
	for (int day = 0; day < 3; day++) {
		jump_s = day % 2 * 24 * 3600;
		t_run(&run, world, "true", 0);
		t_expect_cause(&run, jump_s ? AGENTD_CAUSE_POLICY : AGENTD_CAUSE_EXITED);
		t_run_free(&run);
	}
	t_world_free(world);
}
END_TEST

/* ---- too little of something */

static void set_nofile(rlim_t current)
{
	struct rlimit limit;

	ck_assert_int_eq(getrlimit(RLIMIT_NOFILE, &limit), 0);
	limit.rlim_cur = current;
	ck_assert_int_eq(setrlimit(RLIMIT_NOFILE, &limit), 0);
}

static rlim_t nofile(void)
{
	struct rlimit limit;

	ck_assert_int_eq(getrlimit(RLIMIT_NOFILE, &limit), 0);
	return limit.rlim_cur;
}

/* The limit is one on numbers: fill the gaps below the highest in use. Returns the
 * lowest limit that holds all of them. */
static rlim_t fill_gaps(struct t_fds *fillers)
{
	struct t_fds fds;
	int next;

	t_fds_take(&fds);
	next = fds.fds[fds.count - 1] + 1;
	t_fds_free(&fds);
	fillers->fds = calloc((size_t)next, sizeof(*fillers->fds));
	fillers->count = 0;
	for (;;) {
		int fd = open("/dev/null", O_RDONLY | O_CLOEXEC);

		ck_assert_int_ge(fd, 0);
		if (fd >= next) {
			close(fd);
			return (rlim_t)next;
		}
		fillers->fds[fillers->count++] = fd;
	}
}

static void free_gaps(struct t_fds *fillers)
{
	for (size_t i = 0; i < fillers->count; i++)
		close(fillers->fds[i]);
	t_fds_free(fillers);
}

/* F04: no descriptors for a runner, or too few. */
START_TEST(no_descriptors_for_a_runner)
{
	struct t_world *world = t_world_new_bare(NULL);
	rlim_t normal = nofile(), used;
	int worked = 0, failed = 0;
	struct t_fds fillers;

	world->base = event_base_new();
	world->owns_base = true;
	used = fill_gaps(&fillers);
	for (rlim_t more = 0; more <= 12; more++) {
		struct agentd_runner_opts opts = { .size = sizeof(opts),
						   .event_base = world->base,
						   .helper_path = world->helper };
		agentd_runner *runner = NULL;
		agentd_error *err = NULL;
		struct t_fds fds;
		int r;

		t_fds_take(&fds);
		set_nofile(used + more);
		r = agentd_runner_new(&opts, &runner, &err);
		set_nofile(normal);
		if (r < 0) {
			failed++;
			ck_assert_ptr_null(runner);
			ck_assert_int_eq(agentd_error_os_errno(err), EMFILE);
			t_expect_error(r, AGENTD_ERR_SYSTEM, err, NULL, NULL);
		} else {
			worked++;
			agentd_runner_unref(runner);
		}
		t_fds_expect_same(&fds, "with few descriptors");
		t_fds_free(&fds);
		t_world_expect_dead(world, 1000);
	}
	ck_assert_int_gt(failed, 0);
	ck_assert_int_gt(worked, 0);
	free_gaps(&fillers);
	t_world_start(world);
	exercise(world);
	t_world_free(world);
}
END_TEST

START_TEST(no_descriptors_for_a_command)
{
	struct agentd_exec_opts opts = { .size = sizeof(opts), .flags = AGENTD_EXEC_STDIN_OPEN };
	struct t_world *world = t_world_new(NULL);
	rlim_t normal = nofile(), used;
	struct t_run run;
	int failed = 0, worked = 0;
	struct t_fds fillers;

	exercise(world);
	used = fill_gaps(&fillers);
	for (rlim_t more = 0; more <= 12; more++) {
		t_run_init(&run, world);
		run.exec_opts = &opts;
		set_nofile(used + more);
		ck_assert_int_eq(t_run_start(&run, "echo fine", 5000), 0);
		ck_assert(t_world_loop(world, t_slack(10000), &run.finished));
		set_nofile(normal);
		if (agentd_result_status(run.result) == AGENTD_STATUS_OK) {
			worked++;
			t_expect_out(&run, AGENTD_STDOUT, "fine\n");
		} else {
			failed++;
			t_expect_status(&run, AGENTD_STATUS_ERROR);
			ck_assert_ptr_nonnull(agentd_result_error(run.result));
			ck_assert_int_eq(agentd_error_os_errno(agentd_result_error(run.result)),
					 EMFILE);
		}
		t_run_free(&run);
		t_world_expect_commands_dead(world, 1000);
	}
	ck_assert_int_gt(failed, 0);
	ck_assert_int_gt(worked, 0);
	free_gaps(&fillers);
	exercise(world);
	t_world_free(world);
}
END_TEST

static void become(uid_t uid)
{
	const gid_t gid = uid;

	ck_assert_int_eq(setgroups(0, NULL), 0);
	ck_assert_int_eq(setresgid(gid, gid, gid), 0);
	ck_assert_int_eq(setresuid(uid, uid, uid), 0);
	/* so that /proc/self is ours again */
	prctl(PR_SET_DUMPABLE, 1);
}

/* F06: fork says EAGAIN, for the helper first, then for a command. */
START_TEST(no_processes)
{
	struct rlimit limit, none = { 0, 0 };
	struct t_world *world;
	agentd_error *err = NULL;
	struct t_run run;
	int r;

	if (geteuid() == 0)
		become(SOMEBODY);
	world = t_world_new_bare(NULL);
	world->base = event_base_new();
	world->owns_base = true;
	ck_assert_int_eq(getrlimit(RLIMIT_NPROC, &limit), 0);
	none.rlim_max = limit.rlim_max;
	none.rlim_cur = 1;
	ck_assert_int_eq(setrlimit(RLIMIT_NPROC, &none), 0);
	{
		struct agentd_runner_opts opts = { .size = sizeof(opts),
						   .event_base = world->base,
						   .helper_path = world->helper };

		r = agentd_runner_new(&opts, &world->runner, &err);
		ck_assert_int_eq(agentd_error_os_errno(err), EAGAIN);
		t_expect_error(r, AGENTD_ERR_SYSTEM, err, NULL, NULL);
		ck_assert_ptr_null(world->runner);
	}
	ck_assert_int_eq(setrlimit(RLIMIT_NPROC, &limit), 0);
	t_world_start(world);
	exercise(world);
	/* the helper's own limit: it cannot fork any more */
	ck_assert_uint_ge(world->helper_count, 1);
	ck_assert_int_eq(setrlimit(RLIMIT_NPROC, &none), 0);
	t_run_init(&run, world);
	ck_assert_int_eq(t_run_start(&run, "echo fine", 5000), 0);
	t_run_wait(&run);
	ck_assert_int_eq(setrlimit(RLIMIT_NPROC, &limit), 0);
	/* the limit of the host is not the helper's: this one works */
	t_expect_status(&run, AGENTD_STATUS_OK);
	t_run_free(&run);
	t_world_free(world);

	/* with it from the start of the helper on: one more process than now, so the
	 * helper is there but no command */
	world = t_world_new_bare(NULL);
	world->base = event_base_new();
	world->owns_base = true;
	for (rlim_t most = 2; most <= 5; most++) {
		none.rlim_cur = most;
		ck_assert_int_eq(setrlimit(RLIMIT_NPROC, &none), 0);
		{
			struct agentd_runner_opts opts = { .size = sizeof(opts),
							   .event_base = world->base,
							   .helper_path = world->helper };
			agentd_policy *policy = t_policy_none();

			opts.policy = policy;
			err = NULL;
			r = agentd_runner_new(&opts, &world->runner, &err);
			agentd_policy_unref(policy);
		}
		ck_assert_int_eq(setrlimit(RLIMIT_NPROC, &limit), 0);
		if (r < 0) {
			t_expect_error(r, AGENTD_ERR_SYSTEM, err, NULL, NULL);
			continue;
		}
		world->ctx = t_world_context(world);
		t_run_init(&run, world);
		ck_assert_int_eq(t_run_start(&run, "exec echo fine", 5000), 0);
		t_run_wait(&run);
		if (agentd_result_status(run.result) != AGENTD_STATUS_OK) {
			t_expect_cause(&run, AGENTD_CAUSE_SPAWN);
			ck_assert_int_eq(agentd_error_os_errno(agentd_result_error(run.result)),
					 EAGAIN);
		}
		t_run_free(&run);
		agentd_context_unref(world->ctx);
		world->ctx = NULL;
		t_world_shutdown(world);
		t_world_expect_dead(world, 1000);
	}
	t_world_free(world);
}
END_TEST

/* ---- privileges dropped after the runner was made (root only) */

START_TEST(privileges_dropped)
{
	struct t_world *world;
	struct t_run run;
	char *path;

	if (geteuid() != 0)
		return; /* nothing to drop */
	world = t_world_new(NULL);
	t_run(&run, world, "id -u", 0);
	t_expect_out(&run, AGENTD_STDOUT, "0\n");
	t_run_free(&run);
	/* Who is left is to remove it. */
	ck_assert_int_eq(chown(world->dir, SOMEBODY, SOMEBODY), 0);
	become(SOMEBODY);
	t_run(&run, world, "id -u; id -g; id -G; id -ru", 0);
	t_expect_out(&run, AGENTD_STDOUT, "61234\n61234\n61234\n61234\n");
	t_run_free(&run);
	t_run(&run, world, "exec grep -E '^Cap(Eff|Prm|Inh|Amb)' /proc/self/status", 0);
	t_expect_out(&run, AGENTD_STDOUT,
		     "CapInh:\t0000000000000000\nCapPrm:\t0000000000000000\n"
		     "CapEff:\t0000000000000000\nCapAmb:\t0000000000000000\n");
	t_run_free(&run);
	/* what it makes is its own */
	t_run(&run, world, "echo > made; stat -c %u made; cat /etc/shadow; echo $?", 0);
	t_expect_out(&run, AGENTD_STDOUT, "61234\n1\n");
	t_run_free(&run);
	/* and it can still be stopped, all of it */
	exercise(world);
	path = t_format("%s/made", world->workdir);
	ck_assert_int_eq(unlink(path), 0);
	free(path);
	t_world_free(world);
}
END_TEST

int main(void)
{
	TCase *signals = t_case("signals", 60), *child = t_case("child", 30);
	TCase *places = t_case("places", 90), *threads = t_case("threads", 60);
	TCase *forks = t_case("forks", 60), *scarce = t_case("scarce", 60);
	TCase *clock = t_case("clock", 60);
	TCase *const cases[] = { signals, child, places, threads, forks, clock, scarce };

	tcase_add_test(signals, plain);
	tcase_add_test(signals, sigchld_handler);
	tcase_add_test(signals, sigchld_ignored);
	tcase_add_test(signals, sigchld_nocldwait);
	tcase_add_test(signals, waiting_thread);
	tcase_add_test(signals, signals_blocked);
	tcase_add_test(signals, interrupted);
	tcase_add_test(child, child_side);
	tcase_add_test(child, child_environment);
	tcase_add_test(places, stdio_closed);
	tcase_add_test(places, umask_of_everything);
	tcase_add_test(places, cwd_deleted);
	tcase_add_test(places, environment_empty);
	tcase_add_test(places, many_descriptors);
	tcase_add_test(places, much_memory);
	tcase_add_test(threads, busy_threads);
	tcase_add_test(threads, forking_threads);
	tcase_add_test(threads, pipes_do_not_leak);
	tcase_add_test(forks, forked_child_and_shutdown);
	tcase_add_test(forks, forked_child_and_unref);
	tcase_add_test(forks, forked_child_exits);
	tcase_add_test(forks, host_is_subreaper);
	tcase_add_test(forks, host_is_stopped);
	tcase_add_test(forks, busy_base);
	tcase_add_test(clock, wall_clock_jumps);
	tcase_add_test(clock, credentials_end_by_the_wall_clock);
	tcase_add_test(scarce, no_descriptors_for_a_runner);
	tcase_add_test(scarce, no_descriptors_for_a_command);
	tcase_add_test(scarce, no_processes);
	tcase_add_test(scarce, privileges_dropped);
	return t_main("untouched", cases, T_COUNT(cases));
}
