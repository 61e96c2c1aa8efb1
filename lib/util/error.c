/* SPDX-License-Identifier: MIT */
#include "util/util.h"

#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include <agentd/backend.h>

enum { MESSAGE_MAX = 4096 };

struct agentd_error {
	ad_refcount refs;
	int code;
	int os_errno;
	const char *pointer; /* behind the message, in the same block */
	const char *message;
	char text[];
};

/* Handed out when not even an error can be allocated. Never counted, never
 * written to. */
static agentd_error out_of_memory = {
	.code = AGENTD_ERR_NOMEM,
	.pointer = "",
	.message = "out of memory",
};

const char *agentd_strerror(int code)
{
	switch (code) {
	case AGENTD_ERR_INVALID:
		return "invalid argument";
	case AGENTD_ERR_NOMEM:
		return "out of memory";
	case AGENTD_ERR_STATE:
		return "not valid in this state";
	case AGENTD_ERR_REENTRANT:
		return "not allowed from inside this callback";
	case AGENTD_ERR_DENIED:
		return "denied by policy";
	case AGENTD_ERR_UNSUPPORTED:
		return "unsupported";
	case AGENTD_ERR_NOTFOUND:
		return "not found";
	case AGENTD_ERR_LIMIT:
		return "quota used up";
	case AGENTD_ERR_AGAIN:
		return "try again";
	case AGENTD_ERR_TIMEOUT:
		return "timed out";
	case AGENTD_ERR_CANCELED:
		return "canceled";
	case AGENTD_ERR_SYSTEM:
		return "system call failed";
	case AGENTD_ERR_BACKEND:
		return "backend failed";
	case AGENTD_ERR_PROTOCOL:
		return "protocol violation";
	case AGENTD_ERR_ABI:
		return "incompatible ABI";
	case AGENTD_ERR_USER:
		return "error of the host program";
	case AGENTD_ERR_INTERNAL:
		return "internal error";
	default:
		return code >= 0 ? "success" : "unknown error";
	}
}

/* A message is one line, whatever input it quotes, and of bounded length; a
 * cut never splits a character. */
static size_t tidy(char *message, size_t len)
{
	if (len > MESSAGE_MAX) {
		len = MESSAGE_MAX - 3;
		while (len > 0 && ((uint8_t)message[len] & 0xc0) == 0x80)
			len--;
		memcpy(message + len, "...", 4);
		len += 3;
	}
	for (size_t i = 0; i < len; i++) {
		if ((uint8_t)message[i] < ' ' || message[i] == 0x7f)
			message[i] = '?';
	}
	return len;
}

/* Takes text; never NULL. */
static agentd_error *build(int code, int os_errno, const char *pointer, struct ad_buf *text)
{
	size_t pointer_size = strlen(pointer) + 1, len, total;
	agentd_error *err;

	if (text->failed || !text->data)
		return &out_of_memory;
	len = tidy(text->data, text->len);
	if (__builtin_add_overflow(sizeof(*err) + len + 1, pointer_size, &total))
		return &out_of_memory;
	err = malloc(total);
	if (!err)
		return &out_of_memory;
	atomic_init(&err->refs, 1);
	err->code = code;
	err->os_errno = os_errno;
	memcpy(err->text, text->data, len + 1);
	memcpy(err->text + len + 1, pointer, pointer_size);
	err->message = err->text;
	err->pointer = err->text + len + 1;
	return err;
}

static void append_args(struct ad_buf *text, const char *fmt, va_list args) AD_PRINTF(2, 0);
static void append_args(struct ad_buf *text, const char *fmt, va_list args)
{
	char *formatted = NULL;

	if (vasprintf(&formatted, fmt, args) < 0) {
		text->failed = true;
		return;
	}
	ad_buf_puts(text, formatted);
	free(formatted);
}

