/* SPDX-License-Identifier: MIT */
#include "unit.h"

#include <errno.h>

#include "proto/carry.h"

enum { SEEN_MAX = 8 };

struct seen {
	struct ad_carry_record records[SEEN_MAX];
	char paths[SEEN_MAX][AD_CARRY_PATH_MAX];
	size_t count;
};

static void see(const struct ad_carry_record *record, void *userdata)
{
	struct seen *seen = userdata;
	size_t i = seen->count++ % SEEN_MAX;

	seen->records[i] = *record;
	if (record->path) {
		ck_assert_uint_lt(strlen(record->path), AD_CARRY_PATH_MAX);
		strcpy(seen->paths[i], record->path);
	}
}

static struct ad_carry_reader *reader_new(struct seen *seen)
{
	struct ad_carry_reader *reader = calloc(1, sizeof(*reader));

	ck_assert_ptr_nonnull(reader);
	reader->record = see;
	reader->userdata = seen;
	return reader;
}

static bool feed(struct ad_carry_reader *reader, const char *text)
{
	return ad_carry_feed(reader, (const uint8_t *)text, strlen(text));
}

/* Whether it is taken as a whole, by a reader that has or has not seen `packed`. */
static bool takes(bool packed, const char *text)
{
	struct seen *seen = calloc(1, sizeof(*seen));
	struct ad_carry_reader *reader = reader_new(seen);
	size_t before;
	bool ok;

	ck_assert_ptr_nonnull(seen);
	if (packed)
		ck_assert(feed(reader, "packed 0 0 0\n"));
	before = seen->count;
	ok = feed(reader, text);
	ck_assert(!ok || seen->count > before);
	/* Once bad is bad for good. */
	if (!ok)
		ck_assert(!feed(reader, "failed usage 0 .\n"));
	free(reader);
	free(seen);
	return ok;
}

START_TEST(records_round_trip)
{
	static const enum ad_carry_reason some[AD_CARRY_TYPES] = {
		[AD_CARRY_FAILED] = AD_CARRY_BYTES,  [AD_CARRY_SKIPPED] = AD_CARRY_LONG,
		[AD_CARRY_DENIED] = AD_CARRY_SET_ID, [AD_CARRY_CONFLICT] = AD_CARRY_GONE,
		[AD_CARRY_ERROR] = AD_CARRY_SYSTEM,
	};
	char every[256];

	for (int i = 0; i < 255; i++)
		every[i] = (char)(i + 1);
	every[255] = '\0';
	for (int type = 0; type < AD_CARRY_TYPES; type++) {
		bool sum = type == AD_CARRY_PACKED || type == AD_CARRY_APPLIED;
		struct ad_carry_record record = { .type = (enum ad_carry_type)type };
		struct seen *seen = calloc(1, sizeof(*seen));
		struct ad_carry_reader *reader = reader_new(seen);
		const struct ad_carry_record *got;
		char line[AD_CARRY_LINE_MAX];
		size_t len;

		ck_assert_ptr_nonnull(seen);
		if (sum) {
			record.entries = 1;
			record.bytes = UINT64_MAX;
			record.untold = UINT64_MAX - 1;
		} else {
			record.reason = some[type];
			record.path = every;
			record.os_errno = record.reason == AD_CARRY_SYSTEM ? 4095 : 0;
		}
		if (type != AD_CARRY_PACKED && type != AD_CARRY_SKIPPED)
			ck_assert(feed(reader, "packed 0 0 0\n"));
		len = ad_carry_encode(&record, line);
		ck_assert_uint_eq(len, strlen(line));
		/* Byte by byte is as good. */
		for (size_t i = 0; i < len; i++)
			ck_assert(ad_carry_feed(reader, (const uint8_t *)line + i, 1));
		ck_assert_uint_gt(seen->count, 0);
		got = &seen->records[seen->count - 1];
		ck_assert_int_eq(got->type, record.type);
		ck_assert_int_eq(got->reason, record.reason);
		ck_assert_int_eq(got->os_errno, record.os_errno);
		ck_assert_uint_eq(got->entries, record.entries);
		ck_assert_uint_eq(got->bytes, record.bytes);
		ck_assert_uint_eq(got->untold, record.untold);
		if (!sum)
			ck_assert_str_eq(seen->paths[seen->count - 1], every);
		free(reader);
		free(seen);
	}
}
END_TEST

START_TEST(every_reason_has_a_form_and_a_text)
{
	for (int reason = 0; reason < AD_CARRY_REASONS; reason++)
		ck_assert_uint_gt(strlen(ad_carry_reason_text((enum ad_carry_reason)reason)), 0);
}
END_TEST

START_TEST(longest_paths)
{
	struct ad_carry_record record = { .type = AD_CARRY_SKIPPED, .reason = AD_CARRY_LONG };
	struct seen *seen = calloc(1, sizeof(*seen));
	struct ad_carry_reader *reader = reader_new(seen);
	char line[AD_CARRY_LINE_MAX], path[5000], longer[AD_CARRY_LINE_MAX + 1];
	size_t len;

	/* Cut by who writes ... */
	ck_assert_ptr_nonnull(seen);
	memset(path, 0xff, sizeof(path) - 1);
	path[sizeof(path) - 1] = '\0';
	record.path = path;
	len = ad_carry_encode(&record, line);
	ck_assert(ad_carry_feed(reader, (const uint8_t *)line, len));
	ck_assert_uint_eq(strlen(seen->paths[0]), AD_CARRY_PATH_MAX - 1);
	/* ... and not accepted longer, nor without an end. */
	len = (size_t)snprintf(longer, sizeof(longer), "skipped long 0 ");
	memset(longer + len, 'a', AD_CARRY_PATH_MAX);
	strcpy(longer + len + AD_CARRY_PATH_MAX - 1, "\n");
	ck_assert(takes(false, longer));
	strcpy(longer + len + AD_CARRY_PATH_MAX - 1, "a\n");
	ck_assert(!takes(false, longer));
	memset(longer, 'a', sizeof(longer) - 1);
	longer[sizeof(longer) - 1] = '\0';
	ck_assert(!takes(false, longer));
	free(reader);
	free(seen);
}
END_TEST

