/* SPDX-License-Identifier: MIT */
/* Private to agentd-helper; docs/helper.md tells how the parts work together. */
#ifndef AD_HELPER_H
#define AD_HELPER_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "proto/helper_msg.h"
#include "util/util.h"

struct sandbox;
struct protection;

/* The socket, where the library put it. */
enum { HELPER_SOCKET = 3, HELPER_HOST_PIDFD = 4 };

/* ---- the helper's own process (main.c; job.h has the rest of it) */

/* In another, forked by it: what is only the helper's is closed. */
void close_ours(void);
/* After fork(2): what the next command needs is copied now. */
void own_pages(void);

/* A page costs a fault of some 4 us at its first use, and after fork(2) at its first use again.
 * This one is used now, while nobody waits. */
static inline void own_page(void *at)
{
	volatile uint8_t *byte = at;

	*byte = *byte;
}

/* ---- /proc (scan.c) */

struct proc {
	pid_t pid, ppid, pgid, sid;
	pid_t top; /* child of the base it descends from; 0: not beneath the base */
	bool zombie, stopped, visited;
	uint32_t threads;
	uint64_t cpu_ticks; /* its own and of what it reaped */
};

struct proc_table {
	struct proc *procs; /* by ascending pid */
	size_t count, cap;
};

/* Whether processes can be listed here at all. */
bool proc_usable(void);
/* Ended, or a zombie, for sure: what cannot be looked at is not. */
bool proc_gone(pid_t pid);
/* Take stock and find who descends from base. False if that is not possible; the
 * table is then what was seen. */
bool proc_scan(struct proc_table *table, pid_t base);
const struct proc *proc_find(const struct proc_table *table, pid_t pid); /* or NULL */
void proc_table_free(struct proc_table *table);
/* SIGKILL to the descendants of base, but for children of it that are spared (NULL:
 * none) and what descends from those. They may be forking: a storm of them is stopped
 * first, for as long as patience. Repeat until it returns 0, the number of living
 * ones it met. */
size_t proc_kill_tree(pid_t base, bool (*spared)(pid_t child), uint64_t patience_ns);
/* Bytes written to storage by pid and what it reaped; 0 if unreadable. */
uint64_t proc_io_written(pid_t pid);
/* Anonymous resident memory. */
uint64_t proc_anon_bytes(pid_t pid);
uid_t proc_uid(pid_t pid);

/* Read a small file whole, NUL-terminated. Length or a negative errno. */
ssize_t read_small(int dirfd, const char *path, char *buf, size_t cap);
/* Decimal after prefix at the start of a line of text; 0 if there is none. */
uint64_t value_of(const char *text, const char *prefix);

/* ---- cgroups (cgroup.c) */

enum cgroup_controller { CG_MEMORY, CG_PIDS, CG_CPU, CG_KILL, CG_COUNT };

/* What the counters of a leaf said when it was taken, and at the end. */
struct cgroup_counters {
	uint64_t oom_kills, pids_hits, cpu_usec;
};

struct leaf {
	struct ad_list link; /* in the pool */
	uint32_t number;
	uint8_t made;                      /* bit per hierarchy: the directory exists */
	bool broken;                       /* a limit could not be set */
	enum ad_msg_means means[CG_COUNT]; /* what it does */
	uint64_t limit[CG_COUNT];          /* what it was made for */
	struct cgroup_counters counted;    /* so far */
};

/* Find what can be used, remove what dead helpers left behind. Once. */
void cgroup_init(void);
/* How a controller can be used. */
enum ad_msg_means cgroup_means(enum cgroup_controller controller);
/* A leaf with these limits, or NULL if there is nothing to be had from one. pidns: the end of a
 * pid namespace ends what is in it, and it is not wanted for that. */
struct leaf *cgroup_take(const struct ad_msg_limits *limits, bool pidns);
/* Is this (NULL: none) what cgroup_take() would give, if it were asked? */
bool cgroup_fits(const struct leaf *leaf, const struct ad_msg_limits *limits, bool pidns,
		 bool asked_for);
/* Give it back; reusable: empty, and counted is right. */
void cgroup_release(struct leaf *leaf, bool reusable);
/* Remove all leaves in the pool. */
void cgroup_cleanup(void);
/* CPU time used in the leaf, or false if it cannot tell. */
bool cgroup_cpu_usec(const struct leaf *leaf, uint64_t *ret);
void cgroup_kill(const struct leaf *leaf);

