/* SPDX-License-Identifier: MIT */
/* The launcher with the real helper, without anything above it. The helper is a copy
 * of the built one in a directory of the test's own, and every command carries a tag
 * in its environment: so whatever is left behind is found. */
#include "unit.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <grp.h>
#include <inttypes.h>
#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <event2/event.h>

#include "launch/launch.h"
#include "loop/loop.h"
#include "policy/policy.h"
#include "proto/helper_msg.h"
#include "sys/sys.h"

enum { PIDS_MAX = 4096, OUTPUT_MAX = 65536, PATIENCE_MS = 20000 };

static struct event_base *base;
static struct ad_loop *loop;
static struct ad_launcher *launcher;
static char dir[64], helper[96], tag[64];
static size_t fds_before;
static pid_t helper_pid;

/* ---- looking around */

static unsigned int stretch(void)
{
	const char *factor = getenv("AGENTD_TEST_STRETCH");

	return factor ? (unsigned int)atoi(factor) : 1;
}

/* On a machine that is slower as a whole it runs slower, too. */
static uint64_t now_ms(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ((uint64_t)ts.tv_sec * 1000 + (uint64_t)ts.tv_nsec / 1000000) / stretch();
}

static void sleep_ms(long ms)
{
	struct timespec ts = { ms / 1000, ms % 1000 * 1000000 };

	nanosleep(&ts, NULL);
}

static size_t count_fds(void)
{
	DIR *d = opendir("/proc/self/fd");
	size_t count = 0;

	ck_assert_ptr_nonnull(d);
	while (readdir(d))
		count++;
	closedir(d);
	return count;
}

static ssize_t slurp(const char *path, char *buf, size_t cap)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	size_t len = 0;
	ssize_t n = -1;

	if (fd < 0)
		return -1;
	while (len < cap - 1 && (n = read(fd, buf + len, cap - 1 - len)) > 0)
		len += (size_t)n;
	close(fd);
	buf[len] = '\0';
	return n < 0 ? -1 : (ssize_t)len;
}

static pid_t parent_of(pid_t pid)
{
	char path[64], text[1024];
	int ppid = -1;

	snprintf(path, sizeof(path), "/proc/%d/stat", pid);
	if (slurp(path, text, sizeof(text)) <= 0 || !strrchr(text, ')') ||
	    sscanf(strrchr(text, ')') + 1, " %*c %d", &ppid) != 1)
		return -1;
	return ppid;
}

static bool is_zombie(pid_t pid)
{
	char path[64], text[1024], state = '?';

	snprintf(path, sizeof(path), "/proc/%d/stat", pid);
	if (slurp(path, text, sizeof(text)) <= 0 || !strrchr(text, ')'))
		return false;
	sscanf(strrchr(text, ')') + 1, " %c", &state);
	return state == 'Z';
}

static bool is_ours(pid_t pid, bool *ret_helper)
{
	char path[64], text[65536];
	ssize_t n;

	*ret_helper = false;
	snprintf(path, sizeof(path), "/proc/%d/exe", pid);
	n = readlink(path, text, sizeof(text) - 1);
	if (n > 0) {
		text[n] = '\0';
		*ret_helper = strncmp(text, helper, strlen(helper)) == 0;
	}
	if (*ret_helper)
		return true;
	snprintf(path, sizeof(path), "/proc/%d/environ", pid);
	n = slurp(path, text, sizeof(text));
	return n > 0 && memmem(text, (size_t)n, tag, strlen(tag)) != NULL;
}

/* Living processes: the helper and its supervisors, and the commands'. */
static size_t count_ours(size_t *ret_helpers)
{
	DIR *d = opendir("/proc");
	size_t count = 0;
	struct dirent *entry;

	ck_assert_ptr_nonnull(d);
	*ret_helpers = 0;
	while ((entry = readdir(d))) {
		pid_t pid = (pid_t)atoi(entry->d_name);
		bool is_helper;

		if (pid <= 0 || pid == getpid() || !is_ours(pid, &is_helper) || is_zombie(pid))
			continue;
		if (is_helper)
			++*ret_helpers;
		else
			count++;
	}
	closedir(d);
	return count;
}

/* What a shell has begun is not there yet, or between two programs: without an environment for as
 * long as the new one is read from the disk. So it may be fewer again a moment later. */
static void expect_commands(size_t want)
{
	uint64_t until = now_ms() + PATIENCE_MS;
	size_t helpers, found;

	while ((found = count_ours(&helpers)) < want && now_ms() < until)
		sleep_ms(5);
	ck_assert_uint_ge(found, want);
}

static void expect_commands_dead(uint64_t within_ms)
{
	uint64_t until = now_ms() + within_ms;
	size_t helpers, left;

	do {
		left = count_ours(&helpers);
		if (left == 0)
			return;
		sleep_ms(5);
	} while (now_ms() < until);
	ck_abort_msg("%zu processes left", left);
}

static void expect_all_dead(uint64_t within_ms)
{
	uint64_t until = now_ms() + within_ms;
	size_t helpers, left;

	do {
		left = count_ours(&helpers);
		if (left == 0 && helpers == 0 &&
		    (helper_pid <= 0 || kill(helper_pid, 0) < 0 || is_zombie(helper_pid)))
			return;
		sleep_ms(5);
	} while (now_ms() < until);
	ck_abort_msg("%zu commands, %zu helpers left", left, helpers);
}

static char cgroup_prefix[64];
static size_t cgroups_seen;
static char cgroup_parent[512]; /* of the last one seen */

static int see_cgroup(const char *path, const struct stat *st, int type, struct FTW *at)
{
	(void)st;
	if (type == FTW_D && strncmp(path + at->base, cgroup_prefix, strlen(cgroup_prefix)) == 0) {
		cgroups_seen++;
		snprintf(cgroup_parent, sizeof(cgroup_parent), "%.*s", at->base - 1, path);
	}
	return 0;
}

static size_t count_cgroups(void)
{
	snprintf(cgroup_prefix, sizeof(cgroup_prefix), "agentd-%d-", helper_pid);
	cgroups_seen = 0;
	nftw("/sys/fs/cgroup", see_cgroup, 32, FTW_PHYS);
	return cgroups_seen;
}

/* ---- jobs */

struct run {
	struct ad_job *job;
	int started, failed, exited, closed, limits, fatal_limits;
	pid_t pid;
	int fds[3];
	int wait_status;
	uint64_t at_ns;
	char limit[32];
	agentd_error *err;
	struct ad_launch_receipt receipt;
	struct ad_launch_usage usage;
	char out[2][OUTPUT_MAX];
	size_t out_len[2];
	bool kill_when_started, free_when_exited;
};

static void on_started(struct ad_job *job, int32_t pid, int stdin_fd, int stdout_fd, int stderr_fd,
		       const struct ad_launch_receipt *receipt, void *userdata)
{
	struct run *run = userdata;

	ck_assert_ptr_eq(job, run->job);
	ck_assert_int_eq(run->started + run->failed + run->exited + run->closed, 0);
	run->started++;
	run->pid = pid;
	run->fds[0] = stdin_fd;
	run->fds[1] = stdout_fd;
	run->fds[2] = stderr_fd;
	run->receipt = *receipt;
	for (int i = 0; i < 3; i++) {
		if (run->fds[i] < 0)
			continue;
		ck_assert_int_gt(run->fds[i], 2);
		ck_assert_int_eq(fcntl(run->fds[i], F_GETFD), FD_CLOEXEC);
		ck_assert_int_ne(fcntl(run->fds[i], F_GETFL) & O_NONBLOCK, 0);
	}
	if (run->kill_when_started)
		ck_assert_int_eq(ad_job_kill(job), 0);
}

static void on_failed(struct ad_job *job, agentd_error *err,
		      const struct ad_launch_failure *failure, void *userdata)
{
	struct run *run = userdata;

	(void)failure;
	ck_assert_ptr_eq(job, run->job);
	ck_assert_int_eq(run->failed + run->closed, 0);
	ck_assert_ptr_nonnull(err);
	run->failed++;
	run->err = err;
}

static void on_limit_hit(struct ad_job *job, const char *limit, bool fatal, void *userdata)
{
	struct run *run = userdata;

	ck_assert_ptr_eq(job, run->job);
	ck_assert_int_eq(run->exited, 0);
	snprintf(run->limit, sizeof(run->limit), "%s", limit);
	run->limits++;
	run->fatal_limits += fatal;
}

static void on_exited(struct ad_job *job, int wait_status, uint64_t at_ns, void *userdata)
{
	struct run *run = userdata;

	ck_assert_ptr_eq(job, run->job);
	ck_assert_int_eq(run->started, 1);
	ck_assert_int_eq(run->failed + run->exited + run->closed, 0);
	run->exited++;
	run->wait_status = wait_status;
	run->at_ns = at_ns;
	if (run->free_when_exited)
		ad_job_free(AD_STEAL(run->job));
}

