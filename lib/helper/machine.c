/* SPDX-License-Identifier: MIT */
/* A virtual machine monitor is started by the helper itself: it has no tree that would
 * have to be watched over, and it dies with us. It comes to have nothing: an id of its
 * own, no capabilities and no way to any, and of descriptors only those it is for. */
#include "helper/helper.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "sys/sys.h"

/* Whoever may use KVM may so by its group. */
static gid_t kvm_group(void)
{
	struct stat st;

	if (stat("/dev/kvm", &st) < 0 || !S_ISCHR(st.st_mode) ||
	    (st.st_mode & (S_IRGRP | S_IWGRP)) != (S_IRGRP | S_IWGRP))
		return 0;
	return st.st_gid;
}

/* Entered by leaf, if there is one. */
static pid_t start_in(struct command *command, const struct leaf *leaf, uint32_t *ret_stage)
{
	struct cgroup_entry entry;
	pid_t pid;
	int r;

	if (!leaf)
		return command_start(command, ret_stage);
	*ret_stage = AD_STAGE_CGROUP;
	r = cgroup_open_entry(leaf, &entry);
	if (r < 0)
		return r;
	command->cgroup = &entry;
	pid = command_start(command, ret_stage);
	cgroup_close_entry(&entry);
	return pid;
}

pid_t machine_start(const struct ad_msg_spawn *spawn, const struct leaf *leaf, bool set_ids,
		    const int *fds, int landlock, int *ret_output, uint32_t *ret_stage,
		    const char **ret_text)
{
	const char **vectors = reallocarray(NULL, spawn->argc + spawn->envc + 2, sizeof(*vectors));
	const struct machine_command machine = {
		.fds = fds,
		.fd_count = spawn->machine.fd_count,
		.device_group = set_ids ? kvm_group() : 0,
		.small_pages = spawn->flags & AD_SPAWN_SMALL_PAGES,
	};
	struct command command = {
		.argv = vectors,
		.env = vectors ? vectors + spawn->argc + 1 : NULL,
		.workdir = spawn->workdir,
		.limits = &spawn->limits,
		.set_ids = set_ids,
		.uid = spawn->machine.uid,
		.gid = spawn->machine.gid,
		.parent = getpid(),
		.machine = &machine,
		.landlock = landlock,
		.waiting_fd = -1,
		.gate = -1,
	};
	struct pipes pipes;
	pid_t pid;

	*ret_stage = AD_STAGE_REQUEST;
	*ret_text = "";
	if (!vectors)
		return -ENOMEM;
	ad_msg_spawn_vectors(spawn, vectors, vectors + spawn->argc + 1);
	*ret_stage = pipes_make(&pipes);
	if (*ret_stage == AD_STAGE_COUNT) {
		pipes_of_command(&pipes, spawn->flags, command.stdio);
		pid = start_in(&command, leaf, ret_stage);
	} else {
		pid = -errno;
	}
	if (pid < 0) {
		*ret_text = command_stage_text(&command, *ret_stage);
	} else {
		*ret_output = pipes.host[STDOUT_FILENO];
		pipes.host[STDOUT_FILENO] = -1;
	}
	pipes_close(&pipes);
	free(vectors);
	return pid;
}
