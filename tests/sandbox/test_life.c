/* SPDX-License-Identifier: MIT */
/* The life of sandboxes in one host program: templates are made, shared, outdated and
 * lost, commands come many at once and many in a row, and nothing is left behind. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "harness.h"

/* Nobody waits for a command. */
static const uint32_t NONE = UINT32_MAX;

static struct t_world *sandbox_world(uint32_t prewarm)
{
	return t_world_new(
		&(struct t_world_opts){ .backend = "sandbox", .sandbox_prewarm = prewarm });
}

/* Zygotes, and the first processes of commands: until the helper has so many of them. */
static void expect_children(struct t_world *world, size_t want, pid_t *ret, size_t max)
{
	uint64_t deadline = t_now() + T_MS(t_slack(5000));
	size_t count;

	while ((count = t_children(t_world_helper(world), ret, max)) != want && t_now() < deadline)
		t_world_loop(world, 10, NULL);
	ck_assert_uint_eq(count, want);
}

static void expect_works(struct t_world *world)
{
	struct t_run run;

	t_run(&run, world, "echo works", 20000);
	t_expect_status(&run, AGENTD_STATUS_OK);
	t_expect_out(&run, AGENTD_STDOUT, "works\n");
	t_run_free(&run);
}

static void in_workdir(const struct t_world *world, const char *script)
{
	char *command = t_format("cd '%s' && { %s; }", world->workdir, script);

	ck_assert_msg(system(command) == 0, "%s", command); /* NOLINT(cert-env33-c): made here */
	free(command);
}

/* ---- templates */

START_TEST(one_zygote_for_alike)
{
	struct t_world *world = sandbox_world(NONE);
	pid_t zygotes[8], first;

	expect_works(world);
	expect_children(world, 1, zygotes, T_COUNT(zygotes));
	first = zygotes[0];
	for (int i = 0; i < 5; i++)
		expect_works(world);
	expect_children(world, 1, zygotes, T_COUNT(zygotes));
	ck_assert_int_eq(zygotes[0], first);
	t_world_free(world);
}
END_TEST

START_TEST(zygote_is_killed)
{
	struct t_world *world = sandbox_world(NONE);
	pid_t zygotes[8], first;

	expect_works(world);
	expect_children(world, 1, zygotes, T_COUNT(zygotes));
	first = zygotes[0];
	ck_assert_int_eq(kill(first, SIGKILL), 0);
	/* Whether it was noticed by then or not. */
	expect_works(world);
	expect_children(world, 1, zygotes, T_COUNT(zygotes));
	ck_assert_int_ne(zygotes[0], first);
	expect_works(world);
	t_world_free(world);
}
END_TEST

/* While it is made, or at the first thing it is asked for: nothing has run yet, and those who
 * wait for it get another. */
START_TEST(zygote_is_killed_early)
{
	for (unsigned int moment = 0; moment < 16; moment++) {
		struct t_world *world = sandbox_world(NONE);
		struct t_run runs[3];
		pid_t found[8];
		uint64_t deadline = t_now() + T_MS(t_slack(5000));

		for (size_t i = 0; i < T_COUNT(runs); i++) {
			t_run_init(&runs[i], world);
			ck_assert_int_eq(t_run_start(&runs[i], "echo alive", 20000), 0);
		}
		while (t_children(t_world_helper(world), found, T_COUNT(found)) == 0 &&
		       t_now() < deadline)
			t_world_loop(world, 0, NULL);
		usleep(moment * 500);
		ck_assert_uint_gt(t_children(t_world_helper(world), found, T_COUNT(found)), 0);
		ck_assert_int_eq(kill(found[0], SIGKILL), 0);
		for (size_t i = 0; i < T_COUNT(runs); i++) {
			t_run_wait(&runs[i]);
			/* The zygote's death is none of those that had begun. */
			t_expect_status(&runs[i], AGENTD_STATUS_OK);
			t_expect_out(&runs[i], AGENTD_STDOUT, "alive\n");
			t_run_free(&runs[i]);
		}
		t_world_free(world);
	}
}
END_TEST

START_TEST(zygote_stops)
{
	struct t_world *world = sandbox_world(NONE);
	pid_t zygotes[8];

	expect_works(world);
	expect_children(world, 1, zygotes, T_COUNT(zygotes));
	ck_assert_int_eq(kill(zygotes[0], SIGSTOP), 0);
	expect_works(world);
	t_world_free(world);
}
END_TEST

