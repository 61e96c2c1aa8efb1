/* SPDX-License-Identifier: MIT */
/* docs/embedding.md walks through this file. It uses agentd/backend.h and libevent alone. */
#include "bwrap.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <event2/event.h>

#include <agentd/backend.h>

#include "first.h"

#define BWRAP "/usr/bin/bwrap"
#define INSIDE "/dev/first" /* where the sandbox has our first process: on a tmpfs, always */

static const char no_limits[] = "bubblewrap limits neither tasks, memory nor CPU time";

struct backend {
	struct event_base *base;
	const char *first;
	/* the probe */
	agentd_backend_report *report;
	pid_t pid;
	int pidfd, complaint;
	struct event *on_probe;
};

struct job {
	struct backend *backend;
	agentd_task *task;
	uint64_t file_bytes;
	int start_errno; /* why the command could not be started, or 0 */
	pid_t outer;     /* bwrap itself; the first process of the namespace is its child */
	int outer_fd, first_fd, control, input, info, complaint;
	int output[2]; /* until the library has them */
	pid_t first;
	struct event *on_outer, *on_first, *on_control, *on_info, *on_input;
	char text[512]; /* what the info pipe said */
	size_t text_len;
	bool started, exited, killed, over;
};

/* ---- small things */

static void drop_event(struct event **event)
{
	if (*event)
		event_free(*event);
	*event = NULL;
}

static void drop_fd(int *fd)
{
	if (*fd >= 0)
		close(*fd);
	*fd = -1;
}

static int watch(struct event **ret, struct event_base *base, int fd, short what,
		 event_callback_fn fn, void *userdata)
{
	*ret = event_new(base, fd, what, fn, userdata);
	return *ret && event_add(*ret, NULL) == 0 ? 0 : AGENTD_ERR_NOMEM;
}

__attribute__((format(printf, 4, 5))) static int fail(agentd_error **reterr, int code, int os_errno,
						      const char *format, ...)
{
	char text[1024];
	va_list args;

	va_start(args, format);
	vsnprintf(text, sizeof(text), format, args);
	va_end(args);
	*reterr = agentd_error_create(code, os_errno, text);
	return code;
}

static bool beneath(const char *path, const char *dir)
{
	size_t len = strcmp(dir, "/") == 0 ? 0 : strlen(dir);

	return strncmp(path, dir, len) == 0 && (path[len] == '/' || path[len] == '\0');
}

/* What a failed bwrap said, in one line. */
static void complaint_text(int fd, char *text, size_t size)
{
	ssize_t n = read(fd, text, size - 1);

	text[n > 0 ? n : 0] = '\0';
	text[strcspn(text, "\n")] = '\0';
	if (!text[0])
		snprintf(text, size, "bwrap ended without a word");
}

/* ---- the command line of bwrap */

struct args {
	char **list;
	size_t count;
	bool failed;
};

static void args_free(struct args *args)
{
	for (size_t i = 0; i < args->count; i++)
		free(args->list[i]);
	free(args->list);
	*args = (struct args){ 0 };
}

/* Up to the first NULL. */
static void add(struct args *args, const char *word, ...)
{
	va_list words;

	va_start(words, word);
	for (; word; word = va_arg(words, const char *)) {
		char **list = realloc(args->list, (args->count + 2) * sizeof(*list));

		if (list)
			args->list = list;
		if (!list || !(list[args->count] = strdup(word))) {
			args->failed = true;
			break;
		}
		list[++args->count] = NULL;
	}
	va_end(words);
}

static void add_start(struct args *args)
{
	add(args, BWRAP, "--unshare-user", "--unshare-pid", "--unshare-ipc", "--unshare-uts",
	    "--unshare-cgroup-try", "--cap-drop", "ALL", "--new-session", "--die-with-parent",
	    "--as-pid-1", NULL);
}

enum place_kind { PLACE_PROC, PLACE_DEV, PLACE_TMP, PLACE_READ, PLACE_WRITE, PLACE_DENIED };

struct place {
	const char *source, *target;
	enum place_kind kind;
	size_t order;
};

/* Parents before what lies in them, and what is denied over all else. */
static int compare_places(const void *left, const void *right)
{
	const struct place *a = left, *b = right;
	int r;

	if ((a->kind == PLACE_DENIED) != (b->kind == PLACE_DENIED))
		return a->kind == PLACE_DENIED ? 1 : -1;
	r = strcmp(a->target, b->target);
	return r != 0 ? r : a->order < b->order ? -1 : 1;
}

