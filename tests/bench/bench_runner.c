/* SPDX-License-Identifier: MIT */
/* What a host program pays for a runner, beside what it is compared with: each measured
 * in turn, so that what else the machine does falls on all. Prints Markdown and judges
 * nothing, but for `--check`, which prints and judges only what does not depend on the
 * speed of the machine: memory per command, growth, leftovers.
 *
 *     bench_runner [--check] [--uid UID]     (--uid: as root, become UID first)
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <grp.h>
#include <inttypes.h>
#include <malloc.h>
#include <spawn.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <event2/event.h>

#include <agentd/agentd.h>

enum {
	SKIP = 77,
	MANY = 1000,
	MANY_SANDBOXES = 200,
	/* In a row; tests/host/test_scale.c has the 10,000 as well. */
	RUNS = 10000,
	CHECK_RUNS = 2000,
	LEAK_WARM_UP = 500,
	LEAK_AT_ONCE = 8,
	BYTES_PER_COMMAND_MAX = 8 << 10,
	GROWTH_MAX = 1 << 20,
	CGROUPS_MAX = 4 * 32, /* the helper's reserve, in a few hierarchies of version 1 */
};

extern char **environ;

static _Noreturn void fail(const char *what, const char *why)
{
	fprintf(stderr, "bench_runner: %s: %s\n", what, why);
	exit(1);
}

/* err by its address: arguments have no order, and rc is what sets it. */
static void must(int rc, const char *what, agentd_error **err)
{
	if (rc < 0)
		fail(what, err ? agentd_error_message(*err) : agentd_strerror(rc));
}

static uint64_t now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000000U + (uint64_t)ts.tv_nsec;
}

/* ---- samples */

static int compare_u64(const void *a, const void *b)
{
	const uint64_t *x = a, *y = b;

	return (*x > *y) - (*x < *y);
}

static double quantile_us(uint64_t *samples, size_t n, double q)
{
	qsort(samples, n, sizeof(*samples), compare_u64);
	return (double)samples[(size_t)(q * (double)(n - 1))] / 1e3;
}

/* ---- how long the loop is kept from waiting
 *
 * This epoll_wait() takes the place of libc's for libevent too. From the call of
 * agentd_exec_start() until the loop waits again after `started`, what is not
 * spent in here is spent in the library (and a little in libevent). */

static struct {
	bool active, started;
	uint64_t begin, waited, blocked;
} loop_probe;

int epoll_wait(int epfd, struct epoll_event *events, int maxevents, int timeout)
{
	uint64_t enter = 0;
	long n;

	if (loop_probe.active) {
		enter = now_ns();
		if (loop_probe.started) {
			loop_probe.blocked = enter - loop_probe.begin - loop_probe.waited;
			loop_probe.active = false;
		}
	}
	n = syscall(SYS_epoll_pwait, epfd, events, maxevents, timeout, NULL, 8);
	if (loop_probe.active)
		loop_probe.waited += now_ns() - enter;
	return (int)n;
}

/* ---- the runner under test */

static char workdir[] = "/tmp/agentd-bench.XXXXXX";

struct bench {
	struct event_base *base;
	agentd_policy *policy;
	agentd_context *ctx;
	agentd_runner *runner;
	agentd_params *params;
	agentd_sink *sink;
	unsigned to_start, running, started, finished, ok;
	uint64_t bytes;
};

static void on_started(agentd_exec *exec, void *userdata)
{
	struct bench *bench = userdata;

	(void)exec;
	bench->started++;
	loop_probe.started = true;
}

static int32_t on_output(agentd_exec *exec, agentd_stream stream, const uint8_t *data, size_t len,
			 void *userdata)
{
	struct bench *bench = userdata;

	(void)exec;
	(void)stream;
	(void)data;
	bench->bytes += len;
	return AGENTD_SINK_CONTINUE;
}

static agentd_exec *start_one(struct bench *bench)
{
	agentd_error *err = NULL;
	agentd_exec *exec = NULL;

	must(agentd_exec_start(bench->runner, bench->ctx, bench->params, bench->sink, NULL, &exec,
			       &err),
	     "agentd_exec_start", &err);
	bench->running++;
	return exec;
}

