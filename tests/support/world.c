/* SPDX-License-Identifier: MIT */
#include "harness.h"

#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#ifndef __WALL
#define __WALL 0x40000000
#endif

#define MONITOR "/usr/bin/qemu-system-x86_64"
#define HELPER AGENTD_HELPER_DIR "/agentd-helper"
#define GUEST AGENTD_HELPER_DIR "/agentd-guest"

/* ---- the loop */

static void expire(evutil_socket_t fd, short what, void *userdata)
{
	int *expired = userdata;

	(void)fd;
	(void)what;
	*expired = 1;
}

bool t_base_loop(struct event_base *base, uint64_t ms, const int *flag)
{
	struct timeval tv = { .tv_sec = (time_t)(ms / 1000),
			      .tv_usec = (suseconds_t)(ms % 1000) * 1000 };
	int expired = 0;
	struct event *timer = evtimer_new(base, expire, &expired);

	T_CHECK(timer && evtimer_add(timer, &tv) == 0, "no timer");
	while (!expired && !(flag && *flag))
		T_CHECK(event_base_loop(base, EVLOOP_ONCE) == 0, "event_base_loop()");
	event_free(timer);
	return flag && *flag;
}

bool t_world_loop(struct t_world *world, uint64_t ms, const int *flag)
{
	return t_base_loop(world->base, ms, flag);
}

/* ---- logs */

const struct t_log *t_logs_find(const struct t_logs *logs, size_t from, const char *message)
{
	for (size_t i = from; i < logs->count; i++) {
		if (strcmp(logs->items[i].message, message) == 0)
			return &logs->items[i];
	}
	return NULL;
}

size_t t_logs_count(const struct t_logs *logs, const char *message)
{
	size_t count = 0;

	for (size_t i = 0; i < logs->count; i++)
		count += strcmp(logs->items[i].message, message) == 0;
	return count;
}

const char *t_log_field(const struct t_log *log, const char *key)
{
	for (size_t i = 0; log && i < log->field_count; i++) {
		if (strcmp(log->fields[i].key, key) == 0)
			return log->fields[i].value;
	}
	return NULL;
}

void t_logs_add(struct t_logs *logs, const agentd_log_record *record)
{
	struct t_log log = { .at_ns = t_now() };

	log.level = agentd_log_record_level(record);
	T_CHECK(log.level >= AGENTD_LOG_ERROR && log.level <= AGENTD_LOG_DEBUG, "level %d",
		log.level);
	T_CHECK(agentd_log_record_component(record), "agentd_log_record_component(record) is NULL");
	T_CHECK(agentd_log_record_message(record), "agentd_log_record_message(record) is NULL");
	log.component = strdup(agentd_log_record_component(record));
	log.message = strdup(agentd_log_record_message(record));
	log.field_count = agentd_log_record_field_count(record);
	log.fields = calloc(log.field_count + 1, sizeof(*log.fields));
	T_CHECK(log.component && log.message && log.fields, "no memory");
	for (size_t i = 0; i < log.field_count; i++) {
		T_CHECK(agentd_log_record_field_key(record, i),
			"agentd_log_record_field_key(record, i) is NULL");
		T_CHECK(agentd_log_record_field_value(record, i),
			"agentd_log_record_field_value(record, i) is NULL");
		log.fields[i].key = strdup(agentd_log_record_field_key(record, i));
		log.fields[i].value = strdup(agentd_log_record_field_value(record, i));
	}
	T_CHECK(!agentd_log_record_field_key(record, log.field_count), "a field past the last");
	T_CHECK(!agentd_log_record_field_value(record, log.field_count), "a field past the last");
	if (logs->count == logs->cap) {
		logs->cap = logs->cap ? logs->cap * 2 : 16;
		logs->items = realloc(logs->items, logs->cap * sizeof(*logs->items));
		T_CHECK(logs->items, "logs->items is NULL");
	}
	logs->items[logs->count++] = log;
}

