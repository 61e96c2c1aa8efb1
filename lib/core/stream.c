/* SPDX-License-Identifier: MIT */
/* Output: from a pipe or a backend to the sink, capped, paced and counted. */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#include "core/core.h"
#include "sys/sys.h"

enum {
	STDERR_LOG_MAX = 65536,
	READS_PER_WAKE = 4,       /* then other events of the host get their turn */
	FULL_PIPE = 65536,        /* a read of this size means that the pipe was full (pipe(7)) */
	LARGE_PIPE = 1 << 20,     /* /proc/sys/fs/pipe-max-size */
	FINAL_READ_MAX = 4 << 20, /* more than a pipe holds: its writer is alive elsewhere */
};

static void stream_close(struct ad_stream *stream)
{
	stream->eof = true;
	if (!stream->attached)
		return;
	ad_io_stop(&stream->io);
	close(ad_io_fd(&stream->io));
	stream->attached = false;
}

/* stderr is repeated as one log record at the end if all of it was UTF-8: keep
 * the last STDERR_LOG_MAX bytes, letting the buffer grow to twice that between
 * two moves. */
static void keep_stderr(agentd_exec *exec, const uint8_t *data, size_t len)
{
	struct ad_buf *tail = &exec->stderr_tail;

	if (exec->runner->flags & AGENTD_RUNNER_NO_STDERR_LOG)
		return;
	if (!ad_utf8_feed(&exec->stderr_utf8, data, len) || tail->failed) {
		ad_buf_free(tail);
		return;
	}
	if (len > STDERR_LOG_MAX) {
		data += len - STDERR_LOG_MAX;
		exec->stderr_kept_from += tail->len + len - STDERR_LOG_MAX;
		tail->len = 0;
		len = STDERR_LOG_MAX;
	}
	if (tail->len + len > (size_t)2 * STDERR_LOG_MAX) {
		size_t keep = STDERR_LOG_MAX - len;

		memmove(tail->data, tail->data + tail->len - keep, keep);
		exec->stderr_kept_from += tail->len - keep;
		tail->len = keep;
	}
	ad_buf_append(tail, data, len);
}

/* Cut at the front on a character's first byte, and trailing white space (Unicode's, as
 * Rust's trim_end) left out. */
void ad_streams_log_stderr(agentd_exec *exec)
{
	struct ad_buf *tail = &exec->stderr_tail;
	size_t start = 0, end = tail->len;

	if (!tail->data || tail->failed || end == 0 || !ad_utf8_done(&exec->stderr_utf8))
		return;
	if (end > STDERR_LOG_MAX)
		start = end - STDERR_LOG_MAX;
	while ((exec->stderr_kept_from || start) && start < end &&
	       ((unsigned char)tail->data[start] & 0xc0) == 0x80)
		start++;
	end = start + ad_params_trim_end(tail->data + start, end - start);
	tail->data[end] = '\0';
	if (!memchr(tail->data + start, '\0', end - start))
		(void)ad_log_sink(exec, AGENTD_LOG_WARN, "shell", tail->data + start, false);
}

static void sink_failed(agentd_exec *exec, int32_t code)
{
	exec->sink_failed = true;
	if (!exec->error)
		ad_fail(&exec->error, code, NULL, "the sink refused output: %s",
			agentd_strerror(code));
	ad_exec_stop(exec, AGENTD_CAUSE_SINK, true);
}

/* How many of len bytes the output limit still lets through. */
static size_t within_limit(agentd_exec *exec, size_t len)
{
	uint64_t limit = exec->spec.limits.output_bytes;
	size_t allowed = len;

	if (limit == 0)
		return len;
	if (exec->delivered >= limit)
		allowed = 0;
	else if (len > limit - exec->delivered)
		allowed = (size_t)(limit - exec->delivered);
	if (allowed < len) {
		ad_exec_note_limit(exec, "output_bytes");
		if (exec->flags & AGENTD_EXEC_KILL_ON_OUTPUT)
			ad_exec_stop(exec, AGENTD_CAUSE_OUTPUT, true);
	}
	return allowed;
}

int32_t ad_stream_deliver(struct ad_stream *stream, const uint8_t *data, size_t len)
{
	agentd_exec *exec = stream->exec;
	size_t allowed;
	int32_t r;

	stream->bytes += len;
	if (exec->spec.limits.idle_timeout_ms)
		exec->active_at = ad_sys_now_ns();
	if (stream->number == AGENTD_STDERR)
		keep_stderr(exec, data, len);
	allowed = exec->sink_failed ? 0 : within_limit(exec, len);
	exec->dropped += len - allowed;
	if (allowed == 0)
		return AGENTD_SINK_CONTINUE;
	exec->delivered += allowed;
	r = ad_sink_output(exec->binding, stream->number, data, allowed);
	if (r >= 0)
		return r;
	sink_failed(exec, r);
	return AGENTD_SINK_CONTINUE;
}

static void pause_stream(struct ad_stream *stream)
{
	stream->paused = true;
	if (stream->attached)
		ad_io_stop(&stream->io);
	else
		ad_task_set_paused(&stream->exec->task, stream->number, true);
}

/* That is no end: what the command wrote is lost, and a result must not hide it. */
static void read_failed(struct ad_stream *stream, int error)
{
	agentd_exec *exec = stream->exec;

	stream_close(stream);
	if (!exec->error)
		ad_fail_errno(&exec->error, error, "the output of the command cannot be read");
	ad_exec_stop(exec, AGENTD_CAUSE_BACKEND_LOST, true);
}

