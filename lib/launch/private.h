/* SPDX-License-Identifier: MIT */
#ifndef AD_LAUNCH_PRIVATE_H
#define AD_LAUNCH_PRIVATE_H

#include <sys/types.h>

#include "launch/launch.h"
#include "proto/helper_msg.h"

/* Start the helper at path as nobody's child, with sock as its socket. Returns
 * after its execve. ret_pid: 0 if that cannot be known (under valgrind). */
int ad_launch_helper(const char *path, int sock, pid_t *ret_pid, agentd_error **reterr);

#endif
