/* SPDX-License-Identifier: MIT */
/* The helper's own process, private to it, the way of a command from top to bottom:
 *   main.c         messages in, and the loop;
 *   start.c        a command's message: who will supervise it, made or found waiting;
 *   plan.c         by what its limits are enforced;
 *   job.c          the table of what there is, and orders to it;
 *   job_session.c  sessions, and their commands;
 *   watch.c        limits that no control group enforces;
 *   bury.c         the dead, and what they left running;
 *   report.c       messages out.
 * What it starts are other processes: supervise.c, and sandbox.h. */
#ifndef AD_HELPER_JOB_H
#define AD_HELPER_JOB_H

#include "helper/sandbox.h"

/* What these parts share. */
struct helper {
	uid_t uid;
	gid_t gid;
	bool ids_plain; /* real, effective and saved ids are the same */
	bool proc_usable, host_lost;
	int hello_fd; /* supervisors of sessions */
	int ended_fd; /* epoll: those that have a command, by its id */
	struct ad_list jobs;
	struct helper_shared shared;
	struct proc_table table;
};
extern struct helper helper;

/* ---- job.c */

/* What a command that waits for its template, or for a supervisor of its session, came with. */
struct waiting {
	uid_t uid;
	gid_t gid;
	int fds[AD_SYS_FDS_MAX];
	size_t fd_count;
	bool memory_file; /* the message is in the first descriptor */
	size_t len;
	uint8_t message[];
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

enum { WATCH_MEMORY = 1, WATCH_PIDS = 2, WATCH_CPU_TIME = 4, WATCH_IO = 8 };

struct job {
	struct ad_list by_id, by_pid, all;
	uint32_t id;
	pid_t pid; /* the supervisor; 0 before it is born and once it is reaped */
	struct slot *slot;
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

bool jobs_init(void);
struct job *job_by_id(uint32_t id);
struct job *job_by_pid(pid_t pid);
/* In the order in which they came. NULL: the first, and after the last. */
struct job *job_next(const struct job *after);
/* NULL: its failure is reported. */
struct job *job_new(uint32_t id);
/* leaf_reusable: nothing of it is alive, and what the leaf counted is noted. */
void job_free(struct job *job, bool leaf_reusable);
/* pid supervises it, or is the monitor. */
void job_started(struct job *job, pid_t pid);
uint32_t job_slot_number(const struct job *job);
/* Part of own_pages(). */
void jobs_own_pages(void);

/* Ring the bell of its supervisor, after the order is written to the slot. */
void job_ring(const struct job *job);
void job_signal(struct job *job, int signo);
/* Both: the job may be gone afterwards. */
void job_kill(struct job *job);
void job_limit(struct job *job, enum ad_msg_limit limit);
/* Kill supervisors that do not obey. When to look again; UINT64_MAX: not before another order. */
uint64_t jobs_check(uint64_t now);

/* ---- plan.c */

/* AD_MSG_MEANS_* by which that leaf (NULL: none) has the controller. */
uint8_t means_of(const struct leaf *leaf, enum cgroup_controller controller);
/* By what each limit will be enforced, with a control group of its own if use_cgroups. False: the
 * job failed, for one that must be a control group's cannot be. */
bool plan_limits(struct job *job, const struct ad_msg_spawn *spawn, bool use_cgroups,
		 struct enforcement *ret);
/* The same in a sandbox, whose policy has such a strictness for control groups. */
bool plan_sandbox(struct job *job, const struct ad_msg_spawn *spawn, uint8_t strictness,
		  struct enforcement *ret);
/* What the helper can do at best. */
void plan_best(struct ad_msg_receipt *ret);

/* ---- start.c */

void start_job(const struct ad_msg_spawn *spawn, struct ad_sys_msg *from, bool memory_file);
/* The message is in a memory file. */
void start_from_fd(struct ad_sys_msg *in, uint32_t id);
/* What it waited for is there, or cannot be. */
void start_waiting(struct job *job);
/* All whose template is not being made any more. */
void start_all_waiting(void);

/* ---- job_session.c */

bool sessions_init(void);
/* Part of close_ours(). */
void sessions_close_ours(void);
/* It will be a session, with this end of its socket. False: errno says why. */
bool session_make(struct job *job, const struct enforcement *enforcement, int *ret_end);
/* Its commands have ended before it, or never began. */
void session_forget(struct job *job);
/* Ready for commands. */
bool session_is_open(const struct job *session);
/* Else it makes its next supervisor when the command before has had its time. */
void session_hurry(const struct job *session);
/* Its supervisor waits. */
void session_start(struct job *job, const struct ad_msg_spawn *spawn, const struct ad_sys_msg *from,
		   bool memory_file);
/* Hear of supervisors that wait, and of those that have ended. */
void sessions_read_hello(void);
void sessions_read_ended(void);
/* Its pid 1 has ended so. */
void session_over(struct job *job, int status);

/* ---- watch.c */

/* A job has begun. */
void watch_soon(const struct job *job);
void watch_step(uint64_t now);
uint64_t watch_next(void); /* when there is something to do; UINT64_MAX: never */

/* ---- bury.c */

/* Children that are dead: signal_fd says so. */
void bury(int signal_fd);
/* Kill what supervisors that died have left to us; say so when it is gone. */
void bury_step(uint64_t now);
uint64_t bury_next(void); /* when there is something to do; UINT64_MAX: never */

/* ---- report.c */

void report(const struct ad_msg *msg);
/* fd: goes with it, or -1; is taken. */
void report_with(const struct ad_msg *msg, int fd);
void report_failed(uint32_t job, uint32_t stage, int error, const char *text);
void report_fault(uint32_t job, uint32_t stage, uint32_t index, int error, const char *text);
/* Something waits for the library to listen. */
bool report_waits(void);
void report_flush(void);

#endif
