/* SPDX-License-Identifier: MIT */
/* One command in a machine of its own:
 *
 *   booting          the machine boots, the carrier begins to pack the working directory
 *   filling          the archive goes in (PUT)
 *   starting         the command is started (RUN)
 *   running          its output comes; it exits; what is left of it ends (CLOSED)
 *   emptying         what changed comes back (GET) and the carrier applies it
 *   ending           the machine is stopped, the carrier ends
 *
 * In a session the machine is there already, and so are the files: the task begins with
 * starting and ends when it would begin to empty.
 *
 * The task is over when neither the machine nor the carrier is there any more. Whatever
 * goes wrong before the command has exited fails the task; what goes wrong afterwards
 * cannot change how the command ended, and is told as what it is: changes that did not
 * come back. */
#include "backend/microvm/private.h"

#include <errno.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>

#include <agentd/exec.h>
#include <agentd/log.h>
#include <agentd/policy.h>
#include <agentd/result.h>
#include <agentd/sink.h>

#include "proto/helper_msg.h"

/* A kill that the agent does not answer ends the machine. */
static const uint64_t kill_ns = 3000 * AD_NS_PER_MS;
/* For the archive, each way: what the carrier has, and as much for the guest. */
static const uint64_t carry_ns = 60000 * AD_NS_PER_MS;
/* For the agent to start the command then, which it does at once where it can. */
static const uint64_t start_ns = 60000 * AD_NS_PER_MS;
/* Of the guest's memory, for its kernel and agent; the rest is the command's at most. */
#define GUEST_RESERVE_BYTES (UINT64_C(48) << 20)
#define MEMORY_STEP (UINT64_C(256) << 20)
/* Numbers of what is asked of the agent, in a machine of one's own. */
enum { ID_PUT = 1, ID_RUN = 2, ID_GET = 3 };

enum phase { BOOTING, FILLING, STARTING, RUNNING, EMPTYING, ENDING };

struct vm_task {
	struct microvm *vm;
	agentd_task *task;
	const agentd_spec *spec;
	struct agentd_limits limits;
	uint32_t flags;
	enum phase phase;
	struct vm_session *session; /* or NULL */
	struct machine *machine;    /* its own, or the session's */
	uint32_t run_id;
	struct ad_defer begin; /* in a session */
	struct carrier *carrier;
	struct net *net; /* of a command that has one, from its start to its end */
	bool machine_over, carrier_over;
	bool packed, started, exited, closed, killing;
	bool stdin_closed, stdin_waited;
	bool paused[2];
	bool stopped;          /* it was not left to end by itself */
	struct ad_buf held[2]; /* came while paused, not more than a window */
	struct ad_defer go_on; /* a stream is no longer paused */
	uint64_t entries_in, bytes_in;
	struct ad_timer timer;
	agentd_error *err; /* why it fails */
};

/* ---- the end */

/* Something to deliver that is still waited for: when the machine is lost, not for who does
 * not read. */
static bool holds_output(const struct vm_task *self)
{
	bool lost = self->err && !self->exited;

	for (size_t i = 0; i < AD_COUNT(self->held); i++) {
		if (self->held[i].len > 0 && !(lost && self->paused[i]))
			return true;
	}
	return false;
}

static void settle_end(struct vm_task *self)
{
	if (self->phase != ENDING || !self->machine_over || !self->carrier_over ||
	    holds_output(self))
		return;
	ad_timer_stop(&self->timer);
	if (self->err && !self->exited)
		agentd_task_failed(self->task, AD_STEAL(self->err));
	else
		agentd_task_closed(self->task);
}

/* Stop what is still there; the task is over when it is gone. */
static void end(struct vm_task *self)
{
	bool alive = self->phase >= STARTING && !self->closed;

	if (self->phase == ENDING)
		return;
	self->phase = ENDING;
	ad_timer_stop(&self->timer);
	ad_defer_cancel(&self->begin);
	net_free(AD_STEAL(self->net));
	if (self->session && !alive)
		self->machine_over = true; /* for us */
	else if (self->session)
		session_broken(self->session);
	else if (!self->machine_over)
		machine_kill(self->machine);
	if (!self->carrier_over && self->err)
		carrier_kill(self->carrier);
	else if (!self->carrier_over)
		carrier_end(self->carrier);
	settle_end(self);
}

