/* SPDX-License-Identifier: MIT */
/* Does a backend keep the contract? The cases know nothing of how it works: they
 * need a shell, cat, head, sleep, tr and yes where the commands run. */
#ifndef TESTS_CONFORMANCE_H
#define TESTS_CONFORMANCE_H

#include <stdbool.h>
#include <stdint.h>

#include <agentd/agentd.h>
#include <agentd/backend.h>

enum {
	CONF_TREE = 1,    /* finds and ends what left the process group and the session */
	CONF_LIMITS = 2,  /* enforces file_bytes, open_files_max, cpu_time_ms */
	CONF_HOST_FS = 4, /* commands see the host's file system; policies name no paths of it */
	/* A command takes seconds and much memory: fewer of a kind, not all at once, and
	 * deadlines are stretched. */
	CONF_COSTLY = 8,
	CONF_BRIEF = 16,  /* one command for each rule, where the others say the same of it */
	CONF_READER = 32, /* tells when nobody reads a command's stdin any more */
	/* refuses to run when a limit is asked for that it does not enforce; it does enforce
	 * file_bytes and open_files_max */
	CONF_REFUSES = 64
};

struct conf_backend {
	const char *name;
	/* Register it with a runner; NULL: it is built in. */
	int (*add)(agentd_runner *runner, agentd_error **reterr);
	uint32_t features; /* CONF_* */
};

/* Runs the suite and prints a line for each case, or only their names. only: a part or a case,
 * NULL: all. Returns the status for exit(). */
int conformance_main(const struct conf_backend *backend, const char *only, bool list);

/* The backends of test_backend.c. */
int test_backend_add_attach(agentd_runner *runner, agentd_error **reterr);
int test_backend_add_deliver(agentd_runner *runner, agentd_error **reterr);
/* What test-attach makes of the next commands in sessions, times of them: their session is
 * gone, or so they say. */
struct test_gone {
	unsigned int times;
	bool later;   /* task_start has succeeded by then */
	bool started; /* and so has the command */
	int code;     /* and ESRCH; 0: the command closes without having exited */
};
extern struct test_gone test_gone;
/* So many of its sessions do not end when they are asked to. */
extern unsigned int test_stuck;
/* Takes what is written to stdin, and loses it. */
int test_backend_add_liar(agentd_runner *runner, agentd_error **reterr);

#endif
