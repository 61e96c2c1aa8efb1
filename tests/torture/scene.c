/* SPDX-License-Identifier: MIT */
#include "scene.h"

#include <dirent.h>
#include <errno.h>
#include <glob.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

enum {
	TIMEOUT_MS = 8000, /* of the command */
	LATE_MS = 20000,   /* a helper that does not answer is given up after 15 s */
	READY_MS = 60,     /* the helper makes the next one after 20, and that takes 2 */
	HELPERS_MAX = 65536,
	PIDS_MAX = 16, /* of what is left */
};

static const char input[] = "input\n";

struct play {
	struct scene *scene;
	agentd_loop *loop;
	struct event_base *base;
	struct event *alarm;
	int late, done;
	off_t may_run; /* of its commands, so many have left no trace yet */

	agentd_policy *policy;
	agentd_context *ctx;
	agentd_params *params;
	agentd_runner *runner;
	agentd_pool *pool;
	agentd_sink *buffer, *sink;
	agentd_exec *exec;
	agentd_result *result;
	/* as the callbacks saw it */
	int started, exited, finished, destroyed;
	size_t bytes[3], taken;
	int probed, denied;
	agentd_error *err;
	bool wrong;
};

static void arm(struct play *play, bool armed)
{
	if (play->scene->fault)
		play->scene->fault->armed = armed;
}

static void tell(struct play *play, const char *fmt, ...)
	__attribute__((__format__(__printf__, 2, 3)));
static void tell(struct play *play, const char *fmt, ...)
{
	char *story = play->scene->story;
	size_t len = strlen(story);
	va_list args;

	va_start(args, fmt);
	vsnprintf(story + len, sizeof(play->scene->story) - len, fmt, args);
	va_end(args);
}

static void wrong(struct play *play, const char *fmt, ...)
	__attribute__((__format__(__printf__, 2, 3)));
static void wrong(struct play *play, const char *fmt, ...)
{
	char text[512];
	va_list args;

	va_start(args, fmt);
	vsnprintf(text, sizeof(text), fmt, args);
	va_end(args);
	tell(play, "; WRONG: %s", text);
	play->wrong = true;
}

/* ---- errors */

/* What there may be for a fault; everything else would be blaming somebody. */
static bool fits(int code)
{
	return code == AGENTD_ERR_NOMEM || code == AGENTD_ERR_SYSTEM ||
	       code == AGENTD_ERR_BACKEND || code == AGENTD_ERR_UNSUPPORTED ||
	       code == AGENTD_ERR_DENIED;
}

/* What a call returned, and the error it left in play->err. */
static bool ok(struct play *play, const char *what, int r)
{
	agentd_error *err = play->err;

	play->err = NULL;
	if (r >= 0) {
		if (err)
			wrong(play, "%s succeeded with an error", what);
		return true;
	}
	play->scene->refused = true;
	tell(play, "; %s: %d %s", what, r, agentd_error_message(err));
	if (!fits(r))
		wrong(play, "%s returned %d", what, r);
	if (!err || !agentd_error_message(err)[0])
		wrong(play, "%s without an error", what);
	/* Without memory for the error itself it is another. */
	else if (agentd_error_code(err) != r && agentd_error_code(err) != AGENTD_ERR_NOMEM)
		wrong(play, "%s returned %d, the error says %d", what, r, agentd_error_code(err));
	agentd_error_unref(err);
	return false;
}

#define OK(play, call, ...) ok(play, #call, call(__VA_ARGS__, &(play)->err))

/* ---- callbacks; none allocates */

static void give_input(struct play *play, agentd_exec *exec)
{
	int r = agentd_exec_write(exec, (const uint8_t *)input, sizeof(input) - 1, &play->taken);

	if (r < 0) {
		tell(play, "; write: %d", r);
		/* Not now: a machine that has no memory for it is about to end. */
		if (!fits(r) && r != AGENTD_ERR_STATE && r != AGENTD_ERR_AGAIN)
			wrong(play, "agentd_exec_write() returned %d", r);
		play->taken = 0;
	}
	r = agentd_exec_close_stdin(exec);
	if (r < 0 && r != AGENTD_ERR_STATE)
		wrong(play, "agentd_exec_close_stdin() returned %d", r);
}