/* Takes err. */
static void fail(struct vm_task *self, agentd_error *err)
{
	if (self->phase == ENDING) {
		agentd_error_unref(err);
		return;
	}
	if (self->exited && !self->session &&
	    agentd_spec_workdir_access(self->spec) & AGENTD_ACCESS_WRITE) {
		ad_autobuf struct ad_buf text = { 0 };

		ad_buf_printf(&text,
			      "what the command changed in its working directory did not all come "
			      "back: %s",
			      agentd_error_message(err));
		agentd_task_log(self->task, AGENTD_LOG_ERROR, text.data ? text.data : "");
		agentd_task_protection(self->task, "workdir", AGENTD_LAYER_ABSENT,
				       text.data ? text.data : "");
		agentd_task_denied(self->task, "path", agentd_spec_workdir(self->spec), "workdir",
				   text.data ? text.data : "");
	}
	self->err = err;
	end(self);
}

static void fail_text(struct vm_task *self, int code, const char *text)
{
	fail(self, agentd_error_create(code, 0, text));
}

/* ---- bringing the working directory in */

static void send_run(struct vm_task *self);

static void begin_filling(struct vm_task *self)
{
	const struct ad_guest_msg put = {
		.type = AD_GUEST_PUT,
		.id = ID_PUT,
		.u.files = { .path = agentd_spec_workdir(self->spec),
			     .max_bytes = self->vm->workdir_bytes,
			     .uid = MICROVM_GUEST_UID,
			     .gid = MICROVM_GUEST_UID },
	};

	self->phase = FILLING;
	if (!machine_send(self->machine, &put) || ad_timer_start(&self->timer, carry_ns) < 0)
		fail_text(self, AGENTD_ERR_NOMEM, "the working directory could not be carried in");
	else
		carrier_go_on(self->carrier);
}

static size_t on_pack(struct carrier *carrier, const uint8_t *data, size_t len, void *userdata)
{
	struct vm_task *self = userdata;

	(void)carrier;
	return self->phase == FILLING ?
		       machine_data(self->machine, ID_PUT, AD_GUEST_FILES_IN, data, len) :
		       0;
}

static void end_filling(struct vm_task *self)
{
	const struct ad_guest_msg finish = {
		.type = AD_GUEST_END,
		.id = ID_PUT,
		.u.end = { .stream = AD_GUEST_FILES_IN },
	};

	if (self->phase == FILLING && self->packed)
		machine_send(self->machine, &finish);
}

static void on_packed(struct carrier *carrier, uint64_t entries, uint64_t bytes, void *userdata)
{
	struct vm_task *self = userdata;

	(void)carrier;
	self->packed = true;
	self->entries_in = entries;
	self->bytes_in = bytes;
	end_filling(self);
}

/* ---- and back out */

static void begin_emptying(struct vm_task *self)
{
	const struct ad_guest_msg get = {
		.type = AD_GUEST_GET,
		.id = ID_GET,
		.u.files = { .path = agentd_spec_workdir(self->spec),
			     .max_bytes = self->vm->workdir_bytes },
	};

	if (self->stopped && agentd_spec_discard_unfinished(self->spec)) {
		agentd_task_protection(self->task, "workdir", AGENTD_LAYER_ENFORCED,
				       "a copy, whose changes were discarded: the command was "
				       "stopped");
		end(self);
		return;
	}
	if (self->session || !(agentd_spec_workdir_access(self->spec) & AGENTD_ACCESS_WRITE)) {
		end(self);
		return;
	}
	self->phase = EMPTYING;
	if (!machine_send(self->machine, &get) || ad_timer_start(&self->timer, carry_ns) < 0)
		fail_text(self, AGENTD_ERR_NOMEM, "the changes could not be asked for");
}

