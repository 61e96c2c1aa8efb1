/* SPDX-License-Identifier: MIT */
/* A sandbox that stays: its view, namespaces and rules are put up once, for the policy of
 * its first command. A command with another policy would get what it was not meant to have,
 * or not what it was: it is refused. */
#include "backend/sandbox/private.h"

#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "json/json.h"
#include "loop/loop.h"
#include "sys/sys.h"

struct sandbox_session {
	agentd_task *task;
	const agentd_spec *spec; /* lives as long as its task */
	struct ad_job *job;
	uint8_t *profile; /* encoded: what is the same for all of its commands */
	size_t profile_len;
	bool started, stopping;
	struct ad_timer grace;
	int network; /* where the proxy of each command listens, or -1 */
};

/* ---- what the job reports */

static void job_network(struct ad_job *job, int fd, void *userdata)
{
	struct sandbox_session *session = userdata;

	(void)job;
	session->network = fd;
}

static void job_started(struct ad_job *job, int32_t pid, int stdin_fd, int stdout_fd, int stderr_fd,
			const struct ad_launch_receipt *receipt, void *userdata)
{
	struct sandbox_session *session = userdata;

	(void)job, (void)stdin_fd, (void)stdout_fd, (void)stderr_fd, (void)receipt;
	session->started = true;
	agentd_task_started(session->task, pid);
}

static void job_failed(struct ad_job *job, agentd_error *err,
		       const struct ad_launch_failure *failure, void *userdata)
{
	struct sandbox_session *session = userdata;

	(void)job;
	ad_timer_stop(&session->grace);
	if (failure && !session->started)
		err = ad_sandbox_explain(session->spec, failure, err);
	agentd_task_failed(session->task, err);
}

static void job_denied(struct ad_job *job, const char *kind, const char *target, void *userdata)
{
	struct sandbox_session *session = userdata;

	(void)job;
	ad_sandbox_denied(session->task, kind, target);
}

static void job_limit_hit(struct ad_job *job, const char *limit, bool fatal, void *userdata)
{
	struct sandbox_session *session = userdata;

	(void)job;
	agentd_task_limit_hit(session->task, limit, fatal);
}

static void job_exited(struct ad_job *job, int wait_status, uint64_t at_ns, void *userdata)
{
	/* There is no command. */
	(void)job, (void)wait_status, (void)at_ns, (void)userdata;
}

static void job_closed(struct ad_job *job, const struct ad_launch_usage *usage, void *userdata)
{
	struct sandbox_session *session = userdata;

	(void)job, (void)usage;
	ad_timer_stop(&session->grace);
	agentd_task_closed(session->task);
}

static const struct ad_job_events job_events = {
	.network = job_network,
	.started = job_started,
	.failed = job_failed,
	.denied = job_denied,
	.limit_hit = job_limit_hit,
	.exited = job_exited,
	.closed = job_closed,
};

/* ---- what the pool's configuration says */

static int refuse_option(const char *key, const struct json_object *value, const char *pointer,
			 void *userdata, agentd_error **reterr)
{
	(void)value, (void)userdata;
	return ad_json_unknown_key(key, pointer, reterr);
}

/* It takes none. */
static int check_options(const agentd_spec *spec, agentd_error **reterr)
{
	ad_autojson struct json_object *value = NULL;
	const char *text = agentd_spec_options(spec);
	int r = ad_json_parse(text, strlen(text), &value, reterr);

	return r < 0 ? r : ad_json_each_member(value, "/vm", refuse_option, NULL, reterr);
}

/* ---- its life */

static void grace_over(struct ad_timer *timer, void *userdata)
{
	const struct sandbox_session *session = userdata;

	(void)timer;
	ad_job_kill(session->job);
}

/* NULL: out of memory. The number kept ready is nothing that a command is confined by. */
static uint8_t *encode(const struct sandbox_profile *profile, size_t *ret_len)
{
	struct ad_profile plain = profile->profile;
	uint8_t *bytes;

	plain.prewarm = 0;
	bytes = malloc(ad_profile_size(&plain));
	if (bytes)
		*ret_len = ad_profile_encode(&plain, bytes);
	return bytes;
}

