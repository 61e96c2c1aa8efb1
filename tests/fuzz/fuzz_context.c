/* SPDX-License-Identifier: MIT */
/* A host program's context. */
#include "fuzz.h"

#include <agentd/agentd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	agentd_context *context = NULL;
	agentd_error *err = NULL;

	if (agentd_context_from_json((const char *)data, size, &context, &err) < 0) {
		FUZZ_CHECK(err && *agentd_error_message(err) && !context);
		agentd_error_unref(err);
		return 0;
	}
	FUZZ_CHECK(!err && context);
	agentd_context_unref(context);
	return 0;
}