void t_logs_free(struct t_logs *logs)
{
	for (size_t i = 0; i < logs->count; i++) {
		for (size_t j = 0; j < logs->items[i].field_count; j++) {
			free(logs->items[i].fields[j].key);
			free(logs->items[i].fields[j].value);
		}
		free(logs->items[i].fields);
		free(logs->items[i].component);
		free(logs->items[i].message);
	}
	free(logs->items);
	*logs = (struct t_logs){ 0 };
}

static void world_log(const agentd_log_record *record, void *userdata)
{
	struct t_world *world = userdata;

	t_logs_add(&world->logs, record);
}

/* ---- the helper */

const char *t_helper_source(void)
{
	static char path[PATH_MAX];
	const char *given = getenv("AGENTD_TEST_HELPER");
	static const char *const places[] = { "agentd-helper", "helper/agentd-helper" };
	Dl_info info;
	char *slash;
	void *symbol;

	if (given)
		return given;
	if (path[0])
		return path;
	symbol = dlsym(RTLD_DEFAULT, "agentd_version_string");
	if (!symbol || !dladdr(symbol, &info) || !info.dli_fname)
		return NULL;
	for (size_t i = 0; i < T_COUNT(places); i++) {
		if (snprintf(path, sizeof(path), "%s", info.dli_fname) >= (int)sizeof(path))
			break;
		slash = strrchr(path, '/');
		if (!slash || (size_t)(slash - path) + 32 > sizeof(path))
			break;
		strcpy(slash + 1, places[i]);
		if (access(path, X_OK) == 0)
			return path;
	}
	path[0] = '\0';
	return access(HELPER, X_OK) == 0 ? HELPER : NULL;
}

/* The library looks beside the helper, which here is a copy. */
static const char *guest_source(void)
{
	const char *given = getenv("AGENTD_TEST_GUEST");

	return given || access(GUEST, X_OK) < 0 ? given : GUEST;
}

char *t_copy_program(const char *source, const char *dir, const char *name)
{
	char *path = t_format("%s/%s", dir, name);
	struct stat st;
	int in, out;
	off_t done = 0;

	in = open(source, O_RDONLY | O_CLOEXEC);
	ck_assert_msg(in >= 0, "%s: %s", source, strerror(errno));
	ck_assert_int_eq(fstat(in, &st), 0);
	out = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0755);
	ck_assert_msg(out >= 0, "%s: %s", path, strerror(errno));
	while (done < st.st_size)
		ck_assert_int_gt(sendfile(out, in, &done, (size_t)(st.st_size - done)), 0);
	ck_assert_int_eq(fchmod(out, 0755), 0);
	close(in);
	close(out);
	return path;
}

/* ---- worlds */

agentd_policy *t_policy_none(void)
{
	agentd_policy *policy = NULL;

	T_CHECK(agentd_policy_new(&policy, NULL) == 0 &&
			agentd_policy_set_min_isolation(policy, AGENTD_ISOLATION_NONE, NULL) == 0,
		"no policy");
	return policy;
}

void t_world_note_helpers(struct t_world *world)
{
	pid_t pids[T_COUNT(world->helpers)];
	size_t n = t_world_helper_pids(world, pids, T_COUNT(pids));

	for (size_t i = 0; i < n && i < T_COUNT(pids); i++) {
		world->helpers[world->helper_count] = pids[i];
		world->helper_count += world->helper_count + 1 < T_COUNT(world->helpers);
	}
}

pid_t t_world_helper(struct t_world *world)
{
	uint64_t deadline = t_now() + T_MS(t_slack(5000));

	while (world->helper_count == 0 && t_now() < deadline) {
		t_sleep_ms(1);
		t_world_note_helpers(world);
	}
	ck_assert_uint_gt(world->helper_count, 0);
	return world->helpers[0];
}

/* Also for a user who is not root and has none of their own. */
const char *t_image_dir(void)
{
	const char *given = getenv("AGENTD_TEST_IMAGE");

	return given ? given : "/var/cache/agentd";
}

