/* SPDX-License-Identifier: MIT */
/* A virtual machine with the agent in it, and this side of the link to it. */
#ifndef TESTS_GUEST_VM_H
#define TESTS_GUEST_VM_H

#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/types.h>

#include "proto/guest.h"
#include "util/util.h"

enum { VM_TASKS_MAX = 512, VM_OUTPUT_MAX = 1024 * 1024, VM_SECOND = 1000 };

struct vm_task {
	uint32_t id;
	bool hold;   /* take nothing of what comes */
	FILE *files; /* what a GET brings */
	const uint8_t *input;
	size_t input_len; /* still to be sent, then END */
	bool input_open;
	/* What came. */
	bool started, failed, exited, closed, done;
	struct ad_guest_msg failure; /* and DONE */
	char text[AD_GUEST_TEXT_MAX];
	int wait_status;
	uint64_t lived_ns, cpu_ns, memory_peak;
	uint32_t survivors;
	unsigned int limits, fatal_limits; /* bits */
	bool ended[AD_GUEST_STREAMS];
	uint64_t bytes[AD_GUEST_STREAMS], held[AD_GUEST_STREAMS];
	struct ad_buf output[AD_GUEST_STREAMS];
};

struct vm {
	pid_t pid;
	int sock;
	struct ad_guest_link *link;
	uint64_t started_at, first_byte_at;
	bool hello, ready, gone;
	uint64_t pong;
	char kernel[AD_GUEST_TEXT_MAX];
	struct ad_guest_msg ready_msg;
	char ready_text[AD_GUEST_TEXT_MAX];
	unsigned int logs;
	size_t task_count;
	struct vm_task tasks[VM_TASKS_MAX];
};

uint64_t vm_now(void); /* ms */

/* NULL: everything for a machine is here; else what is not. */
const char *vm_missing(const char *image);
/* The agent of AGENTD_TEST_GUEST, in the image of that directory. */
bool vm_start(struct vm *vm, const char *image);
/* Until it is over, or the link broken, or so much time has passed; what the condition says. */
bool vm_wait(struct vm *vm, bool (*condition)(const struct vm *vm, const void *arg),
	     const void *arg, uint64_t timeout_ms);
bool vm_setup(struct vm *vm, uint64_t realtime_ns);
/* How long an answer takes, in ms; UINT64_MAX: there is none. */
uint64_t vm_ping(struct vm *vm, uint64_t timeout_ms);
/* After this side has closed the link or said STOP: its end, as of waitpid(2). */
bool vm_ended(struct vm *vm, uint64_t timeout_ms, int *ret_status);
void vm_free(struct vm *vm);

struct vm_run {
	const char *script; /* of sh, unless there is argv */
	const char *const *argv;
	uint32_t flags, uid;
	const char *workdir;
	struct ad_guest_limits limits;
	const void *input;
	size_t input_len;
	bool hold;
};

struct vm_task *vm_begin(struct vm *vm, const struct vm_run *run);
struct vm_task *vm_files(struct vm *vm, enum ad_guest_type type, const char *path,
			 uint64_t max_bytes, FILE *files);
void vm_kill(struct vm *vm, const struct vm_task *task);
void vm_release(struct vm *vm, struct vm_task *task);
/* EXITED, and nothing of it is left. */
bool vm_finish(struct vm *vm, const struct vm_task *task);
struct vm_task *vm_do(struct vm *vm, const struct vm_run *run);
struct vm_task *vm_script(struct vm *vm, const char *script);
const char *vm_text(const struct vm_task *task);

bool vm_is_exited(const struct vm *vm, const void *task);
bool vm_is_over(const struct vm *vm, const void *task);

#endif