static void on_finished(agentd_exec *exec, agentd_result *result, void *userdata)
{
	struct bench *bench = userdata;

	bench->running--;
	bench->finished++;
	bench->ok += agentd_result_status(result) == AGENTD_STATUS_OK;
	agentd_exec_unref(exec);
	if (bench->to_start > 0) {
		bench->to_start--;
		start_one(bench);
	}
}

/* What programs need to be seen in a sandbox. */
static void allow_programs(agentd_policy *policy)
{
	static const char *const dirs[] = { "/usr", "/bin", "/sbin", "/lib", "/lib64" };
	const uint32_t access = AGENTD_ACCESS_READ | AGENTD_ACCESS_EXEC;
	agentd_error *err = NULL;
	struct stat st;

	for (size_t i = 0; i < sizeof(dirs) / sizeof(dirs[0]); i++) {
		if (lstat(dirs[i], &st) == 0)
			must(agentd_policy_allow_path(policy, dirs[i], access, &err), dirs[i],
			     &err);
	}
	must(agentd_policy_allow_path(policy, BENCH_STATIC_TRUE, access, &err), "policy", &err);
}

/* prewarm: of sandboxes. */
static void bench_open(struct bench *bench, const char *backend, uint32_t prewarm)
{
	struct agentd_sink_ops sink_ops = { .size = sizeof(sink_ops),
					    .started = on_started,
					    .output = on_output,
					    .finished = on_finished };
	struct agentd_runner_opts opts = { .size = sizeof(opts),
					   .max_running = MANY,
					   .max_queued = MANY,
					   .sandbox_prewarm = prewarm };
	struct agentd_limits limits;
	agentd_error *err = NULL;

	memset(bench, 0, sizeof(*bench));
	bench->base = event_base_new();
	if (!bench->base)
		fail("event_base_new", "failed");
	agentd_limits_init(&limits, sizeof(limits));
	limits.output_bytes = UINT64_MAX;
	must(agentd_policy_new(&bench->policy, &err), "policy", &err);
	must(agentd_policy_set_min_isolation(bench->policy, AGENTD_ISOLATION_NONE, &err), "policy",
	     &err);
	must(agentd_policy_set_limits(bench->policy, &limits, &err), "policy", &err);
	allow_programs(bench->policy);
	opts.event_base = bench->base;
	opts.policy = bench->policy;
	must(agentd_runner_new(&opts, &bench->runner, &err), "agentd_runner_new", &err);
	must(agentd_context_new(&bench->ctx, &err), "context", &err);
	must(agentd_context_set_policy(bench->ctx, bench->policy, &err), "context", &err);
	must(agentd_context_set_backend(bench->ctx, backend, &err), "context", &err);
	must(agentd_context_set_workdir(bench->ctx, workdir, &err), "context", &err);
	must(agentd_sink_new(&sink_ops, bench, &bench->sink, &err), "sink", &err);
}

static void set_argv(struct bench *bench, const char *const *argv)
{
	agentd_error *err = NULL;

	agentd_params_unref(bench->params);
	bench->params = NULL;
	must(agentd_params_new_argv(argv, 600000, &bench->params, &err), "params", &err);
}

/* Run the loop until so many have finished, or started. */
static void run_until(struct bench *bench, const unsigned *counter, unsigned target)
{
	while (*counter < target) {
		if (event_base_loop(bench->base, EVLOOP_ONCE) != 0)
			fail("event_base_loop", "nothing to wait for");
	}
	(void)bench;
}

static void run_one(struct bench *bench)
{
	unsigned target = bench->finished + 1;

	start_one(bench);
	run_until(bench, &bench->finished, target);
}

static void on_gone(agentd_runner *runner, void *userdata)
{
	unsigned *gone = userdata;

	(void)runner;
	*gone = 1;
}

static void bench_close(struct bench *bench)
{
	unsigned gone = 0;

	must(agentd_runner_shutdown(bench->runner, 0, on_gone, &gone), "shutdown", NULL);
	run_until(bench, &gone, 1);
	agentd_params_unref(bench->params);
	agentd_sink_unref(bench->sink);
	agentd_context_unref(bench->ctx);
	agentd_runner_unref(bench->runner);
	agentd_policy_unref(bench->policy);
	event_base_free(bench->base);
}

