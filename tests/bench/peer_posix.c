/* SPDX-License-Identifier: MIT */
/* posix_spawn and the plainest loop there is. */
#include "peer.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <string.h>
#include <unistd.h>

#include "bench.h"

uint64_t peer_read_loop(const char *const *argv)
{
	static uint8_t buf[256 << 10];
	int out[2], err[2], pid;
	struct pollfd fds[2];
	uint64_t total = 0;

	if (pipe2(out, O_CLOEXEC) < 0 || pipe2(err, O_CLOEXEC) < 0)
		bench_fail("pipe2", strerror(errno));
	fcntl(out[0], F_SETPIPE_SZ, 1 << 20); /* as large as it gets */
	pid = bench_spawn(argv, BENCH_SPAWN, (int[]){ -1, out[1], err[1] });
	close(out[1]);
	close(err[1]);
	fds[0] = (struct pollfd){ .fd = out[0], .events = POLLIN };
	fds[1] = (struct pollfd){ .fd = err[0], .events = POLLIN };
	while (fds[0].fd >= 0 || fds[1].fd >= 0) {
		if (poll(fds, 2, -1) < 0 && errno != EINTR)
			bench_fail("poll", strerror(errno));
		for (int i = 0; i < 2; i++) {
			ssize_t n;

			if (fds[i].fd < 0 || !fds[i].revents)
				continue;
			n = read(fds[i].fd, buf, sizeof(buf));
			if (n <= 0)
				fds[i].fd = -1;
			else if (i == 0)
				total += (uint64_t)n;
		}
	}
	close(out[0]);
	close(err[0]);
	if (bench_wait(pid) != 0)
		bench_fail(argv[0], "did not exit with 0");
	return total;
}
