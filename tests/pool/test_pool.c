/* SPDX-License-Identifier: MIT */
/* Persistent sessions and their pool, with the backend that is named: the sandbox, machines,
 * and one written with agentd/backend.h alone. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "conformance.h"
#include "harness.h"

#define A "aaaaaaaa-0000-4000-8000-000000000000"
#define B "bbbbbbbb-0000-4000-8000-000000000000"
#define C "cccccccc-0000-4000-8000-000000000000"

static const char *backend;

static bool in_sandbox(void)
{
	return strcmp(backend, "sandbox") == 0;
}

static bool in_machine(void)
{
	return strcmp(backend, "microvm") == 0;
}

/* What is the pool's own and not the backend's is tried with a boot for each case only when
 * there is time. */
static bool all_cases(void)
{
	return !in_machine() || getenv("AGENTD_TEST_FULL");
}

struct place {
	struct t_world *world;
	agentd_pool *pool;
	char *root, *dest;
};

/* A pool of the world's runner; more: further members of its JSON. */
static agentd_pool *add_pool(struct t_world *world, const char *root, const char *more)
{
	agentd_error *err = NULL;
	agentd_pool *pool = NULL;
	/* Some boot twice, which takes a busy machine more than the half minute by default. */
	bool patient = in_machine() && !strstr(more, "acquire_timeout_ms");
	char *json =
		t_format("{\"enabled\": true, \"backend\": \"%s\", \"volume_root\": \"%s\"%s%s}",
			 backend, root, patient ? ", \"acquire_timeout_ms\": 120000" : "", more);

	ck_assert_msg(agentd_pool_new(world->runner, json, strlen(json), &pool, &err) == 0,
		      "%s: %s", json, agentd_error_message(err));
	free(json);
	ck_assert_int_eq(agentd_runner_set_pool(world->runner, pool, NULL), 0);
	return pool;
}

static struct t_world_opts world_opts(const struct agentd_limits *limits)
{
	return (struct t_world_opts){ .limits = limits,
				      .backend = in_machine() ? "microvm" : "sandbox",
				      .add_backend = in_sandbox() || in_machine() ?
							     NULL :
							     test_backend_add_attach };
}

static struct t_world *make_world(const struct t_world_opts *opts)
{
	struct t_world *world = t_world_new(opts);
	char *link = t_format("%s/agentd-backup", world->dir);

	ck_assert_int_eq(symlink(getenv("AGENTD_TEST_BACKUP"), link), 0);
	free(link);
	return world;
}

static struct t_world *new_world(const struct agentd_limits *limits)
{
	const struct t_world_opts opts = world_opts(limits);

	return make_world(&opts);
}

static struct place open_with(const struct t_world_opts *opts, const char *more)
{
	struct place place = { .world = make_world(opts) };

	place.root = t_format("%s/volumes", place.world->dir);
	place.dest = t_format("%s/backups", place.world->dir);
	place.pool = add_pool(place.world, place.root, more);
	return place;
}

static struct place open_limited(const char *more, const struct agentd_limits *limits)
{
	const struct t_world_opts opts = world_opts(limits);

	return open_with(&opts, more);
}

static struct place open_place(const char *more)
{
	return open_limited(more, NULL);
}

static void close_place(struct place *place)
{
	agentd_pool_unref(place->pool);
	t_world_free(place->world);
	free(place->root);
	free(place->dest);
}

static void prepare_in(struct t_run *run, struct place *place, const char *id)
{
	agentd_context *ctx = t_world_context(place->world);

	ck_assert_int_eq(agentd_context_set_backend(ctx, NULL, NULL), 0);
	ck_assert_int_eq(agentd_context_set_session(ctx, id, NULL, NULL, NULL), 0);
	t_run_init(run, place->world);
	run->ctx = ctx;
}

static void start_in(struct t_run *run, struct place *place, const char *id, const char *command,
		     uint64_t timeout_ms)
{
	prepare_in(run, place, id);
	ck_assert_int_eq(t_run_start(run, command, timeout_ms), 0);
}

static void wait_started(struct t_run *run)
{
	ck_assert_msg(t_world_loop(run->world, t_slack(20000), &run->started), "%s",
		      t_run_story(run));
}

static void end_of(struct t_run *run)
{
	agentd_context *ctx = run->ctx;

	t_run_free(run);
	agentd_context_unref(ctx);
}

static void expect_session(const struct t_run *run, bool wanted)
{
	int32_t state = 99;

	t_run_layer(run, "session", &state);
	ck_assert_msg(state == (wanted ? AGENTD_LAYER_ENFORCED : AGENTD_LAYER_ABSENT),
		      "session %d: %s", state, t_run_story(run));
}

static void run_in(struct t_run *run, struct place *place, const char *id, const char *command)
{
	start_in(run, place, id, command, 20000);
	t_run_wait(run);
}

/* It runs in the session, ends well and says this. */
static void expect(struct place *place, const char *id, const char *command, const char *text)
{
	struct t_run run;

	run_in(&run, place, id, command);
	t_expect_status(&run, AGENTD_STATUS_OK);
	t_expect_out(&run, AGENTD_STDOUT, text);
	expect_session(&run, true);
	end_of(&run);
}

struct ending {
	int done;
	char *error;
};

static void on_done(agentd_pool *pool, const agentd_error *err, void *userdata)
{
	struct ending *ending = userdata;

	ck_assert_ptr_nonnull(pool);
	ending->done++;
	ending->error = err ? strdup(agentd_error_message(err)) : NULL;
}

static void stop(struct place *place, const char *id)
{
	struct ending ending = { 0 };

	ck_assert_int_eq(agentd_pool_stop(place->pool, id, on_done, &ending), 0);
	ck_assert(t_world_loop(place->world, t_slack(10000), &ending.done));
	ck_assert_msg(!ending.error, "%s", ending.error);
	ck_assert_int_eq(ending.done, 1);
}

static char *maintain(struct place *place)
{
	struct ending ending = { 0 };

	ck_assert_int_eq(agentd_pool_maintain(place->pool, on_done, &ending), 0);
	ck_assert(t_world_loop(place->world, t_slack(20000), &ending.done));
	return ending.error;
}

static bool pool_says(const struct place *place, const char *text)
{
	char *json = NULL;
	bool says;

	ck_assert_int_eq(agentd_pool_to_json(place->pool, &json, NULL, NULL), 0);
	says = strstr(json, text);
	agentd_free(json);
	return says;
}

static bool exists(const char *dir, const char *name)
{
	char *path = t_format("%s/%s", dir, name);
	struct stat st;
	bool is = lstat(path, &st) == 0;

	free(path);
	return is;
}

/* The first in dir whose name ends so, or NULL. */
static char *find_file(const char *dir, const char *end)
{
	DIR *list = opendir(dir);
	struct dirent *entry;
	char *found = NULL;

	while (list && !found && (entry = readdir(list))) {
		size_t len = strlen(entry->d_name);

		if (len >= strlen(end) && strcmp(entry->d_name + len - strlen(end), end) == 0)
			found = t_format("%s/%s", dir, entry->d_name);
	}
	if (list)
		closedir(list);
	return found;
}

/* Make it look unused for so long. */
static void age(const struct place *place, const char *id, time_t seconds)
{
	char *path = t_format("%s/%s/lock", place->root, id);
	struct timespec times[2];

	clock_gettime(CLOCK_REALTIME, &times[0]);
	times[0].tv_sec -= seconds;
	times[1] = times[0];
	ck_assert_int_eq(utimensat(AT_FDCWD, path, times, 0), 0);
	free(path);
}

/* ---- sessions */

START_TEST(files_stay)
{
	struct place place = open_place(", \"env\": {\"FOO\": \"of the pool\"}");
	struct t_run run;

	expect(&place, A, "echo 'hello vm' >state.txt; echo \"$FOO\"", "of the pool\n");
	expect(&place, A, "cat state.txt", "hello vm\n");
	expect(&place, B, "test ! -e state.txt && echo other", "other\n");
	stop(&place, A);
	expect(&place, A, "cat state.txt", "hello vm\n");
	/* Without a session the workdir is what it was. */
	start_in(&run, &place, NULL, "pwd", 20000);
	t_run_wait(&run);
	t_expect_status(&run, AGENTD_STATUS_OK);
	ck_assert_uint_eq(run.out_len[AGENTD_STDOUT], strlen(place.world->workdir) + 1);
	end_of(&run);
	close_place(&place);
}
END_TEST

/* Before the command has its session. */
START_TEST(stdin_closed_while_it_waits)
{
	struct place place = open_place("");
	struct agentd_exec_opts opts = { .size = sizeof(opts), .flags = AGENTD_EXEC_STDIN_OPEN };
	struct t_run run;

	expect(&place, B, "echo the backend has been probed", "the backend has been probed\n");
	prepare_in(&run, &place, A);
	run.exec_opts = &opts;
	ck_assert_int_eq(t_run_start(&run, "cat; echo end", 30000), 0);
	/* It has begun, and its session has not. */
	while (run.logs.count == 0)
		event_base_loop(place.world->base, EVLOOP_ONCE);
	ck_assert_int_eq(run.started, 0);
	ck_assert_int_eq(agentd_exec_close_stdin(run.exec), 0);
	t_run_wait(&run);
	t_expect_status(&run, AGENTD_STATUS_OK);
	t_expect_out(&run, AGENTD_STDOUT, "end\n");
	end_of(&run);
	close_place(&place);
}
END_TEST

/* The root of the pool may be named by way of a link, and may be missing. */
START_TEST(root_behind_a_link)
{
	struct place place = open_place("");
	char *real = t_format("%s/real", place.world->dir);
	char *link = t_format("%s/link", place.world->dir);
	char *root = t_format("%s/not/there/yet", link);
	char *file = t_format("%s/not/there/yet/" A "/volume", real);

	ck_assert_int_eq(mkdir(real, 0755), 0);
	ck_assert_int_eq(symlink("real", link), 0);
	agentd_pool_unref(place.pool);
	place.pool = add_pool(place.world, root, "");
	expect(&place, A, "echo kept >file; cat file", "kept\n");
	stop(&place, A);
	ck_assert(access(file, F_OK) == 0);
	expect(&place, A, "cat file", "kept\n");
	free(real);
	free(link);
	free(root);
	free(file);
	close_place(&place);
}
END_TEST

/* The shell's own state does not; what was left in the background does, until the stop. */
START_TEST(background_lives_until_the_stop)
{
	struct place place = open_place("");

	expect(&place, A, "X=1; sleep 1000 >/dev/null 2>&1 & echo $! >pid", "");
	expect(&place, A, "kill -0 $(cat pid) && echo \"alive${X}\"", "alive\n");
	stop(&place, "AAAAAAAA-0000-4000-8000-000000000000");
	t_world_expect_commands_dead(place.world, 2000);
	ck_assert(pool_says(&place, "\"state\":\"stopped\""));
	close_place(&place);
}
END_TEST

/* A timeout ends all of its command, and nothing of an earlier one. */
START_TEST(timeout_ends_the_command_only)
{
	struct place place = open_place("");
	struct t_run run;

	expect(&place, A, "sleep 1000 >/dev/null 2>&1 & echo $! >old", "");
	start_in(&run, &place, A,
		 "sleep 1001 & echo $! >new; setsid sleep 1002 & echo begun; sleep 1003",
		 t_slack(in_machine() ? 4000 : 400));
	t_run_wait(&run);
	t_expect_status(&run, AGENTD_STATUS_TIMEOUT);
	t_expect_out(&run, AGENTD_STDOUT, "begun\n");
	expect_session(&run, true);
	end_of(&run);
	expect(&place, A, "kill -0 $(cat old) && echo old", "old\n");
	expect(&place, A, "kill -0 $(cat new) 2>/dev/null || echo gone", "gone\n");
	close_place(&place);
}
END_TEST

struct limited {
	struct agentd_limits limits;
	const char *command, *limit, *layer;
};

/* A command's limits hold in a session as elsewhere, and are its own end at most. */
START_TEST(limits_of_a_command)
{
	const struct limited cases[] = {
		{ { .size = sizeof(struct agentd_limits), .mem_bytes = 64 << 20 },
		  "head -c 200000000 /dev/zero | tail | wc -c",
		  "mem_bytes",
		  "memory" },
		{ { .size = sizeof(struct agentd_limits), .pids_max = 8 },
		  "for i in $(seq 20); do sleep 0.1 & done 2>/dev/null; wait",
		  "pids_max",
		  "pids" },
		{ { .size = sizeof(struct agentd_limits), .io_bytes = 5 << 20 },
		  "while dd if=/dev/zero of=big bs=1M count=20 conv=fsync; do :; done",
		  "io_bytes",
		  "io" },
	};
	struct place place;

	if (!in_sandbox() && !in_machine())
		return;
	place = open_place("");
	for (size_t i = 0; i < T_COUNT(cases); i++) {
		struct agentd_exec_opts opts = { .size = sizeof(opts), .limits = &cases[i].limits };
		struct t_run run;
		int32_t state = 99;

		prepare_in(&run, &place, A);
		run.exec_opts = &opts;
		ck_assert_int_eq(t_run_start(&run, cases[i].command, 20000), 0);
		t_run_wait(&run);
		t_run_layer(&run, cases[i].layer, &state);
		/* Without a control group a process hits its own before the tree's is seen. */
		ck_assert_msg(state == AGENTD_LAYER_DEGRADED ||
				      strcmp(agentd_result_limit(run.result), cases[i].limit) == 0,
			      "%s wanted: %s", cases[i].limit, t_run_story(&run));
		expect_session(&run, true);
		end_of(&run);
		/* In a sandbox those on memory and processes are the session's. */
		stop(&place, A);
		expect(&place, A, "rm -f big; echo still", "still\n");
		stop(&place, A);
	}
	close_place(&place);
}
END_TEST

START_TEST(exit_codes_and_signals)
{
	struct place place = open_place("");
	struct t_run run;

	run_in(&run, &place, A, "exit 42");
	t_expect_exit(&run, 42);
	end_of(&run);
	run_in(&run, &place, A, "kill -KILL $$");
	t_expect_cause(&run, AGENTD_CAUSE_SIGNALED);
	ck_assert_int_eq(agentd_result_signal(run.result), 9);
	end_of(&run);
	expect(&place, A, "echo still", "still\n");
	close_place(&place);
}
END_TEST

