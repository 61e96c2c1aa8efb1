/* SPDX-License-Identifier: MIT */
/* A harness without a fuzzer: every file of a corpus, each cut short at every length and
 * with every byte changed. usage: PROGRAM DIRECTORY */
#include "fuzz.h"

#include <dirent.h>
#include <errno.h>
#include <string.h>

enum { WHOLE_MAX = 512 }; /* of longer ones only some cuts and changes */

/* In memory of exactly that size, so that a read past its end is seen. */
static void feed(const uint8_t *data, size_t size)
{
	uint8_t *copy = malloc(size ? size : 1);

	if (!copy)
		abort();
	memcpy(copy, data, size);
	LLVMFuzzerTestOneInput(copy, size);
	free(copy);
}

static void feed_file(const char *path)
{
	static const uint8_t changes[] = { 0x01, 0x20, 0x80, 0xff };
	FILE *file = fopen(path, "rb");
	uint8_t *data = malloc(1 << 20);
	size_t size, step;

	if (!file || !data) {
		fprintf(stderr, "%s: %s\n", path, strerror(errno));
		exit(1);
	}
	size = fread(data, 1, 1 << 20, file);
	fclose(file);
	step = size / WHOLE_MAX + 1;
	feed(data, size);
	for (size_t i = 0; i < size; i += step) {
		feed(data, i);
		for (size_t j = 0; j < sizeof(changes); j++) {
			data[i] ^= changes[j];
			feed(data, size);
			data[i] ^= changes[j];
		}
	}
	free(data);
}

int main(int argc, char **argv)
{
	struct dirent **entries;
	int count, files = 0;

	if (argc != 2) {
		fprintf(stderr, "usage: %s DIRECTORY\n", argv[0]);
		return 2;
	}
	count = scandir(argv[1], &entries, NULL, alphasort);
	if (count < 0) {
		fprintf(stderr, "%s: %s\n", argv[1], strerror(errno));
		return 1;
	}
	for (int i = 0; i < count; i++) {
		char path[4096];

		snprintf(path, sizeof(path), "%s/%s", argv[1], entries[i]->d_name);
		if (entries[i]->d_name[0] != '.') {
			feed_file(path);
			files++;
		}
		free(entries[i]);
	}
	free(entries);
	printf("%d files\n", files);
	/* A corpus that is not there tests nothing. */
	return files > 0 ? 0 : 1;
}
