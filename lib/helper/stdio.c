/* SPDX-License-Identifier: MIT */
#include "helper/helper.h"

#include <errno.h>
#include <fcntl.h>
#include <unistd.h>

#include "sys/sys.h"

static uint32_t make_pipe(struct pipes *pipes, int stream)
{
	bool input = stream == STDIN_FILENO;
	int ends[2];

	if (pipe2(ends, O_CLOEXEC) < 0)
		return AD_STAGE_PIPE;
	pipes->child[stream] = ends[input ? 0 : 1];
	pipes->host[stream] = ends[input ? 1 : 0];
	/* Only the library's end: it is an open file description of its own. */
	errno = -ad_sys_set_nonblock(pipes->host[stream]);
	return errno ? AD_STAGE_PIPE : AD_STAGE_COUNT;
}

uint32_t pipes_make(struct pipes *pipes)
{
	*pipes = (struct pipes){ .child = { -1, -1, -1 }, .host = { -1, -1, -1 }, .null = -1 };
	for (int i = 0; i < 3; i++) {
		uint32_t stage = make_pipe(pipes, i);

		if (stage != AD_STAGE_COUNT)
			return stage;
	}
	/* 0 is /dev/null in the helper, but a description shared by all commands. */
	pipes->null = open("/dev/null", O_RDONLY | O_CLOEXEC);
	return pipes->null < 0 ? AD_STAGE_STDIN : AD_STAGE_COUNT;
}

void pipes_of_command(const struct pipes *pipes, uint32_t flags, int ret[static 3])
{
	ret[0] = flags & AD_SPAWN_STDIN ? pipes->child[0] : pipes->null;
	ret[1] = pipes->child[1];
	ret[2] = pipes->child[flags & AD_SPAWN_MERGE_STDERR ? 1 : 2];
}

static void drop(struct pipes *pipes, int stream)
{
	close(ad_steal_fd(&pipes->child[stream]));
	close(ad_steal_fd(&pipes->host[stream]));
}

void pipes_choose(struct pipes *pipes, uint32_t flags)
{
	if (flags & AD_SPAWN_MERGE_STDERR)
		drop(pipes, STDERR_FILENO);
	if (!(flags & AD_SPAWN_STDIN))
		drop(pipes, STDIN_FILENO);
}

void pipes_close(const struct pipes *pipes)
{
	for (int i = 0; i < 3; i++) {
		if (pipes->host[i] >= 0)
			close(pipes->host[i]);
		if (pipes->child[i] >= 0)
			close(pipes->child[i]);
	}
	if (pipes->null >= 0)
		close(pipes->null);
}
