/* SPDX-License-Identifier: MIT */
/* The Landlock rules on every kernel there has been, by asking for no more than its ABI:
 * what must be refused by all, what only later ones can refuse, and that each act is
 * possible without. */
#include "harness.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>

#include "helper/sandbox.h"

enum { ABI_MAX = 7 }; /* the newest that was looked at */

static char *base;
static int listener = -1;

static char *in(const char *name)
{
	return t_format("%s/%s", base, name);
}

static void set_up(void)
{
	static const char *const dirs[] = { "work", "work/a", "work/b", "read", "plain", "out" };
	static const char *const files[] = { "work/a/file", "read/file", "plain/true", "out/file" };
	struct sockaddr_un address = { .sun_family = AF_UNIX };

	base = t_format("/tmp/agentd-test-landlock-%d.XXXXXX", getpid());
	ck_assert_ptr_nonnull(mkdtemp(base));
	for (size_t i = 0; i < T_COUNT(dirs); i++) {
		char *path = in(dirs[i]);

		ck_assert_int_eq(mkdir(path, 0700), 0);
		free(path);
	}
	for (size_t i = 0; i < T_COUNT(files); i++) {
		char *path = in(files[i]);

		t_write_file(path, "#!/bin/true\n");
		ck_assert_int_eq(chmod(path, 0700), 0);
		free(path);
	}
	listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	memcpy(address.sun_path + 1, base, strlen(base));
	ck_assert_int_eq(bind(listener, (struct sockaddr *)&address, sizeof(address)), 0);
	ck_assert_int_eq(listen(listener, 64), 0);
}

static void tear_down(void)
{
	close(listener);
	t_remove_tree(base);
	free(base);
}

/* ---- acts: 0, or the errno */

static int result(long r)
{
	return r < 0 ? errno : 0;
}

static int open_at(const char *name, int flags)
{
	char *path = in(name);
	int error = result(open(path, flags | O_CLOEXEC, 0600));

	free(path);
	return error;
}

static int read_outside(void)
{
	return open_at("out/file", O_RDONLY);
}

static int write_outside(void)
{
	return open_at("out/file", O_WRONLY);
}

static int read_readable(void)
{
	return open_at("read/file", O_RDONLY);
}

static int write_readable(void)
{
	return open_at("read/file", O_WRONLY);
}

static int make_in_readable(void)
{
	char *path = in("read/fifo");
	int error = result(mkfifo(path, 0600));

	unlink(path);
	free(path);
	return error;
}

static int make_in_work(void)
{
	return open_at("work/made", O_WRONLY | O_CREAT | O_TRUNC);
}

static int execute(const char *name)
{
	char *path = in(name);
	char *argv[] = { path, NULL }, *envp[] = { NULL };
	int error[2] = { 0 }, status;
	pid_t pid;

	if (pipe2(error, O_CLOEXEC) < 0)
		return errno;
	pid = fork();
	if (pid == 0) {
		int why;

		execve(path, argv, envp);
		why = errno;
		_exit(write(error[1], &why, sizeof(why)) == sizeof(why) ? 1 : 2);
	}
	close(error[1]);
	status = 0;
	if (read(error[0], &status, sizeof(status)) != sizeof(status))
		status = 0;
	close(error[0]);
	waitpid(pid, NULL, 0);
	free(path);
	return status;
}

static int execute_plain(void)
{
	return execute("plain/true");
}

/* Its interpreter is in /usr, which may be executed. */
static int execute_work(void)
{
	return execute("work/a/file");
}

static int move_in_work(void)
{
	char *from = in("work/a/file"), *to = in("work/b/file");
	int error = result(rename(from, to));

	if (!error)
		error = result(rename(to, from));
	free(from);
	free(to);
	return error;
}

static int truncate_readable(void)
{
	char *path = in("read/file");
	int error = result(truncate(path, 4));

	free(path);
	return error;
}

static int control_device(void)
{
	char *path = in("work/null");
	struct termios termios;
	int fd = open(path, O_RDWR | O_CLOEXEC), error = errno;

	free(path);
	if (fd < 0)
		return error;
	/* It is no terminal: asked at all, it says so. */
	error = ioctl(fd, TCGETS, &termios) < 0 && errno != ENOTTY ? errno : 0;
	close(fd);
	return error;
}

static int connect_abstract(void)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0), error;

	memcpy(address.sun_path + 1, base, strlen(base));
	error = result(connect(fd, (struct sockaddr *)&address, sizeof(address)));
	close(fd);
	return error;
}

static int signal_parent(void)
{
	return result(kill(getppid(), 0));
}