static void on_closed(struct ad_job *job, const struct ad_launch_usage *usage, void *userdata)
{
	struct run *run = userdata;

	ck_assert_ptr_eq(job, run->job);
	ck_assert_int_eq(run->started, 1);
	ck_assert_int_eq(run->failed + run->closed, 0);
	run->closed++;
	run->usage = *usage;
}

static const struct ad_job_events events = {
	.started = on_started,
	.failed = on_failed,
	.limit_hit = on_limit_hit,
	.exited = on_exited,
	.closed = on_closed,
};

static char tag_var[80];
static const char *const plain_env[] = { "PATH=/usr/local/bin:/usr/bin:/bin", tag_var, NULL };

static struct ad_launch_request request_of(const char *const *argv)
{
	return (struct ad_launch_request){
		.argv = argv,
		.env = plain_env,
		.workdir = dir,
		.limits = { .size = sizeof(struct agentd_limits) },
	};
}

static struct run *run_new(void)
{
	struct run *run = calloc(1, sizeof(*run));

	ck_assert_ptr_nonnull(run);
	run->fds[0] = run->fds[1] = run->fds[2] = -1;
	return run;
}

static void run_request(struct run *run, const struct ad_launch_request *request)
{
	agentd_error *err = NULL;
	int r = ad_job_start(launcher, request, &events, run, &run->job, &err);

	ck_assert_msg(r == 0, "%s", agentd_error_message(err));
}

static struct run *start_limited(const char *script, const struct agentd_limits *limits)
{
	const char *const argv[] = { "sh", "-c", script, NULL };
	struct ad_launch_request request = request_of(argv);
	struct run *run = run_new();

	if (limits) {
		request.limits = *limits;
		for (int i = 0; i < AD_LIMIT_COUNT; i++) {
			if (ad_limit_get(limits, &ad_limit_descs[i]))
				request.limits_requested |= 1u << i;
		}
	}
	run_request(run, &request);
	return run;
}

static struct run *start(const char *script)
{
	return start_limited(script, NULL);
}

static void drain(struct run *run)
{
	for (int i = 0; i < 2; i++) {
		ssize_t n;

		if (run->fds[i + 1] < 0)
			continue;
		do {
			char spill[4096];
			size_t room = OUTPUT_MAX - 1 - run->out_len[i];
			char *at = room ? run->out[i] + run->out_len[i] : spill;

			n = read(run->fds[i + 1], at, room ? room : sizeof(spill));
			if (n > 0 && room)
				run->out_len[i] += (size_t)n;
		} while (n > 0);
		if (n == 0)
			close(ad_steal_fd(&run->fds[i + 1]));
	}
}

static bool over(const struct run *run)
{
	return run->failed || run->closed;
}

static void turn(struct event_base *on)
{
	static const struct timeval tv = { 0, 2000 };

	event_base_loopexit(on, &tv);
	event_base_loop(on, EVLOOP_ONCE);
}

static bool wait_for(struct run *run, const int *flag, uint64_t within_ms)
{
	uint64_t until = now_ms() + within_ms;

	while (*flag == 0 && !over(run) && now_ms() < until) {
		turn(base);
		drain(run);
	}
	drain(run);
	return *flag != 0;
}

static void finish(struct run *run)
{
	uint64_t until = now_ms() + PATIENCE_MS;

	while (!over(run) && now_ms() < until) {
		turn(base);
		drain(run);
	}
	drain(run);
	ck_assert_msg(over(run), "it does not end: started %d exited %d", run->started,
		      run->exited);
}

static void run_free(struct run *run)
{
	ad_job_free(run->job);
	for (int i = 0; i < 3; i++) {
		if (run->fds[i] >= 0)
			close(run->fds[i]);
	}
	agentd_error_unref(run->err);
	free(run);
}

static void expect_exit(struct run *run, int code)
{
	finish(run);
	ck_assert_msg(!run->failed, "%s", agentd_error_message(run->err));
	ck_assert_int_eq(run->exited, 1);
	ck_assert_msg(WIFEXITED(run->wait_status) && WEXITSTATUS(run->wait_status) == code,
		      "exit %d wanted, wait status %#x, stderr \"%s\"", code, run->wait_status,
		      run->out[1]);
}

static void expect_signal(struct run *run, int signo)
{
	finish(run);
	ck_assert_msg(!run->failed, "%s", agentd_error_message(run->err));
	ck_assert_msg(WIFSIGNALED(run->wait_status) && WTERMSIG(run->wait_status) == signo,
		      "signal %d wanted, wait status %#x", signo, run->wait_status);
}

static void expect_failed(struct run *run, int code, int os_errno, const char *text)
{
	finish(run);
	ck_assert_int_eq(run->failed, 1);
	ck_assert_int_eq(agentd_error_code(run->err), code);
	ck_assert_int_eq(agentd_error_os_errno(run->err), os_errno);
	ck_assert_msg(strstr(agentd_error_message(run->err), text) != NULL,
		      "\"%s\" does not say \"%s\"", agentd_error_message(run->err), text);
}

/* Runs on: whatever happened before did no harm. */
static void expect_works(void)
{
	struct run *run = start("echo fine");

	expect_exit(run, 0);
	ck_assert_str_eq(run->out[0], "fine\n");
	ck_assert_uint_eq(run->usage.survivors, 0);
	run_free(run);
}

/* The word the script prints, as a pid. */
static pid_t printed_pid(struct run *run)
{
	uint64_t until = now_ms() + PATIENCE_MS;

	while (!strchr(run->out[0], '\n') && !over(run) && now_ms() < until) {
		turn(base);
		drain(run);
	}
	ck_assert_msg(strchr(run->out[0], '\n') != NULL, "wait status %#x, %s, stderr \"%s\"",
		      run->wait_status, agentd_error_message(run->err), run->out[1]);
	return (pid_t)atoi(run->out[0]);
}

/* ---- fixture */

static void copy_file(const char *from, const char *to)
{
	int in = open(from, O_RDONLY | O_CLOEXEC);
	int out = open(to, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0755);
	char buf[65536];
	ssize_t n;

	ck_assert_msg(in >= 0, "cannot read %s", from);
	ck_assert_int_ge(out, 0);
	while ((n = read(in, buf, sizeof(buf))) > 0)
		ck_assert_int_eq(write(out, buf, (size_t)n), n);
	ck_assert_int_eq(n, 0);
	close(in);
	close(out);
}

static int ready_calls;
static agentd_error *ready_err;

static void on_ready(struct ad_launcher *which, const agentd_error *err, void *userdata)
{
	(void)userdata;
	ck_assert_ptr_eq(which, launcher);
	ready_calls++;
	agentd_error_unref(ready_err);
	ready_err = agentd_error_ref((agentd_error *)(uintptr_t)err);
}

static void launcher_make(const char *path)
{
	agentd_error *err = NULL;
	int r = ad_launcher_new(loop, path, &launcher, &err);

	ck_assert_msg(r == 0, "%s", agentd_error_message(err));
	ready_calls = 0;
	ad_launcher_set_ready(launcher, on_ready, NULL);
}

static void wait_ready(void)
{
	uint64_t until = now_ms() + PATIENCE_MS;

	while (ready_calls == 0 && now_ms() < until)
		turn(base);
	ck_assert_int_eq(ready_calls, 1);
}

static void setup_bare(void)
{
	const char *built = getenv("AGENTD_TEST_HELPER");

	ck_assert_msg(built != NULL, "AGENTD_TEST_HELPER is not set");
	strcpy(dir, "/tmp/agentd-launch-XXXXXX");
	ck_assert_ptr_nonnull(mkdtemp(dir));
	ck_assert_int_eq(chmod(dir, 0755), 0);
	snprintf(helper, sizeof(helper), "%s/agentd-helper", dir);
	copy_file(built, helper);
	snprintf(tag, sizeof(tag), "launch-%d-%" PRIu64, getpid(), now_ms());
	snprintf(tag_var, sizeof(tag_var), "TAG=%s", tag);
	fds_before = count_fds();
	base = event_base_new();
	ck_assert_ptr_nonnull(base);
	ck_assert_int_eq(ad_loop_new(base, &loop, NULL), 0);
}

static void setup(void)
{
	struct run *run;

	setup_bare();
	launcher_make(helper);
	wait_ready();
	ck_assert_ptr_null(ready_err);
	/* To know the helper: the parent of a supervisor. */
	run = start("echo $PPID; exec sleep 100");
	ck_assert_int_gt(helper_pid = parent_of(printed_pid(run)), 1);
	ad_job_kill(run->job);
	finish(run);
	run_free(run);
}

static int remove_one(const char *path, const struct stat *st, int type, struct FTW *at)
{
	(void)st, (void)type, (void)at;
	return remove(path);
}

static void teardown_bare(void)
{
	agentd_error_unref(ready_err);
	ad_loop_free(loop);
	event_base_free(base);
	ck_assert_uint_eq(count_fds(), fds_before);
	nftw(dir, remove_one, 16, FTW_DEPTH | FTW_PHYS);
}

static int gone_calls;

