/* SPDX-License-Identifier: MIT */
/* A pool's configuration. */
#include "fuzz.h"

#include <string.h>

#include "pool/private.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct pool_config config;
	agentd_error *err = NULL;

	if (pool_config_read(&config, (const char *)data, size, &err) < 0) {
		FUZZ_CHECK(err && *agentd_error_message(err));
		agentd_error_unref(err);
		return 0;
	}
	FUZZ_CHECK(!err && config.backend && config.shell_argv[0]);
	FUZZ_CHECK(!config.enabled ||
		   (config.volume_root && config.max_vms > 0 && config.idle_s > 0 &&
		    config.prune_s > 0 && (!config.backup_s || config.backup_destination)));
	pool_config_free(&config);
	return 0;
}
