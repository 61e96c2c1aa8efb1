/* SPDX-License-Identifier: MIT */
/* What a machine sends back, unpacked into a small tree. Whatever it is, nothing happens
 * outside of that tree. */
#include "fuzz.h"

#include <fcntl.h>
#include <fts.h>
#include <stdbool.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "archive/archive.h"

static const char secret[] = "secret";
static char top[] = "/dev/shm/agentd-fuzz.XXXXXX";
static char inside[sizeof(top) + 8];
static int top_fd = -1;

static void make_file(const char *path)
{
	int fd = openat(top_fd, path, O_WRONLY | O_CREAT | O_EXCL, 0644);

	FUZZ_CHECK(fd >= 0 && write(fd, secret, sizeof(secret)) == sizeof(secret));
	close(fd);
}

static void remove_all(char *path)
{
	char *paths[] = { path, NULL };
	FTS *fts;
	FTSENT *entry;

	fts = fts_open(paths, FTS_PHYSICAL, NULL);
	FUZZ_CHECK(fts);
	while ((entry = fts_read(fts))) {
		if (entry->fts_info == FTS_D)
			chmod(entry->fts_accpath, S_IRWXU);
		else if (entry->fts_info == FTS_DP)
			rmdir(entry->fts_accpath);
		else
			unlink(entry->fts_accpath);
	}
	fts_close(fts);
}

static void end(void)
{
	remove_all(top);
}

static void begin(void)
{
	FUZZ_CHECK(mkdtemp(top));
	top_fd = open(top, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	FUZZ_CHECK(top_fd >= 0);
	FUZZ_CHECK(mkdirat(top_fd, "outside", 0755) == 0);
	make_file("outside/secret");
	snprintf(inside, sizeof(inside), "%s/inside", top);
	atexit(end);
}

/* Nothing beside the two, and what is outside is as it was. */
static void check_outside(void)
{
	struct stat above, dir, file;
	char text[2 * sizeof(secret)];
	int fd;

	FUZZ_CHECK(fstat(top_fd, &above) == 0 && above.st_nlink == 4);
	FUZZ_CHECK(fstatat(top_fd, "outside", &dir, AT_SYMLINK_NOFOLLOW) == 0);
	FUZZ_CHECK(dir.st_nlink == 2 && dir.st_mode == (S_IFDIR | 0755));
	FUZZ_CHECK(fstatat(top_fd, "outside/secret", &file, AT_SYMLINK_NOFOLLOW) == 0);
	FUZZ_CHECK(file.st_nlink == 1 && file.st_mode == (S_IFREG | 0644));
	fd = openat(top_fd, "outside/secret", O_RDONLY);
	FUZZ_CHECK(read(fd, text, sizeof(text)) == sizeof(secret));
	FUZZ_CHECK(memcmp(text, secret, sizeof(secret)) == 0);
	close(fd);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct ad_archive_job job = {
		.max_bytes = 1 << 20, .max_entries = 1000, .uid = (uid_t)-1, .gid = (gid_t)-1
	};
	struct ad_manifest *manifest = NULL;

	if (top_fd < 0)
		begin();
	FUZZ_CHECK(mkdirat(top_fd, "inside", 0755) == 0);
	FUZZ_CHECK(mkdirat(top_fd, "inside/d", 0755) == 0);
	make_file("inside/f");
	make_file("inside/d/f");
	FUZZ_CHECK(symlinkat("../outside", top_fd, "inside/l") == 0);
	job.dir_fd = openat(top_fd, "inside", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	job.fd = memfd_create("archive", MFD_CLOEXEC);
	FUZZ_CHECK(job.dir_fd >= 0 && job.fd >= 0);
	FUZZ_CHECK(write(job.fd, data, size) == (ssize_t)size && lseek(job.fd, 0, SEEK_SET) == 0);
	/* With and without, by a bit that every archive has of either kind. */
	if (size > 0 && data[size / 2] & 1)
		FUZZ_CHECK(ad_archive_scan(&job, &manifest) == 0);
	if (ad_archive_unpack(&job, manifest) < 0)
		FUZZ_CHECK(job.failed.type == AD_CARRY_FAILED && job.failed.path == job.path);
	FUZZ_CHECK(job.bytes <= job.max_bytes);
	ad_manifest_free(manifest);
	close(job.dir_fd);
	close(job.fd);
	check_outside();
	remove_all(inside);
	return 0;
}
