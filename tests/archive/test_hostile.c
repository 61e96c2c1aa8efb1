/* SPDX-License-Identifier: MIT */
/* Archives that nobody who means well has made. Each also has a file that is right, which
 * comes out: the others are refused for what they are. */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "../unit/unit.h"
#include "trees.h"

enum { BLOCK = 512, ENTRIES_MAX = 4 };

/* ---- archives by hand */

static void put_header(int fd, char type, unsigned int mode, size_t size, const char *name,
		       const char *link)
{
	unsigned char header[BLOCK] = { 0 };
	unsigned int sum = 0;

	memcpy(header, name, strnlen(name, 100));
	snprintf((char *)header + 100, 8, "%07o", mode);
	snprintf((char *)header + 124, 12, "%011zo", size);
	snprintf((char *)header + 136, 12, "%011o", 1);
	header[156] = (unsigned char)type;
	memcpy(header + 157, link, strnlen(link, 100));
	memcpy(header + 257, "ustar\00000", 8);
	/* Devices: 1:3, unless it is to be a deletion. */
	snprintf((char *)header + 329, 8, "%07o", type == '3' && mode ? 1 : 0);
	snprintf((char *)header + 337, 8, "%07o", type == '3' && mode ? 3 : 0);
	memset(header + 148, ' ', 8);
	for (size_t i = 0; i < sizeof(header); i++)
		sum += header[i];
	snprintf((char *)header + 148, 8, "%06o", sum);
	ck_assert_int_eq(write(fd, header, sizeof(header)), sizeof(header));
}

static void put_padded(int fd, const char *data, size_t len)
{
	static const char zeros[BLOCK];

	ck_assert_int_eq(write(fd, data, len), (ssize_t)len);
	len = (BLOCK - len % BLOCK) % BLOCK;
	ck_assert_int_eq(write(fd, zeros, len), (ssize_t)len);
}

/* One record of an extended header, with a value that may hold anything. */
static size_t put_record(char *at, const char *key, const char *value, size_t len)
{
	size_t rest = strlen(key) + len + 3, digits = 1, n;

	while (snprintf(NULL, 0, "%zu", rest + digits) > (int)digits)
		digits++;
	n = (size_t)sprintf(at, "%zu %s=", rest + digits, key);
	memcpy(at + n, value, len);
	at[n + len] = '\n';
	return n + len + 1;
}

struct hostile {
	char type; /* of ustar; '\0': there is none */
	unsigned int mode;
	const char *name, *link, *data;
};

static void put_entry(int fd, const struct hostile *entry)
{
	size_t len = entry->data ? strlen(entry->data) : 0, size;
	char extended[2 * PATH_MAX + 512];
	const char *link = entry->link ? entry->link : "";

	size = put_record(extended, "hdrcharset", "BINARY", 6);
	size += put_record(extended + size, "path", entry->name, strlen(entry->name));
	put_header(fd, 'x', 0, size, "x", "");
	put_padded(fd, extended, size);
	put_header(fd, entry->type, entry->mode, len, entry->name, link);
	if (len > 0)
		put_padded(fd, entry->data, len);
}

static const struct hostile good = { '0', 0644, "good", NULL, "right" };
static const struct hostile end_mark = { '5', 0700, ".", NULL, NULL };

static void put_end(int fd)
{
	static const char zeros[2 * BLOCK];

	put_entry(fd, &end_mark);
	ck_assert_int_eq(write(fd, zeros, sizeof(zeros)), sizeof(zeros));
	ck_assert_int_eq(lseek(fd, 0, SEEK_SET), 0);
}

/* ---- where they are unpacked */

/* inside/: f, d/f, out and rel, links to outside/, which holds a secret. */
struct place {
	struct scratch scratch;
	int inside, outside, archive;
	char *outside_before, *inside_before;
	struct notes *notes;
};

static struct place *place_new(void)
{
	struct place *place = calloc(1, sizeof(*place));
	char path[PATH_MAX];