/* Sandbox only: /tmp lives as long as the session, and what confines it does not change. */
START_TEST(private_files_and_fixed_policy)
{
	struct place place = open_place("");
	agentd_policy *policy = NULL;
	agentd_context *ctx;
	struct t_run run;

	if (!in_sandbox())
		return;
	expect(&place, A, "echo kept >/tmp/note; ipcmk -Q >/dev/null 2>&1; echo ok", "ok\n");
	expect(&place, A, "cat /tmp/note", "kept\n");
	stop(&place, A);
	expect(&place, A, "test ! -e /tmp/note && echo new", "new\n");
	ctx = t_world_context(place.world);
	ck_assert_int_eq(agentd_policy_new(&policy, NULL), 0);
	ck_assert_int_eq(agentd_policy_allow_path(policy, "/usr",
						  AGENTD_ACCESS_READ | AGENTD_ACCESS_EXEC, NULL),
			 0);
	ck_assert_int_eq(agentd_policy_deny_path(policy, "/usr/share", NULL), 0);
	ck_assert_int_eq(agentd_context_set_backend(ctx, NULL, NULL), 0);
	ck_assert_int_eq(agentd_context_set_policy(ctx, policy, NULL), 0);
	ck_assert_int_eq(agentd_context_set_session(ctx, A, NULL, NULL, NULL), 0);
	t_run_init(&run, place.world);
	run.ctx = ctx;
	if (t_run_start(&run, "echo no", 20000) == 0) {
		t_run_wait(&run);
		t_expect_status(&run, AGENTD_STATUS_ERROR);
		ck_assert_int_eq(agentd_error_code(agentd_result_error(run.result)),
				 AGENTD_ERR_STATE);
		ck_assert_uint_eq(run.out_len[AGENTD_STDOUT], 0);
		t_run_free(&run);
	}
	agentd_context_unref(ctx);
	agentd_policy_unref(policy);
	/* Whoever may: what is here cannot be seen there. */
	expect(&place, A, "ls /etc/shadow >/dev/null 2>&1 || echo none", "none\n");
	close_place(&place);
}
END_TEST

/* Each command's own limits hold, and a token is there for its command only. */
START_TEST(limits_and_tokens)
{
	struct place place = open_place("");
	struct agentd_limits limits = { .size = sizeof(limits), .cpu_time_ms = 300 };
	const struct agentd_exec_opts opts = { .size = sizeof(opts), .limits = &limits };
	static const char *const no_shell[] = { "/nonexistent", NULL };
	agentd_context *ctx = t_world_context(place.world);
	struct t_run run;

	ck_assert_int_eq(agentd_context_set_backend(ctx, NULL, NULL), 0);
	ck_assert_int_eq(agentd_context_set_session(ctx, A, NULL, NULL, NULL), 0);
	t_run_init(&run, place.world);
	run.ctx = ctx;
	run.exec_opts = &opts;
	ck_assert_int_eq(t_run_start(&run, "while :; do :; done", 20000), 0);
	t_run_wait(&run);
	t_expect_cause(&run, AGENTD_CAUSE_CPU_TIME);
	t_run_free(&run);
	for (int i = 0; i < 2; i++) {
		ck_assert_int_eq(agentd_context_set_credentials(ctx, i ? "second" : "first", 0,
								NULL),
				 0);
		t_run_init(&run, place.world);
		run.ctx = ctx;
		ck_assert_int_eq(t_run_start(&run, "cat $AGENTD_TOKEN_FILE", 20000), 0);
		t_run_wait(&run);
		t_expect_out(&run, AGENTD_STDOUT, i ? "second" : "first");
		t_run_free(&run);
	}
	/* Also if the command could not be executed. */
	ck_assert_int_eq(agentd_context_set_shell(ctx, no_shell, NULL), 0);
	t_run_init(&run, place.world);
	run.ctx = ctx;
	ck_assert_int_eq(t_run_start(&run, "true", 20000), 0);
	t_run_wait(&run);
	t_expect_cause(&run, AGENTD_CAUSE_SPAWN);
	t_run_free(&run);
	agentd_context_unref(ctx);
	/* One that has no token finds none. */
	expect(&place, A, "cat /run/credentials/token 2>/dev/null; echo none", "none\n");
	close_place(&place);
}
END_TEST

/* Whoever waits for the next command does not count. */
START_TEST(processes_of_a_session)
{
	static const char *const commands[] = {
		"for i in 1 2 3 4 5 6 7 8 9; do sleep 1 & done; wait; echo all",
		"for i in 1 2 3 4 5 6 7 8 9 10 11 12; do sleep 1 & done 2>/dev/null; wait; echo all",
	};
	struct agentd_limits limits = { .size = sizeof(limits), .pids_max = 10 };
	struct place place = open_limited("", &limits);

	for (int more = 0; more < 2; more++) {
		struct t_run run;

		start_in(&run, &place, A, commands[more], 20000);
		t_run_wait(&run);
		ck_assert_msg(strcmp(agentd_result_limit(run.result), more ? "pids_max" : "") == 0,
			      "%s", t_run_story(&run));
		if (!more)
			t_expect_out(&run, AGENTD_STDOUT, "all\n");
		end_of(&run);
		/* By now the next one waits. */
		t_world_loop(place.world, t_slack(200), NULL);
	}
	close_place(&place);
}
END_TEST

/* What must not appear is moved aside when its command is over, not when the session is. */
START_TEST(protected_names)
{
	struct place place = open_place("");
	struct t_run run;

	expect(&place, A, "mkdir -p .git/hooks; echo ok", "ok\n");
	stop(&place, A);
	run_in(&run, &place, A, "echo evil >.git/hooks/pre-commit; echo done");
	t_expect_out(&run, AGENTD_STDOUT, "done\n");
	ck_assert_msg(agentd_result_status(run.result) == AGENTD_STATUS_OK ||
			      run.out_len[AGENTD_STDERR] > 0,
		      "%s", t_run_story(&run));
	end_of(&run);
	expect(&place, A, "test ! -e .git/hooks/pre-commit && echo none", "none\n");
	close_place(&place);
}
END_TEST

START_TEST(no_options)
{
	struct place place = open_place(", \"fallback\": false, \"vm\": {\"volume_bytes\": 1}");
	struct t_run run;

	run_in(&run, &place, A, "echo no");
	t_expect_status(&run, AGENTD_STATUS_DENIED);
	ck_assert_msg(strstr(agentd_error_message(agentd_result_error(run.result)), "volume_bytes"),
		      "%s", t_run_story(&run));
	end_of(&run);
	close_place(&place);
	place = open_place(", \"vm\": {}");
	expect(&place, A, "echo yes", "yes\n");
	close_place(&place);
}
END_TEST

/* What is left in the background sets the limits of all it sees: not those of the next command. */
START_TEST(limits_are_ones_own)
{
	static const char busy[] =
		"sh -c 'while :; do for p in /proc/[0-9]*; do p=${p#/proc/}; test $p = $$ ||"
		" { prlimit --pid $p >>seen && prlimit --pid $p --fsize=0:0; }; done; sleep 0.05;"
		" done' >/dev/null 2>&1 & echo begun";
	struct place place = open_place("");

	expect(&place, A, busy, "begun\n");
	for (int i = 0; i < 3; i++) {
		t_world_loop(place.world, t_slack(200), NULL);
		expect(&place, A, "sleep 0.3; echo written >file; cat file", "written\n");
	}
	expect(&place, A, "test -s seen && echo looked", "looked\n");
	close_place(&place);
}
END_TEST

/* The process that waits to become the next command is killed, but not its supervisor: that
 * starts the command nevertheless. It is the child of a child of pid 1, and not of ours. */
START_TEST(waiting_process_is_killed)
{
	static const char kills[] =
		"sleep 0.3; count=0\n"
		"for stat in /proc/[0-9]*/stat; do\n"
		"  read -r pid name state parent rest <$stat || continue\n"
		"  [ $parent -gt 1 ] && [ $parent != $PPID ] && [ $parent != $$ ] || continue\n"
		"  read -r pid2 name2 state2 grandparent rest </proc/$parent/stat || continue\n"
		"  [ $grandparent = 1 ] && kill -KILL $pid && count=$((count + 1))\n"
		"done\n"
		"echo killed $count >file; cat file";
	struct place place = open_place("");

	expect(&place, A, kills, "killed 1\n");
	t_world_loop(place.world, t_slack(100), NULL);
	expect(&place, A, "cat file", "killed 1\n");
	expect(&place, A, "cat file; rm file", "killed 1\n");
	close_place(&place);
}
END_TEST

/* A command that ends its own supervisor ends the session, and nothing is left of it. */
START_TEST(supervisor_is_killed)
{
	struct place place = open_place("");
	struct t_run run;

	if (!in_sandbox())
		return;
	expect(&place, A, "echo kept >file", "");
	run_in(&run, &place, A, "sleep 1000 & sleep 0.3; kill -KILL $PPID; sleep 1000");
	t_expect_status(&run, AGENTD_STATUS_ERROR);
	t_expect_cause(&run, AGENTD_CAUSE_BACKEND_LOST);
	end_of(&run);
	t_world_expect_commands_dead(place.world, 3000);
	expect(&place, A, "cat file", "kept\n");
	close_place(&place);
}
END_TEST

/* While the helper kills what a dead supervisor of another command has left behind. */
START_TEST(supervisors_are_killed_together)
{
	struct place place = open_place("");
	char *command = t_format("for i in 1 2 3 4 5 6 7 8; do sleep 1000 & done\n"
				 "until test -e %s/" A "/volume/ready; do :; done\n"
				 "echo >%s/" A "/volume/go; kill -KILL $PPID; sleep 1000",
				 place.root, place.root);
	struct t_run run, on_host;

	if (!in_sandbox())
		return;
	t_run_init(&on_host, place.world);
	on_host.ctx = t_world_context(place.world);
	ck_assert_int_eq(agentd_context_set_backend(on_host.ctx, "host", NULL), 0);
	ck_assert_int_eq(t_run_start(&on_host, command, 20000), 0);
	start_in(&run, &place, A,
		 "i=0; while [ $i -lt 150 ]; do sleep 1000 & i=$((i + 1)); done\n"
		 "echo >ready; until test -e go; do :; done; kill -KILL $PPID; sleep 1000",
		 20000);
	t_run_wait(&run);
	t_run_wait(&on_host);
	t_expect_cause(&run, AGENTD_CAUSE_BACKEND_LOST);
	t_expect_cause(&on_host, AGENTD_CAUSE_BACKEND_LOST);
	end_of(&run);
	end_of(&on_host);
	t_world_expect_commands_dead(place.world, 3000);
	expect(&place, A, "rm go ready; ls", "");
	free(command);
	close_place(&place);
}
END_TEST

/* What the host has replaced is protected for the next command as for the first. */
START_TEST(protected_name_is_replaced)
{
	static const char tries[] = "echo mine >>$HOME/.bashrc; echo free >$HOME/free; "
				    "cat $HOME/.bashrc $HOME/free";
	struct place place = open_place("");
	char *name = t_format("%s/.bashrc", place.world->home);
	char *other = t_format("%s/.bashrc.new", place.world->home);
	struct t_run run;

	if (!in_sandbox())
		return;
	t_write_file(name, "first\n");
	expect(&place, A,
	       "sleep 1000 & echo $! >pid; grep -c . /proc/self/mountinfo >mounts; echo ok",
	       "ok\n");
	expect(&place, A, tries, "first\nfree\n");
	for (int i = 0; i < 5; i++) {
		t_write_file(other, i % 2 ? "second\n" : "third\n");
		ck_assert_int_eq(rename(other, name), 0);
		/* With the next supervisor there already, and not. */
		if (i > 0)
			t_world_loop(place.world, t_slack(100), NULL);
		expect(&place, A, tries, i % 2 ? "second\nfree\n" : "third\nfree\n");
	}
	/* Nothing piles up, and what lives on in the background does. */
	expect(&place, A,
	       "test $(grep -c . /proc/self/mountinfo) = $(cat mounts) && kill -0 $(cat pid) && echo ok",
	       "ok\n");
	ck_assert_int_eq(unlink(name), 0);
	run_in(&run, &place, A, "echo mine >$HOME/.bashrc");
	t_expect_status(&run, AGENTD_STATUS_OK);
	ck_assert_msg(strstr(t_run_story(&run), "\"denied_count\":1"), "%s", t_run_story(&run));
	end_of(&run);
	ck_assert(!exists(place.world->home, ".bashrc"));
	free(name);
	free(other);
	close_place(&place);
}
END_TEST

static void expect_hidden(struct place *place, agentd_context *ctx, const char *text)
{
	struct t_run run;

	t_run_init(&run, place->world);
	run.ctx = ctx;
	ck_assert_int_eq(t_run_start(&run, "cat $HOME/secret/key $HOME/note", 20000), 0);
	t_run_wait(&run);
	t_expect_out(&run, AGENTD_STDOUT, text);
	expect_session(&run, true);
	t_run_free(&run);
}

/* What the host makes, or makes anew, where a denied path is is hidden from the next command. */
START_TEST(denied_path_is_replaced)
{
	const uint32_t all = AGENTD_ACCESS_READ | AGENTD_ACCESS_WRITE | AGENTD_ACCESS_EXEC;
	struct place place = open_place("");
	char *secret = t_format("%s/secret", place.world->home);
	char *key = t_format("%s/key", secret), *note = t_format("%s/note", place.world->home);
	agentd_context *ctx = t_world_context(place.world);
	agentd_policy *policy = t_policy_none();

	if (!in_sandbox())
		return;
	ck_assert_int_eq(agentd_policy_allow_path(policy, "/usr",
						  AGENTD_ACCESS_READ | AGENTD_ACCESS_EXEC, NULL),
			 0);
	ck_assert_int_eq(agentd_policy_allow_path(policy, place.world->home, all, NULL), 0);
	ck_assert_int_eq(agentd_policy_deny_path(policy, secret, NULL), 0);
	ck_assert_int_eq(agentd_context_set_backend(ctx, NULL, NULL), 0);
	ck_assert_int_eq(agentd_context_set_policy(ctx, policy, NULL), 0);
	ck_assert_int_eq(agentd_context_set_session(ctx, A, NULL, NULL, NULL), 0);
	t_write_file(note, "note\n");
	expect_hidden(&place, ctx, "note\n");
	for (int i = 0; i < 3; i++) {
		ck_assert_int_eq(mkdir(secret, 0755), 0);
		t_write_file(key, "key\n");
		expect_hidden(&place, ctx, "note\n");
		ck_assert_int_eq(unlink(key), 0);
		ck_assert_int_eq(rmdir(secret), 0);
	}
	agentd_context_unref(ctx);
	agentd_policy_unref(policy);
	free(secret);
	free(key);
	free(note);
	close_place(&place);
}
END_TEST

/* ---- sessions that are gone */

static const char anew[] = "The session was gone before the command began; it is started anew";

/* A warning of it, for the command and the runner. */
static void expect_anew(const struct place *place, const struct t_run *run, bool wanted)
{
	const struct t_log *log = t_logs_find(&run->logs, 0, anew);

	ck_assert_msg(t_logs_count(&run->logs, anew) == wanted, "%s", t_run_story(run));
	if (!wanted)
		return;
	ck_assert_int_eq(log->level, AGENTD_LOG_WARN);
	ck_assert_str_eq(t_log_field(log, "session_id"), A);
	ck_assert_uint_gt(t_logs_count(&place->world->logs, anew), 0);
}

