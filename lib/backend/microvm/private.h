/* SPDX-License-Identifier: MIT */
/* Private to the microvm backend:
 *   microvm.c  the backend: what it has, what it refuses;
 *   image.c    the files that a machine boots from;
 *   accel.c    KVM or TCG;
 *   engine.h, qemu.c, qmp.c  the monitor that runs a machine;
 *   machine.c  a machine: from nothing to an agent that answers, and to its end;
 *   template.c a machine that was booted once, from which others go on;
 *   carrier.c  the working directory's way in and back out;
 *   net.c      the connections of a command, to the library's proxy;
 *   task.c     one command: its machine, its carrier, and their order;
 *   session.c  a machine that stays, with a disk of its own. */
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

/* Whom a command runs as in its machine, as in a sandbox. */
enum { MICROVM_GUEST_UID = 1000 };

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
	struct ad_list templates;
	bool template_always; /* for commands without a session too */
	/* Two looks at the clocks tell the rate of one by the other; this is the first. */
	uint64_t first_tsc, first_ns;
};

/* What of the specification this backend cannot honour, or refuses to. */
int microvm_check(const agentd_spec *spec, agentd_error **reterr);

/* ---- image.c */

struct image {
	int kernel, initramfs, root; /* descriptors */
};

#define IMAGE_NONE ((struct image){ .kernel = -1, .initramfs = -1, .root = -1 })

/* root: a file to boot from instead of the image's, or NULL. */
int image_open(const char *dir, const char *root, struct image *ret, agentd_error **reterr);
/* Whether both are the same files, unchanged. */
bool image_same(const struct image *a, const struct image *b);
/* The file system that a new volume of so many bytes begins with, the largest that is not
 * larger: a descriptor or a code. */
int image_open_volume(const char *dir, uint64_t bytes, agentd_error **reterr);
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
	/* It has booted and is set up: messages may be sent. Of a spare first: it waits for
	 * machine_go_on(). */
	void (*ready)(struct machine *machine, void *userdata);
	/* Any message of the agent after that, and what it logs before, or what is to be
	 * logged of the machine itself. May send, not free. */
	void (*message)(struct machine *machine, const struct ad_guest_msg *msg, void *userdata);
	/* As of a link. */
	void (*writable)(struct machine *machine, uint32_t id, enum ad_guest_stream stream,
			 void *userdata);
	void (*connection_writable)(struct machine *machine, uint32_t id, uint16_t connection,
				    void *userdata);
	/* Nothing of it is left. Last event; err, why, is the receiver's. */
	void (*died)(struct machine *machine, agentd_error *err, void *userdata);
};

/* A disk that outlives it. */
struct machine_volume {
	int fd;
	uint64_t bytes;
	const char *file; /* for messages */
	const char *path; /* where the guest has it */
	uint32_t uid, gid;
};

struct machine_config {
	const char *root; /* NULL: the image's */
	uint64_t memory_bytes;
	bool require_kvm;
	bool from_template;                  /* where one can be had */
	bool spare;                          /* from one and nothing else; its volume follows */
	const struct machine_volume *volume; /* or NULL; lives as long as the machine */
};

/* What is known of a machine that is ready. */
struct machine_facts {
	enum accel accel;
	int32_t pid; /* the monitor's */
	uint32_t uid;
	uint8_t landlock_abi;  /* of the monitor; 0: none */
	uint64_t memory_bytes; /* that the guest's kernel has */
	uint64_t boot_ns;      /* or of the template's, then until it went on */
	uint64_t restore_ns;   /* 0: it was booted */
	char kernel[64];
};

/* Boot one. Events come from the loop, never from inside of a call. */
int machine_new(struct microvm *vm, const struct machine_config *config,
		const struct machine_events *events, void *userdata, struct machine **ret,
		agentd_error **reterr);
/* One to make a template of: ready says that the snapshot is complete. memory, state: as an
 * engine's. image lives as long as it. */
int machine_new_template(struct microvm *vm, const struct image *image, uint64_t memory_bytes,
			 int memory, int state, const struct machine_events *events, void *userdata,
			 struct machine **ret, agentd_error **reterr);
/* Whether it is a spare that waits, and as config asks for. */
bool machine_fits(const struct machine *machine, const struct machine_config *config);
/* Such a one gets its volume and is set up: ready follows, or died. */
int machine_go_on(struct machine *machine, const struct machine_volume *volume,
		  agentd_error **reterr);
