/* SPDX-License-Identifier: MIT */
/* What shall fail: the n-th of something, once or from then on. It lies in memory that
 * whoever decides shares with whoever counts (alloc.c, tests/torture/trace.c). */
#ifndef TESTS_FAULT_H
#define TESTS_FAULT_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

struct fault {
	_Atomic bool armed, for_good;
	_Atomic uint32_t at, seen, hits;
	/* System calls only: which of the errors that fit, what it was (-1: none yet), that
	 * there is no such error, and that there is another. */
	_Atomic uint32_t error_index;
	_Atomic int call, error;
	_Atomic bool out_of_errors, more_errors;
	_Atomic pid_t pid; /* of the helper */
	char program[256]; /* what is traced */
};

/* Counts what comes: is it to fail? */
bool fault_strikes(struct fault *fault);
/* In a new file, or the one beside this program (its path and ".fault"); NULL: errno. */
struct fault *fault_create(const char *program);
struct fault *fault_inherit(void);

/* ---- alloc.c: the allocator of the program it is linked into */

extern struct fault *alloc_fault;       /* what it obeys, or NULL */
extern _Atomic long alloc_blocks_alive; /* allocated and not freed */

#endif
