/* SPDX-License-Identifier: MIT */
/* What the microvm backend makes of a monitor and an agent that fail, lie or attack: a
 * fake monitor does what a script says. After each: one `finished`, nothing left, and the
 * same runner runs the next command. */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "harness.h"

#define MIB (UINT64_C(1) << 20)

/* ---- a world whose machines are fake */

static struct t_world *world;
static char *image, *monitor, *monitor_name;

static void put_file(const char *dir, const char *name, const char *text)
{
	char *path = t_format("%s/%s", dir, name);

	t_write_file(path, text);
	free(path);
}

static const char manifest[] =
	"{\"format\": 3, \"protocol\": 2, \"files\": {\"vmlinux\": {\"size\": 6},"
	" \"initramfs.cpio\": {\"size\": 6}, \"root.erofs\": {\"size\": 6},"
	" \"volume.ext4\": {\"size\": 6}, \"volume-small.ext4\": {\"size\": 5}}}";

/* Its path tells of the world, its name tells it from every other. */
static void make_monitor(void)
{
	const char *program = getenv("AGENTD_TEST_MONITOR");
	char *dir = t_format("%s/%s", world->dir, world->tag);

	ck_assert_msg(program, "AGENTD_TEST_MONITOR is not set");
	ck_assert_int_eq(mkdir(dir, 0755), 0);
	monitor_name = t_format("vm%s", world->helper_name + 2);
	monitor = t_format("%s/%s", dir, monitor_name);
	ck_assert_int_eq(symlink(program, monitor), 0);
	free(dir);
}

static void world_begin(void)
{
	world = t_world_new_bare(&(struct t_world_opts){ .backend = "microvm" });
	image = t_format("%s/image", world->dir);
	ck_assert_int_eq(mkdir(image, 0755), 0);
	put_file(image, "image.json", manifest);
	put_file(image, "vmlinux", "kernel");
	put_file(image, "initramfs.cpio", "agents");
	put_file(image, "root.erofs", "boot:\n");
	put_file(image, "volume.ext4", "volume");
	put_file(image, "volume-small.ext4", "small");
	make_monitor();
	world->opts.microvm_image = image;
	world->opts.microvm_monitor = monitor;
	world->opts.microvm_guest = getenv("AGENTD_TEST_GUEST");
}

static void setup(void)
{
	world_begin();
	t_world_start(world);
}

/* Commands without a session go on from snapshots too. */
static void setup_snapshots(void)
{
	world_begin();
	world->opts.runner_flags = AGENTD_RUNNER_SNAPSHOTS;
	t_world_start(world);
}

static void teardown(void)
{
	t_world_free(world);
	free(image);
	free(monitor);
	free(monitor_name);
}

/* ---- runs that follow a script */

struct play {
	struct t_run run;
	struct agentd_exec_opts opts;
	char *script;
	uint64_t fed; /* bytes of stdin */
};

static void play_init(struct play *play, const char *script)
{
	static unsigned int serial;

	*play = (struct play){ .opts = { .size = sizeof(play->opts), .grace_ms = 50 } };
	t_run_init(&play->run, world);
	play->run.exec_opts = &play->opts;
	play->run.userdata = play;
	play->script = t_format("%s/script-%u", world->dir, serial++);
	t_write_file(play->script, script);
	play->run.ctx = t_world_context(world);
	ck_assert_int_eq(agentd_context_set_rootfs(play->run.ctx, play->script, NULL), 0);
}

static void play_start(struct play *play, uint64_t timeout_ms)
{
	ck_assert_int_eq(t_run_start(&play->run, "true", timeout_ms), 0);
}

static void play_free(struct play *play)
{
	agentd_context_unref(play->run.ctx);
	t_run_free(&play->run);
	free(play->script);
}

static void play(struct play *play, const char *script, uint64_t timeout_ms)
{
	play_init(play, script);
	play_start(play, timeout_ms);
	t_run_wait(&play->run);
}

/* Of a run that is over. */
static void expect_over(struct play *play)
{
	uint64_t deadline = t_now() + T_MS(t_slack(1000));
	pid_t pid;

	ck_assert_int_eq(play->run.finished, 1);
	play_free(play);
	t_world_expect_commands_dead(world, 1000);
	/* the carrier: it has no environment to be known by */
	while (t_count_processes(world->workdir, NULL, &pid, 1) > 0) {
		ck_assert_msg(t_now() < deadline, "a carrier is left: %d", (int)pid);
		t_sleep_ms(10);
	}
}

static void expect_works(void)
{
	struct play next;

	play(&next, "run: started out:works end exited:0 closed\n", 0);
	t_expect_status(&next.run, AGENTD_STATUS_OK);
	t_expect_cause(&next.run, AGENTD_CAUSE_EXITED);
	t_expect_out(&next.run, AGENTD_STDOUT, "works");
	expect_over(&next);
}

/* Not static, for the C library has an inline one of that name. */
extern bool interrupting;
extern unsigned int interruptions;

bool interrupting;
unsigned int interruptions;

/* Takes the place of libc's for the library too: some are interrupted. */
ssize_t read(int fd, void *buf, size_t count)
{
	if (interrupting && rand() % 2 == 0) {
		interruptions++;
		errno = EINTR;
		return -1;
	}
	return syscall(SYS_read, fd, buf, count);
}

static size_t denials(const struct play *play)
{
	size_t count = 0;

	for (size_t i = 0; i < play->run.event_count; i++)
		count += play->run.events[i].kind == T_DENIED;
	return count;
}

static const char *error_of(const struct play *play)
{
	return agentd_error_message(agentd_result_error(play->run.result));
}

/* ---- what is not as it must be before anything boots */

struct missing {
	const char *file, *text; /* NULL: there is none */
	int code;
	const char *named, *remedy;
};

static const struct missing missing[] = {
	{ "image.json", NULL, AGENTD_ERR_NOTFOUND, "image.json", "scripts/build-image" },
	{ "image.json", "", AGENTD_ERR_INVALID, "image.json", "" },
	{ "image.json", "{\"format\": 3", AGENTD_ERR_INVALID, "image.json", "" },
	{ "image.json", "[]", AGENTD_ERR_UNSUPPORTED, "/image", "scripts/build-image" },
	{ "image.json", "{\"format\": 1, \"protocol\": 2}", AGENTD_ERR_UNSUPPORTED, "format 1",
	  "scripts/build-image" },
	{ "image.json", "{\"format\": 3, \"protocol\": 9}", AGENTD_ERR_UNSUPPORTED, "protocol 9",
	  "scripts/build-image" },
	{ "image.json", "{\"format\": 3, \"protocol\": 2}", AGENTD_ERR_INVALID, "vmlinux",
	  "scripts/build-image" },
	{ "image.json", "{\"format\": 3, \"protocol\": 2, \"files\": {\"vmlinux\": 6}}",
	  AGENTD_ERR_INVALID, "vmlinux", "scripts/build-image" },
	{ "image.json",
	  "{\"format\": 3, \"protocol\": 2, \"files\": {\"vmlinux\": {\"size\": -6}}}",
	  AGENTD_ERR_INVALID, "vmlinux", "scripts/build-image" },
	{ "vmlinux", NULL, AGENTD_ERR_NOTFOUND, "/vmlinux", "scripts/build-image" },
	{ "vmlinux", "", AGENTD_ERR_INVALID, "/vmlinux", "scripts/build-image" },
	{ "vmlinux", "kernels", AGENTD_ERR_INVALID, "/vmlinux", "scripts/build-image" },
	{ "initramfs.cpio", NULL, AGENTD_ERR_NOTFOUND, "/initramfs.cpio", "scripts/build-image" },
	{ "root.erofs", "short", AGENTD_ERR_INVALID, "/root.erofs", "scripts/build-image" },
};

static void expect_refused(int code, const char *named, const char *remedy)
{
	struct t_run run;

	t_run(&run, world, "true", 0);
	ck_assert_int_eq(run.started, 0);
	ck_assert_int_ne(agentd_result_status(run.result), AGENTD_STATUS_OK);
	ck_assert_msg(agentd_error_code(agentd_result_error(run.result)) == code,
		      "code %d wanted: %s", code, t_run_story(&run));
	ck_assert_msg(strstr(agentd_error_message(agentd_result_error(run.result)), named) &&
			      strstr(agentd_error_message(agentd_result_error(run.result)), remedy),
		      "\"%s\" and \"%s\" wanted: %s", named, remedy, t_run_story(&run));
	t_run_free(&run);
	t_world_expect_commands_dead(world, 1000);
}

/* V01 */
START_TEST(image_missing)
{
	const struct missing *what = &missing[_i];
	char *path;

	world_begin();
	path = t_format("%s/%s", image, what->file);
	ck_assert_int_eq(unlink(path), 0);
	if (what->text)
		t_write_file(path, what->text);
	t_world_start(world);
	expect_refused(what->code, what->named, what->remedy);
	free(path);
	teardown();
}
END_TEST

/* It was there when the backend was looked at. */
START_TEST(image_vanishes)
{
	char *path = t_format("%s/vmlinux", image);

	expect_works();
	ck_assert_int_eq(truncate(path, 3), 0);
	expect_refused(AGENTD_ERR_INVALID, path, "scripts/build-image");
	ck_assert_int_eq(unlink(path), 0);
	ck_assert_int_eq(mkfifo(path, 0644), 0);
	expect_refused(AGENTD_ERR_INVALID, path, "");
	ck_assert_int_eq(unlink(path), 0);
	t_write_file(path, "kernel");
	expect_works();
	free(path);
}
END_TEST

/* V02: none, and one that is not to be executed. */
START_TEST(monitor_missing)
{
	bool there = _i == 1;

	world_begin();
	ck_assert_int_eq(unlink(monitor), 0);
	if (there)
		t_write_file(monitor, "not a program");
	t_world_start(world);
	expect_refused(there ? AGENTD_ERR_SYSTEM : AGENTD_ERR_NOTFOUND, monitor,
		       there ? "Permission denied" : "qemu-system-x86");
	teardown();
}
END_TEST

/* Executable by its mode, but nothing that can run; and gone since it was looked at. */
START_TEST(monitor_cannot_start)
{
	expect_works();
	ck_assert_int_eq(unlink(monitor), 0);
	expect_refused(AGENTD_ERR_SYSTEM, monitor_name, "No such file");
	t_write_file(monitor, "not a program");
	ck_assert_int_eq(chmod(monitor, 0755), 0);
	expect_refused(AGENTD_ERR_SYSTEM, monitor_name, "");
	ck_assert_int_eq(unlink(monitor), 0);
	ck_assert_int_eq(symlink(getenv("AGENTD_TEST_MONITOR"), monitor), 0);
	expect_works();
}
END_TEST

/* F08 */
START_TEST(reads_are_interrupted)
{
	struct play run;

	for (int i = 0; i < 20; i++) {
		interrupting = true;
		play(&run, "run: started out:works end exited:0 closed\n", 0);
		interrupting = false;
		t_expect_status(&run.run, AGENTD_STATUS_OK);
		t_expect_out(&run.run, AGENTD_STDOUT, "works");
		expect_over(&run);
	}
	ck_assert_uint_gt(interruptions, 100);
}
END_TEST

