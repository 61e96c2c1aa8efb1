/* SPDX-License-Identifier: MIT */
/* flood SIZE COUNT: COUNT writes of SIZE bytes each to standard output; COUNT 0: until it
 * is closed. */
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

int main(int argc, char **argv)
{
	size_t size = argc == 3 ? strtoul(argv[1], NULL, 10) : 0;
	unsigned long count = size ? strtoul(argv[2], NULL, 10) : 0;
	char *buf = size ? malloc(size) : NULL;

	if (!buf)
		return 2;
	memset(buf, 'x', size);
	for (unsigned long i = 0; count == 0 || i < count; i++) {
		for (size_t at = 0; at < size;) {
			ssize_t n = write(STDOUT_FILENO, buf + at, size - at);

			if (n <= 0)
				return 1;
			at += (size_t)n;
		}
	}
	return 0;
}
