/* SPDX-License-Identifier: MIT */
/* Sessions in virtual machines under emulation: what one costs until its first command has
 * ended, when ten begin at once, while they are idle, and at its end. The image is
 * AGENTD_TEST_IMAGE, or the superuser's. */
#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <event2/event.h>

#include "bench.h"

/* A guest is not idle at once: its journal is written after 5 s. */
enum { AT_ONCE = 10, SETTLE_S = 10, IDLE_S = 5 };

#define IMAGE "/var/cache/agentd"
#define MONITOR "/usr/bin/qemu-system-x86_64"
#define SESSION "agentd, machine session"

static const char *const true_argv[] = { "/bin/true", NULL };

static const struct bench_row rows[] = {
	{ "sessions", "first of all", SESSION, "start to finish", "us", false },
	{ "sessions", "one more", SESSION, "start to finish", "us", false },
	{ "sessions", "one more", SESSION ", spare", "start to finish", "us", false },
	{ "sessions", "one more", SESSION, "stop", "us", false },
	{ "sessions", "in one that runs", SESSION, "start to finish", "us", false },
	{ "sessions", "10 at once", SESSION, "all ready", "us", false },
	{ "sessions", "idle", SESSION, "memory of the monitor", "KiB", false },
	{ "sessions", "idle", SESSION, "share of a processor", "%", false },
};
enum { FIRST, MORE, SPARE, STOP, AGAIN, TEN, MEMORY, IDLE, ROWS };
_Static_assert(ROWS == BENCH_COUNT(rows), "one name each");

static struct bench_samples samples[ROWS];

struct sessions {
	struct bench_runner runner;
	agentd_pool *pool;
	unsigned int next, stops;
	char name[16]; /* of the monitors' processes */
	char *monitor; /* the path that has it */
};

static void on_finished(agentd_exec *exec, agentd_result *result, void *userdata)
{
	struct sessions *sessions = userdata;

	(void)exec;
	if (agentd_result_status(result) != AGENTD_STATUS_OK)
		bench_fail("a command in a session",
			   agentd_result_error(result) ?
				   agentd_error_message(agentd_result_error(result)) :
				   "it failed");
	sessions->runner.finished++;
}

static agentd_pool *add_pool(struct sessions *sessions, const char *name, unsigned int min_warm)
{
	agentd_error *err = NULL;
	agentd_pool *pool = NULL;
	char json[512];
	int len = snprintf(json, sizeof(json),
			   "{\"enabled\": true, \"backend\": \"microvm\", \"fallback\": false, "
			   "\"acquire_timeout_ms\": 120000, \"volume_root\": \"%s/%s\", "
			   "\"min_warm\": %u}",
			   bench_workdir(), name, min_warm);

	bench_must(agentd_pool_new(sessions->runner.runner, json, (size_t)len, &pool, &err), "pool",
		   &err);
	return pool;
}

/* Where the next sessions come from. */
static void use_pool(struct sessions *sessions, agentd_pool *pool)
{
	agentd_error *err = NULL;

	bench_must(agentd_runner_set_pool(sessions->runner.runner, pool, &err), "pool", &err);
	sessions->pool = pool;
}

static void wait_for_spare(struct sessions *sessions)
{
	const struct timeval turn = { .tv_usec = 5000 };
	bool warm = false;

	while (!warm) {
		char *json = NULL;

		event_base_loopexit(sessions->runner.base, &turn);
		event_base_dispatch(sessions->runner.base);
		bench_must(agentd_pool_to_json(sessions->pool, &json, NULL, NULL), "pool", NULL);
		warm = strstr(json, "\"warm\":1,");
		agentd_free(json);
	}
}