/* In the supervisor. Descriptors by which a process enters. */
struct cgroup_entry {
	int tasks[CG_COUNT]; /* write "0" */
	size_t count;
	int v2_dir;   /* CLONE_INTO_CGROUP, or -1 */
	int v2_procs; /* write "0" where that does not work, or -1 */
};
int cgroup_open_entry(const struct leaf *leaf, struct cgroup_entry *ret);
void cgroup_close_entry(struct cgroup_entry *entry);
/* What a leaf tells, by files that were opened ahead (-1: there is none). */
enum cgroup_gauge { GAUGE_OOM_KILLS, GAUGE_PIDS_HITS, GAUGE_CPU, GAUGE_MEMORY_PEAK, GAUGE_COUNT };
struct cgroup_gauges {
	int fds[GAUGE_COUNT];
};
/* leaf NULL: none. */
void cgroup_open_gauges(const struct leaf *leaf, struct cgroup_gauges *ret);
/* gauges NULL: the files are opened now. */
void cgroup_count(const struct leaf *leaf, const struct cgroup_gauges *gauges,
		  struct cgroup_counters *ret);
/* Peak of the tree, or 0. */
uint64_t cgroup_memory_peak(const struct leaf *leaf, const struct cgroup_gauges *gauges);

/* ---- the command (command.c) */

struct command {
	const char *const *argv, *const *env;
	const char *workdir;
	int stdio[3];
	const struct ad_msg_limits *limits;
	uint64_t memory_rlimit, nproc_rlimit; /* 0: none */
	bool set_ids;
	uid_t uid;
	gid_t gid;
	struct cgroup_entry *cgroup;
	pid_t parent;
	const struct machine_command *machine; /* or NULL */
	const struct sandbox *sandbox;         /* or NULL */
	int landlock;                          /* ruleset, or -1 */
	/* A child that stands still until the rest is known, our end of what it waits at and its
	 * own; gate -1: there is none. */
	pid_t waiting;
	int waiting_fd; /* pidfd; or -1 */
	int gate, gate_inner;
	/* How the child itself comes to know the rest: when that begins, news is COMMAND_COMING,
	 * and COMMAND_KNOWN when all is there. False: there will be no command, or stage and
	 * error tell why not. */
	bool (*learn)(struct command *command);
	enum { COMMAND_UNKNOWN, COMMAND_COMING, COMMAND_KNOWN } news;
	int handed;  /* with what it asked for last, or -1 */
	void *stack; /* a child's */
	/* Come back through shared memory. */
	uint32_t stage, index;
	int error;
	int listener; /* of the system call filter, or -1 */
};

/* ---- Landlock for a virtual machine monitor (landlock.c) */

int landlock_abi(void); /* 0: none */
/* Its program and what that is made of, and the files it is handed: a ruleset, or a
 * negative errno. */
int landlock_make_machine(int abi, const char *program, const int *fds, size_t fd_count);

/* What is different for a virtual machine monitor. */
struct machine_command {
	const int *fds; /* become 3, 4, ... */
	size_t fd_count;
	gid_t device_group; /* besides its own, to open /dev/kvm; 0: none */
	bool small_pages;
};

/* Make its process ahead, as far as cgroup, sandbox and landlock go. If that fails,
 * command_start() begins anew, and has the reason. */
void command_stand_by(struct command *command);
/* Wait until that process has learned what the command is, and runs it or could not. If it
 * died before there was a command, it is as if there had been none. False: it asks for what it
 * has no right to do, and waits. */
bool command_await(struct command *command);
/* It is done: the same again. If that process cannot be told, it is ended: command_start() makes
 * another. */
bool command_go_on(struct command *command);
/* In that process, whose descriptors are its own: ask for that, with one of them (-1: none), which
 * becomes the supervisor's command->handed. False: it will never be done. */
bool command_ask(const struct command *command, int fd);
/* End that process. */
void command_dismiss(struct command *command);
/* Start it; its pid, or a negative errno with *ret_stage set. */
pid_t command_start(struct command *command, uint32_t *ret_stage);

/* What the failed stage was about. */
const char *command_stage_text(const struct command *command, uint32_t stage);

/* ---- its pipes (stdio.c) */

struct pipes {
	int child[3], host[3]; /* by stream; -1: none */
	int null;              /* instead of input, or -1 */
};

/* All that a command may need. AD_STAGE_COUNT, or the stage that failed, with errno. */
uint32_t pipes_make(struct pipes *pipes);
/* What this one is to have as 0 to 2: AD_SPAWN_*. */
void pipes_of_command(const struct pipes *pipes, uint32_t flags, int ret[static 3]);
/* Keep only that. */
void pipes_choose(struct pipes *pipes, uint32_t flags);
void pipes_close(const struct pipes *pipes);

/* ---- a virtual machine monitor (machine.c) */

