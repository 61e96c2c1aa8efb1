/* SPDX-License-Identifier: MIT */
/* What a carrier says on its standard error: one line per record. A carrier brings the
 * working directory into a machine and the changes back out, in two phases: it packs,
 * says PACKED, then applies, and says APPLIED. The library takes what it says as
 * hostile: it has read what a command has made. Pure.
 *
 *	packed ENTRIES BYTES UNTOLD
 *	applied ENTRIES BYTES UNTOLD
 *	skipped|denied|conflict|error|failed REASON ERRNO PATH
 *
 * Numbers are decimal. In a path every byte that is not printable ASCII, blanks and '%'
 * are %xx. The directory itself is ".". Each record has one form only. */
#ifndef AD_PROTO_CARRY_H
#define AD_PROTO_CARRY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
	AD_CARRY_PATH_MAX = 4096, /* with its NUL; longer ones are told cut */
	AD_CARRY_LINE_MAX = 3 * AD_CARRY_PATH_MAX + 64,
	/* Told in each phase; the rest is counted as untold. */
	AD_CARRY_NOTES_MAX = 1000
};

enum ad_carry_type {
	AD_CARRY_PACKED,   /* the archive of the directory is complete */
	AD_CARRY_APPLIED,  /* all that was to be applied is, but for what was told; the last */
	AD_CARRY_FAILED,   /* it stopped there; the last */
	AD_CARRY_SKIPPED,  /* is not in the archive */
	AD_CARRY_DENIED,   /* no archive of ours has it: was not applied */
	AD_CARRY_CONFLICT, /* the directory has changed there meanwhile: was not applied */
	AD_CARRY_ERROR,    /* the system refused it: was not applied */
	AD_CARRY_TYPES
};

enum ad_carry_reason {
	AD_CARRY_SYSTEM, /* os_errno says it */
	/* skipped */
	AD_CARRY_SPECIAL,
	AD_CARRY_UNREADABLE,
	AD_CARRY_LONG,
	AD_CARRY_UNSTABLE,
	/* denied */
	AD_CARRY_NAME,
	AD_CARRY_KIND,
	AD_CARRY_SET_ID,
	AD_CARRY_PARENT,
	AD_CARRY_LINK,
	/* conflict */
	AD_CARRY_APPEARED,
	AD_CARRY_CHANGED,
	AD_CARRY_GONE,
	AD_CARRY_NOT_EMPTY,
	/* failed */
	AD_CARRY_BYTES,
	AD_CARRY_ENTRIES,
	AD_CARRY_FORMAT,
	AD_CARRY_CUT,
	AD_CARRY_USAGE,
	AD_CARRY_REASONS
};

struct ad_carry_record {
	enum ad_carry_type type;
	/* PACKED, APPLIED */
	uint64_t entries, bytes;
	uint64_t untold; /* notes beyond AD_CARRY_NOTES_MAX */
	/* the others */
	enum ad_carry_reason reason;
	int os_errno; /* of SYSTEM, else 0 */
	const char *path;
};

/* For people, the way it follows "PATH: ". */
const char *ad_carry_reason_text(enum ad_carry_reason reason);

/* With its newline and a NUL. Returns its length without the NUL. */
size_t ad_carry_encode(const struct ad_carry_record *record, char buf[static AD_CARRY_LINE_MAX]);

struct ad_carry_reader {
	void (*record)(const struct ad_carry_record *record, void *userdata);
	void *userdata;
	/* The rest starts as zeros. */
	unsigned int notes;
	bool packed, over, bad;
	size_t len;
	char line[AD_CARRY_LINE_MAX];
};

/* Bytes as they come. False, for good, once they were not what a carrier says, in this
 * order. The path is the reader's, until record() returns. */
bool ad_carry_feed(struct ad_carry_reader *reader, const uint8_t *data, size_t len);
/* At the end of file: whether APPLIED or FAILED was the last. */
bool ad_carry_complete(const struct ad_carry_reader *reader);

#endif
