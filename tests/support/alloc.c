/* SPDX-License-Identifier: MIT */
/* An allocator that fails on demand. Linked into a program it is also that of its
 * libraries, so not with sanitizers or valgrind, which bring one themselves. */
#include <errno.h>
#include <stdlib.h>

#include "fault.h"

/* glibc's own, under the names it keeps for this. */
extern void *__libc_malloc(size_t size);
extern void *__libc_calloc(size_t count, size_t size);
extern void *__libc_realloc(void *ptr, size_t size);
extern void *__libc_memalign(size_t alignment, size_t size);
extern void __libc_free(void *ptr);
void *memalign(size_t alignment, size_t size);

struct fault *alloc_fault;
_Atomic long alloc_blocks_alive;

static bool fails(void)
{
	if (!alloc_fault || !fault_strikes(alloc_fault))
		return false;
	errno = ENOMEM;
	return true;
}

static void *counted(void *ptr)
{
	alloc_blocks_alive += ptr != NULL;
	return ptr;
}

void *malloc(size_t size)
{
	return fails() ? NULL : counted(__libc_malloc(size));
}

void *calloc(size_t count, size_t size)
{
	return fails() ? NULL : counted(__libc_calloc(count, size));
}

void *realloc(void *ptr, size_t size)
{
	void *grown;

	if (fails())
		return NULL;
	grown = __libc_realloc(ptr, size);
	/* Of nothing it is malloc(), to nothing it is free(). */
	alloc_blocks_alive += (grown && !ptr) - (ptr && size == 0);
	return grown;
}

void *reallocarray(void *ptr, size_t count, size_t size)
{
	size_t total;

	if (__builtin_mul_overflow(count, size, &total)) {
		errno = ENOMEM;
		return NULL;
	}
	return realloc(ptr, total);
}

void *memalign(size_t alignment, size_t size)
{
	return fails() ? NULL : counted(__libc_memalign(alignment, size));
}

void *aligned_alloc(size_t alignment, size_t size)
{
	return memalign(alignment, size);
}

int posix_memalign(void **ret, size_t alignment, size_t size)
{
	void *ptr = memalign(alignment, size);

	if (!ptr)
		return ENOMEM;
	*ret = ptr;
	return 0;
}

void free(void *ptr)
{
	alloc_blocks_alive -= ptr != NULL;
	__libc_free(ptr);
}
