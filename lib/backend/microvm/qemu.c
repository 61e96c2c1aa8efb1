/* SPDX-License-Identifier: MIT */
/* QEMU's microvm machine: one binary for KVM and for TCG. Everything it opens is handed
 * to it as a descriptor, so that it needs no name of the host's but those of its own
 * installation. docs/microvm.md says why each argument is there. */
#include "backend/microvm/engine.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <agentd/backend.h>

#include "backend/microvm/private.h"
#include "backend/microvm/qmp.h"
#include "proto/helper_msg.h"

enum {
	ARGUMENTS_MAX = 56,
	TEXTS_MAX = 12,
	SAID_MAX = 512, /* kept of what it says */
	READS_PER_WAKE = 16
};

/* Beside the guest's memory: QEMU itself takes 30 MiB, and TCG 64 MiB for code. */
#define OVERHEAD_BYTES (UINT64_C(192) << 20)

struct engine {
	struct ad_job *job;
	struct ad_loop *loop;
	const struct engine_events *events;
	void *userdata;
	struct ad_io readable;
	int output; /* or -1 */
	int wait_status;
	int control; /* our end of its control channel, until that is used; or -1 */
	struct qmp *qmp;
	agentd_error *err; /* of the control channel: then it is killed */
	size_t said_len;
	char said[SAID_MAX + 1];
};

/* ---- what it says before it dies */

static void stop_listening(struct engine *engine)
{
	if (engine->output < 0)
		return;
	ad_io_stop(&engine->readable);
	close(ad_steal_fd(&engine->output));
}

/* The end of it is what matters. One that never stops talking is heard in turns. */
static void listen_to(struct engine *engine, unsigned int reads)
{
	char text[SAID_MAX];
	ssize_t n;

	for (; engine->output >= 0 && reads > 0; reads--) {
		n = read(engine->output, text, sizeof(text));
		if (n < 0 && (errno == EAGAIN || errno == EINTR))
			return;
		if (n <= 0) {
			stop_listening(engine);
			return;
		}
		if (engine->said_len + (size_t)n > SAID_MAX) {
			size_t keep = SAID_MAX - (size_t)n;

			memmove(engine->said, engine->said + engine->said_len - keep, keep);
			engine->said_len = keep;
		}
		memcpy(engine->said + engine->said_len, text, (size_t)n);
		engine->said_len += (size_t)n;
	}
}

static void on_output(struct ad_io *io, void *userdata)
{
	(void)io;
	listen_to(userdata, READS_PER_WAKE);
}

static const char *last_words(struct engine *engine)
{
	char *at = engine->said;
	size_t len = engine->said_len;

	while (len > 0 && (at[len - 1] == '\n' || at[len - 1] == ' '))
		len--;
	at[len] = '\0';
	/* It goes in messages for people. */
	for (char *c = at; *c; c++) {
		if ((unsigned char)*c < ' ' || *c == 0x7f)
			*c = ' ';
	}
	return ad_utf8_valid(at, len) ? at : "";
}

/* ---- its process */

static void job_started(struct ad_job *job, int32_t pid, int stdin_fd, int stdout_fd, int stderr_fd,
			const struct ad_launch_receipt *receipt, void *userdata)
{
	struct engine *engine = userdata;

	(void)job;
	(void)stdin_fd;
	(void)stderr_fd;
	engine->output = stdout_fd;
	ad_io_init(&engine->readable, engine->loop, stdout_fd, AD_IO_READ, on_output, engine);
	/* Without memory for that, nobody hears what it says. */
	if (ad_io_start(&engine->readable) < 0)
		stop_listening(engine);
	engine->events->started(engine, pid, receipt, engine->userdata);
}

static void job_failed(struct ad_job *job, agentd_error *err,
		       const struct ad_launch_failure *failure, void *userdata)
{
	struct engine *engine = userdata;

	(void)job;
	if (failure)
		ad_error_prefix(&err, "the virtual machine monitor: ");
	stop_listening(engine);
	engine->events->died(engine, false, err, engine->userdata);
}

static void job_limit_hit(struct ad_job *job, const char *limit, bool fatal, void *userdata)
{
	struct engine *engine = userdata;

	(void)job;
	(void)fatal;
	engine->said_len = (size_t)snprintf(engine->said, sizeof(engine->said),
					    "it exceeded its own %s", limit);
}

