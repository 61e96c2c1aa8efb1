/* SPDX-License-Identifier: MIT */
#include "launch/launch.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <agentd/backend.h>

#include "launch/private.h"
#include "policy/policy.h"
#include "sys/sys.h"

enum { BUCKETS = 64, READS_PER_WAKE = 64, REAP_WAIT_MS = 100 };
enum { SPAWN_FDS_MAX = 1 + AD_SPAWN_MACHINE_FDS_MAX }; /* and the message itself */

/* The helper's own time limits for a kill add up to less. */
static const uint64_t stuck_ns = 15000 * AD_NS_PER_MS;

_Static_assert((int)AD_MEANS_NONE == AD_MSG_MEANS_NONE &&
		       (int)AD_MEANS_RLIMIT == AD_MSG_MEANS_RLIMIT &&
		       (int)AD_MEANS_WATCHDOG == AD_MSG_MEANS_WATCHDOG &&
		       (int)AD_MEANS_CGROUP1 == AD_MSG_MEANS_CGROUP1 &&
		       (int)AD_MEANS_CGROUP2 == AD_MSG_MEANS_CGROUP2 &&
		       (int)AD_MEANS_PIDNS == AD_MSG_MEANS_PIDNS &&
		       (int)AD_MEANS_COUNT == AD_MSG_MEANS_COUNT &&
		       (int)AD_LAUNCH_LAYER_NONE == AD_MSG_LAYER_NONE &&
		       (int)AD_LAUNCH_LAYER_ENFORCED == AD_MSG_LAYER_ENFORCED &&
		       (int)AD_LAUNCH_LAYER_DEGRADED == AD_MSG_LAYER_DEGRADED,
	       "the protocol's numbers are the interface's");
_Static_assert((int)SPAWN_FDS_MAX <= (int)AD_SYS_FDS_MAX, "they fit in one message");

static const char *const limit_names[AD_MSG_LIMIT_COUNT] = {
	[AD_MSG_LIMIT_MEMORY] = "mem_bytes",     [AD_MSG_LIMIT_PIDS] = "pids_max",
	[AD_MSG_LIMIT_CPU_TIME] = "cpu_time_ms", [AD_MSG_LIMIT_IO] = "io_bytes",
	[AD_MSG_LIMIT_SYSCALL] = "seccomp", /* nothing that could be set */
};

static const char *const denied_kinds[AD_MSG_DENIED_KINDS] = {
	[AD_MSG_DENIED_SYSCALL] = "syscall",
	[AD_MSG_DENIED_PATH] = "path",
	[AD_MSG_DENIED_LEFT] = "left",
};

enum job_state { JOB_STARTING, JOB_RUNNING, JOB_EXITED, JOB_OVER };

struct ad_job {
	struct ad_list bucket, all;
	struct ad_launcher *launcher; /* NULL once over */
	uint32_t id;
	enum job_state state;
	bool merge_stderr, stdin_open, sandboxed, networked, session;
	uint32_t layers_wanted; /* 1 << enum ad_layer: not without */
	bool kill_unsent, all_dead;
	bool freed;         /* by its owner, while it is disowned */
	uint64_t killed_at; /* 0: not */
	const struct ad_job_events *events;
	void *userdata;
};

struct outgoing {
	struct ad_list link;
	uint32_t job;
	int fds[SPAWN_FDS_MAX];
	size_t fd_count, len;
	uint8_t data[];
};

struct ad_launcher {
	struct ad_loop *loop;
	int fd;
	struct ad_io readable, writable;
	struct ad_list out; /* struct outgoing */
	struct ad_list buckets[BUCKETS], jobs;
	struct ad_list disowned; /* over here, while the helper is still to be told to end them */
	uint32_t next_id;
	bool ids_wrapped;
	uint32_t limit_bits[AD_MSG_LIMIT_COUNT]; /* in ad_launch_request.limits_requested */
	pid_t helper;
	int helper_pidfd; /* or -1 */
	struct ad_list watches;
	struct ad_launcher_watch ready_watch;
	bool ready;
	struct ad_launch_receipt best;
	agentd_error *lost; /* it is, and why */
	bool shutting_down;
	ad_launcher_fn gone;
	void *gone_userdata;
	struct ad_defer gone_already;
	struct ad_timer stuck;
	bool watching;
	unsigned int busy; /* inside callbacks: freed when they are over */
	bool freed;
	uint8_t scratch[AD_MSG_INLINE_MAX];
};

/* ---- memory */

static void outgoing_free(struct outgoing *out)
{
	ad_list_remove(&out->link);
	for (size_t i = 0; i < out->fd_count; i++)
		close(out->fds[i]);
	free(out);
}

/* The helper knows, or is gone. */
static void end_disowned(struct ad_job *job)
{
	ad_list_remove(&job->all);
	job->kill_unsent = false;
	if (job->freed)
		agentd_free(job);
}

