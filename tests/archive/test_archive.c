/* SPDX-License-Identifier: MIT */
/* Trees out and in, changes, conflicts, limits. What hostile archives do is in
 * test_hostile.c. */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "../unit/unit.h"
#include "trees.h"

enum { OTHER_USER = 65534 };

static unsigned int seeds(unsigned int many)
{
	return unit_instrumented() || getenv("AGENTD_TEST_SMALL") ? many / 5 : many;
}

static void rewind_file(int fd)
{
	ck_assert_int_eq(lseek(fd, 0, SEEK_SET), 0);
}

static off_t size_of(int fd)
{
	struct stat st;

	ck_assert_int_eq(fstat(fd, &st), 0);
	return st.st_size;
}

static void check_note(const struct notes *notes, const char *path, enum ad_carry_type type,
		       enum ad_carry_reason reason)
{
	const struct ad_carry_record *note = notes_find(notes, path);

	ck_assert_msg(note != NULL, "no note of \"%s\"", path);
	ck_assert_int_eq(note->type, type);
	ck_assert_int_eq(note->reason, reason);
}

static void check_failed(const struct ad_archive_job *job, enum ad_carry_reason reason,
			 int os_errno, const char *path)
{
	ck_assert_int_eq(job->failed.type, AD_CARRY_FAILED);
	ck_assert_int_eq(job->failed.reason, reason);
	ck_assert_int_eq(job->failed.os_errno, os_errno);
	ck_assert_str_eq(job->failed.path, path);
}

/* Two trees with the same in them, one packed, the other unpacked from it, and what
 * happened to each. */
struct pair {
	struct scratch scratch;
	int host, guest, archive;
	struct ad_manifest *host_manifest, *guest_manifest;
	struct notes *notes;
	bool unprivileged; /* packs the changes */
};

static void pair_carry_in(struct pair *pair)
{
	struct ad_archive_job job = job_on(pair->host, pair->archive, pair->notes);
	uint64_t entries;

	ck_assert_int_eq(ad_archive_pack(&job, &pair->host_manifest), 0);
	entries = job.entries;
	rewind_file(pair->archive);
	job = job_on(pair->guest, pair->archive, pair->notes);
	ck_assert_int_eq(ad_archive_unpack(&job, NULL), 0);
	ck_assert_uint_eq(job.entries, entries);
	ck_assert(!job.empty);
	job = job_on(pair->guest, -1, pair->notes);
	ck_assert_int_eq(ad_archive_scan(&job, &pair->guest_manifest), 0);
}

/* Returns how many entries the changes had, and *ret how many of them were applied. */
static uint64_t pair_carry_out(struct pair *pair, uint64_t *ret)
{
	bool as_other = pair->unprivileged && geteuid() == 0;
	int changes = memory_file();
	struct ad_archive_job job = job_on(pair->guest, changes, pair->notes);
	uint64_t packed;

	if (as_other)
		ck_assert_int_eq(seteuid(OTHER_USER), 0);
	ck_assert_int_eq(ad_archive_pack_changes(&job, pair->guest_manifest), 0);
	if (as_other)
		ck_assert_int_eq(seteuid(0), 0);
	packed = job.entries;
	rewind_file(changes);
	job = job_on(pair->host, changes, pair->notes);
	ck_assert_int_eq(ad_archive_unpack(&job, pair->host_manifest), 0);
	close(changes);
	if (ret)
		*ret = job.entries;
	return packed;
}

static struct pair *pair_new(void)
{
	struct pair *pair = calloc(1, sizeof(*pair));

	ck_assert_ptr_nonnull(pair);
	scratch_open(&pair->scratch);
	pair->host = scratch_dir(&pair->scratch, "host");
	pair->guest = scratch_dir(&pair->scratch, "guest");
	pair->archive = memory_file();
	pair->notes = notes_new();
	return pair;
}

static void pair_free(struct pair *pair)
{
	ad_manifest_free(pair->host_manifest);
	ad_manifest_free(pair->guest_manifest);
	free(pair->notes);
	close(pair->host);
	close(pair->guest);
	close(pair->archive);
	scratch_close(&pair->scratch);
	free(pair);
}

/* ---- round trips */

START_TEST(random_trees_round_trip)
{
	for (unsigned int seed = 1; seed <= seeds(15); seed++) {
		struct pair *pair = pair_new();
		struct rng rng = { .state = seed };

		random_tree(pair->host, &rng, 10 + rng_below(&rng, 50));
		pair_carry_in(pair);
		ck_assert_msg(pair->notes->count == 0, "seed %u: %zu notes", seed,
			      pair->notes->count);
		check_same_tree(pair->host, pair->guest, true);
		pair_free(pair);
	}
}
END_TEST

START_TEST(random_changes_come_back)
{
	for (unsigned int seed = 1; seed <= seeds(30); seed++) {
		struct pair *pair = pair_new();
		struct rng rng = { .state = 1000 + seed };
		uint64_t packed, applied;

		random_tree(pair->host, &rng, 5 + rng_below(&rng, 30));
		pair_carry_in(pair);
		random_changes(pair->guest, &rng, 1 + rng_below(&rng, 20));
		packed = pair_carry_out(pair, &applied);
		ck_assert_msg(pair->notes->count == 0, "seed %u: %s", seed, pair->notes->paths[0]);
		ck_assert_uint_eq(packed, applied);
		check_same_tree(pair->host, pair->guest, false);
		pair_free(pair);
	}
}
END_TEST

