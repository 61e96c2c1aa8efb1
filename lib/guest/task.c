/* SPDX-License-Identifier: MIT */
#include "guest/guest.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <agentd/log.h>

/* After a kill: what is still alive then hangs in the kernel, and is reported. */
static const uint64_t patience_ns = 5000000000;

struct task {
	uint32_t id;
	enum ad_guest_type begun_by;
	pid_t pid;
	struct group group;
	struct watch emptied;   /* of the control group */
	struct inlet in;        /* STDIN, FILES_IN */
	struct outlet out, err; /* STDOUT or FILES_OUT, STDERR */
	bool exited, killing, dropping;
	bool stay; /* what it leaves running does */
	uint64_t give_up_at;
	/* A command. */
	struct ad_guest_limits limits;
	struct pressure pressure; /* where its memory is limited */
	struct watch fault;       /* says how the start went; closed when that is known */
	struct command_fault failure;
	bool failed;
	int out_fd, err_fd; /* until then */
	char *what;         /* workdir NUL argv[0] NUL, for what fails */
	uint64_t started_at;
	/* A transfer. */
	struct watch reports;
	struct transfer_report result;
};

static struct task *tasks[AD_GUEST_TASKS_MAX];
static struct pressure all; /* of all of them and what they left */

/* What trees looked like when they came, for what is asked for later. */
static struct tree {
	char *path;
	int manifest;
} trees[AD_GUEST_TASKS_MAX];

static struct task *find(uint32_t id)
{
	for (size_t i = 0; i < AD_COUNT(tasks); i++) {
		if (tasks[i] && tasks[i]->id == id)
			return tasks[i];
	}
	return NULL;
}

static struct task *find_group(uint32_t number)
{
	for (size_t i = 0; i < AD_COUNT(tasks); i++) {
		if (tasks[i] && tasks[i]->group.number == number)
			return tasks[i];
	}
	return NULL;
}

static void close_fd(int *fd)
{
	if (*fd >= 0)
		close(*fd);
	*fd = -1;
}

static bool is_empty(int cgroup)
{
	return cgroup_number(cgroup, "cgroup.events", "populated") == 0;
}

/* What a command has left in the background, or a process made ahead that is not to be one:
 * its group goes when the last of it has ended. */
struct remains {
	struct watch emptied;
	struct group group;
};

static void remains_emptied(struct watch *watch, uint32_t events)
{
	struct remains *remains = AD_CONTAINER_OF(watch, struct remains, emptied);
	char text[128];

	(void)events;
	/* Else it would be reported again. */
	if (pread(watch->fd, text, sizeof(text), 0) >= 0 && !is_empty(remains->group.dir))
		return;
	watch_close(watch);
	cgroup_remove(&remains->group);
	free(remains);
}

/* Without memory for that, the group stays. */
static bool leave_behind(const struct task *task)
{
	struct remains *remains;

	if (is_empty(task->group.dir))
		return false;
	remains = calloc(1, sizeof(*remains));
	if (!remains)
		return false;
	remains->group = task->group;
	remains->emptied = (struct watch){ .ready = remains_emptied,
					   .fd = cgroup_events(task->group.dir) };
	if (remains->emptied.fd < 0) {
		free(remains);
		return false;
	}
	watch_for(&remains->emptied, EPOLLPRI);
	/* It may have ended between. */
	if (is_empty(task->group.dir))
		remains_emptied(&remains->emptied, 0);
	return true;
}

static void task_free(struct task *task)
{
	for (size_t i = 0; i < AD_COUNT(tasks); i++) {
		if (tasks[i] == task)
			tasks[i] = NULL;
	}
	net_close(task->id);
	inlet_close(&task->in);
	watch_close(&task->emptied);
	watch_close(&task->fault);
	watch_close(&task->reports);
	pressure_close(&task->pressure);
	close_fd(&task->out_fd);
	close_fd(&task->err_fd);
	if (task->group.dir >= 0 && !leave_behind(task))
		cgroup_remove(&task->group);
	free(task->what);
	free(task);
}

/* ---- the end */

static void send_closed(struct task *task)
{
	struct ad_guest_msg msg = { .type = AD_GUEST_CLOSED, .id = task->id };

	msg.u.closed.cpu_ns = cgroup_number(task->group.dir, "cpu.stat", "usage_usec") * 1000;
	msg.u.closed.memory_peak = cgroup_number(task->group.dir, "memory.peak", NULL);
	msg.u.closed.survivors = task->stay || is_empty(task->group.dir) ?
					 0 :
					 cgroup_count(task->group.dir);
	agent_send(&msg);
	task_free(task);
}

