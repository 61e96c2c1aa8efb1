/* SPDX-License-Identifier: MIT */
/* The parts of the agent, the first process of a virtual machine. It is one loop around
 * the link to the library: nothing it does for one task may wait for another. A task is a
 * command or a transfer of files; each has a control group of its own. */
#ifndef AD_GUEST_PARTS_H
#define AD_GUEST_PARTS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "proto/guest.h"
#include "sys/sys.h"
#include "util/util.h"

/* ---- boot.c: the machine */

struct fault {
	int error; /* 0: none */
	char text[AD_GUEST_TEXT_MAX];
};

/* Keeps the first. Always false. */
bool fault_set(struct fault *fault, int error, const char *fmt, ...) AD_PRINTF(3, 4);

/* Up to where the library can be spoken to. Returns the port, or powers off. */
int boot_port(void);
/* Everything else: disks, the root directory, control groups. */
bool boot_root(struct fault *fault);
bool boot_seed(const uint8_t seed[static AD_GUEST_SEED_SIZE], uint64_t realtime_ns,
	       struct fault *fault);
/* Run a shell once: what clones of this machine need is in their memory then. */
void boot_warm(void);
/* The disk "vol", as large as it is now, at this directory. */
bool boot_volume(const char *path, uid_t uid, gid_t gid, struct fault *fault);
/* The directory and those above; the last becomes the user's, if it is made. Negative
 * errno. */
int make_dirs(const char *path, uid_t uid, gid_t gid);
/* All processes end, and what is on the volume is complete. */
_Noreturn void stop_machine(uint32_t grace_ms);
_Noreturn void power_off(void);
/* To the kernel's log, for want of anything better; then power off. */
_Noreturn void give_up(const char *fmt, ...) AD_PRINTF(1, 2);

/* ---- cgroup.c */

/* memory_bytes: for all tasks together. Negative errno where something is missing. */
int cgroup_boot(uint64_t memory_bytes);

struct group {
	int dir; /* -1: none */
	uint32_t number;
};

/* A new group of a task, without limits yet. Negative errno. */
int cgroup_new(struct group *ret);
/* Negative errno. */
int cgroup_limit(int dir, const struct ad_guest_limits *limits);
void cgroup_remove(struct group *group);
void cgroup_kill(int dir);
/* A number in one of its files, after a word if one is given; 0 if there is none. */
uint64_t cgroup_number(int dir, const char *file, const char *word);
/* What is kept of all that it has written: in files that are in memory, and on disks. */
uint64_t cgroup_written(int dir);
uint32_t cgroup_count(int dir);
/* Readable (EPOLLPRI) when the group becomes empty. */
int cgroup_events(int dir);
/* Of all tasks together; not to be closed. */
int cgroup_tasks(void);
/* The directory of the group that has most memory, with its number; or a negative errno. */
int cgroup_largest(uint32_t *ret_number);

/* ---- agent.c: the loop */

struct watch {
	void (*ready)(struct watch *watch, uint32_t events);
	int fd;          /* -1: none */
	uint32_t events; /* that it is watched for */
};

/* EPOLL*; 0: not now. */
void watch_for(struct watch *watch, uint32_t events);
void watch_close(struct watch *watch);

struct ad_guest_link *agent_link(void);
void agent_send(const struct ad_guest_msg *msg);
_Noreturn void agent_run(int port);

/* ---- memory.c: a group that thrashes */

struct pressure {
	struct watch limit; /* that it came to it */
	int dir;            /* the group's, as long as this is open */
	bool looking;
	unsigned int times;
	uint64_t look_at, read_again, waited;
};

/* Negative errno. */
int pressure_open(struct pressure *pressure, int dir);
/* To be asked from time to time while `looking`. Whether there is no end of it, for which
 * it takes some seconds. */
bool pressure_hopeless(struct pressure *pressure);
void pressure_close(struct pressure *pressure);

/* ---- stream.c */

/* A pipe whose end of ours does not block. False: errno. */
bool pipe_open(int *ours, int *theirs, bool we_read);
/* One that what the library may be owed fits in: the fewer turns between writer and agent,
 * the better. One that cannot be so large will do. */
bool pipe_open_output(int *ours, int *theirs);

/* From a pipe to the library, as it takes it. */
struct outlet {
	struct watch watch;
	uint32_t id;
	enum ad_guest_stream stream;
	bool open; /* END is still to be sent */
	size_t start, end;
	size_t left; /* that is still wanted */
	/* With its header what one write to a virtio port takes: 32 KiB (Linux,
	 * drivers/char/virtio_console.c, port_fops_write). */
	uint8_t data[AD_GUEST_DATA_MAX - AD_GUEST_HEADER];
};

