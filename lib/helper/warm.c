/* SPDX-License-Identifier: MIT */
/* Supervisors that are there before their command, and in sandboxes reapers: with its
 * process, which has entered its control groups and is confined. The last commands of a
 * kind tell what the next one will need; one with other limits has another made. */
#include "helper/sandbox.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

/* The making of the next one takes a processor from the command that was just started, from
 * its supervisor and from the host program: it waits until a short one is over. Nor is more than
 * one needed before. */
static const uint64_t pause_ns = 20 * AD_NS_PER_MS;
/* Where commands follow each other so closely, the next one is asked for before that. */
static const uint64_t burst_ns = 50 * AD_NS_PER_MS;

enum { WANTED_MAX = 64 };

/* Of one template, or of the host. */
struct kind {
	struct ad_list link;
	struct template *template;
	struct ad_msg_limits limits; /* of the last command */
	bool cgroups;
	size_t wanted;
	uint64_t asked; /* when that was */
	uint64_t due;   /* UINT64_MAX: there are enough */
};

struct warm {
	struct ad_list link;
	struct template *template; /* NULL: the host's, or the template is gone */
	bool dismissed, ready;
	struct warm_one one; /* pid 0: its zygote has not answered yet */
};

static struct {
	const struct helper_shared *shared;
	struct ad_list kinds, all;
	bool ended;
} w;

void warm_init(const struct helper_shared *shared)
{
	w.shared = shared;
	ad_list_init(&w.kinds);
	ad_list_init(&w.all);
}

/* The current one may be freed. */
#define EACH_WARM(each)                                                                            \
	for (struct ad_list *node = w.all.next, *after;                                            \
	     node != &w.all &&                                                                     \
	     (after = node->next, (each) = AD_CONTAINER_OF(node, struct warm, link), true);        \
	     node = after)

void warm_close_ours(void)
{
	struct warm *warm;

	EACH_WARM(warm)
	{
		if (warm->one.sock >= 0)
			close(warm->one.sock);
	}
}

/* ---- their end */

/* It sees that nobody is there, and ends. */
static void dismiss(struct warm *warm)
{
	warm->dismissed = true;
	if (warm->one.sock >= 0)
		close(ad_steal_fd(&warm->one.sock));
}

/* It is dead, or never was. */
static void warm_free(struct warm *warm)
{
	dismiss(warm);
	if (warm->one.leaf)
		cgroup_release(warm->one.leaf, true);
	if (warm->template && warm->one.net != ZYGOTE_NO_NET)
		template_net_free(warm->template, warm->one.net);
	ad_list_remove(&warm->link);
	free(warm);
}

static struct kind *find_kind(const struct template *template)
{
	for (struct ad_list *node = w.kinds.next; node != &w.kinds; node = node->next) {
		struct kind *kind = AD_CONTAINER_OF(node, struct kind, link);

		if (kind->template == template)
			return kind;
	}
	return NULL;
}

void warm_forget(const struct template *template)
{
	struct kind *kind = find_kind(template);
	struct warm *warm;

	if (kind) {
		ad_list_remove(&kind->link);
		free(kind);
	}
	EACH_WARM(warm)
	{
		if (warm->template != template)
			continue;
		warm->template = NULL;
		dismiss(warm);
		if (warm->one.pid == 0)
			warm_free(warm);
	}
}

bool warm_reaped(pid_t pid)
{
	struct warm *warm;

	EACH_WARM(warm)
	{
		if (warm->one.pid == pid) {
			warm_free(warm);
			return true;
		}
	}
	return false;
}

void warm_end(void)
{
	struct warm *warm;

	w.ended = true;
	EACH_WARM(warm)
	dismiss(warm);
}

bool warm_any(void)
{
	return !ad_list_empty(&w.all);
}

/* ---- their beginning */

/* Takes sock and leaf. */
static struct warm *warm_new(const struct kind *kind, int sock, struct leaf *leaf)
{
	struct warm *warm = calloc(1, sizeof(*warm));

	if (!warm)
		return NULL;
	warm->template = kind->template;
	warm->one = (struct warm_one){ .sock = sock, .leaf = leaf, .net = ZYGOTE_NO_NET };
	ad_list_append(&w.all, &warm->link);
	return warm;
}

static _Noreturn void wait_on_host(const struct leaf *leaf, int sock)
{
	static struct standby standby;
	struct supervise job = {
		.leaf = leaf,
		.counted = leaf ? leaf->counted : (struct cgroup_counters){ 0 },
		.helper = w.shared->helper,
		.landlock = -1,
		.network = -1,
		.taken = -1,
	};

	if (!supervise_stand_by(&job, &standby, sock, w.shared) || !request_ready(sock) ||
	    !supervise_await(&job, sock, w.shared)) {
		command_dismiss(&standby.command);
		_exit(SUPERVISOR_LOST);
	}
	close(sock);
	supervise(&job);
}

static pid_t fork_on_host(const struct leaf *leaf, int sock)
{
	pid_t pid = fork();

	if (pid == 0) {
		close_ours();
		wait_on_host(leaf, sock);
	}
	own_page(&w);
	own_pages();
	return pid;
}