static void stop_io(struct ad_launcher *launcher)
{
	if (launcher->fd < 0)
		return;
	ad_io_stop(&launcher->readable);
	ad_io_stop(&launcher->writable);
	ad_timer_stop(&launcher->stuck);
	/* A child that the host forked may hold a copy, and the helper must see the end. */
	shutdown(launcher->fd, SHUT_RDWR);
	close(ad_steal_fd(&launcher->fd));
	while (!ad_list_empty(&launcher->out))
		outgoing_free(AD_CONTAINER_OF(launcher->out.next, struct outgoing, link));
	while (!ad_list_empty(&launcher->disowned))
		end_disowned(AD_CONTAINER_OF(launcher->disowned.next, struct ad_job, all));
}

/* A subreaper, or pid 1 of a container, inherits the helper: then it is ours to
 * reap. It is about to end, so a short wait is enough. By pidfd: the number could
 * be that of a child of the host's by now. */
static void reap_helper(struct ad_launcher *launcher)
{
	struct pollfd ended = { .fd = launcher->helper_pidfd, .events = POLLIN };
	siginfo_t info;

	if (launcher->helper_pidfd < 0)
		return;
	info.si_pid = 0;
	if (waitid(P_PIDFD, (id_t)launcher->helper_pidfd, &info, WEXITED | WNOHANG | __WALL) == 0 &&
	    info.si_pid == 0 && poll(&ended, 1, REAP_WAIT_MS) > 0)
		waitid(P_PIDFD, (id_t)launcher->helper_pidfd, &info, WEXITED | WNOHANG | __WALL);
	close(ad_steal_fd(&launcher->helper_pidfd));
}

static void launcher_destroy(struct ad_launcher *launcher)
{
	agentd_error_unref(launcher->lost);
	agentd_free(launcher);
}

static void leave(struct ad_launcher *launcher)
{
	if (--launcher->busy == 0 && launcher->freed)
		launcher_destroy(launcher);
}

static void job_forget(struct ad_job *job)
{
	ad_list_remove(&job->bucket);
	ad_list_remove(&job->all);
	job->launcher = NULL;
	job->state = JOB_OVER;
	job->kill_unsent = false;
}

void ad_launcher_free(struct ad_launcher *launcher)
{
	int saved = errno;

	if (!launcher)
		return;
	while (!ad_list_empty(&launcher->jobs))
		job_forget(AD_CONTAINER_OF(launcher->jobs.next, struct ad_job, all));
	while (!ad_list_empty(&launcher->watches))
		ad_launcher_unwatch(
			AD_CONTAINER_OF(launcher->watches.next, struct ad_launcher_watch, link));
	ad_defer_cancel(&launcher->gone_already);
	stop_io(launcher);
	reap_helper(launcher);
	launcher->freed = true;
	if (launcher->busy == 0)
		launcher_destroy(launcher);
	errno = saved;
}

/* ---- who wants to know */

static void tell_known(struct ad_defer *defer, void *userdata)
{
	struct ad_launcher_watch *watch = userdata;

	(void)defer;
	watch->fn(watch->launcher, watch->launcher->lost, watch->userdata);
}

void ad_launcher_watch(struct ad_launcher *launcher, struct ad_launcher_watch *watch,
		       ad_launcher_fn fn, void *userdata)
{
	watch->launcher = launcher;
	watch->fn = fn;
	watch->userdata = userdata;
	ad_list_append(&launcher->watches, &watch->link);
	ad_defer_init(&watch->known, launcher->loop, tell_known, watch);
	if (launcher->ready || launcher->lost)
		ad_defer(&watch->known);
}

void ad_launcher_unwatch(struct ad_launcher_watch *watch)
{
	if (!watch->launcher)
		return;
	ad_defer_cancel(&watch->known);
	ad_list_remove(&watch->link);
	watch->launcher = NULL;
}

void ad_launcher_set_ready(struct ad_launcher *launcher, ad_launcher_fn fn, void *userdata)
{
	ad_launcher_unwatch(&launcher->ready_watch);
	if (fn)
		ad_launcher_watch(launcher, &launcher->ready_watch, fn, userdata);
}

/* Callbacks may take any watch out, also those not yet told: the list moves over
 * and back one by one. */
static void tell_watches(struct ad_launcher *launcher)
{
	struct ad_list pending;

	ad_list_init(&pending);
	while (!ad_list_empty(&launcher->watches)) {
		struct ad_list *node = launcher->watches.next;

		ad_list_remove(node);
		ad_list_append(&pending, node);
	}
	while (!ad_list_empty(&pending)) {
		struct ad_launcher_watch *watch = AD_CONTAINER_OF(pending.next,
								  struct ad_launcher_watch, link);

		ad_list_remove(&watch->link);
		if (launcher->freed) {
			watch->launcher = NULL;
			continue;
		}
		ad_list_append(&launcher->watches, &watch->link);
		ad_defer_cancel(&watch->known);
		watch->fn(launcher, launcher->lost, watch->userdata);
	}
}

const struct ad_launch_receipt *ad_launcher_best(const struct ad_launcher *launcher)
{
	return &launcher->best;
}

/* ---- the end of the helper */

static void fail_jobs(struct ad_launcher *launcher)
{
	while (!launcher->freed && !ad_list_empty(&launcher->jobs)) {
		struct ad_job *job = AD_CONTAINER_OF(launcher->jobs.next, struct ad_job, all);

		job_forget(job);
		job->events->failed(job, agentd_error_ref(launcher->lost), NULL, job->userdata);
	}
}

