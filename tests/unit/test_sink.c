/* SPDX-License-Identifier: MIT */
#include "unit.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include <event2/event.h>

#include "loop/loop.h"
#include "sink/sink.h"
#include "util/util.h"

enum { CHUNK = 262144 };

/* An execution, as far as the sinks are concerned: a pointer they hand on. */
struct agentd_exec {
	struct ad_sink_binding *binding;
	int resumed[3];
	bool unbind_on_resume;
	agentd_sink *unref; /* by the next callback */
};

static struct event_base *base;
static struct ad_loop *loop;
static struct agentd_exec exec_;
static struct ad_sink_binding *binding;
static uint8_t chunk[CHUNK];

static void resume(agentd_exec *exec, agentd_stream stream)
{
	exec->resumed[stream]++;
	if (exec->unbind_on_resume && exec->binding) {
		ad_sink_unbind(exec->binding);
		exec->binding = binding = NULL;
	}
}

static void setup(void)
{
	base = event_base_new();
	ck_assert_ptr_nonnull(base);
	ck_assert_int_eq(ad_loop_new(base, &loop, NULL), 0);
	memset(&exec_, 0, sizeof(exec_));
	binding = NULL;
	for (size_t i = 0; i < CHUNK; i++)
		chunk[i] = (uint8_t)(i % 251);
}

static void teardown(void)
{
	ad_sink_unbind(binding);
	if (base) {
		/* Nothing but the wake-up. */
		ck_assert_int_eq(event_base_get_num_events(base, EVENT_BASE_COUNT_ADDED), 1);
		ad_loop_free(loop);
		event_base_free(base);
	}
}

/* Bind the only reference: the binding then holds the sink. */
static void bind_only(agentd_sink *sink)
{
	ck_assert_int_eq(ad_sink_bind(sink, &exec_, loop, resume, &binding), 0);
	exec_.binding = binding;
	agentd_sink_unref(sink);
}

static void turn(void)
{
	ck_assert_int_eq(event_base_loop(base, EVLOOP_ONCE | EVLOOP_NONBLOCK), 0);
}

static int32_t out(size_t len)
{
	return ad_sink_output(binding, AGENTD_STDOUT, chunk, len);
}

static int32_t err(size_t len)
{
	return ad_sink_output(binding, AGENTD_STDERR, chunk, len);
}

/* ---- recording sinks */

struct recorder {
	char events[64];
	size_t bytes[3];
	int32_t answer; /* to output */
	int32_t log_answer;
	int destroyed;
	agentd_exec *resume_inside; /* its binding, while another one is called */
};

static void note(agentd_exec *exec, struct recorder *recorder, char event)
{
	size_t len = strlen(recorder->events);

	ck_assert_ptr_eq(exec, &exec_);
	ck_assert_uint_lt(len, sizeof(recorder->events) - 1);
	recorder->events[len] = event;
	if (exec->unref)
		agentd_sink_unref(AD_STEAL(exec->unref));
}

static void on_started(agentd_exec *exec, void *userdata)
{
	note(exec, userdata, 's');
}

static int32_t on_output(agentd_exec *exec, agentd_stream stream, const uint8_t *data, size_t len,
			 void *userdata)
{
	struct recorder *recorder = userdata;

	ck_assert_mem_eq(data, chunk, len);
	note(exec, recorder, stream == AGENTD_STDOUT ? 'o' : 'e');
	recorder->bytes[stream] += len;
	if (recorder->resume_inside)
		ad_sink_resume(recorder->resume_inside->binding, stream);
	return recorder->answer;
}

static void on_drained(agentd_exec *exec, void *userdata)
{
	note(exec, userdata, 'i');
}

static int32_t on_log(agentd_exec *exec, const agentd_log_record *record, void *userdata)
{
	struct recorder *recorder = userdata;

	ck_assert_str_eq(agentd_log_record_message(record), "hello");
	note(exec, userdata, 'l');
	return recorder->log_answer;
}

static void on_denied(agentd_exec *exec, const agentd_denial *denial, void *userdata)
{
	ck_assert_str_eq(agentd_denial_kind(denial), "net");
	ck_assert_str_eq(agentd_denial_target(denial), "example.org:443");
	ck_assert_str_eq(agentd_denial_rule(denial), "");
	ck_assert_str_eq(agentd_denial_remedy(denial), "allow it");
	note(exec, userdata, 'd');
}

static void on_exited(agentd_exec *exec, int32_t exit_code, int32_t signo, void *userdata)
{
	ck_assert_int_eq(exit_code, 3);
	ck_assert_int_eq(signo, 9);
	note(exec, userdata, 'x');
}

static void on_finished(agentd_exec *exec, agentd_result *result, void *userdata)
{
	ck_assert_ptr_eq(result, (agentd_result *)(void *)chunk);
	note(exec, userdata, 'f');
}

static void on_destroy(void *userdata)
{
	((struct recorder *)userdata)->destroyed++;
}

static const struct agentd_sink_ops recorder_ops = {
	.size = sizeof(struct agentd_sink_ops),
	.started = on_started,
	.output = on_output,
	.stdin_drained = on_drained,
	.log = on_log,
	.denied = on_denied,
	.exited = on_exited,
	.finished = on_finished,
	.destroy = on_destroy,
};

static agentd_sink *recorder_new(struct recorder *recorder)
{
	agentd_sink *sink = NULL;

	ck_assert_int_eq(agentd_sink_new(&recorder_ops, recorder, &sink, NULL), 0);
	return sink;
}

static agentd_sink *fd_new(int out_fd, int err_fd)
{
	agentd_sink *sink = NULL;

	ck_assert_int_eq(agentd_sink_new_fd(out_fd, err_fd, &sink, NULL), 0);
	return sink;
}

static agentd_sink *tee_new(agentd_sink *a, agentd_sink *b)
{
	agentd_sink *sink = NULL;

	ck_assert_int_eq(agentd_sink_new_tee(a, b, &sink, NULL), 0);
	agentd_sink_unref(a);
	agentd_sink_unref(b);
	return sink;
}

static int32_t every_event(void)
{
	agentd_denial denial = { .kind = "net", .target = "example.org:443", .remedy = "allow it" };
	agentd_log_record record = { .message = "hello" };
	int32_t ret = ad_sink_log(binding, &record);

	ad_sink_started(binding);
	out(1);
	err(2);
	ad_sink_stdin_drained(binding);
	ad_sink_denied(binding, &denial);
	ad_sink_exited(binding, 3, 9);
	ad_sink_finished(binding, (agentd_result *)(void *)chunk);
	return ret;
}

/* ---- callbacks */

