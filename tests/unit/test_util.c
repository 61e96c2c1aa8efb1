/* SPDX-License-Identifier: MIT */
#include "unit.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <unistd.h>

#include <agentd/backend.h>
#include <agentd/log.h>

#include "cache/cache.h"
#include "core/core.h"
#include "util/util.h"

/* ---- errors */

START_TEST(test_error_made)
{
	agentd_error *err = NULL;

	errno = EBADF;
	ck_assert_int_eq(ad_fail(&err, AGENTD_ERR_INVALID, "/a/0", "bad %s %d", "thing", 7),
			 AGENTD_ERR_INVALID);
	ck_assert_int_eq(errno, EBADF);
	ck_assert_int_eq(agentd_error_code(err), AGENTD_ERR_INVALID);
	ck_assert_int_eq(agentd_error_os_errno(err), 0);
	ck_assert_str_eq(agentd_error_message(err), "bad thing 7");
	ck_assert_str_eq(agentd_error_pointer(err), "/a/0");
	ck_assert_ptr_eq(agentd_error_ref(err), err);
	agentd_error_unref(err);
	ck_assert_str_eq(agentd_error_message(err), "bad thing 7");
	agentd_error_unref(err);
	ck_assert_int_eq(ad_fail(NULL, AGENTD_ERR_STATE, NULL, "nobody asks"), AGENTD_ERR_STATE);
}
END_TEST

START_TEST(test_error_errno)
{
	agentd_error *err = NULL;

	errno = EPERM;
	ck_assert_int_eq(ad_fail_errno(&err, ENOENT, "Failed to open %s", "x"), AGENTD_ERR_SYSTEM);
	ck_assert_int_eq(errno, EPERM);
	ck_assert_int_eq(agentd_error_os_errno(err), ENOENT);
	ck_assert_str_eq(agentd_error_message(err),
			 "Failed to open x: No such file or directory (os error 2)");
	ck_assert_str_eq(agentd_error_pointer(err), "");
	agentd_error_unref(err);
	ck_assert_int_eq(ad_fail_errno(&err, 99999, "x"), AGENTD_ERR_SYSTEM);
	ck_assert_str_eq(agentd_error_message(err), "x: Unknown error (os error 99999)");
	agentd_error_unref(err);
	ck_assert_int_eq(ad_fail_errno(&err, ENOMEM, "x"), AGENTD_ERR_NOMEM);
	agentd_error_unref(err);
	ck_assert_int_eq(ad_fail_errno(NULL, ENOENT, "x"), AGENTD_ERR_SYSTEM);
}
END_TEST

START_TEST(test_error_out_of_memory)
{
	agentd_error *err = NULL;

	ck_assert_int_eq(ad_fail_nomem(&err), AGENTD_ERR_NOMEM);
	ck_assert_int_eq(ad_fail_nomem(NULL), AGENTD_ERR_NOMEM);
	ck_assert_int_eq(agentd_error_code(err), AGENTD_ERR_NOMEM);
	ck_assert_str_eq(agentd_error_message(err), "out of memory");
	for (int i = 0; i < 3; i++)
		agentd_error_unref(err); /* immortal */
	ck_assert_ptr_eq(agentd_error_ref(err), err);
	ad_error_prefix(&err, "in vain: ");
	ad_error_prefix_pointer(&err, "/x");
	ck_assert_str_eq(agentd_error_message(err), "out of memory");
	ck_assert_str_eq(agentd_error_pointer(err), "");
}
END_TEST

START_TEST(test_error_prefix)
{
	agentd_error *err = NULL, *kept;

	ad_fail(&err, AGENTD_ERR_INVALID, "/b", "two");
	kept = agentd_error_ref(err);
	ad_error_prefix(&err, "%s: ", "one");
	ad_error_prefix_pointer(&err, "/a");
	ck_assert_str_eq(agentd_error_message(err), "one: two");
	ck_assert_str_eq(agentd_error_pointer(err), "/a/b");
	ck_assert_int_eq(agentd_error_code(err), AGENTD_ERR_INVALID);
	ck_assert_str_eq(agentd_error_message(kept), "two"); /* others' stays as it is */
	agentd_error_unref(kept);
	agentd_error_unref(err);
	err = NULL;
	ad_error_prefix(&err, "x");
	ad_error_prefix_pointer(&err, "x");
	ad_error_prefix(NULL, "x");
	ad_error_prefix_pointer(NULL, "x");
	ck_assert_ptr_null(err);
}
END_TEST