/* As the host sees it: the only one of the helper's children with this number of its own. */
static pid_t first_of_session(const struct place *place)
{
	pid_t pids[8], found = 0;
	size_t count = t_children(t_world_helper(place->world), pids, T_COUNT(pids));

	ck_assert_uint_le(count, T_COUNT(pids));
	for (size_t i = 0; i < count; i++) {
		char *path = t_format("/proc/%d/status", (int)pids[i]);
		char *status = t_read_file(path, NULL);
		const char *numbers = status ? strstr(status, "\nNSpid:") : NULL;
		const char *end = numbers ? strchr(numbers + 1, '\n') : NULL;

		if (end && strncmp(end - 2, "\t1", 2) == 0) {
			ck_assert_int_eq(found, 0);
			found = pids[i];
		}
		free(status);
		free(path);
	}
	ck_assert_int_gt(found, 0);
	return found;
}

static void stop_tree(pid_t pid)
{
	pid_t pids[8];
	size_t count;

	ck_assert_int_eq(kill(pid, SIGSTOP), 0);
	count = t_children(pid, pids, T_COUNT(pids));
	for (size_t i = 0; i < count && i < T_COUNT(pids); i++)
		stop_tree(pids[i]);
}

/* The helper hears of the death and of the commands at once, in this order. */
START_TEST(dies_unnoticed)
{
	struct place place = open_place("");
	pid_t helper, first;
	struct t_run runs[2];

	expect(&place, A, "echo kept >file", "");
	helper = t_world_helper(place.world);
	first = first_of_session(&place);
	ck_assert_int_eq(kill(helper, SIGSTOP), 0);
	ck_assert_int_eq(kill(first, SIGKILL), 0);
	while (t_process_state(first) != 'Z')
		t_sleep_ms(1);
	start_in(&runs[0], &place, A, "echo 0 >>order", 20000);
	start_in(&runs[1], &place, A, "echo 1 >>order", 20000);
	t_world_loop(place.world, 100, &runs[0].finished);
	ck_assert_int_eq(runs[0].finished, 0);
	ck_assert_int_eq(kill(helper, SIGCONT), 0);
	for (size_t i = 0; i < T_COUNT(runs); i++) {
		t_run_wait(&runs[i]);
		t_expect_status(&runs[i], AGENTD_STATUS_OK);
		expect_session(&runs[i], true);
		expect_anew(&place, &runs[i], i == 0);
		end_of(&runs[i]);
	}
	/* None, if the command's failure is heard of first, for which it is stopped. */
	ck_assert_uint_le(t_logs_count(&place.world->logs, "A session died"), 1);
	/* It has not lost its place in the line. */
	expect(&place, A, "cat file order", "kept\n0\n1\n");
	close_place(&place);
}
END_TEST

/* What has been sent, but not been read by anybody, has not begun either. */
START_TEST(dies_with_a_request_unread)
{
	struct place place = open_place("");
	struct t_run run;
	pid_t first;

	expect(&place, A, "echo kept >file", "");
	/* By now the next one waits. */
	t_world_loop(place.world, t_slack(100), NULL);
	first = first_of_session(&place);
	stop_tree(first);
	start_in(&run, &place, A, "echo x >>marker; cat file marker", 20000);
	t_world_loop(place.world, 200, &run.started);
	ck_assert_int_eq(run.started, 0);
	ck_assert_int_eq(kill(first, SIGKILL), 0);
	t_run_wait(&run);
	t_expect_status(&run, AGENTD_STATUS_OK);
	t_expect_out(&run, AGENTD_STDOUT, "kept\nx\n");
	expect_session(&run, true);
	expect_anew(&place, &run, true);
	end_of(&run);
	close_place(&place);
}
END_TEST

/* What has begun is lost with its session, and does not run twice. */
START_TEST(dies_under_a_command)
{
	struct place place = open_place("");
	struct t_run run;
	pid_t first;

	expect(&place, A, "echo kept >file", "");
	first = first_of_session(&place);
	start_in(&run, &place, A, "echo x >>marker; echo begun; sleep 1000", 20000);
	while (run.out_len[AGENTD_STDOUT] == 0)
		t_world_loop(place.world, 1, NULL);
	ck_assert_int_eq(kill(first, SIGKILL), 0);
	t_run_wait(&run);
	t_expect_status(&run, AGENTD_STATUS_ERROR);
	t_expect_cause(&run, AGENTD_CAUSE_BACKEND_LOST);
	expect_anew(&place, &run, false);
	end_of(&run);
	expect(&place, A, "cat file marker", "kept\nx\n");
	close_place(&place);
}
END_TEST

/* Nor if nobody has told of its start: its process has read the request, and runs. */
START_TEST(dies_before_the_start_is_told)
{
	struct place place = open_place("");
	char *marker = t_format("%s/%s/volume/marker", place.root, A);
	pid_t first, supervisor;
	struct t_run run;
	struct stat st;

	expect(&place, A, "echo kept >file", "");
	first = first_of_session(&place);
	/* By now the next one waits, and so does its command's process. */
	t_world_loop(place.world, t_slack(100), NULL);
	ck_assert_uint_eq(t_children(first, &supervisor, 1), 1);
	ck_assert_int_eq(kill(supervisor, SIGSTOP), 0);
	start_in(&run, &place, A, "echo x >>marker; sleep 1000", 20000);
	/* The shell makes the file before it writes to it. */
	while (stat(marker, &st) < 0 || st.st_size == 0)
		t_world_loop(place.world, 1, NULL);
	ck_assert_int_eq(run.started, 0);
	ck_assert_int_eq(kill(first, SIGKILL), 0);
	t_run_wait(&run);
	t_expect_status(&run, AGENTD_STATUS_ERROR);
	expect_anew(&place, &run, false);
	end_of(&run);
	expect(&place, A, "sleep 0.1; cat file marker", "kept\nx\n");
	free(marker);
	close_place(&place);
}
END_TEST

/* Killed before the command or under it: that has run once, or not at all and says so. */
START_TEST(dies_at_any_moment)
{
	const unsigned int moments = t_is_small() ? 20 : 80;
	struct place place = open_place("");
	unsigned int well = 0;

	for (unsigned int moment = 0; moment < moments; moment++) {
		char *mark = t_format("echo %u >>marker; sleep 0.001", moment);
		char *count = t_format("grep -cx %u marker || true", moment);
		struct t_run run, look;
		uint64_t until;
		pid_t first;

		expect(&place, A, "echo x >>marker", "");
		t_world_loop(place.world, moment % 2, NULL);
		first = first_of_session(&place);
		if (moment % 4 < 2)
			ck_assert_int_eq(kill(first, SIGKILL), 0);
		start_in(&run, &place, A, mark, 20000);
		until = t_now() + moment * UINT64_C(40000);
		while (t_now() < until)
			event_base_loop(place.world->base, EVLOOP_NONBLOCK);
		if (moment % 4 >= 2)
			(void)kill(first, SIGKILL);
		t_run_wait(&run);
		/* Who looks is not to be the next to be killed. */
		while (t_process_state(first) && t_process_state(first) != 'Z')
			t_sleep_ms(1);
		run_in(&look, &place, A, count);
		t_expect_status(&look, AGENTD_STATUS_OK);
		if (agentd_result_status(run.result) == AGENTD_STATUS_OK ||
		    look.out[AGENTD_STDOUT][0] != '0')
			t_expect_out(&look, AGENTD_STDOUT, "1\n");
		well += agentd_result_status(run.result) == AGENTD_STATUS_OK;
		end_of(&look);
		end_of(&run);
		free(count);
		free(mark);
	}
	ck_assert_uint_gt(well, moments / 4);
	close_place(&place);
}
END_TEST

struct gone {
	struct test_gone gone;
	bool runs, anew;
	int cause;
};

/* What a backend of a third party says. */
START_TEST(says_it_is_gone)
{
	static const struct gone cases[] = {
		{ { 1, false, false, AGENTD_ERR_BACKEND }, true, true, AGENTD_CAUSE_EXITED },
		{ { 1, true, false, AGENTD_ERR_BACKEND }, true, true, AGENTD_CAUSE_EXITED },
		{ { 2, false, false, AGENTD_ERR_BACKEND }, false, true, AGENTD_CAUSE_SPAWN },
		{ { 2, true, false, AGENTD_ERR_BACKEND }, false, true, AGENTD_CAUSE_SPAWN },
		{ { 1, true, true, AGENTD_ERR_BACKEND }, false, false, AGENTD_CAUSE_BACKEND_LOST },
		{ { 1, false, false, AGENTD_ERR_SYSTEM }, false, false, AGENTD_CAUSE_SPAWN },
		{ { 1, true, false, AGENTD_ERR_SYSTEM }, false, false, AGENTD_CAUSE_SPAWN },
	};
	struct place place = open_place("");

	expect(&place, A, "echo 0 >marker", "");
	for (size_t i = 0; i < T_COUNT(cases); i++) {
		struct t_run run;

		test_gone = cases[i].gone;
		run_in(&run, &place, A, "echo x >>marker");
		t_expect_cause(&run, cases[i].cause);
		expect_anew(&place, &run, cases[i].anew);
		if (!cases[i].runs)
			ck_assert_int_eq(agentd_error_code(agentd_result_error(run.result)),
					 cases[i].gone.code);
		ck_assert_uint_eq(test_gone.times, 0);
		expect_session(&run, true);
		end_of(&run);
		expect(&place, A, "grep -c x marker; echo 0 >marker",
		       cases[i].runs ? "1\n" : "0\n");
	}
	close_place(&place);
}
END_TEST

static int32_t cancel_it(struct t_run *run, const agentd_log_record *record)
{
	if (strcmp(agentd_log_record_message(record), anew) == 0)
		ck_assert_int_eq(agentd_exec_cancel(run->exec), 0);
	return 0;
}

static int32_t refuse_it(struct t_run *run, const agentd_log_record *record)
{
	(void)run;
	return strcmp(agentd_log_record_message(record), anew) == 0 ? -1 : 0;
}

/* Whoever hears of it may stop the command: then it does not begin. */
START_TEST(gone_and_stopped)
{
	struct place place = open_place("");

	expect(&place, A, "echo 0 >marker", "");
	for (int i = 0; i < 4; i++) {
		struct t_run run;

		test_gone = (struct test_gone){ 1, i / 2, false, AGENTD_ERR_BACKEND };
		prepare_in(&run, &place, A);
		run.on_log = i % 2 ? refuse_it : cancel_it;
		ck_assert_int_eq(t_run_start(&run, "echo x >>marker", 20000), 0);
		t_run_wait(&run);
		t_expect_cause(&run, i % 2 ? AGENTD_CAUSE_SINK : AGENTD_CAUSE_CANCELED);
		end_of(&run);
		expect(&place, A, "grep -c x marker || true", "0\n");
	}
	close_place(&place);
}
END_TEST

/* ---- the pool */

START_TEST(first_come_first_served)
{
	struct place place = open_place("");
	struct t_run runs[6];

	for (size_t i = 0; i < T_COUNT(runs); i++) {
		char *command = t_format("echo %zu >>order; sleep 0.05", i);

		start_in(&runs[i], &place, A, command, 20000);
		free(command);
	}
	for (size_t i = 0; i < T_COUNT(runs); i++) {
		t_run_wait(&runs[i]);
		t_expect_status(&runs[i], AGENTD_STATUS_OK);
		expect_session(&runs[i], true);
		end_of(&runs[i]);
	}
	expect(&place, A, "cat order", "0\n1\n2\n3\n4\n5\n");
	close_place(&place);
}
END_TEST

START_TEST(ten_at_once)
{
	struct place place = open_place("");
	struct t_run runs[10];
	uint64_t begin = t_now();

	for (size_t i = 0; i < T_COUNT(runs); i++) {
		char *id = t_format("%08zu-0000-4000-8000-000000000000", i);
		char *command = t_format("echo %zu >me; sleep 0.3; cat me", i);

		start_in(&runs[i], &place, id, command, 20000);
		free(command);
		free(id);
	}
	for (size_t i = 0; i < T_COUNT(runs); i++) {
		char *text = t_format("%zu\n", i);

		t_run_wait(&runs[i]);
		t_expect_out(&runs[i], AGENTD_STDOUT, text);
		expect_session(&runs[i], true);
		end_of(&runs[i]);
		free(text);
	}
	/* Side by side, not in a row: a machine's time is that of its boot. */
	if (!in_machine())
		ck_assert_uint_lt(t_now() - begin, T_MS(t_slack(2500)));
	close_place(&place);
}
END_TEST

START_TEST(capacity)
{
	struct place place = open_place(", \"max_vms\": 1");
	struct t_run a, b;

	start_in(&a, &place, A, "echo begun; sleep 1", 20000);
	wait_started(&a);
	start_in(&b, &place, B, "echo elsewhere", 20000);
	t_run_wait(&b);
	expect_session(&b, false);
	t_expect_out(&b, AGENTD_STDOUT, "elsewhere\n");
	ck_assert_ptr_nonnull(
		strstr(t_run_layer(&b, "session", NULL), "VM pool is at capacity (1 sessions)"));
	ck_assert_uint_eq(t_logs_count(&b.logs, "Failed to acquire micro-VM; falling back to "
						"ephemeral sandbox"),
			  1);
	end_of(&b);
	t_run_wait(&a);
	end_of(&a);
	stop(&place, A);
	expect(&place, B, "echo here", "here\n");
	/* One that is only idle makes room. */
	expect(&place, A, "echo back", "back\n");
	close_place(&place);
}
END_TEST

START_TEST(acquire_timeout)
{
	/* Long enough for the session's own start on a busy machine. */
	struct place place = open_place(", \"acquire_timeout_ms\": 3000, \"fallback\": false");
	struct t_run a, b;
	char *done;

	start_in(&a, &place, A, "until [ -e done ]; do sleep 0.05; done", 60000);
	wait_started(&a);
	start_in(&b, &place, A, "echo never", 20000);
	t_run_wait(&b);
	t_expect_status(&b, AGENTD_STATUS_DENIED);
	t_expect_cause(&b, AGENTD_CAUSE_ISOLATION);
	ck_assert_str_eq(agentd_error_message(agentd_result_error(b.result)),
			 "the session cannot be had, and the pool allows nothing else: the "
			 "session " A " was not free within acquire_timeout_ms (3000): another "
			 "command has it");
	ck_assert_uint_eq(b.out_len[AGENTD_STDOUT], 0);
	end_of(&b);
	done = t_format("%s/%s/volume/done", place.root, A);
	t_write_file(done, "");
	free(done);
	t_run_wait(&a);
	t_expect_status(&a, AGENTD_STATUS_OK);
	end_of(&a);
	close_place(&place);
}
END_TEST

START_TEST(acquire_timeout_of_a_start)
{
	struct place place = open_place(", \"acquire_timeout_ms\": 500, \"fallback\": false, "
					"\"bootstrap_command\": \"sleep 1; echo made >made\"");
	struct t_run run;

	run_in(&run, &place, A, "cat made");
	t_expect_status(&run, AGENTD_STATUS_DENIED);
	ck_assert_ptr_nonnull(strstr(agentd_error_message(agentd_result_error(run.result)),
				     "(500): it is being prepared"));
	end_of(&run);
	/* Which goes on, for whoever comes next. */
	t_world_loop(place.world, t_slack(1500), NULL);
	expect(&place, A, "cat made", "made\n");
	close_place(&place);
}
END_TEST

