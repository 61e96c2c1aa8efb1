/* SPDX-License-Identifier: MIT */
/* The monitor's control channel: one JSON object a line (QEMU, docs/interop/qmp-spec.txt).
 * What comes is taken as hostile: the monitor may have been broken into. */
#ifndef AD_BACKEND_MICROVM_QMP_H
#define AD_BACKEND_MICROVM_QMP_H

#include <stdbool.h>

#include <agentd/error.h>

#include "loop/loop.h"
#include "util/util.h"

enum { QMP_STEPS_MAX = 6 };

struct qmp_step {
	struct ad_buf command; /* a line, without its end */
	int fd;                /* that goes with it, borrowed; or -1 */
	bool migrates;         /* over when the migration that it begins has ended */
};

struct qmp;
/* All steps are done, or why not (owned): then nothing more can be asked for. */
typedef void (*qmp_fn)(agentd_error *err, void *userdata);

/* Takes fd, also on failure. */
int qmp_new(struct ad_loop *loop, int fd, void *userdata, struct qmp **ret, agentd_error **reterr);
/* Do the steps in turn, as soon as the monitor has said its greeting; not before the ones that
 * were given earlier are done. Their commands are moved from there. */
int qmp_run(struct qmp *qmp, struct qmp_step *steps, size_t count, qmp_fn done,
	    agentd_error **reterr);
void qmp_free(struct qmp *qmp);

#endif