static const struct act {
	const char *name;
	int (*fn)(void);
	int from;  /* the first ABI to refuse it; 0: none does */
	int until; /* the last one to refuse it; 0: all */
	int error;
} acts[] = {
	{ "read what is not allowed", read_outside, 1, 0, EACCES },
	{ "write what is not allowed", write_outside, 1, 0, EACCES },
	{ "read what may be read", read_readable, 0, 0, 0 },
	{ "write what may be read", write_readable, 1, 0, EACCES },
	{ "make a FIFO where one may read", make_in_readable, 1, 0, EACCES },
	{ "make a file in the working directory", make_in_work, 0, 0, 0 },
	{ "execute what may be read", execute_plain, 1, 0, EACCES },
	{ "execute in the working directory", execute_work, 0, 0, 0 },
	{ "move a file to another directory", move_in_work, 1, 1, EXDEV },
	{ "truncate what may be read", truncate_readable, 3, 0, EACCES },
	{ "control a device in the working directory", control_device, 5, 0, EACCES },
	{ "connect to an abstract socket outside", connect_abstract, 6, 0, EPERM },
	{ "signal a process outside", signal_parent, 6, 0, EPERM },
};

/* In a child with the rules of that ABI (0: none), each act's errno. */
static void try_all(int abi, int errors[static T_COUNT(acts)])
{
	char *work = in("work"), *reading = in("read"), *plain = in("plain");
	const struct ad_profile_path paths[] = { { reading, reading, AD_ACCESS_READ },
						 { plain, plain, AD_ACCESS_READ },
						 { "/usr", "/usr",
						   AD_ACCESS_READ | AD_ACCESS_EXEC } };
	const struct template_spec spec = {
		.profile = { .workdir_access = AD_ACCESS_ALL,
			     .paths = paths,
			     .path_count = T_COUNT(paths) },
		.workdir = work,
	};
	struct sandbox sandbox = { .spec = &spec, .landlock_abi = abi };
	size_t size = T_COUNT(acts) * sizeof(*errors);
	int fds[2], status;
	pid_t pid;

	ck_assert_int_eq(pipe(fds), 0);
	pid = fork();
	if (pid == 0) {
		if (abi > 0) {
			int ruleset = landlock_make(&sandbox, true);

			if (ruleset < 0 || prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0 ||
			    landlock_enter(ruleset) < 0)
				_exit(2);
		}
		for (size_t i = 0; i < T_COUNT(acts); i++)
			errors[i] = acts[i].fn();
		_exit(write(fds[1], errors, size) == (ssize_t)size ? 0 : 3);
	}
	close(fds[1]);
	ck_assert_msg(read(fds[0], errors, size) == (ssize_t)size, "ABI %d: no rules", abi);
	close(fds[0]);
	ck_assert_int_eq(waitpid(pid, &status, 0), pid);
	ck_assert_int_eq(status, 0);
	free(work);
	free(reading);
	free(plain);
}

/* Of a device file in the working directory; who cannot make one does without the act. */
static bool make_device(void)
{
	char *path = in("work/null");
	int fd = mknod(path, S_IFCHR | 0600, makedev(1, 3)) == 0 ? open(path, O_RDWR) : -1;

	free(path);
	if (fd >= 0)
		close(fd);
	return fd >= 0;
}

START_TEST(each_abi)
{
	int errors[T_COUNT(acts)], kernel = landlock_abi();
	bool device = make_device();

	if (!device)
		t_skip("no device file can be made here");
	if (kernel == 0) {
		t_skip("no Landlock in this kernel");
		return;
	}
	try_all(0, errors);
	for (size_t i = 0; i < T_COUNT(acts); i++) {
		if (device || acts[i].fn != control_device)
			ck_assert_msg(errors[i] == 0, "without rules: %s: %s", acts[i].name,
				      strerror(errors[i]));
	}
	for (int abi = 1; abi <= ABI_MAX; abi++) {
		if (abi > kernel) {
			t_skip("Landlock ABI %d: this kernel has %d", abi, kernel);
			break;
		}
		try_all(abi, errors);
		for (size_t i = 0; i < T_COUNT(acts); i++) {
			bool refused = acts[i].from > 0 && abi >= acts[i].from &&
				       (acts[i].until == 0 || abi <= acts[i].until);

			if (!device && acts[i].fn == control_device)
				continue;
			ck_assert_msg(errors[i] == (refused ? acts[i].error : 0), "ABI %d: %s: %s",
				      abi, acts[i].name,
				      errors[i] ? strerror(errors[i]) : "possible");
		}
	}
}
END_TEST

int main(void)
{
	TCase *cases[] = { t_case("landlock", 60) };

	tcase_add_checked_fixture(cases[0], set_up, tear_down);
	tcase_add_test(cases[0], each_abi);
	return t_main("landlock", cases, T_COUNT(cases));
}