START_TEST(kvm_required)
{
	static const char policy[] = "{\"min_isolation\": \"vm\", \"require_kvm\": true}";
	agentd_policy *parsed = NULL;
	struct t_run run;

	if (access("/dev/kvm", R_OK | W_OK) == 0) {
		t_skip("here is a /dev/kvm, which a fake monitor has no use for");
		return;
	}
	ck_assert_int_eq(agentd_policy_from_json(policy, strlen(policy), &parsed, NULL), 0);
	ck_assert_int_eq(agentd_context_set_policy(world->ctx, parsed, NULL), 0);
	agentd_policy_unref(parsed);
	t_run(&run, world, "true", 0);
	t_expect_status(&run, AGENTD_STATUS_DENIED);
	t_expect_cause(&run, AGENTD_CAUSE_ISOLATION);
	ck_assert_msg(strstr(agentd_error_message(agentd_result_error(run.result)), "/dev/kvm"),
		      "%s", t_run_story(&run));
	t_run_free(&run);
	expect_works();
}
END_TEST

/* ---- agents that break down or break the rules */

struct fault {
	const char *script;
	bool started; /* the command is known to have begun */
	int cause, code;
	const char *text;
};

#define SPAWN false, AGENTD_CAUSE_SPAWN
#define LOST true, AGENTD_CAUSE_BACKEND_LOST
#define BROKEN AGENTD_ERR_PROTOCOL, "broke the protocol"

static const struct fault faults[] = {
	/* V03: the monitor ends by itself */
	{ "boot: print:no-such-device die:3\n", SPAWN, AGENTD_ERR_BACKEND,
	  "status 3: no-such-device" },
	{ "boot: crash\n", SPAWN, AGENTD_ERR_BACKEND, "signal 6" },
	{ "setup: die:0\n", SPAWN, AGENTD_ERR_BACKEND, "status 0" },
	{ "put: die:0\n", SPAWN, AGENTD_ERR_BACKEND, "status 0" },
	{ "run: die:0\n", SPAWN, AGENTD_ERR_BACKEND, "status 0" },
	{ "run: started die:0\n", LOST, AGENTD_ERR_BACKEND, "status 0" },
	{ "run: started flood:1000000 die:0\n", LOST, AGENTD_ERR_BACKEND, "status 0" },
	/* the channel closes, the monitor lives on */
	{ "boot: close\n", SPAWN, AGENTD_ERR_BACKEND, "closed its channel" },
	{ "boot: hello\nsetup: close\n", SPAWN, AGENTD_ERR_BACKEND, "closed its channel" },
	{ "run: started close\n", LOST, AGENTD_ERR_BACKEND, "closed its channel" },
	/* the agent says that it cannot */
	{ "setup: unready:erofs\n", SPAWN, AGENTD_ERR_BACKEND, "erofs" },
	{ "put: undone:28\n", SPAWN, AGENTD_ERR_BACKEND, "microvm_memory_bytes" },
	{ "put: undone:27\n", SPAWN, AGENTD_ERR_LIMIT, "the guest's disk" },
	/* V08 */
	{ "boot: noise:1048576\n", SPAWN, BROKEN },
	{ "run: started noise:1048576\n", LOST, BROKEN },
	/* V09: length, type, stream, what is zero, task */
	{ "boot: raw:ffffffff4000000000000000\n", SPAWN, BROKEN },
	{ "boot: raw:000000804000000000000000\n", SPAWN, BROKEN },
	{ "boot: raw:000000004000000000000000\n", SPAWN, BROKEN },
	{ "run: started raw:018000002001000002000000\n", LOST, BROKEN },
	{ "run: started raw:000000002001000002000000\n", LOST, BROKEN },
	{ "run: started raw:01000000ee00000000000000\n", LOST, BROKEN },
	{ "run: started raw:01000000206300000200000000\n", LOST, BROKEN },
	{ "run: started raw:01000000200101000200000000\n", LOST, BROKEN },
	{ "run: started raw:01000000200100000000000000\n", LOST, BROKEN },
	{ "run: started raw:01000000200100000900000000\n", LOST, BROKEN },
	/* what only the host says: RUN */
	{ "run: started raw:000000000400000002000000\n", LOST, BROKEN },
	/* V11: order */
	{ "boot: ready\n", SPAWN, BROKEN },
	{ "boot: hello hello\n", SPAWN, BROKEN },
	{ "boot: hello-of:7\n", SPAWN, AGENTD_ERR_PROTOCOL, "scripts/build-image" },
	{ "setup: ready ready\n", SPAWN, BROKEN },
	{ "put: started\n", SPAWN, BROKEN },
	{ "run: exited:0\n", SPAWN, BROKEN },
	{ "run: id:1 done\n", SPAWN, BROKEN },
	{ "run: id:7 started\n", SPAWN, BROKEN },
	{ "run: started started\n", LOST, BROKEN },
	{ "run: started closed\n", LOST, BROKEN },
	{ "run: started failed:late\n", LOST, BROKEN },
	{ "run: started end end\n", LOST, BROKEN },
	{ "run: started end overdraw:1\n", LOST, BROKEN },
	{ "run: started open:1\n", LOST, AGENTD_ERR_PROTOCOL, "the task has no network" },
	/* V12: values */
	{ "run: started-as:0\n", SPAWN, BROKEN },
	{ "run: started-as:-1\n", SPAWN, BROKEN },
	{ "run: started exited:0x7f\n", LOST, BROKEN },
	{ "run: started exited:0x10000\n", LOST, BROKEN },
	{ "run: started exited:-1\n", LOST, BROKEN },
	{ "run: started limit:9\n", LOST, BROKEN },
	/* V13: more words than anybody would have */
	{ "run: started log:100000\n", LOST, BROKEN },
};

static void expect_fault(const struct fault *what)
{
	struct play run;

	play(&run, what->script, 0);
	t_expect_status(&run.run, AGENTD_STATUS_ERROR);
	t_expect_cause(&run.run, what->cause);
	t_expect_exit(&run.run, -1);
	ck_assert_msg((run.run.started == 1) == what->started, "%s", t_run_story(&run.run));
	ck_assert_msg(agentd_error_code(agentd_result_error(run.run.result)) == what->code,
		      "code %d wanted: %s", what->code, t_run_story(&run.run));
	ck_assert_msg(strstr(error_of(&run), what->text), "\"%s\" wanted: %s", what->text,
		      t_run_story(&run.run));
	/* Well before any deadline of the backend's. */
	ck_assert_uint_lt(t_run_wall_ms(&run.run), t_slack(10000));
	expect_over(&run);
}

/* One after the other: what works for the next is not broken by the last. */
START_TEST(fault_in_turn)
{
	for (size_t i = 0; i < T_COUNT(faults); i++)
		expect_fault(&faults[i]);
	expect_works();
}
END_TEST

/* The exit status is known: what comes later cannot change it, and is told. */
static const char *const late_faults[] = {
	"run: started end exited:768 die:0\n",
	"run: started end exited:768 exited:0\n",
	"run: started end exited:768 noise:1000\n",
	"run: started end exited:768 closed\nget: die:0\n",
	"run: started end exited:768 closed\nget: close\n",
	"run: started end exited:768 closed\nget: done\n",
	"run: started end exited:768 closed\nget: undone:5\n",
	"run: started end exited:768 closed closed\n",
	"run: started end exited:768 closed open:1\n",
	"run: started end exited:768 closed\nget: entry:0:644:half:x files files-end done\n",
	"run: started end exited:768 closed\nget: files-flood:4096 files-end done\n",
};

static void expect_late_fault(const char *script)
{
	struct play run;
	int32_t state = 0;
	const char *reason;

	play(&run, script, 0);
	t_expect_status(&run.run, AGENTD_STATUS_ERROR);
	t_expect_cause(&run.run, AGENTD_CAUSE_EXITED);
	t_expect_exit(&run.run, 3);
	reason = t_run_layer(&run.run, "workdir", &state);
	ck_assert_msg(reason && strstr(reason, "did not all come back"), "%s",
		      t_run_story(&run.run));
	ck_assert_int_eq(state, AGENTD_LAYER_ABSENT);
	ck_assert_uint_eq(denials(&run), 1);
	expect_over(&run);
}

START_TEST(fault_after_exit)
{
	for (size_t i = 0; i < T_COUNT(late_faults); i++)
		expect_late_fault(late_faults[i]);
	expect_works();
}
END_TEST

/* ---- agents that are odd, but within the rules */

START_TEST(bytewise)
{
	struct play run;

	play(&run,
	     "boot: bytewise hello\nrun: started out:whole err:too log:3 end exited:512 closed\n",
	     0);
	t_expect_exit(&run.run, 2);
	t_expect_out(&run.run, AGENTD_STDOUT, "whole");
	t_expect_out(&run.run, AGENTD_STDERR, "too");
	ck_assert_uint_eq(t_logs_count(&run.run.logs, "a word of the agent"), 3);
	expect_over(&run);
}
END_TEST

START_TEST(cannot_start)
{
	struct play run;

	play(&run, "run: failed:true\n", 0);
	t_expect_status(&run.run, AGENTD_STATUS_ERROR);
	t_expect_cause(&run.run, AGENTD_CAUSE_SPAWN);
	ck_assert_int_eq(run.run.started, 0);
	ck_assert_msg(strstr(error_of(&run), "Failed to spawn shell command"), "%s",
		      t_run_story(&run.run));
	expect_over(&run);
	expect_works();
}
END_TEST

static pid_t pid_called(const char *name)
{
	uint64_t deadline = t_now() + T_MS(t_slack(10000));
	pid_t pid = 0;

	while (t_count_processes(NULL, name, &pid, 1) == 0) {
		ck_assert_msg(t_now() < deadline, "there is no %s", name);
		t_world_loop(world, 10, NULL);
	}
	return pid;
}

/* V03, from outside */
START_TEST(monitor_killed_booting)
{
	/* Where there is a /dev/kvm the first one that dies tells that KVM does not work, and
	 * the next one does without. */
	int monitors = access("/dev/kvm", R_OK | W_OK) == 0 ? 2 : 1;
	struct play run;
	pid_t pid = 0;

	play_init(&run, "boot:\n");
	play_start(&run, 0);
	for (int i = 0; i < monitors; i++) {
		pid_t last = pid;

		while ((pid = pid_called(monitor_name)) == last)
			t_world_loop(world, 10, NULL);
		ck_assert_int_eq(kill(pid, SIGKILL), 0);
	}
	t_run_wait(&run.run);
	t_expect_status(&run.run, AGENTD_STATUS_ERROR);
	t_expect_cause(&run.run, AGENTD_CAUSE_SPAWN);
	ck_assert_msg(strstr(error_of(&run), "killed by signal 9"), "%s", t_run_story(&run.run));
	expect_over(&run);
	expect_works();
}
END_TEST