static void on_taken(struct carrier *carrier, size_t len, void *userdata)
{
	struct vm_task *self = userdata;

	(void)carrier;
	if (self->phase == EMPTYING)
		machine_taken(self->machine, ID_GET, AD_GUEST_FILES_OUT, len);
}

static void on_carried(struct vm_task *self)
{
	ad_autobuf struct ad_buf text = { 0 };

	ad_buf_printf(&text, "a copy, carried in (%" PRIu64 " entries, %" PRIu64 " bytes)%s",
		      self->entries_in, self->bytes_in,
		      agentd_spec_workdir_access(self->spec) & AGENTD_ACCESS_WRITE ?
			      " and what changed carried back" :
			      "");
	if (text.data)
		agentd_task_protection(self->task, "workdir", AGENTD_LAYER_ENFORCED, text.data);
}

static void on_carrier_over(struct carrier *carrier, agentd_error *err, void *userdata)
{
	struct vm_task *self = userdata;

	(void)carrier;
	self->carrier_over = true;
	if (self->phase == ENDING) {
		agentd_error_unref(err);
		settle_end(self);
	} else if (err) {
		fail(self, err);
	} else if (self->phase == EMPTYING) {
		on_carried(self);
		end(self);
	} else {
		fail_text(self, AGENTD_ERR_BACKEND,
			  "what carries the working directory ended before the command");
	}
}

static const struct carrier_events carrier_events = {
	.pack = on_pack,
	.packed = on_packed,
	.taken = on_taken,
	.over = on_carrier_over,
};

static void on_done(struct vm_task *self, const struct ad_guest_msg *msg)
{
	ad_autobuf struct ad_buf text = { 0 };

	if (msg->u.done.os_errno) {
		ad_buf_printf(&text,
			      "the working directory could not be carried %s the virtual "
			      "machine: %s",
			      msg->id == ID_PUT ? "into" : "out of", msg->u.done.text);
		if (msg->u.done.os_errno == ENOSPC)
			ad_buf_puts(&text, "; give the machine more memory "
					   "(agentd_runner_opts.microvm_memory_bytes)");
		fail(self, agentd_error_create(msg->u.done.os_errno == EFBIG ? AGENTD_ERR_LIMIT :
									       AGENTD_ERR_BACKEND,
					       msg->u.done.os_errno, text.data));
	} else if (msg->id == ID_PUT) {
		send_run(self);
		if (self->phase == STARTING && ad_timer_start(&self->timer, start_ns) < 0)
			fail(self, agentd_error_create(AGENTD_ERR_NOMEM, 0, NULL));
	} else {
		/* The carrier says when it is applied. */
		carrier_end(self->carrier);
	}
}

/* ---- the command */

static uint64_t memory_for_command(const struct vm_task *self)
{
	uint64_t all = machine_facts(self->machine)->memory_bytes;
	uint64_t most = all > 2 * GUEST_RESERVE_BYTES ? all - GUEST_RESERVE_BYTES : all / 2;

	return self->limits.mem_bytes && self->limits.mem_bytes < most ? self->limits.mem_bytes :
									 most;
}