static void send_done(struct task *task)
{
	struct ad_guest_msg msg = { .type = AD_GUEST_DONE, .id = task->id };

	/* It was not to be, or it grew beyond what there is for all tasks. */
	if (!task->result.last) {
		task->result.os_errno = task->killing ? ECANCELED : ENOMEM;
		snprintf(task->result.text, sizeof(task->result.text), "%s",
			 task->killing ? "ended" : "killed: there is too little memory");
	}
	msg.u.done.os_errno = task->result.os_errno;
	msg.u.done.entries = task->result.entries;
	msg.u.done.bytes = task->result.bytes;
	msg.u.done.text = task->result.text;
	agent_send(&msg);
	task_free(task);
}

void task_check(uint32_t id)
{
	struct task *task = find(id);

	if (!task || !task->exited || task->dropping || task->out.open || task->err.open)
		return;
	if (task->begun_by != AD_GUEST_RUN)
		send_done(task);
	else if (task->stay || is_empty(task->group.dir))
		send_closed(task);
}

static void emptied(struct watch *watch, uint32_t events)
{
	struct task *task = AD_CONTAINER_OF(watch, struct task, emptied);
	char text[128];

	(void)events;
	/* Else it would be reported again. */
	if (pread(watch->fd, text, sizeof(text), 0) < 0)
		watch_close(watch);
	task_check(task->id);
}

static void kill_tree(struct task *task)
{
	cgroup_kill(task->group.dir);
	task->stay = false;
	if (!task->killing)
		task->give_up_at = ad_sys_now_ns() + patience_ns;
	task->killing = true;
}

/* ---- limits */

static void report_limit(const struct task *task, enum ad_guest_limit limit, bool fatal)
{
	struct ad_guest_msg msg = { .type = AD_GUEST_LIMIT, .id = task->id };

	msg.u.limit.limit = limit;
	msg.u.limit.fatal = fatal;
	agent_send(&msg);
}

static bool over_cpu_time(const struct task *task)
{
	return task->limits.cpu_time_ms &&
	       cgroup_number(task->group.dir, "cpu.stat", "usage_usec") / 1000 >=
		       task->limits.cpu_time_ms;
}

static bool over_io(const struct task *task)
{
	return task->limits.io && cgroup_written(task->group.dir) > task->limits.io;
}

/* Which limits made themselves felt: before the exit is reported. */
static void report_limits_hit(const struct task *task, int wait_status)
{
	bool killed = !task->killing && WIFSIGNALED(wait_status) &&
		      WTERMSIG(wait_status) == SIGKILL;

	if (cgroup_number(task->group.dir, "memory.events", "oom_kill") > 0)
		report_limit(task, AD_GUEST_LIMIT_MEMORY, killed);
	if (cgroup_number(task->group.dir, "pids.events", "max") > 0)
		report_limit(task, AD_GUEST_LIMIT_PIDS, false);
}

static void drop_output(struct task *task)
{
	task->dropping = true;
	outlet_close(&task->out);
	outlet_close(&task->err);
}

/* What the command has written by now; those it has left have no reader any more. */
static void finish_output(struct task *task)
{
	uint32_t id = task->id;

	outlet_finish(&task->out);
	/* The task may have been over with that. */
	task = find(id);
	if (task)
		outlet_finish(&task->err);
}

static void look_at(struct task *task)
{
	if (task->killing) {
		/* One that has not even exited is the machine's end, for which the library has
		 * a deadline. */
		if (ad_sys_now_ns() < task->give_up_at || !task->exited ||
		    task->begun_by != AD_GUEST_RUN)
			return;
		if (is_empty(task->group.dir)) {
			/* The library may be waiting for who reads it. */
			finish_output(task);
		} else {
			/* Nobody will close the pipes. */
			drop_output(task);
			send_closed(task);
		}
		return;
	}
	if (task->exited || task->begun_by != AD_GUEST_RUN)
		return;
	if (pressure_hopeless(&task->pressure))
		report_limit(task, AD_GUEST_LIMIT_MEMORY, true);
	else if (over_cpu_time(task))
		report_limit(task, AD_GUEST_LIMIT_CPU_TIME, true);
	else if (over_io(task))
		report_limit(task, AD_GUEST_LIMIT_IO, true);
	else
		return;
	kill_tree(task);
}

