/* SPDX-License-Identifier: MIT */
/* An execution, private to its files, the way of a command from top to bottom:
 *   exec.c         agentd_exec_start() checks and queues; all else happens on the loop, where a
 *                  step does what is next;
 *   exec_start.c   from its first log record to a task of the backend: probe, session, fallback;
 *   exec_task.c    what the backend reports of the task;
 *   exec_settle.c  where all that happens ends: stops, times that are due, whether it is over;
 *   exec_end.c     outcome, result, `finished`, and letting go of everything.
 * A session that was gone before the command began leads from exec_task.c back to exec_start.c,
 * once. Output goes by stream.c, the network by net.c. */
#ifndef AD_CORE_EXEC_H
#define AD_CORE_EXEC_H

#include "core/core.h"

/* Times; AD_NEVER where they would be past all others. */
static inline uint64_t ad_exec_later(uint64_t from, uint64_t ns)
{
	return ns > AD_NEVER - from ? AD_NEVER : from + ns;
}

static inline uint64_t ad_exec_later_ms(uint64_t from, uint64_t ms)
{
	return ad_exec_later(from, ms > AD_NEVER / AD_NS_PER_MS ? AD_NEVER : ms * AD_NS_PER_MS);
}

/* ---- exec_start.c: the first three are steps, which may finish it */

/* It has a place: the first log record, and on to the backend unless that is refused. */
void ad_exec_begin(agentd_exec *exec);
/* The probe of the planned backend has ended. */
void ad_exec_launch(agentd_exec *exec);
/* As ad_exec_starts_anew() has announced. */
void ad_exec_acquire_again(agentd_exec *exec);
/* Does err say that the session was gone before the command began (agentd/backend.h, of
 * session_start)? Then a step starts it anew, once, unless the command is stopped meanwhile. */
bool ad_exec_starts_anew(agentd_exec *exec, const agentd_error *err);

/* ---- exec_task.c */

extern const struct ad_task_listener ad_exec_task_listener;
/* A line of the receipt. One that lost a line would not be true: such a run does not go on. */
void ad_exec_set_protection(agentd_exec *exec, const char *layer, int32_t state,
			    const char *reason);

/* ---- exec_settle.c */

void ad_exec_init_clocks(agentd_exec *exec);
/* Nothing more is waited for: the next step finishes it. */
void ad_exec_finish_soon(agentd_exec *exec);
/* r: what the sink answered to a log record, not the first. A refusal stops the command. */
void ad_exec_check_logged(agentd_exec *exec, int32_t r);
/* The sink takes more of a stream: the clocks that stood still start anew. */
void ad_exec_go_on(agentd_exec *exec, agentd_stream stream);
/* Of one that is to be finished: the drain may have run out because the host was busy elsewhere.
 * What is in the pipes by then is delivered, and the sink may say "not now" of that too. True: it
 * did, and is waited for. */
bool ad_exec_sink_delays_end(agentd_exec *exec);

/* ---- exec_end.c */

/* `finished`, exactly once; the runner has let go of it afterwards. */
void ad_exec_finish(agentd_exec *exec);
/* It was finished without its task, which has ended after all: drops what that could still use. */
void ad_exec_ended_late(agentd_exec *exec);

#endif