bool t_can_host_machines(void)
{
	char *image = t_format("%s/image.json", t_image_dir());
	bool can = true;

	if (access(MONITOR, X_OK) < 0) {
		t_skip("there is no " MONITOR " (Debian: qemu-system-x86)");
		can = false;
	} else if (access(image, R_OK) < 0) {
		t_skip("there is no %s: scripts/build-image makes it", image);
		can = false;
	}
	free(image);
	return can;
}

static bool in_machines(const struct t_world *world)
{
	return world->opts.backend && strcmp(world->opts.backend, "microvm") == 0;
}

/* For every backend; a sandbox also has to be told where programs are. */
static agentd_policy *world_policy(const struct t_world *world)
{
	static const char *const programs[] = { "/usr", "/bin", "/sbin", "/lib", "/lib64" };
	const uint32_t all = AGENTD_ACCESS_READ | AGENTD_ACCESS_WRITE | AGENTD_ACCESS_EXEC;
	agentd_policy *policy = t_policy_none();

	/* A machine's working directory is carried by a process in a sandbox. */
	if (!world->opts.paths &&
	    (!world->opts.backend || (strcmp(world->opts.backend, "sandbox") != 0 &&
				      strcmp(world->opts.backend, "microvm") != 0)))
		return policy;
	for (size_t i = 0; i < T_COUNT(programs); i++) {
		if (access(programs[i], F_OK) == 0)
			ck_assert_int_eq(agentd_policy_allow_path(policy, programs[i],
								  AGENTD_ACCESS_READ |
									  AGENTD_ACCESS_EXEC,
								  NULL),
					 0);
	}
	ck_assert_int_eq(agentd_policy_allow_path(policy, world->home, all, NULL), 0);
	return policy;
}

agentd_context *t_world_context(struct t_world *world)
{
	static const char *const sh[] = { "sh", "-c", NULL };
	agentd_policy *policy = world_policy(world);
	agentd_context *ctx = NULL;
	const char *backend = world->opts.backend ? world->opts.backend : "host";

	ck_assert_int_eq(agentd_context_new(&ctx, NULL), 0);
	ck_assert_int_eq(agentd_context_set_policy(ctx, policy, NULL), 0);
	agentd_policy_unref(policy);
	if (*backend)
		ck_assert_int_eq(agentd_context_set_backend(ctx, backend, NULL), 0);
	ck_assert_int_eq(agentd_context_set_workdir(ctx, world->workdir, NULL), 0);
	ck_assert_int_eq(agentd_context_set_env(ctx, "HOME", world->home, NULL), 0);
	ck_assert_int_eq(agentd_context_set_env(ctx, "AGENTD_TEST_TAG", world->tag, NULL), 0);
	ck_assert_int_eq(agentd_context_set_trace_id(ctx, "test-trace-123", NULL), 0);
	if (!world->opts.login_shell)
		ck_assert_int_eq(agentd_context_set_shell(ctx, sh, NULL), 0);
	return ctx;
}

static void make_dir(char **ret, const char *parent, const char *name)
{
	*ret = t_format("%s/%s", parent, name);
	ck_assert_int_eq(mkdir(*ret, 0755), 0);
}

struct t_world *t_world_new_bare(const struct t_world_opts *opts)
{
	static _Atomic unsigned int serial;
	struct t_world *world = calloc(1, sizeof(*world));
	const char *tmp = getenv("TMPDIR");

	ck_assert_ptr_nonnull(world);
	if (opts)
		world->opts = *opts;
	t_fds_take(&world->fds_before);
	snprintf(world->tag, sizeof(world->tag), "agentd-tag-%d-%u-%llx", (int)getpid(), ++serial,
		 (unsigned long long)t_now());
	world->dir = t_format("%s/agentd-test-XXXXXX", tmp && *tmp == '/' ? tmp : "/tmp");
	ck_assert_msg(mkdtemp(world->dir), "%s: %s", world->dir, strerror(errno));
	ck_assert_int_eq(chmod(world->dir, 0755), 0);
	make_dir(&world->workdir, world->dir, "work");
	make_dir(&world->home, world->dir, "home");
	ck_assert_int_eq(chmod(world->workdir, 0777), 0);
	ck_assert_int_eq(chmod(world->home, 0777), 0);
	snprintf(world->helper_name, sizeof(world->helper_name), "ah-%x-%x",
		 (unsigned int)getpid() & 0xffffffU, serial & 0xffffU);
	if (t_helper_source())
		world->helper = t_copy_program(t_helper_source(), world->dir, world->helper_name);
	if (in_machines(world)) {
		snprintf(world->monitor_name, sizeof(world->monitor_name), "qm-%s",
			 world->helper_name + 3);
		world->monitor = t_format("%s/%s", world->dir, world->monitor_name);
		ck_assert_int_eq(symlink(MONITOR, world->monitor), 0);
	}
	return world;
}

