/* SPDX-License-Identifier: MIT */
/* What the library and the agent in a virtual machine say to each other, over one byte
 * stream without message boundaries. One codec and one state machine for both sides.
 * Pure: no I/O, no clock; the only memory is two bounded queues and one frame. Either
 * side takes the other as hostile: whatever is not exactly right breaks the link for
 * good. docs/guest-protocol.md has the format and the order of messages. */
#ifndef AD_PROTO_GUEST_H
#define AD_PROTO_GUEST_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* In the agent's HELLO. An image that is older or newer than the library is refused. */
enum { AD_GUEST_VERSION = 2 };

enum {
	/* Of each frame: length of the body 4, type 1, stream 1, zero 2, task 4. */
	AD_GUEST_HEADER = 12,
	/* Of one DATA frame: at 32 KiB a virtio-serial port is at its fastest (measured). */
	AD_GUEST_DATA_MAX = 32 * 1024,
	AD_GUEST_TEXT_MAX = 1024, /* texts, with their NUL */
	/* RUN is the only frame larger than a full DATA frame, and only goes to the guest. */
	AD_GUEST_RUN_MAX = 4 * 1024 * 1024,
	/* What may be under way in each stream without having been taken: a queue in the
	 * guest's kernel holds 32 MB, and a cancel would wait behind it. */
	AD_GUEST_WINDOW = 256 * 1024,
	/* Commands and transfers at once. */
	AD_GUEST_TASKS_MAX = 64,
	/* Connections at once of the one command that has a network, and the window of each
	 * direction of them: 8 MiB each way in all. */
	AD_GUEST_CONNECTIONS_MAX = 128,
	AD_GUEST_CONNECTION_WINDOW = 64 * 1024,
	AD_GUEST_PROXY_PORT = 911, /* where they are made, in the guest */
	AD_GUEST_SEED_SIZE = 32
};

enum ad_guest_role { AD_GUEST_HOST, AD_GUEST_AGENT };

enum ad_guest_type {
	/* host to guest */
	AD_GUEST_SETUP = 1, /* before all but PING; in a clone it comes after the cloning */
	AD_GUEST_RUN = 2,   /* begins a task: a command */
	AD_GUEST_SIGNAL = 3,
	AD_GUEST_KILL = 4, /* the whole tree of a command, or end a transfer */
	AD_GUEST_PUT = 5,  /* begins a task: files into the guest, AD_GUEST_FILES_IN */
	AD_GUEST_GET = 6,  /* begins a task: what changed since, AD_GUEST_FILES_OUT */
	AD_GUEST_STOP = 7, /* end all processes, unmount the volume and power off */
	AD_GUEST_WARM = 8, /* before SETUP: have in memory what commands will need */
	/* both */
	AD_GUEST_DATA = 32,
	AD_GUEST_END = 33,    /* of a stream */
	AD_GUEST_CREDIT = 34, /* more of a stream may be sent */
	AD_GUEST_PING = 35,
	AD_GUEST_PONG = 36,
	AD_GUEST_HANGUP = 37, /* of a connection: nothing more is sent, or taken */
	/* guest to host */
	AD_GUEST_HELLO = 64, /* the agent is there; first */
	AD_GUEST_READY = 65, /* answers SETUP */
	AD_GUEST_STARTED = 66,
	AD_GUEST_FAILED = 67, /* the command could not be started; ends the task */
	AD_GUEST_LIMIT = 68,
	AD_GUEST_EXITED = 69,
	AD_GUEST_CLOSED = 70, /* nothing of the command is alive; ends the task */
	AD_GUEST_DONE = 71,   /* of PUT or GET; ends the task */
	AD_GUEST_LOG = 72,
	AD_GUEST_OPEN = 73 /* a connection: a client in the guest has made it */
};