START_TEST(test_callback_every_event)
{
	struct recorder recorder = { .log_answer = -5 };

	bind_only(recorder_new(&recorder));
	ck_assert_int_eq(every_event(), -5);
	ck_assert_str_eq(recorder.events, "lsoeidxf");
	ck_assert_uint_eq(ad_sink_pending(binding), 0);
	ck_assert_uint_eq(ad_sink_abandon(binding), 0);
	ck_assert_int_eq(recorder.destroyed, 0);
	ad_sink_unbind(AD_STEAL(binding));
	ck_assert_int_eq(recorder.destroyed, 1);
}
END_TEST

START_TEST(test_callback_none)
{
	struct agentd_sink_ops ops = { .size = sizeof(ops) };
	agentd_sink *sink = NULL;

	ck_assert_int_eq(agentd_sink_new(&ops, NULL, &sink, NULL), 0);
	bind_only(sink);
	ck_assert_int_eq(every_event(), 0);
	ck_assert_int_eq(out(CHUNK), AGENTD_SINK_CONTINUE);
	ck_assert(ad_sink_resume(binding, AGENTD_STDOUT));
}
END_TEST

START_TEST(test_no_sink_discards)
{
	ck_assert_int_eq(ad_sink_bind(NULL, &exec_, loop, resume, &binding), 0);
	ck_assert_int_eq(every_event(), 0);
	ck_assert_int_eq(out(CHUNK), AGENTD_SINK_CONTINUE);
	ck_assert_uint_eq(ad_sink_pending(binding), 0);
	ck_assert_uint_eq(ad_sink_abandon(binding), 0);
	ck_assert(ad_sink_resume(binding, AGENTD_STDOUT));
}
END_TEST

START_TEST(test_callback_pause)
{
	struct recorder recorder = { .answer = AGENTD_SINK_PAUSE };

	bind_only(recorder_new(&recorder));
	ck_assert_int_eq(out(10), AGENTD_SINK_PAUSE);
	ck_assert(ad_sink_paused(binding, AGENTD_STDOUT));
	ck_assert(!ad_sink_paused(binding, AGENTD_STDERR));
	ck_assert(ad_sink_resume(binding, AGENTD_STDOUT));
	ck_assert(!ad_sink_paused(binding, AGENTD_STDOUT));
	recorder.answer = -77;
	ck_assert_int_eq(out(10), -77);
	recorder.answer = 10; /* a count of bytes */
	ck_assert_int_eq(out(10), AGENTD_ERR_INVALID);
	ck_assert(!ad_sink_paused(binding, AGENTD_STDOUT));
	ck_assert_int_eq(exec_.resumed[AGENTD_STDOUT], 0);
	ad_sink_unbind(AD_STEAL(binding));
	ck_assert_int_eq(recorder.destroyed, 1);
}
END_TEST

static int destroyed_null;

static void destroy_null(void *userdata)
{
	ck_assert_ptr_null(userdata);
	destroyed_null++;
}

START_TEST(test_callback_sizes)
{
	struct {
		struct agentd_sink_ops ops;
		uint8_t tail[16];
	} larger = { .ops = { .size = sizeof(larger), .destroy = destroy_null } };
	struct agentd_sink_ops ops = { .size = sizeof(ops) - 8, .destroy = destroy_null };
	agentd_sink *sink = NULL;

	ck_assert_int_eq(agentd_sink_new(&larger.ops, NULL, &sink, NULL), 0);
	ck_assert_ptr_eq(agentd_sink_ref(sink), sink);
	agentd_sink_unref(sink);
	ck_assert_int_eq(destroyed_null, 0);
	errno = EXDEV;
	agentd_sink_unref(sink);
	ck_assert_int_eq(destroyed_null, 1);
	ck_assert_int_eq(errno, EXDEV);

	sink = NULL;
	larger.tail[15] = 1;
	ck_refused(agentd_sink_new(&larger.ops, NULL, &sink, &refused), AGENTD_ERR_ABI, "",
		   "agentd_sink_ops");
	ck_refused(agentd_sink_new(&ops, NULL, &sink, &refused), AGENTD_ERR_ABI, "", "size");
	ops.size = 0;
	ck_refused(agentd_sink_new(&ops, NULL, &sink, &refused), AGENTD_ERR_ABI, "", "size");
	ops.size = sizeof(ops);
	ops.reserved0 = 1;
	ck_refused(agentd_sink_new(&ops, NULL, &sink, &refused), AGENTD_ERR_ABI, "", "reserved0");
	ck_refused(agentd_sink_new(NULL, NULL, &sink, &refused), AGENTD_ERR_INVALID, "", "ops");
	ck_refused(agentd_sink_new(&recorder_ops, NULL, NULL, &refused), AGENTD_ERR_INVALID, "",
		   "ret");
	ck_assert_ptr_null(sink);
	ck_assert_int_eq(destroyed_null, 1);
	ck_assert_ptr_null(agentd_sink_ref(NULL));
	agentd_sink_unref(NULL);
	ck_assert_str_eq(agentd_denial_kind(NULL), "");
}
END_TEST

/* The host's last reference goes inside a callback: the binding has its own. */
START_TEST(test_unref_inside_callback)
{
	struct recorder recorder = { 0 };
	agentd_sink *sink = recorder_new(&recorder);

	bind_only(agentd_sink_ref(sink));
	exec_.unref = sink;
	ck_assert_int_eq(out(5), AGENTD_SINK_CONTINUE);
	ck_assert_int_eq(recorder.destroyed, 0);
	ck_assert_int_eq(out(5), AGENTD_SINK_CONTINUE);
	ad_sink_unbind(AD_STEAL(binding));
	ck_assert_int_eq(recorder.destroyed, 1);
}
END_TEST

enum { REFS = 20000 };

static void *ref_often(void *userdata)
{
	for (int i = 0; i < REFS; i++)
		agentd_sink_unref(agentd_sink_ref(userdata));
	agentd_sink_unref(userdata);
	return NULL;
}

START_TEST(test_refs_from_threads)
{
	struct recorder recorder = { 0 };
	agentd_sink *sink = recorder_new(&recorder);
	pthread_t thread[4];

	for (size_t i = 0; i < AD_COUNT(thread); i++)
		ck_assert_int_eq(pthread_create(&thread[i], NULL, ref_often, agentd_sink_ref(sink)),
				 0);
	agentd_sink_unref(sink);
	for (size_t i = 0; i < AD_COUNT(thread); i++)
		ck_assert_int_eq(pthread_join(thread[i], NULL), 0);
	ck_assert_int_eq(recorder.destroyed, 1);
}
END_TEST

/* ---- buffers */

