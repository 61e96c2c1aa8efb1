/* SPDX-License-Identifier: MIT */
/* Templates: for each kind of sandbox that commands ask for, a zygote that is ready for
 * it. One that nobody has used for a while is ended. */
#include "helper/sandbox.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

/* It pins the mounts and memory of its view; to make another costs milliseconds. */
static const uint64_t idle_max_ns = 60000 * AD_NS_PER_MS;
/* A stuck file system must not hold commands for ever. */
static const uint64_t build_max_ns = 10000 * AD_NS_PER_MS;
static const struct timeval clone_max = { .tv_sec = 5 };

/* No file system's times are coarser. */
enum { TIMES_MAX_S = 2 };

/* What a path was when the view was made from it. */
struct identity {
	bool present, link;
	uint32_t dev_major, dev_minor;
	uint64_t ino;
	uid_t uid; /* whose files look the command's own */
	gid_t gid;
	struct statx_timestamp since; /* what has the number next has it later */
	bool recent;                  /* maybe not, this short time ago */
};

struct template
{
	struct ad_list link;
	/* What it was made for, and from. */
	uint8_t *profile_bytes;
	size_t profile_len;
	char *workdir;
	struct template_spec spec;
	struct identity netns, *sources;
	size_t source_count;
	/* What became of it. */
	enum template_state state;
	pid_t zygote; /* 0: reaped */
	int sock;     /* -1: closed */
	bool stale;   /* not for further commands */
	size_t asked; /* answers that are still to come, of reapers ahead of their commands */
	bool died;    /* while it was being made */
	size_t holders;
	uint64_t idle_since, build_by;
	struct fault fault;
	struct ad_msg_receipt layers;
};

static struct {
	const struct helper_shared *shared;
	uid_t uid;
	struct ad_list all;
	size_t count;
} t;

void template_init(const struct helper_shared *shared, uid_t uid)
{
	t.shared = shared;
	t.uid = uid;
	ad_list_init(&t.all);
}

/* The current one may be freed. */
#define EACH_TEMPLATE(each)                                                                        \
	for (struct ad_list *node = t.all.next, *after;                                            \
	     node != &t.all &&                                                                     \
	     (after = node->next, (each) = AD_CONTAINER_OF(node, struct template, link), true);    \
	     node = after)

/* ---- end */

static void close_socket(struct template *template)
{
	if (template->sock >= 0)
		close(template->sock);
	template->sock = -1;
}

static void kill_zygote(const struct template *template)
{
	if (template->zygote > 0)
		kill(template->zygote, SIGKILL);
}

static void template_free(struct template *template)
{
	warm_forget(template);
	close_socket(template);
	kill_zygote(template);
	if (template->spec.netns >= 0)
		close(template->spec.netns);
	ad_list_remove(&template->link);
	t.count--;
	free((void *)(uintptr_t) template->spec.profile.paths);
	free((void *)(uintptr_t) template->spec.profile.names);
	free(template->profile_bytes);
	free(template->workdir);
	free(template->sources);
	free(template);
}

/* Not for further commands, and gone when there are none and its zygote is reaped. */
static void retire(struct template *template)
{
	template->stale = true;
	warm_forget(template);
	if (template->holders > 0)
		return;
	close_socket(template);
	kill_zygote(template);
	if (template->zygote == 0)
		template_free(template);
}

void template_reaped(pid_t pid)
{
	struct template *template;

	EACH_TEMPLATE(template)
	{
		if (template->zygote != pid)
			continue;
		template->zygote = 0;
		retire(template);
		return;
	}
}

void template_close_all(void)
{
	struct template *template;

	EACH_TEMPLATE(template)
	{
		pid_t zygote = template->zygote;

		template_free(template);
		while (zygote > 0 && waitpid(zygote, NULL, 0) < 0 && errno == EINTR)
			;
	}
}

/* ---- identity of what it is made from */

/* A directory is the same one from its birth on. A file may lose its name, and have it again:
 * its times tell. */
static struct identity identity_of(const struct statx *st, bool link)
{
	bool born = S_ISDIR(st->stx_mode) && (st->stx_mask & STATX_BTIME);
	struct statx_timestamp since = born ? st->stx_btime : st->stx_ctime;
	struct timespec now;

	clock_gettime(CLOCK_REALTIME, &now);
	return (struct identity){
		.present = true,
		.link = link,
		.dev_major = st->stx_dev_major,
		.dev_minor = st->stx_dev_minor,
		.ino = st->stx_ino,
		.uid = st->stx_uid,
		.gid = st->stx_gid,
		.since = since,
		.recent = since.tv_sec + TIMES_MAX_S >= now.tv_sec,
	};
}