/* fd: non-blocking. The owner hears of the end by task_check(). */
void outlet_open(struct outlet *outlet, uint32_t id, enum ad_guest_stream stream, int fd);
void outlet_go_on(struct outlet *outlet);
/* What is in the pipe now is all that is wanted. */
void outlet_finish(struct outlet *outlet);
void outlet_close(struct outlet *outlet);

/* From the library to a pipe. */
struct inlet {
	struct watch watch;
	uint32_t id;
	enum ad_guest_stream stream;
	bool ending;
	struct ad_buf data; /* at most AD_GUEST_WINDOW */
};

void inlet_open(struct inlet *inlet, uint32_t id, enum ad_guest_stream stream, int fd);
void inlet_put(struct inlet *inlet, const uint8_t *data, size_t len);
void inlet_end(struct inlet *inlet);
void inlet_close(struct inlet *inlet);

/* ---- task.c: what is alive */

/* Once there are control groups. Negative errno. */
int task_boot(void);
void task_begin(const struct ad_guest_msg *msg);
void task_message(const struct ad_guest_msg *msg);
void task_writable(uint32_t id, enum ad_guest_stream stream);
/* Whether the task is over; what belongs to it ended. */
void task_check(uint32_t id);
void task_reap(pid_t pid, int wait_status);
/* Look at what nobody tells of. Returns whether to do so again soon. */
bool task_tick(void);

/* ---- net.c: the network of one task */

/* Listen; a negative errno if that cannot be. */
int net_open(uint32_t id);
/* Its clients may be accepted. */
void net_start(uint32_t id);
/* The end, if the network is this task's. */
void net_close(uint32_t id);
/* What belongs to a connection. */
void net_message(const struct ad_guest_msg *msg);
void net_writable(uint32_t id, uint16_t connection);
/* Connections that ended may have made room for others. */
void net_resume(void);

/* ---- command.c: starting one */

struct command {
	const char *const *argv, *const *env;
	const char *workdir;
	struct ad_guest_limits limits; /* those of a process: the rest are its group's */
	uid_t uid;
	gid_t gid;
	uint32_t flags; /* AD_GUEST_RUN_* */
};

/* Between the agent and a command's process. The first three are standard input, output and
 * error. */
enum {
	COMMAND_IN,
	COMMAND_OUT,
	COMMAND_ERR,
	COMMAND_FAULT,  /* why it did not come to its execve: struct command_fault */
	COMMAND_ORDERS, /* what one that was made ahead hears of its command by */
	COMMAND_PIPES
};

struct command_pipes {
	int ours[COMMAND_PIPES], theirs[COMMAND_PIPES]; /* all >= 3, as all descriptors here */
};

struct command_fault {
	enum ad_guest_stage stage;
	int error;
};

/* The agent may have as many descriptors as there are, for it keeps two of each group that a command
 * has left something in. Before the first fork, whose processes have what was usual before. */
void process_raise_files(void);
/* fork(2) into a control group; a negative errno if it cannot be. */
pid_t process_fork(int cgroup);
/* In a child: closes all descriptors from 3 on but these (-1: none). False: it cannot. */
bool keep_only(const int *fds, size_t count);
/* Negative errno. */
int command_pipes_open(struct command_pipes *pipes, bool ahead);
void command_pipes_close(struct command_pipes *pipes);
/* The pid, or a negative errno. The child's ends of the pipes are closed. NULL: the process
 * waits for its orders, and ends with that pipe. */
pid_t command_start(int cgroup, struct command_pipes *pipes, const struct command *command);
/* Whether a process that waits can be told so much. */
bool command_fits(const struct command *command);
/* To the one at the other end of this pipe. -1: errno. */
int command_order(int fd, const struct command *command);

/* ---- standby.c: a process made ahead of its command, of which a clone has one */

struct standby {
	pid_t pid; /* 0: none */
	struct group group;
	struct command_pipes pipes;
};

/* There is none. If it cannot be made, the next command starts as any later one does. */
void standby_make(void);
/* Nothing is left of it. */
void standby_drop(void);
/* It belongs to who takes it. pid 0: there is none for this command. */
struct standby standby_take(const struct command *command);
/* A child has ended: it may be the one that waited. */
void standby_reap(pid_t pid);

/* ---- transfer.c: files in and out, in a child: it may block and take memory */

struct transfer_report {
	bool last; /* what DONE says; else a line of the log */
	int32_t os_errno;
	uint64_t entries, bytes;
	char text[AD_GUEST_TEXT_MAX];
};

struct transfer {
	const struct ad_guest_msg *msg; /* PUT or GET */
	int archive;                    /* a pipe */
	int reports;                    /* a SOCK_SEQPACKET socket */
	int manifest;                   /* a memory file: written by PUT, read by GET */
	int cgroup;
};

/* The pid, or a negative errno. */
pid_t transfer_start(const struct transfer *transfer);

#endif
