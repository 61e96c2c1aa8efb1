/* SPDX-License-Identifier: MIT */
/* Something fails, for the first time, for the second ... until nothing is left that
 * could: an allocation or a system call, of the host program or of its helper, once or
 * from then on. Whatever it is, nothing crashes, hangs, stays behind, runs without its
 * sandbox or is called a success that is none, and the next command works.
 *
 * usage: torture memory|helper-memory|calls|helper-calls [--full] [SCENE [NUMBER]]
 *        torture --scenes
 * Without --full a sample that is the same each time. NUMBER: only this one, to see
 * what happens. --scenes: their names. */
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "scene.h"
#include "trace.h"

enum {
	NO_CALL = -1,
	CHECK_EACH = 16, /* how often a play without faults comes in between */
	ENOUGH_MISSES = 16,
	NEIGHBOUR_CALLS = 130,
	PROBLEMS_MAX = 5 /* of a scene; then it is given up */
};

struct kind {
	const char *name;
	bool calls, in_helper;
	uint32_t sample; /* of each scene and mode, without --full */
};

/* What the child that plays tells, and how far it is when it dies. */
struct report {
	char doing[128];
	uint32_t numbers, faults, refused, slowest_ms;
	char slowest[128];
	bool done;
	int problems;
	char problem[PROBLEMS_MAX][1400];
};

/* The first five are the sample's. */
enum { SAMPLE_SCENES = 5 };
static const struct scene scenes[] = {
	{ .name = "host", .backend = "host" },
	{ .name = "sandbox", .backend = "sandbox" },
	{ .name = "prewarm", .backend = "sandbox", .prewarm = 1, .again = true },
	{ .name = "session", .backend = "sandbox", .session = true },
	{ .name = "machine-session", .backend = "microvm", .session = true },
	{ .name = "sandbox-kill", .backend = "sandbox", .kill = true },
	{ .name = "machine", .backend = "microvm" },
	{ .name = "host-kill", .backend = "host", .kill = true },
	{ .name = "own-loop", .backend = "host", .own_loop = true },
	{ .name = "host-again", .backend = "host", .again = true },
	{ .name = "probe", .backend = "host", .probe = true },
	{ .name = "names", .backend = "sandbox", .names = true },
	{ .name = "names-again", .backend = "sandbox", .names = true, .prewarm = 1, .again = true },
};

static const struct kind kinds[] = {
	{ .name = "memory", .sample = 20 },
	{ .name = "helper-memory", .in_helper = true, .sample = 8 },
	{ .name = "calls", .calls = true, .sample = 8 },
	{ .name = "helper-calls", .calls = true, .in_helper = true, .sample = 12 },
};

static const struct kind *kind;
static const char *only_scene;
static uint32_t only_number;
static bool full;
static struct report *report;

static void problem(const char *what, const char *story)
{
	char doing[sizeof(report->doing)];

	if (report->problems == PROBLEMS_MAX)
		return;
	memcpy(doing, report->doing, sizeof(doing));
	snprintf(report->problem[report->problems++], sizeof(report->problem[0]), "%s: %s%s", doing,
		 what, story);
}

/* ---- a fault after the other */

static void describe(const struct fault *fault)
{
	snprintf(report->doing, sizeof(report->doing), "%s no. %u%s",
		 kind->calls ? "call" : "allocation", fault->at, fault->for_good ? " and on" : "");
	if (fault->call != NO_CALL) {
		size_t len = strlen(report->doing);

		snprintf(report->doing + len, sizeof(report->doing) - len, " (%s: %s)",
			 trace_call_name(fault->call),
			 fault->out_of_errors ? "none" : strerrorname_np(fault->error));
	}
}

/* What is left in memory is only known of this process. */
static void play(struct scene *scene)
{
	long blocks = alloc_blocks_alive;
	uint64_t begin = t_now(), ms;
	const char *bad = scene_play(scene);

	blocks = alloc_blocks_alive - blocks;
	ms = (t_now() - begin) / 1000000U;
	if (scene->fault->at)
		describe(scene->fault);
	if (ms > report->slowest_ms) {
		report->slowest_ms = (uint32_t)ms;
		memcpy(report->slowest, report->doing, sizeof(report->slowest));
	}
	if (bad)
		problem("", bad);
	bad = scene_remains(scene);
	if (bad)
		problem(bad, scene->story);
	if (blocks != 0)
		problem("memory is left", scene->story);
}

/* True: it was reached. */
static bool play_fault(struct scene *scene)
{
	struct fault *fault = scene->fault;

	fault->call = NO_CALL;
	describe(fault);
	play(scene);
	if (only_number)
		fprintf(stderr, "%s%s\n", report->doing, scene->story);
	if (fault->hits == 0)
		return false;
	if (!fault->out_of_errors) {
		report->faults++;
		report->refused += scene->refused;
	}
	return true;
}

