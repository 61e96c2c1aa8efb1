/* SPDX-License-Identifier: MIT */
/** @file
 * What this header was, and what the loaded library is.
 */
#ifndef AGENTD_VERSION_H
#define AGENTD_VERSION_H

#include <agentd/base.h>

#ifdef __cplusplus
extern "C" {
#endif

/** Version of this header. */
#define AGENTD_VERSION_MAJOR 0
/** Version of this header. */
#define AGENTD_VERSION_MINOR 1
/** Version of this header. */
#define AGENTD_VERSION_PATCH 0

/** Version of the loaded library: major << 16 | minor << 8 | patch. Never
 *  fails. [any thread] */
AGENTD_API uint32_t agentd_version_number(void);

/** Version of the loaded library as text, e.g. "0.1.0". Static storage.
 *  [any thread] */
AGENTD_API const char *agentd_version_string(void);

/** The libevent this library was built against, as LIBEVENT_VERSION_NUMBER. A
 *  host that shares a base compares it with its own event_get_version_number():
 *  both must load the same libevent (same soname). [any thread] */
AGENTD_API uint32_t agentd_libevent_version_number(void);

#ifdef __cplusplus
}
#endif

#endif
