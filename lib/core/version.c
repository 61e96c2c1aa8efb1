/* SPDX-License-Identifier: MIT */
#include <agentd/version.h>

#include "loop/loop.h"

#define TEXT_(x) #x
#define TEXT(x) TEXT_(x)

uint32_t agentd_version_number(void)
{
	return AGENTD_VERSION_MAJOR << 16 | AGENTD_VERSION_MINOR << 8 | AGENTD_VERSION_PATCH;
}

const char *agentd_version_string(void)
{
	return TEXT(AGENTD_VERSION_MAJOR) "." TEXT(AGENTD_VERSION_MINOR) "." TEXT(
		AGENTD_VERSION_PATCH);
}

uint32_t agentd_libevent_version_number(void)
{
	return EVENT__NUMERIC_VERSION; /* LIBEVENT_VERSION_NUMBER, from event-config.h */
}