/* Cancelled while it waits: it never runs, and the others go on. */
START_TEST(cancelled_while_waiting)
{
	struct place place = open_place("");
	struct t_run a, b;

	start_in(&a, &place, A, "sleep 0.5", 20000);
	start_in(&b, &place, A, "echo never >never", 20000);
	t_world_loop(place.world, 150, NULL);
	ck_assert_int_eq(agentd_exec_cancel(b.exec), 0);
	t_run_wait(&b);
	t_expect_cause(&b, AGENTD_CAUSE_CANCELED);
	end_of(&b);
	t_run_wait(&a);
	t_expect_status(&a, AGENTD_STATUS_OK);
	end_of(&a);
	expect(&place, A, "test ! -e never && echo free", "free\n");
	close_place(&place);
}
END_TEST

START_TEST(disabled)
{
	struct t_world *world = new_world(NULL);
	struct place place = { .world = world };
	static const char json[] = "{\"enabled\": false}";
	struct t_run run;

	ck_assert_int_eq(agentd_pool_new(world->runner, json, strlen(json), &place.pool, NULL), 0);
	ck_assert_int_eq(agentd_runner_set_pool(world->runner, place.pool, NULL), 0);
	run_in(&run, &place, A, "pwd");
	t_expect_status(&run, AGENTD_STATUS_OK);
	expect_session(&run, false);
	ck_assert_ptr_nonnull(strstr(t_run_layer(&run, "session", NULL), "VM pool is disabled"));
	ck_assert_str_eq(agentd_result_backend(run.result), "sandbox");
	end_of(&run);
	close_place(&place);
}
END_TEST

START_TEST(bootstrap)
{
	struct place place = open_place(
		", \"bootstrap_command\": \"echo once >>boot; head -c 300000 /dev/zero\"");
	struct place bad;
	struct t_run run;

	expect(&place, A, "cat boot", "once\n");
	stop(&place, A);
	expect(&place, A, "cat boot", "once\n");
	close_place(&place);
	bad = open_place(", \"bootstrap_command\": \"echo why >&2; echo x >>tries; exit 3\"");
	run_in(&run, &bad, A, "echo elsewhere");
	expect_session(&run, false);
	ck_assert_msg(strstr(t_run_layer(&run, "session", NULL), "Bootstrap command failed: why"),
		      "%s", t_run_story(&run));
	end_of(&run);
	/* Tried again, and the files are still there. */
	run_in(&run, &bad, A, "echo elsewhere");
	expect_session(&run, false);
	end_of(&run);
	/* A machine's files are in its disk. */
	if (!in_machine()) {
		char *path = t_format("%s/%s/volume/tries", bad.root, A);
		char *text = t_read_file(path, NULL);

		ck_assert_str_eq(text, "x\nx\n");
		free(text);
		free(path);
	}
	close_place(&bad);
}
END_TEST

/* A command that nobody knows the end of has not prepared anything. */
START_TEST(bootstrap_without_an_end)
{
	struct place place = open_place(", \"bootstrap_command\": \"echo once >>boot\"");
	struct t_run run;

	test_gone = (struct test_gone){ 1, true, true, 0 };
	run_in(&run, &place, A, "echo elsewhere");
	expect_session(&run, false);
	ck_assert_msg(strstr(t_run_layer(&run, "session", NULL),
			     "Bootstrap command failed: the backend lost it"),
		      "%s", t_run_story(&run));
	ck_assert_uint_eq(test_gone.times, 0);
	end_of(&run);
	expect(&place, A, "cat boot", "once\n");
	close_place(&place);
}
END_TEST

/* The one that is asked to make room does not end: another one is asked. */
START_TEST(stuck_session_is_passed_over)
{
	struct place place = open_place(", \"max_vms\": 2, \"fallback\": false");

	expect(&place, A, "echo a", "a\n");
	expect(&place, B, "echo b", "b\n");
	test_stuck = 1;
	expect(&place, C, "echo c", "c\n");
	ck_assert_uint_eq(test_stuck, 0);
	ck_assert_ptr_nonnull(t_logs_find(&place.world->logs, 0,
					  "A session does not end although it was killed"));
	close_place(&place);
}
END_TEST

/* A profile of nix is built once in a new volume; where there is no nix that is said. */
START_TEST(nix_profile)
{
	struct place place = open_place(", \"nix_profile\": \"/a/flake#shell\"");
	struct t_run run;
	char *bin, *more;

	if (system("command -v nix >/dev/null 2>&1") != 0) {
		expect(&place, A, "echo anyway", "anyway\n");
		ck_assert_ptr_nonnull(t_logs_find(&place.world->logs, 0,
						  "nix_profile is set and there is no nix"));
	}
	close_place(&place);
	/* Only there a program of ours can be seen. */
	if (in_sandbox() || in_machine())
		return;
	place = open_place("");
	bin = t_format("%s/nix", place.world->dir);
	t_write_file(bin, "#!/bin/sh\necho \"$@\" >>calls\n[ ! -e ../../fail ] || "
			  "{ echo why >&2; exit 3; }\n");
	ck_assert_int_eq(chmod(bin, 0755), 0);
	agentd_pool_unref(place.pool);
	ck_assert_int_eq(agentd_runner_set_pool(place.world->runner, NULL, NULL), 0);
	more = t_format(", \"nix_profile\": \"/a/flake#shell\", \"bootstrap_command\": "
			"\"echo bootstrap >>calls\", \"env\": {\"PATH\": \"%s:/usr/bin:/bin\"}",
			place.world->dir);
	place.pool = add_pool(place.world, place.root, more);
	expect(&place, A, "cat calls", "develop /a/flake#shell --command true\nbootstrap\n");
	stop(&place, A);
	expect(&place, A, "cat calls", "develop /a/flake#shell --command true\nbootstrap\n");
	free(more);
	more = t_format("%s/fail", place.root);
	t_write_file(more, "");
	run_in(&run, &place, B, "echo elsewhere");
	expect_session(&run, false);
	ck_assert_msg(strstr(t_run_layer(&run, "session", NULL), "nix develop failed: why"), "%s",
		      t_run_story(&run));
	end_of(&run);
	free(more);
	free(bin);
	close_place(&place);
}
END_TEST

START_TEST(locked_by_another)
{
	/* A machine's start is in it. */
	unsigned int wait_ms = in_machine() ? 10000 : 1000;
	char *config = t_format(", \"acquire_timeout_ms\": %u", wait_ms);
	struct place place = open_place(config);
	struct t_run run;
	char *path;
	uint64_t begin;
	int fd;

	expect(&place, A, "echo mine >file", "");
	stop(&place, A);
	path = t_format("%s/%s/lock", place.root, A);
	fd = open(path, O_RDWR | O_CLOEXEC);
	ck_assert_int_eq(flock(fd, LOCK_EX | LOCK_NB), 0);
	begin = t_now();
	run_in(&run, &place, A, "echo elsewhere");
	expect_session(&run, false);
	ck_assert_uint_ge(t_now() - begin, T_MS(wait_ms));
	ck_assert_ptr_nonnull(strstr(t_run_layer(&run, "session", NULL), "is open elsewhere"));
	end_of(&run);
	/* Who comes before it is free waits until it is. */
	start_in(&run, &place, A, "cat file", 20000);
	t_world_loop(place.world, 300, NULL);
	ck_assert_int_eq(run.started, 0);
	close(fd);
	t_run_wait(&run);
	t_expect_out(&run, AGENTD_STDOUT, "mine\n");
	expect_session(&run, true);
	end_of(&run);
	/* While it lives we hold it. */
	fd = open(path, O_RDWR | O_CLOEXEC);
	ck_assert_int_lt(flock(fd, LOCK_EX | LOCK_NB), 0);
	close(fd);
	free(path);
	free(config);
	close_place(&place);
}
END_TEST

/* In the place of libc's, also for the library. */
static bool no_locks;

int flock(int fd, int operation)
{
	if (!no_locks)
		return (int)syscall(SYS_flock, fd, operation);
	errno = ENOLCK;
	return -1;
}

/* As on a network's file system without them. */
START_TEST(no_lock_no_session)
{
	struct place place = open_place(", \"fallback\": false");
	struct t_run run;

	no_locks = true;
	run_in(&run, &place, A, "echo no");
	t_expect_status(&run, AGENTD_STATUS_DENIED);
	ck_assert_ptr_nonnull(strstr(agentd_error_message(agentd_result_error(run.result)),
				     "cannot be locked: No locks available"));
	end_of(&run);
	no_locks = false;
	expect(&place, A, "echo yes", "yes\n");
	close_place(&place);
}
END_TEST

/* The same: what is made, or there, is moved out of the way. */
static const char *moved_from, *moved_to;

int mkdir(const char *path, mode_t mode)
{
	int r = (int)syscall(SYS_mkdirat, AT_FDCWD, path, mode), error = errno;

	if (moved_from && strcmp(path, moved_from) == 0) {
		ck_assert_int_eq(rename(moved_from, moved_to), 0);
		moved_from = NULL;
	}
	errno = error;
	return r;
}

/* Another process prunes it as it begins: it begins anew. */
START_TEST(pruned_by_another)
{
	struct place place = open_place(", \"fallback\": false");
	char *from = t_format("%s/%s", place.root, A), *to = t_format("%s/.pruned-a", place.root);

	expect(&place, A, "echo old >file", "");
	stop(&place, A);
	moved_to = to;
	moved_from = from;
	expect(&place, A, "test -e file || echo new", "new\n");
	ck_assert_ptr_null(moved_from);
	free(from);
	free(to);
	close_place(&place);
}
END_TEST

/* ---- maintenance */

START_TEST(idle_is_stopped_busy_is_not)
{
	struct place place = open_place(", \"idle_shutdown_seconds\": 1, "
					"\"prune_after_seconds\": 1000");
	struct t_run run;
	struct stat st;
	char *lock;

	start_in(&run, &place, A, "sleep 2; echo end", 20000);
	wait_started(&run);
	t_world_loop(place.world, 1300, NULL);
	age(&place, A, 100000);
	ck_assert_ptr_null(maintain(&place));
	ck_assert(pool_says(&place, "\"state\":\"busy\""));
	/* Nor is it pruned if this host is killed now. */
	lock = t_format("%s/%s/lock", place.root, A);
	ck_assert_int_eq(stat(lock, &st), 0);
	ck_assert_int_lt(time(NULL) - st.st_mtime, 1000);
	free(lock);
	t_run_wait(&run);
	t_expect_out(&run, AGENTD_STDOUT, "end\n");
	end_of(&run);
	ck_assert_ptr_null(maintain(&place));
	ck_assert(pool_says(&place, "\"state\":\"idle\""));
	t_world_loop(place.world, 1300, NULL);
	ck_assert_ptr_null(maintain(&place));
	ck_assert(pool_says(&place, "\"state\":\"stopped\""));
	close_place(&place);
}
END_TEST

/* What does not fit into a tar header, and is not ASCII. */
#define LONG_NAME "$(yes ü | head -n 60 | tr -d '\\n')"

/* What an earlier process left is found, backed up with its links, and pruned. */
START_TEST(adopted_backed_up_and_pruned)
{
	struct place place = open_place("");
	char *more, *file, *command;

	expect(&place, A,
	       "echo data >file; ln file hard; ln -s /etc/passwd link; mkdir -p d/e; "
	       "truncate -s 1M hole; cd d; truncate -s 1M " LONG_NAME "; echo end >>" LONG_NAME
	       "; echo shut >shut; chmod 0 shut",
	       "");
	/* What a machine has not synced ends with it. */
	if (in_machine())
		stop(&place, A);
	agentd_pool_unref(place.pool);
	ck_assert_int_eq(agentd_runner_set_pool(place.world->runner, NULL, NULL), 0);
	more = t_format(", \"backup_after_seconds\": 5, \"backup_destination\": \"%s\", "
			"\"prune_after_seconds\": 50",
			place.dest);
	t_world_loop(place.world, 300, NULL);
	place.pool = add_pool(place.world, place.root, more);
	ck_assert(pool_says(&place, A));
	ck_assert_ptr_null(maintain(&place));
	ck_assert_ptr_null(find_file(place.dest, ".tar.zst"));
	age(&place, A, 10);
	ck_assert_ptr_null(maintain(&place));
	file = find_file(place.dest, ".tar.zst");
	ck_assert_ptr_nonnull(file);
	ck_assert_ptr_null(find_file(place.dest, ".part"));
	if (in_machine())
		command = t_format("cd '%s' && tar --zstd -xf '%s' && test $(stat -c %%s '%s') -lt "
				   "9000000 && e2fsck -fn volume/disk.ext4 >e2fsck.log 2>&1 && "
				   "debugfs -R 'cat file' volume/disk.ext4 2>&1 | grep -qx data && "
				   "debugfs -R 'stat link' volume/disk.ext4 2>&1 | "
				   "grep -q /etc/passwd",
				   place.world->dir, file, file);
	else
		/* One of the two names is a link to the other in there. */
		command = t_format("cd '%s' && tar --zstd -xf '%s' && "
				   "test $(readlink volume/link) = /etc/passwd && "
				   "grep -qx data volume/file && "
				   "test $(stat -c %%a%%s volume/d/shut) = 05 && "
				   "test \"$(tail -n 1 volume/d/" LONG_NAME ")\" = end",
				   place.world->dir, file);
	ck_assert_int_eq(system(command), 0);
	/* Not again while nothing has changed. */
	unlink(file);
	ck_assert_ptr_null(maintain(&place));
	ck_assert_ptr_null(find_file(place.dest, ".tar.zst"));
	age(&place, A, 100);
	ck_assert_ptr_null(maintain(&place));
	ck_assert(!exists(place.root, A));
	ck_assert_ptr_null(find_file(place.root, "0"));
	ck_assert(!pool_says(&place, A));
	free(command);
	free(file);
	free(more);
	close_place(&place);
}
END_TEST

/* Without a backup nothing is pruned that is to have one. */
START_TEST(failed_backup_blocks_pruning)
{
	struct place place;
	struct t_world *world = new_world(NULL);
	char *error, *more;

	place = (struct place){ .world = world,
				.root = t_format("%s/volumes", world->dir),
				.dest = t_format("%s/backups", world->dir) };
	t_write_file(place.dest, "in the way");
	more = t_format(", \"backup_after_seconds\": 1, \"backup_destination\": \"%s\", "
			"\"prune_after_seconds\": 1",
			place.dest);
	place.pool = add_pool(world, place.root, more);
	expect(&place, A, "echo precious >file", "");
	stop(&place, A);
	t_world_loop(world, 1100, NULL);
	age(&place, A, 100);
	error = maintain(&place);
	ck_assert_ptr_nonnull(error);
	ck_assert_ptr_nonnull(strstr(error, place.dest));
	free(error);
	ck_assert(exists(place.root, A));
	expect(&place, A, "cat file", "precious\n");
	stop(&place, A);
	unlink(place.dest);
	t_world_loop(world, 1100, NULL);
	age(&place, A, 100);
	ck_assert_ptr_null(maintain(&place));
	ck_assert(exists(place.root, A));
	ck_assert_ptr_null(maintain(&place));
	ck_assert(!exists(place.root, A));
	free(more);
	close_place(&place);
}
END_TEST

