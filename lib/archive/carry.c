/* SPDX-License-Identifier: MIT */
/* The carrier: out of a directory, and back into it. */
#include "archive/private.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct carrier {
	struct ad_archive_job job;
	unsigned int notes;
	uint64_t untold;
};

static void say(const struct ad_carry_record *record)
{
	char line[AD_CARRY_LINE_MAX];
	size_t len = ad_carry_encode(record, line);
	const char *at = line;

	while (len > 0) {
		ssize_t n = write(STDERR_FILENO, at, len);

		if (n < 0 && errno == EINTR)
			continue;
		/* Then nobody is left to be told. */
		if (n <= 0)
			_exit(EXIT_FAILURE);
		at += n;
		len -= (size_t)n;
	}
}

static void note(const struct ad_carry_record *record, void *userdata)
{
	struct carrier *carrier = userdata;

	if (carrier->notes < AD_CARRY_NOTES_MAX) {
		carrier->notes++;
		say(record);
	} else {
		carrier->untold++;
	}
}

static void end_phase(struct carrier *carrier, enum ad_carry_type type)
{
	const struct ad_carry_record record = { .type = type,
						.entries = carrier->job.entries,
						.bytes = carrier->job.bytes,
						.untold = carrier->untold };

	say(&record);
	carrier->notes = 0;
	carrier->untold = 0;
}

static bool parse_bytes(const char *text, uint64_t *ret)
{
	char *end;

	if (text[0] < '0' || text[0] > '9')
		return false;
	errno = 0;
	*ret = strtoull(text, &end, 10);
	return errno == 0 && *end == '\0';
}

static int carry(struct carrier *carrier, int argc, char **argv)
{
	struct ad_archive_job *job = &carrier->job;
	struct ad_manifest *manifest = NULL;
	int r;

	/* carry DIR --max-bytes N */
	if (argc != 4 || strcmp(argv[2], "--max-bytes") != 0 ||
	    !parse_bytes(argv[3], &job->max_bytes))
		return ad_archive_fail(job, AD_CARRY_USAGE, "");
	job->dir_fd = open(argv[1], O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (job->dir_fd < 0)
		return ad_archive_fail_errno(job, errno, "");
	job->fd = STDOUT_FILENO;
	if (ad_archive_pack(job, &manifest) < 0)
		return -1;
	/* The end of file comes when it is known to be all. */
	end_phase(carrier, AD_CARRY_PACKED);
	close(STDOUT_FILENO);
	job->fd = STDIN_FILENO;
	r = ad_archive_unpack(job, manifest);
	ad_manifest_free(manifest);
	/* No archive at all: nothing is to be applied. */
	if (r < 0 && !(job->empty && job->failed.reason == AD_CARRY_CUT))
		return -1;
	end_phase(carrier, AD_CARRY_APPLIED);
	return 0;
}

int ad_archive_carry(int argc, char **argv)
{
	struct carrier *carrier = calloc(1, sizeof(*carrier));
	int r;

	if (!carrier)
		return EXIT_FAILURE;
	/* Errors of write(2), both. */
	signal(SIGPIPE, SIG_IGN);
	signal(SIGXFSZ, SIG_IGN);
	carrier->job = (struct ad_archive_job){ .dir_fd = -1,
						.max_entries = AD_ARCHIVE_ENTRIES_MAX,
						.uid = (uid_t)-1,
						.gid = (gid_t)-1,
						.note = note,
						.userdata = carrier };
	r = carry(carrier, argc, argv);
	if (r < 0)
		say(&carrier->job.failed);
	if (carrier->job.dir_fd >= 0)
		close(carrier->job.dir_fd);
	free(carrier);
	return r < 0 ? EXIT_FAILURE : EXIT_SUCCESS;
}
