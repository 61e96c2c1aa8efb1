/* SPDX-License-Identifier: MIT */
/* The runner: what it owns, and how it comes and goes. */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/random.h>
#include <sys/sysinfo.h>

#include "backend/host/host.h"
#include "backend/microvm/microvm.h"
#include "backend/sandbox/sandbox.h"
#include "core/core.h"
#include "egress/egress.h"
#include "launch/launch.h"

#define DIGEST_TEXT_(x) #x
#define DIGEST_TEXT(x) DIGEST_TEXT_(x)

/* What 0.1 began with. */
#define OPTS_SIZE_0_1                                                                              \
	((uint32_t)(offsetof(struct agentd_runner_opts, helper_path) + sizeof(const char *)))

enum {
	MAX_RUNNING = 16,
	MAX_QUEUED = 64,
	HEARTBEAT_MS = 5000, /* as the original */
	DRAIN_MS = 250,
};

static void kill_all(agentd_runner *runner, bool now)
{
	struct ad_list *lists[] = { &runner->active, &runner->queued };

	for (size_t i = 0; i < AD_COUNT(lists); i++) {
		struct ad_list *node = lists[i]->next;

		while (node != lists[i]) {
			agentd_exec *exec = AD_CONTAINER_OF(node, agentd_exec, link);

			node = node->next; /* stopping never takes one off the list */
			ad_exec_stop(exec, AGENTD_CAUSE_CANCELED, now);
		}
	}
}

/* Nothing of them is used any more: the launcher and the loop are about to go. */
static void forget_given_up(agentd_runner *runner)
{
	while (!ad_list_empty(&runner->given_up))
		ad_exec_forget_late(AD_CONTAINER_OF(runner->given_up.next, agentd_exec, link));
}

static void destroy(agentd_runner *runner)
{
	forget_given_up(runner);
	ad_pool_detach_all(&runner->pools);
	agentd_pool_unref(runner->pool);
	ad_registry_close(&runner->registry);
	if (runner->launcher)
		ad_launcher_free(runner->launcher);
	ad_resolver_free(runner->resolver);
	if (runner->loop) {
		ad_defer_cancel(&runner->settle);
		ad_loop_free(runner->loop);
	}
	agentd_policy_unref(runner->policy);
	agentd_policy_unref(runner->no_policy);
	free(runner->read_buffer);
	free(runner->helper_path);
	free(runner);
}

static bool nothing_left(const agentd_runner *runner)
{
	return ad_list_empty(&runner->active) && ad_list_empty(&runner->queued);
}

void ad_runner_pin(agentd_runner *runner)
{
	runner->pins++;
}

void ad_runner_unpin(agentd_runner *runner)
{
	if (--runner->pins == 0 && runner->released && nothing_left(runner))
		destroy(runner);
}

/* The base is gone: nothing will ever be called back. Losing its socket tells the
 * helper to kill what it still runs. */
static void abandon_all(agentd_runner *runner)
{
	struct ad_list *lists[] = { &runner->active, &runner->queued };

	for (size_t i = 0; i < AD_COUNT(lists); i++)
		while (!ad_list_empty(lists[i]))
			ad_exec_abandon(AD_CONTAINER_OF(lists[i]->next, agentd_exec, link));
}

/* The last reference of the user is gone. */
static void release(agentd_runner *runner)
{
	ad_runner_pin(runner);
	runner->released = true;
	if (ad_loop_alive(runner->loop))
		kill_all(runner, true);
	else
		abandon_all(runner);
	ad_runner_unpin(runner);
}

/* ---- shutdown */

static void shutdown_over(agentd_runner *runner)
{
	agentd_runner_fn done = runner->shutdown_done;

	runner->shutdown_done = NULL;
	ad_runner_pin(runner);
	if (done)
		done(runner, runner->shutdown_userdata);
	agentd_runner_unref(runner); /* taken by agentd_runner_shutdown() */
	ad_runner_unpin(runner);
}

static void helper_gone(struct ad_launcher *launcher, const agentd_error *err, void *userdata)
{
	agentd_runner *runner = userdata;

	(void)err;
	runner->launcher = NULL;
	ad_launcher_free(launcher);
	shutdown_over(runner);
}

static void pool_over(void *userdata)
{
	agentd_runner *runner = userdata;

	ad_defer(&runner->settle);
}

static void settle(struct ad_defer *defer, void *userdata)
{
	agentd_runner *runner = userdata;

	(void)defer;
	if (!nothing_left(runner) ||
	    ad_pool_shutdown_all(&runner->pools, runner->shutdown_grace_ms, pool_over, runner))
		return;
	forget_given_up(runner);
	ad_pool_detach_all(&runner->pools);
	ad_registry_close(&runner->registry);
	ad_launcher_shutdown(runner->launcher, helper_gone, runner);
}

