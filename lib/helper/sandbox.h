/* SPDX-License-Identifier: MIT */
/* The sandbox part of agentd-helper, private to it. From the outside in:
 *   template.c  in the helper: finds or makes the zygote that fits a command;
 *   zygote.c    one process per template: lives in the finished view, in all namespaces
 *               but those that are each command's own, and clones reapers;
 *   view.c, view_build.c  the file system view, built once by the zygote; userns.c helps both;
 *   warm.c      in the helper: keeps reapers, and supervisors, ready for commands;
 *   reaper.c    pid 1 of each command: private mounts, protected names, then the
 *               supervisor's work (supervise.c);
 *   protect.c   protected names in writable directories;
 *   landlock.c, seccomp.c  the filters;
 *   command.c   the last steps, in the command's own process.
 * docs/sandbox.md tells why it is cut this way. */
#ifndef AD_HELPER_SANDBOX_H
#define AD_HELPER_SANDBOX_H

#include "helper/helper.h"
#include "helper/seccomp.h"
#include "proto/profile.h"
#include "sys/sys.h"

enum {
	SANDBOX_UID = 1000, /* inside, and the group */
	ZYGOTE_TEXT_MAX = 512
};

#define SANDBOX_HOME "/run/home"
#define SANDBOX_TOKEN_DIR "/run/credentials"
#define SANDBOX_TOKEN SANDBOX_TOKEN_DIR "/token"

/* Why something could not be put up. */
struct fault {
	uint32_t stage, index; /* AD_STAGE_*, and what it is about */
	int error;
	char text[ZYGOTE_TEXT_MAX];
};

/* Returns false, so that a function can return it. */
bool fault_set(struct fault *fault, uint32_t stage, uint32_t index, int error, const char *fmt, ...)
	__attribute__((__format__(__printf__, 5, 6)));
/* A layer did not come up: a fault where the policy insists on it, else noted. */
bool layer_failed(struct ad_msg_receipt *layers, const struct ad_profile *profile,
		  enum ad_layer layer, int error, struct fault *fault, const char *what);
/* Whether the policy wants it at all. */
bool layer_wanted(const struct ad_profile *profile, enum ad_layer layer);

/* What a zygote is made from. */
struct template_spec {
	struct ad_profile profile; /* filled */
	const char *workdir;
	uid_t from_uid; /* the host program's of now */
	gid_t from_gid;
	int netns; /* to join, or -1 */
};

/* The sandbox as zygote, reaper and command see it. */
struct sandbox {
	const struct template_spec *spec;
	bool privileged; /* the helper is root: it can map ids and mounts */
	uid_t outer_uid;
	gid_t outer_gid;
	struct ad_msg_receipt layers; /* only what concerns layers */
	struct seccomp_filters filters;
	int landlock_abi; /* 0: none */
	bool own_tmp;     /* /tmp is each command's own */
	/* Targets beneath /run and /tmp, which each command has of its own: they are put
	 * back there. Outer ones first. */
	const char **nested;
	size_t nested_count;
	/* Where the view hides what is denied. */
	const char **hidden;
	size_t hidden_count;
	/* Where a writable path is to be had besides its target, in another one. */
	const char **aliases;
	size_t alias_count;
};

/* ---- userns.c */

struct id_map {
	uid_t uid_inside, uid_outside;
	gid_t gid_inside, gid_outside;
};
/* Give the user namespace that pid has just made its only user and group. */
int userns_write_maps(pid_t pid, const struct id_map *map);
/* One for mount_map_ids(): what is "inside" are the ids on disk. A descriptor. */
int userns_new(const struct id_map *map);

/* ---- view.c */

/* A mount of the host's on its way into the view. */
struct view_entry {
	const char *target;
	uint32_t index; /* in the profile; VIEW_OWN: ours */
	uint8_t access;
	bool directory, device;
	int fd;     /* the detached mount, or -1 */
	char *link; /* not a mount: a symbolic link to this */
};
#define VIEW_OWN UINT32_MAX
#define VIEW_WORKDIR (UINT32_MAX - 1)

struct view {
	struct view_entry *entries;
	size_t count, cap;
};

/* Take hold of everything the view is made of. In a user namespace this is done in
 * the zygote's own mount namespace, else before leaving the host's. */
bool view_collect(struct view *view, struct sandbox *sandbox, struct fault *fault);
/* In the sandbox: what commands' own /run and /tmp would cover, what is denied, and other names
 * of what is shown. */
bool view_note(const struct view *view, struct sandbox *sandbox, struct fault *fault);
/* Does it show something at the target? */
bool view_covers(const struct view *view, const char *target);
/* What is denied has an entry, too. */
bool view_denies(const struct view_entry *entry);
/* Always false. detail: for fmt. */
bool view_path_fault(struct fault *fault, uint32_t index, int error, const char *fmt,
		     const char *detail);
/* The i-th path that is shown, the working directory first; access 0: another one stands for it.
 * False: there are no more. */