/* Backed up by a clock that was ahead, and changed since it was set right. */
START_TEST(clock_set_back)
{
	struct place place = { .world = new_world(NULL) };
	struct timespec ahead[2];
	char *more, *file, *mark;

	place.root = t_format("%s/volumes", place.world->dir);
	place.dest = t_format("%s/backups", place.world->dir);
	more = t_format(", \"backup_after_seconds\": 5, \"backup_destination\": \"%s\", "
			"\"prune_after_seconds\": 1",
			place.dest);
	place.pool = add_pool(place.world, place.root, more);
	expect(&place, A, "echo old >file", "");
	stop(&place, A);
	age(&place, A, 10);
	ck_assert_ptr_null(maintain(&place));
	file = find_file(place.dest, ".tar.zst");
	ck_assert_ptr_nonnull(file);
	unlink(file);
	free(file);
	mark = t_format("%s/%s/backup", place.root, A);
	clock_gettime(CLOCK_REALTIME, &ahead[0]);
	ahead[0].tv_sec += 1000;
	ahead[1] = ahead[0];
	ck_assert_int_eq(utimensat(AT_FDCWD, mark, ahead, 0), 0);
	expect(&place, A, "echo new >file", "");
	stop(&place, A);
	t_world_loop(place.world, 1100, NULL);
	age(&place, A, 100);
	ck_assert_ptr_null(maintain(&place));
	file = find_file(place.dest, ".tar.zst");
	ck_assert_ptr_nonnull(file);
	free(file);
	free(mark);
	free(more);
	close_place(&place);
}
END_TEST

/* For root by a mount in a namespace of the test's own. */
static void set_writable(const struct place *place, bool writable)
{
	char *lock = t_format("%s/%s/lock", place->root, A);

	if (geteuid() != 0) {
		ck_assert_int_eq(chmod(place->root, writable ? 0700 : 0500), 0);
		ck_assert_int_eq(chmod(lock, writable ? 0600 : 0400), 0);
	} else if (writable) {
		ck_assert_int_eq(umount2(place->root, MNT_DETACH), 0);
	} else {
		ck_assert_int_eq(mount(place->root, place->root, NULL, MS_BIND, NULL), 0);
		ck_assert_int_eq(mount(NULL, place->root, NULL, MS_REMOUNT | MS_BIND | MS_RDONLY,
				       NULL),
				 0);
	}
	free(lock);
}

START_TEST(read_only_root)
{
	static const char *const ids[] = { A, B };
	const char *why = geteuid() == 0 ? "Read-only file system" : "Permission denied";
	struct place place;

	if (geteuid() == 0) {
		ck_assert_int_eq(unshare(CLONE_NEWNS), 0);
		ck_assert_int_eq(mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL), 0);
	}
	place = open_place(", \"fallback\": false, \"prune_after_seconds\": 50");
	expect(&place, A, "echo kept >file", "");
	stop(&place, A);
	age(&place, A, 100);
	set_writable(&place, false);
	for (size_t i = 0; i < T_COUNT(ids); i++) {
		struct t_run run;
		const char *text;

		run_in(&run, &place, ids[i], "echo no");
		t_expect_status(&run, AGENTD_STATUS_DENIED);
		text = agentd_error_message(agentd_result_error(run.result));
		ck_assert_msg(strstr(text, place.root) && strstr(text, ids[i]) && strstr(text, why),
			      "%s", text);
		end_of(&run);
	}
	/* Used here just now, it would not be due. */
	agentd_pool_unref(place.pool);
	place.pool = add_pool(place.world, place.root, ", \"prune_after_seconds\": 50");
	free(maintain(&place));
	ck_assert_ptr_nonnull(
		t_logs_find(&place.world->logs, 0, "A session could not be looked after"));
	ck_assert(exists(place.root, A));
	set_writable(&place, true);
	expect(&place, A, "cat file", "kept\n");
	expect(&place, B, "ls", "");
	close_place(&place);
}
END_TEST

/* ---- machines only */

/* All processes with the monitor's name, of this world. */
static size_t monitors(const struct place *place, pid_t *pids, size_t max)
{
	return t_count_processes(place->world->monitor_name, NULL, pids, max);
}

static char *output_of(struct place *place, const char *id, const char *command)
{
	struct t_run run;
	char *text;

	run_in(&run, place, id, command);
	t_expect_status(&run, AGENTD_STATUS_OK);
	expect_session(&run, true);
	text = strndup((const char *)run.out[AGENTD_STDOUT], run.out_len[AGENTD_STDOUT]);
	end_of(&run);
	return text;
}

static void wait_warm(struct place *place, unsigned int count)
{
	uint64_t deadline = t_now() + T_MS(t_slack(60000));
	char *text = t_format("\"warm\":%u,", count);

	while (!pool_says(place, text)) {
		ck_assert_msg(t_now() < deadline, "%s in vain", text);
		t_world_loop(place->world, 10, NULL);
	}
	free(text);
}

static double seconds(clockid_t clock)
{
	struct timespec now;

	clock_gettime(clock, &now);
	return (double)now.tv_sec + (double)now.tv_nsec / 1e9;
}

static void expect_clock(struct place *place, const char *id)
{
	/* How late a slow machine hears the time is not known. */
	double skew = t_is_slow() ? 5 : 0.05, before = seconds(CLOCK_REALTIME);
	char *text = output_of(place, id, "date +%s.%N");
	double inside = strtod(text, NULL), after = seconds(CLOCK_REALTIME);

	/* When it was read is not known better than this. */
	ck_assert_msg(inside > before - skew && inside < after + skew, "%f: %f to %f", inside,
		      before, after);
	free(text);
}

/* Of the same template, and yet not the same: nothing of one is in the other. */
START_TEST(clones_differ)
{
	static const char random[] = "head -c 32 /dev/urandom | od -An -tx1; "
				     "cat /proc/sys/kernel/random/uuid";
	struct place place = open_place("");
	char *a = output_of(&place, A, random), *b = output_of(&place, B, random);

	ck_assert_uint_gt(strlen(a), 90);
	ck_assert_uint_eq(strlen(a), strlen(b));
	ck_assert_str_ne(a, b);
	free(a);
	free(b);
	stop(&place, A);
	a = output_of(&place, A, random);
	b = output_of(&place, A, random);
	ck_assert_str_ne(a, b);
	expect_clock(&place, A);
	free(a);
	free(b);
	expect(&place, A, "echo a >mine; echo a >/tmp/mine", "");
	expect(&place, B, "ls mine /tmp/mine 2>/dev/null; echo none", "none\n");
	close_place(&place);
}
END_TEST

/* What the others go on from is for nobody to write to, also not for its own host. */
START_TEST(template_cannot_be_written)
{
	struct place place = open_place("");
	size_t found = 0;

	expect(&place, A, "true", "");
	for (int fd = 3; fd < 1024; fd++) {
		char *path = t_format("/proc/self/fd/%d", fd);
		char target[64] = "";

		if (readlink(path, target, sizeof(target) - 1) > 0 &&
		    strncmp(target, "/memfd:agentd-machine", 21) == 0) {
			found++;
			ck_assert_int_eq(pwrite(fd, "x", 1, 0), -1);
			ck_assert_int_eq(errno, EPERM);
			ck_assert_int_eq(fcntl(fd, F_GET_SEALS),
					 F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE);
		}
		free(path);
	}
	ck_assert_uint_eq(found, 2);
	close_place(&place);
}
END_TEST

/* What was synced before is there; the command fails, and the next start works. */
START_TEST(monitor_is_killed)
{
	struct place place = open_place("");

	for (uint64_t moment = 0; moment < (all_cases() ? 8 : 3); moment++) {
		struct t_run run;
		pid_t pids[4];
		char *kept = t_format("%d\n", (int)moment);
		char *keep = t_format("echo %d >file; sync", (int)moment);

		expect(&place, A, keep, "");
		start_in(&run, &place, A, "echo begun; while :; do echo x >x; sync; done", 20000);
		wait_started(&run);
		t_sleep_ms(moment * 15);
		ck_assert_uint_eq(monitors(&place, pids, 4), 1);
		kill(pids[0], SIGKILL);
		t_run_wait(&run);
		t_expect_status(&run, AGENTD_STATUS_ERROR);
		end_of(&run);
		expect(&place, A, "cat file", kept);
		free(keep);
		free(kept);
	}
	close_place(&place);
}
END_TEST

/* One whose disk is damaged says which file that is, and it stays as it was. */
START_TEST(damaged_disk)
{
	struct place place = open_place(", \"fallback\": false");
	struct t_run run;
	char *disk = t_format("%s/%s/volume/disk.ext4", place.root, A);
	char zeroes[65536] = { 0 };
	int fd;

	expect(&place, A, "echo x >x", "");
	stop(&place, A);
	fd = open(disk, O_WRONLY | O_CLOEXEC);
	ck_assert_int_eq(pwrite(fd, zeroes, sizeof(zeroes), 0), sizeof(zeroes));
	close(fd);
	run_in(&run, &place, A, "echo no");
	t_expect_status(&run, AGENTD_STATUS_DENIED);
	ck_assert_msg(strstr(agentd_error_message(agentd_result_error(run.result)), disk), "%s",
		      t_run_story(&run));
	ck_assert_uint_eq(run.out_len[AGENTD_STDOUT], 0);
	end_of(&run);
	/* The beginning of a sound one, and nothing of it. */
	ck_assert_int_eq(unlink(disk), 0);
	expect(&place, A, "ls", "");
	stop(&place, A);
	for (off_t left = 1 << 20; left >= 0; left -= 1 << 20) {
		ck_assert_int_eq(truncate(disk, left), 0);
		run_in(&run, &place, A, "echo no");
		t_expect_status(&run, AGENTD_STATUS_DENIED);
		ck_assert_msg(strstr(agentd_error_message(agentd_result_error(run.result)), disk),
			      "%s", t_run_story(&run));
		end_of(&run);
	}
	free(disk);
	close_place(&place);
}
END_TEST

/* V16: nothing is tried with a disk that cannot be written to, with a spare or without. */
START_TEST(read_only_disk)
{
	const char *why = geteuid() == 0 ? "Read-only file system" : "Permission denied";
	struct place place;
	struct t_run run;
	char *disk;

	if (geteuid() == 0) {
		ck_assert_int_eq(unshare(CLONE_NEWNS), 0);
		ck_assert_int_eq(mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL), 0);
	}
	place = open_place(", \"fallback\": false, \"min_warm\": 1");
	disk = t_format("%s/%s/volume/disk.ext4", place.root, A);
	expect(&place, A, "echo kept >file", "");
	stop(&place, A);
	if (geteuid() == 0) {
		ck_assert_int_eq(mount(disk, disk, NULL, MS_BIND, NULL), 0);
		ck_assert_int_eq(mount(NULL, disk, NULL, MS_REMOUNT | MS_BIND | MS_RDONLY, NULL),
				 0);
	} else {
		ck_assert_int_eq(chmod(disk, 0400), 0);
	}
	for (int i = 0; i < 2; i++) {
		const char *text;

		run_in(&run, &place, A, "echo no");
		t_expect_status(&run, AGENTD_STATUS_DENIED);
		text = agentd_error_message(agentd_result_error(run.result));
		ck_assert_msg(strstr(text, disk) && strstr(text, why), "%s", text);
		end_of(&run);
		wait_warm(&place, 1);
	}
	if (geteuid() == 0)
		ck_assert_int_eq(umount2(disk, MNT_DETACH), 0);
	else
		ck_assert_int_eq(chmod(disk, 0600), 0);
	expect(&place, A, "cat file", "kept\n");
	free(disk);
	close_place(&place);
}
END_TEST

/* ---- networks of allowed hosts */

#define PROGRAMS "[\"/usr\", \"/bin\", \"/lib\", \"/lib64\"]"
static const char net_policy[] = "{\"min_isolation\": \"none\", \"paths\": {\"read\": " PROGRAMS
				 ", \"exec\": " PROGRAMS
				 "}, \"net\": {\"mode\": \"%s\", \"allow\": [%s]}}";

/* Says a line to all who connect to 127.0.0.2, and waits for their end. */
static pid_t serve(int *ret_port)
{
	int listener = t_listen(ret_port), fd;
	pid_t pid = fork();

	ck_assert_int_ge(pid, 0);
	if (pid == 0) {
		while ((fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC)) >= 0) {
			if (send(fd, "served\n", 7, MSG_NOSIGNAL) != 7)
				_exit(1);
		}
		_exit(1);
	}
	close(listener);
	return pid;
}

/* A command in the session whose policy has this network. */
static void net_in(struct t_run *run, struct place *place, const char *mode, const char *hosts,
		   const char *command)
{
	agentd_context *ctx = t_world_context(place->world);
	char *json = t_format(net_policy, mode, hosts);
	agentd_policy *policy = NULL;

	ck_assert_int_eq(agentd_policy_from_json(json, strlen(json), &policy, NULL), 0);
	ck_assert_int_eq(agentd_context_set_policy(ctx, policy, NULL), 0);
	ck_assert_int_eq(agentd_context_set_backend(ctx, NULL, NULL), 0);
	ck_assert_int_eq(agentd_context_set_session(ctx, A, NULL, NULL, NULL), 0);
	t_run_init(run, place->world);
	run->ctx = ctx;
	ck_assert_int_eq(t_run_start(run, command, 20000), 0);
	t_run_wait(run);
	agentd_policy_unref(policy);
	free(json);
}

#define CONNECT(port)                                                                              \
	"exec 3<>/dev/tcp/127.0.0.1/911 && printf 'CONNECT 127.0.0.2:" port                        \
	" HTTP/1.1\\r\\n\\r\\n' >&3 && read -r line <&3 && echo \"$line\" && read -r line <&3 && "

/* A network is the command's: what it leaves behind loses its connections. In the sandbox the
 * mode is the session's, the hosts are each command's. */