static void kill_monitor(struct t_run *run, enum t_event_kind kind)
{
	pid_t pid;

	if (kind == (run->discard ? T_OUTPUT : T_STARTED) &&
	    t_count_processes(NULL, monitor_name, &pid, 1) == 1)
		(void)kill(pid, SIGKILL);
}

START_TEST(monitor_killed_running)
{
	struct play run;

	/* once while nothing happens, once while its output streams */
	play_init(&run, _i ? "run: started flood:1000000000000\n" : "run: started\n");
	run.run.discard = _i != 0;
	run.run.on_event = kill_monitor;
	play_start(&run, 0);
	t_run_wait(&run.run);
	t_expect_status(&run.run, AGENTD_STATUS_ERROR);
	t_expect_cause(&run.run, AGENTD_CAUSE_BACKEND_LOST);
	t_expect_exit(&run.run, -1);
	expect_over(&run);
	expect_works();
}
END_TEST

/* What carries the working directory is lost to the command, not to the library. */
START_TEST(carrier_killed)
{
	struct play run;
	pid_t pids[4];
	size_t count;

	play_init(&run, "run: started\n");
	play_start(&run, 0);
	ck_assert(t_world_loop(world, t_slack(10000), &run.run.started));
	/* the supervisor of its sandbox has another name */
	count = t_count_processes(world->workdir, NULL, pids, T_COUNT(pids));
	ck_assert_uint_ge(count, 1);
	for (size_t i = 0; i < count && i < T_COUNT(pids); i++)
		(void)kill(pids[i], SIGKILL);
	t_run_wait(&run.run);
	t_expect_status(&run.run, AGENTD_STATUS_ERROR);
	t_expect_cause(&run.run, AGENTD_CAUSE_BACKEND_LOST);
	ck_assert_msg(strstr(error_of(&run), "carries the working directory"), "%s",
		      t_run_story(&run.run));
	expect_over(&run);
	expect_works();
}
END_TEST

/* ---- stopping */

/* Each is told to stop and does not, or not by the rules. They take the same seconds. */
static const struct {
	const char *script;
	int32_t status;
} stubborn[] = {
	{ "run: started stop\n", AGENTD_STATUS_TIMEOUT }, /* V04 */
	{ "run: started\nkill:\n", AGENTD_STATUS_TIMEOUT },
	{ "run: started ping\nkill:\n", AGENTD_STATUS_TIMEOUT }, /* V14 */
	{ "run: started flood:1000000000000\nkill: flood:1000000000000\n", AGENTD_STATUS_TIMEOUT },
	{ "run: log:1\nkill:\n", AGENTD_STATUS_KILLED },
	{ "run: log:1\nkill: started\n", AGENTD_STATUS_KILLED },
	/* A kill that is told by nobody is not one. */
	{ "run: started end exited:0\nkill:\n", AGENTD_STATUS_OK },
};

/* The agent has been asked to run the command, whatever it makes of that. */
static void wait_for_run(struct t_run *run)
{
	uint64_t deadline = t_now() + T_MS(t_slack(20000));

	while (!run->started && t_logs_count(&run->logs, "a word of the agent") == 0) {
		ck_assert_msg(t_now() < deadline, "%s", t_run_story(run));
		t_world_loop(world, 10, NULL);
	}
}

START_TEST(unanswered_kill)
{
	struct play runs[T_COUNT(stubborn)];
	uint64_t at;

	for (size_t i = 0; i < T_COUNT(runs); i++) {
		play_init(&runs[i], stubborn[i].script);
		runs[i].run.discard = true;
		play_start(&runs[i], t_slack(1500));
	}
	for (size_t i = 0; i < T_COUNT(runs); i++)
		wait_for_run(&runs[i].run);
	at = t_now();
	for (size_t i = 0; i < T_COUNT(runs); i++) {
		if (stubborn[i].status == AGENTD_STATUS_KILLED)
			ck_assert_int_eq(agentd_exec_kill(runs[i].run.exec), 0);
	}
	for (size_t i = 0; i < T_COUNT(runs); i++) {
		t_run_wait(&runs[i].run);
		t_expect_status(&runs[i].run, stubborn[i].status);
		ck_assert_msg(runs[i].run.end_ns - at < T_MS(t_slack(7000)), "%s",
			      t_run_story(&runs[i].run));
	}
	for (size_t i = 0; i < T_COUNT(runs); i++)
		expect_over(&runs[i]);
	expect_works();
}
END_TEST

/* V14: nothing that the agent sends is progress. */
START_TEST(timeout)
{
	struct play run;

	play(&run, "run: started ping log:50\n", 500);
	t_expect_status(&run.run, AGENTD_STATUS_TIMEOUT);
	t_expect_cause(&run.run, AGENTD_CAUSE_TIMEOUT);
	ck_assert_int_eq(run.run.signo, SIGKILL);
	expect_over(&run);
	expect_works();
}
END_TEST

/* At whatever point before the command runs. */
static const char *const beginnings[] = { "boot:\n", "boot: prattle\n", "setup:\n",     "put:\n",
					  "run:\n",  "boot: stop\n",    "boot: close\n" };

START_TEST(cancel_before_start)
{
	struct play run;

	play_init(&run, beginnings[_i]);
	play_start(&run, 0);
	pid_called(monitor_name);
	t_world_loop(world, 200, NULL);
	ck_assert_int_eq(agentd_exec_kill(run.run.exec), 0);
	t_run_wait(&run.run);
	t_expect_status(&run.run, AGENTD_STATUS_KILLED);
	t_expect_cause(&run.run, AGENTD_CAUSE_CANCELED);
	ck_assert_int_eq(run.run.started, 0);
	expect_over(&run);
	expect_works();
}
END_TEST

START_TEST(cancel_at_once)
{
	struct play run;

	play_init(&run, "");
	play_start(&run, 0);
	ck_assert_int_eq(agentd_exec_cancel(run.run.exec), 0);
	t_run_wait(&run.run);
	t_expect_status(&run.run, AGENTD_STATUS_KILLED);
	ck_assert_int_eq(run.run.started, 0);
	expect_over(&run);
	expect_works();
}
END_TEST

/* The runner goes while machines are in every state. */
START_TEST(runner_gone)
{
	struct play runs[T_COUNT(beginnings)];

	for (size_t i = 0; i < T_COUNT(runs); i++) {
		play_init(&runs[i], beginnings[i]);
		play_start(&runs[i], 0);
	}
	t_world_loop(world, 500, NULL);
	t_world_shutdown(world);
	for (size_t i = 0; i < T_COUNT(runs); i++) {
		t_expect_status(&runs[i].run, AGENTD_STATUS_KILLED);
		expect_over(&runs[i]);
	}
}
END_TEST

/* ---- streams */

static void feed(struct t_run *run, enum t_event_kind kind)
{
	static uint8_t piece[10000];
	const uint64_t all = MIB;
	uint64_t *fed = &((struct play *)run->userdata)->fed;
	size_t taken = 0;

	if (kind != T_STARTED && kind != T_DRAINED)
		return;
	while (*fed < all) {
		size_t len = all - *fed < sizeof(piece) ? (size_t)(all - *fed) : sizeof(piece);

		for (size_t i = 0; i < len; i++)
			piece[i] = (uint8_t)((*fed + i) % 251);
		if (agentd_exec_write(run->exec, piece, len, &taken) != 0)
			return;
		*fed += taken;
	}
	ck_assert_int_eq(agentd_exec_close_stdin(run->exec), 0);
}

START_TEST(stdin_echoed)
{
	struct play run;

	play_init(&run, "run: started cat end exited:0 closed\n");
	run.opts.flags = AGENTD_EXEC_STDIN_OPEN;
	run.run.on_event = feed;
	play_start(&run, 0);
	t_run_wait(&run.run);
	t_expect_status(&run.run, AGENTD_STATUS_OK);
	ck_assert_uint_eq(run.run.out_len[AGENTD_STDOUT], MIB);
	for (size_t i = 0; i < MIB; i++)
		T_CHECK(run.run.out[AGENTD_STDOUT][i] == i % 251, "byte %zu is wrong", i);
	expect_over(&run);
}
END_TEST

/* An agent that does not take what is written gets no more than the window. */
START_TEST(stdin_not_taken)
{
	struct play run;

	play_init(&run, "run: started\n");
	run.opts.flags = AGENTD_EXEC_STDIN_OPEN;
	run.run.on_event = feed;
	play_start(&run, 1000);
	t_run_wait(&run.run);
	t_expect_status(&run.run, AGENTD_STATUS_TIMEOUT);
	ck_assert_uint_gt(run.fed, 0);
	ck_assert_uint_le(run.fed, 256 * 1024);
	expect_over(&run);
}
END_TEST

static int32_t pause_output(struct t_run *run, agentd_stream stream, const uint8_t *data,
			    size_t len)
{
	(void)run;
	(void)stream;
	(void)data;
	(void)len;
	return AGENTD_SINK_PAUSE;
}

/* Nothing comes while the sink says "not now" but what was under way; then all does. */
START_TEST(paused)
{
	const uint64_t all = 4 * MIB;
	struct play run;
	uint64_t before;

	play_init(&run, "run: started flood:4194304 end exited:0 closed\n");
	run.run.discard = true;
	run.run.on_output = pause_output;
	play_start(&run, 0);
	t_world_loop(world, 1000, &run.run.finished);
	before = run.run.total[AGENTD_STDOUT];
	ck_assert_uint_gt(before, 0);
	ck_assert_uint_le(before, 256 * 1024);
	t_world_loop(world, 200, &run.run.finished);
	ck_assert_uint_eq(run.run.total[AGENTD_STDOUT], before);
	run.run.on_output = NULL;
	ck_assert_int_eq(agentd_exec_resume(run.run.exec, AGENTD_STDOUT), 0);
	t_run_wait(&run.run);
	t_expect_status(&run.run, AGENTD_STATUS_OK);
	ck_assert_uint_eq(run.run.total[AGENTD_STDOUT], all);
	expect_over(&run);
}
END_TEST

/* A sink that says "not now" holds up nobody who is stopped, and costs neither the machine nor
 * what is to come back; what it has not taken is counted as dropped. */
static const struct {
	const char *script;
	uint64_t timeout_ms; /* 0: it is canceled */
	agentd_status status;
	uint64_t bytes;
} unread[] = {
	{ "run: started flood:100000 end exited:0 closed\n", 0, AGENTD_STATUS_OK, 100000 },
	{ "run: started flood:262144 end exited:0 closed\n", 1500, AGENTD_STATUS_OK, 262144 },
	/* More than there is credit for comes when what was held is dealt with. */
	{ "run: started flood:262144\nkill: flood:100000 end exited:9 closed\n", 0,
	  AGENTD_STATUS_KILLED, 362144 },
	{ "run: started flood:262144 exited:0\nkill: flood:100000 end closed\n", 1500,
	  AGENTD_STATUS_OK, 362144 },
};