/* As the kernel does when there is nothing left: it is who has most. */
static void end_largest(void)
{
	uint32_t number;
	int dir = cgroup_largest(&number);
	struct task *task = dir < 0 ? NULL : find_group(number);

	if (task && task->begun_by == AD_GUEST_RUN && !task->exited && !task->killing) {
		report_limit(task, AD_GUEST_LIMIT_MEMORY, true);
		kill_tree(task);
	} else if (dir >= 0) {
		cgroup_kill(dir);
	}
	if (dir >= 0)
		close(dir);
}

bool task_tick(void)
{
	bool again;

	if (pressure_hopeless(&all))
		end_largest();
	again = all.looking;
	for (size_t i = 0; i < AD_COUNT(tasks); i++) {
		if (tasks[i])
			look_at(tasks[i]);
		again |= tasks[i] && (tasks[i]->killing || tasks[i]->limits.cpu_time_ms ||
				      tasks[i]->limits.io || tasks[i]->pressure.looking);
	}
	return again;
}

/* ---- commands */

static void send_failed(struct task *task, enum ad_guest_stage stage, int error, const char *text)
{
	struct ad_guest_msg msg = { .type = AD_GUEST_FAILED, .id = task->id };

	msg.u.failed.stage = stage;
	msg.u.failed.os_errno = error;
	msg.u.failed.text = text;
	agent_send(&msg);
	task_free(task);
}

/* It came to its execve, or says why not: that is reported when it has ended and nothing
 * of it is left. */
static void settle_start(struct task *task)
{
	struct ad_guest_msg msg = { .type = AD_GUEST_STARTED, .id = task->id };
	ssize_t n;

	if (task->fault.fd < 0)
		return;
	n = read(task->fault.fd, &task->failure, sizeof(task->failure));
	if (n < 0)
		return;
	watch_close(&task->fault);
	task->failed = n == (ssize_t)sizeof(task->failure);
	if (task->failed)
		return;
	task->started_at = ad_sys_now_ns();
	msg.u.started.pid = task->pid;
	agent_send(&msg);
	outlet_open(&task->out, task->id, AD_GUEST_STDOUT, ad_steal_fd(&task->out_fd));
	if (task->err_fd >= 0)
		outlet_open(&task->err, task->id, AD_GUEST_STDERR, ad_steal_fd(&task->err_fd));
	net_start(task->id);
}

static void report_failure(struct task *task)
{
	const char *workdir = task->what, *program = workdir + strlen(workdir) + 1, *text = "";

	if (task->failure.stage == AD_GUEST_STAGE_WORKDIR)
		text = workdir;
	else if (task->failure.stage == AD_GUEST_STAGE_EXEC)
		text = program;
	send_failed(task, task->failure.stage, task->failure.error, text);
}

static void fault_ready(struct watch *watch, uint32_t events)
{
	(void)events;
	settle_start(AD_CONTAINER_OF(watch, struct task, fault));
}

static char *copy_what(const char *workdir, const char *program)
{
	struct ad_buf buf = { 0 };

	ad_buf_append(&buf, workdir, strlen(workdir) + 1);
	ad_buf_append(&buf, program, strlen(program) + 1);
	return ad_buf_steal(&buf);
}

/* Ready for its limits to be kept. Negative errno. */
static int enter_group(struct task *task)
{
	int r = cgroup_limit(task->group.dir, &task->limits);

	if (r < 0)
		return r;
	r = cgroup_events(task->group.dir);
	if (r < 0)
		return r;
	task->emptied.fd = r;
	return task->limits.memory ? pressure_open(&task->pressure, task->group.dir) : 0;
}

/* The pid, or a negative errno. */
static pid_t start(struct standby *standby, const struct command *command)
{
	int r;

	if (standby->pid > 0)
		return command_order(standby->pipes.ours[COMMAND_ORDERS], command) < 0 ?
			       -errno :
			       standby->pid;
	r = command_pipes_open(&standby->pipes, false);
	return r < 0 ? r : command_start(standby->group.dir, &standby->pipes, command);
}

/* The ends that are wanted become the task's. */
static void take_pipes(struct task *task, uint32_t flags, struct command_pipes *pipes)
{
	task->fault.fd = ad_steal_fd(&pipes->ours[COMMAND_FAULT]);
	task->out_fd = ad_steal_fd(&pipes->ours[COMMAND_OUT]);
	if (!(flags & AD_GUEST_RUN_MERGE_STDERR))
		task->err_fd = ad_steal_fd(&pipes->ours[COMMAND_ERR]);
	if (flags & AD_GUEST_RUN_STDIN)
		inlet_open(&task->in, task->id, AD_GUEST_STDIN,
			   ad_steal_fd(&pipes->ours[COMMAND_IN]));
	watch_for(&task->fault, EPOLLIN);
	watch_for(&task->emptied, EPOLLPRI);
}