/* Feed total bytes in pieces and compare with what must be there. */
static void check_buffer(size_t head, size_t tail, size_t total, size_t piece)
{
	size_t limit = head + tail, want = total < limit ? total : limit, len;
	uint8_t *all = malloc(total + 1);
	const uint8_t *data = NULL;
	agentd_sink *sink = NULL;
	uint64_t dropped;

	ck_assert_ptr_nonnull(all);
	for (size_t i = 0; i < total; i++)
		all[i] = (uint8_t)(i * 7 + i / 256);
	ck_assert_int_eq(agentd_sink_new_buffer(head, tail, &sink, NULL), 0);
	ck_assert_int_eq(ad_sink_bind(sink, &exec_, loop, resume, &binding), 0);
	for (size_t at = 0; at < total; at += piece) {
		size_t now = total - at < piece ? total - at : piece;

		/* Not with ck_assert(), which writes to its parent every time. */
		if (ad_sink_output(binding, AGENTD_STDERR, all + at, now) != AGENTD_SINK_CONTINUE)
			ck_abort_msg("not taken: %zu at %zu", now, at);
		/* Looking at it in between changes nothing. */
		if (at % 3 == 0 && agentd_sink_buffer_get(sink, AGENTD_STDERR, &data, &len, NULL))
			ck_abort_msg("not to be had at %zu", at);
	}
	ck_assert_int_eq(agentd_sink_buffer_get(sink, AGENTD_STDERR, &data, &len, &dropped), 0);
	ck_assert_ptr_nonnull(data);
	ck_assert_uint_eq(len, want);
	ck_assert_uint_eq(dropped, total - want);
	if (total <= limit) {
		ck_assert(memcmp(data, all, len) == 0);
	} else {
		ck_assert(memcmp(data, all, head) == 0);
		ck_assert(memcmp(data + head, all + total - tail, tail) == 0);
	}
	ck_assert_int_eq(agentd_sink_buffer_get(sink, AGENTD_STDOUT, &data, &len, &dropped), 0);
	ck_assert_uint_eq(len, 0);
	ck_assert_uint_eq(dropped, 0);
	ad_sink_unbind(AD_STEAL(binding));
	agentd_sink_unref(sink);
	free(all);
}

START_TEST(test_buffer_boundaries)
{
	static const size_t sizes[] = { 0, 1, 2, 7, 64 };

	for (size_t h = 0; h < AD_COUNT(sizes); h++) {
		for (size_t t = 0; t < AD_COUNT(sizes); t++) {
			size_t limit = sizes[h] + sizes[t];

			for (size_t total = 0; total <= 2 * limit + 3; total++) {
				check_buffer(sizes[h], sizes[t], total, 1);
				check_buffer(sizes[h], sizes[t], total, 5);
				check_buffer(sizes[h], sizes[t], total, total + 1);
			}
		}
	}
}
END_TEST

START_TEST(test_buffer_large_pieces)
{
	static const size_t limits[][2] = {
		{ 100000, 300000 }, { CHUNK, CHUNK }, { 0, 4097 }, { 5000, 0 }, { 1, CHUNK - 1 }
	};

	for (size_t i = 0; i < AD_COUNT(limits); i++) {
		size_t head = limits[i][0], tail = limits[i][1], limit = head + tail;
		size_t totals[] = { 0,     1,         head,      head + 1,      limit - 1,
				    limit, limit + 1, 2 * limit, 3 * CHUNK + 17 };

		for (size_t j = 0; j < AD_COUNT(totals); j++) {
			check_buffer(head, tail, totals[j], CHUNK);
			check_buffer(head, tail, totals[j], 4096);
			check_buffer(head, tail, totals[j], 1001);
		}
	}
}
END_TEST

START_TEST(test_buffer_grows_on_demand)
{
	const uint8_t *data = NULL;
	agentd_sink *sink = NULL;
	uint64_t dropped = 1;
	size_t len = 1;

	/* More than there is: it must not be allocated at once. */
	ck_assert_int_eq(agentd_sink_new_buffer(SIZE_MAX / 2, SIZE_MAX / 2, &sink, NULL), 0);
	bind_only(agentd_sink_ref(sink));
	for (int i = 0; i < 10; i++)
		ck_assert_int_eq(out(CHUNK), AGENTD_SINK_CONTINUE);
	ck_assert_int_eq(agentd_sink_buffer_get(sink, AGENTD_STDOUT, &data, &len, &dropped), 0);
	ck_assert_uint_eq(len, 10 * CHUNK);
	ck_assert_uint_eq(dropped, 0);
	ck_assert(memcmp(data + 9 * CHUNK, chunk, CHUNK) == 0);
	agentd_sink_unref(sink);
}
END_TEST

START_TEST(test_buffer_out_of_memory)
{
	struct rlimit limit, saved;
	const uint8_t *data = NULL;
	agentd_sink *sink = NULL;
	uint64_t dropped, sent = 0;
	int32_t code = 0;
	size_t len;

	/* The address space of sanitizers and valgrind cannot be limited. */
	if (unit_instrumented())
		return;
	ck_assert_int_eq(agentd_sink_new_buffer(1U << 30, 1U << 30, &sink, NULL), 0);
	bind_only(agentd_sink_ref(sink));
	ck_assert_int_eq(getrlimit(RLIMIT_AS, &saved), 0);
	limit = saved;
	limit.rlim_cur = 256U << 20;
	ck_assert_int_eq(setrlimit(RLIMIT_AS, &limit), 0);
	while (code == 0 && sent < 1U << 30) {
		code = out(CHUNK);
		sent += CHUNK;
	}
	ck_assert_int_eq(code, AGENTD_ERR_NOMEM);
	ck_assert_int_eq(out(1), AGENTD_ERR_NOMEM);
	ck_assert_int_eq(setrlimit(RLIMIT_AS, &saved), 0);
	ck_assert_int_eq(out(1), AGENTD_ERR_NOMEM); /* no hole in the middle */
	ck_assert_int_eq(agentd_sink_buffer_get(sink, AGENTD_STDOUT, &data, &len, &dropped), 0);
	ck_assert_uint_gt(len, 0);
	ck_assert_uint_eq(len + dropped, sent + 2);
	ck_assert_int_eq(err(CHUNK), AGENTD_SINK_CONTINUE);
	agentd_sink_unref(sink);
}
END_TEST