static bool has_place(const struct place *places, size_t count, const char *target)
{
	for (size_t i = 0; i < count; i++) {
		if (strcmp(places[i].target, target) == 0)
			return true;
	}
	return false;
}

static const struct place *writable_above(const struct place *places, size_t count,
					  const char *path)
{
	for (size_t i = 0; i < count; i++) {
		if (places[i].kind == PLACE_WRITE && beneath(path, places[i].target))
			return &places[i];
	}
	return NULL;
}

/* What shows a path, or a part of it, under another name. */
static const struct place *renamed(const struct place *places, size_t count, const char *path)
{
	for (size_t i = 0; i < count; i++) {
		if ((places[i].kind == PLACE_READ || places[i].kind == PLACE_WRITE) &&
		    strcmp(places[i].source, places[i].target) != 0 &&
		    (beneath(path, places[i].source) || beneath(places[i].source, path)))
			return &places[i];
	}
	return NULL;
}

static int add_place(struct args *args, const struct place *places, size_t count,
		     const struct place *place, agentd_error **reterr)
{
	struct stat st;

	switch (place->kind) {
	case PLACE_PROC:
		add(args, "--proc", place->target, NULL);
		break;
	case PLACE_DEV:
		add(args, "--dev", place->target, NULL);
		break;
	case PLACE_TMP:
		add(args, "--tmpfs", place->target, NULL);
		break;
	case PLACE_READ:
		add(args, "--ro-bind", place->source, place->target, NULL);
		break;
	case PLACE_WRITE:
		add(args, "--bind", place->source, place->target, NULL);
		break;
	case PLACE_DENIED:
		if (renamed(places, count, place->target))
			return fail(reterr, AGENTD_ERR_UNSUPPORTED, 0,
				    "bwrap cannot deny %s where %s shows it", place->target,
				    renamed(places, count, place->target)->target);
		if (lstat(place->source, &st) < 0 || S_ISLNK(st.st_mode)) {
			if (writable_above(places, count, place->target))
				return fail(reterr, AGENTD_ERR_UNSUPPORTED, 0,
					    "bwrap cannot deny %s: it is %s, in a directory that "
					    "may be written",
					    place->target,
					    errno == ENOENT ? "not there" : "a link");
			break;
		}
		if (S_ISDIR(st.st_mode))
			add(args, "--perms", "0000", "--tmpfs", place->target, "--remount-ro",
			    place->target, NULL);
		else /* bwrap binds without devices: it cannot be opened */
			add(args, "--ro-bind", "/dev/null", place->target, NULL);
		break;
	}
	return 0;
}

/* Protected names that are there cannot be changed; those that are not can be made. Returns
 * how many of them, or an error. */
static int add_protected(struct args *args, const agentd_spec *spec, const struct place *places,
			 size_t count)
{
	int missing = 0;

	for (size_t i = 0; i < count; i++) {
		for (size_t p = 0; places[i].kind == PLACE_WRITE; p++) {
			const char *name = agentd_spec_protected_at(spec, p);
			char source[4096], target[4096];

			if (!name)
				break;
			snprintf(source, sizeof(source), "%s/%s", places[i].source, name);
			snprintf(target, sizeof(target), "%s/%s", places[i].target, name);
			if (access(source, F_OK) == 0)
				add(args, "--ro-bind", source, target, NULL);
			else
				missing++;
		}
	}
	return missing;
}

/* Where the policy allows /usr, /bin and its like are links into it, as on the host. */
static void add_links(struct args *args, const struct place *places, size_t count)
{
	static const char *const links[] = { "/bin", "/sbin", "/lib", "/lib64" };

	for (size_t i = 0; i < sizeof(links) / sizeof(links[0]); i++) {
		char to[256];
		ssize_t n = readlink(links[i], to, sizeof(to) - 1);

		if (n <= 0 || has_place(places, count, links[i]) || has_place(places, count, "/"))
			continue;
		to[n] = '\0';
		add(args, "--symlink", to, links[i], NULL);
	}
}