/* Takes err. Called from the loop. */
static void lost(struct ad_launcher *launcher, agentd_error *err)
{
	bool wanted = launcher->shutting_down;

	if (launcher->lost) {
		agentd_error_unref(err);
		return;
	}
	launcher->lost = err;
	stop_io(launcher);
	reap_helper(launcher);
	launcher->busy++;
	fail_jobs(launcher);
	if (!launcher->freed && wanted && launcher->gone)
		launcher->gone(launcher, NULL, launcher->gone_userdata);
	else if (!launcher->freed && !wanted)
		tell_watches(launcher);
	leave(launcher);
}

static void lost_text(struct ad_launcher *launcher, int code, const char *text)
{
	lost(launcher, agentd_error_create(code, 0, text));
}

static void gone_already(struct ad_defer *defer, void *userdata)
{
	struct ad_launcher *launcher = userdata;

	(void)defer;
	launcher->gone(launcher, NULL, launcher->gone_userdata);
}

static void watch_for_stuck(struct ad_launcher *launcher, uint64_t after)
{
	/* Without memory for a timer nobody is watching; the job still ends when the
	 * helper answers. */
	if (!launcher->watching)
		launcher->watching = ad_timer_start(&launcher->stuck, after) == 0;
}

static void is_stuck(struct ad_timer *timer, void *userdata)
{
	struct ad_launcher *launcher = userdata;
	uint64_t now = ad_sys_now_ns(), oldest = 0;

	(void)timer;
	launcher->watching = false;
	for (struct ad_list *node = launcher->jobs.next; node != &launcher->jobs;
	     node = node->next) {
		const struct ad_job *job = AD_CONTAINER_OF(node, struct ad_job, all);

		if (job->killed_at && (oldest == 0 || job->killed_at < oldest))
			oldest = job->killed_at;
	}
	if (oldest == 0 && !launcher->shutting_down)
		return;
	if (!launcher->shutting_down && now - oldest < stuck_ns) {
		watch_for_stuck(launcher, stuck_ns - (now - oldest));
		return;
	}
	if (launcher->helper_pidfd >= 0)
		ad_sys_pidfd_signal(launcher->helper_pidfd, SIGKILL);
	lost_text(launcher, AGENTD_ERR_BACKEND, "the helper does not answer; it was killed");
}

void ad_launcher_shutdown(struct ad_launcher *launcher, ad_launcher_fn gone, void *userdata)
{
	int saved = errno;

	launcher->shutting_down = true;
	launcher->gone = gone;
	launcher->gone_userdata = userdata;
	if (launcher->lost) {
		if (gone)
			ad_defer(&launcher->gone_already);
	} else {
		shutdown(launcher->fd, SHUT_WR);
		ad_timer_stop(&launcher->stuck);
		launcher->watching = false;
		watch_for_stuck(launcher, stuck_ns);
	}
	errno = saved;
}

/* ---- messages out */

static void send_kills(struct ad_launcher *launcher);

static struct ad_job *find_job(struct ad_launcher *launcher, uint32_t id);
static void job_failed(struct ad_job *job, const struct ad_launch_failure *failure);

static bool is_cut(int error)
{
	return error == EPIPE || error == ECONNRESET;
}

/* What is wrong with the socket shows when it is read: the loop hears of it there. */
static void flush(struct ad_launcher *launcher)
{
	while (!launcher->freed && !ad_list_empty(&launcher->out)) {
		struct outgoing *out = AD_CONTAINER_OF(launcher->out.next, struct outgoing, link);
		int r = ad_sys_send(launcher->fd, out->data, out->len, out->fds, out->fd_count,
				    MSG_DONTWAIT);
		uint32_t id = out->job;
		struct ad_job *job;

		if (r == -EAGAIN)
			return;
		outgoing_free(out);
		job = r < 0 && !is_cut(-r) ? find_job(launcher, id) : NULL;
		if (job)
			job_failed(job, &(struct ad_launch_failure){ .stage = AD_STAGE_REQUEST,
								     .os_errno = -r,
								     .text = "" });
	}
	if (launcher->freed)
		return;
	ad_io_stop(&launcher->writable);
	send_kills(launcher);
}

static void on_writable(struct ad_io *io, void *userdata)
{
	struct ad_launcher *launcher = userdata;

	(void)io;
	launcher->busy++;
	flush(launcher);
	leave(launcher);
}

/* Keep a message until the socket takes it. 0 or a negative errno. */
static int queue(struct ad_launcher *launcher, uint32_t job, const uint8_t *data, size_t len,
		 const int *fds, size_t fd_count)
{
	struct outgoing *out = malloc(sizeof(*out) + len);

	if (!out)
		return -ENOMEM;
	out->job = job;
	out->fd_count = 0;
	out->len = len;
	memcpy(out->data, data, len);
	ad_list_init(&out->link);
	for (size_t i = 0; i < fd_count; i++) {
		out->fds[i] = fcntl(fds[i], F_DUPFD_CLOEXEC, 3);
		if (out->fds[i] < 0) {
			int error = errno;

			outgoing_free(out);
			return -error;
		}
		out->fd_count++;
	}
	if (ad_io_start(&launcher->writable) < 0) {
		outgoing_free(out);
		return -ENOMEM;
	}
	ad_list_append(&launcher->out, &out->link);
	return 0;
}