int agentd_runner_shutdown(agentd_runner *runner, uint32_t grace_ms, agentd_runner_fn done,
			   void *userdata)
{
	int saved = errno;

	if (!runner)
		return AGENTD_ERR_INVALID;
	if (runner->in_log)
		return AGENTD_ERR_REENTRANT;
	if (runner->shutting_down)
		return AGENTD_ERR_STATE;
	ad_runner_pin(runner);
	agentd_runner_ref(runner); /* until `done` has been called */
	runner->shutting_down = true;
	runner->shutdown_grace_ms = grace_ms;
	runner->shutdown_done = done;
	runner->shutdown_userdata = userdata;
	for (struct ad_list *node = runner->active.next; node != &runner->active; node = node->next)
		AD_CONTAINER_OF(node, agentd_exec, link)->grace_ns = grace_ms * AD_NS_PER_MS;
	kill_all(runner, grace_ms == 0);
	ad_defer(&runner->settle);
	ad_runner_unpin(runner);
	errno = saved;
	return 0;
}

static void give_place(agentd_runner *runner, agentd_exec *exec)
{
	exec->placed = true;
	runner->active_count++;
	ad_list_append(&runner->active, &exec->link);
	ad_defer(&exec->step);
}

void ad_runner_exec_add(agentd_runner *runner, agentd_exec *exec)
{
	if (runner->active_count < runner->max_running) {
		give_place(runner, exec);
	} else {
		runner->queued_count++;
		ad_list_append(&runner->queued, &exec->link);
	}
}

void ad_runner_exec_over(agentd_runner *runner, bool placed)
{
	if (placed)
		runner->active_count--;
	else
		runner->queued_count--;
	if (runner->active_count < runner->max_running && !ad_list_empty(&runner->queued)) {
		agentd_exec *next = AD_CONTAINER_OF(runner->queued.next, agentd_exec, link);

		runner->queued_count--;
		ad_list_remove(&next->link);
		give_place(runner, next);
	}
	if (runner->shutting_down && nothing_left(runner))
		ad_defer(&runner->settle);
}

/* ---- other threads */

bool ad_runner_on_loop(const agentd_runner *runner)
{
	return ad_loop_on_thread(runner->loop) && runner->in_log == 0;
}

static void seen_to(struct ad_post *post, void *userdata)
{
	agentd_runner *runner = userdata;
	struct ad_list *lists[] = { &runner->active, &runner->queued };

	(void)post;
	ad_runner_pin(runner);
	for (size_t i = 0; i < AD_COUNT(lists); i++) {
		struct ad_list *node = lists[i]->next;

		while (node != lists[i]) {
			agentd_exec *exec = AD_CONTAINER_OF(node, agentd_exec, link);

			node = node->next;
			ad_exec_apply_wanted(exec);
		}
	}
	ad_pool_free_dropped(&runner->pools);
	ad_runner_unpin(runner);
}

void ad_runner_wake(agentd_runner *runner)
{
	(void)ad_loop_post(runner->loop, &runner->wake);
}

static void dropped(struct ad_post *post, void *userdata)
{
	(void)post;
	release(userdata);
}

agentd_runner *agentd_runner_ref(agentd_runner *runner)
{
	if (runner)
		ad_ref(&runner->refs);
	return runner;
}

void agentd_runner_unref(agentd_runner *runner)
{
	int saved = errno;

	if (!runner || !ad_unref(&runner->refs))
		return;
	if (ad_runner_on_loop(runner))
		release(runner);
	else
		(void)ad_loop_post(runner->loop, &runner->drop);
	errno = saved;
}

/* ---- making one */

static void probed(struct ad_backend *backend, void *userdata)
{
	agentd_runner *runner = userdata;
	struct ad_list *node = runner->active.next;

	ad_runner_pin(runner);
	while (node != &runner->active) {
		agentd_exec *exec = AD_CONTAINER_OF(node, agentd_exec, link);

		node = node->next;
		if (exec->waiting_probe && exec->plan.backend == backend)
			ad_defer(&exec->step);
	}
	ad_runner_unpin(runner);
}

