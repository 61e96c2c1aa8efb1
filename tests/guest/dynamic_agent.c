/* SPDX-License-Identifier: MIT */
#include <stdio.h>

int main(void)
{
	puts("agentd-guest 0.0.0 protocol 1");
	return 0;
}
