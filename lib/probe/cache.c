/* SPDX-License-Identifier: MIT */
/* One file in a directory that nobody else may write to, replaced as a whole: what was
 * found, and the key it was found under. Whatever is wrong with it, the machine is looked
 * at anew. */
#include "probe/private.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "json/json.h"

#define CACHE_FILE "probe.json"

/* ---- the key */

static void put_file(struct ad_buf *key, const char *path)
{
	ad_autoclose int fd = open(path, O_RDONLY | O_CLOEXEC);
	char text[4096];
	ssize_t n;

	ad_buf_printf(key, "%s: ", path);
	while (fd >= 0 && (n = read(fd, text, sizeof(text))) > 0)
		ad_buf_append(key, text, (size_t)n);
	ad_buf_puts(key, "\n");
}

/* What of the process's privileges its commands inherit. */
static void put_status(struct ad_buf *key)
{
	static const char *const wanted[] = { "Uid:",    "Gid:",    "Groups:",     "CapPrm:",
					      "CapEff:", "CapBnd:", "NoNewPrivs:", "Seccomp:" };
	FILE *file = fopen("/proc/self/status", "re");
	char *line = NULL;
	size_t cap = 0;

	while (file && getline(&line, &cap, file) > 0) {
		for (size_t i = 0; i < AD_COUNT(wanted); i++) {
			if (strncmp(line, wanted[i], strlen(wanted[i])) == 0)
				ad_buf_puts(key, line);
		}
	}
	free(line);
	if (file)
		fclose(file);
}

char *cache_key(const char *helper_path)
{
	static const char *const files[] = {
		"/proc/sys/kernel/random/boot_id",
		"/proc/sys/kernel/osrelease",
		"/proc/sys/kernel/unprivileged_userns_clone",
		"/proc/sys/kernel/apparmor_restrict_unprivileged_userns",
		"/proc/sys/user/max_user_namespaces",
		"/proc/self/attr/current",
		"/proc/self/cgroup",
	};
	static const char *const namespaces[] = { "user", "mnt", "pid",   "net",
						  "ipc",  "uts", "cgroup" };
	ad_autobuf struct ad_buf key = { 0 };
	struct stat st;

	ad_buf_printf(&key, "agentd %s\n", agentd_version_string());
	for (size_t i = 0; i < AD_COUNT(files); i++)
		put_file(&key, files[i]);
	for (size_t i = 0; i < AD_COUNT(namespaces); i++) {
		char path[64], link[64];
		ssize_t n;

		snprintf(path, sizeof(path), "/proc/self/ns/%s", namespaces[i]);
		n = readlink(path, link, sizeof(link));
		ad_buf_append(&key, link, n > 0 ? (size_t)n : 0);
		ad_buf_puts(&key, "\n");
	}
	put_status(&key);
	if (stat(helper_path, &st) == 0)
		ad_buf_printf(&key, "%s: %llu %llu %lld %lld.%09ld\n", helper_path,
			      (unsigned long long)st.st_dev, (unsigned long long)st.st_ino,
			      (long long)st.st_size, (long long)st.st_mtim.tv_sec,
			      st.st_mtim.tv_nsec);
	return ad_buf_steal(&key);
}

/* ---- the directory */

static bool default_dir(char *path, size_t size)
{
	struct stat st;

	if (geteuid() == 0) {
		snprintf(path, size, "/run/agentd");
		return true;
	}
	/* Made by the login manager: file-hierarchy(7). */
	snprintf(path, size, "/run/user/%u", geteuid());
	if (lstat(path, &st) < 0 || !S_ISDIR(st.st_mode) || st.st_uid != geteuid())
		return false;
	snprintf(path, size, "/run/user/%u/agentd", geteuid());
	return true;
}

/* A descriptor, or -1 if there is none that only we write to. */
static int open_dir(const char *dir, bool make)
{
	char path[64];
	struct stat st;
	ad_autoclose int fd = -1;

	if (!dir) {
		if (!default_dir(path, sizeof(path)))
			return -1;
		dir = path;
	}
	if (make)
		mkdir(dir, 0700);
	fd = open(dir, O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	if (fd < 0 || fstat(fd, &st) < 0 || st.st_uid != geteuid() || (st.st_mode & 022) != 0)
		return -1;
	return ad_steal_fd(&fd);
}

/* ---- loading */

static char *read_file(const char *dir, size_t *ret_len)
{
	ad_autoclose int at = open_dir(dir, false), fd = -1;
	ad_autofree char *text = malloc(AD_JSON_MAX_BYTES);
	size_t len = 0;
	struct stat st;
	ssize_t n = 0;

	/* Not to hang on a FIFO. */
	fd = at < 0 ? -1 : openat(at, CACHE_FILE, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
	if (fd < 0 || fstat(fd, &st) < 0 || !S_ISREG(st.st_mode) || st.st_uid != geteuid() || !text)
		return NULL;
	while (len < AD_JSON_MAX_BYTES && (n = read(fd, text + len, AD_JSON_MAX_BYTES - len)) > 0)
		len += (size_t)n;
	if (n < 0)
		return NULL;
	*ret_len = len;
	return AD_STEAL(text);
}

agentd_probe *cache_load(const char *dir, const char *key)
{
	size_t len;
	ad_autofree char *text = read_file(dir, &len);
	const struct json_object *found, *value;
	ad_autojson struct json_object *file = NULL;
	agentd_probe *probe = NULL;
	const char *old;

	if (!text || ad_json_parse(text, len, &file, NULL) < 0 ||
	    ad_json_type_of(file) != AD_JSON_OBJECT || !ad_json_member(file, "key", &found) ||
	    ad_json_get_string(found, "", &old, NULL) < 0 || strcmp(old, key) != 0 ||
	    !ad_json_member(file, "probe", &value) || probe_read(value, &probe, NULL) < 0)
		return NULL;
	probe->cached = true;
	return probe;
}

/* ---- storing */

static bool write_all(int fd, const char *text, size_t len)
{
	while (len > 0) {
		ssize_t n = write(fd, text, len);

		if (n < 0 && errno != EINTR)
			return false;
		text += n > 0 ? n : 0;
		len -= n > 0 ? (size_t)n : 0;
	}
	return true;
}

void cache_store(const char *dir, const char *key, const agentd_probe *probe)
{
	bool ok;
	struct json_object *file = ad_json_object(), *value = probe_write(probe, &ok);
	ad_autofree char *text = NULL;
	ad_autoclose int at = open_dir(dir, true), fd = -1;
	char name[40];
	size_t len;

	ok = ad_json_add_string(file, "key", key) && ok;
	ok = ad_json_add_value(file, "probe", value) && ok;
	if (ad_json_to_text(file, ok, &text, &len, NULL) < 0 || at < 0)
		return;
	snprintf(name, sizeof(name), CACHE_FILE ".%d", getpid());
	unlinkat(at, name, 0); /* of one that was killed */
	fd = openat(at, name, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	if (fd < 0)
		return;
	if (!write_all(fd, text, len) || renameat(at, name, at, CACHE_FILE) < 0)
		unlinkat(at, name, 0);
}
