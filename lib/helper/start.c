/* SPDX-License-Identifier: MIT */
/* The message that starts a command: on the host, in a sandbox, in a session, or a virtual machine
 * monitor. */
#include "helper/job.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "sys/sys.h"

static uint32_t attempts;

/* Why the request cannot be carried out with the descriptors that came with it, or 0. */
static int wrong_fds(const struct ad_sys_msg *from, size_t expected)
{
	return from->fds_lost ? EMFILE : from->fd_count != expected ? EBADMSG : 0;
}

/* ---- on the host */

/* Somebody waits who was made for such a command: its pid, or 0. What it has is the job's. */
static pid_t take_ahead(struct job *job, const struct ad_msg_spawn *spawn, bool use_cgroups)
{
	struct warm_one one;

	if ((spawn->flags & AD_SPAWN_SESSION) ||
	    !warm_take(job->template, &spawn->limits, use_cgroups, &one))
		return 0;
	job->ahead = one.sock;
	job->leaf = one.leaf;
	job->net = one.net;
	return one.pid;
}

/* Tell it. False: it is gone, and another one must do. */
static bool tell_ahead(struct job *job, const struct request *request,
		       const struct ad_sys_msg *from, size_t fd_count)
{
	int r = request_send(job->ahead, request, from, from->fds, fd_count);

	close(ad_steal_fd(&job->ahead));
	return r == 0;
}

static pid_t fork_supervisor(const struct job *job, const struct ad_msg_spawn *spawn,
			     const struct request *request)
{
	struct supervise sup = {
		.spawn = spawn,
		.slot = job->slot,
		.leaf = job->leaf,
		.counted = job->leaf ? job->leaf->counted : (struct cgroup_counters){ 0 },
		.enforcement = request->enforcement,
		.set_ids = request->set_ids,
		.helper = helper.shared.helper,
		.landlock = -1,
		.network = -1,
		.taken = -1,
	};
	pid_t pid = fork();

	if (pid == 0) {
		close_ours();
		supervise(&sup);
	}
	return pid;
}

static void start_on_host(struct job *job, const struct ad_msg_spawn *spawn,
			  const struct ad_sys_msg *from, bool memory_file)
{
	struct request request = {
		.slot = job_slot_number(job),
		.spawn_fd = memory_file,
		.set_ids = !helper.ids_plain || from->uid != helper.uid || from->gid != helper.gid,
	};
	pid_t pid = take_ahead(job, spawn, true);

	/* Not what we may: what the host may now. */
	request.enforcement.receipt.uid = from->uid;
	request.enforcement.receipt.gid = from->gid;
	if (!plan_limits(job, spawn, true, &request.enforcement))
		return;
	if (pid <= 0 || !tell_ahead(job, &request, from, memory_file))
		pid = fork_supervisor(job, spawn, &request);
	if (pid < 0) {
		report_failed(job->id, AD_STAGE_SUPERVISOR, errno, "");
		job_free(job, true);
		return;
	}
	job_started(job, pid);
	warm_want(NULL, &spawn->limits, true, 1);
}

/* ---- a virtual machine monitor */

/* What it has to say comes by `output`. */
static void machine_started(const struct job *job, const struct enforcement *enforcement,
			    int output)
{
	struct ad_msg msg = { .type = AD_MSG_STARTED, .job = job->id };

	msg.u.started.pid = job->pid;
	msg.u.started.receipt = enforcement->receipt;
	report_with(&msg, output);
}

