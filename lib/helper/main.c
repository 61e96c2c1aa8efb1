/* SPDX-License-Identifier: MIT */
/* agentd-helper: starts a supervisor per command, passes orders on, watches limits
 * that no cgroup enforces, and cleans up after whoever dies. It ends when the host
 * is gone and nothing is left. docs/helper.md has the whole picture. */
#include "helper/sandbox.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <agentd/version.h>

#include "helper/acts.h"
#include "sys/sys.h"

#define MS UINT64_C(1000000)
#define TEXT_(x) #x
#define TEXT(x) TEXT_(x)
#define VERSION_TEXT                                                                               \
	TEXT(AGENTD_VERSION_MAJOR) "." TEXT(AGENTD_VERSION_MINOR) "." TEXT(AGENTD_VERSION_PATCH)

enum {
	BUCKETS = 256,
	SLOTS_MAX = 16384, /* commands alive at once */
	FIXED_FDS = 5,     /* that are polled, besides those of templates */
	/* Tasks of a session that wait for the next command. */
	SESSION_WAITING = 2,
	/* Room that RLIMIT_NPROC, which counts all tasks of a user, leaves to others. */
	NPROC_SLACK = 4096,
	WATCH_COST_FACTOR = 20 /* never more than a twentieth of a processor */
};

static const uint64_t watch_default_ns = 250 * MS, watch_requested_ns = 50 * MS;
static const uint64_t uid_tasks_age_ns = 1000 * MS;
static const uint64_t answer_ns = 1000 * MS;     /* for a supervisor to take an order */
static const uint64_t supervisor_ns = 6000 * MS; /* and to carry it out */
static const uint64_t sweep_give_up_ns = 3000 * MS;
static const uint64_t patience_ns = 300 * MS;
static const uint64_t sweep_min_ns = 1 * MS, sweep_max_ns = 50 * MS;

enum { WATCH_MEMORY = 1, WATCH_PIDS = 2, WATCH_CPU_TIME = 4, WATCH_IO = 8 };

/* What a command that waits for its template came with. */
struct waiting {
	uid_t uid;
	gid_t gid;
	int fds[AD_SYS_FDS_MAX];
	size_t fd_count;
	bool memory_file; /* the message is in the first descriptor */
	size_t len;
	uint8_t message[];
};

struct job {
	struct ad_list by_id, by_pid, all;
	uint32_t id;
	pid_t pid; /* the supervisor; 0 before it is born and once it is reaped */
	size_t slot;
	struct leaf *leaf;
	struct ad_msg_limits limits;
	uint8_t watch; /* WATCH_* */
	bool watch_closely, killing, lost, hit;
	bool machine; /* pid is a virtual machine monitor's: there is no supervisor */
	uint64_t answer_by, over_by; /* while killing */
	int lost_status;
	/* in a sandbox */
	struct template *template;
	bool again;              /* the template before that died */
	struct waiting *waiting; /* not started yet, for the template or the supervisor */
	uint32_t net;            /* of the template's */
	int ahead; /* where one waits that was made for it before it was known, or -1 */
	struct session *session; /* it is one */
	struct job *in;          /* it runs in that session; pid is not our child */
	int pidfd;               /* then, or -1 */
	/* sums of one scan */
	uint64_t memory, tasks, cpu_ticks, io;
};

/* A sandbox without a command, and what waits in it for one. */
struct session {
	int sock;         /* to its supervisors */
	pid_t supervisor; /* that waits; 0: none does yet */
	int pidfd;        /* its own, or -1 */
	bool told;        /* that it has started */
	int network;      /* listening socket that the library is to have, or -1 */
	struct enforcement enforcement;
};

struct outgoing {
	struct outgoing *next;
	int fd; /* that goes with it, or -1 */
	size_t len;
	uint8_t data[AD_MSG_FIXED_MAX];
};

static struct {
	pid_t host;
	uid_t uid;
	bool ids_plain; /* real, effective and saved ids are the same */
	gid_t gid;
	int signal_fd, host_pidfd;
	int hello_fd; /* supervisors of sessions */
	int ended_fd; /* epoll: those that have a command, by its id */
	bool host_lost, proc_usable;
	struct ad_list by_id[BUCKETS], by_pid[BUCKETS], all;
	struct helper_shared shared;
	uint16_t free_slots[SLOTS_MAX];
	size_t free_count;
	uint32_t attempts;
	struct outgoing *out, **out_tail;
	struct proc_table table;
	/* watchdog */
	uint64_t watch_next, scan_cost, uid_tasks_at, uid_tasks;
	/* orphans of dead supervisors */
	uint64_t sweep_next, sweep_pause, sweep_give_up;
	uint8_t buf[AD_MSG_INLINE_MAX + 4096];
} h;

/* ---- messages out */

/* fd: goes with it, or -1; is taken. */
static void send_with(const struct ad_msg *msg, int fd)
{
	struct outgoing *queued = NULL;
	size_t fds = fd >= 0;
	uint8_t buf[AD_MSG_FIXED_MAX];
	size_t len = ad_msg_encode(msg, buf);

	if (!h.host_lost &&
	    (h.out || ad_sys_send(HELPER_SOCKET, buf, len, &fd, fds, MSG_DONTWAIT) == -EAGAIN)) {
		queued = malloc(sizeof(*queued));
		/* Waiting for the host is the only way left not to lose it. */
		if (!queued)
			ad_sys_send(HELPER_SOCKET, buf, len, &fd, fds, 0);
	}
	if (!queued) {
		if (fd >= 0)
			close(fd);
		return;
	}
	queued->next = NULL;
	queued->fd = fd;
	queued->len = len;
	memcpy(queued->data, buf, len);
	*h.out_tail = queued;
	h.out_tail = &queued->next;
}

static void send_msg(const struct ad_msg *msg)
{
	send_with(msg, -1);
}