START_TEST(test_buffer_arguments)
{
	struct recorder recorder = { 0 };
	agentd_sink *sink = NULL, *other = recorder_new(&recorder);
	const uint8_t *data = NULL;
	size_t len = 0;

	ck_refused(agentd_sink_new_buffer(SIZE_MAX, 1, &sink, &refused), AGENTD_ERR_INVALID, "",
		   "large");
	ck_refused(agentd_sink_new_buffer(1, 1, NULL, &refused), AGENTD_ERR_INVALID, "", "ret");
	ck_assert_int_eq(agentd_sink_new_buffer(1, 1, &sink, NULL), 0);
	ck_assert_int_eq(agentd_sink_buffer_get(sink, AGENTD_STDIN, &data, &len, NULL),
			 AGENTD_ERR_INVALID);
	ck_assert_int_eq(agentd_sink_buffer_get(sink, 3, &data, &len, NULL), AGENTD_ERR_INVALID);
	ck_assert_int_eq(agentd_sink_buffer_get(sink, 1, NULL, &len, NULL), AGENTD_ERR_INVALID);
	ck_assert_int_eq(agentd_sink_buffer_get(sink, 1, &data, NULL, NULL), AGENTD_ERR_INVALID);
	ck_assert_int_eq(agentd_sink_buffer_get(NULL, 1, &data, &len, NULL), AGENTD_ERR_INVALID);
	ck_assert_int_eq(agentd_sink_buffer_get(other, 1, &data, &len, NULL), AGENTD_ERR_INVALID);
	ck_assert_ptr_null(data);
	ck_assert_int_eq(agentd_sink_buffer_get(sink, 1, &data, &len, NULL), 0);
	ck_assert_ptr_nonnull(data);
	agentd_sink_unref(sink);
	agentd_sink_unref(other);
}
END_TEST

/* ---- descriptors */

/* Read what there is and go on until total bytes came; they repeat chunk. */
static void drain(int fd, size_t total, size_t unit)
{
	static uint8_t got[65536];
	size_t seen = 0;

	while (seen < total) {
		struct pollfd pfd = { .fd = fd, .events = POLLIN };
		ssize_t n;

		turn();
		if (poll(&pfd, 1, 1000) != 1)
			ck_abort_msg("nothing more after %zu of %zu bytes", seen, total);
		n = read(fd, got, sizeof(got));
		ck_assert_int_gt(n, 0);
		for (ssize_t i = 0; i < n; i++, seen++)
			if (got[i] != chunk[seen % unit])
				ck_abort_msg("byte %zu differs", seen);
	}
	ck_assert_uint_eq(seen, total);
	turn();
}

/* The reader is slow: the command pauses, nothing is lost, the flags stay. */
static void check_slow_reader(int reader, int writer)
{
	int flags = fcntl(writer, F_GETFL);
	size_t sent = 0;
	int32_t code;

	bind_only(fd_new(writer, -1));
	errno = EXDEV;
	do {
		code = out(CHUNK);
		sent += CHUNK;
	} while (code == AGENTD_SINK_CONTINUE && sent < 256U * CHUNK);
	ck_assert_int_eq(errno, EXDEV);
	ck_assert_int_eq(code, AGENTD_SINK_PAUSE);
	ck_assert(ad_sink_paused(binding, AGENTD_STDOUT));
	ck_assert_uint_gt(ad_sink_pending(binding), 0);
	ck_assert_uint_le(ad_sink_pending(binding), CHUNK);
	/* The host cannot resume what the descriptor holds. */
	ck_assert(!ad_sink_resume(binding, AGENTD_STDOUT));
	ck_assert_int_eq(fcntl(writer, F_GETFL), flags);
	drain(reader, sent, CHUNK);
	ck_assert_uint_eq(ad_sink_pending(binding), 0);
	ck_assert(!ad_sink_paused(binding, AGENTD_STDOUT));
	ck_assert_int_eq(exec_.resumed[AGENTD_STDOUT], 1);
	ck_assert_int_eq(exec_.resumed[AGENTD_STDERR], 0);
	ck_assert_int_eq(fcntl(writer, F_GETFL), flags);
	ck_assert_int_eq(out(100), AGENTD_SINK_CONTINUE);
	drain(reader, 100, CHUNK);
	close(reader);
	close(writer);
}

START_TEST(test_fd_full_pipe)
{
	int p[2];

	ck_assert_int_eq(pipe(p), 0);
	check_slow_reader(p[0], p[1]);
}
END_TEST

START_TEST(test_fd_full_pipe_nonblocking)
{
	int p[2];

	ck_assert_int_eq(pipe2(p, O_NONBLOCK), 0);
	check_slow_reader(p[0], p[1]);
}
END_TEST

/* Named pipes cannot be written with RWF_NOWAIT: the polled way. */
START_TEST(test_fd_full_fifo)
{
	char path[] = "/tmp/agentd-test-sink-XXXXXX", name[64];
	int reader, writer;

	ck_assert_ptr_nonnull(mkdtemp(path));
	snprintf(name, sizeof(name), "%s/fifo", path);
	ck_assert_int_eq(mkfifo(name, 0600), 0);
	reader = open(name, O_RDONLY | O_NONBLOCK | O_CLOEXEC);
	writer = open(name, O_WRONLY | O_CLOEXEC);
	unlink(name);
	rmdir(path);
	ck_assert_int_ge(reader, 0);
	ck_assert_int_ge(writer, 0);
	check_slow_reader(reader, writer);
}
END_TEST

START_TEST(test_fd_full_socket)
{
	int s[2];

	ck_assert_int_eq(socketpair(AF_UNIX, SOCK_STREAM, 0, s), 0);
	check_slow_reader(s[0], s[1]);
}
END_TEST

/* A terminal in its usual mode turns one newline into two characters, and takes
 * few before it blocks. A blocked write would end this by time-out. */
static void check_terminal(bool newlines)
{
	int master = posix_openpt(O_RDWR | O_NOCTTY | O_CLOEXEC), slave, flags;
	size_t sent = 0, got = 0, per_byte = newlines ? 2 : 1;
	uint8_t data[4096];
	int32_t code = 0;

	ck_assert_int_ge(master, 0);
	ck_assert_int_eq(grantpt(master), 0);
	ck_assert_int_eq(unlockpt(master), 0);
	slave = open(ptsname(master), O_RDWR | O_NOCTTY | O_CLOEXEC);
	ck_assert_int_ge(slave, 0);
	flags = fcntl(slave, F_GETFL);
	memset(chunk, newlines ? '\n' : 'x', CHUNK);
	bind_only(fd_new(slave, slave));
	for (int i = 0; code == AGENTD_SINK_CONTINUE && i < 4; i++) {
		code = out(CHUNK);
		sent += CHUNK;
	}
	ck_assert_int_eq(code, AGENTD_SINK_PAUSE);
	for (int i = 0; i < 200; i++)
		turn(); /* as often as it says that it is writable, or not */
	ck_assert_int_eq(fcntl(slave, F_GETFL), flags);
	while (got < sent * per_byte) {
		struct pollfd pfd = { .fd = master, .events = POLLIN };
		ssize_t n;

		turn();
		if (poll(&pfd, 1, 1000) != 1)
			ck_abort_msg("nothing more after %zu bytes", got);
		n = read(master, data, (got / 7) % sizeof(data) + 1);
		ck_assert_int_gt(n, 0);
		got += (size_t)n;
	}
	turn();
	ck_assert_uint_eq(got, sent * per_byte);
	ck_assert_int_eq(exec_.resumed[AGENTD_STDOUT], 1);
	close(slave);
	close(master);
}

