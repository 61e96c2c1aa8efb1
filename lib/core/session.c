/* SPDX-License-Identifier: MIT */
/* Pools of a runner. */
#include <errno.h>

#include "core/core.h"
#include "launch/launch.h"

static void log_pool(int32_t level, const char *message, const char *session, const char *error,
		     void *userdata)
{
	ad_log_session(userdata, level, message, session, error);
}

static void pin(void *userdata)
{
	ad_runner_pin(userdata);
}

static void unpin(void *userdata)
{
	ad_runner_unpin(userdata);
}

static bool on_loop(void *userdata)
{
	return ad_runner_on_loop(userdata);
}

static void wake(void *userdata)
{
	ad_runner_wake(userdata);
}

static int check_runner(const agentd_runner *runner, agentd_error **reterr)
{
	if (runner->in_log)
		return ad_fail(reterr, AGENTD_ERR_REENTRANT, NULL,
			       "a log callback may not change the runner");
	if (runner->shutting_down || runner->released)
		return ad_fail(reterr, AGENTD_ERR_STATE, NULL, "the runner is shutting down");
	return 0;
}

int agentd_pool_new(agentd_runner *runner, const char *config, size_t len, agentd_pool **ret,
		    agentd_error **reterr)
{
	struct ad_pool_host host;
	AD_KEEP_ERRNO;
	int r;

	if (!runner || !config || !ret)
		return ad_fail(reterr, AGENTD_ERR_INVALID, NULL, "%s is NULL",
			       !runner ? "runner" :
			       !config ? "config" :
					 "ret");
	r = check_runner(runner, reterr);
	if (r < 0)
		return r;
	host = (struct ad_pool_host){ .loop = runner->loop,
				      .registry = &runner->registry,
				      .launcher = runner->launcher,
				      .worker = ad_launch_program_path(runner->helper_path,
								       "backup"),
				      .log = log_pool,
				      .pin = pin,
				      .unpin = unpin,
				      .on_loop = on_loop,
				      .wake = wake,
				      .userdata = runner };
	if (!host.worker)
		return ad_fail_nomem(reterr);
	return ad_pool_new(&host, &runner->pools, config, len, ret, reterr);
}

int agentd_runner_set_pool(agentd_runner *runner, agentd_pool *pool, agentd_error **reterr)
{
	agentd_pool *before;
	AD_KEEP_ERRNO;
	int r;

	if (!runner)
		return ad_fail(reterr, AGENTD_ERR_INVALID, NULL, "runner is NULL");
	r = check_runner(runner, reterr);
	if (r < 0)
		return r;
	if (pool && !ad_pool_is_of(pool, runner))
		return ad_fail(reterr, AGENTD_ERR_INVALID, NULL,
			       "the pool was made for another runner");
	before = runner->pool;
	runner->pool = agentd_pool_ref(pool);
	agentd_pool_unref(before);
	return 0;
}