START_TEST(test_error_one_line)
{
	char text[6001];
	agentd_error *err = NULL;

	ad_fail(&err, AGENTD_ERR_INVALID, NULL, "a\nb\tc\x7f\x1b d");
	ck_assert_str_eq(agentd_error_message(err), "a?b?c?? d");
	agentd_error_unref(err);
	for (size_t i = 0; i < 6000; i += 2)
		memcpy(text + i, "\xc3\xa4", 2);
	text[6000] = '\0';
	for (size_t shift = 0; shift < 2; shift++) {
		size_t len;

		ad_fail(&err, AGENTD_ERR_INVALID, NULL, "%s%s", shift ? "x" : "", text);
		len = strlen(agentd_error_message(err));
		ck_assert_uint_le(len, 4096);
		ck_assert_uint_ge(len, 4090);
		ck_assert(ad_utf8_valid(agentd_error_message(err), len));
		ck_assert_str_eq(agentd_error_message(err) + len - 3, "...");
		agentd_error_unref(err);
	}
}
END_TEST

START_TEST(test_error_create)
{
	agentd_error *err = agentd_error_create(AGENTD_ERR_USER, EIO, "my own");

	ck_assert_int_eq(agentd_error_code(err), AGENTD_ERR_USER);
	ck_assert_int_eq(agentd_error_os_errno(err), EIO);
	ck_assert_str_eq(agentd_error_message(err), "my own");
	agentd_error_unref(err);
	err = agentd_error_create(AGENTD_ERR_LIMIT, 0, NULL);
	ck_assert_str_eq(agentd_error_message(err), agentd_strerror(AGENTD_ERR_LIMIT));
	agentd_error_unref(err);
	err = agentd_error_create(5, 0, "success is no error");
	ck_assert_int_eq(agentd_error_code(err), AGENTD_ERR_INTERNAL);
	agentd_error_unref(err);
}
END_TEST

START_TEST(test_error_null)
{
	ck_assert_ptr_null(agentd_error_ref(NULL));
	agentd_error_unref(NULL);
	ck_assert_int_eq(agentd_error_code(NULL), 0);
	ck_assert_int_eq(agentd_error_os_errno(NULL), 0);
	ck_assert_str_eq(agentd_error_message(NULL), "");
	ck_assert_str_eq(agentd_error_pointer(NULL), "");
}
END_TEST

START_TEST(test_strerror)
{
	for (int code = AGENTD_ERR_INTERNAL; code < 0; code++) {
		ck_assert_str_ne(agentd_strerror(code), "unknown error");
		for (int other = AGENTD_ERR_INTERNAL; other < code; other++)
			ck_assert_str_ne(agentd_strerror(code), agentd_strerror(other));
	}
	ck_assert_str_eq(agentd_strerror(AGENTD_ERR_INTERNAL - 1), "unknown error");
	ck_assert_str_eq(agentd_strerror(INT_MIN), "unknown error");
	ck_assert_str_eq(agentd_strerror(0), "success");
	ck_assert_str_eq(agentd_strerror(3), "success");
}
END_TEST

/* ---- cleanup */

static void *give(void *pointer)
{
	ad_autofree void *owned = pointer;

	return AD_STEAL(owned);
}

START_TEST(test_cleanup)
{
	int kept, gone, pipe_fds[2];
	char *memory = malloc(4);

	ck_assert_ptr_eq(give(memory), memory);
	ck_assert_ptr_null(give(NULL));
	agentd_free(memory);
	agentd_free(NULL);
	ck_assert_int_eq(pipe(pipe_fds), 0);
	errno = EDOM;
	{
		ad_autoclose int one = pipe_fds[0], two = pipe_fds[1], none = -1;

		kept = ad_steal_fd(&one);
		gone = two;
		ck_assert_int_eq(one, -1);
		ck_assert_int_eq(none, -1);
	}
	ck_assert_int_eq(errno, EDOM);
	ck_assert_int_eq(fcntl(gone, F_GETFD), -1);
	ck_assert_int_ge(fcntl(kept, F_GETFD), 0);
	close(kept);
}
END_TEST

static int errno_keeper(void)
{
	AD_KEEP_ERRNO;

	errno = EIO;
	return 1;
}

START_TEST(test_keep_errno)
{
	errno = ERANGE;
	ck_assert_int_eq(errno_keeper(), 1);
	ck_assert_int_eq(errno, ERANGE);
}
END_TEST

/* ---- lists, counts */

struct node {
	int number;
	struct ad_list link;
};

