/* SPDX-License-Identifier: MIT */
/* A machine that stays, for the commands of one session. What outlives it is a disk: a file
 * in the session's folder with a file system of its own, which the guest mounts where the
 * commands work. Nothing of it is ever read by the host. */
#include "backend/microvm/private.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <unistd.h>

#include <agentd/policy.h>

#include "json/json.h"
#include "sys/sys.h"

#define DISK "disk.ext4"
#define DISK_NEW ".disk.new"
#define VOLUME_BYTES (UINT64_C(1) << 30)
/* As scripts/build-image makes its empty file systems, and what they can grow to. */
#define VOLUME_LEAST (UINT64_C(64) << 20)
#define VOLUME_MOST (UINT64_C(64) << 30)
#define VOLUME_BLOCK UINT64_C(4096)

/* The machine of a host program that was killed ends a moment after it. */
static const uint64_t lock_pause_ns = 10 * AD_NS_PER_MS, lock_patience_ns = 5000 * AD_NS_PER_MS;

struct vm_session {
	struct microvm *vm;
	agentd_task *task;
	const agentd_spec *spec; /* lives as long as its task */
	struct machine *machine; /* or NULL: it waits for its disk */
	struct machine_volume volume;
	char *disk; /* NULL: of a spare */
	struct ad_timer timer;
	uint64_t began_ns;
	uint64_t memory_bytes;
	bool ready, stopping;
	uint32_t last_id;
	struct vm_task *command; /* there is one at a time, or NULL */
};

/* ---- what the pool's configuration says */

static int read_option(const char *key, const struct json_object *value, const char *pointer,
		       void *userdata, agentd_error **reterr)
{
	struct vm_session *session = userdata;
	const struct {
		const char *key;
		uint64_t *to, least, most;
	} numbers[] = {
		{ "memory_bytes", &session->memory_bytes, AD_MICROVM_MEMORY_LEAST,
		  session->vm->memory_most },
		{ "volume_bytes", &session->volume.bytes, VOLUME_LEAST, VOLUME_MOST },
	};

	for (size_t i = 0; i < AD_COUNT(numbers); i++) {
		int r;

		if (strcmp(key, numbers[i].key) != 0)
			continue;
		r = ad_json_get_u64(value, pointer, numbers[i].to, reterr);
		if (r == 0 &&
		    (*numbers[i].to < numbers[i].least || *numbers[i].to > numbers[i].most))
			r = ad_fail(reterr, AGENTD_ERR_INVALID, pointer,
				    "vm.%s must be from %llu to %llu here", key,
				    (unsigned long long)numbers[i].least,
				    (unsigned long long)numbers[i].most);
		return r;
	}
	return ad_json_unknown_key(key, pointer, reterr);
}

static int read_options(struct vm_session *session, agentd_error **reterr)
{
	ad_autojson struct json_object *value = NULL;
	const char *text = agentd_spec_options(session->spec);
	int r;

	if (!text)
		return 0;
	r = ad_json_parse(text, strlen(text), &value, reterr);
	return r < 0 ? r : ad_json_each_member(value, "/vm", read_option, session, reterr);
}

/* ---- its disk */

/* A few hundred KiB, the rest are holes. */
static int copy_data(int from, int to)
{
	off_t data = 0, end;
	struct stat st;

	if (fstat(from, &st) < 0 || ftruncate(to, st.st_size) < 0)
		return -errno;
	while ((data = lseek(from, data, SEEK_DATA)) >= 0) {
		end = lseek(from, data, SEEK_HOLE);
		if (end < 0 || lseek(to, data, SEEK_SET) < 0)
			return -errno;
		while (data < end) {
			/* copy_file_range(2) does not leave a file system. */
			ssize_t n = sendfile(to, from, &data, (size_t)(end - data));

			if (n <= 0)
				return n < 0 ? -errno : -EIO;
		}
	}
	return errno == ENXIO ? 0 : -errno;
}

static int copy_file(int from, int to)
{
	struct ad_sys_signals held;
	int r;

	ad_sys_signals_hold(&held);
	r = copy_data(from, to);
	ad_sys_signals_release(&held, -r);
	return r;
}

