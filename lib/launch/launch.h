/* SPDX-License-Identifier: MIT */
/* The host side of the helper process: starting it, talking to it, and the jobs
 * (commands) it runs for us. One launcher per runner. Nothing here blocks but
 * ad_launcher_new(), which waits for the helper's execve (about 1 ms). */
#ifndef AD_LAUNCH_H
#define AD_LAUNCH_H

#include <stdbool.h>
#include <stdint.h>

#include <agentd/error.h>
#include <agentd/limits.h>

#include "loop/loop.h"
#include "proto/profile.h"
#include "util/util.h"

struct ad_launcher;
struct ad_job;

/* Where the helper is if nobody says: see runner.h. malloc'ed, or NULL. */
char *ad_launch_default_path(void);
/* Where agentd-NAME is, given where the helper is (NULL: that path). malloc'ed, or NULL. */
char *ad_launch_program_path(const char *helper_path, const char *name);

/* Called once from the loop: the helper answered (err NULL), or it is lost or of
 * another version (err borrowed). Called again with an error when it is lost later. */
typedef void (*ad_launcher_fn)(struct ad_launcher *launcher, const agentd_error *err,
			       void *userdata);
/* Every descriptor the library holds is >= 3, whatever the host closed. */
int ad_launcher_new(struct ad_loop *loop, const char *helper_path, struct ad_launcher **ret,
		    agentd_error **reterr);
void ad_launcher_set_ready(struct ad_launcher *launcher, ad_launcher_fn fn, void *userdata);
/* The same for as many as want to know. *watch lives until ad_launcher_unwatch(),
 * which is idempotent and also allowed after ad_launcher_free(). */
struct ad_launcher_watch {
	struct ad_list link;
	struct ad_launcher *launcher;
	ad_launcher_fn fn;
	void *userdata;
	struct ad_defer known; /* it was known already when the watch began */
};
void ad_launcher_watch(struct ad_launcher *launcher, struct ad_launcher_watch *watch,
		       ad_launcher_fn fn, void *userdata);
void ad_launcher_unwatch(struct ad_launcher_watch *watch);
/* Closes the socket: the helper kills what is left and ends by itself. If the
 * helper became our own child (host is a subreaper or pid 1) it is reaped. */
void ad_launcher_free(struct ad_launcher *launcher);
/* Ask the helper to end; gone is called from the loop when it has (its socket is
 * at end of file). No jobs may be alive. */
void ad_launcher_shutdown(struct ad_launcher *launcher, ad_launcher_fn gone, void *userdata);

/* How one limit or feature is enforced for a job, for the receipt. */
enum ad_launch_means {
	AD_MEANS_NONE,
	AD_MEANS_RLIMIT,
	AD_MEANS_WATCHDOG,
	AD_MEANS_CGROUP1,
	AD_MEANS_CGROUP2,
	AD_MEANS_PIDNS,
	AD_MEANS_COUNT
};

/* What became of a layer of the sandbox. */
enum ad_launch_layer {
	AD_LAUNCH_LAYER_NONE, /* no sandbox, not wanted, or not needed */
	AD_LAUNCH_LAYER_ENFORCED,
	AD_LAUNCH_LAYER_DEGRADED
};

struct ad_launch_receipt {
	uint8_t memory, pids, cpu, cpu_time, io; /* enum ad_launch_means; NONE: not set */
	/* CGROUP2: cgroup.kill; PIDNS: the end of its pid namespace; WATCHDOG: subreaper and
	 * /proc scan; NONE: group only. */
	uint8_t tree_kill;
	uint8_t landlock_abi;                 /* 0: none */
	uint8_t layers[AD_LAYER_COUNT];       /* enum ad_launch_layer */
	uint16_t layer_errno[AD_LAYER_COUNT]; /* why one is degraded */
	uint32_t uid, gid;                    /* the command's, outside of its sandbox */
};

/* What the helper can enforce on this machine, and by what. Zeroes until ready. */
const struct ad_launch_receipt *ad_launcher_best(const struct ad_launcher *launcher);

struct ad_loop *ad_launcher_loop(const struct ad_launcher *launcher);

struct ad_launch_usage {
	uint64_t cpu_ns;
	uint64_t memory_peak_bytes;
	bool memory_peak_is_tree; /* from a cgroup */
	uint32_t survivors;       /* processes that could not be killed */
};

