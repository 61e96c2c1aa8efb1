/* SPDX-License-Identifier: MIT */
#include "archive/private.h"

#include <string.h>

static int end(struct ad_archive_job *job, enum ad_carry_reason reason, int os_errno,
	       const char *path)
{
	/* Also a part of `path` itself. */
	size_t len = strnlen(path, sizeof(job->path) - 1);

	memmove(job->path, path, len);
	job->path[len] = '\0';
	if (len == 0)
		memcpy(job->path, ".", 2);
	job->failed = (struct ad_carry_record){
		.type = AD_CARRY_FAILED, .reason = reason, .os_errno = os_errno, .path = job->path
	};
	return -1;
}

int ad_archive_fail(struct ad_archive_job *job, enum ad_carry_reason reason, const char *path)
{
	return end(job, reason, 0, path);
}

int ad_archive_fail_errno(struct ad_archive_job *job, int os_errno, const char *path)
{
	return end(job, AD_CARRY_SYSTEM, os_errno, path);
}

void ad_archive_note(struct ad_archive_job *job, enum ad_carry_type type,
		     enum ad_carry_reason reason, int os_errno, const char *path)
{
	const struct ad_carry_record record = {
		.type = type, .reason = reason, .os_errno = os_errno, .path = *path ? path : "."
	};

	if (job->note)
		job->note(&record, job->userdata);
}
