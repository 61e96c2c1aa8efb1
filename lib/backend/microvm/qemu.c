/* SPDX-License-Identifier: MIT */
/* QEMU's microvm machine: one binary for KVM and for TCG. Everything it opens is handed
 * to it as a descriptor, so that it needs no name of the host's but those of its own
 * installation. docs/microvm.md says why each argument is there. */
#include "backend/microvm/engine.h"

#include <errno.h>
#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <agentd/backend.h>

#include "backend/microvm/private.h"

enum {
	ARGUMENTS_MAX = 40,
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
	engine->events->died(engine, err, engine->userdata);
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
	engine->events->died(engine, agentd_error_create(AGENTD_ERR_BACKEND, 0, text.data),
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

struct arguments {
	const char *argv[ARGUMENTS_MAX + 1];
	size_t count;
	struct ad_buf machine_memory, kernel_line;
};

static void add(struct arguments *arguments, const char *option, const char *value)
{
	arguments->argv[arguments->count++] = option;
	if (value)
		arguments->argv[arguments->count++] = value;
}

static void kernel_line(struct ad_buf *line, const struct engine_config *config)
{
	ad_buf_puts(line, "quiet loglevel=1 panic=-1 audit=0 lsm= ipv6.disable=1 nokaslr "
			  "cryptomgr.notests random.trust_cpu=on");
	/* Without a clock the kernel knows, boots under TCG hang now and then. */
	if (config->accel == ACCEL_TCG)
		ad_buf_printf(line, " tsc_early_khz=%" PRIu64, config->tsc_khz);
}

static bool make_arguments(struct arguments *arguments, const struct engine_config *config)
{
	*arguments = (struct arguments){ .count = 0 };
	ad_buf_printf(&arguments->machine_memory, "%" PRIu64 "M", config->memory_bytes >> 20);
	kernel_line(&arguments->kernel_line, config);
	add(arguments, config->program, NULL);
	add(arguments, "-nodefaults", NULL);
	add(arguments, "-no-user-config", NULL);
	add(arguments, "-no-reboot", NULL);
	add(arguments, "-display", "none");
	add(arguments, "-M", "microvm,x-option-roms=off,isa-serial=off,pit=off,pic=off,rtc=on");
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
	add(arguments, "-m", arguments->machine_memory.data);
	add(arguments, "-kernel", "/proc/self/fd/4");
	add(arguments, "-initrd", "/proc/self/fd/5");
	add(arguments, "-append", arguments->kernel_line.data);
	add(arguments, "-chardev", "socket,id=agent,fd=3");
	add(arguments, "-device", "virtio-serial-device,max_ports=2");
	add(arguments, "-device", "virtserialport,chardev=agent,name=agent.0");
	add(arguments, "-add-fd", "fd=6,set=1");
	add(arguments, "-drive", "file=/dev/fdset/1,if=none,id=root,format=raw,readonly=on");
	add(arguments, "-device", "virtio-blk-device,drive=root,serial=root");
	add(arguments, "-sandbox",
	    "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny");
	return !arguments->machine_memory.failed && !arguments->kernel_line.failed;
}

static void free_arguments(struct arguments *arguments)
{
	ad_buf_free(&arguments->machine_memory);
	ad_buf_free(&arguments->kernel_line);
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
	free(engine);
}

static int qemu_start(const struct engine_config *config, const struct engine_events *events,
		      void *userdata, struct engine **ret, agentd_error **reterr)
{
	static const char *const env[] = { "PATH=/usr/bin:/bin", "LANG=C", NULL };
	/* 3, 4, 5 and 6 of make_arguments(). */
	const int fds[] = {
		config->channel,
		config->image->kernel,
		config->image->initramfs,
		config->image->root,
	};
	const struct ad_launch_machine machine = {
		.fds = fds,
		.fd_count = AD_COUNT(fds),
		.uid = config->uid,
		.gid = config->gid,
	};
	struct arguments arguments;
	struct ad_launch_request request = {
		.env = env,
		.workdir = "/",
		.merge_stderr = true,
		.limits = {
			.size = sizeof(request.limits),
			.mem_bytes = config->memory_bytes + OVERHEAD_BYTES,
		},
		.machine = &machine,
	};
	struct engine *engine = calloc(1, sizeof(*engine));
	int r = AGENTD_ERR_NOMEM;

	if (!engine)
		return ad_fail_nomem(reterr);
	engine->output = -1;
	engine->loop = ad_launcher_loop(config->launcher);
	engine->events = events;
	engine->userdata = userdata;
	if (make_arguments(&arguments, config)) {
		request.argv = arguments.argv;
		r = ad_job_start(config->launcher, &request, &job_events, engine, &engine->job,
				 reterr);
	} else {
		ad_fail_nomem(reterr);
	}
	free_arguments(&arguments);
	if (r < 0)
		free(engine);
	else
		*ret = engine;
	return r;
}

const struct engine_ops engine_qemu = {
	.name = "qemu",
	.start = qemu_start,
	.kill = qemu_kill,
	.free = qemu_free,
};
