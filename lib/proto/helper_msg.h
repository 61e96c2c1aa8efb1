/* SPDX-License-Identifier: MIT */
/* What the library and agentd-helper say to each other on their SOCK_SEQPACKET
 * socket. Pure: no I/O, no allocation. Either side takes the other as hostile, so
 * decoding accepts exactly what encoding can make. Integers are little endian. */
#ifndef AD_PROTO_HELPER_MSG_H
#define AD_PROTO_HELPER_MSG_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "proto/profile.h"

/* In every message: helper and library must be of the same version. */
enum { AD_MSG_VERSION = 4 };

enum {
	AD_MSG_INLINE_MAX = 32 * 1024,       /* larger spawn messages come in a memfd */
	AD_MSG_SPAWN_MAX = 16 * 1024 * 1024, /* far beyond what execve(2) takes */
	AD_MSG_TEXT_MAX = 1024,              /* texts in reports, with their NUL */
	AD_MSG_FIXED_MAX = 1280              /* every message but SPAWN fits */
};

enum ad_msg_type {
	/* library to helper */
	AD_MSG_SPAWN = 1,    /* see struct ad_msg_spawn */
	AD_MSG_SPAWN_FD = 2, /* a sealed memfd that holds a SPAWN, then the SPAWN's own */
	AD_MSG_KILL = 3,
	AD_MSG_SIGNAL = 4,
	/* helper and supervisors to library */
	AD_MSG_HELLO = 16,
	AD_MSG_STARTED = 17, /* descriptors: stdout, then as flags say stderr, stdin, network */
	AD_MSG_FAILED = 18,  /* last */
	AD_MSG_LIMIT = 19,
	AD_MSG_EXITED = 20,
	AD_MSG_CLOSED = 21, /* last */
	AD_MSG_ENDED = 22,  /* EXITED and CLOSED at once; last */
	AD_MSG_DENIED = 23  /* something the sandbox stopped */
};

/* ---- starting */

enum {
	AD_SPAWN_STDIN = 1, /* a pipe, else /dev/null */
	AD_SPAWN_MERGE_STDERR = 2,
	AD_SPAWN_CGROUP_REQUIRED = 4, /* see ad_launch_request.cgroup_required */
	AD_SPAWN_SANDBOX = 8,         /* it has a profile */
	/* Descriptors that come with the message, in this order. */
	AD_SPAWN_CREDENTIALS = 16, /* a sealed memfd; sandbox only */
	AD_SPAWN_NETNS = 32,       /* a network namespace; sandbox only */
	/* A virtual machine monitor: a child of the helper itself, without a supervisor and
	 * without privileges. Its stderr is merged, its stdin /dev/null. */
	AD_SPAWN_MACHINE = 64,
	/* A session: a sandbox without a command, for later ones. Its STARTED brings no
	 * descriptor but the network's. */
	AD_SPAWN_SESSION = 128,
	AD_SPAWN_SMALL_PAGES = 256, /* no huge ones; a machine only */
	AD_SPAWN_FLAGS = 511
};

/* Descriptors that a machine is given: with the message itself they fit in one. */
enum { AD_SPAWN_MACHINE_FDS_MAX = 9 };

/* Limits that the helper or a supervisor watches, and so may report. */
enum ad_msg_limit {
	AD_MSG_LIMIT_MEMORY,
	AD_MSG_LIMIT_PIDS,
	AD_MSG_LIMIT_CPU_TIME,
	AD_MSG_LIMIT_IO,
	AD_MSG_LIMIT_SYSCALL, /* killed for a system call */
	AD_MSG_LIMIT_COUNT
};

struct ad_msg_limits { /* 0: none */
	uint64_t memory, pids, cpu_time_ms, io, file, open_files, cpu_ms_per_100ms;
};

struct ad_msg_spawn {
	uint32_t job;
	uint32_t flags;     /* AD_SPAWN_* */
	uint32_t session;   /* the job whose sandbox this command runs in, or 0 */
	uint32_t requested; /* 1 << enum ad_msg_limit: asked for, not a default */
	struct ad_msg_limits limits;
	struct ad_msg_machine {    /* zero without AD_SPAWN_MACHINE */
		uint32_t uid, gid; /* what it becomes if the helper is root */
		/* That many descriptors come with the message, and are its 3, 4, ... */
		uint32_t fd_count;
	} machine;
	const char *workdir; /* "": stay where the helper is */
	/* Encoding reads these; decoding sets them to NULL: see ad_msg_spawn_vectors(). */
	const char *const *argv, *const *env;
	const uint8_t *profile; /* encoded; NULL: no sandbox */
	size_t profile_len;
	/* Set by decoding. */
	size_t argc, envc;
	const char *strings; /* argc, then envc strings, in the message */
};