	ck_assert_ptr_nonnull(place);
	scratch_open(&place->scratch);
	place->inside = scratch_dir(&place->scratch, "inside");
	place->outside = scratch_dir(&place->scratch, "outside");
	put_text(place->outside, "secret", "secret");
	ck_assert_int_eq(mkdirat(place->outside, "sub", 0755), 0);
	put_text(place->inside, "f", "old");
	ck_assert_int_eq(mkdirat(place->inside, "d", 0755), 0);
	put_text(place->inside, "d/f", "old");
	snprintf(path, sizeof(path), "%s/outside", place->scratch.path);
	ck_assert_int_eq(symlinkat(path, place->inside, "out"), 0);
	ck_assert_int_eq(symlinkat("../outside", place->inside, "rel"), 0);
	place->outside_before = describe(place->outside, true);
	place->inside_before = describe(place->inside, false);
	place->archive = memory_file();
	place->notes = notes_new();
	return place;
}

/* Whatever happened, it did not happen outside. */
static void place_free(struct place *place)
{
	char *after = describe(place->outside, true), *beside;

	ck_assert_str_eq(after, place->outside_before);
	free(after);
	remove_tree(place->scratch.fd, "inside");
	remove_tree(place->scratch.fd, "outside");
	beside = describe(place->scratch.fd, false);
	ck_assert_str_eq(beside, "");
	free(beside);
	free(place->outside_before);
	free(place->inside_before);
	free(place->notes);
	close(place->inside);
	close(place->outside);
	close(place->archive);
	scratch_close(&place->scratch);
	free(place);
}

/* All that is inside but the good file is as before. */
static void check_inside(const struct place *place, bool same)
{
	char *text = get_text(place->inside, "good"), *after;

	ck_assert_ptr_nonnull(text);
	ck_assert_str_eq(text, "right");
	free(text);
	remove_tree(place->inside, "good");
	after = describe(place->inside, false);
	ck_assert_int_eq(strcmp(after, place->inside_before) == 0, same);
	free(after);
}

/* ---- single entries */

static char long_path[5000], long_name[300];

#define DENIED(reason, ...)                                                                        \
	{                                                                                          \
		{ __VA_ARGS__ }, AD_CARRY_DENIED, AD_CARRY_##reason, 0, false                      \
	}
#define PARTLY_DENIED(reason, ...)                                                                 \
	{                                                                                          \
		{ __VA_ARGS__ }, AD_CARRY_DENIED, AD_CARRY_##reason, 0, true                       \
	}
#define FAILS(error, ...)                                                                          \
	{                                                                                          \
		{ __VA_ARGS__ }, AD_CARRY_ERROR, AD_CARRY_SYSTEM, error, false                     \
	}
