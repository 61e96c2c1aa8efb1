/* SPDX-License-Identifier: MIT */
/* The command of the torture tests: is everything of a sandbox around it? Says
 * "confined", or what is missing, a line each; then copies its input.
 *
 * usage: confined MARKER [NAMESPACE=NUMBER...] look|sleep
 * MARKER is a file to be written where no sandbox may write; then come the namespaces
 * of the host program. With "sleep" it does not end, nor does its child. */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static int holes;

static void hole(const char *what)
{
	printf("open: %s\n", what);
	holes++;
}

static void check_namespace(char *known)
{
	char path[64], now[64];
	char *number = strchr(known, '=');
	ssize_t len;

	*number++ = '\0';
	snprintf(path, sizeof(path), "/proc/self/ns/%s", known);
	len = readlink(path, now, sizeof(now) - 1);
	now[len < 0 ? 0 : len] = '\0';
	if (len < 0 || strcmp(now, number) == 0)
		hole(known);
}

static void check_status(void)
{
	static const char *const wanted[] = {
		"CapInh:\t0000000000000000",
		"CapPrm:\t0000000000000000",
		"CapEff:\t0000000000000000",
		"CapBnd:\t0000000000000000",
		"CapAmb:\t0000000000000000",
		"NoNewPrivs:\t1",
		"Seccomp:\t2",
		"Seccomp_filters:\t2",
	};
	char text[4096];
	int fd = open("/proc/self/status", O_RDONLY);
	ssize_t len = fd < 0 ? -1 : read(fd, text, sizeof(text) - 1);

	text[len < 0 ? 0 : len] = '\0';
	close(fd);
	for (size_t i = 0; i < sizeof(wanted) / sizeof(wanted[0]); i++) {
		if (!strstr(text, wanted[i]))
			hole(wanted[i]);
	}
}

static void check_rest(void)
{
	char name[64] = "";
	int fd;

	if (getuid() != 1000 || getgid() != 1000)
		hole("ids");
	/* Landlock's: pid 1 is the same user. */
	if (kill(1, 0) == 0 || errno != EPERM)
		hole("signals");
	if (mkdir("/made", 0700) == 0 || errno != EROFS)
		hole("root directory");
	/* What a protected link leads to, and a protected name that is not taken: in that
	 * directory, if there are such. */
	fd = open("config", O_WRONLY);
	if (fd >= 0 || (errno != ENOENT && errno != EROFS))
		hole("protected name");
	if (fd < 0 && errno == EROFS && (fd = open(".profile", O_WRONLY | O_CREAT, 0666)) < 0)
		hole("working directory");
	if (fd >= 0)
		close(fd);
	if (gethostname(name, sizeof(name)) < 0 || strcmp(name, "sandbox") != 0)
		hole("host name");
	for (fd = 3; fd < 256; fd++) {
		if (fcntl(fd, F_GETFD) >= 0)
			hole("descriptors");
	}
}

/* A byte for each, where the working directory may be written to. */
static void count_run(void)
{
	int fd = open("runs", O_WRONLY | O_CREAT | O_APPEND, 0666);

	if (fd >= 0 && write(fd, "", 1) != 1)
		hole("file size");
	if (fd >= 0)
		close(fd);
}

int main(int argc, char **argv)
{
	char buf[256];
	ssize_t n;
	int fd;

	if (argc < 3)
		return 2;
	fd = open(argv[1], O_WRONLY | O_CREAT, 0666);
	if (fd >= 0)
		close(fd);
	count_run();
	if (strcmp(argv[argc - 1], "sleep") == 0) {
		signal(SIGTERM, SIG_IGN);
		if (fork() == 0)
			setsid();
		for (;;)
			pause();
	}
	for (int i = 2; i < argc - 1; i++)
		check_namespace(argv[i]);
	check_status();
	check_rest();
	if (!holes)
		puts("confined");
	fflush(stdout);
	while ((n = read(STDIN_FILENO, buf, sizeof(buf))) > 0) {
		if (write(STDOUT_FILENO, buf, (size_t)n) != n)
			return 3;
	}
	return write(STDERR_FILENO, "err\n", 4) == 4 ? 0 : 4;
}