/* ret_missing: protected names that are not there yet. */
static int add_view(struct args *args, const agentd_spec *spec, int *ret_missing,
		    agentd_error **reterr)
{
	const char *workdir = agentd_spec_workdir(spec);
	size_t mounts = agentd_spec_mount_count(spec), count = 0;
	struct place *places = calloc(mounts + 4, sizeof(*places));
	int r = 0;

	if (!places)
		return AGENTD_ERR_NOMEM;
	places[count++] = (struct place){ .target = "/proc", .kind = PLACE_PROC };
	places[count++] = (struct place){ .target = "/dev", .kind = PLACE_DEV };
	places[count++] = (struct place){ .target = "/tmp", .kind = PLACE_TMP };
	for (size_t i = 0; r == 0 && i <= mounts; i++) {
		struct place *place = &places[count];
		uint32_t access_bits = 0;

		if (i < mounts) {
			agentd_spec_mount_at(spec, i, &place->source, &place->target, &access_bits);
		} else if (workdir) {
			place->source = place->target = workdir;
			access_bits = agentd_spec_workdir_access(spec);
		} else {
			break;
		}
		if (access_bits != 0 && !(access_bits & AGENTD_ACCESS_READ))
			r = fail(reterr, AGENTD_ERR_UNSUPPORTED, 0,
				 "bwrap cannot give %s without letting it be read", place->target);
		place->kind = access_bits == 0                  ? PLACE_DENIED :
			      access_bits & AGENTD_ACCESS_WRITE ? PLACE_WRITE :
								  PLACE_READ;
		place->order = ++count;
	}
	qsort(places, count, sizeof(*places), compare_places);
	add_links(args, places, count);
	for (size_t i = 0; r == 0 && i < count; i++)
		r = add_place(args, places, count, &places[i], reterr);
	if (r == 0)
		*ret_missing = add_protected(args, spec, places, count);
	free(places);
	return r;
}

/* ---- the request: what the first process is to run, in a file that is only memory */

static bool names(const char *entry, const char *name)
{
	size_t len = strlen(name);

	return strncmp(entry, name, len) == 0 && (entry[len] == '=' || entry[len] == '\0');
}

static bool lists(const char *const *env, const char *name)
{
	for (; *env; env++) {
		if (names(*env, name))
			return true;
	}
	return false;
}

static int make_request(const agentd_spec *spec, const struct agentd_limits *limits)
{
	const char *const *argv = agentd_spec_argv(spec), *const *env = agentd_spec_env(spec);
	struct first_request head = { .file_bytes = limits->file_bytes,
				      .open_files_max = limits->open_files_max };
	int fd = memfd_create("request", MFD_CLOEXEC), copy;
	FILE *file;
	bool failed;

	copy = fd < 0 ? -1 : fcntl(fd, F_DUPFD_CLOEXEC, 0);
	file = copy < 0 ? NULL : fdopen(copy, "w");
	if (!file) {
		drop_fd(&copy);
		drop_fd(&fd);
		return -1;
	}
	fseek(file, sizeof(head), SEEK_SET);
	for (; argv[head.argc]; head.argc++)
		fwrite(argv[head.argc], strlen(argv[head.argc]) + 1, 1, file);
	if (!lists(env, "PATH")) {
		fwrite("PATH=/usr/local/bin:/usr/bin:/bin", 34, 1, file);
		head.envc++;
	}
	if (!lists(env, "HOME")) {
		fwrite("HOME=/tmp", 10, 1, file);
		head.envc++;
	}
	for (; *env; env++) {
		if (!strchr(*env, '='))
			continue; /* must not be there, and is not */
		fwrite(*env, strlen(*env) + 1, 1, file);
		head.envc++;
	}
	rewind(file);
	fwrite(&head, sizeof(head), 1, file);
	failed = ferror(file) != 0;
	if (fclose(file) != 0 || failed)
		drop_fd(&fd);
	return fd;
}

/* ---- starting bwrap */

/* fds: what it has as descriptors 0 to count - 1. Environment: none, so that nothing of the
 * command's works on bwrap. A process group of its own: its child waits for it at first, and
 * would for ever if bwrap alone were killed. */