static void on_started(agentd_exec *exec, void *userdata)
{
	struct play *play = userdata;

	play->started++;
	if (!play->scene->kill)
		give_input(play, exec);
	else if (agentd_exec_kill(exec) < 0)
		wrong(play, "agentd_exec_kill() failed");
}

static int32_t on_output(agentd_exec *exec, agentd_stream stream, const uint8_t *data, size_t len,
			 void *userdata)
{
	struct play *play = userdata;

	(void)exec;
	(void)data;
	play->bytes[stream] += len;
	return AGENTD_SINK_CONTINUE;
}

static void on_exited(agentd_exec *exec, int32_t exit_code, int32_t signo, void *userdata)
{
	struct play *play = userdata;

	(void)exec;
	(void)exit_code;
	(void)signo;
	play->exited++;
}

static void on_finished(agentd_exec *exec, agentd_result *result, void *userdata)
{
	struct play *play = userdata;

	(void)exec;
	play->finished++;
	if (!play->result)
		play->result = agentd_result_ref(result);
}

static void on_denied(agentd_exec *exec, const agentd_denial *denial, void *userdata)
{
	(void)exec;
	(void)denial;
	((struct play *)userdata)->denied++;
}

static void on_destroy(void *userdata)
{
	((struct play *)userdata)->destroyed++;
}

static int32_t on_log(agentd_exec *exec, const agentd_log_record *record, void *userdata)
{
	(void)exec;
	(void)record;
	(void)userdata;
	return 0;
}

static void on_shutdown(agentd_runner *runner, void *userdata)
{
	(void)runner;
	((struct play *)userdata)->done++;
}

static void on_alarm(evutil_socket_t fd, short what, void *userdata)
{
	(void)fd;
	(void)what;
	((struct play *)userdata)->late = 1;
}

/* ---- the loop */

static bool loop_open(struct play *play)
{
	struct timeval tv = { .tv_sec = LATE_MS / 1000 };

	if (play->scene->own_loop) {
		if (!OK(play, agentd_loop_new, &play->loop))
			return false;
		play->base = agentd_loop_event_base(play->loop);
	}
	arm(play, false);
	if (!play->base)
		play->base = event_base_new();
	play->alarm = evtimer_new(play->base, on_alarm, play);
	T_CHECK(play->alarm && evtimer_add(play->alarm, &tv) == 0, "no timer");
	arm(play, true);
	return true;
}

static void loop_until(struct play *play, const int *flag, const char *what)
{
	while (!*flag && !play->late) {
		if (play->loop) {
			if (!OK(play, agentd_loop_run, play->loop, 20))
				t_sleep_ms(1);
		} else if (event_base_loop(play->base, EVLOOP_ONCE) != 0) {
			wrong(play, "event_base_loop() failed");
			return;
		}
	}
	if (!*flag)
		wrong(play, "%s never came", what);
}

static void loop_close(struct play *play)
{
	arm(play, false);
	if (play->alarm)
		event_free(play->alarm);
	if (play->base && !play->loop)
		event_base_free(play->base);
	agentd_loop_unref(play->loop);
}

/* ---- what the command said */