/* ---- what it is compared with */

static void spawn_wait(const char *const *argv, bool use_vfork)
{
	char *const *args = (char *const *)(uintptr_t)argv;
	int status, rc;
	pid_t pid = -1;

	if (use_vfork) {
		pid = vfork();
		if (pid == 0) {
			execve(args[0], args, environ);
			_exit(127);
		}
		rc = pid < 0 ? errno : 0;
	} else {
		rc = posix_spawn(&pid, args[0], NULL, NULL, args, environ);
	}
	if (rc != 0)
		fail(args[0], strerror(rc));
	while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
		;
	if (status != 0)
		fail(args[0], "did not exit with 0");
}

/* Bytes read from a child's pipe by the plainest loop there is. */
static uint64_t raw_read(const char *const *argv)
{
	static uint8_t buf[256 << 10];
	posix_spawn_file_actions_t actions;
	uint64_t total = 0;
	int fds[2], status;
	pid_t pid;
	ssize_t n;

	if (pipe2(fds, O_CLOEXEC) < 0)
		fail("pipe2", strerror(errno));
	fcntl(fds[0], F_SETPIPE_SZ, 1 << 20); /* as large as it gets */
	if (posix_spawn_file_actions_init(&actions) ||
	    posix_spawn_file_actions_adddup2(&actions, fds[1], STDOUT_FILENO) ||
	    posix_spawn(&pid, argv[0], &actions, NULL, (char *const *)(uintptr_t)argv, environ))
		fail(argv[0], "posix_spawn failed");
	posix_spawn_file_actions_destroy(&actions);
	close(fds[1]);
	while ((n = read(fds[0], buf, sizeof(buf))) > 0)
		total += (uint64_t)n;
	close(fds[0]);
	while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
		;
	return total;
}

/* ---- looking at ourselves */