START_TEST(workdir_is_another)
{
	struct t_world *world = sandbox_world(NONE);
	char *away = t_format("%s/away", world->dir), *file = t_format("%s/file", world->workdir);
	struct t_run run;

	t_run(&run, world, "echo old > file; ls", 20000);
	t_expect_out(&run, AGENTD_STDOUT, "file\n");
	t_run_free(&run);
	ck_assert_int_eq(rename(world->workdir, away), 0);
	ck_assert_int_eq(mkdir(world->workdir, 0777), 0);
	ck_assert_int_eq(chmod(world->workdir, 0777), 0);
	t_write_file(file, "new\n");
	t_run(&run, world, "cat file", 20000);
	t_expect_out(&run, AGENTD_STDOUT, "new\n");
	t_run_free(&run);
	free(file);
	free(away);
	t_world_free(world);
}
END_TEST

START_TEST(workdir_is_a_link)
{
	struct t_world *world = sandbox_world(NONE);
	char *away = t_format("%s/away", world->dir);
	char *marker = t_format("%s/ran", away);
	struct t_run run;

	expect_works(world);
	ck_assert_int_eq(rename(world->workdir, away), 0);
	ck_assert_int_eq(symlink(away, world->workdir), 0);
	t_run(&run, world, "echo ran > ran", 20000);
	ck_assert_int_ne(agentd_result_status(run.result), AGENTD_STATUS_OK);
	ck_assert_msg(strstr(t_run_story(&run), world->workdir), "%s", t_run_story(&run));
	ck_assert_int_lt(access(marker, F_OK), 0);
	t_run_free(&run);
	ck_assert_int_eq(unlink(world->workdir), 0);
	ck_assert_int_eq(rename(away, world->workdir), 0);
	expect_works(world);
	free(marker);
	free(away);
	t_world_free(world);
}
END_TEST

START_TEST(workdir_changes_hands)
{
	static const uid_t owners[] = { 2001, 2002 };
	struct t_world *world = sandbox_world(NONE);
	char *file = t_format("%s/file", world->workdir);

	t_write_file(file, "shown\n");
	ck_assert_int_eq(chmod(file, 0600), 0);
	/* Others than root can give nothing away. */
	for (size_t i = 0; i < T_COUNT(owners) && geteuid() == 0; i++) {
		struct t_run run;

		ck_assert_int_eq(chown(file, owners[i], owners[i]), 0);
		ck_assert_int_eq(chown(world->workdir, owners[i], owners[i]), 0);
		t_run(&run, world, "cat file; echo new > new; stat -c %u . file new; rm new",
		      20000);
		t_expect_out(&run, AGENTD_STDOUT, "shown\n1000\n1000\n1000\n");
		t_run_free(&run);
	}
	free(file);
	t_world_free(world);
}
END_TEST

/* A denied path that comes into being is hidden from the next command. */
START_TEST(denied_comes_into_being)
{
	struct t_world *world = sandbox_world(NONE);
	char *path = t_format("%s/secret", world->workdir);
	agentd_policy *policy = t_policy_none();
	struct t_run run;

	ck_assert_int_eq(agentd_policy_allow_path(policy, "/usr",
						  AGENTD_ACCESS_READ | AGENTD_ACCESS_EXEC, NULL),
			 0);
	ck_assert_int_eq(agentd_policy_deny_path(policy, path, NULL), 0);
	ck_assert_int_eq(agentd_context_set_policy(world->ctx, policy, NULL), 0);
	agentd_policy_unref(policy);
	t_run(&run, world, "cat secret 2>/dev/null; echo alive", 20000);
	t_expect_out(&run, AGENTD_STDOUT, "alive\n");
	t_run_free(&run);
	t_write_file(path, "secret\n");
	t_run(&run, world, "cat secret 2>/dev/null; echo alive", 20000);
	t_expect_out(&run, AGENTD_STDOUT, "alive\n");
	t_run_free(&run);
	free(path);
	t_world_free(world);
}
END_TEST

/* The view covers a denied path, and mounts one that is only to be read, by its name: that is
 * gone with the name, also where what has it next cannot be told from the one before by its
 * number. */
static const struct {
	const char *path, *before, *file, *change, *out; /* of a look at the file */
	bool read;
} anew[] = {
	{ "p", "mkdir p; echo S >p/k", "p/k", "rm -r p; mkdir p; echo S >p/k", "", false },
	{ "p", "echo S >p", "p", "for i in 1 2; do echo S >new; mv new p; done", "", false },
	{ "p", "echo S >p", "p", "ln p l; rm p; ln l p; rm l", "", false },
	{ "d/p", "mkdir d; echo S >d/p", "d/p", "rm -r d; mkdir d; echo S >d/p", "", false },
	{ "p", "echo S >p", "p", "for i in 1 2; do echo T >new; mv new p; done", "T\n", true },
	{ "p", "echo S >p", "p", "ln p l; rm p; ln l p; rm l", "S\n", true },
};

