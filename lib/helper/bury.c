/* SPDX-License-Identifier: MIT */
/* The dead: what each of them leaves to do, and what it left running. */
#include "helper/job.h"

#include <string.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/wait.h>
#include <unistd.h>

#include "sys/sys.h"

static const uint64_t give_up_ns = 3000 * AD_NS_PER_MS;
static const uint64_t patience_ns = 300 * AD_NS_PER_MS;
static const uint64_t min_ns = 1 * AD_NS_PER_MS, max_ns = 50 * AD_NS_PER_MS;

/* Orphans of dead supervisors are looked for; next 0: there are none. */
static struct {
	uint64_t next, pause, give_up;
} sweeping;

static void sweep_begin(void)
{
	uint64_t now = ad_sys_now_ns();

	sweeping.pause = min_ns;
	sweeping.next = now;
	sweeping.give_up = now + give_up_ns;
}

static void job_lost(struct job *job, int status)
{
	ad_list_remove(&job->by_pid);
	job->pid = 0;
	job->lost = true;
	job->lost_status = status;
	if (job->leaf)
		cgroup_kill(job->leaf);
	sweep_begin();
}

static void machine_ended(struct job *job, int status, const struct rusage *rusage)
{
	struct ad_msg msg = { .type = AD_MSG_ENDED, .job = job->id };
	struct ad_msg_usage *usage = &msg.u.ended.usage;
	struct cgroup_counters counters;

	msg.u.ended.wait_status = status;
	msg.u.ended.at_ns = ad_sys_now_ns();
	usage->cpu_ns = (uint64_t)(rusage->ru_utime.tv_sec + rusage->ru_stime.tv_sec) * 1000 *
				AD_NS_PER_MS +
			(uint64_t)(rusage->ru_utime.tv_usec + rusage->ru_stime.tv_usec) * 1000;
	usage->memory_peak = (uint64_t)rusage->ru_maxrss * 1024;
	if (job->leaf) {
		cgroup_count(job->leaf, NULL, &counters);
		job->leaf->counted = counters;
	}
	report(&msg);
	job_free(job, true);
}

void bury(int signal_fd)
{
	struct signalfd_siginfo drain[16];
	struct rusage usage;
	int status;
	pid_t pid;

	while (read(signal_fd, drain, sizeof(drain)) > 0)
		;
	while ((pid = wait4(-1, &status, WNOHANG | __WALL, &usage)) > 0) {
		struct job *job = job_by_pid(pid);

		if (!job) {
			if (!warm_reaped(pid))
				template_reaped(pid);
			continue;
		}
		if (job->session &&
		    !(WIFEXITED(status) && WEXITSTATUS(status) == SUPERVISOR_DONE)) {
			session_over(job, status);
		} else if (job->machine) {
			machine_ended(job, status, &usage);
		} else if (WIFEXITED(status) && WEXITSTATUS(status) == SUPERVISOR_DONE) {
			if (job->leaf)
				job->leaf->counted = job->slot->counted;
			job_free(job, true);
		} else if (WIFEXITED(status) && WEXITSTATUS(status) == SUPERVISOR_SURVIVORS) {
			/* It has reported; what it could not kill is ours now. */
			job_free(job, false);
			sweep_begin();
		} else {
			job_lost(job, status);
		}
	}
}

/* Zygotes and reapers that wait are in our session, which no command is, nor gets to. */
static bool is_ours(pid_t pid)
{
	return job_by_pid(pid) || getsid(pid) == getsid(0);
}

uint64_t bury_next(void)
{
	return sweeping.next ? sweeping.next : UINT64_MAX;
}

void bury_step(uint64_t now)
{
	size_t alive;

	if (now < bury_next())
		return;
	alive = proc_kill_tree(helper.shared.helper, is_ours, patience_ns);
	if (sweeping.pause < max_ns)
		sweeping.pause *= 2;
	sweeping.next = now + sweeping.pause;
	if (alive > 0 && now < sweeping.give_up)
		return;
	sweeping.next = 0;
	for (struct job *job = job_next(NULL), *next; job; job = next) {
		next = job_next(job);
		/* A session that is broken is still there, and its end says so. */
		if (!job->lost || job->pid > 0)
			continue;
		report_failed(job->id, AD_STAGE_LOST, 0,
			      WIFSIGNALED(job->lost_status) ?
				      strsignal(WTERMSIG(job->lost_status)) :
				      "exited");
		job_free(job, false);
	}
}