/* Borrows the descriptors. 0 or a negative errno. */
static int post(struct ad_launcher *launcher, uint32_t job, const uint8_t *data, size_t len,
		const int *fds, size_t fd_count)
{
	int r = -EAGAIN;

	if (ad_list_empty(&launcher->out))
		r = ad_sys_send(launcher->fd, data, len, fds, fd_count, MSG_DONTWAIT);
	return r == -EAGAIN ? queue(launcher, job, data, len, fds, fd_count) : r;
}

/* Kills need no memory: what could not be sent is remembered in the job. */
static void send_kill(struct ad_launcher *launcher, struct ad_job *job)
{
	struct ad_msg msg = { .type = AD_MSG_KILL, .job = job->id };
	uint8_t buf[AD_MSG_FIXED_MAX];

	job->kill_unsent = !ad_list_empty(&launcher->out) ||
			   ad_sys_send(launcher->fd, buf, ad_msg_encode(&msg, buf), NULL, 0,
				       MSG_DONTWAIT) == -EAGAIN;
	if (job->kill_unsent)
		(void)ad_io_start(&launcher->writable);
}

static void send_kills(struct ad_launcher *launcher)
{
	for (struct ad_list *node = launcher->jobs.next; node != &launcher->jobs;
	     node = node->next) {
		struct ad_job *job = AD_CONTAINER_OF(node, struct ad_job, all);

		if (job->kill_unsent)
			send_kill(launcher, job);
		if (job->kill_unsent)
			return;
	}
	while (!ad_list_empty(&launcher->disowned)) {
		struct ad_job *job = AD_CONTAINER_OF(launcher->disowned.next, struct ad_job, all);

		send_kill(launcher, job);
		if (job->kill_unsent)
			return;
		end_disowned(job);
	}
}

/* Whoever had it hears no more of it; the helper is to end it. */
static void job_disown(struct ad_job *job)
{
	struct ad_launcher *launcher = job->launcher;

	job_forget(job);
	send_kill(launcher, job);
	if (job->kill_unsent)
		ad_list_append(&launcher->disowned, &job->all);
}

/* ---- messages in */

static struct ad_job *find_job(struct ad_launcher *launcher, uint32_t id)
{
	struct ad_list *head = &launcher->buckets[id % BUCKETS];

	for (struct ad_list *node = head->next; node != head; node = node->next) {
		struct ad_job *job = AD_CONTAINER_OF(node, struct ad_job, bucket);

		if (job->id == id)
			return job;
	}
	return NULL;
}

static void fill_receipt(struct ad_launch_receipt *ret, const struct ad_msg_receipt *receipt)
{
	*ret = (struct ad_launch_receipt){
		.memory = receipt->memory,
		.pids = receipt->pids,
		.cpu = receipt->cpu,
		.cpu_time = receipt->cpu_time,
		.io = receipt->io,
		.tree_kill = receipt->tree_kill,
		.landlock_abi = receipt->landlock_abi,
		.uid = receipt->uid,
		.gid = receipt->gid,
	};
	_Static_assert(sizeof(ret->layers) == sizeof(receipt->layers) &&
			       sizeof(ret->layer_errno) == sizeof(receipt->layer_errno),
		       "the same layers");
	memcpy(ret->layers, receipt->layers, sizeof(ret->layers));
	memcpy(ret->layer_errno, receipt->layer_errno, sizeof(ret->layer_errno));
}

static void tell_failed(struct ad_job *job, const struct ad_launch_failure *failure)
{
	job->events->failed(job, ad_launch_error(failure), failure, job->userdata);
}

static void job_failed(struct ad_job *job, const struct ad_launch_failure *failure)
{
	job_forget(job);
	tell_failed(job, failure);
}

static void on_failed(struct ad_job *job, const struct ad_msg *msg)
{
	const struct ad_launch_failure failure = {
		.stage = msg->u.failed.stage,
		.index = msg->u.failed.index,
		.os_errno = msg->u.failed.os_errno,
		.text = msg->u.failed.text,
	};

	job_failed(job, &failure);
}

/* What the policy insists on was put up before the command was: it is the helper's to
 * see to that, ours to check. False: it was not, and the job is over. */
static bool check_layers(struct ad_job *job, const struct ad_msg_receipt *receipt)
{
	for (uint32_t i = 0; i < AD_LAYER_COUNT; i++) {
		if (!(job->layers_wanted >> i & 1u) || receipt->layers[i] == AD_MSG_LAYER_ENFORCED)
			continue;
		job_disown(job);
		tell_failed(job,
			    &(struct ad_launch_failure){ .stage = AD_STAGE_LAYER,
							 .index = i,
							 .os_errno = receipt->layer_errno[i],
							 .text = "the helper did not put it up" });
		return false;
	}
	return true;
}

