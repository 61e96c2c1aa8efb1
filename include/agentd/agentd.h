/* SPDX-License-Identifier: MIT */
/** @file
 * libagentd: run shell commands on behalf of AI agents. Everything a host
 * program needs; implementers of backends add agentd/backend.h.
 */
#ifndef AGENTD_AGENTD_H
#define AGENTD_AGENTD_H

#include <agentd/base.h>
#include <agentd/context.h>
#include <agentd/error.h>
#include <agentd/exec.h>
#include <agentd/limits.h>
#include <agentd/log.h>
#include <agentd/loop.h>
#include <agentd/params.h>
#include <agentd/policy.h>
#include <agentd/pool.h>
#include <agentd/probe.h>
#include <agentd/result.h>
#include <agentd/runner.h>
#include <agentd/sink.h>
#include <agentd/version.h>

#endif
