/* SPDX-License-Identifier: MIT */
/* The carrier's process and its three pipes. It runs in the sandbox that the command would
 * have without a machine, with the same paths and protected names: what it reads came from
 * the guest, and what it writes is the host's. The archive goes by its stdout, changes by
 * its stdin, and what became of them by its stderr (proto/carry.h). */
#include "backend/microvm/private.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <agentd/backend.h>
#include <agentd/log.h>

#include "proto/carry.h"

enum { CHUNK = AD_GUEST_DATA_MAX, READS_PER_WAKE = 8 };

/* Each way, without what the other side takes its time for; a disk that hangs must not
 * hang the command. */
static const uint64_t way_ns = 60000 * AD_NS_PER_MS;

enum way { PACKING, WAITING, APPLYING };

struct carrier {
	agentd_task *task;
	const agentd_spec *spec;
	struct ad_loop *loop;
	const struct carrier_events *events;
	void *userdata;
	struct ad_job *job;
	enum way way;
	int in, out, report; /* our ends of its stdin, stdout, stderr; or -1 */
	struct ad_io writable, readable, reporting;
	/* of the archive, not yet taken */
	uint8_t *chunk;
	size_t chunk_at, chunk_len;
	bool archive_ended, told_packed;
	/* of the changes, not yet written */
	struct ad_buf changes;
	bool changes_ended;
	struct ad_carry_reader reader;
	uint64_t entries, bytes;
	struct ad_timer timer;
	agentd_error *err; /* why it failed */
	int wait_status;
};

/* ---- the end */

static void close_fd(struct ad_io *io, int *fd)
{
	if (*fd < 0)
		return;
	ad_io_stop(io);
	close(ad_steal_fd(fd));
}

static void close_all(struct carrier *carrier)
{
	close_fd(&carrier->writable, &carrier->in);
	close_fd(&carrier->readable, &carrier->out);
	close_fd(&carrier->reporting, &carrier->report);
}

/* Takes err; what is to come follows from the first. */
static void fail(struct carrier *carrier, agentd_error *err)
{
	if (carrier->err)
		agentd_error_unref(err);
	else
		carrier->err = err;
	(void)ad_job_kill(carrier->job);
}

static void fail_read(struct carrier *carrier, struct ad_io *io, int *fd)
{
	agentd_error *err = NULL;

	ad_fail_errno(&err, errno, "what carries the working directory cannot be heard");
	close_fd(io, fd);
	fail(carrier, err);
}

static void timer_fired(struct ad_timer *timer, void *userdata)
{
	struct carrier *carrier = userdata;

	(void)timer;
	fail(carrier,
	     agentd_error_create(AGENTD_ERR_TIMEOUT, 0,
				 carrier->way == PACKING ?
					 "the working directory could not be read within 60 s" :
					 "the working directory could not be written within "
					 "60 s"));
}

/* ---- what it tells */

static void note_failure(struct carrier *carrier, const struct ad_carry_record *record)
{
	bool limit = record->reason == AD_CARRY_BYTES || record->reason == AD_CARRY_ENTRIES;

	if (carrier->err)
		return;
	if (record->os_errno)
		ad_fail_errno(&carrier->err, record->os_errno, "the working directory: \"%s\"",
			      record->path);
	else
		ad_fail(&carrier->err, limit ? AGENTD_ERR_LIMIT : AGENTD_ERR_BACKEND, NULL,
			"the working directory: \"%s\": %s", record->path,
			ad_carry_reason_text(record->reason));
}

static void on_record(const struct ad_carry_record *record, void *userdata)
{
	struct carrier *carrier = userdata;
	const char *why = record->os_errno ? strerror(record->os_errno) :
					     ad_carry_reason_text(record->reason);
	ad_autobuf struct ad_buf text = { 0 };

	switch (record->type) {
	case AD_CARRY_PACKED:
	case AD_CARRY_APPLIED:
		carrier->entries = record->entries;
		carrier->bytes = record->bytes;
		if (record->untold == 0)
			return;
		ad_buf_printf(&text, "%" PRIu64 " more files of the working directory were not %s",
			      record->untold,
			      record->type == AD_CARRY_PACKED ? "carried in" : "carried back");
		break;
	case AD_CARRY_FAILED:
		note_failure(carrier, record);
		return;
	case AD_CARRY_DENIED:
	case AD_CARRY_CONFLICT:
	case AD_CARRY_ERROR: /* what is protected is read-only, for one */
		agentd_task_denied(carrier->task, "path", record->path,
				   record->type == AD_CARRY_CONFLICT ? "conflict" : "workdir", why);
		return;
	default:
		ad_buf_printf(&text, "the working directory: \"%s\" was not carried: %s",
			      record->path, why);
		break;
	}
	if (!text.failed)
		agentd_task_log(carrier->task, AGENTD_LOG_WARN, text.data);
}