static bool ask_zygote(const struct kind *kind, const struct leaf *leaf, int sock)
{
	bool counted = leaf && leaf->means[CG_MEMORY] != AD_MSG_MEANS_NONE;
	struct request request = {
		.ahead = true,
		.enforcement.memory_rlimit = counted ? 0 : kind->limits.memory,
	};
	struct cgroup_entry entry;
	int fds[CG_COUNT + 2] = { sock };
	size_t fd_count = 1;
	bool ok = request_add_leaf(&request, leaf, &entry, fds, &fd_count) == 0 &&
		  template_clone_ahead(kind->template, &request, fds, fd_count) == 0;

	cgroup_close_entry(&entry);
	return ok;
}

static bool make_with(struct kind *kind, struct leaf *leaf, const int pair[2])
{
	struct warm *warm = warm_new(kind, pair[0], leaf);

	if (!warm)
		return false;
	if (!kind->template)
		warm->one.pid = fork_on_host(leaf, pair[1]);
	else if (!ask_zygote(kind, leaf, pair[1]))
		warm->one.pid = -1;
	if (warm->one.pid < 0)
		warm_free(warm);
	return true;
}

/* Without one the next command begins from nothing, and says what is wrong if it must. */
static void make(struct kind *kind)
{
	struct leaf *leaf = kind->cgroups ? cgroup_take(&kind->limits, kind->template != NULL) :
					    NULL;
	int pair[2];
	bool taken = false;

	/* What a leaf lacks for a moment is not to be lacking later. */
	if (!(leaf && leaf->broken) && ad_sys_pair(pair) == 0) {
		taken = make_with(kind, leaf, pair);
		if (!taken)
			close(pair[0]);
		close(pair[1]);
	}
	if (!taken && leaf)
		cgroup_release(leaf, true);
}

void warm_made(const struct template *template, pid_t pid, uint32_t net)
{
	struct warm *warm;

	EACH_WARM(warm)
	{
		/* They are answered in the order in which they were asked for. */
		if (warm->template != template || warm->one.pid != 0)
			continue;
		warm->one.pid = pid;
		warm->one.net = net;
		/* It may have ended and been reaped before this was heard. */
		if (pid < 0 || (kill(pid, 0) < 0 && errno == ESRCH))
			warm_free(warm);
		return;
	}
}

uint64_t warm_due(uint64_t *asked)
{
	uint64_t now = ad_sys_now_ns();
	bool burst = now - *asked < burst_ns;

	*asked = now;
	return now + (burst ? 0 : pause_ns);
}

static size_t count_of(const struct template *template)
{
	size_t count = 0;
	struct warm *warm;

	EACH_WARM(warm)
	{
		count += warm->template == template && !warm->dismissed;
	}
	return count;
}

void warm_want(struct template *template, const struct ad_msg_limits *limits, bool cgroups,
	       size_t wanted)
{
	struct kind *kind = find_kind(template);
	size_t count = count_of(template);
	uint64_t due;

	if (!kind && wanted > 0) {
		kind = calloc(1, sizeof(*kind));
		if (!kind)
			return;
		kind->template = template;
		kind->due = UINT64_MAX;
		ad_list_append(&w.kinds, &kind->link);
	}
	if (!kind)
		return;
	kind->limits = *limits;
	kind->cgroups = cgroups;
	kind->wanted = wanted < WANTED_MAX ? wanted : WANTED_MAX;
	due = warm_due(&kind->asked);
	if (count < kind->wanted)
		kind->due = count ? kind->asked + pause_ns : due;
}

uint64_t warm_next(void)
{
	uint64_t ret = UINT64_MAX;

	if (w.ended)
		return ret;
	for (struct ad_list *node = w.kinds.next; node != &w.kinds; node = node->next) {
		const struct kind *kind = AD_CONTAINER_OF(node, struct kind, link);

		if (kind->due < ret)
			ret = kind->due;
	}
	return ret;
}

void warm_step(uint64_t now)
{
	if (w.ended)
		return;
	for (struct ad_list *node = w.kinds.next; node != &w.kinds; node = node->next) {
		struct kind *kind = AD_CONTAINER_OF(node, struct kind, link);

		if (kind->due > now)
			continue;
		kind->due = UINT64_MAX;
		make(kind);
		if (count_of(kind->template) < kind->wanted)
			kind->due = now + pause_ns;
	}
}

/* ---- their use */

/* It says so: whatever goes wrong before that is no command's. */
static bool is_ready(struct warm *warm)
{
	uint8_t ready;

	if (warm->one.pid <= 0 || warm->dismissed)
		return false;
	warm->ready = warm->ready || recv(warm->one.sock, &ready, sizeof(ready), MSG_DONTWAIT) > 0;
	return warm->ready;
}

bool warm_take(struct template *template, const struct ad_msg_limits *limits, bool cgroups,
	       struct warm_one *ret)
{
	struct warm *warm;

	EACH_WARM(warm)
	{
		if (warm->template != template || !is_ready(warm))
			continue;
		if (!cgroup_fits(warm->one.leaf, limits, template != NULL, cgroups)) {
			dismiss(warm);
			continue;
		}
		*ret = warm->one;
		ad_list_remove(&warm->link);
		free(warm);
		return true;
	}
	return false;
}