static int check_opts(const struct agentd_runner_opts *given, struct agentd_runner_opts *opts,
		      agentd_error **reterr)
{
	int r;

	if (!given)
		return ad_fail(reterr, AGENTD_ERR_INVALID, NULL, "opts is NULL");
	r = ad_sized_copy(opts, sizeof(*opts), given, OPTS_SIZE_0_1, "struct agentd_runner_opts",
			  reterr);
	if (r < 0)
		return r;
	if (opts->reserved0 || opts->reserved1)
		return ad_fail(reterr, AGENTD_ERR_ABI, NULL,
			       "agentd_runner_opts.reserved%d is not 0", opts->reserved0 ? 0 : 1);
	if (!opts->event_base)
		return ad_fail(reterr, AGENTD_ERR_INVALID, NULL,
			       "agentd_runner_opts.event_base is NULL");
	if (opts->flags & ~(uint32_t)(AGENTD_RUNNER_NO_STDERR_LOG | AGENTD_RUNNER_SNAPSHOTS))
		return ad_fail(reterr, AGENTD_ERR_INVALID, NULL,
			       "agentd_runner_opts.flags has unknown bits: 0x%x", opts->flags);
	if (opts->log_level < AGENTD_LOG_ERROR || opts->log_level > AGENTD_LOG_DEBUG)
		return ad_fail(reterr, AGENTD_ERR_INVALID, NULL,
			       "agentd_runner_opts.log_level %d is not an AGENTD_LOG_* value",
			       opts->log_level);
	if (opts->sandbox_prewarm > AD_SANDBOX_PREWARM_MAX && opts->sandbox_prewarm != UINT32_MAX)
		return ad_fail(reterr, AGENTD_ERR_INVALID, NULL,
			       "agentd_runner_opts.sandbox_prewarm %u is more than %d",
			       opts->sandbox_prewarm, AD_SANDBOX_PREWARM_MAX);
	if (opts->microvm_memory_bytes && opts->microvm_memory_bytes < AD_MICROVM_MEMORY_LEAST)
		return ad_fail(reterr, AGENTD_ERR_INVALID, NULL,
			       "agentd_runner_opts.microvm_memory_bytes %" PRIu64
			       " is less than the 128 MiB that a machine takes to boot",
			       opts->microvm_memory_bytes);
	return 0;
}

static uint64_t machine_memory(void)
{
	struct sysinfo info;

	return sysinfo(&info) == 0 ? (uint64_t)info.totalram * info.mem_unit : 0;
}

static void make_id_prefix(agentd_runner *runner)
{
	uint32_t random = 0;

	/* Only to tell runners apart in a log: without randomness the address does. */
	if (getrandom(&random, sizeof(random), GRND_NONBLOCK) != sizeof(random))
		random = (uint32_t)(uintptr_t)runner;
	snprintf(runner->id_prefix, sizeof(runner->id_prefix), "%08x-", random);
}

static uint32_t prewarm(const struct agentd_runner_opts *opts)
{
	switch (opts->sandbox_prewarm) {
	case 0:
		return AD_SANDBOX_PREWARM;
	case UINT32_MAX:
		return 0;
	default:
		return opts->sandbox_prewarm;
	}
}

static int add_builtins(agentd_runner *runner, const struct agentd_runner_opts *opts,
			agentd_error **reterr)
{
	struct ad_sandbox_opts sandbox = {
		.launcher = runner->launcher,
		.uid = opts->sandbox_uid ? opts->sandbox_uid : AD_SANDBOX_UID,
		.gid = opts->sandbox_gid ? opts->sandbox_gid : AD_SANDBOX_UID,
		.prewarm = prewarm(opts),
		.tmp_bytes = opts->sandbox_tmp_bytes ? opts->sandbox_tmp_bytes :
						       AD_SANDBOX_TMP_BYTES,
	};
	ad_autofree char *guest = NULL;
	struct ad_microvm_opts microvm = {
		.sandbox = sandbox,
		.image = opts->microvm_image,
		.monitor = opts->microvm_monitor,
		.snapshots = opts->flags & AGENTD_RUNNER_SNAPSHOTS,
		.memory_bytes = opts->microvm_memory_bytes ? opts->microvm_memory_bytes :
							     AD_MICROVM_MEMORY_BYTES,
		.workdir_bytes = opts->microvm_workdir_bytes ? opts->microvm_workdir_bytes :
							       AD_MICROVM_WORKDIR_BYTES,
		.uid = opts->microvm_uid ? opts->microvm_uid : AD_MICROVM_UID,
		.gid = opts->microvm_gid ? opts->microvm_gid : AD_MICROVM_UID,
	};
	int r = ad_registry_add(&runner->registry, ad_host_backend_ops(), runner->launcher,
				opts->event_base, reterr);

	if (r == 0)
		r = ad_registry_add(&runner->registry, ad_sandbox_backend_ops(), &sandbox,
				    opts->event_base, reterr);
	if (r < 0)
		return r;
	guest = opts->microvm_guest ? strdup(opts->microvm_guest) :
				      ad_launch_program_path(opts->helper_path, "guest");
	if (!guest)
		return ad_fail_nomem(reterr);
	microvm.guest = guest;
	return ad_registry_add(&runner->registry, ad_microvm_backend_ops(), &microvm,
			       opts->event_base, reterr);
}

