/* SPDX-License-Identifier: MIT */
/* Finding out: the helper's `try` as a command of a runner of our own, at once on the
 * host backend, which shows what this machine and user permit, and in a sandbox with
 * every layer required. If that sandbox cannot be had, once more with the layers that
 * can be spared as degradable, which shows which ones are missing and why. */
#include "probe/private.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <netinet/in.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "policy/policy.h"
#include "proto/profile.h"
#include "sys/sys.h"

enum {
	TRIAL_MS = 10000,
	OUTPUT_MAX = 64 << 10,
	/* The limits of the sandbox, and what is tried against them. */
	PIDS_MAX = 16,
	MEM_MIB_MAX = 64,
	LANDLOCK_SCOPES = 6, /* from this ABI on it refuses signals: landlock(7) */
};
#define PROCESSES "32"
#define MEMORY_MIB "128"
#define OUTSIDE_MS "1"
#define INSIDE_MS "2000" /* where limits are polled, the watchdog gets its turn */

enum { SCOPE_OUTSIDE, SCOPE_INSIDE, SCOPE_LAYERS, SCOPE_COUNT };
enum { SET_ACTS, SET_PROCESSES, SET_MEMORY, SET_COUNT };

struct trials;
struct trial {
	struct trials *trials;
	agentd_result *result; /* NULL: not begun, or not over */
	struct ad_buf out;
};

struct trials {
	struct trial_request request; /* helper_path is ours */
	char *helper_path;
	agentd_runner *runner;
	agentd_policy *policies[SCOPE_COUNT];
	struct trial of[SCOPE_COUNT][SET_COUNT];
	size_t running;
	/* What is there to be seen, written to and reached. */
	char dir[40], work[48];
	char start_text[24], pid_text[16], port_text[8];
	int port, abstract; /* listening */
	agentd_probe *probe;
	agentd_error *err;
};

/* ---- the host program's side of the acts */

static int make_file(struct trials *trials, const char *name, mode_t mode, agentd_error **reterr)
{
	char path[64];
	ad_autoclose int fd = -1;

	snprintf(path, sizeof(path), "%s/%s", trials->dir, name);
	fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	if (fd < 0 || fchmod(fd, mode) < 0)
		return ad_fail_errno(reterr, errno, "%s", path);
	return 0;
}

static int make_files(struct trials *trials, agentd_error **reterr)
{
	int code;

	snprintf(trials->dir, sizeof(trials->dir), "/tmp/agentd-probe-%d.XXXXXX", getpid());
	if (!mkdtemp(trials->dir)) {
		trials->dir[0] = '\0';
		return ad_fail_errno(reterr, errno, "a directory in /tmp");
	}
	snprintf(trials->work, sizeof(trials->work), "%s/work", trials->dir);
	if (chmod(trials->dir, 0755) < 0 || mkdir(trials->work, 0755) < 0)
		return ad_fail_errno(reterr, errno, "%s", trials->dir);
	code = make_file(trials, "secret", 0644, reterr);
	return code < 0 ? code : make_file(trials, "shared", 0666, reterr);
}

/* By paths, which takes no descriptor: there may be none left. */
static void remove_files(struct trials *trials)
{
	static const char *const names[] = { "secret", "shared" };
	DIR *work;

	if (!trials->dir[0])
		return;
	/* Empty but for what a command was killed over. */
	work = opendir(trials->work);
	for (struct dirent *entry; work && (entry = readdir(work));)
		unlinkat(dirfd(work), entry->d_name, 0);
	if (work)
		closedir(work);
	rmdir(trials->work);
	for (size_t i = 0; i < AD_COUNT(names); i++) {
		char path[64];

		snprintf(path, sizeof(path), "%s/%s", trials->dir, names[i]);
		unlink(path);
	}
	rmdir(trials->dir);
}