static int start(struct sandbox_session *session, const struct ad_sandbox_opts *opts,
		 struct sandbox_profile *profile, agentd_error **reterr)
{
	const agentd_spec *spec = session->spec;
	const struct ad_launch_sandbox sandbox = {
		.profile = &profile->profile,
		.credentials_fd = -1,
		.netns_fd = agentd_spec_netns(spec),
	};
	struct ad_launch_request request = {
		.workdir = agentd_spec_workdir(spec),
		.sandbox = &sandbox,
		.is_session = true,
	};

	profile->profile.prewarm = 0;
	session->profile = encode(profile, &session->profile_len);
	if (!session->profile)
		return ad_fail_nomem(reterr);
	ad_local_fill_limits(spec, &request);
	/* These are about one command. */
	request.limits.cpu_time_ms = request.limits.io_bytes = 0;
	return ad_job_start(opts->launcher, &request, &job_events, session, &session->job, reterr);
}

int sandbox_session_start(const struct ad_sandbox_opts *opts, agentd_task *task,
			  const agentd_spec *spec, struct sandbox_session **ret,
			  agentd_error **reterr)
{
	struct sandbox_session *session;
	struct sandbox_profile profile;
	int r = check_options(spec, reterr);

	if (r < 0)
		return r;
	session = calloc(1, sizeof(*session));
	if (!session || sandbox_profile_init(&profile, spec, opts) < 0) {
		free(session);
		return ad_fail_nomem(reterr);
	}
	session->task = task;
	session->spec = spec;
	session->network = -1;
	ad_timer_init(&session->grace, ad_launcher_loop(opts->launcher), grace_over, session);
	r = start(session, opts, &profile, reterr);
	sandbox_profile_free(&profile);
	if (r < 0)
		sandbox_session_free(session);
	else
		*ret = session;
	return r;
}

int32_t sandbox_session_stop(void *state, uint32_t grace_ms)
{
	struct sandbox_session *session = state;

	session->stopping = true;
	if (grace_ms == 0 || !session->started || ad_job_signal(session->job, SIGTERM) < 0 ||
	    ad_timer_start(&session->grace, grace_ms * AD_NS_PER_MS) < 0) {
		ad_timer_stop(&session->grace);
		return ad_job_kill(session->job);
	}
	return 0;
}

void sandbox_session_free(void *state)
{
	struct sandbox_session *session = state;

	ad_timer_stop(&session->grace);
	ad_job_free(session->job);
	if (session->network >= 0)
		close(session->network);
	free(session->profile);
	free(session);
}

/* ---- commands in it */

static bool same_network(int a, int b)
{
	struct stat x, y;

	if (a < 0 || b < 0)
		return a < 0 && b < 0;
	return fstat(a, &x) == 0 && fstat(b, &y) == 0 && x.st_dev == y.st_dev &&
	       x.st_ino == y.st_ino;
}

/* What processes that earlier commands have left asked for while nobody's policy held. */
static void drop_waiting(int network)
{
	int fd;

	if (ad_sys_set_nonblock(network) < 0)
		return;
	while ((fd = accept4(network, NULL, NULL, SOCK_CLOEXEC)) >= 0)
		close(fd);
}

int sandbox_session_enter(const struct sandbox_session *session, const agentd_spec *spec,
			  const struct sandbox_profile *profile, struct ad_local_session *ret,
			  agentd_error **reterr)
{
	size_t len;
	ad_autofree uint8_t *bytes = encode(profile, &len);

	if (!bytes)
		return ad_fail_nomem(reterr);
	if (len != session->profile_len || memcmp(bytes, session->profile, len) != 0 ||
	    strcmp(agentd_spec_workdir(spec), agentd_spec_workdir(session->spec)) != 0 ||
	    !same_network(agentd_spec_netns(spec), agentd_spec_netns(session->spec)))
		return ad_fail(reterr, AGENTD_ERR_STATE, NULL,
			       "the session was started with other paths, mounts, network or "
			       "protections than this command's policy and context have; stop it "
			       "first, its files stay");
	if (session->stopping)
		return ad_fail(reterr, AGENTD_ERR_STATE, NULL, "the session is being stopped");
	*ret = (struct ad_local_session){ .job = session->job, .network = session->network };
	if (session->network >= 0)
		drop_waiting(session->network);
	return 0;
}