static void check_output(struct play *play)
{
	bool on_host = strcmp(play->scene->backend, "host") == 0;
	/* In a session commands may signal each other, and what is its pid 1. */
	bool in_sandbox_session = play->scene->session &&
				  strcmp(play->scene->backend, "sandbox") == 0;
	const char *want = on_host ? "open: " : in_sandbox_session ? "open: signals\n" : "confined";
	const uint8_t *out = NULL, *err = NULL, *line;
	size_t out_len = 0, err_len = 0, want_len = strlen(want), tail = sizeof(input) - 1;

	agentd_sink_buffer_get(play->buffer, AGENTD_STDOUT, &out, &out_len, NULL);
	agentd_sink_buffer_get(play->buffer, AGENTD_STDERR, &err, &err_len, NULL);
	line = memchr(out, '\n', out_len);
	tell(play, "; \"%.*s\"", line ? (int)(line - out) : (int)out_len, (const char *)out);
	if (out_len < want_len || memcmp(out, want, want_len) != 0 ||
	    (!on_host && memmem(out + want_len, out_len - want_len, "open: ", 6)))
		wrong(play, "it is not \"%s\"", want);
	if (play->taken == tail &&
	    (out_len < tail || memcmp(out + out_len - tail, input, tail) != 0))
		wrong(play, "its input was lost");
	if (err_len != 4 || play->bytes[AGENTD_STDOUT] != out_len ||
	    play->bytes[AGENTD_STDERR] != err_len)
		wrong(play, "output was lost: %zu and %zu of %zu and %zu", out_len, err_len,
		      play->bytes[AGENTD_STDOUT], play->bytes[AGENTD_STDERR]);
}

static size_t remove_files(const struct scene *scene, const char *names)
{
	char *pattern = t_format("%s/%s", scene->world->workdir, names);
	glob_t made = { 0 };
	size_t count;

	glob(pattern, 0, NULL, &made);
	count = made.gl_pathc;
	for (size_t i = 0; i < count; i++)
		unlink(made.gl_pathv[i]);
	globfree(&made);
	free(pattern);
	return count;
}

static size_t remove_names(const struct scene *scene)
{
	return remove_files(scene, ".profile*");
}

/* A link that could not be looked at is moved aside like one that was changed. */
static size_t remove_links(const struct scene *scene)
{
	return remove_files(scene, ".bashrc.agentd-denied-*");
}

/* What the command made there was moved aside, or is at least told of. */
static void check_names(struct play *play)
{
	bool armed = play->scene->fault && play->scene->fault->armed;
	char *profile;

	arm(play, false);
	profile = t_format("%s/.profile", play->scene->world->workdir);
	if (access(profile, F_OK) == 0 && play->denied == 0)
		wrong(play, "a protected name was made, and nobody told");
	if (remove_names(play->scene) == 0)
		wrong(play, "no protected name was made");
	if (remove_links(play->scene) > 0 && play->denied == 0)
		wrong(play, "a protected link was moved aside, and nobody told");
	free(profile);
	arm(play, armed);
}

/* A command is run once, or not at all; if it was given up, perhaps after that was reported. */
static void check_runs(struct play *play, off_t commands)
{
	bool armed = play->scene->fault && play->scene->fault->armed;
	struct stat st = { 0 };
	char *path;

	arm(play, false);
	path = t_format("%s/runs", play->scene->world->workdir);
	play->may_run += commands;
	if (stat(path, &st) == 0)
		unlink(path);
	play->may_run -= st.st_size;
	if (play->may_run < 0)
		wrong(play, "it ran %d times more than it should have", (int)-play->may_run);
	free(path);
	arm(play, armed);
}

static void check_result(struct play *play)
{
	agentd_status status = agentd_result_status(play->result);
	int32_t cause = agentd_result_cause(play->result);
	const agentd_error *err = agentd_result_error(play->result);
	char *json = NULL;

	tell(play, "; %s/%s %d %s", agentd_status_name(status), agentd_cause_name(cause),
	     agentd_result_signal(play->result), agentd_error_message(err));
	check_runs(play, 1);
	if (play->finished != 1)
		wrong(play, "finished came %d times", play->finished);
	if (play->started > 1 || play->exited > play->started)
		wrong(play, "started %d times, exited %d times", play->started, play->exited);
	if (status == AGENTD_STATUS_OK && !play->scene->kill) {
		check_output(play);
		if (play->scene->names)
			check_names(play);
	} else if (play->scene->kill && status == AGENTD_STATUS_KILLED) {
		if (cause != AGENTD_CAUSE_CANCELED && !err)
			wrong(play, "another cause, and no error");
	} else {
		play->scene->refused = true;
		if (!err || !agentd_error_message(err)[0])
			wrong(play, "no error");
		/* Whether a path cannot be seen or is not to be seen looks the same. */
		else if (!fits(agentd_error_code(err)) &&
			 !strstr(agentd_error_message(err), "cannot be shown"))
			wrong(play, "its error is %d", agentd_error_code(err));
		/* By what the machine lacks; the policy has nothing to do with it. */
		if (status == AGENTD_STATUS_DENIED &&
		    (cause != AGENTD_CAUSE_ISOLATION || agentd_error_code(err) == AGENTD_ERR_NOMEM))
			wrong(play, "denied is not what it was");
	}
	if (OK(play, agentd_result_to_json, play->result, &json, NULL) &&
	    !strstr(json, agentd_status_name(status)))
		wrong(play, "JSON: %s", json);
	agentd_free(json);
}

