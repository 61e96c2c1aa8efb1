/* SPDX-License-Identifier: MIT */
#include "bench.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <inttypes.h>
#include <math.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <event2/event.h>

extern char **environ;

enum { TICK_US = 2000 };

/* Not in /tmp, of which a sandbox has its own: what lies there is mounted back for each. */
static char workdir[] = "/var/tmp/agentd-bench-XXXXXX";

_Noreturn void bench_fail(const char *what, const char *why)
{
	fprintf(stderr, "%s: %s: %s\n", program_invocation_short_name, what, why);
	exit(1);
}

void bench_must(int rc, const char *what, agentd_error **err)
{
	if (rc < 0)
		bench_fail(what, err ? agentd_error_message(*err) : agentd_strerror(rc));
}

/* What the library's backends give a command: a locale to be loaded or a longer PATH to be
 * gone through takes a shell a quarter longer, whoever starts it. */
static void set_environment(void)
{
	static const char *const vars[][2] = {
		{ "PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin" },
		{ "HOME", workdir },
		{ "USER", "agent" },
		{ "LOGNAME", "agent" },
		{ "LANG", "C.UTF-8" },
		{ "TMPDIR", "/tmp" },
		{ "SHELL", "/bin/bash" },
	};

	if (clearenv())
		bench_fail("environment", strerror(errno));
	for (size_t i = 0; i < BENCH_COUNT(vars); i++) {
		if (setenv(vars[i][0], vars[i][1], 1) < 0)
			bench_fail("environment", strerror(errno));
	}
}

void bench_init_process(void)
{
	struct rlimit files;

	if (!mkdtemp(workdir))
		bench_fail(workdir, strerror(errno));
	set_environment();
	if (getrlimit(RLIMIT_NOFILE, &files) == 0 && files.rlim_cur < files.rlim_max) {
		files.rlim_cur = files.rlim_max;
		setrlimit(RLIMIT_NOFILE, &files);
	}
}

bool bench_init(int argc, char *const *argv)
{
	bool quick = argc == 2 && strcmp(argv[1], "--quick") == 0;

	if (argc > 1 && !quick) {
		fprintf(stderr, "usage: %s [--quick]\n", argv[0]);
		exit(2);
	}
	bench_init_process();
	return quick;
}

const char *bench_workdir(void)
{
	return workdir;
}

static int remove_one(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
	(void)st;
	(void)type;
	(void)ftw;
	return remove(path);
}

void bench_exit(void)
{
	if (nftw(workdir, remove_one, 16, FTW_DEPTH | FTW_PHYS | FTW_MOUNT) < 0)
		bench_fail(workdir, strerror(errno));
}

/* ---- time and samples */

uint64_t bench_now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000000U + (uint64_t)ts.tv_nsec;
}

void bench_sleep_ms(unsigned int ms)
{
	const struct timespec pause = { .tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1000000L };

	nanosleep(&pause, NULL);
}

void bench_order(int *order, int count)
{
	for (int i = 0; i < count; i++)
		order[i] = i;
}

void bench_shuffle(int *order, int count)
{
	for (int i = count - 1; i > 0; i--) {
		int other = rand() % (i + 1), kept = order[i];

		order[i] = order[other];
		order[other] = kept;
	}
}

void bench_sample(struct bench_samples *samples, double value)
{
	if (samples->count == samples->room) {
		samples->room = samples->room ? samples->room * 2 : 64;
		samples->values = reallocarray(samples->values, samples->room,
					       sizeof(*samples->values));
		if (!samples->values)
			bench_fail("samples", "out of memory");
	}
	samples->values[samples->count++] = value;
}

void bench_sample_since(struct bench_samples *samples, uint64_t begin_ns)
{
	bench_sample(samples, (double)(bench_now_ns() - begin_ns) / 1e3);
}

static void ticker_arm(struct bench_ticker *ticker)
{
	const struct timeval period = { .tv_usec = TICK_US };

	/* What it counts from: else the beginning of the loop's turn. */
	event_base_update_cache_time(event_get_base(ticker->event));
	ticker->due = bench_now_ns() + TICK_US * 1000U;
	event_add(ticker->event, &period);
}

static void on_tick(evutil_socket_t fd, short what, void *userdata)
{
	struct bench_ticker *ticker = userdata;

	(void)fd;
	(void)what;
	bench_sample_since(ticker->samples, ticker->due);
	ticker_arm(ticker);
}