static void send_run(struct vm_task *self)
{
	bool net = agentd_spec_net(self->spec) == AGENTD_NET_ALLOWLIST;
	struct ad_sandbox_proxy_env proxy;
	ad_autofree const char **env =
		ad_local_environment_merge(&self->vm->environment,
					   net ? ad_sandbox_proxy_env(self->spec, &proxy) : NULL,
					   agentd_spec_env(self->spec));
	const struct ad_guest_msg run = {
		.type = AD_GUEST_RUN,
		.id = self->run_id,
		.u.run = {
			.flags = (self->flags & AGENTD_EXEC_STDIN_OPEN ? AD_GUEST_RUN_STDIN : 0) |
				 (self->flags & AGENTD_EXEC_MERGE_STDERR ?
					  AD_GUEST_RUN_MERGE_STDERR :
					  0) |
				 (self->session ? AD_GUEST_RUN_STAY : 0) |
				 (net ? AD_GUEST_RUN_NET : 0),
			.uid = MICROVM_GUEST_UID,
			.gid = MICROVM_GUEST_UID,
			.limits = {
				.memory = memory_for_command(self),
				.pids = self->limits.pids_max,
				.cpu_time_ms = self->limits.cpu_time_ms,
				.io = self->limits.io_bytes,
				.file = self->limits.file_bytes,
				.open_files = self->limits.open_files_max,
				.cpu_ms_per_100ms = self->limits.cpu_ms_per_100ms,
			},
			.workdir = agentd_spec_workdir(self->spec),
			.argv = agentd_spec_argv(self->spec),
			.env = env,
		},
	};

	if (!env)
		fail(self, agentd_error_create(AGENTD_ERR_NOMEM, 0, NULL));
	else if (machine_send(self->machine, &run))
		self->phase = STARTING;
	else if (machine_is_up(self->machine)) /* else its end follows, which says why */
		fail(self, agentd_error_create(AGENTD_ERR_SYSTEM, E2BIG,
					       "Failed to spawn shell command: Argument list too "
					       "long (os error 7)"));
}

static void report(const struct vm_task *self)
{
	const struct machine_facts *facts = machine_facts(self->machine);
	const struct {
		const char *layer, *how;
		bool wanted;
	} limits[] = {
		{ "memory", "cgroup v2 memory.max in the guest, and the machine's memory", true },
		{ "pids", "cgroup v2 pids.max in the guest", self->limits.pids_max != 0 },
		{ "cpu", "cgroup v2 cpu.max in the guest", self->limits.cpu_ms_per_100ms != 0 },
		{ "cpu-time", "cgroup v2 cpu.stat in the guest", self->limits.cpu_time_ms != 0 },
		{ "io", "counted in the guest", self->limits.io_bytes != 0 },
		{ "tree-kill", "cgroup.kill in the guest, and the machine's end", true },
		{ "environment", "built from nothing", true },
		{ "network",
		  agentd_spec_net(self->spec) == AGENTD_NET_ALLOWLIST ?
			  "the policy's hosts, through a proxy that checks names and addresses; "
			  "the machine has no network device" :
			  "none: the machine has no network device",
		  true },
	};
	char text[160];

	size_t len;

	snprintf(text, sizeof(text), "%s, %s, Linux %s, booted in %" PRIu64 " ms",
		 self->vm->engine->name, accel_name(facts->accel), facts->kernel,
		 facts->boot_ns / AD_NS_PER_MS);
	len = strlen(text);
	if (facts->restore_ns)
		snprintf(text + len, sizeof(text) - len, ", cloned in %" PRIu64 " ms",
			 facts->restore_ns / AD_NS_PER_MS);
	agentd_task_protection(self->task, "vm", AGENTD_LAYER_ENFORCED, text);
	if (self->session)
		agentd_task_protection(self->task, "workdir", AGENTD_LAYER_ENFORCED,
				       "a disk of the session's own");
	agentd_task_protection(self->task, "accel", AGENTD_LAYER_ENFORCED,
			       accel_name(facts->accel));
	snprintf(text, sizeof(text), "user %u, no capabilities, no_new_privs, seccomp", facts->uid);
	agentd_task_protection(self->task, "monitor", AGENTD_LAYER_ENFORCED, text);
	snprintf(text, sizeof(text), "ABI %u", facts->landlock_abi);
	agentd_task_protection(self->task, "monitor-landlock",
			       facts->landlock_abi ? AGENTD_LAYER_ENFORCED : AGENTD_LAYER_DEGRADED,
			       facts->landlock_abi ? text : "this kernel has no Landlock");
	for (size_t i = 0; i < AD_COUNT(limits); i++) {
		if (limits[i].wanted)
			agentd_task_protection(self->task, limits[i].layer, AGENTD_LAYER_ENFORCED,
					       limits[i].how);
	}
}

