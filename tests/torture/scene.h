/* SPDX-License-Identifier: MIT */
/* One whole use of the library, which judges itself: whatever fails, every call and
 * every command has one honest outcome. */
#ifndef TESTS_SCENE_H
#define TESTS_SCENE_H

#include "fault.h"
#include "harness.h"

struct scene {
	const char *name;
	const char *backend; /* "host", "sandbox" or "microvm", whose monitor is a fake one */
	bool session;        /* a pool's, of that backend */
	bool own_loop;       /* agentd_loop instead of a base of the host program's */
	bool kill;           /* the command has to be killed */
	bool probe;          /* no command, but what the machine can do */
	bool names;          /* the working directory is writable, but for a protected link */
	bool again;          /* another command, when one is kept ready for it */
	/* The fault is one of the helper's: over when the command is, and the same runner
	 * then has to start another one. */
	bool in_helper;
	uint32_t prewarm;

	/* For all times that it is played, by scene_open(). */
	struct t_world *world;
	struct fault *fault;
	const char *command;
	char *policy, *context, *params, *marker, *pool, *volumes, *image, *monitor;
	int helper_fds; /* of a helper after a play without faults; 0: not known */
	size_t files;   /* in the world's directory, before the first */
	pid_t *helpers; /* all there were: their control groups are to be gone */
	size_t helper_count;

	/* Of the last time. */
	bool refused;     /* a call failed, or the command did */
	bool marked;      /* a command was outside of any sandbox */
	char story[1024]; /* how it went */
};

/* World and fault are there. */
void scene_open(struct scene *scene, const char *command);
void scene_close(struct scene *scene);
/* Play it, armed with scene->fault; what is wrong with how it went, or NULL. */
const char *scene_play(struct scene *scene);
/* Nobody and nothing of it is left; what is, or NULL. */
const char *scene_remains(struct scene *scene);
/* The same for control groups, which may be left to the next helper. */
const char *scene_remaining_cgroups(struct scene *scene);

#endif
