/* SPDX-License-Identifier: MIT */
/* The directory that scripts/build-image makes: its files are opened here once and handed
 * on, so that what was checked is what boots. */
#include "backend/microvm/private.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "json/json.h"
#include "proto/guest.h"

enum { FORMAT = 3 }; /* of image.json */

#define REMEDY "; scripts/build-image makes an image"

/* A regular file in dir, whose size is as expected unless that is 0. Its descriptor or a
 * code. */
static int open_file(const char *dir, const char *name, uint64_t size, agentd_error **reterr)
{
	ad_autobuf struct ad_buf path = { 0 };
	ad_autoclose int fd = -1;
	struct stat st;

	ad_buf_printf(&path, "%s%s%s", dir, dir[0] ? "/" : "", name);
	if (path.failed)
		return ad_fail_nomem(reterr);
	fd = open(path.data, O_RDONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
	if (fd < 0 && errno == ENOENT)
		return ad_fail(reterr, AGENTD_ERR_NOTFOUND, NULL, "there is no %s" REMEDY,
			       path.data);
	if (fd < 0 || fstat(fd, &st) < 0)
		return ad_fail_errno(reterr, errno, "the image's file %s", path.data);
	if (!S_ISREG(st.st_mode))
		return ad_fail(reterr, AGENTD_ERR_INVALID, NULL, "%s is not a regular file",
			       path.data);
	if (size && (uint64_t)st.st_size != size)
		return ad_fail(reterr, AGENTD_ERR_INVALID, NULL,
			       "%s has %jd bytes instead of the %" PRIu64
			       " that its image.json says; scripts/build-image --force makes the "
			       "image anew",
			       path.data, (intmax_t)st.st_size, size);
	return ad_sys_high_fd(ad_steal_fd(&fd));
}

/* The whole text of image.json: malloc'ed, or NULL and errno. */
static char *read_text(int fd, size_t *ret_len)
{
	ad_autofree char *text = malloc(AD_JSON_MAX_BYTES);
	size_t len = 0;
	ssize_t n = 1;

	while (text && n != 0 && len < AD_JSON_MAX_BYTES) {
		n = read(fd, text + len, AD_JSON_MAX_BYTES - len);
		if (n < 0 && errno != EINTR)
			return NULL;
		len += n > 0 ? (size_t)n : 0;
	}
	*ret_len = len;
	return AD_STEAL(text);
}

static const struct json_object *member(const struct json_object *object, const char *key)
{
	const struct json_object *value;

	return object && ad_json_type_of(object) == AD_JSON_OBJECT &&
			       ad_json_member(object, key, &value) ?
		       value :
		       NULL;
}

static bool member_u64(const struct json_object *object, const char *key, uint64_t *ret)
{
	const struct json_object *value = member(object, key);

	return value && ad_json_get_u64(value, "", ret, NULL) == 0;
}

static int read_manifest(const char *dir, struct json_object **ret, agentd_error **reterr)
{
	ad_autoclose int fd = open_file(dir, "image.json", 0, reterr);
	ad_autofree char *text = NULL;
	uint64_t format = 0, protocol = 0;
	size_t len;
	int r;

	if (fd < 0)
		return fd;
	text = read_text(fd, &len);
	if (!text)
		return ad_fail_errno(reterr, errno, "the image's file %s/image.json", dir);
	r = ad_json_parse(text, len, ret, reterr);
	if (r < 0) {
		ad_error_prefix(reterr, "%s/image.json: ", dir);
		return r;
	}
	if (!member_u64(*ret, "format", &format) || format != FORMAT ||
	    !member_u64(*ret, "protocol", &protocol) || protocol != AD_GUEST_VERSION)
		return ad_fail(reterr, AGENTD_ERR_UNSUPPORTED, NULL,
			       "the image in %s is of format %" PRIu64 " and its agent speaks "
			       "protocol %" PRIu64 ", while this library knows format %d and "
			       "protocol %d; scripts/build-image makes an image that fits",
			       dir, format, protocol, FORMAT, AD_GUEST_VERSION);
	return 0;
}

int image_open(const char *dir, const char *root, struct image *ret, agentd_error **reterr)
{
	ad_autojson struct json_object *manifest = NULL;
	struct {
		const char *name;
		int *fd;
	} files[] = {
		{ "vmlinux", &ret->kernel },
		{ "initramfs.cpio", &ret->initramfs },
		{ "root.erofs", &ret->root },
	};
	const struct json_object *sizes;
	int r;

	*ret = IMAGE_NONE;
	r = read_manifest(dir, &manifest, reterr);
	if (r < 0)
		return r;
	sizes = member(manifest, "files");
	for (size_t i = 0; i < AD_COUNT(files); i++) {
		uint64_t size = 0;

		if (files[i].fd == &ret->root && root) {
			*files[i].fd = r = open_file("", root, 0, reterr);
		} else if (!member_u64(member(sizes, files[i].name), "size", &size) || size == 0) {
			r = ad_fail(reterr, AGENTD_ERR_INVALID, NULL,
				    "%s/image.json does not say how large %s is" REMEDY, dir,
				    files[i].name);
		} else {
			*files[i].fd = r = open_file(dir, files[i].name, size, reterr);
		}
		if (r < 0) {
			image_close(ret);
			return r;
		}
	}
	return 0;
}

static bool same_file(int a, int b)
{
	struct stat x, y;

	return fstat(a, &x) == 0 && fstat(b, &y) == 0 && x.st_dev == y.st_dev &&
	       x.st_ino == y.st_ino && x.st_size == y.st_size &&
	       x.st_mtim.tv_sec == y.st_mtim.tv_sec && x.st_mtim.tv_nsec == y.st_mtim.tv_nsec;
}

bool image_same(const struct image *a, const struct image *b)
{
	return same_file(a->kernel, b->kernel) && same_file(a->initramfs, b->initramfs) &&
	       same_file(a->root, b->root);
}

int image_open_volume(const char *dir, uint64_t bytes, agentd_error **reterr)
{
	/* The larger first. */
	static const char *const names[] = { "volume.ext4", "volume-small.ext4" };
	ad_autojson struct json_object *manifest = NULL;
	int r = read_manifest(dir, &manifest, reterr);

	if (r < 0)
		return r;
	for (size_t i = 0; i < AD_COUNT(names); i++) {
		uint64_t size = 0;

		if (!member_u64(member(member(manifest, "files"), names[i]), "size", &size) ||
		    size == 0)
			return ad_fail(reterr, AGENTD_ERR_INVALID, NULL,
				       "%s/image.json does not say how large %s is" REMEDY, dir,
				       names[i]);
		if (size <= bytes)
			return open_file(dir, names[i], size, reterr);
	}
	return ad_fail(reterr, AGENTD_ERR_INVALID, NULL,
		       "the image in %s has no volume as small as %" PRIu64 " bytes" REMEDY, dir,
		       bytes);
}

void image_close(struct image *image)
{
	int *fds[] = { &image->kernel, &image->initramfs, &image->root };

	for (size_t i = 0; i < AD_COUNT(fds); i++) {
		if (*fds[i] >= 0)
			close(ad_steal_fd(fds[i]));
	}
}

char *image_default_dir(void)
{
	const char *cache = secure_getenv("XDG_CACHE_HOME"), *home = secure_getenv("HOME");
	struct ad_buf dir = { 0 };

	if (geteuid() == 0)
		ad_buf_puts(&dir, "/var/cache/agentd");
	else if (cache && cache[0] == '/')
		ad_buf_printf(&dir, "%s/agentd", cache);
	else
		ad_buf_printf(&dir, "%s/.cache/agentd",
			      home && home[0] == '/' ? home : "/nonexistent");
	return ad_buf_steal(&dir);
}