static void start_machine(struct job *job, const struct ad_msg_spawn *spawn,
			  const struct ad_sys_msg *from, bool memory_file)
{
	const int *fds = from->fds + (memory_file ? 1 : 0);
	int error = wrong_fds(from, spawn->machine.fd_count + (memory_file ? 1 : 0));
	struct enforcement enforcement = { 0 };
	/* Only root may become another; and nobody else needs to. */
	bool set_ids = helper.uid == 0 || !helper.ids_plain;
	const char *text = "";
	uint32_t stage = AD_STAGE_LAYER;
	int output, abi = landlock_abi(), landlock = -1;
	pid_t pid;

	if (!error && set_ids && (spawn->machine.uid == 0 || spawn->machine.gid == 0))
		error = EBADMSG;
	if (error) {
		report_failed(job->id, AD_STAGE_REQUEST, error, "");
		job_free(job, true);
		return;
	}
	job->machine = true;
	enforcement.receipt.uid = set_ids ? spawn->machine.uid : helper.uid;
	enforcement.receipt.gid = set_ids ? spawn->machine.gid : helper.gid;
	if (!plan_limits(job, spawn, true, &enforcement))
		return;
	if (abi > 0)
		landlock = landlock_make_machine(abi, spawn->strings, fds, spawn->machine.fd_count);
	if (landlock >= 0)
		enforcement.receipt.landlock_abi = (uint8_t)abi;
	pid = abi > 0 && landlock < 0 ? landlock :
					machine_start(spawn, job->leaf, set_ids, fds, landlock,
						      &output, &stage, &text);
	if (landlock >= 0)
		close(landlock);
	if (pid < 0) {
		report_failed(job->id, stage, -pid, text);
		job_free(job, true);
		return;
	}
	job_started(job, pid);
	machine_started(job, &enforcement, output);
}

/* ---- in a sandbox */

/* Descriptors that came with the message, without the network namespace, which the
 * template has. */
static size_t own_fds(const struct ad_msg_spawn *spawn, const struct ad_sys_msg *from)
{
	return from->fd_count - ((spawn->flags & AD_SPAWN_NETNS) ? 1 : 0);
}

/* NO_ATTEMPT: it failed. */
static void grant(const struct job *job, uint32_t attempt)
{
	struct slot *slot = job->slot;

	atomic_store(&slot->granted, attempt);
	ad_sys_futex_wake(&slot->granted);
}

static pid_t start_anew(struct job *job, struct request *request, const struct ad_sys_msg *from,
			size_t fd_count, int session_sock)
{
	struct cgroup_entry entry;
	int fds[AD_SYS_FDS_MAX + CG_COUNT + 2];
	int r;

	/* Of one that was made ahead and is dead. */
	if (job->net != ZYGOTE_NO_NET)
		template_net_free(job->template, job->net);
	job->net = ZYGOTE_NO_NET;
	memcpy(fds, from->fds, fd_count * sizeof(fds[0]));
	if (request->session)
		fds[fd_count++] = session_sock;
	if (++attempts == NO_ATTEMPT)
		attempts = 1;
	request->attempt = attempts;
	atomic_store(&job->slot->granted, 0);
	r = request_add_leaf(request, job->leaf, &entry, fds, &fd_count);
	if (r == 0)
		r = template_clone(job->template, request, from, fds, fd_count, &job->net);
	grant(job, r > 0 ? request->attempt : NO_ATTEMPT);
	cgroup_close_entry(&entry);
	return r;
}

/* The template is ready, or cannot be. -EPIPE: its zygote died, and the job is as it was. */
static int start_in_template(struct job *job, const struct ad_msg_spawn *spawn,
			     const struct ad_sys_msg *from, bool memory_file)
{
	struct request request = {
		.slot = job_slot_number(job),
		.spawn_fd = memory_file,
		.credentials = (spawn->flags & AD_SPAWN_CREDENTIALS) != 0,
		.session = (spawn->flags & AD_SPAWN_SESSION) != 0,
	};
	struct ad_profile profile;
	bool use_cgroups;
	int session_end = -1;
	pid_t pid;

	if (template_state(job->template) == TEMPLATE_FAILED) {
		const struct fault *fault = template_fault(job->template);

		if (template_died(job->template) && !job->again)
			return -EPIPE;
		report_fault(job->id, fault->stage, fault->index, fault->error, fault->text);
		job_free(job, true);
		return 0;
	}
	if (!ad_profile_decode(&profile, spawn->profile, spawn->profile_len))
		return 0;
	use_cgroups = profile.strict[AD_LAYER_CGROUP] != AD_STRICT_OFF;
	pid = take_ahead(job, spawn, use_cgroups);
	if (!plan_sandbox(job, spawn, profile.strict[AD_LAYER_CGROUP], &request.enforcement))
		return 0;
	if (request.session && !session_make(job, &request.enforcement, &session_end)) {
		report_failed(job->id, AD_STAGE_SUPERVISOR, errno, "");
		job_free(job, true);
		return 0;
	}
	if (pid <= 0 || !tell_ahead(job, &request, from, own_fds(spawn, from)))
		pid = start_anew(job, &request, from, own_fds(spawn, from), session_end);
	if (session_end >= 0)
		close(session_end);
	if (pid > 0) {
		job_started(job, pid);
		warm_want(job->template, &spawn->limits, use_cgroups, profile.prewarm);
		return 0;
	}
	session_forget(job);
	job->session = NULL;
	if (pid == -EPIPE) {
		if (job->leaf)
			cgroup_release(job->leaf, true);
		job->leaf = NULL;
		job->watch = 0;
		return -EPIPE;
	}
	report_failed(job->id, AD_STAGE_SUPERVISOR, -pid, "");
	job_free(job, true);
	return 0;
}