static void open_sessions(struct sessions *sessions, const char *image)
{
	const struct agentd_sink_ops ops = { .size = sizeof(ops), .finished = on_finished };
	agentd_error *err = NULL;

	snprintf(sessions->name, sizeof(sessions->name), "bench-%d", (int)getpid());
	if (asprintf(&sessions->monitor, "%s/%s", bench_workdir(), sessions->name) < 0 ||
	    symlink(MONITOR, sessions->monitor) < 0 || chmod(bench_workdir(), 0711) < 0)
		bench_fail("the monitor", strerror(errno));
	bench_use_machines(image, sessions->monitor);
	bench_runner_open(&sessions->runner, NULL, "microvm", 0, AT_ONCE);
	agentd_sink_unref(sessions->runner.sink);
	bench_must(agentd_sink_new(&ops, sessions, &sessions->runner.sink, &err), "sink", &err);
	use_pool(sessions, add_pool(sessions, "machines", 0));
	bench_runner_set_argv(&sessions->runner, true_argv);
}

static void name_session(char id[static 37], unsigned int number)
{
	snprintf(id, 37, "%08x-0000-4000-8000-000000000000", number);
}

static void start_in(struct sessions *sessions, unsigned int number)
{
	agentd_error *err = NULL;
	char id[37];

	name_session(id, number);
	bench_must(agentd_context_set_session(sessions->runner.ctx, id, NULL, NULL, &err),
		   "session", &err);
	agentd_exec_unref(bench_runner_start(&sessions->runner, 0));
}

static void run_in(struct sessions *sessions, unsigned int number, struct bench_samples *to)
{
	unsigned int target = sessions->runner.finished + 1;
	uint64_t begin = bench_now_ns();

	start_in(sessions, number);
	bench_runner_until(&sessions->runner, &sessions->runner.finished, target);
	bench_sample_since(to, begin);
}

static void on_stopped(agentd_pool *pool, const agentd_error *err, void *userdata)
{
	struct sessions *sessions = userdata;

	(void)pool;
	if (err)
		bench_fail("stopping a session", agentd_error_message(err));
	sessions->stops++;
	event_base_loopbreak(sessions->runner.base);
}

static void stop(struct sessions *sessions, unsigned int number, struct bench_samples *to)
{
	unsigned int target = sessions->stops + 1;
	uint64_t begin = bench_now_ns();
	char id[37];

	name_session(id, number);
	bench_must(agentd_pool_stop(sessions->pool, id, on_stopped, sessions), "stop", NULL);
	bench_runner_until(&sessions->runner, &sessions->stops, target);
	if (to)
		bench_sample_since(to, begin);
}

static void bench_ten(struct sessions *sessions)
{
	unsigned int first = sessions->next, target = sessions->runner.finished + AT_ONCE;
	uint64_t begin = bench_now_ns();

	sessions->next += AT_ONCE;
	for (unsigned int i = 0; i < AT_ONCE; i++)
		start_in(sessions, first + i);
	bench_runner_until(&sessions->runner, &sessions->runner.finished, target);
	bench_sample_since(&samples[TEN], begin);
}

/* Without a spare and with one. */
static void bench_in_turn(struct sessions *sessions, unsigned int runs)
{
	agentd_pool *pools[] = { sessions->pool, add_pool(sessions, "warm", 1) };

	for (unsigned int i = 0; i < runs; i++) {
		for (int warm = 0; warm < 2; warm++) {
			/* The one that follows on the last is not to be made meanwhile. */
			use_pool(sessions, pools[1]);
			wait_for_spare(sessions);
			use_pool(sessions, pools[warm]);
			run_in(sessions, sessions->next, &samples[warm ? SPARE : MORE]);
			stop(sessions, sessions->next++, warm ? NULL : &samples[STOP]);
		}
	}
	use_pool(sessions, pools[0]);
	agentd_pool_unref(pools[1]);
}

/* The processes that have our monitor's name. */
static unsigned int find_monitors(const struct sessions *sessions, int pids[static AT_ONCE])
{
	DIR *dir = opendir("/proc");
	unsigned int count = 0;
	struct dirent *entry;

	while (dir && count < AT_ONCE && (entry = readdir(dir))) {
		char path[300], name[32] = "";
		FILE *file;

		snprintf(path, sizeof(path), "/proc/%s/comm", entry->d_name);
		file = entry->d_name[0] >= '1' && entry->d_name[0] <= '9' ? fopen(path, "re") :
									    NULL;
		if (!file)
			continue;
		if (fgets(name, sizeof(name), file)) {
			name[strcspn(name, "\n")] = '\0';
			if (strcmp(name, sessions->name) == 0)
				pids[count++] = atoi(entry->d_name);
		}
		fclose(file);
	}
	if (dir)
		closedir(dir);
	return count;
}