static int spawn(pid_t *ret_pid, int *ret_pidfd, char *const *argv, const int *fds, int count)
{
	char *const none[] = { NULL };
	posix_spawn_file_actions_t actions;
	posix_spawnattr_t attrs;
	sigset_t set;
	int code;

	posix_spawn_file_actions_init(&actions);
	posix_spawnattr_init(&attrs);
	sigemptyset(&set);
	posix_spawnattr_setsigmask(&attrs, &set);
	sigfillset(&set);
	posix_spawnattr_setsigdefault(&attrs, &set);
	posix_spawnattr_setflags(&attrs, POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF |
						 POSIX_SPAWN_SETPGROUP);
	code = 0;
	for (int i = 0; code == 0 && i < count; i++)
		code = posix_spawn_file_actions_adddup2(&actions, fds[i], i);
	if (code == 0)
		code = posix_spawn_file_actions_addclosefrom_np(&actions, count);
	if (code == 0)
		code = posix_spawn(ret_pid, BWRAP, &actions, &attrs, argv, none);
	posix_spawn_file_actions_destroy(&actions);
	posix_spawnattr_destroy(&attrs);
	if (code != 0)
		return code;
	*ret_pidfd = (int)syscall(SYS_pidfd_open, *ret_pid, 0);
	if (*ret_pidfd >= 0)
		return 0;
	code = errno;
	kill(-*ret_pid, SIGKILL);
	waitpid(*ret_pid, NULL, 0);
	return code;
}

/* A descriptor that no dup2 to a low number overwrites. */
static int lift(int fd)
{
	int high = fd < 0 ? -1 : fcntl(fd, F_DUPFD_CLOEXEC, FIRST_END);

	drop_fd(&fd);
	return high;
}

static bool lift_pair(int fds[2])
{
	fds[0] = lift(fds[0]);
	fds[1] = lift(fds[1]);
	return fds[0] >= 0 && fds[1] >= 0;
}

static bool make_pipe(int fds[2])
{
	return pipe2(fds, O_CLOEXEC) == 0 && lift_pair(fds) &&
	       fcntl(fds[0], F_SETFL, O_NONBLOCK) == 0;
}

static bool make_sockets(int type, int fds[2])
{
	return socketpair(AF_UNIX, type | SOCK_CLOEXEC, 0, fds) == 0 && lift_pair(fds);
}

static int job_spawn(struct job *job, const agentd_spec *spec, const struct agentd_limits *limits,
		     char *const *argv)
{
	int nil, request, control[2] = { -1, -1 }, input[2] = { -1, -1 }, output[2] = { -1, -1 },
			  errors[2] = { -1, -1 }, info[2] = { -1, -1 }, complaint[2] = { -1, -1 };
	const uint32_t flags = agentd_spec_flags(spec);
	int code = 0;

	nil = lift(open("/dev/null", O_RDWR | O_CLOEXEC));
	request = lift(make_request(spec, limits));
	if (nil < 0 || request < 0 || !make_sockets(SOCK_SEQPACKET, control) ||
	    !make_pipe(output) || !make_pipe(errors) || !make_pipe(info) || !make_pipe(complaint) ||
	    /* A socket: writing where nobody reads must not raise SIGPIPE. */
	    (flags & AGENTD_EXEC_STDIN_OPEN && !make_sockets(SOCK_STREAM, input)))
		code = errno;
	if (code == 0) {
		const int fds[FIRST_END] = {
			nil,
			complaint[1],
			complaint[1],
			[FIRST_CONTROL] = control[1],
			[FIRST_STDIN] = flags & AGENTD_EXEC_STDIN_OPEN ? input[1] : nil,
			[FIRST_STDOUT] = output[1],
			[FIRST_STDERR] = flags & AGENTD_EXEC_MERGE_STDERR ? output[1] : errors[1],
			[FIRST_INFO] = info[1],
			[FIRST_REQUEST] = request,
		};

		code = spawn(&job->outer, &job->outer_fd, argv, fds, FIRST_END);
	}
	drop_fd(&nil);
	drop_fd(&request);
	drop_fd(&control[1]);
	drop_fd(&input[1]);
	drop_fd(&output[1]);
	drop_fd(&errors[1]);
	drop_fd(&info[1]);
	drop_fd(&complaint[1]);
	job->control = control[0];
	job->input = input[0];
	job->info = info[0];
	job->complaint = complaint[0];
	job->output[0] = output[0];
	if (flags & AGENTD_EXEC_MERGE_STDERR)
		drop_fd(&errors[0]);
	job->output[1] = errors[0];
	return code;
}

