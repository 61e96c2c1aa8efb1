/* SPDX-License-Identifier: MIT */
#include "guest/guest.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "archive/archive.h"

/* Lines of the log for one transfer; the rest is only counted. */
enum { NOTES_MAX = 100 };

struct reporter {
	int sock;
	unsigned int notes;
};

static void send_report(const struct reporter *reporter, const struct transfer_report *report)
{
	/* The agent is there as long as the machine is. */
	if (send(reporter->sock, report, sizeof(*report), MSG_NOSIGNAL) < 0)
		_exit(1);
}

static void describe(const struct ad_carry_record *record, char *text)
{
	const char *why = record->reason == AD_CARRY_SYSTEM ? strerror(record->os_errno) :
							      ad_carry_reason_text(record->reason);

	/* A path can be longer than a text. */
	snprintf(text, AD_GUEST_TEXT_MAX, "%.*s: %s", AD_GUEST_TEXT_MAX - 128, record->path, why);
}

static void note(const struct ad_carry_record *record, void *userdata)
{
	struct reporter *reporter = userdata;
	struct transfer_report report = { .last = false };

	if (reporter->notes++ >= NOTES_MAX)
		return;
	describe(record, report.text);
	send_report(reporter, &report);
}

static int put(struct ad_archive_job *job, const struct transfer *transfer)
{
	struct ad_manifest *manifest;
	int r;

	if (ad_archive_unpack(job, NULL) < 0 || ad_archive_scan(job, &manifest) < 0)
		return -1;
	r = ad_manifest_save(manifest, transfer->manifest);
	ad_manifest_free(manifest);
	return r;
}

static int get(struct ad_archive_job *job, const struct transfer *transfer)
{
	struct ad_manifest *manifest;
	int r;

	if (lseek(transfer->manifest, 0, SEEK_SET) < 0 ||
	    ad_manifest_load(transfer->manifest, &manifest) < 0)
		return -1;
	r = ad_archive_pack_changes(job, manifest);
	ad_manifest_free(manifest);
	return r;
}

/* PUT makes the directory it is about, and those above. */
static int open_tree(const struct ad_guest_msg *msg)
{
	const char *path = msg->u.files.path;
	int r = msg->type == AD_GUEST_PUT ? make_dirs(path, msg->u.files.uid, msg->u.files.gid) : 0;

	if (r < 0) {
		errno = -r;
		return -1;
	}
	return open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
}

static _Noreturn void child(const struct transfer *transfer)
{
	const int fds[] = { transfer->archive, transfer->reports, transfer->manifest };
	const struct ad_guest_msg *msg = transfer->msg;
	struct reporter reporter = { .sock = transfer->reports };
	struct transfer_report report = { .last = true };
	struct ad_archive_job job = {
		.dir_fd = -1,
		.fd = transfer->archive,
		.max_bytes = msg->u.files.max_bytes,
		.max_entries = AD_ARCHIVE_ENTRIES_MAX,
		.uid = msg->u.files.uid,
		.gid = msg->u.files.gid,
		.note = note,
		.userdata = &reporter,
	};

	/* The others are other tasks', and would not end for them before we do. */
	(void)keep_only(fds, AD_COUNT(fds));
	job.dir_fd = open_tree(msg);
	if (job.dir_fd < 0) {
		report.os_errno = errno;
		snprintf(report.text, sizeof(report.text), "%.*s: %s", AD_GUEST_TEXT_MAX - 128,
			 msg->u.files.path, strerror(errno));
	} else if ((msg->type == AD_GUEST_PUT ? put : get)(&job, transfer) < 0) {
		if (job.failed.path)
			describe(&job.failed, report.text);
		report.os_errno = job.failed.os_errno ? job.failed.os_errno :
				  job.failed.reason == AD_CARRY_BYTES ||
						  job.failed.reason == AD_CARRY_ENTRIES ?
							EFBIG :
							EBADMSG;
	}
	report.entries = job.entries;
	report.bytes = job.bytes;
	send_report(&reporter, &report);
	_exit(0);
}

pid_t transfer_start(const struct transfer *transfer)
{
	pid_t pid = process_fork(transfer->cgroup);

	if (pid == 0)
		child(transfer);
	return pid;
}
