/* SPDX-License-Identifier: MIT */
/* conformance NAME: judge one of the backends that are known here. */
#include <stdio.h>
#include <string.h>

#include "conformance.h"

int main(int argc, char **argv)
{
	static const struct conf_backend known[] = {
		{ "host", NULL, CONF_TREE | CONF_LIMITS | CONF_HOST_FS },
		{ "sandbox", NULL, CONF_TREE | CONF_LIMITS },
		{ "test-attach", test_backend_add_attach, CONF_HOST_FS },
		{ "test-deliver", test_backend_add_deliver, CONF_HOST_FS },
	};

	for (size_t i = 0; argc == 2 && i < sizeof(known) / sizeof(known[0]); i++) {
		if (strcmp(argv[1], known[i].name) == 0)
			return conformance_main(&known[i]);
	}
	fprintf(stderr, "usage: conformance host|sandbox|test-attach|test-deliver\n");
	return 2;
}