START_TEST(no_changes_are_none)
{
	struct pair *pair = pair_new();
	struct rng rng = { .state = 7 };
	char *before;

	random_tree(pair->host, &rng, 30);
	pair_carry_in(pair);
	before = describe(pair->host, true);
	ck_assert_uint_eq(pair_carry_out(pair, NULL), 0);
	{
		char *after = describe(pair->host, true);

		ck_assert_str_eq(before, after);
		free(after);
	}
	free(before);
	pair_free(pair);
}
END_TEST

/* The smallest that a clock may hide: at once, of the same size, with the old time. */
START_TEST(every_change_is_seen)
{
	for (int i = 0; i < 50; i++) {
		struct pair *pair = pair_new();
		struct timespec times[2];
		struct stat st;
		char *text;

		put_text(pair->host, "f", "old");
		pair_carry_in(pair);
		ck_assert_int_eq(fstatat(pair->guest, "f", &st, 0), 0);
		times[0] = st.st_atim;
		times[1] = st.st_mtim;
		put_text(pair->guest, "f", "new");
		ck_assert_int_eq(utimensat(pair->guest, "f", times, 0), 0);
		ck_assert_uint_eq(pair_carry_out(pair, NULL), 1);
		text = get_text(pair->host, "f");
		ck_assert_str_eq(text, "new");
		free(text);
		pair_free(pair);
	}
}
END_TEST

/* What was made before has an older time than anything that is made from then on. Newer
 * kernels see to that by themselves, those of many machines do not. */
START_TEST(the_clock_has_moved_on)
{
	for (int i = 0; i < 20; i++) {
		struct pair *pair = pair_new();
		struct timespec now;
		struct stat st;

		put_text(pair->host, "f", "x");
		pair_carry_in(pair);
		ck_assert_int_eq(clock_gettime(CLOCK_REALTIME_COARSE, &now), 0);
		ck_assert_int_eq(fstatat(pair->guest, "f", &st, 0), 0);
		ck_assert(now.tv_sec > st.st_ctim.tv_sec ||
			  (now.tv_sec == st.st_ctim.tv_sec && now.tv_nsec > st.st_ctim.tv_nsec));
		pair_free(pair);
	}
}
END_TEST

START_TEST(types_change)
{
	struct pair *pair = pair_new();
	struct stat st;

	put_text(pair->host, "file-to-dir", "x");
	put_text(pair->host, "file-to-link", "x");
	ck_assert_int_eq(mkdirat(pair->host, "dir-to-file", 0755), 0);
	put_text(pair->host, "dir-to-file/inside", "x");
	ck_assert_int_eq(mkdirat(pair->host, "dir-to-link", 0755), 0);
	ck_assert_int_eq(mkdirat(pair->host, "dir-to-link/d", 0755), 0);
	put_text(pair->host, "dir-to-link/d/inside", "x");
	ck_assert_int_eq(symlinkat("target", pair->host, "link-to-dir"), 0);
	ck_assert_int_eq(symlinkat("target", pair->host, "link-to-file"), 0);
	pair_carry_in(pair);
	remove_tree(pair->guest, "file-to-dir");
	ck_assert_int_eq(mkdirat(pair->guest, "file-to-dir", 0700), 0);
	put_text(pair->guest, "file-to-dir/inside", "y");
	remove_tree(pair->guest, "file-to-link");
	ck_assert_int_eq(symlinkat("t", pair->guest, "file-to-link"), 0);
	remove_tree(pair->guest, "dir-to-file");
	put_text(pair->guest, "dir-to-file", "y");
	remove_tree(pair->guest, "dir-to-link");
	ck_assert_int_eq(symlinkat("file-to-dir", pair->guest, "dir-to-link"), 0);
	remove_tree(pair->guest, "link-to-dir");
	ck_assert_int_eq(mkdirat(pair->guest, "link-to-dir", 0700), 0);
	put_text(pair->guest, "link-to-dir/inside", "y");
	remove_tree(pair->guest, "link-to-file");
	put_text(pair->guest, "link-to-file", "y");
	pair_carry_out(pair, NULL);
	ck_assert_uint_eq(pair->notes->count, 0);
	check_same_tree(pair->host, pair->guest, false);
	ck_assert_int_eq(fstatat(pair->host, "link-to-dir", &st, AT_SYMLINK_NOFOLLOW), 0);
	ck_assert(S_ISDIR(st.st_mode));
	pair_free(pair);
}
END_TEST

START_TEST(manifests_survive_a_file)
{
	struct pair *pair = pair_new();
	struct rng rng = { .state = 99 };
	struct ad_manifest *bad;
	int file = memory_file();
	char head[8];

	random_tree(pair->host, &rng, 40);
	pair_carry_in(pair);
	ck_assert_int_eq(ad_manifest_save(pair->guest_manifest, file), 0);
	ad_manifest_free(pair->guest_manifest);
	rewind_file(file);
	ck_assert_int_eq(ad_manifest_load(file, &pair->guest_manifest), 0);
	random_changes(pair->guest, &rng, 20);
	pair_carry_out(pair, NULL);
	ck_assert_uint_eq(pair->notes->count, 0);
	check_same_tree(pair->host, pair->guest, false);

	ck_assert_int_eq(ftruncate(file, size_of(file) - 1), 0);
	rewind_file(file);
	ck_assert_int_eq(ad_manifest_load(file, &bad), -ENODATA);
	ck_assert_int_eq(pread(file, head, sizeof(head), 0), sizeof(head));
	head[0] ^= 1;
	ck_assert_int_eq(pwrite(file, head, sizeof(head), 0), sizeof(head));
	rewind_file(file);
	ck_assert_int_eq(ad_manifest_load(file, &bad), -EINVAL);
	close(file);
	pair_free(pair);
}
END_TEST