static struct t_world *world_with(const char *name, uint32_t access, uint32_t prewarm)
{
	struct t_world *world = sandbox_world(prewarm);
	char *path = t_format("%s/%s", world->home, name);
	agentd_policy *policy = t_policy_none();

	ck_assert_int_eq(agentd_policy_allow_path(policy, "/usr",
						  AGENTD_ACCESS_READ | AGENTD_ACCESS_EXEC, NULL),
			 0);
	ck_assert_int_eq(access ? agentd_policy_allow_path(policy, path, access, NULL) :
				  agentd_policy_deny_path(policy, path, NULL),
			 0);
	ck_assert_int_eq(agentd_context_set_policy(world->ctx, policy, NULL), 0);
	ck_assert_int_eq(agentd_context_set_workdir(world->ctx, world->home, NULL), 0);
	agentd_policy_unref(policy);
	free(path);
	return world;
}

/* With nothing kept ready, and with one. */
START_TEST(paths_are_made_anew)
{
	struct t_world *worlds[T_COUNT(anew)];
	pid_t first[2], second[2];

	for (size_t i = 0; i < T_COUNT(anew); i++) {
		char *script = t_format("cd ../home; umask 0; %s", anew[i].before);

		worlds[i] = world_with(anew[i].path, anew[i].read ? AGENTD_ACCESS_READ : 0,
				       _i == 0 ? NONE : 0);
		in_workdir(worlds[i], script);
		free(script);
	}
	/* What is newer is taken for another in any case. */
	sleep(3);
	for (size_t i = 0; i < T_COUNT(anew); i++) {
		char *script = t_format("cd ../home; umask 0; %s", anew[i].change);
		char *look = t_format("echo x >%s; cat %s", anew[i].file, anew[i].file);
		struct t_run run;

		t_run(&run, worlds[i], look, 20000);
		t_expect_out(&run, AGENTD_STDOUT, anew[i].read ? "S\n" : "");
		t_run_free(&run);
		expect_children(worlds[i], 1 + (size_t)_i, first, T_COUNT(first));
		/* Nothing has changed: the same template. */
		t_run(&run, worlds[i], look, 20000);
		t_expect_out(&run, AGENTD_STDOUT, anew[i].read ? "S\n" : "");
		t_run_free(&run);
		expect_children(worlds[i], 1 + (size_t)_i, second, T_COUNT(second));
		ck_assert_int_eq(first[0], second[0]);
		in_workdir(worlds[i], script);
		t_run(&run, worlds[i], look, 20000);
		t_expect_out(&run, AGENTD_STDOUT, anew[i].out);
		t_run_free(&run);
		free(look);
		free(script);
	}
	for (size_t i = T_COUNT(anew); i-- > 0;)
		t_world_free(worlds[i]);
}
END_TEST

START_TEST(cancelled_while_it_is_made)
{
	for (int delay = 0; delay < 12; delay += 2) {
		struct t_world *world = sandbox_world(NONE);
		struct t_run run;

		t_run_init(&run, world);
		ck_assert_int_eq(t_run_start(&run, "sleep 20", 20000), 0);
		t_world_loop(world, (uint64_t)delay, NULL);
		ck_assert_int_eq(agentd_exec_cancel(run.exec), 0);
		t_run_wait(&run);
		t_expect_cause(&run, AGENTD_CAUSE_CANCELED);
		ck_assert_int_eq(run.finished, 1);
		ck_assert_uint_lt(t_run_wall_ms(&run), t_slack(5000));
		t_run_free(&run);
		expect_works(world);
		t_world_free(world);
	}
}
END_TEST

/* ---- mounts of the context */

static char *at_world(const struct t_world *world, const char *json)
{
	char *ret = NULL;
	size_t len;
	FILE *text = open_memstream(&ret, &len);

	ck_assert_ptr_nonnull(text);
	for (; *json; json++)
		fprintf(text, *json == '$' ? "%s" : "%.1s", *json == '$' ? world->dir : json);
	ck_assert_int_eq(fclose(text), 0);
	return ret;
}