static void on_gone(struct ad_launcher *which, const agentd_error *err, void *userdata)
{
	(void)userdata;
	ck_assert_ptr_null(err);
	gone_calls++;
	ad_launcher_free(which);
}

static void shut_down(void)
{
	uint64_t until = now_ms() + PATIENCE_MS;

	gone_calls = 0;
	ad_launcher_shutdown(launcher, on_gone, NULL);
	ck_assert_int_eq(gone_calls, 0);
	while (gone_calls == 0 && now_ms() < until)
		turn(base);
	ck_assert_int_eq(gone_calls, 1);
	launcher = NULL;
}

static void teardown(void)
{
	if (launcher)
		shut_down();
	expect_all_dead(2000);
	ck_assert_uint_eq(count_cgroups(), 0);
	/* Never anything of ours among our children. */
	ck_assert_int_eq(waitpid(-1, NULL, WNOHANG | __WALL), -1);
	ck_assert_int_eq(errno, ECHILD);
	teardown_bare();
}

/* ---- how it ends */

START_TEST(exit_codes)
{
	struct run *runs[256];

	for (int i = 0; i < 256; i++) {
		char script[32];

		snprintf(script, sizeof(script), "exit %d", i);
		runs[i] = start(script);
	}
	for (int i = 0; i < 256; i++) {
		expect_exit(runs[i], i);
		ck_assert_uint_gt(runs[i]->at_ns, 0);
		run_free(runs[i]);
	}
}
END_TEST

START_TEST(signals)
{
	for (int signo = 1; signo <= 64; signo++) {
		char script[32];

		if (signo == SIGCHLD || signo == SIGCONT || signo == SIGURG || signo == SIGWINCH ||
		    signo == SIGSTOP || signo == SIGTSTP || signo == SIGTTIN || signo == SIGTTOU ||
		    signo == 32 || signo == 33)
			continue;
		snprintf(script, sizeof(script), "kill -%d $$; exit 99", signo);
		struct run *run = start(script);

		expect_signal(run, signo);
		run_free(run);
	}
}
END_TEST

START_TEST(no_program_fails_as_if_it_ran)
{
	struct run *run = start("exit 127");

	expect_exit(run, 127);
	run_free(run);
}
END_TEST

/* ---- what it gets */

START_TEST(output_and_place)
{
	struct run *run = start("pwd; echo $0 >&2; tty; cat; echo \"$TAG\"; umask");
	char want[256];

	umask(027);
	expect_exit(run, 0);
	snprintf(want, sizeof(want), "%s\nnot a tty\n%s\n", dir, tag);
	ck_assert_int_eq(strncmp(run->out[0], want, strlen(want)), 0);
	ck_assert_str_eq(run->out[1], "sh\n");
	run_free(run);
}
END_TEST

START_TEST(merged_output)
{
	static const char *const argv[] = { "sh", "-c", "echo a; echo b >&2; echo c", NULL };
	struct ad_launch_request request = request_of(argv);
	struct run *run = run_new();

	request.merge_stderr = true;
	run_request(run, &request);
	expect_exit(run, 0);
	ck_assert_str_eq(run->out[0], "a\nb\nc\n");
	ck_assert_int_eq(run->fds[2], -1);
	run_free(run);
}
END_TEST

/* The command starts as from a fresh login: nothing of ours or of the host's. */
START_TEST(clean_process)
{
	struct run *run = start("ls -l /proc/self/fd | grep -c -e '->';"
				"grep -E '^(SigBlk|SigIgn|SigCgt|NoNewPrivs)' /proc/self/status;"
				"ulimit -c; ulimit -Hc; set -- $(cat /proc/self/stat);"
				"[ $5 = $6 ] && echo session");

	expect_exit(run, 0);
	/* 0, 1, 2 and the directory ls reads */
	ck_assert_msg(strncmp(run->out[0], "4\n", 2) == 0, "%s", run->out[0]);
	ck_assert_ptr_nonnull(strstr(run->out[0], "SigBlk:\t0000000000000000\n"));
	ck_assert_ptr_nonnull(strstr(run->out[0], "SigIgn:\t0000000000000000\n"));
	ck_assert_ptr_nonnull(strstr(run->out[0], "\n0\n0\nsession\n"));
	run_free(run);
}
END_TEST

START_TEST(program_lookup)
{
	static const char *const argv[] = { "prog", "arg", NULL };
	char path[160], first[128], path_var[512];
	const char *env[] = { path_var, tag_var, NULL };
	struct ad_launch_request request = request_of(argv);
	struct run *run;

	/* A directory without rights for the file, one that is none, then the real one. */
	snprintf(first, sizeof(first), "%s/first", dir);
	ck_assert_int_eq(mkdir(first, 0755), 0);
	snprintf(path, sizeof(path), "%s/prog", first);
	copy_file("/bin/echo", path);
	ck_assert_int_eq(chmod(path, 0600), 0);
	snprintf(path, sizeof(path), "%s/second", dir);
	ck_assert_int_eq(mkdir(path, 0755), 0);
	snprintf(path_var, sizeof(path_var), "PATH=%s:%s:/nowhere:%s", first, helper, path);
	request.env = env;
	run = run_new();
	run_request(run, &request);
	expect_failed(run, AGENTD_ERR_SYSTEM, EACCES,
		      "Failed to spawn shell command: Permission denied (os error 13) (program "
		      "prog)");
	run_free(run);
	snprintf(path, sizeof(path), "%s/second/prog", dir);
	copy_file("/bin/echo", path);
	run = run_new();
	run_request(run, &request);
	expect_exit(run, 0);
	ck_assert_str_eq(run->out[0], "arg\n");
	run_free(run);
	/* An empty entry is the working directory. */
	snprintf(path, sizeof(path), "%s/second", dir);
	request.workdir = path;
	strcpy(path_var, "PATH=");
	run = run_new();
	run_request(run, &request);
	expect_exit(run, 0);
	run_free(run);
}
END_TEST

static char *long_text(size_t len)
{
	char *text = malloc(len + 1);

	ck_assert_ptr_nonnull(text);
	memset(text, 'x', len);
	text[len] = '\0';
	return text;
}

/* Beyond one message, so by memory file, and back as it was. */
START_TEST(large_request)
{
	enum { LENGTH = 100000, COUNT = 10 };
	const char *argv[COUNT + 4] = { "sh", "-c", "echo $#; printf %s \"$9\" | wc -c", "sh" };
	struct ad_launch_request request = request_of(argv);
	char *text = long_text(LENGTH);
	struct run *run = run_new();

	for (int i = 0; i < COUNT - 1; i++)
		argv[4 + i] = text;
	run_request(run, &request);
	expect_exit(run, 0);
	ck_assert_str_eq(run->out[0], "9\n100000\n");
	run_free(run);
	free(text);
}
END_TEST

/* ---- what cannot be started */

START_TEST(bad_workdir)
{
	static const char *const argv[] = { "true", NULL };
	struct ad_launch_request request = request_of(argv);
	struct run *run = run_new();

	request.workdir = "/nonexistent/dir";
	run_request(run, &request);
	expect_failed(run, AGENTD_ERR_SYSTEM, ENOENT,
		      "Failed to spawn shell command: No such file or directory (os error 2) "
		      "(working directory /nonexistent/dir)");
	run_free(run);
	run = run_new();
	request.workdir = helper;
	run_request(run, &request);
	expect_failed(run, AGENTD_ERR_SYSTEM, ENOTDIR,
		      "Failed to spawn shell command: Not a directory (os error 20) (");
	run_free(run);
	expect_works();
}
END_TEST

START_TEST(bad_program)
{
	static const char *const argv[] = { "no-such-program", NULL };
	static const char *const empty[] = { "", NULL };
	struct ad_launch_request request = request_of(argv);
	struct run *run = run_new();

	run_request(run, &request);
	expect_failed(run, AGENTD_ERR_SYSTEM, ENOENT,
		      "No such file or directory (os error 2) (program no-such-program)");
	run_free(run);
	request = request_of(empty);
	run = run_new();
	run_request(run, &request);
	expect_failed(run, AGENTD_ERR_SYSTEM, ENOENT, "(os error 2)");
	run_free(run);
	expect_works();
}
END_TEST

START_TEST(arguments_too_long)
{
	char *text = long_text(17 * 1024 * 1024);
	const char *argv[] = { "true", text, NULL };
	struct ad_launch_request request = request_of(argv);
	agentd_error *err = NULL;
	struct run *run = run_new();
	struct ad_job *job;

	/* More than any kernel takes, known at once. */
	ck_assert_int_eq(ad_job_start(launcher, &request, &events, run, &job, &err),
			 AGENTD_ERR_SYSTEM);
	ck_assert_str_eq(agentd_error_message(err),
			 "Failed to spawn shell command: Argument list too long (os error 7)");
	agentd_error_unref(err);
	/* A single argument beyond 128 KiB: the kernel says so. */
	text[200000] = '\0';
	run_request(run, &request);
	expect_failed(run, AGENTD_ERR_SYSTEM, E2BIG,
		      "Failed to spawn shell command: Argument list too long (os error 7) (");
	run_free(run);
	free(text);
	expect_works();
}
END_TEST

