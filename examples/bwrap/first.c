/* SPDX-License-Identifier: MIT */
/* The first process of a sandbox. bwrap would say 128 + N of a command that a signal ended;
 * this one tells the truth, passes signals on, and reaps what the command left behind. Linked
 * statically, for the sandbox may hold no libraries. Without arguments: does nothing, well. */
#include <errno.h>
#include <fcntl.h>
#include <linux/close_range.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "first.h"

static uint64_t now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000000000U + (uint64_t)now.tv_nsec;
}

static uint64_t time_ns(struct timeval tv)
{
	return (uint64_t)tv.tv_sec * 1000000000U + (uint64_t)tv.tv_usec * 1000U;
}

static void say(int32_t kind, int32_t value, const struct rusage *usage)
{
	struct first_note note = { .kind = kind, .value = value, .at_ns = now_ns() };

	if (usage) {
		note.cpu_ns = time_ns(usage->ru_utime) + time_ns(usage->ru_stime);
		note.peak_bytes = (uint64_t)usage->ru_maxrss * 1024U;
	}
	/* Nobody there: the namespace is about to be killed. */
	if (send(FIRST_CONTROL, &note, sizeof(note), MSG_NOSIGNAL) < 0)
		_exit(1);
}

/* A vector of count strings that follow each other at *at; NULL: they are not there. */
static char **strings(char **at, const char *end, uint32_t count)
{
	char **list = calloc((size_t)count + 1, sizeof(*list));

	for (uint32_t i = 0; list && i < count; i++) {
		char *nul = memchr(*at, '\0', (size_t)(end - *at));

		if (!nul)
			return NULL;
		list[i] = *at;
		*at = nul + 1;
	}
	return list;
}

static int limit(__rlimit_resource_t resource, uint64_t value)
{
	const struct rlimit limits = { .rlim_cur = value, .rlim_max = value };

	return value == 0 ? 0 : setrlimit(resource, &limits);
}

static void run(const struct first_request *request, char **argv, char **envp, int report)
{
	static const uint64_t default_action[4]; /* the kernel's struct sigaction */
	sigset_t none;
	int code;

	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	/* posix_spawn(3) leaves the two signals that glibc keeps for itself ignored. */
	for (int signo = 32; signo < 34; signo++)
		syscall(SYS_rt_sigaction, signo, &default_action, NULL, 8);
	setpgid(0, 0);
	environ = envp;
	if (dup2(FIRST_STDIN, 0) >= 0 && dup2(FIRST_STDOUT, 1) >= 0 && dup2(FIRST_STDERR, 2) >= 0 &&
	    syscall(SYS_close_range, 3U, ~0U, CLOSE_RANGE_CLOEXEC) == 0 &&
	    limit(RLIMIT_FSIZE, request->file_bytes) == 0 &&
	    limit(RLIMIT_NOFILE, request->open_files_max) == 0)
		execvp(argv[0], argv);
	code = errno;
	(void)!write(report, &code, sizeof(code));
	_exit(127);
}

/* Its pid, or -1 with errno: it could not be started. */
static pid_t start(void)
{
	struct first_request *request;
	struct stat st;
	char **argv, **envp, *at;
	int report[2], code = 0;
	pid_t pid;

	if (fstat(FIRST_REQUEST, &st) < 0)
		return -1;
	request = mmap(NULL, (size_t)st.st_size, PROT_READ | PROT_WRITE, MAP_PRIVATE, FIRST_REQUEST,
		       0);
	if (request == MAP_FAILED || pipe2(report, O_CLOEXEC) < 0)
		return -1;
	at = (char *)(request + 1);
	argv = strings(&at, (char *)request + st.st_size, request->argc);
	envp = strings(&at, (char *)request + st.st_size, request->envc);
	if (!argv || !envp || !argv[0]) {
		errno = EINVAL;
		return -1;
	}
	pid = fork();
	if (pid == 0)
		run(request, argv, envp, report[1]);
	if (pid < 0)
		return -1;
	close(report[1]);
	if (read(report[0], &code, sizeof(code)) == (ssize_t)sizeof(code)) {
		errno = code;
		pid = -1;
	}
	close(report[0]);
	/* Who reads and writes them should learn of their ends from the command. */
	close(FIRST_STDIN);
	close(FIRST_STDOUT);
	close(FIRST_STDERR);
	close(FIRST_REQUEST);
	return pid;
}

/* Whether any child is left. */
static bool reap(pid_t command)
{
	struct rusage usage;
	int status;
	pid_t pid;

	while ((pid = wait4(-1, &status, WNOHANG, &usage)) > 0) {
		if (pid == command)
			say(FIRST_EXITED, status, &usage);
	}
	return pid == 0;
}

int main(int argc, char **argv)
{
	struct pollfd polls[2] = { { .fd = FIRST_CONTROL, .events = POLLIN },
				   { .events = POLLIN } };
	sigset_t mask;
	uint8_t byte;
	pid_t command;

	(void)argv;
	if (argc == 1)
		return 0;
	sigemptyset(&mask);
	sigaddset(&mask, SIGCHLD);
	sigprocmask(SIG_BLOCK, &mask, NULL);
	polls[1].fd = signalfd(-1, &mask, SFD_CLOEXEC | SFD_NONBLOCK);
	if (polls[1].fd < 0 || recv(FIRST_CONTROL, &byte, 1, 0) != 1 || byte != FIRST_GO)
		return 1;
	command = start();
	if (command < 0) {
		say(FIRST_FAILED, errno, NULL);
		return 1;
	}
	say(FIRST_STARTED, 0, NULL);
	while (reap(command)) {
		struct signalfd_siginfo info;

		if (poll(polls, 2, -1) < 0)
			continue;
		while (read(polls[1].fd, &info, sizeof(info)) > 0)
			continue;
		if (!polls[0].revents)
			continue;
		if (recv(FIRST_CONTROL, &byte, 1, MSG_DONTWAIT) != 1)
			return 1; /* the host program is gone, and with us goes all */
		kill(-command, byte);
	}
	return 0;
}