static void run(struct task *task, const struct ad_guest_msg *msg)
{
	const struct command command = {
		.argv = msg->u.run.argv,
		.env = msg->u.run.env,
		.workdir = msg->u.run.workdir,
		.limits = msg->u.run.limits,
		.uid = msg->u.run.uid,
		.gid = msg->u.run.gid,
		.flags = msg->u.run.flags,
	};
	struct standby standby = standby_take(&command);
	enum ad_guest_stage stage = AD_GUEST_STAGE_CGROUP;
	int r = standby.pid > 0 ? 0 : cgroup_new(&standby.group);

	task->group = standby.group;
	if (r == 0)
		r = enter_group(task);
	if (r == 0) {
		stage = AD_GUEST_STAGE_FORK;
		task->what = copy_what(command.workdir, command.argv[0]);
		r = task->what ? 0 : -ENOMEM;
	}
	if (r == 0 && command.flags & AD_GUEST_RUN_NET)
		r = net_open(task->id);
	if (r == 0) {
		task->pid = start(&standby, &command);
		r = task->pid < 0 ? task->pid : 0;
	}
	if (r == 0)
		take_pipes(task, command.flags, &standby.pipes);
	command_pipes_close(&standby.pipes);
	if (r < 0)
		send_failed(task, stage, -r, "");
}

/* ---- transfers */

static struct tree *find_tree(const char *path)
{
	for (size_t i = 0; i < AD_COUNT(trees); i++) {
		if (path ? trees[i].path && strcmp(trees[i].path, path) == 0 : !trees[i].path)
			return &trees[i];
	}
	return NULL;
}

/* What has been PUT there before is no longer of interest. */
static int new_tree(const char *path)
{
	struct tree *tree = find_tree(path);

	if (!tree)
		tree = find_tree(NULL);
	if (!tree) {
		errno = ENOSPC;
		return -1;
	}
	if (tree->path)
		close_fd(&tree->manifest);
	else
		tree->path = strdup(path);
	tree->manifest = tree->path ? memfd_create("manifest", MFD_CLOEXEC) : -1;
	return tree->manifest;
}

static int old_tree(const char *path)
{
	struct tree *tree = find_tree(path);

	errno = ENOENT;
	return tree ? tree->manifest : -1;
}

static void reports_ready(struct watch *watch, uint32_t events)
{
	struct task *task = AD_CONTAINER_OF(watch, struct task, reports);
	struct ad_guest_msg msg = { .type = AD_GUEST_LOG };
	struct transfer_report report;
	ssize_t n = recv(watch->fd, &report, sizeof(report), MSG_DONTWAIT);

	(void)events;
	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return;
	if (n != (ssize_t)sizeof(report)) {
		watch_close(watch);
		return;
	}
	if (report.last) {
		task->result = report;
		return;
	}
	msg.u.log.level = AGENTD_LOG_WARN;
	msg.u.log.text = report.text;
	agent_send(&msg);
}

/* Over before it began. */
static void refuse_transfer(struct task *task, int error, const char *text)
{
	struct ad_guest_msg end = { .type = AD_GUEST_END, .id = task->id };

	end.u.end.stream = AD_GUEST_FILES_OUT;
	if (task->begun_by == AD_GUEST_GET)
		agent_send(&end);
	task->result = (struct transfer_report){ .last = true, .os_errno = error };
	snprintf(task->result.text, sizeof(task->result.text), "%s", text);
	send_done(task);
}

static void transfer(struct task *task, const struct ad_guest_msg *msg)
{
	bool put = msg->type == AD_GUEST_PUT, made;
	int ours = -1, error = 0;
	struct transfer transfer = {
		.msg = msg, .archive = -1, .reports = -1, .cgroup = task->group.dir
	};
	int socks[2] = { -1, -1 };

	transfer.manifest = put ? new_tree(msg->u.files.path) : old_tree(msg->u.files.path);
	if (transfer.manifest < 0) {
		refuse_transfer(task, errno,
				put ? "too many directories" : "nothing was put there");
		return;
	}
	made = put ? pipe_open(&ours, &transfer.archive, false) :
		     pipe_open_output(&ours, &transfer.archive);
	if (!made)
		error = errno;
	if (!error)
		error = -ad_sys_pair(socks);
	transfer.reports = socks[1];
	if (!error) {
		task->pid = transfer_start(&transfer);
		error = task->pid < 0 ? -task->pid : 0;
	}
	close_fd(&transfer.archive);
	close_fd(&transfer.reports);
	task->reports.fd = socks[0];
	if (error) {
		close_fd(&ours);
		refuse_transfer(task, error, "starting a process");
		return;
	}
	if (put)
		inlet_open(&task->in, task->id, AD_GUEST_FILES_IN, ours);
	else
		outlet_open(&task->out, task->id, AD_GUEST_FILES_OUT, ours);
	watch_for(&task->reports, EPOLLIN);
}

