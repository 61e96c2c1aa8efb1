/* SPDX-License-Identifier: MIT */
/* What do many commands cost, at once and in a row? `--check` prints and judges only what
 * does not depend on the speed of the machine: memory per command, growth, leftovers.
 *
 *     bench_many [--quick | --at-once N | --check [--uid UID]]
 *
 * --at-once: only so many. --uid: as root, become UID first. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <grp.h>
#include <inttypes.h>
#include <malloc.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/sysinfo.h>
#include <unistd.h>

#include <event2/event.h>

#include "bench.h"

enum {
	SKIP = 77,

	/* what --check wants */
	CHECK_MANY = 1000,
	CHECK_MANY_SANDBOXES = 200,
	CHECK_RUNS = 2000,
	WARM_UP = 500,
	AT_ONCE = 8,
	BYTES_PER_COMMAND_MAX = 8 << 10,
	GROWTH_MAX = 1 << 20,
	STARTING_MAX = 1000,  /* the last of ten thousand would not be started within 30 s */
	CGROUPS_MAX = 4 * 32, /* the helper's reserve, in a few hierarchies of version 1 */

	PROCESS_BYTES = 512 << 10, /* at most, with what the kernel has of it */
};

#define LAUNCH_MAX_NS UINT64_C(300000000000)

static const char *const true_argv[] = { "/bin/true", NULL };
/* In the working directory: commands wait there until each has got a line of its own. */
static const char *const wait_argv[] = { "/bin/sh", "-c", "read x <gate; exit 0", NULL };

/* ---- looking at ourselves */

static uint64_t private_bytes(const char *path)
{
	static const char *const names[] = { "Private_Clean:", "Private_Dirty:", NULL };

	return bench_proc_kb(path, names);
}

static uint64_t own_private_bytes(void)
{
	malloc_trim(0); /* what an earlier runner has left would be used again */
	return private_bytes("/proc/self/smaps_rollup");
}

static uint64_t rss_bytes(void)
{
	static const char *const names[] = { "Rss:", NULL };

	return bench_proc_kb("/proc/self/smaps_rollup", names);
}

/* Not what tests make, also those that run elsewhere: they name it agentd-WORD-* or
 * agentd-WORD.*. */
static bool is_ours(const char *name)
{
	static const char prefix[] = "agentd-", letters[] = "abcdefghijklmnopqrstuvwxyz";
	const char *word = name + sizeof(prefix) - 1;
	size_t len;

	if (strncmp(name, prefix, sizeof(prefix) - 1) != 0)
		return strstr(name, "agentd") != NULL;
	len = strspn(word, letters);
	return len == 0 || (word[len] != '-' && word[len] != '.');
}

static bool any(const char *name)
{
	(void)name;
	return true;
}