START_TEST(test_list)
{
	struct node nodes[3] = { { .number = 1 }, { .number = 2 }, { .number = 3 } };
	struct ad_list head;
	int sum = 0, at = 0;

	ad_list_init(&head);
	ck_assert(ad_list_empty(&head));
	for (int i = 0; i < 3; i++)
		ad_list_append(&head, &nodes[i].link);
	for (struct ad_list *l = head.next; l != &head; l = l->next)
		sum = sum * 10 + AD_CONTAINER_OF(l, struct node, link)->number;
	ck_assert_int_eq(sum, 123);
	ad_list_remove(&nodes[1].link);
	ad_list_remove(&nodes[1].link); /* harmless */
	for (struct ad_list *l = head.next; l != &head; l = l->next)
		at = at * 10 + AD_CONTAINER_OF(l, struct node, link)->number;
	ck_assert_int_eq(at, 13);
}
END_TEST

START_TEST(test_refcount)
{
	ad_refcount count = 1;

	ad_ref(&count);
	ck_assert(!ad_unref(&count));
	ck_assert(ad_unref(&count));
}
END_TEST

/* ---- buffers */

START_TEST(test_buf)
{
	struct ad_buf buf = { 0 };
	char *text;

	for (int i = 0; i < 1000; i++) {
		ck_assert(ad_buf_append(&buf, "a\0b", 3));
		ck_assert_int_eq(buf.data[buf.len], '\0');
	}
	ck_assert_uint_eq(buf.len, 3000);
	ck_assert_int_eq(memcmp(buf.data + 2997, "a\0b", 3), 0);
	ad_buf_free(&buf);
	ck_assert_ptr_null(buf.data);
	ck_assert(ad_buf_puts(&buf, "x"));
	ck_assert(ad_buf_printf(&buf, "%0*d|", 200, 5));
	ck_assert_uint_eq(buf.len, 202);
	text = ad_buf_steal(&buf);
	ck_assert_int_eq(text[201], '|');
	ck_assert_uint_eq(strlen(text), 202);
	free(text);
	ck_assert_uint_eq(buf.len, 0);
	text = ad_buf_steal(&buf); /* nothing is text too */
	ck_assert_str_eq(text, "");
	free(text);
}
END_TEST

START_TEST(test_buf_failed)
{
	struct ad_buf buf = { 0 };

	ck_assert(ad_buf_puts(&buf, "kept"));
	ck_assert(!ad_buf_append(&buf, "", SIZE_MAX));
	ck_assert(buf.failed);
	ck_assert_str_eq(buf.data, "kept");
	ck_assert(!ad_buf_puts(&buf, "more"));
	ck_assert(!ad_buf_printf(&buf, "%d", 1));
	ck_assert_ptr_null(ad_buf_steal(&buf));
	ck_assert(!buf.failed);
	ck_assert(!ad_buf_append(&buf, "", (size_t)PTRDIFF_MAX));
	ad_buf_free(&buf);
}
END_TEST

/* ---- vectors */

START_TEST(test_strv)
{
	const char *const strv[] = { "one", "", "three", NULL };
	char **copy = ad_strv_dup(strv);

	ck_assert_uint_eq(ad_strv_len(strv), 3);
	ck_assert_uint_eq(ad_strv_len(NULL), 0);
	for (size_t i = 0; i < 3; i++) {
		ck_assert_str_eq(copy[i], strv[i]);
		ck_assert_ptr_ne(copy[i], strv[i]);
	}
	ck_assert_ptr_null(copy[3]);
	free(copy);
	copy = ad_strv_dup(NULL);
	ck_assert_ptr_nonnull(copy);
	ck_assert_ptr_null(copy[0]);
	free(copy);
}
END_TEST

START_TEST(test_strlist)
{
	struct ad_strlist list = { 0 };
	char text[16];

	for (int i = 0; i < 100; i++) {
		snprintf(text, sizeof(text), "item%d", i);
		ck_assert(!ad_strlist_has(&list, text));
		ck_assert_int_eq(ad_strlist_add(&list, text), 0);
		ck_assert(ad_strlist_has(&list, text));
	}
	ck_assert_uint_eq(list.count, 100);
	ck_assert_str_eq(list.items[42], "item42");
	ad_strlist_free(&list);
	ck_assert_uint_eq(list.count, 0);
	ck_assert(!ad_strlist_has(&list, "item1"));
}
END_TEST

/* ---- UTF-8 */