START_TEST(networks_of_commands)
{
	int port;
	pid_t server = serve(&port);
	char *runner_policy = t_format(net_policy, "allow", "\"127.0.0.2\", \"127.0.0.3\"");
	/* bash has /dev/tcp. */
	struct place place = { .world = t_world_new_bare(&(struct t_world_opts){
				       .backend = backend, .login_shell = true }) };
	char *fetch =
		t_format(CONNECT("%d") "read -r line <&3 && echo \"$line\"; "
				       "(cat <&3; echo over >over; sleep 0.3; line=; "
				       "exec 4<>/dev/tcp/127.0.0.1/911; "
				       "printf 'CONNECT 127.0.0.3:%d HTTP/1.1\\r\\n\\r\\n' >&4; "
				       "read -r line <&4; echo \"late: $line\" >late) "
				       ">/dev/null 2>&1 & true",
			 port, port);
	char *elsewhere = t_format(CONNECT("%d") "for i in {1..50}; do test -e late && break; "
						 "sleep 0.1; done; cat over late; rm over late",
				   port);
	struct t_run run;

	if (in_machine())
		place.world->opts.microvm_image = t_image_dir();
	place.world->opts.runner_policy = runner_policy;
	t_world_start(place.world);
	place.root = t_format("%s/volumes", place.world->dir);
	place.dest = t_format("%s/backups", place.world->dir);
	place.pool = add_pool(place.world, place.root, ", \"fallback\": false");
	for (int i = 0; i < 2; i++) {
		net_in(&run, &place, "allow", "\"127.0.0.2\"", fetch);
		t_expect_out(&run, AGENTD_STDOUT,
			     "HTTP/1.1 200 Connection established\r\nserved\n");
		ck_assert_uint_eq(t_run_metric(&run, AGENTD_METRIC_NET_CONNECTIONS), 1);
		expect_session(&run, true);
		end_of(&run);
		net_in(&run, &place, "none", "",
		       "(: <>/dev/tcp/127.0.0.1/911) 2>&1 | grep -m 1 -o refused; "
		       "echo ${HTTP_PROXY-no proxy}");
		if (in_machine())
			t_expect_out(&run, AGENTD_STDOUT, "refused\nno proxy\n");
		else
			ck_assert_int_eq(agentd_error_code(agentd_result_error(run.result)),
					 AGENTD_ERR_STATE);
		end_of(&run);
		/* Its tunnel is closed with it, although it lives; what it asks for then nobody
		 * answers, also not who may have it later. */
		t_world_loop(place.world, t_slack(1000), NULL);
		net_in(&run, &place, "allow", "\"127.0.0.3\"", elsewhere);
		t_expect_out(&run, AGENTD_STDOUT, "HTTP/1.1 403 Forbidden\r\nover\nlate: \n");
		ck_assert_ptr_nonnull(strstr(run.denials, "127.0.0.2"));
		ck_assert_uint_eq(t_run_metric(&run, AGENTD_METRIC_NET_CONNECTIONS), 0);
		end_of(&run);
	}
	ck_assert_int_eq(kill(server, SIGKILL), 0);
	ck_assert_int_eq(waitpid(server, NULL, 0), server);
	close_place(&place);
	free(elsewhere);
	free(fetch);
	free(runner_policy);
}
END_TEST

/* A monitor that this shell script stands before. */
/* The monitor is a script, which has the real one's path in the middle. */
static struct place open_place_behind(const char *begin, const char *end, char **ret_monitor)
{
	struct place place = { .world = t_world_new_bare(
				       &(struct t_world_opts){ .backend = "microvm" }) };
	char *dir = t_format("%s/%s", place.world->dir, place.world->tag);
	char *text = t_format("%s%s%s", begin, place.world->monitor, end);

	/* Its name and its place are told to the helper; the real one keeps its own. */
	ck_assert_int_eq(mkdir(dir, 0755), 0);
	*ret_monitor = t_format("%s/monitor", dir);
	t_write_file(*ret_monitor, text);
	ck_assert_int_eq(chmod(*ret_monitor, 0755), 0);
	place.world->opts.microvm_image = t_image_dir();
	place.world->opts.microvm_monitor = *ret_monitor;
	t_world_start(place.world);
	place.root = t_format("%s/volumes", place.world->dir);
	place.dest = t_format("%s/backups", place.world->dir);
	place.pool = add_pool(place.world, place.root, ", \"fallback\": false");
	free(text);
	free(dir);
	return place;
}

static void expect_sound_disk(struct place *place, const char *id)
{
	char *command = t_format("/sbin/e2fsck -fn %s/%s/volume/disk.ext4 >/dev/null 2>&1",
				 place->root, id);

	stop(place, id);
	ck_assert_int_eq(system(command), 0);
	free(command);
}

/* V16: the host has no room for what a disk could hold. What was committed stays. */
START_TEST(host_is_full)
{
	struct place place;

	ck_assert_int_eq(unshare(CLONE_NEWNS), 0);
	ck_assert_int_eq(mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL), 0);
	place = open_place(", \"fallback\": false");
	ck_assert_int_eq(mkdir(place.root, 0700), 0);
	ck_assert_int_eq(mount("tmpfs", place.root, "tmpfs", 0, "size=8m,mode=700"), 0);
	expect(&place, A, "echo kept >file; sync", "");
	expect(&place, A,
	       "dd if=/dev/urandom of=big bs=1M count=32 conv=fsync 2>/dev/null || echo full; "
	       "cat file",
	       "full\nkept\n");
	stop(&place, A);
	ck_assert_int_eq(mount(NULL, place.root, NULL, MS_REMOUNT, "size=256m,mode=700"), 0);
	expect(&place, A,
	       "dd if=/dev/urandom of=big bs=1M count=32 conv=fsync 2>/dev/null || echo full; "
	       "cat file",
	       "kept\n");
	expect_sound_disk(&place, A);
	close_place(&place);
}
END_TEST

/* ---- spares */

/* The only machine that runs. */
static pid_t monitor_of(const struct place *place)
{
	pid_t pids[4];

	ck_assert_uint_eq(monitors(place, pids, 4), 1);
	return pids[0];
}

static void expect_lives(const struct place *place, pid_t pid, bool wanted)
{
	pid_t pids[8];
	size_t count = monitors(place, pids, 8);
	bool lives = false;

	for (size_t i = 0; i < count; i++)
		lives |= pids[i] == pid;
	ck_assert_int_eq(lives, wanted);
}

/* It is there before anybody asks, and is a session like another afterwards. */
START_TEST(spare_is_used)
{
	struct place place = open_place(", \"min_warm\": 1, \"fallback\": false");
	char *random[3];
	pid_t pid;

	for (int i = 0; i < 3; i++) {
		/* What is older than the clock's last setting must not matter. */
		wait_warm(&place, 1);
		t_world_loop(place.world, 500, NULL);
		pid = monitor_of(&place);
		expect_clock(&place, A);
		random[i] = output_of(&place, A, "head -c 32 /dev/urandom | od -An -tx1");
		expect(&place, A, "cat file 2>/dev/null; echo x >>file; ls -A",
		       i == 0 ? "file\n" :
		       i == 1 ? "x\nfile\n" :
				"x\nx\nfile\n");
		expect_lives(&place, pid, true);
		wait_warm(&place, 1);
		expect_sound_disk(&place, A);
		expect_lives(&place, pid, false);
	}
	ck_assert_str_ne(random[0], random[1]);
	ck_assert_str_ne(random[1], random[2]);
	for (int i = 0; i < 3; i++)
		free(random[i]);
	/* With two of them, each has its own. */
	expect(&place, A, "echo of A >whose", "");
	wait_warm(&place, 1);
	expect(&place, B, "ls -A; echo of B >whose", "");
	expect(&place, A, "cat whose", "of A\n");
	agentd_pool_unref(place.pool);
	place.pool = NULL;
	ck_assert_int_eq(agentd_runner_set_pool(place.world->runner, NULL, NULL), 0);
	t_world_expect_commands_dead(place.world, 2000);
	close_place(&place);
}
END_TEST

static void expect_at_most(struct place *place, const char *id, size_t most)
{
	struct t_run run;

	start_in(&run, place, id, "echo $((6 * 7))", 20000);
	while (!run.finished) {
		ck_assert_uint_le(monitors(place, NULL, 0), most);
		t_world_loop(place->world, 2, NULL);
	}
	t_expect_out(&run, AGENTD_STDOUT, "42\n");
	expect_session(&run, true);
	end_of(&run);
}

/* It has no place that a session wants, and gets one back when there is room. */
START_TEST(spares_and_capacity)
{
	struct place place = open_place(", \"min_warm\": 2, \"max_vms\": 2, \"fallback\": false");
	struct agentd_limits limits = { .size = sizeof(limits), .mem_bytes = 600 << 20 };
	struct agentd_exec_opts opts = { .size = sizeof(opts), .limits = &limits };
	struct t_run run;

	wait_warm(&place, 2);
	expect_at_most(&place, A, 2);
	expect_at_most(&place, B, 2);
	expect_at_most(&place, C, 2);
	ck_assert(pool_says(&place, "\"warm\":0,"));
	stop(&place, C);
	wait_warm(&place, 1);
	stop(&place, B);
	wait_warm(&place, 2);
	/* One that is of no use for a session makes room all the same. */
	prepare_in(&run, &place, A);
	run.exec_opts = &opts;
	ck_assert_int_eq(t_run_start(&run, "echo $((6 * 7))", 20000), 0);
	t_run_wait(&run);
	t_expect_out(&run, AGENTD_STDOUT, "42\n");
	expect_session(&run, true);
	end_of(&run);
	expect_at_most(&place, B, 2);
	close_place(&place);
}
END_TEST

/* Whatever becomes of it, a session starts. */
START_TEST(spare_fails)
{
	static const int signals[] = { SIGKILL, SIGSTOP };
	struct place place = open_place(", \"min_warm\": 1, \"fallback\": false");
	struct t_run run;

	for (size_t i = 0; i < T_COUNT(signals); i++) {
		wait_warm(&place, 1);
		ck_assert_int_eq(kill(monitor_of(&place), signals[i]), 0);
		expect(&place, A, "echo x >>file; wc -l <file", i == 0 ? "1\n" : "2\n");
		stop(&place, A);
	}
	wait_warm(&place, 1);
	ck_assert_int_eq(kill(monitor_of(&place), SIGKILL), 0);
	t_world_loop(place.world, 300, NULL);
	ck_assert(pool_says(&place, "\"warm\":0,"));
	wait_warm(&place, 1);
	expect(&place, A, "wc -l <file", "2\n");
	close_place(&place);
	/* What is not its fault is not tried again. */
	place = open_place(
		", \"min_warm\": 1, \"fallback\": false, \"bootstrap_command\": \"exit 3\"");
	wait_warm(&place, 1);
	run_in(&run, &place, A, "echo no");
	t_expect_status(&run, AGENTD_STATUS_DENIED);
	end_of(&run);
	ck_assert_uint_eq(t_logs_count(&place.world->logs, "A session could not be used"), 1);
	close_place(&place);
}
END_TEST

/* Those of an image that has been exchanged are not used any more. */
START_TEST(spare_of_another_image)
{
	static const char *const names[] = { "image.json", "vmlinux",     "initramfs.cpio",
					     "root.erofs", "volume.ext4", "volume-small.ext4" };
	struct place place = { .world = t_world_new_bare(
				       &(struct t_world_opts){ .backend = "microvm" }) };
	char *dir = t_format("%s/image", place.world->dir), *copy, *path;
	pid_t pid;

	ck_assert_int_eq(mkdir(dir, 0755), 0);
	for (size_t i = 0; i < T_COUNT(names); i++) {
		char *link = t_format("%s/%s", dir, names[i]);

		path = t_format("%s/%s", t_image_dir(), names[i]);
		ck_assert_int_eq(symlink(path, link), 0);
		free(link);
		free(path);
	}
	place.world->opts.microvm_image = dir;
	t_world_start(place.world);
	place.root = t_format("%s/volumes", place.world->dir);
	place.dest = t_format("%s/backups", place.world->dir);
	place.pool = add_pool(place.world, place.root, ", \"min_warm\": 1, \"fallback\": false");
	wait_warm(&place, 1);
	pid = monitor_of(&place);
	path = t_format("%s/initramfs.cpio", dir);
	copy = t_copy_program(path, dir, "copy");
	ck_assert_int_eq(rename(copy, path), 0);
	expect(&place, A, "echo kept >file", "");
	expect_lives(&place, pid, false);
	wait_warm(&place, 1);
	stop(&place, A);
	pid = monitor_of(&place);
	expect(&place, A, "cat file", "kept\n");
	expect_lives(&place, pid, true);
	free(copy);
	free(path);
	free(dir);
	close_place(&place);
}
END_TEST

static void expect_vm(struct place *place, const char *id, bool cloned)
{
	struct t_run run;

	run_in(&run, place, id, "echo $((6 * 7))");
	t_expect_status(&run, AGENTD_STATUS_OK);
	t_expect_out(&run, AGENTD_STDOUT, "42\n");
	expect_session(&run, true);
	ck_assert_msg(!strstr(t_run_layer(&run, "vm", NULL), "cloned") == !cloned, "%s",
		      t_run_story(&run));
	end_of(&run);
}

/* Then it boots, as it would without: this session and the next. */
START_TEST(clone_fails)
{
	char *monitor;
	struct place place = open_place_behind("#!/bin/sh\nfor arg; do "
					       "[ \"$arg\" != -incoming ] || exit 3; done\nexec ",
					       " \"$@\"\n", &monitor);

	expect_vm(&place, A, false);
	expect_vm(&place, B, false);
	free(monitor);
	close_place(&place);
	place = open_place_behind("#!/bin/sh\nexec ", " \"$@\"\n", &monitor);
	expect_vm(&place, A, true);
	free(monitor);
	close_place(&place);
}
END_TEST

/* A monitor that is given another snapshot than was saved: what "damage" makes of it, with its
 * number in n, from first on, each once. */
static struct place open_damaged(const char *damage, unsigned int first, char **ret_monitor)
{
	char *begin = t_format(
		"#!/usr/bin/python3\n"
		"import os, socket, sys\n"
		/* It can make no files. */
		"def number(n):\n"
		"    claim = socket.socket(socket.AF_UNIX)\n"
		"    claim.set_inheritable(True)\n"
		"    try:\n"
		"        claim.bind(f'\\0{os.path.dirname(sys.argv[0])}-{n}')\n"
		"        return claim.detach() and n\n"
		"    except OSError:\n"
		"        return number(n + 1)\n"
		/* The numbers of its descriptors, by the names of the files in memory. */
		"def file(name):\n"
		"    for fd in range(3, 13):\n"
		"        try:\n"
		"            if os.readlink(f'/proc/self/fd/{fd}').split()[0] == '/memfd:' + name:\n"
		"                return fd\n"
		"        except OSError:\n"
		"            pass\n"
		/* Where there is data, in pieces. */
		"def copy(fd, change):\n"
		"    new = os.memfd_create('damaged')\n"
		"    size, at = os.fstat(fd).st_size, 0\n"
		"    os.truncate(new, size)\n"
		"    try:\n"
		"        while at < size:\n"
		"            at = os.lseek(fd, at, os.SEEK_DATA)\n"
		"            data = os.pread(fd, min(os.lseek(fd, at, os.SEEK_HOLE) - at, 1 << 20), at)\n"
		"            at += os.pwrite(new, data, at)\n"
		"    except OSError:\n"
		"        pass\n"
		"    change(new, size)\n"
		"    os.lseek(new, 0, os.SEEK_SET)\n"
		"    os.dup2(new, fd, True)\n"
		"def flip(fd, at, bit):\n"
		"    os.pwrite(fd, bytes([os.pread(fd, 1, at)[0] ^ 1 << bit]), at)\n"
		/* Of the state: its beginning, or its devices, but not the firmware's pages. */
		"def place(fd, size, n):\n"
		"    begin = 0 if n %% 4 == 3 else os.pread(fd, size, 0).index(b'fw_cfg') - 16\n"
		"    return 4 * n if n %% 4 == 0 else begin + (size - begin) * (2 * n + 1) // 128\n"
		"state, memory = 'agentd-machine-state', 'agentd-machine'\n"
		"if '-incoming' in sys.argv:\n"
		"    n = number(%u)\n"
		"    %s\n"
		"os.execv('",
		first, damage);
	struct place place = open_place_behind(begin, "', sys.argv)\n", ret_monitor);