/* Where there is no such network, the act fails outside of the sandbox as well. */
static void listen_here(struct trials *trials)
{
	struct sockaddr_in in = { .sin_family = AF_INET,
				  .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	struct sockaddr_un un = { .sun_family = AF_UNIX };
	socklen_t len = sizeof(in);

	trials->port = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (trials->port < 0 || bind(trials->port, (struct sockaddr *)&in, sizeof(in)) < 0 ||
	    listen(trials->port, 4) < 0 ||
	    getsockname(trials->port, (struct sockaddr *)&in, &len) < 0)
		in.sin_port = 0;
	snprintf(trials->port_text, sizeof(trials->port_text), "%u", ntohs(in.sin_port));

	len = (socklen_t)strlen(trials->dir);
	memcpy(un.sun_path + 1, trials->dir, len);
	len += (socklen_t)offsetof(struct sockaddr_un, sun_path) + 1;
	trials->abstract = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (trials->abstract >= 0 && bind(trials->abstract, (struct sockaddr *)&un, len) == 0)
		listen(trials->abstract, 4);
}

/* Who we are, for a sandbox where our number may be another's. */
static void identify(struct trials *trials)
{
	uint64_t start = 0;

	ad_sys_start_time(0, &start);
	snprintf(trials->start_text, sizeof(trials->start_text), "%" PRIu64, start);
	snprintf(trials->pid_text, sizeof(trials->pid_text), "%d", getpid());
}

/* ---- policies */

static int allow_programs(agentd_policy *policy, const char *helper, agentd_error **reterr)
{
	static const char *const dirs[] = { "/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64" };
	const uint32_t access = AGENTD_ACCESS_READ | AGENTD_ACCESS_EXEC;
	int code = agentd_policy_allow_path(policy, helper, access, reterr);
	struct stat st;

	for (size_t i = 0; code == 0 && i < AD_COUNT(dirs); i++) {
		if (lstat(dirs[i], &st) == 0)
			code = agentd_policy_allow_path(policy, dirs[i], access, reterr);
	}
	return code;
}

static int make_policy(struct trials *trials, int scope, agentd_error **reterr)
{
	const uint32_t all = AGENTD_ACCESS_READ | AGENTD_ACCESS_WRITE | AGENTD_ACCESS_EXEC;
	agentd_policy *policy;
	int code = agentd_policy_new(&trials->policies[scope], reterr);

	policy = trials->policies[scope];
	/* The runner has that of the widest scope: what a context has only narrows. */
	if (code == 0 && scope == SCOPE_OUTSIDE) {
		code = agentd_policy_set_min_isolation(policy, AGENTD_ISOLATION_NONE, reterr);
		if (code == 0)
			code = agentd_policy_allow_path(policy, "/", all, reterr);
	} else if (code == 0) {
		code = agentd_policy_allow_path(policy, trials->work, all, reterr);
		if (code == 0)
			code = allow_programs(policy, trials->helper_path, reterr);
	}
	for (size_t i = 0; code == 0 && scope != SCOPE_INSIDE && i < AD_LAYER_COUNT; i++)
		code = agentd_policy_set_protection(policy, ad_policy_layers[i],
						    AGENTD_PROTECTION_DEGRADABLE, reterr);
	return code;
}

/* ---- running */

static void next(struct trials *trials);

static int32_t on_output(agentd_exec *exec, agentd_stream stream, const uint8_t *data, size_t len,
			 void *userdata)
{
	struct trial *trial = userdata;

	(void)exec;
	if (stream == AGENTD_STDOUT)
		ad_buf_append(&trial->out, data, len);
	return trial->out.failed ? AGENTD_ERR_NOMEM : AGENTD_SINK_CONTINUE;
}

static void on_finished(agentd_exec *exec, agentd_result *result, void *userdata)
{
	struct trial *trial = userdata;

	(void)exec;
	trial->result = agentd_result_ref(result);
	if (--trial->trials->running == 0)
		next(trial->trials);
}

static int run(struct trials *trials, int scope, int set, agentd_context *context,
	       agentd_error **reterr)
{
	const char *const ms = scope == SCOPE_OUTSIDE ? OUTSIDE_MS : INSIDE_MS;
	const char *const argvs[SET_COUNT][8] = {
		[SET_ACTS] = { trials->helper_path, "try", "acts", trials->dir, trials->pid_text,
			       trials->start_text, trials->port_text },
		[SET_PROCESSES] = { trials->helper_path, "try", "processes", PROCESSES, ms },
		[SET_MEMORY] = { trials->helper_path, "try", "memory", MEMORY_MIB, ms },
	};
	const struct agentd_sink_ops ops = { .size = sizeof(ops),
					     .output = on_output,
					     .finished = on_finished };
	struct agentd_limits limits = { .size = sizeof(limits), .output_bytes = OUTPUT_MAX };
	struct agentd_exec_opts opts = { .size = sizeof(opts), .limits = &limits };
	struct trial *trial = &trials->of[scope][set];
	agentd_params *params = NULL;
	agentd_sink *sink = NULL;
	int code;

	trial->trials = trials;
	if (scope != SCOPE_OUTSIDE && set == SET_PROCESSES)
		limits.pids_max = PIDS_MAX;
	if (scope != SCOPE_OUTSIDE && set == SET_MEMORY)
		limits.mem_bytes = (uint64_t)MEM_MIB_MAX << 20;
	code = agentd_params_new_argv(argvs[set], TRIAL_MS, &params, reterr);
	if (code == 0)
		code = agentd_sink_new(&ops, trial, &sink, reterr);
	if (code == 0)
		code = agentd_exec_start(trials->runner, context, params, sink, &opts, NULL,
					 reterr);
	if (code == 0)
		trials->running++;
	agentd_sink_unref(sink);
	agentd_params_unref(params);
	return code;
}

static int run_scope(struct trials *trials, int scope, int sets, agentd_error **reterr)
{
	agentd_context *context = NULL;
	int code = agentd_context_new(&context, reterr);

	if (code == 0)
		code = agentd_context_set_policy(context, trials->policies[scope], reterr);
	if (code == 0)
		code = agentd_context_set_workdir(context, trials->work, reterr);
	if (code == 0)
		code = agentd_context_set_backend(context,
						  scope == SCOPE_OUTSIDE ? "host" : "sandbox",
						  reterr);
	for (int set = 0; code == 0 && set < sets; set++)
		code = run(trials, scope, set, context, reterr);
	agentd_context_unref(context);
	return code;
}

/* ---- what came of it */

/* Whether the trial's command said all it had to say. */
static bool complete(const struct trial *trial)
{
	static const char end[] = "end\n";
	const size_t len = sizeof(end) - 1;

	return trial->result && agentd_result_status(trial->result) == AGENTD_STATUS_OK &&
	       trial->out.len >= len &&
	       memcmp(trial->out.data + trial->out.len - len, end, len) == 0;
}

/* The number in the first line that begins with kind and name, tabs between them. */
static bool find(const struct trial *trial, const char *kind, const char *name, int *ret)
{
	ad_autobuf struct ad_buf begin = { 0 };
	const char *line = trial->out.data;

	if (!ad_buf_printf(&begin, "%s\t%s\t", kind, name))
		return false;
	for (; line && *line; line += *line != '\0') {
		if (strncmp(line, begin.data, begin.len) == 0) {
			*ret = (int)strtol(line + begin.len, NULL, 10);
			return true;
		}
		line += strcspn(line, "\n");
	}
	return false;
}

static void put_how(struct ad_buf *text, int result)
{
	const char *name = result < 0 ? sigabbrev_np(-result) : strerrordesc_np(result);

	if (result < 0)
		ad_buf_printf(text, "killed by SIG%s", name ? name : "?");
	else
		ad_buf_puts(text, name ? name : "unknown error");
}

static bool add_act(struct trials *trials, int set, const char *name, int outside)
{
	const struct trial *inside = &trials->of[SCOPE_INSIDE][set];
	ad_autobuf struct ad_buf how = { 0 };
	int32_t verdict = AGENTD_ACT_UNKNOWN;
	int result;

	ad_buf_puts(&how, "");
	if (find(inside, "act", name, &result)) {
		verdict = result == 0 ? AGENTD_ACT_POSSIBLE : AGENTD_ACT_REFUSED;
		if (result != 0)
			put_how(&how, result);
	} else if (set != SET_ACTS && *agentd_result_limit(inside->result)) {
		verdict = AGENTD_ACT_REFUSED;
		ad_buf_printf(&how, "ended by %s", agentd_result_limit(inside->result));
	}
	return !how.failed && probe_add_act(trials->probe, name,
					    outside == 0 ? AGENTD_ACT_POSSIBLE : AGENTD_ACT_REFUSED,
					    verdict, how.data);
}

static bool add_acts(struct trials *trials, int set)
{
	static const char start[] = "act\t";
	const char *line = trials->of[SCOPE_OUTSIDE][set].out.data;
	bool ok = true;

	for (; ok && line && *line; line += strcspn(line, "\n"), line += *line != '\0') {
		const char *name = line + sizeof(start) - 1, *tab;

		if (strncmp(line, start, sizeof(start) - 1) != 0)
			continue;
		tab = strchr(name, '\t');
		if (tab) {
			ad_autofree char *copy = strndup(name, (size_t)(tab - name));

			ok = copy && add_act(trials, set, copy, (int)strtol(tab + 1, NULL, 10));
		}
	}
	return ok;
}

/* The trial that shows which layers there are. */
static const struct trial *layers_trial(const struct trials *trials)
{
	const struct trial *again = &trials->of[SCOPE_LAYERS][SET_ACTS];

	return again->result ? again : &trials->of[SCOPE_INSIDE][SET_ACTS];
}

static bool add_layers(struct trials *trials)
{
	const agentd_result *result = layers_trial(trials)->result;
	const char *name, *reason;
	int32_t state;
	bool ok = true;

	for (size_t i = 0;
	     ok && agentd_result_protection_at(result, i, &name, &state, &reason) == 0; i++)
		ok = probe_add_layer(trials->probe, name, state, reason);
	return ok;
}

/* Landlock says that it is up; does it do anything? */
static bool landlock_works(const struct trials *trials)
{
	int level = 0, error = 0;

	find(&trials->of[SCOPE_OUTSIDE][SET_ACTS], "fact", "landlock", &level);
	return level < LANDLOCK_SCOPES ||
	       !find(&trials->of[SCOPE_INSIDE][SET_ACTS], "fact", "signal-init", &error) ||
	       error != 0;
}

static const char landlock_idle[] = "Landlock was put up and refuses nothing";

/* What a command whose sandbox had every layer could do all the same, or how it did not
 * come to its end; "": it held. */
static bool why_no_sandbox(const struct trials *trials, struct ad_buf *text)
{
	const struct trial *trial = &trials->of[SCOPE_INSIDE][SET_ACTS];
	const agentd_error *err = agentd_result_error(trial->result);
	const char *act;
	int32_t inside;
	int error;

	if (err)
		return ad_buf_puts(text, agentd_error_message(err));
	if (!complete(trial))
		return ad_buf_printf(text, "the trial inside of it ended early: %s",
				     agentd_cause_name(agentd_result_cause(trial->result)));
	if (!find(trial, "fact", "workdir", &error) || error != 0)
		return ad_buf_printf(text, "a command cannot write to its working directory: %s",
				     strerrordesc_np(error));
	for (size_t i = 0; agentd_probe_act_at(trials->probe, i, &act, NULL, &inside, NULL) == 0;
	     i++) {
		if (inside != AGENTD_ACT_REFUSED)
			return ad_buf_printf(text, "inside of it a command %s: %s",
					     inside == AGENTD_ACT_POSSIBLE ? "can" :
									     "could not try",
					     act);
	}
	return ad_buf_puts(text, landlock_works(trials) ? "" : landlock_idle);
}

/* A layer's capability: level, if the layer is up. */
static bool add_layer_cap(struct trials *trials, int32_t cap, const char *layer, int level)
{
	const agentd_result *result = layers_trial(trials)->result;
	const agentd_error *err = agentd_result_error(result);
	const char *name, *reason;
	int32_t state;

	for (size_t i = 0; agentd_result_protection_at(result, i, &name, &state, &reason) == 0;
	     i++) {
		if (strcmp(name, layer) == 0)
			return probe_set_cap(trials->probe, cap,
					     state == AGENTD_LAYER_ENFORCED ? level : 0, reason);
	}
	return probe_set_cap(trials->probe, cap, 0,
			     err ? agentd_error_message(err) : "the sandbox did not come up");
}

/* Was it the process, or the moment, that lacked something, and not the machine? A refusal is
 * for good; what else did not come to its end may do so the next time. */
static bool is_passing(const struct trials *trials)
{
	const agentd_result *result = trials->of[SCOPE_INSIDE][SET_ACTS].result;
	int32_t inside;

	if (agentd_result_status(result) == AGENTD_STATUS_DENIED)
		return false;
	for (size_t i = 0; agentd_probe_act_at(trials->probe, i, NULL, NULL, &inside, NULL) == 0;
	     i++) {
		if (inside == AGENTD_ACT_UNKNOWN)
			return true;
	}
	return false;
}

static int conclude(struct trials *trials, agentd_error **reterr)
{
	ad_autobuf struct ad_buf reason = { 0 };
	int landlock = 0, seccomp = 0;
	bool ok = true;

	for (int set = 0; set < SET_COUNT; set++) {
		const struct trial *outside = &trials->of[SCOPE_OUTSIDE][set];
		const agentd_error *err = agentd_result_error(outside->result);

		if (!complete(outside))
			return ad_fail(reterr, AGENTD_ERR_BACKEND, NULL,
				       "the trial without a sandbox ended early: %s%s%s",
				       agentd_cause_name(agentd_result_cause(outside->result)),
				       err ? ": " : "", err ? agentd_error_message(err) : "");
	}
	trials->probe = probe_new();
	if (!trials->probe)
		return ad_fail_nomem(reterr);
	for (int set = 0; set < SET_COUNT; set++)
		ok = ok && add_acts(trials, set);
	find(&trials->of[SCOPE_OUTSIDE][SET_ACTS], "fact", "landlock", &landlock);
	find(&trials->of[SCOPE_OUTSIDE][SET_ACTS], "fact", "seccomp", &seccomp);
	ok = ok && add_layers(trials) && why_no_sandbox(trials, &reason) &&
	     probe_set_cap(trials->probe, AGENTD_CAP_SANDBOX, *reason.data ? 0 : 1, reason.data) &&
	     add_layer_cap(trials, AGENTD_CAP_USER_NAMESPACE, "userns", 1) &&
	     add_layer_cap(trials, AGENTD_CAP_LANDLOCK, "landlock", landlock) &&
	     add_layer_cap(trials, AGENTD_CAP_SECCOMP, "seccomp", seccomp) &&
	     add_layer_cap(trials, AGENTD_CAP_CGROUP, "cgroup", 1) &&
	     add_layer_cap(trials, AGENTD_CAP_IDMAP, "idmap", 1);
	if (ok && !landlock_works(trials))
		ok = probe_set_cap(trials->probe, AGENTD_CAP_LANDLOCK, 0, landlock_idle);
	trials->probe->passing = is_passing(trials);
	return ok ? 0 : ad_fail_nomem(reterr);
}

/* ---- the way */

static void trials_free(struct trials *trials)
{
	for (int scope = 0; scope < SCOPE_COUNT; scope++) {
		agentd_policy_unref(trials->policies[scope]);
		for (int set = 0; set < SET_COUNT; set++) {
			agentd_result_unref(trials->of[scope][set].result);
			ad_buf_free(&trials->of[scope][set].out);
		}
	}
	if (trials->port >= 0)
		close(trials->port);
	if (trials->abstract >= 0)
		close(trials->abstract);
	remove_files(trials);
	agentd_runner_unref(trials->runner);
	agentd_probe_unref(trials->probe);
	agentd_error_unref(trials->err);
	free(trials->helper_path);
	free(trials);
}

static void on_gone(agentd_runner *runner, void *userdata)
{
	struct trials *trials = userdata;
	const struct trial_request request = trials->request;
	agentd_probe *probe = AD_STEAL(trials->probe);
	agentd_error *err = AD_STEAL(trials->err);

	(void)runner;
	trials_free(trials);
	request.fn(err ? NULL : probe, err, request.userdata);
	agentd_probe_unref(probe);
	agentd_error_unref(err);
}

/* Nothing runs any more: what is next? */
static void next(struct trials *trials)
{
	const agentd_result *inside = trials->of[SCOPE_INSIDE][SET_ACTS].result;

	if (!trials->err && inside && agentd_result_status(inside) == AGENTD_STATUS_DENIED &&
	    !trials->of[SCOPE_LAYERS][SET_ACTS].result &&
	    run_scope(trials, SCOPE_LAYERS, 1, &trials->err) == 0)
		return;
	if (!trials->err)
		conclude(trials, &trials->err);
	/* It was not shut down before, so that it can be now. */
	(void)agentd_runner_shutdown(trials->runner, 0, on_gone, trials);
}

static int prepare(struct trials *trials, agentd_error **reterr)
{
	struct agentd_runner_opts opts = { .size = sizeof(opts),
					   .flags = AGENTD_RUNNER_NO_STDERR_LOG,
					   .event_base = trials->request.base,
					   .helper_path = trials->helper_path };
	int code = make_files(trials, reterr);

	if (code < 0)
		return code;
	listen_here(trials);
	identify(trials);
	for (int scope = 0; code == 0 && scope < SCOPE_COUNT; scope++)
		code = make_policy(trials, scope, reterr);
	opts.policy = trials->policies[SCOPE_OUTSIDE];
	return code < 0 ? code : agentd_runner_new(&opts, &trials->runner, reterr);
}

int trial_start(const struct trial_request *request, agentd_error **reterr)
{
	struct trials *trials = calloc(1, sizeof(*trials));
	int code = 0;

	if (!trials)
		return ad_fail_nomem(reterr);
	trials->request = *request;
	trials->port = trials->abstract = -1;
	trials->helper_path = strdup(request->helper_path);
	if (!trials->helper_path)
		code = ad_fail_nomem(reterr);
	if (code == 0)
		code = prepare(trials, reterr);
	if (code < 0) {
		trials_free(trials);
		return code;
	}
	code = run_scope(trials, SCOPE_OUTSIDE, SET_COUNT, &trials->err);
	if (code == 0)
		code = run_scope(trials, SCOPE_INSIDE, SET_COUNT, &trials->err);
	if (code == 0 || trials->running > 0)
		return 0; /* next() sees to an error when what runs has ended */
	if (reterr)
		*reterr = AD_STEAL(trials->err);
	trials_free(trials);
	return code;
}
