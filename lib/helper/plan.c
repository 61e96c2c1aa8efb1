/* SPDX-License-Identifier: MIT */
/* By what the limits of a command are enforced. */
#include "helper/job.h"

#include <errno.h>

#include "sys/sys.h"

/* Room that RLIMIT_NPROC, which counts all tasks of a user, leaves to others. */
enum { NPROC_SLACK = 4096 };

static const uint64_t tasks_age_ns = 1000 * AD_NS_PER_MS;

/* Tasks of the user, roughly: RLIMIT_NPROC is a backstop. */
static uint64_t tasks_of(uid_t uid)
{
	static uint64_t counted_at, tasks;
	uint64_t now = ad_sys_now_ns();

	if (counted_at && now - counted_at < tasks_age_ns)
		return tasks;
	proc_scan(&helper.table, helper.shared.helper);
	tasks = 0;
	for (size_t i = 0; i < helper.table.count; i++) {
		if (proc_uid(helper.table.procs[i].pid) == uid)
			tasks += helper.table.procs[i].threads;
	}
	counted_at = now;
	return tasks;
}

uint8_t means_of(const struct leaf *leaf, enum cgroup_controller controller)
{
	return leaf ? (uint8_t)leaf->means[controller] : AD_MSG_MEANS_NONE;
}

/* In a session its control groups hold: limits below those are a command's own. */
static uint8_t means_for(const struct job *job, enum cgroup_controller controller, uint64_t limit,
			 uint64_t of_session)
{
	if (!job->in)
		return means_of(job->leaf, controller);
	return of_session && (!limit || limit >= of_session) ? means_of(job->in->leaf, controller) :
							       AD_MSG_MEANS_NONE;
}

static uint8_t watched(enum ad_msg_means without)
{
	return (uint8_t)(helper.proc_usable ? AD_MSG_MEANS_WATCHDOG : without);
}

bool plan_limits(struct job *job, const struct ad_msg_spawn *spawn, bool use_cgroups,
		 struct enforcement *ret)
{
	const struct ad_msg_limits *limits = &spawn->limits, *of_session = limits;
	struct ad_msg_limits of_leaf = *limits;
	struct ad_msg_receipt *receipt = &ret->receipt;

	job->limits = *limits;
	/* The process of the next command waits in there as well. */
	if ((spawn->flags & AD_SPAWN_SESSION) && of_leaf.pids)
		of_leaf.pids++;
	if (use_cgroups && !job->in && !job->leaf)
		job->leaf = cgroup_take(&of_leaf, job->template != NULL);
	if (job->in)
		of_session = &job->in->limits;
	receipt->memory = means_for(job, CG_MEMORY, limits->memory, of_session->memory);
	receipt->pids = means_for(job, CG_PIDS, limits->pids, of_session->pids);
	receipt->cpu = means_for(job, CG_CPU, limits->cpu_ms_per_100ms,
				 of_session->cpu_ms_per_100ms);
	receipt->tree_kill = job->template ? AD_MSG_MEANS_PIDNS : means_of(job->leaf, CG_KILL);
	if (!receipt->tree_kill)
		receipt->tree_kill = watched(AD_MSG_MEANS_NONE);
	if (limits->memory && !receipt->memory) {
		receipt->memory = watched(AD_MSG_MEANS_RLIMIT);
		ret->memory_rlimit = limits->memory;
		job->watch |= WATCH_MEMORY;
	}
	if (limits->pids && !receipt->pids) {
		receipt->pids = watched(receipt->uid ? AD_MSG_MEANS_RLIMIT : AD_MSG_MEANS_NONE);
		if (receipt->uid)
			ret->nproc_rlimit = tasks_of(receipt->uid) + limits->pids + NPROC_SLACK;
		job->watch |= WATCH_PIDS;
	}
	if (limits->cpu_time_ms) {
		receipt->cpu_time = watched(AD_MSG_MEANS_RLIMIT);
		job->watch |= WATCH_CPU_TIME;
	}
	if (limits->io) {
		receipt->io = watched(AD_MSG_MEANS_NONE);
		job->watch |= WATCH_IO;
	}
	if (!helper.proc_usable)
		job->watch = 0;
	for (int i = 0; i < AD_MSG_LIMIT_COUNT; i++) {
		if ((spawn->requested & (1u << i)) && (job->watch & (1u << i)))
			job->watch_closely = true;
	}
	if (!limits->cpu_ms_per_100ms || receipt->cpu || !(spawn->flags & AD_SPAWN_CGROUP_REQUIRED))
		return true;
	report_failed(job->id, AD_STAGE_LIMIT, 0, "cpu_ms_per_100ms");
	job_free(job, true);
	return false;
}

/* Do cgroups enforce all that they could? */
static bool cgroups_cover(const struct ad_msg_limits *limits, const struct leaf *leaf)
{
	return (!limits->memory || means_of(leaf, CG_MEMORY)) &&
	       (!limits->pids || means_of(leaf, CG_PIDS)) &&
	       (!limits->cpu_ms_per_100ms || means_of(leaf, CG_CPU));
}

bool plan_sandbox(struct job *job, const struct ad_msg_spawn *spawn, uint8_t strictness,
		  struct enforcement *ret)
{
	struct ad_msg_receipt *receipt = &ret->receipt;

	*receipt = *template_layers(job->template);
	if (!plan_limits(job, spawn, strictness != AD_STRICT_OFF, ret))
		return false;
	if (strictness == AD_STRICT_OFF)
		return true;
	if (cgroups_cover(&spawn->limits, job->leaf)) {
		receipt->layers[AD_LAYER_CGROUP] = AD_MSG_LAYER_ENFORCED;
		return true;
	}
	if (strictness == AD_STRICT_REQUIRED) {
		report_fault(job->id, AD_STAGE_LAYER, AD_LAYER_CGROUP, EOPNOTSUPP, "no controller");
		job_free(job, true);
		return false;
	}
	receipt->layers[AD_LAYER_CGROUP] = AD_MSG_LAYER_DEGRADED;
	receipt->layer_errno[AD_LAYER_CGROUP] = EOPNOTSUPP;
	return true;
}

void plan_best(struct ad_msg_receipt *ret)
{
	ret->memory = (uint8_t)cgroup_means(CG_MEMORY);
	ret->pids = (uint8_t)cgroup_means(CG_PIDS);
	ret->cpu = (uint8_t)cgroup_means(CG_CPU);
	ret->tree_kill = (uint8_t)cgroup_means(CG_KILL);
	if (!ret->memory)
		ret->memory = watched(AD_MSG_MEANS_RLIMIT);
	if (!ret->pids)
		ret->pids = watched(helper.uid ? AD_MSG_MEANS_RLIMIT : AD_MSG_MEANS_NONE);
	if (!ret->tree_kill)
		ret->tree_kill = watched(AD_MSG_MEANS_NONE);
	ret->cpu_time = watched(AD_MSG_MEANS_RLIMIT);
	ret->io = watched(AD_MSG_MEANS_NONE);
	ret->uid = helper.uid;
	ret->gid = helper.gid;
}