/* ---- the acts */

static bool make_sinks(struct play *play)
{
	const struct agentd_sink_ops ops = {
		.size = sizeof(ops),
		.started = on_started,
		.output = on_output,
		.denied = on_denied,
		.exited = on_exited,
		.finished = on_finished,
		.log = on_log,
		.destroy = on_destroy,
	};
	agentd_sink *callbacks = NULL;
	bool done;

	if (!OK(play, agentd_sink_new_buffer, 4096, 4096, &play->buffer) ||
	    !OK(play, agentd_sink_new, &ops, play, &callbacks))
		return false;
	done = OK(play, agentd_sink_new_tee, play->buffer, callbacks, &play->sink);
	agentd_sink_unref(callbacks);
	return done;
}

static bool make_runner(struct play *play)
{
	struct scene *scene = play->scene;
	struct agentd_runner_opts opts = {
		.size = sizeof(opts),
		.event_base = play->base,
		.helper_path = scene->world->helper,
		.sandbox_prewarm = scene->prewarm ? scene->prewarm : UINT32_MAX,
		.policy = play->policy,
		.microvm_image = scene->image,
		.microvm_monitor = scene->monitor,
		.microvm_guest = getenv("TORTURE_GUEST"),
	};
	bool done = OK(play, agentd_runner_new, &opts, &play->runner);
	pid_t pid = 0;

	if (scene->in_helper) {
		pid = scene->fault->pid;
	} else if (done) {
		arm(play, false);
		t_world_helper_pids(scene->world, &pid, 1);
		arm(play, true);
	}
	if (pid && scene->helper_count < HELPERS_MAX)
		scene->helpers[scene->helper_count++] = pid;
	return done;
}

static bool make_pool(struct play *play)
{
	const char *config = play->scene->pool;

	return !config ||
	       (OK(play, agentd_pool_new, play->runner, config, strlen(config), &play->pool) &&
		OK(play, agentd_runner_set_pool, play->runner, play->pool));
}

static bool set_up(struct play *play)
{
	const struct scene *scene = play->scene;

	return OK(play, agentd_policy_from_json, scene->policy, strlen(scene->policy),
		  &play->policy) &&
	       OK(play, agentd_context_from_json, scene->context, strlen(scene->context),
		  &play->ctx) &&
	       OK(play, agentd_context_set_policy, play->ctx, play->policy) &&
	       OK(play, agentd_params_parse, scene->params, strlen(scene->params), &play->params) &&
	       make_runner(play) && make_pool(play);
}

static void let_go(struct play *play)
{
	agentd_exec_unref(play->exec);
	agentd_sink_unref(play->sink);
	agentd_sink_unref(play->buffer);
	agentd_result_unref(play->result);
	play->exec = NULL;
	play->sink = play->buffer = NULL;
	play->result = NULL;
}

static void run_command(struct play *play)
{
	const struct agentd_exec_opts opts = { .size = sizeof(opts),
					       .flags = AGENTD_EXEC_STDIN_OPEN };

	if (make_sinks(play) && OK(play, agentd_exec_start, play->runner, play->ctx, play->params,
				   play->sink, &opts, &play->exec)) {
		loop_until(play, &play->finished, "finished");
		if (play->result)
			check_result(play);
	}
	let_go(play);
}

static void start_over(struct play *play)
{
	play->started = play->exited = play->finished = play->denied = 0;
	memset(play->bytes, 0, sizeof(play->bytes));
}

