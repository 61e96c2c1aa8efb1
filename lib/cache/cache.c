/* SPDX-License-Identifier: MIT */
#include "cache/cache.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "json/json.h"
#include "sys/sys.h"

/* ---- the key */

void ad_cache_key_text(struct ad_buf *key, const char *path)
{
	ad_autoclose int fd = open(path, O_RDONLY | O_CLOEXEC);
	char text[4096];
	ssize_t n;

	ad_buf_printf(key, "%s: ", path);
	while (fd >= 0 && (n = read(fd, text, sizeof(text))) > 0) {
		/* The key is a string, and SELinux ends a context with NUL. */
		for (ssize_t i = 0; i < n; i++) {
			if (!text[i])
				text[i] = '\n';
		}
		ad_buf_append(key, text, (size_t)n);
	}
	ad_buf_puts(key, "\n");
}

void ad_cache_key_file(struct ad_buf *key, const char *path)
{
	struct stat st;

	if (stat(path, &st) == 0)
		ad_buf_printf(key, "%s: %llu %llu %lld %lld.%09ld\n", path,
			      (unsigned long long)st.st_dev, (unsigned long long)st.st_ino,
			      (long long)st.st_size, (long long)st.st_mtim.tv_sec,
			      st.st_mtim.tv_nsec);
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

static char *read_file(const char *dir, const char *name, size_t *ret_len)
{
	ad_autoclose int at = open_dir(dir, false), fd = -1;
	ad_autofree char *text = malloc(AD_JSON_MAX_BYTES);
	size_t len = 0;
	struct stat st;
	ssize_t n = 0;

	/* Not to hang on a FIFO. */
	fd = at < 0 ? -1 : openat(at, name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
	if (fd < 0 || fstat(fd, &st) < 0 || !S_ISREG(st.st_mode) || st.st_uid != geteuid() || !text)
		return NULL;
	while (len < AD_JSON_MAX_BYTES && (n = read(fd, text + len, AD_JSON_MAX_BYTES - len)) > 0)
		len += (size_t)n;
	if (n < 0)
		return NULL;
	*ret_len = len;
	return AD_STEAL(text);
}

struct json_object *ad_cache_load(const char *dir, const char *file, const char *key)
{
	size_t len;
	ad_autofree char *text = read_file(dir, file, &len);
	ad_autojson struct json_object *whole = NULL;
	const struct json_object *found, *value;
	const char *old;

	if (!text || ad_json_parse(text, len, &whole, NULL) < 0 ||
	    ad_json_type_of(whole) != AD_JSON_OBJECT || !ad_json_member(whole, "key", &found) ||
	    ad_json_get_string(found, "", &old, NULL) < 0 || strcmp(old, key) != 0 ||
	    !ad_json_member(whole, "value", &value))
		return NULL;
	return ad_json_ref(value);
}

/* ---- storing */

static bool write_all(int fd, const char *text, size_t len)
{
	while (len > 0) {
		ssize_t n = ad_sys_write_nosignal(fd, text, len);

		if (n < 0 && n != -EINTR)
			return false;
		text += n > 0 ? n : 0;
		len -= n > 0 ? (size_t)n : 0;
	}
	return true;
}

void ad_cache_store(const char *dir, const char *file, const char *key, struct json_object *value)
{
	struct json_object *whole = ad_json_object();
	ad_autofree char *text = NULL;
	ad_autoclose int at = open_dir(dir, true), fd = -1;
	bool ok = ad_json_add_string(whole, "key", key);
	char name[64];
	size_t len;

	ok = ad_json_add_value(whole, "value", value) && ok;
	if (ad_json_to_text(whole, ok, &text, &len, NULL) < 0 || at < 0)
		return;
	snprintf(name, sizeof(name), "%s.%d", file, getpid());
	unlinkat(at, name, 0); /* of one that was killed */
	fd = openat(at, name, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	if (fd < 0)
		return;
	if (!write_all(fd, text, len) || renameat(at, name, at, file) < 0)
		unlinkat(at, name, 0);
}