static void on_started(struct vm_task *self)
{
	self->phase = RUNNING;
	self->started = true;
	if (agentd_spec_net(self->spec) == AGENTD_NET_ALLOWLIST) {
		self->net = net_new(ad_launcher_loop(self->vm->launcher), self->task, self->machine,
				    self->run_id);
		if (!self->net) {
			fail(self, agentd_error_create(AGENTD_ERR_NOMEM, 0, NULL));
			return;
		}
	}
	/* A kill that crossed with it is to be answered still. */
	if (!self->killing)
		ad_timer_stop(&self->timer);
	report(self);
	agentd_task_started(self->task, machine_facts(self->machine)->pid);
	if (self->stdin_closed)
		(void)task_close_stdin(self);
	else if (self->stdin_waited)
		agentd_task_stdin_drained(self->task);
}

/* In the words of a command that could not be started on the host. */
static void on_failed(struct vm_task *self, const struct ad_guest_msg *msg)
{
	static const uint32_t stages[AD_GUEST_STAGES] = {
		[AD_GUEST_STAGE_REQUEST] = AD_STAGE_REQUEST,
		[AD_GUEST_STAGE_CGROUP] = AD_STAGE_CGROUP,
		[AD_GUEST_STAGE_FORK] = AD_STAGE_FORK,
		[AD_GUEST_STAGE_SETUP] = AD_STAGE_STDIO,
		[AD_GUEST_STAGE_WORKDIR] = AD_STAGE_WORKDIR,
		[AD_GUEST_STAGE_EXEC] = AD_STAGE_EXEC,
	};
	const struct ad_launch_failure failure = {
		.stage = stages[msg->u.failed.stage],
		.os_errno = msg->u.failed.os_errno,
		.text = msg->u.failed.text,
	};

	self->closed = true;
	fail(self, ad_launch_error(&failure));
}

static void deliver(struct vm_task *self, unsigned int i, const uint8_t *data, size_t len)
{
	if (agentd_task_output(self->task, AGENTD_STDOUT + (agentd_stream)i, data, len) ==
	    AGENTD_SINK_PAUSE)
		self->paused[i] = true;
	machine_taken(self->machine, self->run_id, i ? AD_GUEST_STDERR : AD_GUEST_STDOUT, len);
}

static void on_data(struct vm_task *self, const struct ad_guest_msg *msg)
{
	enum ad_guest_stream stream = msg->u.data.stream;
	size_t len = msg->u.data.len;
	unsigned int i = stream == AD_GUEST_STDERR;

	if (stream == AD_GUEST_FILES_OUT) {
		carrier_apply(self->carrier, msg->u.data.data, len);
		return;
	}
	/* What comes after it keeps its place. */
	if (self->held[i].len == 0 && !self->paused[i])
		deliver(self, i, msg->u.data.data, len);
	else if (!ad_buf_append(&self->held[i], msg->u.data.data, len))
		fail(self, agentd_error_create(AGENTD_ERR_NOMEM, 0, NULL));
}

static void go_on(struct ad_defer *defer, void *userdata)
{
	struct vm_task *self = userdata;

	(void)defer;
	for (unsigned int i = 0; i < AD_COUNT(self->held); i++) {
		struct ad_buf *held = &self->held[i];
		size_t at = 0;

		while (at < held->len && !self->paused[i]) {
			size_t len = held->len - at < AD_GUEST_DATA_MAX ? held->len - at :
									  AD_GUEST_DATA_MAX;

			deliver(self, i, (const uint8_t *)held->data + at, len);
			at += len;
		}
		if (at > 0)
			memmove(held->data, held->data + at, held->len - at);
		held->len -= at;
	}
	settle_end(self);
}