/* Where a start failed; valid during the call. */
struct ad_launch_failure {
	uint32_t stage; /* enum ad_msg_stage */
	uint32_t index; /* of a layer or a path of the profile, as the stage says */
	int os_errno;
	const char *text;
};

/* The error for it, in the words of the helper's. Never NULL. */
agentd_error *ad_launch_error(const struct ad_launch_failure *failure);
/* What ran out, and what helps. NULL: that is not why layer cannot be put up. */
const char *ad_launch_shortage(enum ad_layer layer, int os_errno);

struct ad_job_events {
	/* pid: in a sandbox that of the command's own pid 1, seen from here; 0: not known.
	 * Runs: read ends of its pipes (non-blocking, close-on-exec; stderr -1 when
	 * merged; stdin_fd -1 unless asked for). The receiver owns them. */
	void (*started)(struct ad_job *job, int32_t pid, int stdin_fd, int stdout_fd, int stderr_fd,
			const struct ad_launch_receipt *receipt, void *userdata);
	/* Before started: the listening socket in the command's network, if its profile has a
	 * proxy_port. The receiver owns it. Required then. */
	void (*network)(struct ad_job *job, int fd, void *userdata);
	/* Could not be started, or the helper was lost under it (failure NULL). Last event.
	 * Owns err. */
	void (*failed)(struct ad_job *job, agentd_error *err,
		       const struct ad_launch_failure *failure, void *userdata);
	/* The sandbox stopped something: kind "syscall" or "path". Until closed. */
	void (*denied)(struct ad_job *job, const char *kind, const char *target, void *userdata);
	/* limit: its name in struct agentd_limits, or "seccomp". */
	void (*limit_hit)(struct ad_job *job, const char *limit, bool fatal, void *userdata);
	void (*exited)(struct ad_job *job, int wait_status, uint64_t at_ns, void *userdata);
	/* Nothing of it is alive. Last event. */
	void (*closed)(struct ad_job *job, const struct ad_launch_usage *usage, void *userdata);
};

/* Borrowed: nothing of it is kept. */
struct ad_launch_sandbox {
	const struct ad_profile *profile;
	int credentials_fd, netns_fd; /* a sealed memfd, a network namespace; or -1 */
};

/* A virtual machine monitor instead of a command: started by the helper itself, without
 * privileges, confined to its program's files and what it is handed. Borrowed. */
struct ad_launch_machine {
	const int *fds; /* its descriptors 3, 4, ...; at most AD_SPAWN_MACHINE_FDS_MAX */
	size_t fd_count;
	uint32_t uid, gid; /* what it becomes when the host program is root; not 0 */
	bool small_pages;  /* its memory is not to be in huge ones */
};

struct ad_launch_request {
	const char *const *argv; /* argv[0] is looked up in env's PATH unless it has a slash */
	const char *const *env;
	const char *workdir;
	bool stdin_open, merge_stderr;
	bool cgroup_required; /* fail when a limit that only a cgroup enforces cannot be (cpu) */
	struct agentd_limits limits; /* effective; 0 = none */
	uint32_t limits_requested;   /* bit per ad_limit_descs index: asked for, not a default */
	const struct ad_launch_sandbox *sandbox; /* NULL: none */
	/* NULL: none. stdin_open must not be, merge_stderr must be set. */
	const struct ad_launch_machine *machine;
	/* A sandbox without a command (argv is not used, streams are -1): its job can be the
	 * session of others, while it lives. SIGTERM asks what is left in it to end and then
	 * ends it. */
	bool is_session;
	/* The command runs in that sandbox. NULL: in one of its own, or none. */
	const struct ad_job *session;
	int session_credentials_fd; /* with session: as in ad_launch_sandbox */
};

/* Events come from the loop, never from inside these calls. *ret stays valid until
 * ad_job_free(), which is called after the last event. */
int ad_job_start(struct ad_launcher *launcher, const struct ad_launch_request *request,
		 const struct ad_job_events *events, void *userdata, struct ad_job **ret,
		 agentd_error **reterr);
int ad_job_kill(struct ad_job *job);              /* whole tree, now; repeatable */
int ad_job_signal(struct ad_job *job, int signo); /* the command's process group */
void ad_job_free(struct ad_job *job);

#endif