void bench_ticker_start(struct bench_ticker *ticker, struct event_base *base,
			struct bench_samples *samples)
{
	ticker->samples = samples;
	ticker->event = evtimer_new(base, on_tick, ticker);
	if (!ticker->event)
		bench_fail("timer", "out of memory");
	ticker_arm(ticker);
}

void bench_ticker_stop(struct bench_ticker *ticker)
{
	event_free(ticker->event);
}

static int compare(const void *a, const void *b)
{
	const double *x = a, *y = b;

	return (*x > *y) - (*x < *y);
}

/* By nearest rank: a value that was measured. */
static double quantile(const struct bench_samples *samples, double q)
{
	size_t rank = (size_t)ceil(q * (double)samples->count);

	return samples->values[rank > 0 ? rank - 1 : 0];
}

/* What we print are words of ours and of the system: nothing to escape but quotes. */
static void print_string(const char *name, const char *text)
{
	printf("\"%s\": \"", name);
	for (; *text; text++) {
		if (*text == '"' || *text == '\\')
			putchar('\\');
		putchar((unsigned char)*text < ' ' ? ' ' : *text);
	}
	putchar('"');
}

static void print_head(const struct bench_row *row)
{
	putchar('{');
	print_string("bench", row->bench);
	fputs(", ", stdout);
	print_string("case", row->where);
	fputs(", ", stdout);
	print_string("subject", row->subject);
	fputs(", ", stdout);
	print_string("metric", row->metric);
	fputs(", ", stdout);
	print_string("unit", row->unit);
	fputs(", ", stdout);
}

void bench_print(const struct bench_row *row, struct bench_samples *samples)
{
	if (samples->count == 0)
		bench_fail(row->subject, "no samples");
	qsort(samples->values, samples->count, sizeof(*samples->values), compare);
	print_head(row);
	printf("\"n\": %zu, \"median\": %.6g, \"p99\": %.6g}\n", samples->count,
	       quantile(samples, 0.5), quantile(samples, row->more_is_better ? 0.01 : 0.99));
	fflush(stdout);
	free(samples->values);
	*samples = (struct bench_samples){ 0 };
}

void bench_print_cannot(const struct bench_row *row, const char *reason)
{
	print_head(row);
	print_string("cannot", reason);
	puts("}");
	fflush(stdout);
}

/* ---- the host program */

static struct {
	void *memory;
	size_t size;
	int *fds;
	unsigned int count;
} held;

uint64_t bench_proc_kb(const char *path, const char *const *names)
{
	FILE *file = fopen(path, "re");
	uint64_t total = 0, kb;
	char line[256];

	if (!file)
		return 0;
	while (fgets(line, sizeof(line), file)) {
		for (const char *const *name = names; *name; name++) {
			size_t len = strlen(*name);

			if (strncmp(line, *name, len) == 0 &&
			    sscanf(line + len, "%" SCNu64, &kb) == 1)
				total += kb << 10;
		}
	}
	fclose(file);
	return total;
}

static bool hold_memory(size_t size, const char **ret_why)
{
	static const char *const available[] = { "MemAvailable:", NULL };

	if (bench_proc_kb("/proc/meminfo", available) < size + (UINT64_C(1) << 30)) {
		*ret_why = "too little memory";
		return false;
	}
	held.memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (held.memory == MAP_FAILED) {
		held.memory = NULL;
		*ret_why = strerror(errno);
		return false;
	}
	held.size = size;
	madvise(held.memory, size, MADV_NOHUGEPAGE);
	for (size_t i = 0; i < size; i += 4096)
		((volatile char *)held.memory)[i] = 1;
	return true;
}

static bool any(const char *name)
{
	(void)name;
	return true;
}

static bool hold_fds(unsigned int count, const char **ret_why)
{
	unsigned int open_now = bench_entries("/proc/self/fd", any);
	struct rlimit files;

	/* What is measured needs a few more. */
	if (getrlimit(RLIMIT_NOFILE, &files) < 0 || files.rlim_cur < count + 64) {
		*ret_why = "too few descriptors allowed";
		return false;
	}
	held.fds = reallocarray(NULL, count, sizeof(*held.fds));
	if (!held.fds)
		bench_fail("descriptors", "out of memory");
	while (open_now + held.count < count) {
		int fd = open("/dev/null", O_RDONLY | O_CLOEXEC);

		if (fd < 0) {
			*ret_why = strerror(errno);
			bench_let_go();
			return false;
		}
		held.fds[held.count++] = fd;
	}
	return true;
}