static const struct {
	struct hostile entries[ENTRIES_MAX]; /* the last that is there is noted */
	enum ad_carry_type type;
	enum ad_carry_reason reason;
	int os_errno;
	bool changes; /* not all of it is refused */
} cases[] = {
	DENIED(NAME, { '0', 0644, "/abs", NULL, "x" }),
	DENIED(NAME, { '0', 0644, "//abs", NULL, "x" }),
	DENIED(NAME, { '0', 0644, "../x", NULL, "x" }),
	DENIED(NAME, { '0', 0644, "d/../../x", NULL, "x" }),
	DENIED(NAME, { '0', 0644, "d/../f", NULL, "x" }),
	DENIED(NAME, { '0', 0644, "..", NULL, "x" }),
	DENIED(NAME, { '5', 0777, "..", NULL, NULL }),
	DENIED(NAME, { '5', 0777, "../", NULL, NULL }),
	DENIED(NAME, { '5', 0777, "d/.", NULL, NULL }),
	DENIED(NAME, { '0', 0644, ".", NULL, "x" }),
	DENIED(NAME, { '0', 0644, "./f", NULL, "x" }),
	DENIED(NAME, { '0', 0644, "d//f", NULL, "x" }),
	DENIED(NAME, { '2', 0777, "../link", "f", NULL }),
	DENIED(NAME, { '1', 0644, "../hard", "f", NULL }),
	DENIED(LONG, { '0', 0644, long_path, NULL, "x" }),
	FAILS(ENAMETOOLONG, { '0', 0644, long_name, NULL, "x" }),

	/* Through links, that were there or come with it. */
	DENIED(PARENT, { '0', 0644, "out/secret", NULL, "x" }),
	DENIED(PARENT, { '0', 0644, "rel/x", NULL, "x" }),
	DENIED(PARENT, { '0', 0644, "rel/sub/x", NULL, "x" }),
	DENIED(PARENT, { '5', 0755, "rel/new", NULL, NULL }),
	DENIED(PARENT, { '2', 0777, "rel/new", "x", NULL }),
	PARTLY_DENIED(PARENT, { '2', 0777, "l", "../outside", NULL },
		      { '0', 0644, "l/secret", NULL, "x" }),
	PARTLY_DENIED(PARENT, { '2', 0777, "l", "..", NULL },
		      { '0', 0644, "l/outside/secret", NULL, "x" }),
	PARTLY_DENIED(PARENT, { '2', 0777, "d/l", "d", NULL }, { '0', 0644, "d/l/f", NULL, "x" }),

	/* A directory does not take the place of a link, nor its permissions. */
	FAILS(EEXIST, { '5', 0, "out", NULL, NULL }),
	FAILS(EEXIST, { '5', 0, "rel/", NULL, NULL }),
	FAILS(EISDIR, { '0', 0644, "d", NULL, "x" }),
	DENIED(PARENT, { '0', 0644, "f/x", NULL, "x" }),
	DENIED(PARENT, { '0', 0644, "none/x", NULL, "x" }),

	/* Hard links to anything but a file of the archive. */
	DENIED(LINK, { '1', 0644, "h", "../outside/secret", NULL }),
	DENIED(LINK, { '1', 0644, "h", "/etc/passwd", NULL }),
	DENIED(LINK, { '1', 0644, "h", "out/secret", NULL }),
	DENIED(LINK, { '1', 0644, "h", "f", NULL }),
	DENIED(LINK, { '1', 0644, "h", "h", NULL }),
	PARTLY_DENIED(LINK, { '2', 0777, "l", "../outside/secret", NULL },
		      { '1', 0644, "h", "l", NULL }),
	PARTLY_DENIED(LINK, { '5', 0755, "dir", NULL, NULL }, { '1', 0644, "h", "dir", NULL }),
	DENIED(KIND, { '3', 0666, "null", NULL, NULL }),
	DENIED(KIND, { '3', 0, "f", NULL, NULL }),
	DENIED(KIND, { '4', 0666, "block", NULL, NULL }),
	DENIED(KIND, { '6', 0666, "pipe", NULL, NULL }),
};

START_TEST(refused)
{
	const struct ad_carry_record *note;
	struct place *place = place_new();
	struct ad_archive_job job = job_on(place->inside, place->archive, place->notes);
	size_t last = 0;
	char path[AD_CARRY_PATH_MAX];

	/* "d/d/d/...", whose directories would be there up to a point. */
	memset(long_name, 'n', sizeof(long_name) - 1);
	for (size_t i = 0; i < sizeof(long_path) - 1; i++)
		long_path[i] = i % 2 ? '/' : 'd';
	for (size_t i = 0; i < ENTRIES_MAX && cases[_i].entries[i].type; i++) {
		put_entry(place->archive, &cases[_i].entries[i]);
		last = i;
	}
	put_entry(place->archive, &good);
	put_end(place->archive);
	ck_assert_int_eq(ad_archive_unpack(&job, NULL), 0);
	ck_assert_uint_eq(place->notes->count, 1);
	note = &place->notes->kept[0];
	ck_assert_int_eq(note->type, cases[_i].type);
	ck_assert_int_eq(note->reason, cases[_i].reason);
	ck_assert_int_eq(note->os_errno, cases[_i].os_errno);
	snprintf(path, sizeof(path), "%s", cases[_i].entries[last].name);
	if (cases[_i].entries[last].type == '5' && path[strlen(path) - 1] == '/')
		path[strlen(path) - 1] = '\0';
	ck_assert_str_eq(note->path, path);
	check_inside(place, !cases[_i].changes);
	place_free(place);
}
END_TEST