/* Owner and group are what the job says. */
START_TEST(files_get_their_owner)
{
	struct pair *pair = pair_new();
	struct ad_archive_job job;
	struct rng rng = { .state = 5 };
	struct stat st;

	if (geteuid() != 0) {
		fprintf(stderr, "SKIP-CANNOT: only root gives files away\n");
		pair_free(pair);
		return;
	}
	random_tree(pair->host, &rng, 40);
	put_text(pair->host, "f", "x");
	ck_assert_int_eq(symlinkat("x", pair->host, "l"), 0);
	ck_assert_int_eq(mkdirat(pair->host, "d", 0755), 0);
	job = job_on(pair->host, pair->archive, pair->notes);
	ck_assert_int_eq(ad_archive_pack(&job, &pair->host_manifest), 0);
	rewind_file(pair->archive);
	job = job_on(pair->guest, pair->archive, pair->notes);
	job.uid = 1234;
	job.gid = 4321;
	ck_assert_int_eq(ad_archive_unpack(&job, NULL), 0);
	check_same_tree(pair->host, pair->guest, true);
	for (int i = 0; i < 3; i++) {
		static const char *const names[] = { "f", "l", "d" };

		ck_assert_int_eq(fstatat(pair->guest, names[i], &st, AT_SYMLINK_NOFOLLOW), 0);
		ck_assert_uint_eq(st.st_uid, 1234);
		ck_assert_uint_eq(st.st_gid, 4321);
	}
	pair_free(pair);
}
END_TEST

/* ---- what is large, deep, or strange */

START_TEST(holes_stay_holes)
{
	static const off_t whole = (off_t)1 << 40;
	struct pair *pair = pair_new();
	struct stat st;
	char *text;
	int fd;

	fd = openat(pair->host, "sparse", O_RDWR | O_CREAT, 0644);
	ck_assert_int_eq(pwrite(fd, "one", 3, 12345), 3);
	ck_assert_int_eq(pwrite(fd, "two", 3, whole / 2), 3);
	if (ftruncate(fd, whole) < 0 || fstat(fd, &st) < 0 || st.st_blocks > 1024) {
		fprintf(stderr, "SKIP-CANNOT: no large files with holes here\n");
		close(fd);
		pair_free(pair);
		return;
	}
	close(fd);
	fd = openat(pair->host, "hole", O_WRONLY | O_CREAT, 0644);
	ck_assert_int_eq(ftruncate(fd, whole), 0);
	close(fd);
	pair_carry_in(pair);
	ck_assert_int_lt(size_of(pair->archive), 1 << 20);
	for (int i = 0; i < 2; i++) {
		ck_assert_int_eq(fstatat(pair->guest, i ? "hole" : "sparse", &st, 0), 0);
		ck_assert_int_eq(st.st_size, whole);
		ck_assert_int_lt(st.st_blocks, 1024);
	}
	fd = openat(pair->guest, "sparse", O_RDONLY);
	text = calloc(1, 4);
	ck_assert_int_eq(pread(fd, text, 3, 12345), 3);
	ck_assert_str_eq(text, "one");
	ck_assert_int_eq(pread(fd, text, 3, whole / 2), 3);
	ck_assert_str_eq(text, "two");
	ck_assert_int_eq(pread(fd, text, 3, whole - 3), 3);
	ck_assert_mem_eq(text, "\0\0\0", 3);
	free(text);
	close(fd);
	ck_assert_uint_eq(pair->notes->count, 0);
	pair_free(pair);
}
END_TEST

START_TEST(many_holes)
{
	enum { HOLES = 5000, STEP = 8192 };
	struct pair *pair = pair_new();
	int fd = openat(pair->host, "holes", O_WRONLY | O_CREAT, 0644);

	for (int i = 0; i < HOLES; i++)
		ck_assert_int_eq(pwrite(fd, "x", 1, (off_t)i * STEP), 1);
	close(fd);
	pair_carry_in(pair);
	check_same_tree(pair->host, pair->guest, true);
	pair_free(pair);
}
END_TEST

START_TEST(deep_trees)
{
	/* 2047 directories, whose path with a file in the last is the longest there is. */
	enum { LEVELS = (AD_CARRY_PATH_MAX - 2) / 2, BEYOND = 3 };
	struct pair *pair = pair_new();
	struct rlimit few = { .rlim_cur = 64 }, before;
	int at = dup(pair->host);
	char path[AD_CARRY_PATH_MAX + 16] = "", *text;
	struct ad_archive_job job;

	for (int i = 0; i < LEVELS + BEYOND; i++) {
		int next;

		if (i == LEVELS)
			put_text(at, "e", "deepest");
		ck_assert_int_eq(mkdirat(at, "d", 0755), 0);
		next = openat(at, "d", O_RDONLY | O_DIRECTORY);
		ck_assert_int_ge(next, 0);
		close(at);
		at = next;
		if (i < LEVELS)
			strcat(path, "d/");
	}
	put_text(at, "deeper", "x");
	close(at);
	ck_assert_uint_eq(strlen(path), AD_CARRY_PATH_MAX - 2);
	/* It takes few descriptors, however deep. */
	ck_assert_int_eq(getrlimit(RLIMIT_NOFILE, &before), 0);
	few.rlim_max = before.rlim_max;
	ck_assert_int_eq(setrlimit(RLIMIT_NOFILE, &few), 0);
	job = job_on(pair->host, pair->archive, pair->notes);
	ck_assert_int_eq(ad_archive_pack(&job, &pair->host_manifest), 0);
	ck_assert_uint_eq(job.entries, LEVELS + 2);
	/* One more directory fits, but nothing in it. */
	ck_assert_uint_eq(pair->notes->count, 1);
	ck_assert_int_eq(pair->notes->kept[0].reason, AD_CARRY_LONG);
	rewind_file(pair->archive);
	job = job_on(pair->guest, pair->archive, pair->notes);
	ck_assert_int_eq(ad_archive_unpack(&job, NULL), 0);
	ck_assert_uint_eq(job.entries, LEVELS + 2);
	ck_assert_int_eq(setrlimit(RLIMIT_NOFILE, &before), 0);
	strcat(path, "e");
	text = get_text(pair->guest, path);
	ck_assert_ptr_nonnull(text);
	ck_assert_str_eq(text, "deepest");
	free(text);
	pair_free(pair);
}
END_TEST

