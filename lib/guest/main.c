/* SPDX-License-Identifier: MIT */
/* agentd-guest: the agent in a virtual machine, and on the host what carries its working
 * directory. One program, so that both sides pack and unpack with the same code. */
#include "guest/guest.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include <agentd/version.h>

#include "archive/archive.h"

int main(int argc, char **argv)
{
	if (getpid() == 1)
		agent_run(boot_port());
	if (argc >= 2 && strcmp(argv[1], "carry") == 0)
		return ad_archive_carry(argc - 1, argv + 1);
	if (argc == 2 && strcmp(argv[1], "--version") == 0) {
		printf("agentd-guest %d.%d.%d protocol %d\n", AGENTD_VERSION_MAJOR,
		       AGENTD_VERSION_MINOR, AGENTD_VERSION_PATCH, AD_GUEST_VERSION);
		return 0;
	}
	fputs("usage: agentd-guest carry DIR --max-bytes N\n"
	      "       agentd-guest --version\n"
	      "As the first process of a virtual machine it serves libagentd.\n",
	      stderr);
	return 2;
}
