/* SPDX-License-Identifier: MIT */
/* System calls that fail on demand. strace(1) counts for each process by itself, so that
 * the first fault always hides those of the processes that come after; here all calls
 * of a tree are one sequence. */
#ifndef TESTS_TRACE_H
#define TESTS_TRACE_H

#include "fault.h"

/* Can it be done on this machine? */
bool trace_possible(void);
/* Make pid ours; false: errno. It goes on with trace_run(), which obeys `fault` until
 * nobody is left, and returns the wait status of pid. With `tree` its children too,
 * until they execute a program: those are commands. */
bool trace_attach(pid_t pid, bool tree);
int trace_run(struct fault *fault, pid_t pid);
const char *trace_call_name(int call);

#endif