const struct bench_size *bench_sizes(bool quick)
{
	static const struct bench_size full[] = { { "1 GiB of memory", 1 << 10, 0 },
						  { "4 GiB of memory", 4 << 10, 0 },
						  { "1,000 descriptors", 0, 1000 },
						  { "16,000 descriptors", 0, 16000 },
						  { NULL, 0, 0 } };
	static const struct bench_size few[] = { { "64 MiB of memory", 64, 0 },
						 { "200 descriptors", 0, 200 },
						 { NULL, 0, 0 } };

	return quick ? few : full;
}

bool bench_hold(const struct bench_size *size, const char **ret_why)
{
	return (size->mib == 0 || hold_memory(size->mib << 20, ret_why)) &&
	       (size->fds == 0 || hold_fds(size->fds, ret_why));
}

void bench_let_go(void)
{
	if (held.memory)
		munmap(held.memory, held.size);
	held.memory = NULL;
	while (held.count > 0)
		close(held.fds[--held.count]);
	free(held.fds);
	held.fds = NULL;
}

unsigned int bench_entries(const char *path, bool (*wanted)(const char *name))
{
	const struct dirent *entry;
	DIR *dir = opendir(path);
	unsigned int count = 0;

	if (!dir)
		return 0;
	while ((entry = readdir(dir)))
		count += entry->d_name[0] != '.' && wanted(entry->d_name);
	closedir(dir);
	return count;
}

/* ---- starting programs without the library */

static int spawn_posix(const char *const *argv, const int *stdio)
{
	posix_spawn_file_actions_t actions;
	pid_t pid = -1;
	int r = posix_spawn_file_actions_init(&actions);

	for (int i = 0; stdio && i < 3 && r == 0; i++) {
		if (stdio[i] >= 0)
			r = posix_spawn_file_actions_adddup2(&actions, stdio[i], i);
	}
	if (r == 0)
		r = posix_spawn(&pid, argv[0], stdio ? &actions : NULL, NULL,
				(char *const *)(uintptr_t)argv, environ);
	posix_spawn_file_actions_destroy(&actions);
	if (r != 0)
		bench_fail(argv[0], strerror(r));
	return pid;
}

int bench_spawn(const char *const *argv, enum bench_how how, const int *stdio)
{
	pid_t pid;

	if (how == BENCH_SPAWN)
		return spawn_posix(argv, stdio);
	pid = how == BENCH_VFORK ? vfork() : fork();
	if (pid == 0) {
		for (int i = 0; stdio && i < 3; i++) {
			if (stdio[i] >= 0 && dup2(stdio[i], i) < 0)
				_exit(127);
		}
		execve(argv[0], (char *const *)(uintptr_t)argv, environ);
		_exit(127);
	}
	if (pid < 0)
		bench_fail(argv[0], strerror(errno));
	return pid;
}

int bench_wait(int pid)
{
	int status;

	while (waitpid(pid, &status, 0) < 0) {
		if (errno != EINTR)
			bench_fail("waitpid", strerror(errno));
	}
	return status;
}

void bench_run_program(const char *const *argv, enum bench_how how)
{
	if (bench_wait(bench_spawn(argv, how, NULL)) != 0)
		bench_fail(argv[0], "did not exit with 0");
}

/* ---- a process of its own for who forks */

/* A request is a line with the arguments separated by tabs; an empty one is the last. */
static _Noreturn void serve(double (*run)(const char *const *argv))
{
	char line[4096];

	while (fgets(line, sizeof(line), stdin) && line[0] != '\n') {
		const char *argv[16] = { NULL };
		char *save = NULL, *word = strtok_r(line, "\t\n", &save);

		for (size_t i = 0; word && i + 1 < BENCH_COUNT(argv); i++) {
			argv[i] = word;
			word = strtok_r(NULL, "\t\n", &save);
		}
		printf("%.3f\n", run(argv));
		fflush(stdout);
	}
	_exit(0);
}