/* Directories below path whose name begins so. */
static unsigned int count_dirs(const char *path, const char *prefix)
{
	const struct dirent *entry;
	DIR *dir = opendir(path);
	unsigned int count = 0;

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

struct process {
	int pid, parent;
	char state;
};

/* Every process there is, one after the other. */
static bool next_process(DIR *proc, struct process *ret)
{
	const struct dirent *entry;

	while ((entry = readdir(proc))) {
		char path[300], line[512];
		const char *end;
		bool good;
		FILE *file;

		if (entry->d_name[0] < '0' || entry->d_name[0] > '9')
			continue;
		snprintf(path, sizeof(path), "/proc/%s/stat", entry->d_name);
		file = fopen(path, "re");
		if (!file)
			continue;
		ret->pid = (int)strtol(entry->d_name, NULL, 10);
		good = fgets(line, sizeof(line), file) && (end = strrchr(line, ')')) &&
		       sscanf(end + 1, " %c %d", &ret->state, &ret->parent) == 2;
		fclose(file);
		if (good)
			return true;
	}
	return false;
}

static DIR *open_proc(void)
{
	DIR *proc = opendir("/proc");

	if (!proc)
		bench_fail("/proc", strerror(errno));
	return proc;
}

struct leftovers {
	unsigned int fds, children, zombies, temp;
};

/* Processes below pid; main() made us the parent of what has none. *child is the
 * last of its children: the helper, if that is all there is. */
static void count_children(int pid, int *child, struct leftovers *left)
{
	struct process process;
	DIR *proc = open_proc();

	while (next_process(proc, &process)) {
		int grandchild;

		if (process.parent != pid)
			continue;
		*child = process.pid;
		left->children++;
		left->zombies += process.state == 'Z';
		count_children(process.pid, &grandchild, left);
	}
	closedir(proc);
}

/* Returns the helper's process id, or 0. */
static int look_around(struct leftovers *left)
{
	static const char *const places[] = { "/tmp", "/var/tmp", "/dev/shm", "/run" };
	int helper = 0;

	memset(left, 0, sizeof(*left));
	left->fds = bench_entries("/proc/self/fd", any);
	count_children(getpid(), &helper, left);
	for (size_t i = 0; i < BENCH_COUNT(places); i++)
		left->temp += bench_entries(places[i], is_ours);
	return helper;
}

static unsigned int count_cgroups(int helper)
{
	char prefix[32];

	snprintf(prefix, sizeof(prefix), "agentd-%d-", helper);
	return count_dirs("/sys/fs/cgroup", prefix);
}

/* What ends takes a moment to be gone: look until it looks as wanted, for 5 s. */
static bool looks_like(const struct leftovers *wanted, struct leftovers *left)
{
	for (int i = 0; i < 250; i++) {
		look_around(left);
		if (memcmp(wanted, left, sizeof(*left)) == 0)
			return true;
		bench_sleep_ms(20);
	}
	return false;
}

/* Of the helper, which is our only child, and of its own: supervisors and zygotes. What they
 * share is shared out among them. 0: who is not root may
 * not look. */
static uint64_t helper_bytes(void)
{
	static const char *const names[] = { "Pss:", NULL };
	DIR *proc = open_proc();
	struct process process;
	uint64_t total = 0;
	int helper = 0;

	while (next_process(proc, &process)) {
		if (process.parent == getpid())
			helper = process.pid;
	}
	rewinddir(proc);
	while (next_process(proc, &process)) {
		char path[64];

		if (process.pid != helper && process.parent != helper)
			continue;
		snprintf(path, sizeof(path), "/proc/%d/smaps_rollup", process.pid);
		total += bench_proc_kb(path, names);
	}
	closedir(proc);
	return total;
}

/* ---- at once */

static int open_gate(void)
{
	int fd;

	if (chdir(bench_workdir()) < 0 || (mkfifo("gate", 0600) < 0 && errno != EEXIST))
		bench_fail("gate", strerror(errno));
	fd = open("gate", O_RDWR | O_CLOEXEC);
	if (fd < 0)
		bench_fail("gate", strerror(errno));
	return fd;
}

static void pass_gate(int fd, unsigned int many)
{
	while (many-- > 0) {
		if (write(fd, "\n", 1) != 1)
			bench_fail("gate", strerror(errno));
	}
}

struct many {
	double launch_us, end_us; /* each */
	double host_bytes;        /* each */
	double helper_bytes;      /* each; 0: not known */
	bool all_waited, all_right;
	char why[200]; /* they did not all wait */
};

static void until_started(struct bench_runner *runner, unsigned int count, uint64_t until)
{
	while (runner->started < count && runner->finished == 1 && bench_now_ns() < until)
		event_base_loop(runner->base, EVLOOP_ONCE);
}

static void many_commands(const char *backend, unsigned int many, uint32_t flags, struct many *ret)
{
	uint64_t before, with, helper, helper_with, begin, launched, done;
	struct bench_runner runner;
	int gate = open_gate();
	bench_runner_open(&runner, NULL, backend, 0, many);
	bench_runner_set_argv(&runner, true_argv);
	bench_runner_run(&runner);
	bench_runner_set_argv(&runner, wait_argv);
	helper = helper_bytes();
	before = own_private_bytes();
	begin = bench_now_ns();
	for (unsigned int i = 0; i < many; i++) {
		bench_runner_start(&runner, flags);
		if (i >= STARTING_MAX)
			until_started(&runner, 1 + i - STARTING_MAX, begin + LAUNCH_MAX_NS);
	}
	until_started(&runner, 1 + many, begin + LAUNCH_MAX_NS);
	launched = bench_now_ns();
	with = private_bytes("/proc/self/smaps_rollup");
	helper_with = helper_bytes();
	ret->all_waited = runner.started == 1 + many && runner.finished == 1;
	snprintf(ret->why, sizeof(ret->why), "%s",
		 runner.wrong[0] ? runner.wrong : "they were not all started in five minutes");
	done = bench_now_ns();
	if (ret->all_waited) {
		pass_gate(gate, many);
		bench_runner_until(&runner, &runner.finished, 1 + many);
	}
	ret->end_us = (double)(bench_now_ns() - done) / 1e3 / many;
	ret->launch_us = (double)(launched - begin) / 1e3 / many;
	ret->host_bytes = ((double)with - (double)before) / many;
	ret->helper_bytes = ((double)helper_with - (double)helper) / many;
	ret->all_right = runner.ok == 1 + many;
	bench_runner_close(&runner);
	close(gate);
}

/* The same by posix_spawn, with the same pipe; nobody helps. */
static void many_programs(unsigned int many, struct many *ret)
{
	struct {
		int pid, fd;
	} *all = calloc(many, sizeof(*all));
	int gate = open_gate();
	uint64_t begin, launched;

	if (!all)
		bench_fail("calloc", "out of memory");
	begin = bench_now_ns();
	for (unsigned int i = 0; i < many; i++) {
		int ends[2];

		if (pipe2(ends, O_CLOEXEC) < 0)
			bench_fail("pipe2", strerror(errno));
		all[i].pid = bench_spawn(wait_argv, BENCH_SPAWN, (int[]){ -1, ends[1], ends[1] });
		close(ends[1]);
		all[i].fd = ends[0];
	}
	launched = bench_now_ns();
	pass_gate(gate, many);
	ret->all_right = true;
	for (unsigned int i = 0; i < many; i++) {
		ret->all_right &= bench_wait(all[i].pid) == 0;
		close(all[i].fd);
	}
	ret->end_us = (double)(bench_now_ns() - launched) / 1e3 / many;
	ret->launch_us = (double)(launched - begin) / 1e3 / many;
	ret->all_waited = true;
	close(gate);
	free(all);
}

enum subject { SPAWN, HOST, SANDBOX, SUBJECTS };

static const char *const subjects[SUBJECTS] = {
	[SPAWN] = "posix_spawn",
	[HOST] = "agentd, host",
	[SANDBOX] = "agentd, sandbox",
};

enum metric { LAUNCH, END, HOST_MEMORY, HELPER_MEMORY, METRICS };

static const struct {
	const char *name, *unit;
} metrics[METRICS] = {
	[LAUNCH] = { "launch, each", "us" },
	[END] = { "end, each", "us" },
	[HOST_MEMORY] = { "memory of the host program, each", "bytes" },
	[HELPER_MEMORY] = { "memory of helper and supervisors, each", "bytes" },
};

static struct bench_row row_of(const char *where, int subject, int metric)
{
	return (struct bench_row){ .bench = "many",
				   .where = where,
				   .subject = subjects[subject],
				   .metric = metrics[metric].name,
				   .unit = metrics[metric].unit };
}

/* Pages are counted: what few commands take is less than what comes by the way. A child
 * of posix_spawn takes a number to remember. */
static bool has_metric(int subject, int metric, unsigned int many)
{
	return metric < HOST_MEMORY || (many >= 50 && subject != SPAWN);
}

static void measure_subject(const char *where, int subject, unsigned int many, int times)
{
	struct bench_samples samples[METRICS] = { 0 };
	struct many result = { 0 };

	for (int i = 0; i < times; i++) {
		if (subject == SPAWN)
			many_programs(many, &result);
		else
			many_commands(subject == HOST ? "host" : "sandbox", many,
				      AGENTD_EXEC_MERGE_STDERR, &result);
		if (!result.all_waited)
			break;
		if (!result.all_right)
			bench_fail(subjects[subject], "a command ended otherwise than it should");
		bench_sample(&samples[LAUNCH], result.launch_us);
		bench_sample(&samples[END], result.end_us);
		bench_sample(&samples[HOST_MEMORY], result.host_bytes);
		bench_sample(&samples[HELPER_MEMORY], result.helper_bytes);
	}
	for (int metric = 0; metric < METRICS; metric++) {
		const struct bench_row row = row_of(where, subject, metric);

		if (!has_metric(subject, metric, many))
			samples[metric].count = 0;
		else if (!result.all_waited)
			bench_print_cannot(&row, result.why);
		else if (metric == HELPER_MEMORY && result.helper_bytes == 0)
			bench_print_cannot(&row, "only root may look at the helper's memory");
		else
			bench_print(&row, &samples[metric]);
		free(samples[metric].values);
	}
}

/* Each command has a supervisor, and each process takes kernel memory besides its own. */
static const char *no_room(unsigned int many)
{
	static const char *const names[] = { "MemAvailable:", NULL };
	const uint64_t processes = UINT64_C(2) * many + 64;
	struct rlimit files, own;
	struct sysinfo info;
	uint64_t pids = 0;
	FILE *file = fopen("/proc/sys/kernel/pid_max", "re");

	if (!file || fscanf(file, "%" SCNu64, &pids) != 1 || sysinfo(&info) < 0 ||
	    getrlimit(RLIMIT_NOFILE, &files) < 0 || getrlimit(RLIMIT_NPROC, &own) < 0)
		bench_fail("limits", strerror(errno));
	fclose(file);
	/* Each has one, of its output. */
	if (files.rlim_cur < many + 64)
		return "too few descriptors allowed";
	if (pids < info.procs + processes || (getuid() != 0 && own.rlim_cur < processes))
		return "too few processes allowed";
	if (bench_proc_kb("/proc/meminfo", names) < processes * PROCESS_BYTES)
		return "too little memory";
	/* Who is waited for would not get to run. */
	if (many > 1000 && sched_getscheduler(0) != SCHED_OTHER)
		return "not in the real-time class";
	return NULL;
}

static void measure(unsigned int many, int times)
{
	const char *why = no_room(many);
	char where[32];

	snprintf(where, sizeof(where), "%u at once", many);
	for (int subject = 0; subject < SUBJECTS; subject++) {
		for (int metric = 0; metric < METRICS && why; metric++) {
			const struct bench_row row = row_of(where, subject, metric);

			if (has_metric(subject, metric, many))
				bench_print_cannot(&row, why);
		}
		if (!why)
			measure_subject(where, subject, many, times);
	}
}

static void measure_all(bool quick)
{
	measure(1, quick ? 2 : 20);
	if (quick) {
		measure(50, 1);
		return;
	}
	measure(100, 10);
	measure(1000, 3);
	measure(10000, 1);
}

/* ---- what --check judges */

static bool verdict(bool good, const char *what)
{
	static unsigned int count;

	printf("%sok %u - %s\n", good ? "" : "not ", ++count, what);
	fflush(stdout);
	return good;
}

static bool check_many(const char *backend, unsigned int count)
{
	struct many many;
	bool good;

	many_commands(backend, count, AGENTD_EXEC_STDIN_OPEN, &many);
	printf("# %u commands alive at once, backend %s: %.0f bytes of the host program each\n",
	       count, backend, many.host_bytes);
	good = verdict(many.all_waited, "every command waits");
	good &= verdict(many.host_bytes <= BYTES_PER_COMMAND_MAX, "at most 8 KiB of memory each");
	good &= verdict(many.all_right, "all results right");
	return good;
}

static void run_many(struct bench_runner *runner, unsigned int runs)
{
	unsigned int finished = runner->finished + runs;

	runner->to_start = runs - AT_ONCE;
	for (int i = 0; i < AT_ONCE; i++)
		bench_runner_start(runner, 0);
	bench_runner_until(runner, &runner->finished, finished);
}

/* processes: the helper, and what else it keeps. */
static bool check_in_a_row(const char *backend, unsigned int processes)
{
	struct leftovers outside, before, after, gone, idle;
	unsigned int cgroups_before, cgroups_after, cgroups_gone;
	struct bench_runner runner;
	bool good = true, clean;
	int64_t growth;
	uint64_t rss;
	int helper;

	look_around(&outside);
	bench_runner_open(&runner, NULL, backend, 0, AT_ONCE);
	bench_runner_set_argv(&runner, true_argv);
	run_many(&runner, WARM_UP);
	look_around(&idle);
	idle.children = processes;
	idle.zombies = 0;
	clean = looks_like(&idle, &before);
	good &= verdict(clean, "only what serves all commands is there between runs");
	helper = look_around(&before);
	cgroups_before = count_cgroups(helper);
	rss = rss_bytes();
	run_many(&runner, CHECK_RUNS);
	growth = (int64_t)rss_bytes() - (int64_t)rss;
	clean = looks_like(&idle, &after);
	cgroups_after = count_cgroups(helper);
	printf("# %d x /bin/true, %d at a time, backend %s: RSS grew by %" PRId64 " KiB, "
	       "fds %u to %u, children %u to %u, zombies %u to %u, cgroups %u to %u, "
	       "temporary entries %u to %u\n",
	       CHECK_RUNS, AT_ONCE, backend, growth / 1024, before.fds, after.fds, before.children,
	       after.children, before.zombies, after.zombies, cgroups_before, cgroups_after,
	       before.temp, after.temp);
	good &= verdict(runner.ok == WARM_UP + CHECK_RUNS, "all results right");
	good &= verdict(growth < GROWTH_MAX, "RSS grows by less than 1 MiB");
	good &= verdict(clean, "nothing is left of a run");
	/* The helper keeps those it has for the next commands. */
	good &= verdict(cgroups_after <= CGROUPS_MAX, "cgroups are used again");
	bench_runner_close(&runner);
	clean = looks_like(&outside, &gone);
	cgroups_gone = count_cgroups(helper);
	printf("# after the runner: %u fds (%u before it), %u children, %u cgroups, "
	       "%u temporary entries (%u before it)\n",
	       gone.fds, outside.fds, gone.children, cgroups_gone, gone.temp, outside.temp);
	good &= verdict(clean && cgroups_gone == 0, "nothing is left of a runner");
	return good;
}

static bool check_all(void)
{
	bool good = check_many("host", CHECK_MANY);

	good &= check_many("sandbox", CHECK_MANY_SANDBOXES);
	/* With a supervisor and a process for the next command; in the sandbox a zygote too. */
	good &= check_in_a_row("host", 3);
	good &= check_in_a_row("sandbox", 4);
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
						 { "at-once", required_argument, NULL, 'n' },
						 { "quick", no_argument, NULL, 'q' },
						 { "uid", required_argument, NULL, 'u' },
						 { NULL, 0, NULL, 0 } };
	bool check = false, quick = false, good = true;
	unsigned int many = 0;
	int option;

	while ((option = getopt_long(argc, argv, "", options, NULL)) != -1) {
		if (option == 'c') {
			check = true;
		} else if (option == 'q') {
			quick = true;
		} else if (option == 'n' && strtoul(optarg, NULL, 10) > 0) {
			many = (unsigned int)strtoul(optarg, NULL, 10);
		} else if (option != 'u') {
			fputs("usage: bench_many [--quick | --at-once N | --check [--uid UID]]\n",
			      stderr);
			return 2;
		} else if (!become(optarg)) {
			fprintf(stderr, "SKIP-CANNOT: become uid %s: %s\n", optarg,
				strerror(errno));
			return SKIP;
		}
	}
	/* The helper is nobody's child; this makes it ours to count. */
	if (prctl(PR_SET_CHILD_SUBREAPER, 1) < 0)
		bench_fail("prctl", strerror(errno));
	bench_init_process();
	if (check)
		good = check_all();
	else if (many)
		measure(many, 1);
	else
		measure_all(quick);
	bench_exit();
	return !good;
}
