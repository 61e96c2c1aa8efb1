/* SPDX-License-Identifier: MIT */
#include "util/util.h"

#include <errno.h>
#include <stdlib.h>
#include <unistd.h>

void ad_util_freep(void *pointer_to_pointer)
{
	void **pointer = pointer_to_pointer;

	agentd_free(*pointer);
}

void ad_util_closep(const int *fd)
{
	int saved = errno;

	if (*fd >= 0)
		close(*fd);
	errno = saved;
}

void ad_util_errorp(agentd_error **err)
{
	agentd_error_unref(*err);
}

/* free() keeps errno only in recent C libraries. */
void agentd_free(void *ptr)
{
	int saved = errno;

	free(ptr);
	errno = saved;
}
