/* SPDX-License-Identifier: MIT */
/* An operator's policy. */
#include "fuzz.h"

#include <string.h>

#include <agentd/agentd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	agentd_policy *policy = NULL, *again = NULL;
	char *text = NULL, *same = NULL;
	agentd_error *err = NULL;
	size_t len;

	if (agentd_policy_from_json((const char *)data, size, &policy, &err) < 0) {
		FUZZ_CHECK(err && *agentd_error_message(err) && !policy);
		agentd_error_unref(err);
		return 0;
	}
	FUZZ_CHECK(!err);
	/* What it is written as is read as the same. */
	FUZZ_CHECK(agentd_policy_to_json(policy, &text, &len, NULL) == 0);
	FUZZ_CHECK(agentd_policy_from_json(text, len, &again, NULL) == 0);
	FUZZ_CHECK(agentd_policy_to_json(again, &same, NULL, NULL) == 0);
	FUZZ_CHECK(strcmp(text, same) == 0);
	agentd_free(text);
	agentd_free(same);
	agentd_policy_unref(policy);
	agentd_policy_unref(again);
	return 0;
}