START_TEST(what_is_no_file_is_skipped)
{
	struct pair *pair = pair_new();
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	int sock = socket(AF_UNIX, SOCK_STREAM, 0);
	struct stat st;

	put_text(pair->host, "file", "x");
	ck_assert_int_eq(mkfifoat(pair->host, "pipe", 0644), 0);
	snprintf(address.sun_path, sizeof(address.sun_path), "/proc/self/fd/%d/sock", pair->host);
	ck_assert_int_eq(bind(sock, (const struct sockaddr *)&address, sizeof(address)), 0);
	close(sock);
	pair_carry_in(pair);
	check_note(pair->notes, "pipe", AD_CARRY_SKIPPED, AD_CARRY_SPECIAL);
	check_note(pair->notes, "sock", AD_CARRY_SKIPPED, AD_CARRY_SPECIAL);
	/* In the guest neither is there to be skipped. */
	ck_assert_uint_eq(pair->notes->count, 2);
	ck_assert_int_lt(fstatat(pair->guest, "pipe", &st, 0), 0);
	ck_assert_int_eq(fstatat(pair->guest, "file", &st, 0), 0);
	/* A file that becomes a pipe is deleted; one where the host has a pipe conflicts. */
	remove_tree(pair->guest, "file");
	ck_assert_int_eq(mkfifoat(pair->guest, "file", 0644), 0);
	put_text(pair->guest, "pipe", "x");
	pair_carry_out(pair, NULL);
	check_note(pair->notes, "file", AD_CARRY_SKIPPED, AD_CARRY_SPECIAL);
	check_note(pair->notes, "pipe", AD_CARRY_SKIPPED, AD_CARRY_SPECIAL);
	ck_assert_int_eq(pair->notes->kept[pair->notes->count - 1].type, AD_CARRY_CONFLICT);
	ck_assert_str_eq(pair->notes->paths[pair->notes->count - 1], "pipe");
	ck_assert_int_lt(fstatat(pair->host, "file", &st, 0), 0);
	ck_assert_int_eq(fstatat(pair->host, "pipe", &st, 0), 0);
	ck_assert(S_ISFIFO(st.st_mode));
	pair_free(pair);
}
END_TEST

START_TEST(what_cannot_be_read_is_skipped)
{
	struct pair *pair = pair_new();
	struct stat st;
	char *text;

	put_file(pair->host, "secret", "old", 3, 0);
	put_text(pair->host, "open", "x");
	ck_assert_int_eq(mkdirat(pair->host, "closed", 0755), 0);
	put_text(pair->host, "closed/inside", "old");
	ck_assert_int_eq(fchmodat(pair->host, "closed", 0, 0), 0);
	if (geteuid() == 0) {
		ck_assert_int_eq(fchmod(pair->scratch.fd, 0755), 0);
		ck_assert_int_eq(fchmod(pair->host, 0777), 0);
		ck_assert_int_eq(fchmod(pair->guest, 0777), 0);
		ck_assert_int_eq(seteuid(OTHER_USER), 0);
		pair_carry_in(pair);
		ck_assert_int_eq(seteuid(0), 0);
	} else {
		pair_carry_in(pair);
	}
	check_note(pair->notes, "secret", AD_CARRY_SKIPPED, AD_CARRY_UNREADABLE);
	check_note(pair->notes, "closed", AD_CARRY_SKIPPED, AD_CARRY_UNREADABLE);
	ck_assert_int_lt(fstatat(pair->guest, "secret", &st, 0), 0);
	/* The directory is there, empty. */
	ck_assert_int_eq(fstatat(pair->guest, "closed", &st, 0), 0);
	ck_assert_int_eq(fstatat(pair->guest, "open", &st, 0), 0);
	/* What was not seen is not overwritten. */
	memset(pair->notes, 0, sizeof(*pair->notes));
	put_text(pair->guest, "secret", "new");
	ck_assert_int_eq(fchmodat(pair->guest, "closed", 0755, 0), 0);
	put_text(pair->guest, "closed/inside", "new");
	ck_assert_int_eq(fchmodat(pair->host, "closed", 0755, 0), 0);
	pair_carry_out(pair, NULL);
	check_note(pair->notes, "secret", AD_CARRY_CONFLICT, AD_CARRY_APPEARED);
	check_note(pair->notes, "closed/inside", AD_CARRY_CONFLICT, AD_CARRY_APPEARED);
	text = get_text(pair->host, "closed/inside");
	ck_assert_str_eq(text, "old");
	free(text);
	pair_free(pair);
}
END_TEST

