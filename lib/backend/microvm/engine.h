/* SPDX-License-Identifier: MIT */
/* What runs a virtual machine. A machine knows its engine by this only: nothing of one
 * monitor's command line or ways shows above. */
#ifndef AD_BACKEND_MICROVM_ENGINE_H
#define AD_BACKEND_MICROVM_ENGINE_H

#include <stdbool.h>

#include "launch/launch.h"

struct engine;
struct image;

enum accel { ACCEL_TCG, ACCEL_KVM, ACCEL_COUNT };

enum engine_use {
	ENGINE_BOOT,     /* a machine that begins by booting */
	ENGINE_TEMPLATE, /* the same, of which a snapshot can be taken */
	ENGINE_CLONE     /* one that goes on where the snapshot was taken */
};

/* Borrowed until start() returns. */
struct engine_config {
	struct ad_launcher *launcher;
	const char *program;
	const struct image *image;
	enum engine_use use;
	enum accel accel;
	uint64_t memory_bytes;
	uint64_t tsc_khz; /* of this machine, for ACCEL_TCG */
	int channel;      /* the guest's end */
	/* TEMPLATE, CLONE: files in memory, of the snapshot: the machine's memory, of
	 * memory_bytes, and all else. */
	int memory, state;
	int volume; /* BOOT: the file of the disk "vol", or -1 */
	uint32_t uid, gid;
};

struct engine_events {
	void (*started)(struct engine *engine, int32_t pid, const struct ad_launch_receipt *receipt,
			void *userdata);
	/* CLONE: the guest runs. TEMPLATE: after save(), the snapshot is complete; the guest
	 * stands still. */
	void (*migrated)(struct engine *engine, void *userdata);
	/* CLONE: after attach(), the guest has its disk. */
	void (*attached)(struct engine *engine, void *userdata);
	/* It is gone, and how. ran: what it says is about the machine; else it could not be
	 * started, or who watches it is gone. Last event; err is the receiver's. */
	void (*died)(struct engine *engine, bool ran, agentd_error *err, void *userdata);
};

struct engine_ops {
	const char *name;
	/* Events come from the loop, never from inside of a call. */
	int (*start)(const struct engine_config *config, const struct engine_events *events,
		     void *userdata, struct engine **ret, agentd_error **reterr);
	/* TEMPLATE: take the snapshot; migrated or died follows. */
	int (*save)(struct engine *engine, int state, agentd_error **reterr);
	/* CLONE, once its guest runs: put this file, of so many bytes, behind the disk "vol",
	 * which has been a placeholder; attached or died follows. */
	int (*attach)(struct engine *engine, int volume, uint64_t bytes, agentd_error **reterr);
	void (*kill)(struct engine *engine); /* died follows */
	void (*free)(struct engine *engine); /* kills it too, without a word */
};

extern const struct engine_ops engine_qemu;

#endif
