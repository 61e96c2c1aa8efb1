/* SPDX-License-Identifier: MIT */
/* What to run. Implements agentd/params.h. */
#ifndef AD_CORE_PARAMS_H
#define AD_CORE_PARAMS_H

#include <agentd/params.h>

#include "util/util.h"

enum { AD_PARAMS_TIMEOUT_MS = 30000 };

/* Immutable. Exactly one of script and argv is set. */
struct agentd_params {
	ad_refcount refs;
	char *script;
	char **argv;
	uint64_t timeout_ms; /* at least 1 */
};

/* Whether text is empty but for Unicode white space. */
bool ad_params_blank(const char *text);
/* Bytes of text (valid UTF-8) without the Unicode white space at its end. */
size_t ad_params_trim_end(const char *text, size_t len);
/* Bytes of the longest string that execve() takes, without the NUL. */
size_t ad_params_arg_max(void);

#endif
