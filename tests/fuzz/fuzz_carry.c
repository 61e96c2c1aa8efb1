/* SPDX-License-Identifier: MIT */
/* What a carrier says, to the library. */
#include "fuzz.h"

#include <stdbool.h>
#include <string.h>

#include "proto/carry.h"

/* What has come, encoded again. */
struct again {
	char *text;
	size_t len;
};

static void see(const struct ad_carry_record *record, void *userdata)
{
	struct again *again = userdata;
	char line[AD_CARRY_LINE_MAX];
	size_t len = ad_carry_encode(record, line);

	again->text = realloc(again->text, again->len + len);
	FUZZ_CHECK(again->text);
	memcpy(again->text + again->len, line, len);
	again->len += len;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct again again = { 0 };
	struct ad_carry_reader *reader = calloc(1, sizeof(*reader));
	bool ok;

	FUZZ_CHECK(reader);
	reader->record = see;
	reader->userdata = &again;
	ok = ad_carry_feed(reader, data, size);
	/* Each record has one form, so that what was taken is what was there. */
	FUZZ_CHECK(again.len <= size &&
		   (again.len == 0 || memcmp(again.text, data, again.len) == 0));
	FUZZ_CHECK(!ok || again.len + reader->len == size);
	FUZZ_CHECK(ok || !ad_carry_complete(reader));
	free(again.text);
	free(reader);
	return 0;
}