/* With data beside the working directory, and policies in which $ stands for where it is. */
static struct t_world *mounting_world(const char *ceiling, const char *policy)
{
	struct t_world *world = t_world_new_bare(&(struct t_world_opts){ .backend = "sandbox" });
	char *runner = at_world(world, ceiling), *own = at_world(world, policy);
	agentd_policy *context = NULL;

	in_workdir(world, "umask 0; mkdir ../data ../other; cd ../data; mkdir -p c d e/x l w"
			  " proj/.git proj/secret;"
			  " for i in . ../other c d e/x l w proj/.git proj/secret; do"
			  " echo shown >$i/config; done; ln -s data/l ../link");
	world->opts.runner_policy = runner;
	t_world_start(world);
	ck_assert_int_eq(agentd_policy_from_json(own, strlen(own), &context, NULL), 0);
	ck_assert_int_eq(agentd_context_set_policy(world->ctx, context, NULL), 0);
	agentd_policy_unref(context);
	free(runner);
	free(own);
	return world;
}

static void mount_data(struct t_world *world, const char *name, const char *target, uint32_t access)
{
	char *source = t_format("%s/%s", world->dir, name);

	ck_assert_int_eq(agentd_context_add_mount(world->ctx, source, target, access, NULL), 0);
	free(source);
}

static const struct {
	const char *source;
	uint32_t access;
	const char *refusal; /* NULL: none */
} mounts[] = {
	{ "data/e", AGENTD_ACCESS_READ, NULL },
	{ "data/w", AGENTD_ACCESS_READ | AGENTD_ACCESS_EXEC, "to execute the path" },
	{ "data/e/x", AGENTD_ACCESS_READ | AGENTD_ACCESS_EXEC, NULL },
	{ "data", AGENTD_ACCESS_READ | AGENTD_ACCESS_WRITE,
	  "runner's policy does not allow to write" },
	{ "data/w", AGENTD_ACCESS_READ | AGENTD_ACCESS_WRITE, NULL },
	{ "other", AGENTD_ACCESS_READ, "runner's policy does not allow to read" },
	{ "data/d", AGENTD_ACCESS_READ, "runner's policy denies" },
	{ "data/c", AGENTD_ACCESS_READ, "context's policy denies" },
	{ "data/e/x", AGENTD_ACCESS_WRITE, "runner's policy does not allow to write" },
	{ "data/w/x", AGENTD_ACCESS_READ | AGENTD_ACCESS_WRITE,
	  "context's policy does not allow to write" },
};

START_TEST(mounts_within_policies)
{
	struct t_world *world = mounting_world(
		"{\"min_isolation\":\"none\", \"paths\":{\"read\":[\"/usr\",\"$/data\"],"
		" \"write\":[\"$/data/w\"], \"exec\":[\"/usr\",\"$/data/e\"], \"deny\":[\"$/data/d\"]}}",
		"{\"paths\":{\"read\":[\"/usr\",\"$/data/w/x\"], \"exec\":[\"/usr\"],"
		" \"deny\":[\"$/data/c\"]}}");
	struct t_run run;

	in_workdir(world, "mkdir ../data/w/x; ln ../data/e/x/config ../data/e");
	mount_data(world, mounts[_i].source, "/mnt/data", mounts[_i].access);
	t_run(&run, world, "cat /mnt/data/config", 20000);
	if (mounts[_i].refusal) {
		const agentd_error *err = agentd_result_error(run.result);

		t_expect_status(&run, AGENTD_STATUS_DENIED);
		t_expect_cause(&run, AGENTD_CAUSE_POLICY);
		ck_assert_str_eq(agentd_error_pointer(err), "/mounts/0");
		ck_assert_msg(strstr(agentd_error_message(err), mounts[_i].refusal), "%s",
			      agentd_error_message(err));
	} else {
		t_expect_out(&run, AGENTD_STDOUT, "shown\n");
	}
	t_run_free(&run);
	t_world_free(world);
}
END_TEST