static void stop_unread(struct play *run, int i)
{
	uint64_t begun;

	run->run.discard = true;
	run->run.on_output = pause_output;
	play_start(run, unread[i].timeout_ms);
	t_world_loop(world, 1000, &run->run.finished);
	ck_assert_uint_gt(run->run.total[AGENTD_STDOUT], 0);
	begun = t_now();
	if (!unread[i].timeout_ms)
		ck_assert_int_eq(agentd_exec_cancel(run->run.exec), 0);
	t_run_wait(&run->run);
	ck_assert_uint_lt(t_now() - begun, T_MS(t_slack(2500)));
	t_expect_status(&run->run, unread[i].status);
	ck_assert_msg(denials(run) == 0, "%s", t_run_story(&run->run));
	ck_assert_uint_eq(t_run_metric(&run->run, AGENTD_METRIC_STDOUT_BYTES), unread[i].bytes);
	ck_assert_uint_eq(t_run_metric(&run->run, AGENTD_METRIC_DROPPED_BYTES),
			  unread[i].bytes - run->run.total[AGENTD_STDOUT]);
}

START_TEST(stopped_while_paused)
{
	struct play run;

	play_init(&run, unread[_i].script);
	stop_unread(&run, _i);
	expect_over(&run);
}
END_TEST

/* Of one that has exited by itself all comes, also what comes only with the kill of what it has
 * left, and after the time that an answer to that may take. */
START_TEST(paused_after_exit)
{
	struct play run;

	play_init(&run, "run: started exited:0\nkill: flood:300000 end closed\n");
	run.run.discard = true;
	run.run.on_output = pause_output;
	play_start(&run, 0);
	t_world_loop(world, 5000, &run.run.finished);
	ck_assert_uint_gt(run.run.total[AGENTD_STDOUT], 0);
	run.run.on_output = NULL;
	ck_assert_int_eq(agentd_exec_resume(run.run.exec, AGENTD_STDOUT), 0);
	t_run_wait(&run.run);
	t_expect_status(&run.run, AGENTD_STATUS_OK);
	ck_assert_msg(denials(&run) == 0, "%s", t_run_story(&run.run));
	ck_assert_uint_eq(run.run.total[AGENTD_STDOUT], 300000);
	expect_over(&run);
}
END_TEST

/* More than there is credit for. */
START_TEST(overdrawn)
{
	struct play run;

	play_init(&run, "run: started overdraw:300000\n");
	run.run.on_output = pause_output;
	play_start(&run, 0);
	t_run_wait(&run.run);
	t_expect_cause(&run.run, AGENTD_CAUSE_BACKEND_LOST);
	ck_assert_msg(strstr(error_of(&run), "credit"), "%s", t_run_story(&run.run));
	expect_over(&run);
	expect_works();
}
END_TEST

/* ---- a network of allowed hosts */

/* What goes to a connection without having been taken. */
enum { NET_WINDOW = 64 * 1024 };

/* With sanitizers what carries the directory is linked dynamically. */
#define PROGRAMS "[\"/usr\", \"/lib\", \"/lib64\"]"
static const char net_policy[] = "{\"min_isolation\": \"none\", "
				 "\"paths\": {\"read\": " PROGRAMS ", \"exec\": " PROGRAMS "}, "
				 "\"net\": {\"mode\": \"allow\", \"allow\": [\"127.0.0.2\"]}}";

static void net_setup(void)
{
	world_begin();
	world->opts.runner_policy = net_policy;
	t_world_start(world);
}

static void net_init(struct play *play, const char *script)
{
	agentd_policy *parsed = NULL;

	play_init(play, script);
	ck_assert_int_eq(agentd_policy_from_json(net_policy, strlen(net_policy), &parsed, NULL), 0);
	ck_assert_int_eq(agentd_context_set_policy(play->run.ctx, parsed, NULL), 0);
	agentd_policy_unref(parsed);
}

static void net_works(void)
{
	struct play next;

	net_init(&next, "run: started out:works end exited:0 closed\n");
	play_start(&next, 0);
	t_run_wait(&next.run);
	t_expect_status(&next.run, AGENTD_STATUS_OK);
	t_expect_out(&next.run, AGENTD_STDOUT, "works");
	expect_over(&next);
}

static const struct {
	const char *script, *text;
	bool started;
} net_faults[] = {
	{ "run: open:1\n", "before STARTED", false },
	{ "run: started open:129\n", "no such connection", true },
	{ "run: started open:0\n", "belongs to a connection", true },
	{ "run: started open:1 open:1\n", "its number is in use", true },
	{ "run: started open-all open:7\n", "its number is in use", true },
	{ "run: started net-overdraw:1\n", "there is no such connection", true },
	{ "run: started open:1 net-overdraw:1\n", "credit", true },
	{ "run: started open:1 net-end:1 net-overdraw:1\n", "after END", true },
	/* After HANGUP, or after the host's own, if that was faster. */
	{ "run: started open:1 hang-up:1 net-end:1\n", "the guest sent END", true },
	{ "run: started open:1 hang-up:1 hung-up:1 net-end:1\n", "no such connection", true },
};

/* The host may have given new credit before the last piece came, of which the agent does not
 * know: then it is played again. */
static void play_net_fault(struct play *run, size_t i)
{
	for (int attempt = 0; attempt < 10; attempt++) {
		net_init(run, net_faults[i].script);
		play_start(run, 0);
		t_run_wait(&run->run);
		if (!strstr(error_of(run), "for more than was sent"))
			return;
		expect_over(run);
	}
	ck_abort_msg("never too fast for the host");
}

static void expect_net_fault(size_t i)
{
	struct play run;

	play_net_fault(&run, i);
	ck_assert_msg((run.run.started == 1) == net_faults[i].started, "%s", t_run_story(&run.run));
	t_expect_status(&run.run, AGENTD_STATUS_ERROR);
	ck_assert_msg(strstr(error_of(&run), net_faults[i].text), "\"%s\" wanted: %s",
		      net_faults[i].text, t_run_story(&run.run));
	expect_over(&run);
}

START_TEST(net_fault_in_turn)
{
	for (size_t i = 0; i < T_COUNT(net_faults); i++)
		expect_net_fault(i);
	net_works();
}
END_TEST

/* To all of 127.0.0.2 that connect: as much as they take. */
static pid_t serve(int *ret_port)
{
	static const char zeros[65536];
	int listener = t_listen(ret_port), fd;
	pid_t pid = fork();

	ck_assert_int_ge(pid, 0);
	if (pid == 0) {
		while ((fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC)) >= 0) {
			while (send(fd, zeros, sizeof(zeros), MSG_NOSIGNAL) > 0)
				;
			close(fd);
		}
		_exit(1);
	}
	close(listener);
	return pid;
}

static void serve_end(pid_t server)
{
	ck_assert_int_eq(kill(server, SIGKILL), 0);
	ck_assert_int_eq(waitpid(server, NULL, 0), server);
}

/* One guest hears what it asked for, the other does not take it: that is its own loss, and
 * not its output's. */
START_TEST(net_deaf)
{
	enum { HEARD = 10 * 1000 * 1000, SAID = 8 * 1024 * 1024 };
	int port;
	pid_t server = serve(&port);
	char *script = t_format("run: started %s open:1 connect:1:127.0.0.2:%d hear:1:%d flood:%d "
				"end exited:0 closed\n",
				_i ? "deaf" : "", port, _i ? NET_WINDOW : HEARD, SAID);
	uint64_t rss, received;
	struct play run;

	net_works();
	rss = t_rss_bytes();
	net_init(&run, script);
	run.run.discard = true;
	play_start(&run, 0);
	t_run_wait(&run.run);
	t_expect_status(&run.run, AGENTD_STATUS_OK);
	ck_assert_uint_eq(t_run_metric(&run.run, AGENTD_METRIC_STDOUT_BYTES), SAID);
	ck_assert_uint_eq(t_run_metric(&run.run, AGENTD_METRIC_NET_CONNECTIONS), 1);
	received = t_run_metric(&run.run, AGENTD_METRIC_NET_RECEIVED_BYTES);
	if (_i)
		ck_assert_uint_lt(received, MIB);
	else
		ck_assert_uint_ge(received, HEARD);
	ck_assert_uint_eq(denials(&run), 0);
	if (!t_is_slow())
		ck_assert_uint_lt(t_rss_bytes(), rss + 4 * MIB);
	expect_over(&run);
	serve_end(server);
	free(script);
}
END_TEST

/* What the proxy refuses is told to the guest, and to the sink. */
START_TEST(net_denied)
{
	struct play run;

	net_init(&run,
		 "run: started open:1 connect:1:127.0.0.3:80 hear:1:100 open:2 net-flood:2:40000 "
		 "hear:2:10 hang-up:2 hung-up:2 end exited:0 closed\n");
	play_start(&run, 0);
	t_run_wait(&run.run);
	t_expect_status(&run.run, AGENTD_STATUS_OK);
	ck_assert_uint_eq(denials(&run), 1);
	expect_over(&run);
}
END_TEST

static size_t count_fds(void)
{
	size_t count = 0;

	for (int fd = 0; fd < 4096; fd++)
		count += fcntl(fd, F_GETFD) >= 0;
	return count;
}

/* As many connections as there may be, each with all that it may send and nothing that makes
 * sense, again and again; the host keeps nothing of it. */
START_TEST(net_crowd)
{
	uint64_t rss;
	size_t fds;

	net_works();
	rss = t_rss_bytes();
	fds = count_fds();
	for (int i = 0; i < 3; i++) {
		struct play run;

		net_init(&run, "run: started open-all flood-all out:said end exited:0 closed\n");
		play_start(&run, 0);
		t_run_wait(&run.run);
		t_expect_status(&run.run, AGENTD_STATUS_OK);
		t_expect_out(&run.run, AGENTD_STDOUT, "said");
		expect_over(&run);
	}
	ck_assert_uint_eq(count_fds(), fds);
	/* 128 windows of 64 KiB, and what malloc keeps. */
	if (!t_is_slow())
		ck_assert_uint_lt(t_rss_bytes(), rss + 16 * MIB);
	net_works();
}
END_TEST

/* A cancel does not wait for who does not read. */
START_TEST(net_canceled)
{
	int port;
	pid_t server = serve(&port);
	char *script = t_format("run: started deaf open:1 connect:1:127.0.0.2:%d hear:1:%d "
				"out:full hear:2:1\n",
				port, NET_WINDOW);
	struct play run;

	net_init(&run, script);
	play_start(&run, 0);
	while (run.run.total[AGENTD_STDOUT] == 0)
		ck_assert(!t_world_loop(world, 20, &run.run.finished));
	ck_assert_int_eq(agentd_exec_cancel(run.run.exec), 0);
	t_run_wait(&run.run);
	t_expect_cause(&run.run, AGENTD_CAUSE_CANCELED);
	expect_over(&run);
	serve_end(server);
	free(script);
}
END_TEST

