/* SPDX-License-Identifier: MIT */
/* A process of the host that holds a secret wherever a process can hold one.
 *
 *     victim SECRET SECRET-FILE ADDRESS-KEY QUEUE
 *         in its memory, on descriptor 3, in shared memory (a number) and behind a
 *         message queue's name; prints "ready PID ADDRESS", lives until its standard
 *         input ends, and takes all of it away.
 *     victim --keyring NAME SECRET PROGRAM [ARGUMENT...]
 *         in a session keyring, with which it becomes the program. */
#include <errno.h>
#include <fcntl.h>
#include <mqueue.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <sys/ipc.h>
#include <sys/shm.h>
#include <sys/syscall.h>

#include <linux/keyctl.h>

static char memory[4096] = "x"; /* not zero, so that its pages are the file's own */

static int fail(const char *what)
{
	fprintf(stderr, "victim: %s: %s\n", what, strerror(errno));
	return 1;
}

static int with_keyring(char **argv)
{
	if (syscall(SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, NULL) < 0)
		return fail("keyring");
	if (syscall(SYS_add_key, "user", argv[0], argv[1], strlen(argv[1]),
		    KEY_SPEC_SESSION_KEYRING) < 0)
		return fail("key");
	execvp(argv[2], argv + 2);
	return fail(argv[2]);
}

int main(int argc, char **argv)
{
	int fd, id;
	char *shared, byte;
	struct mq_attr attr = { .mq_maxmsg = 1, .mq_msgsize = 16 };
	mqd_t queue;

	if (argc >= 5 && strcmp(argv[1], "--keyring") == 0)
		return with_keyring(argv + 2);
	if (argc != 5) {
		fputs("usage: victim SECRET SECRET-FILE SHM-KEY QUEUE\n", stderr);
		return 2;
	}
	signal(SIGPIPE, SIG_IGN);
	snprintf(memory, sizeof(memory), "%s", argv[1]);
	fd = open(argv[2], O_RDONLY);
	if (fd < 0 || (fd != 3 && dup2(fd, 3) < 0))
		return fail(argv[2]);
	id = shmget((key_t)strtol(argv[3], NULL, 0), 4096, IPC_CREAT | IPC_EXCL | 0666);
	if (id < 0)
		return fail("shared memory");
	shared = shmat(id, NULL, 0);
	if (shared == (void *)-1)
		return fail("shared memory");
	snprintf(shared, 4096, "%s", argv[1]);
	queue = mq_open(argv[4], O_CREAT | O_EXCL | O_RDWR, 0666, &attr);
	if (queue == (mqd_t)-1)
		fprintf(stderr, "victim: no message queue: %s\n", strerror(errno));

	printf("ready %d %lx\n", getpid(), (unsigned long)memory);
	fflush(stdout);
	while (read(STDIN_FILENO, &byte, 1) > 0 || errno == EINTR)
		errno = 0;
	shmctl(id, IPC_RMID, NULL);
	mq_unlink(argv[4]);
	return 0;
}
