/* SPDX-License-Identifier: MIT */
/* What loop.c shows to source.c. */
#ifndef AD_LOOP_PRIVATE_H
#define AD_LOOP_PRIVATE_H

#include "loop/loop.h"

/* Around every call into a source's fn: leave() frees a loop that was freed in
 * between. */
void ad_loop_enter(struct ad_loop *loop);
void ad_loop_leave(struct ad_loop *loop);

/* event_add() with the library's codes; errno says why it failed. */
int ad_loop_event_add(struct ad_loop *loop, struct event *event, const struct timeval *timeout);

#endif