static void on_limit(struct vm_task *self, const struct ad_guest_msg *msg)
{
	static const char *const names[AD_GUEST_LIMITS] = {
		[AD_GUEST_LIMIT_MEMORY] = "mem_bytes",
		[AD_GUEST_LIMIT_PIDS] = "pids_max",
		[AD_GUEST_LIMIT_CPU_TIME] = "cpu_time_ms",
		[AD_GUEST_LIMIT_IO] = "io_bytes",
	};

	self->stopped |= msg->u.limit.fatal && !self->exited;
	agentd_task_limit_hit(self->task, names[msg->u.limit.limit], msg->u.limit.fatal);
}

static void on_exited(struct vm_task *self, const struct ad_guest_msg *msg)
{
	self->exited = true;
	self->stdin_closed = true;
	/* The guest's clock is not asked. */
	agentd_task_exited(self->task, msg->u.exited.wait_status, 0);
}

static void on_closed(struct vm_task *self, const struct ad_guest_msg *msg)
{
	self->closed = true;
	ad_timer_stop(&self->timer);
	net_free(AD_STEAL(self->net));
	agentd_task_metric(self->task, AGENTD_METRIC_CPU_NS, msg->u.closed.cpu_ns);
	agentd_task_metric(self->task, AGENTD_METRIC_MEMORY_PEAK_BYTES, msg->u.closed.memory_peak);
	/* Also if some could not be killed: with the machine they end. */
	begin_emptying(self);
}

/* ---- the machine */

static void on_ready(struct machine *machine, void *userdata)
{
	struct vm_task *self = userdata;

	(void)machine;
	if (self->phase != BOOTING)
		return;
	begin_filling(self);
	end_filling(self);
}

void task_message(struct vm_task *self, const struct ad_guest_msg *msg)
{
	if (self->phase == ENDING)
		return;
	if (msg->connection) {
		net_message(self->net, msg);
		return;
	}
	switch (msg->type) {
	case AD_GUEST_STARTED:
		on_started(self);
		break;
	case AD_GUEST_FAILED:
		on_failed(self, msg);
		break;
	case AD_GUEST_DATA:
		on_data(self, msg);
		break;
	case AD_GUEST_LIMIT:
		on_limit(self, msg);
		break;
	case AD_GUEST_EXITED:
		on_exited(self, msg);
		break;
	case AD_GUEST_CLOSED:
		on_closed(self, msg);
		break;
	case AD_GUEST_DONE:
		on_done(self, msg);
		break;
	case AD_GUEST_LOG:
		agentd_task_log(self->task, msg->u.log.level, msg->u.log.text);
		break;
	default: /* the end of a stream: what follows says the same */
		break;
	}
}

static void on_message(struct machine *machine, const struct ad_guest_msg *msg, void *userdata)
{
	(void)machine;
	task_message(userdata, msg);
}

void task_writable(struct vm_task *self, enum ad_guest_stream stream)
{
	if (stream == AD_GUEST_FILES_IN)
		carrier_go_on(self->carrier);
	else if (stream == AD_GUEST_STDIN && self->phase == RUNNING)
		agentd_task_stdin_drained(self->task);
}

void task_connection_writable(struct vm_task *self, uint16_t connection)
{
	if (self->net)
		net_writable(self->net, connection);
}

static void on_connection_writable(struct machine *machine, uint32_t id, uint16_t connection,
				   void *userdata)
{
	(void)machine;
	(void)id;
	task_connection_writable(userdata, connection);
}

static void on_writable(struct machine *machine, uint32_t id, enum ad_guest_stream stream,
			void *userdata)
{
	(void)machine;
	(void)id;
	task_writable(userdata, stream);
}

/* Takes err. */
static void lost(struct vm_task *self, agentd_error *err)
{
	self->machine_over = true;
	if (self->phase == ENDING) {
		agentd_error_unref(err);
		settle_end(self);
		return;
	}
	fail(self, err);
}