static void job_exited(struct ad_job *job, int wait_status, uint64_t at_ns, void *userdata)
{
	struct engine *engine = userdata;

	(void)job;
	(void)at_ns;
	engine->wait_status = wait_status;
}

static void job_closed(struct ad_job *job, const struct ad_launch_usage *usage, void *userdata)
{
	struct engine *engine = userdata;
	ad_autobuf struct ad_buf text = { 0 };
	const char *words;

	(void)job;
	(void)usage;
	/* It is dead: what is in the pipe is all. */
	listen_to(engine, UINT_MAX);
	stop_listening(engine);
	words = last_words(engine);
	if (WIFSIGNALED(engine->wait_status))
		ad_buf_printf(&text, "the virtual machine monitor was killed by signal %d",
			      WTERMSIG(engine->wait_status));
	else
		ad_buf_printf(&text, "the virtual machine monitor ended with status %d",
			      WEXITSTATUS(engine->wait_status));
	if (words[0])
		ad_buf_printf(&text, ": %s", words);
	engine->events->died(engine, true,
			     engine->err ? AD_STEAL(engine->err) :
					   agentd_error_create(AGENTD_ERR_BACKEND, 0, text.data),
			     engine->userdata);
}

static const struct ad_job_events job_events = {
	.started = job_started,
	.failed = job_failed,
	.limit_hit = job_limit_hit,
	.exited = job_exited,
	.closed = job_closed,
};

/* ---- its command line */

/* Its descriptors begin here. */
enum { FIRST_FD = 3 };

struct arguments {
	const char *argv[ARGUMENTS_MAX + 1];
	size_t count;
	struct ad_buf texts[TEXTS_MAX]; /* what is made for this machine */
	size_t text_count;
	int fds[AD_SPAWN_MACHINE_FDS_MAX];
	size_t fd_count;
};

static void add(struct arguments *arguments, const char *option, const char *value)
{
	arguments->argv[arguments->count++] = option;
	if (value)
		arguments->argv[arguments->count++] = value;
}

/* The number that a descriptor has in the monitor. */
static int add_fd(struct arguments *arguments, int fd)
{
	arguments->fds[arguments->fd_count] = fd;
	return FIRST_FD + (int)arguments->fd_count++;
}

static const char *add_text(struct arguments *arguments, const char *fmt, ...) AD_PRINTF(2, 3);

static const char *add_text(struct arguments *arguments, const char *fmt, ...)
{
	struct ad_buf *text = &arguments->texts[arguments->text_count++];
	va_list args;

	va_start(args, fmt);
	ad_buf_vprintf(text, fmt, args);
	va_end(args);
	return text->failed ? "" : text->data;
}

static void add_kernel(struct arguments *arguments, const struct engine_config *config)
{
	/* Without a clock the kernel knows, boots under TCG hang now and then; and with none
	 * to check that one by, it would count ticks of 4 ms instead. Programs at other addresses
	 * are translated anew. */
	ad_autobuf struct ad_buf tcg = { 0 };

	if (config->accel == ACCEL_TCG)
		ad_buf_printf(&tcg, " tsc_early_khz=%" PRIu64 " tsc=reliable norandmaps",
			      config->tsc_khz);
	add(arguments, "-kernel",
	    add_text(arguments, "/proc/self/fd/%d", add_fd(arguments, config->image->kernel)));
	add(arguments, "-initrd",
	    add_text(arguments, "/proc/self/fd/%d", add_fd(arguments, config->image->initramfs)));
	add(arguments, "-append",
	    add_text(arguments,
		     "quiet loglevel=1 panic=-1 audit=0 lsm= ipv6.disable=1 nokaslr "
		     "cryptomgr.notests random.trust_cpu=on psi=0 cgroup_disable=cpuset,devices,"
		     "freezer,net_cls,perf_event,net_prio,hugetlb,rdma,misc%s",
		     tcg.len ? tcg.data : ""));
}

/* All of the same template have the same devices: there is a placeholder until a volume comes,
 * qemu_attach(). */