/* The host has no descriptors left for the pipes. */
START_TEST(host_out_of_descriptors)
{
	struct rlimit was, now;

	int filler[32];

	ck_assert_int_eq(getrlimit(RLIMIT_NOFILE, &was), 0);
	/* No gaps below the next one. */
	for (int i = 0; i < 32; i++)
		ck_assert_int_ge(filler[i] = open("/dev/null", O_RDONLY | O_CLOEXEC), 0);
	for (rlim_t room = 0; room < 3; room++) {
		struct run *run;

		now = was;
		now.rlim_cur = (rlim_t)filler[31] + 1 + room;
		run = start("setsid sleep 100 & exec sleep 100");
		ck_assert_int_eq(setrlimit(RLIMIT_NOFILE, &now), 0);
		if (room < 2) {
			uint64_t until = now_ms() + PATIENCE_MS;

			while (!over(run) && now_ms() < until)
				turn(base);
			ck_assert_int_eq(setrlimit(RLIMIT_NOFILE, &was), 0);
			expect_failed(run, AGENTD_ERR_SYSTEM, EMFILE,
				      "Failed to spawn shell command: Too many open files (os "
				      "error 24)");
		} else {
			ck_assert(wait_for(run, &run->started, PATIENCE_MS));
			ck_assert_int_eq(setrlimit(RLIMIT_NOFILE, &was), 0);
			ad_job_kill(run->job);
			expect_signal(run, SIGKILL);
		}
		run_free(run);
		expect_commands_dead(2000);
	}
	for (int i = 0; i < 32; i++)
		close(filler[i]);
	expect_works();
}
END_TEST

/* Of a user who may have so many open, more are not let on their way until somebody receives some.
 * In a process that is nobody else's user. */
enum { FEW = 24, OTHER_USER = 64999 };

static const char *send_beyond_limit(void)
{
	const struct rlimit few = { FEW, FEW };
	int pair[2], r = 0, sent = 0;
	pid_t receiver;

	if (getuid() == 0 &&
	    (setgroups(0, NULL) < 0 || setresgid(OTHER_USER, OTHER_USER, OTHER_USER) < 0 ||
	     setresuid(OTHER_USER, OTHER_USER, OTHER_USER) < 0))
		return "another user";
	if (ad_sys_pair(pair) < 0 || setrlimit(RLIMIT_NOFILE, &few) < 0)
		return "a pair";
	while (sent <= 100 * FEW &&
	       (r = ad_sys_send(pair[0], "x", 1, &pair[0], 1, MSG_DONTWAIT)) == 0)
		sent++;
	if (r != -ETOOMANYREFS || sent < FEW)
		return "refused at once";
	if (ad_sys_send(pair[0], "x", 1, NULL, 0, MSG_DONTWAIT) != 0)
		return "what has none goes";
	if (ad_sys_send(pair[0], "x", 1, &pair[0], 1, 0) != -ETOOMANYREFS)
		return "refused in the end";
	receiver = fork();
	if (receiver == 0) {
		char byte;
		struct ad_sys_msg msg = { .data = &byte, .cap = 1 };

		sleep_ms(100);
		while (sent-- >= 0 && ad_sys_recv(pair[1], &msg, 0) > 0)
			ad_sys_msg_close(&msg);
		_exit(0);
	}
	r = ad_sys_send(pair[0], "x", 1, &pair[0], 1, 0);
	waitpid(receiver, NULL, 0);
	return r == 0 ? NULL : "it goes when there is room";
}

/* Nor is the host program killed for a file that its RLIMIT_FSIZE does not have room for. */
START_TEST(memory_file_beyond_limit)
{
	static const uint8_t data[1000];
	struct rlimit limit, saved;
	int set, restored, whole, cut, sized, oversized, next = dup(0);
	int file = memfd_create("test", MFD_CLOEXEC);
	sigset_t pending;

	close(next);
	ck_assert_int_ge(file, 0);
	ck_assert_int_eq(getrlimit(RLIMIT_FSIZE, &saved), 0);
	limit = saved;
	limit.rlim_cur = sizeof(data);
	/* check itself writes to a file. */
	set = setrlimit(RLIMIT_FSIZE, &limit);
	whole = ad_sys_memfd_sealed("test", data, sizeof(data));
	limit.rlim_cur--;
	setrlimit(RLIMIT_FSIZE, &limit);
	cut = ad_sys_memfd_sealed("test", data, sizeof(data));
	sized = ad_sys_truncate_nosignal(file, sizeof(data) - 1);
	oversized = ad_sys_truncate_nosignal(file, sizeof(data));
	restored = setrlimit(RLIMIT_FSIZE, &saved);
	ck_assert_int_eq(set, 0);
	ck_assert_int_eq(restored, 0);
	ck_assert_int_eq(sigpending(&pending), 0);
	ck_assert_int_eq(sigismember(&pending, SIGXFSZ), 0);
	ck_assert_int_ge(whole, 0);
	ck_assert_int_eq(ad_sys_memfd_size(whole), sizeof(data));
	ck_assert_int_eq(cut, -EFBIG);
	ck_assert_int_eq(sized, 0);
	ck_assert_int_eq(oversized, -EFBIG);
	close(whole);
	close(file);
	/* Nothing of the other one is left open. */
	ck_assert_int_eq(dup(0), next);
	close(next);
}
END_TEST

START_TEST(descriptors_on_their_way)
{
	int status;
	pid_t pid = fork();

	if (pid == 0) {
		const char *failed = send_beyond_limit();

		if (failed)
			fprintf(stderr, "not: %s\n", failed);
		_exit(failed != NULL);
	}
	ck_assert_int_eq(waitpid(pid, &status, 0), pid);
	ck_assert_int_eq(status, 0);
}
END_TEST

/* ---- killing */

static void kill_and_expect_dead(const char *script, bool signal_first)
{
	struct run *run = start(script);
	uint64_t begin;

	printed_pid(run);
	if (signal_first) {
		int never = 0;

		ck_assert_int_eq(ad_job_signal(run->job, SIGTERM), 0);
		wait_for(run, &never, 100);
		ck_assert_int_eq(run->exited, 0);
	}
	begin = now_ms();
	ck_assert_int_eq(ad_job_kill(run->job), 0);
	finish(run);
	ck_assert_int_eq(run->closed, 1);
	ck_assert_uint_eq(run->usage.survivors, 0);
	ck_assert_uint_lt(now_ms() - begin, unit_instrumented() ? 5000 : 2000);
	run_free(run);
	expect_commands_dead(100);
}

START_TEST(kills_the_tree)
{
	kill_and_expect_dead("sleep 100 & sleep 100 & echo 1; wait", false);
	kill_and_expect_dead("setsid sleep 100 & sleep 0.1; echo 1; exec sleep 100", false);
	kill_and_expect_dead("(setsid sh -c 'setsid sleep 100 & sleep 100' &); sleep 0.1; echo 1;"
			     "sleep 100",
			     false);
}
END_TEST

START_TEST(kills_what_ignores)
{
	kill_and_expect_dead("trap '' TERM INT HUP; echo 1; while :; do sleep 1; done", true);
	kill_and_expect_dead("trap '' TERM; sh -c 'sleep 0.1; kill -STOP $PPID' & echo 1; while :;"
			     "do :; done",
			     true);
}
END_TEST

/* Its name would mislead who reads /proc carelessly. */
START_TEST(kills_under_a_strange_name)
{
	char path[160], script[256];

	snprintf(path, sizeof(path), "%s/) 1 1 (", dir);
	copy_file("/bin/sleep", path);
	snprintf(script, sizeof(script), "setsid '%s' 100 & sleep 0.1; echo 1; sleep 100", path);
	kill_and_expect_dead(script, false);
}
END_TEST

START_TEST(kills_after_the_exit)
{
	struct run *run = start("setsid sleep 100 & sleep 100 & echo hi; exit 7");

	ck_assert(wait_for(run, &run->exited, PATIENCE_MS));
	ck_assert_int_eq(run->closed, 0);
	ck_assert_int_eq(ad_job_signal(run->job, SIGTERM), AGENTD_ERR_STATE);
	ck_assert_int_eq(ad_job_kill(run->job), 0);
	expect_exit(run, 7);
	ck_assert_int_eq(run->closed, 1);
	ck_assert_str_eq(run->out[0], "hi\n");
	run_free(run);
	expect_commands_dead(100);
}
END_TEST

START_TEST(signals_reach_the_group)
{
	struct run *run =
		start("trap 'echo got; exit 5' USR1; sleep 100 & sleep 0.2; echo 1; wait");

	printed_pid(run);
	ck_assert_int_eq(ad_job_signal(run->job, 0), AGENTD_ERR_INVALID);
	ck_assert_int_eq(ad_job_signal(run->job, 65), AGENTD_ERR_INVALID);
	ck_assert_int_eq(ad_job_signal(run->job, SIGUSR1), 0);
	expect_exit(run, 5);
	run_free(run);
	/* Being stopped is no way not to hear of the end. */
	run = start("trap 'exit 6' TERM; echo 1; kill -STOP $$; while :; do sleep 0.01; done");
	printed_pid(run);
	sleep_ms(50);
	ck_assert_int_eq(ad_job_signal(run->job, SIGTERM), 0);
	expect_exit(run, 6);
	run_free(run);
}
END_TEST