START_TEST(test_fd_terminal)
{
	check_terminal(_i == 1);
}
END_TEST

START_TEST(test_fd_both_the_same)
{
	size_t first = 0, second;
	int p[2], pauses = 0;

	ck_assert_int_eq(pipe(p), 0);
	bind_only(fd_new(p[1], p[1]));
	ck_assert_int_eq(out(1000), AGENTD_SINK_CONTINUE);
	ck_assert_int_eq(err(1000), AGENTD_SINK_CONTINUE);
	drain(p[0], 2000, 1000);
	while (!pauses) {
		pauses = out(1000) == AGENTD_SINK_PAUSE;
		first += 1000;
	}
	second = ad_sink_pending(binding);
	ck_assert(!ad_sink_paused(binding, AGENTD_STDERR));
	/* Behind what is waiting, not in the middle of it. */
	ck_assert_int_eq(err(1000), AGENTD_SINK_PAUSE);
	ck_assert_uint_eq(ad_sink_pending(binding), second + 1000);
	drain(p[0], first + 1000, 1000);
	ck_assert_int_eq(exec_.resumed[AGENTD_STDOUT], 1);
	ck_assert_int_eq(exec_.resumed[AGENTD_STDERR], 1);
	close(p[0]);
	close(p[1]);
}
END_TEST

START_TEST(test_fd_two_pipes)
{
	int p[2], q[2];

	ck_assert_int_eq(pipe(p), 0);
	ck_assert_int_eq(pipe(q), 0);
	bind_only(fd_new(p[1], q[1]));
	ck_assert_int_eq(out(CHUNK), AGENTD_SINK_PAUSE);
	ck_assert_int_eq(err(1000), AGENTD_SINK_CONTINUE);
	drain(q[0], 1000, CHUNK);
	ck_assert_int_eq(exec_.resumed[AGENTD_STDOUT], 0);
	ck_assert_int_eq(err(CHUNK), AGENTD_SINK_PAUSE);
	drain(p[0], CHUNK, CHUNK);
	ck_assert_int_eq(exec_.resumed[AGENTD_STDOUT], 1);
	ck_assert_int_eq(exec_.resumed[AGENTD_STDERR], 0);
	drain(q[0], CHUNK, CHUNK);
	ck_assert_int_eq(exec_.resumed[AGENTD_STDERR], 1);
	close(p[0]);
	close(p[1]);
	close(q[0]);
	close(q[1]);
}
END_TEST

START_TEST(test_fd_none)
{
	bind_only(fd_new(-1, -1));
	ck_assert_int_eq(out(CHUNK), AGENTD_SINK_CONTINUE);
	ck_assert_int_eq(err(CHUNK), AGENTD_SINK_CONTINUE);
	ck_assert_uint_eq(ad_sink_pending(binding), 0);
}
END_TEST

START_TEST(test_fd_bounded)
{
	int p[2];

	ck_assert_int_eq(pipe(p), 0);
	bind_only(fd_new(p[1], -1));
	ck_assert_int_eq(out(CHUNK), AGENTD_SINK_PAUSE);
	/* Who does not heed that gets one output in, not two. */
	ck_assert_int_eq(out(CHUNK), AGENTD_ERR_LIMIT);
	ck_assert_uint_le(ad_sink_pending(binding), CHUNK);
	close(p[0]);
	close(p[1]);
}
END_TEST

START_TEST(test_fd_abandon)
{
	size_t pending;
	int p[2];

	ck_assert_int_eq(pipe(p), 0);
	bind_only(fd_new(p[1], p[1]));
	ck_assert_int_eq(out(CHUNK), AGENTD_SINK_PAUSE);
	pending = ad_sink_pending(binding);
	ck_assert_uint_eq(ad_sink_abandon(binding), pending);
	ck_assert_uint_eq(ad_sink_pending(binding), 0);
	ck_assert_uint_eq(ad_sink_abandon(binding), 0);
	drain(p[0], CHUNK - pending, CHUNK);
	ck_assert_int_eq(exec_.resumed[AGENTD_STDOUT], 0);
	close(p[0]);
	close(p[1]);
}
END_TEST

/* ---- errors of descriptors */

static sigset_t current_mask(void)
{
	sigset_t mask;

	ck_assert_int_eq(pthread_sigmask(SIG_SETMASK, NULL, &mask), 0);
	return mask;
}

static bool is_pending(int signo)
{
	sigset_t set;

	ck_assert_int_eq(sigpending(&set), 0);
	return sigismember(&set, signo);
}

static bool same_mask(const sigset_t *a, const sigset_t *b)
{
	for (int signo = 1; signo < NSIG; signo++)
		if (sigismember(a, signo) != sigismember(b, signo))
			return false;
	return true;
}

/* SIGPIPE and SIGXFSZ have their deadly default here. */
static void check_fails(int fd)
{
	sigset_t before = current_mask(), after;

	bind_only(fd_new(fd, -1));
	errno = EXDEV;
	ck_assert_int_eq(out(1000), AGENTD_ERR_SYSTEM);
	ck_assert_int_eq(out(1000), AGENTD_ERR_SYSTEM); /* and stays */
	ck_assert_int_eq(errno, EXDEV);
	ck_assert_uint_eq(ad_sink_pending(binding), 0);
	ck_assert_uint_eq(ad_sink_abandon(binding), 0); /* the caller was told */
	after = current_mask();
	ck_assert(same_mask(&before, &after));
	ck_assert(!is_pending(SIGPIPE));
	ck_assert(!is_pending(SIGXFSZ));
	ad_sink_unbind(AD_STEAL(binding));
	close(fd);
}

static sigset_t block(int signo)
{
	sigset_t set;

	sigemptyset(&set);
	sigaddset(&set, signo);
	ck_assert_int_eq(pthread_sigmask(SIG_BLOCK, &set, NULL), 0);
	return set;
}

static void unblock(const sigset_t *set)
{
	ck_assert_int_eq(pthread_sigmask(SIG_UNBLOCK, set, NULL), 0);
}

START_TEST(test_fd_no_reader)
{
	sigset_t set;
	int p[2];

	if (_i == 1)
		set = block(SIGPIPE);
	ck_assert_int_eq(pipe(p), 0);
	close(p[0]);
	check_fails(p[1]);
	ck_assert_int_eq(socketpair(AF_UNIX, SOCK_STREAM, 0, p), 0);
	close(p[0]);
	check_fails(p[1]);
	if (_i == 1)
		unblock(&set);
}
END_TEST