static void add_volume(struct arguments *arguments, const struct engine_config *config)
{
	if (config->use == ENGINE_BOOT && config->volume < 0)
		return;
	if (config->use == ENGINE_BOOT) {
		add(arguments, "-add-fd",
		    add_text(arguments, "fd=%d,set=2", add_fd(arguments, config->volume)));
		add(arguments, "-blockdev",
		    "driver=raw,node-name=vol,discard=unmap,file.driver=file,"
		    "file.filename=/dev/fdset/2,file.locking=off,file.discard=unmap");
	} else {
		add(arguments, "-blockdev",
		    "driver=raw,node-name=vol,file.driver=null-co,file.size=512,"
		    "file.read-zeroes=on");
	}
	/* Where the host has no room the guest is told: QEMU would have it stand still. */
	add(arguments, "-device",
	    "virtio-blk-device,drive=vol,serial=vol,werror=report,rerror=report");
}

/* control: the monitor's end of its control channel. */
static void add_snapshot(struct arguments *arguments, const struct engine_config *config,
			 int control)
{
	if (config->use == ENGINE_BOOT)
		return;
	add(arguments, "-chardev",
	    add_text(arguments, "socket,id=control,fd=%d", add_fd(arguments, control)));
	add(arguments, "-mon", "chardev=control,mode=control");
	add(arguments, "-object",
	    add_text(arguments,
		     "memory-backend-file,id=memory,size=%" PRIu64
		     ",mem-path=/proc/self/fd/%d,share=%s",
		     config->memory_bytes, add_fd(arguments, config->memory),
		     config->use == ENGINE_TEMPLATE ? "on" : "off"));
	if (config->use == ENGINE_CLONE)
		add(arguments, "-incoming", "defer");
}

static bool make_arguments(struct arguments *arguments, const struct engine_config *config,
			   int control)
{
	*arguments = (struct arguments){ .count = 0 };
	add(arguments, config->program, NULL);
	add(arguments, "-nodefaults", NULL);
	add(arguments, "-no-user-config", NULL);
	add(arguments, "-no-reboot", NULL);
	add(arguments, "-display", "none");
	add(arguments, "-M",
	    config->use == ENGINE_BOOT ?
		    "microvm,x-option-roms=off,isa-serial=off,pit=off,pic=off,rtc=on" :
		    "microvm,x-option-roms=off,isa-serial=off,pit=off,pic=off,rtc=on,"
		    "memory-backend=memory");
	if (config->accel == ACCEL_KVM) {
		add(arguments, "-accel", "kvm");
		add(arguments, "-cpu", "host");
	} else {
		add(arguments, "-accel", "tcg,tb-size=64");
		/* With these two the kernel and libc copy and clear memory by REP MOVSB and
		 * STOSB, which TCG runs byte by byte: docs/microvm.md. */
		add(arguments, "-cpu", "max,-erms,-fsrm");
	}
	add(arguments, "-smp", "1");
	add(arguments, "-m", add_text(arguments, "%" PRIu64 "M", config->memory_bytes >> 20));
	add(arguments, "-chardev",
	    add_text(arguments, "socket,id=agent,fd=%d", add_fd(arguments, config->channel)));
	add(arguments, "-device", "virtio-serial-device,max_ports=2");
	add(arguments, "-device", "virtserialport,chardev=agent,name=agent.0");
	add_kernel(arguments, config);
	add(arguments, "-add-fd",
	    add_text(arguments, "fd=%d,set=1", add_fd(arguments, config->image->root)));
	add(arguments, "-drive", "file=/dev/fdset/1,if=none,id=root,format=raw,readonly=on");
	add(arguments, "-device", "virtio-blk-device,drive=root,serial=root");
	add_volume(arguments, config);
	add_snapshot(arguments, config, control);
	add(arguments, "-sandbox",
	    "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny");
	for (size_t i = 0; i < arguments->text_count; i++) {
		if (arguments->texts[i].failed)
			return false;
	}
	return true;
}

static void free_arguments(struct arguments *arguments)
{
	for (size_t i = 0; i < arguments->text_count; i++)
		ad_buf_free(&arguments->texts[i]);
}

/* ---- its control channel */