START_TEST(kill_storm)
{
	struct run *runs[50];

	for (int i = 0; i < 50; i++) {
		runs[i] = start("sleep 100 & setsid sleep 100 & wait");
		if (i % 3 == 0)
			runs[i]->kill_when_started = true;
		else
			for (int j = 0; j < 50; j++)
				ck_assert_int_eq(ad_job_kill(runs[i]->job), 0);
	}
	for (int i = 0; i < 50; i++) {
		finish(runs[i]);
		ck_assert_msg(runs[i]->closed, "%s", agentd_error_message(runs[i]->err));
		/* Also late, and more than once. */
		ck_assert_int_eq(ad_job_kill(runs[i]->job), 0);
		run_free(runs[i]);
	}
	expect_commands_dead(100);
}
END_TEST

START_TEST(fork_bomb)
{
	struct agentd_limits limits = { .size = sizeof(limits), .pids_max = 100 };
	struct run *run = start_limited("echo 1; b() { b | b & }; b; sleep 100", &limits);

	printed_pid(run);
	sleep_ms(300);
	ad_job_kill(run->job);
	finish(run);
	ck_assert_int_eq(run->closed, 1);
	ck_assert_uint_eq(run->usage.survivors, 0);
	run_free(run);
	expect_commands_dead(500);
}
END_TEST

START_TEST(fork_bomb_of_sessions)
{
	struct agentd_limits limits = { .size = sizeof(limits), .pids_max = 100 };
	struct run *run =
		start_limited("echo 1; b() { setsid sh -c \"$B\" & setsid sh -c \"$B\" & };"
			      "export B='setsid sh -c \"$B\" & setsid sh -c \"$B\" & wait';"
			      "b; sleep 100",
			      &limits);

	printed_pid(run);
	sleep_ms(300);
	ad_job_kill(run->job);
	finish(run);
	ck_assert_int_eq(run->closed, 1);
	run_free(run);
	expect_commands_dead(500);
}
END_TEST

/* An order to kill needs no room in the user's signal queue. */
START_TEST(kills_with_a_full_signal_queue)
{
	struct rlimit was, none;
	struct run *run;

	shut_down();
	ck_assert_int_eq(getrlimit(RLIMIT_SIGPENDING, &was), 0);
	none = was;
	none.rlim_cur = 0;
	ck_assert_int_eq(setrlimit(RLIMIT_SIGPENDING, &none), 0);
	launcher_make(helper);
	wait_ready();
	/* libcheck's own timer wants a place. */
	ck_assert_int_eq(setrlimit(RLIMIT_SIGPENDING, &was), 0);
	run = start("echo 1; trap '' TERM; sleep 100 & sleep 100");
	printed_pid(run);
	ad_job_kill(run->job);
	finish(run);
	ck_assert_int_eq(run->closed, 1);
	run_free(run);
	expect_commands_dead(100);
}
END_TEST

/* ---- what dies under it */

START_TEST(supervisor_killed)
{
	struct run *run = start("setsid sleep 100 & echo 1; kill -9 $PPID; sleep 100");

	expect_failed(run, AGENTD_ERR_BACKEND, 0, "the supervisor of the command died (Killed)");
	run_free(run);
	expect_commands_dead(500);
	expect_works();
}
END_TEST

START_TEST(supervisor_stopped)
{
	struct run *run =
		start("setsid sleep 100 & sleep 0.3; kill -STOP $PPID; echo 1; sleep 100");
	uint64_t begin;

	printed_pid(run);
	begin = now_ms();
	ad_job_kill(run->job);
	expect_failed(run, AGENTD_ERR_BACKEND, 0, "supervisor");
	ck_assert_uint_lt(now_ms() - begin, 5000);
	run_free(run);
	expect_commands_dead(500);
	expect_works();
}
END_TEST

START_TEST(supervisor_takes_no_signals)
{
	struct run *run = start("for s in HUP INT QUIT TERM USR1 PIPE ALRM; do kill -$s $PPID;"
				"done; sleep 0.1; exit 4");

	expect_exit(run, 4);
	run_free(run);
}
END_TEST

START_TEST(helper_killed)
{
	struct run *runs[5];
	agentd_error *err = NULL;
	static const char *const argv[] = { "true", NULL };
	struct ad_launch_request request = request_of(argv);
	struct ad_job *job;

	for (int i = 0; i < 5; i++) {
		runs[i] = start("setsid sleep 100 & (sleep 100 &); echo 1; sleep 100");
		printed_pid(runs[i]);
	}
	ck_assert_int_eq(kill(helper_pid, SIGKILL), 0);
	for (int i = 0; i < 5; i++) {
		expect_failed(runs[i], AGENTD_ERR_BACKEND, 0, "helper lost");
		run_free(runs[i]);
	}
	expect_commands_dead(1000);
	ck_assert_int_eq(ready_calls, 2);
	ck_assert_int_eq(agentd_error_code(ready_err), AGENTD_ERR_BACKEND);
	ck_assert_int_eq(ad_job_start(launcher, &request, &events, NULL, &job, &err),
			 AGENTD_ERR_BACKEND);
	ck_assert_ptr_nonnull(strstr(agentd_error_message(err), "helper lost"));
	agentd_error_unref(err);
	/* The next helper removes the groups that this one could not. */
	ad_launcher_free(launcher);
	launcher_make(helper);
	wait_ready();
	ck_assert_int_eq(ready_calls, 1);
	expect_works();
	ck_assert_uint_eq(count_cgroups(), 0);
}
END_TEST

/* What looks like a dead helper's is only removed if its number is one of ours. */
START_TEST(leaves_of_other_namespaces)
{
	char ours[640], theirs[640];
	struct stat ns;

	expect_works();
	if (count_cgroups() == 0) {
		fprintf(stderr, "SKIP-CANNOT: no cgroup to be had\n");
		return;
	}
	ck_assert_int_eq(stat("/proc/self/ns/pid", &ns), 0);
	snprintf(ours, sizeof(ours), "%s/agentd-2147483647-1-%ju", cgroup_parent,
		 (uintmax_t)ns.st_ino);
	snprintf(theirs, sizeof(theirs), "%s/agentd-2147483647-1-%ju", cgroup_parent,
		 (uintmax_t)ns.st_ino - 1);
	ck_assert_int_eq(mkdir(ours, 0755), 0);
	ck_assert_int_eq(mkdir(theirs, 0755), 0);
	shut_down();
	launcher_make(helper);
	wait_ready();
	ck_assert_int_lt(access(ours, F_OK), 0);
	ck_assert_int_eq(rmdir(theirs), 0);
	expect_works();
}
END_TEST

/* A host in a process of its own; ends only by being killed. */
static _Noreturn void be_host(int out)
{
	struct run *run;

	base = event_base_new();
	ad_loop_new(base, &loop, NULL);
	launcher_make(helper);
	run = start("setsid sleep 100 & (sleep 100 &); echo $PPID; sleep 100");
	helper_pid = parent_of(printed_pid(run));
	if (write(out, &helper_pid, sizeof(helper_pid)) != sizeof(helper_pid))
		_exit(1);
	for (;;)
		pause();
}

static pid_t fork_host(void)
{
	int fds[2];
	pid_t host;

	ck_assert_int_eq(pipe2(fds, O_CLOEXEC), 0);
	host = fork();
	ck_assert_int_ge(host, 0);
	if (host == 0)
		be_host(fds[1]);
	close(fds[1]);
	ck_assert_int_eq(read(fds[0], &helper_pid, sizeof(helper_pid)), sizeof(helper_pid));
	close(fds[0]);
	return host;
}

START_TEST(host_killed)
{
	for (int i = 0; i < 5; i++) {
		pid_t host = fork_host();

		expect_commands(3);
		ck_assert_int_eq(kill(host, SIGKILL), 0);
		expect_all_dead(1500);
		ck_assert_int_eq(waitpid(host, NULL, 0), host);
		ck_assert_uint_eq(count_cgroups(), 0);
	}
}
END_TEST