START_TEST(test_fd_no_reader_signal_pending)
{
	const struct timespec now = { 0 };
	sigset_t set = block(SIGPIPE);
	int p[2];

	ck_assert_int_eq(raise(SIGPIPE), 0);
	ck_assert_int_eq(pipe(p), 0);
	close(p[0]);
	bind_only(fd_new(p[1], -1));
	ck_assert_int_eq(out(1000), AGENTD_ERR_SYSTEM);
	ck_assert(is_pending(SIGPIPE)); /* the host's own is still there */
	ck_assert_int_eq(sigtimedwait(&set, NULL, &now), SIGPIPE);
	unblock(&set);
	close(p[1]);
}
END_TEST

START_TEST(test_fd_device_full)
{
	int fd = open("/dev/full", O_WRONLY | O_CLOEXEC);

	ck_assert_int_ge(fd, 0);
	check_fails(fd);
}
END_TEST

START_TEST(test_fd_file_size_limit)
{
	struct rlimit limit, saved;
	FILE *file = tmpfile();
	int set, restored;
	struct stat st;
	int32_t code;

	ck_assert_ptr_nonnull(file);
	ck_assert_int_eq(getrlimit(RLIMIT_FSIZE, &saved), 0);
	limit = saved;
	limit.rlim_cur = 500;
	bind_only(fd_new(fileno(file), -1));
	/* check itself writes to a file. */
	set = setrlimit(RLIMIT_FSIZE, &limit);
	code = out(1000);
	restored = setrlimit(RLIMIT_FSIZE, &saved);
	ck_assert_int_eq(set, 0);
	ck_assert_int_eq(restored, 0);
	ck_assert_int_eq(code, AGENTD_ERR_SYSTEM);
	ck_assert(!is_pending(SIGXFSZ));
	ck_assert_int_eq(fstat(fileno(file), &st), 0);
	ck_assert_int_eq(st.st_size, 500);
	fclose(file);
}
END_TEST

START_TEST(test_fd_closed_by_host)
{
	int fd = open("/dev/null", O_WRONLY | O_CLOEXEC);

	ck_assert_int_ge(fd, 0);
	bind_only(fd_new(fd, -1));
	close(fd);
	ck_assert_int_eq(out(1000), AGENTD_ERR_SYSTEM);
}
END_TEST

START_TEST(test_fd_reader_leaves_later)
{
	size_t pending;
	int p[2];

	ck_assert_int_eq(pipe(p), 0);
	bind_only(fd_new(p[1], p[1]));
	ck_assert_int_eq(out(CHUNK), AGENTD_SINK_PAUSE);
	pending = ad_sink_pending(binding);
	close(p[0]);
	turn();
	ck_assert_int_eq(exec_.resumed[AGENTD_STDOUT], 1); /* to learn of it */
	ck_assert_int_eq(exec_.resumed[AGENTD_STDERR], 0);
	ck_assert_uint_eq(ad_sink_pending(binding), 0);
	ck_assert(!ad_sink_paused(binding, AGENTD_STDOUT));
	ck_assert_int_eq(out(10), AGENTD_ERR_SYSTEM);
	ck_assert_int_eq(err(10), AGENTD_ERR_SYSTEM);
	ck_assert_uint_eq(ad_sink_abandon(binding), pending);
	ck_assert_uint_eq(ad_sink_abandon(binding), 0);
	close(p[1]);
}
END_TEST

START_TEST(test_fd_unbound_by_resume)
{
	int p[2];

	ck_assert_int_eq(pipe(p), 0);
	bind_only(tee_new(fd_new(p[1], p[1]), fd_new(-1, -1)));
	exec_.unbind_on_resume = true;
	ck_assert_int_eq(out(CHUNK), AGENTD_SINK_PAUSE);
	ck_assert_int_eq(err(CHUNK), AGENTD_SINK_PAUSE);
	drain(p[0], 2 * CHUNK, CHUNK);
	ck_assert_ptr_null(binding);
	ck_assert_int_eq(exec_.resumed[AGENTD_STDOUT], 1);
	ck_assert_int_eq(exec_.resumed[AGENTD_STDERR], 0);
	close(p[0]);
	close(p[1]);
}
END_TEST

START_TEST(test_fd_base_freed)
{
	int p[2], q[2];

	ck_assert_int_eq(pipe(p), 0);
	ck_assert_int_eq(pipe(q), 0);
	bind_only(fd_new(p[1], q[1]));
	ck_assert_int_eq(out(CHUNK), AGENTD_SINK_PAUSE);
	event_base_free(base);
	base = NULL;
	ck_assert_int_eq(err(CHUNK), AGENTD_ERR_SYSTEM); /* cannot be waited for */
	ck_assert_uint_gt(ad_sink_abandon(binding), 0);
	ad_sink_unbind(AD_STEAL(binding));
	ad_loop_free(loop);
	close(p[0]);
	close(p[1]);
	close(q[0]);
	close(q[1]);
}
END_TEST

START_TEST(test_fd_regular_file)
{
	FILE *file = tmpfile();
	uint8_t got[1000];
	struct stat st;
	int fd;

	ck_assert_ptr_nonnull(file);
	fd = fileno(file);
	bind_only(fd_new(fd, fd));
	for (int i = 0; i < 20; i++)
		ck_assert_int_eq(out(CHUNK), AGENTD_SINK_CONTINUE);
	ck_assert_int_eq(err(1000), AGENTD_SINK_CONTINUE);
	ck_assert_int_eq(fstat(fd, &st), 0);
	ck_assert_int_eq(st.st_size, 20 * CHUNK + 1000);
	ck_assert_int_eq(pread(fd, got, sizeof(got), 20 * CHUNK), 1000);
	ck_assert_mem_eq(got, chunk, 1000);
	fclose(file);
}
END_TEST

START_TEST(test_fd_arguments)
{
	agentd_sink *sink = NULL;
	int fd = open("/dev/null", O_RDONLY | O_CLOEXEC);

	ck_assert_int_ge(fd, 0);
	ck_refused(agentd_sink_new_fd(-1, -1, NULL, &refused), AGENTD_ERR_INVALID, "", "ret");
	ck_refused(agentd_sink_new_fd(-2, -1, &sink, &refused), AGENTD_ERR_INVALID, "", "out_fd");
	ck_refused(agentd_sink_new_fd(-1, fd, &sink, &refused), AGENTD_ERR_INVALID, "", "err_fd");
	close(fd);
	ck_refused(agentd_sink_new_fd(fd, -1, &sink, &refused), AGENTD_ERR_SYSTEM, "", "out_fd");
	fd = open("/dev/null", O_PATH | O_CLOEXEC);
	ck_refused(agentd_sink_new_fd(fd, -1, &sink, &refused), AGENTD_ERR_INVALID, "",
		   "not open for writing");
	close(fd);
	ck_assert_ptr_null(sink);
}
END_TEST