/* What is fine, next to what is not. */
START_TEST(accepted)
{
	static const struct hostile fine[] = {
		{ '0', 0755, "out", NULL, "takes the place of the link" },
		{ '5', 0755, "new/", NULL, NULL },
		{ '0', 0644, "new/..f", NULL, "x" },
		{ '0', 0644, "new/...", NULL, "x" },
		{ '1', 0644, "new/hard", "new/..f", NULL },
		{ '1', 0644, "new/hard", "new/..f", NULL },
		{ '2', 0777, "new/link", "/etc/passwd", NULL },
	};
	struct place *place = place_new();
	struct ad_archive_job job = job_on(place->inside, place->archive, place->notes);
	struct stat st;

	for (size_t i = 0; i < sizeof(fine) / sizeof(fine[0]); i++)
		put_entry(place->archive, &fine[i]);
	put_entry(place->archive, &good);
	put_end(place->archive);
	ck_assert_int_eq(ad_archive_unpack(&job, NULL), 0);
	ck_assert_uint_eq(place->notes->count, 0);
	ck_assert_uint_eq(job.entries, sizeof(fine) / sizeof(fine[0]) + 1);
	ck_assert_int_eq(fstatat(place->inside, "out", &st, AT_SYMLINK_NOFOLLOW), 0);
	ck_assert(S_ISREG(st.st_mode));
	ck_assert_int_eq(fstatat(place->inside, "new/hard", &st, AT_SYMLINK_NOFOLLOW), 0);
	ck_assert_uint_eq(st.st_nlink, 2);
	/* No name of the time of making is left. */
	remove_tree(place->inside, "new/..f");
	remove_tree(place->inside, "new/...");
	remove_tree(place->inside, "new/hard");
	remove_tree(place->inside, "new/link");
	ck_assert_int_eq(unlinkat(place->inside, "new", AT_REMOVEDIR), 0);
	place_free(place);
}
END_TEST

START_TEST(set_id_bits_are_taken_off)
{
	static const struct hostile entries[] = {
		{ '0', 06755, "suid", NULL, "x" },
		{ '5', 02755, "sgid", NULL, NULL },
		{ '0', 01644, "sticky", NULL, "x" },
	};
	static const unsigned int modes[] = { 0755, 0755, 0644 };
	struct place *place = place_new();
	struct ad_archive_job job = job_on(place->inside, place->archive, place->notes);

	for (size_t i = 0; i < 3; i++)
		put_entry(place->archive, &entries[i]);
	put_end(place->archive);
	ck_assert_int_eq(ad_archive_unpack(&job, NULL), 0);
	ck_assert_uint_eq(place->notes->count, 2);
	for (size_t i = 0; i < 3; i++) {
		struct stat st;

		if (i < 2)
			ck_assert_int_eq(place->notes->kept[i].reason, AD_CARRY_SET_ID);
		ck_assert_int_eq(fstatat(place->inside, entries[i].name, &st, 0), 0);
		ck_assert_uint_eq(st.st_mode & 07777, modes[i]);
	}
	place_free(place);
}
END_TEST

/* ---- with a manifest, when deletions count */

START_TEST(deletions_stay_inside)
{
	static const struct hostile entries[] = {
		{ '3', 0, "../outside/secret", NULL, NULL },
		{ '3', 0, "out/secret", NULL, NULL }, /* neither is in the manifest */
		{ '3', 0, "..", NULL, NULL },
		{ '3', 0, "never-there", NULL, NULL },
		{ '3', 0, "d", NULL, NULL },    /* holds a file */
		{ '3', 0666, "f", NULL, NULL }, /* a device, no deletion */
		{ '3', 0, "rel", NULL, NULL },  /* the link, not what it leads to */
	};
	static const enum ad_carry_reason reasons[] = { AD_CARRY_NAME, AD_CARRY_NAME,
							AD_CARRY_NOT_EMPTY, AD_CARRY_KIND };
	struct place *place = place_new();
	struct ad_archive_job job = job_on(place->inside, place->archive, place->notes);
	struct ad_manifest *manifest;
	struct stat st;
	char *text;

	ck_assert_int_eq(ad_archive_scan(&job, &manifest), 0);
	for (size_t i = 0; i < sizeof(entries) / sizeof(entries[0]); i++)
		put_entry(place->archive, &entries[i]);
	put_entry(place->archive, &good);
	put_end(place->archive);
	ck_assert_int_eq(ad_archive_unpack(&job, manifest), 0);
	ck_assert_uint_eq(place->notes->count, sizeof(reasons) / sizeof(reasons[0]));
	for (size_t i = 0; i < sizeof(reasons) / sizeof(reasons[0]); i++)
		ck_assert_int_eq(place->notes->kept[i].reason, reasons[i]);
	ck_assert_int_lt(fstatat(place->inside, "rel", &st, AT_SYMLINK_NOFOLLOW), 0);
	text = get_text(place->inside, "d/f");
	ck_assert_str_eq(text, "old");
	free(text);
	check_inside(place, false);
	ad_manifest_free(manifest);
	place_free(place);
}
END_TEST