bool view_shown(const struct template_spec *spec, size_t i, struct ad_profile_path *ret);

/* ---- view_build.c */

/* Put it together and make it the root. */
bool view_build(struct view *view, struct sandbox *sandbox, struct fault *fault);
/* Something to mount on, made if it is missing; a descriptor or -errno. Never through
 * a symbolic link. */
int view_point(int root, const char *path, bool directory);

/* ---- protect.c */

struct late;
struct known;
struct protection {
	struct late *late; /* what is to be looked at afterwards */
	size_t count;
	struct known *known; /* by what it can be told whether all is as it was */
	size_t known_count;
	bool unsure; /* it cannot */
	char *text;  /* of both */
	size_t text_len, text_cap;
};
/* Before the command: what is there is made read-only, with mounts in our namespace. Again:
 * anew, for what is there then. */
bool protect_begin(struct protection *protection, const struct sandbox *sandbox,
		   struct fault *fault);
/* Would that be the same now? Takes no right, and nothing but system calls. */
bool protect_holds(const struct protection *protection);
/* Can a command change what is in that place? */
bool protect_reaches(const struct sandbox *sandbox, const char *path);
/* In a session, before its supervisors are made: they and pid 1 know the same from here on. */
bool protect_share(struct protection *protection);
/* Is what was mounted for it still there? What the host removes or replaces by another loses its
 * mount. */
bool protect_kept(const struct protection *protection);
/* Only what has lost it gets another. False: that cannot be. */
bool protect_renew(const struct protection *protection);
/* When nothing of it is alive: what has appeared is moved aside, and told is called with
 * its path; also, with moved false, of what could not be looked at or set right. Who calls this
 * is about to end, and nothing is freed. */
void protect_end(const struct protection *protection,
		 void (*told)(const char *path, bool moved, void *userdata), void *userdata);

/* ---- landlock.c */

/* The rules of one command, in its view: a descriptor or a negative errno. */
/* apart: what is not of the same command can neither be signalled nor reached by abstract
 * sockets; else, in a session, what its namespaces leave. */
int landlock_make(const struct sandbox *sandbox, bool apart);
int landlock_enter(int ruleset);

/* What processes of the helper have in common. */
struct helper_shared {
	struct slot *slots;
	pid_t helper;
	int helper_pidfd;
	int sessions; /* where supervisors of sessions say that they wait: struct session_hello */
};

/* ---- request.c */

/* What the helper asks for: a zygote for a reaper, or who waits for a command for that. The
 * spawn message follows, unless it comes as a memory file; descriptors as the flags say, in
 * this order. */
struct request {
	bool net_free; /* of a zygote, only this: net may be used again */
	uint32_t net;
	uint32_t slot;
	bool ahead; /* a reaper whose command is not known yet, but likely to be enforced like this:
		     * nothing follows, and it will hear of that by the descriptor */
	bool has_leaf, spawn_fd, credentials, set_ids;
	bool session; /* a session: its end of struct session's socket comes too */
	/* Of a zygote, for a command: the reaper waits until it is granted in the slot. The
	 * zygote may die when it has made it and before that is heard, and another is asked: a
	 * command is not to run twice. Never 0. */
	uint32_t attempt;
	uint8_t tasks; /* descriptors of struct cgroup_entry */
	bool v2_procs;
	struct leaf leaf;
	struct enforcement enforcement;
};
#define NO_ATTEMPT UINT32_MAX
enum { REQUEST_MAX = sizeof(struct request) + AD_MSG_INLINE_MAX };

/* With the control groups to enter (NULL: none), whose descriptors are added to fds; *ret_entry,
 * to be closed afterwards, has them. 0 or a negative errno. */
int request_add_leaf(struct request *request, const struct leaf *leaf,
		     struct cgroup_entry *ret_entry, int *fds, size_t *fd_count);
/* spawn: the message that follows, if that is not among fds; or NULL. 0 or a negative errno. Does
 * not wait. */
int request_send(int sock, const struct request *request, const struct ad_sys_msg *spawn,
		 const int *fds, size_t fd_count);

/* What came with a request; what is decoded points into it, and its descriptors are the
 * receiver's. */
struct request_content {
	struct ad_msg_spawn spawn;
	struct cgroup_entry entry;
	int token, session, ahead; /* or -1 */
};
/* The message and what it holds stay as they are. */
bool request_unpack(const struct ad_sys_msg *message, struct request_content *ret);
/* Wait for the command at sock, and put into job what is known of it by now. NULL: there
 * will be none. What is returned stays until the process ends. */
const struct request_content *request_wait(int sock, struct supervise *job,
					   const struct helper_shared *shared);
/* Say to the helper that somebody waits there. False: it is gone. */
bool request_ready(int sock);
/* Before request_wait(): its pages are at hand. */
void request_expect(const struct helper_shared *shared);
/* Part of own_pages(). */
void request_own_pages(void);