/* ---- tees */

START_TEST(test_tee_every_event)
{
	struct recorder a = { 0 }, b = { .log_answer = 4 };

	bind_only(tee_new(recorder_new(&a), recorder_new(&b)));
	ck_assert_int_eq(every_event(), 4);
	ck_assert_str_eq(a.events, "lsoeidxf");
	ck_assert_str_eq(b.events, "lsoeidxf");
	a.log_answer = -3;
	memset(a.events, 0, sizeof(a.events));
	ck_assert_int_eq(every_event(), -3);
	ad_sink_unbind(AD_STEAL(binding));
	ck_assert_int_eq(a.destroyed, 1);
	ck_assert_int_eq(b.destroyed, 1);
}
END_TEST

/* Each part answers one of three ways. */
START_TEST(test_tee_answers)
{
	static const int32_t answers[] = { AGENTD_SINK_CONTINUE, AGENTD_SINK_PAUSE, -9 };

	for (size_t i = 0; i < AD_COUNT(answers); i++) {
		for (size_t j = 0; j < AD_COUNT(answers); j++) {
			struct recorder a = { .answer = answers[i] }, b = { .answer = answers[j] };
			int32_t want = a.answer < 0 || b.answer < 0 ? -9 : a.answer | b.answer;
			bool paused = a.answer == 1 || b.answer == 1;

			bind_only(tee_new(recorder_new(&a), recorder_new(&b)));
			ck_assert_int_eq(out(100), want);
			ck_assert_uint_eq(a.bytes[1], 100);
			ck_assert_uint_eq(b.bytes[1], 100);
			ck_assert_int_eq(ad_sink_paused(binding, AGENTD_STDOUT), paused);
			ck_assert(!ad_sink_paused(binding, AGENTD_STDERR));
			ck_assert(ad_sink_resume(binding, AGENTD_STDERR));
			ck_assert_int_eq(ad_sink_paused(binding, AGENTD_STDOUT), paused);
			ck_assert(ad_sink_resume(binding, AGENTD_STDOUT));
			ad_sink_unbind(AD_STEAL(binding));
		}
	}
}
END_TEST

START_TEST(test_tee_resumed_inside)
{
	struct recorder a = { .answer = AGENTD_SINK_PAUSE }, b = { .resume_inside = &exec_ };

	bind_only(tee_new(recorder_new(&a), recorder_new(&b)));
	/* The host resumes, out of b's callback, what a has just paused. */
	ck_assert_int_eq(out(100), AGENTD_SINK_CONTINUE);
	b.answer = AGENTD_SINK_PAUSE;
	ck_assert_int_eq(out(100), AGENTD_SINK_PAUSE);
	ck_assert(ad_sink_resume(binding, AGENTD_STDOUT));
	ad_sink_unbind(AD_STEAL(binding));
	ck_assert_int_eq(a.destroyed + b.destroyed, 2);
}
END_TEST

/* A callback and a pipe, both paused: it goes on with the last of them. */
START_TEST(test_tee_callback_and_pipe)
{
	struct recorder a = { .answer = AGENTD_SINK_PAUSE };
	agentd_sink *pipe_sink, *callback;
	int p[2];

	ck_assert_int_eq(pipe(p), 0);
	pipe_sink = fd_new(p[1], -1);
	callback = recorder_new(&a);
	bind_only(_i == 0 ? tee_new(callback, pipe_sink) : tee_new(pipe_sink, callback));

	ck_assert_int_eq(out(CHUNK), AGENTD_SINK_PAUSE);
	ck_assert_uint_gt(ad_sink_pending(binding), 0);
	/* The pipe first. */
	drain(p[0], CHUNK, CHUNK);
	ck_assert_int_eq(exec_.resumed[AGENTD_STDOUT], 0);
	ck_assert(ad_sink_resume(binding, AGENTD_STDOUT));
	ck_assert_int_eq(exec_.resumed[AGENTD_STDOUT], 0); /* the caller knows */

	ck_assert_int_eq(out(CHUNK), AGENTD_SINK_PAUSE);
	/* The callback first. */
	ck_assert(!ad_sink_resume(binding, AGENTD_STDOUT));
	drain(p[0], CHUNK, CHUNK);
	ck_assert_int_eq(exec_.resumed[AGENTD_STDOUT], 1);
	ck_assert(!ad_sink_paused(binding, AGENTD_STDOUT));

	/* After the exit the end waits for what is pending only. */
	ck_assert_int_eq(out(CHUNK), AGENTD_SINK_PAUSE);
	ad_sink_exited(binding, 3, 9);
	drain(p[0], CHUNK, CHUNK);
	ck_assert_int_eq(exec_.resumed[AGENTD_STDOUT], 2);
	ck_assert(ad_sink_paused(binding, AGENTD_STDOUT));
	ad_sink_unbind(AD_STEAL(binding));
	ck_assert_int_eq(a.destroyed, 1);
	close(p[0]);
	close(p[1]);
}
END_TEST

START_TEST(test_tee_two_pipes)
{
	size_t pending;
	int p[2], q[2];

	ck_assert_int_eq(pipe(p), 0);
	ck_assert_int_eq(pipe(q), 0);
	bind_only(tee_new(fd_new(p[1], -1), fd_new(q[1], -1)));
	ck_assert_int_eq(out(CHUNK), AGENTD_SINK_PAUSE);
	pending = ad_sink_pending(binding);
	drain(p[0], CHUNK, CHUNK);
	ck_assert_int_eq(exec_.resumed[AGENTD_STDOUT], 0);
	ck_assert_uint_eq(ad_sink_pending(binding), pending / 2);
	drain(q[0], CHUNK, CHUNK);
	ck_assert_int_eq(exec_.resumed[AGENTD_STDOUT], 1);
	/* One reader goes: the other still gets it all. */
	close(q[0]);
	ck_assert_int_eq(out(1000), AGENTD_ERR_SYSTEM);
	drain(p[0], 1000, CHUNK);
	ck_assert_int_eq(out(CHUNK), AGENTD_ERR_SYSTEM);
	ck_assert_uint_gt(ad_sink_abandon(binding), 0);
	close(p[0]);
	close(p[1]);
	close(q[1]);
}
END_TEST