/* A name that is sent twice: what the first has made is no longer the host's. */
START_TEST(twice_is_a_conflict)
{
	static const struct hostile entries[] = {
		{ '0', 0644, "f", NULL, "first" },
		{ '0', 0644, "f", NULL, "second" },
		{ '3', 0, "f", NULL, NULL },
	};
	struct place *place = place_new();
	struct ad_archive_job job = job_on(place->inside, place->archive, place->notes);
	struct ad_manifest *manifest;
	char *text;

	ck_assert_int_eq(ad_archive_scan(&job, &manifest), 0);
	for (size_t i = 0; i < 3; i++)
		put_entry(place->archive, &entries[i]);
	put_end(place->archive);
	ck_assert_int_eq(ad_archive_unpack(&job, manifest), 0);
	ck_assert_uint_eq(place->notes->count, 2);
	ck_assert_int_eq(place->notes->kept[0].reason, AD_CARRY_CHANGED);
	ck_assert_int_eq(place->notes->kept[1].reason, AD_CARRY_CHANGED);
	text = get_text(place->inside, "f");
	ck_assert_str_eq(text, "first");
	free(text);
	ad_manifest_free(manifest);
	place_free(place);
}
END_TEST

/* ---- the stream */

static void put_raw_path(int fd, const char *path, size_t len)
{
	char extended[256];
	size_t size = put_record(extended, "path", path, len);

	put_header(fd, 'x', 0, size, "x", "");
	put_padded(fd, extended, size);
	put_header(fd, '0', 0644, 1, "short", "");
	put_padded(fd, "x", 1);
}

/* Where names end at a NUL, that is their end; names that are no UTF-8 but do not say
 * so are something else, but nothing outside. */
START_TEST(names_of_strange_bytes)
{
	struct place *place = place_new();
	struct ad_archive_job job = job_on(place->inside, place->archive, place->notes);
	struct stat st;

	put_raw_path(place->archive, "cut\0/../../outside/secret", 25);
	put_raw_path(place->archive, "\0/x", 3);
	put_raw_path(place->archive, "", 0);
	put_raw_path(place->archive, "\xc0\xae\xc0\xae/outside/x", 14);
	put_raw_path(place->archive, "\xff\xfe", 2);
	put_entry(place->archive, &good);
	put_end(place->archive);
	ck_assert_int_eq(ad_archive_unpack(&job, NULL), 0);
	ck_assert_int_eq(fstatat(place->inside, "cut", &st, AT_SYMLINK_NOFOLLOW), 0);
	check_inside(place, false);
	place_free(place);
}
END_TEST

/* Wherever it is cut, it is noticed. */
START_TEST(cut_archives)
{
	struct place *place = place_new();
	struct ad_archive_job job = job_on(place->inside, place->archive, place->notes);
	static char data[3 * BLOCK + 1];
	struct hostile large = { '0', 0644, "large", NULL, data };
	struct stat st;

	memset(data, 'x', sizeof(data) - 1);
	put_entry(place->archive, &large);
	put_entry(place->archive, &good);
	put_end(place->archive);
	ck_assert_int_eq(fstat(place->archive, &st), 0);
	ck_assert_int_eq(ad_archive_unpack(&job, NULL), 0);
	/* The end mark's own header is the last that is needed. */
	for (off_t size = st.st_size - 2 * BLOCK - 1; size >= 0; size -= size % 100 ? 1 : 61) {
		ck_assert_int_eq(ftruncate(place->archive, size), 0);
		ck_assert_int_eq(lseek(place->archive, 0, SEEK_SET), 0);
		ck_assert_msg(ad_archive_unpack(&job, NULL) == -1, "cut at %jd", (intmax_t)size);
		ck_assert(job.failed.reason == AD_CARRY_CUT ||
			  job.failed.reason == AD_CARRY_FORMAT);
		ck_assert_int_eq(job.empty, size == 0);
	}
	ck_assert_int_eq(job.failed.reason, AD_CARRY_CUT);
	place_free(place);
}
END_TEST