/* Time of processors, in ticks. */
static uint64_t ticks_of(int pid)
{
	unsigned long user = 0, system = 0;
	char path[64];
	FILE *file;

	snprintf(path, sizeof(path), "/proc/%d/stat", pid);
	file = fopen(path, "re");
	if (!file)
		return 0;
	/* Its name has no blanks. */
	if (fscanf(file, "%*d %*s %*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %lu %lu", &user,
		   &system) != 2)
		user = system = 0;
	fclose(file);
	return user + system;
}

static void bench_idle(struct sessions *sessions, bool quick)
{
	static const char *const names[] = { "Pss:", NULL };
	struct timeval settle = { .tv_sec = quick ? 1 : SETTLE_S }, idle = { .tv_sec = IDLE_S };
	int pids[AT_ONCE];
	uint64_t before[AT_ONCE];
	unsigned int count = find_monitors(sessions, pids);

	if (count != AT_ONCE)
		bench_fail(sessions->name, "not ten of them run");
	event_base_loopexit(sessions->runner.base, &settle);
	event_base_dispatch(sessions->runner.base);
	for (unsigned int i = 0; i < count; i++) {
		char path[64];
		uint64_t bytes;

		snprintf(path, sizeof(path), "/proc/%d/smaps_rollup", pids[i]);
		bytes = bench_proc_kb(path, names);
		if (bytes > 0)
			bench_sample(&samples[MEMORY], (double)bytes / 1024);
		before[i] = ticks_of(pids[i]);
	}
	event_base_loopexit(sessions->runner.base, &idle);
	event_base_dispatch(sessions->runner.base);
	for (unsigned int i = 0; i < count; i++)
		bench_sample(&samples[IDLE], (double)(ticks_of(pids[i]) - before[i]) * 100.0 /
						     (double)sysconf(_SC_CLK_TCK) / IDLE_S);
}

static void print_cannot(const char *missing)
{
	char reason[256];

	snprintf(reason, sizeof(reason), "there is no %s", missing);
	for (size_t i = 0; i < ROWS; i++)
		bench_print_cannot(&rows[i], reason);
}

int main(int argc, char **argv)
{
	const char *given = getenv("AGENTD_TEST_IMAGE");
	char *image = strdup(given ? given : IMAGE);
	bool quick = bench_init(argc, argv);
	unsigned int runs = quick ? 2 : 20;
	static struct sessions sessions;
	char path[512] = "";

	if (image)
		snprintf(path, sizeof(path), "%s/image.json", image);
	if (access(MONITOR, X_OK) < 0 || access(path, R_OK) < 0) {
		print_cannot(access(MONITOR, X_OK) < 0 ? MONITOR : path);
		free(image);
		bench_exit();
		return 0;
	}
	open_sessions(&sessions, image);
	run_in(&sessions, sessions.next, &samples[FIRST]);
	for (unsigned int i = 0; i < runs; i++)
		run_in(&sessions, sessions.next, &samples[AGAIN]);
	stop(&sessions, sessions.next++, NULL);
	bench_in_turn(&sessions, runs);
	for (unsigned int i = 0; i < (quick ? 1 : 3); i++) {
		unsigned int first = sessions.next;

		bench_ten(&sessions);
		if (i == 0)
			bench_idle(&sessions, quick);
		for (unsigned int j = 0; j < AT_ONCE; j++)
			stop(&sessions, first + j, NULL);
	}
	for (size_t i = 0; i < ROWS; i++) {
		if (samples[i].count > 0)
			bench_print(&rows[i], &samples[i]);
		else
			bench_print_cannot(&rows[i], "the monitor may not be looked at");
	}
	agentd_pool_unref(sessions.pool);
	bench_runner_close(&sessions.runner);
	free(sessions.monitor);
	free(image);
	bench_exit();
	return 0;
}