START_TEST(test_tee_nested)
{
	struct recorder a = { .answer = AGENTD_SINK_PAUSE }, b = { 0 }, c = { 0 };
	const uint8_t *data = NULL;
	agentd_sink *buffer = NULL;
	size_t len;
	int p[2];

	ck_assert_int_eq(pipe(p), 0);
	ck_assert_int_eq(agentd_sink_new_buffer(10, 10, &buffer, NULL), 0);
	bind_only(tee_new(tee_new(recorder_new(&a), fd_new(p[1], -1)),
			  tee_new(tee_new(recorder_new(&b), recorder_new(&c)),
				  agentd_sink_ref(buffer))));
	ck_assert_int_eq(out(CHUNK), AGENTD_SINK_PAUSE);
	ck_assert(!ad_sink_resume(binding, AGENTD_STDOUT));
	drain(p[0], CHUNK, CHUNK);
	ck_assert_int_eq(exec_.resumed[AGENTD_STDOUT], 1);
	ck_assert_uint_eq(b.bytes[1], CHUNK);
	ck_assert_uint_eq(c.bytes[1], CHUNK);
	ck_assert_int_eq(agentd_sink_buffer_get(buffer, AGENTD_STDOUT, &data, &len, NULL), 0);
	ck_assert_uint_eq(len, 20);
	ad_sink_unbind(AD_STEAL(binding));
	ck_assert_int_eq(a.destroyed + b.destroyed + c.destroyed, 3);
	agentd_sink_unref(buffer);
	close(p[0]);
	close(p[1]);
}
END_TEST

static int32_t unbind_inside(agentd_exec *exec, agentd_stream stream, const uint8_t *data,
			     size_t len, void *userdata)
{
	(void)exec;
	(void)stream;
	(void)data;
	(void)len;
	(void)userdata;
	ad_sink_unbind(AD_STEAL(binding));
	return AGENTD_SINK_PAUSE;
}

START_TEST(test_tee_unbound_inside)
{
	struct agentd_sink_ops ops = { .size = sizeof(ops), .output = unbind_inside };
	struct recorder b = { 0 };
	agentd_sink *sink = NULL;

	ck_assert_int_eq(agentd_sink_new(&ops, NULL, &sink, NULL), 0);
	bind_only(tee_new(sink, recorder_new(&b)));
	ck_assert_int_eq(out(100), AGENTD_SINK_CONTINUE);
	ck_assert_ptr_null(binding);
	ck_assert_str_eq(b.events, "");
	ck_assert_int_eq(b.destroyed, 1);
}
END_TEST

START_TEST(test_tee_with_itself)
{
	struct recorder a = { 0 };
	agentd_sink *sink = recorder_new(&a);

	bind_only(tee_new(sink, agentd_sink_ref(sink)));
	out(10);
	ck_assert_uint_eq(a.bytes[1], 20);
	ad_sink_unbind(AD_STEAL(binding));
	ck_assert_int_eq(a.destroyed, 1);
}
END_TEST

START_TEST(test_tee_bounded)
{
	struct recorder a = { 0 };
	agentd_sink *sink = recorder_new(&a), *one = recorder_new(&a), *tee = NULL;

	ck_refused(agentd_sink_new_tee(NULL, one, &tee, &refused), AGENTD_ERR_INVALID, "", "a ");
	ck_refused(agentd_sink_new_tee(one, NULL, &tee, &refused), AGENTD_ERR_INVALID, "", "b ");
	ck_refused(agentd_sink_new_tee(one, one, NULL, &refused), AGENTD_ERR_INVALID, "", "ret");
	for (int i = 0; i < 16; i++)
		sink = tee_new(sink, agentd_sink_ref(one));
	ck_refused(agentd_sink_new_tee(sink, one, &tee, &refused), AGENTD_ERR_LIMIT, "", "deep");
	bind_only(sink);
	out(1);
	ck_assert_uint_eq(a.bytes[1], 17);
	/* It doubles: 64 sinks are as many as there may be. */
	sink = agentd_sink_ref(one);
	for (int i = 0; i < 6; i++)
		sink = tee_new(sink, agentd_sink_ref(sink));
	ck_refused(agentd_sink_new_tee(sink, one, &tee, &refused), AGENTD_ERR_LIMIT, "", "64");
	ck_assert_ptr_null(tee);
	agentd_sink_unref(sink);
	agentd_sink_unref(one);
	ad_sink_unbind(AD_STEAL(binding));
	ck_assert_int_eq(a.destroyed, 2);
}
END_TEST

int main(void)
{
	TCase *tc = tcase_create("sink");

	tcase_add_checked_fixture(tc, setup, teardown);
	tcase_add_test(tc, test_callback_every_event);
	tcase_add_test(tc, test_callback_none);
	tcase_add_test(tc, test_no_sink_discards);
	tcase_add_test(tc, test_callback_pause);
	tcase_add_test(tc, test_callback_sizes);
	tcase_add_test(tc, test_unref_inside_callback);
	tcase_add_test(tc, test_refs_from_threads);
	tcase_add_test(tc, test_buffer_boundaries);
	tcase_add_test(tc, test_buffer_large_pieces);
	tcase_add_test(tc, test_buffer_grows_on_demand);
	tcase_add_test(tc, test_buffer_out_of_memory);
	tcase_add_test(tc, test_buffer_arguments);
	tcase_add_test(tc, test_fd_full_pipe);
	tcase_add_test(tc, test_fd_full_pipe_nonblocking);
	tcase_add_test(tc, test_fd_full_fifo);
	tcase_add_test(tc, test_fd_full_socket);
	tcase_add_loop_test(tc, test_fd_terminal, 0, 2);
	tcase_add_test(tc, test_fd_both_the_same);
	tcase_add_test(tc, test_fd_two_pipes);
	tcase_add_test(tc, test_fd_none);
	tcase_add_test(tc, test_fd_bounded);
	tcase_add_test(tc, test_fd_abandon);
	tcase_add_loop_test(tc, test_fd_no_reader, 0, 2);
	tcase_add_test(tc, test_fd_no_reader_signal_pending);
	tcase_add_test(tc, test_fd_device_full);
	tcase_add_test(tc, test_fd_file_size_limit);
	tcase_add_test(tc, test_fd_closed_by_host);
	tcase_add_test(tc, test_fd_reader_leaves_later);
	tcase_add_test(tc, test_fd_unbound_by_resume);
	tcase_add_test(tc, test_fd_base_freed);
	tcase_add_test(tc, test_fd_regular_file);
	tcase_add_test(tc, test_fd_arguments);
	tcase_add_test(tc, test_tee_every_event);
	tcase_add_test(tc, test_tee_answers);
	tcase_add_test(tc, test_tee_resumed_inside);
	tcase_add_loop_test(tc, test_tee_callback_and_pipe, 0, 2);
	tcase_add_test(tc, test_tee_two_pipes);
	tcase_add_test(tc, test_tee_nested);
	tcase_add_test(tc, test_tee_unbound_inside);
	tcase_add_test(tc, test_tee_with_itself);
	tcase_add_test(tc, test_tee_bounded);
	return unit_run("sink", tc);
}