static void check_format(struct place *place)
{
	struct ad_archive_job job = job_on(place->inside, place->archive, place->notes);

	ck_assert_int_eq(lseek(place->archive, 0, SEEK_SET), 0);
	ck_assert_int_eq(ad_archive_unpack(&job, NULL), -1);
	ck_assert_int_eq(job.failed.reason, AD_CARRY_FORMAT);
	ck_assert_int_eq(ftruncate(place->archive, 0), 0);
	ck_assert_int_eq(lseek(place->archive, 0, SEEK_SET), 0);
}

START_TEST(no_archives)
{
	struct place *place = place_new();
	static char junk[20 * 1024];
	struct rng rng = { .state = 3 };
	char *after;

	for (size_t i = 0; i < sizeof(junk); i++)
		junk[i] = (char)rng_below(&rng, 256);
	ck_assert_int_eq(write(place->archive, junk, sizeof(junk)), sizeof(junk));
	check_format(place);
	ck_assert_int_eq(write(place->archive, "PK\3\4", 4), 4);
	check_format(place);
	after = describe(place->inside, false);
	ck_assert_str_eq(after, place->inside_before);
	free(after);
	/* More after the end. */
	put_entry(place->archive, &end_mark);
	put_entry(place->archive, &good);
	put_end(place->archive);
	check_format(place);
	put_end(place->archive);
	ck_assert_int_eq(ftruncate(place->archive, 64 << 20), 0);
	check_format(place);
	place_free(place);
}
END_TEST

/* Sizes of which there is not the data: neither memory nor disk are taken for them. */
START_TEST(sizes_that_lie)
{
	static const char *const sizes[] = { "9223372036854775807", "1099511627776", "4096" };
	struct place *place = place_new();
	struct rlimit before, small;

	ck_assert_int_eq(getrlimit(RLIMIT_DATA, &before), 0);
	small = before;
	small.rlim_cur = 512 << 20;
	if (!unit_instrumented())
		ck_assert_int_eq(setrlimit(RLIMIT_DATA, &small), 0);
	for (size_t i = 0; i < 3; i++) {
		struct ad_archive_job job = job_on(place->inside, place->archive, place->notes);
		char extended[256];
		size_t size = put_record(extended, "path", "big", 3);
		struct stat st;

		size += put_record(extended + size, "size", sizes[i], strlen(sizes[i]));
		put_header(place->archive, 'x', 0, size, "x", "");
		put_padded(place->archive, extended, size);
		put_header(place->archive, '0', 0644, 0, "big", "");
		put_padded(place->archive, "x", 1);
		ck_assert_int_eq(lseek(place->archive, 0, SEEK_SET), 0);
		job.max_bytes = 100;
		ck_assert_int_eq(ad_archive_unpack(&job, NULL), -1);
		ck_assert(job.failed.reason == AD_CARRY_BYTES ||
			  job.failed.reason == AD_CARRY_FORMAT);
		ck_assert_int_lt(fstatat(place->inside, "big", &st, 0), 0);
		ck_assert_int_eq(ftruncate(place->archive, 0), 0);
		ck_assert_int_eq(lseek(place->archive, 0, SEEK_SET), 0);
	}
	ck_assert_int_eq(setrlimit(RLIMIT_DATA, &before), 0);
	place_free(place);
}
END_TEST

int main(void)
{
	TCase *tc = tcase_create("hostile");

	tcase_add_loop_test(tc, refused, 0, sizeof(cases) / sizeof(cases[0]));
	tcase_add_test(tc, accepted);
	tcase_add_test(tc, set_id_bits_are_taken_off);
	tcase_add_test(tc, deletions_stay_inside);
	tcase_add_test(tc, twice_is_a_conflict);
	tcase_add_test(tc, names_of_strange_bytes);
	tcase_add_test(tc, cut_archives);
	tcase_add_test(tc, no_archives);
	tcase_add_test(tc, sizes_that_lie);
	return unit_run("hostile", tc);
}
