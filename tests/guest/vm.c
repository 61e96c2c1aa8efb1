/* SPDX-License-Identifier: MIT */
#include "vm.h"

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <inttypes.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#include <x86intrin.h>

#define QEMU "qemu-system-x86_64"

enum { NOBODY = 65534, PATH_SIZE = 4096 };

static uint64_t now_ns(clockid_t clock)
{
	struct timespec now;

	clock_gettime(clock, &now);
	return (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
}

uint64_t vm_now(void)
{
	return now_ns(CLOCK_MONOTONIC) / 1000000;
}

/* ---- starting */

const char *vm_missing(const char *image)
{
	static const char *const files[] = { "vmlinux", "initramfs.cpio", "root.erofs" };
	static char path[PATH_SIZE];

	if (access("/usr/bin/" QEMU, X_OK) < 0)
		return QEMU;
	for (size_t i = 0; i < AD_COUNT(files); i++) {
		snprintf(path, sizeof(path), "%s/%s", image, files[i]);
		if (access(path, R_OK) < 0)
			return path;
	}
	return NULL;
}

struct instant {
	uint64_t ns, ticks;
};

/* Both at once, as well as can be where one may be interrupted between them. */
static struct instant instant(void)
{
	struct instant best = { 0 };
	uint64_t least = UINT64_MAX;

	for (int i = 0; i < 20; i++) {
		unsigned int cpu;
		uint64_t before = now_ns(CLOCK_MONOTONIC_RAW), ticks = __rdtscp(&cpu);
		uint64_t after = now_ns(CLOCK_MONOTONIC_RAW);

		if (after - before < least) {
			least = after - before;
			best = (struct instant){ .ns = before + least / 2, .ticks = ticks };
		}
	}
	return best;
}

/* Of this machine's time stamp counter. The guest has no clock to measure it by, and does
 * not begin with a wrong one. */
static uint64_t tsc_khz(void)
{
	const struct timespec span = { .tv_nsec = 20 * 1000000 };
	struct instant begin = instant(), end;

	nanosleep(&span, NULL);
	end = instant();
	return (end.ticks - begin.ticks) * 1000000 / (end.ns - begin.ns);
}

static _Noreturn void become_qemu(const char *image, int sock, int root, uint64_t khz)
{
	char kernel[PATH_SIZE], initramfs[PATH_SIZE], append[512], chardev[64], fdset[64];

	snprintf(kernel, sizeof(kernel), "%s/vmlinux", image);
	snprintf(initramfs, sizeof(initramfs), "%s/initramfs.cpio", image);
	snprintf(append, sizeof(append),
		 "quiet loglevel=1 panic=-1 tsc=reliable tsc_early_khz=%" PRIu64
		 " cryptomgr.notests nokaslr audit=0 lsm= ipv6.disable=1 random.trust_cpu=on"
		 " psi=0 cgroup_disable=cpuset,devices,freezer,net_cls,perf_event,net_prio,hugetlb"
		 ",rdma,misc",
		 khz);
	snprintf(chardev, sizeof(chardev), "socket,id=agent,fd=%d", sock);
	snprintf(fdset, sizeof(fdset), "fd=%d,set=1", root);
	if (getuid() == 0 && (setgroups(0, NULL) < 0 || setresgid(NOBODY, NOBODY, NOBODY) < 0 ||
			      setresuid(NOBODY, NOBODY, NOBODY) < 0))
		_exit(126);
	prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
	prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0);
	execlp(QEMU, QEMU, "-nodefaults", "-no-user-config", "-no-reboot", "-display", "none", "-M",
	       "microvm,x-option-roms=off,isa-serial=off,pit=off,pic=off,rtc=on", "-accel",
	       "tcg,tb-size=64", "-cpu", "max,-erms,-fsrm", "-smp", "1", "-m", "256M", "-kernel",
	       kernel, "-initrd", initramfs, "-append", append, "-chardev", chardev, "-device",
	       "virtio-serial-device,max_ports=2", "-device",
	       "virtserialport,chardev=agent,name=agent.0", "-add-fd", fdset, "-drive",
	       "file=/dev/fdset/1,if=none,id=root,format=raw,readonly=on", "-device",
	       "virtio-blk-device,drive=root,serial=root", "-sandbox",
	       "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny", NULL);
	_exit(127);
}