static void server_open(struct bench_server *server, double (*run)(const char *const *argv),
			const char *const *argv)
{
	int in[2], out[2];

	if (pipe2(in, O_CLOEXEC) < 0 || pipe2(out, O_CLOEXEC) < 0)
		bench_fail("pipe2", strerror(errno));
	server->pid = fork();
	if (server->pid == 0) {
		if (dup2(in[0], STDIN_FILENO) < 0 || dup2(out[1], STDOUT_FILENO) < 0)
			_exit(127);
		if (run)
			serve(run);
		execv(argv[0], (char *const *)(uintptr_t)argv);
		_exit(127);
	}
	close(in[0]);
	close(out[1]);
	server->requests = fdopen(in[1], "w");
	server->answers = fdopen(out[0], "r");
	if (server->pid < 0 || !server->requests || !server->answers)
		bench_fail("a server", strerror(errno));
}

void bench_server_open(struct bench_server *server, double (*run)(const char *const *argv))
{
	server_open(server, run, NULL);
}

void bench_server_open_program(struct bench_server *server, const char *const *argv)
{
	server_open(server, NULL, argv);
}

double bench_server_ask(struct bench_server *server, const char *const *argv)
{
	FILE *requests = server->requests;
	char line[64];

	for (size_t i = 0; argv[i]; i++)
		fprintf(requests, "%s%s", i > 0 ? "\t" : "", argv[i]);
	fputc('\n', requests);
	if (fflush(requests) != 0 || !fgets(line, sizeof(line), server->answers))
		bench_fail(argv[0], "no answer");
	return strtod(line, NULL);
}

void bench_server_close(struct bench_server *server)
{
	FILE *requests = server->requests;

	fputc('\n', requests);
	fclose(requests);
	if (bench_wait(server->pid) != 0)
		bench_fail("a server", "did not exit with 0");
	fclose(server->answers);
}

/* ---- the runner that is measured */

static void on_started(agentd_exec *exec, void *userdata)
{
	struct bench_runner *runner = userdata;

	(void)exec;
	runner->started++;
}

static int32_t on_output(agentd_exec *exec, agentd_stream stream, const uint8_t *data, size_t len,
			 void *userdata)
{
	struct bench_runner *runner = userdata;

	(void)exec;
	(void)stream;
	(void)data;
	runner->bytes += len;
	return AGENTD_SINK_CONTINUE;
}

agentd_exec *bench_runner_start(struct bench_runner *runner, uint32_t flags)
{
	struct agentd_exec_opts opts = { .size = sizeof(opts), .flags = flags };
	agentd_error *err = NULL;
	agentd_exec *exec = NULL;

	bench_must(agentd_exec_start(runner->runner, runner->ctx, runner->params, runner->sink,
				     &opts, &exec, &err),
		   "agentd_exec_start", &err);
	return exec;
}

static void on_finished(agentd_exec *exec, agentd_result *result, void *userdata)
{
	struct bench_runner *runner = userdata;

	runner->finished++;
	if (agentd_result_status(result) == AGENTD_STATUS_OK)
		runner->ok++;
	else
		snprintf(runner->wrong, sizeof(runner->wrong), "a command ended as %s/%s %s",
			 agentd_status_name(agentd_result_status(result)),
			 agentd_cause_name(agentd_result_cause(result)),
			 agentd_error_message(agentd_result_error(result)));
	agentd_exec_unref(exec);
	if (runner->to_start > 0) {
		runner->to_start--;
		bench_runner_start(runner, 0);
	}
}

/* What programs need to be seen in a sandbox. */
static void allow_programs(agentd_policy *policy)
{
	static const char *const paths[] = {
		"/usr", "/etc", "/bin", "/sbin", "/lib", "/lib64", BENCH_STATIC_TRUE, BENCH_FLOOD
	};
	const uint32_t access = AGENTD_ACCESS_READ | AGENTD_ACCESS_EXEC;
	agentd_error *err = NULL;
	struct stat st;

	for (size_t i = 0; i < BENCH_COUNT(paths); i++) {
		if (lstat(paths[i], &st) == 0)
			bench_must(agentd_policy_allow_path(policy, paths[i], access, &err),
				   paths[i], &err);
	}
}

static const char *machine_image, *machine_monitor;

void bench_use_machines(const char *image, const char *monitor)
{
	machine_image = image;
	machine_monitor = monitor;
}

