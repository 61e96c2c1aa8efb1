/* SPDX-License-Identifier: MIT */
/* What every folder may use; depends on nothing but libc and the public types. */
#ifndef AD_UTIL_H
#define AD_UTIL_H

#include <errno.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <agentd/base.h>
#include <agentd/error.h>
#include <agentd/limits.h>
#include <agentd/log.h>

#define AD_PRINTF(fmt, first) __attribute__((__format__(__printf__, fmt, first)))
#define AD_COUNT(array) (sizeof(array) / sizeof((array)[0]))
#define AD_CONTAINER_OF(ptr, type, member) ((type *)(void *)((char *)(ptr)-offsetof(type, member)))
#define AD_NS_PER_US UINT64_C(1000)
#define AD_NS_PER_MS UINT64_C(1000000)
#define AD_NS_PER_S UINT64_C(1000000000)

/* ---- cleanup: `ad_autofree char *p`, `ad_autoclose int fd`, `ad_autoerror` */

void ad_util_freep(void *pointer_to_pointer);
void ad_util_closep(const int *fd); /* keeps errno; ignores fd < 0 */
void ad_util_errorp(agentd_error **err);
#define ad_autofree __attribute__((__cleanup__(ad_util_freep)))
#define ad_autoclose __attribute__((__cleanup__(ad_util_closep)))
#define ad_autoerror __attribute__((__cleanup__(ad_util_errorp)))

/* Take the value out of a variable that is cleaned up: `return AD_STEAL(p);` */
#define AD_STEAL(ptr)                                                                              \
	__extension__({                                                                            \
		__typeof__(ptr) *ad_steal_ = &(ptr);                                               \
		__typeof__(ptr) ad_stolen_ = *ad_steal_;                                           \
		*ad_steal_ = NULL;                                                                 \
		ad_stolen_;                                                                        \
	})

static inline int ad_steal_fd(int *fd)
{
	int stolen = *fd;

	*fd = -1;
	return stolen;
}

/* `AD_KEEP_ERRNO;` first in a public function: errno is as it was on every way out. */
static inline void ad_restore_errno(const int *saved)
{
	errno = *saved;
}
#define AD_KEEP_ERRNO                                                                              \
	__attribute__((__cleanup__(ad_restore_errno), __unused__)) int ad_saved_errno_ = errno

/* ---- reference counts */

typedef _Atomic uint32_t ad_refcount;

static inline void ad_ref(ad_refcount *count)
{
	atomic_fetch_add_explicit(count, 1, memory_order_relaxed);
}

/* True for the caller that dropped the last reference. */
static inline bool ad_unref(ad_refcount *count)
{
	return atomic_fetch_sub_explicit(count, 1, memory_order_acq_rel) == 1;
}

/* ---- intrusive doubly linked list; a node not in a list points at itself */

struct ad_list {
	struct ad_list *prev, *next;
};

static inline void ad_list_init(struct ad_list *node)
{
	node->prev = node->next = node;
}

static inline bool ad_list_empty(const struct ad_list *head)
{
	return head->next == head;
}

static inline void ad_list_append(struct ad_list *head, struct ad_list *node)
{
	node->prev = head->prev;
	node->next = head;
	head->prev->next = node;
	head->prev = node;
}

static inline void ad_list_remove(struct ad_list *node)
{
	node->prev->next = node->next;
	node->next->prev = node->prev;
	ad_list_init(node);
}

/* ---- growing byte buffer; always followed by a NUL that len does not count.
 * After a failed allocation `failed` is set, contents are kept, appends do
 * nothing: check once at the end. */

struct ad_buf {
	char *data;
	size_t len, cap;
	bool failed;
};

void ad_buf_free(struct ad_buf *buf);
bool ad_buf_append(struct ad_buf *buf, const void *data, size_t len);
bool ad_buf_puts(struct ad_buf *buf, const char *text);
bool ad_buf_printf(struct ad_buf *buf, const char *fmt, ...) AD_PRINTF(2, 3);
bool ad_buf_vprintf(struct ad_buf *buf, const char *fmt, va_list args) AD_PRINTF(2, 0);
/* The text, to be freed, or NULL if anything failed; buf is empty afterwards. */
char *ad_buf_steal(struct ad_buf *buf);
#define ad_autobuf __attribute__((__cleanup__(ad_buf_free)))

