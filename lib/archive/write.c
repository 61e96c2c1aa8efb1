/* SPDX-License-Identifier: MIT */
/* The few forms of pax that are needed. Every entry says all of it in the extended
 * header, where there is no limit and names are bytes. Not libarchive's writer, which
 * loses the names of files with holes where they are long. */
#include "archive/private.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

enum { BLOCK = 512, FIELD_NAME = 100, FIELD_SIZE = 12 };

/* An extended header: a name, the target of a link, and some numbers. */
struct extended {
	size_t len;
	char text[2 * AD_CARRY_PATH_MAX + 512];
};

/* The ustar header. */
struct header {
	char name[FIELD_NAME];
	char mode[8], uid[8], gid[8];
	char size[FIELD_SIZE], mtime[12];
	char sum[8];
	char type;
	char link[FIELD_NAME];
	char magic[8]; /* with the version */
	char owner[32], group[32];
	char major[8], minor[8];
	char prefix[155];
	char unused[12];
};

static int flush(struct writer *writer)
{
	size_t done = 0;

	while (done < writer->len) {
		ssize_t n = write(writer->fd, writer->buf + done, writer->len - done);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return n < 0 ? -errno : -EIO;
		done += (size_t)n;
	}
	writer->len = 0;
	return 0;
}

static int append(struct writer *writer, const void *data, size_t len)
{
	const char *at = data; /* NULL: zeros */

	while (len > 0) {
		size_t room = sizeof(writer->buf) - writer->len, part = len < room ? len : room;

		if (at) {
			memcpy(writer->buf + writer->len, at, part);
			at += part;
		} else {
			memset(writer->buf + writer->len, 0, part);
		}
		writer->len += part;
		len -= part;
		if (writer->len == sizeof(writer->buf)) {
			int r = flush(writer);

			if (r < 0)
				return r;
		}
	}
	return 0;
}

static uint64_t padding(uint64_t size)
{
	return (BLOCK - size % BLOCK) % BLOCK;
}

/* Names are cut to what fits: the extended header has them. */
static int put_header(struct writer *writer, char type, mode_t mode, uint64_t size,
		      const char *name, const char *link)
{
	static const uint64_t size_max = ((uint64_t)1 << 33) - 1; /* 11 octal digits */
	struct header header = { .magic = "ustar\0"
					  "00",
				 .type = type };
	unsigned int sum = 0;

	memcpy(header.name, name, strnlen(name, sizeof(header.name)));
	if (link)
		memcpy(header.link, link, strnlen(link, sizeof(header.link)));
	snprintf(header.mode, sizeof(header.mode), "%07o", mode & ALLPERMS);
	snprintf(header.uid, sizeof(header.uid), "%07o", 0);
	snprintf(header.gid, sizeof(header.gid), "%07o", 0);
	/* What does not fit is in the extended header. */
	snprintf(header.size, sizeof(header.size), "%011" PRIo64, size > size_max ? 0 : size);
	snprintf(header.mtime, sizeof(header.mtime), "%011o", 0);
	snprintf(header.major, sizeof(header.major), "%07o", 0);
	snprintf(header.minor, sizeof(header.minor), "%07o", 0);
	memset(header.sum, ' ', sizeof(header.sum));
	for (size_t i = 0; i < sizeof(header); i++)
		sum += ((const unsigned char *)&header)[i];
	snprintf(header.sum, sizeof(header.sum), "%06o", sum);
	return append(writer, &header, sizeof(header));
}

/* One record, "LENGTH KEY=VALUE\n", of which the length is part. */
static void put_record(struct extended *extended, const char *key, const char *value)
{
	size_t rest = strlen(key) + strlen(value) + 3, digits = 1;

	for (size_t bound = 10; rest + digits >= bound; bound *= 10)
		digits++;
	assert(extended->len + rest + digits < sizeof(extended->text));
	snprintf(extended->text + extended->len, sizeof(extended->text) - extended->len,
		 "%zu %s=%s\n", rest + digits, key, value);
	extended->len += rest + digits;
}

static void put_number(struct extended *extended, const char *key, uint64_t value)
{
	char text[32];

	snprintf(text, sizeof(text), "%" PRIu64, value);
	put_record(extended, key, text);
}

static int put_extended(struct writer *writer, const struct extended *extended)
{
	int r = put_header(writer, 'x', 0, extended->len, "pax", NULL);

	if (r == 0)
		r = append(writer, extended->text, extended->len);
	return r < 0 ? r : append(writer, NULL, padding(extended->len));
}

/* Where the data of a file with holes is, as GNU tar 1.0 has it before the data. Only
 * counts with no writer. */
static int put_map(struct writer *writer, const struct extents *extents, uint64_t *ret_len)
{
	char line[64];
	int n = snprintf(line, sizeof(line), "%zu\n", extents->count), r = 0;

	*ret_len = 0;
	for (size_t i = 0;; i++) {
		*ret_len += (uint64_t)n;
		if (writer)
			r = append(writer, line, (size_t)n);
		if (r < 0 || i == extents->count)
			return r;
		n = snprintf(line, sizeof(line), "%jd\n%jd\n", (intmax_t)extents->items[i].from,
			     (intmax_t)extents->items[i].len);
	}
}

void writer_init(struct writer *writer, int fd)
{
	writer->fd = fd;
	writer->len = 0;
	writer->padding = 0;
}

int writer_entry(struct writer *writer, const struct written *entry)
{
	const struct extents *extents = entry->extents;
	bool holes = extents && extents->sum < entry->size;
	uint64_t size = extents ? (uint64_t)extents->sum : 0, map_len = 0;
	struct extended extended = { 0 };
	char time[64];
	int r;

	put_record(&extended, "hdrcharset", "BINARY");
	put_record(&extended, "path", entry->path);
	if (entry->link)
		put_record(&extended, "linkpath", entry->link);
	if (entry->mtime) {
		snprintf(time, sizeof(time), "%jd.%09ld", (intmax_t)entry->mtime->tv_sec,
			 entry->mtime->tv_nsec);
		put_record(&extended, "mtime", time);
	}
	if (holes) {
		put_map(NULL, extents, &map_len);
		put_number(&extended, "GNU.sparse.major", 1);
		put_number(&extended, "GNU.sparse.minor", 0);
		put_number(&extended, "GNU.sparse.realsize", (uint64_t)entry->size);
		size += map_len + padding(map_len);
	}
	put_number(&extended, "size", size);
	r = put_extended(writer, &extended);
	if (r == 0)
		r = put_header(writer, (char)entry->type, entry->mode, size, entry->path,
			       entry->link);
	if (r == 0 && holes) {
		r = put_map(writer, extents, &map_len);
		if (r == 0)
			r = append(writer, NULL, padding(map_len));
	}
	writer->padding = padding(size);
	return r;
}

int writer_data(struct writer *writer, const void *data, size_t len)
{
	return append(writer, data, len);
}

int writer_end_entry(struct writer *writer)
{
	return append(writer, NULL, writer->padding);
}

int writer_end(struct writer *writer)
{
	int r = append(writer, NULL, 2 * BLOCK);

	return r < 0 ? r : flush(writer);
}