/* False if it is not what the protocol allows. Takes the descriptors. */
static bool on_started(struct ad_job *job, const struct ad_msg *msg, struct ad_sys_msg *in)
{
	uint32_t wanted = (job->merge_stderr || job->session ? 0 : AD_STARTED_STDERR) |
			  (job->stdin_open ? AD_STARTED_STDIN : 0) |
			  (job->networked ? AD_STARTED_NETWORK : 0);
	size_t count = 1u + !job->merge_stderr + job->stdin_open + job->networked, next = 1;
	struct ad_launch_receipt receipt;
	int err_fd = -1, in_fd = -1, network = -1;
	int32_t pid = msg->u.started.pid;

	if (job->session)
		count = job->networked;
	bool fds_lost = in->fds_lost || (in->fd_count == 0 && count > 0);

	if (job->state != JOB_STARTING || msg->u.started.flags != wanted ||
	    (in->fd_count != count && !fds_lost))
		return false;
	if (fds_lost) {
		/* The host is at its limit of descriptors, or its user at that of those on their way. */
		job_disown(job);
		tell_failed(job, &(struct ad_launch_failure){ .stage = AD_STAGE_PIPE,
							      .os_errno = EMFILE,
							      .text = " for the host program" });
		return true;
	}
	if (!check_layers(job, &msg->u.started.receipt))
		return true;
	if (job->session) {
		in->fd_count = 0;
		job->state = JOB_RUNNING;
		fill_receipt(&receipt, &msg->u.started.receipt);
		if (job->networked)
			job->events->network(job, in->fds[0], job->userdata);
		job->events->started(job, pid, -1, -1, -1, &receipt, job->userdata);
		return true;
	}
	if (!job->merge_stderr)
		err_fd = in->fds[next++];
	if (job->stdin_open)
		in_fd = in->fds[next++];
	if (job->networked)
		network = in->fds[next];
	in->fd_count = 0;
	job->state = JOB_RUNNING;
	fill_receipt(&receipt, &msg->u.started.receipt);
	/* Its number in there means nothing here; that of its supervisor, which sends this,
	 * does. */
	if (job->sandboxed)
		pid = in->has_creds ? in->pid : 0;
	if (network >= 0)
		job->events->network(job, network, job->userdata);
	job->events->started(job, pid, in_fd, in->fds[0], err_fd, &receipt, job->userdata);
	return true;
}

static bool on_ended(struct ad_job *job, const struct ad_msg *msg)
{
	const struct ad_msg_usage *usage = &msg->u.ended.usage;
	struct ad_launcher *launcher = job->launcher;
	struct ad_launch_usage ret = {
		.cpu_ns = usage->cpu_ns,
		.memory_peak_bytes = usage->memory_peak,
		.memory_peak_is_tree = usage->peak_is_tree,
		.survivors = usage->survivors,
	};
	int status = msg->u.ended.wait_status;
	bool exits = msg->type != AD_MSG_CLOSED, closes = msg->type != AD_MSG_EXITED;

	if (job->state != JOB_RUNNING && (exits || job->state != JOB_EXITED))
		return false;
	if (exits && !WIFEXITED(status) && !WIFSIGNALED(status))
		return false;
	job->all_dead = closes;
	if (exits) {
		job->state = JOB_EXITED;
		job->events->exited(job, status, msg->u.ended.at_ns, job->userdata);
		/* The callback may have given up the job or all of us. */
		if (launcher->freed || find_job(launcher, msg->job) != job)
			return true;
	}
	if (closes) {
		job_forget(job);
		job->events->closed(job, &ret, job->userdata);
	}
	return true;
}

static bool on_hello(struct ad_launcher *launcher, const struct ad_msg *msg)
{
	if (launcher->ready)
		return false;
	launcher->ready = true;
	fill_receipt(&launcher->best, &msg->u.hello.best);
	tell_watches(launcher);
	return true;
}

static bool dispatch(struct ad_launcher *launcher, struct ad_sys_msg *in)
{
	struct ad_msg msg;
	struct ad_job *job;

	if (!ad_msg_decode(&msg, in->data, in->len) ||
	    (in->fd_count > 0 && msg.type != AD_MSG_STARTED))
		return false;
	if (msg.type == AD_MSG_HELLO)
		return on_hello(launcher, &msg);
	job = find_job(launcher, msg.job);
	if (!job) /* given up, or failed here: late words are no offence */
		return msg.job < launcher->next_id || launcher->ids_wrapped;
	switch (msg.type) {
	case AD_MSG_STARTED:
		return on_started(job, &msg, in);
	case AD_MSG_FAILED:
		on_failed(job, &msg);
		return true;
	case AD_MSG_LIMIT:
		if (job->state != JOB_RUNNING)
			return false;
		job->events->limit_hit(job, limit_names[msg.u.limit.limit], msg.u.limit.fatal,
				       job->userdata);
		return true;
	case AD_MSG_DENIED:
		/* Of a session that is stopped while it starts nobody wants to know. */
		if (job->session && job->state == JOB_STARTING)
			return true;
		if (!job->sandboxed || job->state < JOB_RUNNING)
			return false;
		job->events->denied(job, denied_kinds[msg.u.denied.kind], msg.u.denied.target,
				    job->userdata);
		return true;
	case AD_MSG_EXITED:
	case AD_MSG_CLOSED:
	case AD_MSG_ENDED:
		return on_ended(job, &msg);
	default:
		return false;
	}
}