static void message(const struct ad_guest_msg *msg, void *userdata);
static void writable(uint32_t id, enum ad_guest_stream stream, void *userdata);

bool vm_start(struct vm *vm, const char *image)
{
	static const struct ad_guest_link_events events = { .message = message,
							    .writable = writable };
	char path[PATH_SIZE];
	uint64_t khz = tsc_khz();
	int socks[2], root;

	*vm = (struct vm){ .sock = -1 };
	snprintf(path, sizeof(path), "%s/root.erofs", image);
	root = open(path, O_RDONLY);
	if (root < 0 || socketpair(AF_UNIX, SOCK_STREAM, 0, socks) < 0)
		return false;
	fcntl(socks[0], F_SETFD, FD_CLOEXEC);
	vm->link = ad_guest_link_new(AD_GUEST_HOST, &events, vm);
	vm->started_at = vm_now();
	vm->pid = fork();
	if (vm->pid == 0)
		become_qemu(image, socks[1], root, khz);
	close(root);
	close(socks[1]);
	vm->sock = socks[0];
	fcntl(vm->sock, F_SETFL, O_NONBLOCK);
	return vm->link && vm->pid > 0;
}

/* ---- the link */

static struct vm_task *find(struct vm *vm, uint32_t id)
{
	return id > 0 && id <= vm->task_count ? &vm->tasks[id - 1] : NULL;
}

static void data_came(struct vm *vm, struct vm_task *task, const struct ad_guest_msg *msg)
{
	enum ad_guest_stream stream = msg->u.data.stream;
	size_t len = msg->u.data.len;

	task->bytes[stream] += len;
	if (task->files)
		fwrite(msg->u.data.data, 1, len, task->files);
	else if (task->output[stream].len + len <= VM_OUTPUT_MAX)
		ad_buf_append(&task->output[stream], msg->u.data.data, len);
	if (task->hold)
		task->held[stream] += len;
	else
		ad_guest_link_taken(vm->link, task->id, stream, len);
}

static void message(const struct ad_guest_msg *msg, void *userdata)
{
	struct vm *vm = userdata;
	struct vm_task *task = find(vm, msg->id);

	switch (msg->type) {
	case AD_GUEST_HELLO:
		vm->hello = true;
		snprintf(vm->kernel, sizeof(vm->kernel), "%s", msg->u.hello.kernel);
		break;
	case AD_GUEST_READY:
		vm->ready = true;
		vm->ready_msg = *msg;
		snprintf(vm->ready_text, sizeof(vm->ready_text), "%s", msg->u.ready.text);
		break;
	case AD_GUEST_PONG:
		vm->pong = msg->u.ping.token;
		break;
	case AD_GUEST_LOG:
		vm->logs++;
		fprintf(stderr, "# log: %s\n", msg->u.log.text);
		break;
	case AD_GUEST_STARTED:
		task->started = true;
		break;
	case AD_GUEST_FAILED:
		task->failed = true;
		task->failure = *msg;
		snprintf(task->text, sizeof(task->text), "%s", msg->u.failed.text);
		break;
	case AD_GUEST_DATA:
		data_came(vm, task, msg);
		break;
	case AD_GUEST_END:
		task->ended[msg->u.end.stream] = true;
		break;
	case AD_GUEST_LIMIT:
		task->limits |= 1u << msg->u.limit.limit;
		if (msg->u.limit.fatal)
			task->fatal_limits |= 1u << msg->u.limit.limit;
		break;
	case AD_GUEST_EXITED:
		task->exited = true;
		task->wait_status = msg->u.exited.wait_status;
		task->lived_ns = msg->u.exited.lived_ns;
		break;
	case AD_GUEST_CLOSED:
		task->closed = true;
		task->cpu_ns = msg->u.closed.cpu_ns;
		task->memory_peak = msg->u.closed.memory_peak;
		task->survivors = msg->u.closed.survivors;
		break;
	case AD_GUEST_DONE:
		task->done = true;
		task->failure = *msg;
		snprintf(task->text, sizeof(task->text), "%s", msg->u.done.text);
		break;
	default:
		break;
	}
}

