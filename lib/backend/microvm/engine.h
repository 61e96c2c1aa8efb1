/* SPDX-License-Identifier: MIT */
/* What runs a virtual machine. A machine knows its engine by this only: nothing of one
 * monitor's command line or ways shows above. */
#ifndef AD_BACKEND_MICROVM_ENGINE_H
#define AD_BACKEND_MICROVM_ENGINE_H

#include "launch/launch.h"

struct engine;
struct image;

enum accel { ACCEL_TCG, ACCEL_KVM, ACCEL_COUNT };

/* Borrowed until start() returns. */
struct engine_config {
	struct ad_launcher *launcher;
	const char *program;
	const struct image *image;
	enum accel accel;
	uint64_t memory_bytes;
	uint64_t tsc_khz; /* of this machine, for ACCEL_TCG */
	int channel;      /* the guest's end */
	uint32_t uid, gid;
};

struct engine_events {
	void (*started)(struct engine *engine, int32_t pid, const struct ad_launch_receipt *receipt,
			void *userdata);
	/* It is gone, and how. Last event; err is the receiver's. */
	void (*died)(struct engine *engine, agentd_error *err, void *userdata);
};

struct engine_ops {
	const char *name;
	/* Events come from the loop, never from inside of a call. */
	int (*start)(const struct engine_config *config, const struct engine_events *events,
		     void *userdata, struct engine **ret, agentd_error **reterr);
	void (*kill)(struct engine *engine); /* died follows */
	void (*free)(struct engine *engine); /* kills it too, without a word */
};

extern const struct engine_ops engine_qemu;

#endif