static void on_report(struct ad_io *io, void *userdata)
{
	struct carrier *carrier = userdata;
	uint8_t text[4096];

	(void)io;
	while (carrier->report >= 0) {
		ssize_t n = read(carrier->report, text, sizeof(text));

		/* Who asks for what is there asks once. */
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0 && errno == EAGAIN)
			return;
		if (n < 0) {
			fail_read(carrier, &carrier->reporting, &carrier->report);
			return;
		}
		if (n == 0) {
			close_fd(&carrier->reporting, &carrier->report);
			return;
		}
		if (!ad_carry_feed(&carrier->reader, text, (size_t)n)) {
			fail(carrier, agentd_error_create(AGENTD_ERR_PROTOCOL, 0,
							  "what carries the working directory said "
							  "something malformed"));
			return;
		}
	}
}

/* ---- the archive */

/* The report of a whole archive and the archive's own end come by different pipes. */
static void check_packed(struct carrier *carrier)
{
	if (carrier->told_packed || !carrier->archive_ended || carrier->err)
		return;
	if (carrier->report >= 0)
		on_report(&carrier->reporting, carrier);
	if (!carrier->reader.packed || carrier->err)
		return; /* it failed, and will say how or end */
	carrier->told_packed = true;
	carrier->way = WAITING;
	ad_timer_stop(&carrier->timer);
	carrier->events->packed(carrier, carrier->entries, carrier->bytes, carrier->userdata);
}

/* False: wait for carrier_go_on(). */
static bool pass_on(struct carrier *carrier)
{
	carrier->chunk_at += carrier->events->pack(carrier, carrier->chunk + carrier->chunk_at,
						   carrier->chunk_len - carrier->chunk_at,
						   carrier->userdata);
	return carrier->chunk_at == carrier->chunk_len;
}

static void on_archive(struct ad_io *io, void *userdata)
{
	struct carrier *carrier = userdata;

	for (int i = 0; i < READS_PER_WAKE && carrier->out >= 0; i++) {
		ssize_t n = read(carrier->out, carrier->chunk, CHUNK);

		if (n < 0 && (errno == EAGAIN || errno == EINTR))
			return;
		if (n < 0) {
			fail_read(carrier, &carrier->readable, &carrier->out);
			return;
		}
		if (n == 0) {
			close_fd(&carrier->readable, &carrier->out);
			carrier->archive_ended = true;
			check_packed(carrier);
			return;
		}
		carrier->chunk_at = 0;
		carrier->chunk_len = (size_t)n;
		if (!pass_on(carrier)) {
			/* It is not the disk that is waited for: a machine may boot still. */
			ad_timer_stop(&carrier->timer);
			ad_io_stop(io);
			return;
		}
	}
}

void carrier_go_on(struct carrier *carrier)
{
	if (carrier->out < 0 || carrier->chunk_at == carrier->chunk_len || !pass_on(carrier))
		return;
	if (ad_io_start(&carrier->readable) < 0 || ad_timer_start(&carrier->timer, way_ns) < 0)
		fail(carrier, agentd_error_create(AGENTD_ERR_NOMEM, 0, NULL));
}

/* ---- the changes */

static void on_writable(struct ad_io *io, void *userdata)
{
	struct carrier *carrier = userdata;
	struct ad_buf *changes = &carrier->changes;
	size_t written = 0;

	while (written < changes->len) {
		ssize_t n = ad_sys_write_nosignal(carrier->in, changes->data + written,
						  changes->len - written);

		if (n == -EAGAIN || n == -EINTR)
			break;
		if (n < 0) {
			/* It has ended, and says why. */
			close_fd(&carrier->writable, &carrier->in);
			return;
		}
		written += (size_t)n;
	}
	/* What is left is less than a window; what is written may come again. */
	changes->len -= written;
	if (changes->len > 0) {
		memmove(changes->data, changes->data + written, changes->len);
	} else {
		ad_io_stop(io);
		if (carrier->changes_ended)
			close_fd(&carrier->writable, &carrier->in);
	}
	if (written > 0)
		carrier->events->taken(carrier, written, carrier->userdata);
}

void carrier_apply(struct carrier *carrier, const uint8_t *data, size_t len)
{
	if (carrier->in < 0) {
		carrier->events->taken(carrier, len, carrier->userdata);
		return;
	}
	if (carrier->way != APPLYING) {
		carrier->way = APPLYING;
		(void)ad_timer_start(&carrier->timer, way_ns);
	}
	if (!ad_buf_append(&carrier->changes, data, len) || ad_io_start(&carrier->writable) < 0)
		fail(carrier, agentd_error_create(AGENTD_ERR_NOMEM, 0, NULL));
}

void carrier_end(struct carrier *carrier)
{
	carrier->changes_ended = true;
	/* What is left to be written goes first. */
	if (carrier->in >= 0 && carrier->changes.len == 0)
		close_fd(&carrier->writable, &carrier->in);
}

/* ---- its process */

