/* SPDX-License-Identifier: MIT */
/* Other libraries at the same work: a program from start to finish, with both of its
 * output streams read. Each returns the bytes of its standard output. */
#ifndef TESTS_BENCH_PEER_H
#define TESTS_BENCH_PEER_H

#include <stdint.h>

uint64_t peer_read_loop(const char *const *argv);
uint64_t peer_bufferevent(const char *const *argv);
uint64_t peer_uv(const char *const *argv);
uint64_t peer_glib(const char *const *argv);

#endif