static void run_again(struct play *play)
{
	start_over(play);
	t_sleep_ms(READY_MS);
	tell(play, "; again");
	run_command(play);
}

static void on_probe(agentd_probe *probe, const agentd_error *err, void *userdata)
{
	struct play *play = userdata;
	char *json = NULL;

	play->probed++;
	if (!probe) {
		play->scene->refused = true;
		tell(play, "; %s", agentd_error_message(err));
		if (!err || !fits(agentd_error_code(err)))
			wrong(play, "the probe failed with %d", agentd_error_code(err));
		return;
	}
	if (OK(play, agentd_probe_to_json, probe, &json, NULL) && json[0] != '{')
		wrong(play, "JSON: %s", json);
	agentd_free(json);
}

static void run_probe(struct play *play)
{
	const struct agentd_probe_opts opts = {
		.size = sizeof(opts),
		.flags = AGENTD_PROBE_NO_CACHE,
		.event_base = play->base,
		.helper_path = play->scene->world->helper,
	};

	if (OK(play, agentd_probe_start, &opts, on_probe, play))
		loop_until(play, &play->probed, "the probe's end");
	if (play->probed > 1)
		wrong(play, "the probe ended %d times", play->probed);
}

/* Without those of control groups, which it keeps for reuse. */
static int count_fds(pid_t pid)
{
	char path[64], target[64];
	struct dirent *entry;
	DIR *dir;
	int count = 0;

	snprintf(path, sizeof(path), "/proc/%d/fd", (int)pid);
	dir = opendir(path);
	while (dir && (entry = readdir(dir))) {
		ssize_t len = readlinkat(dirfd(dir), entry->d_name, target, sizeof(target) - 1);

		target[len < 0 ? 0 : len] = '\0';
		count += len > 0 && strncmp(target, "/sys/fs/cgroup", 14) != 0;
	}
	if (dir)
		closedir(dir);
	return count;
}

static bool is_gone(pid_t pid)
{
	uint64_t deadline = t_now() + T_MS(t_slack(5000));

	while (kill(pid, 0) == 0 || errno != ESRCH) {
		if (t_now() > deadline)
			return false;
		t_sleep_ms(1);
	}
	return true;
}

/* With whoever waits for the next command by then. */
static int most_fds(pid_t helper)
{
	int most = 0;

	for (int i = 0; i < 20; i++) {
		int fds = count_fds(helper);

		most = fds > most ? fds : most;
		t_sleep_ms(10);
	}
	return most;
}

/* The fault was the helper's, and is over: all is well with it, or it is gone. */
static void run_next(struct play *play)
{
	struct scene *scene = play->scene;
	bool refused = scene->refused;
	pid_t helper = scene->fault->pid;
	int fds = 0;

	arm(play, false);
	start_over(play);
	scene->refused = false;
	tell(play, "; next");
	run_command(play);
	if (scene->refused && !is_gone(helper))
		wrong(play, "a command without a fault was refused");
	if (!scene->helper_fds && !scene->refused)
		scene->helper_fds = most_fds(helper);
	/* It may just be looking at something. */
	for (int i = 0; i < 100 && !scene->refused; i++) {
		fds = count_fds(helper);
		if (fds <= scene->helper_fds)
			break;
		t_sleep_ms(10);
	}
	if (fds > scene->helper_fds)
		wrong(play, "the helper has %d descriptors, not %d", fds, scene->helper_fds);
	scene->refused = refused;
}

static void shut_down(struct play *play)
{
	agentd_pool_unref(play->pool);
	if (!play->runner)
		return;
	if (agentd_runner_shutdown(play->runner, 100, on_shutdown, play) < 0)
		wrong(play, "agentd_runner_shutdown() failed");
	loop_until(play, &play->done, "the end of the runner");
	agentd_runner_unref(play->runner);
}

