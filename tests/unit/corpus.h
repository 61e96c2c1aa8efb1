/* SPDX-License-Identifier: MIT */
/* The 55 kinds of bad JSON: those in tests/json, and five too large to keep. */
#ifndef AD_TESTS_CORPUS_H
#define AD_TESTS_CORPUS_H

#include <sys/resource.h>
#include <time.h>

#include "unit.h"

/* The text of case `name`, of *ret_len bytes, to be freed. */
static inline char *corpus_file(const char *name, size_t *ret_len)
{
	char path[4096], chunk[4096];
	struct ad_buf buf = { 0 };
	size_t got;
	FILE *file;

	snprintf(path, sizeof(path), "%s/%s.json", AD_TEST_JSON_DIR, name);
	file = fopen(path, "re");
	ck_assert_msg(file != NULL, "%s is missing", path);
	while ((got = fread(chunk, 1, sizeof(chunk), file)) > 0)
		ad_buf_append(&buf, chunk, got);
	fclose(file);
	*ret_len = buf.len;
	return ad_buf_steal(&buf);
}

static inline char *corpus_text(const char *name, size_t *ret_len)
{
	struct ad_buf buf = { 0 };

	if (strcmp(name, "09_deep_array") == 0) {
		ad_buf_puts(&buf, "{\"command\":\"true\",\"x\":");
		unit_repeat(&buf, "[", 200000);
		unit_repeat(&buf, "]", 200000);
	} else if (strcmp(name, "10_deep_object") == 0) {
		ad_buf_puts(&buf, "{\"command\":\"true\",\"x\":");
		unit_repeat(&buf, "{\"a\":", 100000);
		ad_buf_puts(&buf, "1");
		unit_repeat(&buf, "}", 100000);
	} else if (strcmp(name, "11_command_5mib") == 0) {
		ad_buf_puts(&buf, "{\"command\":\"true ");
		unit_repeat(&buf, "x", 5 << 20);
		ad_buf_puts(&buf, "\"");
	} else if (strcmp(name, "53_key_1mib") == 0) {
		ad_buf_puts(&buf, "{\"command\":\"true\",\"");
		unit_repeat(&buf, "k", 1 << 20);
		ad_buf_puts(&buf, "\":1");
	} else if (strcmp(name, "53_key_short_of_1mib") == 0) {
		ad_buf_puts(&buf, "{\"command\":\"true\",\"");
		unit_repeat(&buf, "k", 1000000);
		ad_buf_puts(&buf, "\":1");
	} else if (strcmp(name, "54_keys_100000") == 0) {
		ad_buf_puts(&buf, "{\"command\":\"true\"");
		for (int i = 0; i < 100000; i++)
			ad_buf_printf(&buf, ",\"k%d\":1", i);
	} else if (strcmp(name, "54_keys_short_of_1mib") == 0) {
		ad_buf_puts(&buf, "{\"command\":\"true\"");
		for (int i = 0; i < 50000; i++)
			ad_buf_printf(&buf, ",\"k%d\":1", i);
	} else {
		return corpus_file(name, ret_len);
	}
	ad_buf_puts(&buf, "}");
	*ret_len = buf.len;
	return ad_buf_steal(&buf);
}

/* What a refusal may cost at most: the judge of the corpus allows 16 MiB, 50 ms. */
struct corpus_cost {
	long peak_kib;
	uint64_t cpu_ns;
};

static inline struct corpus_cost corpus_cost(void)
{
	struct timespec now;
	struct rusage usage;

	ck_assert_int_eq(getrusage(RUSAGE_SELF, &usage), 0);
	clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
	return (struct corpus_cost){ .peak_kib = usage.ru_maxrss,
				     .cpu_ns = (uint64_t)now.tv_sec * 1000000000u +
					       (uint64_t)now.tv_nsec };
}

static inline void corpus_check_cost(struct corpus_cost before)
{
	struct corpus_cost after = corpus_cost();

	if (unit_instrumented())
		return;
	ck_assert_int_lt(after.peak_kib - before.peak_kib, 4096);
	ck_assert_uint_lt(after.cpu_ns - before.cpu_ns, 50000000);
}

#endif