static void flush(void)
{
	while (h.out) {
		struct outgoing *first = h.out;

		if (!h.host_lost && ad_sys_send(HELPER_SOCKET, first->data, first->len, &first->fd,
						first->fd >= 0, MSG_DONTWAIT) == -EAGAIN)
			return;
		if (first->fd >= 0)
			close(first->fd);
		h.out = first->next;
		if (!h.out)
			h.out_tail = &h.out;
		free(first);
	}
}

static void send_fault(uint32_t job, uint32_t stage, uint32_t index, int error, const char *text)
{
	struct ad_msg msg = { .type = AD_MSG_FAILED, .job = job };

	msg.u.failed.stage = stage;
	msg.u.failed.index = index;
	msg.u.failed.os_errno = error;
	strncpy(msg.u.failed.text, text, sizeof(msg.u.failed.text) - 1);
	send_msg(&msg);
}

static void send_failed(uint32_t job, uint32_t stage, int error, const char *text)
{
	send_fault(job, stage, 0, error, text);
}

/* ---- jobs */

static struct job *find_id(uint32_t id)
{
	const struct ad_list *head = &h.by_id[id % BUCKETS];

	for (struct ad_list *node = head->next; node != head; node = node->next) {
		struct job *job = AD_CONTAINER_OF(node, struct job, by_id);

		if (job->id == id)
			return job;
	}
	return NULL;
}

static struct job *find_pid(pid_t pid)
{
	const struct ad_list *head = &h.by_pid[(uint32_t)pid % BUCKETS];

	for (struct ad_list *node = head->next; node != head; node = node->next) {
		struct job *job = AD_CONTAINER_OF(node, struct job, by_pid);

		if (job->pid == pid)
			return job;
	}
	return NULL;
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

/* Its commands have ended before it, or never began. */
static void session_forget(struct job *job)
{
	if (!job->session)
		return;
	for (struct ad_list *node = h.all.next; node != &h.all; node = node->next) {
		struct job *other = AD_CONTAINER_OF(node, struct job, all);

		if (other->in == job)
			other->in = NULL;
	}
	close(job->session->sock);
	if (job->session->pidfd >= 0)
		close(job->session->pidfd);
	if (job->session->network >= 0)
		close(job->session->network);
	free(job->session);
}

static void job_free(struct job *job, bool leaf_reusable)
{
	ad_list_remove(&job->by_id);
	ad_list_remove(&job->by_pid);
	ad_list_remove(&job->all);
	/* Into a cgroup that cgroup.kill was ever used on nothing can be born any more by
	 * CLONE_INTO_CGROUP: the child is killed at once (seen on Linux 6.18). */
	if (job->leaf)
		cgroup_release(job->leaf,
			       leaf_reusable && !atomic_load(&h.shared.slots[job->slot].kill_seen));
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
	h.free_slots[h.free_count++] = (uint16_t)job->slot;
	free(job);
}

static struct job *job_new(uint32_t id)
{
	struct job *job = h.free_count > 0 ? calloc(1, sizeof(*job)) : NULL;

