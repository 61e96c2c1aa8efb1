/* SPDX-License-Identifier: MIT */
/* The microvm backend: each command in a virtual machine of its own, with a kernel and a
 * root file system of its own, and the working directory carried in and back out.
 * docs/microvm.md has the whole picture. */
#ifndef AD_BACKEND_MICROVM_H
#define AD_BACKEND_MICROVM_H

#include <stdbool.h>

#include <agentd/backend.h>

#include "backend/sandbox/sandbox.h"

enum {
	AD_MICROVM_UID = 65531 /* and the group: the monitor's, and nobody else's */
};
#define AD_MICROVM_MEMORY_BYTES (UINT64_C(512) << 20)
#define AD_MICROVM_WORKDIR_BYTES (UINT64_C(256) << 20)
/* Less does not boot: kernel, initramfs and agent take 80 MiB of it. */
#define AD_MICROVM_MEMORY_LEAST (UINT64_C(128) << 20)

/* userdata at registration; copied, with its strings. */
struct ad_microvm_opts {
	struct ad_sandbox_opts sandbox; /* for what carries the working directory */
	const char *image;              /* directory; NULL: the default one */
	const char *monitor;            /* QEMU; NULL: the installed one */
	const char *guest;              /* agentd-guest; NULL: beside the helper */
	bool snapshots;                 /* for commands without a session too */
	uint64_t memory_bytes;          /* of a machine */
	uint64_t workdir_bytes;         /* most that is carried */
	uint32_t uid, gid;              /* the monitor's, when the host program is root */
};

const struct agentd_backend_ops *ad_microvm_backend_ops(void);

#endif