/* Keep all that is needed when the template is ready. Takes the descriptors. */
static bool wait_for_template(struct job *job, struct ad_sys_msg *from, bool memory_file)
{
	size_t len = memory_file ? 0 : from->len;
	struct waiting *waiting = malloc(sizeof(*waiting) + len);

	if (!waiting)
		return false;
	*waiting = (struct waiting){
		.uid = from->uid,
		.gid = from->gid,
		.fd_count = from->fd_count,
		.memory_file = memory_file,
		.len = len,
	};
	memcpy(waiting->fds, from->fds, sizeof(waiting->fds));
	memcpy(waiting->message, from->data, len);
	from->fd_count = 0;
	job->waiting = waiting;
	return true;
}

/* With another zygote, once. False: the job failed. */
static bool try_again(struct job *job)
{
	if (job->again) {
		report_failed(job->id, AD_STAGE_SUPERVISOR, EPIPE, "");
		job_free(job, true);
		return false;
	}
	job->again = true;
	template_drop(job->template);
	job->template = NULL;
	return true;
}

static void start_in_sandbox(struct job *job, const struct ad_msg_spawn *spawn,
			     struct ad_sys_msg *from, bool memory_file)
{
	bool join = (spawn->flags & AD_SPAWN_NETNS) != 0;
	int error = wrong_fds(from, (size_t)memory_file + join +
					    ((spawn->flags & AD_SPAWN_CREDENTIALS) ? 1 : 0));

	if (error) {
		report_failed(job->id, AD_STAGE_REQUEST, error, "");
		job_free(job, true);
		return;
	}
	/* A zygote that died is noticed by those who need it: nothing of them has run. */
	for (;;) {
		job->template = template_get(spawn, from->uid, from->gid,
					     join ? from->fds[from->fd_count - 1] : -1);
		if (!job->template) {
			report_failed(job->id, AD_STAGE_SUPERVISOR, errno, "");
			job_free(job, true);
			return;
		}
		if (template_state(job->template) == TEMPLATE_BUILDING) {
			if (wait_for_template(job, from, memory_file))
				return;
			report_failed(job->id, AD_STAGE_REQUEST, ENOMEM, "");
			job_free(job, true);
			return;
		}
		if (start_in_template(job, spawn, from, memory_file) != -EPIPE)
			return;
		if (!try_again(job))
			return;
	}
}

/* ---- in a session */

static void start_in_session(struct job *job, const struct ad_msg_spawn *spawn,
			     struct ad_sys_msg *from, bool memory_file)
{
	struct job *session = job_by_id(spawn->session);
	int error = wrong_fds(from, (size_t)memory_file +
					    ((spawn->flags & AD_SPAWN_CREDENTIALS) ? 1 : 0));