/* V13 */
START_TEST(flood)
{
	const uint64_t all = t_is_small() ? 64 * MIB : 256 * MIB;
	char *script = t_format("run: started flood:%llu end exited:0 closed\n",
				(unsigned long long)all);
	struct play run;
	uint64_t rss;

	expect_works();
	rss = t_rss_bytes();
	play_init(&run, script);
	run.run.discard = true;
	play_start(&run, 0);
	t_run_wait(&run.run);
	t_expect_status(&run.run, AGENTD_STATUS_OK);
	/* More than the sink is given by default is counted, and dropped. */
	ck_assert_uint_eq(t_run_metric(&run.run, AGENTD_METRIC_STDOUT_BYTES), all);
	ck_assert_uint_le(run.run.total[AGENTD_STDOUT], all);
	if (!t_is_slow())
		ck_assert_uint_lt(t_rss_bytes(), rss + 4 * MIB);
	expect_over(&run);
	free(script);
}
END_TEST

/* The same by way of the files: they go to the carrier as fast as it takes them. */
START_TEST(files_flood)
{
	enum { SIZE = 48 * 1024 * 1024 };
	struct play run;
	struct stat st;
	uint64_t rss, most = 0;
	char *path = t_format("%s/large", world->workdir);
	char *script = t_format("get: large:%d files files-flood:%d whole files files-end done\n",
				SIZE, SIZE);

	expect_works();
	rss = t_rss_bytes();
	play_init(&run, script);
	play_start(&run, 0);
	while (!t_world_loop(world, 20, &run.run.finished)) {
		uint64_t now = t_rss_bytes();

		most = now > most ? now : most;
	}
	t_expect_status(&run.run, AGENTD_STATUS_OK);
	ck_assert_uint_eq(denials(&run), 0);
	ck_assert_int_eq(stat(path, &st), 0);
	ck_assert_int_eq(st.st_size, SIZE);
	if (!t_is_slow())
		ck_assert_msg(most < rss + 8 * MIB, "%llu KiB more were held",
			      (unsigned long long)(most - rss) / 1024);
	expect_over(&run);
	free(path);
	free(script);
}
END_TEST

/* ---- V15: files that nobody's working directory has */

static bool is_denied(const struct play *play, const char *rule, const char *target)
{
	char *line = t_format("\n%s %s\n", rule, target);
	char *lines = t_format("\n%s", play->run.denials ? play->run.denials : "");
	bool found = strstr(lines, line) != NULL;

	free(line);
	free(lines);
	return found;
}

/* %s: the world's directory, which is above the working directory. */
static const struct {
	const char *entries, *denied;
} hostile[] = {
	{ "entry:0:644:../prey:evil", "../prey" },
	{ "entry:0:644:sub/../../prey:evil", "sub/../../prey" },
	{ "entry:0:644:%s/prey:evil", "%s/prey" },
	{ "entry:0:644:./../prey:evil", "./../prey" },
	{ "entry:2:777:door:%s entry:0:644:door/prey:evil", "door/prey" },
	{ "entry:2:777:door:.. entry:5:755:door/made:", "door/made" },
	{ "entry:2:777:door:../prey entry:1:644:second:door", "second" },
	{ "entry:1:644:second:../prey", "second" },
	{ "entry:1:644:second:%s/prey", "second" },
	{ "entry:3:644:device:", "" }, /* 0:0, which deletes: of what is not there */
	{ "entry:4:644:device:", "device" },
	{ "entry:6:644:pipe:", "pipe" },
	{ "entry:0:4755:set:evil", "set" },
	{ "entry:0:2755:set:evil", "set" },
};

/* "%s" becomes the world's directory, however often. */
static char *in_world(const char *text)
{
	return t_format(text, world->dir, world->dir);
}

static void expect_harmless(const char *with, const char *refused)
{
	char *entries = in_world(with), *target = in_world(refused);
	char *script = t_format("get: %s entry:0:644:good:fine whole files files-end done\n",
				entries);
	char *prey = t_format("%s/prey", world->dir), *set = t_format("%s/set", world->workdir);
	char *good = t_format("%s/good", world->workdir), *text;
	struct play run;
	struct stat st;

	t_write_file(prey, "prey");
	ck_assert_int_eq(chmod(world->dir, 0777), 0);
	play(&run, script, 0);
	t_expect_status(&run.run, AGENTD_STATUS_OK);
	ck_assert_msg(!target[0] || is_denied(&run, "workdir", target), "\"%s\" wanted: %s", target,
		      t_run_story(&run.run));
	ck_assert_msg(target[0] || !run.run.denials, "%s", t_run_story(&run.run));
	text = t_read_file(prey, NULL);
	ck_assert_str_eq(text, "prey");
	free(text);
	ck_assert_int_eq(stat(prey, &st), 0);
	ck_assert_uint_eq(st.st_nlink, 1);
	/* what is no attack comes back all the same */
	text = t_read_file(good, NULL);
	ck_assert_msg(text && strcmp(text, "fine") == 0, "%s", t_run_story(&run.run));
	free(text);
	if (stat(set, &st) == 0)
		ck_assert_uint_eq(st.st_mode & (S_ISUID | S_ISGID), 0);
	free(set);
	free(good);
	set = t_format("%s/made", world->dir);
	ck_assert_int_lt(access(set, F_OK), 0);
	expect_over(&run);
	t_remove_tree(world->workdir);
	ck_assert_int_eq(mkdir(world->workdir, 0777), 0);
	ck_assert_int_eq(chmod(world->workdir, 0777), 0);
	free(set);
	free(prey);
	free(script);
	free(target);
	free(entries);
}

START_TEST(hostile_files)
{
	for (size_t i = 0; i < T_COUNT(hostile); i++)
		expect_harmless(hostile[i].entries, hostile[i].denied);
}
END_TEST

/* The host's file changes while the command runs: it stays, and that is told. */
static void change_file(struct t_run *run, enum t_event_kind kind)
{
	if (kind != T_OUTPUT)
		return;
	put_file(run->world->workdir, "shared", "the host's second thoughts");
	put_file(run->world->workdir, "new", "the host's");
	ck_assert_int_eq(agentd_exec_close_stdin(run->exec), 0);
}

START_TEST(conflict)
{
	char *shared = t_format("%s/shared", world->workdir), *alone, *new, *text;
	struct play run;

	alone = t_format("%s/alone", world->workdir);
	new = t_format("%s/new", world->workdir);
	put_file(world->workdir, "shared", "first");
	put_file(world->workdir, "alone", "first");
	/* the command's user may not be the owner */
	ck_assert_int_eq(chmod(shared, 0666), 0);
	ck_assert_int_eq(chmod(alone, 0666), 0);
	play_init(&run, "run: started out:go cat end exited:0 closed\n"
			"get: entry:0:644:shared:guest entry:0:644:alone:guest "
			"entry:0:644:new:guest whole files files-end done\n");
	run.opts.flags = AGENTD_EXEC_STDIN_OPEN;
	run.run.on_event = change_file;
	play_start(&run, 0);
	t_run_wait(&run.run);
	t_expect_status(&run.run, AGENTD_STATUS_OK);
	ck_assert_msg(is_denied(&run, "conflict", "shared"), "%s", t_run_story(&run.run));
	ck_assert_msg(is_denied(&run, "conflict", "new"), "%s", t_run_story(&run.run));
	ck_assert_uint_eq(denials(&run), 2);
	text = t_read_file(shared, NULL);
	ck_assert_str_eq(text, "the host's second thoughts");
	free(text);
	text = t_read_file(new, NULL);
	ck_assert_str_eq(text, "the host's");
	free(text);
	text = t_read_file(alone, NULL);
	ck_assert_str_eq(text, "guest");
	free(text);
	expect_over(&run);
	free(shared);
	free(alone);
	free(new);
}
END_TEST

/* More than a working directory may hold: the carrier stops it. */
START_TEST(files_beyond_limit)
{
	struct play run;
	const char *reason;

	play(&run,
	     "get: large:1000000000000 files files-flood:1000000000000 whole files "
	     "files-end done\n",
	     0);
	/* The command itself had ended well. */
	t_expect_status(&run.run, AGENTD_STATUS_OK);
	reason = t_run_layer(&run.run, "workdir", NULL);
	ck_assert_msg(reason && strstr(reason, "large"), "%s", t_run_story(&run.run));
	expect_over(&run);
	expect_works();
}
END_TEST

/* A command that may only read gets nothing carried back, whatever the agent offers. */
START_TEST(read_only)
{
	char *policy;
	struct play run;

	world_begin();
	policy = t_format("{\"min_isolation\": \"none\", \"paths\": {\"read\": [\"/\"],"
			  " \"exec\": [\"/\"], \"write\": [\"%s\"]}}",
			  world->home);
	world->opts.runner_policy = policy;
	t_world_start(world);
	play(&run, "get: print:asked die:1\n", 0);
	t_expect_status(&run.run, AGENTD_STATUS_OK);
	ck_assert_uint_eq(denials(&run), 0);
	expect_over(&run);
	free(policy);
	teardown();
}
END_TEST

/* The name of the guest's kernel is as it was, or cut where a character ends. */
START_TEST(kernel_names)
{
	static const struct {
		const char *name, *shown;
	} cases[] = {
		{ "6.1.0-agentd", "Linux 6.1.0-agentd, " },
		{ "0123456789012345678901234567890123456789012345678901234567890123",
		  "Linux 012345678901234567890123456789012345678901234567890123456789012, " },
		{ "01234567890123456789012345678901234567890123456789012345678901\u00e9x",
		  "Linux 01234567890123456789012345678901234567890123456789012345678901, " },
		{ "012345678901234567890123456789012345678901234567890123456789\U0001f427x",
		  "Linux 012345678901234567890123456789012345678901234567890123456789, " },
		{ "01234567890123456789012345678901234567890123456789012345678\U0001f427x",
		  "Linux 01234567890123456789012345678901234567890123456789012345678\U0001f427, " },
	};

	for (size_t i = 0; i < T_COUNT(cases); i++) {
		char *script = t_format("boot: kernel:%s hello\n", cases[i].name);
		const char *shown;
		struct play run;

		play(&run, script, 0);
		t_expect_status(&run.run, AGENTD_STATUS_OK);
		shown = t_run_layer(&run.run, "vm", NULL);
		ck_assert_msg(shown && strstr(shown, cases[i].shown), "\"%s\" wanted: %s",
			      cases[i].shown, shown);
		expect_over(&run);
		free(script);
	}
}
END_TEST

/* ---- the backend's own deadlines */

static const struct {
	const char *script, *text;
	uint64_t after_ms;
	int cause;
} late[] = {
	{ "boot:\n", "did not boot within 60 s", 60000, AGENTD_CAUSE_SPAWN }, /* V07 */
	{ "setup: ping\n", "did not set itself up within 15 s", 15000, AGENTD_CAUSE_SPAWN },
	{ "put: ping\n", "carried into the virtual machine within 60 s", 60000,
	  AGENTD_CAUSE_SPAWN },
	{ "get: ping\n", "it took more than 60 s", 60000, AGENTD_CAUSE_EXITED },
};