/* Sum of the lines of a /proc file that begin with one of the names, in bytes. */
static uint64_t proc_kb(const char *path, const char *const *names)
{
	FILE *file = fopen(path, "re");
	uint64_t total = 0, kb;
	char line[256];

	if (!file)
		fail(path, strerror(errno));
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

static uint64_t private_bytes(void)
{
	static const char *const names[] = { "Private_Clean:", "Private_Dirty:", NULL };

	return proc_kb("/proc/self/smaps_rollup", names);
}

static uint64_t rss_bytes(void)
{
	static const char *const names[] = { "Rss:", NULL };

	return proc_kb("/proc/self/smaps_rollup", names);
}

/* Entries of path with part in their name; not the directories of our own tests. */
static unsigned count_entries(const char *path, const char *part)
{
	const struct dirent *entry;
	DIR *dir = opendir(path);
	unsigned count = 0;

	if (!dir)
		return 0;
	while ((entry = readdir(dir)))
		count += entry->d_name[0] != '.' && strstr(entry->d_name, part) != NULL &&
			 strncmp(entry->d_name, "agentd-test", 11) != 0 &&
			 strncmp(entry->d_name, "agentd-run", 10) != 0;
	closedir(dir);
	return count;
}

static unsigned count_fds(void)
{
	return count_entries("/proc/self/fd", "");
}

/* Directories below path whose name begins so. */
static unsigned count_dirs(const char *path, const char *prefix)
{
	const struct dirent *entry;
	DIR *dir = opendir(path);
	unsigned count = 0;

	if (!dir)
		return 0;
	while ((entry = readdir(dir))) {
		char child[4096];

		if (entry->d_type != DT_DIR || entry->d_name[0] == '.')
			continue;
		count += strncmp(entry->d_name, prefix, strlen(prefix)) == 0;
		if (snprintf(child, sizeof(child), "%s/%s", path, entry->d_name) <
		    (int)sizeof(child))
			count += count_dirs(child, prefix);
	}
	closedir(dir);
	return count;
}

struct leftovers {
	unsigned fds, children, zombies, temp;
};

/* Processes below pid; main() made us the parent of what has none. *child is the
 * last of its children: the helper, if that is all there is. */
static void count_children(pid_t pid, pid_t *child, struct leftovers *left)
{
	const struct dirent *entry;
	DIR *dir = opendir("/proc");

	if (!dir)
		fail("/proc", strerror(errno));
	while ((entry = readdir(dir))) {
		char path[300], line[512], state = 0;
		const char *end;
		int parent = 0;
		FILE *file;

		if (entry->d_name[0] < '0' || entry->d_name[0] > '9')
			continue;
		snprintf(path, sizeof(path), "/proc/%s/stat", entry->d_name);
		file = fopen(path, "re");
		if (!file)
			continue;
		if (fgets(line, sizeof(line), file) && (end = strrchr(line, ')')) &&
		    sscanf(end + 1, " %c %d", &state, &parent) == 2 && parent == pid) {
			pid_t grandchild;

			*child = (pid_t)strtol(entry->d_name, NULL, 10);
			left->children++;
			left->zombies += state == 'Z';
			count_children(*child, &grandchild, left);
		}
		fclose(file);
	}
	closedir(dir);
}

/* Returns the helper's process id, or 0. */
static pid_t look_around(struct leftovers *left)
{
	static const char *const places[] = { "/tmp", "/var/tmp", "/dev/shm", "/run" };
	pid_t helper = 0;

	memset(left, 0, sizeof(*left));
	left->fds = count_fds();
	count_children(getpid(), &helper, left);
	for (size_t i = 0; i < sizeof(places) / sizeof(places[0]); i++)
		left->temp += count_entries(places[i], "agentd");
	return helper;
}

static unsigned count_cgroups(pid_t helper)
{
	char prefix[32];

	snprintf(prefix, sizeof(prefix), "agentd-%d-", helper);
	return count_dirs("/sys/fs/cgroup", prefix);
}

/* What ends takes a moment to be gone: look until it looks as wanted, for 5 s. */
static bool looks_like(const struct leftovers *wanted, struct leftovers *left)
{
	static const struct timespec pause = { .tv_nsec = 20000000 };

	for (int i = 0; i < 250; i++) {
		look_around(left);
		if (memcmp(wanted, left, sizeof(*left)) == 0)
			return true;
		nanosleep(&pause, NULL);
	}
	return false;
}

/* ---- measurements */

static const char *const true_argv[] = { "/bin/true", NULL };

static void describe_machine(void)
{
	static const char *const names[] = { "MemTotal:", NULL };
	char line[256], model[128] = "unknown CPU", load[64] = "unknown";
	struct utsname uts;
	FILE *file;

	uname(&uts);
	file = fopen("/proc/cpuinfo", "re");
	while (file && fgets(line, sizeof(line), file)) {
		if (sscanf(line, "model name : %127[^\n]", model) == 1)
			break;
	}
	if (file)
		fclose(file);
	file = fopen("/proc/loadavg", "re");
	if (file) {
		if (fscanf(file, "%63[^\n]", load) != 1)
			load[0] = '\0';
		fclose(file);
	}
	printf("libagentd %s, libevent %s, %s %s, %s, %ld CPUs, %.1f GiB, uid %u, load %s\n\n",
	       agentd_version_string(), event_get_version(), uts.sysname, uts.release, model,
	       sysconf(_SC_NPROCESSORS_ONLN),
	       (double)proc_kb("/proc/meminfo", names) / (double)(1 << 30), (unsigned)getuid(),
	       load);
}

/* The loop is free between the starts: each is measured alone. */
static void blocked_row(const char *backend, const char *memory, unsigned fds)
{
	enum { TIMES = 300 };
	static uint64_t call[TIMES], blocked[TIMES];
	struct bench bench;

	bench_open(&bench, backend, 0);
	set_argv(&bench, true_argv);
	for (int i = 0; i < 20; i++)
		run_one(&bench);
	for (int i = 0; i < TIMES; i++) {
		unsigned target = bench.finished + 1;

		memset(&loop_probe, 0, sizeof(loop_probe));
		loop_probe.active = true;
		loop_probe.begin = now_ns();
		start_one(&bench);
		call[i] = now_ns() - loop_probe.begin;
		run_until(&bench, &bench.finished, target);
		while (loop_probe.active) /* finished in the turn that said started */
			event_base_loop(bench.base, EVLOOP_ONCE | EVLOOP_NONBLOCK);
		blocked[i] = loop_probe.blocked;
	}
	printf("| %s | %s | %u | %.1f | %.1f | %.1f | %.1f |\n", backend, memory, fds,
	       quantile_us(call, TIMES, 0.5), quantile_us(call, TIMES, 0.99),
	       quantile_us(blocked, TIMES, 0.5), quantile_us(blocked, TIMES, 0.99));
	fflush(stdout);
	bench_close(&bench);
}

static void blocked_rows(const char *memory, unsigned fds)
{
	blocked_row("host", memory, fds);
	blocked_row("sandbox", memory, fds);
}

static void measure_blocked(void)
{
	static const unsigned fd_counts[] = { 1000, 16000 };
	static const char *const available[] = { "MemAvailable:", NULL };
	unsigned open_now;
	int *fds = calloc(16000, sizeof(*fds));

	if (!fds)
		fail("calloc", "out of memory");
	puts("### Caller's loop blocked per start, us\n\n"
	     "From agentd_exec_start() to the first wait after `started`, waiting left out.\n\n"
	     "| backend | touched memory | open fds | exec_start median | p99 | all median | p99 |\n"
	     "|---|---|---|---|---|---|---|");
	blocked_rows("-", count_fds());
	for (size_t gib = 1; gib <= 4; gib += 3) {
		char name[16];
		void *memory;

		snprintf(name, sizeof(name), "%zu GiB", gib);
		if (proc_kb("/proc/meminfo", available) < (gib + 1) << 30) {
			printf("| both | %s | not measured: too little memory | | | | |\n", name);
			continue;
		}
		memory = mmap(NULL, gib << 30, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
			      -1, 0);
		if (memory == MAP_FAILED)
			fail("mmap", strerror(errno));
		madvise(memory, gib << 30, MADV_NOHUGEPAGE); /* the worst case: many pages */
		for (size_t i = 0; i < gib << 30; i += 4096)
			((volatile char *)memory)[i] = 1;
		blocked_rows(name, count_fds());
		munmap(memory, gib << 30);
	}
	open_now = count_fds();
	for (size_t i = 0; i < sizeof(fd_counts) / sizeof(fd_counts[0]); i++) {
		unsigned n = 0;

		while (open_now + n < fd_counts[i]) {
			fds[n] = open("/dev/null", O_RDONLY | O_CLOEXEC);
			if (fds[n] < 0)
				break;
			n++;
		}
		if (open_now + n < fd_counts[i])
			printf("| both | - | %u: not measured: %s | | | | |\n", fd_counts[i],
			       strerror(errno));
		/* The runner needs a few more; give back what it may want. */
		for (int back = 0; n > 0 && back < 40; back++)
			close(fds[--n]);
		if (open_now + n + 40 >= fd_counts[i])
			blocked_rows("-", open_now + n);
		while (n > 0)
			close(fds[--n]);
	}
	free(fds);
}

enum { BY_SPAWN, BY_VFORK, BY_HOST, BY_SANDBOX, BY_PREWARMED, BY_BWRAP, BY_COUNT };

/* A sandbox like ours by bubblewrap's lights: all namespaces, a read-only view of the
 * system, private /proc, /dev and /tmp, no capabilities. It sets up no Landlock, no
 * filter, no limits and no mapped owner of the working directory. */
static void bwrap_wait(const char *const *argv)
{
	/* clang-format off */
	static const char *const options[] = {
		BENCH_BWRAP, "--unshare-all", "--die-with-parent", "--new-session",
		"--cap-drop", "ALL",
		"--ro-bind", "/usr", "/usr", "--ro-bind", "/etc", "/etc",
		"--symlink", "usr/bin", "/bin", "--symlink", "usr/lib", "/lib",
		"--symlink", "usr/lib64", "/lib64",
		"--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp",
		"--ro-bind", BENCH_STATIC_TRUE, BENCH_STATIC_TRUE,
		"--bind", workdir, workdir, "--chdir", workdir, "--",
	};
	/* clang-format on */
	enum { OPTIONS = sizeof(options) / sizeof(options[0]) };
	const char *all[OPTIONS + 8] = { 0 };

	memcpy(all, options, sizeof(options));
	for (size_t i = 0; argv[i] && i < 7; i++)
		all[OPTIONS + i] = argv[i];
	spawn_wait(all, false);
}

static void latency_row(struct bench benches[static BY_COUNT], const char *name,
			const char *const *argv)
{
	/* A prewarmed sandbox is made again meanwhile. */
	static const struct timespec refill = { .tv_nsec = 4000000 };
	enum { TIMES = 200 };
	static uint64_t samples[BY_COUNT][TIMES];
	bool have_bwrap = access(BENCH_BWRAP, X_OK) == 0;
	double us[BY_COUNT];

	for (int which = BY_HOST; which <= BY_PREWARMED; which++)
		set_argv(&benches[which], argv);
	for (int i = -10; i < TIMES; i++) {
		for (int which = 0; which < BY_COUNT; which++) {
			uint64_t begin = now_ns();

			if (which == BY_BWRAP && have_bwrap)
				bwrap_wait(argv);
			else if (which < BY_HOST)
				spawn_wait(argv, which == BY_VFORK);
			else if (which < BY_BWRAP)
				run_one(&benches[which]);
			if (i >= 0)
				samples[which][i] = now_ns() - begin;
			if (which == BY_PREWARMED)
				nanosleep(&refill, NULL);
		}
	}
	printf("| %s |", name);
	for (int which = 0; which < BY_COUNT; which++) {
		us[which] = quantile_us(samples[which], TIMES, 0.5);
		if (which == BY_SPAWN)
			printf(" %.0f |", us[which]);
		else if (which != BY_BWRAP || have_bwrap)
			printf(" %.0f, %.2f x |", us[which], us[which] / us[BY_SPAWN]);
		else
			printf(" not installed |");
	}
	if (have_bwrap)
		printf(" %.1f | %.1f |\n", us[BY_BWRAP] / us[BY_SANDBOX],
		       us[BY_BWRAP] / us[BY_PREWARMED]);
	else
		printf(" | |\n");
	fflush(stdout);
}

static void measure_latency(void)
{
	static const char *const static_argv[] = { BENCH_STATIC_TRUE, NULL };
	static const char *const sh_argv[] = { "/bin/sh", "-c", ":", NULL };
	static const char *const bash_argv[] = { "/bin/bash", "-c", ":", NULL };
	static const char *const login_argv[] = { "/bin/bash", "-lc", ":", NULL };
	struct bench benches[BY_COUNT];

	bench_open(&benches[BY_HOST], "host", 0);
	bench_open(&benches[BY_SANDBOX], "sandbox", 0);
	bench_open(&benches[BY_PREWARMED], "sandbox", 2);
	puts("\n### Start to finish, us (median, one of each in turn), x posix_spawn\n\n"
	     "bwrap has no Landlock, no filter, no limits.\n\n"
	     "| program | posix_spawn | vfork + exec | host | sandbox | sandbox, prewarmed | bwrap"
	     " | bwrap / sandbox | bwrap / prewarmed |\n"
	     "|---|---|---|---|---|---|---|---|---|");
	latency_row(benches, "static true", static_argv);
	latency_row(benches, "/bin/true", true_argv);
	latency_row(benches, "sh -c :", sh_argv);
	latency_row(benches, "bash -c :", bash_argv);
	latency_row(benches, "bash -lc :", login_argv);
	for (int which = BY_HOST; which <= BY_PREWARMED; which++)
		bench_close(&benches[which]);
}

static void measure_throughput(struct bench *bench)
{
	static const char *const argv[] = { "/usr/bin/head", "-c", "1G", "/dev/zero", NULL };
	enum { TIMES = 5 };
	uint64_t raw[TIMES], ours[TIMES];
	double gb = (double)(1 << 30) / 1e9, raw_us, our_us;

	set_argv(bench, argv);
	for (int i = 0; i < TIMES; i++) {
		uint64_t begin = now_ns();

		if (raw_read(argv) != 1 << 30)
			fail("raw read", "wrong length");
		raw[i] = now_ns() - begin;
		bench->bytes = 0;
		begin = now_ns();
		run_one(bench);
		ours[i] = now_ns() - begin;
		if (bench->bytes != 1 << 30)
			fail("output", "wrong length");
	}
	raw_us = quantile_us(raw, TIMES, 0.5);
	our_us = quantile_us(ours, TIMES, 0.5);
	printf("\n### Output of `head -c 1G /dev/zero`, GB/s (median of %d, start-up included)\n\n"
	       "| raw read loop | runner, host | ratio |\n|---|---|---|\n"
	       "| %.2f | %.2f | %.2f |\n",
	       TIMES, gb / (raw_us / 1e6), gb / (our_us / 1e6), raw_us / our_us);
	fflush(stdout);
}

/* ---- what --check judges */

static bool verdict(bool good, const char *what)
{
	static unsigned count;

	printf("%sok %u - %s\n", good ? "" : "not ", ++count, what);
	return good;
}

static bool many_at_once(const char *backend, int many)
{
	static const char *const argv[] = { "/bin/sh", "-c", "read x; exit 0", NULL };
	struct agentd_exec_opts opts = { .size = sizeof(opts), .flags = AGENTD_EXEC_STDIN_OPEN };
	agentd_exec **execs = calloc((size_t)many, sizeof(*execs));
	struct bench bench;
	uint64_t before, with, begin, launched, done;
	double each;
	bool good;

	if (!execs)
		fail("calloc", "out of memory");
	memset(execs, 0, (size_t)many * sizeof(*execs)); /* touched: it is not the library's */
	bench_open(&bench, backend, 0);
	set_argv(&bench, true_argv);
	run_one(&bench);
	set_argv(&bench, argv);
	malloc_trim(0); /* what an earlier runner has left would be used again */
	before = private_bytes();
	begin = now_ns();
	for (int i = 0; i < many; i++) {
		agentd_error *err = NULL;

		must(agentd_exec_start(bench.runner, bench.ctx, bench.params, bench.sink, &opts,
				       &execs[i], &err),
		     "agentd_exec_start", &err);
		bench.running++;
	}
	run_until(&bench, &bench.started, 1 + (unsigned)many);
	launched = now_ns();
	with = private_bytes();
	good = verdict(bench.finished == 1, "every command waits");
	for (int i = 0; i < many; i++) {
		if (agentd_exec_close_stdin(execs[i]) < 0)
			fail("agentd_exec_close_stdin", "failed");
	}
	done = now_ns();
	run_until(&bench, &bench.finished, 1 + (unsigned)many);
	each = ((double)with - (double)before) / many;
	printf("\n### %d commands alive at once, backend %s\n\n"
	       "| private memory of the host each | results right | started, us each"
	       " | ended, us each |\n|---|---|---|---|\n"
	       "| %.0f bytes | %u of %d | %.0f | %.0f |\n",
	       many, backend, each, bench.ok - 1, many, (double)(launched - begin) / 1e3 / many,
	       (double)(now_ns() - done) / 1e3 / many);
	fflush(stdout);
	good &= verdict(each <= BYTES_PER_COMMAND_MAX, "at most 8 KiB of memory each");
	good &= verdict(bench.ok == 1 + (unsigned)many, "all results right");
	bench_close(&bench);
	free(execs);
	return good;
}

/* processes: the helper, and what else it keeps. */
static bool many_in_a_row(const char *backend, unsigned runs, unsigned processes)
{
	struct leftovers outside, before, after, gone, idle;
	unsigned cgroups_before, cgroups_after, cgroups_gone;
	uint64_t rss, begin, took;
	struct bench bench;
	int64_t growth;
	pid_t helper;
	bool good = true, clean;

	look_around(&outside);
	bench_open(&bench, backend, 0);
	set_argv(&bench, true_argv);
	bench.to_start = LEAK_WARM_UP - LEAK_AT_ONCE;
	for (int i = 0; i < LEAK_AT_ONCE; i++)
		start_one(&bench);
	run_until(&bench, &bench.finished, LEAK_WARM_UP);
	look_around(&idle);
	idle.children = processes;
	idle.zombies = 0;
	clean = looks_like(&idle, &before);
	good &= verdict(clean, "only what serves all commands is there between runs");
	helper = look_around(&before);
	cgroups_before = count_cgroups(helper);
	rss = rss_bytes();
	begin = now_ns();
	bench.to_start = runs - LEAK_AT_ONCE;
	for (int i = 0; i < LEAK_AT_ONCE; i++)
		start_one(&bench);
	run_until(&bench, &bench.finished, LEAK_WARM_UP + runs);
	took = now_ns() - begin;
	growth = (int64_t)rss_bytes() - (int64_t)rss;
	clean = looks_like(&idle, &after);
	cgroups_after = count_cgroups(helper);
	printf("\n### %u x /bin/true, %d at a time, backend %s\n\n"
	       "| each, us | RSS growth | fds | children | zombies | cgroups | temp entries |\n"
	       "|---|---|---|---|---|---|---|\n"
	       "| %.0f | %.0f KiB | %u to %u | %u to %u | %u to %u | %u to %u | %u to %u |\n",
	       runs, LEAK_AT_ONCE, backend, (double)took / 1e3 / runs, (double)growth / 1024,
	       before.fds, after.fds, before.children, after.children, before.zombies,
	       after.zombies, cgroups_before, cgroups_after, before.temp, after.temp);
	good &= verdict(bench.ok == LEAK_WARM_UP + runs, "all results right");
	good &= verdict(growth < GROWTH_MAX, "RSS grows by less than 1 MiB");
	good &= verdict(clean, "nothing is left of a run");
	/* The helper keeps those it has for the next commands. */
	good &= verdict(cgroups_after <= CGROUPS_MAX, "cgroups are used again");
	bench_close(&bench);
	clean = looks_like(&outside, &gone);
	cgroups_gone = count_cgroups(helper);
	printf("\nAfter the runner: %u fds (%u before it), %u children, %u cgroups, "
	       "%u temp entries (%u before it).\n",
	       gone.fds, outside.fds, gone.children, cgroups_gone, gone.temp, outside.temp);
	fflush(stdout);
	good &= verdict(clean && cgroups_gone == 0, "nothing is left of a runner");
	return good;
}

static bool become(const char *text)
{
	unsigned long uid = strtoul(text, NULL, 10);

	return setgroups(0, NULL) == 0 && setgid((gid_t)uid) == 0 && setuid((uid_t)uid) == 0;
}

int main(int argc, char **argv)
{
	static const struct option options[] = { { "check", no_argument, NULL, 'c' },
						 { "uid", required_argument, NULL, 'u' },
						 { NULL, 0, NULL, 0 } };
	struct rlimit files;
	bool check = false, good;
	int option;

	/* The same for the commands of the runner and those beside it, and none of the
	 * user's profile. */
	if (clearenv() || setenv("PATH", "/usr/bin:/bin", 1) || setenv("HOME", "/", 1))
		fail("environment", strerror(errno));
	/* The helper is nobody's child; this makes it ours to count. */
	if (prctl(PR_SET_CHILD_SUBREAPER, 1) < 0)
		fail("prctl", strerror(errno));

	/* Commands alive at once cost three descriptors each. */
	if (getrlimit(RLIMIT_NOFILE, &files) == 0 && files.rlim_cur < files.rlim_max) {
		files.rlim_cur = files.rlim_max;
		setrlimit(RLIMIT_NOFILE, &files);
	}
	while ((option = getopt_long(argc, argv, "", options, NULL)) != -1) {
		if (option == 'c') {
			check = true;
		} else if (option != 'u') {
			fputs("usage: bench_runner [--check] [--uid UID]\n", stderr);
			return 2;
		} else if (!become(optarg)) {
			fprintf(stderr, "SKIP-CANNOT: become uid %s: %s\n", optarg,
				strerror(errno));
			return SKIP;
		}
	}
	if (!mkdtemp(workdir))
		fail(workdir, strerror(errno));
	describe_machine();
	if (!check) {
		struct bench bench;

		measure_blocked();
		measure_latency();
		bench_open(&bench, "host", 0);
		measure_throughput(&bench);
		bench_close(&bench);
	}
	good = many_at_once("host", MANY);
	good &= many_at_once("sandbox", MANY_SANDBOXES);
	good &= many_in_a_row("host", check ? CHECK_RUNS : RUNS, 1);
	good &= many_in_a_row("sandbox", check ? CHECK_RUNS : RUNS, 2); /* and a zygote */
	rmdir(workdir);
	return check && !good;
}