/* ---- the life of a job */

static void job_failed(struct job *job, int os_errno, const char *text)
{
	agentd_task_failed(job->task, agentd_error_create(AGENTD_ERR_SYSTEM, os_errno, text));
}

/* Over when bwrap was reaped, the first process of the namespace is dead (the kernel lets it
 * die last), and nobody holds the other end of the control socket. */
static void job_look(struct job *job)
{
	char text[512];

	if (job->over || job->outer > 0 || job->control >= 0 || job->first_fd >= 0)
		return;
	job->over = true;
	if (job->killed && job->started && !job->exited)
		agentd_task_exited(job->task, SIGKILL, 0);
	if (job->killed || job->exited) {
		agentd_task_closed(job->task);
	} else if (job->start_errno) {
		job_failed(job, job->start_errno, strerror(job->start_errno));
	} else if (job->started) {
		job_failed(job, 0, "the sandbox of bwrap died");
	} else {
		complaint_text(job->complaint, text, sizeof(text));
		job_failed(job, 0, text);
	}
}

static void on_outer(evutil_socket_t fd, short what, void *userdata)
{
	struct job *job = userdata;

	(void)fd;
	(void)what;
	if (waitpid(job->outer, NULL, WNOHANG) == 0)
		return;
	job->outer = 0;
	drop_event(&job->on_outer);
	drop_fd(&job->outer_fd);
	job_look(job);
}

static void on_first(evutil_socket_t fd, short what, void *userdata)
{
	struct job *job = userdata;

	(void)fd;
	(void)what;
	drop_event(&job->on_first);
	drop_fd(&job->first_fd);
	job_look(job);
}

static int32_t task_kill(void *state)
{
	struct job *job = state;

	/* Before its pid is known the first process runs nothing: it waits for our word. */
	job->killed = true;
	if (job->first_fd >= 0)
		syscall(SYS_pidfd_send_signal, job->first_fd, SIGKILL, NULL, 0);
	return 0;
}

/* Reads what bwrap says of the sandbox. Returns whether it has said all, and not before: it
 * would die of a pipe without a reader. Then job->first is the pid of the first process, or 0. */
static bool read_info(struct job *job)
{
	const char *at;
	ssize_t n;

	do
		n = read(job->info, job->text + job->text_len,
			 sizeof(job->text) - 1 - job->text_len);
	while (n > 0 && (job->text_len += (size_t)n) < sizeof(job->text) - 1);
	if (n < 0)
		return false;
	job->text[job->text_len] = '\0';
	at = strstr(job->text, "\"child-pid\":");
	if (!at || sscanf(at, "\"child-pid\": %d", &job->first) != 1)
		job->first = 0;
	return true;
}

/* Takes hold of the first process while it waits for our word. */
static void on_info(evutil_socket_t fd, short what, void *userdata)
{
	static const uint8_t go = FIRST_GO;
	struct job *job = userdata;

	(void)fd;
	(void)what;
	if (!read_info(job))
		return;
	drop_event(&job->on_info);
	drop_fd(&job->info);
	if (job->first > 0)
		job->first_fd = (int)syscall(SYS_pidfd_open, job->first, 0);
	if (job->first_fd < 0)
		return; /* it is dead already, and bwrap says why */
	if (watch(&job->on_first, job->backend->base, job->first_fd, EV_READ, on_first, job) < 0) {
		task_kill(job);
		drop_fd(&job->first_fd);
	} else if (job->killed) {
		task_kill(job);
	} else {
		(void)!send(job->control, &go, 1, MSG_NOSIGNAL | MSG_DONTWAIT);
	}
}

/* Out of memory with a sandbox already begun. To kill bwrap alone would leave its child
 * waiting for it. */
static void job_abandon(struct job *job)
{
	fcntl(job->info, F_SETFL, 0);
	if (read_info(job) && job->first > 0)
		kill(job->first, SIGKILL);
	waitpid(job->outer, NULL, 0);
}

/* Not before the command runs: there is no output of what has not started. */
static void attach(struct job *job)
{
	for (int i = 0; i < 2; i++) {
		if (job->output[i] >= 0 &&
		    agentd_task_attach_fd(job->task, i == 0 ? AGENTD_STDOUT : AGENTD_STDERR,
					  job->output[i]) < 0)
			task_kill(job);
		job->output[i] = -1;
	}
}