static void on_bad_message(struct ad_launcher *launcher, const struct ad_sys_msg *in)
{
	if (in->len > 0 && ((const uint8_t *)in->data)[0] != AD_MSG_VERSION)
		lost_text(launcher, AGENTD_ERR_PROTOCOL,
			  "the helper is of another version than the library; install both from "
			  "the same release");
	else
		lost_text(launcher, AGENTD_ERR_PROTOCOL, "the helper sent a malformed message");
}

static void on_readable(struct ad_io *io, void *userdata)
{
	struct ad_launcher *launcher = userdata;

	(void)io;
	launcher->busy++;
	for (int i = 0; i < READS_PER_WAKE && !launcher->freed && !launcher->lost; i++) {
		uint8_t buf[AD_MSG_FIXED_MAX];
		struct ad_sys_msg in = { .data = buf, .cap = sizeof(buf) };
		int r = ad_sys_recv(launcher->fd, &in, MSG_DONTWAIT);

		if (r == -EAGAIN)
			break;
		if (r == -EMSGSIZE)
			lost_text(launcher, AGENTD_ERR_PROTOCOL,
				  "the helper sent a malformed message");
		else if (r <= 0)
			lost_text(launcher, AGENTD_ERR_BACKEND,
				  launcher->ready ? "helper lost: it ended unexpectedly, and the "
						    "commands with it" :
						    "helper lost: it ended before it was ready");
		else if (!dispatch(launcher, &in))
			on_bad_message(launcher, &in);
		ad_sys_msg_close(&in);
		/* With one command alive there is hardly a second message: not asking for it
		 * saves a system call, and the event is level-triggered. */
		if (launcher->jobs.next == launcher->jobs.prev)
			break;
	}
	leave(launcher);
}

struct ad_loop *ad_launcher_loop(const struct ad_launcher *launcher)
{
	return launcher->loop;
}

/* ---- making one */

static int start(struct ad_launcher *launcher, const char *helper_path, agentd_error **reterr)
{
	ad_autofree char *found = helper_path ? NULL : ad_launch_default_path();
	ad_autoclose int theirs = -1;
	int pair[2], r;

	if (!helper_path && !found)
		return ad_fail_nomem(reterr);
	r = ad_sys_pair(pair);
	if (r < 0)
		return ad_fail_errno(reterr, -r, "no socket for the helper");
	launcher->fd = pair[0];
	theirs = pair[1];
	/* Before the first message, which either may be too late for. */
	r = ad_sys_pass_creds(theirs);
	if (r == 0)
		r = ad_sys_pass_creds(launcher->fd);
	if (r < 0)
		return ad_fail_errno(reterr, -r, "no credentials on the helper's socket");
	ad_io_init(&launcher->readable, launcher->loop, launcher->fd, AD_IO_READ, on_readable,
		   launcher);
	ad_io_init(&launcher->writable, launcher->loop, launcher->fd, AD_IO_WRITE, on_writable,
		   launcher);
	r = ad_io_start(&launcher->readable);
	if (r < 0)
		return ad_fail(reterr, r, NULL, "the helper's socket could not be watched: %s",
			       agentd_strerror(r));
	r = ad_launch_helper(helper_path ? helper_path : found, theirs, &launcher->helper, reterr);
	if (r == 0 && launcher->helper > 0)
		launcher->helper_pidfd = ad_sys_pidfd(launcher->helper);
	return r;
}

int ad_launcher_new(struct ad_loop *loop, const char *helper_path, struct ad_launcher **ret,
		    agentd_error **reterr)
{
	struct ad_launcher *launcher = calloc(1, sizeof(*launcher));
	int saved = errno, r;

	if (!launcher)
		return ad_fail_nomem(reterr);
	launcher->loop = loop;
	launcher->fd = launcher->helper_pidfd = -1;
	launcher->next_id = 1;
	ad_list_init(&launcher->out);
	ad_list_init(&launcher->jobs);
	ad_list_init(&launcher->disowned);
	ad_list_init(&launcher->watches);
	for (size_t i = 0; i < BUCKETS; i++)
		ad_list_init(&launcher->buckets[i]);
	for (size_t i = 0; i < AD_MSG_LIMIT_COUNT; i++) {
		int index = ad_limit_index(limit_names[i]);

		launcher->limit_bits[i] = index < 0 ? 0 : UINT32_C(1) << index;
	}
	ad_timer_init(&launcher->stuck, loop, is_stuck, launcher);
	ad_defer_init(&launcher->gone_already, loop, gone_already, launcher);
	r = start(launcher, helper_path, reterr);
	if (r < 0)
		ad_launcher_free(launcher);
	else
		*ret = launcher;
	errno = saved;
	return r;
}

/* ---- jobs */