static bool look(int dir, const char *path, int flags, struct statx *ret)
{
	return statx(dir, path, flags, STATX_BASIC_STATS | STATX_BTIME, ret) == 0;
}

static struct identity identify(const char *path)
{
	struct statx st;
	bool link;

	if (!look(AT_FDCWD, path, AT_SYMLINK_NOFOLLOW, &st))
		return (struct identity){ 0 };
	link = S_ISLNK(st.stx_mode);
	if (link && !look(AT_FDCWD, path, 0, &st))
		return (struct identity){ .link = true };
	return identity_of(&st, link);
}

static struct identity identify_fd(int fd)
{
	struct statx st;

	if (fd < 0 || !look(fd, "", AT_EMPTY_PATH, &st))
		return (struct identity){ 0 };
	return identity_of(&st, false);
}

static bool same(const struct identity *left, const struct identity *right)
{
	return left->present == right->present && left->link == right->link &&
	       left->dev_major == right->dev_major && left->dev_minor == right->dev_minor &&
	       left->ino == right->ino && left->uid == right->uid && left->gid == right->gid;
}

/* Also not away and back again in between? */
static bool unchanged(const struct identity *then, const struct identity *now)
{
	return !then->recent && then->since.tv_sec == now->since.tv_sec &&
	       then->since.tv_nsec == now->since.tv_nsec;
}

/* Workdir, then the paths of the profile. */
static const char *source(const struct template *template, size_t i)
{
	return i == 0 ? template->workdir : template->spec.profile.paths[i - 1].source;
}

static bool is_writable(const struct template *template, size_t i)
{
	const struct ad_profile *profile = &template->spec.profile;

	return (i == 0 ? profile->workdir_access : profile->paths[i - 1].access) & AD_ACCESS_WRITE;
}

/* Are its paths what they were? A view shows what it was made from, also when the path
 * leads elsewhere by now. But the kernel takes away what a view has mounted on a name as soon
 * as that is removed, and what hides a path, or makes it read-only, is mounted on its name. */
static bool up_to_date(const struct template *template)
{
	for (size_t i = 0; i < template->source_count; i++) {
		const struct identity *then = &template->sources[i];
		struct identity now = identify(source(template, i));

		if (!same(&now, then) || (!is_writable(template, i) && !unchanged(then, &now)))
			return false;
	}
	return true;
}

/* ---- begin */

static bool copy_spec(struct template *template, const struct ad_msg_spawn *spawn, int netns)
{
	struct ad_profile *profile = &template->spec.profile;
	struct ad_profile_path *paths;
	const char **names;

	template->spec.netns = -1;
	template->profile_len = spawn->profile_len;
	template->profile_bytes = malloc(spawn->profile_len);
	template->workdir = strdup(spawn->workdir);
	if (!template->profile_bytes || !template->workdir)
		return false;
	memcpy(template->profile_bytes, spawn->profile, spawn->profile_len);
	if (!ad_profile_decode(profile, template->profile_bytes, template->profile_len)) {
		errno = EBADMSG;
		return false;
	}
	paths = reallocarray(NULL, profile->path_count + 1, sizeof(*paths));
	names = reallocarray(NULL, profile->name_count + 1, sizeof(*names));
	profile->paths = paths;
	profile->names = names;
	template->source_count = profile->path_count + 1;
	template->sources = reallocarray(NULL, template->source_count, sizeof(*template->sources));
	if (!paths || !names || !template->sources)
		return false;
	ad_profile_fill(profile, paths, names);
	template->spec.workdir = template->workdir;
	if (netns >= 0)
		template->spec.netns = fcntl(netns, F_DUPFD_CLOEXEC, 3);
	template->netns = identify_fd(netns);
	for (size_t i = 0; i < template->source_count; i++)
		template->sources[i] = identify(source(template, i));
	return netns < 0 || template->spec.netns >= 0;
}