/* What is denied and what is protected stays so where a mount shows it under another name. */
START_TEST(mounts_show_no_more)
{
	static const char all[] =
		"{\"min_isolation\":\"none\", \"paths\":{\"read\":[\"/usr\",\"$/data\"],"
		" \"write\":[\"$/data\"], \"exec\":[\"/usr\"]}}";
	static const char less[] = "{\"paths\":{\"read\":[\"/usr\"], \"exec\":[\"/usr\"],"
				   " \"deny\":[\"$/data/proj/secret\",\"$/link\"]}}";
	struct t_world *world = mounting_world(all, less);
	char *workdir = t_format("%s/data/proj", world->dir);
	struct t_run run;

	ck_assert_int_eq(agentd_context_set_workdir(world->ctx, workdir, NULL), 0);
	mount_data(world, "data", "/mnt/data", AGENTD_ACCESS_READ | AGENTD_ACCESS_WRITE);
	mount_data(world, "data/l", "/mnt/l", AGENTD_ACCESS_READ);
	mount_data(world, "data/proj", "/mnt/data/w/p", AGENTD_ACCESS_READ);
	t_run(&run, world,
	      "cd /mnt/data; cat config; echo >proj/free && echo wrote;"
	      " cat secret/config proj/secret/config l/config /mnt/l/config w/p/secret/config;"
	      " echo evil >proj/.git/config; mv proj/.git proj/g; mv proj p && echo moved;"
	      " echo evil >/mnt/data/p/.git/config; touch proj/.bashrc",
	      20000);
	t_expect_out(&run, AGENTD_STDOUT, "shown\nwrote\n");
	t_run_free(&run);
	in_workdir(world, "cd ../data/proj; test shown = $(cat .git/config) && test ! -e .bashrc");
	free(workdir);
	t_world_free(world);
}
END_TEST

/* ---- the first process of a command */

START_TEST(reaper_is_killed)
{
	struct t_world *world = sandbox_world(NONE);
	pid_t found[8], zygote;
	struct t_run run;

	expect_works(world);
	expect_children(world, 1, found, T_COUNT(found));
	zygote = found[0];
	t_run_init(&run, world);
	ck_assert_int_eq(t_run_start(&run, "(setsid sleep 20 &); sleep 20", 30000), 0);
	ck_assert(t_world_loop(world, t_slack(20000), &run.started));
	expect_children(world, 2, found, T_COUNT(found));
	ck_assert_int_eq(kill(found[0] == zygote ? found[1] : found[0], SIGKILL), 0);
	t_run_wait(&run);
	ck_assert_int_eq(agentd_result_status(run.result), AGENTD_STATUS_ERROR);
	t_run_free(&run);
	t_world_expect_commands_dead(world, 2000);
	expect_works(world);
	t_world_free(world);
}
END_TEST

START_TEST(helper_is_killed)
{
	struct t_world *world = sandbox_world(2), *other;
	struct t_run runs[4];

	for (size_t i = 0; i < T_COUNT(runs); i++) {
		t_run_init(&runs[i], world);
		ck_assert_int_eq(t_run_start(&runs[i], "(setsid sleep 20 &); sleep 20", 30000), 0);
	}
	for (size_t i = 0; i < T_COUNT(runs); i++)
		ck_assert(t_world_loop(world, t_slack(20000), &runs[i].started));
	ck_assert_int_eq(kill(t_world_helper(world), SIGKILL), 0);
	for (size_t i = 0; i < T_COUNT(runs); i++) {
		t_run_wait(&runs[i]);
		ck_assert_int_eq(agentd_result_status(runs[i].result), AGENTD_STATUS_ERROR);
		t_run_free(&runs[i]);
	}
	t_world_expect_dead(world, 5000);
	/* Another runner's helper clears away the control groups that this one left. */
	other = sandbox_world(NONE);
	expect_works(other);
	t_world_free(other);
	t_world_free(world);
}
END_TEST

/* ---- kept ready */

START_TEST(prewarmed)
{
	enum { READY = 3 };
	struct t_world *world = sandbox_world(READY);
	pid_t found[16];

	expect_works(world);
	/* The zygote and those that wait. */
	expect_children(world, 1 + READY, found, T_COUNT(found));
	for (int i = 0; i < 12; i++) {
		struct t_run run;

		/* Private files, also of those who waited. */
		t_run(&run, world,
		      "ls -A /tmp /dev/shm /run/home; echo > /tmp/written; echo > /dev/shm/written; pwd",
		      20000);
		t_expect_status(&run, AGENTD_STATUS_OK);
		ck_assert_msg(strstr((const char *)run.out[AGENTD_STDOUT], world->workdir), "%s",
			      t_run_story(&run));
		ck_assert_ptr_null(strstr((const char *)run.out[AGENTD_STDOUT], "written"));
		t_run_free(&run);
	}
	/* The last one's may still be there instead of one that is being made. */
	t_world_loop(world, t_slack(200), NULL);
	expect_children(world, 1 + READY, found, T_COUNT(found));
	ck_assert_int_eq(kill(found[1], SIGKILL), 0);
	ck_assert_int_eq(kill(found[2], SIGKILL), 0);
	expect_children(world, 1 + READY - 2, found, T_COUNT(found));
	for (int i = 0; i < 4; i++)
		expect_works(world);
	t_world_free(world);
}
END_TEST