static int fill(agentd_runner *runner, const struct agentd_runner_opts *opts, agentd_error **reterr)
{
	int r;

	runner->refs = 1;
	runner->flags = opts->flags;
	runner->log = opts->log;
	runner->log_userdata = opts->log_userdata;
	runner->log_level = opts->log_level;
	runner->max_running = opts->max_running ? opts->max_running : MAX_RUNNING;
	runner->max_queued = opts->max_queued ? opts->max_queued : MAX_QUEUED;
	runner->heartbeat_ns = (opts->heartbeat_ms ? opts->heartbeat_ms : HEARTBEAT_MS) *
			       AD_NS_PER_MS;
	runner->drain_ns = (opts->drain_ms ? opts->drain_ms : DRAIN_MS) * AD_NS_PER_MS;
	runner->machine_memory = machine_memory();
	make_id_prefix(runner);
	runner->wake = (struct ad_post){ .fn = seen_to, .userdata = runner };
	runner->drop = (struct ad_post){ .fn = dropped, .userdata = runner };
	/* Reading from a pipe copies whole pages, which takes twice as long to 16 bytes behind
	 * the beginning of one (measured, AMD Zen 3). */
	runner->read_buffer = aligned_alloc(4096, AD_READ_CHUNK);
	if (!runner->read_buffer)
		return ad_fail_nomem(reterr);
	r = agentd_policy_new(&runner->no_policy, reterr);
	if (r < 0)
		return r;
	agentd_policy_freeze(runner->no_policy);
	runner->policy = agentd_policy_ref(opts->policy ? opts->policy : runner->no_policy);
	agentd_policy_freeze(runner->policy);
	r = ad_loop_new(opts->event_base, &runner->loop, reterr);
	if (r < 0)
		return r;
	ad_defer_init(&runner->settle, runner->loop, settle, runner);
	r = ad_resolver_new(runner->loop, opts->net_resolver, &runner->resolver, reterr);
	if (r < 0)
		return r;
	r = ad_launcher_new(runner->loop, opts->helper_path, &runner->launcher, reterr);
	if (r == 0 && opts->helper_path) {
		runner->helper_path = strdup(opts->helper_path);
		if (!runner->helper_path)
			return ad_fail_nomem(reterr);
	}
	return r < 0 ? r : add_builtins(runner, opts, reterr);
}

int agentd_runner_new(const struct agentd_runner_opts *given, agentd_runner **ret,
		      agentd_error **reterr)
{
	struct agentd_runner_opts opts;
	agentd_runner *runner;
	int saved = errno;
	int r = ret ? check_opts(given, &opts, reterr) :
		      ad_fail(reterr, AGENTD_ERR_INVALID, NULL, "ret is NULL");

	if (r < 0)
		return r;
	runner = calloc(1, sizeof(*runner));
	if (!runner)
		return ad_fail_nomem(reterr);
	ad_list_init(&runner->pools);
	ad_list_init(&runner->active);
	ad_list_init(&runner->queued);
	ad_list_init(&runner->given_up);
	ad_registry_init(&runner->registry, probed, runner);
	r = fill(runner, &opts, reterr);
	if (r < 0)
		destroy(runner);
	else
		*ret = runner;
	errno = saved;
	return r;
}

int agentd_runner_add_backend(agentd_runner *runner, const struct agentd_backend_ops *ops,
			      void *userdata, agentd_error **reterr)
{
	int saved = errno;
	int r;

	if (!runner || !ops)
		return ad_fail(reterr, AGENTD_ERR_INVALID, NULL, "%s is NULL",
			       runner ? "ops" : "runner");
	if (runner->in_log)
		return ad_fail(reterr, AGENTD_ERR_REENTRANT, NULL,
			       "a log callback may not add a backend");
	if (runner->shutting_down || runner->released)
		return ad_fail(reterr, AGENTD_ERR_STATE, NULL, "the runner is shutting down");
	r = ad_registry_add(&runner->registry, ops, userdata, ad_loop_base(runner->loop), reterr);
	errno = saved;
	return r;
}

const char *agentd_runner_digest(const agentd_runner *runner)
{
	(void)runner;
	return "shell-exec-runner-" DIGEST_TEXT(AGENTD_VERSION_MAJOR) "." DIGEST_TEXT(
		AGENTD_VERSION_MINOR) "." DIGEST_TEXT(AGENTD_VERSION_PATCH);
}

int agentd_runner_validate(agentd_runner *runner, const char *json, size_t len,
			   agentd_error **reterr)
{
	agentd_params *params = NULL;
	int r;

	if (!runner)
		return ad_fail(reterr, AGENTD_ERR_INVALID, NULL, "runner is NULL");
	r = agentd_params_parse(json, len, &params, reterr);
	agentd_params_unref(params);
	return r;
}
