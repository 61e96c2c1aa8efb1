/* SPDX-License-Identifier: MIT */
/* What is done once in a new volume: a command of its session for each step. */
#include "pool/private.h"

#include <errno.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <agentd/exec.h>
#include <agentd/log.h>

#define TOOK_TOO_LONG "it took longer than ten minutes"
enum { COMMAND_MAX_S = 10 * 60, NO_NIX = 69, NOT_EXITED = -1 };

static struct ad_pool_entry *of_task(agentd_task *task)
{
	return AD_CONTAINER_OF(task, struct ad_pool_entry, preparation.command);
}

/* ---- what the command says */

/* The end of it is kept. */
static void keep_said(struct preparation *preparation, const char *from, size_t len)
{
	size_t keep, most = sizeof(preparation->said) - 1;

	if (len > most) {
		from += len - most;
		len = most;
	}
	keep = preparation->said_len + len > most ? most - len : preparation->said_len;
	memmove(preparation->said, preparation->said + preparation->said_len - keep, keep);
	memcpy(preparation->said + keep, from, len);
	preparation->said_len = keep + len;
}

/* Everything is read, so that nobody waits for it. False: no more. */
static bool read_said(struct preparation *preparation)
{
	char buf[4096];
	ssize_t n = read(ad_io_fd(&preparation->output), buf, sizeof(buf));

	if (n < 0)
		return errno == EINTR;
	keep_said(preparation, buf, (size_t)n);
	return n > 0;
}

static void can_be_read(struct ad_io *io, void *userdata)
{
	if (!read_said(userdata))
		ad_io_stop(io);
}

static void close_output(struct preparation *preparation)
{
	if (!preparation->output_open)
		return;
	ad_io_stop(&preparation->output);
	close(ad_io_fd(&preparation->output));
	preparation->output_open = false;
}

/* What it wrote last, for the error, in a line. */
static void end_said(struct preparation *preparation)
{
	while (preparation->output_open && read_said(preparation))
		;
	close_output(preparation);
	while (preparation->said_len > 0 && preparation->said[preparation->said_len - 1] == '\n')
		preparation->said_len--;
	preparation->said[preparation->said_len] = '\0';
	for (char *at = preparation->said; *at; at++)
		if ((unsigned char)*at < ' ')
			*at = ' ';
}

/* ---- what the backend reports of it */

static void started(agentd_task *task, int32_t pid)
{
	(void)task, (void)pid;
}

static int32_t output(agentd_task *task, agentd_stream stream, const uint8_t *data, size_t len)
{
	(void)stream;
	keep_said(&of_task(task)->preparation, (const char *)data, len);
	return AGENTD_SINK_CONTINUE;
}

static int attach_fd(agentd_task *task, agentd_stream stream, int fd)
{
	struct ad_pool_entry *entry = of_task(task);
	struct preparation *preparation = &entry->preparation;

	if (stream != AGENTD_STDOUT || preparation->output_open) {
		close(fd);
		return 0;
	}
	preparation->output_open = true;
	ad_io_init(&preparation->output, entry->pool->host.loop, fd, AD_IO_READ, can_be_read,
		   preparation);
	return ad_io_start(&preparation->output);
}

static void logged(agentd_task *task, int32_t level, const char *message)
{
	const struct ad_pool_entry *entry = of_task(task);

	pool_say(entry->pool, level, message, entry->id, NULL);
}

static void denied(agentd_task *task, const char *kind, const char *target, const char *rule,
		   const char *remedy)
{
	(void)kind, (void)rule, (void)remedy;
	logged(task, AGENTD_LOG_WARN, target);
}

static void exited(agentd_task *task, int wait_status, uint64_t at_ns)
{
	(void)at_ns;
	of_task(task)->preparation.wait_status = wait_status;
	(void)ad_task_kill(task);
}

static void closed(agentd_task *task)
{
	of_task(task)->preparation.over = true;
	ad_defer(&of_task(task)->step);
}

static void failed(agentd_task *task, agentd_error *err)
{
	struct ad_pool_entry *entry = of_task(task);

	agentd_error_unref(entry->error);
	entry->error = err;
	entry->preparation.wait_status = NOT_EXITED;
	closed(task);
}

static const struct ad_task_listener listener = {
	.started = started,
	.output = output,
	.attach_fd = attach_fd,
	.denied = denied,
	.exited = exited,
	.closed = closed,
	.failed = failed,
	.log = logged,
};

/* ---- its steps */

