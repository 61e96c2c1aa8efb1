/* SPDX-License-Identifier: MIT */
/* The control channel of a virtual machine monitor, with the test as the monitor. */
#include "unit.h"

#include <sys/socket.h>
#include <unistd.h>

#include <event2/event.h>

#include "backend/microvm/qmp.h"
#include "sys/sys.h"

#define GREETING "{\"QMP\": {\"version\": {}, \"capabilities\": []}}\r\n"
#define OK "{\"return\": {}}\r\n"
#define MIGRATION(status)                                                                          \
	"{\"event\": \"MIGRATION\", \"data\": {\"status\": \"" status                              \
	"\"}, \"timestamp\": {\"seconds\": 1}}\r\n"

static struct event_base *base;
static struct ad_loop *loop;
static struct qmp *qmp;
static int theirs;
static int ended;
static agentd_error *why;

static void on_done(agentd_error *err, void *userdata)
{
	ck_assert_ptr_eq(userdata, &ended);
	ended++;
	why = err;
}

/* Two commands, the second of which migrates and hands a descriptor over. */
static void begin(void)
{
	struct qmp_step steps[2] = { { .fd = -1 }, { .fd = 0, .migrates = true } };
	int ends[2];

	ended = 0;
	why = NULL;
	base = event_base_new();
	ck_assert_int_eq(ad_loop_new(base, &loop, NULL), 0);
	ck_assert_int_eq(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends), 0);
	ck_assert_int_eq(ad_sys_set_nonblock(ends[0]), 0);
	theirs = ends[1];
	ck_assert(ad_buf_puts(&steps[0].command, "one\n"));
	ck_assert(ad_buf_puts(&steps[1].command, "two\n"));
	ck_assert_int_eq(qmp_new(loop, ends[0], &ended, &qmp, NULL), 0);
	ck_assert_int_eq(qmp_run(qmp, steps, 2, on_done, NULL), 0);
	ck_assert_ptr_null(steps[0].command.data);
}

static void end(void)
{
	qmp_free(qmp);
	agentd_error_unref(why);
	if (theirs >= 0)
		close(theirs);
	ad_loop_free(loop);
	event_base_free(base);
}

static void say(const char *text)
{
	size_t len = strlen(text);

	ck_assert_int_eq(write(theirs, text, len), (ssize_t)len);
	for (int i = 0; i < 4; i++)
		event_base_loop(base, EVLOOP_NONBLOCK);
}

static void expect_heard(const char *text, size_t fds)
{
	char data[64];
	struct ad_sys_msg msg = { .data = data, .cap = sizeof(data) };

	if (!text) {
		ck_assert_int_lt(ad_sys_recv(theirs, &msg, MSG_DONTWAIT), 0);
		return;
	}
	ck_assert_int_eq(ad_sys_recv(theirs, &msg, MSG_DONTWAIT), 1);
	ck_assert_uint_eq(msg.len, strlen(text));
	ck_assert_mem_eq(data, text, msg.len);
	ck_assert_uint_eq(msg.fd_count, fds);
	ad_sys_msg_close(&msg);
}

static void expect_failure(const char *says)
{
	ck_assert_int_eq(ended, 1);
	ck_assert_ptr_nonnull(why);
	ck_assert_msg(strstr(agentd_error_message(why), says), "\"%s\" does not say \"%s\"",
		      agentd_error_message(why), says);
}

START_TEST(in_turn)
{
	struct qmp_step more = { .fd = 0 };

	begin();
	expect_heard(NULL, 0);
	say(GREETING);
	expect_heard("one\n", 0);
	say("{\"event\": \"RESUME\"}\r\n");
	expect_heard(NULL, 0);
	say(OK);
	expect_heard("two\n", 1);
	/* The end of it may come before the answer, or after. */
	say(MIGRATION("setup") MIGRATION("active"));
	say(OK);
	ck_assert_int_eq(ended, 0);
	say(MIGRATION("completed"));
	ck_assert_int_eq(ended, 1);
	ck_assert_ptr_null(why);
	/* What comes then is nobody's, until there is more to do. */
	ck_assert_int_gt(write(theirs, MIGRATION("failed"), sizeof(MIGRATION("failed")) - 1), 0);
	event_base_loop(base, EVLOOP_NONBLOCK);
	ck_assert_int_eq(ended, 1);
	ck_assert(ad_buf_puts(&more.command, "three\n"));
	ck_assert_int_eq(qmp_run(qmp, &more, 1, on_done, NULL), 0);
	expect_heard("three\n", 1);
	say(OK);
	ck_assert_int_eq(ended, 2);
	ck_assert_ptr_null(why);
	ck_assert_int_gt(write(theirs, "junk\n", 5), 0);
	event_base_loop(base, EVLOOP_NONBLOCK);
	ck_assert_int_eq(ended, 2);
	end();
}
END_TEST

START_TEST(bytewise)
{
	static const char all[] = GREETING OK MIGRATION("completed") OK;

	begin();
	for (size_t i = 0; i < sizeof(all) - 1; i++) {
		const char one[2] = { all[i], '\0' };

		ck_assert_int_eq(ended, 0);
		say(one);
	}
	ck_assert_int_eq(ended, 1);
	ck_assert_ptr_null(why);
	end();
}
END_TEST

static const struct {
	const char *said, *says;
} failures[] = {
	{ GREETING "{\"error\": {\"class\": \"GenericError\", \"desc\": \"no such thing\"}}\n",
	  "no such thing" },
	{ GREETING "{\"error\": 1}\n", "refused a command" },
	{ GREETING OK MIGRATION("failed"), "could not copy" },
	{ GREETING OK OK MIGRATION("cancelled"), "could not copy" },
	{ GREETING "[]\n", "no QMP" },
	{ GREETING "{\"return\": {}\n", "no QMP" },
	{ GREETING "\n", "no QMP" },
	{ GREETING "{\"return\": {}, \"return\": {}}\n", "no QMP" },
	{ "junk\n", "no QMP" },
};

START_TEST(goes_wrong)
{
	begin();
	say(failures[_i].said);
	expect_failure(failures[_i].says);
	end();
}
END_TEST

/* A line without an end, and an end without a line. */
START_TEST(no_line)
{
	char much[1025];

	memset(much, 'x', sizeof(much) - 1);
	much[sizeof(much) - 1] = '\0';
	begin();
	for (int i = 0; i < 64 && !ended; i++)
		say(much);
	expect_failure("more than QMP has to say");
	end();
	begin();
	say(GREETING);
	close(ad_steal_fd(&theirs));
	event_base_loop(base, EVLOOP_NONBLOCK);
	expect_failure("closed its control channel");
	end();
}
END_TEST

/* Nobody who could take a command is there any more. */
START_TEST(deaf)
{
	begin();
	ck_assert_int_gt(write(theirs, GREETING, sizeof(GREETING) - 1), 0);
	ck_assert_int_eq(shutdown(theirs, SHUT_RD), 0);
	event_base_loop(base, EVLOOP_NONBLOCK);
	expect_failure("takes no commands");
	end();
}
END_TEST

int main(void)
{
	TCase *tc = tcase_create("qmp");

	tcase_add_test(tc, in_turn);
	tcase_add_test(tc, bytewise);
	tcase_add_loop_test(tc, goes_wrong, 0, sizeof(failures) / sizeof(failures[0]));
	tcase_add_test(tc, no_line);
	tcase_add_test(tc, deaf);
	return unit_run("qmp", tc);
}
