/* SPDX-License-Identifier: MIT */
/* Private to the microvm backend:
 *   microvm.c  the backend: what it has, what it refuses;
 *   image.c    the files that a machine boots from;
 *   accel.c    KVM or TCG;
 *   engine.h, qemu.c  the monitor that runs a machine;
 *   machine.c  a machine: from nothing to an agent that answers, and to its end;
 *   carrier.c  the working directory's way in and back out;
 *   task.c     one command: its machine, its carrier, and their order. */
#ifndef AD_BACKEND_MICROVM_PRIVATE_H
#define AD_BACKEND_MICROVM_PRIVATE_H

#include <stdbool.h>

#include "backend/local/local.h"
#include "backend/microvm/engine.h"
#include "backend/microvm/microvm.h"
#include "loop/loop.h"
#include "proto/guest.h"
#include "sys/sys.h"
#include "util/util.h"

#define MICROVM_MS UINT64_C(1000000)

/* ---- microvm.c */

enum kvm_verdict { KVM_UNKNOWN, KVM_USABLE, KVM_UNUSABLE };

struct microvm {
	const struct engine_ops *engine;
	struct ad_launcher *launcher;
	struct ad_sandbox_opts sandbox;
	struct ad_local_environment environment;
	char *image_dir, *monitor, *guest;
	uint64_t memory_bytes, memory_most, workdir_bytes;
	uint32_t uid, gid;
	enum kvm_verdict kvm;
	struct ad_buf kvm_reason; /* why UNUSABLE */
	/* Two looks at the clocks tell the rate of one by the other; this is the first. */
	uint64_t first_tsc, first_ns;
};

/* What of the specification this backend cannot honour, or refuses to. */
int microvm_check(const agentd_spec *spec, agentd_error **reterr);

/* ---- image.c */

struct image {
	int kernel, initramfs, root; /* descriptors */
};

/* root: a file to boot from instead of the image's, or NULL. */
int image_open(const char *dir, const char *root, struct image *ret, agentd_error **reterr);
void image_close(struct image *image);
char *image_default_dir(void); /* malloc'ed, or NULL */

/* ---- accel.c */

const char *accel_name(enum accel accel);
/* What is known already. */
void accel_load(struct microvm *vm);
/* The trial is over. */
void accel_learn(struct microvm *vm, bool usable, const char *why);

/* ---- machine.c */

struct machine;

struct machine_events {
	/* It has booted and is set up: messages may be sent. */
	void (*ready)(struct machine *machine, void *userdata);
	/* Any message of the agent after that. May send, not free. */
	void (*message)(struct machine *machine, const struct ad_guest_msg *msg, void *userdata);
	/* As of a link. */
	void (*writable)(struct machine *machine, uint32_t id, enum ad_guest_stream stream,
			 void *userdata);
	/* Nothing of it is left. Last event; err, why, is the receiver's. */
	void (*died)(struct machine *machine, agentd_error *err, void *userdata);
};

struct machine_config {
	const char *root; /* NULL: the image's */
	uint64_t memory_bytes;
	bool require_kvm;
};

/* What is known of a machine that is ready. */
struct machine_facts {
	enum accel accel;
	int32_t pid; /* the monitor's */
	uint32_t uid;
	uint8_t landlock_abi;  /* of the monitor; 0: none */
	uint64_t memory_bytes; /* that the guest's kernel has */
	uint64_t boot_ns;
	char kernel[64];
};

/* Boot one. Events come from the loop, never from inside of a call. */
int machine_new(struct microvm *vm, const struct machine_config *config,
		const struct machine_events *events, void *userdata, struct machine **ret,
		agentd_error **reterr);
const struct machine_facts *machine_facts(const struct machine *machine);
/* As of a link. */
bool machine_send(struct machine *machine, const struct ad_guest_msg *msg);
size_t machine_data(struct machine *machine, uint32_t id, enum ad_guest_stream stream,
		    const uint8_t *data, size_t len);
void machine_taken(struct machine *machine, uint32_t id, enum ad_guest_stream stream, size_t len);
void machine_kill(struct machine *machine); /* died follows */
void machine_free(struct machine *machine); /* kills it too, without a word */

/* ---- carrier.c */

struct carrier;

struct carrier_events {
	/* The archive of the directory. Returns how much was taken; then, if not all,
	 * carrier_go_on(). */
	size_t (*pack)(struct carrier *carrier, const uint8_t *data, size_t len, void *userdata);
	/* All of it has come. */
	void (*packed)(struct carrier *carrier, uint64_t entries, uint64_t bytes, void *userdata);
	/* So many bytes of changes were passed on. */
	void (*taken)(struct carrier *carrier, size_t len, void *userdata);
	/* It ended. Last event. err (the receiver's): it could not do all it had to, and
	 * why; NULL: all that was handed over is applied, but for what was denied. */
	void (*over)(struct carrier *carrier, agentd_error *err, void *userdata);
};

/* What is skipped, denied or in conflict is told to task. */
int carrier_new(struct microvm *vm, agentd_task *task, const agentd_spec *spec,
		const struct carrier_events *events, void *userdata, struct carrier **ret,
		agentd_error **reterr);
/* More of the archive may come. */
void carrier_go_on(struct carrier *carrier);
/* The archive of changes, in pieces of at most AD_GUEST_WINDOW in all that are not taken;
 * and its end, without which nothing more is applied. */
void carrier_apply(struct carrier *carrier, const uint8_t *data, size_t len);
void carrier_end(struct carrier *carrier);
void carrier_kill(struct carrier *carrier); /* over follows */
void carrier_free(struct carrier *carrier); /* kills it too, without a word */

/* ---- task.c: the members of struct agentd_backend_ops */

int32_t task_start(void *self, agentd_task *task, const agentd_spec *spec, void **ret_state,
		   agentd_error **reterr);
int32_t task_kill(void *state);
int32_t task_signal(void *state, int32_t signo);
int32_t task_write(void *state, const uint8_t *data, size_t len, size_t *ret_taken);
int32_t task_close_stdin(void *state);
int32_t task_set_paused(void *state, agentd_stream stream, int32_t paused);
void task_free(void *state);

#endif
