/* SPDX-License-Identifier: MIT */
/* What makes a helper one whose memory fails as the file beside it says. */
#include <unistd.h>

#include "fault.h"

__attribute__((__constructor__)) static void obey(void)
{
	alloc_fault = fault_inherit();
	if (alloc_fault)
		alloc_fault->pid = getpid();
}