START_TEST(one_form_only)
{
	static const struct {
		bool packed;
		const char *good;
		const char *bad[8];
	} lines[] = {
		{ false,
		  "packed 1 22 0\n",
		  { "packed 1 22 0 \n", "packed 1 22\n", "packed 01 22 0\n", "packed 1  22 0\n",
		    "packed 1 22 -1\n", "packed 1 22 0 0\n", " packed 1 22 0\n",
		    "packed 1 22 \n" } },
		{ false,
		  "packed 18446744073709551615 0 0\n",
		  { "packed 18446744073709551616 0 0\n", "packed 99999999999999999999 0 0\n",
		    "packed 0x1 0 0\n", "packed +1 0 0\n", "Packed 1 0 0\n", "\n", "x\n",
		    "packed\t1 0 0\n" } },
		{ false,
		  "skipped special 0 a%20b%0a%ff%25\n",
		  { "skipped special 0 a b\n", "skipped special 0 %2\n", "skipped special 0 %\n",
		    "skipped special 0 %FF\n", "skipped special 0 %61\n", "skipped special 0 %00\n",
		    "skipped special 0 \n", "skipped special 0\n" } },
		{ false,
		  "skipped unreadable 0 .\n",
		  { "skipped unreadable 13 .\n", "skipped system 13 .\n", "skipped gone 0 .\n",
		    "skipped nothing 0 .\n", "skipped  0 .\n", "skipped unreadable 0 \xff\n",
		    "skipped unreadable 0 \x7f\n", "skipped unreadable . 0\n" } },
		{ true,
		  "error system 28 x\n",
		  { "error system 0 x\n", "error system 4096 x\n", "error system -1 x\n",
		    "error bytes 0 x\n", "error system 028 x\n", "error x\n", "error\n",
		    "error system 28 x \n" } },
	};

	for (size_t i = 0; i < sizeof(lines) / sizeof(lines[0]); i++) {
		ck_assert_msg(takes(lines[i].packed, lines[i].good), "%s", lines[i].good);
		for (size_t j = 0; j < 8; j++)
			ck_assert_msg(!takes(lines[i].packed, lines[i].bad[j]), "%s",
				      lines[i].bad[j]);
	}
}
END_TEST

START_TEST(order)
{
	static const struct {
		const char *text;
		bool taken, complete;
	} talks[] = {
		{ "packed 0 0 0\napplied 0 0 0\n", true, true },
		{ "failed usage 0 .\n", true, true },
		{ "packed 0 0 0\nfailed cut 0 .\n", true, true },
		{ "packed 0 0 0\n", true, false },
		{ "packed 0 0 0\napplied 0 0 0", true, false },
		{ "", true, false },
		{ "applied 0 0 0\n", false, false },
		{ "packed 0 0 0\npacked 0 0 0\n", false, false },
		{ "packed 0 0 0\nskipped long 0 x\n", false, false },
		{ "denied name 0 x\n", false, false },
		{ "conflict gone 0 x\n", false, false },
		{ "error system 5 x\n", false, false },
		{ "packed 0 0 0\napplied 0 0 0\napplied 0 0 0\n", false, false },
		{ "failed usage 0 .\nfailed usage 0 .\n", false, false },
		{ "packed 0 0 0\napplied 0 0 0\ndenied name 0 x\n", false, false },
	};

	for (size_t i = 0; i < sizeof(talks) / sizeof(talks[0]); i++) {
		struct seen *seen = calloc(1, sizeof(*seen));
		struct ad_carry_reader *reader = reader_new(seen);

		ck_assert_ptr_nonnull(seen);
		ck_assert_msg(feed(reader, talks[i].text) == talks[i].taken, "%s", talks[i].text);
		ck_assert_msg(ad_carry_complete(reader) == talks[i].complete, "%s", talks[i].text);
		free(reader);
		free(seen);
	}
}
END_TEST

START_TEST(notes_are_bounded)
{
	struct seen *seen = calloc(1, sizeof(*seen));
	struct ad_carry_reader *reader = reader_new(seen);

	ck_assert_ptr_nonnull(seen);
	for (int i = 0; i < AD_CARRY_NOTES_MAX; i++)
		ck_assert(feed(reader, "skipped long 0 x\n"));
	ck_assert(feed(reader, "packed 0 0 3\n"));
	for (int i = 0; i < AD_CARRY_NOTES_MAX; i++)
		ck_assert(feed(reader, "denied name 0 x\n"));
	ck_assert(!feed(reader, "denied name 0 x\n"));
	ck_assert_uint_eq(seen->count, 2 * AD_CARRY_NOTES_MAX + 1);
	free(reader);
	free(seen);
}
END_TEST

int main(void)
{
	TCase *tc = tcase_create("carry");

	tcase_add_test(tc, records_round_trip);
	tcase_add_test(tc, every_reason_has_a_form_and_a_text);
	tcase_add_test(tc, longest_paths);
	tcase_add_test(tc, one_form_only);
	tcase_add_test(tc, order);
	tcase_add_test(tc, notes_are_bounded);
	return unit_run("carry", tc);
}
