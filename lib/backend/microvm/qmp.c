/* SPDX-License-Identifier: MIT */
#include "backend/microvm/qmp.h"

#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <agentd/backend.h>

#include "json/json.h"
#include "sys/sys.h"

/* Events and answers are some hundred bytes, the greeting too. */
enum { LINE_MAX_BYTES = 16 * 1024, READ_SIZE = 4096 };

enum migration { MIGRATION_UNDER_WAY, MIGRATION_COMPLETED, MIGRATION_FAILED };

struct qmp {
	int fd;
	struct ad_io readable;
	struct ad_buf line;
	struct qmp_step steps[QMP_STEPS_MAX];
	size_t count, at;
	bool greeted, answered;
	enum migration migration;
	bool over;
	qmp_fn done;
	void *userdata;
};

/* Takes err. */
static void finish(struct qmp *qmp, agentd_error *err)
{
	qmp->over = true;
	ad_io_stop(&qmp->readable);
	qmp->done(err, qmp->userdata);
}

static void finish_text(struct qmp *qmp, int code, const char *text)
{
	finish(qmp, agentd_error_create(code, 0, text));
}

static void send_step(struct qmp *qmp)
{
	struct qmp_step *step = &qmp->steps[qmp->at];
	int r;

	qmp->answered = false;
	qmp->migration = MIGRATION_UNDER_WAY;
	r = ad_sys_send(qmp->fd, step->command.data, step->command.len, &step->fd,
			step->fd >= 0 ? 1 : 0, MSG_DONTWAIT);
	if (r < 0)
		finish(qmp, agentd_error_create(AGENTD_ERR_BACKEND, -r,
						"the virtual machine monitor takes no commands"));
}

/* Whether what the step waits for has come. */
static bool step_done(const struct qmp *qmp)
{
	return qmp->answered &&
	       (!qmp->steps[qmp->at].migrates || qmp->migration == MIGRATION_COMPLETED);
}

static void go_on(struct qmp *qmp)
{
	if (qmp->steps[qmp->at].migrates && qmp->migration == MIGRATION_FAILED) {
		finish_text(qmp, AGENTD_ERR_BACKEND,
			    "the virtual machine monitor could not copy the machine's state");
		return;
	}
	if (!step_done(qmp))
		return;
	if (++qmp->at == qmp->count)
		finish(qmp, NULL);
	else
		send_step(qmp);
}

static const char *text_of(const struct json_object *object, const char *key)
{
	const struct json_object *value;
	const char *text;

	return ad_json_type_of(object) == AD_JSON_OBJECT && ad_json_member(object, key, &value) &&
			       ad_json_get_string(value, "", &text, NULL) == 0 ?
		       text :
		       "";
}

static void on_error(struct qmp *qmp, const struct json_object *error)
{
	ad_autobuf struct ad_buf text = { 0 };

	ad_buf_printf(&text, "the virtual machine monitor refused a command: %s",
		      text_of(error, "desc"));
	finish_text(qmp, AGENTD_ERR_BACKEND, text.data ? text.data : "");
}

static void on_event(struct qmp *qmp, const struct json_object *message)
{
	const struct json_object *data;
	const char *status;

	if (strcmp(text_of(message, "event"), "MIGRATION") != 0 ||
	    !ad_json_member(message, "data", &data))
		return;
	status = text_of(data, "status");
	if (strcmp(status, "completed") == 0)
		qmp->migration = MIGRATION_COMPLETED;
	else if (strcmp(status, "failed") == 0 || strcmp(status, "cancelled") == 0)
		qmp->migration = MIGRATION_FAILED;
}

static void on_line(struct qmp *qmp, const char *line, size_t len)
{
	ad_autojson struct json_object *message = NULL;
	const struct json_object *part;

	if (ad_json_parse(line, len, &message, NULL) < 0 ||
	    ad_json_type_of(message) != AD_JSON_OBJECT) {
		finish_text(qmp, AGENTD_ERR_PROTOCOL,
			    "the virtual machine monitor says what is no QMP");
		return;
	}
	if (!qmp->greeted) {
		qmp->greeted = ad_json_member(message, "QMP", &part);
		if (qmp->greeted)
			send_step(qmp);
		return;
	}
	if (ad_json_member(message, "error", &part)) {
		on_error(qmp, part);
		return;
	}
	if (ad_json_member(message, "return", &part))
		qmp->answered = true;
	else
		on_event(qmp, message);
	go_on(qmp);
}

/* One line after the other; a callback may have ended it. */
static void on_lines(struct qmp *qmp)
{
	char *end;

	while (!qmp->over && (end = memchr(qmp->line.data, '\n', qmp->line.len))) {
		size_t len = (size_t)(end - qmp->line.data), all = len + 1;

		on_line(qmp, qmp->line.data, len);
		memmove(qmp->line.data, qmp->line.data + all, qmp->line.len - all);
		qmp->line.len -= all;
	}
	if (!qmp->over && qmp->line.len > LINE_MAX_BYTES)
		finish_text(qmp, AGENTD_ERR_PROTOCOL,
			    "the virtual machine monitor says more than QMP has to say");
}

static void on_readable(struct ad_io *io, void *userdata)
{
	struct qmp *qmp = userdata;
	char data[READ_SIZE];
	ssize_t n = read(ad_io_fd(io), data, sizeof(data));

	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return;
	/* What it died of is heard elsewhere. */
	if (n <= 0)
		finish_text(qmp, AGENTD_ERR_BACKEND,
			    "the virtual machine monitor closed its control channel");
	else if (!ad_buf_append(&qmp->line, data, (size_t)n))
		finish(qmp, agentd_error_create(AGENTD_ERR_NOMEM, 0, NULL));
	else
		on_lines(qmp);
}

int qmp_new(struct ad_loop *loop, int fd, void *userdata, struct qmp **ret, agentd_error **reterr)
{
	struct qmp *qmp = calloc(1, sizeof(*qmp));

	if (!qmp) {
		close(fd);
		return ad_fail_nomem(reterr);
	}
	qmp->fd = fd;
	qmp->userdata = userdata;
	ad_io_init(&qmp->readable, loop, fd, AD_IO_READ, on_readable, qmp);
	*ret = qmp;
	return 0;
}

static void free_steps(struct qmp *qmp)
{
	for (size_t i = 0; i < qmp->count; i++)
		ad_buf_free(&qmp->steps[i].command);
	qmp->count = 0;
}

int qmp_run(struct qmp *qmp, struct qmp_step *steps, size_t count, qmp_fn done,
	    agentd_error **reterr)
{
	if (ad_io_start(&qmp->readable) < 0)
		return ad_fail_nomem(reterr);
	free_steps(qmp);
	memcpy(qmp->steps, steps, count * sizeof(*steps));
	memset(steps, 0, count * sizeof(*steps));
	qmp->count = count;
	qmp->at = 0;
	qmp->done = done;
	qmp->over = false;
	if (qmp->greeted)
		send_step(qmp);
	return 0;
}

void qmp_free(struct qmp *qmp)
{
	if (!qmp)
		return;
	ad_io_stop(&qmp->readable);
	close(qmp->fd);
	ad_buf_free(&qmp->line);
	free_steps(qmp);
	free(qmp);
}