/* ---- numbers, where printf(3) would be most of the work */

enum { AD_DECIMAL_SIZE = 21 };
/* value in decimal and a NUL; returns its length. */
size_t ad_decimal(uint64_t value, char ret[AD_DECIMAL_SIZE]);
bool ad_buf_decimal(struct ad_buf *buf, uint64_t value);

/* ---- NULL-terminated string vectors: the vector and its strings in one block */

size_t ad_strv_len(const char *const *strv);
/* Copy of strv in a single allocation (free() it), or NULL. NULL copies as an
 * empty vector. */
char **ad_strv_dup(const char *const *strv);

/* ---- name lists: sorted by nobody, freed as a whole */

struct ad_strlist {
	char **items;
	size_t count, cap;
};

void ad_strlist_free(struct ad_strlist *list);
int ad_strlist_add(struct ad_strlist *list, const char *text); /* AGENTD_ERR_NOMEM or 0 */
bool ad_strlist_has(const struct ad_strlist *list, const char *text);

/* ---- UTF-8 (RFC 3629: no surrogates, no overlong forms), incremental */

struct ad_utf8 {
	uint32_t code, least; /* code point so far, least value its length allows */
	uint8_t need;         /* continuation bytes still to come */
	bool bad;
};

/* Feed bytes; false (for good) once they were malformed. */
bool ad_utf8_feed(struct ad_utf8 *state, const uint8_t *data, size_t len);
static inline bool ad_utf8_done(const struct ad_utf8 *state)
{
	return !state->bad && state->need == 0;
}
bool ad_utf8_valid(const void *data, size_t len);

/* ---- sized structs (style: size first; zero means default) */

/* Copy a caller's struct of *src_size bytes into dst of dst_size bytes, zeroing
 * what the caller's lacks. AGENTD_ERR_ABI when src says a size below min_size or
 * above 4096, or has non-zero bytes past dst_size. dst->size becomes dst_size. */
int ad_sized_copy(void *dst, uint32_t dst_size, const void *src, uint32_t min_size,
		  const char *what, agentd_error **reterr);
/* Copy src (src_size bytes) to a caller's struct that says how large it is. */
int ad_sized_store(void *dst, const void *src, uint32_t src_size);

/* ---- errors */

/* Make an error in *reterr (if not NULL) and return code. pointer may be NULL. */
int ad_fail(agentd_error **reterr, int code, const char *pointer, const char *fmt, ...)
	AD_PRINTF(4, 5);
/* The same for a failed system call: code SYSTEM (NOMEM for ENOMEM); appends
 * ": <strerror> (os error N)" to the text. */
int ad_fail_errno(agentd_error **reterr, int os_errno, const char *fmt, ...) AD_PRINTF(3, 4);
int ad_fail_nomem(agentd_error **reterr);
/* Put text before the message of *reterr (if any), keeping code and pointer. */
void ad_error_prefix(agentd_error **reterr, const char *fmt, ...) AD_PRINTF(2, 3);
/* Put a pointer prefix ("/policy") before *reterr's pointer. */
void ad_error_prefix_pointer(agentd_error **reterr, const char *prefix);
/* r, of a setter that does not know the pointer: its error, if it failed, has that prefix then. */
int ad_error_at(int r, const char *pointer, agentd_error **reterr);

/* ---- log records */

struct ad_log_field {
	const char *key, *value;
};

struct agentd_log_record {
	int32_t level;
	const char *component, *message;
	const struct ad_log_field *fields;
	size_t field_count;
};

/* ---- path text: absolute, no empty, "." or ".." components, no trailing slash
 * but for "/", shorter than PATH_MAX (4096, limits.h) */

enum ad_path_verdict { AD_PATH_OK, AD_PATH_EMPTY, AD_PATH_RELATIVE, AD_PATH_DOTS, AD_PATH_LONG };
enum ad_path_verdict ad_path_check(const char *path);
const char *ad_path_verdict_text(enum ad_path_verdict verdict);
/* Whether path equals dir or lies beneath it; both checked. */
bool ad_path_beneath(const char *path, const char *dir);

#endif
