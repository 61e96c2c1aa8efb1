/* SPDX-License-Identifier: MIT */
#include "tool.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <sys/wait.h>
#include <unistd.h>

#include <linux/magic.h>

#include "bench.h"

static const char *const names[TOOL_COUNT] = {
	[TOOL_UNSHARE] = "unshare",    [TOOL_BWRAP] = "bwrap",   [TOOL_CRUN] = "crun",
	[TOOL_MINIJAIL] = "minijail0", [TOOL_NSJAIL] = "nsjail",
};

const char *tool_name(enum tool tool)
{
	return names[tool];
}

/* Kept until the end of the benchmark. */
static char *format(const char *fmt, const char *a, const char *b)
{
	char *text;

	if (asprintf(&text, fmt, a, b) < 0)
		bench_fail("format", "out of memory");
	return text;
}

static const char *find(const char *name)
{
	static const char *const dirs[] = { "/usr/bin", "/usr/sbin", "/usr/local/bin" };

	for (size_t i = 0; i < BENCH_COUNT(dirs); i++) {
		char *path = format("%s/%s", dirs[i], name);

		if (access(path, X_OK) == 0)
			return path;
		free(path);
	}
	return NULL;
}

static void add(struct tool_command *command, const char *const *args)
{
	size_t at = 0;

	while (command->args[at])
		at++;
	for (; *args; args++) {
		if (at + 1 >= TOOL_ARGS_MAX)
			bench_fail(command->args[0], "too many arguments");
		command->args[at++] = *args;
	}
}

/* ---- crun: the command is in a file, and so is all else */

static void write_bundle(const char *dir, const char *const *argv)
{
	static const char *const dirs[] = { "/usr",   "/bin", "/lib",
					    "/lib64", "/etc", BENCH_STATIC_TRUE };
	FILE *file = fopen(format("%s/config.json", dir, NULL), "we");

	if (!file || mkdir(format("%s/rootfs", dir, NULL), 0755) < 0)
		bench_fail(dir, strerror(errno));
	fputs("{\"ociVersion\": \"1.0.0\", \"process\": {\"terminal\": false, "
	      "\"noNewPrivileges\": true, \"user\": {\"uid\": 0, \"gid\": 0}, "
	      "\"env\": [\"PATH=/usr/bin:/bin\"], \"cwd\": \"/tmp\", \"args\": [",
	      file);
	for (size_t i = 0; argv[i]; i++)
		fprintf(file, "%s\"%s\"", i > 0 ? ", " : "", argv[i]);
	fputs("]}, \"root\": {\"path\": \"rootfs\"}, \"mounts\": ["
	      "{\"destination\": \"/proc\", \"type\": \"proc\", \"source\": \"proc\"}, "
	      "{\"destination\": \"/dev\", \"type\": \"tmpfs\", \"source\": \"tmpfs\"}, "
	      "{\"destination\": \"/tmp\", \"type\": \"tmpfs\", \"source\": \"tmpfs\"}",
	      file);
	for (size_t i = 0; i < BENCH_COUNT(dirs); i++)
		fprintf(file,
			", {\"destination\": \"%s\", \"type\": \"none\", \"source\": \"%s\", "
			"\"options\": [\"rbind\", \"ro\"]}",
			dirs[i], dirs[i]);
	fprintf(file,
		", {\"destination\": \"/work\", \"type\": \"none\", \"source\": \"%s\", "
		"\"options\": [\"rbind\"]}], \"linux\": {\"namespaces\": [{\"type\": \"pid\"}, "
		"{\"type\": \"mount\"}, {\"type\": \"ipc\"}, {\"type\": \"uts\"}, "
		"{\"type\": \"network\"}, {\"type\": \"user\"}, {\"type\": \"cgroup\"}], "
		"\"uidMappings\": [{\"containerID\": 0, \"hostID\": %u, \"size\": 1}], "
		"\"gidMappings\": [{\"containerID\": 0, \"hostID\": %u, \"size\": 1}]}}\n",
		bench_workdir(), (unsigned int)geteuid(), (unsigned int)getegid());
	if (fclose(file) != 0)
		bench_fail(dir, strerror(errno));
}

/* crun refuses to look at a mixture of both versions of cgroups: where there is one it
 * gets a mount namespace in which there is only version 2. */
static int pure_cgroup2(void)
{
	struct statfs fs;
	int ready[2], ns = -1;
	char *path, byte;
	pid_t pid;

	if (geteuid() != 0 ||
	    (statfs("/sys/fs/cgroup", &fs) == 0 && fs.f_type == CGROUP2_SUPER_MAGIC) ||
	    pipe2(ready, O_CLOEXEC) < 0)
		return -1;
	pid = fork();
	if (pid == 0) {
		if (unshare(CLONE_NEWNS) == 0 &&
		    mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) == 0 &&
		    mount("cgroup2", "/sys/fs/cgroup", "cgroup2", 0, NULL) == 0 &&
		    write(ready[1], "", 1) == 1)
			pause();
		_exit(1);
	}
	close(ready[1]);
	if (pid > 0 && read(ready[0], &byte, 1) == 1 &&
	    asprintf(&path, "/proc/%d/ns/mnt", pid) > 0) {
		ns = open(path, O_RDONLY | O_CLOEXEC);
		free(path);
	}
	close(ready[0]);
	if (pid > 0) {
		kill(pid, SIGKILL);
		bench_wait(pid);
	}
	return ns;
}