/* False: there is nothing to do in this step. */
static bool fill_command(struct ad_pool_entry *entry)
{
	static const char nix[] = "command -v nix >/dev/null 2>&1 || exit 69\n"
				  "exec nix develop \"$1\" --command true >/dev/null\n";
	const struct pool_config *config = &entry->pool->config;
	const char *argv[] = { "/bin/sh", "-c", nix, "sh", config->nix_profile, NULL };
	struct preparation *preparation = &entry->preparation;

	preparation->spec = entry->spec.spec;
	if (preparation->step == PREPARE_NIX && config->nix_profile) {
		memcpy(preparation->nix_argv, argv, sizeof(argv));
		preparation->spec.argv = preparation->nix_argv;
		return true;
	}
	preparation->spec.argv = config->bootstrap_argv;
	return preparation->step == PREPARE_BOOTSTRAP && config->bootstrap_command;
}

static void start_command(struct ad_pool_entry *entry)
{
	struct preparation *preparation = &entry->preparation;
	ad_autoerror agentd_error *err = NULL;
	int r;

	preparation->spec.session = entry->task.state;
	preparation->spec.flags = AGENTD_EXEC_MERGE_STDERR;
	preparation->over = preparation->timed_out = false;
	preparation->wait_status = NOT_EXITED;
	preparation->said_len = 0;
	r = ad_task_start(&preparation->command, entry->task.backend, &listener, &preparation->spec,
			  &err);
	if (r < 0) {
		ad_task_release(&preparation->command);
		close_output(preparation);
	} else if (ad_timer_start(&entry->timer, COMMAND_MAX_S * AD_NS_PER_S) < 0) {
		r = ad_fail_nomem(&err);
	}
	if (r == 0)
		return;
	if (!entry->error)
		entry->error = AD_STEAL(err);
	entry_stop(entry, 0);
}

static void fail(struct ad_pool_entry *entry, const char *why)
{
	ad_fail(&entry->error, AGENTD_ERR_BACKEND, NULL, "%s: %s",
		entry->preparation.step == PREPARE_NIX ? "nix develop failed" :
							 "Bootstrap command failed",
		why);
}

/* False: the session is no good, and stops. */
static bool command_is_over(struct ad_pool_entry *entry)
{
	struct preparation *preparation = &entry->preparation;
	int status = preparation->wait_status;

	ad_timer_stop(&entry->timer);
	ad_task_release(&preparation->command);
	preparation->over = false;
	end_said(preparation);
	if (WIFEXITED(status) && WEXITSTATUS(status) == 0)
		return true;
	if (preparation->step == PREPARE_NIX && WIFEXITED(status) &&
	    WEXITSTATUS(status) == NO_NIX) {
		pool_say(entry->pool, AGENTD_LOG_WARN, "nix_profile is set and there is no nix",
			 entry->id, NULL);
		return true;
	}
	if (!entry->error)
		fail(entry, preparation->timed_out     ? TOOK_TOO_LONG :
			    status == NOT_EXITED       ? "the backend lost it" :
			    *preparation->said != '\0' ? preparation->said :
							 "it wrote nothing");
	entry_stop(entry, ENTRY_STOP_GRACE_MS);
	return false;
}

bool prepare_advance(struct ad_pool_entry *entry)
{
	struct preparation *preparation = &entry->preparation;

	if (preparation->command.backend) {
		if (!preparation->over || !command_is_over(entry))
			return false;
		preparation->step++;
	} else {
		preparation->step = volume_is_new(&entry->volume) ? PREPARE_NIX : PREPARE_DONE;
	}
	while (preparation->step != PREPARE_DONE && !fill_command(entry))
		preparation->step++;
	if (preparation->step != PREPARE_DONE) {
		start_command(entry);
		return false;
	}
	volume_not_new(&entry->volume);
	return true;
}

void prepare_timed_out(struct ad_pool_entry *entry)
{
	struct preparation *preparation = &entry->preparation;
	const uint64_t close_max_ms = entry->task.backend->ops.close_max_ms;

	if (preparation->over)
		return;
	(void)ad_task_kill(&preparation->command);
	if (!preparation->timed_out &&
	    ad_timer_start(&entry->timer, close_max_ms * AD_NS_PER_MS) == 0) {
		preparation->timed_out = true;
		return;
	}
	if (!entry->error)
		fail(entry, preparation->timed_out ? "it does not end although it was killed" :
						     TOOK_TOO_LONG);
	entry_stop(entry, 0);
}

void prepare_end(struct ad_pool_entry *entry)
{
	if (!entry->preparation.command.backend)
		return;
	ad_task_release(&entry->preparation.command);
	close_output(&entry->preparation);
}

void prepare_free(struct ad_pool_entry *entry)
{
	ad_task_abandon(&entry->preparation.command);
	close_output(&entry->preparation);
}
