/* SPDX-License-Identifier: MIT */
/* Private to agentd-helper: what the probe has it try, as a command like any other. */
#ifndef AD_HELPER_ACTS_H
#define AD_HELPER_ACTS_H

/* `agentd-helper try ...`, from lib/probe/. */
_Noreturn void acts_run(int argc, char **argv);

#endif