static void job_started(struct ad_job *job, int32_t pid, int stdin_fd, int stdout_fd, int stderr_fd,
			const struct ad_launch_receipt *receipt, void *userdata)
{
	struct carrier *carrier = userdata;

	(void)job;
	(void)pid;
	(void)receipt;
	carrier->in = stdin_fd;
	carrier->out = stdout_fd;
	carrier->report = stderr_fd;
	ad_io_init(&carrier->writable, carrier->loop, stdin_fd, AD_IO_WRITE, on_writable, carrier);
	ad_io_init(&carrier->readable, carrier->loop, stdout_fd, AD_IO_READ, on_archive, carrier);
	ad_io_init(&carrier->reporting, carrier->loop, stderr_fd, AD_IO_READ, on_report, carrier);
	if (ad_io_start(&carrier->readable) < 0 || ad_io_start(&carrier->reporting) < 0 ||
	    ad_timer_start(&carrier->timer, way_ns) < 0)
		fail(carrier, agentd_error_create(AGENTD_ERR_NOMEM, 0, NULL));
}

static void over(struct carrier *carrier)
{
	ad_timer_stop(&carrier->timer);
	close_all(carrier);
	carrier->events->over(carrier, AD_STEAL(carrier->err), carrier->userdata);
}

static void job_failed(struct ad_job *job, agentd_error *err,
		       const struct ad_launch_failure *failure, void *userdata)
{
	struct carrier *carrier = userdata;

	(void)job;
	if (failure)
		err = ad_sandbox_explain(carrier->spec, failure, err);
	agentd_error_unref(carrier->err);
	carrier->err = err;
	over(carrier);
}

static void job_denied(struct ad_job *job, const char *kind, const char *target, void *userdata)
{
	struct carrier *carrier = userdata;

	(void)job;
	ad_sandbox_denied(carrier->task, kind, target);
}

static void job_limit_hit(struct ad_job *job, const char *limit, bool fatal, void *userdata)
{
	struct carrier *carrier = userdata;

	(void)job;
	if (fatal && !carrier->err)
		ad_fail(&carrier->err, AGENTD_ERR_LIMIT, NULL,
			"what carries the working directory exceeded its own %s", limit);
}

static void job_exited(struct ad_job *job, int wait_status, uint64_t at_ns, void *userdata)
{
	struct carrier *carrier = userdata;

	(void)job;
	(void)at_ns;
	carrier->wait_status = wait_status;
}

/* What it had to say is in the pipe still. */
static void job_closed(struct ad_job *job, const struct ad_launch_usage *usage, void *userdata)
{
	struct carrier *carrier = userdata;

	(void)job;
	(void)usage;
	if (carrier->report >= 0)
		on_report(&carrier->reporting, carrier);
	if (!carrier->err && (!ad_carry_complete(&carrier->reader) || carrier->wait_status != 0))
		ad_fail(&carrier->err, AGENTD_ERR_BACKEND, NULL,
			"what carries the working directory ended too early (%s %d)",
			WIFSIGNALED(carrier->wait_status) ? "signal" : "status",
			WIFSIGNALED(carrier->wait_status) ? WTERMSIG(carrier->wait_status) :
							    WEXITSTATUS(carrier->wait_status));
	over(carrier);
}

static const struct ad_job_events job_events = {
	.started = job_started,
	.failed = job_failed,
	.denied = job_denied,
	.limit_hit = job_limit_hit,
	.exited = job_exited,
	.closed = job_closed,
};

int carrier_new(struct microvm *vm, agentd_task *task, const agentd_spec *spec,
		const struct carrier_events *events, void *userdata, struct carrier **ret,
		agentd_error **reterr)
{
	struct carrier *carrier = calloc(1, sizeof(*carrier));
	char most[24];
	const char *argv[] = { vm->guest,     "carry", agentd_spec_workdir(spec),
			       "--max-bytes", most,    NULL };
	int r = AGENTD_ERR_NOMEM;

	if (!carrier)
		return ad_fail_nomem(reterr);
	snprintf(most, sizeof(most), "%" PRIu64, vm->workdir_bytes);
	carrier->task = task;
	carrier->spec = spec;
	carrier->loop = ad_launcher_loop(vm->launcher);
	carrier->events = events;
	carrier->userdata = userdata;
	carrier->in = carrier->out = carrier->report = -1;
	carrier->reader.record = on_record;
	carrier->reader.userdata = carrier;
	ad_timer_init(&carrier->timer, carrier->loop, timer_fired, carrier);
	carrier->chunk = malloc(CHUNK);
	if (carrier->chunk)
		r = ad_sandbox_job_start(&vm->sandbox, spec, argv, vm->workdir_bytes, &job_events,
					 carrier, &carrier->job, reterr);
	else
		ad_fail_nomem(reterr);
	if (r < 0)
		carrier_free(carrier);
	else
		*ret = carrier;
	return r;
}

void carrier_kill(struct carrier *carrier)
{
	fail(carrier, agentd_error_create(AGENTD_ERR_CANCELED, 0,
					  "the working directory was not carried back"));
}

void carrier_free(struct carrier *carrier)
{
	if (!carrier)
		return;
	ad_timer_stop(&carrier->timer);
	close_all(carrier);
	ad_job_free(carrier->job);
	ad_buf_free(&carrier->changes);
	free(carrier->chunk);
	agentd_error_unref(carrier->err);
	free(carrier);
}