static void prepare_crun(const char *const *argv, struct tool_command *command)
{
	static unsigned int count;
	char number[16], *dir, *state;

	snprintf(number, sizeof(number), "%u", count++);
	dir = format("%s/crun-%s", bench_workdir(), number);
	state = format("%s/crun-state", bench_workdir(), NULL);
	if (mkdir(dir, 0755) < 0)
		bench_fail(dir, strerror(errno));
	write_bundle(dir, argv);
	command->mount_ns = pure_cgroup2();
	add(command,
	    (const char *const[]){ "--root", state, "--cgroup-manager=disabled", "run", "-b", dir,
				   format("agentd-bench-%s", number, NULL), NULL });
}

/* ---- the others */

static void prepare_bwrap(struct tool_command *command)
{
	const char *work = bench_workdir();

	add(command, (const char *const[]){ "--unshare-all",
					    "--die-with-parent",
					    "--new-session",
					    "--cap-drop",
					    "ALL",
					    "--ro-bind",
					    "/usr",
					    "/usr",
					    "--ro-bind",
					    "/etc",
					    "/etc",
					    "--symlink",
					    "usr/bin",
					    "/bin",
					    "--symlink",
					    "usr/lib",
					    "/lib",
					    "--symlink",
					    "usr/lib64",
					    "/lib64",
					    "--proc",
					    "/proc",
					    "--dev",
					    "/dev",
					    "--tmpfs",
					    "/tmp",
					    "--ro-bind",
					    BENCH_STATIC_TRUE,
					    BENCH_STATIC_TRUE,
					    "--bind",
					    work,
					    work,
					    "--chdir",
					    work,
					    "--",
					    NULL });
}

static void prepare_minijail(struct tool_command *command)
{
	const char *work = bench_workdir(), *root = format("%s/minijail-root", work, NULL);

	if (mkdir(root, 0755) < 0 && errno != EEXIST)
		bench_fail(root, strerror(errno));
	add(command, (const char *const[]){
			     "-n", "-p",   "-v", "-l",   "-e", "-N",     "--uts", "-r",
			     "-t", "-d",   "-P", root,   "-b", "/usr",   "-b",    "/etc",
			     "-b", "/bin", "-b", "/lib", "-b", "/lib64", "-b",    BENCH_STATIC_TRUE,
			     "--", NULL });
}

static void prepare_nsjail(struct tool_command *command)
{
	const char *work = bench_workdir();
	char *id;

	if (asprintf(&id, "1000:%u:1", (unsigned int)geteuid()) < 0)
		bench_fail("nsjail", "out of memory");
	add(command, (const char *const[]){ "-Mo",
					    "-Q",
					    "--user",
					    id,
					    "--group",
					    id,
					    "-R",
					    "/usr",
					    "-R",
					    "/etc",
					    "-R",
					    BENCH_STATIC_TRUE,
					    "-s",
					    "usr/bin:/bin",
					    "-s",
					    "usr/lib:/lib",
					    "-s",
					    "usr/lib64:/lib64",
					    "-T",
					    "/tmp",
					    "-R",
					    "/dev/null",
					    "-R",
					    "/dev/zero",
					    "-R",
					    "/dev/urandom",
					    "-B",
					    work,
					    "--cwd",
					    work,
					    "--iface_no_lo",
					    "--",
					    NULL });
}

static int start(const struct tool_command *command, int stderr_fd)
{
	pid_t pid;

	if (command->mount_ns < 0)
		return bench_spawn(command->args, BENCH_SPAWN, (int[]){ -1, -1, stderr_fd });
	pid = vfork();
	if (pid == 0) {
		if ((stderr_fd < 0 || dup2(stderr_fd, STDERR_FILENO) >= 0) &&
		    setns(command->mount_ns, CLONE_NEWNS) == 0)
			execv(command->args[0], (char *const *)(uintptr_t)command->args);
		_exit(127);
	}
	if (pid < 0)
		bench_fail(command->args[0], strerror(errno));
	return pid;
}

/* What it says of why it cannot. */
static void try(struct tool_command *command)
{
	int err[2], status;
	ssize_t n;

	if (pipe2(err, O_CLOEXEC) < 0)
		bench_fail("pipe2", strerror(errno));
	status = bench_wait(start(command, err[1]));
	close(err[1]);
	n = read(err[0], command->cannot, sizeof(command->cannot) - 1);
	close(err[0]);
	command->cannot[n > 0 ? n : 0] = '\0';
	command->cannot[strcspn(command->cannot, "\n")] = '\0';
	if (status == 0)
		command->cannot[0] = '\0';
	else if (command->cannot[0] == '\0')
		snprintf(command->cannot, sizeof(command->cannot), "wait status %#x", status);
}

void tool_prepare(enum tool tool, const char *const *argv, struct tool_command *ret)
{
	*ret = (struct tool_command){ .args = { find(names[tool]) }, .mount_ns = -1 };
	if (!ret->args[0]) {
		strcpy(ret->cannot, "not installed");
		return;
	}
	switch (tool) {
	case TOOL_UNSHARE:
		add(ret, (const char *const[]){ "-U", "-r", "-m", "-p", "-f", "-i", "-n", "-u",
						"-C", "--mount-proc", "--kill-child", "--", NULL });
		break;
	case TOOL_BWRAP:
		prepare_bwrap(ret);
		break;
	case TOOL_CRUN:
		prepare_crun(argv, ret);
		break;
	case TOOL_MINIJAIL:
		prepare_minijail(ret);
		break;
	case TOOL_NSJAIL:
		prepare_nsjail(ret);
		break;
	case TOOL_COUNT:
		break;
	}
	if (tool != TOOL_CRUN)
		add(ret, argv);
	try(ret);
}

void tool_run(const struct tool_command *command)
{
	if (bench_wait(start(command, -1)) != 0)
		bench_fail(command->args[0], "did not exit with 0");
}

void tool_release(struct tool_command *command)
{
	if (command->mount_ns >= 0)
		close(command->mount_ns);
}