static void on_control(evutil_socket_t fd, short what, void *userdata)
{
	struct job *job = userdata;
	struct first_note note;
	ssize_t n = recv(fd, &note, sizeof(note), MSG_DONTWAIT);

	(void)what;
	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return;
	if (n != (ssize_t)sizeof(note)) {
		drop_event(&job->on_control);
		drop_fd(&job->control);
		job_look(job);
		return;
	}
	if (note.kind == FIRST_STARTED) {
		job->started = true;
		attach(job);
		agentd_task_started(job->task, job->first);
	} else if (note.kind == FIRST_FAILED) {
		job->start_errno = note.value; /* told when all of the sandbox is gone */
	} else if (!job->exited) {
		job->exited = true;
		agentd_task_metric(job->task, AGENTD_METRIC_CPU_NS, note.cpu_ns);
		agentd_task_metric(job->task, AGENTD_METRIC_MEMORY_PEAK_BYTES, note.peak_bytes);
		if (job->file_bytes && WIFSIGNALED(note.value) && WTERMSIG(note.value) == SIGXFSZ)
			agentd_task_limit_hit(job->task, "file_bytes", 1);
		agentd_task_exited(job->task, note.value, note.at_ns);
	}
}

static void job_free(void *state)
{
	struct job *job = state;

	drop_event(&job->on_outer);
	drop_event(&job->on_first);
	drop_event(&job->on_control);
	drop_event(&job->on_info);
	drop_event(&job->on_input);
	drop_fd(&job->outer_fd);
	drop_fd(&job->first_fd);
	drop_fd(&job->control);
	drop_fd(&job->input);
	drop_fd(&job->info);
	drop_fd(&job->complaint);
	drop_fd(&job->output[0]);
	drop_fd(&job->output[1]);
	free(job);
}

/* ---- starting a job */

static int refuse(const agentd_spec *spec, agentd_error **reterr)
{
	static const char *const limits[] = { "pids_max", "cpu_time_ms", "mem_bytes", "io_bytes",
					      "cpu_ms_per_100ms" };
	const char *workdir = agentd_spec_workdir(spec), *what = NULL;
	struct stat st;

	if (agentd_spec_rootfs(spec))
		what = "a root file system";
	else if (agentd_spec_netns(spec) >= 0)
		what = "a network namespace";
	else if (agentd_spec_net(spec) == AGENTD_NET_ALLOWLIST)
		what = "a network of allowed hosts";
	else if (agentd_spec_credentials_fd(spec) >= 0)
		what = "credentials as a private file";
	for (size_t i = 0; !what && i < sizeof(limits) / sizeof(limits[0]); i++) {
		if (agentd_spec_limit_requested(spec, limits[i]) == 1)
			return fail(reterr, AGENTD_ERR_UNSUPPORTED, 0,
				    "bwrap cannot enforce the limit %s", limits[i]);
	}
	if (what)
		return fail(reterr, AGENTD_ERR_UNSUPPORTED, 0, "bwrap cannot give %s", what);
	if (!workdir)
		return 0;
	if (agentd_spec_workdir_access(spec) == 0)
		return fail(reterr, AGENTD_ERR_DENIED, 0,
			    "the policies deny the working directory %s", workdir);
	if (stat(workdir, &st) < 0 || !S_ISDIR(st.st_mode))
		return fail(reterr, AGENTD_ERR_SYSTEM, errno ? errno : ENOTDIR,
			    "working directory %s: %s", workdir, strerror(errno ? errno : ENOTDIR));
	return 0;
}

static void layers(void (*say)(void *to, const char *layer, int32_t state, const char *reason),
		   void *to)
{
	say(to, "userns", AGENTD_LAYER_ENFORCED, "no privileges outside of it, none inside");
	say(to, "mountns", AGENTD_LAYER_ENFORCED, "bwrap");
	say(to, "pidns", AGENTD_LAYER_ENFORCED, "killed as a whole");
	say(to, "paths", AGENTD_LAYER_DEGRADED, "what may be read may also be executed");
	say(to, "rlimits", AGENTD_LAYER_ENFORCED, "file size, open files");
	say(to, "cgroup", AGENTD_LAYER_ABSENT, no_limits);
	say(to, "seccomp", AGENTD_LAYER_ABSENT, "bwrap was given no filter");
	say(to, "landlock", AGENTD_LAYER_ABSENT, "bubblewrap knows nothing of it");
}