	free(begin);
	return place;
}

/* The snapshot of a machine with twice the memory, or a file with half of it. */
#define MEMORY "536870912"
#define OTHER_SIZE                                                                                 \
	"sys.argv = [a.replace('512M', '256M').replace('" MEMORY                                   \
	"', '268435456') for a in sys.argv]"

START_TEST(damaged_snapshot)
{
	static const struct {
		const char *damage;
		bool cloned;
	} whole[] = {
		{ "copy(file(state), print); copy(file(memory), print)", true },
		{ "copy(file(state), lambda new, size: flip(new, 7, 0))", false }, /* the version */
		{ "copy(file(memory), lambda new, size: os.truncate(new, size // 2))", false },
		/* with all cases only */
		{ "copy(file(state), lambda new, size: os.truncate(new, size // 2))", false },
		{ "copy(file(state), lambda new, size: flip(new, 0, 0))", false },
		{ OTHER_SIZE, false },
	};

	for (size_t i = 0; i < (all_cases() ? T_COUNT(whole) : 3); i++) {
		char *monitor;
		struct place place = open_damaged(whole[i].damage, 0, &monitor);

		expect_vm(&place, A, whole[i].cloned);
		free(monitor);
		close_place(&place);
	}
}
END_TEST

/* V17. The host's own memory has to be wrong for that. Three of four are in what the monitor
 * reads, the others in the guest's memory. */
START_TEST(flipped_bits)
{
	static const char damage[] =
		"copy(file(memory if n % 4 == 3 else state), lambda new, size: "
		"flip(new, place(new, size, n), n % 8))";
	enum { PLACES = 64, AT_ONCE = 4 };
	const unsigned int most = getenv("AGENTD_TEST_FULL") ? PLACES : 4;
	unsigned int cloned = 0, booted = 0;

	for (unsigned int first = 0; first < PLACES; first += AT_ONCE * PLACES / most) {
		char *monitor;
		struct place place = open_damaged(damage, first, &monitor);
		struct t_run runs[AT_ONCE];

		for (unsigned int i = 0; i < AT_ONCE; i++) {
			char *id = t_format("%08u-0000-4000-8000-000000000000", i);

			start_in(&runs[i], &place, id, "echo $((6 * 7))", 20000);
			free(id);
		}
		for (unsigned int i = 0; i < AT_ONCE; i++) {
			const agentd_error *err;

			t_run_wait(&runs[i]);
			err = agentd_result_error(runs[i].result);
			/* It may not have mattered; else it is booted, or an error says what is
			 * wrong, which is not this test's script. */
			if (agentd_result_status(runs[i].result) == AGENTD_STATUS_OK) {
				t_expect_out(&runs[i], AGENTD_STDOUT, "42\n");
				if (strstr(t_run_layer(&runs[i], "vm", NULL), "cloned"))
					cloned++;
				else
					booted++;
			} else {
				ck_assert_msg(err && !strstr(agentd_error_message(err), "Error:"),
					      "%s", t_run_story(&runs[i]));
				fprintf(stderr, "# bits from %u: %s\n", first,
					agentd_error_message(err));
			}
			end_of(&runs[i]);
		}
		free(monitor);
		close_place(&place);
	}
	fprintf(stderr, "# flipped bits: %u cloned nevertheless, %u booted, %u failed\n", cloned,
		booted, most - cloned - booted);
}
END_TEST

/* What does not boot at all says so, and leaves the next one its chance. */
START_TEST(template_fails)
{
	char *monitor, *mark;
	struct place place = open_place_behind("#!/bin/sh\n[ -e \"${0%/*}/mark\" ] || "
					       "{ echo broken >&2; exit 3; }\nexec ",
					       " \"$@\"\n", &monitor);
	struct t_run run;

	run_in(&run, &place, A, "echo no");
	t_expect_status(&run, AGENTD_STATUS_DENIED);
	ck_assert_msg(strstr(agentd_error_message(agentd_result_error(run.result)), "broken"), "%s",
		      t_run_story(&run));
	end_of(&run);
	mark = t_format("%s/%s/mark", place.world->dir, place.world->tag);
	t_write_file(mark, "");
	expect_vm(&place, A, true);
	free(mark);
	free(monitor);
	close_place(&place);
}
END_TEST

static void expect_size(struct place *place, const char *id, const char *said, long least,
			long most)
{
	char *text = output_of(place, id,
			       "cat was || ls -A; echo kept >was; sync; "
			       "df --output=size -BM . | tail -n 1 | tr -d ' M'");
	char *end = strrchr(text, '\n');
	long mib;

	*end = '\0';
	end = strrchr(text, '\n');
	mib = strtol(end ? end + 1 : text, NULL, 10);
	ck_assert_msg(mib > least && mib < most, "%ld MiB", mib);
	if (end)
		end[1] = '\0';
	else
		text[0] = '\0';
	ck_assert_str_eq(text, said);
	free(text);
}

/* A disk grows, and does not shrink; what is asked for and cannot be is refused. */
START_TEST(disk_sizes)
{
	static const struct {
		const char *id, *vm, *said;
		long least, most;
	} sizes[] = {
		{ A, "{\"volume_bytes\": 134217728}", "", 100, 128 },
		{ A, "{\"volume_bytes\": 268435456}", "kept\n", 220, 256 },
		{ A, "{\"volume_bytes\": 67108864}", "kept\n", 220, 256 },
		{ A, "{}", "kept\n", 900, 1024 },
		{ B, "{}", "", 900, 1024 },
		{ B, "{\"volume_bytes\": 2147483648}", "kept\n", 1900, 2048 },
		{ C, "{\"volume_bytes\": 67108864}", "", 40, 64 },
	};
	static const struct {
		const char *vm, *says;
	} bad[] = {
		{ "{\"volume_bytes\": 1}", "vm.volume_bytes" },
		{ "{\"memory_bytes\": 1}", "vm.memory_bytes" },
		{ "{\"volume\": 1}", "\"volume\"" },
	};
	struct place place = open_place("");

	for (size_t i = 0; i < T_COUNT(sizes); i++) {
		char *more = t_format(", \"vm\": %s", sizes[i].vm);

		agentd_pool_unref(place.pool);
		place.pool = add_pool(place.world, place.root, more);
		expect_size(&place, sizes[i].id, sizes[i].said, sizes[i].least, sizes[i].most);
		stop(&place, sizes[i].id);
		free(more);
	}
	expect(&place, C, "head -c 100M /dev/zero >big 2>/dev/null || echo full", "full\n");
	close_place(&place);
	for (size_t i = 0; i < T_COUNT(bad); i++) {
		char *more = t_format(", \"fallback\": false, \"vm\": %s", bad[i].vm);
		struct t_run run;

		place = open_place(more);
		run_in(&run, &place, A, "echo no");
		t_expect_status(&run, AGENTD_STATUS_DENIED);
		ck_assert_msg(strstr(agentd_error_message(agentd_result_error(run.result)),
				     bad[i].says),
			      "%s", t_run_story(&run));
		end_of(&run);
		close_place(&place);
		free(more);
	}
}
END_TEST

/* ---- the host program is killed */

static void host(struct place *place, int say, const char *command, bool runs)
{
	struct t_run run;

	start_in(&run, place, A, "echo committed >file; sync", 20000);
	t_run_wait(&run);
	end_of(&run);
	stop(place, A);
	start_in(&run, place, A, command, 20000);
	if (runs)
		wait_started(&run);
	if (write(say, place->world->tag, sizeof(place->world->tag)) != sizeof(place->world->tag))
		_exit(3);
	for (;;) {
		age(place, A, 100);
		agentd_pool_maintain(place->pool, NULL, NULL);
		t_world_loop(place->world, 20, NULL);
	}
}

/* Nothing of the sandbox outlives its host program. Commands of the test's backend are
 * nobody's then: it is they that must not stay. */
static void expect_gone(const char *tag)
{
	uint64_t deadline = t_now() + T_MS(t_slack(10000));
	size_t count;
	pid_t pid;

	while ((count = t_count_processes(tag, NULL, &pid, 1)) > 0 && t_now() < deadline) {
		if (!in_sandbox() && !in_machine())
			kill(pid, SIGKILL);
		t_sleep_ms(10);
	}
	ck_assert_msg(count == 0, "%zu processes of a killed host program are left, first %d",
		      count, (int)pid);
}
/* A process that has committed a file in A and runs the command there, until it is killed.
 * runs: it does so already. */
static pid_t start_host(const struct place *place, const char *more, const char *command, bool runs,
			char *ret_tag, size_t size)
{
	int say[2];
	pid_t pid;

	ck_assert_int_eq(pipe(say), 0);
	pid = fork();
	if (pid == 0) {
		struct place own = { .root = place->root, .dest = place->dest };

		/* What it leaves goes with what is ours. */
		ck_assert_int_eq(setenv("TMPDIR", place->world->dir, 1), 0);
		own.world = new_world(NULL);
		own.pool = add_pool(own.world, own.root, more);
		host(&own, say[1], command, runs);
		_exit(4);
	}
	close(say[1]);
	ck_assert_msg(read(say[0], ret_tag, size) == (ssize_t)size,
		      "the host program ended before its command %s", runs ? "ran" : "was begun");
	close(say[0]);
	return pid;
}

static void end_host(pid_t pid)
{
	kill(pid, SIGKILL);
	ck_assert_int_eq(waitpid(pid, NULL, 0), pid);
}

/* At any moment: what was committed is there, and the next start works. */
START_TEST(host_is_killed)
{
	/* A machine of a template goes on for longer than a sandbox is started. */
	const uint64_t moments = in_machine() ? (all_cases() ? 4 : 2) : t_is_small() ? 4 : 12;
	const uint64_t step_ms = in_machine() ? 70 : 9;
	const char *busy = in_machine() ? "while :; do date >>log; sync; done" :
					  "sleep 1000 & sleep 1000";

	for (uint64_t moment = 0; moment < moments; moment++) {
		struct place place = open_place("");
		char *more = t_format(", \"backup_after_seconds\": 1, \"backup_destination\": "
				      "\"%s\", \"idle_shutdown_seconds\": 1, "
				      "\"prune_after_seconds\": 100000",
				      place.dest);
		char tag[sizeof(place.world->tag)];
		pid_t pid = start_host(&place, more, moment % 2 ? busy : "echo x >x", false, tag,
				       sizeof(tag));

		t_sleep_ms(moment * step_ms);
		end_host(pid);
		/* Its machine may write to the disk still. */
		if (!in_machine())
			expect_gone(tag);
		agentd_pool_unref(place.pool);
		place.pool = add_pool(place.world, place.root, more);
		expect(&place, A, "cat file", "committed\n");
		expect_gone(tag);
		if (in_machine())
			expect_sound_disk(&place, A);
		free(more);
		close_place(&place);
	}
}
END_TEST

/* Nor do its spares stay. */
START_TEST(host_with_spares_is_killed)
{
	struct place place = open_place("");
	char tag[sizeof(place.world->tag)];
	pid_t pid = start_host(&place, ", \"min_warm\": 1", "sleep 1000", false, tag, sizeof(tag));
	char *monitor = t_format("qm-%x-", (unsigned int)pid);
	uint64_t deadline = t_now() + T_MS(t_slack(60000));

	/* The session's machine and the spare. */
	while (t_count_processes(monitor, NULL, NULL, 0) < 2) {
		ck_assert_uint_lt(t_now(), deadline);
		t_sleep_ms(10);
	}
	end_host(pid);
	expect_gone(tag);
	expect_gone(monitor);
	free(monitor);
	expect(&place, A, "cat file", "committed\n");
	close_place(&place);
}
END_TEST

/* ---- several hosts of the same sessions */

/* V20: at once, and nothing of it is touched by the other's maintenance. */
static void expect_busy(struct place *place, const char *id)
{
	struct t_run run;

	start_in(&run, place, id, "echo no", 20000);
	t_world_loop(place->world, 500, NULL);
	ck_assert_msg(!run.started && !run.finished, "%s", t_run_story(&run));
	agentd_exec_cancel(run.exec);
	t_run_wait(&run);
	t_expect_cause(&run, AGENTD_CAUSE_CANCELED);
	ck_assert_uint_eq(run.out_len[AGENTD_STDOUT], 0);
	end_of(&run);
	age(place, id, 100);
	free(maintain(place));
	ck_assert(exists(place->root, id));
}

static const char prunes[] = ", \"fallback\": false, \"prune_after_seconds\": 50";

START_TEST(two_runners)
{
	struct place one = open_place(prunes), other = { .root = one.root, .dest = one.dest };

	/* A world looks at its end for descriptors that it did not begin with. */
	expect(&one, A, "echo one >file", "");
	stop(&one, A);
	other.world = new_world(NULL);
	other.pool = add_pool(other.world, other.root, prunes);
	expect(&one, A, "cat file", "one\n");
	expect_busy(&other, A);
	expect(&other, B, "echo other >file", "");
	expect_busy(&one, B);
	expect(&one, A, "cat file", "one\n");
	stop(&one, A);
	expect(&other, A, "cat file; echo other >>file", "one\n");
	expect_busy(&one, A);
	stop(&other, A);
	expect(&one, A, "cat file", "one\nother\n");
	/* What nobody uses goes, whoever made it. */
	stop(&other, B);
	age(&one, B, 100);
	free(maintain(&one));
	ck_assert(!exists(one.root, B));
	stop(&one, A);
	agentd_pool_unref(other.pool);
	t_world_free(other.world);
	close_place(&one);
}
END_TEST

/* What an earlier process has left is removed by whoever finds it. */
START_TEST(removed_by_two)
{
	struct place one = open_place(""), other = { .root = one.root };
	struct ending first = { 0 }, second = { 0 };
	char *left = t_format("%s/.pruned-left", one.root);
	uint64_t end = t_now() + T_MS(t_slack(20000));

	other.world = new_world(NULL);
	other.pool = add_pool(other.world, other.root, "");
	ck_assert(mkdir(one.root, 0700) == 0 || errno == EEXIST);
	ck_assert_int_eq(mkdir(left, 0700), 0);
	for (int i = 0; i < 5000; i++) {
		char *path = t_format("%s/%d", left, i);

		t_write_file(path, "");
		free(path);
	}
	ck_assert_int_eq(agentd_pool_maintain(one.pool, on_done, &first), 0);
	ck_assert_int_eq(agentd_pool_maintain(other.pool, on_done, &second), 0);
	while ((!first.done || !second.done) && t_now() < end) {
		t_world_loop(one.world, 1, NULL);
		t_world_loop(other.world, 1, NULL);
	}
	ck_assert(first.done && second.done);
	ck_assert_msg(!first.error && !second.error, "%s",
		      first.error ? first.error : second.error);
	ck_assert(!exists(one.root, ".pruned-left"));
	agentd_pool_unref(other.pool);
	t_world_free(other.world);
	free(left);
	close_place(&one);
}
END_TEST