/* Each has its own time: what takes almost all of one leaves the next as much as ever. */
static const char filled_in_time[] = "put: wait:58000 done\n"
				     "run: wait:4000 started end exited:0 closed\n";

START_TEST(deadlines)
{
	struct play runs[T_COUNT(late)], slow;

	play_init(&slow, filled_in_time);
	play_start(&slow, 0);

	for (size_t i = 0; i < T_COUNT(runs); i++) {
		play_init(&runs[i], late[i].script);
		play_start(&runs[i], 0);
	}
	for (size_t i = 0; i < T_COUNT(runs); i++) {
		struct t_run *run = &runs[i].run;
		const char *reason;

		ck_assert(t_world_loop(world, t_slack(80000), &run->finished));
		t_expect_cause(run, late[i].cause);
		reason = late[i].cause == AGENTD_CAUSE_EXITED ? t_run_layer(run, "workdir", NULL) :
								error_of(&runs[i]);
		ck_assert_msg(reason && strstr(reason, late[i].text), "%s", t_run_story(run));
		ck_assert_uint_ge(t_run_wall_ms(run), late[i].after_ms);
		/* The trial of KVM, where that can be tried, has 5 s before. */
		ck_assert_uint_lt(t_run_wall_ms(run), late[i].after_ms + t_slack(12000));
	}
	for (size_t i = 0; i < T_COUNT(runs); i++)
		expect_over(&runs[i]);
	ck_assert(t_world_loop(world, t_slack(20000), &slow.run.finished));
	t_expect_status(&slow.run, AGENTD_STATUS_OK);
	expect_over(&slow);
	expect_works();
}
END_TEST

/* ---- snapshots: one that cannot be had is no loss but of time */

static const char *const template_faults[] = {
	"boot: hello log:3\n",
	"warm: log:3\n",
	"warm: noise:1000\n",
	"warm: die:1\n",
	"warm: close\n",
	"control: die:1\n",
	"control: close-control\n",
	"control: refuse\n",
	"control: control:nonsense\n",
	"control: control:[]\n",
	"save: refuse\n",
	"save: die:1\n",
	"save: crash\n",
	"save: return close-control\n",
	"save: return control:{\"event\":\"MIGRATION\",\"data\":{\"status\":\"failed\"}}\n",
	"save: return noise:1000 migrated\n",
	"restore: refuse\n",
	"restore: die:1\n",
	"restore: crash\n",
	"restore: close-control\n",
	"restore: return close-control\n",
	"restore: close\n",
	"restore: return noise:1000 migrated\n",
	"restore: return migrated noise:1000\n",
	"restore: return control:{\"event\":\"MIGRATION\",\"data\":{\"status\":\"failed\"}}\n",
};

START_TEST(template_fault_in_turn)
{
	for (size_t i = 0; i < T_COUNT(template_faults); i++) {
		struct play run;

		/* The second finds what the first has left. */
		for (int j = 0; j < 2; j++) {
			play(&run, template_faults[i], 0);
			ck_assert_msg(agentd_result_status(run.run.result) == AGENTD_STATUS_OK,
				      "%s: %s", template_faults[i], t_run_story(&run.run));
			expect_over(&run);
		}
	}
	expect_works();
}
END_TEST

/* What ends a clone is told, and once. */
START_TEST(clone_fails)
{
	static const struct {
		const char *script, *text;
	} cases[] = {
		{ "restore: close\n", "the guest agent closed its channel" },
		{ "restore: return noise:1000 migrated\n", "the guest agent broke the protocol" },
		{ "restore: return migrated noise:1000\n", "the guest agent broke the protocol" },
		{ "restore: refuse\n", "not today" },
	};

	for (size_t i = 0; i < T_COUNT(cases); i++) {
		struct play run;

		play(&run, cases[i].script, 0);
		t_expect_status(&run.run, AGENTD_STATUS_OK);
		ck_assert_msg(strstr(t_run_story(&run.run), cases[i].text), "\"%s\" wanted: %s",
			      cases[i].text, t_run_story(&run.run));
		expect_over(&run);
	}
}
END_TEST

/* ---- sessions */

#define ID "aaaaaaaa-0000-4000-8000-000000000000"

static agentd_pool *add_pool_with(const char *more)
{
	agentd_error *err = NULL;
	agentd_pool *pool = NULL;
	char *json = t_format("{\"enabled\": true, \"backend\": \"microvm\", "
			      "\"volume_root\": \"%s/volumes\", \"fallback\": false%s}",
			      world->dir, more);

	ck_assert_msg(agentd_pool_new(world->runner, json, strlen(json), &pool, &err) == 0, "%s",
		      agentd_error_message(err));
	ck_assert_int_eq(agentd_runner_set_pool(world->runner, pool, NULL), 0);
	free(json);
	return pool;
}

static agentd_pool *add_pool(void)
{
	return add_pool_with("");
}

/* The state of the only session. */
static bool pool_says(const agentd_pool *pool, const char *state)
{
	char *json = NULL, *text = t_format("\"state\":\"%s\"", state);
	bool says;

	ck_assert_int_eq(agentd_pool_to_json(pool, &json, NULL, NULL), 0);
	says = strstr(json, text);
	agentd_free(json);
	free(text);
	return says;
}

static void session_play_init(struct play *play, const char *script)
{
	play_init(play, script);
	ck_assert_int_eq(agentd_context_set_backend(play->run.ctx, NULL, NULL), 0);
	ck_assert_int_eq(agentd_context_set_session(play->run.ctx, ID, NULL, NULL, NULL), 0);
}

static void again(struct play *play)
{
	agentd_context *ctx = play->run.ctx;

	t_run_free(&play->run);
	t_run_init(&play->run, world);
	play->run.exec_opts = &play->opts;
	play->run.userdata = play;
	play->run.ctx = ctx;
	play_start(play, 0);
}

/* With another script in the same file, by which nobody would know that it is another. */
static void again_with(struct play *play, const char *script)
{
	struct timespec times[2];
	struct stat st;

	ck_assert_int_eq(stat(play->script, &st), 0);
	ck_assert_uint_eq((size_t)st.st_size, strlen(script));
	t_write_file(play->script, script);
	times[0] = st.st_atim;
	times[1] = st.st_mtim;
	ck_assert_int_eq(utimensat(AT_FDCWD, play->script, times, 0), 0);
	again(play);
	t_run_wait(&play->run);
}

static void expect_vm(const struct play *play, bool cloned)
{
	t_expect_status(&play->run, AGENTD_STATUS_OK);
	ck_assert_msg(!strstr(t_run_layer(&play->run, "vm", NULL), "cloned") == !cloned &&
			      !strstr(t_run_story(&play->run), "go on from a snapshot: ") == cloned,
		      "%s", t_run_story(&play->run));
}

/* Another is made, three times in a row at most; one that can be gone on from begins anew. */
START_TEST(template_made_anew)
{
	static const char bad[] = "restore: die:1\n", good[] = "stop:    die:1\n";
	struct play run;

	play(&run, bad, 0);
	expect_vm(&run, false);
	for (int i = 0; i < 4; i++) {
		again_with(&run, good);
		expect_vm(&run, true);
		again_with(&run, bad);
		expect_vm(&run, false);
	}
	for (int i = 0; i < 3; i++) {
		again_with(&run, bad);
		expect_vm(&run, false);
	}
	again_with(&run, good);
	expect_vm(&run, false);
	expect_over(&run);
	/* That was one image's. */
	play(&run, good, 0);
	expect_vm(&run, true);
	expect_over(&run);
}
END_TEST

static void expect_in_session(struct play *play)
{
	int32_t state = 99;

	t_run_wait(&play->run);
	t_expect_status(&play->run, AGENTD_STATUS_OK);
	t_run_layer(&play->run, "session", &state);
	ck_assert_msg(state == AGENTD_LAYER_ENFORCED, "%s", t_run_story(&play->run));
}

static void count_end(agentd_pool *pool, const agentd_error *err, void *userdata)
{
	(void)pool;
	(void)err;
	++*(int *)userdata;
}

static void stop_session(agentd_pool *pool)
{
	int ends = 0;

	ck_assert_int_eq(agentd_pool_stop(pool, ID, count_end, &ends), 0);
	ck_assert(t_world_loop(world, t_slack(20000), &ends));
	ck_assert(pool_says(pool, "stopped"));
}

START_TEST(session_goes_on)
{
	agentd_pool *pool = add_pool();
	struct play run;

	session_play_init(&run, "run: started out:here end exited:0 closed\n");
	play_start(&run, 0);
	expect_in_session(&run);
	ck_assert(pool_says(pool, "idle"));
	again(&run);
	expect_in_session(&run);
	stop_session(pool);
	again(&run);
	expect_in_session(&run);
	t_expect_out(&run.run, AGENTD_STDOUT, "here");
	stop_session(pool);
	agentd_pool_unref(pool);
	expect_over(&run);
}
END_TEST

START_TEST(session_stopped_while_paused)
{
	agentd_pool *pool = add_pool();
	struct play run;

	session_play_init(&run, unread[_i].script);
	stop_unread(&run, _i);
	t_world_loop(world, 200, NULL);
	ck_assert(pool_says(pool, "idle"));
	agentd_pool_unref(pool);
	t_world_shutdown(world);
	expect_over(&run);
}
END_TEST

/* That the helper is gone says nothing of KVM: the next runner's first machine is the trial. */
START_TEST(session_trial_without_verdict)
{
	agentd_pool *pool = add_pool();
	struct play run;

	if (access("/dev/kvm", R_OK | W_OK) < 0) {
		t_skip("there is no /dev/kvm to try");
		agentd_pool_unref(pool);
		return;
	}
	session_play_init(&run, "boot:\n");
	play_start(&run, 0);
	(void)pid_called(monitor_name);
	ck_assert_int_eq(kill(t_world_helper(world), SIGKILL), 0);
	t_run_wait(&run.run);
	t_expect_cause(&run.run, AGENTD_CAUSE_ISOLATION);
	agentd_pool_unref(pool);
	t_world_shutdown(world);
	expect_over(&run);
	agentd_context_unref(world->ctx);
	t_world_start(world);
	play(&run, "", 0);
	t_expect_status(&run.run, AGENTD_STATUS_OK);
	ck_assert_str_eq(t_run_layer(&run.run, "accel", NULL), "kvm");
	expect_over(&run);
}
END_TEST

/* A monitor has its memory in whole MiB, whatever was asked for. */
static const char *const memories[] = {
	", \"vm\": {\"memory_bytes\": 134217728}",
	", \"vm\": {\"memory_bytes\": 134217729}",
	", \"vm\": {\"memory_bytes\": 300000000}, \"min_warm\": 1",
};

START_TEST(session_memory)
{
	agentd_pool *pool = add_pool_with(memories[_i]);
	struct play run;

	session_play_init(&run, "");
	play_start(&run, 0);
	expect_in_session(&run);
	agentd_pool_unref(pool);
	t_world_shutdown(world);
	expect_over(&run);
}
END_TEST