static int fail_disk(const struct vm_session *session, int error, agentd_error **reterr)
{
	return ad_fail_errno(reterr, error, "the disk of the session, %s", session->disk);
}

/* Whole or not at all. */
static int make_disk(const struct vm_session *session, int dir, agentd_error **reterr)
{
	ad_autoclose int from = image_open_volume(session->vm->image_dir, session->volume.bytes,
						  reterr);
	ad_autoclose int to = -1;
	int r;

	if (from < 0)
		return from;
	to = openat(dir, DISK_NEW, O_RDWR | O_CREAT | O_TRUNC | O_NOFOLLOW | O_CLOEXEC, 0600);
	if (to < 0)
		return fail_disk(session, errno, reterr);
	r = copy_file(from, to);
	if (r == 0 && (fsync(to) < 0 || renameat(dir, DISK_NEW, dir, DISK) < 0 || fsync(dir) < 0))
		r = -errno;
	if (r < 0) {
		unlinkat(dir, DISK_NEW, 0);
		return fail_disk(session, -r, reterr);
	}
	return 0;
}

/* As large as is wanted, and never smaller than it was. */
static int size_disk(struct vm_session *session, agentd_error **reterr)
{
	struct machine_volume *volume = &session->volume;
	uint64_t bytes = volume->bytes / VOLUME_BLOCK * VOLUME_BLOCK;
	struct stat st;
	int r;

	if (fstat(volume->fd, &st) < 0)
		return fail_disk(session, errno, reterr);
	if (!S_ISREG(st.st_mode) || st.st_size == 0)
		return ad_fail(reterr, AGENTD_ERR_INVALID, NULL,
			       "%s is no disk: it is not a regular file, or empty", session->disk);
	volume->bytes = (uint64_t)st.st_size;
	if (bytes <= volume->bytes)
		return 0;
	r = ad_sys_truncate_nosignal(volume->fd, (off_t)bytes);
	if (r < 0)
		return fail_disk(session, -r, reterr);
	volume->bytes = bytes;
	return 0;
}