/* ---- what the library says */

int task_boot(void)
{
	return pressure_open(&all, cgroup_tasks());
}

void task_begin(const struct ad_guest_msg *msg)
{
	static const struct watch none = { .fd = -1 };
	struct task *task = calloc(1, sizeof(*task));
	size_t place = 0;
	int r;

	if (!task)
		give_up("out of memory");
	/* The link lets no more begin than there are places. */
	while (tasks[place])
		place++;
	tasks[place] = task;
	task->id = msg->id;
	task->begun_by = msg->type;
	task->group.dir = task->out_fd = task->err_fd = -1;
	task->in.watch = task->out.watch = task->err.watch = none;
	task->emptied = (struct watch){ .ready = emptied, .fd = -1 };
	task->fault = (struct watch){ .ready = fault_ready, .fd = -1 };
	task->reports = (struct watch){ .ready = reports_ready, .fd = -1 };
	task->pressure.limit = none;
	if (msg->type == AD_GUEST_RUN)
		task->limits = msg->u.run.limits;
	task->stay = msg->type == AD_GUEST_RUN && msg->u.run.flags & AD_GUEST_RUN_STAY;
	if (msg->type != AD_GUEST_RUN) {
		r = cgroup_new(&task->group);
		if (r == 0)
			r = enter_group(task);
		if (r < 0)
			refuse_transfer(task, -r, "control group");
		else
			transfer(task, msg);
	} else if (msg->u.run.uid == 0 || msg->u.run.gid == 0) {
		/* It could write to what controls the machine, without any capability. */
		send_failed(task, AD_GUEST_STAGE_REQUEST, EPERM, "commands are not root in here");
	} else {
		run(task, msg);
	}
}

static void send_signal(const struct task *task, int signo)
{
	if (task->exited || task->begun_by != AD_GUEST_RUN)
		return;
	/* Until it has a process group it is alone. */
	if (kill(-task->pid, signo) < 0)
		kill(task->pid, signo);
	/* Whoever is stopped would not notice that it is asked to end. */
	if (signo == SIGTERM || signo == SIGINT || signo == SIGHUP || signo == SIGQUIT)
		kill(-task->pid, SIGCONT);
}

void task_message(const struct ad_guest_msg *msg)
{
	struct task *task = find(msg->id);

	if (!task)
		return;
	switch (msg->type) {
	case AD_GUEST_SIGNAL:
		send_signal(task, msg->u.signal.signo);
		break;
	case AD_GUEST_KILL:
		if (task->stay && task->exited)
			finish_output(task);
		else
			kill_tree(task);
		task_check(msg->id);
		break;
	case AD_GUEST_DATA:
		inlet_put(&task->in, msg->u.data.data, msg->u.data.len);
		break;
	case AD_GUEST_END:
		inlet_end(&task->in);
		break;
	default:
		break;
	}
}

void task_writable(uint32_t id, enum ad_guest_stream stream)
{
	struct task *task = find(id);

	if (task)
		outlet_go_on(stream == AD_GUEST_STDERR ? &task->err : &task->out);
}

/* ---- what the kernel says */

static void report_exit(const struct task *task, int wait_status)
{
	struct ad_guest_msg msg = { .type = AD_GUEST_EXITED, .id = task->id };

	report_limits_hit(task, wait_status);
	msg.u.exited.wait_status = wait_status;
	msg.u.exited.lived_ns = ad_sys_now_ns() - task->started_at;
	agent_send(&msg);
}

void task_reap(pid_t pid, int wait_status)
{
	for (size_t i = 0; i < AD_COUNT(tasks); i++) {
		struct task *task = tasks[i];

		if (!task || task->pid != pid || task->exited)
			continue;
		settle_start(task);
		task->exited = true;
		if (task->failed) {
			report_failure(task);
			return;
		}
		if (task->begun_by == AD_GUEST_RUN) {
			report_exit(task, wait_status);
		} else {
			/* All that it has said. */
			while (task->reports.fd >= 0 && !task->result.last)
				reports_ready(&task->reports, 0);
		}
		task_check(task->id);
		return;
	}
	standby_reap(pid);
}
