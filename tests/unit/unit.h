/* SPDX-License-Identifier: MIT */
/* What the unit tests share. */
#ifndef AD_TESTS_UNIT_H
#define AD_TESTS_UNIT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <check.h>

#include <agentd/error.h>

#include "util/util.h"

/* The call, which puts its error in `refused`, fails with this code, at this pointer,
 * and says this among others. */
#define ck_refused(call, want_code, want_pointer, want_text)                                       \
	do {                                                                                       \
		agentd_error *refused = NULL;                                                      \
		int refused_r = (call);                                                            \
                                                                                                   \
		ck_assert_int_eq(refused_r, want_code);                                            \
		ck_assert_ptr_nonnull(refused);                                                    \
		ck_assert_int_eq(agentd_error_code(refused), want_code);                           \
		ck_assert_msg(strstr(agentd_error_message(refused), want_text) != NULL,            \
			      "\"%s\" does not say \"%s\"", agentd_error_message(refused),         \
			      want_text);                                                          \
		ck_assert_str_eq(agentd_error_pointer(refused), want_pointer);                     \
		agentd_error_unref(refused);                                                       \
	} while (0)

/* text, count times. In blocks: under valgrind a call for each byte takes longer than what is
 * tested with it. */
static inline void unit_repeat(struct ad_buf *buf, const char *text, size_t count)
{
	char block[4096];
	const size_t len = strlen(text), fit = sizeof(block) / len;

	for (size_t i = 0; i < fit; i++)
		memcpy(block + i * len, text, len);
	for (; count > fit; count -= fit)
		ad_buf_append(buf, block, fit * len);
	ad_buf_append(buf, block, count * len);
}

/* Sanitizers and valgrind change what memory and time a call takes. */
static inline bool unit_instrumented(void)
{
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
	return true;
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer) ||                         \
	__has_feature(memory_sanitizer)
	return true;
#endif
#endif
	const char *preload = getenv("LD_PRELOAD");

	return preload && strstr(preload, "vgpreload");
}

/* Run the tests added to tc as one suite; what main() returns. */
static inline int unit_run(const char *name, TCase *tc)
{
	Suite *suite = suite_create(name);
	SRunner *runner;
	int failed;

	tcase_set_timeout(tc, 120);
	suite_add_tcase(suite, tc);
	runner = srunner_create(suite);
	srunner_run_all(runner, CK_ENV);
	failed = srunner_ntests_failed(runner);
	srunner_free(runner);
	return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}

#endif