static bool fork_zygote(struct template *template)
{
	int pair[2], r = ad_sys_pair(pair);
	struct template *other;

	if (r < 0) {
		errno = -r;
		return false;
	}
	template->zygote = fork();
	if (template->zygote == 0) {
		EACH_TEMPLATE(other)
		{
			close_socket(other);
			if (other != template && other->spec.netns >= 0)
				close(other->spec.netns);
		}
		close(pair[0]);
		close_ours();
		zygote_run(&template->spec, pair[1], t.shared);
	}
	close(pair[1]);
	template->sock = pair[0];
	if (template->zygote < 0) {
		template->zygote = 0;
		return false;
	}
	setsockopt(template->sock, SOL_SOCKET, SO_RCVTIMEO, &clone_max, sizeof(clone_max));
	template->build_by = ad_sys_now_ns() + build_max_ns;
	return true;
}

/* The one that has been idle for longest. */
static bool make_room(void)
{
	struct template *template, *oldest = NULL;

	if (t.count < TEMPLATES_MAX)
		return true;
	EACH_TEMPLATE(template)
	{
		if (template->holders == 0 && !template->stale &&
		    (!oldest || template->idle_since < oldest->idle_since))
			oldest = template;
	}
	if (!oldest)
		return false;
	retire(oldest);
	return true;
}

static struct template *template_new(const struct ad_msg_spawn *spawn, uid_t uid, gid_t gid,
				     int netns)
{
	struct template *template;

	if (!make_room()) {
		errno = EUSERS;
		return NULL;
	}
	template = calloc(1, sizeof(*template));
	if (!template)
		return NULL;
	ad_list_append(&t.all, &template->link);
	t.count++;
	template->sock = -1;
	template->spec.from_uid = uid;
	template->spec.from_gid = gid;
	if (!copy_spec(template, spawn, netns) || !fork_zygote(template)) {
		int error = errno;

		template_free(template);
		errno = error;
		return NULL;
	}
	return template;
}

static bool fits(const struct template *template, const struct ad_msg_spawn *spawn, uid_t uid,
		 gid_t gid, const struct identity *netns)
{
	return !template->stale && template->state != TEMPLATE_FAILED &&
	       template->spec.from_uid == uid && template->spec.from_gid == gid &&
	       template->profile_len == spawn->profile_len &&
	       memcmp(template->profile_bytes, spawn->profile, spawn->profile_len) == 0 &&
	       strcmp(template->workdir, spawn->workdir) == 0 && same(&template->netns, netns);
}

struct template *template_get(const struct ad_msg_spawn *spawn, uid_t uid, gid_t gid, int netns)
{
	struct identity net = identify_fd(netns);
	struct template *template, *found = NULL;

	EACH_TEMPLATE(template)
	{
		if (!fits(template, spawn, uid, gid, &net))
			continue;
		/* What failed for another command may not fail again. */
		if (template->state != TEMPLATE_FAILED && up_to_date(template))
			found = template;
		else
			retire(template);
	}
	if (!found)
		found = template_new(spawn, uid, gid, netns);
	if (found)
		found->holders++;
	return found;
}

void template_drop(struct template *template)
{
	if (--template->holders > 0)
		return;
	template->idle_since = ad_sys_now_ns();
	/* What is not made may have met what is over when somebody else comes. */
	if (template->stale || template->state != TEMPLATE_READY)
		retire(template);
}

enum template_state template_state(const struct template *template)
{
	return template->state;
}

bool template_died(const struct template *template)
{
	return template->died;
}

const struct fault *template_fault(const struct template *template)
{
	return &template->fault;
}

const struct ad_msg_receipt *template_layers(const struct template *template)
{
	return &template->layers;
}

/* ---- while it is being made */

/* The host program's own ids need no right, others need ours. */
static int32_t write_maps(const struct template *template)
{
	const struct template_spec *spec = &template->spec;
	bool root = spec->from_uid == 0;

	return userns_write_maps(template->zygote,
				 &(struct id_map){
					 .uid_inside = SANDBOX_UID,
					 .uid_outside = root ? spec->profile.uid : spec->from_uid,
					 .gid_inside = SANDBOX_UID,
					 .gid_outside = root ? spec->profile.gid : spec->from_gid,
				 });
}

static void failed(struct template *template, int error, const char *what)
{
	template->state = TEMPLATE_FAILED;
	fault_set(&template->fault, AD_STAGE_VIEW, 0, error, "%s", what);
	kill_zygote(template);
}