void task_lost(struct vm_task *self, const agentd_error *err)
{
	/* What was not sent whole is no command. */
	bool begun = self->phase >= STARTING &&
		     !machine_holds(self->machine, AD_GUEST_RUN, self->run_id);
	ad_autobuf struct ad_buf text = { 0 };

	self->closed = true;
	if (begun) {
		lost(self, agentd_error_ref((agentd_error *)(uintptr_t)err));
		return;
	}
	ad_buf_printf(&text, "the session's machine ended before the command began: %s",
		      agentd_error_message(err));
	lost(self, agentd_error_create(AGENTD_ERR_BACKEND, ESRCH, text.data));
}

static void on_died(struct machine *machine, agentd_error *err, void *userdata)
{
	(void)machine;
	lost(userdata, err);
}

static const struct machine_events machine_events = {
	.ready = on_ready,
	.message = on_message,
	.writable = on_writable,
	.connection_writable = on_connection_writable,
	.died = on_died,
};

static void timer_fired(struct ad_timer *timer, void *userdata)
{
	struct vm_task *self = userdata;

	(void)timer;
	switch (self->phase) {
	case FILLING:
		fail_text(self, AGENTD_ERR_TIMEOUT,
			  "the working directory could not be carried into the virtual machine "
			  "within 60 s");
		break;
	case EMPTYING:
		fail_text(self, AGENTD_ERR_TIMEOUT, "it took more than 60 s");
		break;
	default:
		/* It cannot: what it has to say first is not taken here. */
		if (holds_output(self) && ad_timer_start(&self->timer, kill_ns) == 0)
			return;
		/* Killed, and the agent does not answer: the machine's end is the command's,
		 * if there was one. */
		if (self->started && !self->exited) {
			self->exited = true;
			agentd_task_exited(self->task, SIGKILL, 0);
		}
		fail_text(self, AGENTD_ERR_BACKEND, "the guest agent did not answer");
		break;
	}
}

/* ---- what the library asks */

int32_t task_kill(void *state)
{
	struct vm_task *self = state;
	const struct ad_guest_msg kill = { .type = AD_GUEST_KILL, .id = self->run_id };

	self->stopped |= !self->exited;
	if (self->phase < STARTING) {
		fail_text(self, AGENTD_ERR_CANCELED, "cancelled before it started");
		return 0;
	}
	/* Asked again, the agent has no more time. */
	if (self->closed || self->killing || self->phase > RUNNING)
		return 0;
	self->killing = true;
	(void)machine_send(self->machine, &kill);
	(void)ad_timer_start(&self->timer, kill_ns);
	return 0;
}

int32_t task_signal(void *state, int32_t signo)
{
	struct vm_task *self = state;
	const struct ad_guest_msg msg = {
		.type = AD_GUEST_SIGNAL,
		.id = self->run_id,
		.u.signal = { .signo = signo },
	};

	if (self->phase != RUNNING || self->exited)
		return AGENTD_ERR_STATE;
	/* With that a stop begins, and it may be enough. */
	self->stopped |= signo == SIGTERM;
	return machine_send(self->machine, &msg) ? 0 : AGENTD_ERR_STATE;
}

int32_t task_write(void *state, const uint8_t *data, size_t len, size_t *ret_taken)
{
	struct vm_task *self = state;

	if (self->stdin_closed || self->phase > RUNNING || !(self->flags & AGENTD_EXEC_STDIN_OPEN))
		return AGENTD_ERR_STATE;
	if (self->phase < RUNNING) {
		self->stdin_waited = true;
		return AGENTD_ERR_AGAIN;
	}
	*ret_taken = machine_data(self->machine, self->run_id, AD_GUEST_STDIN, data, len);
	return *ret_taken > 0 || len == 0 ? 0 : AGENTD_ERR_AGAIN;
}

int32_t task_close_stdin(void *state)
{
	struct vm_task *self = state;
	const struct ad_guest_msg finish = {
		.type = AD_GUEST_END,
		.id = self->run_id,
		.u.end = { .stream = AD_GUEST_STDIN },
	};

	self->stdin_closed = true;
	if (self->phase == RUNNING && !self->exited && (self->flags & AGENTD_EXEC_STDIN_OPEN))
		(void)machine_send(self->machine, &finish);
	return 0;
}