/* Its descriptors live on in a child that it forked: no reason to go on. */
START_TEST(host_killed_with_a_child)
{
	int fds[2];
	pid_t host, child;

	ck_assert_int_eq(pipe2(fds, O_CLOEXEC), 0);
	host = fork();
	ck_assert_int_ge(host, 0);
	if (host == 0) {
		struct run *run;

		base = event_base_new();
		ad_loop_new(base, &loop, NULL);
		launcher_make(helper);
		run = start("setsid sleep 100 & echo $PPID; sleep 100");
		helper_pid = parent_of(printed_pid(run));
		child = fork();
		if (child == 0) {
			for (;;)
				pause();
		}
		if (write(fds[1], &helper_pid, sizeof(pid_t)) < 0 ||
		    write(fds[1], &child, sizeof(pid_t)) < 0)
			_exit(1);
		for (;;)
			pause();
	}
	close(fds[1]);
	ck_assert_int_eq(read(fds[0], &helper_pid, sizeof(pid_t)), sizeof(pid_t));
	ck_assert_int_eq(read(fds[0], &child, sizeof(pid_t)), sizeof(pid_t));
	close(fds[0]);
	ck_assert_int_eq(kill(host, SIGKILL), 0);
	expect_all_dead(1500);
	waitpid(host, NULL, 0);
	kill(child, SIGKILL);
}
END_TEST

START_TEST(freed_while_running)
{
	struct run *run = start("setsid sleep 100 & echo 1; sleep 100");

	printed_pid(run);
	ad_launcher_free(launcher);
	launcher = NULL;
	ck_assert_int_eq(ad_job_kill(run->job), 0);
	ck_assert_int_eq(ad_job_signal(run->job, SIGTERM), AGENTD_ERR_STATE);
	run_free(run);
	expect_all_dead(1500);
}
END_TEST

/* It takes no more, for it has not read what came before; nor is anybody told of the job then. */
START_TEST(freed_while_the_helper_is_behind)
{
	for (int started = 0; started < 2; started++) {
		struct run *run = start("setsid sleep 100 & echo 1; sleep 100"), *other;

		if (started)
			printed_pid(run);
		ck_assert_int_eq(kill(helper_pid, SIGSTOP), 0);
		/* What its socket holds, some 280 of them, and more. */
		other = start("exec sleep 100");
		for (int i = 0; i < 1000; i++)
			ck_assert_int_eq(ad_job_signal(other->job, SIGCONT), 0);
		run_free(run);
		ck_assert_int_eq(kill(helper_pid, SIGCONT), 0);
		ck_assert(wait_for(other, &other->started, PATIENCE_MS));
		ad_job_kill(other->job);
		finish(other);
		run_free(other);
		expect_commands_dead(2000);
		expect_works();
	}
}
END_TEST

START_TEST(job_freed_in_its_callback)
{
	struct run *run = start("setsid sleep 100 & exit 3");
	int never = 0;

	run->free_when_exited = true;
	ck_assert(wait_for(run, &run->exited, PATIENCE_MS));
	ck_assert_ptr_null(run->job);
	wait_for(run, &never, 50);
	ck_assert_int_eq(run->closed, 0);
	run_free(run);
	expect_commands_dead(500);
	expect_works();
}
END_TEST

/* ---- many */

START_TEST(many_at_once)
{
	enum { COUNT = 300 };
	struct run *runs[COUNT];

	for (int i = 0; i < COUNT; i++) {
		char script[64];

		snprintf(script, sizeof(script), "read x; echo %d; exit %d", i, i % 250);
		const char *const argv[] = { "sh", "-c", script, NULL };
		struct ad_launch_request request = request_of(argv);

		request.stdin_open = true;
		runs[i] = run_new();
		run_request(runs[i], &request);
	}
	for (int i = 0; i < COUNT; i++)
		ck_assert(wait_for(runs[i], &runs[i]->started, PATIENCE_MS));
	for (int i = 0; i < COUNT; i++) {
		char want[16];

		close(ad_steal_fd(&runs[i]->fds[0]));
		expect_exit(runs[i], i % 250);
		snprintf(want, sizeof(want), "%d\n", i);
		ck_assert_str_eq(runs[i]->out[0], want);
		run_free(runs[i]);
	}
}
END_TEST

START_TEST(one_after_the_other)
{
	int count = unit_instrumented() ? 50 : 500;

	for (int i = 0; i < count; i++) {
		static const char *const argv[] = { "true", NULL };
		struct ad_launch_request request = request_of(argv);
		struct run *run = run_new();

		request.limits.pids_max = 512;
		request.limits.mem_bytes = UINT64_C(1) << 30;
		run_request(run, &request);
		expect_exit(run, 0);
		run_free(run);
	}
	/* The same few again and again, each of three hierarchies: of a command that has just
	 * ended, one that runs, and those made ahead. */
	ck_assert_uint_le(count_cgroups(), 24);
}
END_TEST

/* ---- stdin */

/* ---- virtual machine monitors: here a shell in the place of one */

enum { MACHINE_ID = 65531 };

static struct run *start_monitor(const char *script, const struct ad_launch_machine *machine)
{
	const char *argv[] = { "/bin/sh", "-c", script, NULL };
	struct ad_launch_request request = request_of(argv);
	struct run *run = run_new();

	request.workdir = "/";
	request.merge_stderr = true;
	request.machine = machine;
	run_request(run, &request);
	return run;
}

static struct run *start_machine(const char *script, const int *fds, size_t fd_count)
{
	const struct ad_launch_machine machine = { fds, fd_count, MACHINE_ID, MACHINE_ID, false };

	return start_monitor(script, &machine);
}

static void expect_status(pid_t pid, const char *line)
{
	char path[64], text[8192];

	snprintf(path, sizeof(path), "/proc/%d/status", pid);
	ck_assert_int_gt(slurp(path, text, sizeof(text)), 0);
	ck_assert_msg(strstr(text, line) != NULL, "no \"%s\" in %s", line, text);
}

START_TEST(machine_has_nothing)
{
	static const char script[] = "cat <&3; cat /proc/self/fd/3 && cat /etc/hostname; "
				     "echo here >&4; exec sleep 1000";
	uint32_t uid = geteuid() == 0 ? MACHINE_ID : geteuid();
	char path[128], line[96], seen[64] = "";
	struct run *run;
	int fds[2], ends[2];

	snprintf(path, sizeof(path), "%s/handed", dir);
	fds[0] = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
	ck_assert_int_eq(write(fds[0], "handed\n", 7), 7);
	close(fds[0]);
	fds[0] = open(path, O_RDONLY | O_CLOEXEC);
	ck_assert_int_ge(fds[0], 0);
	ck_assert_int_eq(pipe2(ends, O_CLOEXEC), 0);
	fds[1] = ends[1];
	/* What is refused below is there to be read. */
	run = start("cat /etc/hostname >/dev/null && echo readable");
	finish(run);
	ck_assert_str_eq(run->out[0], "readable\n");
	run_free(run);

	run = start_machine(script, fds, 2);
	ck_assert(wait_for(run, &run->started, PATIENCE_MS));
	ck_assert_uint_eq(run->receipt.uid, uid);
	ck_assert_msg(read(ends[0], seen, sizeof(seen) - 1) == 5, "nothing came by descriptor 4");
	ck_assert_str_eq(seen, "here\n");
	snprintf(line, sizeof(line), "Uid:\t%u\t%u\t%u\t%u\n", uid, uid, uid, uid);
	expect_status(run->pid, line);
	expect_status(run->pid, "CapPrm:\t0000000000000000\nCapEff:\t0000000000000000\n");
	if (geteuid() == 0)
		expect_status(run->pid, "CapBnd:\t0000000000000000\n");
	expect_status(run->pid, "NoNewPrivs:\t1\n");
	snprintf(path, sizeof(path), "/proc/%d/fd/5", run->pid);
	ck_assert(access(path, F_OK) < 0);
	path[strlen(path) - 1] = '4';
	ck_assert_msg(readlink(path, line, sizeof(line)) > 0, "%s", path);
	ck_assert_int_eq(ad_job_kill(run->job), 0);
	finish(run);
	expect_signal(run, SIGKILL);
	ck_assert_ptr_eq(strstr(run->out[0], "handed\nhanded\n"), run->out[0]);
	if (run->receipt.landlock_abi)
		ck_assert_str_eq(run->out[0] + 14, "cat: /etc/hostname: Permission denied\n");
	else
		fprintf(stderr, "SKIP-CANNOT: this kernel has no Landlock\n");
	run_free(run);
	close(fds[0]);
	close(ends[0]);
	close(ends[1]);
}
END_TEST

START_TEST(machine_has_small_pages)
{
	for (int small = 0; small <= 1; small++) {
		const struct ad_launch_machine machine = { NULL, 0, MACHINE_ID, MACHINE_ID, small };
		struct run *run = start_monitor("exec sleep 1000", &machine);

		ck_assert(wait_for(run, &run->started, PATIENCE_MS));
		expect_status(run->pid, small ? "THP_enabled:\t0\n" : "THP_enabled:\t1\n");
		ck_assert_int_eq(ad_job_kill(run->job), 0);
		finish(run);
		run_free(run);
	}
}
END_TEST