static void send_input(struct vm *vm, struct vm_task *task, enum ad_guest_stream stream)
{
	struct ad_guest_msg end = { .type = AD_GUEST_END, .id = task->id };
	size_t n;

	if (!task->input_open)
		return;
	n = ad_guest_link_data(vm->link, task->id, stream, task->input, task->input_len);
	task->input += n;
	task->input_len -= n;
	if (task->input_len > 0)
		return;
	task->input_open = false;
	end.u.end.stream = stream;
	ad_guest_link_send(vm->link, &end);
}

static void writable(uint32_t id, enum ad_guest_stream stream, void *userdata)
{
	send_input(userdata, find(userdata, id), stream);
}

static void flush(struct vm *vm)
{
	const uint8_t *data;
	size_t len;

	while ((data = ad_guest_link_peek(vm->link, &len))) {
		ssize_t n = send(vm->sock, data, len, MSG_NOSIGNAL);

		if (n <= 0) {
			vm->gone |= n < 0 && errno != EAGAIN && errno != EINTR;
			return;
		}
		ad_guest_link_sent(vm->link, (size_t)n);
	}
}

static void pump(struct vm *vm, int timeout_ms)
{
	static uint8_t data[256 * 1024];
	struct pollfd fd = { .fd = vm->sock, .events = POLLIN };
	size_t len;
	ssize_t n;

	flush(vm);
	if (ad_guest_link_peek(vm->link, &len))
		fd.events |= POLLOUT;
	poll(&fd, 1, timeout_ms);
	n = read(vm->sock, data, sizeof(data));
	if (n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR)) {
		vm->gone = true;
		return;
	}
	if (n > 0 && vm->first_byte_at == 0)
		vm->first_byte_at = vm_now();
	if (n > 0 && !ad_guest_link_feed(vm->link, data, (size_t)n)) {
		fprintf(stderr, "# the link broke: %s\n", ad_guest_link_error(vm->link));
		vm->gone = true;
	}
	flush(vm);
}

bool vm_wait(struct vm *vm, bool (*condition)(const struct vm *vm, const void *arg),
	     const void *arg, uint64_t timeout_ms)
{
	uint64_t end = vm_now() + timeout_ms;

	while (!(condition && condition(vm, arg)) && !vm->gone && vm_now() < end)
		pump(vm, 20);
	return condition && condition(vm, arg);
}

/* ---- the machine */

static bool is_ready(const struct vm *vm, const void *arg)
{
	(void)arg;
	return vm->ready;
}

bool vm_setup(struct vm *vm, uint64_t realtime_ns)
{
	struct ad_guest_msg msg = { .type = AD_GUEST_SETUP };

	vm->ready = false;
	msg.u.setup.realtime_ns = realtime_ns;
	if (getrandom(msg.u.setup.seed, sizeof(msg.u.setup.seed), 0) < 0 ||
	    !ad_guest_link_send(vm->link, &msg))
		return false;
	return vm_wait(vm, is_ready, NULL, 120 * VM_SECOND) && vm->ready_msg.u.ready.os_errno == 0;
}

static bool is_pong(const struct vm *vm, const void *token)
{
	return vm->pong == *(const uint64_t *)token;
}

uint64_t vm_ping(struct vm *vm, uint64_t timeout_ms)
{
	uint64_t start = vm_now(), token = vm->pong + 1;
	struct ad_guest_msg msg = { .type = AD_GUEST_PING };

	msg.u.ping.token = token;
	if (!ad_guest_link_send(vm->link, &msg) || !vm_wait(vm, is_pong, &token, timeout_ms))
		return UINT64_MAX;
	return vm_now() - start;
}

bool vm_ended(struct vm *vm, uint64_t timeout_ms, int *ret_status)
{
	uint64_t end = vm_now() + timeout_ms;

	while (waitpid(vm->pid, ret_status, WNOHANG) == 0) {
		if (vm_now() > end)
			return false;
		if (!vm->gone)
			pump(vm, 10);
		else
			usleep(10000);
	}
	vm->pid = -1;
	return true;
}