static void say_task(void *to, const char *layer, int32_t state, const char *reason)
{
	agentd_task_protection(to, layer, state, reason);
}

static void say_report(void *to, const char *layer, int32_t state, const char *reason)
{
	agentd_backend_report_layer(to, layer, state, reason);
}

static void receipt(agentd_task *task, const agentd_spec *spec, int missing)
{
	layers(say_task, task);
	if (agentd_spec_net(spec) == AGENTD_NET_NONE)
		agentd_task_protection(task, "network", AGENTD_LAYER_ENFORCED, "none");
	else
		agentd_task_protection(task, "network", AGENTD_LAYER_ABSENT,
				       "the host's, as the policy has it");
	if (missing > 0)
		agentd_task_protection(task, "protected-names", AGENTD_LAYER_DEGRADED,
				       "names that are not there yet can be made");
	else if (agentd_spec_protected_count(spec) > 0)
		agentd_task_protection(task, "protected-names", AGENTD_LAYER_ENFORCED,
				       "mounted to be read only");
}

static int32_t task_start(void *self, agentd_task *task, const agentd_spec *spec, void **ret_state,
			  agentd_error **reterr)
{
	struct agentd_limits limits = { .size = sizeof(limits) };
	struct backend *backend = self;
	int r, code, missing = 0;
	const char *workdir = agentd_spec_workdir(spec);
	struct args args = { 0 };
	struct job *job;

	errno = 0;
	r = refuse(spec, reterr);
	if (r < 0)
		return r;
	job = calloc(1, sizeof(*job));
	if (!job)
		return AGENTD_ERR_NOMEM;
	*job = (struct job){ .backend = backend,
			     .task = task,
			     .outer_fd = -1,
			     .first_fd = -1,
			     .control = -1,
			     .input = -1,
			     .info = -1,
			     .complaint = -1,
			     .output = { -1, -1 } };
	agentd_spec_limits(spec, &limits);
	job->file_bytes = limits.file_bytes;
	add_start(&args);
	if (agentd_spec_net(spec) == AGENTD_NET_NONE)
		add(&args, "--unshare-net", NULL);
	r = add_view(&args, spec, &missing, reterr);
	add(&args, "--ro-bind", backend->first, INSIDE, "--chdir", workdir ? workdir : "/",
	    "--info-fd", "7", "--", INSIDE, "run", NULL);
	if (r == 0 && args.failed)
		r = AGENTD_ERR_NOMEM;
	if (r == 0) {
		code = job_spawn(job, spec, &limits, args.list);
		if (code != 0)
			r = fail(reterr, AGENTD_ERR_SYSTEM, code, BWRAP ": %s", strerror(code));
	}
	args_free(&args);
	if (r == 0)
		r = watch(&job->on_outer, backend->base, job->outer_fd, EV_READ | EV_PERSIST,
			  on_outer, job);
	if (r == 0)
		r = watch(&job->on_control, backend->base, job->control, EV_READ | EV_PERSIST,
			  on_control, job);
	if (r == 0)
		r = watch(&job->on_info, backend->base, job->info, EV_READ | EV_PERSIST, on_info,
			  job);
	if (r < 0) {
		if (job->outer > 0)
			job_abandon(job);
		job_free(job);
		return r;
	}
	receipt(task, spec, missing);
	*ret_state = job;
	return 0;
}

/* ---- what the library asks of a job */

static int32_t task_signal(void *state, int32_t signo)
{
	struct job *job = state;
	uint8_t byte = (uint8_t)signo;

	return send(job->control, &byte, 1, MSG_NOSIGNAL | MSG_DONTWAIT) == 1 ? 0 :
										AGENTD_ERR_STATE;
}

static void on_input(evutil_socket_t fd, short what, void *userdata)
{
	struct job *job = userdata;

	(void)fd;
	(void)what;
	drop_event(&job->on_input);
	agentd_task_stdin_drained(job->task);
}