const char *scene_play(struct scene *scene)
{
	struct play play = { .scene = scene };
	bool out_of_errors;

	scene->story[0] = '\0';
	scene->refused = false;
	if (scene->fault) {
		scene->fault->seen = scene->fault->hits = 0;
		scene->fault->pid = 0;
		scene->fault->out_of_errors = scene->fault->more_errors = false;
	}
	arm(&play, true);
	if (loop_open(&play) && scene->probe)
		run_probe(&play);
	else if (play.base && set_up(&play)) {
		run_command(&play);
		if (scene->again)
			run_again(&play);
		out_of_errors = scene->fault && scene->fault->out_of_errors;
		if (scene->in_helper && !out_of_errors)
			run_next(&play);
	}
	shut_down(&play);
	agentd_params_unref(play.params);
	agentd_context_unref(play.ctx);
	agentd_policy_unref(play.policy);
	loop_close(&play);
	check_runs(&play, 0);
	if (play.late)
		wrong(&play, "it took more than %d s", LATE_MS / 1000);
	scene->marked = unlink(scene->marker) == 0;
	if (scene->volumes)
		t_remove_tree(scene->volumes);
	if (scene->names) {
		remove_names(scene);
		remove_links(scene);
	}
	if (scene->marked && strcmp(scene->backend, "host") != 0)
		wrong(&play, "a command ran without a sandbox");
	return play.wrong ? scene->story : NULL;
}

/* ---- what is left */

/* Of a probe's directory. What may not be removed stays. */
static bool probe_remains(const struct scene *scene)
{
	char *pattern = t_format("/tmp/agentd-probe-%d.*", getpid());
	int call = scene->fault ? scene->fault->call : 0;
	bool remains = false;
	glob_t found;

	if (glob(pattern, 0, NULL, &found) == 0) {
		remains = call != SYS_rmdir && call != SYS_unlink;
		for (size_t i = 0; i < found.gl_pathc; i++)
			t_remove_tree(found.gl_pathv[i]);
		globfree(&found);
	}
	free(pattern);
	return remains;
}

const char *scene_remains(struct scene *scene)
{
	static char text[128];
	uint64_t deadline = t_now() + T_MS(t_slack(2000));
	pid_t pids[PIDS_MAX];
	size_t files, n;

	while ((n = t_count_processes(scene->marker, scene->world->helper_name, pids, PIDS_MAX)) >
	       0) {
		if (t_now() > deadline) {
			for (size_t i = 0; i < n && i < PIDS_MAX; i++)
				kill(pids[i], SIGKILL);
			snprintf(text, sizeof(text), "%zu processes are left", n);
			return text;
		}
		t_sleep_ms(1);
	}
	files = t_count_files(scene->world->dir);
	if (files != scene->files) {
		snprintf(text, sizeof(text), "%zu files, before it were %zu", files, scene->files);
		return text;
	}
	if (scene->probe && probe_remains(scene))
		return "the probe's directory is left";
	return NULL;
}

const char *scene_remaining_cgroups(struct scene *scene)
{
	uint64_t deadline = t_now() + T_MS(t_slack(5000));
	char *left;

	/* Of so many numbers one may be that of another's helper by now. */
	while (t_find_cgroups(scene->helpers, scene->helper_count, &left) > 0 &&
	       t_now() < deadline) {
		free(left);
		t_sleep_ms(50);
	}
	return left;
}

/* ---- open and close */

static char *namespaces(void)
{
	static const char *const names[] = { "user", "mnt", "pid",    "net",
					     "ipc",  "uts", "cgroup", NULL };
	static char text[512];
	size_t len = 0;

	for (size_t i = 0; names[i]; i++) {
		char path[64], number[64];
		ssize_t n;

		snprintf(path, sizeof(path), "/proc/self/ns/%s", names[i]);
		n = readlink(path, number, sizeof(number) - 1);
		number[n < 0 ? 0 : n] = '\0';
		len += (size_t)snprintf(text + len, sizeof(text) - len, ",\"%s=%s\"", names[i],
					number);
	}
	return text;
}

static void put_file(const char *dir, const char *name, const char *text)
{
	char *path = t_format("%s/%s", dir, name);

	t_write_file(path, text);
	free(path);
}

