/* SPDX-License-Identifier: MIT */
/* Landlock: what the view shows once more as rules, for what mounts do not stop (a FIFO
 * on a read-only file system, truncation, devices), and scopes. They also hold should
 * somebody find a way to change mounts. */
#include "helper/sandbox.h"

#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

/* From linux/landlock.h, by the ABI that brought them; many systems' headers are older
 * than their kernels. */
enum {
	EXECUTE = 1 << 0, /* ABI 1, Linux 5.13 */
	WRITE_FILE = 1 << 1,
	READ_FILE = 1 << 2,
	READ_DIR = 1 << 3,
	REMOVE_DIR = 1 << 4,
	REMOVE_FILE = 1 << 5,
	MAKE_CHAR = 1 << 6,
	MAKE_DIR = 1 << 7,
	MAKE_REG = 1 << 8,
	MAKE_SOCK = 1 << 9,
	MAKE_FIFO = 1 << 10,
	MAKE_BLOCK = 1 << 11,
	MAKE_SYM = 1 << 12,
	REFER = 1 << 13,     /* ABI 2, Linux 5.19; before it, always refused */
	TRUNCATE = 1 << 14,  /* ABI 3, Linux 6.2 */
	IOCTL_DEV = 1 << 15, /* ABI 5, Linux 6.10 */

	SCOPE_ABSTRACT_UNIX_SOCKET = 1 << 0, /* ABI 6, Linux 6.12 */
	SCOPE_SIGNAL = 1 << 1,
};

enum {
	READING = READ_FILE | READ_DIR,
	/* No device files: to make one needs a capability besides. */
	WRITING = WRITE_FILE | REMOVE_DIR | REMOVE_FILE | MAKE_DIR | MAKE_REG | MAKE_SOCK |
		  MAKE_FIFO | MAKE_SYM | REFER | TRUNCATE,
	OF_FILES = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE | IOCTL_DEV
};

struct ruleset_attr {
	uint64_t fs, net, scoped;
};

struct path_beneath {
	uint64_t allowed;
	int32_t parent;
} __attribute__((__packed__));

enum { CREATE_VERSION = 1, RULE_PATH_BENEATH = 1 };

int landlock_abi(void)
{
	long abi = syscall(SYS_landlock_create_ruleset, NULL, 0, CREATE_VERSION);

	return abi < 0 ? 0 : (int)abi;
}

static uint64_t handled(int abi)
{
	uint64_t fs = (1u << 13) - 1;

	if (abi >= 2)
		fs |= REFER;
	if (abi >= 3)
		fs |= TRUNCATE;
	if (abi >= 5)
		fs |= IOCTL_DEV;
	return fs;
}

static uint64_t rights(uint8_t access)
{
	return (access & AD_ACCESS_READ ? (uint64_t)READING : 0) |
	       (access & AD_ACCESS_WRITE ? (uint64_t)WRITING : 0) |
	       (access & AD_ACCESS_EXEC ? (uint64_t)EXECUTE : 0);
}

struct rules {
	int fd;
	uint64_t handled;
	int error; /* the first one */
};

static void allow(struct rules *rules, const char *path, uint64_t allowed)
{
	struct path_beneath rule = { .allowed = allowed & rules->handled };
	struct stat st;

	if (rules->error || rule.allowed == 0)
		return;
	rule.parent = open(path, O_PATH | O_CLOEXEC);
	if (rule.parent < 0) {
		/* A link to what the view does not show. */
		if (errno != ENOENT && errno != ENOTDIR)
			rules->error = -errno;
		return;
	}
	if (fstat(rule.parent, &st) < 0)
		rules->error = -errno;
	else if (!S_ISDIR(st.st_mode))
		rule.allowed &= OF_FILES;
	if (!rules->error && rule.allowed &&
	    syscall(SYS_landlock_add_rule, rules->fd, RULE_PATH_BENEATH, &rule, 0) < 0)
		rules->error = -errno;
	close(rule.parent);
}

static void allow_policy(struct rules *rules, const struct template_spec *spec)
{
	const struct ad_profile *profile = &spec->profile;
	bool all_readable = profile->workdir_access & AD_ACCESS_READ;

	for (size_t i = 0; i < profile->path_count; i++) {
		uint8_t access = profile->paths[i].access;

		if (!access || strcmp(profile->paths[i].target, spec->workdir) == 0)
			continue;
		allow(rules, profile->paths[i].target, rights(access));
		all_readable &= (access & AD_ACCESS_READ) != 0;
	}
	allow(rules, spec->workdir, rights(profile->workdir_access));
	/* Rules hold for all that is beneath: the names of what may not be read are not
	 * to be had this way. */
	if (all_readable)
		allow(rules, "/", READ_DIR);
}