/* r: of post(). */
static int posted(int r, agentd_error **reterr)
{
	if (r == 0)
		return 0;
	if (is_cut(-r))
		return ad_fail(reterr, AGENTD_ERR_BACKEND, NULL, "the helper cannot be reached");
	return ad_fail_errno(reterr, -r, "Failed to spawn shell command");
}

/* A request beyond what goes in one message goes in a file without a name. */
static int post_large(struct ad_launcher *launcher, const struct ad_msg_spawn *spawn, size_t size,
		      int fds[static SPAWN_FDS_MAX], size_t fd_count, agentd_error **reterr)
{
	struct ad_msg msg = { .type = AD_MSG_SPAWN_FD, .job = spawn->job };
	ad_autofree uint8_t *data = malloc(size);
	uint8_t buf[AD_MSG_FIXED_MAX];
	ad_autoclose int fd = -1;

	if (!data)
		return ad_fail_nomem(reterr);
	ad_msg_spawn_encode(spawn, data);
	fd = ad_sys_memfd_sealed("agentd-spawn", data, size);
	if (fd < 0)
		return ad_fail_errno(reterr, -fd, "Failed to spawn shell command");
	memmove(fds + 1, fds, fd_count * sizeof(*fds));
	fds[0] = fd;
	return posted(post(launcher, spawn->job, buf, ad_msg_encode(&msg, buf), fds, fd_count + 1),
		      reterr);
}

static int post_spawn(struct ad_launcher *launcher, const struct ad_msg_spawn *spawn,
		      const struct ad_launch_request *request, agentd_error **reterr)
{
	const struct ad_launch_sandbox *sandbox = request->sandbox;
	size_t size = ad_msg_spawn_size(spawn), fd_count = 0;
	int fds[SPAWN_FDS_MAX];

	if (size == SIZE_MAX) {
		/* More than any kernel takes: the answer is known. */
		ad_fail_errno(reterr, E2BIG, "Failed to spawn shell command");
		return AGENTD_ERR_SYSTEM;
	}
	if (spawn->flags & AD_SPAWN_CREDENTIALS)
		fds[fd_count++] = sandbox ? sandbox->credentials_fd :
					    request->session_credentials_fd;
	if (spawn->flags & AD_SPAWN_NETNS)
		fds[fd_count++] = sandbox->netns_fd;
	for (size_t i = 0; request->machine && i < request->machine->fd_count; i++)
		fds[fd_count++] = request->machine->fds[i];
	if (size > sizeof(launcher->scratch))
		return post_large(launcher, spawn, size, fds, fd_count, reterr);
	return posted(post(launcher, spawn->job, launcher->scratch,
			   ad_msg_spawn_encode(spawn, launcher->scratch), fds, fd_count),
		      reterr);
}

static uint32_t new_id(struct ad_launcher *launcher)
{
	uint32_t id;

	do {
		id = launcher->next_id++;
		if (launcher->next_id == 0)
			launcher->ids_wrapped = true;
	} while (id == 0 || find_job(launcher, id));
	return id;
}

static void fill_spawn(const struct ad_launcher *launcher, const struct ad_launch_request *request,
		       struct ad_msg_spawn *ret)
{
	static const char *const nothing[] = { NULL };
	const struct agentd_limits *limits = &request->limits;

	*ret = (struct ad_msg_spawn){
		.flags = (request->stdin_open ? AD_SPAWN_STDIN : 0) |
			 (request->merge_stderr ? AD_SPAWN_MERGE_STDERR : 0) |
			 (request->cgroup_required ? AD_SPAWN_CGROUP_REQUIRED : 0) |
			 (request->is_session ? AD_SPAWN_SESSION : 0) |
			 (request->session && request->session_credentials_fd >= 0 ?
				  AD_SPAWN_CREDENTIALS :
				  0),
		.session = request->session ? request->session->id : 0,
		.limits = {
			.memory = limits->mem_bytes,
			.pids = limits->pids_max,
			.cpu_time_ms = limits->cpu_time_ms,
			.io = limits->io_bytes,
			.file = limits->file_bytes,
			.open_files = limits->open_files_max,
			.cpu_ms_per_100ms = limits->cpu_ms_per_100ms,
		},
		.workdir = request->workdir ? request->workdir : "",
		.argv = request->is_session ? nothing : request->argv,
		.env = request->is_session ? nothing : request->env,
	};
	if (request->machine) {
		ret->flags |= AD_SPAWN_MACHINE;
		if (request->machine->small_pages)
			ret->flags |= AD_SPAWN_SMALL_PAGES;
		ret->machine = (struct ad_msg_machine){
			.uid = request->machine->uid,
			.gid = request->machine->gid,
			.fd_count = (uint32_t)request->machine->fd_count,
		};
	}
	for (unsigned int i = 0; i < AD_MSG_LIMIT_COUNT; i++) {
		if (request->limits_requested & launcher->limit_bits[i])
			ret->requested |= 1u << i;
	}
}

/* Layers without which the command must not run. Whether there is anything to do for
 * the others is the helper's to find out. */
