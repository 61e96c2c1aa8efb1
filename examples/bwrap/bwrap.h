/* SPDX-License-Identifier: MIT */
/* A backend of a third party: commands run in bubblewrap(1). */
#ifndef EXAMPLES_BWRAP_H
#define EXAMPLES_BWRAP_H

#include <agentd/agentd.h>

/* Namespaces and a view of the policy's paths; no filter of system calls, no limits of the
 * tree. Less than AGENTD_ISOLATION_SANDBOX, so only policies that accept
 * AGENTD_ISOLATION_NONE run anything here. */
enum { BWRAP_ISOLATION = 100 };

/* Adds the backend "bwrap" to runner. first: the path of the program that first.c makes, as
 * long as the runner lives. */
int bwrap_add(agentd_runner *runner, const char *first, agentd_error **reterr);

#endif