enum ad_guest_stream {
	AD_GUEST_STDIN,     /* to the guest */
	AD_GUEST_STDOUT,    /* to the host */
	AD_GUEST_STDERR,    /* to the host */
	AD_GUEST_FILES_IN,  /* to the guest */
	AD_GUEST_FILES_OUT, /* to the host */
	AD_GUEST_STREAMS
};

enum {
	AD_GUEST_RUN_STDIN = 1,
	AD_GUEST_RUN_MERGE_STDERR = 2,
	AD_GUEST_RUN_STAY = 4, /* what it leaves in the background is not waited for */
	/* It has the machine's network: its clients reach the host at a port of the guest's
	 * loopback. One command at a time. */
	AD_GUEST_RUN_NET = 8,
	AD_GUEST_RUN_FLAGS = 15
};

/* Limits that the guest enforces; LIMIT names one. */
enum ad_guest_limit {
	AD_GUEST_LIMIT_MEMORY,
	AD_GUEST_LIMIT_PIDS,
	AD_GUEST_LIMIT_CPU_TIME,
	AD_GUEST_LIMIT_IO,
	AD_GUEST_LIMITS
};

/* Where a start failed. */
enum ad_guest_stage {
	AD_GUEST_STAGE_REQUEST,
	AD_GUEST_STAGE_CGROUP,
	AD_GUEST_STAGE_FORK,
	AD_GUEST_STAGE_SETUP,
	AD_GUEST_STAGE_WORKDIR,
	AD_GUEST_STAGE_EXEC,
	AD_GUEST_STAGES
};

struct ad_guest_limits { /* 0: none */
	uint64_t memory, pids, cpu_time_ms, io, file, open_files, cpu_ms_per_100ms;
};

/* Texts and vectors are borrowed: when sending from the caller, when receiving from the
 * link until the callback returns. Texts are never NULL when receiving. */
struct ad_guest_msg {
	enum ad_guest_type type;
	uint32_t id; /* of a task; 0 in those that belong to none */
	/* 1 to AD_GUEST_CONNECTIONS_MAX: DATA, END and CREDIT are of that connection of the
	 * task, and their stream is 0; or 0. */
	uint16_t connection;
	union {
		struct {
			uint8_t seed[AD_GUEST_SEED_SIZE];
			uint64_t realtime_ns; /* CLOCK_REALTIME */
			const char *volume;   /* where the disk "vol" belongs; "": nowhere */
			uint32_t uid, gid;    /* whose its root directory becomes */
		} setup;
		struct {
			uint32_t grace_ms; /* from SIGTERM to SIGKILL */
		} stop;
		struct {
			uint32_t flags; /* AD_GUEST_RUN_* */
			uint32_t uid, gid;
			struct ad_guest_limits limits;
			const char *workdir;
			const char *const *argv, *const *env; /* NULL-terminated */
		} run;
		struct {
			int32_t signo;
		} signal;
		struct {
			const char *path;   /* absolute directory in the guest */
			uint64_t max_bytes; /* PUT, GET: more of file content is an error */
			uint32_t uid, gid;  /* PUT: whose the files become */
		} files;
		struct {
			enum ad_guest_stream stream;
			const uint8_t *data;
			size_t len; /* 1 to AD_GUEST_DATA_MAX */
		} data;
		struct {
			enum ad_guest_stream stream;
		} end;
		struct {
			enum ad_guest_stream stream;
			uint32_t bytes;
		} credit;
		struct {
			uint64_t token;
		} ping; /* and PONG */
		struct {
			uint32_t version;
			uint64_t uptime_ns, memory_bytes;
			const char *kernel; /* release */
		} hello;
		struct {
			int32_t os_errno; /* 0: fine */
			const char *text; /* what went wrong */
		} ready;
		struct {
			int32_t pid;
		} started;
		struct {
			enum ad_guest_stage stage;
			int32_t os_errno;
			const char *text; /* what it was about */
		} failed;
		struct {
			enum ad_guest_limit limit;
			bool fatal;
		} limit;
		struct {
			int32_t wait_status; /* as from waitpid(2): exited or signaled */
			uint64_t lived_ns;   /* from STARTED, by the guest's clock */
		} exited;
		struct {
			uint64_t cpu_ns, memory_peak;
			uint32_t survivors;
		} closed;
		struct {
			int32_t os_errno;
			uint64_t entries, bytes;
			const char *text;
		} done;
		struct {
			int32_t level; /* AGENTD_LOG_* */
			const char *text;
		} log;
	} u;
};