static const struct {
	const char *text;
	bool valid;
} utf8_cases[] = {
	{ "", true },
	{ "ascii", true },
	{ "\xc2\x80", true },
	{ "\xdf\xbf", true },
	{ "\xe0\xa0\x80", true },
	{ "\xed\x9f\xbf", true },
	{ "\xee\x80\x80", true },
	{ "\xef\xbf\xbf", true },
	{ "\xf0\x90\x80\x80", true },
	{ "\xf4\x8f\xbf\xbf", true },
	{ "\x80", false },
	{ "\xc0\x80", false },
	{ "\xc1\xbf", false },
	{ "\xc2", false },
	{ "\xc2 ", false },
	{ "\xe0\x9f\xbf", false },
	{ "\xe0\xa0", false },
	{ "\xed\xa0\x80", false },
	{ "\xed\xbf\xbf", false },
	{ "\xf0\x8f\xbf\xbf", false },
	{ "\xf4\x90\x80\x80", false },
	{ "\xf5\x80\x80\x80", false },
	{ "\xf8\x88\x80\x80\x80", false },
	{ "\xfe", false },
	{ "\xff", false },
};

START_TEST(test_utf8)
{
	const char *text = utf8_cases[_i].text;
	struct ad_utf8 state = { 0 };

	ck_assert_int_eq(ad_utf8_valid(text, strlen(text)), utf8_cases[_i].valid);
	for (const char *c = text; *c; c++)
		ad_utf8_feed(&state, (const uint8_t *)c, 1);
	ck_assert_int_eq(ad_utf8_done(&state), utf8_cases[_i].valid);
	if (state.bad) {
		ck_assert(!ad_utf8_feed(&state, (const uint8_t *)"a", 1)); /* for good */
		ck_assert(!ad_utf8_done(&state));
	}
}
END_TEST

/* Every code point, and that nothing between them is one. */
START_TEST(test_utf8_all)
{
	size_t valid = 0;

	for (uint32_t lead = 0; lead < 256; lead++) {
		for (uint32_t rest = 0; rest < 1u << 16; rest++) {
			uint8_t text[3] = { (uint8_t)lead, (uint8_t)(rest >> 8), (uint8_t)rest };

			valid += ad_utf8_valid(text, 3);
		}
	}
	/* Three of ASCII, ASCII and two bytes in both orders, one of three bytes. */
	ck_assert_uint_eq(valid, 128 * 128 * 128 + 2 * 128 * 1920 + (0x10000 - 0x800 - 2048));
}
END_TEST

/* ---- sized structs */

struct newer {
	uint32_t size, a, b, c;
};

START_TEST(test_sized_copy)
{
	struct newer src = { .size = sizeof(src), .a = 1, .b = 2, .c = 3 }, dst;
	struct {
		uint32_t size, a;
	} old = { .size = 8, .a = 9 }, small;
	agentd_error *err = NULL;

	ck_assert_int_eq(ad_sized_copy(&dst, sizeof(dst), &src, 8, "s", &err), 0);
	ck_assert_int_eq(memcmp(&dst, &src, sizeof(src)), 0);
	ck_assert_int_eq(ad_sized_copy(&dst, sizeof(dst), &old, 8, "s", &err), 0);
	ck_assert_uint_eq(dst.size, sizeof(dst));
	ck_assert_uint_eq(dst.a, 9);
	ck_assert_uint_eq(dst.b, 0);
	/* From a newer caller: what we do not know must be zero. */
	src.b = src.c = 0;
	ck_assert_int_eq(ad_sized_copy(&small, sizeof(small), &src, 8, "s", &err), 0);
	ck_assert_uint_eq(small.size, 8);
	ck_assert_uint_eq(small.a, 1);
	ck_assert_ptr_null(err);
	src.c = 0x01000000;
	small.a = 77;
	ck_refused(ad_sized_copy(&small, sizeof(small), &src, 8, "struct s", &refused),
		   AGENTD_ERR_ABI, "", "struct s: byte 15 is set");
	ck_assert_uint_eq(small.a, 77);
	src.size = 7;
	ck_refused(ad_sized_copy(&dst, sizeof(dst), &src, 8, "struct s", &refused), AGENTD_ERR_ABI,
		   "", "struct s: size is 7");
	src.size = 4097;
	ck_refused(ad_sized_copy(&dst, sizeof(dst), &src, 8, "struct s", &refused), AGENTD_ERR_ABI,
		   "", "size is 4097");
}
END_TEST