/* A directory that cannot be looked into says nothing of what is in it. */
START_TEST(what_cannot_be_listed_is_not_deleted)
{
	struct pair *pair = pair_new();
	struct stat st;

	ck_assert_int_eq(mkdirat(pair->host, "d", 0755), 0);
	ck_assert_int_eq(mkdirat(pair->host, "d/e", 0755), 0);
	put_text(pair->host, "d/e/f", "x");
	put_text(pair->host, "g", "x");
	pair_carry_in(pair);
	remove_tree(pair->guest, "g");
	ck_assert_int_eq(fchmodat(pair->guest, "d", 0, 0), 0);
	ck_assert_int_eq(fchmod(pair->scratch.fd, 0755), 0);
	pair->unprivileged = true;
	pair_carry_out(pair, NULL);
	ck_assert_uint_eq(pair->notes->count, 1);
	check_note(pair->notes, "d", AD_CARRY_SKIPPED, AD_CARRY_UNREADABLE);
	ck_assert_int_lt(fstatat(pair->host, "g", &st, 0), 0);
	ck_assert_int_eq(fchmodat(pair->host, "d", 0755, 0), 0);
	ck_assert_int_eq(fstatat(pair->host, "d/e/f", &st, 0), 0);
	pair_free(pair);
}
END_TEST

/* ---- limits */

START_TEST(bytes_are_limited)
{
	struct pair *pair = pair_new();
	struct ad_archive_job job = job_on(pair->host, pair->archive, pair->notes);
	char data[1000] = { 0 };

	ck_assert_int_eq(mkdirat(pair->host, "d", 0755), 0);
	put_file(pair->host, "d/f", data, sizeof(data), 0644);
	job.max_bytes = sizeof(data) - 1;
	ck_assert_int_eq(ad_archive_pack(&job, &pair->host_manifest), -1);
	check_failed(&job, AD_CARRY_BYTES, 0, "d/f");
	/* What is there by then is no archive. */
	rewind_file(pair->archive);
	job = job_on(pair->guest, pair->archive, pair->notes);
	ck_assert_int_eq(ad_archive_unpack(&job, NULL), -1);
	ck_assert_int_eq(job.failed.reason, AD_CARRY_CUT);

	ck_assert_int_eq(ftruncate(pair->archive, 0), 0);
	rewind_file(pair->archive);
	job = job_on(pair->host, pair->archive, pair->notes);
	job.max_bytes = sizeof(data);
	ck_assert_int_eq(ad_archive_pack(&job, &pair->host_manifest), 0);
	ck_assert_uint_eq(job.bytes, sizeof(data));
	rewind_file(pair->archive);
	job = job_on(pair->guest, pair->archive, pair->notes);
	job.max_bytes = sizeof(data) - 1;
	ck_assert_int_eq(ad_archive_unpack(&job, NULL), -1);
	check_failed(&job, AD_CARRY_BYTES, 0, "d/f");
	rewind_file(pair->archive);
	job.max_bytes = sizeof(data);
	ck_assert_int_eq(ad_archive_unpack(&job, NULL), 0);
	ck_assert_uint_eq(job.bytes, sizeof(data));
	pair_free(pair);
}
END_TEST

START_TEST(entries_are_limited)
{
	struct pair *pair = pair_new();
	struct ad_archive_job job = job_on(pair->host, pair->archive, pair->notes);

	for (int i = 0; i < 5; i++) {
		char name[2] = { (char)('a' + i), '\0' };

		put_text(pair->host, name, "x");
	}
	job.max_entries = 4;
	ck_assert_int_eq(ad_archive_pack(&job, &pair->host_manifest), -1);
	ck_assert_int_eq(job.failed.reason, AD_CARRY_ENTRIES);
	ck_assert_uint_eq(strlen(job.failed.path), 1);
	job.max_entries = 5;
	ck_assert_int_eq(ad_archive_pack(&job, &pair->host_manifest), 0);
	/* As many deletions may come besides. */
	rewind_file(pair->archive);
	job = job_on(pair->guest, pair->archive, pair->notes);
	job.max_entries = 2;
	ck_assert_int_eq(ad_archive_unpack(&job, NULL), -1);
	ck_assert_int_eq(job.failed.reason, AD_CARRY_ENTRIES);
	rewind_file(pair->archive);
	job.max_entries = 3;
	ck_assert_int_eq(ad_archive_unpack(&job, NULL), 0);
	pair_free(pair);
}
END_TEST

START_TEST(writing_and_reading_fail)
{
	struct pair *pair = pair_new();
	struct ad_archive_job job = job_on(pair->host, -1, pair->notes);
	void (*before)(int) = signal(SIGPIPE, SIG_IGN);
	int pipe_fds[2];

	put_text(pair->host, "f", "x");
	job.fd = open("/dev/full", O_WRONLY);
	ck_assert_int_eq(ad_archive_pack(&job, &pair->host_manifest), -1);
	ck_assert_int_eq(job.failed.reason, AD_CARRY_SYSTEM);
	ck_assert_int_eq(job.failed.os_errno, ENOSPC);
	close(job.fd);
	ck_assert_int_eq(pipe(pipe_fds), 0);
	close(pipe_fds[0]);
	job.fd = pipe_fds[1];
	ck_assert_int_eq(ad_archive_pack(&job, &pair->host_manifest), -1);
	ck_assert_int_eq(job.failed.os_errno, EPIPE);
	close(pipe_fds[1]);
	job.fd = pair->host;
	ck_assert_int_eq(ad_archive_unpack(&job, NULL), -1);
	ck_assert_int_eq(job.failed.reason, AD_CARRY_SYSTEM);
	ck_assert_int_eq(job.failed.os_errno, EISDIR);
	signal(SIGPIPE, before);
	pair_free(pair);
}
END_TEST