/* True: it is made, or cannot be. */
static bool hear(struct template *template, uint64_t now)
{
	struct zygote_msg msg;
	struct ad_sys_msg in = { .data = &msg, .cap = sizeof(msg) };
	int r = ad_sys_recv(template->sock, &in, MSG_DONTWAIT);
	int32_t answer;

	if (r == -EAGAIN) {
		if (now < template->build_by)
			return false;
		failed(template, ETIMEDOUT, "a path of the policy does not answer");
		return true;
	}
	if (r <= 0 || in.len != sizeof(msg)) {
		template->died = true;
		failed(template, ECHILD, "the zygote died");
		return true;
	}
	switch (msg.say) {
	case ZYGOTE_MAPS:
		answer = write_maps(template);
		ad_sys_send(template->sock, &answer, sizeof(answer), NULL, 0, MSG_DONTWAIT);
		return false;
	case ZYGOTE_READY:
		template->state = TEMPLATE_READY;
		template->layers = msg.layers;
		return true;
	default:
		template->state = TEMPLATE_FAILED;
		template->fault = msg.fault;
		return true;
	}
}

/* ---- while it serves */

/* One that answered wrongly, or not at all, would answer the wrong question later. */
static void give_up(struct template *template)
{
	template->asked = 0;
	template->stale = true;
	warm_forget(template);
	kill_zygote(template);
}

static void made_ahead(struct template *template, const struct zygote_msg *msg)
{
	template->asked--;
	warm_made(template, msg->value, msg->net);
}

static void hear_answers(struct template *template)
{
	while (template->asked > 0) {
		struct zygote_msg msg;
		struct ad_sys_msg in = { .data = &msg, .cap = sizeof(msg) };
		int r = ad_sys_recv(template->sock, &in, MSG_DONTWAIT);

		if (r == -EAGAIN)
			return;
		if (r > 0 && in.len == sizeof(msg) && msg.say == ZYGOTE_AHEAD)
			made_ahead(template, &msg);
		else
			give_up(template);
	}
}

static bool will_speak(const struct template *template)
{
	return template->sock >= 0 && (template->state == TEMPLATE_BUILDING || template->asked > 0);
}

size_t template_poll_fds(int fds[static TEMPLATES_MAX])
{
	struct template *template;
	size_t count = 0;

	EACH_TEMPLATE(template)
	{
		if (will_speak(template) && count < TEMPLATES_MAX)
			fds[count++] = template->sock;
	}
	return count;
}

static bool idle(const struct template *template)
{
	return template->holders == 0 && !template->stale;
}

bool template_step(uint64_t now)
{
	struct template *template;
	bool changed = false;

	EACH_TEMPLATE(template)
	{
		if (template->state == TEMPLATE_BUILDING && template->sock >= 0)
			changed |= hear(template, now);
		else if (will_speak(template))
			hear_answers(template);
		else if (idle(template) && now - template->idle_since >= idle_max_ns)
			retire(template);
	}
	return changed;
}

uint64_t template_next(void)
{
	struct template *template;
	uint64_t ret = UINT64_MAX;

	EACH_TEMPLATE(template)
	{
		uint64_t at = UINT64_MAX;

		if (template->state == TEMPLATE_BUILDING && template->sock >= 0)
			at = template->build_by;
		else if (idle(template))
			at = template->idle_since + idle_max_ns;
		if (at < ret)
			ret = at;
	}
	return ret;
}

/* ---- commands */

pid_t template_clone(struct template *template, const struct request *request,
		     const struct ad_sys_msg *spawn, const int *fds, size_t fd_count,
		     uint32_t *ret_net)
{
	struct zygote_msg answer;
	struct ad_sys_msg in = { .data = &answer, .cap = sizeof(answer) };
	int r = request_send(template->sock, request, spawn, fds, fd_count);

	while (r == 0) {
		r = ad_sys_recv(template->sock, &in, 0);
		if (r <= 0 || in.len != sizeof(answer))
			break;
		if (answer.say == ZYGOTE_CLONED) {
			*ret_net = answer.net;
			return answer.value;
		}
		if (answer.say != ZYGOTE_AHEAD || template->asked == 0)
			break;
		made_ahead(template, &answer);
		r = 0;
	}
	give_up(template);
	return -EPIPE;
}

int template_clone_ahead(struct template *template, const struct request *request, const int *fds,
			 size_t fd_count)
{
	int r = template->stale || template->state != TEMPLATE_READY ?
			-EPIPE :
			request_send(template->sock, request, NULL, fds, fd_count);

	if (r == 0)
		template->asked++;
	return r;
}

void template_net_free(struct template *template, uint32_t net)
{
	const struct request request = { .net_free = true, .net = net };

	if (template->sock >= 0)
		ad_sys_send(template->sock, &request, sizeof(request), NULL, 0, MSG_DONTWAIT);
}