START_TEST(test_sized_store)
{
	struct newer src = { .size = sizeof(src), .a = 1, .b = 2, .c = 3 }, dst;
	struct {
		struct newer known;
		uint32_t later, fence;
	} large = { .known.size = 20, .later = 5, .fence = 6 };

	memset(&dst, 0xee, sizeof(dst));
	dst.size = 8;
	ck_assert_int_eq(ad_sized_store(&dst, &src, sizeof(src)), 0);
	ck_assert_uint_eq(dst.size, 8);
	ck_assert_uint_eq(dst.a, 1);
	ck_assert_uint_eq(dst.b, 0xeeeeeeee);
	ck_assert_int_eq(ad_sized_store(&large, &src, sizeof(src)), 0);
	ck_assert_uint_eq(large.known.size, 20);
	ck_assert_uint_eq(large.known.c, 3);
	ck_assert_uint_eq(large.later, 0);
	ck_assert_uint_eq(large.fence, 6);
	dst.size = 3;
	ck_assert_int_eq(ad_sized_store(&dst, &src, sizeof(src)), AGENTD_ERR_ABI);
	dst.size = UINT32_MAX;
	ck_assert_int_eq(ad_sized_store(&dst, &src, sizeof(src)), AGENTD_ERR_ABI);
}
END_TEST

/* ---- paths */

static const struct {
	const char *path;
	enum ad_path_verdict verdict;
} path_cases[] = {
	{ "/", AD_PATH_OK },         { "/a", AD_PATH_OK },        { "/a/.b/..c/...", AD_PATH_OK },
	{ "", AD_PATH_EMPTY },       { "a", AD_PATH_RELATIVE },   { "../../etc", AD_PATH_RELATIVE },
	{ "./a", AD_PATH_RELATIVE }, { "//", AD_PATH_DOTS },      { "//a", AD_PATH_DOTS },
	{ "/a/", AD_PATH_DOTS },     { "/a//b", AD_PATH_DOTS },   { "/.", AD_PATH_DOTS },
	{ "/..", AD_PATH_DOTS },     { "/a/../b", AD_PATH_DOTS }, { "/a/./b", AD_PATH_DOTS },
	{ "/a/..", AD_PATH_DOTS },
};

START_TEST(test_path_check)
{
	ck_assert_int_eq(ad_path_check(path_cases[_i].path), path_cases[_i].verdict);
	ck_assert_str_ne(ad_path_verdict_text(path_cases[_i].verdict), "");
}
END_TEST

START_TEST(test_path_long)
{
	char path[PATH_MAX + 1];

	memset(path, 'a', sizeof(path));
	path[0] = '/';
	path[PATH_MAX - 1] = '\0';
	ck_assert_int_eq(ad_path_check(path), AD_PATH_OK);
	path[PATH_MAX - 1] = 'a';
	path[PATH_MAX] = '\0';
	ck_assert_int_eq(ad_path_check(path), AD_PATH_LONG);
}
END_TEST

START_TEST(test_path_beneath)
{
	ck_assert(ad_path_beneath("/a/b", "/a"));
	ck_assert(ad_path_beneath("/a", "/a"));
	ck_assert(ad_path_beneath("/a", "/"));
	ck_assert(ad_path_beneath("/", "/"));
	ck_assert(!ad_path_beneath("/ab", "/a"));
	ck_assert(!ad_path_beneath("/", "/a"));
	ck_assert(!ad_path_beneath("/a", "/a/b"));
}
END_TEST

/* ---- log records */

/* ---- numbers */

START_TEST(test_decimal)
{
	static const struct {
		uint64_t value;
		const char *text;
	} cases[] = { { 0, "0" },
		      { 9, "9" },
		      { 10, "10" },
		      { 1000007, "1000007" },
		      { UINT64_MAX, "18446744073709551615" } };
	ad_autobuf struct ad_buf buf = { 0 };
	char text[AD_DECIMAL_SIZE];

	for (size_t i = 0; i < AD_COUNT(cases); i++) {
		ck_assert_uint_eq(ad_decimal(cases[i].value, text), strlen(cases[i].text));
		ck_assert_str_eq(text, cases[i].text);
		buf.len = 0;
		ck_assert(ad_buf_decimal(&buf, cases[i].value));
		ck_assert_str_eq(buf.data, cases[i].text);
	}
}
END_TEST