/* ---- zygote.c */

enum zygote_say {
	ZYGOTE_MAPS,   /* value 0: its user namespace waits for its maps; helper: 0 or -errno */
	ZYGOTE_READY,  /* layers */
	ZYGOTE_FAILED, /* fault; it ends */
	ZYGOTE_CLONED, /* value: pid or -errno; net: the network namespace it has */
	ZYGOTE_AHEAD   /* the same, of a reaper whose command is not known yet */
};

#define ZYGOTE_NO_NET UINT32_MAX

struct zygote_msg {
	enum zygote_say say;
	int32_t value;
	uint32_t net;
	struct fault fault;
	struct ad_msg_receipt layers;
};

/* The zygote's life, in a process forked by the helper. */
_Noreturn void zygote_run(const struct template_spec *spec, int sock,
			  const struct helper_shared *shared);

/* ---- reaper.c */

/* What a command's own pid 1 begins with. */
struct reaper {
	struct sandbox *sandbox;
	const struct helper_shared *shared;
	int net; /* network namespace to enter, or -1 */
	struct ad_sys_msg *request;
};
_Noreturn void reaper_run(const struct reaper *reaper);
/* What is each command's own before it starts: the token, which is taken; -1: there is none. 0 or a
 * negative errno. */
int reaper_put_token(int memory);

/* ---- session.c: pid 1 of a session, and the supervisors in it */

/* From a supervisor that is ready for a command; the kernel adds its pid. With the first comes
 * the session's listening socket, if it has one. */
struct session_hello {
	uint32_t slot; /* the session's */
};
/* job: what commands inherit. sock: requests come by it. */
_Noreturn void session_run(const struct supervise *job, uint32_t slot,
			   const struct helper_shared *shared, int sock);

/* ---- template.c */

struct template;

void template_init(const struct helper_shared *shared, uid_t uid);
/* The one that fits a command of a host program with these ids, begun if there is none
 * yet, and held until template_drop(). netns: the network namespace to join, or -1. NULL:
 * errno says why. */
struct template *template_get(const struct ad_msg_spawn *spawn, uid_t uid, gid_t gid, int netns);
void template_drop(struct template *template);
enum template_state { TEMPLATE_BUILDING, TEMPLATE_READY, TEMPLATE_FAILED };
enum template_state template_state(const struct template *template);
const struct fault *template_fault(const struct template *template);
/* That was it: another may do better. */
bool template_died(const struct template *template);
const struct ad_msg_receipt *template_layers(const struct template *template);
/* A reaper's pid, or a negative errno; after -EPIPE the next template_get() makes
 * another one. */
pid_t template_clone(struct template *template, const struct request *request,
		     const struct ad_sys_msg *spawn, const int *fds, size_t fd_count,
		     uint32_t *ret_net);
/* Ask for one ahead of its command: warm_made() will be called. 0 or a negative errno. */
int template_clone_ahead(struct template *template, const struct request *request, const int *fds,
			 size_t fd_count);
void template_net_free(struct template *template, uint32_t net);
/* The sockets of those that will say something, for poll(2). */
enum { TEMPLATES_MAX = 64 };
size_t template_poll_fds(int fds[static TEMPLATES_MAX]);
/* Hear what they said, and end those that nobody needs. True: a state has changed. */
bool template_step(uint64_t now);
/* When template_step() has something to do unasked; UINT64_MAX: never. */
uint64_t template_next(void);
/* pid, if it was a zygote's, is dead. */
void template_reaped(pid_t pid);
void template_close_all(void);

/* ---- warm.c: supervisors that are there before their command */

void warm_init(const struct helper_shared *shared);
/* Part of close_ours(). */
void warm_close_ours(void);
/* A command of a template, or of the host (NULL), has started: the next one is likely to be
 * like it. Keep so many ready. */
void warm_want(struct template *template, const struct ad_msg_limits *limits, bool cgroups,
	       size_t wanted);
/* A command came at `asked` and another one comes now, which is noted there: when is what waits
 * for the next to be made? */
uint64_t warm_due(uint64_t *asked);
/* Of one that waits: everything is the caller's now. */
struct warm_one {
	pid_t pid;
	int sock; /* it waits for its request there */
	struct leaf *leaf;
	uint32_t net;
};
/* cgroups: whether the command is to have such a leaf. False: none fits. */
bool warm_take(struct template *template, const struct ad_msg_limits *limits, bool cgroups,
	       struct warm_one *ret);
/* What a zygote has answered. */
void warm_made(const struct template *template, pid_t pid, uint32_t net);
/* End those of this template, of which no more will be heard. */
void warm_forget(const struct template *template);
/* False: it was none of them. */
bool warm_reaped(pid_t pid);
/* Make what is due. */
void warm_step(uint64_t now);
uint64_t warm_next(void); /* when that is; UINT64_MAX: never */
/* End all, and make no more. */
void warm_end(void);
bool warm_any(void);

#endif
