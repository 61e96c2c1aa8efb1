/* SPDX-License-Identifier: MIT */
/* conformance NAME: judge one of the backends that are known here. With AGENTD_TEST_FULL
 * in the environment nothing is left out where it takes long. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "conformance.h"
#include "harness.h"

#ifdef BWRAP_FIRST
#include <unistd.h>

#include "bwrap/bwrap.h"

static int add_bwrap(agentd_runner *runner, agentd_error **reterr)
{
	return bwrap_add(runner, BWRAP_FIRST, reterr);
}

/* Whether bubblewrap runs anything here is its own to say. */
static bool can_bwrap(void)
{
	if (system("exec bwrap --unshare-all --cap-drop ALL --proc /proc --dev /dev "
		   "--ro-bind " BWRAP_FIRST " /dev/first /dev/first") == 0)
		return true;
	t_skip("bwrap (Debian: bubblewrap) cannot run here");
	return false;
}
#endif

int main(int argc, char **argv)
{
	const uint32_t brief = getenv("AGENTD_TEST_FULL") ? 0 : CONF_BRIEF;
	const struct conf_backend known[] = {
		{ "host", NULL, CONF_TREE | CONF_LIMITS | CONF_HOST_FS | CONF_READER },
		{ "sandbox", NULL, CONF_TREE | CONF_LIMITS | CONF_READER },
		{ "microvm", NULL, CONF_TREE | CONF_LIMITS | CONF_COSTLY | brief },
#ifdef BWRAP_FIRST
		{ "bwrap", add_bwrap, CONF_TREE | CONF_READER | CONF_REFUSES },
#endif
		{ "test-attach", test_backend_add_attach, CONF_HOST_FS | CONF_READER },
		{ "test-deliver", test_backend_add_deliver, CONF_HOST_FS | CONF_READER },
	};

	for (size_t i = 0; argc == 2 && i < sizeof(known) / sizeof(known[0]); i++) {
		if (strcmp(argv[1], known[i].name) != 0)
			continue;
		if (strcmp(argv[1], "microvm") == 0 && !t_can_host_machines())
			return 77;
#ifdef BWRAP_FIRST
		if (strcmp(argv[1], "bwrap") == 0 && !can_bwrap())
			return 77;
#endif
		return conformance_main(&known[i]);
	}
	fprintf(stderr, "usage: conformance host|sandbox|microvm|bwrap|test-attach|test-deliver\n");
	return 2;
}
