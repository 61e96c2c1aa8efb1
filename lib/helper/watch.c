/* SPDX-License-Identifier: MIT */
/* The watchdog: ends what exceeds a limit that no control group enforces. */
#include "helper/job.h"

#include <signal.h>
#include <time.h>
#include <unistd.h>

#include "sys/sys.h"

enum {
	/* Tasks of a session that wait for the next command. */
	SESSION_WAITING = 2,
	COST_FACTOR = 20 /* never more than a twentieth of a processor */
};

static const uint64_t default_ns = 250 * AD_NS_PER_MS, requested_ns = 50 * AD_NS_PER_MS;

static uint64_t next_look; /* 0: there is nothing to look at */

void watch_soon(const struct job *job)
{
	uint64_t at = ad_sys_now_ns() + (job->watch_closely ? requested_ns : default_ns);

	if (job->watch && (next_look == 0 || next_look > at))
		next_look = at;
}

/* Below a session's pid 1: the supervisor it descends from, else pid 1 itself. */
static struct job *job_of(const struct proc *proc)
{
	struct job *job = proc->top ? job_by_pid(proc->top) : NULL, *nearest = NULL;

	while (job && job->session && proc && proc->pid != proc->top && !nearest) {
		nearest = job_by_pid(proc->pid);
		proc = proc_find(&helper.table, proc->ppid);
	}
	return nearest ? nearest : job;
}

static void add_up(void)
{
	for (struct job *job = NULL; (job = job_next(job));) {
		job->memory = job->tasks = job->cpu_ticks = 0;
		job->io = atomic_load(&job->slot->io_reaped);
	}
	for (size_t i = 0; i < helper.table.count; i++) {
		const struct proc *proc = &helper.table.procs[i];
		struct job *job = job_of(proc);

		if (!job || !job->watch)
			continue;
		job->cpu_ticks += proc->cpu_ticks;
		if ((proc->pid == job->pid && !job->machine) || proc->zombie)
			continue;
		job->tasks += proc->threads;
		if (job->watch & WATCH_MEMORY)
			job->memory += proc_anon_bytes(proc->pid);
		if (job->watch & WATCH_IO)
			job->io += proc_io_written(proc->pid);
	}
}

static void check_limits(struct job *job)
{
	const struct ad_msg_limits *limits = &job->limits;

	if ((job->watch & WATCH_MEMORY) && job->memory > limits->memory)
		job_limit(job, AD_MSG_LIMIT_MEMORY);
	if ((job->watch & WATCH_PIDS) &&
	    job->tasks > limits->pids + (job->session ? (uint64_t)SESSION_WAITING : 0))
		job_limit(job, AD_MSG_LIMIT_PIDS);
	if ((job->watch & WATCH_IO) && job->io > limits->io)
		job_limit(job, AD_MSG_LIMIT_IO);
	if (job->watch & WATCH_CPU_TIME) {
		uint64_t usec, ms;

		if (job->leaf && cgroup_cpu_usec(job->leaf, &usec))
			ms = (usec - job->leaf->counted.cpu_usec) / 1000;
		else
			ms = job->cpu_ticks * 1000 / (uint64_t)sysconf(_SC_CLK_TCK);
		if (ms >= limits->cpu_time_ms)
			job_limit(job, AD_MSG_LIMIT_CPU_TIME);
	}
}

/* What outgrows its limit may grow on until its supervisor gets to run: begin with
 * what was just seen. The order is under way, so that the limit is reported first. */
static void kill_seen(void)
{
	for (size_t i = 0; i < helper.table.count; i++) {
		const struct proc *proc = &helper.table.procs[i];
		const struct job *job = job_of(proc);

		if (job && job->hit && (proc->pid != job->pid || job->machine) && !proc->zombie)
			kill(proc->pid, SIGKILL);
	}
}

/* Not the time that passes: while the machine stands still, or others have its processors, a look
 * costs nothing, and the next one must not be put off for twenty times as long. */
static uint64_t own_time_ns(void)
{
	struct timespec now = { 0 };

	clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
	return (uint64_t)now.tv_sec * 1000 * AD_NS_PER_MS + (uint64_t)now.tv_nsec;
}

uint64_t watch_next(void)
{
	return next_look ? next_look : UINT64_MAX;
}

void watch_step(uint64_t now)
{
	uint64_t begin, cost, interval = default_ns;
	bool any = false, need_scan = false;

	if (now < watch_next())
		return;
	begin = own_time_ns();
	for (const struct job *job = NULL; (job = job_next(job));) {
		if (!job->watch || job->lost)
			continue;
		any = true;
		if (job->watch_closely)
			interval = requested_ns;
		if (job->watch != WATCH_CPU_TIME || means_of(job->leaf, CG_KILL) == 0)
			need_scan = true;
	}
	next_look = 0;
	if (!any)
		return;
	if (need_scan) {
		proc_scan(&helper.table, helper.shared.helper);
		add_up();
	}
	for (struct job *job = NULL; (job = job_next(job));) {
		if (job->watch && !job->lost)
			check_limits(job);
	}
	if (need_scan)
		kill_seen();
	cost = (own_time_ns() - begin) * COST_FACTOR;
	next_look = ad_sys_now_ns() + (cost > interval ? cost : interval);
}