static size_t helper_fds(void)
{
	char path[64];
	pid_t pid;

	ck_assert_uint_eq(t_world_helper_pids(world, &pid, 1), 1);
	snprintf(path, sizeof(path), "/proc/%d/fd", (int)pid);
	return t_count_files(path);
}

/* Started and stopped again and again, each as the last. */
START_TEST(session_cycles)
{
	enum { FIRST = 5 };
	const int cycles = t_is_small() ? 20 : 120;
	agentd_pool *pool = add_pool();
	struct t_fds fds = { 0 };
	size_t in_helper = 0;
	struct play run;
	uint64_t rss = 0;

	session_play_init(&run, "run: started out:here end exited:0 closed\n");
	play_start(&run, 0);
	for (int i = 0; i < cycles; i++) {
		expect_in_session(&run);
		stop_session(pool);
		if (i == FIRST) {
			t_fds_take(&fds);
			in_helper = helper_fds();
			rss = t_rss_bytes();
		}
		again(&run);
	}
	expect_in_session(&run);
	stop_session(pool);
	t_fds_expect_same(&fds, "after all cycles");
	ck_assert_uint_eq(helper_fds(), in_helper);
	if (!t_is_slow())
		ck_assert_uint_lt(t_rss_bytes(), rss + MIB);
	t_fds_free(&fds);
	agentd_pool_unref(pool);
	expect_over(&run);
}
END_TEST

/* The command's fault is not the session's. */
START_TEST(session_outlives_too_large_a_command)
{
	agentd_pool *pool = add_pool();
	char *value = malloc(100001);
	struct play run;

	memset(value, 'x', 100000);
	value[100000] = '\0';
	session_play_init(&run, "run: started end exited:0 closed\n");
	play_start(&run, 0);
	expect_in_session(&run);
	for (int i = 0; i < 50; i++) {
		char *name = t_format("V%d", i);

		ck_assert_int_eq(agentd_context_set_env(run.run.ctx, name, value, NULL), 0);
		free(name);
	}
	again(&run);
	t_run_wait(&run.run);
	t_expect_status(&run.run, AGENTD_STATUS_ERROR);
	t_expect_cause(&run.run, AGENTD_CAUSE_SPAWN);
	ck_assert_msg(strstr(error_of(&run), "Argument list too long"), "%s",
		      t_run_story(&run.run));
	ck_assert(pool_says(pool, "idle"));
	stop_session(pool);
	free(value);
	agentd_pool_unref(pool);
	expect_over(&run);
}
END_TEST

static const char anew[] = "The session was gone before the command began; it is started anew";

static const struct fault session_faults[] = {
	{ "run: die:0\n", SPAWN, AGENTD_ERR_BACKEND, "status 0" },
	{ "run: started die:0\n", LOST, AGENTD_ERR_BACKEND, "status 0" },
	{ "run: started flood:1000000 die:0\n", LOST, AGENTD_ERR_BACKEND, "status 0" },
	{ "run: started crash\n", LOST, AGENTD_ERR_BACKEND, "signal 6" },
	{ "run: started close\n", LOST, AGENTD_ERR_BACKEND, "closed its channel" },
	{ "run: started noise:100000\n", LOST, BROKEN },
	{ "run: started ready\n", LOST, BROKEN },
	{ "run: id:7 started\n", SPAWN, BROKEN },
	{ "run: started raw:00000000240000000000000001000000\n", LOST, BROKEN },
	/* DATA of a stream that a command does not have */
	{ "run: started raw:010000002004000001000000ff\n", LOST, BROKEN },
	{ "run: id:1 done\n", SPAWN, BROKEN },
	{ "run: started log:100000\n", LOST, BROKEN },
};

START_TEST(session_fault_in_turn)
{
	agentd_pool *pool = add_pool();

	for (size_t i = 0; i < T_COUNT(session_faults); i++) {
		const struct fault *what = &session_faults[i];
		struct play run;

		session_play_init(&run, what->script);
		play_start(&run, 0);
		t_run_wait(&run.run);
		t_expect_status(&run.run, AGENTD_STATUS_ERROR);
		t_expect_cause(&run.run, what->cause);
		ck_assert_msg((run.run.started == 1) == what->started, "%s", t_run_story(&run.run));
		ck_assert_msg(agentd_error_code(agentd_result_error(run.run.result)) == what->code,
			      "%s: code %d wanted: %s", what->script, what->code,
			      t_run_story(&run.run));
		ck_assert_msg(strstr(error_of(&run), what->text), "\"%s\" wanted: %s", what->text,
			      t_run_story(&run.run));
		/* What has been sent to an agent may have begun. */
		ck_assert_uint_eq(t_logs_count(&run.run.logs, anew), 0);
		stop_session(pool);
		expect_over(&run);
	}
	agentd_pool_unref(pool);
}
END_TEST

/* The machine has died, and the helper cannot tell of it before the next command is there: it
 * begins in another. */
START_TEST(session_dies_unnoticed)
{
	agentd_pool *pool = add_pool();
	pid_t helper, pid;
	struct play run;

	session_play_init(&run, "run: started out:here end exited:0 closed\n");
	play_start(&run, 0);
	expect_in_session(&run);
	ck_assert_uint_eq(t_logs_count(&run.run.logs, anew), 0);
	helper = t_world_helper(world);
	/* By then it has nothing of the machine any more. */
	while (t_process_state(helper) != 'S')
		t_sleep_ms(1);
	ck_assert_int_eq(kill(helper, SIGSTOP), 0);
	ck_assert_uint_eq(t_count_processes(NULL, monitor_name, &pid, 1), 1);
	ck_assert_int_eq(kill(pid, SIGKILL), 0);
	while (t_count_processes(NULL, monitor_name, &pid, 1) > 0)
		t_sleep_ms(1);
	again(&run);
	t_world_loop(world, 100, &run.run.finished);
	ck_assert_int_eq(run.run.finished, 0);
	ck_assert_int_eq(kill(helper, SIGCONT), 0);
	expect_in_session(&run);
	t_expect_out(&run.run, AGENTD_STDOUT, "here");
	ck_assert_uint_eq(t_logs_count(&run.run.logs, anew), 1);
	ck_assert_str_eq(t_log_field(t_logs_find(&run.run.logs, 0, anew), "session_id"), ID);
	stop_session(pool);
	agentd_pool_unref(pool);
	expect_over(&run);
}
END_TEST

/* What comes of a command that is over: one in the same session does not hear of it. */
START_TEST(session_hears_of_what_is_over)
{
	agentd_pool *pool = add_pool();
	struct play run;

	session_play_init(&run, "run: started end exited:0 closed closed\n");
	play_start(&run, 0);
	t_run_wait(&run.run);
	t_expect_status(&run.run, AGENTD_STATUS_OK);
	t_world_loop(world, 200, NULL);
	ck_assert(pool_says(pool, "stopped"));
	agentd_pool_unref(pool);
	expect_over(&run);
}
END_TEST

struct disk {
	const char *text; /* NULL: not a file */
	int (*make)(const char *path);
	const char *want;
};

static int make_link(const char *path)
{
	return symlink("/etc/passwd", path);
}

static int make_fifo(const char *path)
{
	return mkfifo(path, 0600);
}

static int make_folder(const char *path)
{
	return mkdir(path, 0700);
}

static const struct disk disks[] = {
	{ NULL, make_link, "disk.ext4" },
	{ NULL, make_fifo, "disk.ext4" },
	{ NULL, make_folder, "disk.ext4" },
	{ "", NULL, "not a regular file, or empty" },
};

/* What took the disk's place is neither followed nor waited for. */
START_TEST(session_disk_replaced)
{
	const struct disk *disk = &disks[_i];
	char *path = t_format("%s/volumes/" ID "/volume/disk.ext4", world->dir);
	agentd_pool *pool = add_pool();
	struct play run;
	const char *why;

	session_play_init(&run, "");
	play_start(&run, 0);
	expect_in_session(&run);
	stop_session(pool);
	ck_assert_int_eq(unlink(path), 0);
	if (disk->make)
		ck_assert_int_eq(disk->make(path), 0);
	else
		t_write_file(path, disk->text);
	again(&run);
	t_run_wait(&run.run);
	t_expect_status(&run.run, AGENTD_STATUS_DENIED);
	why = error_of(&run);
	ck_assert_msg(strstr(why, disk->want), "\"%s\" wanted: %s", disk->want,
		      t_run_story(&run.run));
	ck_assert_int_eq(remove(path), 0);
	again(&run);
	expect_in_session(&run);
	stop_session(pool);
	agentd_pool_unref(pool);
	expect_over(&run);
	free(path);
}
END_TEST

/* The host program may write no file as large, and is told so, not killed. */
START_TEST(session_disk_beyond_limit)
{
	agentd_pool *pool = add_pool();
	struct rlimit limit, saved;
	struct play run;

	session_play_init(&run, "");
	ck_assert_int_eq(getrlimit(RLIMIT_FSIZE, &saved), 0);
	limit = saved;
	limit.rlim_cur = 1 << 20; /* more than check itself writes */
	ck_assert_int_eq(setrlimit(RLIMIT_FSIZE, &limit), 0);
	play_start(&run, 0);
	t_run_wait(&run.run);
	ck_assert_int_eq(setrlimit(RLIMIT_FSIZE, &saved), 0);
	ck_assert_msg(strstr(error_of(&run), "disk.ext4: File too large"), "%s",
		      t_run_story(&run.run));
	again(&run);
	expect_in_session(&run);
	stop_session(pool);
	agentd_pool_unref(pool);
	expect_over(&run);
}
END_TEST

/* As scripts/build-image does it: other files, by rename. */
static void replace_image(const char *root)
{
	char *json = t_format("%s/image.json", image), *new_json = t_format("%s.new", json);
	char *file = t_format("%s/root.erofs", image), *new_file = t_format("%s.new", file);
	char *text = t_format("{\"format\": 3, \"protocol\": 2, \"files\": {"
			      "\"vmlinux\": {\"size\": 6}, \"initramfs.cpio\": {\"size\": 6}, "
			      "\"root.erofs\": {\"size\": %zu}, \"volume.ext4\": {\"size\": 6}, "
			      "\"volume-small.ext4\": {\"size\": 5}}}",
			      strlen(root));

	t_write_file(new_json, text);
	t_write_file(new_file, root);
	ck_assert_int_eq(rename(new_file, file), 0);
	ck_assert_int_eq(rename(new_json, json), 0);
	free(text);
	free(new_file);
	free(file);
	free(new_json);
	free(json);
}

/* What its machine says, and that this is a clone. */
static void expect_image(const char *id, const char *text)
{
	struct play play = { .opts = { .size = sizeof(play.opts) } };

	t_run_init(&play.run, world);
	play.run.ctx = t_world_context(world);
	ck_assert_int_eq(agentd_context_set_backend(play.run.ctx, NULL, NULL), 0);
	ck_assert_int_eq(agentd_context_set_session(play.run.ctx, id, NULL, NULL, NULL), 0);
	play_start(&play, 0);
	expect_in_session(&play);
	expect_vm(&play, true);
	t_expect_out(&play.run, AGENTD_STDOUT, text);
	play_free(&play);
}

