/* SPDX-License-Identifier: MIT */
/* The commands, sessions and machines that there are, and the orders given to them. */
#include "helper/job.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "sys/sys.h"

enum {
	BUCKETS = 256,
	SLOTS_MAX = 16384 /* commands alive at once */
};

static const uint64_t answer_ns = 1000 * AD_NS_PER_MS;     /* for a supervisor to take an order */
static const uint64_t supervisor_ns = 6000 * AD_NS_PER_MS; /* and to carry it out */

static struct {
	struct ad_list by_id[BUCKETS], by_pid[BUCKETS];
	uint16_t free_slots[SLOTS_MAX];
	size_t free_count;
} jobs;

bool jobs_init(void)
{
	helper.shared.slots = mmap(NULL, sizeof(*helper.shared.slots) * SLOTS_MAX,
				   PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (helper.shared.slots == MAP_FAILED)
		return false;
	for (size_t i = 0; i < SLOTS_MAX; i++)
		jobs.free_slots[jobs.free_count++] = (uint16_t)(SLOTS_MAX - 1 - i);
	for (size_t i = 0; i < BUCKETS; i++) {
		ad_list_init(&jobs.by_id[i]);
		ad_list_init(&jobs.by_pid[i]);
	}
	ad_list_init(&helper.jobs);
	return true;
}

struct job *job_next(const struct job *after)
{
	struct ad_list *node = after ? after->all.next : helper.jobs.next;

	return node == &helper.jobs ? NULL : AD_CONTAINER_OF(node, struct job, all);
}

uint32_t job_slot_number(const struct job *job)
{
	return (uint32_t)(job->slot - helper.shared.slots);
}

struct job *job_by_id(uint32_t id)
{
	const struct ad_list *head = &jobs.by_id[id % BUCKETS];

	for (struct ad_list *node = head->next; node != head; node = node->next) {
		struct job *job = AD_CONTAINER_OF(node, struct job, by_id);

		if (job->id == id)
			return job;
	}
	return NULL;
}

struct job *job_by_pid(pid_t pid)
{
	const struct ad_list *head = &jobs.by_pid[(uint32_t)pid % BUCKETS];

	for (struct ad_list *node = head->next; node != head; node = node->next) {
		struct job *job = AD_CONTAINER_OF(node, struct job, by_pid);

		if (job->pid == pid)
			return job;
	}
	return NULL;
}

struct job *job_new(uint32_t id)
{
	struct job *job = jobs.free_count > 0 ? calloc(1, sizeof(*job)) : NULL;

	if (!job) {
		report_failed(id, AD_STAGE_SUPERVISOR, jobs.free_count > 0 ? ENOMEM : EAGAIN, "");
		return NULL;
	}
	job->id = id;
	job->net = ZYGOTE_NO_NET;
	job->pidfd = job->ahead = -1;
	ad_list_init(&job->by_pid);
	ad_list_append(&jobs.by_id[id % BUCKETS], &job->by_id);
	ad_list_append(&helper.jobs, &job->all);
	job->slot = &helper.shared.slots[jobs.free_slots[--jobs.free_count]];
	memset(job->slot, 0, sizeof(*job->slot));
	atomic_store(&job->slot->granted, NO_ATTEMPT);
	return job;
}

void jobs_own_pages(void)
{
	/* Else the compiler would do without. */
	struct job *volatile another = calloc(1, sizeof(*another));

	free(another);
	for (size_t i = 0; i < sizeof(jobs.by_id) + sizeof(jobs.by_pid); i += 4096)
		own_page((uint8_t *)&jobs + i);
	own_page(&jobs.free_slots[jobs.free_count > 0 ? jobs.free_count - 1 : 0]);
	own_page(&jobs.free_count);
}

static void waiting_free(struct job *job)
{
	struct waiting *waiting = job->waiting;

	if (!waiting)
		return;
	for (size_t i = 0; i < waiting->fd_count; i++)
		close(waiting->fds[i]);
	free(waiting);
	job->waiting = NULL;
}

void job_free(struct job *job, bool leaf_reusable)
{
	ad_list_remove(&job->by_id);
	ad_list_remove(&job->by_pid);
	ad_list_remove(&job->all);
	/* Into a cgroup that cgroup.kill was ever used on nothing can be born any more by
	 * CLONE_INTO_CGROUP: the child is killed at once (seen on Linux 6.18). */
	if (job->leaf)
		cgroup_release(job->leaf, leaf_reusable && !atomic_load(&job->slot->kill_seen));
	if (job->template) {
		if (job->net != ZYGOTE_NO_NET)
			template_net_free(job->template, job->net);
		template_drop(job->template);
	}
	waiting_free(job);
	if (job->ahead >= 0)
		close(job->ahead);
	if (job->pidfd >= 0)
		close(job->pidfd);
	session_forget(job);
	jobs.free_slots[jobs.free_count++] = (uint16_t)job_slot_number(job);
	free(job);
}

void job_started(struct job *job, pid_t pid)
{
	job->pid = pid;
	ad_list_append(&jobs.by_pid[(uint32_t)pid % BUCKETS], &job->by_pid);
	watch_soon(job);
}

/* One that is no child of ours may be reaped before we know of it. */
static void signal_supervisor(const struct job *job, int signo)
{
	if (job->pidfd >= 0)
		ad_sys_pidfd_signal(job->pidfd, signo);
	else
		kill(job->pid, signo);
}

void job_ring(const struct job *job)
{
	if (job->pid > 0 && !job->machine)
		signal_supervisor(job, SIGNAL_ORDER);
}

void job_signal(struct job *job, int signo)
{
	if (signo < 1 || signo > 64)
		return;
	if (job->machine) {
		if (job->pid > 0)
			kill(job->pid, signo);
		return;
	}
	atomic_fetch_or(&job->slot->signals_wanted, UINT64_C(1) << (signo - 1));
	job_ring(job);
}

void job_kill(struct job *job)
{
	if (job->waiting) {
		report_failed(job->id, AD_STAGE_REQUEST, ECANCELED, "");
		job_free(job, true);
		return;
	}
	if (!job->killing) {
		job->killing = true;
		job->answer_by = ad_sys_now_ns() + answer_ns;
		job->over_by = ad_sys_now_ns() + supervisor_ns;
	}
	if (job->machine) {
		/* Not yet reaped, so the number is still its own. */
		if (job->pid > 0)
			kill(job->pid, SIGKILL);
		return;
	}
	atomic_store(&job->slot->kill_wanted, 1);
	job_ring(job);
}

void job_limit(struct job *job, enum ad_msg_limit limit)
{
	if (job->hit || job->lost)
		return;
	job->hit = true;
	if (job->machine) {
		struct ad_msg msg = { .type = AD_MSG_LIMIT, .job = job->id };

		msg.u.limit.limit = limit;
		msg.u.limit.fatal = true;
		report(&msg);
	}
	atomic_store(&job->slot->limit_wanted, 1 + (uint32_t)limit);
	job_kill(job);
}

uint64_t jobs_check(uint64_t now)
{
	uint64_t next = UINT64_MAX;

	for (struct job *job = NULL; (job = job_next(job));) {
		uint64_t due;

		if (!job->killing || job->pid <= 0)
			continue;
		due = atomic_load(&job->slot->kill_seen) ? job->over_by : job->answer_by;
		if (due <= now) {
			/* Stopped, or stuck: its tree becomes ours with its death. */
			signal_supervisor(job, SIGKILL);
			due = now + answer_ns;
			job->answer_by = job->over_by = due;
		}
		if (due < next)
			next = due;
	}
	return next;
}