static void stream_readable(struct ad_io *io, void *userdata)
{
	struct ad_stream *stream = userdata;
	agentd_exec *exec = stream->exec;
	uint8_t *buffer = exec->runner->read_buffer;

	for (int i = 0; i < READS_PER_WAKE && stream->attached && !stream->paused; i++) {
		ssize_t n = read(ad_io_fd(io), buffer, AD_READ_CHUNK);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0 && errno == EAGAIN)
			break;
		if (n < 0)
			read_failed(stream, errno);
		else if (n == 0)
			stream_close(stream);
		if (n <= 0)
			break;
		/* A command that fills its pipe gets a larger one; where the user's share of
		 * pipe memory is used up (pipe-user-pages-soft) it keeps the small one. */
		if (n >= FULL_PIPE && !stream->enlarged) {
			stream->enlarged = true;
			(void)fcntl(ad_io_fd(io), F_SETPIPE_SZ, LARGE_PIPE);
		}
		if (ad_stream_deliver(stream, buffer, (size_t)n) == AGENTD_SINK_PAUSE)
			pause_stream(stream);
		if (n < FULL_PIPE)
			break; /* most likely empty now; level-triggered, so nothing is lost */
	}
	ad_exec_settle(exec);
}

void ad_streams_init(agentd_exec *exec)
{
	for (int i = 0; i < 2; i++) {
		exec->streams[i].exec = exec;
		exec->streams[i].number = i == 0 ? AGENTD_STDOUT : AGENTD_STDERR;
	}
}

int ad_stream_attach(agentd_exec *exec, agentd_stream number, int fd)
{
	struct ad_stream *stream = &exec->streams[number - AGENTD_STDOUT];
	int r;

	if (stream->attached || stream->eof) {
		close(fd);
		return AGENTD_ERR_STATE;
	}
	ad_io_init(&stream->io, exec->runner->loop, fd, AD_IO_READ, stream_readable, stream);
	r = ad_io_start(&stream->io);
	if (r < 0) {
		close(fd);
		return r;
	}
	stream->attached = true;
	exec->pipes = true;
	return 0;
}

bool ad_streams_over(const agentd_exec *exec)
{
	for (int i = 0; i < 2; i++)
		if (exec->streams[i].attached || (!exec->streams[i].eof && !exec->pipes))
			return false;
	return true;
}

bool ad_streams_paused(const agentd_exec *exec)
{
	return (exec->streams[0].paused && !exec->streams[0].eof) ||
	       (exec->streams[1].paused && !exec->streams[1].eof);
}

void ad_stream_resume(agentd_exec *exec, agentd_stream number)
{
	struct ad_stream *stream = &exec->streams[number - AGENTD_STDOUT];

	if (!stream->paused)
		return;
	stream->paused = false;
	if (stream->attached) {
		if (ad_io_start(&stream->io) < 0)
			sink_failed(exec, AGENTD_ERR_NOMEM);
	} else if (!stream->eof) {
		ad_task_set_paused(&exec->task, number, false);
	}
}

bool ad_streams_let_go(agentd_exec *exec)
{
	bool any = false;

	for (int i = 0; i < 2; i++) {
		struct ad_stream *stream = &exec->streams[i];

		if (!stream->paused || stream->attached || stream->eof || stream->let_go)
			continue;
		stream->let_go = any = true;
		ad_task_set_paused(&exec->task, stream->number, false);
	}
	return any;
}

void ad_streams_read_rest(agentd_exec *exec)
{
	uint8_t *buffer = exec->runner->read_buffer;

	for (int i = 0; i < 2; i++) {
		struct ad_stream *stream = &exec->streams[i];
		size_t total = 0;

		while (stream->attached && !stream->paused && total < FINAL_READ_MAX) {
			ssize_t n = read(ad_io_fd(&stream->io), buffer, AD_READ_CHUNK);

			if (n < 0 && errno == EINTR)
				continue;
			if (n < 0 && errno == EAGAIN)
				break;
			if (n <= 0) {
				stream_close(stream);
				break;
			}
			total += (size_t)n;
			if (ad_stream_deliver(stream, buffer, (size_t)n) == AGENTD_SINK_PAUSE)
				pause_stream(stream);
		}
	}
}

void ad_streams_end_pushed(agentd_exec *exec)
{
	for (int i = 0; i < 2; i++)
		if (!exec->streams[i].attached)
			exec->streams[i].eof = true;
}

void ad_streams_finish(agentd_exec *exec)
{
	uint8_t *buffer = exec->runner->read_buffer;

	for (int i = 0; i < 2; i++) {
		struct ad_stream *stream = &exec->streams[i];
		size_t total = 0;

		while (stream->attached && total < FINAL_READ_MAX) {
			ssize_t n = read(ad_io_fd(&stream->io), buffer, AD_READ_CHUNK);

			if (n < 0 && errno == EINTR)
				continue;
			if (n <= 0)
				break;
			total += (size_t)n;
			if (stream->paused) {
				stream->bytes += (uint64_t)n;
				exec->dropped += (uint64_t)n;
			} else if (ad_stream_deliver(stream, buffer, (size_t)n) ==
				   AGENTD_SINK_PAUSE) {
				stream->paused = true;
			}
		}
		if (stream->paused && !stream->attached && exec->task.running)
			ad_task_set_paused(&exec->task, stream->number, false);
		stream_close(stream);
	}
}

void ad_streams_discard(agentd_exec *exec)
{
	stream_close(&exec->streams[0]);
	stream_close(&exec->streams[1]);
}