/* What every command has. */
static void allow_own(struct rules *rules, const struct sandbox *sandbox)
{
	allow(rules, "/etc", READING);
	allow(rules, "/dev", READING | WRITE_FILE | TRUNCATE | IOCTL_DEV);
	/* What may be written there is the kernel's own decision. */
	allow(rules, "/proc", READING | WRITE_FILE | TRUNCATE);
	allow(rules, "/run", rights(AD_ACCESS_ALL));
	if (sandbox->own_tmp)
		allow(rules, "/tmp", rights(AD_ACCESS_ALL));
}

/* No rules for the network: a command has a namespace, and in rules there is no "none" for
 * UDP. A kernel that knows less takes the zeroes. */
static struct rules rules_begin(int abi, uint64_t scoped)
{
	struct ruleset_attr attr = { .fs = handled(abi) };
	struct rules rules = { .handled = attr.fs };

	if (abi >= 6)
		attr.scoped = scoped;
	rules.fd = (int)syscall(SYS_landlock_create_ruleset, &attr, sizeof(attr), 0);
	if (rules.fd < 0)
		rules.error = -errno;
	return rules;
}

static int rules_end(const struct rules *rules)
{
	if (rules->error && rules->fd >= 0)
		close(rules->fd);
	return rules->error ? rules->error : rules->fd;
}

/* In a session a later command may signal an earlier one's processes, and each has a domain
 * of its own: what lies outside of the session its namespaces keep out. */
static uint64_t scopes(const struct sandbox *sandbox, bool apart)
{
	if (apart)
		return SCOPE_ABSTRACT_UNIX_SOCKET | SCOPE_SIGNAL;
	return sandbox->layers.layers[AD_LAYER_NETNS] == AD_MSG_LAYER_ENFORCED &&
			       sandbox->spec->netns < 0 ?
		       0 :
		       SCOPE_ABSTRACT_UNIX_SOCKET;
}

int landlock_make(const struct sandbox *sandbox, bool apart)
{
	struct rules rules = rules_begin(sandbox->landlock_abi, scopes(sandbox, apart));

	allow_policy(&rules, sandbox->spec);
	allow_own(&rules, sandbox);
	return rules_end(&rules);
}

/* A file that is handed over may be opened anew by its number. */
static void allow_handed(struct rules *rules, int fd)
{
	char path[32];
	struct stat st;
	int flags = fcntl(fd, F_GETFL);

	if (flags < 0 || fstat(fd, &st) < 0 || (!S_ISREG(st.st_mode) && !S_ISBLK(st.st_mode)))
		return;
	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	if (rules->error)
		return;
	allow(rules, path,
	      READ_FILE | ((flags & O_ACCMODE) == O_RDONLY ? 0 : WRITE_FILE | TRUNCATE));
	/* A memory file is on a mount of the kernel's own: of those there are no rules, and
	 * none is needed. */
	if (rules->error == -EBADFD)
		rules->error = 0;
}

int landlock_make_machine(int abi, const char *program, const int *fds, size_t fd_count)
{
	static const char *const code[] = { "/usr", "/lib", "/lib64", "/etc/ld.so.cache" };
	static const char *const devices[] = { "/dev/kvm", "/dev/null", "/dev/urandom" };
	struct rules rules = rules_begin(abi, SCOPE_ABSTRACT_UNIX_SOCKET | SCOPE_SIGNAL);

	allow(&rules, program, READ_FILE | EXECUTE);
	for (size_t i = 0; i < AD_COUNT(code); i++)
		allow(&rules, code[i], READING | EXECUTE);
	for (size_t i = 0; i < AD_COUNT(devices); i++)
		allow(&rules, devices[i], READ_FILE | WRITE_FILE | IOCTL_DEV);
	for (size_t i = 0; i < fd_count; i++)
		allow_handed(&rules, fds[i]);
	return rules_end(&rules);
}

AD_SYS_NO_SANITIZE int landlock_enter(int ruleset)
{
	return syscall(SYS_landlock_restrict_self, ruleset, 0) < 0 ? -errno : 0;
}