/* A template is of what it was booted from: it is of no use to another image, and those who
 * run from it go on. */
START_TEST(session_image_replaced)
{
	static const char other[] = "bbbbbbbb-0000-4000-8000-000000000000";
	agentd_pool *pool = add_pool();

	replace_image("run: started out:old end exited:0 closed\n");
	expect_image(ID, "old");
	replace_image("run: started out:new end exited:0 closed\n");
	expect_image(other, "new");
	expect_image(ID, "old");
	stop_session(pool);
	expect_image(ID, "new");
	stop_session(pool);
	agentd_pool_unref(pool);
}
END_TEST

/* As by the machine of a host program that was killed: it is waited for, but not for ever. */
START_TEST(session_disk_locked)
{
	char *path = t_format("%s/volumes/" ID "/volume/disk.ext4", world->dir);
	agentd_pool *pool = add_pool();
	struct play run;
	int fd;

	session_play_init(&run, "");
	play_start(&run, 0);
	expect_in_session(&run);
	stop_session(pool);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	ck_assert_int_eq(flock(fd, LOCK_EX | LOCK_NB), 0);
	again(&run);
	t_world_loop(world, 200, NULL);
	ck_assert_int_eq(run.run.started, 0);
	ck_assert(pool_says(pool, "starting"));
	if (_i == 0) {
		close(fd);
		fd = -1;
		expect_in_session(&run);
	} else if (_i == 1) {
		ck_assert_int_eq(agentd_exec_kill(run.run.exec), 0);
	} else {
		t_run_wait(&run.run);
		t_expect_status(&run.run, AGENTD_STATUS_DENIED);
		ck_assert_msg(strstr(error_of(&run), "disk.ext4, is locked"), "%s",
			      t_run_story(&run.run));
	}
	stop_session(pool);
	/* Then it is anybody's. */
	if (fd >= 0)
		close(fd);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	ck_assert_int_eq(flock(fd, LOCK_EX | LOCK_NB), 0);
	close(fd);
	t_run_wait(&run.run);
	agentd_pool_unref(pool);
	expect_over(&run);
	free(path);
}
END_TEST

static const struct {
	const char *file, *text, *named;
} volumes[] = {
	{ "volume.ext4", NULL, "/volume.ext4" },
	{ "volume.ext4", "short", "/volume.ext4" },
	{ "image.json",
	  "{\"format\": 3, \"protocol\": 2, \"files\": {\"vmlinux\": {\"size\": 6},"
	  " \"initramfs.cpio\": {\"size\": 6}, \"root.erofs\": {\"size\": 6}}}",
	  "volume.ext4" },
	{ "image.json",
	  "{\"format\": 3, \"protocol\": 2, \"files\": {\"vmlinux\": {\"size\": 6},"
	  " \"initramfs.cpio\": {\"size\": 6}, \"root.erofs\": {\"size\": 6},"
	  " \"volume.ext4\": {\"size\": 2000000000},"
	  " \"volume-small.ext4\": {\"size\": 2000000000}}}",
	  "no volume as small as 1073741824" },
};

/* Nothing is left where a disk could not be made, and the next start makes it. */
START_TEST(session_volume_missing)
{
	char *path = t_format("%s/%s", image, volumes[_i].file), *old = t_format("%s.old", path);
	char *dir = t_format("%s/volumes/" ID "/volume", world->dir);
	agentd_pool *pool = add_pool();
	struct play run;

	session_play_init(&run, "");
	ck_assert_int_eq(rename(path, old), 0);
	if (volumes[_i].text)
		t_write_file(path, volumes[_i].text);
	play_start(&run, 0);
	t_run_wait(&run.run);
	t_expect_status(&run.run, AGENTD_STATUS_DENIED);
	ck_assert_msg(strstr(error_of(&run), volumes[_i].named) &&
			      strstr(error_of(&run), "scripts/build-image"),
		      "%s", t_run_story(&run.run));
	ck_assert_uint_eq(t_count_files(dir), 1); /* itself */
	ck_assert_int_eq(rename(old, path), 0);
	again(&run);
	expect_in_session(&run);
	ck_assert_uint_eq(t_count_files(dir), 2);
	stop_session(pool);
	agentd_pool_unref(pool);
	expect_over(&run);
	free(path);
	free(old);
	free(dir);
}
END_TEST

/* In every state of its machine: stopped, then the runner goes. */
static const char *const session_moments[] = {
	"boot:\n",         "warm: stop\n", "control:\n",        "save:\n",       "save: return\n",
	"restore: stop\n", "restore:\n",   "restore: return\n", "setup:\n",      "run:\n",
	"run: started\n",  "kill:\n",      "stop:\n",           "stop: close\n",
};

START_TEST(session_ends)
{
	agentd_pool *pool = add_pool();
	struct play run, next;

	session_play_init(&run, session_moments[_i / 2]);
	play_start(&run, 0);
	t_world_loop(world, 300, NULL);
	if (_i % 2) {
		if (!run.run.finished)
			ck_assert_int_eq(agentd_exec_kill(run.run.exec), 0);
		t_run_wait(&run.run);
		stop_session(pool);
		/* A snapshot may be under way still, for who comes next. */
		play(&next, "", 0);
		t_expect_status(&next.run, AGENTD_STATUS_OK);
		play_free(&next);
	}
	agentd_pool_unref(pool);
	t_world_shutdown(world);
	expect_over(&run);
}
END_TEST

/* A stop that takes longer than its grace, and what the kernel may need beside it, kills the
 * machine: that is told, for something may be missing on the disk. */
START_TEST(session_stop_is_cut_short)
{
	static const char message[] = "The virtual machine did not stop in time and was killed: "
				      "what it had not written to its disk is lost";
	agentd_pool *pool = add_pool();
	struct play run;

	session_play_init(&run, _i ? "stop:\n" : "");
	play_start(&run, 0);
	expect_in_session(&run);
	agentd_pool_unref(pool);
	t_world_shutdown(world);
	ck_assert_uint_eq(t_logs_count(&world->logs, message), _i ? 1 : 0);
	expect_over(&run);
}
END_TEST

static TCase *in_a_world(const char *name, unsigned int seconds)
{
	TCase *tcase = t_case(name, seconds);

	tcase_add_checked_fixture(tcase, setup, teardown);
	return tcase;
}

static int run_deadlines(void)
{
	TCase *tcase = in_a_world("deadlines", 120);

	tcase_add_test(tcase, deadlines);
	return t_main("microvm deadlines", &tcase, 1);
}

static int run_all(void)
{
	TCase *images = t_case("images", 20), *starts = in_a_world("starts", 20);
	TCase *broken = in_a_world("faults", 120), *ends = in_a_world("ends", 40);
	TCase *streams = in_a_world("streams", 60), *files = in_a_world("files", 60);
	TCase *nets = t_case("nets", 60);
	TCase *snapshots = t_case("snapshots", 240), *sessions = in_a_world("sessions", 120);
	TCase *const cases[] = { images, starts, broken,    ends,    streams,
				 nets,   files,  snapshots, sessions };

	tcase_add_loop_test(images, image_missing, 0, T_COUNT(missing));
	tcase_add_loop_test(images, monitor_missing, 0, 2);
	tcase_add_test(images, read_only);
	tcase_add_test(starts, image_vanishes);
	tcase_add_test(starts, monitor_cannot_start);
	tcase_add_test(starts, reads_are_interrupted);
	tcase_add_test(starts, kvm_required);
	tcase_add_test(starts, kernel_names);
	tcase_add_test(broken, fault_in_turn);
	tcase_add_test(broken, fault_after_exit);
	tcase_add_test(broken, bytewise);
	tcase_add_test(broken, cannot_start);
	tcase_add_test(ends, monitor_killed_booting);
	tcase_add_loop_test(ends, monitor_killed_running, 0, 2);
	tcase_add_test(ends, carrier_killed);
	tcase_add_test(ends, unanswered_kill);
	tcase_add_test(ends, timeout);
	tcase_add_loop_test(ends, cancel_before_start, 0, T_COUNT(beginnings));
	tcase_add_test(ends, cancel_at_once);
	tcase_add_test(ends, runner_gone);
	tcase_add_test(streams, stdin_echoed);
	tcase_add_test(streams, stdin_not_taken);
	tcase_add_test(streams, paused);
	tcase_add_loop_test(streams, stopped_while_paused, 0, T_COUNT(unread));
	tcase_add_test(streams, paused_after_exit);
	tcase_add_test(streams, overdrawn);
	tcase_add_test(streams, flood);
	tcase_add_test(streams, files_flood);
	tcase_add_checked_fixture(nets, net_setup, teardown);
	tcase_add_test(nets, net_fault_in_turn);
	tcase_add_loop_test(nets, net_deaf, 0, 2);
	tcase_add_test(nets, net_denied);
	tcase_add_test(nets, net_crowd);
	tcase_add_test(nets, net_canceled);
	tcase_add_test(files, hostile_files);
	tcase_add_test(files, conflict);
	tcase_add_test(files, files_beyond_limit);
	tcase_add_checked_fixture(snapshots, setup_snapshots, teardown);
	tcase_add_test(snapshots, template_fault_in_turn);
	tcase_add_test(snapshots, template_made_anew);
	tcase_add_test(snapshots, clone_fails);
	tcase_add_test(snapshots, fault_in_turn);
	tcase_add_test(snapshots, fault_after_exit);
	tcase_add_test(snapshots, runner_gone);
	tcase_add_test(sessions, session_goes_on);
	tcase_add_loop_test(sessions, session_stopped_while_paused, 0, T_COUNT(unread));
	tcase_add_test(sessions, session_trial_without_verdict);
	tcase_add_loop_test(sessions, session_memory, 0, T_COUNT(memories));
	tcase_add_test(sessions, session_cycles);
	tcase_add_test(sessions, session_outlives_too_large_a_command);
	tcase_add_test(sessions, session_fault_in_turn);
	tcase_add_test(sessions, session_dies_unnoticed);
	tcase_add_test(sessions, session_hears_of_what_is_over);
	tcase_add_loop_test(sessions, session_disk_replaced, 0, T_COUNT(disks));
	tcase_add_test(sessions, session_disk_beyond_limit);
	tcase_add_test(sessions, session_image_replaced);
	tcase_add_loop_test(sessions, session_disk_locked, 0, 3);
	tcase_add_loop_test(sessions, session_volume_missing, 0, T_COUNT(volumes));
	tcase_add_loop_test(sessions, session_stop_is_cut_short, 0, 2);
	tcase_add_loop_test(sessions, session_ends, 0, 2 * (int)T_COUNT(session_moments));
	return t_main("microvm", cases, T_COUNT(cases));
}

int main(int argc, char **argv)
{
	return argc > 1 && strcmp(argv[1], "deadlines") == 0 ? run_deadlines() : run_all();
}