/* The disk of the root file system is what the fake monitor does. */
static void make_image(struct scene *scene)
{
	static const char script[] = "run: started out:confined cat err:err. end exited:0 closed\n";
	char *manifest = t_format("{\"format\": 3, \"protocol\": 2, \"files\": {"
				  "\"vmlinux\": {\"size\": 1}, "
				  "\"initramfs.cpio\": {\"size\": 1}, "
				  "\"root.erofs\": {\"size\": %zu}, "
				  "\"volume.ext4\": {\"size\": 1}, "
				  "\"volume-small.ext4\": {\"size\": 1}}}",
				  sizeof(script) - 1);

	scene->image = t_format("%s/image", scene->world->dir);
	scene->monitor = t_copy_program(getenv("TORTURE_MONITOR"), scene->world->dir, "monitor");
	ck_assert_int_eq(mkdir(scene->image, 0755), 0);
	put_file(scene->image, "image.json", manifest);
	put_file(scene->image, "vmlinux", "k");
	put_file(scene->image, "initramfs.cpio", "i");
	put_file(scene->image, "root.erofs", script);
	put_file(scene->image, "volume.ext4", "v");
	put_file(scene->image, "volume-small.ext4", "s");
	free(manifest);
}

static void make_session(struct scene *scene)
{
	scene->volumes = t_format("%s/volumes", scene->world->dir);
	scene->pool = t_format("{\"enabled\":true,\"backend\":\"%s\",\"fallback\":false,"
			       "\"volume_root\":\"%s\"}",
			       scene->backend, scene->volumes);
}

/* A writable directory in which a protected name is a link to a file. */
static void make_names(struct scene *scene)
{
	const char *dir = scene->world->workdir;
	char *link = t_format("%s/.bashrc", dir);

	put_file(dir, "config", "");
	ck_assert_int_eq(symlink("config", link), 0);
	free(link);
}

void scene_open(struct scene *scene, const char *command)
{
	struct t_world *world = scene->world;
	char *bin = t_format("%s/bin", world->dir), *program, *place;
	const char *quote = scene->names ? "\"" : "";

	if (strcmp(scene->backend, "microvm") == 0)
		make_image(scene);
	if (scene->session)
		make_session(scene);
	if (scene->names)
		make_names(scene);
	ck_assert_int_eq(mkdir(bin, 0755), 0);
	program = t_copy_program(command, bin, "confined");
	/* Anybody could, but for a sandbox. */
	scene->marker = t_format("%s/marker", world->dir);
	ck_assert_int_eq(chmod(world->dir, 0777), 0);
	scene->policy = strcmp(scene->backend, "sandbox") == 0 ?
				t_format("{\"min_isolation\":\"sandbox\",\"paths\":{\"read\":"
					 "[\"%s\"],\"exec\":[\"%s\"],\"write\":[%s%s%s]}}",
					 bin, bin, quote, scene->names ? world->workdir : "",
					 quote) :
				t_format("{\"min_isolation\":\"none\"}");
	place = scene->session ? t_format("\"session\":{\"session_id\":"
					  "\"aaaaaaaa-0000-4000-8000-000000000000\"}") :
				 t_format("\"backend\":\"%s\"", scene->backend);
	scene->context = t_format("{\"workdir\":\"%s\",%s,\"env\":{\"A\":\"1\"},"
				  "\"labels\":{\"k\":\"v\"},\"trace_id\":\"t\","
				  "\"shell\":[\"%s\",\"%s\"%s]}",
				  world->workdir, place, program, scene->marker,
				  scene->kill ? "" : namespaces());
	scene->params = t_format("{\"command\":\"%s\",\"timeout_ms\":%d}",
				 scene->kill ? "sleep" : "look", TIMEOUT_MS);
	scene->helpers = calloc(HELPERS_MAX, sizeof(*scene->helpers));
	ck_assert_ptr_nonnull(scene->helpers);
	scene->files = t_count_files(world->dir);
	free(place);
	free(program);
	free(bin);
}

void scene_close(struct scene *scene)
{
	free(scene->policy);
	free(scene->context);
	free(scene->params);
	free(scene->marker);
	free(scene->helpers);
	free(scene->pool);
	free(scene->volumes);
	free(scene->image);
	free(scene->monitor);
}