void t_world_start(struct t_world *world)
{
	struct agentd_runner_opts opts = {
		.size = sizeof(opts),
		.flags = world->opts.runner_flags |
			 (in_machines(world) && !world->opts.microvm_image ?
				  AGENTD_RUNNER_SNAPSHOTS :
				  0),
		.log = world->opts.no_log ? NULL :
		       world->opts.log    ? world->opts.log :
					    world_log,
		.log_userdata = world->opts.log ? world->opts.log_userdata : world,
		.log_level = world->opts.log_level ? world->opts.log_level : AGENTD_LOG_DEBUG,
		.max_running = world->opts.max_running,
		.max_queued = world->opts.max_queued,
		.heartbeat_ms = world->opts.heartbeat_ms,
		.sandbox_prewarm = world->opts.sandbox_prewarm,
		.drain_ms = world->opts.drain_ms,
		.helper_path = world->helper,
		.microvm_image = world->opts.microvm_image ? world->opts.microvm_image :
				 in_machines(world)        ? t_image_dir() :
							     "/nowhere",
		.microvm_guest = world->opts.microvm_guest ? world->opts.microvm_guest :
							     guest_source(),
		.microvm_monitor = world->opts.microvm_monitor ? world->opts.microvm_monitor :
								 world->monitor,
	};
	agentd_error *err = NULL;
	int r;

	if (!world->base) {
		world->base = world->opts.base;
		if (!world->base) {
			world->base = event_base_new();
			world->owns_base = true;
		}
		ck_assert_ptr_nonnull(world->base);
	}
	opts.event_base = world->base;
	if (world->opts.runner_policy)
		ck_assert_int_eq(agentd_policy_from_json(world->opts.runner_policy,
							 strlen(world->opts.runner_policy),
							 &opts.policy, NULL),
				 0);
	else
		opts.policy = world_policy(world);
	if (world->opts.limits)
		ck_assert_int_eq(agentd_policy_set_limits(opts.policy, world->opts.limits, NULL),
				 0);
	r = agentd_runner_new(&opts, &world->runner, &err);
	ck_assert_msg(r == 0, "agentd_runner_new: %d %s", r, agentd_error_message(err));
	agentd_policy_unref(opts.policy);
	t_world_note_helpers(world);
	if (world->opts.add_backend) {
		r = world->opts.add_backend(world->runner, &err);
		ck_assert_msg(r == 0, "add_backend: %d %s", r, agentd_error_message(err));
	}
	world->ctx = t_world_context(world);
}

struct t_world *t_world_new(const struct t_world_opts *opts)
{
	struct t_world *world = t_world_new_bare(opts);

	t_world_start(world);
	return world;
}

static void shutdown_done(agentd_runner *runner, void *userdata)
{
	int *done = userdata;

	ck_assert_ptr_nonnull(runner);
	(*done)++;
}

void t_world_shutdown(struct t_world *world)
{
	int done = 0, r;

	if (!world->runner)
		return;
	world->in_api++;
	r = agentd_runner_shutdown(world->runner, 100, shutdown_done, &done);
	world->in_api--;
	ck_assert_int_eq(r, 0);
	ck_assert_msg(done == 0, "done was called inside agentd_runner_shutdown()");
	ck_assert_msg(t_world_loop(world, t_slack(10000), &done), "no `done` after shutdown");
	ck_assert_int_eq(done, 1);
	agentd_runner_unref(world->runner);
	world->runner = NULL;
}