	if (!job) {
		send_failed(id, AD_STAGE_SUPERVISOR, h.free_count > 0 ? ENOMEM : EAGAIN, "");
		return NULL;
	}
	job->id = id;
	job->net = ZYGOTE_NO_NET;
	job->pidfd = job->ahead = -1;
	ad_list_init(&job->by_pid);
	ad_list_append(&h.by_id[id % BUCKETS], &job->by_id);
	ad_list_append(&h.all, &job->all);
	job->slot = h.free_slots[--h.free_count];
	memset(&h.shared.slots[job->slot], 0, sizeof(*h.shared.slots));
	atomic_store(&h.shared.slots[job->slot].granted, NO_ATTEMPT);
	return job;
}

/* One that is no child of ours may be reaped before we know of it. */
static void signal_supervisor(const struct job *job, int signo)
{
	if (job->pidfd >= 0)
		ad_sys_pidfd_signal(job->pidfd, signo);
	else
		kill(job->pid, signo);
}

/* After the order is written to the slot. */
static void ring(const struct job *job)
{
	if (job->pid > 0 && !job->machine)
		signal_supervisor(job, SIGNAL_ORDER);
}

static void job_signal(struct job *job, int signo)
{
	if (signo < 1 || signo > 64)
		return;
	if (job->machine) {
		if (job->pid > 0)
			kill(job->pid, signo);
		return;
	}
	atomic_fetch_or(&h.shared.slots[job->slot].signals_wanted, UINT64_C(1) << (signo - 1));
	ring(job);
}

/* The job may be gone afterwards. */
static void job_kill(struct job *job)
{
	if (job->waiting) {
		send_failed(job->id, AD_STAGE_REQUEST, ECANCELED, "");
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
	atomic_store(&h.shared.slots[job->slot].kill_wanted, 1);
	ring(job);
}

static void job_limit(struct job *job, enum ad_msg_limit limit)
{
	if (job->hit || job->lost)
		return;
	job->hit = true;
	if (job->machine) {
		struct ad_msg msg = { .type = AD_MSG_LIMIT, .job = job->id };

		msg.u.limit.limit = limit;
		msg.u.limit.fatal = true;
		send_msg(&msg);
	}
	atomic_store(&h.shared.slots[job->slot].limit_wanted, 1 + (uint32_t)limit);
	job_kill(job);
}

/* ---- starting */

/* Tasks of the user, roughly: RLIMIT_NPROC is a backstop. */
static uint64_t tasks_of(uid_t uid)
{
	uint64_t now = ad_sys_now_ns();

	if (h.uid_tasks_at && now - h.uid_tasks_at < uid_tasks_age_ns)
		return h.uid_tasks;
	proc_scan(&h.table, h.shared.helper);
	h.uid_tasks = 0;
	for (size_t i = 0; i < h.table.count; i++) {
		if (proc_uid(h.table.procs[i].pid) == uid)
			h.uid_tasks += h.table.procs[i].threads;
	}
	h.uid_tasks_at = now;
	return h.uid_tasks;
}

static uint8_t means_of(const struct leaf *leaf, enum cgroup_controller controller)
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
	return (uint8_t)(h.proc_usable ? AD_MSG_MEANS_WATCHDOG : without);
}

/* Decide by what each limit is enforced. */
static void plan(struct job *job, const struct ad_msg_spawn *spawn, bool use_cgroups,
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
	if (!h.proc_usable)
		job->watch = 0;
	for (int i = 0; i < AD_MSG_LIMIT_COUNT; i++) {
		if ((spawn->requested & (1u << i)) && (job->watch & (1u << i)))
			job->watch_closely = true;
	}
}

/* A limit that must be a cgroup's is refused where it cannot be. */
static bool check_plan(struct job *job, const struct ad_msg_spawn *spawn,
		       const struct enforcement *enforcement)
{
	if (!spawn->limits.cpu_ms_per_100ms || enforcement->receipt.cpu ||
	    !(spawn->flags & AD_SPAWN_CGROUP_REQUIRED))
		return true;
	send_failed(job->id, AD_STAGE_LIMIT, 0, "cpu_ms_per_100ms");
	job_free(job, true);
	return false;
}

static void watch_soon(const struct job *job)
{
	uint64_t at = ad_sys_now_ns() +
		      (job->watch_closely ? watch_requested_ns : watch_default_ns);

	if (job->watch && (h.watch_next == 0 || h.watch_next > at))
		h.watch_next = at;
}

/* Others than the helper need none of what is only its own. */
static void close_ours(void)
{
	close(h.signal_fd);
	if (h.host_pidfd >= 0)
		close(h.host_pidfd);
	close(h.hello_fd);
	close(h.ended_fd);
	warm_close_ours();
	for (struct ad_list *node = h.all.next; node != &h.all; node = node->next) {
		const struct job *job = AD_CONTAINER_OF(node, struct job, all);

		if (job->session)
			close(job->session->sock);
	}
}

static void started(struct job *job, pid_t pid)
{
	job->pid = pid;
	ad_list_append(&h.by_pid[(uint32_t)pid % BUCKETS], &job->by_pid);
	watch_soon(job);
}

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
		.slot = &h.shared.slots[job->slot],
		.leaf = job->leaf,
		.counted = job->leaf ? job->leaf->counted : (struct cgroup_counters){ 0 },
		.enforcement = request->enforcement,
		.set_ids = request->set_ids,
		.helper = h.shared.helper,
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
		.slot = (uint32_t)job->slot,
		.spawn_fd = memory_file,
		.set_ids = !h.ids_plain || from->uid != h.uid || from->gid != h.gid,
	};
	pid_t pid = take_ahead(job, spawn, true);

	/* Not what we may: what the host may now. */
	request.enforcement.receipt.uid = from->uid;
	request.enforcement.receipt.gid = from->gid;
	plan(job, spawn, true, &request.enforcement);
	if (!check_plan(job, spawn, &request.enforcement))
		return;
	if (pid <= 0 || !tell_ahead(job, &request, from, memory_file))
		pid = fork_supervisor(job, spawn, &request);
	if (pid < 0) {
		send_failed(job->id, AD_STAGE_SUPERVISOR, errno, "");
		job_free(job, true);
		return;
	}
	started(job, pid);
	warm_want(NULL, &spawn->limits, true, 1);
}

/* ---- starting a virtual machine monitor */

/* What it has to say comes by `output`. */
static void machine_started(const struct job *job, const struct enforcement *enforcement,
			    int output)
{
	struct ad_msg msg = { .type = AD_MSG_STARTED, .job = job->id };

	msg.u.started.pid = job->pid;
	msg.u.started.receipt = enforcement->receipt;
	send_with(&msg, output);
}

static void start_machine(struct job *job, const struct ad_msg_spawn *spawn,
			  const struct ad_sys_msg *from, bool memory_file)
{
	const int *fds = from->fds + (memory_file ? 1 : 0);
	size_t expected = spawn->machine.fd_count + (memory_file ? 1 : 0);
	struct enforcement enforcement = { 0 };
	/* Only root may become another; and nobody else needs to. */
	bool set_ids = h.uid == 0 || !h.ids_plain;
	const char *text = "";
	uint32_t stage = AD_STAGE_LAYER;
	int output, abi = landlock_abi(), landlock = -1;
	pid_t pid;

	if (from->fds_lost || from->fd_count != expected ||
	    (set_ids && (spawn->machine.uid == 0 || spawn->machine.gid == 0))) {
		send_failed(job->id, AD_STAGE_REQUEST, from->fds_lost ? EMFILE : EBADMSG, "");
		job_free(job, true);
		return;
	}
	job->machine = true;
	enforcement.receipt.uid = set_ids ? spawn->machine.uid : h.uid;
	enforcement.receipt.gid = set_ids ? spawn->machine.gid : h.gid;
	plan(job, spawn, true, &enforcement);
	if (!check_plan(job, spawn, &enforcement))
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
		send_failed(job->id, stage, -pid, text);
		job_free(job, true);
		return;
	}
	started(job, pid);
	machine_started(job, &enforcement, output);
}

/* ---- starting in a sandbox */

/* Do cgroups enforce all that they could? */
static bool cgroups_cover(const struct ad_msg_limits *limits, const struct leaf *leaf)
{
	return (!limits->memory || means_of(leaf, CG_MEMORY)) &&
	       (!limits->pids || means_of(leaf, CG_PIDS)) &&
	       (!limits->cpu_ms_per_100ms || means_of(leaf, CG_CPU));
}