START_TEST(one_by_default)
{
	struct t_world *world = sandbox_world(0);
	pid_t found[2];

	expect_works(world);
	expect_children(world, 2, found, T_COUNT(found));
	t_world_free(world);
}
END_TEST

/* What the host does to protected names before one is made ready, and while it waits. */
static const struct {
	const char *before, *meanwhile, *command, *out;
	const char *holds; /* afterwards, outside */
} names[] = {
	{ ":", ":", "echo x > .profile; echo x > free && echo wrote", "wrote\n",
	  "test ! -e .profile && test -e free" },
	{ "mkdir -p .git/hooks", ":",
	  "echo x > .git/hooks/a || echo refused; mkdir .git/b && echo made", "refused\nmade\n",
	  "test ! -e .git/hooks/a && test -d .git/b" },
	{ ":", "mkdir -p .git/hooks", "echo x > .git/hooks/a || echo refused", "refused\n",
	  "test ! -e .git/hooks/a" },
	{ "mkdir .git", "mkdir .git/hooks", "echo x > .git/hooks/a || echo refused", "refused\n",
	  "test ! -e .git/hooks/a" },
	{ "mkdir -p .git/hooks", "mv .git old; mkdir -p .git/hooks",
	  "echo x > .git/hooks/a || echo refused", "refused\n", "test ! -e .git/hooks/a" },
	{ "mkdir -p .git/hooks; echo old > .git/config", "echo new > .git/c; mv .git/c .git/config",
	  "cat .git/config; echo x > .git/config || echo refused", "new\nrefused\n",
	  "test new = \"$(cat .git/config)\"" },
	/* all of it is the command's own then */
	{ "mkdir -p .git/hooks", "rm -r .git",
	  "mkdir -p .git/hooks; echo own > .git/hooks/a && echo made", "made\n",
	  "test own = \"$(cat .git/hooks/a)\"" },
	{ "mkdir .git", "rmdir .git; ln -s other .git; mkdir -p other/hooks",
	  "echo x > other/hooks/a || echo refused; rm .git; ln -s elsewhere .git", "refused\n",
	  "test other = \"$(readlink .git)\" && test ! -e other/hooks/a" },
	{ "ln -s other .git; ln -s real other; mkdir -p real/hooks",
	  "rm other; ln -s new other; mkdir -p new/hooks",
	  "echo x > new/hooks/a || echo refused; echo x > real/hooks/a && echo wrote",
	  "refused\nwrote\n", "test ! -e new/hooks/a && test -e real/hooks/a" },
	{ "mkdir -p .git/modules/a; echo old > .git/modules/a/config",
	  "mkdir .git/modules/b; echo mine > .git/modules/b/config",
	  "for m in a b; do echo x > .git/modules/$m/config || echo refused; done",
	  "refused\nrefused\n", "test mine = \"$(cat .git/modules/b/config)\"" },
	{ "ln -s dot/bashrc .bashrc", "mkdir dot; echo mine > dot/bashrc",
	  "echo x > dot/bashrc || echo refused", "refused\n", "test mine = \"$(cat .bashrc)\"" },
	{ "ln -s other .git; mkdir -p other/hooks", "rm .git; mkdir -p .git/hooks",
	  "echo x > .git/hooks/a || echo refused; echo x > other/hooks/a && echo wrote",
	  "refused\nwrote\n", "test ! -e .git/hooks/a && test -e other/hooks/a" },
};

static void expect_one_ready(struct t_world *world)
{
	pid_t found[2];

	expect_children(world, 2, found, T_COUNT(found));
	t_world_loop(world, t_slack(100), NULL);
}

START_TEST(names_change_meanwhile)
{
	struct t_world *world = sandbox_world(0);
	struct t_run run;

	in_workdir(world, names[_i].before);
	expect_works(world);
	expect_one_ready(world);
	in_workdir(world, names[_i].meanwhile);
	t_run(&run, world, names[_i].command, 20000);
	t_expect_out(&run, AGENTD_STDOUT, names[_i].out);
	t_run_free(&run);
	in_workdir(world, names[_i].holds);
	t_world_free(world);
}
END_TEST