/* Every error of the n-th. */
static bool play_number(struct scene *scene, uint32_t number, bool for_good)
{
	struct fault *fault = scene->fault;

	fault->at = number;
	fault->for_good = for_good;
	fault->error_index = 0;
	if (!play_fault(scene))
		return false;
	while (fault->more_errors) {
		fault->error_index++;
		play_fault(scene);
	}
	report->numbers++;
	return true;
}

static void play_well(struct scene *scene, const char *when)
{
	scene->fault->at = 0;
	scene->fault->call = NO_CALL;
	scene->fault->for_good = false;
	snprintf(report->doing, sizeof(report->doing), "without a fault, %s", when);
	play(scene);
	if (scene->refused)
		problem("refused", scene->story);
}

static void play_all(struct scene *scene, bool for_good)
{
	uint32_t sample, step, missed = 0;

	/* What libraries keep for good is theirs from then on. */
	scene_play(scene);
	play_well(scene, "before");
	if (only_number) {
		play_number(scene, only_number, for_good);
		return;
	}
	/* Odd, so that of pairs it meets both. */
	sample = t_is_small() ? kind->sample / 2 : kind->sample;
	step = full ? 1 : (scene->fault->seen / sample) | 1;
	/* One play is shorter than another: the first that is not reached is not the end. */
	for (uint32_t number = 1;
	     report->problems < PROBLEMS_MAX && missed < (full ? ENOUGH_MISSES : 1);
	     number += step) {
		if (!play_number(scene, number, for_good)) {
			missed++;
			continue;
		}
		missed = 0;
		if (report->numbers % CHECK_EACH == 0)
			play_well(scene, "in between");
	}
	play_well(scene, "afterwards");
}

/* ---- in a child, for it may crash */

static void child(struct scene *scene, bool for_good, int ready)
{
	struct t_fds fds;
	const char *left;
	char byte;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (read(ready, &byte, 1) != 1)
		return;
	close(ready);
	t_fds_take(&fds);
	if (!kind->in_helper && !kind->calls)
		alloc_fault = scene->fault;
	play_all(scene, for_good);
	/* A use that went wrong may not have let go of all. */
	if (report->problems == 0)
		t_fds_expect_same(&fds, "after all");
	left = scene_remaining_cgroups(scene);
	if (left)
		problem("left: ", left);
	report->done = true;
}

static struct fault *make_fault(struct t_world *world)
{
	struct fault *fault;

