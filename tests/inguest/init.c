/* SPDX-License-Identifier: MIT */
/* The first process of the machine of test_inguest.py. Puts together a root file system
 * of the image's, with the payload's over it, and runs the program that its arguments
 * name, in there; the machine ends with it. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <net/if.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

static _Noreturn void die(const char *what)
{
	dprintf(STDERR_FILENO, "not ok 1 - init: %s: %s\n", what, strerror(errno));
	reboot(RB_AUTOBOOT);
	_exit(1);
}

static void attach(const char *source, const char *target, const char *type, const char *options)
{
	mkdir(target, 0755);
	if (mount(source, target, type, strcmp(type, "erofs") == 0 ? MS_RDONLY : 0, options) < 0)
		die(target);
}

static int by_name(const struct dirent **a, const struct dirent **b)
{
	return strcmp((*a)->d_name, (*b)->d_name);
}

/* Their names begin with the order to load them in. */
static void load_modules(void)
{
	struct dirent **entries;
	int count = scandir("/modules", &entries, NULL, by_name);

	if (count < 0 || chdir("/modules") < 0)
		die("/modules");
	for (int i = 0; i < count; i++) {
		int fd;

		if (entries[i]->d_name[0] == '.')
			continue;
		fd = open(entries[i]->d_name, O_RDONLY | O_CLOEXEC);
		if (fd < 0 || syscall(SYS_finit_module, fd, "", 0) < 0)
			die(entries[i]->d_name);
		close(fd);
	}
}

static void take_console(void)
{
	int fd = -1;

	for (int i = 0; i < 1000 && fd < 0; i++) {
		fd = open("/dev/hvc0", O_RDWR);
		if (fd < 0)
			usleep(10000);
	}
	if (fd < 0 || dup2(fd, STDIN_FILENO) < 0 || dup2(fd, STDOUT_FILENO) < 0 ||
	    dup2(fd, STDERR_FILENO) < 0)
		die("/dev/hvc0");
}

/* The disk that has this serial number: their order is the monitor's own affair. */
static const char *disk(const char *serial)
{
	static char path[32];

	for (char letter = 'a'; letter <= 'b'; letter++) {
		char found[32] = "";
		int fd;

		snprintf(path, sizeof(path), "/sys/block/vd%c/serial", letter);
		fd = open(path, O_RDONLY | O_CLOEXEC);
		if (fd < 0 || read(fd, found, sizeof(found) - 1) < 0)
			die(path);
		close(fd);
		snprintf(path, sizeof(path), "/dev/vd%c", letter);
		if (strcmp(found, serial) == 0)
			return path;
	}
	errno = ENODEV;
	die(serial);
}

static void loopback_up(void)
{
	struct ifreq request = { .ifr_name = "lo", .ifr_flags = IFF_UP | IFF_RUNNING };
	int sock = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);

	if (sock < 0 || ioctl(sock, SIOCSIFFLAGS, &request) < 0)
		die("lo");
	close(sock);
}

/* Nobody else takes in who has lost their parents. */
static _Noreturn void run(char **argv)
{
	pid_t pid = fork();

	if (pid == 0) {
		setsid();
		execv(argv[0], argv);
		die(argv[0]);
	}
	while (pid > 0 && wait(NULL) != pid)
		;
	reboot(RB_AUTOBOOT);
	_exit(1);
}

int main(int argc, char **argv)
{
	(void)argc;
	attach("dev", "/dev", "devtmpfs", NULL);
	load_modules();
	take_console();
	loopback_up();
	attach("sys", "/sys", "sysfs", NULL);
	attach(disk("root"), "/image", "erofs", NULL);
	/* What is on the other disk may be changed there. */
	attach(disk("payload"), "/payload", "ext4", NULL);
	attach("tmpfs", "/changes", "tmpfs", NULL);
	if (mkdir("/changes/upper", 0755) < 0 || mkdir("/changes/work", 0755) < 0)
		die("/changes");
	attach("overlay", "/root", "overlay",
	       "lowerdir=/payload/root:/image,upperdir=/changes/upper,workdir=/changes/work");
	attach("proc", "/root/proc", "proc", NULL);
	attach("sys", "/root/sys", "sysfs", NULL);
	attach("cgroup2", "/root/sys/fs/cgroup", "cgroup2", NULL);
	attach("tmpfs", "/root/run", "tmpfs", "mode=755");
	mkdir("/root/scratch", 0755);
	/* On a disk, so that writing there is input and output. */
	if (mount("/payload/scratch", "/root/scratch", NULL, MS_BIND, NULL) < 0 ||
	    mount("/payload/tmp", "/root/tmp", NULL, MS_BIND, NULL) < 0 ||
	    mount("/payload/tmp", "/root/var/tmp", NULL, MS_BIND, NULL) < 0 ||
	    mount("/dev", "/root/dev", NULL, MS_MOVE, NULL) < 0)
		die("/root");
	attach("tmpfs", "/root/dev/shm", "tmpfs", "mode=1777");
	attach("devpts", "/root/dev/pts", "devpts", NULL);
	attach("mqueue", "/root/dev/mqueue", "mqueue", NULL);
	/* As every other system: a root that can be told from what is beneath it. */
	if (chdir("/root") < 0 || mount(".", "/", NULL, MS_MOVE, NULL) < 0 || chroot(".") < 0 ||
	    chdir("/") < 0)
		die("chroot");
	setenv("PATH", "/usr/bin:/bin:/usr/sbin:/sbin", 1);
	setenv("HOME", "/root", 1);
	run(argv + 1);
}