int32_t task_set_paused(void *state, agentd_stream stream, int32_t paused)
{
	struct vm_task *self = state;
	unsigned int i = stream == AGENTD_STDERR;

	self->paused[i] = paused != 0;
	if (!self->paused[i] && self->held[i].len > 0)
		ad_defer(&self->go_on);
	return 0;
}

void task_free(void *state)
{
	struct vm_task *self = state;

	ad_timer_stop(&self->timer);
	ad_defer_cancel(&self->go_on);
	ad_defer_cancel(&self->begin);
	ad_buf_free(&self->held[0]);
	ad_buf_free(&self->held[1]);
	net_free(self->net);
	if (self->session)
		session_leave(self->session, self);
	else
		machine_free(self->machine);
	carrier_free(self->carrier);
	agentd_error_unref(self->err);
	free(self);
}

uint64_t task_memory(const struct microvm *vm, const agentd_spec *spec)
{
	struct agentd_limits limits = { .size = sizeof(limits) };
	uint64_t wanted = vm->memory_bytes, most = vm->memory_most;

	agentd_spec_limits(spec, &limits);
	/* In steps, so that a template serves many. */
	if (agentd_spec_limit_requested(spec, "mem_bytes") == 1 &&
	    limits.mem_bytes + 2 * GUEST_RESERVE_BYTES > wanted)
		wanted = (limits.mem_bytes + 2 * GUEST_RESERVE_BYTES + MEMORY_STEP - 1) /
			 MEMORY_STEP * MEMORY_STEP;
	return wanted < most ? wanted : most;
}

bool task_has_id(const struct vm_task *self, uint32_t id)
{
	return self->run_id == id;
}

static void begin(struct ad_defer *defer, void *userdata)
{
	(void)defer;
	send_run(userdata);
}

/* The machine is the session's, and there is nothing to carry. */
static int start_in_session(struct vm_task *self, agentd_error **reterr)
{
	int r = session_enter(self->session, self->spec, self, &self->machine, &self->run_id,
			      reterr);

	if (r < 0)
		return r;
	self->carrier_over = true;
	ad_defer(&self->begin);
	return 0;
}

static int start_alone(struct vm_task *self, agentd_error **reterr)
{
	const struct machine_config config = {
		.root = agentd_spec_rootfs(self->spec),
		.memory_bytes = task_memory(self->vm, self->spec),
		.require_kvm = agentd_spec_require_kvm(self->spec) != 0,
		.from_template = self->vm->template_always,
	};
	int r = machine_new(self->vm, &config, &machine_events, self, &self->machine, reterr);

	self->run_id = ID_RUN;
	return r < 0 ? r :
		       carrier_new(self->vm, self->task, self->spec, &carrier_events, self,
				   &self->carrier, reterr);
}

int32_t task_start(void *backend, agentd_task *task, const agentd_spec *spec, void **ret_state,
		   agentd_error **reterr)
{
	struct microvm *vm = backend;
	struct vm_task *self;
	int r = microvm_check(spec, reterr);

	if (r < 0)
		return r;
	self = calloc(1, sizeof(*self));
	if (!self)
		return ad_fail_nomem(reterr);
	self->vm = vm;
	self->task = task;
	self->spec = spec;
	self->flags = agentd_spec_flags(spec);
	self->limits.size = sizeof(self->limits);
	agentd_spec_limits(spec, &self->limits);
	ad_timer_init(&self->timer, ad_launcher_loop(vm->launcher), timer_fired, self);
	ad_defer_init(&self->go_on, ad_launcher_loop(vm->launcher), go_on, self);
	ad_defer_init(&self->begin, ad_launcher_loop(vm->launcher), begin, self);
	self->session = agentd_spec_session(spec);
	r = self->session ? start_in_session(self, reterr) : start_alone(self, reterr);
	if (r < 0)
		task_free(self);
	else
		*ret_state = self;
	return r;
}