/* Start it: its pid, and the pipe that it writes to; or a negative errno, where and about
 * what. fds came with the message. */
pid_t machine_start(const struct ad_msg_spawn *spawn, const struct leaf *leaf, bool set_ids,
		    const int *fds, int landlock, int *ret_output, uint32_t *ret_stage,
		    const char **ret_text);

/* ---- the supervisor (supervise.c) */

/* Shared between the helper and one supervisor. Orders are what is wanted here;
 * SIGNAL_ORDER says that there is something. That signal is a bit and not an entry in
 * the user's signal queue, which the command may have filled; and whoever else sends it
 * orders nothing. */
struct slot {
	_Atomic uint64_t signals_wanted; /* 1 << (signal - 1) */
	_Atomic uint32_t limit_wanted;   /* 1 + enum ad_msg_limit that was exceeded */
	_Atomic uint32_t kill_wanted;
	_Atomic uint32_t kill_seen;     /* the order to kill has arrived */
	_Atomic uint32_t command_waits; /* of a session: for a supervisor */
	_Atomic uint32_t over;          /* all there is to report was reported */
	/* The struct request.attempt of the reaper that is to run the command, others end;
	 * NO_ATTEMPT: there is none; 0: it is not known yet. */
	_Atomic uint32_t granted;
	_Atomic uint64_t io_reaped;     /* written by what it reaped */
	struct cgroup_counters counted; /* valid after SUPERVISOR_DONE */
};

/* How the limits of a command are enforced. */
struct enforcement {
	struct ad_msg_receipt receipt;
	uint64_t memory_rlimit, nproc_rlimit; /* 0: none */
};

struct helper_shared;
struct request_content;
struct supervise;

enum { VECTORS_READY = 64 };

/* What a supervisor can have made before its command is known. */
struct standby {
	int signal_fd;
	struct cgroup_entry entry; /* where none was given */
	struct cgroup_gauges gauges;
	struct pipes pipes;
	struct command command;
	const char
		*vectors[VECTORS_READY]; /* its arguments and environment, unless they are more */
	/* Where the command's process hears of it. */
	struct supervise *job;
	const struct helper_shared *shared;
	int sock;
	const struct request_content *content;
};

struct supervise {
	const struct ad_msg_spawn *spawn;
	struct slot *slot;
	const struct leaf *leaf;
	struct cgroup_counters counted; /* of the leaf, before the command */
	struct cgroup_entry *entry;     /* of the leaf; NULL: to be opened */
	struct standby *standby;        /* or NULL */
	struct enforcement enforcement;
	bool set_ids;
	pid_t helper;
	/* In a sandbox we are pid 1 of the command's own pid namespace. */
	const struct sandbox *sandbox; /* or NULL */
	/* In a session's namespaces, whose pid 1 is another: a command's background processes
	 * outlive it. */
	bool in_session;
	struct protection *protection;
	int helper_pidfd, landlock;
	uint64_t files_limit; /* of its private files, as it is */
	int network;          /* listening socket that the library is to have, or -1 */
	int taken; /* where to write a byte once the command has started, or not; or -1 */
	/* What is left to do when the command is known, in whatever process hears of it; NULL:
	 * nothing. 0, a negative errno, or SUPERVISE_ASK: it takes the supervisor's rights. */
	int (*begin)(struct supervise *job, const struct request_content *content);
	/* With those; takes the token (-1: none). Ends with supervise_failed() if it must. */
	void (*begin_with_rights)(struct supervise *job, int token);
};

enum { SUPERVISE_ASK = 1 };

#define SIGNAL_ORDER (SIGRTMIN)
#define SIGNAL_HELPER_DIED (SIGRTMIN + 1)

/* Exit statuses of a supervisor. */
enum {
	SUPERVISOR_DONE = 0,
	SUPERVISOR_LOST = 1,
	SUPERVISOR_SURVIVORS = 3,
	SUPERVISOR_SESSION_OVER = 4 /* a session's pid 1; the helper reports it */
};

/* Before spawn, enforcement and set_ids are known: the command's process waits for the request
 * at sock. False: it could not; there is no use in waiting. */
bool supervise_stand_by(struct supervise *job, struct standby *standby, int sock,
			const struct helper_shared *shared);
/* Wait for the request at sock, and put into job what is known by now. NULL: there will be
 * no command. What is returned stays until the process ends. */
const struct request_content *supervise_await(struct supervise *job, int sock,
					      const struct helper_shared *shared);
_Noreturn void supervise(struct supervise *job);
/* What has to be reported if it cannot begin. */
_Noreturn void supervise_failed(const struct supervise *job, uint32_t stage, uint32_t index,
				int error, const char *text);

#endif