	if (kind->in_helper)
		fault = fault_create(world->helper);
	else
		fault = mmap(NULL, sizeof(*fault), PROT_READ | PROT_WRITE,
			     MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	ck_assert(fault && fault != MAP_FAILED);
	if (kind->calls && kind->in_helper) {
		char *dir = t_format("%s/real", world->dir), *real;

		ck_assert_int_eq(mkdir(dir, 0755), 0);
		real = t_copy_program(getenv("TORTURE_HELPER"), dir, world->helper_name);
		snprintf(fault->program, sizeof(fault->program), "%s", real);
		free(real);
		free(dir);
	}
	return fault;
}

static void play_in_child(struct scene *scene, bool for_good)
{
	int fds[2], status;
	pid_t pid;

	ck_assert_int_eq(pipe(fds), 0);
	pid = fork();
	if (pid == 0) {
		close(fds[1]);
		child(scene, for_good, fds[0]);
		_exit(0);
	}
	ck_assert_int_gt(pid, 0);
	close(fds[0]);
	if (kind->calls && !kind->in_helper)
		ck_assert_msg(trace_attach(pid, false), "ptrace: %s", strerror(errno));
	ck_assert_int_eq(write(fds[1], "", 1), 1);
	close(fds[1]);
	if (kind->calls && !kind->in_helper)
		status = trace_run(scene->fault, pid);
	else
		ck_assert_int_eq(waitpid(pid, &status, 0), pid);
	ck_assert_msg(status == 0 && report->done, "wait status %#x: %s", (unsigned int)status,
		      report->doing);
}

START_TEST(test_torture)
{
	struct scene scene = scenes[_i / 2];
	bool for_good = _i % 2;
	char *story = t_format("%s", "");

	if (only_scene ? strcmp(only_scene, scene.name) != 0 : !full && _i / 2 >= SAMPLE_SCENES)
		return;
	report = mmap(NULL, sizeof(*report), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1,
		      0);
	ck_assert(report != MAP_FAILED);
	setenv("AGENTD_TEST_HELPER",
	       getenv(!kind->in_helper ? "TORTURE_HELPER" :
		      kind->calls      ? "TORTURE_TRACED" :
					 "TORTURE_STARVED"),
	       1);
	scene.world = t_world_new_bare(NULL);
	scene.in_helper = kind->in_helper;
	scene.fault = make_fault(scene.world);
	scene_open(&scene, getenv("TORTURE_COMMAND"));
	play_in_child(&scene, for_good);
	printf("%s, %s, %s: %u places, %u faults, %u refused; %u ms: %s\n", kind->name, scene.name,
	       for_good ? "for good" : "once", report->numbers, report->faults, report->refused,
	       report->slowest_ms, report->slowest);
	for (int i = 0; i < report->problems; i++) {
		char *longer = t_format("%s\n%s", story, report->problem[i]);

		free(story);
		story = longer;
	}
	ck_assert_msg(report->problems == 0, "%s, %s:%s", scene.name,
		      for_good ? "for good" : "once", story);
	/* Of the few places of a sample most may be calls that cannot fail. */
	ck_assert_msg(only_number || report->faults > 0, "no fault");
	scene_close(&scene);
	t_world_expect_clean(scene.world);
	t_world_forget(scene.world);
	free(story);
}
END_TEST

/* A helper whose calls fail does not take the control groups of another for those of
 * one that is gone: nothing that it does shows there. */
START_TEST(test_neighbour)
{
	struct t_world *neighbour;
	struct scene scene = scenes[0];
	struct t_run run;
	size_t groups;
	char *one, *other;

	if (!kind->calls || !kind->in_helper || only_scene)
		return;
	setenv("AGENTD_TEST_HELPER", getenv("TORTURE_HELPER"), 1);
	neighbour = t_world_new(NULL);
	/* Its groups are there from now on, and empty. */
	t_run(&run, neighbour, "echo first", 0);
	t_run_free(&run);
	groups = t_find_cgroups(neighbour->helpers, neighbour->helper_count, &one);
	if (groups == 0)
		t_skip("no control groups to be had");
	setenv("AGENTD_TEST_HELPER", getenv("TORTURE_TRACED"), 1);
	report = mmap(NULL, sizeof(*report), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1,
		      0);
	ck_assert(report != MAP_FAILED);
	scene.world = t_world_new_bare(NULL);
	scene.in_helper = true;
	scene.fault = make_fault(scene.world);
	scene_open(&scene, getenv("TORTURE_COMMAND"));
	/* Of its start, where it looks for them. */
	for (uint32_t number = 30; groups > 0 && number < NEIGHBOUR_CALLS; number++)
		play_number(&scene, number, false);
	ck_assert_uint_eq(t_find_cgroups(neighbour->helpers, neighbour->helper_count, &other),
			  groups);
	free(one);
	free(other);
	scene_close(&scene);
	t_world_expect_clean(scene.world);
	t_world_forget(scene.world);
	t_world_free(neighbour);
}
END_TEST

/* A command without a sandbox is noticed. */
START_TEST(test_control)
{
	struct scene scene = scenes[0];

	setenv("AGENTD_TEST_HELPER", getenv("TORTURE_HELPER"), 1);
	scene.world = t_world_new_bare(NULL);
	scene_open(&scene, getenv("TORTURE_COMMAND"));
	ck_assert_ptr_null(scene_play(&scene));
	ck_assert_msg(scene.marked, "%s", scene.story);
	ck_assert_msg(strstr(scene.story, "open: "), "%s", scene.story);
	scene_close(&scene);
	t_world_expect_clean(scene.world);
	t_world_forget(scene.world);
}
END_TEST

static void choose(int argc, char **argv)
{
	for (size_t i = 0; argc > 1 && i < T_COUNT(kinds); i++) {
		if (strcmp(argv[1], kinds[i].name) == 0)
			kind = &kinds[i];
	}
	for (int i = 2; i < argc; i++) {
		if (strcmp(argv[i], "--full") == 0)
			full = true;
		else if (!only_scene)
			only_scene = argv[i];
		else
			only_number = (uint32_t)strtoul(argv[i], NULL, 10);
	}
}

int main(int argc, char **argv)
{
	TCase *tcase;

	if (argc == 2 && strcmp(argv[1], "--scenes") == 0) {
		for (size_t i = 0; i < T_COUNT(scenes); i++)
			puts(scenes[i].name);
		return 0;
	}
	choose(argc, argv);
	/* Each play has its deadline; how many there are is not known. */
	tcase = t_case("torture", full ? 0 : 600);
	if (!kind) {
		fprintf(stderr, "usage: %s KIND [--full] [SCENE [NUMBER]]\n", argv[0]);
		return 2;
	}
	if (kind->calls && !trace_possible()) {
		fputs("SKIP-CANNOT: no ptrace(2) here\n", stderr);
		return 77;
	}
	setvbuf(stdout, NULL, _IOLBF, 0);
	tcase_add_test(tcase, test_control);
	tcase_add_test(tcase, test_neighbour);
	tcase_add_loop_test(tcase, test_torture, 0, 2 * (int)T_COUNT(scenes));
	return t_main("torture", &tcase, 1);
}