/* A token is there for its command only, and for one that another was made ready before. */
START_TEST(tokens_come_late)
{
	static const char *const tokens[] = { "first", NULL, "second", "third", NULL };
	struct t_world *world = sandbox_world(0);

	expect_works(world);
	for (size_t i = 0; i < T_COUNT(tokens); i++) {
		struct t_run run;

		expect_one_ready(world);
		ck_assert_int_eq(agentd_context_set_credentials(world->ctx, tokens[i], 0, NULL), 0);
		t_run(&run, world, "cat /run/credentials/token || echo none", 20000);
		t_expect_out(&run, AGENTD_STDOUT, tokens[i] ? tokens[i] : "none\n");
		t_run_free(&run);
	}
	t_world_free(world);
}
END_TEST

/* Private files are memory: how many blocks of /tmp is a command given? */
static char *blocks_of_tmp(struct t_world *world, uint64_t memory)
{
	struct agentd_limits limits = { .size = sizeof(limits), .mem_bytes = memory };
	const struct agentd_exec_opts opts = { .size = sizeof(opts), .limits = &limits };
	struct t_run run;
	char *ret;

	t_run_init(&run, world);
	run.exec_opts = &opts;
	ck_assert_int_eq(t_run_start(&run, "stat -f -c %b /tmp", 20000), 0);
	t_run_wait(&run);
	t_expect_status(&run, AGENTD_STATUS_OK);
	ret = t_format("%s", (const char *)run.out[AGENTD_STDOUT]);
	t_run_free(&run);
	return ret;
}

/* One that was kept ready has what a fresh one has, whatever the last command's limits were. */
START_TEST(limits_come_late)
{
	static const uint64_t memory[] = { 64 << 20, 64 << 20, 32 << 20, 0, 64 << 20 };
	struct t_world *world = sandbox_world(0), *fresh = sandbox_world(NONE);

	for (size_t i = 0; i < T_COUNT(memory); i++) {
		char *want = blocks_of_tmp(fresh, memory[i]);
		char *is = blocks_of_tmp(world, memory[i]);

		ck_assert_str_eq(is, want);
		free(is);
		free(want);
		expect_one_ready(world);
	}
	t_world_free(fresh);
	t_world_free(world);
}
END_TEST

/* A parent that ignores SIGCHLD waits for nobody, and nobody's time becomes its own. Without a
 * control group that is not seen, which the host backend tells. */
START_TEST(time_of_those_that_nobody_waits_for)
{
	struct agentd_limits limits = { .size = sizeof(limits), .cpu_time_ms = t_slack(500) };
	const struct agentd_exec_opts opts = { .size = sizeof(opts), .limits = &limits };
	static const char *const backends[] = { "host", "sandbox" };
	struct t_world *world = sandbox_world(0);
	bool by_cgroup = false;

	for (size_t i = 0; i < T_COUNT(backends); i++) {
		struct t_run run;

		ck_assert_int_eq(agentd_context_set_backend(world->ctx, backends[i], NULL), 0);
		t_run_init(&run, world);
		run.exec_opts = &opts;
		ck_assert_int_eq(
			t_run_start(&run,
				    "exec perl -e '$SIG{CHLD} = \"IGNORE\"; while (1) { "
				    "if (fork) { wait } else { for (1 .. 1000000) {} exit } }'",
				    t_slack(5000)),
			0);
		t_run_wait(&run);
		if (i == 0)
			by_cgroup = strncmp(t_run_layer(&run, "tree-kill", NULL), "cgroup", 6) == 0;
		t_expect_cause(&run, by_cgroup ? AGENTD_CAUSE_CPU_TIME : AGENTD_CAUSE_TIMEOUT);
		t_run_free(&run);
	}
	t_world_free(world);
}
END_TEST

/* ---- many */

START_TEST(many_at_once)
{
	enum { MANY = 200 };
	struct t_world *world = t_world_new(&(struct t_world_opts){
		.backend = "sandbox", .max_running = MANY, .no_log = true });
	struct t_run *runs = calloc(MANY, sizeof(*runs));
	char *go = t_format("%s/go", world->workdir);
	int count = t_is_small() ? MANY / 4 : MANY, fd;

	/* Whoever opens it waits until we do. */
	ck_assert_int_eq(mkfifo(go, 0666), 0);
	ck_assert_int_eq(chmod(go, 0666), 0);
	for (int i = 0; i < count; i++) {
		char *command = t_format("read line <go; echo %d", i);

		t_run_init(&runs[i], world);
		ck_assert_int_eq(t_run_start(&runs[i], command, 100000), 0);
		free(command);
	}
	for (int i = 0; i < count; i++)
		ck_assert(t_world_loop(world, t_slack(60000), &runs[i].started));
	fd = open(go, O_RDWR | O_CLOEXEC);
	ck_assert_int_ge(fd, 0);
	for (int i = 0; i < count; i++)
		ck_assert_int_eq(write(fd, "\n", 1), 1);
	for (int i = 0; i < count; i++) {
		char *want = t_format("%d\n", i);

		ck_assert(t_world_loop(world, t_slack(60000), &runs[i].finished));
		t_expect_status(&runs[i], AGENTD_STATUS_OK);
		t_expect_out(&runs[i], AGENTD_STDOUT, want);
		free(want);
		t_run_free(&runs[i]);
	}
	close(fd);
	free(go);
	free(runs);
	t_world_free(world);
}
END_TEST