static void open_runner(struct bench_runner *runner, struct event_base *base, const char *backend,
			uint32_t prewarm, uint32_t max_running, int32_t net)
{
	struct agentd_sink_ops sink_ops = { .size = sizeof(sink_ops),
					    .started = on_started,
					    .output = on_output,
					    .finished = on_finished };
	struct agentd_runner_opts opts = { .size = sizeof(opts),
					   .max_running = max_running,
					   .max_queued = max_running,
					   .sandbox_prewarm = prewarm,
					   .microvm_image = machine_image,
					   .microvm_monitor = machine_monitor };
	struct agentd_limits limits;
	agentd_error *err = NULL;

	memset(runner, 0, sizeof(*runner));
	runner->base = base ? base : event_base_new();
	if (!runner->base)
		bench_fail("event_base_new", "failed");
	agentd_limits_init(&limits, sizeof(limits));
	limits.output_bytes = UINT64_MAX;
	bench_must(agentd_policy_new(&runner->policy, &err), "policy", &err);
	bench_must(agentd_policy_set_min_isolation(runner->policy, AGENTD_ISOLATION_NONE, &err),
		   "policy", &err);
	bench_must(agentd_policy_set_limits(runner->policy, &limits, &err), "policy", &err);
	bench_must(agentd_policy_set_net(runner->policy, net, &err), "policy", &err);
	allow_programs(runner->policy);
	opts.event_base = runner->base;
	opts.policy = runner->policy;
	bench_must(agentd_runner_new(&opts, &runner->runner, &err), "agentd_runner_new", &err);
	bench_must(agentd_context_new(&runner->ctx, &err), "context", &err);
	bench_must(agentd_context_set_policy(runner->ctx, runner->policy, &err), "context", &err);
	bench_must(agentd_context_set_backend(runner->ctx, backend, &err), "context", &err);
	bench_must(agentd_context_set_workdir(runner->ctx, workdir, &err), "context", &err);
	bench_must(agentd_sink_new(&sink_ops, runner, &runner->sink, &err), "sink", &err);
}

void bench_runner_open(struct bench_runner *runner, struct event_base *base, const char *backend,
		       uint32_t prewarm, uint32_t max_running)
{
	open_runner(runner, base, backend, prewarm, max_running, AGENTD_NET_NONE);
}

void bench_runner_open_net(struct bench_runner *runner, int32_t net)
{
	/* One that waits is ready sooner or later: they are to be compared. */
	open_runner(runner, NULL, "sandbox", UINT32_MAX, 1, net);
}

void bench_runner_use_session(struct bench_runner *runner)
{
	static const char id[] = "00000000-0000-4000-8000-000000000000";
	agentd_pool *pool = NULL;
	agentd_error *err = NULL;
	char json[256];
	int len = snprintf(json, sizeof(json),
			   "{\"enabled\": true, \"backend\": \"sandbox\", \"fallback\": false, "
			   "\"volume_root\": \"%s/sessions\"}",
			   workdir);

	bench_must(agentd_pool_new(runner->runner, json, (size_t)len, &pool, &err), "pool", &err);
	bench_must(agentd_runner_set_pool(runner->runner, pool, &err), "pool", &err);
	agentd_pool_unref(pool);
	bench_must(agentd_context_set_session(runner->ctx, id, NULL, NULL, &err), "session", &err);
}

void bench_runner_set_argv(struct bench_runner *runner, const char *const *argv)
{
	agentd_error *err = NULL;

	agentd_params_unref(runner->params);
	runner->params = NULL;
	bench_must(agentd_params_new_argv(argv, 600000, &runner->params, &err), "params", &err);
}

void bench_runner_until(struct bench_runner *runner, const unsigned int *counter,
			unsigned int target)
{
	while (*counter < target) {
		if (event_base_loop(runner->base, EVLOOP_ONCE) != 0)
			bench_fail("event_base_loop", "nothing to wait for");
	}
}

void bench_runner_run(struct bench_runner *runner)
{
	unsigned int finished = runner->finished + 1, ok = runner->ok + 1;

	bench_runner_start(runner, 0);
	bench_runner_until(runner, &runner->finished, finished);
	if (runner->ok != ok)
		bench_fail("a command", "its status is not ok");
}

static void on_gone(agentd_runner *runner, void *userdata)
{
	unsigned int *gone = userdata;

	(void)runner;
	*gone = 1;
}

void bench_runner_close(struct bench_runner *runner)
{
	unsigned int gone = 0;

	bench_must(agentd_runner_shutdown(runner->runner, 0, on_gone, &gone), "shutdown", NULL);
	bench_runner_until(runner, &gone, 1);
	agentd_params_unref(runner->params);
	agentd_sink_unref(runner->sink);
	agentd_context_unref(runner->ctx);
	agentd_runner_unref(runner->runner);
	agentd_policy_unref(runner->policy);
	event_base_free(runner->base);
}
