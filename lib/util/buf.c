/* SPDX-License-Identifier: MIT */
#include "util/util.h"

#include <stdio.h>
#include <string.h>

enum { BUF_FIRST = 64 };

void ad_buf_free(struct ad_buf *buf)
{
	agentd_free(buf->data);
	*buf = (struct ad_buf){ 0 };
}

/* Make room for extra bytes and the NUL. */
static bool reserve(struct ad_buf *buf, size_t extra)
{
	size_t need, cap;
	char *data;

	if (buf->failed)
		return false;
	if (__builtin_add_overflow(buf->len, extra, &need) ||
	    __builtin_add_overflow(need, (size_t)1, &need) || need > PTRDIFF_MAX) {
		buf->failed = true;
		return false;
	}
	if (need <= buf->cap)
		return true;
	cap = buf->cap < BUF_FIRST ? BUF_FIRST : buf->cap;
	while (cap < need)
		cap = cap > PTRDIFF_MAX / 2 ? need : cap * 2;
	data = realloc(buf->data, cap);
	if (!data) {
		buf->failed = true;
		return false;
	}
	buf->data = data;
	buf->cap = cap;
	return true;
}

bool ad_buf_append(struct ad_buf *buf, const void *data, size_t len)
{
	if (!reserve(buf, len))
		return false;
	if (len)
		memcpy(buf->data + buf->len, data, len);
	buf->len += len;
	buf->data[buf->len] = '\0';
	return true;
}

bool ad_buf_puts(struct ad_buf *buf, const char *text)
{
	return ad_buf_append(buf, text, strlen(text));
}

bool ad_buf_vprintf(struct ad_buf *buf, const char *fmt, va_list args)
{
	va_list again;
	bool ok = false;
	int len;

	va_copy(again, args);
	len = vsnprintf(NULL, 0, fmt, args);
	if (len < 0) {
		buf->failed = true;
	} else if (reserve(buf, (size_t)len)) {
		vsnprintf(buf->data + buf->len, (size_t)len + 1, fmt, again);
		buf->len += (size_t)len;
		ok = true;
	}
	va_end(again);
	return ok;
}

bool ad_buf_printf(struct ad_buf *buf, const char *fmt, ...)
{
	va_list args;
	bool ok;

	va_start(args, fmt);
	ok = ad_buf_vprintf(buf, fmt, args);
	va_end(args);
	return ok;
}

char *ad_buf_steal(struct ad_buf *buf)
{
	char *text = NULL;

	if (reserve(buf, 0)) {
		buf->data[buf->len] = '\0';
		text = AD_STEAL(buf->data);
	}
	ad_buf_free(buf);
	return text;
}
