/* SPDX-License-Identifier: MIT */
/* What the backend and the first process of its sandbox say to each other. */
#ifndef EXAMPLES_BWRAP_FIRST_H
#define EXAMPLES_BWRAP_FIRST_H

#include <stdint.h>

/* Descriptors that bwrap inherits. 1 and 2 are its own: for what it complains about. */
enum {
	FIRST_CONTROL = 3, /* SOCK_SEQPACKET: notes out, single bytes in */
	FIRST_STDIN = 4,
	FIRST_STDOUT = 5,
	FIRST_STDERR = 6,
	FIRST_INFO = 7, /* bwrap says the pid of the first process */
	FIRST_REQUEST = 8,
	FIRST_END = 9
};

/* The byte that lets it begin; every other is a signal for the command's process group. */
enum { FIRST_GO = 0 };

/* The head of the request; then argc and envc strings, each with its NUL. */
struct first_request {
	uint32_t argc, envc;
	uint64_t file_bytes;     /* RLIMIT_FSIZE, 0: none */
	uint64_t open_files_max; /* RLIMIT_NOFILE, 0: none */
};

enum { FIRST_STARTED = 1, FIRST_FAILED, FIRST_EXITED };

struct first_note {
	int32_t kind;
	int32_t value;       /* FAILED: errno; EXITED: as from waitpid(2) */
	uint64_t at_ns;      /* CLOCK_MONOTONIC */
	uint64_t cpu_ns;     /* of the command and the children it waited for */
	uint64_t peak_bytes; /* the largest of them */
};

#endif