void vm_free(struct vm *vm)
{
	if (vm->pid > 0) {
		kill(vm->pid, SIGKILL);
		waitpid(vm->pid, NULL, 0);
	}
	if (vm->sock >= 0)
		close(vm->sock);
	for (size_t i = 0; i < vm->task_count; i++) {
		for (int j = 0; j < AD_GUEST_STREAMS; j++)
			ad_buf_free(&vm->tasks[i].output[j]);
	}
	ad_guest_link_free(vm->link);
}

/* ---- tasks */

static struct vm_task *new_task(struct vm *vm)
{
	struct vm_task *task;

	if (vm->task_count == VM_TASKS_MAX)
		abort();
	task = &vm->tasks[vm->task_count++];
	*task = (struct vm_task){ .id = (uint32_t)vm->task_count };
	return task;
}

struct vm_task *vm_begin(struct vm *vm, const struct vm_run *run)
{
	static const char *const env[] = { "PATH=/usr/bin:/bin", "HOME=/run/home", NULL };
	const char *const shell[] = { "/bin/bash", "-c", run->script, NULL };
	struct vm_task *task = new_task(vm);
	struct ad_guest_msg msg = { .type = AD_GUEST_RUN, .id = task->id };

	task->hold = run->hold;
	msg.u.run.flags = run->flags | (run->input ? (uint32_t)AD_GUEST_RUN_STDIN : 0);
	msg.u.run.uid = msg.u.run.gid = run->uid;
	msg.u.run.limits = run->limits;
	msg.u.run.workdir = run->workdir ? run->workdir : "/tmp";
	msg.u.run.argv = run->argv ? run->argv : shell;
	msg.u.run.env = env;
	if (!ad_guest_link_send(vm->link, &msg))
		abort();
	if (run->input) {
		task->input = run->input;
		task->input_len = run->input_len;
		task->input_open = true;
		send_input(vm, task, AD_GUEST_STDIN);
	}
	flush(vm);
	return task;
}

struct vm_task *vm_files(struct vm *vm, enum ad_guest_type type, const char *path,
			 uint64_t max_bytes, FILE *files)
{
	static uint8_t data[VM_OUTPUT_MAX];
	struct vm_task *task = new_task(vm);
	struct ad_guest_msg msg = { .type = type, .id = task->id };

	msg.u.files.path = path;
	msg.u.files.max_bytes = max_bytes;
	msg.u.files.uid = msg.u.files.gid = 1000;
	if (!ad_guest_link_send(vm->link, &msg))
		abort();
	if (type == AD_GUEST_PUT) {
		task->input = data;
		task->input_len = fread(data, 1, sizeof(data), files);
		task->input_open = true;
		send_input(vm, task, AD_GUEST_FILES_IN);
	} else {
		task->files = files;
	}
	vm_wait(vm, vm_is_over, task, 60 * VM_SECOND);
	return task;
}

void vm_kill(struct vm *vm, const struct vm_task *task)
{
	struct ad_guest_msg msg = { .type = AD_GUEST_KILL, .id = task->id };

	ad_guest_link_send(vm->link, &msg);
	flush(vm);
}

void vm_release(struct vm *vm, struct vm_task *task)
{
	task->hold = false;
	for (enum ad_guest_stream i = 0; i < AD_GUEST_STREAMS; i++) {
		ad_guest_link_taken(vm->link, task->id, i, task->held[i]);
		task->held[i] = 0;
	}
}

bool vm_is_exited(const struct vm *vm, const void *task)
{
	(void)vm;
	return ((const struct vm_task *)task)->exited;
}

bool vm_is_over(const struct vm *vm, const void *arg)
{
	const struct vm_task *task = arg;

	(void)vm;
	return task->failed || task->closed || task->done;
}

bool vm_finish(struct vm *vm, const struct vm_task *task)
{
	return vm_wait(vm, vm_is_over, task, 120 * VM_SECOND) && task->closed &&
	       task->survivors == 0;
}

struct vm_task *vm_do(struct vm *vm, const struct vm_run *run)
{
	struct vm_task *task = vm_begin(vm, run);

	vm_finish(vm, task);
	return task;
}

struct vm_task *vm_script(struct vm *vm, const char *script)
{
	const struct vm_run run = { .script = script, .uid = 1000 };

	return vm_do(vm, &run);
}

const char *vm_text(const struct vm_task *task)
{
	const char *text = task->output[AD_GUEST_STDOUT].data;

	return text ? text : "";
}
