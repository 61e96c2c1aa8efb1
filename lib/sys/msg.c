/* SPDX-License-Identifier: MIT */
#include "sys/sys.h"

#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

union send_control {
	struct cmsghdr align;
	char space[CMSG_SPACE(sizeof(int) * AD_SYS_FDS_MAX)];
};

/* Room for more descriptors than we ever want, so that a peer that sends too many
 * is noticed and not mistaken for one that ran into our descriptor limit. */
enum { RECV_FDS = AD_SYS_FDS_MAX * 2 };
union recv_control {
	struct cmsghdr align;
	char space[CMSG_SPACE(sizeof(int) * RECV_FDS) + CMSG_SPACE(sizeof(struct ucred))];
};

enum { ROOM_TRIES = 1000 };
static const struct timespec room_pause = { .tv_nsec = 1000000 };

int ad_sys_send(int sock, const void *data, size_t len, const int *fds, size_t fd_count, int flags)
{
	struct iovec iov = { .iov_base = (void *)(uintptr_t)data, .iov_len = len };
	struct msghdr hdr = { .msg_iov = &iov, .msg_iovlen = 1 };
	union send_control control;
	ssize_t n;

	if (fd_count > AD_SYS_FDS_MAX)
		return -EINVAL;
	if (fd_count > 0) {
		struct cmsghdr *cmsg;

		memset(&control, 0, sizeof(control));
		hdr.msg_control = control.space;
		hdr.msg_controllen = CMSG_SPACE(sizeof(int) * fd_count);
		cmsg = CMSG_FIRSTHDR(&hdr);
		cmsg->cmsg_level = SOL_SOCKET;
		cmsg->cmsg_type = SCM_RIGHTS;
		cmsg->cmsg_len = CMSG_LEN(sizeof(int) * fd_count);
		memcpy(CMSG_DATA(cmsg), fds, sizeof(int) * fd_count);
	}
	for (int tries = 0;; tries++) {
		n = sendmsg(sock, &hdr, flags | MSG_NOSIGNAL);
		if (n < 0 && errno == EINTR)
			continue;
		if (n >= 0 || (errno != ENOBUFS && errno != ENOMEM && errno != ETOOMANYREFS))
			break;
		/* The machine's memory is as much a lack of room as the socket's, but the
		 * kernel does not wait for it. */
		if (flags & MSG_DONTWAIT)
			return errno == ETOOMANYREFS ? -ETOOMANYREFS : -EAGAIN;
		/* So is that of descriptors on their way, but another process of the user's may keep
		 * them there. */
		if (tries >= ROOM_TRIES)
			break;
		nanosleep(&room_pause, NULL);
	}
	if (n < 0)
		return -errno;
	return (size_t)n == len ? 0 : -EMSGSIZE;
}

void ad_sys_msg_close(struct ad_sys_msg *msg)
{
	for (size_t i = 0; i < msg->fd_count; i++) {
		if (msg->fds[i] >= 0)
			close(msg->fds[i]);
	}
	msg->fd_count = 0;
}

static void take_fds(struct ad_sys_msg *msg, const struct cmsghdr *cmsg)
{
	size_t count = (cmsg->cmsg_len - CMSG_LEN(0)) / sizeof(int);
	const unsigned char *at = CMSG_DATA(cmsg);

	for (size_t i = 0; i < count; i++) {
		int fd;

		memcpy(&fd, at + i * sizeof(int), sizeof(fd));
		if (msg->fd_count == AD_SYS_FDS_MAX) {
			close(fd);
			msg->fds_lost = true;
			continue;
		}
		fd = ad_sys_high_fd(fd);
		if (fd < 0)
			msg->fds_lost = true;
		else
			msg->fds[msg->fd_count++] = fd;
	}
}

int ad_sys_recv(int sock, struct ad_sys_msg *msg, int flags)
{
	struct iovec iov = { .iov_base = msg->data, .iov_len = msg->cap };
	union recv_control control;
	struct msghdr hdr = {
		.msg_iov = &iov,
		.msg_iovlen = 1,
		.msg_control = control.space,
		.msg_controllen = sizeof(control.space),
	};
	ssize_t n;

	msg->len = 0;
	msg->fd_count = 0;
	msg->fds_lost = msg->has_creds = false;
	do {
		n = recvmsg(sock, &hdr, flags | MSG_CMSG_CLOEXEC);
	} while (n < 0 && errno == EINTR);
	/* The message is still there, for when there is memory. */
	if (n < 0 && (flags & MSG_DONTWAIT) && (errno == ENOMEM || errno == ENOBUFS))
		return -EAGAIN;
	if (n < 0)
		return -errno;
	for (struct cmsghdr *cmsg = CMSG_FIRSTHDR(&hdr); cmsg; cmsg = CMSG_NXTHDR(&hdr, cmsg)) {
		struct ucred cred;

		if (cmsg->cmsg_level != SOL_SOCKET)
			continue;
		if (cmsg->cmsg_type == SCM_RIGHTS) {
			take_fds(msg, cmsg);
		} else if (cmsg->cmsg_type == SCM_CREDENTIALS &&
			   cmsg->cmsg_len >= CMSG_LEN(sizeof(cred))) {
			memcpy(&cred, CMSG_DATA(cmsg), sizeof(cred));
			msg->has_creds = true;
			msg->pid = cred.pid;
			msg->uid = cred.uid;
			msg->gid = cred.gid;
		}
	}
	if (hdr.msg_flags & MSG_CTRUNC)
		msg->fds_lost = true;
	if (hdr.msg_flags & MSG_TRUNC) {
		ad_sys_msg_close(msg);
		return -EMSGSIZE;
	}
	msg->len = (size_t)n;
	return n > 0;
}