/* One file that is too large for a limit: the others are not. */
START_TEST(a_file_that_is_refused)
{
	static char data[100000];
	struct pair *pair = pair_new();
	void (*handler)(int) = signal(SIGXFSZ, SIG_IGN);
	struct rlimit before, small = { .rlim_cur = sizeof(data) / 2 };
	struct ad_archive_job job;
	const struct ad_carry_record *note;
	struct stat st;

	put_file(pair->host, "large", data, sizeof(data), 0644);
	put_text(pair->host, "small", "x");
	job = job_on(pair->host, pair->archive, pair->notes);
	ck_assert_int_eq(ad_archive_pack(&job, &pair->host_manifest), 0);
	rewind_file(pair->archive);
	ck_assert_int_eq(getrlimit(RLIMIT_FSIZE, &before), 0);
	small.rlim_max = before.rlim_max;
	ck_assert_int_eq(setrlimit(RLIMIT_FSIZE, &small), 0);
	job = job_on(pair->guest, pair->archive, pair->notes);
	ck_assert_int_eq(ad_archive_unpack(&job, NULL), 0);
	ck_assert_int_eq(setrlimit(RLIMIT_FSIZE, &before), 0);
	signal(SIGXFSZ, handler);
	note = notes_find(pair->notes, "large");
	ck_assert_ptr_nonnull(note);
	ck_assert_int_eq(note->type, AD_CARRY_ERROR);
	ck_assert_int_eq(note->os_errno, EFBIG);
	ck_assert_int_lt(fstatat(pair->guest, "large", &st, 0), 0);
	ck_assert_int_eq(fstatat(pair->guest, "small", &st, 0), 0);
	/* Nothing of the attempt is left. */
	remove_tree(pair->guest, "small");
	ck_assert_int_eq(unlinkat(pair->scratch.fd, "guest", AT_REMOVEDIR), 0);
	pair_free(pair);
}
END_TEST

static bool write_text(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY);
	bool ok = fd >= 0 && write(fd, text, strlen(text)) == (ssize_t)strlen(text);

	if (fd >= 0)
		close(fd);
	return ok;
}

/* A file system of its own in this directory, for this process. */
static bool mount_small(const char *path)
{
	unsigned int uid = geteuid(), gid = getegid();
	char map[64];

	if (unshare(uid == 0 ? CLONE_NEWNS : CLONE_NEWNS | CLONE_NEWUSER) < 0)
		return false;
	if (uid != 0) {
		snprintf(map, sizeof(map), "%u %u 1", uid, uid);
		if (!write_text("/proc/self/uid_map", map) ||
		    !write_text("/proc/self/setgroups", "deny"))
			return false;
		snprintf(map, sizeof(map), "%u %u 1", gid, gid);
		if (!write_text("/proc/self/gid_map", map))
			return false;
	}
	snprintf(map, sizeof(map), "size=64k,mode=0777,uid=%u,gid=%u", uid, gid);
	return mount("none", "/", "none", MS_REC | MS_PRIVATE, NULL) == 0 &&
	       mount("tmpfs", path, "tmpfs", 0, map) == 0;
}

START_TEST(a_full_disk_ends_it)
{
	enum { CANNOT = 77 };
	static char data[100000];
	/* Where valgrind finds it in the child, which only exits. */
	static struct pair *pair;
	struct ad_archive_job job;
	int status;
	pid_t pid;

	pair = pair_new();
	job = job_on(pair->host, pair->archive, pair->notes);
	memset(data, 'x', sizeof(data));
	put_file(pair->host, "large", data, sizeof(data), 0644);
	ck_assert_int_eq(ad_archive_pack(&job, &pair->host_manifest), 0);
	rewind_file(pair->archive);
	pid = fork();
	if (pid == 0) {
		char path[PATH_MAX];
		int fd;

		snprintf(path, sizeof(path), "%s/guest", pair->scratch.path);
		if (!mount_small(path))
			_exit(CANNOT);
		fd = open(path, O_RDONLY | O_DIRECTORY);
		job = job_on(fd, pair->archive, pair->notes);
		if (ad_archive_unpack(&job, NULL) == 0 || job.failed.reason != AD_CARRY_SYSTEM ||
		    job.failed.os_errno != ENOSPC || strcmp(job.failed.path, "large") != 0)
			_exit(1);
		/* The attempt has given its room back. */
		put_file(fd, "f", data, 32768, 0644);
		_exit(0);
	}
	ck_assert_int_eq(waitpid(pid, &status, 0), pid);
	if (WIFEXITED(status) && WEXITSTATUS(status) == CANNOT)
		fprintf(stderr, "SKIP-CANNOT: no mount of one's own here\n");
	else
		ck_assert_int_eq(status, 0);
	pair_free(pair);
}
END_TEST

/* ---- the host has changed meanwhile */

enum host_act {
	HOST_NOTHING,
	HOST_WRITES,
	HOST_CHMODS,
	HOST_DELETES,
	HOST_REPLACES,
	HOST_CREATES,
	HOST_LINKS_AWAY
};