START_TEST(machine_ends)
{
	struct run *run = start_machine("exit 7", NULL, 0);

	finish(run);
	expect_exit(run, 7);
	run_free(run);
	run = start_machine("exec sleep 1000", NULL, 0);
	ck_assert(wait_for(run, &run->started, PATIENCE_MS));
	ck_assert_int_eq(parent_of(run->pid), helper_pid);
	ck_assert_int_eq(ad_job_kill(run->job), 0);
	finish(run);
	expect_signal(run, SIGKILL);
	run_free(run);
	run = start_machine("exec sleep 1000", NULL, 0);
	ck_assert(wait_for(run, &run->started, PATIENCE_MS));
	ck_assert_int_eq(ad_job_signal(run->job, SIGTERM), 0);
	finish(run);
	expect_signal(run, SIGTERM);
	run_free(run);
}
END_TEST

START_TEST(machine_cannot_start)
{
	const struct ad_launch_machine machine = { NULL, 0, MACHINE_ID, MACHINE_ID, false };
	const char *argv[] = { "/nowhere/qemu", NULL };
	struct ad_launch_request request = request_of(argv);
	struct run *run = run_new();

	request.merge_stderr = true;
	request.machine = &machine;
	run_request(run, &request);
	expect_failed(run, AGENTD_ERR_SYSTEM, ENOENT, "/nowhere/qemu");
	run_free(run);
	expect_works();
}
END_TEST

START_TEST(machine_dies_with_the_helper)
{
	struct run *run = start_machine("exec sleep 1000", NULL, 0);
	pid_t pid;

	ck_assert(wait_for(run, &run->started, PATIENCE_MS));
	pid = run->pid;
	ck_assert_int_eq(kill(helper_pid, SIGKILL), 0);
	ck_assert(wait_for(run, &run->failed, PATIENCE_MS));
	for (int i = 0; i < 1000 && kill(pid, 0) == 0 && !is_zombie(pid); i++)
		sleep_ms(5);
	ck_assert(kill(pid, 0) < 0 || is_zombie(pid));
	run_free(run);
	/* The next helper removes the group that this one could not. */
	ad_launcher_free(launcher);
	launcher_make(helper);
	wait_ready();
}
END_TEST

START_TEST(input)
{
	static const char *const argv[] = { "sh", "-c", "cat; echo end", NULL };
	struct ad_launch_request request = request_of(argv);
	struct run *run = run_new();

	request.stdin_open = true;
	run_request(run, &request);
	ck_assert(wait_for(run, &run->started, PATIENCE_MS));
	ck_assert_int_ge(run->fds[0], 3);
	ck_assert_int_eq(write(run->fds[0], "text ", 5), 5);
	close(ad_steal_fd(&run->fds[0]));
	expect_exit(run, 0);
	ck_assert_str_eq(run->out[0], "text end\n");
	run_free(run);
	run = start("cat; echo end");
	expect_exit(run, 0);
	ck_assert_int_eq(run->fds[0], -1);
	ck_assert_str_eq(run->out[0], "end\n");
	run_free(run);
}
END_TEST

/* ---- limits */

static const struct agentd_limits no_limits = { .size = sizeof(struct agentd_limits) };

static void expect_limit(const char *script, const struct agentd_limits *limits, const char *name)
{
	struct run *run = start_limited(script, limits);

	finish(run);
	ck_assert_msg(!run->failed, "%s", agentd_error_message(run->err));
	ck_assert_msg(run->fatal_limits == 1,
		      "%d fatal, wait status %#x, cpu %" PRIu64 " ms, stderr \"%s\"",
		      run->fatal_limits, run->wait_status, run->usage.cpu_ns / 1000000,
		      run->out[1]);
	ck_assert_str_eq(run->limit, name);
	run_free(run);
	expect_commands_dead(500);
}

START_TEST(limit_memory)
{
	struct agentd_limits limits = no_limits;
	struct run *run;

	limits.mem_bytes = 64 << 20;
	run = start_limited("tail /dev/zero; echo $?", &limits);
	finish(run);
	ck_assert_int_eq(run->closed, 1);
	if (run->receipt.memory >= AD_MEANS_CGROUP1) {
		ck_assert_int_eq(run->limits, 1);
		ck_assert_str_eq(run->limit, "mem_bytes");
		ck_assert(run->usage.memory_peak_is_tree);
		ck_assert_uint_le(run->usage.memory_peak_bytes, limits.mem_bytes);
		ck_assert_uint_gt(run->usage.memory_peak_bytes, limits.mem_bytes / 2);
	} else {
		/* Memory that it may not have: tail says so itself. */
		ck_assert_str_ne(run->out[0], "0\n");
	}
	run_free(run);
	expect_works();
}
END_TEST

START_TEST(limit_pids)
{
	struct agentd_limits limits = no_limits;
	struct run *run;

	limits.pids_max = 10;
	run = start_limited("for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do sleep "
			    "5 & done; sleep 5",
			    &limits);
	ck_assert(wait_for(run, &run->exited, PATIENCE_MS));
	ad_job_kill(run->job);
	finish(run);
	ck_assert_int_eq(run->limits, 1);
	ck_assert_str_eq(run->limit, "pids_max");
	ck_assert_int_eq(run->fatal_limits, run->receipt.pids < AD_MEANS_CGROUP1);
	run_free(run);
}
END_TEST

START_TEST(limit_cpu_time)
{
	struct agentd_limits limits = no_limits;
	uint64_t begin = now_ms();

	limits.cpu_time_ms = 300;
	expect_limit("while :; do :; done", &limits, "cpu_time_ms");
	/* Of the tree: in many short-lived children too. */
	expect_limit("while :; do sh -c 'i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done'; done",
		     &limits, "cpu_time_ms");
	if (!unit_instrumented())
		ck_assert_uint_lt(now_ms() - begin, 15000);
}
END_TEST

START_TEST(limit_cpu_bandwidth)
{
	static const char *const argv[] = { "true", NULL };
	struct ad_launch_request request = request_of(argv);
	struct agentd_limits limits = no_limits;
	struct run *run;

	limits.cpu_ms_per_100ms = 10;
	run = start_limited("i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done", &limits);
	expect_exit(run, 0);
	run_free(run);
	request.limits = limits;
	request.cgroup_required = true;
	run = run_new();
	run_request(run, &request);
	if (ad_launcher_best(launcher)->cpu == AD_MEANS_NONE) {
		expect_failed(run, AGENTD_ERR_UNSUPPORTED, 0, "cpu_ms_per_100ms");
	} else {
		expect_exit(run, 0);
		ck_assert_uint_ge(run->receipt.cpu, AD_MEANS_CGROUP1);
	}
	run_free(run);
}
END_TEST

START_TEST(limit_io)
{
	struct agentd_limits limits = no_limits;

	limits.io_bytes = 1 << 20;
	expect_limit("while :; do dd if=/dev/zero of=file bs=64k count=20 conv=fsync 2>/dev/null;"
		     "done",
		     &limits, "io_bytes");
}
END_TEST

START_TEST(limit_files)
{
	struct agentd_limits limits = no_limits;
	struct run *run;

	limits.open_files_max = 20;
	limits.file_bytes = 8192;
	run = start_limited("ulimit -n; ulimit -f; ulimit -Hn; head -c 10000 /dev/zero > file;"
			    "echo $?",
			    &limits);
	expect_exit(run, 0);
	ck_assert_str_eq(run->out[0], "20\n16\n20\n153\n"); /* SIGXFSZ */
	run_free(run);
}
END_TEST

START_TEST(usage_is_counted)
{
	struct run *run = start("i=0; while [ $i -lt 50000 ]; do i=$((i+1)); done;"
				"sh -c 'i=0; while [ $i -lt 50000 ]; do i=$((i+1)); done'");

	expect_exit(run, 0);
	ck_assert_uint_gt(run->usage.cpu_ns, 1000000);
	ck_assert_uint_gt(run->usage.memory_peak_bytes, 100 * 1024);
	ck_assert_uint_eq(run->usage.survivors, 0);
	run_free(run);
}
END_TEST

/* ---- strange hosts */

START_TEST(host_without_stdio)
{
	int kept[3];

	for (int i = 0; i < 3; i++)
		kept[i] = fcntl(i, F_DUPFD_CLOEXEC, 100);
	shut_down();
	ad_loop_free(loop);
	event_base_free(base);
	for (int i = 0; i < 3; i++)
		close(i);
	base = event_base_new();
	ck_assert_int_eq(ad_loop_new(base, &loop, NULL), 0);
	launcher_make(helper);
	expect_works(); /* that no pipe is below 3 is checked with every start */
	shut_down();
	ad_loop_free(loop);
	event_base_free(base);
	for (int i = 0; i < 3; i++)
		dup2(kept[i], i);
	for (int i = 0; i < 3; i++)
		close(kept[i]);
	base = event_base_new();
	ck_assert_int_eq(ad_loop_new(base, &loop, NULL), 0);
}
END_TEST

START_TEST(host_ignores_children)
{
	struct sigaction action = { .sa_handler = SIG_IGN };

	shut_down();
	ck_assert_int_eq(sigaction(SIGCHLD, &action, NULL), 0);
	launcher_make(helper);
	expect_works();
	shut_down();
	action.sa_handler = SIG_DFL;
	action.sa_flags = SA_NOCLDWAIT;
	ck_assert_int_eq(sigaction(SIGCHLD, &action, NULL), 0);
	launcher_make(helper);
	expect_works();
}
END_TEST