static bool failed(struct engine *engine, agentd_error *err)
{
	if (err) {
		engine->err = err;
		(void)ad_job_kill(engine->job);
	}
	return err;
}

static void migrated(agentd_error *err, void *userdata)
{
	struct engine *engine = userdata;

	if (!failed(engine, err))
		engine->events->migrated(engine, engine->userdata);
}

static void attached(agentd_error *err, void *userdata)
{
	struct engine *engine = userdata;

	if (!failed(engine, err))
		engine->events->attached(engine, engine->userdata);
}

static void add_step(struct qmp_step *steps, size_t *count, const char *fmt, ...) AD_PRINTF(3, 4);

static void add_step(struct qmp_step *steps, size_t *count, const char *fmt, ...)
{
	struct qmp_step *step = &steps[(*count)++];
	va_list args;

	*step = (struct qmp_step){ .fd = -1 };
	va_start(args, fmt);
	ad_buf_vprintf(&step->command, fmt, args);
	va_end(args);
	ad_buf_puts(&step->command, "\n");
}

/* The memory is a file that both have: it is not copied. */
static void add_capabilities(struct qmp_step *steps, size_t *count)
{
	add_step(steps, count, "{\"execute\":\"qmp_capabilities\"}");
	add_step(steps, count,
		 "{\"execute\":\"migrate-set-capabilities\",\"arguments\":{\"capabilities\":["
		 "{\"capability\":\"x-ignore-shared\",\"state\":true},"
		 "{\"capability\":\"events\",\"state\":true}]}}");
}

static int talk(struct engine *engine, struct qmp_step *steps, size_t count, qmp_fn done,
		agentd_error **reterr)
{
	bool incomplete = false;
	int r = 0;

	for (size_t i = 0; i < count; i++)
		incomplete |= steps[i].command.failed;
	if (incomplete)
		r = ad_fail_nomem(reterr);
	else if (!engine->qmp)
		r = qmp_new(engine->loop, ad_steal_fd(&engine->control), engine, &engine->qmp,
			    reterr);
	if (r == 0)
		r = qmp_run(engine->qmp, steps, count, done, reterr);
	for (size_t i = 0; i < count; i++)
		ad_buf_free(&steps[i].command);
	return r;
}

static int qemu_save(struct engine *engine, int state, agentd_error **reterr)
{
	struct qmp_step steps[QMP_STEPS_MAX];
	size_t count = 0;

	add_capabilities(steps, &count);
	add_step(steps, &count, "{\"execute\":\"getfd\",\"arguments\":{\"fdname\":\"state\"}}");
	steps[count - 1].fd = state;
	add_step(steps, &count, "{\"execute\":\"migrate\",\"arguments\":{\"uri\":\"fd:state\"}}");
	steps[count - 1].migrates = true;
	return talk(engine, steps, count, migrated, reterr);
}

/* state: its number in the monitor. */
static int restore(struct engine *engine, int state, agentd_error **reterr)
{
	struct qmp_step steps[QMP_STEPS_MAX];
	size_t count = 0;

	add_capabilities(steps, &count);
	add_step(steps, &count,
		 "{\"execute\":\"migrate-incoming\",\"arguments\":{\"uri\":\"fd:%d\"}}", state);
	steps[count - 1].migrates = true;
	return talk(engine, steps, count, migrated, reterr);
}

/* The device has the node "vol" for life; what that node reads and writes is exchanged. */
static int qemu_attach(struct engine *engine, int volume, uint64_t bytes, agentd_error **reterr)
{
	struct qmp_step steps[QMP_STEPS_MAX];
	size_t count = 0;

	add_step(steps, &count, "{\"execute\":\"add-fd\",\"arguments\":{\"fdset-id\":2}}");
	steps[count - 1].fd = volume;
	add_step(steps, &count,
		 "{\"execute\":\"blockdev-add\",\"arguments\":{\"driver\":\"file\","
		 "\"node-name\":\"volume\",\"filename\":\"/dev/fdset/2\",\"locking\":\"off\","
		 "\"discard\":\"unmap\"}}");
	add_step(steps, &count,
		 "{\"execute\":\"blockdev-reopen\",\"arguments\":{\"options\":[{"
		 "\"driver\":\"raw\",\"node-name\":\"vol\",\"discard\":\"unmap\","
		 "\"file\":\"volume\"}]}}");
	/* Tells the guest how large its disk is now. */
	add_step(
		steps, &count,
		"{\"execute\":\"block_resize\",\"arguments\":{\"node-name\":\"vol\",\"size\":%" PRIu64
		"}}",
		bytes);
	return talk(engine, steps, count, attached, reterr);
}