/* Bytes the message takes, or SIZE_MAX if that is more than AD_MSG_SPAWN_MAX. */
size_t ad_msg_spawn_size(const struct ad_msg_spawn *spawn);
/* buf has room for ad_msg_spawn_size(). Returns what was written. */
size_t ad_msg_spawn_encode(const struct ad_msg_spawn *spawn, uint8_t *buf);
/* False if malformed. Points into buf. */
bool ad_msg_spawn_decode(struct ad_msg_spawn *ret, const uint8_t *buf, size_t len);
/* Fill the vectors, argc + 1 and envc + 1 pointers. */
void ad_msg_spawn_vectors(const struct ad_msg_spawn *spawn, const char **argv, const char **env);

/* ---- everything else */

/* Where a start failed. */
enum ad_msg_stage {
	AD_STAGE_REQUEST,    /* the helper could not take the request */
	AD_STAGE_SUPERVISOR, /* starting the supervisor */
	AD_STAGE_PIPE,
	AD_STAGE_STDIN,
	AD_STAGE_CGROUP,
	AD_STAGE_FORK,
	AD_STAGE_SESSION,
	AD_STAGE_STDIO,
	AD_STAGE_RLIMIT,
	AD_STAGE_CREDENTIALS,
	AD_STAGE_WORKDIR,
	AD_STAGE_EXEC,
	AD_STAGE_LIMIT, /* a limit that nothing here can enforce; text names it */
	AD_STAGE_LOST,  /* the supervisor died under the command */
	AD_STAGE_LAYER, /* a layer of the sandbox cannot be put up; index: enum ad_layer */
	AD_STAGE_PATH,  /* a path of the profile; index: which; text: what is wrong */
	AD_STAGE_VIEW,  /* the rest of the file system view; text: what */
	AD_STAGE_COUNT
};

/* How something is enforced; the values of enum ad_launch_means. */
enum ad_msg_means {
	AD_MSG_MEANS_NONE,
	AD_MSG_MEANS_RLIMIT,
	AD_MSG_MEANS_WATCHDOG,
	AD_MSG_MEANS_CGROUP1,
	AD_MSG_MEANS_CGROUP2,
	AD_MSG_MEANS_PIDNS, /* the end of its pid namespace ends the tree */
	AD_MSG_MEANS_COUNT
};

/* What became of a layer of the sandbox. */
enum ad_msg_layer_state {
	AD_MSG_LAYER_NONE, /* no sandbox, or not wanted */
	AD_MSG_LAYER_ENFORCED,
	AD_MSG_LAYER_DEGRADED, /* not to be had, and the policy does not insist */
	AD_MSG_LAYER_STATES
};

struct ad_msg_receipt {
	uint8_t memory, pids, cpu, cpu_time, io, tree_kill; /* enum ad_msg_means */
	uint8_t landlock_abi;
	uint8_t layers[AD_LAYER_COUNT];       /* enum ad_msg_layer_state */
	uint16_t layer_errno[AD_LAYER_COUNT]; /* why one is degraded */
	uint32_t uid, gid;                    /* outside */
};

enum ad_msg_denied_kind {
	AD_MSG_DENIED_SYSCALL,
	AD_MSG_DENIED_PATH, /* a protected name: it was moved aside */
	AD_MSG_DENIED_LEFT, /* it could not be looked at, or moved, or put back */
	AD_MSG_DENIED_KINDS
};

enum {
	AD_STARTED_STDERR = 1,
	AD_STARTED_STDIN = 2,
	AD_STARTED_NETWORK = 4, /* the listening socket of ad_profile.proxy_port */
	AD_STARTED_FLAGS = 7
};

struct ad_msg_usage {
	uint64_t cpu_ns, memory_peak;
	uint32_t survivors;
	bool peak_is_tree;
};

struct ad_msg {
	enum ad_msg_type type;
	uint32_t job; /* 0 in HELLO only */
	union {
		struct {
			int32_t signo;
		} signal;
		struct {
			int32_t pid;
			struct ad_msg_receipt best; /* what this machine allows */
			char version[AD_MSG_TEXT_MAX];
		} hello;
		struct {
			int32_t pid;
			uint32_t flags; /* AD_STARTED_* */
			struct ad_msg_receipt receipt;
		} started;
		struct {
			uint32_t stage; /* enum ad_msg_stage */
			uint32_t index; /* as the stage says */
			int32_t os_errno;
			char text[AD_MSG_TEXT_MAX]; /* what it was about: a path */
		} failed;
		struct {
			uint32_t limit; /* enum ad_msg_limit */
			bool fatal;
		} limit;
		struct {
			uint32_t kind; /* enum ad_msg_denied_kind */
			char target[AD_MSG_TEXT_MAX];
		} denied;
		struct {
			int32_t wait_status;
			uint64_t at_ns;
			struct ad_msg_usage usage;
		} ended; /* EXITED has no usage, CLOSED nothing else */
	} u;
};

/* buf has room for AD_MSG_FIXED_MAX bytes. Returns the length. Texts are cut to
 * what fits. */
size_t ad_msg_encode(const struct ad_msg *msg, uint8_t *buf);
/* False if malformed, or SPAWN. */
bool ad_msg_decode(struct ad_msg *ret, const uint8_t *buf, size_t len);
/* The type of a message of this version, or 0. */
uint8_t ad_msg_peek(const uint8_t *buf, size_t len);

#endif