	if (!error && !session_is_open(session))
		error = ESRCH;
	if (!error) {
		job->in = session;
		if (session->session->supervisor) {
			session_start(job, spawn, from, memory_file);
			return;
		}
		if (!wait_for_template(job, from, memory_file))
			error = ENOMEM;
		else
			session_hurry(session);
	}
	if (error) {
		report_failed(job->id, AD_STAGE_REQUEST, error, "");
		job_free(job, true);
	}
}

/* ---- the message */

void start_job(const struct ad_msg_spawn *spawn, struct ad_sys_msg *from, bool memory_file)
{
	struct job *job = job_new(spawn->job);

	if (!job)
		return;
	if (spawn->session)
		start_in_session(job, spawn, from, memory_file);
	else if (spawn->flags & AD_SPAWN_SANDBOX)
		start_in_sandbox(job, spawn, from, memory_file);
	else if (spawn->flags & AD_SPAWN_MACHINE)
		start_machine(job, spawn, from, memory_file);
	else
		start_on_host(job, spawn, from, memory_file);
}

/* The message in a memory file: mapped, or a negative errno. */
static int map_message(int fd, const uint8_t **ret, size_t *ret_len)
{
	ssize_t size = ad_sys_memfd_size(fd);
	void *map;

	if (size <= 0 || size > AD_MSG_SPAWN_MAX)
		return size < 0 ? (int)size : -EBADMSG;
	map = mmap(NULL, (size_t)size, PROT_READ, MAP_PRIVATE, fd, 0);
	if (map == MAP_FAILED)
		return -errno;
	*ret = map;
	*ret_len = (size_t)size;
	return 0;
}

void start_from_fd(struct ad_sys_msg *in, uint32_t id)
{
	int r = in->fds_lost ? -EMFILE : in->fd_count > 0 ? 0 : -EBADMSG;
	struct ad_msg_spawn spawn;
	const uint8_t *bytes = NULL;
	size_t len = 0;

	if (r == 0)
		r = map_message(in->fds[0], &bytes, &len);
	if (r < 0) {
		report_failed(id, AD_STAGE_REQUEST, -r, "");
		return;
	}
	if (ad_msg_spawn_decode(&spawn, bytes, len) && spawn.job == id && !job_by_id(id))
		start_job(&spawn, in, true);
	else
		report_failed(id, AD_STAGE_REQUEST, EBADMSG, "");
	munmap((void *)(uintptr_t)bytes, len);
}

/* Its template is not being made any more. What was checked before is as it was. */
void start_waiting(struct job *job)
{
	struct waiting *waiting = job->waiting;
	struct ad_sys_msg from = {
		.data = waiting->message,
		.len = waiting->len,
		.fd_count = waiting->fd_count,
		.uid = waiting->uid,
		.gid = waiting->gid,
	};
	const uint8_t *bytes = waiting->message;
	size_t len = waiting->len;
	struct ad_msg_spawn spawn;
	int r = 0;

	memcpy(from.fds, waiting->fds, sizeof(from.fds));
	job->waiting = NULL;
	if (waiting->memory_file)
		r = map_message(from.fds[0], &bytes, &len);
	if (r == 0 && !ad_msg_spawn_decode(&spawn, bytes, len))
		r = -EBADMSG;
	if (r == 0 && job->in)
		session_start(job, &spawn, &from, waiting->memory_file);
	else if (r == 0)
		r = start_in_template(job, &spawn, &from, waiting->memory_file);
	if (r == -EPIPE && try_again(job)) {
		start_in_sandbox(job, &spawn, &from, waiting->memory_file);
	} else if (r < 0 && r != -EPIPE) {
		report_failed(job->id, AD_STAGE_REQUEST, -r, "");
		job_free(job, true);
	}
	if (waiting->memory_file && bytes != waiting->message)
		munmap((void *)(uintptr_t)bytes, len);
	ad_sys_msg_close(&from);
	free(waiting);
}

void start_all_waiting(void)
{
	for (struct job *job = job_next(NULL), *next; job; job = next) {
		next = job_next(job);
		if (job->waiting && job->template &&
		    template_state(job->template) != TEMPLATE_BUILDING)
			start_waiting(job);
	}
}