static uint64_t pages_of(pid_t pid)
{
	char *path = t_format("/proc/%d/statm", (int)pid), *statm = t_read_file(path, NULL);
	uint64_t pages = strtoull(strchr(statm, ' '), NULL, 10);

	free(statm);
	free(path);
	return pages;
}

static size_t descriptors_of(pid_t pid)
{
	char *path = t_format("/proc/%d/fd", (int)pid);
	DIR *dir = opendir(path);
	size_t count = 0;

	/* They are not dumpable: nobody but root may look. */
	while (dir && readdir(dir))
		count++;
	if (dir)
		closedir(dir);
	free(path);
	return count;
}

START_TEST(many_in_a_row)
{
	int count = t_is_small() ? 150 : 1000;
	struct t_world *world = t_world_new(&(struct t_world_opts){
		.backend = "sandbox", .sandbox_prewarm = NONE, .no_log = true });
	uint64_t own = 0, helper = 0, zygote = 0;
	size_t descriptors = 0;
	pid_t found[8];

	for (int i = 0; i < count; i++) {
		struct t_run run;

		t_run(&run, world, "exit 7", 60000);
		T_CHECK(agentd_result_exit_code(run.result) == 7, "%s", t_run_story(&run));
		t_run_free(&run);
		if (i == count / 10) {
			expect_children(world, 1, found, T_COUNT(found));
			own = t_rss_bytes();
			helper = pages_of(t_world_helper(world));
			zygote = pages_of(found[0]);
			descriptors = descriptors_of(t_world_helper(world)) +
				      descriptors_of(found[0]);
		}
	}
	expect_children(world, 1, found, T_COUNT(found));
	/* Commands of which one ends while the next begins have a network each, and a busy
	 * machine lets a few of them overlap; what leaks, leaks hundreds of times here. */
	ck_assert_uint_le(descriptors_of(t_world_helper(world)) + descriptors_of(found[0]),
			  descriptors + 16);
	if (!t_is_slow()) {
		ck_assert_uint_lt(t_rss_bytes(), own + (1 << 20));
		ck_assert_uint_lt(pages_of(t_world_helper(world)), helper + 64);
		ck_assert_uint_lt(pages_of(found[0]), zygote + 64);
	}
	t_world_free(world);
}
END_TEST

int main(void)
{
	TCase *templates = t_case("templates", 120), *mounted = t_case("mounts", 120),
	      *reapers = t_case("reapers", 120), *many = t_case("many", 240);
	TCase *cases[] = { templates, mounted, reapers, many };

	tcase_add_test(templates, one_zygote_for_alike);
	tcase_add_test(templates, zygote_is_killed);
	tcase_add_test(templates, zygote_is_killed_early);
	tcase_add_test(templates, zygote_stops);
	tcase_add_test(templates, workdir_is_another);
	tcase_add_test(templates, workdir_is_a_link);
	tcase_add_test(templates, workdir_changes_hands);
	tcase_add_test(templates, denied_comes_into_being);
	tcase_add_loop_test(templates, paths_are_made_anew, 0, 2);
	tcase_add_test(templates, cancelled_while_it_is_made);
	tcase_add_loop_test(mounted, mounts_within_policies, 0, T_COUNT(mounts));
	tcase_add_test(mounted, mounts_show_no_more);
	tcase_add_test(reapers, reaper_is_killed);
	tcase_add_test(reapers, helper_is_killed);
	tcase_add_test(reapers, prewarmed);
	tcase_add_test(reapers, one_by_default);
	tcase_add_test(reapers, tokens_come_late);
	tcase_add_test(reapers, limits_come_late);
	tcase_add_test(reapers, time_of_those_that_nobody_waits_for);
	tcase_add_loop_test(reapers, names_change_meanwhile, 0, T_COUNT(names));
	tcase_add_test(many, many_at_once);
	tcase_add_test(many, many_in_a_row);
	return t_main("life of sandboxes", cases, T_COUNT(cases));
}