/* False: the job failed. */
static bool plan_sandbox(struct job *job, const struct ad_msg_spawn *spawn, uint8_t strictness,
			 struct enforcement *ret)
{
	struct ad_msg_receipt *receipt = &ret->receipt;

	*receipt = *template_layers(job->template);
	plan(job, spawn, strictness != AD_STRICT_OFF, ret);
	if (!check_plan(job, spawn, ret))
		return false;
	if (strictness == AD_STRICT_OFF)
		return true;
	if (cgroups_cover(&spawn->limits, job->leaf)) {
		receipt->layers[AD_LAYER_CGROUP] = AD_MSG_LAYER_ENFORCED;
		return true;
	}
	if (strictness == AD_STRICT_REQUIRED) {
		send_fault(job->id, AD_STAGE_LAYER, AD_LAYER_CGROUP, EOPNOTSUPP, "no controller");
		job_free(job, true);
		return false;
	}
	receipt->layers[AD_LAYER_CGROUP] = AD_MSG_LAYER_DEGRADED;
	receipt->layer_errno[AD_LAYER_CGROUP] = EOPNOTSUPP;
	return true;
}

/* Descriptors that came with the message, without the network namespace, which the
 * template has. */
static size_t own_fds(const struct ad_msg_spawn *spawn, const struct ad_sys_msg *from)
{
	return from->fd_count - ((spawn->flags & AD_SPAWN_NETNS) ? 1 : 0);
}

/* The supervisor that waits in a session gets a command: its pid or a negative errno. */
static pid_t ask_session(struct session *session, const struct request *request,
			 const struct ad_sys_msg *from)
{
	pid_t pid = session->supervisor;
	int r = request_send(session->sock, request, from, from->fds, from->fd_count);

	if (r < 0)
		return r;
	session->supervisor = 0;
	return pid;
}

/* NO_ATTEMPT: it failed. */
static void grant(const struct job *job, uint32_t attempt)
{
	struct slot *slot = &h.shared.slots[job->slot];

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
	if (++h.attempts == NO_ATTEMPT)
		h.attempts = 1;
	request->attempt = h.attempts;
	atomic_store(&h.shared.slots[job->slot].granted, 0);
	r = request_add_leaf(request, job->leaf, &entry, fds, &fd_count);
	if (r == 0)
		r = template_clone(job->template, request, from, fds, fd_count, &job->net);
	grant(job, r > 0 ? request->attempt : NO_ATTEMPT);
	cgroup_close_entry(&entry);
	return r;
}

/* *ret_end is the session's end of its socket. */
static bool session_make(struct job *job, const struct enforcement *enforcement, int *ret_end)
{
	int pair[2], r = ad_sys_pair(pair);

	if (r < 0) {
		errno = -r;
		return false;
	}
	job->session = calloc(1, sizeof(*job->session));
	if (!job->session) {
		close(pair[0]);
		close(pair[1]);
		return false;
	}
	job->session->sock = pair[0];
	job->session->pidfd = job->session->network = -1;
	job->session->enforcement = *enforcement;
	*ret_end = pair[1];
	return true;
}

