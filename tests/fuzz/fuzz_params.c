/* SPDX-License-Identifier: MIT */
/* A model's tool call. */
#include "fuzz.h"

#include <string.h>

#include <agentd/agentd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	agentd_params *params = NULL, *again = NULL;
	char *text = NULL, *same = NULL;
	agentd_error *err = NULL;
	size_t len;

	if (agentd_params_parse((const char *)data, size, &params, &err) < 0) {
		FUZZ_CHECK(err && *agentd_error_message(err) && !params);
		agentd_error_unref(err);
		return 0;
	}
	FUZZ_CHECK(!err);
	/* What it is written as is read as the same. */
	FUZZ_CHECK(agentd_params_to_json(params, &text, &len, NULL) == 0);
	FUZZ_CHECK(agentd_params_parse(text, len, &again, NULL) == 0);
	FUZZ_CHECK(agentd_params_to_json(again, &same, NULL, NULL) == 0);
	FUZZ_CHECK(strcmp(text, same) == 0);
	agentd_free(text);
	agentd_free(same);
	agentd_params_unref(params);
	agentd_params_unref(again);
	return 0;
}
