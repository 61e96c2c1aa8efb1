/* SPDX-License-Identifier: MIT */
/* From the kernel's first process to a machine that commands can run in. Stages:
 *   port   modules up to the console's; the library hears of us as early as can be;
 *   root   the other modules; the disk "root" below a layer in memory, and a /dev that
 *          has nothing of the machine in it; then the initramfs is left and emptied;
 *   volume the disk "vol", if this machine has a session's. */
#include "guest/guest.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/random.h>
#include <signal.h>
#include <net/if.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define PORT_NAME "agent.0"
#define ROOT_SERIAL "root"
#define VOLUME_SERIAL "vol"
/* Of fs/ext4/ext4.h, which no header for programs has. */
#define EXT4_IOC_RESIZE_FS _IOW('f', 16, uint64_t)
#define MODULES "/modules"
#define CONSOLE_MODULE "virtio_console"

enum {
	DEVICE_PATIENCE_MS = 10000,
	PAUSE_NS = 500 * 1000,
	/* Of the memory that is left for tasks: what files may take. Who fills it gets ENOSPC
	 * before the memory of its own processes goes. */
	FILES_PERCENT = 75,
	/* Left to the kernel: a sixteenth of what there is, but at least this. With less it
	 * would fetch what programs are made of from the disk again and again, instead of
	 * ending one. */
	KERNEL_MIN = 16 * 1024 * 1024,
	/* In sectors of 512 bytes: less is not a volume, but what stands for one. */
	VOLUME_LEAST = 2048,
	VOLUME_BLOCK = 4096,
	KILLED_MS = 2000,
	WARM_MS = 5000,
	WARM_UID = 1000
};

static char *volume;          /* where it is mounted, or NULL */
static char volume_disk[300]; /* its directory in /sys, once that is known */
static int volume_node = -1;  /* its device */

_Noreturn void power_off(void)
{
	sync();
	reboot(RB_POWER_OFF);
	/* Ends the monitor as well, which does not reboot. */
	reboot(RB_AUTOBOOT);
	_exit(1);
}

_Noreturn void give_up(const char *fmt, ...)
{
	char text[256];
	va_list args;
	int fd = open("/dev/kmsg", O_WRONLY | O_CLOEXEC);

	va_start(args, fmt);
	vsnprintf(text, sizeof(text), fmt, args);
	va_end(args);
	if (fd >= 0)
		dprintf(fd, "agentd-guest: %s\n", text);
	power_off();
}

bool fault_set(struct fault *fault, int error, const char *fmt, ...)
{
	va_list args;

	if (fault->error)
		return false;
	fault->error = error ? error : EINVAL;
	va_start(args, fmt);
	vsnprintf(fault->text, sizeof(fault->text), fmt, args);
	va_end(args);
	return false;
}

static void pause_a_little(void)
{
	const struct timespec pause = { .tv_nsec = PAUSE_NS };

	nanosleep(&pause, NULL);
}

/* ---- devices */

/* The name of the entry in a directory of /sys whose attribute has this value. Devices
 * appear a little after their driver. */
static bool find_device(const char *class, const char *attribute, const char *value, char *ret,
			size_t size)
{
	DIR *dir = opendir(class);
	struct dirent *entry;
	bool found = false;

	while (dir && !found && (entry = readdir(dir))) {
		char path[512], text[64];
		ssize_t n;
		int fd;

		snprintf(path, sizeof(path), "%s/%s/%s", class, entry->d_name, attribute);
		fd = open(path, O_RDONLY | O_CLOEXEC);
		if (fd < 0)
			continue;
		n = read(fd, text, sizeof(text) - 1);
		close(fd);
		if (n < 0)
			continue;
		text[n] = '\0';
		text[strcspn(text, "\n")] = '\0';
		found = strcmp(text, value) == 0;
		if (found)
			snprintf(ret, size, "/dev/%s", entry->d_name);
	}
	if (dir)
		closedir(dir);
	return found;
}

