/* SPDX-License-Identifier: MIT */
#include "sys/sys.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

uint64_t ad_sys_now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

int ad_sys_high_fd(int fd)
{
	int high;

	if (fd > STDERR_FILENO || fd < 0)
		return fd;
	high = fcntl(fd, F_DUPFD_CLOEXEC, STDERR_FILENO + 1);
	if (high < 0)
		high = -errno;
	close(fd);
	return high;
}

int ad_sys_pair(int ret[2])
{
	int pair[2];

	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) < 0)
		return -errno;
	pair[0] = ad_sys_high_fd(pair[0]);
	pair[1] = ad_sys_high_fd(pair[1]);
	for (int i = 0; i < 2; i++) {
		if (pair[i] < 0) {
			if (pair[1 - i] >= 0)
				close(pair[1 - i]);
			return pair[i];
		}
	}
	ret[0] = pair[0];
	ret[1] = pair[1];
	return 0;
}

int ad_sys_pass_creds(int sock)
{
	const int on = 1;

	return setsockopt(sock, SOL_SOCKET, SO_PASSCRED, &on, sizeof(on)) < 0 ? -errno : 0;
}

int ad_sys_pidfd(pid_t pid)
{
	int fd = (int)syscall(SYS_pidfd_open, pid, 0);

	return fd < 0 ? -errno : ad_sys_high_fd(fd);
}

int ad_sys_pidfd_signal(int pidfd, int signo)
{
	return syscall(SYS_pidfd_send_signal, pidfd, signo, NULL, 0) < 0 ? -errno : 0;
}

int ad_sys_close_range(unsigned int first, unsigned int last)
{
	return syscall(SYS_close_range, first, last, 0) < 0 ? -errno : 0;
}

int ad_sys_set_nonblock(int fd)
{
	int flags = fcntl(fd, F_GETFL);

	if (flags < 0 || fcntl(fd, F_SETFL, flags | O_NONBLOCK) < 0)
		return -errno;
	return 0;
}

/* The kernel sends both to the thread that writes. */
void ad_sys_signals_hold(struct ad_sys_signals *held)
{
	sigset_t set;

	sigemptyset(&set);
	sigaddset(&set, SIGPIPE);
	sigaddset(&set, SIGXFSZ);
	pthread_sigmask(SIG_BLOCK, &set, &held->old);
	/* What was not blocked before cannot have been pending. */
	sigemptyset(&held->pending);
	if (sigismember(&held->old, SIGPIPE) || sigismember(&held->old, SIGXFSZ))
		sigpending(&held->pending);
}

void ad_sys_signals_release(const struct ad_sys_signals *held, int error)
{
	const struct timespec now = { 0 };
	int signo = error == EPIPE ? SIGPIPE : (error == EFBIG ? SIGXFSZ : 0);
	sigset_t set;

	if (signo && !sigismember(&held->pending, signo)) {
		sigemptyset(&set);
		sigaddset(&set, signo);
		while (sigtimedwait(&set, NULL, &now) < 0 && errno == EINTR)
			;
	}
	pthread_sigmask(SIG_SETMASK, &held->old, NULL);
}

ssize_t ad_sys_write_nosignal(int fd, const void *data, size_t len)
{
	struct ad_sys_signals held;
	ssize_t n;

	ad_sys_signals_hold(&held);
	n = write(fd, data, len);
	if (n < 0)
		n = -errno;
	ad_sys_signals_release(&held, n < 0 ? (int)-n : 0);
	return n;
}

int ad_sys_truncate_nosignal(int fd, off_t len)
{
	struct ad_sys_signals held;
	int error;

	ad_sys_signals_hold(&held);
	error = ftruncate(fd, len) < 0 ? errno : 0;
	ad_sys_signals_release(&held, error);
	return -error;
}

static int fill_and_seal(int fd, const uint8_t *data, size_t len)
{
	for (size_t done = 0; done < len;) {
		ssize_t n = ad_sys_write_nosignal(fd, data + done, len - done);

		if (n == -EINTR)
			continue;
		if (n < 0)
			return (int)n;
		if (n == 0)
			return -ENOSPC;
		done += (size_t)n;
	}
	if (fcntl(fd, F_ADD_SEALS, F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE) < 0)
		return -errno;
	return 0;
}

int ad_sys_memfd_sealed(const char *name, const void *data, size_t len)
{
	int fd = memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING), r;

	if (fd < 0)
		return -errno;
	fd = ad_sys_high_fd(fd);
	if (fd < 0)
		return fd;
	r = fill_and_seal(fd, data, len);
	if (r < 0) {
		close(fd);
		return r;
	}
	return fd;
}

ssize_t ad_sys_memfd_size(int fd)
{
	const int wanted = F_SEAL_SHRINK | F_SEAL_WRITE;
	int seals = fcntl(fd, F_GET_SEALS);
	struct stat st;

	if (seals < 0 || fstat(fd, &st) < 0)
		return -errno;
	if ((seals & wanted) != wanted)
		return -EPERM;
	return st.st_size > SSIZE_MAX ? -EFBIG : (ssize_t)st.st_size;
}