/* ---- the engine */

static void qemu_kill(struct engine *engine)
{
	(void)ad_job_kill(engine->job);
}

static void qemu_free(struct engine *engine)
{
	if (!engine)
		return;
	stop_listening(engine);
	ad_job_free(engine->job);
	qmp_free(engine->qmp);
	if (engine->control >= 0)
		close(engine->control);
	agentd_error_unref(engine->err);
	free(engine);
}

static int start_job(struct engine *engine, const struct engine_config *config,
		     const struct arguments *arguments, agentd_error **reterr)
{
	static const char *const env[] = { "PATH=/usr/bin:/bin", "LANG=C", NULL };
	const struct ad_launch_machine machine = {
		.fds = arguments->fds,
		.fd_count = arguments->fd_count,
		.uid = config->uid,
		.gid = config->gid,
		/* Translated code would take 2 MiB for each that it begins. */
		.small_pages = config->use == ENGINE_CLONE && config->accel == ACCEL_TCG,
	};
	const struct ad_launch_request request = {
		.argv = arguments->argv,
		.env = env,
		.workdir = "/",
		.merge_stderr = true,
		.limits = {
			.size = sizeof(request.limits),
			.mem_bytes = config->memory_bytes + OVERHEAD_BYTES,
		},
		.machine = &machine,
	};

	return ad_job_start(config->launcher, &request, &job_events, engine, &engine->job, reterr);
}

/* The library's end is the engine's, the other is returned. */
static int make_control(struct engine *engine, int *ret, agentd_error **reterr)
{
	int ends[2];

	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) < 0)
		return ad_fail_errno(reterr, errno, "no control channel for the virtual machine");
	engine->control = ad_sys_high_fd(ends[0]);
	*ret = ad_sys_high_fd(ends[1]);
	if (engine->control < 0 || *ret < 0 || ad_sys_set_nonblock(engine->control) < 0)
		return ad_fail_errno(reterr, EMFILE, "no control channel for the virtual machine");
	return 0;
}

/* Each reads from the beginning. */
static int open_anew(int fd, int *ret, agentd_error **reterr)
{
	char path[32];

	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	*ret = ad_sys_high_fd(open(path, O_RDONLY | O_CLOEXEC));
	return *ret < 0 ? ad_fail_errno(reterr, -*ret, "the virtual machine's snapshot") : 0;
}

static int qemu_start(const struct engine_config *config, const struct engine_events *events,
		      void *userdata, struct engine **ret, agentd_error **reterr)
{
	struct engine *engine = calloc(1, sizeof(*engine));
	ad_autoclose int control = -1, state = -1;
	struct arguments arguments;
	int r = 0;

	if (!engine)
		return ad_fail_nomem(reterr);
	engine->output = engine->control = -1;
	engine->loop = ad_launcher_loop(config->launcher);
	engine->events = events;
	engine->userdata = userdata;
	if (config->use != ENGINE_BOOT)
		r = make_control(engine, &control, reterr);
	if (r == 0 && config->use == ENGINE_CLONE)
		r = open_anew(config->state, &state, reterr);
	if (r == 0) {
		bool made = make_arguments(&arguments, config, control);
		int number = state >= 0 ? add_fd(&arguments, state) : -1;

		r = made ? start_job(engine, config, &arguments, reterr) : ad_fail_nomem(reterr);
		free_arguments(&arguments);
		if (r == 0 && state >= 0)
			r = restore(engine, number, reterr);
	}
	if (r < 0)
		qemu_free(engine);
	else
		*ret = engine;
	return r;
}

const struct engine_ops engine_qemu = {
	.name = "qemu",
	.start = qemu_start,
	.save = qemu_save,
	.attach = qemu_attach,
	.kill = qemu_kill,
	.free = qemu_free,
};