static const struct {
	const char *path;
	enum host_act host;
	bool guest_deletes;
	enum ad_carry_reason reason; /* 0: no conflict */
	const char *text;            /* on the host in the end */
} conflicts[] = {
	/* The controls: the same without the host. */
	{ "f", HOST_NOTHING, false, 0, "guest" },
	{ "f", HOST_NOTHING, true, 0, NULL },
	{ "new", HOST_NOTHING, false, 0, "guest" },
	{ "d/f", HOST_NOTHING, false, 0, "guest" },
	{ "f", HOST_WRITES, false, AD_CARRY_CHANGED, "host" },
	{ "f", HOST_WRITES, true, AD_CARRY_CHANGED, "host" },
	{ "f", HOST_CHMODS, false, AD_CARRY_CHANGED, "both" },
	{ "f", HOST_REPLACES, false, AD_CARRY_CHANGED, "host" },
	{ "f", HOST_REPLACES, true, AD_CARRY_CHANGED, "host" },
	{ "f", HOST_DELETES, false, AD_CARRY_GONE, NULL },
	{ "f", HOST_DELETES, true, 0, NULL },
	{ "new", HOST_CREATES, false, AD_CARRY_APPEARED, "host" },
	{ "d/f", HOST_WRITES, false, AD_CARRY_CHANGED, "host" },
	{ "d/f", HOST_LINKS_AWAY, false, AD_CARRY_PARENT, NULL },
	{ "d/f", HOST_LINKS_AWAY, true, AD_CARRY_PARENT, NULL },
};

static void act_on_host(const struct pair *pair, enum host_act act, const char *path)
{
	switch (act) {
	case HOST_NOTHING:
		break;
	case HOST_WRITES:
	case HOST_CREATES:
		put_text(pair->host, path, "host");
		break;
	case HOST_CHMODS:
		ck_assert_int_eq(fchmodat(pair->host, path, 0600, 0), 0);
		break;
	case HOST_DELETES:
		remove_tree(pair->host, path);
		break;
	case HOST_REPLACES:
		put_text(pair->host, "other", "host");
		ck_assert_int_eq(renameat(pair->host, "other", pair->host, path), 0);
		break;
	case HOST_LINKS_AWAY:
		/* To a directory with the same in it, outside. */
		ck_assert_int_eq(renameat(pair->host, "d", pair->scratch.fd, "outside"), 0);
		ck_assert_int_eq(symlinkat("../outside", pair->host, "d"), 0);
		break;
	}
}

START_TEST(conflicts_keep_the_hosts)
{
	const char *path = conflicts[_i].path;
	struct pair *pair = pair_new();
	char *text;

	put_text(pair->host, "f", "both");
	ck_assert_int_eq(mkdirat(pair->host, "d", 0755), 0);
	put_text(pair->host, "d/f", "both");
	pair_carry_in(pair);
	if (conflicts[_i].guest_deletes)
		remove_tree(pair->guest, path);
	else
		put_text(pair->guest, path, "guest");
	put_text(pair->guest, "z", "also");
	act_on_host(pair, conflicts[_i].host, path);
	pair_carry_out(pair, NULL);
	if (conflicts[_i].reason) {
		ck_assert_uint_eq(pair->notes->count, 1);
		check_note(pair->notes, path,
			   conflicts[_i].reason == AD_CARRY_PARENT ? AD_CARRY_DENIED :
								     AD_CARRY_CONFLICT,
			   conflicts[_i].reason);
	} else {
		ck_assert_uint_eq(pair->notes->count, 0);
	}
	if (conflicts[_i].host == HOST_LINKS_AWAY) {
		text = get_text(pair->scratch.fd, "outside/f");
		ck_assert_str_eq(text, "both");
	} else {
		text = get_text(pair->host, path);
		if (conflicts[_i].text)
			ck_assert_str_eq(text, conflicts[_i].text);
		else
			ck_assert_ptr_null(text);
	}
	free(text);
	/* The rest came through. */
	text = get_text(pair->host, "z");
	ck_assert_str_eq(text, "also");
	free(text);
	pair_free(pair);
}
END_TEST

START_TEST(directories_of_both)
{
	struct pair *pair = pair_new();
	struct stat st;
	char *text;

	ck_assert_int_eq(mkdirat(pair->host, "gone", 0755), 0);
	put_text(pair->host, "gone/f", "both");
	pair_carry_in(pair);
	/* Removed here, written into there: it stays for that. */
	remove_tree(pair->guest, "gone");
	put_text(pair->host, "gone/hosts", "host");
	/* Made on both sides: one directory with both in it. */
	ck_assert_int_eq(mkdirat(pair->guest, "new", 0700), 0);
	put_text(pair->guest, "new/guests", "guest");
	ck_assert_int_eq(mkdirat(pair->host, "new", 0751), 0);
	put_text(pair->host, "new/hosts", "host");
	pair_carry_out(pair, NULL);
	ck_assert_uint_eq(pair->notes->count, 1);
	check_note(pair->notes, "gone", AD_CARRY_CONFLICT, AD_CARRY_NOT_EMPTY);
	ck_assert_int_lt(fstatat(pair->host, "gone/f", &st, 0), 0);
	text = get_text(pair->host, "gone/hosts");
	ck_assert_str_eq(text, "host");
	free(text);
	text = get_text(pair->host, "new/guests");
	ck_assert_str_eq(text, "guest");
	free(text);
	ck_assert_int_eq(fstatat(pair->host, "new", &st, 0), 0);
	ck_assert_uint_eq(st.st_mode & 07777, 0751);
	/* And gone on both sides is no conflict. */
	pair_free(pair);
	pair = pair_new();
	ck_assert_int_eq(mkdirat(pair->host, "d", 0755), 0);
	put_text(pair->host, "d/f", "both");
	pair_carry_in(pair);
	remove_tree(pair->guest, "d");
	remove_tree(pair->host, "d");
	pair_carry_out(pair, NULL);
	ck_assert_uint_eq(pair->notes->count, 0);
	pair_free(pair);
}
END_TEST

static void set_mode(int dir_fd, const char *path, mode_t mode)
{
	ck_assert_int_eq(fchmodat(dir_fd, path, mode, 0), 0);
}

