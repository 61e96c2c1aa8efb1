/* SPDX-License-Identifier: MIT */
#include "proto/carry.h"

#include <assert.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

static const char *const types[AD_CARRY_TYPES] = {
	[AD_CARRY_PACKED] = "packed", [AD_CARRY_APPLIED] = "applied",
	[AD_CARRY_FAILED] = "failed", [AD_CARRY_SKIPPED] = "skipped",
	[AD_CARRY_DENIED] = "denied", [AD_CARRY_CONFLICT] = "conflict",
	[AD_CARRY_ERROR] = "error",
};

static const struct {
	const char *name, *text;
	unsigned int types; /* that it may be the reason of */
} reasons[AD_CARRY_REASONS] = {
#define SKIPPED (1U << AD_CARRY_SKIPPED)
#define DENIED (1U << AD_CARRY_DENIED)
#define CONFLICT (1U << AD_CARRY_CONFLICT)
#define ERROR (1U << AD_CARRY_ERROR)
#define FAILED (1U << AD_CARRY_FAILED)
	[AD_CARRY_SYSTEM] = { "system", "refused by the system", ERROR | FAILED },
	[AD_CARRY_SPECIAL] = { "special", "is a socket, pipe or device", SKIPPED },
	[AD_CARRY_UNREADABLE] = { "unreadable", "cannot be read", SKIPPED },
	[AD_CARRY_LONG] = { "long", "the path is too long", SKIPPED | DENIED },
	[AD_CARRY_UNSTABLE] = { "unstable", "changed while it was read", SKIPPED },
	[AD_CARRY_NAME] = { "name", "is no name beneath the directory", DENIED },
	[AD_CARRY_KIND] = { "kind", "is no file, directory or link", DENIED },
	[AD_CARRY_SET_ID] = { "set_id", "set-id bits were taken off", DENIED },
	[AD_CARRY_PARENT] = { "parent", "is not in a directory that is there", DENIED },
	[AD_CARRY_LINK] = { "link", "is a link to what was not made here", DENIED },
	[AD_CARRY_APPEARED] = { "appeared", "has come into being meanwhile", CONFLICT },
	[AD_CARRY_CHANGED] = { "changed", "has changed meanwhile", CONFLICT },
	[AD_CARRY_GONE] = { "gone", "has gone meanwhile", CONFLICT },
	[AD_CARRY_NOT_EMPTY] = { "not_empty", "the directory holds other files", CONFLICT },
	[AD_CARRY_BYTES] = { "bytes", "is beyond the limit of bytes", FAILED },
	[AD_CARRY_ENTRIES] = { "entries", "is beyond the limit of files", FAILED },
	[AD_CARRY_FORMAT] = { "format", "the archive is malformed", FAILED },
	[AD_CARRY_CUT] = { "cut", "the archive is incomplete", FAILED },
	[AD_CARRY_USAGE] = { "usage", "wrong arguments", FAILED },
#undef SKIPPED
#undef DENIED
#undef CONFLICT
#undef ERROR
#undef FAILED
};

enum { ERRNO_MAX = 4095 };

static bool is_sum(enum ad_carry_type type)
{
	return type == AD_CARRY_PACKED || type == AD_CARRY_APPLIED;
}

const char *ad_carry_reason_text(enum ad_carry_reason reason)
{
	return reasons[reason].text;
}

static bool is_plain(unsigned char byte)
{
	return byte > ' ' && byte < 0x7f && byte != '%';
}

size_t ad_carry_encode(const struct ad_carry_record *record, char buf[static AD_CARRY_LINE_MAX])
{
	static const char digits[] = "0123456789abcdef";
	const char *path = record->path;
	size_t len;
	int head;

	if (is_sum(record->type)) {
		head = snprintf(buf, AD_CARRY_LINE_MAX, "%s %" PRIu64 " %" PRIu64 " %" PRIu64 "\n",
				types[record->type], record->entries, record->bytes,
				record->untold);
		return (size_t)head;
	}
	assert(reasons[record->reason].types & 1U << record->type);
	head = snprintf(buf, AD_CARRY_LINE_MAX, "%s %s %d ", types[record->type],
			reasons[record->reason].name, record->os_errno);
	len = (size_t)head;
	for (size_t i = 0; path[i] && i < AD_CARRY_PATH_MAX - 1; i++) {
		unsigned char byte = (unsigned char)path[i];

		if (is_plain(byte)) {
			buf[len++] = (char)byte;
		} else {
			buf[len++] = '%';
			buf[len++] = digits[byte >> 4];
			buf[len++] = digits[byte & 15];
		}
	}
	buf[len++] = '\n';
	buf[len] = '\0';
	return len;
}

/* ---- reading */