static bool is_locked(const struct place *place, const char *id)
{
	char *path = t_format("%s/%s/lock", place->root, id);
	int fd = open(path, O_RDWR | O_CLOEXEC);
	bool is = flock(fd, LOCK_EX | LOCK_NB) < 0;

	close(fd);
	free(path);
	return is;
}

START_TEST(two_processes)
{
	struct place place = open_place(prunes);
	char tag[sizeof(place.world->tag)];
	/* To look at the lock while the other begins would be to take it from him. */
	pid_t pid = start_host(&place, ", \"fallback\": false", "sleep 1000", true, tag,
			       sizeof(tag));

	expect_busy(&place, A);
	expect(&place, B, "echo ours >file", "");
	expect_busy(&place, A);
	end_host(pid);
	/* The test's backend forks: until its execve such a process has what the host had. */
	while (!in_sandbox() && !in_machine() && is_locked(&place, A))
		t_sleep_ms(1);
	expect(&place, A, "cat file", "committed\n");
	expect(&place, B, "cat file", "ours\n");
	expect_gone(tag);
	close_place(&place);
}
END_TEST

/* ---- the last references, dropped in callbacks */

static void drop_all(struct place *place)
{
	agentd_pool_unref(place->pool);
	place->pool = NULL;
	agentd_runner_unref(place->world->runner);
	place->world->runner = NULL;
}

static void close_dropped(struct place *place)
{
	t_world_loop(place->world, 50, NULL);
	close_place(place);
}

static void drop_when_done(agentd_pool *pool, const agentd_error *err, void *userdata)
{
	struct place *place = userdata;

	ck_assert_ptr_eq(pool, place->pool);
	ck_assert_ptr_null(err);
	drop_all(place);
}

START_TEST(dropped_when_done)
{
	for (int i = 0; i < 2; i++) {
		struct place place = open_place("");

		expect(&place, A, "echo here", "here\n");
		if (i == 0)
			ck_assert_int_eq(agentd_pool_stop(place.pool, A, drop_when_done, &place),
					 0);
		else
			ck_assert_int_eq(agentd_pool_maintain(place.pool, drop_when_done, &place),
					 0);
		for (int wait = 0; place.pool && wait < 500; wait++)
			t_world_loop(place.world, t_slack(10), NULL);
		ck_assert_ptr_null(place.pool);
		close_dropped(&place);
	}
}
END_TEST

/* Its sessions cannot be started. */
static struct place open_impossible(void)
{
	struct place place = open_place(", \"fallback\": false");

	t_write_file(place.root, "");
	return place;
}

static void drop_when_finished(struct t_run *run, enum t_event_kind kind)
{
	struct place *place = run->userdata;

	if (kind == T_FINISHED && place->pool)
		drop_all(place);
}

START_TEST(dropped_when_finished)
{
	struct t_run runs[2];

	for (size_t count = 1; count <= T_COUNT(runs); count++) {
		struct place place = open_impossible();

		for (size_t i = 0; i < count; i++) {
			prepare_in(&runs[i], &place, A);
			runs[i].userdata = &place;
			runs[i].on_event = drop_when_finished;
			ck_assert_int_eq(t_run_start(&runs[i], "echo never", 20000), 0);
		}
		for (size_t i = 0; i < count; i++) {
			t_run_wait(&runs[i]);
			end_of(&runs[i]);
		}
		ck_assert_ptr_null(place.pool);
		close_dropped(&place);
	}
}
END_TEST

static void maintain_when_finished(struct t_run *run, enum t_event_kind kind)
{
	struct place *place = run->userdata;

	if (kind == T_FINISHED)
		ck_assert_int_eq(agentd_pool_maintain(place->pool, NULL, NULL), 0);
}

/* A pass forgets the session that could not be started while its commands are refused. */
START_TEST(maintained_when_finished)
{
	struct place place = open_impossible();
	struct t_run run;

	prepare_in(&run, &place, A);
	run.userdata = &place;
	run.on_event = maintain_when_finished;
	ck_assert_int_eq(t_run_start(&run, "echo never", 20000), 0);
	t_run_wait(&run);
	t_expect_status(&run, AGENTD_STATUS_DENIED);
	end_of(&run);
	t_world_loop(place.world, 50, NULL);
	ck_assert(pool_says(&place, "\"sessions\":[]"));
	close_place(&place);
}
END_TEST

struct log_drop {
	struct place place;
	const char *message;
};

static void drop_when_logged(const agentd_log_record *record, void *userdata)
{
	struct log_drop *drop = userdata;

	if (strcmp(agentd_log_record_message(record), drop->message) == 0)
		drop_all(&drop->place);
}

static void open_for_log(struct log_drop *drop, const char *message, const char *more)
{
	struct t_world_opts opts = world_opts(NULL);

	opts.log = drop_when_logged;
	opts.log_userdata = drop;
	drop->message = message;
	drop->place = open_with(&opts, more);
}

static void close_after_log(struct log_drop *drop)
{
	for (int wait = 0; drop->place.pool && wait < 500; wait++)
		t_world_loop(drop->place.world, t_slack(10), NULL);
	ck_assert_ptr_null(drop->place.pool);
	close_dropped(&drop->place);
}

/* By the pool itself. */
START_TEST(dropped_when_logged)
{
	static const char prune[] = ", \"prune_after_seconds\": 50";
	struct log_drop drop;
	struct place *place = &drop.place;

	open_for_log(&drop, "Pruned a session", prune);
	expect(place, A, "echo here", "here\n");
	stop(place, A);
	/* What was used here is not pruned by the wall clock alone. */
	agentd_pool_unref(place->pool);
	age(place, A, 100);
	place->pool = add_pool(place->world, place->root, prune);
	ck_assert_int_eq(agentd_runner_set_pool(place->world->runner, NULL, NULL), 0);
	ck_assert_int_eq(agentd_pool_maintain(place->pool, NULL, NULL), 0);
	close_after_log(&drop);
}
END_TEST

/* By a backend, of one of its sessions. */
START_TEST(dropped_when_backend_logs)
{
	struct log_drop drop;

	open_for_log(&drop, "The session ends", "");
	expect(&drop.place, A, "echo here", "here\n");
	ck_assert_int_eq(agentd_runner_set_pool(drop.place.world->runner, NULL, NULL), 0);
	ck_assert_int_eq(agentd_pool_stop(drop.place.pool, A, NULL, NULL), 0);
	close_after_log(&drop);
}
END_TEST

/* ---- configuration */

START_TEST(configurations)
{
	struct t_world *world = new_world(NULL);
	agentd_error *err = NULL;
	agentd_pool *pool = NULL;
	char *json;
	int r;
	static const struct {
		const char *json, *text;
	} bad[] = {
		{ "{\"enabled\": true}", "volume_root" },
		{ "{\"enabled\": true, \"volume_root\": \"/v\", \"max_vms\": 0}",
		  "vm_pool.max_vms must be greater than zero when the pool is enabled" },
		{ "{\"enabled\": true, \"volume_root\": \"/v\", \"idle_shutdown_seconds\": 0}",
		  "vm_pool.idle_shutdown_seconds must be greater than zero" },
		{ "{\"enabled\": true, \"volume_root\": \"/v\", \"prune_after_seconds\": 0}",
		  "vm_pool.prune_after_seconds must be greater than zero" },
		{ "{\"enabled\": true, \"volume_root\": \"/v\", \"max_vms\": 3, \"min_warm\": 4}",
		  "vm_pool.min_warm must not be greater than max_vms (3)" },
		{ "{\"enabled\": true, \"volume_root\": \"/v\", \"min_warm\": -1}",
		  "expected u64" },
		{ "{\"enabled\": true, \"volume_root\": \"/v\", \"backup_after_seconds\": 0, "
		  "\"backup_destination\": \"/b\"}",
		  "vm_pool.backup_after_seconds must be greater than zero" },
		{ "{\"enabled\": true, \"volume_root\": \"/v\", \"backup_after_seconds\": 5}",
		  "vm_pool.backup_destination must be set when backup_after_seconds is provided" },
		{ "{\"enabled\": true, \"volume_root\": \"v\"}", "v" },
		{ "{\"enabled\": true, \"volume_root\": \"/v\", \"vm\": 1}", "object" },
		{ "{\"enabled\": true, \"volume_root\": \"/v\", \"env\": {\"A=B\": \"c\"}}",
		  "'='" },
		{ "{\"unknown\": 1}", "unknown" },
		{ "{\"enabled\": 1}", "boolean" },
		{ "{\"enabled\": true, \"enabled\": true}", "enabled" },
		{ "[]", "" },
		{ "", "" },
	};

	for (size_t i = 0; i < T_COUNT(bad); i++) {
		r = agentd_pool_new(world->runner, bad[i].json, strlen(bad[i].json), &pool, &err);

		ck_assert_msg(r == AGENTD_ERR_INVALID && !pool, "%s: %d", bad[i].json, r);
		ck_assert_msg(strstr(agentd_error_message(err), bad[i].text), "%s: %s", bad[i].json,
			      agentd_error_message(err));
		agentd_error_unref(err);
		err = NULL;
	}
	json = t_format("{\"enabled\": true, \"volume_root\": \"/v\", \"backend\": \"%s\", "
			"\"min_warm\": 1}",
			backend);
	r = agentd_pool_new(world->runner, json, strlen(json), &pool, &err);
	t_expect_error(r, AGENTD_ERR_UNSUPPORTED, err, "min_warm", "/min_warm");
	free(json);
	ck_assert_int_eq(agentd_pool_stop(NULL, A, NULL, NULL), AGENTD_ERR_INVALID);
	ck_assert_int_eq(agentd_pool_maintain(NULL, NULL, NULL), AGENTD_ERR_INVALID);
	t_world_free(world);
}
END_TEST

int main(int argc, char **argv)
{
	TCase *sessions = t_case("sessions", 240), *pool = t_case("pool", 120),
	      *maintenance = t_case("maintenance", 120), *killed = t_case("killed", 240),
	      *networks = t_case("networks", 120),
	      *damages = t_case("damages", getenv("AGENTD_TEST_FULL") ? 900 : 300),
	      *hosts = t_case("hosts", 120), *disks = t_case("disks", 240),
	      *spares = t_case("spares", 240), *gone = t_case("gone", 120),
	      *drops = t_case("drops", 120);
	TCase *cases[] = { sessions, pool,    maintenance, networks, hosts, drops,
			   killed,   damages, disks,       spares,   gone };
	enum { WELL = 6 }; /* of the cases, in which nothing is broken */
	const char *half = argc > 2 ? argv[2] : "";

	backend = argc > 1 ? argv[1] : "sandbox";
	if (in_machine() && !t_can_host_machines())
		return 77;
	if (in_machine())
		t_stretch(4);
	tcase_add_test(sessions, files_stay);
	tcase_add_test(sessions, root_behind_a_link);
	tcase_add_test(sessions, stdin_closed_while_it_waits);
	tcase_add_test(sessions, background_lives_until_the_stop);
	tcase_add_test(sessions, exit_codes_and_signals);
	tcase_add_test(sessions, limits_of_a_command);
	if (in_sandbox() || in_machine()) {
		tcase_add_test(sessions, timeout_ends_the_command_only);
		tcase_add_test(networks, networks_of_commands);
	}
	if (in_machine()) {
		tcase_add_test(sessions, clones_differ);
		tcase_add_test(sessions, template_cannot_be_written);
		tcase_add_test(sessions, disk_sizes);
		tcase_add_test(sessions, clone_fails);
		tcase_add_test(damages, damaged_snapshot);
		tcase_add_test(damages, flipped_bits);
		tcase_add_test(disks, damaged_disk);
		tcase_add_test(disks, read_only_disk);
		if (geteuid() == 0)
			tcase_add_test(disks, host_is_full);
		tcase_add_test(sessions, template_fails);
		tcase_add_test(spares, spare_is_used);
		tcase_add_test(spares, host_with_spares_is_killed);
		tcase_add_test(killed, monitor_is_killed);
	}
	if (in_sandbox()) {
		tcase_add_test(sessions, private_files_and_fixed_policy);
		tcase_add_test(sessions, limits_and_tokens);
		tcase_add_test(sessions, processes_of_a_session);
		tcase_add_test(sessions, protected_names);
		tcase_add_test(sessions, no_options);
		tcase_add_test(sessions, limits_are_ones_own);
		tcase_add_test(sessions, waiting_process_is_killed);
		tcase_add_test(sessions, supervisor_is_killed);
		tcase_add_test(sessions, supervisors_are_killed_together);
		tcase_add_test(sessions, protected_name_is_replaced);
		tcase_add_test(sessions, denied_path_is_replaced);
		tcase_add_test(gone, dies_unnoticed);
		tcase_add_test(gone, dies_with_a_request_unread);
		tcase_add_test(gone, dies_under_a_command);
		tcase_add_test(gone, dies_before_the_start_is_told);
		tcase_add_test(gone, dies_at_any_moment);
	} else if (!in_machine()) {
		tcase_add_test(gone, says_it_is_gone);
		tcase_add_test(gone, gone_and_stopped);
		tcase_add_test(gone, bootstrap_without_an_end);
		tcase_add_test(gone, stuck_session_is_passed_over);
		tcase_add_test(drops, dropped_when_backend_logs);
	}
	if (in_machine() && all_cases()) {
		tcase_add_test(spares, spares_and_capacity);
		tcase_add_test(spares, spare_fails);
		tcase_add_test(spares, spare_of_another_image);
	}
	if (all_cases()) {
		tcase_add_test(pool, capacity);
		tcase_add_test(pool, nix_profile);
		tcase_add_test(maintenance, read_only_root);
		tcase_add_test(hosts, two_runners);
		tcase_add_test(hosts, removed_by_two);
		tcase_add_test(pool, first_come_first_served);
		tcase_add_test(pool, cancelled_while_waiting);
		tcase_add_test(pool, disabled);
		tcase_add_test(pool, locked_by_another);
		tcase_add_test(pool, no_lock_no_session);
		tcase_add_test(pool, pruned_by_another);
		tcase_add_test(maintenance, idle_is_stopped_busy_is_not);
		tcase_add_test(maintenance, failed_backup_blocks_pruning);
		tcase_add_test(maintenance, clock_set_back);
		tcase_add_test(drops, dropped_when_done);
		tcase_add_test(drops, dropped_when_logged);
	}
	tcase_add_test(pool, ten_at_once);
	/* They know where a session's files are, or how long a start takes. */
	if (!in_machine()) {
		tcase_add_test(pool, acquire_timeout);
		tcase_add_test(pool, acquire_timeout_of_a_start);
		tcase_add_test(pool, configurations);
		tcase_add_test(drops, dropped_when_finished);
		tcase_add_test(drops, maintained_when_finished);
	}
	tcase_add_test(pool, bootstrap);
	tcase_add_test(maintenance, adopted_backed_up_and_pruned);
	tcase_add_test(killed, host_is_killed);
	tcase_add_test(hosts, two_processes);
	if (strcmp(half, "well") == 0)
		return t_main("pool", cases, WELL);
	if (strcmp(half, "broken") == 0)
		return t_main("pool", cases + WELL, T_COUNT(cases) - WELL);
	return t_main("pool", cases, T_COUNT(cases));
}