int ad_fail(agentd_error **reterr, int code, const char *pointer, const char *fmt, ...)
{
	ad_autobuf struct ad_buf text = { 0 };
	int saved = errno;
	va_list args;

	assert(code < 0);
	if (!reterr)
		return code;
	va_start(args, fmt);
	append_args(&text, fmt, args);
	va_end(args);
	*reterr = build(code, 0, pointer ? pointer : "", &text);
	errno = saved;
	return code;
}

int ad_fail_errno(agentd_error **reterr, int os_errno, const char *fmt, ...)
{
	int code = os_errno == ENOMEM ? AGENTD_ERR_NOMEM : AGENTD_ERR_SYSTEM;
	const char *description = strerrordesc_np(os_errno);
	ad_autobuf struct ad_buf text = { 0 };
	int saved = errno;
	va_list args;

	if (!reterr)
		return code;
	va_start(args, fmt);
	append_args(&text, fmt, args);
	va_end(args);
	ad_buf_printf(&text, ": %s (os error %d)", description ? description : "Unknown error",
		      os_errno);
	*reterr = build(code, os_errno, "", &text);
	errno = saved;
	return code;
}

int ad_fail_nomem(agentd_error **reterr)
{
	if (reterr)
		*reterr = &out_of_memory;
	return AGENTD_ERR_NOMEM;
}

/* Put a new error in the place of *reterr, unless there was no memory for it. */
static void replace(agentd_error **reterr, agentd_error *err)
{
	if (err == &out_of_memory)
		return;
	agentd_error_unref(*reterr);
	*reterr = err;
}

void ad_error_prefix(agentd_error **reterr, const char *fmt, ...)
{
	ad_autobuf struct ad_buf text = { 0 };
	int saved = errno;
	va_list args;

	if (!reterr || !*reterr || *reterr == &out_of_memory)
		return;
	va_start(args, fmt);
	append_args(&text, fmt, args);
	va_end(args);
	ad_buf_puts(&text, (*reterr)->message);
	replace(reterr, build((*reterr)->code, (*reterr)->os_errno, (*reterr)->pointer, &text));
	errno = saved;
}

void ad_error_prefix_pointer(agentd_error **reterr, const char *prefix)
{
	ad_autobuf struct ad_buf text = { 0 }, pointer = { 0 };
	int saved = errno;

	if (!reterr || !*reterr || *reterr == &out_of_memory)
		return;
	ad_buf_puts(&text, (*reterr)->message);
	ad_buf_puts(&pointer, prefix);
	if (ad_buf_puts(&pointer, (*reterr)->pointer))
		replace(reterr, build((*reterr)->code, (*reterr)->os_errno, pointer.data, &text));
	errno = saved;
}

int ad_error_at(int r, const char *pointer, agentd_error **reterr)
{
	if (r < 0)
		ad_error_prefix_pointer(reterr, pointer);
	return r;
}

agentd_error *agentd_error_create(int code, int os_errno, const char *message)
{
	ad_autobuf struct ad_buf text = { 0 };
	agentd_error *err;
	int saved = errno;

	ad_buf_puts(&text, message ? message : agentd_strerror(code));
	err = build(code < 0 ? code : AGENTD_ERR_INTERNAL, os_errno, "", &text);
	errno = saved;
	return err;
}

agentd_error *agentd_error_ref(agentd_error *err)
{
	if (err && err != &out_of_memory)
		ad_ref(&err->refs);
	return err;
}

void agentd_error_unref(agentd_error *err)
{
	if (err && err != &out_of_memory && ad_unref(&err->refs))
		agentd_free(err);
}

int agentd_error_code(const agentd_error *err)
{
	return err ? err->code : AGENTD_OK;
}

int agentd_error_os_errno(const agentd_error *err)
{
	return err ? err->os_errno : 0;
}

const char *agentd_error_message(const agentd_error *err)
{
	return err ? err->message : "";
}

const char *agentd_error_pointer(const agentd_error *err)
{
	return err ? err->pointer : "";
}