/* The word at *at, which becomes a string; *at moves behind the blank after it. */
static const char *take_word(char **at)
{
	char *word = *at, *end = strchr(word, ' ');

	if (end)
		*end++ = '\0';
	*at = end ? end : word + strlen(word);
	return word;
}

static bool take_number(char **at, uint64_t max, uint64_t *ret)
{
	const char *word = take_word(at);

	*ret = 0;
	if (word[0] == '\0' || (word[0] == '0' && word[1] != '\0'))
		return false;
	for (; *word; word++) {
		unsigned int digit = (unsigned int)(*word - '0');

		if (digit > 9 || *ret > (max - digit) / 10)
			return false;
		*ret = *ret * 10 + digit;
	}
	return true;
}

static int hex(char digit)
{
	if (digit >= '0' && digit <= '9')
		return digit - '0';
	return digit >= 'a' && digit <= 'f' ? digit - 'a' + 10 : -1;
}

/* In place. */
static bool unescape(char *path)
{
	size_t len = 0;

	for (const char *from = path; *from; from++) {
		int high, low, byte;

		if (*from != '%') {
			if (!is_plain((unsigned char)*from))
				return false;
			path[len++] = *from;
			continue;
		}
		high = hex(from[1]);
		low = high < 0 ? -1 : hex(from[2]);
		byte = high * 16 + low;
		if (low < 0 || byte == 0 || is_plain((unsigned char)byte))
			return false;
		path[len++] = (char)byte;
		from += 2;
	}
	path[len] = '\0';
	return len > 0 && len < AD_CARRY_PATH_MAX;
}

static int find_reason(const char *name)
{
	int i = 0;

	while (i < AD_CARRY_REASONS && strcmp(reasons[i].name, name) != 0)
		i++;
	return i;
}

static bool decode(struct ad_carry_record *ret, char *line)
{
	size_t len = strlen(line);
	const char *word;
	uint64_t error;
	int type = 0, reason;

	if (len == 0 || line[len - 1] == ' ')
		return false;
	word = take_word(&line);
	while (type < AD_CARRY_TYPES && strcmp(types[type], word) != 0)
		type++;
	if (type == AD_CARRY_TYPES)
		return false;
	*ret = (struct ad_carry_record){ .type = (enum ad_carry_type)type };
	if (is_sum(ret->type))
		return take_number(&line, UINT64_MAX, &ret->entries) &&
		       take_number(&line, UINT64_MAX, &ret->bytes) &&
		       take_number(&line, UINT64_MAX, &ret->untold) && *line == '\0';
	reason = find_reason(take_word(&line));
	if (reason == AD_CARRY_REASONS || !(reasons[reason].types & 1U << type) ||
	    !take_number(&line, ERRNO_MAX, &error) || (reason == AD_CARRY_SYSTEM) != (error != 0) ||
	    !unescape(line))
		return false;
	ret->reason = (enum ad_carry_reason)reason;
	ret->os_errno = (int)error;
	ret->path = line;
	return true;
}

/* Whether a record may come now. */
static bool in_order(struct ad_carry_reader *reader, const struct ad_carry_record *record)
{
	if (reader->over)
		return false;
	switch (record->type) {
	case AD_CARRY_PACKED:
		if (reader->packed)
			return false;
		reader->packed = true;
		reader->notes = 0;
		return true;
	case AD_CARRY_APPLIED:
		reader->over = true;
		return reader->packed;
	case AD_CARRY_FAILED:
		reader->over = true;
		return true;
	case AD_CARRY_SKIPPED:
		return !reader->packed && reader->notes++ < AD_CARRY_NOTES_MAX;
	case AD_CARRY_DENIED:
	case AD_CARRY_CONFLICT:
	case AD_CARRY_ERROR:
		return reader->packed && reader->notes++ < AD_CARRY_NOTES_MAX;
	case AD_CARRY_TYPES:
		break;
	}
	return false;
}

bool ad_carry_feed(struct ad_carry_reader *reader, const uint8_t *data, size_t len)
{
	for (size_t i = 0; i < len && !reader->bad; i++) {
		struct ad_carry_record record;
		char byte = (char)data[i];

		if (byte != '\n') {
			/* With room for the NUL that the newline becomes. */
			if (byte == '\0' || reader->len == sizeof(reader->line) - 1)
				reader->bad = true;
			else
				reader->line[reader->len++] = byte;
			continue;
		}
		reader->line[reader->len] = '\0';
		reader->len = 0;
		if (decode(&record, reader->line) && in_order(reader, &record))
			reader->record(&record, reader->userdata);
		else
			reader->bad = true;
	}
	return !reader->bad;
}

bool ad_carry_complete(const struct ad_carry_reader *reader)
{
	return !reader->bad && reader->over && reader->len == 0;
}