const struct machine_facts *machine_facts(const struct machine *machine);
/* The first bytes that its agent has sent: one HELLO. */
const struct ad_buf *machine_hello(const struct machine *machine);
bool machine_is_up(const struct machine *machine);
/* As of a link. */
bool machine_send(struct machine *machine, const struct ad_guest_msg *msg);
bool machine_holds(const struct machine *machine, enum ad_guest_type type, uint32_t id);
size_t machine_data(struct machine *machine, uint32_t id, enum ad_guest_stream stream,
		    const uint8_t *data, size_t len);
void machine_taken(struct machine *machine, uint32_t id, enum ad_guest_stream stream, size_t len);
size_t machine_connection_room(struct machine *machine, uint32_t id, uint16_t connection);
void machine_connection_data(struct machine *machine, uint32_t id, uint16_t connection,
			     const uint8_t *data, size_t len);
void machine_connection_taken(struct machine *machine, uint32_t id, uint16_t connection,
			      size_t len);
/* All processes in it end, its volume is complete, then it dies: died follows, after
 * grace_ms and 3 s at most. */
void machine_stop(struct machine *machine, uint32_t grace_ms);
void machine_kill(struct machine *machine); /* died follows */
void machine_free(struct machine *machine); /* kills it too, without a word */

/* ---- template.c */

struct template;

struct template_watch {
	struct ad_list link;
	struct ad_defer known_already;
	struct template *template;
	/* Once, from the loop. template NULL: there is none, and why not; bootable: what
	 * does not go on from one may boot nevertheless. err is borrowed. */
	void (*known)(struct template_watch *watch, struct template *template,
		      const agentd_error *err, bool bootable);
};

struct template_facts {
	const struct image *image;
	int memory, state;
	enum accel accel;
	uint64_t boot_ns;
	const struct ad_buf *hello;
};

/* The template for such a machine; it is made if there is none. The watch is over with
 * known(), or template_unwatch(), which is idempotent. */
int template_watch(struct microvm *vm, const struct image *image, uint64_t memory_bytes,
		   struct template_watch *watch, agentd_error **reterr);
void template_unwatch(struct template_watch *watch);
/* Valid until template_unref(). */
const struct template_facts *template_facts(const struct template *template);
struct template *template_ref(struct template *template);
void template_unref(struct template *template);
/* A machine could not go on from it, and why (err is the template's then): nobody else is to
 * try, and another is made, but for so often. Or one could. */
void template_broken(struct template *template, agentd_error *err);
void template_works(struct template *template);
void template_free_all(struct microvm *vm);

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

/* ---- net.c */

struct net;

/* Of the command with this number, which has been started. NULL: out of memory. */
struct net *net_new(struct ad_loop *loop, agentd_task *task, struct machine *machine, uint32_t id);
void net_free(struct net *net); /* closes everything, without a word to the guest */
/* What belongs to a connection. */
void net_message(struct net *net, const struct ad_guest_msg *msg);
void net_writable(struct net *net, uint16_t connection);

/* ---- task.c: the members of struct agentd_backend_ops */

struct vm_task;

int32_t task_start(void *self, agentd_task *task, const agentd_spec *spec, void **ret_state,
		   agentd_error **reterr);
int32_t task_kill(void *state);
int32_t task_signal(void *state, int32_t signo);
int32_t task_write(void *state, const uint8_t *data, size_t len, size_t *ret_taken);
int32_t task_close_stdin(void *state);
int32_t task_set_paused(void *state, agentd_stream stream, int32_t paused);
void task_free(void *state);
/* From the session that the task is in. */
bool task_has_id(const struct vm_task *task, uint32_t id);
void task_message(struct vm_task *task, const struct ad_guest_msg *msg);
void task_writable(struct vm_task *task, enum ad_guest_stream stream);
void task_connection_writable(struct vm_task *task, uint16_t connection);
void task_lost(struct vm_task *task, const agentd_error *err);
/* A machine that can hold what the command may have. */
uint64_t task_memory(const struct microvm *vm, const agentd_spec *spec);

/* ---- session.c */

struct vm_session;

int32_t session_start(void *self, agentd_task *task, const agentd_spec *spec, void **ret_session,
		      agentd_error **reterr);
int32_t session_stop(void *session, uint32_t grace_ms);
void session_free(void *session);
int32_t session_adopt(void *session, agentd_task *task, const agentd_spec *spec,
		      agentd_error **reterr);
/* A command begins in it: *ret_id is its number, and the machine is its until it leaves. */
int session_enter(struct vm_session *session, const agentd_spec *spec, struct vm_task *task,
		  struct machine **ret, uint32_t *ret_id, agentd_error **reterr);
void session_leave(struct vm_session *session, const struct vm_task *task);
/* The agent does not answer, or cannot be trusted. */
void session_broken(struct vm_session *session);

#endif