START_TEST(test_record_numbers)
{
	struct ad_record record = { .count = 0 };

	ad_record_i64(&record, "most", INT64_MAX);
	ad_record_i64(&record, "least", INT64_MIN);
	ad_record_i64(&record, "minus", -1);
	ad_record_u64(&record, "all", UINT64_MAX);
	ck_assert_str_eq(record.fields[0].value, "9223372036854775807");
	ck_assert_str_eq(record.fields[1].value, "-9223372036854775808");
	ck_assert_str_eq(record.fields[2].value, "-1");
	ck_assert_str_eq(record.fields[3].value, "18446744073709551615");
}
END_TEST

START_TEST(test_log_record)
{
	const struct ad_log_field fields[] = { { "a", "1" }, { "b", "2" } };
	const agentd_log_record record = { .level = AGENTD_LOG_WARN,
					   .component = "core",
					   .message = "hello",
					   .fields = fields,
					   .field_count = 2 };

	ck_assert_int_eq(agentd_log_record_level(&record), AGENTD_LOG_WARN);
	ck_assert_str_eq(agentd_log_record_component(&record), "core");
	ck_assert_str_eq(agentd_log_record_message(&record), "hello");
	ck_assert_uint_eq(agentd_log_record_field_count(&record), 2);
	ck_assert_str_eq(agentd_log_record_field_key(&record, 1), "b");
	ck_assert_str_eq(agentd_log_record_field_value(&record, 1), "2");
	ck_assert_ptr_null(agentd_log_record_field_key(&record, 2));
	ck_assert_ptr_null(agentd_log_record_field_value(&record, 2));
	ck_assert_int_eq(agentd_log_record_level(NULL), AGENTD_LOG_ERROR);
	ck_assert_str_eq(agentd_log_record_component(NULL), "");
	ck_assert_str_eq(agentd_log_record_message(NULL), "");
	ck_assert_uint_eq(agentd_log_record_field_count(NULL), 0);
	ck_assert_ptr_null(agentd_log_record_field_key(NULL, 0));
	ck_assert_ptr_null(agentd_log_record_field_value(NULL, 0));
}
END_TEST

/* ---- keys of what is kept */

/* A NUL in a file, such as SELinux ends a context with, does not hide what comes after it. */
START_TEST(test_cache_key)
{
	char path[] = "/tmp/agentd-test-util.XXXXXX";
	ad_autobuf struct ad_buf key = { 0 };
	int fd = mkstemp(path);

	ck_assert_int_ge(fd, 0);
	ck_assert_int_eq(write(fd, "a context\0", 10), 10);
	close(fd);
	ad_cache_key_text(&key, path);
	ad_cache_key_file(&key, path);
	ck_assert_int_eq(unlink(path), 0);
	ad_cache_key_text(&key, path); /* there is none: its name alone */
	ck_assert(!key.failed);
	ck_assert_uint_eq(strlen(key.data), key.len);
	ck_assert_ptr_nonnull(strstr(key.data, "a context\n"));
	ck_assert_ptr_nonnull(strstr(key.data, " 10 "));
	ck_assert_str_eq(key.data + key.len - 3, ": \n");
}
END_TEST

int main(void)
{
	TCase *tc = tcase_create("util");

	tcase_add_test(tc, test_error_made);
	tcase_add_test(tc, test_error_errno);
	tcase_add_test(tc, test_error_out_of_memory);
	tcase_add_test(tc, test_error_prefix);
	tcase_add_test(tc, test_error_one_line);
	tcase_add_test(tc, test_error_create);
	tcase_add_test(tc, test_error_null);
	tcase_add_test(tc, test_strerror);
	tcase_add_test(tc, test_cleanup);
	tcase_add_test(tc, test_keep_errno);
	tcase_add_test(tc, test_list);
	tcase_add_test(tc, test_refcount);
	tcase_add_test(tc, test_buf);
	tcase_add_test(tc, test_buf_failed);
	tcase_add_test(tc, test_strv);
	tcase_add_test(tc, test_strlist);
	tcase_add_loop_test(tc, test_utf8, 0, (int)AD_COUNT(utf8_cases));
	tcase_add_test(tc, test_utf8_all);
	tcase_add_test(tc, test_sized_copy);
	tcase_add_test(tc, test_sized_store);
	tcase_add_loop_test(tc, test_path_check, 0, (int)AD_COUNT(path_cases));
	tcase_add_test(tc, test_path_long);
	tcase_add_test(tc, test_path_beneath);
	tcase_add_test(tc, test_decimal);
	tcase_add_test(tc, test_record_numbers);
	tcase_add_test(tc, test_log_record);
	tcase_add_test(tc, test_cache_key);
	return unit_run("util", tc);
}