static bool wait_for_device(const char *class, const char *attribute, const char *value, char *ret,
			    size_t size)
{
	uint64_t end = ad_sys_now_ns() + (uint64_t)DEVICE_PATIENCE_MS * 1000000;

	while (!find_device(class, attribute, value, ret, size)) {
		if (ad_sys_now_ns() > end)
			return false;
		pause_a_little();
	}
	return true;
}

static int load_module(const char *name)
{
	char path[300];
	int fd, r;

	snprintf(path, sizeof(path), MODULES "/%s", name);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return -errno;
	r = syscall(SYS_finit_module, fd, "", 0) < 0 && errno != EEXIST ? -errno : 0;
	close(fd);
	unlink(path);
	return r;
}

static int visible(const struct dirent *entry)
{
	return entry->d_name[0] != '.';
}

/* Their names begin with their places; those that are loaded are gone from there. */
static bool load_modules(const char *last, struct fault *fault)
{
	struct dirent **entries;
	int count = scandir(MODULES, &entries, visible, alphasort), r = 0;
	bool done = false;

	if (count < 0)
		return fault_set(fault, errno, MODULES);
	for (int i = 0; i < count; i++) {
		if (!done && r == 0) {
			r = load_module(entries[i]->d_name);
			if (r < 0)
				fault_set(fault, -r, "module %s", entries[i]->d_name);
			done = last && strstr(entries[i]->d_name, last);
		}
		free(entries[i]);
	}
	free(entries);
	return r == 0;
}

static bool mount_new(const char *type, const char *path, unsigned long flags, const char *options,
		      struct fault *fault)
{
	if (mount(type, path, type, flags, options) < 0)
		return fault_set(fault, errno, "mounting %s at %s", type, path);
	return true;
}

