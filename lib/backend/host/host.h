/* SPDX-License-Identifier: MIT */
/* The host backend: commands run as the host program's user, confined by nothing
 * but limits. */
#ifndef AD_BACKEND_HOST_H
#define AD_BACKEND_HOST_H

#include <agentd/backend.h>

/* userdata at registration: the struct ad_launcher, which outlives the backend. */
const struct agentd_backend_ops *ad_host_backend_ops(void);

#endif