START_TEST(host_blocks_and_ignores_signals)
{
	sigset_t all, before, after;
	struct run *run;

	shut_down();
	sigfillset(&all);
	sigprocmask(SIG_SETMASK, &all, NULL);
	for (int signo = 1; signo < 32; signo++)
		signal(signo, SIG_IGN);
	sigprocmask(SIG_SETMASK, NULL, &before);
	launcher_make(helper);
	run = start("grep -E '^Sig(Blk|Ign)' /proc/self/status");
	expect_exit(run, 0);
	ck_assert_str_eq(run->out[0], "SigBlk:\t0000000000000000\nSigIgn:\t0000000000000000\n");
	run_free(run);
	sigprocmask(SIG_SETMASK, NULL, &after);
	for (int signo = 1; signo <= 64; signo++)
		ck_assert_int_eq(sigismember(&before, signo), sigismember(&after, signo));
}
END_TEST

/* As pid 1 of a container, it inherits the helper: then the library reaps it. */
START_TEST(host_is_a_subreaper)
{
	shut_down();
	ck_assert_int_eq(prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0), 0);
	launcher_make(helper);
	expect_works();
	shut_down();
	ck_assert_int_eq(waitpid(-1, NULL, WNOHANG), -1);
	ck_assert_int_eq(errno, ECHILD);
	launcher_make(helper);
	expect_works();
	ad_launcher_free(launcher);
	launcher = NULL;
	/* Its own check for leaks takes the helper longer than the library waits. */
	if (unit_instrumented())
		waitpid(-1, NULL, __WALL);
}
END_TEST

START_TEST(host_dropped_its_privileges)
{
	struct run *run;

	if (getuid() != 0)
		return;
	/* Who is left is to remove it. */
	ck_assert_int_eq(chown(dir, 65534, 65533), 0);
	ck_assert_int_eq(setgroups(0, NULL), 0);
	ck_assert_int_eq(setresgid(65533, 65533, 65533), 0);
	ck_assert_int_eq(setresuid(65534, 65534, 65534), 0);
	run = start("id -u; id -ru; id -g; id -G; grep ^CapEff /proc/self/status");
	expect_exit(run, 0);
	ck_assert_str_eq(run->out[0], "65534\n65534\n65533\n65533\nCapEff:\t0000000000000000\n");
	ck_assert_uint_eq(run->receipt.uid, 65534);
	ck_assert_uint_eq(run->receipt.gid, 65533);
	run_free(run);
	kill_and_expect_dead("setsid sleep 100 & echo 1; trap '' TERM; sleep 100", false);
}
END_TEST

/* ---- helpers that are none */

START_TEST(helper_missing)
{
	char path[160];

	snprintf(path, sizeof(path), "%s/nothing", dir);
	ck_refused(ad_launcher_new(loop, path, &launcher, &refused), AGENTD_ERR_NOTFOUND, "", path);
	ck_refused(ad_launcher_new(loop, path, &launcher, &refused), AGENTD_ERR_NOTFOUND, "",
		   "install agentd or set agentd_runner_opts.helper_path");
	ck_refused(ad_launcher_new(loop, "", &launcher, &refused), AGENTD_ERR_NOTFOUND, "", "");
	ck_refused(ad_launcher_new(loop, dir, &launcher, &refused), AGENTD_ERR_SYSTEM, "",
		   "Permission denied (os error 13)");
	ck_assert_ptr_null(launcher);
}
END_TEST

static void expect_lost(const char *path, int code, const char *text)
{
	launcher_make(path);
	wait_ready();
	ck_assert_int_eq(agentd_error_code(ready_err), code);
	ck_assert_msg(strstr(agentd_error_message(ready_err), text) != NULL, "%s",
		      agentd_error_message(ready_err));
	ad_launcher_free(launcher);
	launcher = NULL;
}

static void expect_lost_script(const char *script, int code, const char *text)
{
	char path[160];
	FILE *file;

	snprintf(path, sizeof(path), "%s/script", dir);
	unlink(path);
	file = fopen(path, "we");
	ck_assert_ptr_nonnull(file);
	fprintf(file, "#!/bin/sh\n%s\n", script);
	fclose(file);
	ck_assert_int_eq(chmod(path, 0755), 0);
	expect_lost(path, code, text);
}

START_TEST(helper_of_another_kind)
{
	expect_lost("/bin/true", AGENTD_ERR_BACKEND, "ended before it was ready");
	expect_lost_script("printf 'garbage' >&3; exec sleep 1", AGENTD_ERR_PROTOCOL,
			   "another version");
	expect_lost_script("printf '\\004garbage' >&3; exec sleep 1", AGENTD_ERR_PROTOCOL,
			   "malformed");
	expect_lost_script("head -c 5000 /dev/zero >&3; exec sleep 1", AGENTD_ERR_PROTOCOL,
			   "malformed");
	/* A report about a job that never was. */
	expect_lost_script("printf '\\004\\025\\0\\0\\011\\0\\0\\0"
			   "\\0\\0\\0\\0\\0\\0\\0\\0\\0\\0\\0\\0\\0\\0\\0\\0\\0\\0\\0\\0\\0' >&3;"
			   "exec sleep 1",
			   AGENTD_ERR_PROTOCOL, "malformed");
}
END_TEST

int main(void)
{
	TCase *tc = tcase_create("launch"), *bare = tcase_create("bare");
	Suite *suite = suite_create("launch");
	SRunner *runner;
	int failed;

	tcase_add_checked_fixture(tc, setup, teardown);
	tcase_add_test(tc, exit_codes);
	tcase_add_test(tc, signals);
	tcase_add_test(tc, no_program_fails_as_if_it_ran);
	tcase_add_test(tc, output_and_place);
	tcase_add_test(tc, merged_output);
	tcase_add_test(tc, clean_process);
	tcase_add_test(tc, program_lookup);
	tcase_add_test(tc, large_request);
	tcase_add_test(tc, bad_workdir);
	tcase_add_test(tc, bad_program);
	tcase_add_test(tc, arguments_too_long);
	tcase_add_test(tc, host_out_of_descriptors);
	tcase_add_test(tc, memory_file_beyond_limit);
	tcase_add_test(tc, descriptors_on_their_way);
	tcase_add_test(tc, kills_the_tree);
	tcase_add_test(tc, kills_what_ignores);
	tcase_add_test(tc, kills_under_a_strange_name);
	tcase_add_test(tc, kills_after_the_exit);
	tcase_add_test(tc, signals_reach_the_group);
	tcase_add_test(tc, kill_storm);
	tcase_add_test(tc, fork_bomb);
	tcase_add_test(tc, fork_bomb_of_sessions);
	tcase_add_test(tc, kills_with_a_full_signal_queue);
	tcase_add_test(tc, supervisor_killed);
	tcase_add_test(tc, supervisor_stopped);
	tcase_add_test(tc, supervisor_takes_no_signals);
	tcase_add_test(tc, helper_killed);
	tcase_add_test(tc, leaves_of_other_namespaces);
	tcase_add_test(tc, freed_while_running);
	tcase_add_test(tc, freed_while_the_helper_is_behind);
	tcase_add_test(tc, job_freed_in_its_callback);
	tcase_add_test(tc, many_at_once);
	tcase_add_test(tc, one_after_the_other);
	tcase_add_test(tc, machine_has_nothing);
	tcase_add_test(tc, machine_has_small_pages);
	tcase_add_test(tc, machine_ends);
	tcase_add_test(tc, machine_cannot_start);
	tcase_add_test(tc, machine_dies_with_the_helper);
	tcase_add_test(tc, input);
	tcase_add_test(tc, limit_memory);
	tcase_add_test(tc, limit_pids);
	tcase_add_test(tc, limit_cpu_time);
	tcase_add_test(tc, limit_cpu_bandwidth);
	tcase_add_test(tc, limit_io);
	tcase_add_test(tc, limit_files);
	tcase_add_test(tc, usage_is_counted);
	tcase_add_test(tc, host_without_stdio);
	tcase_add_test(tc, host_ignores_children);
	tcase_add_test(tc, host_blocks_and_ignores_signals);
	tcase_add_test(tc, host_is_a_subreaper);
	tcase_add_test(tc, host_dropped_its_privileges);
	tcase_add_checked_fixture(bare, setup_bare, teardown_bare);
	tcase_add_test(bare, host_killed);
	tcase_add_test(bare, host_killed_with_a_child);
	tcase_add_test(bare, helper_missing);
	tcase_add_test(bare, helper_of_another_kind);
	tcase_set_timeout(tc, 120 * stretch());
	tcase_set_timeout(bare, 120 * stretch());
	suite_add_tcase(suite, tc);
	suite_add_tcase(suite, bare);
	runner = srunner_create(suite);
	srunner_run_all(runner, CK_ENV);
	failed = srunner_ntests_failed(runner);
	srunner_free(runner);
	return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