static void expect_no_processes(struct t_world *world, const char *name, uint64_t within_ms)
{
	uint64_t deadline = t_now() + T_MS(t_slack(within_ms));
	pid_t pids[8];
	size_t n;

	/* Cheap while it is being waited for: /proc is read as a whole. */
	while ((n = t_count_processes(world->tag, name, pids, T_COUNT(pids))) > 0 &&
	       t_now() < deadline)
		t_sleep_ms(10);
	if (n > 0) {
		char path[64];
		char *cmdline, *stat;

		snprintf(path, sizeof(path), "/proc/%d/cmdline", (int)pids[0]);
		cmdline = t_read_file(path, NULL);
		snprintf(path, sizeof(path), "/proc/%d/stat", (int)pids[0]);
		stat = t_read_file(path, NULL);
		ck_abort_msg("%zu processes left after %llu ms, first %d (%s; %s)", n,
			     (unsigned long long)t_slack(within_ms), (int)pids[0],
			     cmdline ? cmdline : "?", stat ? stat : "?");
	}
}

void t_world_expect_dead(struct t_world *world, uint64_t within_ms)
{
	expect_no_processes(world, world->helper_name, within_ms);
	if (world->monitor)
		t_world_expect_commands_dead(world, within_ms);
}

void t_world_expect_commands_dead(struct t_world *world, uint64_t within_ms)
{
	expect_no_processes(world, world->monitor ? world->monitor_name : NULL, within_ms);
}

size_t t_world_helper_pids(struct t_world *world, pid_t *ret_pids, size_t max)
{
	return t_count_processes(NULL, world->helper_name, ret_pids, max);
}

static void expect_no_cgroups(struct t_world *world)
{
	uint64_t deadline = t_now() + T_MS(t_slack(1000));
	char *left;

	while (t_find_cgroups(world->helpers, world->helper_count, &left)) {
		ck_assert_msg(t_now() < deadline, "control group left: %s", left);
		free(left);
		t_sleep_ms(20);
	}
}

void t_world_expect_clean(struct t_world *world)
{
	siginfo_t info = { 0 };

	t_world_expect_dead(world, 1000);
	ck_assert_msg(waitid(P_ALL, 0, &info, WEXITED | WNOHANG | __WALL) < 0 && errno == ECHILD,
		      "a child was left to the host (pid %d)", (int)info.si_pid);
	t_fds_expect_same(&world->fds_before, "after the end");
	expect_no_cgroups(world);
}

void t_world_free(struct t_world *world)
{
	t_world_shutdown(world);
	agentd_context_unref(world->ctx);
	if (world->owns_base && world->base)
		event_base_free(world->base);
	t_world_expect_clean(world);
	t_world_forget(world);
}

void t_world_forget(struct t_world *world)
{
	t_logs_free(&world->logs);
	t_fds_free(&world->fds_before);
	t_remove_tree(world->dir);
	free(world->dir);
	free(world->workdir);
	free(world->home);
	free(world->helper);
	free(world->monitor);
	free(world);
}

void t_expect_error(int got, int want, agentd_error *err, const char *text, const char *pointer)
{
	ck_assert_msg(got == want, "returned %d, not %d: %s", got, want, agentd_error_message(err));
	ck_assert_msg(err != NULL, "no error object for %d", want);
	ck_assert_msg(agentd_error_code(err) == want, "the error's code is %d, not %d",
		      agentd_error_code(err), want);
	ck_assert_msg(agentd_error_message(err)[0] && !strchr(agentd_error_message(err), '\n'),
		      "message \"%s\"", agentd_error_message(err));
	if (text)
		ck_assert_msg(strstr(agentd_error_message(err), text),
			      "message \"%s\" lacks \"%s\"", agentd_error_message(err), text);
	if (pointer)
		ck_assert_str_eq(agentd_error_pointer(err), pointer);
	agentd_error_unref(err);
}