static uint32_t layers_wanted(const struct ad_launch_sandbox *sandbox)
{
	const struct ad_profile *profile = sandbox->profile;
	uint32_t wanted = 0;

	for (unsigned int i = 0; i < AD_LAYER_COUNT; i++) {
		if (profile->strict[i] == AD_STRICT_REQUIRED)
			wanted |= 1u << i;
	}
	wanted &= ~(1u << AD_LAYER_RLIMITS | 1u << AD_LAYER_CGROUP | 1u << AD_LAYER_IDMAP);
	if (profile->host_net || sandbox->netns_fd >= 0)
		wanted &= ~(1u << AD_LAYER_NETNS);
	return wanted;
}

/* The flags for a sandbox, and its profile: *ret_memory is to be freed. */
static int fill_sandbox(const struct ad_launch_sandbox *sandbox, struct ad_msg_spawn *spawn,
			uint8_t **ret_memory, agentd_error **reterr)
{
	const struct ad_profile *profile = sandbox->profile;

	if (profile->path_count >= AD_PROFILE_PATHS_MAX ||
	    profile->name_count >= AD_PROFILE_NAMES_MAX)
		return ad_fail(reterr, AGENTD_ERR_LIMIT, NULL,
			       "more than %d paths or protected names in one sandbox",
			       AD_PROFILE_PATHS_MAX - 1);
	*ret_memory = malloc(ad_profile_size(profile));
	if (!*ret_memory)
		return ad_fail_nomem(reterr);
	spawn->profile = *ret_memory;
	spawn->profile_len = ad_profile_encode(profile, *ret_memory);
	spawn->flags |= AD_SPAWN_SANDBOX;
	if (sandbox->credentials_fd >= 0)
		spawn->flags |= AD_SPAWN_CREDENTIALS;
	if (sandbox->netns_fd >= 0)
		spawn->flags |= AD_SPAWN_NETNS;
	return 0;
}

int ad_job_start(struct ad_launcher *launcher, const struct ad_launch_request *request,
		 const struct ad_job_events *events, void *userdata, struct ad_job **ret,
		 agentd_error **reterr)
{
	ad_autofree uint8_t *profile = NULL;
	struct ad_msg_spawn spawn;
	int saved = errno, r = 0;
	struct ad_job *job;

	if (launcher->lost || launcher->shutting_down)
		return ad_fail(reterr, AGENTD_ERR_BACKEND, NULL, "%s",
			       launcher->lost ? agentd_error_message(launcher->lost) :
						"the helper is shutting down");
	if (request->session && !request->session->launcher)
		return ad_fail(reterr, AGENTD_ERR_BACKEND, NULL, "the session has ended");
	if (!request->is_session && !request->argv[0])
		return ad_fail(reterr, AGENTD_ERR_INVALID, NULL, "there is no command to start");
	job = calloc(1, sizeof(*job));
	if (!job)
		return ad_fail_nomem(reterr);
	fill_spawn(launcher, request, &spawn);
	job->id = spawn.job = new_id(launcher);
	job->launcher = launcher;
	job->merge_stderr = request->merge_stderr;
	job->stdin_open = request->stdin_open;
	job->sandboxed = request->sandbox || request->session;
	job->session = request->is_session;
	job->networked = request->sandbox && request->sandbox->profile->proxy_port != 0;
	job->layers_wanted = request->sandbox ? layers_wanted(request->sandbox) :
			     request->session ? request->session->layers_wanted :
						0;
	job->events = events;
	job->userdata = userdata;
	if (request->sandbox)
		r = fill_sandbox(request->sandbox, &spawn, &profile, reterr);
	if (r == 0)
		r = post_spawn(launcher, &spawn, request, reterr);
	errno = saved;
	if (r < 0) {
		free(job);
		return r;
	}
	ad_list_append(&launcher->buckets[job->id % BUCKETS], &job->bucket);
	ad_list_append(&launcher->jobs, &job->all);
	*ret = job;
	return 0;
}

int ad_job_kill(struct ad_job *job)
{
	int saved = errno;

	if (!job->launcher || job->launcher->lost || job->all_dead)
		return 0;
	send_kill(job->launcher, job);
	if (!job->killed_at) {
		job->killed_at = ad_sys_now_ns();
		watch_for_stuck(job->launcher, stuck_ns);
	}
	errno = saved;
	return 0;
}

int ad_job_signal(struct ad_job *job, int signo)
{
	struct ad_msg msg = { .type = AD_MSG_SIGNAL, .u.signal.signo = signo };
	uint8_t buf[AD_MSG_FIXED_MAX];
	int saved = errno, r;

	if (signo < 1 || signo > 64)
		return AGENTD_ERR_INVALID;
	if (!job->launcher || job->launcher->lost || job->state >= JOB_EXITED)
		return AGENTD_ERR_STATE;
	msg.job = job->id;
	r = posted(post(job->launcher, job->id, buf, ad_msg_encode(&msg, buf), NULL, 0), NULL);
	errno = saved;
	return r;
}

void ad_job_free(struct ad_job *job)
{
	AD_KEEP_ERRNO;

	if (!job)
		return;
	if (job->launcher && !job->launcher->lost && !job->all_dead)
		job_disown(job);
	else if (job->launcher)
		job_forget(job);
	if (job->kill_unsent)
		job->freed = true; /* until it is sent */
	else
		agentd_free(job);
}