static mode_t mode_of(int dir_fd, const char *path)
{
	struct stat st;

	ck_assert_int_eq(fstatat(dir_fd, path, &st, 0), 0);
	return st.st_mode & 07777;
}

/* Who owns a directory writes in it as he likes: what the command has done, the carrier does. */
START_TEST(directories_that_forbid)
{
	static const char *const shut[] = { "gone/d", "gone", "up", "same/sub", "same", "hosts" };
	struct pair *pair;
	struct stat st;

	if (geteuid() == 0)
		ck_assert_int_eq(seteuid(OTHER_USER), 0);
	pair = pair_new();
	ck_assert_int_eq(mkdirat(pair->host, "gone", 0755), 0);
	ck_assert_int_eq(mkdirat(pair->host, "gone/d", 0755), 0);
	ck_assert_int_eq(mkdirat(pair->host, "up", 0755), 0);
	ck_assert_int_eq(mkdirat(pair->host, "same", 0755), 0);
	ck_assert_int_eq(mkdirat(pair->host, "same/sub", 0755), 0);
	ck_assert_int_eq(mkdirat(pair->host, "hosts", 0755), 0);
	put_text(pair->host, "gone/d/f", "x");
	put_text(pair->host, "same/sub/f", "x");
	for (size_t i = 0; i < sizeof(shut) / sizeof(shut[0]) - 1; i++)
		set_mode(pair->host, shut[i], 0555);
	pair_carry_in(pair);
	set_mode(pair->guest, "gone", 0755);
	set_mode(pair->guest, "gone/d", 0755);
	remove_tree(pair->guest, "gone");
	set_mode(pair->guest, "up", 0751);
	put_text(pair->guest, "up/new", "x");
	set_mode(pair->guest, "same/sub", 0755);
	remove_tree(pair->guest, "same/sub/f");
	put_text(pair->guest, "same/sub/new", "x");
	set_mode(pair->guest, "same/sub", 0555);
	pair_carry_out(pair, NULL);
	ck_assert_uint_eq(pair->notes->count, 0);
	check_same_tree(pair->host, pair->guest, false);
	ck_assert_uint_eq(mode_of(pair->host, "up"), 0751);
	ck_assert_uint_eq(mode_of(pair->host, "same/sub"), 0555);
	/* But what the host has forbidden meanwhile is forbidden. */
	set_mode(pair->host, "hosts", 0555);
	put_text(pair->guest, "hosts/new", "x");
	pair_carry_out(pair, NULL);
	check_note(pair->notes, "hosts/new", AD_CARRY_ERROR, AD_CARRY_SYSTEM);
	ck_assert_int_lt(fstatat(pair->host, "hosts/new", &st, 0), 0);
	ck_assert_uint_eq(mode_of(pair->host, "hosts"), 0555);
	for (size_t i = 2; i < sizeof(shut) / sizeof(shut[0]); i++) {
		set_mode(pair->host, shut[i], 0755);
		set_mode(pair->guest, shut[i], 0755);
	}
	pair_free(pair);
}
END_TEST

/* Replacing one name of a file changes the others' times, by our own doing. */
START_TEST(hard_links_are_no_conflict)
{
	struct pair *pair = pair_new();
	struct stat a, b, c;

	put_text(pair->host, "a", "both");
	ck_assert_int_eq(linkat(pair->host, "a", pair->host, "b", 0), 0);
	ck_assert_int_eq(linkat(pair->host, "a", pair->host, "c", 0), 0);
	pair_carry_in(pair);
	put_text(pair->guest, "b", "guest");
	remove_tree(pair->guest, "c");
	pair_carry_out(pair, NULL);
	ck_assert_uint_eq(pair->notes->count, 0);
	check_same_tree(pair->host, pair->guest, true);
	ck_assert_int_eq(fstatat(pair->host, "a", &a, 0), 0);
	ck_assert_int_eq(fstatat(pair->host, "b", &b, 0), 0);
	ck_assert_uint_eq(a.st_ino, b.st_ino);
	ck_assert_int_lt(fstatat(pair->host, "c", &c, 0), 0);
	pair_free(pair);
}
END_TEST

int main(void)
{
	TCase *tc = tcase_create("archive");

	tcase_add_test(tc, random_trees_round_trip);
	tcase_add_test(tc, random_changes_come_back);
	tcase_add_test(tc, no_changes_are_none);
	tcase_add_test(tc, every_change_is_seen);
	tcase_add_test(tc, the_clock_has_moved_on);
	tcase_add_test(tc, types_change);
	tcase_add_test(tc, manifests_survive_a_file);
	tcase_add_test(tc, files_get_their_owner);
	tcase_add_test(tc, holes_stay_holes);
	tcase_add_test(tc, many_holes);
	tcase_add_test(tc, deep_trees);
	tcase_add_test(tc, what_is_no_file_is_skipped);
	tcase_add_test(tc, what_cannot_be_read_is_skipped);
	tcase_add_test(tc, what_cannot_be_listed_is_not_deleted);
	tcase_add_test(tc, bytes_are_limited);
	tcase_add_test(tc, entries_are_limited);
	tcase_add_test(tc, writing_and_reading_fail);
	tcase_add_test(tc, a_file_that_is_refused);
	tcase_add_test(tc, a_full_disk_ends_it);
	tcase_add_loop_test(tc, conflicts_keep_the_hosts, 0,
			    sizeof(conflicts) / sizeof(conflicts[0]));
	tcase_add_test(tc, directories_of_both);
	tcase_add_test(tc, directories_that_forbid);
	tcase_add_test(tc, hard_links_are_no_conflict);
	return unit_run("archive", tc);
}