struct ad_guest_link;

struct ad_guest_link_events {
	/* A message that is right in its place. CREDIT, PING and PONG are the link's own
	 * business but for PONG, which arrives here. May send, but not feed or free. */
	void (*message)(const struct ad_guest_msg *msg, void *userdata);
	/* ad_guest_link_data() takes from this stream again, after it had not taken all. */
	void (*writable)(uint32_t id, enum ad_guest_stream stream, void *userdata);
	/* The same of a connection, after ad_guest_link_connection_room() was 0. */
	void (*connection_writable)(uint32_t id, uint16_t connection, void *userdata);
};

/* NULL: out of memory. */
struct ad_guest_link *ad_guest_link_new(enum ad_guest_role role,
					const struct ad_guest_link_events *events, void *userdata);
void ad_guest_link_free(struct ad_guest_link *link);

/* Bytes that came. False: the peer broke the protocol, or memory ran out; then and ever
 * after ad_guest_link_error() says why, and nothing more is delivered. */
bool ad_guest_link_feed(struct ad_guest_link *link, const uint8_t *data, size_t len);
/* NULL while all is well. */
const char *ad_guest_link_error(const struct ad_guest_link *link);
/* It was memory that ran out, which any function may find. */
bool ad_guest_link_starved(const struct ad_guest_link *link);

/* Bytes to be sent next: control before data, frames whole. Points into the link until
 * the next call of any function; *ret_len 0: nothing. Then say how many were sent. */
const uint8_t *ad_guest_link_peek(struct ad_guest_link *link, size_t *ret_len);
void ad_guest_link_sent(struct ad_guest_link *link, size_t len);
/* Is there a message of this type to this task that was not sent whole? */
bool ad_guest_link_holds(const struct ad_guest_link *link, enum ad_guest_type type, uint32_t id);

/* Send any message but DATA, CREDIT and PONG. False: not allowed now (a task that is
 * over: harmless, it crossed with its end), or broken, or too large. */
bool ad_guest_link_send(struct ad_guest_link *link, const struct ad_guest_msg *msg);
/* Send of a stream what credit and the queue have room for. Returns how much was taken;
 * less than len: writable follows. 0 for a stream that is over. */
size_t ad_guest_link_data(struct ad_guest_link *link, uint32_t id, enum ad_guest_stream stream,
			  const uint8_t *data, size_t len);
/* len bytes that arrived in a stream are dealt with: the peer may send as many more. */
void ad_guest_link_taken(struct ad_guest_link *link, uint32_t id, enum ad_guest_stream stream,
			 size_t len);

/* ---- connections, of the command that has the network */

/* What OPEN may be sent with now: the connection's number, and *ret_id the task's; 0: there
 * is no such command, or as many connections as may be. */
uint16_t ad_guest_link_free_connection(const struct ad_guest_link *link, uint32_t *ret_id);
/* So much may be sent at once of a connection; 0: connection_writable follows, or it is over. */
size_t ad_guest_link_connection_room(struct ad_guest_link *link, uint32_t id, uint16_t connection);
/* As of a stream. */
size_t ad_guest_link_connection_data(struct ad_guest_link *link, uint32_t id, uint16_t connection,
				     const uint8_t *data, size_t len);
void ad_guest_link_connection_taken(struct ad_guest_link *link, uint32_t id, uint16_t connection,
				    size_t len);

#endif
