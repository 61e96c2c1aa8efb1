/* SPDX-License-Identifier: MIT */
/* The sandbox backend: commands in namespaces of their own, with a file system view made
 * from the policy, Landlock, a system call filter and no privileges. What is put up is
 * the helper's work; here is what of it is asked for, and what became of it. */
#ifndef AD_BACKEND_SANDBOX_H
#define AD_BACKEND_SANDBOX_H

#include <agentd/backend.h>

struct ad_launcher;

enum {
	AD_SANDBOX_UID = 65530, /* and the group, unless the runner's options say */
	AD_SANDBOX_PREWARM_MAX = 64
};
#define AD_SANDBOX_TMP_BYTES (UINT64_C(1) << 30)

/* userdata at registration; copied. */
struct ad_sandbox_opts {
	struct ad_launcher *launcher; /* outlives the backend */
	uint32_t uid, gid;            /* outside, when the host program is root */
	uint32_t prewarm;             /* sandboxes to keep ready */
	uint64_t tmp_bytes;
};

const struct agentd_backend_ops *ad_sandbox_backend_ops(void);

#endif