static int open_disk(struct vm_session *session, agentd_error **reterr)
{
	struct machine_volume *volume = &session->volume;
	ad_autoclose int dir = open(agentd_spec_volume(session->spec),
				    O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	int r;

	if (dir < 0)
		return fail_disk(session, errno, reterr);
	if (faccessat(dir, DISK, F_OK, AT_SYMLINK_NOFOLLOW) < 0 && errno == ENOENT) {
		r = make_disk(session, dir, reterr);
		if (r < 0)
			return r;
	}
	volume->fd =
		ad_sys_high_fd(openat(dir, DISK, O_RDWR | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC));
	return volume->fd < 0 ? fail_disk(session, errno, reterr) : 0;
}

static int prepare_volume(struct vm_session *session, agentd_error **reterr)
{
	ad_autobuf struct ad_buf path = { 0 };

	ad_buf_printf(&path, "%s/" DISK, agentd_spec_volume(session->spec));
	session->disk = ad_buf_steal(&path);
	if (!session->disk)
		return ad_fail_nomem(reterr);
	session->volume.file = session->disk;
	session->volume.path = agentd_spec_workdir(session->spec);
	session->volume.uid = session->volume.gid = MICROVM_GUEST_UID;
	return open_disk(session, reterr);
}

/* ---- its machine */

static struct vm_task *find(const struct vm_session *session, uint32_t id)
{
	return session->command && task_has_id(session->command, id) ? session->command : NULL;
}

static void on_ready(struct machine *machine, void *userdata)
{
	struct vm_session *session = userdata;

	session->ready = session->disk;
	agentd_task_started(session->task, machine_facts(machine)->pid);
}

static void on_message(struct machine *machine, const struct ad_guest_msg *msg, void *userdata)
{
	struct vm_session *session = userdata;
	struct vm_task *task = find(session, msg->id);

	if (task)
		task_message(task, msg);
	else if (msg->type == AD_GUEST_LOG)
		agentd_task_log(session->task, msg->u.log.level, msg->u.log.text);
	else if (msg->type == AD_GUEST_DATA && !msg->connection)
		machine_taken(machine, msg->id, msg->u.data.stream, msg->u.data.len);
}

static void on_writable(struct machine *machine, uint32_t id, enum ad_guest_stream stream,
			void *userdata)
{
	struct vm_task *task = find(userdata, id);

	(void)machine;
	if (task)
		task_writable(task, stream);
}

static void on_connection_writable(struct machine *machine, uint32_t id, uint16_t connection,
				   void *userdata)
{
	struct vm_task *task = find(userdata, id);

	(void)machine;
	if (task)
		task_connection_writable(task, connection);
}

static void on_died(struct machine *machine, agentd_error *err, void *userdata)
{
	struct vm_session *session = userdata;
	struct vm_task *command = AD_STEAL(session->command);

	(void)machine;
	if (command)
		task_lost(command, err);
	if (session->stopping) {
		agentd_error_unref(err);
		agentd_task_closed(session->task);
	} else {
		agentd_task_failed(session->task, err);
	}
}

static const struct machine_events machine_events = {
	.ready = on_ready,
	.message = on_message,
	.writable = on_writable,
	.connection_writable = on_connection_writable,
	.died = on_died,
};

/* ---- its life */

static int check(const agentd_spec *spec, agentd_error **reterr)
{
	int r = microvm_check(spec, reterr);

	if (r == 0 && agentd_spec_discard_unfinished(spec))
		r = ad_fail(reterr, AGENTD_ERR_UNSUPPORTED, NULL,
			    "commands of a session work on its disk itself: what a stopped one has "
			    "changed cannot be taken back (discard_unfinished)");
	if (r == 0 && !(agentd_spec_workdir_access(spec) & AGENTD_ACCESS_WRITE))
		r = ad_fail(reterr, AGENTD_ERR_UNSUPPORTED, "/workdir",
			    "the session's files cannot be read-only in a virtual machine: the "
			    "policy denies writing to \"%s\"",
			    agentd_spec_workdir(spec));
	return r;
}

static struct machine_config config_for(const struct vm_session *session, const agentd_spec *spec)
{
	return (struct machine_config){
		.root = agentd_spec_rootfs(spec),
		.memory_bytes = session->memory_bytes ? session->memory_bytes :
							task_memory(session->vm, spec),
		.require_kvm = agentd_spec_require_kvm(spec) != 0,
		.from_template = true,
	};
}

static int start_machine(struct vm_session *session, agentd_error **reterr)
{
	struct machine_config config = config_for(session, session->spec);
	int r = size_disk(session, reterr);

	config.volume = &session->volume;
	if (r == 0 && session->machine)
		return machine_go_on(session->machine, &session->volume, reterr);
	return r < 0 ? r :
		       machine_new(session->vm, &config, &machine_events, session,
				   &session->machine, reterr);
}

static int start_spare(struct vm_session *session, agentd_error **reterr)
{
	struct machine_config config = config_for(session, session->spec);

	config.spare = true;
	return machine_new(session->vm, &config, &machine_events, session, &session->machine,
			   reterr);
}

/* The pool's lock is its host program's. This one is on what the monitor has as well, so that
 * it holds until none has the disk open any more. */
static int begin(struct vm_session *session, agentd_error **reterr)
{
	if (flock(session->volume.fd, LOCK_EX | LOCK_NB) == 0)
		return start_machine(session, reterr);
	if (errno != EWOULDBLOCK)
		return fail_disk(session, errno, reterr);
	if (ad_sys_now_ns() - session->began_ns > lock_patience_ns)
		return ad_fail(reterr, AGENTD_ERR_STATE, NULL,
			       "the disk of the session, %s, is locked by another virtual machine",
			       session->disk);
	return ad_timer_start(&session->timer, lock_pause_ns) < 0 ? ad_fail_nomem(reterr) : 0;
}

static void begin_again(struct ad_timer *timer, void *userdata)
{
	struct vm_session *session = userdata;
	agentd_error *err = NULL;

	(void)timer;
	if (session->stopping && !session->machine)
		agentd_task_closed(session->task);
	else if (session->stopping)
		return; /* it is over with its machine */
	else if (begin(session, &err) < 0)
		agentd_task_failed(session->task, err);
}

int32_t session_start(void *self, agentd_task *task, const agentd_spec *spec, void **ret_session,
		      agentd_error **reterr)
{
	struct vm_session *session;
	bool spare = !agentd_spec_volume(spec);
	int r = spare ? 0 : check(spec, reterr);

	if (r < 0)
		return r;
	session = calloc(1, sizeof(*session));
	if (!session)
		return ad_fail_nomem(reterr);
	session->vm = self;
	session->task = task;
	session->spec = spec;
	session->volume.fd = -1;
	session->volume.bytes = VOLUME_BYTES;
	session->began_ns = ad_sys_now_ns();
	ad_timer_init(&session->timer, ad_launcher_loop(session->vm->launcher), begin_again,
		      session);
	r = read_options(session, reterr);
	if (r == 0 && spare) {
		r = start_spare(session, reterr);
	} else if (r == 0) {
		r = prepare_volume(session, reterr);
		if (r == 0)
			r = begin(session, reterr);
	}
	if (r < 0)
		session_free(session);
	else
		*ret_session = session;
	return r;
}

static void drop_volume(struct vm_session *session)
{
	if (session->volume.fd >= 0)
		close(ad_steal_fd(&session->volume.fd));
	free(AD_STEAL(session->disk));
}

/* The options are those it was started with: a pool has the same for all. */
int32_t session_adopt(void *state, agentd_task *task, const agentd_spec *spec,
		      agentd_error **reterr)
{
	struct vm_session *session = state;
	const struct machine_config config = config_for(session, spec);
	agentd_task *spare = session->task;
	const agentd_spec *its = session->spec;
	int r = check(spec, reterr);

	if (r == 0 && (session->stopping || !machine_fits(session->machine, &config)))
		r = ad_fail(reterr, AGENTD_ERR_STATE, NULL,
			    "the spare machine is not what the session asks for");
	if (r < 0)
		return r;
	session->task = task;
	session->spec = spec;
	session->began_ns = ad_sys_now_ns();
	r = prepare_volume(session, reterr);
	if (r == 0)
		r = begin(session, reterr);
	if (r < 0) {
		drop_volume(session);
		session->task = spare;
		session->spec = its;
	}
	return r;
}

int32_t session_stop(void *state, uint32_t grace_ms)
{
	struct vm_session *session = state;

	session->stopping = true;
	if (!session->machine)
		return ad_timer_start(&session->timer, 0) < 0 ? AGENTD_ERR_NOMEM : 0;
	if (grace_ms > 0 && session->ready)
		machine_stop(session->machine, grace_ms);
	else
		machine_kill(session->machine);
	return 0;
}

void session_free(void *state)
{
	struct vm_session *session = state;

	ad_timer_stop(&session->timer);
	machine_free(session->machine);
	drop_volume(session);
	free(session);
}

/* ---- commands in it */

static bool same_root(const agentd_spec *a, const agentd_spec *b)
{
	const char *x = agentd_spec_rootfs(a), *y = agentd_spec_rootfs(b);

	return x && y ? strcmp(x, y) == 0 : !x && !y;
}

int session_enter(struct vm_session *session, const agentd_spec *spec, struct vm_task *task,
		  struct machine **ret, uint32_t *ret_id, agentd_error **reterr)
{
	int r = check(spec, reterr);

	if (r < 0)
		return r;
	if (session->stopping || !session->ready)
		return ad_fail(reterr, AGENTD_ERR_STATE, NULL, "the session is being stopped");
	if (!same_root(spec, session->spec) ||
	    strcmp(agentd_spec_workdir(spec), agentd_spec_workdir(session->spec)) != 0)
		return ad_fail(reterr, AGENTD_ERR_STATE, NULL,
			       "the session was started with another root file system than this "
			       "command's context has; stop it first, its files stay");
	if (agentd_spec_require_kvm(spec) && machine_facts(session->machine)->accel != ACCEL_KVM)
		return ad_fail(reterr, AGENTD_ERR_UNSUPPORTED, NULL,
			       "the policy requires KVM, and the session's machine runs without");
	session->command = task;
	*ret = session->machine;
	*ret_id = ++session->last_id;
	return 0;
}

void session_leave(struct vm_session *session, const struct vm_task *task)
{
	if (session->command == task)
		session->command = NULL;
}

void session_broken(struct vm_session *session)
{
	machine_kill(session->machine);
}
