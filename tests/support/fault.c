/* SPDX-License-Identifier: MIT */
#include "fault.h"

#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

bool fault_strikes(struct fault *fault)
{
	uint32_t number;

	if (!fault->armed)
		return false;
	number = ++fault->seen;
	if (number != fault->at && !(fault->for_good && number > fault->at))
		return false;
	fault->hits++;
	return true;
}

static struct fault *map(int fd)
{
	void *fault = MAP_FAILED;

	if (fd >= 0) {
		fault = mmap(NULL, sizeof(struct fault), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
		close(fd);
	}
	return fault == MAP_FAILED ? NULL : fault;
}

struct fault *fault_create(const char *program)
{
	char path[PATH_MAX];
	int fd;

	snprintf(path, sizeof(path), "%s.fault", program);
	fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	if (fd >= 0 && ftruncate(fd, sizeof(struct fault)) < 0) {
		close(fd);
		fd = -1;
	}
	return map(fd);
}

struct fault *fault_inherit(void)
{
	char path[PATH_MAX];
	ssize_t len = readlink("/proc/self/exe", path, sizeof(path) - sizeof(".fault"));

	if (len < 0)
		return NULL;
	snprintf(path + len, sizeof(".fault"), ".fault");
	return map(open(path, O_RDWR | O_CLOEXEC));
}