int boot_port(void)
{
	struct fault fault = { 0 };
	char path[300];
	int fd;

	umask(022);
	if (!mount_new("devtmpfs", "/dev", MS_NOSUID | MS_NOEXEC, NULL, &fault) ||
	    !mount_new("proc", "/proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL, &fault) ||
	    !mount_new("sysfs", "/sys", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL, &fault) ||
	    !load_modules(CONSOLE_MODULE, &fault))
		give_up("%s: %s", fault.text, strerror(fault.error));
	/* Whatever the kernel has left there: the console is not for us. */
	fd = open("/dev/null", O_RDWR);
	for (int i = 0; i < 3; i++) {
		if (fd != i && dup2(fd, i) < 0)
			give_up("/dev/null: %s", strerror(errno));
	}
	if (fd > 2)
		close(fd);
	if (!wait_for_device("/sys/class/virtio-ports", "name", PORT_NAME, path, sizeof(path)))
		give_up("there is no port " PORT_NAME);
	fd = open(path, O_RDWR | O_CLOEXEC | O_NONBLOCK);
	if (fd < 0)
		give_up("%s: %s", path, strerror(errno));
	return fd;
}

/* ---- the root directory */

struct node {
	const char *name;
	mode_t mode;
	unsigned int major, minor;
};

static bool make_dev(struct fault *fault)
{
	static const struct node nodes[] = {
		{ "null", 0666, 1, 3 },   { "zero", 0666, 1, 5 },    { "full", 0666, 1, 7 },
		{ "random", 0666, 1, 8 }, { "urandom", 0666, 1, 9 }, { "tty", 0666, 5, 0 },
		{ "kmsg", 0600, 1, 11 },
	};
	static const char *const links[][2] = {
		{ "pts/ptmx", "ptmx" },          { "/proc/self/fd", "fd" },
		{ "/proc/self/fd/0", "stdin" },  { "/proc/self/fd/1", "stdout" },
		{ "/proc/self/fd/2", "stderr" },
	};
	char path[64];

	if (!mount_new("tmpfs", "/mnt/root/dev", MS_NOSUID | MS_NOEXEC, "mode=755,size=64k", fault))
		return false;
	for (size_t i = 0; i < AD_COUNT(nodes); i++) {
		snprintf(path, sizeof(path), "/mnt/root/dev/%s", nodes[i].name);
		if (mknod(path, S_IFCHR, makedev(nodes[i].major, nodes[i].minor)) < 0 ||
		    chmod(path, nodes[i].mode) < 0)
			return fault_set(fault, errno, "%s", path);
	}
	for (size_t i = 0; i < AD_COUNT(links); i++) {
		snprintf(path, sizeof(path), "/mnt/root/dev/%s", links[i][1]);
		if (symlink(links[i][0], path) < 0)
			return fault_set(fault, errno, "%s", path);
	}
	if (mkdir("/mnt/root/dev/pts", 0755) < 0 || mkdir("/mnt/root/dev/shm", 0755) < 0)
		return fault_set(fault, errno, "directories in /dev");
	return mount_new("devpts", "/mnt/root/dev/pts", MS_NOSUID | MS_NOEXEC,
			 "newinstance,ptmxmode=0666,mode=620", fault);
}

/* A directory of the layer in memory, seen there without the layers below. */
static bool show_own(const char *name, mode_t mode, const char *at, struct fault *fault)
{
	char path[64];

	snprintf(path, sizeof(path), "/mnt/upper/%s", name);
	if ((mkdir(path, 0700) < 0 && errno != EEXIST) || chmod(path, mode) < 0)
		return fault_set(fault, errno, "%s", path);
	if (!at)
		return true;
	if ((mkdir(at, 0755) < 0 && errno != EEXIST) ||
	    mount(path, at, NULL, MS_BIND | MS_NOSUID | MS_NODEV, NULL) < 0)
		return fault_set(fault, errno, "%s", at);
	return true;
}

static bool mount_root(uint64_t memory_bytes, struct fault *fault)
{
	char disk[300], options[96];

	if (!wait_for_device("/sys/block", "serial", ROOT_SERIAL, disk, sizeof(disk)))
		return fault_set(fault, ENODEV, "there is no disk with the serial " ROOT_SERIAL);
	if (mkdir("/mnt/root", 0755) < 0 || mkdir("/mnt/lower", 0755) < 0 ||
	    mkdir("/mnt/upper", 0755) < 0)
		return fault_set(fault, errno, "directories");
	if (mount(disk, "/mnt/lower", "erofs", MS_RDONLY | MS_NOSUID | MS_NODEV, NULL) < 0)
		return fault_set(fault, errno, "mounting the disk " ROOT_SERIAL);
	snprintf(options, sizeof(options), "mode=755,size=%" PRIu64,
		 memory_bytes / 100 * FILES_PERCENT);
	if (!mount_new("tmpfs", "/mnt/upper", MS_NOSUID | MS_NODEV, options, fault) ||
	    !show_own("root", 0755, NULL, fault) || !show_own("work", 0700, NULL, fault))
		return false;
	return mount_new("overlay", "/mnt/root", MS_NOSUID | MS_NODEV,
			 "lowerdir=/mnt/lower,upperdir=/mnt/upper/root,workdir=/mnt/upper/work",
			 fault);
}

static bool fill_root(struct fault *fault)
{
	if ((mkdir("/mnt/root/dev", 0755) < 0 && errno != EEXIST) ||
	    (mkdir("/mnt/root/proc", 0755) < 0 && errno != EEXIST) ||
	    (mkdir("/mnt/root/sys", 0755) < 0 && errno != EEXIST))
		return fault_set(fault, errno, "directories of the root");
	return make_dev(fault) && show_own("shm", 01777, "/mnt/root/dev/shm", fault) &&
	       show_own("tmp", 01777, "/mnt/root/tmp", fault) &&
	       show_own("run", 0755, "/mnt/root/run", fault) &&
	       show_own("run/home", 01777, NULL, fault) &&
	       mount_new("proc", "/mnt/root/proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL, fault) &&
	       mount_new("sysfs", "/mnt/root/sys", MS_NOSUID | MS_NODEV | MS_NOEXEC | MS_RDONLY,
			 NULL, fault);
}

static bool leave_initramfs(struct fault *fault)
{
	/* It was memory. */
	rmdir(MODULES);
	unlink("/init");
	if (chdir("/mnt/root") < 0 || mount(".", "/", NULL, MS_MOVE, NULL) < 0 || chroot(".") < 0 ||
	    chdir("/") < 0)
		return fault_set(fault, errno, "switching to the root directory");
	return true;
}

static bool write_file(const char *path, const char *text, struct fault *fault)
{
	int fd = open(path, O_WRONLY | O_CLOEXEC);

	if (fd < 0 || write(fd, text, strlen(text)) < 0)
		fault_set(fault, errno, "%s", path);
	if (fd >= 0)
		close(fd);
	return !fault->error;
}

static bool loopback_up(struct fault *fault)
{
	struct ifreq request = { .ifr_name = "lo" };
	int sock = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);

	if (sock < 0 || ioctl(sock, SIOCGIFFLAGS, &request) < 0)
		return fault_set(fault, errno, "the interface lo");
	request.ifr_flags |= IFF_UP;
	if (ioctl(sock, SIOCSIFFLAGS, &request) < 0)
		fault_set(fault, errno, "the interface lo");
	close(sock);
	return !fault->error;
}

/* For all tasks together. */
static uint64_t memory_for_tasks(void)
{
	uint64_t available = 0, reserve;
	char text[512];
	const char *at;
	int fd = open("/proc/meminfo", O_RDONLY | O_CLOEXEC);
	ssize_t n = fd < 0 ? -1 : read(fd, text, sizeof(text) - 1);

	if (fd >= 0)
		close(fd);
	text[n < 0 ? 0 : n] = '\0';
	at = strstr(text, "MemAvailable:");
	if (at)
		available = strtoull(at + strlen("MemAvailable:"), NULL, 10) * 1024;
	reserve = available / 16 > KERNEL_MIN ? available / 16 : KERNEL_MIN;
	return available > reserve ? available - reserve : 0;
}

bool boot_root(struct fault *fault)
{
	static const char name[] = "sandbox";
	uint64_t memory_bytes = memory_for_tasks();
	int r;

	if (memory_bytes == 0)
		return fault_set(fault, ENOMEM, "the machine has too little memory");
	if (!load_modules(NULL, fault) || !mount_root(memory_bytes, fault) || !fill_root(fault))
		return false;
	r = cgroup_boot(memory_bytes);
	if (r == 0)
		r = task_boot();
	if (r < 0)
		return fault_set(fault, -r, "control groups");
	if (!leave_initramfs(fault))
		return false;
	if (sethostname(name, sizeof(name) - 1) < 0)
		return fault_set(fault, errno, "the host name");
	/* Of no use to a command, but to who attacks the kernel. */
	return write_file("/proc/sys/kernel/dmesg_restrict", "1", fault) &&
	       write_file("/proc/sys/kernel/kptr_restrict", "2", fault) && loopback_up(fault);
}

/* ---- before it is cloned */

static pid_t reap_for(uint32_t ms);

static _Noreturn void run_shell(void)
{
	static const char *const argv[] = { "/bin/sh", "-c",
					    "/bin/bash -lc '/bin/true | /bin/cat; /bin/ls /tmp'",
					    NULL };
	static const char *const env[] = { "PATH=/usr/bin:/bin", "HOME=/run/home", "LANG=C.UTF-8",
					   NULL };
	const uint64_t none = 0;

	ad_sys_restore_signals(&none);
	if (chdir("/tmp") == 0 && setresgid(WARM_UID, WARM_UID, WARM_UID) == 0 &&
	    setresuid(WARM_UID, WARM_UID, WARM_UID) == 0)
		ad_sys_exec(argv, env);
	_exit(127);
}

/* A number, or two with a colon between them, of a file in /sys; false: not there. */
static bool read_numbers(const char *dir, const char *name, unsigned long long ret[static 2])
{
	char path[400], text[64];
	ssize_t n;
	int fd;

	snprintf(path, sizeof(path), "%s/%s", dir, name);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return false;
	n = read(fd, text, sizeof(text) - 1);
	close(fd);
	text[n < 0 ? 0 : n] = '\0';
	ret[1] = 0;
	return sscanf(text, "%llu:%llu", &ret[0], &ret[1]) >= 1;
}

/* The name of a disk is asked of the disk itself. */
static bool find_volume(void)
{
	static const char dev[] = "/dev", node[] = "/dev/volume";
	char disk[sizeof(volume_disk) - sizeof("/sys/block")];
	unsigned long long device[2];

	if (volume_node >= 0)
		return true;
	if (!wait_for_device("/sys/block", "serial", VOLUME_SERIAL, disk, sizeof(disk)))
		return false;
	snprintf(volume_disk, sizeof(volume_disk), "/sys/block%s", disk + sizeof(dev) - 1);
	if (!read_numbers(volume_disk, "dev", device) ||
	    mknod(node, S_IFBLK, makedev((unsigned int)device[0], (unsigned int)device[1])) < 0)
		return false;
	volume_node = open(node, O_PATH | O_CLOEXEC);
	unlink(node);
	return volume_node >= 0;
}

void boot_warm(void)
{
	(void)find_volume();
	/* What it does not do in that time, and what an image lacks, comes later. */
	if (fork() == 0)
		run_shell();
	if (reap_for(WARM_MS) == 0) {
		kill(-1, SIGKILL);
		reap_for(KILLED_MS);
	}
}

/* ---- the volume */

int make_dirs(const char *path, uid_t uid, gid_t gid)
{
	ad_autofree char *copy = strdup(path);
	size_t len = strlen(path);

	if (!copy)
		return -ENOMEM;
	for (size_t i = 1; i <= len; i++) {
		if (path[i] != '/' && path[i] != '\0')
			continue;
		copy[i] = '\0';
		if (mkdir(copy, 0755) == 0) {
			if (i == len && chown(copy, uid, gid) < 0)
				return -errno;
		} else if (errno != EEXIST) {
			return -errno;
		}
		copy[i] = path[i];
	}
	return 0;
}

/* In a clone the disk stands for the volume that it gets then: how large that is comes
 * with an interrupt. */
static bool wait_for_volume(void)
{
	uint64_t end = ad_sys_now_ns() + (uint64_t)DEVICE_PATIENCE_MS * 1000000;
	unsigned long long sectors[2];

	if (!find_volume())
		return false;
	while (!read_numbers(volume_disk, "size", sectors) || sectors[0] <= VOLUME_LEAST) {
		if (ad_sys_now_ns() > end)
			return false;
		pause_a_little();
	}
	return true;
}

/* How many blocks the file system says that it has; 0: unknown. */
static uint32_t blocks_of(const char *node)
{
	uint8_t bytes[4] = { 0 };
	int fd = open(node, O_RDONLY | O_CLOEXEC);

	/* s_blocks_count_lo of struct ext4_super_block; it has never more than that. */
	if (fd >= 0 && pread(fd, bytes, sizeof(bytes), 1024 + 4) < 0)
		bytes[0] = 0;
	if (fd >= 0)
		close(fd);
	return bytes[0] | (uint32_t)bytes[1] << 8 | (uint32_t)bytes[2] << 16 |
	       (uint32_t)bytes[3] << 24;
}

/* To the end of the disk, which may have become larger. */
static bool grow(int fd, uint32_t now, struct fault *fault)
{
	unsigned long long sectors[2];
	uint64_t blocks;

	if (!read_numbers(volume_disk, "size", sectors))
		return fault_set(fault, errno, "the size of the volume");
	blocks = sectors[0] / (VOLUME_BLOCK / 512);
	/* It takes its time also where there is nothing to do. */
	if (now != blocks && ioctl(fd, EXT4_IOC_RESIZE_FS, &blocks) < 0)
		return fault_set(fault, errno, "growing the volume");
	return true;
}

static bool give_to(int fd, uid_t uid, gid_t gid, struct fault *fault)
{
	struct stat st;

	if (fstat(fd, &st) == 0 && st.st_uid == uid && st.st_gid == gid)
		return true;
	return fchown(fd, uid, gid) == 0 || fault_set(fault, errno, "the volume");
}

bool boot_volume(const char *path, uid_t uid, gid_t gid, struct fault *fault)
{
	/* What the table of mounts calls it. */
	static const char name[] = "/run/volume";
	char node[32];
	uint32_t blocks;
	int fd, r;

	if (!wait_for_volume())
		return fault_set(fault, ENODEV, "there is no disk with the serial " VOLUME_SERIAL);
	r = make_dirs(path, uid, gid);
	if (r < 0)
		return fault_set(fault, -r, "%s", path);
	snprintf(node, sizeof(node), "/proc/self/fd/%d", volume_node);
	if (symlink(node, name) < 0)
		return fault_set(fault, errno, "%s", name);
	r = mount(name, path, "ext4", MS_NOSUID | MS_NODEV, "discard,noinit_itable") < 0 ? errno :
											   0;
	blocks = blocks_of(name);
	unlink(name);
	if (r)
		return fault_set(fault, r, "mounting the volume");
	volume = strdup(path);
	fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (!volume || fd < 0)
		return fault_set(fault, errno, "the volume");
	(void)(grow(fd, blocks, fault) && give_to(fd, uid, gid, fault));
	/* Of the file system's own. */
	unlinkat(fd, "lost+found", AT_REMOVEDIR);
	close(fd);
	return !fault->error;
}

/* ---- the end */

/* Until no child is left: negative; 0: some are. */
static pid_t reap_for(uint32_t ms)
{
	uint64_t end = ad_sys_now_ns() + (uint64_t)ms * 1000000;
	pid_t pid;

	while ((pid = waitpid(-1, NULL, WNOHANG | __WALL)) >= 0 && ad_sys_now_ns() < end) {
		if (pid == 0)
			pause_a_little();
	}
	return pid < 0 ? pid : 0;
}

_Noreturn void stop_machine(uint32_t grace_ms)
{
	standby_drop();
	kill(-1, SIGTERM);
	kill(-1, SIGCONT);
	reap_for(grace_ms);
	kill(-1, SIGKILL);
	reap_for(KILLED_MS);
	if (volume && umount(volume) < 0)
		mount(NULL, volume, NULL, MS_REMOUNT | MS_RDONLY, NULL);
	power_off();
}

/* ---- randomness and the time */

bool boot_seed(const uint8_t seed[static AD_GUEST_SEED_SIZE], uint64_t realtime_ns,
	       struct fault *fault)
{
	/* As struct rand_pool_info of linux/random.h, whose bytes have no number. */
	struct {
		int entropy_count, buf_size;
		uint8_t buf[AD_GUEST_SEED_SIZE];
	} entropy = { .entropy_count = AD_GUEST_SEED_SIZE * 8, .buf_size = AD_GUEST_SEED_SIZE };
	struct timespec now = { .tv_sec = (time_t)(realtime_ns / 1000000000),
				.tv_nsec = (long)(realtime_ns % 1000000000) };
	int fd;

	/* First, for it goes on meanwhile. */
	if (clock_settime(CLOCK_REALTIME, &now) < 0)
		return fault_set(fault, errno, "the clock");
	memcpy(entropy.buf, seed, AD_GUEST_SEED_SIZE);
	fd = open("/dev/urandom", O_RDWR | O_CLOEXEC);
	if (fd < 0 || ioctl(fd, RNDADDENTROPY, &entropy) < 0 || ioctl(fd, RNDRESEEDCRNG) < 0)
		fault_set(fault, errno, "the random number generator");
	if (fd >= 0)
		close(fd);
	explicit_bzero(&entropy, sizeof(entropy));
	return !fault->error;
}