static int32_t task_write(void *state, const uint8_t *data, size_t len, size_t *ret_taken)
{
	struct job *job = state;
	ssize_t n;

	if (job->input < 0)
		return AGENTD_ERR_STATE;
	n = send(job->input, data, len, MSG_NOSIGNAL | MSG_DONTWAIT);
	if (n >= 0) {
		*ret_taken = (size_t)n;
		return 0;
	}
	if (errno != EAGAIN) {
		drop_event(&job->on_input);
		drop_fd(&job->input);
		return AGENTD_ERR_STATE;
	}
	if (!job->on_input &&
	    watch(&job->on_input, job->backend->base, job->input, EV_WRITE, on_input, job) < 0)
		return AGENTD_ERR_NOMEM;
	return AGENTD_ERR_AGAIN;
}

static int32_t task_close_stdin(void *state)
{
	struct job *job = state;

	drop_event(&job->on_input);
	drop_fd(&job->input);
	return 0;
}

/* ---- the backend */

static int32_t backend_open(void *userdata, struct event_base *base, void **ret_self)
{
	struct backend *backend = calloc(1, sizeof(*backend));

	if (!backend)
		return AGENTD_ERR_NOMEM;
	*backend =
		(struct backend){ .base = base, .first = userdata, .pidfd = -1, .complaint = -1 };
	*ret_self = backend;
	return 0;
}

static void probe_end(struct backend *backend)
{
	drop_event(&backend->on_probe);
	drop_fd(&backend->pidfd);
	drop_fd(&backend->complaint);
	backend->pid = 0;
}

static void backend_close(void *self)
{
	struct backend *backend = self;

	if (backend->pid > 0) {
		kill(-backend->pid, SIGKILL);
		waitpid(backend->pid, NULL, 0);
	}
	probe_end(backend);
	free(backend);
}

static void on_probe(evutil_socket_t fd, short what, void *userdata)
{
	struct backend *backend = userdata;
	agentd_error *err = NULL;
	char text[512];
	int status;

	(void)fd;
	(void)what;
	if (waitpid(backend->pid, &status, WNOHANG) != backend->pid)
		return;
	if (status != 0) {
		complaint_text(backend->complaint, text, sizeof(text));
		err = agentd_error_create(AGENTD_ERR_UNSUPPORTED, 0, text);
	}
	probe_end(backend);
	if (!err)
		layers(say_report, backend->report);
	agentd_backend_report_done(backend->report, err);
}

/* Tried, not guessed: a sandbox with nothing in it but our program, which only exits. */
static int32_t probe_start(void *self, agentd_backend_report *report)
{
	struct backend *backend = self;
	int nil = lift(open("/dev/null", O_RDWR | O_CLOEXEC)), complaint[2] = { -1, -1 };
	struct args args = { 0 };
	int code = 0;

	add_start(&args);
	add(&args, "--unshare-net", "--proc", "/proc", "--dev", "/dev", "--ro-bind", backend->first,
	    INSIDE, "--", INSIDE, NULL);
	if (nil < 0 || args.failed || !make_pipe(complaint))
		code = ENOMEM;
	if (code == 0) {
		const int fds[] = { nil, complaint[1], complaint[1] };

		code = spawn(&backend->pid, &backend->pidfd, args.list, fds, 3);
	}
	args_free(&args);
	drop_fd(&nil);
	drop_fd(&complaint[1]);
	backend->complaint = complaint[0];
	backend->report = report;
	if (code == 0)
		return watch(&backend->on_probe, backend->base, backend->pidfd,
			     EV_READ | EV_PERSIST, on_probe, backend);
	backend->pid = 0;
	agentd_backend_report_done(report,
				   agentd_error_create(AGENTD_ERR_UNSUPPORTED, code,
						       code == ENOENT ? "there is no " BWRAP
									" (Debian: bubblewrap)" :
									strerror(code)));
	return 0;
}

static const struct agentd_backend_ops bwrap_ops = {
	.size = sizeof(bwrap_ops),
	.abi = AGENTD_BACKEND_ABI,
	.name = "bwrap",
	.isolation = BWRAP_ISOLATION,
	.open = backend_open,
	.close = backend_close,
	.probe_start = probe_start,
	.task_start = task_start,
	.task_kill = task_kill,
	.task_free = job_free,
	.task_signal = task_signal,
	.task_write = task_write,
	.task_close_stdin = task_close_stdin,
};

int bwrap_add(agentd_runner *runner, const char *first, agentd_error **reterr)
{
	return agentd_runner_add_backend(runner, &bwrap_ops, (void *)(uintptr_t)first, reterr);
}
