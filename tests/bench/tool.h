/* SPDX-License-Identifier: MIT */
/* Programs that put a sandbox around a command. Their options ask for what is closest to
 * ours: all namespaces, a read-only view of the system, private /proc, /dev and /tmp, one
 * writable directory, no capabilities. None sets up Landlock, a system call filter,
 * limits or a mapped owner of the writable directory here, which is to their advantage. */
#ifndef TESTS_BENCH_TOOL_H
#define TESTS_BENCH_TOOL_H

enum tool { TOOL_UNSHARE, TOOL_BWRAP, TOOL_CRUN, TOOL_MINIJAIL, TOOL_NSJAIL, TOOL_COUNT };

enum { TOOL_ARGS_MAX = 64 };

struct tool_command {
	const char *args[TOOL_ARGS_MAX];
	int mount_ns;     /* to be started in, or -1 */
	char cannot[160]; /* why not; empty: it has been tried */
};

const char *tool_name(enum tool tool);
/* How to run argv, a few words, by a tool; tried once. */
void tool_prepare(enum tool tool, const char *const *argv, struct tool_command *ret);
void tool_run(const struct tool_command *command);
void tool_release(struct tool_command *command);

#endif