/* The template is ready, or cannot be. -EPIPE: its zygote died, and the job is as it was. */
static int start_in_template(struct job *job, const struct ad_msg_spawn *spawn,
			     const struct ad_sys_msg *from, bool memory_file)
{
	struct request request = {
		.slot = (uint32_t)job->slot,
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
		send_fault(job->id, fault->stage, fault->index, fault->error, fault->text);
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
		send_failed(job->id, AD_STAGE_SUPERVISOR, errno, "");
		job_free(job, true);
		return 0;
	}
	if (pid <= 0 || !tell_ahead(job, &request, from, own_fds(spawn, from)))
		pid = start_anew(job, &request, from, own_fds(spawn, from), session_end);
	if (session_end >= 0)
		close(session_end);
	if (pid > 0) {
		started(job, pid);
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
	send_failed(job->id, AD_STAGE_SUPERVISOR, -pid, "");
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

/* ---- starting in a session */

/* What is left of it would run on without anybody to watch over it. */
static void session_break(struct job *job)
{
	if (job->killing)
		return;
	job->lost = true;
	job_kill(job);
}

static bool is_open(const struct job *session)
{
	return session && session->session && session->session->told && !session->killing &&
	       !session->lost;
}

/* Its supervisor waits. */
static void start_in_supervisor(struct job *job, const struct ad_msg_spawn *spawn,
				const struct ad_sys_msg *from, bool memory_file)
{
	const struct ad_msg_receipt *of_session = &job->in->session->enforcement.receipt;
	struct request request = {
		.slot = (uint32_t)job->slot,
		.spawn_fd = memory_file,
		.credentials = (spawn->flags & AD_SPAWN_CREDENTIALS) != 0,
		.enforcement = { .receipt = *of_session },
	};
	pid_t pid;

	plan(job, spawn, false, &request.enforcement);
	if (!check_plan(job, spawn, &request.enforcement))
		return;
	pid = ask_session(job->in->session, &request, from);
	if (pid > 0) {
		struct epoll_event event = { .events = EPOLLIN, .data.u32 = job->id };

		job->pidfd = ad_steal_fd(&job->in->session->pidfd);
		started(job, pid);
		/* Nobody would hear of its end. */
		if (epoll_ctl(h.ended_fd, EPOLL_CTL_ADD, job->pidfd, &event) < 0)
			session_break(job->in);
		return;
	}
	/* Nobody has its end of the socket any more. */
	if (pid == -EPIPE || pid == -ECONNRESET)
		send_failed(job->id, AD_STAGE_REQUEST, ESRCH, "");
	else
		send_failed(job->id, AD_STAGE_SUPERVISOR, -pid, "");
	job_free(job, true);
}

/* Else it makes its next supervisor when the command before has had its time. */
static void hurry_session(const struct job *session)
{
	atomic_store(&h.shared.slots[session->slot].command_waits, 1);
	ring(session);
}

static void start_in_session(struct job *job, const struct ad_msg_spawn *spawn,
			     struct ad_sys_msg *from, bool memory_file)
{
	struct job *session = find_id(spawn->session);
	size_t expected = (size_t)memory_file + ((spawn->flags & AD_SPAWN_CREDENTIALS) ? 1 : 0);
	int error = 0;

	if (from->fds_lost || from->fd_count != expected)
		error = from->fds_lost ? EMFILE : EBADMSG;
	else if (!is_open(session))
		error = ESRCH;
	if (!error) {
		job->in = session;
		if (session->session->supervisor) {
			start_in_supervisor(job, spawn, from, memory_file);
			return;
		}
		if (!wait_for_template(job, from, memory_file))
			error = ENOMEM;
		else
			hurry_session(session);
	}
	if (error) {
		send_failed(job->id, AD_STAGE_REQUEST, error, "");
		job_free(job, true);
	}
}

/* With another zygote, once. False: the job failed. */
static bool try_again(struct job *job)
{
	if (job->again) {
		send_failed(job->id, AD_STAGE_SUPERVISOR, EPIPE, "");
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
	size_t expected = (size_t)memory_file + join +
			  ((spawn->flags & AD_SPAWN_CREDENTIALS) ? 1 : 0);

	if (from->fds_lost || from->fd_count != expected) {
		send_failed(job->id, AD_STAGE_REQUEST, from->fds_lost ? EMFILE : EBADMSG, "");
		job_free(job, true);
		return;
	}
	/* A zygote that died is noticed by those who need it: nothing of them has run. */
	for (;;) {
		job->template = template_get(spawn, from->uid, from->gid,
					     join ? from->fds[from->fd_count - 1] : -1);
		if (!job->template) {
			send_failed(job->id, AD_STAGE_SUPERVISOR, errno, "");
			job_free(job, true);
			return;
		}
		if (template_state(job->template) == TEMPLATE_BUILDING) {
			if (wait_for_template(job, from, memory_file))
				return;
			send_failed(job->id, AD_STAGE_REQUEST, ENOMEM, "");
			job_free(job, true);
			return;
		}
		if (start_in_template(job, spawn, from, memory_file) != -EPIPE)
			return;
		if (!try_again(job))
			return;
	}
}

/* ---- the message that starts a command */

static void start_job(const struct ad_msg_spawn *spawn, struct ad_sys_msg *from, bool memory_file)
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

static void start_from_fd(struct ad_sys_msg *in, uint32_t id)
{
	int r = in->fds_lost ? -EMFILE : in->fd_count > 0 ? 0 : -EBADMSG;
	struct ad_msg_spawn spawn;
	const uint8_t *bytes = NULL;
	size_t len = 0;

	if (r == 0)
		r = map_message(in->fds[0], &bytes, &len);
	if (r < 0) {
		send_failed(id, AD_STAGE_REQUEST, -r, "");
		return;
	}
	if (ad_msg_spawn_decode(&spawn, bytes, len) && spawn.job == id && !find_id(id))
		start_job(&spawn, in, true);
	else
		send_failed(id, AD_STAGE_REQUEST, EBADMSG, "");
	munmap((void *)(uintptr_t)bytes, len);
}

/* Its template is not being made any more. What was checked before is as it was. */
static void resume(struct job *job)
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
		start_in_supervisor(job, &spawn, &from, waiting->memory_file);
	else if (r == 0)
		r = start_in_template(job, &spawn, &from, waiting->memory_file);
	if (r == -EPIPE && try_again(job)) {
		start_in_sandbox(job, &spawn, &from, waiting->memory_file);
	} else if (r < 0 && r != -EPIPE) {
		send_failed(job->id, AD_STAGE_REQUEST, -r, "");
		job_free(job, true);
	}
	if (waiting->memory_file && bytes != waiting->message)
		munmap((void *)(uintptr_t)bytes, len);
	ad_sys_msg_close(&from);
	free(waiting);
}

static void resume_all(void)
{
	for (struct ad_list *node = h.all.next, *next; node != &h.all; node = next) {
		struct job *job = AD_CONTAINER_OF(node, struct job, all);

		next = node->next;
		if (job->waiting && job->template &&
		    template_state(job->template) != TEMPLATE_BUILDING)
			resume(job);
	}
}

/* ---- what happens in sessions */

/* Whoever waited longest. */
static struct job *first_waiting_in(const struct job *session)
{
	for (struct ad_list *node = h.all.next; node != &h.all; node = node->next) {
		struct job *job = AD_CONTAINER_OF(node, struct job, all);

		if (job->waiting && job->in == session)
			return job;
	}
	return NULL;
}

static void resume_in(const struct job *session)
{
	struct job *job = first_waiting_in(session);

	if (job)
		resume(job);
	if (job && first_waiting_in(session))
		hurry_session(session);
}

static void session_started(struct job *job)
{
	struct ad_msg msg = { .type = AD_MSG_STARTED, .job = job->id };

	job->session->told = true;
	msg.u.started.pid = job->pid;
	msg.u.started.receipt = job->session->enforcement.receipt;
	msg.u.started.flags = job->session->network >= 0 ? AD_STARTED_NETWORK : 0;
	send_with(&msg, ad_steal_fd(&job->session->network));
}

static struct job *session_by_slot(uint32_t slot)
{
	for (struct ad_list *node = h.all.next; node != &h.all; node = node->next) {
		struct job *job = AD_CONTAINER_OF(node, struct job, all);

		if (job->session && job->slot == slot)
			return job;
	}
	return NULL;
}

static void on_hello(struct job *job, struct ad_sys_msg *in)
{
	struct session *session = job->session;

	session->pidfd = ad_sys_pidfd(in->pid);
	if (session->pidfd < 0 || in->fds_lost) {
		session_break(job);
		return;
	}
	session->supervisor = in->pid;
	if (in->fd_count > 0 && !session->told)
		session->network = ad_steal_fd(&in->fds[0]);
	if (!session->told)
		session_started(job);
	resume_in(job);
}

static void read_hello(void)
{
	struct session_hello hello;
	struct ad_sys_msg in = { .data = &hello, .cap = sizeof(hello) };
	struct job *job;

	while (ad_sys_recv(h.hello_fd, &in, MSG_DONTWAIT) > 0) {
		job = in.len == sizeof(hello) && in.has_creds ? session_by_slot(hello.slot) : NULL;
		if (job && !job->killing)
			on_hello(job, &in);
		ad_sys_msg_close(&in);
	}
}

/* All there is to report was reported. */
static bool is_over(const struct job *job)
{
	return atomic_load(&h.shared.slots[job->slot].over);
}

/* The supervisor of a command in a session has ended. */
static void supervisor_ended(struct job *job)
{
	if (is_over(job)) {
		job_free(job, false);
		return;
	}
	/* Its tree is pid 1's of the session now, one among others; with that it fails. */
	epoll_ctl(h.ended_fd, EPOLL_CTL_DEL, job->pidfd, NULL);
	ad_list_remove(&job->by_pid);
	job->pid = 0;
	session_break(job->in);
}

static void read_ended(void)
{
	struct epoll_event events[16];
	int count = epoll_wait(h.ended_fd, events, AD_COUNT(events), 0);

	for (int i = 0; i < count; i++) {
		struct job *job = find_id(events[i].data.u32);

		if (job && job->in)
			supervisor_ended(job);
	}
}

/* The kernel resets a socket whose other end is closed for good with something unread in it. */
static bool was_reset(int sock)
{
	int error = 0;
	socklen_t len = sizeof(error);

	return getsockopt(sock, SOL_SOCKET, SO_ERROR, &error, &len) == 0 && error == ECONNRESET;
}

static void session_over(struct job *job, int status)
{
	struct ad_msg msg = { .type = AD_MSG_CLOSED, .job = job->id };
	bool over = WIFEXITED(status) && WEXITSTATUS(status) == SUPERVISOR_SESSION_OVER;
	/* There is one request at a time, and all of its processes are dead. */
	bool unread = was_reset(job->session->sock);

	for (struct ad_list *node = h.all.next, *next; node != &h.all; node = next) {
		struct job *other = AD_CONTAINER_OF(node, struct job, all);

		next = node->next;
		if (other->in != job)
			continue;
		if (other->waiting || (unread && !is_over(other)))
			send_failed(other->id, AD_STAGE_REQUEST, ESRCH, "");
		else if (!is_over(other))
			send_failed(other->id, AD_STAGE_LOST, 0, "");
		job_free(other, other->waiting);
	}
	if (!job->session->told)
		send_failed(job->id, job->killing ? AD_STAGE_REQUEST : AD_STAGE_LOST,
			    job->killing ? ECANCELED : 0, "");
	else if (!job->lost && (over || job->killing))
		send_msg(&msg);
	else
		send_failed(job->id, AD_STAGE_LOST, 0, "the session's processes were killed");
	job_free(job, false);
}

/* ---- messages in */

static void host_is_lost(void)
{
	if (h.host_lost)
		return;
	h.host_lost = true;
	flush();
	warm_end();
	for (struct ad_list *node = h.all.next, *next; node != &h.all; node = next) {
		next = node->next;
		job_kill(AD_CONTAINER_OF(node, struct job, all));
	}
}

static void handle(struct ad_sys_msg *in)
{
	struct ad_msg_spawn spawn;
	struct ad_msg msg;
	struct job *job;

	if (ad_msg_peek(in->data, in->len) == AD_MSG_SPAWN) {
		if (ad_msg_spawn_decode(&spawn, in->data, in->len) && !find_id(spawn.job))
			start_job(&spawn, in, false);
		else
			host_is_lost();
		return;
	}
	/* Whoever sends what the library does not is not served any further. */
	if (!ad_msg_decode(&msg, in->data, in->len)) {
		host_is_lost();
		return;
	}
	job = find_id(msg.job);
	switch (msg.type) {
	case AD_MSG_SPAWN_FD:
		start_from_fd(in, msg.job);
		break;
	case AD_MSG_KILL:
		if (job)
			job_kill(job);
		break;
	case AD_MSG_SIGNAL:
		if (job)
			job_signal(job, msg.u.signal.signo);
		break;
	default:
		host_is_lost();
		break;
	}
}

static void read_socket(void)
{
	/* Bounded, so that a flood of starts delays neither the dead nor the timers. */
	for (int i = 0; i < 16 && !h.host_lost; i++) {
		struct ad_sys_msg in = { .data = h.buf, .cap = sizeof(h.buf) };
		int r = ad_sys_recv(HELPER_SOCKET, &in, MSG_DONTWAIT);

		if (r == -EAGAIN)
			return;
		if (r <= 0) {
			host_is_lost();
			return;
		}
		/* A child that the host forked has the socket too, but no say. */
		if (in.has_creds && in.pid == h.host)
			handle(&in);
		ad_sys_msg_close(&in);
	}
}

/* ---- the dead */

static void sweep_begin(void)
{
	uint64_t now = ad_sys_now_ns();

	h.sweep_pause = sweep_min_ns;
	h.sweep_next = now;
	h.sweep_give_up = now + sweep_give_up_ns;
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
	usage->cpu_ns = (uint64_t)(rusage->ru_utime.tv_sec + rusage->ru_stime.tv_sec) * 1000 * MS +
			(uint64_t)(rusage->ru_utime.tv_usec + rusage->ru_stime.tv_usec) * 1000;
	usage->memory_peak = (uint64_t)rusage->ru_maxrss * 1024;
	if (job->leaf) {
		cgroup_count(job->leaf, NULL, &counters);
		job->leaf->counted = counters;
	}
	send_msg(&msg);
	job_free(job, true);
}

static void reap(void)
{
	struct signalfd_siginfo drain[16];
	struct rusage usage;
	int status;
	pid_t pid;

	while (read(h.signal_fd, drain, sizeof(drain)) > 0)
		;
	while ((pid = wait4(-1, &status, WNOHANG | __WALL, &usage)) > 0) {
		struct job *job = find_pid(pid);

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
				job->leaf->counted = h.shared.slots[job->slot].counted;
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
	return find_pid(pid) || getsid(pid) == getsid(0);
}

/* Kill what supervisors that died have left to us; say so when it is gone. */
static void sweep(void)
{
	uint64_t now = ad_sys_now_ns();
	size_t alive = proc_kill_tree(h.shared.helper, is_ours, patience_ns);

	if (h.sweep_pause < sweep_max_ns)
		h.sweep_pause *= 2;
	h.sweep_next = now + h.sweep_pause;
	if (alive > 0 && now < h.sweep_give_up)
		return;
	h.sweep_next = 0;
	for (struct ad_list *node = h.all.next, *next; node != &h.all; node = next) {
		struct job *job = AD_CONTAINER_OF(node, struct job, all);

		next = node->next;
		/* A session that is broken is still there, and its end says so. */
		if (!job->lost || job->pid > 0)
			continue;
		send_failed(job->id, AD_STAGE_LOST, 0,
			    WIFSIGNALED(job->lost_status) ? strsignal(WTERMSIG(job->lost_status)) :
							    "exited");
		job_free(job, false);
	}
}

/* ---- supervisors that do not obey */

static uint64_t check_supervisors(uint64_t now)
{
	uint64_t next = UINT64_MAX;

	for (struct ad_list *node = h.all.next; node != &h.all; node = node->next) {
		struct job *job = AD_CONTAINER_OF(node, struct job, all);
		uint64_t due;

		if (!job->killing || job->pid <= 0)
			continue;
		due = atomic_load(&h.shared.slots[job->slot].kill_seen) ? job->over_by :
									  job->answer_by;
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

/* ---- the watchdog */

/* Below a session's pid 1: the supervisor it descends from, else pid 1 itself. */
static struct job *job_of(const struct proc *proc)
{
	struct job *job = proc->top ? find_pid(proc->top) : NULL, *nearest = NULL;

	while (job && job->session && proc && proc->pid != proc->top && !nearest) {
		nearest = find_pid(proc->pid);
		proc = proc_find(&h.table, proc->ppid);
	}
	return nearest ? nearest : job;
}

static void add_up(void)
{
	for (struct ad_list *node = h.all.next; node != &h.all; node = node->next) {
		struct job *job = AD_CONTAINER_OF(node, struct job, all);

		job->memory = job->tasks = job->cpu_ticks = 0;
		job->io = atomic_load(&h.shared.slots[job->slot].io_reaped);
	}
	for (size_t i = 0; i < h.table.count; i++) {
		const struct proc *proc = &h.table.procs[i];
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
	for (size_t i = 0; i < h.table.count; i++) {
		const struct proc *proc = &h.table.procs[i];
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
	return (uint64_t)now.tv_sec * 1000 * MS + (uint64_t)now.tv_nsec;
}

static void watch(void)
{
	uint64_t begin = own_time_ns(), cost, interval = watch_default_ns;
	bool any = false, need_scan = false;

	for (struct ad_list *node = h.all.next; node != &h.all; node = node->next) {
		const struct job *job = AD_CONTAINER_OF(node, struct job, all);

		if (!job->watch || job->lost)
			continue;
		any = true;
		if (job->watch_closely)
			interval = watch_requested_ns;
		if (job->watch != WATCH_CPU_TIME || means_of(job->leaf, CG_KILL) == 0)
			need_scan = true;
	}
	h.watch_next = 0;
	if (!any)
		return;
	if (need_scan) {
		proc_scan(&h.table, h.shared.helper);
		add_up();
	}
	for (struct ad_list *node = h.all.next; node != &h.all; node = node->next) {
		struct job *job = AD_CONTAINER_OF(node, struct job, all);

		if (job->watch && !job->lost)
			check_limits(job);
	}
	if (need_scan)
		kill_seen();
	cost = (own_time_ns() - begin) * WATCH_COST_FACTOR;
	h.watch_next = ad_sys_now_ns() + (cost > interval ? cost : interval);
}

/* ---- life */

static int timeout_ms(uint64_t now)
{
	uint64_t next = check_supervisors(now), template = template_next(), warm = warm_next(),
		 left;

	if (h.watch_next && h.watch_next < next)
		next = h.watch_next;
	if (h.sweep_next && h.sweep_next < next)
		next = h.sweep_next;
	if (template <next)
		next = template;
	if (warm < next)
		next = warm;
	if (next == UINT64_MAX)
		return -1;
	left = next > now ? next - now : 0;
	return (int)((left + MS - 1) / MS);
}

static void run(void)
{
	while (!h.host_lost || !ad_list_empty(&h.all) || h.sweep_next || warm_any()) {
		struct pollfd fds[FIXED_FDS + TEMPLATES_MAX] = {
			{ .fd = h.signal_fd, .events = POLLIN },
			{ .fd = h.host_lost ? -1 : HELPER_SOCKET,
			  .events = (short)(h.out ? POLLIN | POLLOUT : POLLIN) },
			{ .fd = h.host_lost ? -1 : h.host_pidfd, .events = POLLIN },
			{ .fd = h.hello_fd, .events = POLLIN },
			{ .fd = h.ended_fd, .events = POLLIN },
		};
		int templates[TEMPLATES_MAX];
		size_t count = template_poll_fds(templates);
		uint64_t now;

		for (size_t i = 0; i < count; i++)
			fds[FIXED_FDS + i] = (struct pollfd){ .fd = templates[i],
							      .events = POLLIN };
		if (poll(fds, FIXED_FDS + count, timeout_ms(ad_sys_now_ns())) < 0)
			continue;
		if (fds[4].revents)
			read_ended();
		if (fds[3].revents)
			read_hello();
		if (fds[0].revents)
			reap();
		if (fds[2].revents)
			host_is_lost();
		if (fds[1].revents & POLLOUT)
			flush();
		if (fds[1].revents & ~POLLOUT)
			read_socket();
		now = ad_sys_now_ns();
		if (template_step(now))
			resume_all();
		warm_step(now);
		if (h.sweep_next && now >= h.sweep_next)
			sweep();
		if (h.watch_next && now >= h.watch_next)
			watch();
	}
}

static void hello(void)
{
	struct ad_msg msg = { .type = AD_MSG_HELLO };
	struct ad_msg_receipt *best = &msg.u.hello.best;

	msg.u.hello.pid = h.shared.helper;
	strcpy(msg.u.hello.version, VERSION_TEXT);
	best->memory = (uint8_t)cgroup_means(CG_MEMORY);
	best->pids = (uint8_t)cgroup_means(CG_PIDS);
	best->cpu = (uint8_t)cgroup_means(CG_CPU);
	best->tree_kill = (uint8_t)cgroup_means(CG_KILL);
	if (!best->memory)
		best->memory = watched(AD_MSG_MEANS_RLIMIT);
	if (!best->pids)
		best->pids = watched(h.uid ? AD_MSG_MEANS_RLIMIT : AD_MSG_MEANS_NONE);
	if (!best->tree_kill)
		best->tree_kill = watched(AD_MSG_MEANS_NONE);
	best->cpu_time = watched(AD_MSG_MEANS_RLIMIT);
	best->io = watched(AD_MSG_MEANS_NONE);
	best->uid = h.uid;
	best->gid = h.gid;
	send_msg(&msg);
}

/* 0 to 2 on /dev/null, whatever they were; everything we open is then above. */
static bool plain_stdio(void)
{
	int fd;

	do {
		fd = open("/dev/null", O_RDWR | O_CLOEXEC);
	} while (fd >= 0 && fd <= STDERR_FILENO);
	if (fd < 0)
		return false;
	for (int i = 0; i <= STDERR_FILENO; i++) {
		if (dup2(fd, i) < 0)
			return false;
	}
	close(fd);
	return true;
}

static bool find_host(void)
{
	struct ucred peer;
	socklen_t len = sizeof(peer);
	int type = 0;
	socklen_t type_len = sizeof(type);

	if (getsockopt(HELPER_SOCKET, SOL_SOCKET, SO_TYPE, &type, &type_len) < 0 ||
	    type != SOCK_SEQPACKET ||
	    getsockopt(HELPER_SOCKET, SOL_SOCKET, SO_PEERCRED, &peer, &len) < 0 ||
	    ad_sys_pass_creds(HELPER_SOCKET) < 0)
		return false;
	h.host = peer.pid;
	fcntl(HELPER_SOCKET, F_SETFD, FD_CLOEXEC);
	/* The host gave one of itself, if the kernel can. */
	h.host_pidfd = fcntl(HELPER_HOST_PIDFD, F_SETFD, FD_CLOEXEC) == 0 ? HELPER_HOST_PIDFD : -1;
	return true;
}

static bool init(void)
{
	uint64_t old;
	sigset_t chld;
	uid_t ruid, euid, suid;
	gid_t rgid, egid, sgid;
	int hello[2];

	ad_sys_block_signals(&old);
	ad_sys_default_signals();
	if (!plain_stdio() || chdir("/") < 0 || !find_host())
		return false;
	if (prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) < 0 ||
	    prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) < 0 || getresuid(&ruid, &euid, &suid) < 0 ||
	    getresgid(&rgid, &egid, &sgid) < 0)
		return false;
	h.shared.helper = getpid();
	h.uid = ruid;
	h.gid = rgid;
	h.ids_plain = ruid == euid && ruid == suid && rgid == egid && rgid == sgid;
	sigemptyset(&chld);
	sigaddset(&chld, SIGCHLD);
	h.signal_fd = signalfd(-1, &chld, SFD_CLOEXEC | SFD_NONBLOCK);
	h.shared.slots = mmap(NULL, sizeof(*h.shared.slots) * SLOTS_MAX, PROT_READ | PROT_WRITE,
			      MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (h.signal_fd < 0 || h.shared.slots == MAP_FAILED)
		return false;
	for (size_t i = 0; i < SLOTS_MAX; i++)
		h.free_slots[h.free_count++] = (uint16_t)(SLOTS_MAX - 1 - i);
	for (size_t i = 0; i < BUCKETS; i++) {
		ad_list_init(&h.by_id[i]);
		ad_list_init(&h.by_pid[i]);
	}
	ad_list_init(&h.all);
	h.out_tail = &h.out;
	h.shared.helper_pidfd = ad_sys_pidfd(h.shared.helper);
	if (ad_sys_pair(hello) < 0 || ad_sys_pass_creds(hello[0]) < 0)
		return false;
	h.hello_fd = hello[0];
	h.shared.sessions = hello[1];
	h.ended_fd = epoll_create1(EPOLL_CLOEXEC);
	if (h.ended_fd < 0)
		return false;
	template_init(&h.shared, h.uid, close_ours);
	warm_init(&h.shared, close_ours);
	h.proc_usable = proc_usable();
	cgroup_init();
	return true;
}

int main(int argc, char **argv)
{
	if (argc > 1 && strcmp(argv[1], "try") == 0)
		acts_run(argc - 2, argv + 2);
	if (!init())
		return 1;
	hello();
	run();
	template_close_all();
	cgroup_cleanup();
	return 0;
}
